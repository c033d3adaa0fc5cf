//! The data set: JSON lines to packed examples, with what each objective needs of them; an error names
//! its line. Also the validation split, and micro-batches that fit into one pass. No model here. Used
//! by `train`, `step`, `reference` and `survey`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use protocol::{Example, Group, Job, Objective};

use crate::batch::{Sequence, Tree};

/// Longest line: a group of answers of `max_tokens` each is shorter, so a longer one is not a data set.
pub(crate) const MAX_LINE_BYTES: usize = 64 << 20;

/// One example, its answers packed into one tree.
#[derive(Debug)]
pub(crate) struct Packed {
    pub prompt_id: String,
    /// Prompt and answer: chosen and, for pairs, rejected; one; or all of a group.
    pub sequences: Vec<Sequence>,
    pub tree: Tree,
    /// The reference's log-probs of all targets; set once.
    pub reference: Vec<f32>,
    pub kind: Kind,
}

/// What an objective needs of an example besides its tokens.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A chosen answer, and a rejected one if there are two.
    Preference,
    /// One answer for `kto`.
    Single { is_good: bool, mismatched: Option<Mismatched> },
    /// The rewards of a group, and the log-probs of its tokens under the policy that sampled them.
    Group { rewards: Vec<f64>, behaviour: Vec<f32> },
}

/// A prompt with the answer to another one. Its log-ratio estimates the KL divergence between policy
/// and reference (`KL_completion` in TRL).
#[derive(Debug)]
pub(crate) struct Mismatched {
    pub sequence: Sequence,
    pub tree: Tree,
    /// The reference's log-probs, summed; set once.
    pub reference: f64,
}

impl Packed {
    pub(crate) fn new(prompt_id: String, prompt: &[i32], answers: &[&[i32]], kind: Kind) -> Self {
        let from = prompt.len();
        let sequence = |answer: &&[i32]| Sequence { tokens: [prompt, answer].concat(), from };
        let sequences: Vec<Sequence> = answers.iter().map(sequence).collect();
        let tree = Tree::new(&sequences);
        Self { prompt_id, sequences, tree, reference: Vec::new(), kind }
    }

    /// Targets of all its answers.
    pub(crate) fn n_targets(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens.len() - sequence.from).sum()
    }

    /// Losses of the example: one, or one for each answer of a group.
    pub(crate) fn n_losses(&self) -> usize {
        match self.kind {
            Kind::Preference | Kind::Single { .. } => 1,
            Kind::Group { .. } => self.sequences.len(),
        }
    }
}

/// Reads all lines. Also returns the number of those that are too long.
pub(crate) fn read(job: &Job, n_vocab: i64, n_ctx: i64) -> anyhow::Result<(Vec<Packed>, usize)> {
    let path = job.data.display();
    let file = File::open(&job.data).with_context(|| format!("open {path}"))?;
    let limit = job.max_tokens.min(usize::try_from(n_ctx)?);
    let (mut examples, mut n_too_long) = (Vec::new(), 0);
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        let location = || format!("{path}, line {number}");
        if !next_line(&mut reader, &mut line).with_context(location)? {
            break;
        }
        let found = match job.objective {
            Objective::Grpo { .. } => group(&line),
            objective => pair(&line, objective),
        };
        let mut found = found.with_context(location)?;
        for example in &found {
            let mut tokens = example.sequences.iter().flat_map(|sequence| &sequence.tokens);
            ensure!(
                tokens.all(|&token| (0..n_vocab).contains(&i64::from(token))),
                "{}: a token is not in the vocabulary",
                location()
            );
        }
        let is_too_long = |example: &Packed| {
            example.sequences.iter().any(|sequence| limit < sequence.tokens.len())
        };
        if found.iter().any(is_too_long) {
            n_too_long += 1;
        } else {
            examples.append(&mut found);
        }
    }
    ensure!(
        !examples.is_empty(),
        "{path}: no example fits into {limit} tokens ({n_too_long} are longer)"
    );
    Ok((examples, n_too_long))
}

