//! The mirror engine, generic over the protocol and sans-IO.
//!
//! A session collects what its client sent in a [`unit::Draft`] and seals it with the primary's
//! outcome; one [`dispatch::Dispatcher`] per mirror and core queues the sealed unit, hands it to
//! the mirror's workers and books its fate in the [`ledger::Ledger`]. Time, randomness and bytes
//! come in as arguments; nothing here waits, sleeps or draws.

mod budget;
pub mod dispatch;
pub mod dual;
pub mod exposure;
pub mod ledger;
pub mod pace;
pub mod payload;
pub mod pool;
mod queue;
pub mod rate_limit;
pub mod unit;
pub mod verdict;
