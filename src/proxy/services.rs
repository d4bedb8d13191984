//! What a core serves: its sources with their mirrors, made from the config and kept across reloads.

mod reload;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use super::admission::{Admission, Place};
use super::mirrors::Mirror;
use super::tls::{self, TlsStore};
use super::{Context, postgres, redis};
use crate::config::{Config, Protocol};
use crate::limits::{REFUSAL_TIME, REFUSALS_MAX};
use crate::metrics;
use crate::mirror::unit::Outcome;
use crate::ring::{Listener, Queue, Socket};

/// What all cores share besides config and counters; each with the reason why it is no hot path.
#[derive(Debug, Default)]
pub struct Shared {
    /// Locked at login, logout and cancel only.
    pub cancels: postgres::CancelRegistry,
    /// Locked at logins that Parhelion checks.
    pub accounts: postgres::Accounts,
    /// The admin's statements on their way to the control thread.
    pub admin: postgres::AdminDoor,
    /// Looked at once per connection.
    pub tls: Arc<TlsStore>,
    /// Locked at accept and at the end of a connection.
    pub admission: Arc<Admission>,
}

/// The sources of one core.
pub struct Services {
    /// Shared with the other cores.
    pub shared: Arc<Shared>,
    /// Answers to the admin's statements.
    pub admin: postgres::AdminInbox,
    context: Rc<Context>,
    postgres: RefCell<HashMap<usize, postgres::SharedSource>>,
    redis: RefCell<HashMap<usize, redis::SharedSource>>,
    postgres_mirrors: RefCell<Vec<Rc<Mirror<postgres::PostgresOutcome>>>>,
    redis_mirrors: RefCell<Vec<Rc<Mirror<redis::RedisOutcome>>>>,
    duals: RefCell<Vec<Rc<redis::dual::Dual>>>,
    listeners: RefCell<Vec<Weak<Listener>>>,
    /// Clients that are being told that there is no room.
    refusing: Rc<Cell<usize>>,
}

impl Services {
    /// Makes the sources of `config` and starts the workers of their mirrors.
    pub fn new(context: &Rc<Context>, shared: Arc<Shared>, config: &Arc<Config>) -> Services {
        let services = Services {
            shared,
            admin: postgres::AdminInbox::default(),
            context: context.clone(),
            postgres: RefCell::default(),
            redis: RefCell::default(),
            postgres_mirrors: RefCell::default(),
            redis_mirrors: RefCell::default(),
            duals: RefCell::default(),
            listeners: RefCell::default(),
            refusing: Rc::default(),
        };
        services.reconfigure(config);
        services
    }

    /// Serves an accepted connection in a task of its own.
    pub fn serve(self: &Rc<Self>, index: usize, socket: Socket) {
        let config = self.context.config.borrow().clone();
        let Some(listener) = config.listeners.get(index) else {
            return;
        };
        let database = listener.database;
        let protocol = metric_protocol(listener.protocol);
        let counters = self.context.metrics.clone();
        counters.listener(protocol).accepted.add(1);
        let general = &config.general;
        let Some(place) = (self.shared.admission).enter(index, socket.peer(), general) else {
            counters.listener(protocol).refused.add(1);
            counters.listener(protocol).closed.add(1);
            let tls = listener.tls.as_ref();
            let tls = tls.map(|tls| self.context.tls.server(tls, listener.protocol));
            return self.refuse(listener.protocol, socket, tls);
        };
        if let Some(timeout) = general.client_idle_timeout {
            socket.lose_after(timeout);
        }
        counters.listener(protocol).active.add(1);
        let open = Open {
            counters,
            protocol,
            _place: place,
        };
        let tls = match &listener.tls {
            None => None,
            Some(tls) => match self.context.tls.server(tls, listener.protocol) {
                Some(server) => Some(server),
                // A reload is taking place and the old files have gone: never without TLS.
                None => return,
            },
        };
        let (context, services) = (self.context.clone(), self.clone());
        match listener.protocol {
            Protocol::Postgres => self.context.queues.spawn(Queue::Serve, async move {
                postgres::serve(context, services, socket, database, tls).await;
                drop(open);
            }),
            Protocol::Redis => {
                let source = database.and_then(|index| self.redis.borrow().get(&index).cloned());
                if let Some(source) = source {
                    self.context.queues.spawn(Queue::Serve, async move {
                        if let Some(tls) = tls
                            && let Err(error) = tls::accept(&context, &socket, &tls).await
                        {
                            open.counters.listener(open.protocol).refused.add(1);
                            tracing::debug!(%error, peer = ?socket.peer(), "no session: no TLS");
                            return;
                        }
                        redis::serve(context, source, socket).await;
                        drop(open);
                    });
                }
            }
        }
    }

