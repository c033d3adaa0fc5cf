//! Scores to a choice of aspects and to assessments, assessments to one number and one verdict, and
//! the question as the judge sees it. Pure but for the programs that a verifier may ask; `judge` asks
//! for the scores. Used by the whole of
//! `reflect`, and by `learn` and `api` for [`scalar`] and [`passes`].

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use config::{Agent, AgentAspect, Pass, REWARD, RewardConfig, ScalarConfig, VERIFIER, Verifier};
use engine::LabelScores;
use prompt::{AspectView, Message, Role};
use store::{Assessment, ChosenAspects, JudgeThreshold, Relevance, Standard};

use super::verify::command::{CommandError, Programs, Question};
use super::verify::{self, Check, Finding, VerifierError};

/// What a judge has said of one aspect: the probabilities of its levels, and who said them.
#[derive(Clone, Debug)]
pub(super) struct Scored {
    pub(super) judge: String,
    pub(super) scores: LabelScores,
}

/// The one number of an answer, -1 to 1: the reward model's, where one has read it, else the
/// weighted mean of the aspects' values. Aspects of weight 0 do not count; 0 when none does.
pub fn scalar(assessments: &[Assessment]) -> f64 {
    if let Some(reward) = assessments.iter().find(|assessment| assessment.aspect == REWARD) {
        return reward.value();
    }
    let total: f64 = assessments.iter().map(|assessment| assessment.weight).sum();
    if total <= 0.0 {
        return 0.0;
    }
    assessments.iter().map(|assessment| assessment.weight * assessment.value()).sum::<f64>() / total
}

/// Veto: every aspect that counts (weight above 0) passes, and there is one.
pub fn passes(assessments: &[Assessment]) -> bool {
    let mut counting = assessments.iter().filter(|assessment| 0.0 < assessment.weight).peekable();
    counting.peek().is_some() && counting.all(|assessment| assessment.passes)
}

/// What the judge is told was asked: the user's words, or for a longer conversation a transcript.
/// The system text is no part of it.
pub fn question(messages: &[Message]) -> String {
    let turns: Vec<&Message> =
        messages.iter().filter(|message| message.role != Role::System).collect();
    if let [only] = turns.as_slice() {
        return only.content.clone();
    }
    let mut transcript = String::new();
    for turn in turns {
        let speaker = if turn.role == Role::Assistant { "Assistant" } else { "User" };
        if !transcript.is_empty() {
            transcript.push('\n');
        }
        write!(transcript, "{speaker}: {}", turn.content).expect("writing to a string succeeds");
    }
    transcript
}

/// The judge's identity: the frozen base of the served model.
pub(super) fn judge_name(model_sha256: &str) -> String {
    format!("generation 0 of {}", twelve(model_sha256))
}

/// What an aspect of this agent is judged by. The version names all that the judge is asked with:
/// scores of different versions are not compared.
pub(super) fn standard(agent: &Agent, rated: &AgentAspect, judge: &str) -> Standard {
    let asked = format!("{} {}", rated.aspect.version, agent.prompts.version());
    Standard {
        aspect: rated.aspect.name.clone(),
        judge: judge.to_owned(),
        rubric_version: twelve(&files::hex(&Sha256::digest(asked))),
    }
}

/// Where the bar of an aspect is, given what calibration has found for this standard.
pub(super) fn bar(pass: Pass, standard: &Standard, calibrated: &[JudgeThreshold]) -> f64 {
    match pass {
        Pass::Fixed(bar) => bar,
        Pass::Calibrated => calibrated
            .iter()
            .find(|bar| bar.standard == *standard)
            .map_or(Pass::UNCALIBRATED, |bar| bar.pass),
    }
}

