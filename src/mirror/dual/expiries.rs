//! When keys end, as far as the commands that were repeated have told.
//!
//! Each server ends a key at its own moment. A write that the primary executed before that moment may reach the secondary
//! behind it: there it finds nothing, its reply differs, and it may leave a key that nobody ends any more. Such writes
//! are recognised here by their time; their keys are copied again, and their replies prove nothing.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::taint::HashIsHash;
use crate::limits::{EXPIRY_CLOCK_SKEW_MS, EXPIRY_KEYS_MAX};
use crate::protocol::resp::Request;

type Generation = HashMap<u64, u64, BuildHasherDefault<HashIsHash>>;

/// The latest ends, for a bounded number of keys.
#[derive(Debug, Default)]
pub struct Expiries {
    current: Generation,
    previous: Generation,
}

/// What a command says about its key's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Milliseconds since 1970.
    At(u64),
    /// It has none any more.
    Never,
}

impl Expiries {
    /// Notes a key's end.
    pub fn note(&mut self, key: u64, end: End) {
        match end {
            End::At(at_ms) => {
                if self.current.len() >= EXPIRY_KEYS_MAX {
                    std::mem::swap(&mut self.current, &mut self.previous);
                    self.current.clear();
                }
                self.current.insert(key, at_ms);
            }
            End::Never => {
                self.current.remove(&key);
                self.previous.remove(&key);
            }
        }
    }

    /// The key's end, if it is not before `from_ms` on any of the clocks.
    pub fn end_after(&self, key: u64, from_ms: u64) -> Option<u64> {
        let end = self.current.get(&key).or_else(|| self.previous.get(&key))?;
        (end.saturating_add(EXPIRY_CLOCK_SKEW_MS) >= from_ms).then_some(*end)
    }

    /// No key has an end.
    pub fn is_empty(&self) -> bool {
        self.current.is_empty() && self.previous.is_empty()
    }
}

/// Whether a key that ends at `end_ms` may have ended by `now_ms` on one of the clocks.
pub fn may_have_ended(end_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_add(EXPIRY_CLOCK_SKEW_MS) >= end_ms
}

/// What a command with absolute times says about the end of its first key. `None`: nothing.
pub fn end_of(request: &Request<'_>) -> Option<End> {
    let number =
        |at: usize| -> Option<u64> { std::str::from_utf8(request.arg(at)?).ok()?.parse().ok() };
    let is = |name: &[u8]| request.arg_is(0, name);
    if is(b"PEXPIREAT") {
        return number(2).map(End::At);
    }
    if is(b"EXPIREAT") {
        return number(2).map(|at| End::At(at.saturating_mul(1000)));
    }
    if is(b"RESTORE") {
        return match number(2)? {
            0 => Some(End::Never),
            at => Some(End::At(at)),
        };
    }
    if is(b"PERSIST") {
        return Some(End::Never);
    }
    let (set, read) = (is(b"SET"), is(b"GETEX"));
    if !set && !read {
        return None;
    }
    for at in if set { 3 } else { 2 }..request.len() {
        if request.arg_is(at, b"PXAT") {
            return number(at + 1).map(End::At);
        }
        if request.arg_is(at, b"EXAT") {
            return number(at + 1).map(|at| End::At(at.saturating_mul(1000)));
        }
        if request.arg_is(at, b"KEEPTTL") {
            return None;
        }
        if request.arg_is(at, b"PERSIST") {
            return Some(End::Never);
        }
    }
    set.then_some(End::Never)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(line: &str) -> Option<End> {
        end_of(&Request::parse(format!("{line}\r\n").as_bytes()))
    }

    #[test]
    fn ends_are_read_from_the_commands_that_set_them() {
        assert_eq!(end("PEXPIREAT k 5000"), Some(End::At(5000)));
        assert_eq!(end("expireat k 5"), Some(End::At(5000)));
        assert_eq!(end("SET k v PXAT 7 NX"), Some(End::At(7)));
        assert_eq!(end("SET k PXAT EXAT 7"), Some(End::At(7000)));
        assert_eq!(end("SET k v"), Some(End::Never));
        assert_eq!(end("SET k v KEEPTTL"), None);
        assert_eq!(end("GETEX k PERSIST"), Some(End::Never));
        assert_eq!(end("GETEX k"), None);
        assert_eq!(end("RESTORE k 9 x REPLACE ABSTTL"), Some(End::At(9)));
        assert_eq!(end("INCR k"), None);
    }

    #[test]
    fn a_write_races_an_end_that_lies_between_both_executions() {
        let mut expiries = Expiries::default();
        expiries.note(7, End::At(10_000));
        let end_ms = expiries.end_after(7, 9_990).unwrap();
        assert!(may_have_ended(end_ms, 10_001));
        assert!(may_have_ended(end_ms, 9_950), "the clocks may differ");
        assert!(!may_have_ended(end_ms, 9_000), "executed in time");
        assert_eq!(
            expiries.end_after(7, 10_200),
            None,
            "ended on both before it"
        );
        expiries.note(7, End::Never);
        assert_eq!(expiries.end_after(7, 0), None);
    }

    #[test]
    fn the_memory_is_bounded_and_the_latest_stay() {
        let mut expiries = Expiries::default();
        for key in 0..3 * EXPIRY_KEYS_MAX as u64 {
            expiries.note(key, End::At(key + 1));
        }
        assert!(expiries.current.len() + expiries.previous.len() <= 2 * EXPIRY_KEYS_MAX);
        let last = 3 * EXPIRY_KEYS_MAX as u64 - 1;
        assert_eq!(expiries.end_after(last, 0), Some(last + 1));
    }
}
