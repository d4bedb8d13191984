//! One Postgres client and its own connection to the primary.
//!
//! Bytes go on as they come, in both directions; the tracker only reads along. The client authenticates with
//! the primary itself, or has been checked by [`super::terminate`]. If the stream cannot be followed any more, it is
//! still forwarded, and not mirrored.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::admin;
use super::assembler::{Assembler, Surroundings, engine_class};
use super::carried::Carried;
use super::channel_binding;
use super::handshake::{self, Hello, Refusal};
use super::outcome::{Identity, PostgresOutcome};
use super::pooled;
use super::terminate::{self, Refused};
use super::{SharedSource, Source};
use crate::config::{Auth, Config, PoolMode, Protocol};
use crate::limits::SOCKET_SEND_BYTES;
use crate::metrics;
use crate::mirror::unit::ClientId;
use crate::protocol::postgres::login::LoggedIn;
use crate::protocol::postgres::startup::{Severity, encode_error};
use crate::protocol::postgres::tracker::{ClientEvent, ServerEvent, Tracker};
use crate::proxy::Context;
use crate::proxy::context::{self, SessionInfo};
use crate::proxy::mirrors::MirrorGroup;
use crate::proxy::services::{Services, Shared};
use crate::proxy::tls::ServerTls;
use crate::ring::{Chunk, Queue, Socket, WeakSocket};

/// Serves one accepted connection to its end.
pub async fn serve(
    context: Rc<Context>,
    services: Rc<Services>,
    client: Socket,
    database: Option<usize>,
    tls: Option<Arc<ServerTls>>,
) {
    // An idle client does not hold the memory that its login needed.
    let begun = Box::pin(begin(context, services, client.clone(), database, tls)).await;
    match begun {
        Some(Begun::Own(session, primary)) => session.upstream(&client, &primary).await,
        Some(Begun::Shared(session)) => session.serve().await,
        None => {}
    }
}

/// What follows a login.
enum Begun {
    /// The client has this primary connection to itself.
    Own(Rc<PgSession>, Socket),
    /// It shares connections with others.
    Shared(Box<pooled::Pooled>),
}

/// Everything up to the session, or the whole of one that is none.
async fn begin(
    context: Rc<Context>,
    services: Rc<Services>,
    client: Socket,
    database: Option<usize>,
    tls: Option<Arc<ServerTls>>,
) -> Option<Begun> {
    let listener = context.metrics.listener(metrics::Protocol::Postgres);
    let hello = match handshake::receive(&context, &services.shared, &client, tls.as_deref()).await
    {
        Ok(hello) => hello,
        Err(Refusal::CancelDone) => return None,
        Err(refusal) => {
            listener.refused.add(1);
            tracing::debug!(%refusal, peer = ?client.peer(), "no session");
            return None;
        }
    };
    if admin::is_wanted(&context.config.borrow(), hello.startup.database(), database) {
        admin::serve(&context, &services, &client, &hello).await;
        return None;
    }
    let Some(source) = choose(&services, &context, &hello, database) else {
        let name = String::from_utf8_lossy(hello.startup.database()).into_owned();
        let message = format!("database \"{name}\" does not exist");
        client.write(&encode_error(Severity::Fatal, "3D000", &message));
        listener.refused.add(1);
        return None;
    };
    let opened = match (source.database.auth, source.database.pool_mode) {
        (Auth::Relay, _) => relayed(&context, &source, &client, &hello, tls.as_deref()).await,
        (Auth::Terminate, mode) => {
            let accounts = &services.shared.accounts;
            let checked = terminate::check(&context, accounts, &source, &client, &hello).await;
            match (checked, mode) {
                (Ok(()), PoolMode::Transaction) => {
                    let shared = &services.shared;
                    match pooled::begin(&context, shared, source.clone(), &client, &hello).await {
                        Ok(session) => return session.map(Begun::Shared),
                        Err(refused) => Err(refused),
                    }
                }
                (Ok(()), PoolMode::Session) => own(&context, &source, &client, &hello).await,
                (Err(refused), _) => Err(refused),
            }
        }
    };
    let (primary, opening) = match opened {
        Ok(opened) => opened,
        Err(refused) => {
            listener.refused.add(1);
            tracing::debug!(%refused, peer = ?client.peer(), "no session");
            return None;
        }
    };
    let session = PgSession::start(
        &context,
        &services.shared,
        source,
        &hello,
        opening,
        (&client, &primary),
    );
    context.queues.spawn(Queue::Serve, {
        let (session, client, primary) = (session.clone(), client, primary.clone());
        async move { session.downstream(&client, &primary).await }
    });
    Some(Begun::Own(session, primary))
}

