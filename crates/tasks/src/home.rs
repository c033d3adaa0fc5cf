//! Commands to a home, to be answered with JSON: device, room, action and, where there is one, value.
//! Examples and practice come from the known templates; the held-out commands are new ones of the same
//! templates, and ones of templates that were never shown. Used by `demo` and `bench/real`.

use std::collections::HashSet;

use fastrand::Rng;
use serde_json::{Map, Value, json};

use crate::commands::{ACTIONS, Action, Amount};
use crate::fill::{different, fill};
use crate::{Item, Truth};

/// The owner's words to the model.
pub const SYSTEM: &str =
    "Turn the request into JSON with the keys device, room, action and, if needed, value.";

/// All prompts of one seed; no command is in two of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Home {
    /// With answers of the owner.
    pub examples: Vec<Item>,
    pub practice: Vec<Item>,
    /// New commands of known templates.
    pub known: Vec<Item>,
    /// Commands of templates that no example and no practice has.
    pub unseen: Vec<Item>,
    /// What the owner holds out for the gate: of templates that were never shown. A command of a known
    /// template would be a near copy of its examples, and take them out of training.
    pub gate: Vec<Item>,
}

/// How many of each.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub examples: usize,
    pub practice: usize,
    pub known: usize,
    pub unseen: usize,
    pub gate: usize,
}

impl Counts {
    /// What is reported.
    pub const FULL: Self =
        Self { examples: 150, practice: 150, known: 200, unseen: 200, gate: 120 };
}

impl Home {
    /// `seed` chooses examples and practice; the held-out commands are the same for every seed.
    pub fn new(counts: Counts, seed: u64) -> Self {
        /// Of the held-out commands.
        const MEASURED: u64 = 1;
        let mut taken = HashSet::new();
        let mut rng = Rng::with_seed(MEASURED);
        let known_templates = templates(|action| &action.known);
        let unseen_templates = templates(|action| &action.unseen);
        let mut make = |rng: &mut Rng, name: &str, from: &[Template], count: usize| {
            items(name, from, count, rng, &mut taken)
        };
        let known = make(&mut rng, "home-known", &known_templates, counts.known);
        let unseen = make(&mut rng, "home-unseen", &unseen_templates, counts.unseen);
        let gate = make(&mut rng, "home-gate", &unseen_templates, counts.gate);
        let mut rng = Rng::with_seed(seed.wrapping_add(1 << 32));
        let examples = make(&mut rng, "home-example", &known_templates, counts.examples);
        let practice = make(&mut rng, "home-practice", &known_templates, counts.practice);
        Self { examples, practice, known, unseen, gate }
    }
}

type Template = (&'static Action, &'static str);

