//! What the demo measures, all of it through the socket: greedy answers to held-out problems, and
//! how the judge agrees with the verifier. Used by `demo`.

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
    pub(super) fn n_right(&self) -> usize {
        self.answers.iter().filter(|answer| answer.is_right).count()
    }

    pub(super) fn share(&self) -> Share {
        Share::new(self.n_right(), self.answers.len()).expect("`held_out` asks at least one")
    }

    /// Problems that this generation solves and `other` does not.
    pub(super) fn solved_beyond(&self, other: &Self) -> usize {
        let pairs = self.answers.iter().zip(&other.answers);
        pairs.filter(|(own, other)| own.is_right && !other.is_right).count()
    }
}

/// Asks all problems; every answer must come from the same generation.
pub(super) async fn held_out(client: &Client, problems: &[PromptLine]) -> anyhow::Result<Measured> {
    ensure!(!problems.is_empty(), "there are no held-out problems to measure with");
    let progress = progress::counter("measuring", problems.len() as u64);
    let answers: Vec<(Generation, Answer)> = stream::iter(problems)
        .map(|problem| ask(client, problem))
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

async fn ask(client: &Client, problem: &PromptLine) -> anyhow::Result<(Generation, Answer)> {
    let verifier = problem.verifier.as_ref();
    let verifier = verifier.with_context(|| format!("problem {} has no verifier", problem.id))?;
    let check = Check::new(verifier).with_context(|| format!("problem {}", problem.id))?;
    let question =
        Question { temperature: Some(0.0), ..Question::new(&problem.prompt, Some(Mode::Off)) };
    let reply = converse(client, &question, |_| Ok(())).await?;
    let generation = reply.generation().context("a reply does not name one generation")?;
    let is_right = check.holds(&reply.text);
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
        assert_eq!((after.solved_beyond(&before), before.solved_beyond(&after)), (2, 1));
        assert_eq!((before.n_right(), after.n_right()), (2, 3));
    }
}
