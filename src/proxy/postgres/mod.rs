//! Postgres: clients with their primary connections, and the workers of mirrors.

mod admin;
mod assembler;
mod cancel;
mod carried;
mod channel_binding;
mod client;
mod connection;
mod control;
mod handshake;
mod judge;
mod mirror;
mod outcome;
mod pipeline;
mod pooled;
mod queries;
mod server_pool;
mod terminate;

use std::rc::Rc;

use super::mirrors::MirrorGroup;
use crate::config::Database;
use crate::metrics::SourceMetrics;
use std::sync::Arc;

pub use admin::{AdminDoor, AdminInbox, AdminRequest};
pub use cancel::CancelRegistry;
pub use client::serve;
pub use handshake::refuse;
pub use mirror::start_workers;
pub use outcome::{Identity, PostgresOutcome};
pub use server_pool::ServerPools;
pub use terminate::Accounts;

/// A database that clients connect to, with its mirrors, on one core.
pub struct Source {
    /// Where it is.
    pub database: Arc<Database>,
    /// Its mirrors, shared with the entry that replaces this one at a reload.
    pub mirrors: Rc<MirrorGroup<PostgresOutcome>>,
    /// Primary connections that its clients share.
    pub pools: Rc<ServerPools>,
    /// Its counters.
    pub metrics: Arc<SourceMetrics>,
}

/// Shared by all sessions of the source.
pub type SharedSource = Rc<Source>;
