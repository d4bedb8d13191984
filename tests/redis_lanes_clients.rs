//! More real clients on shared lanes: ioredis, node-redis, redis-rs, and the rest of redis-cli.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use parhelion::testing::servers::{RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use redis::Commands;
use support::proxy::Proxy;
use support::resp::{RespClient, encode};
use support::run_ok;

const TIMEOUT: Duration = Duration::from_secs(60);

fn behind_proxy() -> (RedisServer, Proxy, String) {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let proxy = Proxy::redis(server.address());
    let port = proxy.address().port().to_string();
    (server, proxy, port)
}

#[test]
fn ioredis_and_node_redis_work_in_resp2_and_resp3() {
    let (_server, _proxy, port) = behind_proxy();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = folder.join("target/node/node_modules");
    assert!(modules.exists(), "{}: run tests/setup", modules.display());
    let script = folder.join("tests/support/redis_client.js");
    let mut node = Command::new("node");
    node.arg(script)
        .args(["127.0.0.1", &port])
        .env("NODE_PATH", modules);
    assert_eq!(run_ok(&mut node, b"", TIMEOUT).trim(), "fine");
}

#[test]
fn redis_rs_works_with_pipelines_transactions_and_subscriptions() {
    let (_server, proxy, _port) = behind_proxy();
    for suffix in ["", "?protocol=resp3"] {
        let client = redis::Client::open(format!("redis://{}/{suffix}", proxy.address())).unwrap();
        let mut connection = client.get_connection().unwrap();
        let _: () = redis::cmd("FLUSHALL").query(&mut connection).unwrap();
        let value: Vec<u8> = (0..=255).collect();
        let _: () = connection.set("k", &value).unwrap();
        assert_eq!(connection.get::<_, Vec<u8>>("k").unwrap(), value);
        assert_eq!(connection.get::<_, Option<String>>("none").unwrap(), None);
        let mut pipe = redis::pipe();
        for _ in 0..1000 {
            pipe.incr("n", 1);
        }
        let counts: Vec<i64> = pipe.query(&mut connection).unwrap();
        assert_eq!(counts, (1..=1000).collect::<Vec<_>>());
        let (set, count): (String, i64) = redis::pipe()
            .atomic()
            .set("t", 1)
            .incr("t", 1)
            .query(&mut connection)
            .unwrap();
        assert_eq!((set.as_str(), count), ("OK", 2));
        let failed = connection.lpush::<_, _, i64>("k", 1).unwrap_err();
        assert!(failed.to_string().contains("WRONGTYPE"), "{failed}");
        let mut other = client.get_connection().unwrap();
        let mut subscriber = client.get_connection().unwrap();
        let mut channel = subscriber.as_pubsub();
        channel.subscribe("c").unwrap();
        assert_eq!(other.publish::<_, _, i64>("c", "hello").unwrap(), 1);
        let message = channel.get_message().unwrap();
        assert_eq!(message.get_payload::<String>().unwrap(), "hello");
    }
}

/// Starts a redis-cli that runs until it is killed, waits until its output holds `wanted`.
fn watch(args: &[&str], act: impl Fn(), wanted: &str) {
    use std::io::Read;
    let mut child = Command::new("redis-cli")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (said, heard) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut buffer) {
            let _ = said.send(buffer[..length].to_vec());
        }
    });
    let mut output = Vec::new();
    let seen = eventually(Duration::from_secs(20), || {
        act();
        output.extend(heard.try_iter().flatten());
        String::from_utf8_lossy(&output)
            .contains(wanted)
            .then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
    let output = String::from_utf8_lossy(&output);
    assert!(seen.is_some(), "{args:?}: no {wanted:?} in {output}");
}

#[test]
fn redis_cli_monitors_and_subscribes() {
    let (_server, proxy, port) = behind_proxy();
    let other = std::cell::RefCell::new(RespClient::connect(proxy.address()));
    let call = |args: &[&str]| {
        other.borrow_mut().call(args);
    };
    let set = || call(&["SET", "shown", "1"]);
    watch(&["-p", &port, "monitor"], set, "\"SET\" \"shown\" \"1\"");
    let publish = || call(&["PUBLISH", "news", "hello"]);
    watch(&["-p", &port, "subscribe", "news"], publish, "hello");
    watch(&["-p", &port, "-3", "psubscribe", "n*"], publish, "hello");
}

#[test]
fn redis_benchmark_runs_each_of_its_tests_by_name_with_500_clients() {
    let (_server, _proxy, port) = behind_proxy();
    let tests = "ping,set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,zadd,zpopmin,\
        lrange_100,lrange_300,lrange_500,lrange_600,mset";
    let mut command = Command::new("redis-benchmark");
    command.args(["-p", &port, "-n", "3000", "-c", "500", "-t", tests, "--csv"]);
    let said = run_ok(&mut command, b"", TIMEOUT);
    // A heading, PING twice (inline and not), and the list that LRANGE reads.
    assert_eq!(
        said.lines().count(),
        1 + tests.split(',').count() + 2,
        "{said}"
    );
}

#[test]
fn redis_cli_pipe_and_bigkeys_leave_others_alone() {
    let (server, proxy, port) = behind_proxy();
    let mut other = RespClient::connect(proxy.address());
    let loader = std::thread::spawn({
        let port = port.clone();
        move || {
            let input: Vec<u8> = (0..50_000)
                .flat_map(|number| encode(&["SET", &format!("key:{number}"), "value"]))
                .collect();
            run_ok(
                Command::new("redis-cli").args(["-p", &port, "--pipe"]),
                &input,
                TIMEOUT,
            )
        }
    });
    while !loader.is_finished() {
        assert_eq!(other.call(&["PING"]), b"+PONG\r\n");
    }
    let said = loader.join().unwrap();
    assert!(said.contains("errors: 0, replies: 50000"), "{said}");
    assert_eq!(server.command(&["DBSIZE"]).unwrap(), b":50000\r\n");
    let said = run_ok(
        Command::new("redis-cli").args(["-p", &port, "--bigkeys"]),
        b"",
        TIMEOUT,
    );
    assert!(said.contains("Sampled 50000 keys"), "{said}");
}
