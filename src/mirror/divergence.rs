//! A difference between what the primary and a mirror answered: the record, a bounded store of the
//! latest ones with exact counts, and a rate limit for telling people about them.
//!
//! What counts as a difference is the protocol's business; a kind is its name.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

use crate::limits::{DIVERGENCE_COUNTS_LEN_MAX, DIVERGENCE_VALUE_LEN_MAX};

/// The label of everything that is not counted apart.
pub const OTHER: &str = "other";

/// The beginning of a value, readable: what is not UTF-8 or is a control character is escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    /// At most [`DIVERGENCE_VALUE_LEN_MAX`] bytes of the value.
    pub text: String,
    /// Length of the whole value in bytes.
    pub len: usize,
    /// Whether `text` is only the beginning, or nothing at all because it was redacted.
    pub truncated: bool,
}

impl Excerpt {
    /// The beginning of `value`.
    pub fn new(value: &[u8]) -> Excerpt {
        let shown = &value[..value.len().min(DIVERGENCE_VALUE_LEN_MAX)];
        Excerpt {
            text: readable(shown),
            len: value.len(),
            truncated: shown.len() < value.len(),
        }
    }

    /// Only the length of `value`, for those who may not see it.
    pub fn redacted(value: &[u8]) -> Excerpt {
        Excerpt {
            text: String::new(),
            len: value.len(),
            truncated: !value.is_empty(),
        }
    }
}

/// The bytes as text: UTF-8 as it is, control characters and everything else as `\xNN`.
fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_control() {
                text.extend(letter.escape_default());
            } else {
                text.push(letter);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// The command's name, or the fingerprint of the query.
    pub command: Cow<'static, str>,
    /// The key, or what else the command was about.
    pub key: Excerpt,
    /// The key with its varying parts taken out, so that like keys fall together.
    pub pattern: String,
    /// The protocol's name for this kind of difference.
    pub kind: &'static str,
    /// The primary's answer.
    pub primary: Excerpt,
    /// The mirror's answer.
    pub mirror: Excerpt,
    /// Nanoseconds since 1970 at which it was found.
    pub detected_unix_ns: u64,
    /// The core that found it.
    pub core: usize,
    /// The client whose unit it was.
    pub client: u64,
    /// The mirror's name in the config.
    pub mirror_name: Arc<str>,
}

impl Divergence {
    /// Appends the record as one line of JSON, the newline included.
    pub fn write_json_line(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        out.push(b'\n');
        Ok(())
    }

    /// What log lines about it are limited by: the same command, kind and mirror.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for part in [&self.command, self.kind, &self.mirror_name] {
            hash.update(part.as_bytes());
            hash.update(&[0]);
        }
        hash.digest()
    }
}

/// The latest divergences, and counts of all there ever were.
#[derive(Debug)]
pub struct DivergenceStore {
    latest: VecDeque<Divergence>,
    latest_max: usize,
    /// At most [`DIVERGENCE_COUNTS_LEN_MAX`] pairs and one `other` per kind.
    counts: HashMap<(Cow<'static, str>, &'static str), u64>,
    total: u64,
}

impl DivergenceStore {
    /// Keeps the latest `latest_max` records.
    pub fn new(latest_max: usize) -> Self {
        DivergenceStore {
            latest: VecDeque::new(),
            latest_max,
            counts: HashMap::new(),
            total: 0,
        }
    }

    /// Counts a divergence and keeps it in place of the oldest.
    pub fn push(&mut self, divergence: Divergence) {
        self.total += 1;
        let label = (divergence.command.clone(), divergence.kind);
        let label =
            if self.counts.len() < DIVERGENCE_COUNTS_LEN_MAX || self.counts.contains_key(&label) {
                label
            } else {
                (Cow::Borrowed(OTHER), divergence.kind)
            };
        *self.counts.entry(label).or_default() += 1;
        if self.latest_max == 0 {
            return;
        }
        if self.latest.len() == self.latest_max {
            self.latest.pop_front();
        }
        self.latest.push_back(divergence);
    }

