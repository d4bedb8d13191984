//! Cases that a mirror gets wrong, against two real servers: timing, load, bounds, errors, drain.
//! (What a unit is and what its session was: `postgres_mirror_cases.rs`.)

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

#[path = "postgres_mirror_operation/bounds.rs"]
mod bounds;
#[path = "postgres_mirror_operation/pool_modes.rs"]
mod pool_modes;
mod support;

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use parhelion::testing::wait::eventually;
use rustix::process::Signal;
use support::pg::{PgClient, wire};
use support::pg_pair::{PATIENCE, Pair, PairOptions, SHOP, ok};

fn number(pair_sql: std::io::Result<String>) -> f64 {
    pair_sql.unwrap().parse().unwrap()
}

/// Row 9, first half.
#[test]
fn half_a_second_of_work_and_half_of_thought_take_one_second_on_the_mirror() {
    let pair = Pair::new();
    pair.both("CREATE TABLE marks(id int, at timestamptz DEFAULT clock_timestamp())");
    let span = "SELECT extract(epoch FROM max(at) - min(at)) FROM marks";
    let mut best = f64::MAX;
    for _ in 0..3 {
        pair.both("TRUNCATE marks");
        let mut client = pair.client();
        for sql in [
            "BEGIN",
            "INSERT INTO marks VALUES (1)",
            "SELECT pg_sleep(0.5)",
        ] {
            ok(&mut client, sql);
        }
        thread::sleep(Duration::from_millis(500));
        for sql in ["INSERT INTO marks VALUES (2)", "COMMIT"] {
            ok(&mut client, sql);
        }
        pair.clean();
        let on_primary = number(pair.primary.sql(SHOP, span));
        let on_mirror = number(pair.mirror.sql(SHOP, span));
        assert!(on_mirror > on_primary - 0.02, "{on_primary} {on_mirror}");
        best = best.min(on_mirror - on_primary);
    }
    assert!(best < 0.05, "{best} s later than on the primary");
}

/// Row 9, second half.
#[test]
fn a_hundred_inserts_back_to_back_are_not_slowed_by_timers() {
    let pair = Pair::new();
    pair.both("CREATE TABLE marks(id int, at timestamptz DEFAULT clock_timestamp())");
    let span = "SELECT extract(epoch FROM max(at) - min(at)) FROM marks";
    let mut best = f64::MAX;
    for _ in 0..8 {
        pair.both("TRUNCATE marks");
        let mut client = pair.client();
        ok(&mut client, "BEGIN");
        for id in 0..100 {
            ok(&mut client, &format!("INSERT INTO marks VALUES ({id})"));
        }
        ok(&mut client, "COMMIT");
        pair.clean();
        let on_primary = number(pair.primary.sql(SHOP, span));
        let on_mirror = number(pair.mirror.sql(SHOP, span));
        best = best.min(on_mirror - on_primary);
    }
    // A timer for each of them would have taken a tenth of a second and more.
    assert!(best < 0.05, "{best} s longer than on the primary");
}

/// Row 10: at the rate at which it was seen. A machine that is busy with other things may slow the mirror down more than
/// the primary; then it is tried again.
#[test]
fn one_client_at_1800_transactions_a_second_loses_nothing() {
    const GAP: Duration = Duration::from_micros(1_000_000 / 1_800);
    let pair = Pair::new();
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    let transactions = 1000;
    let run = |client: &mut PgClient| {
        let before = pair.settled();
        for id in 0..transactions {
            let began = Instant::now();
            for sql in [
                "BEGIN".to_owned(),
                format!("INSERT INTO t VALUES ({id})"),
                format!("INSERT INTO t VALUES (-{id})"),
                "COMMIT".to_owned(),
            ] {
                ok(client, &sql);
            }
            thread::sleep(GAP.saturating_sub(began.elapsed()));
        }
        let after = pair.clean_but_dropped();
        (
            after.delivered - before.delivered,
            after.dropped - before.dropped,
        )
    };
    let runs: Vec<_> = (0..5).map(|_| run(&mut client)).collect();
    assert!(runs.contains(&(transactions, 0)), "{runs:?}");
    let delivered: u64 = runs.iter().map(|(delivered, _)| delivered).sum();
    pair.mirror_shows("SELECT count(*) FROM t", &(2 * delivered).to_string());
}

