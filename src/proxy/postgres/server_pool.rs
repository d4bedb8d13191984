//! Primary connections that clients share (`pool_mode = "transaction"`): per core, database and login.
//!
//! A connection is leased to one client at a time. It comes back clean, is cleaned before anybody else gets it, or is closed. Who
//! waits is served in turn. Nothing here reads what clients say.

mod server;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::cancel::CancelTarget;
use super::terminate::{self, OpenError};
use super::{SharedSource, Source};
use crate::protocol::postgres::login::{Login, LoginParams};
use crate::protocol::postgres::rename::ServerStatements;
use crate::protocol::postgres::session::SessionState;
use crate::protocol::postgres::startup::{CancelRequest, Severity, encode_error, push_message};
use crate::proxy::Context;
use crate::ring::{Notify, Queue};
pub(super) use server::Server;
/// The pools of one database on one core, by login.
#[derive(Default)]
pub struct ServerPools(RefCell<HashMap<Vec<u8>, Rc<ServerPool>>>);

impl ServerPools {
    /// The pool of a login; its password is that of the newest client's look-up.
    pub(super) fn of(&self, login: LoginParams, size: usize) -> Rc<ServerPool> {
        let mut pools = self.0.borrow_mut();
        let pool = pools.entry(login.user.clone()).or_insert_with(|| {
            Rc::new(ServerPool {
                size,
                login: RefCell::new(login.clone()),
                idle: RefCell::default(),
                total: Cell::new(0),
                waiters: RefCell::default(),
            })
        });
        *pool.login.borrow_mut() = login;
        pool.clone()
    }

    /// Connections that no client holds.
    pub(in crate::proxy) fn idle(&self) -> usize {
        let pools = self.0.borrow();
        pools.values().map(|pool| pool.idle.borrow().len()).sum()
    }
}

/// Connections of one login. `idle.len() <= total <= size`.
pub(super) struct ServerPool {
    size: usize,
    login: RefCell<LoginParams>,
    idle: RefCell<Vec<Server>>,
    /// Connections that are open or being opened.
    total: Cell<usize>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

#[derive(Default)]
struct Waiter {
    granted: RefCell<Option<Grant>>,
    notify: Notify,
}

#[allow(
    clippy::large_enum_variant,
    reason = "moved twice per transaction at most, never stored in numbers"
)]
enum Grant {
    Server(Server),
    /// A connection may be opened.
    Room,
}

/// Why there is no connection for a client.
#[derive(Debug, thiserror::Error)]
pub(super) enum PoolError {
    #[error("no primary connection became free within {0:?} (query_wait_timeout)")]
    TimedOut(Duration),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("the primary refuses the client's settings")]
    Refused(Vec<u8>),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl PoolError {
    /// What the client is told.
    pub fn response(&self) -> Vec<u8> {
        match self {
            Self::TimedOut(_) => encode_error(Severity::Fatal, "53300", &self.to_string()),
            Self::Open(error) => error.response(),
            Self::Refused(body) => fatal(body),
            Self::Io(_) => encode_error(Severity::Fatal, "08006", "the primary cannot be reached"),
        }
    }
}

/// The server's ErrorResponse with its severity raised: the client's session ends by it.
fn fatal(body: &[u8]) -> Vec<u8> {
    let mut raised = Vec::with_capacity(body.len());
    for field in body.split(|byte| *byte == 0) {
        match field {
            [b'S' | b'V', ..] => raised.extend([field[0], b'F', b'A', b'T', b'A', b'L']),
            field => raised.extend_from_slice(field),
        }
        raised.push(0);
    }
    // The split ends with one empty piece too many.
    raised.pop();
    let mut out = Vec::new();
    push_message(&mut out, b'E', &raised);
    out
}

/// What must happen to a connection before another client may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Soiled {
    /// A transaction is open.
    pub transaction: bool,
    /// The session holds what is not known or cannot be carried.
    pub session: bool,
}

/// A connection that one client holds.
pub(super) struct Lease {
    server: Option<Server>,
    /// It stands for one of the pool's places.
    has_place: bool,
    pool: Rc<ServerPool>,
    source: SharedSource,
}

