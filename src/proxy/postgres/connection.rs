//! One connection of a mirror's pool: its login, what it has prepared and set, and the run of a unit on it.

mod play;
mod session;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;

use super::outcome::PostgresOutcome;
use crate::config::{Database, Pace};
use crate::mirror::unit::{ClientId, Unit};
use crate::protocol::postgres::compare::UnitOutcome;
use crate::protocol::postgres::login::{Login, LoginError, LoginParams, LoginProgress, Secret};
use crate::protocol::postgres::pipelined::PipelineError;
use crate::protocol::postgres::replay::{Replay, ReplayError};
use crate::protocol::postgres::session::SessionState;
use crate::protocol::postgres::startup::CancelRequest;
use crate::protocol::postgres::statements::ConnStatements;
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
    /// Of the last unit, for the next.
    replay: Option<Box<Replay>>,
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
            replay: None,
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
        // Boxed, and used again: it is large, and building it anew for each unit shows.
        let mut replay = match self.replay.take() {
            Some(mut replay) => {
                replay.restart(replaying.digest);
                replay
            }
            None => Box::new(Replay::new(replaying.digest)),
        };
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
        let result = replay.take_outcome();
        self.replay = Some(replay);
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
