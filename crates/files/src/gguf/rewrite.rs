//! A GGUF like another one. Metadata is taken over byte for byte, but for what is set or left out, so
//! that every width and order stays; tensors are handed over one after the other, so that a model of
//! any size is written with little memory. It must not know what a tensor means. Used by `lora`.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};

use super::{Gguf, MAGIC, TensorKind, VERSION, Value, put_string, put_value, type_id};

/// A file to be written after the header of another one.
#[derive(Debug)]
pub struct Rewrite<'a> {
    source: &'a Gguf,
    set: Vec<(String, Value)>,
    left_out: Vec<String>,
    tensors: Vec<(String, Vec<u64>, TensorKind)>,
}

impl<'a> Rewrite<'a> {
    /// All metadata of `source` and none of its tensors.
    pub fn new(source: &'a Gguf) -> Self {
        Self { source, set: Vec::new(), left_out: Vec::new(), tensors: Vec::new() }
    }
    /// Replaces or adds a metadata entry.
    pub fn set(&mut self, key: &str, value: Value) {
        self.leave_out(key);
        self.set.push((key.to_owned(), value));
    }
    /// Does not take a metadata entry over.
    pub fn leave_out(&mut self, key: &str) {
        self.set.retain(|(set, _)| set != key);
        self.left_out.push(key.to_owned());
    }
    /// Adds a tensor; `shape` is in ggml's `ne` order.
    pub fn tensor(&mut self, name: &str, shape: &[u64], kind: TensorKind) {
        self.tensors.push((name.to_owned(), shape.to_owned(), kind));
    }
    /// Writes the header, then lets `data` write the bytes of each tensor by its number.
    pub fn write_to<E: From<io::Error>>(
        &self,
        out: &mut impl Write,
        mut data: impl FnMut(usize, &mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut header, sizes) = self.header()?;
        pad(&mut header, self.source.alignment);
        out.write_all(&header)?;
        for (number, &size) in sizes.iter().enumerate() {
            let mut counted = Counted { out: &mut *out, written: 0 };
            data(number, &mut counted)?;
            if counted.written != size {
                let name = &self.tensors[number].0;
                let written = counted.written;
                let what = format!("tensor {name} got {written} bytes where {size} are announced");
                return Err(io::Error::other(what).into());
            }
            out.write_all(&vec![0; padding_of(size, self.source.alignment)])?;
        }
        Ok(())
    }

    /// Everything before the tensors' data, and how many bytes each of them has.
    fn header(&self) -> io::Result<(Vec<u8>, Vec<u64>)> {
        let taken = self.source.spans.iter().filter(|(key, _)| !self.left_out.contains(key));
        let taken: Vec<_> = taken.map(|(_, span)| span).collect();
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((taken.len() as u64 + self.set.len() as u64).to_le_bytes());
        let mut file = File::open(&self.source.path)?;
        for span in taken {
            let n_bytes = span.end - span.start;
            file.seek(SeekFrom::Start(span.start))?;
            if (&mut file).take(n_bytes).read_to_end(&mut header)? as u64 != n_bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        for (key, value) in &self.set {
            put_string(&mut header, key);
            header.extend(type_id(value).to_le_bytes());
            put_value(&mut header, value)?;
        }
        let mut offset = 0;
        let mut sizes = Vec::new();
        for (name, shape, kind) in &self.tensors {
            let size = kind.n_bytes(shape.iter().product()).ok_or_else(|| {
                io::Error::other(format!("tensor {name} does not fill its last block"))
            })?;
            put_string(&mut header, name);
            header.extend(u32::try_from(shape.len()).map_err(io::Error::other)?.to_le_bytes());
            for n in shape {
                header.extend(n.to_le_bytes());
            }
            header.extend(kind.id().to_le_bytes());
            header.extend(u64::to_le_bytes(offset));
            sizes.push(size);
            offset += size.next_multiple_of(self.source.alignment);
        }
        Ok((header, sizes))
    }
}

fn pad(bytes: &mut Vec<u8>, alignment: u64) {
    bytes.resize(bytes.len() + padding_of(bytes.len() as u64, alignment), 0);
}

fn padding_of(size: u64, alignment: u64) -> usize {
    usize::try_from(size.next_multiple_of(alignment) - size).expect("alignments are small")
}

/// Counts what goes through it.
struct Counted<'a, W> {
    out: &'a mut W,
    written: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{StoredType, Writer};

    #[test]
    fn metadata_stays_as_it_was_but_for_what_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
        let mut writer = Writer::default();
        writer.metadata("general.name", Value::String("old".into()));
        writer.metadata("general.alignment", Value::Unsigned(64));
        writer.metadata("numbers", Value::Array(vec![Value::Signed(-1), Value::Signed(7)]));
        writer.metadata("split.no", Value::Unsigned(0));
        writer.write(&from).unwrap();
        let source = Gguf::open(&from).unwrap();

        let mut rewrite = Rewrite::new(&source);
        rewrite.set("general.name", Value::String("new".into()));
        rewrite.leave_out("split.no");
        rewrite.tensor("one", &[3], TensorKind::F32);
        rewrite.tensor("two", &[2, 2], TensorKind::F16);
        let mut out = Vec::new();
        let write = |number, out: &mut dyn Write| {
            out.write_all(&[u8::from(number == 1); 12][..12 - 4 * number])
        };
        rewrite.write_to::<io::Error>(&mut out, write).unwrap();
        crate::disk::write_atomic(&to, |file| file.write_all(&out)).unwrap();

        let file = Gguf::open(&to).unwrap();
        assert_eq!(file.string("general.name"), Some("new"));
        assert_eq!(file.metadata("split.no"), None);
        assert_eq!(file.metadata("numbers"), source.metadata("numbers"));
        let stored = file.stored_type("numbers").unwrap();
        assert_eq!(stored.entries, Some(StoredType::I32));
        assert_eq!(file.tensor("two").unwrap().offset, 64, "the alignment is the source's");
        assert_eq!(file.read_bytes(file.tensor("two").unwrap(), 8).unwrap(), [1; 8]);
        assert_eq!(file.read_f32(file.tensor("one").unwrap()).unwrap(), [0.0; 3]);
    }

    #[test]
    fn a_tensor_of_another_size_than_announced_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        Writer::default().write(&path).unwrap();
        let source = Gguf::open(&path).unwrap();
        let mut rewrite = Rewrite::new(&source);
        rewrite.tensor("one", &[3], TensorKind::F32);
        let error = rewrite
            .write_to::<io::Error>(&mut Vec::new(), |_, out| out.write_all(&[0; 11]))
            .unwrap_err();
        assert!(error.to_string().contains("11 bytes where 12"), "{error}");
    }
}
