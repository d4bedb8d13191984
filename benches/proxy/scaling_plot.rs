//! One SVG per dimension of `--scaling`: panels side by side, a line per contender, logarithmic to the right.
//!
//! Colours are chosen to be told apart by everybody and on light and dark ground; dashes and marks say it again.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::measure::Spread;
use crate::scaling::{Dimension, Point, Sample};

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 74.0;
const GAP: f64 = 76.0;
const BOTTOM: f64 = 52.0;
/// Beyond this ratio of largest to smallest a value axis is logarithmic too.
const LOG_RATIO: f64 = 20.0;
/// Colour on light, on dark ground, and dashes.
const LINES: [(&str, &str, &str); 6] = [
    ("#555555", "#bbbbbb", "2 3"),
    ("#aa5500", "#ee9944", "6 3"),
    ("#117733", "#66cc88", "1 0"),
    ("#225599", "#77aaee", "1 0"),
    ("#882277", "#dd88cc", "8 3 2 3"),
    ("#997700", "#ddbb44", "4 2"),
];

type Value = fn(&Sample) -> Option<f64>;

/// Writes a plot for every dimension that has points.
pub fn write_all(folder: &Path, points: &[Point]) -> Result<()> {
    let all = [
        Dimension::Clients,
        Dimension::Pipeline,
        Dimension::ValueSize,
        Dimension::Mirrors,
        Dimension::Cores,
        Dimension::IdleClients,
        Dimension::QueuedUnits,
    ];
    for dimension in all {
        let own: Vec<&Point> = points.iter().filter(|p| p.dimension == dimension).collect();
        if own.is_empty() {
            continue;
        }
        let file = folder.join(format!("{}.svg", dimension.names().0));
        std::fs::write(&file, draw(dimension, &own)).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

fn panels(dimension: Dimension) -> Vec<(&'static str, Value)> {
    match dimension {
        Dimension::IdleClients => vec![("bytes of memory per client", |s| s.bytes_each)],
        Dimension::QueuedUnits => vec![
            ("bytes of memory per queued unit", |s| s.bytes_each),
            ("bytes of memory per queued byte", |s| s.bytes_per_byte),
        ],
        _ => vec![
            ("CPU of the proxy per request, us", |s| s.cpu_us),
            ("requests per second", |s| Some(s.throughput)),
            ("p50, us", |s| Some(s.p50_us)),
            ("p99, us", |s| Some(s.p99_us)),
        ],
    }
}

/// Maps values to pixels of an axis.
#[derive(Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64> + Clone, log: bool) -> Self {
        let high = values.clone().fold(f64::MIN_POSITIVE, f64::max);
        let low = values.fold(high, f64::min);
        let log = log && low > 0.0;
        if log {
            let high = if high > low { high } else { low * 2.0 };
            Self { low, high, log }
        } else {
            Self {
                low: 0.0,
                high,
                log,
            }
        }
    }

    /// Of a value axis: logarithmic where the values are far apart, else from 0.
    fn of_values(values: impl Iterator<Item = f64> + Clone) -> Self {
        let linear = Self::of(values.clone(), false);
        let low = values.clone().fold(linear.high, f64::min);
        let log = low > 0.0 && linear.high / low > LOG_RATIO;
        let mut axis = Self::of(values, log);
        if log {
            axis.low = 10_f64.powf(axis.low.log10().floor());
        }
        axis.high *= 1.05;
        axis
    }

    /// 0 to 1.
    fn at(self, value: f64) -> f64 {
        if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            value / self.high
        }
    }

    fn ticks(self) -> Vec<f64> {
        if self.log {
            let (from, to) = (
                self.low.log10().ceil() as i32,
                self.high.log10().floor() as i32,
            );
            return (from..=to).map(|n| 10_f64.powi(n)).collect();
        }
        let rough = self.high / 4.0;
        let ten = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * ten)
            .find(|&step| step >= rough)
            .unwrap_or(ten * 10.0);
        (0..=4)
            .map(|n| f64::from(n) * step)
            .filter(|&tick| tick <= self.high)
            .collect()
    }
}

