//! Which answers that pass a verifier are not about their prompt. A verifier that asks the same of every
//! answer (one sentence, at most 20 words) does not look at the prompt, so what passes it may answer
//! anything; learned from, it makes the model answer so. What is known of the prompt is in its other
//! drafts: an answer's specificity is the mean, over its different tokens, of ln(share of the prompt's other
//! drafts with that token / share of all other prompts' drafts), the pointwise mutual information of answer
//! and prompt under unigrams (with the model's own probabilities: Li et al. 2016, arXiv 1510.03055). Below
//! 0 it is off topic. Where that would be so of nearly all drafts, because prompts hardly differ or drafts
//! of one prompt have nothing in common, nothing is. Pure. Used by `material` and `pairs`.

use std::collections::{BTreeMap, HashMap, HashSet};

use config::{Agent, Config, ScalarConfig};
use engine::Token;
use prompt::Verifier;
use store::{Author, Candidate, CandidateId, Exchange};

/// With fewer other drafts of its prompt nothing is said of an answer.
const FEWEST_DRAFTS: usize = 4;
/// With fewer prompts nothing is said of any answer.
const FEWEST_PROMPTS: usize = 10;
/// So many further drafts of a prompt are taken to have a token as often as other prompts' drafts do, because
/// that six or ten drafts lack a word is weak evidence.
const PRIOR: f64 = 4.0;
/// The least share of drafts that are on topic; of drafts put at random to prompts it is a twentieth.
const LEAST_ON_TOPIC: f64 = 0.25;

/// The drafts of the agents whose verifier does not look at the prompt.
#[derive(Debug, Default)]
pub(super) struct Topics {
    by_agent: BTreeMap<String, Drafts>,
}

#[derive(Debug)]
struct Drafts {
    verifier: Verifier,
    /// By what was asked: a prompt that was stored twice is one.
    prompts: HashMap<Vec<Token>, Prompt>,
    /// All drafts, and those that have a token.
    all: Counts,
    /// Drafts whose specificity is known, and those of them that are not below 0.
    known: usize,
    on_topic: usize,
}

#[derive(Debug, Default)]
struct Prompt {
    drafts: Vec<(CandidateId, HashSet<Token>)>,
    counts: Counts,
}

/// How many drafts there are, and how many of them have a token.
#[derive(Debug, Default)]
struct Counts {
    total: usize,
    having: HashMap<Token, usize>,
}

impl Counts {
    fn add(&mut self, tokens: &HashSet<Token>) {
        self.total += 1;
        for token in tokens {
            *self.having.entry(*token).or_default() += 1;
        }
    }

    fn having(&self, token: Token) -> usize {
        self.having.get(&token).copied().unwrap_or_default()
    }
}

impl Topics {
    /// Nothing is counted yet.
    pub(super) fn new(config: &Config) -> Self {
        let agents = config.agents.values().filter(|agent| agent.learn && is_verified_alone(agent));
        Self::of(agents.filter_map(|agent| Some((agent.name.clone(), agent.verifier.clone()?))))
    }

    /// Of agents by their names and verifiers.
    fn of(agents: impl Iterator<Item = (String, Verifier)>) -> Self {
        let of_form = agents.filter(|(_, verifier)| verifier.is_of_form());
        let counted = of_form.map(|(agent, verifier)| {
            let (prompts, all) = (HashMap::new(), Counts::default());
            (agent, Drafts { verifier, prompts, all, known: 0, on_topic: 0 })
        });
        Self { by_agent: counted.collect() }
    }

    /// The agents whose exchanges count.
    pub(super) fn agents(&self) -> Vec<String> {
        self.by_agent.keys().cloned().collect()
    }

    /// Counts the drafts of an exchange.
    pub(super) fn add(&mut self, exchange: &Exchange) {
        let Some(drafts) = self.by_agent.get_mut(&exchange.agent) else { return };
        if !drafts.verifies(exchange) {
            return;
        }
        let prompt = drafts.prompts.entry(exchange.prompt_tokens.clone()).or_default();
        let is_draft = |it: &&Candidate| it.author == Author::Model && it.parent.is_none();
        for draft in exchange.candidates.iter().filter(is_draft) {
            let tokens = draft.tokens.iter().copied().collect();
            prompt.counts.add(&tokens);
            drafts.all.add(&tokens);
            prompt.drafts.push((draft.id, tokens));
        }
    }