/// One answer's scores, one for each of these aspects of the agent, as assessments. `judge`: as bars
/// name it, which leaves out the states of an endpoint.
pub(super) fn read_scores(
    agent: &Agent,
    aspects: &[AgentAspect],
    judge: &str,
    calibrated: &[JudgeThreshold],
    scored: &[Scored],
) -> Vec<Assessment> {
    aspects
        .iter()
        .zip(scored)
        .map(|(rated, scored)| {
            let levels = levels(scored);
            let standard = standard(agent, rated, judge);
            let passes = bar(rated.pass, &standard, calibrated) <= f64::from(levels[2]);
            let Standard { aspect, rubric_version, .. } = standard;
            let (judge, mass, weight) = (scored.judge.clone(), scored.scores.mass, rated.weight);
            let reason = None;
            Assessment { aspect, rubric_version, judge, levels, mass, weight, passes, reason }
        })
        .collect()
}

/// Of several readings of one answer the least favourable to it, aspect by aspect.
pub(super) fn worst(n_aspects: usize, readings: &[Scored]) -> Vec<Scored> {
    let value = |scored: &Scored| match scored.scores.probabilities.as_slice() {
        [low, .., high] => high - low,
        _ => 0.0,
    };
    (0..n_aspects)
        .filter_map(|aspect| {
            let of_aspect = readings.iter().skip(aspect).step_by(n_aspects);
            of_aspect.min_by(|a, b| value(a).total_cmp(&value(b))).cloned()
        })
        .collect()
}

fn levels(scored: &Scored) -> [f32; 3] {
    <[f32; 3]>::try_from(scored.scores.probabilities.as_slice())
        .expect("a judge answers each of the three labels")
}

/// The `k` aspects that matter most, the earlier of equals; in the agent's order.
pub(super) fn choose(aspects: &[AgentAspect], scored: &[Scored], k: usize) -> ChosenAspects {
    let relevance: Vec<Relevance> = aspects
        .iter()
        .zip(scored)
        .map(|(rated, scored)| {
            let [low, _, high] = levels(scored);
            let value = f64::from(high) - f64::from(low);
            Relevance { aspect: rated.aspect.name.clone(), value, mass: scored.scores.mass }
        })
        .collect();
    let mut order: Vec<usize> = (0..relevance.len()).collect();
    order.sort_by(|&a, &b| relevance[b].value.total_cmp(&relevance[a].value));
    order.truncate(k);
    order.sort_unstable();
    ChosenAspects {
        judge: scored.first().map(|scored| scored.judge.clone()).unwrap_or_default(),
        chosen: order.into_iter().map(|index| relevance[index].aspect.clone()).collect(),
        relevance,
    }
}

/// A reward model's number as an assessment of weight 0, which no veto sees: p(+1) is the logistic
/// function of `(reward - center) / scale`, so that the value is `tanh` of half of it, and the
/// reward is `center + scale * ln(p(+1) / p(-1))`.
pub(super) fn reward(config: &RewardConfig, judge: &str, reward: f64) -> Assessment {
    let logit = (reward - config.center) / config.scale;
    #[expect(clippy::cast_possible_truncation, reason = "a probability needs no more than an f32")]
    let logistic = |x: f64| (1.0 / (1.0 + (-x).exp())) as f32;
    // Each on its own: 1 - p would lose the small one's digits.
    let levels = [logistic(-logit), 0.0, logistic(logit)];
    Assessment {
        aspect: REWARD.to_owned(),
        rubric_version: format!("center {} scale {}", config.center, config.scale),
        judge: judge.to_owned(),
        levels,
        mass: 1.0,
        weight: 0.0,
        passes: levels[0] <= levels[2],
        reason: None,
    }
}

/// What a reward model says counts where nothing else could pass the answer or refuse it.
pub(super) fn weigh_reward(said: &mut [Assessment]) {
    let decides = said.iter().all(|it| it.aspect == REWARD || it.weight <= 0.0);
    for reward in said.iter_mut().filter(|it| it.aspect == REWARD) {
        reward.weight = if decides { 1.0 } else { 0.0 };
    }
}

/// A verifier of this agent's answers with what its assessments say of it.
#[derive(Debug)]
pub(super) struct Verification {
    by: By,
    judge: String,
    version: String,
    weight: f64,
}

