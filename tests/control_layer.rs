//! Admin SQL, HTTP and `ctl` offer the same.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod control_support;

use std::fmt::Write as _;

use clap::{CommandFactory, Parser};
use control_support::{Port, filled_registry, step};
use parhelion::cli::{Cli, Command};
use parhelion::control::admin_sql::{self, Answer};
use parhelion::control::{Who, ctl};
use serde_json::Value;

/// One operation on each surface: admin SQL, HTTP, `ctl`, and the call that must reach the runtime (empty: a view made
/// from the counters).
struct Surface {
    /// The variant of `Operation`.
    operation: &'static str,
    sql: &'static str,
    http: (&'static str, &'static str, &'static str),
    ctl: &'static str,
    call: &'static str,
}

const SURFACES: &[Surface] = &[
    row(
        "Status",
        "SHOW STATUS",
        ("GET", "/api/status", ""),
        "status",
        "",
    ),
    row(
        "Config",
        "SHOW CONFIG",
        ("GET", "/api/config", ""),
        "config",
        "",
    ),
    row(
        "Databases",
        "SHOW DATABASES",
        ("GET", "/api/databases", ""),
        "databases",
        "",
    ),
    row(
        "Mirrors",
        "SHOW MIRRORS",
        ("GET", "/api/mirrors", ""),
        "mirrors",
        "",
    ),
    row(
        "Divergences",
        "SHOW DIVERGENCES FOR next LIMIT 1",
        ("GET", "/api/divergences?mirror=next&limit=1", ""),
        "divergences --mirror next --limit 1",
        "",
    ),
    row(
        "Queries",
        "SHOW QUERIES FOR next BY slowest LIMIT 5",
        ("GET", "/api/queries?mirror=next&sort=slowest&limit=5", ""),
        "queries --mirror next --sort slowest --limit 5",
        "",
    ),
    row(
        "Latency",
        "SHOW LATENCY FOR next",
        ("GET", "/api/latency?mirror=next", ""),
        "latency next",
        "",
    ),
    row(
        "Report",
        "SHOW REPORT",
        ("GET", "/api/report", ""),
        "report",
        "",
    ),
    row(
        "Metrics",
        "SHOW METRICS parhelion_mirror",
        ("GET", "/api/metrics?name=parhelion_mirror", ""),
        "metrics parhelion_mirror",
        "",
    ),
    row(
        "Changes",
        "SHOW CHANGES",
        ("GET", "/api/changes", ""),
        "changes",
        "",
    ),
    row(
        "Clients",
        "SHOW CLIENTS",
        ("GET", "/api/clients", ""),
        "clients",
        "clients",
    ),
    row(
        "Servers",
        "SHOW SERVERS",
        ("GET", "/api/servers", ""),
        "servers",
        "servers",
    ),
    row(
        "SetExposure",
        "SET mirror_exposure FOR next = 0.1",
        ("POST", "/api/mirrors/next/exposure", r#"{"exposure": 0.1}"#),
        "exposure next 0.1",
        "exposure next 0.1",
    ),
    row(
        "SetQueue",
        "SET mirror_queue = 64",
        ("POST", "/api/mirrors/*/queue", r#"{"units": 64}"#),
        "queue * 64",
        "queue next 64",
    ),
    row(
        "Pause",
        "PAUSE next",
        ("POST", "/api/mirrors/next/pause", "{}"),
        "pause next",
        "pause next",
    ),
    row(
        "Resume",
        "RESUME",
        ("POST", "/api/mirrors/*/resume", "{}"),
        "resume *",
        "resume next",
    ),
    row(
        "Reconnect",
        "RECONNECT next",
        ("POST", "/api/mirrors/next/reconnect", "{}"),
        "reconnect next",
        "reconnect next",
    ),
    row(
        "SetMode",
        "SET mode = 'dual-write' FOR cache",
        (
            "POST",
            "/api/dual_write/cache/mode",
            r#"{"mode": "dual-write"}"#,
        ),
        "mode cache dual-write",
        "mode cache dual-write",
    ),
    row(
        "Reload",
        "RELOAD",
        ("POST", "/api/reload", "{}"),
        "reload",
        "reload",
    ),
    row(
        "Drain",
        "DRAIN",
        ("POST", "/api/drain", "{}"),
        "drain",
        "drain",
    ),
    row(
        "Shutdown",
        "SHUTDOWN",
        ("POST", "/api/shutdown", "{}"),
        "shutdown",
        "shutdown",
    ),
];

const fn row(
    operation: &'static str,
    sql: &'static str,
    http: (&'static str, &'static str, &'static str),
    ctl: &'static str,
    call: &'static str,
) -> Surface {
    Surface {
        operation,
        sql,
        http,
        ctl,
        call,
    }
}

/// The names between `start` and the first line that is `}`, as `name_of` finds them in a line.
fn names<'a>(start: &str, name_of: impl Fn(&'a str) -> Option<&'a str>) -> Vec<&'a str> {
    let source = include_str!("../src/control/commands.rs");
    let body = source.split_once(start).unwrap().1;
    body.lines()
        .take_while(|line| *line != "}")
        .filter_map(name_of)
        .collect()
}

#[test]
fn every_operation_stands_in_the_table_of_this_test() {
    let variants = names("pub enum Operation {", |line| {
        let name = line.strip_prefix("    ")?.split([' ', ',', '(']).next()?;
        name.starts_with(char::is_uppercase).then_some(name)
    });
    let table: Vec<&str> = SURFACES.iter().map(|surface| surface.operation).collect();
    assert_eq!(variants, table);
}

#[test]
fn every_effect_of_the_runtime_has_an_operation() {
    let methods = names("pub trait Commands: Send + Sync {", |line| {
        line.strip_prefix("    fn ")?.split('(').next()
    });
    let calls: Vec<&str> = SURFACES
        .iter()
        .filter_map(|surface| surface.call.split(' ').next())
        .collect();
    for method in methods {
        // These are parts of views and of "every mirror".
        let is_part = ["status", "config", "mirrors", "secondaries"].contains(&method);
        let word = method.strip_prefix("set_").unwrap_or(method);
        assert!(
            is_part || calls.contains(&word),
            "{method} is reached by no operation"
        );
    }
}

/// What `ctl` prints.
fn ctl(port: &Port, line: &str, json: bool) -> String {
    let arguments = ["parhelion", "ctl"].into_iter().chain(line.split(' '));
    let Command::Ctl(args) = Cli::try_parse_from(arguments).unwrap().command else {
        panic!("{line} is no ctl command");
    };
    let mut out = Vec::new();
    ctl::run(args.command, &port.url(), None, json, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// What admin SQL answers: a row as an object by its columns' names.
fn sql(port: &Port, statement: &str) -> Vec<Value> {
    let who = Who::new("admin", "test");
    match admin_sql::execute(&port.state, &who, statement) {
        Answer::Error(error) => panic!("{statement}: {error:?}"),
        Answer::Done { .. } => Vec::new(),
        Answer::Rows(rows) => {
            let columns = admin_sql::describe(statement).unwrap().unwrap();
            let object = |row: Vec<Value>| {
                assert_eq!(row.len(), columns.len(), "{statement}");
                let names = columns.iter().map(|column| column.name.to_owned());
                Value::Object(names.zip(row).collect())
            };
            rows.into_iter().map(object).collect()
        }
    }
}

/// Without what changes from one reading to the next.
fn settled(mut answer: Value) -> Value {
    if let Some(fields) = answer.as_object_mut() {
        for key in ["uptime_seconds", "generated_unix", "process"] {
            fields.remove(key);
        }
    }
    answer
}

#[test]
fn each_surface_makes_the_same_call() {
    let port = Port::start(filled_registry(1, 1), None);
    for surface in SURFACES {
        let expected: Vec<String> = match surface.call {
            "" => Vec::new(),
            call => vec![call.to_owned()],
        };
        let name = surface.operation;
        let (method, path, body) = surface.http;
        let http = match method {
            "GET" => port.get(path),
            _ => port.post(path, body),
        };
        assert_eq!(http.status, 200, "{name}: {}", http.body);
        assert_eq!(port.recorder.take(), expected, "{name} over HTTP");
        ctl(&port, surface.ctl, false);
        assert_eq!(port.recorder.take(), expected, "{name} over ctl");
        sql(&port, surface.sql);
        assert_eq!(port.recorder.take(), expected, "{name} over SQL");
    }
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

/// The views that have no list of their own: keys and values, sides, verdicts, steps.
#[test]
fn what_is_no_list_shows_the_same_values_too() {
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

/// Nothing on the control port is out of reach of the table above but the pages and the probes.
#[test]
fn every_path_of_the_control_port_is_an_operation_or_a_page() {
    let source = include_str!("../src/control/http.rs");
    let paths: Vec<&str> = source
        .split(".route(")
        .skip(1)
        .map(|rest| rest.split('"').nth(1).unwrap())
        .collect();
    assert!(paths.len() > 25, "{paths:?}");
    for path in paths {
        let is_page = ["/", "/metrics", "/healthz", "/readyz", "/report"].contains(&path);
        let end = path.rsplit('/').next().unwrap();
        let is_operation = SURFACES.iter().any(|surface| {
            let asked = surface.http.1.split('?').next().unwrap();
            asked == path || path.contains('{') && asked.ends_with(end)
        });
        assert!(is_page || is_operation, "{path}");
    }
}

/// The page for operators is this table, with the words of `ctl --help`.
#[test]
fn the_page_of_commands_is_made_from_the_table() {
    let cli = Cli::command();
    let ctl = cli.find_subcommand("ctl").unwrap();
    let mut page = String::from(
        "# One command layer\n\n\
         What an operator can see and do, on each surface: the admin console (`psql -p 6432 admin`, where the example's names and \
         values are yours), HTTP on the control port, and `parhelion ctl`. The answers are the same; `ctl --json` prints HTTP's. A \
         POST carries `Content-Type: application/json`. This page is made from the table in `tests/control_layer.rs`.\n\n\
         | what | SQL | HTTP | `ctl` |\n|---|---|---|---|\n",
    );
    for surface in SURFACES {
        let name = surface.ctl.split(' ').next().unwrap();
        let about = ctl.find_subcommand(name).unwrap().get_about().unwrap();
        let (method, path, body) = surface.http;
        let body = match body {
            "" | "{}" => String::new(),
            body => format!(" `{body}`"),
        };
        writeln!(
            page,
            "| {about} | `{}` | `{method} {path}`{body} | `ctl {}` |",
            surface.sql,
            surface.ctl.replace('*', "'*'")
        )
        .unwrap();
    }
    page.push_str(
        "\nParts of these answers that the console shows by themselves: `SHOW POOLS` (of the mirrors), `SHOW STATS` (of the \
         databases), `SHOW DISTRIBUTION` (of the latency), `SHOW TIMELINE` (of the report). `ctl top` polls status and mirrors. Pages \
         and probes: `/` (dashboard), `/report`, `/metrics`, `/healthz`, `/readyz`.\n",
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/commands.md");
    if std::env::var_os("PARHELION_BLESS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let is_current = std::fs::read_to_string(path).is_ok_and(|kept| kept == page);
    assert!(
        is_current,
        "PARHELION_BLESS=1 cargo test --test control_layer writes tuning/commands.md anew"
    );
}

/// Every filter of one surface is one of the others, and finds the same records.
#[test]
fn divergences_are_filtered_alike_everywhere() {
    let port = Port::start(filled_registry(1, 1), None);
    let who = Who::new("admin", "test");
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
    for (http, sql, ctl) in [
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
        let sql = format!("SHOW DIVERGENCES {sql} LIMIT 1000");
        let Answer::Rows(rows) = admin_sql::execute(&port.state, &who, &sql) else {
            panic!("{sql}");
        };
        assert_eq!(rows.len(), expected.len(), "{sql}");
        let line = ["parhelion", "ctl", "divergences", "--limit=1000", &ctl];
        let Command::Ctl(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("{ctl} is no option of ctl divergences");
        };
        let mut out = Vec::new();
        ctl::run(args.command, &port.url(), None, true, &mut out).unwrap();
        let shown: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(shown["items"].as_array().unwrap(), &expected, "{ctl}");
    }
}

#[test]
fn a_refusal_is_the_same_sentence_everywhere() {
    let port = Port::start(filled_registry(1, 1), None);
    let who = Who::new("admin", "test");
    let refusal = "exposure is a share from 0.0 to 1.0";
    let Answer::Error(error) = admin_sql::execute(&port.state, &who, "SET mirror_exposure = 1.5")
    else {
        panic!("taken");
    };
    assert!(
        error.message.contains(refusal) && error.code == "22023",
        "{error:?}"
    );
    let http = port.post("/api/mirrors/next/exposure", r#"{"exposure": 1.5}"#);
    assert!(
        http.status == 422 && http.body.contains(refusal),
        "{}",
        http.body
    );
}
