//! The dual writer against a model: a primary with several connections, a secondary that crashes and forgets, drops,
//! lost connections and repairs, in seeded order. Once all is quiet both stores are equal. Shadow reads run among it: they
//! wait for their place behind the writes (their fence) and are read again before they are told, and none is told.
//!
//! Planted mistakes show that the model would notice: each is caught by some seed. `PARHELION_SIM_SEEDS=10000` for more
//! seeds.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

#[path = "dual_simulation/reads.rs"]
mod reads;
#[path = "dual_simulation/repairs.rs"]
mod repairs;
#[path = "dual_simulation/world.rs"]
mod world;

use parhelion::mirror::ledger::DropReason;
use world::{KEYS, World};

/// Mistakes that are planted to prove that the simulation sees them.
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
