//! Dual writes and shadow reads between two real servers, through the real binary.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parhelion::protocol::resp::ReplyFramer;
use parhelion::testing::servers::{RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use support::proxy::{Proxy, ProxyOptions};
use support::resp::{RespClient, clip};

/// Nothing in these tests takes longer to come to rest.
const PATIENCE: Duration = Duration::from_secs(60);

fn server() -> RedisServer {
    let extra = vec![("enable-debug-command".to_owned(), "yes".to_owned())];
    RedisServer::start(RedisOptions {
        extra,
        ..RedisOptions::default()
    })
    .unwrap()
}

struct Pair {
    primary: RedisServer,
    secondary: RedisServer,
    proxy: Proxy,
}

impl Pair {
    fn new(mode: &str) -> Pair {
        Pair::through(mode, |secondary| secondary)
    }

    /// `way` says where the proxy finds the secondary.
    fn through(mode: &str, way: impl FnOnce(SocketAddr) -> SocketAddr) -> Pair {
        let (primary, secondary) = (server(), server());
        let options = ProxyOptions::new("redis", primary.address()).args(&[
            "--secondary",
            &way(secondary.address()).to_string(),
            "--mode",
            mode,
        ]);
        let proxy = Proxy::start(&options);
        Pair {
            primary,
            secondary,
            proxy,
        }
    }

    fn client(&self) -> RespClient {
        RespClient::connect(self.proxy.address())
    }

    /// Waits until both servers hold the same data.
    fn same_data(&self) {
        let mut digests = (String::new(), String::new());
        let same = eventually(PATIENCE, || {
            digests = (
                digest(self.primary.address()),
                digest(self.secondary.address()),
            );
            (digests.0 == digests.1).then_some(())
        });
        if same.is_none() {
            panic!(
                "{digests:?}\n{}",
                difference(&self.primary, &self.secondary)
            );
        }
    }

    /// The sum of all samples of a metric whose line contains every word.
    fn metric(&mut self, name: &str, words: &[&str]) -> f64 {
        let text = self.proxy.real().get("/metrics").unwrap();
        assert!(text.contains(&format!("\n{name}{{")), "there is no {name}");
        text.lines()
            .filter(|line| {
                let end = line.find(['{', ' ']).unwrap_or(line.len());
                &line[..end] == name && words.iter().all(|word| line.contains(word))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

fn digest(address: SocketAddr) -> String {
    let mut client = RespClient::connect(address);
    String::from_utf8(client.call(&["DEBUG", "DIGEST"])).unwrap()
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

/// Divergences that were told, and those that turned out to be races.
fn divergences(pair: &mut Pair) -> (f64, f64) {
    // Mismatches of writes are told a moment later; and both numbers must come from one look.
    std::thread::sleep(Duration::from_millis(200));
    let text = pair.proxy.real().get("/metrics").unwrap();
    let sum = |transient: bool| -> f64 {
        text.lines()
            .filter(|line| line.starts_with("parhelion_mirror_divergences_total{"))
            .filter(|line| line.contains("\"transient\"") == transient)
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    (sum(false), sum(true))
}

/// A pop that waits is answered over a connection of its own: whether a copy of its list, a trim or a deletion over
/// another one came before it is not known, and a reply that differs proves nothing.
#[test]
fn replies_of_writes_that_race_each_other_are_no_divergences() {
    for _ in 0..4 {
        let mut pair = Pair::new("dual-write-shadow");
        mix(pair.proxy.address(), 200);
        pair.same_data();
        let (told, _) = divergences(&mut pair);
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
    let mut pair = Pair::new("dual-write-shadow");
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
    pair.same_data();
    let (told, transient) = divergences(&mut pair);
    assert_eq!(told, 0.0, "{:?}", pair.proxy.real().log());
    println!("{transient} races of 16000 writes");
}

#[test]
fn thirty_two_clients_on_the_same_ten_keys_leave_both_servers_identical() {
    let pair = Pair::new("dual-write-shadow");
    mix(pair.proxy.address(), 300);
    pair.same_data();
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
    let mut pair = Pair::new("dual-write");
    let address = pair.proxy.address();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..16 {
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
    pair.same_data();
    assert!(pair.metric("parhelion_repaired_keys_total", &[]) > 0.0);
}

#[test]
fn the_modes_are_walked_under_load_without_an_error_or_a_lost_write() {
    let mut pair = Pair::new("primary-only");
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
            set_mode(&mut pair, mode);
        }
        std::thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::Relaxed);
    });
    assert!(written.load(Ordering::Relaxed) > 1000);
    pair.same_data();
}

fn set_mode(pair: &mut Pair, mode: &str) {
    let control = pair.proxy.real().control();
    let name = source_name(pair);
    let url = format!("http://{control}/api/dual_write/{name}/mode");
    let answer = ureq::post(&url)
        .send_json(serde_json::json!({ "mode": mode }))
        .unwrap();
    assert!(answer.status().is_success());
}

fn source_name(pair: &mut Pair) -> String {
    let config: serde_json::Value =
        serde_json::from_str(&pair.proxy.real().get("/api/config").unwrap()).unwrap();
    config["dual_write"][0]["primary"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn reads_that_race_writers_report_nothing_when_the_secondary_is_right() {
    let mut pair = Pair::new("dual-write-shadow");
    let reads: usize =
        std::env::var("PARHELION_DUAL_READS").map_or(100_000, |text| text.parse().unwrap());
    let address = pair.proxy.address();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..16 {
            let done = &done;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut client = RespClient::connect(address);
                while !done.load(Ordering::Relaxed) {
                    let key = format!("k:{}", rng.u8(0..10));
                    client.call(&["SET", &key, &rng.u64(..).to_string()]);
                }
            });
        }
        let readers: Vec<_> = (0..4)
            .map(|seed| {
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(seed);
                    let mut client = RespClient::connect(address);
                    for _ in 0..reads / 4 / 50 {
                        let keys: Vec<_> =
                            (0..50).map(|_| format!("k:{}", rng.u8(0..10))).collect();
                        let pipeline: Vec<u8> = keys
                            .iter()
                            .flat_map(|key| support::resp::encode(&["GET", key]))
                            .collect();
                        client.send(&pipeline);
                        client.replies(50);
                    }
                })
            })
            .collect();
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    pair.same_data();
    let compared = pair.metric("parhelion_mirror_compared_total", &[]);
    let all = pair.metric("parhelion_mirror_divergences_total", &[]);
    let transient = pair.metric("parhelion_mirror_divergences_total", &["transient"]);
    assert_eq!(all - transient, 0.0);
    assert!(
        compared > reads as f64 / 2.0,
        "{compared} of {reads} compared"
    );
}

/// A way to a server on which every `every`th reply of a kind has its last byte changed.
fn falsifier(server: SocketAddr, kind: u8, every: u64, falsified: Arc<AtomicU64>) -> SocketAddr {
    use std::io::{Read, Write};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let seen = Arc::new(AtomicU64::new(0));
        for client in listener.incoming().flatten() {
            let (falsified, seen) = (falsified.clone(), seen.clone());
            let upstream = TcpStream::connect(server).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
            std::thread::spawn(move || {
                let (mut upstream, mut client) = (upstream, client);
                let mut framer = ReplyFramer::new(u64::MAX);
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = upstream.read(&mut buffer) {
                    let mut at = 0;
                    while at < length {
                        let advance = framer.advance(&buffer[at..length]).unwrap();
                        at += advance.consumed;
                        // Values of these tests are short and numeric, INFO is neither.
                        let value = framer.kind() == Some(kind) && advance.consumed < 40;
                        if advance.done
                            && value
                            && (seen.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(every)
                        {
                            buffer[at - 3] ^= 1;
                            falsified.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    if client.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Reads every key once, in pipelines.
fn read_all(client: &mut RespClient, keys: usize) {
    for first in (0..keys).step_by(50) {
        let pipeline: Vec<u8> = (first..first + 50)
            .flat_map(|number| support::resp::encode(&["GET", &format!("k:{number}")]))
            .collect();
        client.send(&pipeline);
        client.replies(50);
    }
}

fn fill(client: &mut RespClient, keys: usize) {
    for first in (0..keys).step_by(50) {
        let pipeline: Vec<u8> = (first..first + 50)
            .flat_map(|number| {
                support::resp::encode(&["SET", &format!("k:{number}"), &format!("value:{number}")])
            })
            .collect();
        client.send(&pipeline);
        client.replies(50);
    }
}

#[test]
fn every_reply_that_the_secondary_falsifies_is_noticed() {
    let falsified = Arc::new(AtomicU64::new(0));
    let counter = falsified.clone();
    let mut pair = Pair::through("dual-write-shadow", |secondary| {
        falsifier(secondary, b'$', 10_000, counter)
    });
    let mut client = pair.client();
    fill(&mut client, 1000);
    for _ in 0..100 {
        read_all(&mut client, 1000);
    }
    let settled = eventually(PATIENCE, || {
        let found = pair.metric("parhelion_mirror_divergences_total", &[]);
        (found > 0.0 && found == falsified.load(Ordering::Relaxed) as f64).then_some(())
    });
    let found = pair.metric("parhelion_mirror_divergences_total", &[]);
    assert!(
        settled.is_some(),
        "{found} of {} found",
        falsified.load(Ordering::Relaxed)
    );
}

#[test]
fn every_reply_to_a_write_that_the_secondary_falsifies_is_noticed() {
    let falsified = Arc::new(AtomicU64::new(0));
    let counter = falsified.clone();
    let mut pair = Pair::through("dual-write", |secondary| {
        falsifier(secondary, b':', 1000, counter)
    });
    let address = pair.proxy.address();
    std::thread::scope(|scope| {
        for seed in 0..8 {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut client = RespClient::connect(address);
                for round in 0..50 {
                    // Every fourth key has an end, far away: it explains nothing.
                    let pipeline: Vec<u8> = (0..50)
                        .flat_map(|_| {
                            let key = format!("n:{}", rng.u8(0..20));
                            support::resp::encode(&["INCR", &key])
                        })
                        .collect();
                    client.send(&pipeline);
                    client.replies(50);
                    if round % 4 == 0 {
                        client.call(&["PEXPIRE", &format!("n:{}", rng.u8(0..20)), "600000"]);
                    }
                }
            });
        }
    });
    let settled = eventually(PATIENCE, || {
        let (told, transient) = divergences(&mut pair);
        let all = falsified.load(Ordering::Relaxed) as f64;
        (told > 0.0 && (told, transient) == (all, 0.0)).then_some(())
    });
    assert!(
        settled.is_some(),
        "{:?} of {} found",
        divergences(&mut pair),
        falsified.load(Ordering::Relaxed)
    );
}

#[test]
fn a_value_that_stays_wrong_is_reported_as_what_it_is() {
    let mut pair = Pair::new("dual-write-shadow");
    let mut client = pair.client();
    fill(&mut client, 100);
    pair.same_data();
    let mut behind = RespClient::connect(pair.secondary.address());
    behind.call(&["SET", "k:1", "wrong"]);
    behind.call(&["DEL", "k:2"]);
    behind.call(&["SET", "k:500", "extra"]);
    read_all(&mut client, 100);
    client.call(&["GET", "k:500"]);
    for kind in ["data_mismatch", "migration_gap", "extra_data"] {
        let label = format!("\"{kind}\"");
        let found = eventually(PATIENCE, || {
            (pair.metric("parhelion_mirror_divergences_total", &[&label]) == 1.0).then_some(())
        });
        assert!(found.is_some(), "{kind}");
    }
}

#[test]
fn a_dead_secondary_neither_delays_nor_fails_a_client_and_gets_everything_when_it_returns() {
    let mut pair = Pair::new("dual-write-shadow");
    let mut client = pair.client();
    fill(&mut client, 100);
    pair.same_data();
    pair.secondary.kill9().unwrap();
    fill(&mut client, 1000);
    read_all(&mut client, 1000);
    assert_eq!(client.call(&["DEL", "k:7"]), b":1\r\n");
    pair.secondary.restart().unwrap();
    pair.same_data();
}

#[test]
fn a_script_that_the_secondary_has_never_seen_is_told_to_it() {
    let pair = Pair::new("dual-write");
    let mut client = pair.client();
    let mut other = pair.client();
    let script = "return redis.call('INCR', KEYS[1])";
    let reply = other.call(&["SCRIPT", "LOAD", script]);
    let sha = String::from_utf8(reply[5..45].to_vec()).unwrap();
    assert_eq!(client.call(&["EVALSHA", &sha, "1", "n"]), b":1\r\n");
    pair.same_data();
    RespClient::connect(pair.secondary.address()).call(&["SCRIPT", "FLUSH"]);
    assert_eq!(client.call(&["EVALSHA", &sha, "1", "n"]), b":2\r\n");
    pair.same_data();
}

#[test]
fn a_transaction_that_was_not_executed_is_not_replayed() {
    let pair = Pair::new("dual-write");
    let (mut client, mut other) = (pair.client(), pair.client());
    client.call(&["SET", "a", "1"]);
    client.call(&["WATCH", "a"]);
    client.call(&["MULTI"]);
    client.call(&["SET", "b", "1"]);
    other.call(&["SET", "a", "2"]);
    assert_eq!(client.call(&["EXEC"]), b"*-1\r\n");
    client.call(&["MULTI"]);
    client.call(&["SET", "c", "1"]);
    client.call(&["DISCARD"]);
    client.call(&["MULTI"]);
    client.call(&["SADD", "s", "x", "y", "z"]);
    client.call(&["SPOP", "s", "2"]);
    client.call(&["SELECT", "3"]);
    client.call(&["SET", "d", "1"]);
    client.call(&["EXEC"]);
    client.call(&["SET", "e", "1"]);
    pair.same_data();
    let mut behind = RespClient::connect(pair.secondary.address());
    assert_eq!(behind.call(&["EXISTS", "b", "c"]), b":0\r\n");
    behind.call(&["SELECT", "3"]);
    assert_eq!(behind.call(&["EXISTS", "d", "e"]), b":2\r\n");
}

#[test]
fn messages_are_matched_between_both_subscriptions_sharded_ones_too() {
    let mut pair = Pair::new("dual-write-shadow");
    let mut subscriber = pair.client();
    subscriber.call(&["SUBSCRIBE", "news"]);
    subscriber.call(&["SSUBSCRIBE", "shard"]);
    subscriber.call(&["PSUBSCRIBE", "p*"]);
    let mut behind = RespClient::connect(pair.secondary.address());
    let shadowed = eventually(PATIENCE, || {
        (behind.call(&["PUBSUB", "NUMPAT"]) == b":1\r\n").then_some(())
    });
    assert!(shadowed.is_some(), "no shadow subscription");
    // Behind the window in which the two subscriptions may differ for good reason.
    std::thread::sleep(Duration::from_millis(2500));
    let mut client = pair.client();
    for number in 0..20 {
        let text = number.to_string();
        client.call(&["PUBLISH", "news", &text]);
        client.call(&["SPUBLISH", "shard", &text]);
        client.call(&["PUBLISH", "pat", &text]);
    }
    subscriber.replies(60);
    RespClient::connect(pair.primary.address()).call(&["PUBLISH", "news", "lost"]);
    behind.call(&["PUBLISH", "pat", "invented"]);
    let kinds = ["\"data_mismatch\"", "\"extra_data\""];
    let found = eventually(PATIENCE, || {
        let counts = kinds.map(|kind| pair.metric("parhelion_mirror_divergences_total", &[kind]));
        (counts == [1.0, 1.0]).then_some(())
    });
    assert!(
        found.is_some(),
        "{}",
        pair.proxy.real().get("/api/divergences").unwrap()
    );
}

#[test]
fn the_databases_named_on_the_command_line_are_where_clients_begin() {
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
    let proxy = Proxy::start(&options);
    let mut client = RespClient::connect(proxy.address());
    // Over a shared lane, over a connection of its own, and after a SELECT.
    assert_eq!(client.call(&["SET", "lane", "1"]), b"+OK\r\n");
    assert_eq!(client.call(&["WATCH", "lane"]), b"+OK\r\n");
    assert_eq!(client.call(&["SET", "own", "1"]), b"+OK\r\n");
    assert_eq!(client.call(&["UNWATCH"]), b"+OK\r\n");
    assert_eq!(client.call(&["SELECT", "7"]), b"+OK\r\n");
    assert_eq!(client.call(&["SET", "seven", "1"]), b"+OK\r\n");
    let keyspace = |server: &RedisServer| {
        let text = RespClient::connect(server.address()).call(&["INFO", "keyspace"]);
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines = text.lines().filter(|line| line.starts_with("db"));
        lines
            .map(|line| line.split(",expires").next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(keyspace(&primary), ["db3:keys=2", "db7:keys=1"]);
    let followed = eventually(PATIENCE, || {
        (keyspace(&secondary) == ["db5:keys=2", "db7:keys=1"]).then_some(())
    });
    assert!(followed.is_some(), "{:?}", keyspace(&secondary));
}

#[test]
fn the_share_of_shadow_reads_is_set_at_run_time_and_a_pause_is_refused() {
    let mut pair = Pair::new("dual-write-shadow");
    let control = pair.proxy.real().control();
    let post = |path: &str, body: serde_json::Value| {
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
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
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
    pair.same_data();
}
