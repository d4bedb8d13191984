//! What one primary connection has prepared for the clients that share it, and which replies it owes to messages that no
//! client sent. Knows statements by their content, never a client's names.

use std::collections::{HashMap, VecDeque};

use crate::protocol::postgres::startup::push_message;
use crate::protocol::postgres::statements::{
    CONN_STATEMENTS_MAX, Statement, StatementId, mirror_name,
};

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
    pub(super) coming: Vec<StatementId>,
    awaited: VecDeque<Awaited>,
    /// Replies whose cycle is not known yet, at the end of `awaited`.
    unsent: usize,
    /// The unnamed statement there is that of the client which holds the connection.
    pub(super) unnamed: bool,
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

    pub(super) fn has(&mut self, id: StatementId) -> bool {
        self.uses += 1;
        let uses = self.uses;
        let known = self.have.get_mut(&id).map(|used| *used = uses).is_some();
        known || self.coming.contains(&id)
    }

    pub(super) fn expect(&mut self, tag: u8, reply: Reply, made: Option<StatementId>) {
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
    pub(super) fn prepare(
        &mut self,
        id: StatementId,
        content: &[u8],
        reply: Reply,
        out: &mut Vec<u8>,
    ) {
        // It may be there without our knowing; and if it was there, the Parse may still fail.
        self.have.remove(&id);
        self.make_room(out);
        self.close(id, out);
        self.parse(id, content, reply, Some(id), out);
        if !self.coming.contains(&id) {
            self.coming.push(id);
        }
    }

    pub(super) fn parse(
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

    pub(super) fn ensure(&mut self, statement: &Statement, out: &mut Vec<u8>) {
        if !self.has(statement.id) {
            self.prepare(statement.id, &statement.content, Reply::Drop, out);
        }
    }
}