/// What decides on answers to a prompt without a judge.
#[derive(Clone, Copy, Debug)]
enum Truth<'a> {
    Verifier(&'a Verifier),
    /// It must equal this, because nothing else decides.
    Reference(&'a str),
}

impl<'a> Truth<'a> {
    /// The prompt's verifier, or the agent's when the prompt has none. Without either, and without an
    /// aspect that could be judged, the reference.
    fn of(
        agent: &'a Agent,
        verifier: Option<&'a Verifier>,
        reference: Option<&'a str>,
    ) -> Option<Self> {
        match verifier.or(agent.verifier.as_ref()) {
            Some(verifier) => Some(Self::Verifier(verifier)),
            None if agent.is_judged() => None,
            None => reference.map(Self::Reference),
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Verifier(verifier) => verifier.kind(),
            Self::Reference(_) => "reference",
        }
    }

    /// What it says under another version may be another thing. A verifier's kind is part of it.
    fn version(self) -> String {
        let text = match self {
            Self::Verifier(verifier) => {
                serde_json::to_string(verifier).expect("a verifier is plain data")
            }
            Self::Reference(reference) => reference.to_owned(),
        };
        twelve(&files::hex(&Sha256::digest(text)))
    }
}

/// Whether a program decides on answers to a prompt: its verifier, the agent's, or where no aspect counts
/// the comparison with its reference.
pub fn is_checked(agent: &Agent, verifier: Option<&Verifier>, reference: Option<&str>) -> bool {
    Truth::of(agent, verifier, reference).is_some()
}

/// The version of that, as the assessments of a [`VERIFIER`] have it.
pub fn check_version(
    agent: &Agent,
    verifier: Option<&Verifier>,
    reference: Option<&str>,
) -> Option<String> {
    Truth::of(agent, verifier, reference).map(Truth::version)
}

/// Whether anything says which answers to a prompt are good: a program, a judge or a reward model.
pub fn is_judgeable(agent: &Agent, verifier: Option<&Verifier>, reference: Option<&str>) -> bool {
    let has_reward = matches!(agent.scalar, ScalarConfig::Reward(_));
    agent.is_judged() || has_reward || is_checked(agent, verifier, reference)
}

/// What an answer is checked by.
#[derive(Debug)]
enum By {
    Check(Check),
    /// It must equal this, because nothing else decides.
    Reference(String),
}

impl Verification {
    /// Compiles what decides on answers to a prompt, if anything does.
    pub(super) fn new(
        agent: &Agent,
        verifier: Option<&Verifier>,
        reference: Option<&str>,
    ) -> Result<Option<Self>, VerifierError> {
        let Some(truth) = Truth::of(agent, verifier, reference) else { return Ok(None) };
        Ok(Some(Self {
            by: match truth {
                Truth::Verifier(verifier) => By::Check(Check::new(verifier)?),
                Truth::Reference(reference) => By::Reference(reference.to_owned()),
            },
            judge: format!("{VERIFIER}:{}", truth.kind()),
            version: truth.version(),
            weight: agent.reflection.verifier_weight,
        }))
    }

    /// One more aspect, and one of weight 0 for each part of an `all`.
    pub(super) async fn assess(
        &self,
        programs: &Programs,
        question: Question<'_>,
    ) -> Result<Vec<Assessment>, CommandError> {
        let finding = match &self.by {
            By::Check(check) => {
                let mut said = Vec::new();
                for command in check.commands() {
                    said.push(programs.ask(command, question).await?);
                }
                check.check(question.answer, &said)
            }
            By::Reference(reference) => verify::against_reference(reference, question.answer),
        };
        Ok(self.of(&finding))
    }

    /// The same where no program has to be asked; `None`: one has to be.
    pub(super) fn assess_by_itself(&self, answer: &str) -> Option<Vec<Assessment>> {
        let finding = match &self.by {
            By::Check(check) if check.commands().is_empty() => check.check(answer, &[]),
            By::Check(_) => return None,
            By::Reference(reference) => verify::against_reference(reference, answer),
        };
        Some(self.of(&finding))
    }

    fn of(&self, finding: &Finding) -> Vec<Assessment> {
        let parts = finding.parts.iter().map(|part| Assessment {
            judge: format!("{VERIFIER}:{}", part.kind),
            weight: 0.0,
            ..self.assessment(format!("{VERIFIER}.{}", part.name), &part.finding)
        });
        let whole = self.assessment(VERIFIER.to_owned(), finding);
        std::iter::once(whole).chain(parts).collect()
    }

    fn assessment(&self, aspect: String, finding: &Finding) -> Assessment {
        #[expect(clippy::cast_possible_truncation, reason = "a score needs no more than an f32")]
        let score = finding.score as f32;
        Assessment {
            aspect,
            rubric_version: self.version.clone(),
            judge: self.judge.clone(),
            levels: [1.0 - score, 0.0, score],
            mass: 1.0,
            weight: self.weight,
            passes: finding.passes,
            reason: finding.reason.clone(),
        }
    }
}

/// Why a verifier that counts refuses an answer.
pub fn refusal(assessments: &[Assessment]) -> Option<&str> {
    let refuses = |it: &&Assessment| it.aspect == VERIFIER && 0.0 < it.weight && !it.passes;
    let refused = assessments.iter().find(refuses)?;
    Some(refused.reason.as_deref().unwrap_or("does not pass the check"))
}

/// What a reference that equals the answer says of an aspect that asks whether it is right. The name
/// after the judge's is told apart from its own word.
pub(super) fn by_reference(agent: &Agent, rated: &AgentAspect, judge: &str) -> Assessment {
    let Standard { aspect, rubric_version, .. } = standard(agent, rated, judge);
    Assessment {
        aspect,
        rubric_version,
        judge: format!("{judge}{}", config::BY_REFERENCE),
        levels: [0.0, 0.0, 1.0],
        mass: 1.0,
        weight: rated.weight,
        passes: true,
        reason: None,
    }
}

/// The aspects that a critique is asked about: those that count and do not pass.
pub(super) fn shortfalls<'a>(
    aspects: &'a [AgentAspect],
    assessments: &[Assessment],
) -> Vec<AspectView<'a>> {
    let falls_short = |name: &str| {
        assessments.iter().any(|rated| rated.aspect == name && 0.0 < rated.weight && !rated.passes)
    };
    aspects.iter().map(view).filter(|aspect| falls_short(aspect.name)).collect()
}

