//! Clients that pipeline, before a healthy mirror, a stopped one and one whose connections die: nothing is lost to a mirror as
//! fast as the primary, the client waits for no mirror, and the ledger stays exact.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use parhelion::limits::PIPELINE_QUEUE_FACTOR;
use parhelion::testing::wait::eventually;
use support::pg::{PgClient, wire};
use support::pg_pair::{PATIENCE, Pair, PairOptions, SHOP, ok, sqlstate};
use support::{python, run_ok};

/// Sends everything from a thread of its own and reads until so many ReadyForQuery came; how long that took.
fn pipeline(client: &mut PgClient, units: &[Vec<u8>]) -> Duration {
    let began = Instant::now();
    let sender = client.send_aside(units.concat());
    for at in 0..units.len() {
        let answer = client.until_ready();
        assert!(sqlstate(&answer).is_none(), "unit {at}");
    }
    sender.join().unwrap();
    began.elapsed()
}

fn extended(sql: &str) -> Vec<u8> {
    [
        wire::parse("", sql, &[]),
        wire::bind("", "", 0, &[], 0),
        wire::describe(b'P', ""),
        wire::execute("", 0),
        wire::sync(),
    ]
    .concat()
}

fn named(name: &str, parameter: &str) -> Vec<u8> {
    [
        wire::bind("", name, 0, &[Some(parameter.as_bytes())], 0),
        wire::execute("", 0),
        wire::sync(),
    ]
    .concat()
}

/// How the ids of t lie on the mirror: how many, and how many do not stand behind their predecessor.
const ORDER: &str = "SELECT count(*), count(*) FILTER (WHERE id <> before + 1) \
    FROM (SELECT id, lag(id) OVER (ORDER BY at) AS before FROM t) AS pairs";

/// A machine that is busy with other things may keep the mirror from running for longer than its rings last; then it is
/// tried again.
const ATTEMPTS: usize = 4;

const TABLE: &str = "CREATE TABLE t(id int, at bigserial)";

#[test]
fn ten_thousand_pipelined_units_are_all_delivered_in_order() {
    const UNITS: usize = 10_000;
    let pair = Pair::new();
    pair.both(TABLE);
    let mut client = pair.client();
    client.send(
        &[
            wire::parse("add", "INSERT INTO t VALUES ($1)", &[23]),
            wire::sync(),
        ]
        .concat(),
    );
    client.until_ready();
    type Form = (&'static str, fn(usize) -> Vec<u8>);
    let forms: [Form; 3] = [
        ("simple", |id| {
            wire::query(&format!("INSERT INTO t VALUES ({id})"))
        }),
        ("extended", |id| {
            extended(&format!("INSERT INTO t VALUES ({id})"))
        }),
        ("prepared", |id| named("add", &id.to_string())),
    ];
    for (form, unit) in forms {
        let units: Vec<_> = (0..UNITS).map(unit).collect();
        let mut losses = Vec::new();
        for _ in 0..ATTEMPTS {
            pair.both("TRUNCATE t");
            let before = pair.settled();
            let took = pipeline(&mut client, &units);
            let after = pair.settled();
            println!("{form}: {UNITS} units in {took:?}, {after:?}");
            losses.push(after.dropped - before.dropped);
            if after.dropped == before.dropped {
                assert_eq!(after.delivered - before.delivered, UNITS as u64, "{form}");
                pair.mirror_shows(ORDER, "10000|0");
                break;
            }
        }
        assert_eq!(losses.last(), Some(&0), "{form}: {losses:?}");
    }
    pair.clean_but_dropped();
}

#[test]
fn transactions_of_several_statements_in_a_pipeline_are_delivered_whole() {
    let pair = Pair::new();
    pair.both(TABLE);
    let mut client = pair.client();
    let mut units = Vec::new();
    for id in 0..600 {
        for sql in [
            "BEGIN".to_owned(),
            format!("INSERT INTO t VALUES ({id})"),
            "COMMIT".to_owned(),
        ] {
            units.push(wire::query(&sql));
        }
    }
    pipeline(&mut client, &units);
    let ledger = pair.clean();
    assert_eq!((ledger.delivered, ledger.dropped), (600, 0));
    pair.mirror_shows(ORDER, "600|0");
}

/// Everything that ends a run of units, between units that do not.
#[test]
fn a_pipeline_of_all_kinds_of_units_leaves_on_the_mirror_what_it_left_on_the_primary() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t(id int PRIMARY KEY, zone text DEFAULT current_setting('timezone'))");
    let mut client = pair.client();
    let mut bytes = Vec::new();
    let mut cycles = 0;
    let mut add = |more: Vec<u8>| {
        bytes.extend(more);
        cycles += 1;
    };
    let zones = ["Europe/Rome", "Asia/Tokyo", "UTC"];
    for round in 0..60 {
        let id = round * 10;
        let insert = |at: i32| format!("INSERT INTO t(id) VALUES ({})", id + at);
        add(wire::query(&insert(0)));
        add(wire::query(&format!(
            "SET timezone = '{}'",
            zones[round as usize % 3]
        )));
        add(wire::query(&insert(1)));
        add(extended(&insert(2)));
        add(wire::query(&insert(2)));
        add(extended(&insert(1)));
        add(wire::query(&format!("BEGIN; {}; COMMIT", insert(3))));
        add(wire::query(&format!(
            "BEGIN; {}; SELECT 1/0; COMMIT",
            insert(4)
        )));
        add(wire::query("ROLLBACK"));
        let prepare = wire::parse(&format!("s{round}"), "INSERT INTO t(id) VALUES ($1)", &[23]);
        add([prepare, wire::sync()].concat());
        add(named(&format!("s{round}"), &(id + 5).to_string()));
        add(named(&format!("s{round}"), &(id + 6).to_string()));
        let copy = wire::query("COPY t(id) FROM STDIN");
        let line = wire::message(b'd', format!("{}\n", id + 7).as_bytes());
        add([copy, line, wire::message(b'c', b"")].concat());
        add(wire::query(&insert(8)));
    }
    let sender = client.send_aside(bytes);
    for _ in 0..cycles {
        client.until_ready();
    }
    sender.join().unwrap();
    let ledger = pair.settled();
    assert_eq!((ledger.dropped, ledger.errored), (0, 0), "{ledger:?}");
    let rows = "SELECT count(*), md5(string_agg(id || zone, ',' ORDER BY id)) FROM t";
    let wanted = pair.primary.sql(SHOP, rows).unwrap();
    assert!(wanted.starts_with("480|"), "{wanted}");
    pair.mirror_shows(rows, &wanted);
    let api = pair.api("staging_db");
    assert_eq!(api["divergences_total"], 0, "{api:#}");
}

