//! Chat templates give what transformers' `apply_chat_template` gives, byte for byte: those of our own
//! in `templates/`, and those of real models where `REFLECTD_TEMPLATES` names their folder
//! (`make template-test`). The goldens come from `scripts/template-goldens.py`.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use chrono::{Local, NaiveDate, TimeZone as _};
use reflectd_prompt::{ChatTemplate, Message};
use serde::Deserialize;

#[derive(Deserialize)]
struct Conversation {
    name: String,
    messages: Vec<Message>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Golden {
    Text(String),
    Error(String),
}

/// By template and conversation.
type Goldens = BTreeMap<String, BTreeMap<String, Golden>>;

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn conversations() -> Vec<Conversation> {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conversations.json"))
}

fn render(template: &ChatTemplate, messages: &[Message]) -> Result<String, String> {
    let time = NaiveDate::from_ymd_opt(2026, 1, 2).unwrap().and_hms_opt(3, 4, 5).unwrap();
    let time = Local.from_local_datetime(&time).unwrap();
    let parts = template.render_at(messages, true, time).map_err(|error| error.to_string())?;
    Ok(parts.into_iter().map(|part| part.text).collect())
}

/// A conversation whose prompt is another one.
#[derive(Debug)]
struct Difference {
    template: String,
    conversation: String,
    theirs: Golden,
    ours: Result<String, String>,
}

/// What differs, and how many were compared.
fn differences(folder: &Path, goldens: Goldens) -> (Vec<Difference>, usize) {
    let mut differences = Vec::new();
    let mut n = 0;
    for (name, mut goldens) in goldens {
        let source = fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(Some(&source), "<s>", "</s>");
        for Conversation { name: conversation, messages } in conversations() {
            n += 1;
            let ours = render(&template, &messages);
            let theirs = goldens.remove(&conversation).unwrap();
            let is_same = match (&theirs, &ours) {
                (Golden::Text(theirs), Ok(ours)) => theirs == ours,
                (Golden::Error(_), Err(_)) => true,
                _ => false,
            };
            if !is_same {
                differences.push(Difference { template: name.clone(), conversation, theirs, ours });
            }
        }
    }
    (differences, n)
}

#[test]
fn our_own_templates_give_what_transformers_gives() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let goldens = read(&tests.join("goldens.json"));
    let (differences, n) = differences(&tests.join("templates"), goldens);
    assert_eq!(n, 80);
    let of = |template: &str| differences.iter().filter(|it| it.template == template).count();
    // Five conversations have a turn of the system, which these two refuse or leave out.
    assert_eq!([of("system-refused"), of("system-left-out")], [5, 5], "{differences:#?}");
    // Without tools these fail in transformers.
    assert_eq!([of("functions"), of("tools-for-each")], [8, 8], "{differences:#?}");
    assert_eq!(differences.len(), 26, "{differences:#?}");
    for Difference { ours, theirs, template, conversation } in &differences {
        let ours = ours.as_ref().unwrap_or_else(|error| panic!("{template}: {error}"));
        match theirs {
            Golden::Error(_) => {}
            Golden::Text(theirs) => {
                assert_eq!(template, "system-left-out", "{conversation}");
                assert!(theirs.len() < ours.len(), "{ours} has the system's words");
            }
        }
    }
}

#[test]
fn templates_of_real_models_give_what_transformers_gives() {
    let Ok(folder) = std::env::var("REFLECTD_TEMPLATES") else {
        println!("SKIPPED templates of real models: run `make template-test TEMPLATES=folder`");
        return;
    };
    let goldens = std::env::var("REFLECTD_TEMPLATE_GOLDENS").unwrap();
    let (differences, n) = differences(Path::new(&folder), read(Path::new(&goldens)));
    println!("{n} prompts compared, {} differ:", differences.len());
    let mut reasons: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for Difference { template, conversation, theirs, ours } in &differences {
        let reason = match (theirs, ours) {
            (Golden::Error(error), Ok(_)) => format!("transformers fails: {error}"),
            _ => format!("{conversation}:\n  theirs {theirs:?}\n  ours   {ours:?}"),
        };
        *reasons.entry((template, reason)).or_default() += 1;
    }
    for ((template, reason), n) in &reasons {
        println!("{n} of {template}: {reason}");
    }
    let is_theirs = |it: &Difference| matches!((&it.theirs, &it.ours), (Golden::Error(_), Ok(_)));
    assert!(0 < n && differences.iter().all(is_theirs), "prompts differ");
}
