//! Databases and the proxy itself stop, die and come back: what clients see, and what the books say of it, checked
//! against what the mirror wrote down.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use parhelion::demo::resp_server::{Recording, RespOptions, RespServer};
use parhelion::testing::proxy::ProxyOptions;
use parhelion::testing::relay::Relay;
use parhelion::testing::scripted::{ScriptedPeer, Step};
use parhelion::testing::servers::{PostgresOptions, PostgresServer, RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use rustix::process::Signal;
use support::faults::{Latencies, Ledger, Load, PATIENCE, resident, setting, start, status};
use support::pg::{PgClient, wire};
use support::resp::{RespClient, encode};

fn redis() -> RedisServer {
    RedisServer::start(RedisOptions::default()).unwrap()
}

fn postgres() -> PostgresServer {
    PostgresServer::start(PostgresOptions::default()).unwrap()
}

/// The value of a counter key, 0 if there is none.
fn counter(server: &RedisServer, key: &str) -> u64 {
    let reply = server.command(&["GET", key]).unwrap();
    let text = String::from_utf8(reply).unwrap();
    text.lines().nth(1).map_or(0, |line| line.parse().unwrap())
}

// --- the mirror --------------------------------------------------------------------------------

#[test]
fn a_stopped_mirror_costs_clients_nothing_and_the_proxy_its_bound() {
    let seconds = setting("PARHELION_STOP_SECONDS", 5);
    let bound = 16 << 20;
    let (primary, mirror) = (redis(), redis());
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(mirror.address())
        .general("mirror_memory = \"16MiB\"")
        .general("mirror_queue = 100000");
    let proxy = start(&options);
    let load = Load::start(proxy.address(), 4, 4096);
    load.progress(500);
    let mut other = RespClient::connect(proxy.address());
    let mut ping = || assert_eq!(other.call(&["PING"]), b"+PONG\r\n");
    // As long as the mirror is stopped, so that both see the same of everything else.
    let (began, before) = (Instant::now(), load.done());
    let time = Duration::from_secs(seconds);
    let healthy = Latencies::while_(|| began.elapsed() < time, &mut ping);
    let beside_healthy = load.done() - before;
    let memory = resident(proxy.pid());
    mirror.pause().unwrap();
    let (began, before, mut most) = (Instant::now(), load.done(), 0);
    let stopped = Latencies::while_(
        || {
            most = most.max(resident(proxy.pid()).saturating_sub(memory));
            began.elapsed() < time
        },
        &mut ping,
    );
    let during = load.done() - before;
    println!(
        "{beside_healthy} transactions beside a healthy mirror, {during} beside a stopped one; {}",
        stopped.against("another client", &healthy)
    );
    let slowest = load.slowest();
    let used = status(proxy.control())["totals"]["mirror_memory_used"]
        .as_u64()
        .unwrap();
    mirror.resume().unwrap();
    load.progress(200);
    let (done, ends) = load.finish();
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    let books = Ledger::settled(proxy.control());
    println!(
        "stopped for {seconds} s: {during} transactions, slowest {slowest:?}, grew by {most} bytes, {books:?}"
    );
    assert!(!stopped.is_worse_than(&healthy));
    // A mirror that takes nothing costs less than one that works, which shares the machine.
    assert!(
        during * 10 > beside_healthy * 7,
        "{during} transactions beside a stopped mirror, {beside_healthy} beside a healthy one"
    );
    assert!(used <= bound, "{used} bytes in the rings");
    // The bound, and as much again for what the allocator and the kernel's view of slabs add.
    assert!(most <= 2 * bound + (16 << 20), "{most} bytes");
    assert!(books.dropped > 0, "the rings never filled: {books:?}");
    assert_eq!(books.offered, done, "every transaction is one unit");
    let seen: u64 = (0..4).map(|n| counter(&mirror, &format!("a:{n}"))).sum();
    assert!(
        (books.delivered..=books.delivered + books.errored).contains(&seen),
        "{seen}: {books:?}"
    );
}

#[test]
fn a_mirror_killed_twenty_times_gets_whole_units_and_the_books_agree_with_its_data() {
    let primary = redis();
    let mut mirror = RedisServer::start(RedisOptions {
        durable: true,
        extra: vec![("appendfsync".to_owned(), "no".to_owned())],
        ..RedisOptions::default()
    })
    .unwrap();
    let proxy = start(&ProxyOptions::new("redis", primary.address()).mirror(mirror.address()));
    let load = Load::start(proxy.address(), 3, 64);
    for _ in 0..20 {
        let delivered = Ledger::of(proxy.control()).delivered;
        let again = eventually(PATIENCE, || {
            (Ledger::of(proxy.control()).delivered > delivered + 20).then_some(())
        });
        assert!(
            again.is_some(),
            "nothing is delivered to a mirror that came back"
        );
        mirror.kill9().unwrap();
        load.progress(20);
        mirror.restart().unwrap();
    }
    let (done, ends) = load.finish();
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    let books = Ledger::settled(proxy.control());
    println!("20 kills: {books:?}");
    assert_eq!(books.offered, done);
    let mut seen = 0;
    for client in 0..3 {
        let a = counter(&mirror, &format!("a:{client}"));
        assert_eq!(a, counter(&mirror, &format!("b:{client}")), "half a unit");
        seen += a;
    }
    assert!(
        (books.delivered..=books.delivered + books.errored).contains(&seen),
        "the mirror holds {seen} units: {books:?}"
    );
}

/// The units of one connection, and whether the last one was cut. A unit is MULTI INCR SET INCR EXEC.
fn units(recording: &Recording) -> (u64, bool) {
    let names: Vec<&[u8]> = recording.iter().map(|command| &command[0][..]).collect();
    let unit: [&[u8]; 5] = [b"MULTI", b"INCR", b"SET", b"INCR", b"EXEC"];
    let mut chunks = names.chunks_exact(unit.len());
    for chunk in &mut chunks {
        assert!(chunk == unit, "not a unit: {chunk:?}");
    }
    let rest = chunks.remainder();
    assert!(unit.starts_with(rest), "not a unit's first bytes: {rest:?}");
    (recording.len() as u64 / unit.len() as u64, !rest.is_empty())
}

#[test]
fn connections_cut_in_the_middle_of_units_are_followed_by_a_units_first_byte() {
    let primary = redis();
    let witness = RespServer::start(RespOptions {
        record: true,
        ..RespOptions::default()
    })
    .unwrap();
    let relay = Relay::start(witness.address()).unwrap();
    let proxy = start(&ProxyOptions::new("redis", primary.address()).mirror(relay.address()));
    let load = Load::start(proxy.address(), 3, 200);
    let mut rng = fastrand::Rng::with_seed(13);
    for _ in 0..20 {
        let known = relay.accepted();
        let delivered = Ledger::of(proxy.control()).delivered;
        relay.cut_requests_after(rng.u64(300..6_000));
        let cut = eventually(PATIENCE, || (relay.accepted() > known).then_some(()));
        relay.heal();
        assert!(cut.is_some(), "no new connection after a cut");
        let again = eventually(PATIENCE, || {
            (Ledger::of(proxy.control()).delivered > delivered + 5).then_some(())
        });
        assert!(again.is_some(), "nothing is delivered after a cut");
    }
    let (done, ends) = load.finish();
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    let books = Ledger::settled(proxy.control());
    let recorded = witness.recorded();
    let seen: Vec<(u64, bool)> = recorded.iter().map(units).collect();
    let whole: u64 = seen.iter().map(|(whole, _)| whole).sum();
    let cut = seen.iter().filter(|(_, cut)| *cut).count();
    println!(
        "{} connections, {cut} with a unit cut in two, {books:?}",
        seen.len()
    );
    assert!(cut > 0, "no unit was cut: the test tests nothing");
    assert_eq!(books.offered, done);
    assert!(
        (books.delivered..=books.delivered + books.errored).contains(&whole),
        "the mirror saw {whole} whole units: {books:?}"
    );
}

#[test]
fn a_short_queue_does_not_overflow_while_units_are_gathered_for_a_send() {
    let (primary, mirror) = (redis(), redis());
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(mirror.address())
        .general("mirror_queue = 4");
    let proxy = start(&options);
    let mut client = RespClient::connect(proxy.address());
    assert_eq!(client.call(&["INCR", "n"]), b":1\r\n");
    Ledger::settled(proxy.control());
    // Nothing is answered, yet there is room on the way to the mirror for hundreds.
    mirror.pause().unwrap();
    for _ in 0..100 {
        client.call(&["INCR", "n"]);
    }
    mirror.resume().unwrap();
    let books = Ledger::settled(proxy.control());
    assert_eq!((books.dropped, books.delivered), (0, 101), "{books:?}");
    assert_eq!(counter(&mirror, "n"), 101);
}

#[test]
fn a_full_ring_inside_a_transaction_keeps_or_drops_it_whole() {
    let primary = redis();
    let witness = RespServer::start(RespOptions {
        record: true,
        ..RespOptions::default()
    })
    .unwrap();
    let relay = Relay::start(witness.address()).unwrap();
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(relay.address())
        .general("mirror_queue = 2");
    let proxy = start(&options);
    // More than the mirror's window, which a mirror that stands still fills; then the rings of two.
    let (clients, each) = (4_u64, 1_000_usize);
    relay.stall();
    let mut clients: Vec<RespClient> = (0..clients)
        .map(|number| {
            let client = RespClient::connect(proxy.address());
            let unit = [
                encode(&["MULTI"]),
                encode(&["INCR", &format!("a:{number}")]),
                encode(&["SET", "pad", "x"]),
                encode(&["INCR", &format!("b:{number}")]),
                encode(&["EXEC"]),
            ];
            client.send_aside(unit.concat().repeat(each));
            client
        })
        .collect();
    for client in &mut clients {
        client.replies(5 * each);
    }
    relay.resume();
    let books = Ledger::settled(proxy.control());
    println!("rings of two: {books:?}");
    assert_eq!(books.offered, 4 * each as u64);
    assert!(books.dropped > 1_000 && books.delivered > 0, "{books:?}");
    let whole: u64 = witness
        .recorded()
        .iter()
        .map(|recording| {
            let (whole, cut) = units(recording);
            assert!(!cut, "an orphan at the end");
            whole
        })
        .sum();
    assert_eq!(whole, books.delivered);
}

#[test]
fn a_postgres_mirror_killed_in_transactions_has_whole_ones_only() {
    let (primary, mut mirror) = (postgres(), postgres());
    for server in [&primary, &mirror] {
        server
            .sql("postgres", "CREATE TABLE steps (unit int, half int)")
            .unwrap();
    }
    let options = ProxyOptions::new("postgres", primary.address())
        .mirror(mirror.address())
        .general("pace = \"off\"");
    let proxy = start(&options);
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    let mut unit = 0;
    for _ in 0..3 {
        let wanted = Ledger::of(proxy.control()).delivered + 10;
        let came = eventually(PATIENCE, || {
            unit += 1;
            for sql in [
                "BEGIN".to_owned(),
                format!("INSERT INTO steps VALUES ({unit}, 1)"),
                format!("INSERT INTO steps VALUES ({unit}, 2)"),
                "COMMIT".to_owned(),
            ] {
                let answer = client.query(&sql);
                assert!(answer.iter().all(|message| message[0] != b'E'), "{sql}");
            }
            (Ledger::of(proxy.control()).delivered >= wanted).then_some(())
        });
        assert!(came.is_some(), "nothing is delivered");
        mirror.kill9().unwrap();
        client.query("SELECT 1");
        mirror.restart().unwrap();
    }
    let books = Ledger::settled(proxy.control());
    println!("3 kills of a Postgres mirror: {books:?}");
    let halves =
        "SELECT count(*) FROM (SELECT unit FROM steps GROUP BY unit HAVING count(*) <> 2) odd";
    assert_eq!(mirror.sql("postgres", halves).unwrap(), "0");
    let whole: u64 = mirror
        .sql("postgres", "SELECT count(DISTINCT unit) FROM steps")
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        whole <= books.delivered + books.errored,
        "{whole}: {books:?}"
    );
    assert_eq!(
        primary
            .sql("postgres", "SELECT count(*) FROM steps")
            .unwrap(),
        (2 * unit).to_string()
    );
}

