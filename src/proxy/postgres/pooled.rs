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

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures_lite::future::{or, pending};

use super::SharedSource;
use super::assembler::{Assembler, Surroundings, engine_class};
use super::cancel::CancelSlot;
use super::carried::Carried;
use super::handshake::Hello;
use super::outcome::{Identity, PostgresOutcome};
use super::server_pool::{Lease, PoolError, ServerPool, Soiled};
use super::terminate::{self, Refused};
use crate::limits::SOCKET_SEND_BYTES;
use crate::metrics;
use crate::mirror::unit::ClientId;
use crate::protocol::postgres::framer::MessageFramer;
use crate::protocol::postgres::pinning::{self, Reset, begins_with};
use crate::protocol::postgres::rename::{Part, Renamer, Reply, Step, Transaction};
use crate::protocol::postgres::sql;
use crate::protocol::postgres::startup::{Severity, encode_error, push_message};
use crate::protocol::postgres::statements::ClientStatements;
use crate::protocol::postgres::tracker::{ClientEvent, ServerEvent, Tracker, TxStatus, Violation};
use crate::proxy::Context;
use crate::proxy::context::{self, SessionInfo};
use crate::proxy::mirrors::MirrorGroup;
use crate::proxy::services::Shared;
use crate::ring::{Chunk, Socket, WeakSocket};

/// Connections that are tried when one breaks while it takes over a session.
const ATTEMPTS: usize = 3;
/// Length of the cancel keys issued here: 4 bytes is what protocol 3.0 has; 3.2 takes more.
const KEY_LEN: usize = 4;
const KEY_LEN_3_2: usize = 32;

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

/// The client's own cancel key, and where it leads.
struct CancelKey {
    shared: Arc<Shared>,
    pid: u32,
    key: Vec<u8>,
    slot: Arc<CancelSlot>,
}

impl CancelKey {
    fn issue(shared: &Arc<Shared>, hello: &Hello) -> std::io::Result<CancelKey> {
        let slot = Arc::<CancelSlot>::default();
        let len = match hello.startup.minor {
            0 | 1 => KEY_LEN,
            _ => KEY_LEN_3_2,
        };
        loop {
            // A process id is positive where clients show it.
            let pid = u32::from_be_bytes(terminate::random()?) >> 1;
            let key = terminate::random::<KEY_LEN_3_2>()?[..len].to_vec();
            if shared.cancels.issue(pid, &key, &slot) {
                return Ok(CancelKey {
                    shared: shared.clone(),
                    pid,
                    key,
                    slot,
                });
            }
        }
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        self.shared.cancels.remove(self.pid, &self.key);
    }
}

/// What a drain sees of the session.
struct Gate {
    client: WeakSocket,
    info: SessionInfo,
    /// Nothing is outstanding.
    idle: Cell<bool>,
    draining: Cell<bool>,
}

impl Gate {
    fn end_if_idle(&self) {
        if self.draining.get() && self.idle.get() {
            self.end(
                "57P01",
                "terminating connection due to administrator command",
            );
        }
    }

    fn end(&self, code: &str, message: &str) {
        if let Some(client) = self.client.upgrade() {
            client.write(&encode_error(Severity::Fatal, code, message));
        }
        context::Session::stop(self);
    }
}

impl context::Session for Gate {
    fn describe(&self) -> SessionInfo {
        let state = if self.idle.get() { "idle" } else { "active" };
        SessionInfo {
            state,
            ..self.info.clone()
        }
    }

    fn drain(&self) {
        self.draining.set(true);
        self.end_if_idle();
    }

    fn client(&self) -> Option<Socket> {
        self.client.upgrade()
    }

    fn is_quiet(&self) -> bool {
        self.idle.get()
    }

    fn listens(&self) -> bool {
        // As where a client has a connection of its own.
        false
    }

