//! Promises of the specification of the dual-write proxy whose tests have no better place. REDIS.md names the test of each.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use parhelion::testing::redis::{RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use support::dual::{PATIENCE, Pair, ask, ok};
use support::proxy::{Proxy, ProxyOptions};
use support::resp::{RespClient, encode};

#[test]
fn each_mode_serves_repeats_and_follows_as_the_table_says() {
    // Who serves, whether the other one gets writes, whether it shadows.
    for (mode, secondary_serves, follows, shadows) in [
        ("redis-only", false, false, false),
        ("dual-write", false, true, false),
        ("dual-write-shadow", false, true, true),
        ("elastickv-primary", true, true, true),
        ("elastickv-only", true, false, false),
    ] {
        let mut pair = Pair::new(&format!("mode = \"{mode}\""));
        ask(&pair.primary, &["SET", "who", "primary"]);
        ask(&pair.secondary, &["SET", "who", "secondary"]);
        let mut client = pair.client();
        let who = String::from_utf8(client.call(&["GET", "who"])).unwrap();
        assert_eq!(who.contains("secondary"), secondary_serves, "{mode}");
        ok(&mut client, &["SET", "written", "1"]);
        let mut listener = pair.client();
        ok(&mut listener, &["SUBSCRIBE", "news"]);
        let (front, behind) = match secondary_serves {
            true => (&pair.secondary, &pair.primary),
            false => (&pair.primary, &pair.secondary),
        };
        assert_eq!(ask(front, &["GET", "written"]), "$1\r\n1\r\n", "{mode}");
        assert!(ask(front, &["PUBSUB", "NUMSUB", "news"]).ends_with(":1\r\n"));
        let has = |wanted: bool, args: &[&str], yes: &str| {
            let found = |limit| {
                eventually(limit, || ask(behind, args).ends_with(yes).then_some(())).is_some()
            };
            if wanted {
                assert!(found(PATIENCE), "{mode}: {args:?}");
            } else {
                assert!(!found(Duration::from_millis(200)), "{mode}: {args:?}");
            }
        };
        has(follows, &["GET", "written"], "$1\r\n1\r\n");
        has(shadows, &["PUBSUB", "NUMSUB", "news"], ":1\r\n");
        let name = "parhelion_mirror_divergences_total";
        if shadows {
            pair.wait_metric(name, &["data_mismatch"], |count| count == 1.0);
        } else {
            assert_eq!(pair.metric(name, &[]), 0.0, "{mode}");
        }
    }
}

#[test]
fn an_error_of_either_side_goes_where_it_belongs() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let mut client = pair.client();
    ok(&mut client, &["SET", "text", "abc"]);
    ok(&mut client, &["SET", "number", "1"]);
    assert!(pair.becomes_same());
    let seen = pair.seen_by_secondary(|_| {
        for args in [
            &["INCR", "text"][..],
            &["LPUSH", "text", "x"],
            &["SET", "text", "y", "NX", "XX"],
            &["EVAL", "return redis.error_reply('no')", "0"],
        ] {
            assert_eq!(client.call(args)[0], b'-', "{args:?}");
        }
        // A condition that is not met is no error, and changes nothing.
        assert_eq!(client.call(&["SET", "text", "y", "NX"]), b"$-1\r\n");
    });
    assert!(seen.is_empty(), "{seen:?}");
    // The other way round: the client sees nothing of it.
    ask(&pair.secondary, &["DEL", "number"]);
    ask(&pair.secondary, &["LPUSH", "number", "x"]);
    assert_eq!(client.call(&["INCR", "number"]), b":2\r\n");
    let words = ["\"INCR\"", "\"secondary_error\""];
    pair.wait_metric("parhelion_divergences_total", &words, |count| count == 1.0);
    assert!(pair.becomes_same(), "a refused write is copied");
}

#[test]
fn a_primary_that_dies_with_writes_on_their_way_leaves_no_difference() {
    let durable = RedisOptions {
        durable: true,
        extra: vec![("enable-debug-command".to_owned(), "yes".to_owned())],
        ..RedisOptions::default()
    };
    let mut primary = RedisServer::start(durable).unwrap();
    let secondary = support::dual::server();
    let options = ProxyOptions::new("redis", primary.address()).args(&[
        "--secondary",
        &secondary.address().to_string(),
        "--mode",
        "dual-write",
    ]);
    let proxy = Proxy::start(&options);
    let address = proxy.address();
    let deadline = Instant::now() + Duration::from_millis(2500);
    std::thread::scope(|scope| {
        for number in 0..8_u64 {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(number);
                // A client whose connection ends connects again, as libraries do.
                while Instant::now() < deadline {
                    let mut client = RespClient::connect(address);
                    for _ in 0..10_000 {
                        let key = format!("k:{}", rng.u8(0..20));
                        client.send(&encode(&["APPEND", &key, "x"]));
                        if Instant::now() > deadline || client.reply().is_err() {
                            break;
                        }
                    }
                }
            });
        }
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(400));
            primary.kill9().unwrap();
            primary.restart().unwrap();
        }
    });
    let same = eventually(PATIENCE, || {
        let digests = [&primary, &secondary].map(|at| ask(at, &["DEBUG", "DIGEST"]));
        (digests[0] == digests[1]).then_some(())
    });
    assert!(same.is_some());
    assert_ne!(ask(&primary, &["DBSIZE"]), ":0\r\n");
}