/// The next line without its end, if there is one.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let most = MAX_LINE_BYTES as u64 + 1;
    if reader.take(most).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if MAX_LINE_BYTES < line.len() {
        return Err(io::Error::other(format!("it is longer than {} MiB", MAX_LINE_BYTES >> 20)));
    }
    Ok(true)
}

fn pair(line: &[u8], objective: Objective) -> anyhow::Result<Vec<Packed>> {
    let Example { prompt_id, prompt, chosen, rejected } = serde_json::from_slice(line)?;
    ensure!(!prompt.is_empty() && rejected != Some(Vec::new()), "an empty sequence");
    if let Objective::Kto { .. } = objective {
        let answers = [(true, Some(chosen).filter(|chosen| !chosen.is_empty())), (false, rejected)];
        let single = |(is_good, answer): (bool, Option<Vec<i32>>)| {
            let kind = Kind::Single { is_good, mismatched: None };
            Some(Packed::new(prompt_id.clone(), &prompt, &[&answer?], kind))
        };
        let found: Vec<Packed> = answers.into_iter().filter_map(single).collect();
        ensure!(!found.is_empty(), "an empty sequence");
        return Ok(found);
    }
    ensure!(!chosen.is_empty(), "an empty sequence");
    let answers = match (&rejected, objective) {
        (_, Objective::Sft) => vec![chosen.as_slice()],
        (Some(rejected), _) => vec![chosen.as_slice(), rejected],
        (None, _) => anyhow::bail!("the objective needs a rejected answer"),
    };
    Ok(vec![Packed::new(prompt_id, &prompt, &answers, Kind::Preference)])
}

fn group(line: &[u8]) -> anyhow::Result<Vec<Packed>> {
    let Group { prompt_id, prompt, answers } = serde_json::from_slice(line)?;
    ensure!(1 < answers.len(), "a group needs at least two answers");
    ensure!(
        !prompt.is_empty() && answers.iter().all(|answer| !answer.tokens.is_empty()),
        "an empty sequence"
    );
    for answer in &answers {
        ensure!(
            answer.tokens.len() == answer.logprobs.len(),
            "{} log-probs for {} tokens",
            answer.logprobs.len(),
            answer.tokens.len()
        );
        let is_valid = answer.reward.is_finite()
            && answer.logprobs.iter().all(|&logprob| logprob.is_finite() && logprob <= 0.0);
        ensure!(is_valid, "a reward or a log-prob is no sound number");
    }
    let kind = Kind::Group {
        rewards: answers.iter().map(|answer| answer.reward).collect(),
        behaviour: answers.iter().flat_map(|answer| &answer.logprobs).copied().collect(),
    };
    let tokens: Vec<&[i32]> = answers.iter().map(|answer| answer.tokens.as_slice()).collect();
    Ok(vec![Packed::new(prompt_id, &prompt, &tokens, kind)])
}

/// Splits by prompt: (training, validation). A single prompt is always trained on.
pub(crate) fn split(examples: Vec<Packed>, share: f64, seed: u64) -> (Vec<Packed>, Vec<Packed>) {
    let prompts: BTreeSet<String> = examples.iter().map(|e| e.prompt_id.clone()).collect();
    let mut prompts: Vec<String> = prompts.into_iter().collect();
    Rng::with_seed(seed).shuffle(&mut prompts);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a length"
    )]
    let n = (prompts.len() as f64 * share.clamp(0.0, 0.5)) as usize;
    let held_out: BTreeSet<String> = prompts.into_iter().take(n).collect();
    examples.into_iter().partition(|example| !held_out.contains(&example.prompt_id))
}

