//! The reference of keys: defaults and what is allowed come from the checks themselves
//! (`config::keys`), descriptions from the doc comments of the types that hold the values.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use config::{Key, KeyDefault, keys};

use super::{Document, ROOT, document, documents, files, parts, write};
use testkit::tree::assert_none;

const REFERENCE: &str = "docs/reference/configuration.md";
const MARKERS: [&str; 2] = ["<!-- keys begin -->\n", "<!-- keys end -->\n"];

/// The types that hold the values of a section, by file and dotted path of the section.
const TYPES: &[(&str, &str, &[&str])] = &[
    ("reflectd.yaml", "", &["Config", "Agent"]),
    ("reflectd.yaml", "engine", &["EngineConfig"]),
    ("reflectd.yaml", "server", &["ServerConfig"]),
    ("reflectd.yaml", "trainer", &["TrainerConfig"]),
    ("reflectd.yaml", "learn", &["LearnConfig", "PauseConfig"]),
    ("reflectd.yaml", "learn.night", &["LearnConfig"]),
    ("reflectd.yaml", "learn.pairs", &["PairPolicy"]),
    ("reflectd.yaml", "learn.objective", &["Objective"]),
    ("reflectd.yaml", "learn.lora", &["Lora"]),
    ("reflectd.yaml", "learn.optimizer", &["OptimizerConfig"]),
    ("reflectd.yaml", "learn.gate", &["GateConfig"]),
    ("reflectd.yaml", "learn.canary", &["CanaryConfig"]),
    ("reflectd.yaml", "learn.watch", &["WatchConfig"]),
    ("reflectd.yaml", "trust", &["TrustConfig"]),
    ("reflectd.yaml", "judge", &["EndpointConfig"]),
    ("agents/NAME.yaml", "", &["Agent"]),
    ("agents/NAME.yaml", "sampling", &["Sampling"]),
    ("agents/NAME.yaml", "reflection", &["Reflection"]),
    ("agents/NAME.yaml", "explore", &["Practice", "Reflection", "StopEarly"]),
    ("agents/NAME.yaml", "aspects[0]", &["AgentAspect"]),
    ("agents/NAME.yaml", "judge", &["EndpointConfig"]),
    ("agents/NAME.yaml", "scalar", &["RewardConfig"]),
    ("prompts/aspects/NAME.yaml", "", &["Aspect"]),
];

/// Fields that have another name than their key.
const FIELDS: &[(&str, &str)] = &[
    ("learn.continue", "start"),
    ("learn.pause_after", "after"),
    ("learn.night.minutes", "night"),
    ("learn.canary.hours", "duration"),
    ("learn.watch.hours", "duration"),
    ("judge.endpoint", "address"),
    ("scalar.reward_model", "model"),
];

/// Keys that are no field of a type: what they are for.
const WORDS: &[(&str, &str)] = &[
    (
        "judge.model",
        "The GGUF of another model, in a thread of its own; with `endpoint`, the name by which the server knows its model.",
    ),
    (
        "aspect_choice.judge",
        "How many of the aspects judge a prompt: those that the judge finds the most relevant for it.",
    ),
    ("aspects[0].name", "The stem of a file in `prompts/aspects/` or `agents/NAME/aspects/`."),
    ("learn.schedule.cron", "Minute, hour, day, month, weekday."),
    ("learn.schedule.time_zone", "A name like `Europe/Berlin`."),
    (
        "learn.objective.name",
        "Which loss; the [objectives](../internals/protocol.md#objectives) have their own keys and defaults.",
    ),
    ("model", "The GGUF that answers; all agents share one."),
    (
        "form",
        "What a whole answer looks like (a regular expression), for formats without quotation: the first part of an answer that is one is judged alone as well, and the worse reading counts.",
    ),
    (
        "labels",
        "The answers that stand for levels -1, 0 and +1; each has to be one token of the judge.",
    ),
    (
        "assess",
        "Asks for the level of one aspect. Variables: `question`, `response`, `reference`, `aspect`, `best`.",
    ),
    ("critique", "Asks what is wrong. Variables: `question`, `response`, `reference`, `aspects`."),
    ("refine", "Asks for a better answer. Variables: `question`, `response`, `critique`."),
    ("choose", "Asks how much an aspect matters for a request. Variables: `question`, `aspect`."),
];

