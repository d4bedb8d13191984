//! One console: simple and extended queries, each statement asked of the control thread.

use std::collections::HashMap;
use std::rc::Rc;

use super::wire::{
    Fields, READY, encode, encode_answer, malformed, message, missing, row_description,
    take_message, too_many,
};
use super::{AdminRequest, Waiting};
use crate::control::Who;
use crate::control::admin_sql::{self, AdminError, Answer};
use crate::limits::{ADMIN_ANSWER_TIMEOUT, ADMIN_PREPARED_MAX, SOCKET_SEND_BYTES};
use crate::protocol::postgres::startup::{Severity, encode_error};
use crate::proxy::Context;
use crate::proxy::services::Services;
use crate::ring::Socket;

pub(super) struct Session<'a> {
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

impl<'a> Session<'a> {
    pub(super) fn new(
        context: &'a Rc<Context>,
        services: &'a Rc<Services>,
        client: &'a Socket,
        who: Who,
    ) -> Session<'a> {
        Session {
            context,
            services,
            client,
            who,
            prepared: HashMap::new(),
            portals: HashMap::new(),
            failed: false,
        }
    }

    pub(super) async fn run(&mut self) {
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
