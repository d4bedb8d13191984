//! The server direction of the tracker.

use super::super::digest::ColumnsHasher;
use super::super::startup::split_cstr;
use super::{
    AuthKind, CommandTag, CycleDone, Ending, Phase, Place, SERVER_CAPTURE_MAX, ServerEvent,
    ServerSide, Sqlstate, StatementOutcome, Tracker, TxStatus, Violation,
};
use crate::protocol::postgres::digest::RowsDigest;

type Sink<'s> = &'s mut dyn FnMut(ServerEvent<'_>);

/// One part of one server message.
#[derive(Clone, Copy)]
struct Part<'a> {
    tag: u8,
    offset: usize,
    bytes: &'a [u8],
    done: bool,
}

impl Tracker {
    /// Reads what the server sent next.
    pub fn server(&mut self, input: &[u8], on: Sink<'_>) -> Result<(), Violation> {
        let mut at = 0;
        while at < input.len() && self.phase != Phase::Replication {
            let advance = self
                .server
                .framer
                .advance(&input[at..])
                .map_err(Violation::ServerFrame)?;
            let tag = self.server.framer.tag().unwrap_or_default();
            let in_body = self.server.framer.body_len().is_some();
            let bytes = &input[at + advance.body_at..at + advance.consumed];
            at += advance.consumed;
            // A header that is still incomplete tells nothing; a body may be empty.
            if in_body && (advance.done || !bytes.is_empty()) {
                let part = Part {
                    tag,
                    offset: advance.body_offset,
                    bytes,
                    done: advance.done,
                };
                self.server_part(part, on)?;
            }
        }
        Ok(())
    }

    fn server_part(&mut self, part: Part<'_>, on: Sink<'_>) -> Result<(), Violation> {
        let unasked = self.phase == Phase::Ready && self.cycles.outstanding() == 0;
        if unasked && !matches!(part.tag, b'A' | b'N' | b'S' | b'E' | b'Z') {
            return Err(Violation::Unexpected(part.tag));
        }
        match part.tag {
            b'D' | b'd' | b'V' => self.row(part, on),
            b'T' => {
                self.server.description(part);
                if part.done {
                    self.cycles.answer();
                }
            }
            b'E' => {
                if self.server.error.feed(part.offset, part.bytes) && part.done {
                    self.error(on);
                } else if part.done {
                    return Err(Violation::Malformed(b'E'));
                }
            }
            b'C' | b'S' | b'K' | b'R' | b'Z' => return self.captured(part, on),
            _ if part.done => self.signal(part.tag, on),
            _ => {}
        }
        Ok(())
    }

    /// Messages whose body does not matter.
    fn signal(&mut self, tag: u8, on: Sink<'_>) {
        let cycle = self.cycles.head();
        match tag {
            b'1' | b'2' | b'3' | b'n' => self.cycles.answer(),
            b'I' => self.complete(b"(empty)", on),
            b's' => self.complete(b"(suspended)", on),
            b'N' => on(ServerEvent::Notice),
            b'A' => on(ServerEvent::Notification),
            b'v' => on(ServerEvent::NegotiateProtocol),
            b'G' => {
                self.cycles.copy_in_started();
                on(ServerEvent::CopyIn {
                    cycle: self.cycles.head(),
                });
            }
            b'H' => on(ServerEvent::CopyOut { cycle }),
            b'W' => {
                self.phase = Phase::Replication;
                on(ServerEvent::CopyBoth);
            }
            _ => {}
        }
    }

    /// A DataRow, CopyData or FunctionCallResponse.
    fn row(&mut self, part: Part<'_>, on: Sink<'_>) {
        let server = &mut self.server;
        if part.offset == 0 && server.rows == 0 && server.digest.is_none() {
            let mut digest = self.digest_preset;
            on(ServerEvent::Rows {
                cycle: self.cycles.head(),
                digest: &mut digest,
            });
            server.digest = digest.then(RowsDigest::default);
        }
        if let Some(digest) = &mut server.digest
            && let Some(row) = server.row_hasher.feed(part.offset, part.bytes, part.done)
        {
            digest.add(row);
        }
        if part.done {
            server.rows += 1;
            if part.tag == b'V' {
                self.complete(b"(function)", on);
            }
        }
    }

