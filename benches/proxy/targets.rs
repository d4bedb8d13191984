//! The numbers to reach, and whether a run reached them.
//!
//! Every one is a ratio within one repeat (or a plain bound for memory and idle CPU), so that machines can be compared.
//! A target is missed when the median is beyond it by more than the interquartile range of the repeats.

use serde::Serialize;

use crate::measure::Spread;
use crate::run::{Row, Sample};

/// What is held against the bound.
#[derive(Clone, Copy, Debug)]
enum Metric {
    /// CPU per request against another contender; at most.
    Cpu(&'static str),
    /// Throughput against another contender; at least.
    Throughput(&'static str),
    /// 99 % latency against another contender; at most.
    P99(&'static str),
    /// (median − direct) / (HAProxy − direct); at most.
    AddedLatency,
    /// Writes that the candidate does not have; at most.
    Lost,
    /// Bytes per idle client; at most.
    IdleBytes,
    /// Percent of a core without traffic; at most.
    IdleCpu,
}

struct Target {
    scenario: &'static str,
    contender: &'static str,
    metric: Metric,
    bound: f64,
}

const fn target(
    scenario: &'static str,
    contender: &'static str,
    metric: Metric,
    bound: f64,
) -> Target {
    Target {
        scenario,
        contender,
        metric,
        bound,
    }
}

const OFF: &str = "parhelion";
const ON: &str = "parhelion-mirror";
const CPU: Metric = Metric::Cpu("haproxy");

/// What it costs to count: against the build that does not.
const COUNTED: Metric = Metric::Cpu("uncounted");
const COUNTED_MIRROR: Metric = Metric::Cpu("uncounted-mirror");

const TARGETS: [Target; 53] = [
    target("redis-50", OFF, CPU, 0.70),
    target("redis-50", ON, CPU, 0.80),
    target("redis-50-p16", OFF, CPU, 0.80),
    target("redis-50-p16", ON, CPU, 0.95),
    target("redis-500", OFF, CPU, 0.55),
    target("redis-500", ON, CPU, 0.55),
    target("redis-500", ON, Metric::Throughput("direct"), 1.10),
    target("redis-50", "parhelion-dual", CPU, 1.2),
    target("pg-8-simple", OFF, CPU, 0.95),
    target("pg-8-prepared", OFF, CPU, 0.95),
    target("pg-64-simple", OFF, CPU, 0.90),
    target("pg-64-prepared", OFF, CPU, 0.90),
    target("pg-8-simple", ON, CPU, 1.45),
    target("pg-8-prepared", ON, CPU, 1.45),
    target("pg-64-simple", ON, CPU, 1.35),
    target("pg-64-prepared", ON, CPU, 1.35),
    target("pg-8-simple", ON, Metric::Throughput("direct"), 0.55),
    target("pg-8-prepared", ON, Metric::Throughput("direct"), 0.55),
    target("pg-64-simple", ON, Metric::Throughput("direct"), 0.55),
    target("pg-64-prepared", ON, Metric::Throughput("direct"), 0.55),
    target("pg-8-update", ON, Metric::Lost, 0.0),
    target("redis-1", OFF, Metric::AddedLatency, 1.0),
    target("pg-1", OFF, Metric::AddedLatency, 1.0),
    target("redis-50", "parhelion-stopped", Metric::P99(OFF), 1.05),
    target("redis-50", "parhelion-slow", Metric::P99(OFF), 1.05),
    target("redis-50", "parhelion-refused", Metric::P99(OFF), 1.05),
    target("redis-open", "parhelion-stopped", Metric::P99(OFF), 1.05),
    target("redis-open", "parhelion-slow", Metric::P99(OFF), 1.05),
    target("redis-open", "parhelion-refused", Metric::P99(OFF), 1.05),
    target("pg-8-simple", "parhelion-stopped", Metric::P99(OFF), 1.05),
    target("pg-8-simple", "parhelion-slow", Metric::P99(OFF), 1.05),
    target("pg-8-simple", "parhelion-refused", Metric::P99(OFF), 1.05),
    target("pg-open", "parhelion-stopped", Metric::P99(OFF), 1.05),
    target("pg-open", "parhelion-slow", Metric::P99(OFF), 1.05),
    target("pg-open", "parhelion-refused", Metric::P99(OFF), 1.05),
    target(
        "redis-50",
        "parhelion-stopped",
        Metric::Throughput(OFF),
        0.95,
    ),
    target("redis-50", "parhelion-slow", Metric::Throughput(OFF), 0.95),
    target(
        "redis-50",
        "parhelion-refused",
        Metric::Throughput(OFF),
        0.95,
    ),
    target(
        "pg-8-simple",
        "parhelion-stopped",
        Metric::Throughput(OFF),
        0.95,
    ),
    target(
        "pg-8-simple",
        "parhelion-slow",
        Metric::Throughput(OFF),
        0.95,
    ),
    target(
        "pg-8-simple",
        "parhelion-refused",
        Metric::Throughput(OFF),
        0.95,
    ),
    target(
        "pg-64-prepared",
        "parhelion-2cores",
        Metric::Throughput(OFF),
        1.8,
    ),
    target("redis-idle", OFF, Metric::IdleBytes, 8192.0),
    target("redis-idle", ON, Metric::IdleBytes, 8192.0),
    target("redis-idle", OFF, Metric::IdleCpu, 1.0),
    target("redis-50", OFF, COUNTED, 1.02),
    target("redis-50", ON, COUNTED_MIRROR, 1.02),
    target("redis-50-p16", OFF, COUNTED, 1.02),
    target("redis-50-p16", ON, COUNTED_MIRROR, 1.02),
    target("pg-8-simple", OFF, COUNTED, 1.02),
    target("pg-8-simple", ON, COUNTED_MIRROR, 1.02),
    target("pg-8-prepared", OFF, COUNTED, 1.02),
    target("pg-8-prepared", ON, COUNTED_MIRROR, 1.02),
];

/// How a target was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The median is within the bound.
    Met,
    /// The median is beyond it, by less than the spread.
    WithinSpread,
    /// Beyond it by more than the spread.
    Missed,
    /// Its scenario or one of its contenders did not run.
    NotMeasured,
}

/// A target and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What was asked.
    pub name: String,
    /// The bound.
    pub bound: f64,
    /// What was measured.
    pub measured: Option<Spread>,
    /// How it ended.
    pub verdict: Verdict,
}

/// Holds all targets against the rows.
pub fn check(rows: &[Row]) -> Vec<Outcome> {
    TARGETS.iter().map(|target| target.judge(rows)).collect()
}

impl Target {
    fn judge(&self, rows: &[Row]) -> Outcome {
        let (what, at_least) = match self.metric {
            Metric::Cpu(base) => (format!("CPU per request / {base}"), false),
            Metric::Throughput(base) => (format!("throughput / {base}"), true),
            Metric::P99(base) => (format!("p99 / {base}"), false),
            Metric::AddedLatency => ("added median latency / haproxy's".into(), false),
            Metric::Lost => ("writes lost".into(), false),
            Metric::IdleBytes => ("bytes per idle client".into(), false),
            Metric::IdleCpu => ("idle CPU, % of a core".into(), false),
        };
        let measured = self.measure(rows).and_then(Spread::of);
        let verdict = match measured {
            None => Verdict::NotMeasured,
            Some(spread) => {
                let sign = if at_least { -1.0 } else { 1.0 };
                match sign * (spread.median - self.bound) {
                    beyond if beyond <= 0.0 => Verdict::Met,
                    beyond if beyond <= spread.width() => Verdict::WithinSpread,
                    _ => Verdict::Missed,
                }
            }
        };
        let side = if at_least { ">=" } else { "<=" };
        Outcome {
            name: format!(
                "{} {}: {what} {side} {}",
                self.scenario, self.contender, self.bound
            ),
            bound: self.bound,
            measured,
            verdict,
        }
    }

