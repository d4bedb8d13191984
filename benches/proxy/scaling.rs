//! `--scaling`: what a request costs as clients, pipeline depth, value size, mirrors and cores grow, and what memory
//! grows with.
//!
//! All loads are GETs of the library's own generator in a closed loop (SET and GET in halves for value sizes). Owns the
//! dimensions and their points, the order of the runs and a deadline; `scaling_plot` draws.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parhelion::load::{self, Mix, Options};
use rustix::process::Signal;
use serde::Serialize;

use crate::contenders::{self, Contender, Mirror, Place};
use crate::idle;
use crate::measure::{Spread, rss_kib};
use crate::own_load;
use crate::process::{Spawn, free_port, loopback};
use crate::servers::{Protocol, Servers};

/// No run begins later: the whole ends within twelve minutes.
const DEADLINE: Duration = Duration::from_secs(11 * 60);
/// Warm-up as a share of the measured run.
const WARM_UP: f64 = 0.2;
/// A run is at least so long that this many clients take part per second.
const CLIENTS_PER_SECOND: f64 = 2500.0;
/// Connections where something else grows.
const CLIENTS: usize = 50;
/// Connections where values grow: 50 values of 1 MiB on their way say more about the cache than about a proxy.
const VALUE_CLIENTS: usize = 10;
/// Most mirrors.
const MIRRORS_MAX: usize = 4;
/// Keys of a value-size run together are at most so many bytes.
const VALUES_BYTES: usize = 64 << 20;
/// Contenders of the dimensions that all can follow.
const CONTENDERS: [&str; 5] = [
    "direct",
    "haproxy",
    "floor",
    "parhelion",
    "parhelion-mirror",
];

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// Connections.
    Clients,
    /// Requests sent at once.
    Pipeline,
    /// Bytes of a value.
    ValueSize,
    /// Candidates.
    Mirrors,
    /// Data cores.
    Cores,
    /// Connections that sit there.
    IdleClients,
    /// Units that wait for a mirror that stands still.
    QueuedUnits,
}

impl Dimension {
    /// Name of the plot's file and label of its axis.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Clients => ("scale-clients", "clients"),
            Self::Pipeline => ("scale-pipeline", "requests sent at once"),
            Self::ValueSize => ("scale-value-size", "bytes of a value"),
            Self::Mirrors => ("scale-mirrors", "mirrors"),
            Self::Cores => ("scale-cores", "cores of the proxy"),
            Self::IdleClients => ("scale-memory-clients", "idle clients"),
            Self::QueuedUnits => ("scale-memory-queue", "bytes of a queued value"),
        }
    }
}

/// One value of what grows, for one contender.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// What grows.
    pub dimension: Dimension,
    /// How far.
    pub x: u64,
    /// Who.
    pub contender: String,
    /// One per repeat.
    pub samples: Vec<Sample>,
}

/// One run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    /// Replies per second.
    pub throughput: f64,
    /// Median latency.
    pub p50_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// User and kernel time of the proxy per request.
    pub cpu_us: Option<f64>,
    /// Growth of the proxy's resident memory per client or queued unit, where memory is asked for.
    pub bytes_each: Option<f64>,
    /// The same per byte of queued payload.
    pub bytes_per_byte: Option<f64>,
}

impl Point {
    /// Median and spread of a value; `None` where some run has none.
    pub fn spread(&self, value: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(
            self.samples
                .iter()
                .map(value)
                .collect::<Option<Vec<f64>>>()?,
        )
    }
}

/// How long and how often.
pub struct Plan {
    /// Seconds of a run.
    pub seconds: f64,
    /// Repeats of every point.
    pub repeats: usize,
    /// Patterns for contenders.
    pub contenders: Vec<String>,
    /// Most connections that descriptors allow.
    pub clients_max: usize,
    /// CPUs of servers and loads.
    pub load_cpus: String,
}

/// One run to be done.
struct Job {
    point: usize,
    contender: Contender,
    options: Options,
}

/// Runs all dimensions and says how many runs failed; these, and what the deadline cuts off, are named to `progress`.
pub fn run(
    plan: &Plan,
    place: &Place,
    progress: &mut dyn FnMut(&str),
) -> Result<(Vec<Point>, usize)> {
    let started = Instant::now();
    let mut servers = Servers::start(Protocol::Redis, &plan.load_cpus, 1)?;
    servers.add_candidates(MIRRORS_MAX, &plan.load_cpus)?;
    let (mut points, jobs) = jobs(plan, place);
    memory(plan, place, &servers, &mut points, progress)?;
    let mut failed = 0;
    for repeat in 0..plan.repeats {
        for (n, job) in jobs.iter().enumerate() {
            if started.elapsed() > DEADLINE {
                progress(&format!(
                    "the time is up: {} of {} runs of repeat {repeat} and {} later repeats are left out",
                    jobs.len() - n,
                    jobs.len(),
                    plan.repeats - repeat - 1
                ));
                points.retain(|point| !point.samples.is_empty());
                return Ok((points, failed));
            }
            let point = &mut points[job.point];
            let done = one(job, plan, place, &servers);
            let sample = match done {
                Ok(sample) => sample,
                Err(error) => {
                    let (name, x) = (point.dimension.names().0, point.x);
                    progress(&format!(
                        "FAILED: {name} {x} {}: {error:#}",
                        point.contender
                    ));
                    failed += 1;
                    continue;
                }
            };
            progress(&format!(
                "{repeat} {:<22} {:>8} {:<17} {:>9.0}/s  p50 {:>8.1} us  p99 {:>8.1} us  cpu {:>7.2} us",
                point.dimension.names().0,
                point.x,
                point.contender,
                sample.throughput,
                sample.p50_us,
                sample.p99_us,
                sample.cpu_us.unwrap_or(0.0)
            ));
            point.samples.push(sample);
        }
    }
    points.retain(|point| !point.samples.is_empty());
    Ok((points, failed))
}

