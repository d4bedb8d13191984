//! The proxy bench: Parhelion against direct connections, HAProxy, PgBouncer and a bare io_uring forwarder.
//!
//! Real servers, real clients, each contender alone on its CPU in turn; see `tuning/benchmarks.md`. It starts and stops
//! everything itself and needs nothing but the programs on PATH. Everything is in ratios within one run: the absolute
//! numbers belong to the machine.

mod contenders;
#[path = "../floor/mod.rs"]
mod floor;
mod idle;
mod load;
mod measure;
mod own_load;
mod plot;
mod process;
mod report;
mod run;
mod scaling;
mod scaling_plot;
mod scenarios;
mod servers;
mod targets;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use contenders::Place;
use run::{Plan, Row};
use scenarios::chosen;
use servers::Protocol;
use targets::{Outcome, Verdict};

/// CPUs from which a second one is given to the proxy: servers and loads need at least as many again.
const CPUS_FOR_TWO_CORES: usize = 6;
/// Descriptors of a forwarder that are not for idle clients: listeners, logs, rings, HAProxy's reserve.
const SPARE_DESCRIPTORS: u64 = 600;
/// Contenders of `--smoke`: every kind of server path, without the ones that only differ in the candidate's health.
const SMOKE_CONTENDERS: [&str; 9] = [
    "direct",
    "haproxy",
    "pgbouncer",
    "envoy",
    "floor",
    "parhelion",
    "parhelion-mirror",
    "parhelion-refused",
    "parhelion-dual",
];

