//! Prepared statements of clients that share a primary connection: renamed on the way there, and their replies put right on
//! the way back. Byte streams, not whole units.
//!
//! On the server a statement is named by its content, so that equal statements of all clients are one. A statement that the
//! connection lacks is prepared before the message that uses it; one that it has is not parsed again. The replies to what
//! the client did not send are left out. Sans-IO; holds the head of one message and what replies are awaited.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::pinning::clears_all;
use super::sql::Class;
use super::startup::{push_message, split_cstr};
use super::statements::{
    CONN_STATEMENTS_MAX, ClientStatements, Statement, StatementId, mirror_name,
};
use super::tracker::{Named, STATEMENT_CAPTURE_MAX, StatementText, Tracker, TxStatus};

/// Longest head of a message that is held until its names are known. PostgreSQL's own clients keep names under 64 bytes.
const HEAD_MAX: usize = 16 * 1024;
/// Type and length.
const HEADER_LEN: usize = 5;
/// Names no statement: a Close of it succeeds and does nothing.
const NO_STATEMENT: &[u8] = b"Sph_\0";

/// What becomes of the bytes that were given.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// They go on as they are.
    Pass,
    /// They are held, or replaced by what was appended to `out`.
    Replaced,
    /// The message has names that no client of PostgreSQL makes.
    TooLong,
}

/// What to do with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The client asked for it.
    Pass,
    /// It did not.
    Drop,
    /// The client asked for one of this type.
    As(u8),
}

/// A reply of type `1` (ParseComplete) or `3` (CloseComplete) that will come.
#[derive(Debug)]
struct Awaited {
    /// Which cycle it belongs to; 0 until [`ServerStatements::sent`].
    cycle: u64,
    tag: u8,
    reply: Reply,
    /// The statement is there when it comes.
    made: Option<StatementId>,
}

/// What one primary connection has prepared, and the replies that it owes.
#[derive(Debug, Default)]
pub struct ServerStatements {
    /// Statements that are certainly there, and when each was last used.
    have: HashMap<StatementId, u64>,
    uses: u64,
    /// Statements on their way in the pipeline's current segment: there, unless the segment fails.
    coming: Vec<StatementId>,
    awaited: VecDeque<Awaited>,
    /// Replies whose cycle is not known yet, at the end of `awaited`.
    unsent: usize,
    /// The unnamed statement there is that of the client which holds the connection.
    unnamed: bool,
}

impl ServerStatements {
    /// The messages made so far belong to this cycle.
    pub fn sent(&mut self, cycle: u64) {
        let at = self.awaited.len() - self.unsent;
        self.awaited
            .range_mut(at..)
            .for_each(|awaited| awaited.cycle = cycle);
        self.unsent = 0;
    }

    /// The type of the server's next message: what to do with it.
    pub fn reply(&mut self, tag: u8) -> Reply {
        if !matches!(tag, b'1' | b'3') || self.awaited.front().is_none_or(|next| next.tag != tag) {
            return Reply::Pass;
        }
        let Some(awaited) = self.awaited.pop_front() else {
            return Reply::Pass;
        };
        if let Some(id) = awaited.made {
            self.uses += 1;
            self.have.insert(id, self.uses);
        }
        awaited.reply
    }

    /// The cycle and all before it are answered; after an error some replies do not come.
    pub fn cycle_done(&mut self, cycle: u64, had_error: bool) {
        while self
            .awaited
            .front()
            .is_some_and(|awaited| awaited.cycle <= cycle)
        {
            self.awaited.pop_front();
        }
        if had_error {
            self.unnamed = false;
            self.coming.clear();
        }
    }

    /// The names of the statements that are certainly there.
    pub fn certain(&self) -> impl Iterator<Item = String> {
        self.have.keys().copied().map(mirror_name)
    }

    /// Another client gets the connection.
    pub fn released(&mut self) {
        self.unnamed = false;
        self.coming.clear();
        self.awaited.clear();
        self.unsent = 0;
    }

