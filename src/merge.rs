//! Base and adapter as one model file: W + alpha / rank B A, written in the tensor's own ggml type or
//! in one that is asked for. Some rows at a time, so memory stays small whatever the model; ggml itself
//! decodes and encodes. It also says what the rounding costs, because a small change can vanish in it.
//! Used by `reflectd export`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

use files::gguf::{Gguf, Rewrite, TensorInfo, TensorKind, Value};
use files::lora::{Adapter, LoraError, Pair};
use ggml::{NotEncoded, can_encode, dequantize, encode, type_name};

/// Values that are decoded at once, over all threads.
const CHUNK: usize = 1 << 22;
/// Bytes that are copied at once.
const COPIED: u64 = 1 << 24;
/// What is written where a type cannot be: the smallest without an importance matrix, then what
/// fits rows of any width.
const INSTEAD: [TensorKind; 3] = [Q2_K, TensorKind::Q8_0, TensorKind::F16];
const Q2_K: TensorKind = TensorKind::Other(10);

/// What is merged.
#[derive(Clone, Copy, Debug)]
pub struct Merge<'a> {
    /// The base's file, or all parts of it.
    pub base: &'a [Gguf],
    /// The adapter.
    pub adapter: &'a Adapter,
    /// The type of the merged tensors; `None`: each keeps its own.
    pub kind: Option<TensorKind>,
    /// Threads that compute.
    pub threads: usize,
}

/// How the merged tensors of one type were written.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Their type in the base.
    pub from: String,
    /// Their type now.
    pub to: String,
    /// Why it is not the one that was wanted.
    pub instead: Option<String>,
    /// How many.
    pub tensors: usize,
    /// By how much rounding moves the weights, in units of what the adapter changes (root mean
    /// squares). Above 1 the change is smaller than the noise.
    pub rounding: f64,
}

/// Sums of squares.
#[derive(Clone, Copy, Debug, Default)]
struct Squares {
    change: f64,
    rounding: f64,
}

/// One tensor of the new file.
struct Target<'a> {
    part: usize,
    info: &'a TensorInfo,
    /// Bytes in the base.
    size: u64,
    merged: Option<Merged<'a>>,
}

struct Merged<'a> {
    pair: &'a Pair,
    scale: f64,
    width: usize,
    kind: TensorKind,
    instead: Option<String>,
}

