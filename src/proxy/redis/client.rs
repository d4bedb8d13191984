//! One Redis client and its own connection to the primary.
//!
//! Bytes go on as they come, in both directions; framers and tracker only read along. If a stream cannot be
//! followed any more it is still forwarded, and the primary gives the answer that it gives a direct client; only
//! what no Redis client sends (HTTP, TLS on a plain port) is refused here.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use super::collect::{Collected, Frame};
use super::{RedisOutcome, SharedSource};
use crate::limits::{
    REDIS_COMPARE_BYTES, REDIS_HEAD_BYTES, REDIS_REPLY_BYTES_MAX, SOCKET_SEND_BYTES,
};
use crate::metrics::{self, ErrorWord};
use crate::mirror::ledger::DropReason;
use crate::mirror::unit::{Class, ClientId, Draft, MirrorSet};
use crate::protocol::resp::tracker::{Disposition, Paired, ReplyHead, Tracker, UnitEnd};
use crate::protocol::resp::{ReplyFramer, Request, RequestError, RequestFramer, command};
use crate::proxy::Context;
use crate::proxy::context::{self, SessionInfo};
use crate::proxy::mirrors::append;
use crate::ring::{Chunk, Queue, Socket, WeakSocket};

/// Serves one accepted connection to its end.
pub async fn serve(context: Rc<Context>, source: SharedSource, client: Socket) {
    let primary = match context.connect(&source.database).await {
        Ok(primary) => primary,
        Err(error) => {
            // A direct client would find the port closed.
            tracing::warn!(database = source.database.name, %error, "the primary cannot be reached");
            context
                .metrics
                .listener(metrics::Protocol::Redis)
                .refused
                .add(1);
            return;
        }
    };
    let session = RedisSession::start(&context, source, &client, &primary);
    context.queues.spawn(Queue::Serve, {
        let (session, client, primary) = (session.clone(), client.clone(), primary.clone());
        async move { session.downstream(&client, &primary).await }
    });
    session.upstream(&client, &primary).await;
}

/// A request that waits for its reply.
struct Pending {
    arrived_ns: u64,
    command: Option<&'static command::Command>,
    content: Content,
    exposed: MirrorSet,
}

/// The bytes of a request, as far as a mirror wants them.
#[derive(Default)]
struct Content {
    draft: Option<Draft<Chunk, RedisOutcome>>,
    oversize: bool,
}

/// A transaction that MULTI has opened.
struct Transaction {
    exposed: MirrorSet,
    class: Class,
    content: Content,
    commands: u32,
    began_ns: u64,
}

struct State {
    requests: RequestFramer,
    replies: ReplyFramer,
    tracker: Tracker<Pending>,
    request: Collected,
    /// The bytes of a request that comes in pieces, for its unit.
    content: Content,
    reply: Collected,
    transaction: Option<Transaction>,
    followed: bool,
}

struct RedisSession {
    context: Rc<Context>,
    source: SharedSource,
    id: ClientId,
    /// Whether requests are collected for mirrors.
    mirrored: Cell<bool>,
    /// Whether the source has mirrors now; [`RedisSession::mirrored`] follows at the next quiet moment, because half a
    /// request or transaction is worth nothing.
    wanted: Cell<bool>,
    state: RefCell<State>,
    draining: Cell<bool>,
    client: WeakSocket,
    primary: WeakSocket,
}

impl RedisSession {
    fn start(
        context: &Rc<Context>,
        source: SharedSource,
        client: &Socket,
        primary: &Socket,
    ) -> Rc<RedisSession> {
        let mut requests = RequestFramer::new();
        // Limits before AUTH are the primary's to enforce: it alone knows whether it wants a login.
        requests.set_authenticated(true);
        source.metrics.active_clients.add(1);
        let session = Rc::new(RedisSession {
            context: context.clone(),
            id: context.new_client(),
            mirrored: Cell::new(!source.mirrors.is_empty()),
            wanted: Cell::new(!source.mirrors.is_empty()),
            source,
            state: RefCell::new(State {
                requests,
                replies: ReplyFramer::new(REDIS_REPLY_BYTES_MAX),
                tracker: Tracker::new(),
                request: Collected::default(),
                content: Content::default(),
                reply: Collected::default(),
                transaction: None,
                followed: true,
            }),
            draining: Cell::new(false),
            client: client.downgrade(),
            primary: primary.downgrade(),
        });
        let registered: Weak<RedisSession> = Rc::downgrade(&session);
        context.register(session.id, registered);
        session
    }

