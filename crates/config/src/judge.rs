//! Who judges, by which aspects, and what becomes the one number of an answer: the keys `judge`,
//! `aspect_choice` and `scalar` as types, and what is allowed in them. `judge` may stand in
//! `reflectd.yaml` for all agents. Used by `check` and `settings`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::raw::Section;

/// Who judges. The model that is being trained never does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum JudgeConfig {
    /// Nobody: verifiers, references or a reward model decide.
    Nobody,
    /// Generation 0 of the served model.
    Own,
    /// Another GGUF, in a thread of its own.
    Model(PathBuf),
    /// A server that speaks OpenAI's chat completions with log-probs.
    Endpoint(EndpointConfig),
}

/// A judge behind HTTP.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct EndpointConfig {
    /// Where a judge behind HTTP listens: on this machine, because prompts leave as they are.
    pub address: Address,
    /// What comes before `/chat/completions`: `/v1`.
    pub base: String,
    /// The name by which it knows the model.
    pub model: String,
    /// A file with the server's API key.
    pub key_file: Option<PathBuf>,
    /// How long one reply may take.
    pub timeout: Duration,
    /// How often a request is sent again before it has failed.
    pub retries: u32,
}

/// Where an endpoint listens: on this machine, because prompts leave as they are.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Address {
    /// `host:port` of the loopback interface.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for EndpointConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(host) => write!(formatter, "http://{host}{}", self.base),
            Address::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// Which of an agent's aspects judge a prompt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AspectChoice {
    /// All of them, whatever the prompt.
    All,
    /// So many, which the judge finds the most relevant for the prompt (the paper: 3).
    Judge(usize),
}

/// What becomes the one number of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum ScalarConfig {
    /// The weighted mean of the aspects' values.
    Aspects,
    /// A reward model's value.
    Reward(RewardConfig),
}

/// A reward model, and how its number becomes one between -1 and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardConfig {
    /// The GGUF of the reward model.
    pub model: PathBuf,
    /// The reward that becomes 0.
    pub center: f64,
    /// The value is `tanh((reward - center) / (2 * scale))`; 1 is what a Bradley-Terry model means.
    pub scale: f64,
}

/// `judge`: `otherwise` when nobody sets it.
pub(super) fn judge(root: &Path, keys: &mut Section<'_>, otherwise: JudgeConfig) -> JudgeConfig {
    const ALLOWED: &str = "self, none, { model: FILE } or { endpoint: URL, model: NAME }";
    if keys.takes_word("judge", "none") {
        return JudgeConfig::Nobody;
    }
    // A word is `self`, which takes back what the file of the daemon says for all agents.
    let is_set = keys.has("judge");
    let Some(mut keys) = keys.word_or_section("judge", "self", ALLOWED) else {
        return if is_set { JudgeConfig::Own } else { otherwise };
    };
    if keys.has("endpoint") {
        return endpoint(root, &mut keys).map_or(JudgeConfig::Own, JudgeConfig::Endpoint);
    }
    model_file(root, &mut keys, "model").map_or(JudgeConfig::Own, JudgeConfig::Model)
}

fn endpoint(root: &Path, keys: &mut Section<'_>) -> Option<EndpointConfig> {
    let url = keys.text("endpoint");
    let model = keys.text("model");
    let key_file = keys.optional::<PathBuf>("key_file").map(|path| root.join(path));
    if let Some(path) = key_file.as_ref().filter(|path| !path.is_file()) {
        keys.problem("key_file", format!("names {}, which is not a file", path.display()));
    }
    let timeout = keys.seconds("timeout_s", 60.0).max(Duration::from_millis(1));
    let retries = keys.number("retries", 3, &(0..=10));
    let place = url.and_then(|url| {
        parse_url(root, &url).map_err(|fault| keys.problem("endpoint", fault)).ok()
    });
    let (address, base) = place?;
    Some(EndpointConfig { address, base, model: model?, key_file, timeout, retries })
}

/// Address, and what comes before `/chat/completions`.
fn parse_url(root: &Path, url: &str) -> Result<(Address, String), String> {
    let wanted = "http://127.0.0.1:PORT/v1 or unix:/PATH is allowed";
    if let Some(path) = url.strip_prefix("unix:") {
        if path.is_empty() {
            return Err(format!("is {url:?}; {wanted}"));
        }
        return Ok((Address::Unix(root.join(path)), "/v1".to_owned()));
    }
    if url.starts_with("https:") {
        return Err(format!(
            "is {url:?}; https is not spoken here: name a local proxy that adds TLS. {wanted}"
        ));
    }
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("is {url:?}; {wanted}"))?;
    let (host, base) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/v1"),
    };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(format!("is {url:?}; its port is not a number"));
    }
    let is_local = name == "localhost"
        || name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if !is_local {
        return Err(format!(
            "is {url:?}; prompts would leave this machine unencrypted: name a local proxy or the \
             end of a tunnel. {wanted}"
        ));
    }
    let host = if port.is_some() { host.to_owned() } else { format!("{host}:80") };
    Ok((Address::Tcp(host), base.trim_end_matches('/').to_owned()))
}

/// `aspect_choice` for an agent with so many aspects.
pub(super) fn aspect_choice(
    keys: &mut Section<'_>,
    n_aspects: usize,
    can_choose: bool,
) -> AspectChoice {
    const ALLOWED: &str = "all or { judge: NUMBER }";
    let Some(mut keys) = keys.word_or_section("aspect_choice", "all", ALLOWED) else {
        return AspectChoice::All;
    };
    let chosen = keys.number("judge", 3, &(1..=64));
    if n_aspects <= chosen {
        let fault = format!("chooses {chosen} of {n_aspects} aspects; list more, or say `all`");
        keys.problem("judge", fault);
    }
    if !can_choose {
        keys.problem("judge", "needs a `choose` template in the agent's file of prompts");
    }
    AspectChoice::Judge(chosen)
}

/// `scalar`.
pub(super) fn scalar(root: &Path, keys: &mut Section<'_>) -> ScalarConfig {
    const ALLOWED: &str = "aspects or { reward_model: FILE }";
    let Some(mut keys) = keys.word_or_section("scalar", "aspects", ALLOWED) else {
        return ScalarConfig::Aspects;
    };
    let model = model_file(root, &mut keys, "reward_model");
    let center = keys.number("center", 0.0, &(-1e6..=1e6));
    let scale = keys.number("scale", 1.0, &(1e-6..=1e6));
    model.map_or(ScalarConfig::Aspects, |model| {
        ScalarConfig::Reward(RewardConfig { model, center, scale })
    })
}

fn model_file(root: &Path, keys: &mut Section<'_>, key: &'static str) -> Option<PathBuf> {
    let path = root.join(keys.text(key)?);
    if !path.is_file() {
        keys.problem(key, format!("names {}, which is not a file", path.display()));
    }
    Some(path)
}
