//! Examples of divergences for people: bounded, newest first. The counts are in the metrics, never here.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};

use serde::{Serialize, Serializer};

use super::reply_text::reply_text;
use crate::config::Redact;
use crate::limits::{DIVERGENCE_FIELD_BYTES_MAX, DIVERGENCES_PER_KIND_MAX};
use crate::metrics::DivergenceKind;

/// One divergence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DivergenceRecord {
    /// When it was detected, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The source database.
    pub source: String,
    /// The mirror's destination.
    pub destination: String,
    /// How the answers differ.
    #[serde(serialize_with = "kind_name")]
    pub kind: DivergenceKind,
    /// The Redis command, or the statement's fingerprint.
    pub command: String,
    /// The key, if there is one.
    pub key: String,
    /// The pattern of a pub/sub message, if there is one.
    pub pattern: String,
    /// The primary's answer, readable and truncated.
    pub primary: String,
    /// The mirror's answer, readable and truncated.
    pub mirror: String,
    /// The CPU id of the core that saw it.
    pub core: usize,
    /// The client's address.
    pub client: String,
}

/// The bytes as text: UTF-8 as it is, control characters and everything else as `\xNN`.
pub fn readable(bytes: &[u8]) -> String {
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

/// Hides keys and values behind hashes, under a key of this run: equal ones still look equal, and nobody can try
/// values until one fits.
#[derive(Clone, Debug)]
pub struct Redaction {
    how: Redact,
    key: RandomState,
}

impl Redaction {
    /// With a fresh key.
    pub fn new(how: Redact) -> Self {
        Self {
            how,
            key: RandomState::new(),
        }
    }

    /// A key as records show it.
    pub fn key(&self, key: &[u8]) -> String {
        match self.how {
            Redact::Keys => self.hash(key),
            Redact::Off | Redact::Values => readable(key),
        }
    }

    /// A value as records show it.
    pub fn value(&self, value: &[u8]) -> String {
        match self.how {
            Redact::Off => reply_text(value).unwrap_or_else(|| readable(value)),
            Redact::Values | Redact::Keys => self.hash(value),
        }
    }

    fn hash(&self, bytes: &[u8]) -> String {
        match bytes.is_empty() {
            true => String::new(),
            false => format!("#{:016x}", self.key.hash_one(bytes)),
        }
    }
}

/// The latest divergences of each kind.
#[derive(Debug, Default)]
pub struct DivergenceStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    sequence: u64,
    kinds: [VecDeque<(u64, DivergenceRecord)>; DivergenceKind::ALL.len()],
}

/// Which divergences to show. Empty fields match everything.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DivergenceFilter {
    /// The kind's label.
    pub kind: Option<String>,
    /// The command, in any case.
    pub command: Option<String>,
    /// The mirror's destination.
    pub mirror: Option<String>,
    /// Records to skip, newest first.
    pub offset: usize,
    /// Records to show; 0 stands for 50.
    pub limit: usize,
}

impl DivergenceStore {
    /// Keeps a record; the oldest of its kind goes if there are too many.
    pub fn push(&self, mut record: DivergenceRecord) {
        for field in [
            &mut record.source,
            &mut record.destination,
            &mut record.command,
            &mut record.key,
            &mut record.pattern,
            &mut record.primary,
            &mut record.mirror,
            &mut record.client,
        ] {
            truncate(field, DIVERGENCE_FIELD_BYTES_MAX);
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.sequence += 1;
        let sequence = inner.sequence;
        let kind = &mut inner.kinds[record.kind as usize];
        if kind.len() == DIVERGENCES_PER_KIND_MAX {
            kind.pop_front();
        }
        kind.push_back((sequence, record));
    }

    /// The matching records, newest first, and how many match in all.
    pub fn query(&self, filter: &DivergenceFilter) -> (usize, Vec<DivergenceRecord>) {
        const LIMIT_DEFAULT: usize = 50;
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<&(u64, DivergenceRecord)> = inner
            .kinds
            .iter()
            .flatten()
            .filter(|(_, record)| filter.matches(record))
            .collect();
        found.sort_unstable_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
        let total = found.len();
        let limit = if filter.limit == 0 {
            LIMIT_DEFAULT
        } else {
            filter.limit
        };
        let page = found.into_iter().skip(filter.offset).take(limit);
        (total, page.map(|(_, record)| record.clone()).collect())
    }
}

impl DivergenceFilter {
    fn matches(&self, record: &DivergenceRecord) -> bool {
        let kind = |k: &String| k == record.kind.as_str();
        let command = |c: &String| c.eq_ignore_ascii_case(&record.command);
        let mirror = |m: &String| {
            *m == record.destination || *m == format!("{}:{}", record.source, record.destination)
        };
        self.kind.as_ref().is_none_or(kind)
            && self.command.as_ref().is_none_or(command)
            && self.mirror.as_ref().is_none_or(mirror)
    }
}

/// Cuts a text that is longer than so many bytes.
pub(super) fn truncate(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let mut end = bytes_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
        text.shrink_to_fit();
    }
}

fn kind_name<S: Serializer>(kind: &DivergenceKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: DivergenceKind, command: &str, primary: &str) -> DivergenceRecord {
        DivergenceRecord {
            at_unix_ms: 1,
            source: "a".into(),
            destination: "b".into(),
            kind,
            command: command.into(),
            key: String::new(),
            pattern: String::new(),
            primary: primary.into(),
            mirror: String::new(),
            core: 0,
            client: String::new(),
        }
    }

    #[test]
    fn redaction_hides_and_equal_values_still_look_equal() {
        let hidden = Redaction::new(Redact::Keys);
        assert_eq!(hidden.value(b"secret"), hidden.key(b"secret"));
        assert_ne!(hidden.value(b"secret"), hidden.value(b"Secret"));
        assert!(!hidden.value(b"secret").contains("secret"));
        let another_run = Redaction::new(Redact::Keys);
        assert_ne!(hidden.value(b"secret"), another_run.value(b"secret"));
        let values = Redaction::new(Redact::Values);
        assert_eq!(values.key(b"user:1\r\n\xff"), "user:1\\r\\n\\xff");
        assert!(values.value(b"1").starts_with('#'));
        assert_eq!(
            Redaction::new(Redact::Off).value("gr\u{fc}n".as_bytes()),
            "grün"
        );
    }

    #[test]
    fn a_loud_kind_does_not_push_out_a_rare_one() {
        let store = DivergenceStore::default();
        store.push(record(
            DivergenceKind::TypeMismatch,
            "GET",
            &"ä".repeat(1_000),
        ));
        for i in 0..10_000 {
            store.push(record(DivergenceKind::DataMismatch, "HGET", &i.to_string()));
        }
        let (total, page) = store.query(&DivergenceFilter::default());
        assert_eq!((total, page.len()), (DIVERGENCES_PER_KIND_MAX + 1, 50));
        assert_eq!(page[0].primary, "9999");
        let rare = DivergenceFilter {
            command: Some("get".into()),
            ..DivergenceFilter::default()
        };
        let (total, page) = store.query(&rare);
        assert_eq!(total, 1);
        assert!(page[0].primary.len() <= DIVERGENCE_FIELD_BYTES_MAX + '…'.len_utf8());
    }
}
