//! One Redis client: reads its commands and sends each to where it belongs.
//!
//! Commands go over a lane; [`super::route`] says which need the client's own connection. A client is on one of
//! the two at a time: it changes over only when no reply is outstanding, so replies keep their order.
//!
//! A command must lie in memory as a whole before it goes onto a lane. One that grows beyond
//! [`REDIS_HELD_BYTES_MAX`] goes over the client's own connection as it comes.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::{Rc, Weak};

use super::SharedSource;
use super::collect::Collected;
use super::identity::{self, Identity, Unavailable, Wanted, write_command};
use super::lane::{Lane, LaneKey, Lanes};
use super::observe::Backend;
use super::own::{Change, Own};
use super::route::{self, Place};
use super::units::{Bytes, Content, Pending, Units};
use crate::limits::{
    REDIS_HEAD_BYTES, REDIS_HEAVY_REPLIES, REDIS_HELD_BYTES_MAX, REDIS_INFO_BYTES_MAX,
    REDIS_LANE_REPLY_BYTES, REDIS_WINDOW_FIRST, REDIS_WINDOW_MAX, SOCKET_SEND_BYTES,
};
use crate::metrics;
use crate::protocol::resp::tracker::{Disposition, NotMirrored};
use crate::protocol::resp::{Request, RequestError, RequestFramer, command};
use crate::proxy::Context;
use crate::proxy::context::{self, SessionInfo};
use crate::ring::{BY_REFERENCE_BYTES, Chunk, Notify, Queue, Socket};

/// Serves one accepted connection to its end.
pub async fn serve(context: Rc<Context>, source: SharedSource, client: Socket) {
    let session = Session::start(&context, source, &client);
    session.run(&client).await;
    session.end();
}

/// See the module.
pub(super) struct Session {
    pub units: Units,
    /// What one client sends leaves something behind that ties it to its own connection for good.
    pub sticky: Cell<bool>,
    /// Listed among the clients whose replies pile up.
    pub spilling: Cell<bool>,
    client: RefCell<Option<Socket>>,
    input: RefCell<Input>,
    lane: RefCell<Option<Rc<Lane>>>,
    own: RefCell<Option<Rc<Own>>>,
    backend: Cell<Backend>,
    identity: RefCell<Option<Identity>>,
    db: Cell<u32>,
    resp: Cell<u8>,
    name: RefCell<Option<Vec<u8>>>,
    /// CLIENT SETINFO as the client sent it, and how often.
    info: RefCell<(Vec<u8>, usize)>,
    /// Replies outstanding on the lane.
    outstanding: Cell<usize>,
    /// Somebody waits until no more than this are.
    awaited: Cell<Option<usize>>,
    progress: Notify,
    /// Replies that may be outstanding on the lane. Grows with small replies and shrinks with large ones, so that
    /// what a client may have to take at once stays bounded.
    window: Cell<usize>,
    /// Replies until a client whose replies are large is trusted with a lane again.
    heavy: Cell<u32>,
    /// It has written over a lane since its own connection last had a write.
    wrote: Cell<bool>,
    draining: Cell<bool>,
    ended: Cell<bool>,
}

/// What came of the client's bytes so far.
struct Input {
    framer: RequestFramer,
    /// The first pieces of a command.
    held: Vec<u8>,
    /// `held` is all of it, and waits for its place.
    whole: bool,
    /// The command that is coming goes over the client's own connection piece by piece.
    through: bool,
    head: Collected,
    content: Content,
    /// The commands cannot be followed any more: everything goes over the client's own connection.
    raw: bool,
}

/// Why [`Session::feed`] stopped.
enum Step {
    /// The chunk is used up.
    Done,
    /// Too many replies are outstanding.
    Window,
    /// There is no lane, or another one is needed.
    OpenLane,
    /// The client's own connection is needed, and nothing outstanding on the lane.
    OwnNeeded,
    /// The last command must be answered before the next is read.
    Quiet,
    /// The own connection must get a write before it is asked who has seen the writes.
    Fence,
    /// The other backend is in front now.
    Move,
    /// The backends change places: nobody is served for a moment.
    Held,
    Quit,
    Broken(RequestError),
    Foreign,
}

