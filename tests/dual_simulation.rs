//! The dual writer against a model: a primary with several connections, a secondary that crashes and forgets, drops,
//! lost connections and repairs, in seeded order. Once all is quiet both stores are equal.
//!
//! Planted mistakes show that the model would notice: each is caught by some seed.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use fastrand::Rng;
use parhelion::mirror::dual::keys::{commands, hash, visit};
use parhelion::mirror::dual::order::Order;
use parhelion::mirror::dual::queue::{DualBounds, DualQueue, Kind};
use parhelion::mirror::dual::taint::Key;
use parhelion::mirror::ledger::{DropReason, Ledger};
use parhelion::protocol::resp::Request;
use parhelion::protocol::resp::effects::encode;

const STREAMS: usize = 4;
const KEYS: u8 = 20;
const ROOM: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// What was on a lost connection to the secondary counts as applied.
    Losses,
    /// Overlapping writes of two connections count as ordered.
    Doubts,
    /// A copy is queued although its key was written during the read.
    Copies,
    /// Dropped writes are forgotten.
    Drops,
}

type Store = BTreeMap<Vec<u8>, Vec<u8>>;

fn execute(store: &mut Store, bytes: &[u8]) {
    for frame in commands(bytes) {
        let request = Request::parse(frame);
        let arg = |at| request.arg(at).unwrap().to_vec();
        match request.name() {
            b"SET" => drop(store.insert(arg(1), arg(2))),
            b"APPEND" => store.entry(arg(1)).or_default().extend(arg(2)),
            b"DEL" => drop(store.remove(&arg(1))),
            other => panic!("{other:?}"),
        }
    }
}

struct Pending {
    bytes: Vec<u8>,
    arrived_ns: u64,
    executed: bool,
}

struct Copy {
    key: Key,
    sent_ns: u64,
    value: Option<Option<Vec<u8>>>,
}

struct World {
    rng: Rng,
    now_ns: u64,
    primary: Store,
    secondary: Store,
    streams: [VecDeque<Pending>; STREAMS],
    queue: DualQueue,
    ledger: Arc<Ledger>,
    order: Order,
    copies: Vec<Copy>,
    connected: bool,
    mistake: Option<Mistake>,
}

impl World {
    fn new(seed: u64, mistake: Option<Mistake>) -> World {
        let ledger = Arc::<Ledger>::default();
        let bounds = DualBounds {
            items: ROOM,
            bytes: 1 << 20,
        };
        World {
            rng: Rng::with_seed(seed),
            now_ns: 1000,
            primary: Store::new(),
            secondary: Store::new(),
            streams: Default::default(),
            queue: DualQueue::new(bounds, ledger.clone()),
            ledger,
            order: Order::default(),
            copies: Vec::new(),
            connected: true,
            mistake,
        }
    }

    fn step(&mut self) {
        self.now_ns += self.rng.u64(1..2_000_000);
        match self.rng.u8(0..100) {
            0..25 => self.client_sends(),
            25..42 => self.primary_executes(),
            42..60 => self.primary_answers(),
            60..74 => self.worker_sends(),
            74..88 => self.secondary_answers(),
            88 => self.stream_is_lost(),
            89 => self.connection_breaks(false),
            90 if self.rng.u8(0..4) == 0 => self.connection_breaks(true),
            90 => {}
            91 | 92 => self.connected = true,
            _ => self.repair(),
        }
        assert!(self.ledger.snapshot().balances());
    }

    fn client_sends(&mut self) {
        let number = self.rng.u8(0..KEYS);
        let key = vec![b'a' + number];
        let value = vec![b'A' + self.rng.u8(0..26)];
        let mut bytes = Vec::new();
        match self.rng.u8(0..10) {
            0..3 => encode(&mut bytes, [b"SET".to_vec(), key, value]),
            3..9 => encode(&mut bytes, [b"APPEND".to_vec(), key, value]),
            _ => encode(&mut bytes, [b"DEL".to_vec(), key]),
        }
        // Mostly a connection of the key's own, so that doubts about the order do not heal everything else.
        let stream = match self.rng.u8(0..50) {
            0 => self.rng.usize(0..STREAMS),
            _ => usize::from(number) % STREAMS,
        };
        self.streams[stream].push_back(Pending {
            bytes,
            arrived_ns: self.now_ns,
            executed: false,
        });
    }

    fn primary_executes(&mut self) {
        let stream = self.rng.usize(0..STREAMS);
        if let Some(pending) = self.streams[stream]
            .iter_mut()
            .find(|pending| !pending.executed)
        {
            pending.executed = true;
            execute(&mut self.primary, &pending.bytes);
        }
    }

    fn primary_answers(&mut self) {
        let stream = self.rng.usize(0..STREAMS);
        if !self.streams[stream]
            .front()
            .is_some_and(|pending| pending.executed)
        {
            return;
        }
        let pending = self.streams[stream].pop_front().unwrap();
        let (order, taint) = (&mut self.order, &mut self.queue.taint);
        visit(&pending.bytes, 0, |db, key| {
            let unknown = order.answered(
                hash(db, key),
                stream as u64 + 1,
                pending.arrived_ns,
                self.now_ns,
            );
            if unknown && self.mistake != Some(Mistake::Doubts) {
                taint.add(db, key);
            }
        });
        let mut item = self.queue.item();
        item.request = pending.bytes;
        item.commands = 1;
        if self.mistake == Some(Mistake::Drops) && self.queue.len() >= ROOM {
            return self.queue.recycle(item);
        }
        let _ = self.queue.offer(item);
    }

