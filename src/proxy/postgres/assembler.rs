//! Builds units from a client's cycles. Sans-IO: bytes, time and the draw come in as arguments.
//!
//! A unit is what the client sent from the first message outside a transaction to the ReadyForQuery with
//! status `I` that closes it. Whether a cycle opens a unit is known at once when nothing is outstanding; then the
//! exposure is drawn at the first byte, and an unexposed unit costs no copy. In a pipeline it is known only when the
//! cycles before it are answered: its bytes are kept by themselves until then.
//!
//! What unsealed units hold is bounded per client by the ring's byte bound and charged to the core's memory budget;
//! a unit that outgrows either is given up whole and costs no more copies.

use std::collections::VecDeque;
use std::rc::Rc;

use super::carried::Carried;
use super::outcome::{Identity, PostgresOutcome, TEXT_MAX};
use crate::limits::{PACE_GRAIN_NS, PIPELINE_PATIENCE_NS, PIPELINE_QUEUE_FACTOR};
use crate::mirror::dispatch::MemoryBudget;
use crate::mirror::ledger::DropReason;
use crate::mirror::unit::{Class, ClientId, Draft, MirrorSet};
use crate::protocol::postgres::sql;
use crate::protocol::postgres::tracker::{CycleDone, Named, StatementOutcome, TxStatus};
use crate::proxy::mirrors::{MirrorGroup, append};
use crate::ring::{Chunk, Ring};

type PgDraft = Draft<Chunk, PostgresOutcome>;

/// The units of one client.
pub struct Assembler {
    client: ClientId,
    identity: Rc<Identity>,
    unit: Option<Open>,
    /// Cycles that are not answered, oldest first.
    cycles: VecDeque<Cycle>,
    held: Held,
    /// When the last unit ended.
    ended_ns: u64,
    /// When the last unit ended that the client had sent before it saw the answer to the one before; 0: none.
    pipelined_ns: u64,
}

/// The memory of all unsealed bytes of one client, charged to the core's budget.
struct Held {
    budget: MemoryBudget,
    bytes: usize,
}

/// A unit that has begun.
struct Open {
    exposed: MirrorSet,
    content: Content,
}

/// Bytes of a unit or of a cycle that may become one.
struct Content {
    class: Class,
    /// `None`: nobody wants the bytes, or they were given up.
    draft: Option<PgDraft>,
    /// Memory that was charged for the draft.
    charged: usize,
    /// Why the bytes were given up.
    lost: Option<DropReason>,
    /// An unnamed statement was parsed in here: a Bind of it refers to nothing outside.
    parsed_unnamed: bool,
}

struct Cycle {
    number: u64,
    /// Bytes that could not be attributed yet; `None`: they belong to the open unit.
    pending: Option<Content>,
}

/// What the assembler needs of its surroundings at every step.
pub struct Surroundings<'a> {
    /// Where units go.
    pub mirrors: &'a MirrorGroup<PostgresOutcome>,
    /// The core's ring, for the state of its slabs.
    pub ring: &'a Ring,
    /// The core's random numbers.
    pub random: &'a std::cell::RefCell<fastrand::Rng>,
    /// The time.
    pub now_ns: u64,
}

impl Assembler {
    /// For a client that has sent nothing yet.
    pub fn new(client: ClientId, identity: Rc<Identity>, budget: MemoryBudget) -> Assembler {
        Assembler {
            client,
            identity,
            unit: None,
            cycles: VecDeque::new(),
            held: Held { budget, bytes: 0 },
            ended_ns: 0,
            pipelined_ns: 0,
        }
    }

    /// Whether no unit is under way.
    pub fn is_quiet(&self) -> bool {
        self.unit.is_none() && self.cycles.is_empty()
    }

