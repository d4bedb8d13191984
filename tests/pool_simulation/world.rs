//! Pools of connections, their clients, and what happens to them: reads of any size in both directions, clients that leave in the
//! middle, connections that die, a reload and a drain. Draws an action, takes the step, checks everything.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;

use crate::Mistake;
use crate::client::{Client, Connection};
use crate::pool_script::script;
use crate::server::{TEXTS, split_message};

const CLIENTS_MAX: usize = 6;

/// The connections of one configuration. A reload makes another pool: who is here stays with the old one.
struct Pool {
    size: usize,
    idle: Vec<Connection>,
    /// Connections that are open.
    total: usize,
    waiting: VecDeque<u64>,
}

impl Pool {
    fn new(size: usize) -> Pool {
        Pool {
            size,
            idle: Vec::new(),
            total: 0,
            waiting: VecDeque::new(),
        }
    }
}

/// A client in its pool.
struct Seat {
    client: Client,
    pool: usize,
    holds: Option<Connection>,
}

/// What a run has seen.
#[derive(Debug, Default)]
pub struct Sum {
    pub exchanges: u64,
    pub waits: u64,
    pub deaths: u64,
    pub departures: u64,
    pub reloads: u64,
    pub cut_by_drain: u64,
    pub finished_in_drain: u64,
}

pub struct World {
    rng: Rng,
    pools: Vec<Pool>,
    seats: BTreeMap<u64, Seat>,
    next: u64,
    mistake: Option<Mistake>,
    sum: Sum,
}

impl World {
    pub fn new(seed: u64, mistake: Option<Mistake>) -> World {
        let mut rng = Rng::with_seed(seed);
        World {
            pools: vec![Pool::new(rng.usize(1..4))],
            rng,
            seats: BTreeMap::new(),
            next: 0,
            mistake,
            sum: Sum::default(),
        }
    }

    pub fn run(mut self, steps: usize) -> Sum {
        for _ in 0..steps {
            match self.rng.u16(0..1000) {
                0..30 => self.comes(),
                30..500 => self.sends(),
                500..700 => self.server_works(),
                700..960 => self.receives(),
                960..966 => self.leaves(),
                980..983 => self.dies(),
                990..992 => self.reloads(),
                _ => {}
            }
            self.check();
        }
        self.drain();
        self.sum
    }

    fn any(&mut self) -> Option<u64> {
        let at = self.rng.usize(0..self.seats.len().max(1));
        self.seats.keys().nth(at).copied()
    }

    fn comes(&mut self) {
        if self.seats.len() < CLIENTS_MAX {
            let seat = Seat {
                client: Client::new(self.mistake),
                pool: self.pools.len() - 1,
                holds: None,
            };
            self.seats.insert(self.next, seat);
            self.next += 1;
        }
    }

    fn sends(&mut self) {
        if let Some(id) = self.any() {
            let decides = self.seats[&id].client.rests();
            if decides {
                let Some(seat) = self.seats.get_mut(&id) else {
                    return;
                };
                let script = script(&TEXTS, &mut self.rng, seat.client.twin.in_transaction());
                seat.client.begin(script);
                self.sum.exchanges += 1;
            }
            self.send(id);
        }
    }

    /// Sends some of a client's script, if it has a connection or gets one.
    fn send(&mut self, id: u64) {
        let size = self.rng.usize(1..80);
        if self.seats[&id].holds.is_none() && !self.seats[&id].client.script.is_empty() {
            self.asks_for_a_connection(id);
        }
        let Some(seat) = self.seats.get_mut(&id) else {
            return;
        };
        let Some(mut connection) = seat.holds.take() else {
            return;
        };
        seat.client.send(size, &mut connection);
        self.keep_or_give_back(id, connection);
    }

    /// What asks for no answer needs no connection; what is left is for the server to read.
    fn keep_or_give_back(&mut self, id: u64, mut connection: Connection) {
        let Some(seat) = self.seats.get_mut(&id) else {
            return;
        };
        if seat.client.settle(&mut connection) {
            connection.work();
            let pool = seat.pool;
            self.put(pool, connection);
        } else {
            seat.holds = Some(connection);
        }
    }

    fn asks_for_a_connection(&mut self, id: u64) {
        let pool = &mut self.pools[self.seats[&id].pool];
        if pool.waiting.contains(&id) {
            return;
        }
        let free = pool.waiting.is_empty() && (!pool.idle.is_empty() || pool.total < pool.size);
        if !free {
            self.sum.waits += 1;
            return pool.waiting.push_back(id);
        }
        let connection = pool.idle.pop().unwrap_or_else(|| {
            pool.total += 1;
            Connection::default()
        });
        self.gives(id, connection);
    }

    fn gives(&mut self, id: u64, mut connection: Connection) {
        let Some(seat) = self.seats.get_mut(&id) else {
            return;
        };
        assert!(
            connection.to_server.is_empty() && connection.to_proxy.is_empty(),
            "a connection with bytes of another client: {} and {}",
            connection.to_server.escape_ascii(),
            connection.to_proxy.escape_ascii()
        );
        assert!(!connection.server.in_transaction(), "an open transaction");
        seat.client.adopt(&mut connection);
        seat.holds = Some(connection);
    }