/// A type of the sources with its doc comments.
#[derive(Debug)]
struct Type {
    name: String,
    /// Fields, variants and fields of variants, in order.
    members: Vec<(String, String)>,
}

/// The public types of the sources.
fn types() -> Vec<Type> {
    let mut found: Vec<Type> = Vec::new();
    let sources = files(&["rs"]);
    let is_source =
        |file: &&Document| file.path.starts_with("src") || file.path.starts_with("crates");
    for file in sources.iter().filter(is_source) {
        let mut doc = String::new();
        let mut is_inside = false;
        for line in file.text.lines() {
            let code = line.trim_start();
            if let Some(text) = code.strip_prefix("///") {
                doc.push_str(text.trim());
                doc.push(' ');
                continue;
            }
            if code.starts_with("#[") || code.is_empty() {
                continue;
            }
            let definition =
                ["pub struct ", "pub enum "].iter().find_map(|it| line.strip_prefix(it));
            if let Some(rest) = definition {
                found.push(Type { name: name(rest), members: Vec::new() });
                is_inside = rest.ends_with('{');
            } else if line.starts_with('}') {
                is_inside = false;
            } else if is_inside && let Some(last) = found.last_mut() {
                last.members.push((name(code.trim_start_matches("pub ")), plain(&doc)));
            }
            doc.clear();
        }
    }
    found
}

/// The name that a text begins with.
fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// A doc comment as a reader of the reference wants it.
fn plain(doc: &str) -> String {
    let doc = doc.replace("[`", "`").replace("`]", "`").replace('|', "\\|");
    doc.trim().replace("; `None`:", "; unset:").replace("`None`:", "Unset:")
}

/// `MeanMinus2Sd` as `mean_minus2_sd`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}

/// Dotted path of a section, and the key in it.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

/// What a key is for; `None` when no type says so.
fn description(key: &Key, types: &[Type]) -> Option<String> {
    if let Some((_, words)) = WORDS.iter().find(|(other, _)| *other == key.key) {
        return Some((*words).to_owned());
    }
    let (section, own) = split(&key.key);
    let file = key.file.to_str()?;
    let (_, _, holders) = TYPES.iter().find(|(f, s, _)| (*f, *s) == (file, section))?;
    let renamed = FIELDS.iter().find(|(other, _)| *other == key.key).map(|(_, field)| *field);
    let field = renamed.unwrap_or(own);
    let candidates = [field, field.trim_end_matches("_s")];
    let member = holders.iter().find_map(|holder| {
        let holders = types.iter().filter(|it| it.name == *holder);
        holders.flat_map(|it| &it.members).find(|(name, _)| candidates.contains(&name.as_str()))
    });
    let mut text = member?.1.clone();
    // The meaning of each word that is allowed.
    let is_words =
        |it: &&Type| it.name == key.kind && key.allowed.contains(&snake(&it.members[0].0));
    if let Some(values) = types.iter().filter(|it| !it.members.is_empty()).find(is_words) {
        for (name, doc) in &values.members {
            let doc = doc.trim_end_matches('.');
            write!(text, " `{}`: {doc};", snake(name)).unwrap();
        }
        text = format!("{}.", text.trim_end_matches(';'));
    }
    (!text.is_empty()).then_some(text)
}

/// What is allowed, in a reader's words.
fn allowed(key: &Key) -> String {
    let text = match key.allowed.as_str() {
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "u64" => "a whole number",
        "a tuple of size 2" => "[0 to 1, 1 to 100]",
        "internally tagged enum Verifier" => {
            "a [verifier](../guide/verifiers-and-examples.md#verifiers)"
        }
        "a text" if key.kind == "PathBuf" => "a path",
        other => other.trim_end_matches(" is needed"),
    };
    text.replace('|', "\\|")
}

fn default(key: &Key) -> String {
    match &key.default {
        KeyDefault::Required => "required".to_owned(),
        KeyDefault::Value(text) if !text.is_empty() => format!("`{text}`"),
        KeyDefault::Value(_) | KeyDefault::Absent => "-".to_owned(),
    }
}

