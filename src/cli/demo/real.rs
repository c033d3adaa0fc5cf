//! `reflectd demo --real`: a real chat model in one night, from an agent as its owner would write it. The
//! model is fetched once; examples, practice and what measures are commands to a home (`tasks::home`). The
//! first round learns from the examples, the second from what it practised. Used by `demo`.

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::daemon_process::DaemonProcess;
use super::measure;
use super::report::Report;
use super::scratch::Scratch;
use super::{Arguments, Course, Practice};
use crate::cli::init::sample;
use config::PromptLine;
use tasks::home::{Counts, Home, SYSTEM};

/// Examples, then practice.
const ROUNDS: u16 = 2;
/// The owner's agent.
const HOME: &str = "smart-home";
/// Answers what measures, so that no prompt of it is ever practised on.
const MEASURE: &str = "measure";
/// Problems that are shown with their answers.
const SHOWN: usize = 3;

pub(super) async fn demo(root: &Path, arguments: &Arguments) -> anyhow::Result<Report> {
    let model = sample::fetch()?;
    let began = Instant::now();
    let home = Home::new(Counts::FULL, arguments.seed);
    let scratch = Scratch::empty(arguments.dir.as_deref())?;
    write(&scratch, root, &model, &home)?;
    // With all problems of the agent, instead of the last words of a daemon that does not start.
    config::load(scratch.root())?;
    let daemon = DaemonProcess::start(&scratch).await?;
    let chats: Vec<PromptLine> = home.practice.iter().map(chat).collect();
    let parts =
        vec![("of known templates", home.known.len()), ("of unseen ones", home.unseen.len())];
    let problems = [home.known, home.unseen].concat();
    let course = Course {
        client: daemon.client(),
        measuring: MEASURE,
        problems: &problems,
        practice: &|number| {
            let chats = chats.clone().into();
            if number == 1 {
                let what = format!("{} examples, then gate and swap", home.examples.len());
                return Practice { what, explore: None, chats };
            }
            let what = format!("{} commands to practise on, then training", home.practice.len());
            let body = json!({ "agent": HOME, "stream": true });
            Practice { what, explore: Some(body), chats }
        },
    };
    let (measured, rounds, load) = course.run(&daemon, ROUNDS).await?;
    let judge = statistics::judge_quality(&measure::judged(daemon.client()).await?);
    daemon.stop().await?;
    let wall_s = began.elapsed().as_secs_f64();
    let problems = problems.into_iter().map(|problem| problem.prompt).collect();
    Ok(Report { problems, parts, shown: SHOWN, measured, rounds, judge, load, wall_s })
}

fn chat(item: &tasks::Item) -> PromptLine {
    let (id, prompt) = (item.id.clone(), item.prompt.clone());
    PromptLine::new(id, prompt)
}

/// The agent with its files, and beside it the agent that measures.
fn write(scratch: &Scratch, root: &Path, model: &Path, home: &Home) -> anyhow::Result<()> {
    let model = json!(model);
    scratch.copy(root, "prompts")?;
    scratch.write("reflectd.yaml", &format!("default_agent: {HOME}\n"))?;
    let owner = format!(
        "model: {model}\nsystem: {}\nsampling: {{ max_tokens: 48 }}\njudge: none\naspects: []\n\
         examples: agents/{HOME}/examples.jsonl\nexplore: {{ prompts: agents/{HOME}/practice.jsonl }}\n\
         held_out: agents/{HOME}/held-out.jsonl\n",
        json!(SYSTEM)
    );
    scratch.write(&format!("agents/{HOME}.yaml"), &owner)?;
    let measure = format!(
        "model: {model}\nsystem: {}\nsampling: {{ max_tokens: 48 }}\naspects: [readability]\n\
         reflection: {{ mode: off }}\nlearn: false\n",
        json!(SYSTEM)
    );
    scratch.write(&format!("agents/{MEASURE}.yaml"), &measure)?;
    for (name, text) in [
        ("examples", tasks::example_lines(&home.examples)),
        ("practice", tasks::prompt_lines(&home.practice)),
        ("held-out", tasks::prompt_lines(&home.gate)),
    ] {
        scratch.write(&format!("agents/{HOME}/{name}.jsonl"), &text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owners_agent_is_short_and_its_files_have_no_prompt_that_measures() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::empty(Some(&folder.path().join("scratch"))).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let home = Home::new(Counts::FULL, 1);
        write(&scratch, root, Path::new("model.gguf"), &home).unwrap();
        let read = |name: &str| std::fs::read_to_string(scratch.root().join(name)).unwrap();
        assert!(read(&format!("agents/{HOME}.yaml")).lines().count() <= 15);
        for name in ["examples", "practice", "held-out"] {
            let text = read(&format!("agents/{HOME}/{name}.jsonl"));
            assert!(home.known.iter().chain(&home.unseen).all(|item| {
                let prompt = json!(item.prompt).to_string();
                !text.contains(&format!("\"prompt\":{prompt}"))
            }));
        }
    }
}
