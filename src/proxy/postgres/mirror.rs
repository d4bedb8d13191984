//! The workers of a Postgres mirror on one core: a pool of connections that run the clients' units.

mod answers;
mod logins;
mod quiet;

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future::or;

use super::connection::{Broken, Connection, Ran, Replaying};
use super::pipeline::{self, Line};
use super::queries::Queries;
use super::{Identity, PostgresOutcome};
use crate::config::{Compare, Config, MirrorPoolMode, Pace};
use crate::limits::PIPELINED_UNITS_MAX;
use crate::mirror::dispatch::{Dispatcher, Ticket};
use crate::mirror::ledger::{DropReason, Fate};
use crate::mirror::pace::{self, SessionPacer, Start};
use crate::mirror::pool::{Checkin, Checkout, PoolMode, PoolState};
use crate::mirror::unit::{ClientId, Unit};
use crate::proxy::Context;
use crate::proxy::mirrors::Mirror;
use crate::ring::{Chunk, Notify, Queue};
use logins::{Logins, credentials};
use quiet::Quiet;

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
        mode,
        state: RefCell::new(PoolState::new(size, mode)),
        idle: RefCell::new((0..size).map(|_| None).collect()),
        logins: RefCell::default(),
        pacers: RefCell::default(),
        due_ns: Cell::new(u64::MAX),
        waits: Cell::new(false),
        leaving: RefCell::default(),
        parked: RefCell::default(),
        spare_lines: RefCell::default(),
        queries: RefCell::new(Queries::of(&mirror.metrics.queries)),
        lost_log: Quiet::default(),
        error_log: Quiet::default(),
        mirror,
    });
    pool.mirror.follows_clients.set(true);
    pool.dispatcher().stretch_for_pipelines();
    let manager = pool.clone();
    context
        .queues
        .spawn(Queue::Mirror, async move { manager.manage().await });
}

struct Pool {
    context: Rc<Context>,
    mirror: Rc<PgMirror>,
    mode: PoolMode,
    state: RefCell<PoolState<usize>>,
    /// Connections that wait, by slot.
    idle: RefCell<Vec<Option<Box<Connection>>>>,
    logins: RefCell<Logins>,
    /// Of the clients that have units here, under `pace = "session"`.
    pacers: RefCell<HashMap<ClientId, SessionPacer>>,
    /// When the first unit that only waits for its time may start.
    due_ns: Cell<u64>,
    /// Units wait because every connection is in use.
    waits: Cell<bool>,
    /// Clients that have left with units still here.
    leaving: RefCell<Vec<ClientId>>,
    /// Runners that wait for a job.
    parked: RefCell<Vec<Rc<Runner>>>,
    /// Empty lines for reuse.
    spare_lines: RefCell<Vec<VecDeque<PgTicket>>>,
    queries: RefCell<Queries>,
    lost_log: Quiet,
    error_log: Quiet,
}

/// A task that runs units, and waits for the next when there is none: a task per unit costs more than a wait.
struct Runner {
    job: RefCell<Option<Job>>,
    given: Notify,
}

type Job = (PgTicket, Checkout);

impl Pool {
    /// Starts a run wherever a unit and a connection come together.
    async fn manage(self: Rc<Self>) {
        while !self.mirror.retired.get() {
            if let Some(job) = self.next() {
                self.give(job);
                continue;
            }
            let work = self.mirror.work.wait();
            if self.dispatcher().queued_units() > 0 && self.is_failing() {
                or(work, self.context.ring.sleep(RETRY_LOOK, false)).await;
            } else if self.due_ns.get() < u64::MAX {
                or(work, self.context.ring.sleep_until(self.due_ns.get(), true)).await;
            } else {
                work.await;
            }
        }
        self.idle.borrow_mut().clear();
        for runner in self.parked.take() {
            // Without a job it ends.
            runner.given.notify();
        }
    }

    /// Has a runner do it.
    fn give(self: &Rc<Self>, job: Job) {
        let parked = self.parked.borrow_mut().pop();
        if let Some(runner) = parked {
            *runner.job.borrow_mut() = Some(job);
            return runner.given.notify();
        }
        let runner = Rc::new(Runner {
            job: RefCell::new(Some(job)),
            given: Notify::default(),
        });
        let pool = self.clone();
        self.context.queues.spawn(Queue::Mirror, async move {
            while let Some((ticket, checkout)) = runner.job.take() {
                pool.run(ticket, checkout).await;
                if pool.mirror.retired.get() {
                    return;
                }
                pool.parked.borrow_mut().push(runner.clone());
                runner.given.notified().await;
            }
        });
    }

