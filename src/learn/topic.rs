//! Which answers that pass are not about their prompt. A check that asks the same of every answer (one
//! sentence, at most 20 words) sees no prompt, so what passes it may answer anything; learned from, it
//! makes the model answer so. What is left of the prompt is in its other drafts: an answer's specificity is
//! the mean, over its different tokens, of ln(share of the prompt's other drafts with that token / share of
//! all other prompts' drafts), the pointwise mutual information of answer and prompt under unigrams (with
//! the model's own probabilities: Li et al. 2016, arXiv 1510.03055). Below 0 it is off topic: answers that
//! were given to other prompts are in 95 of 100 cases (docs/LOG.md, 2026-11-30). Where prompts hardly
//! differ, or drafts of one prompt have nothing in common, that says nothing, and nothing is off topic.
//! Pure. Used by `material` and `pairs`.

use std::collections::{BTreeMap, HashMap, HashSet};

use config::Config;
use engine::Token;
use prompt::Verifier;
use store::{Author, Candidate, Exchange};

/// With fewer other drafts of the prompt nothing is said of an answer.
const FEWEST_DRAFTS: usize = 4;
/// With fewer prompts, too.
const FEWEST_PROMPTS: usize = 10;
/// As many drafts as this are expected to have a token as often as other prompts' drafts have it: six or ten
/// drafts that lack a word are weak evidence.
const PRIOR: f64 = 4.0;
/// The least share of drafts that are on topic; of drafts put at random to prompts it is a twentieth.
const LEAST_ON_TOPIC: f64 = 0.25;

/// The tokens of all drafts, for the agents whose check sees no prompt.
#[derive(Debug, Default)]
pub(super) struct Topics {
    by_agent: BTreeMap<String, Drafts>,
}

#[derive(Debug)]
struct Drafts {
    verifier: Verifier,
    prompts: usize,
    total: usize,
    /// Drafts that have a token.
    having: HashMap<Token, usize>,
    /// Drafts whose specificity was looked at.
    weighed: usize,
    /// Of these, those that are not below 0.
    on_topic: usize,
}

impl Topics {
    /// Nothing is counted yet. An agent whose answers are judged too is not among them: the judge sees the
    /// prompt.
    pub(super) fn new(config: &Config) -> Self {
        let agents = config.agents.values().filter(|agent| agent.learn && !agent.is_judged());
        Self::of(agents.filter_map(|agent| Some((agent.name.clone(), agent.verifier.clone()?))))
    }

    /// Of agents by their names and verifiers.
    fn of(agents: impl Iterator<Item = (String, Verifier)>) -> Self {
        let of_form = agents.filter(|(_, verifier)| verifier.is_of_form());
        let counted = of_form.map(|(agent, verifier)| {
            let having = HashMap::new();
            (agent, Drafts { verifier, prompts: 0, total: 0, having, weighed: 0, on_topic: 0 })
        });
        Self { by_agent: counted.collect() }
    }

    /// Whether there is no agent of that kind.
    pub(super) fn is_empty(&self) -> bool {
        self.by_agent.is_empty()
    }

    /// Counts the drafts of a prompt.
    pub(super) fn add(&mut self, exchange: &Exchange) {
        let Some(drafts) = self.by_agent.get_mut(&exchange.agent) else { return };
        if !drafts.checks(exchange) {
            return;
        }
        drafts.prompts += 1;
        for tokens in different(exchange) {
            drafts.total += 1;
            for token in tokens {
                *drafts.having.entry(token).or_default() += 1;
            }
        }
    }

    /// Looks at the drafts of a prompt when all are counted.
    pub(super) fn weigh(&mut self, exchange: &Exchange) {
        let found: Vec<_> =
            exchange.candidates.iter().filter_map(|it| self.specificity(exchange, it)).collect();
        if let Some(drafts) = self.by_agent.get_mut(&exchange.agent) {
            drafts.weighed += found.len();
            drafts.on_topic += found.into_iter().filter(|&it| 0.0 <= it).count();
        }
    }

    /// Its tokens are rarer among the prompt's other drafts than among those of other prompts, and that is
    /// not so of nearly all drafts.
    pub(super) fn is_off_topic(&self, exchange: &Exchange, answer: &Candidate) -> bool {
        let says_something =
            |drafts: &Drafts| LEAST_ON_TOPIC * drafts.weighed as f64 <= drafts.on_topic as f64;
        self.by_agent.get(&exchange.agent).is_some_and(says_something)
            && self.specificity(exchange, answer).is_some_and(|specificity| specificity < 0.0)
    }

    /// In nats a token; `None`: the check sees the prompt, or there are too few drafts to say.
    fn specificity(&self, exchange: &Exchange, answer: &Candidate) -> Option<f64> {
        let drafts = self.by_agent.get(&exchange.agent).filter(|it| it.checks(exchange))?;
        let own = different(exchange);
        let tokens: HashSet<Token> = answer.tokens.iter().copied().collect();
        let n_others = own.iter().filter(|it| **it != tokens).count();
        if n_others < FEWEST_DRAFTS || drafts.prompts < FEWEST_PROMPTS {
            return None;
        }
        let elsewhere = drafts.total.checked_sub(own.len()).filter(|&total| 0 < total)?;
        let information = tokens.iter().map(|token| {
            let of_prompt = own.iter().filter(|it| it.contains(token)).count();
            let of_others = drafts.having.get(token)?.checked_sub(of_prompt)?;
            // The answer itself is no evidence.
            let of_prompt = of_prompt - usize::from(own.contains(&tokens));
            // Half a draft and one draft more, so that what was not seen is improbable and not impossible.
            let elsewhere = (of_others as f64 + 0.5) / (elsewhere as f64 + 1.0);
            let here = (of_prompt as f64 + PRIOR * elsewhere) / (n_others as f64 + PRIOR);
            Some((here / elsewhere).ln())
        });
        let information: Vec<f64> = information.collect::<Option<_>>()?;
        Some(statistics::mean(information))
    }
}

impl Drafts {
    /// Whether nothing but this check decides on the prompt's answers.
    fn checks(&self, exchange: &Exchange) -> bool {
        exchange.reference.is_none() && exchange.verifier.as_ref() == Some(&self.verifier)
    }
}

/// The tokens of each of the model's answers, equal sets once.
fn different(exchange: &Exchange) -> Vec<HashSet<Token>> {
    let own = exchange.candidates.iter().filter(|it| it.author == Author::Model);
    let mut different: Vec<HashSet<Token>> = Vec::new();
    for candidate in own {
        let tokens = candidate.tokens.iter().copied().collect();
        if !different.contains(&tokens) {
            different.push(tokens);
        }
    }
    different
}

#[cfg(test)]
mod tests;
