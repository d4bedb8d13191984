//! Where the primary's order is known, and where not.
//!
//! Writes over one connection (a stream: a lane, or a client's own connection) are answered in the order in which they
//! were executed. Two writes of one key over two streams whose times between arrival and answer overlap may have been
//! executed in either order: the secondary may get them the wrong way round, so the key is tainted and copied again.
//!
//! Only answers are noted. Of two that overlap the one that is answered later finds the other one here.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::taint::HashIsHash;
use crate::limits::{ORDER_GENERATION_NS, ORDER_KEYS_MAX};

/// One connection to the primary.
pub type Stream = u64;

/// The latest answers on one key: of the stream that wrote last, and of all others.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    stream: Stream,
    answered_ns: u64,
    others_ns: u64,
}

impl Answers {
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

type Generation = HashMap<u64, Answers, BuildHasherDefault<HashIsHash>>;

/// The latest answers of all keys, for a bounded number of them and a bounded time.
#[derive(Debug, Default)]
pub struct Order {
    current: Generation,
    previous: Generation,
    /// Nothing answered before is forgotten since.
    horizon_ns: u64,
    current_since_ns: u64,
    any: Answers,
    everything: Answers,
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
        self.turn(answered_ns);
        let mut answers = self.recall(key);
        let other_ns = answers
            .other_than(stream)
            .max(self.everything.other_than(stream));
        answers.note(stream, answered_ns);
        self.current.insert(key, answers);
        self.any.note(stream, answered_ns);
        other_ns >= arrived_ns && other_ns > 0 || arrived_ns < self.horizon_ns
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
