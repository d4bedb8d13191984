//! The drivers that applications use, through the proxy in every way it can be run: relayed logins, terminated ones with a
//! primary connection each, terminated ones with shared connections.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::pg_front::{Front, FrontOptions, PASSWORD, SHOP};
use support::{python, run_ok};

const TIMEOUT: Duration = Duration::from_secs(120);

fn relay() -> Front {
    let mut options = FrontOptions::terminate("");
    options.database.clear();
    Front::start(options)
}

fn terminate() -> Front {
    Front::start(FrontOptions::terminate(""))
}

fn shared() -> Front {
    let lines = "pool_mode = \"transaction\"\npool_size = 4";
    Front::start(FrontOptions::terminate(lines))
}

fn psycopg(front: &Front) {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/support/postgres_client.py"
    );
    let mut command = Command::new(python());
    command.args([script, "127.0.0.1", &front.port(), SHOP, "ann"]);
    command.env("PGPASSWORD", PASSWORD);
    assert_eq!(run_ok(&mut command, b"", TIMEOUT).trim(), "fine");
}

fn node_postgres(front: &Front) {
    let root = env!("CARGO_MANIFEST_DIR");
    let modules = format!("{root}/target/node");
    assert!(
        Path::new(&modules).exists(),
        "{modules} is missing: run tests/setup"
    );
    let script = format!("{root}/tests/support/postgres_client.js");
    let mut command = Command::new("node");
    command.args([&script, &modules, "127.0.0.1", &front.port(), SHOP, "ann"]);
    command.env("PGPASSWORD", PASSWORD);
    assert_eq!(run_ok(&mut command, b"", TIMEOUT).trim(), "fine");
}

fn tokio_postgres(front: &Front) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let script = async {
        let connect = || async {
            let (client, connection) = tokio_postgres::Config::new()
                .host("127.0.0.1")
                .port(front.proxy.address().port())
                .dbname(SHOP)
                .user("ann")
                .password(PASSWORD)
                .connect(tokio_postgres::NoTls)
                .await
                .unwrap();
            tokio::spawn(connection);
            client
        };
        let (mut one, two) = (connect().await, connect().await);
        one.batch_execute("CREATE TABLE IF NOT EXISTS rusty (id int PRIMARY KEY, name text)")
            .await
            .unwrap();
        let insert = one
            .prepare("INSERT INTO rusty VALUES ($1, $2)")
            .await
            .unwrap();
        let select = two
            .prepare("SELECT name FROM rusty WHERE id = $1")
            .await
            .unwrap();
        for id in 0..50_i32 {
            let transaction = one.transaction().await.unwrap();
            let name = format!("n{id}");
            transaction.execute(&insert, &[&id, &name]).await.unwrap();
            assert!(two.query(&select, &[&id]).await.unwrap().is_empty());
            transaction.commit().await.unwrap();
            let rows = two.query(&select, &[&id]).await.unwrap();
            assert_eq!(rows[0].get::<_, String>(0), name);
        }
        // Pipelined: every query is sent before the first answer is read.
        let name = |id: i32| {
            let (two, select) = (&two, &select);
            async move {
                let row = two.query_one(select, &[&id]).await.unwrap();
                row.get::<_, String>(0)
            }
        };
        let names = tokio::join!(name(1), name(2), name(3), name(4), name(49));
        assert_eq!((names.0.as_str(), names.4.as_str()), ("n1", "n49"));
        let error = one.execute(&insert, &[&1_i32, &"again"]).await.unwrap_err();
        assert_eq!(
            error.code().map(tokio_postgres::error::SqlState::code),
            Some("23505")
        );
        let token = two.cancel_token();
        let sleep = two.simple_query("SELECT pg_sleep(60)");
        let cancel = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                token.cancel_query(tokio_postgres::NoTls).await.unwrap();
            }
        };
        let error = tokio::select! {
            answer = sleep => answer.unwrap_err(),
            () = cancel => unreachable!(),
        };
        assert_eq!(
            error.code().map(tokio_postgres::error::SqlState::code),
            Some("57014")
        );
        one.batch_execute("DROP TABLE rusty").await.unwrap();
    };
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, script).await.unwrap() });
}

#[test]
fn psycopg_and_libpqs_pipeline_mode_through_relayed_logins() {
    psycopg(&relay());
}

#[test]
fn psycopg_and_libpqs_pipeline_mode_through_terminated_logins() {
    psycopg(&terminate());
}

#[test]
fn psycopg_and_libpqs_pipeline_mode_through_shared_connections() {
    psycopg(&shared());
}

#[test]
fn node_postgres_through_relayed_logins() {
    node_postgres(&relay());
}

#[test]
fn node_postgres_through_terminated_logins() {
    node_postgres(&terminate());
}

#[test]
fn node_postgres_through_shared_connections() {
    node_postgres(&shared());
}

#[test]
fn tokio_postgres_through_relayed_logins() {
    tokio_postgres(&relay());
}

#[test]
fn tokio_postgres_through_terminated_logins() {
    tokio_postgres(&terminate());
}

#[test]
fn tokio_postgres_through_shared_connections() {
    tokio_postgres(&shared());
}
