//! Real Redis clients work through the proxy unchanged.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::Duration;

use parhelion::testing::servers::{RedisOptions, RedisServer};
use support::proxy::Proxy;
use support::resp::encode;
use support::{python, run, run_ok};

const TIMEOUT: Duration = Duration::from_secs(60);

fn behind_proxy() -> (RedisServer, Proxy, String) {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let proxy = Proxy::redis(server.address());
    let port = proxy.address().port().to_string();
    (server, proxy, port)
}

fn redis_cli(port: &str) -> Command {
    let mut command = Command::new("redis-cli");
    command.args(["-h", "127.0.0.1", "-p", port]);
    command
}

#[test]
fn redis_cli_answers_as_on_a_direct_connection() {
    let (server, _proxy, port) = behind_proxy();
    let direct = server.port().to_string();
    let script =
        b"SET a 1\nINCR a\nGET a\nLPUSH l x y\nLRANGE l 0 -1\nMULTI\nGET a\nEXEC\nNOSUCH x\n\
        CLIENT SETNAME me\nCLIENT GETNAME\nHSET h f v\nHGETALL h\nSELECT 4\nGET a\nFLUSHALL\n";
    for args in [&[][..], &["-3"], &["--no-raw"], &["--json"]] {
        let answers =
            [&direct, &port].map(|port| run_ok(redis_cli(port).args(args), script, TIMEOUT));
        assert_eq!(answers[0], answers[1], "{args:?}");
    }
}

#[test]
fn redis_cli_pipe_loads_a_hundred_thousand_keys() {
    let (server, _proxy, port) = behind_proxy();
    let input: Vec<u8> = (0..100_000)
        .flat_map(|number| encode(&["SET", &format!("key:{number}"), "value"]))
        .collect();
    let said = run_ok(redis_cli(&port).arg("--pipe"), &input, TIMEOUT);
    assert!(said.contains("errors: 0, replies: 100000"), "{said}");
    assert_eq!(server.command(&["DBSIZE"]).unwrap(), b":100000\r\n");
}

#[test]
fn redis_cli_scan_bigkeys_and_latency_end_well() {
    let (server, _proxy, port) = behind_proxy();
    server.command(&["MSET", "a", "1", "b", "2"]).unwrap();
    let keys = run_ok(redis_cli(&port).arg("--scan"), b"", TIMEOUT);
    let mut keys: Vec<&str> = keys.lines().collect();
    keys.sort_unstable();
    assert_eq!(keys, ["a", "b"]);
    assert!(run_ok(redis_cli(&port).arg("--bigkeys"), b"", TIMEOUT).contains("Sampled 2 keys"));
}

#[test]
fn redis_benchmark_runs_every_test_without_an_error() {
    let (_server, _proxy, port) = behind_proxy();
    for pipeline in ["1", "16"] {
        let mut command = Command::new("redis-benchmark");
        command.args([
            "-p", &port, "-n", "5000", "-c", "50", "-P", pipeline, "-r", "1000", "--csv",
        ]);
        let output = run(&mut command, b"", TIMEOUT);
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{stdout}{stderr}");
        assert!(!stderr.contains("rror"), "{stderr}");
        for name in [
            "PING_INLINE",
            "PING_MBULK",
            "SET",
            "GET",
            "INCR",
            "LPUSH",
            "SPOP",
            "ZPOPMIN",
            "LRANGE_600",
            "MSET",
        ] {
            assert!(
                stdout.contains(&format!("\"{name}")),
                "no {name} in {stdout}"
            );
        }
    }
}

#[test]
fn redis_py_works_in_resp2_and_resp3() {
    let (_server, _proxy, port) = behind_proxy();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/redis_client.py");
    let said = run_ok(
        Command::new(python()).args([script, "127.0.0.1", &port]),
        b"",
        TIMEOUT,
    );
    assert_eq!(said.trim(), "fine");
}
