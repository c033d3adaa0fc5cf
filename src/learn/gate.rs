//! Is the candidate adapter better than what is served? Pure statistics: answers in, verdict out;
//! the same evidence gives the same verdict. It must not ask the engine (that is `arena`).
//! Used by `run` and the demo.
//!
//! Each held-out prompt is answered by both, so everything is paired. An answer's score lies in 0
//! to 1: the verifier's word where the agent lets it count, else the judge's scalar. The mean gain
//! is tested by bets that may be looked at after every prompt (`bet`), so that asking stops when
//! the matter is clear. Promotion needs all of: a gain above the margin; where verifiers only
//! measure, what they say not worse (the judge must not lead away from the truth). Each is tested
//! at the full confidence: since all are needed, the chance of a wrong promotion is at most that
//! of one. Length, diversity and KL have to stay inside their bands where only a judge has scored:
//! they guard against a judge that is fooled, and do not overrule verifiers that show the gain. Parity,
//! the commonest answer, answers that are cut off and the general prompts count in any case.

mod bands;
mod parity;
mod power;

use serde::Serialize;

use self::bands::Bands;
pub use self::bands::{Commonest, CutOff};
pub use self::parity::Parity;
pub use self::power::Power;
use super::bet::{self, Bet};
use config::GateConfig;
use engine::Token;
use statistics::{binomial_at_least, mean};

/// Fewer prompts than this prove nothing: a handful says too little about length and diversity.
pub const MIN_PROMPTS: usize = 20;
/// Of the plans in a verdict.
const POWER: f64 = 0.8;

/// One answer to a held-out prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// The judge's scalar, -1 to 1.
    pub scalar: f64,
    /// Passes every aspect that counts.
    pub passes: bool,
    /// The verifier's word, where the prompt has one.
    pub verified: Option<bool>,
    /// It was cut off at the limit of tokens.
    pub is_cut: bool,
    /// The answer, with its end token unless it was cut off.
    pub tokens: Vec<Token>,
}

impl Answered {
    fn n_words(&self) -> usize {
        self.tokens.len().saturating_sub(usize::from(!self.is_cut))
    }
    /// Without the end token.
    fn words(&self) -> &[Token] {
        self.tokens.get(..self.n_words()).unwrap_or_default()
    }
}

/// Both answers to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The agent's `verifier_weight` is above 0: its word is the score. Otherwise it is measured
    /// and reported, and the verdict does not see it.
    pub verifier_decides: bool,
    /// A right answer, where one is known.
    pub reference: Option<String>,
    /// log p(active) - log p(candidate) of each token of the active one's answer.
    pub log_ratios: Vec<f64>,
    /// By what is served now.
    pub active: Answered,
    /// By the adapter that wants to be served.
    pub candidate: Answered,
}

/// All that a verdict rests on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// What trainer and server say that the adapter changes; `None`: there is no probe, because the
    /// adapter was made elsewhere.
    pub parity: Option<Parity>,
    /// One a prompt, in the order in which they were asked.
    pub comparisons: Vec<Comparison>,
    /// What could have been asked.
    pub available: Available,
    /// log p(base) - log p(candidate) of each token of the base's own answers to prompts that are not
    /// of the task, a list a prompt; empty: there are none, or the matter was decided without them.
    pub general: Vec<Vec<f64>>,
}

/// Prompts that a gate may ask: the tests pace themselves by their number.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Available {
    /// Held-out prompts.
    pub prompts: usize,
    /// Of these, prompts with a verifier.
    pub verified: usize,
    /// Of those, prompts with a verifier that does not decide.
    pub guarded: usize,
    /// Further held-out prompts, which no gate asks because of `gate.prompts`.
    pub beyond: usize,
}

/// Shares of right answers by a verifier that may or may not count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verified {
    /// Prompts with a verifier.
    pub prompts: usize,
    /// Share that the active generation has right.
    pub active: f64,
    /// Share that the candidate has right.
    pub candidate: f64,
    /// Lower bound of the change, at the gate's confidence.
    pub lower_bound: f64,
    /// The verifiers do not decide, but guard: the bound has to be above -`gate.truth_margin`.
    pub guards: bool,
    /// One-sided exact `McNemar` p for "the candidate is not better", as if the number of prompts
    /// had been fixed before.
    pub p: f64,
}

