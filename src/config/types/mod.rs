//! The validated configuration: what the rest of the crate sees.
//!
//! Owns: the types and every default. A value of these types came through validation, so names are resolved to indices,
//! numbers are in range and secrets are read. Never does: parse, read files, look at the machine.

mod words;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::address::{Endpoint, ListenAddress};
use super::secret::Secret;
use crate::limits::QUERY_WAIT_TIMEOUT;

pub use self::words::{
    Auth, AuthMethod, Blocking, Compare, Level, LogFormat, MirrorPoolMode, Pace, PoolMode,
    Protocol, Redact, RedisMode, SampleBy, TlsMode,
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The CPUs that data cores are pinned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// Every CPU that this process may run on.
    All,
    /// These CPU ids, each once, each available.
    List(Vec<usize>),
}

impl Cores {
    /// The CPU ids, given those that this process may run on.
    pub fn resolve(&self, available: &[usize]) -> Vec<usize> {
        match self {
            Self::All => available.to_vec(),
            Self::List(list) => list.clone(),
        }
    }
}

/// A whole validated configuration. Indices point into [`Config::databases`].
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[general]`
    pub general: General,
    /// `[ring]`
    pub ring: RingConfig,
    /// `[[listeners]]`, at least one.
    pub listeners: Vec<Listener>,
    /// `[[databases]]`, at least one; names are unique.
    pub databases: Vec<Database>,
    /// `[[mirroring]]`
    pub mirroring: Vec<Mirroring>,
    /// `[[dual_write]]`, at most one per primary.
    pub dual_write: Vec<DualWrite>,
    /// `[sentry]`
    pub sentry: Sentry,
    /// `[[users]]` of users.toml.
    pub users: Vec<User>,
}

/// A user name and what proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Login<'a> {
    /// The role to log in as.
    pub user: &'a str,
    /// Its password; none for trust, peer and certificates.
    pub password: Option<&'a Secret>,
}

impl Config {
    /// The index of the database with this name.
    pub fn database_index(&self, name: &str) -> Option<usize> {
        self.databases
            .iter()
            .position(|database| database.name == name)
    }

    /// The database that a mirroring copies to.
    pub fn destination(&self, mirroring: &Mirroring) -> &Database {
        &self.databases[mirroring.destination]
    }

    /// The mirrorings of one source.
    pub fn mirrors_of(&self, source: usize) -> impl Iterator<Item = &Mirroring> {
        self.mirroring
            .iter()
            .filter(move |mirroring| mirroring.source == source)
    }

    /// The dual write whose primary is this database.
    pub fn dual_write_of(&self, primary: usize) -> Option<&DualWrite> {
        self.dual_write.iter().find(|dual| dual.primary == primary)
    }

    /// The users.toml entry of a user on a database; `None` as the database is the admin console.
    pub fn user(&self, name: &str, database: Option<usize>) -> Option<&User> {
        self.users
            .iter()
            .find(|user| user.database == database && user.name == name)
    }

    /// How Parhelion logs in to a database on behalf of `client_user`: users.toml by (user, database), else the `user` of
    /// the `[[databases]]` entry. `None`: units of this user cannot be mirrored there.
    pub fn backend_login(&self, database: usize, client_user: &str) -> Option<Login<'_>> {
        let by_user = self
            .user(client_user, Some(database))
            .filter(|user| user.password.is_some() || user.scram_verifier.is_none())
            .map(|user| Login {
                user: &user.name,
                password: user.password.as_ref(),
            });
        by_user.or_else(|| self.databases.get(database).and_then(Database::login))
    }
}

/// `[general]`
#[derive(Clone, Debug, PartialEq)]
pub struct General {
    /// CPUs of the data cores.
    pub cores: Cores,
    /// Address of metrics, health, API and dashboard; `None` for `"off"`.
    pub control: Option<SocketAddr>,
    /// Units per client and mirror.
    pub mirror_queue: usize,
    /// Bytes per client and mirror.
    pub mirror_queue_bytes: usize,
    /// Bytes of all rings of one core together.
    pub mirror_memory: usize,
    /// Share of the units that are mirrored, 0.0 to 1.0.
    pub mirror_exposure: f64,
    /// Timing of the mirrors.
    pub pace: Pace,
    /// Longest time of one unit on a mirror.
    pub mirror_timeout: Duration,
    /// Who holds mirror connections.
    pub mirror_pool_mode: MirrorPoolMode,
    /// Longest time to connect and log in to a database.
    pub connect_timeout: Duration,
    /// Longest wait of a client for a pooled primary connection.
    pub query_wait_timeout: Duration,
    /// A client that says nothing for so long is closed; `None`: never.
    pub client_idle_timeout: Option<Duration>,
    /// From accept to a complete startup packet.
    pub client_login_timeout: Duration,
    /// Clients of one listener, over all cores; 0: as many as descriptors allow.
    pub max_connections: usize,
    /// Of those, how many from one address; 0: as many as come.
    pub max_connections_per_address: usize,
    /// Longest time between SIGTERM and the end.
    pub drain_timeout: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What callers of the control port must show; without it the port answers to this host only.
    pub control_token: Option<Secret>,
    /// Take changed files over without being told.
    pub watch_config: bool,
    /// What of divergences is shown as a hash.
    pub redact: Redact,
    /// Journal of divergences as JSON lines.
    pub divergence_log: Option<PathBuf>,
    /// Also publish the metric names of the Redis proxy that users come from.
    pub compat_metrics: bool,
}

impl Default for General {
    fn default() -> Self {
        Self {
            cores: Cores::All,
            control: Some(SocketAddr::from(([127, 0, 0, 1], 9191))),
            mirror_queue: 128,
            mirror_queue_bytes: MIB,
            mirror_memory: 256 * MIB,
            mirror_exposure: 1.0,
            pace: Pace::Transaction,
            mirror_timeout: Duration::from_secs(30),
            mirror_pool_mode: MirrorPoolMode::Unit,
            connect_timeout: Duration::from_secs(5),
            query_wait_timeout: QUERY_WAIT_TIMEOUT,
            client_idle_timeout: None,
            client_login_timeout: Duration::from_secs(60),
            max_connections: 0,
            max_connections_per_address: 0,
            drain_timeout: Duration::from_secs(30),
            log_format: LogFormat::Text,
            control_token: None,
            watch_config: false,
            redact: Redact::Off,
            divergence_log: None,
            compat_metrics: false,
        }
    }
}

/// `[ring]`, per core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Submission queue entries, a power of two.
    pub entries: u32,
    /// Receive buffers, a power of two (the kernel's rule for a buffer ring).
    pub slabs: u16,
    /// Bytes of one receive buffer, a power of two.
    pub slab_size: usize,
    /// How long a core spins before it sleeps.
    pub busy_poll: Duration,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            entries: 4096,
            slabs: 2048,
            slab_size: 16 * KIB,
            busy_poll: Duration::ZERO,
        }
    }
}

/// One entry of `[[listeners]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where clients connect.
    pub address: ListenAddress,
    /// What they speak.
    pub protocol: Protocol,
    /// Where every client goes; `None` on Postgres only: by the startup packet. Always set on Redis.
    pub database: Option<usize>,
    /// CPU ids that serve it, a subset of `general.cores`; `None`: all.
    pub cores: Option<Vec<usize>>,
    /// TLS towards clients.
    pub tls: Option<ListenerTls>,
}