    /// The next unit for which it is time and there is a connection, or room for one.
    fn next(&self) -> Option<Job> {
        self.see_off();
        self.due_ns.set(u64::MAX);
        if self.state.borrow().is_exhausted() {
            if self.dispatcher().queued_units() > 0 && !self.waits.replace(true) {
                self.mirror.metrics.pool_waits.add(1);
            }
            return None;
        }
        self.waits.set(false);
        let now_ns = self.context.ring.now_ns();
        let config = self.context.config.borrow().clone();
        let ticket = {
            let state = self.state.borrow();
            // While it cannot be reached, what finds no room in the rings is dropped for that reason.
            let unavailable = self.is_failing() && !state.is_connected();
            let mut dispatcher = self.dispatcher();
            dispatcher.set_unavailable(false);
            let ticket = dispatcher.next_for(|unit| {
                let login = self.login(&config, &unit.outcome.identity);
                state.may_serve(unit.client, login, now_ns)
                    && (config.general.pace != Pace::Session || self.is_due(unit, now_ns))
            });
            dispatcher.set_unavailable(unavailable);
            ticket?
        };
        let login = self.login(&config, &ticket.unit.outcome.identity);
        let checkout = self
            .state
            .borrow_mut()
            .checkout(ticket.unit.client, login, now_ns);
        Some((ticket, checkout))
    }

    /// Whether the unit may start under `pace = "session"`; if not, notes when.
    fn is_due(&self, unit: &Unit<Chunk, PostgresOutcome>, now_ns: u64) -> bool {
        let mut pacers = self.pacers.borrow_mut();
        let pacer = pacers.entry(unit.client).or_default();
        match Start::of(pacer.due_ns(pace::Pace::Session, unit), now_ns) {
            Start::Now => true,
            Start::At(at_ns) => {
                self.due_ns.set(self.due_ns.get().min(at_ns));
                false
            }
        }
    }

    /// Lets go what was kept for clients that have left and have no unit here any more.
    fn see_off(&self) {
        let mut leaving = self.leaving.borrow_mut();
        leaving.append(&mut self.mirror.left.borrow_mut());
        leaving.retain(|client| {
            if self.dispatcher().holds(*client) {
                return true;
            }
            self.pacers.borrow_mut().remove(client);
            let kept = self.state.borrow_mut().release(*client);
            if let Some(slot) = kept {
                // Its session ends as the client's did.
                self.idle.borrow_mut()[slot] = None;
                self.state.borrow_mut().closed(slot);
            }
            false
        });
    }

    /// The pool's name for a login.
    fn login(&self, config: &Arc<Config>, who: &Rc<Identity>) -> usize {
        let mut logins = self.logins.borrow_mut();
        logins.of(config, &self.mirror.destination, who)
    }

