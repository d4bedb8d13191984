//! One client's ring for one mirror: units in the client's order, bounded in units and in bytes.
//!
//! The ring owns the order and the sums. It knows neither the ledger nor the other clients; the
//! dispatcher does.

use std::collections::VecDeque;
use std::rc::Rc;

use super::unit::{ClientId, Unit};
use crate::limits::{PIPELINE_PATIENCE_NS, PIPELINE_QUEUE_FACTOR};

/// What one ring may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Units that wait.
    pub units: usize,
    /// Memory of the units that wait or are on their way.
    pub bytes: usize,
}

/// A unit that waits. Two words, which pass through registers: with a third they are written one by one to the stack and read
/// back together, and that waits until everything written before has reached the cache.
#[derive(Debug)]
pub(super) struct Entry<S, O> {
    pub unit: Rc<Unit<S, O>>,
    /// Grows with every unit of a dispatcher: the order within a client.
    pub id: u64,
}

#[derive(Debug)]
pub(super) struct Ring<S, O> {
    pub client: ClientId,
    pub bounds: Bounds,
    /// Ascending in `id`.
    waiting: VecDeque<Entry<S, O>>,
    /// Memory of the waiting units.
    waiting_bytes: usize,
    /// Units handed out and not settled.
    pub in_flight: usize,
    /// Memory of the units handed out.
    in_flight_bytes: usize,
    /// Whether the ring stands in the dispatcher's ready list.
    pub listed: bool,
    /// The client has left: the ring goes when it is empty.
    pub detached: bool,
    /// A unit came back: nothing leaves before the others on their way have ended too, so that a
    /// later unit can still come back and line up behind it.
    pub returning: bool,
    /// When the ring got the unit since which it has not been empty.
    since_ns: u64,
}

impl<S, O> Ring<S, O> {
    /// The unit that leaves next.
    pub fn front(&self) -> Option<&Unit<S, O>> {
        self.waiting.front().map(|entry| &*entry.unit)
    }

    pub fn new(client: ClientId, bounds: Bounds) -> Self {
        Ring {
            client,
            bounds,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            listed: false,
            detached: false,
            returning: false,
            since_ns: 0,
        }
    }

    /// This empty ring for another client, with its memory.
    pub fn reuse(self, client: ClientId, bounds: Bounds) -> Self {
        debug_assert!(self.is_empty() && !self.listed);
        Ring {
            waiting: self.waiting,
            ..Ring::new(client, bounds)
        }
    }

    /// Units for which it has memory.
    pub fn capacity(&self) -> usize {
        self.waiting.capacity()
    }

    /// Whether a unit that holds `bytes` has room.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.waiting.len() < self.bounds.units
            && self.waiting_bytes + self.in_flight_bytes + bytes <= self.bounds.bytes
    }

    /// Whether a unit of a pipeline has room beyond the bounds, behind a mirror that last answered at `answered_ns`.
    pub fn has_pipeline_room(&self, unit: &Unit<S, O>, bytes: usize, answered_ns: u64) -> bool {
        let waited_ns = unit
            .sealed_ns
            .saturating_sub(self.since_ns.max(answered_ns));
        unit.pipelined
            && waited_ns < PIPELINE_PATIENCE_NS
            && self.bytes() + bytes <= self.bounds.bytes.saturating_mul(PIPELINE_QUEUE_FACTOR)
    }

    pub fn push(&mut self, entry: Entry<S, O>) {
        if self.is_empty() {
            self.since_ns = entry.unit.sealed_ns;
        }
        self.waiting_bytes += entry.unit.sealed_bytes;
        self.waiting.push_back(entry);
    }

    /// Hands out the oldest unit; its memory stays with the ring until [`Ring::end`].
    pub fn hand_out(&mut self) -> Option<Entry<S, O>> {
        let entry = self.take()?;
        self.in_flight += 1;
        self.in_flight_bytes += entry.unit.sealed_bytes;
        Some(entry)
    }

    /// A unit that was handed out has ended, or comes back.
    pub fn end(&mut self, bytes: usize) {
        self.in_flight -= 1;
        self.in_flight_bytes -= bytes;
        if self.in_flight == 0 {
            self.returning = false;
        }
    }

    /// Puts a unit back where it was: before everything younger. At most a window of units can
    /// stand before it.
    pub fn put_back(&mut self, entry: Entry<S, O>) {
        let older = |waiting: &&Entry<S, O>| waiting.id < entry.id;
        let at = self.waiting.iter().take_while(older).count();
        self.waiting_bytes += entry.unit.sealed_bytes;
        self.waiting.insert(at, entry);
        self.returning = self.in_flight > 0;
    }

    /// Takes the oldest unit away for good.
    pub fn discard_oldest(&mut self) -> Option<Entry<S, O>> {
        self.take()
    }

    fn take(&mut self) -> Option<Entry<S, O>> {
        let entry = self.waiting.pop_front()?;
        self.waiting_bytes -= entry.unit.sealed_bytes;
        if self.waiting.is_empty() {
            // Begins anew at the front of its memory, which is in the cache, instead of walking through all of it.
            self.waiting.clear();
        }
        Some(entry)
    }

    pub fn oldest(&self) -> Option<&Entry<S, O>> {
        self.waiting.front()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn bytes(&self) -> usize {
        self.waiting_bytes + self.in_flight_bytes
    }

    /// Whether a unit may leave now.
    pub fn is_ready(&self, window: usize) -> bool {
        !self.waiting.is_empty() && self.in_flight < window && !self.returning
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight == 0
    }

    /// Panics if the sums or the order are wrong.
    pub fn check(&self) {
        let sum: usize = self
            .waiting
            .iter()
            .map(|entry| entry.unit.sealed_bytes)
            .sum();
        assert_eq!(sum, self.waiting_bytes, "{:?}: queued bytes", self.client);
        assert!(
            self.in_flight > 0 || (self.in_flight_bytes == 0 && !self.returning),
            "{:?}: nothing in flight yet bytes are",
            self.client
        );
        let mut ids = self.waiting.iter().map(|entry| entry.id);
        let mut before = ids.next();
        for id in ids {
            assert!(before < Some(id), "{:?}: out of order", self.client);
            before = Some(id);
        }
        for entry in &self.waiting {
            assert_eq!(entry.unit.client, self.client, "a foreign unit");
            assert!(entry.unit.holders.get() > 0, "a unit without a charge");
        }
    }
}
