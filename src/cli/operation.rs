//! A long operation of the daemon: started, followed, and its outcome told. Used by the subcommands
//! that start one.

use serde_json::Value;

use super::client::Client;
use super::progress::{StageProgress, follow};
use super::reply::{Ended, Refining};
use super::table::span;
use super::{judge_report, terminal};
use crate::learn::LeftOut;
use crate::reflect::Compared;
use protocol::exit::Exit;

/// Starts a long operation of the daemon, shows how it goes and what came of it.
pub(super) async fn run_operation(
    client: &Client,
    path: &str,
    body: &Value,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let mut progress = StageProgress::default();
    let outcome = follow(client, path, body, |stage| progress.show(stage)).await?;
    progress.finish();
    if as_json {
        terminal::print_json(&outcome.json)?;
    } else {
        terminal::print(&describe(&outcome.ended))?;
    }
    Ok(exit(&outcome.ended))
}

/// Only a failed operation is a failure: a gate that refuses has done its work.
fn exit(ended: &Ended) -> Exit {
    let is_broken = matches!(ended, Ended::Failed { .. } | Ended::Interrupted { .. });
    if is_broken { Exit::Failed } else { Exit::Ok }
}

/// That prompts of files were left out, and why.
pub(super) fn without(left_out: &LeftOut) -> String {
    let LeftOut { held_out, near_copies } = left_out;
    match held_out + near_copies {
        0 => String::new(),
        _ => format!(
            "Left out: {held_out} held-out prompts, {near_copies} near copies of held-out prompts.\n"
        ),
    }
}

/// That refining was given up, and why.
fn stopped(refining: &Refining) -> String {
    let Compared { refinements, drafts, .. } = refining.compared;
    format!(
        "Stopped refining for {}: {:.2} of {} refinements pass for every 1,000 tokens, {:.2} of {} fresh \
         drafts.\n",
        refining.agent,
        refinements.per_1000_tokens(),
        refinements.answers,
        drafts.per_1000_tokens(),
        drafts.answers
    )
}

fn by_verifier(expected: u64, unfit: u64, unpursued: u64) -> String {
    let unpursued = (0 < unpursued).then(|| {
        format!(
            "Next to no answer passes, so {unpursued} prompts whose verifier names the right one were left after \
             their first drafts.\n"
        )
    });
    let expected = (0 < expected).then(|| {
        format!(
            "For {expected} prompts no answer was right; what their verifier expects is learned.\n"
        )
    });
    let unfit = (0 < unfit).then(|| {
        format!(
            "For {unfit} prompts what their verifier expects does not fit the chat template or the \
             context; the daemon's log names them.\n"
        )
    });
    unpursued.into_iter().chain(expected).chain(unfit).collect()
}

/// The outcome of a long operation in one line.
fn describe(ended: &Ended) -> String {
    match ended {
        Ended::Explored {
            prompts,
            candidates,
            positives,
            generated_tokens,
            enough,
            given_up,
            expected,
            unfit,
            unpursued,
            positives_per_1000_tokens,
            left_out,
            refining,
            wall_s,
        } => format!(
            "Explored {prompts} prompts in {} ({enough} had enough good and bad answers early, \
             {given_up} were given up): {candidates} new answers, {positives} pass every aspect; \
             {generated_tokens} tokens, {positives_per_1000_tokens:.2} of these for every 1,000.\n{}{}{}",
            span(*wall_s),
            by_verifier(*expected, *unfit, *unpursued),
            without(left_out),
            refining.iter().filter(|it| it.compared.stopped).map(stopped).collect::<String>()
        ),
        Ended::Calibrated { reports } => reports.iter().map(judge_report::show).collect(),
        Ended::Attacked { reports } => reports.iter().map(judge_report::show_attacks).collect(),
        Ended::Rescored { exchanges, candidates, wall_s } => format!(
            "Judged {candidates} answers to {exchanges} prompts again in {}.\n",
            span(*wall_s)
        ),
        Ended::Promoted { run, generation, share } if *share < 1.0 => format!(
            "Run {run} was promoted: generation {generation} answers {:.0} % of the chats for now.\n",
            100.0 * share
        ),
        Ended::Promoted { run, generation, .. } => {
            format!("Run {run} was promoted: generation {generation} answers now.\n")
        }
        Ended::Rejected { run, reason } => {
            format!("Run {run} was not promoted, the weights stay as they are: {reason}\n")
        }
        Ended::Interrupted { run, reason } => {
            format!("Run {run} was interrupted and goes on later: {reason}\n")
        }
        Ended::Failed { run: Some(run), reason } => format!("Run {run} failed: {reason}\n"),
        Ended::Failed { run: None, reason } => format!("Nothing was done: {reason}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_verifiers_have_named_is_said_in_numbers() {
        assert_eq!(by_verifier(0, 0, 0), "");
        let text = by_verifier(299, 2, 249);
        for said in
            ["249 prompts whose verifier names", "For 299 prompts no answer", "For 2 prompts what"]
        {
            assert!(text.contains(said), "{text}");
        }
        assert_eq!(text.lines().count(), 3);
    }
}