    /// A cycle begins.
    pub fn opened(&mut self, cycle: u64, carried: &Carried, around: &Surroundings<'_>) {
        let pending = if !self.cycles.is_empty() {
            // In a pipeline: whose cycle it is shows later.
            Some(self.content(carried, around, true))
        } else {
            if self.unit.is_none() {
                let exposed = around.mirrors.expose(around.random);
                let content = self.content(carried, around, !exposed.is_empty());
                self.unit = Some(Open { exposed, content });
            }
            None
        };
        self.cycles.push_back(Cycle {
            number: cycle,
            pending,
        });
        let content = newest(&mut self.cycles, &mut self.unit);
        if let Some(draft) = content.and_then(|content| content.draft.as_mut()) {
            draft.begin_group(around.now_ns);
        }
    }

    /// Bytes of the newest cycle.
    pub fn bytes(&mut self, bytes: &Chunk, around: &Surroundings<'_>) {
        let Some(content) = newest(&mut self.cycles, &mut self.unit) else {
            return;
        };
        let Some(draft) = &mut content.draft else {
            return;
        };
        let last_ns = draft.groups.last().map_or(0, |group| group.arrived_ns);
        if around.now_ns.saturating_sub(last_ns) >= PACE_GRAIN_NS {
            // The client paused inside a cycle: behind a Flush, or between two pieces of a COPY.
            draft.begin_group(around.now_ns);
        }
        append(around.ring, draft, bytes, 0..bytes.len());
        let now_held = draft.held_bytes();
        let bytes_max = around.mirrors.bytes_max();
        if let Err(reason) = self.held.grow(&mut content.charged, now_held, bytes_max) {
            self.held.give_up(content, reason, around.mirrors);
        }
    }

    /// The text of a statement of the newest cycle; `traces`: see [`PostgresOutcome::traces`].
    pub fn statement(&mut self, sql: &[u8], class: Class, traces: bool) {
        let Some(content) = newest(&mut self.cycles, &mut self.unit) else {
            return;
        };
        content.class |= class;
        if let Some(draft) = &mut content.draft {
            draft.outcome.traces |= traces;
            note_text(&mut draft.outcome, sql);
        }
    }

    /// What the newest cycle does with prepared statements. A unit that uses one of an earlier unit must be renamed on a
    /// shared connection, and may do what that statement does.
    pub fn named(&mut self, named: &Named<'_>, carried: &Carried, traces: bool) {
        let Some(content) = newest(&mut self.cycles, &mut self.unit) else {
            return;
        };
        let foreign = match named {
            Named::Parse { name: b"", .. } => {
                content.parsed_unnamed = true;
                false
            }
            Named::Query { .. } => return,
            Named::Bind { name: b"", .. } => !content.parsed_unnamed,
            _ => true,
        };
        let bound = match named {
            Named::Bind { name, .. } if foreign => carried.statement_of(name),
            _ => None,
        };
        if let Some(statement) = bound {
            content.class |= engine_class(statement.class);
        }
        if let Some(draft) = &mut content.draft {
            draft.outcome.named |= foreign;
            draft.outcome.traces |= traces;
            if let Some(statement) = bound {
                note_text(&mut draft.outcome, statement.sql());
            }
        }
    }

    /// Whether a mirror will compare what this cycle gives.
    pub fn wants_digest(&self, cycle: u64) -> bool {
        let at = self.cycles.iter().find(|waiting| waiting.number >= cycle);
        let content = match at.and_then(|cycle| cycle.pending.as_ref()) {
            Some(content) => Some(content),
            None => self.unit.as_ref().map(|unit| &unit.content),
        };
        content.is_some_and(|content| content.draft.is_some())
    }

    /// A statement of this cycle has ended.
    pub fn statement_done(&mut self, cycle: u64, outcome: &StatementOutcome, now_ns: u64) {
        let at = self
            .cycles
            .iter_mut()
            .find(|waiting| waiting.number >= cycle);
        let content = match at.and_then(|cycle| cycle.pending.as_mut()) {
            Some(content) => Some(content),
            None => self.unit.as_mut().map(|unit| &mut unit.content),
        };
        if let Some(draft) = content.and_then(|content| content.draft.as_mut()) {
            draft.outcome.result.push(outcome);
            draft.outcome.result.stamp(now_ns);
            draft.outcome.note_cancel(outcome, now_ns);
        }
    }