/// All points without samples, and the runs that fill them, contenders of one value next to each other.
fn jobs(plan: &Plan, place: &Place) -> (Vec<Point>, Vec<Job>) {
    let (mut points, mut jobs) = (Vec::new(), Vec::new());
    let base = Options {
        clients: CLIENTS,
        ..own_load::options(0)
    };
    let mut add = |dimension, x: usize, contender: Contender, options: Options| {
        let wanted = crate::scenarios::chosen(&plan.contenders, &contender.name);
        if !wanted || contender.missing().is_some() {
            return;
        }
        jobs.push(Job {
            point: points.len(),
            contender: contender.clone(),
            options,
        });
        points.push(Point {
            dimension,
            x: x as u64,
            contender: contender.name,
            samples: Vec::new(),
        });
    };
    let all: Vec<Contender> = contenders::all(Protocol::Redis, place)
        .into_iter()
        .filter(|contender| CONTENDERS.contains(&contender.name.as_str()))
        .collect();
    let clients = [1, 10, 50, 200, 1000, 5000, 10_000];
    for x in clients.into_iter().filter(|&x| x <= plan.clients_max) {
        for contender in &all {
            let options = Options {
                clients: x,
                ..base.clone()
            };
            add(Dimension::Clients, x, contender.clone(), options);
        }
    }
    for x in [1, 2, 4, 8, 16, 32, 64, 128] {
        for contender in &all {
            let options = Options {
                pipeline: x,
                ..base.clone()
            };
            add(Dimension::Pipeline, x, contender.clone(), options);
        }
    }
    for x in [16, 256, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        for contender in &all {
            let options = Options {
                clients: VALUE_CLIENTS,
                value_size: x,
                keys: (VALUES_BYTES / x).min(10_000) as u64,
                mix: Mix::parse("get,set").unwrap_or_default(),
                ..base.clone()
            };
            add(Dimension::ValueSize, x, contender.clone(), options);
        }
    }
    for x in 0..=MIRRORS_MAX {
        let contender = contenders::parhelion_of(x, 1);
        add(Dimension::Mirrors, x, contender, base.clone());
        // Who cannot mirror stands there once, to compare.
        for contender in all.iter().take(3).filter(|_| x == 0) {
            add(Dimension::Mirrors, x, contender.clone(), base.clone());
        }
    }
    for x in 1..=place.proxy_cpus.len().min(2) {
        if place.proxy_cpus.len() > 1 {
            for contender in [contenders::parhelion_of(0, x), contenders::haproxy_of(x)] {
                add(Dimension::Cores, x, contender, base.clone());
            }
        }
    }
    (points, jobs)
}

fn one(job: &Job, plan: &Plan, place: &Place, servers: &Servers) -> Result<Sample> {
    let running = job.contender.start(Protocol::Redis, servers, place)?;
    // Many clients need longer until each had its turns.
    let seconds = plan
        .seconds
        .max(job.options.clients as f64 / CLIENTS_PER_SECOND);
    let length = Duration::from_secs_f64(seconds);
    let options = Options {
        address: loopback(running.port),
        length,
        warm_up: length.mul_f64(WARM_UP),
        watch: running.pid(),
        ..job.options.clone()
    };
    if options.value_size != own_load::options(0).value_size {
        // Straight to the primary: a filling through the proxy would be mirrored too.
        load::fill(&Options {
            address: loopback(servers.primary.port),
            ..options.clone()
        })?;
    }
    let seen = load::run(&options)?;
    let failed = seen.errors + seen.missing + seen.wrong + seen.unanswered;
    if seen.replies == 0 || failed > 0 {
        bail!("{failed} of {} requests failed", seen.replies);
    }
    drop(running);
    if job.contender.mirror == Mirror::On {
        // What is still queued in the candidate must not cost the next contender.
        servers.candidate.settled_work()?;
    }
    Ok(Sample {
        throughput: seen.throughput(),
        p50_us: seen.latency_us(0.5),
        p99_us: seen.latency_us(0.99),
        cpu_us: seen
            .cpu
            .map(|cpu| cpu.total_s() * 1e6 / seen.replies as f64),
        ..Sample::default()
    })
}

