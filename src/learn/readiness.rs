//! Whether there is something to learn, in one sentence with numbers and what would help. The
//! decision is pure; [`look`] reads what it is about. Used by `task` and `run`.

use std::fmt;

use serde::Serialize;

use super::Parts;
use super::error::RunError;
use super::examples::{self, FEWEST_EXAMPLES};
use super::gate::Power;
use super::held_out::{self, LeftOut};
use super::material::{self, Material};
use super::pairs::Tally;
use super::program;
use super::yields::Yield;
use config::{AspectChoice, Config};
use store::{StoreError, Unjudged};

/// What a run would find now.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Readiness {
    /// Agents that learn.
    pub agents: usize,
    /// Files of prompts that they practise on.
    pub practice_files: usize,
    /// Pairs, or single answers.
    pub pairs: usize,
    /// Of these, the ones that no run has learned from.
    pub new_pairs: usize,
    /// So many are wanted before a scheduled run.
    pub min_new_pairs: usize,
    /// Examples that wait for a run on them alone: no run has learned from them, and the model has
    /// solved fewer prompts by itself.
    pub examples: usize,
    /// Held-out prompts that a gate may ask.
    pub held_out: usize,
    /// What these could show; `None`: nothing learns. `status` shows it.
    #[serde(skip)]
    pub power: Option<Power>,
    /// Why nothing could judge what a run would make.
    pub unjudgeable: Option<String>,
    /// What the judges have still to say.
    pub unjudged: Unjudged,
    /// What the stored answers come to.
    #[serde(rename = "yield")]
    pub yielded: Yield,
    /// What became of the prompts.
    pub tally: Tally,
    /// Why nothing can be trained.
    pub trainer_fault: Option<String>,
}

impl Readiness {
    /// Of what was collected.
    pub(super) async fn new(
        parts: &Parts,
        material: &Material,
        config: &Config,
        held_out: usize,
        min: usize,
    ) -> Result<Self, StoreError> {
        let learning = || config.agents.values().filter(|agent| agent.learn);
        let mut unjudged = Unjudged::default();
        for agent in learning() {
            let Unjudged { answers, prompts, without_choice } =
                parts.store.unjudged(agent.name.clone()).await?;
            unjudged.answers += answers;
            unjudged.prompts += prompts;
            if agent.aspect_choice != AspectChoice::All {
                unjudged.without_choice += without_choice;
            }
        }
        Ok(Self {
            agents: learning().count(),
            practice_files: learning().filter(|agent| agent.practice.prompts.is_some()).count(),
            pairs: material.rows.len(),
            new_pairs: material.n_new,
            min_new_pairs: min.max(1),
            examples: 0,
            held_out,
            power: None,
            unjudgeable: None,
            unjudged,
            yielded: material.yielded.clone(),
            tally: material.tally,
            trainer_fault: None,
        })
    }

    /// What is missing for a run, and what would help.
    pub(super) fn lacks(&self) -> Option<String> {
        let Self {
            agents, new_pairs, min_new_pairs, yielded, tally, unjudged, trainer_fault, ..
        } = self;
        if let Some(fault) = trainer_fault {
            return Some(fault.clone());
        }
        if *agents == 0 {
            return Some("no agent has `learn: true`".to_owned());
        }
        if FEWEST_EXAMPLES <= self.examples || min_new_pairs <= new_pairs {
            return None;
        }
        let pairs = format!("{new_pairs} of {min_new_pairs} new pairs");
        let Tally { prompts, left_out, without_chosen, without_rejected, .. } = tally;
        let LeftOut { held_out, near_copies } = left_out;
        let lacks = match yielded {
            _ if 0 < *prompts && *prompts == held_out + near_copies => format!(
                "{pairs}, all {prompts} stored prompts are held out or near copies of held-out ones: explore \
                 others"
            ),
            _ if 0 < self.pairs && *new_pairs == 0 => format!(
                "{pairs}, the {} pairs that there are were learned before: explore more prompts, or rate \
                 ten answers",
                self.pairs
            ),
            _ if tally.prompts == 0 && 0 < self.practice_files => format!(
                "{pairs}, no answer to a practice prompt is judged: `reflectd explore` practises on the \
                 files that the agents name"
            ),
            _ if tally.prompts == 0 && unjudged.answers == 0 => {
                format!(
                    "{pairs}, no stored prompts: chat with it, or `reflectd explore --prompts FILE`"
                )
            }
            Yield { answers: 0, .. } => {
                format!("{pairs}, no answer is judged: rate ten answers, or `reflectd explore`")
            }
            Yield { passing: 0, .. } => format!(
                "{yielded}; nothing to reinforce: add at least {FEWEST_EXAMPLES} examples of right answers \
                 (`examples` of the agent, or `reflectd learn FILE`), or practice prompts whose `exact` or \
                 `json` verifier names the right answer (`explore: {{ prompts: FILE }}` of the agent)"
            ),
            Yield { answers, passing, .. } if answers == passing => {
                format!("{pairs}, all {answers} answers pass: harder prompts would help")
            }
            _ => format!(
                "{pairs}, {yielded}; of {prompts} prompts {held_out} are held out, {near_copies} are near \
                 copies of held-out ones, {without_chosen} have no answer that passes, {without_rejected} \
                 have none to reject; explore more prompts, or rate ten answers"
            ),
        };
        Some(match without_word(unjudged) {
            Some(unjudged) => format!("{lacks}; {unjudged}"),
            None => lacks,
        })
    }
}

