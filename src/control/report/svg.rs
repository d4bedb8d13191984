//! The latency chart of the report: latency over percentile, both axes logarithmic, so that the tail is as wide
//! as the middle.

use std::fmt::Write;

use crate::control::table::{count, duration, nanos};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;

/// The percentiles on the axis.
const TICKS: [(f64, &str); 6] = [
    (0.0, "0"),
    (0.5, "50 %"),
    (0.9, "90 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (0.9999, "99.99 %"),
];

/// The distributions as `(nanoseconds, count)` in ascending order.
pub(super) fn latency_svg(primary: &[(u64, u64)], mirror: &[(u64, u64)]) -> String {
    let values = || {
        primary
            .iter()
            .chain(mirror)
            .map(|(value, _)| (*value).max(1))
    };
    let (Some(min), Some(max)) = (values().min(), values().max()) else {
        return String::new();
    };
    let scale = Scale::new(min, max);
    let mut svg = format!(
        "<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Latency by percentile, primary and mirror\">"
    );
    scale.grid(&mut svg);
    for (class, cells) in [("primary", primary), ("mirror", mirror)] {
        // Writing to a String cannot fail.
        let _ = write!(svg, "<path class=\"{class}\" d=\"{}\"/>", scale.path(cells));
    }
    svg.push_str(
        "</svg><figcaption><span class=\"key primary\"></span>primary \
         <span class=\"key mirror\"></span>mirror</figcaption></figure>\n",
    );
    svg
}

/// What was added in one interval.
pub(super) struct Step {
    /// Its begin, in seconds since the start.
    pub(super) from: u64,
    /// Its end.
    pub(super) to: u64,
    /// Units delivered.
    pub(super) delivered: u64,
    /// Units dropped or errored.
    pub(super) lost: u64,
}

/// Delivered and lost units per second over time, as two areas from zero.
pub(super) fn timeline_svg(steps: &[Step]) -> String {
    const HIGH: f64 = 180.0;
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
        return String::new();
    };
    let per_second =
        |units: u64, step: &Step| units as f64 / step.to.saturating_sub(step.from).max(1) as f64;
    let rates = |of: fn(&Step) -> u64| steps.iter().map(move |step| per_second(of(step), step));
    let max = rates(|step| step.delivered)
        .chain(rates(|step| step.lost))
        .fold(1.0, f64::max);
    let whole = last.to.saturating_sub(first.from).max(1) as f64;
    let x = |at: u64| LEFT + at.saturating_sub(first.from) as f64 / whole * (WIDTH - LEFT - RIGHT);
    let y = |rate: f64| HIGH - BOTTOM - rate / max * (HIGH - TOP - BOTTOM);
    let mut svg = format!(
        "<figure><svg viewBox=\"0 0 {WIDTH} {HIGH}\" role=\"img\" \
         aria-label=\"Units delivered and lost per second, over time\">"
    );
    // Writing to a String cannot fail.
    for (rate, anchor) in [
        (0.0, "0".to_owned()),
        (max, format!("{}/s", count(max.ceil() as u64))),
    ] {
        let at = y(rate);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{anchor}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0
        );
    }
    for (at, anchor) in [(first.from, "start"), (last.to, "end")] {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            x(at),
            HIGH - 12.0,
            duration(at as f64)
        );
    }
    for (class, of) in [
        ("primary", (|step| step.delivered) as fn(&Step) -> u64),
        ("lost", |step| step.lost),
    ] {
        let mut path = String::new();
        for step in steps {
            let at = y(per_second(of(step), step));
            let to = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{to}{:.1} {at:.1}H{:.1}", x(step.from), x(step.to));
        }
        let _ = write!(svg, "<path class=\"{class}\" d=\"{path}\"/>");
    }
    svg.push_str(
        "</svg><figcaption><span class=\"key primary\"></span>delivered \
         <span class=\"key lost\"></span>dropped or errored, per second</figcaption></figure>\n",
    );
    svg
}

struct Scale {
    log_min: f64,
    log_max: f64,
}

impl Scale {
    /// Whole decades around the values.
    fn new(min: u64, max: u64) -> Self {
        let log_min = (min as f64).log10().floor();
        let log_max = (max as f64).log10().ceil().max(log_min + 1.0);
        Self { log_min, log_max }
    }

    fn y(&self, ns: f64) -> f64 {
        let share = (ns.max(1.0).log10() - self.log_min) / (self.log_max - self.log_min);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    /// -log10(1 - percentile): 0 at the left, 4 at 99.99 %.
    fn x(percentile: f64) -> f64 {
        let decades = -(1.0 - percentile).max(1e-4).log10();
        LEFT + decades / 4.0 * (WIDTH - LEFT - RIGHT)
    }

    fn grid(&self, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut decade = self.log_min;
        while decade <= self.log_max {
            let ns = 10f64.powf(decade);
            let y = self.y(ns);
            let _ = write!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                nanos(ns as u64),
            );
            decade += 1.0;
        }
        for (percentile, label) in TICKS {
            let x = Self::x(percentile);
            let anchor = if percentile > 0.999 { "end" } else { "middle" };
            let _ = write!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{label}</text>",
                bottom + 20.0,
            );
        }
    }

    fn path(&self, cells: &[(u64, u64)]) -> String {
        let total: u64 = cells.iter().map(|(_, count)| count).sum();
        let mut path = String::new();
        let mut below = 0;
        for (value, count) in cells {
            let y = self.y(*value as f64);
            for at in [below, below + count] {
                let x = Self::x(at as f64 / total.max(1) as f64);
                let letter = if path.is_empty() { 'M' } else { 'L' };
                let _ = write!(path, "{letter}{x:.1} {y:.1}");
            }
            below += count;
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_lies_inside_the_chart() {
        let scale = Scale::new(700, 90_000_000);
        let path = scale.path(&[(700, 1_000_000), (5_000, 300), (90_000_000, 1)]);
        for point in path.split(['M', 'L']).skip(1) {
            let (x, y) = point.split_once(' ').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{point}");
            assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{point}");
        }
        assert_eq!(latency_svg(&[], &[]), "");
    }
}
