//! The Postgres v3 protocol, sans-IO: framing, the startup family, the tracker that follows a client's
//! connection, the logins Parhelion makes itself, and what is needed to replay and compare a unit.
//!
//! Rules are taken from the PostgreSQL documentation, chapter "Frontend/Backend Protocol".

pub mod auth;
mod capture;
pub mod compare;
pub mod digest;
pub mod framer;
pub mod lexer;
pub mod login;
pub mod mechanisms;
pub mod pinning;
pub mod pipelined;
pub mod queries;
pub mod rename;
pub mod replay;
pub mod session;
pub mod sql;
pub mod startup;
pub mod statements;
pub mod tracker;
