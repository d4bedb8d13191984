//! What the control thread knows: counters, config, readiness, examples, commands.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::changes::Changes;
use super::commands::{CommandError, Commands, EVERY, Operation, Who};
use super::divergences::DivergenceStore;
use super::timeline::Timeline;
use super::{latency, queries, report, samples, view};
use crate::metrics::{MirrorTotal, Registry, Scrape};

/// What stands in for a secret wherever the config is shown.
pub const MASK: &str = "********";

/// Longest ring that an operator can ask for; the config's own bound.
const QUEUE_UNITS_MAX: u64 = 1 << 20;

/// Whether a candidate is ready, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// One word or a few.
    pub verdict: String,
    /// Why it is not ready; one sentence each.
    pub reasons: Vec<String>,
    /// What was looked at, favourable or not.
    pub rests_on: Vec<String>,
}

/// Judges a mirror by its numbers and the time that it was watched.
pub type Judge = dyn Fn(&MirrorTotal, Duration) -> Verdict + Send + Sync;

/// Shared by everything that runs on the control thread.
pub struct ControlState {
    /// All counters.
    pub registry: Arc<Registry>,
    /// Examples of divergences.
    pub divergences: Arc<DivergenceStore>,
    /// The effects of an operator's commands.
    pub commands: Arc<dyn Commands>,
    /// How the mirrors fared over time.
    pub timeline: Timeline,
    /// What operators changed.
    pub changes: Changes,
    /// The version of the build.
    pub version: &'static str,
    judge: Box<Judge>,
    token: Option<String>,
    started: SystemTime,
    started_at: Instant,
    ready: AtomicBool,
    draining: AtomicBool,
    compat_metrics: AtomicBool,
}

impl fmt::Debug for ControlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlState")
            .field("version", &self.version)
            .field("ready", &self.ready)
            .field("draining", &self.draining)
            .finish_non_exhaustive()
    }
}

impl ControlState {
    /// A state that is not ready yet. Without a `token` the API answers to loopback only; with one every caller
    /// must show it.
    pub fn new(
        registry: Arc<Registry>,
        divergences: Arc<DivergenceStore>,
        commands: Arc<dyn Commands>,
        judge: Box<Judge>,
        token: Option<String>,
    ) -> Self {
        Self {
            registry,
            divergences,
            commands,
            timeline: Timeline::default(),
            changes: Changes::default(),
            version: env!("CARGO_PKG_VERSION"),
            judge,
            token,
            started: SystemTime::now(),
            started_at: Instant::now(),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            compat_metrics: AtomicBool::new(false),
        }
    }

    /// The config that is in force, without its secrets.
    pub fn config(&self) -> Value {
        let mut config = self.commands.config().unwrap_or(Value::Null);
        mask_secrets(&mut config);
        config
    }