// --- the primary -------------------------------------------------------------------------------

#[test]
fn a_redis_primary_that_dies_in_a_reply_is_seen_to_die_and_asked_nothing_twice() {
    let request = encode(&["GET", "k"]);
    // A lane asks first whether the primary wants a login.
    let asked = encode(&["PING"]);
    let primary = ScriptedPeer::start(vec![vec![
        Step::Expect(asked.clone()),
        Step::Send(b"+PONG\r\n".to_vec()),
        Step::Expect(request.clone()),
        Step::Send(b"$100\r\nthe first bytes".to_vec()),
        Step::Hold(Duration::from_millis(200)),
        Step::Reset,
    ]])
    .unwrap();
    let proxy = start(&ProxyOptions::new("redis", primary.address()));
    let mut client = RespClient::connect(proxy.address());
    client.send(&request);
    assert_eq!(client.rest().unwrap(), b"$100\r\nthe first bytes");
    assert_eq!(
        primary.outcome(PATIENCE).unwrap(),
        [asked, request].concat()
    );
    // There is no second script: a retry would have found a closed door and shown in the refusals.
    assert_eq!(status(proxy.control())["totals"]["accepted"], 1);
}

#[test]
fn a_postgres_primary_killed_in_a_result_leaves_a_prefix_and_a_close_within_a_second() {
    let mut primary = postgres();
    let proxy = start(&ProxyOptions::new("postgres", primary.address()));
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    client.send(&wire::query(
        "SELECT lpad(n::text, 1000, '0') FROM generate_series(1, 10000000) n",
    ));
    let mut number = 0_u64;
    let mut killed: Option<Instant> = None;
    loop {
        match wire::read_message(&mut client.stream) {
            Ok(message) if message[0] == b'D' => {
                number += 1;
                let text = std::str::from_utf8(&message[11..]).unwrap();
                assert_eq!(text.parse::<u64>().unwrap(), number, "not the same prefix");
            }
            Ok(message) => assert!(matches!(message[0], b'T' | b'E'), "{}", message[0]),
            Err(_) => break,
        }
        if number == 5_000 {
            primary.kill9().unwrap();
            killed.get_or_insert_with(Instant::now);
        }
    }
    let took = killed.expect("killed in the middle").elapsed();
    println!("{number} rows, closed {took:?} after the kill");
    assert!(number < 10_000_000);
    // What was on its way is read first; the close follows.
    assert!(took < Duration::from_secs(3), "{took:?}");
}