fn templates<const N: usize>(
    of: fn(&'static Action) -> &'static [&'static str; N],
) -> Vec<Template> {
    ACTIONS.iter().flat_map(|action| of(action).iter().map(move |text| (action, *text))).collect()
}

fn items(
    name: &str,
    templates: &[Template],
    count: usize,
    rng: &mut Rng,
    taken: &mut HashSet<String>,
) -> Vec<Item> {
    let made = different(rng, templates.len(), count, taken, |rng, template| {
        let (action, text) = templates[template];
        let place = action.places[rng.usize(..action.places.len())];
        let value = match action.amount {
            Amount::None => None,
            Amount::Number(from, to, step) => {
                Some(json!(from + step * rng.u32(..=(to - from) / step)))
            }
            Amount::Word(words) => Some(json!(words[rng.usize(..words.len())])),
        };
        let shown = match &value {
            None => String::new(),
            Some(Value::String(word)) => word.clone(),
            Some(other) => other.to_string(),
        };
        let text = fill(text, &[("room", place.to_owned()), ("n", shown)]);
        (capitalized(&text), answer(action, place, value))
    });
    let item = |(at, (prompt, answer)): (usize, (String, Value))| Item {
        id: format!("{name}-{}", at + 1),
        prompt,
        answer: Some(answer.to_string()),
        truth: Truth::Json(answer),
    };
    made.into_iter().enumerate().map(item).collect()
}

fn answer(action: &Action, place: &str, value: Option<Value>) -> Value {
    let mut object = Map::new();
    object.insert("device".to_owned(), json!(action.device));
    object.insert("room".to_owned(), json!(place));
    object.insert("action".to_owned(), json!(action.verb));
    if let Some(value) = value {
        object.insert("value".to_owned(), value);
    }
    Value::Object(object)
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn prompts(items: &[Item]) -> BTreeSet<&str> {
        items.iter().map(|item| item.prompt.as_str()).collect()
    }

    #[test]
    fn there_are_enough_kinds_and_templates_and_no_template_is_both() {
        let devices: BTreeSet<&str> = ACTIONS.iter().map(|action| action.device).collect();
        assert!(6 <= devices.len(), "{devices:?}");
        let known: BTreeSet<&str> =
            templates(|action| &action.known).into_iter().map(|(_, text)| text).collect();
        let unseen: BTreeSet<&str> =
            templates(|action| &action.unseen).into_iter().map(|(_, text)| text).collect();
        assert!(120 <= known.len(), "{}", known.len());
        assert_eq!((known.len(), unseen.len()), (21 * 6, 21 * 3), "no template stands twice");
        assert!(known.is_disjoint(&unseen));
        let needs_value = |action: &Action| !matches!(action.amount, Amount::None);
        for action in &ACTIONS {
            for text in action.known.iter().chain(&action.unseen) {
                assert!(text.contains("{room}"), "{text}");
                assert_eq!(text.contains("{n}"), needs_value(action), "{text}");
            }
        }
    }

    #[test]
    fn no_command_is_in_two_sets_and_every_set_is_full() {
        for seed in 1..=3 {
            let home = Home::new(Counts::FULL, seed);
            let sets = [&home.examples, &home.practice, &home.known, &home.unseen, &home.gate];
            assert_eq!(sets.map(Vec::len), [150, 150, 200, 200, 120]);
            let all: BTreeSet<&str> = sets.iter().flat_map(|set| prompts(set)).collect();
            assert_eq!(all.len(), 820);
            let ids = sets.iter().flat_map(|set| set.iter().map(|item| item.id.as_str()));
            assert_eq!(ids.collect::<BTreeSet<_>>().len(), 820);
        }
    }

    /// A held-out command of a known template takes the examples of that template out of training.
    #[test]
    fn the_gate_asks_no_template_that_is_shown() {
        let home = Home::new(Counts::FULL, 1);
        let trigrams = |item: &Item| -> BTreeSet<Vec<String>> {
            let words: Vec<String> = item.prompt.split(' ').map(str::to_lowercase).collect();
            words.windows(3).map(<[String]>::to_vec).collect()
        };
        let is_near = |a: &Item, b: &Item| {
            let (a, b) = (trigrams(a), trigrams(b));
            3 * a.union(&b).count() <= 5 * a.intersection(&b).count()
        };
        let shown = home.examples.iter().chain(&home.practice);
        let near = shown.filter(|shown| home.gate.iter().any(|held_out| is_near(shown, held_out)));
        assert!(near.count() < 5, "of 300");
    }

    #[test]
    fn every_action_is_shown_and_measured() {
        let home = Home::new(Counts::FULL, 1);
        let actions = |items: &[Item]| -> BTreeSet<(String, String)> {
            let of = |item: &Item| {
                let Truth::Json(answer) = &item.truth else { panic!("{item:?}") };
                (answer["device"].to_string(), answer["action"].to_string())
            };
            items.iter().map(of).collect()
        };
        assert_eq!(actions(&home.examples).len(), ACTIONS.len());
        assert_eq!(actions(&home.unseen).len(), ACTIONS.len());
    }

    #[test]
    fn the_owners_answers_are_right_and_short() {
        let home = Home::new(Counts::FULL, 2);
        for item in home.examples.iter().chain(&home.practice).chain(&home.unseen) {
            let answer = item.answer.as_ref().unwrap();
            assert!(item.truth.holds(answer), "{item:?}");
            assert!(answer.len() < 80, "{answer}");
            assert!(!item.prompt.contains(['{', '}']), "{}", item.prompt);
        }
    }

    #[test]
    fn another_seed_changes_practice_and_not_what_measures() {
        let (one, two) = (Home::new(Counts::FULL, 1), Home::new(Counts::FULL, 2));
        assert_eq!(one, Home::new(Counts::FULL, 1));
        assert_eq!((&one.known, &one.unseen), (&two.known, &two.unseen));
        assert_ne!(one.examples, two.examples);
    }
}