/// What the templates may show of an aspect.
pub(super) fn view(rated: &AgentAspect) -> AspectView<'_> {
    let aspect = &rated.aspect;
    AspectView { name: &aspect.name, description: &aspect.description, levels: &aspect.levels }
}

/// What of a hash is shown.
pub(super) fn twelve(hash: &str) -> String {
    hash.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assessment(levels: [f32; 3], weight: f64, passes: bool) -> Assessment {
        Assessment {
            aspect: "clarity".into(),
            rubric_version: "1".into(),
            judge: "generation 0 of abc".into(),
            levels,
            mass: 1.0,
            weight,
            passes,
            reason: None,
        }
    }

    fn message(role: Role, content: &str) -> Message {
        Message { role, content: content.into() }
    }

    #[test]
    fn the_scalar_is_the_weighted_mean_of_what_counts() {
        let good = assessment([0.0, 0.0, 1.0], 3.0, true);
        let bad = assessment([1.0, 0.0, 0.0], 1.0, false);
        let measured = assessment([1.0, 0.0, 0.0], 0.0, false);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(scalar(&[good.clone(), bad.clone(), measured.clone()]), 0.5));
        assert!(close(scalar(&[assessment([0.25, 0.25, 0.5], 1.0, false)]), 0.25));
        assert!(close(scalar(&[measured]), 0.0));
        assert!(close(scalar(&[]), 0.0));
    }

    #[test]
    fn a_reward_counts_where_nothing_else_does_also_after_a_verifier_has_lost_its_weight() {
        let reward = Assessment { aspect: REWARD.into(), ..assessment([0.0, 0.0, 1.0], 0.0, true) };
        for (weight, expected) in [(1.0, 0.0), (0.0, 1.0)] {
            let mut said = [reward.clone(), assessment([0.0, 0.0, 1.0], weight, true)];
            weigh_reward(&mut said);
            assert!(
                (said[0].weight - expected).abs() < 1e-9
                    && said[1].weight.total_cmp(&weight).is_eq()
            );
        }
    }

    #[test]
    fn one_aspect_that_counts_can_veto() {
        let good = assessment([0.0, 0.0, 1.0], 3.0, true);
        let bad = assessment([1.0, 0.0, 0.0], 0.1, false);
        let measured = assessment([1.0, 0.0, 0.0], 0.0, false);
        assert!(passes(&[good.clone(), measured.clone()]));
        assert!(!passes(&[good, bad]));
        assert!(!passes(&[measured]));
        assert!(!passes(&[]));
    }

    #[test]
    fn a_reward_is_the_scalar_and_no_part_of_the_veto() {
        let config = |center, scale| RewardConfig { model: "rm.gguf".into(), center, scale };
        let bad = assessment([1.0, 0.0, 0.0], 1.0, false);
        let good = assessment([0.0, 0.0, 1.0], 1.0, true);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-6;
        let rewarded = reward(&config(1.0, 2.0), "reward model 12", 3.0);
        assert_eq!((rewarded.aspect.as_str(), rewarded.weight), ("reward", 0.0));
        assert_eq!(rewarded.rubric_version, "center 1 scale 2");
        assert!(close(rewarded.value(), 0.5_f64.tanh()), "{rewarded:?}");
        let again = 1.0 + 2.0 * f64::from(rewarded.levels[2] / rewarded.levels[0]).ln();
        assert!(close(again, 3.0), "the reward can be had back: {again}");
        assert!(close(scalar(&[bad.clone(), rewarded.clone()]), rewarded.value()));
        assert!(!passes(&[bad, rewarded.clone()]));
        let punished = reward(&config(1.0, 2.0), "reward model 12", -9.0);
        assert!(passes(&[good.clone(), punished.clone()]));
        assert!(scalar(&[good.clone(), punished]) < scalar(&[good, rewarded]));
    }

    #[test]
    fn large_rewards_keep_their_order() {
        let config = RewardConfig { model: "rm.gguf".into(), center: 0.0, scale: 1.0 };
        let values: Vec<f64> =
            [-30.0, -29.0, 0.0, 29.0, 30.0].map(|it| reward(&config, "", it).value()).into();
        assert!(values.is_sorted_by(|a, b| a < b), "{values:?}");
    }

    #[test]
    fn the_most_relevant_aspects_are_chosen_in_the_agents_order() {
        let rated = |name: &str| AgentAspect {
            aspect: std::sync::Arc::new(config::Aspect {
                name: name.into(),
                description: String::new(),
                levels: ["", "", ""].map(String::from),
                version: "1".into(),
                correctness: false,
            }),
            weight: 1.0,
            pass: Pass::Fixed(0.5),
        };
        let scored = |high: f32| Scored {
            judge: "j".into(),
            scores: LabelScores { probabilities: vec![1.0 - high, 0.0, high], mass: 0.9 },
        };
        let aspects = ["a", "b", "c", "d"].map(rated);
        let scores = [0.2, 0.9, 0.5, 0.5].map(scored);
        let choice = choose(&aspects, &scores, 2);
        assert_eq!(choice.chosen, ["b", "c"], "the earlier of equals");
        assert_eq!((choice.judge.as_str(), choice.relevance.len()), ("j", 4));
        assert_eq!(choose(&aspects, &scores, 3).chosen, ["b", "c", "d"]);
        assert_eq!(choose(&aspects, &scores, 9).chosen.len(), 4);
    }

    #[test]
    fn a_single_turn_is_its_own_question() {
        let turns = [message(Role::System, "Be brief."), message(Role::User, "Why?")];
        assert_eq!(question(&turns), "Why?");
    }

    #[test]
    fn a_conversation_becomes_a_transcript_without_the_system_text() {
        let turns = [
            message(Role::System, "Be brief."),
            message(Role::User, "Why?"),
            message(Role::Assistant, "Because."),
            message(Role::User, "Really?"),
        ];
        assert_eq!(question(&turns), "User: Why?\nAssistant: Because.\nUser: Really?");
    }

    #[test]
    fn the_judge_is_named_after_the_base_model() {
        assert_eq!(judge_name("0123456789abcdef"), "generation 0 of 0123456789ab");
        assert_eq!(judge_name("01"), "generation 0 of 01");
    }
}
