//! A model in one file or in several (`x-00001-of-00003.gguf` ...): which files belong to it, that
//! they do belong together, and one hash that stands for all of them. It does not look at what the
//! tensors mean. Used by `engine` (serving), `learn` (checks) and the trainer (weights, identity).

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use super::{Gguf, GgufError, TensorInfo, Value};

/// llama.cpp counts them in 16 bits; no real model has more than this.
const MAX_PARTS: u64 = 1000;

/// The headers of all files of a model, the first one first: its metadata is the model's.
#[derive(Debug)]
pub struct Parts(Vec<Gguf>);

impl Parts {
    /// Opens a model; of one in several files the first is named. Parts that are missing or are
    /// not of this model are refused.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let first = Gguf::open(path)?;
        let n_parts = first.unsigned("split.count").unwrap_or(1).max(1);
        if n_parts == 1 {
            return Ok(Self(vec![first]));
        }
        if n_parts > MAX_PARTS {
            return Err(first.malformed(format!("it says that it has {n_parts} parts")));
        }
        let name = Name::of(path).filter(|name| name.count == n_parts);
        match (first.unsigned("split.no"), name) {
            (Some(0), Some(name)) if name.number == 1 => Self::join(first, &name),
            (Some(0) | None, _) => {
                let end = format!("-00001-of-{n_parts:05}.gguf");
                Err(first.malformed(format!(
                    "it is the first of {n_parts} parts, so its name has to end with {end}"
                )))
            }
            (Some(index), _) => Err(first.malformed(format!(
                "it is part {} of {n_parts}: name the first one (-00001-of-{n_parts:05}.gguf)",
                index.saturating_add(1)
            ))),
        }
    }

    fn join(first: Gguf, name: &Name) -> Result<Self, GgufError> {
        let n_parts = name.count;
        let mut names: HashSet<String> =
            first.tensors().iter().map(|tensor| tensor.name.clone()).collect();
        let mut parts = vec![first];
        for number in 2..=n_parts {
            let path = name.part(number);
            let part = Gguf::open(&path).map_err(|error| match error {
                GgufError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                    let place = path.display();
                    parts[0].malformed(format!("part {number} of {n_parts} is missing: {place}"))
                }
                other => other,
            })?;
            check_belongs(&part, &parts[0], number, n_parts)?;
            for tensor in part.tensors() {
                if !names.insert(tensor.name.clone()) {
                    let reason = format!("tensor {} is in an earlier part too", tensor.name);
                    return Err(part.malformed(reason));
                }
            }
            parts.push(part);
        }
        let (expected, found) = (parts[0].unsigned("split.tensors.count"), names.len());
        match expected {
            Some(expected) if expected != found as u64 => {
                Err(parts[0].malformed(format!("all parts have {found} of {expected} tensors")))
            }
            _ => Ok(Self(parts)),
        }
    }

    /// Where the metadata is.
    pub fn header(&self) -> &Gguf {
        &self.0[0]
    }

    /// All files.
    pub fn files(&self) -> &[Gguf] {
        &self.0
    }

    /// All tensors of all files.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.0.iter().flat_map(Gguf::tensors)
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.0.iter().find_map(|part| part.tensor(name))
    }
}

