//! Every endpoint over a real loopback socket, and who is let in.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod control_support;

use std::time::{Duration, Instant};

use control_support::{Port, filled_registry, step};
use parhelion::metrics::Registry;

fn port() -> Port {
    Port::start(filled_registry(2, 3), None)
}

#[test]
fn probes_follow_the_state() {
    let port = Port::start(Registry::new(vec![0]), None);
    assert_eq!(port.get("/healthz").status, 200);
    assert_eq!(port.get("/readyz").status, 503);
    port.state.set_ready(true);
    assert_eq!(port.get("/readyz").status, 200);
    port.state.set_draining(true);
    let answer = port.get("/readyz");
    assert_eq!((answer.status, answer.body.as_str()), (503, "draining\n"));
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let port = port();
    let plain = port.get("/metrics");
    assert!(plain.head.contains("text/plain; version=0.0.4"));
    assert!(!plain.body.contains("# EOF"));
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let open = port.send("GET", "/metrics", &[("Accept", accept)], "");
    assert!(open.head.contains("application/openmetrics-text"));
    assert!(open.body.ends_with("# EOF\n"));
    assert!(
        open.body
            .contains("parhelion_mirror_dropped_total{source=\"prod0\",mirror=\"next\"")
    );
}

#[test]
fn mirrors_show_a_ledger_that_balances() {
    let port = port();
    let answer = port.get("/api/mirrors").json();
    let mirrors = answer["mirrors"].as_array().unwrap();
    assert_eq!(mirrors.len(), 3);
    for mirror in mirrors {
        let n = |key: &str| mirror["ledger"][key].as_u64().unwrap();
        assert_eq!(n("observed"), n("excluded") + n("unexposed") + n("offered"));
        let settled = n("delivered") + n("dropped_total") + n("errored");
        assert_eq!(n("offered"), settled + n("in_flight"));
        assert_eq!(mirror["exposure"], 0.5);
        assert!(mirror["latency"]["mirror"]["p99_ns"].as_u64().unwrap() > 100_000);
        assert_eq!(mirror["verdict"], "not ready");
    }
}