    /// DEALLOCATE or DISCARD may run: nothing is certain any more.
    pub fn doubt(&mut self) {
        self.have.clear();
        self.coming.clear();
        self.awaited
            .iter_mut()
            .for_each(|awaited| awaited.made = None);
    }

    fn has(&mut self, id: StatementId) -> bool {
        self.uses += 1;
        let uses = self.uses;
        let known = self.have.get_mut(&id).map(|used| *used = uses).is_some();
        known || self.coming.contains(&id)
    }

    fn expect(&mut self, tag: u8, reply: Reply, made: Option<StatementId>) {
        self.awaited.push_back(Awaited {
            cycle: 0,
            tag,
            reply,
            made,
        });
        self.unsent += 1;
    }

    /// Makes room for one more, by closing what was not used for longest.
    fn make_room(&mut self, out: &mut Vec<u8>) {
        if self.have.len() < CONN_STATEMENTS_MAX {
            return;
        }
        let oldest = self
            .have
            .iter()
            .min_by_key(|(_, used)| **used)
            .map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.have.remove(&id);
            self.close(id, out);
        }
    }

    fn close(&mut self, id: StatementId, out: &mut Vec<u8>) {
        push_message(out, b'C', format!("S{}\0", mirror_name(id)).as_bytes());
        self.expect(b'3', Reply::Drop, None);
    }

    /// Prepares a statement; `reply` is what the client gets of its ParseComplete.
    fn prepare(&mut self, id: StatementId, content: &[u8], reply: Reply, out: &mut Vec<u8>) {
        // It may be there without our knowing; and if it was there, the Parse may still fail.
        self.have.remove(&id);
        self.make_room(out);
        self.close(id, out);
        self.parse(id, content, reply, Some(id), out);
        if !self.coming.contains(&id) {
            self.coming.push(id);
        }
    }

    fn parse(
        &mut self,
        id: StatementId,
        content: &[u8],
        reply: Reply,
        made: Option<StatementId>,
        out: &mut Vec<u8>,
    ) {
        let body = [mirror_name(id).as_bytes(), b"\0", content].concat();
        push_message(out, b'P', &body);
        self.expect(b'1', reply, made);
    }

    fn ensure(&mut self, statement: &Statement, out: &mut Vec<u8>) {
        if !self.has(statement.id) {
            self.prepare(statement.id, &statement.content, Reply::Drop, out);
        }
    }
}

/// The client direction of one client.
#[derive(Debug, Default)]
pub struct Renamer {
    held: Vec<u8>,
    /// The rest of the current message goes on as it is.
    passing: bool,
    pin: bool,
    /// What the name of the Parse under way stood for before it.
    replaced: Option<Rc<Statement>>,
    /// The Query under way ends all prepared statements.
    clears: bool,
    /// The statement that the Bind under way executes does this.
    deallocates: Option<Deallocates>,
    /// The Parse under way is of the unnamed statement.
    unnamed: bool,
    /// The unnamed statement is too large to carry.
    large: Option<Large>,
}

/// Prepared statements end with this message of this cycle.
#[derive(Debug, Clone, Copy)]
struct Deallocates {
    cycle: u64,
    ordinal: u32,
    all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Large {
    /// It has not been bound yet.
    Parsed,
    /// It has been bound: as a rule nobody comes back to it.
    Bound,
}

/// What was decided about a message.
enum Head {
    Pass,
    Replaced,
    /// Nothing yet.
    More,
    TooLong,
}

/// What is known of the transaction that the client's next message comes in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transaction {
    /// There is none, or it has not failed.
    #[default]
    Sound,
    /// Earlier cycles are unanswered: a Parse must be left to the server.
    Unsure,
    /// It has failed: so will a Parse.
    Failed,
}