/// Whether a key stands for those below it.
fn is_section(key: &Key, all: &[&Key]) -> bool {
    key.allowed == "keys below" && all.iter().any(|other| split(&other.key).0 == key.key)
}

/// The sections of a file, those with the same first part together.
fn sections<'a>(keys: &[&'a Key]) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for key in keys {
        let section = split(&key.key).0;
        if !found.contains(&section) {
            found.push(section);
        }
    }
    let first = |section: &str| section.split('.').next().map(str::to_owned);
    let order: Vec<_> = found.iter().map(|section| first(section)).collect();
    found.sort_by_key(|section| order.iter().position(|other| *other == first(section)));
    found
}

/// The table of a section; keys that nothing describes become findings.
fn table(section: &str, keys: &[&Key], types: &[Type], findings: &mut Vec<String>) -> String {
    let mut text = "| key | default | allowed | what |\n|---|---|---|---|\n".to_owned();
    let mut seen = BTreeSet::new();
    for key in keys.iter().filter(|key| split(&key.key).0 == section) {
        if is_section(key, keys) || !seen.insert(&key.key) {
            continue;
        }
        let joined = |words: fn(&Key) -> String| {
            let all = keys.iter().filter(|other| other.key == key.key);
            let mut words: Vec<_> = all.map(|key| words(key)).collect();
            words.dedup();
            words.join("; ")
        };
        let what = description(key, types).unwrap_or_else(|| {
            findings.push(format!("{}: {}", key.file.display(), key.key));
            String::new()
        });
        let name = split(&key.key).1;
        let (default, allowed) = (joined(default), joined(allowed));
        writeln!(text, "| `{name}` | {default} | {allowed} | {what} |").unwrap();
    }
    text
}

/// The tables of all files.
fn render(keys: &[Key]) -> String {
    let types = types();
    let mut findings = Vec::new();
    let mut text = String::new();
    let mut files: Vec<_> = keys.iter().map(|key| &key.file).collect();
    files.dedup();
    for file in files {
        writeln!(text, "## {}\n", file.display()).unwrap();
        let own: Vec<_> = keys.iter().filter(|key| key.file == *file).collect();
        for section in sections(&own) {
            if !section.is_empty() {
                writeln!(text, "### {}\n", section.replace("[0]", "[]")).unwrap();
            }
            text.push_str(&table(section, &own, &types, &mut findings));
            text.push('\n');
        }
    }
    let findings = findings.join("\n");
    assert!(findings.is_empty(), "no doc comment describes these keys; see TYPES:\n{findings}");
    text
}

#[test]
fn the_reference_of_keys_is_what_the_code_says() {
    let old = document(REFERENCE).text;
    let [begin, end] = MARKERS;
    let (head, rest) = old.split_once(begin).expect("the document has both markers");
    let (_, after) = rest.split_once(end).expect("the document has both markers");
    let new = format!("{head}{begin}\n{}{end}{after}", render(&keys()));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        write(&Path::new(ROOT).join(REFERENCE), &new);
        return;
    }
    let differs = old.lines().zip(new.lines()).find(|(old, new)| old != new);
    assert!(
        old == new,
        "{REFERENCE} is out of date; run `UPDATE_DOCS=1 cargo test --release --test docs`. First \
         difference: {differs:#?}"
    );
}

#[test]
fn every_word_for_a_key_is_used() {
    let keys = keys();
    let is_key = |name: &str| keys.iter().any(|key| key.key == name);
    let names = WORDS.iter().map(|(name, _)| name).chain(FIELDS.iter().map(|(name, _)| name));
    let unused = names.filter(|name| !is_key(name)).map(|name| format!("{name} is no key"));
    assert_none(&unused.collect::<Vec<_>>());
}

