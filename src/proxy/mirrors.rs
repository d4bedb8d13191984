//! The mirrors of one source on one core: exposure, levels and rings, for either protocol.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::config::{Database, Mirroring};
use crate::limits::MIRRORS_MAX;
use crate::metrics::MirrorMetrics;
use crate::mirror::dispatch::{Bounds, Dispatcher, MemoryBudget, Offered};
use crate::mirror::exposure::{Exposure, ExposureSet};
use crate::mirror::ledger::DropReason;
use crate::mirror::unit::{Class, ClientId, Draft, Level, MirrorSet, Outcome, Unit, UnitPool};
use crate::ring::{Chunk, Ring, WaitQueue, WeakSocket};

/// One mirror: its rings, and what its workers wait for.
pub struct Mirror<O> {
    /// The source database's name.
    pub source: String,
    /// Where the units go.
    pub destination: Database,
    /// How they go there.
    pub options: Mirroring,
    /// The level as the engine knows it.
    pub level: Level,
    /// The rings.
    pub dispatcher: RefCell<Dispatcher<Chunk, O>>,
    /// Workers without work.
    pub work: WaitQueue,
    /// Units that must wait before a worker is woken. A worker that awaits replies sends more when one comes anyway.
    pub wake_at: Cell<usize>,
    /// Counters.
    pub metrics: Arc<MirrorMetrics>,
    /// Connections of the workers, so that a stop can reach them.
    pub connections: RefCell<Vec<WeakSocket>>,
    /// When the oldest unit that waits for its reply was sent; `u64::MAX`: none. For workers with one connection.
    pub oldest_sent_ns: Cell<u64>,
    /// Set when the workers shall end: at a stop, or when the mirror is taken out of the config.
    pub retired: Cell<bool>,
    /// Woken when `retired` is set.
    pub retiring: WaitQueue,
    /// Whether the workers keep something per client and empty `left`.
    pub follows_clients: Cell<bool>,
    /// Clients that have left since the workers last looked.
    pub left: RefCell<Vec<ClientId>>,
}

impl<O: Outcome> Mirror<O> {
    /// A mirror without workers.
    pub fn new(
        source: &str,
        destination: Database,
        options: Mirroring,
        (metrics, budget, units): (Arc<MirrorMetrics>, MemoryBudget, UnitPool<Chunk, O>),
        queue_bytes: usize,
    ) -> Mirror<O> {
        let bounds = Bounds {
            units: options.queue_length,
            bytes: queue_bytes,
        };
        Mirror {
            source: source.to_owned(),
            level: level(options.level),
            dispatcher: RefCell::new(Dispatcher::new(
                metrics.ledger.clone(),
                budget,
                units,
                bounds,
            )),
            destination,
            options,
            work: WaitQueue::default(),
            wake_at: Cell::new(1),
            metrics,
            connections: RefCell::default(),
            oldest_sent_ns: Cell::new(u64::MAX),
            retired: Cell::new(false),
            retiring: WaitQueue::default(),
            follows_clients: Cell::new(false),
            left: RefCell::default(),
        }
    }

    /// Books a sealed unit.
    fn offer(&self, unit: &Rc<Unit<Chunk, O>>) {
        let offered = self.dispatcher.borrow_mut().offer(unit);
        if self.options.control && offered == Offered::Queued {
            unit.outcome.expect_control();
        }
        self.note_queue();
        let dispatcher = self.dispatcher.borrow();
        let gathered = dispatcher.queued_units() >= self.wake_at.get();
        // A short queue must not overflow for the sake of a larger send.
        let wakes = gathered || dispatcher.is_crowded(unit.client);
        drop(dispatcher);
        if wakes {
            self.work.wake_one();
        }
    }

    /// Publishes how full the rings are.
    pub fn note_queue(&self) {
        let dispatcher = self.dispatcher.borrow();
        self.metrics
            .queued_units
            .set(dispatcher.queued_units() as u64);
        self.metrics
            .queued_bytes
            .set(dispatcher.queued_bytes() as u64);
    }

