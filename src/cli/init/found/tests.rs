//! Tests of `found` on caches that are made up.

use super::*;
use files::gguf::{Value, Writer};
use std::os::unix::fs::symlink;

struct Model<'a> {
    metadata: Vec<(&'a str, Value)>,
    tensor: bool,
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn chat<'a>() -> Model<'a> {
    let metadata = vec![
        ("general.architecture", text("llama")),
        ("general.file_type", Value::Unsigned(15)),
        ("tokenizer.chat_template", text("{{ messages }}")),
    ];
    Model { metadata, tensor: true }
}

impl<'a> Model<'a> {
    fn with(mut self, key: &'a str, value: Value) -> Self {
        self.metadata.retain(|(other, _)| *other != key);
        self.metadata.push((key, value));
        self
    }
    fn without(mut self, key: &str) -> Self {
        self.metadata.retain(|(other, _)| *other != key);
        self
    }
    fn write(self, path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut writer = Writer::default();
        for (key, value) in self.metadata {
            writer.metadata(key, value);
        }
        if self.tensor {
            writer.tensor("token_embd.weight", &[4, 2], vec![0.0; 8]);
        }
        writer.write(path).unwrap();
    }
}

fn put(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let write = |out: &mut io::BufWriter<File>| io::Write::write_all(out, content.as_bytes());
    files::write_atomic(path, write).unwrap();
}

fn names(search: &Search) -> Vec<(Source, &str)> {
    search.models.iter().map(|found| (found.source, found.name.as_str())).collect()
}

fn digest(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn manifest(digit: char) -> String {
    let kind = "application/vnd.ollama.image";
    format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{0}","size":1}},"layers":[
            {{"mediaType":"{kind}.license","digest":"sha256:{1}","size":3}},
            {{"mediaType":"{kind}.model","digest":"sha256:{1}","size":3}}]}}"#,
        digest('f'),
        digest(digit)
    )
}

#[test]
fn ollama_names_its_blobs_in_manifests() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path();
    let blob = |digit| models.join("blobs").join(format!("sha256-{}", digest(digit)));
    for digit in ['a', 'b', 'c', 'd'] {
        chat().write(&blob(digit));
    }
    let named = |path: &str, json: &str| put(&models.join(path), json);
    named("manifests/registry.ollama.ai/library/qwen3/8b", &manifest('a'));
    // A second tag for the same weights, and a manifest without its blob.
    named("manifests/registry.ollama.ai/library/qwen3/latest", &manifest('a'));
    named("manifests/registry.ollama.ai/library/gone/latest", &manifest('e'));
    named("manifests/hf.co/someone/Model-GGUF/Q4_K_M", &manifest('b'));
    named("manifests/registry.ollama.ai/library/odd/latest", "{\"layers\": 3}");
    named(
        "manifests/registry.ollama.ai/library/up/latest",
        &manifest('a').replace(&digest('a'), "../../x"),
    );
    // Lists of manifests: one inside, one as a file of its own.
    let inside = format!("{{\"manifests\": [{}]}}", manifest('c'));
    named("manifests-v2/registry.ollama.ai/library/listed/1b", &inside);
    put(&blob('9'), &manifest('d'));
    let by_hash = format!("{{\"manifests\": [{{\"digest\": \"sha256:{}\"}}]}}", digest('9'));
    named("manifests-v2/registry.ollama.ai/library/hashed/1b", &by_hash);

    let search = search(&Locations { ollama: vec![models.to_owned()], ..Locations::default() });
    let expected = ["hashed:1b", "listed:1b", "hf.co/someone/Model-GGUF:Q4_K_M", "qwen3:8b"];
    assert_eq!(names(&search), expected.map(|name| (Source::Ollama, name)));
    assert_eq!(search.refused, []);
    let found = &search.models[3];
    assert_eq!((&found.path, found.quantization, found.n_parameters), (&blob('a'), "Q4_K_M", 8));
    assert_eq!(found.bytes, fs::metadata(blob('a')).unwrap().len());
}

#[test]
fn hugging_face_links_its_snapshots_to_blobs() {
    let folder = tempfile::tempdir().unwrap();
    let hub = folder.path();
    let repository = hub.join("models--org--Model-GGUF");
    let blob = |name: &str| repository.join("blobs").join(name);
    let snapshot = |revision: &str| repository.join("snapshots").join(revision);
    chat().write(&blob("1111"));
    let part = |number: u64, model: Model<'_>, blob: &Path| {
        let model = model.with("split.count", Value::Unsigned(2));
        model.with("split.no", Value::Unsigned(number)).write(blob);
    };
    part(0, chat(), &blob("2222"));
    let second = Model { metadata: Vec::new(), tensor: false };
    part(1, second, &blob("3333"));
    put(&blob("4444"), "GGUF");
    put(&blob("5555"), "# a card");
    for revision in ["aaaa", "bbbb"] {
        fs::create_dir_all(snapshot(revision).join("Q4")).unwrap();
        for (blob, file) in [
            ("../../../blobs/1111", "Q4/model.gguf"),
            ("../../blobs/2222", "big-00001-of-00002.gguf"),
            ("../../blobs/3333", "big-00002-of-00002.gguf"),
            ("../../blobs/4444", "cut.gguf"),
            ("../../blobs/5555", "README.md"),
            ("../../blobs/none", "dangling.gguf"),
        ] {
            symlink(blob, snapshot(revision).join(file)).unwrap();
        }
    }
    chat().write(&hub.join("datasets--org--data/snapshots/aaaa/data.gguf"));

    let locations = Locations { hugging_face: vec![hub.to_owned()], ..Locations::default() };
    let search = search(&locations);
    let expected = ["org/Model-GGUF model.gguf", "org/Model-GGUF big-00001-of-00002.gguf"];
    assert_eq!(names(&search), expected.map(|name| (Source::HuggingFace, name)));
    let split = &search.models[1];
    let size = |name: &str| fs::metadata(blob(name)).unwrap().len();
    assert_eq!(split.bytes, size("2222") + size("3333"), "both files of the model");
    assert_eq!(split.path, snapshot("aaaa").join("big-00001-of-00002.gguf"));
    let refused: Vec<_> = search.refused.iter().map(|(path, _)| file_name(path)).collect();
    assert_eq!(refused, ["cut.gguf"], "{:?}", search.refused);
}

