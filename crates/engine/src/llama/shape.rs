//! What a model file says about its own dimensions, checked: llama.cpp asserts on most of them and
//! ends the process. Pure: reads a header that is already parsed. Used by `check` and `memory`.

use files::gguf::{Gguf, Value};

/// llama.cpp's own bounds (`LLAMA_MAX_LAYERS`, `LLAMA_MAX_EXPERTS`).
const MAX_LAYERS: u64 = 512;
const MAX_EXPERTS: u64 = 1024;
/// Beyond what any model has; it keeps products far away from the end of 64 bits.
const MAX_WIDTH: u64 = 1 << 20;
/// What llama.cpp knows under `rope.scaling.type`; it aborts on anything else.
const ROPE_SCALING: [&str; 4] = ["none", "linear", "yarn", "longrope"];

/// A model's dimensions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Shape {
    /// Width of the residual stream.
    pub(super) embedding: u64,
    /// Longest sequence in training.
    pub(super) context: u64,
    /// Numbers of one attention head's key and value.
    pub(super) key: u64,
    pub(super) value: u64,
    /// One entry a layer.
    pub(super) layers: Vec<Layer>,
}

/// One layer's widths.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Layer {
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) feed_forward: u64,
}

impl Shape {
    pub(super) fn read(header: &Gguf) -> Result<Self, String> {
        let keys = Keys::new(header)?;
        let n_layers = keys.required("block_count", 1, MAX_LAYERS)?;
        let embedding = keys.required("embedding_length", 1, MAX_WIDTH)?;
        let context = keys.required("context_length", 1, (1 << 31) - 1)?;
        keys.optional("nextn_predict_layers", 0, n_layers)?;

        let heads = keys.per_layer("attention.head_count", n_layers, None)?;
        let kv_heads = keys.per_layer("attention.head_count_kv", n_layers, Some(&heads))?;
        let feed_forward = keys.per_layer("feed_forward_length", n_layers, Some(&[0]))?;
        let layers: Vec<Layer> = (0..heads.len())
            .map(|i| Layer {
                heads: heads[i],
                kv_heads: kv_heads[i],
                feed_forward: *feed_forward.get(i).unwrap_or(&feed_forward[0]),
            })
            .collect();
        for (i, &Layer { heads, kv_heads, .. }) in layers.iter().enumerate() {
            if heads > 0 && (kv_heads == 0 || heads % kv_heads != 0) {
                let counts = format!("{heads} heads and {kv_heads} heads for keys and values");
                return Err(format!("layer {i} has {counts}, which do not divide"));
            }
        }
        let first = heads.first().copied().unwrap_or(0);
        if first == 0 {
            return Err("its first layer has no attention heads".to_owned());
        }
        let default = embedding / first;
        let key = keys.optional("attention.key_length", 1, MAX_WIDTH)?.unwrap_or(default);
        let value = keys.optional("attention.value_length", 1, MAX_WIDTH)?.unwrap_or(default);
        if key == 0 || value == 0 {
            return Err(format!("{embedding} numbers do not suffice for {first} heads"));
        }
        let shape = Self { embedding, context, key, value, layers };
        keys.check_rope(&shape)?;
        keys.check_experts()?;
        keys.check_norms()?;
        if let Some(Value::Bool(false)) = keys.value("attention.causal") {
            return Err("its attention is not causal; it cannot generate text".to_owned());
        }
        Ok(shape)
    }
}

