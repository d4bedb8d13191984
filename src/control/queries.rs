//! Latency by query: Postgres by fingerprint, Redis by command; the primary and the mirror side by side.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::commands::CommandError;
use super::state::ControlState;
use super::view::quantiles;
use crate::limits::QUERIES_PER_ANSWER_MAX;
use crate::metrics::{CommandTotal, MirrorTotal, QueryTotal};

/// What to list, and in which order.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueryFilter {
    /// Only this mirror.
    pub mirror: Option<String>,
    /// The order.
    pub sort: QuerySort,
    /// At most so many.
    pub limit: usize,
}

impl Default for QueryFilter {
    fn default() -> Self {
        Self {
            mirror: None,
            sort: QuerySort::default(),
            limit: 50,
        }
    }
}

/// The order of a list of queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum QuerySort {
    /// By the time that all calls together took longer on the mirror than on the primary: what a switch would cost.
    #[default]
    Regressed,
    /// By the mirror's 99th percentile.
    Slowest,
    /// By calls.
    Calls,
}

impl QuerySort {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            QuerySort::Regressed => "regressed",
            QuerySort::Slowest => "slowest",
            QuerySort::Calls => "calls",
        }
    }

    /// From its word.
    pub fn of(word: &str) -> Option<QuerySort> {
        Some(match word {
            "regressed" => QuerySort::Regressed,
            "slowest" => QuerySort::Slowest,
            "calls" => QuerySort::Calls,
            _ => return None,
        })
    }
}

/// `/api/queries`.
///
/// # Errors
/// If there is no such mirror.
pub fn queries(state: &ControlState, filter: &QueryFilter) -> Result<Value, CommandError> {
    let mirrors = state.registry.mirrors();
    let only = match &filter.mirror {
        None => None,
        Some(name) => Some(state.resolve_mirror(name)?),
    };
    let wanted = |source: &str, destination: &str| {
        let only = only.as_ref();
        only.is_none_or(|(s, d)| s == source && d == destination)
    };
    let mut items: Vec<Value> = Vec::new();
    for query in state.registry.queries() {
        if wanted(&query.source, &query.destination) {
            items.push(by_fingerprint(&query));
        }
    }
    for mirror in &mirrors {
        if wanted(&mirror.source, &mirror.destination) {
            items.extend(by_command(mirror));
        }
    }
    let number = |item: &Value, at: &str| item.pointer(at).and_then(Value::as_i64).unwrap_or(0);
    items.sort_by_key(|item| {
        std::cmp::Reverse(match filter.sort {
            QuerySort::Regressed => number(item, "/extra_ns"),
            QuerySort::Slowest => number(item, "/mirror/p99_ns"),
            QuerySort::Calls => number(item, "/calls"),
        })
    });
    let total = items.len();
    items.truncate(filter.limit.min(QUERIES_PER_ANSWER_MAX));
    Ok(json!({"total": total, "queries": items}))
}

/// The queries of a Postgres mirror in the form of the commands of a Redis mirror, for the report.
pub(super) fn as_commands(state: &ControlState, source: &str, destination: &str) -> Value {
    let mut commands = Map::new();
    for query in state.registry.queries() {
        if query.source != source || query.destination != destination {
            continue;
        }
        let mut command = quantiles(&query.mirror);
        command["ok"] = query.calls.saturating_sub(query.errors).into();
        command["errors"] = query.errors.into();
        command["divergences"] = json!({"all": query.divergences});
        command["primary"] = quantiles(&query.primary);
        commands.insert(query.text, command);
    }
    Value::Object(commands)
}

fn by_fingerprint(query: &QueryTotal) -> Value {
    let timed = query.mirror.histogram.len();
    let fingerprint = match query.fingerprint {
        0 => String::new(),
        fingerprint => format!("{fingerprint:016x}"),
    };
    json!({
        "source": query.source,
        "destination": query.destination,
        "protocol": "postgres",
        "fingerprint": fingerprint,
        "query": query.text,
        "calls": query.calls,
        "errors": query.errors,
        "divergences": query.divergences,
        "primary": quantiles(&query.primary),
        "mirror": quantiles(&query.mirror),
        "ratio": ratio(query.primary.sum_ns, timed, query.mirror.sum_ns, timed),
        "extra_ns": difference(query.mirror.sum_ns, query.primary.sum_ns),
    })
}

/// The primary's numbers are of the same commands.
fn by_command(mirror: &MirrorTotal) -> Vec<Value> {
    let mut items = Vec::new();
    for (command, theirs) in &mirror.all_commands() {
        let ours = mirror.primary_commands.get(command).copied();
        let ours = ours.unwrap_or_default();
        let calls = theirs.ok + theirs.errors;
        let extra_ns = difference(theirs.mean_ns(), ours.mean_ns());
        items.push(json!({
            "source": mirror.source,
            "destination": mirror.destination,
            "protocol": "redis",
            "fingerprint": "",
            "query": command,
            "calls": calls,
            "errors": theirs.errors,
            "divergences": theirs.divergences.iter().sum::<u64>(),
            "primary": bucketed(&ours),
            "mirror": bucketed(theirs),
            "ratio": ratio(ours.sum_ns, ours.count(), theirs.sum_ns, theirs.count()),
            "extra_ns": extra_ns.saturating_mul(i64::try_from(calls).unwrap_or(i64::MAX)),
        }));
    }
    items
}

/// The mirror's mean divided by the primary's, to three digits; null without both.
fn ratio(ours_ns: u64, ours: u64, theirs_ns: u64, theirs: u64) -> Value {
    if ours == 0 || theirs == 0 || ours_ns == 0 {
        return Value::Null;
    }
    let ratio = (theirs_ns as f64 / theirs as f64) / (ours_ns as f64 / ours as f64);
    json!((ratio * 1000.0).round() / 1000.0)
}

fn difference(theirs: u64, ours: u64) -> i64 {
    i64::try_from(i128::from(theirs) - i128::from(ours)).unwrap_or(i64::MAX)
}

fn bucketed(total: &CommandTotal) -> Value {
    json!({
        "count": total.count(),
        "mean_ns": total.mean_ns(),
        "p50_ns": total.quantile_ns(0.5),
        "p99_ns": total.quantile_ns(0.99),
    })
}