// --- the proxy ---------------------------------------------------------------------------------

#[test]
fn sigterm_under_load_ends_with_nothing_in_flight_and_code_0() {
    let (primary, mirror) = (redis(), redis());
    let mut proxy = start(&ProxyOptions::new("redis", primary.address()).mirror(mirror.address()));
    let load = Load::start(proxy.address(), 6, 100);
    load.progress(300);
    proxy.process().signal(Signal::TERM).unwrap();
    let ended = proxy.process().wait_exit(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(0));
    let (done, ends) = load.finish();
    assert!(
        ends.iter().all(Result::is_err),
        "a client outlived the proxy"
    );
    // A transaction that was begun was finished: each client's reply came whole or not at all.
    for end in ends {
        let text = end.unwrap_err();
        assert!(
            text.starts_with("closed after") || text.contains("reset") || text.contains("pipe"),
            "{text}"
        );
    }
    let log = proxy.log().join("\n");
    assert!(log.contains("in_flight=0"), "{log}");
    let applied: u64 = (0..6).map(|n| counter(&primary, &format!("b:{n}"))).sum();
    assert!(
        (done..=done + 6).contains(&applied),
        "{done} answered, {applied} applied"
    );
    let seen: u64 = (0..6).map(|n| counter(&mirror, &format!("b:{n}"))).sum();
    assert!(
        seen <= applied,
        "{seen} on the mirror, {applied} on the primary"
    );
}

