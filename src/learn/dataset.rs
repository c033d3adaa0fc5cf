//! The file that the trainer reads: one [`Example`] or
//! [`Group`](protocol::Group) a line. It must not choose: what is in the file was decided by
//! `pairs` and `groups`. Used by `material` and `run`.

use std::io::{self, Write as _};
use std::path::Path;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use files::hex;
use protocol::Example;

/// What a data set has, as far as settings of a run follow from it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Lines.
    pub examples: usize,
    /// With a chosen answer.
    pub good: usize,
    /// With a rejected one.
    pub bad: usize,
}

/// A data set that is not on disk yet. Its hash names the run's folder, so it is known first.
#[derive(Clone, Debug)]
pub(super) struct Dataset {
    lines: Vec<u8>,
    /// Of the file's content.
    pub(super) sha256: String,
}

impl Dataset {
    /// The examples in their order.
    pub(super) fn new(examples: impl IntoIterator<Item = impl Serialize>) -> Self {
        let mut lines = Vec::new();
        for example in examples {
            serde_json::to_writer(&mut lines, &example)
                .expect("an example is numbers and text, and a Vec takes all bytes");
            lines.push(b'\n');
        }
        let sha256 = hex(&Sha256::digest(&lines));
        Self { lines, sha256 }
    }

    /// The same with further examples after the others.
    pub(super) fn with(mut self, examples: &[Example]) -> Self {
        let Self { lines, .. } = Self::new(examples);
        self.lines.extend(lines);
        self.sha256 = hex(&Sha256::digest(&self.lines));
        self
    }

    /// One that was written before.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let lines = std::fs::read(path)?;
        let sha256 = hex(&Sha256::digest(&lines));
        Ok(Self { lines, sha256 })
    }

    /// Equal for what was made and what was read again.
    pub(super) fn counts(&self) -> Counts {
        #[derive(Default, Deserialize)]
        struct Sides {
            chosen: Option<IgnoredAny>,
            rejected: Option<IgnoredAny>,
        }
        let mut counts = Counts::default();
        for line in self.lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let Sides { chosen, rejected } = serde_json::from_slice(line).unwrap_or_default();
            counts.examples += 1;
            counts.good += usize::from(chosen.is_some());
            counts.bad += usize::from(rejected.is_some());
        }
        counts
    }

    /// Equal data give equal seeds, so that a run can be repeated from its data set alone.
    pub(super) fn seed(&self) -> u64 {
        seed_of(&self.sha256)
    }

    /// Writes the file.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        files::write_atomic(path, |file| file.write_all(&self.lines))
    }
}

/// The seed that follows from a SHA-256 in hexadecimal digits: 32 bits, because that is what every reader
/// of JSON and every random generator takes.
pub(super) fn seed_of(sha256: &str) -> u64 {
    let seed = sha256.get(..8).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    seed.expect("a SHA-256 has 64 hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_the_first_32_bits_of_a_hash() {
        assert_eq!(seed_of(&format!("00c0ffee{}", "9".repeat(56))), 0x00c0_ffee);
    }

    #[test]
    fn the_file_holds_the_examples_in_order_and_its_hash_is_known_before() {
        let example = |chosen: i32, rejected: Option<i32>| Example {
            prompt_id: "p".into(),
            prompt: vec![1],
            chosen: vec![chosen],
            rejected: rejected.map(|token| vec![token]),
        };
        let examples = [example(2, Some(3)), example(4, None)];
        let dataset = Dataset::new(&examples);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        dataset.write(&path).unwrap();
        assert_eq!(files::sha256(&path).unwrap(), dataset.sha256);
        let again = Dataset::read(&path).unwrap();
        assert_eq!((again.sha256.as_str(), again.counts()), (&*dataset.sha256, dataset.counts()));
        assert_eq!(dataset.counts(), Counts { examples: 2, good: 2, bad: 1 });
        let both = Dataset::new(&examples[..1]).with(&examples[1..]);
        assert_eq!((&both.sha256, &both.lines), (&dataset.sha256, &dataset.lines));
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<Example> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, examples);
        u32::try_from(dataset.seed()).expect("the seed has 32 bits");
    }
}