    fn end_idle(&self) {
        self.end(
            "57P05",
            "terminating connection due to idle-session timeout",
        );
    }

    fn stop(&self) {
        if let Some(client) = self.client.upgrade() {
            client.stop_receiving();
        }
    }
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
        let gate = Rc::new(Gate {
            client: client.downgrade(),
            info,
            idle: Cell::new(false),
            draining: Cell::new(context.draining()),
        });
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

    /// Gets a connection and brings it to where the client's session is.
    async fn acquire(&mut self) -> Result<(), Ended> {
        self.gate.idle.set(false);
        let mut attempt = 1;
        loop {
            let mut lease = self.pool.checkout(&self.context, &self.source).await?;
            let wanted = self.carried.state();
            match lease.server().adopt(&self.context, &wanted).await {
                Ok(()) => {
                    self.key.slot.aim(lease.server().target.clone());
                    self.lease = Some(lease);
                    self.from_server = MessageFramer::server();
                    return Ok(());
                }
                Err(PoolError::Refused(body)) => return Err(PoolError::Refused(body).into()),
                Err(error) if attempt == ATTEMPTS => return Err(error.into()),
                Err(_) => attempt += 1,
            }
        }
    }

    /// Sends on what the client sent; whether it said good-bye.
    fn client_bytes(&mut self, chunk: &Chunk) -> Result<bool, Ended> {
        let counters = self.context.metrics.listener(metrics::Protocol::Postgres);
        counters.client_bytes_in.add(chunk.len() as u64);
        let Some(mut lease) = self.lease.take() else {
            return Ok(false);
        };
        let result = self.client_messages(chunk, &mut lease);
        self.lease = Some(lease);
        result
    }

    fn client_messages(&mut self, chunk: &Chunk, lease: &mut Lease) -> Result<bool, Ended> {
        let server = lease.server();
        // `start..at` goes on as it is.
        let (mut start, mut at) = (0, 0);
        let mut out = Vec::new();
        while at < chunk.len() {
            let first = !self.from_client.in_message();
            let advance = self.from_client.advance(&chunk[at..])?;
            let end = at + advance.consumed;
            let tag = self.from_client.tag().unwrap_or_default();
            if tag == b'X' {
                server.socket.send(chunk.slice(start..at));
                return Ok(true);
            }
            self.observe_client(chunk, at..end, server)?;
            let part = Part {
                tag,
                bytes: &chunk[at..end],
                first,
                last: advance.done,
            };
            let transaction = Transaction::of(&self.tracker);
            let step = self.renamer.client(
                part,
                &mut self.names,
                transaction,
                &mut server.statements,
                &mut out,
            );
            server.statements.sent(self.tracker.newest_cycle());
            self.pinned |= self.renamer.take_pin();
            match step {
                Step::Pass if out.is_empty() => {}
                Step::Pass => {
                    // What was made goes first, then the message itself.
                    server.socket.send(chunk.slice(start..at));
                    server.socket.write(&out);
                    start = at;
                }
                Step::Replaced => {
                    server.socket.send(chunk.slice(start..at));
                    server.socket.write(&out);
                    start = end;
                }
                Step::TooLong => return Err(Ended::TooLong),
            }
            out.clear();
            at = end;
        }
        server.socket.send(chunk.slice(start..at));
        Ok(false)
    }