/// Where [`Session::place`] put a command.
enum Placed {
    /// Noted on the lane; its bytes are still to be written.
    Lane,
    /// Sent over the own connection. True: its reply must come before the next command is read.
    Own(bool),
    /// Nowhere yet.
    Not(Step),
}

impl Session {
    fn start(context: &Rc<Context>, source: SharedSource, client: &Socket) -> Rc<Session> {
        source.metrics.active_clients.add(1);
        let backend = source.front();
        let session = Rc::new(Session {
            units: Units::new(context, source),
            sticky: Cell::new(false),
            spilling: Cell::new(false),
            client: RefCell::new(Some(client.clone())),
            input: RefCell::new(Input {
                framer: RequestFramer::new(),
                held: Vec::new(),
                whole: false,
                through: false,
                head: Collected::default(),
                content: Content::default(),
                raw: false,
            }),
            lane: RefCell::default(),
            own: RefCell::default(),
            backend: Cell::new(backend),
            identity: RefCell::default(),
            db: Cell::new(0),
            resp: Cell::new(2),
            name: RefCell::default(),
            info: RefCell::default(),
            outstanding: Cell::new(0),
            awaited: Cell::new(None),
            progress: Notify::default(),
            window: Cell::new(REDIS_WINDOW_FIRST),
            heavy: Cell::new(0),
            wrote: Cell::new(false),
            draining: Cell::new(false),
            ended: Cell::new(false),
        });
        let registered: Weak<Session> = Rc::downgrade(&session);
        context.register(session.units.id, registered);
        session
    }

    async fn run(self: &Rc<Self>, client: &Socket) {
        let counters = self.units.context.metrics.clone();
        let counters = counters.listener(metrics::Protocol::Redis);
        if !self.open_lane().await {
            // A direct client would find the port closed.
            counters.refused.add(1);
            return;
        }
        loop {
            let received = client.recv().await;
            if self.ended.get() {
                return;
            }
            match received {
                Ok(Some(chunk)) => {
                    counters.client_bytes_in.add(chunk.len() as u64);
                    if !self.take(&chunk, client).await {
                        return;
                    }
                }
                Ok(None) => return self.last_replies().await,
                Err(_) => return,
            }
        }
    }

    /// The client has ended its direction. What it asked for it gets; what waits for something else ends at once.
    async fn last_replies(&self) {
        self.outstanding_at_most(0).await;
        let own = self.own.borrow().clone();
        if let Some(own) = own.filter(|own| own.is_tied()) {
            own.socket.shutdown_write();
            self.until(|| false).await;
        }
    }

    /// Handles one chunk to its end. False: the session is over.
    async fn take(self: &Rc<Self>, chunk: &Chunk, client: &Socket) -> bool {
        let mut offset = 0;
        loop {
            let step = self.feed(chunk, &mut offset);
            let goes_on = match step {
                Step::Done => break,
                Step::Window => {
                    self.outstanding_at_most(self.window.get() / 2).await;
                    client.drained(SOCKET_SEND_BYTES).await.is_ok()
                }
                Step::OpenLane => self.open_lane().await,
                Step::OwnNeeded => {
                    self.outstanding_at_most(0).await;
                    self.ended.get() || self.own.borrow().is_some() || self.open_own().await
                }
                Step::Quiet => {
                    // A connection that was lost meanwhile owes nothing any more.
                    self.until(|| !self.own_is(|own| !own.is_quiet())).await;
                    true
                }
                Step::Fence => self.fence().await,
                Step::Held => {
                    if let Some(observer) = &self.units.source.observer {
                        observer.gate().wait().await;
                    }
                    true
                }
                Step::Move => {
                    self.outstanding_at_most(0).await;
                    self.close_own();
                    self.backend.set(self.units.source.front());
                    *self.lane.borrow_mut() = None;
                    true
                }
                Step::Quit => {
                    self.outstanding_at_most(0).await;
                    client.write(b"+OK\r\n");
                    false
                }
                Step::Broken(error) => {
                    self.outstanding_at_most(0).await;
                    let mut text = Vec::new();
                    error.write_reply(&mut text);
                    client.write(&text);
                    false
                }
                Step::Foreign => {
                    tracing::warn!(
                        client = self.units.id.0,
                        "refused a client of another protocol"
                    );
                    false
                }
            };
            if !goes_on || self.ended.get() {
                return false;
            }
        }
        self.pause(client).await && !self.ended.get()
    }

