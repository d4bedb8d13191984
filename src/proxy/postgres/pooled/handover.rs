//! How a connection comes to the client and goes back: brought to where the client's session is, and given back between two
//! transactions unless the session cannot be carried.

use super::{Ended, Pooled};
use crate::protocol::postgres::framer::MessageFramer;
use crate::protocol::postgres::pinning::Reset;
use crate::protocol::postgres::startup::push_message;
use crate::protocol::postgres::tracker::TxStatus;
use crate::proxy::postgres::server_pool::{PoolError, Soiled};

/// Connections that are tried when one breaks while it takes over a session.
const ATTEMPTS: usize = 3;

impl Pooled {
    /// Gets a connection and brings it to where the client's session is.
    pub(super) async fn acquire(&mut self) -> Result<(), Ended> {
        self.gate.idle.set(false);
        let mut attempt = 1;
        loop {
            let mut lease = self.pool.checkout(&self.context, &self.source).await?;
            let wanted = self.carried.state();
            match lease.server().adopt(&self.context, &wanted).await {
                Ok(()) => {
                    self.key.slot.aim(lease.server().target.clone());
                    self.lease = Some(lease);
                    self.from_server = MessageFramer::server();
                    return Ok(());
                }
                Err(PoolError::Refused(body)) => return Err(PoolError::Refused(body).into()),
                Err(error) if attempt == ATTEMPTS => return Err(error.into()),
                Err(_) => attempt += 1,
            }
        }
    }

    /// Between two transactions: the connection goes back, unless the session needs it.
    pub(super) fn settle(&mut self) {
        let (changes, failed) = (
            std::mem::take(&mut self.changes),
            std::mem::take(&mut self.failed),
        );
        self.doubtful |= changes && failed;
        if std::mem::take(&mut self.discards) && !failed {
            self.pinned = false;
            self.doubtful = true;
        }
        if let Some(reset) = self.resets.take().filter(|_| !failed) {
            self.reset(&reset);
        }
        self.gate.idle.set(true);
        if failed {
            self.renamer.forget_large();
        }
        if !self.pinned
            && !self.renamer.awaits_bind()
            && let Some(mut lease) = self.lease.take()
        {
            self.key.slot.aim(None);
            self.renamer.forget_large();
            if std::mem::take(&mut self.observed) {
                lease.server().state.adopt(&self.carried.state());
            }
            let soiled = Soiled {
                transaction: false,
                session: std::mem::take(&mut self.doubtful),
            };
            lease.release(&self.context, soiled);
        }
        self.gate.end_if_idle();
    }

    /// The connection has gone back to what it began with; the client's next one will have what the client began with, and the
    /// client is told so.
    fn reset(&mut self, reset: &Reset) {
        let mut out = Vec::new();
        for (name, value) in &self.welcome {
            let meant = match reset {
                Reset::All => true,
                Reset::One(one) => one.eq_ignore_ascii_case(name),
            };
            let here = self.lease.as_mut().is_some_and(|lease| {
                let mut reported = lease.server().reported.iter();
                reported.any(|(known, now)| known == name && now == value)
            });
            if meant && !here && !self.pinned {
                self.carried.parameter_status(name, value);
                push_message(&mut out, b'S', &[name, &b"\0"[..], value, b"\0"].concat());
            }
        }
        self.client.write(&out);
    }

    /// The client is gone: what it leaves open is rolled back, or goes with the connection.
    pub(super) fn leave(&mut self) {
        self.key.slot.aim(None);
        let Some(mut lease) = self.lease.take() else {
            return;
        };
        if self.tracker.outstanding() > 0 || self.from_client.in_message() {
            return drop(lease);
        }
        lease.server().state.adopt(&self.carried.state());
        let soiled = Soiled {
            transaction: self.tracker.status() != TxStatus::Idle,
            session: self.pinned || self.doubtful || self.changes,
        };
        lease.release(&self.context, soiled);
    }
}
