//! Which server a cancel key belongs to.
//!
//! A CancelRequest comes on a connection of its own, which the kernel may give to any core, so this map is shared
//! by all of them. It is locked at login, at the end of a session and for a cancel: never for a query.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Database;

type Key = (u32, Box<[u8]>);

/// Cancel keys of the sessions that are open.
#[derive(Debug, Default)]
pub struct CancelRegistry(Mutex<HashMap<Key, Arc<Database>>>);

impl CancelRegistry {
    /// Notes that the server of `database` issued this key.
    pub fn insert(&self, pid: u32, key: &[u8], database: &Arc<Database>) {
        self.lock().insert((pid, key.into()), database.clone());
    }

    /// The session has ended.
    pub fn remove(&self, pid: u32, key: &[u8]) {
        self.lock().remove(&(pid, key.into()));
    }

    /// The server that issued this key.
    pub fn find(&self, pid: u32, key: &[u8]) -> Option<Arc<Database>> {
        self.lock().get(&(pid, key.into())).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Database>>> {
        // A panic elsewhere leaves a map that is still a map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
