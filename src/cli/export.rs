//! `reflectd export`: a generation to take along, as a folder with its card. It asks the daemon where
//! adapter and base lie and then reads them as the user who calls it; formats are `lora`'s.
//! Called by `cli::run`.

mod card;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use serde_json::json;

use super::client::Client;
use super::progress;
use super::reply::{Adapters, Model, Run, Status};
use super::table::time;
use super::terminal;
use crate::merge::{Merge, Written};
use card::{Card, Content, remark};
use engine::Generation;
use files::Existing;
use files::gguf::{self, Gguf, Parts, TensorKind, Value};
use files::lora::{Adapter, LoraError, peft};
use ggml::type_named;
use protocol::exit::Exit;

const ADAPTER: &str = "adapter.gguf";
const CARD: &str = "README.md";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What to write.
    format: Format,
    /// Which generation [default: the one that answers now].
    #[arg(long)]
    generation: Option<u32>,
    /// The new folder [default: MODEL-generation-N-FORMAT].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace an earlier export in that folder.
    #[arg(long)]
    force: bool,
    /// What the base is called in transformers: a folder, or a name on a hub.
    #[arg(long, value_name = "NAME")]
    base_model: Option<String>,
    /// merged: ggml type of the merged tensors, such as `q8_0`, `q4_K` or `f16` [default: each keeps its own].
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
    kind: Option<TensorKind>,
    /// merged: threads, which run at the lowest priority [default: all processors].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// The adapter as it is, for llama.cpp.
    Gguf,
    /// The adapter for PEFT and transformers.
    Peft,
    /// One model file with the adapter in it.
    Merged,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Self::Gguf => "gguf",
            Self::Peft => "peft",
            Self::Merged => "merged",
        }
    }
}

fn parse_type(name: &str) -> Result<TensorKind, String> {
    let id = type_named(name)
        .ok_or("no ggml type of this name can be written: try q8_0, q6_K, q4_K or f16")?;
    Ok(TensorKind::from_id(id))
}

pub(super) async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<Exit> {
    let origin = Origin::ask(client, arguments.generation).await?;
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => PathBuf::from(format!("{}-{}", origin.stem(), arguments.format.word())),
    };
    let out = std::path::absolute(&out).with_context(|| format!("use {}", out.display()))?;
    check_place(&out, arguments.force)?;
    let stop = Arc::new(AtomicBool::new(false));
    let export = Export { origin, arguments, out, stop: Arc::clone(&stop) };
    let mut work = tokio::task::spawn_blocking(move || export.write());
    let (export, exported) = tokio::select! {
        done = &mut work => done,
        _ = tokio::signal::ctrl_c() => {
            stop.store(true, Ordering::Relaxed);
            work.await
        }
    }
    .context("this is a bug of the export")?;
    let place = export.out.display();
    let written = exported.with_context(|| format!("export to {place}, where nothing was left"))?;
    report(&export, &written)?;
    Ok(Exit::Ok)
}

