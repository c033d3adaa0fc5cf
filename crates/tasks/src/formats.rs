//! Forty prompts in eight forms that say nothing about any task of an agent: whoever has learned a task
//! must not have forgotten them. Used by `bench/real`.

use crate::{Format, Item, Truth};

/// What is asked, and the form of the answer.
const ASKED: [(&str, Format); 40] = [
    ("Is the sun a star? Answer with yes or no only.", Format::YesOrNo),
    ("Can a stone swim? Answer only yes or no.", Format::YesOrNo),
    ("Is ten larger than three? Reply with a single word, yes or no.", Format::YesOrNo),
    ("Do cats lay eggs? Say yes or no and nothing else.", Format::YesOrNo),
    ("Is snow cold? One word: yes or no.", Format::YesOrNo),
    ("Name three animals, one on each line, and nothing else.", Format::Lines(3)),
    ("Write a poem of exactly two lines about rain.", Format::Lines(2)),
    ("List four colors, each on a line of its own.", Format::Lines(4)),
    ("Give me three tips for better sleep, one line each.", Format::Lines(3)),
    ("Name two planets on two lines.", Format::Lines(2)),
    ("Describe the sea in at most five words.", Format::WordsAtMost(5)),
    ("What is bread made of? Use no more than eight words.", Format::WordsAtMost(8)),
    ("Name a fruit. One word.", Format::WordsAtMost(1)),
    ("Say good night in at most four words.", Format::WordsAtMost(4)),
    ("What does a doctor do? At most ten words.", Format::WordsAtMost(10)),
    ("Write the word hello in capital letters.", Format::Capitals),
    ("Name the capital of France. Use only capital letters.", Format::Capitals),
    ("Write a short warning about ice, all in capitals.", Format::Capitals),
    ("Shout one sentence about pizza in capital letters only.", Format::Capitals),
    ("Which animal barks? Answer in upper case.", Format::Capitals),
    ("Write one sentence that contains the words blue whale.", Format::Contains("blue whale")),
    ("Tell me about trees and use the word forest.", Format::Contains("forest")),
    ("Write a sentence about music with the word guitar in it.", Format::Contains("guitar")),
    ("Explain winter. The word temperature must appear.", Format::Contains("temperature")),
    ("Write a greeting that contains the name Amelia.", Format::Contains("Amelia")),
    ("Describe a lake without the word water.", Format::ContainsNot("water")),
    ("Describe a dog without using the word animal.", Format::ContainsNot("animal")),
    ("Describe the sun, but never say the word hot.", Format::ContainsNot("hot")),
    ("Explain what a book is. Do not use the word read.", Format::ContainsNot("read")),
    ("Write about a birthday without the word cake.", Format::ContainsNot("cake")),
    ("Tell a very short story and end it with: The end.", Format::EndsWith("The end.")),
    ("Name a drink. Finish your answer with the word please.", Format::EndsWith("please")),
    ("Wish me luck. The last word must be friend.", Format::EndsWith("friend")),
    ("Say something about the moon and end with the word night.", Format::EndsWith("night")),
    ("Say when breakfast is. End with the words good morning.", Format::EndsWith("good morning")),
    (
        "Write a JSON object with the keys name and age for a person. Only JSON.",
        Format::JsonWith(&["name", "age"]),
    ),
    (
        "Reply with JSON alone: an object with the keys city and country for Rome.",
        Format::JsonWith(&["city", "country"]),
    ),
    (
        "Describe a car as a JSON object with the keys color and doors. No other text.",
        Format::JsonWith(&["color", "doors"]),
    ),
    ("Give only a JSON object with one key, answer.", Format::JsonWith(&["answer"])),
    (
        "Give a JSON object with the keys title and year of a film, and no explanation.",
        Format::JsonWith(&["title", "year"]),
    ),
];

/// All of them, always the same.
pub fn prompts() -> Vec<Item> {
    let item = |(at, (prompt, format)): (usize, &(&str, Format))| Item {
        id: format!("format-{}", at + 1),
        prompt: (*prompt).to_owned(),
        answer: None,
        truth: Truth::Format(format.clone()),
    };
    ASKED.iter().enumerate().map(item).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn there_are_eight_forms_with_five_different_prompts_each() {
        let mut of_kind: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, format) in &ASKED {
            *of_kind.entry(format.kind()).or_default() += 1;
        }
        assert_eq!(of_kind.len(), 8);
        assert!(of_kind.values().all(|n| *n == 5), "{of_kind:?}");
        let different: BTreeSet<String> = prompts().into_iter().map(|item| item.prompt).collect();
        assert_eq!(different.len(), ASKED.len());
    }
}