    /// Whatever it had not answered may have been executed or not.
    fn stream_is_lost(&mut self) {
        let stream = self.rng.usize(0..STREAMS);
        while let Some(pending) = self.streams[stream].pop_front() {
            if !pending.executed && self.rng.bool() {
                execute(&mut self.primary, &pending.bytes);
            }
            self.queue.taint_unit(&pending.bytes, 0);
        }
    }

    fn worker_sends(&mut self) {
        if self.connected {
            self.queue.send_next(self.now_ns);
        }
    }

    fn secondary_answers(&mut self) {
        if !self.connected {
            return;
        }
        let Some((item, ..)) = self.queue.expecting() else {
            return;
        };
        execute(&mut self.secondary, item.bytes());
        for _ in 1..item.replies() {
            assert!(self.queue.replied().is_none());
        }
        let item = self.queue.replied().unwrap();
        self.queue.delivered(item, false);
    }

    /// The first of what was on its way may still arrive. A crash forgets everything, and the next process says that it is
    /// another one.
    fn connection_breaks(&mut self, crash: bool) {
        // What arrives is applied, but nobody learns of it.
        if let Some((item, ..)) = self.queue.expecting()
            && self.rng.bool()
        {
            execute(&mut self.secondary, item.bytes());
        }
        self.connected = false;
        if self.mistake == Some(Mistake::Losses) {
            while let Some(item) = self.queue.replied() {
                self.queue.delivered(item, false);
            }
        }
        self.queue.broken();
        if crash {
            self.secondary.clear();
            self.queue.taint.add_all();
        }
    }

    fn repair(&mut self) {
        match self.rng.u8(0..3) {
            0 => self.begin_copy(),
            // The primary reads the key at some moment of the request.
            1 => {
                for copy in &mut self.copies {
                    copy.value
                        .get_or_insert_with(|| self.primary.get(&*copy.key.name).cloned());
                }
            }
            _ => self.end_copy(),
        }
    }

    fn begin_copy(&mut self) {
        if !self.connected {
            return;
        }
        if self.queue.taint.is_all() {
            let walk = self.queue.taint.walk();
            let names: Vec<_> = self
                .primary
                .keys()
                .chain(self.secondary.keys())
                .cloned()
                .collect();
            names.iter().for_each(|name| self.queue.taint.add(0, name));
            self.queue.taint.all_repaired(walk);
        }
        if let Some(key) = self.queue.taint.next(self.now_ns) {
            self.copies.push(Copy {
                key,
                sent_ns: self.now_ns,
                value: None,
            });
        }
    }

    fn end_copy(&mut self) {
        if self.copies.first().is_none_or(|copy| copy.value.is_none()) {
            return;
        }
        let Copy {
            key,
            sent_ns,
            value,
        } = self.copies.remove(0);
        let name = key.hash();
        if self.order.written_since(name, sent_ns) && self.mistake != Some(Mistake::Copies) {
            return self.queue.taint.retry(name, self.now_ns);
        }
        self.order.answered(name, 0, sent_ns, self.now_ns);
        let mut item = self.queue.item();
        item.kind = Kind::Repair(name);
        encode(&mut item.request, [b"DEL".as_slice(), &key.name]);
        item.commands = 1;
        match value.unwrap() {
            Some(value) => encode(&mut item.rewritten, [b"SET".as_slice(), &key.name, &value]),
            None => encode(&mut item.rewritten, [b"DEL".as_slice(), &key.name]),
        }
        item.expected
            .push(parhelion::protocol::resp::effects::Expected::Anything);
        self.queue.taint.repaired(name, self.now_ns);
        let _ = self.queue.offer(item);
    }

    /// Clients rest; everything comes to its end.
    fn settle(&mut self) {
        self.connected = true;
        for _ in 0..200_000 {
            self.now_ns += 1_000_000;
            self.primary_executes();
            self.primary_answers();
            self.connected = true;
            self.worker_sends();
            self.secondary_answers();
            self.repair();
            let streams = self.streams.iter().all(VecDeque::is_empty);
            if streams
                && self.queue.is_idle()
                && self.queue.taint.is_empty()
                && self.copies.is_empty()
            {
                return;
            }
        }
        panic!("it never came to rest");
    }
}

fn ends_equal(seed: u64, mistake: Option<Mistake>) -> bool {
    let mut world = World::new(seed, mistake);
    for _ in 0..world.rng.usize(50..3000) {
        world.step();
    }
    world.settle();
    let books = world.ledger.snapshot();
    assert!(books.balances() && books.in_flight() == 0);
    assert!(books.dropped_for(DropReason::QueueFull) + books.delivered > 0);
    world.primary == world.secondary
}

#[test]
fn once_all_is_quiet_the_secondary_equals_the_primary() {
    for seed in 0..256 {
        assert!(ends_equal(seed, None), "seed {seed}");
    }
}

#[test]
fn planted_mistakes_are_noticed() {
    for mistake in [
        Mistake::Losses,
        Mistake::Doubts,
        Mistake::Copies,
        Mistake::Drops,
    ] {
        let noticed = (0..64).any(|seed| !ends_equal(seed, Some(mistake)));
        assert!(noticed, "{mistake:?}");
    }
}
