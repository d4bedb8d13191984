//! A control mirror tells volatile results from wrong ones.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use parhelion::testing::wait::eventually;
use serde_json::Value;
use support::pg::PgClient;
use support::pg_pair::{PATIENCE, Pair, PairOptions, SHOP, ok};
use support::run;

const CONTROL: &str = "[[databases]]\nname = \"control\"\nhost = \"127.0.0.1\"\nport = {mirror}\n\
    database_name = \"control\"\nuser = \"postgres\"\n\
    [[mirroring]]\nsource_db = \"prod\"\ndestination_db = \"control\"\ncontrol = true\n";

fn pair() -> Pair {
    let mut options = PairOptions {
        more: CONTROL.into(),
        ..PairOptions::default()
    };
    options.mirror.databases = vec!["control".into()];
    let pair = Pair::with(options);
    for (server, database) in [
        (&pair.primary, SHOP),
        (&pair.mirror, SHOP),
        (&pair.mirror, "control"),
    ] {
        server
            .sql(database, "CREATE TABLE t(id int); INSERT INTO t VALUES (1)")
            .unwrap();
    }
    pair
}

fn found(mirror: &Value) -> [u64; 3] {
    let number = |at: &str| mirror.pointer(at).and_then(Value::as_u64).unwrap();
    [
        "/divergences/noise",
        "/divergences/data_mismatch",
        "/divergences_total",
    ]
    .map(number)
}

#[test]
fn what_the_control_cannot_repeat_is_noise_and_the_rest_is_a_difference() {
    let pair = pair();
    pair.mirror.sql(SHOP, "INSERT INTO t VALUES (2)").unwrap();
    let mut client = pair.client();
    for _ in 0..10 {
        ok(&mut client, "SELECT random()");
        ok(&mut client, "SELECT clock_timestamp()");
        ok(&mut client, "SELECT count(*) FROM t");
        // The volatile statement of a unit excuses no other of it.
        ok(&mut client, "SELECT count(*) FROM t; SELECT random()");
    }
    let _ = (pair.settled_at("staging_db"), pair.settled_at("control"));
    assert_eq!(found(&pair.api("staging_db")), [20, 20, 20]);
    assert_eq!(found(&pair.api("control")), [30, 0, 0]);
    let text = pair.proxy.get("/api/divergences?limit=1000").unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    for item in value["items"].as_array().unwrap() {
        assert_ne!(item["kind"], "noise", "{item:#}");
        assert_ne!(item["command"], "select random()", "{item:#}");
    }
    // A mismatch waits for a control that is slower than the candidate …
    let mut locker = PgClient::connect(pair.mirror.address(), "control").0;
    ok(&mut locker, "BEGIN; LOCK TABLE t");
    for _ in 0..5 {
        ok(&mut client, "SELECT random() FROM t WHERE id = 1");
    }
    pair.settled_at("staging_db");
    assert_eq!(found(&pair.api("staging_db")), [20, 20, 20]);
    ok(&mut locker, "COMMIT");
    pair.settled_at("control");
    assert_eq!(found(&pair.api("staging_db")), [25, 20, 20]);
    // … and counts where the control has not got the unit.
    let mut admin = PgClient::connect_with(
        pair.proxy.address(),
        &[("user", "postgres"), ("database", "admin")],
    )
    .0;
    admin.query("PAUSE control");
    for _ in 0..5 {
        ok(&mut client, "SELECT random()");
    }
    let seen = eventually(PATIENCE, || {
        (found(&pair.api("staging_db")) == [25, 25, 25]).then_some(())
    });
    assert!(seen.is_some(), "{:?}", found(&pair.api("staging_db")));
}

#[test]
fn a_source_has_one_control_and_a_control_compares() {
    let pair = pair();
    let check = |what: &str| {
        let mut check = support::pg_pair::command(pair.folder.path(), "check");
        let output = run(check.arg("--offline"), b"", PATIENCE);
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && text.contains(what),
            "{what}: {text}"
        );
    };
    pair.reconfigure("control = true", "control = true\ncompare = \"off\"");
    check("a control tells what is volatile by comparing");
    pair.reconfigure("control = true\ncompare = \"off\"", "control = true");
    pair.reconfigure(
        "destination_db = \"staging_db\"\n",
        "destination_db = \"staging_db\"\ncontrol = true\n",
    );
    check("second control of");
}
