//! A rate limit for telling people about something: one event per fingerprint and interval, with the number held back.

use std::collections::HashMap;

/// Lets one event per fingerprint and interval through and counts the others.
#[derive(Debug)]
pub struct RateLimit {
    interval_ns: u64,
    fingerprints_max: usize,
    seen: HashMap<u64, Seen>,
    /// When expired fingerprints were last looked for: at most once per interval, so that a flood of
    /// new ones does not pay for a search each.
    swept_ns: u64,
    /// Events that found no room among the fingerprints.
    overflowed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    passed_ns: u64,
    suppressed: u64,
}

impl RateLimit {
    /// One event per `interval_ns` for each of at most `fingerprints_max` fingerprints.
    pub fn new(interval_ns: u64, fingerprints_max: usize) -> Self {
        RateLimit {
            interval_ns,
            fingerprints_max,
            seen: HashMap::new(),
            swept_ns: 0,
            overflowed: 0,
        }
    }

    /// `Some(n)` if the event may pass; `n` events of its fingerprint were held back since the
    /// last one that did.
    pub fn admit(&mut self, fingerprint: u64, now_ns: u64) -> Option<u64> {
        if let Some(seen) = self.seen.get_mut(&fingerprint) {
            if now_ns.saturating_sub(seen.passed_ns) < self.interval_ns {
                seen.suppressed += 1;
                return None;
            }
            seen.passed_ns = now_ns;
            return Some(std::mem::take(&mut seen.suppressed));
        }
        if self.seen.len() >= self.fingerprints_max {
            self.sweep(now_ns);
        }
        if self.seen.len() >= self.fingerprints_max {
            self.overflowed += 1;
            return None;
        }
        let first = Seen {
            passed_ns: now_ns,
            suppressed: 0,
        };
        self.seen.insert(fingerprint, first);
        Some(0)
    }

    /// Events that were held back because there were too many fingerprints at once.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }

    /// Forgets what has been quiet for an interval. What it held back is not reported any more.
    fn sweep(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.swept_ns) < self.interval_ns {
            return;
        }
        self.swept_ns = now_ns;
        let interval_ns = self.interval_ns;
        self.seen
            .retain(|_, seen| now_ns.saturating_sub(seen.passed_ns) < interval_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::DIVERGENCE_LOG_INTERVAL_NS;

    #[test]
    fn one_line_per_interval_with_the_number_held_back() {
        let mut limit = RateLimit::new(DIVERGENCE_LOG_INTERVAL_NS, 2);
        assert_eq!(limit.admit(1, 0), Some(0));
        for _ in 0..41 {
            assert_eq!(limit.admit(1, 10), None);
        }
        assert_eq!(limit.admit(1, DIVERGENCE_LOG_INTERVAL_NS), Some(41));
        assert_eq!(limit.admit(2, DIVERGENCE_LOG_INTERVAL_NS), Some(0));
        assert_eq!(limit.admit(3, DIVERGENCE_LOG_INTERVAL_NS + 1), None);
        assert_eq!(limit.overflowed(), 1);
        assert_eq!(limit.admit(3, 3 * DIVERGENCE_LOG_INTERVAL_NS), Some(0));
    }
}