    /// Notes a worker's connection.
    pub fn note_connection(&self, socket: WeakSocket) {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|known| known.upgrade().is_some());
        connections.push(socket);
    }

    /// Ends connections that have not answered for `timeout_ns`.
    pub fn end_stuck(&self, now_ns: u64, timeout_ns: u64) {
        if self.oldest_sent_ns.get().saturating_add(timeout_ns) < now_ns {
            self.oldest_sent_ns.set(u64::MAX);
            self.metrics.unit_timeouts.add(1);
            self.end_connections();
        }
    }

    /// Ends every connection; the workers open others.
    pub fn end_connections(&self) {
        for connection in self
            .connections
            .borrow()
            .iter()
            .filter_map(WeakSocket::upgrade)
        {
            connection.stop_receiving();
        }
    }

    /// Ends the workers: units on their way are lost with their connections, what waits is dropped.
    pub fn retire(&self) {
        self.retired.set(true);
        let mut dispatcher = self.dispatcher.borrow_mut();
        dispatcher.drain_remaining(DropReason::Shutdown);
        // A session may still hold the mirror: what it offers from now on must not wait for workers that are gone.
        dispatcher.set_paused(true);
        drop(dispatcher);
        self.end_connections();
        self.work.wake_all();
        self.retiring.wake_all();
        self.note_queue();
    }

    /// Waits until the mirror is retired.
    pub async fn until_retired(&self) {
        while !self.retired.get() {
            self.retiring.wait().await;
        }
    }

    /// Whether every unit that was offered is settled.
    pub fn is_settled(&self) -> bool {
        self.dispatcher.borrow().is_idle()
    }
}

/// A mirror in its place: bit `index` of a [`MirrorSet`].
struct Slot<O> {
    index: usize,
    mirror: Rc<Mirror<O>>,
    /// From when it is here. A unit that began before was not drawn for it, whatever its bit says.
    since_ns: u64,
}

/// All mirrors of one source on one core. Sessions hold the group; its mirrors come and go with the config.
///
/// A mirror keeps its bit as long as it is in the config, and a bit goes to another mirror only when every other one
/// has been used since: a set that was drawn for a unit under way stays right.
pub struct MirrorGroup<O> {
    slots: RefCell<Vec<Slot<O>>>,
    /// Where the search for a free bit begins.
    next_slot: Cell<usize>,
    /// Units for reuse.
    pub units: UnitPool<Chunk, O>,
    exposures: RefCell<ExposureSet>,
    /// The largest byte bound: a unit beyond it fits into no ring.
    bytes_max: Cell<usize>,
}

impl<O: Outcome> MirrorGroup<O> {
    /// A group without mirrors.
    pub fn new(units: UnitPool<Chunk, O>) -> MirrorGroup<O> {
        MirrorGroup {
            slots: RefCell::default(),
            next_slot: Cell::new(0),
            units,
            exposures: RefCell::default(),
            bytes_max: Cell::new(0),
        }
    }

    /// Puts these mirrors in force, from the next unit of every session on. One that was here stays where it was.
    pub fn set_mirrors(&self, mirrors: &[Rc<Mirror<O>>], now_ns: u64) {
        let mut slots = self.slots.borrow_mut();
        slots.retain(|slot| {
            mirrors
                .iter()
                .any(|mirror| Rc::ptr_eq(mirror, &slot.mirror))
        });
        for mirror in mirrors {
            if slots.iter().any(|slot| Rc::ptr_eq(mirror, &slot.mirror)) {
                continue;
            }
            let first = self.next_slot.get();
            let places = (0..MIRRORS_MAX).map(|step| (first + step) % MIRRORS_MAX);
            let is_free = |index: &usize| slots.iter().all(|slot| slot.index != *index);
            // The config bounds mirrors, so there is a free place.
            let Some(index) = { places }.find(is_free) else {
                continue;
            };
            self.next_slot.set((index + 1) % MIRRORS_MAX);
            slots.push(Slot {
                index,
                mirror: mirror.clone(),
                since_ns: now_ns,
            });
        }
        // A control comes first: the others are to know whether it has taken the unit.
        slots.sort_by_key(|slot| !slot.mirror.options.control);
        drop(slots);
        self.refresh();
    }

    /// Whether there is nobody to mirror to.
    pub fn is_empty(&self) -> bool {
        self.slots.borrow().is_empty()
    }

