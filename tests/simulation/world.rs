//! One core with its clients and mirrors under a virtual clock: draws an action, takes the step,
//! checks everything.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use fastrand::Rng;
use parhelion::mirror::dispatch::{Bounds, Dispatcher, MemoryBudget};
use parhelion::mirror::exposure::{Exposure, ExposureSet};
use parhelion::mirror::ledger::{DropReason, Ledger, LedgerSnapshot};
use parhelion::mirror::pace::Pace;
use parhelion::mirror::pool::{PoolMode, PoolState};
use parhelion::mirror::unit::{ClientId, Level, UnitPool};

use super::Mistake;
use super::lane::{Label, Lane, Seq, SimUnit};
use super::shadow::{Shadow, ShadowBudget};
use super::source::{Drawn, Piece, Slice, UnitSource};

const MIRRORS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Action {
    ClientComes,
    ClientSends,
    ClientLeaves,
    Connects,
    Answers,
    TimePasses,
    TimeJumps,
    Stall,
    Reset,
    CutMidGroup,
    MirrorDown,
    MirrorUp,
    Bounds,
    Exposure,
    Pause,
    Budget,
    Expire,
    Reconnect,
    PoolSize,
}

/// How often each action is drawn, relative to the others.
const WEIGHTS: &[(Action, u32)] = &[
    (Action::ClientComes, 8),
    (Action::ClientSends, 60),
    (Action::ClientLeaves, 6),
    (Action::Connects, 40),
    (Action::Answers, 90),
    (Action::TimePasses, 50),
    (Action::TimeJumps, 1),
    (Action::Stall, 4),
    (Action::Reset, 6),
    (Action::CutMidGroup, 6),
    (Action::MirrorDown, 3),
    (Action::MirrorUp, 6),
    (Action::Bounds, 3),
    (Action::Exposure, 3),
    (Action::Pause, 4),
    (Action::Budget, 3),
    (Action::Expire, 4),
    (Action::Reconnect, 2),
    (Action::PoolSize, 2),
];

pub struct World<U> {
    rng: Rng,
    now_ns: u64,
    source: U,
    units: UnitPool<Slice, Label>,
    budget: MemoryBudget,
    shadow_budget: ShadowBudget,
    exposures: ExposureSet,
    lanes: Vec<Lane>,
    /// Clients that are here, and the number of their next unit.
    clients: BTreeMap<u64, Seq>,
    next_client: u64,
    mistake: Option<Mistake>,
    /// The latest actions, for the report of a failure.
    pub trace: VecDeque<String>,
}

impl<U: UnitSource> World<U> {
    pub fn new(seed: u64, source: U, mistake: Option<Mistake>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let units = UnitPool::default();
        let budget = MemoryBudget::new(1 << 20);
        let modes = [PoolMode::Unit, PoolMode::Session];
        let paces = [Pace::Off, Pace::Transaction, Pace::Session];
        let lanes = (0..MIRRORS).map(|_| {
            let bounds = random_bounds(&mut rng);
            let ledger = Arc::new(Ledger::default());
            let rings = Dispatcher::new(ledger, budget.clone(), units.clone(), bounds);
            let mode = modes[rng.usize(0..2)];
            let pool = PoolState::new(rng.usize(1..5), mode);
            let pace = paces[rng.usize(0..3)];
            let mut lane = Lane::new(rings, pool, Shadow::new(bounds), pace);
            lane.level = [Level::All, Level::All, Level::Writes][rng.usize(0..3)];
            lane.shadow.fair = mode == PoolMode::Unit;
            lane.mistake = mistake;
            lane.shadow.trusting = mistake == Some(Mistake::Reorder);
            lane
        });
        let lanes = lanes.collect();
        World {
            now_ns: rng.u64(0..1 << 40),
            rng,
            source,
            units,
            budget,
            shadow_budget: ShadowBudget::new(1 << 20),
            exposures: ExposureSet::new(&[Exposure::ALL; MIRRORS]),
            lanes,
            clients: BTreeMap::new(),
            next_client: 1,
            mistake,
            trace: VecDeque::new(),
        }
    }

    /// Runs `steps` actions, then drains. Panics at the first thing that is wrong.
    pub fn run(&mut self, steps: usize) -> LedgerSnapshot {
        for step in 0..steps {
            let action = self.draw_action();
            self.trace
                .push_back(format!("{step}: {action:?} at {}", self.now_ns));
            if self.trace.len() > 20 {
                self.trace.pop_front();
            }
            self.take(action);
            self.pump();
            self.check();
        }
        self.drain();
        let mut sum = LedgerSnapshot::default();
        for lane in &self.lanes {
            sum.merge(&lane.rings.ledger().snapshot());
        }
        sum
    }

