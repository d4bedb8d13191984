//! A unit as a mirror connection is to get it: the named statements in it renamed, and what the connection lacks prepared first.
//!
//! Within a unit only the names in Parse, Bind and Describe change; a Close is left as it is (it names nothing there, which is no
//! error) because another name of the same content may still be in use.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

use super::{CONN_STATEMENTS_MAX, MIRROR_NAME_LEN, Snapshot, StatementId, push_mirror_name};
use crate::protocol::postgres::framer::{FrameError, MessageFramer};
use crate::protocol::postgres::startup::{push_message, split_cstr};

/// What one mirror connection certainly has prepared, oldest first.
#[derive(Debug, Default)]
pub struct ConnStatements {
    pub(super) have: VecDeque<StatementId>,
    /// What the names in a text stand for now.
    scope: u128,
}

impl ConnStatements {
    /// The next unit runs under this [`scope`](crate::protocol::postgres::session::SessionState::scope). A statement that was prepared under
    /// another one is another statement, although its text is the same: its tables may be others.
    pub fn set_scope(&mut self, scope: u128) {
        self.scope = scope;
    }

    /// The statement is certainly there.
    pub fn has(&self, id: StatementId) -> bool {
        self.have.contains(&id)
    }

    /// A unit was replayed. `had_error`: one of its statements, or its preparation, failed, so what it prepared is in doubt (and will
    /// be prepared anew).
    pub fn settle(&mut self, rewritten: &Rewritten<'_>, had_error: bool) {
        self.have
            .retain(|id| !rewritten.evicted.contains(id) && !rewritten.prepared.contains(id));
        if !had_error {
            self.have.extend(&rewritten.prepared);
        }
    }

    /// DEALLOCATE ALL or DISCARD ALL ran on the connection.
    pub fn clear(&mut self) {
        self.have.clear();
    }
}

/// A unit as a mirror connection is to get it.
#[derive(Debug)]
pub struct Rewritten<'a> {
    /// The unit's bytes; borrowed if nothing had to change.
    pub bytes: Cow<'a, [u8]>,
    /// Messages to run as a cycle of their own before the unit: Close, Parse …, Sync. Empty if nothing is missing.
    pub prepare_first: Vec<u8>,
    /// The unit uses a name whose statement is not known; it will fail on the mirror.
    pub unknown: bool,
    /// Where each message begins in the unit and in `bytes`.
    offsets: SmallVec<[(usize, usize); 4]>,
    prepared: Vec<StatementId>,
    evicted: Vec<StatementId>,
}

impl Rewritten<'_> {
    /// The unit leaves the connection's statements as they are: nothing is prepared before it or in it.
    pub fn changes_nothing(&self) -> bool {
        self.prepare_first.is_empty() && self.prepared.is_empty() && self.evicted.is_empty()
    }

    /// Where the first message at or behind `offset` of the unit begins in `bytes`; their end if there is none.
    pub fn offset(&self, offset: usize) -> usize {
        let at = self
            .offsets
            .partition_point(|(original, _)| *original < offset);
        self.offsets
            .get(at)
            .map_or(self.bytes.len(), |(_, rewritten)| *rewritten)
    }
}

/// Renames the named statements of a unit (whole messages) for a connection that has `conn` prepared. `names` is the client's
/// [`ClientStatements::snapshot`](super::ClientStatements::snapshot) of when the unit began.
pub fn rewrite_unit<'a>(
    unit: &'a [u8],
    names: &Snapshot,
    conn: &ConnStatements,
) -> Result<Rewritten<'a>, FrameError> {
    let mut writer = Writer {
        unit,
        out: None,
        names,
        conn,
        own: HashMap::new(),
        first: Vec::new(),
        prepared: Vec::new(),
        used: SmallVec::new(),
        unknown: false,
    };
    let mut framer = MessageFramer::client();
    let mut offsets = SmallVec::new();
    let mut at = 0;
    while at < unit.len() {
        offsets.push((at, writer.out.as_ref().map_or(at, Vec::len)));
        let advance = framer.advance(&unit[at..])?;
        let end = at + advance.consumed;
        let body = &unit[at + advance.body_at..end];
        if !(advance.done && writer.message(framer.tag().unwrap_or_default(), body, at))
            && let Some(out) = &mut writer.out
        {
            out.extend_from_slice(&unit[at..end]);
        }
        at = end;
    }
    let evicted = writer.evict();
    if !writer.first.is_empty() {
        push_message(&mut writer.first, b'S', &[]);
    }
    Ok(Rewritten {
        bytes: writer.out.map_or(Cow::Borrowed(unit), Cow::Owned),
        prepare_first: writer.first,
        unknown: writer.unknown,
        offsets,
        prepared: writer.prepared,
        evicted,
    })
}

