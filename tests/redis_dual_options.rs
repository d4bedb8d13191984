//! Each option of `[[dual_write]]` does what its description says, between two real servers.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use parhelion::protocol::resp::{Request, RequestFramer};
use parhelion::testing::redis::RedisServer;
use parhelion::testing::wait::eventually;
use support::dual::{PATIENCE, Pair, ask, ok};
use support::proxy::ProxyOptions;
use support::resp::{RespClient, encode};

const WRITE_ERRORS: &str = "parhelion_secondary_write_errors_total";

fn contains(lines: &[String], wanted: &str) -> bool {
    lines.iter().any(|line| line.contains(wanted))
}

#[test]
fn effects_replace_what_depends_on_time_and_chance_and_off_repeats_it_as_it_is() {
    for effects in [true, false] {
        let mut pair = Pair::new(&format!("effects = {effects}"));
        let seen = pair.seen_by_secondary(|pair| {
            let mut client = pair.client();
            for line in [
                "SET k v EX 100",
                "INCRBYFLOAT f 1.5",
                "EXPIRE k 50",
                "SADD s a",
                "SPOP s",
                "XADD x * f v",
                "SETEX e 9 v",
                "GETEX k PX 99999",
            ] {
                let args: Vec<&str> = line.split(' ').collect();
                ok(&mut client, &args);
            }
        });
        let changed = [
            (r#""SET" "k" "v" "PXAT""#, r#""SET" "k" "v" "EX" "100""#),
            (r#""SET" "f" "1.5" "KEEPTTL""#, r#""INCRBYFLOAT" "f" "1.5""#),
            (r#""PEXPIREAT" "k""#, r#""EXPIRE" "k" "50""#),
            (r#""SREM" "s" "a""#, r#""SPOP" "s""#),
            (r#""SET" "e" "v" "PXAT""#, r#""SETEX" "e" "9" "v""#),
            (r#""GETEX" "k" "PXAT""#, r#""GETEX" "k" "PX" "99999""#),
        ];
        for (effect, verbatim) in changed {
            assert_eq!(contains(&seen, effect), effects, "{effect}: {seen:?}");
            assert_eq!(contains(&seen, verbatim), !effects, "{verbatim}: {seen:?}");
        }
        assert_eq!(contains(&seen, r#""XADD" "x" "*""#), !effects, "{seen:?}");
    }
}

#[test]
fn blocking_says_what_becomes_of_a_pop_that_waits() {
    for (word, expected) in [
        ("effects", r#""LREM" "l" "1" "job""#),
        ("warmup", r#""BLPOP" "l" "0.01""#),
        ("off", ""),
    ] {
        let mut pair = Pair::new(&format!("blocking = \"{word}\""));
        let seen = pair.seen_by_secondary(|pair| {
            let mut client = pair.client();
            ok(&mut client, &["RPUSH", "l", "job"]);
            assert!(client.call(&["BLPOP", "l", "1"]).ends_with(b"job\r\n"));
            ok(&mut client, &["BLMOVE", "l", "m", "LEFT", "LEFT", "0.01"]);
        });
        let pops: Vec<&String> = seen
            .iter()
            .filter(|line| line.starts_with(r#""LREM""#) || line.starts_with(r#""BLPOP""#))
            .collect();
        if expected.is_empty() {
            assert!(pops.is_empty(), "{seen:?}");
        } else {
            assert_eq!(pops, [expected], "{seen:?}");
        }
        if word == "effects" {
            assert!(pair.becomes_same());
        }
        assert_eq!(pair.divergences(), (0.0, 0.0), "{word}");
    }
}

/// How often each of 200 keys was read on the secondary when each was read five times.
fn repeated(lines: &str) -> BTreeMap<String, u32> {
    let mut pair = Pair::new(&format!("mode = \"dual-write-shadow\"\n{lines}"));
    let seen = pair.seen_by_secondary(|pair| {
        let mut client = pair.client();
        for _ in 0..5 {
            for number in 0..200 {
                ok(&mut client, &["GET", &format!("k:{number}")]);
            }
        }
    });
    let mut counts = BTreeMap::new();
    for line in seen.iter().filter(|line| line.starts_with(r#""GET""#)) {
        *counts.entry(line.clone()).or_default() += 1;
    }
    let total: u32 = counts.values().sum();
    let exposed = |pair: &mut Pair| 1000.0 - pair.metric("parhelion_mirror_unexposed_total", &[]);
    assert_eq!(exposed(&mut pair), f64::from(total));
    counts
}

#[test]
fn exposure_is_the_share_of_reads_that_are_repeated_by_request_or_by_key() {
    assert!(repeated("exposure = 0.0").is_empty());
    assert_eq!(repeated("exposure = 1.0").len(), 200);
    let by_request = repeated("exposure = 0.5");
    let total: u32 = by_request.values().sum();
    assert!((350..650).contains(&total), "{total} of 1000");
    assert!(by_request.values().any(|count| (1..5).contains(count)));
    let by_key = repeated("exposure = 0.5\nsample_by = \"key\"");
    assert!(
        by_key.values().all(|count| *count == 5),
        "the same keys always: {by_key:?}"
    );
    assert!((60..140).contains(&by_key.len()), "{} of 200", by_key.len());
    assert_eq!(by_key, repeated("exposure = 0.5\nsample_by = \"key\""));
}

/// A pair whose connection to the secondary stands.
fn connected(lines: &str) -> (Pair, RespClient) {
    let pair = Pair::new(lines);
    let mut client = pair.client();
    ok(&mut client, &["SET", "first", "1"]);
    assert!(pair.becomes_same());
    (pair, client)
}

#[test]
fn a_write_that_the_secondary_does_not_answer_in_time_ends_its_connection_and_nothing_is_lost() {
    let (mut pair, mut client) = connected("secondary_timeout = \"200ms\"");
    pair.secondary.pause().unwrap();
    let before = Instant::now();
    for number in 0..50 {
        ok(&mut client, &["SET", &format!("k:{number}"), "v"]);
    }
    assert!(
        before.elapsed() < Duration::from_millis(200),
        "no client waits"
    );
    let words = ["\"SET\"", "\"timeout\""];
    pair.wait_metric(WRITE_ERRORS, &words, |count| count >= 1.0);
    pair.secondary.resume().unwrap();
    assert!(pair.becomes_same());
    assert_eq!(pair.divergences().0, 0.0);
}

#[test]
fn scripts_have_a_time_of_their_own() {
    let script = ["EVAL", "return redis.call('INCR', KEYS[1])", "1", "n"];
    let (mut pair, mut client) =
        connected("secondary_timeout = \"100ms\"\nscript_timeout = \"60s\"");
    pair.secondary.pause().unwrap();
    ok(&mut client, &script);
    std::thread::sleep(Duration::from_millis(700));
    pair.secondary.resume().unwrap();
    assert!(pair.becomes_same());
    assert_eq!(
        pair.metric("parhelion_mirror_unit_timeouts_total", &[]),
        0.0
    );

    let (mut pair, mut client) =
        connected("secondary_timeout = \"60s\"\nscript_timeout = \"200ms\"");
    pair.secondary.pause().unwrap();
    ok(&mut client, &script);
    pair.wait_metric(WRITE_ERRORS, &["\"EVAL\"", "\"timeout\""], |count| {
        count >= 1.0
    });
    pair.secondary.resume().unwrap();
    assert!(pair.becomes_same());
}

#[test]
fn a_shadow_read_that_takes_too_long_is_an_error_and_no_divergence() {
    let (mut pair, mut client) =
        connected("mode = \"dual-write-shadow\"\nshadow_timeout = \"200ms\"");
    pair.secondary.pause().unwrap();
    let before = Instant::now();
    ok(&mut client, &["GET", "first"]);
    assert!(
        before.elapsed() < Duration::from_millis(200),
        "no client waits"
    );
    pair.wait_metric("parhelion_shadow_read_errors_total", &[], |count| {
        count >= 1.0
    });
    pair.secondary.resume().unwrap();
    ok(&mut client, &["SET", "last", "1"]);
    assert!(pair.becomes_same(), "the connection is still in step");
    assert_eq!(pair.divergences(), (0.0, 0.0));
}

#[test]
fn what_finds_no_room_is_dropped_counted_tainted_and_copied_when_the_secondary_is_back() {
    let (mut pair, mut client) = connected("queue_length = 8");
    pair.secondary.pause().unwrap();
    for number in 0..3000 {
        ok(
            &mut client,
            &["SET", &format!("k:{number}"), "v", "EX", "1000"],
        );
    }
    let reasons = ["\"secondary\"", "\"queue_full\""];
    pair.wait_metric("parhelion_async_drops_total", &reasons, |count| count > 0.0);
    pair.wait_metric("parhelion_tainted_keys", &[], |count| count > 0.0);
    pair.secondary.resume().unwrap();
    assert!(pair.becomes_same());
    pair.wait_metric("parhelion_tainted_keys", &[], |count| count == 0.0);
    assert!(pair.metric("parhelion_repaired_keys_total", &[]) > 0.0);
}

#[test]
fn without_repair_what_was_dropped_stays_away_and_counted() {
    let (mut pair, mut client) = connected("queue_length = 8\nrepair = false");
    pair.secondary.pause().unwrap();
    for number in 0..3000 {
        ok(&mut client, &["SET", &format!("k:{number}"), "v"]);
    }
    pair.wait_metric(
        "parhelion_async_drops_total",
        &["\"queue_full\""],
        |count| count > 0.0,
    );
    let dropped = pair.metric("parhelion_async_drops_total", &["\"queue_full\""]);
    pair.secondary.resume().unwrap();
    pair.wait_metric("parhelion_mirror_in_flight", &[], |count| count == 0.0);
    let keys = eventually(PATIENCE, || {
        let size = ask(&pair.secondary, &["DBSIZE"]);
        let size: f64 = size[1..].trim().parse().unwrap();
        (size + dropped == 3001.0).then_some(())
    });
    assert!(keys.is_some(), "{dropped} dropped");
    assert_eq!(pair.metric("parhelion_repaired_keys_total", &[]), 0.0);
    pair.wait_metric("parhelion_tainted_keys", &[], |count| count == dropped);
}

/// A way to a server that damages what RESTORE brings: the server says that it does not know the format.
fn damages_dumps(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut upstream = TcpStream::connect(server).unwrap();
            let (mut from, mut to) = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || {
                let mut framer = RequestFramer::new();
                framer.set_authenticated(true);
                let (mut pending, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
                while let Ok(length @ 1..) = client.read(&mut chunk) {
                    let mut rest = &chunk[..length];
                    while !rest.is_empty() {
                        let advance = framer.advance(rest).unwrap();
                        pending.extend_from_slice(&rest[..advance.consumed]);
                        rest = &rest[advance.consumed..];
                        if advance.done {
                            let mut frame = std::mem::take(&mut pending);
                            let request = Request::parse(&frame);
                            if request.arg_is(0, b"RESTORE") {
                                let mut args: Vec<Vec<u8>> =
                                    request.args().map(<[u8]>::to_vec).collect();
                                *args[3].last_mut().unwrap() ^= 1;
                                frame = encode(&args);
                            }
                            if upstream.write_all(&frame).is_err() {
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    address
}

#[test]
fn a_secondary_that_does_not_know_the_dumps_is_repaired_type_by_type() {
    let mut pair = Pair::through("queue_length = 1", damages_dumps, |options, _| options);
    let mut client = pair.client();
    ok(&mut client, &["SET", "first", "1"]);
    assert!(pair.becomes_same());
    pair.secondary.pause().unwrap();
    for round in 0..400 {
        let item = format!("i{round}");
        for line in [
            "SET string {} EX 5000",
            "RPUSH list {}",
            "SADD set {}",
            "ZADD zset 1.5 {}",
            "HSET hash {} v",
            "XADD stream * f {}",
            "SET gone {}",
        ] {
            let line = line.replace("{}", &item);
            ok(&mut client, &line.split(' ').collect::<Vec<_>>());
        }
    }
    ok(&mut client, &["XGROUP", "CREATE", "stream", "group", "0"]);
    ok(&mut client, &["DEL", "gone"]);
    pair.secondary.resume().unwrap();
    assert!(pair.becomes_same());
    assert!(pair.metric("parhelion_repaired_keys_total", &[]) > 0.0);
    let ends = [&pair.primary, &pair.secondary].map(|at| ask(at, &["PEXPIRETIME", "string"]));
    assert_eq!(ends[0], ends[1]);
    let groups = [&pair.primary, &pair.secondary].map(|at| ask(at, &["XINFO", "GROUPS", "stream"]));
    assert_eq!(
        groups[0].matches("group").count(),
        groups[1].matches("group").count()
    );
}

#[test]
fn a_stop_waits_for_the_queue_and_journals_the_keys_of_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("divergences.jsonl");
    let start = |drain: &str| {
        let line = format!("divergence_log = \"{}\"", journal.display());
        let drain = format!("drain_timeout = \"{drain}\"");
        Pair::with("", |options: ProxyOptions, _| {
            options.general(&line).general(&drain)
        })
    };
    // Everything arrives.
    let mut pair = start("20s");
    let mut client = pair.client();
    let pipeline: Vec<u8> = (0..5000)
        .flat_map(|number| encode(&["SET", &format!("k:{number}"), "v"]))
        .collect();
    let sender = client.send_aside(pipeline);
    client.replies(5000);
    sender.join().unwrap();
    pair.proxy.real().terminate();
    assert_eq!(ask(&pair.secondary, &["DBSIZE"]), ":5000\r\n");
    let text = std::fs::read_to_string(&journal).unwrap_or_default();
    assert!(!text.contains("tainted"), "{text}");
    // It does not take any more.
    let mut pair = start("300ms");
    let mut client = pair.client();
    ok(&mut client, &["SET", "first", "1"]);
    assert!(pair.becomes_same());
    pair.secondary.pause().unwrap();
    for number in 0..20 {
        ok(&mut client, &["SET", &format!("left:{number}"), "v"]);
    }
    let before = Instant::now();
    pair.proxy.real().terminate();
    assert!(
        before.elapsed() < Duration::from_secs(8),
        "{:?}",
        before.elapsed()
    );
    let text = std::fs::read_to_string(&journal).unwrap();
    for number in 0..20 {
        assert!(
            text.contains(&format!("left:{number}\"")),
            "{number}: {text}"
        );
    }
    assert!(!text.contains("first"));
    pair.secondary.resume().unwrap();
}

#[test]
fn a_read_only_script_stays_read_only_when_the_secondary_does_not_know_it() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let body = "return redis.call('GET', KEYS[1])";
    let mut client = pair.client();
    ok(&mut client, &["SET", "k", "v"]);
    let loaded = client.call(&["SCRIPT", "LOAD", body]);
    let sha = String::from_utf8(loaded[5..45].to_vec()).unwrap();
    assert!(pair.becomes_same());
    assert_eq!(ask(&pair.secondary, &["SCRIPT", "FLUSH"]), "+OK\r\n");
    let seen = pair.seen_by_secondary(|pair| {
        let reply = client.call(&["EVALSHA_RO", &sha, "1", "k"]);
        assert_eq!(reply, b"$1\r\nv\r\n");
        let known = eventually(PATIENCE, || {
            let exists = ask(&pair.secondary, &["SCRIPT", "EXISTS", &sha]);
            exists.ends_with(":1\r\n").then_some(())
        });
        assert!(known.is_some(), "the body never came");
    });
    let text = seen.join("\n");
    assert!(
        text.contains(r#""EVALSHA_RO""#) && text.contains(r#""EVAL_RO""#),
        "{text}"
    );
    assert!(!text.contains(r#""EVAL""#), "{text}");
    assert_eq!(pair.divergences(), (0.0, 0.0));
}

#[test]
fn a_backend_that_the_mode_does_not_use_is_not_dialled() {
    let quiet = |server: &RedisServer| {
        let list = ask(server, &["CLIENT", "LIST"]);
        assert_eq!(list.matches(" addr=").count(), 1, "{list}");
    };
    for (mode, both) in [
        ("redis-only", false),
        ("elastickv-only", false),
        ("dual-write-shadow", true),
    ] {
        let pair = Pair::new(&format!("mode = \"{mode}\""));
        let mut client = pair.client();
        ok(&mut client, &["SET", "k", "v"]);
        ok(&mut client, &["GET", "k"]);
        if both {
            assert!(pair.becomes_same());
            continue;
        }
        let (used, unused) = match mode {
            "redis-only" => (&pair.primary, &pair.secondary),
            _ => (&pair.secondary, &pair.primary),
        };
        quiet(unused);
        assert_eq!(ask(used, &["GET", "k"]), "$1\r\nv\r\n");
        assert_eq!(ask(unused, &["GET", "k"]), "$-1\r\n");
    }
}

#[test]
fn options_that_are_reloaded_apply_to_the_next_command() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let mut client = pair.client();
    let url = format!("http://{}", pair.proxy.real().control());
    let words = std::fs::read(format!("/proc/{}/cmdline", pair.proxy.real().pid())).unwrap();
    let words: Vec<_> = words
        .split(|byte| *byte == 0)
        .map(String::from_utf8_lossy)
        .collect();
    let file = words
        .iter()
        .find(|word| word.ends_with(".toml"))
        .unwrap()
        .to_string();
    let before = std::fs::read_to_string(&file).unwrap();
    for (exposure, reads) in [("0.0", 0), ("1.0", 100)] {
        std::fs::write(&file, format!("{before}exposure = {exposure}\n")).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_parhelion"))
            .args(["ctl", "--url", &url, "reload"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let seen = pair.seen_by_secondary(|_| {
            for _ in 0..100 {
                ok(&mut client, &["GET", "k"]);
            }
        });
        let count = seen
            .iter()
            .filter(|line| line.starts_with(r#""GET""#))
            .count();
        assert_eq!(count, reads);
    }
}
