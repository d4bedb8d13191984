//! `parhelion ctl` against a real control port.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod control_support;

use std::sync::atomic::Ordering;

use control_support::{Port, filled_registry};
use parhelion::control::ctl::{CtlCommand, CtlError, fetch_report, run};
use serde_json::Value;

fn ctl(port: &Port, command: CtlCommand, json: bool) -> Result<String, CtlError> {
    let mut out = Vec::new();
    run(command, &port.url(), None, json, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn tables_for_people_and_json_for_programs() {
    let port = Port::start(filled_registry(2, 3), None);
    port.state.set_ready(true);
    let status = ctl(&port, CtlCommand::Status, false).unwrap();
    assert!(
        status.contains("ready · up") && status.contains("requests 1,200"),
        "{status}"
    );
    let mirrors = ctl(&port, CtlCommand::Mirrors, false).unwrap();
    assert_eq!(mirrors.lines().count(), 4, "{mirrors}");
    assert!(
        mirrors.contains("50.0 %") && mirrors.contains("not ready"),
        "{mirrors}"
    );
    let json: Value =
        serde_json::from_str(&ctl(&port, CtlCommand::Mirrors, true).unwrap()).unwrap();
    assert_eq!(json["mirrors"][0]["name"], "next");
    let divergences = CtlCommand::Divergences {
        kind: Some("data_mismatch".into()),
        command: Some("select * from t where id = ?".into()),
        mirror: None,
        offset: 0,
        limit: 5,
    };
    let text = ctl(&port, divergences, false).unwrap();
    assert!(
        text.contains("user:<7>") && text.contains("1 to 1 of 1"),
        "{text}"
    );
}

#[test]
fn commands_arrive_as_typed() {
    let port = Port::start(filled_registry(1, 1), None);
    let next = || "next".to_owned();
    for (command, call) in [
        (
            CtlCommand::Exposure {
                name: next(),
                exposure: 0.1,
            },
            "exposure next 0.1",
        ),
        (
            CtlCommand::Pause {
                name: "a:b/c".into(),
            },
            "pause a:b/c",
        ),
        (CtlCommand::Resume { name: next() }, "resume next"),
        (
            CtlCommand::Mode {
                name: next(),
                mode: "dual-write".into(),
            },
            "mode next dual-write",
        ),
        (CtlCommand::Drain, "drain"),
    ] {
        ctl(&port, command, false).unwrap();
        assert_eq!(port.recorder.take(), [call]);
    }
}

#[test]
fn refusals_carry_the_servers_words() {
    let port = Port::start(filled_registry(1, 1), None);
    port.recorder.refuse_reload.store(true, Ordering::Relaxed);
    let error = ctl(&port, CtlCommand::Reload, false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("parhelion.toml:3: unknown key"), "{error}");
    let nobody = CtlCommand::Exposure {
        name: "nobody".into(),
        exposure: 0.5,
    };
    let error = ctl(&port, nobody, false).unwrap_err().to_string();
    assert!(error.contains("there are: next"), "{error}");
    let url = port.url();
    drop(port);
    let error = run(CtlCommand::Status, &url, None, false, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, CtlError::Unreachable { .. }), "{error}");
}

#[test]
fn the_token_is_sent() {
    let port = Port::start(filled_registry(1, 1), Some("s3cret"));
    let with = |token: Option<&str>| {
        let token = token.map(str::to_owned);
        run(
            CtlCommand::Status,
            &port.url(),
            token,
            false,
            &mut Vec::new(),
        )
    };
    assert!(matches!(
        with(None),
        Err(CtlError::Refused { status: 401, .. })
    ));
    with(Some("s3cret")).unwrap();
    let report = fetch_report(&port.url(), Some("s3cret".into())).unwrap();
    assert!(report.html.contains("not ready"));
}

#[test]
fn top_shows_rates() {
    let port = Port::start(filled_registry(1, 1), None);
    let top = CtlCommand::Top {
        interval: 0.1,
        count: Some(2),
    };
    let text = ctl(&port, top.clone(), false).unwrap();
    assert_eq!(text.matches("requests/s").count(), 2);
    let json = ctl(&port, top, true).unwrap();
    let line: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(line["mirrors"][0]["name"], "next");
}
