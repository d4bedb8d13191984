//! The order of things: for each scenario, repeat after repeat, every contender in turn on fresh state.
//!
//! Interleaving keeps a slow minute of the machine from hitting one contender alone; the first contender changes with each
//! repeat. A contender that fails is left out of the rest of its scenario and fails the run.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::contenders::{self, Contender, Mirror, Place};
use crate::idle::{self, IdleSample};
use crate::load::{Amount, Seen};
use crate::measure::{Cpu, rss_kib};
use crate::own_load;
use crate::scenarios::{Load, Scenario};
use crate::servers::{Protocol, Servers, Work, psql};

/// Requests of the first warm-up, before a contender's speed is known.
const FIRST_REQUESTS: u64 = 20_000;
/// Warm-up as a share of the measured run.
const WARM_UP: f64 = 0.15;
/// The open loops ask for this share of what direct connections manage.
const OPEN_SHARE: f64 = 0.4;

/// How the whole bench runs.
pub struct Plan {
    /// Scenarios.
    pub scenarios: Vec<Scenario>,
    /// Patterns for contenders.
    pub contenders: Vec<String>,
    /// Interleaved repeats.
    pub repeats: usize,
    /// Seconds of a measured run.
    pub seconds: f64,
    /// Requests of a measured run instead.
    pub requests: Option<u64>,
    /// Rate of the open loops; worked out when not given.
    pub rate: Option<f64>,
    /// Connections of the idle bench.
    pub idle_clients: usize,
    /// pgbench's scale.
    pub scale: u32,
    /// CPUs of servers and loads.
    pub load_cpus: String,
    /// Candidates get only CPU time that nobody else wants.
    pub candidates_yield: bool,
}

/// One measured run of one contender.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Requests or transactions that were answered.
    pub requests: u64,
    /// Per second.
    pub throughput: f64,
    /// Median latency.
    pub p50_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %, where the load says it.
    pub p999_us: Option<f64>,
    /// CPU of the proxy per request in user mode.
    pub cpu_user_us: Option<f64>,
    /// CPU of the proxy per request in the kernel.
    pub cpu_system_us: Option<f64>,
    /// Resident memory of the proxy after the load.
    pub rss_kib: Option<u64>,
    /// Share of the primary's work that reached the candidate.
    pub mirrored: Option<f64>,
    /// Writes of the primary that the candidate does not have.
    pub lost: Option<i64>,
}

impl Sample {
    /// CPU per request, user and kernel together.
    pub fn cpu_us(&self) -> Option<f64> {
        Some(self.cpu_user_us? + self.cpu_system_us?)
    }
}

/// All runs of one contender in one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The scenario.
    pub scenario: &'static str,
    /// The contender.
    pub contender: String,
    /// One per repeat.
    pub samples: Vec<Sample>,
    /// One per repeat of the idle bench.
    pub idle: Vec<IdleSample>,
    /// Why it is not here: not installed.
    pub missing: Option<String>,
    /// What went wrong.
    pub failure: Option<String>,
}

/// Runs the plan; `progress` gets a line per run.
pub fn run(plan: &Plan, place: &Place, progress: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut servers: Option<(Protocol, Servers)> = None;
    for scenario in &plan.scenarios {
        let ready = match servers.take() {
            Some((protocol, ready)) if protocol == scenario.protocol => ready,
            other => {
                // The servers of the other protocol end first.
                drop(other);
                let fresh = Servers::start(scenario.protocol, &plan.load_cpus, plan.scale)?;
                if plan.candidates_yield {
                    fresh.candidates_yield()?;
                }
                fresh
            }
        };
        rows.extend(run_scenario(scenario, plan, place, &ready, progress)?);
        servers = Some((scenario.protocol, ready));
    }
    Ok(rows)
}

