//! What a client's lane and its own connection tell it: replies, what they show, and losses.

use std::ops::Range;
use std::rc::Rc;

use super::Session;
use crate::limits::{
    REDIS_HEAVY_DOUBLINGS, REDIS_HEAVY_REPLIES, REDIS_LANE_REPLY_BYTES, REDIS_WINDOW_MAX,
    SOCKET_SEND_BYTES,
};
use crate::metrics;
use crate::proxy::context;
use crate::proxy::redis::own::{Change, Own};
use crate::ring::{BY_REFERENCE_BYTES, Chunk, Socket};

impl Session {
    /// Bytes waiting for the client to read.
    pub fn backlog(&self) -> usize {
        self.client.borrow().as_ref().map_or(0, Socket::queued)
    }

    /// Sends replies of a lane to the client; `replies` of them end in `range`.
    pub fn deliver(self: &Rc<Self>, chunk: &Chunk, range: Range<usize>, replies: usize) {
        if let Some(client) = &*self.client.borrow() {
            let counters = &self.units.context.metrics;
            let counters = counters.listener(metrics::Protocol::Redis);
            counters.client_bytes_out.add(range.len() as u64);
            if range.len() < BY_REFERENCE_BYTES {
                client.write(&chunk[range]);
            } else {
                client.send(chunk.slice(range));
            }
        }
        if self.backlog() > SOCKET_SEND_BYTES && !self.units.source.lanes.spill(self) {
            tracing::warn!(
                client = self.units.id.0,
                database = self.units.source.database.name,
                "a client that does not read its replies is closed"
            );
            self.abort();
        }
        self.outstanding.set(self.outstanding.get() - replies);
        if let Some(level) = self.awaited.get()
            && self.outstanding.get() <= level
        {
            self.progress.notify();
        }
        if self.draining.get() {
            self.end_if_quiet();
        }
    }

    /// A reply of this size came over a lane.
    pub fn learn_size(&self, bytes: usize) {
        let window = self.window.get();
        if bytes < REDIS_LANE_REPLY_BYTES / 4 {
            self.window.set((window + 1).min(REDIS_WINDOW_MAX));
            return;
        }
        self.window.set((window / 2).max(1));
        if bytes > REDIS_LANE_REPLY_BYTES {
            let before = self.offences.get();
            self.offences.set((before + 1).min(REDIS_HEAVY_DOUBLINGS));
            self.heavy.set(REDIS_HEAVY_REPLIES << before);
        }
    }

    /// A reply of this size came over the own connection.
    pub fn learn_own_size(&self, bytes: usize) {
        let doubled = self.offences.get().saturating_sub(1);
        self.heavy.set(match bytes > REDIS_LANE_REPLY_BYTES {
            true => REDIS_HEAVY_REPLIES << doubled,
            false => self.heavy.get().saturating_sub(1),
        });
    }

    /// The own connection has confirmed this database and version.
    pub fn now_at(&self, db: u32, resp: u8) {
        self.db.set(db);
        self.resp.set(resp);
    }

    /// The server has said yes to what the client wants to be.
    pub fn changed(&self, change: Change) {
        let framer = &mut self.input.borrow_mut().framer;
        if change.reset {
            if let Some(observer) = &self.units.source.observer {
                observer.left(self.units.id);
            }
            self.sticky.set(false);
            *self.identity.borrow_mut() = None;
            *self.name.borrow_mut() = None;
            framer.set_authenticated(!self.units.source.lanes.wants_login());
        }
        if let Some(identity) = change.identity {
            *self.identity.borrow_mut() = Some(identity);
            framer.set_authenticated(true);
        }
        if let Some(name) = change.name {
            *self.name.borrow_mut() = (!name.is_empty()).then_some(name);
        }
    }

    /// A connection was lost that the client cannot do without: what arrived for it still leaves, then it is closed.
    pub fn fail(&self) {
        self.ended.set(true);
        if let Some(client) = &*self.client.borrow() {
            client.stop_receiving();
        }
        self.close_own();
        self.progress.notify();
    }

    /// The client is closed, and what waits for it is thrown away.
    pub(super) fn abort(&self) {
        self.fail();
        if let Some(client) = self.client.borrow_mut().take() {
            client.reset_on_close();
        }
    }

    /// Lets go of everything; replies that still come are dropped.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.close_own();
        *self.lane.borrow_mut() = None;
        *self.client.borrow_mut() = None;
        *self.identity.borrow_mut() = None;
        self.progress.notify();
    }

    /// Mirrors have come or gone: what is kept of requests follows as soon as no transaction is under way.
    pub(super) fn follow_mirrors(&self) {
        let through = self.input.borrow().through;
        if self.units.is_behind() && !through && !self.own_is(Own::is_tied) {
            self.units.follow();
        }
    }

    pub(super) fn end_if_quiet(&self) {
        if context::Session::is_quiet(self) {
            self.fail();
        }
    }
}
