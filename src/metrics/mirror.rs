//! What a core counts about a source database and about each mirror.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Protocol;
use super::command::CommandTable;
use super::error_table::ErrorTable;
use super::histogram::AtomicHistogram;
use super::query::QueryTable;
use crate::limits::{METRIC_COMMANDS_MAX, QUERY_FINGERPRINTS_MAX};
use crate::mirror::ledger::{Counter, Ledger};
use crate::protocol::resp::compare;

/// How a mirror's answer differed from the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum DivergenceKind {
    /// The mirror has nothing, the primary has data.
    MigrationGap,
    /// Both have data, and it differs.
    DataMismatch,
    /// The primary has nothing, the mirror has data.
    ExtraData,
    /// The mirror answered with an error where the primary did not.
    SecondaryError,
    /// The replies are of different types.
    TypeMismatch,
    /// Command tag, row count or SQLSTATE differ.
    StatusMismatch,
    /// The control mirror of the primary's own kind disagrees too: the statement is volatile.
    Noise,
    /// A mismatch that healed when it was read again: a race, not a difference.
    Transient,
}

impl DivergenceKind {
    /// Every kind, in the order of the counters.
    pub const ALL: [DivergenceKind; 8] = [
        DivergenceKind::MigrationGap,
        DivergenceKind::DataMismatch,
        DivergenceKind::ExtraData,
        DivergenceKind::SecondaryError,
        DivergenceKind::TypeMismatch,
        DivergenceKind::StatusMismatch,
        DivergenceKind::Noise,
        DivergenceKind::Transient,
    ];

    /// The label in metrics and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            DivergenceKind::MigrationGap => "migration_gap",
            DivergenceKind::DataMismatch => "data_mismatch",
            DivergenceKind::ExtraData => "extra_data",
            DivergenceKind::SecondaryError => "secondary_error",
            DivergenceKind::TypeMismatch => "type_mismatch",
            DivergenceKind::StatusMismatch => "status_mismatch",
            DivergenceKind::Noise => "noise",
            DivergenceKind::Transient => "transient",
        }
    }

    /// Whether it says that the candidate is different; noise and races do not.
    pub const fn is_real(self) -> bool {
        !matches!(self, DivergenceKind::Noise | DivergenceKind::Transient)
    }
}

impl From<compare::DivergenceKind> for DivergenceKind {
    fn from(kind: compare::DivergenceKind) -> DivergenceKind {
        match kind {
            compare::DivergenceKind::MigrationGap => DivergenceKind::MigrationGap,
            compare::DivergenceKind::DataMismatch => DivergenceKind::DataMismatch,
            compare::DivergenceKind::ExtraData => DivergenceKind::ExtraData,
            compare::DivergenceKind::SecondaryError => DivergenceKind::SecondaryError,
            compare::DivergenceKind::TypeMismatch => DivergenceKind::TypeMismatch,
        }
    }
}

/// One source database on one core.
#[derive(Debug)]
pub struct SourceMetrics {
    /// The name in the config.
    pub name: Box<str>,
    /// What it speaks.
    pub protocol: Protocol,
    /// Requests (Redis) or transactions (Postgres) completed.
    pub requests: Counter,
    /// Error replies of the primary, by class.
    pub errors: ErrorTable,
    /// From the request's last byte sent to the primary to the reply's last byte received.
    pub latency: AtomicHistogram,
    /// Gauge: clients of this database.
    pub active_clients: Counter,
    /// Writes that the primary answered with an error or not at all (Redis).
    pub write_errors: Counter,
    /// Reads that the primary answered with an error or not at all (Redis).
    pub read_errors: Counter,
    /// Gauge: connections to the primary.
    pub connections_open: Counter,
    /// Gauge: of these, those that wait for work.
    pub connections_idle: Counter,
    /// Connections to the primary that were dialled again after a loss.
    pub reconnects: Counter,
    /// By command (Redis only).
    pub commands: CommandTable,
    /// The same of the secondary of a dual write, while that is in front.
    pub secondary_commands: CommandTable,
}

