//! What may come first on a connection: SSLRequest, GSSENCRequest, CancelRequest, a startup packet; and the errors a
//! server answers with before there is a session.
//!
//! Limits and texts follow PostgreSQL's `ProcessStartupPacket`. The caller holds the (at most 10,004) bytes until one
//! packet is whole; bytes behind an encryption request are the caller's to refuse ([`Parsed::consumed`] tells).

mod errors;
mod message;
#[cfg(test)]
mod tests;

use std::fmt;

use thiserror::Error;

pub use errors::{Severity, encode_error, encode_error_with_hint};
use message::Params;
pub use message::{PROTOCOL_MINOR_MAX, StartupMessage};

/// Longest startup packet without its length word (`MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP_LEN_MAX: usize = 10_000;
/// Cancel keys: 4 bytes in protocol 3.0, up to 256 in 3.2.
pub const CANCEL_KEY_LEN: std::ops::RangeInclusive<usize> = 4..=256;

const CODE_CANCEL: u32 = 1234 << 16 | 5678;
const CODE_SSL: u32 = 1234 << 16 | 5679;
const CODE_GSSENC: u32 = 1234 << 16 | 5680;

/// A first packet and how many bytes it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The packet.
    pub first: First,
    /// Its length. More bytes than this behind an encryption request are an attack or a bug: close.
    pub consumed: usize,
}

/// A packet of the startup family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    /// The client asks for TLS; the answer is one byte, `S` or `N`.
    SslRequest,
    /// The client asks for GSSAPI encryption; the answer is one byte, `G` or `N`.
    GssEncRequest,
    /// Cancel what the server process `pid` runs, if the key is right.
    Cancel(CancelRequest),
    /// Open a session.
    Startup(StartupMessage),
}

/// A request to cancel a running query.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// The server process, from its BackendKeyData.
    pub pid: u32,
    /// The secret that came with it.
    pub key: Box<[u8]>,
}

impl fmt::Debug for CancelRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelRequest")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl CancelRequest {
    /// The packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12 + self.key.len());
        out.extend((12 + self.key.len() as u32).to_be_bytes());
        out.extend(CODE_CANCEL.to_be_bytes());
        out.extend(self.pid.to_be_bytes());
        out.extend_from_slice(&self.key);
        out
    }
}

/// Why a first packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StartupError {
    /// The length is impossible. PostgreSQL closes without an answer.
    #[error("invalid length of startup packet")]
    BadLength,
    /// A TLS hello without an SSLRequest before it.
    #[error("a TLS handshake without an SSLRequest")]
    DirectTls,
    /// An HTTP request.
    #[error("an HTTP request")]
    Http,
    /// Parameters without end, or bytes behind it.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    NoTerminator,
    /// A cancel request of impossible length. PostgreSQL closes without an answer.
    #[error("invalid length of query cancel packet")]
    BadCancel,
    /// Not protocol 3.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    UnsupportedProtocol {
        /// Major version asked for.
        major: u16,
        /// Minor version asked for.
        minor: u16,
    },
    /// No `user` parameter. Not found by [`parse_first`]: where the server itself authenticates, it also refuses this itself.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
}

impl StartupError {
    /// The FATAL message that PostgreSQL answers with; `None` where it closes without one.
    pub fn response(&self) -> Option<Vec<u8>> {
        let code = match self {
            Self::BadLength | Self::DirectTls | Self::Http | Self::BadCancel => return None,
            Self::NoTerminator => "08P01",
            Self::UnsupportedProtocol { .. } => "0A000",
            Self::NoUser => "28000",
        };
        Some(encode_error(Severity::Fatal, code, &self.to_string()))
    }
}

/// Reads the first packet at the front of `input`; `None` while more bytes are needed.
///
/// What cannot become a packet is refused with its first four bytes. A second SSLRequest or GSSENCRequest on one connection
/// is to be answered with [`repeated_request`].
pub fn parse_first(input: &[u8]) -> Option<Result<Parsed, StartupError>> {
    let (head, rest) = input.split_first_chunk::<4>()?;
    let len = match check_length(*head) {
        Ok(len) => len,
        Err(error) => return Some(Err(error)),
    };
    let packet = rest.get(..len)?;
    Some(parse_packet(packet).map(|first| Parsed {
        first,
        consumed: len + 4,
    }))
}

/// Length of the packet without its length word.
fn check_length(head: [u8; 4]) -> Result<usize, StartupError> {
    const HTTP: [&[u8; 4]; 9] = [
        b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"PRI ",
    ];
    let len = u32::from_be_bytes(head) as usize;
    if (8..=STARTUP_LEN_MAX + 4).contains(&len) {
        return Ok(len - 4);
    }
    Err(if head[0] == 0x16 && head[1] == 0x03 {
        StartupError::DirectTls
    } else if HTTP.contains(&&head) {
        StartupError::Http
    } else {
        StartupError::BadLength
    })
}

fn parse_packet(packet: &[u8]) -> Result<First, StartupError> {
    let (code, rest) = packet
        .split_first_chunk::<4>()
        .ok_or(StartupError::BadLength)?;
    match u32::from_be_bytes(*code) {
        CODE_SSL if rest.is_empty() => Ok(First::SslRequest),
        CODE_GSSENC if rest.is_empty() => Ok(First::GssEncRequest),
        CODE_SSL | CODE_GSSENC => Err(StartupError::BadLength),
        CODE_CANCEL => {
            let (pid, key) = rest
                .split_first_chunk::<4>()
                .ok_or(StartupError::BadCancel)?;
            if !CANCEL_KEY_LEN.contains(&key.len()) {
                return Err(StartupError::BadCancel);
            }
            Ok(First::Cancel(CancelRequest {
                pid: u32::from_be_bytes(*pid),
                key: key.into(),
            }))
        }
        version => {
            let (major, minor) = ((version >> 16) as u16, version as u16);
            if major != 3 {
                return Err(StartupError::UnsupportedProtocol { major, minor });
            }
            let params = parse_params(rest)?;
            Ok(First::Startup(StartupMessage {
                major,
                minor,
                params,
            }))
        }
    }
}

/// Pairs of zero-terminated strings, then one zero byte that must be the last.
fn parse_params(mut rest: &[u8]) -> Result<Params, StartupError> {
    let mut params = Vec::new();
    loop {
        let (name, tail) = split_cstr(rest).ok_or(StartupError::NoTerminator)?;
        if name.is_empty() {
            return if tail.is_empty() {
                Ok(params)
            } else {
                Err(StartupError::NoTerminator)
            };
        }
        let (value, tail) = split_cstr(tail).ok_or(StartupError::NoTerminator)?;
        params.push((name.to_vec(), value.to_vec()));
        rest = tail;
    }
}

/// The bytes before the first zero byte and those behind it.
pub(super) fn split_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The SSLRequest packet.
pub fn encode_ssl_request() -> [u8; 8] {
    let mut out = [0, 0, 0, 8, 0, 0, 0, 0];
    out[4..].copy_from_slice(&CODE_SSL.to_be_bytes());
    out
}

/// The error for an SSLRequest (`ssl`) or GSSENCRequest that comes a second time: PostgreSQL reads it as a version.
pub fn repeated_request(ssl: bool) -> StartupError {
    StartupError::UnsupportedProtocol {
        major: 1234,
        minor: if ssl { 5679 } else { 5680 },
    }
}

/// Appends a message: type, length, body.
pub fn push_message(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    out.push(tag);
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
}