/// Row 11.
#[test]
fn statements_that_fail_on_the_mirror_are_counted_by_class_and_logged_rarely() {
    let pair = Pair::new();
    pair.primary
        .sql(SHOP, "CREATE TABLE only_here(id int PRIMARY KEY)")
        .unwrap();
    let mut client = pair.client();
    for id in 0..100 {
        ok(&mut client, &format!("INSERT INTO only_here VALUES ({id})"));
    }
    let ledger = pair.settled();
    assert_eq!((ledger.delivered, ledger.errored), (100, 0), "{ledger:?}");
    let api = pair.api("staging_db");
    let classes = api["errors"].as_object().unwrap();
    let class = classes.iter().find(|(name, _)| name.starts_with("42"));
    assert_eq!(class.map(|(_, count)| count), Some(&100.into()), "{api:#}");
    assert_eq!(api["divergences"]["secondary_error"], 100, "{api:#}");
    let lines = pair.proxy.log();
    let told = lines
        .iter()
        .filter(|line| line.contains("failed on a mirror"));
    assert!((1..=4).contains(&told.count()), "{lines:#?}");
    assert!(lines.len() < 30, "{lines:#?}");
}

/// Row 13.
#[test]
fn units_time_out_on_a_locked_mirror_and_the_next_ones_go_on() {
    let pair = Pair::with(PairOptions::general("mirror_timeout = \"1s\"").logged());
    pair.both("CREATE TABLE t(id int)");
    let (mut client, mut other) = (pair.client(), pair.client());
    let mut locker = PgClient::connect(pair.mirror.address(), SHOP).0;
    ok(&mut locker, "BEGIN");
    ok(&mut locker, "LOCK TABLE t");
    ok(&mut client, "INSERT INTO t VALUES (1)");
    // Another client's units are not held up.
    ok(&mut other, "SELECT 1");
    let served = eventually(Duration::from_millis(900), || {
        (pair.ledger().delivered == 1).then_some(())
    });
    assert!(served.is_some(), "{:?}", pair.ledger());
    let ledger = pair.settled();
    assert_eq!((ledger.delivered, ledger.errored), (2, 0), "{ledger:?}");
    ok(&mut locker, "ROLLBACK");
    ok(&mut client, "INSERT INTO t VALUES (2)");
    pair.settled();
    pair.mirror_shows("SELECT string_agg(id::text, ',') FROM t", "2");
    let api = pair.api("staging_db");
    assert_eq!(
        (&api["unit_timeouts"], &api["divergences_total"]),
        (&1.into(), &0.into()),
        "{api:#}"
    );
    assert!(
        pair.mirror
            .log()
            .unwrap()
            .contains("canceling statement due to user request")
    );
}

/// The time a client took to think is not the mirror's.
#[test]
fn a_transaction_longer_than_the_mirrors_timeout_is_replayed_whole() {
    let pair = Pair::with(PairOptions::general("mirror_timeout = \"500ms\""));
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    ok(&mut client, "BEGIN");
    for id in 0..4 {
        ok(&mut client, &format!("INSERT INTO t VALUES ({id})"));
        thread::sleep(Duration::from_millis(300));
    }
    ok(&mut client, "COMMIT");
    assert_eq!(pair.clean().delivered, 1);
    pair.mirror_shows("SELECT count(*) FROM t", "4");
}

