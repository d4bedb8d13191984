//! Latency of Postgres queries by fingerprint, on the primary and on the mirror side by side.

use std::sync::OnceLock;

use super::histogram::AtomicHistogram;
use super::totals::Latency;
use crate::mirror::ledger::Counter;

/// One fingerprint on one mirror.
#[derive(Debug)]
pub struct QueryMetrics {
    /// The same for queries that differ in their literals only.
    pub fingerprint: u64,
    /// The query without its literals.
    pub text: Box<str>,
    /// Runs that the mirror answered and the primary had answered without an error.
    pub calls: Counter,
    /// Of these, those that failed on the mirror; they have no latency.
    pub errors: Counter,
    /// Of these, those whose answers differ.
    pub divergences: Counter,
    /// The primary's time.
    pub primary: AtomicHistogram,
    /// The mirror's time, for the same runs.
    pub mirror: AtomicHistogram,
}

impl QueryMetrics {
    fn new(fingerprint: u64, text: &str) -> Self {
        Self {
            fingerprint,
            text: text.into(),
            calls: Counter::default(),
            errors: Counter::default(),
            divergences: Counter::default(),
            primary: AtomicHistogram::default(),
            mirror: AtomicHistogram::default(),
        }
    }
}

/// The fingerprints of one mirror on one core: the first so many that come; the rest counts as `other`.
#[derive(Debug)]
pub struct QueryTable {
    slots: Box<[OnceLock<Box<QueryMetrics>>]>,
    other: QueryMetrics,
}

impl QueryTable {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| OnceLock::new()).collect(),
            other: QueryMetrics::new(0, "other"),
        }
    }

    /// Gives a fingerprint that has no slot the next free one; `None`: there is none left. Only the owning core may call this.
    pub fn claim(&self, fingerprint: u64, text: impl FnOnce() -> String) -> Option<usize> {
        let free = self.slots.partition_point(|slot| slot.get().is_some());
        let slot = self.slots.get(free)?;
        slot.get_or_init(|| Box::new(QueryMetrics::new(fingerprint, &text())));
        Some(free)
    }

    /// The numbers in a slot; those of `other` for `None`.
    pub fn at(&self, slot: Option<usize>) -> &QueryMetrics {
        let slot = slot.and_then(|slot| self.slots.get(slot)?.get());
        slot.map_or(&self.other, |metrics| metrics)
    }

    /// Calls `each(slot, metrics)` for every fingerprint seen; `other` comes last and has no slot.
    pub fn for_each(&self, mut each: impl FnMut(Option<usize>, &QueryMetrics)) {
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(metrics) = slot.get() else { break };
            each(Some(at), metrics);
        }
        if self.other.calls.get() > 0 {
            each(None, &self.other);
        }
    }
}

/// One fingerprint on one mirror, added up over the cores.
#[derive(Clone, Debug, Default)]
pub struct QueryTotal {
    /// The source database's name.
    pub source: String,
    /// The mirror's destination.
    pub destination: String,
    /// See [`QueryMetrics::fingerprint`]; 0 for `other`.
    pub fingerprint: u64,
    /// See [`QueryMetrics::text`].
    pub text: String,
    /// See [`QueryMetrics::calls`].
    pub calls: u64,
    /// See [`QueryMetrics::errors`].
    pub errors: u64,
    /// See [`QueryMetrics::divergences`].
    pub divergences: u64,
    /// The primary's time.
    pub primary: Latency,
    /// The mirror's time.
    pub mirror: Latency,
}

impl QueryTotal {
    pub(super) fn add(&mut self, core: &QueryMetrics) {
        self.calls += core.calls.get();
        self.errors += core.errors.get();
        self.divergences += core.divergences.get();
        self.primary.add(&core.primary);
        self.mirror.add(&core.mirror);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fingerprints_have_slots_and_the_rest_is_other() {
        let table = QueryTable::new(2);
        assert_eq!(table.claim(7, || "select ?".into()), Some(0));
        assert_eq!(table.claim(8, || "select ?, x".into()), Some(1));
        assert_eq!(table.claim(9, || unreachable!()), None);
        table.at(Some(1)).calls.add(2);
        table.at(None).calls.add(5);
        let mut seen = Vec::new();
        table.for_each(|slot, metrics| seen.push((slot, metrics.fingerprint, metrics.calls.get())));
        assert_eq!(seen, [(Some(0), 7, 0), (Some(1), 8, 2), (None, 0, 5)]);
    }
}