fn draw(dimension: Dimension, points: &[&Point]) -> String {
    let panels = panels(dimension);
    let (name, label) = dimension.names();
    let width = LEFT + panels.len() as f64 * (WIDTH + GAP);
    let height = TOP + HEIGHT + BOTTOM;
    let mut names: Vec<&str> = Vec::new();
    for point in points {
        if !names.contains(&point.contender.as_str()) {
            names.push(&point.contender);
        }
    }
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n{}\n<rect class=\"ground\" width=\"100%\" height=\"100%\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{name}</text>\n",
        style()
    );
    let mut x = LEFT;
    for (n, name) in names.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<path class=\"line c{}\" d=\"M{x:.0} 40h26\"/><text x=\"{:.0}\" y=\"44\">{name}</text>",
            n % LINES.len(),
            x + 32.0
        );
        x += 56.0 + 7.0 * name.len() as f64;
    }
    for (n, (title, value)) in panels.into_iter().enumerate() {
        let left = LEFT + n as f64 * (WIDTH + GAP);
        panel(&mut svg, left, title, label, points, &names, value);
    }
    svg.push_str("</svg>\n");
    svg
}

fn style() -> String {
    let mut light = String::from(
        "text{fill:#222}.ground{fill:#fff}.grid{stroke:#ddd}.axis{stroke:#888;fill:none}.line{fill:none;stroke-width:2}",
    );
    let mut dark =
        String::from("text{fill:#ddd}.ground{fill:#16181c}.grid{stroke:#33373d}.axis{stroke:#888}");
    for (n, (on_light, on_dark, dash)) in LINES.iter().enumerate() {
        let _ = write!(
            light,
            ".c{n}{{stroke:{on_light};stroke-dasharray:{dash}}}.m{n}{{fill:{on_light}}}"
        );
        let _ = write!(dark, ".c{n}{{stroke:{on_dark}}}.m{n}{{fill:{on_dark}}}");
    }
    format!("<style>{light}@media(prefers-color-scheme:dark){{{dark}}}</style>")
}

fn panel(
    svg: &mut String,
    left: f64,
    title: &str,
    label: &str,
    points: &[&Point],
    names: &[&str],
    value: Value,
) {
    let found: Vec<(&Point, Spread)> = points
        .iter()
        .filter_map(|point| Some((*point, point.spread(value)?)))
        .collect();
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"66\" font-weight=\"bold\">{title}</text>"
    );
    if found.is_empty() {
        return;
    }
    let xs = found.iter().map(|(point, _)| point.x as f64);
    let across = Axis::of(xs.clone(), true);
    let up = Axis::of_values(found.iter().flat_map(|(_, spread)| [spread.q1, spread.q3]));
    let to_x = |x: f64| left + across.at(x) * WIDTH;
    let to_y = |y: f64| TOP + HEIGHT - up.at(y) * HEIGHT;
    let bottom = TOP + HEIGHT;
    for tick in up.ticks() {
        let y = to_y(tick);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{left} {y:.1}h{WIDTH}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            y + 4.0,
            short(tick)
        );
    }
    let mut columns: Vec<u64> = found.iter().map(|(point, _)| point.x).collect();
    columns.sort_unstable();
    columns.dedup();
    for column in columns {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{}</text>",
            to_x(column as f64),
            bottom + 16.0,
            if label.starts_with("bytes") {
                binary(column)
            } else {
                short(column as f64)
            }
        );
    }
    let _ = writeln!(
        svg,
        "<path class=\"axis\" d=\"M{left} {TOP}V{bottom}h{WIDTH}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
        left + WIDTH / 2.0,
        bottom + 38.0
    );
    for (n, name) in names.iter().enumerate() {
        let colour = n % LINES.len();
        let mut line = String::new();
        let mut marks = String::new();
        for (point, spread) in found.iter().filter(|(point, _)| point.contender == *name) {
            let (x, y) = (to_x(point.x as f64), to_y(spread.median));
            let _ = write!(
                line,
                "{}{x:.1} {y:.1}",
                if line.is_empty() { 'M' } else { 'L' }
            );
            let _ = write!(
                marks,
                "<circle class=\"m{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/><path class=\"line c{colour}\" \
                 d=\"M{x:.1} {:.1}V{:.1}\" style=\"stroke-width:1\"/>",
                to_y(spread.q1),
                to_y(spread.q3)
            );
        }
        let _ = writeln!(svg, "<path class=\"line c{colour}\" d=\"{line}\"/>{marks}");
    }
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}k", v / 1e3),
        v => format!("{}", (v * 1000.0).round() / 1000.0),
    }
}

fn binary(value: u64) -> String {
    match value {
        v if v >= 1 << 20 => format!("{}Mi", v >> 20),
        v if v >= 1 << 10 => format!("{}Ki", v >> 10),
        v => v.to_string(),
    }
}
