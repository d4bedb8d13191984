//! The mirror engine under a seeded simulation with a virtual clock.
//!
//! After every step: the engine's own invariants, its ledger and sums against a naive twin, and
//! both against what the mirrors wrote down themselves. A mirror refuses anything but whole units
//! in the client's order; only a lost connection may cut one.
//!
//! 256 seeds by default; `PARHELION_SIM_SEEDS=10000` for more, `PARHELION_SIM_SEED=7` for one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "simulation/lane.rs"]
mod lane;
#[path = "support/seeds.rs"]
mod seeds;
#[path = "simulation/sessions.rs"]
mod sessions;
#[path = "simulation/shadow.rs"]
mod shadow;
#[path = "simulation/source.rs"]
mod source;
#[path = "simulation/witness.rs"]
mod witness;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use parhelion::mirror::ledger::{DropReason, LedgerSnapshot};

use seeds::{report, seeds};
use sessions::{Postgres, Resp};
use source::{Numbered, UnitSource};
use world::World;

/// Mistakes that are planted to prove that the simulation sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Units of one client swap places.
    Reorder,
    /// Half of a group is sent, and the unit counts as delivered.
    SendHalf,
    /// One unit settles twice.
    SettleTwice,
    /// A unit that never was is offered and delivered: the identity holds.
    CountTwice,
    /// A unit is handed out and never settled.
    Leak,
    /// A unit counts as delivered and was never sent.
    SettleUnsent,
    /// A unit that was cut is sent again.
    Resend,
    /// Some clients' turns are taken from them.
    Starve,
    /// A unit is not offered at all.
    Forget,
    /// A primary's reply is taken twice by the client's session core.
    DoubleReply,
}

/// Runs one seed; an error names the seed, what was wrong and the last actions.
fn run(seed: u64, mistake: Option<Mistake>) -> Result<LedgerSnapshot, String> {
    run_with(seed, Numbered, mistake)
}

/// The same with the units of a protocol's session core.
fn run_with(
    seed: u64,
    mut source: impl UnitSource,
    mistake: Option<Mistake>,
) -> Result<LedgerSnapshot, String> {
    if let Some(mistake) = mistake {
        source.plant(mistake);
    }
    let mut world = World::new(seed, source, mistake);
    let steps = 1_000;
    catch_unwind(AssertUnwindSafe(|| world.run(steps))).map_err(|panic| {
        let trace: Vec<&str> = world.trace.iter().map(String::as_str).collect();
        format!("{}\n{}", report(seed, &*panic), trace.join("\n"))
    })
}

fn no_seed_breaks<U: UnitSource + Default>() {
    let mut sum = LedgerSnapshot::default();
    for seed in seeds() {
        match run_with(seed, U::default(), None) {
            Ok(books) => sum.merge(&books),
            Err(report) => panic!("{report}"),
        }
    }
    println!("{sum:?}");
    assert!(sum.delivered > 0, "{sum:?}");
}

#[test]
fn no_seed_breaks_it_with_units_of_the_redis_session_core() {
    no_seed_breaks::<Resp>();
}

#[test]
fn no_seed_breaks_it_with_units_of_the_postgres_session_core() {
    no_seed_breaks::<Postgres>();
}

#[test]
fn mistakes_with_units_of_the_session_cores_are_seen() {
    for mistake in [
        Mistake::Reorder,
        Mistake::SendHalf,
        Mistake::SettleTwice,
        Mistake::Leak,
        Mistake::DoubleReply,
    ] {
        let redis = (0..16).filter(|seed| run_with(*seed, Resp::default(), Some(mistake)).is_err());
        let postgres =
            (0..16).filter(|seed| run_with(*seed, Postgres::default(), Some(mistake)).is_err());
        let seeds: (Vec<u64>, Vec<u64>) = (redis.collect(), postgres.collect());
        let seen = (seeds.0.len(), seeds.1.len());
        let first = (seeds.0.first(), seeds.1.first());
        println!(
            "{mistake:?}: seen with {seen:?} of 16 seeds of Redis and Postgres, first {first:?}"
        );
        assert!(seen.0 >= 8 && seen.1 >= 8, "{mistake:?}: {seen:?} of 16");
    }
}

#[test]
fn no_seed_breaks_order_wholeness_or_the_ledger() {
    let seeds = seeds();
    let many = seeds.end - seeds.start >= 256;
    let mut sum = LedgerSnapshot::default();
    for seed in seeds {
        match run(seed, None) {
            Ok(books) => sum.merge(&books),
            Err(report) => panic!("{report}"),
        }
    }
    println!("{sum:?}");
    if many {
        // A simulation in which something never happens proves nothing about it.
        for reason in DropReason::ALL {
            assert!(sum.dropped_for(reason) > 50, "{reason}: {sum:?}");
        }
        let counts = [sum.delivered, sum.errored, sum.excluded, sum.unexposed];
        assert!(counts.iter().all(|count| *count > 1_000), "{sum:?}");
    }
}

#[test]
fn the_same_seed_runs_the_same_way() {
    assert_eq!(run(3, None).unwrap(), run(3, None).unwrap());
}

/// The words of the checks that are there to see the mistake.
fn seen_by(mistake: Mistake) -> &'static [&'static str] {
    match mistake {
        Mistake::Reorder => &["came after unit"],
        Mistake::SendHalf => &["says the mirror", "not the start of a unit"],
        Mistake::SettleTwice => &["settled twice", "ledger"],
        Mistake::CountTwice | Mistake::Leak | Mistake::Forget => &["ledger"],
        Mistake::SettleUnsent => &["delivered, says the mirror"],
        Mistake::Resend => &["came after unit", "errored, says the mirror"],
        Mistake::Starve => &["a client starves"],
        Mistake::DoubleReply => &[],
    }
}

#[test]
fn every_planted_mistake_is_seen() {
    for mistake in [
        Mistake::Reorder,
        Mistake::SendHalf,
        Mistake::SettleTwice,
        Mistake::CountTwice,
        Mistake::Leak,
        Mistake::SettleUnsent,
        Mistake::Resend,
        Mistake::Starve,
        Mistake::Forget,
    ] {
        let reports = (0..16).filter_map(|seed| Some((seed, run(seed, Some(mistake)).err()?)));
        let reports: Vec<(u64, String)> = reports.collect();
        let by_right_check =
            |(_, text): &&(u64, String)| seen_by(mistake).iter().any(|w| text.contains(w));
        let seen = reports.iter().filter(by_right_check).count();
        let first = reports.iter().find(by_right_check).map(|(seed, _)| seed);
        println!("{mistake:?}: seen with {seen} of 16 seeds, first {first:?}");
        assert!(
            seen >= 8,
            "{mistake:?} was seen with {seen} of 16 seeds: {reports:?}"
        );
    }
}
