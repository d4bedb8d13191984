//! A client's pipeline on a mirror: units that it had under way together are sent together, on one connection; so are
//! units of any client with which the mirror is behind.
//!
//! One at a time, each with a round trip of its own, a mirror as fast as the primary would fall behind every client that
//! pipelines, and lose units for it; and it could never catch up with a client that waits for every answer. Sent together are only units that keep their session as it is and certainly end idle; any
//! other ends the run and goes alone, as [`super::mirror`] does it for clients that wait for their answers.

use std::collections::VecDeque;
use std::rc::Rc;

use futures_lite::future::or;
use smallvec::{SmallVec, smallvec};

use super::connection::{Broken, CANCEL_GRACE, Connection, Ran, Replaying};
use super::outcome::PostgresOutcome;
use crate::limits::SOCKET_SEND_BYTES;
use crate::mirror::dispatch::Ticket;
use crate::mirror::payload::Part;
use crate::mirror::unit::Unit;
use crate::protocol::postgres::pipelined::{PipelinedReplay, may_be_followed};
use crate::protocol::postgres::statements::rewrite_unit;
use crate::protocol::postgres::tracker::Sqlstate;
use crate::proxy::Context;
use crate::ring::Chunk;

type PgUnit = Unit<Chunk, PostgresOutcome>;
type PgTicket = Ticket<Chunk, PostgresOutcome>;

/// Whether a mirror may get `next` before it has answered `unit`: their client does not wait for answers either, or the mirror is
/// `behind`. A server works both off in the same order either way.
pub(super) fn follows(unit: &PgUnit, next: &PgUnit, behind: bool) -> bool {
    (behind || next.pipelined)
        && Rc::ptr_eq(&unit.outcome.before, &next.outcome.before)
        && is_plain(unit)
        && is_plain(next)
}

/// It came in one piece, leaves its session as it was, was not cancelled and ends idle wherever it runs.
fn is_plain(unit: &PgUnit) -> bool {
    let outcome = &unit.outcome;
    unit.groups.len() <= 1
        && !outcome.traces
        && outcome.cancels_ns.is_empty()
        && Rc::ptr_eq(&outcome.before, &outcome.after)
        && may_be_followed(&outcome.result)
}

/// Units on their way, oldest first, and what is to be done with each.
pub(super) struct Line<'a> {
    /// Those that have not ended.
    pub tickets: VecDeque<PgTicket>,
    /// Gets every unit that was answered.
    pub delivered: &'a dyn Fn(PgTicket, Ran),
    /// Gets units of which nothing was sent.
    pub put_back: &'a dyn Fn(PgTicket),
}

impl Line<'_> {
    fn shorten(&mut self, len: usize) {
        while self.tickets.len() > len {
            if let Some(ticket) = self.tickets.pop_back() {
                (self.put_back)(ticket);
            }
        }
    }
}

/// How far a run is.
struct Progress {
    replay: PipelinedReplay,
    /// Units of the line that were sent and have not ended.
    sent: usize,
    /// When the mirror could begin with the unit that it answers now.
    turn_ns: u64,
    /// That unit was cancelled after `mirror_timeout`.
    timed_out: bool,
    /// Of the statements that brought the session to where the client's was.
    session_errors: Vec<Sqlstate>,
}

impl Connection {
    /// Runs the line's units as a pipeline. False: the first one cannot go this way; it is still in the line, alone, and
    /// nothing of it was sent.
    pub async fn run_line(
        &mut self,
        context: &Context,
        line: &mut Line<'_>,
        replaying: Replaying,
    ) -> Result<bool, Broken> {
        let Some(first) = line.tickets.front().map(|ticket| ticket.unit.clone()) else {
            return Ok(false);
        };
        self.prepare(context, &first, replaying.keeps_session)
            .await?;
        drop(first);
        let renamed = self.rename(line);
        line.shorten(renamed.len().max(1));
        if renamed.len() < 2 {
            return Ok(false);
        }
        self.dirty = true;
        let mut progress = Progress {
            replay: PipelinedReplay::new(replaying.digest),
            sent: 0,
            turn_ns: context.ring.now_ns(),
            timed_out: false,
            session_errors: std::mem::take(&mut self.session_errors),
        };
        for bytes in &renamed {
            self.send_unit(line, bytes.as_deref(), &mut progress)
                .await?;
        }
        while let Some(head) = line.tickets.front() {
            let limit = Self::limit(context, &head.unit);
            let read = self.read_one(line, &mut progress);
            if let Ok(read) = context.ring.timeout(limit, read).await {
                read?;
                continue;
            }
            progress.timed_out = true;
            self.cancel(context).await;
            let read = self.read_one(line, &mut progress);
            let read = context.ring.timeout(CANCEL_GRACE, read).await;
            read.map_err(|_| Broken::Stuck)??;
        }
        Ok(true)
    }