/// How a session begins.
enum Opening {
    /// With the client's own login, which passes through.
    Relayed,
    /// Behind a login that was made for it.
    LoggedIn(LoggedIn),
}

/// A primary connection on which the client will log in by itself.
async fn relayed(
    context: &Context,
    source: &Source,
    client: &Socket,
    hello: &Hello,
    tls: Option<&ServerTls>,
) -> Result<(Socket, Opening), Refused> {
    let primary = match context.connect(&source.database).await {
        Ok(primary) => primary,
        Err(error) => {
            context.primary_unreachable(&source.database.name, &error);
            let text = "the primary cannot be reached";
            client.write(&encode_error(Severity::Fatal, "08006", text));
            return Err(Refused::Io(error));
        }
    };
    let packet = startup_packet(hello, source);
    primary.write(&packet);
    let begun = channel_binding::settle(context, source, client, primary, &packet, tls);
    match begun.await {
        Ok(primary) => Ok((primary, Opening::Relayed)),
        Err(error) => {
            tracing::warn!(database = source.database.name, %error, "the primary left at a login");
            Err(Refused::Io(error))
        }
    }
}

/// A primary connection for this client alone, logged in; the client is told so.
async fn own(
    context: &Context,
    source: &SharedSource,
    client: &Socket,
    hello: &Hello,
) -> Result<(Socket, Opening), Refused> {
    let login = terminate::backend_login(context, source, client, hello)?;
    let (primary, session) = terminate::connect(context, source, client, hello, login).await?;
    let key = session.backend_key.as_ref().map(|key| (key.pid, &*key.key));
    client.write(&terminate::welcome(
        &session.notices,
        session.settings.iter(),
        key,
    ));
    Ok((primary, Opening::LoggedIn(session)))
}

fn choose(
    services: &Services,
    context: &Context,
    hello: &Hello,
    database: Option<usize>,
) -> Option<SharedSource> {
    let index = match database {
        Some(index) => index,
        None => {
            let name = std::str::from_utf8(hello.startup.database()).ok()?;
            let config = context.config.borrow();
            let found = config.database_index(name).or_else(|| {
                hello
                    .is_physical_replication()
                    .then(|| only_source(&config))?
            })?;
            (config.databases[found].protocol == Protocol::Postgres).then_some(found)?
        }
    };
    services.postgres(index)
}

/// The database whose server a physical replication client can only mean: such a client asks for no database (libpq writes
/// `replication` in its place).
fn only_source(config: &Config) -> Option<usize> {
    let mut sources = (0..config.databases.len()).filter(|index| {
        let is_mirror = config.mirroring.iter().any(|m| m.destination == *index);
        config.databases[*index].protocol == Protocol::Postgres && !is_mirror
    });
    sources.next().filter(|_| sources.next().is_none())
}

/// The client's own packet, unless the database has another name on the server. (No name: whatever the client asks for.)
fn startup_packet(hello: &Hello, source: &Source) -> Vec<u8> {
    let name = source.database.database_name.as_bytes();
    if name.is_empty() || hello.startup.database() == name {
        return hello.packet.clone();
    }
    let mut startup = hello.startup.clone();
    startup.set(b"database", name);
    startup.encode()
}

struct PgSession {
    context: Rc<Context>,
    shared: Arc<Shared>,
    source: SharedSource,
    /// The source's, or an empty group if that had no mirror when the session began.
    mirrors: Rc<MirrorGroup<PostgresOutcome>>,
    identity: Rc<Identity>,
    id: ClientId,
    tracker: RefCell<Tracker>,
    assembler: RefCell<Assembler>,
    carried: RefCell<Carried>,
    /// Whether the source had mirrors when the session began; without them nothing is collected. What was prepared and
    /// set in the meantime is not known then, so the session's units are excluded even if mirrors come.
    mirrored: bool,
    /// Whether the streams are still understood.
    followed: Cell<bool>,
    cancel_key: RefCell<Option<(u32, Box<[u8]>)>>,
    /// When the unit under way began.
    began_ns: Cell<u64>,
    draining: Cell<bool>,
    client: WeakSocket,
    primary: WeakSocket,
}

