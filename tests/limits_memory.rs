//! How much memory clients cost: idle ones, deaf ones, slow ones.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use parhelion::demo::resp_server::{RespOptions, RespServer};
use parhelion::limits::REDIS_SPILL_BYTES_MAX;
use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::servers::{PostgresOptions, PostgresServer};
use parhelion::testing::wait::eventually;
use support::faults::{
    Latencies, PATIENCE, forget_peak, peak, postgres, redis, resident, setting, start, status,
};
use support::idle::assert_idle_clients_cost_little;
use support::pg::{PgClient, wire};
use support::resp::{RespClient, encode};

#[test]
fn idle_clients_cost_little_and_give_everything_back() {
    let wanted = setting("PARHELION_IDLE_CLIENTS", 2_000) as usize;
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let server = RespServer::start(RespOptions::default()).unwrap();
    let proxy = start(&ProxyOptions::new("redis", server.address()));
    assert_idle_clients_cost_little(&proxy, "Redis", wanted, || {
        let mut client = RespClient::connect(proxy.address());
        assert_eq!(client.call(&["PING"]), b"+PONG\r\n");
        client
    });
}

#[test]
fn idle_postgres_clients_cost_little_and_give_everything_back() {
    let wanted = setting("PARHELION_IDLE_PG_CLIENTS", 150) as usize;
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let server = PostgresServer::start(PostgresOptions {
        settings: vec![("max_connections".to_owned(), (wanted + 60).to_string())],
        ..PostgresOptions::default()
    })
    .unwrap();
    let proxy = start(&ProxyOptions::new("postgres", server.address()));
    assert_idle_clients_cost_little(&proxy, "Postgres", wanted, || {
        PgClient::connect(proxy.address(), "postgres").0
    });
}

#[test]
fn a_client_that_never_reads_a_gibibyte_costs_less_than_a_mebibyte() {
    let server = postgres();
    let proxy = start(&ProxyOptions::new("postgres", server.address()));
    let rows = |count: u32| {
        wire::query(&format!(
            "SELECT repeat('x', 1048576) FROM generate_series(1, {count})"
        ))
    };
    let (mut warm, _) = PgClient::connect(proxy.address(), "postgres");
    warm.send(&rows(32));
    warm.until_ready();
    let (mut other, _) = PgClient::connect(proxy.address(), "postgres");
    let calls = setting("PARHELION_CALLS", 2_000) as usize;
    let alone = Latencies::of(calls, || drop(other.query("SELECT 42")));
    let memory = resident(proxy.pid());
    let (mut deaf, _) = PgClient::connect(proxy.address(), "postgres");
    deaf.send(&rows(1024));
    // What has passed stands still once every buffer on the way is full.
    let passed = || {
        status(proxy.control())["totals"]["client_bytes_out"]
            .as_u64()
            .unwrap()
    };
    let mut last = (passed(), Instant::now());
    let still = eventually(PATIENCE, || {
        let now = passed();
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 1 << 20 && last.1.elapsed() > Duration::from_secs(1)).then_some(now)
    });
    let held = resident(proxy.pid()).saturating_sub(memory);
    println!("passed {still:?} bytes, proxy grew by {held} bytes");
    assert!(still.expect("reading from the primary pauses") < 64 << 20);
    assert!(held <= 1 << 20, "{held} bytes for one deaf client");
    let beside = Latencies::of(calls, || {
        let answer = other.query("SELECT 42");
        assert!(answer.iter().any(|message| message.ends_with(b"42")));
    });
    println!("{}", beside.against("beside a deaf client", &alone));
    assert!(
        !beside.is_worse_than(&alone),
        "{}",
        beside.against("p99", &alone)
    );
}

#[test]
fn a_client_that_sends_a_byte_at_a_time_is_served_and_holds_up_nobody() {
    let server = redis();
    let proxy = start(&ProxyOptions::new("redis", server.address()));
    let mut slow = RespClient::connect(proxy.address());
    let mut other = RespClient::connect(proxy.address());
    for byte in encode(&["SET", "slow", "but whole"]) {
        slow.send(&[byte]);
        let began = Instant::now();
        assert_eq!(other.call(&["PING"]), b"+PONG\r\n");
        assert!(began.elapsed() < Duration::from_secs(2));
    }
    assert_eq!(slow.reply().unwrap(), b"+OK\r\n");
    assert_eq!(slow.call(&["GET", "slow"]), b"$9\r\nbut whole\r\n");
}

