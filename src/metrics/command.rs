//! Redis numbers by command. Cardinality is bounded by the command table: an unknown command is `other`.

use std::sync::OnceLock;

use super::histogram::LE_BUCKETS_NS;
use super::mirror::DivergenceKind;
use crate::mirror::ledger::{COUNTING, Counter};
use crate::protocol::resp::Command;

/// Why a write did not reach a secondary, as far as anybody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum WriteFailure {
    /// It answered with an error.
    Refused,
    /// The connection ended before it answered.
    Lost,
    /// It did not answer in time, and its connection was replaced.
    Timeout,
}

impl WriteFailure {
    /// Every reason, in the order of the counters.
    pub const ALL: [WriteFailure; 3] = [
        WriteFailure::Refused,
        WriteFailure::Lost,
        WriteFailure::Timeout,
    ];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            WriteFailure::Refused => "refused",
            WriteFailure::Lost => "lost",
            WriteFailure::Timeout => "timeout",
        }
    }
}

/// One command against one backend.
#[derive(Debug, Default)]
pub struct CommandMetrics {
    /// Replies that are not errors.
    pub ok: Counter,
    /// Error replies, and commands whose reply never came.
    pub errors: Counter,
    /// Divergences by kind; used on the mirror's side only.
    divergences: [Counter; DivergenceKind::ALL.len()],
    /// Writes that failed; used on the mirror's side only.
    write_failures: [Counter; WriteFailure::ALL.len()],
    buckets: [Counter; LE_BUCKETS_NS.len() + 1],
    sum_ns: Counter,
}

impl CommandMetrics {
    /// Counts a reply and the time it took. Only the owning core may call this.
    pub fn record(&self, ok: bool, latency_ns: u64) {
        if !COUNTING {
            return;
        }
        if ok { &self.ok } else { &self.errors }.add(1);
        let bucket = LE_BUCKETS_NS.partition_point(|le| *le < latency_ns);
        self.buckets[bucket].add(1);
        self.sum_ns.add(latency_ns);
    }

    /// Counts a divergence. Only the owning core may call this.
    pub fn diverge(&self, kind: DivergenceKind) {
        self.divergences[kind as usize].add(1);
    }

    /// Divergences of this kind.
    pub fn divergences(&self, kind: DivergenceKind) -> u64 {
        self.divergences[kind as usize].get()
    }

    /// Counts a write that failed. Only the owning core may call this.
    pub fn fail_write(&self, why: WriteFailure) {
        self.write_failures[why as usize].add(1);
    }

    fn is_used(&self) -> bool {
        let failures: u64 = self.write_failures.iter().map(Counter::get).sum();
        self.ok.get() + self.errors.get() + failures > 0
    }

    pub(super) fn merge_into(&self, out: &mut CommandTotal) {
        out.ok += self.ok.get();
        out.errors += self.errors.get();
        out.sum_ns += self.sum_ns.get();
        for (total, counter) in out.buckets.iter_mut().zip(&self.buckets) {
            *total += counter.get();
        }
        for (total, counter) in out.divergences.iter_mut().zip(&self.divergences) {
            *total += counter.get();
        }
        for (total, counter) in out.write_failures.iter_mut().zip(&self.write_failures) {
            *total += counter.get();
        }
    }
}

/// One command against one backend, added up over the cores.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommandTotal {
    /// Replies that are not errors.
    pub ok: u64,
    /// Error replies and missing ones.
    pub errors: u64,
    /// Divergences, indexed by [`DivergenceKind`].
    pub divergences: [u64; DivergenceKind::ALL.len()],
    /// Writes that failed, indexed by [`WriteFailure`].
    pub write_failures: [u64; WriteFailure::ALL.len()],
    /// Counts per bucket of [`LE_BUCKETS_NS`], not cumulative; the last is above all bounds.
    pub buckets: [u64; LE_BUCKETS_NS.len() + 1],
    /// Nanoseconds in all.
    pub sum_ns: u64,
}

/// Empty until the command is seen; then its label and numbers.
type Slot = OnceLock<(&'static str, Box<CommandMetrics>)>;

impl CommandTotal {
    /// Replies in all.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The mean, in nanoseconds; 0 if there is none.
    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(self.count()).unwrap_or(0)
    }

    /// The value below which the share `quantile` of all lies, in nanoseconds: as if the replies of a bucket were
    /// spread evenly over it. 0 if there is none.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let mut left = quantile * self.count() as f64;
        let mut from = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            let Some(to) = LE_BUCKETS_NS.get(bucket).copied() else {
                break;
            };
            if *count > 0 && left <= *count as f64 {
                return from + ((to - from) as f64 * left / *count as f64) as u64;
            }
            left -= *count as f64;
            from = to;
        }
        if self.count() == 0 { 0 } else { from }
    }

    /// Adds another source's or mirror's numbers.
    pub fn merge(&mut self, other: &CommandTotal) {
        self.ok += other.ok;
        self.errors += other.errors;
        self.sum_ns += other.sum_ns;
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        for (mine, theirs) in self.divergences.iter_mut().zip(other.divergences) {
            *mine += theirs;
        }
        for (mine, theirs) in self.write_failures.iter_mut().zip(other.write_failures) {
            *mine += theirs;
        }
    }
}

/// The commands of one source or mirror on one core.
#[derive(Debug)]
pub struct CommandTable {
    slots: Box<[Slot]>,
    other: CommandMetrics,
}

impl CommandTable {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| OnceLock::new()).collect(),
            other: CommandMetrics::default(),
        }
    }

    /// The numbers of the command at `index` of the command table; `name` is its metric label. An index beyond
    /// the bound gives `other`. The first use of a command allocates, later ones do not.
    pub fn at(&self, index: usize, name: &'static str) -> &CommandMetrics {
        match self.slots.get(index) {
            Some(slot) if COUNTING => {
                let (_, metrics) = slot.get_or_init(|| (name, Box::default()));
                metrics
            }
            _ => &self.other,
        }
    }

    /// The numbers of a command that the table of commands may know.
    pub fn of(&self, command: Option<&'static Command>) -> &CommandMetrics {
        match command {
            Some(command) => self.at(command.index(), command.name()),
            None => &self.other,
        }
    }

    /// The numbers of commands that the table does not know.
    pub fn other(&self) -> &CommandMetrics {
        &self.other
    }

    /// Calls `each(name, metrics)` for every command seen.
    pub fn for_each(&self, mut each: impl FnMut(&'static str, &CommandMetrics)) {
        for (name, metrics) in self.slots.iter().filter_map(OnceLock::get) {
            each(name, metrics);
        }
        if self.other.is_used() {
            each("other", &self.other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_the_bucket_of_their_value() {
        let metrics = CommandMetrics::default();
        for ns in (1..=1_000).map(|n| n * 1_000) {
            metrics.record(true, ns);
        }
        let mut total = CommandTotal::default();
        assert_eq!((total.quantile_ns(0.5), total.mean_ns()), (0, 0));
        metrics.merge_into(&mut total);
        for (quantile, exact) in [(0.5, 500_000.0), (0.9, 900_000.0), (0.99, 990_000.0)] {
            let got = total.quantile_ns(quantile) as f64;
            assert!((got - exact).abs() / exact < 0.05, "{quantile}: {got}");
        }
        assert_eq!(total.mean_ns(), 500_500);
        metrics.record(true, u64::MAX / 2);
        let mut total = CommandTotal::default();
        metrics.merge_into(&mut total);
        assert_eq!(
            total.quantile_ns(1.0),
            LE_BUCKETS_NS[LE_BUCKETS_NS.len() - 1]
        );
    }
}
