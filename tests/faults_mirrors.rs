//! A mirror stops, dies, is cut off in mid-unit or is not quick enough: what clients see, and what the books say of it,
//! checked against what the mirror wrote down.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parhelion::demo::resp_server::{Recording, RespOptions, RespServer};
use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::relay::Relay;
use parhelion::testing::servers::{PostgresServer, RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use support::faults::{
    Latencies, Ledger, Load, PATIENCE, counter, postgres, redis, resident, setting, start, status,
};
use support::pg::PgClient;
use support::resp::{RespClient, encode};

/// What a proxy's memory does from now on.
struct Memory<'a> {
    proxy: &'a ProxyProcess,
    resident_before: u64,
    /// Most that the process grew by, in bytes.
    most: u64,
    /// Most that units in the rings held, in bytes; asked for with each hundredth look.
    used: u64,
    looks: u32,
}

impl Memory<'_> {
    fn of(proxy: &ProxyProcess) -> Memory<'_> {
        Memory {
            proxy,
            resident_before: resident(proxy.pid()),
            most: 0,
            used: 0,
            looks: 0,
        }
    }

    fn look(&mut self) {
        let grown = resident(self.proxy.pid()).saturating_sub(self.resident_before);
        self.most = self.most.max(grown);
        self.looks += 1;
        if self.looks.is_multiple_of(100) {
            self.used = self.used.max(mirror_memory(self.proxy));
        }
    }
}

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
    let mut memory = Memory::of(&proxy);
    mirror.pause().unwrap();
    let (began, before) = (Instant::now(), load.done());
    let stopped = Latencies::while_(
        || {
            memory.look();
            began.elapsed() < time
        },
        &mut ping,
    );
    let Memory { most, used, .. } = memory;
    let during = load.done() - before;
    println!(
        "{beside_healthy} transactions beside a healthy mirror, {during} beside a stopped one; {}",
        stopped.against("another client", &healthy)
    );
    let slowest = load.slowest();
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
    assert!((1..=bound).contains(&used), "{used} bytes in the rings");
    // The bound, and an eighth of it for what an allocator adds.
    assert!(most <= bound / 8 * 9, "{most} bytes");
    assert!(books.dropped > 0, "the rings never filled: {books:?}");
    assert_eq!(books.offered, done, "every transaction is one unit");
    let seen: u64 = (0..4).map(|n| counter(&mirror, &format!("a:{n}"))).sum();
    assert!(
        (books.delivered..=books.delivered + books.errored).contains(&seen),
        "{seen}: {books:?}"
    );
}

/// What units for mirrors take, as the proxy counts it.
fn mirror_memory(proxy: &ProxyProcess) -> u64 {
    let used = &status(proxy.control())["totals"]["mirror_memory_used"];
    used.as_u64().unwrap()
}

