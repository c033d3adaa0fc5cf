//! The README of an export: what it is, where it comes from, how it was judged, how it is used, what
//! it cannot do. Pure: facts in, Markdown out. It names no path of the owner's machine and quotes no
//! prompt. Used by `reflectd export`.

use std::fmt::Write as _;

use serde_json::Value;

use crate::merge::Written;

/// What is exported.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// `adapter.gguf`.
    Gguf,
    /// A PEFT folder.
    Peft,
    /// A whole model.
    Merged {
        /// Name of the file.
        file: String,
        /// How its merged tensors were written.
        written: Vec<Written>,
    },
}

/// The facts of one export.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Card {
    /// What is exported.
    pub content: Content,
    /// `general.name` of the base.
    pub base_name: String,
    /// Name of its file.
    pub base_file: String,
    /// SHA-256 of its file.
    pub base_sha256: String,
    /// Its architecture.
    pub architecture: String,
    /// What the base is called in `transformers` or on a hub.
    pub base_model: Option<String>,
    /// `None`: it differs between layers.
    pub rank: Option<usize>,
    /// The adapter's alpha.
    pub alpha: f64,
    /// Matrices that it changes.
    pub tensors: usize,
    /// SHA-256 of the adapter's file.
    pub adapter_sha256: String,
    /// The generation's number.
    pub generation: u32,
    /// The one that its run started from.
    pub parent: u32,
    /// Day on which it was promoted.
    pub made: String,
    /// The run that made it.
    pub run: i64,
    /// Pairs that it learned from.
    pub pairs: usize,
    /// SHA-256 of the data set; empty: it was trained elsewhere.
    pub data_sha256: String,
    /// The run's record: objective, shape, optimizer.
    pub job: Value,
    /// The gate's numbers.
    pub verdict: Value,
    /// Of reflectd.
    pub version: String,
}

/// Parts of a job that say how the training went.
const SETTINGS: [&str; 7] =
    ["objective", "lora", "optimizer", "validation_share", "max_tokens", "seed", "device"];

impl Card {
    /// As Markdown.
    pub(super) fn render(&self) -> String {
        let mut text = self.front_matter();
        self.say(&mut text).expect("writing to a String cannot fail");
        text
    }

    /// What a hub reads.
    fn front_matter(&self) -> String {
        let (library, kind) = match self.content {
            Content::Peft => ("peft", "lora"),
            Content::Gguf => ("llama.cpp", "lora"),
            Content::Merged { .. } => ("llama.cpp", "gguf"),
        };
        let base = self.base_model.as_deref();
        // As JSON, because all JSON is YAML and needs no rules for quoting.
        let base = base.map(|base| format!("base_model: {}\n", Value::from(base)));
        format!(
            "---\n{}library_name: {library}\npipeline_tag: text-generation\n\
             tags: [reflectd, {kind}]\n---\n\n",
            base.unwrap_or_default()
        )
    }

    fn say(&self, text: &mut String) -> std::fmt::Result {
        let Self { base_name, generation, version, .. } = self;
        let base_name = plain(base_name);
        writeln!(text, "# {base_name}, generation {generation}\n")?;
        let what = match &self.content {
            Content::Gguf => "A LoRA adapter in llama.cpp's format.",
            Content::Peft => "A LoRA adapter in PEFT's format.",
            Content::Merged { .. } => "A base model with a LoRA adapter merged into it.",
        };
        let maker = if self.is_ours() { "trained" } else { "trained elsewhere, imported" };
        writeln!(
            text,
            "{what} It was {maker} and compared with what was served before it by reflectd {version}.\n"
        )?;
        self.origin(text)?;
        self.comparison(text)?;
        self.usage(text)?;
        self.limits(text)
    }

    fn is_ours(&self) -> bool {
        !self.data_sha256.is_empty()
    }

