//! From words to a statement, and from a statement to the operation under it.

use serde_json::Value;

use super::words::{Word, Words};
use super::{AdminError, unknown};
use crate::control::commands::{EVERY, Operation};
use crate::control::divergences::DivergenceFilter;
use crate::control::latency::{self, LatencyFilter};
use crate::control::listing::{self, Column};
use crate::control::queries::{QueryFilter, QuerySort};
use crate::control::report;
use crate::control::samples::MetricFilter;

/// What drivers set when they connect; it means nothing here and changes nothing.
const DRIVER_SETTINGS: [&str; 5] = [
    "application_name",
    "client_encoding",
    "datestyle",
    "extra_float_digits",
    "standard_conforming_strings",
];

/// One statement, understood.
#[derive(Clone, Debug)]
pub(super) enum Statement {
    Show(Show, Filter),
    Run(&'static str, Operation),
    /// A driver's own SET.
    Nothing,
}

/// What a SHOW shows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Show {
    Help,
    Version,
    Status,
    Config,
    Databases,
    Clients,
    Servers,
    Pools,
    Stats,
    Mirrors,
    Divergences,
    Queries,
    Latency,
    Distribution,
    Report,
    Timeline,
    Metrics,
    Changes,
}

/// How the answer to an operation becomes the rows of a SHOW.
pub(super) type RowsOf = fn(&Value) -> Vec<Value>;

/// What stands behind a SHOW.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    divergences: DivergenceFilter,
    queries: QueryFilter,
    latency: LatencyFilter,
    metrics: MetricFilter,
}

impl Show {
    fn of(word: &str) -> Option<Show> {
        Some(match word {
            "help" => Show::Help,
            "version" => Show::Version,
            "status" => Show::Status,
            "config" | "all" => Show::Config,
            "databases" => Show::Databases,
            "clients" => Show::Clients,
            "servers" => Show::Servers,
            "pools" => Show::Pools,
            "stats" => Show::Stats,
            "mirrors" => Show::Mirrors,
            "divergences" => Show::Divergences,
            "queries" => Show::Queries,
            "latency" => Show::Latency,
            "distribution" => Show::Distribution,
            "report" => Show::Report,
            "timeline" => Show::Timeline,
            "metrics" => Show::Metrics,
            "changes" => Show::Changes,
            _ => return None,
        })
    }

    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Show::Help => listing::HELP,
            Show::Version => listing::VERSION,
            Show::Status | Show::Config => listing::KEY_VALUE,
            Show::Databases => listing::DATABASES,
            Show::Clients => listing::CLIENTS,
            Show::Servers => listing::SERVERS,
            Show::Pools => listing::POOLS,
            Show::Stats => listing::STATS,
            Show::Mirrors => listing::MIRRORS,
            Show::Divergences => listing::DIVERGENCES,
            Show::Queries => listing::QUERIES,
            Show::Latency => listing::LATENCY,
            Show::Distribution => listing::DISTRIBUTION,
            Show::Report => listing::REPORT,
            Show::Timeline => listing::TIMELINE,
            Show::Metrics => listing::METRICS,
            Show::Changes => listing::CHANGES,
        }
    }

    /// The operation under it, and how its answer becomes rows. `None`: the build itself knows.
    pub(super) fn source(self, filter: Filter) -> Option<(Operation, RowsOf)> {
        let rows: RowsOf = match self {
            Show::Help | Show::Version => return None,
            Show::Status | Show::Config => listing::flatten,
            Show::Latency => latency::side_rows,
            Show::Distribution => latency::cell_rows,
            Show::Report => report::verdict_rows,
            Show::Timeline => report::timeline_rows,
            _ => listing::items,
        };
        let operation = match self {
            Show::Help | Show::Version => return None,
            Show::Status => Operation::Status,
            Show::Config => Operation::Config,
            Show::Databases | Show::Stats => Operation::Databases,
            Show::Clients => Operation::Clients,
            Show::Servers => Operation::Servers,
            Show::Pools | Show::Mirrors => Operation::Mirrors,
            Show::Divergences => Operation::Divergences(filter.divergences),
            Show::Queries => Operation::Queries(filter.queries),
            Show::Latency | Show::Distribution => Operation::Latency(filter.latency),
            Show::Report | Show::Timeline => Operation::Report,
            Show::Metrics => Operation::Metrics(filter.metrics),
            Show::Changes => Operation::Changes,
        };
        Some((operation, rows))
    }
}

