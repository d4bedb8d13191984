//! The admin's SQL: `SHOW …`, `SET …`, PAUSE, RESUME, RECONNECT, RELOAD, DRAIN, SHUTDOWN.
//!
//! It turns a statement into an [`Operation`] and the answer into rows. It knows no wire and no session: the sockets are
//! `proxy::postgres::admin`'s.
//!
//! [`Operation`]: super::commands::Operation

mod statement;
mod words;

use serde_json::{Value, json};

use self::statement::{Filter, Show, Statement, parse};
use super::commands::{CommandError, Who};
use super::listing::{self, Column};
use super::state::ControlState;

pub use self::words::split;

/// What `SHOW HELP` says, and all that there is.
const HELP: &[(&str, &str)] = &[
    ("SHOW HELP", "this list"),
    ("SHOW VERSION", "the version of this build"),
    ("SHOW STATUS", "the process, its cores and the sums"),
    ("SHOW CONFIG", "the config in force, without secrets"),
    (
        "SHOW DATABASES",
        "source databases: clients, requests, latency",
    ),
    ("SHOW CLIENTS", "open client connections"),
    (
        "SHOW SERVERS",
        "primaries and mirrors with their connections",
    ),
    ("SHOW POOLS", "connections and queues of the mirrors"),
    (
        "SHOW STATS",
        "requests, errors and latency of the databases",
    ),
    ("SHOW MIRRORS", "mirrors: counts, ledger, verdict"),
    (
        "SHOW DIVERGENCES [FOR mirror] [KIND kind] [COMMAND command] [LIMIT n] [OFFSET n]",
        "examples, newest first",
    ),
    (
        "SHOW QUERIES [FOR mirror] [BY slowest] [LIMIT n]",
        "latency by query on primary and mirror; BY regressed (default), slowest, calls",
    ),
    (
        "SHOW LATENCY [FOR mirror]",
        "latency of primary and mirror for the same units, and the wait in the queue",
    ),
    ("SHOW DISTRIBUTION [FOR mirror]", "the same, cell by cell"),
    (
        "SHOW REPORT",
        "the verdict on each mirror, why, and what it rests on",
    ),
    (
        "SHOW TIMELINE",
        "what each mirror got, lost and answered differently over time",
    ),
    (
        "SHOW METRICS [name]",
        "every metric, or those whose names begin so",
    ),
    ("SHOW CHANGES", "what operators changed, newest first"),
    (
        "SET mirror_exposure = 0.1 [FOR mirror]",
        "share of the units that a mirror is offered",
    ),
    (
        "SET mirror_queue = 128 [FOR mirror]",
        "length of the rings, in units per client",
    ),
    (
        "SET mode = 'dual-write' FOR database",
        "mode of a dual write",
    ),
    (
        "PAUSE [mirror]",
        "stop a mirror; its units count as dropped",
    ),
    ("RESUME [mirror]", "start it again"),
    ("RECONNECT [mirror]", "replace its connections"),
    ("RELOAD", "read the config files again"),
    (
        "DRAIN",
        "take no new clients, let sessions and queues run empty",
    ),
    ("SHUTDOWN", "drain and end the process"),
];

/// An answer to one statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Rows under [`describe`]'s columns.
    Rows(Vec<Vec<Value>>),
    /// Done; the word is the command tag, the text a notice for people.
    Done {
        /// `SET`, `PAUSE` …
        tag: &'static str,
        /// What was done, as JSON.
        notice: String,
    },
    /// Refused.
    Error(AdminError),
}

/// Why a statement was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminError {
    /// The SQLSTATE.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// The way out.
    pub hint: String,
}

/// No statement of ours.
fn unknown(message: &str) -> AdminError {
    AdminError {
        code: "42601",
        message: message.to_owned(),
        hint: "SHOW HELP lists the statements".to_owned(),
    }
}

/// The columns of a statement's answer; `None` if it has no rows.
///
/// # Errors
/// If it is no statement of ours.
pub fn describe(sql: &str) -> Result<Option<&'static [Column]>, AdminError> {
    Ok(match parse(sql)? {
        Statement::Show(show, _) => Some(show.columns()),
        _ => None,
    })
}

/// Carries out one statement. Blocks for as long as the operation needs.
pub fn execute(state: &ControlState, who: &Who, sql: &str) -> Answer {
    let result = parse(sql).and_then(|statement| match statement {
        Statement::Nothing => Ok(Answer::Done {
            tag: "SET",
            notice: String::new(),
        }),
        Statement::Show(show, filter) => shown(state, who, show, filter),
        Statement::Run(tag, operation) => {
            let answer = state.perform(who, &operation).map_err(refused)?;
            Ok(Answer::Done {
                tag,
                notice: answer.to_string(),
            })
        }
    });
    result.unwrap_or_else(Answer::Error)
}

fn shown(
    state: &ControlState,
    who: &Who,
    show: Show,
    filter: Filter,
) -> Result<Answer, AdminError> {
    let items: Vec<Value> = match show.source(filter) {
        None if matches!(show, Show::Version) => {
            vec![json!({"version": format!("parhelion {}", state.version)})]
        }
        None => HELP
            .iter()
            .map(|(statement, what)| json!([statement, what]))
            .collect(),
        Some((operation, rows_of)) => {
            let answer = state.perform(who, &operation).map_err(refused)?;
            rows_of(&answer)
        }
    };
    Ok(Answer::Rows(listing::rows(show.columns(), &items)))
}

fn refused(error: CommandError) -> AdminError {
    let (code, hint) = match &error {
        CommandError::Unknown { .. } => ("42704", "SHOW MIRRORS lists the names"),
        CommandError::Invalid(_) => ("22023", "SHOW HELP lists the statements and their values"),
        CommandError::Conflict(_) => ("55000", "SHOW STATUS tells what the process is doing"),
        CommandError::Failed(_) => ("58000", "the log of the process tells more"),
    };
    AdminError {
        code,
        message: error.to_string(),
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_help_is_a_statement() {
        for (line, _) in HELP {
            let whole: String = line.replace(['[', ']'], " ").replace(" n ", " 5 ");
            let short = line.split('[').next().unwrap_or_default();
            for sql in [whole.as_str(), short] {
                assert!(parse(sql).is_ok(), "{sql}: {:?}", parse(sql));
            }
        }
    }
}
