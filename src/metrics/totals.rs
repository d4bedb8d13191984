//! The cores' numbers added up: what /metrics, the API, the dashboard and the report show.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::command::{CommandTable, CommandTotal};
use super::error_table::ErrorTable;
use super::histogram::{self, AtomicHistogram};
use super::{CoreMetrics, DivergenceKind, MirrorMetrics, Protocol, SourceMetrics};
use crate::mirror::ledger::{Ledger, LedgerSnapshot};

/// A latency distribution added up over the cores.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Nanoseconds.
    pub histogram: Histogram<u64>,
    /// The sum of all values in nanoseconds.
    pub sum_ns: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            histogram: histogram::empty(),
            sum_ns: 0,
        }
    }
}

impl Latency {
    pub(super) fn add(&mut self, other: &AtomicHistogram) {
        other.snapshot_into(&mut self.histogram);
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns());
    }

    /// The value below which the share `quantile` of all lies, in nanoseconds; 0 if there is none.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        self.histogram.value_at_quantile(quantile)
    }
}

/// One core's own numbers at one time.
#[derive(Clone, Debug, Default)]
pub struct CoreTotal {
    /// The CPU id.
    pub core: usize,
    /// By protocol, in the order of [`Protocol::ALL`].
    pub listeners: [ListenerTotal; Protocol::ALL.len()],
    /// Turns of the driver.
    pub ring_turns: u64,
    /// `io_uring_enter` calls.
    pub ring_enters: u64,
    /// Completions.
    pub ring_cqes: u64,
    /// Submissions.
    pub ring_sqes: u64,
    /// Most submissions of one turn.
    pub ring_sqes_max: u64,
    /// Most completions of one turn.
    pub ring_cqes_max: u64,
    /// Length of the submission queue.
    pub ring_entries: u64,
    /// Receives that found no buffer.
    pub ring_enobufs: u64,
    /// Accepts that failed.
    pub ring_accept_errors: u64,
    /// Nanoseconds at work.
    pub busy_ns: u64,
    /// Nanoseconds waiting.
    pub idle_ns: u64,
    /// Sessions that ended in a panic.
    pub session_panics: u64,
    /// Events dropped.
    pub event_drops: u64,
    /// Receive buffers in use.
    pub slabs_used: u64,
    /// Receive buffers there are.
    pub slabs_capacity: u64,
    /// Bytes in mirror rings.
    pub mirror_memory_used: u64,
    /// Their bound.
    pub mirror_memory_capacity: u64,
}

/// The client side of one protocol on one core at one time.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenerTotal {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed.
    pub closed: u64,
    /// Connections turned away.
    pub refused: u64,
    /// Connections open.
    pub active: u64,
    /// Bytes from clients.
    pub client_bytes_in: u64,
    /// Bytes to clients.
    pub client_bytes_out: u64,
    /// Bytes from primaries.
    pub primary_bytes_in: u64,
    /// Bytes to primaries.
    pub primary_bytes_out: u64,
}

impl CoreTotal {
    pub(super) fn of(core: &CoreMetrics) -> Self {
        Self {
            core: core.core,
            listeners: Protocol::ALL.map(|protocol| {
                let l = core.listener(protocol);
                ListenerTotal {
                    accepted: l.accepted.get(),
                    closed: l.closed.get(),
                    refused: l.refused.get(),
                    active: l.active.get(),
                    client_bytes_in: l.client_bytes_in.get(),
                    client_bytes_out: l.client_bytes_out.get(),
                    primary_bytes_in: l.primary_bytes_in.get(),
                    primary_bytes_out: l.primary_bytes_out.get(),
                }
            }),
            ring_turns: core.ring.turns.get(),
            ring_enters: core.ring.enters.get(),
            ring_cqes: core.ring.cqes.get(),
            ring_sqes: core.ring.sqes.get(),
            ring_sqes_max: core.ring.sqes_max.get(),
            ring_cqes_max: core.ring.cqes_max.get(),
            ring_entries: core.ring.entries.get(),
            ring_enobufs: core.ring.enobufs.get(),
            ring_accept_errors: core.ring.accept_errors.get(),
            busy_ns: core.busy_ns.get(),
            idle_ns: core.idle_ns.get(),
            session_panics: core.session_panics.get(),
            event_drops: core.event_drops.get(),
            slabs_used: core.slabs_used.get(),
            slabs_capacity: core.slabs_capacity.get(),
            mirror_memory_used: core.mirror_memory_used.get(),
            mirror_memory_capacity: core.mirror_memory_capacity.get(),
        }
    }
}

/// One source database, all cores together.
#[derive(Clone, Debug)]
pub struct SourceTotal {
    /// The name in the config.
    pub name: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Requests or transactions.
    pub requests: u64,
    /// Error replies by class.
    pub errors: BTreeMap<String, u64>,
    /// The primary's latency.
    pub latency: Latency,
    /// Clients.
    pub active_clients: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Connections to the primary.
    pub connections_open: u64,
    /// Of these idle.
    pub connections_idle: u64,
    /// Dialled again.
    pub reconnects: u64,
    /// By command.
    pub commands: ByCommand,
    /// The same of the secondary of a dual write, while that is in front.
    pub secondary_commands: ByCommand,
}

