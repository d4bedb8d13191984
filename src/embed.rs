//! The dual-write proxy as a library: the concepts that users of the original know, under Rust names.
//!
//! ```no_run
//! use parhelion::embed::{ProxyConfig, ProxyMode};
//!
//! let config = ProxyConfig {
//!     mode: "dual-write-shadow".parse::<ProxyMode>()?,
//!     ..ProxyConfig::default()
//! };
//! config.serve()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | there | here |
//! |---|---|
//! | `ProxyConfig`, `DefaultConfig()` | [`ProxyConfig`] and its `Default` |
//! | `ProxyMode`, `ParseProxyMode` | [`ProxyMode`], `str::parse` |
//! | `ProxyServer.ListenAndServe` | [`ProxyConfig::serve`] |
//! | `CommandCategory`, `ClassifyCommand` | [`CommandCategory`], [`classify`] |
//! | `Divergence`, `DivergenceKind.String` | [`Divergence`], [`DivergenceKind`] and its `Display` |
//! | `DualWriter` | [`DualWriter`]: order, bounds and what is tainted; the sockets are the server's |
//! | `ShadowReader` | [`ShadowReader`] |
//! | `PubSubBackend` and its shadow | [`PubSubMatcher`]: the messages of both streams |
//! | `SentryReporter` | [`SentryReporter`] |
//! | `ProxyMetrics` | [`ProxyMetrics`] of a [`Registry`] |
//! | `Backend`, `RedisBackend`, `BackendOptions` | [`Backend`]: an entry of `[[databases]]` |

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use crate::config::{Database as Backend, RedisMode as ProxyMode};
pub use crate::control::DivergenceRecord as Divergence;
pub use crate::control::sentry::SentryReporter;
pub use crate::metrics::{MirrorMetrics as ProxyMetrics, Registry};
pub use crate::mirror::dual::pubsub::Matcher as PubSubMatcher;
pub use crate::mirror::dual::queue::DualQueue as DualWriter;
pub use crate::protocol::resp::command::{CommandCategory, classify};
pub use crate::protocol::resp::compare::{Comparison, DivergenceKind, compare};

use crate::config::{self, Config};
use crate::control::divergences::readable;
use crate::metrics;
use crate::protocol::resp::Request;
use crate::protocol::resp::command::lookup_request;
use crate::protocol::resp::effects::encode;

/// There is no such mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no mode; write one of primary-only, dual-write, dual-write-shadow, secondary-primary, secondary-only"
)]
pub struct UnknownMode(String);

impl FromStr for ProxyMode {
    type Err = UnknownMode;

    fn from_str(word: &str) -> Result<Self, UnknownMode> {
        ProxyMode::from_word(word).ok_or_else(|| UnknownMode(word.to_owned()))
    }
}

/// One primary and one secondary, with the defaults that users of the original know.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    /// Where clients connect.
    pub listen_addr: String,
    /// The backend that is authoritative in the first three modes.
    pub primary_addr: String,
    /// Its database.
    pub primary_db: u32,
    /// Its password; empty: none.
    pub primary_password: String,
    /// The other backend.
    pub secondary_addr: String,
    /// Its database.
    pub secondary_db: u32,
    /// Its password; empty: none.
    pub secondary_password: String,
    /// Who serves and who follows.
    pub mode: ProxyMode,
    /// Longest time of a write on the backend that follows.
    pub secondary_timeout: Duration,
    /// The same for scripts.
    pub script_timeout: Duration,
    /// Longest time of a shadow read.
    pub shadow_timeout: Duration,
    /// Where Sentry is; empty: nowhere.
    pub sentry_dsn: String,
    /// Sentry's environment tag.
    pub sentry_env: String,
    /// Share of the events that Sentry gets.
    pub sentry_sample_rate: f64,
    /// Metrics, health and control. Without a host it listens on loopback only, unlike the original: this port steers.
    pub metrics_addr: String,
    /// How far apart the two copies of a message may be.
    pub pubsub_compare_window: Duration,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            listen_addr: ":6479".to_owned(),
            primary_addr: "localhost:6379".to_owned(),
            primary_db: 0,
            primary_password: String::new(),
            secondary_addr: "localhost:6380".to_owned(),
            secondary_db: 0,
            secondary_password: String::new(),
            mode: ProxyMode::DualWrite,
            secondary_timeout: Duration::from_secs(30),
            script_timeout: Duration::from_secs(300),
            shadow_timeout: Duration::from_secs(3),
            sentry_dsn: String::new(),
            sentry_env: String::new(),
            sentry_sample_rate: 1.0,
            metrics_addr: ":9191".to_owned(),
            pubsub_compare_window: Duration::from_secs(2),
        }
    }
}

