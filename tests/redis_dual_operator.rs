//! What an operator does to a dual write and sees of it: by `ctl`, HTTP and the admin SQL; databases by number; metrics by
//! backend; events at Sentry.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use parhelion::testing::redis::RedisServer;
use parhelion::testing::wait::eventually;
use serde_json::{Value, json};
use support::dual::{PATIENCE, Pair, ask, ok, server};
use support::ingest::ingest;
use support::proxy::{Proxy, ProxyOptions};
use support::resp::RespClient;

/// `parhelion ctl` with these words; its output, and whether it succeeded.
fn ctl(pair: &mut Pair, words: &[&str]) -> (String, bool) {
    let url = format!("http://{}", pair.proxy.real().control());
    let output = Command::new(env!("CARGO_BIN_EXE_parhelion"))
        .args(["ctl", "--url", &url])
        .args(words)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        String::from_utf8_lossy(&text).into_owned(),
        output.status.success(),
    )
}

/// The dual write as the API shows it.
fn shown(pair: &mut Pair) -> Value {
    let text = pair.proxy.real().get("/api/mirrors").unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    json["mirrors"][0].clone()
}

#[test]
fn a_dual_write_is_steered_by_each_of_its_names() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let mut client = pair.client();
    // Of its secondary, of both ends, and of its primary as for the mode.
    for (name, share, length) in [
        ("secondary", 0.25, 700),
        ("primary:secondary", 0.5, 800),
        ("primary", 0.75, 900),
    ] {
        let (text, done) = ctl(&mut pair, &["exposure", name, &share.to_string()]);
        assert!(done, "{name}: {text}");
        let (text, done) = ctl(&mut pair, &["queue", name, &length.to_string()]);
        assert!(done, "{name}: {text}");
        let now = shown(&mut pair);
        assert_eq!(now["exposure"], json!(share), "{name}: {now}");
        let config: Value =
            serde_json::from_str(&pair.proxy.real().get("/api/config").unwrap()).unwrap();
        let dual = &config["dual_write"][0];
        assert_eq!(dual["queue_length"], json!(length), "{name}: {dual}");
        ok(&mut client, &["SET", "before", name]);
        assert!(pair.becomes_same());
        let connection = |server: &RedisServer| ask(server, &["CLIENT", "LIST", "TYPE", "normal"]);
        let ids = |list: &str| -> Vec<String> {
            let words = list.split_whitespace();
            words
                .filter_map(|word| word.strip_prefix("id="))
                .map(str::to_owned)
                .collect()
        };
        let before = ids(&connection(&pair.secondary));
        let (text, done) = ctl(&mut pair, &["reconnect", name]);
        assert!(done, "{name}: {text}");
        ok(&mut client, &["SET", "behind", name]);
        let replaced = eventually(PATIENCE, || {
            let now = ids(&connection(&pair.secondary));
            let old = now.iter().filter(|id| before.contains(id)).count();
            (old == 0 && now.len() > 1).then_some(())
        });
        assert!(replaced.is_some(), "{name}: {before:?}");
        assert!(pair.becomes_same());
    }
    for name in ["secondary", "primary"] {
        let (text, done) = ctl(&mut pair, &["pause", name]);
        assert!(!done && text.contains("primary-only"), "{name}: {text}");
    }
    let (text, done) = ctl(&mut pair, &["exposure", "nosuch", "0.1"]);
    assert!(!done && text.contains("secondary"), "{text}");
}

#[test]
fn numbers_stand_by_the_backend_that_did_the_work_whoever_is_in_front() {
    let mut pair = Pair::with("mode = \"secondary-primary\"", |options, _| {
        options.general("compat_metrics = true")
    });
    let mut client = pair.client();
    ok(&mut client, &["SET", "a", "1"]);
    ok(&mut client, &["GET", "a"]);
    assert!(pair.becomes_same());
    let count = |pair: &mut Pair, name: &str, command: &str, backend: &str| {
        let (command, backend) = (
            format!("command=\"{command}\""),
            format!("backend=\"{backend}\""),
        );
        pair.metric(name, &[&command, &backend, "status=\"ok\""])
    };
    let name = "parhelion_command_total";
    let behind = eventually(PATIENCE, || {
        let counts = ["SET", "GET"].map(|command| count(&mut pair, name, command, "primary"));
        (counts == [1.0, 1.0]).then_some(())
    });
    assert!(behind.is_some(), "the primary follows");
    for name in [name, "proxy_command_total"] {
        for command in ["SET", "GET"] {
            for backend in ["primary", "secondary"] {
                let seen = count(&mut pair, name, command, backend);
                assert_eq!(seen, 1.0, "{name} {command} {backend}");
            }
        }
    }
    pair.enter_mode("secondary-only");
    ok(&mut client, &["GET", "a"]);
    assert_eq!(count(&mut pair, name, "GET", "secondary"), 2.0);
    assert_eq!(count(&mut pair, name, "GET", "primary"), 1.0);
    pair.enter_mode("primary-only");
    ok(&mut client, &["GET", "a"]);
    assert_eq!(count(&mut pair, name, "GET", "secondary"), 2.0);
    assert_eq!(count(&mut pair, name, "GET", "primary"), 2.0);
    // What is shown by command counts both.
    assert_eq!(shown(&mut pair)["commands"]["SET"]["ok"], 1);
}