/// Numbers by command.
pub type ByCommand = BTreeMap<&'static str, CommandTotal>;

fn together(one: &ByCommand, other: &ByCommand) -> ByCommand {
    let mut sum = one.clone();
    for (command, total) in other {
        sum.entry(command).or_default().merge(total);
    }
    sum
}

impl SourceTotal {
    /// By command, whoever was in front.
    pub fn all_commands(&self) -> ByCommand {
        together(&self.commands, &self.secondary_commands)
    }

    pub(super) fn merge<'a>(cores: impl Iterator<Item = &'a SourceMetrics>) -> Self {
        let mut total = Self {
            name: String::new(),
            protocol: Protocol::Postgres,
            requests: 0,
            errors: BTreeMap::new(),
            latency: Latency::default(),
            active_clients: 0,
            write_errors: 0,
            read_errors: 0,
            connections_open: 0,
            connections_idle: 0,
            reconnects: 0,
            commands: BTreeMap::new(),
            secondary_commands: BTreeMap::new(),
        };
        for core in cores {
            if total.name.is_empty() {
                total.name = core.name.to_string();
                total.protocol = core.protocol;
            }
            total.requests += core.requests.get();
            add_errors(&mut total.errors, &core.errors);
            total.latency.add(&core.latency);
            total.active_clients += core.active_clients.get();
            total.write_errors += core.write_errors.get();
            total.read_errors += core.read_errors.get();
            total.connections_open += core.connections_open.get();
            total.connections_idle += core.connections_idle.get();
            total.reconnects += core.reconnects.get();
            add_commands(&mut total.commands, &core.commands);
            add_commands(&mut total.secondary_commands, &core.secondary_commands);
        }
        total
    }

    /// Error replies of all classes.
    pub fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// One mirror, all cores together.
#[derive(Clone, Debug)]
pub struct MirrorTotal {
    /// What commands call it: the destination, or `source:destination` where that is not unique.
    pub name: String,
    /// The source database.
    pub source: String,
    /// The destination.
    pub destination: String,
    /// What both speak.
    pub protocol: Protocol,
    /// Where every unit ended.
    pub ledger: LedgerSnapshot,
    /// The mirror's latency.
    pub latency: Latency,
    /// The primary's latency for the same units.
    pub primary_latency: Latency,
    /// The wait in the ring.
    pub queue_delay: Latency,
    /// Replies compared.
    pub compared: u64,
    /// Replies not compared.
    pub not_compared: u64,
    /// Divergences, indexed by [`DivergenceKind`].
    pub divergences: [u64; DivergenceKind::ALL.len()],
    /// Error replies by class.
    pub errors: BTreeMap<String, u64>,
    /// Units queued.
    pub queued_units: u64,
    /// Bytes queued.
    pub queued_bytes: u64,
    /// Connections to the mirror.
    pub connections_open: u64,
    /// Of these idle.
    pub connections_idle: u64,
    /// Dialled again.
    pub reconnects: u64,
    /// Units that timed out.
    pub unit_timeouts: u64,
    /// Units that waited for a connection.
    pub pool_waits: u64,
    /// Shadow reads that failed.
    pub shadow_read_errors: u64,
    /// Keys waiting for repair.
    pub tainted_keys: u64,
    /// Keys repaired.
    pub repaired_keys: u64,
    /// The mode of a dual write that is in force on every core, counted from 1; 0: none; `u64::MAX`: not the same on all.
    pub mode: u64,
    /// Shadow subscriptions that failed.
    pub pubsub_errors: u64,
    /// Messages that only the primary sent.
    pub pubsub_missing: u64,
    /// Messages that only the mirror sent.
    pub pubsub_extra: u64,
    /// By command.
    pub commands: ByCommand,
    /// The same of the primary of a dual write, while it follows the secondary.
    pub following_primary: ByCommand,
    /// The primary's answers to the same commands.
    pub primary_commands: ByCommand,
    /// The share of units offered.
    pub exposure: f64,
    /// Whether it is paused.
    pub paused: bool,
    /// Whether it is the secondary of a dual write.
    pub is_secondary: bool,
    /// Units that one client's ring holds.
    pub queue_units_max: u64,
    /// Bytes that one client's ring holds.
    pub queue_bytes_max: u64,
}