/// What the judge has not said, and what would help.
fn without_word(&Unjudged { answers, prompts, without_choice }: &Unjudged) -> Option<String> {
    let of_answers = format!("{answers} answers to {prompts} prompts are not judged");
    let of_choice = format!("for {without_choice} prompts the judge has chosen no aspects");
    let missing = match (answers, without_choice) {
        (0, 0) => return None,
        (_, 0) => of_answers,
        (0, _) => of_choice,
        _ => format!("{of_answers}, {of_choice}"),
    };
    Some(format!(
        "{missing}: `reflectd explore` asks the judge again, and `reflectd doctor` says whether it gives \
         levels; where it gives none, another judge would help, or `judge: none` with a verifier or a \
         reference for each prompt"
    ))
}

/// `Not learning yet: ...`, or `Ready to learn: ...`.
impl fmt::Display for Readiness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { examples, new_pairs, unjudgeable, .. } = self;
        let lacks = self.lacks();
        let is_ready = lacks.is_none() && unjudgeable.is_none();
        formatter.write_str(if is_ready { "Ready to learn: " } else { "Not learning yet: " })?;
        match lacks {
            Some(lacks) => {
                formatter.write_str(&lacks)?;
                if 0 < *examples {
                    write!(
                        formatter,
                        "; {examples} of {FEWEST_EXAMPLES} examples for a first run on them"
                    )?;
                }
            }
            None if FEWEST_EXAMPLES <= *examples => {
                write!(formatter, "{examples} examples wait for their first run")?;
            }
            None => write!(formatter, "{new_pairs} new pairs")?,
        }
        unjudgeable.iter().try_for_each(|reason| write!(formatter, "; {reason}"))
    }
}

