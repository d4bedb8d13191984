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
use super::divergences::DivergenceFilter;
use super::state::ControlState;
use super::{queries, view};
use crate::metrics::DivergenceKind;

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

fn report_json(state: &ControlState) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut mirrors = view::mirrors(state);
    if let Some(list) = mirrors["mirrors"].as_array_mut() {
        for mirror in list {
            let name = text(&mirror["name"]).to_owned();
            mirror["distributions"] = view::latency(state, &name).unwrap_or(Value::Null);
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
        "config": state.config(),
    })
}

fn examples(state: &ControlState, mirror: &str) -> Value {
    let mut kinds = Map::new();
    for kind in DivergenceKind::ALL {
        let (_, found) = state.divergences.query(&DivergenceFilter {
            kind: Some(kind.as_str().to_owned()),
            mirror: Some(mirror.to_owned()),
            limit: EXAMPLES_PER_KIND,
            ..DivergenceFilter::default()
        });
        if !found.is_empty() {
            kinds.insert(kind.as_str().to_owned(), json!(found));
        }
    }
    Value::Object(kinds)
}
