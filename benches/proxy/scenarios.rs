//! The loads: which program, how many clients, what they ask.

use crate::servers::Protocol;

/// One load, run against every contender of its protocol.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The name for `--only`.
    pub name: &'static str,
    /// What speaks.
    pub protocol: Protocol,
    /// What is done.
    pub load: Load,
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// redis-benchmark: as fast as it goes.
    RedisBenchmark {
        /// `get` or `set`.
        test: &'static str,
        /// Connections.
        clients: u32,
        /// Requests sent at once by each.
        pipeline: u32,
    },
    /// One connection of our own, one request at a time, timed in nanoseconds.
    RedisOne,
    /// Our own open loop: requests leave on a fixed schedule, whatever the replies do.
    RedisOpen {
        /// Connections.
        clients: u32,
    },
    /// pgbench.
    Pgbench {
        /// `-S` (one select) or `-N` (five statements in a transaction).
        script: &'static str,
        /// Query mode: `simple` or `prepared`.
        mode: &'static str,
        /// Connections.
        clients: u32,
        /// At a fixed rate, latency counted from the scheduled time.
        open: bool,
    },
    /// Connections that sit there: memory, descriptors, idle CPU.
    Idle,
}

const fn redis(name: &'static str, load: Load) -> Scenario {
    Scenario {
        name,
        protocol: Protocol::Redis,
        load,
    }
}

const fn benchmark(test: &'static str, clients: u32, pipeline: u32) -> Load {
    Load::RedisBenchmark {
        test,
        clients,
        pipeline,
    }
}

const fn pg(
    name: &'static str,
    script: &'static str,
    mode: &'static str,
    clients: u32,
    open: bool,
) -> Scenario {
    Scenario {
        name,
        protocol: Protocol::Postgres,
        load: Load::Pgbench {
            script,
            mode,
            clients,
            open,
        },
    }
}

/// All scenarios, in the order in which they run.
pub const ALL: [Scenario; 14] = [
    redis("redis-1", Load::RedisOne),
    redis("redis-50", benchmark("get", 50, 1)),
    redis("redis-50-p16", benchmark("get", 50, 16)),
    redis("redis-500", benchmark("get", 500, 1)),
    redis("redis-50-set", benchmark("set", 50, 1)),
    redis("redis-open", Load::RedisOpen { clients: 50 }),
    redis("redis-idle", Load::Idle),
    pg("pg-1", "-S", "simple", 1, false),
    pg("pg-8-simple", "-S", "simple", 8, false),
    pg("pg-8-prepared", "-S", "prepared", 8, false),
    pg("pg-64-simple", "-S", "simple", 64, false),
    pg("pg-64-prepared", "-S", "prepared", 64, false),
    pg("pg-8-update", "-N", "simple", 8, false),
    pg("pg-open", "-S", "simple", 8, true),
];

/// What `--smoke` runs when nothing is named: every kind of load once.
pub const SMOKE: [&str; 4] = ["redis-50", "redis-50-set", "redis-open", "pg-8-prepared"];

/// Whether a name is chosen by one of the patterns: equal, or beginning with what stands before a final `*`.
pub fn chosen(patterns: &[String], name: &str) -> bool {
    patterns.is_empty()
        || patterns
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == pattern,
            })
}
