//! Prepared statements of clients that share a primary connection: renamed on the way there, and their replies put right on
//! the way back. Byte streams, not whole units.
//!
//! On the server a statement is named by its content, so that equal statements of all clients are one. A statement that the
//! connection lacks is prepared before the message that uses it; one that it has is not parsed again. The replies to what
//! the client did not send are left out. Sans-IO; holds the head of one message and what replies are awaited.

mod head;
mod server;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use super::pinning::clears_all;
use super::sql::Class;
use super::statements::{ClientStatements, Statement};
use super::tracker::{Named, StatementText, Tracker, TxStatus};
use head::Head;
pub use server::{Reply, ServerStatements};

/// What becomes of the bytes that were given.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// They go on as they are.
    Pass,
    /// They are held, or replaced by what was appended to `out`.
    Replaced,
    /// The message has names that no client of PostgreSQL makes.
    TooLong,
}

/// The client direction of one client.
#[derive(Debug, Default)]
pub struct Renamer {
    held: Vec<u8>,
    /// The rest of the current message goes on as it is.
    passing: bool,
    pin: bool,
    /// What the name of the Parse under way stood for before it.
    replaced: Option<Rc<Statement>>,
    /// The Query under way ends all prepared statements.
    clears: bool,
    /// The statement that the Bind under way executes does this.
    deallocates: Option<Deallocates>,
    /// The Parse under way is of the unnamed statement.
    unnamed: bool,
    /// The unnamed statement is too large to carry.
    large: Option<Large>,
}

/// Prepared statements end with this message of this cycle.
#[derive(Debug, Clone, Copy)]
struct Deallocates {
    cycle: u64,
    ordinal: u32,
    all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Large {
    /// It has not been bound yet.
    Parsed,
    /// It has been bound: as a rule nobody comes back to it.
    Bound,
}

/// What is known of the transaction that the client's next message comes in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transaction {
    /// There is none, or it has not failed.
    #[default]
    Sound,
    /// Earlier cycles are unanswered: a Parse must be left to the server.
    Unsure,
    /// It has failed: so will a Parse.
    Failed,
}

impl Transaction {
    /// As the tracker has it.
    pub fn of(tracker: &Tracker) -> Self {
        match tracker.status() {
            _ if tracker.outstanding() > 1 => Self::Unsure,
            TxStatus::Failed => Self::Failed,
            TxStatus::Idle | TxStatus::InTransaction => Self::Sound,
        }
    }
}

/// One part of one message, behind its registration in `names`.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The message's type.
    pub tag: u8,
    /// Its bytes, header included.
    pub bytes: &'a [u8],
    /// The message begins here …
    pub first: bool,
    /// … ends here.
    pub last: bool,
}

impl Renamer {
    /// The text of a message, of this class. Comes before [`Renamer::named`] of the same message and that before
    /// [`Renamer::client`] with its last bytes.
    pub fn statement(
        &mut self,
        text: &StatementText<'_>,
        class: Class,
        server: &mut ServerStatements,
    ) {
        if class.intersects(Class::DEALLOCATES) {
            server.doubt();
            self.clears = !text.extended && clears_all(text.sql);
        }
    }

    /// What a message of this cycle does with a statement.
    pub fn named(&mut self, named: &Named<'_>, cycle: u64, names: &mut ClientStatements) {
        match *named {
            Named::Parse { name, .. } if !name.is_empty() => {
                self.replaced = names.get(name).cloned();
            }
            Named::Bind { name, ordinal } => {
                let bound = names.get(name);
                if let Some(bound) = bound.filter(|one| one.class.intersects(Class::DEALLOCATES)) {
                    self.deallocates = Some(Deallocates {
                        cycle,
                        // The Execute comes behind it.
                        ordinal: ordinal + 1,
                        all: clears_all(bound.sql()),
                    });
                }
            }
            Named::Query { ordinal } if std::mem::take(&mut self.clears) => {
                names.clear_at(cycle, ordinal);
            }
            _ => {}
        }
        names.observe(named, cycle);
    }

    /// Takes the next part of the client's stream.
    pub fn client(
        &mut self,
        part: Part<'_>,
        names: &mut ClientStatements,
        transaction: Transaction,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Step {
        if part.first {
            self.passing = !matches!(part.tag, b'P' | b'B' | b'D' | b'C');
            self.held.clear();
            match part.tag {
                b'Q' => {
                    server.unnamed = false;
                    server.coming.clear();
                    self.large = None;
                }
                b'S' | b'F' => server.coming.clear(),
                _ => {}
            }
        }
        let step = self.step(part, names, transaction, server, out);
        if part.last && std::mem::take(&mut self.unnamed) {
            self.large = names.get(b"").is_none().then_some(Large::Parsed);
        }
        if part.last {
            self.replaced = None;
            if let Some(behind) = self.deallocates.take() {
                // The statement itself may be among those that end.
                server.doubt();
                if behind.all {
                    names.clear_at(behind.cycle, behind.ordinal);
                }
            }
        }
        step
    }

    fn step(
        &mut self,
        part: Part<'_>,
        names: &ClientStatements,
        transaction: Transaction,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Step {
        if self.passing {
            return Step::Pass;
        }
        if self.held.is_empty() {
            return match self.head(part, part.bytes, names, transaction, server, out) {
                Head::Pass => self.pass(),
                Head::Replaced => self.replaced(),
                Head::More => {
                    self.held.extend_from_slice(part.bytes);
                    Step::Replaced
                }
                Head::TooLong => Step::TooLong,
            };
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(part.bytes);
        match self.head(part, &held, names, transaction, server, out) {
            Head::Pass => {
                out.extend_from_slice(&held);
                self.replaced()
            }
            Head::Replaced => self.replaced(),
            Head::More => {
                self.held = held;
                Step::Replaced
            }
            Head::TooLong => Step::TooLong,
        }
    }

    /// Whether the client must keep its connection for now: its unnamed statement cannot be carried to another, and it is still to
    /// be bound.
    pub fn awaits_bind(&self) -> bool {
        self.large == Some(Large::Parsed)
    }

    /// The connection is given back, or something has failed: perhaps the large statement.
    pub fn forget_large(&mut self) {
        self.large = None;
    }

    /// Whether the client must keep its connection from now on: a statement of its cannot be carried to another. Tells it once.
    pub fn take_pin(&mut self) -> bool {
        std::mem::take(&mut self.pin)
    }

    fn pass(&mut self) -> Step {
        self.passing = true;
        Step::Pass
    }

    fn replaced(&mut self) -> Step {
        self.passing = true;
        Step::Replaced
    }
}
