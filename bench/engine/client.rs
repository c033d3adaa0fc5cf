//! The reflection workload as clients of llama-server would write it: plainly, everything that can be
//! asked at once in parallel; and as well as its interface allows, with `n` for what shares a prompt
//! and judgements one after another on a prefix that stays warm. They render the very prompts that
//! the daemon renders and choose as it does. Used by `reflection`.

use std::cell::Cell;

use anyhow::Context as _;
use config::{Agent, AgentAspect};
use engine::Token;
use futures_util::future::try_join_all;
use prompt::{AspectView, Message};
use statistics::mean;

use crate::peer::{Completed, Completion, Peer};
use crate::setting::ANSWER;
use crate::texts::{Texts, user};

/// As many as the daemon's agent makes.
pub(crate) const DRAFTS: u32 = 8;
/// See [`DRAFTS`].
pub(crate) const REFINEMENTS: u32 = 4;
/// Probabilities that a judgement asks for: enough for the three labels of a model that grades.
const N_PROBS: u32 = 10;

/// How the good client judges.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Judging {
    /// All answers in one slot: what they share stays warm too.
    OneSlot(u32),
    /// Each answer in a slot of its own, all slots at once.
    SlotAnAnswer,
}

/// Tokens of a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    /// Of all prompts.
    pub(crate) offered: u64,
    /// Of the prompts, without what was cached.
    pub(crate) evaluated: u64,
    /// New ones, without the one that a judgement has to make.
    pub(crate) generated: u64,
}

/// A client at work on one question.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    pub(crate) peer: &'a Peer,
    pub(crate) texts: &'a Texts,
    pub(crate) agent: &'a Agent,
    pub(crate) question: &'a str,
    pub(crate) tally: Cell<Tally>,
}

impl Client<'_> {
    /// Everything in parallel, one answer a request.
    pub(crate) async fn plain(&self) -> anyhow::Result<()> {
        let drafts = self.apart(&[user(self.question)], DRAFTS).await?;
        let values = self.judge_at_once(&drafts).await?;
        let parent = best(&drafts, &values)?;
        let critique = self.critique(parent).await?;
        let prompts = &self.agent.prompts;
        let refine = prompts.refine(self.question, parent, &critique)?;
        let refinements = self.apart(&refine, REFINEMENTS).await?;
        self.judge_at_once(&refinements).await?;
        Ok(())
    }

    /// With all that the server offers.
    pub(crate) async fn good(&self, judging: Judging) -> anyhow::Result<()> {
        let drafts = self.together(&[user(self.question)], DRAFTS).await?;
        let values = self.judge_warm(&drafts, judging).await?;
        let parent = best(&drafts, &values)?;
        let critique = self.critique(parent).await?;
        let prompts = &self.agent.prompts;
        let refine = prompts.refine(self.question, parent, &critique)?;
        let refinements = self.together(&refine, REFINEMENTS).await?;
        self.judge_warm(&refinements, judging).await?;
        Ok(())
    }

    async fn apart(&self, messages: &[Message], n: u32) -> anyhow::Result<Vec<String>> {
        let prompt = self.texts.tokens(messages)?;
        let answers = try_join_all((0..n).map(|_| self.write(&prompt, 1, 1.0))).await?;
        Ok(answers.into_iter().flatten().collect())
    }

    async fn together(&self, messages: &[Message], n: u32) -> anyhow::Result<Vec<String>> {
        let prompt = self.texts.tokens(messages)?;
        self.write(&prompt, n, 1.0).await
    }

    async fn critique(&self, answer: &str) -> anyhow::Result<String> {
        let views: Vec<AspectView<'_>> = self.agent.aspects.iter().map(view).collect();
        let prompts = &self.agent.prompts;
        let messages = prompts.critique(self.question, answer, None, &views)?;
        let prompt = self.texts.tokens(&messages)?;
        let texts = self.write(&prompt, 1, 0.0).await?;
        texts.into_iter().next().context("a critique is one text")
    }

    async fn write(
        &self,
        prompt: &[Token],
        n: u32,
        temperature: f32,
    ) -> anyhow::Result<Vec<String>> {
        let request =
            Completion { prompt, n, n_predict: ANSWER, n_probs: 0, temperature, slot: None };
        let answers = self.peer.complete(&request).await?;
        self.count(&answers, true);
        Ok(answers.into_iter().map(|answer| answer.text).collect())
    }

    async fn judge_at_once(&self, answers: &[String]) -> anyhow::Result<Vec<f64>> {
        let all = answers.iter().map(|answer| async move {
            let aspects = self.agent.aspects.iter();
            try_join_all(aspects.map(|aspect| self.judge(answer, aspect, None))).await
        });
        Ok(try_join_all(all).await?.iter().map(|values| mean(values.iter().copied())).collect())
    }

    async fn judge_warm(&self, answers: &[String], judging: Judging) -> anyhow::Result<Vec<f64>> {
        let one_by_one = |answer: &String, slot: u32| {
            let answer = answer.clone();
            async move {
                let mut values = Vec::new();
                for aspect in &self.agent.aspects {
                    values.push(self.judge(&answer, aspect, Some(slot)).await?);
                }
                anyhow::Ok(mean(values))
            }
        };
        match judging {
            Judging::OneSlot(slot) => {
                let mut values = Vec::new();
                for answer in answers {
                    values.push(one_by_one(answer, slot).await?);
                }
                Ok(values)
            }
            Judging::SlotAnAnswer => {
                let slots = (0..).zip(answers);
                try_join_all(slots.map(|(slot, answer)| one_by_one(answer, slot))).await
            }
        }
    }

    /// p(+1) - p(-1) of one aspect.
    async fn judge(
        &self,
        answer: &str,
        aspect: &AgentAspect,
        slot: Option<u32>,
    ) -> anyhow::Result<f64> {
        let prompts = &self.agent.prompts;
        let messages = prompts.assess(self.question, answer, None, &view(aspect))?;
        let prompt = self.texts.tokens(&messages)?;
        let request = Completion {
            prompt: &prompt,
            n: 1,
            n_predict: 1,
            n_probs: N_PROBS,
            temperature: 0.0,
            slot,
        };
        let read = self.peer.complete(&request).await?;
        self.count(&read, false);
        let first = read.first().context("a judgement is one text")?;
        Ok(value(&first.top, prompts.labels()))
    }

    fn count(&self, answers: &[Completed], is_text: bool) {
        let mut tally = self.tally.get();
        for answer in answers {
            tally.evaluated += answer.evaluated;
            tally.generated += if is_text { answer.generated } else { 0 };
        }
        // Answers that share a prompt share one offer of it.
        tally.offered += answers.first().map_or(0, |answer| answer.offered);
        self.tally.set(tally);
    }
}

fn view(rated: &AgentAspect) -> AspectView<'_> {
    let aspect = &rated.aspect;
    AspectView { name: &aspect.name, description: &aspect.description, levels: &aspect.levels }
}

fn best<'a>(answers: &'a [String], values: &[f64]) -> anyhow::Result<&'a str> {
    let ranked = answers.iter().zip(values).max_by(|a, b| a.1.total_cmp(b.1));
    ranked.map(|(answer, _)| answer.as_str()).context("there are no answers")
}

/// p(+1) - p(-1) among the labels that were reported; 0 when none was.
fn value(top: &[(String, f64)], [low, _, high]: &[String; 3]) -> f64 {
    let probability = |label: &String| -> f64 {
        top.iter().filter(|(text, _)| text == label).map(|(_, logprob)| logprob.exp()).sum()
    };
    probability(high) - probability(low)
}