/// What may be replaced is what an export has written.
fn check_place(out: &Path, force: bool) -> anyhow::Result<()> {
    let metadata = match fs::symlink_metadata(out) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = out.parent().unwrap_or(Path::new("/"));
            ensure!(parent.is_dir(), "there is no folder {}", parent.display());
            return Ok(());
        }
        metadata => metadata.with_context(|| format!("look at {}", out.display()))?,
    };
    let out_name = out.display();
    ensure!(metadata.is_dir(), "{out_name} is there and is no folder");
    ensure!(force, "{out_name} is there; --force replaces it");
    for entry in fs::read_dir(out).with_context(|| format!("look at {out_name}"))? {
        let entry = entry.with_context(|| format!("look at {out_name}"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = [CARD, peft::CONFIG, peft::WEIGHTS].contains(&name.as_str())
            || Path::new(&name).extension().is_some_and(|ext| ext == "gguf");
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        ensure!(
            is_ours && is_file,
            "{out_name} has {name}, which no export has written: choose another folder"
        );
    }
    Ok(())
}

/// A generation and where it comes from, by the daemon.
#[derive(Debug)]
struct Origin {
    version: String,
    model: Model,
    generation: Generation,
    parent: Generation,
    adapter: PathBuf,
    adapter_sha256: String,
    made: String,
    verdict: serde_json::Value,
    run: Run,
}

impl Origin {
    async fn ask(client: &Client, generation: Option<u32>) -> anyhow::Result<Self> {
        let Status { version, model, .. } = client.get("/v1/status").await?;
        let Adapters { active, data } = client.get("/v1/adapters").await?;
        let generation = generation.map_or(active, Generation);
        if generation == Generation::BASE {
            bail!(
                "generation 0 is the base model itself ({}): there is no adapter to export; \
                 `reflectd adapters list` shows the others",
                model.path
            );
        }
        let row = data.into_iter().find(|row| row.generation == generation);
        let row = row.with_context(|| {
            format!("there is no generation {generation}: `reflectd adapters list` shows them")
        })?;
        let missing = "the daemon does not say where the adapter lies: restart it after an update";
        let run = row.run.context(missing)?;
        let run: Run = client.get(&format!("/v1/runs/{run}")).await?;
        let trained_on = row.base_sha256.context(missing)?;
        ensure!(
            trained_on == model.sha256,
            "generation {generation} was trained for the base {trained_on}, and the daemon serves \
             {}: serve that base to export it",
            model.sha256
        );
        Ok(Self {
            version,
            generation,
            parent: row.parent.context(missing)?,
            adapter: row.path.context(missing)?.into(),
            adapter_sha256: row.sha256.context(missing)?,
            made: time(row.created_ms.context(missing)?),
            verdict: row.verdict,
            run,
            model,
        })
    }

    /// How its files are called.
    fn stem(&self) -> String {
        let file = Path::new(&self.model.path).file_stem().unwrap_or_default().to_string_lossy();
        // Of a model in several files.
        let stem = file.split_once("-00001-of-").map_or(&*file, |(stem, _)| stem);
        format!("{stem}-generation-{}", self.generation)
    }
}

struct Export {
    origin: Origin,
    arguments: Arguments,
    out: PathBuf,
    /// Somebody has pressed Ctrl-C.
    stop: Arc<AtomicBool>,
}

impl Export {
    /// Writes the folder, whole or not at all.
    fn write(self) -> (Self, anyhow::Result<Vec<Written>>) {
        let written = self.try_write();
        (self, written)
    }

    fn try_write(&self) -> anyhow::Result<Vec<Written>> {
        let Origin { model, adapter: path, adapter_sha256, .. } = &self.origin;
        let found = files::sha256(path).with_context(|| {
            format!(
                "read the adapter {}: only the newest generations are kept, and only the user \
                     who runs the daemon may read them",
                path.display()
            )
        })?;
        ensure!(found == *adapter_sha256, "the adapter {} was changed", path.display());
        let adapter = Adapter::read(path)?;
        let base = Parts::open(Path::new(&model.path))?;
        let existing = if self.arguments.force { Existing::Replace } else { Existing::Keep };
        let mut written = Vec::new();
        files::write_folder(&self.out, existing, |folder| {
            let content = match self.arguments.format {
                Format::Gguf => {
                    let mut to = File::create_new(folder.join(ADAPTER))?;
                    io::copy(&mut File::open(path)?, &mut to)?;
                    Content::Gguf
                }
                Format::Peft => {
                    peft::write(
                        &adapter,
                        base.header(),
                        self.base_model(base.header()).as_deref(),
                        folder,
                    )?;
                    Content::Peft
                }
                Format::Merged => {
                    let file = format!("{}.gguf", self.origin.stem());
                    written = self.merge(base.files(), &adapter, &folder.join(&file))?;
                    Content::Merged { file, written: written.clone() }
                }
            };
            let card = self.card(content, &adapter, base.header()).render();
            File::create_new(folder.join(CARD))?.write_all(card.as_bytes())?;
            Ok::<(), LoraError>(())
        })?;
        Ok(written)
    }

    fn merge(
        &self,
        base: &[Gguf],
        adapter: &Adapter,
        path: &Path,
    ) -> Result<Vec<Written>, LoraError> {
        let Origin { model, generation, adapter_sha256, .. } = &self.origin;
        // The served base was read at the daemon's start; the file may have changed, so its hash is
        // checked again.
        let base_path = Path::new(&model.path);
        if gguf::model_sha256(base_path)? != model.sha256 {
            let reason = "it is not the file any more that the daemon serves".to_owned();
            return Err(LoraError::Refused { path: base_path.to_owned(), reason });
        }
        // Chats of the daemon beside it come first; the threads inherit this one's priority.
        rustix::process::nice(19).ok();
        let threads =
            self.arguments.threads.map_or_else(std::thread::available_parallelism, |n| {
                n.try_into().map_err(io::Error::other)
            })?;
        let merge = Merge { base, adapter, kind: self.arguments.kind, threads: threads.get() };
        let text = |text: &str| Value::String(text.to_owned());
        let about = [
            ("general.name", text(&format!("{} generation {generation}", model.name))),
            ("reflectd.merged.base_sha256", text(&model.sha256)),
            ("reflectd.merged.adapter_sha256", text(adapter_sha256)),
        ];
        let progress = progress::counter("merging", merge.n_bytes()? >> 20);
        let mut show = |done: u64| {
            progress.set_position(done >> 20);
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("interrupted"));
            }
            Ok(())
        };
        let mut out = BufWriter::new(File::create_new(path)?);
        let written = merge.write_to(&mut out, &about, &mut show)?;
        out.flush()?;
        progress.finish();
        Ok(written)
    }

    /// As the owner says, or as the file does.
    fn base_model(&self, base: &Gguf) -> Option<String> {
        let keys = ["general.base_model.0.repo_url", "general.source.repo_url", "general.repo_url"];
        let repository = || {
            let url = keys.iter().find_map(|key| base.string(key))?;
            let mut parts = url.trim_end_matches('/').rsplit('/');
            let (name, owner) = (parts.next()?, parts.next()?);
            Some(format!("{owner}/{name}"))
        };
        self.arguments.base_model.clone().or_else(repository)
    }

    fn card(&self, content: Content, adapter: &Adapter, base: &Gguf) -> Card {
        let Origin { version, model, run, .. } = &self.origin;
        let file = Path::new(&model.path).file_name().unwrap_or_default();
        Card {
            content,
            base_name: model.name.clone(),
            base_file: file.to_string_lossy().into_owned(),
            base_sha256: model.sha256.clone(),
            architecture: model.architecture.clone(),
            base_model: self.base_model(base),
            rank: adapter.rank(),
            alpha: adapter.alpha,
            tensors: adapter.pairs.len(),
            adapter_sha256: self.origin.adapter_sha256.clone(),
            generation: self.origin.generation.0,
            parent: self.origin.parent.0,
            made: self.origin.made.clone(),
            run: run.id.0,
            pairs: run.n_pairs,
            data_sha256: run.data_sha256.clone(),
            job: run.job.clone(),
            verdict: self.origin.verdict.clone(),
            version: version.clone(),
        }
    }
}

