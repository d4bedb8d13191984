//! Latency by query fingerprint: what ran, how often, and how long on either side, the same on every surface.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::pg::{PgClient, wire};
use support::pg_pair::{Pair, PairOptions, SHOP, fails, ok, rows, sqlstate};
use support::run_ok;

fn queries(pair: &Pair, parameters: &str) -> Vec<Value> {
    let text = pair
        .proxy
        .get(&format!("/api/queries{parameters}"))
        .unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    value["queries"]
        .as_array()
        .unwrap_or_else(|| panic!("{text}"))
        .clone()
}

fn found<'a>(list: &'a [Value], query: &str) -> &'a Value {
    let mut known = list.iter().filter(|item| item["query"] == query);
    let item = known
        .next()
        .unwrap_or_else(|| panic!("no {query} in {list:#?}"));
    assert!(known.next().is_none(), "{query} is there twice");
    item
}

fn number(item: &Value, at: &str) -> u64 {
    item.pointer(at)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("{at} in {item:#}"))
}

#[test]
fn the_query_that_is_slower_on_the_mirror_comes_first_on_every_surface() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t(id int, name text)");
    let function = |ms: f64| {
        let sleep = ms / 1000.0;
        format!(
            "CREATE FUNCTION work(int) RETURNS int LANGUAGE sql AS 'SELECT pg_sleep({sleep}); SELECT $1'"
        )
    };
    pair.primary.sql(SHOP, &function(5.0)).unwrap();
    pair.mirror.sql(SHOP, &function(40.0)).unwrap();
    let mut client = pair.client();
    for id in 0..10 {
        ok(
            &mut client,
            &format!("INSERT INTO t VALUES ({id}, 'n{id}')"),
        );
        ok(&mut client, &format!("select  work({id}) -- as it were"));
        // In a transaction, several statements in one message, and prepared: each by itself.
        ok(&mut client, "BEGIN");
        ok(
            &mut client,
            &format!("UPDATE t SET name = 'x' WHERE id = {id}; SELECT work(1)"),
        );
        ok(&mut client, "COMMIT");
        client.send(
            &[
                wire::parse("", "SELECT work($1) + 1", &[23]),
                wire::bind("", "", 0, &[Some(b"1")], 0),
                wire::execute("", 0),
                wire::sync(),
            ]
            .concat(),
        );
        assert!(sqlstate(&client.until_ready()).is_none());
    }
    pair.clean();
    let list = queries(&pair, "?mirror=staging_db");
    let insert = found(&list, "insert into t values(?)");
    assert_eq!(number(insert, "/calls"), 10);
    assert_eq!(number(found(&list, "begin"), "/calls"), 10);
    assert_eq!(number(found(&list, "commit"), "/calls"), 10);
    // A message of several statements is one query: the client gets its answer as one.
    for query in [
        "select work(?)",
        "update t set name = ? where id = ?; select work(?)",
        "select work(?) + ?",
    ] {
        let item = found(&list, query);
        assert_eq!(number(item, "/calls"), 10, "{item:#}");
        let (primary, mirror) = (
            number(item, "/primary/p50_ns"),
            number(item, "/mirror/p50_ns"),
        );
        assert!((5_000_000..35_000_000).contains(&primary), "{item:#}");
        assert!(mirror >= 40_000_000, "{item:#}");
        assert!(item["ratio"].as_f64().unwrap() > 1.5, "{item:#}");
        assert_eq!(item["fingerprint"].as_str().map(str::len), Some(16));
    }
    assert!(number(insert, "/mirror/p50_ns") < 40_000_000, "{insert:#}");
    let first = list[0]["query"].as_str().unwrap();
    assert!(first.contains("work"), "{first} comes first");

    // The same over SQL and ctl.
    let wanted: Vec<&str> = list
        .iter()
        .map(|item| item["query"].as_str().unwrap())
        .collect();
    let mut admin = PgClient::connect_with(
        pair.proxy.address(),
        &[("user", "postgres"), ("database", "admin")],
    )
    .0;
    let answer = admin.query("SHOW QUERIES FOR staging_db BY regressed LIMIT 50");
    assert_eq!(rows(&answer).len(), wanted.len());
    let texts: Vec<String> = answer
        .iter()
        .filter(|message| message[0] == b'D')
        .map(|row| String::from_utf8_lossy(row).into_owned())
        .collect();
    for (row, query) in texts.iter().zip(&wanted) {
        assert!(row.ends_with(query), "{row}: {query}");
    }
    let url = format!("http://{}", pair.proxy.control());
    let mut ctl = Command::new(env!("CARGO_BIN_EXE_parhelion"));
    ctl.args([
        "ctl",
        "--url",
        &url,
        "--json",
        "queries",
        "--mirror",
        "staging_db",
    ]);
    let text = run_ok(&mut ctl, b"", Duration::from_secs(20));
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["queries"].as_array().unwrap(), &list);
    let mut ctl = Command::new(env!("CARGO_BIN_EXE_parhelion"));
    ctl.args([
        "ctl", "--url", &url, "queries", "--sort", "calls", "--limit", "3",
    ]);
    let text = run_ok(&mut ctl, b"", Duration::from_secs(20));
    assert!(
        text.contains("mirror_p99  ") && !text.contains("_ns") && text.lines().count() == 4,
        "{text}"
    );
    assert_eq!(fails(&mut admin, "SHOW QUERIES BY colour"), "42601");
    assert_eq!(fails(&mut admin, "SHOW QUERIES FOR nobody"), "42704");
    for (parameters, status) in [("?mirror=nobody", "404"), ("?sort=colour", "422")] {
        let answer = pair.proxy.get(&format!("/api/queries{parameters}"));
        let text = format!("{answer:?}");
        assert!(text.contains(status), "{parameters}: {text}");
    }
}

