//! Carries the queue to the backend that follows: one pipelined connection, in order, replaced when it is stuck.

use std::cell::RefMut;
use std::rc::Rc;

use futures_lite::future::or;

use super::super::collect::{Collected, Frame};
use super::super::judge::{Found, Judgement};
use super::super::numbers;
use super::link::{Broken, Link};
use super::{Dual, State, judge, nanos, other, unix_ms};
use crate::limits::{DUAL_WINDOW, REDIS_COMPARE_BYTES, SOCKET_SEND_BYTES};
use crate::metrics::{DivergenceKind, ErrorWord, WriteFailure};
use crate::mirror::dual::expiries::may_have_ended;
use crate::mirror::dual::keys;
use crate::mirror::dual::queue::{Item, Kind};
use crate::mirror::dual::repair::is_foreign_format;
use crate::mirror::dual::scripts::with_body;
use crate::mirror::ledger::DropReason;
use crate::mirror::unit::ClientId;
use crate::protocol::resp::Request;
use crate::protocol::resp::command::lookup;
use crate::protocol::resp::effects::encode;
use crate::proxy::backoff::Backoff;
use crate::proxy::context::{DivergenceReport, Event, FailureReport};
use crate::proxy::redis::observe::Observer as _;
use crate::ring::Chunk;

/// Works until the dual write is retired.
pub(super) async fn run(dual: Rc<Dual>) {
    let mut backoff = Backoff::default();
    while !dual.retired.get() {
        if !dual.has_errands() {
            dual.work.wait().await;
            continue;
        }
        let follower = other(dual.front());
        match Link::open(&dual.context, dual.at(follower)).await {
            Ok(link) => {
                backoff.reset();
                dual.greet(follower, &link);
                dual.learn_leader().await;
                let mut lane = Lane {
                    link,
                    collected: Collected::default(),
                    preambles: std::collections::VecDeque::new(),
                };
                let broken = lane.serve(&dual, follower).await;
                dual.part(&broken);
            }
            Err(problem) => {
                dual.metrics.reconnects.add(1);
                dual.tell_failure("connect", "", &problem);
                backoff.complain(&dual.at(follower).name, &problem);
            }
        }
        backoff.pause(&dual.context, || dual.retired.get()).await;
    }
}

/// Whether the connection must be replaced: what is on its way has taken too long.
pub(super) fn is_stuck(dual: &Dual, now_ns: u64) -> bool {
    let options = dual.options.borrow();
    let state = &mut *dual.state.borrow_mut();
    let Some((item, _, sent_ns)) = state.queue.expecting() else {
        return false;
    };
    let age_ns = now_ns.saturating_sub(sent_ns);
    let limit = match item.kind {
        Kind::Script => options.script_timeout,
        _ => options.secondary_timeout,
    };
    let is_read = matches!(item.kind, Kind::Read | Kind::Reread(_));
    if is_read && age_ns > nanos(options.shadow_timeout) && !state.gave_up {
        // Its reply still has to come: without it nobody knows whose the next one is.
        state.gave_up = true;
        dual.metrics.shadow_read_errors.add(1);
    }
    age_ns > nanos(limit)
}

impl Dual {
    /// Whether there is anything for the backend that follows.
    fn has_errands(&self) -> bool {
        let state = self.state.borrow();
        let repairs = self.mode.get().writes_both()
            && self.options.borrow().repair
            && !state.queue.taint.is_empty();
        !state.queue.is_empty() || repairs
    }

    /// A connection to the follower stands.
    fn greet(&self, follower: super::Backend, link: &Link) {
        *self.connection.borrow_mut() = Some(link.socket.downgrade());
        self.connected.set(true);
        self.metrics.connections_open.set(1);
        let state = &mut *self.state.borrow_mut();
        state.versions.insert(follower, link.version);
        if let Some(id) = &link.run_id {
            let before = state.run_ids.insert(follower, id.clone());
            if before.is_some_and(|before| before != *id) {
                // Another process: what it had not saved is gone, and nobody knows what that was.
                state.scripts.forget_told();
                state.queue.taint.add_all();
                tracing::warn!(
                    secondary = self.at(follower).name,
                    "it was restarted: every key is copied again"
                );
            }
        }
        self.chores.wake_all();
    }

