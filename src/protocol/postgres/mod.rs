//! The Postgres v3 protocol, sans-IO: framing, the startup family, the tracker that follows a client's
//! connection, the logins Parhelion makes itself, and what is needed to replay and compare a unit.
//!
//! Rules are taken from the PostgreSQL documentation, chapter "Frontend/Backend Protocol".

mod capture;
pub mod digest;
pub mod framer;
pub mod login;
pub mod startup;
pub mod tracker;
