//! Many clients on the same few keys: both servers end up with the same data, whatever happens to the secondary and to the
//! mode meanwhile, and replies that differ only because of it are no divergences.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parhelion::testing::servers::RedisServer;
use parhelion::testing::wait::eventually;
use support::dual::{Pair, ask, ok};
use support::resp::{RespClient, clip};

/// Waits until both servers hold the same data.
fn same_data(pair: &Pair) {
    assert!(
        pair.becomes_same(),
        "{}",
        difference(&pair.primary, &pair.secondary)
    );
}

/// What differs, for a message.
fn difference(primary: &RedisServer, secondary: &RedisServer) -> String {
    let mut ours = RespClient::connect(primary.address());
    let mut theirs = RespClient::connect(secondary.address());
    let mut out = format!(
        "sizes {} {}",
        clip(&ours.call(&["DBSIZE"])),
        clip(&theirs.call(&["DBSIZE"]))
    );
    for number in 0..10 {
        for kind in ["s", "n", "l", "set", "z", "x", "h", "e", "m"] {
            let key = format!("{kind}:{number}");
            let values = [&mut ours, &mut theirs]
                .map(|client| client.call(&["DEBUG", "DIGEST-VALUE", &key]));
            if values[0] != values[1] {
                let dumps = [&mut ours, &mut theirs].map(|client| {
                    let read: &[&str] = match kind {
                        "l" => &["LRANGE", &key, "0", "-1"],
                        "set" => &["SMEMBERS", &key],
                        "z" => &["ZRANGE", &key, "0", "-1", "WITHSCORES"],
                        "x" => &["XRANGE", &key, "-", "+"],
                        "h" => &["HGETALL", &key],
                        _ => &["GET", &key],
                    };
                    (
                        clip(&client.call(read)),
                        clip(&client.call(&["PTTL", &key])),
                    )
                });
                out += &format!("\n{key}: {dumps:?}");
            }
        }
    }
    out
}

/// One command of the mix on one of ten keys of each kind.
fn step(client: &mut RespClient, rng: &mut fastrand::Rng) {
    let number = rng.u8(0..10);
    let value = format!("v{}", rng.u16(..));
    let key = |kind: &str| format!("{kind}:{number}");
    let call = |client: &mut RespClient, args: &[&str]| {
        let reply = client.call(args);
        assert_ne!(reply[0], b'-', "{args:?}: {}", clip(&reply));
    };
    match rng.u8(0..19) {
        0 => call(client, &["APPEND", &key("s"), &value]),
        1 => call(client, &["SET", &key("s"), &value]),
        2 => call(client, &["INCR", &key("n")]),
        3 => call(client, &["LPUSH", &key("l"), &value]),
        4 => call(client, &["RPUSH", &key("l"), &value]),
        5 => call(client, &["SADD", &key("set"), &value]),
        6 => call(client, &["SPOP", &key("set")]),
        7 => call(client, &["PEXPIRE", &key("e"), "100000"]),
        8 => call(client, &["SET", &key("e"), &value, "PX", "200000"]),
        9 => call(
            client,
            &["XADD", &key("x"), "MAXLEN", "50", "*", "f", &value],
        ),
        10 => {
            let script =
                "redis.call('HINCRBY', KEYS[1], ARGV[1], 1) return redis.call('HLEN', KEYS[1])";
            call(client, &["EVAL", script, "1", &key("h"), &value[..2]]);
        }
        11 => {
            for args in [
                &["MULTI"][..],
                &["INCR", &key("m")],
                &["SPOP", &key("set")],
                &["LPUSH", &key("l"), &value],
                &["EXEC"],
            ] {
                call(client, args);
            }
        }
        12 => call(client, &["ZADD", &key("z"), "1", &value]),
        13 => call(client, &["ZPOPMIN", &key("z")]),
        14 => call(client, &["INCRBYFLOAT", &key("n"), "1"]),
        15 => call(client, &["LMPOP", "1", &key("l"), "LEFT"]),
        16 => call(client, &["BLPOP", &key("l"), "0.01"]),
        17 => {
            call(client, &["GET", &key("s")]);
            call(client, &["LRANGE", &key("l"), "0", "-1"]);
            call(client, &["SMEMBERS", &key("set")]);
        }
        _ => call(client, &["LTRIM", &key("l"), "0", "30"]),
    }
}

/// Runs the mix with 32 clients, `steps` each.
fn mix(address: SocketAddr, steps: usize) {
    std::thread::scope(|scope| {
        for seed in 0..32 {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut client = RespClient::connect(address);
                for _ in 0..steps {
                    step(&mut client, &mut rng);
                }
            });
        }
    });
}