fn run_scenario(
    scenario: &Scenario,
    plan: &Plan,
    place: &Place,
    servers: &Servers,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Row>> {
    let mut runs: Vec<(Contender, Row, f64)> = contenders::all(scenario.protocol, place)
        .into_iter()
        .filter(|c| crate::scenarios::chosen(&plan.contenders, &c.name))
        .map(|contender| {
            let row = Row {
                scenario: scenario.name,
                contender: contender.name.clone(),
                samples: Vec::new(),
                idle: Vec::new(),
                missing: contender.missing(),
                failure: None,
            };
            (contender, row, 0.0)
        })
        .collect();
    let amount = Amount {
        seconds: plan.seconds,
        requests: plan.requests,
        rate: open_rate(scenario, plan, servers, place)?,
    };
    let count = runs.len();
    // Memory hardly varies, and each of these runs takes a dozen seconds.
    let most = if matches!(scenario.load, Load::Idle) {
        2
    } else {
        usize::MAX
    };
    for repeat in 0..plan.repeats.min(most) {
        for turn in 0..count {
            let (contender, row, expected) = &mut runs[(turn + repeat) % count];
            if row.missing.is_some() || row.failure.is_some() {
                continue;
            }
            let one = One {
                scenario,
                contender,
                servers,
                place,
                amount,
                plan,
            };
            let done = one.run(expected, row);
            match done.with_context(|| format!("{} in {}", contender.name, scenario.name)) {
                Ok(line) => progress(&format!("{repeat} {line}")),
                Err(error) => {
                    progress(&format!("FAILED: {error:#}"));
                    row.failure = Some(format!("{error:#}"));
                }
            }
        }
    }
    Ok(runs.into_iter().map(|(_, row, _)| row).collect())
}

/// The rate of an open loop, the same for all contenders: a share of what direct connections manage now.
fn open_rate(scenario: &Scenario, plan: &Plan, servers: &Servers, place: &Place) -> Result<f64> {
    if let Some(rate) = plan.rate {
        return Ok(rate);
    }
    let closed = match scenario.load {
        Load::RedisOpen { clients } => Load::RedisBenchmark {
            test: "get",
            clients,
            pipeline: 1,
        },
        Load::Pgbench {
            script,
            mode,
            clients,
            open: true,
        } => Load::Pgbench {
            script,
            mode,
            clients,
            open: false,
        },
        _ => return Ok(0.0),
    };
    let amount = Amount {
        seconds: 1.0,
        requests: None,
        rate: 0.0,
    };
    let seen = closed.run(
        servers.primary.port,
        amount,
        FIRST_REQUESTS as f64,
        &place.folder,
    )?;
    Ok((seen.throughput * OPEN_SHARE).round())
}

/// One run of one contender.
struct One<'a> {
    scenario: &'a Scenario,
    contender: &'a Contender,
    servers: &'a Servers,
    place: &'a Place,
    amount: Amount,
    plan: &'a Plan,
}

