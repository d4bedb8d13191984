//! Decides what becomes of a Parse, Bind, Describe or Close by the beginning of its bytes: the names in it are changed, and what
//! the connection lacks is prepared before it.

use super::server::{Reply, ServerStatements};
use super::{Large, Part, Renamer, Transaction};
use crate::protocol::postgres::startup::{push_message, split_cstr};
use crate::protocol::postgres::statements::{ClientStatements, mirror_name};
use crate::protocol::postgres::tracker::STATEMENT_CAPTURE_MAX;

/// Longest head of a message that is held until its names are known. PostgreSQL's own clients keep names under 64 bytes.
const HEAD_MAX: usize = 16 * 1024;
/// Type and length.
const HEADER_LEN: usize = 5;
/// Names no statement: a Close of it succeeds and does nothing.
const NO_STATEMENT: &[u8] = b"Sph_\0";

/// What was decided about a message.
pub(super) enum Head {
    Pass,
    Replaced,
    /// Nothing yet.
    More,
    TooLong,
}

impl Renamer {
    /// Decides about a message by its first bytes.
    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of `client`, passed on"
    )]
    pub(super) fn head(
        &mut self,
        part: Part<'_>,
        bytes: &[u8],
        names: &ClientStatements,
        transaction: Transaction,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Head {
        let decided = bytes.get(HEADER_LEN..).and_then(|body| match part.tag {
            b'P' => self.parse(part, body, names, transaction, server, out),
            b'B' => self.bind(bytes, body, names, server, out),
            b'D' => self.describe(part, body, names, server, out),
            _ => self.close(part, body, server),
        });
        match decided {
            Some(head) => head,
            None if part.last || bytes.len() > HEAD_MAX.max(STATEMENT_CAPTURE_MAX) => Head::TooLong,
            None => Head::More,
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of `client`, passed on"
    )]
    fn parse(
        &mut self,
        part: Part<'_>,
        body: &[u8],
        names: &ClientStatements,
        transaction: Transaction,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Option<Head> {
        let (name, _) = split_cstr(body)?;
        if name.is_empty() {
            server.unnamed = true;
            self.unnamed = true;
            server.expect(b'1', Reply::Pass, None);
            return Some(Head::Pass);
        }
        // The tracker has not kept what is longer: so `names` will not have it either.
        let too_large = body.len() > STATEMENT_CAPTURE_MAX;
        if !part.last && !too_large {
            return None;
        }
        let Some(statement) = names.get(name).filter(|_| !too_large) else {
            self.pin = true;
            server.expect(b'1', Reply::Pass, None);
            return Some(Head::Pass);
        };
        if let Some(old) = &self.replaced {
            // The name is taken: the server shall say so.
            if transaction != Transaction::Failed {
                server.ensure(old, out);
            }
            server.parse(old.id, &statement.content, Reply::Pass, None, out);
        } else if transaction == Transaction::Sound && server.has(statement.id) {
            push_message(out, b'C', NO_STATEMENT);
            server.expect(b'3', Reply::As(b'1'), None);
        } else {
            server.prepare(statement.id, &statement.content, Reply::Pass, out);
        }
        Some(Head::Replaced)
    }

    /// A Bind: the names come first, the rest goes on as it is.
    fn bind(
        &mut self,
        bytes: &[u8],
        body: &[u8],
        names: &ClientStatements,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Option<Head> {
        let (portal, rest) = split_cstr(body)?;
        let (name, rest) = split_cstr(rest)?;
        if name.is_empty() && self.large.is_some() {
            self.large = Some(Large::Bound);
        }
        let Some(new) = self.use_statement(name, names, server, out) else {
            return Some(Head::Pass);
        };
        let len = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]])
            .wrapping_add(new.len() as u32)
            .wrapping_sub(name.len() as u32);
        out.push(b'B');
        out.extend(len.to_be_bytes());
        for part in [portal, b"\0", new.as_bytes(), b"\0", rest] {
            out.extend_from_slice(part);
        }
        Some(Head::Replaced)
    }

    fn describe(
        &mut self,
        part: Part<'_>,
        body: &[u8],
        names: &ClientStatements,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Option<Head> {
        if body.first() == Some(&b'P') {
            return Some(Head::Pass);
        }
        if !part.last {
            return None;
        }
        let (name, rest) = split_cstr(body.get(1..)?)?;
        let Some(new) = self.use_statement(name, names, server, out) else {
            return Some(Head::Pass);
        };
        push_message(out, b'D', &[b"S", new.as_bytes(), b"\0", rest].concat());
        Some(Head::Replaced)
    }

    /// A Close: nothing on the server has this name, and closing nothing is no error.
    fn close(
        &mut self,
        part: Part<'_>,
        body: &[u8],
        server: &mut ServerStatements,
    ) -> Option<Head> {
        if !part.last {
            return None;
        }
        if body == b"S\0" {
            server.unnamed = false;
            self.large = None;
        }
        server.expect(b'3', Reply::Pass, None);
        Some(Head::Pass)
    }

    /// Sees to it that the statement of this name is there for a message that uses it, or that none is; the name to give it if it is
    /// another.
    fn use_statement(
        &self,
        name: &[u8],
        names: &ClientStatements,
        server: &mut ServerStatements,
        out: &mut Vec<u8>,
    ) -> Option<String> {
        let statement = names.get(name);
        if !name.is_empty() {
            let statement = statement?;
            server.ensure(statement, out);
            return Some(mirror_name(statement.id));
        }
        if server.unnamed || self.large.is_some() {
            return None;
        }
        server.unnamed = true;
        match statement {
            Some(statement) => {
                push_message(out, b'P', &[b"\0", &statement.content[..]].concat());
                server.expect(b'1', Reply::Drop, None);
            }
            None => {
                // What is there belongs to another client.
                push_message(out, b'C', b"S\0");
                server.expect(b'3', Reply::Drop, None);
            }
        }
        None
    }
}
