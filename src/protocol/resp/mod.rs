//! The Redis protocol, RESP2 and RESP3, sans-IO.
//!
//! [`framer`] finds where commands and replies end, [`Request`] reads complete ones in place.
//! Nothing here copies payload, recurses, or trusts a length.

pub mod framer;
pub mod request;

pub use framer::{Advance, ReplyError, ReplyFramer, RequestError, RequestFramer};
pub use request::Request;
