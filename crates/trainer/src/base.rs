//! The served GGUF, in one file or split, and its tensors as they are stored. A tensor's bytes are read
//! whenever it is used: the server has mapped the same file, so that the page cache holds them once
//! for both. ggml decodes them, so the values are the server's. Used by `weights`, `plan` and `survey`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use files::gguf::{Gguf, Parts, TensorInfo, TensorKind};
use ggml::dequantize;
use tch::{Device, Tensor};

/// Fewest values that a thread decodes: for fewer, starting it takes longer than it saves.
const MIN_VALUES_PER_THREAD: usize = 1 << 18;
/// Rows that are checked for values that are not finite at once.
const ROWS_CHECKED: usize = 8192;

/// The headers of all parts.
#[derive(Debug)]
pub(crate) struct BaseFile {
    parts: Vec<(Gguf, Arc<File>)>,
}

impl BaseFile {
    /// Opens a GGUF; of a split one, its first part is named.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let open = |part: Gguf| -> anyhow::Result<(Gguf, Arc<File>)> {
            let file = File::open(part.path());
            let file = file.with_context(|| format!("open {}", part.path().display()))?;
            Ok((part, Arc::new(file)))
        };
        Ok(Self { parts: Parts::open(path)?.into_iter().map(open).collect::<Result<_, _>>()? })
    }

    /// The first part, which has the metadata.
    pub(crate) fn header(&self) -> &Gguf {
        &self.parts[0].0
    }

    /// All tensors of all parts.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.parts.iter().flat_map(|(part, _)| part.tensors())
    }

    /// Shape and type of a tensor.
    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.parts.iter().find_map(|(part, _)| part.tensor(name))
    }

    /// A matrix or a vector; `None`: there is no such tensor.
    pub(crate) fn find(&self, name: &str) -> anyhow::Result<Option<StoredTensor>> {
        let found =
            self.parts.iter().find_map(|(part, file)| Some((part, file, part.tensor(name)?)));
        let Some((part, file, info)) = found else { return Ok(None) };
        let n_bytes = info.kind.n_bytes(info.n_values()).with_context(|| {
            format!("tensor {name} has ggml type {}, which holds no weights", info.kind.id())
        })?;
        let (n_columns, n_rows) = match info.shape[..] {
            [n] => (n, 1),
            [n_in, n_out] => (n_in, n_out),
            _ => bail!("tensor {name} has shape {:?}, a matrix is wanted", info.shape),
        };
        let row_bytes = info
            .kind
            .n_bytes(n_columns)
            .with_context(|| format!("the rows of tensor {name} do not fill whole blocks"))?;
        Ok(Some(StoredTensor {
            name: name.to_owned(),
            shape: info.shape.iter().rev().map(|&n| n.cast_signed()).collect(),
            kind: info.kind,
            n_columns: usize::try_from(n_columns)?,
            n_rows: usize::try_from(n_rows)?,
            row_bytes: usize::try_from(row_bytes)?,
            start: part.position(info, n_bytes)?,
            file: Arc::clone(file),
        }))
    }
}

/// One tensor in the file.
#[derive(Debug)]
pub(crate) struct StoredTensor {
    name: String,
    /// In torch's order, `[out, in]` or `[n]`.
    pub shape: Vec<i64>,
    pub kind: TensorKind,
    n_columns: usize,
    n_rows: usize,
    row_bytes: usize,
    start: u64,
    file: Arc<File>,
}

impl StoredTensor {
    /// All values.
    pub(crate) fn read(&self, device: Device) -> anyhow::Result<Tensor> {
        Ok(self.read_rows(0, self.n_rows, device)?.view(&self.shape[..]))
    }

    /// Some rows, `[n, in]`.
    pub(crate) fn read_rows(
        &self,
        from: usize,
        n: usize,
        device: Device,
    ) -> anyhow::Result<Tensor> {
        let mut values: Vec<f32> = zeroed(n * self.n_columns)?;
        let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
        let rows_per_thread =
            n.div_ceil(threads).max(MIN_VALUES_PER_THREAD.div_ceil(self.n_columns));
        if n <= rows_per_thread {
            self.decode(from, &mut values)?;
            return self.tensor(&values, n, device);
        }
        std::thread::scope(|scope| {
            let parts = values.chunks_mut(rows_per_thread * self.n_columns);
            let started: Vec<_> = parts
                .zip((from..).step_by(rows_per_thread))
                .map(|(part, row)| scope.spawn(move || self.decode(row, part)))
                .collect();
            started.into_iter().try_for_each(|thread| {
                thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("decoding panicked")))
            })
        })?;
        self.tensor(&values, n, device)
    }

    fn tensor(&self, values: &[f32], n_rows: usize, device: Device) -> anyhow::Result<Tensor> {
        let size = [i64::try_from(n_rows)?, i64::try_from(self.n_columns)?];
        Ok(Tensor::from_slice(values).view(size).to_device(device))
    }

    /// Reads all values, and refuses those that are not finite.
    pub(crate) fn check_finite(&self) -> anyhow::Result<()> {
        for from in (0..self.n_rows).step_by(ROWS_CHECKED) {
            let n = ROWS_CHECKED.min(self.n_rows - from);
            let rows = self.read_rows(from, n, Device::Cpu)?;
            ensure!(
                bool::try_from(rows.isfinite().all())?,
                "tensor {} has a value that is not finite",
                self.name
            );
        }
        Ok(())
    }

    fn decode(&self, row: usize, out: &mut [f32]) -> anyhow::Result<()> {
        let mut bytes: Vec<u8> = zeroed(out.len() / self.n_columns * self.row_bytes)?;
        self.file
            .read_exact_at(&mut bytes, self.start + (row * self.row_bytes) as u64)
            .with_context(|| format!("read tensor {}", self.name))?;
        dequantize(self.kind.id(), &bytes, out)
            .map_err(|reason| anyhow::anyhow!("tensor {}: {reason}", self.name))
    }
}

/// A vector of zeros. Too little memory is an error here, not an abort, because a run can react to it.
fn zeroed<T: Clone + Default>(n: usize) -> anyhow::Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(n).context("out of memory")?;
    values.resize(n, T::default());
    Ok(values)
}
