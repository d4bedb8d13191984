//! The admin console: a Postgres session whose statements the control thread answers.
//!
//! Nothing is carried out here: a statement goes to the control thread through a bounded channel, its answer comes back
//! as a message to this core. The core itself never waits. Source of the messages: PostgreSQL documentation,
//! "Message Formats".

mod session;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::OnceLock;

use tokio::sync::mpsc;

use self::session::Session;
use super::handshake::Hello;
use super::terminate;
use crate::config::Config;
use crate::control::Who;
use crate::control::admin_sql::Answer;
use crate::protocol::postgres::startup::{Severity, encode_error_with_hint};
use crate::proxy::Context;
use crate::proxy::services::Services;
use crate::ring::{Notify, Socket};

/// The database that is always the console; the config refuses a database of this name.
const ADMIN: &[u8] = b"admin";

/// Names by which operators of other poolers look for it; a configured database of such a name comes first.
const ALIASES: [&[u8]; 3] = [b"parhelion", b"pgdog", b"pgbouncer"];

/// A statement on its way to the control thread.
#[derive(Debug)]
pub struct AdminRequest {
    /// Index of the core that asks.
    pub core: usize,
    /// What the answer shall carry.
    pub ticket: u64,
    /// Who asks.
    pub who: Who,
    /// One statement.
    pub sql: String,
}

/// The way to the control thread, set once it listens.
pub type AdminDoor = OnceLock<mpsc::Sender<AdminRequest>>;

/// Answers on their way to the sessions of one core.
#[derive(Default)]
pub struct AdminInbox {
    next: Cell<u64>,
    waiting: RefCell<HashMap<u64, Rc<Waiting>>>,
}

#[derive(Default)]
struct Waiting {
    answer: RefCell<Option<Answer>>,
    arrived: Notify,
}

impl AdminInbox {
    /// Hands an answer to the session that waits for it, if it still does.
    pub fn deliver(&self, ticket: u64, answer: Answer) {
        if let Some(waiting) = self.waiting.borrow_mut().remove(&ticket) {
            *waiting.answer.borrow_mut() = Some(answer);
            waiting.arrived.notify();
        }
    }
}

/// Whether a client that names this database wants the console.
pub(super) fn is_wanted(
    config: &Config,
    database: &[u8],
    listener_database: Option<usize>,
) -> bool {
    let alias = || {
        ALIASES.contains(&database)
            && std::str::from_utf8(database).is_ok_and(|name| config.database_index(name).is_none())
    };
    // On a listener with a database of its own clients may name any database that the server has.
    database == ADMIN || (listener_database.is_none() && alias())
}

/// Serves a console to its end. Without admins in users.toml this host is trusted and nobody else; with them everybody
/// logs in.
pub(super) async fn serve(
    context: &Rc<Context>,
    services: &Rc<Services>,
    client: &Socket,
    hello: &Hello,
) {
    let config = context.config.borrow().clone();
    let peer = client.peer();
    let is_local = peer.is_none_or(|peer| peer.ip().to_canonical().is_loopback());
    let has_admins = config.users.iter().any(|user| user.database.is_none());
    let user = String::from_utf8_lossy(hello.startup.user().unwrap_or_default()).into_owned();
    let peer = peer.map_or_else(|| "unix".to_owned(), |peer| peer.to_string());
    if has_admins {
        let accounts = &services.shared.accounts;
        if let Err(problem) = terminate::check_admin(context, accounts, client, hello).await {
            tracing::warn!(peer, user, %problem, "an admin console was refused");
            return;
        }
    } else if !is_local {
        tracing::warn!(peer, user, "an admin console was refused");
        return client.write(&encode_error_with_hint(
            Severity::Fatal,
            "28000",
            "the admin console answers to this host only",
            "connect from the host itself, or name an admin in users.toml with database = \"admin\"",
        ));
    } else {
        client.write(&wire::authentication_ok());
    }
    tracing::debug!(peer, user, "an admin console was opened");
    client.write(&wire::greeting());
    let who = Who::new("admin", format!("{user}@{peer}"));
    Session::new(context, services, client, who).run().await;
}
