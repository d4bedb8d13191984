//! `parhelion check` against real servers, dead ones, silent ones and strangers.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use parhelion::cli::check::{Dialled, check_dial, table};
use parhelion::config::{Config, Input, parse};
use parhelion::testing::postgres::{PostgresOptions, PostgresServer, PostgresUser, UserAuth};
use parhelion::testing::redis::{RedisOptions, RedisServer};

const TIMEOUT: Duration = Duration::from_secs(10);

fn config(text: &str, users: &str) -> Config {
    let input = Input {
        file: "parhelion.toml".as_ref(),
        text,
        users: Some(("users.toml".as_ref(), users)),
        cpus: &[0],
    };
    parse(&input)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .config
}

fn entry(name: &str, protocol: &str, address: SocketAddr, rest: &str) -> String {
    format!(
        "[[databases]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\nhost = \"{}\"\nport = {}\n{rest}\n",
        address.ip(),
        address.port()
    )
}

fn listener(protocol: &str, database: &str) -> String {
    format!(
        "[[listeners]]\naddress = \"127.0.0.1:0\"\nprotocol = \"{protocol}\"\ndatabase = \"{database}\"\n"
    )
}

fn mirroring(from: &str, to: &str) -> String {
    format!("[[mirroring]]\nsource_db = \"{from}\"\ndestination_db = \"{to}\"\n")
}

/// A server that accepts, reads once and answers `answer`; with none it stays silent.
fn stranger(answer: Option<&'static [u8]>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if let Some(answer) = answer {
                let _ = stream.read(&mut [0; 512]);
                let _ = stream.write_all(answer);
            }
            held.push(stream);
        }
    });
    address
}

fn only(dialled: &[Dialled], name: &str) -> Dialled {
    dialled
        .iter()
        .find(|d| d.name == name)
        .unwrap_or_else(|| panic!("{dialled:?}"))
        .clone()
}

#[test]
fn redis_servers_report_their_version_and_what_they_ask_for() {
    let open = RedisServer::start(RedisOptions::default()).unwrap();
    let locked = RedisServer::start(RedisOptions {
        password: Some("canary-5".into()),
        ..RedisOptions::default()
    })
    .unwrap();
    let text = [
        listener("redis", "open"),
        entry("open", "redis", open.address(), "db = 3"),
        entry("far", "redis", open.address(), "db = 999999"),
        entry(
            "knows",
            "redis",
            locked.address(),
            "password = \"canary-5\"",
        ),
        entry(
            "wrong",
            "redis",
            locked.address(),
            "password = \"canary-6\"",
        ),
        entry("asks", "redis", locked.address(), ""),
    ]
    .concat();
    let dialled = check_dial(&config(&text, ""), TIMEOUT);
    let found = only(&dialled, "open");
    assert!(
        found.ok && found.version.unwrap().contains(' '),
        "{dialled:?}"
    );
    assert!(only(&dialled, "knows").ok);
    assert!(
        only(&dialled, "asks").ok,
        "clients of a source log in themselves"
    );
    let wrong = only(&dialled, "wrong");
    assert!(!wrong.ok && wrong.result.contains("WRONGPASS"), "{wrong:?}");
    assert!(only(&dialled, "far").result.contains("SELECT 999999"));
    assert!(!table(&dialled).contains("canary"));

    let text = [
        listener("redis", "open"),
        entry("open", "redis", open.address(), ""),
        entry("mirror", "redis", locked.address(), ""),
        mirroring("open", "mirror"),
    ]
    .concat();
    let mirror = only(&check_dial(&config(&text, ""), TIMEOUT), "mirror");
    assert!(
        !mirror.ok && mirror.result.contains("asks for a password"),
        "{mirror:?}"
    );
}