    fn measure(&self, rows: &[Row]) -> Option<Vec<f64>> {
        let row = find(rows, self.scenario, self.contender)?;
        let against = |base: &str, value: fn(&Sample) -> Option<f64>| {
            paired(row, find(rows, self.scenario, base)?, value)
        };
        match self.metric {
            Metric::Cpu(base) => against(base, Sample::cpu_us),
            Metric::Throughput(base) => against(base, |s| Some(s.throughput)),
            Metric::P99(base) => against(base, |s| Some(s.p99_us)),
            Metric::AddedLatency => {
                let direct = find(rows, self.scenario, "direct")?;
                let haproxy = find(rows, self.scenario, "haproxy")?;
                let p50 = |row: &Row, n: usize| row.samples.get(n).map(|s| s.p50_us);
                (0..row.samples.len())
                    .map(|n| {
                        let base = p50(direct, n)?;
                        Some((p50(row, n)? - base) / (p50(haproxy, n)? - base))
                    })
                    .collect()
            }
            Metric::Lost => row
                .samples
                .iter()
                .map(|s| s.lost.map(|n| n as f64))
                .collect(),
            Metric::IdleBytes => Some(row.idle.iter().map(|s| s.bytes_per_client).collect()),
            Metric::IdleCpu => Some(row.idle.iter().map(|s| s.idle_cpu_percent).collect()),
        }
    }
}

/// The row of a contender that did not fail.
pub fn find<'a>(rows: &'a [Row], scenario: &str, contender: &str) -> Option<&'a Row> {
    rows.iter()
        .find(|row| row.scenario == scenario && row.contender == contender && row.failure.is_none())
}

/// A value against the same repeat's value of another row.
pub fn paired(row: &Row, base: &Row, value: fn(&Sample) -> Option<f64>) -> Option<Vec<f64>> {
    let pairs = row.samples.iter().zip(&base.samples);
    pairs
        .map(|(one, other)| Some(value(one)? / value(other)?))
        .collect()
}
