//! The admin console: a Postgres session whose statements the control thread answers.
//!
//! Nothing is carried out here: a statement goes to the control thread through a bounded channel, its answer comes back
//! as a message to this core. The core itself never waits. Source of the messages: PostgreSQL documentation,
//! "Message Formats".

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::OnceLock;

use serde_json::Value;
use tokio::sync::mpsc;

use super::handshake::Hello;
use crate::config::{Config, User};
use crate::control::Who;
use crate::control::admin_sql::{self, AdminError, Answer};
use crate::control::listing::{Column, ColumnType};
use crate::limits::{
    ADMIN_ANSWER_TIMEOUT, ADMIN_MESSAGE_BYTES_MAX, ADMIN_PREPARED_MAX, SOCKET_SEND_BYTES,
};
use crate::protocol::postgres::startup::{Severity, encode_error, encode_error_with_hint};
use crate::proxy::Context;
use crate::proxy::services::Services;
use crate::ring::{Notify, Socket};

/// The database that is always the console; the config refuses a database of this name.
const ADMIN: &[u8] = b"admin";

/// Names by which operators of other poolers look for it; a configured database of such a name comes first.
const ALIASES: [&[u8]; 3] = [b"parhelion", b"pgdog", b"pgbouncer"];

/// A statement on its way to the control thread.
#[derive(Debug)]
pub struct AdminRequest {
    /// Index of the core that asks.
    pub core: usize,
    /// What the answer shall carry.
    pub ticket: u64,
    /// Who asks.
    pub who: Who,
    /// One statement.
    pub sql: String,
}

/// The way to the control thread, set once it listens.
pub type AdminDoor = OnceLock<mpsc::Sender<AdminRequest>>;

/// Answers on their way to the sessions of one core.
#[derive(Default)]
pub struct AdminInbox {
    next: Cell<u64>,
    waiting: RefCell<HashMap<u64, Rc<Waiting>>>,
}

#[derive(Default)]
struct Waiting {
    answer: RefCell<Option<Answer>>,
    arrived: Notify,
}

impl AdminInbox {
    /// Hands an answer to the session that waits for it, if it still does.
    pub fn deliver(&self, ticket: u64, answer: Answer) {
        if let Some(waiting) = self.waiting.borrow_mut().remove(&ticket) {
            *waiting.answer.borrow_mut() = Some(answer);
            waiting.arrived.notify();
        }
    }
}

/// Whether a client that names this database wants the console.
pub(super) fn is_wanted(
    config: &Config,
    database: &[u8],
    listener_database: Option<usize>,
) -> bool {
    let alias = || {
        ALIASES.contains(&database)
            && std::str::from_utf8(database).is_ok_and(|name| config.database_index(name).is_none())
    };
    // On a listener with a database of its own clients may name any database that the server has.
    database == ADMIN || (listener_database.is_none() && alias())
}

/// Serves a console to its end.
pub(super) async fn serve(
    context: &Rc<Context>,
    services: &Rc<Services>,
    client: &Socket,
    hello: &Hello,
) {
    let config = context.config.borrow().clone();
    let peer = client.peer();
    let is_local = peer.is_none_or(|peer| peer.ip().to_canonical().is_loopback());
    let admins: Vec<&User> = config
        .users
        .iter()
        .filter(|user| user.database.is_none())
        .collect();
    let user = String::from_utf8_lossy(hello.startup.user().unwrap_or_default()).into_owned();
    let peer = peer.map_or_else(|| "unix".to_owned(), |peer| peer.to_string());
    if let Err(refusal) = admit(is_local, &admins, &user) {
        tracing::warn!(peer, user, "an admin console was refused");
        client.write(&refusal);
        return;
    }
    if !admins.is_empty() {
        let text = "admin logins are not part of this build";
        client.write(&encode_error(Severity::Fatal, "0A000", text));
        return;
    }
    tracing::debug!(peer, user, "an admin console was opened");
    client.write(&greeting());
    let mut session = Session {
        context,
        services,
        client,
        who: Who::new("admin", format!("{user}@{peer}")),
        prepared: HashMap::new(),
        portals: HashMap::new(),
        failed: false,
    };
    session.run().await;
}

