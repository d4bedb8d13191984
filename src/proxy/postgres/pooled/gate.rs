//! The session as a drain and the admin see it.

use std::cell::Cell;

use crate::protocol::postgres::startup::{Severity, encode_error};
use crate::proxy::context::{self, SessionInfo};
use crate::ring::{Socket, WeakSocket};

/// What a drain sees of the session.
pub(super) struct Gate {
    client: WeakSocket,
    info: SessionInfo,
    /// Nothing is outstanding.
    pub(super) idle: Cell<bool>,
    draining: Cell<bool>,
}

impl Gate {
    pub(super) fn new(client: &Socket, info: SessionInfo, draining: bool) -> Gate {
        Gate {
            client: client.downgrade(),
            info,
            idle: Cell::new(false),
            draining: Cell::new(draining),
        }
    }

    /// Where the proxy drains, a client that waits for nothing has had its last answer.
    pub(super) fn end_if_idle(&self) {
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
