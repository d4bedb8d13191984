//! Latency histograms that one core writes and the control thread reads.
//!
//! Log-linear: every power of two is cut into 64 equal buckets, so a bucket is at most 1/64 of its value wide and
//! its midpoint is at most 0.8 % off. The 64 buckets of a power of two are allocated when the first value falls
//! there: a histogram of real latencies touches a handful of them, and a reader skips the rest.

use std::sync::OnceLock;

use hdrhistogram::Histogram;

use crate::mirror::ledger::{COUNTING, Counter};

/// Upper bounds of the exposed latency buckets, in nanoseconds. The last exposed bucket is `+Inf`.
pub const LE_BUCKETS_NS: [u64; 17] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
    30_000_000_000,
];

/// Buckets per power of two, as a power of two.
const SUB_BITS: u32 = 6;
const SUB_COUNT: usize = 1 << SUB_BITS;
/// Smallest value told apart: 512 ns, so that 1 µs has neighbours on both sides.
const EXP_MIN: u32 = 9;
/// Largest power of two: 2^42 ns are 73 minutes, longer than any timeout in the config makes sense.
const EXP_MAX: u32 = 41;
const OCTAVES: usize = (EXP_MAX - EXP_MIN + 1) as usize;
const VALUE_MIN: u64 = 1 << EXP_MIN;
const VALUE_MAX: u64 = (1 << (EXP_MAX + 1)) - 1;

type Octave = [Counter; SUB_COUNT];

/// A histogram of nanoseconds with one writer and any number of readers.
#[derive(Debug)]
pub struct AtomicHistogram {
    octaves: [OnceLock<Box<Octave>>; OCTAVES],
    sum_ns: Counter,
}

impl Default for AtomicHistogram {
    fn default() -> Self {
        Self {
            octaves: std::array::from_fn(|_| OnceLock::new()),
            sum_ns: Counter::default(),
        }
    }
}

impl AtomicHistogram {
    /// Counts one value. Values outside 512 ns … 73 min are counted in the nearest bucket. Only the owning core
    /// may call this.
    pub fn record(&self, ns: u64) {
        if !COUNTING {
            return;
        }
        let ns = ns.clamp(VALUE_MIN, VALUE_MAX);
        let exp = 63 - ns.leading_zeros();
        let sub = (ns >> (exp - SUB_BITS)) as usize & (SUB_COUNT - 1);
        // `exp` is within EXP_MIN..=EXP_MAX and `sub` below SUB_COUNT by the clamp and the mask.
        let octave = self.octaves[(exp - EXP_MIN) as usize]
            .get_or_init(|| Box::new(std::array::from_fn(|_| Counter::default())));
        octave[sub].add(1);
        self.sum_ns.add(ns);
    }

    /// Adds every value, at its bucket's midpoint, to `out`. Values that `out` cannot hold are counted at its
    /// upper bound.
    pub fn snapshot_into(&self, out: &mut Histogram<u64>) {
        self.for_each(|value, count| {
            if out.record_n(value, count).is_err() {
                out.saturating_record_n(value, count);
            }
        });
    }

    /// Calls `each(midpoint_ns, count)` for every bucket that is not empty, in ascending order.
    pub fn for_each(&self, mut each: impl FnMut(u64, u64)) {
        for (i, octave) in self.octaves.iter().enumerate() {
            let Some(octave) = octave.get() else {
                continue;
            };
            let exp = EXP_MIN + i as u32;
            let width = 1u64 << (exp - SUB_BITS);
            for (sub, counter) in octave.iter().enumerate() {
                let count = counter.get();
                if count > 0 {
                    each((1 << exp) + sub as u64 * width + width / 2, count);
                }
            }
        }
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        let mut total = 0;
        self.for_each(|_, count| total += count);
        total
    }

    /// The sum of the values as recorded (clamped), in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.get()
    }
}

/// An empty histogram for merged latencies: 1 ns resolution at the bottom, two significant digits, growing as
/// values arrive.
pub(crate) fn empty() -> Histogram<u64> {
    let mut histogram =
        Histogram::new(2).expect("two significant digits are within hdrhistogram's range");
    histogram.auto(true);
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_two_and_a_half_percent() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..100_000 {
            let bits = rng.u32(1..42);
            let value = 1_000 + rng.u64(0..1 << bits);
            let value = value.min(3_600_000_000_000);
            let histogram = AtomicHistogram::default();
            histogram.record(value);
            let mut merged = empty();
            histogram.snapshot_into(&mut merged);
            for got in [merged.max(), merged.min()] {
                let error = (got as f64 - value as f64).abs() / value as f64;
                assert!(error <= 0.025, "{value} came back as {got}");
            }
            assert_eq!(histogram.sum_ns(), value);
        }
    }

    #[test]
    fn values_out_of_range_are_counted_at_the_ends() {
        let histogram = AtomicHistogram::default();
        histogram.record(0);
        histogram.record(u64::MAX);
        let mut seen = Vec::new();
        histogram.for_each(|value, count| seen.push((value, count)));
        assert_eq!(seen.len(), 2);
        assert!(seen[0].0 < 1_000 && seen[1].0 > 3_600_000_000_000);
        assert_eq!(histogram.count(), 2);
    }

    #[test]
    fn quantiles_agree_with_a_sorted_list() {
        let mut rng = fastrand::Rng::with_seed(11);
        let histogram = AtomicHistogram::default();
        let mut values: Vec<u64> = (0..50_000)
            .map(|_| 20_000 + rng.u64(0..5_000_000))
            .collect();
        values.iter().for_each(|v| histogram.record(*v));
        values.sort_unstable();
        let mut merged = empty();
        histogram.snapshot_into(&mut merged);
        for q in [0.5, 0.9, 0.99, 0.999] {
            let exact = values[(q * values.len() as f64) as usize] as f64;
            let got = merged.value_at_quantile(q) as f64;
            assert!(
                (got - exact).abs() / exact < 0.025,
                "p{q}: {got} against {exact}"
            );
        }
    }
}