    /// Waits while more is queued in any direction than should be.
    async fn pause(&self, client: &Socket) -> bool {
        let lane = self.lane.borrow().clone();
        if let Some(lane) = lane {
            lane.has_room().await;
        }
        let own = self.own.borrow().clone();
        if let Some(own) = own {
            // Its reader says what becomes of a lost connection.
            let _ = own.socket.drained(SOCKET_SEND_BYTES).await;
        }
        client.drained(SOCKET_SEND_BYTES).await.is_ok()
    }

    /// Sends on as much of `chunk` from `offset` as can be sent now.
    fn feed(self: &Rc<Self>, chunk: &Chunk, offset: &mut usize) -> Step {
        let input = &mut *self.input.borrow_mut();
        if input.raw {
            return self.feed_raw(input, chunk, offset);
        }
        if input.whole
            && let Some(step) = self.place_held(input)
        {
            return step;
        }
        if input.held.len() > REDIS_HELD_BYTES_MAX
            && let Some(step) = self.begin_through(input)
        {
            return step;
        }
        let mut run = *offset..*offset;
        let step = loop {
            if *offset == chunk.len() {
                break Step::Done;
            }
            let start = *offset;
            let advance = match input.framer.advance(&chunk[start..]) {
                Ok(advance) => advance,
                Err(RequestError::CrossProtocol) => break Step::Foreign,
                Err(_) if input.through || self.own_is(Own::is_tied) => {
                    // The primary has the last word on a connection of its own.
                    input.raw = true;
                    self.flush(chunk, &mut run);
                    break self.feed_raw(input, chunk, offset);
                }
                Err(error) => break Step::Broken(error),
            };
            let piece = start..start + advance.consumed;
            if input.through {
                *offset = piece.end;
                self.go_through(input, chunk, piece, advance.done);
                continue;
            }
            if advance.empty {
                *offset = piece.end;
                input.held.clear();
                continue;
            }
            if !advance.done || !input.held.is_empty() {
                *offset = piece.end;
                self.flush(chunk, &mut run);
                if let Some(step) = self.hold(input, chunk, piece, advance.done) {
                    break step;
                }
                continue;
            }
            match self.place(Bytes::Received(chunk, piece.clone())) {
                Placed::Lane => {
                    if run.end != piece.start {
                        self.flush(chunk, &mut run);
                        run.start = piece.start;
                    }
                    run.end = piece.end;
                    *offset = piece.end;
                }
                Placed::Own(wait) => {
                    *offset = piece.end;
                    if wait {
                        break Step::Quiet;
                    }
                }
                Placed::Not(step) => break step,
            }
        };
        self.flush(chunk, &mut run);
        step
    }

    /// Finds the place of a complete command and sends it there, but for the writing onto a lane.
    fn place(self: &Rc<Self>, bytes: Bytes<'_>) -> Placed {
        let request = Request::parse(bytes.as_slice());
        if request.is_cross_protocol() {
            return Placed::Not(Step::Foreign);
        }
        let command = command::lookup_request(&request);
        let place = route::place(command, &request);
        let own = self.own.borrow();
        let tied = own.as_ref().is_some_and(|own| own.is_tied());
        if !tied && self.is_held() {
            return Placed::Not(Step::Held);
        }
        if !tied && self.backend.get() != self.units.source.front() {
            return Placed::Not(Step::Move);
        }
        let free = !tied && !self.sticky.get() && self.heavy.get() == 0;
        match place {
            Place::Lane if free => return self.onto_lane(command, &request, bytes),
            Place::Info if free && own.is_none() => {
                self.note_info(bytes.as_slice());
                return self.onto_lane(command, &request, bytes);
            }
            Place::Quit if free && own.is_none() => return Placed::Not(Step::Quit),
            _ => {}
        }
        let Some(own) = own.as_ref().filter(|_| self.outstanding.get() == 0) else {
            return Placed::Not(Step::OwnNeeded);
        };
        if place == Place::Fenced && !tied && self.wrote.get() {
            return Placed::Not(Step::Fence);
        }
        let alone = own.is_quiet() && !own.in_transaction();
        let content = Content::default();
        let disposition = own.request(self, &request, content, Some(bytes.clone()));
        self.count_sent(bytes.len());
        match bytes {
            Bytes::Received(chunk, range) => own.socket.send(chunk.slice(range)),
            Bytes::Held(held) => own.socket.write(held),
        }
        let silent = matches!(
            disposition,
            Disposition::NotMirrored(NotMirrored::NoReply | NotMirrored::AfterQuit)
        );
        Placed::Own(place == Place::OwnAndWait && alone && !silent)
    }

