//! Passwords, of clients and of the configuration, are in nothing that the proxy shows of itself.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::mpsc::Receiver;

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::servers::{
    PostgresOptions, PostgresServer, PostgresUser, RedisOptions, RedisServer, UserAuth,
};
use parhelion::testing::wait::eventually;
use serde_json::Value;
use support::faults::{Ledger, PATIENCE, closed, postgres, redis, start};
use support::ingest::ingest;
use support::pg::{PgClient, wire};
use support::resp::RespClient;

/// Everything that the proxy shows of itself.
fn everything(proxy: &mut ProxyProcess, journal: &std::path::Path) -> Vec<(String, String)> {
    let mut shown: Vec<(String, String)> = [
        "/metrics",
        "/api/status",
        "/api/mirrors",
        "/api/databases",
        "/api/divergences?limit=1000",
        "/api/clients",
        "/api/servers",
        "/api/queries",
        "/api/latency",
        "/api/metrics",
        "/api/changes",
        "/api/config",
        "/api/report",
        "/report",
        "/",
    ]
    .into_iter()
    .map(|path| (path.to_owned(), proxy.get(path).unwrap()))
    .collect();
    proxy.terminate();
    shown.push(("log".to_owned(), proxy.log().join("\n")));
    let journal = std::fs::read_to_string(journal).unwrap_or_default();
    shown.push(("journal".to_owned(), journal));
    shown
}

/// What Sentry was told; something must have been.
fn told_to_sentry(events: &Receiver<Value>) -> (String, String) {
    let first = events.recv_timeout(PATIENCE);
    let mut all = vec![first.expect("nothing was told to Sentry").to_string()];
    all.extend(events.try_iter().map(|event| event.to_string()));
    println!("{} events of Sentry, such as {}", all.len(), all[0]);
    ("Sentry".to_owned(), all.join("\n"))
}

fn journal_of(shown: &[(String, String)]) -> &str {
    let journal = shown.iter().find(|(place, _)| place == "journal");
    &journal.unwrap().1
}

fn assert_unseen(shown: &[(String, String)]) {
    for (place, text) in shown {
        let at = text.find("canary");
        let around = at.map(|at| &text[at.saturating_sub(200)..(at + 60).min(text.len())]);
        assert!(at.is_none(), "in {place}: {around:?}");
    }
}

#[test]
fn passwords_of_redis_clients_are_shown_nowhere() {
    let primary = RedisServer::start(RedisOptions {
        password: Some("canary-require".to_owned()),
        ..RedisOptions::default()
    })
    .unwrap();
    // It has another opinion of everything, so that everything diverges.
    let mirror = redis();
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("divergences.jsonl");
    let (dsn, events) = ingest();
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(mirror.address())
        .general(&format!("divergence_log = \"{}\"", journal.display()))
        .section(&format!("[sentry]\ndsn = \"{dsn}\"\n"))
        .env("PARHELION_LOG", "trace");
    let mut proxy = start(&options);
    let mut client = RespClient::connect(proxy.address());
    let commands: [&[&str]; 9] = [
        &["AUTH", "canary-wrong"],
        &["AUTH", "default", "canary-wrong-too"],
        &["HELLO", "3", "AUTH", "default", "canary-require"],
        &["AUTH", "canary-require"],
        &["ACL", "SETUSER", "bob", "on", ">canary-acl", "~*", "+@all"],
        &["CONFIG", "SET", "masterauth", "canary-config"],
        &["CONFIG", "GET", "masterauth"],
        &[
            "MIGRATE",
            "127.0.0.1",
            "1",
            "k",
            "0",
            "1",
            "AUTH",
            "canary-migrate",
        ],
        &["EVAL", "return redis.call('nosuch', 'canary-script')", "0"],
    ];
    for command in commands {
        client.call(command);
    }
    // One known difference, so that the journal and the store are not just empty.
    assert_eq!(
        mirror.command(&["SET", "differs", "1"]).unwrap(),
        b"+OK\r\n"
    );
    client.call(&["GET", "differs"]);
    Ledger::settled(proxy.control());
    let mut shown = everything(&mut proxy, &journal);
    shown.push(told_to_sentry(&events));
    let told = journal_of(&shown);
    assert!(told.contains("differs"), "the journal is not written");
    assert_unseen(&shown);
}

