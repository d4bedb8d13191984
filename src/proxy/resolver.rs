//! The addresses of host names, without the core ever waiting for the system's resolver, which blocks.
//!
//! An IP address costs nothing. A name is asked for on a thread of its own, one at a time for each name, so that a slow
//! server of one name holds up neither the core nor another name. What was found holds for a second, and is used for half
//! a minute while it is asked for again: a database that moves is followed, and connections are not made later by it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};

use crossbeam_channel::{Receiver, TryRecvError, bounded};

use crate::limits::{NAME_FRESH_NS, NAME_POLL, NAME_STALE_NS};
use crate::ring::Ring;

/// What is known of the names of one core's databases: as many entries as the configurations in force have had names.
#[derive(Default)]
pub(super) struct Resolver {
    names: RefCell<HashMap<String, Name>>,
}

#[derive(Default)]
struct Name {
    answer: Option<Answer>,
    asked: Option<Receiver<Result<Vec<IpAddr>, String>>>,
}

struct Answer {
    at_ns: u64,
    found: Result<Vec<IpAddr>, String>,
}

impl Resolver {
    /// The addresses of `host`. The caller bounds the time.
    ///
    /// # Errors
    /// What the resolver says, or that there is no thread to ask it.
    pub async fn addresses(&self, ring: &Ring, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        loop {
            if let Some(known) = self.look(host, ring.now_ns())? {
                return known.map_err(io::Error::other);
            }
            ring.sleep(NAME_POLL, true).await;
        }
    }

    /// What is known now; `None`: it is being asked for.
    fn look(&self, host: &str, now_ns: u64) -> io::Result<Option<Result<Vec<IpAddr>, String>>> {
        let mut names = self.names.borrow_mut();
        let name = match names.get_mut(host) {
            Some(name) => name,
            None => names.entry(host.to_owned()).or_default(),
        };
        name.collect(now_ns);
        let age = name
            .answer
            .as_ref()
            .map(|answer| now_ns.saturating_sub(answer.at_ns));
        let fresh = age.is_some_and(|age| age < NAME_FRESH_NS);
        if !fresh && name.asked.is_none() {
            name.asked = Some(ask(host.to_owned())?);
        }
        Ok(name
            .answer
            .as_ref()
            .filter(|answer| {
                let stale = age.is_some_and(|age| age < NAME_STALE_NS);
                fresh || (stale && answer.found.is_ok())
            })
            .map(|answer| answer.found.clone()))
    }
}

impl Name {
    /// Takes the answer that has come, if one has.
    fn collect(&mut self, now_ns: u64) {
        let Some(asked) = &self.asked else { return };
        let found = match asked.try_recv() {
            Ok(found) => found,
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => Err("the resolver's thread ended".to_owned()),
        };
        self.asked = None;
        self.answer = Some(Answer {
            at_ns: now_ns,
            found,
        });
    }
}

fn ask(host: String) -> io::Result<Receiver<Result<Vec<IpAddr>, String>>> {
    let (answer, asked) = bounded(1);
    std::thread::Builder::new()
        .name("resolver".to_owned())
        .spawn(move || {
            let found = (host.as_str(), 0).to_socket_addrs();
            let found = found.map(|found| found.map(|address| address.ip()).collect());
            // Nobody waits any more when the core has ended.
            let _ = answer.send(found.map_err(|error| format!("{host}: {error}")));
        })?;
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Looks until there is something.
    fn wait(resolver: &Resolver, host: &str, now_ns: u64) -> Result<Vec<IpAddr>, String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(found) = resolver.look(host, now_ns).unwrap() {
                return found;
            }
            assert!(Instant::now() < deadline, "never answered");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_name_is_asked_for_aside_kept_and_asked_for_again_while_it_serves() {
        let resolver = Resolver::default();
        assert!(resolver.look("localhost", 0).unwrap().is_none());
        assert!(wait(&resolver, "localhost", 0).unwrap()[0].is_loopback());
        let asked = |now_ns| {
            assert!(resolver.look("localhost", now_ns).unwrap().is_some());
            resolver.names.borrow()["localhost"].asked.is_some()
        };
        assert!(!asked(NAME_FRESH_NS - 1));
        assert!(asked(NAME_FRESH_NS));
    }

    #[test]
    fn what_is_too_old_is_not_used() {
        let resolver = Resolver::default();
        wait(&resolver, "localhost", 0).unwrap();
        assert!(resolver.look("localhost", NAME_STALE_NS).unwrap().is_none());
    }

    #[test]
    fn a_name_that_is_none_is_an_error_that_names_it() {
        let resolver = Resolver::default();
        let error = wait(&resolver, "no such host", 0).unwrap_err();
        assert!(error.starts_with("no such host: "), "{error}");
    }
}
