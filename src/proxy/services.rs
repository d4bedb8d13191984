//! What a core serves: its sources with their mirrors, made from the config and kept across reloads.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use super::admission::{Admission, Place};
use super::mirrors::{Mirror, MirrorGroup};
use super::tls::{self, TlsStore};
use super::{Context, postgres, redis};
use crate::config::{Config, Database, Protocol};
use crate::limits::{REFUSAL_TIME, REFUSALS_MAX};
use crate::metrics;
use crate::mirror::unit::{Outcome, UnitPool};
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

/// The mirrors of one protocol.
type Mirrors<O> = Vec<Rc<Mirror<O>>>;

/// The mirror groups that open sessions hold, by source.
type Groups<O> = HashMap<String, Rc<MirrorGroup<O>>>;

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

    /// Takes a new config into force: for new connections whole, for mirrors that stay their settings.
    pub fn reconfigure(&self, config: &Arc<Config>) {
        *self.context.config.borrow_mut() = config.clone();
        self.context.budget.set_limit(config.general.mirror_memory);
        let groups = |source: &postgres::SharedSource| {
            (source.database.name.clone(), source.mirrors.clone())
        };
        let groups = self.postgres.borrow().values().map(groups).collect();
        let postgres = self.remake(
            config,
            Protocol::Postgres,
            (&self.postgres_mirrors, groups),
            postgres::start_workers,
            |index, mirrors, metrics| {
                let database = Arc::new(config.databases[index].clone());
                Rc::new(postgres::Source {
                    pools: self.pools(&database),
                    database,
                    mirrors,
                    metrics,
                })
            },
        );
        *self.postgres.borrow_mut() = postgres;
        let duals = self.remake_duals(config);
        let groups =
            |source: &redis::SharedSource| (source.database.name.clone(), source.mirrors.clone());
        let groups = self.redis.borrow().values().map(groups).collect();
        let redis = self.remake(
            config,
            Protocol::Redis,
            (&self.redis_mirrors, groups),
            redis::start_workers,
            |index, mirrors, metrics| {
                let database = config.databases[index].clone();
                let dual = duals.iter().find(|dual| dual.source == database.name);
                let observer = dual.map(|dual| dual.clone() as Rc<dyn redis::observe::Observer>);
                Rc::new(redis::Source::new(database, mirrors, metrics, observer))
            },
        );
        *self.redis.borrow_mut() = redis;
    }

    /// Dual writes between the same databases go on with what is new; others are retired.
    fn remake_duals(&self, config: &Config) -> Vec<Rc<redis::dual::Dual>> {
        let before = std::mem::take(&mut *self.duals.borrow_mut());
        let duals: Vec<_> = config
            .dual_write
            .iter()
            .map(|options| {
                if let Some(kept) = before.iter().find(|dual| dual.fits(config, options)) {
                    kept.reconfigure(options);
                    return kept.clone();
                }
                let metrics = self.context.registry.mirror(
                    self.context.core,
                    &config.databases[options.primary].name,
                    &config.databases[options.secondary].name,
                    metrics::Protocol::Redis,
                );
                redis::dual::Dual::start(&self.context, config, options, metrics)
            })
            .collect();
        for dual in before {
            if !duals.iter().any(|kept| Rc::ptr_eq(kept, &dual)) {
                dual.retire();
            }
        }
        *self.duals.borrow_mut() = duals.clone();
        duals
    }

    /// Makes the sources of one protocol. The mirrors of a source that was here change under its open sessions; mirrors
    /// whose definition is the same go on, others are retired.
    fn remake<O: Outcome + 'static, T>(
        &self,
        config: &Config,
        protocol: Protocol,
        (known, groups): (&RefCell<Mirrors<O>>, Groups<O>),
        start: impl Fn(&Rc<Context>, Rc<Mirror<O>>),
        source: impl Fn(usize, Rc<MirrorGroup<O>>, Arc<metrics::SourceMetrics>) -> T,
    ) -> HashMap<usize, T> {
        let before = std::mem::take(&mut *known.borrow_mut());
        let units = groups
            .values()
            .next()
            .map_or_else(UnitPool::default, |group| group.units.clone());
        let mut sources = HashMap::new();
        let mut now = Vec::new();
        for (index, database) in config.databases.iter().enumerate() {
            if database.protocol != protocol {
                continue;
            }
            let mirrors = config.mirrors_of(index).map(|mirroring| {
                let destination = config.destination(mirroring);
                let kept = before.iter().find(|mirror| {
                    mirror.source == database.name
                        && mirror.destination == *destination
                        && mirror.options.level == mirroring.level
                        && mirror.options.compare == mirroring.compare
                });
                if let Some(kept) = kept {
                    return kept.clone();
                }
                let metrics = self.context.registry.mirror(
                    self.context.core,
                    &database.name,
                    &destination.name,
                    metric_protocol(protocol),
                );
                let mirror = Rc::new(Mirror::new(
                    &database.name,
                    destination.clone(),
                    mirroring.clone(),
                    (metrics, self.context.budget.clone(), units.clone()),
                    config.general.mirror_queue_bytes,
                ));
                let replaced = before.iter().find(|old| {
                    old.source == mirror.source && old.destination.name == mirror.destination.name
                });
                if let Some(replaced) = replaced {
                    replaced.dispatcher.borrow_mut().share_ledger();
                    mirror.dispatcher.borrow_mut().share_ledger();
                }
                start(&self.context, mirror.clone());
                mirror
            });
            let mirrors: Vec<_> = mirrors.collect();
            now.extend(mirrors.iter().cloned());
            let metrics = self.context.registry.source(
                self.context.core,
                &database.name,
                metric_protocol(protocol),
            );
            let fresh = || Rc::new(MirrorGroup::new(units.clone()));
            let group = groups.get(&database.name).cloned().unwrap_or_else(fresh);
            if protocol == Protocol::Postgres && !mirrors.is_empty() {
                // Before clients come: where it cannot be had, mirrors do without. Redis mirrors gather what they are sent, and
                // cost no less on a ring of their own.
                self.context.ring.set_aside();
            }
            group.set_mirrors(&mirrors, self.context.ring.now_ns());
            sources.insert(index, source(index, group, metrics));
        }
        for (name, group) in &groups {
            // A database that has left the config: its sessions go on, unmirrored.
            if config.database_index(name).is_none() {
                group.set_mirrors(&[], self.context.ring.now_ns());
            }
        }
        for mirror in before {
            if !now.iter().any(|kept| Rc::ptr_eq(kept, &mirror)) {
                mirror.retire();
            }
        }
        *known.borrow_mut() = now;
        sources
    }

    /// The primary connections of a database that is as it was, or none.
    fn pools(&self, database: &Database) -> Rc<postgres::ServerPools> {
        let known = self.postgres.borrow();
        known
            .values()
            .find(|source| *source.database == *database)
            .map_or_else(Rc::default, |source| source.pools.clone())
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
