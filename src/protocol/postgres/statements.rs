//! Named prepared statements, carried from a client's session to mirror connections that serve many clients.
//!
//! The unnamed statement is carried too: a driver that parses in one unit and binds in the next must not meet another
//! client's unnamed statement on the mirror.
//!
//! On the mirror a statement is named by its content, so that equal statements of all clients are one. Within a unit only the names in
//! Parse, Bind and Describe change; a Close is left as it is (it names nothing there, which is no error) because another name of
//! the same content may still be in use.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use xxhash_rust::xxh3::xxh3_128;

use super::framer::{FrameError, MessageFramer};
use super::sql::{self, Class};
use super::startup::split_cstr;
use super::tracker::{CycleDone, Named};

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

/// What one mirror connection certainly has prepared, oldest first.
#[derive(Debug, Default)]
pub struct ConnStatements {
    have: VecDeque<StatementId>,
    /// What the names in a text stand for now.
    scope: u128,
}

impl ConnStatements {
    /// The next unit runs under this [`scope`](super::session::SessionState::scope). A statement that was prepared under
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
    offsets: Vec<(usize, usize)>,
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
/// [`ClientStatements::snapshot`] of when the unit began.
pub fn rewrite_unit<'a>(
    unit: &'a [u8],
    names: &Snapshot,
    conn: &ConnStatements,
) -> Result<Rewritten<'a>, FrameError> {
    let mut writer = Writer {
        out: None,
        names,
        conn,
        own: HashMap::new(),
        first: Vec::new(),
        prepared: Vec::new(),
        used: Vec::new(),
        unknown: false,
    };
    let mut framer = MessageFramer::client();
    let mut offsets = Vec::new();
    let mut at = 0;
    while at < unit.len() {
        offsets.push((at, writer.out.as_ref().map_or(at, Vec::len)));
        let advance = framer.advance(&unit[at..])?;
        let end = at + advance.consumed;
        let body = &unit[at + advance.body_at..end];
        if !(advance.done && writer.message(framer.tag().unwrap_or_default(), body, &unit[..at]))
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
    /// The new bytes, once something differs.
    out: Option<Vec<u8>>,
    names: &'n Snapshot,
    conn: &'n ConnStatements,
    /// Names that the unit itself has parsed (`Some`) or closed (`None`) by now.
    own: HashMap<Vec<u8>, Option<StatementId>>,
    first: Vec<u8>,
    prepared: Vec<StatementId>,
    /// Statements that the unit's messages name.
    used: Vec<StatementId>,
    unknown: bool,
}

