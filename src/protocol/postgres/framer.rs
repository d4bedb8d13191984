//! Cuts a byte stream into Postgres messages: a tag, a length that counts itself, a body.
//!
//! The framer owns five header bytes and two counters. It never holds a body and never reserves
//! what a length claims, so a 1 GiB row crosses in constant memory. A length or tag that the protocol
//! does not know is refused as soon as its bytes are there.

use thiserror::Error;

/// Largest length of a client message that carries no bulk data (PostgreSQL's `PQ_SMALL_MESSAGE_LIMIT`).
pub const CLIENT_SMALL_MAX: u32 = 10_000;
/// Largest length of a client message that may carry bulk data (`PQ_LARGE_MESSAGE_LIMIT`, `MaxAllocSize - 1`).
pub const CLIENT_LARGE_MAX: u32 = 0x3fff_fffe;
/// Largest length of a password, SASL or GSS message (`PG_MAX_AUTH_TOKEN_LENGTH`).
pub const CLIENT_AUTH_MAX: u32 = 65_535;
/// Largest length of a server message that carries no bulk data (the bound that libpq applies).
pub const SERVER_SMALL_MAX: u32 = 30_000;
/// Largest length of a server message that may carry bulk data: a StringInfo (1 GiB - 1) and the length word.
pub const SERVER_LARGE_MAX: u32 = 0x3fff_ffff + 4;

/// Tag and length.
const HEADER_LEN: usize = 5;

/// Why a stream is not the Postgres protocol. Nothing behind such a message can be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The first byte of a message is no message type of this direction.
    #[error("invalid message type 0x{tag:02X}")]
    UnknownTag {
        /// The byte that stood where a type belongs.
        tag: u8,
    },
    /// The length is below 4, negative, or more than this type may carry.
    #[error("invalid length {len} of message type 0x{tag:02X}")]
    BadLength {
        /// The message type.
        tag: u8,
        /// The length as the message claims it (counts itself, not the tag).
        len: i32,
    },
}

/// What one call of [`MessageFramer::advance`] took from the front of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    /// Bytes taken, of at most one message; 0 only for an empty input.
    pub consumed: usize,
    /// The message ends with these bytes.
    pub done: bool,
    /// Where in the taken bytes the body begins (`body_at..consumed` is body; empty while in the header).
    pub body_at: usize,
    /// How much of the body had been seen before these bytes.
    pub body_offset: usize,
}