    /// What the backend in front is decides what some of its replies mean. Of no matter if it cannot be asked now.
    async fn learn_leader(&self) {
        let front = self.front();
        let known = self.state.borrow().versions.get(&front).copied();
        let version = match known {
            Some(version) => version,
            None => match Link::open(&self.context, self.leader()).await {
                Ok(link) => link.version,
                Err(_) => return,
            },
        };
        let state = &mut *self.state.borrow_mut();
        state.versions.insert(front, version);
        state.rewrite.consumers_made_idle = version >= Some((7, 2));
    }

    fn part(&self, broken: &Broken) {
        self.connected.set(false);
        self.metrics.connections_open.set(0);
        let lost = {
            let state = &mut *self.state.borrow_mut();
            state.scripts.forget_told();
            state.gave_up = false;
            state.rereads.lost();
            let why = match self.timed_out.take() {
                true => WriteFailure::Timeout,
                false => WriteFailure::Lost,
            };
            let writes = state
                .queue
                .flying()
                .filter(|item| item.kind.is_clients_write());
            writes.for_each(|item| self.follower_commands().of(item.command).fail_write(why));
            state.queue.broken()
        };
        if !self.retired.get() && !matches!(broken, Broken::Closed if lost == 0) {
            tracing::warn!(secondary = self.follower().name, reason = %broken, lost,
                "the connection to a secondary ended");
            self.metrics.reconnects.add(1);
            self.tell_failure("write", "", broken);
        }
        self.chores.wake_all();
    }

    pub(super) fn tell_failure(
        &self,
        operation: &'static str,
        command: &str,
        problem: &dyn std::fmt::Display,
    ) {
        let report = FailureReport {
            source: self.source.clone(),
            mirror: self.follower().name.clone(),
            operation,
            command: command.to_owned(),
            problem: problem.to_string(),
        };
        self.context.tell(Event::Failure(Box::new(report)));
    }

    pub(super) fn tell(&self, found: Found, client: ClientId) {
        self.metrics.diverge(found.kind);
        let command = lookup(found.command.as_bytes(), None);
        self.follower_commands().of(command).diverge(found.kind);
        let report = DivergenceReport {
            source: self.source.clone(),
            mirror: self.follower().name.clone(),
            command: found.command,
            key: found.key,
            pattern: Vec::new(),
            kind: found.kind,
            primary: found.primary,
            secondary: found.secondary,
            client,
            core: self.context.core,
        };
        self.context.tell(Event::Divergence(Box::new(report)));
    }

    /// The last reply of an item was read, and found to be `judgement`.
    /// `failed`: a write did not take place; `ok`: the reply is no error.
    fn done(
        &self,
        item: Box<Item>,
        judgement: Judgement,
        failed: bool,
        ok: bool,
        [sent_ns, heard_ns]: [u64; 2],
    ) {
        let metrics = &self.metrics;
        let state = &mut *self.state.borrow_mut();
        let gave_up = std::mem::take(&mut state.gave_up);
        // A key may have ended here before the write and there behind it.
        let ended = item
            .ends_ms
            .is_some_and(|end_ms| may_have_ended(end_ms, unix_ms()));
        if ended {
            state.queue.taint_unit(&item.request, item.db);
        }
        match item.kind {
            Kind::Repair(_) if !failed => metrics.repaired_keys.add(1),
            Kind::Reread(number) => {
                self.reread_answered(state, number, &item, &judgement);
            }
            Kind::Write | Kind::Script | Kind::Read if !gave_up => {
                let latency_ns = heard_ns.saturating_sub(sent_ns);
                metrics.latency.record(latency_ns);
                let by_command = self.follower_commands().of(item.command);
                by_command.record(ok, latency_ns);
                if failed && item.kind.is_clients_write() {
                    by_command.fail_write(WriteFailure::Refused);
                }
                metrics.primary_latency.record(item.latency_ns);
                let refused = matches!(item.reply.first(), Some(b'-' | b'!'));
                let primary = metrics.primary_commands.of(item.command);
                primary.record(!refused, item.latency_ns);
                metrics
                    .queue_delay
                    .record(sent_ns.saturating_sub(item.queued_ns));
                match judgement {
                    Judgement::Different(found) if ended && !is_refusal(&found) => {
                        metrics.compared.add(1);
                        metrics.diverge(DivergenceKind::Transient);
                    }
                    judgement => self.book(state, &item, judgement),
                }
            }
            _ => {}
        }
        state.queue.delivered(item, failed);
        // A key was tainted, or a mismatch waits to be read again.
        if failed || ended || state.rereads.is_due() {
            self.chores.wake_all();
        }
    }