    fn captured(&mut self, part: Part<'_>, on: Sink<'_>) -> Result<(), Violation> {
        let mut capture = std::mem::take(&mut self.server.capture);
        let result = match capture.feed(part.offset, part.bytes, part.done, SERVER_CAPTURE_MAX) {
            Some((body, false)) => self.short_message(part.tag, body, on),
            Some((_, true)) if part.tag == b'S' => Ok(()),
            Some((_, true)) => Err(Violation::Malformed(part.tag)),
            None => Ok(()),
        };
        if part.done {
            capture.release();
        }
        self.server.capture = capture;
        result
    }

    fn short_message(&mut self, tag: u8, body: &[u8], on: Sink<'_>) -> Result<(), Violation> {
        let malformed = Violation::Malformed(tag);
        match tag {
            b'C' => {
                let (text, _) = split_cstr(body).ok_or(malformed)?;
                self.complete(text, on);
            }
            b'S' => {
                let (name, rest) = split_cstr(body).ok_or(malformed)?;
                let (value, _) = split_cstr(rest).ok_or(malformed)?;
                on(ServerEvent::ParameterStatus { name, value });
            }
            b'K' => {
                let (pid, key) = body.split_first_chunk::<4>().ok_or(malformed)?;
                if !(4..=256).contains(&key.len()) {
                    return Err(malformed);
                }
                on(ServerEvent::BackendKey {
                    pid: u32::from_be_bytes(*pid),
                    key,
                });
            }
            b'R' => {
                let (kind, _) = body.split_first_chunk::<4>().ok_or(malformed)?;
                self.authentication(u32::from_be_bytes(*kind), on);
            }
            _ => {
                let status = match body {
                    b"I" => TxStatus::Idle,
                    b"T" => TxStatus::InTransaction,
                    b"E" => TxStatus::Failed,
                    _ => return Err(malformed),
                };
                return self.ready(status, on);
            }
        }
        Ok(())
    }

    fn authentication(&mut self, kind: u32, on: Sink<'_>) {
        let kind = match kind {
            0 => {
                if self.phase == Phase::Auth {
                    self.phase = Phase::Starting;
                }
                return on(ServerEvent::Authenticated);
            }
            3 => AuthKind::Cleartext,
            5 => AuthKind::Md5,
            10 => AuthKind::Sasl,
            11 => AuthKind::SaslContinue,
            12 => AuthKind::SaslFinal,
            other => AuthKind::Other(other),
        };
        on(ServerEvent::AuthRequest(kind));
    }

    fn ready(&mut self, status: TxStatus, on: Sink<'_>) -> Result<(), Violation> {
        match self.phase {
            Phase::Auth => return Err(Violation::UnexpectedReady),
            Phase::Starting => {
                self.phase = Phase::Ready;
                self.status = status;
                on(ServerEvent::LoggedIn);
                return Ok(());
            }
            Phase::Ready | Phase::Replication => {}
        }
        let answered = self.cycles.answered();
        let done = self
            .cycles
            .ready()
            .map_err(|_| Violation::UnexpectedReady)?;
        self.status = status;
        let had_error = std::mem::take(&mut self.server.had_error);
        self.server.reset_result();
        let Some(cycle) = done else { return Ok(()) };
        let mut unfinished = 0;
        if self.cycles.outstanding() == 0 && self.client.place == Place::Continues {
            unfinished = self.client.framer.unfinished();
            self.client.place = Place::Stray;
        }
        on(ServerEvent::CycleDone(CycleDone {
            cycle,
            status,
            had_error,
            answered,
            unfinished,
        }));
        Ok(())
    }

