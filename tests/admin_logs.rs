//! The log: no value and no key at its most talkative, a flood counted instead of written, and who it was about in fields.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use parhelion::limits::LOG_LINES_PER_SECOND_MAX;
use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::servers::{PostgresOptions, PostgresServer, RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use serde_json::Value;
use support::pg::PgClient;
use support::resp::RespClient;

const TIMEOUT: Duration = Duration::from_secs(60);

fn start(options: &ProxyOptions) -> ProxyProcess {
    ProxyProcess::start(Path::new(env!("CARGO_BIN_EXE_parhelion")), options).unwrap()
}

/// Waits until the divergences hold this text: the values are where they belong, and the mirror has had its turn.
fn diverges(proxy: &ProxyProcess, text: &str) {
    let shown = || {
        let page = proxy.get("/api/divergences").ok()?;
        page.contains(text).then_some(())
    };
    assert!(
        eventually(TIMEOUT, shown).is_some(),
        "no divergence shows {text}"
    );
}

fn shows_nothing_hidden(mut proxy: ProxyProcess) {
    proxy.terminate();
    let log = proxy.log();
    assert!(!log.is_empty(), "what is said is read");
    let shown: Vec<&String> = log.iter().filter(|line| line.contains("hidden")).collect();
    assert!(shown.is_empty(), "{shown:#?}");
}

#[test]
fn redis_keys_and_values_are_in_no_line_of_the_log() {
    let [primary, mirror] = [(); 2].map(|()| RedisServer::start(RedisOptions::default()).unwrap());
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(mirror.address())
        .env("PARHELION_LOG", "trace");
    let proxy = start(&options);
    // The mirror alone has a list there: SET replaces it, RPUSH and INCR fail on one side only.
    RespClient::connect(mirror.address()).call(&["RPUSH", "hidden-list", "hidden-other"]);
    let mut client = RespClient::connect(proxy.address());
    for command in [
        &["SET", "hidden-key", "hidden-value"][..],
        &["INCR", "hidden-key"],
        &["GET", "hidden-list"],
        &["LRANGE", "hidden-list", "0", "-1"],
        &[
            "EVAL",
            "return redis.call('get', KEYS[1]) .. 'hidden'",
            "1",
            "hidden-key",
        ],
        &["HIDDENCOMMAND", "hidden-word"],
        &["AUTH", "hidden-password"],
        &["SUBSCRIBE", "hidden-channel"],
    ] {
        client.call(command);
    }
    diverges(&proxy, "hidden-list");
    shows_nothing_hidden(proxy);
}

#[test]
fn postgres_statements_parameters_and_rows_are_in_no_line_of_the_log() {
    let [primary, mirror] =
        [(); 2].map(|()| PostgresServer::start(PostgresOptions::default()).unwrap());
    for server in [&primary, &mirror] {
        server
            .sql("postgres", "CREATE TABLE t (v text UNIQUE)")
            .unwrap();
    }
    // A violation that the mirror alone reports, with the value in its DETAIL.
    mirror
        .sql("postgres", "INSERT INTO t VALUES ('hidden-twice')")
        .unwrap();
    let options = ProxyOptions::new("postgres", primary.address())
        .mirror(mirror.address())
        .args(&["--user", "postgres"])
        .env("PARHELION_LOG", "trace");
    let proxy = start(&options);
    let mut client = PgClient::connect(proxy.address(), "postgres").0;
    for sql in [
        "INSERT INTO t VALUES ('hidden-twice')",
        "SELECT v, 'hidden-literal' AS hidden_column FROM t",
        "SELECT * FROM hidden_table",
        "SELECT 'hidden-unfinished",
        "SET application_name = 'hidden-name'",
        "PREPARE p AS SELECT $1::text; EXECUTE p('hidden-parameter')",
    ] {
        client.query(sql);
    }
    diverges(&proxy, "23505");
    shows_nothing_hidden(proxy);
}

/// One client after the other speaks HTTP to a Redis port: each is refused, and each refusal is worth a line.
#[test]
fn a_flood_of_refusals_is_counted_instead_of_written_and_says_whom_it_was_about() {
    let primary = RedisServer::start(RedisOptions::default()).unwrap();
    let options = ProxyOptions::new("redis", primary.address()).args(&["--log-format", "json"]);
    let proxy = start(&options);
    let began = Instant::now();
    const CLIENTS: usize = 400;
    for _ in 0..CLIENTS {
        let mut client = RespClient::connect(proxy.address());
        client.send(b"POST / HTTP/1.1\r\nHost: hidden\r\n\r\n");
        let _ = client.rest();
    }
    let seconds = began.elapsed().as_secs() as usize + 1;
    let refusals = || -> Vec<BTreeMap<String, Value>> {
        let lines = proxy
            .log()
            .into_iter()
            .filter(|line| line.contains("of another protocol"));
        lines
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect()
    };
    let summed = || {
        let left_out = proxy.log().into_iter().filter_map(|line| {
            let line: Value = serde_json::from_str(&line).ok()?;
            line["message"]
                .as_str()?
                .starts_with("log lines were left out")
                .then(|| line["lines"].as_u64())?
        });
        let left_out = left_out.sum::<u64>() as usize;
        (left_out + refusals().len() >= CLIENTS).then_some(left_out)
    };
    let left_out = eventually(TIMEOUT, summed).expect("every refusal is written or counted");
    let written = refusals();
    assert_eq!(written.len() + left_out, CLIENTS);
    let most = (seconds + 1) * LOG_LINES_PER_SECOND_MAX as usize;
    assert!(
        written.len() <= most,
        "{} lines in {seconds} s",
        written.len()
    );
    for line in &written {
        assert!(
            line["client"].is_u64() && line["database"] == "primary",
            "{line:?}"
        );
        assert!(
            line.contains_key("timestamp") && line["level"] == "WARN",
            "{line:?}"
        );
    }
}
