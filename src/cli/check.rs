//! `reflectd check`: reads the configuration with the code that the daemon uses, and reports every
//! problem. Needs no daemon. Called by `cli::run`.

use std::path::Path;

use serde_json::json;

use super::{Json, terminal};
use config;
use protocol::exit::Exit;

pub(super) fn run(root: &Path, json: Json) -> anyhow::Result<Exit> {
    let loaded = config::load(root);
    if json.json {
        let problems = loaded.as_ref().err().map_or(&[][..], |error| &error.0);
        terminal::print_json(&json!({ "problems": problems }))?;
        return Ok(if problems.is_empty() { Exit::Ok } else { Exit::Config });
    }
    let config = loaded?;
    let agents: Vec<&str> = config.agents.keys().map(String::as_str).collect();
    let file = config::Config::file(&config.root);
    terminal::print(&format!("{} is good; agents: {}\n", file.display(), agents.join(", ")))?;
    Ok(Exit::Ok)
}
