//! Finds where RESP frames end, in bytes that arrive in any pieces.
//!
//! The framers hold parse state only, never payload: a 512 MiB value passes through a few dozen bytes of state.
//! They never recurse and never reserve what a length field claims. The caller forwards the bytes as they come
//! (cut-through) and learns which byte is the last one of a command or reply.

mod reply;
mod request;

pub use reply::{ReplyError, ReplyFramer};
pub use request::{RequestError, RequestFramer};
pub(super) use request::{is_http_word, is_space};

use crate::limits::RESP_INLINE_BYTES_MAX;

/// What one call of a framer consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Bytes at the front of the input that belong to the current frame.
    pub consumed: usize,
    /// The last consumed byte is the frame's last one. If not, everything was consumed and more bytes are needed.
    pub done: bool,
    /// Only with `done`: the frame is a command without arguments (a blank line, `*0`, `*-1`). The server skips
    /// it without a reply: the caller drops it.
    pub empty: bool,
}

impl Advance {
    fn partial(consumed: usize) -> Self {
        Self {
            consumed,
            done: false,
            empty: false,
        }
    }

    fn complete(consumed: usize) -> Self {
        Self {
            consumed,
            done: true,
            empty: false,
        }
    }

    fn empty(consumed: usize) -> Self {
        Self {
            consumed,
            done: true,
            empty: true,
        }
    }
}

/// A length in a header line, read digit by digit so that it may be cut anywhere.
///
/// The grammar is that of the server: an optional minus, no plus, no leading zero, 64 bits.
#[derive(Clone, Copy, Debug, Default)]
struct Length {
    magnitude: u64,
    /// Bytes of the line so far, the type byte not counted.
    read: u32,
    digits: bool,
    negative: bool,
    malformed: bool,
    /// RESP3 `?`: the length is not known in advance.
    streamed: bool,
    carriage_return: bool,
}

/// How far the reading of a [`Length`] came.
enum Scan {
    /// The input ended first.
    More,
    /// The line is complete.
    Done,
    /// CR without LF. The server would skip any byte there; a proxy that shares upstream connections must not.
    NoLineFeed,
    /// No line end within the limit of a header line.
    TooLong,
}

impl Length {
    fn scan(&mut self, input: &[u8], pos: &mut usize) -> Scan {
        while let Some(&byte) = input.get(*pos) {
            *pos += 1;
            if self.carriage_return {
                return if byte == b'\n' {
                    Scan::Done
                } else {
                    Scan::NoLineFeed
                };
            }
            if byte == b'\r' {
                self.carriage_return = true;
                continue;
            }
            self.push(byte);
            if self.read > RESP_INLINE_BYTES_MAX {
                return Scan::TooLong;
            }
        }
        Scan::More
    }

    fn push(&mut self, byte: u8) {
        let first = self.read == 0;
        self.read += 1;
        match byte {
            b'0'..=b'9' if !self.streamed => {
                self.malformed |= self.digits && self.magnitude == 0;
                self.digits = true;
                match self
                    .magnitude
                    .checked_mul(10)
                    .and_then(|m| m.checked_add(u64::from(byte - b'0')))
                {
                    Some(magnitude) => self.magnitude = magnitude,
                    None => self.malformed = true,
                }
            }
            b'-' if first => self.negative = true,
            b'?' if first => self.streamed = true,
            _ => self.malformed = true,
        }
    }

    /// The number, unless the line was not one.
    fn value(&self) -> Option<i64> {
        if self.malformed || !self.digits || (self.negative && self.magnitude == 0) {
            return None;
        }
        let magnitude = i64::try_from(self.magnitude).ok()?;
        Some(if self.negative { -magnitude } else { magnitude })
    }

    /// The line was a lone `?`.
    fn is_streamed(&self) -> bool {
        self.streamed && !self.malformed
    }
}
