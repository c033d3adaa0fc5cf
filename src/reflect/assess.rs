//! Scores to assessments, assessments to one number and one verdict, and the question as the judge
//! sees it. Pure; the model is asked in `judge`. Used by the whole of `reflect`, and by `learn` and
//! `api` for [`scalar`] and [`passes`].

use std::fmt::Write as _;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use crate::config::{Agent, AgentAspect, Verifier};
use crate::engine::LabelScores;
use crate::prompt::{AspectView, Message, Role};
use crate::store::Assessment;

use super::verify::{self, Check, VerifierError};

/// The aspect name of a verifier's assessments.
pub const VERIFIER: &str = "verifier";

/// Weighted mean of the aspects' values, -1 to 1. Aspects of weight 0 do not count; 0 when none
/// does.
pub fn scalar(assessments: &[Assessment]) -> f64 {
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

/// One answer's scores, one for each of the agent's aspects, as assessments.
pub(super) fn read_scores(
    aspects: &[AgentAspect],
    judge: &str,
    scores: &[LabelScores],
) -> Vec<Assessment> {
    aspects
        .iter()
        .zip(scores)
        .map(|(rated, score)| {
            let levels = <[f32; 3]>::try_from(score.probabilities.as_slice())
                .expect("the engine answers each of the three labels");
            Assessment {
                aspect: rated.aspect.name.clone(),
                rubric_version: rated.aspect.version.clone(),
                judge: judge.to_owned(),
                levels,
                mass: score.mass,
                weight: rated.weight,
                passes: rated.pass <= f64::from(levels[2]),
            }
        })
        .collect()
}

/// A compiled verifier with what its assessments say of it.
#[derive(Debug)]
pub(super) struct Verification {
    check: Check,
    judge: String,
    version: String,
    weight: f64,
}

impl Verification {
    /// Compiles the prompt's verifier, or the agent's when the prompt has none.
    pub(super) fn new(
        agent: &Agent,
        verifier: Option<&Verifier>,
    ) -> Result<Option<Self>, VerifierError> {
        let Some(verifier) = verifier.or(agent.verifier.as_ref()) else { return Ok(None) };
        let text = serde_json::to_vec(verifier).expect("a verifier is plain data");
        let hash = Sha256::digest(&text).iter().fold(String::new(), |mut hash, byte| {
            write!(hash, "{byte:02x}").expect("writing to a string succeeds");
            hash
        });
        Ok(Some(Self {
            check: Check::new(verifier)?,
            judge: format!("{VERIFIER}:{}", verify::kind(verifier)),
            version: twelve(&hash),
            weight: agent.reflection.verifier_weight,
        }))
    }

    /// One more aspect, whose level is certain.
    pub(super) fn assess(&self, answer: &str) -> Assessment {
        let holds = self.check.holds(answer);
        Assessment {
            aspect: VERIFIER.to_owned(),
            rubric_version: self.version.clone(),
            judge: self.judge.clone(),
            levels: if holds { [0.0, 0.0, 1.0] } else { [1.0, 0.0, 0.0] },
            mass: 1.0,
            weight: self.weight,
            passes: holds,
        }
    }
}

/// The aspects that a critique is asked about: those that count and do not pass.
pub(super) fn shortfalls<'a>(agent: &'a Agent, assessments: &[Assessment]) -> Vec<AspectView<'a>> {
    static LEVELS: LazyLock<[String; 3]> =
        LazyLock::new(|| ["It does not.", "It cannot be told.", "It does."].map(str::to_owned));
    let falls_short = |name: &str| {
        assessments.iter().any(|rated| rated.aspect == name && 0.0 < rated.weight && !rated.passes)
    };
    let aspects =
        agent.aspects.iter().map(|rated| view(rated)).filter(|aspect| falls_short(aspect.name));
    let verifier = falls_short(VERIFIER).then_some(AspectView {
        name: VERIFIER,
        description: "Does the answer pass the automatic check of its result?",
        levels: &LEVELS,
    });
    aspects.chain(verifier).collect()
}

/// What the templates may show of an aspect.
pub(super) fn view(rated: &AgentAspect) -> AspectView<'_> {
    let aspect = &rated.aspect;
    AspectView { name: &aspect.name, description: &aspect.description, levels: &aspect.levels }
}

fn twelve(hash: &str) -> String {
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
