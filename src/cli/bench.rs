//! `parhelion bench`: load on a running proxy, on the database behind it for comparison, and a table of both.
//!
//! Owns: the arguments, the order of the runs, the table. The load itself is [`crate::load`].

use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;
use std::{env, io};

use serde_json::json;

use crate::load::cpu::rss_kib;
use crate::load::{self, Distribution, LoadError, Login, Mix, Options, Resp, Seen};

/// Warm-up of a closed loop, as a share of the run.
const WARM_UP: f64 = 0.1;
/// An open loop whose generator was later than this judges itself, not the server.
const LATE_MAX: Duration = Duration::from_millis(5);

/// The arguments of `bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Closed loop (no --rate): every connection sends its batch as soon as the last one is answered; read the throughput.\n\
    Open loop (--rate): requests leave on a fixed schedule and latency counts from there, so that a stall shows in full;\n\
    read the percentiles.\n\n\
    Writes keys that begin with parhelion-bench: and removes them at the end; PARHELION_PASSWORD is the password.\n\
    For Postgres run pgbench once through the proxy and once past it.\n\n\
    Examples:\n  \
    parhelion bench --redis 127.0.0.1:6479 --direct 10.0.0.5:6379 --clients 200\n  \
    parhelion bench --redis 127.0.0.1:6479 --pid $(pidof parhelion) --rate 20000 --mix get:80,set:20 --distribution zipf"
)]
pub struct BenchArgs {
    /// The proxy, or any Redis port
    #[arg(long, value_name = "HOST:PORT")]
    pub redis: String,
    /// The database behind it: gets the same load in turn, for comparison
    #[arg(long, value_name = "HOST:PORT")]
    pub direct: Option<String>,
    /// Process of the proxy on this host: its CPU per request and its memory are shown
    #[arg(long)]
    pub pid: Option<u32>,
    /// Connections
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Requests that a connection sends at once (closed loop)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pipeline: u32,
    /// Requests per second of all connections together: an open loop
    #[arg(long, value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Commands and their weights, of ping, get, set, mget, incr, hset, hgetall, lpush, lpop, del
    #[arg(long, default_value = "get:80,set:20", value_parser = parse_mix)]
    pub mix: Mix,
    /// Bytes of a value
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=64 << 20))]
    pub value_size: u32,
    /// How many keys
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=load::keys::KEYS_MAX))]
    pub keys: u64,
    /// How keys are chosen
    #[arg(long, value_enum, default_value_t = Distribution::Uniform)]
    pub distribution: Distribution,
    /// RESP version of the connections
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub resp: u8,
    /// User to log in as [default: default]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Length of one run
    #[arg(long, default_value_t = 5.0, value_parser = parse_seconds)]
    pub seconds: f64,
    /// Runs per address, in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeats: u32,
    /// Threads of the generator [default: one per 500 connections, at most half of the CPUs]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Print JSON instead of the table
    #[arg(long)]
    pub json: bool,
}

/// All runs against one address.
struct Side {
    name: &'static str,
    address: String,
    options: Options,
    seen: Seen,
    seconds: f64,
}

/// Runs the load and prints what it saw. `Ok(false)`: some requests were answered wrongly or not at all.
///
/// # Errors
/// An address that cannot be resolved, reached, or that is no Redis.
pub fn run(args: &BenchArgs, out: &mut dyn io::Write) -> Result<bool, LoadError> {
    let mut sides = vec![side("proxy", &args.redis, args.pid, args)?];
    if let Some(direct) = &args.direct {
        sides.push(side("direct", direct, None, args)?);
    }
    if args.mix.reads_strings() {
        load::fill(&sides[0].options)?;
    }
    for repeat in 0..args.repeats as usize {
        for turn in 0..sides.len() {
            let count = sides.len();
            sides[(turn + repeat) % count].run()?;
        }
    }
    let memory = args.pid.map(rss_kib).transpose()?;
    load::remove(&sides[0].options)?;
    let text = if args.json {
        format!("{:#}\n", document(args, &sides, memory))
    } else {
        table(args, &sides, memory)
    };
    out.write_all(text.as_bytes())?;
    Ok(sides
        .iter()
        .all(|side| side.seen.wrong == 0 && side.seen.unanswered == 0))
}

fn side(
    name: &'static str,
    address: &str,
    pid: Option<u32>,
    args: &BenchArgs,
) -> Result<Side, LoadError> {
    let length = Duration::from_secs_f64(args.seconds);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = (args.clients as usize).div_ceil(500).min((cpus / 2).max(1));
    let password = env::var("PARHELION_PASSWORD").ok();
    let options = Options {
        clients: args.clients as usize,
        pipeline: args.pipeline as usize,
        rate: args.rate,
        mix: args.mix.clone(),
        keys: args.keys,
        distribution: args.distribution,
        value_size: args.value_size as usize,
        resp: if args.resp == 3 {
            Resp::Three
        } else {
            Resp::Two
        },
        login: Login {
            user: args.user.clone(),
            password: password.filter(|password| !password.is_empty()),
        },
        threads: args.threads.map_or(wanted, |threads| threads as usize),
        length,
        watch: pid,
        warm_up: length.mul_f64(WARM_UP),
        ..Options::new(resolve(address)?)
    };
    Ok(Side {
        name,
        address: address.to_owned(),
        options,
        seen: Seen::nothing()?,
        seconds: 0.0,
    })
}

