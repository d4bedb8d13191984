//! What PgDog's mirroring page promises, sentence by sentence, against two real servers. Each test quotes its sentence.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use parhelion::testing::servers::{PostgresUser, UserAuth};
use parhelion::testing::wait::eventually;
use support::pg::PgClient;
use support::pg_pair::{PATIENCE, Pair, PairOptions, SHOP, fails, logged_statements, ok};

/// "Database mirroring replicates traffic, byte for byte, from one database to another."
#[test]
fn traffic_is_replicated_byte_for_byte() {
    let pair = Pair::with(PairOptions::default().logged());
    pair.both("CREATE TABLE t(id int, note text)");
    let mut client = pair.client();
    let odd = [
        "INSERT INTO t VALUES (1, 'näh \u{1F98A} \t tab')  -- a comment; with a semicolon",
        "insert   into t/* in /* nested */ here */values(2,$q$it's$q$),(3,E'\\n\\\\')",
        "SELECT 1; SELECT 2 ; ;INSERT INTO t VALUES (4, repeat('x', 5000))",
        "INSERT INTO t VALUES (5, U&'d\\0061t\\+000061')",
    ];
    for sql in odd {
        ok(&mut client, sql);
    }
    pair.clean();
    let all = "SELECT md5(string_agg(t::text, '|' ORDER BY id)), count(*) FROM t";
    pair.mirror_shows(all, &pair.primary.sql(SHOP, all).unwrap());
    let log = pair.mirror.log().unwrap();
    for sql in odd {
        // The log shows a tab as it is.
        assert!(log.contains(&format!("statement: {sql}")), "{sql}\n{log}");
    }
}

/// "Mirroring in PgDog is asynchronous and should have minimal impact on production databases: transactions are sent to a
/// background task, which in turn forwards them to one or more mirror databases."
#[test]
fn mirroring_is_asynchronous() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    ok(&mut client, "SELECT 1");
    pair.clean();
    pair.mirror.pause().unwrap();
    let mut worst = Duration::ZERO;
    for id in 0..100 {
        let since = Instant::now();
        ok(&mut client, &format!("INSERT INTO t VALUES ({id})"));
        worst = worst.max(since.elapsed());
    }
    assert!(worst < Duration::from_secs(2), "{worst:?}");
    assert_eq!(pair.ledger().in_flight, 100);
    pair.mirror.resume().unwrap();
    assert_eq!(pair.clean().delivered, 101);
    pair.mirror_shows("SELECT count(*) FROM t", "100");
}

/// "If any statement fails, the error is ignored and the next one is executed."
#[test]
fn if_a_statement_fails_the_error_is_ignored_and_the_next_one_is_executed() {
    let pair = Pair::new();
    pair.primary
        .sql(SHOP, "CREATE TABLE only_here(id int)")
        .unwrap();
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    for id in 0..10 {
        ok(&mut client, &format!("INSERT INTO only_here VALUES ({id})"));
        ok(&mut client, &format!("INSERT INTO t VALUES ({id})"));
        assert_eq!(fails(&mut client, "SELECT 1/0"), "22012");
    }
    assert_eq!(pair.settled().delivered, 30);
    pair.mirror_shows("SELECT count(*) FROM t", "10");
}

/// "To use mirroring, first configure both the mirror and the production database in pgdog.toml. Once both databases are
/// running, add a [[mirroring]] section" (the page's own file, with its comments; only hosts and ports differ).
#[test]
fn a_pgdog_users_files_work_unchanged() {
    let mut options = PairOptions::mirroring(
        "# queue_length = 256  # Optional: overrides general.mirror_queue\n# exposure = 0.5      # Optional: overrides general.mirror_exposure",
    );
    options.general = "mirror_queue = 256\nmirror_exposure = 1.0".into();
    let pair = Pair::with(options);
    let mut client = pair.client();
    ok(&mut client, "SELECT 1");
    assert_eq!(pair.clean().delivered, 1);
    let api = pair.api("staging_db");
    assert_eq!(
        (&api["queue"]["units_max_per_client"], &api["exposure"]),
        (&256.into(), &1.0.into()),
        "{api:#}"
    );
}

