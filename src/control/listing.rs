//! The tables of the admin SQL and of `ctl`, cut from the API's JSON: names and types of the columns, and where each
//! value stands.

use serde_json::Value;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// Text.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Float,
    /// Yes or no.
    Bool,
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: ColumnType,
    /// Where a row's JSON holds it (RFC 6901).
    pointer: &'static str,
}

const fn text(name: &'static str, pointer: &'static str) -> Column {
    Column {
        name,
        kind: ColumnType::Text,
        pointer,
    }
}

const fn int(name: &'static str, pointer: &'static str) -> Column {
    Column {
        name,
        kind: ColumnType::Integer,
        pointer,
    }
}

const fn float(name: &'static str, pointer: &'static str) -> Column {
    Column {
        name,
        kind: ColumnType::Float,
        pointer,
    }
}

const fn yes_no(name: &'static str, pointer: &'static str) -> Column {
    Column {
        name,
        kind: ColumnType::Bool,
        pointer,
    }
}

/// A key and its value: what has no rows of its own.
pub const KEY_VALUE: &[Column] = &[text("key", "/0"), text("value", "/1")];

/// `SHOW HELP`.
pub const HELP: &[Column] = &[text("statement", "/0"), text("what", "/1")];

/// `SHOW VERSION`.
pub const VERSION: &[Column] = &[text("version", "/version")];

/// The source databases.
pub const DATABASES: &[Column] = &[
    text("name", "/name"),
    text("protocol", "/protocol"),
    int("clients", "/active_clients"),
    int("requests", "/requests"),
    int("errors", "/errors_total"),
    int("p50_ns", "/latency/p50_ns"),
    int("p99_ns", "/latency/p99_ns"),
    int("p999_ns", "/latency/p999_ns"),
];

/// The sums of the source databases.
pub const STATS: &[Column] = &[
    text("database", "/name"),
    int("total_request_count", "/requests"),
    int("total_error_count", "/errors_total"),
    int("write_errors", "/write_errors"),
    int("read_errors", "/read_errors"),
    int("reconnects", "/connections/reconnects"),
    int("mean_ns", "/latency/mean_ns"),
    int("p50_ns", "/latency/p50_ns"),
    int("p90_ns", "/latency/p90_ns"),
    int("p99_ns", "/latency/p99_ns"),
    int("p999_ns", "/latency/p999_ns"),
    int("max_ns", "/latency/max_ns"),
];

/// The open client connections.
pub const CLIENTS: &[Column] = &[
    int("id", "/id"),
    text("database", "/database"),
    text("protocol", "/protocol"),
    text("user", "/user"),
    text("peer", "/peer"),
    text("state", "/state"),
    int("core", "/core"),
];

/// The servers behind the proxy.
pub const SERVERS: &[Column] = &[
    text("database", "/database"),
    text("role", "/role"),
    text("source", "/source"),
    text("protocol", "/protocol"),
    text("endpoint", "/endpoint"),
    int("connections", "/connections"),
    int("idle", "/idle"),
    int("reconnects", "/reconnects"),
];

/// The connections of the mirrors.
pub const POOLS: &[Column] = &[
    text("database", "/source"),
    text("mirror", "/destination"),
    int("sv_open", "/connections/open"),
    int("sv_idle", "/connections/idle"),
    int("waits", "/connections/waits"),
    int("reconnects", "/connections/reconnects"),
    int("queue_length", "/queue/units"),
    int("queue_bytes", "/queue/bytes"),
    int("queue_length_max", "/queue/units_max_per_client"),
    int("queue_bytes_max", "/queue/bytes_max_per_client"),
    yes_no("paused", "/paused"),
];

/// The mirrors: PgDog's columns first, then the ledger.
pub const MIRRORS: &[Column] = &[
    text("mirror", "/name"),
    text("source_db", "/source"),
    text("destination_db", "/destination"),
    float("exposure", "/exposure"),
    yes_no("paused", "/paused"),
    int("total_count", "/ledger/observed"),
    int("mirrored_count", "/ledger/delivered"),
    int("dropped_count", "/ledger/dropped_total"),
    int("error_count", "/ledger/errored"),
    int("queue_length", "/queue/units"),
    int("observed", "/ledger/observed"),
    int("excluded", "/ledger/excluded"),
    int("unexposed", "/ledger/unexposed"),
    int("offered", "/ledger/offered"),
    int("delivered", "/ledger/delivered"),
    int("dropped_queue_full", "/ledger/dropped/queue_full"),
    int("dropped_oversize", "/ledger/dropped/oversize"),
    int("dropped_memory", "/ledger/dropped/memory"),
    int("dropped_unavailable", "/ledger/dropped/unavailable"),
    int("dropped_timeout", "/ledger/dropped/timeout"),
    int("dropped_paused", "/ledger/dropped/paused"),
    int("dropped_shutdown", "/ledger/dropped/shutdown"),
    int("errored", "/ledger/errored"),
    int("in_flight", "/ledger/in_flight"),
    int("compared", "/compared"),
    int("not_compared", "/not_compared"),
    int("divergences", "/divergences_total"),
    int("primary_p99_ns", "/latency/primary/p99_ns"),
    int("mirror_p99_ns", "/latency/mirror/p99_ns"),
    text("verdict", "/verdict"),
];

/// Examples of divergences.
pub const DIVERGENCES: &[Column] = &[
    int("at_unix_ms", "/at_unix_ms"),
    text("source_db", "/source"),
    text("destination_db", "/destination"),
    text("kind", "/kind"),
    text("command", "/command"),
    text("key", "/key"),
    text("pattern", "/pattern"),
    text("primary_value", "/primary"),
    text("mirror_value", "/mirror"),
    int("core", "/core"),
    text("client", "/client"),
];