/// What the candidate makes of prompts that are not of the task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct General {
    /// Prompts.
    pub prompts: usize,
    /// Tokens of the base's answers to them.
    pub tokens: usize,
    /// Mean of log p(base) - log p(candidate) over these tokens, in nats.
    pub loss: f64,
    /// The loss is at most `gate.max_general_loss`.
    pub is_kept: bool,
}

/// How many prompts another run would need.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The probability of seeing the gain.
    pub power: f64,
    /// Prompts for the gain that was seen; `None`: there was none above the margin.
    pub prompts: Option<usize>,
    /// The gain that the prompts at hand would show.
    pub visible_gain: f64,
}

/// Why no more prompts were asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// All that had to be shown was shown.
    Clear,
    /// The rest would hardly have shown it.
    Hopeless,
    /// There are no more.
    AllAsked,
}

/// Yes or no, with all numbers. A number that could not be computed is `null` in JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Yes or no.
    pub promote: bool,
    /// Why, in one sentence.
    pub reason: String,
    /// Held-out prompts answered.
    pub prompts: usize,
    /// Held-out prompts that could have been asked.
    pub available: usize,
    /// Why no more were asked.
    pub stopped: Stopped,
    /// Prompts asked that were scored by their verifier; the rest by the judge.
    pub scored_by_verifier: usize,
    /// Mean score of the active generation.
    pub active: f64,
    /// Mean score of the candidate.
    pub candidate: f64,
    /// Mean gain.
    pub gain: f64,
    /// Standard deviation of the gains.
    pub sd: f64,
    /// The gain's one-sided lower bound, which holds whenever asking stops.
    pub lower_bound: f64,
    /// Of the bound.
    pub confidence: f64,
    /// What the bound has to be above.
    pub margin: f64,
    /// Prompts where only the candidate's answer is right.
    pub wins: usize,
    /// Prompts where only the active one's answer is right.
    pub losses: usize,
    /// One-sided exact `McNemar` p of wins against losses, as if the number of prompts had been
    /// fixed before.
    pub p: f64,
    /// What the verifiers say, whether or not they count.
    pub verified: Option<Verified>,
    /// The verifiers show a gain at the gate's confidence, so bands are reported for their prompts and
    /// do not reject.
    pub proven: bool,
    /// The judge's score rises and the verifiers show no gain: the judge may be fooled.
    pub gap_alarm: bool,
    /// The general set.
    pub general: Option<General>,
    /// How many prompts another run would need.
    pub plan: Plan,
    /// Mean answer length, candidate over active.
    pub length_ratio: f64,
    /// Distinct-2 of equally long beginnings of both answers, candidate over active.
    pub diversity_ratio: f64,
    /// Mean of log p(active) - log p(candidate) over the active one's answers, as far as the
    /// candidate's are as long.
    pub kl: f64,
    /// How common one and the same answer is.
    pub commonest: Commonest,
    /// How many answers are cut off.
    pub cut_off: CutOff,
    /// See [`Evidence::parity`].
    pub parity: Option<Parity>,
}

/// The held-out comparison under way: says when enough has been asked.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    n: usize,
    /// The mean gain is above the margin.
    gain: Bet,
    /// What verifiers say is above zero, whether or not they decide: then a gain is no judge's error.
    proof: Option<Bet>,
    truth: Option<Truth>,
}

/// What verifiers that do not decide have to say.
#[derive(Clone, Debug)]
struct Truth {
    /// It is not worse by more than the margin.
    not_worse: Bet,
    /// It is better. Decides nothing but the alarm; asked for, because a flat truth should not be
    /// told from a rising one by stopping early.
    better: Bet,
}

