//! Every key that the YAML files may have, with its default and what is allowed: the checks run on
//! texts that together take every branch, and each key is noted as it is taken. So the list cannot
//! say anything else than the checks do. The reference in `docs/` is made of it.

use std::path::Path;

use super::Key;
use super::check;
use super::raw::{Problems, Section};
use super::settings::Settings;

/// Texts of `reflectd.yaml` that together take every key.
const SETTINGS: &[&str] = &[
    "",
    "judge: { model: FILE }",
    "judge: { endpoint: URL }",
    "learn: { schedule: { cron: PATTERN } }",
    "learn: { objective: { name: auto } }",
    "learn: { objective: { name: dpo } }",
    "learn: { objective: { name: dpo_norm } }",
    "learn: { objective: { name: robust_dpo } }",
    "learn: { objective: { name: ipo } }",
    "learn: { objective: { name: simpo } }",
    "learn: { objective: { name: kto } }",
    "learn: { objective: { name: grpo } }",
];

/// Texts of an agent's file that together take every key.
const AGENTS: &[&str] = &[
    "aspects: [NAME]",
    "judge: { model: FILE }",
    "judge: { endpoint: URL }",
    "aspect_choice: { judge: 3 }",
    "scalar: { reward_model: FILE }",
];

/// All keys in the order in which they are checked. A key whose default depends on another one is
/// there once for each default.
pub fn keys() -> Vec<Key> {
    let problems = Problems::with_keys();
    // No file lies below it, so that nothing but the texts is read.
    let nowhere = Path::new("/dev/null");
    let settings = |text| {
        let mut file = Section::parse(Path::new("reflectd.yaml"), text, &problems);
        Settings::check(nowhere, &mut file)
    };
    let defaults = settings("");
    for text in SETTINGS {
        drop(settings(text));
    }
    for text in AGENTS {
        let file = Section::parse(Path::new("agents/NAME.yaml"), text, &problems);
        drop(check::agent(nowhere, file, &defaults, &problems));
    }
    let empty = |file| Section::empty(Path::new(file), &problems);
    drop(check::aspect("NAME", empty("prompts/aspects/NAME.yaml")));
    drop(check::prompt_set(empty("prompts/reflect.yaml")));

    let mut keys = Vec::new();
    for key in problems.into_keys() {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}
