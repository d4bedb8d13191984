//! What the connections of one mirror on one core are doing.
//!
//! The state only: a worker opens, uses and closes the connections and reports what happened. Slots
//! are shared by all logins of the mirror; a slot whose connection has another login is opened anew
//! when nothing better is left.
//!
//! A login that fails backs off, and while it does only one connection at a time tries it. Success
//! is a unit that came to its end, not an accepted connection: a server that accepts and dies at
//! once must not be reconnected to without a pause.
//!
//! Operations cost O(slots); pools have few.

use serde::{Deserialize, Serialize};

use super::unit::ClientId;
use crate::limits::{BACKOFF_NS_MAX, BACKOFF_NS_MIN};

/// How long a client keeps a mirror connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolMode {
    /// For one unit. The client's last connection is preferred: it has its session state.
    #[default]
    Unit,
    /// Until it leaves: [`PoolState::release`].
    Session,
}

/// The answer to "a connection for this client, please".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkout {
    /// This open connection is yours until [`PoolState::checkin`].
    Use(usize),
    /// Open a connection in this slot: then [`PoolState::opened`] or [`PoolState::failed`].
    Open(usize),
    /// Close the connection in this slot, which has another login, then as [`Checkout::Open`].
    Replace(usize),
    /// The login backs off: ask again at this time.
    Wait(u64),
    /// Nothing is free: ask again when a slot is.
    Full,
}

/// What to do with a connection that was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Checkin {
    /// It stays open.
    Keep,
    /// Close it; the slot is empty already.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Empty,
    Connecting,
    Busy,
    Idle,
}

#[derive(Clone, Copy, Debug)]
struct Slot<K> {
    stage: Stage,
    /// Meaningless while empty.
    login: Option<K>,
    /// The client that has it or had it last.
    client: Option<ClientId>,
    /// Whether the client keeps it between units.
    reserved: bool,
    /// A unit has come to its end on this connection.
    proven: bool,
    /// To be closed when it is given back.
    stale: bool,
}

impl<K> Slot<K> {
    const EMPTY: Slot<K> = Slot {
        stage: Stage::Empty,
        login: None,
        client: None,
        reserved: false,
        proven: false,
        stale: false,
    };
}

/// A login that fails.
#[derive(Clone, Copy, Debug)]
struct Backoff<K> {
    login: K,
    failures: u32,
    until_ns: u64,
}

/// The slots of one mirror on one core; `K` names a login.
#[derive(Debug)]
pub struct PoolState<K> {
    mode: PoolMode,
    slots: Vec<Slot<K>>,
    /// Slots in use beyond this are closed when they come back.
    size: usize,
    /// Only logins whose last attempt failed.
    failing: Vec<Backoff<K>>,
}

impl<K: Copy + Eq> PoolState<K> {
    /// `size` empty slots, at least one.
    pub fn new(size: usize, mode: PoolMode) -> Self {
        let size = size.max(1);
        PoolState {
            mode,
            slots: vec![Slot::EMPTY; size],
            size,
            failing: Vec::new(),
        }
    }

    /// A connection with this login for this client's next unit.
    pub fn checkout(&mut self, client: ClientId, login: K, now_ns: u64) -> Checkout {
        let answer = self.plan(client, login, now_ns);
        match answer {
            Checkout::Use(slot) => self.take(slot, client),
            Checkout::Open(slot) | Checkout::Replace(slot) => {
                self.slots[slot] = Slot {
                    stage: Stage::Connecting,
                    login: Some(login),
                    client: Some(client),
                    ..Slot::EMPTY
                };
            }
            Checkout::Wait(_) | Checkout::Full => {}
        }
        answer
    }

    /// Whether [`PoolState::checkout`] would give this client a connection, open or to be opened.
    pub fn may_serve(&self, client: ClientId, login: K, now_ns: u64) -> bool {
        let answer = self.plan(client, login, now_ns);
        !matches!(answer, Checkout::Wait(_) | Checkout::Full)
    }

    /// The connection is open, logged in, and its client's.
    pub fn opened(&mut self, slot: usize) {
        let client = self.slots[slot].client;
        debug_assert_eq!(self.slots[slot].stage, Stage::Connecting);
        if let Some(client) = client {
            self.take(slot, client);
        }
    }

