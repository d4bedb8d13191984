//! A primary dies under its clients; deep pipelines and cancels reach it as they would directly.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parhelion::protocol::resp::RequestFramer;
use parhelion::testing::proxy::ProxyOptions;
use parhelion::testing::wait::eventually;
use support::faults::{Ledger, PATIENCE, postgres, setting, start};
use support::pg::{PgClient, wire};
use support::resp::{RespClient, encode};

/// A Redis that counts each `INCR` it receives, answers the first with the beginning of a reply and a reset, and everything else
/// like a Redis.
fn dies_once() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::<AtomicU64>::default();
    let count = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let count = count.clone();
            std::thread::spawn(move || answer_until_incr(stream, &count));
        }
    });
    (address, seen)
}

fn answer_until_incr(mut stream: TcpStream, count: &AtomicU64) {
    let (mut framer, mut piece, mut request) = (RequestFramer::new(), [0; 4096], Vec::new());
    framer.set_authenticated(true);
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        let mut rest = &piece[..length];
        while !rest.is_empty() {
            let advance = framer.advance(rest).unwrap();
            request.extend_from_slice(&rest[..advance.consumed]);
            rest = &rest[advance.consumed..];
            if !advance.done {
                continue;
            }
            let whole = std::mem::take(&mut request);
            if whole == encode(&["INCR", "n"]) && count.fetch_add(1, Ordering::SeqCst) == 0 {
                let _ = stream.write_all(b":123");
                // The beginning arrives before the reset, which would overtake it.
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                std::thread::sleep(Duration::from_millis(200));
                return;
            }
            let known: &[u8] = if whole == encode(&["PING"]) {
                b"+PONG\r\n"
            } else {
                b":1\r\n"
            };
            let _ = stream.write_all(known);
        }
    }
}

#[test]
fn a_redis_primary_that_dies_in_a_reply_is_seen_to_die_and_asked_nothing_twice() {
    let (primary, asked) = dies_once();
    let proxy = start(&ProxyOptions::new("redis", primary));
    let mut client = RespClient::connect(proxy.address());
    let began = Instant::now();
    client.send(&encode(&["INCR", "n"]));
    assert_eq!(client.rest().unwrap(), b":123");
    // It held on for a fifth of a second; the close follows within one.
    assert!(
        began.elapsed() < Duration::from_millis(1_200),
        "{:?}",
        began.elapsed()
    );
    // It is there again: what it was asked before it died would find its way now.
    let served = eventually(PATIENCE, || {
        let mut next = RespClient::connect(proxy.address());
        next.send(&encode(&["GET", "n"]));
        (next.reply().ok()? == b":1\r\n").then_some(())
    });
    assert!(served.is_some(), "never served again");
    assert_eq!(asked.load(Ordering::SeqCst), 1, "asked again");
}

#[test]
fn a_postgres_primary_killed_in_a_result_leaves_a_prefix_and_a_close_within_a_second() {
    let mut primary = postgres();
    let proxy = start(&ProxyOptions::new("postgres", primary.address()));
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    client.send(&wire::query(
        "SELECT lpad(n::text, 1000, '0') FROM generate_series(1, 10000000) n",
    ));
    let mut number = 0_u64;
    let (mut killed, mut last): (bool, Instant) = (false, Instant::now());
    loop {
        match wire::read_message(&mut client.stream) {
            Ok(message) if message[0] == b'D' => {
                number += 1;
                let text = std::str::from_utf8(&message[11..]).unwrap();
                assert_eq!(text.parse::<u64>().unwrap(), number, "not the same prefix");
            }
            // No CommandComplete, no ReadyForQuery.
            Ok(message) => assert!(matches!(message[0], b'T' | b'E'), "{}", message[0]),
            Err(_) => break,
        }
        if number == 5_000 && !killed {
            primary.kill9().unwrap();
            killed = true;
        }
        last = Instant::now();
    }
    let silence = last.elapsed();
    println!("{number} rows, closed {silence:?} after the last byte");
    assert!(killed && number < 10_000_000);
    // What was on its way is read first, however long this takes here; behind it nothing is waited for.
    assert!(silence < Duration::from_secs(1), "{silence:?}");
}

