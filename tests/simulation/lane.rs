//! One simulated mirror: the real dispatcher, pool and pacers, a worker as the proxy would run it,
//! the witness at the other end, and the shadow beside them.

use std::collections::BTreeMap;
use std::rc::Rc;

use fastrand::Rng;
use parhelion::mirror::dispatch::{Dispatcher, Ticket};
use parhelion::mirror::ledger::{DropReason, Fate};
use parhelion::mirror::pace::{Pace, SessionPacer, Start, UnitPacer};
use parhelion::mirror::pool::{Checkin, Checkout, PoolState};
use parhelion::mirror::unit::{Level, Unit};

use super::Mistake;
use super::shadow::{Shadow, ShadowBudget};
use super::source::{Slice, UnitSource};
use super::witness::Witness;

pub const TIMEOUT_NS: u64 = 30_000_000_000;
const LOGIN: u8 = 0;

/// The number of the unit among its client's.
pub type Seq = u64;

/// The protocol's outcome in the simulation: the unit's number, so that the shadow knows it.
#[derive(Debug, Default)]
pub struct Label(pub Seq);

impl parhelion::mirror::unit::Outcome for Label {}

pub type SimUnit = Unit<Slice, Label>;

enum Stage {
    /// The slot is being opened.
    Connecting,
    /// The next group is due at this time.
    Due(u64),
    /// The mirror has not answered the last group.
    Unanswered,
}

struct Job {
    ticket: Ticket<Slice, Label>,
    slot: usize,
    stage: Stage,
    group: usize,
    sent: usize,
    pacer: Option<UnitPacer>,
    began_ns: u64,
}

pub struct Lane {
    pub rings: Dispatcher<Slice, Label>,
    pub pool: PoolState<u8>,
    pub witness: Witness,
    pub shadow: Shadow,
    pub level: Level,
    pub pace: Pace,
    pub stalled: bool,
    pub retry_at_ns: Option<u64>,
    pub mistake: Option<Mistake>,
    jobs: Vec<Job>,
    sessions: BTreeMap<u64, SessionPacer>,
}

impl Lane {
    pub fn new(
        rings: Dispatcher<Slice, Label>,
        pool: PoolState<u8>,
        shadow: Shadow,
        pace: Pace,
    ) -> Self {
        Lane {
            rings,
            pool,
            witness: Witness::new(),
            shadow,
            level: Level::All,
            pace,
            stalled: false,
            retry_at_ns: None,
            mistake: None,
            jobs: Vec::new(),
            sessions: BTreeMap::new(),
        }
    }

    /// Everything that can go on without the mirror: hand out, connect, send what is due.
    pub fn pump(
        &mut self,
        now_ns: u64,
        rng: &mut Rng,
        budget: &mut ShadowBudget,
        source: &impl UnitSource,
    ) {
        if self.retry_at_ns.is_some_and(|at| at <= now_ns) {
            self.retry_at_ns = None;
            self.set_unavailable(false);
        }
        self.hand_out(now_ns);
        let mut place = 0;
        while place < self.jobs.len() {
            let ended = match self.jobs[place].stage {
                Stage::Due(at) if Start::of(at, now_ns) == Start::Now => {
                    self.send_group(place, now_ns, rng, source);
                    self.lose_without_sending(place, budget)
                }
                _ => self.time_out(place, now_ns, rng, budget),
            };
            if !ended {
                place += 1;
            }
        }
    }

    /// Connections that are being opened come about, or fail if the mirror is down.
    pub fn resolve_connects(&mut self, now_ns: u64, rng: &mut Rng) {
        for place in (0..self.jobs.len()).rev() {
            if !matches!(self.jobs[place].stage, Stage::Connecting) {
                continue;
            }
            let slot = self.jobs[place].slot;
            if self.witness.up {
                self.pool.opened(slot);
                self.witness.accept(slot);
                self.jobs[place].stage = Stage::Due(now_ns);
            } else {
                let until = self.pool.failed(slot, now_ns, rng.f64());
                let job = self.jobs.remove(place);
                self.put_back(job);
                self.back_off_until(until);
            }
        }
    }

