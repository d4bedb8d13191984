//! Log lines about a mirror, which may come as often as units do.

use std::cell::Cell;

use crate::limits::MIRROR_LOG_INTERVAL_NS;

/// Keeps one kind of log line to one per interval.
#[derive(Default)]
pub(super) struct Quiet {
    spoken_ns: Cell<Option<u64>>,
    unsaid: Cell<u64>,
}

impl Quiet {
    /// Whether to log now, and how often this was not done since the last time.
    pub(super) fn speaks(&self, now_ns: u64) -> Option<u64> {
        let recent = |spoken: u64| now_ns.saturating_sub(spoken) < MIRROR_LOG_INTERVAL_NS;
        if self.spoken_ns.get().is_some_and(recent) {
            self.unsaid.set(self.unsaid.get() + 1);
            return None;
        }
        self.spoken_ns.set(Some(now_ns));
        Some(self.unsaid.take())
    }
}