/// A pop that waits is answered over a connection of its own: whether a copy of its list, a trim or a deletion over
/// another one came before it is not known, and a reply that differs proves nothing.
#[test]
fn replies_of_writes_that_race_each_other_are_no_divergences() {
    for _ in 0..4 {
        let mut pair = Pair::new("mode = \"dual-write-shadow\"");
        mix(pair.proxy.address(), 200);
        same_data(&pair);
        let (told, _) = pair.divergences();
        assert_eq!(told, 0.0, "{:?}", pair.proxy.real().log());
    }
}

/// One command on one of five keys of each kind that end within milliseconds.
fn step_with_ends(client: &mut RespClient, rng: &mut fastrand::Rng) {
    let number = rng.u8(0..5);
    let (text, list, hash) = (
        format!("t:{number}"),
        format!("tl:{number}"),
        format!("th:{number}"),
    );
    let (value, soon) = (format!("v{}", rng.u16(..)), rng.u8(1..9).to_string());
    let args: &[&str] = match rng.u8(0..13) {
        0 => &["SET", &text, &value, "PX", &soon],
        1 => &["APPEND", &text, "x"],
        2 => &["SETRANGE", &text, "3", "y"],
        3 => &["PEXPIRE", &text, &soon],
        4 => &["PEXPIRE", &list, &soon],
        5 => &["PEXPIRE", &hash, &soon],
        6 => &["RPUSH", &list, &value],
        7 => &["LPOP", &list],
        8 => &["HSET", &hash, &value, "1"],
        9 => &["DEL", &text],
        10 => &["SETNX", &text, &value],
        11 => &["PERSIST", &text],
        _ => &["GETEX", &text, "PX", &soon],
    };
    let reply = client.call(args);
    assert_ne!(reply[0], b'-', "{args:?}: {}", clip(&reply));
}

/// A key that ends between the executions of a write on both servers is there for one and not for the other.
#[test]
fn replies_of_writes_that_race_an_expiry_are_no_divergences_and_leave_both_servers_identical() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let address = pair.proxy.address();
    std::thread::scope(|scope| {
        for seed in 0..16 {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut client = RespClient::connect(address);
                for _ in 0..1000 {
                    step_with_ends(&mut client, &mut rng);
                }
            });
        }
    });
    same_data(&pair);
    let (told, transient) = pair.divergences();
    assert_eq!(told, 0.0, "{:?}", pair.proxy.real().log());
    println!("{transient} races of 16000 writes");
}

#[test]
fn thirty_two_clients_on_the_same_ten_keys_leave_both_servers_identical() {
    let pair = Pair::new("mode = \"dual-write-shadow\"");
    mix(pair.proxy.address(), 300);
    same_data(&pair);
    let (mut ours, mut theirs) = (
        RespClient::connect(pair.primary.address()),
        RespClient::connect(pair.secondary.address()),
    );
    for number in 0..10 {
        let ttl = |client: &mut RespClient| {
            let reply = client.call(&["PEXPIRETIME", &format!("e:{number}")]);
            String::from_utf8_lossy(&reply[1..])
                .trim()
                .parse::<i64>()
                .unwrap()
        };
        let (ours, theirs) = (ttl(&mut ours), ttl(&mut theirs));
        assert!((ours - theirs).abs() < 1000, "{ours} {theirs}");
    }
}

#[test]
fn a_secondary_that_is_killed_and_restarted_twice_under_load_ends_identical() {
    let mut pair = Pair::new("mode = \"dual-write\"");
    let address = pair.proxy.address();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..32 {
            let done = &done;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut client = RespClient::connect(address);
                while !done.load(Ordering::Relaxed) {
                    step(&mut client, &mut rng);
                }
            });
        }
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(400));
            pair.secondary.kill9().unwrap();
            std::thread::sleep(Duration::from_millis(300));
            pair.secondary.restart().unwrap();
            std::thread::sleep(Duration::from_millis(400));
        }
        done.store(true, Ordering::Relaxed);
    });
    same_data(&pair);
    assert!(pair.metric("parhelion_repaired_keys_total", &[]) > 0.0);
}

#[test]
fn the_modes_are_walked_under_load_without_an_error_or_a_lost_write() {
    let mut pair = Pair::new("mode = \"primary-only\"");
    let address = pair.proxy.address();
    let done = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..16 {
            let (done, written) = (&done, &written);
            scope.spawn(move || {
                let mut client = RespClient::connect(address);
                let key = format!("counter:{number}");
                let mut expected = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    expected += 1;
                    assert_eq!(
                        client.call(&["INCR", &key]),
                        format!(":{expected}\r\n").into_bytes(),
                        "an increment was lost or doubled"
                    );
                }
                written.fetch_add(expected, Ordering::Relaxed);
            });
        }
        let walk = [
            "dual-write",
            "dual-write-shadow",
            "secondary-primary",
            "secondary-only",
            "elastickv-primary",
            "dual-write",
            "primary-only",
            "dual-write",
        ];
        for mode in walk {
            std::thread::sleep(Duration::from_millis(300));
            pair.set_mode(mode);
        }
        std::thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::Relaxed);
    });
    assert!(written.load(Ordering::Relaxed) > 1000);
    same_data(&pair);
}

