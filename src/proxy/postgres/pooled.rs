//! A client that shares primary connections with others, transaction by transaction (`pool_mode = "transaction"`).
//!
//! From the first message outside a transaction to the ReadyForQuery that ends it the client holds a connection of the pool, which
//! first takes over the client's session. Prepared statements are renamed on the way; a client whose session cannot be
//! carried keeps its connection. The client's own bytes go to the assembler, as they do where it has a connection of its own.
//!
//! What a client may notice. Temporary tables, session-level advisory locks, LISTEN, cursors WITH HOLD, LOAD, `set_config` for the
//! session and prepared statements too large to carry keep its connection until it leaves or runs DISCARD ALL (an unnamed one
//! until it is bound); it counts against `pool_size` for that long. What a function does to the session inside is not seen. `currval`, and EXECUTE or DEALLOCATE of
//! a statement that was prepared by the protocol, do not work across transactions. Who sends several cycles without waiting and
//! names in one a statement that the server skipped or refused in an earlier one may find it there. A name that is taken gives
//! SQLSTATE 42P05 with the name that the statement has on the server. A cancel request while the client waits for a
//! connection does nothing. Replication is refused.

mod gate;
mod handover;
mod key;
mod messages;

use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures_lite::future::{or, pending};

use super::SharedSource;
use super::assembler::Assembler;
use super::carried::Carried;
use super::handshake::Hello;
use super::outcome::{Identity, PostgresOutcome};
use super::server_pool::{Lease, PoolError, ServerPool};
use super::terminate::{self, Refused};
use crate::limits::SOCKET_SEND_BYTES;
use crate::mirror::unit::ClientId;
use crate::protocol::postgres::framer::MessageFramer;
use crate::protocol::postgres::pinning::Reset;
use crate::protocol::postgres::rename::{Renamer, Reply};
use crate::protocol::postgres::startup::{Severity, encode_error};
use crate::protocol::postgres::statements::ClientStatements;
use crate::protocol::postgres::tracker::{Tracker, Violation};
use crate::proxy::Context;
use crate::proxy::context::SessionInfo;
use crate::proxy::mirrors::MirrorGroup;
use crate::proxy::services::Shared;
use crate::ring::{Chunk, Socket};
use gate::Gate;
use key::CancelKey;

/// Why a session ends before its client does.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Pool(#[from] PoolError),
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("the client's stream: {0}")]
    Frame(#[from] crate::protocol::postgres::framer::FrameError),
    #[error("a message's names are too long")]
    TooLong,
    #[error("the primary closed the connection")]
    Lost,
}

/// Begins the session of a client that has been checked; none if it has ended already.
pub(super) async fn begin(
    context: &Rc<Context>,
    shared: &Arc<Shared>,
    source: SharedSource,
    client: &Socket,
    hello: &Hello,
) -> Result<Option<Box<Pooled>>, Refused> {
    if hello.startup.is_replication() {
        let text = "a replication connection needs pool_mode = \"session\" in the proxy";
        client.write(&encode_error(Severity::Fatal, "0A000", text));
        return Err(Refused::Replication);
    }
    let login = terminate::backend_login(context, &source, client, hello)?;
    let size = source.database.pool_size;
    let pool = source.pools.of(login, size);
    let key = CancelKey::issue(shared, hello)?;
    let mut session = Box::new(Pooled::new(context, source, pool, client, hello, key));
    let begun = session.begin().await;
    if begun.is_err() {
        session.end(begun);
        return Ok(None);
    }
    Ok(Some(session))
}

/// The session of one client.
pub(super) struct Pooled {
    context: Rc<Context>,
    source: SharedSource,
    pool: Rc<ServerPool>,
    client: Socket,
    gate: Rc<Gate>,
    id: ClientId,
    key: CancelKey,
    tracker: Tracker,
    assembler: Assembler,
    carried: Carried,
    /// The source's, or an empty group if that had no mirror when the session began.
    mirrors: Rc<MirrorGroup<PostgresOutcome>>,
    mirrored: bool,
    names: ClientStatements,
    renamer: Renamer,
    from_client: MessageFramer,
    from_server: MessageFramer,
    /// What is to become of the server's message under way.
    reply: Reply,
    lease: Option<Lease>,
    /// The session cannot be carried: the connection is kept.
    pinned: bool,
    /// DISCARD ALL runs: behind it there is nothing to be pinned for.
    discards: bool,
    /// The unit under way may have changed what `carried` knows of the session.
    observed: bool,
    /// It changes the session …
    changes: bool,
    /// … and one of its statements failed.
    failed: bool,
    /// The settings as the client was welcomed with: what RESET returns to.
    welcome: Vec<(Vec<u8>, Vec<u8>)>,
    /// The unit under way resets this setting, or all.
    resets: Option<Reset>,
    /// The connection's session is not certainly what `carried` says.
    doubtful: bool,
    began_ns: u64,
    /// Which side is looked at first.
    turn: bool,
}

/// What comes next.
enum Input {
    Client(Option<Chunk>),
    Server(Option<Chunk>),
    /// The client takes no more.
    Deaf,
}