    /// The connection could not be opened or the login was refused. `jitter` is a draw from
    /// `[0, 1)`. Returns when the next attempt may start.
    pub fn failed(&mut self, slot: usize, now_ns: u64, jitter: f64) -> u64 {
        debug_assert_eq!(self.slots[slot].stage, Stage::Connecting);
        self.lost(slot, now_ns, jitter).unwrap_or(now_ns)
    }

    /// The connection broke, in use or idle. Returns when the next attempt may start if it broke
    /// before a single unit had come to its end on it; one that worked is opened anew at once.
    pub fn lost(&mut self, slot: usize, now_ns: u64, jitter: f64) -> Option<u64> {
        let Slot { proven, login, .. } = self.slots[slot];
        self.slots[slot] = Slot::EMPTY;
        let login = login.filter(|_| !proven)?;
        let known = self.failing.iter().position(|entry| entry.login == login);
        let at = known.unwrap_or_else(|| {
            self.failing.push(Backoff {
                login,
                failures: 0,
                until_ns: 0,
            });
            self.failing.len() - 1
        });
        let entry = &mut self.failing[at];
        entry.failures = entry.failures.saturating_add(1);
        entry.until_ns = now_ns.saturating_add(backoff_ns(entry.failures, jitter));
        Some(entry.until_ns)
    }

    /// A unit came to its end and the connection is clean.
    pub fn checkin(&mut self, slot: usize) -> Checkin {
        let beyond = slot >= self.size;
        let entry = &mut self.slots[slot];
        debug_assert_eq!(entry.stage, Stage::Busy);
        entry.proven = true;
        let (login, stale) = (entry.login, entry.stale || beyond);
        entry.stage = if stale { Stage::Empty } else { Stage::Idle };
        if stale {
            *entry = Slot::EMPTY;
        }
        self.failing.retain(|failing| Some(failing.login) != login);
        if stale { Checkin::Close } else { Checkin::Keep }
    }

    /// The connection is closed on purpose: it was not clean after its unit, or idle for too long.
    pub fn closed(&mut self, slot: usize) {
        self.slots[slot] = Slot::EMPTY;
    }

    /// The client has left. Returns the idle connection it kept, if any: it is free for others once
    /// its session is reset, or [`PoolState::closed`].
    pub fn release(&mut self, client: ClientId) -> Option<usize> {
        let slot = self.find(|slot| slot.client == Some(client) && slot.reserved)?;
        self.slots[slot].reserved = false;
        (self.slots[slot].stage == Stage::Idle).then_some(slot)
    }

    /// Every open connection is to be replaced. Those in use are closed when they come back; the
    /// idle ones are returned, to be closed now. Back-offs end.
    pub fn reconnect(&mut self) -> Vec<usize> {
        self.failing.clear();
        self.close_idle(|_| true)
    }

    /// Changes the number of slots, at least one. Returns idle connections to be closed now.
    pub fn set_size(&mut self, size: usize) -> Vec<usize> {
        self.size = size.max(1);
        if self.slots.len() < self.size {
            self.slots.resize(self.size, Slot::EMPTY);
        }
        let size = self.size;
        self.close_idle(|slot| slot >= size)
    }

    /// When a failing login may be tried again; `None` if it does not fail.
    pub fn retry_at_ns(&self, login: K) -> Option<u64> {
        let failing = self.failing.iter().find(|entry| entry.login == login);
        failing.map(|entry| entry.until_ns)
    }

    /// Whether every slot is in use: nobody can be served until one comes back.
    pub fn is_exhausted(&self) -> bool {
        self.find(|slot| matches!(slot.stage, Stage::Empty | Stage::Idle))
            .is_none()
    }

    /// Whether any connection is open.
    pub fn is_connected(&self) -> bool {
        self.count(Stage::Busy) + self.count(Stage::Idle) > 0
    }

    /// Slots with a connection that waits.
    pub fn idle(&self) -> usize {
        self.count(Stage::Idle)
    }

    /// Slots with a connection in use.
    pub fn busy(&self) -> usize {
        self.count(Stage::Busy)
    }

    /// Slots being opened.
    pub fn connecting(&self) -> usize {
        self.count(Stage::Connecting)
    }

