//! Parhelion gives a production database a twin.
//!
//! It stands in front of Postgres or Redis, forwards every byte to the primary, and copies the traffic to candidates
//! that may be slow, wrong or dead without any client noticing. It compares replies and latencies and answers the
//! question: is the candidate ready?
//!
//! # The way of a request
//!
//! ```text
//! client socket ─recv─> slab ─> framer ─> session ──────────────> primary connection
//!                          │                                       │ reply frames
//!                          │ same bytes, refcounted                ▼
//!                          │                              session ─> client socket
//!                          ▼                                       │ outcome (status, digest, latency)
//!                  unit under construction <───────────────────────┘
//!                          │ sealed at the unit's end
//!                          ▼
//!         per-client mirror ring (bounded in units and bytes; same core, no atomics)
//!                          │ exposure was decided at the first byte
//!                          ▼
//!            mirror worker ─> pooled mirror connection ─> reply ─> compare ─> ledger, divergences
//! ```
//!
//! # Who owns what
//!
//! - One thread per data core ([`runtime`]), pinned, with a glommio executor and one io_uring ([`ring`]). A core owns a
//!   client, its rings and its connections from accept to close. Cores share a config snapshot that is swapped whole, and
//!   counters that one core writes and the control thread reads ([`metrics`]). Nothing else on the hot path.
//! - Two task queues per core: `serve` for clients and primaries, `mirror` for everything about mirrors. A mirror never
//!   takes time from a client that wants it.
//! - The control thread ([`control`], started by [`runtime::serve`]) holds what is not hot: HTTP, signals, reload, the
//!   divergence store. Cores hand it events with `try_send`; a full channel is counted, never waited for.
//!
//! # Who knows whom
//!
//! `main → cli, runtime → proxy → {mirror, protocol} → limits`, `proxy → ring`. [`protocol`] and [`mirror`] are sans-IO:
//! no socket, clock or random number; bytes and time come in as arguments, so that a seeded simulation can drive them.
//! `unsafe` code lives in [`ring`] alone. `tests/architecture.rs` holds these rules.
//!
//! # What always holds
//!
//! 1. The bytes a client receives are those of a direct connection.
//! 2. The bytes the primary receives are those that the client sent.
//! 3. What a mirror receives of a client is an order-preserving subsequence of whole units; a lost connection may cut the
//!    last one, which then counts as errored.
//! 4. The ledger: `observed = excluded + unexposed + offered` and
//!    `offered = delivered + dropped{reason} + errored + in_flight` ([`mirror::ledger`]).
//! 5. Memory is bounded, and every bound stands in [`limits`] with its reason.

pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod embed;
pub mod limits;
pub mod load;
pub mod metrics;
pub mod mirror;
pub mod protocol;
pub mod proxy;
pub mod ring;
pub mod runtime;
#[doc(hidden)]
pub mod testing;
