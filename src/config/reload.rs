//! What of a new configuration applies to a running process, and what needs a restart.
//!
//! Owns: the two answers, [`diff`] for people and [`apply`] for the cores; they follow one table. Never does: change a
//! running process.

use std::fmt;

use serde_json::{Value, json};

use super::show;
use super::types::{Config, Database, Listener, User};

/// One key that differs. Secrets show as `***` on both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// `general.mirror_exposure`, `mirroring[prod -> staging_db].exposure`, `users[app@prod]`.
    pub key: String,
    /// The value in force until now; null: there was none.
    pub before: Value,
    /// The value in the file; null: there is none any more.
    pub after: Value,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.before, self.after)
    }
}

/// How two configurations differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// In force as soon as every core has the new configuration.
    pub applied: Vec<Change>,
    /// Not in force before the process starts again.
    pub needs_restart: Vec<Change>,
}

impl Changes {
    /// Whether the two are the same.
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty() && self.needs_restart.is_empty()
    }

    /// `{"applied": ["key: 1 -> 2"], "needs_restart": […]}`
    pub fn to_json(&self) -> Value {
        let show = |changes: &[Change]| changes.iter().map(Change::to_string).collect::<Vec<_>>();
        json!({ "applied": show(&self.applied), "needs_restart": show(&self.needs_restart) })
    }

    fn note(&mut self, live: bool, key: String, before: Value, after: Value) {
        let list = if live {
            &mut self.applied
        } else {
            &mut self.needs_restart
        };
        list.push(Change { key, before, after });
    }
}

/// The keys of `[general]` that a running process takes over.
const LIVE_GENERAL: &[&str] = &[
    "mirror_queue",
    "mirror_queue_bytes",
    "mirror_exposure",
    "pace",
    "mirror_timeout",
    "connect_timeout",
    "query_wait_timeout",
    "client_idle_timeout",
    "client_login_timeout",
    "max_connections",
    "max_connections_per_address",
    "drain_timeout",
];

/// The keys of a `[[databases]]` entry that a running process takes over: a login is made anew for each connection.
const LIVE_DATABASE: &[&str] = &["user", "password", "tls_ca"];

/// Names what differs between the configuration in force and a new one.
pub fn diff(old: &Config, new: &Config) -> Changes {
    let mut changes = Changes::default();
    for (key, before, after) in show::differing(&show::general(old), &show::general(new)) {
        let live = LIVE_GENERAL.contains(&key.as_str());
        changes.note(live, format!("general.{key}"), before, after);
    }
    for (key, before, after) in show::differing(&show::ring(old), &show::ring(new)) {
        changes.note(false, format!("ring.{key}"), before, after);
    }
    diff_sentry(old, new, &mut changes);
    diff_listeners(old, new, &mut changes);
    diff_databases(old, new, &mut changes);
    let mirrors = |config: &Config| -> Vec<(String, Value)> {
        let name = |value: &Value| pair(value, "source_db", "destination_db");
        let shown = config.mirroring.iter().map(|m| show::mirroring(config, m));
        shown.map(|value| (name(&value), value)).collect()
    };
    diff_entries(
        "mirroring",
        &mirrors(old),
        &mirrors(new),
        |_| true,
        &mut changes,
    );
    let duals = |config: &Config| -> Vec<(String, Value)> {
        let name = |value: &Value| pair(value, "primary", "secondary");
        let shown = config
            .dual_write
            .iter()
            .map(|d| show::dual_write(config, d));
        shown.map(|value| (name(&value), value)).collect()
    };
    diff_entries(
        "dual_write",
        &duals(old),
        &duals(new),
        |_| true,
        &mut changes,
    );
    diff_users(old, new, &mut changes);
    changes
}

/// `a -> b`
fn pair(value: &Value, from: &str, to: &str) -> String {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    format!("{} -> {}", text(from), text(to))
}

/// Compares lists of named entries: added, removed, changed key by key.
fn diff_entries(
    section: &str,
    old: &[(String, Value)],
    new: &[(String, Value)],
    live: impl Fn(&str) -> bool,
    changes: &mut Changes,
) {
    for (name, value) in new {
        match old.iter().find(|(other, _)| other == name) {
            None => changes.note(
                live(""),
                format!("{section}[{name}]"),
                Value::Null,
                json!("added"),
            ),
            Some((_, before)) => {
                for (key, before, after) in show::differing(before, value) {
                    changes.note(
                        live(&key),
                        format!("{section}[{name}].{key}"),
                        before,
                        after,
                    );
                }
            }
        }
    }
    for (name, _) in old
        .iter()
        .filter(|(name, _)| !new.iter().any(|(other, _)| other == name))
    {
        changes.note(
            live(""),
            format!("{section}[{name}]"),
            json!("present"),
            Value::Null,
        );
    }
}

fn diff_sentry(old: &Config, new: &Config, changes: &mut Changes) {
    for (key, before, after) in show::differing(&show::sentry(old), &show::sentry(new)) {
        changes.note(false, format!("sentry.{key}"), before, after);
    }
    if let (Some(before), Some(after)) = (&old.sentry.dsn, &new.sentry.dsn)
        && before != after
    {
        changes.note(false, "sentry.dsn".to_owned(), json!("***"), json!("***"));
    }
}

