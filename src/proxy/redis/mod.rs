//! Redis: clients with their primary connections, and the workers of mirrors.

mod client;
mod collect;
mod judge;
mod mirror;
mod outcome;

use std::rc::Rc;
use std::sync::Arc;

use super::mirrors::MirrorGroup;
use crate::config::Database;
use crate::metrics::SourceMetrics;

pub use client::serve;
pub use mirror::start_workers;
pub use outcome::RedisOutcome;

/// A database that clients connect to, with its mirrors, on one core.
pub struct Source {
    /// Where it is.
    pub database: Database,
    /// Its mirrors, shared with the entry that replaces this one at a reload.
    pub mirrors: Rc<MirrorGroup<RedisOutcome>>,
    /// Its counters.
    pub metrics: Arc<SourceMetrics>,
}

/// Shared by all sessions of the source.
pub type SharedSource = Rc<Source>;
