//! Reading the configuration, at the start and later: the same checks, plus what cannot change
//! while the daemon runs. Nothing is half applied. Used by `daemon`.

use std::path::{Path, PathBuf};

use tracing::warn;

use crate::reflect::Reflector;
use config::{self, Config, ConfigError, Problem};

/// Reads and checks the files, off the async threads.
pub(super) async fn load(root: PathBuf) -> Result<Config, ConfigError> {
    let loaded = tokio::task::spawn_blocking(move || config::load(&root))
        .await
        .expect("config::load does not panic and is not aborted");
    for Problem { file, key, message } in loaded.iter().flat_map(|config| &config.warnings) {
        warn!(file = %file.display(), key, message, "The configuration has something to look at.");
    }
    loaded
}

/// What only the loaded models can tell, such as whether an agent's level labels are single tokens.
/// A chat template that does not work with an agent is that agent's fault, which every request to it
/// is told of; the others are served, and what comes back names it.
pub(super) fn check_agents(
    config: &Config,
    reflector: &Reflector,
) -> Result<Vec<Problem>, ConfigError> {
    let [mut tolerated, mut fatal] = [Vec::new(), Vec::new()];
    for agent in config.agents.values() {
        let Err(error) = reflector.check_agent(agent) else { continue };
        let is_template = error.is_of_chat_template();
        let problem = Problem {
            file: Path::new("agents").join(format!("{}.yaml", agent.name)),
            key: if is_template { "model" } else { "prompts" }.to_owned(),
            message: error.to_string(),
        };
        if is_template {
            warn!(agent = agent.name, error = problem.message, "An agent cannot answer.");
            tolerated.push(problem);
        } else {
            fatal.push(problem);
        }
    }
    if fatal.is_empty() { Ok(tolerated) } else { Err(ConfigError(fatal)) }
}

/// A complete new configuration that may take the old one's place, and which agents cannot answer.
pub(super) async fn renew(
    old: &Config,
    reflector: &Reflector,
) -> Result<(Config, Vec<Problem>), ConfigError> {
    let new = load(old.root.clone()).await?;
    let frozen: Vec<_> = config::frozen_differences(old, &new)
        .into_iter()
        .map(|key| Problem {
            file: PathBuf::from("reflectd.yaml"),
            key,
            message: "cannot change while the daemon runs; restart it, or change it back".into(),
        })
        .collect();
    if !frozen.is_empty() {
        return Err(ConfigError(frozen));
    }
    let problems = check_agents(&new, reflector)?;
    Ok((new, problems))
}
