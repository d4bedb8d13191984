//! The admin's SQL: `SHOW …`, `SET …`, PAUSE, RESUME, RECONNECT, RELOAD, DRAIN, SHUTDOWN.
//!
//! It turns a statement into an [`Operation`] and the answer into rows. It knows no wire and no session: the sockets are
//! `proxy::postgres::admin`'s.

use serde_json::{Value, json};

use super::commands::{CommandError, EVERY, Operation, Who};
use super::divergences::DivergenceFilter;
use super::listing::{self, Column};
use super::queries::{QueryFilter, QuerySort};
use super::state::ControlState;
use crate::limits::{
    ADMIN_STATEMENT_TOKENS_MAX, DIVERGENCES_PER_ANSWER_MAX, QUERIES_PER_ANSWER_MAX,
};

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
        "SHOW DIVERGENCES [FOR mirror] [LIMIT n] [OFFSET n]",
        "examples, newest first",
    ),
    (
        "SHOW QUERIES [FOR mirror] [BY slowest] [LIMIT n]",
        "latency by query on primary and mirror; BY regressed (default), slowest, calls",
    ),
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

/// What drivers set when they connect; it means nothing here and changes nothing.
const DRIVER_SETTINGS: [&str; 5] = [
    "application_name",
    "client_encoding",
    "datestyle",
    "extra_float_digits",
    "standard_conforming_strings",
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

#[derive(Clone, Debug)]
enum Statement {
    Show(Show, Filter),
    Run(&'static str, Operation),
    /// A driver's own SET.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
enum Show {
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
}

/// What stands behind a SHOW.
#[derive(Clone, Debug, Default)]
struct Filter {
    divergences: DivergenceFilter,
    queries: QueryFilter,
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
            _ => return None,
        })
    }

    fn columns(self) -> &'static [Column] {
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
        }
    }

    /// The operation under it and where its answer holds the rows. `None`: the build itself knows.
    fn source(self, filter: Filter) -> Option<(Operation, &'static str)> {
        Some(match self {
            Show::Help | Show::Version => return None,
            Show::Status => (Operation::Status, ""),
            Show::Config => (Operation::Config, ""),
            Show::Databases | Show::Stats => (Operation::Databases, "/databases"),
            Show::Clients => (Operation::Clients, "/clients"),
            Show::Servers => (Operation::Servers, "/servers"),
            Show::Pools | Show::Mirrors => (Operation::Mirrors, "/mirrors"),
            Show::Divergences => (Operation::Divergences(filter.divergences), "/items"),
            Show::Queries => (Operation::Queries(filter.queries), "/queries"),
        })
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
        Some((operation, at)) => {
            let mut answer = state.perform(who, &operation).map_err(refused)?;
            match show {
                Show::Status | Show::Config => listing::flatten(&answer),
                _ => match answer.pointer_mut(at).map(Value::take) {
                    Some(Value::Array(items)) => items,
                    _ => Vec::new(),
                },
            }
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

/// The statements of a simple query: split at semicolons outside quotes, empty ones left out.
pub fn split(sql: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut quote, mut start) = (None, 0);
    for (at, letter) in sql.char_indices() {
        match (quote, letter) {
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), letter) if open == letter => quote = None,
            (None, ';') => {
                out.push(&sql[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&sql[start..]);
    out.retain(|part| !part.trim().is_empty());
    out
}

fn parse(sql: &str) -> Result<Statement, AdminError> {
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

fn unknown(message: &str) -> AdminError {
    AdminError {
        code: "42601",
        message: message.to_owned(),
        hint: "SHOW HELP lists the statements".to_owned(),
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
            Some("limit") => {
                words.next();
                filter.limit = words.number("LIMIT")?.min(DIVERGENCES_PER_ANSWER_MAX);
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
                filter.limit = words.number("LIMIT")?.min(QUERIES_PER_ANSWER_MAX);
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

/// One word; `quoted` words are never keywords.
#[derive(Clone, Debug)]
struct Word {
    text: String,
    quoted: bool,
}

struct Words(std::iter::Peekable<std::vec::IntoIter<Word>>);

impl Words {
    fn of(sql: &str) -> Result<Words, AdminError> {
        let mut words = Vec::new();
        let mut letters = sql.chars().peekable();
        while let Some(letter) = letters.next() {
            if words.len() > ADMIN_STATEMENT_TOKENS_MAX {
                return Err(unknown("the statement is too long"));
            }
            match letter {
                ';' => {}
                letter if letter.is_whitespace() => {}
                '\'' | '"' => {
                    let mut text = String::new();
                    loop {
                        match letters.next() {
                            Some(end) if end == letter && letters.peek() == Some(&letter) => {
                                letters.next();
                                text.push(letter);
                            }
                            Some(end) if end == letter => break,
                            Some(other) => text.push(other),
                            None => return Err(unknown("a quote is not closed")),
                        }
                    }
                    words.push(Word { text, quoted: true });
                }
                '=' => words.push(Word {
                    text: "=".to_owned(),
                    quoted: false,
                }),
                letter => {
                    let mut text = String::from(letter);
                    let ends = |c: &char| c.is_whitespace() || ";='\"".contains(*c);
                    while let Some(more) = letters.next_if(|c| !ends(c)) {
                        text.push(more);
                    }
                    words.push(Word {
                        text,
                        quoted: false,
                    });
                }
            }
        }
        Ok(Words(words.into_iter().peekable()))
    }

    fn next(&mut self) -> Option<Word> {
        self.0.next()
    }

    /// The next word in lower case, unless it is quoted.
    fn keyword(&mut self) -> Option<String> {
        let word = self.0.next_if(|word| !word.quoted)?;
        Some(word.text.to_lowercase())
    }

    fn peek_keyword(&mut self) -> Option<String> {
        let word = self.0.peek().filter(|word| !word.quoted)?;
        Some(word.text.to_lowercase())
    }

    /// `FOR name`, if it stands here.
    fn target(&mut self) -> Option<String> {
        (self.peek_keyword().as_deref() == Some("for")).then(|| {
            self.next();
            self.name()
        })
    }

    /// A name as it was written; without one, every mirror.
    fn name(&mut self) -> String {
        self.next()
            .map_or_else(|| EVERY.to_owned(), |word| word.text)
    }

    fn number(&mut self, after: &str) -> Result<usize, AdminError> {
        let number = self.next().and_then(|word| word.text.parse().ok());
        number.ok_or_else(|| unknown(&format!("{after} takes a number")))
    }
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

    #[test]
    fn statements_are_split_outside_quotes() {
        assert_eq!(
            split("SHOW HELP; PAUSE 'a;b' ;; "),
            ["SHOW HELP", " PAUSE 'a;b' "]
        );
    }
}
