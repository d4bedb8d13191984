//! The dispatcher: all rings of one mirror on one core.
//!
//! It takes sealed units, keeps or drops them whole, hands them to the mirror's workers in a fair
//! order and books every one in the ledger exactly once. Units of one client leave in the client's
//! order; a client's backlog never holds up another's.
//!
//! It never waits, sends or reconnects: workers do, and tell it how a unit ended.
//!
//! Every operation costs O(1) but those that say so, and allocates nothing once rings have grown.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::Arc;

pub use super::budget::MemoryBudget;
use super::ledger::{DropReason, Fate, Ledger};
pub use super::queue::Bounds;
use super::queue::{Entry, Ring};
use super::unit::{ClientId, Outcome, Unit, UnitPool};
use crate::limits::{SPARE_RING_UNITS_MAX, SPARE_RINGS_LEN_MAX};

/// What became of an offered unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It waits in its client's ring.
    Queued,
    /// It was dropped whole and is settled already.
    Dropped(DropReason),
}

/// The right and the duty to end one unit: hand it to [`Dispatcher::settle`] or, if no byte of it
/// was sent, to [`Dispatcher::requeue`], once.
#[derive(Debug)]
#[must_use = "a unit that is handed out must be settled or put back"]
pub struct Ticket<S, O> {
    /// The unit.
    pub unit: Rc<Unit<S, O>>,
    /// Ascending within a client.
    pub id: u64,
    ring: usize,
}

/// The rings of one mirror on one core.
#[derive(Debug)]
pub struct Dispatcher<S, O> {
    ledger: Arc<Ledger>,
    budget: MemoryBudget,
    units: UnitPool<S, O>,
    /// Bounds of rings that are made without being attached.
    bounds: Bounds,
    /// Units of one client that may be on their way at once.
    window: usize,
    /// Another dispatcher books in the same ledger too.
    shares_ledger: bool,
    /// Pipelines get room beyond the bounds while the mirror answers.
    stretches: bool,
    /// When the mirror last answered a unit.
    answered_ns: u64,
    paused: bool,
    unavailable: bool,
    next_id: u64,
    /// A ring keeps its place while it lives; free places are in `free`.
    rings: Vec<Option<Ring<S, O>>>,
    free: Vec<usize>,
    /// Empty rings for reuse: clients without a ring of their own get and lose one with every
    /// unit.
    spare: Vec<Ring<S, O>>,
    by_client: HashMap<ClientId, usize, BuildHasherDefault<IdHasher>>,
    /// Places of the rings that may hand out a unit, in the order of their turns; each once.
    ready: VecDeque<usize>,
    queued_units: usize,
    in_flight: usize,
    /// Memory of the units that wait or are on their way.
    held_bytes: usize,
}

impl<S, O: Outcome> Dispatcher<S, O> {
    /// No rings yet. The budget and the pool are the core's, the ledger is this mirror's on this
    /// core and nobody else's.
    pub fn new(
        ledger: Arc<Ledger>,
        budget: MemoryBudget,
        units: UnitPool<S, O>,
        bounds: Bounds,
    ) -> Self {
        Dispatcher {
            ledger,
            budget,
            units,
            bounds,
            window: 1,
            shares_ledger: false,
            stretches: false,
            answered_ns: 0,
            paused: false,
            unavailable: false,
            next_id: 0,
            rings: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            by_client: HashMap::default(),
            ready: VecDeque::new(),
            queued_units: 0,
            in_flight: 0,
            held_bytes: 0,
        }
    }

    /// Says that a mirror that was defined anew books in the ledger of the one it replaces, which still has units.
    pub fn share_ledger(&mut self) {
        self.shares_ledger = true;
    }

    /// Gives the units of a pipeline room beyond a ring's bounds, up to [`PIPELINE_QUEUE_FACTOR`] times its bytes and
    /// only while the mirror answers ([`Dispatcher::note_answer`]): a primary answers more of them at once than a mirror can
    /// take at once, however quick it is.
    ///
    /// [`PIPELINE_QUEUE_FACTOR`]: crate::limits::PIPELINE_QUEUE_FACTOR
    pub fn stretch_for_pipelines(&mut self) {
        self.stretches = true;
    }