    async fn upstream(&self, client: &Socket, primary: &Socket) {
        let counters = self.context.metrics.listener(metrics::Protocol::Redis);
        while let Ok(Some(chunk)) = client.recv().await {
            counters.client_bytes_in.add(chunk.len() as u64);
            if !self.read_client(&chunk) {
                client.stop_receiving();
                primary.stop_receiving();
                return;
            }
            counters.primary_bytes_out.add(chunk.len() as u64);
            primary.send(chunk);
            if primary.drained(SOCKET_SEND_BYTES).await.is_err() {
                break;
            }
        }
        self.client_left(client, primary);
    }

    /// A client that has gone must not have its blocking commands served: its connection to the primary goes too. One
    /// that has only ended its own direction still gets its replies.
    fn client_left(&self, _client: &Socket, primary: &Socket) {
        primary.shutdown_write();
    }

    async fn downstream(&self, client: &Socket, primary: &Socket) {
        let counters = self.context.metrics.listener(metrics::Protocol::Redis);
        while let Ok(Some(chunk)) = primary.recv().await {
            counters.primary_bytes_in.add(chunk.len() as u64);
            counters.client_bytes_out.add(chunk.len() as u64);
            self.read_primary(&chunk);
            client.send(chunk);
            if client.drained(SOCKET_SEND_BYTES).await.is_err() {
                break;
            }
            if self.draining.get() {
                self.end_if_idle();
            }
        }
        client.stop_receiving();
        primary.stop_receiving();
    }

