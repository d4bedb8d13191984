//! What a unit carries besides its bytes: who sent it and what the primary made of it.

use std::rc::Rc;

use smallvec::SmallVec;

use crate::mirror::unit::Outcome;
use crate::protocol::postgres::startup::StartupMessage;
use crate::protocol::postgres::tracker::StatementOutcome;

/// Who a client is: what a mirror connection must be like to run its units.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// The startup packet as the client sent it.
    pub startup: StartupMessage,
    /// The user, as text for config look-ups.
    pub user: String,
}

/// The primary's side of a unit.
#[derive(Debug, Default)]
pub struct PostgresOutcome {
    /// Whose unit it is; set when the unit begins.
    pub identity: Option<Rc<Identity>>,
    /// How each statement ended.
    pub statements: SmallVec<[StatementOutcome; 2]>,
    /// The first statement's text, truncated, for divergence records.
    pub text: String,
    /// Requests the primary answered with ReadyForQuery.
    pub cycles: u32,
}

/// Longest statement text that a unit keeps for divergence records, in bytes.
pub const TEXT_MAX: usize = 256;

impl Outcome for PostgresOutcome {
    fn reset(&mut self) {
        self.identity = None;
        self.statements.clear();
        self.text.clear();
        self.cycles = 0;
    }

    fn held_bytes(&self) -> usize {
        let statements = match self.statements.spilled() {
            true => self.statements.capacity() * size_of::<StatementOutcome>(),
            false => 0,
        };
        statements + self.text.capacity()
    }
}
