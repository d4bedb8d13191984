//! A client's connections to the backend: getting its lane, opening and losing its own.

use std::rc::Rc;

use super::Session;
use crate::limits::{REDIS_INFO_BYTES_MAX, SOCKET_SEND_BYTES};
use crate::metrics::{self, OpenConnection};
use crate::proxy::redis::identity::{self, Unavailable, Wanted, write_command};
use crate::proxy::redis::lane::{LaneKey, Lanes};
use crate::proxy::redis::own::Own;
use crate::ring::Queue;

impl Session {
    pub(super) fn own_is(&self, what: impl Fn(&Own) -> bool) -> bool {
        self.own.borrow().as_ref().is_some_and(|own| what(own))
    }

    /// Gets the lane for who the client is now. False: the session is over.
    pub(super) async fn open_lane(self: &Rc<Self>) -> bool {
        let key = LaneKey {
            backend: self.backend.get(),
            identity: self.identity.borrow().clone(),
            db: self.db.get(),
            resp: self.resp.get(),
        };
        let units = &self.units;
        match Lanes::get(&units.context, &units.source, &key).await {
            Ok(lane) => {
                let trusted = key.identity.is_some() || !lane.wants_login;
                self.input.borrow_mut().framer.set_authenticated(trusted);
                *self.lane.borrow_mut() = Some(lane);
                true
            }
            Err(Unavailable::Refused(_)) if self.own.borrow().is_some() => {
                // What the server has allowed on the client's own connection it does not allow again.
                self.sticky.set(true);
                true
            }
            Err(_) => false,
        }
    }

    /// Opens the client's own connection. False: the session is over.
    pub(super) async fn open_own(self: &Rc<Self>) -> bool {
        let units = &self.units;
        let backend = self.backend.get();
        let (db, resp) = (self.db.get(), self.resp.get());
        let identity = self.identity.borrow().clone();
        let name = self.name.borrow().clone();
        let (info, count) = self.info.borrow().clone();
        let wanted = Wanted {
            identity: identity.as_ref(),
            db,
            resp,
            name: name.as_deref(),
            probe: false,
            more: (&info, count),
        };
        let database = units.source.backend(backend);
        match identity::establish(&units.context, &database, &wanted).await {
            Ok(established) => {
                let own = Rc::new(Own::new(
                    established.socket,
                    backend,
                    units.context.new_client().0,
                    (db, database.db, resp),
                    OpenConnection::of(&units.source.metrics),
                ));
                *self.own.borrow_mut() = Some(own.clone());
                let reading = read_own(self.clone(), own);
                units.context.queues.spawn(Queue::Serve, reading);
                true
            }
            Err(problem) => {
                tracing::warn!(
                    client = units.id.0,
                    database = database.name,
                    %problem,
                    "no connection for a client"
                );
                false
            }
        }
    }

    pub fn close_own(&self) {
        if let Some(own) = self.own.borrow_mut().take() {
            own.socket.stop_receiving();
        }
    }

    /// The own connection is over.
    fn own_ended(&self, own: &Rc<Own>) {
        let needed = own.lost(self);
        let mine = self
            .own
            .borrow()
            .as_ref()
            .is_some_and(|current| Rc::ptr_eq(current, own));
        if !mine {
            return;
        }
        self.own.borrow_mut().take();
        let input = self.input.borrow();
        if needed || self.sticky.get() || input.through || input.raw {
            drop(input);
            return self.fail();
        }
        self.progress.notify();
    }

    /// WAIT asks for the writes of its own connection, so the last one must be there. A publication to a shard channel
    /// that nobody knows is one, and disturbs nobody.
    pub(super) async fn fence(&self) -> bool {
        let own = self.own.borrow().clone();
        let Some(own) = own else { return true };
        let mut publish = Vec::new();
        write_command(&mut publish, &[b"SPUBLISH", b"parhelion:wait", b""]);
        own.swallow.set(own.swallow.get() + 1);
        own.socket.write(&publish);
        self.until(|| own.swallow.get() == 0).await;
        self.wrote.set(false);
        true
    }

    pub(super) fn note_info(&self, bytes: &[u8]) {
        let (kept, count) = &mut *self.info.borrow_mut();
        if kept.len() + bytes.len() <= REDIS_INFO_BYTES_MAX {
            kept.extend_from_slice(bytes);
            *count += 1;
        }
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        let counters = &self.units.context.metrics;
        let counters = counters.listener(metrics::Protocol::Redis);
        counters.primary_bytes_out.add(bytes as u64);
    }

    /// Waits until `reached` or the end of the session.
    pub(super) async fn until(&self, reached: impl Fn() -> bool) {
        while !reached() && !self.ended.get() {
            self.progress.notified().await;
        }
    }

    pub(super) async fn outstanding_at_most(&self, level: usize) {
        self.awaited.set(Some(level));
        self.until(|| self.outstanding.get() <= level).await;
        self.awaited.set(None);
    }
}

/// Sends what the backend says to the client, until either is gone.
async fn read_own(session: Rc<Session>, own: Rc<Own>) {
    let counters = session.units.context.metrics.clone();
    let counters = counters.listener(metrics::Protocol::Redis);
    while let Ok(Some(chunk)) = own.socket.recv().await {
        let Some(client) = session.client.borrow().clone() else {
            break;
        };
        counters.primary_bytes_in.add(chunk.len() as u64);
        counters.client_bytes_out.add(chunk.len() as u64);
        own.read(&session, &chunk, &client);
        session.follow_mirrors();
        session.progress.notify();
        if client.drained(SOCKET_SEND_BYTES).await.is_err() {
            break;
        }
        if session.draining.get() {
            session.end_if_quiet();
        }
    }
    session.own_ended(&own);
}