    /// Reads a piece of one message along.
    fn observe_client(
        &mut self,
        chunk: &Chunk,
        piece: std::ops::Range<usize>,
        server: &mut super::server_pool::Server,
    ) -> Result<(), Ended> {
        let around = Surroundings {
            mirrors: &self.mirrors,
            ring: &self.context.ring,
            random: &self.context.random,
            now_ns: self.context.ring.now_ns(),
        };
        let (assembler, carried, names) = (&mut self.assembler, &mut self.carried, &mut self.names);
        let renamer = &mut self.renamer;
        let (mirrored, offset) = (self.mirrored, piece.start);
        let (mut pins, mut changes, mut unknown) = (false, false, false);
        let (mut discards, mut resets) = (false, None);
        let began_ns = &mut self.began_ns;
        self.tracker
            .client(&chunk[piece], &mut |event| match event {
                ClientEvent::Opened { cycle } => {
                    if assembler.is_quiet() {
                        *began_ns = around.now_ns;
                    }
                    assembler.opened(cycle, carried, &around);
                }
                ClientEvent::Bytes { range, .. } if mirrored => {
                    let range = offset + range.start..offset + range.end;
                    assembler.bytes(&chunk.slice(range), &around);
                }
                ClientEvent::Statement { cycle, text } => {
                    let class = text.class();
                    let traces = !text.extended && carried.statement(text.sql, class, cycle);
                    assembler.statement(text.sql, engine_class(class), traces);
                    pins |= pinning::pins(text.sql);
                    changes |= class.intersects(sql::Class::SESSION | sql::Class::DEALLOCATES);
                    unknown |= class.intersects(sql::Class::UNKNOWN);
                    discards |= begins_with(text.sql, "discard");
                    resets = Reset::of(text.sql).or(resets.take());
                    renamer.statement(&text, class, &mut server.statements);
                }
                ClientEvent::Named { cycle, named } => {
                    renamer.named(&named, cycle, names);
                    let traces = carried.named(&named, cycle);
                    assembler.named(&named, carried, traces);
                }
                _ => {}
            })?;
        self.pinned |= pins;
        self.changes |= changes;
        self.observed |= changes || unknown;
        self.discards |= discards;
        // RESET returns to what the connection began with, which is not what the client's startup packet says.
        self.doubtful |= resets.is_some();
        self.resets = resets.or(self.resets.take());
        Ok(())
    }

    /// Sends on what the primary sent.
    fn server_bytes(&mut self, chunk: &Chunk) -> Result<(), Ended> {
        let counters = self.context.metrics.listener(metrics::Protocol::Postgres);
        counters.client_bytes_out.add(chunk.len() as u64);
        let Some(mut lease) = self.lease.take() else {
            return Ok(());
        };
        let result = self.server_messages(chunk, &mut lease);
        self.lease = Some(lease);
        result?;
        if self.tracker.idle() && !self.from_client.in_message() {
            self.settle();
        }
        Ok(())
    }

    fn server_messages(&mut self, chunk: &Chunk, lease: &mut Lease) -> Result<(), Ended> {
        let (mut start, mut at) = (0, 0);
        while at < chunk.len() {
            let first = !self.from_server.in_message();
            let advance = self.from_server.advance(&chunk[at..])?;
            let end = at + advance.consumed;
            let tag = self.from_server.tag().unwrap_or_default();
            if first {
                self.reply = lease.server().statements.reply(tag);
            }
            if self.reply != Reply::Pass {
                self.forward(chunk.slice(start..at), lease)?;
                start = end;
                if let (Reply::As(other), true) = (self.reply, advance.done) {
                    // Both messages have no body.
                    self.forward(Chunk::from(vec![other, 0, 0, 0, 4]), lease)?;
                }
            } else if tag == b'Z' && advance.done {
                self.forward(chunk.slice(start..end), lease)?;
                start = end;
            }
            at = end;
        }
        self.forward(chunk.slice(start..at), lease)
    }

