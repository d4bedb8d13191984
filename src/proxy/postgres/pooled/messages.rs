//! The bytes of both directions while the client has a connection: renamed, read along for what the session becomes, sent on.

use std::ops::Range;

use super::{Ended, Pooled};
use crate::metrics;
use crate::protocol::postgres::pinning::{self, Reset, begins_with};
use crate::protocol::postgres::rename::{Part, Reply, Step, Transaction};
use crate::protocol::postgres::sql;
use crate::protocol::postgres::tracker::{ClientEvent, ServerEvent, Violation};
use crate::proxy::postgres::assembler::{Surroundings, engine_class};
use crate::proxy::postgres::server_pool::{Lease, Server};
use crate::ring::Chunk;

impl Pooled {
    /// Sends on what the client sent; whether it said good-bye.
    pub(super) fn client_bytes(&mut self, chunk: &Chunk) -> Result<bool, Ended> {
        let counters = self.context.metrics.listener(metrics::Protocol::Postgres);
        counters.client_bytes_in.add(chunk.len() as u64);
        let Some(mut lease) = self.lease.take() else {
            return Ok(false);
        };
        let result = self.client_messages(chunk, &mut lease);
        self.lease = Some(lease);
        result
    }

    fn client_messages(&mut self, chunk: &Chunk, lease: &mut Lease) -> Result<bool, Ended> {
        let server = lease.server();
        // `start..at` goes on as it is.
        let (mut start, mut at) = (0, 0);
        let mut out = Vec::new();
        while at < chunk.len() {
            let first = !self.from_client.in_message();
            let advance = self.from_client.advance(&chunk[at..])?;
            let end = at + advance.consumed;
            let tag = self.from_client.tag().unwrap_or_default();
            if tag == b'X' {
                server.socket.send(chunk.slice(start..at));
                return Ok(true);
            }
            self.observe_client(chunk, at..end, server)?;
            let part = Part {
                tag,
                bytes: &chunk[at..end],
                first,
                last: advance.done,
            };
            let transaction = Transaction::of(&self.tracker);
            let step = self.renamer.client(
                part,
                &mut self.names,
                transaction,
                &mut server.statements,
                &mut out,
            );
            server.statements.sent(self.tracker.newest_cycle());
            self.pinned |= self.renamer.take_pin();
            match step {
                Step::Pass if out.is_empty() => {}
                Step::Pass => {
                    // What was made goes first, then the message itself.
                    server.socket.send(chunk.slice(start..at));
                    server.socket.write(&out);
                    start = at;
                }
                Step::Replaced => {
                    server.socket.send(chunk.slice(start..at));
                    server.socket.write(&out);
                    start = end;
                }
                Step::TooLong => return Err(Ended::TooLong),
            }
            out.clear();
            at = end;
        }
        server.socket.send(chunk.slice(start..at));
        Ok(false)
    }

    /// Reads a piece of one message along.
    fn observe_client(
        &mut self,
        chunk: &Chunk,
        piece: Range<usize>,
        server: &mut Server,
    ) -> Result<(), Ended> {
        let around = Surroundings {
            mirrors: &self.mirrors,
            ring: &self.context.ring,
            random: &self.context.random,
            now_ns: self.context.ring.now_ns(),
        };
        let (assembler, carried, names) = (&mut self.assembler, &mut self.carried, &mut self.names);
        let renamer = &mut self.renamer;
        let (mirrored, offset) = (self.mirrored, piece.start);
        let (mut pins, mut changes, mut unknown) = (false, false, false);
        let (mut discards, mut resets) = (false, None);
        let began_ns = &mut self.began_ns;
        self.tracker
            .client(&chunk[piece], &mut |event| match event {
                ClientEvent::Opened { cycle } => {
                    if assembler.is_quiet() {
                        *began_ns = around.now_ns;
                    }
                    assembler.opened(cycle, carried, &around);
                }
                ClientEvent::Bytes { range, .. } if mirrored => {
                    let range = offset + range.start..offset + range.end;
                    assembler.bytes(&chunk.slice(range), &around);
                }
                ClientEvent::Statement { cycle, text } => {
                    let class = text.class();
                    let traces = !text.extended && carried.statement(text.sql, class, cycle);
                    assembler.statement(text.sql, engine_class(class), traces);
                    pins |= pinning::pins(text.sql);
                    changes |= class.intersects(sql::Class::SESSION | sql::Class::DEALLOCATES);
                    unknown |= class.intersects(sql::Class::UNKNOWN);
                    discards |= begins_with(text.sql, "discard");
                    resets = Reset::of(text.sql).or(resets.take());
                    renamer.statement(&text, class, &mut server.statements);
                }
                ClientEvent::Named { cycle, named } => {
                    renamer.named(&named, cycle, names);
                    let traces = carried.named(&named, cycle);
                    assembler.named(&named, carried, traces);
                }
                _ => {}
            })?;
        self.pinned |= pins;
        self.changes |= changes;
        self.observed |= changes || unknown;
        self.discards |= discards;
        // RESET returns to what the connection began with, which is not what the client's startup packet says.
        self.doubtful |= resets.is_some();
        self.resets = resets.or(self.resets.take());
        Ok(())
    }

