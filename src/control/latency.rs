//! Distributions of latency: the primary's and the mirror's for the same units, and the wait in the queue.

use serde::Deserialize;
use serde_json::{Value, json};

use super::commands::CommandError;
use super::state::ControlState;
use super::view::quantiles;
use crate::metrics::{Latency, MirrorTotal};

/// What is measured of a mirror: the key of the JSON and of the rows.
pub const SIDES: [&str; 3] = ["primary", "mirror", "queue_delay"];

/// Whose latency to show.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LatencyFilter {
    /// Only this mirror.
    pub mirror: Option<String>,
}

/// `/api/latency`: quantiles, and the cells from which a reader that polls makes the distribution of the time between.
///
/// # Errors
/// If there is no such mirror.
pub fn latency(state: &ControlState, filter: &LatencyFilter) -> Result<Value, CommandError> {
    let only = match &filter.mirror {
        None => None,
        Some(name) => Some(state.resolve_mirror(name)?),
    };
    let mut totals = state.registry.mirrors();
    totals.retain(|total| {
        let only = only.as_ref();
        only.is_none_or(|(from, to)| *from == total.source && *to == total.destination)
    });
    let list: Vec<Value> = totals.iter().map(of_mirror).collect();
    Ok(json!({"mirrors": list}))
}

fn of_mirror(total: &MirrorTotal) -> Value {
    json!({
        "name": total.name,
        "source": total.source,
        "destination": total.destination,
        "primary": with_cells(&total.primary_latency),
        "mirror": with_cells(&total.latency),
        "queue_delay": with_cells(&total.queue_delay),
    })
}

fn with_cells(latency: &Latency) -> Value {
    let mut value = quantiles(latency);
    value["cells"] = json!(cells(latency));
    value
}

/// `[nanoseconds, count]`: as many as were no longer than this and longer than those of the cell before.
pub(super) fn cells(latency: &Latency) -> Vec<[u64; 2]> {
    let recorded = latency.histogram.iter_recorded();
    recorded
        .map(|cell| [cell.value_iterated_to(), cell.count_at_value()])
        .collect()
}

/// The answer as rows: one for each side of each mirror.
pub fn side_rows(answer: &Value) -> Vec<Value> {
    let mut rows = Vec::new();
    for mirror in answer["mirrors"].as_array().into_iter().flatten() {
        for side in SIDES {
            rows.push(json!({
                "mirror": mirror["name"],
                "source": mirror["source"],
                "destination": mirror["destination"],
                "side": side,
                "of": mirror[side],
            }));
        }
    }
    rows
}

/// The answer as rows: one for each cell of each side of each mirror.
pub fn cell_rows(answer: &Value) -> Vec<Value> {
    let mut rows = Vec::new();
    for side in side_rows(answer) {
        for cell in side["of"]["cells"].as_array().into_iter().flatten() {
            rows.push(json!({
                "mirror": side["mirror"],
                "source": side["source"],
                "destination": side["destination"],
                "side": side["side"],
                "up_to_ns": cell[0],
                "count": cell[1],
            }));
        }
    }
    rows
}
