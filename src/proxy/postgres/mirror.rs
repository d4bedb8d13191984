//! The workers of a Postgres mirror on one core: a pool of connections that run the clients' units.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::or;

use super::connection::{Broken, Connection, Ran};
use super::judge;
use super::{Identity, PostgresOutcome};
use crate::config::{Compare, MirrorPoolMode};
use crate::metrics::ErrorWord;
use crate::mirror::dispatch::{Dispatcher, Ticket};
use crate::mirror::ledger::Fate;
use crate::mirror::pool::{Checkin, Checkout, PoolMode, PoolState};
use crate::proxy::Context;
use crate::proxy::context::{DivergenceReport, Event};
use crate::proxy::mirrors::Mirror;
use crate::ring::{Chunk, Queue};

type PgMirror = Mirror<PostgresOutcome>;
type PgTicket = Ticket<Chunk, PostgresOutcome>;

/// How often a pool whose logins fail looks whether one may be tried again.
const RETRY_LOOK: Duration = Duration::from_millis(50);

/// Starts the pool; it ends when the mirror is retired.
pub fn start_workers(context: &Rc<Context>, mirror: Rc<PgMirror>) {
    let mode = match context.config.borrow().general.mirror_pool_mode {
        MirrorPoolMode::Unit => PoolMode::Unit,
        MirrorPoolMode::Session => PoolMode::Session,
    };
    let size = mirror.destination.pool_size;
    let pool = Rc::new(Pool {
        context: context.clone(),
        state: RefCell::new(PoolState::new(size, mode)),
        idle: RefCell::new((0..size).map(|_| None).collect()),
        logins: RefCell::default(),
        mirror,
    });
    let manager = pool.clone();
    context
        .queues
        .spawn(Queue::Mirror, async move { manager.manage().await });
}

struct Pool {
    context: Rc<Context>,
    mirror: Rc<PgMirror>,
    state: RefCell<PoolState<usize>>,
    /// Connections that wait, by slot.
    idle: RefCell<Vec<Option<Connection>>>,
    /// Who clients were so far; their index is the pool's name for a login.
    logins: RefCell<Vec<Rc<Identity>>>,
}

impl Pool {
    /// Starts a run wherever a unit and a connection come together.
    async fn manage(self: Rc<Self>) {
        while !self.mirror.retired.get() {
            if let Some((ticket, checkout)) = self.next() {
                let run = self.clone();
                self.context.queues.spawn(Queue::Mirror, async move {
                    run.run(ticket, checkout).await;
                });
                continue;
            }
            if self.dispatcher().queued_units() > 0 && self.is_failing() {
                or(
                    self.mirror.work.wait(),
                    self.context.ring.sleep(RETRY_LOOK, false),
                )
                .await;
            } else {
                self.mirror.work.wait().await;
            }
        }
        self.idle.borrow_mut().clear();
    }

    /// The next unit for which there is a connection, or room for one.
    fn next(&self) -> Option<(PgTicket, Checkout)> {
        let now_ns = self.context.ring.now_ns();
        let ticket = {
            let state = self.state.borrow();
            self.dispatcher().next_for(|unit| {
                state.may_serve(unit.client, self.login(&unit.outcome.identity), now_ns)
            })?
        };
        let login = self.login(&ticket.unit.outcome.identity);
        let checkout = self
            .state
            .borrow_mut()
            .checkout(ticket.client, login, now_ns);
        Some((ticket, checkout))
    }

    /// The pool's name for a login: clients of the same user and database share connections.
    fn login(&self, who: &Rc<Identity>) -> usize {
        let mut logins = self.logins.borrow_mut();
        let known = logins
            .iter()
            .position(|known| Rc::ptr_eq(known, who) || known == who);
        known.unwrap_or_else(|| {
            logins.push(who.clone());
            logins.len() - 1
        })
    }

    fn is_failing(&self) -> bool {
        let logins = self.logins.borrow().len();
        let state = self.state.borrow();
        (0..logins).any(|login| state.retry_at_ns(login).is_some())
    }

    /// Runs units on one slot for as long as the slot is the one that the next unit would get.
    async fn run(&self, ticket: PgTicket, checkout: Checkout) {
        let mut next = Some((ticket, checkout));
        while let Some((ticket, checkout)) = next.take() {
            let slot = match checkout {
                Checkout::Use(slot) | Checkout::Open(slot) | Checkout::Replace(slot) => slot,
                Checkout::Wait(_) | Checkout::Full => {
                    self.dispatcher().requeue(ticket);
                    return;
                }
            };
            let waiting = self.idle.borrow_mut()[slot].take();
            let connection = match (checkout, waiting) {
                (Checkout::Use(_), Some(connection)) if !connection.socket().is_ended() => {
                    Ok(connection)
                }
                (Checkout::Use(_), _) => {
                    // It broke while it waited: this unit gets a new one.
                    self.connect(&ticket).await
                }
                _ => {
                    let opened = self.connect(&ticket).await;
                    if opened.is_ok() {
                        self.state.borrow_mut().opened(slot);
                    }
                    opened
                }
            };
            match connection {
                Ok(connection) => {
                    if self.run_on(slot, connection, ticket).await {
                        next = self.next();
                    }
                }
                Err(broken) => self.lost(slot, ticket, &broken, false),
            }
            self.publish();
        }
        self.mirror.work.wake_one();
    }

