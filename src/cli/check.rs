//! `parhelion check`: is every database of a configuration there, and can Parhelion log in where it must?

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use super::probe::{self, Finding};
use crate::config::{Config, Database, Login, Protocol};

/// Databases dialled at once: the slow ones do not add up, and a large configuration does not storm its servers.
const DIALLED_AT_ONCE: usize = 16;

/// What dialling one database showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialled {
    /// The database; with the user in brackets where it was logged in to by users.toml.
    pub name: String,
    /// Where it is.
    pub endpoint: String,
    /// In a few words: what answered, or why it failed.
    pub result: String,
    /// Whether it may be served.
    pub ok: bool,
    /// The server's version, if it said.
    pub version: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// One thing to dial.
struct Task<'a> {
    name: String,
    database: &'a Database,
    login: Option<Login<'a>>,
    must_log_in: bool,
}

/// Dials every database of `config`, several at once, each within `timeout`.
///
/// The system's resolver has a time limit of its own, which may be longer.
pub fn check_dial(config: &Config, timeout: Duration) -> Vec<Dialled> {
    let tasks = tasks(config);
    let mut dialled = Vec::with_capacity(tasks.len());
    for batch in tasks.chunks(DIALLED_AT_ONCE) {
        thread::scope(|scope| {
            let threads: Vec<_> = batch
                .iter()
                .map(|task| scope.spawn(|| dial(task, timeout)))
                .collect();
            for (thread, task) in threads.into_iter().zip(batch) {
                dialled.push(thread.join().unwrap_or_else(|_| {
                    task.report(Err("the probe failed".to_owned()), Duration::ZERO)
                }));
            }
        });
    }
    dialled
}

fn tasks(config: &Config) -> Vec<Task<'_>> {
    let mut tasks = Vec::new();
    for (index, database) in config.databases.iter().enumerate() {
        let must_log_in = config.mirroring.iter().any(|m| m.destination == index)
            || config.dual_write.iter().any(|d| d.secondary == index);
        let by_user: Vec<Login<'_>> = config
            .users
            .iter()
            .filter(|user| user.database == Some(index) && user.password.is_some())
            .map(|user| Login {
                user: &user.name,
                password: user.password.as_ref(),
            })
            .collect();
        let own = database.login();
        if database.protocol == Protocol::Postgres && own.is_none() && must_log_in {
            tasks.extend(by_user.into_iter().map(|login| Task {
                name: format!("{} ({})", database.name, login.user),
                database,
                login: Some(login),
                must_log_in,
            }));
        }
        let covered = tasks
            .last()
            .is_some_and(|task| std::ptr::eq(task.database, database));
        if !covered {
            let name = database.name.clone();
            tasks.push(Task {
                name,
                database,
                login: own,
                must_log_in,
            });
        }
    }
    tasks
}

impl Task<'_> {
    fn report(&self, finding: Finding, elapsed: Duration) -> Dialled {
        let (result, ok, version) = match finding {
            Ok(found) => (found.note.to_owned(), true, found.version),
            Err(problem) => (problem, false, None),
        };
        let endpoint = self.database.endpoint.to_string();
        Dialled {
            name: self.name.clone(),
            endpoint,
            result,
            ok,
            version,
            elapsed,
        }
    }
}

fn dial(task: &Task<'_>, timeout: Duration) -> Dialled {
    let start = Instant::now();
    let deadline = start + timeout;
    let finding = match task.database.protocol {
        Protocol::Postgres => probe::postgres(task.database, task.login, deadline),
        Protocol::Redis => probe::redis(task.database, task.must_log_in, deadline),
    };
    task.report(finding, start.elapsed())
}

/// The findings as a table.
pub fn table(dialled: &[Dialled]) -> String {
    let header = ["NAME", "ENDPOINT", "RESULT", "VERSION", "MS"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(dialled.iter().map(|d| {
        let mark = if d.ok { "ok: " } else { "FAILED: " };
        [
            d.name.clone(),
            d.endpoint.clone(),
            format!("{mark}{}", d.result),
            d.version.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{:.1}", d.elapsed.as_secs_f64() * 1e3),
        ]
    }));
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
