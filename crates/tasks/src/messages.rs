//! What customers write to a shop, to be answered in one short sentence. Templates and values of the
//! held-out messages are others than those of practice. Used by `bench/real`.

use std::collections::{BTreeSet, HashSet};

use fastrand::Rng;

use crate::fill::{different, fill};
use crate::{Item, Truth};

/// The owner's words to the model.
pub const SYSTEM: &str = "Answer in one short sentence.";
/// One sentence of 12 to 112 characters: the owner's check.
pub const PATTERN: &str = r"^[A-Z][^.!?\n]{10,110}[.!?]$";

/// Words for the slots of templates.
struct Values {
    product: &'static [&'static str],
    city: &'static [&'static str],
    day: &'static [&'static str],
    colour: &'static [&'static str],
    /// Order numbers; the first and the last.
    order: (u32, u32),
    /// Amounts; the first and the last.
    amount: (u32, u32),
}

const PRACTICE_VALUES: Values = Values {
    product: &[
        "kettle",
        "backpack",
        "desk lamp",
        "blender",
        "raincoat",
        "toaster",
        "headset",
        "bookshelf",
        "suitcase",
        "yoga mat",
        "keyboard",
        "garden hose",
        "wall clock",
        "sleeping bag",
    ],
    city: &["Leeds", "Porto", "Graz", "Tampere", "Lyon", "Bergen", "Utrecht", "Verona"],
    day: &["Monday", "Wednesday", "Friday", "Sunday"],
    colour: &["red", "green", "grey", "purple"],
    order: (1000, 4999),
    amount: (11, 49),
};

const HELD_OUT_VALUES: Values = Values {
    product: &[
        "coffee grinder",
        "tent",
        "office chair",
        "umbrella",
        "mixer",
        "winter jacket",
        "camera",
        "mirror",
        "skateboard",
        "pillow",
        "printer",
        "lawn mower",
        "teapot",
        "carpet",
        "helmet",
    ],
    city: &["Malmo", "Seville", "Krakow", "Bristol", "Ghent", "Turin", "Aarhus", "Nantes"],
    day: &["Tuesday", "Thursday", "Saturday"],
    colour: &["blue", "black", "white", "orange"],
    order: (5000, 9999),
    amount: (51, 98),
};

const PRACTICE: [&str; 26] = [
    "Hello, my {product} arrived today and it does not turn on. What can I do?",
    "I ordered a {product} last {day} and it is still not here. Where is my parcel?",
    "Can I change the delivery address of order {order} to {city}?",
    "The {product} I received is {colour}, but I ordered another color.",
    "Do you ship to {city}, and how long does it take?",
    "I would like to cancel order {order} before it leaves your warehouse.",
    "How long is the warranty on the {product}?",
    "You charged me {amount} dollars twice for order {order}.",
    "Is the {product} also available in {colour}?",
    "I lost the manual of my {product}. Can you send me a new one?",
    "My discount code does not work for the {product}.",
    "Are you open on {day}?",
    "The box of my {product} was damaged when it arrived in {city}.",
    "May I return a {product} that I have used only once?",
    "When will the {product} be back in stock?",
    "I paid {amount} dollars for shipping, which seems too much. Can you check it?",
    "Please tell me whether order {order} has been paid.",
    "What is the difference between the small and the large {product}?",
    "Your courier left my {product} with a neighbor whom I do not know.",
    "Could you deliver order {order} on {day} instead?",
    "I want to give the {product} as a present. Do you wrap gifts?",
    "A part of my {product} is missing. It should have come with it.",
    "Do you have a shop in {city} where I can try the {product}?",
    "The refund of {amount} dollars has not reached my account yet.",
    "Why was order {order} split into two parcels?",
    "How do I clean a {colour} {product} without damaging it?",
];

const HELD_OUT: [&str; 14] = [
    "It is {day} already and nobody has answered my question about the {product}.",
    "Could someone explain how to set up the {product}? The steps are confusing.",
    "I moved to {city}, so please send the {product} there.",
    "My invoice for number {order} shows the wrong name.",
    "There is a scratch on the {colour} {product} that came this morning.",
    "Does the price of {amount} dollars for the {product} include tax?",
    "I would rather pick up number {order} myself in {city}.",
    "The {product} makes a strange noise since {day}. Is that normal?",
    "If I buy two of the {product}, do I get a lower price?",
    "Thank you for the quick help with my {product}, it works again!",
    "The tracking page of number {order} has not changed since {day}.",
    "Which {product} would you recommend for a budget of {amount} dollars?",
    "I accidentally chose {colour} for the {product}. Is it too late to swap it?",
    "Please delete my account after number {order} has been delivered to {city}.",
];

