//! `held_out: auto`: which stored prompts are set aside for the gate. Reads and decides; what it says is
//! written by `held_out`. Used by `held_out`.
//!
//! One in five of an agent's prompts is, up to a number, where something says which answers are right:
//! its verifier, a reference, or the owner. A hash of its words decides, so that it is the same ones in
//! whichever order they come. What is once set aside stays so; what a run or an example has taught is
//! never set aside, nor is a near copy of it, because it would measure what was learned by heart.

use std::collections::HashSet;

use super::near::{NearIndex, hash_of_words, user_turns};
use super::worth;
use config::{Agent, Config, HeldOut};
use prompt::{Message, PromptLine, Role};
use store::{Exchange, ExchangeId, Store, StoreError};

/// Percent of the prompts with truth.
const SHARE: u64 = 20;
/// Prompts of an agent at most: the gate has enough of them.
const MOST: usize = 200;

/// A prompt that is set aside.
#[derive(Clone, Debug)]
pub(super) struct Aside {
    pub(super) exchange: ExchangeId,
    /// Who was asked.
    pub(super) agent: String,
    pub(super) messages: Vec<Message>,
    /// What the gate asks; `None`: nothing says any more which answers are right.
    pub(super) line: Option<PromptLine>,
    /// The store does not know yet.
    pub(super) is_new: bool,
}

impl Aside {
    fn new(agent: Option<&Agent>, exchange: Exchange, is_new: bool) -> Self {
        Self {
            exchange: exchange.id,
            line: agent.and_then(|agent| line(agent, &exchange)),
            agent: exchange.agent,
            messages: exchange.messages,
            is_new,
        }
    }
}

/// All that are set aside, and those that are to be now; near copies of `named` prompts are not.
pub(super) async fn look(
    store: &Store,
    config: &Config,
    named: &NearIndex,
) -> Result<Vec<Aside>, StoreError> {
    let known = store.all_set_aside().await?;
    let known_ids: HashSet<ExchangeId> = known.iter().map(|exchange| exchange.id).collect();
    let mut index = NearIndex::default();
    let mut found = Vec::new();
    for exchange in known {
        index.add(&user_turns(&exchange.messages));
        let agent = config.agents.get(&exchange.agent).map(|agent| &**agent);
        found.push(Aside::new(agent, exchange, false));
    }
    let learning = || config.agents.values().filter(|agent| agent.learn);
    let mut learned = None;
    for agent in learning().filter(|agent| agent.held_out == Some(HeldOut::Auto)) {
        let mut left =
            MOST.saturating_sub(found.iter().filter(|it| it.agent == agent.name).count());
        if left == 0 {
            continue;
        }
        let learned = match &learned {
            Some(learned) => learned,
            None => {
                // One adapter learns from all of them.
                let agents = learning().map(|agent| agent.name.clone()).collect();
                let mut index = NearIndex::default();
                for (_, messages) in store.learned_prompts(agents).await? {
                    index.add(&user_turns(&messages));
                }
                learned.insert(index)
            }
        };
        for (id, messages) in store.unlearned_prompts(vec![agent.name.clone()]).await? {
            if left == 0 {
                break;
            }
            let turns = user_turns(&messages);
            let is_like = |index: &NearIndex| index.find(&turns).is_some();
            if known_ids.contains(&id)
                || !is_in_share(&turns)
                || is_like(named)
                || is_like(&index)
                || is_like(learned)
            {
                continue;
            }
            let aside = Aside::new(Some(agent), store.exchange(id).await?, true);
            if aside.line.is_some() {
                index.add(&turns);
                found.push(aside);
                left -= 1;
            }
        }
    }
    Ok(found)
}

fn is_in_share(turns: &[&str]) -> bool {
    let hash = hash_of_words(turns);
    let first = hash.first_chunk().expect("a SHA-256 has 32 bytes");
    u64::from_be_bytes(*first) % 100 < SHARE
}

/// The question for the gate, if something says which answers are right: the prompt's verifier or its
/// agent's, a reference, an edit of the owner, or an answer that the owner praises.
fn line(agent: &Agent, exchange: &Exchange) -> Option<PromptLine> {
    let (last, earlier) = exchange.messages.split_last()?;
    let answers = worth::answers(exchange);
    let praised = || answers.iter().filter(|answer| answer.by_owner && answer.is_good);
    let by_owner = || praised().max_by_key(|it| (it.is_edit(), it.candidate.id));
    let reference =
        exchange.reference.clone().or_else(|| by_owner().map(|it| it.candidate.text.clone()));
    let has_truth = exchange.verifier.is_some() || reference.is_some() || agent.verifier.is_some();
    (last.role == Role::User && has_truth).then(|| PromptLine {
        id: format!("exchange {}", exchange.id),
        earlier: earlier.to_vec(),
        prompt: last.content.clone(),
        reference,
        verifier: exchange.verifier.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::pairs::tests::{candidate, edit, exchange, word};
    use config::Verifier;

    #[test]
    fn the_share_is_that_of_the_words_and_about_one_in_five() {
        let n = (0..2000).filter(|i| is_in_share(&[&format!("prompt number {i}")])).count();
        assert!((340..460).contains(&n), "{n} of 2000");
        for i in 0..50 {
            let (one, other) = (format!("Prompt number {i}!"), format!("prompt  number {i}"));
            assert_eq!(is_in_share(&[&one]), is_in_share(&[&other]));
        }
    }

    #[test]
    fn truth_is_a_verifier_a_reference_an_edit_or_praise() {
        let agent = crate::learn::tests::agent(std::path::Path::new("/nowhere"));
        let asked = || exchange(1, "p", vec![candidate(1, &[5], 0.9, true)]);
        let of = |exchange: &Exchange| line(&agent, exchange);
        assert_eq!(of(&asked()), None, "the judge's word is no truth");
        let verifier = Verifier::Exact { expected: "4".into() };
        let verified = Exchange { verifier: Some(verifier.clone()), ..asked() };
        assert_eq!(of(&verified).unwrap().verifier, Some(verifier.clone()));
        let strict = Agent { verifier: Some(verifier), ..agent.clone() };
        assert!(line(&strict, &asked()).is_some(), "the agent's verifier checks all its prompts");
        let reference = Some("four".to_owned());
        let referred = Exchange { reference: reference.clone(), ..asked() };
        assert_eq!(of(&referred).unwrap().reference, reference);

        let mut praised = asked();
        praised.candidates[0].text = "good".into();
        praised.feedback = vec![word(1, Some(1))];
        assert_eq!(of(&praised).unwrap().reference.as_deref(), Some("good"));
        let refused = Exchange { feedback: vec![word(1, Some(-1))], ..asked() };
        assert_eq!(of(&refused), None, "what is right nobody has said");
        let (mut better, said) = edit(2, 1, &[7]);
        better.text = "better".into();
        praised.candidates.push(better);
        praised.feedback.push(said);
        assert_eq!(of(&praised).unwrap().reference.as_deref(), Some("better"));
    }
}