/// The sources take a key by its name in quotes: `keys.number("queue", ...)`.
#[test]
fn every_key_that_the_checks_take_is_listed() {
    let takes = regex::Regex::new(
        r#"(?:number|value|optional|seconds|text|required|mixed|section|items|weight|file|auto_or_number)(?:::<[^(]*>)?\(\s*(?:root, )?(?:&mut )?(?:keys, )?"([a-z_]+)""#,
    )
    .unwrap();
    let listed = keys();
    let listed: BTreeSet<_> = listed.iter().map(|key| split(&key.key).1.to_owned()).collect();
    let mut findings = Vec::new();
    let mut n_found = 0;
    for Document { path, text } in files(&["rs"]) {
        let is_check =
            ["settings.rs", "check.rs", "judge.rs"].iter().any(|name| path.ends_with(name));
        if !is_check || !path.iter().any(|part| part == "config") {
            continue;
        }
        for found in takes.captures_iter(&text) {
            n_found += 1;
            if !listed.contains(&found[1]) {
                findings.push(format!(
                    "{}: {} is not listed by config::keys",
                    path.display(),
                    &found[1]
                ));
            }
        }
    }
    assert_none(&findings);
    assert!(100 < n_found, "{n_found} keys are taken: the pattern finds them no more");
}

/// A key in the shipped `reflectd.yaml`: dotted path, value, and whether it is commented out.
fn shipped() -> Vec<(String, String, bool)> {
    let mut open: Vec<(usize, String)> = Vec::new();
    let mut found = Vec::new();
    for line in document("reflectd.yaml").text.lines() {
        let indent = line.len() - line.trim_start().len();
        let rest = line.trim_start();
        let is_default = rest.starts_with('#');
        let rest = rest.trim_start_matches('#');
        let Some((key, value)) = rest.split_once(':') else { continue };
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            continue;
        }
        open.retain(|(other, _)| *other < indent);
        let path: Vec<_> = open.iter().map(|(_, key)| key.as_str()).chain([key]).collect();
        found.push((path.join("."), value.trim().trim_matches('"').to_owned(), is_default));
        if !is_default {
            open.push((indent, key.to_owned()));
        }
    }
    found
}

#[test]
fn the_shipped_settings_show_every_key_with_its_default() {
    let shipped = shipped();
    let mut findings = Vec::new();
    for key in keys().iter().filter(|key| key.file == Path::new("reflectd.yaml")) {
        // Keys that only some values of others have are told in the comments.
        let is_base = !key.key.starts_with("judge.") && key.kind != "Section";
        let shown = shipped.iter().filter(|(name, _, _)| *name == key.key).collect::<Vec<_>>();
        let wanted = match &key.default {
            KeyDefault::Value(value) => value.as_str(),
            KeyDefault::Absent | KeyDefault::Required => "",
        };
        let depends = keys().iter().filter(|other| other.key == key.key).count() > 1;
        let is_shown = shown
            .iter()
            .any(|(_, value, is_default)| value == wanted || !is_default && wanted.is_empty());
        if is_base && !depends && !key.key.starts_with("learn.objective.") && !is_shown {
            findings.push(format!("reflectd.yaml does not show {}: {wanted}", key.key));
        }
    }
    let listed = keys();
    for (name, value, _) in shipped.iter().filter(|(_, _, is_default)| *is_default) {
        let is_right = |key: &&Key| {
            key.key == *name
                && (key.default == KeyDefault::Value(value.clone()) || value.is_empty())
        };
        if !listed.iter().any(|key| is_right(&key)) {
            findings.push(format!("reflectd.yaml shows {name}: {value} as a default"));
        }
    }
    assert_none(&findings);
}

#[test]
fn documents_name_keys_that_exist() {
    let listed = keys();
    let mention = regex::Regex::new(
        r"`((?:engine|server|trainer|learn|trust|reflection|sampling|gate|canary|watch|pairs|lora|optimizer|objective)(?:\.[a-z_]+)+)[`:]",
    )
    .unwrap();
    let mut n_found = 0;
    let mut findings = Vec::new();
    for Document { path, text } in documents() {
        // The log quotes keys of older versions.
        if path.ends_with("LOG.md") {
            continue;
        }
        for (line, prose) in parts(&text).0 {
            for found in mention.captures_iter(prose) {
                n_found += 1;
                let name = &found[1];
                let is_known =
                    |key: &Key| key.key == name || key.key.ends_with(&format!(".{name}"));
                let is_file = Path::new(name).extension().is_some_and(|it| it == "rs");
                if !is_file && !listed.iter().any(is_known) {
                    findings.push(format!("{}:{line}: {name} is no key", path.display()));
                }
            }
        }
    }
    assert_none(&findings);
    assert!(20 < n_found, "{n_found} keys are named: the pattern finds them no more");
}
