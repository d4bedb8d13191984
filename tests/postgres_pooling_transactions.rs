//! `pool_mode = "transaction"`: clients share primary connections and notice nothing of it.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use parhelion::testing::wait::eventually;
use support::pg::{PgClient, show, wire};
use support::pg_front::{Front, FrontOptions, SHOP};
use support::pg_pair::{fails, ok, rows, sqlstate};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Connections of clients that the server counts.
fn backends(front: &Front) -> String {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
               AND pid <> pg_backend_pid()";
    front.server.sql(SHOP, sql).unwrap()
}

fn pid(client: &mut PgClient) -> String {
    ok(client, "SELECT pg_backend_pid()").remove(0)
}

/// Parse, Bind, Execute and Sync of one statement; the answer.
fn prepared(client: &mut PgClient, bytes: &[Vec<u8>]) -> Vec<Vec<u8>> {
    client.send(&[bytes.concat(), wire::sync()].concat());
    client.until_ready()
}

#[test]
fn many_clients_share_a_few_connections_and_a_transaction_keeps_its_own() {
    let front = Front::start(FrontOptions::pooled(2));
    let mut clients: Vec<PgClient> = (0..20).map(|_| front.client()).collect();
    let mut pids = HashSet::new();
    for client in &mut clients {
        pids.insert(pid(client));
    }
    assert!(pids.len() <= 2, "{pids:?}");
    assert!(backends(&front).parse::<u32>().unwrap() <= 2);
    let [one, two, ..] = clients.as_mut_slice() else {
        unreachable!()
    };
    ok(one, "BEGIN");
    ok(two, "BEGIN");
    let (first, second) = (pid(one), pid(two));
    assert_ne!(first, second);
    for _ in 0..5 {
        assert_eq!((pid(one), pid(two)), (first.clone(), second.clone()));
    }
    ok(one, "COMMIT");
    ok(two, "ROLLBACK");
}

#[test]
fn who_finds_no_connection_free_waits_and_is_told_when_it_takes_too_long() {
    let options = FrontOptions::pooled(1).general("query_wait_timeout = \"500ms\"\n");
    let front = Front::start(options);
    let (mut one, mut two) = (front.client(), front.client());
    ok(&mut one, "BEGIN");
    two.send(&wire::query("SELECT 'waited'"));
    ok(&mut one, "COMMIT");
    assert_eq!(rows(&two.until_ready()), ["waited"]);
    ok(&mut one, "BEGIN");
    let begun = Instant::now();
    two.send(&wire::query("SELECT 1"));
    let answer = two.until_ready();
    assert_eq!(
        sqlstate(&answer).as_deref(),
        Some("53300"),
        "{}",
        show(&answer)
    );
    assert!(begun.elapsed() >= Duration::from_millis(450));
    ok(&mut one, "COMMIT");
    assert_eq!(ok(&mut front.client(), "SELECT 1"), ["1"]);
}

#[test]
fn waiting_clients_are_served_in_turn() {
    let front = Front::start(FrontOptions::pooled(1));
    front
        .server
        .sql(SHOP, "CREATE TABLE turns (who int, at serial)")
        .unwrap();
    let mut holder = front.client();
    let mut clients: Vec<PgClient> = (0..10).map(|_| front.client()).collect();
    ok(&mut holder, "BEGIN");
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&wire::query(&format!(
            "INSERT INTO turns (who) VALUES ({number})"
        )));
        // The proxy has read it when it answers the next client's startup behind it.
        std::thread::sleep(Duration::from_millis(20));
    }
    ok(&mut holder, "COMMIT");
    for client in &mut clients {
        assert_eq!(sqlstate(&client.until_ready()), None);
    }
    let order = "SELECT string_agg(who::text, ',' ORDER BY at) FROM turns";
    assert_eq!(
        front.server.sql(SHOP, order).unwrap(),
        "0,1,2,3,4,5,6,7,8,9"
    );
}