    fn onto_lane(
        self: &Rc<Self>,
        command: Option<&'static command::Command>,
        request: &Request<'_>,
        bytes: Bytes<'_>,
    ) -> Placed {
        if self.outstanding.get() >= self.window.get() {
            return Placed::Not(Step::Window);
        }
        let lane = self.lane.borrow();
        let Some(lane) = lane.as_ref().filter(|lane| self.fits(lane)) else {
            return Placed::Not(Step::OpenLane);
        };
        let units = &self.units;
        let mut pending = Pending::new(units.context.ring.now_ns(), command);
        let disposition = route::disposition(command, request);
        units.admit(
            &mut pending,
            request,
            disposition,
            Content::default(),
            Some(bytes),
            lane.key.db,
        );
        lane.note(self, pending, disposition);
        self.outstanding.set(self.outstanding.get() + 1);
        if !command.is_some_and(command::Command::is_readonly) {
            self.wrote.set(true);
        }
        Placed::Lane
    }

    fn fits(&self, lane: &Lane) -> bool {
        let key = &lane.key;
        lane.is_alive()
            && key.db == self.db.get()
            && key.resp == self.resp.get()
            && key.backend == self.backend.get()
            && key.identity == *self.identity.borrow()
    }

    /// Keeps a piece of a command until all of it is here.
    fn hold(
        self: &Rc<Self>,
        input: &mut Input,
        chunk: &Chunk,
        piece: Range<usize>,
        done: bool,
    ) -> Option<Step> {
        if input.held.is_empty() && self.own_is(Own::is_tied) {
            input.through = true;
            self.go_through(input, chunk, piece, done);
            return None;
        }
        input.held.extend_from_slice(&chunk[piece]);
        if done {
            input.whole = true;
            return self.place_held(input);
        }
        if input.held.len() > REDIS_HELD_BYTES_MAX {
            return self.begin_through(input);
        }
        None
    }

    /// A command that came in pieces is complete.
    fn place_held(self: &Rc<Self>, input: &mut Input) -> Option<Step> {
        let held = std::mem::take(&mut input.held);
        let wait = match self.place(Bytes::Held(&held)) {
            Placed::Not(step) => {
                input.held = held;
                return Some(step);
            }
            Placed::Own(wait) => wait,
            Placed::Lane => {
                if let Some(lane) = &*self.lane.borrow() {
                    self.count_sent(held.len());
                    lane.write(&held);
                }
                false
            }
        };
        input.whole = false;
        wait.then_some(Step::Quiet)
    }

    /// A command is too large to be held.
    fn begin_through(&self, input: &mut Input) -> Option<Step> {
        let own = self.own.borrow();
        let tied = own.as_ref().is_some_and(|own| own.is_tied());
        if !tied && self.is_held() {
            return Some(Step::Held);
        }
        if !tied && self.backend.get() != self.units.source.front() {
            return Some(Step::Move);
        }
        let Some(own) = own.as_ref().filter(|_| self.outstanding.get() == 0) else {
            return Some(Step::OwnNeeded);
        };
        let held = std::mem::take(&mut input.held);
        input.through = true;
        input.head.push(&held, REDIS_HEAD_BYTES);
        self.units.keep(&mut input.content, Bytes::Held(&held));
        self.count_sent(held.len());
        own.socket.send(Chunk::from(held));
        None
    }