/// Messages to practise on.
pub fn practice(count: usize, seed: u64) -> Vec<Item> {
    items("message-practice", &PRACTICE, &PRACTICE_VALUES, count, seed)
}

/// Messages that no practice has seen, nor their templates and values.
pub fn held_out(count: usize, seed: u64) -> Vec<Item> {
    items("message-held-out", &HELD_OUT, &HELD_OUT_VALUES, count, seed)
}

fn items(
    name: &str,
    templates: &[&'static str],
    values: &Values,
    count: usize,
    seed: u64,
) -> Vec<Item> {
    let mut rng = Rng::with_seed(seed);
    let made = different(&mut rng, templates.len(), count, &mut HashSet::new(), |rng, template| {
        let mut one = |words: &[&str]| words[rng.usize(..words.len())].to_owned();
        let words = [
            ("product", one(values.product)),
            ("city", one(values.city)),
            ("day", one(values.day)),
            ("colour", one(values.colour)),
        ];
        let mut number = |(from, to): (u32, u32)| rng.u32(from..=to).to_string();
        let numbers = [("order", number(values.order)), ("amount", number(values.amount))];
        (fill(&fill(templates[template], &words), &numbers), ())
    });
    let item = |(at, (prompt, ())): (usize, (String, ()))| Item {
        id: format!("{name}-{}", at + 1),
        prompt,
        answer: None,
        truth: Truth::Regex(PATTERN),
    };
    made.into_iter().enumerate().map(item).collect()
}

/// Words that say nothing about a message.
const EMPTY: [&str; 44] = [
    "about", "after", "again", "also", "been", "before", "can", "could", "does", "from", "have",
    "help", "here", "into", "just", "know", "like", "more", "much", "only", "other", "please",
    "should", "some", "than", "thank", "that", "their", "them", "then", "there", "they", "this",
    "very", "want", "what", "when", "where", "which", "will", "with", "would", "your", "yours",
];

/// Whether an answer shares a word with its message that says something.
pub fn shares_a_content_word(message: &str, answer: &str) -> bool {
    !content_words(message).is_disjoint(&content_words(answer))
}

/// In lower case, without the s of a plural.
fn content_words(text: &str) -> BTreeSet<String> {
    let words = text.split(|it: char| !it.is_alphanumeric()).map(str::to_lowercase);
    let counts = |word: &String| 4 <= word.len() && !EMPTY.contains(&word.as_str());
    words.filter(counts).map(|word| word.trim_end_matches('s').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_TEMPLATES: usize = PRACTICE.len() + HELD_OUT.len();

    fn prompts(items: &[Item]) -> BTreeSet<&str> {
        items.iter().map(|item| item.prompt.as_str()).collect()
    }

    #[test]
    fn there_are_enough_different_messages_of_enough_templates() {
        const { assert!(30 <= N_TEMPLATES) };
        let (practice, held_out) = (practice(150, 1), held_out(200, 1));
        assert_eq!((prompts(&practice).len(), prompts(&held_out).len()), (150, 200));
        let all = practice.iter().chain(&held_out);
        assert!(all.clone().all(|item| !item.prompt.contains(['{', '}'])), "every slot is filled");
        assert_eq!(all.map(|item| item.id.as_str()).collect::<BTreeSet<_>>().len(), 350);
    }

    #[test]
    fn practice_and_held_out_share_neither_template_nor_value() {
        assert!(PRACTICE.iter().all(|template| !HELD_OUT.contains(template)));
        let (a, b) = (&PRACTICE_VALUES, &HELD_OUT_VALUES);
        let lists =
            [(a.product, b.product), (a.city, b.city), (a.day, b.day), (a.colour, b.colour)];
        for (a, b) in lists {
            assert!(a.iter().all(|word| !b.contains(word)), "{a:?} {b:?}");
        }
        assert!(a.order.1 < b.order.0 && a.amount.1 < b.amount.0);
        let (practice, held_out) = (practice(150, 3), held_out(200, 3));
        assert!(prompts(&practice).is_disjoint(&prompts(&held_out)));
    }

    #[test]
    fn a_seed_gives_the_same_messages_and_another_one_others() {
        assert_eq!(practice(150, 7), practice(150, 7));
        assert_ne!(practice(150, 7), practice(150, 8));
    }

    #[test]
    fn one_short_sentence_is_right() {
        let truth = Truth::Regex(PATTERN);
        assert!(truth.holds("You can return the kettle within thirty days."));
        for wrong in
            ["Yes.", "you can return the kettle.", "Sure. You can return it.", "No end here"]
        {
            assert!(!truth.holds(wrong), "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_about_its_message() {
        let message = "Where are my two kettles?";
        assert!(shares_a_content_word(message, "The kettle is on its way."));
        assert!(!shares_a_content_word(message, "Where would that be?"));
    }
}
