//! Keys of which the secondary may hold something else than the primary.
//!
//! A key is tainted when a write of it was dropped, failed on the secondary, or has an unknown outcome or order. It
//! stays tainted until a copy of it has been queued for the secondary with no write in between. The set is bounded;
//! beyond the bound everything counts as tainted.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::keys::hash;
use crate::limits::{TAINT_BYTES_MAX, TAINT_KEYS_MAX};

/// Hashes what is a hash already.
#[derive(Debug, Default)]
pub struct HashIsHash(u64);

impl Hasher for HashIsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A key by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its database.
    pub db: u32,
    /// Its name.
    pub name: Box<[u8]>,
}

impl Key {
    /// What [`super::keys::hash`] makes of it.
    pub fn hash(&self) -> u64 {
        hash(self.db, &self.name)
    }
}

#[derive(Debug)]
struct Entry {
    key: Key,
    attempts: u32,
    /// Handed out by [`TaintSet::next`]; tainted again since then if `again`.
    out: bool,
    again: bool,
    not_before_ns: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct TaintSet {
    entries: HashMap<u64, Entry, BuildHasherDefault<HashIsHash>>,
    waiting: VecDeque<u64>,
    bytes: usize,
    /// All keys, named or not. Counts up with each reason, so that a walk through all keys sees whether it must begin
    /// again.
    all: u64,
    all_done: u64,
}

/// Pause before a key is tried again that was written meanwhile, doubled with each attempt.
const RETRY_NS_MIN: u64 = 5_000_000;
const RETRY_DOUBLINGS_MAX: u32 = 6;

impl TaintSet {
    /// Taints a key. Beyond the bound everything is.
    pub fn add(&mut self, db: u32, name: &[u8]) {
        let hash = hash(db, name);
        if let Some(entry) = self.entries.get_mut(&hash) {
            entry.again = true;
            return;
        }
        if self.entries.len() >= TAINT_KEYS_MAX || self.bytes + name.len() > TAINT_BYTES_MAX {
            return self.add_all();
        }
        self.bytes += name.len();
        let key = Key {
            db,
            name: name.into(),
        };
        let entry = Entry {
            key,
            attempts: 0,
            out: false,
            again: false,
            not_before_ns: 0,
        };
        self.entries.insert(hash, entry);
        self.waiting.push_back(hash);
    }

    /// Taints every key.
    pub fn add_all(&mut self) {
        self.all += 1;
    }

    /// Whether every key is tainted.
    pub fn is_all(&self) -> bool {
        self.all > self.all_done
    }

    /// A walk through all keys begins: what to give to [`TaintSet::all_repaired`] at its end.
    pub fn walk(&self) -> u64 {
        self.all
    }

    /// A walk through all keys has ended. If more reasons came since it began, another one is due.
    pub fn all_repaired(&mut self, walk: u64) {
        self.all_done = self.all_done.max(walk);
    }

    /// Whether a comparison of this key would say nothing.
    pub fn contains(&self, hash: u64) -> bool {
        self.is_all() || self.entries.contains_key(&hash)
    }

    /// Keys by name that are tainted.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No key is tainted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.is_all()
    }

    /// The next key to copy. It stays tainted until [`TaintSet::repaired`].
    pub fn next(&mut self, now_ns: u64) -> Option<Key> {
        for _ in 0..self.waiting.len() {
            let hash = self.waiting.pop_front()?;
            match self.entries.get_mut(&hash) {
                Some(entry) if entry.not_before_ns <= now_ns => {
                    (entry.out, entry.again) = (true, false);
                    return Some(entry.key.clone());
                }
                Some(_) => self.waiting.push_back(hash),
                None => {}
            }
        }
        None
    }

    /// A copy of the key was queued. If it was tainted again since it was handed out, it is copied once more.
    pub fn repaired(&mut self, hash: u64, now_ns: u64) {
        let Some(entry) = self.entries.get(&hash) else {
            return;
        };
        if entry.again {
            self.retry(hash, now_ns);
        } else if let Some(entry) = self.entries.remove(&hash) {
            self.bytes -= entry.key.name.len();
        }
    }

    /// The copy did not succeed: later again.
    pub fn retry(&mut self, hash: u64, now_ns: u64) {
        if let Some(entry) = self.entries.get_mut(&hash)
            && entry.out
        {
            let pause = RETRY_NS_MIN << entry.attempts.min(RETRY_DOUBLINGS_MAX);
            entry.attempts = entry.attempts.saturating_add(1);
            entry.not_before_ns = now_ns.saturating_add(pause);
            (entry.out, entry.again) = (false, false);
            self.waiting.push_back(hash);
        }
    }

    /// Keys that rest are due at once: nobody writes for a moment.
    pub fn hurry(&mut self) {
        for entry in self.entries.values_mut() {
            entry.not_before_ns = 0;
        }
    }

    /// The names, for the journal.
    pub fn names(&self) -> impl Iterator<Item = &Key> {
        self.entries.values().map(|entry| &entry.key)
    }

    /// Nothing is tainted any more: the roles were swapped, or nobody follows.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.waiting.clear();
        self.bytes = 0;
        self.all_done = self.all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_clean_only_when_nothing_happened_since_it_was_handed_out() {
        let mut set = TaintSet::default();
        set.add(0, b"a");
        set.add(0, b"a");
        let key = set.next(0).unwrap();
        assert!(set.next(0).is_none() && set.contains(key.hash()));
        set.add(0, b"a");
        set.repaired(key.hash(), 0);
        assert!(set.contains(key.hash()), "tainted again meanwhile");
        assert!(set.next(0).is_none(), "it rests first");
        assert_eq!(set.next(RETRY_NS_MIN), Some(key.clone()));
        set.repaired(key.hash(), RETRY_NS_MIN);
        assert!(set.is_empty());
    }

    #[test]
    fn beyond_the_bound_everything_is_tainted() {
        let mut set = TaintSet::default();
        for at in 0..=TAINT_KEYS_MAX {
            set.add(0, &at.to_be_bytes());
        }
        assert!(set.is_all() && set.contains(hash(5, b"anything")));
        let walk = set.walk();
        set.add_all();
        set.all_repaired(walk);
        assert!(set.is_all(), "another reason came during the walk");
        set.all_repaired(set.walk());
        assert!(!set.is_all());
    }
}
