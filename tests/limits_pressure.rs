//! More connections than there is room, descriptors or memory for: others are served, nothing spins, everything comes back.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use parhelion::demo::resp_server::{RespOptions, RespServer};
use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::servers::RedisServer;
use parhelion::testing::wait::{eventually, free_port};
use support::faults::{
    Latencies, PATIENCE, cpu_ticks, open_fds, open_fds_with_lane, redis, setting, start,
};
use support::resp::{RespClient, encode};

#[test]
fn a_flood_beyond_the_cap_leaves_nothing_behind() {
    let server = redis();
    let proxy = start(&ProxyOptions::new("redis", server.address()).general("max_connections = 4"));
    let mut inside = RespClient::connect(proxy.address());
    assert_eq!(inside.call(&["PING"]), b"+PONG\r\n");
    let before = open_fds(proxy.pid());
    // Silent ones, more than are told at a time.
    let flood: Vec<TcpStream> = (0..600)
        .map(|_| TcpStream::connect(proxy.address()).unwrap())
        .collect();
    assert_eq!(inside.call(&["PING"]), b"+PONG\r\n");
    // Three of them found a place; the rest is gone soon, although they say nothing.
    let gone = eventually(PATIENCE, || {
        (open_fds(proxy.pid()) <= before + 6).then_some(())
    });
    assert!(gone.is_some(), "{} descriptors", open_fds(proxy.pid()));
    drop(flood);
    let all = eventually(PATIENCE, || (open_fds(proxy.pid()) == before).then_some(()));
    assert!(all.is_some(), "{} of {before}", open_fds(proxy.pid()));
}

/// 2,000 new connections a second, half of which say PING and leave and half of which say nothing; how many there were.
fn storm(address: SocketAddr, seconds: u64) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let began = Instant::now();
        let mut silent = Vec::new();
        let mut count = 0_u64;
        while began.elapsed() < Duration::from_secs(seconds) {
            let due = began.elapsed().as_millis() as u64 * 2;
            if count >= due {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            count += 1;
            let mut stream = TcpStream::connect(address).unwrap();
            if count.is_multiple_of(2) {
                stream.write_all(&encode(&["PING"])).unwrap();
            } else {
                silent.push(stream);
            }
            if silent.len() > 1_500 {
                silent.drain(..500);
            }
        }
        count
    })
}

#[test]
fn two_thousand_connections_a_second_half_of_them_silent_disturb_nobody_for_long() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let seconds = setting("PARHELION_STORM_SECONDS", 3);
    let server = RespServer::start(RespOptions::default()).unwrap();
    let elsewhere = RespServer::start(RespOptions::default()).unwrap();
    let proxy = start(&ProxyOptions::new("redis", server.address()));
    let mut settled = RespClient::connect(proxy.address());
    let mut ping = || assert_eq!(settled.call(&["PING"]), b"+PONG\r\n");
    ping();
    let alone = Latencies::of(5_000, &mut ping);
    // What the storm's own client and the kernel's handshakes take from this machine, without the proxy in it.
    let besides_the_proxy = storm(elsewhere.address(), seconds);
    let control = Latencies::while_(|| !besides_the_proxy.is_finished(), &mut ping);
    besides_the_proxy.join().unwrap();
    let before = open_fds(proxy.pid());
    let ticks = cpu_ticks(proxy.pid());
    let at_the_proxy = storm(proxy.address(), seconds);
    let beside = Latencies::while_(|| !at_the_proxy.is_finished(), &mut ping);
    let opened = at_the_proxy.join().unwrap();
    let used = (cpu_ticks(proxy.pid()) - ticks) as f64 / 100.0 / seconds as f64;
    println!(
        "{opened} connections in {seconds} s, {:.0} % of a core in the proxy; {}; {}",
        used * 100.0,
        control.against("a settled client beside a storm at another server", &alone),
        beside.against("beside one at the proxy", &alone)
    );
    assert!(beside.calls() > 1_000, "{} calls", beside.calls());
    // A busy machine may make fewer, but not so few that this is no storm.
    assert!(opened > seconds * 1_000, "only {opened} connections");
    let worse = beside.is_worse_than(&alone) && beside.is_worse_than(&control);
    assert!(!worse, "{}", beside.against("p99", &alone));
    let back = eventually(PATIENCE, || (open_fds(proxy.pid()) <= before).then_some(()));
    assert!(back.is_some(), "{} of {before}", open_fds(proxy.pid()));
}

