//! What idle clients cost the proxy in memory, and that they give everything back.

use parhelion::testing::proxy::ProxyProcess;
use parhelion::testing::wait::eventually;

use super::faults::{PATIENCE, clients, open_fds, resident};

/// Most memory that an idle client may cost.
const EACH_MAX: u64 = 8 * 1024;

/// Opens so many clients of `proxy` that then do nothing, and prints what each costs. That is little, and when they leave all
/// descriptors come back.
pub fn assert_idle_clients_cost_little<C>(
    proxy: &ProxyProcess,
    what: &str,
    wanted: usize,
    connect: impl Fn() -> C,
) {
    let open = |count: usize| -> Vec<C> { (0..count).map(|_| connect()).collect() };
    // Tables and allocator pools reach their working size.
    drop(open(50));
    let calm = eventually(PATIENCE, || (clients(proxy.control()) == 0).then_some(()));
    assert!(calm.is_some());
    let (memory, fds) = (resident(proxy.pid()), open_fds(proxy.pid()));
    let idle = open(wanted);
    assert_eq!(clients(proxy.control()), wanted as u64);
    let each = resident(proxy.pid()).saturating_sub(memory) / wanted as u64;
    println!(
        "{wanted} idle clients of {what}: {each} bytes each, {} descriptors",
        open_fds(proxy.pid())
    );
    assert!(each <= EACH_MAX, "{each} bytes for each idle client");
    drop(idle);
    let back = eventually(PATIENCE, || (open_fds(proxy.pid()) <= fds).then_some(()));
    let now = open_fds(proxy.pid());
    assert!(back.is_some(), "{now} descriptors, {fds} before");
}