#[test]
fn the_sum_holds_with_many_slow_readers_and_hardly_any_slabs() {
    let server = redis();
    let options = ProxyOptions::new("redis", server.address())
        .ring("slabs = 16")
        .ring("slab_size = \"4KiB\"");
    let proxy = start(&options);
    let value = vec![b'v'; 1 << 20];
    let mut setter = RespClient::connect(proxy.address());
    assert_eq!(
        setter.call(&[b"SET".as_slice(), b"big", &value]),
        b"+OK\r\n"
    );
    let memory = resident(proxy.pid());
    let readers = 64;
    let mut slow: Vec<RespClient> = (0..readers)
        .map(|_| {
            let mut client = RespClient::connect(proxy.address());
            client.send(&encode(&["GET", "big"]).repeat(16));
            client
        })
        .collect();
    // Nobody reads, and still others are served: slabs that are all held would stop everyone.
    for _ in 0..200 {
        assert_eq!(setter.call(&["GET", "small"]), b"$-1\r\n");
    }
    let held = resident(proxy.pid()).saturating_sub(memory);
    println!("{readers} slow readers: {} KiB each", held / readers / 1024);
    assert!(held <= readers * (1 << 20), "{held} bytes");
    let expected = [b"$1048576\r\n".as_slice(), &value, b"\r\n"].concat();
    for client in &mut slow {
        for _ in 0..16 {
            assert!(client.reply().unwrap() == expected);
        }
    }
    let misses = &status(proxy.control())["cores"][0]["ring"]["buffer_misses"];
    println!("receives that found no slab: {misses}");
    assert!(
        misses.as_u64().unwrap() > 0,
        "the scarce path was not taken"
    );
}

/// Bytes that the proxy has read from its clients.
fn received(proxy: &ProxyProcess) -> u64 {
    let metrics = proxy.get("/metrics").unwrap();
    let of = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("parhelion_client_received_bytes_total"));
    lines.filter_map(of).sum::<f64>() as u64
}

/// Replies that come over a shared connection wait for nobody: those that clients do not read pile up, up to a bound for all
/// of them together.
#[test]
fn replies_that_pile_up_stay_below_their_bound_and_cost_the_one_who_exceeds_it() {
    let server = redis();
    let proxy = start(&ProxyOptions::new("redis", server.address()));
    let mut other = RespClient::connect(proxy.address());
    let length = 300 << 20;
    let made = server
        .command(&["SETRANGE", "huge", &(length - 1).to_string(), "x"])
        .unwrap();
    assert_eq!(made, format!(":{length}\r\n").as_bytes());
    assert_eq!(other.call(&["PING"]), b"+PONG\r\n");
    let mut deaf: Vec<RespClient> = (0..5)
        .map(|_| {
            let mut client = RespClient::connect(proxy.address());
            assert_eq!(client.call(&["PING"]), b"+PONG\r\n");
            client
        })
        .collect();
    let memory = resident(proxy.pid());
    forget_peak(proxy.pid());
    // All of them share lanes, and each but the last keeps somebody waiting: their replies have to move on.
    server.pause().unwrap();
    for client in &mut deaf {
        client.send(&encode(&["GET", "huge"]));
    }
    other.send(&encode(&["PING"]));
    // Five GETs and a PING are on their way: the metric is the proxy's own count of what clients sent.
    let sent = 5 * encode(&["GET", "huge"]).len() + 7 * encode(&["PING"]).len();
    let came = eventually(PATIENCE, || (received(&proxy) >= sent as u64).then_some(()));
    assert!(came.is_some(), "{} of {sent} bytes", received(&proxy));
    server.resume().unwrap();
    assert_eq!(other.reply().unwrap(), b"+PONG\r\n");
    let closed = || {
        let log = proxy.log();
        let deaf = log.iter().filter(|line| line.contains("does not read"));
        deaf.count()
    };
    assert!(eventually(PATIENCE, || (closed() > 0).then_some(())).is_some());
    let most = peak(proxy.pid()).saturating_sub(memory) as usize;
    println!("replies that nobody reads: at most {most} bytes");
    // A sixteenth for the allocator and for what is on its way.
    assert!(most < REDIS_SPILL_BYTES_MAX / 16 * 17, "{most} bytes");
    // The others lose nothing.
    let head = format!("${length}\r\n");
    let replies: Vec<_> = deaf.iter_mut().map(RespClient::reply).collect();
    let whole =
        |reply: &[u8]| reply.len() == head.len() + length + 2 && reply.starts_with(head.as_bytes());
    let served = replies.iter().flatten().filter(|reply| whole(reply));
    // Where two lanes have one each that goes beyond the bound, both are closed.
    let closed = closed();
    assert_eq!(served.count(), 5 - closed, "{closed} are closed");
    assert!(closed <= 2, "{closed}");
    drop((deaf, replies));
    // The allocator may keep what it got, for the next ones: it is not lost.
    let again: Vec<RespClient> = (0..3)
        .map(|_| {
            let mut client = RespClient::connect(proxy.address());
            client.send(&encode(&["GET", "huge"]));
            client
        })
        .collect();
    for mut client in again {
        assert_eq!(client.reply().unwrap().len(), head.len() + length + 2);
    }
    let most = peak(proxy.pid()).saturating_sub(memory) as usize;
    assert!(most < REDIS_SPILL_BYTES_MAX / 16 * 17, "{most} bytes");
}