impl SourceMetrics {
    pub(super) fn new(name: &str, protocol: Protocol) -> Self {
        Self {
            name: name.into(),
            protocol,
            requests: Counter::default(),
            errors: ErrorTable::default(),
            latency: AtomicHistogram::default(),
            active_clients: Counter::default(),
            write_errors: Counter::default(),
            read_errors: Counter::default(),
            connections_open: Counter::default(),
            connections_idle: Counter::default(),
            reconnects: Counter::default(),
            commands: CommandTable::new(command_slots(protocol)),
            secondary_commands: CommandTable::new(command_slots(protocol)),
        }
    }

    /// Whether a client was ever served.
    pub(super) fn is_used(&self) -> bool {
        self.requests.get() + self.active_clients.get() + self.errors.total() > 0
    }
}

/// Counts a connection to a primary for as long as it is kept.
#[derive(Debug)]
pub struct OpenConnection(Arc<SourceMetrics>);

impl OpenConnection {
    /// Counts one more. Only the owning core may call this, and drop it.
    pub fn of(metrics: &Arc<SourceMetrics>) -> OpenConnection {
        metrics.connections_open.add(1);
        OpenConnection(Arc::clone(metrics))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections_open.sub(1);
    }
}

/// One mirror on one core.
#[derive(Debug)]
pub struct MirrorMetrics {
    /// The source database's name in the config.
    pub source: Box<str>,
    /// The destination's name in the config.
    pub destination: Box<str>,
    /// What both speak.
    pub protocol: Protocol,
    /// Where every unit ended.
    pub ledger: Arc<Ledger>,
    /// From the unit's last byte sent to the mirror to its reply's last byte received.
    pub latency: AtomicHistogram,
    /// The primary's latency for the units that were delivered: the fair counterpart of `latency`.
    pub primary_latency: AtomicHistogram,
    /// From sealed to the first byte sent.
    pub queue_delay: AtomicHistogram,
    /// Replies compared.
    pub compared: Counter,
    /// Replies delivered and not compared: compare is off, volatile, too large.
    pub not_compared: Counter,
    divergences: [Counter; DivergenceKind::ALL.len()],
    /// Error replies of the mirror, by class.
    pub errors: ErrorTable,
    /// Gauge: units in this mirror's rings.
    pub queued_units: Counter,
    /// Gauge: bytes in this mirror's rings.
    pub queued_bytes: Counter,
    /// Gauge: connections to the mirror.
    pub connections_open: Counter,
    /// Gauge: of these, those that wait for work.
    pub connections_idle: Counter,
    /// Connections that were dialled again after a loss.
    pub reconnects: Counter,
    /// Units that ended by `mirror_timeout`.
    pub unit_timeouts: Counter,
    /// Units that waited for a free connection.
    pub pool_waits: Counter,
    /// Shadow reads that failed: error, timeout, connection lost (Redis).
    pub shadow_read_errors: Counter,
    /// Keys waiting for repair (Redis; gauge).
    pub tainted_keys: Counter,
    /// Keys repaired (Redis).
    pub repaired_keys: Counter,
    /// Gauge: the mode of a dual write that is in force, counted from 1; 0: this is none (Redis).
    pub mode: Counter,
    /// Shadow subscriptions that failed (Redis).
    pub pubsub_errors: Counter,
    /// Messages that only the primary's subscription saw (Redis).
    pub pubsub_missing: Counter,
    /// Messages that only the mirror's subscription saw (Redis).
    pub pubsub_extra: Counter,
    /// By command (Redis only).
    pub commands: CommandTable,
    /// The same of the primary of a dual write, while it follows the secondary.
    pub following_primary: CommandTable,
    /// The primary's answers to the same commands: the fair counterpart of `commands`.
    pub primary_commands: CommandTable,
    /// By query fingerprint (Postgres only).
    pub queries: QueryTable,
    /// What is shared by all cores: exposure, pause, bounds.
    pub settings: Arc<MirrorSettings>,
}

