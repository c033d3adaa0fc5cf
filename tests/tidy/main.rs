//! Rules that no compiler checks, as text checks over the tree: layers, crate boundaries, headers,
//! file length, and what the two programs link. A rule that is broken on purpose is changed here.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
#![expect(clippy::string_slice, reason = "every index comes from a search in the same text")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::tree::{assert_none, texts};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

mod circles;
mod words;

/// Which files of the root package may name a crate; a folder stands for all in it. The other crates of
/// the workspace name what their manifests list, and the compiler sees to that.
const CRATES: &[(&str, &[&str])] = &[
    ("anyhow", &["main.rs", "daemon.rs", "cli/"]),
    ("axum", &["api/"]),
    ("clap", &["main.rs", "cli/"]),
    ("clap_complete", &["cli/pages.rs"]),
    ("clap_mangen", &["cli/pages.rs"]),
    ("console", &["cli/"]),
    ("indicatif", &["main.rs", "cli/"]),
    ("signal_hook", &["signals.rs"]),
];

/// Which modules of the root package a module may use. The table in `src/lib.rs` orders them, and
/// every edge points down in it.
const EDGES: &[(&str, &[&str])] = &[
    ("cli", &["signals", "daemon", "api", "learn", "trust", "reflect", "merge"]),
    // The commands that a signal stands for are defined in the daemon.
    ("signals", &["daemon"]),
    ("daemon", &["api", "learn", "reflect"]),
    ("api", &["learn", "trust", "reflect"]),
    ("learn", &["trust", "reflect"]),
    ("trust", &["reflect"]),
    ("reflect", &[]),
    ("merge", &[]),
    ("socket_path", &[]),
    ("telemetry", &[]),
    ("paths", &[]),
];

/// Modules that every module may use: they hold no behaviour.
const COMMON: &[&str] = &["paths", "socket_path", "telemetry"];

/// Bindings whose names say `-sys` and that compile no library of another language.
const NOT_NATIVE: &[&str] = &["clang-sys", "inotify-sys", "linux-raw-sys", "windows-sys"];

/// All that some crates are built from with every feature, of the workspace and of bindings to libraries of
/// other languages (`-sys`), so that each can be built and read without the rest: the trainer without the
/// daemon, the database and the configuration without llama.cpp, files and protocol without any of them.
const BUILT_FROM: &[(&str, &[&str], &[&str])] = &[
    ("config", &["files", "inference", "jinja", "prompt", "protocol"], &[]),
    ("files", &[], &[]),
    ("protocol", &[], &[]),
    ("store", &["files", "inference", "jinja", "prompt"], &["libsqlite3-sys"]),
    (
        "trainer",
        &["files", "ggml", "inference", "jinja", "nano", "prompt", "protocol", "statistics"],
        &["bzip2-sys", "llama-cpp-sys-2", "torch-sys", "zstd-sys"],
    ),
];

/// The longest a file may be, so that it can be read in one sitting.
const MAX_LINES: usize = 800;

/// The Rust files below `src/` by their path there, each line without its comment.
fn sources() -> Vec<(String, Vec<String>)> {
    texts(&["rs"])
        .into_iter()
        .filter_map(|(path, text)| {
            let path = path.strip_prefix("src").ok()?.to_str().unwrap().to_owned();
            Some((path, text.lines().map(|line| without_comment(line).to_owned()).collect()))
        })
        .collect()
}

/// Cuts a line where a comment begins; a `//` inside a word (as in an address) is none.
fn without_comment(line: &str) -> &str {
    let starts = line.match_indices("//").map(|(at, _)| at);
    let comment = starts
        .into_iter()
        .find(|&at| line[..at].chars().all(char::is_whitespace) || line[..at].ends_with(' '));
    &line[..comment.unwrap_or(line.len())]
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Whether the line has this text between characters that are no part of a name.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
    })
}

/// Whether the line names a crate: `name::`, or `use name` alone.
fn names_crate(line: &str, name: &str) -> bool {
    let path = format!("{name}::");
    let used = line.trim().strip_prefix("use ").or(line.trim().strip_prefix("pub use "));
    line.match_indices(&path).any(|(at, _)| {
        let before = &line[..at];
        !before.ends_with(is_word) && !before.ends_with(':')
    }) || used
        .is_some_and(|rest| rest.trim_end_matches(';').split_whitespace().next() == Some(name))
}

