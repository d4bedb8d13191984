//! Dual writes, sans-IO: what waits for the secondary, in which order, and what must be copied again.
//!
//! [`queue`] holds what goes to the secondary in the order in which the primary answered; [`order`] notices where that
//! order cannot be known, because two connections to the primary wrote the same key at once; [`taint`] holds the keys
//! of which the secondary may hold something else, and [`repair`] says how to copy one. [`scripts`] remembers script
//! bodies, [`pubsub`] matches the messages of two streams. Nothing here waits, dials or looks at a clock.
//!
//! The fence of a shadow read is its place in the queue: it goes to the secondary behind every write that the primary
//! answered before it, and in front of every later one, so both read the same state.

pub mod expiries;
pub mod keys;
pub mod order;
pub mod pubsub;
pub mod queue;
pub mod repair;
pub mod scripts;
pub mod taint;