#[test]
fn prepared_statements_follow_their_clients_from_connection_to_connection() {
    let front = Front::start(FrontOptions::pooled(3));
    let mut clients: Vec<PgClient> = (0..6).map(|_| front.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        // One name, another statement for each client.
        let sql = format!("SELECT {number} + $1::int");
        let answer = prepared(
            client,
            &[wire::parse("s", &sql, &[]), wire::describe(b'S', "s")],
        );
        let tags: Vec<u8> = answer.iter().map(|message| message[0]).collect();
        assert_eq!(tags, b"1tTZ", "{}", show(&answer));
    }
    let mut rng = fastrand::Rng::with_seed(11);
    for round in 0..200 {
        // Transactions that overlap make the clients change places.
        let holder = rng.usize(..clients.len());
        ok(&mut clients[holder], "BEGIN");
        let at = rng.usize(..clients.len());
        let answer = prepared(
            &mut clients[at],
            &[
                wire::bind("", "s", 0, &[Some(round.to_string().as_bytes())], 0),
                wire::execute("", 0),
            ],
        );
        let tags: Vec<u8> = answer.iter().map(|message| message[0]).collect();
        assert_eq!(tags, b"2DCZ", "{}", show(&answer));
        assert_eq!(rows(&answer), [(at + round).to_string()]);
        ok(&mut clients[holder], "COMMIT");
    }
}

#[test]
fn closing_parsing_again_and_taken_names_behave_as_on_a_direct_connection() {
    let front = Front::start(FrontOptions::pooled(1));
    let script = |client: &mut PgClient| {
        let mut out = Vec::new();
        let bind = |name| [wire::bind("", name, 0, &[], 0), wire::execute("", 0)].concat();
        out.push(prepared(client, &[wire::parse("a", "SELECT 1", &[])]));
        out.push(prepared(
            client,
            &[bind("a"), wire::close(b'S', "a"), bind("a")],
        ));
        out.push(prepared(
            client,
            &[wire::parse("a", "SELECT 2", &[]), bind("a")],
        ));
        out.push(prepared(
            client,
            &[wire::parse("b", "SELEC", &[]), bind("a")],
        ));
        out.push(prepared(client, &[bind("b")]));
        out.push(prepared(client, &[wire::parse("", "SELECT 3", &[])]));
        out.push(prepared(client, &[bind("")]));
        out.push(client.query("BEGIN; SELEC"));
        out.push(client.query("BEGIN"));
        out.push(client.query("SELECT 1/0"));
        out.push(prepared(
            client,
            &[wire::parse("c", "SELECT 4", &[]), bind("a")],
        ));
        out.push(client.query("ROLLBACK"));
        out.push(prepared(client, &[bind("a")]));
        out
    };
    let direct = script(&mut PgClient::connect(front.server.address(), SHOP).0);
    let pooled = script(&mut front.client());
    for (step, (direct, pooled)) in direct.iter().zip(&pooled).enumerate() {
        assert_eq!(show(direct), show(pooled), "step {step}");
    }
    // A name that is taken: the SQLSTATE is Postgres's, the text names the statement by its content.
    let mut client = front.client();
    prepared(&mut client, &[wire::parse("d", "SELECT 1", &[])]);
    let answer = prepared(&mut client, &[wire::parse("d", "SELECT 2", &[])]);
    assert_eq!(sqlstate(&answer).as_deref(), Some("42P05"));
}

#[test]
fn settings_follow_their_clients_and_do_not_leak() {
    let front = Front::start(FrontOptions::pooled(1));
    let mut tokyo = front.client_with(&[("TimeZone", "Asia/Tokyo")]);
    let mut paris = front.client();
    let mut plain = front.client();
    ok(&mut paris, "SET timezone = 'Europe/Paris'");
    ok(&mut paris, "SET work_mem = '9MB'");
    ok(&mut paris, "BEGIN; SET work_mem = '11MB'; ROLLBACK");
    ok(&mut paris, "BEGIN; SET LOCAL work_mem = '12MB'; COMMIT");
    fails(&mut plain, "SET timezone = 'Mars/Base'");
    // The COMMIT inside keeps the setting, the error behind it hides it from whoever reads along.
    fails(
        &mut plain,
        "BEGIN; SET work_mem = '13MB'; COMMIT; SELECT 1/0",
    );
    for _ in 0..3 {
        assert_eq!(ok(&mut tokyo, "SHOW timezone"), ["Asia/Tokyo"]);
        assert_eq!(ok(&mut tokyo, "SHOW work_mem"), ["4MB"]);
        assert_eq!(ok(&mut paris, "SHOW timezone"), ["Europe/Paris"]);
        assert_eq!(ok(&mut paris, "SHOW work_mem"), ["9MB"]);
        assert_ne!(ok(&mut plain, "SHOW timezone"), ["Europe/Paris"]);
    }
    ok(&mut paris, "RESET work_mem");
    assert_eq!(ok(&mut paris, "SHOW work_mem"), ["4MB"]);
    ok(&mut tokyo, "DISCARD ALL");
    assert_eq!(ok(&mut tokyo, "SHOW timezone"), ["Asia/Tokyo"]);
}

