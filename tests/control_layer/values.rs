//! What one surface shows, the others show too.

use serde_json::Value;

use super::control_support::{Port, filled_registry, step};
use super::surfaces::{SURFACES, ctl, ctl_words, sql};

/// Without what changes from one reading to the next.
fn settled(mut answer: Value) -> Value {
    if let Some(fields) = answer.as_object_mut() {
        for key in ["uptime_seconds", "generated_unix", "process"] {
            fields.remove(key);
        }
    }
    answer
}

/// The name of a column, and where an entry of the API's list has the same.
type Columns = &'static [(&'static str, &'static str)];

/// Of each view: the list in the API's answer, and where its entries hold what a column of the admin SQL shows.
const SEEN: &[(&str, &str, Columns)] = &[
    (
        "Databases",
        "databases",
        &[
            ("name", "/name"),
            ("clients", "/active_clients"),
            ("requests", "/requests"),
            ("errors", "/errors_total"),
            ("p99_ns", "/latency/p99_ns"),
        ],
    ),
    (
        "Mirrors",
        "mirrors",
        &[
            ("mirror", "/name"),
            ("source_db", "/source"),
            ("exposure", "/exposure"),
            ("paused", "/paused"),
            ("observed", "/ledger/observed"),
            ("excluded", "/ledger/excluded"),
            ("unexposed", "/ledger/unexposed"),
            ("offered", "/ledger/offered"),
            ("delivered", "/ledger/delivered"),
            ("dropped_count", "/ledger/dropped_total"),
            ("dropped_queue_full", "/ledger/dropped/queue_full"),
            ("errored", "/ledger/errored"),
            ("in_flight", "/ledger/in_flight"),
            ("queue_length", "/queue/units"),
            ("compared", "/compared"),
            ("divergences", "/divergences_total"),
            ("mirror_p99_ns", "/latency/mirror/p99_ns"),
            ("verdict", "/verdict"),
        ],
    ),
    (
        "Divergences",
        "items",
        &[
            ("at_unix_ms", "/at_unix_ms"),
            ("kind", "/kind"),
            ("command", "/command"),
            ("key", "/key"),
            ("primary_value", "/primary"),
            ("mirror_value", "/mirror"),
            ("client", "/client"),
        ],
    ),
    (
        "Queries",
        "queries",
        &[
            ("query", "/query"),
            ("calls", "/calls"),
            ("mirror_p99_ns", "/mirror/p99_ns"),
            ("ratio", "/ratio"),
        ],
    ),
    (
        "Metrics",
        "metrics",
        &[
            ("name", "/name"),
            ("labels", "/labels"),
            ("value", "/value"),
        ],
    ),
    (
        "Clients",
        "clients",
        &[
            ("id", "/id"),
            ("user", "/user"),
            ("peer", "/peer"),
            ("state", "/state"),
        ],
    ),
    (
        "Servers",
        "servers",
        &[
            ("database", "/database"),
            ("role", "/role"),
            ("endpoint", "/endpoint"),
            ("connections", "/connections"),
            ("idle", "/idle"),
            ("reconnects", "/reconnects"),
        ],
    ),
];

#[test]
fn each_surface_shows_the_same_values() {
    let port = Port::start(filled_registry(1, 2), None);
    for surface in SURFACES.iter().filter(|surface| surface.http.0 == "GET") {
        let name = surface.operation;
        let http = settled(port.get(surface.http.1).json());
        let shown: Value = serde_json::from_str(&ctl(&port, surface.ctl, true)).unwrap();
        assert_eq!(settled(shown), http, "{name} over ctl");
        let Some((_, list, columns)) = SEEN.iter().find(|(operation, ..)| *operation == name)
        else {
            continue;
        };
        let items = http[list].as_array().unwrap();
        let rows = sql(&port, surface.sql);
        assert_eq!(rows.len(), items.len(), "{name} over SQL");
        assert!(
            !items.is_empty() || name == "Queries",
            "{name} has nothing to compare"
        );
        for (row, item) in rows.iter().zip(items) {
            for (column, pointer) in *columns {
                let value = item.pointer(pointer);
                assert_eq!(row.get(column), value, "{name}: {column} is {pointer}");
                assert!(value.is_some(), "{name} has no {pointer}");
            }
        }
    }
    // The metrics in both forms.
    let scrape = port.get("/metrics").body;
    for metric in sql(&port, "SHOW METRICS parhelion_mirror_delivered") {
        let [name, labels] = ["name", "labels"].map(|key| metric[key].as_str().unwrap());
        let line = format!("{name}{{{labels}}} {}\n", metric["value"]);
        assert!(scrape.contains(&line), "{line}");
    }
}