/// Adds to each single answer a mismatched one: the next answer to another prompt, truncated so that
/// the sequence has at most `max_tokens`. A data set with one prompt has none.
pub(crate) fn add_mismatched(examples: &mut [Packed], max_tokens: usize) {
    let n = examples.len();
    for i in 0..n {
        let others = (1..n).map(|step| &examples[(i + step) % n]);
        let other = others
            .into_iter()
            .find(|other| other.prompt_id != examples[i].prompt_id)
            .and_then(|other| other.sequences.first());
        let own = &examples[i].sequences[0];
        let sequence = other.map(|other| {
            let prompt = own.tokens.split_at(own.from).0;
            let mut tokens = [prompt, other.tokens.split_at(other.from).1].concat();
            tokens.truncate(max_tokens.max(own.from + 1));
            Sequence { tokens, from: own.from }
        });
        if let Kind::Single { mismatched, .. } = &mut examples[i].kind {
            *mismatched = sequence.map(|sequence| {
                let tree = Tree::new(std::slice::from_ref(&sequence));
                Mismatched { sequence, tree, reference: 0.0 }
            });
        }
    }
}

/// Splits a batch into parts of at most `max_tokens` tokens, or of one example that is longer.
pub(crate) fn micro_batches<'a>(batch: &[&'a Packed], max_tokens: usize) -> Vec<Vec<&'a Packed>> {
    let mut parts: Vec<Vec<&Packed>> = Vec::new();
    let mut sum = 0;
    for &packed in batch {
        sum += packed.tree.len();
        match parts.last_mut() {
            Some(part) if sum <= max_tokens => part.push(packed),
            _ => {
                sum = packed.tree.len();
                parts.push(vec![packed]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(prompt_id: &str, prompt: &[i32], answer: &[i32]) -> Packed {
        let kind = Kind::Single { is_good: true, mismatched: None };
        Packed::new(prompt_id.to_owned(), prompt, &[answer], kind)
    }
    fn mismatched(example: &Packed) -> Option<&Mismatched> {
        match &example.kind {
            Kind::Single { mismatched, .. } => mismatched.as_ref(),
            _ => None,
        }
    }

    #[test]
    fn a_mismatched_answer_belongs_to_another_prompt_and_fits() {
        let mut examples = vec![
            single("a", &[1, 2], &[3]),
            single("a", &[1, 2], &[4]),
            single("b", &[5], &[6, 7, 8, 9]),
        ];
        add_mismatched(&mut examples, 4);
        // The last token of a tree is predicted, not computed.
        let lengths = examples.iter().map(|example| mismatched(example).unwrap().tree.len());
        assert_eq!(lengths.collect::<Vec<_>>(), [3, 3, 1]);
        let mut alone = vec![single("a", &[1], &[3]), single("a", &[1], &[4])];
        add_mismatched(&mut alone, 4);
        assert!(alone.iter().all(|example| mismatched(example).is_none()));
    }

    #[test]
    fn micro_batches_have_as_many_tokens_as_fit() {
        // The last token of an answer is predicted, not computed.
        let examples: Vec<Packed> =
            [4, 2, 2, 9, 1].map(|n| single("a", &[1], &vec![2; n])).into_iter().collect();
        let all: Vec<&Packed> = examples.iter().collect();
        let sizes = |most| micro_batches(&all, most).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(8), [3, 1, 1]);
        assert_eq!(sizes(10), [3, 2]);
        assert_eq!(sizes(1), [1; 5]);
        assert_eq!(sizes(1000), [5]);
    }

    #[test]
    fn a_prompt_is_trained_on_or_held_out_but_not_both() {
        let examples: Vec<Packed> =
            (0..20).map(|i| single(&format!("{}", i / 2), &[1], &[i])).collect();
        let (train, held_out) = split(examples, 0.3, 7);
        assert_eq!((train.len(), held_out.len()), (14, 6));
        assert!(train.iter().all(|t| held_out.iter().all(|h| h.prompt_id != t.prompt_id)));
        let (train, held_out) = split(vec![single("a", &[1], &[2])], 0.5, 7);
        assert_eq!((train.len(), held_out.len()), (1, 0));
    }
}
