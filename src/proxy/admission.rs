//! Who may come in: caps on the clients of a listener and of one address, over all cores.
//!
//! It counts and decides; refusing in the protocol's words is the services' affair. Locked at accept and at the end
//! of a connection, never for a request.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::General;

/// The clients of this process.
#[derive(Debug, Default)]
pub struct Admission(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    by_listener: HashMap<usize, usize>,
    by_address: HashMap<(usize, IpAddr), usize>,
}

/// A client's place; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    listener: usize,
    address: Option<IpAddr>,
}

impl Admission {
    /// A place on `listener` for a client from `peer` (`None`: a unix socket, which no address caps); `None` when the
    /// listener or the address has all that it may have.
    pub fn enter(
        self: &Arc<Self>,
        listener: usize,
        peer: Option<SocketAddr>,
        general: &General,
    ) -> Option<Place> {
        let address = peer.map(|peer| peer.ip().to_canonical());
        let mut counts = self.lock();
        let all = counts.by_listener.entry(listener).or_default();
        if is_full(*all, general.max_connections) {
            return None;
        }
        *all += 1;
        if let Some(address) = address {
            let one = counts.by_address.entry((listener, address)).or_default();
            if is_full(*one, general.max_connections_per_address) {
                leave(&mut counts.by_listener, &listener);
                return None;
            }
            *one += 1;
        }
        Some(Place {
            admission: self.clone(),
            listener,
            address,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // A panic elsewhere leaves counts that are still counts.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_full(taken: usize, cap: usize) -> bool {
    cap > 0 && taken >= cap
}

/// Takes one away; the last one takes its entry along, so that addresses do not pile up.
fn leave<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        leave(&mut counts.by_listener, &self.listener);
        if let Some(address) = self.address {
            leave(&mut counts.by_address, &(self.listener, address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 0, 0, last], 1000)))
    }

    fn caps(max_connections: usize, max_connections_per_address: usize) -> General {
        General {
            max_connections,
            max_connections_per_address,
            ..General::default()
        }
    }

    #[test]
    fn each_cap_holds_by_itself_and_a_place_that_is_left_is_free_again() {
        let admission = Arc::new(Admission::default());
        let caps = caps(3, 2);
        let first = admission.enter(0, peer(1), &caps).unwrap();
        let _second = admission.enter(0, peer(1), &caps).unwrap();
        assert!(
            admission.enter(0, peer(1), &caps).is_none(),
            "the address's cap"
        );
        let _third = admission.enter(0, peer(2), &caps).unwrap();
        assert!(
            admission.enter(0, peer(3), &caps).is_none(),
            "the listener's cap"
        );
        assert!(
            admission.enter(1, peer(1), &caps).is_some(),
            "another listener"
        );
        drop(first);
        assert!(admission.enter(0, peer(1), &caps).is_some());
    }

    #[test]
    fn no_caps_refuse_nobody_and_nothing_is_kept_of_those_who_left() {
        let admission = Arc::new(Admission::default());
        let open: Vec<Place> = (0..=255)
            .flat_map(|last| {
                [
                    admission.enter(0, peer(last), &caps(0, 0)),
                    admission.enter(0, None, &caps(0, 0)),
                ]
            })
            .map(|place| place.expect("no cap"))
            .collect();
        assert_eq!(open.len(), 512);
        drop(open);
        let counts = admission.lock();
        assert!(counts.by_listener.is_empty() && counts.by_address.is_empty());
    }

    #[test]
    fn an_ipv4_client_is_the_same_on_a_listener_for_both_families() {
        let admission = Arc::new(Admission::default());
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:5".parse().unwrap();
        let _place = admission.enter(0, Some(mapped), &caps(0, 1)).unwrap();
        assert!(admission.enter(0, peer(1), &caps(0, 1)).is_none());
    }
}
