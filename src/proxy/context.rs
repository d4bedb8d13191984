//! What every session of a core needs: the ring, the sources with their mirrors, the counters.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::resolver::Resolver;
use super::tls::TlsStore;
use crate::config::Config;
use crate::limits::{
    DIVERGENCE_LOG_INTERVAL_NS, GONE_BUSY, GONE_QUIET, IDLE_LOOK, RATE_LIMIT_LEN_MAX,
};
use crate::metrics::{CoreMetrics, Registry};
use crate::mirror::dispatch::MemoryBudget;
use crate::mirror::rate_limit::RateLimit;
use crate::mirror::unit::ClientId;
use crate::ring::{Queues, Ring, Socket};

/// What a core tells the control thread. The channel is bounded; what does not fit is counted.
#[derive(Debug)]
pub enum Event {
    /// A reply of a mirror differed from the primary's.
    Divergence(Box<DivergenceReport>),
    /// A secondary could not be reached or refused a write.
    Failure(Box<FailureReport>),
    /// A dual write ended with keys that the other backend may hold wrongly.
    Tainted(Box<TaintReport>),
    /// Every core has ended: nothing comes any more.
    End,
}

/// One difference, with what the store, the journal and Sentry need.
#[derive(Clone, Debug)]
pub struct DivergenceReport {
    /// Source database.
    pub source: String,
    /// Mirror.
    pub mirror: String,
    /// Command or statement kind.
    pub command: String,
    /// First key of the command; empty where there is none.
    pub key: Vec<u8>,
    /// The pattern of a pub/sub message; empty where there is none.
    pub pattern: Vec<u8>,
    /// How the replies differ.
    pub kind: crate::metrics::DivergenceKind,
    /// The primary's value, truncated.
    pub primary: Vec<u8>,
    /// The mirror's value, truncated.
    pub secondary: Vec<u8>,
    /// Whose unit it was.
    pub client: ClientId,
    /// Index of the core.
    pub core: usize,
}

/// A failure of a secondary, for the log and Sentry.
#[derive(Clone, Debug)]
pub struct FailureReport {
    /// Source database.
    pub source: String,
    /// The secondary.
    pub mirror: String,
    /// `connect`, `write` or `read`.
    pub operation: &'static str,
    /// The command; empty where there is none.
    pub command: String,
    /// What it said.
    pub problem: String,
}

/// Keys that were not brought in step before the end.
#[derive(Clone, Debug)]
pub struct TaintReport {
    /// Source database.
    pub source: String,
    /// The secondary.
    pub mirror: String,
    /// Every key, not only these.
    pub all: bool,
    /// Databases and names.
    pub keys: Vec<(u32, Vec<u8>)>,
    /// Index of the core.
    pub core: usize,
}

/// Something that can be asked to end at its next quiet moment.
pub trait Session {
    /// Ends the session now if nothing is outstanding, else as soon as that is so.
    fn drain(&self);
    /// Ends the session now.
    fn stop(&self);
    /// What an operator sees of it.
    fn describe(&self) -> SessionInfo {
        SessionInfo::default()
    }
    /// The client's connection, while it is open.
    fn client(&self) -> Option<Socket>;
    /// Whether nothing is outstanding: the session waits for its client.
    fn is_quiet(&self) -> bool;
    /// Whether a client that is silent waits to be told something, as a subscriber does.
    fn listens(&self) -> bool;
    /// Ends the session because its client has been silent for too long.
    fn end_idle(&self);
    /// The mirrors of its source have changed: from its next unit on it may have to collect what it did not before.
    fn mirrors_changed(&self) {}
    /// A connection that sessions shared takes nothing any more: who has no reply outstanding on it lets go of it.
    fn lanes_changed(&self) {}
}

/// What an operator sees of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SessionInfo {
    /// Its number.
    pub id: u64,
    /// The source database.
    pub database: String,
    /// `postgres` or `redis`.
    pub protocol: &'static str,
    /// The user that it named; empty where that is not known.
    pub user: String,
    /// The client's address; empty for a unix socket.
    pub peer: String,
    /// `active` while something is outstanding, else `idle`.
    pub state: &'static str,
    /// Index of the core.
    pub core: usize,
}

/// The state of one core that its sessions share.
pub struct Context {
    /// Index of this core in the configuration's list.
    pub core: usize,
    /// This core's ring.
    pub ring: Ring,
    /// Where to spawn.
    pub queues: Queues,
    /// This core's counters.
    pub metrics: Arc<CoreMetrics>,
    /// Counters by source and mirror.
    pub registry: Arc<Registry>,
    /// The config in force for new connections.
    pub config: RefCell<Arc<Config>>,
    /// Certificates and keys in force.
    pub tls: Arc<TlsStore>,
    /// What all rings of this core may hold.
    pub budget: MemoryBudget,
    /// Decides exposure.
    pub random: RefCell<fastrand::Rng>,
    /// To the control thread.
    pub events: Sender<Event>,
    /// Addresses of the databases' names.
    pub(super) resolver: Resolver,
    sessions: RefCell<HashMap<ClientId, Weak<dyn Session>>>,
    next_client: Cell<u64>,
    draining: Cell<bool>,
    idle_looked_ns: Cell<u64>,
    complaints: RefCell<RateLimit>,
}

