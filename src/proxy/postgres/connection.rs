//! One connection of a mirror's pool: its login, what it has prepared and set, and the run of a unit on it.

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::or;
use smallvec::SmallVec;

use super::outcome::PostgresOutcome;
use crate::config::{Database, Pace};
use crate::limits::SOCKET_SEND_BYTES;
use crate::mirror::pace::{self, Start, UnitPacer};
use crate::mirror::payload::Part;
use crate::mirror::unit::{ClientId, Group, Unit};
use crate::protocol::postgres::compare::{Mode, UnitOutcome, compare};
use crate::protocol::postgres::login::{Login, LoginError, LoginParams, LoginProgress, Secret};
use crate::protocol::postgres::pipelined::PipelineError;
use crate::protocol::postgres::replay::{Replay, ReplayError, ReplayProgress};
use crate::protocol::postgres::session::SessionState;
use crate::protocol::postgres::startup::CancelRequest;
use crate::protocol::postgres::statements::{ConnStatements, Rewritten, rewrite_unit};
use crate::protocol::postgres::tracker::Sqlstate;
use crate::proxy::Context;
use crate::ring::{Chunk, Socket};

/// After a cancel at `mirror_timeout`: how long the mirror may take to say that it was cancelled.
pub(super) const CANCEL_GRACE: Duration = Duration::from_secs(2);

type PgUnit = Unit<Chunk, PostgresOutcome>;