/// Memory per idle client, and per unit that waits for a stopped mirror.
fn memory(
    plan: &Plan,
    place: &Place,
    servers: &Servers,
    points: &mut Vec<Point>,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    let mut add = |dimension: Dimension, x: usize, contender: &str, sample: Sample| {
        progress(&format!(
            "0 {:<22} {x:>8} {contender:<17} {:>9.0} bytes each{}",
            dimension.names().0,
            sample.bytes_each.unwrap_or(0.0),
            sample
                .bytes_per_byte
                .map_or(String::new(), |ratio| format!(", {ratio:.2} per byte"))
        ));
        points.push(Point {
            dimension,
            x: x as u64,
            contender: contender.to_owned(),
            samples: vec![sample],
        });
    };
    let all = contenders::all(Protocol::Redis, place);
    let proxies = all.iter().filter(|contender| {
        let name = contender.name.as_str();
        name != "direct"
            && CONTENDERS.contains(&name)
            && crate::scenarios::chosen(&plan.contenders, name)
            && contender.missing().is_none()
    });
    for contender in proxies {
        for x in [100, 1000, 5000, 10_000] {
            if x > plan.clients_max {
                continue;
            }
            let running = contender.start(Protocol::Redis, servers, place)?;
            let pid = running.pid().context("a proxy")?;
            let sample = Sample {
                bytes_each: Some(idle::growth(running.port, pid, x)?),
                ..Sample::default()
            };
            add(Dimension::IdleClients, x, &contender.name, sample);
        }
    }
    if crate::scenarios::chosen(&plan.contenders, "parhelion-mirror") {
        for (x, count) in [
            (16, 100_000),
            (256, 50_000),
            (4096, 10_000),
            (65_536, 1_000),
        ] {
            let sample = queued(x, count, place, servers)?;
            add(Dimension::QueuedUnits, x, "parhelion-mirror", sample);
        }
    }
    Ok(())
}

/// `count` SETs of `value_size` bytes while the mirror stands still; memory is compared with what the queue says it holds.
fn queued(value_size: usize, count: u64, place: &Place, servers: &Servers) -> Result<Sample> {
    let (port, control) = (free_port()?, free_port()?);
    let file = place.folder.join(format!("queue-{port}.toml"));
    let cpu = place.proxy_cpus[0];
    let database = |name: &str, port: u16| {
        format!(
            "[[databases]]\nname = \"{name}\"\nprotocol = \"redis\"\nhost = \"127.0.0.1\"\nport = {port}\n"
        )
    };
    let config = format!(
        "[general]\ncores = [{cpu}]\ncontrol = \"127.0.0.1:{control}\"\nmirror_queue = 1048576\n\
         mirror_queue_bytes = \"1GiB\"\nmirror_memory = \"4GiB\"\nmirror_timeout = \"1h\"\npace = \"off\"\n\
         [[listeners]]\naddress = \"127.0.0.1:{port}\"\nprotocol = \"redis\"\ndatabase = \"primary\"\n\
         {}{}[[mirroring]]\nsource_db = \"primary\"\ndestination_db = \"candidate\"\n",
        database("primary", servers.primary.port),
        database("candidate", servers.candidate.port)
    );
    std::fs::write(&file, config)?;
    let mut process = Spawn {
        name: "parhelion-queue",
        command: [
            place.parhelion.as_path(),
            "run".as_ref(),
            "--config".as_ref(),
            &file,
        ]
        .map(|word| word.to_string_lossy().into_owned())
        .to_vec(),
        cpus: cpu.to_string(),
        user: None,
        end: Signal::KILL,
        folder: &place.folder,
    }
    .start()?;
    process.wait_for_line("ready")?;
    let load = |count: u64| {
        load::fill(&Options {
            keys: count,
            value_size,
            ..own_load::options(port)
        })
    };
    // The mirror's connections must be open and every buffer touched before it stops.
    load(10_000.min(count))?;
    servers.candidate.settled_work()?;
    let halted = servers.candidate.stop();
    let before = rss_kib(process.pid())?;
    load(count)?;
    let grown = rss_kib(process.pid())?.saturating_sub(before) as f64 * 1024.0;
    let units = metric(control, "parhelion_mirror_queue_units")?;
    let bytes = units * (own_load::set_bytes(value_size)) as f64;
    drop(process);
    drop(halted);
    if units < count as f64 * 0.5 {
        bail!("{units} of {count} units were queued");
    }
    Ok(Sample {
        bytes_each: Some(grown / units),
        bytes_per_byte: Some(grown / bytes),
        ..Sample::default()
    })
}

/// The sum of a gauge's samples on the control port, once it stands.
fn metric(control: u16, name: &str) -> Result<f64> {
    let mut last = None;
    for _ in 0..50 {
        let mut stream = TcpStream::connect(loopback(control))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let values: Vec<f64> = text
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        if values.is_empty() {
            bail!("no metric {name}");
        }
        let sum = values.iter().sum();
        if last == Some(sum) {
            return Ok(sum);
        }
        last = Some(sum);
        std::thread::sleep(Duration::from_millis(200));
    }
    last.context("the queue does not come to rest")
}