impl Merge<'_> {
    /// Writes the whole file. `about` is set in its metadata; `progress` hears how many bytes of the
    /// base are done, and its error ends the work.
    pub fn write_to(
        &self,
        out: &mut impl Write,
        about: &[(&str, Value)],
        progress: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> Result<Vec<Written>, LoraError> {
        let targets = self.targets()?;
        let mut rewrite = Rewrite::new(&self.base[0]);
        for key in ["split.no", "split.count", "split.tensors.count"] {
            rewrite.leave_out(key);
        }
        let is_other = |target: &Target<'_>| {
            target.merged.as_ref().is_some_and(|merged| merged.kind != target.info.kind)
        };
        if targets.iter().any(is_other) {
            // It names the mixture of types; llama.cpp finds it out where it is missing.
            rewrite.leave_out("general.file_type");
        }
        for (key, value) in about {
            rewrite.set(key, value.clone());
        }
        for Target { info, merged, .. } in &targets {
            let kind = merged.as_ref().map_or(info.kind, |merged| merged.kind);
            rewrite.tensor(&info.name, &info.shape, kind);
        }
        let open = |part: &Gguf| {
            let path = part.path();
            File::open(path).map_err(|source| LoraError::Read { path: path.to_owned(), source })
        };
        let files = self.base.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let mut squares = Vec::new();
        let mut done = 0;
        rewrite.write_to::<LoraError>(out, |number, out| {
            let target = &targets[number];
            let at = self.base[target.part].position(target.info, target.size)?;
            let stored = Stored { file: &files[target.part], at, kind: target.info.kind };
            let mut show = |bytes| progress(done + bytes);
            let Some(merged) = &target.merged else {
                stored.copy(target.size, out, &mut show)?;
                squares.push(Squares::default());
                done += target.size;
                return Ok(());
            };
            let written = merged.write(&stored, self.threads, out, &mut show);
            squares.push(written.map_err(|fault| match fault {
                Fault::Io(error) => LoraError::Write(error),
                Fault::Tensor(reason) => self.refused(target, &reason),
            })?);
            done += target.size;
            Ok(())
        })?;
        Ok(summary(&targets, &squares))
    }

    /// Bytes of all tensors of the base.
    pub fn n_bytes(&self) -> Result<u64, LoraError> {
        Ok(self.targets()?.iter().map(|target| target.size).sum())
    }

    fn refused(&self, target: &Target<'_>, reason: &str) -> LoraError {
        let path = self.base[target.part].path();
        LoraError::refused(path, format!("tensor {}: {reason}", target.info.name))
    }

    /// All tensors of the base in file order, each with what the adapter adds to it.
    fn targets(&self) -> Result<Vec<Target<'_>>, LoraError> {
        let mut targets = Vec::new();
        for (number, part) in self.base.iter().enumerate() {
            for info in part.tensors() {
                let refused = |reason: String| {
                    LoraError::refused(part.path(), format!("tensor {}: {reason}", info.name))
                };
                let size = info.kind.n_bytes(info.n_values()).ok_or_else(|| {
                    refused(format!("its ggml type {} is not known", info.kind.id()))
                })?;
                let pair = self.adapter.pairs.get(&info.name);
                let merged =
                    pair.map(|pair| self.merged(info, pair)).transpose().map_err(refused)?;
                targets.push(Target { part: number, info, size, merged });
            }
        }
        let has = |name: &str| targets.iter().any(|target| target.info.name == name);
        let base = self.base[0].path();
        for name in self.adapter.pairs.keys() {
            if !has(name) {
                let reason = format!("it has no tensor {name}, which the adapter changes");
                return Err(LoraError::refused(base, reason));
            }
            let scale = name.replace(".weight", ".scale");
            if has(&scale) {
                let reason = format!("{name} has a scale of its own, which merging does not know");
                return Err(LoraError::refused(base, reason));
            }
        }
        Ok(targets)
    }

    fn merged<'a>(&self, info: &TensorInfo, pair: &'a Pair) -> Result<Merged<'a>, String> {
        let fits = info.shape == [pair.a.width as u64, pair.b.n_rows() as u64];
        if !fits {
            return Err(format!(
                "it has shape {:?}, and the adapter changes one of {:?}",
                info.shape,
                [pair.a.width, pair.b.n_rows()]
            ));
        }
        let width = pair.a.width;
        let (kind, instead) = choose(info.kind, self.kind, width)?;
        Ok(Merged { pair, scale: self.adapter.scale(pair), width, kind, instead })
    }
}

/// The type that a merged tensor is written in, and why it is not the one that was wanted.
fn choose(
    own: TensorKind,
    asked: Option<TensorKind>,
    width: usize,
) -> Result<(TensorKind, Option<String>), String> {
    let wanted = asked.unwrap_or(own);
    let name = type_name(wanted.id());
    let why = match can_encode(wanted.id(), width) {
        Ok(()) => return Ok((wanted, None)),
        Err(NotEncoded::NeedsImportance) if asked.is_some() => {
            return Err(format!("{name} cannot be written without an importance matrix"));
        }
        Err(NotEncoded::NeedsImportance) => {
            format!("{name} cannot be written without an importance matrix")
        }
        Err(NotEncoded::Blocks) => format!("rows of {width} values are no whole blocks of {name}"),
        Err(NotEncoded::Unknown) => format!("ggml cannot write {name}"),
    };
    let smaller = matches!(can_encode(wanted.id(), width), Err(NotEncoded::NeedsImportance));
    let mut instead = INSTEAD.into_iter().filter(|kind| smaller || *kind != Q2_K);
    let kind = instead.find(|kind| can_encode(kind.id(), width).is_ok());
    Ok((kind.expect("F16 takes rows of any width"), Some(why)))
}