    /// Bytes for the client.
    fn forward(&mut self, bytes: Chunk, lease: &mut Lease) -> Result<(), Ended> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.observe_server(&bytes, lease)?;
        self.client.send(bytes);
        Ok(())
    }

    fn observe_server(&mut self, bytes: &Chunk, lease: &mut Lease) -> Result<(), Violation> {
        let around = Surroundings {
            mirrors: &self.mirrors,
            ring: &self.context.ring,
            random: &self.context.random,
            now_ns: self.context.ring.now_ns(),
        };
        let (assembler, carried, names) = (&mut self.assembler, &mut self.carried, &mut self.names);
        let server = lease.server();
        let (source, mirrored) = (&self.source, self.mirrored);
        let (began_ns, failed) = (&mut self.began_ns, &mut self.failed);
        self.tracker.server(bytes, &mut |event| match event {
            ServerEvent::ParameterStatus { name, value } => {
                carried.parameter_status(name, value);
                server.parameter_status(name, value);
            }
            ServerEvent::Rows { cycle, digest } => *digest &= assembler.wants_digest(cycle),
            ServerEvent::StatementDone { cycle, outcome } => {
                carried.statement_done(outcome);
                if let Some(code) = outcome.sqlstate() {
                    *failed = true;
                    let word = metrics::ErrorWord::of_sqlstate(code.as_str().as_bytes());
                    source.metrics.errors.count(word);
                }
                assembler.statement_done(cycle, outcome, around.now_ns);
            }
            ServerEvent::CycleDone(done) => {
                server.statements.cycle_done(done.cycle, done.had_error);
                names.settle(&done);
                if assembler.cycle_done(&done, carried, &around) {
                    source.metrics.requests.add(1);
                    if !mirrored {
                        source.mirrors.exclude();
                    }
                    let latency = around.now_ns.saturating_sub(*began_ns);
                    source.metrics.latency.record(latency);
                    *began_ns = around.now_ns;
                }
            }
            _ => {}
        })
    }

    /// Between two transactions: the connection goes back, unless the session needs it.
    fn settle(&mut self) {
        let (changes, failed) = (
            std::mem::take(&mut self.changes),
            std::mem::take(&mut self.failed),
        );
        self.doubtful |= changes && failed;
        if std::mem::take(&mut self.discards) && !failed {
            self.pinned = false;
            self.doubtful = true;
        }
        if let Some(reset) = self.resets.take().filter(|_| !failed) {
            self.reset(&reset);
        }
        self.gate.idle.set(true);
        if failed {
            self.renamer.forget_large();
        }
        if !self.pinned
            && !self.renamer.awaits_bind()
            && let Some(mut lease) = self.lease.take()
        {
            self.key.slot.aim(None);
            self.renamer.forget_large();
            if std::mem::take(&mut self.observed) {
                lease.server().state.adopt(&self.carried.state());
            }
            let soiled = Soiled {
                transaction: false,
                session: std::mem::take(&mut self.doubtful),
            };
            lease.release(&self.context, soiled);
        }
        self.gate.end_if_idle();
    }

    /// The connection has gone back to what it began with; the client's next one will have what the client began with, and the
    /// client is told so.
    fn reset(&mut self, reset: &Reset) {
        let mut out = Vec::new();
        for (name, value) in &self.welcome {
            let meant = match reset {
                Reset::All => true,
                Reset::One(one) => one.eq_ignore_ascii_case(name),
            };
            let here = self.lease.as_mut().is_some_and(|lease| {
                let mut reported = lease.server().reported.iter();
                reported.any(|(known, now)| known == name && now == value)
            });
            if meant && !here && !self.pinned {
                self.carried.parameter_status(name, value);
                push_message(&mut out, b'S', &[name, &b"\0"[..], value, b"\0"].concat());
            }
        }
        self.client.write(&out);
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

    /// The client is gone: what it leaves open is rolled back, or goes with the connection.
    fn leave(&mut self) {
        self.key.slot.aim(None);
        let Some(mut lease) = self.lease.take() else {
            return;
        };
        if self.tracker.outstanding() > 0 || self.from_client.in_message() {
            return drop(lease);
        }
        lease.server().state.adopt(&self.carried.state());
        let soiled = Soiled {
            transaction: self.tracker.status() != TxStatus::Idle,
            session: self.pinned || self.doubtful || self.changes,
        };
        lease.release(&self.context, soiled);
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