    fn origin(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "## Where it comes from\n\n| | |\n|---|---|")?;
        let rank = self.rank.map_or_else(|| "by layer".to_owned(), |rank| rank.to_string());
        let (rank, alpha, tensors) = (rank, self.alpha, self.tensors);
        let mut rows = vec![
            (
                "base",
                format!(
                    "{} (`{}`, {})",
                    plain(&self.base_name),
                    plain(&self.base_file),
                    plain(&self.architecture)
                ),
            ),
            ("SHA-256 of the base", format!("`{}`", self.base_sha256)),
            ("adapter", format!("rank {rank}, alpha {alpha}, {tensors} matrices")),
            ("SHA-256 of the adapter", format!("`{}`", self.adapter_sha256)),
            ("made", format!("{}, run {}, from generation {}", self.made, self.run, self.parent)),
        ];
        if self.is_ours() {
            rows.push(("data", format!("{} pairs, SHA-256 `{}`", self.pairs, self.data_sha256)));
        }
        let settings = SETTINGS.iter().filter(|_| self.is_ours());
        rows.extend(settings.filter_map(|&key| Some((key, setting(self.job.get(key)?)))));
        for (name, value) in rows {
            writeln!(text, "| {name} | {value} |")?;
        }
        writeln!(text)
    }

    fn comparison(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "## The comparison that it won\n")?;
        writeln!(
            text,
            "Held-out prompts, which no training saw, were answered by it (candidate) and by \
             generation {} (active).\n",
            self.parent
        )?;
        writeln!(text, "| | |\n|---|---|")?;
        for (name, value) in self.verdict.as_object().into_iter().flatten() {
            if name != "promote" {
                writeln!(text, "| {name} | {} |", setting(value))?;
            }
        }
        writeln!(text)
    }

    fn usage(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "## How to use it\n")?;
        let base_file = plain(&self.base_file);
        match &self.content {
            Content::Gguf => write!(
                text,
                "With the base of that SHA-256:\n\n```sh\n\
                 llama-server --model {base_file} --lora adapter.gguf\n\
                 reflectd adapters import adapter.gguf\n```\n\n"
            ),
            Content::Peft => {
                let base = self.base_model.as_deref().unwrap_or("THE BASE IN TRANSFORMERS' FORMAT");
                let base = Value::from(base);
                write!(
                    text,
                    "```python\n\
                     from peft import PeftModel\n\
                     from transformers import AutoModelForCausalLM\n\n\
                     base = AutoModelForCausalLM.from_pretrained({base})\n\
                     model = PeftModel.from_pretrained(base, \".\")\n```\n\n\
                     Or back into reflectd, with the base of that SHA-256: \
                     `reflectd adapters import .`\n\n"
                )
            }
            Content::Merged { file, .. } => write!(
                text,
                "It needs nothing else: `llama-server --model {0}`, or `model: {0}` in an agent of \
                 reflectd.\n\n",
                plain(file)
            ),
        }
    }

    fn limits(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "## Limits\n")?;
        writeln!(
            text,
            "- It has learned from what its owner asked and may say some of it again. Look before \
             you publish it.\n\
             - Better means better on the prompts above, by the judge and the verifiers that scored \
             them; `scored_by_verifier` says how many were not scored by a model.\n\
             - What the base cannot do, and its licence, stay as they are."
        )?;
        match &self.content {
            Content::Gguf => writeln!(text, "- It fits the base of that SHA-256 and no other."),
            Content::Peft => writeln!(
                text,
                "- It was trained on the numbers of the base's GGUF. On weights that were quantized \
                 otherwise, or not at all, it does nearly the same."
            ),
            Content::Merged { written, .. } => {
                writeln!(
                    text,
                    "- Merged weights are rounded to their type. The table says by how much, in units \
                     of what the adapter changes; the adapter beside its base has no such loss.\n\n\
                     | merged tensors | was | is | rounding / change | |\n|---|---|---|---|---|"
                )?;
                for it in written {
                    let Written { tensors, from, to, rounding, .. } = it;
                    let why = remark(it);
                    writeln!(text, "| {tensors} | {from} | {to} | {rounding:.2} | {why} |")?;
                }
                Ok(())
            }
        }
    }
}