    /// Slots there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Panics if a slot contradicts itself.
    pub fn check_invariants(&self) {
        for slot in &self.slots {
            let empty = slot.stage == Stage::Empty;
            assert_eq!(slot.login.is_none(), empty, "an empty slot has no login");
            assert!(!slot.reserved || (self.mode == PoolMode::Session && !empty));
            assert!(slot.stage != Stage::Busy || slot.client.is_some());
        }
        let reserved = |slot: &&Slot<K>| slot.reserved;
        for slot in self.slots.iter().filter(reserved) {
            let same = |other: &&Slot<K>| other.reserved && other.client == slot.client;
            assert_eq!(
                self.slots.iter().filter(same).count(),
                1,
                "two for one client"
            );
        }
    }

    fn plan(&self, client: ClientId, login: K, now_ns: u64) -> Checkout {
        if let Some(slot) = self.idle_slot(client, login) {
            return Checkout::Use(slot);
        }
        if let Some(until_ns) = self.retry_at_ns(login) {
            if now_ns < until_ns {
                return Checkout::Wait(until_ns);
            }
            let tries = |slot: &Slot<K>| slot.login == Some(login) && !slot.proven;
            if self.slots.iter().any(tries) {
                return Checkout::Full;
            }
        }
        if let Some(slot) = self.find(|slot| slot.stage == Stage::Empty) {
            Checkout::Open(slot)
        } else if let Some(slot) = self.find(|s| s.stage == Stage::Idle && !s.reserved) {
            Checkout::Replace(slot)
        } else {
            Checkout::Full
        }
    }

    /// The client's own or last connection, else one that nobody keeps.
    fn idle_slot(&self, client: ClientId, login: K) -> Option<usize> {
        let usable = |slot: &Slot<K>| slot.stage == Stage::Idle && slot.login == Some(login);
        self.find(|slot| usable(slot) && slot.client == Some(client))
            .or_else(|| self.find(|slot| usable(slot) && !slot.reserved))
    }

    fn take(&mut self, slot: usize, client: ClientId) {
        let entry = &mut self.slots[slot];
        entry.stage = Stage::Busy;
        entry.client = Some(client);
        entry.reserved = self.mode == PoolMode::Session;
    }

    fn find(&self, is_wanted: impl Fn(&Slot<K>) -> bool) -> Option<usize> {
        self.slots.iter().take(self.size).position(is_wanted)
    }

    fn count(&self, stage: Stage) -> usize {
        self.slots.iter().filter(|slot| slot.stage == stage).count()
    }

    fn close_idle(&mut self, is_over: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut closed = Vec::new();
        for (place, slot) in self.slots.iter_mut().enumerate() {
            if !is_over(place) {
                continue;
            }
            match slot.stage {
                Stage::Idle => {
                    *slot = Slot::EMPTY;
                    closed.push(place);
                }
                Stage::Busy | Stage::Connecting => slot.stale = true,
                Stage::Empty => {}
            }
        }
        closed
    }
}

