//! `reflectd nano`: the making of the embedded model, but for its training (`reflectd-trainer pretrain`): its prompt
//! files, its quantization, and the measurement of what the base model can do. Called by `cli::run`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use fastrand::Rng;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use super::progress;
use super::terminal::{print, print_json};
use config::{ProbeLine, load_prompts, prompt_file};
use engine::{
    self, Engine, EngineConfig, GenerateRequest, Generation, Piece, Priority, Sampling,
    ScoreRequest, TextPart, Token, Weights,
};
use nano::corpus::CHAT_TEMPLATE;
use nano::prompts::{problems, prompt_lines};
use nano::world::{ASPECTS, Answer, Habits, Problem, Split, judge};
use prompt::{AspectView, ChatTemplate, Message, PromptSet, Role};
use protocol::exit::Exit;
use statistics::{Judged, Share, judge_quality, mean};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print problems with their verifiers as JSON lines.
    Prompts {
        /// Which set; none shares template and numbers with another.
        #[arg(long, value_enum, default_value = "live")]
        split: Set,
        /// How many, all different.
        #[arg(long, default_value_t = 1000)]
        count: usize,
        /// Of the choice.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Print held-out problems with imperfect answers and what is right and wrong with each, as JSON
    /// lines of labelled answers: what the judge is measured on.
    Probes {
        /// Problems; each has two answers.
        #[arg(long, default_value_t = 300)]
        count: usize,
        /// Of the choice.
        #[arg(long, default_value_t = 11)]
        seed: u64,
        /// Prompts that are not asked: JSON lines, such as the held-out set of the gate.
        #[arg(long, value_name = "FILE")]
        except: Option<PathBuf>,
    },
    /// Quantize a GGUF to `Q8_0`.
    Quantize {
        /// The F32 GGUF.
        from: PathBuf,
        /// The new file.
        to: PathBuf,
    },
    /// Measure answers, judge and refinements of a base model on held-out problems.
    Measure {
        /// The GGUF.
        #[arg(default_value = "agents/nano/model.gguf")]
        model: PathBuf,
        /// The prompts that it was trained on.
        #[arg(long, default_value = "agents/nano/prompts.yaml")]
        prompts: PathBuf,
        /// Held-out problems.
        #[arg(long, default_value_t = 1000)]
        problems: usize,
        /// Of the samples.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

/// See [`Split`]; the training set is not offered.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Set {
    /// Problems of the owner's chats.
    Live,
    /// Measurements only.
    HeldOut,
}

pub(super) async fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Prompts { split, count, seed } => {
            let split = match split {
                Set::Live => Split::Live,
                Set::HeldOut => Split::HeldOut,
            };
            print(&prompt_file::render(&prompt_lines(split, count, seed)))?;
        }
        Command::Probes { count, seed, except } => {
            let asked = except.as_deref().map(prompt_file::read).transpose()?.unwrap_or_default();
            let asked = asked.into_iter().map(|line| line.prompt).collect();
            print(&prompt_file::render(&probe_lines(count, seed, &asked)))?;
        }
        Command::Quantize { from, to } => {
            engine::llama::quantize(&from, &to, engine::llama::Quantization::Q8_0)?;
        }
        Command::Measure { model, prompts, problems, seed } => {
            print_json(&measure(&model, &prompts, problems, seed).await?)?;
        }
    }
    Ok(Exit::Ok)
}

/// One answer by the teacher and one by somebody who errs in every way, to problems that nobody was
/// trained on and the gate does not ask.
fn probe_lines(count: usize, seed: u64, asked: &HashSet<String>) -> Vec<ProbeLine> {
    let mut rng = Rng::with_seed(seed);
    let mut seen = asked.clone();
    let mut lines = Vec::new();
    while lines.len() < 2 * count {
        let problem = Problem::sample(&mut rng, Split::HeldOut);
        if !seen.insert(problem.question.clone()) {
            continue;
        }
        for habits in [Habits::TEACHER, Habits::WILD] {
            let answer = Answer::imperfect(&problem, &habits, &mut rng);
            let levels = judge(&problem, &answer).levels.map(|level| level.cast_signed() - 2);
            let names = ASPECTS.map(str::to_owned);
            lines.push(ProbeLine {
                id: format!("{seed}-{}", lines.len()),
                prompt: problem.question.clone(),
                good: Some(problem.verify(&answer.text())),
                answer: answer.text(),
                reference: None,
                aspects: names.into_iter().zip(levels).collect(),
            });
        }
    }
    lines
}