impl Trial {
    /// Before the first answer.
    pub(super) fn new(config: &GateConfig, available: Available) -> Self {
        let bet = |mean, horizon| Bet::new(mean, config.confidence, horizon);
        let Available { prompts, verified, guarded, beyond: _ } = available;
        Self {
            n: 0,
            gain: bet(config.margin, prompts),
            proof: (MIN_PROMPTS <= verified).then(|| bet(0.0, verified)),
            truth: (MIN_PROMPTS <= guarded).then(|| Truth {
                not_worse: bet(-config.truth_margin, guarded),
                better: bet(0.0, guarded),
            }),
        }
    }

    /// Takes one more comparison in.
    pub(super) fn observe(&mut self, both: &Comparison) {
        self.n += 1;
        self.gain.observe(gain(both));
        let Some(change) = truth(both) else { return };
        if let Some(proof) = &mut self.proof {
            proof.observe(change);
        }
        if let Some(bets) = self.truth.as_mut().filter(|_| !both.verifier_decides) {
            bets.not_worse.observe(change);
            bets.better.observe(change);
        }
    }

    /// Why no more need be asked; `None`: more must be.
    pub(super) fn stopped(&self) -> Option<Stopped> {
        let not_worse = self.truth.as_ref().map(|truth| &truth.not_worse);
        if self.n < MIN_PROMPTS {
            return None;
        }
        if self.gain.is_hopeless() || not_worse.is_some_and(Bet::is_hopeless) {
            return Some(Stopped::Hopeless);
        }
        let better = self.truth.as_ref().map(|truth| &truth.better);
        let is_settled = |bet: &Bet| bet.is_won() || bet.is_hopeless();
        let is_clear = self.gain.is_won()
            && not_worse.is_none_or(Bet::is_won)
            && better.is_none_or(is_settled)
            && self.proof.as_ref().is_none_or(is_settled);
        is_clear.then_some(Stopped::Clear)
    }

    /// The verifiers show the gain.
    fn is_proven(&self) -> bool {
        self.gain.is_won() && self.proof.as_ref().is_some_and(Bet::is_won)
    }

    /// The judge sees a gain that the verifiers do not see.
    fn gap(&self) -> bool {
        self.gain.is_won() && self.truth.as_ref().is_some_and(|truth| !truth.better.is_won())
    }
}

/// Weighs the evidence.
pub fn judge(evidence: &Evidence, config: &GateConfig) -> Verdict {
    let comparisons = &evidence.comparisons;
    let available = evidence.available;
    let mut trial = Trial::new(config, available);
    for both in comparisons {
        trial.observe(both);
    }
    let scores: Vec<(f64, f64)> = comparisons.iter().map(scores).collect();
    let gains: Vec<f64> = comparisons.iter().map(gain).collect();
    let gain = mean(gains.iter().copied());
    let sd = mean(gains.iter().map(|it| (it - gain).powi(2))).sqrt();
    let lower_bound = bet::lower_bound(&gains, config.confidence, available.prompts);
    let (wins, losses) = discordant(comparisons.iter().map(|both| {
        let decisive = |answer: &Answered| match answer.verified {
            Some(verified) if both.verifier_decides => verified,
            _ => answer.passes,
        };
        (decisive(&both.active), decisive(&both.candidate))
    }));
    let Bands { length_ratio, diversity_ratio, kl } =
        Bands::of(&comparisons.iter().collect::<Vec<_>>());
    let mut verdict = Verdict {
        promote: false,
        reason: String::new(),
        prompts: comparisons.len(),
        available: available.prompts,
        stopped: match trial.stopped() {
            Some(stopped) if comparisons.len() < available.prompts => stopped,
            _ => Stopped::AllAsked,
        },
        scored_by_verifier: comparisons.iter().filter(|both| by_verifier(both)).count(),
        active: mean(scores.iter().map(|(active, _)| *active)),
        candidate: mean(scores.iter().map(|(_, candidate)| *candidate)),
        gain,
        sd,
        lower_bound,
        confidence: config.confidence,
        margin: config.margin,
        wins,
        losses,
        p: mcnemar(wins, losses),
        verified: verified(comparisons, &trial, config, available),
        proven: trial.is_proven(),
        // Below a margin of 0 the test may be won without a gain.
        gap_alarm: trial.gap() && (0.0 <= config.margin || 0.0 < lower_bound),
        general: general(&evidence.general, config),
        plan: plan(gain, sd, config, available.prompts),
        length_ratio,
        diversity_ratio,
        kl,
        commonest: Commonest::of(comparisons),
        cut_off: CutOff::of(comparisons),
        parity: evidence.parity,
    };
    let (objections, reported) = objections(&verdict, &trial, evidence, config);
    verdict.promote = objections.is_empty();
    verdict.reason = if verdict.promote {
        format!(
            "the gain on {} of {} held-out prompts is {:+.3}, and at least {:+.3} with confidence {}",
            verdict.prompts,
            verdict.available,
            verdict.gain,
            verdict.lower_bound,
            verdict.confidence
        )
    } else {
        objections.join("; ")
    };
    if verdict.promote && !reported.is_empty() {
        verdict.reason += "; not held against it, because the verifiers show the gain: ";
        verdict.reason += &reported.join(", ");
    }
    if verdict.gap_alarm {
        verdict.reason += "; ALARM: the judge sees a gain that the verifiers do not see";
    }
    verdict
}

