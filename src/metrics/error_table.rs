//! Errors counted by class, with a bound on how many classes a backend can make us remember.

use std::sync::OnceLock;

use crate::limits::ERROR_CLASSES_MAX;
use crate::mirror::ledger::Counter;

/// Longest class kept; longer words count as `other`. Redis' longest is `UNKILLABLE`/`CLUSTERDOWN`.
const WORD_BYTES_MAX: usize = 15;

/// A short class name: the first two characters of a SQLSTATE, or the first word of a Redis error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorWord {
    len: u8,
    bytes: [u8; WORD_BYTES_MAX],
}

impl ErrorWord {
    /// The class of a SQLSTATE: its first two characters. `None` if it is not one.
    pub fn of_sqlstate(code: &[u8]) -> Option<Self> {
        if code.len() == 5 {
            Self::new(&code[..2])
        } else {
            None
        }
    }

    /// The first word of a Redis error line, with or without its `-`. `None` if the line does not start with one.
    pub fn of_redis(line: &[u8]) -> Option<Self> {
        let line = line.strip_prefix(b"-").unwrap_or(line);
        let end = line
            .iter()
            .position(|b| matches!(b, b' ' | b'\r' | b'\n'))
            .unwrap_or(line.len());
        Self::new(&line[..end])
    }

    fn new(word: &[u8]) -> Option<Self> {
        let plain = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_';
        if word.is_empty() || word.len() > WORD_BYTES_MAX || !word.iter().all(plain) {
            return None;
        }
        let mut bytes = [0; WORD_BYTES_MAX];
        bytes[..word.len()].copy_from_slice(word);
        Some(Self {
            len: word.len() as u8,
            bytes,
        })
    }

    /// The class as text.
    pub fn as_str(&self) -> &str {
        // Only ASCII gets in, so this never takes the fallback.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or("other")
    }
}

/// Error counts by class; one writer, any number of readers.
#[derive(Debug)]
pub struct ErrorTable {
    slots: [(OnceLock<ErrorWord>, Counter); ERROR_CLASSES_MAX],
    other: Counter,
}

impl Default for ErrorTable {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| Default::default()),
            other: Counter::default(),
        }
    }
}

impl ErrorTable {
    /// Counts an error; `None`, and classes beyond the bound, count as `other`. Only the owning core may call this.
    pub fn count(&self, word: Option<ErrorWord>) {
        let Some(word) = word else {
            return self.other.add(1);
        };
        for (key, counter) in &self.slots {
            if *key.get_or_init(|| word) == word {
                return counter.add(1);
            }
        }
        self.other.add(1);
    }

    /// Calls `each(class, count)` for every class seen; `other` comes last.
    pub fn for_each(&self, mut each: impl FnMut(&str, u64)) {
        for (key, counter) in &self.slots {
            let Some(word) = key.get() else { break };
            each(word.as_str(), counter.get());
        }
        if self.other.get() > 0 {
            each("other", self.other.get());
        }
    }

    /// Errors of all classes.
    pub fn total(&self) -> u64 {
        let mut total = 0;
        self.for_each(|_, count| total += count);
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_apart_and_bounded() {
        let table = ErrorTable::default();
        for _ in 0..3 {
            table.count(ErrorWord::of_sqlstate(b"23505"));
        }
        table.count(ErrorWord::of_redis(b"-WRONGTYPE Operation against a key"));
        table.count(ErrorWord::of_redis(b"-\xff\"injected\n"));
        for i in 0..1_000 {
            table.count(ErrorWord::of_redis(format!("E{i} x").as_bytes()));
        }
        let mut seen = Vec::new();
        table.for_each(|word, count| seen.push((word.to_owned(), count)));
        assert_eq!(seen[0], ("23".to_owned(), 3));
        assert_eq!(seen[1], ("WRONGTYPE".to_owned(), 1));
        assert_eq!(seen.len(), ERROR_CLASSES_MAX + 1);
        assert_eq!(seen[ERROR_CLASSES_MAX].0, "other");
        assert_eq!(table.total(), 1_005);
    }
}
