//! Named prepared statements, carried from a client's session to mirror connections that serve many clients: what each name of a
//! client stands for. How a unit is renamed with that is in [`rewrite_unit`].
//!
//! The unnamed statement is carried too: a driver that parses in one unit and binds in the next must not meet another
//! client's unnamed statement on the mirror.
//!
//! On the mirror a statement is named by its content, so that equal statements of all clients are one.

mod rewrite;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use xxhash_rust::xxh3::xxh3_128;

use super::sql::{self, Class};
use super::startup::split_cstr;
use super::tracker::{CycleDone, Named};
pub use rewrite::{ConnStatements, Rewritten, rewrite_unit};

/// Named statements remembered per client.
pub const CLIENT_STATEMENTS_MAX: usize = 1024;
/// Bytes of Parse messages remembered per client.
pub const CLIENT_STATEMENT_BYTES_MAX: usize = 1024 * 1024;
/// Parses per client that no server has confirmed yet; further ones are believed at once.
const PENDING_MAX: usize = 4096;
/// Statements kept prepared on one mirror connection (each costs the mirror memory).
pub const CONN_STATEMENTS_MAX: usize = 256;

/// The content of a statement: a hash of its text and parameter types.
pub type StatementId = u128;

/// A statement as its client prepared it.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    /// Hash of `content`.
    pub id: StatementId,
    /// What it may do.
    pub class: Class,
    /// Its rows have an order of their own.
    pub ordered: bool,
    /// Running it leaves traces in the session: [`sql::leaves_traces`].
    pub traces: bool,
    /// The Parse message's body behind the name.
    pub content: Box<[u8]>,
}

impl Statement {
    fn new(content: &[u8]) -> Self {
        let sql = split_cstr(content).map_or(content, |(sql, _)| sql);
        let class = sql::classify(sql);
        Self {
            id: xxh3_128(content),
            class,
            traces: sql::leaves_traces(sql, class),
            ordered: sql::has_order_by(sql),
            content: content.into(),
        }
    }

    /// Its text.
    pub fn sql(&self) -> &[u8] {
        split_cstr(&self.content).map_or(&self.content, |(sql, _)| sql)
    }
}

/// The statement's name on every mirror connection.
pub fn mirror_name(id: StatementId) -> String {
    format!("ph_{id:032x}")
}

/// Bytes of [`mirror_name`].
const MIRROR_NAME_LEN: usize = 3 + 32;

/// Appends [`mirror_name`].
fn push_mirror_name(out: &mut Vec<u8>, id: StatementId) {
    out.extend_from_slice(b"ph_");
    for byte in id.to_be_bytes() {
        for half in [byte >> 4, byte & 15] {
            out.push(b"0123456789abcdef"[usize::from(half)]);
        }
    }
}

/// Names and what they stand for.
pub type Names = HashMap<Box<[u8]>, Rc<Statement>>;

/// The statements as they were when a unit began; costs two reference counts.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    names: Rc<Names>,
    unnamed: Option<Rc<Statement>>,
}

impl Snapshot {
    /// A statement by its name; the empty name is the unnamed one.
    pub fn get(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        if name.is_empty() {
            self.unnamed.as_ref()
        } else {
            self.names.get(name)
        }
    }
}

/// The named statements of one client. Believes what the client sent and takes back what the primary refused or skipped.
#[derive(Debug, Default)]
pub struct ClientStatements {
    now: Snapshot,
    bytes: usize,
    /// In the order of the messages.
    pending: VecDeque<Pending>,
    /// The newest cycle that is answered.
    settled: u64,
    lost: u64,
}

/// What a message has changed here and not yet, for all we know, on the server.
#[derive(Debug)]
struct Pending {
    cycle: u64,
    ordinal: u32,
    undo: Undo,
}

#[derive(Debug)]
enum Undo {
    /// What this name stood for.
    Name(Box<[u8]>, Option<Rc<Statement>>),
    /// What all names stood for.
    All(Rc<Names>),
}

impl ClientStatements {
    /// A message of the client about a statement, in the cycle that the tracker named.
    pub fn observe(&mut self, named: &Named<'_>, cycle: u64) {
        match *named {
            Named::Bind { .. } => {}
            Named::Close { name, ordinal } => {
                let before = self.forget(name);
                self.expect(cycle, ordinal, name, None, before);
            }
            Named::Query { ordinal } => {
                let before = self.forget(b"");
                self.expect(cycle, ordinal, b"", None, before);
            }
            Named::Parse {
                name,
                body,
                ordinal,
            } => {
                let content = body.and_then(split_cstr).map(|(_, content)| content);
                let room = CLIENT_STATEMENT_BYTES_MAX.saturating_sub(self.bytes);
                let full = self.now.names.len() >= CLIENT_STATEMENTS_MAX;
                let before = self.forget(name);
                let content = content.filter(|c| !full && c.len() <= room);
                self.lost += u64::from(content.is_none());
                let made = content.map(|content| Rc::new(Statement::new(content)));
                self.put(name, made.clone());
                self.expect(cycle, ordinal, name, made.as_ref(), before);
            }
        }
    }