impl Context {
    /// The context of core `core`.
    #[allow(clippy::too_many_arguments, reason = "called once, by the runtime")]
    pub fn new(
        core: usize,
        ring: Ring,
        queues: Queues,
        registry: Arc<Registry>,
        config: Arc<Config>,
        tls: Arc<TlsStore>,
        events: Sender<Event>,
    ) -> Context {
        Context {
            core,
            metrics: registry.core(core),
            budget: MemoryBudget::new(config.general.mirror_memory),
            random: RefCell::new(fastrand::Rng::new()),
            ring,
            queues,
            registry,
            config: RefCell::new(config),
            tls,
            events,
            resolver: Resolver::default(),
            sessions: RefCell::default(),
            // Unique in the process: the core's number in the top bits.
            next_client: Cell::new((core as u64) << 48 | 1),
            draining: Cell::new(false),
            idle_looked_ns: Cell::new(0),
            complaints: RefCell::new(RateLimit::new(
                DIVERGENCE_LOG_INTERVAL_NS,
                RATE_LIMIT_LEN_MAX,
            )),
        }
    }

    /// A number for a client that no other client of this process has.
    pub fn new_client(&self) -> ClientId {
        let id = self.next_client.get();
        self.next_client.set(id + 1);
        ClientId(id)
    }

    /// Notes a session, so that a drain reaches it.
    pub fn register(&self, client: ClientId, session: Weak<dyn Session>) {
        self.sessions.borrow_mut().insert(client, session);
    }

    /// Forgets a session that ended.
    pub fn unregister(&self, client: ClientId) {
        self.sessions.borrow_mut().remove(&client);
    }

    /// Sessions that have not ended.
    pub fn session_count(&self) -> usize {
        self.sessions.borrow().len()
    }

    /// Whether sessions should end at their next quiet moment.
    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Asks every session to end at its next quiet moment.
    pub fn drain(&self) {
        self.draining.set(true);
        self.live_sessions()
            .iter()
            .for_each(|session| session.drain());
    }

    /// Ends every session now.
    pub fn stop_sessions(&self) {
        self.live_sessions()
            .iter()
            .for_each(|session| session.stop());
    }

    /// Tells every session that the mirrors of its source may be others now.
    pub fn mirrors_changed(&self) {
        self.live_sessions()
            .iter()
            .for_each(|session| session.mirrors_changed());
    }

    /// Tells every session that a connection they shared is over.
    pub fn lanes_changed(&self) {
        self.live_sessions()
            .iter()
            .for_each(|session| session.lanes_changed());
    }

    /// Every session, for an operator.
    pub fn describe_sessions(&self) -> Vec<SessionInfo> {
        let sessions = self.live_sessions();
        sessions
            .iter()
            .map(|session| SessionInfo {
                core: self.core,
                ..session.describe()
            })
            .collect()
    }

    /// Ends the sessions whose clients have been silent for longer than `client_idle_timeout`, and those whose
    /// clients have left while the primary does not close.
    pub fn end_idle_sessions(&self) {
        let timeout = self.config.borrow().general.client_idle_timeout;
        let now_ns = self.ring.now_ns();
        // A look at every session: at most once a second, which the precision of a timeout allows.
        let pause = timeout.map_or(IDLE_LOOK, |timeout| (timeout / 8).min(IDLE_LOOK));
        if now_ns.saturating_sub(self.idle_looked_ns.get()) < pause.as_nanos() as u64 {
            return;
        }
        self.idle_looked_ns.set(now_ns);
        for session in self.live_sessions() {
            let Some(client) = session.client() else {
                continue;
            };
            let silence = Duration::from_nanos(now_ns.saturating_sub(client.active_ns()));
            let quiet = session.is_quiet();
            if client.is_ended() {
                let grace = if quiet { GONE_QUIET } else { GONE_BUSY };
                if silence >= grace {
                    session.stop();
                }
            } else if quiet && !session.listens() && timeout.is_some_and(|limit| silence >= limit) {
                session.end_idle();
            }
        }
    }

    /// Logs that a primary cannot be reached: not once for each client of a storm.
    pub fn primary_unreachable(&self, database: &str, error: &io::Error) {
        let what = xxhash_rust::xxh3::xxh3_64(database.as_bytes());
        let admitted = (self.complaints.borrow_mut()).admit(what, self.ring.now_ns());
        if let Some(suppressed) = admitted {
            tracing::warn!(database, %error, suppressed, "the primary cannot be reached");
        }
    }

    /// Logs that a login went on without TLS to the primary: a downgrade is allowed by `tls = "prefer"`, not kept quiet.
    pub fn plaintext_leg(&self, database: &str) {
        let what = xxhash_rust::xxh3::xxh3_64_with_seed(database.as_bytes(), 1);
        let admitted = (self.complaints.borrow_mut()).admit(what, self.ring.now_ns());
        if let Some(suppressed) = admitted {
            tracing::warn!(
                database,
                suppressed,
                "a session's connection to the primary is not encrypted: its client insists on having looked for channel \
                 binding, which two different certificates rule out. Give the listener the primary's certificate, set \
                 auth = \"terminate\", or tls = \"require\" to refuse such clients"
            );
        }
    }

    fn live_sessions(&self) -> Vec<Rc<dyn Session>> {
        self.sessions
            .borrow()
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Hands an event to the control thread, or counts that it could not.
    pub fn tell(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.metrics.event_drops.add(1);
        }
    }
}
