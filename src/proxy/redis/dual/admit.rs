//! From answered commands to items for the backend that follows.

use super::super::observe::{Answered, Observer as _};
use super::{Dual, unix_ms};
use crate::config::{Blocking, SampleBy};
use crate::limits::REDIS_COMPARE_BYTES;
use crate::mirror::dual::expiries::end_of;
use crate::mirror::dual::keys::{self, Scope};
use crate::mirror::dual::order::Weight;
use crate::mirror::dual::queue::{Item, Kind};
use crate::mirror::ledger::DropReason;
use crate::protocol::resp::command::{Effect, lookup_request};
use crate::protocol::resp::effects::{
    Expected, Replay, Rewrite, effects, encode, unchanged, warmup,
};
use crate::protocol::resp::{Command, CommandCategory, Reply, Request};

/// What a command is to a dual write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Write,
    Script,
    Read,
    Blocking,
    Neither,
}

fn sort(command: Option<&Command>, request: &Request<'_>) -> Sort {
    let Some(command) = command else {
        return Sort::Write;
    };
    match command.category_of(request) {
        CommandCategory::Read => Sort::Read,
        CommandCategory::Write => Sort::Write,
        // XREAD pops nothing.
        CommandCategory::Blocking if command.is_readonly() => Sort::Neither,
        CommandCategory::Blocking => Sort::Blocking,
        CommandCategory::Script if command.is_readonly() => Sort::Read,
        CommandCategory::Script => match (command.name(), command.sub()) {
            ("SCRIPT", "LOAD" | "FLUSH") => Sort::Script,
            ("SCRIPT", _) => Sort::Neither,
            ("FUNCTION", _) if !command.is_write() => Sort::Neither,
            _ => Sort::Script,
        },
        _ => Sort::Neither,
    }
}

/// Whether a unit may have changed data.
pub(super) fn writes(unit: &[u8]) -> bool {
    keys::commands(unit).any(|frame| {
        let request = Request::parse(frame);
        let command = lookup_request(&request);
        matches!(
            sort(command, &request),
            Sort::Write | Sort::Script | Sort::Blocking
        )
    })
}

impl Dual {
    /// Whether the bytes of a command are needed when it is answered.
    pub(super) fn admit(&self, command: Option<&Command>, request: &Request<'_>, db: u32) -> bool {
        let mode = self.mode.get();
        let sort = sort(command, request);
        if sort == Sort::Script || command.is_some_and(|command| command.name().starts_with("EVAL"))
        {
            self.state.borrow_mut().scripts.learn(request);
        }
        let wanted = match sort {
            Sort::Neither => false,
            Sort::Read => mode.shadows_reads() && self.samples(command, request, db),
            Sort::Blocking if self.options.borrow().blocking == Blocking::Off => false,
            _ if !mode.writes_both() => {
                // Nobody follows: what the other backend misses now must be copied should it follow again.
                self.taint_request(command, request, db);
                false
            }
            _ => true,
        };
        if wanted {
            self.outstanding.set(self.outstanding.get() + 1);
        }
        wanted
    }

    fn taint_request(&self, command: Option<&Command>, request: &Request<'_>, db: u32) {
        let taint = &mut self.state.borrow_mut().queue.taint;
        match command {
            Some(command) if matches!(command.name(), "FLUSHALL" | "FLUSHDB" | "SWAPDB") => {
                taint.add_all()
            }
            Some(command) => command
                .keys(request)
                .filter_map(|at| request.arg(at))
                .for_each(|key| taint.add(db, key)),
            None => request
                .arg(1)
                .into_iter()
                .for_each(|key| taint.add(db, key)),
        }
    }

    /// Draws whether a read is repeated.
    fn samples(&self, command: Option<&Command>, request: &Request<'_>, db: u32) -> bool {
        let exposure = self.metrics.settings.exposure();
        if exposure >= 1.0 {
            return true;
        }
        let key = match self.options.borrow().sample_by {
            SampleBy::Request => None,
            SampleBy::Key => command.and_then(|command| command.keys(request).next()),
        };
        let draw = match key.and_then(|at| request.arg(at)) {
            // The top 53 bits as a number from 0 to 1.
            Some(key) => (keys::hash(db, key) >> 11) as f64 / (1_u64 << 53) as f64,
            None => self.context.random.borrow_mut().f64(),
        };
        let inside = draw < exposure;
        if !inside {
            self.state.borrow().queue.leave_unexposed();
        }
        inside
    }

