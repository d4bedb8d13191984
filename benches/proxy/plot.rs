//! One SVG per scenario: CPU per request (user and kernel stacked) and throughput, with the interquartile range.
//!
//! Written by hand: two bar charts need no plotting library.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::measure::Spread;
use crate::report::spread;
use crate::run::{Plan, Row, Sample};

const ROW_PX: f64 = 26.0;
const LABEL_PX: f64 = 150.0;
const BAR_PX: f64 = 260.0;
const VALUE_PX: f64 = 70.0;
const PANEL_PX: f64 = BAR_PX + VALUE_PX;
const HEAD_PX: f64 = 54.0;
const USER: &str = "#4477aa";
const SYSTEM: &str = "#88bbdd";
const THROUGHPUT: &str = "#66aa77";

/// Writes `SCENARIO.svg` into `folder` for every scenario with samples.
pub fn write_all(folder: &Path, rows: &[Row], plan: &Plan) -> Result<()> {
    for scenario in &plan.scenarios {
        let own: Vec<&Row> = rows
            .iter()
            .filter(|row| row.scenario == scenario.name && !row.samples.is_empty())
            .collect();
        if own.is_empty() {
            continue;
        }
        let file = folder.join(format!("{}.svg", scenario.name));
        std::fs::write(&file, draw(scenario.name, &own))
            .with_context(|| file.display().to_string())?;
    }
    Ok(())
}

fn draw(name: &str, rows: &[&Row]) -> String {
    let width = LABEL_PX + 2.0 * PANEL_PX + 20.0;
    let height = HEAD_PX + ROW_PX * rows.len() as f64 + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"15\" font-weight=\"bold\">{name}</text>\n"
    );
    let right = LABEL_PX + PANEL_PX;
    let _ = writeln!(
        svg,
        "<text x=\"{LABEL_PX}\" y=\"42\">CPU per request, us: <tspan fill=\"{USER}\">user</tspan>, \
         <tspan fill=\"{SYSTEM}\">kernel</tspan></text>\n<text x=\"{right}\" y=\"42\">requests per second</text>"
    );
    let widest = |value: fn(&Sample) -> Option<f64>| {
        let ends = rows
            .iter()
            .filter_map(|row| spread(row, value))
            .map(|s| s.q3);
        ends.fold(f64::MIN_POSITIVE, f64::max)
    };
    let throughput: fn(&Sample) -> Option<f64> = |s| Some(s.throughput);
    let (cpu_max, throughput_max) = (widest(Sample::cpu_us), widest(throughput));
    for (n, row) in rows.iter().enumerate() {
        let y = HEAD_PX + ROW_PX * n as f64;
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{}\">{}</text>",
            y + 15.0,
            row.contender
        );
        if let (Some(user), Some(all)) =
            (spread(row, |s| s.cpu_user_us), spread(row, Sample::cpu_us))
        {
            let scale = BAR_PX / cpu_max;
            bar(&mut svg, LABEL_PX, y, all.median * scale, SYSTEM);
            bar(&mut svg, LABEL_PX, y, user.median * scale, USER);
            whisker(&mut svg, LABEL_PX, y, all, scale);
            value(
                &mut svg,
                LABEL_PX,
                y,
                all.q3 * scale,
                &format!("{:.2}", all.median),
            );
        }
        if let Some(all) = spread(row, throughput) {
            let scale = BAR_PX / throughput_max;
            bar(&mut svg, right, y, all.median * scale, THROUGHPUT);
            whisker(&mut svg, right, y, all, scale);
            value(
                &mut svg,
                right,
                y,
                all.q3 * scale,
                &format!("{:.0}", all.median),
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, x: f64, y: f64, width: f64, colour: &str) {
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>",
        y + 2.0,
        ROW_PX - 8.0
    );
}

fn whisker(svg: &mut String, x: f64, y: f64, spread: Spread, scale: f64) {
    let middle = y + 2.0 + (ROW_PX - 8.0) / 2.0;
    let (from, to) = (x + spread.q1 * scale, x + spread.q3 * scale);
    let _ = writeln!(
        svg,
        "<path d=\"M{from:.1} {middle}H{to:.1}M{from:.1} {0}V{1}M{to:.1} {0}V{1}\" stroke=\"black\"/>",
        middle - 4.0,
        middle + 4.0
    );
}

fn value(svg: &mut String, x: f64, y: f64, width: f64, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\">{text}</text>",
        x + width + 5.0,
        y + 15.0
    );
}