#[test]
fn ten_thousand_queries_in_one_pipeline_are_answered_in_order_between_notifications() {
    let (primary, mirror) = (postgres(), postgres());
    let options = ProxyOptions::new("postgres", primary.address())
        .mirror(mirror.address())
        .general("pace = \"off\"")
        .general("mirror_queue = 20000");
    let proxy = start(&options);
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    client.query("LISTEN news");
    let queries = 10_000_u32;
    let pipeline: Vec<u8> = (0..queries)
        .flat_map(|number| wire::query(&format!("SELECT {number}")))
        .collect();
    let (mut other, _) = PgClient::connect(proxy.address(), "postgres");
    let sending = client.send_aside(pipeline);
    let (mut number, mut notes, mut sent) = (0, 0, 0);
    while number < queries {
        let message = wire::read_message(&mut client.stream).unwrap();
        match message[0] {
            b'D' => assert_eq!(message[11..], *number.to_string().as_bytes()),
            b'Z' => {
                number += 1;
                if number % 500 == 0 {
                    other.query("NOTIFY news, 'extra'");
                    sent += 1;
                }
            }
            b'A' => notes += 1,
            other => assert!(b"TC".contains(&other), "{other}"),
        }
    }
    sending.join().unwrap();
    // What was still on its way comes with the next answer.
    notes += client
        .query("SELECT 1")
        .iter()
        .filter(|message| message[0] == b'A')
        .count();
    assert_eq!(notes, sent);
    let books = Ledger::settled(proxy.control());
    println!("{number} queries, {notes} notifications between them, {books:?}");
    assert_eq!(books.errored, 0, "{books:?}");
    let shown: serde_json::Value =
        serde_json::from_str(&proxy.get("/api/mirrors").unwrap()).unwrap();
    assert_eq!(shown["mirrors"][0]["divergences_total"], 0, "{shown}");
}

#[test]
fn a_thousand_cancels_hit_their_own_query_and_no_other() {
    let rounds = setting("PARHELION_CANCELS", 1_000) / 4;
    let primary = postgres();
    let proxy = start(&ProxyOptions::new("postgres", primary.address()));
    let address = proxy.address();
    let stop = Arc::new(AtomicBool::new(false));
    let bystanders: Vec<_> = (0..2)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let (mut client, _) = PgClient::connect(address, "postgres");
                let mut queries = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.query("SELECT pg_sleep(0.002)");
                    assert!(
                        answer.iter().all(|message| message[0] != b'E'),
                        "cancelled by another's key"
                    );
                    queries += 1;
                }
                queries
            })
        })
        .collect();
    let victims: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let (mut client, _) = PgClient::connect(address, "postgres");
                for _ in 0..rounds {
                    client.send(&wire::query("SELECT pg_sleep(30)"));
                    // A cancel that comes before the query has begun is lost, as on a direct connection.
                    let mut answer = None;
                    while answer.is_none() {
                        let mut cancel = PgClient::open(address);
                        cancel.send(&wire::cancel(client.pid, &client.key));
                        let _ = cancel.stream.read_to_end(&mut Vec::new());
                        client
                            .stream
                            .set_read_timeout(Some(Duration::from_millis(200)))
                            .unwrap();
                        let mut first = [0];
                        answer = client.stream.peek(&mut first).ok();
                        client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    }
                    let answer = client.until_ready();
                    let text = support::pg::show(&answer);
                    assert!(text.contains("57014"), "{text}");
                }
            })
        })
        .collect();
    let results: Vec<_> = victims
        .into_iter()
        .map(std::thread::JoinHandle::join)
        .collect();
    stop.store(true, Ordering::Relaxed);
    let undisturbed: u64 = bystanders
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert!(results.iter().all(Result::is_ok));
    assert!(undisturbed > rounds, "only {undisturbed} queries beside");
    println!(
        "{} cancels beside {undisturbed} queries of others",
        rounds * 4
    );
}
