//! A reply of 100 MB for one client, and what it means to those that share its lane.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parhelion::testing::redis::{RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use support::proxy::Proxy;
use support::resp::{RespClient, encode};

const HUGE: usize = 100_000_000;
/// `$100000000`, the bytes, and both line ends.
const REPLY: usize = HUGE + 14;
/// What of the huge reply has come when the others begin: more than a lane carries before it is retired.
const BEGUN: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

fn with_a_huge_value() -> (RedisServer, Proxy) {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let value = vec![b'x'; HUGE];
    let mut direct = RespClient::connect(server.address());
    assert_eq!(
        direct.call(&[b"SET".as_slice(), b"huge", &value]),
        b"+OK\r\n"
    );
    let proxy = Proxy::redis(server.address());
    (server, proxy)
}

/// Clients that have used the lane.
fn neighbours(proxy: &Proxy, count: usize) -> Vec<RespClient> {
    let connect = |_| {
        let mut client = RespClient::connect(proxy.address());
        assert_eq!(client.call(&["PING"]), b"+PONG\r\n");
        client
    };
    (0..count).map(connect).collect()
}

/// Asks for the huge value and takes the beginning.
fn begin(proxy: &Proxy) -> TcpStream {
    let mut greedy = TcpStream::connect(proxy.address()).unwrap();
    greedy.write_all(&encode(&["PING"])).unwrap();
    greedy.read_exact(&mut [0; 7]).unwrap();
    greedy.write_all(&encode(&["GET", "huge"])).unwrap();
    greedy.read_exact(&mut vec![0; BEGUN]).unwrap();
    greedy
}

fn take_the_rest(greedy: &mut TcpStream) {
    let mut rest = vec![0; REPLY - BEGUN];
    greedy.read_exact(&mut rest).unwrap();
    assert!(rest.ends_with(b"x\r\n"));
    greedy.write_all(&encode(&["PING"])).unwrap();
    let mut pong = [0; 7];
    greedy.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"+PONG\r\n");
}

fn ping(client: &mut RespClient) -> Duration {
    let before = Instant::now();
    assert_eq!(client.call(&["PING"]), b"+PONG\r\n");
    before.elapsed()
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

fn connected(server: SocketAddr) -> usize {
    let list = RespClient::connect(server).call(&["CLIENT", "LIST"]);
    let list = String::from_utf8_lossy(&list).into_owned();
    list.lines().filter(|line| line.contains("addr=")).count() - 1
}

#[test]
fn while_a_huge_reply_crosses_the_commands_of_others_take_another_way() {
    let (server, proxy) = with_a_huge_value();
    let mut others = neighbours(&proxy, 8);
    let mut direct = RespClient::connect(server.address());
    let mut greedy = begin(&proxy);
    let (mut slowest, mut without, mut count) = (Duration::ZERO, Duration::ZERO, 0);
    thread::scope(|scope| {
        let reading = scope.spawn(|| take_the_rest(&mut greedy));
        while !reading.is_finished() {
            for other in &mut others {
                slowest = slowest.max(ping(other));
                without = without.max(ping(&mut direct));
                count += 1;
            }
        }
    });
    println!(
        "{count} PINGs beside the reply: the slowest took {slowest:?}, past the proxy {without:?}"
    );
    assert!(count > 8, "{count} PINGs");
    // On a quiet machine it is a millisecond; a busy one is busy for the direct connection too.
    assert!(
        slowest < Duration::from_millis(20) + 4 * without,
        "{slowest:?}, past the proxy {without:?}"
    );
}

#[test]
fn a_client_that_does_not_take_its_huge_reply_delays_nobody_and_nothing_piles_up() {
    let (server, mut proxy) = with_a_huge_value();
    let mut others = neighbours(&proxy, 8);
    let pid = proxy.real().pid();
    let before = resident_kib(pid);
    let mut greedy = begin(&proxy);
    let mut slowest = Duration::ZERO;
    for _ in 0..200 {
        for other in &mut others {
            slowest = slowest.max(ping(other));
        }
    }
    let more = resident_kib(pid).saturating_sub(before);
    println!("1600 PINGs: the slowest took {slowest:?}; {more} KiB more memory");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(more < 8192, "{more} KiB");
    take_the_rest(&mut greedy);
    // The lane of the huge reply has ended; what is left is the others' lane and the greedy client's own connection.
    let closed = eventually(PATIENCE, || {
        (connected(server.address()) <= 2).then_some(())
    });
    assert!(closed.is_some(), "{}", connected(server.address()));
}

/// Commands on their way behind the huge reply get their own answers, those behind them too, in order.
#[test]
fn whoever_has_to_change_the_lane_gets_every_reply_in_order() {
    let (_server, proxy) = with_a_huge_value();
    let address = proxy.address();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let counting: Vec<_> = (0..8)
            .map(|number| {
                let done = &done;
                scope.spawn(move || {
                    let mut client = RespClient::connect(address);
                    let key = format!("counter:{number}");
                    let mut value = 0_u64;
                    let mut rounds = 0;
                    while !done.load(Ordering::Relaxed) {
                        client.send(&encode(&["INCR", &key]).repeat(20));
                        for reply in client.replies(20) {
                            value += 1;
                            assert_eq!(reply, format!(":{value}\r\n").into_bytes());
                        }
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        for _ in 0..5 {
            take_the_rest(&mut begin(&proxy));
        }
        // One leaves in the middle of it.
        drop(begin(&proxy));
        take_the_rest(&mut begin(&proxy));
        done.store(true, Ordering::Relaxed);
        for client in counting {
            assert!(client.join().unwrap() > 5);
        }
    });
}

/// A client that has got one huge reply over a lane gets the next ones elsewhere, for longer each time.
#[test]
fn the_next_huge_replies_of_a_client_delay_nobody_at_all() {
    let (_server, proxy) = with_a_huge_value();
    let mut greedy = RespClient::connect(proxy.address());
    let mut slowest = Vec::new();
    for _ in 0..4 {
        let mut other = neighbours(&proxy, 1).remove(0);
        let mut slow = Duration::ZERO;
        thread::scope(|scope| {
            let reading = scope.spawn(|| greedy.call(&["GET", "huge"]).len());
            while !reading.is_finished() {
                slow = slow.max(ping(&mut other));
            }
            assert_eq!(reading.join().unwrap(), REPLY);
        });
        slowest.push(slow);
    }
    println!("the slowest PING beside each of four: {slowest:?}");
    let bound = Duration::from_secs(1);
    assert!(slowest[1..].iter().all(|time| *time < bound));
}