impl PgSession {
    fn start(
        context: &Rc<Context>,
        shared: &Arc<Shared>,
        source: SharedSource,
        hello: &Hello,
        opening: Opening,
        (client, primary): (&Socket, &Socket),
    ) -> Rc<PgSession> {
        let id = context.new_client();
        let replication = hello.startup.is_replication();
        let mut tracker = match &opening {
            Opening::LoggedIn(_) if !replication => Tracker::new_ready(),
            _ => Tracker::new(replication),
        };
        let mirrored = !source.mirrors.is_empty();
        tracker.set_capture(mirrored);
        tracker.set_digest(mirrored && source.mirrors.compares_rows());
        let user = String::from_utf8_lossy(hello.startup.user().unwrap_or_default()).into_owned();
        let database = String::from_utf8_lossy(hello.startup.database()).into_owned();
        let identity = Rc::new(Identity { user, database });
        let assembler = Assembler::new(id, identity.clone(), context.budget.clone());
        let mirrors = match mirrored {
            true => source.mirrors.clone(),
            false => Rc::new(MirrorGroup::new(source.mirrors.units.clone())),
        };
        let mut carried = Carried::new(&hello.startup);
        let mut cancel_key = None;
        if let Opening::LoggedIn(session) = opening {
            for (name, value) in &session.settings {
                carried.parameter_status(name, value);
            }
            cancel_key = session.backend_key.map(|key| (key.pid, key.key));
        }
        if let Some((pid, key)) = &cancel_key {
            shared.cancels.insert(*pid, key, &source.database);
        }
        source.metrics.active_clients.add(1);
        // Such a session has its primary connection to itself.
        source.metrics.connections_open.add(1);
        let session = Rc::new(PgSession {
            context: context.clone(),
            shared: shared.clone(),
            source,
            mirrors,
            identity,
            id,
            tracker: RefCell::new(tracker),
            assembler: RefCell::new(assembler),
            carried: RefCell::new(carried),
            mirrored,
            followed: Cell::new(true),
            cancel_key: RefCell::new(cancel_key),
            began_ns: Cell::new(0),
            draining: Cell::new(false),
            client: client.downgrade(),
            primary: primary.downgrade(),
        });
        let registered: Weak<PgSession> = Rc::downgrade(&session);
        context.register(id, registered);
        session
    }

    async fn upstream(&self, client: &Socket, primary: &Socket) {
        let counters = self.context.metrics.listener(metrics::Protocol::Postgres);
        while let Ok(Some(chunk)) = client.recv().await {
            counters.client_bytes_in.add(chunk.len() as u64);
            counters.primary_bytes_out.add(chunk.len() as u64);
            if self.followed.get() {
                self.read_client(&chunk);
            }
            primary.send(chunk);
            if primary.drained(SOCKET_SEND_BYTES).await.is_err() {
                break;
            }
        }
        primary.shutdown_write();
    }

    async fn downstream(&self, client: &Socket, primary: &Socket) {
        let counters = self.context.metrics.listener(metrics::Protocol::Postgres);
        let (mut gone, mut unread) = (false, 0);
        while let Ok(Some(chunk)) = primary.recv().await {
            counters.primary_bytes_in.add(chunk.len() as u64);
            if self.followed.get() {
                self.read_primary(&chunk);
            }
            if gone {
                unread += chunk.len();
                if unread > SOCKET_SEND_BYTES {
                    // So much a server would not have got rid of either.
                    break;
                }
                continue;
            }
            counters.client_bytes_out.add(chunk.len() as u64);
            client.send(chunk);
            if client.drained(SOCKET_SEND_BYTES).await.is_err() {
                // The primary still runs what the client sent before it left, and its end closes the session: until
                // then its answers tell what became of the units.
                gone = true;
                client.stop_receiving();
            }
            if self.draining.get() {
                self.end_if_idle();
            }
        }
        // The primary has ended, or the client takes no more: either way the session is over.
        client.stop_receiving();
        primary.stop_receiving();
    }

    fn read_client(&self, chunk: &Chunk) {
        let around = self.surroundings();
        let mut assembler = self.assembler.borrow_mut();
        let mut carried = self.carried.borrow_mut();
        let mirrored = self.mirrored;
        let mut tracker = self.tracker.borrow_mut();
        let result = tracker.client(chunk, &mut |event| match event {
            ClientEvent::Opened { cycle } => {
                if assembler.is_quiet() {
                    self.began_ns.set(around.now_ns);
                }
                assembler.opened(cycle, &carried, &around);
            }
            ClientEvent::Bytes { range, .. } if mirrored => {
                assembler.bytes(&chunk.slice(range), &around);
            }
            ClientEvent::Statement { cycle, text } => {
                let class = text.class();
                let traces = !text.extended && carried.statement(text.sql, class, cycle);
                assembler.statement(text.sql, engine_class(class), traces);
            }
            ClientEvent::Named { cycle, named } => {
                let traces = carried.named(&named, cycle);
                assembler.named(&named, &carried, traces);
            }
            _ => {}
        });
        drop(tracker);
        if let Err(violation) = result {
            drop((assembler, carried));
            self.lose_track(&violation);
        }
    }