    fn book(&self, state: &mut State, item: &Item, judgement: Judgement) {
        let found = match judgement {
            Judgement::Equal => return self.metrics.compared.add(1),
            Judgement::NotCompared => return self.metrics.not_compared.add(1),
            Judgement::Different(found) => found,
        };
        // A key that waits for its copy says nothing about the follower, not even by an error: the order of two XADDs may
        // be unknown, and the second one refused.
        let mut tainted = state.queue.taint.is_all();
        keys::visit(&item.request, item.db, |db, key| {
            tainted |= state.queue.in_doubt(keys::hash(db, key))
        });
        let refused = is_refusal(&found);
        if tainted {
            return self.metrics.not_compared.add(1);
        }
        self.metrics.compared.add(1);
        if item.kind == Kind::Read && !refused {
            return state.rereads.suspect(item, *found, &self.metrics);
        }
        if item.kind == Kind::Read {
            self.metrics.shadow_read_errors.add(1);
        } else if refused {
            let problem = String::from_utf8_lossy(&found.secondary)
                .trim_end()
                .to_owned();
            self.tell_failure("write", &found.command, &problem);
        }
        let now_ns = self.context.ring.now_ns();
        if refused || item.kind == Kind::Read || !state.rereads.hold_back(item, &found, now_ns) {
            self.tell(*found, item.client);
        }
    }
}

/// The connection with what was asked on it.
struct Lane {
    link: Link,
    collected: Collected,
    /// For each of our own commands on its way: how many items were on their way before it.
    preambles: std::collections::VecDeque<Preamble>,
}

/// Our own commands in front of an item.
struct Preamble {
    /// Replies to come.
    replies: u32,
    /// Items still in front of it.
    behind: usize,
    /// A refusal ends the connection.
    matters: bool,
}

impl Lane {
    async fn serve(&mut self, dual: &Rc<Dual>, follower: super::Backend) -> Broken {
        loop {
            if dual.retired.get() || other(dual.front()) != follower {
                return Broken::Closed;
            }
            if !dual.mode.get().writes_both() && dual.state.borrow().queue.is_idle() {
                return Broken::Closed;
            }
            self.fill(dual);
            let room = dual.state.borrow().queue.in_flight() < DUAL_WINDOW
                && self.link.socket.queued() < SOCKET_SEND_BYTES;
            let socket = &self.link.socket;
            let received = if room {
                or(async { Some(socket.recv().await) }, async {
                    dual.work.wait().await;
                    None
                })
                .await
            } else {
                Some(socket.recv().await)
            };
            let chunk = match received {
                None => continue,
                Some(Ok(Some(chunk))) => chunk,
                Some(Ok(None)) => return Broken::Closed,
                Some(Err(error)) => return error.into(),
            };
            if let Err(broken) = self.receive(dual, &chunk) {
                return broken;
            }
        }
    }

    fn fill(&mut self, dual: &Dual) {
        let shadow_ns = nanos(dual.options.borrow().shadow_timeout);
        let now_ns = dual.context.ring.now_ns();
        let state = &mut *dual.state.borrow_mut();
        while state.queue.in_flight() < DUAL_WINDOW && self.link.socket.queued() < SOCKET_SEND_BYTES
        {
            let Some(item) = state.queue.front() else {
                return;
            };
            if item.kind == Kind::Read && now_ns.saturating_sub(item.queued_ns) > shadow_ns {
                dual.metrics.shadow_read_errors.add(1);
                state.queue.drop_front(DropReason::Timeout);
                continue;
            }
            let mut own = Vec::new();
            let behind = state.queue.in_flight();
            let db = numbers::database(item.db, dual.follower().db);
            if self.link.db != Some(db) {
                encode(&mut own, ["SELECT", &db.to_string()]);
                self.preambles.push_back(Preamble {
                    replies: 1,
                    behind,
                    matters: true,
                });
                // A transaction may leave the connection in another database.
                self.link.db = if item.commands > 1 { None } else { Some(db) };
            } else if item.commands > 1 {
                self.link.db = None;
            }
            if item.kind == Kind::Script {
                let unit = &item.request;
                for frame in keys::commands(unit) {
                    if state.scripts.tell(&Request::parse(frame), &mut own) {
                        self.preambles.push_back(Preamble {
                            replies: 1,
                            behind,
                            matters: false,
                        });
                    }
                }
            }
            if !own.is_empty() {
                self.link.socket.write(&own);
            }
            if let Some(item) = state.queue.send_next(now_ns) {
                self.link.socket.write(item.bytes());
            }
        }
    }

