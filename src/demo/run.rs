//! The course of the demo: servers, proxy, load, view, summary.

use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::load::{Load, LoadOptions};
use super::resp_server::{RespOptions, RespServer};
use super::view::{MirrorView, Screen, list, micros};
use super::{DemoArgs, DemoKind};
use crate::testing::postgres::{PostgresOptions, PostgresServer, SUPERUSER};
use crate::testing::process::{Output, Process};
use crate::testing::proxy::{ProxyOptions, ProxyProcess};
use crate::testing::redis::{RedisOptions, RedisServer};
use crate::testing::wait::eventually;

/// The view is refreshed twice a second.
const REFRESH: Duration = Duration::from_millis(500);
/// How long the mirror may take to answer what is queued when the load ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the demo to its end or to Ctrl-C.
///
/// # Errors
/// When a server or the proxy does not start, or the terminal is gone.
pub fn run(args: &DemoArgs) -> io::Result<()> {
    let stop = stop_flag()?;
    match args.kind {
        None => embedded(args, &stop),
        Some(DemoKind::Redis) => real_redis(args, &stop),
        Some(DemoKind::Postgres) => real_postgres(args, &stop),
    }
}

fn embedded(args: &DemoArgs, stop: &AtomicBool) -> io::Result<()> {
    let primary = RespServer::start(RespOptions::default())?;
    let candidate = RespServer::start(RespOptions {
        delay: Duration::from_micros(args.delay_us),
        wrong_every: args.wrong_every,
        seed: args.seed,
        record: false,
    })?;
    println!("primary    embedded, {}", primary.address());
    println!(
        "candidate  embedded, {}: {} us slower, and one read in {} answered wrongly",
        candidate.address(),
        args.delay_us,
        args.wrong_every,
    );
    let proxy = start_proxy("redis", primary.address(), candidate.address(), &[])?;
    let (view, clean) = redis_load(args, &proxy, stop)?;
    summary(&view);
    let (falsified, found) = (candidate.falsified(), view.divergences_total());
    println!("\nThe candidate falsified {falsified} replies; {found} divergences were found.");
    if falsified != found && view.dropped_total() + view.errored > 0 {
        println!(
            "What was dropped did not reach the candidate: its data, and later replies, may differ for that reason."
        );
    }
    finish(proxy, clean)
}

fn real_redis(args: &DemoArgs, stop: &AtomicBool) -> io::Result<()> {
    let primary = RedisServer::start(RedisOptions::default())?;
    let candidate = RedisServer::start(RedisOptions::default())?;
    println!("primary    redis-server, {}", primary.address());
    println!("candidate  redis-server, {}", candidate.address());
    let proxy = start_proxy("redis", primary.address(), candidate.address(), &[])?;
    let (view, clean) = redis_load(args, &proxy, stop)?;
    summary(&view);
    finish(proxy, clean)
}

fn real_postgres(args: &DemoArgs, stop: &AtomicBool) -> io::Result<()> {
    let start = || {
        PostgresServer::start(PostgresOptions {
            databases: vec!["bench".into()],
            ..PostgresOptions::default()
        })
    };
    let (primary, candidate) = (start()?, start()?);
    println!("primary    postgres, {}", primary.address());
    println!("candidate  postgres, {}", candidate.address());
    for server in [&primary, &candidate] {
        let mut command = pgbench(server, server.address());
        command.args(["-i", "-q", "-s", "1", "bench"]);
        let mut process = Process::spawn(command, Output::Null, None)?;
        match process.wait_exit(Duration::from_secs(120)) {
            Some(status) if status.success() => {}
            other => return Err(io::Error::other(format!("pgbench -i: {other:?}"))),
        }
    }
    let proxy = start_proxy(
        "postgres",
        primary.address(),
        candidate.address(),
        &["--user", SUPERUSER],
    )?;
    let mut command = pgbench(&primary, proxy.address());
    command.args([
        "-n",
        "-S",
        "-c",
        &args.clients.to_string(),
        "-T",
        &args.seconds.to_string(),
        "bench",
    ]);
    let mut load = Process::spawn(command, Output::Null, None)?;
    let started = Instant::now();
    let mut screen = Screen::new();
    let mut last = (Instant::now(), 0);
    while load.exited().is_none() && !stop.load(Ordering::Relaxed) {
        thread::sleep(REFRESH);
        let view = MirrorView::fetch(proxy.control()).unwrap_or_default();
        let rate = (view.observed.saturating_sub(last.1)) as f64 / last.0.elapsed().as_secs_f64();
        last = (Instant::now(), view.observed);
        screen.draw(started.elapsed().as_secs_f64(), Some(rate), &view)?;
    }
    let status = load.stop(Signal::INT);
    let clean = stop.load(Ordering::Relaxed) || status.is_some_and(|status| status.success());
    let view = drained(&proxy)?;
    summary(&view);
    finish(proxy, clean)
}

