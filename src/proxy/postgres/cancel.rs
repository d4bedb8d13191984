//! Which server a cancel key belongs to.
//!
//! A CancelRequest comes on a connection of its own, which the kernel may give to any core, so this map is shared
//! by all of them. It is locked at login, at the end of a session and for a cancel: never for a query. A client whose
//! primary connection changes has a slot that says which connection it is now; that is locked when it changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Database;
use crate::protocol::postgres::startup::CancelRequest;

type Key = (u32, Box<[u8]>);

/// Cancel keys of the sessions that are open.
#[derive(Debug, Default)]
pub struct CancelRegistry(Mutex<HashMap<Key, Route>>);

#[derive(Debug, Clone)]
enum Route {
    /// The server itself issued the key.
    Server(Arc<Database>),
    /// Parhelion issued it.
    Slot(Arc<CancelSlot>),
}

/// Where to send a cancel request, and what to send.
#[derive(Debug)]
pub struct CancelOrder {
    /// The server.
    pub database: Arc<Database>,
    /// With the server's own key.
    pub request: CancelRequest,
    /// Held until the server has taken the request.
    _target: Option<Busy>,
}

/// The primary connection that a client holds now, if it holds one.
#[derive(Debug, Default)]
pub struct CancelSlot(Mutex<Option<Arc<CancelTarget>>>);

/// How to cancel what one primary connection runs.
#[derive(Debug)]
pub struct CancelTarget {
    database: Arc<Database>,
    request: CancelRequest,
    /// Cancel requests that the server may not have taken yet.
    on_their_way: AtomicUsize,
}

/// One cancel request on its way.
#[derive(Debug)]
struct Busy(Arc<CancelTarget>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.on_their_way.fetch_sub(1, Ordering::AcqRel);
    }
}

impl CancelTarget {
    /// Of a connection whose server gave this key.
    pub fn new(database: Arc<Database>, request: CancelRequest) -> CancelTarget {
        CancelTarget {
            database,
            request,
            on_their_way: AtomicUsize::new(0),
        }
    }

    /// Whether a cancel request may still hit what this connection runs next. It must not serve another client until then.
    pub fn is_aimed_at(&self) -> bool {
        self.on_their_way.load(Ordering::Acquire) > 0
    }
}

impl CancelSlot {
    /// The client now holds this connection, or none. Behind this call no new request is aimed at the former one.
    pub fn aim(&self, target: Option<Arc<CancelTarget>>) {
        *lock(&self.0) = target;
    }

    fn order(&self) -> Option<CancelOrder> {
        let slot = lock(&self.0);
        let target = slot.as_ref()?.clone();
        // Counted under the lock: whoever takes the connection away sees it.
        target.on_their_way.fetch_add(1, Ordering::AcqRel);
        Some(CancelOrder {
            database: target.database.clone(),
            request: target.request.clone(),
            _target: Some(Busy(target)),
        })
    }
}

impl CancelRegistry {
    /// Notes that the server of `database` issued this key.
    pub fn insert(&self, pid: u32, key: &[u8], database: &Arc<Database>) {
        lock(&self.0).insert((pid, key.into()), Route::Server(database.clone()));
    }

    /// Notes a key that was issued here; false if it is taken.
    pub fn issue(&self, pid: u32, key: &[u8], slot: &Arc<CancelSlot>) -> bool {
        let mut map = lock(&self.0);
        let free = !map.contains_key(&(pid, key.into()));
        if free {
            map.insert((pid, key.into()), Route::Slot(slot.clone()));
        }
        free
    }

    /// The session has ended.
    pub fn remove(&self, pid: u32, key: &[u8]) {
        lock(&self.0).remove(&(pid, key.into()));
    }

    /// What to do for a cancel request; `None` for a key that nobody has, or whose client runs nothing.
    pub fn find(&self, request: &CancelRequest) -> Option<CancelOrder> {
        let route = lock(&self.0)
            .get(&(request.pid, request.key.clone()))
            .cloned()?;
        match route {
            Route::Slot(slot) => slot.order(),
            Route::Server(database) => Some(CancelOrder {
                database,
                request: request.clone(),
                _target: None,
            }),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves a map that is still a map.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pid: u32) -> CancelRequest {
        CancelRequest {
            pid,
            key: [1, 2, 3, 4].into(),
        }
    }

    #[test]
    fn an_issued_key_leads_to_the_connection_that_its_client_holds_now() {
        let registry = CancelRegistry::default();
        let slot = Arc::new(CancelSlot::default());
        assert!(registry.issue(7, &[1, 2, 3, 4], &slot));
        assert!(!registry.issue(7, &[1, 2, 3, 4], &slot));
        assert!(registry.find(&request(7)).is_none(), "it holds none");
        let endpoint = crate::config::Endpoint::Unix("/tmp/a".into());
        let database = Database::new("a", crate::config::Protocol::Postgres, endpoint);
        let target = Arc::new(CancelTarget::new(Arc::new(database), request(42)));
        slot.aim(Some(target.clone()));
        let order = registry.find(&request(7)).unwrap();
        assert_eq!(order.request.pid, 42);
        slot.aim(None);
        assert!(target.is_aimed_at(), "the request is on its way");
        assert!(registry.find(&request(7)).is_none());
        drop(order);
        assert!(!target.is_aimed_at());
        registry.remove(7, &[1, 2, 3, 4]);
        assert!(registry.find(&request(7)).is_none());
    }
}