#[test]
fn a_function_that_the_secondary_has_forgotten_is_told_to_it() {
    let pair = Pair::new("mode = \"dual-write\"");
    let mut client = pair.client();
    let library = "#!lua name=mylib\nredis.register_function('add', function(keys, args) \
                   return redis.call('INCRBY', keys[1], args[1]) end)";
    ok(&mut client, &["FUNCTION", "LOAD", library]);
    ok(&mut client, &["FCALL", "add", "1", "n", "5"]);
    assert!(pair.becomes_same());
    ask(&pair.secondary, &["FUNCTION", "FLUSH"]);
    ok(&mut client, &["FCALL", "add", "1", "n", "7"]);
    assert!(pair.becomes_same());
    assert_eq!(ask(&pair.secondary, &["GET", "n"]), "$2\r\n12\r\n");
}

#[test]
fn every_effect_leaves_both_servers_identical() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let mut client = pair.client();
    for round in 0..20 {
        for line in [
            "SADD s a b c d e f g h i j k l",
            "SPOP s",
            "SPOP s 3",
            "XADD x MAXLEN ~ 10 * f v",
            "XADD x NOMKSTREAM * f v",
            "SET t v EX 1000",
            "SET t v PX 900000 GET",
            "SETEX t2 1000 v",
            "PSETEX t2 100000 v",
            "GETEX t EX 2000",
            "EXPIRE t 3000 GT",
            "PEXPIRE t 4000000 LT",
            "PERSIST t2",
            "INCRBYFLOAT f 0.1",
            "HINCRBYFLOAT h f 0.3",
            "RPUSH l a b a c a b",
            "LMPOP 2 nothing l RIGHT COUNT 2",
            "BLMPOP 1 1 l LEFT COUNT 2",
            "BLPOP nothing l 1",
            "BRPOP l 1",
            "LMOVE l m LEFT RIGHT",
            "RPUSH l z",
            "BLMOVE l m LEFT RIGHT 1",
            "RPUSH l z",
            "BRPOPLPUSH l m 1",
            "ZADD z 1 a 2 b 3 c 4 d 5 e 6 f",
            "ZPOPMIN z",
            "ZPOPMAX z 2",
            "BZPOPMIN z 1",
            "BZPOPMAX z 1",
            "ZMPOP 1 z MIN",
            "BZMPOP 1 1 z MAX",
            "SRANDMEMBER s",
            "SINTERSTORE s2 s s",
            "SORT l STORE sorted ALPHA",
            "COPY l l2 REPLACE",
            "GEOADD g 13.36 38.11 p 15.08 37.50 c",
            "PFADD hll a b c",
            "BITOP NOT bits t",
            "GETDEL t2",
        ] {
            let args: Vec<&str> = line.split(' ').collect();
            ok(&mut client, &args);
        }
        ok(&mut client, &["SET", &format!("round:{round}"), "1"]);
    }
    assert!(pair.becomes_same());
    for key in ["t", "t2", "f"] {
        let ends = [&pair.primary, &pair.secondary].map(|at| {
            let end = ask(at, &["PEXPIRETIME", key]);
            end[1..].trim().parse::<i64>().unwrap()
        });
        assert!((ends[0] - ends[1]).abs() < 1000, "{key}: {ends:?}");
    }
    assert_eq!(pair.divergences().0, 0.0, "{:?}", pair.proxy.real().log());
}

