//! Carries the queue to the backend that follows: one pipelined connection, in order, replaced when it is stuck.

mod lane;

use std::rc::Rc;

use super::super::judge::{Found, Judgement};
use super::link::{Broken, Link};
use super::{Dual, State, nanos, other, unix_ms};
use crate::metrics::{DivergenceKind, WriteFailure};
use crate::mirror::dual::expiries::may_have_ended;
use crate::mirror::dual::keys;
use crate::mirror::dual::queue::{Item, Kind};
use crate::mirror::unit::ClientId;
use crate::protocol::resp::command::lookup;
use crate::proxy::backoff::Backoff;
use crate::proxy::context::{DivergenceReport, Event, FailureReport};
use crate::proxy::redis::observe::Observer as _;
use lane::Lane;

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
                let mut lane = Lane::new(link);
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
        if item.kind != Kind::Read && !refused {
            if state
                .rereads
                .hold_back(item, &found, self.context.ring.now_ns())
            {
                self.metrics.compared.add(1);
            } else {
                // Nothing is told that was not asked about; the ones that are tell enough.
                self.metrics.not_compared.add(1);
                state.queue.taint_unit(&item.request, item.db);
                self.chores.wake_all();
            }
            return;
        }
        self.metrics.compared.add(1);
        if item.kind == Kind::Read && !refused {
            return state.rereads.suspect(item, *found, &self.metrics);
        }
        if item.kind == Kind::Read {
            self.metrics.shadow_read_errors.add(1);
        } else {
            let problem = String::from_utf8_lossy(&found.secondary)
                .trim_end()
                .to_owned();
            self.tell_failure("write", &found.command, &problem);
        }
        self.tell(*found, item.client);
    }
}

fn is_refusal(found: &Found) -> bool {
    found.kind == DivergenceKind::SecondaryError
}
