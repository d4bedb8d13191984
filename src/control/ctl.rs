//! `parhelion ctl`: the operator's client of the control port.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use clap::ValueEnum as _;
use serde_json::{Value, json};
use ureq::Agent;

use super::listing::{self, Column, ColumnType};
use super::queries::QuerySort;
use super::report::{Report, render};
use super::table::{Table, bytes, count, duration, nanos, printable, share};

use crate::limits::CTL_ANSWER_BYTES_MAX;

/// A reload or drain waits for the cores; longer than `drain_timeout` should be.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// How `ctl` names itself, so that the log tells it from other HTTP clients.
pub(super) const CTL_AGENT: &str = concat!("parhelion-ctl/", env!("CARGO_PKG_VERSION"));

/// What to do.
#[derive(Clone, Debug, PartialEq, clap::Subcommand)]
pub enum CtlCommand {
    /// The process, its cores and the sums
    Status,
    /// Every mirror: ledger, latency, divergences, verdict
    Mirrors,
    /// The source databases: clients, requests, errors, latency
    Databases,
    /// The open client connections
    Clients,
    /// The connections to primaries and mirrors
    Servers,
    /// The config in force, without secrets
    Config,
    /// Examples of divergences, newest first
    Divergences {
        /// Only this kind, such as data_mismatch
        #[arg(long)]
        kind: Option<String>,
        /// Only this command or statement
        #[arg(long)]
        command: Option<String>,
        /// Only this mirror
        #[arg(long)]
        mirror: Option<String>,
        /// Skip this many
        #[arg(long, default_value_t = 0)]
        offset: usize,
        /// Show this many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Latency by query on primary and mirror: Postgres by fingerprint, Redis by command
    Queries {
        /// Only this mirror
        #[arg(long)]
        mirror: Option<String>,
        /// What comes first: what got slower by most in all, what is slowest, or what is called most
        #[arg(long, value_enum, default_value_t = QuerySort::Regressed)]
        sort: QuerySort,
        /// Show this many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Set the share of units that a mirror is offered
    Exposure {
        /// The mirror, or '*' for every mirror
        name: String,
        /// From 0 to 1
        exposure: f64,
    },
    /// Set the length of a mirror's rings, in units per client
    Queue {
        /// The mirror, or '*' for every mirror
        name: String,
        /// At least 1
        units: u64,
    },
    /// Set the mode of a dual write
    Mode {
        /// The primary's database name
        name: String,
        /// primary-only, dual-write, dual-write-shadow, secondary-primary or secondary-only
        mode: String,
    },
    /// Stop a mirror; its units count as dropped
    Pause {
        /// The mirror
        name: String,
    },
    /// Start a paused mirror again
    Resume {
        /// The mirror
        name: String,
    },
    /// Replace a mirror's connections; what is on its way there is lost
    Reconnect {
        /// The mirror, or '*' for every mirror
        name: String,
    },
    /// Read the config files again
    Reload,
    /// Take no new clients and let the mirrors empty their queues
    Drain,
    /// Drain and end the process
    Shutdown,
    /// Rates, live
    Top {
        /// Seconds between two readings
        #[arg(long, default_value_t = 2.0)]
        interval: f64,
        /// Stop after so many; without it, never
        #[arg(long)]
        count: Option<u64>,
    },
}

/// Why `ctl` failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// Nobody answers there.
    #[error("cannot reach {url}: {source}; is parhelion running with this control address?")]
    Unreachable {
        /// The URL asked.
        url: String,
        /// What went wrong.
        source: Box<ureq::Error>,
    },
    /// The process refused.
    #[error("{message} ({code}, HTTP {status})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The API's stable word.
        code: String,
        /// Its sentence.
        message: String,
    },
    /// What came back is not the API's.
    #[error("{url} does not answer like parhelion's control port")]
    NotOurs {
        /// The URL asked.
        url: String,
    },
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// Carries out one command against the control port at `url` and writes the answer to `out`, as a table or as JSON.
///
/// # Errors
/// If the port cannot be reached, refuses, or `out` fails.
pub fn run(
    args: CtlCommand,
    url: &str,
    token: Option<String>,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let client = Client::new(url, token);
    let (answer, show): (Value, Show) = match args {
        CtlCommand::Top { interval, count } => return top(&client, interval, count, json, out),
        CtlCommand::Status => (client.get("/api/status")?, show_status),
        CtlCommand::Mirrors => (client.get("/api/mirrors")?, show_mirrors),
        CtlCommand::Divergences {
            kind,
            command,
            mirror,
            offset,
            limit,
        } => {
            let mut path = format!("/api/divergences?offset={offset}&limit={limit}");
            for (name, value) in [("kind", kind), ("command", command), ("mirror", mirror)] {
                if let Some(value) = value {
                    path += &format!("&{name}={}", percent(&value));
                }
            }
            (client.get(&path)?, show_divergences)
        }
        CtlCommand::Queries {
            mirror,
            sort,
            limit,
        } => {
            let word = sort.to_possible_value();
            let word = word.as_ref().map_or("", |value| value.get_name());
            let mut path = format!("/api/queries?sort={word}&limit={limit}");
            if let Some(mirror) = mirror {
                path += &format!("&mirror={}", percent(&mirror));
            }
            (client.get(&path)?, show_queries)
        }
        CtlCommand::Exposure { name, exposure } => {
            let path = format!("/api/mirrors/{}/exposure", percent(&name));
            (
                client.post(&path, json!({"exposure": exposure}))?,
                show_done,
            )
        }
        CtlCommand::Queue { name, units } => {
            let path = format!("/api/mirrors/{}/queue", percent(&name));
            (client.post(&path, json!({"units": units}))?, show_done)
        }
        CtlCommand::Mode { name, mode } => {
            let path = format!("/api/dual_write/{}/mode", percent(&name));
            (client.post(&path, json!({"mode": mode}))?, show_done)
        }
        CtlCommand::Pause { name } => {
            let path = format!("/api/mirrors/{}/pause", percent(&name));
            (client.post(&path, json!({}))?, show_done)
        }
        CtlCommand::Resume { name } => {
            let path = format!("/api/mirrors/{}/resume", percent(&name));
            (client.post(&path, json!({}))?, show_done)
        }
        CtlCommand::Reconnect { name } => {
            let path = format!("/api/mirrors/{}/reconnect", percent(&name));
            (client.post(&path, json!({}))?, show_done)
        }
        CtlCommand::Reload => (client.post("/api/reload", json!({}))?, show_done),
        CtlCommand::Drain => (client.post("/api/drain", json!({}))?, show_done),
        CtlCommand::Shutdown => (client.post("/api/shutdown", json!({}))?, show_done),
        CtlCommand::Databases => (client.get("/api/databases")?, show_databases),
        CtlCommand::Clients => (client.get("/api/clients")?, show_clients),
        CtlCommand::Servers => (client.get("/api/servers")?, show_servers),
        CtlCommand::Config => (client.get("/api/config")?, show_config),
    };
    if json {
        writeln!(out, "{answer:#}")?;
    } else {
        show(&answer, out)?;
    }
    Ok(())
}

/// Fetches the report of a running process.
///
/// # Errors
/// If the port cannot be reached or refuses.
pub fn fetch_report(url: &str, token: Option<String>) -> Result<Report, CtlError> {
    let json = Client::new(url, token).get("/api/report")?;
    Ok(Report {
        html: render(&json),
        json,
    })
}

/// Writes an answer for people.
type Show = fn(&Value, &mut dyn Write) -> io::Result<()>;

struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

impl Client {
    fn new(url: &str, token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(REQUEST_TIMEOUT))
            // The API says in the body why it refuses.
            .http_status_as_error(false)
            // A proxy of the environment would see the token, and the API refuses its Host.
            .proxy(None)
            .user_agent(CTL_AGENT)
            .build();
        let base = url.trim_end_matches('/');
        let scheme = if base.contains("://") { "" } else { "http://" };
        Self {
            agent: config.into(),
            base: format!("{scheme}{base}"),
            token,
        }
    }