#[test]
fn what_only_looks_different_is_no_divergence() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    // The same data, made in another order.
    let members: Vec<String> = (0..200).map(|number| format!("m{number}")).collect();
    for (server, backwards) in [(&pair.primary, false), (&pair.secondary, true)] {
        let mut words = members.clone();
        if backwards {
            words.reverse();
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        ask(server, &[&["SADD", "s"], &words[..]].concat());
        let pairs: Vec<&str> = words.iter().flat_map(|word| [*word, "1"]).collect();
        ask(server, &[&["HSET", "h"], &pairs[..]].concat());
        ask(
            server,
            &[
                "SET",
                "t",
                "1",
                "EX",
                if backwards { "1000" } else { "1001" },
            ],
        );
        ask(
            server,
            &["SET", "f", if backwards { "1.50" } else { "1.5" }],
        );
        ask(server, &["ZADD", "z", "1.5", "a", "2", "b"]);
    }
    for version in ["2", "3"] {
        let mut client = pair.client();
        ok(&mut client, &["HELLO", version]);
        for line in [
            "SMEMBERS s",
            "HGETALL h",
            "HKEYS h",
            "HVALS h",
            "SINTER s s",
            "TTL t",
            "PTTL t",
            "ZRANGE z 0 -1 WITHSCORES",
            "ZSCORE z a",
            "RANDOMKEY",
            "SRANDMEMBER s 5",
            "TIME",
            "DUMP t",
            "OBJECT ENCODING s",
            "INFO",
            "SCAN 0",
            "SSCAN s 0",
            "HRANDFIELD h 3",
        ] {
            ok(&mut client, &line.split(' ').collect::<Vec<_>>());
        }
    }
    ok(&mut pair.client(), &["SET", "mark", "1"]);
    let arrived = eventually(PATIENCE, || {
        (ask(&pair.secondary, &["EXISTS", "mark"]) == ":1\r\n").then_some(())
    });
    assert!(arrived.is_some());
    assert_eq!(
        pair.divergences(),
        (0.0, 0.0),
        "{:?}",
        pair.proxy.real().log()
    );
    assert!(pair.metric("parhelion_mirror_compared_total", &[]) >= 18.0);
}

#[test]
fn every_kind_of_difference_is_called_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("divergences.jsonl");
    let line = format!("divergence_log = \"{}\"", journal.display());
    let mut pair = Pair::with("mode = \"dual-write-shadow\"", |options, _| {
        options.general(&line)
    });
    let fill = |server: &RedisServer, commands: &[&str]| {
        for command in commands {
            let reply = ask(server, &command.split(' ').collect::<Vec<_>>());
            assert!(!reply.starts_with('-'), "{command}: {reply}");
        }
    };
    fill(
        &pair.primary,
        &[
            "SET gap 1",
            "RPUSH list a b",
            "SET wrong 1",
            "SET error 1",
            "RPUSH type a",
        ],
    );
    fill(
        &pair.secondary,
        &[
            "SET extra 1",
            "SET wrong 2",
            "RPUSH error a",
            "SET type 1",
            "SET taken 1",
        ],
    );
    let mut client = pair.client();
    for command in [
        "GET gap",
        "LLEN list",
        "EXISTS list",
        "LRANGE list 0 -1",
        "GET extra",
        "GET wrong",
        "GET error",
        "GET type",
        "SET taken 2 NX",
    ] {
        client.call(&command.split(' ').collect::<Vec<_>>());
    }
    for (kind, count) in [
        ("migration_gap", 5.0),
        ("extra_data", 1.0),
        ("data_mismatch", 1.0),
        ("secondary_error", 1.0),
        ("type_mismatch", 1.0),
    ] {
        let words = [format!("\"{kind}\"")];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let name = "parhelion_mirror_divergences_total";
        let found = eventually(PATIENCE, || {
            (pair.metric(name, &words) == count).then_some(())
        });
        let shown = pair.proxy.real().get("/api/divergences").unwrap();
        assert!(found.is_some(), "{kind}: {shown}");
    }
    let records = eventually(PATIENCE, || {
        let text = std::fs::read_to_string(&journal).unwrap_or_default();
        (text.lines().count() >= 9).then_some(text)
    });
    let records: Vec<serde_json::Value> = records
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let wrong = records
        .iter()
        .find(|record| record["key"] == "wrong")
        .unwrap();
    assert_eq!(
        (&wrong["command"], &wrong["kind"]),
        (&"GET".into(), &"data_mismatch".into())
    );
    for field in [
        "at_unix_ms",
        "pattern",
        "primary",
        "mirror",
        "core",
        "client",
    ] {
        assert!(!wrong[field].is_null(), "{field}: {wrong}");
    }
}

#[test]
fn a_dead_shadow_subscription_is_one_error_and_the_client_goes_on() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"\npubsub_compare_window = \"200ms\"");
    let mut listener = pair.client();
    ok(&mut listener, &["SUBSCRIBE", "news"]);
    let shadowed = eventually(PATIENCE, || {
        ask(&pair.secondary, &["PUBSUB", "NUMSUB", "news"])
            .ends_with(":1\r\n")
            .then_some(())
    });
    assert!(shadowed.is_some());
    pair.secondary.kill9().unwrap();
    pair.wait_metric("parhelion_pubsub_shadow_errors_total", &[], |count| {
        count == 1.0
    });
    let mut client = pair.client();
    for number in 0..50 {
        ok(&mut client, &["PUBLISH", "news", &number.to_string()]);
        let message = listener.reply().unwrap();
        assert!(message.ends_with(format!("{number}\r\n").as_bytes()));
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(
        pair.metric("parhelion_pubsub_shadow_errors_total", &[]),
        1.0
    );
    assert_eq!(
        pair.metric("parhelion_pubsub_shadow_divergences_total", &[]),
        0.0
    );
}
