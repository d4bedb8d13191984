//! A client's own connection to a backend.
//!
//! Bytes go on as they come, in both directions; framer and tracker only read along. If the replies cannot be
//! followed any more they are still forwarded, and the client stays here. Once open, the connection lives as long
//! as its client, with the state the client gave it: what a direct connection would be.

use std::cell::{Cell, RefCell};

use super::collect::{Collected, Frame};
use super::identity::Identity;
use super::lane;
use super::numbers;
use super::observe::Backend;
use super::route;
use super::session::Session;
use super::units::{Bytes, Content, Over, Pending, Transaction};
use crate::limits::{REDIS_COMPARE_BYTES, REDIS_NAME_BYTES_MAX, REDIS_REPLY_BYTES_MAX};
use crate::metrics::OpenConnection;
use crate::protocol::resp::tracker::{Disposition, NotMirrored, Paired, ReplyHead, Tracker};
use crate::protocol::resp::{CommandCategory, ReplyFramer, Request, command};
use crate::ring::{Chunk, Socket};

/// See the module.
pub(super) struct Own {
    pub socket: Socket,
    pub backend: Backend,
    stream: u64,
    /// The database in which the backend's clients begin.
    home: u32,
    /// Replies to come that are ours.
    pub swallow: Cell<u32>,
    state: RefCell<State>,
    _open: OpenConnection,
}

struct State {
    replies: ReplyFramer,
    tracker: Tracker<OwnPending>,
    reply: Collected,
    reply_bytes: usize,
    transaction: Option<Transaction>,
    followed: bool,
}

struct OwnPending {
    pending: Pending,
    sticks: bool,
    change: Option<Box<Change>>,
}

/// What a command makes of its client once the server has said yes.
#[derive(Default)]
pub(super) struct Change {
    pub identity: Option<Identity>,
    pub name: Option<Vec<u8>>,
    pub reset: bool,
}

impl Change {
    fn of(command: &command::Command, request: &Request<'_>) -> Option<Box<Change>> {
        let named = |name: Option<&[u8]>| {
            name.filter(|name| name.len() <= REDIS_NAME_BYTES_MAX)
                .map(<[u8]>::to_vec)
        };
        let change = match (command.name(), command.sub()) {
            ("AUTH", _) => Change {
                identity: Identity::presented(request),
                ..Change::default()
            },
            ("HELLO", _) => {
                let at = (2..request.len()).find(|at| request.arg_is(*at, b"SETNAME"));
                Change {
                    identity: Identity::presented(request),
                    name: at.and_then(|at| named(request.arg(at + 1))),
                    reset: false,
                }
            }
            ("CLIENT", "SETNAME") => Change {
                name: named(request.arg(2)),
                ..Change::default()
            },
            ("RESET", _) => Change {
                reset: true,
                ..Change::default()
            },
            _ => return None,
        };
        Some(Box::new(change))
    }
}

impl Own {
    /// A connection that was brought to this database and version; clients begin in `home`.
    pub fn new(
        socket: Socket,
        backend: Backend,
        stream: u64,
        (db, home, resp): (u32, u32, u8),
        open: OpenConnection,
    ) -> Own {
        let mut tracker = Tracker::new();
        tracker.set_initial(numbers::database(db, home), resp);
        Own {
            socket,
            backend,
            stream,
            home,
            swallow: Cell::new(0),
            state: RefCell::new(State {
                replies: ReplyFramer::new(REDIS_REPLY_BYTES_MAX),
                tracker,
                reply: Collected::default(),
                reply_bytes: 0,
                transaction: None,
                followed: true,
            }),
            _open: open,
        }
    }

    /// The client cannot go elsewhere now: replies are outstanding, or the connection carries its state.
    pub fn is_tied(&self) -> bool {
        let state = self.state.borrow();
        !state.followed || state.tracker.is_tied()
    }

    /// No reply is outstanding.
    pub fn is_quiet(&self) -> bool {
        let state = self.state.borrow();
        !state.followed || state.tracker.is_empty()
    }

    /// Whether the server sends without being asked: a subscriber, MONITOR.
    pub fn listens(&self) -> bool {
        let state = self.state.borrow();
        state.tracker.subscriptions() > 0 || state.tracker.is_monitoring()
    }

    /// Commands sent now belong to a transaction.
    pub fn in_transaction(&self) -> bool {
        self.state.borrow().tracker.in_transaction()
    }