#[test]
fn a_stopped_postgres_mirror_costs_clients_nothing_and_the_proxy_its_bound() {
    let time = Duration::from_secs(setting("PARHELION_STOP_SECONDS", 5));
    let bound = 4 << 20;
    let (primary, mirror) = steps();
    let options = ProxyOptions::new("postgres", primary.address())
        .mirror(mirror.address())
        .general("pace = \"off\"")
        .general("mirror_memory = \"4MiB\"")
        .general("mirror_queue = 100000");
    let proxy = start(&options);
    let (mut writer, _) = PgClient::connect(proxy.address(), "postgres");
    let (mut other, _) = PgClient::connect(proxy.address(), "postgres");
    let mut query = || {
        let answer = other.query("SELECT 42");
        assert!(answer.iter().any(|message| message.ends_with(b"42")));
    };
    let (stop, units) = (AtomicBool::new(false), AtomicU64::new(0));
    // A comment of 8 KiB makes the units large, and leaves them quick.
    let pad = "x".repeat(8 << 10);
    let (healthy, beside_healthy, stopped, during, most, used) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let unit = units.load(Ordering::Relaxed) + 1;
                for sql in [
                    "BEGIN".to_owned(),
                    format!("INSERT INTO steps VALUES ({unit}, 1) /* {pad} */"),
                    format!("INSERT INTO steps VALUES ({unit}, 2)"),
                    "COMMIT".to_owned(),
                ] {
                    let answer = writer.query(&sql);
                    assert!(answer.iter().all(|message| message[0] != b'E'), "{unit}");
                }
                units.store(unit, Ordering::Relaxed);
            }
        });
        let done = || units.load(Ordering::Relaxed);
        let began = Instant::now();
        let healthy = Latencies::while_(|| began.elapsed() < time, &mut query);
        let (beside_healthy, mut memory) = (done(), Memory::of(&proxy));
        mirror.pause().unwrap();
        let began = Instant::now();
        let stopped = Latencies::while_(
            || {
                memory.look();
                began.elapsed() < time
            },
            &mut query,
        );
        let during = done() - beside_healthy;
        mirror.resume().unwrap();
        stop.store(true, Ordering::Relaxed);
        let Memory { most, used, .. } = memory;
        (healthy, beside_healthy, stopped, during, most, used)
    });
    let (queries, units) = (healthy.calls() + stopped.calls(), units.into_inner());
    let books = Ledger::settled(proxy.control());
    println!(
        "{beside_healthy} transactions beside a healthy mirror, {during} beside a stopped one; {}; {used} bytes in the \
         rings, grew by {most}, {books:?}",
        stopped.against("another client", &healthy)
    );
    assert!(!stopped.is_worse_than(&healthy));
    // As with Redis: one that takes nothing costs less than one that works on the same machine.
    assert!(
        during * 10 > beside_healthy * 7,
        "{during}, {beside_healthy}"
    );
    assert!((1..=bound).contains(&used), "{used} bytes in the rings");
    // The bound, and as much again for what an allocator adds to many small pieces.
    assert!(most <= 2 * bound, "{most} bytes");
    assert!(books.dropped > 0, "the rings never filled: {books:?}");
    assert_eq!(books.observed, units + queries as u64, "{books:?}");
    let whole = whole_units(&mirror);
    assert!(
        whole <= books.delivered + books.errored,
        "{whole}: {books:?}"
    );
    assert!(
        whole + queries as u64 >= books.delivered,
        "{whole}: {books:?}"
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

#[test]
fn a_mirror_that_loads_its_data_gets_nothing_before_and_everything_behind_it() {
    let primary = redis();
    // 5 ms for each of its keys, between which it answers.
    let slow = [
        ("key-load-delay", "5000"),
        ("loading-process-events-interval-bytes", "1024"),
        ("save", "3600 1"),
    ];
    let mut mirror = RedisServer::start(RedisOptions {
        extra: slow
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..RedisOptions::default()
    })
    .unwrap();
    let value = "x".repeat(100);
    for key in 0..400 {
        mirror
            .command(&["SET", &format!("old:{key}"), &value])
            .unwrap();
    }
    mirror.command(&["SAVE"]).unwrap();
    mirror.kill9().unwrap();
    let proxy = start(&ProxyOptions::new("redis", primary.address()).mirror(mirror.address()));
    let load = Load::start(proxy.address(), 3, 64);
    load.progress(20);
    mirror.restart().unwrap();
    let info = || String::from_utf8(mirror.command(&["INFO", "persistence"]).unwrap()).unwrap();
    assert!(info().contains("\nloading:1"), "{}", info());
    load.progress(20);
    let loaded = eventually(PATIENCE, || info().contains("\nloading:0").then_some(()));
    assert!(loaded.is_some(), "it loads and loads");
    let again = eventually(PATIENCE, || {
        (Ledger::of(proxy.control()).delivered > 20).then_some(())
    });
    assert!(
        again.is_some(),
        "nothing is delivered to a mirror that has loaded"
    );
    let (done, ends) = load.finish();
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    let books = Ledger::settled(proxy.control());
    println!("{books:?}");
    assert_eq!((books.offered, books.errored), (done, 0), "{books:?}");
    let mut seen = 0;
    for client in 0..3 {
        let a = counter(&mirror, &format!("a:{client}"));
        assert_eq!(a, counter(&mirror, &format!("b:{client}")), "half a unit");
        seen += a;
    }
    assert_eq!(seen, books.delivered, "{books:?}");
}

/// The units of one connection, and whether the last one was cut. A unit is MULTI INCR SET INCR EXEC.
fn units(recording: &Recording) -> (u64, bool) {
    let names: Vec<&[u8]> = recording.iter().map(|command| &command[0][..]).collect();
    // The question whether it executes commands.
    let names = names.strip_prefix(&[&b"PING"[..]]).unwrap_or(&names);
    let unit: [&[u8]; 5] = [b"MULTI", b"INCR", b"SET", b"INCR", b"EXEC"];
    let mut chunks = names.chunks_exact(unit.len());
    for chunk in &mut chunks {
        assert!(chunk == unit, "not a unit: {chunk:?}");
    }
    let rest = chunks.remainder();
    assert!(unit.starts_with(rest), "not a unit's first bytes: {rest:?}");
    (names.len() as u64 / unit.len() as u64, !rest.is_empty())
}

/// A primary, a mirror that keeps what it gets, and the way to it.
fn recorded() -> (RedisServer, RespServer, Relay) {
    let witness = RespServer::start(RespOptions {
        record: true,
        ..RespOptions::default()
    })
    .unwrap();
    let relay = Relay::start(witness.address()).unwrap();
    (redis(), witness, relay)
}

#[test]
fn connections_cut_in_the_middle_of_units_are_followed_by_a_units_first_byte() {
    let (primary, witness, relay) = recorded();
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
    let (primary, witness, relay) = recorded();
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

/// A primary and a mirror with a table of units and their halves. On the mirror a half of -2 takes half a minute.
fn steps() -> (PostgresServer, PostgresServer) {
    let (primary, mirror) = (postgres(), postgres());
    for server in [&primary, &mirror] {
        let table = "CREATE TABLE steps (unit int, half int)";
        server.sql("postgres", table).unwrap();
    }
    for sql in [
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_sleep(30); RETURN NEW; END'",
        "CREATE TRIGGER dawdle BEFORE INSERT ON steps FOR EACH ROW WHEN (NEW.half = -2) \
         EXECUTE FUNCTION dawdle()",
    ] {
        mirror.sql("postgres", sql).unwrap();
    }
    (primary, mirror)
}

/// How many units the server holds, none of which is half one.
fn whole_units(server: &PostgresServer) -> u64 {
    let halves =
        "SELECT count(*) FROM (SELECT unit FROM steps GROUP BY unit HAVING count(*) <> 2) odd";
    assert_eq!(server.sql("postgres", halves).unwrap(), "0", "half a unit");
    let whole = server.sql("postgres", "SELECT count(DISTINCT unit) FROM steps");
    whole.unwrap().parse().unwrap()
}

#[test]
fn a_postgres_mirror_killed_in_transactions_has_whole_ones_only() {
    let kills = setting("PARHELION_PG_KILLS", 5);
    let (primary, mut mirror) = steps();
    let options = ProxyOptions::new("postgres", primary.address())
        .mirror(mirror.address())
        .general("pace = \"off\"");
    let proxy = start(&options);
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    let mut unit = 0_u64;
    let mut run = |second: i32| {
        unit += 1;
        for sql in [
            "BEGIN".to_owned(),
            format!("INSERT INTO steps VALUES ({unit}, 1)"),
            format!("INSERT INTO steps VALUES ({unit}, {second})"),
            "COMMIT".to_owned(),
        ] {
            let answer = client.query(&sql);
            assert!(answer.iter().all(|message| message[0] != b'E'), "{sql}");
        }
        unit
    };
    for _ in 0..kills {
        let wanted = Ledger::of(proxy.control()).delivered + 10;
        let came = eventually(PATIENCE, || {
            run(2);
            (Ledger::of(proxy.control()).delivered >= wanted).then_some(())
        });
        assert!(came.is_some(), "nothing is delivered");
        Ledger::settled(proxy.control());
        // Killed in the middle of a unit: its first half is there, its second is at work.
        run(-2);
        let at_work = eventually(PATIENCE, || {
            let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            (mirror.sql("postgres", sleeps).unwrap() == "1").then_some(())
        });
        assert!(at_work.is_some(), "the unit does not run");
        mirror.kill9().unwrap();
        run(2);
        mirror.restart().unwrap();
    }
    let units = run(2);
    let books = Ledger::settled(proxy.control());
    println!("{kills} kills of a Postgres mirror: {books:?}");
    assert_eq!(books.offered, units, "{books:?}");
    assert!(books.errored >= kills, "{books:?}");
    // Neither there in part nor sent again.
    let killed = "SELECT count(*) FROM steps WHERE half = -2";
    assert_eq!(mirror.sql("postgres", killed).unwrap(), "0");
    let whole = whole_units(&mirror);
    assert!(
        (books.delivered..=books.delivered + books.errored - kills).contains(&whole),
        "the mirror holds {whole} units: {books:?}"
    );
    assert_eq!(whole_units(&primary), units);
}