#[test]
fn a_drain_waits_for_a_transaction_and_a_second_sigterm_does_not() {
    let primary = postgres();
    let mut proxy = start(&ProxyOptions::new("postgres", primary.address()));
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    client.query("CREATE TABLE kept (n int)");
    client.query("BEGIN");
    client.query("INSERT INTO kept VALUES (1)");
    let (mut idle, _) = PgClient::connect(proxy.address(), "postgres");
    proxy.process().signal(Signal::TERM).unwrap();
    // The idle one is told at once.
    assert_eq!(idle.message()[0], b'E');
    assert!(
        std::net::TcpStream::connect(proxy.address()).is_err() || {
            let refused = eventually(PATIENCE, || {
                std::net::TcpStream::connect(proxy.address())
                    .is_err()
                    .then_some(())
            });
            refused.is_some()
        }
    );
    assert!(
        client
            .query("SELECT 1")
            .iter()
            .any(|message| message[0] == b'D')
    );
    assert!(proxy.process().exited().is_none());
    let (mut second, began) = (Vec::new(), Instant::now());
    assert!(
        client
            .query("COMMIT")
            .iter()
            .any(|message| message[0] == b'C')
    );
    client.stream.read_to_end(&mut second).ok();
    let ended = proxy.process().wait_exit(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        primary
            .sql("postgres", "SELECT count(*) FROM kept")
            .unwrap(),
        "1"
    );

    let mut proxy = start(&ProxyOptions::new("postgres", primary.address()));
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    client.query("BEGIN");
    client.query("INSERT INTO kept VALUES (2)");
    proxy.process().signal(Signal::TERM).unwrap();
    let refused = eventually(PATIENCE, || {
        std::net::TcpStream::connect(proxy.address())
            .is_err()
            .then_some(())
    });
    assert!(refused.is_some(), "a draining proxy accepts");
    assert!(proxy.process().exited().is_none(), "it did not wait");
    let began = Instant::now();
    proxy.process().signal(Signal::TERM).unwrap();
    assert!(proxy.process().wait_exit(PATIENCE).is_some());
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        primary
            .sql("postgres", "SELECT count(*) FROM kept")
            .unwrap(),
        "1"
    );
}

