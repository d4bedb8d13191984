//! The metrics' names are an interface: text and table say the same, in bounded time, and always balance.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod control_support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use control_support::filled_registry;
use parhelion::metrics::{
    COMPAT_TABLE, DivergenceKind, Kind, Metric, Protocol, Registry, Scrape, TABLE, TextFormat,
    WriteFailure, encode, encode_tables,
};
use parhelion::mirror::ledger::{DropReason, Fate};

/// Sample name and label names of a line.
fn parse(line: &str) -> (String, Vec<String>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}').unwrap();
    let names = labels
        .split("\",")
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap().0.to_owned())
        .collect();
    (name.to_owned(), names, value.parse().unwrap())
}

fn samples_of(metric: &Metric) -> Vec<(String, Vec<String>)> {
    let labels: Vec<String> = metric.labels.iter().map(ToString::to_string).collect();
    let mut with_le = labels.clone();
    with_le.push("le".into());
    let name = metric.name;
    match metric.kind {
        Kind::Counter => vec![(format!("{name}_total"), labels)],
        Kind::Gauge => vec![(name.into(), labels)],
        Kind::Info => vec![(format!("{name}_info"), labels)],
        Kind::Histogram => vec![
            (format!("{name}_bucket"), with_le),
            (format!("{name}_count"), labels.clone()),
            (format!("{name}_sum"), labels),
        ],
    }
}

#[test]
fn every_exposed_series_is_in_the_table_and_the_other_way_round() {
    let registry = filled_registry(2, 3);
    // Errors of the primary have no series until there is one.
    registry
        .source(0, "prod0", Protocol::Postgres)
        .errors
        .count(None);
    let redis = registry.mirror(0, "prod1", "next1", Protocol::Redis);
    redis
        .commands
        .at(3, "get")
        .diverge(DivergenceKind::MigrationGap);
    redis
        .commands
        .at(4, "set")
        .fail_write(WriteFailure::Refused);
    let scrape = Scrape::take(&registry, "1.2.3", 1.5, true);
    let tables = [TABLE, COMPAT_TABLE];
    let expected: BTreeSet<_> = tables.into_iter().flatten().flat_map(samples_of).collect();
    for format in [TextFormat::OpenMetrics, TextFormat::Prometheus] {
        let text = encode_tables(&scrape, format, &tables);
        let exposed: BTreeSet<_> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let (name, labels, _) = parse(line);
                (name, labels)
            })
            .collect();
        assert_eq!(exposed, expected);
    }
}

#[test]
fn names_follow_the_conventions() {
    let mut seen = BTreeSet::new();
    for metric in TABLE {
        assert!(seen.insert(metric.name), "{} is there twice", metric.name);
        assert!(metric.name.starts_with("parhelion_"), "{}", metric.name);
        assert!(!metric.name.ends_with("_total"), "{}", metric.name);
        assert!(
            metric.help.ends_with('.') && !metric.help.contains('\n'),
            "{}",
            metric.name
        );
        if !metric.unit.is_empty() {
            assert!(
                metric.name.ends_with(&format!("_{}", metric.unit)),
                "{}",
                metric.name
            );
        }
    }
}

/// A registry with a source whose name has all that a label has to escape.
fn with_an_odd_name(cores: usize, mirrors: usize) -> Registry {
    let registry = filled_registry(cores, mirrors);
    let odd = registry.mirror(0, "odd\"name\\with\nall", "x", Protocol::Redis);
    odd.ledger.exclude();
    registry
}