    /// ReadyForQuery. The client's session state is taken from `carried` where it ends a unit; returns whether it does.
    pub fn cycle_done(
        &mut self,
        done: &CycleDone,
        carried: &mut Carried,
        around: &Surroundings<'_>,
    ) -> bool {
        while self
            .cycles
            .front()
            .is_some_and(|cycle| cycle.number <= done.cycle)
        {
            let Some(cycle) = self.cycles.pop_front() else {
                break;
            };
            if let Some(content) = cycle.pending {
                self.attribute(content, carried, around);
            }
        }
        if let Some(unit) = &mut self.unit
            && let Some(draft) = &mut unit.content.draft
        {
            draft.outcome.result.status = done.status;
            cut(draft, done.unfinished);
        }
        let ended = done.status == TxStatus::Idle;
        carried.settle(done, ended);
        if !ended {
            return false;
        }
        let Some(mut unit) = self.unit.take() else {
            return false;
        };
        if let Some(draft) = &mut unit.content.draft {
            draft.outcome.after = carried.state();
        }
        self.close(unit, around);
        true
    }

    /// The client is gone, or cannot be followed any more: what is unfinished is no unit.
    pub fn abandon(&mut self, mirrors: &MirrorGroup<PostgresOutcome>) {
        let pending = self.cycles.drain(..).filter_map(|cycle| cycle.pending);
        let open = self.unit.take().map(|unit| unit.content);
        for mut content in pending.chain(open) {
            mirrors.exclude();
            self.held.drop_draft(&mut content, mirrors);
        }
    }

    /// A cycle of a pipeline whose turn has come: it opens a unit or goes on with the open one.
    fn attribute(&mut self, mut content: Content, carried: &Carried, around: &Surroundings<'_>) {
        let Some(unit) = &mut self.unit else {
            if let Some(draft) = &mut content.draft {
                // The units before it in the pipeline have ended since it was sent.
                draft.outcome.before = carried.state();
            }
            let exposed = around.mirrors.expose(around.random);
            if exposed.is_empty() {
                self.held.drop_draft(&mut content, around.mirrors);
            }
            self.unit = Some(Open { exposed, content });
            return;
        };
        let whole = &mut unit.content;
        whole.class |= content.class;
        whole.lost = whole.lost.or(content.lost);
        match (&mut whole.draft, &mut content.draft) {
            (Some(draft), Some(more)) if whole.lost.is_none() => {
                join(draft, more);
                whole.charged += std::mem::take(&mut content.charged);
            }
            _ => self.held.drop_draft(whole, around.mirrors),
        }
        self.held.drop_draft(&mut content, around.mirrors);
    }

    fn close(&mut self, unit: Open, around: &Surroundings<'_>) {
        let Open {
            exposed,
            mut content,
        } = unit;
        if let Some(reason) = content.lost {
            return around.mirrors.refuse(exposed, content.class, reason);
        }
        self.held.release(&mut content.charged);
        let before_ns = std::mem::replace(&mut self.ended_ns, around.now_ns);
        match content.draft {
            Some(mut draft) => {
                draft.class = content.class;
                draft.outcome.turn_ns = draft.began_ns.max(before_ns);
                if before_ns > 0 && draft.began_ns <= before_ns {
                    // Also if in one turn of the core: the answer has not left yet.
                    self.pipelined_ns = around.now_ns;
                }
                // Who pipelined a moment ago still does: now and then the primary answers before the next unit is here.
                draft.pipelined = self.pipelined_ns > 0
                    && around.now_ns - self.pipelined_ns < PIPELINE_PATIENCE_NS;
                around.mirrors.seal(draft, exposed, around.now_ns);
            }
            None => around.mirrors.leave_out(content.class),
        }
    }

