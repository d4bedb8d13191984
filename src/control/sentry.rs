//! Divergences and failures of secondaries, told to Sentry.
//!
//! Lives on the control side; a core never waits for it. One event per fingerprint and minute, at most 10,000
//! fingerprints at a time: a candidate that is wrong in everything must not become a flood. A key or a value is never
//! sent. Off with an empty DSN.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sentry::protocol::{Event, Level};
use sentry::{Client, ClientOptions, Hub, Scope};

use crate::config;
use crate::limits::{SENTRY_COOLDOWN_NS, SENTRY_FINGERPRINTS_MAX};
use crate::metrics::DivergenceKind;
use crate::mirror::rate_limit::RateLimit;

/// The DSN is none.
#[derive(Debug, thiserror::Error)]
#[error("the Sentry DSN is not valid: {0}")]
pub struct BadDsn(String);

/// Tells Sentry, unless it is off.
pub struct SentryReporter {
    hub: Option<Hub>,
    cooldown: Mutex<RateLimit>,
    started: Instant,
}

impl SentryReporter {
    /// Reports to nobody.
    pub fn off() -> SentryReporter {
        SentryReporter {
            hub: None,
            cooldown: Mutex::new(RateLimit::new(SENTRY_COOLDOWN_NS, SENTRY_FINGERPRINTS_MAX)),
            started: Instant::now(),
        }
    }

    /// Reports to `dsn`; an empty one turns reporting off. `sample_rate` is the share of the events, 0.0 to 1.0.
    ///
    /// # Errors
    /// When the DSN cannot be read.
    pub fn new(dsn: &str, environment: &str, sample_rate: f64) -> Result<SentryReporter, BadDsn> {
        let mut reporter = SentryReporter::off();
        if dsn.is_empty() {
            return Ok(reporter);
        }
        let parsed: sentry::types::Dsn = dsn.parse().map_err(|error| BadDsn(format!("{error}")))?;
        // Its panic hook and its contexts are not ours to install in a library.
        let mut options = ClientOptions::new()
            .dsn(&parsed.to_string())
            .release(concat!("parhelion@", env!("CARGO_PKG_VERSION")))
            .sample_rate(sample_rate.clamp(0.0, 1.0) as f32)
            .default_integrations(false);
        if !environment.is_empty() {
            options = options.environment(environment.to_owned());
        }
        let client = Client::from(sentry::apply_defaults(options));
        reporter.hub = Some(Hub::new(Some(Arc::new(client)), Arc::new(Scope::default())));
        Ok(reporter)
    }

    /// As the configuration says. A DSN that cannot be read is logged, not fatal: the proxy matters more.
    pub fn from_config(config: &config::Sentry) -> SentryReporter {
        let dsn = config.dsn.as_ref().map_or("", |dsn| dsn.expose());
        SentryReporter::new(dsn, &config.environment, config.sample_rate).unwrap_or_else(|error| {
            tracing::error!(%error, "Sentry is off");
            SentryReporter::off()
        })
    }

    /// Whether anything is reported at all.
    pub fn is_on(&self) -> bool {
        self.hub.is_some()
    }

    /// A divergence: warning, grouped by kind and command.
    pub fn capture_divergence(&self, kind: DivergenceKind, command: &str) {
        let fingerprint = ["divergence", kind.as_str(), command];
        let message = format!("divergence: {kind} in {command}", kind = kind.as_str());
        let tags = [("kind", kind.as_str()), ("command", command)];
        self.capture(Level::Warning, &fingerprint, message, &tags);
    }

    /// A failure of a secondary, for instance of the operation `write`: error, grouped by operation and command.
    pub fn capture_failure(&self, operation: &str, command: &str, problem: &str) {
        let message = format!("{operation} failed in {command}: {problem}");
        let tags = [("operation", operation), ("command", command)];
        self.capture(Level::Error, &[operation, command], message, &tags);
    }

    /// Whether an event with this fingerprint is due: Sentry is on, and there was none for a minute. Notes it as sent.
    pub fn should_report(&self, fingerprint: &[&str]) -> bool {
        if self.hub.is_none() {
            return false;
        }
        let hash = xxhash_rust::xxh3::xxh3_64(fingerprint.join("\0").as_bytes());
        // The clock begins one interval in: the first sweep is as good as any later one.
        let now_ns = SENTRY_COOLDOWN_NS + self.started.elapsed().as_nanos() as u64;
        let mut cooldown = self.cooldown.lock().unwrap_or_else(PoisonError::into_inner);
        cooldown.admit(hash, now_ns).is_some()
    }

    /// Reports that were given up because there were too many fingerprints at once.
    pub fn dropped(&self) -> u64 {
        self.cooldown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .overflowed()
    }

    /// Waits until everything has been sent; false if `timeout` was too short.
    pub fn flush(&self, timeout: Duration) -> bool {
        let client = self.hub.as_ref().and_then(Hub::client);
        client.is_none_or(|client| client.flush(Some(timeout)))
    }

    fn capture(&self, level: Level, fingerprint: &[&str], message: String, tags: &[(&str, &str)]) {
        let Some(hub) = self
            .hub
            .as_ref()
            .filter(|_| self.should_report(fingerprint))
        else {
            return;
        };
        let mut event = Event {
            level,
            message: Some(message),
            logger: Some("parhelion".to_owned()),
            ..Event::default()
        };
        event.fingerprint = fingerprint
            .iter()
            .map(|part| Cow::Owned((*part).to_owned()))
            .collect::<Vec<_>>()
            .into();
        event.tags = tags
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        hub.capture_event(event);
    }
}
