//! The ledger: where every unit that a mirror could have seen ended up, exact at any time.
//!
//! `observed = excluded + unexposed + offered` and
//! `offered = delivered + dropped{reason} + errored + in_flight`.
//!
//! One core writes a ledger, the control thread reads it: single-writer counters, never a lock, never a
//! read-modify-write instruction. A reader on another thread may see two counters of one step apart; on the
//! owning core the identity holds after every call.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether anything is counted. Only the build that the bench holds the real one against says no: what metrics cost is the
/// difference. No counter steers anything, so such a build serves and mirrors alike; it shows 0 everywhere.
pub(crate) const COUNTING: bool = !cfg!(feature = "bench-uncounted");

/// A counter with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning core may call this: the addition is a load and a store.
    pub fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    /// Takes `n` away; for counters that are gauges. Only the owning core may call this.
    pub fn sub(&self, n: u64) {
        self.set(self.get().wrapping_sub(n));
    }

    /// Sets the value; for gauges. Only the owning core may call this.
    pub fn set(&self, value: u64) {
        if COUNTING {
            self.0.store(value, Ordering::Relaxed);
        }
    }

    /// The value as last written.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a unit was dropped: no byte of it reached the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum DropReason {
    /// The client's ring had no room in units or bytes.
    QueueFull,
    /// The unit alone is larger than the ring's byte bound.
    Oversize,
    /// All rings of the core together hold `mirror_memory`.
    Memory,
    /// The mirror cannot be reached or refuses the login.
    Unavailable,
    /// The unit waited longer than `mirror_timeout` without a byte sent.
    Timeout,
    /// The mirror is paused.
    Paused,
    /// The drain timeout ended first.
    Shutdown,
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [DropReason; 7] = [
        DropReason::QueueFull,
        DropReason::Oversize,
        DropReason::Memory,
        DropReason::Unavailable,
        DropReason::Timeout,
        DropReason::Paused,
        DropReason::Shutdown,
    ];

    /// The label in metrics and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            DropReason::QueueFull => "queue_full",
            DropReason::Oversize => "oversize",
            DropReason::Memory => "memory",
            DropReason::Unavailable => "unavailable",
            DropReason::Timeout => "timeout",
            DropReason::Paused => "paused",
            DropReason::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a unit that was offered ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The complete reply was read, even if it is an error.
    Delivered,
    /// No byte reached the mirror.
    Dropped(DropReason),
    /// Some bytes reached the mirror, the outcome is unknown.
    Errored,
}

/// The counters of one mirror on one core.
#[derive(Debug, Default)]
pub struct Ledger {
    observed: Counter,
    excluded: Counter,
    unexposed: Counter,
    offered: Counter,
    delivered: Counter,
    errored: Counter,
    dropped: [Counter; DropReason::ALL.len()],
}

impl Ledger {
    /// A unit that never goes to a mirror: filtered by level, unfinished, or of a kind that is not mirrored.
    pub fn exclude(&self) {
        self.excluded.add(1);
        self.observed.add(1);
    }

    /// A unit that the draw against the exposure left out.
    pub fn leave_unexposed(&self) {
        self.unexposed.add(1);
        self.observed.add(1);
    }

    /// A unit meant for the mirror. It is in flight until [`Ledger::settle`].
    pub fn offer(&self) {
        self.offered.add(1);
        self.observed.add(1);
    }

    /// The end of an offered unit; once per [`Ledger::offer`].
    pub fn settle(&self, fate: Fate) {
        match fate {
            Fate::Delivered => self.delivered.add(1),
            Fate::Dropped(reason) => self.dropped[reason as usize].add(1),
            Fate::Errored => self.errored.add(1),
        }
        debug_assert!(
            self.snapshot().settled() <= self.offered.get(),
            "a unit settled twice"
        );
    }

    /// A copy of the counters.
    pub fn snapshot(&self) -> LedgerSnapshot {
        // Settled counters first: a reader on another thread then never sees more settled than offered.
        let delivered = self.delivered.get();
        let errored = self.errored.get();
        let dropped = std::array::from_fn(|i| self.dropped[i].get());
        LedgerSnapshot {
            delivered,
            errored,
            dropped,
            offered: self.offered.get(),
            excluded: self.excluded.get(),
            unexposed: self.unexposed.get(),
            observed: self.observed.get(),
        }
    }
}

/// The values of one ledger, or of several added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerSnapshot {
    /// Units that the mirror could have seen.
    pub observed: u64,
    /// Units that never go to a mirror.
    pub excluded: u64,
    /// Units left out by the draw.
    pub unexposed: u64,
    /// Units meant for the mirror.
    pub offered: u64,
    /// Units whose complete reply was read.
    pub delivered: u64,
    /// Units of which some bytes were sent and whose outcome is unknown.
    pub errored: u64,
    /// Units of which no byte was sent, by [`DropReason`].
    pub dropped: [u64; DropReason::ALL.len()],
}

impl LedgerSnapshot {
    /// Units dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Units dropped for this reason.
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Units offered and not yet settled: queued or on their way.
    pub fn in_flight(&self) -> u64 {
        self.offered.saturating_sub(self.settled())
    }

    /// Whether `observed = excluded + unexposed + offered` and no more was settled than offered.
    pub fn balances(&self) -> bool {
        self.observed == self.excluded + self.unexposed + self.offered
            && self.settled() <= self.offered
    }

    /// Adds another core's or mirror's counters.
    pub fn merge(&mut self, other: &LedgerSnapshot) {
        self.observed += other.observed;
        self.excluded += other.excluded;
        self.unexposed += other.unexposed;
        self.offered += other.offered;
        self.delivered += other.delivered;
        self.errored += other.errored;
        for (mine, theirs) in self.dropped.iter_mut().zip(other.dropped) {
            *mine += theirs;
        }
    }

    fn settled(&self) -> u64 {
        self.delivered + self.errored + self.dropped_total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_keeps_the_identity() {
        let ledger = Ledger::default();
        ledger.exclude();
        ledger.leave_unexposed();
        for fate in [
            Fate::Delivered,
            Fate::Errored,
            Fate::Dropped(DropReason::QueueFull),
        ] {
            ledger.offer();
            assert_eq!(ledger.snapshot().in_flight(), 1);
            assert!(ledger.snapshot().balances());
            ledger.settle(fate);
            assert_eq!(ledger.snapshot().in_flight(), 0);
        }
        let mut sum = ledger.snapshot();
        sum.merge(&ledger.snapshot());
        assert_eq!((sum.observed, sum.offered, sum.dropped_total()), (10, 6, 2));
        assert!(sum.balances());
    }
}