/// TLS of a listener; its files were readable when it was validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// PEM certificate chain.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    /// PEM certificates that client certificates must chain to.
    pub client_ca: Option<PathBuf>,
    /// With `client_ca`: whether a client must show a certificate. Without TLS it cannot, so plaintext is refused too.
    pub client_cert_required: bool,
    /// Whether a Postgres client must ask for TLS. A Redis listener with TLS speaks nothing else anyway.
    pub required: bool,
}

/// One entry of `[[databases]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// What clients, mirrorings and the admin call it.
    pub name: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it is.
    pub endpoint: Endpoint,
    /// Its name on the server (Postgres). Empty: the one that the client asked for, which only `parhelion postgres`
    /// without `--database` means; never so from a file.
    pub database_name: String,
    /// How Parhelion itself logs in; `None` when empty.
    pub user: Option<String>,
    /// The password of `user` (for Redis also without a user: the default user's).
    pub password: Option<Secret>,
    /// Connections for mirrored work, all cores together.
    pub pool_size: usize,
    /// Who checks clients (Postgres).
    pub auth: Auth,
    /// How they are checked with [`Auth::Terminate`].
    pub auth_method: AuthMethod,
    /// Who holds primary connections (Postgres).
    pub pool_mode: PoolMode,
    /// TLS towards it.
    pub tls: TlsMode,
    /// PEM certificates that its certificate must chain to.
    pub tls_ca: Option<PathBuf>,
    /// The database number in which clients begin (Redis); a 0 of theirs means it too.
    pub db: u32,
}