    /// The message takes effect when the server comes to it, unless that skips it.
    fn expect(
        &mut self,
        cycle: u64,
        ordinal: u32,
        name: &[u8],
        made: Option<&Rc<Statement>>,
        before: Option<Rc<Statement>>,
    ) {
        // Nothing for nothing changes nothing, unless the first nothing is in doubt itself.
        let changes = made.is_some() || before.is_some() || !self.pending.is_empty();
        if changes && self.pending.len() < PENDING_MAX {
            self.pending.push_back(Pending {
                cycle,
                ordinal,
                undo: Undo::Name(name.into(), before),
            });
        }
    }

    /// The primary has answered: what it refused or skipped is taken back.
    pub fn settle(&mut self, done: &CycleDone) {
        // More cycles than this one are answered at once only if an error made the server skip what was between them.
        let first = self.settled + 1;
        self.settled = done.cycle;
        let count = self.pending.partition_point(|one| one.cycle <= done.cycle);
        if !done.had_error {
            self.pending.drain(..count);
            return;
        }
        let answered: Vec<Pending> = self.pending.drain(..count).collect();
        // The newest first, since each notes what the one before it left.
        for one in answered.into_iter().rev() {
            let skipped = one.cycle > first || one.ordinal > done.answered;
            let failed = !skipped && one.ordinal == done.answered;
            match one.undo {
                // The unnamed statement ends with the message, however that fares.
                Undo::Name(name, _) if failed && name.is_empty() => self.restore(&name, None),
                Undo::Name(name, before) if failed || skipped => self.restore(&name, before),
                Undo::All(before) if failed || skipped => {
                    for (name, statement) in before.iter() {
                        self.restore(name, Some(statement.clone()));
                    }
                }
                Undo::Name(..) | Undo::All(_) => {}
            }
        }
    }

    /// The name stands for this, or did before messages that are still unanswered.
    fn restore(&mut self, name: &[u8], statement: Option<Rc<Statement>>) {
        for later in &mut self.pending {
            match &mut later.undo {
                Undo::Name(other, before) if **other == *name => return *before = statement,
                Undo::All(before) if !name.is_empty() => {
                    let before = Rc::make_mut(before);
                    match statement {
                        Some(statement) => before.insert(name.into(), statement),
                        None => before.remove(name),
                    };
                    return;
                }
                Undo::Name(..) | Undo::All(_) => {}
            }
        }
        self.forget(name);
        self.put(name, statement);
    }

    /// DEALLOCATE ALL or DISCARD ALL: the unnamed statement stays.
    pub fn clear(&mut self) {
        self.now.names = Rc::default();
        self.bytes = self
            .now
            .unnamed
            .as_ref()
            .map_or(0, |unnamed| unnamed.content.len());
        self.pending.clear();
    }

    /// The same is on its way, as this message of that cycle.
    pub fn clear_at(&mut self, cycle: u64, ordinal: u32) {
        let pending = std::mem::take(&mut self.pending);
        let before = self.now.names.clone();
        self.clear();
        self.pending = pending;
        if self.pending.len() < PENDING_MAX {
            self.pending.push_back(Pending {
                cycle,
                ordinal,
                undo: Undo::All(before),
            });
        }
    }

    /// Returns what it stood for.
    fn forget(&mut self, name: &[u8]) -> Option<Rc<Statement>> {
        let old = if name.is_empty() {
            self.now.unnamed.take()
        } else if self.now.names.contains_key(name) {
            Rc::make_mut(&mut self.now.names).remove(name)
        } else {
            None
        };
        self.bytes -= old.as_ref().map_or(0, |old| old.content.len() + name.len());
        old
    }

    fn put(&mut self, name: &[u8], statement: Option<Rc<Statement>>) {
        let Some(statement) = statement else {
            return;
        };
        self.bytes += statement.content.len() + name.len();
        if name.is_empty() {
            self.now.unnamed = Some(statement);
        } else {
            Rc::make_mut(&mut self.now.names).insert(name.into(), statement);
        }
    }

    /// A statement by its name; the empty name is the unnamed one.
    pub fn get(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        self.now.get(name)
    }

    /// The names now, for a unit that begins now.
    pub fn snapshot(&self) -> Snapshot {
        self.now.clone()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Statements that did not fit; units that use them are [`Rewritten::unknown`].
    pub fn lost(&self) -> u64 {
        self.lost
    }
}