#[test]
fn what_cannot_be_carried_pins_its_client_until_it_leaves_or_discards() {
    let front = Front::start(FrontOptions::pooled(2));
    let (mut one, mut two) = (front.client(), front.client());
    ok(&mut one, "CREATE TEMP TABLE basket (id int)");
    let home = pid(&mut one);
    for _ in 0..5 {
        assert_ne!(pid(&mut two), home);
        ok(&mut one, "INSERT INTO basket VALUES (1)");
    }
    assert_eq!(ok(&mut one, "SELECT count(*) FROM basket"), ["5"]);
    ok(&mut one, "DISCARD ALL");
    fails(&mut one, "SELECT count(*) FROM basket");
    // LISTEN: the notification arrives though the client says nothing.
    ok(&mut one, "LISTEN news");
    ok(&mut two, "NOTIFY news, 'fresh'");
    assert_eq!(one.message()[0], b'A');
    drop(one);
    // What it held is free again, and clean.
    let clean = eventually(TIMEOUT, || {
        let mut others = [front.client(), front.client()];
        for client in &mut others {
            ok(client, "BEGIN");
        }
        let listens = others
            .each_mut()
            .map(|client| ok(client, "SELECT pg_listening_channels()"));
        listens.iter().all(Vec::is_empty).then_some(())
    });
    assert!(clean.is_some());
}

#[test]
fn a_client_that_leaves_in_a_transaction_leaves_no_lock_and_no_row() {
    let front = Front::start(FrontOptions::pooled(1));
    front.server.sql(SHOP, "CREATE TABLE t (id int)").unwrap();
    for _ in 0..20 {
        let mut client = front.client();
        ok(&mut client, "BEGIN");
        ok(&mut client, "INSERT INTO t VALUES (1)");
        drop(client);
    }
    assert_eq!(ok(&mut front.client(), "SELECT count(*) FROM t"), ["0"]);
    // What was sent before the good-bye is executed.
    let mut client = front.client();
    client.send(&wire::query("INSERT INTO t VALUES (2)"));
    client.send(&wire::terminate());
    let done = eventually(TIMEOUT, || {
        (front.server.sql(SHOP, "SELECT count(*) FROM t").unwrap() == "1").then_some(())
    });
    assert!(done.is_some());
}

#[test]
fn a_dead_connection_is_replaced_and_the_client_that_held_it_sees_why() {
    let mut front = Front::start(FrontOptions::pooled(2));
    let (mut idle, mut busy) = (front.client(), front.client());
    ok(&mut busy, "BEGIN");
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    front.server.sql(SHOP, kill).unwrap();
    let told = busy.message();
    assert_eq!(sqlstate(&[told]).as_deref(), Some("57P01"));
    assert_eq!(ok(&mut idle, "SELECT 1"), ["1"]);
    front.server.restart().unwrap();
    assert_eq!(ok(&mut idle, "SELECT 2"), ["2"]);
}

#[test]
fn copy_and_function_calls_and_large_rows_pass_through_shared_connections() {
    let front = Front::start(FrontOptions::pooled(1));
    let mut client = front.client();
    ok(&mut client, "CREATE TABLE c (t text)");
    support::pg_pair::copy_in(&mut client, "c", &"line\n".repeat(50_000));
    client.send(&wire::query("COPY c TO STDOUT"));
    let answer = client.until_ready();
    assert_eq!(
        answer.iter().filter(|message| message[0] == b'd').count(),
        50_000
    );
    let answer = client.query("SELECT repeat('x', 20000000)");
    assert_eq!(answer[1].len(), 5 + 2 + 4 + 20_000_000);
    // A Query larger than what is held anywhere.
    let long = format!("SELECT length('{}')", "y".repeat(3_000_000));
    assert_eq!(ok(&mut client, &long), ["3000000"]);
    // int4abs(-5) by its OID.
    let mut call = 1397_u32.to_be_bytes().to_vec();
    call.extend([0, 1, 0, 0, 0, 1, 0, 0, 0, 2, b'-', b'5', 0, 0]);
    client.send(&wire::message(b'F', &call));
    let answer = client.until_ready();
    assert_eq!(answer[0], wire::message(b'V', b"\0\0\0\x015"));
}