/// Why a tensor was not written.
enum Fault {
    Io(io::Error),
    Tensor(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Merged<'_> {
    fn write(
        &self,
        stored: &Stored<'_>,
        threads: usize,
        out: &mut dyn Write,
        show: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> Result<Squares, Fault> {
        let n_rows = self.pair.b.n_rows();
        let bytes_of = |kind: TensorKind| {
            let bytes = kind.n_bytes(self.width as u64).and_then(|n| usize::try_from(n).ok());
            bytes.ok_or_else(|| Fault::Tensor("its rows are not whole blocks".to_owned()))
        };
        let from = stored.kind;
        let (row_in, row_out) = (bytes_of(from)?, bytes_of(self.kind)?);
        let threads = threads.max(1);
        let rows_a_thread = (CHUNK / threads / self.width).max(1);
        let mut squares = Squares::default();
        let mut start = 0;
        while start < n_rows {
            let rows = (n_rows - start).min(rows_a_thread * threads);
            let mut before = vec![0; rows * row_in];
            stored.file.read_exact_at(&mut before, stored.at + (start * row_in) as u64)?;
            let mut after = vec![0; rows * row_out];
            let parts: Vec<Result<Squares, String>> = std::thread::scope(|scope| {
                let pieces = before.chunks(rows_a_thread * row_in);
                let pieces = pieces.zip(after.chunks_mut(rows_a_thread * row_out));
                let workers: Vec<_> = (start..)
                    .step_by(rows_a_thread)
                    .zip(pieces)
                    .map(|(first, (before, after))| {
                        scope.spawn(move || self.rows(first, from, before, after))
                    })
                    .collect();
                let join = |worker: std::thread::ScopedJoinHandle<'_, _>| {
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                workers.into_iter().map(join).collect()
            });
            for part in parts {
                let part = part.map_err(Fault::Tensor)?;
                squares.change += part.change;
                squares.rounding += part.rounding;
            }
            out.write_all(&after)?;
            start += rows;
            show((start * row_in) as u64)?;
        }
        Ok(squares)
    }

    /// Rows from `first` on: decoded, changed, encoded, and decoded again to see what is left.
    fn rows(
        &self,
        first: usize,
        from: TensorKind,
        stored: &[u8],
        written: &mut [u8],
    ) -> Result<Squares, String> {
        let row_bytes = from.n_bytes(self.width as u64).and_then(|n| usize::try_from(n).ok());
        let n_rows = stored.len() / row_bytes.expect("the caller has divided by it");
        let mut values = vec![0.0; n_rows * self.width];
        dequantize(from.id(), stored, &mut values)?;
        let mut squares = Squares::default();
        let mut change = vec![0.0_f32; self.width];
        for (row, values) in values.chunks_mut(self.width).enumerate() {
            change.fill(0.0);
            for (rank, factor) in self.pair.b.row(first + row).iter().enumerate() {
                #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
                let factor = (f64::from(*factor) * self.scale) as f32;
                let a = self.pair.a.row(rank).iter();
                change.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * a);
            }
            for (value, change) in values.iter_mut().zip(&change) {
                *value += change;
                squares.change += f64::from(*change).powi(2);
            }
        }
        encode(self.kind.id(), &values, self.width, written)?;
        let mut rounded = vec![0.0; values.len()];
        dequantize(self.kind.id(), written, &mut rounded)?;
        let differences = values.iter().zip(&rounded).map(|(a, b)| f64::from(a - b).powi(2));
        squares.rounding = differences.sum();
        Ok(squares)
    }
}

/// Where a tensor's bytes lie.
struct Stored<'a> {
    file: &'a File,
    at: u64,
    kind: TensorKind,
}

impl Stored<'_> {
    fn copy(
        &self,
        size: u64,
        out: &mut dyn Write,
        show: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < size {
            let n = (size - done).min(COPIED);
            let mut bytes = vec![0; usize::try_from(n).expect("16 MiB")];
            self.file.read_exact_at(&mut bytes, self.at + done)?;
            out.write_all(&bytes)?;
            done += n;
            show(done)?;
        }
        Ok(())
    }
}

