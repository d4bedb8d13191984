//! Cases that a mirror gets wrong, against two real servers: what a unit is, what its session was, how it fares in
//! trouble. (Timing, load and operation are in `postgres_mirror_operation.rs`.)

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use parhelion::testing::wait::eventually;
use support::pg::wire;
use support::pg_pair::{PATIENCE, Pair, PairOptions, SHOP, copy_in, fails, logged_statements, ok};

/// Row 1.
#[test]
fn an_error_inside_a_transaction_discards_nothing_on_the_mirror() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t(id int PRIMARY KEY)");
    let mut client = pair.client();
    for sql in ["BEGIN", "INSERT INTO t VALUES (1)", "SAVEPOINT s"] {
        ok(&mut client, sql);
    }
    assert_eq!(fails(&mut client, "INSERT INTO t VALUES (1)"), "23505");
    assert_eq!(fails(&mut client, "INSERT INTO t VALUES (9)"), "25P02");
    for sql in [
        "ROLLBACK TO s",
        "INSERT INTO t VALUES (2)",
        "COMMIT",
        "INSERT INTO t VALUES (3)",
    ] {
        ok(&mut client, sql);
    }
    let ledger = pair.settled();
    assert_eq!((ledger.offered, ledger.delivered), (2, 2), "{ledger:?}");
    pair.mirror_shows(
        "SELECT string_agg(id::text, ',' ORDER BY id) FROM t",
        "1,2,3",
    );
    assert_eq!(pair.api("staging_db")["divergences_total"], 0);
}

/// Row 2.
#[test]
fn a_level_decides_about_whole_transactions() {
    let pair = Pair::with(PairOptions::mirroring("level = \"ddl\"").logged());
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    for sql in [
        "BEGIN",
        "DROP TABLE t",
        "ROLLBACK",
        "BEGIN",
        "INSERT INTO t VALUES (1)",
        "COMMIT",
        "BEGIN",
        "INSERT INTO t VALUES (2)",
        "CREATE TABLE u(id int)",
        "COMMIT",
        "SELECT 1",
    ] {
        ok(&mut client, sql);
    }
    let ledger = pair.clean();
    assert_eq!((ledger.offered, ledger.excluded), (2, 2), "{ledger:?}");
    pair.mirror_shows("SELECT string_agg(id::text, ',') FROM t", "2");
    pair.mirror_shows("SELECT count(*) FROM u", "0");
    let seen = logged_statements(&pair.mirror, "");
    let count = |word: &str| seen.iter().filter(|s| s.ends_with(word)).count();
    assert_eq!(
        (count("BEGIN"), count("ROLLBACK"), count("COMMIT")),
        (2, 1, 1),
        "{seen:#?}"
    );
}

const LEVELS: [&str; 4] = ["dml", "ddl", "reads", "writes"];

/// Row 3.
#[test]
fn statements_are_filtered_by_what_they_may_do_and_unknown_ones_go_to_all_but_reads() {
    let more: String = LEVELS
        .iter()
        .map(|level| {
            format!(
                "[[databases]]\nname = \"m_{level}\"\nhost = \"127.0.0.1\"\nport = {{mirror}}\ndatabase_name = \"{SHOP}_{level}\"\nuser = \"postgres\"\n\
                 [[mirroring]]\nsource_db = \"prod\"\ndestination_db = \"m_{level}\"\nlevel = \"{level}\"\n"
            )
        })
        .collect();
    let mut options = PairOptions {
        more,
        ..PairOptions::default()
    };
    options.mirror.databases = LEVELS.map(|level| format!("{SHOP}_{level}")).to_vec();
    let pair = Pair::with(options);
    let schema = "CREATE TABLE t(id int PRIMARY KEY, n int DEFAULT 0); \
        CREATE FUNCTION touch() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (100) ON CONFLICT DO NOTHING; SELECT 1'";
    pair.both(schema);
    for level in LEVELS {
        pair.mirror.sql(&format!("{SHOP}_{level}"), schema).unwrap();
    }
    // Which of dml, ddl, reads, writes get it.
    let cases = [
        ("SELECT * FROM t", [true, false, true, false]),
        ("SELECT * FROM t FOR UPDATE", [true, false, false, true]),
        ("TABLE t", [true, false, true, false]),
        ("INSERT INTO t VALUES (1)", [true, false, false, true]),
        (
            "MERGE INTO t USING (SELECT 1 AS id) s ON t.id = s.id WHEN MATCHED THEN UPDATE SET n = 1",
            [true, false, false, true],
        ),
        ("DO $$ BEGIN PERFORM 1; END $$", [true, true, false, true]),
        ("TRUNCATE t", [true, true, false, true]),
        ("SELECT 1 AS a INTO u", [true, true, false, true]),
        (
            "WITH x AS (INSERT INTO t VALUES (2) RETURNING id) SELECT * FROM x",
            [true, false, false, true],
        ),
        ("SELECT touch()", [true, true, false, true]),
        ("CREATE INDEX ON t(n)", [false, true, false, true]),
        ("CALL nothing()", [true, true, false, true]),
    ];
    let mut client = pair.client();
    let mut wanted = [0_u64; 4];
    for (sql, levels) in cases {
        if sql.starts_with("CALL") {
            fails(&mut client, sql);
        } else {
            ok(&mut client, sql);
        }
        for (at, level) in LEVELS.iter().enumerate() {
            wanted[at] += u64::from(levels[at]);
            let ledger = pair.settled_at(&format!("m_{level}"));
            assert_eq!(ledger.delivered, wanted[at], "{level}: {sql}");
        }
    }
    assert_eq!(pair.settled().delivered, cases.len() as u64);
}