#[test]
fn a_killed_proxy_is_a_closed_connection_and_a_rolled_back_transaction() {
    let primary = postgres();
    let mut proxy = start(&ProxyOptions::new("postgres", primary.address()));
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    client.query("CREATE TABLE kept (n int)");
    client.query("BEGIN");
    client.query("INSERT INTO kept VALUES (1)");
    let began = Instant::now();
    proxy.process().kill9().unwrap();
    let mut rest = Vec::new();
    // An orderly end or a reset: never an answer.
    let _ = client.stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert!(began.elapsed() < Duration::from_secs(1));
    let gone = eventually(PATIENCE, || {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
        (primary.sql("postgres", open).unwrap() == "0").then_some(())
    });
    assert!(gone.is_some(), "the transaction is still open");
    assert_eq!(
        primary
            .sql("postgres", "SELECT count(*) FROM kept")
            .unwrap(),
        "0"
    );
}

#[test]
fn a_bad_file_at_a_reload_changes_nothing_and_is_named() {
    let primary = redis();
    let proxy = support::tls::Configured::start(&format!(
        "[[listeners]]\naddress = \"LISTEN\"\nprotocol = \"redis\"\ndatabase = \"here\"\n\
         [[databases]]\nname = \"here\"\nprotocol = \"redis\"\nhost = \"127.0.0.1\"\nport = {}\n",
        primary.port()
    ));
    let address = proxy.process.address();
    let mut client = RespClient::connect(address);
    assert_eq!(client.call(&["SET", "k", "v"]), b"+OK\r\n");
    let file = proxy.folder().join("parhelion.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    for (bad, named) in [
        (format!("{good}colour = \"blue\"\n"), "colour"),
        (
            good.replace(
                "[[listeners]]",
                "connect_timeout = \"5 parsecs\"\n[[listeners]]",
            ),
            "connect_timeout",
        ),
        (good.replace("name = \"here\"", "name = \"there\""), "here"),
        (
            good.replacen("[[databases]]", "[[databases]", 1),
            "unclosed",
        ),
    ] {
        let known = proxy.process.log().len();
        std::fs::write(&file, &bad).unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(proxy.process.pid()).unwrap());
        rustix::process::kill_process(pid.unwrap(), Signal::HUP).unwrap();
        let said = eventually(PATIENCE, || {
            let log = proxy.process.log();
            let lines = log[known..].join("\n");
            (lines.contains(named) && lines.contains("refused")).then_some(lines)
        });
        assert!(
            said.is_some(),
            "{named}: {:?}",
            &proxy.process.log()[known..]
        );
        assert_eq!(client.call(&["GET", "k"]), b"$1\r\nv\r\n");
        assert_eq!(
            RespClient::connect(address).call(&["GET", "k"]),
            b"$1\r\nv\r\n"
        );
    }
}