    /// Sends a piece of a command over the client's own connection.
    fn go_through(&self, input: &mut Input, chunk: &Chunk, piece: Range<usize>, done: bool) {
        let own = self.own.borrow();
        let Some(own) = own.as_ref() else {
            // It was lost, and the session is about to end.
            return;
        };
        input.head.push(&chunk[piece.clone()], REDIS_HEAD_BYTES);
        let part = Bytes::Received(chunk, piece.clone());
        self.units.keep(&mut input.content, part);
        self.count_sent(piece.len());
        own.socket.send(chunk.slice(piece));
        if !done {
            return;
        }
        input.through = false;
        let content = std::mem::take(&mut input.content);
        let head = std::mem::take(&mut input.head);
        if head.is_whole() {
            own.request(self, &Request::parse(head.bytes()), content, None);
            return;
        }
        let request = Request::parse_prefix(head.bytes());
        let command = command::lookup_request(&request);
        if command.is_some_and(command::Command::is_connection_state) {
            // What it makes of the connection cannot be read any more.
            self.sticky.set(true);
        }
        own.request(self, &request, content, None);
    }

    fn feed_raw(&self, input: &mut Input, chunk: &Chunk, offset: &mut usize) -> Step {
        let own = self.own.borrow();
        let Some(own) = own.as_ref().filter(|_| self.outstanding.get() == 0) else {
            return Step::OwnNeeded;
        };
        self.units.discard(std::mem::take(&mut input.content));
        self.count_sent(chunk.len() - *offset);
        own.socket.send(chunk.slice(*offset..chunk.len()));
        *offset = chunk.len();
        Step::Done
    }

    /// The backends change places right now.
    fn is_held(&self) -> bool {
        let observer = self.units.source.observer.as_ref();
        observer.is_some_and(|observer| observer.held())
    }

    /// Sends neighbouring commands onto the lane.
    fn flush(&self, chunk: &Chunk, run: &mut Range<usize>) {
        if run.start < run.end
            && let Some(lane) = &*self.lane.borrow()
        {
            self.count_sent(run.len());
            lane.send(chunk, run.clone());
        }
        *run = run.end..run.end;
    }
}

// The connections.
impl Session {
    fn own_is(&self, what: impl Fn(&Own) -> bool) -> bool {
        self.own.borrow().as_ref().is_some_and(|own| what(own))
    }

    /// Gets the lane for who the client is now. False: the session is over.
    async fn open_lane(self: &Rc<Self>) -> bool {
        let key = LaneKey {
            backend: self.backend.get(),
            identity: self.identity.borrow().clone(),
            db: self.db.get(),
            resp: self.resp.get(),
        };
        let units = &self.units;
        match Lanes::get(&units.context, &units.source, &key).await {
            Ok(lane) => {
                let trusted = key.identity.is_some() || !lane.wants_login;
                self.input.borrow_mut().framer.set_authenticated(trusted);
                *self.lane.borrow_mut() = Some(lane);
                true
            }
            Err(Unavailable::Refused(_)) if self.own.borrow().is_some() => {
                // What the server has allowed on the client's own connection it does not allow again.
                self.sticky.set(true);
                true
            }
            Err(_) => false,
        }
    }

    /// Opens the client's own connection. False: the session is over.
    async fn open_own(self: &Rc<Self>) -> bool {
        let units = &self.units;
        let backend = self.backend.get();
        let (db, resp) = (self.db.get(), self.resp.get());
        let identity = self.identity.borrow().clone();
        let name = self.name.borrow().clone();
        let (info, count) = self.info.borrow().clone();
        let wanted = Wanted {
            identity: identity.as_ref(),
            db,
            resp,
            name: name.as_deref(),
            probe: false,
            more: (&info, count),
        };
        let database = units.source.backend(backend);
        match identity::establish(&units.context, &database, &wanted).await {
            Ok(established) => {
                let own = Rc::new(Own::new(
                    established.socket,
                    backend,
                    units.context.new_client().0,
                    db,
                    resp,
                ));
                *self.own.borrow_mut() = Some(own.clone());
                let reading = read_own(self.clone(), own);
                units.context.queues.spawn(Queue::Serve, reading);
                true
            }
            Err(problem) => {
                tracing::warn!(database = database.name, %problem, "no connection for a client");
                false
            }
        }
    }

    fn close_own(&self) {
        if let Some(own) = self.own.borrow_mut().take() {
            own.socket.stop_receiving();
        }
    }