/// What a run would find now. Reads all stored exchanges: a fifth of a second for 20,000 answers.
pub(super) async fn look(parts: &Parts) -> Result<Readiness, RunError> {
    let config = parts.config.borrow().clone();
    if !config.agents.values().any(|agent| agent.learn) {
        return Ok(Readiness::default());
    }
    let fault =
        examples::sync(parts, &config).await.err().map(|it| it.reason().replace('\n', "; "));
    let (questions, held_out) = held_out::read_all(&parts.store, &config).await?;
    let asked = held_out::count(&questions.held_out);
    let power = Some(Power::new(asked, &config.learn.gate));
    let unjudgeable = held_out::unjudgeable(&questions, &config);
    let material = material::collect(parts, &config, &held_out).await?;
    let min = config.learn.min_new_pairs;
    let readiness = Readiness::new(parts, &material, &config, asked, min).await?;
    let trainer_fault =
        program::command_line(&config.trainer).err().map(|it| it.to_string()).or(fault);
    let waiting = examples::waiting(parts, &config, &held_out, false).await?;
    let examples = waiting.map_or(0, |waiting| waiting.n_new);
    Ok(Readiness { examples, power, unjudgeable, trainer_fault, ..readiness })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness(answers: usize, passing: usize, new_pairs: usize) -> Readiness {
        Readiness {
            agents: 1,
            practice_files: 0,
            pairs: new_pairs,
            new_pairs,
            min_new_pairs: 50,
            examples: 0,
            held_out: 2,
            power: None,
            unjudgeable: Some("2 held-out prompts are too few".into()),
            unjudged: Unjudged::default(),
            yielded: Yield { answers, passing, ..Yield::default() },
            tally: Tally { prompts: 9, without_chosen: 5, without_rejected: 3, ..Tally::default() },
            trainer_fault: None,
        }
    }

    #[test]
    fn the_sentence_says_what_is_missing_and_what_would_help() {
        let text = readiness(40, 7, 3).to_string();
        assert_eq!(
            text,
            "Not learning yet: 3 of 50 new pairs, 7 of 40 answers pass; of 9 prompts 0 are held out, \
             0 are near copies of held-out ones, 5 have no answer that passes, 3 have none to reject; \
             explore more prompts, or rate ten answers; 2 held-out prompts are too few"
        );
        let text = readiness(40, 0, 0).to_string();
        assert!(
            text.contains("0 of 40 answers pass; nothing to reinforce: add at least 10"),
            "{text}"
        );
        assert!(text.contains("or practice prompts whose `exact` or `json` verifier"), "{text}");
        let text = readiness(40, 40, 0).to_string();
        assert!(text.contains("all 40 answers pass: harder prompts"), "{text}");
        let learned = Readiness { pairs: 30, ..readiness(40, 7, 0) }.to_string();
        assert!(learned.contains("the 30 pairs that there are were learned before"), "{learned}");
        assert!(readiness(0, 0, 0).to_string().contains("no answer is judged"));
        let nothing = Readiness { tally: Tally::default(), ..readiness(0, 0, 0) };
        assert!(nothing.to_string().contains("no stored prompts: chat with it"), "{nothing}");
        let file = Readiness { practice_files: 1, ..nothing }.to_string();
        assert!(file.contains("`reflectd explore` practises on the files"), "{file}");
        let none = Readiness { agents: 0, unjudgeable: None, ..readiness(0, 0, 0) };
        assert_eq!(none.to_string(), "Not learning yet: no agent has `learn: true`");
    }

    #[test]
    fn what_the_judge_has_not_said_is_counted_with_what_would_help() {
        let of = |answers, prompts, without_choice| Readiness {
            unjudged: Unjudged { answers, prompts, without_choice },
            tally: Tally::default(),
            ..readiness(0, 0, 0)
        };
        let drafts = of(12, 4, 0).to_string();
        assert!(
            drafts.contains(
                "no answer is judged: rate ten answers, or `reflectd explore`; 12 answers to 4 prompts are \
                 not judged: `reflectd explore` asks the judge again"
            ),
            "{drafts}"
        );
        let none = Readiness { practice_files: 1, ..of(0, 0, 9) }.to_string();
        assert!(none.contains("; for 9 prompts the judge has chosen no aspects: "), "{none}");
        assert!(none.contains("`judge: none` with a verifier or a reference"), "{none}");
        let both = of(3, 3, 9).to_string();
        assert!(both.contains("are not judged, for 9 prompts the judge has chosen no"), "{both}");
    }

    #[test]
    fn examples_that_wait_are_said() {
        let few = Readiness { examples: 4, unjudgeable: None, ..readiness(0, 0, 0) }.to_string();
        assert!(
            few.starts_with("Not learning yet: 0 of 50 new pairs, no answer is judged"),
            "{few}"
        );
        assert!(few.ends_with("; 4 of 10 examples for a first run on them"), "{few}");
        let enough = Readiness { examples: 40, ..readiness(40, 0, 0) };
        let expected = "40 examples wait for their first run";
        let judged = Readiness { unjudgeable: None, ..enough.clone() }.to_string();
        assert_eq!(judged, format!("Ready to learn: {expected}"));
        // Nothing would be trained.
        let waits = format!("Not learning yet: {expected}; 2 held-out prompts are too few");
        assert_eq!(enough.to_string(), waits);
    }

    #[test]
    fn enough_pairs_are_said_too() {
        let ready = Readiness { unjudgeable: None, ..readiness(90, 60, 50) };
        assert_eq!(ready.to_string(), "Ready to learn: 50 new pairs");
        let no_trainer = Readiness { trainer_fault: Some("it is not installed".into()), ..ready };
        assert_eq!(no_trainer.to_string(), "Not learning yet: it is not installed");
    }
}