    /// Queues what an answered command means for the backend that follows.
    pub(super) fn take(&self, answered: &Answered<'_>) {
        let late = answered.backend != self.front();
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        if answered.oversize {
            // Nobody knows its keys any more.
            state.queue.refuse(b"", answered.db, DropReason::Oversize);
            return self.chores.wake_all();
        }
        let mut item = state.queue.item();
        item.client = answered.client;
        item.db = answered.db;
        item.commands = answered.commands;
        item.command = answered.command;
        item.queued_ns = self.context.ring.now_ns();
        item.answered_ns = answered.answered_ns;
        item.latency_ns = answered.answered_ns.saturating_sub(answered.arrived_ns);
        answered.request.copy_into(&mut item.request);
        if !late && !self.mode.get().writes_both() {
            // Nobody follows since it was sent: what the other backend misses is copied should it follow again.
            if writes(&item.request) {
                state.queue.taint_unit(&item.request, item.db);
            }
            state.queue.exclude();
            return state.queue.recycle(item);
        }
        state.rewrite.clear();
        let fate = match answered.commands {
            1 => self.one(&mut item, answered, &mut state.rewrite),
            _ => self.transaction(&mut item, answered, &mut state.rewrite),
        };
        match fate {
            Fate::Nothing => {
                state.queue.exclude();
                return state.queue.recycle(item);
            }
            Fate::Unknown => {
                state
                    .queue
                    .refuse(&item.request, item.db, DropReason::Oversize);
                self.chores.wake_all();
                return state.queue.recycle(item);
            }
            Fate::Queue => {}
        }
        if !state.rewrite.expected.is_empty() {
            if item.block {
                encode(&mut item.rewritten, [b"MULTI"]);
            }
            item.rewritten.extend_from_slice(&state.rewrite.bytes);
            if item.block {
                encode(&mut item.rewritten, [b"EXEC"]);
            }
            item.expected.extend_from_slice(&state.rewrite.expected);
        }
        let compares = item.kind == Kind::Read || answered.reply.len() <= REDIS_COMPARE_BYTES;
        if answered.whole && compares {
            item.reply.extend_from_slice(answered.reply);
        }
        if late {
            state.queue.exclude();
            drop(guard);
            if let Some(dual) = self.this.upgrade() {
                dual.take_late(item);
            }
            return;
        }
        if item.kind.writes() {
            self.note_ends(state, &mut item, answered);
            self.note_order(state, &mut item, answered);
        }
        if state.queue.offer(item).is_err() {
            self.chores.wake_all();
        }
        self.work.wake_one();
    }

    /// Notes when keys end, and whether this write raced with the end of one.
    fn note_ends(&self, state: &mut super::State, item: &mut Item, answered: &Answered<'_>) {
        let expiries = &mut state.expiries;
        if !expiries.is_empty() {
            let waited_ms = item.queued_ns.saturating_sub(answered.arrived_ns) / 1_000_000;
            let from_ms = unix_ms().saturating_sub(waited_ms);
            let mut ends_ms: Option<u64> = None;
            keys::visit(&item.request, item.db, |db, key| {
                let end_ms = expiries.end_after(keys::hash(db, key), from_ms);
                ends_ms = [ends_ms, end_ms].into_iter().flatten().min();
            });
            item.ends_ms = ends_ms;
        }
        let mut db = item.db;
        for frame in keys::commands(item.bytes()) {
            let request = Request::parse(frame);
            if request.arg_is(0, b"SELECT") {
                db = keys::number(&request, 1).unwrap_or(db);
            }
            if let (Some(end), Some(key)) = (end_of(&request), request.arg(1)) {
                expiries.note(keys::hash(db, key), end);
            }
        }
    }

    /// Taints keys of which the order of writes is not known.
    fn note_order(&self, state: &mut super::State, item: &mut Item, answered: &Answered<'_>) {
        let waits = answered.commands == 1 && answered.command.is_some_and(Command::may_block);
        let weight = weigh(answered, self.options.borrow().effects);
        // BLMOVE takes whatever stands at the end by then.
        let exact = weight == Weight::Light;
        let (stream, arrived_ns) = (answered.stream, answered.arrived_ns);
        let answered_ns = answered.answered_ns;
        let (order, taint) = (&mut state.order, &mut state.queue.taint);
        let (mut unknown, mut near) = (false, false);
        let scope = keys::visit(&item.request, item.db, |db, key| {
            let hash = keys::hash(db, key);
            let doubted = if waits {
                let place = order.waited(hash, stream, arrived_ns, answered_ns, exact);
                near |= place.near;
                place.unknown
            } else {
                order.weighed(hash, stream, arrived_ns, answered_ns, weight)
            };
            if doubted {
                unknown = true;
                taint.add(db, key);
            }
        });
        item.raced = near;
        if scope == Scope::Everything && order.answered_everything(stream, arrived_ns, answered_ns)
        {
            unknown = true;
            taint.add_all();
        }
        if unknown {
            self.chores.wake_all();
        }
    }