fn resolve(address: &str) -> Result<SocketAddr, LoadError> {
    let wrong = |problem: String| LoadError::Argument(format!("{address}: {problem}"));
    let mut found = address
        .to_socket_addrs()
        .map_err(|error| wrong(format!("{error}; write e.g. 127.0.0.1:6479")))?;
    found.next().ok_or_else(|| wrong("has no address".into()))
}

impl Side {
    fn run(&mut self) -> Result<(), LoadError> {
        let mut seen = load::run(&self.options)?;
        self.seconds += seen.took.as_secs_f64();
        // The sum of the runs' times counts, not the longest.
        seen.took = Duration::ZERO;
        self.seen.merge(&seen)
    }

    fn throughput(&self) -> f64 {
        self.seen.replies as f64 / self.seconds.max(1e-9)
    }

    fn cpu_us(&self) -> Option<(f64, f64)> {
        let cpu = self.seen.cpu?;
        let per_request = |seconds: f64| seconds * 1e6 / self.seen.replies.max(1) as f64;
        Some((per_request(cpu.user_s), per_request(cpu.system_s)))
    }
}

fn table(args: &BenchArgs, sides: &[Side], memory: Option<u64>) -> String {
    let kind = match args.rate {
        Some(rate) => format!("open loop at {rate}/s, latency from the scheduled time"),
        None => format!("closed loop, {} at once", args.pipeline),
    };
    let mut out = format!(
        "{kind}; {} clients, {}, values of {} bytes, {} keys, {} runs of {} s\n\n{:<32} {:>10} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>10}\n",
        args.clients,
        args.mix,
        args.value_size,
        args.keys,
        args.repeats,
        args.seconds,
        "",
        "per s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "errors",
        "missing",
        "cpu us/req",
    );
    for side in sides {
        let seen = &side.seen;
        let cpu = side.cpu_us().map_or("–".to_owned(), |(user, system)| {
            format!("{:.2}", user + system)
        });
        let _ = writeln!(
            out,
            "{:<32} {:>10.0} {:>9.1} {:>9.1} {:>9.1} {:>9.0} {:>7} {:>7} {:>10}",
            format!("{} {}", side.name, side.address),
            side.throughput(),
            seen.latency_us(0.5),
            seen.latency_us(0.99),
            seen.latency_us(0.999),
            seen.latency.max() as f64 / 1e3,
            seen.errors,
            seen.missing,
            cpu,
        );
    }
    if let [proxy, direct] = sides {
        let ratio = |one: f64, other: f64| one / other;
        let at = |quantile| {
            ratio(
                proxy.seen.latency_us(quantile),
                direct.seen.latency_us(quantile),
            )
        };
        let _ = writeln!(
            out,
            "{:<32} {:>10.2} {:>9.2} {:>9.2} {:>9.2}",
            "proxy / direct",
            ratio(proxy.throughput(), direct.throughput()),
            at(0.5),
            at(0.99),
            at(0.999)
        );
    }
    if let Some((user, system)) = sides[0].cpu_us() {
        let mib = memory.unwrap_or(0) as f64 / 1024.0;
        let _ = writeln!(
            out,
            "\nproxy: {user:.2} us user and {system:.2} us kernel per request, {mib:.1} MiB resident"
        );
    }
    for side in sides {
        let seen = &side.seen;
        if seen.wrong > 0 || seen.unanswered > 0 {
            let _ = writeln!(
                out,
                "{}: {} replies that cannot be right, {} requests without a reply",
                side.name, seen.wrong, seen.unanswered
            );
        }
        if args.rate.is_some() && seen.late > LATE_MAX {
            let _ = writeln!(
                out,
                "{}: the generator itself was up to {:.1} ms late; lower --rate, raise --threads, or give it CPUs of its own",
                side.name,
                seen.late.as_secs_f64() * 1e3
            );
        }
    }
    out
}

fn document(args: &BenchArgs, sides: &[Side], memory: Option<u64>) -> serde_json::Value {
    let sides: Vec<_> = sides
        .iter()
        .map(|side| {
            let seen = &side.seen;
            json!({
                "name": side.name,
                "address": side.address,
                "replies": seen.replies,
                "throughput": side.throughput(),
                "p50_us": seen.latency_us(0.5),
                "p99_us": seen.latency_us(0.99),
                "p999_us": seen.latency_us(0.999),
                "max_us": seen.latency.max() as f64 / 1e3,
                "errors": seen.errors,
                "missing": seen.missing,
                "wrong": seen.wrong,
                "unanswered": seen.unanswered,
                "generator_late_us": seen.late.as_micros() as u64,
                "cpu_user_us": side.cpu_us().map(|(user, _)| user),
                "cpu_system_us": side.cpu_us().map(|(_, system)| system),
            })
        })
        .collect();
    json!({
        "parhelion": env!("CARGO_PKG_VERSION"),
        "clients": args.clients,
        "pipeline": args.pipeline,
        "rate": args.rate,
        "mix": args.mix.to_string(),
        "value_size": args.value_size,
        "keys": args.keys,
        "resp": args.resp,
        "seconds": args.seconds,
        "repeats": args.repeats,
        "rss_kib": memory,
        "sides": sides,
    })
}

fn parse_mix(text: &str) -> Result<Mix, String> {
    Mix::parse(text).map_err(|error| error.to_string())
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=1e8).contains(&rate) => Ok(rate),
        _ => Err("write requests per second, e.g. 20000".into()),
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("write seconds, 0.1 to 86400".into()),
    }
}
