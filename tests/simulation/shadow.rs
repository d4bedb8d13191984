//! A naive twin of the dispatcher, written from the specification: plain lists, no care for speed.
//! It foretells what the real one does, and is compared with it after every step.

use std::collections::{BTreeMap, VecDeque};

use parhelion::mirror::dispatch::{Bounds, Offered};
use parhelion::mirror::ledger::{DropReason, Fate, LedgerSnapshot};

type UnitName = (u64, u64);

/// The core's memory: every unit that some ring holds, once, with its size and its holders.
pub struct ShadowBudget {
    pub limit: usize,
    held: BTreeMap<UnitName, (usize, u32)>,
}

impl ShadowBudget {
    pub fn new(limit: usize) -> Self {
        ShadowBudget {
            limit,
            held: BTreeMap::new(),
        }
    }

    pub fn used(&self) -> usize {
        self.held.values().map(|(bytes, _)| bytes).sum()
    }

    fn take(&mut self, name: UnitName, bytes: usize) -> bool {
        let fits = self.held.contains_key(&name) || self.used() + bytes <= self.limit;
        if fits {
            self.held.entry(name).or_insert((bytes, 0)).1 += 1;
        }
        fits
    }

    fn let_go(&mut self, name: UnitName) {
        let entry = self.held.get_mut(&name).expect("held");
        entry.1 -= 1;
        if entry.1 == 0 {
            self.held.remove(&name);
        }
    }
}

struct Waiting {
    seq: u64,
    bytes: usize,
    sealed_ns: u64,
}

struct ShadowRing {
    bounds: Bounds,
    attached: bool,
    waiting: VecDeque<Waiting>,
    in_flight: Option<Waiting>,
    /// Units of others that left while one of this client could have.
    passed_over: usize,
    /// Rings there were when the first of them left: each may come first once.
    patience: usize,
}

pub struct Shadow {
    pub bounds: Bounds,
    pub paused: bool,
    pub unavailable: bool,
    pub books: LedgerSnapshot,
    /// Takes any order for right: then the witness alone must see a mistake.
    pub trusting: bool,
    /// Whether the clients share the connections: then none may starve.
    pub fair: bool,
    rings: BTreeMap<u64, ShadowRing>,
}

impl Shadow {
    pub fn new(bounds: Bounds) -> Self {
        Shadow {
            bounds,
            paused: false,
            unavailable: false,
            books: LedgerSnapshot::default(),
            trusting: false,
            fair: true,
            rings: BTreeMap::new(),
        }
    }

    pub fn attach(&mut self, client: u64, bounds: Bounds) {
        let ring = self.ring(client);
        ring.bounds = bounds;
        ring.attached = true;
    }