    fn read_primary(&self, chunk: &Chunk) {
        let around = self.surroundings();
        let mut assembler = self.assembler.borrow_mut();
        let mut carried = self.carried.borrow_mut();
        let result = self
            .tracker
            .borrow_mut()
            .server(chunk, &mut |event| match event {
                ServerEvent::BackendKey { pid, key } => {
                    self.shared.cancels.insert(pid, key, &self.source.database);
                    *self.cancel_key.borrow_mut() = Some((pid, key.into()));
                }
                ServerEvent::ParameterStatus { name, value } if self.mirrored => {
                    carried.parameter_status(name, value);
                }
                ServerEvent::Rows { cycle, digest } => {
                    *digest &= assembler.wants_digest(cycle);
                }
                ServerEvent::StatementDone { cycle, outcome } => {
                    carried.statement_done(outcome);
                    if let Some(code) = outcome.sqlstate() {
                        let word = metrics::ErrorWord::of_sqlstate(code.as_str().as_bytes());
                        self.source.metrics.errors.count(word);
                    }
                    assembler.statement_done(cycle, outcome, around.now_ns);
                }
                ServerEvent::CycleDone(done)
                    if assembler.cycle_done(&done, &mut carried, &around) =>
                {
                    self.source.metrics.requests.add(1);
                    if !self.mirrored {
                        self.source.mirrors.exclude();
                    }
                    let latency = around.now_ns.saturating_sub(self.began_ns.get());
                    self.source.metrics.latency.record(latency);
                    self.began_ns.set(around.now_ns);
                }
                _ => {}
            });
        if let Err(violation) = result {
            drop((assembler, carried));
            self.lose_track(&violation);
        }
    }

    /// The session goes on, unmirrored.
    fn lose_track(&self, violation: &dyn std::fmt::Display) {
        self.followed.set(false);
        self.assembler.borrow_mut().abandon(&self.mirrors);
        tracing::warn!(client = self.id.0, database = self.source.database.name, %violation,
            "a session cannot be followed and is not mirrored any more");
    }

    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            mirrors: &self.mirrors,
            ring: &self.context.ring,
            random: &self.context.random,
            now_ns: self.context.ring.now_ns(),
        }
    }

    fn end_if_idle(&self) {
        if context::Session::is_quiet(self) {
            self.end(
                "57P01",
                "terminating connection due to administrator command",
            );
        }
    }

    fn end(&self, sqlstate: &str, message: &str) {
        if let Some(client) = self.client.upgrade() {
            client.write(&encode_error(Severity::Fatal, sqlstate, message));
        }
        context::Session::stop(self);
    }
}

impl context::Session for PgSession {
    fn describe(&self) -> SessionInfo {
        let client = self.client.upgrade().and_then(|client| client.peer());
        let idle = self.followed.get() && self.tracker.borrow().idle();
        SessionInfo {
            id: self.id.0,
            database: self.source.database.name.clone(),
            protocol: "postgres",
            user: self.identity.user.clone(),
            peer: client.map_or_else(String::new, |peer| peer.to_string()),
            state: if idle { "idle" } else { "active" },
            core: 0,
        }
    }

    fn mirrors_changed(&self) {
        if self.mirrored {
            let digest = self.mirrors.compares_rows();
            self.tracker.borrow_mut().set_digest(digest);
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
        self.tracker.borrow().idle() || !self.followed.get()
    }

    fn listens(&self) -> bool {
        // LISTEN is not followed; PostgreSQL's own idle_session_timeout ends such a session too.
        false
    }

    fn end_idle(&self) {
        self.end(
            "57P05",
            "terminating connection due to idle-session timeout",
        );
    }

    fn stop(&self) {
        for socket in [&self.client, &self.primary]
            .into_iter()
            .filter_map(WeakSocket::upgrade)
        {
            socket.stop_receiving();
        }
    }
}

impl Drop for PgSession {
    fn drop(&mut self) {
        self.assembler.get_mut().abandon(&self.mirrors);
        self.mirrors.detach(self.id);
        self.context.unregister(self.id);
        self.source.metrics.active_clients.sub(1);
        self.source.metrics.connections_open.sub(1);
        if let Some((pid, key)) = self.cancel_key.get_mut().take() {
            self.shared.cancels.remove(pid, &key);
        }
    }
}