    /// The own connection is over.
    fn own_ended(&self, own: &Rc<Own>) {
        let needed = own.lost(self);
        let mine = self
            .own
            .borrow()
            .as_ref()
            .is_some_and(|current| Rc::ptr_eq(current, own));
        if !mine {
            return;
        }
        self.own.borrow_mut().take();
        let input = self.input.borrow();
        if needed || self.sticky.get() || input.through || input.raw {
            drop(input);
            return self.fail();
        }
        self.progress.notify();
    }

    /// WAIT asks for the writes of its own connection, so the last one must be there. A publication to a shard channel
    /// that nobody knows is one, and disturbs nobody.
    async fn fence(&self) -> bool {
        let own = self.own.borrow().clone();
        let Some(own) = own else { return true };
        let mut publish = Vec::new();
        write_command(&mut publish, &[b"SPUBLISH", b"parhelion:wait", b""]);
        own.swallow.set(own.swallow.get() + 1);
        own.socket.write(&publish);
        self.until(|| own.swallow.get() == 0).await;
        self.wrote.set(false);
        true
    }

    fn note_info(&self, bytes: &[u8]) {
        let (kept, count) = &mut *self.info.borrow_mut();
        if kept.len() + bytes.len() <= REDIS_INFO_BYTES_MAX {
            kept.extend_from_slice(bytes);
            *count += 1;
        }
    }

    fn count_sent(&self, bytes: usize) {
        let counters = &self.units.context.metrics;
        let counters = counters.listener(metrics::Protocol::Redis);
        counters.primary_bytes_out.add(bytes as u64);
    }

    /// Waits until `reached` or the end of the session.
    async fn until(&self, reached: impl Fn() -> bool) {
        while !reached() && !self.ended.get() {
            self.progress.notified().await;
        }
    }

    async fn outstanding_at_most(&self, level: usize) {
        self.awaited.set(Some(level));
        self.until(|| self.outstanding.get() <= level).await;
        self.awaited.set(None);
    }
}

// What lanes and the own connection call.
impl Session {
    /// Bytes waiting for the client to read.
    pub fn backlog(&self) -> usize {
        self.client.borrow().as_ref().map_or(0, Socket::queued)
    }

    /// Sends replies of a lane to the client; `replies` of them end in `range`.
    pub fn deliver(self: &Rc<Self>, chunk: &Chunk, range: Range<usize>, replies: usize) {
        if let Some(client) = &*self.client.borrow() {
            let counters = &self.units.context.metrics;
            let counters = counters.listener(metrics::Protocol::Redis);
            counters.client_bytes_out.add(range.len() as u64);
            if range.len() < BY_REFERENCE_BYTES {
                client.write(&chunk[range]);
            } else {
                client.send(chunk.slice(range));
            }
        }
        if self.backlog() > SOCKET_SEND_BYTES && !self.units.source.lanes.spill(self) {
            tracing::warn!(
                client = self.units.id.0,
                "a client that does not read its replies is closed"
            );
            self.abort();
        }
        self.outstanding.set(self.outstanding.get() - replies);
        if let Some(level) = self.awaited.get()
            && self.outstanding.get() <= level
        {
            self.progress.notify();
        }
        if self.draining.get() {
            self.end_if_quiet();
        }
    }

    /// A reply of this size came over a lane.
    pub fn learn_size(&self, bytes: usize) {
        let window = self.window.get();
        if bytes < REDIS_LANE_REPLY_BYTES / 4 {
            self.window.set((window + 1).min(REDIS_WINDOW_MAX));
            return;
        }
        self.window.set((window / 2).max(1));
        if bytes > REDIS_LANE_REPLY_BYTES {
            self.heavy.set(REDIS_HEAVY_REPLIES);
        }
    }

    /// A reply of this size came over the own connection.
    pub fn learn_own_size(&self, bytes: usize) {
        self.heavy.set(match bytes > REDIS_LANE_REPLY_BYTES {
            true => REDIS_HEAVY_REPLIES,
            false => self.heavy.get().saturating_sub(1),
        });
    }

    /// The own connection has confirmed this database and version.
    pub fn now_at(&self, db: u32, resp: u8) {
        self.db.set(db);
        self.resp.set(resp);
    }

