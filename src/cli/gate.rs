//! `reflectd gate plan`: how many held-out prompts a gain needs, before anybody writes them. Pure but
//! for the printing. Called by `cli::run`.

use clap::Subcommand;
use serde_json::json;

use super::table::{Table, or_none};
use super::terminal;
use crate::learn::gate::prompts_needed;
use protocol::exit::Exit;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say how many held-out prompts show a gain.
    Plan(Plan),
}

#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    /// The gain in the mean score to be seen, for example 0.05 [default: several].
    #[arg(long, value_parser = parse_share)]
    gain: Option<f64>,
    /// Share of prompts that only one of the two generations answers well.
    #[arg(long, default_value_t = 0.3, value_parser = parse_share)]
    discordant: f64,
    /// What the gain has to be above (gate.margin).
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    margin: f64,
    /// One-sided confidence (gate.confidence).
    #[arg(long, default_value_t = 0.95, value_parser = parse_share)]
    confidence: f64,
    /// The probability of seeing the gain.
    #[arg(long, default_value_t = 0.8, value_parser = parse_share)]
    power: f64,
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

/// Gains worth planning for.
const GAINS: [f64; 5] = [0.02, 0.03, 0.05, 0.1, 0.2];

pub(super) fn run(command: &Command) -> anyhow::Result<Exit> {
    let Command::Plan(plan) = command;
    let gains = plan.gain.map_or(GAINS.to_vec(), |gain| vec![gain]);
    let needed = |gain: f64| {
        // The gain is at most the share of prompts on which the two generations differ.
        let discordant = plan.discordant.max(gain);
        prompts_needed(gain, plan.margin, discordant, plan.confidence, plan.power)
    };
    if plan.json {
        let Plan { discordant, margin, confidence, power, .. } = plan;
        let row = |gain: &f64| json!({ "gain": gain, "prompts": needed(*gain) });
        terminal::print_json(&json!({
            "discordant": discordant, "margin": margin, "confidence": confidence, "power": power,
            "plans": gains.iter().map(row).collect::<Vec<_>>(),
        }))?;
    } else {
        let mut table = Table::new(["gain", "held-out prompts"]);
        for gain in &gains {
            table.row([gain.to_string(), or_none(needed(*gain))]);
        }
        terminal::print(&table.render())?;
    }
    Ok(Exit::Ok)
}

fn parse_share(word: &str) -> Result<f64, String> {
    match word.parse() {
        Ok(share) if 0.0 < share && share < 1.0 => Ok(share),
        _ => Err(format!("{word:?} is not a number between 0 and 1")),
    }
}
