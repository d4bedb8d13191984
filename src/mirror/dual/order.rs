//! Where the primary's order is known, and where not.
//!
//! Writes over one connection (a stream: a lane, or a client's own connection) are answered in the order in which they
//! were executed. Two writes of one key over two streams whose times between arrival and answer overlap may have been
//! executed in either order: the secondary may get them the wrong way round, so the key is tainted and copied again.
//!
//! Only answers are noted. Of two that overlap the one that is answered later finds the other one here.
//!
//! A command that waits is executed some time between its arrival and its answer, usually right before the answer: the
//! push that wakes it always overlaps, and must not count as a doubt each time. See [`Order::waited`].

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::taint::HashIsHash;
use crate::limits::{ORDER_GENERATION_NS, ORDER_KEYS_MAX, ORDER_LAG_NS, ORDER_NEAR_NS};

/// One connection to the primary.
pub type Stream = u64;

/// How a write gets on with a blocking pop that takes exactly its element from the secondary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Either order gives the same: pushes, and other pops of exact elements.
    Light,
    /// Nobody knows: scripts and transactions.
    Unknown,
    /// The order matters: trims, verbatim pops, deletions, copies of the whole key.
    #[default]
    Heavy,
}

/// The place of a command that waited among the writes of other streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// A write that matters was answered so shortly before that it may have been executed after it.
    pub unknown: bool,
    /// The same with more slack and for writes that may matter: a reply that differs proves nothing.
    pub near: bool,
}

/// The latest answers on one key: of the stream that wrote last, and of all others.
#[derive(Clone, Copy, Debug, Default)]
struct Latest {
    stream: Stream,
    answered_ns: u64,
    others_ns: u64,
}

impl Latest {
    /// When a stream other than `stream` was answered last.
    fn other_than(&self, stream: Stream) -> u64 {
        if self.stream == stream {
            self.others_ns
        } else {
            self.answered_ns
        }
    }

    fn note(&mut self, stream: Stream, answered_ns: u64) {
        if self.stream != stream {
            self.others_ns = self.answered_ns;
            self.stream = stream;
        }
        self.answered_ns = answered_ns;
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    any: Latest,
    /// Without [`Weight::Light`].
    unknown: Latest,
    /// [`Weight::Heavy`] alone.
    heavy: Latest,
    /// When two overlapping writes were noticed last.
    doubted_ns: u64,
    /// When a command that had waited was answered last, right behind a write of another stream.
    waited_ns: u64,
}

impl Answers {
    fn note(&mut self, stream: Stream, answered_ns: u64, weight: Weight) {
        self.any.note(stream, answered_ns);
        if weight >= Weight::Unknown {
            self.unknown.note(stream, answered_ns);
        }
        if weight == Weight::Heavy {
            self.heavy.note(stream, answered_ns);
        }
    }
}

type Generation = HashMap<u64, Answers, BuildHasherDefault<HashIsHash>>;

/// The latest answers of all keys, for a bounded number of them and a bounded time.
#[derive(Debug, Default)]
pub struct Order {
    current: Generation,
    previous: Generation,
    /// Nothing answered before is forgotten since.
    horizon_ns: u64,
    current_since_ns: u64,
    any: Latest,
    everything: Latest,
}

impl Order {
    /// Notes that a write of the key was answered. True if its place among the writes of other streams is unknown.
    pub fn answered(
        &mut self,
        key: u64,
        stream: Stream,
        arrived_ns: u64,
        answered_ns: u64,
    ) -> bool {
        self.weighed(key, stream, arrived_ns, answered_ns, Weight::Heavy)
    }

    /// [`Order::answered`] of a write that is not [`Weight::Heavy`].
    pub fn weighed(
        &mut self,
        key: u64,
        stream: Stream,
        arrived_ns: u64,
        answered_ns: u64,
        weight: Weight,
    ) -> bool {
        self.turn(answered_ns);
        let mut answers = self.recall(key);
        let other_ns = answers
            .any
            .other_than(stream)
            .max(self.everything.other_than(stream));
        answers.note(stream, answered_ns, weight);
        let unknown = other_ns >= arrived_ns && other_ns > 0 || arrived_ns < self.horizon_ns;
        if unknown {
            answers.doubted_ns = answered_ns;
        }
        self.current.insert(key, answers);
        self.any.note(stream, answered_ns);
        unknown
    }

    /// Notes that a command that may have waited was answered: as if it had been executed right before its answer.
    /// Where it takes an `exact` element away, pushes are in its way neither before nor behind it.
    pub fn waited(
        &mut self,
        key: u64,
        stream: Stream,
        arrived_ns: u64,
        answered_ns: u64,
        exact: bool,
    ) -> Waited {
        self.turn(answered_ns);
        let mut answers = self.recall(key);
        let everything_ns = self.everything.other_than(stream);
        let overlaps = |latest: &Latest, lag_ns: u64| {
            let other_ns = latest.other_than(stream).max(everything_ns);
            other_ns > 0 && other_ns >= arrived_ns.max(answered_ns.saturating_sub(lag_ns))
        };
        let in_the_way = if exact {
            &answers.unknown
        } else {
            &answers.any
        };
        let place = Waited {
            unknown: overlaps(&answers.heavy, ORDER_LAG_NS),
            near: overlaps(in_the_way, ORDER_NEAR_NS),
        };
        if overlaps(&answers.any, ORDER_NEAR_NS) {
            answers.waited_ns = answered_ns;
        }
        let weight = if exact { Weight::Light } else { Weight::Heavy };
        answers.note(stream, answered_ns, weight);
        if place.unknown {
            answers.doubted_ns = answered_ns;
        }
        self.current.insert(key, answers);
        self.any.note(stream, answered_ns);
        place
    }

