//! The report: one self-contained page and the same as JSON. What ran, for how long, and whether each candidate
//! is ready.
//!
//! The page is made from the JSON alone, so that `parhelion report` shows a remote process and a stored file alike.

mod commands;
mod html;
mod mirror;
mod page;
mod svg;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use self::html::text;
pub use self::page::render;
use super::divergences::{DivergenceFilter, DivergenceRecord};
use super::state::ControlState;
use super::{latency, queries, view};
use crate::limits::DIVERGENCES_PER_KIND_MAX;
use crate::metrics::{DivergenceKind, MirrorTotal};

/// Examples shown per kind and mirror.
const EXAMPLES_PER_KIND: usize = 5;

/// A report in both forms.
#[derive(Clone, Debug)]
pub struct Report {
    /// One page that loads nothing.
    pub html: String,
    /// The same for programs.
    pub json: Value,
}

/// Reports on the process as it is now.
pub fn report(state: &ControlState) -> Report {
    let json = report_json(state);
    Report {
        html: render(&json),
        json,
    }
}

/// The same for programs alone.
pub fn report_json(state: &ControlState) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut mirrors = view::mirrors(state);
    let totals = state.registry.mirrors();
    if let Some(list) = mirrors["mirrors"].as_array_mut() {
        for mirror in list {
            let pair = format!(
                "{}:{}",
                text(&mirror["source"]),
                text(&mirror["destination"])
            );
            mirror["examples"] = examples(state, &pair);
            let ends = (text(&mirror["source"]), text(&mirror["destination"]));
            let ends = (ends.0.to_owned(), ends.1.to_owned());
            if mirror["protocol"] == "postgres" {
                mirror["commands"] = queries::as_commands(state, &ends.0, &ends.1);
            }
            mirror["distributions"] = distributions(&totals, &ends.0, &ends.1);
            mirror["timeline"] = state.timeline.of(&ends.0, &ends.1);
        }
    }
    let status = view::status(state);
    json!({
        "format": 1,
        "generated_unix": now.map_or(0.0, |d| d.as_secs_f64()),
        "version": status["version"],
        "started_unix": status["started_unix"],
        "uptime_seconds": status["uptime_seconds"],
        "cores": status["cores"],
        "process": status["process"],
        "totals": status["totals"],
        "databases": view::databases(state)["databases"],
        "mirrors": mirrors["mirrors"],
        "changes": state.changes.shown()["changes"],
        "config": state.config(),
    })
}

fn distributions(totals: &[MirrorTotal], source: &str, destination: &str) -> Value {
    let is_this = |total: &&MirrorTotal| total.source == source && total.destination == destination;
    totals.iter().find(is_this).map_or(Value::Null, |total| {
        json!({
            "primary": latency::cells(&total.primary_latency),
            "mirror": latency::cells(&total.latency),
            "queue_delay": latency::cells(&total.queue_delay),
        })
    })
}

/// A few that differ in what they show: a loud key does not hide the others.
fn distinct(found: Vec<DivergenceRecord>) -> Vec<DivergenceRecord> {
    let what = |record: &DivergenceRecord| (record.command.clone(), record.key.clone());
    let values = |record: &DivergenceRecord| (record.primary.clone(), record.mirror.clone());
    let mut kept: Vec<DivergenceRecord> = Vec::new();
    // First one of each command and key, then what else they showed.
    for with_values in [false, true] {
        for record in &found {
            let is_like = |other: &DivergenceRecord| {
                what(other) == what(record) && (!with_values || values(other) == values(record))
            };
            if kept.len() < EXAMPLES_PER_KIND && !kept.iter().any(is_like) {
                kept.push(record.clone());
            }
        }
    }
    kept
}

/// A report as rows: the verdict on each mirror, why, and what it rests on.
pub fn verdict_rows(report: &Value) -> Vec<Value> {
    let mut rows = Vec::new();
    for mirror in html::items(&report["mirrors"]) {
        let mut put = |what: &str, line: &Value| {
            rows.push(json!({"mirror": mirror["name"], "what": what, "line": line}));
        };
        put("verdict", &mirror["verdict"]);
        for (what, key) in [("reason", "reasons"), ("rests on", "rests_on")] {
            html::items(&mirror[key])
                .iter()
                .for_each(|line| put(what, line));
        }
    }
    rows
}

/// A report as rows: how each mirror fared over time.
pub fn timeline_rows(report: &Value) -> Vec<Value> {
    let mut rows = Vec::new();
    for mirror in html::items(&report["mirrors"]) {
        for step in html::items(&mirror["timeline"]) {
            let mut row = step.clone();
            row["mirror"] = mirror["name"].clone();
            rows.push(row);
        }
    }
    rows
}

fn examples(state: &ControlState, mirror: &str) -> Value {
    let mut kinds = Map::new();
    for kind in DivergenceKind::ALL {
        let (_, found) = state.divergences.query(&DivergenceFilter {
            kind: Some(kind.as_str().to_owned()),
            mirror: Some(mirror.to_owned()),
            limit: DIVERGENCES_PER_KIND_MAX,
            ..DivergenceFilter::default()
        });
        let found = distinct(found);
        if !found.is_empty() {
            kinds.insert(kind.as_str().to_owned(), json!(found));
        }
    }
    Value::Object(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loud_key_leaves_room_for_the_others() {
        let record = |key: &str, primary: u64| DivergenceRecord {
            at_unix_ms: 0,
            source: "cache".into(),
            destination: "next".into(),
            kind: DivergenceKind::DataMismatch,
            command: "GET".into(),
            key: key.into(),
            pattern: String::new(),
            primary: primary.to_string(),
            mirror: "0".into(),
            core: 0,
            client: String::new(),
        };
        let mut found: Vec<DivergenceRecord> = (1..100).map(|n| record("loud", n)).collect();
        found.extend([record("quiet", 1), record("quiet", 1)]);
        let shown: Vec<String> = distinct(found)
            .into_iter()
            .map(|record| format!("{} {}", record.key, record.primary))
            .collect();
        assert_eq!(shown, ["loud 1", "quiet 1", "loud 2", "loud 3", "loud 4"]);
    }
}
