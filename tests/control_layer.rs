//! Admin SQL, HTTP and `ctl` offer the same.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod control_support;
#[path = "control_layer/surfaces.rs"]
mod surfaces;
#[path = "control_layer/values.rs"]
mod values;

use std::fmt::Write as _;

use clap::CommandFactory;
use control_support::{Port, filled_registry};
use parhelion::cli::Cli;
use parhelion::control::Who;
use parhelion::control::admin_sql::{self, Answer};
use surfaces::{SURFACES, ctl, sql};

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
         POST carries `Content-Type: application/json`. This page is made from the table in `tests/control_layer/surfaces.rs`.\n\n\
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