#[test]
fn the_text_is_well_formed_and_series_are_unique() {
    let registry = with_an_odd_name(1, 2);
    let scrape = Scrape::take(&registry, "1", 0.0, false);
    let text = encode(&scrape, TextFormat::OpenMetrics);
    assert!(text.ends_with("# EOF\n"));
    assert!(text.contains(r#"source="odd\"name\\with\nall""#));
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        assert!(seen.insert(series.to_owned()), "{series} is there twice");
    }
    assert!(
        encode(&scrape, TextFormat::Prometheus)
            .contains("# TYPE parhelion_mirror_offered_total counter\n")
    );
    assert!(text.contains("# TYPE parhelion_mirror_offered counter\n"));
}

#[test]
fn buckets_are_cumulative_and_end_at_the_count() {
    let registry = filled_registry(3, 1);
    let text = encode(
        &Scrape::take(&registry, "1", 0.0, true),
        TextFormat::Prometheus,
    );
    let family = "parhelion_mirror_latency_seconds";
    let of = |suffix: &str| -> Vec<f64> {
        let start = format!("{family}{suffix}{{");
        text.lines()
            .filter(|l| l.starts_with(&start))
            .map(|l| parse(l).2)
            .collect()
    };
    let buckets = of("_bucket");
    assert!(buckets.is_sorted());
    assert_eq!(buckets.last(), of("_count").last());
    let delivered = registry.mirrors()[0].ledger.delivered;
    assert_eq!(of("_count")[0], delivered as f64);
    let mean = of("_sum")[0] / of("_count")[0];
    assert!((1e-4..1e-2).contains(&mean), "{mean}");
}

/// What this thread has computed so far; what it waited for a processor does not count.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn a_scrape_of_ten_cores_and_fifty_mirrors_takes_milliseconds() {
    let registry = filled_registry(10, 50);
    let once = || {
        let start = processor_time();
        let text = encode(
            &Scrape::take(&registry, "1", 0.0, true),
            TextFormat::OpenMetrics,
        );
        assert!(text.len() > 100_000);
        processor_time() - start
    };
    // The best of several, and of processor time: other processes share this machine.
    let best = (0..10).map(|_| once()).min().unwrap();
    println!("scrape: {best:?}");
    let bound = Duration::from_millis(if cfg!(debug_assertions) { 50 } else { 10 });
    assert!(best < bound, "{best:?}");
}

#[test]
fn readers_see_a_ledger_that_balances_while_a_core_writes() {
    let registry = Arc::new(Registry::new(vec![0]));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (registry, stop) = (Arc::clone(&registry), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mirror = registry.mirror(0, "a", "b", Protocol::Redis);
            let mut rng = fastrand::Rng::with_seed(3);
            while !stop.load(Ordering::Relaxed) {
                match rng.u8(0..6) {
                    0 => mirror.ledger.exclude(),
                    1 => mirror.ledger.leave_unexposed(),
                    n => {
                        mirror.ledger.offer();
                        mirror.latency.record(rng.u64(1_000..1_000_000));
                        mirror.ledger.settle(match n {
                            2 => Fate::Dropped(DropReason::QueueFull),
                            3 => Fate::Errored,
                            _ => Fate::Delivered,
                        });
                    }
                }
            }
            mirror.ledger.snapshot()
        })
    };
    // A reader that shares its processor with the writer and many others sees a new state once per time slice.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = BTreeMap::new();
    let mut moves = 0;
    while moves < 500 {
        assert!(Instant::now() < deadline, "only {moves} different readings");
        let Some(total) = registry.mirrors().pop() else {
            continue;
        };
        let ledger = total.ledger;
        assert!(ledger.balances(), "{ledger:?}");
        let now = BTreeMap::from([
            ("observed", ledger.observed),
            ("offered", ledger.offered),
            ("delivered", ledger.delivered),
        ]);
        for (name, value) in &now {
            assert!(
                last.get(name).is_none_or(|before| before <= value),
                "{name} went back"
            );
        }
        moves += u64::from(now != last);
        last = now;
    }
    stop.store(true, Ordering::Relaxed);
    let truth = writer.join().unwrap();
    assert_eq!(registry.mirrors()[0].ledger, truth);
    assert_eq!(truth.in_flight(), 0);
}

/// Runs a program over `text`; says loudly that nothing was checked where it is missing.
fn checked(program: &str, args: &[&str], text: &str) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            return eprintln!("\n*** SKIPPED: {program}: {error}: run tests/setup ***\n");
        }
    };
    let mut input = child.stdin.take().unwrap();
    let text = text.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("No module named 'prometheus_client'") {
        return eprintln!("\n*** SKIPPED: no prometheus-client: run tests/setup ***\n");
    }
    assert!(
        output.status.success(),
        "{}{said}",
        String::from_utf8_lossy(&output.stdout)
    );
    writer.join().unwrap().unwrap();
}

#[test]
fn the_parsers_of_others_accept_both_texts() {
    let registry = with_an_odd_name(2, 3);
    let scrape = Scrape::take(&registry, "1.2.3", 1.5, true);
    let both = [TABLE, COMPAT_TABLE];
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python");
    for (format, parser) in [
        (
            TextFormat::OpenMetrics,
            "prometheus_client.openmetrics.parser",
        ),
        (TextFormat::Prometheus, "prometheus_client.parser"),
    ] {
        let text = encode_tables(&scrape, format, &both);
        let script = format!(
            "import sys\nfrom {parser} import text_string_to_metric_families as parse\n\
             families = list(parse(sys.stdin.read()))\n\
             assert len(families) == {}, len(families)",
            both.iter().map(|table| table.len()).sum::<usize>()
        );
        checked(python, &["-c", &script], &text);
    }
    let text = encode(&scrape, TextFormat::Prometheus);
    checked("promtool", &["check", "metrics"], &text);
}