/// The keys of one architecture in one header.
struct Keys<'a> {
    header: &'a Gguf,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn new(header: &'a Gguf) -> Result<Self, String> {
        let architecture = header.string("general.architecture").filter(|name| !name.is_empty());
        let architecture = architecture.ok_or("it names no architecture")?;
        Ok(Self { header, architecture })
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.header.metadata(&self.name(key))
    }

    fn optional(&self, key: &str, least: u64, most: u64) -> Result<Option<u64>, String> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = unsigned(value).filter(|number| (least..=most).contains(number));
        let name = self.name(key);
        number
            .map(Some)
            .ok_or_else(|| format!("{name} is {}; {least} to {most} is allowed", brief(value)))
    }

    fn required(&self, key: &str, least: u64, most: u64) -> Result<u64, String> {
        let number = self.optional(key, least, most)?;
        number.ok_or_else(|| format!("{} is missing", self.name(key)))
    }

    /// A number for all layers or one for each. The default has as many, or one for all.
    fn per_layer(
        &self,
        key: &str,
        n_layers: u64,
        default: Option<&[u64]>,
    ) -> Result<Vec<u64>, String> {
        let name = self.name(key);
        let n = usize::try_from(n_layers).unwrap_or(0);
        let allowed = |number: &u64| *number <= MAX_WIDTH;
        match (self.value(key), default) {
            (None, Some(default)) => Ok(default.to_owned()),
            (None, None) => Err(format!("{name} is missing")),
            (Some(Value::Array(entries)), _) => {
                if entries.len() != n {
                    return Err(format!("{name} has {} entries for {n} layers", entries.len()));
                }
                let numbers = entries.iter().map(|entry| unsigned(entry).filter(allowed));
                numbers.collect::<Option<_>>().ok_or(format!("{name} has an entry out of range"))
            }
            (Some(value), _) => match unsigned(value).filter(allowed) {
                Some(number) => Ok(vec![number; n]),
                None => Err(format!("{name} is {}; 0 to {MAX_WIDTH} is allowed", brief(value))),
            },
        }
    }

    fn check_rope(&self, shape: &Shape) -> Result<(), String> {
        if let Some(dimensions) = self.optional("rope.dimension_count", 0, MAX_WIDTH)?
            && (dimensions > shape.key || dimensions % 2 != 0)
        {
            let key = shape.key;
            return Err(format!("{dimensions} rotary dimensions do not fit heads of {key}"));
        }
        // Its graph asserts that all three are the same.
        if self.architecture == "llama" && shape.key != shape.value {
            let Shape { key, value, .. } = shape;
            return Err(format!("keys of {key} and values of {value} numbers; they must be alike"));
        }
        for key in ["rope.freq_base", "rope.scaling.factor", "rope.scale_linear"] {
            if let Some(value) = self.value(key)
                && !matches!(value, Value::Float(number) if (0.0..=1e12).contains(number))
            {
                return Err(format!("{} is {}", self.name(key), brief(value)));
            }
        }
        match self.value("rope.scaling.type") {
            None => Ok(()),
            Some(Value::String(name)) if ROPE_SCALING.contains(&name.as_str()) => Ok(()),
            Some(value) => Err(format!("{} is {}", self.name("rope.scaling.type"), brief(value))),
        }
    }

    fn check_experts(&self) -> Result<(), String> {
        let experts = self.optional("expert_count", 0, MAX_EXPERTS)?.unwrap_or(0);
        let used = match self.value("expert_used_count") {
            Some(Value::Array(entries)) => entries.iter().filter_map(unsigned).max().unwrap_or(0),
            _ => self.optional("expert_used_count", 0, MAX_EXPERTS)?.unwrap_or(0),
        };
        let groups = self.optional("expert_group_count", 0, MAX_EXPERTS)?.unwrap_or(0);
        let groups_used = self.optional("expert_group_used_count", 0, MAX_EXPERTS)?.unwrap_or(0);
        // As llama.cpp asserts it.
        let fits = if experts == 0 {
            used == 0 && groups == 0
        } else {
            let groups_fit =
                groups <= 1 || experts % groups == 0 && 0 < groups_used && groups_used < groups;
            (1..=experts).contains(&used) && groups < experts && groups_fit
        };
        if fits {
            return Ok(());
        }
        Err(format!(
            "{used} of {experts} experts in {groups} groups of which {groups_used} are used"
        ))
    }

    fn check_norms(&self) -> Result<(), String> {
        for key in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"] {
            if let Some(value) = self.value(key)
                && !matches!(value, Value::Float(number) if (0.0..=1.0).contains(number))
            {
                return Err(format!("{} is {}; 0 to 1 is allowed", self.name(key), brief(value)));
            }
        }
        Ok(())
    }
}

fn unsigned(value: &Value) -> Option<u64> {
    match *value {
        Value::Unsigned(number) => Some(number),
        Value::Signed(number) => u64::try_from(number).ok(),
        _ => None,
    }
}

/// A value in a message; a hostile file may have megabytes of it.
fn brief(value: &Value) -> String {
    match value {
        Value::Unsigned(number) => number.to_string(),
        Value::Signed(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(is_true) => is_true.to_string(),
        Value::String(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        Value::Array(entries) => format!("an array of {}", entries.len()),
    }
}