impl IntoIterator for Parts {
    type Item = Gguf;
    type IntoIter = std::vec::IntoIter<Gguf>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// A later part says nothing else than the first one. Two fine-tunings of one model cannot be told
/// apart by that; the model's hash, which covers all parts, still differs.
fn check_belongs(part: &Gguf, first: &Gguf, number: u64, n_parts: u64) -> Result<(), GgufError> {
    let is_it = (part.unsigned("split.no"), part.unsigned("split.count"))
        == (Some(number - 1), Some(n_parts));
    if !is_it {
        return Err(part.malformed(format!("it is not part {number} of {n_parts}")));
    }
    let differs = |(key, value): &(&String, &Value)| {
        key.as_str() != "split.no" && first.metadata(key).is_some_and(|it| it != *value)
    };
    match part.entries().iter().find(differs) {
        Some((key, _)) => {
            Err(part
                .malformed(format!("it is of another model than the first part: {key} differs")))
        }
        None => Ok(()),
    }
}

/// The files of a model, of which the first is named.
pub fn model_files(path: &Path) -> Result<Vec<PathBuf>, GgufError> {
    let Some(name) = Name::of(path).filter(|name| name.number == 1 && 1 < name.count) else {
        return Ok(vec![path.to_owned()]);
    };
    // A model in one file may have a name of this form too.
    let n_parts = Gguf::open(path)?.unsigned("split.count").unwrap_or(1);
    let is_split = n_parts == name.count && n_parts <= MAX_PARTS;
    Ok(if is_split { (1..=n_parts).map(|n| name.part(n)).collect() } else { vec![path.to_owned()] })
}

/// Bytes of all files of a model.
pub fn model_size(path: &Path) -> Result<u64, GgufError> {
    let size = |path: PathBuf| match path.metadata() {
        Ok(metadata) => Ok(metadata.len()),
        Err(source) => Err(GgufError::Io { path, source }),
    };
    model_files(path)?.into_iter().map(size).sum()
}

/// What a model is known by: the SHA-256 of its file; of one in several files that of the list of
/// their hashes, each on a line (`sha256sum PARTS | cut -c1-64 | sha256sum`).
pub fn model_sha256(path: &Path) -> Result<String, GgufError> {
    let hash = |path: PathBuf| {
        crate::disk::sha256(&path).map_err(|source| GgufError::Io { path: path.clone(), source })
    };
    let mut hashes: Vec<String> =
        model_files(path)?.into_iter().map(hash).collect::<Result<_, _>>()?;
    if hashes.len() == 1 {
        return Ok(hashes.remove(0));
    }
    let list: String = hashes.into_iter().flat_map(|hash| [hash, "\n".to_owned()]).collect();
    Ok(crate::disk::hex(&sha2::Sha256::digest(list)))
}

/// `stem-00001-of-00003.gguf`.
struct Name {
    folder: PathBuf,
    stem: String,
    number: u64,
    count: u64,
}

impl Name {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let counted = |digits: &str| {
            let is_number = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| is_number)
        };
        let (number, count) = (counted(number)?, counted(count)?);
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        (!stem.is_empty()).then(|| Self { folder, stem: stem.to_owned(), number, count })
    }

    fn part(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Writer;
    use super::*;

    struct Split(tempfile::TempDir);

    impl Split {
        fn new() -> Self {
            let split = Self(tempfile::tempdir().unwrap());
            split.write(1, 0, "t1", "one");
            split
        }
        fn path(&self, number: u64) -> PathBuf {
            self.0.path().join(format!("m-{number:05}-of-00002.gguf"))
        }
        fn write(&self, number: u64, says: u64, tensor: &str, name: &str) {
            let mut writer = Writer::default();
            writer.metadata("split.no", Value::Unsigned(says));
            writer.metadata("split.count", Value::Unsigned(2));
            writer.metadata("split.tensors.count", Value::Unsigned(2));
            writer.metadata("general.name", Value::String(name.into()));
            writer.tensor(tensor, &[1], vec![1.0]);
            writer.write(&self.path(number)).unwrap();
        }
        fn refusal(&self) -> String {
            Parts::open(&self.path(1)).unwrap_err().to_string()
        }
    }

    #[test]
    fn a_model_in_several_files_needs_all_of_them_and_no_others() {
        let split = Split::new();
        let missing = split.refusal();
        assert!(missing.contains("part 2 of 2 is missing"), "{missing}");
        assert!(missing.contains("m-00002-of-00002.gguf"), "{missing}");
        split.write(2, 0, "t2", "one");
        assert!(split.refusal().contains("not part 2 of 2"), "{}", split.refusal());
        split.write(2, 1, "t2", "another");
        assert!(split.refusal().contains("general.name differs"), "{}", split.refusal());
        split.write(2, 1, "t1", "one");
        assert!(split.refusal().contains("t1 is in an earlier part"), "{}", split.refusal());
        split.write(2, 1, "t2", "one");
        let parts = Parts::open(&split.path(1)).unwrap();
        assert_eq!((parts.files().len(), parts.tensors().count()), (2, 2));
        assert!(parts.tensor("t2").is_some() && parts.header().tensor("t2").is_none());

        let second = Parts::open(&split.path(2)).unwrap_err().to_string();
        assert!(second.contains("part 2 of 2: name the first one"), "{second}");
        let renamed = split.0.path().join("m.gguf");
        std::fs::copy(split.path(1), &renamed).unwrap();
        let error = Parts::open(&renamed).unwrap_err().to_string();
        assert!(error.contains("end with -00001-of-00002.gguf"), "{error}");
    }

    #[test]
    fn the_hash_of_a_model_covers_all_of_its_files() {
        let split = Split::new();
        split.write(2, 1, "t2", "one");
        let hashes = [1, 2].map(|number| crate::disk::sha256(&split.path(number)).unwrap());
        let whole = model_sha256(&split.path(1)).unwrap();
        let list = format!("{}\n{}\n", hashes[0], hashes[1]);
        assert_eq!(whole, crate::disk::hex(&sha2::Sha256::digest(list)));
        let size = |number: u64| std::fs::metadata(split.path(number)).unwrap().len();
        assert_eq!(model_size(&split.path(1)).unwrap(), size(1) + size(2));
        split.write(2, 1, "t3", "one");
        assert_ne!(model_sha256(&split.path(1)).unwrap(), whole);

        let one = split.0.path().join("one.gguf");
        let mut writer = Writer::default();
        writer.tensor("t", &[1], vec![1.0]);
        writer.write(&one).unwrap();
        let named_so = split.0.path().join("n-00001-of-00002.gguf");
        std::fs::copy(&one, &named_so).unwrap();
        for path in [&one, &named_so] {
            assert_eq!(model_sha256(path).unwrap(), crate::disk::sha256(path).unwrap());
        }
        std::fs::remove_file(split.path(2)).unwrap();
        let error = model_sha256(&split.path(1)).unwrap_err().to_string();
        assert!(error.contains("m-00002-of-00002.gguf"), "{error}");
    }
}
