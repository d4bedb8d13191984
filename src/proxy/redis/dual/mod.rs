//! `[[dual_write]]`: one primary and its secondary on one core.
//!
//! [`Dual`] is the observer of its source: it turns what the backend in front has answered into items for the one that
//! follows. A worker ([`worker`]) carries them there over one connection, in order; a repair ([`repair`]) copies what
//! is tainted; mismatches of shadow reads are read again ([`reread`]). Nothing here makes a client wait, but for the
//! moment in which the backends change places.

mod admit;
mod judge;
mod late;
mod link;
mod pubsub;
mod repair;
mod reread;
mod switch;
mod worker;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::numbers;
use super::observe::{Answered, Backend, Observer};
use crate::config::{Config, Database, DualWrite, RedisMode};
use crate::metrics::{CommandTable, MirrorMetrics};
use crate::mirror::dual::expiries::Expiries;
use crate::mirror::dual::order::{Order, Stream};
use crate::mirror::dual::queue::{DualBounds, DualQueue, Item};
use crate::mirror::dual::scripts::ScriptCache;
use crate::mirror::ledger::DropReason;
use crate::mirror::payload::Payload;
use crate::mirror::unit::ClientId;
use crate::protocol::resp::effects::Rewrite;
use crate::protocol::resp::{Command, Request};
use crate::proxy::Context;
use crate::ring::{Chunk, Queue, WaitQueue, WeakSocket};

/// The stream of our own reads at the backend in front, for [`Order`]. Clients' streams are numbered from 1.
const OUR_STREAM: Stream = 0;

/// See the module.
pub struct Dual {
    context: Rc<Context>,
    /// The name of the primary.
    pub source: String,
    primary: Database,
    secondary: Database,
    options: RefCell<DualWrite>,
    mode: Cell<RedisMode>,
    /// What an operator asked for last; the mode follows.
    wanted: Cell<RedisMode>,
    switching: Cell<bool>,
    state: RefCell<State>,
    /// The worker waits here.
    work: WaitQueue,
    /// The repair and the rereads wait here.
    chores: WaitQueue,
    /// Clients wait here while the backends change places.
    gate: WaitQueue,
    held: Cell<bool>,
    /// What the backend that is not in front any more has answered since.
    late: RefCell<VecDeque<Box<Item>>>,
    /// When the backends changed places last.
    moved_ns: Cell<u64>,
    /// Somebody brings it to the one in front.
    applying: Cell<bool>,
    /// For tasks that are started later.
    this: Weak<Dual>,
    /// Shadow subscriptions.
    shadows: RefCell<HashMap<ClientId, Rc<pubsub::Shadow>>>,
    /// Wanted commands that the backend in front has not answered.
    outstanding: Cell<u64>,
    /// The worker's connection, so that a stop can reach it.
    connection: RefCell<Option<WeakSocket>>,
    connected: Cell<bool>,
    /// The connection is replaced because it did not answer in time.
    timed_out: Cell<bool>,
    retired: Cell<bool>,
    /// Counters.
    pub metrics: Arc<MirrorMetrics>,
}

struct State {
    queue: DualQueue,
    order: Order,
    expiries: Expiries,
    scripts: ScriptCache,
    rewrite: Rewrite,
    rereads: reread::Rereads,
    /// Run ids of the backends at their last connection.
    run_ids: HashMap<Backend, Box<[u8]>>,
    /// What the backends say of their version.
    versions: HashMap<Backend, Option<(u32, u32)>>,
    copying: crate::mirror::dual::repair::Copying,
    /// The shadow read in front has been given up; its reply is still to come.
    gave_up: bool,
}