/// Row 4.
#[test]
fn startup_options_are_in_force_on_the_mirror() {
    let pair = Pair::new();
    pair.both("CREATE SCHEMA foo; CREATE TABLE foo.seen(at serial, path text, app text, enc text, zone text, style text, mem text)");
    let insert = "INSERT INTO seen(path, app, enc, zone, style, mem) SELECT current_setting('search_path'), \
        current_setting('application_name'), current_setting('client_encoding'), current_setting('timezone'), \
        current_setting('datestyle'), current_setting('work_mem')";
    let mut odd = pair.client_with(&[
        ("options", "-c search_path=foo,public -c work_mem=5MB"),
        ("application_name", "till 3"),
        ("client_encoding", "LATIN1"),
        ("timezone", "Asia/Tokyo"),
        ("datestyle", "German"),
    ]);
    ok(&mut odd, insert);
    // Order holds within a client; the rows are compared in the order of their numbers.
    pair.clean();
    let mut plain = pair.client_with(&[("options", "--search_path=foo")]);
    ok(&mut plain, insert);
    pair.clean();
    let all = "SELECT path, app, enc, zone, style, mem FROM foo.seen ORDER BY at";
    let wanted = pair.primary.sql(SHOP, all).unwrap();
    assert!(
        wanted.starts_with("foo,public|till 3|LATIN1|Asia/Tokyo|German, DMY|5MB\nfoo||"),
        "{wanted}"
    );
    pair.mirror_shows(all, &wanted);
}

/// Row 5.
#[test]
fn a_setting_made_in_an_unmirrored_transaction_holds_in_every_mirrored_one() {
    let pair = Pair::with(PairOptions::mirroring("exposure = 0.5"));
    pair.both("CREATE TABLE seen(zone text)");
    let mut client = pair.client();
    for zone in ["Asia/Tokyo", "Europe/Paris", "America/Lima", "Asia/Kolkata"] {
        pair.both("TRUNCATE seen");
        ok(&mut client, &format!("SET timezone = '{zone}'"));
        for _ in 0..50 {
            ok(
                &mut client,
                "INSERT INTO seen SELECT current_setting('timezone')",
            );
        }
        let ledger = pair.clean();
        assert!(ledger.unexposed > 0);
        let seen = pair
            .mirror
            .sql(SHOP, "SELECT DISTINCT zone FROM seen")
            .unwrap();
        assert_eq!(seen, zone);
    }
    let ledger = pair.clean();
    assert_eq!(ledger.observed, 204);
    assert!((60..145).contains(&ledger.delivered), "{ledger:?}");
}

/// The same in a pipeline: the unit behind the setting was sent before the primary had answered the setting.
#[test]
fn a_setting_holds_for_the_units_behind_it_in_a_pipeline() {
    let pair = Pair::new();
    pair.both("CREATE TABLE seen(at serial, mem text)");
    let mut client = pair.client();
    for mem in 1..30 {
        let pipeline = [
            wire::query(&format!("SET work_mem = '{mem}MB'")),
            wire::query("INSERT INTO seen(mem) SELECT current_setting('work_mem')"),
            wire::query("RESET work_mem"),
            wire::query("INSERT INTO seen(mem) SELECT current_setting('work_mem')"),
        ];
        client.send(&pipeline.concat());
        for _ in 0..pipeline.len() {
            client.until_ready();
        }
    }
    assert_eq!(pair.clean().delivered, 4 * 29);
    let all = "SELECT string_agg(mem, ',' ORDER BY at) FROM seen";
    pair.mirror_shows(all, &pair.primary.sql(SHOP, all).unwrap());
}