    /// The bytes of the units that can go as they are (`None`) or renamed, up to the first that needs something prepared.
    fn rename(&mut self, line: &Line<'_>) -> Vec<Option<Vec<u8>>> {
        let mut renamed = Vec::with_capacity(line.tickets.len());
        for ticket in &line.tickets {
            let outcome = &ticket.unit.outcome;
            if !outcome.named {
                renamed.push(None);
                continue;
            }
            let bytes = ticket.unit.payload.joined();
            self.statements.set_scope(outcome.before.scope());
            match rewrite_unit(&bytes, &outcome.names, &self.statements) {
                Ok(unit) if unit.changes_nothing() => {
                    renamed.push(Some(unit.bytes.into_owned()));
                }
                _ => break,
            }
        }
        renamed
    }

    /// Sends the next unit that was not sent.
    async fn send_unit(
        &self,
        line: &mut Line<'_>,
        renamed: Option<&[u8]>,
        progress: &mut Progress,
    ) -> Result<(), Broken> {
        let Some(ticket) = line.tickets.get(progress.sent) else {
            return Ok(());
        };
        if let Some(bytes) = renamed {
            progress.replay.sent(bytes)?;
            self.socket().write(bytes);
        } else {
            for part in ticket.unit.payload.parts() {
                progress.replay.sent(part.as_bytes())?;
                match part {
                    Part::Copied(copied) => self.socket().write(copied),
                    Part::Shared(chunk) => self.socket().send(chunk.clone()),
                }
            }
        }
        progress.replay.end_unit();
        progress.sent += 1;
        // The mirror may be answering large rows; never let both sides wait for each other to read.
        while self.socket().queued() > SOCKET_SEND_BYTES {
            let drained = async {
                self.socket()
                    .drained(SOCKET_SEND_BYTES)
                    .await
                    .map(|()| None)
            };
            let received = async { self.socket().recv().await.map(Some) };
            match or(drained, received).await? {
                None => {}
                Some(None) => return Err(Broken::Closed),
                Some(Some(chunk)) => take(self.socket().heard_ns(), line, progress, &chunk)?,
            }
        }
        Ok(())
    }

    /// Reads until the oldest unit of the line has ended.
    async fn read_one(&self, line: &mut Line<'_>, progress: &mut Progress) -> Result<(), Broken> {
        let before = progress.sent;
        while progress.sent == before {
            let Some(chunk) = self.socket().recv().await? else {
                return Err(Broken::Closed);
            };
            take(self.socket().heard_ns(), line, progress, &chunk)?;
        }
        Ok(())
    }
}

/// Reads what came at `heard_ns`, and lets go the units that are complete.
fn take(
    heard_ns: u64,
    line: &mut Line<'_>,
    progress: &mut Progress,
    chunk: &Chunk,
) -> Result<(), Broken> {
    let read = progress.replay.receive(chunk, heard_ns);
    while let Some(result) = progress.replay.next_done() {
        let Some(ticket) = line.tickets.pop_front() else {
            break;
        };
        progress.sent -= 1;
        let started_ns = std::mem::replace(&mut progress.turn_ns, heard_ns);
        let sent_ns: SmallVec<[u64; 2]> = smallvec![started_ns];
        let ran = Ran {
            result,
            timed_out: std::mem::take(&mut progress.timed_out),
            session_errors: std::mem::take(&mut progress.session_errors),
            started_ns,
            answered_ns: heard_ns,
            sent_ns,
        };
        (line.delivered)(ticket, ran);
    }
    Ok(read?)
}