/// Problems at once: enough to fill the engine's batch.
const PARALLEL: usize = 8;
/// Samples a problem, for pass@8.
const SAMPLES: u32 = 8;

/// What one problem showed.
#[derive(Debug)]
struct Trial {
    greedy: bool,
    samples: Vec<bool>,
    /// The judge's assessment of the first sample, at the usual threshold of one half.
    judged: Judged,
    /// The smallest p(+1) of its aspects: it is accepted wherever the threshold is not higher.
    lowest: f32,
    /// Whether the greedy revision of the first sample is right.
    refined: bool,
}

async fn measure(model: &Path, prompts: &Path, n: usize, seed: u64) -> anyhow::Result<Value> {
    let config = EngineConfig {
        context_tokens: 16384,
        max_sequences: 128,
        batch_tokens: 1024,
        threads: None,
        gpu_layers: None,
        queue: 64,
        ..EngineConfig::small(model)
    };
    let (engine, thread) = engine::spawn(&config).await?;
    let subject = Subject {
        template: ChatTemplate::new(Some(CHAT_TEMPLATE), &engine.info().bos, &engine.info().eos),
        prompts: load_prompts(prompts)?,
        engine,
    };
    let problems = problems(Split::HeldOut, n, seed);
    let progress = progress::counter("measuring", n as u64);
    let trials: Vec<Trial> = stream::iter(&problems)
        .map(|problem| subject.try_problem(problem, seed))
        .buffered(PARALLEL)
        .inspect(|_| progress.inc(1))
        .try_collect()
        .await?;
    progress.abandon();
    drop(subject);
    thread.join().map_err(|_| anyhow::anyhow!("the engine thread panicked"))?;
    Ok(summary(&trials))
}

fn summary(trials: &[Trial]) -> Value {
    let share = |of: Vec<bool>| {
        let successes = of.iter().filter(|&&success| success).count();
        Share::new(successes, of.len())
            .map(|s| json!({"value": s.value, "lo": s.lo, "hi": s.hi, "n": of.len()}))
    };
    let of_first = |right: bool, wanted: bool| {
        let of = trials.iter().filter(|trial| trial.judged.is_right == right);
        share(of.map(|trial| trial.refined == wanted).collect())
    };
    let at = |threshold: f32| {
        let judged =
            |trial: &Trial| Judged { is_accepted: trial.lowest >= threshold, ..trial.judged };
        let quality = judge_quality(&trials.iter().map(judged).collect::<Vec<_>>());
        json!({"pass": threshold, "auc": quality.auc, "false_accept": quality.false_accept, "false_reject": quality.false_reject})
    };
    let judge = [0.5, 0.6, 0.7, 0.8, 0.9].map(at);
    json!({
        "greedy": share(trials.iter().map(|trial| trial.greedy).collect()),
        "mean_at_8": share(trials.iter().flat_map(|trial| trial.samples.clone()).collect()),
        "pass_at_8": share(trials.iter().map(|trial| trial.samples.contains(&true)).collect()),
        "judge": judge,
        "repaired": of_first(false, true),
        "broken": of_first(true, false),
    })
}

/// The model under measurement.
struct Subject {
    engine: Engine,
    template: ChatTemplate,
    prompts: PromptSet,
}