/// Row 6.
#[test]
fn sampled_copies_arrive_whole_and_without_an_error() {
    let pair = Pair::with(PairOptions::mirroring("exposure = 0.5"));
    pair.both("CREATE TABLE t(id int, line int)");
    let mut client = pair.client();
    for id in 0..100 {
        copy_in(&mut client, "t", &format!("{id}\t1\n{id}\t2\n{id}\t3\n"));
    }
    let ledger = pair.clean();
    assert!((25..75).contains(&ledger.delivered), "{ledger:?}");
    let whole = "SELECT count(*) FROM (SELECT id FROM t GROUP BY id HAVING count(*) = 3) whole";
    pair.mirror_shows(whole, &ledger.delivered.to_string());
    pair.mirror_shows(
        "SELECT count(DISTINCT id) FROM t",
        &ledger.delivered.to_string(),
    );
}

/// Row 7.
#[test]
fn a_copy_to_a_stalled_mirror_is_kept_whole_or_dropped_whole() {
    let pair = Pair::with(PairOptions {
        general: "mirror_queue_bytes = \"64KiB\"".into(),
        mirroring: "queue_length = 8".into(),
        ..PairOptions::default()
    });
    pair.both("CREATE TABLE t(id int, line int)");
    let mut client = pair.client();
    ok(&mut client, "SELECT 1");
    pair.settled();
    pair.mirror.pause().unwrap();
    for id in 0..40 {
        let lines: String = (0..1000).map(|line| format!("{id}\t{line}\n")).collect();
        copy_in(&mut client, "t", &lines);
    }
    pair.mirror.resume().unwrap();
    let ledger = pair.clean_but_dropped();
    assert!(ledger.dropped_for("queue_full") > 0, "{ledger:?}");
    assert!(ledger.delivered > 1, "{ledger:?}");
    let copies = (ledger.delivered - 1).to_string();
    let whole = "SELECT count(*) FROM (SELECT id FROM t GROUP BY id HAVING count(*) = 1000) whole";
    pair.mirror_shows(whole, &copies);
    pair.mirror_shows("SELECT count(DISTINCT id) FROM t", &copies);
}

/// Row 8.
#[test]
fn a_killed_mirror_session_is_rebuilt_and_the_next_units_arrive() {
    let pair = Pair::with(PairOptions::mirroring("queue_length = 4"));
    pair.both("CREATE TABLE t(id int, zone text DEFAULT current_setting('timezone'))");
    let mut client = pair.client();
    ok(&mut client, "SET timezone = 'Asia/Tokyo'");
    pair.settled();
    // The queue overflows first.
    pair.mirror.pause().unwrap();
    for id in 0..20 {
        ok(&mut client, &format!("INSERT INTO t(id) VALUES ({id})"));
    }
    pair.mirror.resume().unwrap();
    let before = pair.settled();
    assert!(before.dropped_for("queue_full") > 0, "{before:?}");
    // In the middle of this transaction the mirror's backend is killed.
    for sql in ["BEGIN", "INSERT INTO t(id) VALUES (100)"] {
        ok(&mut client, sql);
    }
    std::thread::sleep(Duration::from_millis(700));
    for sql in ["INSERT INTO t(id) VALUES (101)", "COMMIT"] {
        ok(&mut client, sql);
    }
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    let killed = eventually(PATIENCE, || {
        (pair.mirror.sql(SHOP, kill).unwrap() != "0").then_some(())
    });
    assert!(killed.is_some(), "it was never seen in its transaction");
    for id in 200..210 {
        ok(&mut client, &format!("INSERT INTO t(id) VALUES ({id})"));
        pair.settled();
    }
    let ledger = pair.settled();
    assert_eq!(ledger.errored, 1, "{ledger:?}");
    assert_eq!(ledger.delivered - before.delivered, 10, "{ledger:?}");
    pair.mirror_shows("SELECT count(*) FROM t WHERE id IN (100, 101)", "0");
    pair.mirror_shows(
        "SELECT count(*) FROM t WHERE id >= 200 AND zone = 'Asia/Tokyo'",
        "10",
    );
}

/// An idle connection of the pool may be gone when it is needed.
#[test]
fn a_mirror_that_restarted_while_nothing_was_sent_loses_nothing() {
    let mut pair = Pair::new();
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    ok(&mut client, "INSERT INTO t VALUES (1)");
    pair.clean();
    pair.mirror.restart().unwrap();
    for id in 2..20 {
        ok(&mut client, &format!("INSERT INTO t VALUES ({id})"));
    }
    let ledger = pair.settled();
    assert_eq!((ledger.delivered, ledger.errored), (19, 0), "{ledger:?}");
    pair.mirror_shows("SELECT count(*) FROM t", "19");
}