/// The pause after so many failures: doubled each time, up to half again as long by the jitter.
fn backoff_ns(failures: u32, jitter: f64) -> u64 {
    let doubled = BACKOFF_NS_MIN.saturating_mul(1 << (failures.saturating_sub(1)).min(16));
    let base = doubled.min(BACKOFF_NS_MAX / 3 * 2);
    base + (base as f64 / 2.0 * jitter.clamp(0.0, 1.0)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    fn open(pool: &mut PoolState<u8>, client: ClientId, login: u8) -> usize {
        match pool.checkout(client, login, 0) {
            Checkout::Open(slot) | Checkout::Replace(slot) => {
                pool.opened(slot);
                slot
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn connections_are_opened_lazily_reused_and_never_more_than_the_size() {
        let mut pool = PoolState::new(2, PoolMode::Unit);
        let first = open(&mut pool, A, 0);
        let second = open(&mut pool, B, 0);
        assert_eq!(pool.checkout(ClientId(3), 0, 0), Checkout::Full);
        assert_eq!(pool.checkin(second), Checkin::Keep);
        assert_eq!(pool.checkin(first), Checkin::Keep);
        assert_eq!(
            pool.checkout(B, 0, 0),
            Checkout::Use(second),
            "its last one"
        );
        assert_eq!(pool.checkout(B, 0, 0), Checkout::Use(first));
        pool.check_invariants();
    }

    #[test]
    fn another_login_replaces_an_idle_connection() {
        let mut pool = PoolState::new(1, PoolMode::Unit);
        let slot = open(&mut pool, A, 0);
        assert_eq!(pool.checkin(slot), Checkin::Keep);
        assert_eq!(pool.checkout(B, 1, 0), Checkout::Replace(slot));
        pool.opened(slot);
        assert_eq!(pool.checkout(A, 0, 0), Checkout::Full);
    }

    #[test]
    fn back_off_doubles_from_a_tenth_to_five_seconds_and_ends_with_a_finished_unit() {
        let mut pool = PoolState::new(4, PoolMode::Unit);
        let (mut now, mut pauses) = (0, Vec::new());
        for attempt in 0..9 {
            let Checkout::Open(slot) = pool.checkout(A, 0, now) else {
                panic!("due");
            };
            if attempt > 0 {
                let beside = pool.checkout(B, 0, now);
                assert_eq!(beside, Checkout::Full, "one attempt at a time");
            }
            let until = pool.failed(slot, now, 0.99);
            assert_eq!(pool.checkout(B, 0, now), Checkout::Wait(until));
            pauses.push(until - now);
            now = until;
        }
        assert!((BACKOFF_NS_MIN..BACKOFF_NS_MIN * 3 / 2).contains(&pauses[0]));
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(pauses[8] <= BACKOFF_NS_MAX && pauses[8] > BACKOFF_NS_MAX * 9 / 10);
        let Checkout::Open(slot) = pool.checkout(A, 0, now) else {
            panic!("due");
        };
        pool.opened(slot);
        assert!(pool.retry_at_ns(0).is_some(), "accepted is not yet success");
        assert_eq!(pool.checkin(slot), Checkin::Keep);
        assert_eq!(pool.retry_at_ns(0), None);
    }

    #[test]
    fn a_server_that_accepts_and_dies_is_backed_off_from_and_one_that_worked_is_not() {
        let mut pool = PoolState::new(2, PoolMode::Unit);
        let slot = open(&mut pool, A, 0);
        assert!(pool.lost(slot, 0, 0.0).is_some());
        let mut pool = PoolState::new(2, PoolMode::Unit);
        let slot = open(&mut pool, A, 0);
        assert_eq!(pool.checkin(slot), Checkin::Keep);
        assert_eq!(pool.lost(slot, 0, 0.0), None);
        assert!(pool.may_serve(A, 0, 0));
    }

    #[test]
    fn one_bad_login_does_not_stop_the_others() {
        let mut pool = PoolState::new(2, PoolMode::Unit);
        let Checkout::Open(slot) = pool.checkout(A, 0, 0) else {
            panic!("empty");
        };
        pool.failed(slot, 0, 0.5);
        assert!(matches!(pool.checkout(A, 0, 1), Checkout::Wait(_)));
        assert!(matches!(pool.checkout(B, 1, 1), Checkout::Open(_)));
    }

    #[test]
    fn in_session_mode_a_client_keeps_its_connection_until_it_leaves() {
        let mut pool = PoolState::new(1, PoolMode::Session);
        let slot = open(&mut pool, A, 0);
        assert_eq!(pool.checkin(slot), Checkin::Keep);
        assert!(pool.may_serve(A, 0, 0) && !pool.may_serve(B, 0, 0));
        assert_eq!(pool.checkout(B, 0, 0), Checkout::Full);
        assert_eq!(pool.checkout(A, 0, 0), Checkout::Use(slot));
        assert_eq!(pool.release(A), None, "in use: free when it comes back");
        assert_eq!(pool.checkin(slot), Checkin::Keep);
        assert_eq!(pool.checkout(B, 0, 0), Checkout::Use(slot));
        pool.check_invariants();
    }

    #[test]
    fn reconnect_and_a_smaller_size_close_idle_now_and_busy_later() {
        let mut pool = PoolState::new(3, PoolMode::Unit);
        let slots = [A, B, ClientId(3)].map(|client| open(&mut pool, client, 0));
        assert_eq!(pool.checkin(slots[0]), Checkin::Keep);
        assert_eq!(pool.reconnect(), [slots[0]]);
        assert_eq!(pool.checkin(slots[1]), Checkin::Close);
        assert_eq!(pool.set_size(1), Vec::<usize>::new());
        assert_eq!(pool.checkin(slots[2]), Checkin::Close);
        open(&mut pool, A, 0);
        assert_eq!(pool.checkout(B, 0, 0), Checkout::Full);
        pool.check_invariants();
    }
}