impl One<'_> {
    /// Starts, checks, warms up, measures, stops; adds to `row` and returns a line about it.
    fn run(&self, expected: &mut f64, row: &mut Row) -> Result<String> {
        let running = self
            .contender
            .start(self.scenario.protocol, self.servers, self.place)?;
        // Postgres counts what a session did when the session ends: there the warm-up belongs to what is compared.
        let compared = matches!(self.contender.mirror, Mirror::On | Mirror::DualWrite);
        let counts_late = self.scenario.protocol == Protocol::Postgres;
        let mut before = None;
        if compared && counts_late {
            before = Some(self.work()?);
        }
        self.probe(running.port)?;
        if matches!(self.scenario.load, Load::Idle) {
            let Some(pid) = running.pid() else {
                return Ok("direct: nothing to watch".into());
            };
            let sample = idle::run(running.port, pid, self.plan.idle_clients)?;
            let line = format!(
                "{:<14} {:<18} {:.0} bytes per client",
                self.scenario.name, self.contender.name, sample.bytes_per_client
            );
            row.idle.push(sample);
            return Ok(line);
        }
        *expected = self.warm_up(running.port, *expected)?;
        if compared && !counts_late {
            before = Some(self.work()?);
        }
        let cpu_before = running.pid().map(Cpu::of).transpose()?;
        let seen =
            self.scenario
                .load
                .run(running.port, self.amount, *expected, &self.place.folder)?;
        let cpu = match (running.pid(), cpu_before) {
            (Some(pid), Some(before)) => Some(Cpu::of(pid)?.since(before)),
            _ => None,
        };
        let rss_kib = running.pid().map(rss_kib).transpose()?;
        if compared {
            self.servers.candidate.settled_work()?;
        }
        drop(running);
        let after = if compared { Some(self.work()?) } else { None };
        let sample = sample(&seen, cpu, rss_kib, self.mirrored(before, after)?)?;
        let line = format!(
            "{:<14} {:<18} {:>9.0}/s  p50 {:>7.1} us  cpu {:>6.2} us",
            self.scenario.name,
            self.contender.name,
            sample.throughput,
            sample.p50_us,
            sample.cpu_us().unwrap_or(0.0)
        );
        row.samples.push(sample);
        Ok(line)
    }

    /// Serves bytes unchanged before anything is timed.
    fn probe(&self, port: u16) -> Result<()> {
        match self.scenario.protocol {
            Protocol::Redis => own_load::probe(port).context("probe"),
            Protocol::Postgres => {
                let query = "select sum(length(repeat('x', g))) from generate_series(1, 2000) g";
                match psql(port, query).context("probe")?.as_str() {
                    "2001000" => Ok(()),
                    other => bail!("the probe's answer is {other}"),
                }
            }
        }
    }

    /// A short run; returns the throughput to expect.
    fn warm_up(&self, port: u16, expected: f64) -> Result<f64> {
        let first = expected == 0.0;
        let mut amount = self.amount;
        amount.seconds = (self.amount.seconds * WARM_UP).max(0.1);
        amount.requests = None;
        let guess = if first {
            FIRST_REQUESTS as f64 / amount.seconds
        } else {
            expected
        };
        let seen = self
            .scenario
            .load
            .run(port, amount, guess, &self.place.folder)?;
        std::thread::sleep(Duration::from_millis(50));
        Ok(if first { seen.throughput } else { expected })
    }

    fn work(&self) -> Result<[Work; 2]> {
        Ok([self.servers.primary.work()?, self.servers.candidate.work()?])
    }

    /// Share of the work that the candidate got too, and writes that it has not.
    fn mirrored(
        &self,
        before: Option<[Work; 2]>,
        after: Option<[Work; 2]>,
    ) -> Result<(Option<f64>, Option<i64>)> {
        let (Some(before), Some(after)) = (before, after) else {
            return Ok((None, None));
        };
        let grown = |value: fn(&Work) -> i64| -> [i64; 2] {
            [0, 1].map(|server: usize| value(&after[server]) - value(&before[server]))
        };
        let ratio = |[primary, candidate]: [i64; 2]| {
            (primary > 0).then(|| candidate as f64 / primary as f64)
        };
        let count = grown(|work| work.count);
        if let Load::Pgbench { script, .. } = self.scenario.load {
            if script == "-S" {
                return Ok((ratio(grown(|work| work.commits)), None));
            }
            let sums = grown(|work| work.sum);
            if count[0] == count[1] && sums[0] != sums[1] {
                bail!("as many transactions on the candidate, but others: {sums:?}");
            }
        }
        Ok((ratio(count), Some(count[0] - count[1])))
    }
}

fn sample(
    seen: &Seen,
    cpu: Option<Cpu>,
    rss_kib: Option<u64>,
    (mirrored, lost): (Option<f64>, Option<i64>),
) -> Result<Sample> {
    if seen.errors > 0 || seen.requests == 0 {
        bail!("{} of {} requests failed", seen.errors, seen.requests);
    }
    let per_request = |seconds: f64| seconds * 1e6 / seen.requests as f64;
    let sample = Sample {
        requests: seen.requests,
        throughput: seen.throughput,
        p50_us: seen.p50_us,
        p99_us: seen.p99_us,
        p999_us: seen.p999_us,
        cpu_user_us: cpu.map(|cpu| per_request(cpu.user_s)),
        cpu_system_us: cpu.map(|cpu| per_request(cpu.system_s)),
        rss_kib,
        mirrored,
        lost,
    };
    if !sample.cpu_us().is_none_or(f64::is_finite) || !sample.throughput.is_finite() {
        bail!("numbers that are none: {sample:?}");
    }
    Ok(sample)
}
