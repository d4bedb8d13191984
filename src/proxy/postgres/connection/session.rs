//! Brings a mirror's session to where the client's was when its unit began, and notes where it is behind one.

use std::rc::Rc;

use super::{Broken, Connection, PgUnit};
use crate::protocol::postgres::compare::{Mode, UnitOutcome, compare};
use crate::protocol::postgres::replay::Replay;
use crate::protocol::postgres::session::SessionState;
use crate::proxy::Context;

impl Connection {
    /// Brings the session to where the client's was when the unit began.
    pub(in crate::proxy::postgres) async fn prepare(
        &mut self,
        context: &Context,
        unit: &PgUnit,
        keeps_session: bool,
    ) -> Result<(), Broken> {
        self.dirty = false;
        self.cancel_at_ns = None;
        self.sent_ns.clear();
        if self.is_as_wanted(unit) {
            return Ok(());
        }
        let limit = Self::limit(context, unit);
        // Rare: not a part of every unit's future.
        let adopted = Box::pin(self.adopt(context, unit, keeps_session));
        let adopted = context.ring.timeout(limit, adopted).await;
        adopted.map_err(|_| Broken::Stuck)?
    }

    /// What the session is like behind a unit.
    pub(super) fn note_session(&mut self, unit: &PgUnit, result: &UnitOutcome, timed_out: bool) {
        let outcome = &unit.outcome;
        let unchanged = Rc::ptr_eq(&outcome.before, &outcome.after);
        let as_primary = || compare(&outcome.result, result, Mode::Status, false).is_ok();
        if !unchanged && (timed_out || !as_primary()) {
            // Whether the session changed here too is not known.
            self.doubtful = true;
        }
        if !self.has_adopted(&outcome.after) {
            self.state.adopt(&outcome.after);
            self.adopted = Some(outcome.after.clone());
        }
        if outcome.traces {
            self.traces_of = Some(unit.client);
        }
    }

    /// Whether the session is where the client's was, as far as that can be told without a look at the values.
    fn is_as_wanted(&self, unit: &PgUnit) -> bool {
        let foreign = self.traces_of.is_some_and(|client| client != unit.client);
        !self.doubtful && !foreign && self.has_adopted(&unit.outcome.before)
    }

    fn has_adopted(&self, state: &Rc<SessionState>) -> bool {
        let same = |adopted: &Rc<SessionState>| Rc::ptr_eq(adopted, state);
        self.adopted.as_ref().is_some_and(same)
    }

    /// Sets what the client's session has and this one lacks.
    async fn adopt(
        &mut self,
        context: &Context,
        unit: &PgUnit,
        keeps_session: bool,
    ) -> Result<(), Broken> {
        let foreign = self.traces_of.is_some_and(|client| client != unit.client);
        if self.doubtful || foreign {
            self.reset(context, keeps_session).await?;
        }
        let wanted = &unit.outcome.before;
        let statements = wanted.diff(&self.state);
        if statements.is_empty() {
            self.adopted = Some(wanted.clone());
            return Ok(());
        }
        self.adopted = None;
        let mut messages = Vec::new();
        statements
            .iter()
            .for_each(|sql| push_query(&mut messages, sql));
        let outcome = self.exchange(context, &messages).await?;
        self.doubtful = outcome.errors() > 0;
        let failed = outcome.statements().iter().filter_map(|s| s.sqlstate());
        self.session_errors.extend(failed);
        self.state.adopt(wanted);
        Ok(())
    }

    /// Back to what the session was behind the login. A client that keeps the connection keeps its temporary tables and
    /// session locks.
    async fn reset(&mut self, context: &Context, keeps_session: bool) -> Result<(), Broken> {
        let statements: &[&[u8]] = match keeps_session {
            true => &[
                b"RESET SESSION AUTHORIZATION",
                b"RESET ALL",
                b"UNLISTEN *",
                b"DEALLOCATE ALL",
            ],
            false => &[b"DISCARD ALL"],
        };
        let mut messages = Vec::new();
        statements
            .iter()
            .for_each(|sql| push_query(&mut messages, sql));
        if self.exchange(context, &messages).await?.errors() > 0 {
            return Err(Broken::NoReset);
        }
        self.state = self.fresh.clone();
        self.adopted = None;
        self.statements.clear();
        self.doubtful = false;
        self.traces_of = None;
        Ok(())
    }

    /// Sends messages of our own and reads their replies. Errors in them are the mirror's.
    pub(super) async fn exchange(
        &mut self,
        context: &Context,
        messages: &[u8],
    ) -> Result<UnitOutcome, Broken> {
        let mut replay = Replay::new(false);
        replay.sent(messages)?;
        self.socket.write(messages);
        self.read_rest(context, &mut replay).await?;
        Ok(replay.take_outcome())
    }
}

fn push_query(messages: &mut Vec<u8>, sql: &[u8]) {
    messages.push(b'Q');
    messages.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
    messages.extend_from_slice(sql);
    messages.push(0);
}
