//! Pairs replies with requests on one connection, and finds the units in the traffic.
//!
//! A unit is what is mirrored whole: one command, or MULTI … EXEC. The tracker is told of each request as it is
//! sent and of each reply frame as it arrives, in order. It knows which frames are no replies at all (pushes,
//! messages, MONITOR lines), which requests get several (SUBSCRIBE) or none (CLIENT REPLY OFF), and what the
//! replies confirm: database, RESP version, login, transaction.
//!
//! Three things cannot be known in advance and are predicted as said here: CLIENT REPLY is taken to succeed (an ACL
//! may forbid it); it is taken to be refused to a RESP2 client that has sent a SUBSCRIBE since the pipeline was last
//! empty; inside MULTI it is taken to change nothing. A wrong guess shows as [`Paired::Unsolicited`] or as a reply
//! that never comes: it is the client's own pinned connection that suffers, as it would without a proxy.
//!
//! It keeps one small entry per outstanding request and no bytes. What it says about a request in advance is a
//! prediction (a pipelined MULTI is taken to succeed); what it says with the reply is final, and tells where the
//! prediction was wrong. The caller bounds the pipeline with [`Tracker::len`].

mod request;
mod state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use super::reply::Reply;
use request::{Prediction, Role};
use state::{Confirmed, Family, Word};

/// What a request is to the mirror, said before its reply is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// A unit by itself.
    Mirror,
    /// Part of the unit that begins with MULTI; MULTI and EXEC, DISCARD too. The unit ends when a reply says so.
    TxnMember,
    /// No unit and no part of one.
    NotMirrored(NotMirrored),
}

/// Why a request is not mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotMirrored {
    /// About the server.
    Admin,
    /// A subscription.
    PubSub,
    /// It may wait for data; its effect is known with the reply.
    Blocking,
    /// About the connection: AUTH, SELECT, CLIENT, WATCH …
    ConnectionState,
    /// MONITOR, SYNC and PSYNC. What follows a SYNC is not RESP.
    Replication,
    /// CLIENT REPLY OFF or SKIP: no reply will come, the outcome stays unknown.
    NoReply,
    /// Part of a transaction whose MULTI got no reply. The request itself does get one.
    SilentTransaction,
    /// Behind a QUIT: never executed.
    AfterQuit,
}

/// What a reply means for the unit that its request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitEnd {
    /// The request was [`Disposition::NotMirrored`].
    NotAUnit,
    /// The unit of one command is complete. `error`: the reply is an error.
    Complete {
        /// The primary refused the command.
        error: bool,
    },
    /// The unit of MULTI goes on.
    Open,
    /// EXEC succeeded: the unit MULTI … EXEC is complete.
    Committed,
    /// EXEC succeeded, but the unit holds a command that must not be mirrored.
    Excluded(NotMirrored),
    /// Nothing of the unit was executed: drop it.
    Discarded(Discarded),
    /// The request was predicted to be in a transaction, but MULTI had failed: it ran by itself. Drop it from the
    /// unit; without an `error` its effect happened.
    Stray {
        /// The primary refused the command.
        error: bool,
    },
    /// The request was predicted to be a unit, but the primary only queued it (a DISCARD had failed).
    Misjudged,
}

/// Why a transaction was not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Discarded {
    /// MULTI itself was refused.
    MultiRefused,
    /// A watched key had changed: EXEC answered nil.
    WatchedKey,
    /// EXECABORT or another error.
    Aborted,
    /// The client said DISCARD, RESET or QUIT.
    ByClient,
}

/// What a frame from the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paired<T> {
    /// The last (mostly: only) reply to the request with this tag.
    Reply {
        /// What the caller gave with the request.
        tag: T,
        /// What it means for the unit.
        end: UnitEnd,
    },
    /// One of several replies to the oldest outstanding request, a rest of the last EXEC's, or a confirmation for a
    /// SUBSCRIBE behind CLIENT REPLY OFF.
    Part,
    /// Not a reply: a message, an invalidation, a MONITOR line.
    Push,
    /// A reply without a request: the server's farewell, or a server out of step. The connection cannot be trusted.
    Unsolicited,
}

/// What the tracker needs to see of a reply.
#[derive(Clone, Copy, Debug)]
pub struct ReplyHead<'a> {
    kind: u8,
    bytes: &'a [u8],
    whole: bool,
}

