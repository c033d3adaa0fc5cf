//! What the demo measures, all of it through the socket: greedy answers to held-out problems, and
//! how the judge agrees with the verifier. Used by `demo`.

use std::ops::Range;

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::cli::client::Client;
use crate::cli::converse::{Question, converse};
use crate::cli::progress;
use crate::cli::reply::{Exchange, List};
use crate::reflect::verify::Check;
use crate::reflect::{passes, scalar};
use config::{Mode, PromptLine, VERIFIER};
use engine::Generation;
use statistics::{Judged, Share};

/// Requests at once: enough to fill the engine's batch.
const PARALLEL: usize = 16;
/// Exchanges a page; each has up to 30 candidates.
const PAGE: usize = 100;

/// How one generation answers the held-out problems.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) generation: Generation,
    /// In the order of the problems.
    pub(super) answers: Vec<Answer>,
}

/// One greedy answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) is_right: bool,
}

impl Measured {
    /// Of some of the problems.
    pub(super) fn share(&self, part: Range<usize>) -> Share {
        let answers = &self.answers[part];
        let n_right = answers.iter().filter(|answer| answer.is_right).count();
        Share::new(n_right, answers.len()).expect("a part has at least one problem")
    }

    /// Problems of a part that this generation solves and `other` does not.
    pub(super) fn solved_beyond(&self, other: &Self, part: Range<usize>) -> usize {
        let pairs = self.answers[part.clone()].iter().zip(&other.answers[part]);
        pairs.filter(|(own, other)| own.is_right && !other.is_right).count()
    }
}

/// A prompt, and what makes an answer to it right.
pub(super) trait Problem {
    fn prompt(&self) -> &str;
    fn holds(&self, answer: &str) -> anyhow::Result<bool>;
}

impl Problem for PromptLine {
    fn prompt(&self) -> &str {
        &self.prompt
    }

    fn holds(&self, answer: &str) -> anyhow::Result<bool> {
        let verifier = self.verifier.as_ref();
        let verifier = verifier.with_context(|| format!("problem {} has no verifier", self.id))?;
        let check = Check::new(verifier).with_context(|| format!("problem {}", self.id))?;
        Ok(check.holds(answer))
    }
}

impl Problem for tasks::Item {
    fn prompt(&self) -> &str {
        &self.prompt
    }

    /// By the task's own measure of the truth, not by the product's verifiers.
    fn holds(&self, answer: &str) -> anyhow::Result<bool> {
        Ok(self.truth.holds(answer))
    }
}

/// Asks an agent all problems; every answer must come from the same generation.
pub(super) async fn held_out(
    client: &Client,
    agent: &str,
    problems: &[impl Problem],
) -> anyhow::Result<Measured> {
    ensure!(!problems.is_empty(), "there are no held-out problems to measure with");
    let progress = progress::counter("measuring", problems.len() as u64);
    let answers: Vec<(Generation, Answer)> = stream::iter(problems)
        .map(|problem| ask(client, agent, problem))
        .buffered(PARALLEL)
        .inspect(|_| progress.inc(1))
        .try_collect()
        .await?;
    progress.abandon();
    let generation = answers[0].0;
    if let Some((other, _)) = answers.iter().find(|(other, _)| *other != generation) {
        bail!("the weights changed from {generation} to {other} while they were measured");
    }
    Ok(Measured { generation, answers: answers.into_iter().map(|(_, answer)| answer).collect() })
}

async fn ask(
    client: &Client,
    agent: &str,
    problem: &impl Problem,
) -> anyhow::Result<(Generation, Answer)> {
    let question = Question {
        model: agent.to_owned(),
        temperature: Some(0.0),
        ..Question::new(problem.prompt(), Some(Mode::Off))
    };
    let reply = converse(client, &question, |_| Ok(())).await?;
    let generation = reply.generation().context("a reply does not name one generation")?;
    let is_right = problem.holds(&reply.text)?;
    Ok((generation, Answer { text: reply.text, is_right }))
}

/// Every stored candidate that both the judge and a verifier have looked at.
pub(super) async fn judged(client: &Client) -> anyhow::Result<Vec<Judged>> {
    let mut judged = Vec::new();
    let mut path = format!("/v1/reflections?limit={PAGE}");
    loop {
        let page: List<Exchange> = client.get(&path).await?;
        let Some(oldest) = page.data.last() else { return Ok(judged) };
        path = format!("/v1/reflections?limit={PAGE}&before={}", oldest.id);
        judged.extend(page.data.iter().flat_map(known));
    }
}

/// The verifier has weight 0 in the embedded agent, so it has no part in the scalar or the veto.
fn known(exchange: &Exchange) -> impl Iterator<Item = Judged> {
    exchange.candidates.iter().filter_map(|candidate| {
        let assessments = &candidate.assessments;
        let verifier = assessments.iter().find(|assessment| assessment.aspect == VERIFIER)?;
        let has_judge = assessments.iter().any(|assessment| 0.0 < assessment.weight);
        has_judge.then(|| Judged {
            score: scalar(assessments),
            is_accepted: passes(assessments),
            is_right: verifier.passes,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(right: &[bool]) -> Measured {
        let answer = |&is_right| Answer { text: String::new(), is_right };
        Measured { generation: Generation(0), answers: right.iter().map(answer).collect() }
    }

    #[test]
    fn fixed_and_broken_problems_are_counted_apart() {
        let before = measured(&[true, false, false, true]);
        let after = measured(&[false, true, true, true]);
        assert_eq!(
            (after.solved_beyond(&before, 0..4), before.solved_beyond(&after, 0..4)),
            (2, 1)
        );
        assert_eq!(after.solved_beyond(&before, 2..4), 1, "of a part");
        assert_eq!((before.share(0..4).value, after.share(2..4).value), (0.5, 1.0));
    }
}