/// By type before, type now and why.
fn summary(targets: &[Target<'_>], squares: &[Squares]) -> Vec<Written> {
    let mut groups: BTreeMap<_, (usize, Squares)> = BTreeMap::new();
    for (target, squares) in targets.iter().zip(squares) {
        let Some(merged) = &target.merged else { continue };
        let key = (target.info.kind.id(), merged.kind.id(), merged.instead.clone());
        let (tensors, sum) = groups.entry(key).or_default();
        *tensors += 1;
        sum.change += squares.change;
        sum.rounding += squares.rounding;
    }
    let written = groups.into_iter().map(|((from, to, instead), (tensors, sum))| Written {
        from: type_name(from),
        to: type_name(to),
        instead,
        tensors,
        rounding: if 0.0 < sum.rounding { (sum.rounding / sum.change).sqrt() } else { 0.0 },
    });
    written.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use files::lora::Matrix;

    /// Numbers that need all of their bits.
    fn noise(rng: &mut fastrand::Rng, n_rows: usize, width: usize) -> Matrix {
        Matrix { width, values: (0..n_rows * width).map(|_| rng.f32() - 0.5).collect() }
    }
    use files::gguf::Writer;
    use std::path::Path;

    const WIDTH: usize = 256;
    const ROWS: usize = 40;

    /// One matrix in this type, one that no adapter touches, and a split that has been.
    fn base(folder: &Path, kind: TensorKind) -> Gguf {
        let (plain, path) = (folder.join("plain.gguf"), folder.join("base.gguf"));
        let mut writer = Writer::default();
        let text = |text: &str| Value::String(text.into());
        writer.metadata("general.architecture", text("qwen2"));
        writer.metadata("general.name", text("base"));
        writer.metadata("general.file_type", Value::Unsigned(7));
        writer.metadata("split.count", Value::Unsigned(1));
        writer.write(&plain).unwrap();
        let mut rng = fastrand::Rng::with_seed(2);
        let values = noise(&mut rng, ROWS, WIDTH).values;
        let source = Gguf::open(&plain).unwrap();
        let mut rewrite = Rewrite::new(&source);
        rewrite.tensor("blk.0.attn_q.weight", &[WIDTH as u64, ROWS as u64], kind);
        rewrite.tensor("output_norm.weight", &[3], TensorKind::F32);
        files::write_atomic(&path, |out| {
            rewrite.write_to::<io::Error>(out, |number, out| {
                if number == 1 {
                    return out.write_all(&[1; 12]);
                }
                let mut bytes =
                    vec![0; usize::try_from(kind.n_bytes(values.len() as u64).unwrap()).unwrap()];
                encode(kind.id(), &values, WIDTH, &mut bytes).unwrap();
                out.write_all(&bytes)
            })
        })
        .unwrap();
        Gguf::open(&path).unwrap()
    }

    fn adapter() -> Adapter {
        let mut rng = fastrand::Rng::with_seed(3);
        let pair = Pair { a: noise(&mut rng, 3, WIDTH), b: noise(&mut rng, ROWS, 3) };
        Adapter {
            architecture: "qwen2".into(),
            alpha: 1.5,
            base_sha256: None,
            pairs: [("blk.0.attn_q.weight".to_owned(), pair)].into(),
        }
    }

    fn values(file: &Gguf) -> Vec<f32> {
        let info = file.tensor("blk.0.attn_q.weight").unwrap();
        let bytes = file.read_bytes(info, info.kind.n_bytes(info.n_values()).unwrap()).unwrap();
        let mut values = vec![0.0; ROWS * WIDTH];
        dequantize(info.kind.id(), &bytes, &mut values).unwrap();
        values
    }

    fn merge(base: &Gguf, kind: Option<TensorKind>, threads: usize) -> (Gguf, Vec<Written>) {
        let path = base.path().with_file_name("merged.gguf");
        let adapter = adapter();
        let merge = Merge { base: std::slice::from_ref(base), adapter: &adapter, kind, threads };
        let mut out = Vec::new();
        let about = [("general.name", Value::String("merged".into()))];
        let mut seen = 0;
        let mut progress = |done| {
            assert!(seen <= done && done <= merge.n_bytes().unwrap());
            seen = done;
            Ok(())
        };
        let written = merge.write_to(&mut out, &about, &mut progress).unwrap();
        assert_eq!(seen, merge.n_bytes().unwrap());
        files::write_atomic(&path, |file| file.write_all(&out)).unwrap();
        (Gguf::open(&path).unwrap(), written)
    }

    /// W + alpha / rank B A, written as nobody would for speed.
    fn expected(base: &Gguf) -> Vec<f64> {
        let adapter = adapter();
        let pair = &adapter.pairs["blk.0.attn_q.weight"];
        let product = |i: usize| -> f64 {
            let (row, column) = (i / WIDTH, i % WIDTH);
            let terms =
                (0..3).map(|r| f64::from(pair.b.row(row)[r]) * f64::from(pair.a.row(r)[column]));
            0.5 * terms.sum::<f64>()
        };
        values(base).iter().enumerate().map(|(i, w)| f64::from(*w) + product(i)).collect()
    }

    #[test]
    fn the_product_is_added_and_all_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let base = base(folder.path(), TensorKind::F32);
        for threads in [1, 3, 64] {
            let (merged, written) = merge(&base, None, threads);
            let (found, wanted) = (values(&merged), expected(&base));
            assert_eq!((found.len(), wanted.len()), (WIDTH * ROWS, WIDTH * ROWS));
            for (found, wanted) in found.iter().zip(wanted) {
                assert!((f64::from(*found) - wanted).abs() < 1e-6, "{found} {wanted}");
            }
            assert_eq!((written.len(), written[0].tensors), (1, 1));
            assert!(written[0].rounding == 0.0 && written[0].instead.is_none());
            assert_eq!(merged.string("general.name"), Some("merged"));
            assert_eq!(merged.unsigned("general.file_type"), Some(7), "no type has changed");
            assert_eq!(merged.metadata("split.count"), None);
            let norm = |file: &Gguf| file.read_bytes(&file.tensors()[1].clone(), 12).unwrap();
            assert_eq!(norm(&merged), norm(&base));
        }
    }

    #[test]
    fn every_type_keeps_its_own_or_says_what_is_written_instead() {
        let folder = tempfile::tempdir().unwrap();
        let named = |name: &str| TensorKind::from_id(ggml::type_named(name).unwrap());
        for name in [
            "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K",
            "q6_K", "iq4_nl", "iq4_xs", "iq3_xxs", "iq3_s", "iq2_s", "iq1_m", "tq1_0", "tq2_0",
            "mxfp4",
        ] {
            let base = base(folder.path(), named(name));
            let (merged, written) = merge(&base, None, 2);
            assert_eq!(merged.tensors()[0].kind, named(name));
            assert!(written[0].instead.is_none(), "{written:?}");
            // Rounding, measured against the formula.
            let wanted = expected(&base);
            let before = values(&base);
            let sum = |pairs: &mut dyn Iterator<Item = (f64, f64)>| {
                pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>()
            };
            let after = values(&merged);
            let rounding =
                sum(&mut after.iter().map(|v| f64::from(*v)).zip(wanted.iter().copied()));
            let change = sum(&mut before.iter().map(|v| f64::from(*v)).zip(wanted.iter().copied()));
            let measured = (rounding / change).sqrt();
            assert!(
                (measured / written[0].rounding - 1.0).abs() < 1e-3,
                "{name}: {measured} {written:?}"
            );
        }
        for needs_importance in [16, 17, 19] {
            let kind = TensorKind::from_id(needs_importance);
            let (to, why) = choose(kind, None, WIDTH).unwrap();
            assert_eq!(type_name(to.id()), "q2_K");
            assert!(why.unwrap().contains("importance matrix"));
            choose(TensorKind::F32, Some(kind), WIDTH).unwrap_err();
        }
    }

    #[test]
    fn a_type_that_is_asked_for_is_written_where_rows_fit_it() {
        let folder = tempfile::tempdir().unwrap();
        let base = base(folder.path(), TensorKind::F32);
        let (merged, written) = merge(&base, Some(TensorKind::Q8_0), 1);
        assert_eq!(merged.tensors()[0].kind, TensorKind::Q8_0);
        assert_eq!(merged.tensors()[1].kind, TensorKind::F32, "what is not merged stays");
        assert_eq!(merged.metadata("general.file_type"), None);
        assert!(0.0 < written[0].rounding && written[0].rounding < 0.1, "{written:?}");
        assert_eq!(choose(TensorKind::F32, Some(Q2_K), 96).unwrap().0, TensorKind::Q8_0);
        assert_eq!(choose(TensorKind::F32, Some(Q2_K), 7).unwrap().0, TensorKind::F16);
    }

    #[test]
    fn what_does_not_fit_the_base_is_refused_and_a_stop_is_heeded() {
        let folder = tempfile::tempdir().unwrap();
        let base = base(folder.path(), TensorKind::F32);
        let refusal = |change: &dyn Fn(&mut Adapter)| {
            let mut adapter = adapter();
            change(&mut adapter);
            let merge = Merge {
                base: std::slice::from_ref(&base),
                adapter: &adapter,
                kind: None,
                threads: 1,
            };
            merge.write_to(&mut Vec::new(), &[], &mut |_| Ok(())).unwrap_err().to_string()
        };
        let other = refusal(&|adapter| {
            let (_, pair) = adapter.pairs.pop_first().unwrap();
            adapter.pairs.insert("blk.9.attn_q.weight".into(), pair);
        });
        assert!(other.contains("no tensor blk.9.attn_q.weight"), "{other}");
        let shape = refusal(&|adapter| {
            adapter.pairs.values_mut().next().unwrap().b.values.truncate(30);
        });
        assert!(shape.contains("shape [256, 40]") && shape.contains("[256, 10]"), "{shape}");
        let adapter = adapter();
        let merge =
            Merge { base: std::slice::from_ref(&base), adapter: &adapter, kind: None, threads: 1 };
        let stop = &mut |_| Err(io::ErrorKind::Interrupted.into());
        let error = merge.write_to(&mut Vec::new(), &[], stop).unwrap_err();
        assert!(matches!(error, LoraError::Write(_)), "{error}");
    }
}