/// Parhelion against direct connections, HAProxy, PgBouncer and a bare io_uring forwarder.
#[derive(Parser, Debug)]
#[command(name = "proxy", bin_name = "cargo bench --bench proxy --")]
struct Arguments {
    /// Scenarios, by name or `start*`, separated by commas (all: --list-all)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Contenders, by name or `start*`, separated by commas
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,
    /// Interleaved repeats
    #[arg(long)]
    repeats: Option<usize>,
    /// Length of one measured run
    #[arg(long)]
    seconds: Option<f64>,
    /// Requests of one measured run, instead of a length
    #[arg(long)]
    requests: Option<u64>,
    /// Requests per second of the open-loop scenarios [default: 0.4 of direct's]
    #[arg(long)]
    rate: Option<f64>,
    /// Connections of redis-idle
    #[arg(long, default_value_t = 10_000)]
    idle_clients: usize,
    /// pgbench's scale factor
    #[arg(long)]
    scale: Option<u32>,
    /// A second or so per contender; passes when every one served without errors
    #[arg(long)]
    smoke: bool,
    /// Cost and memory against clients, pipeline depth, value size, mirrors and cores, instead of the scenarios
    #[arg(long)]
    scaling: bool,
    /// Candidates get only CPU time that nobody else wants (SCHED_IDLE), as if they had a host of their own
    #[arg(long)]
    candidates_yield: bool,
    /// Fail when a number to reach is missed by more than the spread
    #[arg(long)]
    check: bool,
    /// A folder with the binaries urf, hyb and mux (BIN LISTEN BACKEND CPU [MIRROR]) to compare too
    #[arg(long, value_name = "DIR")]
    spikes: Option<PathBuf>,
    /// The Parhelion binary [default: the one built with the bench]
    #[arg(long, value_name = "FILE")]
    parhelion: Option<PathBuf>,
    /// Parhelion built with `--features bench-uncounted`: the contenders `uncounted` and `uncounted-mirror`
    #[arg(long, value_name = "FILE")]
    uncounted: Option<PathBuf>,
    /// Where JSON and SVG go [default: target/bench]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print scenarios and contenders and end
    #[arg(long)]
    list_all: bool,
    /// Be the floor: forward LISTEN to BACKEND until killed
    #[arg(long, num_args = 2, value_names = ["LISTEN", "BACKEND"])]
    floor: Option<Vec<String>>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` and `cargo nextest` start benches too: there is nothing in here to test.
    let bare = std::env::args().len() == 1;
    if bare || std::env::args().any(|arg| arg == "--list" || arg == "--test") {
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    match start(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that was asked for holds.
fn start(arguments: &Arguments) -> Result<bool> {
    if let Some([listen, backend]) = arguments.floor.as_deref() {
        floor::run(listen, backend)?;
        return Ok(true);
    }
    let logs = tempfile::Builder::new()
        .prefix("parhelion-bench-")
        .tempdir()?;
    // Programs that run as another user read their config there.
    std::fs::set_permissions(
        logs.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )?;
    let (proxy_cpus, load_cpus) = share_cpus()?;
    let descriptors = raise_descriptors(arguments.idle_clients)?;
    let place = Place {
        descriptors,
        proxy_cpus,
        parhelion: arguments
            .parhelion
            .clone()
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_parhelion"))),
        uncounted: arguments.uncounted.clone(),
        spikes: arguments.spikes.clone(),
        folder: logs.path().to_owned(),
    };
    if arguments.list_all {
        list(&place);
        return Ok(true);
    }
    if arguments.scaling {
        return scale(arguments, &place, load_cpus);
    }
    let plan = plan(arguments, load_cpus, descriptors)?;
    eprintln!(
        "proxy on CPU {:?}, servers and loads on {}",
        place.proxy_cpus, plan.load_cpus
    );
    let rows = run::run(&plan, &place, &mut |line| eprintln!("{line}"))?;
    let outcomes = targets::check(&rows);
    print!("{}", report::table(&rows, &plan));
    print!("{}", report::targets(&outcomes));
    let out = out_folder(arguments)?;
    report::write_json(&out.join("proxy.json"), &rows, &outcomes, &plan)?;
    plot::write_all(&out, &rows, &plan)?;
    eprintln!("JSON and plots: {}", out.display());
    Ok(holds(arguments, &rows, &outcomes))
}

/// Runs `--scaling`; every contender served, or there is an error.
fn scale(arguments: &Arguments, place: &Place, load_cpus: String) -> Result<bool> {
    let plan = scaling::Plan {
        seconds: arguments.seconds.unwrap_or(1.0),
        repeats: arguments.repeats.unwrap_or(2),
        contenders: arguments.contenders.clone(),
        clients_max: most_idle(place.descriptors),
        load_cpus,
    };
    let (points, failed) = scaling::run(&plan, place, &mut |line| eprintln!("{line}"))?;
    let out = out_folder(arguments)?;
    report::write_scaling(&out.join("scaling.json"), &points, &plan)?;
    scaling_plot::write_all(&out, &points)?;
    eprintln!("JSON and plots: {}", out.display());
    if failed > 0 {
        eprintln!("{failed} runs failed");
    }
    Ok(!points.is_empty() && failed == 0)
}

fn holds(arguments: &Arguments, rows: &[Row], outcomes: &[Outcome]) -> bool {
    let failed = rows.iter().filter(|row| row.failure.is_some()).count();
    let silent = rows
        .iter()
        .all(|row| row.samples.is_empty() && row.idle.is_empty());
    let missed = outcomes
        .iter()
        .filter(|o| o.verdict == Verdict::Missed)
        .count();
    let unmeasured = outcomes.iter().all(|o| o.verdict == Verdict::NotMeasured);
    if failed > 0 {
        eprintln!("{failed} contenders failed");
    }
    if arguments.check && missed > 0 {
        eprintln!("{missed} numbers missed by more than the spread");
    }
    if arguments.check && unmeasured {
        eprintln!("no number to reach was measured");
    }
    failed == 0 && !silent && !(arguments.check && (missed > 0 || unmeasured))
}

fn plan(arguments: &Arguments, load_cpus: String, descriptors: u64) -> Result<Plan> {
    let smoke = arguments.smoke;
    let names = |given: &[String], default: &[&str]| -> Vec<String> {
        if given.is_empty() && smoke {
            default.iter().map(|&name| name.to_owned()).collect()
        } else {
            given.to_vec()
        }
    };
    let only = names(&arguments.only, &scenarios::SMOKE);
    let mut scenarios = scenarios::ALL.to_vec();
    scenarios.retain(|scenario| chosen(&only, scenario.name));
    if scenarios.is_empty() {
        bail!("no scenario is named {only:?}; --list-all names them");
    }
    if smoke {
        // What is not installed is left out.
        scenarios.retain(|s| installed(s.protocol));
    }
    Ok(Plan {
        scenarios,
        contenders: names(&arguments.contenders, &SMOKE_CONTENDERS),
        repeats: arguments.repeats.unwrap_or(if smoke { 1 } else { 5 }),
        seconds: arguments.seconds.unwrap_or(if smoke { 0.7 } else { 3.0 }),
        requests: arguments.requests,
        rate: arguments.rate,
        idle_clients: arguments.idle_clients.min(most_idle(descriptors)),
        scale: arguments.scale.unwrap_or(if smoke { 1 } else { 10 }),
        load_cpus,
        candidates_yield: arguments.candidates_yield,
    })
}

/// Raises the limit that the children inherit, beyond the hard one where that is allowed; returns what it is then.
fn raise_descriptors(idle_clients: usize) -> Result<u64> {
    let wanted = idle_clients as u64 * 2 + SPARE_DESCRIPTORS;
    let limit = rlimit::Resource::NOFILE;
    if limit.set(wanted, wanted.max(limit.get_hard()?)).is_err() {
        rlimit::increase_nofile_limit(u64::MAX)?;
    }
    let got = limit.get_soft()?;
    if most_idle(got) < idle_clients {
        eprintln!(
            "{got} file descriptors are allowed: redis-idle opens {} connections",
            most_idle(got)
        );
    }
    Ok(got)
}

/// A forwarder needs two descriptors per client.
fn most_idle(descriptors: u64) -> usize {
    (descriptors.saturating_sub(SPARE_DESCRIPTORS) / 2) as usize
}

fn installed(protocol: Protocol) -> bool {
    let (folders, programs) = match protocol {
        Protocol::Redis => (Vec::new(), ["redis-server", "redis-benchmark"].as_slice()),
        Protocol::Postgres => (
            servers::postgres_folders(),
            ["initdb", "postgres", "pgbench", "psql"].as_slice(),
        ),
    };
    programs
        .iter()
        .all(|name| process::find_program(name, &folders).is_some())
}

/// The last CPUs for the proxy, the others for everything else (this process too, and all it starts).
fn share_cpus() -> Result<(Vec<usize>, String)> {
    let allowed = sched_getaffinity(None)?;
    let mut cpus: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|&n| allowed.is_set(n))
        .collect();
    let last = cpus.pop().context("no CPU to run on")?;
    let mut proxy = vec![last];
    if cpus.is_empty() {
        eprintln!("only one CPU: proxy, servers and loads share it, and the numbers mean little");
        cpus.push(last);
    } else if cpus.len() + 1 >= CPUS_FOR_TWO_CORES {
        proxy.extend(cpus.pop());
    }
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    sched_setaffinity(None, &set)?;
    let names: Vec<String> = cpus.iter().map(usize::to_string).collect();
    Ok((proxy, names.join(",")))
}

fn list(place: &Place) {
    for scenario in scenarios::ALL {
        println!("{:<16} {:?}", scenario.name, scenario.load);
    }
    for protocol in [Protocol::Redis, Protocol::Postgres] {
        let names: Vec<String> = contenders::all(protocol, place)
            .into_iter()
            .map(|c| c.name)
            .collect();
        println!("{protocol:?}: {}", names.join(", "));
    }
}

/// `target/bench` beside the folder that this program was built into.
fn out_folder(arguments: &Arguments) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    // target/PROFILE/deps/proxy-HASH
    let default = own
        .ancestors()
        .nth(3)
        .unwrap_or(Path::new("target"))
        .join("bench");
    let out = arguments.out.clone().unwrap_or(default);
    std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    Ok(out)
}