impl Transaction {
    /// As the tracker has it.
    pub fn of(tracker: &Tracker) -> Self {
        match tracker.status() {
            _ if tracker.outstanding() > 1 => Self::Unsure,
            TxStatus::Failed => Self::Failed,
            TxStatus::Idle | TxStatus::InTransaction => Self::Sound,
        }
    }
}

/// One part of one message, behind its registration in `names`.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The message's type.
    pub tag: u8,
    /// Its bytes, header included.
    pub bytes: &'a [u8],
    /// The message begins here …
    pub first: bool,
    /// … ends here.
    pub last: bool,
}

impl Renamer {
    /// The text of a message, of this class. Comes before [`Renamer::named`] of the same message and that before
    /// [`Renamer::client`] with its last bytes.
    pub fn statement(
        &mut self,
        text: &StatementText<'_>,
        class: Class,
        server: &mut ServerStatements,
    ) {
        if class.intersects(Class::DEALLOCATES) {
            server.doubt();
            self.clears = !text.extended && clears_all(text.sql);
        }
    }

    /// What a message of this cycle does with a statement.
    pub fn named(&mut self, named: &Named<'_>, cycle: u64, names: &mut ClientStatements) {
        match *named {
            Named::Parse { name, .. } if !name.is_empty() => {
                self.replaced = names.get(name).cloned();
            }
            Named::Bind { name, ordinal } => {
                let bound = names.get(name);
                if let Some(bound) = bound.filter(|one| one.class.intersects(Class::DEALLOCATES)) {
                    self.deallocates = Some(Deallocates {
                        cycle,
                        // The Execute comes behind it.
                        ordinal: ordinal + 1,
                        all: clears_all(bound.sql()),
                    });
                }
            }
            Named::Query { ordinal } if std::mem::take(&mut self.clears) => {
                names.clear_at(cycle, ordinal);
            }
            _ => {}
        }
        names.observe(named, cycle);
    }