impl ProxyConfig {
    /// The configuration file that says the same.
    pub fn to_toml(&self) -> String {
        let at = |address: &str, host: &str| match address.strip_prefix(':') {
            Some(port) => format!("{host}:{port}"),
            None => address.to_owned(),
        };
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let database = |name: &str, address: &str, db: u32, password: &str| {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "6379"));
            let mut text = format!(
                "[[databases]]\nname = \"{name}\"\nprotocol = \"redis\"\nhost = {}\nport = {port}\ndb = {db}\n",
                quoted(host)
            );
            if !password.is_empty() {
                text += &format!("password = {}\n", quoted(password));
            }
            text
        };
        let mut text = format!(
            "[general]\ncontrol = {}\n",
            quoted(&at(&self.metrics_addr, "127.0.0.1"))
        );
        text += &format!(
            "[[listeners]]\naddress = {}\nprotocol = \"redis\"\ndatabase = \"primary\"\n",
            quoted(&at(&self.listen_addr, "0.0.0.0"))
        );
        text += &database(
            "primary",
            &self.primary_addr,
            self.primary_db,
            &self.primary_password,
        );
        text += &database(
            "secondary",
            &self.secondary_addr,
            self.secondary_db,
            &self.secondary_password,
        );
        text += &format!(
            "[[dual_write]]\nprimary = \"primary\"\nsecondary = \"secondary\"\nmode = \"{}\"\n\
             secondary_timeout = \"{}ms\"\nscript_timeout = \"{}ms\"\nshadow_timeout = \"{}ms\"\n\
             pubsub_compare_window = \"{}ms\"\n",
            self.mode,
            self.secondary_timeout.as_millis(),
            self.script_timeout.as_millis(),
            self.shadow_timeout.as_millis(),
            self.pubsub_compare_window.as_millis(),
        );
        if !self.sentry_dsn.is_empty() {
            text += &format!(
                "[sentry]\ndsn = {}\nenvironment = {}\nsample_rate = {:?}\n",
                quoted(&self.sentry_dsn),
                quoted(&self.sentry_env),
                self.sentry_sample_rate
            );
        }
        text
    }

    /// The validated configuration.
    ///
    /// # Errors
    /// What a configuration file with these values would be refused for.
    pub fn to_config(&self) -> Result<Config, Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("parhelion.toml");
        std::fs::write(&path, self.to_toml())?;
        Ok(config::load(
            &path,
            None,
            &crate::runtime::available_cpus(),
        )?)
    }

    /// Serves until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When the configuration is refused, or the cores do not start.
    pub fn serve(&self) -> Result<(), Box<dyn std::error::Error>> {
        let config = self.to_config()?;
        crate::runtime::serve::run(config, crate::runtime::serve::ConfigFiles::default())?;
        Ok(())
    }
}

/// Longest value in a [`Divergence`], in bytes.
const SHOWN_BYTES_MAX: usize = 256;

/// Compares what both backends answered to a read, counts, and tells Sentry. It reads nothing itself: the proxy's own
/// shadow reads wait for queued writes and are repeated before they count, which an embedder does for itself.
pub struct ShadowReader {
    metrics: Arc<ProxyMetrics>,
    sentry: Arc<SentryReporter>,
}

impl ShadowReader {
    /// Counts in `metrics`, which one thread alone may write, and reports to `sentry`.
    pub fn new(metrics: Arc<ProxyMetrics>, sentry: Arc<SentryReporter>) -> ShadowReader {
        ShadowReader { metrics, sentry }
    }