    /// Whether overlapping writes of the key were noticed at `since_ns` or later.
    pub fn doubted_since(&self, key: u64, since_ns: u64) -> bool {
        self.recall(key).doubted_ns >= since_ns || since_ns < self.horizon_ns
    }

    /// Whether a command that had waited was answered at `since_ns` or later, right behind a write of another stream. It
    /// may have been executed in front of it: the write found a shorter list than the secondary's.
    pub fn waited_since(&self, key: u64, since_ns: u64) -> bool {
        self.recall(key).waited_ns >= since_ns
    }

    /// The same for what touches every key. True if any write of another stream overlaps.
    pub fn answered_everything(
        &mut self,
        stream: Stream,
        arrived_ns: u64,
        answered_ns: u64,
    ) -> bool {
        let other_ns = self
            .any
            .other_than(stream)
            .max(self.everything.other_than(stream));
        self.any.note(stream, answered_ns);
        self.everything.note(stream, answered_ns);
        other_ns >= arrived_ns && other_ns > 0
    }

    /// Whether a write of the key was answered at `since_ns` or later.
    pub fn written_since(&self, key: u64, since_ns: u64) -> bool {
        self.recall(key)
            .any
            .answered_ns
            .max(self.everything.answered_ns)
            >= since_ns
            || since_ns < self.horizon_ns
    }

    /// Keys that are remembered.
    pub fn len(&self) -> usize {
        self.current.len() + self.previous.len()
    }

    /// Nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn recall(&self, key: u64) -> Answers {
        let known = self.current.get(&key).or_else(|| self.previous.get(&key));
        known.copied().unwrap_or_default()
    }

    /// Forgets the generation before the last one when the current one is full or old. Keeps the tables' memory.
    fn turn(&mut self, now_ns: u64) {
        let old = now_ns.saturating_sub(self.current_since_ns) > ORDER_GENERATION_NS;
        if self.current.len() < ORDER_KEYS_MAX && !old {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.clear();
        self.horizon_ns = self.current_since_ns;
        self.current_since_ns = now_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stream_is_always_in_order() {
        let mut order = Order::default();
        for at in 1..100 {
            assert!(!order.answered(7, 1, at, at + 50));
        }
    }

    #[test]
    fn overlapping_writes_of_two_streams_are_found_by_the_later_answer() {
        let mut order = Order::default();
        assert!(!order.answered(7, 1, 10, 20));
        assert!(
            order.answered(7, 2, 15, 30),
            "began before the other was answered"
        );
        assert!(!order.answered(7, 1, 40, 50));
        assert!(!order.answered(8, 2, 45, 60), "another key");
        assert!(order.answered(7, 2, 49, 61));
        assert!(order.written_since(7, 61) && !order.written_since(7, 62));
    }

    #[test]
    fn what_waited_is_in_doubt_only_beside_what_matters() {
        let mut order = Order::default();
        let ms = 1_000_000;
        // The push that woke it.
        order.weighed(7, 1, 99 * ms, 100 * ms, Weight::Light);
        let place = order.waited(7, 2, 10 * ms, 100 * ms, true);
        assert_eq!(place, Waited::default());
        assert!(
            order.waited_since(7, 100 * ms),
            "but the push's reply proves nothing"
        );
        // A script may have done anything: a different reply proves nothing, but nothing is copied.
        order.weighed(8, 1, 99 * ms, 100 * ms, Weight::Unknown);
        let place = order.waited(8, 2, 10 * ms, 101 * ms, true);
        assert!(place.near && !place.unknown);
        // A copy that was read just before may hold the element or not.
        order.answered(9, 0, 99 * ms, 100 * ms);
        assert!(order.waited(9, 2, 10 * ms, 101 * ms, true).unknown);
        assert!(order.doubted_since(9, 101 * ms));
        let place = order.waited(9, 2, 10 * ms, 100 * ms + ORDER_NEAR_NS + 1, true);
        assert_eq!(place, Waited::default(), "long ago");
        // It arrived after the other was answered.
        order.answered(5, 1, 200 * ms, 201 * ms);
        assert_eq!(
            order.waited(5, 2, 202 * ms, 203 * ms, true),
            Waited::default()
        );
    }

    #[test]
    fn a_flush_overlaps_with_every_key() {
        let mut order = Order::default();
        order.answered(7, 1, 10, 20);
        assert!(order.answered_everything(2, 15, 30));
        assert!(
            order.answered(9, 1, 25, 35),
            "a write that was on its way during the flush"
        );
        assert!(!order.answered(9, 1, 36, 37));
    }

    #[test]
    fn an_answer_older_than_the_memory_counts_as_overlapping() {
        let mut order = Order::default();
        for round in 1..4 {
            let at = round * (ORDER_GENERATION_NS + 1);
            order.answered(round, 1, at, at);
        }
        let now = 3 * (ORDER_GENERATION_NS + 1) + 5;
        assert!(order.answered(99, 2, 10, now));
        assert!(!order.answered(99, 2, now, now + 1));
    }
}