    /// The mirror has answered a unit.
    pub fn note_answer(&mut self, now_ns: u64) {
        self.answered_ns = now_ns;
    }

    /// Lets up to `window` units of one client be on their way at once, at least 1. Order then
    /// holds only if all of them use one connection.
    pub fn set_window(&mut self, window: usize) {
        self.window = window.max(1);
        self.unlist_idle();
        for place in 0..self.rings.len() {
            self.list_if_ready(place);
        }
        self.check_cheaply();
    }

    /// Gives a client a ring with bounds of its own. A client that was detached with units queued
    /// goes on with the same ring. Not required: see [`Dispatcher::offer`].
    pub fn attach(&mut self, client: ClientId, bounds: Bounds) {
        let place = self.place_of(client);
        if let Some(ring) = &mut self.rings[place] {
            ring.bounds = bounds;
            ring.detached = false;
        }
        self.check_cheaply();
    }

    /// The client has left. What it queued still goes; the ring vanishes when it is empty.
    pub fn detach(&mut self, client: ClientId) {
        if let Some(place) = self.by_client.get(&client).copied() {
            if let Some(ring) = &mut self.rings[place] {
                ring.detached = true;
            }
            self.remove_if_over(place);
        }
        self.check_cheaply();
    }

    /// Takes a sealed unit or drops it whole, and books it either way. A client without a ring gets
    /// one with the default bounds that vanishes when it is empty: an idle client costs nothing.
    pub fn offer(&mut self, unit: &Rc<Unit<S, O>>) -> Offered {
        self.ledger.offer();
        let bytes = unit.sealed_bytes;
        let offered = match self.admit(unit, bytes) {
            Ok(place) => {
                let entry = Entry {
                    unit: Rc::clone(unit),
                    id: self.next_id,
                };
                self.next_id += 1;
                self.queued_units += 1;
                self.held_bytes += bytes;
                if let Some(ring) = &mut self.rings[place] {
                    ring.push(entry);
                }
                self.list_if_ready(place);
                Offered::Queued
            }
            Err(reason) => {
                self.ledger.settle(Fate::Dropped(reason));
                Offered::Dropped(reason)
            }
        };
        self.check_cheaply();
        offered
    }

    /// Books a unit that was meant for this mirror and that the session gave up before it was
    /// sealed, because it outgrew the bounds.
    pub fn refuse(&mut self, reason: DropReason) {
        self.ledger.offer();
        self.ledger.settle(Fate::Dropped(reason));
        self.check_cheaply();
    }

    /// Books a unit that never goes to this mirror: see [`Ledger::exclude`].
    pub fn exclude(&mut self) {
        self.ledger.exclude();
    }

    /// Books a unit that the draw left out: see [`Ledger::leave_unexposed`].
    pub fn leave_unexposed(&mut self) {
        self.ledger.leave_unexposed();
    }

