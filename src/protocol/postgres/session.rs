//! What a client's session has that a later unit may depend on, and the statements that bring a mirror connection there.
//!
//! Kept: settings from the startup packet (`options`, `application_name`, any setting), from `SET` and as the server reports
//! them; role and session authorization; LISTEN; SQL-level `PREPARE`. Not kept, and documented so: temporary tables, advisory
//! locks, open cursors, settings changed by functions that the server does not report.
//!
//! A mirror connection begins as [`SessionState::fresh`]: it logs in without any client's settings.

mod words;

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::Xxh3;

use super::lexer::{Lexer, Token};
use super::startup::StartupMessage;
use words::{name_of, qualified, quote_name, rollback_to, set_config, set_name, to_default};

/// Settings, prepared statements and channels that are kept per client; a client that has more loses those behind.
const ENTRIES_MAX: usize = 256;
/// Longest statement that is kept.
const STATEMENT_LEN_MAX: usize = 8 * 1024;
/// Changes of one unit that are kept until it ends.
const PENDING_MAX: usize = 512;

/// Settings that servers report and that a client may set. Where both sides' values are known they say more than the SETs.
const REPORTED: [&str; 7] = [
    "application_name",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "search_path",
    "standard_conforming_strings",
    "timezone",
];

/// A session's state; cheap to compare, cloned when a connection adopts it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    /// By lower-case name.
    settings: BTreeMap<Vec<u8>, Setting>,
    /// As the server last reported them.
    reported: BTreeMap<&'static str, Vec<u8>>,
    listens: BTreeSet<Vec<u8>>,
    /// `PREPARE` statements by name.
    prepared: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Setting {
    /// A value, to be quoted.
    Value(Vec<u8>),
    /// The client's own statement.
    Statement(Vec<u8>),
}

/// The session of one client, or of one mirror connection.
#[derive(Debug, Clone, Default)]
pub struct SessionState {
    values: Values,
    /// What the startup packet asked for: RESET returns to it.
    base: BTreeMap<Vec<u8>, Setting>,
    /// With the cycle that each comes in: later ones may be under way before an earlier one has ended.
    pending: Vec<(u64, Change)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Set(Vec<u8>, Vec<u8>),
    Reset(Vec<u8>),
    ResetAll,
    DiscardAll,
    Listen(Vec<u8>),
    Unlisten(Option<Vec<u8>>),
    Prepare(Vec<u8>, Vec<u8>),
    Deallocate(Option<Vec<u8>>),
    Savepoint(Vec<u8>),
    RollbackTo(Vec<u8>),
}