    /// Takes the next part of the client's stream.
    pub fn client(
        &mut self,
        part: Part<'_>,
        names: &mut ClientStatements,
        transaction: Transaction,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Step {
        if part.first {
            self.passing = !matches!(part.tag, b'P' | b'B' | b'D' | b'C');
            self.held.clear();
            match part.tag {
                b'Q' => {
                    server.unnamed = false;
                    server.coming.clear();
                    self.large = None;
                }
                b'S' | b'F' => server.coming.clear(),
                _ => {}
            }
        }
        let step = self.step(part, names, transaction, server, out);
        if part.last && std::mem::take(&mut self.unnamed) {
            self.large = names.get(b"").is_none().then_some(Large::Parsed);
        }
        if part.last {
            self.replaced = None;
            if let Some(behind) = self.deallocates.take() {
                // The statement itself may be among those that end.
                server.doubt();
                if behind.all {
                    names.clear_at(behind.cycle, behind.ordinal);
                }
            }
        }
        step
    }

    fn step(
        &mut self,
        part: Part<'_>,
        names: &ClientStatements,
        transaction: Transaction,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Step {
        if self.passing {
            return Step::Pass;
        }
        if self.held.is_empty() {
            return match self.head(part, part.bytes, names, transaction, server, out) {
                Head::Pass => self.pass(),
                Head::Replaced => self.replaced(),
                Head::More => {
                    self.held.extend_from_slice(part.bytes);
                    Step::Replaced
                }
                Head::TooLong => Step::TooLong,
            };
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(part.bytes);
        match self.head(part, &held, names, transaction, server, out) {
            Head::Pass => {
                out.extend_from_slice(&held);
                self.replaced()
            }
            Head::Replaced => self.replaced(),
            Head::More => {
                self.held = held;
                Step::Replaced
            }
            Head::TooLong => Step::TooLong,
        }
    }

    /// Whether the client must keep its connection for now: its unnamed statement cannot be carried to another, and it is still to
    /// be bound.
    pub fn awaits_bind(&self) -> bool {
        self.large == Some(Large::Parsed)
    }

    /// The connection is given back, or something has failed: perhaps the large statement.
    pub fn forget_large(&mut self) {
        self.large = None;
    }

    /// Whether the client must keep its connection from now on: a statement of its cannot be carried to another. Tells it once.
    pub fn take_pin(&mut self) -> bool {
        std::mem::take(&mut self.pin)
    }

    fn pass(&mut self) -> Step {
        self.passing = true;
        Step::Pass
    }

    fn replaced(&mut self) -> Step {
        self.passing = true;
        Step::Replaced
    }

    /// Decides about a message by its first bytes.
    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of `client`, passed on"
    )]
    fn head(
        &mut self,
        part: Part<'_>,
        bytes: &[u8],
        names: &ClientStatements,
        transaction: Transaction,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Head {
        let decided = bytes.get(HEADER_LEN..).and_then(|body| match part.tag {
            b'P' => self.parse(part, body, names, transaction, server, out),
            b'B' => self.bind(bytes, body, names, server, out),
            b'D' => self.describe(part, body, names, server, out),
            _ => self.close(part, body, server),
        });
        match decided {
            Some(head) => head,
            None if part.last || bytes.len() > HEAD_MAX.max(STATEMENT_CAPTURE_MAX) => Head::TooLong,
            None => Head::More,
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of `client`, passed on"
    )]
    fn parse(
        &mut self,
        part: Part<'_>,
        body: &[u8],
        names: &ClientStatements,
        transaction: Transaction,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Option<Head> {
        let (name, _) = split_cstr(body)?;
        if name.is_empty() {
            server.unnamed = true;
            self.unnamed = true;
            server.expect(b'1', Reply::Pass, None);
            return Some(Head::Pass);
        }
        // The tracker has not kept what is longer: so `names` will not have it either.
        let too_large = body.len() > STATEMENT_CAPTURE_MAX;
        if !part.last && !too_large {
            return None;
        }
        let Some(statement) = names.get(name).filter(|_| !too_large) else {
            self.pin = true;
            server.expect(b'1', Reply::Pass, None);
            return Some(Head::Pass);
        };
        if let Some(old) = &self.replaced {
            // The name is taken: the server shall say so.
            if transaction != Transaction::Failed {
                server.ensure(old, out);
            }
            server.parse(old.id, &statement.content, Reply::Pass, None, out);
        } else if transaction == Transaction::Sound && server.has(statement.id) {
            push_message(out, b'C', NO_STATEMENT);
            server.expect(b'3', Reply::As(b'1'), None);
        } else {
            server.prepare(statement.id, &statement.content, Reply::Pass, out);
        }
        Some(Head::Replaced)
    }

    /// A Bind: the names come first, the rest goes on as it is.
    fn bind(
        &mut self,
        bytes: &[u8],
        body: &[u8],
        names: &ClientStatements,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Option<Head> {
        let (portal, rest) = split_cstr(body)?;
        let (name, rest) = split_cstr(rest)?;
        if name.is_empty() && self.large.is_some() {
            self.large = Some(Large::Bound);
        }
        let Some(new) = self.use_statement(name, names, server, out) else {
            return Some(Head::Pass);
        };
        let len = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]])
            .wrapping_add(new.len() as u32)
            .wrapping_sub(name.len() as u32);
        out.push(b'B');
        out.extend(len.to_be_bytes());
        for part in [portal, b"\0", new.as_bytes(), b"\0", rest] {
            out.extend_from_slice(part);
        }
        Some(Head::Replaced)
    }

    fn describe(
        &mut self,
        part: Part<'_>,
        body: &[u8],
        names: &ClientStatements,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Option<Head> {
        if body.first() == Some(&b'P') {
            return Some(Head::Pass);
        }
        if !part.last {
            return None;
        }
        let (name, rest) = split_cstr(body.get(1..)?)?;
        let Some(new) = self.use_statement(name, names, server, out) else {
            return Some(Head::Pass);
        };
        push_message(out, b'D', &[b"S", new.as_bytes(), b"\0", rest].concat());
        Some(Head::Replaced)
    }

    /// A Close: nothing on the server has this name, and closing nothing is no error.
    fn close(
        &mut self,
        part: Part<'_>,
        body: &[u8],
        server: &mut ServerStatements,
    ) -> Option<Head> {
        if !part.last {
            return None;
        }
        if body == b"S\0" {
            server.unnamed = false;
            self.large = None;
        }
        server.expect(b'3', Reply::Pass, None);
        Some(Head::Pass)
    }

    /// Sees to it that the statement of this name is there for a message that uses it, or that none is; the name to give it if it is
    /// another.
    fn use_statement(
        &self,
        name: &[u8],
        names: &ClientStatements,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Option<String> {
        let statement = names.get(name);
        if !name.is_empty() {
            let statement = statement?;
            server.ensure(statement, out);
            return Some(mirror_name(statement.id));
        }
        if server.unnamed || self.large.is_some() {
            return None;
        }
        server.unnamed = true;
        match statement {
            Some(statement) => {
                push_message(out, b'P', &[b"\0", &statement.content[..]].concat());
                server.expect(b'1', Reply::Drop, None);
            }
            None => {
                // What is there belongs to another client.
                push_message(out, b'C', b"S\0");
                server.expect(b'3', Reply::Drop, None);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::tracker::Named;
    use super::*;
    use xxhash_rust::xxh3::xxh3_128;

    #[derive(Default)]
    struct Client {
        names: ClientStatements,
        renamer: Renamer,
        cycle: u64,
        transaction: Transaction,
    }

    impl Client {
        /// Sends one message in parts of `size`; returns what the server gets.
        fn send(
            &mut self,
            server: &mut ServerStatements,
            tag: u8,
            body: &[u8],
            size: usize,
        ) -> Vec<u8> {
            let mut bytes = Vec::new();
            push_message(&mut bytes, tag, body);
            let mut sent = Vec::new();
            let parts: Vec<&[u8]> = bytes.chunks(size).collect();
            for (at, part) in parts.iter().enumerate() {
                let last = at + 1 == parts.len();
                let ordinal = 0;
                let named = match tag {
                    b'P' => Some(Named::Parse {
                        name: split_cstr(body).unwrap().0,
                        body: (body.len() <= STATEMENT_CAPTURE_MAX).then_some(body),
                        ordinal,
                    }),
                    b'Q' => Some(Named::Query { ordinal }),
                    b'B' => {
                        let (_, rest) = split_cstr(body).unwrap();
                        let (name, _) = split_cstr(rest).unwrap();
                        Some(Named::Bind { name, ordinal })
                    }
                    _ => None,
                };
                if let Some(named) = named.filter(|_| last) {
                    let names = &mut self.names;
                    self.renamer.named(&named, self.cycle, names);
                }
                let part = Part {
                    tag,
                    bytes: part,
                    first: at == 0,
                    last,
                };
                let step =
                    self.renamer
                        .client(part, &mut self.names, self.transaction, server, &mut sent);
                match step {
                    Step::Pass => sent.extend_from_slice(part.bytes),
                    Step::Replaced => {}
                    Step::TooLong => panic!("too long"),
                }
                server.sent(self.cycle);
            }
            sent
        }
    }

    fn tags(mut bytes: &[u8]) -> String {
        let mut out = String::new();
        while let Some((head, _)) = bytes.split_first_chunk::<5>() {
            out.push(head[0] as char);
            let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            bytes = &bytes[len + 1..];
        }
        out
    }

    const PARSE: &[u8] = b"s1\0SELECT 1\0\0\0";
    const BIND: &[u8] = b"\0s1\0\0\0\0\0\0\0";

    #[test]
    fn a_statement_follows_its_client_to_another_connection_however_its_bytes_are_cut() {
        for size in [1, 3, 1000] {
            let (mut client, mut a, mut b) = (
                Client::default(),
                ServerStatements::default(),
                ServerStatements::default(),
            );
            assert_eq!(tags(&client.send(&mut a, b'P', PARSE, size)), "CP");
            assert_eq!((a.reply(b'3'), a.reply(b'1')), (Reply::Drop, Reply::Pass));
            let bind = client.send(&mut a, b'B', BIND, size);
            let name = mirror_name(xxh3_128(b"SELECT 1\0\0\0"));
            let mut wanted = Vec::new();
            push_message(
                &mut wanted,
                b'B',
                &[b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"].concat(),
            );
            assert_eq!(bind, wanted);
            assert_eq!(tags(&client.send(&mut b, b'B', BIND, size)), "CPB");
            assert_eq!(
                (b.reply(b'3'), b.reply(b'1'), b.reply(b'2')),
                (Reply::Drop, Reply::Drop, Reply::Pass)
            );
            assert_eq!(tags(&client.send(&mut b, b'B', BIND, size)), "B");
        }
    }

    #[test]
    fn an_equal_statement_of_another_client_is_not_parsed_again() {
        let (mut one, mut two, mut server) = (
            Client::default(),
            Client::default(),
            ServerStatements::default(),
        );
        one.send(&mut server, b'P', PARSE, 99);
        assert_eq!(
            (server.reply(b'3'), server.reply(b'1')),
            (Reply::Drop, Reply::Pass)
        );
        server.released();
        assert_eq!(tags(&two.send(&mut server, b'P', PARSE, 99)), "C");
        assert_eq!(server.reply(b'3'), Reply::As(b'1'));
    }

    #[test]
    fn what_failed_is_prepared_anew() {
        let (mut client, mut server) = (Client::default(), ServerStatements::default());
        client.cycle = 1;
        client.send(&mut server, b'P', PARSE, 99);
        server.cycle_done(1, true);
        assert_eq!(server.reply(b'3'), Reply::Pass, "nothing is awaited");
        assert_eq!(tags(&client.send(&mut server, b'B', BIND, 99)), "CPB");
    }

    #[test]
    fn what_was_closed_for_a_parse_that_failed_is_prepared_anew() {
        let (mut one, mut two, mut server) = (
            Client::default(),
            Client::default(),
            ServerStatements::default(),
        );
        one.send(&mut server, b'P', PARSE, 99);
        assert_eq!(
            (server.reply(b'3'), server.reply(b'1')),
            (Reply::Drop, Reply::Pass)
        );
        server.released();
        two.transaction = Transaction::Failed;
        assert_eq!(tags(&two.send(&mut server, b'P', PARSE, 99)), "CP");
        assert_eq!(server.reply(b'3'), Reply::Drop);
        server.cycle_done(0, true);
        server.released();
        assert_eq!(tags(&one.send(&mut server, b'B', BIND, 99)), "CPB");
    }

    #[test]
    fn a_name_that_is_taken_is_parsed_under_the_name_that_is_taken() {
        let (mut client, mut server) = (Client::default(), ServerStatements::default());
        client.send(&mut server, b'P', PARSE, 99);
        let sent = client.send(&mut server, b'P', b"s1\0SELECT 2\0\0\0", 99);
        let name = mirror_name(xxh3_128(b"SELECT 1\0\0\0"));
        assert_eq!(tags(&sent), "P");
        assert!(sent[5..].starts_with(name.as_bytes()));
    }

    #[test]
    fn the_unnamed_statement_is_carried_too_and_a_query_ends_it() {
        let (mut client, mut a, mut b) = (
            Client::default(),
            ServerStatements::default(),
            ServerStatements::default(),
        );
        assert_eq!(
            tags(&client.send(&mut a, b'P', b"\0SELECT 1\0\0\0", 2)),
            "P"
        );
        assert_eq!(
            tags(&client.send(&mut a, b'B', b"\0\0\0\0\0\0\0\0", 99)),
            "B"
        );
        assert_eq!(
            tags(&client.send(&mut b, b'B', b"\0\0\0\0\0\0\0\0", 99)),
            "PB"
        );
        client.send(&mut a, b'Q', b"SELECT 1\0", 99);
        assert_eq!(
            tags(&client.send(&mut a, b'B', b"\0\0\0\0\0\0\0\0", 99)),
            "CB"
        );
    }

    #[test]
    fn a_client_without_an_unnamed_statement_never_binds_another_clients() {
        let (mut one, mut two, mut server) = (
            Client::default(),
            Client::default(),
            ServerStatements::default(),
        );
        one.send(&mut server, b'P', b"\0SELECT 1\0\0\0", 99);
        assert_eq!(server.reply(b'1'), Reply::Pass);
        server.released();
        let sent = two.send(&mut server, b'B', b"\0\0\0\0\0\0\0\0", 99);
        assert_eq!((tags(&sent).as_str(), &sent[5..7]), ("CB", &b"S\0"[..]));
        assert_eq!(server.reply(b'3'), Reply::Drop);
        server.released();
        assert_eq!(tags(&two.send(&mut server, b'D', b"S\0", 99)), "CD");
    }

    #[test]
    fn a_large_unnamed_statement_keeps_its_connection_until_it_is_bound() {
        let (mut client, mut server) = (Client::default(), ServerStatements::default());
        let body = [b"\0", &vec![b'x'; 4 * STATEMENT_CAPTURE_MAX][..], b"\0\0\0"].concat();
        client.send(&mut server, b'P', &body, 8192);
        assert!(client.renamer.awaits_bind());
        let sent = client.send(&mut server, b'B', b"\0\0\0\0\0\0\0\0", 99);
        assert_eq!(tags(&sent), "B");
        assert!(!client.renamer.awaits_bind() && !client.renamer.take_pin());
        client.renamer.forget_large();
        server.released();
        let sent = client.send(&mut server, b'B', b"\0\0\0\0\0\0\0\0", 99);
        assert_eq!(tags(&sent), "CB");
    }

    #[test]
    fn a_prepared_deallocate_all_ends_itself_too() {
        let (mut client, mut server) = (Client::default(), ServerStatements::default());
        client.send(&mut server, b'P', b"s1\0DEALLOCATE ALL\0\0\0", 99);
        server.released();
        assert_eq!(tags(&client.send(&mut server, b'B', BIND, 99)), "CPB");
        for tag in [b'3', b'1'] {
            server.reply(tag);
        }
        assert_eq!(server.certain().count(), 0);
        assert_eq!(tags(&client.send(&mut server, b'B', BIND, 99)), "B");
    }

    #[test]
    fn a_connection_keeps_a_bounded_number_of_statements() {
        let (mut client, mut server) = (Client::default(), ServerStatements::default());
        for number in 0..2 * CONN_STATEMENTS_MAX {
            let body = format!("n{number}\0SELECT {number}\0\0\0");
            let sent = tags(&client.send(&mut server, b'P', body.as_bytes(), 999));
            assert_eq!(
                sent,
                if number < CONN_STATEMENTS_MAX {
                    "CP"
                } else {
                    "CCP"
                }
            );
            while let Some(awaited) = server.awaited.front().map(|next| next.tag) {
                server.reply(awaited);
            }
            client.send(&mut server, b'S', b"", 99);
        }
        assert_eq!(server.have.len(), CONN_STATEMENTS_MAX);
    }

    #[test]
    fn a_statement_too_large_to_carry_pins_and_is_not_held() {
        let (mut client, mut server) = (Client::default(), ServerStatements::default());
        let body = [
            b"big\0",
            &vec![b'x'; 4 * STATEMENT_CAPTURE_MAX][..],
            b"\0\0\0",
        ]
        .concat();
        let sent = client.send(&mut server, b'P', &body, 8192);
        assert_eq!(sent.len(), body.len() + 5);
        assert!(client.renamer.take_pin() && client.renamer.held.is_empty());
    }
}
