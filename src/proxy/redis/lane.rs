//! Lanes: upstream connections that clients share, pipelined, with replies routed in order.
//!
//! A lane's reader never waits for a client. A reply goes to its client's socket; what that client does not read
//! piles up there, up to a bound for all clients of all cores ([`crate::limits::REDIS_SPILL_BYTES_MAX`]), beyond which the client that
//! exceeds it is closed. Nobody else notices. When a lane is lost, every client with a reply outstanding on it is
//! closed: a reply never reaches anybody but the one who asked.
//!
//! A lane on which a huge reply crosses is *retired*: commands that are already on their way wait for its bytes, later ones
//! take another lane. Once nobody else waits behind the huge reply its client sets the pace, and nothing piles up.
//! A retired lane ends with its last reply.

mod lanes;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::{Rc, Weak};

use super::Source;
use super::collect::{Collected, Frame};
use super::fifo::Fifo;
use super::session::Session;
use super::units::{Over, Pending};
use crate::limits::{
    PREFETCH_AHEAD, REDIS_COMPARE_BYTES, REDIS_HEAD_KEPT_BYTES, REDIS_LANE_REPLY_BYTES,
    REDIS_PACED_LOOK, REDIS_REPLY_BYTES_MAX, SOCKET_SEND_BYTES,
};
use crate::metrics::{self, OpenConnection};
use crate::protocol::resp::tracker::{Disposition, UnitEnd};
use crate::protocol::resp::{Command, ReplyError, ReplyFramer};
use crate::proxy::{Context, context};
use crate::ring::{Chunk, Socket};
pub(super) use lanes::LaneKey;
pub use lanes::Lanes;

/// One shared connection.
pub(super) struct Lane {
    pub key: LaneKey,
    stream: u64,
    /// The backend lets nobody do anything on it before a login.
    pub wants_login: bool,
    context: Rc<Context>,
    socket: Socket,
    source: Weak<Source>,
    /// Commands can be sent.
    alive: Cell<bool>,
    /// What is on its way is answered, and nothing else.
    retired: Cell<bool>,
    used_ns: Cell<u64>,
    state: RefCell<State>,
    _open: OpenConnection,
}

struct State {
    replies: ReplyFramer,
    /// One entry for each command on its way.
    fifo: Fifo<Entry>,
    /// The first bytes of a reply that comes in pieces.
    reply: Collected,
    /// Bytes of that reply so far.
    reply_bytes: usize,
}

impl Default for State {
    fn default() -> State {
        State {
            replies: ReplyFramer::new(REDIS_REPLY_BYTES_MAX),
            fifo: Fifo::default(),
            reply: Collected::default(),
            reply_bytes: 0,
        }
    }
}

/// A command on its way.
struct Entry {
    /// Whose it is; `None` in an empty place only.
    session: Option<Rc<Session>>,
    pending: Pending,
    disposition: Disposition,
}

impl Entry {
    fn session(&self) -> &Rc<Session> {
        self.session.as_ref().expect("a command has a client")
    }
}

impl Default for Entry {
    fn default() -> Entry {
        Entry {
            session: None,
            pending: Pending::new(0, None),
            disposition: Disposition::Mirror,
        }
    }
}

/// Why a lane cannot go on.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("it sent what is no reply: {0}")]
    Protocol(#[from] ReplyError),
    #[error("it sent a reply that nobody asked for")]
    Unsolicited,
}

impl Lane {
    /// Whether commands can be sent.
    pub fn is_alive(&self) -> bool {
        self.alive.get() && !self.socket.is_ended()
    }

    fn is_idle(&self) -> bool {
        self.state.borrow().fifo.is_empty()
    }

    /// Notes whose command is written next; the rest of it is filled in.
    pub fn note(
        &self,
        session: &Rc<Session>,
        disposition: Disposition,
        fill: impl FnOnce(&mut Pending),
    ) {
        let state = &mut *self.state.borrow_mut();
        state.fifo.push(|entry| {
            entry.session = Some(session.clone());
            entry.disposition = disposition;
            fill(&mut entry.pending);
        });
    }

    /// Writes commands that were noted.
    pub fn write(&self, bytes: &[u8]) {
        self.socket.write(bytes);
        self.used_ns.set(self.context.ring.now_ns());
    }

    /// The same for received bytes.
    pub fn send(&self, chunk: &Chunk, range: Range<usize>) {
        match range.len() {
            0 => {}
            len if len < crate::ring::BY_REFERENCE_BYTES => self.write(&chunk[range]),
            _ => {
                self.socket.send(chunk.slice(range));
                self.used_ns.set(self.context.ring.now_ns());
            }
        }
    }

    /// Waits while more commands wait to leave than should. A lost lane is told by its reader.
    pub async fn has_room(&self) {
        if self.socket.queued() > SOCKET_SEND_BYTES {
            let _ = self.socket.drained(SOCKET_SEND_BYTES / 2).await;
        }
    }

