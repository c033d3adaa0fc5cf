//! The other side: llama-server, started with the flags that served it best here (see
//! `docs/internals/performance.md`), and its own completion endpoint. Used by the workloads
//! that compare.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use engine::Token;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::http::Endpoint;
use crate::process::Server;
use crate::results::LLAMA_SERVER;
use crate::setting::{BATCH, CELLS, Setting};
use testkit::bench::results as shared;

/// A running llama-server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) server: Server,
    pub(crate) endpoint: Endpoint,
    _folder: TempDir,
}

/// The flags that do not depend on the machine or the workload.
pub(crate) fn flags() -> Vec<String> {
    let flags =
        format!("-c {CELLS} -b {BATCH} -ub {BATCH} -ngl 0 -fa on -cram 0 --no-repack --no-webui");
    flags.split(' ').map(str::to_owned).collect()
}

impl Peer {
    /// `None` without a program.
    pub(crate) async fn start(setting: &Setting, slots: u32) -> anyhow::Result<Option<Self>> {
        let Some(program) = &setting.peer else { return Ok(None) };
        let folder = tempfile::tempdir().context("make a folder for the peer")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let endpoint = Endpoint::Port(port);
        let mut command = Command::new(program);
        command
            .args(["--model".as_ref(), setting.model.as_os_str()])
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["-t", &setting.threads.to_string(), "-tb", &setting.threads.to_string()])
            .args(["-np", &slots.to_string()])
            .args(flags())
            .args(extra());
        let server = Server::start(command, &endpoint, folder.path().join("log")).await?;
        Ok(Some(Self { server, endpoint, _folder: folder }))
    }

    /// llama-server's own endpoint, with tokens as prompt: `n` texts.
    pub(crate) async fn complete(
        &self,
        request: &Completion<'_>,
    ) -> anyhow::Result<Vec<Completed>> {
        let body = json!({
            "prompt": request.prompt,
            "n_predict": request.n_predict,
            "n_cmpl": request.n,
            "id_slot": request.slot.map_or(-1, i64::from),
            "n_probs": request.n_probs,
            "temperature": request.temperature,
            "samplers": ["temperature"],
            "cache_prompt": true,
            "seed": fastrand::i32(0..i32::MAX),
        });
        let reply = self.endpoint.post("/completion", &body).await?;
        let one = [reply];
        let replies = one[0].as_array().map_or(one.as_slice(), Vec::as_slice);
        ensure!(replies.len() == request.n as usize, "{} texts", replies.len());
        replies.iter().map(Completed::read).collect()
    }
}

/// Flags to try out, from `LLAMA_SERVER_FLAGS`.
fn extra() -> Vec<String> {
    let flags = std::env::var("LLAMA_SERVER_FLAGS").unwrap_or_default();
    flags.split_whitespace().map(str::to_owned).collect()
}

/// A request to [`Peer::complete`].
#[derive(Clone, Debug)]
pub(crate) struct Completion<'a> {
    pub(crate) prompt: &'a [Token],
    pub(crate) n: u32,
    pub(crate) n_predict: u32,
    pub(crate) n_probs: u32,
    pub(crate) temperature: f32,
    pub(crate) slot: Option<u32>,
}

/// One text and what it took.
#[derive(Clone, Debug)]
pub(crate) struct Completed {
    pub(crate) text: String,
    /// (token text, log-prob) of the likeliest first tokens.
    pub(crate) top: Vec<(String, f64)>,
    /// Prompt tokens, cached ones too.
    pub(crate) offered: u64,
    /// Prompt tokens that were evaluated.
    pub(crate) evaluated: u64,
    pub(crate) generated: u64,
}

impl Completed {
    fn read(reply: &Value) -> anyhow::Result<Self> {
        let number = |value: &Value, key: &str| {
            value[key].as_u64().with_context(|| format!("the peer's reply has no {key}: {reply}"))
        };
        let top = reply["completion_probabilities"][0]["top_logprobs"].as_array();
        let top = top.into_iter().flatten().filter_map(|entry| {
            Some((entry["token"].as_str()?.to_owned(), entry["logprob"].as_f64()?))
        });
        Ok(Self {
            text: reply["content"].as_str().context("the peer's reply has no text")?.to_owned(),
            top: top.collect(),
            offered: number(reply, "tokens_evaluated")?,
            evaluated: number(&reply["timings"], "prompt_n")?,
            generated: number(reply, "tokens_predicted")?,
        })
    }
}

/// What the program calls itself, and how it is started.
pub(crate) async fn describe(program: &Path, threads: u32) -> anyhow::Result<shared::Peer> {
    let output = tokio::time::timeout(
        Duration::from_secs(10),
        Command::new(program).arg("--version").output(),
    );
    let output = output.await.context("ask the peer for its version")??;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find(|line| line.starts_with("version"));
    let version = line.context("the peer does not say its version")?;
    let flags = [flags(), extra()].concat().join(" ");
    Ok(shared::Peer {
        version: format!("{LLAMA_SERVER} {version}"),
        flags: format!("-t {threads} -tb {threads} {flags}"),
    })
}