impl Writer<'_> {
    /// Writes a message anew; false if it stays as it is. `before`: the unit up to it.
    fn message(&mut self, tag: u8, body: &[u8], before: &[u8]) -> bool {
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
                let out = self.out.get_or_insert_with(|| before.to_vec());
                push_prepare(out, id, content);
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
                self.renamed(tag, &[portal, b"\0"].concat(), name, rest, before)
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
                self.renamed(tag, b"S", name, rest, before)
            }
            _ => false,
        }
    }

    /// A message with a statement's name in it.
    fn renamed(&mut self, tag: u8, head: &[u8], name: &[u8], rest: &[u8], before: &[u8]) -> bool {
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
        let body = [head, mirror_name(id).as_bytes(), b"\0", rest].concat();
        let out = self.out.get_or_insert_with(|| before.to_vec());
        push_message(out, tag, &body);
        true
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

/// The statement's name on every mirror connection.
pub fn mirror_name(id: StatementId) -> String {
    format!("ph_{id:032x}")
}

/// A Close first, so that the Parse succeeds whether or not the statement is there.
fn push_prepare(out: &mut Vec<u8>, id: StatementId, content: &[u8]) {
    push_close(out, id);
    push_message(
        out,
        b'P',
        &[mirror_name(id).as_bytes(), b"\0", content].concat(),
    );
}

fn push_close(out: &mut Vec<u8>, id: StatementId) {
    push_message(out, b'C', format!("S{}\0", mirror_name(id)).as_bytes());
}

fn push_message(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    out.push(tag);
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::postgres::tracker::TxStatus;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_message(&mut out, tag, body);
        out
    }

    fn done(cycle: u64, had_error: bool, answered: u32) -> CycleDone {
        CycleDone {
            cycle,
            status: TxStatus::Idle,
            had_error,
            answered,
            unfinished: 0,
        }
    }

    fn observed(statements: &mut ClientStatements, name: &[u8], sql: &str, cycle: u64) {
        let body = [name, b"\0", sql.as_bytes(), b"\0\0\0"].concat();
        statements.observe(
            &Named::Parse {
                name,
                body: Some(&body),
                ordinal: 0,
            },
            cycle,
        );
    }

    #[test]
    fn a_bind_to_an_older_statement_is_prepared_first_and_renamed() {
        let mut client = ClientStatements::default();
        observed(&mut client, b"s1", "select $1", 1);
        client.settle(&done(1, false, 1));
        let unit = [
            message(b'B', b"p\0s1\0rest"),
            message(b'E', b"p\0\0\0\0\0"),
            message(b'S', b""),
        ]
        .concat();
        let mut conn = ConnStatements::default();
        let id = client.get(b"s1").unwrap().id;
        let first = rewrite_unit(&unit, &client.snapshot(), &conn).unwrap();
        let name = mirror_name(id);
        let expected = [
            message(b'B', format!("p\0{name}\0rest").as_bytes()),
            message(b'E', b"p\0\0\0\0\0"),
            message(b'S', b""),
        ];
        assert_eq!(first.bytes, expected.concat());
        let prepare = [
            message(b'C', format!("S{name}\0").as_bytes()),
            message(b'P', format!("{name}\0select $1\0\0\0").as_bytes()),
            message(b'S', b""),
        ];
        assert_eq!(first.prepare_first, prepare.concat());
        conn.settle(&first, false);
        assert!(
            rewrite_unit(&unit, &client.snapshot(), &conn)
                .unwrap()
                .prepare_first
                .is_empty()
        );
        conn.settle(&first, true);
        assert!(!conn.has(id));
    }

    #[test]
    fn an_unnamed_statement_of_an_earlier_unit_is_bound_by_its_content() {
        let mut client = ClientStatements::default();
        observed(&mut client, b"", "select 7 order by 1", 1);
        assert!(client.get(b"").unwrap().ordered);
        let unit = [message(b'B', b"\0\0rest"), message(b'S', b"")].concat();
        let conn = ConnStatements::default();
        let rewritten = rewrite_unit(&unit, &client.snapshot(), &conn).unwrap();
        let name = mirror_name(client.get(b"").unwrap().id);
        let bind = message(b'B', format!("\0{name}\0rest").as_bytes());
        assert!(rewritten.bytes.starts_with(&bind) && !rewritten.prepare_first.is_empty());
    }

    #[test]
    fn a_unit_without_named_statements_is_not_copied() {
        let unit = [
            message(b'P', b"\0select 1\0\0\0"),
            message(b'B', b"\0\0"),
            message(b'S', b""),
        ]
        .concat();
        let rewritten =
            rewrite_unit(&unit, &Snapshot::default(), &ConnStatements::default()).unwrap();
        assert!(matches!(rewritten.bytes, Cow::Borrowed(_)) && !rewritten.unknown);
    }

    #[test]
    fn a_statement_parsed_in_the_unit_goes_before_an_older_one_of_its_name() {
        let mut client = ClientStatements::default();
        observed(&mut client, b"s", "select 1", 1);
        let unit = [
            message(b'C', b"Ss\0"),
            message(b'P', b"s\0select 2\0\0\0"),
            message(b'D', b"Ss\0"),
            message(b'S', b""),
        ]
        .concat();
        let conn = ConnStatements::default();
        let rewritten = rewrite_unit(&unit, &client.snapshot(), &conn).unwrap();
        let name = mirror_name(xxh3_128(b"select 2\0\0\0"));
        let describe = message(b'D', format!("S{name}\0").as_bytes());
        assert!(
            rewritten
                .bytes
                .windows(describe.len())
                .any(|w| w == describe)
        );
        assert!(rewritten.prepare_first.is_empty());
        assert!(rewritten.bytes.starts_with(&message(b'C', b"Ss\0")));
    }

    #[test]
    fn a_refused_parse_leaves_the_older_statement() {
        let mut client = ClientStatements::default();
        observed(&mut client, b"s", "select 1", 1);
        client.settle(&done(1, false, 1));
        let before = client.get(b"s").unwrap().id;
        observed(&mut client, b"s", "select 2", 2);
        assert_ne!(client.get(b"s").unwrap().id, before);
        client.settle(&done(2, true, 0));
        assert_eq!(client.get(b"s").unwrap().id, before);
        observed(&mut client, b"t", "selekt", 3);
        client.settle(&done(3, true, 0));
        assert!(client.get(b"t").is_none());
    }

    #[test]
    fn memory_is_bounded_and_unknown_names_are_told() {
        let mut client = ClientStatements::default();
        for n in 0..5000u64 {
            observed(&mut client, format!("s{n}").as_bytes(), &"x".repeat(600), n);
        }
        assert!(client.bytes() <= CLIENT_STATEMENT_BYTES_MAX + 8);
        assert!(client.snapshot().names.len() <= CLIENT_STATEMENTS_MAX && client.lost() > 0);
        let unit = message(b'B', b"\0s4999\0");
        let conn = ConnStatements::default();
        assert!(
            rewrite_unit(&unit, &client.snapshot(), &conn)
                .unwrap()
                .unknown
        );
    }

    #[test]
    fn a_connection_keeps_a_bounded_number_of_statements() {
        let mut conn = ConnStatements::default();
        for n in 0..CONN_STATEMENTS_MAX + 50 {
            let unit = message(b'P', format!("s\0select {n}\0\0\0").as_bytes());
            let rewritten = rewrite_unit(&unit, &Snapshot::default(), &conn).unwrap();
            conn.settle(&rewritten, false);
        }
        assert_eq!(conn.have.len(), CONN_STATEMENTS_MAX);
    }
}
