//! What the demo shows: one mirror's numbers from the control port, drawn in place on a terminal, as lines elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;

use serde_json::Value;

use crate::testing::proxy::http_get;

/// One mirror as `/api/mirrors` reports it. A field that is missing there reads as `None` or 0: the demo must not fail
/// for a number that it only shows.
#[derive(Debug, Clone, Default)]
pub(super) struct MirrorView {
    pub observed: u64,
    pub excluded: u64,
    pub unexposed: u64,
    pub offered: u64,
    pub delivered: u64,
    pub errored: u64,
    pub in_flight: u64,
    pub dropped: Vec<(String, u64)>,
    pub compared: u64,
    pub divergences: Vec<(String, u64)>,
    pub primary_us: [Option<u64>; 2],
    pub mirror_us: [Option<u64>; 2],
}

impl MirrorView {
    /// Asks the control port for its first mirror.
    pub(super) fn fetch(control: SocketAddr) -> io::Result<MirrorView> {
        let body = http_get(control, "/api/mirrors")?;
        let json: Value = serde_json::from_str(&body).map_err(io::Error::other)?;
        // A bare array, or an object that holds one.
        let list = json
            .as_array()
            .or_else(|| json.get("mirrors").and_then(Value::as_array));
        let first = list.and_then(|list| list.first());
        first
            .map(MirrorView::read)
            .ok_or_else(|| io::Error::other("no mirror in /api/mirrors"))
    }

    fn read(json: &Value) -> MirrorView {
        let ledger = json.get("ledger").unwrap_or(&Value::Null);
        let count = |name: &str| ledger.get(name).and_then(Value::as_u64).unwrap_or(0);
        let latency = |side: &str| {
            ["p50_ns", "p99_ns"].map(|quantile| {
                json.pointer(&format!("/latency/{side}/{quantile}"))
                    .and_then(Value::as_f64)
                    .map(|nanos| (nanos / 1000.0).round().max(0.0) as u64)
            })
        };
        MirrorView {
            observed: count("observed"),
            excluded: count("excluded"),
            unexposed: count("unexposed"),
            offered: count("offered"),
            delivered: count("delivered"),
            errored: count("errored"),
            in_flight: count("in_flight"),
            dropped: labelled(ledger.get("dropped")),
            compared: json.get("compared").and_then(Value::as_u64).unwrap_or(0),
            divergences: labelled(json.get("divergences")),
            primary_us: latency("primary"),
            mirror_us: latency("mirror"),
        }
    }

    pub(super) fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(|(_, count)| count).sum()
    }

    pub(super) fn divergences_total(&self) -> u64 {
        self.divergences.iter().map(|(_, count)| count).sum()
    }

    /// The two sums of the ledger.
    pub(super) fn balances(&self) -> bool {
        self.observed == self.excluded + self.unexposed + self.offered
            && self.offered == self.delivered + self.dropped_total() + self.errored + self.in_flight
    }
}

/// The counts by label that are not zero.
fn labelled(json: Option<&Value>) -> Vec<(String, u64)> {
    let entries = json.and_then(Value::as_object).into_iter().flatten();
    let counts = entries.filter_map(|(label, count)| Some((label.clone(), count.as_u64()?)));
    counts.filter(|(_, count)| *count > 0).collect()
}

/// "queue_full 3, oversize 1", or "none".
pub(super) fn list(counts: &[(String, u64)]) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts
        .iter()
        .map(|(label, count)| format!("{label} {count}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Microseconds in a width for tables.
pub(super) fn micros(value: Option<u64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(us) if us < 10_000 => format!("{us} us"),
        Some(us) => format!("{:.1} ms", us as f64 / 1000.0),
    }
}

/// The screen.
pub(super) struct Screen {
    terminal: bool,
    drawn_lines: usize,
}

impl Screen {
    pub(super) fn new() -> Screen {
        Screen {
            terminal: io::stdout().is_terminal(),
            drawn_lines: 0,
        }
    }

    /// Draws the state: in place on a terminal, else one plain line.
    pub(super) fn draw(
        &mut self,
        seconds: f64,
        per_second: Option<f64>,
        view: &MirrorView,
    ) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let rate = per_second.map_or("-".to_owned(), |rate| format!("{rate:.0}/s"));
        if !self.terminal {
            return writeln!(
                out,
                "{seconds:5.1} s  load {rate}  primary p99 {}  mirror p99 {}  mirrored {}  dropped {}  compared {}  divergences {}",
                micros(view.primary_us[1]),
                micros(view.mirror_us[1]),
                view.delivered,
                view.dropped_total(),
                view.compared,
                view.divergences_total(),
            );
        }
        let text = panel(seconds, &rate, view);
        if self.drawn_lines > 0 {
            // Up to the first line of the last drawing, and clear from there.
            write!(out, "\x1b[{}A\x1b[J", self.drawn_lines)?;
        }
        self.drawn_lines = text.lines().count();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

fn panel(seconds: f64, rate: &str, view: &MirrorView) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "  {seconds:5.1} s   {rate}");
    let _ = writeln!(text, "  {:<12}{:>12}{:>12}", "", "p50", "p99");
    for (name, side) in [("primary", view.primary_us), ("candidate", view.mirror_us)] {
        let _ = writeln!(
            text,
            "  {name:<12}{:>12}{:>12}",
            micros(side[0]),
            micros(side[1])
        );
    }
    let _ = writeln!(
        text,
        "  {:<12}{:>12}   in flight {}",
        "mirrored", view.delivered, view.in_flight
    );
    let _ = writeln!(
        text,
        "  {:<12}{:>12}   {}",
        "dropped",
        view.dropped_total(),
        list(&view.dropped)
    );
    let _ = writeln!(
        text,
        "  {:<12}{:>12}   of {} compared: {}",
        "divergences",
        view.divergences_total(),
        view.compared,
        list(&view.divergences)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_read_from_the_control_ports_json_and_missing_fields_are_zero() {
        let json = serde_json::json!({
            "name": "candidate",
            "ledger": {
                "observed": 20, "excluded": 1, "unexposed": 2, "offered": 17, "delivered": 10, "errored": 2,
                "in_flight": 1, "dropped": {"queue_full": 3, "oversize": 1, "paused": 0},
            },
            "latency": {"primary": {"p50_ns": 120_000, "p99_ns": 900_400}},
            "divergences": {"data_mismatch": 4},
        });
        let view = MirrorView::read(&json);
        assert!(view.balances());
        assert_eq!(
            (
                view.dropped_total(),
                view.divergences_total(),
                view.compared
            ),
            (4, 4, 0)
        );
        assert_eq!(list(&view.dropped), "oversize 1, queue_full 3");
        assert_eq!(
            (view.primary_us, view.mirror_us),
            ([Some(120), Some(900)], [None, None])
        );
        assert!(MirrorView::read(&Value::Null).balances());
    }
}
