//! Tests of `write`.

use super::super::questions::Answers;
use super::*;
use config;

fn plan(root: &Path) -> Plan {
    let model = root.join("model.gguf");
    put(&model, "GGUF");
    Plan {
        name: "mine".into(),
        description: "A \"model\": #1\n{x} \u{1F642}".into(),
        model: "model.gguf".into(),
        context_tokens: 4096,
        model_context: 2048,
        max_tokens: 777,
        answers: Answers::default(),
    }
}

fn put(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    files::write_atomic(path, |file| file.write_all(text.as_bytes())).unwrap();
}

/// Everything below a folder with its content.
fn tree(folder: &Path) -> Vec<(PathBuf, Option<String>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).ok();
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.push((path, text));
        }
    }
    found.sort();
    found
}

#[test]
fn every_prompt_of_this_repository_is_built_in() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let yaml = tree(&root.join("prompts"))
        .into_iter()
        .filter_map(|(path, text)| (path.extension()? == "yaml").then_some((path, text?)));
    let mut built_in: Vec<(PathBuf, String)> =
        PROMPTS.iter().map(|(path, text)| (root.join(path), (*text).to_owned())).collect();
    built_in.sort();
    assert_eq!(yaml.collect::<Vec<_>>(), built_in);
}

#[test]
fn what_is_written_has_no_problems_and_says_what_the_plan_says() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let plan = plan(root);
    write(root, &files(&plan)).unwrap();
    let config = config::load(root).unwrap();
    let agent = &config.agents["mine"];
    assert_eq!((&agent.name, &agent.description), (&plan.name, &plan.description));
    assert_eq!(config.default_agent, "mine");
    assert_eq!(config.engine.model, fs::canonicalize(root).unwrap().join("model.gguf"));
    assert_eq!((config.engine.context_tokens, agent.sampling.max_tokens), (4096, 777));
    assert_eq!((agent.sampling.temperature, agent.sampling.top_p), (0.8, 0.95));
    assert_eq!(config.learn.optimizer, config::defaults().learn.optimizer);
    assert!(agent.learn && agent.system.is_none() && agent.examples.is_none());
    assert_eq!(agent.held_out, Some(config::HeldOut::Auto));
    assert!(config.learn.schedule.is_some());
}

#[test]
fn what_the_owner_says_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let examples = root.join("my examples.jsonl");
    put(&examples, "{\"prompt\":\"a\",\"answer\":\"b\"}\n");
    let system = "Say \"no\": #1\n{x}";
    let length = Some(Length { most: 50, unit: "words" });
    let answers = Answers {
        system: Some(system.into()),
        examples: Some(examples.clone()),
        length,
        hour: None,
    };
    write(root, &files(&Plan { answers, ..plan(root) })).unwrap();
    let config = config::load(root).unwrap();
    let agent = &config.agents["mine"];
    assert_eq!((agent.system.as_deref(), &agent.examples), (Some(system), &Some(examples)));
    assert!(config.learn.schedule.is_none());
    let verifier = format!("{:?}", agent.verifier);
    assert!(verifier.contains("Length") && verifier.contains("50"), "{verifier}");
}

/// YAML reads some bare words as booleans, nulls or numbers.
#[test]
fn an_agent_may_be_called_by_a_number() {
    for name in ["7", "1.5", "true", "null", "-"] {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan { name: name.into(), ..plan(folder.path()) };
        write(folder.path(), &files(&plan)).unwrap();
        assert_eq!(config::load(folder.path()).unwrap().default_agent, name);
    }
}

