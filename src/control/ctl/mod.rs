//! `parhelion ctl`: the operator's client of the control port.
//!
//! Here: what it can do and which path of the API does it. [`client`] asks, [`show`] writes tables, [`top`] is the live
//! view.

mod client;
mod show;
mod top;

use std::io::{self, Write};

use serde_json::{Value, json};

use self::client::{Client, percent};
use super::queries::QuerySort;
use super::report::{Report, render};

pub(in crate::control) use self::client::CTL_AGENT;

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
    /// Latency of primary and mirror for the same units, and the wait in the queue; with --json every cell
    Latency {
        /// The mirror; without it, every mirror
        mirror: Option<String>,
    },
    /// The verdict on each mirror, why, and what it rests on; `parhelion report` writes the whole page
    Report,
    /// Every metric, as a scrape of /metrics has it
    Metrics {
        /// Only those whose names begin so
        name: Option<String>,
    },
    /// What operators changed and who, newest first
    Changes,
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
        /// The mirror, or '*' for every mirror
        name: String,
    },
    /// Start a paused mirror again
    Resume {
        /// The mirror, or '*' for every mirror
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
    let (answer, show): (Value, show::Show) = match args {
        CtlCommand::Top { interval, count } => {
            return top::top(&client, interval, count, json, out);
        }
        CtlCommand::Status => (client.get("/api/status")?, show::status),
        CtlCommand::Mirrors => (client.get("/api/mirrors")?, show::mirrors),
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
            (client.get(&path)?, show::divergences)
        }
        CtlCommand::Queries {
            mirror,
            sort,
            limit,
        } => {
            let mut path = format!("/api/queries?sort={}&limit={limit}", sort.as_str());
            if let Some(mirror) = mirror {
                path += &format!("&mirror={}", percent(&mirror));
            }
            (client.get(&path)?, show::queries)
        }
        CtlCommand::Latency { mirror } => {
            let path = with_filter("/api/latency", "mirror", mirror);
            (client.get(&path)?, show::latency)
        }
        CtlCommand::Metrics { name } => {
            let path = with_filter("/api/metrics", "name", name);
            (client.get(&path)?, show::metrics)
        }
        CtlCommand::Report => (client.get("/api/report")?, show::report),
        CtlCommand::Changes => (client.get("/api/changes")?, show::changes),
        CtlCommand::Exposure { name, exposure } => {
            let path = format!("/api/mirrors/{}/exposure", percent(&name));
            (
                client.post(&path, json!({"exposure": exposure}))?,
                show::done,
            )
        }
        CtlCommand::Queue { name, units } => {
            let path = format!("/api/mirrors/{}/queue", percent(&name));
            (client.post(&path, json!({"units": units}))?, show::done)
        }
        CtlCommand::Mode { name, mode } => {
            let path = format!("/api/dual_write/{}/mode", percent(&name));
            (client.post(&path, json!({"mode": mode}))?, show::done)
        }
        CtlCommand::Pause { name } => {
            let path = format!("/api/mirrors/{}/pause", percent(&name));
            (client.post(&path, json!({}))?, show::done)
        }
        CtlCommand::Resume { name } => {
            let path = format!("/api/mirrors/{}/resume", percent(&name));
            (client.post(&path, json!({}))?, show::done)
        }
        CtlCommand::Reconnect { name } => {
            let path = format!("/api/mirrors/{}/reconnect", percent(&name));
            (client.post(&path, json!({}))?, show::done)
        }
        CtlCommand::Reload => (client.post("/api/reload", json!({}))?, show::done),
        CtlCommand::Drain => (client.post("/api/drain", json!({}))?, show::done),
        CtlCommand::Shutdown => (client.post("/api/shutdown", json!({}))?, show::done),
        CtlCommand::Databases => (client.get("/api/databases")?, show::databases),
        CtlCommand::Clients => (client.get("/api/clients")?, show::clients),
        CtlCommand::Servers => (client.get("/api/servers")?, show::servers),
        CtlCommand::Config => (client.get("/api/config")?, show::config),
    };
    if json {
        writeln!(out, "{answer:#}")?;
    } else {
        show(&answer, out)?;
    }
    Ok(())
}

fn with_filter(path: &str, name: &str, value: Option<String>) -> String {
    match value {
        Some(value) => format!("{path}?{name}={}", percent(&value)),
        None => path.to_owned(),
    }
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