impl<'a> ReplyHead<'a> {
    /// A reply that lies in memory as a whole.
    pub fn whole(bytes: &'a [u8]) -> Self {
        let reply = Reply::parse(bytes);
        Self {
            kind: reply.kind(),
            bytes: reply.bytes(),
            whole: true,
        }
    }

    /// A large reply: its kind (see [`super::ReplyFramer::kind`]) and its first bytes, 64 or more.
    pub fn prefix(kind: u8, bytes: &'a [u8]) -> Self {
        Self {
            kind,
            bytes,
            whole: false,
        }
    }

    fn is_error(&self) -> bool {
        matches!(self.kind, b'-' | b'!')
    }

    fn is_nil(&self) -> bool {
        self.kind == b'_' || self.bytes.starts_with(b"*-1\r") || self.bytes.starts_with(b"$-1\r")
    }

    fn is_queued(&self) -> bool {
        self.bytes.starts_with(b"+QUEUED\r")
    }

    fn reply(&self) -> Reply<'a> {
        Reply::parse(self.bytes)
    }
}

/// One request that has not got its (last) reply.
#[derive(Debug)]
struct Entry<T> {
    /// `None` for a request that gets no reply; it only changes the state when its turn comes.
    tag: Option<T>,
    role: Role,
    disposition: Disposition,
    /// Confirmations still to come for a subscription; 0 until the first one.
    confirmations_left: u32,
}

/// See the module. `T` is the caller's name for a request.
#[derive(Debug)]
pub struct Tracker<T> {
    queue: VecDeque<Entry<T>>,
    prediction: Prediction,
    confirmed: Confirmed,
    /// Frames that the last EXEC owes beyond its own: SUBSCRIBE a b inside MULTI.
    exec_rest: u32,
}