/// Keys that both servers have been given an end without the proxy: by a migration, or before it stood there.
#[test]
fn the_end_of_a_key_that_the_proxy_has_never_seen_is_no_divergence_of_a_write() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let mut client = pair.client();
    let (mut ours, mut theirs) = (
        RespClient::connect(pair.primary.address()),
        RespClient::connect(pair.secondary.address()),
    );
    let writes = |number: usize| -> [Vec<String>; 4] {
        let words = |line: String| line.split(' ').map(str::to_owned).collect();
        [
            words(format!("INCR u:{number}")),
            words(format!("APPEND a:{number} x")),
            words(format!("HSET h:{number} f 1")),
            words(format!("RPUSH l:{number} 1")),
        ]
    };
    for number in 0..100 {
        // On the secondary they have just ended when the write arrives there; on the primary they end a moment later.
        for write in writes(number) {
            let (key, of_hash) = (&write[1], write[1].starts_with('h'));
            match write[1].as_bytes()[0] {
                b'u' => drop(ours.call(&["SET", key, "5"])),
                b'a' => drop(ours.call(&["SET", key, "abc"])),
                _ if of_hash => drop(ours.call(&["HSET", key, "f", "0"])),
                _ => drop(ours.call(&["RPUSH", key, "0"])),
            }
            ours.call(&["PEXPIRE", key, "100"]);
            theirs.call(&["DEL", key]);
            let words: Vec<&str> = write.iter().map(String::as_str).collect();
            ok(&mut client, &words);
        }
    }
    // What the late writes made of the keys on the secondary is taken away.
    assert!(
        pair.becomes_same(),
        "{}",
        ask(&pair.secondary, &["KEYS", "*"])
    );
    let (told, transient) = pair.divergences();
    assert_eq!(told, 0.0, "{:?}", pair.proxy.real().log());
    assert!(transient > 100.0, "{transient} of 400 were seen to differ");
}

/// More mismatches at once than are held back one by one: each is asked about before anybody is told, none is forgotten.
#[test]
fn a_thousand_keys_that_end_unseen_at_once_are_no_divergences_and_are_repaired() {
    const KEYS: usize = 1000;
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let mut client = pair.client();
    let mut ours = RespClient::connect(pair.primary.address());
    // On a busy machine the keys of a round may end before they are written to: then both sides agree.
    for round in 0..10 {
        let each = |line: &dyn Fn(String) -> String| -> Vec<u8> {
            let lines = (0..KEYS).map(|key| line(format!("k:{round}:{key}")));
            lines.collect::<String>().into_bytes()
        };
        ours.send(&each(&|key| format!("SET {key} 5 PX 100\r\n")));
        ours.replies(KEYS);
        client.send(&each(&|key| format!("INCR {key}\r\n")));
        client.replies(KEYS);
        assert!(
            pair.becomes_same(),
            "{}",
            ask(&pair.secondary, &["KEYS", "*"])
        );
        let (told, transient) = pair.divergences();
        assert_eq!(told, 0.0, "{transient}: {:?}", pair.proxy.real().log());
        if transient > 500.0 {
            return;
        }
    }
    panic!("hardly any key was seen to differ");
}

/// The primary answers the question about one key too late; its answer is not taken for that about the next key.
#[test]
fn a_late_answer_about_one_key_excuses_no_divergence_of_another() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"\nshadow_timeout = \"100ms\"");
    let mut client = pair.client();
    let mut ours = RespClient::connect(pair.primary.address());
    let mut theirs = RespClient::connect(pair.secondary.address());
    for key in ["first", "different"] {
        ours.call(&["SET", key, "5"]);
        theirs.call(&["SET", key, "7"]);
    }
    let mut told = |key: &str| {
        let seen = eventually(Duration::from_secs(10), || {
            let text = pair.proxy.real().get("/api/divergences").unwrap();
            text.contains(&format!("\"{key}\"")).then_some(())
        });
        assert!(seen.is_some(), "{key}: {:?}", pair.proxy.real().log());
    };
    // From here on the connection for questions stands.
    ok(&mut client, &["INCR", "first"]);
    told("first");
    ours.call(&["SET", "ended", "5", "PX", "100"]);
    ok(&mut client, &["INCR", "ended"]);
    // The question comes a twentieth of a second later.
    ours.call(&["DEBUG", "SLEEP", "0.7"]);
    ok(&mut client, &["INCR", "different"]);
    told("different");
}