impl Pooled {
    fn new(
        context: &Rc<Context>,
        source: SharedSource,
        pool: Rc<ServerPool>,
        client: &Socket,
        hello: &Hello,
        key: CancelKey,
    ) -> Pooled {
        let id = context.new_client();
        let mirrored = !source.mirrors.is_empty();
        let mut tracker = Tracker::new_ready();
        tracker.set_digest(mirrored && source.mirrors.compares_rows());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let identity = Rc::new(Identity {
            user: text(hello.startup.user().unwrap_or_default()),
            database: text(hello.startup.database()),
        });
        let mirrors = match mirrored {
            true => source.mirrors.clone(),
            false => Rc::new(MirrorGroup::new(source.mirrors.units.clone())),
        };
        let info = SessionInfo {
            id: id.0,
            database: source.database.name.clone(),
            protocol: "postgres",
            user: identity.user.clone(),
            peer: client
                .peer()
                .map_or_else(String::new, |peer| peer.to_string()),
            ..SessionInfo::default()
        };
        let gate = Rc::new(Gate::new(client, info, context.draining()));
        let registered: Weak<Gate> = Rc::downgrade(&gate);
        context.register(id, registered);
        source.metrics.active_clients.add(1);
        Pooled {
            context: context.clone(),
            pool,
            client: client.clone(),
            gate,
            id,
            key,
            tracker,
            assembler: Assembler::new(id, identity, context.budget.clone()),
            carried: Carried::new(&hello.startup),
            mirrors,
            mirrored,
            names: ClientStatements::default(),
            renamer: Renamer::default(),
            from_client: MessageFramer::client(),
            from_server: MessageFramer::server(),
            reply: Reply::Pass,
            lease: None,
            pinned: false,
            discards: false,
            observed: false,
            changes: false,
            failed: false,
            welcome: Vec::new(),
            resets: None,
            doubtful: false,
            began_ns: 0,
            turn: false,
            source,
        }
    }

    /// The settings that the client asked for, as the primary reports them, and the client's welcome.
    async fn begin(&mut self) -> Result<(), Ended> {
        self.acquire().await?;
        if let Some(lease) = &mut self.lease {
            let reported = &lease.server().reported;
            self.welcome.clone_from(reported);
            for (name, value) in reported {
                self.carried.parameter_status(name, value);
            }
            let key = Some((self.key.pid, &self.key.key[..]));
            self.client
                .write(&terminate::welcome(&[], reported.iter(), key));
        }
        self.settle();
        Ok(())
    }

    /// Serves the client to its end.
    pub async fn serve(mut self: Box<Self>) {
        let ended = self.run().await;
        self.end(ended);
    }

    fn end(&mut self, ended: Result<(), Ended>) {
        if let Err(error) = ended {
            self.tell(&error);
        }
        self.leave();
    }

    async fn run(&mut self) -> Result<(), Ended> {
        let mut leaving = false;
        loop {
            match self.next(leaving).await {
                Input::Client(Some(chunk)) => {
                    if self.lease.is_none() {
                        // A good-bye needs no connection.
                        if chunk.first() == Some(&b'X') && !self.from_client.in_message() {
                            return Ok(());
                        }
                        self.acquire().await?;
                    }
                    self.gate.idle.set(false);
                    leaving |= self.client_bytes(&chunk)?;
                    // What asks for no answer needs no connection: a Flush, copy data that comes too late.
                    if self.lease.is_some() && self.tracker.idle() && !self.from_client.in_message()
                    {
                        self.settle();
                    }
                }
                Input::Client(None) => leaving = true,
                Input::Server(Some(chunk)) => self.server_bytes(&chunk)?,
                Input::Server(None) => return Err(Ended::Lost),
                Input::Deaf => return Ok(()),
            }
            // What the client sent before it left is executed, as Postgres does; what it did not finish is not.
            if leaving && (self.tracker.outstanding() == 0 || self.tracker.is_open()) {
                return Ok(());
            }
        }
    }

    async fn next(&mut self, leaving: bool) -> Input {
        self.turn = !self.turn;
        let server = self
            .lease
            .as_mut()
            .map(|lease| lease.server().socket.clone());
        let from_client = async {
            if leaving {
                return pending().await;
            }
            if let Some(server) = &server {
                // A primary that is gone shows on its own side.
                let _ = server.drained(SOCKET_SEND_BYTES).await;
            }
            Input::Client(self.client.recv().await.unwrap_or_default())
        };
        let from_server = async {
            let Some(server) = &server else {
                return pending().await;
            };
            if !leaving && self.client.drained(SOCKET_SEND_BYTES).await.is_err() {
                return Input::Deaf;
            }
            Input::Server(server.recv().await.unwrap_or_default())
        };
        if self.turn {
            or(from_client, from_server).await
        } else {
            or(from_server, from_client).await
        }
    }

    /// Says why it is over, where there is something to say.
    fn tell(&mut self, error: &Ended) {
        tracing::debug!(client = self.id.0, %error, "a session ended");
        let answer = match error {
            Ended::Pool(error) => error.response(),
            Ended::Frame(_) | Ended::TooLong | Ended::Violation(Violation::ClientFrame(_)) => {
                encode_error(Severity::Fatal, "08P01", &error.to_string())
            }
            // The primary has said it, or could not; a close is what the client would see without us.
            Ended::Violation(_) | Ended::Lost => Vec::new(),
        };
        if !matches!(error, Ended::Pool(_))
            && let Some(lease) = self.lease.take()
        {
            // Nobody knows what it is in the middle of.
            self.key.slot.aim(None);
            drop(lease);
        }
        self.client.write(&answer);
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        // A session that was stopped from outside, or that panicked.
        self.key.slot.aim(None);
        self.assembler.abandon(&self.mirrors);
        self.mirrors.detach(self.id);
        self.context.unregister(self.id);
        self.source.metrics.active_clients.sub(1);
    }
}