    /// All drafts are counted: looks at how many of them are on topic.
    pub(super) fn settle(&mut self) {
        for drafts in self.by_agent.values_mut() {
            let all = drafts.prompts.values();
            let all = all.flat_map(|prompt| prompt.drafts.iter().map(move |draft| (prompt, draft)));
            let known: Vec<f64> = all
                .filter_map(|(prompt, (id, tokens))| drafts.specificity(prompt, &[*id], tokens))
                .collect();
            drafts.known = known.len();
            drafts.on_topic = known.into_iter().filter(|&it| 0.0 <= it).count();
        }
    }

    /// Its tokens are rarer among the prompt's other drafts than among those of other prompts, and that is
    /// not so of nearly all drafts.
    pub(super) fn is_off_topic(&self, exchange: &Exchange, answer: &Candidate) -> bool {
        let drafts = self.by_agent.get(&exchange.agent);
        let says_something =
            drafts.is_some_and(|it| LEAST_ON_TOPIC * it.known as f64 <= it.on_topic as f64);
        says_something && self.specificity(exchange, answer).is_some_and(|it| it < 0.0)
    }

    /// In nats a token; `None`: the verifier looks at the prompt, or there are too few drafts to say.
    fn specificity(&self, exchange: &Exchange, answer: &Candidate) -> Option<f64> {
        let drafts = self.by_agent.get(&exchange.agent).filter(|it| it.verifies(exchange))?;
        let prompt = drafts.prompts.get(&exchange.prompt_tokens)?;
        let tokens = answer.tokens.iter().copied().collect();
        // The draft that a refinement revises is nearly the same text.
        let own: Vec<_> = [Some(answer.id), answer.parent].into_iter().flatten().collect();
        drafts.specificity(prompt, &own, &tokens)
    }
}

/// Whether nobody but a verifier decides: a judge and a reward model see the prompt.
fn is_verified_alone(agent: &Agent) -> bool {
    let has_reward_model = matches!(agent.scalar, ScalarConfig::Reward(_));
    !agent.is_judged() && !has_reward_model && 0.0 < agent.reflection.verifier_weight
}

impl Drafts {
    /// Whether nothing but the agent's verifier decides on the prompt's answers.
    fn verifies(&self, exchange: &Exchange) -> bool {
        exchange.reference.is_none() && exchange.verifier.as_ref() == Some(&self.verifier)
    }

    /// Of an answer with these tokens; `own` drafts are no evidence.
    fn specificity(
        &self,
        prompt: &Prompt,
        own: &[CandidateId],
        tokens: &HashSet<Token>,
    ) -> Option<f64> {
        let own: Vec<_> = prompt.drafts.iter().filter(|(id, _)| own.contains(id)).collect();
        let n_others = prompt.counts.total - own.len();
        let n_elsewhere = self.all.total - prompt.counts.total;
        if n_others < FEWEST_DRAFTS || self.prompts.len() < FEWEST_PROMPTS || tokens.is_empty() {
            return None;
        }
        let information = tokens.iter().map(|token| {
            let of_own = own.iter().filter(|(_, tokens)| tokens.contains(token)).count();
            let of_others = prompt.counts.having(*token) - of_own;
            let of_elsewhere = self.all.having(*token) - prompt.counts.having(*token);
            // Half a draft and one draft more, so that what was not seen is improbable and not impossible.
            let elsewhere = (of_elsewhere as f64 + 0.5) / (n_elsewhere as f64 + 1.0);
            let here = (of_others as f64 + PRIOR * elsewhere) / (n_others as f64 + PRIOR);
            (here / elsewhere).ln()
        });
        Some(statistics::mean(information))
    }
}

#[cfg(test)]
mod tests;