    fn get(&self, path: &str) -> Result<Value, CtlError> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.get(&url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        answer(&url, request.call())
    }

    fn post(&self, path: &str, body: Value) -> Result<Value, CtlError> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.post(&url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        answer(&url, request.send_json(body))
    }
}

fn answer(
    url: &str,
    result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Value, CtlError> {
    let mut response = result.map_err(|source| CtlError::Unreachable {
        url: url.to_owned(),
        source: Box::new(source),
    })?;
    let status = response.status().as_u16();
    let body = response
        .body_mut()
        .with_config()
        .limit(CTL_ANSWER_BYTES_MAX);
    let value: Value = body.read_json().map_err(|_| CtlError::NotOurs {
        url: url.to_owned(),
    })?;
    if status == 200 {
        return Ok(value);
    }
    let text = |key: &str| value["error"][key].as_str().unwrap_or("?").to_owned();
    Err(CtlError::Refused {
        status,
        code: text("code"),
        message: text("message"),
    })
}

/// Everything but letters, digits and `-._~` as %XX (RFC 3986, section 2).
fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

fn n(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn s(value: &Value) -> String {
    value.as_str().unwrap_or("").to_owned()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn show_status(status: &Value, out: &mut dyn Write) -> io::Result<()> {
    let totals = &status["totals"];
    let ledger = &totals["ledger"];
    let state = match (status["draining"] == true, status["ready"] == true) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let uptime = duration(status["uptime_seconds"].as_f64().unwrap_or(0.0));
    writeln!(
        out,
        "parhelion {} · {state} · up {uptime}",
        s(&status["version"])
    )?;
    writeln!(
        out,
        "clients {} · requests {} · primary errors {} · divergences {}",
        count(n(&totals["clients"])),
        count(n(&totals["requests"])),
        count(n(&totals["primary_errors"])),
        count(n(&totals["divergences"])),
    )?;
    writeln!(
        out,
        "mirrored: offered {} · delivered {} · dropped {} · errored {} · in flight {}",
        count(n(&ledger["offered"])),
        count(n(&ledger["delivered"])),
        count(n(&ledger["dropped_total"])),
        count(n(&ledger["errored"])),
        count(n(&ledger["in_flight"])),
    )?;
    writeln!(
        out,
        "memory {} · mirror rings {} of {} · files {} of {}\n",
        bytes(n(&status["process"]["resident_bytes"])),
        bytes(n(&totals["mirror_memory_used"])),
        bytes(n(&totals["mirror_memory_capacity"])),
        count(n(&status["process"]["open_fds"])),
        count(n(&status["process"]["max_fds"])),
    )?;
    let mut table = Table::new(&["core", "busy", "clients", "bytes in", "bytes out", "slabs"]);
    for core in items(&status["cores"]) {
        let sum = |key: &str| -> u64 {
            let listeners = core["listeners"].as_object();
            listeners.map_or(0, |l| l.values().map(|l| n(&l[key])).sum())
        };
        let busy = n(&core["busy_ns"]);
        table.row(vec![
            n(&core["core"]).to_string(),
            share(busy, busy + n(&core["idle_ns"])),
            count(sum("active")),
            bytes(sum("client_bytes_in")),
            bytes(sum("client_bytes_out")),
            format!(
                "{} of {}",
                n(&core["slabs"]["used"]),
                n(&core["slabs"]["capacity"])
            ),
        ]);
    }
    table.write(out)
}

fn show_mirrors(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    let mirrors = items(&answer["mirrors"]);
    if mirrors.is_empty() {
        return writeln!(out, "no mirrors");
    }
    let mut table = Table::new(&[
        "mirror",
        "source",
        "exposure",
        "offered",
        "delivered",
        "dropped",
        "errored",
        "in flight",
        "queued",
        "p50",
        "p99",
        "primary p99",
        "diverged",
        "verdict",
    ]);
    for mirror in mirrors {
        let ledger = &mirror["ledger"];
        let exposure = mirror["exposure"].as_f64().unwrap_or(0.0) * 100.0;
        let paused = if mirror["paused"] == true {
            " paused"
        } else {
            ""
        };
        table.row(vec![
            s(&mirror["name"]),
            s(&mirror["source"]),
            format!("{exposure:.1} %{paused}"),
            count(n(&ledger["offered"])),
            count(n(&ledger["delivered"])),
            count(n(&ledger["dropped_total"])),
            count(n(&ledger["errored"])),
            count(n(&ledger["in_flight"])),
            count(n(&mirror["queue"]["units"])),
            nanos(n(&mirror["latency"]["mirror"]["p50_ns"])),
            nanos(n(&mirror["latency"]["mirror"]["p99_ns"])),
            nanos(n(&mirror["latency"]["primary"]["p99_ns"])),
            count(n(&mirror["divergences_total"])),
            s(&mirror["verdict"]),
        ]);
    }
    table.write(out)
}

fn show_divergences(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    let found = items(&answer["items"]);
    if found.is_empty() {
        return writeln!(out, "no divergences");
    }
    for item in found {
        let mirror = format!("{} → {}", s(&item["source"]), s(&item["destination"]));
        let what = format!("{} {}", s(&item["command"]), s(&item["key"]));
        writeln!(
            out,
            "{}  {}  {}",
            s(&item["kind"]),
            printable(&mirror),
            printable(&what)
        )?;
        writeln!(out, "    primary  {}", printable(&s(&item["primary"])))?;
        writeln!(out, "    mirror   {}", printable(&s(&item["mirror"])))?;
    }
    let first = n(&answer["offset"]);
    let last = first + found.len() as u64;
    writeln!(
        out,
        "{} to {last} of {} kept",
        first + 1,
        n(&answer["total"])
    )
}

fn show_listing(
    columns: &[Column],
    items: &Value,
    none: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let rows = listing::rows(columns, self::items(items));
    if rows.is_empty() {
        return writeln!(out, "{none}");
    }
    let header: Vec<&str> = columns.iter().map(|column| column.name).collect();
    let mut table = Table::new(&header);
    for row in rows {
        let cell = |(column, value): (&Column, &Value)| match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            value if column.name.ends_with("_ns") => nanos(n(value)),
            Value::Number(_) if column.kind == ColumnType::Integer => count(n(value)),
            other => other.to_string(),
        };
        table.row(columns.iter().zip(&row).map(cell).collect());
    }
    table.write(out)
}

fn show_queries(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    show_listing(listing::QUERIES, &answer["queries"], "no queries", out)
}

fn show_databases(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    show_listing(
        listing::DATABASES,
        &answer["databases"],
        "no databases",
        out,
    )
}

fn show_clients(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    show_listing(listing::CLIENTS, &answer["clients"], "no clients", out)
}

fn show_servers(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    show_listing(listing::SERVERS, &answer["servers"], "no servers", out)
}

fn show_config(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    for line in listing::flatten(answer) {
        let (key, value) = (s(&line[0]), s(&line[1]));
        writeln!(out, "{} = {}", printable(&key), printable(&value))?;
    }
    Ok(())
}

fn show_done(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    match answer.as_object() {
        Some(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                let value = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                writeln!(out, "{}: {}", printable(key), printable(&value))?;
            }
            Ok(())
        }
        _ => writeln!(out, "done"),
    }
}

fn top(
    client: &Client,
    interval: f64,
    times: Option<u64>,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    // Not faster than a person reads, not slower than an hour; what is not a number is the default.
    let seconds = if interval.is_finite() {
        interval.clamp(0.1, 3_600.0)
    } else {
        2.0
    };
    let mut before = Reading::take(client)?;
    let mut shown = 0;
    while times.is_none_or(|times| shown < times) {
        thread::sleep(Duration::from_secs_f64(seconds));
        let now = Reading::take(client)?;
        let elapsed = now.uptime - before.uptime;
        if json {
            writeln!(out, "{}", now.rates_json(&before, elapsed))?;
        } else {
            now.show(&before, elapsed, out)?;
        }
        out.flush()?;
        before = now;
        shown += 1;
    }
    Ok(())
}

struct Reading {
    uptime: f64,
    status: Value,
    mirrors: Value,
}

impl Reading {
    fn take(client: &Client) -> Result<Self, CtlError> {
        let status = client.get("/api/status")?;
        Ok(Self {
            uptime: status["uptime_seconds"].as_f64().unwrap_or(0.0),
            mirrors: client.get("/api/mirrors")?,
            status,
        })
    }

    fn before<'a>(&self, before: &'a Reading, mirror: &Value) -> Option<&'a Value> {
        let mut earlier = items(&before.mirrors["mirrors"]).iter();
        earlier.find(|m| m["name"] == mirror["name"])
    }

    fn rates_json(&self, before: &Reading, elapsed: f64) -> Value {
        let mirrors: Vec<Value> = items(&self.mirrors["mirrors"])
            .iter()
            .map(|m| {
                let earlier = self.before(before, m).unwrap_or(&Value::Null);
                let per_second =
                    |key: &str| rate(&m["ledger"][key], &earlier["ledger"][key], elapsed);
                json!({
                    "name": m["name"],
                    "offered_per_second": per_second("offered"),
                    "delivered_per_second": per_second("delivered"),
                    "dropped_per_second": per_second("dropped_total"),
                    "queued_units": m["queue"]["units"],
                })
            })
            .collect();
        let (now, then) = (&self.status["totals"], &before.status["totals"]);
        json!({
            "uptime_seconds": self.uptime,
            "clients": now["clients"],
            "requests_per_second": rate(&now["requests"], &then["requests"], elapsed),
            "mirrors": mirrors,
        })
    }

    fn show(&self, before: &Reading, elapsed: f64, out: &mut dyn Write) -> io::Result<()> {
        let (now, then) = (&self.status["totals"], &before.status["totals"]);
        // Home and clear: ECMA-48 CUP and ED.
        write!(out, "\x1b[H\x1b[2J")?;
        writeln!(
            out,
            "parhelion · up {} · {} clients · {:.0} requests/s · mirror rings {} of {}\n",
            duration(self.uptime),
            count(n(&now["clients"])),
            rate(&now["requests"], &then["requests"], elapsed),
            bytes(n(&now["mirror_memory_used"])),
            bytes(n(&now["mirror_memory_capacity"])),
        )?;
        let mut table = Table::new(&[
            "mirror",
            "offered/s",
            "delivered/s",
            "dropped/s",
            "queued",
            "p99",
            "primary p99",
            "diverged",
            "verdict",
        ]);
        for mirror in items(&self.mirrors["mirrors"]) {
            let earlier = self.before(before, mirror).unwrap_or(&Value::Null);
            let per_second = |key: &str| {
                format!(
                    "{:.0}",
                    rate(&mirror["ledger"][key], &earlier["ledger"][key], elapsed)
                )
            };
            table.row(vec![
                s(&mirror["name"]),
                per_second("offered"),
                per_second("delivered"),
                per_second("dropped_total"),
                count(n(&mirror["queue"]["units"])),
                nanos(n(&mirror["latency"]["mirror"]["p99_ns"])),
                nanos(n(&mirror["latency"]["primary"]["p99_ns"])),
                count(n(&mirror["divergences_total"])),
                s(&mirror["verdict"]),
            ]);
        }
        table.write(out)
    }
}

fn rate(now: &Value, then: &Value, elapsed: f64) -> f64 {
    // A restart between two readings starts at zero again.
    n(now).saturating_sub(n(then)) as f64 / elapsed.max(0.001)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_path_segment() {
        assert_eq!(percent("a:b/../c?d"), "a%3Ab%2F..%2Fc%3Fd");
    }
}