/// "Mirrored databases are, underneath, regular connection pools and require a user & password configured in users.toml.
/// PgDog will use those settings to connect to the mirror database and forward queries."
#[test]
fn the_mirrors_user_and_password_come_from_users_toml() {
    let alice = |password: &str, auth| PostgresUser {
        name: "alice".into(),
        password: password.into(),
        auth,
    };
    for auth in [UserAuth::Scram, UserAuth::Md5, UserAuth::Password] {
        let mut options = PairOptions {
            users: Some(
                "[[users]]\nname = \"alice\"\ndatabase = \"prod\"\npassword = \"hers\"\n\
                 [[users]]\nname = \"alice\"\ndatabase = \"staging_db\"\npassword = \"its'\"\n"
                    .into(),
            ),
            ..PairOptions::default()
        };
        options.primary.users = vec![alice("hers", UserAuth::Trust)];
        options.mirror.users = vec![alice("its'", auth)];
        let pair = Pair::with(options);
        let mut client = pair.client_with(&[("user", "alice")]);
        assert_eq!(ok(&mut client, "SELECT session_user"), ["alice"]);
        assert_eq!(pair.clean().delivered, 1, "{auth:?}");
        assert_eq!(pair.api("staging_db")["divergences_total"], 0);
    }
}

/// "You can connect to the mirror database like any other. The same connection pool will be used for mirrored queries.
/// Production database connection pool will not be affected, since all replication happens in the background."
#[test]
fn a_client_may_connect_to_the_mirror_database_like_to_any_other() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t(id int)");
    let (mut direct, _) = PgClient::connect(pair.proxy.address(), "staging_db");
    ok(&mut direct, "INSERT INTO t VALUES (1)");
    assert_eq!(
        pair.mirror.sql(SHOP, "SELECT count(*) FROM t").unwrap(),
        "1"
    );
    assert_eq!(
        pair.primary.sql(SHOP, "SELECT count(*) FROM t").unwrap(),
        "0"
    );
    let mut client = pair.client();
    ok(&mut client, "INSERT INTO t VALUES (2)");
    let ledger = pair.clean();
    assert_eq!(
        ledger.observed, 1,
        "what goes to the mirror database itself is not mirrored: {ledger:?}"
    );
    // The primary has the clients' own connections and no other.
    let backends =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop' AND pid <> pg_backend_pid()";
    assert_eq!(pair.primary.sql(SHOP, backends).unwrap(), "1");
}

/// "Each client connected to the main database has its own queue, so concurrency scales linearly with the number of
/// clients."
#[test]
fn each_client_has_its_own_queue() {
    let pair = Pair::with(PairOptions::mirroring("queue_length = 3"));
    pair.both("CREATE TABLE t(id int)");
    let mut clients: Vec<PgClient> = (0..8).map(|_| pair.client()).collect();
    for client in &mut clients {
        ok(client, "SELECT 1");
    }
    pair.clean();
    // Units of different clients run at once …
    let since = Instant::now();
    for client in &mut clients {
        client.send(&support::pg::wire::query("SELECT pg_sleep(0.5)"));
    }
    for client in &mut clients {
        client.until_ready();
    }
    pair.clean();
    assert!(
        since.elapsed() < Duration::from_millis(2500),
        "{:?}",
        since.elapsed()
    );
    // … and one client's full queue takes no room of another's.
    pair.mirror.pause().unwrap();
    for id in 0..10 {
        ok(&mut clients[0], &format!("INSERT INTO t VALUES ({id})"));
    }
    let full = pair.ledger().dropped_for("queue_full");
    assert!(full >= 6, "{full}");
    for (id, client) in clients.iter_mut().enumerate().skip(1) {
        ok(client, &format!("INSERT INTO t VALUES (10{id})"));
    }
    assert_eq!(pair.ledger().dropped_for("queue_full"), full);
    pair.mirror.resume().unwrap();
    pair.clean_but_dropped();
    pair.mirror_shows("SELECT count(*) FROM t WHERE id > 100", "7");
}

/// "You can have as many mirror databases as you like. Queries will be sent to each one of them, in parallel."
#[test]
fn queries_go_to_every_mirror_in_parallel() {
    let more: String = (1..=3)
        .map(|n| {
            format!(
                "[[databases]]\nname = \"more{n}\"\nhost = \"127.0.0.1\"\nport = {{mirror}}\ndatabase_name = \"more{n}\"\nuser = \"postgres\"\n\
                 [[mirroring]]\nsource_db = \"prod\"\ndestination_db = \"more{n}\"\n"
            )
        })
        .collect();
    let mut options = PairOptions {
        more,
        ..PairOptions::default()
    };
    options.mirror.databases = (1..=3).map(|n| format!("more{n}")).collect();
    let pair = Pair::with(options);
    pair.both("CREATE TABLE t(id int)");
    for n in 1..=3 {
        pair.mirror
            .sql(&format!("more{n}"), "CREATE TABLE t(id int)")
            .unwrap();
    }
    let mut client = pair.client();
    ok(&mut client, "INSERT INTO t VALUES (1)");
    for name in ["staging_db", "more1", "more2", "more3"] {
        assert_eq!(pair.settled_at(name).delivered, 1, "{name}");
    }
    // In parallel, and one that is locked holds up no other.
    let (mut locker, _) = PgClient::connect(pair.mirror.address(), "more2");
    ok(&mut locker, "BEGIN");
    ok(&mut locker, "LOCK TABLE t");
    let since = Instant::now();
    ok(&mut client, "SELECT pg_sleep(0.4)");
    ok(&mut client, "INSERT INTO t VALUES (2)");
    for name in ["staging_db", "more1", "more3"] {
        assert_eq!(pair.settled_at(name).delivered, 3, "{name}");
    }
    assert!(
        since.elapsed() < Duration::from_millis(1900),
        "{:?}",
        since.elapsed()
    );
    ok(&mut locker, "ROLLBACK");
    assert_eq!(pair.settled_at("more2").delivered, 3);
    for n in 1..=3 {
        assert_eq!(
            pair.mirror
                .sql(&format!("more{n}"), "SELECT count(*) FROM t")
                .unwrap(),
            "2"
        );
    }
}

