//! What a dispatcher promises, case by case; tests/simulation.rs mixes the cases.

use super::*;
use crate::limits::{PIPELINE_PATIENCE_NS, PIPELINE_QUEUE_FACTOR};

type Slice = Rc<[u8]>;
type Rings = Dispatcher<Slice, ()>;

const ROOMY: Bounds = Bounds {
    units: 128,
    bytes: 1 << 20,
};

struct World {
    units: UnitPool<Slice, ()>,
    budget: MemoryBudget,
}

impl World {
    fn new() -> Self {
        World {
            units: UnitPool::default(),
            budget: MemoryBudget::new(1 << 24),
        }
    }

    fn mirror(&self, bounds: Bounds) -> Rings {
        let ledger = Arc::new(Ledger::default());
        Dispatcher::new(ledger, self.budget.clone(), self.units.clone(), bounds)
    }

    fn unit(&self, client: u64, text: &str, now_ns: u64) -> Rc<Unit<Slice, ()>> {
        let mut draft = self.units.draft(ClientId(client), now_ns);
        draft.begin_group(now_ns);
        draft.payload.push_copy(text.as_bytes());
        draft.seal(now_ns)
    }

    fn offer(&self, rings: &mut Rings, client: u64, text: &str) -> Offered {
        let unit = self.unit(client, text, 0);
        let offered = rings.offer(&unit);
        self.units.recycle(unit);
        offered
    }
}

