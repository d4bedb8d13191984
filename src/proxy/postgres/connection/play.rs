//! A unit's bytes on the way to the mirror, group by group at its pace, and the replies on the way back.

use std::ops::Range;

use futures_lite::future::or;

use super::{Broken, Connection, PgUnit};
use crate::config::Pace;
use crate::limits::SOCKET_SEND_BYTES;
use crate::mirror::pace::{self, Start, UnitPacer};
use crate::mirror::payload::Part;
use crate::mirror::unit::Group;
use crate::protocol::postgres::replay::{Replay, ReplayProgress};
use crate::protocol::postgres::statements::{Rewritten, rewrite_unit};
use crate::proxy::Context;
use crate::ring::Chunk;

/// Which bytes a unit is replayed with.
enum Source<'a> {
    AsSent,
    Rewritten(&'a Rewritten<'a>),
}

impl Connection {
    /// Replays the unit to the end of its last reply.
    pub(super) async fn play(
        &mut self,
        context: &Context,
        unit: &PgUnit,
        pace: Pace,
        replay: &mut Replay,
    ) -> Result<(), Broken> {
        if unit.outcome.named {
            let bytes = unit.payload.joined();
            self.statements.set_scope(unit.outcome.before.scope());
            let rewritten = rewrite_unit(&bytes, &unit.outcome.names, &self.statements)?;
            let mut failed = false;
            if !rewritten.prepare_first.is_empty() {
                let outcome = self.exchange(context, &rewritten.prepare_first).await?;
                failed = outcome.errors() > 0;
            }
            self.dirty = true;
            self.send_groups(context, unit, pace, replay, &Source::Rewritten(&rewritten))
                .await?;
            self.read_rest(context, replay).await?;
            failed |= replay.outcome().errors() > 0;
            self.statements.settle(&rewritten, failed);
        } else {
            self.dirty = true;
            self.send_groups(context, unit, pace, replay, &Source::AsSent)
                .await?;
            self.read_rest(context, replay).await?;
        }
        self.cancel_at_ns = None;
        Ok(())
    }

    async fn send_groups(
        &mut self,
        context: &Context,
        unit: &PgUnit,
        pace: Pace,
        replay: &mut Replay,
        source: &Source<'_>,
    ) -> Result<(), Broken> {
        let mut pacer = UnitPacer::begin(engine_pace(pace), unit.began_ns, context.ring.now_ns());
        for (index, group) in unit.groups.iter().enumerate() {
            let next = unit.groups.get(index + 1);
            let end = next.map_or(unit.payload.len(), |next| next.offset);
            if index > 0 {
                self.wait_turn(context, group, replay, &mut pacer).await?;
            }
            let until_ns = next.map_or(u64::MAX, |next| next.arrived_ns);
            self.plan_cancel(unit, group, until_ns, context.ring.now_ns());
            self.sent_ns.push(context.ring.now_ns());
            self.send_range(unit, group.offset..end, replay, source)
                .await?;
        }
        Ok(())
    }

    /// Where the primary's statement was cancelled, this one is too, as long after its start.
    fn plan_cancel(&mut self, unit: &PgUnit, group: &Group, until_ns: u64, now_ns: u64) {
        let own = group.arrived_ns..until_ns;
        let mut cancels = unit.outcome.cancels_ns.iter();
        if let Some(cancel_ns) = cancels.find(|cancel_ns| own.contains(cancel_ns)) {
            self.cancel_at_ns = Some(now_ns.saturating_add(cancel_ns - group.arrived_ns));
        }
    }

    /// Waits until the group may start: the mirror has answered, and as much time has passed as on the primary.
    async fn wait_turn(
        &mut self,
        context: &Context,
        group: &Group,
        replay: &mut Replay,
        pacer: &mut UnitPacer,
    ) -> Result<(), Broken> {
        while !replay.wants_more() {
            self.read_some(context, replay, u64::MAX).await?;
        }
        if replay.outstanding() == 0 {
            self.cancel_at_ns = None;
        }
        let due_ns = pacer.due_ns(group, 0);
        if let Start::At(at_ns) = Start::of(due_ns, context.ring.now_ns()) {
            // Whatever comes in the meantime is read, so that the end of the connection is seen too.
            while self.read_some(context, replay, at_ns).await? {}
        }
        pacer.started(group, due_ns, context.ring.now_ns());
        Ok(())
    }

