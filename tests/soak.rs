//! A run with reconnects and faults that ends with a verdict: memory is flat, the books are exact. 20 seconds by
//! default, `PARHELION_SOAK_SECONDS` for more.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use parhelion::testing::proxy::ProxyOptions;
use parhelion::testing::relay::Relay;
use parhelion::testing::servers::{RedisOptions, RedisServer};
use support::faults::{Ledger, Load, open_fds, resident, setting, start};

/// What the allocator may keep of a peak; a leak of a byte per transaction is more within a minute.
const GROWTH_MAX: u64 = 8 << 20;

fn counter(server: &RedisServer, key: &str) -> u64 {
    let reply = String::from_utf8(server.command(&["GET", key]).unwrap()).unwrap();
    reply.lines().nth(1).map_or(0, |text| text.parse().unwrap())
}

#[test]
fn a_run_with_reconnects_and_faults_ends_with_flat_memory_and_exact_books() {
    let seconds = setting("PARHELION_SOAK_SECONDS", 20);
    let seed = setting("PARHELION_SOAK_SEED", 1);
    let mut rng = fastrand::Rng::with_seed(seed);
    let primary = RedisServer::start(RedisOptions::default()).unwrap();
    let mirror = RedisServer::start(RedisOptions::default()).unwrap();
    let relay = Relay::start(mirror.address()).unwrap();
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(relay.address())
        .general("mirror_memory = \"8MiB\"")
        .general("mirror_timeout = \"2s\"");
    let proxy = start(&options);
    let fds = open_fds(proxy.pid());
    let (began, time) = (Instant::now(), Duration::from_secs(seconds));
    let (mut transactions, mut rounds, mut faults) = (0, 0_u64, 0_u64);
    let mut memory: Vec<u64> = Vec::new();
    while began.elapsed() < time {
        // Each round comes with new clients.
        let load = Load::start(proxy.address(), 4, rng.usize(10..3_000));
        let round = Instant::now();
        while round.elapsed() < Duration::from_secs(2) {
            match rng.u8(0..4) {
                0 => relay.drop_connections(),
                1 => relay.cut_requests_after(rng.u64(100..20_000)),
                2 => {
                    relay.stall();
                    std::thread::sleep(Duration::from_millis(rng.u64(10..400)));
                    relay.resume();
                }
                _ => {
                    mirror.pause().unwrap();
                    std::thread::sleep(Duration::from_millis(rng.u64(10..400)));
                    mirror.resume().unwrap();
                }
            }
            faults += 1;
            std::thread::sleep(Duration::from_millis(rng.u64(50..300)));
            relay.heal();
            Ledger::of(proxy.control());
        }
        let (done, ends) = load.finish();
        assert!(ends.iter().all(Result::is_ok), "{ends:?}");
        transactions += done;
        rounds += 1;
        memory.push(resident(proxy.pid()));
    }
    relay.heal();
    let books = Ledger::settled(proxy.control());
    assert_eq!(books.offered, transactions, "{books:?}");
    let mut seen = 0;
    for client in 0..4 {
        let a = counter(&mirror, &format!("a:{client}"));
        assert_eq!(a, counter(&mirror, &format!("b:{client}")), "half a unit");
        let applied = counter(&primary, &format!("a:{client}"));
        assert!(a <= applied, "{a} on the mirror, {applied} on the primary");
        seen += a;
    }
    let exact = (books.delivered..=books.delivered + books.errored).contains(&seen);
    let third = memory.len().div_ceil(3);
    let early = memory[..third].iter().max().copied().unwrap_or(0);
    let late = memory[memory.len() - third..]
        .iter()
        .max()
        .copied()
        .unwrap_or(0);
    let grown = late.saturating_sub(early);
    println!(
        "soak: {seconds} s, seed {seed}, {rounds} rounds of clients, {faults} faults, {transactions} transactions, mirror \
         holds {seen} of {books:?}; memory {early} then {late} bytes"
    );
    assert!(exact, "the mirror holds {seen} units: {books:?}");
    assert!(grown <= GROWTH_MAX, "grew by {grown} bytes: {memory:?}");
    let back = parhelion::testing::wait::eventually(Duration::from_secs(30), || {
        (open_fds(proxy.pid()) <= fds + 2).then_some(())
    });
    assert!(
        back.is_some(),
        "{} descriptors, {fds} before",
        open_fds(proxy.pid())
    );
}
