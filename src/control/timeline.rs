//! How the mirrors fared over time, for the report: a bounded number of readings, whatever the time.
//!
//! When it is full every other reading goes and the interval doubles, so that a week fits as well as a minute.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::limits::TIMELINE_READINGS_MAX;
use crate::metrics::MirrorTotal;

/// The counters of one mirror at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reading {
    at_seconds: u64,
    offered: u64,
    delivered: u64,
    dropped: u64,
    errored: u64,
    divergences: u64,
}

/// The readings of every mirror.
#[derive(Debug, Default)]
pub struct Timeline {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Seconds between two readings that are kept, as a power of two.
    doublings: u32,
    next_at: u64,
    /// By source and destination, in the order of time.
    mirrors: BTreeMap<(String, String), Vec<Reading>>,
}

impl Timeline {
    /// Takes a reading, if it is time for one.
    pub fn note(&self, at_seconds: u64, mirrors: impl FnOnce() -> Vec<MirrorTotal>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if at_seconds < inner.next_at {
            return;
        }
        inner.next_at = at_seconds + (1 << inner.doublings);
        let mut is_full = false;
        for total in mirrors() {
            let key = (total.source.clone(), total.destination.clone());
            let readings = inner.mirrors.entry(key).or_default();
            readings.push(Reading {
                at_seconds,
                offered: total.ledger.offered,
                delivered: total.ledger.delivered,
                dropped: total.ledger.dropped_total(),
                errored: total.ledger.errored,
                divergences: total.divergences_real(),
            });
            is_full |= readings.len() >= TIMELINE_READINGS_MAX;
        }
        if is_full {
            inner.doublings += 1;
            for readings in inner.mirrors.values_mut() {
                let mut at = 0;
                readings.retain(|_| {
                    at += 1;
                    at % 2 == 1
                });
            }
        }
    }

    /// The readings of one mirror: what was added in each interval, by its end in seconds since the start.
    pub fn of(&self, source: &str, destination: &str) -> Value {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source.to_owned(), destination.to_owned());
        let readings = inner.mirrors.get(&key).map_or(&[][..], Vec::as_slice);
        let steps = readings.windows(2).map(|pair| {
            let [from, to] = pair else { return Value::Null };
            json!({
                "from_seconds": from.at_seconds,
                "to_seconds": to.at_seconds,
                "offered": to.offered - from.offered,
                "delivered": to.delivered - from.delivered,
                "dropped": to.dropped - from.dropped,
                "errored": to.errored - from.errored,
                "divergences": to.divergences - from.divergences,
            })
        });
        Value::Array(steps.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Protocol, Registry};
    use crate::mirror::ledger::{DropReason, Fate};

    #[test]
    fn a_week_fits_and_nothing_is_counted_twice_or_lost() {
        let registry = Registry::new(vec![0]);
        let mirror = registry.mirror(0, "a", "b", Protocol::Redis);
        let timeline = Timeline::default();
        timeline.note(0, || registry.mirrors());
        for second in 1..=100_000 {
            mirror.ledger.offer();
            mirror.ledger.settle(Fate::Dropped(DropReason::QueueFull));
            timeline.note(second, || registry.mirrors());
        }
        let steps = timeline.of("a", "b");
        let steps = steps.as_array().unwrap();
        assert!(steps.len() < TIMELINE_READINGS_MAX);
        let dropped: u64 = steps
            .iter()
            .map(|step| step["dropped"].as_u64().unwrap())
            .sum();
        let last = steps.last().unwrap()["to_seconds"].as_u64().unwrap();
        assert_eq!(dropped, last);
        assert!(last > 99_000);
        assert_eq!(timeline.of("a", "c"), json!([]));
    }
}
