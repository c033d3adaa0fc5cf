//! Results as Markdown tables. Pure: the same results give the same text. Used by `main`.

use std::fmt::Write as _;

use crate::arms::{ARMS, Arm, EXPLORERS, JUDGES, Judge, name};
use crate::results::{ARM_COMPARISONS, GOALS, JUDGE_COMPARISONS, Number, Results, SIGNIFICANT};
use testkit::bench::results::Provenance;

/// All tables with a line above each.
pub(crate) fn render(results: &Results) -> String {
    let scale = &results.scale;
    let Provenance { machine, commit, .. } = results.provenance();
    let mut text = format!(
        "{} held-out problems, {} seeds, {} problems a round, (n, m) = ({}, {}). Machine: {machine}. \
         Commit: {commit}. Sum of all steps: {:.0} min.\n",
        scale.held_out,
        scale.seeds,
        scale.prompts,
        scale.drafts,
        scale.refinements,
        results.get("all/wall_s").value / 60.0
    );
    if scale.is_development {
        text.push_str("\n**On the development set: for choosing settings, not for reporting.**\n");
    }
    for (title, table) in [
        ("Beside the paper's table", beside_the_paper(results)),
        ("Greedy accuracy", accuracy(results)),
        (
            "Answers sampled at temperature 1, and their length, distance and diversity",
            answers(results),
        ),
        ("Arms against each other", arms_compared(results)),
        ("Judges against each other", judges_compared(results)),
        ("Judges against the verifier", judges(results)),
        ("Accepted answers by their texts, drafts and refinements", picked(results)),
        ("Pairs against the verifier", pairs(results)),
        ("Seconds of a unit (one judge, one seed)", times(results)),
        ("Goals", goals(results)),
    ] {
        write!(text, "\n**{title}**\n\n{table}").expect("writing to a string succeeds");
    }
    text
}

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let owned: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    let rows: String = rows.into_iter().map(|row| line(&row)).collect();
    line(&owned) + &rule + &rows
}

/// Every judge with every arm.
fn every<'a>() -> impl Iterator<Item = (Judge, Arm)> + 'a {
    JUDGES.into_iter().flat_map(|judge| ARMS.into_iter().map(move |arm| (judge, arm)))
}

/// The paper's GSM8K column (13 billion parameters), which is judged with a reference; `None`: it
/// has no such row.
const PAPER: [(Option<Arm>, &str, Option<f64>); 7] = [
    (None, "M0", Some(41.77)),
    (Some(Arm::Rs), "M1 RS", Some(47.84)),
    (Some(Arm::Rlrf1), "M1 DPO", Some(47.92)),
    (Some(Arm::Rlrf2), "M2 DPO -> DPO", Some(49.66)),
    (Some(Arm::RsThenDpo), "M2 RS -> DPO", Some(51.02)),
    (Some(Arm::RewardOnly), "reward-only DPO", Some(41.09)),
    (Some(Arm::DraftsOnly), "drafts-only DPO", None),
];

fn beside_the_paper(results: &Results) -> String {
    let base = results.get("m0/greedy").value;
    let rows = PAPER.into_iter().map(|(arm, title, paper)| {
        let cell = |accuracy: f64, gain: f64| match arm {
            None => format!("{accuracy:.1}"),
            Some(_) => format!("{accuracy:.1} ({gain:+.1})"),
        };
        let m0 = PAPER[0].2.unwrap_or_default();
        let mut row = vec![
            title.to_owned(),
            paper.map_or_else(|| NONE.to_owned(), |paper| cell(paper, paper - m0)),
        ];
        for judge in JUDGES {
            let accuracy = match arm {
                None => base,
                Some(arm) => results.get(&format!("{}/{}/greedy", judge.name(), arm.name())).value,
            };
            row.push(cell(100.0 * accuracy, 100.0 * (accuracy - base)));
        }
        row
    });
    let judges = JUDGES.map(|judge| format!("nano, {}", judge.title()));
    let head = ["", "paper, GSM8K"].into_iter().chain(judges.iter().map(String::as_str));
    table(&head.collect::<Vec<_>>(), rows)
}

fn accuracy(results: &Results) -> String {
    let base = results.get("m0/greedy");
    let seeds = 1..=results.scale.seeds;
    let base_row = vec![
        "-".to_owned(),
        "M0".to_owned(),
        share(base),
        interval(base),
        "-".to_owned(),
        "-".to_owned(),
        "-".to_owned(),
        "-".to_owned(),
        "-".to_owned(),
    ];
    let rows = every().map(|(judge, arm)| {
        let at = format!("{}/{}", judge.name(), arm.name());
        let accuracy = results.get(&format!("{at}/greedy"));
        let gain = results.get(&format!("{at}/gain"));
        let of_seeds = |what: &str| -> Vec<Number> {
            seeds.clone().map(|seed| results.get(&format!("{at}/{what}/{seed}"))).collect()
        };
        let each: Vec<String> = of_seeds("greedy").iter().map(|&one| with_interval(one)).collect();
        let worst = of_seeds("gain").iter().filter_map(|one| one.p).fold(0.0, f64::max);
        vec![
            judge.title().to_owned(),
            arm.title().to_owned(),
            share(accuracy),
            interval(accuracy),
            points(gain),
            points_interval(gain),
            p(gain.p),
            each.join("; "),
            p(Some(worst)),
        ]
    });
    table(
        &[
            "judge",
            "arm",
            "accuracy",
            "95 %",
            "gain over M0",
            "95 %",
            "p",
            "each seed",
            "largest p of a seed",
        ],
        std::iter::once(base_row).chain(rows),
    )
}

