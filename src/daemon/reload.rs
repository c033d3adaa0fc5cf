//! Reading the configuration, at the start and later: the same checks, plus what cannot change
//! while the daemon runs. Nothing is half applied. Used by `daemon`.

use std::path::{Path, PathBuf};

use crate::reflect::Reflector;
use config::{self, Config, ConfigError, Problem};

/// Reads and checks the files, off the async threads.
pub(super) async fn load(root: PathBuf) -> Result<Config, ConfigError> {
    tokio::task::spawn_blocking(move || config::load(&root))
        .await
        .expect("config::load does not panic and is not aborted")
}

/// What only the loaded model can tell: whether each agent's level labels are single tokens.
pub(super) fn check_agents(config: &Config, reflector: &Reflector) -> Result<(), ConfigError> {
    let problems: Vec<_> = config
        .agents
        .values()
        .filter_map(|agent| {
            let message = reflector.check_agent(agent).err()?;
            let file = Path::new("agents").join(format!("{}.yaml", agent.name));
            Some(Problem { file, key: "prompts".to_owned(), message })
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
}

/// A complete new configuration that may take the old one's place.
pub(super) async fn renew(old: &Config, reflector: &Reflector) -> Result<Config, ConfigError> {
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
    check_agents(&new, reflector)?;
    Ok(new)
}