    /// The divergence between two complete RESP replies to one command, if they are comparable and differ.
    pub fn compare<A: AsRef<[u8]>>(
        &self,
        args: &[A],
        primary: &[u8],
        secondary: &[u8],
    ) -> Option<Divergence> {
        let mut bytes = Vec::new();
        encode(&mut bytes, args);
        let request = Request::parse(&bytes);
        let command = lookup_request(&request);
        let by_command = match command {
            Some(command) => self.metrics.commands.at(command.index(), command.name()),
            None => self.metrics.commands.other(),
        };
        let kind = match compare(command, &request, primary, secondary) {
            Comparison::Equal => {
                self.metrics.compared.add(1);
                return None;
            }
            Comparison::NotCompared => {
                self.metrics.not_compared.add(1);
                return None;
            }
            Comparison::Different(kind) => metrics::DivergenceKind::from(kind),
        };
        self.metrics.compared.add(1);
        self.metrics.diverge(kind);
        by_command.diverge(kind);
        let name = command.map_or("other", |command| command.name());
        self.sentry.capture_divergence(kind, name);
        let key = command
            .and_then(|command| command.keys(&request).next())
            .and_then(|at| request.arg(at))
            .unwrap_or_default();
        let shown = |bytes: &[u8]| readable(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Some(Divergence {
            at_unix_ms: u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
            source: self.metrics.source.to_string(),
            destination: self.metrics.destination.to_string(),
            kind,
            command: name.to_owned(),
            key: shown(key),
            pattern: String::new(),
            primary: shown(primary),
            mirror: shown(secondary),
            core: 0,
            client: String::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_original_and_make_a_valid_configuration() {
        let config = ProxyConfig::default().to_config().unwrap();
        let dual = &config.dual_write[0];
        assert_eq!(dual.mode, ProxyMode::DualWrite);
        assert_eq!(dual.secondary_timeout, Duration::from_secs(30));
        assert_eq!(dual.pubsub_compare_window, Duration::from_secs(2));
        assert_eq!(config.general.control.unwrap().port(), 9191);
    }

    #[test]
    fn modes_are_read_from_every_word_for_them() {
        for (word, mode) in [
            ("redis-only", ProxyMode::PrimaryOnly),
            ("primary-only", ProxyMode::PrimaryOnly),
            ("dual-write", ProxyMode::DualWrite),
            ("dual-write-shadow", ProxyMode::DualWriteShadow),
            ("elastickv-primary", ProxyMode::SecondaryPrimary),
            ("elastickv-only", ProxyMode::SecondaryOnly),
        ] {
            assert_eq!(word.parse(), Ok(mode));
        }
        assert!("dual".parse::<ProxyMode>().is_err());
    }

    #[test]
    fn the_kinds_of_divergences_have_the_names_of_the_original() {
        assert_eq!(DivergenceKind::MigrationGap.to_string(), "migration_gap");
        assert_eq!(DivergenceKind::DataMismatch.to_string(), "data_mismatch");
        assert_eq!(DivergenceKind::ExtraData.to_string(), "extra_data");
    }

    #[test]
    fn a_shadow_reader_counts_and_describes_what_differs() {
        let registry = Registry::new(vec![0]);
        let metrics = registry.mirror(0, "primary", "secondary", metrics::Protocol::Redis);
        let reader = ShadowReader::new(metrics.clone(), Arc::new(SentryReporter::off()));
        assert_eq!(
            reader.compare(
                &["SMEMBERS", "s"],
                b"*2\r\n+a\r\n+b\r\n",
                b"*2\r\n+b\r\n+a\r\n"
            ),
            None
        );
        assert_eq!(reader.compare(&["RANDOMKEY"], b"+a\r\n", b"+b\r\n"), None);
        let found = reader
            .compare(&["GET", "k"], b"$1\r\nv\r\n", b"$-1\r\n")
            .unwrap();
        assert_eq!(found.kind, metrics::DivergenceKind::MigrationGap);
        assert_eq!((&*found.command, &*found.key), ("GET", "k"));
        assert_eq!(
            (&*found.source, &*found.destination),
            ("primary", "secondary")
        );
        assert_eq!(
            metrics.divergences(metrics::DivergenceKind::MigrationGap),
            1
        );
        assert_eq!((metrics.compared.get(), metrics.not_compared.get()), (2, 1));
    }

    #[test]
    fn commands_are_classified_by_name_and_options() {
        let class = |line: &str| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            classify(words[0], words.iter().copied())
        };
        assert_eq!(class("get k"), CommandCategory::Read);
        assert_eq!(class("PUBLISH c m"), CommandCategory::Write);
        assert_eq!(
            class("XREAD BLOCK 5 STREAMS s 0"),
            CommandCategory::Blocking
        );
        assert_eq!(class("NO.SUCH k"), CommandCategory::Write);
    }
}