    fn one(&self, item: &mut Item, answered: &Answered<'_>, out: &mut Rewrite) -> Fate {
        let request = Request::parse(&item.request);
        let command = answered.command;
        let reply = Reply::parse(answered.reply);
        let failed = matches!(answered.reply.first(), Some(b'-' | b'!'));
        let options = self.options.borrow();
        match sort(command, &request) {
            Sort::Neither => Fate::Nothing,
            Sort::Read if !answered.whole => {
                self.metrics.not_compared.add(1);
                Fate::Nothing
            }
            Sort::Read => {
                item.kind = Kind::Read;
                Fate::Queue
            }
            _ if failed => Fate::Nothing,
            Sort::Blocking if options.blocking == Blocking::Warmup => {
                match warmup(command, &request) {
                    Some(bytes) => {
                        item.kind = Kind::Warmup;
                        item.rewritten = bytes;
                        item.expected.push(Expected::Anything);
                        Fate::Queue
                    }
                    None => Fate::Nothing,
                }
            }
            _ if !answered.whole && needs_reply(command) && options.effects => Fate::Unknown,
            kind => {
                let replay = match options.effects || kind == Sort::Blocking {
                    true => effects(command, &request, reply, unix_ms(), out),
                    false => unchanged(reply),
                };
                item.kind = if kind == Sort::Script {
                    Kind::Script
                } else {
                    Kind::Write
                };
                match replay {
                    Replay::Nothing => Fate::Nothing,
                    Replay::Verbatim | Replay::Rewritten => Fate::Queue,
                }
            }
        }
    }

    /// A transaction goes as it is, unless a member must be rewritten or left out: then what the members did goes, as
    /// one block.
    fn transaction(&self, item: &mut Item, answered: &Answered<'_>, out: &mut Rewrite) -> Fate {
        item.kind = Kind::Write;
        let effective = self.options.borrow().effects;
        let reply = Reply::parse(answered.reply);
        let now_ms = unix_ms();
        let mut replies = reply.elements();
        let members = keys::commands(&item.request)
            .skip(1)
            .take(answered.commands.saturating_sub(2) as usize);
        let (mut as_it_is, mut changes, mut scripts) = (true, false, false);
        for frame in members {
            let request = Request::parse(frame);
            let command = lookup_request(&request);
            let reply = replies.next();
            let sort = sort(command, &request);
            let verbatim = |out: &mut Rewrite| out.push(Expected::Anything, request.args());
            match sort {
                Sort::Read | Sort::Neither => {
                    if request.arg_is(0, b"SELECT") {
                        verbatim(out);
                    }
                }
                Sort::Write | Sort::Script | Sort::Blocking => {
                    scripts |= sort == Sort::Script;
                    changes = true;
                    let Some(reply) = reply.filter(|_| answered.whole) else {
                        if needs_reply(command) && effective {
                            return Fate::Unknown;
                        }
                        verbatim(out);
                        continue;
                    };
                    let replay = match effective {
                        true => effects(command, &request, reply, now_ms, out),
                        false => unchanged(reply),
                    };
                    match replay {
                        Replay::Verbatim => verbatim(out),
                        Replay::Rewritten | Replay::Nothing => as_it_is = false,
                    }
                }
            }
        }
        if !changes {
            return Fate::Nothing;
        }
        if scripts {
            item.kind = Kind::Script;
        }
        item.block = !as_it_is;
        if as_it_is || out.expected.is_empty() {
            out.clear();
        }
        if !as_it_is && out.expected.is_empty() {
            Fate::Nothing
        } else {
            Fate::Queue
        }
    }
}

enum Fate {
    /// It changed nothing.
    Nothing,
    /// The reply that says what it did was too large to be kept.
    Unknown,
    Queue,
}

/// How an answered write gets on with pops that wait.
fn weigh(answered: &Answered<'_>, effective: bool) -> Weight {
    let Some(command) = answered.command.filter(|_| answered.commands == 1) else {
        return Weight::Unknown;
    };
    match command.effect() {
        // Exactly these elements go, whatever else stands in the list.
        Effect::ListPop | Effect::SortedSetPop | Effect::GroupRead
            if effective || command.category() == CommandCategory::Blocking =>
        {
            return Weight::Light;
        }
        _ => {}
    }
    match (command.category(), command.name()) {
        (CommandCategory::Script, _) => Weight::Unknown,
        (_, "LPUSH" | "RPUSH" | "LPUSHX" | "RPUSHX" | "ZADD" | "XADD") => Weight::Light,
        _ => Weight::Heavy,
    }
}

/// What to replay stands in the reply.
fn needs_reply(command: Option<&Command>) -> bool {
    command.is_some_and(|command| {
        !matches!(command.effect(), Effect::Verbatim | Effect::AbsoluteExpiry)
    })
}
