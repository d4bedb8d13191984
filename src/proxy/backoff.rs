//! Pauses between attempts to reach a mirror, and the log lines about them.

use std::fmt::Display;
use std::time::Duration;

use super::Context;

/// First pause after a failure.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause.
const LAST: Duration = Duration::from_secs(5);

/// The pauses of one mirror: 100 ms to 5 s, doubled, jittered by a quarter either way.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    failed: bool,
    /// Failures since the last log line.
    silent: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            next: FIRST,
            failed: false,
            silent: 0,
        }
    }
}

impl Backoff {
    /// It works again.
    pub fn reset(&mut self) {
        *self = Backoff::default();
    }

    /// An attempt failed: logs the first and then every tenth.
    pub fn complain(&mut self, mirror: &str, problem: &dyn Display) {
        self.failed = true;
        if self.silent.is_multiple_of(10) {
            tracing::warn!(mirror, reason = %problem, "a mirror cannot be reached");
        }
        self.silent += 1;
    }

    /// Waits before the next attempt, or until `give_up`.
    pub async fn pause(&mut self, context: &Context, give_up: impl Fn() -> bool) {
        if !std::mem::take(&mut self.failed) {
            return;
        }
        let jitter = 0.75 + 0.5 * context.random.borrow_mut().f64();
        let mut left = self.next.mul_f64(jitter);
        self.next = (self.next * 2).min(LAST);
        // In steps, so that a mirror that is taken away does not keep its worker.
        while !left.is_zero() && !give_up() {
            let step = left.min(FIRST);
            context.ring.sleep(step, false).await;
            left -= step;
        }
    }
}