    /// The mirror answers some of those that wait for it.
    pub fn answer(&mut self, now_ns: u64, rng: &mut Rng, budget: &mut ShadowBudget) {
        if self.stalled || !self.witness.up {
            return;
        }
        for place in (0..self.jobs.len()).rev() {
            let job = &mut self.jobs[place];
            if !matches!(job.stage, Stage::Unanswered) || rng.u8(0..4) == 0 {
                continue;
            }
            self.witness.answer(job.slot);
            let groups = &job.ticket.unit.groups;
            match (groups.get(job.group), &job.pacer) {
                (Some(group), Some(pacer)) => {
                    job.stage = Stage::Due(pacer.due_ns(group, now_ns));
                }
                _ => {
                    let job = self.jobs.remove(place);
                    let slot = job.slot;
                    self.settle(job, Fate::Delivered, budget);
                    if self.pool.checkin(slot) == Checkin::Close {
                        self.witness.close(slot);
                    }
                }
            }
        }
    }

    /// Every connection that `is_hit` names breaks.
    pub fn reset(
        &mut self,
        now_ns: u64,
        rng: &mut Rng,
        budget: &mut ShadowBudget,
        mut is_hit: impl FnMut(&mut Rng) -> bool,
    ) {
        for place in (0..self.jobs.len()).rev() {
            if matches!(self.jobs[place].stage, Stage::Connecting) || !is_hit(rng) {
                continue;
            }
            let job = self.jobs.remove(place);
            self.lose_connection(job, now_ns, rng, budget);
        }
    }

    /// Sends a part of some group before its connection breaks.
    pub fn cut_mid_group(
        &mut self,
        now_ns: u64,
        rng: &mut Rng,
        budget: &mut ShadowBudget,
        source: &impl UnitSource,
    ) {
        let due = |job: &Job| matches!(job.stage, Stage::Due(_));
        let Some(place) = self.jobs.iter().position(due) else {
            return;
        };
        let mut job = self.jobs.remove(place);
        let bytes = group_bytes(&job.ticket.unit, job.group);
        let sent = rng.usize(0..=bytes.len());
        self.witness.receive(job.slot, &bytes[..sent], source);
        job.sent += sent;
        self.lose_connection(job, now_ns, rng, budget);
    }

    pub fn set_unavailable(&mut self, unavailable: bool) {
        self.rings.set_unavailable(unavailable);
        self.shadow.unavailable = unavailable;
    }

    /// The time at which the next job wants to send.
    pub fn next_due_ns(&self) -> Option<u64> {
        let due = self.jobs.iter().filter_map(|job| match job.stage {
            Stage::Due(at) => Some(at),
            _ => None,
        });
        due.chain(self.retry_at_ns).min()
    }

    pub fn drop_waiting(&mut self, reason: DropReason, now_ns: u64, budget: &mut ShadowBudget) {
        if reason == DropReason::Timeout {
            self.rings.expire(now_ns, TIMEOUT_NS);
            self.shadow.drop_waiting(budget, reason, |sealed| {
                now_ns.saturating_sub(sealed) > TIMEOUT_NS
            });
        } else {
            self.rings.drain_remaining(reason);
            self.shadow.drop_waiting(budget, reason, |_| true);
        }
    }

    /// What must hold after every step.
    pub fn check(&self, now_ns: u64) {
        self.rings.check_invariants();
        self.pool.check_invariants();
        let books = self.rings.ledger().snapshot();
        assert!(books.balances(), "{books:?}");
        assert_eq!(books, self.shadow.books, "ledger and shadow");
        assert_eq!(self.rings.queued_units(), self.shadow.queued());
        assert_eq!(self.rings.queued_bytes(), self.shadow.bytes());
        assert_eq!(self.rings.in_flight(), self.shadow.in_flight());
        assert_eq!(
            self.rings.in_flight(),
            self.jobs.len(),
            "a unit without a job"
        );
        assert_eq!(self.rings.rings(), self.shadow.rings());
        let oldest = self.rings.oldest_age_ns(now_ns);
        assert_eq!(oldest.is_some(), self.rings.queued_units() > 0);
        // The mirror's own notes.
        let begun = self.jobs.iter().filter(|job| job.sent > 0).count() as u64;
        assert_eq!(
            books.delivered, self.witness.answered,
            "delivered, says the mirror"
        );
        let unknown = self.witness.touched - self.witness.answered;
        assert_eq!(books.errored + begun, unknown, "errored, says the mirror");
        assert!(self.witness.cut <= books.errored, "cut but not errored");
    }