impl Dual {
    /// Starts the workers; they end when it is retired.
    pub fn start(
        context: &Rc<Context>,
        config: &Config,
        options: &DualWrite,
        metrics: Arc<MirrorMetrics>,
    ) -> Rc<Dual> {
        let bounds = bounds_of(options);
        metrics.settings.set_exposure(options.exposure);
        metrics
            .settings
            .set_queue_bounds(bounds.items as u64, bounds.bytes as u64);
        let dual = Rc::new_cyclic(|this| Dual {
            context: context.clone(),
            source: config.databases[options.primary].name.clone(),
            primary: config.databases[options.primary].clone(),
            secondary: config.databases[options.secondary].clone(),
            mode: Cell::new(options.mode),
            wanted: Cell::new(options.mode),
            switching: Cell::new(false),
            state: RefCell::new(State {
                queue: DualQueue::new(bounds, metrics.ledger.clone()),
                order: Order::default(),
                expiries: Expiries::default(),
                scripts: ScriptCache::default(),
                rewrite: Rewrite::default(),
                rereads: reread::Rereads::default(),
                run_ids: HashMap::new(),
                versions: HashMap::new(),
                copying: crate::mirror::dual::repair::Copying::default(),
                gave_up: false,
            }),
            options: RefCell::new(options.clone()),
            work: WaitQueue::default(),
            chores: WaitQueue::default(),
            gate: WaitQueue::default(),
            held: Cell::new(false),
            late: RefCell::default(),
            moved_ns: Cell::new(0),
            applying: Cell::new(false),
            this: this.clone(),
            shadows: RefCell::default(),
            outstanding: Cell::new(0),
            connection: RefCell::default(),
            connected: Cell::new(false),
            timed_out: Cell::new(false),
            retired: Cell::new(false),
            metrics,
        });
        context
            .queues
            .spawn(Queue::Mirror, worker::run(dual.clone()));
        context
            .queues
            .spawn(Queue::Mirror, repair::run(dual.clone()));
        context
            .queues
            .spawn(Queue::Mirror, reread::run(dual.clone()));
        dual
    }

    /// Whether this one goes on when the config becomes `config` with `options`.
    pub fn fits(&self, config: &Config, options: &DualWrite) -> bool {
        self.primary == config.databases[options.primary]
            && self.secondary == config.databases[options.secondary]
    }

    /// Takes other options into force. The mode only if it was changed in the file.
    pub fn reconfigure(self: &Rc<Self>, options: &DualWrite) {
        let before = self.options.replace(options.clone());
        let bounds = bounds_of(options);
        self.metrics
            .settings
            .set_queue_bounds(bounds.items as u64, bounds.bytes as u64);
        if before.exposure != options.exposure {
            self.metrics.settings.set_exposure(options.exposure);
        }
        self.refresh();
        if before.mode != options.mode {
            self.set_mode(options.mode);
        }
    }

    /// Takes over what was changed in the shared settings.
    pub fn refresh(&self) {
        let (items, bytes) = self.metrics.settings.queue_bounds();
        let bounds = DualBounds {
            items: items as usize,
            bytes: bytes as usize,
        };
        self.state.borrow_mut().queue.set_bounds(bounds);
        self.work.wake_all();
        self.chores.wake_all();
    }

    /// The mode in force.
    pub fn mode(&self) -> RedisMode {
        self.mode.get()
    }

    /// Asks for another mode. It applies from the next command of each client; where the backends change places,
    /// once the one that comes to the front holds everything.
    pub fn set_mode(self: &Rc<Self>, mode: RedisMode) {
        self.wanted.set(mode);
        if !self.switching.replace(true) {
            self.context
                .queues
                .spawn(Queue::Serve, switch::run(self.clone()));
        }
    }

    /// Ends connections that have not answered for too long. Called a few times a second.
    pub fn expire(&self, now_ns: u64) {
        let stuck = worker::is_stuck(self, now_ns);
        if stuck {
            self.metrics.unit_timeouts.add(1);
            self.timed_out.set(true);
            self.end_connection();
        }
        self.note_gauges();
    }

    /// Replaces the connection to the backend that follows, if it is this one's.
    pub fn reconnect(&self, source: &str, destination: &str) {
        if self.source == source && self.secondary.name == destination {
            self.end_connection();
        }
    }

    /// Replaces the connection to the backend that follows.
    pub fn end_connection(&self) {
        if let Some(socket) = self
            .connection
            .borrow()
            .as_ref()
            .and_then(WeakSocket::upgrade)
        {
            socket.stop_receiving();
        }
    }

    /// Whether everything that was queued has ended.
    pub fn is_settled(&self) -> bool {
        self.state.borrow().queue.is_idle() && !self.applying.get()
    }