    fn content(&self, carried: &Carried, around: &Surroundings<'_>, wanted: bool) -> Content {
        let draft = wanted.then(|| {
            let mut draft = around.mirrors.units.draft(self.client, around.now_ns);
            draft.outcome.identity = self.identity.clone();
            carried.note_begin(&mut draft.outcome);
            draft
        });
        Content {
            class: Class::NONE,
            draft,
            charged: 0,
            lost: None,
            parsed_unnamed: false,
        }
    }
}

impl Held {
    /// Charges what a draft holds now, beyond what was charged before.
    fn grow(
        &mut self,
        charged: &mut usize,
        held: usize,
        bytes_max: usize,
    ) -> Result<(), DropReason> {
        let more = held.saturating_sub(*charged);
        if held > bytes_max {
            return Err(DropReason::Oversize);
        }
        if self.bytes + more > bytes_max.saturating_mul(PIPELINE_QUEUE_FACTOR) {
            // A deep pipeline: no unit of it is too large, all of them together are.
            return Err(DropReason::QueueFull);
        }
        if !self.budget.try_charge(more) {
            return Err(DropReason::Memory);
        }
        self.bytes += more;
        *charged += more;
        Ok(())
    }

    fn release(&mut self, charged: &mut usize) {
        let charged = std::mem::take(charged);
        self.bytes -= charged;
        self.budget.release(charged);
    }

    fn give_up(
        &mut self,
        content: &mut Content,
        reason: DropReason,
        mirrors: &MirrorGroup<PostgresOutcome>,
    ) {
        content.lost = Some(reason);
        self.drop_draft(content, mirrors);
    }

    fn drop_draft(&mut self, content: &mut Content, mirrors: &MirrorGroup<PostgresOutcome>) {
        self.release(&mut content.charged);
        if let Some(draft) = content.draft.take() {
            mirrors.units.discard(draft);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

/// Where bytes go now.
fn newest<'a>(
    cycles: &'a mut VecDeque<Cycle>,
    unit: &'a mut Option<Open>,
) -> Option<&'a mut Content> {
    match cycles.back_mut().and_then(|cycle| cycle.pending.as_mut()) {
        Some(content) => Some(content),
        None => unit.as_mut().map(|unit| &mut unit.content),
    }
}

/// Appends what a later cycle of the same unit sent and what it gave.
fn join(draft: &mut PgDraft, more: &mut PgDraft) {
    let offset = draft.payload.len();
    let groups = std::mem::take(&mut more.groups);
    draft.payload.append(std::mem::take(&mut more.payload));
    for mut group in groups {
        group.offset += offset;
        draft.groups.push(group);
    }
    draft.outcome.result.append(&more.outcome.result);
    draft.outcome.join(&mut more.outcome);
}

/// Keeps the beginning of the unit's first statement.
fn note_text(outcome: &mut PostgresOutcome, sql: &[u8]) {
    if outcome.text.is_empty() {
        outcome
            .text
            .push_str(&String::from_utf8_lossy(&sql[..sql.len().min(TEXT_MAX)]));
    }
}

/// What a text may do, in the engine's terms.
pub(super) fn engine_class(found: sql::Class) -> Class {
    let mut class = Class::NONE;
    for (theirs, ours) in [
        (sql::Class::READS, Class::READS),
        (sql::Class::WRITES, Class::WRITES),
        (sql::Class::DDL, Class::DDL),
        (sql::Class::UNKNOWN, Class::UNKNOWN),
    ] {
        if found.intersects(theirs) {
            class |= ours;
        }
    }
    class
}

/// Takes `unfinished` bytes from the end: the client had not finished their message when the server answered.
fn cut(draft: &mut PgDraft, unfinished: usize) {
    if unfinished == 0 {
        return;
    }
    let mut bytes = Vec::new();
    draft.payload.copy_into(&mut bytes);
    bytes.truncate(bytes.len().saturating_sub(unfinished));
    draft.payload.clear();
    draft.payload.push_copy(&bytes);
}
