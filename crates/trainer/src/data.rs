//! The data set: JSON lines to packed examples, with what each objective needs of them; an error names
//! its line. Also the validation split, and the passes that a batch is computed in. No model here. Used
//! by `train`, `step`, `reference` and `survey`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::ops::Range;

use anyhow::{Context as _, ensure};
use protocol::{Example, Group, Job, Objective};

use crate::batch::{Sequence, Size, Tree};
use crate::plan::Plan;

/// Longest line: a group of answers of `max_tokens` each is shorter, so a longer one is not a data set.
pub(crate) const MAX_LINE_BYTES: usize = 64 << 20;

/// One example.
#[derive(Debug)]
pub(crate) struct Packed {
    pub prompt_id: String,
    /// Prompt and answer: chosen and, for pairs, rejected; one; or all of a group.
    pub sequences: Vec<Sequence>,
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
    /// The reference's log-probs, summed; set once.
    pub reference: f64,
}

impl Packed {
    pub(crate) fn new(prompt_id: String, prompt: &[i32], answers: &[&[i32]], kind: Kind) -> Self {
        let from = prompt.len();
        let sequence = |answer: &&[i32]| Sequence { tokens: [prompt, answer].concat(), from };
        let sequences = answers.iter().map(sequence).collect();
        Self { prompt_id, sequences, reference: Vec::new(), kind }
    }

    /// Targets of all its answers.
    pub(crate) fn n_targets(&self) -> usize {
        self.targets(0..self.sequences.len()).len()
    }

    /// The places of some answers' targets among those of all.
    pub(crate) fn targets(&self, answers: Range<usize>) -> Range<usize> {
        let n_targets = |sequence: &Sequence| sequence.tokens.len() - sequence.from;
        let before = self.sequences.iter().take(answers.start).map(n_targets).sum();
        let own = self.sequences.get(answers).unwrap_or_default();
        before..before + own.iter().map(n_targets).sum::<usize>()
    }

    /// Answers that have to be in one pass. The two of a pair are compared; those of a group know their
    /// advantages, so that a group may be computed in as many passes as it takes.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let n = self.sequences.len();
        let of_part = if let Kind::Group { .. } = self.kind { 1 } else { n };
        (0..n).step_by(of_part.max(1)).map(move |first| first..first + of_part)
    }

    /// The largest of these parts, alone in its pass.
    pub(crate) fn largest_part(&self) -> Size {
        let sizes = self.parts().map(|part| Tree::default().size_with(&self.sequences[part]));
        sizes.max_by_key(|size| size.tokens).unwrap_or_default()
    }

    /// Losses of the example: one, or one for each answer of a group.
    pub(crate) fn n_losses(&self) -> usize {
        match self.kind {
            Kind::Preference | Kind::Single { .. } => 1,
            Kind::Group { .. } => self.sequences.len(),
        }
    }
}

/// A data set.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) examples: Vec<Packed>,
    /// Of all lines, also of those that are too long.
    pub(crate) prompt_ids: BTreeSet<String>,
    /// Lines that are left out.
    pub(crate) n_too_long: usize,
}

/// Reads all lines.
pub(crate) fn read(job: &Job, n_vocab: i64, n_ctx: i64) -> anyhow::Result<Read> {
    let path = job.data.display();
    let file = File::open(&job.data).with_context(|| format!("open {path}"))?;
    let limit = job.max_tokens.min(usize::try_from(n_ctx)?);
    let Read { mut examples, mut prompt_ids, mut n_too_long } = Read::default();
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
        prompt_ids.extend(found.iter().map(|example| example.prompt_id.clone()));
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
    Ok(Read { examples, prompt_ids, n_too_long })
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
        (_, Objective::Sft) | (None, Objective::Mixed { .. }) => vec![chosen.as_slice()],
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

/// Splits by prompt: (training, validation). What is too long for training is not left to validate on.
/// A data set in which nothing is left to train on keeps no validation.
pub(crate) fn split(read: Read, share: f64) -> (Vec<Packed>, Vec<Packed>) {
    let held_out = protocol::validation_prompts(read.prompt_ids, share);
    let (train, validation): (Vec<_>, Vec<_>) =
        read.examples.into_iter().partition(|example| !held_out.contains(&example.prompt_id));
    if train.is_empty() { (validation, train) } else { (train, validation) }
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
            *mismatched = sequence.map(|sequence| Mismatched { sequence, reference: 0.0 });
        }
    }
}

/// What is computed at once.
#[derive(Debug, Default)]
pub(crate) struct Pass<'a> {
    /// The sequences of all parts, in their order.
    pub tree: Tree,
    pub parts: Vec<Part<'a>>,
}

/// An example of a batch, or some answers of a group.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    /// Place of the example in the batch.
    pub index: usize,
    pub example: &'a Packed,
    pub answers: Range<usize>,
}