impl MirrorTotal {
    pub(super) fn merge<'a>(cores: impl Iterator<Item = &'a MirrorMetrics>) -> Self {
        let mut total = Self::empty();
        for core in cores {
            if total.name.is_empty() {
                total.identify(core);
            }
            total.add(core);
        }
        total
    }

    /// By command, whoever followed.
    pub fn all_commands(&self) -> ByCommand {
        together(&self.commands, &self.following_primary)
    }

    /// Divergences of this kind.
    pub fn divergences_of(&self, kind: DivergenceKind) -> u64 {
        self.divergences[kind as usize]
    }

    /// Divergences that say the candidate is different: neither noise nor races.
    pub fn divergences_real(&self) -> u64 {
        let real = DivergenceKind::ALL.iter().filter(|k| k.is_real());
        real.map(|k| self.divergences_of(*k)).sum()
    }

    /// Error replies of all classes.
    pub fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }

    fn identify(&mut self, core: &MirrorMetrics) {
        self.name = format!("{}:{}", core.source, core.destination);
        self.source = core.source.to_string();
        self.destination = core.destination.to_string();
        self.protocol = core.protocol;
        self.exposure = core.settings.exposure();
        self.paused = core.settings.paused();
        self.is_secondary = core.settings.is_secondary();
        (self.queue_units_max, self.queue_bytes_max) = core.settings.queue_bounds();
    }

    fn add(&mut self, core: &MirrorMetrics) {
        self.ledger.merge(&balanced(&core.ledger));
        self.latency.add(&core.latency);
        self.primary_latency.add(&core.primary_latency);
        self.queue_delay.add(&core.queue_delay);
        self.compared += core.compared.get();
        self.not_compared += core.not_compared.get();
        for kind in DivergenceKind::ALL {
            self.divergences[kind as usize] += core.divergences(kind);
        }
        add_errors(&mut self.errors, &core.errors);
        self.queued_units += core.queued_units.get();
        self.queued_bytes += core.queued_bytes.get();
        self.connections_open += core.connections_open.get();
        self.connections_idle += core.connections_idle.get();
        self.reconnects += core.reconnects.get();
        self.unit_timeouts += core.unit_timeouts.get();
        self.pool_waits += core.pool_waits.get();
        self.shadow_read_errors += core.shadow_read_errors.get();
        self.tainted_keys += core.tainted_keys.get();
        self.repaired_keys += core.repaired_keys.get();
        self.mode = match (self.mode, core.mode.get()) {
            (0, mode) | (mode, 0) => mode,
            (one, other) if one == other => one,
            _ => u64::MAX,
        };
        self.pubsub_errors += core.pubsub_errors.get();
        self.pubsub_missing += core.pubsub_missing.get();
        self.pubsub_extra += core.pubsub_extra.get();
        add_commands(&mut self.commands, &core.commands);
        add_commands(&mut self.following_primary, &core.following_primary);
        add_commands(&mut self.primary_commands, &core.primary_commands);
    }

    fn empty() -> Self {
        Self {
            name: String::new(),
            source: String::new(),
            destination: String::new(),
            protocol: Protocol::Postgres,
            ledger: LedgerSnapshot::default(),
            latency: Latency::default(),
            primary_latency: Latency::default(),
            queue_delay: Latency::default(),
            compared: 0,
            not_compared: 0,
            divergences: [0; DivergenceKind::ALL.len()],
            errors: BTreeMap::new(),
            queued_units: 0,
            queued_bytes: 0,
            connections_open: 0,
            connections_idle: 0,
            reconnects: 0,
            unit_timeouts: 0,
            pool_waits: 0,
            shadow_read_errors: 0,
            tainted_keys: 0,
            repaired_keys: 0,
            mode: 0,
            pubsub_errors: 0,
            pubsub_missing: 0,
            pubsub_extra: 0,
            commands: BTreeMap::new(),
            following_primary: BTreeMap::new(),
            primary_commands: BTreeMap::new(),
            exposure: 0.0,
            paused: false,
            is_secondary: false,
            queue_units_max: 0,
            queue_bytes_max: 0,
        }
    }
}

/// Reads a ledger that its core may be writing.
///
/// Counters only grow, so two equal readings in a row are one moment's values. Under a writer that never rests a
/// few tries may all fail: then the sums are made from the parts, which the identity fixes, so that what is shown
/// always balances and is off by the steps of that reading only.
fn balanced(ledger: &Ledger) -> LedgerSnapshot {
    const TRIES_MAX: usize = 8;
    let mut last = ledger.snapshot();
    for _ in 0..TRIES_MAX {
        let next = ledger.snapshot();
        if next == last && next.balances() {
            return next;
        }
        last = next;
    }
    let settled = last.delivered + last.errored + last.dropped_total();
    last.offered = last.offered.max(settled);
    last.observed = last.excluded + last.unexposed + last.offered;
    last
}

fn add_errors(total: &mut BTreeMap<String, u64>, table: &ErrorTable) {
    table.for_each(|class, count| match total.get_mut(class) {
        Some(sum) => *sum += count,
        None => {
            total.insert(class.to_owned(), count);
        }
    });
}

fn add_commands(total: &mut BTreeMap<&'static str, CommandTotal>, table: &CommandTable) {
    table.for_each(|name, metrics| metrics.merge_into(total.entry(name).or_default()));
}
