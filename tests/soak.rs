//! A run with reconnects and faults that ends with a verdict: memory is flat, the books are exact. Both protocols.
//!
//! 20 seconds by default. `PARHELION_SOAK_SECONDS=3600` for more, `PARHELION_SOAK_SEED` for another course,
//! `PARHELION_SOAK_REST_MS` for how long each client rests between two transactions, and `PARHELION_SOAK_OUT=<folder>`
//! writes what was sampled (`soak.csv`) and its plot (`soak.svg`) there.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::relay::Relay;
use parhelion::testing::servers::{PostgresOptions, PostgresServer, RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use rustix::process::Signal;
use support::faults::{Ledger, Load, PATIENCE, open_fds, resident, setting, start};
use support::pg::{PgClient, wire};
use support::plot::{Line, chart};

/// What the allocator may keep of a peak. In twenty seconds only a leak of hundreds of bytes per transaction is more; in an hour
/// one of some tens is.
const GROWTH_MAX: u64 = 8 << 20;

/// A primary and a mirror of one protocol, with the proxy before them and a relay on the way to the mirror.
struct Bench<S> {
    primary: S,
    mirror: S,
    relay: Relay,
    proxy: ProxyProcess,
    fds: usize,
}

impl<S> Bench<S> {
    fn start(
        protocol: &'static str,
        [primary, mirror]: [S; 2],
        address: impl Fn(&S) -> SocketAddr,
    ) -> Self {
        let relay = Relay::start(address(&mirror)).unwrap();
        let options = ProxyOptions::new(protocol, address(&primary))
            .mirror(relay.address())
            .general("mirror_memory = \"8MiB\"")
            .general("pace = \"off\"")
            .general("mirror_timeout = \"2s\"");
        let proxy = start(&options);
        let fds = open_fds(proxy.pid());
        Bench {
            primary,
            mirror,
            relay,
            proxy,
            fds,
        }
    }

    /// Something that happens to the way to the mirror, or to the proxy, and passes.
    fn disturb(&self, rng: &mut fastrand::Rng) {
        match rng.u8(0..5) {
            0 => self.relay.drop_connections(),
            1 => self.relay.cut_requests_after(rng.u64(100..20_000)),
            2 => self.relay.cut_replies_after(rng.u64(10..5_000)),
            3 => {
                self.relay.stall();
                std::thread::sleep(Duration::from_millis(rng.u64(10..400)));
                self.relay.resume();
            }
            _ => signal(&self.proxy, Signal::HUP),
        }
        crowd(self.proxy.address(), rng);
    }

    fn assert_fds_come_back(&self) {
        // The lane that stays, and the connections to the mirror.
        let back = eventually(PATIENCE, || {
            (open_fds(self.proxy.pid()) <= self.fds + 6).then_some(())
        });
        let now = open_fds(self.proxy.pid());
        assert!(back.is_some(), "{now} descriptors, {} before", self.fds);
    }
}

fn signal(proxy: &ProxyProcess, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(proxy.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Clients that come, say nothing or half a word, and go. None of them is a unit.
fn crowd(address: SocketAddr, rng: &mut fastrand::Rng) {
    let streams: Vec<TcpStream> = (0..rng.usize(1..20))
        .map(|number| {
            let mut stream = TcpStream::connect(address).unwrap();
            if number % 2 == 0 {
                // The beginning of a Redis command, and of a startup packet with a length of 42.
                let half: &[u8] = b"*2\r\n$3\r\nGET\r\n$100\r\nxxx";
                let half = if number % 4 == 0 {
                    half
                } else {
                    b"\0\0\0\x2a\0\x03"
                };
                let _ = stream.write_all(half);
            }
            stream
        })
        .collect();
    drop(streams);
}

/// Clients of Postgres, each with transactions of two rows, `(unit, 1)` and `(unit, 2)`, one after the other.
struct PgLoad {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl PgLoad {
    fn start(address: SocketAddr, next: &Arc<AtomicU64>, rest: Duration) -> PgLoad {
        let stop = Arc::<AtomicBool>::default();
        let threads = (0..2).map(|number| {
            let (stop, next) = (stop.clone(), next.clone());
            std::thread::spawn(move || {
                let (mut client, _) = PgClient::connect(address, "postgres");
                while !stop.load(Ordering::Relaxed) {
                    let unit = next.fetch_add(1, Ordering::Relaxed);
                    for sql in [
                        "BEGIN".to_owned(),
                        format!("INSERT INTO steps VALUES ({unit}, 1)"),
                        format!("INSERT INTO steps VALUES ({unit}, 2)"),
                        "COMMIT".to_owned(),
                    ] {
                        let answer = client.query(&sql);
                        assert!(answer.iter().all(|message| message[0] != b'E'), "{sql}");
                    }
                    std::thread::sleep(rest);
                }
                if number == 0 {
                    client.send(&wire::terminate());
                }
            })
        });
        PgLoad {
            threads: threads.collect(),
            stop,
        }
    }

    /// Ends the clients; false: one of them failed.
    fn finish(self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        // Every one is waited for, whatever became of the others.
        let ends: Vec<_> = self.threads.into_iter().map(JoinHandle::join).collect();
        ends.iter().all(Result::is_ok)
    }
}

/// Seconds, then of both proxies: resident bytes, descriptors, books.
type Sample = (f64, [u64; 2], [usize; 2], [Ledger; 2]);

/// What was seen over time.
#[derive(Default)]
struct Samples {
    rows: Vec<Sample>,
}

impl Samples {
    fn take(&mut self, began: Instant, proxies: [&ProxyProcess; 2]) {
        let books = proxies.map(|proxy| Ledger::of(proxy.control()));
        self.rows.push((
            began.elapsed().as_secs_f64(),
            proxies.map(|proxy| resident(proxy.pid())),
            proxies.map(|proxy| open_fds(proxy.pid())),
            books,
        ));
    }

    /// The largest values of the first and of the last third of the time.
    fn early_and_late(&self, which: usize) -> (u64, u64) {
        let third = self.rows.len().div_ceil(3);
        let most = |rows: &[Sample]| rows.iter().map(|row| row.1[which]).max().unwrap_or(0);
        (
            most(&self.rows[..third]),
            most(&self.rows[self.rows.len() - third..]),
        )
    }

    fn csv(&self) -> String {
        let mut text = "seconds,protocol,resident_bytes,descriptors,observed,delivered,dropped,errored,in_flight\n"
            .to_owned();
        for (at, memory, fds, books) in &self.rows {
            for (which, protocol) in ["redis", "postgres"].iter().enumerate() {
                let book = &books[which];
                let _ = writeln!(
                    text,
                    "{at:.1},{protocol},{},{},{},{},{},{},{}",
                    memory[which],
                    fds[which],
                    book.observed,
                    book.delivered,
                    book.dropped,
                    book.errored,
                    book.in_flight
                );
            }
        }
        text
    }

    fn svg(&self) -> String {
        let line = |which: usize| -> Vec<(f64, f64)> {
            let point = |row: &Sample| (row.0 / 60.0, row.1[which] as f64 / f64::from(1 << 20));
            self.rows.iter().map(point).collect()
        };
        let lines = [
            Line {
                name: "Redis",
                colour: "#b3261e",
                points: line(0),
            },
            Line {
                name: "Postgres",
                colour: "#1a5fb4",
                points: line(1),
            },
        ];
        let title = "Memory of the proxy over a soak with reconnects and faults";
        chart(title, "minutes", "resident, MiB", &lines)
    }

    fn keep(&self) {
        if let Some(folder) = std::env::var_os("PARHELION_SOAK_OUT") {
            let folder = std::path::PathBuf::from(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("soak.csv"), self.csv()).unwrap();
            std::fs::write(folder.join("soak.svg"), self.svg()).unwrap();
        }
    }
}

/// The value of a counter key. A server that was restarted a moment ago may still be reading its file.
fn counter(server: &RedisServer, key: &str) -> u64 {
    let value = eventually(PATIENCE, || {
        let reply = String::from_utf8(server.command(&["GET", key]).ok()?).unwrap();
        let number = reply.lines().nth(1).map(|text| text.parse().unwrap());
        number.or_else(|| reply.starts_with("$-1").then_some(0))
    });
    value.unwrap_or_else(|| panic!("{key} cannot be read"))
}

fn redis_pair() -> [RedisServer; 2] {
    [false, true].map(|durable| {
        let mut options = RedisOptions {
            durable,
            ..RedisOptions::default()
        };
        if durable {
            options.extra = vec![("appendfsync".to_owned(), "no".to_owned())];
        }
        RedisServer::start(options).unwrap()
    })
}

fn postgres_pair() -> [PostgresServer; 2] {
    [(); 2].map(|()| {
        let server = PostgresServer::start(PostgresOptions::default()).unwrap();
        server
            .sql("postgres", "CREATE TABLE steps (unit int, half int)")
            .unwrap();
        server
    })
}

/// What there is to know of a proxy whose clients failed.
fn show<S>(bench: &Bench<S>) {
    for path in ["/api/status", "/api/mirrors", "/api/clients"] {
        eprintln!("{path}: {:?}", bench.proxy.get(path));
    }
    let tasks = std::fs::read_dir(format!("/proc/{}/task", bench.proxy.pid())).unwrap();
    for task in tasks.flatten() {
        let of = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        eprintln!(
            "{} {} {}",
            of("comm").trim(),
            of("wchan"),
            of("syscall").trim()
        );
    }
    if std::env::var_os("PARHELION_SOAK_HOLD").is_some() {
        eprintln!("held: pid {}", bench.proxy.pid());
        std::thread::sleep(Duration::from_secs(600));
    }
    let log = bench.proxy.log();
    eprintln!("{}", log[log.len().saturating_sub(60)..].join("\n"));
}

/// Each client's two counters agree on the mirror, and together they are what the ledger says.
fn judge_redis(bench: &Bench<RedisServer>, transactions: u64) -> Ledger {
    let books = Ledger::settled(bench.proxy.control());
    assert_eq!(books.offered, transactions, "{books:?}");
    let mut seen = 0;
    for client in 0..3 {
        let a = counter(&bench.mirror, &format!("a:{client}"));
        let b = counter(&bench.mirror, &format!("b:{client}"));
        assert_eq!(a, b, "half a unit");
        let applied = counter(&bench.primary, &format!("a:{client}"));
        assert!(a <= applied, "{a} on the mirror, {applied} on the primary");
        seen += a;
    }
    let exact = (books.delivered..=books.delivered + books.errored).contains(&seen);
    assert!(exact, "the mirror holds {seen} units: {books:?}");
    books
}

fn judge_postgres(bench: &Bench<PostgresServer>, transactions: u64) -> Ledger {
    let books = Ledger::settled(bench.proxy.control());
    assert_eq!(books.offered, transactions, "{books:?}");
    let count = |server: &PostgresServer, sql: &str| -> u64 {
        server.sql("postgres", sql).unwrap().parse().unwrap()
    };
    let halves =
        "SELECT count(*) FROM (SELECT unit FROM steps GROUP BY unit HAVING count(*) <> 2) odd";
    assert_eq!(count(&bench.mirror, halves), 0, "half a unit");
    let seen = count(&bench.mirror, "SELECT count(DISTINCT unit) FROM steps");
    let applied = count(&bench.primary, "SELECT count(DISTINCT unit) FROM steps");
    assert_eq!(applied, transactions);
    let exact = (books.delivered..=books.delivered + books.errored).contains(&seen);
    assert!(exact, "the mirror holds {seen} units: {books:?}");
    books
}

#[test]
fn a_run_with_reconnects_and_faults_ends_with_flat_memory_and_exact_books() {
    let time = Duration::from_secs(setting("PARHELION_SOAK_SECONDS", 20));
    let rest = Duration::from_millis(setting("PARHELION_SOAK_REST_MS", 1));
    let seed = setting("PARHELION_SOAK_SEED", 1);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut redis = Bench::start("redis", redis_pair(), RedisServer::address);
    let mut postgres = Bench::start("postgres", postgres_pair(), PostgresServer::address);
    let (began, next) = (Instant::now(), Arc::<AtomicU64>::default());
    let (mut transactions, mut rounds, mut faults, mut kills) = (0, 0_u64, 0_u64, 0_u64);
    let mut samples = Samples::default();
    while began.elapsed() < time {
        // Each round comes with new clients.
        let load = Load::paced(redis.proxy.address(), 3, rng.usize(10..3_000), rest);
        let pg_load = PgLoad::start(postgres.proxy.address(), &next, rest);
        let round = Instant::now();
        while round.elapsed() < Duration::from_secs(4) {
            redis.disturb(&mut rng);
            postgres.disturb(&mut rng);
            faults += 2;
            std::thread::sleep(Duration::from_millis(rng.u64(200..1_000)));
            redis.relay.heal();
            postgres.relay.heal();
        }
        match rounds % 5 {
            1 => {
                redis.mirror.kill9().unwrap();
                redis.mirror.restart().unwrap();
                kills += 1;
            }
            3 => {
                postgres.mirror.kill9().unwrap();
                postgres.mirror.restart().unwrap();
                kills += 1;
            }
            4 => {
                redis.mirror.pause().unwrap();
                postgres.mirror.pause().unwrap();
                std::thread::sleep(Duration::from_millis(rng.u64(100..3_000)));
                redis.mirror.resume().unwrap();
                postgres.mirror.resume().unwrap();
            }
            _ => {}
        }
        samples.take(began, [&redis.proxy, &postgres.proxy]);
        let (done, ends) = load.finish();
        if !pg_load.finish() {
            let activity =
                "SELECT pid, state, wait_event_type, wait_event, query FROM pg_stat_activity";
            eprintln!("primary: {:?}", postgres.primary.sql("postgres", activity));
            eprintln!("mirror: {:?}", postgres.mirror.sql("postgres", activity));
            show(&postgres);
            panic!("a client of Postgres failed");
        }
        if !ends.iter().all(Result::is_ok) {
            show(&redis);
            panic!("{ends:?}");
        }
        transactions += done;
        rounds += 1;
        samples.keep();
    }
    redis.relay.heal();
    postgres.relay.heal();
    let books = [
        judge_redis(&redis, transactions),
        judge_postgres(&postgres, next.load(Ordering::Relaxed)),
    ];
    let grown: Vec<u64> = [0, 1]
        .map(|which| {
            let (early, late) = samples.early_and_late(which);
            println!(
                "{}: memory {early} then {late} bytes",
                ["redis", "postgres"][which]
            );
            late.saturating_sub(early)
        })
        .to_vec();
    println!(
        "soak: {} s, seed {seed}, {rounds} rounds of clients, {faults} faults, {kills} kills of a mirror\nredis {:?}\n\
         postgres {:?}",
        time.as_secs(),
        books[0],
        books[1]
    );
    assert!(
        grown.iter().all(|grown| *grown <= GROWTH_MAX),
        "grew by {grown:?} bytes"
    );
    redis.assert_fds_come_back();
    postgres.assert_fds_come_back();
    println!("verdict: memory flat, books exact");
}