    fn draw_action(&mut self) -> Action {
        let total = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.u32(0..total);
        for (action, weight) in WEIGHTS {
            if at < *weight {
                return *action;
            }
            at -= weight;
        }
        unreachable!("the weights sum to the total")
    }

    fn take(&mut self, action: Action) {
        let pick = self.rng.usize(0..MIRRORS);
        let (now, budget) = (self.now_ns, &mut self.shadow_budget);
        let (lane, rng) = (&mut self.lanes[pick], &mut self.rng);
        match action {
            Action::ClientComes => self.client_comes(),
            Action::ClientSends => self.client_sends(),
            Action::ClientLeaves => self.client_leaves(),
            Action::Connects => lane.resolve_connects(now, rng),
            Action::Answers => lane.answer(now, rng, budget),
            Action::TimePasses => self.now_ns += rng.u64(0..20_000_000),
            Action::TimeJumps => self.now_ns += rng.u64(1..120) * 1_000_000_000,
            Action::Stall => lane.stalled = rng.u8(0..3) == 0,
            Action::Reset => lane.reset(now, rng, budget, |rng| rng.bool()),
            Action::CutMidGroup => lane.cut_mid_group(now, rng, budget, &self.source),
            Action::MirrorDown => {
                lane.witness.up = false;
                lane.reset(now, rng, budget, |_| true);
            }
            Action::MirrorUp => lane.witness.up = true,
            Action::Bounds => {
                let bounds = random_bounds(rng);
                lane.rings.set_bounds(bounds);
                lane.shadow.set_bounds(bounds);
            }
            Action::Exposure => self.change_exposure(),
            Action::Pause => {
                let paused = rng.u8(0..4) == 0;
                lane.rings.set_paused(paused);
                lane.shadow.paused = paused;
            }
            Action::Budget => {
                let limit = [2_000, 40_000, 1 << 20, 1 << 20][rng.usize(0..4)];
                self.budget.set_limit(limit);
                budget.limit = limit;
            }
            Action::Expire => lane.drop_waiting(DropReason::Timeout, now, budget),
            Action::Reconnect => {
                for slot in lane.pool.reconnect() {
                    lane.witness.close(slot);
                }
            }
            Action::PoolSize => {
                for slot in lane.pool.set_size(rng.usize(1..5)) {
                    lane.witness.close(slot);
                }
            }
        }
    }

    fn client_comes(&mut self) {
        let client = self.next_client;
        self.next_client += 1;
        self.clients.insert(client, 0);
        for lane in &mut self.lanes {
            // Some have a ring of their own, the others get one with their first unit.
            if self.rng.bool() {
                let bounds = random_bounds(&mut self.rng);
                lane.rings.attach(ClientId(client), bounds);
                lane.shadow.attach(client, bounds);
            }
        }
    }

    fn client_leaves(&mut self) {
        let Some(client) = self.any_client() else {
            return;
        };
        self.clients.remove(&client);
        // It may leave inside a transaction: the primary rolls it back, nobody sees it.
        if self.rng.bool() {
            self.units
                .discard(self.units.draft(ClientId(client), self.now_ns));
            for lane in &mut self.lanes {
                lane.rings.exclude();
                lane.shadow.books.excluded += 1;
                lane.shadow.books.observed += 1;
            }
        }
        for lane in &mut self.lanes {
            lane.rings.detach(ClientId(client));
            lane.shadow.detach(client);
            if let Some(slot) = lane.pool.release(ClientId(client))
                && self.rng.bool()
            {
                lane.pool.closed(slot);
                lane.witness.close(slot);
            }
        }
    }

    fn client_sends(&mut self) {
        let Some(client) = self.any_client() else {
            return;
        };
        let mut burst = Vec::new();
        for _ in 0..self.rng.usize(1..4) {
            let next = self.clients.entry(client).or_default();
            let seq = *next;
            *next += 1;
            let drawn = self.source.draw(&mut self.rng, client, seq);
            burst.push(self.seal(client, seq, drawn));
        }
        let mut swapped = burst.clone();
        if self.mistake == Some(Mistake::Reorder) {
            swapped.reverse();
        }
        for (told, offered) in burst.iter().zip(&swapped) {
            self.offer(told, offered);
        }
        for unit in burst.into_iter().chain(swapped) {
            self.units.recycle(unit);
        }
    }