#[test]
fn what_no_chat_can_be_had_with_is_not_offered() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path();
    let file = |name: &str| models.join("publisher/repository").join(name);
    chat().write(&file("chat.gguf"));
    chat().without("tokenizer.chat_template").write(&file("base.gguf"));
    chat().with("general.architecture", text("clip")).write(&file("mmproj-x.gguf"));
    chat().with("general.type", text("adapter")).write(&file("lora.gguf"));
    Model { tensor: false, ..chat() }.write(&file("vocabulary.gguf"));
    let first = chat().with("split.count", Value::Unsigned(2));
    first.with("split.no", Value::Unsigned(0)).write(&file("half-00001-of-00002.gguf"));
    put(&file("notes.gguf"), "GGML");
    // A link back up is no endless way.
    symlink(models, models.join("publisher/all")).unwrap();

    let locations = Locations { lm_studio: vec![models.to_owned()], ..Locations::default() };
    let search = search(&locations);
    assert_eq!(names(&search), [(Source::LmStudio, "publisher/repository/chat.gguf")]);
    let refused = search.refused.iter().map(|(path, reason)| (file_name(path), reason.as_str()));
    let refused: Vec<(String, &str)> = refused.collect();
    let expected = [
        ("base.gguf", "no chat template"),
        ("half-00001-of-00002.gguf", "part 2 of 2 is missing"),
        ("lora.gguf", "\"adapter\""),
        ("mmproj-x.gguf", "image part"),
        ("vocabulary.gguf", "without weights"),
    ];
    assert_eq!(refused.len(), expected.len(), "{refused:?}");
    for ((file, reason), (name, words)) in refused.iter().zip(expected) {
        assert!(file == name && reason.contains(words), "{file}: {reason}");
    }
}

#[test]
fn a_folder_is_searched_with_the_folders_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    chat().write(&here.join("a.bin"));
    chat().write(&here.join("models/b.gguf"));
    chat().write(&here.join("models/deep/c.gguf"));
    chat().write(&here.join(".hidden/d.gguf"));
    let search = search(&Locations { folders: vec![here.to_owned()], ..Locations::default() });
    assert_eq!(names(&search), [(Source::Folder, "a.bin"), (Source::Folder, "b.gguf")]);
}

#[test]
fn the_environment_says_where_the_caches_are() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let of = |set: &[(&str, &str)]| {
        let variable = |name: &str| {
            let value = set.iter().find(|(other, _)| *other == name)?.1;
            Some(OsString::from(value))
        };
        Locations::of(variable, Path::new("."), Path::new("."))
    };
    let home_is = ("HOME", home.to_str().unwrap());
    let usual = of(&[home_is]);
    assert_eq!(usual.ollama, [home.join(".ollama/models"), OLLAMA_SERVICE.into()]);
    let studio = [home.join(".lmstudio/models"), home.join(".cache/lm-studio/models")];
    assert_eq!(usual.lm_studio, studio);
    assert_eq!(usual.hugging_face, [home.join(".cache/huggingface/hub")]);
    assert_eq!(usual.sample, Some(home.join(".cache/reflectd").join(sample::FOLDER)));
    assert_eq!(usual.folders, [PathBuf::from(".")]);

    put(&home.join(".lmstudio-home-pointer"), "/elsewhere/studio\n");
    put(&home.join(".lmstudio/settings.json"), r#"{"downloadsFolder": "/disk/models", "x": 1}"#);
    let moved =
        of(&[home_is, ("OLLAMA_MODELS", "/o"), ("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]);
    assert_eq!(moved.ollama, [PathBuf::from("/o")]);
    let expected = ["/elsewhere/studio/models", "/disk/models"].map(PathBuf::from);
    assert_eq!(moved.lm_studio, [&expected[..], &studio[..]].concat());
    assert_eq!(moved.hugging_face, [PathBuf::from("/h/hub")]);
    assert_eq!(moved.sample, Some(Path::new("/x/reflectd").join(sample::FOLDER)));
    let hub = of(&[home_is, ("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]);
    assert_eq!(hub.hugging_face, [PathBuf::from("/c")]);
    let cache = of(&[home_is, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "")]);
    assert_eq!(cache.hugging_face, [PathBuf::from("/x/huggingface/hub")]);
    // A service may have no home.
    let homeless = of(&[]);
    assert_eq!((homeless.lm_studio, homeless.sample), (vec![], None));
}
