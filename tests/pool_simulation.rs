//! Clients that share server connections, transaction by transaction, against a model of the server, under a seeded simulation:
//! what each client is answered is what a connection of its own would have answered. Drives what carries a session from one
//! connection to the next (statements by name, settings), as `proxy::postgres::pooled` does, with reads cut anywhere, clients
//! that leave, connections that die, a pool that a reload replaces, and a drain. The queue for connections is modelled too.
//!
//! 256 seeds by default; `PARHELION_SIM_SEEDS=10000` for more, `PARHELION_SIM_SEED=7` for one.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

#[path = "pool_simulation/client.rs"]
mod client;
#[path = "support/pool_script.rs"]
mod pool_script;
#[path = "support/seeds.rs"]
mod seeds;
#[path = "pool_simulation/server.rs"]
mod server;
#[path = "pool_simulation/world.rs"]
mod world;

use std::panic::catch_unwind;

use seeds::{report, seeds};
use world::{Sum, World};

/// Mistakes that are planted to prove that the simulation sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A connection is given on without the next client's settings.
    Settings,
    /// What a connection has prepared is still believed after DEALLOCATE ALL.
    Doubt,
    /// Statements go on under the client's own names.
    Names,
    /// Replies to what the client did not send reach it.
    Replies,
    /// What the server skipped behind an error is believed.
    Skipped,
    /// The next client is taken for the owner of the unnamed statement.
    Unnamed,
    /// Who leaves in a transaction leaves it open.
    Rollback,
}

const STEPS: usize = 4_000;

fn run(seed: u64, mistake: Option<Mistake>) -> Result<Sum, String> {
    catch_unwind(|| World::new(seed, mistake).run(STEPS)).map_err(|panic| report(seed, &*panic))
}

#[test]
fn a_client_of_the_pool_is_answered_as_on_a_connection_of_its_own() {
    let seeds = seeds();
    let many = seeds.end - seeds.start >= 256;
    let mut sum = Sum::default();
    for seed in seeds {
        let one = run(seed, None).unwrap_or_else(|report| panic!("{report}"));
        sum.exchanges += one.exchanges;
        sum.waits += one.waits;
        sum.deaths += one.deaths;
        sum.departures += one.departures;
        sum.reloads += one.reloads;
        sum.cut_by_drain += one.cut_by_drain;
        sum.finished_in_drain += one.finished_in_drain;
    }
    println!("{sum:?}");
    if many {
        // A simulation in which something never happens proves nothing about it.
        let counts = [
            sum.waits,
            sum.deaths,
            sum.departures,
            sum.reloads,
            sum.cut_by_drain,
            sum.finished_in_drain,
        ];
        assert!(counts.iter().all(|count| *count > 100), "{sum:?}");
    }
}

#[test]
fn planted_mistakes_are_seen() {
    for mistake in [
        Mistake::Settings,
        Mistake::Doubt,
        Mistake::Names,
        Mistake::Replies,
        Mistake::Skipped,
        Mistake::Unnamed,
        Mistake::Rollback,
    ] {
        let seen: Vec<u64> = (0..128)
            .filter(|seed| run(*seed, Some(mistake)).is_err())
            .collect();
        println!(
            "{mistake:?}: seen with {} of 128 seeds, first {:?}",
            seen.len(),
            seen.first()
        );
        assert!(seen.len() >= 4, "{mistake:?}: {seen:?}");
    }
}