#[test]
fn passwords_in_postgres_traffic_are_shown_nowhere() {
    let user = PostgresUser {
        name: "carla".to_owned(),
        password: "canary-scram".to_owned(),
        auth: UserAuth::Scram,
    };
    let primary = PostgresServer::start(PostgresOptions {
        users: vec![user],
        ..PostgresOptions::default()
    })
    .unwrap();
    let mirror = postgres();
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("divergences.jsonl");
    let (dsn, events) = ingest();
    let options = ProxyOptions::new("postgres", primary.address())
        .mirror(mirror.address())
        .general(&format!("divergence_log = \"{}\"", journal.display()))
        .section(&format!("[sentry]\ndsn = \"{dsn}\"\n"))
        .env("PARHELION_LOG", "trace");
    let mut proxy = start(&options);
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    for sql in [
        // On the mirror there is no carla: each of these diverges.
        "ALTER ROLE carla PASSWORD 'canary-alter'",
        "ALTER USER carla WITH ENCRYPTED PASSWORD 'canary-alter-user'",
        "DO $$ BEGIN EXECUTE 'ALTER ROLE carla PASSWORD ''canary-do'''; END $$",
        "CREATE ROLE dora LOGIN PASSWORD 'canary-create'",
        "ALTER ROLE carla PASSWORD $x$canary-dollar$x$",
        "ALTER ROLE carla PASSWORD E'canary-escape'",
        "ALTER ROLE carla PASSWORD U&'canary-unicode'",
        "SELECT 'canary-literal'::text, current_setting('nosuch.setting')",
    ] {
        client.query(sql);
    }
    client.send(&wire::parse(
        "",
        "ALTER ROLE carla PASSWORD 'canary-parse'",
        &[],
    ));
    client.send(&wire::bind("", "", 0, &[], 0));
    client.send(&wire::execute("", 0));
    client.send(&wire::sync());
    client.until_ready();
    let mut refused = PgClient::open(proxy.address());
    refused.send(&wire::startup(&[
        ("user", "nobody"),
        ("options", "-c canary.password=canary-startup"),
    ]));
    let _ = closed(&mut refused.stream);
    Ledger::settled(proxy.control());
    let mut shown = everything(&mut proxy, &journal);
    shown.push(told_to_sentry(&events));
    let told = journal_of(&shown);
    assert!(told.contains('{'), "the journal is not written");
    assert_unseen(&shown);
}

#[test]
fn passwords_of_the_configuration_are_shown_nowhere() {
    let mut server = RedisServer::start(RedisOptions {
        password: Some("canary-mirror".to_owned()),
        ..RedisOptions::default()
    })
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("password");
    std::fs::write(&secret, "canary-mirror").unwrap();
    let primary = redis();
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(server.address())
        .args(&["--password-file", secret.to_str().unwrap()])
        .env("PARHELION_LOG", "trace");
    let mut proxy = start(&options);
    let mut client = RespClient::connect(proxy.address());
    client.call(&["SET", "a", "1"]);
    let books = Ledger::settled(proxy.control());
    assert_eq!(books.delivered, 1, "{books:?}");
    // Now the login fails: the error must not quote it.
    server.kill9().unwrap();
    client.call(&["SET", "a", "2"]);
    let shown = everything(&mut proxy, &folder.path().join("none"));
    assert_unseen(&shown);
}

#[test]
fn passwords_that_a_mirror_refuses_are_shown_nowhere() {
    for protocol in ["redis", "postgres"] {
        // The servers of the tests live as long as the proxy does.
        let redis_mirror = RedisServer::start(RedisOptions {
            password: Some("canary-right".to_owned()),
            ..RedisOptions::default()
        });
        let (redis_primary, redis_mirror) = (redis(), redis_mirror.unwrap());
        let postgres_mirror = PostgresServer::start(PostgresOptions {
            users: vec![PostgresUser {
                name: "carla".to_owned(),
                password: "canary-right".to_owned(),
                auth: UserAuth::Scram,
            }],
            ..PostgresOptions::default()
        });
        let (postgres_primary, postgres_mirror) = (postgres(), postgres_mirror.unwrap());
        let (primary, mirror, user, refusal) = match protocol {
            "redis" => (
                redis_primary.address(),
                redis_mirror.address(),
                "",
                "it refused the login",
            ),
            _ => (
                postgres_primary.address(),
                postgres_mirror.address(),
                "user = \"carla\"\ndatabase_name = \"postgres\"\n",
                "28P01",
            ),
        };
        let (dsn, events) = ingest();
        let dsn = dsn.replace("public@", "canary-dsn@");
        let options = ProxyOptions::new(protocol, primary)
            .section(&format!(
                "[[databases]]\nname = \"stale\"\nprotocol = \"{protocol}\"\nhost = \"{}\"\nport = {}\n{user}\
                 password = \"canary-stale\"\n\
                 [[mirroring]]\nsource_db = \"primary\"\ndestination_db = \"stale\"\n\
                 [sentry]\ndsn = \"{dsn}\"\n",
                mirror.ip(),
                mirror.port()
            ))
            .general("drain_timeout = \"1s\"")
            .env("PARHELION_LOG", "trace");
        let mut proxy = start(&options);
        let refused = eventually(PATIENCE, || {
            match protocol {
                "redis" => drop(RespClient::connect(proxy.address()).call(&["SET", "a", "1"])),
                _ => {
                    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
                    client.query("SELECT 1");
                }
            }
            proxy.log().join("\n").contains(refusal).then_some(())
        });
        assert!(refused.is_some(), "{protocol}: the refusal is not told");
        let mut shown = everything(&mut proxy, std::path::Path::new("/nonexistent"));
        let told: Vec<String> = events.try_iter().map(|event| event.to_string()).collect();
        shown.push(("Sentry".to_owned(), told.join("\n")));
        assert_unseen(&shown);
    }
}