#[test]
fn status_and_config_are_keys_and_the_same_values_in_sql() {
    let port = Port::start(filled_registry(1, 2), None);
    for (statement, path, key, pointer) in [
        (
            "SHOW STATUS",
            "/api/status",
            "totals.requests",
            "/totals/requests",
        ),
        (
            "SHOW STATUS",
            "/api/status",
            "totals.ledger.delivered",
            "/totals/ledger/delivered",
        ),
        ("SHOW STATUS", "/api/status", "version", "/version"),
        (
            "SHOW CONFIG",
            "/api/config",
            "databases[prod].password",
            "/databases/0/password",
        ),
    ] {
        let rows = sql(&port, statement);
        let row = rows.iter().find(|row| row["key"] == key).unwrap();
        let http = port.get(path).json();
        let value = http.pointer(pointer).unwrap();
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        assert_eq!(row["value"], text, "{statement} {key}");
    }
}

#[test]
fn latency_has_a_row_for_each_side_of_a_mirror_on_every_surface() {
    let port = Port::start(filled_registry(1, 2), None);
    let http = port.get("/api/latency").json();
    let rows = sql(&port, "SHOW LATENCY");
    assert_eq!(rows.len(), 2 * 3);
    let table = ctl(&port, "latency", false);
    assert_eq!(table.lines().count(), 1 + rows.len(), "{table}");
    // People read "156 µs": the heading does not say nanoseconds.
    assert!(!table.contains("_ns"), "{table}");
    for (at, row) in rows.iter().enumerate() {
        let mirror = &http["mirrors"][at / 3];
        let of = &mirror[["primary", "mirror", "queue_delay"][at % 3]];
        assert_eq!(row["mirror"], mirror["name"]);
        for field in [
            "count", "mean_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns",
        ] {
            assert_eq!(row[field], of[field], "{field} of {row}");
            assert!(row[field].as_u64().unwrap() > 0, "{field} of {row}");
        }
    }
    let cells = sql(&port, "SHOW DISTRIBUTION FOR next");
    let listed = http["mirrors"][0]["mirror"]["cells"].as_array().unwrap();
    let cells: Vec<Value> = cells
        .iter()
        .filter(|cell| cell["side"] == "mirror")
        .map(|cell| serde_json::json!([cell["up_to_ns"], cell["count"]]))
        .collect();
    assert_eq!(&cells, listed);
}

#[test]
fn verdicts_and_their_reasons_are_the_same_sentences_on_every_surface() {
    let port = Port::start(filled_registry(1, 2), None);
    let report = port.get("/api/report").json();
    let lines = sql(&port, "SHOW REPORT");
    let text = ctl(&port, "report", false);
    let mut expected = Vec::new();
    for mirror in report["mirrors"].as_array().unwrap() {
        let mut put = |what: &str, line: &Value| {
            expected
                .push(serde_json::json!({"mirror": mirror["name"], "what": what, "line": line}));
            assert!(text.contains(line.as_str().unwrap()), "{text}");
        };
        put("verdict", &mirror["verdict"]);
        put("reason", &mirror["reasons"][0]);
        put("rests on", &mirror["rests_on"][0]);
    }
    assert_eq!(lines, expected);
}