fn answers(results: &Results) -> String {
    let row = |judge: &str, arm: &str, at: &str| {
        let get = |what: &str| results.get(&format!("{at}/{what}"));
        let gain = results.find(&format!("{at}/gain/at_8")).map_or_else(
            || NONE.to_owned(),
            |gain| format!("{} ({})", points(gain), points_interval(gain)),
        );
        vec![
            judge.to_owned(),
            arm.to_owned(),
            share(get("mean_at_8")),
            gain,
            share(get("pass_at_8")),
            tokens(get("greedy_tokens")),
            tokens(get("sample_tokens")),
            format!("{:.3}", get("kl_per_token").value),
            format!("{:.3}", get("distinct_1").value),
            format!("{:.3}", get("distinct_2").value),
            share(get("different")),
        ]
    };
    let rows = every().map(|(judge, arm)| {
        row(judge.title(), arm.title(), &format!("{}/{}", judge.name(), arm.name()))
    });
    table(
        &[
            "judge",
            "arm",
            "mean@8",
            "gain over M0 (95 %)",
            "pass@8",
            "tokens, greedy",
            "tokens, sampled",
            "KL to M0 a token",
            "distinct-1",
            "distinct-2",
            "different of 8",
        ],
        std::iter::once(row("-", "M0", "m0")).chain(rows),
    )
}

fn arms_compared(results: &Results) -> String {
    let pairs = JUDGES
        .into_iter()
        .flat_map(|judge| ARM_COMPARISONS.into_iter().map(move |pair| (judge, pair)));
    let rows = pairs.map(|(judge, (first, second))| {
        let at = format!("{}/{}-{}/gain", judge.name(), second.name(), first.name());
        let what = format!("{} over {}", second.title(), first.title());
        compared(results, judge.title(), what, &at)
    });
    table(&COMPARED, rows)
}

fn judges_compared(results: &Results) -> String {
    let pairs =
        JUDGE_COMPARISONS.into_iter().flat_map(|pair| ARMS.into_iter().map(move |arm| (pair, arm)));
    let rows = pairs.map(|((first, second), arm)| {
        let at = format!("{}-{}/{}/gain", second.name(), first.name(), arm.name());
        let what = format!("{} over {}", second.title(), first.title());
        compared(results, arm.title(), what, &at)
    });
    table(&COMPARED, rows)
}

const COMPARED: [&str; 8] = [
    "under",
    "comparison",
    "difference, greedy",
    "95 %",
    "p",
    "each seed (p)",
    "difference, mean@8",
    "p",
];

fn compared(results: &Results, under: &str, what: String, at: &str) -> Vec<String> {
    let (greedy, sampled) = (results.get(at), results.get(&format!("{at}/at_8")));
    let each = (1..=results.scale.seeds).map(|seed| {
        let one = results.get(&format!("{at}/{seed}"));
        format!("{} ({})", points(one), p(one.p))
    });
    vec![
        under.to_owned(),
        what,
        points(greedy),
        points_interval(greedy),
        p(greedy.p),
        each.collect::<Vec<_>>().join("; "),
        format!("{} ({})", points(sampled), points_interval(sampled)),
        p(sampled.p),
    ]
}

fn judges(results: &Results) -> String {
    let kinds = JUDGES.into_iter().flat_map(|judge| {
        EXPLORERS
            .into_iter()
            .flat_map(move |by| ["drafts", "refinements"].map(|kind| (judge, by, kind)))
    });
    let rows = kinds.map(|(judge, by, kind)| {
        let at = format!("{}/explored_by_{}", judge.name(), name(by));
        let get = |what: &str| results.get(&format!("{at}/{kind}/{what}"));
        let passing = if kind == "drafts" {
            "prompts_with_passing_draft"
        } else {
            "prompts_with_passing_answer"
        };
        vec![
            judge.title().to_owned(),
            format!("{kind} by {}", by.map_or("M0", Arm::title)),
            format!("{:.0}", get("answers").value),
            share(get("right")),
            share(get("passing")),
            share(get("accepted_right")),
            share(get("false_accept")),
            share(get("false_reject")),
            decimal(get("auc")),
            share(results.get(&format!("{at}/{passing}"))),
        ]
    });
    let shown = ["at_threshold", "at_half"].map(|key| {
        let get = |what: &str| results.get(&format!("own/shown/{key}/{what}"));
        let at = if key == "at_threshold" { "the agent's thresholds" } else { "thresholds of 0.5" };
        vec![
            format!("own judge, shown the reference, {at}"),
            "drafts by M0".to_owned(),
            NONE.to_owned(),
            NONE.to_owned(),
            NONE.to_owned(),
            NONE.to_owned(),
            share(get("false_accept")),
            share(get("false_reject")),
            decimal(get("auc")),
            NONE.to_owned(),
        ]
    });
    table(
        &[
            "judge",
            "answers",
            "a seed",
            "right",
            "accepted",
            "accepted are right",
            "false accept",
            "false reject",
            "AUC",
            "prompts with one that passes",
        ],
        rows.chain(shown),
    )
}

