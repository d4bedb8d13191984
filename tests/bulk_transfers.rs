//! What is larger than any buffer crosses in constant memory and is one `oversize` drop at the mirror.
//!
//! A gibibyte of COPY in each direction and a Redis value of the largest size; `PARHELION_COPY_MIB=10240` for more.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::time::Instant;

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::servers::{PostgresOptions, PostgresServer, RedisOptions, RedisServer};
use serde_json::Value;
use support::faults::{Ledger, forget_peak, peak, resident, setting, start};
use support::pg::{PgClient, wire};
use support::resp::RespClient;

const MIB: usize = 1 << 20;

/// What the proxy may hold of something endless: its buffers on both sides, under TLS or not, and what an allocator keeps.
const HELD_MAX: u64 = 8 << 20;

/// Runs `transfer`, and returns by how much the proxy's memory was larger at any time of it.
fn growth(proxy: &ProxyProcess, what: &str, bytes: usize, transfer: impl FnOnce()) -> u64 {
    forget_peak(proxy.pid());
    let (before, began) = (resident(proxy.pid()), Instant::now());
    transfer();
    let grown = peak(proxy.pid()).saturating_sub(before);
    println!(
        "{what}: {} MiB in {:?}, the proxy's peak is {grown} bytes above",
        bytes / MIB,
        began.elapsed()
    );
    grown
}

fn oversize(proxy: &ProxyProcess) -> u64 {
    let answer: Value = serde_json::from_str(&proxy.get("/api/mirrors").unwrap()).unwrap();
    answer["mirrors"][0]["ledger"]["dropped"]["oversize"]
        .as_u64()
        .unwrap()
}

#[test]
fn a_gibibyte_of_copy_crosses_each_way_in_constant_memory_and_is_one_oversize_drop() {
    let rows = setting("PARHELION_COPY_MIB", 1024) as usize;
    let [primary, mirror] = [(); 2].map(|()| {
        let server = PostgresServer::start(PostgresOptions::default()).unwrap();
        // Rows arrive and are counted; nothing is stored, so that no disk is in the way.
        for sql in [
            "CREATE UNLOGGED TABLE sink (t text)",
            "CREATE SEQUENCE arrived",
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN PERFORM nextval(''arrived''); RETURN NULL; END'",
            "CREATE TRIGGER swallow BEFORE INSERT ON sink FOR EACH ROW EXECUTE FUNCTION swallow()",
        ] {
            server.sql("postgres", sql).unwrap();
        }
        server
    });
    let options = ProxyOptions::new("postgres", primary.address())
        .mirror(mirror.address())
        .general("pace = \"off\"");
    let proxy = start(&options);
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    let mut line = vec![b'x'; MIB - 1];
    line.push(b'\n');
    let message = wire::message(b'd', &line);
    // The buffers reach their working size.
    let copy_in = |client: &mut PgClient, rows: usize| {
        client.send(&wire::query("COPY sink FROM STDIN"));
        assert_eq!(client.message()[0], b'G');
        for _ in 0..rows {
            client.send(&message);
        }
        client.send(&wire::message(b'c', b""));
        let answer = client.until_ready();
        assert!(
            answer[0].starts_with(b"C"),
            "{}",
            support::pg::show(&answer)
        );
    };
    copy_in(&mut client, 32);
    let before = Ledger::settled(proxy.control());
    let known = oversize(&proxy);
    let grown_in = growth(&proxy, "COPY FROM STDIN", rows * MIB, || {
        copy_in(&mut client, rows);
    });
    let after = Ledger::settled(proxy.control());
    assert_eq!(after.offered, before.offered + 1);
    assert_eq!(oversize(&proxy), known + 1, "{after:?}");
    let arrived = primary
        .sql("postgres", "SELECT last_value FROM arrived")
        .unwrap();
    assert_eq!(arrived, (rows + 32).to_string());
    // Nothing of what was dropped reached the mirror.
    let mirrored = mirror
        .sql("postgres", "SELECT last_value FROM arrived")
        .unwrap();
    assert!(mirrored.parse::<usize>().unwrap() <= 32, "{mirrored} rows");

    let out = format!(
        "COPY (SELECT repeat('x', {}) FROM generate_series(1, {rows})) TO STDOUT",
        MIB - 1
    );
    let grown_out = growth(&proxy, "COPY TO STDOUT", rows * MIB, || {
        client.send(&wire::query(&out));
        assert_eq!(client.message()[0], b'H');
        for _ in 0..rows {
            let row = wire::read_message(&mut client.stream).unwrap();
            assert!(row[0] == b'd' && row.len() == MIB + 5 && row.ends_with(b"xx\n"));
        }
        client.until_ready();
    });
    for grown in [grown_in, grown_out] {
        assert!(grown <= HELD_MAX, "{grown} bytes");
    }
    Ledger::settled(proxy.control());
}

#[test]
fn the_largest_redis_value_crosses_each_way_in_constant_memory_and_is_one_oversize_drop() {
    let bytes = setting("PARHELION_VALUE_MIB", 512) as usize * MIB;
    let [primary, mirror] = [(); 2].map(|()| RedisServer::start(RedisOptions::default()).unwrap());
    let proxy = start(&ProxyOptions::new("redis", primary.address()).mirror(mirror.address()));
    let mut client = RespClient::connect(proxy.address());
    assert_eq!(client.call(&["SET", "small", "1"]), b"+OK\r\n");
    Ledger::settled(proxy.control());
    let piece = vec![b'v'; MIB];
    let grown_in = growth(&proxy, "SET", bytes, || {
        let head = format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${bytes}\r\n");
        client.send(head.as_bytes());
        for _ in 0..bytes / MIB {
            client.send(&piece);
        }
        client.send(b"\r\n");
        assert_eq!(client.reply().unwrap(), b"+OK\r\n");
    });
    let books = Ledger::settled(proxy.control());
    assert_eq!(oversize(&proxy), 1, "{books:?}");
    assert_eq!(mirror.command(&["EXISTS", "big"]).unwrap(), b":0\r\n");
    let mut get = |what: &str| {
        growth(&proxy, what, bytes, || {
            client.send(b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n");
            let mut left = format!("${bytes}\r\n").len() + bytes + 2;
            let (mut buffer, mut seen) = (vec![0; MIB], 0_usize);
            while left > 0 {
                let length = client.stream.read(&mut buffer).unwrap();
                assert!(length > 0, "closed with {left} bytes to come");
                let values = buffer[..length].iter().filter(|byte| **byte == b'v');
                seen += values.count();
                left = left.checked_sub(length).unwrap();
            }
            assert_eq!(seen, bytes);
        })
    };
    // The first large reply of a client crosses a lane, which waits for nobody: what this client is behind the server piles
    // up, within a bound of its own. From then on it has a connection for itself.
    let grown_first = get("GET over a lane");
    let grown_out = get("GET over an own connection");
    assert!(grown_first <= bytes as u64 / 4, "{grown_first} bytes");
    for grown in [grown_in, grown_out] {
        assert!(grown <= HELD_MAX, "{grown} bytes");
    }
    assert_eq!(client.call(&["GET", "small"]), b"$1\r\n1\r\n");
    Ledger::settled(proxy.control());
}