#[test]
fn postgres_mirrors_are_logged_in_to_and_sources_only_recognised() {
    let user = |name: &str, auth| PostgresUser {
        name: name.into(),
        password: "canary-8".into(),
        auth,
    };
    let server = PostgresServer::start(PostgresOptions {
        users: vec![user("md", UserAuth::Md5), user("scram", UserAuth::Scram)],
        databases: vec!["shop".into()],
        ..PostgresOptions::default()
    })
    .unwrap();
    let at = server.address();
    let name = "database_name = \"shop\"";
    let base = [
        entry("prod", "postgres", at, ""),
        entry(
            "by_entry",
            "postgres",
            at,
            &format!("{name}\nuser = \"scram\"\npassword = \"canary-8\""),
        ),
        entry(
            "wrong",
            "postgres",
            at,
            "database_name = \"nosuch\"\nuser = \"md\"\npassword = \"canary-8\"",
        ),
        entry("by_users", "postgres", at, name),
    ]
    .concat();
    // Three names of one database would be the same mirror: each is dialled under a source of its own.
    let users = "[[users]]\nname = \"md\"\ndatabase = \"by_users\"\npassword = \"canary-8\"\n\
                 [[users]]\nname = \"scram\"\ndatabase = \"by_users\"\npassword = \"canary-9\"\n";
    let text = base + &mirroring("prod", "by_users");
    let dialled = check_dial(&config(&text, users), TIMEOUT);
    let prod = only(&dialled, "prod");
    assert!(prod.ok && prod.version.is_none(), "{prod:?}");
    let by_entry = only(&dialled, "by_entry");
    assert!(by_entry.ok && by_entry.version.is_some(), "{by_entry:?}");
    assert!(only(&dialled, "by_users (md)").ok, "{dialled:?}");
    let refused = only(&dialled, "by_users (scram)");
    assert!(
        !refused.ok && refused.result.contains("28P01"),
        "{refused:?}"
    );
    assert!(
        only(&dialled, "wrong").result.contains("3D000"),
        "{dialled:?}"
    );
    assert!(!table(&dialled).contains("canary"));
}

#[test]
fn the_dead_the_silent_and_strangers_fail_within_the_timeout() {
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let http = Some(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]);
    let text = [
        listener("redis", "dead"),
        entry("dead", "redis", dead, ""),
        entry("silent", "redis", stranger(None), ""),
        entry("http", "redis", stranger(http), ""),
        entry("dead-pg", "postgres", dead, ""),
        entry("silent-pg", "postgres", stranger(None), ""),
        entry("http-pg", "postgres", stranger(http), ""),
        entry(
            "no-tls",
            "postgres",
            stranger(Some(b"N")),
            "tls = \"require\"",
        ),
    ]
    .concat();
    let start = Instant::now();
    let dialled = check_dial(&config(&text, ""), Duration::from_millis(500));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "they do not add up"
    );
    assert!(dialled.iter().all(|d| !d.ok), "{dialled:?}");
    for (name, says) in [
        ("dead", "cannot connect"),
        ("silent", "in time"),
        ("http", "not answer like Redis"),
        ("dead-pg", "cannot connect"),
        ("silent-pg", "in time"),
        ("http-pg", "not answer like Postgres"),
        ("no-tls", "does not offer TLS"),
    ] {
        let found = only(&dialled, name);
        assert!(found.result.contains(says), "{name}: {found:?}");
    }
}

#[test]
fn the_command_prints_a_table_and_ends_with_0_or_2() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("parhelion.toml");
    let good = listener("redis", "cache") + &entry("cache", "redis", server.address(), "");
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let bad = good.clone() + &entry("gone", "redis", dead, "");
    for (text, offline, code, says) in [
        (good.as_str(), false, 0, "ok: answers"),
        (bad.as_str(), false, 2, "FAILED: cannot connect"),
        (bad.as_str(), true, 0, "is valid"),
        (
            "[general]\npase = 1\n",
            false,
            2,
            ":2: general.pase: unknown key",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_parhelion"));
        command.arg("check").arg("--config").arg(&path);
        if offline {
            command.arg("--offline");
        }
        let output = command.output().unwrap();
        let shown = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(code), "{shown}");
        assert!(shown.contains(says), "{shown}");
    }
}