/// Without admins in users.toml this host is trusted and nobody else; with them everybody logs in.
fn admit(is_local: bool, admins: &[&User], user: &str) -> Result<(), Vec<u8>> {
    let fatal = |code, message: &str, hint: &str| {
        Err(encode_error_with_hint(Severity::Fatal, code, message, hint))
    };
    match (admins.is_empty(), is_local) {
        (true, true) => Ok(()),
        (true, false) => fatal(
            "28000",
            "the admin console answers to this host only",
            "connect from the host itself, or name an admin in users.toml with database = \"admin\"",
        ),
        (false, _) if admins.iter().any(|admin| admin.name == user) => Ok(()),
        (false, _) => fatal(
            "28P01",
            &format!("password authentication failed for user \"{user}\""),
            "admins are the users of users.toml with database = \"admin\"",
        ),
    }
}

fn greeting() -> Vec<u8> {
    let mut out = message(b'R', &0u32.to_be_bytes());
    let version = concat!("16.0 (parhelion ", env!("CARGO_PKG_VERSION"), ")");
    for (name, value) in [
        ("server_version", version),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
    ] {
        out.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    // A key that fits no backend: there is nothing to cancel here.
    out.extend(message(b'K', &[0; 8]));
    out.extend(READY);
    out
}

/// ReadyForQuery, idle.
const READY: [u8; 6] = [b'Z', 0, 0, 0, 5, b'I'];

struct Session<'a> {
    context: &'a Rc<Context>,
    services: &'a Rc<Services>,
    client: &'a Socket,
    who: Who,
    /// Statements by name.
    prepared: HashMap<Vec<u8>, String>,
    /// Bound statements by portal, with the result formats asked for.
    portals: HashMap<Vec<u8>, (String, Vec<u16>)>,
    /// An extended-protocol message failed: the rest is skipped up to Sync.
    failed: bool,
}

