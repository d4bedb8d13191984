//! What is reported of a dual write is true: nothing where the secondary is right, everything where it is wrong.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parhelion::protocol::resp::ReplyFramer;
use parhelion::testing::wait::eventually;
use support::dual::{PATIENCE, Pair, fill, read_all};
use support::resp::{RespClient, encode};

/// Reads of one test: `PARHELION_DUAL_READS`, 10^5 by default.
fn reads() -> usize {
    std::env::var("PARHELION_DUAL_READS").map_or(100_000, |text| text.parse().unwrap())
}

#[test]
fn reads_that_race_writers_report_nothing_when_the_secondary_is_right() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let reads = reads();
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
                        let pipeline: Vec<u8> =
                            keys.iter().flat_map(|key| encode(&["GET", key])).collect();
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
    assert!(pair.becomes_same());
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

#[test]
fn every_reply_that_the_secondary_falsifies_is_noticed() {
    let falsified = Arc::new(AtomicU64::new(0));
    let counter = falsified.clone();
    let mut pair = Pair::through(
        "mode = \"dual-write-shadow\"",
        |secondary| falsifier(secondary, b'$', 10_000, counter),
        |options, _| options,
    );
    let mut client = pair.client();
    fill(&mut client, 1000);
    for _ in 0..reads() / 1000 {
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
    let mut pair = Pair::through(
        "mode = \"dual-write\"",
        |secondary| falsifier(secondary, b':', 1000, counter),
        |options, _| options,
    );
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
                            encode(&["INCR", &key])
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
        let (told, transient) = pair.divergences();
        let all = falsified.load(Ordering::Relaxed) as f64;
        (told > 0.0 && (told, transient) == (all, 0.0)).then_some(())
    });
    assert!(
        settled.is_some(),
        "{:?} of {} found",
        pair.divergences(),
        falsified.load(Ordering::Relaxed)
    );
}

#[test]
fn a_value_that_stays_wrong_is_reported_as_what_it_is() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let mut client = pair.client();
    fill(&mut client, 100);
    assert!(pair.becomes_same());
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