impl Advance {
    /// The whole message lies in the taken bytes: header, body and all.
    pub fn whole(&self) -> bool {
        self.done && self.body_at == HEADER_LEN
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// A resumable framer for one direction of one connection.
#[derive(Debug, Clone)]
pub struct MessageFramer {
    side: Side,
    /// `header[..header_len]` is valid; complete at `HEADER_LEN`.
    header: [u8; HEADER_LEN],
    header_len: u8,
    /// Known once the header is complete.
    body_len: u32,
    /// `0 <= body_seen <= body_len`.
    body_seen: u32,
}

impl MessageFramer {
    /// For what clients send after the startup packet.
    pub fn client() -> Self {
        Self::new(Side::Client)
    }

    /// For what servers send.
    pub fn server() -> Self {
        Self::new(Side::Server)
    }

    fn new(side: Side) -> Self {
        Self {
            side,
            header: [0; HEADER_LEN],
            header_len: 0,
            body_len: 0,
            body_seen: 0,
        }
    }

    /// Takes bytes of at most one message from the front of `input`.
    ///
    /// After `done` the next call begins the next message; until then [`tag`](Self::tag) and
    /// [`body_len`](Self::body_len) speak of the finished one.
    #[inline]
    pub fn advance(&mut self, input: &[u8]) -> Result<Advance, FrameError> {
        if !self.in_message() {
            self.header_len = 0;
            self.body_len = 0;
            self.body_seen = 0;
        }
        let mut taken = 0;
        if usize::from(self.header_len) < HEADER_LEN {
            taken = self.take_header(input)?;
            if usize::from(self.header_len) < HEADER_LEN {
                return Ok(Advance {
                    consumed: taken,
                    done: false,
                    body_at: taken,
                    body_offset: 0,
                });
            }
        }
        let left = (self.body_len - self.body_seen) as usize;
        let part = left.min(input.len() - taken);
        let body_offset = self.body_seen as usize;
        self.body_seen += part as u32;
        Ok(Advance {
            consumed: taken + part,
            done: part == left,
            body_at: taken,
            body_offset,
        })
    }

    fn take_header(&mut self, input: &[u8]) -> Result<usize, FrameError> {
        let have = usize::from(self.header_len);
        let taken = (HEADER_LEN - have).min(input.len());
        if taken == 0 {
            return Ok(0);
        }
        self.header[have..have + taken].copy_from_slice(&input[..taken]);
        self.header_len = (have + taken) as u8;
        let tag = self.header[0];
        let len_max = match self.side {
            Side::Client => client_len_max(tag),
            Side::Server => server_len_max(tag),
        }
        .ok_or(FrameError::UnknownTag { tag })?;
        if have + taken == HEADER_LEN {
            let [_, a, b, c, d] = self.header;
            let len = i32::from_be_bytes([a, b, c, d]);
            if len < 4 || len as u32 > len_max {
                return Err(FrameError::BadLength { tag, len });
            }
            self.body_len = len as u32 - 4;
        }
        Ok(taken)
    }

    /// The type of the current message, or of the one that just ended. `None` before the first byte.
    pub fn tag(&self) -> Option<u8> {
        (self.header_len > 0).then_some(self.header[0])
    }

    /// Body length of the current or just ended message; `None` while its header is incomplete.
    pub fn body_len(&self) -> Option<usize> {
        (usize::from(self.header_len) == HEADER_LEN).then_some(self.body_len as usize)
    }

    /// A message has begun and not ended.
    pub fn in_message(&self) -> bool {
        self.header_len > 0
            && (usize::from(self.header_len) < HEADER_LEN || self.body_seen < self.body_len)
    }

    /// Bytes of the unfinished message that were taken so far; 0 between messages.
    pub fn unfinished(&self) -> usize {
        if self.in_message() {
            usize::from(self.header_len) + self.body_seen as usize
        } else {
            0
        }
    }
}

/// Message types of the client side and what PostgreSQL lets each carry.
fn client_len_max(tag: u8) -> Option<u32> {
    Some(match tag {
        b'Q' | b'P' | b'B' | b'F' | b'd' => CLIENT_LARGE_MAX,
        b'D' | b'C' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' => CLIENT_SMALL_MAX,
        b'p' => CLIENT_AUTH_MAX,
        _ => return None,
    })
}

/// Message types of the server side and what a client must be ready to read.
fn server_len_max(tag: u8) -> Option<u32> {
    Some(match tag {
        b'D' | b'd' | b'T' | b't' | b'E' | b'N' | b'A' | b'V' | b'S' => SERVER_LARGE_MAX,
        b'1' | b'2' | b'3' | b'c' | b'C' | b'G' | b'H' | b'I' | b'K' | b'n' | b'R' | b's'
        | b'W' | b'Z' | b'v' => SERVER_SMALL_MAX,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_gives_the_same_message() {
        let bytes = b"Q\0\0\0\x0dselect 1\0";
        for cut in 0..bytes.len() {
            let mut framer = MessageFramer::client();
            let first = framer.advance(&bytes[..cut]).unwrap();
            assert_eq!((first.consumed, first.done), (cut, false));
            let rest = framer.advance(&bytes[cut..]).unwrap();
            assert_eq!((rest.consumed, rest.done), (bytes.len() - cut, true));
            assert_eq!((framer.tag(), framer.body_len()), (Some(b'Q'), Some(9)));
            assert_eq!(rest.body_offset, cut.saturating_sub(5));
            assert!(!framer.in_message());
        }
    }

    #[test]
    fn one_call_takes_one_message_only() {
        let mut framer = MessageFramer::client();
        let bytes = b"S\0\0\0\x04S\0\0\0\x04";
        let advance = framer.advance(bytes).unwrap();
        assert!(advance.whole());
        assert_eq!(advance.consumed, 5);
    }

    #[test]
    fn lengths_that_postgres_refuses_are_refused_with_the_header() {
        for len in [0u32, 1, 2, 3, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
            for (tag, mut framer) in [
                (b'Q', MessageFramer::client()),
                (b'D', MessageFramer::server()),
            ] {
                let mut bytes = vec![tag];
                bytes.extend(len.to_be_bytes());
                assert_eq!(
                    framer.advance(&bytes),
                    Err(FrameError::BadLength {
                        tag,
                        len: len as i32
                    })
                );
            }
        }
        let mut sync = vec![b'S'];
        sync.extend((CLIENT_SMALL_MAX + 1).to_be_bytes());
        assert!(MessageFramer::client().advance(&sync).is_err());
    }

    #[test]
    fn unknown_tags_are_refused_with_their_first_byte() {
        for (tag, mut framer) in [
            (b'Z', MessageFramer::client()),
            (b'Q', MessageFramer::server()),
        ] {
            assert_eq!(framer.advance(&[tag]), Err(FrameError::UnknownTag { tag }));
        }
    }
}