    /// Tells a client in its protocol that there is no room, unless too many are being told already.
    fn refuse(
        self: &Rc<Self>,
        protocol: Protocol,
        socket: Socket,
        tls: Option<Option<Arc<tls::ServerTls>>>,
    ) {
        // As Redis does: a handshake only to say no is what a flood would like.
        let mute = tls.is_some() && protocol == Protocol::Redis || matches!(tls, Some(None));
        if mute || self.refusing.get() >= REFUSALS_MAX {
            return;
        }
        self.refusing.set(self.refusing.get() + 1);
        let done = Refusing(self.refusing.clone());
        let services = self.clone();
        self.context.queues.spawn(Queue::Serve, async move {
            let context = &services.context;
            match protocol {
                Protocol::Redis => socket.write(b"-ERR max number of clients reached\r\n"),
                Protocol::Postgres => {
                    let tls = tls.flatten();
                    postgres::refuse(context, &services.shared, &socket, tls.as_deref()).await;
                }
            }
            // Closing with bytes unread would reset the connection, and the client would not see why.
            socket.shutdown_write();
            let rest = async { while let Ok(Some(_)) = socket.recv().await {} };
            let _ = context.ring.timeout(REFUSAL_TIME, rest).await;
            drop(done);
        });
    }

    /// The Postgres source of this database.
    pub fn postgres(&self, database: usize) -> Option<postgres::SharedSource> {
        self.postgres.borrow().get(&database).cloned()
    }
    /// Takes over exposures, pauses and bounds that were changed at run time.
    pub fn refresh(&self) {
        self.postgres
            .borrow()
            .values()
            .for_each(|source| source.mirrors.refresh());
        self.redis
            .borrow()
            .values()
            .for_each(|source| source.mirrors.refresh());
        self.duals.borrow().iter().for_each(|dual| dual.refresh());
    }

    /// Drops units that have waited longer than a mirror may take for one, and looks at what else only time changes.
    pub fn expire(&self) {
        let now_ns = self.context.ring.now_ns();
        let timeout_ns = nanos(self.context.config.borrow().general.mirror_timeout);
        for mirror in self.postgres_mirrors.borrow().iter() {
            expire(mirror, now_ns, timeout_ns);
        }
        for mirror in self.redis_mirrors.borrow().iter() {
            expire(mirror, now_ns, timeout_ns);
        }
        for source in self.postgres.borrow().values() {
            let idle = source.pools.idle() as u64;
            source.metrics.connections_idle.set(idle);
        }
        for source in self.redis.borrow().values() {
            source.lanes.sweep(now_ns);
        }
        for dual in self.duals.borrow().iter() {
            dual.expire(now_ns);
        }
    }

    /// Replaces the connections of a mirror; what is on its way there is lost.
    pub fn reconnect(&self, source: &str, destination: &str) {
        fn matching<O: Outcome>(mirrors: &[Rc<Mirror<O>>], source: &str, destination: &str) {
            mirrors
                .iter()
                .filter(|mirror| mirror.source == source && mirror.destination.name == destination)
                .for_each(|mirror| mirror.end_connections());
        }
        matching(&self.postgres_mirrors.borrow(), source, destination);
        matching(&self.redis_mirrors.borrow(), source, destination);
        for dual in self.duals.borrow().iter() {
            dual.reconnect(source, destination);
        }
    }

    /// Whether every unit that was offered to a mirror has ended.
    pub fn is_settled(&self) -> bool {
        self.postgres_mirrors
            .borrow()
            .iter()
            .all(|mirror| mirror.is_settled())
            && self
                .redis_mirrors
                .borrow()
                .iter()
                .all(|mirror| mirror.is_settled())
            && self.duals.borrow().iter().all(|dual| dual.is_settled())
    }

    /// Ends all mirrors: what waits is dropped, what is on its way is lost.
    pub fn retire(&self) {
        self.postgres_mirrors
            .borrow()
            .iter()
            .for_each(|mirror| mirror.retire());
        self.redis_mirrors
            .borrow()
            .iter()
            .for_each(|mirror| mirror.retire());
        self.duals.borrow().iter().for_each(|dual| dual.retire());
    }

    /// Notes a listener, so that a drain can close it.
    pub fn keep_listener(&self, listener: Weak<Listener>) {
        self.listeners.borrow_mut().push(listener);
    }

    /// Accepts nobody any more.
    pub fn close_listeners(&self) {
        for listener in self
            .listeners
            .borrow_mut()
            .drain(..)
            .filter_map(|weak| weak.upgrade())
        {
            listener.stop();
        }
    }
}

fn expire<O: Outcome>(mirror: &Mirror<O>, now_ns: u64, timeout_ns: u64) {
    if timeout_ns > 0 && !mirror.is_settled() {
        mirror.dispatcher.borrow_mut().expire(now_ns, timeout_ns);
        mirror.end_stuck(now_ns, timeout_ns);
        mirror.note_queue();
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn metric_protocol(protocol: Protocol) -> metrics::Protocol {
    match protocol {
        Protocol::Postgres => metrics::Protocol::Postgres,
        Protocol::Redis => metrics::Protocol::Redis,
    }
}

/// Counts the end of a connection, however its task ends.
struct Open {
    counters: Arc<metrics::CoreMetrics>,
    protocol: metrics::Protocol,
    _place: Place,
}

/// Counts the end of a refusal.
struct Refusing(Rc<Cell<usize>>);

impl Drop for Refusing {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let listener = self.counters.listener(self.protocol);
        listener.active.sub(1);
        listener.closed.add(1);
    }
}
