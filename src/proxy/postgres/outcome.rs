//! What a unit carries besides its bytes: who sent it, in what session, and what the primary made of it.

use std::rc::Rc;

use smallvec::SmallVec;

use super::control::Control;
use crate::mirror::unit::Outcome;
use crate::protocol::postgres::compare::UnitOutcome;
use crate::protocol::postgres::session::SessionState;
use crate::protocol::postgres::statements::Snapshot;
use crate::protocol::postgres::tracker::StatementOutcome;

/// Who a client is, for the mirrors' logins.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The user, as text for config look-ups.
    pub user: String,
    /// The database it asked for; where the mirror's own has no name, units run in the one of this name.
    pub database: String,
}

/// The primary's side of a unit.
#[derive(Debug)]
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
    /// Whether the unit leaves things in its session that cannot be carried and would disturb another client's units on
    /// the same connection: temporary tables, session locks, cursors that outlive their transaction.
    pub traces: bool,
    /// When the primary ended a statement because it was cancelled; ascending.
    pub cancels_ns: SmallVec<[u64; 1]>,
    /// When the primary could begin with it: when it came, or when the unit before it in a pipeline was answered.
    pub turn_ns: u64,
    /// How the statements ended.
    pub result: UnitOutcome,
    /// What the control mirror makes of it.
    pub control: Control,
    /// The first statement's text, truncated, for divergence records.
    pub text: String,
}

/// What stands in a unit as long as it is nobody's: one of each for all units of a thread.
#[derive(Clone, Default)]
struct Nobody {
    identity: Rc<Identity>,
    session: Rc<SessionState>,
    names: Snapshot,
}

thread_local! {
    static NOBODY: Nobody = Nobody::default();
}

impl Default for PostgresOutcome {
    fn default() -> PostgresOutcome {
        let nobody = NOBODY.try_with(Nobody::clone).unwrap_or_default();
        PostgresOutcome {
            identity: nobody.identity,
            before: nobody.session.clone(),
            after: nobody.session,
            names: nobody.names,
            named: false,
            traces: false,
            cancels_ns: SmallVec::new(),
            turn_ns: 0,
            result: UnitOutcome::default(),
            control: Control::default(),
            text: String::new(),
        }
    }
}

/// Longest statement text that a unit keeps for divergence records, in bytes.
pub const TEXT_MAX: usize = 256;

/// Cancels of one unit that are repeated on the mirrors; a client that cancels more often in one transaction than this
/// has the others ignored there.
const CANCELS_MAX: usize = 64;

impl PostgresOutcome {
    /// Notes the time if the statement ended because somebody cancelled it.
    pub fn note_cancel(&mut self, statement: &StatementOutcome, now_ns: u64) {
        let cancelled = statement
            .sqlstate()
            .is_some_and(|code| code.as_str() == "57014");
        if cancelled && self.cancels_ns.len() < CANCELS_MAX {
            self.cancels_ns.push(now_ns);
        }
    }

    /// Adds what a later cycle of the same unit brought, its results excepted.
    pub fn join(&mut self, more: &mut PostgresOutcome) {
        self.named |= more.named;
        self.traces |= more.traces;
        let room = CANCELS_MAX.saturating_sub(self.cancels_ns.len());
        self.cancels_ns.extend(more.cancels_ns.drain(..).take(room));
        if self.text.is_empty() {
            std::mem::swap(&mut self.text, &mut more.text);
        }
    }
}

impl Outcome for PostgresOutcome {
    fn expect_control(&self) {
        self.control.expect();
    }

    fn reset(&mut self) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        let mut result = std::mem::take(&mut self.result);
        result.clear();
        *self = PostgresOutcome {
            text,
            result,
            ..PostgresOutcome::default()
        };
    }

    fn held_bytes(&self) -> usize {
        let statements = size_of_val(self.result.statements());
        let times = self.result.ended_ns().len().saturating_sub(2) * size_of::<u64>();
        statements + times + self.text.capacity()
    }
}
