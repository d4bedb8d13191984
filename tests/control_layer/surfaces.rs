//! The table of what an operator can do, with the words for it on each surface, and how each surface is asked.

use clap::Parser;
use parhelion::cli::{Cli, Command};
use parhelion::control::admin_sql::{self, Answer};
use parhelion::control::{Who, ctl};
use serde_json::Value;

use super::control_support::Port;

/// One operation on each surface: admin SQL, HTTP, `ctl`, and the call that must reach the runtime (empty: a view made
/// from the counters).
pub struct Surface {
    /// The variant of `Operation`.
    pub operation: &'static str,
    pub sql: &'static str,
    pub http: (&'static str, &'static str, &'static str),
    pub ctl: &'static str,
    pub call: &'static str,
}

pub const SURFACES: &[Surface] = &[
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

/// What `ctl` prints.
pub fn ctl(port: &Port, line: &str, json: bool) -> String {
    ctl_words(port, line.split(' '), json)
}

/// The same, where a word may have spaces in it.
pub fn ctl_words<'a>(port: &Port, words: impl IntoIterator<Item = &'a str>, json: bool) -> String {
    let arguments = ["parhelion", "ctl"].into_iter().chain(words);
    let Command::Ctl(args) = Cli::try_parse_from(arguments).unwrap().command else {
        panic!("ctl is another command");
    };
    let mut out = Vec::new();
    ctl::run(args.command, &port.url(), None, json, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// What admin SQL answers: a row as an object by its columns' names.
pub fn sql(port: &Port, statement: &str) -> Vec<Value> {
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
