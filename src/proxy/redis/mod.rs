//! Redis: clients on shared lanes or on connections of their own, and the workers of mirrors.
//!
//! A client's commands travel on a *lane*, an upstream connection that all clients of the same identity, database
//! and RESP version share, as long as they leave no state behind ([`route`]). Everything else goes over the client's
//! *own* connection ([`own`]), which is opened when it is first needed, after the replies on the lane have drained.
//! Both feed the same units ([`units`]) to the mirrors and to an observer ([`observe`]).

mod collect;
pub mod dual;
mod fifo;
mod identity;
mod judge;
mod lane;
mod mirror;
mod numbers;
pub mod observe;
mod outcome;
mod own;
mod route;
mod session;
mod units;

use std::rc::Rc;
use std::sync::Arc;

use super::mirrors::MirrorGroup;
use crate::config::Database;
use crate::metrics::SourceMetrics;
use observe::{Backend, Observer};

pub use lane::Lanes;
pub use mirror::start_workers;
pub use outcome::RedisOutcome;
pub use session::serve;

/// How the reply begins of a server that executes nothing yet.
const LOADING: &[u8] = b"-LOADING";

/// A database that clients connect to, with its mirrors, on one core.
pub struct Source {
    /// Where it is.
    pub database: Database,
    /// Its mirrors, shared with the entry that replaces this one at a reload.
    pub mirrors: Rc<MirrorGroup<RedisOutcome>>,
    /// Its counters.
    pub metrics: Arc<SourceMetrics>,
    /// Its shared connections.
    pub lanes: Lanes,
    /// Dual writes, where there are any.
    pub observer: Option<Rc<dyn Observer>>,
}

impl Source {
    /// A source without connections.
    pub fn new(
        database: Database,
        mirrors: Rc<MirrorGroup<RedisOutcome>>,
        metrics: Arc<SourceMetrics>,
        observer: Option<Rc<dyn Observer>>,
    ) -> Source {
        Source {
            database,
            mirrors,
            metrics,
            lanes: Lanes::default(),
            observer,
        }
    }

    /// Which backend serves commands that arrive now.
    fn front(&self) -> Backend {
        self.observer
            .as_ref()
            .map_or(Backend::Primary, |observer| observer.front())
    }

    fn backend(&self, backend: Backend) -> Database {
        match &self.observer {
            Some(observer) => observer.database(backend),
            None => self.database.clone(),
        }
    }

    /// The largest request that anybody keeps, in bytes.
    fn bytes_max(&self) -> usize {
        let observed = self
            .observer
            .as_ref()
            .map_or(0, |observer| observer.request_bytes_max());
        self.mirrors.bytes_max().max(observed)
    }
}

/// Shared by all sessions of the source.
pub type SharedSource = Rc<Source>;