fn ping_once(proxy: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(proxy).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .ok()?;
    stream.write_all(&encode(&["PING"])).ok()?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).ok()?;
    Some(stream)
}

/// A proxy that may have so many descriptors from its start. (An accept in the kernel goes by the limit of the time
/// when it was asked for.)
fn start_with_fds(server: &RedisServer, limit: usize) -> ProxyProcess {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    let control = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    let mut command = std::process::Command::new("prlimit");
    command
        .arg(format!("--nofile={limit}:{limit}"))
        .args([env!("CARGO_BIN_EXE_parhelion"), "redis", "--cores", "0"])
        .args(["--listen", &address.to_string()])
        .args(["--control", &control.to_string()])
        .args(["--primary", &server.address().to_string()]);
    ProxyProcess::spawn(command, address, control).unwrap()
}

#[test]
fn without_descriptors_others_wait_or_are_shed_nothing_spins_and_the_old_are_served() {
    let server = redis();
    let mut waited = 0;
    // Some run out at the accept, some behind it.
    for limit in [40, 41] {
        let proxy = start_with_fds(&server, limit);
        let mut settled = RespClient::connect(proxy.address());
        assert_eq!(settled.call(&["PING"]), b"+PONG\r\n");
        let crowd: Vec<TcpStream> = (0..60)
            .map(|_| TcpStream::connect(proxy.address()).unwrap())
            .collect();
        let (ticks, began) = (cpu_ticks(proxy.pid()), Instant::now());
        while began.elapsed() < Duration::from_secs(2) {
            assert_eq!(settled.call(&["PING"]), b"+PONG\r\n");
            std::thread::sleep(Duration::from_millis(20));
        }
        let used = cpu_ticks(proxy.pid()) - ticks;
        println!("{limit} descriptors, all taken, for 2 s: {used} ticks of CPU");
        assert!(used < 60, "{used} ticks of CPU in two seconds: it spins");
        drop(crowd);
        let again = eventually(PATIENCE, || ping_once(proxy.address()));
        assert!(again.is_some(), "nobody is served after the shortage");
        let log = proxy.log();
        let said = |text: &str| log.iter().filter(|line| line.contains(text)).count();
        waited += said("cannot accept; new connections wait");
        assert!(log.len() < 30, "{} lines", log.len());
    }
    assert!((1..=4).contains(&waited), "{waited} lines about accepts");
}

#[test]
fn clients_that_left_are_freed_although_the_primary_stands_still() {
    let server = redis();
    let proxy = start(&ProxyOptions::new("redis", server.address()));
    let before = open_fds_with_lane(&proxy);
    let crowd: Vec<RespClient> = (0..50)
        .map(|_| {
            let mut client = RespClient::connect(proxy.address());
            assert_eq!(client.call(&["PING"]), b"+PONG\r\n");
            client
        })
        .collect();
    server.pause().unwrap();
    drop(crowd);
    let freed = eventually(PATIENCE, || (open_fds(proxy.pid()) <= before).then_some(()));
    server.resume().unwrap();
    assert!(freed.is_some(), "{} of {before}", open_fds(proxy.pid()));
}

#[test]
fn a_process_that_may_lock_no_memory_says_how_to_mend_it() {
    let out = std::process::Command::new("prlimit")
        .args(["--memlock=1024:1024", env!("CARGO_BIN_EXE_parhelion")])
        .args([
            "redis",
            "--listen",
            "127.0.0.1:0",
            "--primary",
            "127.0.0.1:1",
        ])
        .args(["--control", "off"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("locked memory") && said.contains("LimitMEMLOCK="),
        "{said}"
    );
}
