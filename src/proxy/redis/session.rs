//! One Redis client: reads its commands and sends each to where it belongs.
//!
//! Commands go over a lane; [`super::route`] says which need the client's own connection. A client is on one of
//! the two at a time: it changes over only when no reply is outstanding, so replies keep their order.
//!
//! A command must lie in memory as a whole before it goes onto a lane. One that grows beyond
//! [`crate::limits::REDIS_HELD_BYTES_MAX`] goes over the client's own connection as it comes.

mod feed;
mod links;
mod told;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use super::SharedSource;
use super::collect::Collected;
use super::identity::Identity;
use super::lane::Lane;
use super::observe::Backend;
use super::own::Own;
use super::units::{Content, Units};
use crate::limits::{REDIS_WINDOW_FIRST, SOCKET_SEND_BYTES};
use crate::metrics;
use crate::protocol::resp::{RequestError, RequestFramer};
use crate::proxy::Context;
use crate::proxy::context::{self, SessionInfo};
use crate::ring::{Chunk, Notify, Socket};

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
    /// How often it has got one over a lane.
    offences: Cell<u32>,
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
            offences: Cell::new(0),
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
                Step::OpenLane => {
                    // Replies that come over a retired lane come first.
                    self.outstanding_at_most(0).await;
                    self.ended.get() || self.open_lane().await
                }
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
                        database = self.units.source.database.name,
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

    fn lanes_changed(&self) {
        if self.outstanding.get() == 0 {
            let ended = |lane: &mut Rc<Lane>| !lane.is_alive();
            self.lane.borrow_mut().take_if(ended);
        }
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
        if let Some(observer) = &self.units.source.observer {
            observer.left(self.units.id);
        }
        self.units.context.unregister(self.units.id);
        self.units.source.metrics.active_clients.sub(1);
    }
}
