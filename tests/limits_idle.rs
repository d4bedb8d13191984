//! What thousands of idle Postgres clients cost, more than a server would take itself: clients that share a pool, and clients that
//! are passed through, each with a connection of its own to a pool behind.
//!
//! 200 clients by default; `PARHELION_IDLE_POOLED_CLIENTS=9900` for as many as 20,000 descriptors allow.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use support::faults::{setting, start};
use support::idle::assert_idle_clients_cost_little;
use support::pg::PgClient;
use support::pg_front::{Front, FrontOptions, SHOP};

/// Clients that have run something.
fn measure(proxy: &ProxyProcess, what: &str) {
    let wanted = setting("PARHELION_IDLE_POOLED_CLIENTS", 200) as usize;
    assert_idle_clients_cost_little(proxy, what, wanted, || {
        let mut client = PgClient::connect(proxy.address(), SHOP).0;
        let answer = client.query("select 1");
        assert!(answer.iter().any(|message| message.ends_with(b"1")));
        client
    });
}

#[test]
fn idle_clients_of_a_pool_cost_little_and_give_everything_back() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let front = Front::start(FrontOptions::pooled(5));
    measure(&front.proxy, "Postgres, sharing a pool");
}

#[test]
fn idle_clients_that_are_passed_through_cost_little_and_give_everything_back() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let front = Front::start(FrontOptions::pooled(5));
    let proxy = start(&ProxyOptions::new("postgres", front.proxy.address()));
    measure(&proxy, "Postgres, passed through");
}