/// Names of the databases that hold keys, with how many.
fn keyspace(server: &RedisServer) -> Vec<String> {
    let text = ask(server, &["INFO", "keyspace"]);
    let lines = text.lines().filter(|line| line.starts_with("db"));
    lines
        .map(|line| line.split(",expires").next().unwrap().to_owned())
        .collect()
}

/// Backends whose clients begin in databases 3 and 5.
fn with_databases() -> (RedisServer, RedisServer, ProxyOptions) {
    let (primary, secondary) = (server(), server());
    let options = ProxyOptions::new("redis", primary.address()).args(&[
        "--secondary",
        &secondary.address().to_string(),
        "--mode",
        "dual-write-shadow",
        "--primary-db",
        "3",
        "--secondary-db",
        "5",
    ]);
    (primary, secondary, options)
}

/// Backends with databases of their own: what a client finds where it begins, by number and after a RESET.
#[test]
fn a_database_has_the_same_number_on_a_lane_and_on_a_connection_of_ones_own() {
    let (primary, secondary, options) = with_databases();
    let mut proxy = Proxy::start(&options);
    let mut client = RespClient::connect(proxy.address());
    let pinned = |client: &mut RespClient, key: &str| {
        ok(client, &["WATCH", key]);
        ok(client, &["SET", key, "1"]);
        ok(client, &["UNWATCH"]);
    };
    // Where it begins.
    ok(&mut client, &["SET", "home:lane", "1"]);
    pinned(&mut client, "home:own");
    // 0 is 0.
    ok(&mut client, &["SELECT", "0"]);
    pinned(&mut client, "zero:own");
    ok(&mut client, &["SET", "zero:lane", "1"]);
    assert_eq!(client.call(&["EXISTS", "zero:own", "home:own"]), b":1\r\n");
    // The one where it began, by its number.
    ok(&mut client, &["SELECT", "3"]);
    ok(&mut client, &["SET", "home:again", "1"]);
    assert_eq!(client.call(&["DBSIZE"]), b":3\r\n");
    // As a client that has just come.
    ok(&mut client, &["SELECT", "7"]);
    ok(&mut client, &["SET", "seven", "1"]);
    assert_eq!(client.call(&["RESET"]), b"+RESET\r\n");
    ok(&mut client, &["SET", "home:reset", "1"]);
    pinned(&mut client, "home:reset:own");
    assert_eq!(
        keyspace(&primary),
        ["db0:keys=2", "db3:keys=5", "db7:keys=1"]
    );
    let wanted = ["db0:keys=2", "db5:keys=5", "db7:keys=1"];
    let followed = eventually(PATIENCE, || (keyspace(&secondary) == wanted).then_some(()));
    assert!(followed.is_some(), "{:?}", keyspace(&secondary));
    let text = proxy.real().get("/api/divergences").unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["total"], 0, "{text}");
}

#[test]
fn divergences_arrive_at_sentry_once_a_minute_for_each_command_and_kind() {
    let (dsn, events) = ingest();
    let mut pair = Pair::with("mode = \"dual-write-shadow\"", |options, _| {
        options.section(&format!(
            "[sentry]\ndsn = \"{dsn}\"\nenvironment = \"staging\"\n"
        ))
    });
    let mut client = pair.client();
    let keys: Vec<String> = (0..20).map(|number| format!("secret:{number}")).collect();
    for key in &keys {
        ok(&mut client, &["SET", key, "right"]);
    }
    ok(&mut client, &["SET", "number", "1"]);
    assert!(pair.becomes_same());
    for key in &keys {
        ask(&pair.secondary, &["SET", key, "wrong"]);
    }
    ask(&pair.secondary, &["DEL", "number"]);
    ask(&pair.secondary, &["LPUSH", "number", "x"]);
    for key in &keys {
        ok(&mut client, &["GET", key]);
        ok(&mut client, &["STRLEN", key]);
    }
    ok(&mut client, &["MGET", "secret:1", "secret:2"]);
    // The secondary refuses it.
    ok(&mut client, &["INCR", "number"]);
    // 20 of GET, one of MGET, one of INCR.
    pair.wait_metric("parhelion_divergences_total", &[], |count| count == 22.0);
    let mut fingerprints = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while fingerprints.len() < 4 {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events
            .recv_timeout(left)
            .unwrap_or_else(|_| panic!("no more events than {fingerprints:?}"));
        assert_eq!(event["environment"], "staging");
        let text = event.to_string();
        assert!(
            !text.contains("secret:") && !text.contains("wrong"),
            "{text}"
        );
        fingerprints.push(event["fingerprint"].clone());
    }
    // Nothing more comes, not even at the end, which sends what is left.
    assert!(pair.proxy.real().terminate().unwrap().success());
    let more = events.recv_timeout(Duration::from_millis(500));
    assert!(more.is_err(), "{more:?}");
    fingerprints.sort_by_key(Value::to_string);
    assert_eq!(
        fingerprints,
        [
            json!(["divergence", "data_mismatch", "GET"]),
            json!(["divergence", "data_mismatch", "MGET"]),
            json!(["divergence", "secondary_error", "INCR"]),
            json!(["write", "INCR"]),
        ]
    );
}