impl ServerPool {
    /// A connection, at most `query_wait_timeout` from now.
    pub async fn checkout(
        self: &Rc<Self>,
        context: &Context,
        source: &SharedSource,
    ) -> Result<Lease, PoolError> {
        let limit = context.config.borrow().general.query_wait_timeout;
        let grant = match self.take() {
            Some(grant) => grant,
            None => context
                .ring
                .timeout(limit, self.wait())
                .await
                .map_err(|_| PoolError::TimedOut(limit))?,
        };
        // From here on the lease gives back what was granted.
        let mut lease = Lease {
            server: None,
            has_place: true,
            pool: self.clone(),
            source: source.clone(),
        };
        if let Grant::Server(mut server) = grant {
            if server.is_alive().await {
                lease.server = Some(server);
                return Ok(lease);
            }
            source.metrics.connections_open.sub(1);
            source.metrics.reconnects.add(1);
        }
        source.metrics.connections_open.add(1);
        // Seldom, and larger than all else that waits here: an idle client does not hold room for it.
        lease.server = Some(Box::pin(self.open(context, source)).await?);
        Ok(lease)
    }

    /// What can be had at once, if nobody has waited longer.
    fn take(&self) -> Option<Grant> {
        if !self.waiters.borrow().is_empty() {
            return None;
        }
        if let Some(server) = self.idle.borrow_mut().pop() {
            return Some(Grant::Server(server));
        }
        if self.total.get() >= self.size {
            return None;
        }
        self.total.set(self.total.get() + 1);
        Some(Grant::Room)
    }

    async fn wait(&self) -> Grant {
        let turn = Turn {
            pool: self,
            waiter: Rc::default(),
        };
        self.waiters.borrow_mut().push_back(turn.waiter.clone());
        loop {
            if let Some(grant) = turn.waiter.granted.borrow_mut().take() {
                return grant;
            }
            turn.waiter.notify.notified().await;
        }
    }

    async fn open(&self, context: &Context, source: &Source) -> Result<Server, OpenError> {
        let mut login = Login::new(self.login.borrow().clone());
        let (socket, session) = terminate::open(context, source, &mut login).await?;
        let mut server = Server {
            socket,
            state: SessionState::default(),
            statements: ServerStatements::default(),
            reported: session.settings,
            target: session.backend_key.map(|key| {
                let request = CancelRequest {
                    pid: key.pid,
                    key: key.key,
                };
                Arc::new(CancelTarget::new(source.database.clone(), request))
            }),
        };
        server.state = server.fresh_state();
        Ok(server)
    }

    /// A connection is free.
    fn put(&self, server: Server) {
        match self.next_waiter() {
            Some(waiter) => waiter.grant(Grant::Server(server)),
            None => self.idle.borrow_mut().push(server),
        }
    }

    /// A connection is gone: its place is free.
    fn give_room(&self) {
        match self.next_waiter() {
            Some(waiter) => waiter.grant(Grant::Room),
            None => self.total.set(self.total.get() - 1),
        }
    }

    fn next_waiter(&self) -> Option<Rc<Waiter>> {
        self.waiters.borrow_mut().pop_front()
    }
}

impl Waiter {
    fn grant(&self, grant: Grant) {
        *self.granted.borrow_mut() = Some(grant);
        self.notify.notify();
    }
}

/// A place in the queue; whoever leaves it hands on what was granted.
struct Turn<'a> {
    pool: &'a ServerPool,
    waiter: Rc<Waiter>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let waiter = &self.waiter;
        self.pool
            .waiters
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, waiter));
        match waiter.granted.borrow_mut().take() {
            Some(Grant::Server(server)) => self.pool.put(server),
            Some(Grant::Room) => self.pool.give_room(),
            None => {}
        }
    }
}

impl Lease {
    /// The connection.
    pub fn server(&mut self) -> &mut Server {
        self.server
            .as_mut()
            .expect("a lease holds its connection until it is released")
    }

    /// The client needs it no more. What is not clean is cleaned first, in a task of its own.
    pub fn release(mut self, context: &Rc<Context>, soiled: Soiled) {
        let server = self.server();
        server.statements.released();
        if soiled == Soiled::default() && !server.is_aimed_at() {
            return self.put_back();
        }
        let cleaner = context.clone();
        context.queues.spawn(Queue::Serve, async move {
            match self.server().clean(&cleaner, soiled).await {
                Ok(()) => self.put_back(),
                Err(error) => tracing::debug!(database = self.source.database.name, %error,
                    "a pooled connection is closed"),
            }
        });
    }

    fn put_back(mut self) {
        if let Some(server) = self.server.take() {
            // Its place in the pool goes with it.
            self.has_place = false;
            self.pool.put(server);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.has_place {
            self.server = None;
            self.source.metrics.connections_open.sub(1);
            self.pool.give_room();
        }
    }
}