    /// Notes a complete request, whose kept bytes are `content` and then `rest`. The caller sends it.
    pub fn request(
        &self,
        session: &Session,
        request: &Request<'_>,
        content: Content,
        rest: Option<Bytes<'_>>,
    ) -> Disposition {
        let units = &session.units;
        let command = command::lookup_request(request);
        let sticks = route::sticks(command);
        let state = &mut *self.state.borrow_mut();
        let tag = OwnPending {
            pending: Pending::new(units.context.ring.now_ns(), command),
            sticks,
            change: command.and_then(|command| Change::of(command, request)),
        };
        let changes_subscriptions = command.is_some_and(|command| {
            command.category() == CommandCategory::PubSub && command.name() != "PUBSUB"
        });
        if changes_subscriptions
            && !state.tracker.in_transaction()
            && let (Some(observer), Some(bytes)) = (&units.source.observer, &rest)
        {
            observer.clone().subscribes(units.id, bytes.as_slice());
        }
        let disposition = state.tracker.request(request, tag);
        if matches!(disposition, Disposition::NotMirrored(_)) && sticks {
            // Its reply may never come.
            session.sticky.set(true);
        }
        let db = numbers::called(state.tracker.db(), self.home);
        let silent = matches!(
            disposition,
            Disposition::NotMirrored(NotMirrored::NoReply | NotMirrored::AfterQuit)
        );
        match state.tracker.newest_mut().filter(|_| !silent) {
            Some(newest) => {
                units.admit(&mut newest.pending, request, disposition, content, rest, db);
            }
            // Its entry was dropped: the newest one is another request's.
            None => units.silent(request, content, rest, db),
        }
        disposition
    }

    /// Reads along what the backend sends, and sends it on.
    pub fn read(&self, session: &Session, chunk: &Chunk, client: &Socket) {
        let state = &mut *self.state.borrow_mut();
        let mut sent = 0;
        let mut offset = 0;
        while state.followed && offset < chunk.len() {
            let advance = match state.replies.advance(&chunk[offset..]) {
                Ok(advance) => advance,
                Err(error) => {
                    tracing::debug!(client = session.units.id.0, %error,
                        "the replies to a client cannot be followed: it is not mirrored any more");
                    state.followed = false;
                    state.abandon(session, self.home);
                    break;
                }
            };
            let piece = offset..offset + advance.consumed;
            offset = piece.end;
            if self.swallow.get() > 0 && state.replies.kind() != Some(b'>') {
                client.send(chunk.slice(sent..piece.start));
                sent = piece.end;
                self.swallow
                    .set(self.swallow.get() - u32::from(advance.done));
                continue;
            }
            state.reply_bytes += piece.len();
            if advance.done && state.reply.is_empty() {
                self.reply(session, state, &Frame::Whole(chunk, piece));
                continue;
            }
            state.reply.push(&chunk[piece], REDIS_COMPARE_BYTES);
            if advance.done {
                let collected = std::mem::take(&mut state.reply);
                self.reply(session, state, &Frame::Collected(&collected));
            }
        }
        client.send(chunk.slice(sent..chunk.len()));
    }

    /// One complete frame.
    fn reply(&self, session: &Session, state: &mut State, frame: &Frame<'_>) {
        let bytes = std::mem::take(&mut state.reply_bytes);
        let head = match frame.is_whole() {
            true => ReplyHead::whole(frame.bytes()),
            false => ReplyHead::prefix(state.replies.kind().unwrap_or_default(), frame.bytes()),
        };
        let (tag, end) = match state.tracker.reply(head) {
            Paired::Reply { tag, end } => (tag, end),
            Paired::Push if frame.is_whole() => {
                if let Some(observer) = &session.units.source.observer {
                    observer.pushed(session.units.id, frame.bytes());
                }
                return;
            }
            _ => return,
        };
        let OwnPending {
            pending,
            sticks,
            change,
        } = tag;
        let over = Over {
            db: numbers::called(state.tracker.db(), self.home),
            resp: state.tracker.resp(),
            backend: self.backend,
            stream: self.stream,
        };
        let units = &session.units;
        let now_ns = units.context.ring.now_ns();
        units.count(&pending, frame, self.backend, now_ns);
        if lane::changes_logins(pending.command) {
            units.source.lanes.renew();
        }
        session.learn_own_size(bytes);
        let failed = matches!(frame.bytes().first(), Some(b'-' | b'!'));
        let queued = frame.bytes().starts_with(b"+QUEUED\r");
        if !failed {
            session.now_at(over.db, over.resp);
            // Whether a queued change happens, EXEC decides; too rare to follow.
            if sticks || (queued && change.is_some()) {
                session.sticky.set(true);
            } else if let Some(change) = change {
                let reset = change.reset;
                session.changed(*change);
                if reset && self.home != 0 && state.tracker.is_empty() {
                    // The server is in its database 0 now, and a client that begins anew in `home`.
                    session.now_at(0, over.resp);
                    session.close_own();
                }
            }
        }
        units.step(&mut state.transaction, pending, end, frame, over);
    }

    /// The connection is over. True: its client cannot do without it.
    pub fn lost(&self, session: &Session) -> bool {
        let tied = self.is_tied() || self.swallow.get() > 0;
        self.state.borrow_mut().abandon(session, self.home);
        tied
    }
}

impl State {
    fn abandon(&mut self, session: &Session, home: u32) {
        let units = &session.units;
        let db = numbers::called(self.tracker.db(), home);
        for tag in self.tracker.drain() {
            units.abandon(tag.pending, db);
        }
        if let Some(transaction) = self.transaction.take() {
            units.abandon_transaction(transaction, db);
        }
    }
}