#[test]
fn ten_thousand_queries_in_one_pipeline_are_answered_in_order_between_notifications() {
    let (primary, mirror) = (postgres(), postgres());
    let options = ProxyOptions::new("postgres", primary.address())
        .mirror(mirror.address())
        .general("pace = \"off\"")
        .general("mirror_queue = 20000");
    let proxy = start(&options);
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    client.query("LISTEN news");
    let queries = 10_000_u32;
    let pipeline: Vec<u8> = (0..queries)
        .flat_map(|number| wire::query(&format!("SELECT {number}")))
        .collect();
    let (mut other, _) = PgClient::connect(proxy.address(), "postgres");
    let sending = client.send_aside(pipeline);
    let (mut number, mut notes, mut sent) = (0, 0, 0);
    while number < queries {
        let message = wire::read_message(&mut client.stream).unwrap();
        match message[0] {
            b'D' => assert_eq!(message[11..], *number.to_string().as_bytes()),
            b'Z' => {
                number += 1;
                if number % 500 == 0 {
                    other.query("NOTIFY news, 'extra'");
                    sent += 1;
                }
            }
            b'A' => notes += 1,
            other => assert!(b"TC".contains(&other), "{other}"),
        }
    }
    sending.join().unwrap();
    // What was still on its way comes with the next answer.
    notes += client
        .query("SELECT 1")
        .iter()
        .filter(|message| message[0] == b'A')
        .count();
    assert_eq!(notes, sent);
    let books = Ledger::settled(proxy.control());
    println!("{number} queries, {notes} notifications between them, {books:?}");
    assert_eq!(books.errored, 0, "{books:?}");
    let shown: serde_json::Value =
        serde_json::from_str(&proxy.get("/api/mirrors").unwrap()).unwrap();
    assert_eq!(shown["mirrors"][0]["divergences_total"], 0, "{shown}");
}

// --- cancels -----------------------------------------------------------------------------------

#[test]
fn a_thousand_cancels_hit_their_own_query_and_no_other() {
    let rounds = setting("PARHELION_CANCELS", 1_000) / 4;
    let primary = postgres();
    let proxy = start(&ProxyOptions::new("postgres", primary.address()));
    let address = proxy.address();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let bystanders: Vec<_> = (0..2)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let (mut client, _) = PgClient::connect(address, "postgres");
                let mut queries = 0_u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = client.query("SELECT pg_sleep(0.002)");
                    assert!(
                        answer.iter().all(|message| message[0] != b'E'),
                        "cancelled by another's key"
                    );
                    queries += 1;
                }
                queries
            })
        })
        .collect();
    let victims: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let (mut client, _) = PgClient::connect(address, "postgres");
                for _ in 0..rounds {
                    client.send(&wire::query("SELECT pg_sleep(30)"));
                    // A cancel that comes before the query has begun is lost, as on a direct connection.
                    let mut answer = None;
                    while answer.is_none() {
                        let mut cancel = PgClient::open(address);
                        cancel.send(&wire::cancel(client.pid, &client.key));
                        let _ = cancel.stream.read_to_end(&mut Vec::new());
                        client
                            .stream
                            .set_read_timeout(Some(Duration::from_millis(200)))
                            .unwrap();
                        let mut first = [0];
                        answer = client.stream.peek(&mut first).ok();
                        client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    }
                    let answer = client.until_ready();
                    let text = support::pg::show(&answer);
                    assert!(text.contains("57014"), "{text}");
                }
            })
        })
        .collect();
    let results: Vec<_> = victims
        .into_iter()
        .map(std::thread::JoinHandle::join)
        .collect();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let undisturbed: u64 = bystanders
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert!(results.iter().all(Result::is_ok));
    println!(
        "{} cancels beside {undisturbed} queries of others",
        rounds * 4
    );
}