    /// Carries out what an operator asks, on whichever surface, and logs who changed what. Blocks for as long as the
    /// cores need.
    ///
    /// # Errors
    /// See [`CommandError`]; nothing has changed then, but for "every mirror", which stops at the first refusal.
    pub fn perform(&self, who: &Who, operation: &Operation) -> Result<Value, CommandError> {
        let result = self.carry_out(operation);
        if operation.changes() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let at_unix_ms = now.map_or(0, |d| d.as_millis() as u64);
            self.changes.note(at_unix_ms, who, operation, &result);
            let (what, subject) = (operation.name(), operation.subject());
            match &result {
                Ok(answer) => tracing::info!(by = %who, what, subject, %answer, "operator command"),
                Err(error) => {
                    tracing::warn!(by = %who, what, subject, %error, "operator command refused");
                }
            }
        }
        result
    }

    fn carry_out(&self, operation: &Operation) -> Result<Value, CommandError> {
        let commands = &*self.commands;
        match operation {
            Operation::Status => Ok(view::status(self)),
            Operation::Config => Ok(self.config()),
            Operation::Databases => Ok(view::databases(self)),
            Operation::Mirrors => Ok(view::mirrors(self)),
            Operation::Divergences(filter) => Ok(view::divergences(self, filter)),
            Operation::Queries(filter) => queries::queries(self, filter),
            Operation::Latency(filter) => latency::latency(self, filter),
            Operation::Report => Ok(report::report_json(self)),
            Operation::Metrics(filter) => Ok(samples::metrics(self, filter)),
            Operation::Changes => Ok(self.changes.shown()),
            Operation::Clients => commands.clients(),
            Operation::Servers => commands.servers(),
            Operation::SetExposure { mirror, exposure } => {
                if !(0.0..=1.0).contains(exposure) {
                    return Err(CommandError::Invalid(format!(
                        "exposure is a share from 0.0 to 1.0, not {exposure}; write e.g. 0.1 for 10 %"
                    )));
                }
                self.each(mirror, commands.secondaries()?, |name| {
                    commands.set_exposure(name, *exposure)
                })
            }
            Operation::SetQueue { mirror, units } => {
                if !(1..=QUEUE_UNITS_MAX).contains(units) {
                    return Err(CommandError::Invalid(format!(
                        "a ring holds 1 to {QUEUE_UNITS_MAX} units, not {units}"
                    )));
                }
                self.each(mirror, commands.secondaries()?, |name| {
                    commands.set_queue(name, *units)
                })
            }
            Operation::Pause { mirror } => {
                self.each(mirror, Vec::new(), |name| commands.pause(name))
            }
            Operation::Resume { mirror } => {
                self.each(mirror, Vec::new(), |name| commands.resume(name))
            }
            Operation::Reconnect { mirror } => {
                self.each(mirror, Vec::new(), |name| commands.reconnect(name))
            }
            Operation::SetMode { name, mode } => commands.set_mode(name, mode),
            Operation::Reload => commands.reload(),
            Operation::Drain => commands.drain(),
            Operation::Shutdown => commands.shutdown(),
        }
    }

    /// Does it to the mirror of this name or to every mirror and `more`.
    fn each(
        &self,
        name: &str,
        more: Vec<String>,
        run: impl Fn(&str) -> Result<Value, CommandError>,
    ) -> Result<Value, CommandError> {
        if name != EVERY {
            return run(name);
        }
        let mut names = self.commands.mirrors()?;
        names.extend(more);
        let answers: Result<Vec<Value>, CommandError> =
            names.iter().map(|name| run(name)).collect();
        Ok(serde_json::json!({ "mirrors": answers? }))
    }

    /// The ends of the mirror of this name.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn resolve_mirror(&self, name: &str) -> Result<(String, String), CommandError> {
        let ends = self.registry.resolve_mirror(name);
        ends.ok_or_else(|| CommandError::Unknown {
            what: "mirror",
            name: name.to_owned(),
            known: self
                .registry
                .mirrors()
                .into_iter()
                .map(|m| m.name)
                .collect(),
        })
    }

    /// Says that every core accepts.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Says that no new clients are taken.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
    }

    /// Says whether /metrics carries the `proxy_` names too.
    pub fn set_compat_metrics(&self, on: bool) {
        self.compat_metrics.store(on, Ordering::Relaxed);
    }

    /// Whether /metrics carries the `proxy_` names too.
    pub fn compat_metrics(&self) -> bool {
        self.compat_metrics.load(Ordering::Relaxed)
    }

    /// Whether new clients are welcome.
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.draining()
    }

    /// Whether the process is on its way out.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Seconds since the state was made.
    pub fn uptime_seconds(&self) -> f64 {
        self.started_at.elapsed().as_secs_f64()
    }

    /// The start, in seconds since 1970.
    pub fn started_unix(&self) -> f64 {
        let since = self.started.duration_since(UNIX_EPOCH);
        since.map_or(0.0, |d| d.as_secs_f64())
    }

    /// Notes how the mirrors fare; to be called every second.
    pub fn note_time(&self) {
        let at_seconds = self.started_at.elapsed().as_secs();
        self.timeline.note(at_seconds, || self.registry.mirrors());
    }

    /// Reads all counters.
    pub fn scrape(&self) -> Scrape {
        Scrape::take(
            &self.registry,
            self.version,
            self.started_unix(),
            self.ready(),
        )
    }

    /// What the numbers of a mirror say about its readiness.
    pub fn judge(&self, mirror: &MirrorTotal) -> Verdict {
        (self.judge)(mirror, self.started_at.elapsed())
    }

    /// Whether a token is required.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether this is the token, in a time that does not depend on how much of it is right.
    pub fn token_matches(&self, given: &str) -> bool {
        let Some(token) = &self.token else {
            return false;
        };
        let differing = token
            .bytes()
            .zip(given.bytes())
            .fold(0, |differing, (a, b)| differing | (a ^ b));
        differing == 0 && token.len() == given.len() && !token.is_empty()
    }
}

/// Replaces the value of every key that names a secret. File names stay: they help and give nothing away.
pub fn mask_secrets(config: &mut Value) {
    // The config is ours and a few levels deep; the list keeps this free of recursion all the same.
    let mut open = vec![config];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => {
                for (key, field) in fields {
                    let shown = field.is_null() || field.as_str() == Some("");
                    if is_secret(key) && !shown {
                        *field = Value::String(MASK.to_owned());
                    } else {
                        open.push(field);
                    }
                }
            }
            _ => {}
        }
    }
}

fn is_secret(key: &str) -> bool {
    const SECRET_PARTS: [&str; 5] = ["password", "secret", "token", "dsn", "verifier"];
    let key = key.to_ascii_lowercase();
    !key.ends_with("_file") && SECRET_PARTS.iter().any(|part| key.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_masked_at_any_depth_and_file_names_stay() {
        let mut config = json!({
            "sentry": {"dsn": "https://k@h/1"},
            "databases": [{"password": "hunter2", "password_file": "/run/pw", "user": "u"}],
            "users": [{"scram_verifier": "SCRAM-SHA-256$x", "password": ""}],
        });
        mask_secrets(&mut config);
        let text = config.to_string();
        for secret in ["hunter2", "k@h", "SCRAM-SHA"] {
            assert!(!text.contains(secret), "{secret} is shown");
        }
        assert_eq!(config["databases"][0]["password_file"], "/run/pw");
        assert_eq!(config["users"][0]["password"], "");
    }
}