#[test]
fn the_databases_named_on_the_command_line_are_where_clients_begin() {
    let (primary, secondary, options) = with_databases();
    let proxy = Proxy::start(&options);
    let mut client = RespClient::connect(proxy.address());
    // Over a shared lane, over a connection of its own, and after a SELECT.
    assert_eq!(client.call(&["SET", "lane", "1"]), b"+OK\r\n");
    assert_eq!(client.call(&["WATCH", "lane"]), b"+OK\r\n");
    assert_eq!(client.call(&["SET", "own", "1"]), b"+OK\r\n");
    assert_eq!(client.call(&["UNWATCH"]), b"+OK\r\n");
    assert_eq!(client.call(&["SELECT", "7"]), b"+OK\r\n");
    assert_eq!(client.call(&["SET", "seven", "1"]), b"+OK\r\n");
    assert_eq!(keyspace(&primary), ["db3:keys=2", "db7:keys=1"]);
    let followed = eventually(PATIENCE, || {
        (keyspace(&secondary) == ["db5:keys=2", "db7:keys=1"]).then_some(())
    });
    assert!(followed.is_some(), "{:?}", keyspace(&secondary));
}

#[test]
fn the_share_of_shadow_reads_is_set_at_run_time_and_a_pause_is_refused() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let control = pair.proxy.real().control();
    let post = |path: &str, body: Value| {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let url = format!("http://{control}/api/mirrors/secondary/{path}");
        let mut answer = agent.post(&url).send_json(body).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), text)
    };
    let (status, text) = post("exposure", serde_json::json!({"exposure": 0.0}));
    assert_eq!(status, 200, "{text}");
    let mut client = pair.client();
    client.call(&["SET", "k", "1"]);
    for _ in 0..100 {
        client.call(&["GET", "k"]);
    }
    let ledger = eventually(PATIENCE, || {
        let text = pair.proxy.real().get("/api/mirrors").unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let mirror = json["mirrors"][0].clone();
        (mirror["ledger"]["delivered"] == 1).then_some(mirror)
    })
    .expect("the write is delivered");
    assert_eq!(ledger["ledger"]["unexposed"], 100);
    assert_eq!(
        (&ledger["exposure"], &ledger["role"]),
        (&0.0.into(), &"secondary".into())
    );
    // Its numbers by command stand beside the primary's.
    assert_eq!(ledger["commands"]["SET"]["ok"], 1);
    assert_eq!(ledger["commands"]["SET"]["primary"]["ok"], 1);
    let (status, text) = post("pause", serde_json::json!({}));
    assert!(status == 409 && text.contains("primary-only"), "{text}");
    assert!(pair.becomes_same());
}

#[test]
fn values_are_cut_and_a_flood_is_one_line_of_the_log() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let mut client = pair.client();
    let (right, wrong) = ("r".repeat(1000), "w".repeat(1000));
    for number in 0..50 {
        let key = format!("k:{number}");
        ok(&mut client, &["SET", &key, &right]);
    }
    assert!(pair.becomes_same());
    for number in 0..50 {
        let key = format!("k:{number}");
        ask(&pair.secondary, &["SET", &key, &wrong]);
        ok(&mut client, &["GET", &key]);
    }
    pair.wait_metric("parhelion_divergences_total", &[], |count| count == 50.0);
    let text = pair.proxy.real().get("/api/divergences").unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    let items = told["items"].as_array().unwrap();
    assert!(!items.is_empty(), "{text}");
    for record in items {
        for (side, letter) in [("primary", 'r'), ("mirror", 'w')] {
            let value = record[side].as_str().unwrap();
            assert!(
                value.contains(letter) && value.len() <= 256,
                "{side}: {value}"
            );
        }
    }
    let told = |log: &[String]| {
        let lines = log
            .iter()
            .filter(|line| line.contains("a mirror's reply differs"));
        lines.count()
    };
    let log = eventually(PATIENCE, || {
        Some(pair.proxy.real().log()).filter(|log| told(log) > 0)
    });
    let log = log.expect("a line of the log");
    // One in five seconds, and the machine may be slow.
    assert!(told(&log) <= 5, "{log:?}");
    assert!(
        !log.iter()
            .any(|line| line.contains("rrrr") || line.contains("k:1"))
    );
}
