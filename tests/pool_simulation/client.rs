//! A client of the pool with its twin, which has a connection to itself: what the client receives must be what the twin is
//! answered. Carries the session from connection to connection as `proxy::postgres::pooled` does.

use parhelion::protocol::postgres::framer::MessageFramer;
use parhelion::protocol::postgres::rename::{
    Part, Renamer, Reply, ServerStatements, Step, Transaction,
};
use parhelion::protocol::postgres::session::SessionState;
use parhelion::protocol::postgres::sql;
use parhelion::protocol::postgres::statements::ClientStatements;
use parhelion::protocol::postgres::tracker::{ClientEvent, ServerEvent, Tracker, TxStatus};

use crate::Mistake;
use crate::server::Server;

/// A primary connection with what the proxy knows of it, and the bytes on their way.
#[derive(Default)]
pub struct Connection {
    pub server: Server,
    pub statements: ServerStatements,
    pub state: SessionState,
    pub to_server: Vec<u8>,
    pub to_proxy: Vec<u8>,
}

impl Connection {
    /// The server reads all that is there.
    pub fn work(&mut self) {
        let sent = std::mem::take(&mut self.to_server);
        self.to_proxy.extend(self.server.stream(&sent));
    }
}

pub struct Client {
    pub twin: Server,
    /// What it has decided to send and has not sent yet.
    pub script: Vec<u8>,
    /// What it was answered, and what its twin was.
    pub got: Vec<u8>,
    pub wanted: Vec<u8>,
    /// The latest scripts, for a report.
    pub history: Vec<String>,
    pub tracker: Tracker,
    pub state: SessionState,
    names: ClientStatements,
    renamer: Renamer,
    from_client: MessageFramer,
    from_server: MessageFramer,
    reply: Reply,
    undone: bool,
    mistake: Option<Mistake>,
}

impl Client {
    pub fn new(mistake: Option<Mistake>) -> Client {
        Client {
            twin: Server::default(),
            script: Vec::new(),
            got: Vec::new(),
            wanted: Vec::new(),
            history: Vec::new(),
            tracker: Tracker::new_ready(),
            state: SessionState::default(),
            names: ClientStatements::default(),
            renamer: Renamer::default(),
            from_client: MessageFramer::client(),
            from_server: MessageFramer::server(),
            reply: Reply::Pass,
            undone: false,
            mistake,
        }
    }

    /// Decides to send this, and learns from its twin what it must be answered.
    pub fn begin(&mut self, script: Vec<u8>) {
        assert!(self.script.is_empty() && self.got == self.wanted);
        self.wanted = self.twin.stream(&script);
        self.got.clear();
        self.history.push(format!(
            "{} -> {}",
            script.escape_ascii(),
            self.wanted.escape_ascii()
        ));
        if self.history.len() > 12 {
            self.history.remove(0);
        }
        self.script = script;
    }

    /// It has all answers.
    pub fn rests(&self) -> bool {
        self.script.is_empty() && self.got.len() >= self.wanted.len()
    }

    /// No message is half sent.
    pub fn between_messages(&self) -> bool {
        !self.from_client.in_message()
    }

    /// The session takes this connection over.
    pub fn adopt(&mut self, connection: &mut Connection) {
        self.from_server = MessageFramer::server();
        if self.mistake != Some(Mistake::Settings) {
            for statement in self.state.diff(&connection.state) {
                let statement = String::from_utf8(statement).unwrap();
                let mut out = Vec::new();
                connection.server.run(&statement, &mut out);
                assert!(out.starts_with(b"C"), "{statement}");
            }
        }
        connection.state.adopt(&self.state);
    }

    /// Outside a transaction with nothing outstanding: the connection may go back, which this settles.
    pub fn settle(&mut self, connection: &mut Connection) -> bool {
        if !self.tracker.idle() || self.from_client.in_message() {
            return false;
        }
        self.renamer.forget_large();
        if self.mistake.is_none() {
            for name in connection.statements.certain() {
                let known = connection.server.has_prepared(&name);
                assert!(
                    known,
                    "{name} is not there after\n{}",
                    self.history.join("\n")
                );
            }
        }
        connection.state.adopt(&self.state);
        if self.mistake != Some(Mistake::Unnamed) {
            connection.statements.released();
        }
        true
    }