/// Row 16. (SET and RELOAD of the admin database are tested with it.)
#[test]
fn counters_keep_their_values_over_a_reload_and_a_change_of_exposure() {
    let mut pair = Pair::with(PairOptions::mirroring("exposure = 1.0"));
    let mut client = pair.client();
    for _ in 0..10 {
        ok(&mut client, "SELECT 1");
    }
    assert_eq!(pair.clean().delivered, 10);
    pair.reconfigure("exposure = 1.0", "exposure = 0.0");
    pair.proxy.process().signal(Signal::HUP).unwrap();
    let taken = eventually(PATIENCE, || {
        (pair.api("staging_db")["exposure"] == 0.0).then_some(())
    });
    assert!(taken.is_some(), "{:#}", pair.api("staging_db"));
    for _ in 0..5 {
        ok(&mut client, "SELECT 1");
    }
    let ledger = pair.clean();
    assert_eq!(
        (ledger.delivered, ledger.unexposed, ledger.observed),
        (10, 5, 15),
        "{ledger:?}"
    );
    let ctl = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parhelion"));
        command
            .args(["ctl", "--url", &format!("http://{}", pair.proxy.control())])
            .args(args);
        support::run(&mut command, b"", PATIENCE)
    };
    assert!(ctl(&["exposure", "staging_db", "1.0"]).status.success());
    assert!(
        !ctl(&["exposure", "staging", "1.0"]).status.success(),
        "an unknown mirror"
    );
    assert!(!ctl(&["exposure", "staging_db", "1.5"]).status.success());
    let since = Instant::now();
    let taken = eventually(Duration::from_secs(1), || {
        ok(&mut client, "SELECT 1");
        (pair.ledger().offered > 10).then_some(())
    });
    assert!(taken.is_some(), "{:?}", since.elapsed());
    assert!(pair.clean().delivered > 10);
}

fn final_ledger(pair: &Pair) -> String {
    // The process has ended; its last lines may still be on their way through the pipe.
    let line = eventually(PATIENCE, || {
        let lines = pair.proxy.log();
        lines.into_iter().find(|line| line.contains("final ledger"))
    });
    line.unwrap_or_else(|| panic!("{:#?}", pair.proxy.log()))
}

/// Row 17, in time.
#[test]
fn queued_units_are_drained_at_sigterm() {
    let mut pair = Pair::new();
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    pair.mirror.pause().unwrap();
    for id in 0..30 {
        ok(&mut client, &format!("INSERT INTO t VALUES ({id})"));
    }
    assert_eq!(pair.ledger().in_flight, 30);
    pair.proxy.process().signal(Signal::TERM).unwrap();
    let address = pair.proxy.address();
    let drains = eventually(PATIENCE, || {
        TcpStream::connect(address).is_err().then_some(())
    });
    assert!(drains.is_some(), "it still accepts");
    pair.mirror.resume().unwrap();
    let status = pair.proxy.process().wait_exit(PATIENCE).unwrap();
    assert!(status.success());
    let ledger = final_ledger(&pair);
    assert!(
        ledger.contains("delivered=30") && ledger.contains("in_flight=0"),
        "{ledger}"
    );
    pair.mirror_shows("SELECT count(*) FROM t", "30");
}

/// Row 17, too late. One unit is in the middle of a pause of its client when the time is over.
#[test]
fn what_cannot_be_drained_in_time_is_counted_as_shutdown() {
    let mut pair = Pair::with(PairOptions::general("drain_timeout = \"300ms\""));
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    for sql in ["BEGIN", "INSERT INTO t VALUES (1)"] {
        ok(&mut client, sql);
    }
    thread::sleep(Duration::from_millis(1500));
    ok(&mut client, "COMMIT");
    for id in 0..30 {
        ok(&mut client, &format!("INSERT INTO t VALUES ({id})"));
    }
    let since = Instant::now();
    pair.proxy.process().signal(Signal::TERM).unwrap();
    let status = pair.proxy.process().wait_exit(PATIENCE).unwrap();
    assert!(
        status.success() && since.elapsed() < Duration::from_secs(3),
        "{:?}",
        since.elapsed()
    );
    let ledger = final_ledger(&pair);
    for part in [
        "observed=31",
        "delivered=0",
        "errored=1",
        "shutdown=30",
        "in_flight=0",
    ] {
        assert!(ledger.contains(part), "{part}: {ledger}");
    }
}

