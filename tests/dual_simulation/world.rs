//! The primary with its connections, the secondary, and what lies between them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use fastrand::Rng;
use parhelion::mirror::dual::keys::{commands, hash, visit};
use parhelion::mirror::dual::order::Order;
use parhelion::mirror::dual::queue::{DualBounds, DualQueue, Kind};
use parhelion::mirror::ledger::Ledger;
use parhelion::protocol::resp::Request;
use parhelion::protocol::resp::effects::encode;

use super::Mistake;
use super::reads::Suspicion;
use super::repairs::Copy;

pub const STREAMS: usize = 4;
pub const KEYS: u8 = 20;
const ROOM: usize = 4;

pub type Store = BTreeMap<Vec<u8>, Vec<u8>>;

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
pub fn read(store: &Store, request: &[u8]) -> Vec<u8> {
    let request = Request::parse(request);
    match store.get(request.arg(1).unwrap()) {
        Some(value) => [b"+", &value[..], b"\r\n"].concat(),
        None => b"$-1\r\n".to_vec(),
    }
}

pub struct Pending {
    bytes: Vec<u8>,
    arrived_ns: u64,
    pub executed: bool,
    /// What a read gave.
    reply: Option<Vec<u8>>,
}

pub struct World {
    pub rng: Rng,
    pub now_ns: u64,
    pub primary: Store,
    pub secondary: Store,
    pub streams: [VecDeque<Pending>; STREAMS],
    pub queue: DualQueue,
    pub ledger: Arc<Ledger>,
    pub order: Order,
    pub copies: Vec<Copy>,
    pub connected: bool,
    pub suspicions: BTreeMap<u64, Suspicion>,
    pub last_suspicion: u64,
    /// Divergences that were told.
    pub told: u64,
    pub compared: u64,
    /// The secondary loses its next write and says OK.
    loses: bool,
    pub mistake: Option<Mistake>,
}

impl World {
    pub fn new(seed: u64, mistake: Option<Mistake>) -> World {
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

    pub fn step(&mut self) {
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

    pub fn stream_answers(&mut self, stream: usize) {
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
    /// A client writes, and the secondary only says that it did.
    pub fn lose_a_write(&mut self) {
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
    pub fn read_everything(&mut self) {
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
    pub fn settle(&mut self) {
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
