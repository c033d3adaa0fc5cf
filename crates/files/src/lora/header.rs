//! The metadata by which llama.cpp (`llama_adapter_lora_init`) and we know a LoRA adapter. Used by
//! whoever writes or checks one.

use crate::gguf::{Gguf, Value, Writer};

/// Metadata key under which our trainer writes the SHA-256 of the base that it trained on.
/// llama.cpp does not look: it would load the adapter of another base of equal shape.
pub const BASE_KEY: &str = "reflectd.base_sha256";

/// Metadata key of alpha: each pair is scaled by alpha / rank.
pub const ALPHA_KEY: &str = "adapter.lora.alpha";

const ARCHITECTURE_KEY: &str = "general.architecture";

const KIND: [(&str, &str); 2] = [("general.type", "adapter"), ("adapter.type", "lora")];

/// What the metadata of an adapter says.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// `general.architecture` of the base.
    pub architecture: &'a str,
    /// Each pair is scaled by alpha / rank.
    pub alpha: f64,
    /// `general.name`.
    pub name: Option<&'a str>,
    /// SHA-256 of the base that it was trained on.
    pub base_sha256: Option<&'a str>,
}

impl<'a> Header<'a> {
    /// Without what is not needed to serve it.
    pub fn new(architecture: &'a str, alpha: f64) -> Self {
        Self { architecture, alpha, name: None, base_sha256: None }
    }

    /// Key by key.
    pub fn entries(&self) -> Vec<(&'static str, Value)> {
        let text = |text: &str| Value::String(text.to_owned());
        let mut entries = vec![(ARCHITECTURE_KEY, text(self.architecture))];
        entries.extend(KIND.map(|(key, kind)| (key, text(kind))));
        entries.extend(self.name.map(|name| ("general.name", text(name))));
        entries.push((ALPHA_KEY, Value::Float(self.alpha)));
        entries.extend(self.base_sha256.map(|sha256| (BASE_KEY, text(sha256))));
        entries
    }

    /// Adds it to a file.
    pub fn write(&self, writer: &mut Writer) {
        for (key, value) in self.entries() {
            writer.metadata(key, value);
        }
    }
}

/// Refuses what is no LoRA adapter, and an activated LoRA.
pub fn check_kind(file: &Gguf) -> Result<(), String> {
    for (key, wanted) in KIND {
        check_text(file, key, wanted)?;
    }
    if file.metadata("adapter.alora.invocation_tokens").is_some() {
        return Err("it is an activated LoRA, which is not served".to_owned());
    }
    Ok(())
}

/// Refuses an adapter of another architecture.
pub fn check_architecture(file: &Gguf, architecture: &str) -> Result<(), String> {
    check_text(file, ARCHITECTURE_KEY, architecture)
}

/// Refuses an adapter that was trained on another base, or that does not say on which.
pub fn check_base(file: &Gguf, sha256: &str) -> Result<(), String> {
    check_text(file, BASE_KEY, sha256)
}

fn check_text(file: &Gguf, key: &str, wanted: &str) -> Result<(), String> {
    match file.string(key) {
        Some(found) if found == wanted => Ok(()),
        Some(found) => {
            let found: String = found.chars().take(64).collect();
            Err(format!("{key} is {found:?}, not {wanted:?}"))
        }
        None => Err(format!("{key} is missing, {wanted:?} is wanted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(change: impl Fn(&'static str, Value) -> Option<Value>) -> Gguf {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let mut writer = Writer::default();
        let header = Header { base_sha256: Some("abc"), ..Header::new("llama", 2.0) };
        for (key, value) in header.entries() {
            if let Some(value) = change(key, value) {
                writer.metadata(key, value);
            }
        }
        writer.write(&path).unwrap();
        Gguf::open(&path).unwrap()
    }

    fn check(file: &Gguf) -> Result<(), String> {
        check_kind(file)?;
        check_architecture(file, "llama")?;
        check_base(file, "abc")
    }

    #[test]
    fn a_header_passes_its_own_checks_and_each_key_counts() {
        assert_eq!(check(&written(|_, value| Some(value))), Ok(()));
        for key in ["general.type", "adapter.type", ARCHITECTURE_KEY, BASE_KEY] {
            let missing = check(&written(|it, value| (it != key).then_some(value))).unwrap_err();
            assert!(missing.starts_with(&format!("{key} is missing")), "{missing}");
            let wrong = Value::String("\u{1b}[31m".to_owned() + &"x".repeat(1000));
            let other =
                |it: &'static str, value| Some(if it == key { wrong.clone() } else { value });
            let other = check(&written(other)).unwrap_err();
            assert!(other.starts_with(&format!("{key} is \"\\u{{1b}}[31mx")), "{other}");
            assert!(other.len() < 150, "{other}");
        }
    }
}
