//! Real Postgres clients work through the proxy unchanged.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::Duration;

use parhelion::testing::servers::{PostgresOptions, PostgresServer};
use support::proxy::Proxy;
use support::{python, run, run_ok};

const TIMEOUT: Duration = Duration::from_secs(90);
const DATABASE: &str = "shop";

fn behind_proxy() -> (PostgresServer, Proxy, String) {
    let options = PostgresOptions {
        databases: vec![DATABASE.into()],
        ..PostgresOptions::default()
    };
    let server = PostgresServer::start(options).unwrap();
    let proxy = Proxy::postgres(server.address());
    let port = proxy.address().port().to_string();
    (server, proxy, port)
}

fn tool(server: &PostgresServer, name: &str, port: &str) -> Command {
    let mut command = Command::new(server.program(name));
    command.args(["-h", "127.0.0.1", "-p", port, "-U", "postgres"]);
    command
}

#[test]
fn psql_prints_what_it_prints_on_a_direct_connection() {
    let (server, _proxy, port) = behind_proxy();
    let direct = server.port().to_string();
    let script = include_bytes!("support/psql_script.sql");
    let answers = [&direct, &port].map(|port| {
        let output = run(
            tool(&server, "psql", port).args(["-X", "-a", "-d", DATABASE]),
            script,
            TIMEOUT,
        );
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        (
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    });
    assert!(answers[0].0.contains("(3 rows)"), "{}", answers[0].0);
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn pgbench_loses_no_transaction_in_any_query_mode() {
    let (server, _proxy, port) = behind_proxy();
    run_ok(
        tool(&server, "pgbench", &port).args(["-i", "-q", "-s", "1", DATABASE]),
        b"",
        TIMEOUT,
    );
    for mode in ["simple", "extended", "prepared"] {
        let mut command = tool(&server, "pgbench", &port);
        command.args([
            "-n", "-M", mode, "-c", "8", "-j", "2", "-t", "100", DATABASE,
        ]);
        let said = run_ok(&mut command, b"", TIMEOUT);
        assert!(
            said.contains("actually processed: 800/800"),
            "{mode}: {said}"
        );
    }
    assert_eq!(
        server
            .sql(DATABASE, "SELECT count(*) FROM pgbench_history")
            .unwrap(),
        "2400"
    );
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)";
    assert_eq!(server.sql(DATABASE, sums).unwrap(), "t");
}

#[test]
fn pg_dump_through_the_proxy_equals_a_direct_one() {
    let (server, _proxy, port) = behind_proxy();
    server
        .sql(
            DATABASE,
            "CREATE TABLE d AS SELECT i, md5(i::text) FROM generate_series(1, 10000) i",
        )
        .unwrap();
    let direct = server.port().to_string();
    // Newer versions of pg_dump print a random token.
    let dump = |port: &str| {
        let text = run_ok(
            tool(&server, "pg_dump", port).args(["-d", DATABASE]),
            b"",
            TIMEOUT,
        );
        text.lines()
            .filter(|line| !line.contains("restrict "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(dump(&direct) == dump(&port));
}

#[test]
fn psycopg_works() {
    let (_server, _proxy, port) = behind_proxy();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/support/postgres_client.py"
    );
    let said = run_ok(
        Command::new(python()).args([script, "127.0.0.1", &port, DATABASE]),
        b"",
        TIMEOUT,
    );
    assert_eq!(said.trim(), "fine");
}
