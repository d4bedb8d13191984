//! A mirror that writes down what it received. It knows nothing of Parhelion's counters: the ledger
//! is judged by its notes.

use std::collections::BTreeMap;

use super::source::{Seen, UnitSource};

#[derive(Default)]
struct Connection {
    /// What came since the last whole unit.
    stream: Vec<u8>,
    /// Whether the unit in `stream` is in `touched` and, once known, in `last`.
    counted: bool,
    named: bool,
    /// Units that are whole and wait for their answer.
    unanswered: u64,
}

#[derive(Default)]
pub struct Witness {
    connections: BTreeMap<usize, Connection>,
    /// The latest unit of each client.
    last: BTreeMap<u64, u64>,
    /// Units of which at least one byte came.
    pub touched: u64,
    /// Units that came whole and were answered.
    pub answered: u64,
    /// Units that a lost connection cut.
    pub cut: u64,
    pub up: bool,
}

impl Witness {
    /// Up, and nothing received.
    pub fn new() -> Self {
        Witness {
            up: true,
            ..Witness::default()
        }
    }

    pub fn accept(&mut self, slot: usize) {
        let before = self.connections.insert(slot, Connection::default());
        assert!(before.is_none(), "slot {slot} was opened twice");
    }

    pub fn receive(&mut self, slot: usize, bytes: &[u8], source: &impl UnitSource) {
        let connection = self.connections.get_mut(&slot).expect("an open connection");
        connection.stream.extend_from_slice(bytes);
        while !connection.stream.is_empty() {
            if !connection.counted {
                connection.counted = true;
                self.touched += 1;
            }
            let (named, whole) = match source.recognise(&connection.stream) {
                Seen::Foreign => panic!("the mirror received what is not the start of a unit"),
                Seen::Part(None) => return,
                Seen::Part(Some(named)) => (named, None),
                Seen::Whole { client, seq, len } => ((client, seq), Some(len)),
            };
            if !connection.named {
                connection.named = true;
                let last = self.last.insert(named.0, named.1);
                assert!(
                    last.is_none_or(|last| last < named.1),
                    "client {}: unit {} came after unit {last:?}",
                    named.0,
                    named.1
                );
            }
            let Some(len) = whole else { return };
            connection.stream.drain(..len);
            (connection.counted, connection.named) = (false, false);
            connection.unanswered += 1;
        }
    }

    /// The mirror answers everything that has come.
    pub fn answer(&mut self, slot: usize) {
        if let Some(connection) = self.connections.get_mut(&slot) {
            self.answered += std::mem::take(&mut connection.unanswered);
        }
    }

    pub fn close(&mut self, slot: usize) {
        if let Some(connection) = self.connections.remove(&slot) {
            self.cut += u64::from(connection.counted);
        }
    }
}