    /// Sends on what the primary sent.
    pub(super) fn server_bytes(&mut self, chunk: &Chunk) -> Result<(), Ended> {
        let counters = self.context.metrics.listener(metrics::Protocol::Postgres);
        counters.client_bytes_out.add(chunk.len() as u64);
        let Some(mut lease) = self.lease.take() else {
            return Ok(());
        };
        let result = self.server_messages(chunk, &mut lease);
        self.lease = Some(lease);
        result?;
        if self.tracker.idle() && !self.from_client.in_message() {
            self.settle();
        }
        Ok(())
    }

    fn server_messages(&mut self, chunk: &Chunk, lease: &mut Lease) -> Result<(), Ended> {
        let (mut start, mut at) = (0, 0);
        while at < chunk.len() {
            let first = !self.from_server.in_message();
            let advance = self.from_server.advance(&chunk[at..])?;
            let end = at + advance.consumed;
            let tag = self.from_server.tag().unwrap_or_default();
            if first {
                self.reply = lease.server().statements.reply(tag);
            }
            if self.reply != Reply::Pass {
                self.forward(chunk.slice(start..at), lease)?;
                start = end;
                if let (Reply::As(other), true) = (self.reply, advance.done) {
                    // Both messages have no body.
                    self.forward(Chunk::from(vec![other, 0, 0, 0, 4]), lease)?;
                }
            } else if tag == b'Z' && advance.done {
                self.forward(chunk.slice(start..end), lease)?;
                start = end;
            }
            at = end;
        }
        self.forward(chunk.slice(start..at), lease)
    }

    /// Bytes for the client.
    fn forward(&mut self, bytes: Chunk, lease: &mut Lease) -> Result<(), Ended> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.observe_server(&bytes, lease)?;
        self.client.send(bytes);
        Ok(())
    }

    fn observe_server(&mut self, bytes: &Chunk, lease: &mut Lease) -> Result<(), Violation> {
        let around = Surroundings {
            mirrors: &self.mirrors,
            ring: &self.context.ring,
            random: &self.context.random,
            now_ns: self.context.ring.now_ns(),
        };
        let (assembler, carried, names) = (&mut self.assembler, &mut self.carried, &mut self.names);
        let server = lease.server();
        let (source, mirrored) = (&self.source, self.mirrored);
        let (began_ns, failed) = (&mut self.began_ns, &mut self.failed);
        self.tracker.server(bytes, &mut |event| match event {
            ServerEvent::ParameterStatus { name, value } => {
                carried.parameter_status(name, value);
                server.parameter_status(name, value);
            }
            ServerEvent::Rows { cycle, digest } => *digest &= assembler.wants_digest(cycle),
            ServerEvent::StatementDone { cycle, outcome } => {
                carried.statement_done(outcome);
                if let Some(code) = outcome.sqlstate() {
                    *failed = true;
                    let word = metrics::ErrorWord::of_sqlstate(code.as_str().as_bytes());
                    source.metrics.errors.count(word);
                }
                assembler.statement_done(cycle, outcome, around.now_ns);
            }
            ServerEvent::CycleDone(done) => {
                server.statements.cycle_done(done.cycle, done.had_error);
                names.settle(&done);
                if assembler.cycle_done(&done, carried, &around) {
                    source.metrics.requests.add(1);
                    if !mirrored {
                        source.mirrors.exclude();
                    }
                    let latency = around.now_ns.saturating_sub(*began_ns);
                    source.metrics.latency.record(latency);
                    *began_ns = around.now_ns;
                }
            }
            _ => {}
        })
    }
}