/// What an owner should know about how tensors were written; usually empty.
pub(super) fn remark(written: &Written) -> String {
    let mut remarks = Vec::new();
    if let Some(why) = &written.instead {
        remarks.push(format!("{why}, so it is {}", written.to));
    }
    if 1.0 < written.rounding {
        remarks.push("what was learned is smaller than the rounding: use a larger type".to_owned());
    }
    remarks.join("; ")
}

/// Text out of a file, in one cell of a table.
fn plain(text: &str) -> String {
    let text = text.chars().filter(|c| !c.is_control()).take(200);
    text.map(|c| if matches!(c, '|' | '`' | '<' | '>') { ' ' } else { c }).collect()
}

/// A setting or a number in one line.
fn setting(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| match value {
                Value::String(word) if name == "name" => plain(word),
                value => format!("{name} {}", setting(value)),
            });
            fields.collect::<Vec<_>>().join(", ")
        }
        Value::Array(values) => values.iter().map(setting).collect::<Vec<_>>().join(", "),
        Value::Number(number) => match number.as_f64() {
            Some(float) if !number.is_i64() && !number.is_u64() => rounded(float),
            _ => number.to_string(),
        },
        Value::String(text) => plain(text),
        Value::Null => "-".to_owned(),
        Value::Bool(is) => if *is { "yes" } else { "no" }.to_owned(),
    }
}

/// Four digits, and no trailing zeros.
fn rounded(float: f64) -> String {
    if float == 0.0 || (1e-3..1e4).contains(&float.abs()) {
        let text = format!("{float:.4}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let text = format!("{float:.3e}");
    let (digits, exponent) = text.split_once('e').expect("the format has one");
    format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn card(content: Content) -> Card {
        Card {
            content,
            base_name: "Tiny | Chat".into(),
            base_file: "tiny-q4_k_m.gguf".into(),
            base_sha256: "ba5e".into(),
            architecture: "llama".into(),
            base_model: Some("owner/tiny".into()),
            rank: Some(16),
            alpha: 32.0,
            tensors: 42,
            adapter_sha256: "ada9".into(),
            generation: 2,
            parent: 1,
            made: "2026-11-26".into(),
            run: 7,
            pairs: 170,
            data_sha256: "da7a".into(),
            job: json!({
                "base": "/secret/folder/tiny.gguf",
                "objective": {"name": "dpo", "beta": 0.1, "nll": 1.0},
                "optimizer": {"learning_rate": 2e-5, "epochs": 2},
                "seed": 12,
            }),
            verdict: json!({
                "promote": true, "reason": "the gain is +0.100", "prompts": 200,
                "gain": 0.123_456, "p": 1.5e-7, "verified": {"prompts": 100, "active": 0.5},
                "parity": null,
            }),
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn a_card_says_where_an_adapter_comes_from_and_how_it_is_used() {
        insta::assert_snapshot!(card(Content::Peft).render());
    }

    #[test]
    fn a_card_of_a_merged_model_says_what_rounding_costs() {
        let written = |from: &str, to: &str, instead: Option<&str>, rounding| Written {
            from: from.into(),
            to: to.into(),
            instead: instead.map(str::to_owned),
            tensors: 3,
            rounding,
        };
        let written = vec![
            written("q4_K", "q4_K", None, 1.7),
            written("iq2_xxs", "q2_K", Some("iq2_xxs cannot be written"), 0.5),
        ];
        let text = card(Content::Merged { file: "tiny-2.gguf".into(), written }).render();
        assert!(text.contains("| 3 | q4_K | q4_K | 1.70 | what was learned is smaller"), "{text}");
        assert!(text.contains("iq2_xxs cannot be written, so it is q2_K |"), "{text}");
    }

    #[test]
    fn no_card_names_a_folder_and_an_imported_one_claims_no_data() {
        let card = Card { data_sha256: String::new(), base_model: None, ..card(Content::Gguf) };
        let text = card.render();
        assert!(!text.contains("secret") && !text.contains("| data |"), "{text}");
        assert!(text.contains("trained elsewhere") && !text.contains("base_model"), "{text}");
    }
}