/// "If the mirror database(s) can't keep up with production traffic, queries will back up in the queue. To make sure it
/// doesn't overflow and cause out-of-memory errors, the size of the queue is limited: If the queue gets full, all
/// subsequent mirrored transactions will be dropped until there is space in the queue again." (And never in part: the
/// mirror sees no COMMIT without its BEGIN.)
#[test]
fn if_the_queue_gets_full_transactions_are_dropped_whole_until_there_is_space_again() {
    let pair = Pair::with(PairOptions::general("mirror_queue = 5").logged());
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    ok(&mut client, "SELECT 1");
    pair.clean();
    let mut transactions = |range: std::ops::Range<i32>| {
        for id in range {
            for sql in [
                "BEGIN".to_owned(),
                format!("INSERT INTO t VALUES ({id})"),
                format!("INSERT INTO t VALUES (-{id})"),
                "COMMIT".to_owned(),
            ] {
                ok(&mut client, &sql);
            }
        }
    };
    pair.mirror.pause().unwrap();
    transactions(1..21);
    let full = pair.ledger();
    assert!(
        (14..=15).contains(&full.dropped_for("queue_full")),
        "{full:?}"
    );
    pair.mirror.resume().unwrap();
    pair.clean_but_dropped();
    transactions(101..104);
    let ledger = pair.clean_but_dropped();
    assert_eq!(ledger.dropped, full.dropped, "there was space again");
    let arrived = ledger.delivered - 1;
    pair.mirror_shows("SELECT count(*) FROM t", &(2 * arrived).to_string());
    pair.mirror_shows(
        "SELECT count(*) FROM t WHERE id > 0 AND NOT EXISTS (SELECT FROM t o WHERE o.id = -t.id)",
        "0",
    );
    let mut open = false;
    for statement in logged_statements(&pair.mirror, "") {
        match statement.as_str() {
            "statement: BEGIN" => assert!(!std::mem::replace(&mut open, true)),
            "statement: COMMIT" => assert!(std::mem::take(&mut open), "COMMIT without its BEGIN"),
            _ => {}
        }
    }
    assert!(
        !pair
            .mirror
            .log()
            .unwrap()
            .contains("there is no transaction in progress")
    );
}

/// "It's possible to limit how much traffic mirror databases receive. … This is configurable using a percentage, relative
/// to the amount of transactions sent to the source database" (transactions, not statements).
#[test]
fn exposure_limits_the_share_of_transactions() {
    let pair = Pair::with(PairOptions::general("mirror_exposure = 0.25"));
    pair.both("CREATE TABLE t(id int)");
    let mut client = pair.client();
    for id in 0..300 {
        for sql in [
            "BEGIN".to_owned(),
            format!("INSERT INTO t VALUES ({id})"),
            format!("INSERT INTO t VALUES ({id})"),
            "COMMIT".to_owned(),
        ] {
            ok(&mut client, &sql);
        }
    }
    let ledger = pair.clean();
    assert_eq!(ledger.observed, 300);
    // Five standard deviations on both sides.
    assert!((38..=112).contains(&ledger.delivered), "{ledger:?}");
    pair.mirror_shows(
        "SELECT count(*) FROM t",
        &(2 * ledger.delivered).to_string(),
    );
    pair.mirror_shows(
        "SELECT count(*) FROM (SELECT id FROM t GROUP BY id HAVING count(*) <> 2) torn",
        "0",
    );
}