fn diff_listeners(old: &Config, new: &Config, changes: &mut Changes) {
    let entries = |config: &Config| -> Vec<(String, Value)> {
        let shown = config.listeners.iter();
        shown
            .map(|l| (l.address.to_string(), show::listener(config, l)))
            .collect()
    };
    let live = |key: &str| key == "tls" || key == "database";
    diff_entries("listeners", &entries(old), &entries(new), live, changes);
}

fn diff_databases(old: &Config, new: &Config, changes: &mut Changes) {
    let entries = |config: &Config| -> Vec<(String, Value)> {
        config
            .databases
            .iter()
            .map(|d| (d.name.clone(), show::database(d)))
            .collect()
    };
    // A whole entry may come and go with its mirroring.
    let live = |key: &str| key.is_empty() || LIVE_DATABASE.contains(&key);
    diff_entries("databases", &entries(old), &entries(new), live, changes);
    for database in &new.databases {
        let before = old
            .databases
            .iter()
            .find(|other| other.name == database.name);
        if let Some(before) = before.and_then(|d| d.password.as_ref()) {
            // Set on both sides: shown alike, so not seen above.
            if database
                .password
                .as_ref()
                .is_some_and(|after| after != before)
            {
                let key = format!("databases[{}].password", database.name);
                changes.note(true, key, json!("***"), json!("***"));
            }
        }
    }
}

fn diff_users(old: &Config, new: &Config, changes: &mut Changes) {
    let name = |config: &Config, user: &User| {
        let database = user
            .database
            .map_or("admin", |index| &config.databases[index].name);
        format!("{}@{database}", user.name)
    };
    let entries = |config: &Config| -> Vec<(String, User)> {
        config
            .users
            .iter()
            .map(|user| (name(config, user), user.clone()))
            .collect()
    };
    let (old, new) = (entries(old), entries(new));
    for (name, user) in &new {
        let key = format!("users[{name}]");
        match old.iter().find(|(other, _)| other == name) {
            None => changes.note(true, key, Value::Null, json!("added")),
            Some((_, before))
                if before.password != user.password
                    || before.scram_verifier != user.scram_verifier =>
            {
                changes.note(true, key, json!("***"), json!("***"));
            }
            Some(_) => {}
        }
    }
    for (name, _) in old
        .iter()
        .filter(|(name, _)| !new.iter().any(|(other, _)| other == name))
    {
        changes.note(
            true,
            format!("users[{name}]"),
            json!("present"),
            Value::Null,
        );
    }
}

/// The configuration that is in force after a reload: the new one, with everything that needs a restart as it was.
///
/// The set of listeners stays the old one. A listener whose database has left the file keeps that database's entry.
pub fn apply(old: &Config, new: Config) -> Config {
    let mut merged = new;
    let g = &mut merged.general;
    let o = &old.general;
    g.cores = o.cores.clone();
    g.control = o.control;
    g.mirror_memory = o.mirror_memory;
    g.mirror_pool_mode = o.mirror_pool_mode;
    g.log_format = o.log_format;
    g.divergence_log = o.divergence_log.clone();
    g.compat_metrics = o.compat_metrics;
    g.control_token = o.control_token.clone();
    g.watch_config = o.watch_config;
    g.redact = o.redact;
    merged.ring = old.ring.clone();
    merged.sentry = old.sentry.clone();
    for database in &mut merged.databases {
        if let Some(before) = old
            .databases
            .iter()
            .find(|other| other.name == database.name)
        {
            keep_fixed(before, database);
        }
    }
    merged.listeners = merge_listeners(old, &mut merged);
    merged
}

/// Everything of a database but [`LIVE_DATABASE`].
fn keep_fixed(before: &Database, database: &mut Database) {
    *database = Database {
        user: database.user.take(),
        password: database.password.take(),
        tls_ca: database.tls_ca.take(),
        ..before.clone()
    };
}

/// The old listeners with the new TLS files and database, where the new file has the same address and protocol.
fn merge_listeners(old: &Config, merged: &mut Config) -> Vec<Listener> {
    let mut listeners = Vec::with_capacity(old.listeners.len());
    for before in &old.listeners {
        let twin = merged
            .listeners
            .iter()
            .find(|l| l.address == before.address && l.protocol == before.protocol)
            .cloned();
        let mut listener = before.clone();
        match twin {
            Some(twin) => {
                listener.tls = twin.tls;
                listener.database = twin.database;
            }
            None => {
                listener.database = before
                    .database
                    .map(|index| keep_database(old, merged, index));
            }
        }
        listeners.push(listener);
    }
    listeners
}

/// The index in `merged` of a database of `old`, which is added if it has left the file.
fn keep_database(old: &Config, merged: &mut Config, index: usize) -> usize {
    let database = &old.databases[index];
    merged.database_index(&database.name).unwrap_or_else(|| {
        merged.databases.push(database.clone());
        merged.databases.len() - 1
    })
}