    /// The largest unit that any ring takes, in bytes.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max.get()
    }

    /// Whether any mirror compares data and not just outcomes.
    pub fn compares_rows(&self) -> bool {
        self.slots
            .borrow()
            .iter()
            .any(|slot| slot.mirror.options.compare == crate::config::Compare::Rows)
    }

    /// Takes over what was changed at run time: exposures, pauses, bounds.
    pub fn refresh(&self) {
        let slots = self.slots.borrow();
        let len = slots.iter().map(|slot| slot.index + 1).max().unwrap_or(0);
        let mut exposures = vec![Exposure::NONE; len];
        let mut bytes_max = 0;
        for Slot { index, mirror, .. } in slots.iter() {
            let settings = &mirror.metrics.settings;
            if !mirror.retired.get() {
                exposures[*index] = Exposure::new(settings.exposure()).unwrap_or(Exposure::NONE);
            }
            let (units, bytes) = settings.queue_bounds();
            let bounds = Bounds {
                units: units as usize,
                bytes: bytes as usize,
            };
            bytes_max = bytes_max.max(bounds.bytes);
            let mut dispatcher = mirror.dispatcher.borrow_mut();
            dispatcher.set_bounds(bounds);
            dispatcher.set_paused(settings.paused() || mirror.retired.get());
            drop(dispatcher);
            mirror.work.wake_all();
        }
        *self.exposures.borrow_mut() = ExposureSet::new(&exposures);
        self.bytes_max.set(bytes_max);
    }

    /// Which mirrors shall see the unit whose first byte has just arrived.
    pub fn expose(&self, random: &RefCell<fastrand::Rng>) -> MirrorSet {
        let exposures = self.exposures.borrow();
        let draw = if exposures.needs_draw() {
            random.borrow_mut().f64()
        } else {
            0.0
        };
        exposures.decide(draw)
    }

    /// Seals a unit and gives it to the mirrors in `exposed` whose level admits it; books it with all.
    pub fn seal(&self, draft: Draft<Chunk, O>, exposed: MirrorSet, now_ns: u64) {
        let unit = draft.seal(now_ns);
        for slot in self.slots.borrow().iter() {
            let mirror = &slot.mirror;
            if !mirror.level.admits(unit.class) {
                mirror.dispatcher.borrow_mut().exclude();
            } else if exposed.contains(slot.index) && unit.began_ns >= slot.since_ns {
                mirror.offer(&unit);
            } else {
                mirror.dispatcher.borrow_mut().leave_unexposed();
            }
        }
        self.units.recycle(unit);
    }

    /// Books a unit that no mirror sees, whatever the draw.
    pub fn exclude(&self) {
        for slot in self.slots.borrow().iter() {
            slot.mirror.dispatcher.borrow_mut().exclude();
        }
    }

    /// Books a unit of this class that the draw left out for all.
    pub fn leave_out(&self, class: Class) {
        for Slot { mirror, .. } in self.slots.borrow().iter() {
            let mut dispatcher = mirror.dispatcher.borrow_mut();
            match mirror.level.admits(class) {
                true => dispatcher.leave_unexposed(),
                false => dispatcher.exclude(),
            }
        }
    }

    /// Books a unit that was given up before it was sealed.
    pub fn refuse(&self, exposed: MirrorSet, class: Class, reason: DropReason) {
        for Slot { index, mirror, .. } in self.slots.borrow().iter() {
            let mut dispatcher = mirror.dispatcher.borrow_mut();
            if !mirror.level.admits(class) {
                dispatcher.exclude();
            } else if exposed.contains(*index) {
                dispatcher.refuse(reason);
            } else {
                dispatcher.leave_unexposed();
            }
        }
    }

    /// A client has left.
    pub fn detach(&self, client: ClientId) {
        for Slot { mirror, .. } in self.slots.borrow().iter() {
            mirror.dispatcher.borrow_mut().detach(client);
            if mirror.follows_clients.get() {
                mirror.left.borrow_mut().push(client);
                mirror.work.wake_one();
            }
        }
    }
}

/// Appends received bytes to a unit: by reference where they fill most of the memory that they would pin, else as a
/// copy.
pub fn append<O: Outcome>(
    ring: &Ring,
    draft: &mut Draft<Chunk, O>,
    chunk: &Chunk,
    range: std::ops::Range<usize>,
) {
    let held = chunk.pinned_bytes();
    if crate::mirror::payload::worth_sharing(range.len(), held) && !ring.slabs_scarce() {
        draft.payload.push_shared(chunk.slice(range), held);
    } else {
        draft.payload.push_copy(&chunk[range]);
    }
}

fn level(level: crate::config::Level) -> Level {
    match level {
        crate::config::Level::All => Level::All,
        crate::config::Level::Dml => Level::Dml,
        crate::config::Level::Ddl => Level::Ddl,
        crate::config::Level::Reads => Level::Reads,
        crate::config::Level::Writes => Level::Writes,
    }
}
