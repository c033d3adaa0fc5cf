//! Accuracy by round and arm as one SVG: a column a judge, greedy answers above and sampled ones
//! below. Used by `main`.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea as _};
use plotters::prelude::{Circle, LineSeries, PathElement, SVGBackend};
use plotters::style::{BLACK, Color as _, RGBColor, WHITE};

use crate::arms::{Arm, JUDGES, Judge};
use crate::results::{Number, Results};

const SIZE: (u32, u32) = (1080, 800);

/// The number of a row of panels, and its axis. Bars are its ranges: 95 % intervals for greedy
/// answers, least and most of the seeds for sampled ones.
const ROWS: [(&str, &str); 2] =
    [("greedy", "held-out greedy accuracy, %"), ("mean_at_8", "held-out mean@8, %")];

/// Lines from M0 over round 1 to round 2, where an arm has one. Colour-blind readers can tell the
/// colours apart; the last number moves the points of one round beside each other.
const LINES: [(&str, &[Arm], RGBColor, f64); 4] = [
    ("RLRF", &[Arm::Rlrf1, Arm::Rlrf2], RGBColor(0, 90, 181), 0.0),
    ("RS, then DPO", &[Arm::Rs, Arm::RsThenDpo], RGBColor(220, 110, 0), 0.04),
    ("drafts only", &[Arm::DraftsOnly], RGBColor(0, 130, 80), -0.04),
    ("reward only", &[Arm::RewardOnly], RGBColor(150, 60, 150), 0.08),
];

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws the plot.
pub(crate) fn draw(path: &Path, results: &Results) -> anyhow::Result<()> {
    try_draw(path, results)
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("draw {}", path.display()))
}

fn try_draw(path: &Path, results: &Results) -> Drawn {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let places = ROWS.into_iter().flat_map(|row| JUDGES.map(|judge| (row, judge)));
    let panels = area.split_evenly((ROWS.len(), JUDGES.len()));
    for (panel, (row, judge)) in panels.iter().zip(places) {
        draw_panel(panel, row, judge, results)?;
    }
    area.present()?;
    Ok(())
}

fn draw_panel(
    panel: &Panel<'_>,
    (what, axis): (&str, &str),
    judge: Judge,
    results: &Results,
) -> Drawn {
    let mut chart = ChartBuilder::on(panel)
        .caption(judge.title(), ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(-0.2..2.2, 40.0..100.0)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_labels(3)
        .x_label_formatter(&|round| format!("{round:.0}"))
        .x_desc("round")
        .y_desc(axis)
        .draw()?;
    for (name, arms, colour, shift) in LINES {
        let of_arms = arms.iter().map(|arm| {
            let accuracy = results.get(&format!("{}/{}/{what}", judge.name(), arm.name()));
            (f64::from(arm.round()), accuracy)
        });
        let points: Vec<(f64, Number)> = std::iter::once((0.0, results.get(&format!("m0/{what}"))))
            .chain(of_arms)
            .map(|(round, accuracy)| (round + shift, accuracy))
            .collect();
        let line = points.iter().map(|&(x, accuracy)| (x, 100.0 * accuracy.value));
        chart
            .draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(line.map(|point| Circle::new(point, 3, colour.filled())))?;
        let intervals = points.iter().filter_map(|&(x, accuracy)| {
            let (lo, hi) = accuracy.range?;
            Some(PathElement::new([(x, 100.0 * lo), (x, 100.0 * hi)], colour.stroke_width(1)))
        });
        chart.draw_series(intervals)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}