struct Writer<'n> {
    unit: &'n [u8],
    /// The new bytes, once something differs.
    out: Option<Vec<u8>>,
    names: &'n Snapshot,
    conn: &'n ConnStatements,
    /// Names that the unit itself has parsed (`Some`) or closed (`None`) by now.
    own: HashMap<Vec<u8>, Option<StatementId>>,
    first: Vec<u8>,
    prepared: Vec<StatementId>,
    /// Statements that the unit's messages name.
    used: SmallVec<[StatementId; 2]>,
    unknown: bool,
}

impl Writer<'_> {
    /// Writes a message anew; false if it stays as it is. `at`: where it begins in the unit.
    fn message(&mut self, tag: u8, body: &[u8], at: usize) -> bool {
        match tag {
            b'P' => {
                let Some((name, content)) = split_cstr(body) else {
                    return false;
                };
                let id = xxh3_128(content) ^ self.conn.scope;
                self.own.insert(name.to_vec(), Some(id));
                if name.is_empty() {
                    return false;
                }
                push_prepare(self.out(at), id, content);
                self.note_prepared(id);
                true
            }
            b'B' => {
                let Some((portal, rest)) = split_cstr(body) else {
                    return false;
                };
                let Some((name, rest)) = split_cstr(rest) else {
                    return false;
                };
                self.renamed(tag, [portal, b"\0"], name, rest, at)
            }
            b'D' | b'C' => {
                let Some((b'S', rest)) = body.split_first() else {
                    return false;
                };
                let Some((name, rest)) = split_cstr(rest) else {
                    return false;
                };
                if tag == b'C' {
                    self.own.insert(name.to_vec(), None);
                    return false;
                }
                self.renamed(tag, [b"S", b""], name, rest, at)
            }
            _ => false,
        }
    }

    /// A message with a statement's name in it.
    fn renamed(&mut self, tag: u8, head: [&[u8]; 2], name: &[u8], rest: &[u8], at: usize) -> bool {
        let id = match self.own.get(name) {
            // The unit's own unnamed statement is there under no name.
            Some(Some(_)) if name.is_empty() => return false,
            Some(Some(id)) => *id,
            Some(None) => return false,
            None => {
                let Some(statement) = self.names.get(name) else {
                    self.unknown = true;
                    return false;
                };
                let id = statement.id ^ self.conn.scope;
                if !self.conn.has(id) && !self.prepared.contains(&id) {
                    push_prepare(&mut self.first, id, &statement.content);
                    self.note_prepared(id);
                }
                id
            }
        };
        self.note_used(id);
        push_named(self.out(at), tag, head, id, rest);
        true
    }

    /// The new bytes, which are the unit's up to `at` so far if none differed.
    fn out(&mut self, at: usize) -> &mut Vec<u8> {
        let unit = self.unit;
        self.out.get_or_insert_with(|| {
            // Room for two names that are longer than the client's.
            let mut out = Vec::with_capacity(unit.len() + 2 * MIRROR_NAME_LEN);
            out.extend_from_slice(&unit[..at]);
            out
        })
    }

    fn note_prepared(&mut self, id: StatementId) {
        if !self.prepared.contains(&id) {
            self.prepared.push(id);
        }
        self.note_used(id);
    }

    fn note_used(&mut self, id: StatementId) {
        if !self.used.contains(&id) {
            self.used.push(id);
        }
    }

    /// Closes the oldest statements of the connection that this unit does not need, to make room.
    fn evict(&mut self) -> Vec<StatementId> {
        let new = self
            .prepared
            .iter()
            .filter(|id| !self.conn.has(**id))
            .count();
        let over = (self.conn.have.len() + new).saturating_sub(CONN_STATEMENTS_MAX);
        if over == 0 {
            return Vec::new();
        }
        let evicted: Vec<_> = self
            .conn
            .have
            .iter()
            .filter(|id| !self.used.contains(id))
            .take(over)
            .copied()
            .collect();
        for id in &evicted {
            push_close(&mut self.first, *id);
        }
        evicted
    }
}

/// A Close first, so that the Parse succeeds whether or not the statement is there.
fn push_prepare(out: &mut Vec<u8>, id: StatementId, content: &[u8]) {
    push_close(out, id);
    push_named(out, b'P', [b"", b""], id, content);
}

fn push_close(out: &mut Vec<u8>, id: StatementId) {
    push_named(out, b'C', [b"S", b""], id, b"");
}

/// A message of `head`, the statement's name on the mirror with its end, and `rest`.
fn push_named(out: &mut Vec<u8>, tag: u8, head: [&[u8]; 2], id: StatementId, rest: &[u8]) {
    let len = 4 + head[0].len() + head[1].len() + MIRROR_NAME_LEN + 1 + rest.len();
    out.push(tag);
    out.extend((len as u32).to_be_bytes());
    out.extend_from_slice(head[0]);
    out.extend_from_slice(head[1]);
    push_mirror_name(out, id);
    out.push(0);
    out.extend_from_slice(rest);
}
