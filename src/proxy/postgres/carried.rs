//! What later units of a client need of earlier ones: its session's settings and its named statements.

use std::rc::Rc;

use super::outcome::PostgresOutcome;
use crate::protocol::postgres::session::SessionState;
use crate::protocol::postgres::sql;
use crate::protocol::postgres::startup::StartupMessage;
use crate::protocol::postgres::statements::{ClientStatements, Statement};
use crate::protocol::postgres::tracker::{
    CycleDone, Ending, Named, STATEMENT_CAPTURE_MAX, StatementOutcome,
};

/// The carried state of one client.
pub(super) struct Carried {
    state: Rc<SessionState>,
    statements: ClientStatements,
    /// Something waits for the unit's end to take effect.
    unsettled: bool,
    /// The last statement of the unit so far undid it.
    undone: bool,
}

impl Carried {
    pub fn new(startup: &StartupMessage) -> Carried {
        Carried {
            state: Rc::new(SessionState::from_startup(startup)),
            statements: ClientStatements::default(),
            unsettled: false,
            undone: false,
        }
    }

    /// The server reports a setting.
    pub fn parameter_status(&mut self, name: &[u8], value: &[u8]) {
        Rc::make_mut(&mut self.state).parameter_status(name, value);
    }

    /// The client runs this text in this cycle. Returns whether it leaves traces: see [`PostgresOutcome::traces`].
    pub fn statement(&mut self, text: &[u8], class: sql::Class, cycle: u64) -> bool {
        self.observe(text, class, cycle);
        sql::leaves_traces(text, class)
    }

    fn observe(&mut self, text: &[u8], class: sql::Class, cycle: u64) {
        // What could not be read to its end may do this as well.
        let unread = class.intersects(sql::Class::UNKNOWN) && text.len() >= STATEMENT_CAPTURE_MAX;
        let concerns = sql::Class::SESSION | sql::Class::DEALLOCATES | sql::Class::SAVEPOINT;
        let in_question = class.intersects(concerns) || unread || self.unsettled;
        if in_question {
            Rc::make_mut(&mut self.state).observe(text, cycle);
            self.unsettled = true;
        }
        if class.intersects(sql::Class::DEALLOCATES) {
            // Which ones is not looked into: those that are still there are prepared anew where they are needed.
            self.statements.clear();
        }
    }

    /// The client made, executes or closed a prepared statement. A statement takes effect when it is executed, not when
    /// it is parsed; returns whether it leaves traces then.
    pub fn named(&mut self, named: &Named<'_>, cycle: u64) -> bool {
        self.statements.observe(named, cycle);
        let Named::Bind { name, .. } = named else {
            return false;
        };
        let Some(statement) = self.statements.get(name).cloned() else {
            return false;
        };
        self.observe(statement.sql(), statement.class, cycle);
        statement.traces
    }

    /// A statement has ended.
    pub fn statement_done(&mut self, outcome: &StatementOutcome) {
        self.undone = match outcome.ending {
            Ending::Error(_) => true,
            Ending::Complete(tag) => tag.as_str() == "ROLLBACK",
        };
    }

    /// ReadyForQuery; `unit_ended`: outside a transaction.
    pub fn settle(&mut self, done: &CycleDone, unit_ended: bool) {
        self.statements.settle(done);
        if unit_ended {
            if self.unsettled {
                let state = Rc::make_mut(&mut self.state);
                state.settle(done.cycle, !self.undone);
                self.unsettled = state.is_unsettled();
            }
            self.undone = false;
        }
    }

    /// The session as it is now.
    pub fn state(&self) -> Rc<SessionState> {
        self.state.clone()
    }

    /// Notes in a unit that begins what it begins with.
    pub fn note_begin(&self, outcome: &mut PostgresOutcome) {
        outcome.before = self.state.clone();
        outcome.names = self.statements.snapshot();
    }

    /// The statement that a Bind executes.
    pub fn statement_of(&self, name: &[u8]) -> Option<&Statement> {
        self.statements.get(name).map(|statement| &**statement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::postgres::startup::{First, Parsed, parse_first};
    use crate::protocol::postgres::tracker::{ClientEvent, ServerEvent, Tracker};

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = body.len() as u32 + 4;
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    /// A session of one client with a connection of its own, without its sockets.
    struct Session {
        tracker: Tracker,
        carried: Carried,
    }

    impl Session {
        fn client(&mut self, read: &[u8]) {
            let carried = &mut self.carried;
            let followed = self.tracker.client(read, &mut |event| match event {
                ClientEvent::Statement { cycle, text } if !text.extended => {
                    carried.statement(text.sql, text.class(), cycle);
                }
                ClientEvent::Named { cycle, named } => {
                    carried.named(&named, cycle);
                }
                _ => {}
            });
            followed.unwrap();
        }

        fn primary(&mut self, read: &[u8]) {
            let carried = &mut self.carried;
            let followed = self.tracker.server(read, &mut |event| match event {
                ServerEvent::StatementDone { outcome, .. } => carried.statement_done(outcome),
                ServerEvent::CycleDone(done) => carried.settle(&done, true),
                _ => {}
            });
            followed.unwrap();
        }
    }

    #[test]
    fn a_message_that_is_finished_in_a_later_read_belongs_to_the_cycle_it_began_in() {
        let packet = b"\0\0\0\x10\0\x03\0\0user\0u\0\0";
        let packet = [&(packet.len() as u32).to_be_bytes(), &packet[4..]].concat();
        let Some(Ok(Parsed {
            first: First::Startup(startup),
            ..
        })) = parse_first(&packet)
        else {
            panic!("no startup packet");
        };
        let fails = message(b'Q', b"SELECT 1/0\0");
        let simple = message(b'Q', b"SET work_mem = '7MB'\0");
        let extended = [
            message(b'P', b"\0SET work_mem = '7MB'\0\0\0"),
            message(b'B', b"\0\0\0\0\0\0\0\0"),
            message(b'E', b"\0\0\0\0\0"),
            message(b'S', b""),
        ]
        .concat();
        let ready = message(b'Z', b"I");
        let refused = [message(b'E', b"SERROR\0C22012\0Mno\0\0"), ready.clone()].concat();
        let set = [message(b'C', b"SET\0"), ready].concat();
        let bound = [message(b'1', b""), message(b'2', b""), set.clone()].concat();
        for (second, answer) in [(simple, set), (extended, bound)] {
            let both = [&fails[..], &second].concat();
            // The error of the first cycle undoes what that one set, and nothing of the second.
            for at in 0..both.len() {
                let mut session = Session {
                    tracker: Tracker::new_ready(),
                    carried: Carried::new(&startup),
                };
                session.client(&both[..at]);
                session.client(&both[at..]);
                session.primary(&refused);
                session.primary(&answer);
                let state = session.carried.state();
                assert_eq!(
                    state.diff(&SessionState::default()),
                    [b"SET work_mem = '7MB'".to_vec()],
                    "cut at {at}"
                );
            }
        }
    }
}
