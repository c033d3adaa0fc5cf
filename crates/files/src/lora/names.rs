//! What the linear layers are called in a GGUF and in Hugging Face's `transformers`, and whose rows
//! lie in another order there: one table, as data. Pure. Used by `peft`.

/// The linear layers of one architecture.
#[derive(Debug, PartialEq)]
pub struct Names {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// The class in `transformers` whose modules these are.
    pub class: &'static str,
    /// Of a block.
    pub linears: &'static [Linear],
}

/// One linear layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// In a GGUF between `blk.N.` and `.weight`.
    pub gguf: &'static str,
    /// In `transformers` behind `layers.N.`.
    pub module: &'static str,
    /// How its rows lie in the GGUF.
    pub rows: Rows,
}

/// How the rows of a matrix lie in a GGUF.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rows {
    /// As in `transformers`.
    Same,
    /// The two halves of each query head alternate, for ggml's rotary embedding of neighbours.
    QueryHeads,
    /// Likewise of each key head.
    KeyHeads,
}

const fn linear(gguf: &'static str, module: &'static str, rows: Rows) -> Linear {
    Linear { gguf, module, rows }
}

/// What most have in common.
static SPLIT: [Linear; 7] = [
    linear("attn_q", "self_attn.q_proj", Rows::Same),
    linear("attn_k", "self_attn.k_proj", Rows::Same),
    linear("attn_v", "self_attn.v_proj", Rows::Same),
    linear("attn_output", "self_attn.o_proj", Rows::Same),
    linear("ffn_gate", "mlp.gate_proj", Rows::Same),
    linear("ffn_up", "mlp.up_proj", Rows::Same),
    linear("ffn_down", "mlp.down_proj", Rows::Same),
];

static PERMUTED: [Linear; 7] = [
    linear("attn_q", "self_attn.q_proj", Rows::QueryHeads),
    linear("attn_k", "self_attn.k_proj", Rows::KeyHeads),
    SPLIT[2],
    SPLIT[3],
    SPLIT[4],
    SPLIT[5],
    SPLIT[6],
];

/// Queries, keys and values are one matrix, and so are gate and up, in this order in both worlds.
static FUSED: [Linear; 4] = [
    linear("attn_qkv", "self_attn.qkv_proj", Rows::Same),
    linear("attn_output", "self_attn.o_proj", Rows::Same),
    linear("ffn_up", "mlp.gate_up_proj", Rows::Same),
    linear("ffn_down", "mlp.down_proj", Rows::Same),
];

/// All architectures that the trainer knows.
pub static ALL: [Names; 6] = [
    Names { architecture: "llama", class: "LlamaForCausalLM", linears: &PERMUTED },
    Names { architecture: "qwen2", class: "Qwen2ForCausalLM", linears: &SPLIT },
    Names { architecture: "qwen3", class: "Qwen3ForCausalLM", linears: &SPLIT },
    Names { architecture: "gemma2", class: "Gemma2ForCausalLM", linears: &SPLIT },
    Names { architecture: "gemma3", class: "Gemma3ForCausalLM", linears: &SPLIT },
    Names { architecture: "phi3", class: "Phi3ForCausalLM", linears: &FUSED },
];

/// Where the blocks are in the classes that `transformers` has or had for these models.
const STEMS: [&str; 4] =
    ["model.", "model.language_model.", "language_model.model.", "model.language_model.model."];

impl Names {
    /// Those of an architecture.
    pub fn of(architecture: &str) -> Option<&'static Self> {
        ALL.iter().find(|names| names.architecture == architecture)
    }
    /// `blk.3.attn_q.weight` as `model.layers.3.self_attn.q_proj`.
    pub fn module(&self, tensor: &str) -> Option<(String, Rows)> {
        let (layer, gguf) =
            tensor.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let linear = self.linears.iter().find(|linear| linear.gguf == gguf)?;
        Some((format!("model.layers.{layer}.{}", linear.module), linear.rows))
    }
    /// The way back.
    pub fn tensor(&self, module: &str) -> Option<(String, Rows)> {
        let (stem, rest) = module.split_once("layers.")?;
        let (layer, module) = rest.split_once('.')?;
        let layer: u32 = layer.parse().ok().filter(|_| STEMS.contains(&stem))?;
        let linear = self.linears.iter().find(|linear| linear.module == module)?;
        Some((format!("blk.{layer}.{}.weight", linear.gguf), linear.rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_way_back() {
        for names in &ALL {
            for linear in names.linears {
                let tensor = format!("blk.17.{}.weight", linear.gguf);
                let (module, rows) = names.module(&tensor).unwrap();
                assert_eq!(names.tensor(&module), Some((tensor, rows)));
            }
        }
    }

    #[test]
    fn the_names_are_those_that_transformers_uses() {
        let module = |architecture, tensor| Names::of(architecture).unwrap().module(tensor);
        let found = module("llama", "blk.0.attn_q.weight");
        assert_eq!(found, Some(("model.layers.0.self_attn.q_proj".into(), Rows::QueryHeads)));
        let found = module("phi3", "blk.31.ffn_up.weight");
        assert_eq!(found, Some(("model.layers.31.mlp.gate_up_proj".into(), Rows::Same)));
        assert_eq!(module("phi3", "blk.0.attn_q.weight"), None);
        assert_eq!(module("qwen3", "blk.x.attn_q.weight"), None);
        assert_eq!(module("qwen3", "output.weight"), None);
    }

    #[test]
    fn a_model_that_also_sees_has_its_text_layers_elsewhere() {
        let names = Names::of("gemma3").unwrap();
        for stem in ["model", "language_model.model", "model.language_model"] {
            let found = names.tensor(&format!("{stem}.layers.2.mlp.up_proj"));
            assert_eq!(found, Some(("blk.2.ffn_up.weight".into(), Rows::Same)));
        }
        assert_eq!(names.tensor("vision_tower.encoder.layers.2.mlp.up_proj"), None);
        assert_eq!(names.tensor("model.layers.2.mlp.fc1"), None);
    }
}