#[test]
fn status_databases_latency_and_config_are_there() {
    let port = port();
    let status = port.get("/api/status").json();
    assert_eq!(status["cores"].as_array().unwrap().len(), 2);
    assert_eq!(status["totals"]["clients"], 80);
    assert_eq!(status["totals"]["requests"], 2 * 3 * 200);
    assert_eq!(status["runtime"]["listeners"][0], "127.0.0.1:6432");
    let databases = port.get("/api/databases").json();
    assert_eq!(databases["databases"][0]["name"], "prod0");
    assert_eq!(databases["databases"][1]["commands"]["get"]["errors"], 0);
    let latency = port.get("/api/latency?mirror=next").json();
    assert_eq!(latency["mirrors"].as_array().unwrap().len(), 1);
    let counted: u64 = latency["mirrors"][0]["mirror"]["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| cell[1].as_u64().unwrap())
        .sum();
    assert_eq!(counted, port.state.registry.mirrors()[0].ledger.delivered);
    assert_eq!(port.get("/api/latency?mirror=nobody").status, 404);
    let config = port.get("/api/config");
    assert_eq!(config.status, 200);
    assert!(!config.body.contains("hunter2") && config.body.contains("prod"));
}

#[test]
fn divergences_are_filtered_and_paged() {
    let port = port();
    let all = port.get("/api/divergences").json();
    assert_eq!(
        (&all["total"], all["items"].as_array().unwrap().len()),
        (&2.into(), 2)
    );
    assert_eq!(all["items"][0]["kind"], "extra_data");
    let one = port.get("/api/divergences?kind=data_mismatch").json();
    assert_eq!(one["total"], 1);
    assert_eq!(port.get("/api/divergences?command=GET").json()["total"], 1);
    let page = port.get("/api/divergences?offset=1&limit=1").json();
    assert_eq!(page["items"][0]["kind"], "data_mismatch");
    for wrong in ["offset=x", "mirrror=next"] {
        let answer = port.get(&format!("/api/divergences?{wrong}"));
        assert_eq!(answer.status, 422, "{wrong}");
        assert_eq!(answer.json()["error"]["code"], "invalid_value");
    }
}

#[test]
fn commands_reach_the_runtime() {
    let port = port();
    for (path, body, call) in [
        (
            "/api/mirrors/next/exposure",
            r#"{"exposure":0.25}"#,
            "exposure next 0.25",
        ),
        ("/api/mirrors/a%3Ab/pause", "{}", "pause a:b"),
        ("/api/mirrors/next/resume", "", "resume next"),
        ("/api/mirrors/next/reconnect", "", "reconnect next"),
        (
            "/api/dual_write/cache/mode",
            r#"{"mode":"dual-write"}"#,
            "mode cache dual-write",
        ),
        ("/api/drain", "{}", "drain"),
    ] {
        let answer = port.post(path, body);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(port.recorder.take(), [call]);
    }
}

#[test]
fn refusals_say_why_and_reach_nobody() {
    let port = port();
    let refuse = &port.recorder.refuse_reload;
    refuse.store(true, std::sync::atomic::Ordering::Relaxed);
    for (path, body, status, code) in [
        (
            "/api/mirrors/next/exposure",
            r#"{"exposure":1.5}"#,
            422,
            "invalid_value",
        ),
        (
            "/api/mirrors/next/exposure",
            r#"{"exposure":null}"#,
            422,
            "invalid_value",
        ),
        (
            "/api/mirrors/next/exposure",
            r#"{"share":1}"#,
            422,
            "invalid_value",
        ),
        (
            "/api/mirrors/nobody/exposure",
            r#"{"exposure":1}"#,
            404,
            "unknown_name",
        ),
        ("/api/reload", "{}", 500, "failed"),
        ("/api/nothing", "{}", 404, "not_found"),
        ("/api/status", "{}", 405, "wrong_method"),
    ] {
        let answer = port.post(path, body);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert_eq!(answer.json()["error"]["code"], code);
    }
    assert_eq!(port.get("/api/drain").status, 405);
    let big = format!("{{\"exposure\":0.1{}}}", " ".repeat(100_000));
    assert_eq!(port.post("/api/mirrors/next/exposure", &big).status, 413);
    assert!(port.recorder.take().is_empty());
}

#[test]
fn a_foreign_page_cannot_change_anything() {
    let port = port();
    let json = ("Content-Type", "application/json");
    let host = port.addr.to_string();
    let own = format!("http://{host}");
    let cases: [(&[(&str, &str)], u16); 8] = [
        (&[json, ("Content-Type", "text/plain")], 415),
        (&[("Content-Type", "text/plain")], 415),
        (&[], 415),
        (&[json, ("Origin", "http://evil.example")], 403),
        (&[json, ("Origin", "null")], 403),
        (&[json, ("Host", "evil.example")], 403),
        (&[json, ("Sec-Fetch-Site", "cross-site")], 403),
        (&[json, ("Origin", &own)], 200),
    ];
    for (headers, status) in cases {
        let answer = port.send("POST", "/api/drain", headers, "{}");
        assert_eq!(answer.status, status, "{headers:?}: {answer:?}");
    }
    assert_eq!(port.recorder.take(), ["drain"]);
    // DNS rebinding reads too.
    assert_eq!(
        port.send("GET", "/api/config", &[("Host", "evil.example")], "")
            .status,
        403
    );
}

#[test]
fn a_token_opens_the_api_and_nothing_else_does() {
    let port = Port::start(filled_registry(1, 1), Some("s3cret"));
    for path in [
        "/metrics",
        "/api/status",
        "/api/config",
        "/report",
        "/api/nothing",
    ] {
        assert_eq!(port.get(path).status, 401, "{path}");
        for wrong in [
            "Bearer wrong",
            "Bearer s3cre",
            "Bearer s3crets",
            "Bearer ",
            "Basic s3cret",
        ] {
            let answer = port.send("GET", path, &[("Authorization", wrong)], "");
            assert_eq!(answer.status, 401, "{path} {wrong}");
        }
    }
    let right = [
        ("Authorization", "Bearer s3cret"),
        ("Host", "proxy.internal:9191"),
    ];
    assert_eq!(port.send("GET", "/api/status", &right, "").status, 200);
    for path in ["/", "/healthz"] {
        assert_eq!(port.get(path).status, 200, "{path}");
    }
}

#[test]
fn the_dashboard_and_the_report_load_nothing_from_elsewhere() {
    let port = port();
    for path in ["/", "/report"] {
        let page = port.get(path);
        assert_eq!(page.status, 200);
        assert!(
            page.head
                .contains("content-security-policy: default-src 'none'")
        );
        let allowed = page.body.replace("http://www.w3.org/2000/svg", "");
        for mark in ["http://", "https://", "src=\"//", "@import", "url("] {
            assert!(!allowed.contains(mark), "{path} has {mark}");
        }
        assert!(!page.body.contains("<script>alert(1)</script>"));
    }
}

#[test]
fn the_report_tells_each_mirrors_story() {
    let port = port();
    let html = port.get("/report").body;
    for part in [
        "Parhelion report",
        "not ready",
        "queue full",
        "&lt;script&gt;",
        "<svg",
        "p99.9",
    ] {
        assert!(html.contains(part), "{part} is missing");
    }
    let json = port.get("/api/report").json();
    assert_eq!(json["mirrors"].as_array().unwrap().len(), 3);
    assert_eq!(
        json["mirrors"][0]["examples"]["data_mismatch"][0]["mirror"],
        "2"
    );
    // From a stored file the same page comes out.
    assert!(parhelion::control::report::render(&json).contains("not ready"));
    assert!(parhelion::control::report::render(&serde_json::Value::Null).contains("No mirrors"));
}

#[test]
fn closing_does_not_wait_for_an_idle_connection() {
    let port = port();
    let _idle = std::net::TcpStream::connect(port.addr).unwrap();
    let start = Instant::now();
    drop(port);
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// `PARHELION_LOOK=127.0.0.1:9191 cargo test --test control_http look -- --ignored`
#[test]
#[ignore = "serves made-up traffic for looking at the dashboard"]
fn look() {
    let address = std::env::var("PARHELION_LOOK").unwrap();
    let mirrors = std::env::var("PARHELION_LOOK_MIRRORS").map_or(4, |n| n.parse().unwrap());
    let port = Port::start_on(&address, filled_registry(2, mirrors), None);
    port.state.set_ready(true);
    let mut rng = fastrand::Rng::with_seed(1);
    loop {
        for mirror in 0..mirrors {
            let units = rng.u64(20..120);
            step(&port.state.registry, 0, mirror, &mut rng, units);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
