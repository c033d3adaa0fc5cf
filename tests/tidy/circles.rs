//! No circle between files: beside each other below one parent, modules (with all that lies in them)
//! use each other in one direction only, also where a parent re-exports what is used. What a module uses of
//! its parents, and parents of it, does not count: they are read together. Test modules do not count either.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::{is_word, without_comment};
use testkit::tree::{assert_none, texts};

/// A module's names from the root of its crate; empty for the root itself.
type Module = Vec<String>;

/// (crate folder, module, text without comments and test modules) of every source file.
fn sources() -> Vec<(String, Module, String)> {
    texts(&["rs"]).into_iter().filter_map(|(path, text)| source(&path, &text)).collect()
}

fn source(path: &Path, text: &str) -> Option<(String, Module, String)> {
    let names: Vec<String> =
        path.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let below = |folder: &str| names.iter().position(|name| name == folder);
    // Of programs for tests and benchmarks, the folder that has their `main.rs`.
    let program = || Some(below("tests").or_else(|| below("bench"))? + 1);
    let at = below("src").or_else(program).filter(|at| at + 1 < names.len())?;
    let mut module = names[at + 1..].to_vec();
    if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        module.pop();
    }
    if module.iter().any(|name| name == "tests") {
        return None;
    }
    let code: Vec<&str> = text
        .lines()
        .take_while(|line| {
            !line.starts_with("mod tests {") && !line.starts_with("pub(crate) mod tests {")
        })
        .map(without_comment)
        .collect();
    Some((names[..=at].join("/"), module, code.join("\n")))
}

/// Every path that begins with `crate::` or `super::`, braces taken apart, as names from the root.
fn paths(module: &[String], text: &str) -> BTreeSet<Module> {
    let mut found = BTreeSet::new();
    for (at, start) in text.match_indices("crate::").chain(text.match_indices("super::")) {
        if text[..at].ends_with(|c| is_word(c) || c == ':') {
            continue;
        }
        let mut base = if start == "crate::" { Vec::new() } else { parent(module) };
        let mut rest = &text[at + start.len()..];
        while let Some(after) = rest.strip_prefix("super::") {
            base.pop();
            rest = after;
        }
        expand(base, rest, &mut found);
    }
    found
}

fn parent(module: &[String]) -> Module {
    module[..module.len().saturating_sub(1)].to_vec()
}

/// Reads `a::{b, c::d}` behind `base`, up to where the path ends. Returns the rest of the text.
fn expand<'a>(base: Module, text: &'a str, found: &mut BTreeSet<Module>) -> &'a str {
    let mut path = base;
    let mut rest = text.trim_start();
    loop {
        if let Some(mut group) = rest.strip_prefix('{') {
            loop {
                group = expand(path.clone(), group, found).trim_start();
                match group.strip_prefix(',') {
                    Some(after) if !after.trim_start().starts_with('}') => group = after,
                    _ => break,
                }
            }
            let end = group.find('}').map_or(group.len(), |at| at + 1);
            return &group[end..];
        }
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() {
            break;
        }
        if name != "self" {
            path.push(name.to_owned());
        }
        match after.strip_prefix("::") {
            Some(next) => rest = next,
            None => {
                rest = after;
                break;
            }
        }
    }
    found.insert(path);
    // `name as other` ends at the comma.
    rest.find([',', '}', ';', '(']).map_or("", |at| &rest[at..])
}

/// What each file re-exports from modules below it: the path that others write, and where it leads. One step
/// is followed, and `as` is not.
fn exports(sources: &[(String, Module, String)]) -> BTreeMap<(&str, Module), Module> {
    let mut exports = BTreeMap::new();
    for (folder, module, text) in sources {
        for (at, start) in text.match_indices(" use ") {
            let before = text[..at].lines().next_back().unwrap_or_default().trim();
            if !before.starts_with("pub") {
                continue;
            }
            let mut found = BTreeSet::new();
            expand(module.clone(), &text[at + start.len()..], &mut found);
            for target in found {
                let Some(name) = target.last() else { continue };
                let written = [module.as_slice(), std::slice::from_ref(name)].concat();
                if written != target {
                    exports.insert((folder.as_str(), written), target);
                }
            }
        }
    }
    exports
}