    /// Ends the workers: what waits is dropped, what is on its way is lost, and their keys go to the journal.
    pub fn retire(&self) {
        if self.retired.replace(true) {
            return;
        }
        let state = &mut *self.state.borrow_mut();
        state.queue.drop_waiting(DropReason::Shutdown);
        state.queue.broken();
        self.tell_tainted(&state.queue);
        self.end_connection();
        self.held.set(false);
        self.work.wake_all();
        self.chores.wake_all();
        self.gate.wake_all();
    }

    /// The backend that follows.
    fn follower(&self) -> &Database {
        self.at(other(self.front()))
    }

    /// The numbers of what the backend that follows was told.
    fn follower_commands(&self) -> &CommandTable {
        match self.front() {
            Backend::Primary => &self.metrics.commands,
            Backend::Secondary => &self.metrics.following_primary,
        }
    }

    fn leader(&self) -> &Database {
        self.at(self.front())
    }

    fn at(&self, backend: Backend) -> &Database {
        match backend {
            Backend::Primary => &self.primary,
            Backend::Secondary => &self.secondary,
        }
    }

    fn note_gauges(&self) {
        let state = self.state.borrow();
        self.metrics.queued_units.set(state.queue.len() as u64);
        self.metrics.queued_bytes.set(state.queue.bytes() as u64);
        let word = self.mode.get().as_str();
        let mode = RedisMode::WORDS.iter().position(|other| *other == word);
        self.metrics.mode.set(mode.map_or(0, |at| at as u64 + 1));
        self.metrics
            .tainted_keys
            .set(state.queue.taint.len() as u64);
    }

    /// The names of tainted keys, for the journal.
    fn tell_tainted(&self, queue: &DualQueue) {
        if queue.taint.is_empty() {
            return;
        }
        let report = crate::proxy::context::TaintReport {
            source: self.source.clone(),
            mirror: self.follower().name.clone(),
            all: queue.taint.is_all(),
            keys: queue
                .taint
                .names()
                .map(|key| {
                    (
                        numbers::database(key.db, self.primary.db),
                        key.name.to_vec(),
                    )
                })
                .collect(),
            core: self.context.core,
        };
        self.context
            .tell(crate::proxy::context::Event::Tainted(Box::new(report)));
    }
}

impl Observer for Dual {
    fn front(&self) -> Backend {
        match self.mode.get().serves_secondary() {
            false => Backend::Primary,
            true => Backend::Secondary,
        }
    }

    fn database(&self, backend: Backend) -> Database {
        self.at(backend).clone()
    }

    fn wants(&self, command: Option<&'static Command>, request: &Request<'_>, db: u32) -> bool {
        self.admit(command, request, db)
    }

    fn request_bytes_max(&self) -> usize {
        self.options.borrow().queue_bytes
    }

    fn answered(&self, answered: &Answered<'_>) {
        self.outstanding.set(
            self.outstanding
                .get()
                .saturating_sub(u64::from(answered.wanted)),
        );
        self.take(answered);
    }

    fn dismissed(&self, wanted: u32) {
        self.outstanding
            .set(self.outstanding.get().saturating_sub(u64::from(wanted)));
    }

    fn lost(&self, request: &Payload<Chunk>, db: u32, wanted: u32) {
        self.outstanding
            .set(self.outstanding.get().saturating_sub(u64::from(wanted)));
        let mut unit = Vec::new();
        request.copy_into(&mut unit);
        if admit::writes(&unit) {
            self.state.borrow_mut().queue.taint_unit(&unit, db);
            self.chores.wake_all();
        }
    }

    fn subscribes(self: Rc<Self>, client: ClientId, command: &[u8]) {
        self.follow_subscription(client, command);
    }

    fn pushed(&self, client: ClientId, frame: &[u8]) {
        self.match_message(client, frame);
    }

    fn left(&self, client: ClientId) {
        self.end_shadow(client);
    }

    fn held(&self) -> bool {
        // Behind a late answer too: its client's next command must find what it did.
        self.held.get() || self.applying.get()
    }

    fn gate(&self) -> &WaitQueue {
        &self.gate
    }
}

fn other(backend: Backend) -> Backend {
    match backend {
        Backend::Primary => Backend::Secondary,
        Backend::Secondary => Backend::Primary,
    }
}

fn bounds_of(options: &DualWrite) -> DualBounds {
    DualBounds {
        items: options.queue_length,
        bytes: options.queue_bytes,
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