impl Subject {
    async fn try_problem(&self, problem: &Problem, seed: u64) -> anyhow::Result<Trial> {
        let question = [Message { role: Role::User, content: problem.question.clone() }];
        let greedy = self.generate(&question, 1, 0.0, seed).await?;
        let samples = self.generate(&question, SAMPLES, 1.0, seed).await?;
        let first = &samples[0];
        let (score, lowest) = self.judge(problem, first).await?;
        let messages = self.prompts.critique(&problem.question, first, None, &[])?;
        let critique = self.generate(&messages, 1, 0.0, seed).await?;
        let messages = self.prompts.refine(&problem.question, first, &critique[0])?;
        let refined = self.generate(&messages, 1, 0.0, seed).await?;
        let samples: Vec<bool> = samples.iter().map(|text| problem.verify(text)).collect();
        Ok(Trial {
            greedy: problem.verify(&greedy[0]),
            judged: Judged { score, is_accepted: lowest >= 0.5, is_right: samples[0] },
            lowest,
            samples,
            refined: problem.verify(&refined[0]),
        })
    }
    /// (mean value, smallest p(+1) of the aspects).
    async fn judge(&self, problem: &Problem, answer: &str) -> anyhow::Result<(f64, f32)> {
        let blank = [const { String::new() }; 3];
        let mut prompts = Vec::new();
        for name in ASPECTS {
            let view = AspectView { name, description: "", levels: &blank };
            let messages = self.prompts.assess(&problem.question, answer, None, &view)?;
            prompts.push(self.tokens(&messages)?);
        }
        let labels = self.prompts.labels().iter().map(|label| {
            let part = TextPart { text: label.clone(), control: false };
            self.engine.vocabulary().tokenize(&[part])
        });
        let labels = labels.collect::<Vec<_>>().concat();
        let weights = Weights::Generation(Generation::BASE);
        let request = ScoreRequest { prompts, labels, weights, priority: Priority::Gate };
        let scores = self.engine.score(request).await?;
        let value = |p: &[f32]| f64::from(p[2]) - f64::from(p[0]);
        let mean = mean(scores.iter().map(|s| value(&s.probabilities)));
        Ok((mean, scores.iter().map(|s| s.probabilities[2]).fold(1.0, f32::min)))
    }
    async fn generate(
        &self,
        messages: &[Message],
        n: u32,
        temperature: f32,
        seed: u64,
    ) -> anyhow::Result<Vec<String>> {
        let sampling =
            Sampling { temperature, max_tokens: 96, seed: Some(seed), ..Sampling::default() };
        let request = GenerateRequest {
            prompt: self.tokens(messages)?,
            n,
            sampling,
            stop: Vec::new(),
            top_logprobs: 0,
            prediction: Vec::new(),
            weights: Weights::Generation(Generation::BASE),
            priority: Priority::Gate,
        };
        let mut started = self.engine.generate(request).await?;
        let mut texts = vec![String::new(); n as usize];
        while let Some(piece) = started.pieces.recv().await {
            match piece {
                Piece::Token(piece) => texts[piece.index as usize].push_str(&piece.text),
                Piece::Finished { index, text, .. } => texts[index as usize].push_str(&text),
                Piece::Failed(error) => return Err(error).context("generate"),
            }
        }
        Ok(texts)
    }
    fn tokens(&self, messages: &[Message]) -> anyhow::Result<Vec<Token>> {
        Ok(self.engine.vocabulary().tokenize(&self.template.render(messages)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_probes_are_what_the_command_makes_and_nobody_else_asks_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents/nano");
        let held_out = prompt_file::read(&folder.join("held-out.jsonl")).unwrap();
        let asked: HashSet<String> = held_out.into_iter().map(|line| line.prompt).collect();
        let shipped = prompt_file::read_probes(&folder.join("probes.jsonl")).unwrap();
        assert_eq!(shipped, probe_lines(300, 11, &asked));
        assert!(shipped.iter().all(|line| !asked.contains(&line.prompt)));
        let of = |name: &str, level: i8| {
            shipped.iter().filter(|line| line.aspects[name] == level).count()
        };
        for name in ASPECTS {
            assert!(30 <= of(name, 1) && 30 <= of(name, -1) + of(name, 0), "{name}");
        }
    }

    #[test]
    fn the_agent_asks_with_the_words_that_the_model_was_trained_on() {
        let file = testkit::repository().join("agents/nano/prompts.yaml");
        let (asked, trained) = (load_prompts(&file).unwrap(), nano::corpus::prompts());
        assert_eq!(asked.labels(), trained.labels());
        let levels = ["low", "middle", "high"].map(str::to_owned);
        let aspect = |name| AspectView { name, description: "Is it?", levels: &levels };
        for reference in [None, Some("7")] {
            let assess = |set: &PromptSet| set.assess("2 + 5?", "8", reference, &aspect("a"));
            assert_eq!(assess(&asked).unwrap(), assess(&trained).unwrap());
            let short = [aspect("a"), aspect("b")];
            let critique = |set: &PromptSet| set.critique("2 + 5?", "8", reference, &short);
            assert_eq!(critique(&asked).unwrap(), critique(&trained).unwrap());
        }
        let refine = |set: &PromptSet| set.refine("2 + 5?", "8", "The sum is wrong.");
        assert_eq!(refine(&asked).unwrap(), refine(&trained).unwrap());
    }
}
