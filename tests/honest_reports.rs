//! A mirror that lies now and then is found out each time, and one that does not is never accused. The dual-write half of
//! this, with writers that race for the same keys, is in `redis_dual_truth`.
//!
//! 50,000 commands by default, `PARHELION_HONEST_COMMANDS=1000000` for more.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use parhelion::demo::resp_server::{RespOptions, RespServer};
use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::servers::{RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use serde_json::Value;
use support::faults::{Ledger, PATIENCE, setting, start};
use support::resp::{RespClient, encode};

const CLIENTS: usize = 16;
const KEYS: usize = 1_000;
/// Commands of one pipeline: less than a ring holds.
const DEPTH: usize = 50;

fn mirror(proxy: &ProxyProcess) -> Value {
    let mut answer: Value = serde_json::from_str(&proxy.get("/api/mirrors").unwrap()).unwrap();
    answer["mirrors"][0].take()
}

fn fill(address: std::net::SocketAddr) {
    let mut client = RespClient::connect(address);
    for number in 0..KEYS {
        let (key, value) = (format!("k:{number}"), format!("value of {number}"));
        assert_eq!(client.call(&["SET", &key, &value]), b"+OK\r\n");
    }
}

/// Reads of keys that stand still, 16 clients at once; returns what was compared and what was reported.
fn read(proxy: &ProxyProcess, commands: usize, falsified: impl Fn() -> u64) -> (u64, u64) {
    std::thread::scope(|scope| {
        for seed in 0..CLIENTS {
            let (address, control) = (proxy.address(), proxy.control());
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed as u64);
                let mut client = RespClient::connect(address);
                for number in 0..commands / CLIENTS / DEPTH {
                    if number % 10 == 9 {
                        // The mirror keeps up: what is dropped is not compared.
                        let calm = eventually(PATIENCE, || {
                            (Ledger::of(control).in_flight < 1_000).then_some(())
                        });
                        assert!(calm.is_some(), "the mirror stands still");
                    }
                    let get = |_| encode(&["GET", &format!("k:{}", rng.usize(0..KEYS))]);
                    client.send(&(0..DEPTH).flat_map(get).collect::<Vec<u8>>());
                    client.replies(DEPTH);
                }
            });
        }
    });
    let books = Ledger::settled(proxy.control());
    assert_eq!(
        books.delivered, books.offered,
        "a reply that is lost is not compared: {books:?}"
    );
    // The report of the last reply may be a moment behind its books.
    let _ = eventually(PATIENCE, || {
        let reported = mirror(proxy)["divergences_total"].as_u64()?;
        (reported >= falsified()).then_some(())
    });
    let shown = mirror(proxy);
    let number = |key: &str| {
        shown[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} in {shown}"))
    };
    (number("compared"), number("divergences_total"))
}

#[test]
fn one_wrong_reply_in_ten_thousand_is_found_each_time() {
    let commands = setting("PARHELION_HONEST_COMMANDS", 50_000) as usize;
    let primary = RedisServer::start(RedisOptions::default()).unwrap();
    let liar = RespServer::start(RespOptions {
        // In the short run a few more, so that there is something to find.
        wrong_every: if commands < 1_000_000 { 1_000 } else { 10_000 },
        seed: 23,
        ..RespOptions::default()
    })
    .unwrap();
    fill(primary.address());
    fill(liar.address());
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(liar.address())
        .general("mirror_queue = 10000");
    let proxy = start(&options);
    let (compared, found) = read(&proxy, commands, || liar.falsified());
    println!(
        "{commands} commands, {compared} compared, {} falsified, {found} found",
        liar.falsified()
    );
    assert!(liar.falsified() > 10, "{}", liar.falsified());
    assert_eq!(found, liar.falsified());
}

#[test]
fn a_mirror_that_answers_rightly_is_never_accused() {
    let commands = setting("PARHELION_HONEST_COMMANDS", 50_000) as usize;
    let [primary, twin] = [(); 2].map(|()| RedisServer::start(RedisOptions::default()).unwrap());
    fill(primary.address());
    fill(twin.address());
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(twin.address())
        .general("mirror_queue = 10000");
    let proxy = start(&options);
    let (compared, found) = read(&proxy, commands, || 0);
    println!("{commands} commands, {compared} compared, {found} reported");
    assert!(compared as usize >= commands * 99 / 100, "{compared}");
    assert_eq!(found, 0);
}
