//! Real servers and faulty peers on loopback, for the integration tests, the benches and `parhelion demo`.
//!
//! Owns: starting and stopping `redis-server` and `postgres` in temporary folders, relays that cut, stall and chop
//! what passes, scripted peers, and polling with a deadline. Never waits by sleeping for a guessed time: readiness
//! is a real answer of the server. Not part of the public API.

pub mod pg_wire;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod relay;
pub mod scripted;
pub mod wait;

/// The servers under the names that tests use.
pub mod servers {
    pub use super::postgres::{PostgresOptions, PostgresServer, PostgresUser, UserAuth};
    pub use super::redis::{RedisOptions, RedisServer};
}
