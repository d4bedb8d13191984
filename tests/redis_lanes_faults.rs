//! The primary fails in the middle: every client sees what a direct connection would show, and nothing of another's.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use parhelion::testing::relay::Relay;
use parhelion::testing::servers::{RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use support::proxy::Proxy;
use support::resp::{RespClient, clip, encode};

fn echo(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}

#[test]
fn a_lane_cut_at_any_byte_gives_each_client_a_prefix_of_its_own_replies_and_a_close() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let relay = Relay::start(server.address()).unwrap();
    let proxy = Proxy::redis(relay.address());
    let mut rng = fastrand::Rng::with_seed(11);
    for round in 0..15 {
        relay.heal();
        let connected = eventually(Duration::from_secs(10), || {
            let mut client = RespClient::connect(proxy.address());
            client.send(&encode(&["PING"]));
            (client.reply().ok()? == b"+PONG\r\n").then_some(())
        });
        assert!(connected.is_some(), "round {round}: no lane again");
        let mut clients: Vec<RespClient> = (0..4)
            .map(|_| RespClient::connect(proxy.address()))
            .collect();
        relay.chop(rng.usize(1..2000));
        relay.cut_replies_after(rng.u64(1..30_000));
        let mut expected = Vec::new();
        for (number, client) in clients.iter_mut().enumerate() {
            let texts: Vec<String> = (0..500)
                .map(|step| format!("client {number} step {step}"))
                .collect();
            let bytes: Vec<u8> = texts
                .iter()
                .flat_map(|text| encode(&["ECHO", text]))
                .collect();
            let _ = client.send_aside(bytes).join();
            expected.push(
                texts
                    .iter()
                    .flat_map(|text| echo(text))
                    .collect::<Vec<u8>>(),
            );
        }
        let mut closed = 0;
        for (number, client) in clients.iter_mut().enumerate() {
            let mut got = Vec::new();
            let mut buffer = [0; 64 * 1024];
            while got.len() < expected[number].len() {
                match client.stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => got.extend_from_slice(&buffer[..length]),
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                    Err(error) => panic!("round {round}: client {number} is not closed: {error}"),
                }
            }
            closed += usize::from(got.len() < expected[number].len());
            assert!(
                expected[number].starts_with(&got),
                "round {round}: client {number} got {}",
                clip(&got)
            );
        }
        assert!(closed > 0, "round {round}: nothing was cut");
    }
}

#[test]
fn a_killed_primary_closes_who_waits_within_a_second_and_serves_again_when_it_is_back() {
    let mut server = RedisServer::start(RedisOptions::default()).unwrap();
    let proxy = Proxy::redis(server.address());
    let mut waiting = RespClient::connect(proxy.address());
    let mut blocked = RespClient::connect(proxy.address());
    let mut idle = RespClient::connect(proxy.address());
    assert_eq!(waiting.call(&["SET", "a", "1"]), b"+OK\r\n");
    assert_eq!(idle.call(&["GET", "a"]), b"$1\r\n1\r\n");
    blocked.send(&encode(&["BLPOP", "queue", "0"]));
    server.pause().unwrap();
    waiting.send(&encode(&["GET", "a"]).repeat(10));
    // Nothing comes while the primary is stopped, and nobody is closed.
    waiting
        .stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!(waiting.reply().is_err());
    waiting
        .stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    server.kill9().unwrap();
    let began = Instant::now();
    assert_eq!(waiting.rest().unwrap(), b"");
    assert_eq!(blocked.rest().unwrap(), b"");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    // As a refused connection: no reply, a close.
    let mut early = RespClient::connect(proxy.address());
    assert_eq!(early.rest().unwrap(), b"");
    server.restart().unwrap();
    let back = eventually(Duration::from_secs(10), || {
        let mut client = RespClient::connect(proxy.address());
        let _ = client.stream.set_read_timeout(Some(Duration::from_secs(2)));
        std::io::Write::write_all(&mut client.stream, &encode(&["PING"])).ok()?;
        (client.reply().ok()? == b"+PONG\r\n").then_some(())
    });
    assert!(back.is_some());
    // Who had nothing outstanding has noticed nothing.
    assert_eq!(idle.call(&["GET", "a"]), b"$-1\r\n");
}

#[test]
fn a_stopped_primary_costs_bounded_memory_and_no_reply() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let mut proxy = Proxy::redis(server.address());
    let address = proxy.address();
    let mut clients: Vec<RespClient> = (0..20).map(|_| RespClient::connect(address)).collect();
    for client in &mut clients {
        assert_eq!(client.call(&["PING"]), b"+PONG\r\n");
    }
    let before = resident(proxy.real().pid());
    server.pause().unwrap();
    let command = encode(&["SET", "k", &"v".repeat(1000)]);
    let writers: Vec<_> = clients
        .iter()
        .map(|client| client.send_aside(command.repeat(5_000)))
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    let grown = resident(proxy.real().pid()).saturating_sub(before);
    assert!(
        grown < 64 << 20,
        "{grown} bytes more for 100 MB of commands"
    );
    server.resume().unwrap();
    for client in &mut clients {
        assert!(
            client
                .replies(5_000)
                .iter()
                .all(|reply| reply == b"+OK\r\n")
        );
    }
    for writer in writers {
        writer.join().unwrap();
    }
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// Bytes that the proxy has read from its clients.
fn received(proxy: &mut Proxy) -> u64 {
    let metrics = proxy.real().get("/metrics").unwrap();
    let of = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("parhelion_client_received_bytes_total"));
    lines.filter_map(of).sum::<f64>() as u64
}

#[test]
fn a_drain_lets_replies_through_and_then_closes() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let mut proxy = Proxy::redis(server.address());
    let mut idle = RespClient::connect(proxy.address());
    let mut busy = RespClient::connect(proxy.address());
    assert_eq!(idle.call(&["PING"]), b"+PONG\r\n");
    assert_eq!(busy.call(&["PING"]), b"+PONG\r\n");
    server.pause().unwrap();
    let known = received(&mut proxy);
    let last = encode(&["ECHO", "last"]);
    busy.send(&last);
    let came = eventually(Duration::from_secs(10), || {
        (received(&mut proxy) >= known + last.len() as u64).then_some(())
    });
    assert!(came.is_some(), "the last command does not arrive");
    let process = proxy.real().process();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(process.pid() as i32).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert_eq!(idle.rest().unwrap(), b"");
    server.resume().unwrap();
    assert_eq!(busy.rest().unwrap(), echo("last"));
}