    /// Reads along what the client sends. False: refuse the client, forward nothing.
    fn read_client(&self, chunk: &Chunk) -> bool {
        let state = &mut *self.state.borrow_mut();
        let mut offset = 0;
        while state.followed && offset < chunk.len() {
            let advance = match state.requests.advance(&chunk[offset..]) {
                Ok(advance) => advance,
                Err(RequestError::CrossProtocol) => {
                    tracing::warn!(client = self.id.0, "refused a client of another protocol");
                    return false;
                }
                Err(error) => {
                    self.lose_track(state, &error);
                    break;
                }
            };
            let piece = offset..offset + advance.consumed;
            offset = piece.end;
            if advance.empty {
                state.request.clear();
                self.discard(std::mem::take(&mut state.content));
            } else if advance.done && state.request.is_empty() {
                if !self.request(state, Frame::Whole(chunk, piece)) {
                    return false;
                }
            } else {
                state.request.push(&chunk[piece.clone()], REDIS_HEAD_BYTES);
                self.keep(&mut state.content, &chunk.slice(piece));
                if advance.done {
                    let collected = std::mem::take(&mut state.request);
                    if !self.request(state, Frame::Collected(&collected)) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// One complete request. False: it is no Redis client's.
    fn request(&self, state: &mut State, frame: Frame<'_>) -> bool {
        let request = match frame.is_whole() {
            true => Request::parse(frame.bytes()),
            false => Request::parse_prefix(frame.bytes()),
        };
        if request.is_cross_protocol() {
            tracing::warn!(client = self.id.0, "refused a client of another protocol");
            return false;
        }
        let now_ns = self.context.ring.now_ns();
        let pending = Pending {
            arrived_ns: now_ns,
            command: command::lookup_request(&request),
            content: Content::default(),
            exposed: MirrorSet::EMPTY,
        };
        let mut content = std::mem::take(&mut state.content);
        let disposition = state.tracker.request(&request, pending);
        if !self.mirrored.get() {
            return true;
        }
        let mut exposed = MirrorSet::EMPTY;
        let wanted = match disposition {
            Disposition::Mirror => {
                exposed = self.source.mirrors.expose(&self.context.random);
                !exposed.is_empty()
            }
            Disposition::TxnMember => true,
            Disposition::NotMirrored(_) => {
                self.source.mirrors.exclude();
                false
            }
        };
        if !wanted {
            self.discard(content);
            return true;
        }
        if let Frame::Whole(chunk, range) = frame {
            self.keep(&mut content, &chunk.slice(range));
        }
        match state.tracker.newest_mut() {
            Some(pending) => (pending.content, pending.exposed) = (content, exposed),
            None => self.discard(content),
        }
        true
    }

    /// Appends bytes to what a mirror may want of the current request.
    fn keep(&self, content: &mut Content, bytes: &Chunk) {
        if !self.mirrored.get() || content.oversize {
            return;
        }
        let bytes_max = self.source.mirrors.bytes_max();
        let draft = content.draft.get_or_insert_with(|| {
            self.source
                .mirrors
                .units
                .draft(self.id, self.context.ring.now_ns())
        });
        if draft.payload.len() + bytes.len() > bytes_max {
            content.oversize = true;
            self.discard_draft(content.draft.take());
            return;
        }
        draft.begin_group(self.context.ring.now_ns());
        append(&self.context.ring, draft, bytes);
    }

    /// Reads along what the primary sends.
    fn read_primary(&self, chunk: &Chunk) {
        let state = &mut *self.state.borrow_mut();
        let mut offset = 0;
        while state.followed && offset < chunk.len() {
            let advance = match state.replies.advance(&chunk[offset..]) {
                Ok(advance) => advance,
                Err(error) => return self.lose_track(state, &error),
            };
            let piece = offset..offset + advance.consumed;
            offset = piece.end;
            if advance.done && state.reply.is_empty() {
                self.reply(state, Frame::Whole(chunk, piece));
                continue;
            }
            state.reply.push(&chunk[piece], REDIS_COMPARE_BYTES);
            if advance.done {
                let collected = std::mem::take(&mut state.reply);
                self.reply(state, Frame::Collected(&collected));
            }
        }
        if self.wanted.get() != self.mirrored.get() {
            self.follow_wanted(state);
        }
    }

    /// One complete frame of the primary.
    fn reply(&self, state: &mut State, frame: Frame<'_>) {
        let head = match frame.is_whole() {
            true => ReplyHead::whole(frame.bytes()),
            false => ReplyHead::prefix(state.replies.kind().unwrap_or_default(), frame.bytes()),
        };
        let Paired::Reply { tag: pending, end } = state.tracker.reply(head) else {
            return;
        };
        let now_ns = self.context.ring.now_ns();
        let latency_ns = now_ns.saturating_sub(pending.arrived_ns);
        self.count(&pending, &frame, latency_ns);
        if self.mirrored.get() {
            self.unit_step(state, pending, end, &frame, now_ns);
        }
    }

    /// Begins to collect for mirrors that have come, or ends it, if nothing is under way.
    fn follow_wanted(&self, state: &State) {
        let quiet = state.tracker.is_empty()
            && !state.tracker.in_transaction()
            && state.transaction.is_none()
            && state.request.is_empty();
        if quiet {
            self.mirrored.set(self.wanted.get());
        }
    }

    fn count(&self, pending: &Pending, frame: &Frame<'_>, latency_ns: u64) {
        let metrics = &self.source.metrics;
        metrics.requests.add(1);
        metrics.latency.record(latency_ns);
        let failed = frame
            .bytes()
            .first()
            .is_some_and(|kind| matches!(kind, b'-' | b'!'));
        if failed {
            metrics.errors.count(ErrorWord::of_redis(frame.bytes()));
        }
        let command = match pending.command {
            Some(command) => metrics.commands.at(command.index(), command.name()),
            None => metrics.commands.other(),
        };
        command.record(!failed, latency_ns);
    }

    /// What the reply makes of the unit that its request belongs to.
    fn unit_step(
        &self,
        state: &mut State,
        pending: Pending,
        end: UnitEnd,
        frame: &Frame<'_>,
        now_ns: u64,
    ) {
        match end {
            UnitEnd::NotAUnit => self.discard(pending.content),
            UnitEnd::Complete { .. } => {
                let transaction = Transaction {
                    exposed: pending.exposed,
                    class: class_of(pending.command),
                    content: pending.content,
                    commands: 1,
                    began_ns: pending.arrived_ns,
                };
                self.seal(&state.tracker, transaction, frame, now_ns);
            }
            UnitEnd::Open | UnitEnd::Misjudged => self.join(state, pending),
            UnitEnd::Committed => {
                self.join(state, pending);
                if let Some(transaction) = state.transaction.take() {
                    self.seal(&state.tracker, transaction, frame, now_ns);
                }
            }
            UnitEnd::Excluded(_) | UnitEnd::Discarded(_) => {
                self.discard(pending.content);
                if let Some(transaction) = state.transaction.take() {
                    self.discard(transaction.content);
                }
                self.source.mirrors.exclude();
            }
            UnitEnd::Stray { .. } => {
                self.discard(pending.content);
                self.source.mirrors.exclude();
            }
        }
    }

    /// Adds a request to the transaction under way, which its MULTI opens.
    fn join(&self, state: &mut State, pending: Pending) {
        let Some(transaction) = &mut state.transaction else {
            let exposed = self.source.mirrors.expose(&self.context.random);
            state.transaction = Some(Transaction {
                exposed,
                class: class_of(pending.command),
                content: pending.content,
                commands: 1,
                began_ns: pending.arrived_ns,
            });
            return;
        };
        transaction.commands += 1;
        transaction.class |= class_of(pending.command);
        let bytes_max = self.source.mirrors.bytes_max();
        let whole = &mut transaction.content;
        whole.oversize |= pending.content.oversize;
        match (&mut whole.draft, pending.content.draft) {
            (Some(draft), Some(mut more))
                if !whole.oversize && draft.payload.len() + more.payload.len() <= bytes_max =>
            {
                draft.begin_group(pending.arrived_ns);
                draft.payload.append(std::mem::take(&mut more.payload));
                self.discard_draft(Some(more));
            }
            (_, more) => {
                whole.oversize = true;
                self.discard_draft(more);
                self.discard_draft(whole.draft.take());
            }
        }
    }

    fn seal(
        &self,
        tracker: &Tracker<Pending>,
        transaction: Transaction,
        frame: &Frame<'_>,
        now_ns: u64,
    ) {
        let Transaction {
            exposed,
            class,
            content,
            commands,
            began_ns,
        } = transaction;
        let mirrors = &self.source.mirrors;
        if content.oversize {
            return mirrors.refuse(exposed, class, DropReason::Oversize);
        }
        let Some(mut draft) = content.draft else {
            return mirrors.leave_out(class);
        };
        if exposed.is_empty() {
            self.discard_draft(Some(draft));
            return mirrors.leave_out(class);
        }
        draft.class = class;
        draft.outcome.replies = commands;
        draft.outcome.db = tracker.db();
        draft.outcome.resp = tracker.resp();
        draft.outcome.latency_ns = now_ns.saturating_sub(began_ns);
        if frame.is_whole() && frame.bytes().len() <= REDIS_COMPARE_BYTES {
            draft.outcome.reply.extend_from_slice(frame.bytes());
        }
        mirrors.seal(draft, exposed, now_ns);
    }

    fn discard(&self, content: Content) {
        self.discard_draft(content.draft);
    }

    fn discard_draft(&self, draft: Option<Draft<Chunk, RedisOutcome>>) {
        if let Some(draft) = draft {
            self.source.mirrors.units.discard(draft);
        }
    }

    /// The session goes on, unmirrored.
    fn lose_track(&self, state: &mut State, why: &dyn std::fmt::Display) {
        state.followed = false;
        self.abandon(state);
        tracing::debug!(client = self.id.0, database = self.source.database.name, %why,
            "a session cannot be followed and is not mirrored any more");
    }

    /// What has no reply has no outcome: it is no unit.
    fn abandon(&self, state: &mut State) {
        let mut unfinished: Vec<Content> = state
            .tracker
            .drain()
            .map(|pending| pending.content)
            .collect();
        unfinished.extend(
            state
                .transaction
                .take()
                .map(|transaction| transaction.content),
        );
        for content in unfinished {
            if content.draft.is_some() || content.oversize {
                self.source.mirrors.exclude();
            }
            self.discard(content);
        }
        self.discard(std::mem::take(&mut state.content));
    }

    fn end_if_idle(&self) {
        let state = self.state.borrow();
        if state.followed && (!state.tracker.is_empty() || state.tracker.in_transaction()) {
            return;
        }
        drop(state);
        context::Session::stop(self);
    }
}

impl context::Session for RedisSession {
    fn describe(&self) -> SessionInfo {
        let client = self.client.upgrade().and_then(|client| client.peer());
        let idle = self.state.borrow().tracker.is_empty();
        SessionInfo {
            id: self.id.0,
            database: self.source.database.name.clone(),
            protocol: "redis",
            user: String::new(),
            peer: client.map_or_else(String::new, |peer| peer.to_string()),
            state: if idle { "idle" } else { "active" },
            core: 0,
        }
    }

    fn mirrors_changed(&self) {
        self.wanted.set(!self.source.mirrors.is_empty());
        self.follow_wanted(&self.state.borrow());
    }

    fn drain(&self) {
        self.draining.set(true);
        self.end_if_idle();
    }

    fn stop(&self) {
        for socket in [&self.client, &self.primary]
            .into_iter()
            .filter_map(WeakSocket::upgrade)
        {
            socket.stop_receiving();
        }
    }
}

impl Drop for RedisSession {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        self.abandon(&mut state);
        drop(state);
        self.source.mirrors.detach(self.id);
        self.context.unregister(self.id);
        self.source.metrics.active_clients.sub(1);
    }
}

fn class_of(command: Option<&'static command::Command>) -> Class {
    match command {
        Some(command) if command.is_readonly() => Class::READS,
        Some(command) if command.is_write() => Class::WRITES,
        // MULTI and EXEC themselves do nothing.
        Some(command) if command.category() == command::CommandCategory::Txn => Class::NONE,
        _ => Class::UNKNOWN,
    }
}