impl Session<'_> {
    async fn run(&mut self) {
        let mut buffer = Vec::new();
        loop {
            match take_message(&mut buffer) {
                Ok(Some((tag, body))) => {
                    if !self.take(tag, &body).await {
                        return;
                    }
                    if self.client.drained(SOCKET_SEND_BYTES).await.is_err() {
                        return;
                    }
                }
                Ok(None) => match self.client.recv().await {
                    Ok(Some(chunk)) => buffer.extend_from_slice(&chunk),
                    Ok(None) | Err(_) => return,
                },
                Err(()) => {
                    let text = "a message is longer than the admin console takes";
                    self.client
                        .write(&encode_error(Severity::Fatal, "08P01", text));
                    return;
                }
            }
        }
    }

    /// Answers one message; false ends the session.
    async fn take(&mut self, tag: u8, body: &[u8]) -> bool {
        match tag {
            b'X' => return false,
            b'Q' => self.query(body).await,
            b'S' => {
                self.failed = false;
                self.client.write(&READY);
            }
            // Flush: everything is sent at once anyway. Copy messages after an error are to be ignored.
            b'H' | b'd' | b'c' | b'f' => {}
            b'P' | b'B' | b'D' | b'E' | b'C' | b'F' if self.failed => {}
            b'P' | b'B' | b'D' | b'E' | b'C' => match self.extended(tag, body).await {
                Ok(answer) => self.client.write(&answer),
                Err(error) => {
                    self.failed = true;
                    self.client.write(&encode(&error));
                }
            },
            b'F' => {
                self.client
                    .write(&encode(&malformed("there are no functions here")));
                self.client.write(&READY);
            }
            _ => {
                let text = "an unknown message type";
                self.client
                    .write(&encode_error(Severity::Fatal, "08P01", text));
                return false;
            }
        }
        true
    }

    async fn query(&mut self, body: &[u8]) {
        let mut out = Vec::new();
        let text = body.split(|byte| *byte == 0).next().unwrap_or_default();
        match std::str::from_utf8(text) {
            Ok(sql) => {
                let statements = admin_sql::split(sql);
                if statements.is_empty() {
                    out.extend(message(b'I', b""));
                }
                for statement in statements {
                    let answer = self.ask(statement).await;
                    if let (Answer::Rows(_), Ok(Some(columns))) =
                        (&answer, admin_sql::describe(statement))
                    {
                        out.extend(row_description(columns, &[]));
                    }
                    let is_error = matches!(answer, Answer::Error(_));
                    out.extend(encode_answer(&answer, statement, &[]));
                    if is_error {
                        break;
                    }
                }
            }
            Err(_) => out.extend(encode(&malformed("the statement is not UTF-8"))),
        }
        out.extend(READY);
        self.client.write(&out);
    }

    async fn extended(&mut self, tag: u8, body: &[u8]) -> Result<Vec<u8>, AdminError> {
        let mut fields = Fields(body);
        match tag {
            b'P' => {
                let name = fields.text()?.to_vec();
                let sql = std::str::from_utf8(fields.text()?)
                    .map_err(|_| malformed("the statement is not UTF-8"))?;
                // Known to be a statement of ours before it is kept; an empty one is allowed, as in Postgres.
                if !sql.trim().is_empty() {
                    admin_sql::describe(sql)?;
                }
                if self.prepared.len() >= ADMIN_PREPARED_MAX && !self.prepared.contains_key(&name) {
                    return Err(too_many());
                }
                self.prepared.insert(name, sql.to_owned());
                Ok(message(b'1', b""))
            }
            b'B' => {
                let portal = fields.text()?.to_vec();
                let statement = fields.text()?;
                let sql = self.prepared.get(statement).cloned();
                let sql = sql.ok_or_else(|| missing("prepared statement", statement))?;
                for _ in 0..fields.number()? {
                    fields.number()?;
                }
                if fields.number()? != 0 {
                    return Err(malformed(
                        "statements of the admin console take no parameters",
                    ));
                }
                let formats = fields.number()?;
                let formats: Result<Vec<u16>, _> = (0..formats).map(|_| fields.number()).collect();
                if self.portals.len() >= ADMIN_PREPARED_MAX && !self.portals.contains_key(&portal) {
                    return Err(too_many());
                }
                self.portals.insert(portal, (sql, formats?));
                Ok(message(b'2', b""))
            }
            b'D' => self.describe(&mut fields),
            b'E' => {
                let portal = fields.text()?;
                let found = self.portals.get(portal).cloned();
                let (sql, formats) = found.ok_or_else(|| missing("portal", portal))?;
                if sql.trim().is_empty() {
                    return Ok(message(b'I', b""));
                }
                match self.ask(&sql).await {
                    Answer::Error(error) => Err(error),
                    answer => Ok(encode_answer(&answer, &sql, &formats)),
                }
            }
            _ => {
                let kind = fields.byte()?;
                let name = fields.text()?;
                match kind {
                    b'S' => self.prepared.remove(name).map(drop),
                    _ => self.portals.remove(name).map(drop),
                };
                Ok(message(b'3', b""))
            }
        }
    }

    fn describe(&self, fields: &mut Fields<'_>) -> Result<Vec<u8>, AdminError> {
        let kind = fields.byte()?;
        let name = fields.text()?;
        let (sql, formats, mut out) = if kind == b'S' {
            let sql = self.prepared.get(name);
            let sql = sql.ok_or_else(|| missing("prepared statement", name))?;
            (sql, &[][..], message(b't', &[0, 0]))
        } else {
            let portal = self
                .portals
                .get(name)
                .ok_or_else(|| missing("portal", name))?;
            (&portal.0, &portal.1[..], Vec::new())
        };
        let columns = match sql.trim().is_empty() {
            true => None,
            false => admin_sql::describe(sql)?,
        };
        match columns {
            Some(columns) => out.extend(row_description(columns, formats)),
            None => out.extend(message(b'n', b"")),
        }
        Ok(out)
    }

    /// Has the control thread carry out a statement and waits for its answer.
    async fn ask(&self, sql: &str) -> Answer {
        let busy = |text: &str| {
            Answer::Error(AdminError {
                code: "53300",
                message: text.to_owned(),
                hint: "try again in a moment".to_owned(),
            })
        };
        let inbox = &self.services.admin;
        let ticket = inbox.next.get();
        inbox.next.set(ticket + 1);
        let waiting = Rc::<Waiting>::default();
        inbox.waiting.borrow_mut().insert(ticket, waiting.clone());
        let request = AdminRequest {
            core: self.context.core,
            ticket,
            who: self.who.clone(),
            sql: sql.to_owned(),
        };
        let door = self.services.shared.admin.get();
        if door.is_none_or(|door| door.try_send(request).is_err()) {
            inbox.waiting.borrow_mut().remove(&ticket);
            return busy("the control thread takes no more statements at this moment");
        }
        let ring = &self.context.ring;
        let _ = ring
            .timeout(ADMIN_ANSWER_TIMEOUT, waiting.arrived.notified())
            .await;
        inbox.waiting.borrow_mut().remove(&ticket);
        let answer = waiting.answer.borrow_mut().take();
        answer.unwrap_or_else(|| busy("the control thread did not answer in time"))
    }
}

