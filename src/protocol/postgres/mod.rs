//! The Postgres v3 protocol.
