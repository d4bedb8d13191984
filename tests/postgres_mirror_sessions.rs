//! Sampled and crowded streams against two real servers: sessions are carried so that the mirror sees no error that the
//! primary did not have, and the ledger is what the mirror itself recorded.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::thread;
use std::time::Duration;

use support::pg::{PgClient, wire};
use support::pg_pair::{Pair, PairOptions, SHOP, fails, logged_statements, ok, sqlstate};
use support::run_ok;

/// The errors in the mirror's log.
fn mirror_errors(pair: &Pair) -> Vec<String> {
    let log = pair.mirror.log().unwrap();
    let errors = log.lines().filter(|line| {
        (line.contains("ERROR:") || line.contains("FATAL:") || line.contains("WARNING:"))
            && !line.contains("starting up")
    });
    errors.map(str::to_owned).collect()
}

fn execute(name: &str, parameters: &[Option<&[u8]>]) -> Vec<u8> {
    [
        wire::bind("", name, 0, parameters, 0),
        wire::describe(b'P', ""),
        wire::execute("", 0),
        wire::sync(),
    ]
    .concat()
}

#[test]
fn a_sampled_stream_with_prepared_statements_search_path_and_roles_has_no_error_of_its_own() {
    for exposure in ["0.1", "0.5"] {
        let pair = Pair::with(PairOptions {
            mirror_database: "pool_size = 3".into(),
            ..PairOptions::mirroring(&format!("exposure = {exposure}")).logged()
        });
        pair.both(
            "CREATE ROLE clerk; CREATE ROLE boss; GRANT clerk, boss TO postgres; \
             CREATE SCHEMA north AUTHORIZATION clerk; CREATE SCHEMA south AUTHORIZATION boss; \
             SET ROLE clerk; CREATE TABLE north.t(id int, who text DEFAULT current_user); \
             SET ROLE boss; CREATE TABLE south.t(id int, extra text, who text DEFAULT current_user)",
        );
        let mut clients: Vec<PgClient> = (0..6).map(|_| pair.client()).collect();
        for (at, client) in clients.iter_mut().enumerate() {
            let (schema, role) = [("north", "clerk"), ("south", "boss")][at % 2];
            ok(client, &format!("SET search_path TO {schema}, public"));
            ok(client, &format!("SET ROLE {role}"));
            client.send(
                &[
                    wire::parse("add", "INSERT INTO t(id) VALUES ($1)", &[23]),
                    wire::parse("all", "SELECT * FROM t", &[]),
                    wire::sync(),
                ]
                .concat(),
            );
            assert!(sqlstate(&client.until_ready()).is_none());
        }
        for round in 0..40 {
            for client in &mut clients {
                let id = round.to_string();
                client.send(&execute("add", &[Some(id.as_bytes())]));
                assert!(sqlstate(&client.until_ready()).is_none());
                client.send(&execute("all", &[]));
                assert!(sqlstate(&client.until_ready()).is_none());
                if round % 10 == 5 {
                    for sql in [
                        "BEGIN",
                        "SET LOCAL search_path = public",
                        "SAVEPOINT a",
                        "ROLLBACK TO a",
                        "COMMIT",
                    ] {
                        ok(client, sql);
                    }
                }
                if round % 20 == 7 {
                    // Closed and made anew under the same name, for another text.
                    client.send(
                        &[
                            wire::close(b'S', "add"),
                            wire::parse("add", "INSERT INTO t(id) VALUES ($1 + 1000)", &[23]),
                            wire::sync(),
                        ]
                        .concat(),
                    );
                    assert!(sqlstate(&client.until_ready()).is_none());
                }
            }
        }
        let ledger = pair.clean();
        assert!(ledger.delivered > 20 && ledger.unexposed > 20, "{ledger:?}");
        assert_eq!(
            mirror_errors(&pair),
            Vec::<String>::new(),
            "exposure {exposure}"
        );
        let wrong = "SELECT count(*) FROM (SELECT who, 'clerk' AS wanted FROM north.t UNION ALL SELECT who, 'boss' FROM south.t) x WHERE who <> wanted";
        assert_eq!(pair.mirror.sql(SHOP, wrong).unwrap(), "0");
    }
}

fn pgbench(pair: &Pair, port: u16, database: &str, args: &[&str]) -> String {
    let mut command = Command::new(pair.primary.program("pgbench"));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres"]);
    run_ok(
        command.args(args).arg(database),
        b"",
        Duration::from_secs(100),
    )
}

fn bench_tables(pair: &Pair) {
    for server in [&pair.primary, &pair.mirror] {
        let mut command = Command::new(server.program("pgbench"));
        let port = server.port().to_string();
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "postgres",
            "-i",
            "-q",
            "-s",
            "1",
            SHOP,
        ]);
        run_ok(&mut command, b"", Duration::from_secs(60));
    }
}

