//! The proxy under test: the real binary.
//!
//! With `PARHELION_TEST_PROXY=forwarder` a plain byte relay stands in for it. That is how the tests themselves are
//! tested: what fails through a relay that changes nothing is the fault of the test.

use std::net::SocketAddr;
use std::path::Path;

pub use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::relay::Relay;

/// A running proxy; killed by its pid when dropped.
pub enum Proxy {
    Real(Box<ProxyProcess>),
    Forwarder(Relay),
}

impl Proxy {
    /// Starts it and returns once it accepts; panics with its log when it does not.
    pub fn start(options: &ProxyOptions) -> Proxy {
        if forwarder_wanted() {
            return Proxy::Forwarder(Relay::start(options.primary).unwrap());
        }
        let binary = Path::new(env!("CARGO_BIN_EXE_parhelion"));
        Proxy::Real(Box::new(ProxyProcess::start(binary, options).unwrap()))
    }

    /// In front of a Redis, nothing mirrored.
    pub fn redis(primary: SocketAddr) -> Proxy {
        Proxy::start(&ProxyOptions::new("redis", primary))
    }

    /// In front of a Postgres, nothing mirrored.
    pub fn postgres(primary: SocketAddr) -> Proxy {
        Proxy::start(&ProxyOptions::new("postgres", primary))
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        match self {
            Proxy::Real(process) => process.address(),
            Proxy::Forwarder(relay) => relay.address(),
        }
    }

    /// The process, for its control port and its signals; panics for the forwarder.
    pub fn real(&mut self) -> &mut ProxyProcess {
        match self {
            Proxy::Real(process) => process,
            Proxy::Forwarder(_) => panic!("this test needs the real proxy"),
        }
    }
}

/// Whether the tests run against the plain relay.
pub fn forwarder_wanted() -> bool {
    std::env::var("PARHELION_TEST_PROXY").is_ok_and(|value| value == "forwarder")
}