fn picked(results: &Results) -> String {
    let kinds =
        JUDGES.into_iter().flat_map(|judge| EXPLORERS.into_iter().map(move |by| (judge, by)));
    let rows = kinds.map(|(judge, by)| {
        let at = format!("{}/explored_by_{}", judge.name(), name(by));
        let get = |what: &str| share(results.get(&format!("{at}/{what}")));
        vec![
            judge.title().to_owned(),
            by.map_or("M0", Arm::title).to_owned(),
            get("texts_right"),
            get("best_right"),
            get("most_frequent_right"),
        ]
    });
    table(
        &[
            "judge",
            "explored by",
            "accepted texts that are right, each counted once",
            "right: the accepted text with the largest scalar",
            "right: the one that was sampled most often",
        ],
        rows,
    )
}

fn pairs(results: &Results) -> String {
    let rows = every().map(|(judge, arm)| {
        let at = format!("{}/{}", judge.name(), arm.name());
        let get = |what: &str| results.get(&format!("{at}/{what}"));
        let promoted = get("gate_promotes").value * results.scale.seeds as f64;
        vec![
            judge.title().to_owned(),
            arm.title().to_owned(),
            format!("{:.0}", get("pairs").value),
            share(get("chosen_right")),
            share(get("rejected_right")),
            share(get("chosen_refined")),
            tokens(get("chosen_tokens")),
            tokens(get("rejected_tokens")),
            format!("{promoted:.0} of {}", results.scale.seeds),
            format!("{:+.3}", get("gate_gain").value),
        ]
    });
    table(
        &[
            "judge",
            "arm",
            "pairs",
            "chosen right",
            "rejected right",
            "chosen are refinements",
            "tokens, chosen",
            "tokens, rejected",
            "the gate would promote",
            "its gain",
        ],
        rows,
    )
}

fn times(results: &Results) -> String {
    let rows = JUDGES.into_iter().map(|judge| {
        let get = |what: &str| {
            format!("{:.0}", results.get(&format!("{}/times/{what}_wall_s", judge.name())).value)
        };
        vec![judge.title().to_owned(), get("explored"), get("trained"), get("answered")]
    });
    table(
        &["judge", "exploring three times", "training and gate, six times", "answering, six times"],
        rows,
    )
}

fn goals(results: &Results) -> String {
    let rows = GOALS.into_iter().map(|(judge, goal)| {
        let at = format!("{}/{}/gain", judge.name(), Arm::Rlrf2.name());
        let gain = results.get(&at);
        let each: Vec<Number> =
            (1..=results.scale.seeds).map(|seed| results.get(&format!("{at}/{seed}"))).collect();
        let is_significant = each.iter().all(|one| one.p.is_some_and(|p| p < SIGNIFICANT));
        let holds = goal <= gain.value && is_significant;
        vec![
            judge.title().to_owned(),
            format!(
                "at least {:+.0} points in two rounds, p < {SIGNIFICANT} in every seed",
                100.0 * goal
            ),
            format!("{} {}", points(gain), points_interval(gain)),
            if holds { "yes" } else { "**no**" }.to_owned(),
        ]
    });
    table(&["judge", "goal", "gain", "reached"], rows)
}

const NONE: &str = "-";

fn share(number: Number) -> String {
    if number.value.is_nan() { NONE.to_owned() } else { format!("{:.1} %", 100.0 * number.value) }
}

fn decimal(number: Number) -> String {
    if number.value.is_nan() { NONE.to_owned() } else { format!("{:.3}", number.value) }
}

fn tokens(number: Number) -> String {
    if number.value.is_nan() { NONE.to_owned() } else { format!("{:.1}", number.value) }
}

fn interval(number: Number) -> String {
    number.range.map_or_else(
        || NONE.to_owned(),
        |(lo, hi)| format!("{:.1} to {:.1}", 100.0 * lo, 100.0 * hi),
    )
}

fn with_interval(number: Number) -> String {
    format!("{:.1} ({})", 100.0 * number.value, interval(number))
}

fn points(number: Number) -> String {
    format!("{:+.1}", 100.0 * number.value)
}

fn points_interval(number: Number) -> String {
    number.range.map_or_else(
        || NONE.to_owned(),
        |(lo, hi)| format!("{:+.1} to {:+.1}", 100.0 * lo, 100.0 * hi),
    )
}

fn p(value: Option<f64>) -> String {
    match value {
        None => NONE.to_owned(),
        Some(p) if p < 0.0001 => "< 0.0001".to_owned(),
        Some(p) => format!("{p:.4}"),
    }
}