/// What the comments offer is allowed as it stands.
#[test]
fn what_is_commented_out_has_no_problems_either() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut files = files(&plan(root));
    let mut uncommented = 0;
    for (_, text) in files.iter_mut().filter(|(path, _)| !path.starts_with("prompts")) {
        let lines = text.lines().map(|line| {
            let rest = line.trim_start();
            let is_key = rest.strip_prefix('#').is_some_and(|it| !it.starts_with(' '));
            uncommented += usize::from(is_key);
            if is_key { line.replacen('#', "", 1) } else { line.to_owned() }
        });
        *text = lines.map(|line| line + "\n").collect();
    }
    assert_eq!(uncommented, 3, "system, examples and verifier");
    let agent = agent_yaml(&plan(root));
    let prompts: String = agent
        .lines()
        .filter_map(|line| Some(format!("{}\n", line.strip_prefix("#   ")?)))
        .collect();
    let (examples, held_out) = prompts.split_once('\n').unwrap();
    put(&root.join("agents/mine/examples.jsonl"), examples);
    put(&root.join("held-out.jsonl"), held_out);
    write(root, &files).unwrap();
    let config = config::load(root).unwrap();
    let agent = &config.agents["mine"];
    assert!(agent.verifier.is_some() && agent.system.is_some() && config.learn.schedule.is_some());
    let missing = super::super::missing(agent);
    assert!(missing[0].starts_with("prompts, of chats") && missing[0].contains("20 are set aside"));
    assert!(missing[1].starts_with("examples of right answers (9 more)"), "{missing:?}");
    let line = |i: usize| format!("{{\"prompt\":\"ask {i}\",\"answer\":\"yes\"}}\n");
    put(&root.join("agents/mine/examples.jsonl"), &(0..10).map(line).collect::<String>());
    assert_eq!(super::super::missing(agent).len(), 1, "the held-out prompts");
    let held_out = config::prompt_file::read(&root.join("held-out.jsonl")).unwrap();
    assert_eq!(held_out.len(), 2);
    assert!(held_out[0].verifier.is_some() && held_out[1].reference.is_some());
}

#[test]
fn a_new_root_appears_whole_with_the_folders_above_it() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(&plan(folder.path()));
    let root = folder.path().join("a/b/root");
    let written = write(&root, &files).unwrap();
    for (path, text) in &files {
        assert_eq!(&fs::read_to_string(root.join(path)).unwrap(), text);
    }
    let n_files = tree(&root).iter().filter(|(path, _)| path.is_file()).count();
    assert_eq!(n_files, files.len(), "no temporary file is left");
    written.undo().unwrap();
    assert_eq!(tree(folder.path()).len(), 1, "the model alone");
}

#[test]
fn nothing_is_written_over_or_beside_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let files = files(&plan(root));
    put(&root.join("reflectd.yaml"), "log_text: true\n");
    put(&root.join("agents/other.yaml"), "model: x\n");
    put(&root.join("prompts/aspects/factuality.yaml"), "description: mine\n");
    let before = tree(root);
    let error = refuse_configured(root).unwrap_err().to_string();
    assert!(error.contains("reflectd.yaml") && error.contains("other.yaml"), "{error}");
    assert!(error.contains("--root"), "{error}");
    let error = write(root, &files).unwrap_err().to_string();
    for name in ["reflectd.yaml", "prompts/aspects/factuality.yaml"] {
        assert!(error.contains(name), "{error}");
    }
    assert!(!error.contains("readability"), "only what is there: {error}");
    assert_eq!(tree(root), before);
    // A link to a file that does not exist is not overwritten either.
    fs::remove_file(root.join("reflectd.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("reflectd.yaml")).unwrap();
    let error = write(root, &files).unwrap_err().to_string();
    assert!(error.contains("reflectd.yaml"), "{error}");
    assert!(fs::symlink_metadata(root.join("reflectd.yaml")).unwrap().is_symlink());
}

#[test]
fn what_is_there_with_the_same_content_stays_and_is_not_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let files = files(&plan(root));
    let (path, text) = &files[2];
    put(&root.join(path), text);
    put(&root.join("agents/mine/notes.txt"), "mine");
    let before = tree(root);
    let written = write(root, &files).unwrap();
    config::load(root).unwrap();
    written.undo().unwrap();
    assert_eq!(tree(root), before);
}

/// A file stands where a folder has to be made, which the checks before writing do not find.
#[test]
fn a_failure_half_way_leaves_what_was_before() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut files = files(&plan(root));
    // The folder of the last file is a file.
    put(&root.join("zz"), "mine");
    files.push(("zz/last.yaml".into(), "x".into()));
    let before = tree(root);
    let error = format!("{:#}", write(root, &files).unwrap_err());
    assert!(error.contains("zz has appeared"), "{error}");
    assert_eq!(tree(root), before);
}