/// Latency by query.
pub const QUERIES: &[Column] = &[
    text("source_db", "/source"),
    text("destination_db", "/destination"),
    text("fingerprint", "/fingerprint"),
    int("calls", "/calls"),
    int("errors", "/errors"),
    int("divergences", "/divergences"),
    int("primary_mean_ns", "/primary/mean_ns"),
    int("mirror_mean_ns", "/mirror/mean_ns"),
    int("primary_p50_ns", "/primary/p50_ns"),
    int("mirror_p50_ns", "/mirror/p50_ns"),
    int("primary_p99_ns", "/primary/p99_ns"),
    int("mirror_p99_ns", "/mirror/p99_ns"),
    float("ratio", "/ratio"),
    text("query", "/query"),
];

/// Latency: a row for each side of each mirror.
pub const LATENCY: &[Column] = &[
    text("mirror", "/mirror"),
    text("source_db", "/source"),
    text("destination_db", "/destination"),
    text("side", "/side"),
    int("count", "/of/count"),
    int("mean_ns", "/of/mean_ns"),
    int("p50_ns", "/of/p50_ns"),
    int("p90_ns", "/of/p90_ns"),
    int("p99_ns", "/of/p99_ns"),
    int("p999_ns", "/of/p999_ns"),
    int("max_ns", "/of/max_ns"),
];

/// The same in full: a row for each cell of a distribution.
pub const DISTRIBUTION: &[Column] = &[
    text("mirror", "/mirror"),
    text("source_db", "/source"),
    text("destination_db", "/destination"),
    text("side", "/side"),
    int("up_to_ns", "/up_to_ns"),
    int("count", "/count"),
];

/// The verdicts with what they rest on.
pub const REPORT: &[Column] = &[
    text("mirror", "/mirror"),
    text("what", "/what"),
    text("line", "/line"),
];

/// The mirrors over time, in seconds since the start.
pub const TIMELINE: &[Column] = &[
    text("mirror", "/mirror"),
    int("from_seconds", "/from_seconds"),
    int("to_seconds", "/to_seconds"),
    int("offered", "/offered"),
    int("delivered", "/delivered"),
    int("dropped", "/dropped"),
    int("errored", "/errored"),
    int("divergences", "/divergences"),
];

/// Every metric.
pub const METRICS: &[Column] = &[
    text("name", "/name"),
    text("labels", "/labels"),
    float("value", "/value"),
];

/// What operators changed.
pub const CHANGES: &[Column] = &[
    int("at_unix_ms", "/at_unix_ms"),
    text("via", "/via"),
    text("who", "/who"),
    text("operation", "/operation"),
    text("subject", "/subject"),
    text("outcome", "/outcome"),
    text("answer", "/answer"),
];

/// The rows of `items` in these columns; null where an item lacks a value.
pub fn rows(columns: &[Column], items: &[Value]) -> Vec<Vec<Value>> {
    let cell = |item: &Value, column: &Column| {
        item.pointer(column.pointer).cloned().unwrap_or(Value::Null)
    };
    items
        .iter()
        .map(|item| columns.iter().map(|column| cell(item, column)).collect())
        .collect()
}

/// The entries of an answer that is one list, whatever its name.
pub fn items(answer: &Value) -> Vec<Value> {
    let lists = answer.as_object().into_iter().flatten();
    lists
        .filter_map(|(_, value)| value.as_array())
        .flatten()
        .cloned()
        .collect()
}

/// Every leaf of a JSON document as `[key, value]`, the key with dots; lists of names stay together, entries of
/// tables are named by what identifies them.
pub fn flatten(document: &Value) -> Vec<Value> {
    let mut out = Vec::new();
    // A list instead of recursion: depth is the document's, which others may make.
    let mut open = vec![(String::new(), document)];
    while let Some((path, value)) = open.pop() {
        match value {
            Value::Object(fields) => {
                let join = |key: &str| match path.is_empty() {
                    true => key.to_owned(),
                    false => format!("{path}.{key}"),
                };
                open.extend(fields.iter().rev().map(|(key, value)| (join(key), value)));
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let named = items.iter().enumerate().rev();
                open.extend(
                    named.map(|(at, item)| (format!("{path}[{}]", name_of(item, at)), item)),
                );
            }
            Value::Null => out.push(serde_json::json!([path, null])),
            Value::String(text) => out.push(serde_json::json!([path, text])),
            other => out.push(serde_json::json!([path, other.to_string()])),
        }
    }
    out
}

fn name_of(item: &Value, at: usize) -> String {
    let text = |key: &str| item[key].as_str();
    let pair = |a: &str, b: &str| Some(format!("{} -> {}", text(a)?, text(b)?));
    text("name")
        .or_else(|| text("address"))
        .map(str::to_owned)
        .or_else(|| pair("source_db", "destination_db"))
        .or_else(|| pair("primary", "secondary"))
        .unwrap_or_else(|| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_config_becomes_keys_and_values_named_by_its_entries() {
        let config = json!({"general": {"cores": [0, 1], "pace": "off"},
            "mirroring": [{"source_db": "a", "destination_db": "b", "exposure": 0.5}]});
        let flat = flatten(&config);
        assert!(flat.contains(&json!(["general.cores", "[0,1]"])));
        assert!(flat.contains(&json!(["mirroring[a -> b].exposure", "0.5"])));
    }
}
