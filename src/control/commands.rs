//! The commands of an operator: one layer under the admin SQL, HTTP and `parhelion ctl`.
//!
//! A surface makes an [`Operation`] of what it was asked and gives it to
//! [`ControlState::perform`](super::ControlState::perform), the only place that carries out and logs one.

use std::fmt;

use serde_json::Value;

use super::divergences::DivergenceFilter;
use super::latency::LatencyFilter;
use super::queries::QueryFilter;
use super::samples::MetricFilter;

/// The name that stands for every mirror.
pub const EVERY: &str = "*";

/// All that an operator can see or do, whatever the surface.
#[derive(Clone, Debug)]
pub enum Operation {
    /// The process, its cores, listeners and sums.
    Status,
    /// The config in force, without secrets.
    Config,
    /// The source databases with their counters.
    Databases,
    /// The mirrors with their ledgers and verdicts.
    Mirrors,
    /// Examples of divergences.
    Divergences(DivergenceFilter),
    /// Latency by query fingerprint and command.
    Queries(QueryFilter),
    /// Distributions of latency, primary and mirror side by side.
    Latency(LatencyFilter),
    /// What ran, for how long, and the verdict on every mirror.
    Report,
    /// Every metric.
    Metrics(MetricFilter),
    /// What operators changed.
    Changes,
    /// The open client connections.
    Clients,
    /// The connections to primaries and mirrors.
    Servers,
    /// The share of units that a mirror is offered.
    SetExposure {
        /// The mirror's name, or [`EVERY`].
        mirror: String,
        /// 0 to 1.
        exposure: f64,
    },
    /// The length of a mirror's rings.
    SetQueue {
        /// The mirror's name, or [`EVERY`].
        mirror: String,
        /// At least 1.
        units: u64,
    },
    /// Stops a mirror.
    Pause {
        /// The mirror's name, or [`EVERY`].
        mirror: String,
    },
    /// Starts it again.
    Resume {
        /// The mirror's name, or [`EVERY`].
        mirror: String,
    },
    /// Replaces its connections.
    Reconnect {
        /// The mirror's name, or [`EVERY`].
        mirror: String,
    },
    /// The mode of a dual write.
    SetMode {
        /// The primary's database name.
        name: String,
        /// The mode's name.
        mode: String,
    },
    /// Reads the config files again.
    Reload,
    /// Takes no new clients and lets the mirrors empty their queues.
    Drain,
    /// Drains and ends the process.
    Shutdown,
}

impl Operation {
    /// A stable word for logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Operation::Status => "status",
            Operation::Config => "config",
            Operation::Databases => "databases",
            Operation::Mirrors => "mirrors",
            Operation::Divergences(_) => "divergences",
            Operation::Queries(_) => "queries",
            Operation::Latency(_) => "latency",
            Operation::Report => "report",
            Operation::Metrics(_) => "metrics",
            Operation::Changes => "changes",
            Operation::Clients => "clients",
            Operation::Servers => "servers",
            Operation::SetExposure { .. } => "set_exposure",
            Operation::SetQueue { .. } => "set_queue",
            Operation::Pause { .. } => "pause",
            Operation::Resume { .. } => "resume",
            Operation::Reconnect { .. } => "reconnect",
            Operation::SetMode { .. } => "set_mode",
            Operation::Reload => "reload",
            Operation::Drain => "drain",
            Operation::Shutdown => "shutdown",
        }
    }

    /// What it is about; empty for the whole process.
    pub fn subject(&self) -> &str {
        match self {
            Operation::SetExposure { mirror, .. }
            | Operation::SetQueue { mirror, .. }
            | Operation::Pause { mirror }
            | Operation::Resume { mirror }
            | Operation::Reconnect { mirror } => mirror,
            Operation::SetMode { name, .. } => name,
            _ => "",
        }
    }

    /// Whether it changes something; only that is logged.
    pub const fn changes(&self) -> bool {
        !matches!(
            self,
            Operation::Status
                | Operation::Config
                | Operation::Databases
                | Operation::Mirrors
                | Operation::Divergences(_)
                | Operation::Queries(_)
                | Operation::Latency(_)
                | Operation::Report
                | Operation::Metrics(_)
                | Operation::Changes
                | Operation::Clients
                | Operation::Servers
        )
    }
}