#[test]
fn libpqs_pipeline_mode_loses_nothing() {
    let pair = Pair::new();
    pair.both(TABLE);
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/support/postgres_pipeline.py"
    );
    let port = pair.proxy.address().port().to_string();
    let mut losses = Vec::new();
    for _ in 0..ATTEMPTS {
        pair.both("TRUNCATE t");
        let before = pair.settled();
        let mut command = Command::new(python());
        command.args([script, &port, "prod", "postgres", "10000"]);
        let said = run_ok(&mut command, b"", Duration::from_secs(120));
        assert_eq!(said.trim(), "fine");
        let after = pair.clean_but_dropped();
        losses.push(after.dropped - before.dropped);
        if after.dropped == before.dropped {
            pair.mirror_shows(ORDER, "10000|0");
            return;
        }
    }
    panic!("lost {losses:?}");
}

#[test]
fn a_stopped_mirror_delays_no_pipeline_and_gets_what_its_bounds_hold() {
    const UNITS: usize = 5_000;
    let pair = Pair::with(PairOptions::general("mirror_queue_bytes = \"64KiB\""));
    pair.both(TABLE);
    let mut client = pair.client();
    let units: Vec<_> = (0..UNITS)
        .map(|id| wire::query(&format!("INSERT INTO t VALUES ({id})")))
        .collect();
    let best = |pair: &Pair, client: &mut PgClient| {
        let runs = (0..3).map(|_| {
            let took = pipeline(client, &units);
            if pair.ledger().in_flight < 10 {
                pair.settled();
            }
            took
        });
        runs.min().unwrap()
    };
    let healthy = best(&pair, &mut client);
    pair.settled();
    let before = pair.ledger();
    pair.mirror.pause().unwrap();
    let stopped = best(&pair, &mut client);
    let api = pair.api("staging_db");
    pair.mirror.resume().unwrap();
    println!("{UNITS} units in {healthy:?}, with the mirror stopped in {stopped:?}");
    assert!(
        stopped < healthy * 2 + Duration::from_millis(200),
        "{stopped:?} {healthy:?}"
    );
    // So many times the ring's bytes, and nothing more once the mirror was seen to stand.
    let held = api["queue"]["bytes"].as_u64().unwrap();
    assert!(
        held <= (PIPELINE_QUEUE_FACTOR * 64 * 1024) as u64,
        "{held} bytes held"
    );
    let after = pair.settled();
    assert_eq!(after.observed - before.observed, 3 * UNITS as u64);
    assert!(after.dropped - before.dropped > UNITS as u64, "{after:?}");
    assert_eq!(after.errored, before.errored, "{after:?}");
    let rows = pair.mirror.sql(SHOP, "SELECT count(*) FROM t").unwrap();
    assert_eq!(rows, after.delivered.to_string(), "{after:?}");
}

#[test]
fn mirror_sessions_killed_in_a_pipeline_cost_no_more_than_what_was_on_its_way() {
    const KILLS: u64 = 10;
    let pair = Pair::new();
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    let mut killer = PgClient::connect(pair.mirror.address(), SHOP).0;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
        WHERE application_name = 'parhelion'";
    let mut sent = 0;
    for _ in 0..KILLS {
        let units: Vec<_> = (0..2_000)
            .map(|id| wire::query(&format!("INSERT INTO t VALUES ({id})")))
            .collect();
        let before = pair.ledger().delivered;
        let sender = client.send_aside(units.concat());
        let under_way = eventually(PATIENCE, || {
            (pair.ledger().delivered > before).then_some(())
        });
        assert!(under_way.is_some());
        ok(&mut killer, kill);
        for _ in &units {
            assert!(sqlstate(&client.until_ready()).is_none());
        }
        sender.join().unwrap();
        sent += units.len() as u64;
        let ledger = pair.settled();
        assert_eq!(ledger.observed, sent, "{ledger:?}");
    }
    let ledger = pair.settled();
    println!("{ledger:?}");
    assert!(ledger.errored <= KILLS * 128, "{ledger:?}");
    let rows = pair.mirror.sql(SHOP, "SELECT count(*) FROM t").unwrap();
    let rows: u64 = rows.parse().unwrap();
    assert!(
        (ledger.delivered..=ledger.delivered + ledger.errored).contains(&rows),
        "{rows} rows, {ledger:?}"
    );
    // And the session goes on.
    ok(&mut client, "INSERT INTO t VALUES (-1)");
    pair.mirror_shows("SELECT count(*) FROM t WHERE id = -1", "1");
}