    async fn send_range(
        &mut self,
        unit: &PgUnit,
        Range { start, end }: Range<usize>,
        replay: &mut Replay,
        source: &Source<'_>,
    ) -> Result<(), Broken> {
        if let Source::Rewritten(rewritten) = source {
            let bytes = &rewritten.bytes[rewritten.offset(start)..rewritten.offset(end)];
            replay.sent(bytes)?;
            self.socket.write(bytes);
            return Ok(());
        }
        let mut at = 0;
        for part in unit.payload.parts() {
            let bytes = part.as_bytes();
            let (from, to) = (start.max(at), end.min(at + bytes.len()));
            if from < to {
                let range = from - at..to - at;
                replay.sent(&bytes[range.clone()])?;
                match part {
                    Part::Copied(copied) => self.socket.write(&copied[range]),
                    Part::Shared(chunk) => self.socket.send(chunk.slice(range)),
                }
                // The mirror may be answering a large unit; never let both sides wait for each other to read.
                while self.socket.queued() > SOCKET_SEND_BYTES {
                    self.drain_or_read(replay).await?;
                }
            }
            at += bytes.len();
        }
        Ok(())
    }

    async fn drain_or_read(&mut self, replay: &mut Replay) -> Result<(), Broken> {
        let drained = async { self.socket.drained(SOCKET_SEND_BYTES).await.map(|()| None) };
        let received = async { self.socket.recv().await.map(Some) };
        match or(drained, received).await? {
            None => Ok(()),
            Some(None) => Err(Broken::Closed),
            Some(Some(chunk)) => self.take(replay, &chunk).map(|_| ()),
        }
    }

    /// No more is sent of the unit; reads until every reply is here.
    pub(super) async fn read_rest(
        &mut self,
        context: &Context,
        replay: &mut Replay,
    ) -> Result<(), Broken> {
        let mut out = Vec::new();
        let mut progress = replay.finish(&mut out)?;
        loop {
            self.socket.write(&out);
            out.clear();
            if progress == ReplayProgress::Done {
                return Ok(());
            }
            if let Some(chunk) = self.recv(context, u64::MAX).await? {
                progress = replay.receive(&chunk, &mut out)?;
                replay.stamp(self.socket.heard_ns());
            }
        }
    }

    /// Reads what comes next; false if nothing came until then.
    async fn read_some(
        &mut self,
        context: &Context,
        replay: &mut Replay,
        until_ns: u64,
    ) -> Result<bool, Broken> {
        match self.recv(context, until_ns).await? {
            Some(chunk) => self.take(replay, &chunk).map(|_| true),
            None => Ok(false),
        }
    }

    /// What the mirror sends next, or `None` at `until_ns`. Cancels what runs when the time for that comes.
    async fn recv(&mut self, context: &Context, until_ns: u64) -> Result<Option<Chunk>, Broken> {
        loop {
            let wake_ns = self.cancel_at_ns.map_or(until_ns, |at| at.min(until_ns));
            let received = async { Some(self.socket.recv().await) };
            let next = if wake_ns == u64::MAX {
                received.await
            } else {
                let asleep = context.ring.sleep_until(wake_ns, true);
                or(received, async {
                    asleep.await;
                    None
                })
                .await
            };
            if let Some(received) = next {
                return received?.ok_or(Broken::Closed).map(Some);
            }
            if self.cancel_at_ns.is_some_and(|at_ns| at_ns <= wake_ns) {
                self.cancel_at_ns = None;
                Box::pin(self.cancel(context)).await;
            } else {
                return Ok(None);
            }
        }
    }

    fn take(&self, replay: &mut Replay, chunk: &Chunk) -> Result<ReplayProgress, Broken> {
        let mut out = Vec::new();
        let progress = replay.receive(chunk, &mut out)?;
        replay.stamp(self.socket.heard_ns());
        self.socket.write(&out);
        Ok(progress)
    }
}

fn engine_pace(pace: Pace) -> pace::Pace {
    match pace {
        Pace::Off => pace::Pace::Off,
        Pace::Transaction => pace::Pace::Transaction,
        Pace::Session => pace::Pace::Session,
    }
}