/// `pace = "session"`.
#[test]
fn with_pace_session_units_keep_their_distances() {
    let pair = Pair::with(PairOptions::general("pace = \"session\""));
    pair.both("CREATE TABLE marks(id serial, at timestamptz DEFAULT clock_timestamp())");
    let mut client = pair.client();
    for pause in [0, 400, 150, 250] {
        thread::sleep(Duration::from_millis(pause));
        ok(&mut client, "INSERT INTO marks DEFAULT VALUES");
        if pause == 0 {
            // Two at once before the first has gone: their distance is kept all the same.
            ok(&mut client, "SELECT pg_sleep(0.3)");
            ok(&mut client, "INSERT INTO marks DEFAULT VALUES");
        }
    }
    pair.clean();
    let gaps = "SELECT round(extract(epoch FROM at - lag(at) OVER (ORDER BY id)) * 1000) FROM marks ORDER BY id";
    let read =
        |text: String| -> Vec<i64> { text.lines().filter_map(|line| line.parse().ok()).collect() };
    let on_primary = read(pair.primary.sql(SHOP, gaps).unwrap());
    let on_mirror = read(pair.mirror.sql(SHOP, gaps).unwrap());
    assert_eq!(on_primary.len(), 4);
    // The first gap grows the lag; from then on distances are equal.
    for (ours, theirs) in on_primary.iter().zip(&on_mirror).skip(1) {
        assert!((ours - theirs).abs() < 60, "{on_primary:?} {on_mirror:?}");
    }
}

/// A mirror that is down is tried again with pauses; what finds no room meanwhile is counted as that.
#[test]
fn while_the_mirror_is_down_units_are_dropped_as_unavailable_and_then_it_goes_on() {
    let mut pair = Pair::with(PairOptions::mirroring("queue_length = 4"));
    pair.both("CREATE TABLE t(id int)");
    pair.mirror.kill9().unwrap();
    let mut client = pair.client();
    for id in 0..50 {
        ok(&mut client, &format!("INSERT INTO t VALUES ({id})"));
        thread::sleep(Duration::from_millis(10));
    }
    let ledger = pair.ledger();
    assert!(ledger.dropped_for("unavailable") >= 40, "{ledger:?}");
    pair.mirror.restart().unwrap();
    let ledger = pair.settled();
    assert!((1..=5).contains(&ledger.delivered), "{ledger:?}");
    let attempts = pair.api("staging_db")["connections"]["reconnects"]
        .as_u64()
        .unwrap();
    assert!(attempts < 20, "{attempts}");
    pair.mirror_shows("SELECT count(*) FROM t", &ledger.delivered.to_string());
}

/// A client that sends and leaves without reading the answer has its transaction on the primary, so on the mirror too.
#[test]
fn a_client_that_leaves_without_reading_is_mirrored_like_any_other() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t(id int)");
    for id in 0..10 {
        let mut client = pair.client();
        let bytes = [
            wire::query("SELECT pg_sleep(0.05), repeat('x', 100000)"),
            wire::query(&format!("INSERT INTO t VALUES ({id})")),
        ]
        .concat();
        client.stream.write_all(&bytes).unwrap();
        client.stream.shutdown(std::net::Shutdown::Both).unwrap();
        drop::<TcpStream>(client.stream);
    }
    let on_primary = || pair.primary.sql(SHOP, "SELECT count(*) FROM t").unwrap();
    eventually(Duration::from_secs(3), || {
        (on_primary() == "10").then_some(())
    });
    pair.clean();
    pair.mirror_shows("SELECT count(*) FROM t", &on_primary());
}
