//! Links and anchors of all Markdown files, the order of the book, and the length of the README.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::{Document, ROOT, document, documents, files, parts};
use testkit::tree::assert_none;

/// The longest README that a newcomer reads to its end.
const README_WORDS: usize = 900;

/// The targets of the links in a text, with their lines.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in parts(text).0 {
        let line = without_code(line);
        for (at, _) in line.match_indices("](") {
            let rest = &line[at + 2..];
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            found.push((number, target.to_owned()));
        }
        // `[name]: target` defines a link.
        if let Some((name, target)) = line.trim_start().split_once("]: ")
            && name.starts_with('[')
            && !name.contains(']')
        {
            found.push((number, target.split(' ').next().unwrap_or_default().to_owned()));
        }
    }
    found
}

/// A line without what stands between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The anchors of a document's headings, as forges make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::<String, usize>::new();
    let mut found = BTreeSet::new();
    for (_, line) in parts(text).0 {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let slug: String = words_of_links(heading.trim())
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let times = seen.entry(slug.clone()).or_default();
        found.insert(if *times == 0 { slug } else { format!("{slug}-{times}") });
        *times += 1;
    }
    found
}

/// `[words](target)` as `words`.
fn words_of_links(text: &str) -> String {
    let mut words = text.to_owned();
    while let Some(at) = words.find("](") {
        let end = words[at..].find(')').map_or(words.len(), |end| at + end + 1);
        words.replace_range(at..end, "");
    }
    words.replace('[', "")
}

/// A path without `.` and `..`; `None` when it leaves the root.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !plain.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

/// What is wrong with the links of a document.
fn faults(from: &Document, all: &[Document]) -> Vec<String> {
    let is_there = |path: &Path| {
        all.iter().any(|other| other.path == path) || Path::new(ROOT).join(path).exists()
    };
    let mut faults = Vec::new();
    for (line, target) in targets(&from.text) {
        if ["http://", "https://", "mailto:"].iter().any(|scheme| target.starts_with(scheme)) {
            continue;
        }
        let (file, anchor) = target.split_once('#').map_or((&*target, None), |(f, a)| (f, Some(a)));
        let folder = from.path.parent().unwrap();
        let path =
            if file.is_empty() { Some(from.path.clone()) } else { plain(&folder.join(file)) };
        let fault = match (path, anchor) {
            (None, _) => "leads out of the project",
            (Some(path), _) if !is_there(&path) => "leads nowhere",
            (Some(_), None) => continue,
            (Some(path), Some(anchor)) => match all.iter().find(|other| other.path == path) {
                None => "has an anchor in a file that is not Markdown",
                Some(other) if !anchors(&other.text).contains(anchor) => "has an unknown anchor",
                Some(_) => continue,
            },
        };
        faults.push(format!("{}:{line}: the link {target:?} {fault}", from.path.display()));
    }
    faults
}

#[test]
fn every_link_and_anchor_leads_somewhere() {
    let all = documents();
    assert_none(&all.iter().flat_map(|document| faults(document, &all)).collect::<Vec<_>>());
}

#[test]
fn broken_links_and_anchors_are_found() {
    let text = "# One\n## Two `x`, three\n[a](b.md) `[c](d.md)` [e](#one) [f](#two-x-three)\n\
                [g](#four) [h](../../i) [j](https://k)\n```\n[l](m.md)\n```\n[n]: o.md\n";
    let document = Document { path: "docs/x.md".into(), text: text.to_owned() };
    let faults = faults(&document, std::slice::from_ref(&document));
    let named = |fault: &String| fault.split('"').nth(1).unwrap().to_owned();
    assert_eq!(
        faults.iter().map(named).collect::<Vec<_>>(),
        ["b.md", "#four", "../../i", "o.md"],
        "{faults:?}"
    );
}

#[test]
fn the_book_has_every_document_once() {
    let summary = document("docs/SUMMARY.md");
    let linked: Vec<PathBuf> = targets(&summary.text)
        .iter()
        .map(|(_, target)| plain(&Path::new("docs").join(target)).unwrap())
        .collect();
    let in_book = |path: &Path| path.starts_with("docs") && path != summary.path;
    let mut findings = Vec::new();
    for Document { path, .. } in documents().iter().filter(|document| in_book(&document.path)) {
        let times = linked.iter().filter(|other| *other == path).count();
        if times != 1 {
            findings.push(format!("docs/SUMMARY.md names {} {times} times", path.display()));
        }
    }
    assert_none(&findings);
}

#[test]
fn the_readme_is_short_and_names_both_commands() {
    let readme = document("README.md").text;
    let words = readme.split_whitespace().count();
    assert!(words <= README_WORDS, "README.md has {words} words, {README_WORDS} are allowed");
    assert!(readme.contains("make demo") && readme.contains("make test"));
}

#[test]
fn the_glossary_is_short() {
    let text = document("docs/ARCHITECTURE.md").text;
    let (_, glossary) = text.split_once("## Glossary").unwrap();
    let (glossary, _) = glossary.split_once("\n## ").unwrap();
    let words = glossary.lines().filter(|line| line.starts_with("| ")).count() - 1;
    assert!(words <= 25, "the glossary of docs/ARCHITECTURE.md has {words} words");
}

#[test]
fn documents_that_the_code_names_are_there() {
    let name = regex::Regex::new(r"docs/[A-Za-z0-9_./-]+\.md").unwrap();
    let mut findings = Vec::new();
    for Document { path, text } in files(&["rs", "sh", "py", "yaml", "toml", "md"]) {
        for found in
            name.find_iter(&text).filter(|found| !Path::new(ROOT).join(found.as_str()).exists())
        {
            // ggml's own document, and this test's examples.
            if found.as_str() != "docs/gguf.md" && !path.ends_with("docs/links.rs") {
                findings.push(format!("{} names {}", path.display(), found.as_str()));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn sources_that_documents_name_are_there() {
    let name = regex::Regex::new("`((?:src|crates|tests|bench)/[A-Za-z0-9_./-]+)`").unwrap();
    let mut findings = Vec::new();
    let mut n_found = 0;
    // The log links to files of older trees.
    for Document { path, text } in documents().iter().filter(|it| !it.path.ends_with("LOG.md")) {
        for found in name.captures_iter(text) {
            n_found += 1;
            if !Path::new(ROOT).join(&found[1]).exists() {
                findings.push(format!("{} names {}", path.display(), &found[1]));
            }
        }
    }
    assert_none(&findings);
    assert!(10 < n_found, "{n_found} sources are named: the pattern finds them no more");
}