/// Row 14.
#[test]
fn what_was_cancelled_on_the_primary_is_cancelled_on_the_mirror_after_the_same_time() {
    let pair = Pair::with(PairOptions::default().logged());
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    ok(&mut client, "BEGIN");
    ok(&mut client, "INSERT INTO t VALUES (1)");
    ok(&mut client, "SAVEPOINT s");
    client.send(&wire::query("SELECT pg_sleep(60)"));
    let runs = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(60)'";
    let begun = eventually(PATIENCE, || {
        (pair.primary.sql(SHOP, runs).unwrap() == "1").then_some(())
    });
    assert!(begun.is_some(), "the query never ran");
    // The time that it is given on the mirror too.
    std::thread::sleep(Duration::from_millis(400));
    let mut cancel = std::net::TcpStream::connect(pair.proxy.address()).unwrap();
    std::io::Write::write_all(&mut cancel, &wire::cancel(client.pid, &client.key)).unwrap();
    let answer = client.until_ready();
    assert_eq!(
        support::pg_pair::sqlstate(&answer).as_deref(),
        Some("57014")
    );
    let began = std::time::Instant::now();
    for sql in [
        "ROLLBACK TO s",
        "INSERT INTO t VALUES (2)",
        "COMMIT",
        "INSERT INTO t VALUES (3)",
    ] {
        ok(&mut client, sql);
    }
    let ledger = pair.settled();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(ledger.delivered, 2, "{ledger:?}");
    pair.mirror_shows(
        "SELECT string_agg(id::text, ',' ORDER BY id) FROM t",
        "1,2,3",
    );
    let log = pair.mirror.log().unwrap();
    assert_eq!(
        log.matches("canceling statement due to user request")
            .count(),
        1,
        "{log}"
    );
    let api = pair.api("staging_db");
    assert_eq!(
        (&api["divergences_total"], &api["unit_timeouts"]),
        (&0.into(), &0.into()),
        "{api:#}"
    );
    assert_eq!(api["not_compared"], 1, "{api:#}");
}

/// Row 18.
#[test]
fn one_mirror_login_serves_all_users_of_the_primary() {
    use parhelion::testing::servers::{PostgresUser, UserAuth};
    let user = |name: &str, auth| PostgresUser {
        name: name.into(),
        password: format!("of {name}"),
        auth,
    };
    let mut options = PairOptions {
        mirror_database: "user = \"shadow\"\npassword = \"of shadow\"\npool_size = 2".into(),
        users: Some(String::new()),
        ..PairOptions::default()
    };
    options.primary.users = ["alice", "bob", "carol"]
        .map(|name| user(name, UserAuth::Trust))
        .to_vec();
    options.mirror.users = vec![user("shadow", UserAuth::Scram)];
    let pair = Pair::with(options);
    pair.both("CREATE TABLE t(id serial, who text DEFAULT session_user); GRANT ALL ON t, t_id_seq TO PUBLIC");
    let mut clients = ["alice", "bob", "carol"].map(|name| pair.client_with(&[("user", name)]));
    for round in 0..10 {
        for client in &mut clients {
            ok(client, &format!("INSERT INTO t(id) VALUES ({round})"));
        }
    }
    let ledger = pair.clean();
    assert_eq!(ledger.delivered, 30);
    pair.mirror_shows("SELECT who || count(*) FROM t GROUP BY who", "shadow30");
    let api = pair.api("staging_db");
    // No connection was given up for another user's.
    assert!(api["connections"]["open"].as_u64().unwrap() <= 2, "{api:#}");
    assert_eq!(api["connections"]["reconnects"], 0, "{api:#}");
}

/// Row 15.
#[test]
fn mirror_cycles_and_mirrors_of_themselves_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let database = |name: &str, port: u16| {
        format!(
            "[[databases]]\nname = \"{name}\"\nhost = \"127.0.0.1\"\nport = {port}\nuser = \"x\"\n"
        )
    };
    let mirroring = |from: &str, to: &str| {
        format!("[[mirroring]]\nsource_db = \"{from}\"\ndestination_db = \"{to}\"\n")
    };
    let base = [database("north", 5432), database("south", 5433)].concat();
    for (more, names) in [
        (mirroring("north", "north"), vec!["north"]),
        (
            [mirroring("north", "south"), mirroring("south", "north")].concat(),
            vec!["north", "south"],
        ),
        (mirroring("north", "west"), vec!["west"]),
    ] {
        std::fs::write(folder.path().join("pgdog.toml"), format!("{base}{more}")).unwrap();
        let mut run = support::pg_pair::command(folder.path(), "run");
        let output = support::run(&mut run, b"", Duration::from_secs(20));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("mirroring") && names.iter().all(|name| said.contains(name)),
            "{said}"
        );
    }
}