/// The passes of a batch: as many examples in each as the plan allows. What cannot be divided has a pass
/// of its own where it is larger.
pub(crate) fn passes<'a>(batch: &[&'a Packed], plan: &Plan) -> Vec<Pass<'a>> {
    let mut passes: Vec<Pass<'a>> = Vec::new();
    for (index, &example) in batch.iter().enumerate() {
        for answers in example.parts() {
            let sequences = &example.sequences[answers.clone()];
            let fits = |pass: &Pass<'_>| plan.fits(pass.tree.size_with(sequences));
            if !passes.last().is_some_and(fits) {
                passes.push(Pass::default());
            }
            let Pass { tree, parts } = passes.last_mut().expect("one was pushed");
            for sequence in sequences {
                tree.add(sequence);
            }
            match parts.last_mut() {
                Some(part) if part.index == index => part.answers.end = answers.end,
                _ => parts.push(Part { index, example, answers }),
            }
        }
    }
    passes
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
        let lengths = examples.iter().map(|it| mismatched(it).unwrap().sequence.tokens.len());
        assert_eq!(lengths.collect::<Vec<_>>(), [4, 4, 2]);
        let mut alone = vec![single("a", &[1], &[3]), single("a", &[1], &[4])];
        add_mismatched(&mut alone, 4);
        assert!(alone.iter().all(|example| mismatched(example).is_none()));
    }

    /// A plan in which a shared token takes a quarter of what one takes that is computed.
    fn plan(max_tokens: usize) -> Plan {
        Plan { max_tokens, shared_cost: 0.25, recompute: false, longest: 1 }
    }

    #[test]
    fn passes_have_as_many_examples_as_fit() {
        // The last token of an answer is predicted, not computed.
        let examples: Vec<Packed> = [(104, 4), (102, 2), (102, 2), (109, 9), (101, 1)]
            .iter()
            .map(|&(first, n)| single("a", &[first], &vec![2; n]))
            .collect();
        let all: Vec<&Packed> = examples.iter().collect();
        let sizes = |most| {
            passes(&all, &plan(most)).iter().map(|pass| pass.parts.len()).collect::<Vec<_>>()
        };
        // The third is the second again, and costs half a token.
        assert_eq!(sizes(7), [3, 1, 1]);
        assert_eq!(sizes(10), [3, 2]);
        assert_eq!(sizes(1), [1; 5]);
        assert_eq!(sizes(1000), [5]);
    }

    #[test]
    fn what_examples_begin_with_is_computed_once_a_pass() {
        let system = vec![7; 80];
        let example = |i: i32| {
            let prompt = [system.as_slice(), &[100 + i; 20]].concat();
            Packed::new(format!("{i}"), &prompt, &[&[1, 2, 3], &[4, 5]], Kind::Preference)
        };
        let examples: Vec<Packed> = (0..8).map(example).collect();
        assert_eq!(examples[0].largest_part(), Size { tokens: 103, shared: 100 });
        let all: Vec<&Packed> = examples.iter().collect();
        let one = passes(&all, &plan(1000));
        let size = Size { tokens: 80 + 8 * 23, shared: 7 * 80 + 8 * 100 };
        assert_eq!((one.len(), one[0].tree.size()), (1, size));
        let several = passes(&all, &plan(300));
        let tokens: usize = several.iter().map(|pass| pass.tree.size().tokens).sum();
        assert_eq!(tokens, several.len() * 80 + 8 * 23, "once in each pass");
        assert!(several.iter().all(|pass| plan(300).fits(pass.tree.size())) && 1 < several.len());
    }

    #[test]
    fn a_group_that_is_too_large_for_a_pass_is_divided() {
        let answers: Vec<Vec<i32>> = (0..6).map(|i| vec![10 + i; 11]).collect();
        let answers: Vec<&[i32]> = answers.iter().map(Vec::as_slice).collect();
        let kind = Kind::Group { rewards: vec![0.0; 6], behaviour: vec![0.0; 66] };
        let group = Packed::new("g".to_owned(), &[1; 20], &answers, kind);
        assert_eq!(group.largest_part(), Size { tokens: 30, shared: 0 });
        let other = single("a", &[2], &[3, 4]);
        let found = passes(&[&group, &other], &plan(50));
        let parts: Vec<Vec<_>> = found
            .iter()
            .map(|pass| pass.parts.iter().map(|part| (part.index, part.answers.clone())).collect())
            .collect();
        assert_eq!(parts, [vec![(0, 0..2)], vec![(0, 2..4)], vec![(0, 4..6), (1, 0..1)]]);
        assert_eq!(group.targets(2..4), 22..44);
    }

    #[test]
    fn a_prompt_is_trained_on_or_held_out_but_not_both() {
        let examples: Vec<Packed> =
            (0..200).map(|i| single(&format!("{}", i / 2), &[1], &[i])).collect();
        let read = |examples: Vec<Packed>| Read {
            prompt_ids: examples.iter().map(|it| it.prompt_id.clone()).collect(),
            examples,
            n_too_long: 0,
        };
        let (train, held_out) = split(read(examples), 0.3);
        assert_eq!(train.len() + held_out.len(), 200);
        assert!((40..80).contains(&held_out.len()), "{}", held_out.len());
        assert!(train.iter().all(|t| held_out.iter().all(|h| h.prompt_id != t.prompt_id)));
        let (train, held_out) = split(read(vec![single("a", &[1], &[2])]), 0.5);
        assert_eq!((train.len(), held_out.len()), (1, 0));
    }
}