/// Reads one statement.
pub(super) fn parse(sql: &str) -> Result<Statement, AdminError> {
    let mut words = Words::of(sql)?;
    let verb = words.keyword().unwrap_or_default();
    let statement = match verb.as_str() {
        "show" => show(&mut words)?,
        "set" => set(&mut words)?,
        "pause" => Statement::Run(
            "PAUSE",
            Operation::Pause {
                mirror: words.name(),
            },
        ),
        "resume" => Statement::Run(
            "RESUME",
            Operation::Resume {
                mirror: words.name(),
            },
        ),
        "reconnect" => {
            let mirror = words.name();
            Statement::Run("RECONNECT", Operation::Reconnect { mirror })
        }
        "reload" => Statement::Run("RELOAD", Operation::Reload),
        "drain" => Statement::Run("DRAIN", Operation::Drain),
        "shutdown" => Statement::Run("SHUTDOWN", Operation::Shutdown),
        "begin" | "start" | "commit" | "rollback" => {
            return Err(AdminError {
                code: "0A000",
                message: "the admin console has no transactions".to_owned(),
                hint: "connect with autocommit: what is set here is in force at once".to_owned(),
            });
        }
        other => {
            return Err(unknown(&format!(
                "{other:?} is no statement of the admin console"
            )));
        }
    };
    match words.next() {
        None => Ok(statement),
        Some(Word { text, .. }) => Err(unknown(&format!("{text:?} is too much here"))),
    }
}

fn show(words: &mut Words) -> Result<Statement, AdminError> {
    let what = words.keyword().unwrap_or_default();
    let Some(show) = Show::of(&what) else {
        return Err(AdminError {
            code: "42704",
            message: format!("there is no SHOW {}", what.to_uppercase()),
            hint: "SHOW HELP lists the statements".to_owned(),
        });
    };
    let mut filter = Filter::default();
    match show {
        Show::Divergences => divergence_filter(words, &mut filter.divergences)?,
        Show::Queries => query_filter(words, &mut filter.queries)?,
        Show::Latency | Show::Distribution => filter.latency.mirror = words.target(),
        Show::Metrics => filter.metrics.name = words.next().map(|word| word.text),
        _ => {}
    }
    Ok(Statement::Show(show, filter))
}

fn divergence_filter(words: &mut Words, filter: &mut DivergenceFilter) -> Result<(), AdminError> {
    loop {
        match words.peek_keyword().as_deref() {
            Some("for") => {
                words.next();
                filter.mirror = Some(words.name());
            }
            Some("kind") => {
                words.next();
                filter.kind = Some(words.value("KIND")?);
            }
            Some("command") => {
                words.next();
                filter.command = Some(words.value("COMMAND")?);
            }
            Some("limit") => {
                words.next();
                filter.limit = words.number("LIMIT")?;
            }
            Some("offset") => {
                words.next();
                filter.offset = words.number("OFFSET")?;
            }
            _ => return Ok(()),
        }
    }
}

fn query_filter(words: &mut Words, filter: &mut QueryFilter) -> Result<(), AdminError> {
    loop {
        match words.peek_keyword().as_deref() {
            Some("for") => {
                words.next();
                filter.mirror = Some(words.name());
            }
            Some("by") => {
                words.next();
                let word = words.keyword().unwrap_or_default();
                filter.sort = QuerySort::of(&word)
                    .ok_or_else(|| unknown("write BY regressed, BY slowest or BY calls"))?;
            }
            Some("limit") => {
                words.next();
                filter.limit = words.number("LIMIT")?;
            }
            _ => return Ok(()),
        }
    }
}

