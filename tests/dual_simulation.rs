//! The dual writer against a model: a primary with several connections, a secondary that crashes and forgets, drops,
//! lost connections and repairs, in seeded order. Once all is quiet both stores are equal. Shadow reads run among it: they
//! wait for their place behind the writes (their fence) and are read again before they are told, and none is told.
//!
//! Planted mistakes show that the model would notice: each is caught by some seed. `PARHELION_SIM_SEEDS=10000` for more
//! seeds.

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
    /// A shadow read is compared with what the secondary has at once, not behind the writes before it.
    Fence,
    /// A shadow read that differs is told without being read again.
    Reread,
}

/// Attempts to read again, as the proxy makes them.
const ATTEMPTS: u32 = 3;

type Store = BTreeMap<Vec<u8>, Vec<u8>>;

fn execute(store: &mut Store, bytes: &[u8]) {
    for frame in commands(bytes) {
        let request = Request::parse(frame);
        let arg = |at| request.arg(at).unwrap().to_vec();
        match request.name() {
            b"SET" => drop(store.insert(arg(1), arg(2))),
            b"APPEND" => store.entry(arg(1)).or_default().extend(arg(2)),
            b"DEL" => drop(store.remove(&arg(1))),
            b"GET" => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The answer to a GET.
fn read(store: &Store, request: &[u8]) -> Vec<u8> {
    let request = Request::parse(request);
    match store.get(request.arg(1).unwrap()) {
        Some(value) => [b"+", &value[..], b"\r\n"].concat(),
        None => b"$-1\r\n".to_vec(),
    }
}

struct Pending {
    bytes: Vec<u8>,
    arrived_ns: u64,
    executed: bool,
    /// What a read gave.
    reply: Option<Vec<u8>>,
}

/// A shadow read that differed.
struct Suspicion {
    request: Vec<u8>,
    attempts: u32,
    sent_ns: u64,
    /// Its turn is in the queue.
    queued: bool,
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
    suspicions: BTreeMap<u64, Suspicion>,
    last_suspicion: u64,
    /// Divergences that were told.
    told: u64,
    compared: u64,
    /// The secondary loses its next write and says OK.
    loses: bool,
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
            suspicions: BTreeMap::new(),
            last_suspicion: 0,
            told: 0,
            compared: 0,
            loses: false,
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
            93 | 94 => self.read_again(),
            _ => self.repair(),
        }
        assert!(self.ledger.snapshot().balances());
    }

    fn client_sends(&mut self) {
        let number = self.rng.u8(0..KEYS);
        let key = vec![b'a' + number];
        let value = vec![b'A' + self.rng.u8(0..26)];
        let mut bytes = Vec::new();
        match self.rng.u8(0..14) {
            0..3 => encode(&mut bytes, [b"SET".to_vec(), key, value]),
            3..9 => encode(&mut bytes, [b"APPEND".to_vec(), key, value]),
            9..13 => encode(&mut bytes, [b"GET".to_vec(), key]),
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
            reply: None,
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
            if Request::parse(&pending.bytes).name() == b"GET" {
                pending.reply = Some(read(&self.primary, &pending.bytes));
            }
        }
    }

    fn primary_answers(&mut self) {
        let stream = self.rng.usize(0..STREAMS);
        self.stream_answers(stream);
    }

    fn stream_answers(&mut self, stream: usize) {
        if !self.streams[stream]
            .front()
            .is_some_and(|pending| pending.executed)
        {
            return;
        }
        let pending = self.streams[stream].pop_front().unwrap();
        if let Some(reply) = pending.reply {
            return self.shadow(pending.bytes, reply);
        }
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

    /// A read that the primary has answered goes behind the writes that it has answered.
    fn shadow(&mut self, request: Vec<u8>, reply: Vec<u8>) {
        if self.mistake == Some(Mistake::Fence) {
            if self.connected
                && read(&self.secondary, &request) != reply
                && !self.in_doubt(&request)
            {
                self.told += 1;
            }
            return;
        }
        let mut item = self.queue.item();
        item.kind = Kind::Read;
        item.request = request;
        item.reply = reply;
        item.commands = 1;
        let _ = self.queue.offer(item);
    }

    fn in_doubt(&self, request: &[u8]) -> bool {
        let mut doubt = self.queue.taint.is_all();
        visit(request, 0, |db, key| {
            doubt |= self.queue.in_doubt(hash(db, key));
        });
        doubt
    }

    /// The secondary has answered a read: what differs is read again, as the proxy's rereads do.
    fn read_answered(&mut self, kind: Kind, request: Vec<u8>, wanted: &[u8]) {
        let differs = read(&self.secondary, &request) != wanted && !self.in_doubt(&request);
        self.compared += 1;
        match kind {
            Kind::Read if differs && self.mistake == Some(Mistake::Reread) => self.told += 1,
            Kind::Read if differs => {
                self.last_suspicion += 1;
                let suspicion = Suspicion {
                    request,
                    attempts: 0,
                    sent_ns: 0,
                    queued: false,
                };
                self.suspicions.insert(self.last_suspicion, suspicion);
            }
            Kind::Reread(number) => {
                // An answer is never on its way for as long as a read again takes its turn: what the primary had executed
                // before it was read is known by now.
                for stream in 0..STREAMS {
                    while self.streams[stream]
                        .front()
                        .is_some_and(|pending| pending.executed)
                    {
                        self.stream_answers(stream);
                    }
                }
                let Some(mut suspicion) = self.suspicions.remove(&number) else {
                    return;
                };
                if !differs {
                    return;
                }
                suspicion.attempts += 1;
                suspicion.queued = false;
                if suspicion.attempts < ATTEMPTS {
                    self.suspicions.insert(number, suspicion);
                    return;
                }
                let mut raced = self.in_doubt(&suspicion.request);
                visit(&suspicion.request, 0, |db, key| {
                    raced |= self.order.written_since(hash(db, key), suspicion.sent_ns);
                });
                self.told += u64::from(!raced);
            }
            _ => {}
        }
    }

    /// Reads the primary once more and queues the secondary's turn.
    fn read_again(&mut self) {
        let next = self.suspicions.iter_mut().find(|(_, one)| !one.queued);
        let Some((number, suspicion)) = next else {
            return;
        };
        suspicion.sent_ns = self.now_ns;
        suspicion.queued = true;
        let number = *number;
        let mut item = self.queue.item();
        item.kind = Kind::Reread(number);
        item.request.clone_from(&suspicion.request);
        item.reply = read(&self.primary, &suspicion.request);
        item.commands = 1;
        if self.queue.offer(item).is_err() {
            self.suspicions.remove(&number);
        }
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
        let replies = item.replies();
        let lost = item.kind == Kind::Write && std::mem::take(&mut self.loses);
        if !lost {
            execute(&mut self.secondary, item.bytes());
        }
        for _ in 1..replies {
            assert!(self.queue.replied().is_none());
        }
        let item = self.queue.replied().unwrap();
        if matches!(item.kind, Kind::Read | Kind::Reread(_)) {
            self.read_answered(item.kind, item.request.clone(), &item.reply);
        }
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
        // What was to be read again is forgotten: only its turn in the queue, not the read itself, may still be there.
        self.suspicions.clear();
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

    /// A client writes, and the secondary only says that it did.
    fn lose_a_write(&mut self) {
        let mut bytes = Vec::new();
        encode(&mut bytes, [b"SET".as_slice(), b"a", b"news"]);
        self.streams[0].push_back(Pending {
            bytes,
            arrived_ns: self.now_ns,
            executed: false,
            reply: None,
        });
        self.loses = true;
        self.settle();
    }

    /// A client reads every key once.
    fn read_everything(&mut self) {
        for number in 0..KEYS {
            let mut bytes = Vec::new();
            encode(&mut bytes, [b"GET".to_vec(), vec![b'a' + number]]);
            self.streams[0].push_back(Pending {
                bytes,
                arrived_ns: self.now_ns,
                executed: false,
                reply: None,
            });
            self.settle();
        }
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
            self.read_again();
            let streams = self.streams.iter().all(VecDeque::is_empty);
            if streams
                && self.queue.is_idle()
                && self.queue.taint.is_empty()
                && self.copies.is_empty()
                && self.suspicions.is_empty()
            {
                return;
            }
        }
        panic!("it never came to rest");
    }
}

/// Runs a seed to its end.
fn run(seed: u64, mistake: Option<Mistake>, loses: bool) -> World {
    let mut world = World::new(seed, mistake);
    for _ in 0..world.rng.usize(50..3000) {
        world.step();
    }
    world.settle();
    if loses {
        world.lose_a_write();
    }
    world.read_everything();
    let books = world.ledger.snapshot();
    assert!(books.balances() && books.in_flight() == 0);
    assert!(books.dropped_for(DropReason::QueueFull) + books.delivered > 0);
    world
}

fn seeds() -> u64 {
    let text = std::env::var("PARHELION_SIM_SEEDS");
    text.map_or(256, |text| text.parse().unwrap())
}

#[test]
fn once_all_is_quiet_the_secondary_equals_the_primary_and_no_read_was_told() {
    let mut compared = 0;
    for seed in 0..seeds() {
        let world = run(seed, None, false);
        assert!(world.primary == world.secondary, "seed {seed}");
        assert_eq!(world.told, 0, "seed {seed}: a right secondary was accused");
        compared += world.compared;
    }
    println!("{compared} shadow reads compared");
    assert!(compared >= seeds() * u64::from(KEYS), "{compared}");
}

#[test]
fn a_secondary_that_loses_a_write_in_silence_is_told_of() {
    for seed in 0..64 {
        assert_eq!(run(seed, None, true).told, 1, "seed {seed}");
    }
}

#[test]
fn planted_mistakes_are_noticed() {
    for mistake in [
        Mistake::Losses,
        Mistake::Doubts,
        Mistake::Copies,
        Mistake::Drops,
        Mistake::Fence,
        Mistake::Reread,
    ] {
        let noticed = (0..64).any(|seed| {
            let world = run(seed, Some(mistake), false);
            world.primary != world.secondary || world.told > 0
        });
        assert!(noticed, "{mistake:?}");
    }
}