impl Database {
    /// An entry with the defaults of the documentation.
    pub fn new(name: impl Into<String>, protocol: Protocol, endpoint: Endpoint) -> Self {
        let name = name.into();
        Self {
            database_name: name.clone(),
            name,
            protocol,
            endpoint,
            user: None,
            password: None,
            pool_size: 10,
            auth: Auth::Relay,
            auth_method: AuthMethod::Scram,
            pool_mode: PoolMode::Session,
            // Redis has no way to ask for TLS on an open connection.
            tls: match protocol {
                Protocol::Postgres => TlsMode::Prefer,
                Protocol::Redis => TlsMode::Disable,
            },
            tls_ca: None,
            db: 0,
        }
    }

    /// The login of the entry itself.
    pub fn login(&self) -> Option<Login<'_>> {
        let user = self.user.as_deref()?;
        Some(Login {
            user,
            password: self.password.as_ref(),
        })
    }
}

/// One entry of `[[mirroring]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirroring {
    /// Index of the database whose clients are mirrored.
    pub source: usize,
    /// Index of the mirror.
    pub destination: usize,
    /// Units per client, `general.mirror_queue` unless overridden.
    pub queue_length: usize,
    /// Share of the units, `general.mirror_exposure` unless overridden.
    pub exposure: f64,
    /// Whether `exposure` is this entry's own, so that a change of the general value does not touch it.
    pub exposure_is_own: bool,
    /// Whether `queue_length` is this entry's own.
    pub queue_length_is_own: bool,
    /// Which units.
    pub level: Level,
    /// What is compared.
    pub compare: Compare,
    /// A server of the primary's own kind: where it differs too, another mirror's mismatch is noise. Postgres only.
    pub control: bool,
}

impl Mirroring {
    /// An entry without overrides.
    pub fn new(source: usize, destination: usize, general: &General) -> Self {
        Self {
            source,
            destination,
            queue_length: general.mirror_queue,
            exposure: general.mirror_exposure,
            exposure_is_own: false,
            queue_length_is_own: false,
            level: Level::All,
            compare: Compare::Rows,
            control: false,
        }
    }
}

/// One entry of `[[dual_write]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct DualWrite {
    /// Index of the database that is authoritative in the first three modes.
    pub primary: usize,
    /// Index of the other one.
    pub secondary: usize,
    /// Which backend serves, which one follows.
    pub mode: RedisMode,
    /// Longest time of one write on the backend that follows.
    pub secondary_timeout: Duration,
    /// The same for scripts and functions.
    pub script_timeout: Duration,
    /// Longest time of a shadow read.
    pub shadow_timeout: Duration,
    /// Share of the reads that are repeated, 0.0 to 1.0.
    pub exposure: f64,
    /// What that share counts.
    pub sample_by: SampleBy,
    /// Rewrite what depends on chance or time into its effect.
    pub effects: bool,
    /// Blocking commands on the backend that follows.
    pub blocking: Blocking,
    /// Copy the keys of dropped writes again.
    pub repair: bool,
    /// Writes that may wait.
    pub queue_length: usize,
    /// Bytes that may wait.
    pub queue_bytes: usize,
    /// How far apart a message of both streams may be.
    pub pubsub_compare_window: Duration,
}

impl DualWrite {
    /// An entry with the defaults of the documentation.
    pub fn new(primary: usize, secondary: usize) -> Self {
        Self {
            primary,
            secondary,
            mode: RedisMode::DualWrite,
            secondary_timeout: Duration::from_secs(30),
            script_timeout: Duration::from_secs(300),
            shadow_timeout: Duration::from_secs(3),
            exposure: 1.0,
            sample_by: SampleBy::Request,
            effects: true,
            blocking: Blocking::Effects,
            repair: true,
            queue_length: 65_536,
            queue_bytes: 64 * MIB,
            pubsub_compare_window: Duration::from_secs(2),
        }
    }
}

/// `[sentry]`
#[derive(Clone, Debug, PartialEq)]
pub struct Sentry {
    /// Where events go; `None`: nowhere.
    pub dsn: Option<Secret>,
    /// The environment tag.
    pub environment: String,
    /// Share of the events, 0.0 to 1.0.
    pub sample_rate: f64,
}

impl Default for Sentry {
    fn default() -> Self {
        Self {
            dsn: None,
            environment: String::new(),
            sample_rate: 1.0,
        }
    }
}

/// One entry of users.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The role.
    pub name: String,
    /// Index of the database; `None`: the admin console (`database = "admin"`).
    pub database: Option<usize>,
    /// Its password, from the file itself or from `password_file`.
    pub password: Option<Secret>,
    /// `SCRAM-SHA-256$…` as in `pg_authid`: enough to check a client, not to log in.
    pub scram_verifier: Option<Secret>,
}
