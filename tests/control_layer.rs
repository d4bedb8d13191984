//! Admin SQL, HTTP and `ctl` offer the same.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod control_support;

use clap::Parser;
use control_support::{Port, filled_registry};
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

#[test]
fn each_surface_makes_the_same_call_and_shows_the_same() {
    let port = Port::start(filled_registry(1, 1), None);
    let who = Who::new("admin", "test");
    for surface in SURFACES {
        let expected: Vec<String> = match surface.call {
            "" => Vec::new(),
            call => vec![call.to_owned()],
        };
        let (method, path, body) = surface.http;
        let http = match method {
            "GET" => port.get(path),
            _ => port.post(path, body),
        };
        assert_eq!(http.status, 200, "{}: {}", surface.operation, http.body);
        assert_eq!(
            port.recorder.take(),
            expected,
            "{} over HTTP",
            surface.operation
        );

        let arguments = ["parhelion", "ctl"]
            .into_iter()
            .chain(surface.ctl.split(' '));
        let Command::Ctl(args) = Cli::try_parse_from(arguments).unwrap().command else {
            panic!("{} is no ctl command", surface.ctl);
        };
        ctl::run(args.command, &port.url(), None, false, &mut Vec::new()).unwrap();
        assert_eq!(
            port.recorder.take(),
            expected,
            "{} over ctl",
            surface.operation
        );

        match admin_sql::execute(&port.state, &who, surface.sql) {
            Answer::Error(error) => panic!("{}: {error:?}", surface.sql),
            Answer::Rows(rows) => {
                let columns = admin_sql::describe(surface.sql).unwrap().unwrap();
                assert!(rows.iter().all(|row| row.len() == columns.len()));
            }
            Answer::Done { .. } => {}
        }
        assert_eq!(
            port.recorder.take(),
            expected,
            "{} over SQL",
            surface.operation
        );
    }
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