/// Who asks, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// `http`, `ctl`, `admin`, `signal` or `file`.
    pub via: &'static str,
    /// The peer, the user, the signal.
    pub name: String,
}

impl Who {
    /// Somebody.
    pub fn new(via: &'static str, name: impl Into<String>) -> Who {
        Who {
            via,
            name: name.into(),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.via, self.name)
    }
}

/// What the runtime does for an operator: the effects under [`Operation`]. The views are made from the counters.
///
/// Every method returns JSON that says what was done. Names are those of [`crate::metrics::Registry::resolve_mirror`]
/// for mirrors and the primary's database name for dual writes. Methods may block for as long as the cores need;
/// they are never called on a data core.
pub trait Commands: Send + Sync {
    /// Listeners, backends and their state: what the counters do not tell.
    fn status(&self) -> Result<Value, CommandError>;
    /// The config in force, without secrets.
    fn config(&self) -> Result<Value, CommandError>;
    /// The names of the mirrors in force.
    fn mirrors(&self) -> Result<Vec<String>, CommandError>;
    /// The names of the secondaries in force: an exposure and a queue they have, a pause they have not.
    fn secondaries(&self) -> Result<Vec<String>, CommandError>;
    /// The open client connections.
    fn clients(&self) -> Result<Value, CommandError>;
    /// The open connections to primaries and mirrors.
    fn servers(&self) -> Result<Value, CommandError>;
    /// Sets the share of units that a mirror is offered; `exposure` is within 0 … 1.
    fn set_exposure(&self, mirror: &str, exposure: f64) -> Result<Value, CommandError>;
    /// Sets the length of a mirror's rings for new clients, in units.
    fn set_queue(&self, mirror: &str, units: u64) -> Result<Value, CommandError>;
    /// Stops a mirror; its units count as dropped.
    fn pause(&self, mirror: &str) -> Result<Value, CommandError>;
    /// Starts a paused mirror again.
    fn resume(&self, mirror: &str) -> Result<Value, CommandError>;
    /// Replaces a mirror's connections.
    fn reconnect(&self, mirror: &str) -> Result<Value, CommandError>;
    /// Sets the mode of a dual write.
    fn set_mode(&self, name: &str, mode: &str) -> Result<Value, CommandError>;
    /// Reads the config files again and applies what can change at run time.
    fn reload(&self) -> Result<Value, CommandError>;
    /// Takes no new clients and lets the mirrors empty their queues.
    fn drain(&self) -> Result<Value, CommandError>;
    /// Drains and ends the process.
    fn shutdown(&self) -> Result<Value, CommandError>;
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandError {
    /// There is nothing of this name.
    #[error("no {what} is called {name:?}{}", list(.known))]
    Unknown {
        /// `mirror`, `dual_write` …
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The value is not one that this setting takes.
    #[error("{0}")]
    Invalid(String),
    /// Right in itself, not in the present state.
    #[error("{0}")]
    Conflict(String),
    /// The command failed on the way.
    #[error("{0}")]
    Failed(String),
}

impl CommandError {
    /// A stable word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            CommandError::Unknown { .. } => "unknown_name",
            CommandError::Invalid(_) => "invalid_value",
            CommandError::Conflict(_) => "conflict",
            CommandError::Failed(_) => "failed",
        }
    }
}

/// Names that a refusal shows; `mirrors` and `SHOW MIRRORS` have them all.
const NAMES_SHOWN_MAX: usize = 8;

fn list(names: &[String]) -> String {
    let shown = &names[..names.len().min(NAMES_SHOWN_MAX)];
    match (shown, names.len() - shown.len()) {
        ([], _) => String::new(),
        (shown, 0) => format!("; there are: {}", shown.join(", ")),
        (shown, more) => format!("; there are: {} and {more} more", shown.join(", ")),
    }
}