/// Splits one typed message off, header excluded.
fn take_message(buffer: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, ()> {
    let &[tag, a, b, c, d, ..] = buffer.as_slice() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(4..=ADMIN_MESSAGE_BYTES_MAX).contains(&len) {
        return Err(());
    }
    if buffer.len() <= len {
        return Ok(None);
    }
    let body = buffer[5..=len].to_vec();
    buffer.drain(..=len);
    Ok(Some((tag, body)))
}

/// The fields of a message body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn text(&mut self) -> Result<&'a [u8], AdminError> {
        let end = self.0.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| malformed("a text is not terminated"))?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Ok(text)
    }

    fn byte(&mut self) -> Result<u8, AdminError> {
        let (first, rest) = self
            .0
            .split_first()
            .ok_or_else(|| malformed("a message is cut"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u16, AdminError> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }
}

fn malformed(message: &str) -> AdminError {
    AdminError {
        code: "08P01",
        message: message.to_owned(),
        hint: "SHOW HELP lists the statements".to_owned(),
    }
}

fn missing(what: &str, name: &[u8]) -> AdminError {
    AdminError {
        code: if what == "portal" { "34000" } else { "26000" },
        message: format!(
            "{what} \"{}\" does not exist",
            String::from_utf8_lossy(name)
        ),
        hint: "prepare and bind it first".to_owned(),
    }
}

fn too_many() -> AdminError {
    AdminError {
        code: "53400",
        message: format!("a console holds {ADMIN_PREPARED_MAX} prepared statements"),
        hint: "close some".to_owned(),
    }
}

fn encode(error: &AdminError) -> Vec<u8> {
    encode_error_with_hint(Severity::Error, error.code, &error.message, &error.hint)
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend(body);
    out
}

/// Result formats as Bind gives them: none for text, one for all, or one each.
fn format_of(formats: &[u16], column: usize) -> u16 {
    match formats {
        [] => 0,
        [all] => *all,
        each => each.get(column).copied().unwrap_or(0),
    }
}

fn row_description(columns: &[Column], formats: &[u16]) -> Vec<u8> {
    let mut body = (columns.len() as u16).to_be_bytes().to_vec();
    for (index, column) in columns.iter().enumerate() {
        body.extend(column.name.as_bytes());
        body.push(0);
        // No table, no column of one.
        body.extend([0; 6]);
        let (oid, size): (u32, i16) = match column.kind {
            ColumnType::Text => (25, -1),
            ColumnType::Integer => (20, 8),
            ColumnType::Float => (701, 8),
            ColumnType::Bool => (16, 1),
        };
        body.extend(oid.to_be_bytes());
        body.extend(size.to_be_bytes());
        body.extend((-1i32).to_be_bytes());
        body.extend(format_of(formats, index).to_be_bytes());
    }
    message(b'T', &body)
}

fn encode_answer(answer: &Answer, sql: &str, formats: &[u16]) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Answer::Error(error) => return encode(error),
        Answer::Done { tag, notice } => {
            if !notice.is_empty() {
                // A NoticeResponse has the fields of an error.
                let fields = format!(
                    "SNOTICE\0VNOTICE\0C00000\0M{}\0\0",
                    notice.replace('\0', "")
                );
                out.extend(message(b'N', fields.as_bytes()));
            }
            out.extend(message(b'C', format!("{tag}\0").as_bytes()));
        }
        Answer::Rows(rows) => {
            let columns = admin_sql::describe(sql).ok().flatten().unwrap_or_default();
            for row in rows {
                let mut body = (row.len() as u16).to_be_bytes().to_vec();
                for (index, value) in row.iter().enumerate() {
                    let kind = columns
                        .get(index)
                        .map_or(ColumnType::Text, |column| column.kind);
                    match encode_value(value, kind, format_of(formats, index) == 1) {
                        Some(bytes) => {
                            body.extend((bytes.len() as u32).to_be_bytes());
                            body.extend(bytes);
                        }
                        None => body.extend((-1i32).to_be_bytes()),
                    }
                }
                out.extend(message(b'D', &body));
            }
            out.extend(message(b'C', format!("SHOW {}\0", rows.len()).as_bytes()));
        }
    }
    out
}

