//! Tests of `report`.

use super::super::found::Source;
use super::*;
use engine::llama::{MemoryShare, Stored, Survey};
use protocol::{BaseKind, BaseWay, Compute, PairLength, TrainingMemory, TrainingSpeed};

fn report(trainer: Trainer) -> Report {
    let host = MemoryShare {
        weights: 100 << 20,
        kv_cache: 300 << 20,
        available: 4 << 30,
        ..MemoryShare::default()
    };
    let survey = Survey {
        architecture: "llama".into(),
        name: None,
        n_parameters: 134_515_008,
        n_files: 1,
        quantization: vec![Stored { kind: "q4_1".into(), tensors: 1, bytes: 1 }],
        n_vocab: 1,
        chat_template: None,
        begin_and_end: [String::new(), String::new()],
        memory: Some(MemoryPlan { gpu_layers: 0, host, gpu: None, judge_refusal: None }),
        flash_attention: None,
        refusal: None,
    };
    Report {
        root: ".".into(),
        agent: "mine".into(),
        files: Vec::new(),
        context_tokens: 8192,
        model: Model { path: "x".into(), chat_template: "compiles".into(), servable: true, survey },
        trainer,
        is_busy: false,
        missing: vec!["a".into(), "b".into()],
        next: next("reflectd", &[("--root", Path::new("."))]),
    }
}

fn survey() -> TrainingSurvey {
    let pair = PairLength { prompt: 256, answer: 128 };
    let way = BaseWay {
        base: BaseKind::F32,
        base_bytes: 1 << 30,
        adapter_bytes: 0,
        pass_bytes: 1 << 30,
        fits: true,
        pass_tokens: 1,
        recompute: false,
    };
    let memory = TrainingMemory {
        available_bytes: 4 << 30,
        longest: pair,
        compute: Compute::F32,
        taken: BaseKind::F32,
        ways: vec![way],
    };
    let speed = TrainingSpeed {
        pair,
        base: BaseKind::F32,
        measured_blocks: 1,
        n_blocks: 1,
        measured_pair: pair,
        measured_pairs: 1,
        reference_s: 1.0,
        epoch_s: 1.0,
        tokens_per_second: 1.0,
    };
    TrainingSurvey {
        refusal: None,
        device: "cpu".into(),
        device_memory: None,
        threads: 2,
        memory: Some(memory),
        speed: Some(speed),
        speed_fault: None,
    }
}

fn asked(survey: Option<TrainingSurvey>, seconds: Option<f64>, fault: Option<&str>) -> Trainer {
    Trainer::Asked(Box::new(Training {
        trainable: survey.as_ref().map(|survey| survey.refusal.is_none()),
        fault: fault.map(str::to_owned),
        epochs: 3,
        seconds_per_1000_pairs: seconds,
        survey,
    }))
}

#[test]
fn five_lines_and_three_commands() {
    let text = report(asked(Some(survey()), Some(5400.0), None)).text();
    let expected = "\
serves       yes: llama, 135 million parameters, mostly q4_1
trains       yes: on the processor, 2 threads
memory       400 MiB to serve 8192 tokens of context, 4096 MiB free; 2048 MiB to train
1,000 pairs  90 min for 3 epochs, with prompts of 256 and answers of 128 tokens
missing      for learning: a; b

Next:
  reflectd check
  reflectd serve
  reflectd chat
";
    assert!(text.starts_with(expected), "{text}");
    let busy = asked(Some(survey()), Some(5400.0), None);
    let text = Report { is_busy: true, ..report(busy) }.text();
    assert!(text.contains("answers of 128 tokens; other programs keep"), "{text}");
}

#[test]
fn what_is_not_trained_has_the_trainers_own_reason() {
    let refusal = Some("a mixture of experts is not supported".to_owned());
    let refused = TrainingSurvey { refusal, memory: None, speed: None, ..survey() };
    let text = report(asked(Some(refused), None, None)).text();
    assert!(text.contains("no: a mixture of experts is not supported"), "{text}");
    assert!(text.contains("not measured: the model is not trained here"), "{text}");
    let text = report(asked(None, None, Some("it does not get done"))).text();
    assert!(text.contains("unknown, because of the trainer: it does not get done"), "{text}");
    assert!(text.contains("not measured: the trainer has not answered"), "{text}");
    let text = report(Trainer::NotInstalled { program: "/usr/bin/reflectd-trainer".into() }).text();
    assert!(text.contains("no: there is no /usr/bin/reflectd-trainer"), "{text}");
    assert!(
        text.contains("the package reflectd-trainer (93 MB packed, about 470 MB installed) adds"),
        "{text}"
    );
    assert!(!text.contains("to train"), "no memory for what is not there: {text}");
}

#[test]
fn commands_are_as_they_are_typed() {
    let root = Path::new("my folder/it's");
    let [check, _, chat] = next("target/release/reflectd", &[("--root", root)]);
    assert_eq!(check, r"target/release/reflectd check --root 'my folder/it'\''s'");
    assert_eq!(chat, r"target/release/reflectd chat --root 'my folder/it'\''s'");
    let places = [("--root", Path::new(".")), ("--state", Path::new("/s"))];
    assert_eq!(next("reflectd", &places)[1], "reflectd serve --state /s");
}

#[test]
fn a_list_has_a_line_a_model() {
    let found = |name: &str, bytes, n_parameters| Found {
        path: "x".into(),
        name: name.into(),
        source: Source::Ollama,
        bytes,
        n_parameters,
        quantization: "Q4_K_M",
    };
    let text = list(&[
        found("qwen3:8b", 5_200_000_000, 8_190_000_000),
        found("small", 98_362_432, 134_515_008),
    ]);
    let lines: Vec<Vec<&str>> = text.lines().map(|it| it.split_whitespace().collect()).collect();
    assert_eq!(lines[1], ["1", "qwen3:8b", "5.2", "GB", "8.2", "B", "Q4_K_M", "Ollama"]);
    assert_eq!(lines[2], ["2", "small", "99", "MB", "135", "M", "Q4_K_M", "Ollama"]);
}