    /// Sends the replies in `chunk` to their clients.
    fn route(self: &Rc<Self>, chunk: &Chunk) -> Result<(), Broken> {
        let state = &mut *self.state.borrow_mut();
        let over = Over {
            db: self.key.db,
            resp: self.key.resp,
            backend: self.key.backend,
            stream: self.stream,
        };
        let mut run = Run::default();
        let mut offset = 0;
        while offset < chunk.len() {
            let advance = match state.replies.advance(&chunk[offset..]) {
                Ok(advance) => advance,
                Err(error) => {
                    run.flush(chunk);
                    return Err(error.into());
                }
            };
            let piece = offset..offset + advance.consumed;
            offset = piece.end;
            if state.replies.kind() == Some(b'>') {
                // Nobody subscribes on a lane: a push concerns the connection, not a client.
                continue;
            }
            let Some(front) = state.fifo.front() else {
                run.flush(chunk);
                return Err(Broken::Unsolicited);
            };
            let session = front.session();
            run.extend(chunk, session, piece.clone());
            state.reply_bytes += piece.len();
            if !advance.done {
                let kept = match session.units.is_idle() {
                    true => REDIS_HEAD_KEPT_BYTES,
                    false => REDIS_COMPARE_BYTES,
                };
                state.reply.push(&chunk[piece], kept);
                if state.reply_bytes > REDIS_LANE_REPLY_BYTES && self.alive.get() {
                    session.units.source.lanes.retire(self);
                }
                continue;
            }
            let Some(entry) = state.fifo.pop() else {
                return Err(Broken::Unsolicited);
            };
            run.replies += 1;
            if let Some(later) = state.fifo.get(PREFETCH_AHEAD) {
                later.pending.prefetch();
            }
            let bytes = std::mem::take(&mut state.reply_bytes);
            if state.reply.is_empty() {
                entry.answered(&Frame::Whole(chunk, piece), bytes, over);
            } else {
                state.reply.push(&chunk[piece], REDIS_COMPARE_BYTES);
                entry.answered(&Frame::Collected(&state.reply), bytes, over);
                state.reply.clear();
            }
        }
        run.flush(chunk);
        Ok(())
    }

    /// What a retired lane waits for before it reads on. False: everything is answered.
    async fn paced(&self) -> bool {
        loop {
            let session = {
                let fifo = &self.state.borrow().fifo;
                let Some(front) = fifo.front() else {
                    return false;
                };
                if fifo
                    .iter()
                    .any(|entry| !Rc::ptr_eq(entry.session(), front.session()))
                {
                    return true;
                }
                front.session().clone()
            };
            let Some(client) = context::Session::client(&*session) else {
                return true;
            };
            let drained = client.drained(SOCKET_SEND_BYTES);
            // Its session may end meanwhile, and must not be kept from closing the client.
            match self.context.ring.timeout(REDIS_PACED_LOOK, drained).await {
                Ok(_) => return true,
                Err(_) => drop(client),
            }
        }
    }

    /// Closes the connection of a retired lane that owes nothing any more.
    fn finish(self: &Rc<Self>) {
        if let Some(source) = self.source.upgrade() {
            source.lanes.forget(self);
        }
        self.socket.shutdown_write();
        self.context.lanes_changed();
    }

    /// Closes every client that waits for a reply.
    fn lose(&self, why: &dyn std::fmt::Display) {
        self.alive.set(false);
        let fifo = std::mem::take(&mut self.state.borrow_mut().fifo);
        if !fifo.is_empty() {
            tracing::warn!(%why, commands = fifo.len(), "a lane to a database was lost");
        }
        for entry in fifo {
            let Some(session) = entry.session else {
                continue;
            };
            session.units.abandon(entry.pending, self.key.db);
            session.fail();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The reader holds the socket, and ends with this.
        self.socket.stop_receiving();
    }
}

async fn read(socket: Socket, lane: Weak<Lane>) {
    let why = loop {
        let received = socket.recv().await;
        let Some(lane) = lane.upgrade() else { return };
        match received {
            Ok(Some(chunk)) => {
                let counters = lane.context.metrics.listener(metrics::Protocol::Redis);
                counters.primary_bytes_in.add(chunk.len() as u64);
                if let Err(broken) = lane.route(&chunk) {
                    break broken.to_string();
                }
                if lane.retired.get() && !lane.paced().await {
                    return lane.finish();
                }
            }
            Ok(None) => break "it closed the connection".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    if let Some(lane) = lane.upgrade() {
        lane.lose(&why);
        if lane.retired.get() {
            lane.finish();
        }
    }
}

impl Entry {
    fn answered(self, frame: &Frame<'_>, bytes: usize, over: Over) {
        let Entry {
            session: Some(session),
            pending,
            disposition,
        } = self
        else {
            return;
        };
        let units = &session.units;
        if changes_logins(pending.command) {
            units.source.lanes.renew();
        }
        let now_ns = units.context.ring.now_ns();
        units.count(&pending, frame, over.backend, now_ns);
        session.learn_size(bytes);
        if !units.is_idle() {
            let error = matches!(frame.bytes().first(), Some(b'-' | b'!'));
            let end = match disposition {
                Disposition::Mirror => UnitEnd::Complete { error },
                _ => UnitEnd::NotAUnit,
            };
            units.step(&mut None, pending, end, frame, over);
        }
    }
}

/// Neighbouring replies to one client leave together.
#[derive(Default)]
struct Run {
    session: Option<Rc<Session>>,
    range: Range<usize>,
    /// Replies that end in it.
    replies: usize,
}

impl Run {
    fn extend(&mut self, chunk: &Chunk, session: &Rc<Session>, piece: Range<usize>) {
        match &self.session {
            Some(mine) if Rc::ptr_eq(mine, session) && self.range.end == piece.start => {
                self.range.end = piece.end;
            }
            _ => {
                self.flush(chunk);
                self.session = Some(session.clone());
                self.range = piece;
            }
        }
    }

    fn flush(&mut self, chunk: &Chunk) {
        if let Some(session) = self.session.take() {
            session.deliver(chunk, self.range.clone(), self.replies);
        }
        self.replies = 0;
    }
}

/// Behind such a command a new connection may need other credentials than those there are.
pub(super) fn changes_logins(command: Option<&Command>) -> bool {
    command.is_some_and(|command| {
        command.is_admin()
            && matches!(
                (command.name(), command.sub()),
                ("CONFIG", "SET") | ("ACL", "SETUSER" | "DELUSER" | "LOAD")
            )
    })
}