impl SessionState {
    /// A mirror connection right behind its login; `settings` as the server reported them.
    pub fn fresh<'a>(settings: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut state = Self::default();
        for (name, value) in settings {
            state.parameter_status(name, value);
        }
        state
    }

    /// A client that sent this startup packet.
    pub fn from_startup(startup: &StartupMessage) -> Self {
        let mut state = Self::default();
        for (name, value) in startup.params() {
            match name {
                b"user" | b"database" | b"replication" => {}
                b"options" => state.options(value),
                _ if name.starts_with(b"_pq_.") => {}
                _ => state.base_setting(name, value),
            }
        }
        state.values.settings.clone_from(&state.base);
        state
    }

    fn base_setting(&mut self, name: &[u8], value: &[u8]) {
        if self.base.len() < ENTRIES_MAX {
            self.base
                .insert(name.to_ascii_lowercase(), Setting::Value(value.to_vec()));
        }
    }

    /// `-c name=value`, `-cname=value`, `--name=value`; words are split at blanks, a backslash protects one byte.
    fn options(&mut self, text: &[u8]) {
        let mut words = vec![Vec::new()];
        let mut bytes = text.iter();
        while let Some(&byte) = bytes.next() {
            match byte {
                b'\\' => words
                    .last_mut()
                    .into_iter()
                    .for_each(|w| w.extend(bytes.next())),
                b' ' | b'\t' | b'\n' | b'\r' => words.push(Vec::new()),
                _ => words.last_mut().into_iter().for_each(|w| w.push(byte)),
            }
        }
        let mut takes_next = false;
        for word in words.iter().filter(|word| !word.is_empty()) {
            let setting = match word.as_slice() {
                word if std::mem::take(&mut takes_next) => word,
                b"-c" => {
                    takes_next = true;
                    continue;
                }
                [b'-', b'-' | b'c', setting @ ..] => setting,
                _ => continue,
            };
            if let Some(at) = memchr::memchr(b'=', setting) {
                let name: Vec<u8> = setting[..at]
                    .iter()
                    .map(|b| if *b == b'-' { b'_' } else { *b })
                    .collect();
                self.base_setting(&name, &setting[at + 1..]);
            }
        }
    }

    /// The server reports a setting.
    pub fn parameter_status(&mut self, name: &[u8], value: &[u8]) {
        let known = REPORTED
            .iter()
            .find(|known| name.eq_ignore_ascii_case(known.as_bytes()));
        if let Some(known) = known {
            self.values.reported.insert(known, value.to_vec());
        }
    }

    /// A statement text (one or several statements) that the client sent in this cycle. Takes effect at [`settle`](Self::settle).
    pub fn observe(&mut self, sql: &[u8], cycle: u64) {
        let mut lexer = Lexer::new(sql);
        let (mut start, mut depth) = (0, 0u32);
        let mut tokens: Vec<Token<'_>> = Vec::new();
        loop {
            let token = lexer.next();
            match token {
                Some(Token::Op(b'(')) => depth += 1,
                Some(Token::Op(b')')) => depth = depth.saturating_sub(1),
                _ => {}
            }
            if token.is_none() || token == Some(Token::Op(b';')) && depth == 0 {
                let end = lexer.position() - usize::from(token.is_some());
                self.statement(&tokens, &sql[start..end], cycle);
                tokens.clear();
                start = lexer.position();
                if token.is_none() {
                    return;
                }
            } else if tokens.len() < 5 {
                tokens.extend(token);
            }
        }
    }

    /// `tokens`: the first five.
    fn statement(&mut self, tokens: &[Token<'_>], text: &[u8], cycle: u64) {
        let text = text.trim_ascii();
        if text.len() > STATEMENT_LEN_MAX || self.pending.len() >= PENDING_MAX {
            return;
        }
        let mut lower = Vec::with_capacity(tokens.len());
        lower.extend(tokens.iter().map(name_of));
        let words: Vec<&[u8]> = lower.iter().map(Vec::as_slice).collect();
        let change = match words.as_slice() {
            [b"set", rest @ ..] => set_name(rest).map(|name| Change::Set(name, text.to_vec())),
            [b"reset", b"all", ..] => Some(Change::ResetAll),
            [b"reset", b"session", b"authorization", ..] => {
                Some(Change::Reset(b"session_authorization".to_vec()))
            }
            [b"reset", b"time", b"zone", ..] => Some(Change::Reset(b"timezone".to_vec())),
            [b"reset", name, ..] => Some(Change::Reset(qualified(name, &words[2..]))),
            [b"discard", b"all", ..] => Some(Change::DiscardAll),
            [b"listen", name, ..] => Some(Change::Listen(name.to_vec())),
            [b"unlisten", b"*", ..] => Some(Change::Unlisten(None)),
            [b"unlisten", name, ..] => Some(Change::Unlisten(Some(name.to_vec()))),
            [b"prepare", b"transaction", ..] => None,
            [b"prepare", name, ..] => Some(Change::Prepare(name.to_vec(), text.to_vec())),
            [b"deallocate", rest @ ..] => match rest {
                [b"prepare", b"all", ..] | [b"all", ..] => Some(Change::Deallocate(None)),
                [b"prepare", name, ..] | [name, ..] => {
                    Some(Change::Deallocate(Some(name.to_vec())))
                }
                [] => None,
            },
            [b"savepoint", name, ..] => Some(Change::Savepoint(name.to_vec())),
            [b"rollback" | b"abort", rest @ ..] => rollback_to(rest).map(Change::RollbackTo),
            _ => None,
        };
        self.pending.extend(change.map(|change| (cycle, change)));
    }

    /// The unit ended with this cycle; `committed` unless its transaction was rolled back or its statement failed. PREPARE,
    /// DEALLOCATE and DISCARD ALL do not belong to a transaction and stay.
    pub fn settle(&mut self, cycle: u64, committed: bool) {
        let mut changes: Vec<Change> = Vec::new();
        let count = self.pending.partition_point(|(of, _)| *of <= cycle);
        for (_, change) in self.pending.drain(..count) {
            if let Change::RollbackTo(name) = &change {
                let savepoint = Change::Savepoint(name.clone());
                if let Some(at) = changes.iter().rposition(|have| *have == savepoint) {
                    let kept = changes.split_off(at + 1);
                    changes.extend(kept.into_iter().filter(Change::outlives_rollback));
                }
            } else {
                changes.push(change);
            }
        }
        for change in changes {
            if committed || change.outlives_rollback() {
                self.apply(change);
            }
        }
    }

    fn apply(&mut self, change: Change) {
        let values = &mut self.values;
        match change {
            Change::Set(name, text) => {
                if name == b"session_authorization" {
                    values.settings.remove(&b"role"[..]);
                }
                if to_default(&text) {
                    return self.reset(&name);
                }
                if values.settings.len() < ENTRIES_MAX || values.settings.contains_key(&name) {
                    values.settings.insert(name, Setting::Statement(text));
                }
            }
            Change::Reset(name) => self.reset(&name),
            Change::ResetAll => {
                let roles = |name: &[u8]| matches!(name, b"role" | b"session_authorization");
                values.settings.retain(|name, _| roles(name));
                values.settings.extend(self.base.clone());
            }
            Change::DiscardAll => {
                values.settings.clone_from(&self.base);
                values.listens.clear();
                values.prepared.clear();
            }
            Change::Listen(channel) => {
                if values.listens.len() < ENTRIES_MAX {
                    values.listens.insert(channel);
                }
            }
            Change::Unlisten(None) => values.listens.clear(),
            Change::Unlisten(Some(channel)) => {
                values.listens.remove(&channel);
            }
            Change::Prepare(name, text) => {
                if values.prepared.len() < ENTRIES_MAX {
                    values.prepared.entry(name).or_insert(text);
                }
            }
            Change::Deallocate(None) => values.prepared.clear(),
            Change::Deallocate(Some(name)) => {
                values.prepared.remove(&name);
            }
            Change::Savepoint(_) | Change::RollbackTo(_) => {}
        }
    }

    fn reset(&mut self, name: &[u8]) {
        match self.base.get(name) {
            Some(base) => self.values.settings.insert(name.to_vec(), base.clone()),
            None => self.values.settings.remove(name),
        };
    }

    /// A number that is the same for sessions in which an unqualified name means the same: those with the same
    /// search_path and role.
    pub fn scope(&self) -> u128 {
        let mut hash = Xxh3::new();
        for name in [&b"search_path"[..], b"role", b"session_authorization"] {
            match self.values.settings.get(name) {
                Some(Setting::Value(text) | Setting::Statement(text)) => {
                    hash.update(name);
                    hash.update(text);
                }
                None => hash.update(b"\0"),
            }
        }
        if let Some(reported) = self.values.reported.get("search_path") {
            hash.update(reported);
        }
        hash.digest128()
    }

    /// Whether something of a later cycle waits for [`settle`](Self::settle).
    pub fn is_unsettled(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Statements that bring a connection that is as `have` to this state, to be run one by one outside a transaction. In the
    /// client's encoding. Empty if nothing is missing.
    pub fn diff(&self, have: &Self) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        if self.values == have.values {
            return out;
        }
        // Rights to set things may hang on the role: what is to be undone goes first, with the roles themselves.
        for name in [&b"role"[..], b"session_authorization"] {
            if have.values.settings.contains_key(name)
                && self.values.settings.get(name) != have.values.settings.get(name)
            {
                out.push([b"RESET ", name].concat());
            }
        }
        self.diff_settings(have, &mut out);
        self.diff_rest(have, &mut out);
        for name in [&b"session_authorization"[..], b"role"] {
            let want = self.values.settings.get(name);
            if let Some(setting) = want.filter(|_| want != have.values.settings.get(name)) {
                out.push(setting.statement(name));
            }
        }
        out
    }

    fn diff_settings(&self, have: &Self, out: &mut Vec<Vec<u8>>) {
        let role = |name: &[u8]| matches!(name, b"role" | b"session_authorization");
        let by_report = |name: &[u8]| {
            std::str::from_utf8(name).is_ok_and(|name| {
                let reports = [&self.values.reported, &have.values.reported];
                reports.iter().all(|report| report.contains_key(name))
            })
        };
        for name in have.values.settings.keys() {
            let wanted = self.values.settings.contains_key(name);
            if !wanted && !role(name) && !by_report(name) {
                out.push([b"RESET ", quote_name(name).as_slice()].concat());
            }
        }
        for (name, setting) in &self.values.settings {
            let same = have.values.settings.get(name) == Some(setting);
            if !same && !role(name) && !by_report(name) {
                out.push(setting.statement(name));
            }
        }
        for (name, value) in &self.values.reported {
            if have
                .values
                .reported
                .get(name)
                .is_some_and(|theirs| theirs != value)
            {
                out.push(set_config(name.as_bytes(), value));
            }
        }
    }

    fn diff_rest(&self, have: &Self, out: &mut Vec<Vec<u8>>) {
        let (want, have) = (&self.values, &have.values);
        for channel in have.listens.difference(&want.listens) {
            out.push([b"UNLISTEN ", quote_name(channel).as_slice()].concat());
        }
        for channel in want.listens.difference(&have.listens) {
            out.push([b"LISTEN ", quote_name(channel).as_slice()].concat());
        }
        for (name, text) in &have.prepared {
            if want.prepared.get(name) != Some(text) {
                out.push([b"DEALLOCATE ", quote_name(name).as_slice()].concat());
            }
        }
        for (name, text) in &want.prepared {
            if have.prepared.get(name) != Some(text) {
                out.push(text.clone());
            }
        }
    }

    /// The statements of [`diff`](Self::diff) were run: this connection is now as `want`.
    pub fn adopt(&mut self, want: &Self) {
        let (have, want) = (&mut self.values, &want.values);
        // Mostly nothing has changed, and then nothing is allocated.
        if have == want {
            return;
        }
        have.settings.clone_from(&want.settings);
        have.listens.clone_from(&want.listens);
        have.prepared.clone_from(&want.prepared);
        for (name, value) in &want.reported {
            if let Some(have) = have.reported.get_mut(name) {
                have.clone_from(value);
            }
        }
    }
}

impl Change {
    fn outlives_rollback(&self) -> bool {
        matches!(
            self,
            Self::Prepare(..) | Self::Deallocate(_) | Self::DiscardAll
        )
    }
}

impl Setting {
    fn statement(&self, name: &[u8]) -> Vec<u8> {
        match self {
            Self::Value(value) => set_config(name, value),
            Self::Statement(text) => text.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