#[test]
fn pgbench_with_prepared_statements_runs_without_an_error_on_a_sampled_mirror() {
    let pair = Pair::with(PairOptions::mirroring("exposure = 0.1"));
    bench_tables(&pair);
    let port = pair.proxy.address().port();
    let said = pgbench(
        &pair,
        port,
        "prod",
        &["-n", "-M", "prepared", "-c", "6", "-t", "150"],
    );
    assert!(said.contains("actually processed: 900/900"), "{said}");
    let ledger = pair.clean_but_dropped();
    assert!(ledger.delivered > 30, "{ledger:?}");
    assert_eq!(mirror_errors(&pair), Vec::<String>::new());
}

/// How often the mirror ran pgbench's INSERT, by the queries that were counted.
fn history_inserts(pair: &Pair) -> u64 {
    let text = pair.proxy.get("/api/queries?limit=1000").unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let list = value["queries"].as_array().unwrap().iter();
    let inserts = list.filter(|item| {
        let query = item["query"].as_str().unwrap();
        query.starts_with("insert into pgbench_history")
    });
    inserts.map(|item| item["calls"].as_u64().unwrap()).sum()
}

/// What pgbench wrote on the mirror is what the ledger says was delivered, in number and in sums.
#[test]
fn pgbench_rows_on_the_mirror_equal_the_ledgers_delivered_units() {
    for exposure in ["1.0", "0.1"] {
        let pair = Pair::with(PairOptions::mirroring(&format!("exposure = {exposure}")));
        bench_tables(&pair);
        let port = pair.proxy.address().port();
        let mut before = pair.clean();
        let mut inserts_before = 0;
        for (script, mode, writes) in [
            ("tpcb-like", "simple", true),
            ("simple-update", "extended", true),
            ("select-only", "prepared", false),
        ] {
            pair.both("TRUNCATE pgbench_history");
            let balances = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), \
                (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches)";
            let numbers = |sql: &str| -> Vec<i64> {
                let text = pair.mirror.sql(SHOP, sql).unwrap();
                text.split('|').map(|part| part.parse().unwrap()).collect()
            };
            let balances_before = numbers(balances);
            let said = pgbench(
                &pair,
                port,
                "prod",
                &["-n", "-b", script, "-M", mode, "-c", "4", "-t", "100"],
            );
            assert!(said.contains("actually processed: 400/400"), "{said}");
            let ledger = pair.clean_but_dropped();
            let history = "SELECT count(*), coalesce(sum(delta), 0), \
                coalesce(md5(string_agg(tid || ' ' || bid || ' ' || aid || ' ' || delta, ',' ORDER BY aid, tid, delta)), '') \
                FROM pgbench_history";
            let on_primary = pair.primary.sql(SHOP, history).unwrap();
            let on_mirror = pair.mirror.sql(SHOP, history).unwrap();
            let sums: Vec<i64> = on_mirror
                .split('|')
                .filter_map(|part| part.parse().ok())
                .collect();
            let (rows, delta) = (sums[0] as u64, sums[1]);
            let inserts = history_inserts(&pair);
            let delivered = ledger.delivered - before.delivered;
            // pgbench itself asks a question or two before it begins.
            let observed = ledger.observed - before.observed;
            let own = observed - 400;
            println!(
                "{script} at {exposure}: {rows} rows, {delivered} delivered of {observed}, {own} of them pgbench's own"
            );
            assert!(own <= 20, "{script} {observed}");
            assert!(on_primary.starts_with(if writes { "400|" } else { "0|" }));
            // Row by row, sum by sum: each delivered transaction is there, whole and once.
            assert_eq!(inserts - inserts_before, rows, "{script} at {exposure}");
            let balances_after = numbers(balances);
            let gains: Vec<i64> = balances_after
                .iter()
                .zip(&balances_before)
                .map(|(after, before)| after - before)
                .collect();
            match script {
                "tpcb-like" => assert_eq!(gains, [delta, delta, delta], "at {exposure}"),
                "simple-update" => assert_eq!(gains, [delta, 0, 0], "at {exposure}"),
                _ => assert_eq!(gains, [0, 0, 0], "at {exposure}"),
            }
            if exposure == "1.0" {
                assert_eq!((ledger.dropped, ledger.unexposed), (0, 0), "{ledger:?}");
                assert_eq!(delivered, observed);
                assert_eq!(on_mirror, on_primary, "{script}");
            } else if writes {
                assert!(
                    rows <= delivered && delivered <= rows + own,
                    "{script} at {exposure}: {rows} rows, {delivered} delivered"
                );
            }
            (before, inserts_before) = (ledger, inserts);
        }
    }
}