    fn seal(&mut self, client: u64, seq: Seq, drawn: Drawn) -> Rc<SimUnit> {
        let mut draft = self.units.draft(ClientId(client), self.now_ns);
        draft.class = drawn.class;
        draft.outcome = Label(seq);
        for (gap_ns, pieces) in drawn.groups {
            self.now_ns += gap_ns;
            draft.begin_group(self.now_ns);
            for piece in pieces {
                match piece {
                    Piece::Copied(bytes) => draft.payload.push_copy(&bytes),
                    Piece::Shared(slice) => {
                        let held = slice.len();
                        draft.payload.push_shared(slice, held);
                    }
                }
            }
        }
        self.now_ns += self.rng.u64(0..1_000_000);
        draft.seal(self.now_ns)
    }

    /// Offers `offered` to the mirrors that the draw names and tells the shadows that it was `told`:
    /// the two differ only by mistake.
    fn offer(&mut self, told: &Rc<SimUnit>, offered: &Rc<SimUnit>) {
        let exposed = self.exposures.decide(self.rng.f64());
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let books = &mut lane.shadow.books;
            if !exposed.contains(index) {
                lane.rings.leave_unexposed();
                books.unexposed += 1;
                books.observed += 1;
            } else if !lane.level.admits(offered.class) {
                lane.rings.exclude();
                books.excluded += 1;
                books.observed += 1;
            } else {
                // The reordering mistake is told as it happened: only the mirror can see it.
                let told = if lane.shadow.trusting { offered } else { told };
                let name = (told.client.0, told.outcome.0);
                let (bytes, sealed) = (told.held_bytes(), told.sealed_ns);
                let budget = &mut self.shadow_budget;
                let expected = lane.shadow.offer(budget, name, bytes, sealed);
                if self.mistake != Some(Mistake::Forget) {
                    assert_eq!(lane.rings.offer(offered), expected, "offer");
                }
            }
        }
    }

    fn change_exposure(&mut self) {
        let shares = [0.0, 0.5, 1.0, 1.0];
        let exposures: [Exposure; MIRRORS] =
            std::array::from_fn(|_| Exposure::new(shares[self.rng.usize(0..4)]).unwrap());
        self.exposures = ExposureSet::new(&exposures);
    }

    fn any_client(&mut self) -> Option<u64> {
        let at = self.rng.usize(0..self.clients.len().max(1));
        self.clients.keys().nth(at).copied()
    }

    fn pump(&mut self) {
        for lane in &mut self.lanes {
            let (rng, budget) = (&mut self.rng, &mut self.shadow_budget);
            lane.pump(self.now_ns, rng, budget, &self.source);
        }
    }

    fn check(&self) {
        for lane in &self.lanes {
            lane.check(self.now_ns);
        }
        assert_eq!(self.budget.used(), self.shadow_budget.used(), "memory");
    }

    /// All clients leave and the mirrors are well: everything ends, and nothing is left anywhere.
    fn drain(&mut self) {
        while !self.clients.is_empty() {
            self.client_leaves();
        }
        for lane in &mut self.lanes {
            lane.stalled = false;
            lane.witness.up = true;
            lane.rings.set_paused(false);
            lane.shadow.paused = false;
        }
        for _ in 0..20_000 {
            if self.lanes.iter().all(|lane| lane.rings.is_idle()) {
                break;
            }
            let due = self.lanes.iter().filter_map(Lane::next_due_ns).min();
            self.now_ns = due.unwrap_or(0).max(self.now_ns + 1_000_000);
            for lane in &mut self.lanes {
                let (rng, budget) = (&mut self.rng, &mut self.shadow_budget);
                lane.resolve_connects(self.now_ns, rng);
                lane.answer(self.now_ns, rng, budget);
            }
            self.pump();
            // Some drains are cut short.
            if self.rng.u8(0..100) == 0 {
                for lane in &mut self.lanes {
                    let budget = &mut self.shadow_budget;
                    lane.drop_waiting(DropReason::Shutdown, self.now_ns, budget);
                }
            }
            self.check();
        }
        for lane in &self.lanes {
            assert!(lane.rings.is_idle(), "a unit never ended");
            assert_eq!(lane.rings.ledger().snapshot().in_flight(), 0);
            assert_eq!(lane.rings.rings(), 0, "a ring outlived its client");
        }
        assert_eq!(self.budget.used(), 0, "memory is left behind");
    }
}

fn random_bounds(rng: &mut Rng) -> Bounds {
    Bounds {
        units: [1, 4, 32][rng.usize(0..3)],
        bytes: [3_000, 30_000, 1 << 20][rng.usize(0..3)],
    }
}
