//! Tables for people, JSON for machines.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::measure::Spread;
use crate::process::{find_program, output};
use crate::run::{Plan, Row, Sample};
use crate::scaling;
use crate::servers::postgres_folders;
use crate::targets::{Outcome, Verdict, find, paired};

/// The median and spread of one value over the repeats.
pub fn spread(row: &Row, value: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
    Spread::of(
        row.samples
            .iter()
            .map(value)
            .collect::<Option<Vec<f64>>>()?,
    )
}

fn ratio(rows: &[Row], row: &Row, base: &str, value: fn(&Sample) -> Option<f64>) -> Option<Spread> {
    Spread::of(paired(row, find(rows, row.scenario, base)?, value)?)
}

fn cell(value: Option<Spread>, decimals: usize) -> String {
    value.map_or("–".to_owned(), |s| format!("{:.decimals$}", s.median))
}

/// The tables of all scenarios.
pub fn table(rows: &[Row], plan: &Plan) -> String {
    let mut out = String::new();
    for scenario in &plan.scenarios {
        let own: Vec<&Row> = rows
            .iter()
            .filter(|r| r.scenario == scenario.name)
            .collect();
        let _ = writeln!(
            out,
            "\n{}  (medians of {}; ± is half the interquartile range in %; ratios are medians of the repeats' own)",
            scenario.name, plan.repeats
        );
        if own.iter().any(|row| !row.idle.is_empty()) {
            idle_table(&mut out, &own);
        } else {
            load_table(&mut out, rows, &own);
        }
        for row in own {
            if let Some(why) = row.failure.as_ref().or(row.missing.as_ref()) {
                let _ = writeln!(out, "{:<18} {why}", row.contender);
            }
        }
    }
    out
}

fn load_table(out: &mut String, rows: &[Row], own: &[&Row]) {
    let _ = writeln!(
        out,
        "{:<18} {:>9} {:>5} {:>8} {:>8} {:>8} | {:>7} {:>5} {:>6} {:>6} | {:>8} {:>6} {:>7} | {:>7} {:>8} {:>7}",
        "",
        "per s",
        "± %",
        "p50 us",
        "p99 us",
        "p99.9",
        "cpu us",
        "± %",
        "user",
        "system",
        "/haproxy",
        "/floor",
        "tput/dir",
        "RSS MiB",
        "mirrored",
        "lost"
    );
    for row in own.iter().filter(|row| !row.samples.is_empty()) {
        let throughput = spread(row, |s| Some(s.throughput));
        let cpu = spread(row, Sample::cpu_us);
        let percent = |s: Option<Spread>| s.map_or("–".into(), |s| format!("{:.1}", s.percent()));
        let _ = writeln!(
            out,
            "{:<18} {:>9} {:>5} {:>8} {:>8} {:>8} | {:>7} {:>5} {:>6} {:>6} | {:>8} {:>6} {:>8} | {:>7} {:>8} {:>7}",
            row.contender,
            cell(throughput, 0),
            percent(throughput),
            cell(spread(row, |s| Some(s.p50_us)), 1),
            cell(spread(row, |s| Some(s.p99_us)), 1),
            cell(spread(row, |s| s.p999_us), 1),
            cell(cpu, 2),
            percent(cpu),
            cell(spread(row, |s| s.cpu_user_us), 2),
            cell(spread(row, |s| s.cpu_system_us), 2),
            cell(ratio(rows, row, "haproxy", Sample::cpu_us), 2),
            cell(ratio(rows, row, "floor", Sample::cpu_us), 2),
            cell(ratio(rows, row, "direct", |s| Some(s.throughput)), 2),
            cell(spread(row, |s| s.rss_kib.map(|kib| kib as f64 / 1024.0)), 1),
            cell(spread(row, |s| s.mirrored), 3),
            cell(spread(row, |s| s.lost.map(|n| n as f64)), 0),
        );
    }
}

fn idle_table(out: &mut String, own: &[&Row]) {
    let _ = writeln!(
        out,
        "{:<18} {:>8} {:>12} {:>10} {:>12} {:>26} {:>24}",
        "",
        "clients",
        "bytes/client",
        "idle cpu %",
        "with clients",
        "RSS KiB before/with/after",
        "fds before/with/after"
    );
    for row in own.iter() {
        // Memory depends little on the moment: the last repeat stands for all.
        let Some(last) = row.idle.last() else {
            continue;
        };
        let of = |value: fn(&crate::idle::IdleSample) -> f64| {
            Spread::of(row.idle.iter().map(value).collect())
        };
        let [r0, r1, r2] = last.rss_kib;
        let [d0, d1, d2] = last.descriptors;
        let _ = writeln!(
            out,
            "{:<18} {:>8} {:>12} {:>10} {:>12} {:>26} {:>24}",
            row.contender,
            last.clients,
            cell(of(|s| s.bytes_per_client), 0),
            cell(of(|s| s.idle_cpu_percent), 2),
            cell(of(|s| s.idle_cpu_with_clients_percent), 2),
            format!("{r0}/{r1}/{r2}"),
            format!("{d0}/{d1}/{d2}"),
        );
    }
}

/// The list of targets.
pub fn targets(outcomes: &[Outcome]) -> String {
    let mut out = String::from("\nNumbers to reach\n");
    for outcome in outcomes {
        let verdict = match outcome.verdict {
            Verdict::Met => "met",
            Verdict::WithinSpread => "within spread",
            Verdict::Missed => "MISSED",
            Verdict::NotMeasured => continue,
        };
        let measured = outcome.measured.map_or(String::new(), |s| {
            format!("{:.2} ({:.2}..{:.2})", s.median, s.q1, s.q3)
        });
        let _ = writeln!(out, "{verdict:<14} {:<70} {measured}", outcome.name);
    }
    let absent = outcomes
        .iter()
        .filter(|o| o.verdict == Verdict::NotMeasured)
        .count();
    let _ = writeln!(
        out,
        "{absent} of {} not measured in this run",
        outcomes.len()
    );
    out
}

/// Everything that was measured, each repeat by itself.
pub fn write_json(file: &Path, rows: &[Row], outcomes: &[Outcome], plan: &Plan) -> Result<()> {
    let mut document = machine();
    document["repeats"] = json!(plan.repeats);
    document["seconds"] = json!(plan.seconds);
    document["requests"] = json!(plan.requests);
    document["rows"] = json!(rows);
    document["targets"] = json!(outcomes);
    write(file, &document)
}

/// The same of `--scaling`.
pub fn write_scaling(file: &Path, points: &[scaling::Point], plan: &scaling::Plan) -> Result<()> {
    let mut document = machine();
    document["repeats"] = json!(plan.repeats);
    document["seconds"] = json!(plan.seconds);
    document["points"] = json!(points);
    write(file, &document)
}

/// Where and with what it was measured.
fn machine() -> Value {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let version = |program: &str, word: &str| {
        let path = find_program(program, &postgres_folders())?;
        let text = output(Command::new(path).arg(word)).ok()?;
        text.lines().next().map(|line| line.trim().to_owned())
    };
    json!({
        "parhelion": env!("CARGO_PKG_VERSION"),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu": model.map(|(_, name)| name),
        "cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "versions": {
            "redis": version("redis-server", "--version"),
            "postgres": version("postgres", "--version"),
            "haproxy": version("haproxy", "-v"),
            "pgbouncer": version("pgbouncer", "--version"),
            "envoy": version("envoy", "--version"),
        },
    })
}

fn write(file: &Path, document: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(document)?;
    std::fs::write(file, text).with_context(|| file.display().to_string())
}