    fn hand_out(&mut self, now_ns: u64) {
        loop {
            let pool = &self.pool;
            let may_go = |unit: &Unit<_, _>| pool.may_serve(unit.client, LOGIN, now_ns);
            let Some(ticket) = self.rings.next_for(may_go) else {
                return;
            };
            if self.mistake == Some(Mistake::Starve) && ticket.unit.client.0 % 3 == 0 {
                self.rings.requeue(ticket);
                return;
            }
            self.shadow
                .hand_out(ticket.unit.client.0, ticket.unit.outcome.0);
            let answer = self.pool.checkout(ticket.unit.client, LOGIN, now_ns);
            let (slot, stage) = match answer {
                Checkout::Use(slot) => {
                    let session = self.sessions.entry(ticket.unit.client.0).or_default();
                    let due = session.due_ns(self.pace, &ticket.unit).max(now_ns);
                    (slot, Stage::Due(due))
                }
                Checkout::Open(slot) => (slot, Stage::Connecting),
                other => panic!("{other:?}, though it may be served"),
            };
            self.jobs.push(Job {
                ticket,
                slot,
                stage,
                group: 0,
                sent: 0,
                pacer: None,
                began_ns: now_ns,
            });
        }
    }

    fn send_group(&mut self, place: usize, now_ns: u64, rng: &mut Rng, source: &impl UnitSource) {
        let mistake = self.mistake.filter(|_| rng.u8(0..8) == 0);
        if mistake == Some(Mistake::SettleUnsent) {
            return;
        }
        let job = &mut self.jobs[place];
        let unit = Rc::clone(&job.ticket.unit);
        let group = unit.groups[job.group];
        match &mut job.pacer {
            None => job.pacer = Some(UnitPacer::begin(self.pace, group.arrived_ns, now_ns)),
            Some(pacer) => {
                let due = match job.stage {
                    Stage::Due(at) => at,
                    _ => now_ns,
                };
                pacer.started(&group, due, now_ns);
            }
        }
        let mut bytes = group_bytes(&unit, job.group);
        if mistake == Some(Mistake::SendHalf) {
            bytes.truncate(bytes.len().div_ceil(2));
        }
        self.witness.receive(job.slot, &bytes, source);
        job.sent += bytes.len();
        job.group += 1;
        job.stage = Stage::Unanswered;
    }

    /// The planted mistake of the same name: the unit ends without having been sent.
    fn lose_without_sending(&mut self, place: usize, budget: &mut ShadowBudget) -> bool {
        let forgotten = self.mistake == Some(Mistake::SettleUnsent) && self.jobs[place].sent == 0;
        if forgotten {
            let job = self.jobs.remove(place);
            self.pool.closed(job.slot);
            self.witness.close(job.slot);
            self.settle(job, Fate::Delivered, budget);
        }
        forgotten
    }

    fn time_out(
        &mut self,
        place: usize,
        now_ns: u64,
        rng: &mut Rng,
        budget: &mut ShadowBudget,
    ) -> bool {
        let job = &self.jobs[place];
        let connecting = matches!(job.stage, Stage::Connecting);
        if connecting || now_ns.saturating_sub(job.began_ns) <= TIMEOUT_NS {
            return false;
        }
        let job = self.jobs.remove(place);
        self.lose_connection(job, now_ns, rng, budget);
        true
    }

    fn lose_connection(&mut self, job: Job, now_ns: u64, rng: &mut Rng, budget: &mut ShadowBudget) {
        self.witness.close(job.slot);
        if let Some(until) = self.pool.lost(job.slot, now_ns, rng.f64()) {
            self.back_off_until(until);
        }
        if job.sent == 0 || self.mistake == Some(Mistake::Resend) {
            self.put_back(job);
        } else {
            self.settle(job, Fate::Errored, budget);
        }
    }

    fn put_back(&mut self, job: Job) {
        self.shadow.requeue(job.ticket.unit.client.0);
        self.rings.requeue(job.ticket);
    }

    fn back_off_until(&mut self, until_ns: u64) {
        self.retry_at_ns = Some(until_ns);
        self.set_unavailable(true);
    }

    fn settle(&mut self, job: Job, fate: Fate, budget: &mut ShadowBudget) {
        self.shadow.settle(budget, job.ticket.unit.client.0, fate);
        match self.mistake {
            Some(Mistake::Leak) => drop(job.ticket),
            mistake => {
                self.rings.settle(job.ticket, fate);
                let ledger = self.rings.ledger();
                if mistake == Some(Mistake::SettleTwice) {
                    ledger.settle(fate);
                }
                if mistake == Some(Mistake::CountTwice) {
                    ledger.offer();
                    ledger.settle(fate);
                }
            }
        }
    }
}

fn group_bytes(unit: &SimUnit, group: usize) -> Vec<u8> {
    let mut all = Vec::new();
    unit.payload.copy_into(&mut all);
    let from = unit.groups[group].offset;
    let to = unit
        .groups
        .get(group + 1)
        .map_or(all.len(), |next| next.offset);
    all[from..to].to_vec()
}
