//! The modes are walked under load, groups of streams are the same on both servers, and the numbers of the specification's
//! chapter on metrics are all there.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parhelion::testing::wait::eventually;
use support::dual::{PATIENCE, Pair, ask, ok};
use support::resp::{RespClient, clip};

/// Increments that redis-benchmark makes.
const INCREMENTS: u64 = 150_000;

#[test]
fn the_modes_are_walked_under_redis_benchmark_without_an_error_or_a_lost_write() {
    let mut pair = Pair::new("mode = \"primary-only\"");
    let port = pair.proxy.address().port().to_string();
    let count = INCREMENTS.to_string();
    let mut benchmark = Command::new("redis-benchmark")
        .args(["-p", &port, "-c", "40", "-P", "4", "-n", &count, "-r", "30"])
        .args(["-q", "INCR", "counter:__rand_int__"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Beside it what redis-benchmark does not have: transactions, pops that wait, scripts.
    let (done, errors) = (AtomicBool::new(false), AtomicU64::new(0));
    let (pushed, popped) = (AtomicU64::new(0), AtomicU64::new(0));
    let address = pair.proxy.address();
    let walk = [
        "dual-write",
        "dual-write-shadow",
        "secondary-primary",
        "secondary-only",
        "secondary-primary",
        "dual-write-shadow",
        "dual-write",
        "primary-only",
        "dual-write",
        "secondary-only",
        "dual-write",
    ];
    let mut transactions = 0;
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..4)
            .map(|number| {
                let (done, errors) = (&done, &errors);
                scope.spawn(move || {
                    let mut client = RespClient::connect(address);
                    let key = format!("own:{number}");
                    let mut expected = 0_u64;
                    while !done.load(Ordering::Relaxed) {
                        client.call(&["MULTI"]);
                        client.call(&["INCR", &key]);
                        client.call(&["EVAL", "return redis.call('INCR', KEYS[1])", "1", &key]);
                        expected += 2;
                        let wanted = format!("*2\r\n:{}\r\n:{expected}\r\n", expected - 1);
                        let reply = client.call(&["EXEC"]);
                        if reply != wanted.as_bytes() {
                            eprintln!("{key}: {} instead of {wanted:?}", clip(&reply));
                            errors.fetch_add(1, Ordering::Relaxed);
                            return expected;
                        }
                    }
                    expected
                })
            })
            .collect();
        scope.spawn(|| {
            let mut client = RespClient::connect(address);
            while !done.load(Ordering::Relaxed) {
                let number = pushed.fetch_add(1, Ordering::Relaxed);
                ok(&mut client, &["RPUSH", "jobs", &number.to_string()]);
            }
        });
        scope.spawn(|| {
            let mut client = RespClient::connect(address);
            while !done.load(Ordering::Relaxed) {
                if client.call(&["BLPOP", "jobs", "0.05"]).starts_with(b"*2") {
                    popped.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for mode in walk {
            std::thread::sleep(Duration::from_millis(200));
            pair.enter_mode(mode);
        }
        let ended = eventually(PATIENCE, || benchmark.try_wait().unwrap());
        done.store(true, Ordering::Relaxed);
        assert!(ended.is_some(), "redis-benchmark does not end");
        transactions = others.into_iter().map(|other| other.join().unwrap()).sum();
    });
    let output = benchmark.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("rror"), "{text}");
    assert_eq!(errors.load(Ordering::Relaxed), 0);
    println!("{transactions} increments in transactions");
    assert!(pair.becomes_same(), "both hold everything");
    for server in [&pair.primary, &pair.secondary] {
        let script = "local sum = 0 for _, key in ipairs(redis.call('KEYS', 'counter:*')) do \
                      sum = sum + redis.call('GET', key) end return sum";
        let sum = ask(server, &["EVAL", script, "0"]);
        assert_eq!(
            sum,
            format!(":{INCREMENTS}\r\n"),
            "an increment was lost or doubled"
        );
        let left = ask(server, &["LLEN", "jobs"]);
        let left: u64 = left[1..].trim().parse().unwrap();
        let (pushed, popped) = (
            pushed.load(Ordering::Relaxed),
            popped.load(Ordering::Relaxed),
        );
        assert_eq!(left + popped, pushed, "an element was lost or popped twice");
    }
}

/// A pop that waited, a transaction that had begun and a script when the backends change places.
#[test]
fn what_the_old_backend_answers_after_a_change_of_places_reaches_the_new_one() {
    let mut pair = Pair::new("mode = \"dual-write\"");
    let (mut waiting, mut client) = (pair.client(), pair.client());
    let mut open = pair.client();
    ok(&mut client, &["SET", "k", "1"]);
    assert!(pair.becomes_same());
    waiting.send(&support::resp::encode(&["BLPOP", "jobs", "0"]));
    ok(&mut open, &["MULTI"]);
    ok(&mut open, &["INCR", "k"]);
    let blocked = eventually(PATIENCE, || {
        ask(&pair.primary, &["INFO", "clients"])
            .contains("blocked_clients:1")
            .then_some(())
    });
    assert!(blocked.is_some());
    pair.enter_mode("secondary-primary");
    assert_eq!(open.call(&["EXEC"]), b"*1\r\n:2\r\n");
    let applied = eventually(PATIENCE, || {
        (ask(&pair.secondary, &["GET", "k"]) == "$1\r\n2\r\n").then_some(())
    });
    assert!(
        applied.is_some(),
        "the transaction is missing at the new backend"
    );
    // The push reaches the old backend as a write that follows, and wakes who waits there.
    ok(&mut client, &["RPUSH", "jobs", "a"]);
    assert!(waiting.reply().unwrap().ends_with(b"$1\r\na\r\n"));
    assert!(pair.becomes_same());
    let left = eventually(PATIENCE, || {
        (ask(&pair.secondary, &["LLEN", "jobs"]) == ":0\r\n").then_some(())
    });
    assert!(left.is_some(), "it would be popped twice");
}

/// Commands that were on their way to the primary when nobody follows any more are copied when somebody does again.
#[test]
fn writes_of_a_time_in_which_nobody_follows_arrive_when_somebody_does() {
    let mut pair = Pair::new("mode = \"dual-write\"");
    let address = pair.proxy.address();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let done = &done;
            scope.spawn(move || {
                let mut client = RespClient::connect(address);
                let mut round = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    round += 1;
                    ok(&mut client, &["SET", &format!("k:{number}:{round}"), "v"]);
                }
            });
        }
        for _ in 0..10 {
            pair.enter_mode("primary-only");
            std::thread::sleep(Duration::from_millis(20));
            pair.enter_mode("dual-write");
            std::thread::sleep(Duration::from_millis(20));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(pair.becomes_same());
}

/// XINFO GROUPS, and per consumer what is pending, without what the clock says.
fn group_state(server: &parhelion::testing::redis::RedisServer) -> String {
    let mut text = ask(server, &["XINFO", "GROUPS", "s"]);
    text += &ask(server, &["XPENDING", "s", "g"]);
    // ID, consumer and number of deliveries; the idle time is the third.
    let script = "local out = {} for _, p in ipairs(redis.call('XPENDING', KEYS[1], 'g', '-', '+', 100000)) do \
                  out[#out + 1] = p[1] .. ' ' .. p[2] .. ' ' .. p[4] end return out";
    text += &ask(server, &["EVAL", script, "1", "s"]);
    let script = "local out = {} for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], 'g')) do \
                  out[#out + 1] = c[2] .. ' ' .. c[4] end table.sort(out) return out";
    text += &ask(server, &["EVAL", script, "1", "s"]);
    text
}

#[test]
fn the_state_of_a_streams_group_is_the_same_on_both_servers() {
    let mut pair = Pair::new("mode = \"dual-write\"");
    let mut client = pair.client();
    ok(
        &mut client,
        &["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"],
    );
    let address = pair.proxy.address();
    std::thread::scope(|scope| {
        for seed in 0..8_u64 {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut client = RespClient::connect(address);
                let me = format!("consumer{seed}");
                for round in 0..250 {
                    ok(
                        &mut client,
                        &["XADD", "s", "*", "round", &round.to_string()],
                    );
                    let count = rng.u8(1..4).to_string();
                    let read = ["XREADGROUP", "GROUP", "g", &me, "COUNT", &count];
                    let how: &[&str] = match rng.u8(0..8) {
                        0 | 1 => &["BLOCK", "5", "STREAMS", "s", ">"],
                        2 => &["NOACK", "STREAMS", "s", ">"],
                        3 => &["STREAMS", "s", "0"],
                        _ => &["STREAMS", "s", ">"],
                    };
                    let args: Vec<&str> = read.iter().chain(how).copied().collect();
                    let reply = ok(&mut client, &args);
                    // The first ID in the reply.
                    let text = String::from_utf8_lossy(&reply).into_owned();
                    let id = text
                        .split("\r\n")
                        .find(|word| word.contains('-') && word.len() > 10)
                        .map(str::to_owned);
                    match (rng.u8(0..6), id) {
                        (0 | 1, Some(id)) => drop(ok(&mut client, &["XACK", "s", "g", &id])),
                        (2, Some(id)) => {
                            let other = format!("consumer{}", rng.u8(0..8));
                            let claim = ["XCLAIM", "s", "g", &other, "0", &id];
                            ok(&mut client, &claim);
                        }
                        (3, _) => {
                            let claim = ["XAUTOCLAIM", "s", "g", &me, "0", "0", "COUNT", "2"];
                            ok(&mut client, &claim);
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    // A consumer that only asks for its past, of which there is none; and, of versions before 7.2 not made, one that gets
    // nothing new.
    while ok(
        &mut client,
        &[
            "XREADGROUP",
            "GROUP",
            "g",
            "last",
            "NOACK",
            "STREAMS",
            "s",
            ">",
        ],
    )
    .starts_with(b"*1")
    {}
    for (consumer, from) in [("past", "0"), ("idle", ">")] {
        ok(
            &mut client,
            &["XREADGROUP", "GROUP", "g", consumer, "STREAMS", "s", from],
        );
    }
    ok(
        &mut client,
        &[
            "XREADGROUP",
            "GROUP",
            "g",
            "waiting",
            "BLOCK",
            "5",
            "STREAMS",
            "s",
            ">",
        ],
    );
    ok(
        &mut client,
        &["XCLAIM", "s", "g", "claiming", "99999999", "1-1"],
    );
    ok(
        &mut client,
        &["XAUTOCLAIM", "s", "g", "collecting", "99999999", "0"],
    );
    let mut states = (String::new(), String::new());
    let same = eventually(Duration::from_secs(20), || {
        states = (group_state(&pair.primary), group_state(&pair.secondary));
        (states.0 == states.1).then_some(())
    });
    let first = states
        .0
        .lines()
        .zip(states.1.lines())
        .position(|(a, b)| a != b);
    assert!(
        same.is_some(),
        "line {first:?}\n{}\n{}",
        clip(states.0.as_bytes()),
        clip(states.1.as_bytes())
    );
    assert!(states.0.contains("consumer"), "{}", states.0);
    assert!(states.0.contains("past 0"), "{}", states.0);
    assert_eq!(pair.divergences().0, 0.0, "{:?}", pair.proxy.real().log());
}

/// Every name of the specification's chapter with the labels that it must have.
const CHAPTER: &[(&str, &[&str])] = &[
    ("parhelion_command_total", &["command", "backend", "status"]),
    (
        "parhelion_command_duration_seconds_bucket",
        &["command", "backend"],
    ),
    ("parhelion_primary_write_errors_total", &[]),
    (
        "parhelion_secondary_write_errors_total",
        &["command", "reason"],
    ),
    ("parhelion_primary_read_errors_total", &[]),
    ("parhelion_shadow_read_errors_total", &[]),
    ("parhelion_divergences_total", &["command", "kind"]),
    ("parhelion_migration_gaps_total", &["command"]),
    ("parhelion_active_connections", &[]),
    ("parhelion_async_drops_total", &["queue", "reason"]),
    ("parhelion_pubsub_shadow_divergences_total", &["kind"]),
    ("parhelion_pubsub_shadow_errors_total", &[]),
    // Queue: depth, capacity, delay.
    ("parhelion_mirror_queue_units", &["mirror"]),
    ("parhelion_mirror_queue_bytes", &["mirror"]),
    ("parhelion_mirror_queue_capacity_units", &["mirror"]),
    ("parhelion_mirror_queue_delay_seconds_bucket", &["mirror"]),
    // Pool: size, idle, wait.
    ("parhelion_mirror_connections_open", &["mirror"]),
    ("parhelion_mirror_connections_idle", &["mirror"]),
    ("parhelion_mirror_pool_waits_total", &["mirror"]),
    // The names of the original.
    ("proxy_command_total", &["command", "backend", "status"]),
    (
        "proxy_command_duration_seconds_bucket",
        &["command", "backend"],
    ),
    ("proxy_primary_write_errors_total", &[]),
    ("proxy_secondary_write_errors_total", &[]),
    ("proxy_primary_read_errors_total", &[]),
    ("proxy_shadow_read_errors_total", &[]),
    ("proxy_divergences_total", &["command", "kind"]),
    ("proxy_migration_gaps_total", &["command"]),
    ("proxy_active_connections", &[]),
    ("proxy_async_drops_total", &[]),
    ("proxy_pubsub_shadow_divergences_total", &["kind"]),
    ("proxy_pubsub_shadow_errors_total", &[]),
];

#[test]
fn every_metric_of_the_chapter_is_there_with_its_labels_and_counts() {
    let mut pair = Pair::with("mode = \"dual-write-shadow\"", |options, _| {
        options.general("compat_metrics = true")
    });
    let mut client = pair.client();
    ok(&mut client, &["SET", "k", "1"]);
    ok(&mut client, &["SET", "gap", "1"]);
    assert!(pair.becomes_same());
    // Wrong on the primary itself.
    assert_eq!(client.call(&["LPUSH", "k", "x"])[0], b'-');
    assert_eq!(client.call(&["LRANGE", "k", "0", "1"])[0], b'-');
    // Wrong behind it.
    ask(&pair.secondary, &["DEL", "gap", "k"]);
    ask(&pair.secondary, &["LPUSH", "k", "x"]);
    ok(&mut client, &["GET", "gap"]);
    ok(&mut client, &["INCR", "k"]);
    ok(
        &mut client,
        &["NO.SUCH.COMMAND"
            .replace("NO.SUCH.COMMAND", "PING")
            .as_str()],
    );
    assert_eq!(client.call(&["NO.SUCH.COMMAND", "k"])[0], b'-');
    let refused = ["\"INCR\"", "\"refused\""];
    pair.wait_metric("parhelion_secondary_write_errors_total", &refused, |n| {
        n == 1.0
    });
    pair.wait_metric("parhelion_migration_gaps_total", &["\"GET\""], |n| n == 1.0);
    let kinds = ["\"GET\"", "\"migration_gap\""];
    pair.wait_metric("parhelion_divergences_total", &kinds, |n| n == 1.0);
    for (name, words, count) in [
        ("parhelion_primary_write_errors_total", &[][..], 2.0),
        ("parhelion_primary_read_errors_total", &[], 1.0),
        (
            "parhelion_command_total",
            &["\"GET\"", "backend=\"primary\"", "\"ok\""],
            1.0,
        ),
        (
            "parhelion_command_total",
            &["\"GET\"", "backend=\"secondary\"", "\"ok\""],
            1.0,
        ),
        (
            "parhelion_command_total",
            &["\"INCR\"", "backend=\"secondary\"", "\"error\""],
            1.0,
        ),
        (
            "parhelion_command_total",
            &["\"other\"", "backend=\"primary\"", "\"error\""],
            1.0,
        ),
        (
            "parhelion_command_duration_seconds_count",
            &["\"SET\"", "\"secondary\""],
            2.0,
        ),
        (
            "proxy_command_total",
            &["\"SET\"", "\"secondary\"", "\"ok\""],
            2.0,
        ),
        (
            "proxy_divergences_total",
            &["\"GET\"", "\"migration_gap\""],
            1.0,
        ),
        ("proxy_secondary_write_errors_total", &[], 1.0),
        ("proxy_primary_write_errors_total", &[], 2.0),
        ("proxy_active_connections", &[], 1.0),
    ] {
        assert_eq!(pair.metric(name, words), count, "{name} {words:?}");
    }
    let text = pair.proxy.real().get("/metrics").unwrap();
    for (name, labels) in CHAPTER {
        let line = text
            .lines()
            .find(|line| line.split(['{', ' ']).next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("there is no {name}"));
        for label in *labels {
            assert!(
                line.contains(&format!("{label}=\"")),
                "{line} has no {label}"
            );
        }
    }
    assert!(!text.contains("NO.SUCH"), "what clients invent is no label");
}