#[test]
fn replication_is_refused_where_connections_are_shared() {
    let front = Front::start(FrontOptions::pooled(1));
    let mut client = PgClient::open(front.proxy.address());
    let parameters = [
        ("user", "postgres"),
        ("database", SHOP),
        ("replication", "true"),
    ];
    client.send(&wire::startup(&parameters));
    let answer = client.until_ready();
    assert_eq!(sqlstate(&answer).as_deref(), Some("0A000"));
    assert!(show(&answer).contains("pool_mode"), "{}", show(&answer));
}

#[test]
fn a_thousand_cancels_hit_only_their_own_query() {
    let front = Front::start(FrontOptions::pooled(4));
    let address = front.proxy.address();
    let mut canceller = front.client();
    let key = (canceller.pid, canceller.key.clone());
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    // Others run one short query after the other on the connections that the cancelled client leaves.
    let others: Vec<_> = (0..6)
        .map(|_| {
            let (mut client, stop) = (front.client(), stop.clone());
            std::thread::spawn(move || {
                let mut ran = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = client.query("SELECT pg_sleep(0.001)");
                    assert_eq!(sqlstate(&answer), None, "{}", show(&answer));
                    ran += 1;
                }
                ran
            })
        })
        .collect();
    let mut cancelled = 0;
    for _ in 0..1000 {
        canceller.send(&wire::query("SELECT pg_sleep(0.002)"));
        let mut request = PgClient::open(address);
        request.send(&wire::cancel(key.0, &key.1));
        let answer = canceller.until_ready();
        match sqlstate(&answer).as_deref() {
            None => {}
            Some("57014") => cancelled += 1,
            Some(other) => panic!("{other}"),
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let ran: u32 = others.into_iter().map(|other| other.join().unwrap()).sum();
    assert!(cancelled > 0 && ran > 0, "{cancelled} cancelled, {ran} ran");
    // A key that nobody has cancels nothing.
    canceller.send(&wire::query("SELECT pg_sleep(0.3)"));
    let mut request = PgClient::open(address);
    request.send(&wire::cancel(key.0, &[0; 4]));
    assert_eq!(sqlstate(&canceller.until_ready()), None);
}

#[test]
fn a_mirror_gets_from_shared_connections_what_it_gets_from_own_ones() {
    let mut options = FrontOptions::pooled(2);
    options.server.databases.push("twin".into());
    options.more =
        "[[databases]]\nname = \"twin_db\"\ndatabase_name = \"twin\"\nhost = \"127.0.0.1\"\n\
                    port = {port}\nuser = \"postgres\"\n\
                    [[mirroring]]\nsource_db = \"shop\"\ndestination_db = \"twin_db\"\n"
            .into();
    let front = Front::start(options);
    let table = "CREATE TABLE m (who int, n int, zone text)";
    front.server.sql(SHOP, table).unwrap();
    front.server.sql("twin", table).unwrap();
    let mut clients: Vec<PgClient> = (0..5).map(|_| front.client()).collect();
    for (who, client) in clients.iter_mut().enumerate() {
        ok(client, &format!("SET timezone = 'Etc/GMT-{who}'"));
        let sql = format!("INSERT INTO m VALUES ({who}, $1, current_setting('timezone'))");
        prepared(client, &[wire::parse("add", &sql, &[23])]);
    }
    for n in 0..20_usize {
        let text = n.to_string();
        for client in &mut clients {
            let bind = wire::bind("", "add", 0, &[Some(text.as_bytes())], 0);
            let answer = prepared(client, &[bind, wire::execute("", 0)]);
            assert_eq!(sqlstate(&answer), None, "{}", show(&answer));
        }
        ok(&mut clients[n % 5], "BEGIN");
        ok(&mut clients[n % 5], "UPDATE m SET n = n + 0");
        ok(&mut clients[n % 5], "ROLLBACK");
    }
    let rows = "SELECT md5(string_agg(m::text, ';' ORDER BY who, n)) || count(*) FROM m";
    let wanted = front.server.sql(SHOP, rows).unwrap();
    assert!(wanted.ends_with("100"), "{wanted}");
    let mut last = String::new();
    let same = eventually(TIMEOUT, || {
        last = front.server.sql("twin", rows).unwrap();
        (last == wanted).then_some(())
    });
    assert!(same.is_some(), "{last}, not {wanted}");
    let mirrors = front.proxy.get("/api/mirrors").unwrap();
    let mirrors: serde_json::Value = serde_json::from_str(&mirrors).unwrap();
    assert_eq!(mirrors["mirrors"][0]["errors_total"], 0, "{mirrors:#}");
}
