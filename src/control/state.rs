//! What the control thread knows: counters, config, readiness, examples, commands.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use serde_json::Value;

use super::commands::Commands;
use super::divergences::DivergenceStore;
use crate::metrics::{MirrorTotal, Registry, Scrape};

/// What stands in for a secret wherever the config is shown.
pub const MASK: &str = "********";

/// Whether a candidate is ready, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// One word or a few.
    pub verdict: String,
    /// One sentence each.
    pub reasons: Vec<String>,
}

/// Judges a mirror by its numbers.
pub type Judge = dyn Fn(&MirrorTotal) -> Verdict + Send + Sync;

/// Shared by everything that runs on the control thread.
pub struct ControlState {
    /// All counters.
    pub registry: Arc<Registry>,
    /// Examples of divergences.
    pub divergences: Arc<DivergenceStore>,
    /// The effects of an operator's commands.
    pub commands: Arc<dyn Commands>,
    /// The version of the build.
    pub version: &'static str,
    judge: Box<Judge>,
    config: ArcSwap<Value>,
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
            version: env!("CARGO_PKG_VERSION"),
            judge,
            config: ArcSwap::from_pointee(Value::Null),
            token,
            started: SystemTime::now(),
            started_at: Instant::now(),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            compat_metrics: AtomicBool::new(false),
        }
    }

    /// Takes the config that is in force, to be shown; its secrets are masked here.
    pub fn set_config(&self, mut config: Value) {
        mask_secrets(&mut config);
        self.config.store(Arc::new(config));
    }

    /// The config that is in force, without its secrets.
    pub fn config(&self) -> Arc<Value> {
        self.config.load_full()
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
        (self.judge)(mirror)
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
