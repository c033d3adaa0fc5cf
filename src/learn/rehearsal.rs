//! What a run learns beside its task, so that the rest of the model stays as it is: the base's own
//! answers to everyday prompts (pseudo-rehearsal: Robins, "Catastrophic forgetting, rehearsal and
//! pseudorehearsal", Connection Science 7(2), 1995). They are other prompts than those by which a
//! gate measures what is lost (`general`). Used by `run`.

use super::Parts;
use super::error::RunError;
use super::general;
use super::held_out::{HeldOut, Question};
use super::job::Lesson;
use super::pairs::prompt_id;
use config::prompt_file;
use config::{Config, PromptLine};
use engine::Token;
use protocol::{Example, Objective};

const PROMPTS: &str = include_str!("rehearsal.jsonl");

/// The lines that go with so many of the task; never of what is held out.
pub(super) async fn examples(
    parts: &Parts,
    config: &Config,
    held_out: &HeldOut,
    lesson: Lesson,
    n_examples: usize,
) -> Result<Vec<Example>, RunError> {
    let imitates = match (lesson, config.learn.objective) {
        (Lesson::Examples, _) | (_, Objective::Sft | Objective::Mixed { .. }) => true,
        // These learn from what tells two answers apart.
        (Lesson::Answers, _) => false,
    };
    let share = if imitates { config.learn.rehearsal } else { 0.0 };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count"
    )]
    let n = (n_examples as f64 * share).ceil() as usize;
    let learning = config.agents.values().find(|agent| agent.learn);
    let Some(agent) = learning.filter(|_| 0 < n) else { return Ok(Vec::new()) };
    let question = |line| Question { agent: agent.clone(), line };
    let usable = prompts().into_iter().filter(|line| !held_out.contains(&line.messages()));
    let questions: Vec<Question> = usable.map(question).collect();
    // All of them, however few are wanted: the file of answers is that of one set of prompts.
    let mut answers = general::answers(parts, &questions).await?;
    answers.truncate(n);
    let example = |answer: general::BaseAnswer| {
        let (prompt, chosen) = answer.tokens.split_at(answer.from);
        let tokens: Vec<Token> = prompt.iter().copied().map(Token).collect();
        Example {
            prompt_id: prompt_id(&tokens),
            prompt: prompt.to_vec(),
            chosen: chosen.to_vec(),
            rejected: None,
        }
    };
    Ok(answers.into_iter().map(example).collect())
}

fn prompts() -> Vec<PromptLine> {
    prompt_file::parse(PROMPTS).expect("the built-in prompts are sound")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_prompts_are_rehearsed_and_none_that_measures() {
        let rehearsed = prompts();
        assert_eq!(rehearsed.len(), 40);
        let measured: Vec<PromptLine> = prompt_file::parse(include_str!("general.jsonl")).unwrap();
        let measured = super::super::held_out::HeldOut::of_prompts(&measured);
        for line in rehearsed {
            assert!(!measured.contains(&line.messages()), "{}", line.prompt);
        }
    }
}
