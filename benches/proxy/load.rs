//! Runs one load against one port and reads what the load program says.
//!
//! redis-benchmark and pgbench are programs of others, so that nobody has to trust our clock; what they cannot do (one
//! client in nanoseconds, an open loop for Redis) is in `own_load`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::own_load;
use crate::process::output;
use crate::scenarios::Load;
use crate::servers::KEYS;

/// How long and how much.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Length of a measured run.
    pub seconds: f64,
    /// Exact number of requests instead, where the program can do that.
    pub requests: Option<u64>,
    /// Requests or transactions per second of the open loops.
    pub rate: f64,
}

/// What the clients saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Requests or transactions answered.
    pub requests: u64,
    /// Requests or transactions that failed.
    pub errors: u64,
    /// Per second.
    pub throughput: f64,
    /// Latency percentiles in microseconds.
    pub p50_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %, where the program says it.
    pub p999_us: Option<f64>,
}

impl Load {
    /// Runs it against `port` of loopback.
    pub fn run(self, port: u16, amount: Amount, expected: f64, folder: &Path) -> Result<Seen> {
        match self {
            Load::RedisBenchmark {
                test,
                clients,
                pipeline,
            } => {
                let by_time = (expected * amount.seconds).max(1000.0) as u64;
                let requests = amount.requests.unwrap_or(by_time);
                redis_benchmark(port, test, clients, pipeline, requests)
            }
            Load::RedisOne => own_load::one_client(port, Duration::from_secs_f64(amount.seconds)),
            Load::RedisOpen { clients } => own_load::open_loop(
                port,
                clients as usize,
                amount.rate,
                Duration::from_secs_f64(amount.seconds),
            ),
            Load::Pgbench {
                script,
                mode,
                clients,
                open,
            } => {
                let rate = open.then_some(amount.rate);
                // pgbench counts whole seconds, or transactions per client.
                let length = match amount.requests {
                    Some(requests) => [
                        "-t".to_owned(),
                        (requests / u64::from(clients)).max(1).to_string(),
                    ],
                    None => ["-T".to_owned(), amount.seconds.ceil().max(1.0).to_string()],
                };
                pgbench(port, script, mode, clients, rate, &length, folder)
            }
            Load::Idle => bail!("the idle bench is not a load"),
        }
    }
}

fn redis_benchmark(
    port: u16,
    test: &str,
    clients: u32,
    pipeline: u32,
    requests: u64,
) -> Result<Seen> {
    let out = output(Command::new("redis-benchmark").args([
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-t",
        test,
        "-d",
        "64",
        "-r",
        &KEYS.to_string(),
        "-c",
        &clients.to_string(),
        "-P",
        &pipeline.to_string(),
        "-n",
        &requests.to_string(),
        "--csv",
    ]))?;
    // The head line names the columns; the order has changed between versions.
    let mut lines = out.lines().filter(|line| line.starts_with('"'));
    let split = |line: &str| -> Vec<String> {
        line.split(',')
            .map(|cell| cell.trim_matches('"').to_owned())
            .collect()
    };
    let head = split(
        lines
            .next()
            .with_context(|| format!("redis-benchmark said: {out}"))?,
    );
    let row = split(
        lines
            .next()
            .with_context(|| format!("redis-benchmark said: {out}"))?,
    );
    let column = |name: &str| -> Result<f64> {
        let place = head
            .iter()
            .position(|cell| cell == name)
            .context(name.to_owned())?;
        Ok(row.get(place).context(name.to_owned())?.parse()?)
    };
    Ok(Seen {
        requests,
        errors: out.lines().filter(|line| line.contains("rror")).count() as u64,
        throughput: column("rps")?,
        p50_us: column("p50_latency_ms")? * 1e3,
        p99_us: column("p99_latency_ms")? * 1e3,
        p999_us: None,
    })
}

fn pgbench(
    port: u16,
    script: &str,
    mode: &str,
    clients: u32,
    rate: Option<f64>,
    length: &[String; 2],
    folder: &Path,
) -> Result<Seen> {
    let logs = tempfile::Builder::new()
        .prefix("pgbench-")
        .tempdir_in(folder)?;
    let mut command = Command::new("pgbench");
    command.current_dir(logs.path()).args([
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-U",
        "postgres",
        "-n",
        script,
        "-M",
        mode,
        "-c",
        &clients.to_string(),
        "-l",
    ]);
    command.args(length);
    match rate {
        Some(rate) => command.arg(format!("--rate={rate}")),
        // Every transaction in the log would cost the load as much as the query.
        None => command.arg("--sampling-rate=0.1"),
    };
    let out = output(command.arg("postgres"))?;
    let number = |start: &str| -> Result<f64> {
        let line = out.lines().find_map(|line| line.strip_prefix(start));
        let word = line.and_then(|rest| rest.split([' ', '/']).next());
        Ok(word
            .with_context(|| format!("pgbench said: {out}"))?
            .parse()?)
    };
    let mut times = pgbench_log(logs.path())?;
    if times.is_empty() {
        bail!("pgbench logged no transaction");
    }
    times.sort_unstable();
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize] as f64;
    Ok(Seen {
        requests: number("number of transactions actually processed: ")? as u64,
        errors: number("number of failed transactions: ").unwrap_or(0.0) as u64,
        throughput: number("tps = ")?,
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: Some(at(0.999)),
    })
}

/// The latencies in microseconds of pgbench's log files: third column.
fn pgbench_log(folder: &Path) -> Result<Vec<u64>> {
    let mut times = Vec::new();
    for file in std::fs::read_dir(folder)? {
        let text = std::fs::read_to_string(file?.path())?;
        let column = text
            .lines()
            .filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok());
        times.extend(column);
    }
    Ok(times)
}