#[test]
fn errors_and_divergences_are_told_of_the_query_that_has_them() {
    let pair = Pair::new();
    pair.primary
        .sql(SHOP, "CREATE TABLE only_here(id int)")
        .unwrap();
    pair.both("CREATE TABLE t(id int)");
    pair.mirror.sql(SHOP, "INSERT INTO t VALUES (7)").unwrap();
    let mut client = pair.client();
    for _ in 0..5 {
        ok(&mut client, "SELECT id FROM only_here");
        ok(&mut client, "SELECT count(*) FROM t");
        ok(&mut client, "SELECT 1");
        fails(&mut client, "SELECT 1/0");
    }
    pair.settled();
    let list = queries(&pair, "?sort=calls");
    let numbers = |query: &str| {
        let item = found(&list, query);
        ["/calls", "/errors", "/divergences", "/mirror/count"].map(|at| number(item, at))
    };
    assert_eq!(numbers("select id from only_here"), [5, 5, 5, 0]);
    assert_eq!(numbers("select count(*) from t"), [5, 0, 5, 5]);
    assert_eq!(numbers("select ?"), [5, 0, 0, 5]);
    // What fails on the primary has no latency that anybody wants compared.
    assert!(
        list.iter().all(|item| item["query"] != "select ? / ?"),
        "{list:#?}"
    );
}

#[test]
fn pipelined_and_prepared_queries_are_counted_and_too_many_fingerprints_are_other() {
    let pair = Pair::with(PairOptions::general("mirror_queue = 4096"));
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    client.send(
        &[
            wire::parse("add", "INSERT INTO t VALUES ($1)", &[23]),
            wire::sync(),
        ]
        .concat(),
    );
    client.until_ready();
    let mut bytes = Vec::new();
    for id in 0..1000 {
        bytes.extend(wire::bind(
            "",
            "add",
            0,
            &[Some(id.to_string().as_bytes())],
            0,
        ));
        bytes.extend([wire::execute("", 0), wire::sync()].concat());
    }
    let sender = client.send_aside(bytes);
    for _ in 0..1000 {
        client.until_ready();
    }
    sender.join().unwrap();
    pair.clean();
    let list = queries(&pair, "");
    let insert = found(&list, "insert into t values(?)");
    assert_eq!(number(insert, "/calls"), 1000);
    assert_eq!(number(insert, "/mirror/count"), 1000);
    for name in 0..700 {
        ok(&mut client, &format!("SELECT 1 AS n{name}"));
    }
    pair.clean();
    let list = queries(&pair, "?limit=1000");
    assert_eq!(list.len(), 501);
    let other = found(&list, "other");
    // The insert has a slot, and 499 of the names.
    assert_eq!(number(other, "/calls"), 201);
}