fn pgbench(server: &PostgresServer, target: SocketAddr) -> Command {
    let mut command = Command::new(server.program("pgbench"));
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &target.port().to_string(),
        "-U",
        SUPERUSER,
    ]);
    command
}

fn start_proxy(
    protocol: &'static str,
    primary: SocketAddr,
    candidate: SocketAddr,
    extra: &[&str],
) -> io::Result<ProxyProcess> {
    let options = ProxyOptions::new(protocol, primary)
        .mirror(candidate)
        .args(extra);
    let proxy = ProxyProcess::start(&std::env::current_exe()?, &options)?;
    println!(
        "proxy      {}, control http://{}\n",
        proxy.address(),
        proxy.control()
    );
    Ok(proxy)
}

/// Sends the load, draws the view, and waits for the mirror to catch up. Also says whether every client fared well.
fn redis_load(
    args: &DemoArgs,
    proxy: &ProxyProcess,
    stop: &AtomicBool,
) -> io::Result<(MirrorView, bool)> {
    let load = Load::start(&LoadOptions {
        address: proxy.address(),
        clients: usize::try_from(args.clients).unwrap_or(1),
        rate: args.rate,
        duration: Duration::from_secs(args.seconds),
        seed: args.seed,
    })?;
    let started = Instant::now();
    let mut screen = Screen::new();
    let mut last = (Instant::now(), 0);
    while !load.finished() && !stop.load(Ordering::Relaxed) {
        thread::sleep(REFRESH);
        let requests = load.stats().requests.load(Ordering::Relaxed);
        let rate = (requests - last.1) as f64 / last.0.elapsed().as_secs_f64();
        last = (Instant::now(), requests);
        let view = MirrorView::fetch(proxy.control()).unwrap_or_default();
        screen.draw(started.elapsed().as_secs_f64(), Some(rate), &view)?;
    }
    let stats = load.stop();
    let (requests, errors) = (
        stats.requests.load(Ordering::Relaxed),
        stats.errors.load(Ordering::Relaxed),
    );
    let failed = stats.failed_clients.load(Ordering::Relaxed);
    println!(
        "\nclients    {requests} requests, {errors} error replies, {failed} broken connections; p50 {}, p99 {} through the proxy",
        micros(Some(stats.latency_us(0.5))),
        micros(Some(stats.latency_us(0.99))),
    );
    Ok((drained(proxy)?, failed == 0))
}

/// The numbers once nothing is in flight any more, or as they stand at the deadline.
fn drained(proxy: &ProxyProcess) -> io::Result<MirrorView> {
    let view = eventually(DRAIN_TIMEOUT, || {
        MirrorView::fetch(proxy.control())
            .ok()
            .filter(|view| view.in_flight == 0)
    });
    view.map_or_else(|| MirrorView::fetch(proxy.control()), Ok)
}

fn summary(view: &MirrorView) {
    println!(
        "observed   {} = excluded {} + unexposed {} + offered {}",
        view.observed, view.excluded, view.unexposed, view.offered
    );
    println!(
        "offered    {} = delivered {} + dropped {} + errored {} + in flight {}",
        view.offered,
        view.delivered,
        view.dropped_total(),
        view.errored,
        view.in_flight,
    );
    println!(
        "           the ledger {}; dropped: {}",
        if view.balances() {
            "balances"
        } else {
            "DOES NOT BALANCE"
        },
        list(&view.dropped)
    );
    println!(
        "latency    primary p50 {} p99 {}, candidate p50 {} p99 {}",
        micros(view.primary_us[0]),
        micros(view.primary_us[1]),
        micros(view.mirror_us[0]),
        micros(view.mirror_us[1])
    );
    println!(
        "compared   {}, divergences {}: {}",
        view.compared,
        view.divergences_total(),
        list(&view.divergences)
    );
}

fn finish(mut proxy: ProxyProcess, clean: bool) -> io::Result<()> {
    match proxy.terminate() {
        Some(status) if !status.success() => Err(io::Error::other(format!(
            "the proxy ended with {status}\n{}",
            proxy.log().join("\n")
        ))),
        _ if !clean => Err(io::Error::other("clients lost their connections")),
        _ => Ok(()),
    }
}

/// Becomes true at Ctrl-C or SIGTERM; everything is then taken down in order.
fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else {
                return;
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        });
        flag.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}
