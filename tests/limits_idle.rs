//! What thousands of idle Postgres clients cost, more than a server would take itself: clients that share a pool, and clients that
//! are passed through, each with a connection of its own to a pool behind.
//!
//! 200 clients by default; `PARHELION_IDLE_POOLED_CLIENTS=9900` for as many as 20,000 descriptors allow.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::wait::eventually;
use support::faults::{PATIENCE, clients, open_fds, resident, setting, start};
use support::pg::PgClient;
use support::pg_front::{Front, FrontOptions, SHOP};

/// Opens so many clients of `proxy` that have run something; says what each costs, and that all comes back.
fn measure(proxy: &ProxyProcess, what: &str) {
    let wanted = setting("PARHELION_IDLE_POOLED_CLIENTS", 200) as usize;
    let open = |count: usize| -> Vec<PgClient> {
        let connect = |_| {
            let mut client = PgClient::connect(proxy.address(), SHOP).0;
            let answer = client.query("select 1");
            assert!(answer.iter().any(|message| message.ends_with(b"1")));
            client
        };
        (0..count).map(connect).collect()
    };
    drop(open(50));
    let calm = eventually(PATIENCE, || (clients(proxy.control()) == 0).then_some(()));
    assert!(calm.is_some());
    let (memory, fds) = (resident(proxy.pid()), open_fds(proxy.pid()));
    let idle = open(wanted);
    assert_eq!(clients(proxy.control()), wanted as u64);
    let each = resident(proxy.pid()).saturating_sub(memory) / wanted as u64;
    println!(
        "{wanted} idle clients of Postgres, {what}: {each} bytes each, {} descriptors",
        open_fds(proxy.pid())
    );
    assert!(each <= 8 * 1024, "{each} bytes for each idle client");
    drop(idle);
    let back = eventually(PATIENCE, || (open_fds(proxy.pid()) <= fds).then_some(()));
    let now = open_fds(proxy.pid());
    assert!(back.is_some(), "{now} descriptors, {fds} before");
}

#[test]
fn idle_clients_of_a_pool_cost_little_and_give_everything_back() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let front = Front::start(FrontOptions::pooled(5));
    measure(&front.proxy, "sharing a pool");
}

#[test]
fn idle_clients_that_are_passed_through_cost_little_and_give_everything_back() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let front = Front::start(FrontOptions::pooled(5));
    let proxy = start(&ProxyOptions::new("postgres", front.proxy.address()));
    measure(&proxy, "passed through");
}
