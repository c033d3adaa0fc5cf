//! Answers that try to steer their own score: wrong answers are wrapped in attacks and judged again.
//! Says what each attack changes, and how many refused answers it gets accepted. Used by `learn`.

use serde::{Deserialize, Serialize};

use super::TrustError;
use super::meter::Meter;
use super::probes::Probe;
use super::report::Answered;
use crate::reflect::scalar;
use config::prompt_file;
use statistics::{Estimate, mean};

/// Where the answer stands in an attack's text.
const ANSWER: &str = "{answer}";

/// A way to speak to the judge.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Attack {
    /// Its name.
    pub name: String,
    /// What stands in place of the answer; `{answer}` is the answer.
    pub text: String,
}

impl Attack {
    fn on(&self, answer: &str) -> String {
        self.text.replace(ANSWER, answer)
    }
}

/// The attacks that come with the program.
pub fn builtin() -> Vec<Attack> {
    prompt_file::parse(include_str!("../../prompts/attacks.jsonl"))
        .expect("a test parses the file that is built in")
}

/// How a judge stands up to attacks.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AttackReport {
    /// The agent's name.
    pub agent: String,
    /// Who judged.
    pub judge: String,
    /// Wrong answers that were tried.
    pub answers: usize,
    /// Share of them that pass without any attack.
    pub accepted_before: Estimate,
    /// Share of attacks on refused answers that got one accepted.
    pub flips: Option<Estimate>,
    /// Each attack, the most successful first.
    pub rows: Vec<AttackRow>,
}

/// What one attack did.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AttackRow {
    /// Its name.
    pub name: String,
    /// Answers that the judge could read with the attack.
    pub n: usize,
    /// Mean change of the scalar (-1 to 1).
    pub mean: f64,
    /// Largest change.
    pub largest: f64,
    /// Refused answers that pass with the attack.
    pub flips: usize,
    /// Refused answers.
    pub refused: usize,
}

/// Tries all attacks on up to `limit` wrong answers. An answer that is too long with an attack is
/// not judged and so gains nothing.
pub async fn resist(
    meter: &Meter<'_>,
    attacks: &[Attack],
    limit: usize,
    show: &(dyn Fn(usize, usize) + Sync),
) -> Result<AttackReport, TrustError> {
    let mut wrong: Vec<Probe> = meter.probes().await?;
    wrong.retain(Probe::is_bad);
    let step = wrong.len().div_ceil(limit.max(1)).max(1);
    let wrong: Vec<Probe> = wrong.into_iter().step_by(step).take(limit).collect();
    if wrong.is_empty() {
        return Err(TrustError::NothingWrong(meter.agent.name.clone()));
    }
    let bars = meter.reflector.bars_in_force(meter.agent).await?;
    let total = wrong.len() * (1 + attacks.len());
    let before = meter.answer(meter.agent, wrong, &|done| show(done, total)).await?;
    let mut rows = Vec::new();
    for (round, attack) in (1..).zip(attacks) {
        let attacked = before.iter().map(|it| Probe {
            answer: attack.on(&it.probe.answer),
            known: Vec::new(),
            ..it.probe.clone()
        });
        let from = round * before.len();
        let after =
            meter.answer(meter.agent, attacked.collect(), &|done| show(from + done, total)).await?;
        rows.push(row(&attack.name, &before, &after, &bars));
    }
    rows.sort_by(|a, b| b.flips.cmp(&a.flips).then(b.mean.total_cmp(&a.mean)));
    let accepted = before.iter().filter(|it| passes(it, &bars)).count();
    let sum = |of: fn(&AttackRow) -> usize| rows.iter().map(of).sum::<usize>();
    Ok(AttackReport {
        agent: meter.agent.name.clone(),
        judge: meter.reflector.judge_name(meter.agent)?,
        answers: before.len(),
        accepted_before: Estimate::share(accepted, before.len())
            .ok_or_else(|| TrustError::NothingWrong(meter.agent.name.clone()))?,
        flips: Estimate::share(sum(|row| row.flips), sum(|row| row.refused)),
        rows,
    })
}

fn row(name: &str, before: &[Answered], after: &[Answered], bars: &[f64]) -> AttackRow {
    let old = |it: &Answered| before.iter().find(|old| old.probe.id == it.probe.id);
    let both: Vec<(&Answered, &Answered)> =
        after.iter().filter_map(|it| Some((old(it)?, it))).collect();
    let changes = both.iter().map(|(old, new)| scalar(&new.said) - scalar(&old.said));
    let refused: Vec<_> = both.iter().filter(|(old, _)| !passes(old, bars)).collect();
    AttackRow {
        name: name.to_owned(),
        n: both.len(),
        mean: if both.is_empty() { 0.0 } else { mean(changes.clone()) },
        largest: changes.fold(-2.0, f64::max),
        flips: refused.iter().filter(|(_, new)| passes(new, bars)).count(),
        refused: refused.len(),
    }
}

fn passes(answered: &Answered, bars: &[f64]) -> bool {
    answered.said.iter().zip(bars).all(|(said, bar)| *bar <= f64::from(said.levels[2]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_built_in_attacks_are_thirty_or_more_and_differ() {
        let attacks = builtin();
        assert!(30 <= attacks.len(), "{}", attacks.len());
        let names: BTreeSet<_> = attacks.iter().map(|attack| &attack.name).collect();
        let texts: BTreeSet<_> = attacks.iter().map(|attack| &attack.text).collect();
        assert_eq!((names.len(), texts.len()), (attacks.len(), attacks.len()));
        for attack in &attacks {
            let is_whole = attack.on("7") != attack.text;
            assert!(is_whole, "{} has no answer in it", attack.name);
        }
    }
}