    /// A connection is free.
    fn put(&mut self, pool: usize, connection: Connection) {
        match self.pools[pool].waiting.pop_front() {
            Some(next) => self.gives(next, connection),
            None => self.pools[pool].idle.push(connection),
        }
    }

    /// A connection is gone.
    fn gone(&mut self, pool: usize) {
        self.pools[pool].total -= 1;
        if let Some(next) = self.pools[pool].waiting.pop_front() {
            self.pools[pool].total += 1;
            self.gives(next, Connection::default());
        }
    }

    fn server_works(&mut self) {
        let Some(id) = self.any() else { return };
        let most = self.rng.usize(1..4);
        if let Some(connection) = self.seats.get_mut(&id).and_then(|seat| seat.holds.as_mut()) {
            for _ in 0..most {
                let Some((message, rest)) = split_message(&connection.to_server) else {
                    break;
                };
                connection.server.receive(message, &mut connection.to_proxy);
                connection.to_server = rest.to_vec();
            }
        }
    }

    fn receives(&mut self) {
        if let Some(id) = self.any() {
            self.receive(id);
        }
    }

    fn receive(&mut self, id: u64) {
        let size = self.rng.usize(1..60);
        let Some(seat) = self.seats.get_mut(&id) else {
            return;
        };
        let Some(mut connection) = seat.holds.take() else {
            return;
        };
        if connection.to_proxy.is_empty() {
            seat.holds = Some(connection);
            return;
        }
        seat.client.receive(size, &mut connection);
        self.keep_or_give_back(id, connection);
    }

    /// It goes where it stands: in the middle of a message, a transaction, or waiting.
    fn leaves(&mut self) {
        let Some(id) = self.any() else { return };
        self.sum.departures += 1;
        self.ends(id);
    }

    fn ends(&mut self, id: u64) {
        let Some(mut seat) = self.seats.remove(&id) else {
            return;
        };
        self.pools[seat.pool].waiting.retain(|other| *other != id);
        let Some(mut connection) = seat.holds.take() else {
            return;
        };
        if seat.client.tracker.outstanding() > 0 || !seat.client.between_messages() {
            // Nobody knows what it is in the middle of.
            return self.gone(seat.pool);
        }
        if connection.server.in_transaction() && self.mistake != Some(Mistake::Rollback) {
            connection.server.run("rollback", &mut Vec::new());
        }
        // The session holds what was not settled.
        connection.server.run("DISCARD ALL", &mut Vec::new());
        self.put(
            seat.pool,
            Connection {
                server: connection.server,
                ..Connection::default()
            },
        );
    }

    /// A connection breaks: its client has received what was right so far, and no more.
    fn dies(&mut self) {
        let Some(id) = self.any() else { return };
        if self.seats[&id].holds.is_some() {
            self.sum.deaths += 1;
            let Some(seat) = self.seats.remove(&id) else {
                return;
            };
            self.gone(seat.pool);
        } else if self.pools[self.seats[&id].pool].idle.pop().is_some() {
            // Found dead when it is next wanted; another is opened in its place then.
            self.sum.deaths += 1;
            self.pools[self.seats[&id].pool].total -= 1;
        }
    }

    /// Who comes from now on finds another pool.
    fn reloads(&mut self) {
        self.sum.reloads += 1;
        let size = self.rng.usize(1..4);
        self.pools.push(Pool::new(size));
    }

    fn check(&self) {
        for (number, pool) in self.pools.iter().enumerate() {
            let seats = || self.seats.values().filter(|seat| seat.pool == number);
            let held = seats().filter(|seat| seat.holds.is_some()).count();
            assert_eq!(pool.total, held + pool.idle.len(), "a connection is lost");
            assert!(pool.total <= pool.size, "more than pool_size");
            let spare = !pool.idle.is_empty() || pool.total < pool.size;
            assert!(!spare || pool.waiting.is_empty(), "waits for what is free");
            for id in &pool.waiting {
                assert!(self.seats[id].holds.is_none(), "waits with a connection");
            }
            for connection in &pool.idle {
                assert!(!connection.server.in_transaction(), "idle in a transaction");
            }
        }
    }

    /// Nobody comes any more and who rests is sent away; the others have until the deadline for what they have begun.
    fn drain(&mut self) {
        let deadline = self.rng.usize(0..200);
        for step in 0.. {
            let resting = self.seats.iter().filter(|(_, seat)| {
                seat.client.rests() && !seat.client.twin.in_transaction() && seat.holds.is_none()
            });
            let resting: Vec<u64> = resting.map(|(id, _)| *id).collect();
            for id in resting {
                self.sum.finished_in_drain += 1;
                self.ends(id);
            }
            if step == deadline {
                for id in self.seats.keys().copied().collect::<Vec<_>>() {
                    self.sum.cut_by_drain += 1;
                    self.ends(id);
                }
            }
            let Some(id) = self.any() else { break };
            let seat = self.seats.get_mut(&id);
            if let Some(seat) = seat.filter(|seat| seat.client.rests()) {
                // It ends its transaction, as a client does that works on.
                let end = parhelion::testing::pg_wire::query("commit");
                seat.client.begin(end);
            }
            self.send(id);
            self.server_works();
            self.receives();
            self.check();
        }
        for pool in &self.pools {
            assert_eq!(pool.total, pool.idle.len(), "held after the drain");
            assert!(pool.waiting.is_empty(), "waits after the drain");
        }
    }
}