/// "Acceptable values are between 0.0 (0%) and 1.0 (100%)."
#[test]
fn exposures_outside_zero_to_one_are_refused_with_key_and_line() {
    let folder = tempfile::tempdir().unwrap();
    for (value, good) in [
        ("0.0", true),
        ("1.0", true),
        ("1", true),
        ("1.5", false),
        ("-0.1", false),
        ("nan", false),
        ("\"50%\"", false),
    ] {
        let text = format!(
            "[[databases]]\nname = \"prod\"\nhost = \"127.0.0.1\"\n[[databases]]\nname = \"staging_db\"\nhost = \"127.0.0.2\"\nuser = \"x\"\n\
             [[mirroring]]\nsource_db = \"prod\"\ndestination_db = \"staging_db\"\nexposure = {value}\n"
        );
        std::fs::write(folder.path().join("pgdog.toml"), text).unwrap();
        let mut check = support::pg_pair::command(folder.path(), "check");
        let output = support::run(check.arg("--offline"), b"", PATIENCE);
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), good, "{value}: {said}");
        assert!(
            good || said.contains(":11") && said.contains("exposure"),
            "{value}: {said}"
        );
    }
}

/// "This is changeable at runtime, without restarting PgDog."
#[test]
fn exposure_is_changeable_at_runtime() {
    let pair = Pair::with(PairOptions::general("mirror_exposure = 0.0"));
    let mut client = pair.client();
    for _ in 0..20 {
        ok(&mut client, "SELECT 1");
    }
    assert_eq!(pair.clean().unexposed, 20);
    let ctl = |share: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_parhelion"));
        let url = format!("http://{}", pair.proxy.control());
        support::run_ok(
            command.args(["ctl", "--url", &url, "exposure", "staging_db", share]),
            b"",
            PATIENCE,
        );
    };
    for (share, exposed) in [("1.0", true), ("0.0", false), ("1.0", true)] {
        ctl(share);
        // Takes effect within a second, for a client that is there already.
        let taken = eventually(Duration::from_secs(1), || {
            let before = pair.ledger().offered;
            ok(&mut client, "SELECT 1");
            ((pair.ledger().offered > before) == exposed).then_some(())
        });
        assert!(taken.is_some(), "{share}: {:?}", pair.ledger());
    }
    pair.clean();
}

/// "We try to make mirrored traffic as realistic as possible. For each statement inside a transaction, we record the timing
/// between that statement and the next one. When replaying traffic against a mirror, we pause between statements for the
/// same amount of time."
#[test]
fn between_statements_of_a_transaction_the_mirror_pauses_as_the_client_did() {
    let pair = Pair::new();
    pair.both("CREATE TABLE marks(id int, at timestamptz DEFAULT clock_timestamp())");
    let mut client = pair.client();
    ok(&mut client, "BEGIN");
    for (id, pause) in [(1, 150), (2, 40), (3, 10), (4, 300), (5, 0)] {
        ok(&mut client, &format!("INSERT INTO marks VALUES ({id})"));
        thread::sleep(Duration::from_millis(pause));
    }
    ok(&mut client, "COMMIT");
    pair.clean();
    let gaps = "SELECT round(extract(epoch FROM at - lag(at) OVER (ORDER BY id)) * 1000) FROM marks ORDER BY id";
    let read =
        |text: String| -> Vec<i64> { text.lines().filter_map(|line| line.parse().ok()).collect() };
    let on_primary = read(pair.primary.sql(SHOP, gaps).unwrap());
    let on_mirror = read(pair.mirror.sql(SHOP, gaps).unwrap());
    assert_eq!((on_primary.len(), on_mirror.len()), (4, 4));
    for (ours, theirs) in on_primary.iter().zip(&on_mirror) {
        assert!((ours - theirs).abs() < 25, "{on_primary:?} {on_mirror:?}");
    }
}

/// "This helps reproduce lock contention experienced by production databases, on the mirrors." (With `pace = "off"` it
/// does not: the transactions of the two clients no longer overlap.)
#[test]
fn lock_contention_is_reproduced_with_pace_transaction_and_not_with_off() {
    let mut waits = Vec::new();
    for pace in ["transaction", "off"] {
        let mut options = PairOptions::general(&format!("pace = \"{pace}\"")).logged();
        options.mirror.settings = vec![("deadlock_timeout".into(), "50ms".into())];
        let pair = Pair::with(options);
        pair.both("CREATE TABLE t(id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)");
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut client = pair.client();
                    for _ in 0..4 {
                        ok(&mut client, "BEGIN");
                        ok(&mut client, "UPDATE t SET n = n + 1 WHERE id = 1");
                        thread::sleep(Duration::from_millis(250));
                        ok(&mut client, "COMMIT");
                    }
                });
            }
        });
        assert_eq!(pair.clean().delivered, 8);
        pair.mirror_shows("SELECT n FROM t", "8");
        let log = pair.mirror.log().unwrap();
        waits.push(log.matches("still waiting for").count());
    }
    // On the primary nearly every transaction waits for the other client's.
    assert!(waits[0] >= 4 && waits[1] == 0, "{waits:?}");
}