fn text(ticket: &Ticket<Slice, ()>) -> String {
    let mut bytes = Vec::new();
    ticket.unit.payload.copy_into(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

/// Delivers everything, one unit at a time.
fn deliver_all(rings: &mut Rings) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(ticket) = rings.next() {
        texts.push(text(&ticket));
        rings.settle(ticket, Fate::Delivered);
    }
    texts
}

#[test]
fn clients_take_turns_and_keep_their_order() {
    let world = World::new();
    let mut rings = world.mirror(ROOMY);
    for (client, text) in [
        (1, "a1"),
        (1, "a2"),
        (1, "a3"),
        (2, "b1"),
        (3, "c1"),
        (3, "c2"),
    ] {
        assert_eq!(world.offer(&mut rings, client, text), Offered::Queued);
    }
    assert_eq!(
        deliver_all(&mut rings),
        ["a1", "b1", "c1", "a2", "c2", "a3"]
    );
    assert!(rings.is_idle() && rings.rings() == 0 && world.budget.used() == 0);
}

#[test]
fn one_unit_of_a_client_is_on_its_way_at_a_time() {
    let world = World::new();
    let mut rings = world.mirror(ROOMY);
    world.offer(&mut rings, 1, "a1");
    world.offer(&mut rings, 1, "a2");
    let first = rings.next().unwrap();
    assert!(rings.next().is_none() && !rings.has_ready());
    rings.settle(first, Fate::Errored);
    assert_eq!(deliver_all(&mut rings), ["a2"]);
    let books = rings.ledger().snapshot();
    assert_eq!(
        (books.delivered, books.errored, books.in_flight()),
        (1, 1, 0)
    );
}

#[test]
fn a_client_that_may_not_go_keeps_its_turn_and_holds_up_nobody() {
    let world = World::new();
    let mut rings = world.mirror(ROOMY);
    for (client, text) in [(1, "a"), (2, "b"), (3, "c")] {
        world.offer(&mut rings, client, text);
    }
    let ticket = rings.next_for(|unit| unit.client != ClientId(1)).unwrap();
    assert_eq!(text(&ticket), "b");
    rings.settle(ticket, Fate::Delivered);
    assert!(rings.next_for(|_| false).is_none());
    assert_eq!(deliver_all(&mut rings), ["a", "c"]);
}

#[test]
fn units_that_come_back_stand_in_their_old_order() {
    let world = World::new();
    let mut rings = world.mirror(ROOMY);
    rings.set_window(3);
    for text in ["1", "2", "3", "4"] {
        world.offer(&mut rings, 1, text);
    }
    let (one, two, three) = (rings.next(), rings.next(), rings.next());
    rings.requeue(two.unwrap());
    assert!(rings.next().is_none(), "one and three may come back too");
    rings.requeue(one.unwrap());
    rings.requeue(three.unwrap());
    assert_eq!(deliver_all(&mut rings), ["1", "2", "3", "4"]);
}

#[test]
fn a_full_ring_drops_the_new_unit_and_no_other_clients() {
    let world = World::new();
    let mut rings = world.mirror(Bounds { units: 2, ..ROOMY });
    for text in ["a1", "a2"] {
        assert_eq!(world.offer(&mut rings, 1, text), Offered::Queued);
    }
    let full = Offered::Dropped(DropReason::QueueFull);
    assert_eq!(world.offer(&mut rings, 1, "a3"), full);
    assert_eq!(world.offer(&mut rings, 2, "b1"), Offered::Queued);
    rings.set_unavailable(true);
    let down = Offered::Dropped(DropReason::Unavailable);
    assert_eq!(world.offer(&mut rings, 1, "a4"), down);
    assert!(rings.next().is_none());
    rings.set_unavailable(false);
    assert_eq!(deliver_all(&mut rings), ["a1", "b1", "a2"]);
}

#[test]
fn bytes_count_until_the_unit_is_settled() {
    let world = World::new();
    let held = world.unit(1, "hello", 0).held_bytes();
    let bounds = Bounds {
        bytes: 2 * held,
        ..ROOMY
    };
    let mut rings = world.mirror(bounds);
    world.offer(&mut rings, 1, "aaaaa");
    world.offer(&mut rings, 1, "bbbbb");
    let ticket = rings.next().unwrap();
    let full = Offered::Dropped(DropReason::QueueFull);
    assert_eq!(world.offer(&mut rings, 1, "ccccc"), full);
    rings.settle(ticket, Fate::Delivered);
    assert_eq!(world.offer(&mut rings, 1, "ccccc"), Offered::Queued);
    let large = "x".repeat(2 * held);
    let oversize = Offered::Dropped(DropReason::Oversize);
    assert_eq!(world.offer(&mut rings, 2, &large), oversize);
}

#[test]
fn a_unit_for_two_mirrors_is_charged_once_until_both_are_done() {
    let world = World::new();
    let (mut left, mut right) = (world.mirror(ROOMY), world.mirror(ROOMY));
    let unit = world.unit(1, "shared", 0);
    let held = unit.held_bytes();
    left.offer(&unit);
    right.offer(&unit);
    world.units.recycle(unit);
    assert_eq!(world.budget.used(), held);
    deliver_all(&mut left);
    assert_eq!((world.budget.used(), world.units.len()), (held, 0));
    deliver_all(&mut right);
    assert_eq!((world.budget.used(), world.units.len()), (0, 1));
}

#[test]
fn the_cores_budget_bounds_all_rings_together() {
    let world = World::new();
    let held = world.unit(1, "hello", 0).held_bytes();
    let (mut left, mut right) = (world.mirror(ROOMY), world.mirror(ROOMY));
    world.budget.set_limit(2 * held);
    world.offer(&mut left, 1, "aaaaa");
    world.offer(&mut right, 2, "bbbbb");
    let full = Offered::Dropped(DropReason::Memory);
    assert_eq!(world.offer(&mut left, 3, "ccccc"), full);
    assert_eq!(left.rings(), 1, "a refused unit leaves no ring behind");
    deliver_all(&mut right);
    assert_eq!(world.offer(&mut left, 3, "ccccc"), Offered::Queued);
}

#[test]
fn a_pause_keeps_what_waits_and_drops_what_comes() {
    let world = World::new();
    let mut rings = world.mirror(ROOMY);
    world.offer(&mut rings, 1, "before");
    rings.set_paused(true);
    let paused = Offered::Dropped(DropReason::Paused);
    assert_eq!(world.offer(&mut rings, 1, "meanwhile"), paused);
    assert!(rings.next().is_none() && !rings.has_ready());
    rings.set_paused(false);
    world.offer(&mut rings, 1, "after");
    assert_eq!(deliver_all(&mut rings), ["before", "after"]);
}

#[test]
fn old_units_expire_and_young_ones_stay() {
    let world = World::new();
    let mut rings = world.mirror(ROOMY);
    for (client, at) in [(1, 10), (1, 50), (2, 20)] {
        rings.offer(&world.unit(client, "u", at));
    }
    assert_eq!(rings.oldest_age_ns(60), Some(50));
    assert_eq!(rings.expire(60, 30), 2);
    assert_eq!(
        (rings.queued_units(), rings.oldest_age_ns(60)),
        (1, Some(10))
    );
    assert_eq!(deliver_all(&mut rings).len(), 1);
    assert_eq!(
        rings.ledger().snapshot().dropped_for(DropReason::Timeout),
        2
    );
}

#[test]
fn a_client_that_leaves_takes_its_ring_along_when_it_is_empty() {
    let world = World::new();
    let mut rings = world.mirror(ROOMY);
    rings.attach(ClientId(1), ROOMY);
    world.offer(&mut rings, 1, "last words");
    let ticket = rings.next().unwrap();
    rings.detach(ClientId(1));
    assert_eq!(rings.rings(), 1);
    rings.settle(ticket, Fate::Delivered);
    assert_eq!(rings.rings(), 0);
    rings.attach(ClientId(2), ROOMY);
    rings.detach(ClientId(2));
    assert_eq!(rings.rings(), 0);
}

#[test]
fn a_drain_settles_everything_that_waits() {
    let world = World::new();
    let mut rings = world.mirror(ROOMY);
    for text in ["1", "2", "3"] {
        world.offer(&mut rings, 1, text);
    }
    rings.exclude();
    rings.leave_unexposed();
    rings.refuse(DropReason::Oversize);
    let ticket = rings.next().unwrap();
    assert_eq!(rings.drain_remaining(DropReason::Shutdown), 2);
    assert_eq!((rings.queued_units(), rings.in_flight()), (0, 1));
    rings.settle(ticket, Fate::Delivered);
    let books = rings.ledger().snapshot();
    assert!(books.balances() && books.in_flight() == 0 && rings.is_idle());
    assert_eq!(books.observed, 6);
}

#[test]
fn steady_state_reuses_units_and_places() {
    let world = World::new();
    let mut rings = world.mirror(ROOMY);
    for round in 0..1000 {
        for client in 0..8 {
            world.offer(&mut rings, round * 8 + client, "SELECT 1");
        }
        deliver_all(&mut rings);
    }
    assert_eq!(world.units.len(), 8);
    assert!(rings.rings.len() <= 8 && rings.ready.capacity() <= 16);
}

/// Offers a unit of a pipeline that was sealed at `now_ns`.
fn offer_pipelined(world: &World, rings: &mut Rings, text: &str, now_ns: u64) -> Offered {
    let mut draft = world.units.draft(ClientId(1), now_ns);
    draft.payload.push_copy(text.as_bytes());
    draft.pipelined = true;
    let unit = draft.seal(now_ns);
    let offered = rings.offer(&unit);
    world.units.recycle(unit);
    offered
}

#[test]
fn a_pipeline_stretches_its_ring_while_the_mirror_answers_and_in_bytes_only_so_far() {
    let full = Offered::Dropped(DropReason::QueueFull);
    let world = World::new();
    let mut rings = world.mirror(Bounds {
        units: 2,
        bytes: 4096,
    });
    for _ in 0..2 {
        assert_eq!(offer_pipelined(&world, &mut rings, "a", 1), Offered::Queued);
    }
    assert_eq!(
        offer_pipelined(&world, &mut rings, "a", 1),
        full,
        "not asked for"
    );
    rings.stretch_for_pipelines();
    assert_eq!(world.offer(&mut rings, 1, "waits for answers"), full);
    while offer_pipelined(&world, &mut rings, "a", 1) == Offered::Queued {}
    let held = rings.queued_bytes();
    let most = PIPELINE_QUEUE_FACTOR * 4096;
    assert!((most - 4096..=most).contains(&held), "{held}");
    let ticket = rings.next().unwrap();
    rings.settle(ticket, Fate::Delivered);
    let late = 2 + PIPELINE_PATIENCE_NS;
    assert_eq!(
        offer_pipelined(&world, &mut rings, "a", late),
        full,
        "it stands still"
    );
    rings.note_answer(late);
    assert_eq!(
        offer_pipelined(&world, &mut rings, "a", late),
        Offered::Queued
    );
    rings.drain_remaining(DropReason::Shutdown);
    assert!(rings.is_idle());
}

#[test]
fn a_pipeline_leaves_in_one_go_and_comes_back_in_its_order() {
    let world = World::new();
    let mut rings = world.mirror(ROOMY);
    for text in ["1", "2", "3", "4"] {
        world.offer(&mut rings, 1, text);
    }
    let one = rings.next().unwrap();
    assert!(rings.next().is_none(), "the window is 1");
    let two = rings.next_behind(&one, |_| true).unwrap();
    assert!(rings.next_behind(&two, |_| false).is_none());
    let three = rings.next_behind(&two, |_| true).unwrap();
    assert_eq!([&one, &two, &three].map(text), ["1", "2", "3"]);
    rings.settle(one, Fate::Delivered);
    rings.requeue(three);
    assert!(
        rings.next_behind(&two, |_| true).is_none(),
        "three came back"
    );
    rings.settle(two, Fate::Delivered);
    assert_eq!(deliver_all(&mut rings), ["3", "4"]);
    rings.check_invariants();
}