    fn receive(&mut self, dual: &Dual, chunk: &Chunk) -> Result<(), Broken> {
        let mut offset = 0;
        while offset < chunk.len() {
            let advance = self
                .link
                .framer
                .advance(&chunk[offset..])
                .map_err(|error| Broken::Protocol(error.to_string()))?;
            let piece = offset..offset + advance.consumed;
            offset = piece.end;
            let push = self.link.framer.kind() == Some(b'>');
            if advance.done && self.collected.is_empty() {
                if !push {
                    self.reply(dual, &Frame::Whole(chunk, piece))?;
                }
                continue;
            }
            self.collected.push(&chunk[piece], REDIS_COMPARE_BYTES);
            if advance.done {
                let collected = std::mem::take(&mut self.collected);
                if !push {
                    self.reply(dual, &Frame::Collected(&collected))?;
                }
            }
        }
        Ok(())
    }

    fn reply(&mut self, dual: &Dual, frame: &Frame<'_>) -> Result<(), Broken> {
        let bytes = frame.bytes();
        let failed = matches!(bytes.first(), Some(b'-' | b'!'));
        if let Some(preamble) = self
            .preambles
            .front_mut()
            .filter(|preamble| preamble.behind == 0)
        {
            if failed && preamble.matters {
                return Err(Broken::Refused("SELECT"));
            }
            preamble.replies -= 1;
            if preamble.replies == 0 {
                self.preambles.pop_front();
            }
            return Ok(());
        }
        let mut state = dual.state.borrow_mut();
        let Some((item, index, sent_ns)) = state.queue.expecting() else {
            return Err(Broken::Unsolicited);
        };
        if failed {
            dual.metrics.errors.count(ErrorWord::of_redis(bytes));
        }
        let judgement = judge::judge(item, index, bytes, frame.is_whole());
        let refused = failed && refuses_write(item, index);
        let no_script = failed && bytes.starts_with(b"-NOSCRIPT");
        let no_function = failed && bytes.starts_with(b"-ERR Function not found");
        let foreign = failed && matches!(item.kind, Kind::Repair(_)) && is_foreign_format(bytes);
        let aborted = item.replies() > 1
            && index + 1 == item.replies()
            && (bytes.starts_with(b"*-1") || bytes.starts_with(b"_"));
        if foreign {
            state.copying = crate::mirror::dual::repair::Copying::ByType;
        }
        let Some(item) = state.queue.replied() else {
            // One of several: what it shows counts at once.
            if refused {
                let (request, db) = state
                    .queue
                    .expecting()
                    .map(|(item, ..)| (item.request.clone(), item.db))
                    .unwrap_or_default();
                state.queue.taint_unit(&request, db);
                dual.chores.wake_all();
            }
            return Ok(());
        };
        for preamble in &mut self.preambles {
            preamble.behind -= 1;
        }
        if (no_script || no_function) && self.resend(&mut state, &item, no_function) {
            // The body follows right away. What was already on its way behind it came first: its keys are in doubt.
            if state.queue.in_flight() > 0 {
                state.queue.taint_unit(&item.request, item.db);
            }
            state.queue.delivered(item, false);
            dual.chores.wake_all();
            return Ok(());
        }
        drop(state);
        let ok = !failed && !aborted;
        let heard_ns = self.link.socket.heard_ns();
        dual.done(item, judgement, refused || aborted, ok, [sent_ns, heard_ns]);
        Ok(())
    }

    /// Sends a script once more, with its body. False: nobody knows it.
    fn resend(&mut self, state: &mut RefMut<'_, State>, item: &Item, function: bool) -> bool {
        let request = Request::parse(&item.request);
        let mut out = Vec::new();
        let mut replies = 1;
        if function {
            replies += state.scripts.libraries(&mut out);
            out.extend_from_slice(&item.request);
        } else {
            let Some(body) = state.scripts.body(&request).cloned() else {
                return false;
            };
            with_body(&request, &body, &mut out);
        }
        if replies == 1 && function {
            return false;
        }
        self.link.socket.write(&out);
        let behind = state.queue.in_flight();
        self.preambles.push_back(Preamble {
            replies,
            behind,
            matters: false,
        });
        true
    }
}

fn is_refusal(found: &Found) -> bool {
    found.kind == DivergenceKind::SecondaryError
}

/// An error means that a write did not take place here although it did at the other backend.
fn refuses_write(item: &Item, _index: u32) -> bool {
    item.kind.writes()
}
