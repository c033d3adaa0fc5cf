//! `reflectd pairs --preview`: what the next run would learn. Called by `cli::run`.

use console::Term;
use serde_json::json;

use super::client::Client;
use super::table::{NONE, Table};
use super::terminal;
use crate::learn::job::Lesson;
use crate::learn::{Preview, Shown};
use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What the next scheduled run would learn from, and what is left out and why.
    #[arg(long, required = true)]
    preview: bool,
    /// Lines at most.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Print JSON for machines, with whole texts.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    let preview: Preview = client.get(&format!("/v1/pairs?limit={}", arguments.limit)).await?;
    if arguments.json {
        terminal::print_json(&json!(preview))?;
    } else {
        // 80 where standard output is no terminal.
        let (_, width) = Term::stdout().size();
        terminal::print(&render(&preview, width.into()))?;
    }
    Ok(Exit::Ok)
}

/// What a cause is called for people.
const CAUSES: [(&str, &str); 10] = [
    ("held_out", "prompts are held out"),
    ("near_copies", "prompts are near copies of held-out prompts"),
    ("no_positive", "prompts have no answer that passes"),
    ("nothing_to_reject", "prompts have no answer to reject"),
    ("margin_filter", "prompts have answers that are too alike in score (learn.pairs.min_margin)"),
    ("length_filter", "prompts have answers that differ in length (learn.pairs.max_length_ratio)"),
    ("likeness_filter", "prompts have refinements too like their drafts (max_parent_similarity)"),
    ("equal_answers", "answers have the same text as another one"),
    ("over_per_prompt", "pairs or answers are beyond learn.pairs.per_prompt"),
    ("stale", "old pairs, of whose answers something else is said by now"),
];

fn render(preview: &Preview, width: usize) -> String {
    let Preview { lesson, total, new, wanted, data, left_out } = preview;
    let what = if *lesson == Lesson::Examples { "examples" } else { "pairs and answers" };
    let waits =
        if new < wanted { format!("; it waits for {wanted} new ones") } else { String::new() };
    let mut parts =
        vec![format!("The next run would learn from {total} {what}, {new} of them new{waits}.\n")];
    if !data.is_empty() {
        parts.push(format!("\n{}", table(data, width)));
    }
    if data.len() < *total {
        parts.push(format!("... and {} more (--limit)\n", total - data.len()));
    }
    if !left_out.is_empty() {
        parts.push("\nLeft out:\n".to_owned());
    }
    let known = CAUSES.iter().filter_map(|(cause, says)| Some((left_out.get(*cause)?, says)));
    parts.extend(known.map(|(n, says)| format!("{n:7} {says}\n")));
    parts.concat()
}

fn table(data: &[Shown], width: usize) -> String {
    // The other columns and the spaces between all of them take 27.
    let each = width.saturating_sub(27).max(30) / 3;
    let answer =
        |text: Option<&String>| text.map_or_else(|| NONE.to_owned(), |text| shortened(text, each));
    let mut table = Table::new(["exchange", "margin", "new", "prompt", "chosen", "rejected"]);
    for shown in data {
        table.row([
            shown.exchange.to_string(),
            format!("{:.2}", shown.margin),
            if shown.is_new { "yes" } else { "no" }.to_owned(),
            shortened(&shown.prompt, each),
            answer(shown.chosen.as_ref()),
            answer(shown.rejected.as_ref()),
        ]);
    }
    table.render()
}

/// In one line of so many characters.
fn shortened(text: &str, width: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= width {
        return line;
    }
    line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn preview() -> Preview {
        serde_json::from_value(json!({
            "lesson": "answers", "total": 3, "new": 2, "wanted": 50,
            "data": [
                {"exchange": 7, "agent": "mine", "prompt": "Turn on\nthe lamp ".repeat(9),
                 "chosen": "on", "rejected": "off", "margin": 1.5, "is_new": true},
                {"exchange": 8, "agent": "mine", "prompt": "b", "chosen": "on", "rejected": null,
                 "margin": 0.0, "is_new": false},
            ],
            "left_out": {"near_copies": 12, "no_positive": 3, "stale": 1},
        }))
        .unwrap()
    }

    #[test]
    fn pairs_fit_into_the_terminal_and_what_is_left_out_has_its_causes() {
        let text = render(&preview(), 80);
        assert!(
            text.starts_with(
                "The next run would learn from 3 pairs and answers, 2 of them new; it"
            )
        );
        // But for the sentence before the table.
        assert!(text.lines().skip(1).all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("Turn on the lamp…  on"), "{text}");
        assert!(text.contains("... and 1 more"), "{text}");
        assert!(text.contains("     12 prompts are near copies of held-out prompts\n"), "{text}");
        assert!(
            text.ends_with("      1 old pairs, of whose answers something else is said by now\n")
        );
    }

    #[test]
    fn nothing_to_learn_is_said_in_one_line() {
        let none =
            Preview { total: 0, new: 0, data: Vec::new(), left_out: BTreeMap::new(), ..preview() };
        let text = render(&none, 80);
        assert_eq!(
            text,
            "The next run would learn from 0 pairs and answers, 0 of them new; it waits for 50 new ones.\n"
        );
    }
}
