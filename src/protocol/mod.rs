//! The wire protocols, sans-IO: no sockets, clocks or randomness; bytes and time come in as arguments.

pub mod postgres;
pub mod resp;