#[test]
fn five_hundred_clients_share_ten_connections_fairly_and_in_order() {
    let mut options = PairOptions {
        mirror_database: "pool_size = 10".into(),
        ..PairOptions::default()
    };
    options.primary.settings = vec![("max_connections".into(), "600".into())];
    let pair = Pair::with(options);
    pair.both("CREATE TABLE t(at serial, client int, n int)");
    let clients = 500;
    let mut sessions: Vec<PgClient> = (0..clients).map(|_| pair.client()).collect();
    let rounds = 6;
    for n in 0..rounds {
        for (id, session) in sessions.iter_mut().enumerate() {
            session.send(&wire::query(&format!(
                "INSERT INTO t(client, n) VALUES ({id}, {n})"
            )));
        }
        for session in &mut sessions {
            assert!(sqlstate(&session.until_ready()).is_none());
        }
    }
    let ledger = pair.clean();
    assert_eq!(ledger.delivered, clients as u64 * rounds);
    let disorder = "SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY client ORDER BY at) AS before FROM t) x WHERE n <> coalesce(before + 1, 0)";
    assert_eq!(pair.mirror.sql(SHOP, disorder).unwrap(), "0");
    let connections = pair.api("staging_db")["connections"]["open"]
        .as_u64()
        .unwrap();
    assert!(connections <= 10, "{connections}");
    // Fair: while all have something queued nobody is served twice before everybody was served once.
    pair.both("TRUNCATE t");
    pair.mirror.pause().unwrap();
    for n in 0..3 {
        for (id, session) in sessions.iter_mut().enumerate() {
            ok(
                session,
                &format!("INSERT INTO t(client, n) VALUES ({id}, {n})"),
            );
        }
    }
    pair.mirror.resume().unwrap();
    pair.clean();
    let late = "SELECT count(*) FROM (SELECT n, row_number() OVER (ORDER BY at) AS place FROM t) x WHERE n = 0 AND place > 560";
    let late: u64 = pair.mirror.sql(SHOP, late).unwrap().parse().unwrap();
    // A unit may be late that waits for a connection to be opened: at most one per connection.
    assert!(
        late <= 10,
        "{late} clients' first units came after others' second"
    );
}

#[test]
fn the_extended_protocol_in_all_its_forms_is_followed_and_counted_exactly() {
    let pair = Pair::with(PairOptions::general("mirror_queue = 1000").logged());
    pair.both("CREATE TABLE t(id int PRIMARY KEY)");
    let mut client = pair.client();
    let mut units = 0;
    // An error in mid-pipeline: the server skips to Sync.
    let insert = |id: &str| {
        [
            wire::parse("", &format!("INSERT INTO t VALUES ({id})"), &[]),
            wire::bind("", "", 0, &[], 0),
            wire::execute("", 0),
        ]
        .concat()
    };
    client.send(
        &[
            insert("1"),
            insert("1/0"),
            insert("2"),
            wire::sync(),
            insert("3"),
            wire::sync(),
        ]
        .concat(),
    );
    assert_eq!(sqlstate(&client.until_ready()).as_deref(), Some("22012"));
    assert!(sqlstate(&client.until_ready()).is_none());
    units += 2;
    // A deep pipeline of transactions of their own.
    let deep: Vec<u8> = (100..400)
        .flat_map(|id| [insert(&id.to_string()), wire::sync()].concat())
        .collect();
    client.send(&deep);
    for _ in 100..400 {
        assert!(sqlstate(&client.until_ready()).is_none());
    }
    units += 300;
    // A portal fetched in pieces, with Flush between them and no Sync.
    client.send(&[wire::query("BEGIN")].concat());
    client.until_ready();
    client.send(
        &[
            wire::parse("many", "SELECT * FROM generate_series(1, $1)", &[23]),
            wire::describe(b'S', "many"),
            wire::bind("p", "many", 0, &[Some(b"10")], 0),
            wire::describe(b'P', "p"),
            wire::execute("p", 3),
            wire::flush(),
        ]
        .concat(),
    );
    client.until(b's');
    client.send(&[wire::execute("p", 4), wire::flush()].concat());
    client.until(b's');
    client.send(&[wire::execute("p", 0), wire::close(b'P', "p"), wire::sync()].concat());
    client.until_ready();
    ok(&mut client, "COMMIT");
    units += 1;
    // The statement of the earlier unit, and its end.
    client.send(&execute("many", &[Some(b"3")]));
    assert!(sqlstate(&client.until_ready()).is_none());
    client.send(&[wire::close(b'S', "many"), wire::sync()].concat());
    client.until_ready();
    client.send(&execute("many", &[Some(b"3")]));
    assert_eq!(sqlstate(&client.until_ready()).as_deref(), Some("26000"));
    client.send(&wire::sync());
    client.until_ready();
    units += 4;
    // Notices, an empty query, a timeout of the server's.
    ok(&mut client, "DO $$ BEGIN RAISE NOTICE 'half way'; END $$");
    ok(&mut client, "");
    ok(&mut client, "SET statement_timeout = '200ms'");
    assert_eq!(fails(&mut client, "SELECT pg_sleep(20)"), "57014");
    ok(&mut client, "RESET statement_timeout");
    units += 5;
    let ledger = pair.settled();
    assert_eq!(
        (ledger.delivered, ledger.observed),
        (units, units),
        "{:#}",
        pair.api("staging_db")
    );
    assert_eq!(
        pair.api("staging_db")["divergences_total"],
        0,
        "{:#}",
        pair.api("staging_db")
    );
    pair.mirror_shows("SELECT count(*) FROM t", "301");
    // FATAL in mid-transaction: no unit.
    ok(&mut client, "BEGIN");
    ok(&mut client, "INSERT INTO t VALUES (9000)");
    let answer = client.query("SELECT pg_terminate_backend(pg_backend_pid())");
    assert_eq!(sqlstate(&answer).as_deref(), Some("57P01"));
    assert!(answer.last().unwrap().starts_with(b"closed"));
    let ledger = pair.settled();
    assert_eq!(
        (ledger.delivered, ledger.excluded),
        (units, 1),
        "{ledger:?}"
    );
    pair.mirror_shows("SELECT count(*) FROM t WHERE id = 9000", "0");
    let inserts = logged_statements(&pair.mirror, "INSERT INTO t").len();
    assert_eq!(inserts, 1 + 300 + 1, "what the mirror wrote down");
}