impl MirrorMetrics {
    pub(super) fn new(
        source: &str,
        destination: &str,
        protocol: Protocol,
        settings: Arc<MirrorSettings>,
    ) -> Self {
        Self {
            source: source.into(),
            destination: destination.into(),
            protocol,
            ledger: Arc::default(),
            latency: AtomicHistogram::default(),
            primary_latency: AtomicHistogram::default(),
            queue_delay: AtomicHistogram::default(),
            compared: Counter::default(),
            not_compared: Counter::default(),
            divergences: Default::default(),
            errors: ErrorTable::default(),
            queued_units: Counter::default(),
            queued_bytes: Counter::default(),
            connections_open: Counter::default(),
            connections_idle: Counter::default(),
            reconnects: Counter::default(),
            unit_timeouts: Counter::default(),
            pool_waits: Counter::default(),
            shadow_read_errors: Counter::default(),
            tainted_keys: Counter::default(),
            repaired_keys: Counter::default(),
            mode: Counter::default(),
            pubsub_errors: Counter::default(),
            pubsub_missing: Counter::default(),
            pubsub_extra: Counter::default(),
            commands: CommandTable::new(command_slots(protocol)),
            following_primary: CommandTable::new(command_slots(protocol)),
            primary_commands: CommandTable::new(command_slots(protocol)),
            queries: QueryTable::new(query_slots(protocol)),
            settings,
        }
    }

    /// Counts a divergence. Only the owning core may call this.
    pub fn diverge(&self, kind: DivergenceKind) {
        self.divergences[kind as usize].add(1);
    }

    /// Divergences of this kind.
    pub fn divergences(&self, kind: DivergenceKind) -> u64 {
        self.divergences[kind as usize].get()
    }
}

/// What is in force for one mirror on all cores; the control thread writes it, anybody reads it.
#[derive(Debug, Default)]
pub struct MirrorSettings {
    exposure_bits: AtomicU64,
    paused: AtomicBool,
    secondary: AtomicBool,
    queue_units_max: AtomicU64,
    queue_bytes_max: AtomicU64,
}

impl MirrorSettings {
    /// Whether it is the secondary of a dual write: complete, in order, never paused.
    pub fn is_secondary(&self) -> bool {
        self.secondary.load(Ordering::Relaxed)
    }

    /// Says what it is.
    pub fn set_secondary(&self, secondary: bool) {
        self.secondary.store(secondary, Ordering::Relaxed);
    }

    /// The share of units offered to the mirror, 0 to 1.
    pub fn exposure(&self) -> f64 {
        f64::from_bits(self.exposure_bits.load(Ordering::Relaxed))
    }

    /// Sets the exposure; what is not a number counts as 0, the rest is clamped to 0 … 1.
    pub fn set_exposure(&self, exposure: f64) {
        let exposure = if exposure.is_nan() { 0.0 } else { exposure };
        self.exposure_bits
            .store(exposure.clamp(0.0, 1.0).to_bits(), Ordering::Relaxed);
    }

    /// Whether the mirror is paused.
    pub fn paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Pauses or resumes.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// The bounds of one client's ring: units, bytes.
    pub fn queue_bounds(&self) -> (u64, u64) {
        (
            self.queue_units_max.load(Ordering::Relaxed),
            self.queue_bytes_max.load(Ordering::Relaxed),
        )
    }

    /// Sets the bounds of one client's ring.
    pub fn set_queue_bounds(&self, units: u64, bytes: u64) {
        self.queue_units_max.store(units, Ordering::Relaxed);
        self.queue_bytes_max.store(bytes, Ordering::Relaxed);
    }
}

fn command_slots(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Redis => METRIC_COMMANDS_MAX,
        Protocol::Postgres => 0,
    }
}

fn query_slots(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Redis => 0,
        Protocol::Postgres => QUERY_FINGERPRINTS_MAX,
    }
}
