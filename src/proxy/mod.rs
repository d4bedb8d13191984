//! Sessions and workers: the I/O around [`crate::protocol`] and [`crate::mirror`].
//!
//! Everything here lives on one core: a client, its rings, its upstream connections and the mirror
//! connections are owned by the core that accepted the client, from accept to close.

pub mod admission;
pub mod backoff;
pub mod context;
mod dial;
pub mod mirrors;
pub mod postgres;
pub mod redis;
mod resolver;
pub mod services;
pub mod tls;

pub use context::Context;