    pub fn detach(&mut self, client: u64) {
        if let Some(ring) = self.rings.get_mut(&client) {
            ring.attached = false;
        }
        self.forget_the_gone();
    }

    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        self.rings
            .values_mut()
            .for_each(|ring| ring.bounds = bounds);
    }

    pub fn offer(
        &mut self,
        budget: &mut ShadowBudget,
        (client, seq): UnitName,
        bytes: usize,
        sealed_ns: u64,
    ) -> Offered {
        self.books.observed += 1;
        self.books.offered += 1;
        let full = if self.unavailable {
            DropReason::Unavailable
        } else {
            DropReason::QueueFull
        };
        let ring = self.rings.get(&client);
        let bounds = ring.map_or(self.bounds, |ring| ring.bounds);
        let units = ring.map_or(0, |ring| ring.waiting.len());
        let held = ring.map_or(0, ShadowRing::bytes);
        let reason = if self.paused {
            Some(DropReason::Paused)
        } else if bytes > bounds.bytes {
            Some(DropReason::Oversize)
        } else if units >= bounds.units || held + bytes > bounds.bytes {
            Some(full)
        } else if !budget.take((client, seq), bytes) {
            Some(DropReason::Memory)
        } else {
            None
        };
        if let Some(reason) = reason {
            self.books.dropped[reason as usize] += 1;
            return Offered::Dropped(reason);
        }
        let waiting = Waiting {
            seq,
            bytes,
            sealed_ns,
        };
        self.ring(client).waiting.push_back(waiting);
        Offered::Queued
    }

    pub fn hand_out(&mut self, client: u64, seq: u64) {
        assert!(
            !self.paused && !self.unavailable,
            "a unit left a closed mirror"
        );
        let clients = self.rings.len();
        let ring = self.rings.get_mut(&client).expect("a ring");
        assert!(ring.in_flight.is_none(), "two units of one client at once");
        let at = if self.trusting {
            ring.waiting.iter().position(|unit| unit.seq == seq)
        } else {
            Some(0)
        };
        let unit = at.and_then(|at| ring.waiting.remove(at)).expect("waiting");
        assert_eq!(unit.seq, seq, "client {client}: not the oldest unit");
        ring.in_flight = Some(unit);
        ring.passed_over = 0;
        for ring in self.rings.values_mut() {
            if ring.waiting.is_empty() || ring.in_flight.is_some() {
                ring.passed_over = 0;
                continue;
            }
            if ring.passed_over == 0 {
                ring.patience = clients;
            }
            ring.passed_over += 1;
            let starves = self.fair && ring.passed_over >= ring.patience;
            assert!(!starves, "a client starves");
        }
    }

    pub fn requeue(&mut self, client: u64) {
        let ring = self.ring(client);
        let unit = ring.in_flight.take().expect("in flight");
        ring.waiting.push_front(unit);
    }

    pub fn settle(&mut self, budget: &mut ShadowBudget, client: u64, fate: Fate) {
        let unit = self.ring(client).in_flight.take().expect("in flight");
        budget.let_go((client, unit.seq));
        self.book(fate);
        self.forget_the_gone();
    }

    /// Drops the units for which `is_over` holds for the time they were sealed at.
    pub fn drop_waiting(
        &mut self,
        budget: &mut ShadowBudget,
        reason: DropReason,
        is_over: impl Fn(u64) -> bool,
    ) {
        let mut dropped = 0;
        for (client, ring) in &mut self.rings {
            ring.waiting.retain(|unit| {
                let over = is_over(unit.sealed_ns);
                if over {
                    budget.let_go((*client, unit.seq));
                    dropped += 1;
                }
                !over
            });
            if ring.waiting.is_empty() {
                ring.passed_over = 0;
            }
        }
        self.books.dropped[reason as usize] += dropped;
        self.forget_the_gone();
    }

    pub fn rings(&self) -> usize {
        self.rings.len()
    }

    pub fn queued(&self) -> usize {
        self.rings.values().map(|ring| ring.waiting.len()).sum()
    }

    pub fn in_flight(&self) -> usize {
        let on_way = self.rings.values().filter(|ring| ring.in_flight.is_some());
        on_way.count()
    }

    pub fn bytes(&self) -> usize {
        self.rings.values().map(ShadowRing::bytes).sum()
    }

    fn book(&mut self, fate: Fate) {
        match fate {
            Fate::Delivered => self.books.delivered += 1,
            Fate::Errored => self.books.errored += 1,
            Fate::Dropped(reason) => self.books.dropped[reason as usize] += 1,
        }
    }

    fn ring(&mut self, client: u64) -> &mut ShadowRing {
        let bounds = self.bounds;
        self.rings.entry(client).or_insert_with(|| ShadowRing {
            bounds,
            attached: false,
            waiting: VecDeque::new(),
            in_flight: None,
            passed_over: 0,
            patience: 0,
        })
    }

    fn forget_the_gone(&mut self) {
        self.rings.retain(|_, ring| {
            ring.attached || !ring.waiting.is_empty() || ring.in_flight.is_some()
        });
    }
}

impl ShadowRing {
    fn bytes(&self) -> usize {
        let waiting = self.waiting.iter().chain(&self.in_flight);
        waiting.map(|unit| unit.bytes).sum()
    }
}