    fn is_failing(&self) -> bool {
        let logins = self.logins.borrow().servers.len();
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
                Err(broken) => self.lost(slot, [ticket], &broken, false),
            }
            self.publish();
        }
        self.mirror.work.wake_one();
    }

    async fn connect(&self, ticket: &PgTicket) -> Result<Box<Connection>, Broken> {
        let who = &ticket.unit.outcome.identity;
        let config = self.context.config.borrow().clone();
        let destination = &self.mirror.destination;
        let (user, password, name) = credentials(&config, destination, who);
        // Boxed: these are rare, and the run of every unit would carry their size.
        let opening = Box::pin(Connection::open(
            &self.context,
            destination,
            name,
            user,
            password,
        ));
        let connection = Box::new(or(opening, self.retired()).await?);
        self.mirror.note_connection(connection.socket().downgrade());
        Ok(connection)
    }

    /// Runs a unit, and with it those that its client pipelined behind it; returns whether the connection waits for more.
    async fn run_on(&self, slot: usize, mut connection: Box<Connection>, ticket: PgTicket) -> bool {
        // Pauses can only be kept by a mirror that has time for them: before units are dropped, pauses are.
        let behind = self.dispatcher().is_crowded(ticket.unit.client);
        let pace = match behind {
            true => Pace::Off,
            false => self.context.config.borrow().general.pace,
        };
        let replaying = Replaying {
            pace,
            digest: self.mirror.options.compare == Compare::Rows,
            keeps_session: self.mode == PoolMode::Session,
        };
        let mut line = Line {
            tickets: self.line_up(ticket, behind),
            delivered: &|ticket, ran| self.settle(ticket, &ran),
            put_back: &|ticket| self.dispatcher().requeue(ticket),
        };
        let ran = or(
            self.run_line(&mut connection, &mut line, replaying),
            self.retired(),
        )
        .await;
        self.mirror.note_queue();
        match ran {
            Ok(()) => {
                self.spare_lines.borrow_mut().push(line.tickets);
                let keep = self.state.borrow_mut().checkin(slot) == Checkin::Keep;
                if keep {
                    self.idle.borrow_mut()[slot] = Some(connection);
                }
                keep
            }
            Err(broken) => {
                let dirty = connection.dirty;
                drop(connection);
                self.lost(slot, line.tickets, &broken, dirty);
                false
            }
        }
    }

    /// The unit, and those behind it that may go with it.
    fn line_up(&self, ticket: PgTicket, behind: bool) -> VecDeque<PgTicket> {
        let now_ns = self.context.ring.now_ns();
        let keeps_pace = self.context.config.borrow().general.pace == Pace::Session;
        let mut dispatcher = self.dispatcher();
        let mut line = self.spare_lines.borrow_mut().pop().unwrap_or_default();
        line.push_back(ticket);
        while line.len() < PIPELINED_UNITS_MAX
            && let Some(last) = line.back()
        {
            let may_follow = |next: &Unit<Chunk, PostgresOutcome>| {
                pipeline::follows(&last.unit, next, behind)
                    && (!keeps_pace || self.is_due(next, now_ns))
            };
            let Some(next) = dispatcher.next_behind(last, may_follow) else {
                break;
            };
            line.push_back(next);
        }
        line
    }

    /// Runs the units of the line, which is empty if all went well.
    async fn run_line(
        &self,
        connection: &mut Connection,
        line: &mut Line<'_>,
        replaying: Replaying,
    ) -> Result<(), Broken> {
        if line.tickets.len() > 1 && connection.run_line(&self.context, line, replaying).await? {
            return Ok(());
        }
        let Some(ticket) = line.tickets.front() else {
            return Ok(());
        };
        let ran = connection.run(&self.context, &ticket.unit, replaying);
        let ran = ran.await?;
        if let Some(ticket) = line.tickets.pop_front() {
            self.settle(ticket, &ran);
        }
        Ok(())
    }

    /// A unit was answered.
    fn settle(&self, ticket: PgTicket, ran: &Ran) {
        self.delivered(&ticket, ran);
        let mut dispatcher = self.dispatcher();
        dispatcher.note_answer(self.context.ring.now_ns());
        dispatcher.settle(ticket, Fate::Delivered);
    }

    /// The connection is gone. Units of which nothing was sent go back to their ring.
    fn lost(
        &self,
        slot: usize,
        tickets: impl IntoIterator<Item = PgTicket>,
        broken: &Broken,
        dirty: bool,
    ) {
        let tickets: Vec<_> = tickets.into_iter().collect();
        let retired = self.mirror.retired.get();
        if !retired && let Some(unsaid) = self.lost_log.speaks(self.context.ring.now_ns()) {
            tracing::warn!(mirror = self.mirror.destination.name, reason = %broken,
                lost = if dirty { tickets.len() } else { 0 }, unsaid, "a connection to a mirror ended");
        }
        self.mirror.metrics.reconnects.add(1);
        let jitter = self.context.random.borrow_mut().f64();
        let now_ns = self.context.ring.now_ns();
        self.state.borrow_mut().lost(slot, now_ns, jitter);
        let mut dispatcher = self.dispatcher();
        for ticket in tickets {
            if dirty {
                dispatcher.settle(ticket, Fate::Errored);
            } else if retired {
                dispatcher.settle(ticket, Fate::Dropped(DropReason::Shutdown));
            } else {
                dispatcher.requeue(ticket);
            }
        }
        drop(dispatcher);
        self.mirror.note_queue();
    }
    /// Ends what it is raced with when the mirror is taken away.
    async fn retired<T>(&self) -> Result<T, Broken> {
        self.mirror.until_retired().await;
        Err(Broken::Retired)
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