    async fn connect(&self, ticket: &PgTicket) -> Result<Connection, Broken> {
        let who = &ticket.unit.outcome.identity;
        let user = who.user.as_str();
        let config = self.context.config.borrow().clone();
        let destination = &self.mirror.destination;
        let login = config
            .database_index(&destination.name)
            .and_then(|index| config.backend_login(index, user));
        let (user, password) = match &login {
            Some(login) => (login.user, login.password),
            None => (user, None),
        };
        let name = match destination.database_name.as_str() {
            "" => who.database.as_str(),
            name => name,
        };
        let connection = Connection::open(&self.context, destination, name, user, password).await?;
        self.mirror.note_connection(connection.socket().downgrade());
        Ok(connection)
    }

    /// Runs one unit; returns whether the connection waits for another.
    async fn run_on(&self, slot: usize, mut connection: Connection, ticket: PgTicket) -> bool {
        let now_ns = self.context.ring.now_ns();
        let metrics = &self.mirror.metrics;
        metrics
            .queue_delay
            .record(now_ns.saturating_sub(ticket.unit.sealed_ns));
        let pace = self.context.config.borrow().general.pace;
        let digest = self.mirror.options.compare == Compare::Rows;
        match connection
            .run(&self.context, &ticket.unit, pace, digest)
            .await
        {
            Ok(ran) => {
                self.delivered(&ticket, &ran);
                self.dispatcher().settle(ticket, Fate::Delivered);
                self.mirror.note_queue();
                let keep = self.state.borrow_mut().checkin(slot) == Checkin::Keep;
                if keep {
                    self.idle.borrow_mut()[slot] = Some(connection);
                }
                keep
            }
            Err(broken) => {
                let dirty = connection.dirty;
                drop(connection);
                self.lost(slot, ticket, &broken, dirty);
                false
            }
        }
    }

    /// The connection is gone. A unit of which nothing was sent goes back to its ring.
    fn lost(&self, slot: usize, ticket: PgTicket, broken: &Broken, dirty: bool) {
        let retired = self.mirror.retired.get();
        if !retired {
            tracing::warn!(mirror = self.mirror.destination.name, reason = %broken,
                lost = u32::from(dirty), "a connection to a mirror ended");
        }
        self.mirror.metrics.reconnects.add(1);
        let jitter = self.context.random.borrow_mut().f64();
        let now_ns = self.context.ring.now_ns();
        self.state.borrow_mut().lost(slot, now_ns, jitter);
        let mut dispatcher = self.dispatcher();
        if dirty {
            dispatcher.settle(ticket, Fate::Errored);
        } else if retired {
            dispatcher.settle(
                ticket,
                Fate::Dropped(crate::mirror::ledger::DropReason::Shutdown),
            );
        } else {
            dispatcher.requeue(ticket);
        }
        drop(dispatcher);
        self.mirror.note_queue();
    }

    fn delivered(&self, ticket: &PgTicket, ran: &Ran) {
        let metrics = &self.mirror.metrics;
        let unit = &ticket.unit;
        metrics
            .latency
            .record(self.context.ring.now_ns().saturating_sub(ran.started_ns));
        metrics
            .primary_latency
            .record(unit.sealed_ns.saturating_sub(unit.began_ns));
        for statement in ran.result.statements() {
            if let Some(code) = statement.sqlstate() {
                metrics
                    .errors
                    .count(ErrorWord::of_sqlstate(code.as_str().as_bytes()));
            }
        }
        if ran.timed_out {
            metrics.unit_timeouts.add(1);
            metrics.not_compared.add(1);
            return;
        }
        if self.mirror.options.compare == Compare::Off {
            return;
        }
        metrics.compared.add(1);
        if let Some((kind, found)) = judge::judge(unit, &ran.result, self.mirror.options.compare) {
            metrics.diverge(kind);
            self.context
                .tell(Event::Divergence(Box::new(DivergenceReport {
                    source: self.mirror.source.clone(),
                    mirror: self.mirror.destination.name.clone(),
                    command: unit.outcome.text.clone(),
                    key: format!("statement {}", found.statement + 1).into_bytes(),
                    kind,
                    primary: found.primary.into_bytes(),
                    secondary: found.mirror.into_bytes(),
                    client: ticket.client,
                    core: self.context.core,
                })));
        }
    }

    fn publish(&self) {
        let state = self.state.borrow();
        let metrics = &self.mirror.metrics;
        metrics
            .connections_open
            .set((state.idle() + state.busy()) as u64);
        metrics.connections_idle.set(state.idle() as u64);
    }

    fn dispatcher(&self) -> RefMut<'_, Dispatcher<Chunk, PostgresOutcome>> {
        self.mirror.dispatcher.borrow_mut()
    }
}
