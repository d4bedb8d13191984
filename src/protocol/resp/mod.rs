//! The Redis protocol, RESP2 and RESP3, sans-IO.
//!
//! [`framer`] finds where commands and replies end, [`Request`] and [`Reply`] read complete ones in place,
//! [`command`] knows every command, [`tracker`] pairs replies with requests and finds units, [`mod@compare`]
//! decides whether two replies mean the same, [`mod@effects`] what a secondary gets. Nothing here copies payload, recurses, or trusts a length.

pub mod command;
pub mod compare;
pub mod effects;
pub mod framer;
pub mod reply;
pub mod request;
pub mod tracker;

pub use command::{Command, CommandCategory, Effect};
pub use compare::{Comparison, DivergenceKind, compare, compare_at_a_glance, compare_transaction};
pub use framer::{Advance, ReplyError, ReplyFramer, RequestError, RequestFramer};
pub use reply::Reply;
pub use request::Request;
pub use tracker::{Disposition, NotMirrored, Paired, ReplyHead, Tracker, UnitEnd};
