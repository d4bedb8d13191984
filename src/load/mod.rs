//! A load generator for Redis ports, that of `parhelion bench` and of benches/proxy.
//!
//! Closed loop: every connection keeps a batch of requests on its way. Open loop: every request has a place in a
//! schedule that was fixed before the run, and its latency counts from there, so that a stall of the server shows in
//! full (no coordinated omission). Owns: mix of commands, choice of keys, schedule, one connection's exchange, threads.
//! It is no part of the proxy and shares no code with its data path, so that it can judge it.

mod connect;
pub mod cpu;
mod drive;
mod exchange;
pub mod keys;
pub mod mix;
mod schedule;

use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;

pub use connect::{fill, remove};
pub use cpu::Cpu;
pub use drive::run;
pub use exchange::{Exchange, Judged};
pub use keys::Distribution;
pub use mix::{Kind, Mix};
pub use schedule::Schedule;

/// The longest latency that is told apart: a minute.
pub const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Which version of the protocol the connections speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resp {
    /// RESP2, without a greeting.
    #[default]
    Two,
    /// RESP3, asked for with `HELLO 3`.
    Three,
}

/// Who logs in.
#[derive(Clone, Default)]
pub struct Login {
    /// The user; `default` where none is named.
    pub user: Option<String>,
    /// The password; none means no login.
    pub password: Option<String>,
}

/// What to send.
#[derive(Clone)]
pub struct Options {
    /// Where.
    pub address: SocketAddr,
    /// Connections of all threads together.
    pub clients: usize,
    /// Requests of a connection that are sent at once and awaited together. Closed loop only.
    pub pipeline: usize,
    /// Requests per second of all connections together; `None` is the closed loop.
    pub rate: Option<f64>,
    /// Which commands.
    pub mix: Mix,
    /// How many keys there are.
    pub keys: u64,
    /// How the keys are chosen.
    pub distribution: Distribution,
    /// Bytes of a value.
    pub value_size: usize,
    /// The version of the protocol.
    pub resp: Resp,
    /// Who logs in.
    pub login: Login,
    /// Threads that share the connections.
    pub threads: usize,
    /// Length of the measured part.
    pub length: Duration,
    /// Length of the part before it, which does not count. Closed loop only: an open loop begins cold.
    pub warm_up: Duration,
    /// A process whose CPU time during the measured part is wanted: neither connecting nor the warm-up counts.
    pub watch: Option<u32>,
    /// Of the choice of commands and keys.
    pub seed: u64,
}

impl Options {
    /// One connection, one thread, GET of 10,000 keys with values of 64 bytes, for a second.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            clients: 1,
            pipeline: 1,
            rate: None,
            mix: Mix::default(),
            keys: 10_000,
            distribution: Distribution::Uniform,
            value_size: 64,
            resp: Resp::Two,
            login: Login::default(),
            threads: 1,
            length: Duration::from_secs(1),
            warm_up: Duration::ZERO,
            watch: None,
            seed: 1,
        }
    }
}

/// What the connections saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Right replies, errors too.
    pub replies: u64,
    /// Error replies.
    pub errors: u64,
    /// Reads that found nothing.
    pub missing: u64,
    /// Replies that cannot belong to their request.
    pub wrong: u64,
    /// Requests without a reply when the run ended.
    pub unanswered: u64,
    /// From the start of the measured part to its last reply.
    pub took: Duration,
    /// Nanoseconds, from the scheduled time in an open loop, else from the sending.
    pub latency: Histogram<u64>,
    /// How late the generator itself was with a request, at most. Much of it makes an open loop's latencies its own fault.
    pub late: Duration,
    /// What the watched process spent during the measured part.
    pub cpu: Option<Cpu>,
}

impl Seen {
    fn new() -> Result<Self, LoadError> {
        Ok(Self {
            replies: 0,
            errors: 0,
            missing: 0,
            wrong: 0,
            unanswered: 0,
            took: Duration::ZERO,
            latency: Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
                .map_err(|error| LoadError::Histogram(error.to_string()))?,
            late: Duration::ZERO,
            cpu: None,
        })
    }

    /// Adds what another thread or run saw; the longer time counts.
    ///
    /// # Errors
    /// When the histograms do not fit together.
    pub fn merge(&mut self, other: &Seen) -> Result<(), LoadError> {
        self.replies += other.replies;
        self.errors += other.errors;
        self.missing += other.missing;
        self.wrong += other.wrong;
        self.unanswered += other.unanswered;
        self.took = self.took.max(other.took);
        self.late = self.late.max(other.late);
        self.cpu = match (self.cpu, other.cpu) {
            (Some(one), Some(two)) => Some(one.plus(two)),
            (one, two) => one.or(two),
        };
        self.latency
            .add(&other.latency)
            .map_err(|error| LoadError::Histogram(error.to_string()))
    }

    /// Replies per second.
    pub fn throughput(&self) -> f64 {
        self.replies as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// Microseconds at a quantile (0 to 1).
    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Why a load could not run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A connection could not be made or broke.
    #[error("{address}: {problem}")]
    Peer {
        /// Whose.
        address: SocketAddr,
        /// What happened.
        problem: String,
    },
    /// The kernel refused something else.
    #[error("{0}")]
    Os(#[from] std::io::Error),
    /// The process to be measured is gone.
    #[error("process {pid}: {problem}")]
    Process {
        /// Which.
        pid: u32,
        /// What could not be read.
        problem: String,
    },
    /// Bounds that a histogram does not take.
    #[error("histogram: {0}")]
    Histogram(String),
    /// A thread of the generator panicked.
    #[error("a thread of the generator ended early")]
    Thread,
    /// An argument that means nothing.
    #[error("{0}")]
    Argument(String),
}