/// For each parent module of a crate: which of its children use which.
fn edges(
    sources: &[(String, Module, String)],
) -> BTreeMap<(String, Module), BTreeMap<String, BTreeSet<String>>> {
    let known: BTreeSet<(&str, &[String])> =
        sources.iter().map(|(folder, module, _)| (folder.as_str(), module.as_slice())).collect();
    let exports = exports(sources);
    let mut edges: BTreeMap<_, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (folder, module, text) in sources {
        for path in paths(module, text) {
            let export = (0..=path.len())
                .rev()
                .find_map(|n| Some((exports.get(&(folder.as_str(), path[..n].to_vec()))?, n)));
            let path = match export {
                Some((target, n)) => [target.as_slice(), &path[n..]].concat(),
                None => path,
            };
            let target = (0..=path.len()).rev().map(|n| &path[..n]);
            let Some(target) =
                target.into_iter().find(|target| known.contains(&(folder.as_str(), *target)))
            else {
                continue;
            };
            let common = module.iter().zip(target).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (module.get(common), target.get(common)) {
                let parent = (folder.clone(), module[..common].to_vec());
                let children = edges.entry(parent).or_default();
                children.entry(from.clone()).or_default().insert(to.clone());
            }
        }
    }
    edges
}

/// Modules that reach each other, as sorted groups.
fn circles(edges: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<Vec<String>> {
    let reached = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut left = vec![from];
        while let Some(name) = left.pop() {
            for next in edges.get(name).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    left.push(next);
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&String, BTreeSet<String>> =
        edges.keys().map(|name| (name, reached(name))).collect();
    let group = |name: &String| -> Vec<String> {
        let others = reach[name].iter();
        others
            .filter(|other| reach.get(other).is_some_and(|back| back.contains(name)))
            .cloned()
            .collect()
    };
    edges.keys().map(group).filter(|group| group.len() > 1).collect()
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let sources = sources();
    assert!(sources.len() > 100, "only {} source files were found", sources.len());
    let mut findings = Vec::new();
    for ((folder, parent), children) in edges(&sources) {
        for circle in circles(&children) {
            findings.push(format!("{folder}: {}: {}", parent.join("::"), circle.join(" <-> ")));
        }
    }
    assert_none(&findings);
}

#[test]
fn the_check_sees_a_circle() {
    let file = |path: &str, text: &str| source(&PathBuf::from(path), text).unwrap();
    let sources = [
        file("src/a.rs", "use super::b::{self, deep::Thing as T};"),
        file("src/b/mod.rs", "fn f() {}"),
        file("src/b/deep.rs", "use crate::{x, a::Other};\nfn g() { super::f() }"),
        file("tests/e2e/main.rs", "mod a;"),
        file("tests/e2e/a.rs", "use crate::b::B;"),
        file("tests/e2e/b.rs", "use crate::a::A;"),
        file("src/x.rs", "// use crate::a;\nmod tests {\nuse crate::a;"),
        file("bench/it/main.rs", "mod a;\npub(crate) use b::{deep::B, other};"),
        file("bench/it/a.rs", "fn f() -> crate::B { todo() }"),
        file("bench/it/b.rs", "use crate::a::A;"),
    ];
    let edges = edges(&sources);
    let top = &edges[&("src".to_owned(), Vec::new())];
    assert_eq!(top["a"], BTreeSet::from(["b".to_owned()]));
    assert_eq!(top["b"], BTreeSet::from(["a".to_owned(), "x".to_owned()]));
    assert!(!top.contains_key("x"), "comments and tests do not count");
    for folder in ["src", "tests/e2e", "bench/it"] {
        let found = circles(&edges[&(folder.to_owned(), Vec::new())]);
        assert_eq!(found, BTreeSet::from([vec!["a".to_owned(), "b".to_owned()]]), "{folder}");
    }
}