/// What speaks against the candidate, and what lies outside the bands without doing so.
fn objections(
    verdict: &Verdict,
    trial: &Trial,
    Evidence { comparisons, available, .. }: &Evidence,
    config: &GateConfig,
) -> (Vec<String>, Vec<String>) {
    if let Some(parity) = verdict.parity.filter(|parity| !parity.holds()) {
        return (vec![parity.objection()], Vec::new());
    }
    if verdict.prompts < MIN_PROMPTS {
        let too_few = format!(
            "{} held-out prompts prove nothing: give at least {MIN_PROMPTS}",
            verdict.prompts
        );
        return (vec![too_few], Vec::new());
    }
    let mut objections = Vec::new();
    if !trial.gain.is_won() {
        let more = unasked(available.prompts, available.beyond);
        let prompts = verdict.plan.prompts.map_or(String::new(), |prompts| {
            let more = more.filter(|_| available.prompts < prompts).unwrap_or_default();
            format!(" (to see it with probability {POWER}, {prompts} prompts are needed{more})")
        });
        objections.push(format!(
            "the gain on {} of {} held-out prompts is {:+.3}, but its lower bound {:+.3} is not \
             above gate.margin {}{prompts}",
            verdict.prompts, verdict.available, verdict.gain, verdict.lower_bound, config.margin
        ));
    }
    if let (Some(truth), Some(verified)) = (&trial.truth, &verdict.verified)
        && !truth.not_worse.is_won()
    {
        objections.push(format!(
            "the verifiers' change on {} prompts is {:+.3}, and its lower bound {:+.3} is not above \
             -gate.truth_margin {:+.3}",
            verified.prompts,
            verified.candidate - verified.active,
            verified.lower_bound,
            -config.truth_margin
        ));
    }
    if let Some(general) = &verdict.general
        && !general.is_kept
    {
        objections.push(format!(
            "on {} general prompts it loses {:.3} nats a token of the base's own answers, more than \
             gate.max_general_loss {}",
            general.prompts, general.loss, config.max_general_loss
        ));
    }
    objections.extend(verdict.commonest.objection());
    objections.extend(verdict.cut_off.objection());
    let by_judge = comparisons
        .iter()
        .filter(|both| !verdict.proven || truth(both).is_none())
        .collect::<Vec<_>>();
    let mut reported = Vec::new();
    if MIN_PROMPTS <= by_judge.len() {
        objections.extend(Bands::of(&by_judge).outside(config));
    } else {
        reported = Bands::of(&comparisons.iter().collect::<Vec<_>>()).outside(config);
    }
    let is_same = |both: &Comparison| both.active.tokens == both.candidate.tokens;
    if objections.is_empty() && comparisons.iter().all(is_same) {
        objections.push(format!(
            "it answers all {} held-out prompts word for word as the active one does, so there is \
             nothing to promote",
            verdict.prompts
        ));
    }
    (objections, reported)
}

fn by_verifier(both: &Comparison) -> bool {
    both.verifier_decides && both.active.verified.is_some() && both.candidate.verified.is_some()
}

