//! What a unit carries besides its bytes: who sent it, in what session, and what the primary made of it.

use std::rc::Rc;

use crate::mirror::unit::Outcome;
use crate::protocol::postgres::compare::UnitOutcome;
use crate::protocol::postgres::session::SessionState;
use crate::protocol::postgres::statements::Snapshot;

/// Who a client is, for the mirrors' logins.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user, as text for config look-ups.
    pub user: String,
    /// The database it asked for; where the mirror's own has no name, units run in the one of this name.
    pub database: String,
}

/// The primary's side of a unit.
#[derive(Debug, Default)]
pub struct PostgresOutcome {
    /// Whose unit it is.
    pub identity: Rc<Identity>,
    /// The client's session when the unit began …
    pub before: Rc<SessionState>,
    /// … and when it ended.
    pub after: Rc<SessionState>,
    /// The client's named statements when the unit began.
    pub names: Snapshot,
    /// Whether the unit names prepared statements, so that its bytes must be renamed for a shared connection.
    pub named: bool,
    /// How the statements ended.
    pub result: UnitOutcome,
    /// The first statement's text, truncated, for divergence records.
    pub text: String,
}

/// Longest statement text that a unit keeps for divergence records, in bytes.
pub const TEXT_MAX: usize = 256;

impl Outcome for PostgresOutcome {
    fn reset(&mut self) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        *self = PostgresOutcome {
            text,
            ..PostgresOutcome::default()
        };
    }

    fn held_bytes(&self) -> usize {
        let statements = size_of_val(self.result.statements());
        statements + self.text.capacity()
    }
}
