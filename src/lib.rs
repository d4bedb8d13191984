//! Parhelion gives a production database a twin.
//!
//! It stands in front of Postgres or Redis, forwards every byte to the primary, and copies the traffic to candidates
//! that may be slow, wrong or dead without any client noticing.

pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod limits;
pub mod metrics;
pub mod mirror;
pub mod protocol;
pub mod proxy;
pub mod ring;
pub mod runtime;
#[doc(hidden)]
pub mod testing;
