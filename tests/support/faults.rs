//! What the tests of faults, hostile peers and limits share: the ledger as the control port shows it, the memory and
//! descriptors of a process, load that keeps its own books.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess, http_get};
use parhelion::testing::servers::{PostgresOptions, PostgresServer, RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use serde_json::Value;

use super::resp::{RespClient, encode};

/// How long anything may take that has no limit of its own.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The real binary, whatever `PARHELION_TEST_PROXY` says: these tests look inside.
pub fn start(options: &ProxyOptions) -> ProxyProcess {
    ProxyProcess::start(Path::new(env!("CARGO_BIN_EXE_parhelion")), options).unwrap()
}

/// A Redis as it comes.
pub fn redis() -> RedisServer {
    RedisServer::start(RedisOptions::default()).unwrap()
}

/// A Postgres as it comes.
pub fn postgres() -> PostgresServer {
    PostgresServer::start(PostgresOptions::default()).unwrap()
}

/// The value of a counter key, 0 if there is none.
pub fn counter(server: &RedisServer, key: &str) -> u64 {
    let reply = server.command(&["GET", key]).unwrap();
    let text = String::from_utf8(reply).unwrap();
    text.lines().nth(1).map_or(0, |line| line.parse().unwrap())
}

/// What arrives until the other side closes, within `limit`.
pub fn until_close(stream: &mut TcpStream, limit: Duration) -> Result<Vec<u8>, String> {
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => Ok(all),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(all),
        Err(error) => Err(format!("{error} after {}", all.escape_ascii())),
    }
}

/// What arrives until the other side closes, which it must.
pub fn closed(stream: &mut TcpStream) -> Vec<u8> {
    until_close(stream, PATIENCE).unwrap_or_else(|error| panic!("not closed: {error}"))
}

/// A number from the environment, for longer runs than CI's.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number"))
    })
}

/// The books of the first mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    pub observed: u64,
    pub excluded: u64,
    pub unexposed: u64,
    pub offered: u64,
    pub delivered: u64,
    pub errored: u64,
    pub dropped: u64,
    pub in_flight: u64,
}

impl Ledger {
    pub fn of(control: SocketAddr) -> Ledger {
        let answer: Value =
            serde_json::from_str(&http_get(control, "/api/mirrors").unwrap()).unwrap();
        let book = |key: &str| {
            answer["mirrors"][0]["ledger"][key]
                .as_u64()
                .unwrap_or_else(|| panic!("{key} in {answer}"))
        };
        let ledger = Ledger {
            observed: book("observed"),
            excluded: book("excluded"),
            unexposed: book("unexposed"),
            offered: book("offered"),
            delivered: book("delivered"),
            errored: book("errored"),
            dropped: book("dropped_total"),
            in_flight: book("in_flight"),
        };
        ledger.assert_balanced();
        ledger
    }

    pub fn assert_balanced(&self) {
        assert_eq!(
            self.observed,
            self.excluded + self.unexposed + self.offered,
            "{self:?}"
        );
        assert_eq!(
            self.offered,
            self.delivered + self.dropped + self.errored + self.in_flight,
            "{self:?}"
        );
    }

    /// The books once nothing is on its way.
    pub fn settled(control: SocketAddr) -> Ledger {
        let settled = eventually(PATIENCE, || {
            let ledger = Ledger::of(control);
            (ledger.in_flight == 0).then_some(ledger)
        });
        settled.unwrap_or_else(|| panic!("never settled: {:?}", Ledger::of(control)))
    }
}

/// `/api/status`.
pub fn status(control: SocketAddr) -> Value {
    serde_json::from_str(&http_get(control, "/api/status").unwrap()).unwrap()
}

/// Clients that the proxy counts as open.
pub fn clients(control: SocketAddr) -> u64 {
    status(control)["totals"]["clients"].as_u64().unwrap()
}

/// Resident memory of a process in bytes.
pub fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// The most memory that a process has had resident since [`forget_peak`], in bytes.
pub fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() * 1024
}