fn set(words: &mut Words) -> Result<Statement, AdminError> {
    let mut key = words.keyword().unwrap_or_default();
    if matches!(key.as_str(), "session" | "local") {
        key = words.keyword().unwrap_or_default();
    }
    let is_ours = matches!(key.as_str(), "mirror_exposure" | "mirror_queue" | "mode");
    if DRIVER_SETTINGS.contains(&key.as_str()) {
        while words.next().is_some() {}
        return Ok(Statement::Nothing);
    }
    if !is_ours {
        return Err(AdminError {
            code: "42704",
            message: format!("there is no setting {key:?}"),
            hint: "SET takes mirror_exposure, mirror_queue and mode; what else can change is in the config file, for \
                   RELOAD"
                .to_owned(),
        });
    }
    let mut target = words.target();
    if !matches!(words.keyword().as_deref(), Some("=" | "to")) {
        return Err(unknown(&format!("write SET {key} = value")));
    }
    let Some(Word { text: value, .. }) = words.next() else {
        return Err(unknown(&format!("SET {key} lacks its value")));
    };
    if target.is_none() {
        target = words.target();
    }
    let bad = |what: &str| AdminError {
        code: "22023",
        message: format!("{value:?} is no {what}"),
        hint: "SHOW HELP lists the statements and their values".to_owned(),
    };
    let every = || EVERY.to_owned();
    let operation = match key.as_str() {
        "mirror_exposure" => Operation::SetExposure {
            mirror: target.unwrap_or_else(every),
            exposure: value.parse().map_err(|_| bad("share from 0.0 to 1.0"))?,
        },
        "mirror_queue" => Operation::SetQueue {
            mirror: target.unwrap_or_else(every),
            units: value.parse().map_err(|_| bad("number of units"))?,
        },
        _ => Operation::SetMode {
            name: target.ok_or_else(|| unknown("write SET mode = 'dual-write' FOR database"))?,
            mode: value.clone(),
        },
    };
    Ok(Statement::Run("SET", operation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(sql: &str) -> String {
        match parse(sql) {
            Ok(Statement::Run(tag, operation)) => format!("{tag} {operation:?}"),
            Ok(other) => format!("{other:?}"),
            Err(error) => format!("{} {}", error.code, error.message),
        }
    }

    #[test]
    fn set_takes_either_order_quotes_and_to() {
        let expected = "SET SetExposure { mirror: \"Staging-DB\", exposure: 0.1 }";
        for sql in [
            "SET mirror_exposure = 0.1 FOR Staging-DB",
            "set Mirror_Exposure=0.1 for \"Staging-DB\";",
            "SET mirror_exposure FOR 'Staging-DB' = 0.1",
            "SET mirror_exposure TO '0.1' FOR Staging-DB",
        ] {
            assert_eq!(operation(sql), expected, "{sql}");
        }
        assert_eq!(
            operation("SET mirror_queue = 5"),
            "SET SetQueue { mirror: \"*\", units: 5 }"
        );
        assert!(operation("SET mode = dual-write-shadow FOR cache").contains("dual-write-shadow"));
    }

    #[test]
    fn what_is_unknown_is_refused_with_a_code_and_a_hint() {
        for (sql, code) in [
            ("SET mirror_speed = 1", "42704"),
            ("SHOW NOTHING", "42704"),
            ("SHOW QUERIES BY colour", "42601"),
            ("BEGIN", "0A000"),
            ("SELECT 1", "42601"),
            ("RELOAD now", "42601"),
            ("SHOW DIVERGENCES KIND", "42601"),
            ("SET mirror_exposure = half", "22023"),
            ("SET mirror_queue = -1", "22023"),
            ("SET mirror_exposure 0.1", "42601"),
            ("SET mirror_exposure = '0.1", "42601"),
            ("", "42601"),
        ] {
            let error = parse(sql).expect_err(sql);
            assert_eq!(error.code, code, "{sql}: {}", error.message);
            assert!(!error.hint.is_empty());
        }
    }
}