fn encode_value(value: &Value, kind: ColumnType, binary: bool) -> Option<Vec<u8>> {
    if value.is_null() {
        return None;
    }
    Some(match (kind, binary) {
        (ColumnType::Integer, true) => value.as_i64().unwrap_or_default().to_be_bytes().to_vec(),
        (ColumnType::Float, true) => value.as_f64().unwrap_or_default().to_be_bytes().to_vec(),
        (ColumnType::Bool, true) => vec![u8::from(*value == true)],
        (ColumnType::Bool, false) => vec![if *value == true { b't' } else { b'f' }],
        _ => match value {
            Value::String(text) => text.bytes().filter(|byte| *byte != 0).collect(),
            other => other.to_string().into_bytes(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_and_a_claimed_length_reserves_nothing() {
        let mut buffer = message(b'Q', b"SHOW HELP\0");
        buffer.extend(b"S\0\0\0\x04Q\0");
        assert_eq!(
            take_message(&mut buffer),
            Ok(Some((b'Q', b"SHOW HELP\0".to_vec())))
        );
        assert_eq!(take_message(&mut buffer), Ok(Some((b'S', Vec::new()))));
        assert_eq!(take_message(&mut buffer), Ok(None));
        assert_eq!(take_message(&mut b"Q\x7f\xff\xff\xff".to_vec()), Err(()));
        assert_eq!(take_message(&mut b"Q\0\0\0\x03".to_vec()), Err(()));
    }

    #[test]
    fn this_host_is_trusted_only_while_no_admin_is_named() {
        let admin = User {
            name: "ops".to_owned(),
            database: None,
            password: None,
            scram_verifier: None,
        };
        assert!(admit(true, &[], "anybody").is_ok());
        assert!(admit(false, &[], "anybody").is_err());
        assert!(admit(true, &[&admin], "anybody").is_err());
        assert!(admit(false, &[&admin], "ops").is_ok());
    }
}
