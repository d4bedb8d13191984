//! The load generator and `parhelion bench` against a real server behind real sockets.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::Duration;

use parhelion::load::{Kind, LoadError, Mix, Options, run};
use parhelion::testing::redis::{RedisOptions, RedisServer};

#[test]
fn a_server_that_stands_still_shows_in_full_in_an_open_loop() {
    const STALL: Duration = Duration::from_millis(400);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Answers every PING, but rests once in the middle.
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut answered, mut rested) = (0, false);
        let mut buffer = [0; 64 * 1024];
        let mut open = Vec::new();
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            open.extend_from_slice(&buffer[..length]);
            let whole = open.len() / b"*1\r\n$4\r\nPING\r\n".len();
            open.drain(..whole * b"*1\r\n$4\r\nPING\r\n".len());
            answered += whole;
            if answered > 300 && !rested {
                rested = true;
                thread::sleep(STALL);
            }
            stream.write_all(&b"+PONG\r\n".repeat(whole)).unwrap();
        }
    });
    let seen = run(&Options {
        rate: Some(1000.0),
        mix: Mix::only(Kind::Ping),
        length: Duration::from_secs(1),
        ..Options::new(address)
    })
    .unwrap();
    assert_eq!((seen.replies, seen.wrong, seen.unanswered), (1000, 0, 0));
    // 400 requests fell due during the rest: a quarter of them waited 300 ms and longer.
    let late = seen.latency.len() - seen.latency.count_between(0, 290_000_000);
    assert!(late >= 80, "{late}");
    assert!(
        seen.latency_us(0.999) > 350_000.0,
        "{}",
        seen.latency_us(0.999)
    );
}

#[test]
fn bench_loads_both_addresses_shows_them_side_by_side_and_leaves_nothing_behind() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let address = server.address().to_string();
    let pid = std::process::id().to_string();
    let words = [
        "bench", "--redis", &address, "--direct", &address, "--pid", &pid,
    ];
    let more = "--json --seconds 0.3 --repeats 2 --clients 7 --threads 2 --keys 50 --value-size 3000 --resp 3 \
                --distribution zipf --mix get:4,set:2,mget,incr,hset,hgetall,lpush,lpop,del,ping --pipeline 4";
    let output = Command::new(env!("CARGO_BIN_EXE_parhelion"))
        .args(words)
        .args(more.split_whitespace())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said: serde_json::Value = serde_json::from_str(&text).unwrap();
    for side in said["sides"].as_array().unwrap() {
        assert!(side["replies"].as_u64().unwrap() > 0, "{side}");
        for clean in ["errors", "wrong", "unanswered"] {
            assert_eq!(side[clean], 0, "{side}");
        }
        assert!(side["p999_us"].as_f64() >= side["p50_us"].as_f64());
    }
    assert!(
        said["sides"][0]["cpu_user_us"].is_number() && said["sides"][1]["cpu_user_us"].is_null()
    );
    let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
    stream.write_all(b"DBSIZE\r\n").unwrap();
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b":0\r\n");
}

#[test]
fn an_address_without_a_server_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let error = run(&Options::new(address)).unwrap_err();
    assert!(matches!(error, LoadError::Peer { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