/// (active, candidate), each 0 to 1, so that a gain means the same by verifier and by judge.
fn scores(both: &Comparison) -> (f64, f64) {
    let by_verifier = by_verifier(both);
    let score = |answer: &Answered| match answer.verified {
        Some(verified) if by_verifier => f64::from(u8::from(verified)),
        _ => f64::midpoint(answer.scalar, 1.0),
    };
    (score(&both.active), score(&both.candidate))
}

/// What the candidate adds to the score of one prompt, -1 to 1.
fn gain(both: &Comparison) -> f64 {
    let (active, candidate) = scores(both);
    candidate - active
}

/// What the candidate adds to the truth by a verifier, whether or not that decides.
fn truth(both: &Comparison) -> Option<f64> {
    let (active, candidate) = (both.active.verified?, both.candidate.verified?);
    Some(f64::from(u8::from(candidate)) - f64::from(u8::from(active)))
}

fn verified(
    comparisons: &[Comparison],
    trial: &Trial,
    config: &GateConfig,
    available: Available,
) -> Option<Verified> {
    let words: Vec<(bool, bool)> = comparisons
        .iter()
        .filter_map(|both| Some((both.active.verified?, both.candidate.verified?)))
        .collect();
    let number = |right: bool| f64::from(u8::from(right));
    let changes: Vec<f64> = words.iter().map(|&(a, c)| number(c) - number(a)).collect();
    let (wins, losses) = discordant(words.iter().copied());
    let horizon = if trial.truth.is_some() { available.guarded } else { available.prompts };
    (!words.is_empty()).then(|| Verified {
        prompts: words.len(),
        active: mean(words.iter().map(|&(active, _)| number(active))),
        candidate: mean(words.iter().map(|&(_, candidate)| number(candidate))),
        lower_bound: bet::lower_bound(&changes, config.confidence, horizon),
        guards: trial.truth.is_some(),
        p: mcnemar(wins, losses),
    })
}

fn general(log_ratios: &[Vec<f64>], config: &GateConfig) -> Option<General> {
    let tokens = log_ratios.iter().map(Vec::len).sum();
    let loss = mean(log_ratios.iter().flatten().copied());
    let is_kept = loss <= config.max_general_loss;
    (0 < tokens).then_some(General { prompts: log_ratios.len(), tokens, loss, is_kept })
}

fn plan(gain: f64, sd: f64, config: &GateConfig, available: usize) -> Plan {
    let z = bet::quantile(config.confidence) + bet::quantile(POWER);
    Plan {
        power: POWER,
        prompts: bet::needed(gain, config.margin, sd, config.confidence, POWER)
            .map(|prompts| prompts.max(MIN_PROMPTS)),
        visible_gain: config.margin + z * sd / (available as f64).sqrt(),
    }
}

/// Held-out prompts that a wished gain needs, and the standard deviation that this rests on: that of
/// right and wrong answers of which `discordant` is the share where only one side is right.
pub fn prompts_needed(
    gain: f64,
    margin: f64,
    discordant: f64,
    confidence: f64,
    power: f64,
) -> Option<usize> {
    bet::needed(gain, margin, bet::binary_sd(gain, discordant), confidence, power)
}

/// What to change where held-out prompts are there that no gate asks.
fn unasked(asked: usize, beyond: usize) -> Option<String> {
    let all = asked + beyond;
    (0 < beyond).then(|| format!("; of {all} that there are `learn.gate.prompts` asks {asked}"))
}

/// (only the candidate, only the active one).
fn discordant(outcomes: impl Iterator<Item = (bool, bool)>) -> (usize, usize) {
    outcomes.fold((0, 0), |(wins, losses), (active, candidate)| {
        (wins + usize::from(candidate && !active), losses + usize::from(active && !candidate))
    })
}

/// P(at least `wins` heads in `wins + losses` tosses of a fair coin).
pub(super) fn mcnemar(wins: usize, losses: usize) -> f64 {
    binomial_at_least(wins, wins + losses, 0.5)
}

#[cfg(test)]
mod tests;