    /// The latest, newest first.
    pub fn latest(&self) -> impl Iterator<Item = &Divergence> {
        self.latest.iter().rev()
    }

    /// How many there were, by command and kind.
    pub fn counts(&self) -> impl Iterator<Item = (&str, &'static str, u64)> {
        let counts = self.counts.iter();
        counts.map(|((command, kind), count)| (command.as_ref(), *kind, *count))
    }

    /// How many there were, by kind, in the order of the names.
    pub fn by_kind(&self) -> Vec<(&'static str, u64)> {
        let mut kinds = std::collections::BTreeMap::new();
        for (_, kind, count) in self.counts() {
            *kinds.entry(kind).or_default() += count;
        }
        kinds.into_iter().collect()
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.total
    }
}

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

    fn divergence(command: impl Into<Cow<'static, str>>) -> Divergence {
        Divergence {
            command: command.into(),
            key: Excerpt::new(b"user:1"),
            pattern: "user:*".into(),
            kind: "data_mismatch",
            primary: Excerpt::new(b"a\r\n\xff"),
            mirror: Excerpt::redacted(b"secret"),
            detected_unix_ns: 5,
            core: 1,
            client: 7,
            mirror_name: "staging".into(),
        }
    }

    #[test]
    fn a_record_is_one_line_of_json_whatever_the_bytes_are() {
        let mut line = Vec::new();
        divergence("GET").write_json_line(&mut line).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["primary"]["text"], "a\\r\\n\\xff");
        assert_eq!(value["mirror"]["text"], "");
        assert_eq!(value["mirror"]["len"], 6);
        assert_eq!(value["kind"], "data_mismatch");
    }

    #[test]
    fn excerpts_end_at_256_bytes_even_inside_a_letter() {
        let value = "ä".repeat(200);
        let excerpt = Excerpt::new(&value.as_bytes()[1..]);
        assert!(excerpt.truncated && excerpt.len == 399);
        assert!(excerpt.text.starts_with("\\xa4ä") && excerpt.text.ends_with("\\xc3"));
        assert!(!Excerpt::new(&[b'x'; 256]).truncated);
    }

    #[test]
    fn the_store_keeps_the_latest_and_counts_all() {
        let mut store = DivergenceStore::new(3);
        for i in 0..10 {
            store.push(divergence(format!("C{}", i % 5)));
        }
        let latest: Vec<_> = store.latest().map(|d| d.command.to_string()).collect();
        assert_eq!(latest, ["C4", "C3", "C2"]);
        assert_eq!(store.by_kind(), [("data_mismatch", 10)]);
        assert!(store.counts().all(|(_, _, count)| count == 2));
    }

    #[test]
    fn labels_beyond_the_bound_count_as_other() {
        let mut store = DivergenceStore::new(0);
        let many = DIVERGENCE_COUNTS_LEN_MAX as u64 + 100;
        for i in 0..many {
            store.push(divergence(format!("Q{i}")));
        }
        assert_eq!(store.counts().count(), DIVERGENCE_COUNTS_LEN_MAX + 1);
        let other = store.counts().find(|(command, ..)| *command == OTHER);
        assert_eq!(other, Some((OTHER, "data_mismatch", 100)));
        assert_eq!(store.by_kind(), [("data_mismatch", many)]);
    }

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

    #[test]
    fn fingerprints_tell_command_kind_and_mirror_apart() {
        let base = divergence("GET");
        let mut other = base.clone();
        other.key = Excerpt::new(b"user:2");
        assert_eq!(base.fingerprint(), other.fingerprint());
        other.mirror_name = "canary".into();
        assert_ne!(base.fingerprint(), other.fingerprint());
        assert_ne!(base.fingerprint(), divergence("SET").fingerprint());
    }
}
