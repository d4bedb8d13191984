//! The commands of an operator: one layer under the admin SQL, HTTP and `parhelion ctl`.

use serde_json::Value;

/// What an operator can ask of a running process.
///
/// Every method returns JSON that says what was done. Names are those of [`crate::metrics::Registry::resolve_mirror`]
/// for mirrors and the primary's database name for dual writes. Methods may block for as long as the cores need;
/// they are never called on a data core.
pub trait Commands: Send + Sync {
    /// Listeners, backends and their state: what the counters do not tell.
    fn status(&self) -> Result<Value, CommandError>;
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

fn list(names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!("; there are: {}", names.join(", "))
    }
}