    /// The next unit to send. Clients take turns; none has more than the window on its way. Nothing
    /// leaves while the mirror is paused or unavailable.
    #[expect(
        clippy::should_implement_trait,
        reason = "it is no iterator: what comes out must go back"
    )]
    pub fn next(&mut self) -> Option<Ticket<S, O>> {
        self.next_for(|_| true)
    }

    /// As [`Dispatcher::next`], for the first client whose turn it is and for whose next unit `may_go` holds:
    /// one whose connection is busy or whose login backs off keeps its place and holds up nobody.
    /// O(clients passed over).
    pub fn next_for(
        &mut self,
        mut may_go: impl FnMut(&Unit<S, O>) -> bool,
    ) -> Option<Ticket<S, O>> {
        if self.paused || self.unavailable {
            return None;
        }
        let rings = &self.rings;
        let is_next = |place: &usize| {
            let front = rings[*place].as_ref().and_then(Ring::front);
            front.is_some_and(&mut may_go)
        };
        let at = self.ready.iter().position(is_next)?;
        let place = self.ready.remove(at)?;
        let ring = self.rings[place].as_mut()?;
        ring.listed = false;
        let entry = ring.hand_out()?;
        self.queued_units -= 1;
        self.in_flight += 1;
        self.list_if_ready(place);
        self.check_cheaply();
        Some(Ticket {
            unit: entry.unit,
            id: entry.id,
            ring: place,
        })
    }

    /// The unit behind one that was handed out and not settled, beyond the window, if `may_follow` holds: for a worker that
    /// sends a client's pipeline as a pipeline, on one connection.
    pub fn next_behind(
        &mut self,
        ticket: &Ticket<S, O>,
        may_follow: impl FnOnce(&Unit<S, O>) -> bool,
    ) -> Option<Ticket<S, O>> {
        if self.paused || self.unavailable {
            return None;
        }
        let ring = self.rings[ticket.ring].as_mut()?;
        if ring.returning || !may_follow(ring.front()?) {
            return None;
        }
        let entry = ring.hand_out()?;
        self.queued_units -= 1;
        self.in_flight += 1;
        self.unlist_idle_at(ticket.ring);
        self.check_cheaply();
        Some(Ticket {
            unit: entry.unit,
            id: entry.id,
            ring: ticket.ring,
        })
    }

    /// Whether [`Dispatcher::next`] has a unit.
    pub fn has_ready(&self) -> bool {
        !self.paused && !self.unavailable && !self.ready.is_empty()
    }

    /// Ends a unit.
    pub fn settle(&mut self, ticket: Ticket<S, O>, fate: Fate) {
        self.in_flight -= 1;
        if let Some(ring) = &mut self.rings[ticket.ring] {
            ring.end(ticket.unit.sealed_bytes);
        }
        self.let_go(ticket.unit, fate);
        self.list_if_ready(ticket.ring);
        self.remove_if_over(ticket.ring);
        self.check_cheaply();
    }

    /// Puts a unit of which no byte was sent back where it was. When a connection fails that had
    /// several units of a client, give all of them back (or settle those that began) in any order:
    /// nothing of the client leaves before the last.
    pub fn requeue(&mut self, ticket: Ticket<S, O>) {
        self.in_flight -= 1;
        self.queued_units += 1;
        if let Some(ring) = &mut self.rings[ticket.ring] {
            ring.end(ticket.unit.sealed_bytes);
            ring.put_back(Entry {
                unit: ticket.unit,
                id: ticket.id,
            });
        }
        self.list_if_ready(ticket.ring);
        self.check_cheaply();
    }

    /// Drops units that were sealed more than `timeout_ns` ago and never left, whether the mirror
    /// is slow, down or paused: it then goes on with what is current instead of replaying an outage
    /// from its beginning, and a client that has left does not hold memory for ever. O(rings); for
    /// a slow timer. Returns how many were dropped.
    pub fn expire(&mut self, now_ns: u64, timeout_ns: u64) -> usize {
        self.drop_waiting(DropReason::Timeout, |unit| {
            now_ns.saturating_sub(unit.sealed_ns) > timeout_ns
        })
    }

    /// Drops everything that waits: the end of a drain, or a mirror that is taken away. What is on
    /// its way is still to be settled by its worker. O(units). Returns how many were dropped.
    pub fn drain_remaining(&mut self, reason: DropReason) -> usize {
        self.drop_waiting(reason, |_| true)
    }

    /// Changes the bounds of every ring, now and to come. What waits beyond smaller bounds stays
    /// and goes; only new units see them. O(rings).
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        for ring in self.rings.iter_mut().flatten() {
            ring.bounds = bounds;
        }
        self.check_cheaply();
    }

    /// Pauses or resumes the mirror. While it is paused new units are dropped as `paused` and
    /// nothing leaves; what waited already is kept, because it was accepted, until it leaves after
    /// the pause or [`Dispatcher::expire`] takes it.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Says whether the mirror can be reached at all. While it cannot, nothing leaves and units go
    /// on queueing until their ring is full; what finds no room is dropped as `unavailable`.
    pub fn set_unavailable(&mut self, unavailable: bool) {
        self.unavailable = unavailable;
    }

    /// Whether the mirror is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether the mirror cannot be reached.
    pub fn is_unavailable(&self) -> bool {
        self.unavailable
    }

    /// Units that wait.
    pub fn queued_units(&self) -> usize {
        self.queued_units
    }

    /// Memory of the units that wait or are on their way.
    pub fn queued_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Units handed out and not settled.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.queued_units == 0 && self.in_flight == 0
    }

    /// Whether this client has a ring: before it is detached, or while units of it are here.
    pub fn holds(&self, client: ClientId) -> bool {
        self.by_client.contains_key(&client)
    }

    /// Whether more than half of this client's ring is taken.
    pub fn is_crowded(&self, client: ClientId) -> bool {
        let place = self.by_client.get(&client);
        let ring = place.and_then(|place| self.rings[*place].as_ref());
        ring.is_some_and(|ring| {
            ring.waiting() > ring.bounds.units / 2 || ring.bytes() > ring.bounds.bytes / 2
        })
    }

    /// Clients that have a ring.
    pub fn rings(&self) -> usize {
        self.by_client.len()
    }

    /// How long the oldest waiting unit has been sealed. O(rings); for metrics.
    pub fn oldest_age_ns(&self, now_ns: u64) -> Option<u64> {
        let rings = self.rings.iter().flatten();
        let oldest = rings.filter_map(Ring::oldest).map(|e| e.unit.sealed_ns);
        oldest.min().map(|sealed| now_ns.saturating_sub(sealed))
    }

    /// The books of this mirror on this core.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Room for the unit, or why there is none.
    fn admit(&mut self, unit: &Rc<Unit<S, O>>, bytes: usize) -> Result<usize, DropReason> {
        if self.paused {
            return Err(DropReason::Paused);
        }
        let known = self.by_client.get(&unit.client).copied();
        let ring = known.and_then(|place| self.rings[place].as_ref());
        let bounds = ring.map_or(self.bounds, |ring| ring.bounds);
        if bytes > bounds.bytes {
            return Err(DropReason::Oversize);
        }
        let has_room = |ring: &Ring<S, O>| {
            ring.has_room(bytes)
                || self.stretches
                    && !self.unavailable
                    && ring.has_pipeline_room(unit, bytes, self.answered_ns)
        };
        if !ring.map_or(bounds.units > 0, has_room) {
            return Err(if self.unavailable {
                DropReason::Unavailable
            } else {
                DropReason::QueueFull
            });
        }
        if unit.holders.get() == 0 && !self.budget.try_charge(bytes) {
            return Err(DropReason::Memory);
        }
        unit.holders.set(unit.holders.get() + 1);
        let place = known.unwrap_or_else(|| {
            let place = self.place_of(unit.client);
            if let Some(ring) = &mut self.rings[place] {
                ring.detached = true;
            }
            place
        });
        Ok(place)
    }

    /// Books the end of a unit and gives its memory back.
    fn let_go(&mut self, unit: Rc<Unit<S, O>>, fate: Fate) {
        let bytes = unit.sealed_bytes;
        self.held_bytes -= bytes;
        unit.holders.set(unit.holders.get() - 1);
        if unit.holders.get() == 0 {
            self.budget.release(bytes);
        }
        self.units.recycle(unit);
        self.ledger.settle(fate);
    }

    /// Drops waiting units from the front of every ring as long as `is_over` says so.
    fn drop_waiting(&mut self, reason: DropReason, is_over: impl Fn(&Unit<S, O>) -> bool) -> usize {
        let before = self.queued_units;
        for place in 0..self.rings.len() {
            while let Some(ring) = &mut self.rings[place] {
                if !ring.oldest().is_some_and(|entry| is_over(&entry.unit)) {
                    break;
                }
                let Some(entry) = ring.discard_oldest() else {
                    break;
                };
                self.queued_units -= 1;
                self.let_go(entry.unit, Fate::Dropped(reason));
            }
        }
        self.unlist_idle();
        for place in 0..self.rings.len() {
            self.remove_if_over(place);
        }
        self.check_cheaply();
        before - self.queued_units
    }

    /// The place of the client's ring, made if there is none.
    fn place_of(&mut self, client: ClientId) -> usize {
        if let Some(place) = self.by_client.get(&client) {
            return *place;
        }
        let ring = match self.spare.pop() {
            Some(spare) => spare.reuse(client, self.bounds),
            None => Ring::new(client, self.bounds),
        };
        let ring = Some(ring);
        let place = match self.free.pop() {
            Some(place) => {
                self.rings[place] = ring;
                place
            }
            None => {
                self.rings.push(ring);
                self.rings.len() - 1
            }
        };
        self.by_client.insert(client, place);
        place
    }

    fn list_if_ready(&mut self, place: usize) {
        if let Some(ring) = &mut self.rings[place]
            && !ring.listed
            && ring.is_ready(self.window)
        {
            ring.listed = true;
            self.ready.push_back(place);
        }
    }

    /// Takes one ring from the ready list if it has nothing to hand out any more. It is listed only with a window above 1.
    fn unlist_idle_at(&mut self, place: usize) {
        let window = self.window;
        if let Some(ring) = &mut self.rings[place]
            && ring.listed
            && !ring.is_ready(window)
        {
            ring.listed = false;
            self.ready.retain(|other| *other != place);
        }
    }

    /// Takes the rings that have nothing to hand out any more from the ready list.
    fn unlist_idle(&mut self) {
        let (rings, window) = (&mut self.rings, self.window);
        self.ready.retain(|place| {
            let Some(ring) = &mut rings[*place] else {
                return false;
            };
            ring.listed = ring.is_ready(window);
            ring.listed
        });
    }

    /// Removes the ring of a client that has left once nothing of it is here.
    fn remove_if_over(&mut self, place: usize) {
        let over = |ring: &mut Ring<S, O>| ring.detached && ring.is_empty();
        if let Some(ring) = self.rings[place].take_if(over) {
            self.by_client.remove(&ring.client);
            self.free.push(place);
            if self.spare.len() < SPARE_RINGS_LEN_MAX && ring.capacity() <= SPARE_RING_UNITS_MAX {
                self.spare.push(ring);
            }
        }
    }

    /// What must hold after every step. Panics if it does not. O(units).
    pub fn check_invariants(&self) {
        let (mut waiting, mut in_flight, mut bytes) = (0, 0, 0);
        for (place, ring) in self.rings.iter().enumerate() {
            let Some(ring) = ring else { continue };
            ring.check();
            waiting += ring.waiting();
            in_flight += ring.in_flight;
            bytes += ring.bytes();
            assert_eq!(self.by_client.get(&ring.client), Some(&place));
            let listed = self.ready.iter().filter(|other| **other == place).count();
            assert_eq!(listed, usize::from(ring.listed), "ready list");
            assert_eq!(
                ring.listed,
                ring.is_ready(self.window),
                "a ring waits unseen"
            );
            assert!(
                !(ring.detached && ring.is_empty()),
                "a ring outlived its client"
            );
        }
        assert_eq!(waiting, self.queued_units, "queued units");
        assert_eq!(in_flight, self.in_flight, "units in flight");
        assert_eq!(bytes, self.held_bytes, "bytes held");
        assert_eq!(self.by_client.len() + self.free.len(), self.rings.len());
        self.check_books();
    }

    fn check_books(&self) {
        if !super::ledger::COUNTING {
            return;
        }
        let books = self.ledger.snapshot();
        assert!(books.balances(), "the ledger does not balance: {books:?}");
        let here = (self.queued_units + self.in_flight) as u64;
        assert!(
            books.in_flight() == here || self.shares_ledger && books.in_flight() > here,
            "the ledger lost count: {books:?}"
        );
    }

    /// After every step in debug builds: all of it while there are few rings, else the sums.
    fn check_cheaply(&self) {
        if cfg!(debug_assertions) {
            if self.rings.len() <= 16 && self.queued_units <= 256 {
                self.check_invariants();
            } else {
                self.check_books();
            }
        }
    }
}

/// Client ids are counted up by ourselves, so one multiplication spreads them well enough.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        // 2^64 divided by the golden ratio; the rotation brings the high bits down, where the
        // table looks first.
        self.0 = (self.0 ^ id)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(26);
    }
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