impl<T> Default for Tracker<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Tracker<T> {
    /// A tracker for a fresh connection: RESP2, database 0, not known to be authenticated.
    pub fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            prediction: Prediction::default(),
            confirmed: Confirmed::default(),
            exec_rest: 0,
        }
    }

    /// Requests whose last reply is outstanding.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// No reply is outstanding.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The tag of the oldest request that waits for a reply.
    pub fn front(&self) -> Option<&T> {
        self.queue.iter().find_map(|entry| entry.tag.as_ref())
    }

    /// The tag of the request that was noted last, unless it gets no reply.
    pub fn newest_mut(&mut self) -> Option<&mut T> {
        self.queue.back_mut()?.tag.as_mut()
    }

    /// Takes the tags of all requests that wait for a reply, oldest first: for when the connection is lost.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.queue.drain(..).filter_map(|entry| entry.tag)
    }

    /// The database that the replies so far confirm.
    pub fn db(&self) -> u32 {
        self.confirmed.db
    }

    /// The RESP version, 2 or 3, that the replies so far confirm.
    pub fn resp(&self) -> u8 {
        self.confirmed.resp
    }

    /// A reply has shown that the server lets this connection execute commands.
    pub fn is_authenticated(&self) -> bool {
        self.confirmed.authenticated
    }

    /// The login is known from elsewhere (or the server wants none).
    pub fn set_authenticated(&mut self, authenticated: bool) {
        self.confirmed.authenticated = authenticated;
    }

    /// The connection begins in this database and RESP version, set up by the caller before tracking began.
    pub fn set_initial(&mut self, db: u32, resp: u8) {
        self.confirmed.db = db;
        self.confirmed.resp = resp;
    }

    /// Channels, patterns and shard channels with a confirmed subscription.
    pub fn subscriptions(&self) -> u64 {
        self.confirmed.subscriptions()
    }

    /// MONITOR is confirmed.
    pub fn is_monitoring(&self) -> bool {
        self.confirmed.monitoring
    }

    /// Requests sent from now on belong to a transaction, as far as can be known.
    pub fn in_transaction(&self) -> bool {
        if self.queue.is_empty() {
            self.confirmed.multi.is_some()
        } else {
            self.prediction.transaction.is_some()
        }
    }

    /// The connection carries state that ties it to its client, or replies are outstanding.
    pub fn is_tied(&self) -> bool {
        !self.queue.is_empty()
            || self.exec_rest > 0
            || self.prediction.is_silent()
            || self.prediction.quitting
            || self.confirmed.is_tied()
    }

    /// A frame came from the server.
    pub fn reply(&mut self, head: ReplyHead<'_>) -> Paired<T> {
        self.settle_silent(head);
        if head.kind == b'>' {
            return self.push(head);
        }
        if self.confirmed.monitoring && is_monitor_line(head) {
            return Paired::Push;
        }
        let subscriber = self.confirmed.resp == 2 && self.confirmed.subscriptions() > 0;
        if subscriber && head.kind == b'*' && Word::of(head.bytes) == Some(Word::Message) {
            return Paired::Push;
        }
        if self.exec_rest > 0 {
            self.exec_rest -= 1;
            self.confirmed.note_confirmation(head);
            return Paired::Part;
        }
        if head.kind == b'*' && self.front_subscription(head).is_some() {
            return self.confirmation(head);
        }
        self.settle_front(head)
    }

    /// Requests that get no reply have been executed by the time that a later one is answered.
    ///
    /// A MONITOR on a monitoring connection is ignored by the server; its tag does not come back.
    /// Subscriptions are confirmed even then (the server does not count confirmations and messages as replies), so
    /// one is over only when a frame comes that is neither.
    fn settle_silent(&mut self, head: ReplyHead<'_>) {
        let pubsub = head.kind == b'>' || (head.kind == b'*' && Word::of(head.bytes).is_some());
        while let Some(entry) = self.queue.front() {
            let ignored = self.confirmed.ignores(entry.role);
            if entry.tag.is_some() && !ignored {
                return;
            }
            let subscribing = matches!(entry.role, Role::Subscription(_));
            if subscribing && pubsub && self.confirmed.multi.is_none() {
                return;
            }
            let role = entry.role;
            self.queue.pop_front();
            self.confirmed.apply_silent(role);
            self.exec_rest = self
                .exec_rest
                .saturating_add(self.confirmed.take_exec_rest());
        }
    }

    fn push(&mut self, head: ReplyHead<'_>) -> Paired<T> {
        if Word::of(head.bytes).and_then(Word::subscription).is_none() {
            return Paired::Push;
        }
        if self.exec_rest > 0 {
            self.exec_rest -= 1;
            self.confirmed.note_confirmation(head);
            return Paired::Part;
        }
        if self.front_subscription(head).is_some() {
            return self.confirmation(head);
        }
        // The server may end a subscription by itself (a slot moves away).
        self.confirmed.note_confirmation(head);
        Paired::Push
    }

    /// The frame confirms what the oldest request asked for.
    fn front_subscription(&self, head: ReplyHead<'_>) -> Option<Family> {
        let Role::Subscription(asked) = self.queue.front()?.role else {
            return None;
        };
        let (family, subscribe) = Word::of(head.bytes)?.subscription()?;
        (family == asked.family && subscribe == asked.subscribe && self.confirmed.multi.is_none())
            .then_some(family)
    }

    fn confirmation(&mut self, head: ReplyHead<'_>) -> Paired<T> {
        let Some(entry) = self.queue.front_mut() else {
            return Paired::Unsolicited;
        };
        if entry.confirmations_left == 0
            && let Role::Subscription(asked) = entry.role
        {
            entry.confirmations_left = self.confirmed.confirmations(asked);
        }
        entry.confirmations_left -= 1;
        let last = entry.confirmations_left == 0;
        self.confirmed.note_confirmation(head);
        if !last {
            return Paired::Part;
        }
        match self.pop(UnitEnd::NotAUnit) {
            // Of a request that gets no reply otherwise.
            Paired::Unsolicited => Paired::Part,
            paired => paired,
        }
    }

    fn settle_front(&mut self, head: ReplyHead<'_>) -> Paired<T> {
        let Some(entry) = self.queue.front() else {
            return Paired::Unsolicited;
        };
        let (role, disposition) = (entry.role, entry.disposition);
        let end = self.confirmed.settle(role, disposition, head);
        if matches!(end, UnitEnd::Committed | UnitEnd::Excluded(_)) {
            self.exec_rest = self.confirmed.take_exec_rest();
        }
        self.pop(end)
    }

    fn pop(&mut self, end: UnitEnd) -> Paired<T> {
        match self.queue.pop_front().and_then(|entry| entry.tag) {
            Some(tag) => Paired::Reply { tag, end },
            None => Paired::Unsolicited,
        }
    }
}

/// `+1700000000.123456 [0 127.0.0.1:1234] "GET" "k"`: no status reply begins with a digit.
fn is_monitor_line(head: ReplyHead<'_>) -> bool {
    head.kind == b'+' && head.bytes.get(1).is_some_and(u8::is_ascii_digit)
}
