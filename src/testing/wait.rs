//! Waiting with a deadline, and free ports. Never a bare sleep as synchronisation.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Between two attempts of [`eventually`]: short enough not to be felt, long enough not to burn a core.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Below Linux's ephemeral range: no outgoing connection of another test can hold such a port. Drawn at random, because
/// test processes run side by side, and listeners with SO_REUSEPORT would share a port without an error.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// Calls `attempt` until it returns a value or `timeout` has passed; `None` means that time ran out.
///
/// The attempt runs at least once, and once more at the end, so that a slow attempt is not held against the caller.
pub fn eventually<T>(timeout: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = attempt() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return attempt();
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A loopback port that nobody listens on at this moment, and that this process has not handed out before.
///
/// # Errors
/// When the system has no free port.
pub fn free_port() -> io::Result<u16> {
    static GIVEN: OnceLock<Mutex<HashSet<u16>>> = OnceLock::new();
    let given = GIVEN.get_or_init(Mutex::default);
    let mut rng = fastrand::Rng::new();
    for _ in 0..1000 {
        let port = rng.u16(PORTS);
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if free
            && given
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(port)
        {
            return Ok(port);
        }
    }
    Err(io::Error::other(
        "no free loopback port after 1000 attempts",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eventually_returns_the_first_value_and_gives_up_at_the_deadline() {
        let mut calls = 0;
        let found = eventually(Duration::from_secs(5), || {
            calls += 1;
            (calls == 3).then_some(calls)
        });
        assert_eq!(found, Some(3));
        let started = Instant::now();
        assert_eq!(eventually::<()>(Duration::from_millis(20), || None), None);
        assert!(started.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn free_ports_are_distinct() {
        let ports: HashSet<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50);
    }
}
