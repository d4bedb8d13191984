//! What a core counts about itself.

use super::Protocol;
use crate::mirror::ledger::Counter;

/// The counters of one core.
#[derive(Debug, Default)]
pub struct CoreMetrics {
    /// The CPU id.
    pub core: usize,
    listeners: [ListenerMetrics; Protocol::ALL.len()],
    /// The io_uring of this core.
    pub ring: RingMetrics,
    /// Nanoseconds spent working.
    pub busy_ns: Counter,
    /// Nanoseconds spent waiting in the ring.
    pub idle_ns: Counter,
    /// Sessions that ended in a panic; the core went on.
    pub session_panics: Counter,
    /// Events for the control thread that were dropped because its channel was full.
    pub event_drops: Counter,
    /// Gauge: receive buffers that hold bytes somebody still needs.
    pub slabs_used: Counter,
    /// Gauge: receive buffers there are.
    pub slabs_capacity: Counter,
    /// Gauge: bytes that all mirror rings of this core hold.
    pub mirror_memory_used: Counter,
    /// Gauge: the bound on those bytes (`mirror_memory`).
    pub mirror_memory_capacity: Counter,
}

impl CoreMetrics {
    /// Counters of the core with this CPU id.
    pub fn new(core: usize) -> Self {
        Self {
            core,
            ..Self::default()
        }
    }

    /// The client side of one protocol.
    pub fn listener(&self, protocol: Protocol) -> &ListenerMetrics {
        &self.listeners[protocol as usize]
    }
}

/// The client side of one protocol on one core.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    /// Client connections accepted.
    pub accepted: Counter,
    /// Client connections closed, by either side.
    pub closed: Counter,
    /// Client connections turned away: limits, draining, no primary.
    pub refused: Counter,
    /// Gauge: client connections open.
    pub active: Counter,
    /// Bytes received from clients.
    pub client_bytes_in: Counter,
    /// Bytes sent to clients.
    pub client_bytes_out: Counter,
    /// Bytes received from primaries.
    pub primary_bytes_in: Counter,
    /// Bytes sent to primaries.
    pub primary_bytes_out: Counter,
}

/// What the io_uring of one core did.
#[derive(Debug, Default)]
pub struct RingMetrics {
    /// Turns of the driver.
    pub turns: Counter,
    /// `io_uring_enter` calls.
    pub enters: Counter,
    /// Completions handled.
    pub cqes: Counter,
    /// Submissions made.
    pub sqes: Counter,
    /// Gauge: most submissions of one turn so far.
    pub sqes_max: Counter,
    /// Gauge: most completions of one turn so far.
    pub cqes_max: Counter,
    /// Gauge: length of the submission queue (`ring.entries`).
    pub entries: Counter,
    /// Receives that ended because no provided buffer was left.
    pub enobufs: Counter,
    /// Accepts that failed (EMFILE and the like).
    pub accept_errors: Counter,
}
