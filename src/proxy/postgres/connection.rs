//! One connection of a mirror's pool: its login, what it has prepared and set, and the run of a unit on it.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::outcome::PostgresOutcome;
use crate::config::{Database, Pace};
use crate::limits::SOCKET_SEND_BYTES;
use crate::mirror::pace::{self, Start, UnitPacer};
use crate::mirror::payload::Part;
use crate::mirror::unit::{Group, Unit};
use crate::protocol::postgres::compare::UnitOutcome;
use crate::protocol::postgres::login::{Login, LoginError, LoginParams, LoginProgress, Secret};
use crate::protocol::postgres::replay::{Replay, ReplayError, ReplayProgress};
use crate::protocol::postgres::session::SessionState;
use crate::protocol::postgres::startup::CancelRequest;
use crate::protocol::postgres::statements::{ConnStatements, Rewritten, rewrite_unit};
use crate::proxy::Context;
use crate::ring::{Chunk, Socket};

/// After a cancel at `mirror_timeout`: how long the mirror may take to say that it was cancelled.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

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
    #[error("the unit cannot be read: {0}")]
    Frame(#[from] crate::protocol::postgres::framer::FrameError),
    #[error("no answer within the mirror's timeout")]
    Stuck,
}

/// How a unit went.
pub(super) struct Ran {
    pub result: UnitOutcome,
    /// It was cancelled after `mirror_timeout`: what it gave says nothing.
    pub timed_out: bool,
    /// When its first byte was sent.
    pub started_ns: u64,
}

/// A logged-in, idle connection.
pub(super) struct Connection {
    socket: Socket,
    state: SessionState,
    statements: ConnStatements,
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
        let socket = context.connect(database).await?;
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
        Ok(Connection {
            socket,
            state: SessionState::fresh(settings),
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

    /// Runs a unit to its end: brings the session to where the client's was, replays at the given pace, reads every reply.
    pub async fn run(
        &mut self,
        context: &Context,
        unit: &PgUnit,
        pace: Pace,
        digest: bool,
    ) -> Result<Ran, Broken> {
        self.dirty = false;
        self.adopt(&unit.outcome.before).await?;
        let limit = context.config.borrow().general.mirror_timeout;
        let started_ns = context.ring.now_ns();
        let mut replay = Replay::new(digest);
        let played = context
            .ring
            .timeout(limit, self.play(context, unit, pace, &mut replay))
            .await;
        let timed_out = match played {
            Ok(played) => {
                played?;
                false
            }
            Err(_) => {
                self.cancel(context).await;
                let rest = self.read_rest(&mut replay);
                context
                    .ring
                    .timeout(CANCEL_GRACE, rest)
                    .await
                    .map_err(|_| Broken::Stuck)??;
                true
            }
        };
        let result = replay.into_outcome();
        if result.errors() > 0 && !Rc::ptr_eq(&unit.outcome.before, &unit.outcome.after) {
            // Whether the session changed here too is not known.
            self.state = SessionState::default();
        }
        self.state.adopt(&unit.outcome.after);
        Ok(Ran {
            result,
            timed_out,
            started_ns,
        })
    }

    /// Sets what the client's session has and this one lacks.
    async fn adopt(&mut self, wanted: &SessionState) -> Result<(), Broken> {
        let statements = wanted.diff(&self.state);
        if statements.is_empty() {
            return Ok(());
        }
        let mut messages = Vec::new();
        for sql in &statements {
            messages.push(b'Q');
            messages.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
            messages.extend_from_slice(sql);
            messages.push(0);
        }
        self.exchange(&messages).await?;
        self.state.adopt(wanted);
        Ok(())
    }

    /// Sends messages of our own and reads their replies. Errors in them are the mirror's; returns whether there were any.
    async fn exchange(&mut self, messages: &[u8]) -> Result<bool, Broken> {
        let mut replay = Replay::new(false);
        replay.sent(messages)?;
        self.socket.write(messages);
        self.read_rest(&mut replay).await?;
        Ok(replay.into_outcome().errors() > 0)
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
            let rewritten = rewrite_unit(&bytes, &unit.outcome.names, &self.statements)?;
            let mut failed = false;
            if !rewritten.prepare_first.is_empty() {
                failed = self.exchange(&rewritten.prepare_first).await?;
            }
            self.dirty = true;
            self.send_groups(context, unit, pace, replay, &Source::Rewritten(&rewritten))
                .await?;
            self.read_rest(replay).await?;
            failed |= replay.outcome().errors() > 0;
            self.statements.settle(&rewritten, failed);
        } else {
            self.dirty = true;
            self.send_groups(context, unit, pace, replay, &Source::AsSent)
                .await?;
            self.read_rest(replay).await?;
        }
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
            let end = unit
                .groups
                .get(index + 1)
                .map_or(unit.payload.len(), |next| next.offset);
            if index > 0 && pace != Pace::Off {
                self.wait_turn(context, group, replay, &mut pacer).await?;
            }
            self.send_range(unit, group.offset, end, replay, source)
                .await?;
        }
        Ok(())
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
            self.read_some(replay).await?;
        }
        let due_ns = pacer.due_ns(group, 0);
        if let Start::At(at_ns) = Start::of(due_ns, context.ring.now_ns()) {
            context.ring.sleep_until(at_ns, true).await;
        }
        pacer.started(group, due_ns, context.ring.now_ns());
        Ok(())
    }

    async fn send_range(
        &mut self,
        unit: &PgUnit,
        start: usize,
        end: usize,
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
        match futures_lite::future::or(drained, received).await? {
            None => Ok(()),
            Some(None) => Err(Broken::Closed),
            Some(Some(chunk)) => self.take(replay, &chunk).map(|_| ()),
        }
    }

    /// No more is sent of the unit; reads until every reply is here.
    async fn read_rest(&mut self, replay: &mut Replay) -> Result<(), Broken> {
        let mut out = Vec::new();
        let mut progress = replay.finish(&mut out)?;
        loop {
            self.socket.write(&out);
            out.clear();
            if progress == ReplayProgress::Done {
                return Ok(());
            }
            let Some(chunk) = self.socket.recv().await? else {
                return Err(Broken::Closed);
            };
            progress = replay.receive(&chunk, &mut out)?;
        }
    }

    async fn read_some(&mut self, replay: &mut Replay) -> Result<(), Broken> {
        let Some(chunk) = self.socket.recv().await? else {
            return Err(Broken::Closed);
        };
        self.take(replay, &chunk).map(|_| ())
    }

    fn take(&self, replay: &mut Replay, chunk: &Chunk) -> Result<ReplayProgress, Broken> {
        let mut out = Vec::new();
        let progress = replay.receive(chunk, &mut out)?;
        self.socket.write(&out);
        Ok(progress)
    }

    /// Asks the mirror to cancel what it runs.
    async fn cancel(&self, context: &Context) {
        let Some(cancel) = &self.cancel else { return };
        if let Ok(socket) = context.connect(&self.database).await {
            socket.write(&cancel.encode());
            let closed = async { while let Ok(Some(_)) = socket.recv().await {} };
            let _ = context.ring.timeout(CANCEL_GRACE, closed).await;
        }
    }
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
