//! Curves as SVG files. Used by `main`.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::drawing::IntoDrawingArea as _;
use plotters::prelude::{Circle, LineSeries, PathElement, SVGBackend};
use plotters::style::{BLACK, Color as _, RGBColor, WHITE};

use crate::results::Curve;
use testkit::bench::statistics::range;

const SIZE: (u32, u32) = (640, 400);
/// Blue, orange and green, which colour-blind readers can tell apart.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 90, 181), RGBColor(220, 110, 0), RGBColor(0, 130, 80)];

/// Draws the lines from zero.
pub(crate) fn draw(path: &Path, curve: &Curve) -> anyhow::Result<()> {
    try_draw(path, curve)
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("draw {}", path.display()))
}

fn try_draw(path: &Path, curve: &Curve) -> Result<(), Box<dyn std::error::Error>> {
    let most = |axis: fn(&(f64, f64)) -> f64| {
        let values: Vec<f64> = curve.lines.values().flatten().map(axis).collect();
        range(&values).map_or(1.0, |(_, most)| most * 1.05)
    };
    let (width, height) = (most(|point| point.0), most(|point| point.1));
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&curve.title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..width, 0.0..height)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_desc(&curve.x)
        .y_desc(&curve.y)
        .draw()?;
    for ((name, points), colour) in curve.lines.iter().zip(COLOURS.into_iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        let dots = points.iter().map(|&point| Circle::new(point, 3, colour.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}