    fn complete(&mut self, tag: &[u8], on: Sink<'_>) {
        self.cycles.answer();
        self.cycles.statement_done();
        self.outcome(Ending::Complete(CommandTag::new(tag)), on);
    }

    fn error(&mut self, on: Sink<'_>) {
        let sqlstate = self.server.error.sqlstate();
        let fatal = self.server.error.fatal();
        if self.phase == Phase::Ready && self.cycles.outstanding() > 0 {
            self.cycles.error();
            self.server.had_error = true;
            self.outcome(Ending::Error(sqlstate), on);
        }
        if fatal {
            on(ServerEvent::FatalError { sqlstate });
        }
    }

    fn outcome(&mut self, ending: Ending, on: Sink<'_>) {
        let server = &mut self.server;
        let digest = match server.digest {
            None if server.rows == 0 && self.digest_preset => Some(RowsDigest::default()),
            digest => digest,
        };
        let (rows, columns) = (server.rows, server.columns);
        server.reset_result();
        let outcome = StatementOutcome {
            ending,
            rows,
            columns,
            digest,
        };
        on(ServerEvent::StatementDone {
            cycle: self.cycles.head(),
            outcome: &outcome,
        });
    }
}

impl ServerSide {
    fn reset_result(&mut self) {
        self.columns = 0;
        self.rows = 0;
        self.digest = None;
    }

    fn description(&mut self, part: Part<'_>) {
        let hasher = self.columns_hasher.get_or_insert_with(ColumnsHasher::new);
        if let Some(columns) = hasher.feed(part.offset, part.bytes, part.done) {
            self.columns = columns;
        }
    }
}

/// Reads an ErrorResponse in parts: the SQLSTATE and whether the session ends.
#[derive(Debug, Default)]
pub(super) struct ErrorFields {
    code: [u8; 5],
    /// The first letters of the severity (`V`, never translated; before 9.6 only `S`).
    severity: [u8; 5],
    at: FieldPart,
}

#[derive(Debug, Default, Clone, Copy)]
enum FieldPart {
    #[default]
    Type,
    Value {
        field: u8,
        seen: usize,
    },
    End,
}

impl ErrorFields {
    /// Takes the next part; whether the message had its end by now.
    fn feed(&mut self, offset: usize, part: &[u8]) -> bool {
        if offset == 0 {
            *self = Self::default();
        }
        let mut rest = part;
        while let Some((&byte, tail)) = rest.split_first() {
            match self.at {
                FieldPart::Type if byte == 0 => self.at = FieldPart::End,
                FieldPart::Type => {
                    self.at = FieldPart::Value {
                        field: byte,
                        seen: 0,
                    }
                }
                FieldPart::Value { field, seen } => {
                    let end = memchr::memchr(0, rest);
                    let text = &rest[..end.unwrap_or(rest.len())];
                    self.take(field, seen, text);
                    if let Some(end) = end {
                        self.at = FieldPart::Type;
                        rest = &rest[end + 1..];
                    } else {
                        self.at = FieldPart::Value {
                            field,
                            seen: seen + text.len(),
                        };
                        rest = &[];
                    }
                    continue;
                }
                FieldPart::End => return false,
            }
            rest = tail;
        }
        matches!(self.at, FieldPart::End)
    }

    fn take(&mut self, field: u8, seen: usize, text: &[u8]) {
        let kept = match field {
            b'C' => &mut self.code,
            b'V' => &mut self.severity,
            b'S' if self.severity == [0; 5] || seen > 0 => &mut self.severity,
            _ => return,
        };
        if seen == 0 {
            *kept = [0; 5];
        }
        for (to, from) in kept.iter_mut().skip(seen).zip(text) {
            *to = *from;
        }
    }

    fn sqlstate(&self) -> Sqlstate {
        Sqlstate::new(&self.code)
    }

    fn fatal(&self) -> bool {
        matches!(&self.severity, b"FATAL" | b"PANIC")
    }
}