    /// Sends a piece of its script.
    pub fn send(&mut self, count: usize, connection: &mut Connection) {
        let piece: Vec<u8> = self.script.drain(..count.min(self.script.len())).collect();
        let mut at = 0;
        while at < piece.len() {
            let first = !self.from_client.in_message();
            let advance = self.from_client.advance(&piece[at..]).unwrap();
            let part = Part {
                tag: self.from_client.tag().unwrap_or_default(),
                bytes: &piece[at..at + advance.consumed],
                first,
                last: advance.done,
            };
            at += advance.consumed;
            self.observe(part.bytes, &mut connection.statements);
            let transaction = Transaction::of(&self.tracker);
            let step = match self.mistake {
                Some(Mistake::Names) => Step::Pass,
                _ => self.renamer.client(
                    part,
                    &mut self.names,
                    transaction,
                    &mut connection.statements,
                    &mut connection.to_server,
                ),
            };
            connection.statements.sent(self.tracker.newest_cycle());
            match step {
                Step::Pass => connection.to_server.extend_from_slice(part.bytes),
                Step::Replaced => {}
                Step::TooLong => panic!("too long"),
            }
        }
    }

    fn observe(&mut self, piece: &[u8], statements: &mut ServerStatements) {
        let (names, renamer, state) = (&mut self.names, &mut self.renamer, &mut self.state);
        let mistake = self.mistake;
        let followed = self.tracker.client(piece, &mut |event| match event {
            ClientEvent::Statement { cycle, text } => {
                if !text.extended {
                    state.observe(text.sql, cycle);
                }
                if mistake != Some(Mistake::Doubt) {
                    renamer.statement(&text, sql::classify(text.sql), statements);
                }
            }
            ClientEvent::Named { cycle, named } => renamer.named(&named, cycle, names),
            _ => {}
        });
        followed.unwrap();
    }

    /// Receives what came from the server.
    pub fn receive(&mut self, count: usize, connection: &mut Connection) {
        let count = count.min(connection.to_proxy.len());
        let bytes: Vec<u8> = connection.to_proxy.drain(..count).collect();
        let mut at = 0;
        while at < bytes.len() {
            let first = !self.from_server.in_message();
            let advance = self.from_server.advance(&bytes[at..]).unwrap();
            let piece = &bytes[at..at + advance.consumed];
            at += advance.consumed;
            if first {
                let tag = self.from_server.tag().unwrap_or_default();
                self.reply = connection.statements.reply(tag);
                if self.mistake == Some(Mistake::Replies) {
                    self.reply = Reply::Pass;
                }
            }
            let other;
            let piece = match self.reply {
                Reply::Pass => piece,
                Reply::As(tag) if advance.done => {
                    other = [tag, 0, 0, 0, 4];
                    &other
                }
                _ => continue,
            };
            let (names, statements) = (&mut self.names, &mut connection.statements);
            let (undone, state, mistake) = (&mut self.undone, &mut self.state, self.mistake);
            let followed = self.tracker.server(piece, &mut |event| match event {
                ServerEvent::CycleDone(done) => {
                    statements.cycle_done(done.cycle, done.had_error);
                    if mistake != Some(Mistake::Skipped) {
                        names.settle(&done);
                    }
                    if done.status == TxStatus::Idle {
                        state.settle(done.cycle, !std::mem::take(undone));
                    }
                }
                ServerEvent::StatementDone { outcome, .. } => {
                    // As `Carried` has it: what the last statement of the unit says.
                    *undone =
                        outcome.sqlstate().is_some() || outcome.ending.to_string() == "ROLLBACK";
                }
                _ => {}
            });
            followed.unwrap();
            self.got.extend_from_slice(piece);
        }
        assert!(
            self.wanted.starts_with(&self.got),
            "a client is answered {}\n   and its twin {}\n   after\n{}",
            self.got.escape_ascii(),
            self.wanted.escape_ascii(),
            self.history.join("\n")
        );
    }
}