/// Lets [`peak`] begin again.
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// What calls took, shortest first.
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Of so many calls.
    pub fn of(calls: usize, call: impl FnMut()) -> Latencies {
        let mut left = calls;
        let more = move || left.checked_sub(1).map(|fewer| left = fewer).is_some();
        Latencies::while_(more, call)
    }

    /// Of the calls that are made as long as `more` says so.
    pub fn while_(mut more: impl FnMut() -> bool, mut call: impl FnMut()) -> Latencies {
        let mut all = Vec::new();
        while more() {
            let began = Instant::now();
            call();
            all.push(began.elapsed());
        }
        all.sort_unstable();
        Latencies(all)
    }

    /// So many of a hundred took no longer.
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0
            .get(last * percent / 100)
            .copied()
            .unwrap_or_default()
    }

    /// Whether a disturbance shows beyond what a machine that does other things too makes of a p99: three times, and three
    /// milliseconds. The bounds of the specification are those of a quiet machine; what was measured there is in RELIABILITY.md.
    pub fn is_worse_than(&self, before: &Latencies) -> bool {
        self.percentile(99) > before.percentile(99) * 3 + Duration::from_millis(3)
    }

    /// Both for a line of output.
    pub fn against(&self, name: &str, before: &Latencies) -> String {
        let [now, then] = [self, before].map(|all| (all.percentile(50), all.percentile(99)));
        format!(
            "{name}: p50 {:?}, p99 {:?}; before {:?}, {:?}",
            now.0, now.1, then.0, then.1
        )
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.0.len()
    }
}

/// Open descriptors of a process.
pub fn open_fds(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// Descriptors of a proxy without clients whose lane to the primary is open: that one stays.
pub fn open_fds_with_lane(proxy: &ProxyProcess) -> usize {
    let mut first = RespClient::connect(proxy.address());
    assert_eq!(first.call(&["PING"]), b"+PONG\r\n");
    let with_client = open_fds(proxy.pid());
    drop(first);
    eventually(PATIENCE, || {
        let now = open_fds(proxy.pid());
        (now < with_client).then_some(now)
    })
    .expect("the first client is freed")
}

/// CPU time of a process in clock ticks (a hundredth of a second).
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Redis clients that run transactions of two INCRs, one after the other, and count what was answered.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    slowest_ns: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Load {
    /// Starts `clients` of them. Client *n* counts in `a:n` and `b:n`.
    pub fn start(address: SocketAddr, clients: usize, padding: usize) -> Load {
        Load::paced(address, clients, padding, Duration::ZERO)
    }

    /// The same, and each client rests so long between two transactions.
    pub fn paced(address: SocketAddr, clients: usize, padding: usize, rest: Duration) -> Load {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let slowest_ns = Arc::<AtomicU64>::default();
        let threads = (0..clients).map(|number| {
            let (stop, done, slowest) = (stop.clone(), done.clone(), slowest_ns.clone());
            std::thread::spawn(move || {
                let unit = transaction(number, padding);
                let mut client = RespClient::connect(address);
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    client.send(&unit);
                    for step in 0..5 {
                        let reply = client.reply()?;
                        if reply[0] == b'-' {
                            let text = reply.escape_ascii();
                            return Err(format!("reply {step}: {text}"));
                        }
                    }
                    slowest.fetch_max(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(rest);
                }
                Ok(())
            })
        });
        Load {
            threads: threads.collect(),
            stop,
            done,
            slowest_ns,
        }
    }

    /// Transactions answered so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until so many more transactions were answered.
    pub fn progress(&self, transactions: u64) {
        let wanted = self.done() + transactions;
        let came = eventually(PATIENCE, || (self.done() >= wanted).then_some(()));
        assert!(came.is_some(), "the clients stand still: {}", self.done());
    }

    /// The longest time of one transaction.
    pub fn slowest(&self) -> Duration {
        Duration::from_nanos(self.slowest_ns.load(Ordering::Relaxed))
    }

    /// Stops; the number of transactions that were answered, and how each client ended.
    pub fn finish(self) -> (u64, Vec<Result<(), String>>) {
        self.stop.store(true, Ordering::Relaxed);
        let ends = self
            .threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        (self.done.load(Ordering::Relaxed), ends)
    }
}

fn transaction(number: usize, padding: usize) -> Vec<u8> {
    let pad = vec![b'x'; padding];
    let (a, b) = (format!("a:{number}"), format!("b:{number}"));
    [
        encode(&["MULTI"]),
        encode(&["INCR", &a]),
        encode(&[b"SET".as_slice(), b"pad", &pad]),
        encode(&["INCR", &b]),
        encode(&["EXEC"]),
    ]
    .concat()
}