/// The first names after `root::` (`crate::` or `reflectd::`), braces taken apart.
fn modules_named(text: &str, root: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(root) {
        if text[..at].ends_with(is_word) {
            continue;
        }
        let rest = &text[at + root.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(rest.chars().take_while(|&c| is_word(c)).collect());
            continue;
        };
        let mut depth = 1;
        let mut name = String::new();
        for character in group.chars() {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ if depth == 1 => name.push(character),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        found.extend(
            name.split(',').map(|part| part.trim().chars().take_while(|&c| is_word(c)).collect()),
        );
    }
    found.remove("");
    found
}

/// The module that a file below `src/` belongs to; `None` for `lib.rs` and `main.rs`.
fn module_of(path: &str) -> Option<&str> {
    if path == "lib.rs" || path == "main.rs" {
        return None;
    }
    path.split('/').next().map(|first| first.trim_end_matches(".rs"))
}

#[test]
fn foreign_crates_are_named_only_by_the_files_that_own_them() {
    let mut findings = Vec::new();
    for (path, lines) in sources() {
        for (name, owners) in CRATES {
            let owned = owners.iter().any(|owner| match owner.strip_suffix('/') {
                Some(folder) => path.starts_with(folder) && path[folder.len()..].starts_with('/'),
                None => path == *owner,
            });
            for (at, line) in lines.iter().enumerate() {
                if !owned && names_crate(line, name) {
                    findings
                        .push(format!("src/{path}:{}: names {name}; only {owners:?} may", at + 1));
                }
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let edges: BTreeMap<_, _> = EDGES.iter().copied().collect();
    let mut findings = Vec::new();
    for (path, lines) in sources() {
        let Some(module) = module_of(&path) else { continue };
        let Some(allowed) = edges.get(module) else {
            findings
                .push(format!("src/{path}: {module} is missing in EDGES of tests/tidy/main.rs"));
            continue;
        };
        for used in modules_named(&lines.join("\n"), "crate::") {
            let used = used.as_str();
            let is_allowed = used == module || allowed.contains(&used) || COMMON.contains(&used);
            if edges.contains_key(used) && !is_allowed {
                findings.push(format!("src/{path}: {module} may not use {used}"));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn the_code_map_in_lib_rs_lists_every_module_above_those_it_uses() {
    let lib = fs::read_to_string(Path::new(ROOT).join("src/lib.rs")).unwrap();
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | ")?.split('|').next());
    let order: Vec<&str> = rows
        .flat_map(|cell| cell.split("[`").skip(1))
        .filter_map(|part| part.split('`').next())
        .collect();
    let declared: BTreeSet<&str> = lib
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    assert_eq!(
        order.iter().copied().collect::<BTreeSet<_>>(),
        declared,
        "the table names each module"
    );
    let place = |module: &str| order.iter().position(|other| *other == module);
    let mut findings = Vec::new();
    for (module, used) in EDGES.iter().filter(|(module, _)| declared.contains(module)) {
        for below in used.iter().filter(|below| place(below) < place(module)) {
            findings.push(format!("src/lib.rs lists {below} above {module}, which may use it"));
        }
    }
    assert_none(&findings);
}

/// The crates that a package is built from, build scripts included and tests left out, without itself.
fn built_from(package: &str) -> BTreeSet<String> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["tree", "--offline", "--all-features", "--prefix", "none", "--format", "{p}"]);
    command.args(["--edges", "normal,build", "--package", package]).current_dir(ROOT);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree --package {package}: {error}");
    let lines = String::from_utf8(output.stdout).unwrap();
    // `name v1.2.3 (where from)`.
    let names = lines.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned);
    names.filter(|name| !name.is_empty() && name != package).collect()
}

#[test]
fn crates_are_built_from_no_more_than_they_need() {
    for (name, ours, native) in BUILT_FROM {
        let all = built_from(&format!("reflectd-{name}"));
        let found: Vec<_> = all.iter().filter_map(|it| it.strip_prefix("reflectd-")).collect();
        assert_eq!(found, *ours, "what {name} is built from");
        let is_native = |it: &&String| it.ends_with("-sys") || it.contains("-sys-");
        let found: Vec<_> =
            all.iter().filter(is_native).filter(|it| !NOT_NATIVE.contains(&it.as_str())).collect();
        assert_eq!(found, *native, "what of other languages {name} is built from");
    }
}

#[test]
fn the_programs_have_nothing_that_is_for_tests_alone() {
    for package in ["reflectd", "reflectd-trainer"] {
        let all = built_from(package);
        assert!(all.contains("reflectd-files"), "{package} is built from {all:?}");
        let advice = "testkit belongs to [dev-dependencies]";
        assert!(!all.contains("reflectd-testkit"), "{package}: {advice}");
    }
}

#[test]
fn no_file_is_in_two_modules() {
    let files = texts(&["rs"]).into_iter();
    let with = |text: &str| text.lines().any(|line| line.trim_start().starts_with("#[path"));
    let found = files.filter(|(_, text)| with(text));
    let found = found.map(|(path, _)| format!("{}: #[path]; make it a module", path.display()));
    assert_none(&found.collect::<Vec<_>>());
}

/// Who uses whom would no longer be seen by the check for circles.
#[test]
fn nothing_is_exported_by_a_glob() {
    let has_glob = |text: &str| {
        text.split(';').any(|statement| {
            let uses = statement.lines().map(without_comment).collect::<Vec<_>>().join(" ");
            let start = ["pub use ", "pub(crate) use ", "pub(super) use "];
            start.iter().filter_map(|it| uses.split_once(it)).any(|(_, what)| what.contains('*'))
        })
    };
    assert!(has_glob("pub(super) use left::*;") && has_glob("pub use {a::*, b::C}; // why"));
    assert!(!has_glob("use super::*;") && !has_glob("pub use a::B;\nlet c = *d;"));
    let files = texts(&["rs"]).into_iter();
    let found = files.filter(|(path, text)| !path.starts_with("tests/tidy") && has_glob(text));
    let found = found.map(|(path, _)| format!("{}: name what is exported", path.display()));
    assert_none(&found.collect::<Vec<_>>());
}

#[test]
fn every_rust_file_begins_with_its_header() {
    let missing = texts(&["rs"]).into_iter().filter(|(_, text)| !text.starts_with("//! "));
    assert_none(&missing.map(|(path, _)| path.display().to_string()).collect::<Vec<_>>());
}

#[test]
fn no_file_is_too_long_and_main_is_short() {
    let mut findings = Vec::new();
    for (path, text) in texts(&["rs", "sh", "py"]) {
        let limit = if path == Path::new("src/main.rs") { 60 } else { MAX_LINES };
        let n = text.lines().count();
        if limit < n {
            findings.push(format!("{}: {n} lines, {limit} are allowed", path.display()));
        }
    }
    assert_none(&findings);
}

/// `make test` looks for none, because that compiles for minutes.
#[test]
fn no_comment_has_an_example_that_nobody_would_run() {
    let mut findings = Vec::new();
    for (path, text) in texts(&["rs"]) {
        for (at, line) in text.lines().enumerate() {
            let comment = line.trim_start();
            let is_doc = comment.starts_with("///") || comment.starts_with("//!");
            if is_doc && comment.contains("```") {
                findings.push(format!("{}:{}: {}", path.display(), at + 1, line.trim()));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn work_left_to_do_names_its_issue() {
    let markers = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    let mut findings = Vec::new();
    for (path, text) in texts(&["rs", "sh", "py", "toml", "yaml"]) {
        for (at, line) in text.lines().enumerate() {
            let issue = |marker: &String| line.contains(&format!("{marker}(#"));
            if markers.iter().any(|marker| has_word(line, marker) && !issue(marker)) {
                findings.push(format!("{}:{}: {}", path.display(), at + 1, line.trim()));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn no_file_names_a_folder_of_somebodys_machine() {
    let folders = ["/home", "/root", "/work", "/Users"].map(|folder| format!("{folder}/"));
    let mut findings = Vec::new();
    let kinds = ["rs", "sh", "py", "toml", "yaml", "md", "json", "jsonl", "sql", "snap", "jinja"];
    for (path, text) in texts(&[&kinds[..], &["service", "socket", "timer"]].concat()) {
        for (at, line) in text.lines().enumerate() {
            if folders.iter().any(|folder| line.contains(folder)) {
                findings.push(format!("{}:{}: {}", path.display(), at + 1, line.trim()));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn every_dependency_has_its_reason_in_the_architecture() {
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let document = fs::read_to_string(Path::new(ROOT).join("docs/ARCHITECTURE.md")).unwrap();
    let mut in_dependencies = false;
    let mut findings = Vec::new();
    // Every crate that a member of the workspace uses stands in `[workspace.dependencies]`.
    for line in manifest.lines() {
        if line.starts_with('#') {
            continue;
        }
        if line.starts_with('[') {
            in_dependencies = line == "[workspace.dependencies]";
        } else if let Some((name, _)) = line.split_once(" = ")
            && in_dependencies
            && !line.contains("path = ")
            && !document.contains(&format!("`{name}`"))
        {
            findings.push(format!("docs/ARCHITECTURE.md does not say why `{name}` is there"));
        }
    }
    assert_none(&findings);
}

#[test]
fn the_shipped_configuration_has_no_problems_and_leaves_the_socket_to_its_rule() {
    let config = config::load(Path::new(ROOT)).unwrap_or_else(|error| panic!("{error}"));
    // One configuration is packaged for services of the system and of users.
    assert_eq!(config.server.socket, None, "src/socket_path.rs has the rule");
}

#[test]
fn the_trainers_package_asks_for_this_version_of_the_other() {
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let wanted = format!("reflectd (= {})", env!("CARGO_PKG_VERSION"));
    assert!(manifest.contains(&wanted), "Cargo.toml: the variant trainer depends on {wanted}");
}

/// The libraries that a program asks the loader for.
fn needed(program: &Path) -> Vec<String> {
    let output = Command::new("readelf").args(["--dynamic", "--wide"]).arg(program).output();
    let output = output.expect("readelf comes with the linker");
    assert!(output.status.success(), "readelf {}", program.display());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| line.contains("(NEEDED)"));
    lines
        .filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']').to_owned()))
        .collect()
}

#[test]
fn both_programs_find_their_libraries_where_they_were_built() {
    let daemon = env!("CARGO_BIN_EXE_reflectd");
    for program in [std::path::PathBuf::from(daemon), testkit::trainer(daemon)] {
        // Cargo sets it for tests; a person has none.
        let run = Command::new(&program).arg("--version").env_remove("LD_LIBRARY_PATH").output();
        let run = run.unwrap();
        let words = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{} --version: {words}", program.display());
    }
}

#[test]
fn the_daemon_does_not_link_libtorch() {
    let needed = needed(Path::new(env!("CARGO_BIN_EXE_reflectd")));
    assert!(needed.iter().any(|library| library.starts_with("libc.so")), "{needed:?}");
    assert!(!needed.iter().any(|library| library.contains("torch")), "{needed:?}");
}

#[test]
fn the_trainer_links_libtorch() {
    let needed = needed(&testkit::trainer(env!("CARGO_BIN_EXE_reflectd")));
    assert!(needed.iter().any(|library| library == "libtorch_cpu.so"), "{needed:?}");
}

#[test]
fn the_trainer_loads_one_openmp_runtime_and_has_of_llama_cpp_the_decoders_alone() {
    let program = testkit::trainer(env!("CARGO_BIN_EXE_reflectd"));
    let output = Command::new("ldd").arg(&program).output();
    let text = String::from_utf8(output.expect("ldd comes with the C library").stdout).unwrap();
    let count = |name: &str| text.lines().filter(|line| line.contains(name)).count();
    assert_eq!(count("gomp") + count("libomp") + count("libiomp"), 1, "{text}");
    let output = Command::new("nm").arg("--defined-only").arg(&program).output();
    let symbols = String::from_utf8(output.expect("nm comes with the linker").stdout).unwrap();
    let has = |name: &str| symbols.lines().any(|line| line.ends_with(&format!(" {name}")));
    // With the feature `portable` they are in a library beside the program.
    let is_beside = needed(&program).iter().any(|library| library.starts_with("libggml-base"));
    assert!(is_beside || has("ggml_get_type_traits"), "the decoders are linked");
    assert!(
        !has("llama_decode") && !has("ggml_backend_cpu_init"),
        "nothing computes with llama.cpp"
    );
}

#[test]
fn the_checks_see_what_they_look_for() {
    assert!(names_crate("    let db = rusqlite::Connection::open(path)?;", "rusqlite"));
    assert!(names_crate("use axum;", "axum"));
    assert!(!names_crate("sd_notify::notify(&[])", "notify"));
    assert!(!names_crate("self.notify.notified()", "notify"));
    assert_eq!(without_comment("let a = 1; // rusqlite::"), "let a = 1; ");
    assert_eq!(without_comment(r#"let a = "unix://x";"#), r#"let a = "unix://x";"#);
    assert!(has_word("unsafe { call() }", "unsafe"));
    assert!(!has_word("#[expect(unsafe_code)]", "unsafe"));
    let used =
        modules_named("use crate::{api::{self, error}, store};\ncrate::engine::Token", "crate::");
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["api", "engine", "store"]);
    assert_eq!(module_of("store/thread.rs"), Some("store"));
}