    /// The server has said yes to what the client wants to be.
    pub fn changed(&self, change: Change) {
        let framer = &mut self.input.borrow_mut().framer;
        if change.reset {
            self.sticky.set(false);
            *self.identity.borrow_mut() = None;
            *self.name.borrow_mut() = None;
            framer.set_authenticated(!self.units.source.lanes.wants_login());
        }
        if let Some(identity) = change.identity {
            *self.identity.borrow_mut() = Some(identity);
            framer.set_authenticated(true);
        }
        if let Some(name) = change.name {
            *self.name.borrow_mut() = (!name.is_empty()).then_some(name);
        }
    }

    /// A connection was lost that the client cannot do without: what arrived for it still leaves, then it is closed.
    pub fn fail(&self) {
        self.ended.set(true);
        if let Some(client) = &*self.client.borrow() {
            client.stop_receiving();
        }
        self.close_own();
        self.progress.notify();
    }

    /// The client is closed, and what waits for it is thrown away.
    fn abort(&self) {
        self.fail();
        if let Some(client) = self.client.borrow_mut().take() {
            client.reset_on_close();
        }
    }

    /// Lets go of everything; replies that still come are dropped.
    fn end(&self) {
        self.ended.set(true);
        self.close_own();
        *self.lane.borrow_mut() = None;
        *self.client.borrow_mut() = None;
        *self.identity.borrow_mut() = None;
        self.progress.notify();
    }

    /// Mirrors have come or gone: what is kept of requests follows as soon as no transaction is under way.
    fn follow_mirrors(&self) {
        let through = self.input.borrow().through;
        if self.units.is_behind() && !through && !self.own_is(Own::is_tied) {
            self.units.follow();
        }
    }

    fn end_if_quiet(&self) {
        if context::Session::is_quiet(self) {
            self.fail();
        }
    }
}

/// Sends what the backend says to the client, until either is gone.
async fn read_own(session: Rc<Session>, own: Rc<Own>) {
    let counters = session.units.context.metrics.clone();
    let counters = counters.listener(metrics::Protocol::Redis);
    while let Ok(Some(chunk)) = own.socket.recv().await {
        let Some(client) = session.client.borrow().clone() else {
            break;
        };
        counters.primary_bytes_in.add(chunk.len() as u64);
        counters.client_bytes_out.add(chunk.len() as u64);
        own.read(&session, &chunk, &client);
        session.follow_mirrors();
        session.progress.notify();
        if client.drained(SOCKET_SEND_BYTES).await.is_err() {
            break;
        }
        if session.draining.get() {
            session.end_if_quiet();
        }
    }
    session.own_ended(&own);
}

impl context::Session for Session {
    fn describe(&self) -> SessionInfo {
        let peer = self.client.borrow().as_ref().and_then(Socket::peer);
        let active = self.outstanding.get() > 0 || self.own_is(|own| !own.is_quiet());
        let identity = self.identity.borrow();
        SessionInfo {
            id: self.units.id.0,
            database: self.units.source.database.name.clone(),
            protocol: "redis",
            user: identity.as_ref().map_or_else(String::new, Identity::user),
            peer: peer.map_or_else(String::new, |peer| peer.to_string()),
            state: if active { "active" } else { "idle" },
            core: 0,
        }
    }

    fn mirrors_changed(&self) {
        self.follow_mirrors();
    }

    fn client(&self) -> Option<Socket> {
        self.client.borrow().clone()
    }

    fn is_quiet(&self) -> bool {
        let input = self.input.borrow();
        let coming = input.through || !input.held.is_empty();
        !coming && self.outstanding.get() == 0 && !self.own_is(Own::is_tied)
    }

    fn listens(&self) -> bool {
        self.own_is(Own::listens)
    }

    fn end_idle(&self) {
        self.fail();
    }

    fn drain(&self) {
        self.draining.set(true);
        self.end_if_quiet();
    }

    fn stop(&self) {
        self.fail();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let content = std::mem::take(&mut self.input.borrow_mut().content);
        self.units.discard(content);
        self.units.source.mirrors.detach(self.units.id);
        self.units.context.unregister(self.units.id);
        self.units.source.metrics.active_clients.sub(1);
    }
}