/// Why a connection or a login failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("{0}")]
    Login(#[from] LoginError),
    #[error("{0}")]
    Replay(#[from] ReplayError),
    #[error("{0}")]
    Pipeline(#[from] PipelineError),
    #[error("the unit cannot be read: {0}")]
    Frame(#[from] crate::protocol::postgres::framer::FrameError),
    #[error("no answer within the mirror's timeout")]
    Stuck,
    #[error("its session cannot be reset")]
    NoReset,
    #[error("the mirror is taken away")]
    Retired,
}

/// How a unit went.
pub(super) struct Ran {
    pub result: UnitOutcome,
    /// It was cancelled after `mirror_timeout`: what it gave says nothing.
    pub timed_out: bool,
    /// Errors of the statements that were to bring the session to where the client's was.
    pub session_errors: Vec<Sqlstate>,
    /// When its first byte was sent, or when the unit before it in a pipeline was answered.
    pub started_ns: u64,
    /// When the end of its last reply came in.
    pub answered_ns: u64,
    /// When its message groups were sent.
    pub sent_ns: SmallVec<[u64; 2]>,
}

/// A logged-in, idle connection.
pub(super) struct Connection {
    socket: Socket,
    state: SessionState,
    /// The session right behind the login, to which a reset returns.
    fresh: SessionState,
    /// What `state` was taken from, or found equal to.
    adopted: Option<Rc<SessionState>>,
    /// What the session is like now is not known for certain.
    doubtful: bool,
    /// The client whose unit left something behind that another client's units must not meet.
    traces_of: Option<ClientId>,
    /// When what runs now is to be cancelled, as it was on the primary.
    cancel_at_ns: Option<u64>,
    /// Of the statements that brought the session to where the client's was; reported with the unit.
    pub(super) session_errors: Vec<Sqlstate>,
    /// When the groups of the unit under way were sent.
    sent_ns: SmallVec<[u64; 2]>,
    pub(super) statements: ConnStatements,
    cancel: Option<CancelRequest>,
    /// For cancel requests.
    database: Box<Database>,
    /// A byte of the unit under way has left.
    pub dirty: bool,
}

impl Connection {
    /// Connects and logs in; `name` is the database there.
    pub async fn open(
        context: &Context,
        database: &Database,
        name: &str,
        user: &str,
        password: Option<&crate::config::Secret>,
    ) -> Result<Connection, Broken> {
        let socket = context.connect_mirror(database).await?;
        let mut login = Login::new(LoginParams {
            user: user.as_bytes().to_vec(),
            database: name.as_bytes().to_vec(),
            password: password.map(|password| Secret::new(password.expose().to_owned())),
            extra: vec![(b"application_name".to_vec(), b"parhelion".to_vec())],
        });
        socket.write(&login.start());
        let limit = context.config.borrow().general.connect_timeout;
        let session = context
            .ring
            .timeout(limit, converse(&socket, &mut login))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let settings = session
            .settings
            .iter()
            .map(|(name, value)| (&name[..], &value[..]));
        let fresh = SessionState::fresh(settings);
        Ok(Connection {
            socket,
            state: fresh.clone(),
            fresh,
            adopted: None,
            doubtful: false,
            traces_of: None,
            cancel_at_ns: None,
            session_errors: Vec::new(),
            sent_ns: SmallVec::new(),
            statements: ConnStatements::default(),
            cancel: session.backend_key.map(|key| CancelRequest {
                pid: key.pid,
                key: key.key,
            }),
            database: Box::new(database.clone()),
            dirty: false,
        })
    }

    /// The socket, for whoever must be able to end it.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Runs a unit to its end: brings the session to where the client's was, replays at the given pace, reads every
    /// reply. The mirror may take `mirror_timeout` longer than the primary and its client took.
    pub async fn run(
        &mut self,
        context: &Context,
        unit: &PgUnit,
        replaying: Replaying,
    ) -> Result<Ran, Broken> {
        let limit = Self::limit(context, unit);
        self.prepare(context, unit, replaying.keeps_session).await?;
        let started_ns = context.ring.now_ns();
        let mut replay = Replay::new(replaying.digest);
        let played = context
            .ring
            .timeout(limit, self.play(context, unit, replaying.pace, &mut replay))
            .await;
        let timed_out = match played {
            Ok(played) => {
                played?;
                false
            }
            Err(_) => {
                self.cancel_at_ns = None;
                Box::pin(self.cancel(context)).await;
                let rest = Box::pin(self.read_rest(context, &mut replay));
                context
                    .ring
                    .timeout(CANCEL_GRACE, rest)
                    .await
                    .map_err(|_| Broken::Stuck)??;
                true
            }
        };
        let result = replay.into_outcome();
        self.note_session(unit, &result, timed_out);
        Ok(Ran {
            result,
            timed_out,
            session_errors: std::mem::take(&mut self.session_errors),
            started_ns,
            answered_ns: self.socket.heard_ns(),
            sent_ns: std::mem::take(&mut self.sent_ns),
        })
    }

    /// How long the mirror may take for a unit.
    pub(super) fn limit(context: &Context, unit: &PgUnit) -> Duration {
        let length = Duration::from_nanos(unit.sealed_ns.saturating_sub(unit.began_ns));
        context.config.borrow().general.mirror_timeout + length
    }

    /// Brings the session to where the client's was when the unit began.
    pub(super) async fn prepare(
        &mut self,
        context: &Context,
        unit: &PgUnit,
        keeps_session: bool,
    ) -> Result<(), Broken> {
        self.dirty = false;
        self.cancel_at_ns = None;
        self.sent_ns.clear();
        if self.is_as_wanted(unit) {
            return Ok(());
        }
        let limit = Self::limit(context, unit);
        // Rare: not a part of every unit's future.
        let adopted = Box::pin(self.adopt(context, unit, keeps_session));
        let adopted = context.ring.timeout(limit, adopted).await;
        adopted.map_err(|_| Broken::Stuck)?
    }

    /// What the session is like behind a unit.
    fn note_session(&mut self, unit: &PgUnit, result: &UnitOutcome, timed_out: bool) {
        let outcome = &unit.outcome;
        let unchanged = Rc::ptr_eq(&outcome.before, &outcome.after);
        let as_primary = || compare(&outcome.result, result, Mode::Status, false).is_ok();
        if !unchanged && (timed_out || !as_primary()) {
            // Whether the session changed here too is not known.
            self.doubtful = true;
        }
        if !self.has_adopted(&outcome.after) {
            self.state.adopt(&outcome.after);
            self.adopted = Some(outcome.after.clone());
        }
        if outcome.traces {
            self.traces_of = Some(unit.client);
        }
    }

    /// Whether the session is where the client's was, as far as that can be told without a look at the values.
    fn is_as_wanted(&self, unit: &PgUnit) -> bool {
        let foreign = self.traces_of.is_some_and(|client| client != unit.client);
        !self.doubtful && !foreign && self.has_adopted(&unit.outcome.before)
    }

    fn has_adopted(&self, state: &Rc<SessionState>) -> bool {
        let same = |adopted: &Rc<SessionState>| Rc::ptr_eq(adopted, state);
        self.adopted.as_ref().is_some_and(same)
    }

    /// Sets what the client's session has and this one lacks.
    async fn adopt(
        &mut self,
        context: &Context,
        unit: &PgUnit,
        keeps_session: bool,
    ) -> Result<(), Broken> {
        let foreign = self.traces_of.is_some_and(|client| client != unit.client);
        if self.doubtful || foreign {
            self.reset(context, keeps_session).await?;
        }
        let wanted = &unit.outcome.before;
        let statements = wanted.diff(&self.state);
        if statements.is_empty() {
            self.adopted = Some(wanted.clone());
            return Ok(());
        }
        self.adopted = None;
        let mut messages = Vec::new();
        statements
            .iter()
            .for_each(|sql| push_query(&mut messages, sql));
        let outcome = self.exchange(context, &messages).await?;
        self.doubtful = outcome.errors() > 0;
        let failed = outcome.statements().iter().filter_map(|s| s.sqlstate());
        self.session_errors.extend(failed);
        self.state.adopt(wanted);
        Ok(())
    }

    /// Back to what the session was behind the login. A client that keeps the connection keeps its temporary tables and
    /// session locks.
    async fn reset(&mut self, context: &Context, keeps_session: bool) -> Result<(), Broken> {
        let statements: &[&[u8]] = match keeps_session {
            true => &[
                b"RESET SESSION AUTHORIZATION",
                b"RESET ALL",
                b"UNLISTEN *",
                b"DEALLOCATE ALL",
            ],
            false => &[b"DISCARD ALL"],
        };
        let mut messages = Vec::new();
        statements
            .iter()
            .for_each(|sql| push_query(&mut messages, sql));
        if self.exchange(context, &messages).await?.errors() > 0 {
            return Err(Broken::NoReset);
        }
        self.state = self.fresh.clone();
        self.adopted = None;
        self.statements.clear();
        self.doubtful = false;
        self.traces_of = None;
        Ok(())
    }

    /// Sends messages of our own and reads their replies. Errors in them are the mirror's.
    async fn exchange(
        &mut self,
        context: &Context,
        messages: &[u8],
    ) -> Result<UnitOutcome, Broken> {
        let mut replay = Replay::new(false);
        replay.sent(messages)?;
        self.socket.write(messages);
        self.read_rest(context, &mut replay).await?;
        Ok(replay.into_outcome())
    }

    async fn play(
        &mut self,
        context: &Context,
        unit: &PgUnit,
        pace: Pace,
        replay: &mut Replay,
    ) -> Result<(), Broken> {
        if unit.outcome.named {
            let mut bytes = Vec::new();
            unit.payload.copy_into(&mut bytes);
            self.statements.set_scope(unit.outcome.before.scope());
            let rewritten = rewrite_unit(&bytes, &unit.outcome.names, &self.statements)?;
            let mut failed = false;
            if !rewritten.prepare_first.is_empty() {
                let outcome = self.exchange(context, &rewritten.prepare_first).await?;
                failed = outcome.errors() > 0;
            }
            self.dirty = true;
            self.send_groups(context, unit, pace, replay, &Source::Rewritten(&rewritten))
                .await?;
            self.read_rest(context, replay).await?;
            failed |= replay.outcome().errors() > 0;
            self.statements.settle(&rewritten, failed);
        } else {
            self.dirty = true;
            self.send_groups(context, unit, pace, replay, &Source::AsSent)
                .await?;
            self.read_rest(context, replay).await?;
        }
        self.cancel_at_ns = None;
        Ok(())
    }

    async fn send_groups(
        &mut self,
        context: &Context,
        unit: &PgUnit,
        pace: Pace,
        replay: &mut Replay,
        source: &Source<'_>,
    ) -> Result<(), Broken> {
        let mut pacer = UnitPacer::begin(engine_pace(pace), unit.began_ns, context.ring.now_ns());
        for (index, group) in unit.groups.iter().enumerate() {
            let next = unit.groups.get(index + 1);
            let end = next.map_or(unit.payload.len(), |next| next.offset);
            if index > 0 {
                self.wait_turn(context, group, replay, &mut pacer).await?;
            }
            let until_ns = next.map_or(u64::MAX, |next| next.arrived_ns);
            self.plan_cancel(unit, group, until_ns, context.ring.now_ns());
            self.sent_ns.push(context.ring.now_ns());
            self.send_range(unit, group.offset..end, replay, source)
                .await?;
        }
        Ok(())
    }

    /// Where the primary's statement was cancelled, this one is too, as long after its start.
    fn plan_cancel(&mut self, unit: &PgUnit, group: &Group, until_ns: u64, now_ns: u64) {
        let own = group.arrived_ns..until_ns;
        let mut cancels = unit.outcome.cancels_ns.iter();
        if let Some(cancel_ns) = cancels.find(|cancel_ns| own.contains(cancel_ns)) {
            self.cancel_at_ns = Some(now_ns.saturating_add(cancel_ns - group.arrived_ns));
        }
    }

    /// Waits until the group may start: the mirror has answered, and as much time has passed as on the primary.
    async fn wait_turn(
        &mut self,
        context: &Context,
        group: &Group,
        replay: &mut Replay,
        pacer: &mut UnitPacer,
    ) -> Result<(), Broken> {
        while !replay.wants_more() {
            self.read_some(context, replay, u64::MAX).await?;
        }
        if replay.outstanding() == 0 {
            self.cancel_at_ns = None;
        }
        let due_ns = pacer.due_ns(group, 0);
        if let Start::At(at_ns) = Start::of(due_ns, context.ring.now_ns()) {
            // Whatever comes in the meantime is read, so that the end of the connection is seen too.
            while self.read_some(context, replay, at_ns).await? {}
        }
        pacer.started(group, due_ns, context.ring.now_ns());
        Ok(())
    }

    async fn send_range(
        &mut self,
        unit: &PgUnit,
        Range { start, end }: Range<usize>,
        replay: &mut Replay,
        source: &Source<'_>,
    ) -> Result<(), Broken> {
        if let Source::Rewritten(rewritten) = source {
            let bytes = &rewritten.bytes[rewritten.offset(start)..rewritten.offset(end)];
            replay.sent(bytes)?;
            self.socket.write(bytes);
            return Ok(());
        }
        let mut at = 0;
        for part in unit.payload.parts() {
            let bytes = part.as_bytes();
            let (from, to) = (start.max(at), end.min(at + bytes.len()));
            if from < to {
                let range = from - at..to - at;
                replay.sent(&bytes[range.clone()])?;
                match part {
                    Part::Copied(copied) => self.socket.write(&copied[range]),
                    Part::Shared(chunk) => self.socket.send(chunk.slice(range)),
                }
                // The mirror may be answering a large unit; never let both sides wait for each other to read.
                while self.socket.queued() > SOCKET_SEND_BYTES {
                    self.drain_or_read(replay).await?;
                }
            }
            at += bytes.len();
        }
        Ok(())
    }

    async fn drain_or_read(&mut self, replay: &mut Replay) -> Result<(), Broken> {
        let drained = async { self.socket.drained(SOCKET_SEND_BYTES).await.map(|()| None) };
        let received = async { self.socket.recv().await.map(Some) };
        match or(drained, received).await? {
            None => Ok(()),
            Some(None) => Err(Broken::Closed),
            Some(Some(chunk)) => self.take(replay, &chunk).map(|_| ()),
        }
    }

    /// No more is sent of the unit; reads until every reply is here.
    async fn read_rest(&mut self, context: &Context, replay: &mut Replay) -> Result<(), Broken> {
        let mut out = Vec::new();
        let mut progress = replay.finish(&mut out)?;
        loop {
            self.socket.write(&out);
            out.clear();
            if progress == ReplayProgress::Done {
                return Ok(());
            }
            if let Some(chunk) = self.recv(context, u64::MAX).await? {
                progress = replay.receive(&chunk, &mut out)?;
                replay.stamp(self.socket.heard_ns());
            }
        }
    }

    /// Reads what comes next; false if nothing came until then.
    async fn read_some(
        &mut self,
        context: &Context,
        replay: &mut Replay,
        until_ns: u64,
    ) -> Result<bool, Broken> {
        match self.recv(context, until_ns).await? {
            Some(chunk) => self.take(replay, &chunk).map(|_| true),
            None => Ok(false),
        }
    }

    /// What the mirror sends next, or `None` at `until_ns`. Cancels what runs when the time for that comes.
    async fn recv(&mut self, context: &Context, until_ns: u64) -> Result<Option<Chunk>, Broken> {
        loop {
            let wake_ns = self.cancel_at_ns.map_or(until_ns, |at| at.min(until_ns));
            let received = async { Some(self.socket.recv().await) };
            let next = if wake_ns == u64::MAX {
                received.await
            } else {
                let asleep = context.ring.sleep_until(wake_ns, true);
                or(received, async {
                    asleep.await;
                    None
                })
                .await
            };
            if let Some(received) = next {
                return received?.ok_or(Broken::Closed).map(Some);
            }
            if self.cancel_at_ns.is_some_and(|at_ns| at_ns <= wake_ns) {
                self.cancel_at_ns = None;
                Box::pin(self.cancel(context)).await;
            } else {
                return Ok(None);
            }
        }
    }

    fn take(&self, replay: &mut Replay, chunk: &Chunk) -> Result<ReplayProgress, Broken> {
        let mut out = Vec::new();
        let progress = replay.receive(chunk, &mut out)?;
        replay.stamp(self.socket.heard_ns());
        self.socket.write(&out);
        Ok(progress)
    }

    /// Asks the mirror to cancel what it runs.
    pub(super) async fn cancel(&self, context: &Context) {
        let Some(cancel) = &self.cancel else { return };
        if let Ok(socket) = context.connect(&self.database).await {
            socket.write(&cancel.encode());
            let closed = async { while let Ok(Some(_)) = socket.recv().await {} };
            let _ = context.ring.timeout(CANCEL_GRACE, closed).await;
        }
    }
}

/// How units are replayed.
#[derive(Clone, Copy)]
pub(super) struct Replaying {
    pub pace: Pace,
    /// Result sets are digested, to be compared.
    pub digest: bool,
    /// The connection stays with its client.
    pub keeps_session: bool,
}

/// Which bytes a unit is replayed with.
enum Source<'a> {
    AsSent,
    Rewritten(&'a Rewritten<'a>),
}

async fn converse(
    socket: &Socket,
    login: &mut Login,
) -> Result<crate::protocol::postgres::login::LoggedIn, Broken> {
    let mut out = Vec::new();
    loop {
        let Some(chunk) = socket.recv().await? else {
            return Err(Broken::Closed);
        };
        match login.receive(&chunk, &mut out)? {
            LoginProgress::Continue => {
                socket.write(&out);
                out.clear();
            }
            LoginProgress::Done { session, .. } => return Ok(session),
        }
    }
}

fn engine_pace(pace: Pace) -> pace::Pace {
    match pace {
        Pace::Off => pace::Pace::Off,
        Pace::Transaction => pace::Pace::Transaction,
        Pace::Session => pace::Pace::Session,
    }
}

fn push_query(messages: &mut Vec<u8>, sql: &[u8]) {
    messages.push(b'Q');
    messages.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
    messages.extend_from_slice(sql);
    messages.push(0);
}