#[test]
fn a_restart_of_the_primary_is_seen_as_on_a_direct_connection_and_leaves_an_exact_ledger() {
    let mut pair = Pair::new();
    pair.both("CREATE TABLE t(id int)");
    let mut busy = pair.client();
    let mut idle = pair.client();
    ok(&mut idle, "INSERT INTO t VALUES (1)");
    for sql in ["BEGIN", "INSERT INTO t VALUES (2)"] {
        ok(&mut busy, sql);
    }
    pair.primary.restart().unwrap();
    for client in [&mut busy, &mut idle] {
        let last = client.message();
        assert_eq!(sqlstate(&[last]).as_deref(), Some("57P01"));
        assert!(wire::read_message(&mut client.stream).is_err());
    }
    let mut client = pair.client();
    ok(&mut client, "INSERT INTO t VALUES (3)");
    let ledger = pair.clean();
    assert_eq!(
        (ledger.delivered, ledger.excluded, ledger.observed),
        (2, 1, 3),
        "{ledger:?}"
    );
    pair.mirror_shows("SELECT string_agg(id::text, ',') FROM t", "1,3");
}

/// The error of the gaps between 1,000 statements, printed and bounded. Measured again where the machine is so busy
/// that the servers themselves run late.
#[test]
fn gaps_between_statements_are_kept_to_a_millisecond_in_the_median() {
    let pair = Pair::new();
    pair.both("CREATE TABLE marks(id int PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())");
    let mut medians = Vec::new();
    for seed in 0..3 {
        let (median, p99) = gap_errors_us(&pair, seed);
        println!("gap error over 1,000 statements: median {median} µs, p99 {p99} µs");
        medians.push(median);
        if median <= 1000 {
            return;
        }
    }
    panic!("medians {medians:?} µs");
}

/// Median and 99th percentile of the difference between a gap on the primary and on the mirror.
fn gap_errors_us(pair: &Pair, seed: u64) -> (i64, i64) {
    pair.both("TRUNCATE marks");
    let mut client = pair.client();
    let mut rng = fastrand::Rng::with_seed(seed);
    for transaction in 0..20 {
        ok(&mut client, "BEGIN");
        for statement in 0..51 {
            let id = transaction * 100 + statement;
            ok(&mut client, &format!("INSERT INTO marks VALUES ({id})"));
            thread::sleep(Duration::from_micros(rng.u64(500..6_000)));
        }
        ok(&mut client, "COMMIT");
    }
    pair.clean();
    let gaps = "SELECT (extract(epoch FROM at - lag(at) OVER (PARTITION BY id / 100 ORDER BY id)) * 1000000)::bigint \
        FROM marks ORDER BY id";
    let [on_primary, on_mirror] = [&pair.primary, &pair.mirror].map(|server| {
        let text = server.sql(SHOP, gaps).unwrap();
        let lines = text.lines().filter_map(|line| line.parse().ok());
        lines.collect::<Vec<i64>>()
    });
    let pairs = on_primary.iter().zip(&on_mirror);
    let mut errors: Vec<i64> = pairs.map(|(ours, theirs)| (ours - theirs).abs()).collect();
    assert_eq!(errors.len(), 1000);
    errors.sort_unstable();
    (errors[500], errors[990])
}
