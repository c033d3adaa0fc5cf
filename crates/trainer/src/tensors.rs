//! Named tensors in one safetensors file, with JSON metadata of the caller's. tch reads the format but
//! does not write it atomically, which is why the writing is here. What the tensors mean is the
//! caller's business.
//! Used by `checkpoint` and `reference`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

/// Key of the caller's metadata in the header.
const ABOUT: &str = "about";
/// Longest header: a longer one was not written here.
const MAX_HEADER: u64 = 64 << 20;

/// Writes the file atomically. One tensor at a time is in memory twice.
pub(crate) fn save(
    path: &Path,
    metadata: &impl Serialize,
    tensors: &[(String, Tensor)],
) -> anyhow::Result<()> {
    let mut header = Map::new();
    let metadata = serde_json::to_string(metadata)?;
    header.insert("__metadata__".to_owned(), json!({ ABOUT: metadata }));
    let mut end = 0;
    for (name, tensor) in tensors {
        let dtype = match tensor.kind() {
            Kind::Uint8 => "U8",
            Kind::Int64 => "I64",
            Kind::Float => "F32",
            Kind::Double => "F64",
            kind => bail!("{name} has numbers of kind {kind:?}"),
        };
        let begin = end;
        end += n_bytes(tensor);
        let entry = json!({ "dtype": dtype, "shape": tensor.size(), "data_offsets": [begin, end] });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&Value::Object(header))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    files::write_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, tensor) in tensors {
            let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
            let mut bytes = vec![0; n_bytes(&tensor)];
            tensor.f_copy_data_u8(&mut bytes, tensor.numel()).map_err(std::io::Error::other)?;
            out.write_all(&bytes)?;
        }
        Ok(())
    })
    .with_context(|| format!("write {}", path.display()))
}

fn n_bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Reads the metadata of a file, and no tensor.
pub(crate) fn metadata<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let read = || {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        ensure!(length <= MAX_HEADER.min(file.metadata()?.len()), "its header is too long");
        let mut header = vec![0; usize::try_from(length)?];
        file.read_exact(&mut header)?;
        let header: Value = serde_json::from_slice(&header)?;
        let metadata = header["__metadata__"][ABOUT].as_str().context("it has no metadata")?;
        Ok(serde_json::from_str(metadata)?)
    };
    read().with_context(|| format!("read {}", path.display()))
}

/// The tensors of a file, in no order.
pub(crate) fn load(path: &Path) -> anyhow::Result<Vec<(String, Tensor)>> {
    Tensor::read_safetensors(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_a_damaged_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.safetensors");
        let tensors = vec![
            ("b".to_owned(), Tensor::from_slice(&[1.5f32, -2.0]).view([2, 1])),
            ("a".to_owned(), Tensor::from_slice(&[1i64 << 40])),
            ("empty".to_owned(), Tensor::from_slice::<f64>(&[])),
        ];
        save(&path, &json!({ "step": 3 }), &tensors).unwrap();
        assert_eq!(metadata::<Value>(&path).unwrap(), json!({ "step": 3 }));
        let mut loaded = load(&path).unwrap();
        loaded.sort_by(|a, b| a.0.cmp(&b.0));
        let names: Vec<&str> = loaded.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "empty"]);
        assert_eq!(Vec::<i64>::try_from(&loaded[0].1).unwrap(), [1 << 40]);
        assert_eq!(loaded[1].1.size(), [2, 1]);

        let whole = std::fs::read(&path).unwrap();
        for bytes in [&whole[..whole.len() - 1], &whole[..20], b"", &[255; 64]] {
            files::write_atomic(&path, |out| out.write_all(bytes)).unwrap();
            load(&path).unwrap_err();
        }
        metadata::<Value>(&path).unwrap_err();
    }
}
