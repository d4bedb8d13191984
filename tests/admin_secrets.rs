//! Canary passwords in logins, statements and the config show up nowhere: no log (at its most talkative), no metric, no
//! answer of the API, no journal, no report.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use parhelion::testing::proxy::ProxyProcess;
use parhelion::testing::servers::{
    PostgresOptions, PostgresServer, PostgresUser, RedisOptions, RedisServer, UserAuth,
};
use parhelion::testing::wait::{eventually, free_port};
use support::ingest::ingest;
use support::{run, run_ok};

const TIMEOUT: Duration = Duration::from_secs(60);

fn user(name: &str, auth: UserAuth) -> PostgresUser {
    PostgresUser {
        name: name.into(),
        password: format!("canary-{name}"),
        auth,
    }
}

#[test]
fn canary_passwords_show_up_nowhere() {
    let primary = PostgresServer::start(PostgresOptions {
        users: vec![
            user("scrammed", UserAuth::Scram),
            user("plain", UserAuth::Password),
        ],
        ..PostgresOptions::default()
    })
    .unwrap();
    let mirror = PostgresServer::start(PostgresOptions {
        users: vec![user("mirrored", UserAuth::Scram)],
        ..PostgresOptions::default()
    })
    .unwrap();
    let redis = RedisServer::start(RedisOptions::default()).unwrap();
    let candidate = RedisServer::start(RedisOptions::default()).unwrap();
    let local = || SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    let (address, redis_address, control) = (local(), local(), local());
    let (dsn, events) = ingest();
    let dsn = dsn.replace("public@", "canary-dsn@");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = format!(
        "[general]\ncores = [0]\ncontrol = \"{control}\"\ndivergence_log = \"journal\"\n\
         [sentry]\ndsn = \"{dsn}\"\n\
         [[listeners]]\naddress = \"{address}\"\n\
         [[listeners]]\naddress = \"{redis_address}\"\nprotocol = \"redis\"\ndatabase = \"cache\"\n\
         [[databases]]\nname = \"postgres\"\nhost = \"127.0.0.1\"\nport = {}\n\
         [[databases]]\nname = \"next\"\nhost = \"127.0.0.1\"\nport = {}\ndatabase_name = \"postgres\"\n\
         user = \"mirrored\"\npassword = \"canary-mirrored\"\n\
         [[databases]]\nname = \"cache\"\nprotocol = \"redis\"\nhost = \"127.0.0.1\"\nport = {}\n\
         [[databases]]\nname = \"cache_next\"\nprotocol = \"redis\"\nhost = \"127.0.0.1\"\nport = {}\n\
         [[mirroring]]\nsource_db = \"postgres\"\ndestination_db = \"next\"\n\
         [[mirroring]]\nsource_db = \"cache\"\ndestination_db = \"cache_next\"\n",
        primary.port(),
        mirror.port(),
        redis.port(),
        candidate.port(),
    );
    std::fs::write(path("p.toml"), text).unwrap();
    let users =
        "[[users]]\nname = \"scrammed\"\ndatabase = \"postgres\"\npassword = \"canary-users\"\n";
    std::fs::write(path("users.toml"), users).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_parhelion"));
    command
        .arg("run")
        .arg("--config")
        .arg(path("p.toml"))
        .env("PARHELION_LOG", "trace");
    let mut proxy = ProxyProcess::spawn(command, address, control).unwrap();

    let psql = |user: &str, password: &str, sql: &str| {
        let mut command = Command::new(primary.program("psql"));
        command.args([
            "-X",
            "-h",
            "127.0.0.1",
            "-p",
            &address.port().to_string(),
            "-U",
            user,
        ]);
        command
            .args(["-d", "postgres", "-c", sql])
            .env("PGPASSWORD", password);
        run(&mut command, b"", TIMEOUT)
    };
    for name in ["scrammed", "plain"] {
        assert!(
            psql(name, &format!("canary-{name}"), "SELECT 1")
                .status
                .success()
        );
        assert!(!psql(name, "canary-wrong", "SELECT 1").status.success());
    }
    // The mirror has no such roles: each of these is a divergence with a record.
    for sql in [
        "ALTER ROLE plain PASSWORD 'canary-plain'",
        "CREATE ROLE other LOGIN PASSWORD $$canary-dollar$$",
        "ALTER ROLE other PASSWORD E'canary-\\x65scape'",
        "SELECT 1 /* canary-comment */ WHERE 'canary-literal' = 'x' OR version() IS NULL",
    ] {
        assert!(psql("postgres", "", sql).status.success(), "{sql}");
    }
    for (commands, answer) in [
        (
            "AUTH canary-auth\nAUTH default canary-auth\nHELLO 3 AUTH default canary-hello\nPING",
            "PONG",
        ),
        (
            "ACL SETUSER ops on >canary-acl ~* +@all\nAUTH ops canary-acl\nSET k 1",
            "OK",
        ),
        ("CONFIG SET masterauth canary-master\nGET k", "1"),
    ] {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &redis_address.port().to_string()]);
        let out = run_ok(&mut cli, commands.as_bytes(), TIMEOUT);
        assert!(out.contains(answer), "{out}");
    }
    let divergences = || {
        let text = proxy.get("/api/divergences").ok()?;
        (text.contains("alter role") || text.contains("ALTER ROLE")).then_some(text)
    };
    assert!(
        eventually(TIMEOUT, divergences).is_some(),
        "{:?}",
        proxy.get("/api/divergences")
    );

    let mut seen = Vec::new();
    for page in [
        "/metrics",
        "/report",
        "/api/report",
        "/api/status",
        "/api/mirrors",
        "/api/databases",
        "/api/clients",
        "/api/servers",
        "/api/config",
        "/api/divergences?limit=1000",
        "/api/queries?limit=1000",
        "/api/latency",
        "/api/metrics",
        "/api/changes",
    ] {
        seen.push((page.to_owned(), proxy.get(page).unwrap()));
    }
    // All that the console shows, by its own list.
    let admin = |sql: &str| {
        let mut command = Command::new(primary.program("psql"));
        let port = address.port().to_string();
        command.args(["-X", "-A", "-t", "-h", "127.0.0.1", "-p", &port]);
        command.args(["-U", "postgres", "-d", "admin", "-c", sql]);
        run_ok(&mut command, b"", TIMEOUT)
    };
    let mut shows = 0;
    for line in admin("SHOW HELP").lines() {
        let statement = line
            .split(['|', '[', '('])
            .next()
            .unwrap_or_default()
            .trim();
        if statement.starts_with("SHOW ") {
            seen.push((statement.to_owned(), admin(statement)));
            shows += 1;
        }
    }
    assert!(shows > 10, "{}", admin("SHOW HELP"));
    let mut ctl = Command::new(env!("CARGO_BIN_EXE_parhelion"));
    let url = format!("http://{control}");
    seen.push((
        "ctl reload".into(),
        run_ok(ctl.args(["ctl", "--url", &url, "reload"]), b"", TIMEOUT),
    ));
    let first = events.recv_timeout(TIMEOUT).expect("Sentry is told");
    proxy.terminate();
    for event in std::iter::once(first).chain(events.try_iter()) {
        seen.push(("Sentry".into(), event.to_string()));
    }
    seen.push((
        "the journal".into(),
        std::fs::read_to_string(path("journal")).unwrap(),
    ));
    seen.push(("the log".into(), proxy.log().join("\n")));
    for (place, text) in seen {
        let at = text.find("canary");
        let around = at.map(|at| {
            text[at.saturating_sub(200)..]
                .chars()
                .take(300)
                .collect::<String>()
        });
        assert!(at.is_none(), "{place} shows a secret: {around:?}");
    }
}
