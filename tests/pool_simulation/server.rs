//! One connection of a server that knows settings, transactions, prepared statements and errors. What it skips, what an error
//! ends and what outlives a transaction is as PostgreSQL has it (`postgres_pooling_statements.rs` holds the same scripts against
//! the real one).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use parhelion::testing::pg_wire::message;

use crate::pool_script::Texts;

/// What [`Server`] understands.
pub const TEXTS: Texts = Texts {
    good: &["select 1", "select 2", "select 3"],
    bad: "bad",
    fails: "fail",
    settings: ["x", "y"],
    undoes_settings: true,
};

fn text(body: &[u8]) -> (String, &[u8]) {
    let end = body.iter().position(|byte| *byte == 0).unwrap();
    let text = String::from_utf8(body[..end].to_vec()).unwrap();
    (text, &body[end + 1..])
}

/// Takes a whole message off the front.
pub fn split_message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, _) = bytes.split_first_chunk::<5>()?;
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1;
    bytes.split_at_checked(len)
}

type Settings = BTreeMap<String, String>;

#[derive(Default)]
pub struct Server {
    statements: BTreeMap<String, String>,
    portal: Option<String>,
    settings: Settings,
    /// Whether it has failed, and the settings to go back to.
    transaction: Option<(bool, Settings)>,
    /// An error: everything up to the next Sync is passed over.
    skipping: bool,
}

impl Server {
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    pub fn has_prepared(&self, name: &str) -> bool {
        self.statements.contains_key(name)
    }

    fn failed(&self) -> bool {
        self.transaction.as_ref().is_some_and(|open| open.0)
    }

    /// Takes a stream of whole messages.
    pub fn stream(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some((message, rest)) = split_message(bytes) {
            self.receive(message, &mut out);
            bytes = rest;
        }
        assert!(bytes.is_empty(), "half a message");
        out
    }

    /// Takes one message.
    pub fn receive(&mut self, message_: &[u8], out: &mut Vec<u8>) {
        let (tag, body) = (message_[0], &message_[5..]);
        match tag {
            b'S' => {
                self.skipping = false;
                self.portal = None;
                self.ready(out);
            }
            _ if self.skipping => {}
            b'Q' => {
                let (sql, _) = text(body);
                self.portal = None;
                self.statements.remove("");
                self.run(&sql, out);
                self.skipping = false;
                self.ready(out);
            }
            b'P' => self.parse(body, out),
            b'B' => {
                let (_, rest) = text(body);
                let (name, _) = text(rest);
                match self.statements.get(&name).cloned() {
                    None => self.error("26000", out),
                    Some(_) if self.failed() => self.error("25P02", out),
                    Some(sql) => {
                        self.portal = Some(sql);
                        out.extend(message(b'2', b""));
                    }
                }
            }
            b'D' => {
                let (name, _) = text(&body[1..]);
                match self.statements.get(&name) {
                    None => self.error("26000", out),
                    Some(sql) if !sql.starts_with("select") => out.extend(message(b'n', b"")),
                    Some(_) if self.failed() => self.error("25P02", out),
                    Some(sql) => out.extend(message(b'T', sql.as_bytes())),
                }
            }
            b'H' => {}
            b'E' => match self.portal.take() {
                None => self.error("34000", out),
                Some(sql) => self.run(&sql, out),
            },
            b'C' => {
                self.statements.remove(&text(&body[1..]).0);
                out.extend(message(b'3', b""));
            }
            other => panic!("{other}"),
        }
    }

    fn parse(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let (name, rest) = text(body);
        let (sql, _) = text(rest);
        if name.is_empty() {
            self.statements.remove("");
        }
        if sql.starts_with("bad") {
            self.error("42601", out);
        } else if self.failed() {
            self.error("25P02", out);
        } else {
            match self.statements.entry(name) {
                Entry::Occupied(_) => self.error("42P05", out),
                Entry::Vacant(free) => {
                    free.insert(sql);
                    out.extend(message(b'1', b""));
                }
            }
        }
    }

    fn ready(&self, out: &mut Vec<u8>) {
        let status = match &self.transaction {
            None => b"I",
            Some((false, _)) => b"T",
            Some((true, _)) => b"E",
        };
        out.extend(message(b'Z', status));
    }

    fn error(&mut self, code: &str, out: &mut Vec<u8>) {
        self.skipping = true;
        self.portal = None;
        if let Some(open) = &mut self.transaction {
            open.0 = true;
        }
        let body = format!("SERROR\0VERROR\0C{code}\0\0");
        out.extend(message(b'E', body.as_bytes()));
    }

    /// Runs a statement.
    pub fn run(&mut self, sql: &str, out: &mut Vec<u8>) {
        let lower = sql.to_ascii_lowercase();
        if self.failed() && !matches!(lower.as_str(), "rollback" | "commit") {
            return self.error("25P02", out);
        }
        let words: Vec<&str> = sql.split_ascii_whitespace().collect();
        let tag = match (lower.split(' ').next().unwrap_or_default(), &words[..]) {
            ("begin", _) => {
                let settings = &self.settings;
                self.transaction
                    .get_or_insert_with(|| (false, settings.clone()));
                "BEGIN"
            }
            ("commit", _) => match self.transaction.take() {
                Some((true, before)) => {
                    self.settings = before;
                    "ROLLBACK"
                }
                _ => "COMMIT",
            },
            ("rollback", _) => {
                if let Some((_, before)) = self.transaction.take() {
                    self.settings = before;
                }
                "ROLLBACK"
            }
            ("set", [_, name, _, value]) => {
                let value = value.trim_matches('\'');
                let name = name.trim_matches('"');
                self.settings.insert(name.to_owned(), value.to_owned());
                "SET"
            }
            ("reset", [_, name]) => {
                self.settings.remove(name.trim_matches('"'));
                "RESET"
            }
            ("discard", _) => {
                self.statements.clear();
                self.settings.clear();
                "DISCARD ALL"
            }
            ("deallocate", _) => {
                self.statements.retain(|name, _| name.is_empty());
                "DEALLOCATE ALL"
            }
            ("fail", _) => return self.error("22012", out),
            // What it says of itself shows whose session it is.
            ("select", _) => {
                let row = format!("{sql} {:?}", self.settings);
                out.extend(message(b'D', row.as_bytes()));
                "SELECT 1"
            }
            other => panic!("{other:?}"),
        };
        out.extend(message(b'C', format!("{tag}\0").as_bytes()));
    }
}