fn report(export: &Export, written: &[Written]) -> anyhow::Result<()> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(&export.out)? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len());
    }
    let (generation, format) = (export.origin.generation, export.arguments.format.word());
    if export.arguments.json {
        let written: Vec<_> = written
            .iter()
            .map(|it| {
                json!({
                    "from": it.from, "to": it.to, "instead": it.instead, "tensors": it.tensors,
                    "rounding": it.rounding,
                })
            })
            .collect();
        terminal::print_json(&json!({
            "generation": generation, "format": format, "folder": export.out, "files": files,
            "merged": written,
        }))?;
        return Ok(());
    }
    let mut text = String::new();
    writeln!(text, "Generation {generation} is in {}:", export.out.display())?;
    for (name, size) in files {
        writeln!(text, "  {name} ({:.1} MB)", size as f64 / 1e6)?;
    }
    for it in written {
        let Written { tensors, from, to, rounding, .. } = it;
        writeln!(
            text,
            "{tensors} tensors of {from} merged as {to}: rounding moves them by {rounding:.2} of what \
             was learned."
        )?;
        let remark = remark(it);
        if !remark.is_empty() {
            writeln!(text, "  {remark}.")?;
        }
    }
    terminal::print(&text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_earlier_export_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        check_place(&out, false).unwrap();
        fs::create_dir(&out).unwrap();
        let refusal = |force| check_place(&out, force).unwrap_err().to_string();
        assert!(refusal(false).contains("--force"));
        for name in [CARD, ADAPTER, peft::CONFIG, "a.gguf"] {
            File::create(out.join(name)).unwrap();
        }
        check_place(&out, true).unwrap();
        File::create(out.join("letters.txt")).unwrap();
        assert!(refusal(true).contains("letters.txt"));
        let file = out.join(CARD);
        assert!(check_place(&file, true).unwrap_err().to_string().contains("no folder"));
        let nowhere = folder.path().join("a/b");
        assert!(check_place(&nowhere, false).unwrap_err().to_string().contains("no folder"));
    }

    #[test]
    fn a_type_is_spelled_as_ggml_does_in_any_case() {
        assert_eq!(parse_type("Q8_0"), Ok(TensorKind::Q8_0));
        assert_eq!(parse_type("q4_k"), Ok(TensorKind::Other(12)));
        assert!(parse_type("q4_k_m").unwrap_err().contains("q4_K"));
    }
}
