//! The answer that waits for its reflection: drafts are held and judged, the best is critiqued and
//! refined while that helps, and what is chosen is stored and then sent. `budget` and `choose`
//! decide. Used by `run`.

use std::fmt::Write as _;

use tokio::sync::mpsc;
use tokio::time::Instant;

use config::Reflection;
use engine::{Priority, TokenPiece, Weights};

use super::assess::{Verification, passes, scalar};
use super::batch::Sample;
use super::budget::{Best, Next, Standing, Stop, next};
use super::choose::rank;
use super::judge::Judge;
use super::prepared::{Prepared, record};
use super::session::{Cut, Entry, Halt, Origin, Policy, Session};
use super::{Outcome, Progress, ReflectError, Reflector, Task};

pub(super) async fn run(
    reflector: &Reflector,
    task: &Task,
    prepared: Prepared,
    progress: &mpsc::Sender<Progress>,
) -> Result<Outcome, ReflectError> {
    let began = Instant::now();
    let agent = &*task.agent;
    let reference = task.reference.as_deref();
    let verification = Verification::new(agent, prepared.verifier.as_ref(), reference)?;
    let judge = Judge::new(reflector, agent, &prepared.messages, Priority::Inline)?
        .with(reference, verification);
    let policy = Policy {
        refine_temperature: agent.reflection.refine_temperature,
        weights: Weights::Active,
        priority: Priority::Inline,
        sampling: task.sampling,
        stop: &task.stop,
        top_logprobs: task.top_logprobs,
    };
    let session = Session {
        reflector,
        agent,
        judge,
        policy,
        cut: Cut { client: Some(progress), deadline: began.checked_add(agent.reflection.latency) },
        max_tokens: usize::try_from(agent.reflection.tokens).unwrap_or(usize::MAX),
        generated: 0,
        entries: Vec::new(),
        shots: Vec::new(),
    };
    let mut inline = Inline { session, progress, began, rounds: 0 };
    let stop = match inline.reflect(task, &prepared).await {
        Ok(stop) | Err(Halt::Stop(stop)) => stop,
        // It costs the reflection, not the answer: the drafts are there before anybody is asked.
        Err(Halt::Failed(error @ (ReflectError::Judge(_) | ReflectError::Command(_)))) => {
            tracing::warn!(%error, "An answer is served as far as it was judged.");
            Stop::NoJudge
        }
        Err(Halt::Failed(error)) => return Err(error),
    };
    inline.serve(task, prepared, stop).await
}

/// One task under way.
struct Inline<'a> {
    session: Session<'a>,
    progress: &'a mpsc::Sender<Progress>,
    began: Instant,
    rounds: u32,
}