#[test]
fn the_course_of_time_is_in_the_report_and_in_sql() {
    let port = Port::start(filled_registry(1, 1), None);
    let mut rng = fastrand::Rng::with_seed(7);
    for second in 0..4 {
        let registry = &port.state.registry;
        port.state.timeline.note(second, || registry.mirrors());
        step(registry, 0, 0, &mut rng, 40);
    }
    let report = port.get("/api/report").json();
    let steps = report["mirrors"][0]["timeline"].as_array().unwrap();
    let rows = sql(&port, "SHOW TIMELINE");
    assert_eq!((steps.len(), rows.len()), (3, 3));
    for (row, step) in rows.iter().zip(steps) {
        assert_eq!(row["mirror"], "next");
        for (name, value) in step.as_object().unwrap() {
            assert_eq!(&row[name], value, "{name}");
        }
        assert_eq!(row["offered"], 20);
    }
}

#[test]
fn a_change_is_seen_on_every_surface_whoever_made_it() {
    let port = Port::start(filled_registry(1, 1), None);
    port.post("/api/mirrors/next/exposure", r#"{"exposure": 0.25}"#);
    ctl(&port, "pause next", false);
    sql(&port, "RESUME next");
    port.recorder
        .refuse_reload
        .store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(port.post("/api/reload", "{}").status, 500);
    let http = port.get("/api/changes").json();
    let told: Vec<String> = http["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            let word = |key: &str| change[key].as_str().unwrap();
            let [via, operation] = [word("via"), word("operation")];
            format!("{via} {operation} {} {}", word("subject"), word("outcome"))
        })
        .collect();
    let expected = [
        "http reload  refused",
        "admin resume next done",
        "ctl pause next done",
        "http set_exposure next done",
    ];
    assert_eq!(told, expected);
    assert!(
        http["changes"][0]["answer"]
            .as_str()
            .unwrap()
            .contains("unknown key")
    );
    assert!(
        http["changes"][3]["who"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    assert_eq!(Value::Array(sql(&port, "SHOW CHANGES")), http["changes"]);
    let by_ctl: Value = serde_json::from_str(&ctl(&port, "changes", true)).unwrap();
    assert_eq!(by_ctl, http);
    let table = ctl(&port, "changes", false);
    assert!(
        table.contains("set_exposure") && table.contains("refused"),
        "{table}"
    );
    // Who reads a verdict must know what was changed under it.
    assert_eq!(port.get("/api/report").json()["changes"], http["changes"]);
    assert!(port.get("/report").body.contains("set exposure"));
}

/// Every filter of one surface is one of the others, and finds the same records.
#[test]
fn divergences_are_filtered_alike_everywhere() {
    let port = Port::start(filled_registry(1, 1), None);
    let page = |path: &str| -> Vec<Value> {
        let answer: Value = serde_json::from_str(&port.get(path).body).unwrap();
        answer["items"].as_array().unwrap().clone()
    };
    let all = page("/api/divergences?limit=1000");
    let first = &all[0];
    let (mirror, kind, command) = (
        first["destination"].as_str().unwrap(),
        first["kind"].as_str().unwrap(),
        first["command"].as_str().unwrap(),
    );
    for (http, clause, option) in [
        (
            format!("kind={kind}"),
            format!("KIND {kind}"),
            format!("--kind={kind}"),
        ),
        (
            format!("command={}", command.replace(' ', "%20")),
            format!("COMMAND '{command}'"),
            format!("--command={command}"),
        ),
        (
            format!("mirror={mirror}"),
            format!("FOR {mirror}"),
            format!("--mirror={mirror}"),
        ),
        ("offset=1".into(), "OFFSET 1".into(), "--offset=1".into()),
        (
            "kind=nothing".into(),
            "KIND nothing".into(),
            "--kind=nothing".into(),
        ),
    ] {
        let expected = page(&format!("/api/divergences?{http}&limit=1000"));
        assert!(
            expected.len() < all.len() || http.starts_with("mirror"),
            "{http} filters"
        );
        let statement = format!("SHOW DIVERGENCES {clause} LIMIT 1000");
        assert_eq!(sql(&port, &statement).len(), expected.len(), "{statement}");
        let shown = ctl_words(&port, ["divergences", "--limit=1000", &option], true);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["items"].as_array().unwrap(), &expected, "{option}");
    }
}
