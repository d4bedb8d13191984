//! The mirror engine, generic over the protocol and sans-IO.

pub mod ledger;