impl Inline<'_> {
    /// Fills the session with judged candidates.
    async fn reflect(&mut self, task: &Task, prepared: &Prepared) -> Result<Stop, Halt> {
        let budget = &self.session.agent.reflection;
        let wanted = task.n.max(1);
        let prompt = prepared.prompt.clone();
        let batch = self.session.start_drafts(prompt, n_drafts(task, budget), wanted).await?;
        // One reply comes from one generation, also when another one is promoted meanwhile.
        self.session.policy.weights = Weights::Generation(batch.generation);
        let mut seed = batch.seed.wrapping_add(u64::from(batch.n));
        self.tell(Progress::Started {
            generation: batch.generation,
            seed: batch.seed,
            n_prompt: prepared.prompt.len(),
            n_cached: batch.n_cached,
        })
        .await?;
        self.session.draft(batch, wanted).await?;

        let mut refinements = 0;
        let mut best = None;
        let mut n_told = 0;
        loop {
            self.session.judge().await?;
            self.tell(Progress::Reasoning(scores(&self.session.entries, n_told))).await?;
            n_told = self.session.entries.len();
            let judged = self.session.judged();
            let leader = rank(&judged, budget.margin).first().copied();
            let verdict = leader.and_then(|leader| judged.get(leader)?.verdict);
            let standing = Standing {
                elapsed: self.began.elapsed(),
                tokens: self.session.generated,
                rounds: self.rounds,
                refinements,
                best: match verdict {
                    None => Best::Unjudged,
                    Some(verdict) if verdict.passes => Best::Passes,
                    Some(_) => Best::FallsShort,
                },
                gained: leader != best,
            };
            best = leader;
            let (n, parent) = match (next(budget, &standing), leader) {
                (Next::Stop(stop), _) => return Ok(stop),
                (Next::Refine(_), None) => return Ok(Stop::Budget),
                (Next::Refine(n), Some(parent)) => (n, parent),
            };
            let critique = self.session.critique(parent).await?;
            let said = format!("Critique of answer {}: {}\n", parent + 1, critique.text);
            self.tell(Progress::Reasoning(said)).await?;
            self.session.refine(parent, &critique, n, Some(seed)).await?;
            seed = seed.wrapping_add(u64::from(n));
            refinements += n;
            self.rounds += 1;
        }
    }

    /// Stores all candidates and sends the chosen ones; a client that has left gets none.
    async fn serve(
        self,
        task: &Task,
        mut prepared: Prepared,
        stop: Stop,
    ) -> Result<Outcome, ReflectError> {
        let Self { mut session, progress, rounds, .. } = self;
        prepared.aspect_choice = session.judge.choice.take();
        let mut served = rank(&session.judged(), session.agent.reflection.margin);
        let wanted = usize::try_from(task.n.max(1)).unwrap_or(usize::MAX);
        served.truncate(if stop == Stop::ClientLeft { 0 } else { wanted });
        let candidates = session.new_candidates();
        let n_candidates = candidates.len();
        let (exchange, stored) =
            record(session.reflector, task, prepared, candidates, served.first().copied()).await?;
        for (index, &entry) in (0..).zip(&served) {
            let Some(Entry { origin: Origin::Sampled(sample), .. }) = session.entries.get(entry)
            else {
                continue;
            };
            if send(progress, index, sample).await.is_err() {
                break;
            }
        }
        Ok(Outcome {
            exchange,
            served: served.iter().filter_map(|&entry| stored.get(entry).cloned()).collect(),
            n_candidates,
            generated_tokens: session.generated,
            rounds,
            stopped: stop.word(),
        })
    }

    async fn tell(&self, news: Progress) -> Result<(), Halt> {
        self.progress.send(news).await.map_err(|_| Halt::Stop(Stop::ClientLeft))
    }
}

/// Greedy drafts would all be the same, so no more are made than the client wants.
fn n_drafts(task: &Task, budget: &Reflection) -> u32 {
    let greedy = task.sampling.temperature <= 0.0;
    task.n.max(if greedy { 1 } else { budget.drafts }).max(1)
}

/// Sends a held answer as if it were sampled now.
async fn send(
    progress: &mpsc::Sender<Progress>,
    index: u32,
    sample: &Sample,
) -> Result<(), mpsc::error::SendError<Progress>> {
    for piece in &sample.pieces {
        progress.send(Progress::Token(TokenPiece { index, ..piece.clone() })).await?;
    }
    let (text, reason) = (sample.tail.clone(), sample.finish);
    progress.send(Progress::Finished { index, text, reason }).await
}

/// The scores of the entries from `first` on, one a line, for people.
fn scores(entries: &[Entry], first: usize) -> String {
    let mut lines = String::new();
    for (index, entry) in entries.iter().enumerate().skip(first) {
        let number = index + 1;
        let line = match &entry.revises {
            None => write!(lines, "Answer {number}: "),
            Some((parent, _)) => write!(lines, "Answer {number} (revises {}): ", parent + 1),
        };
        line.expect("writing to a string succeeds");
        if entry.assessments.is_empty() {
            lines.push_str("not judged\n");
            continue;
        }
        for rated in &entry.assessments {
            write!(lines, "{} {:+.2}", rated.aspect, rated.value())
                .expect("writing to a string succeeds");
            if let Some(reason) = &rated.reason {
                write!(lines, " ({reason})").expect("writing to a string succeeds");
            }
            lines.push_str(", ");
        }
        let verdict = if passes(&entry.assessments) { "passes" } else { "falls short" };
        writeln!(lines, "in all {:+.2}, {verdict}", scalar(&entry.assessments))
            .expect("writing to a string succeeds");
    }
    lines
}
