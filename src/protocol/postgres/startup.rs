//! What may come first on a connection: SSLRequest, GSSENCRequest, CancelRequest, a startup packet; and the errors a
//! server answers with before there is a session.
//!
//! Limits and texts follow PostgreSQL's `ProcessStartupPacket`. The caller holds the (at most 10,004) bytes until one
//! packet is whole; bytes behind an encryption request are the caller's to refuse ([`Parsed::consumed`] tells).

use std::fmt;

use thiserror::Error;

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

/// A startup packet: protocol version and parameters in the client's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage {
    /// Always 3.
    pub major: u16,
    /// 0 or 2; anything else is for the server to negotiate.
    pub minor: u16,
    params: Params,
}

/// Names and values.
type Params = Vec<(Vec<u8>, Vec<u8>)>;

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

impl StartupMessage {
    /// A protocol 3.0 startup for a login of our own.
    pub fn new(user: &[u8], database: &[u8]) -> Self {
        let mut message = Self {
            major: 3,
            minor: 0,
            params: Vec::new(),
        };
        message.set(b"user", user);
        message.set(b"database", database);
        message
    }

    /// Parameters in the client's order.
    pub fn params(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.params
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// A parameter's value; of repeated ones the last, as in PostgreSQL.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.params
            .iter()
            .rev()
            .find(|(have, _)| have == name)
            .map(|(_, value)| value.as_slice())
    }

    /// Replaces a parameter where it stands, or appends it. NUL bytes cannot be sent and end the text.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let clean = |text: &[u8]| text.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        let (name, value) = (clean(name), clean(value));
        let mut found = false;
        for (have, old) in &mut self.params {
            if *have == name {
                old.clone_from(&value);
                found = true;
            }
        }
        if !found {
            self.params.push((name, value));
        }
    }

    /// Takes a parameter out.
    pub fn remove(&mut self, name: &[u8]) {
        self.params.retain(|(have, _)| have != name);
    }

    /// The `user` parameter.
    pub fn user(&self) -> Option<&[u8]> {
        self.get(b"user")
    }

    /// The `database` parameter; the user's name where it is absent or empty, as in PostgreSQL.
    pub fn database(&self) -> &[u8] {
        match self.get(b"database") {
            Some(database) if !database.is_empty() => database,
            _ => self.user().unwrap_or_default(),
        }
    }

    /// The client asks for a replication connection (any value but a false one; nonsense is the server's to refuse).
    pub fn is_replication(&self) -> bool {
        self.get(b"replication").is_some_and(|value| {
            let value = value.to_ascii_lowercase();
            let is_prefix = |word: &[u8]| !value.is_empty() && word.starts_with(&value);
            !(is_prefix(b"false")
                || is_prefix(b"no")
                || value == b"off"
                || value == b"of"
                || value == b"0")
        })
    }

    /// The packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        out.extend(self.major.to_be_bytes());
        out.extend(self.minor.to_be_bytes());
        for (name, value) in &self.params {
            out.extend_from_slice(name);
            out.push(0);
            out.extend_from_slice(value);
            out.push(0);
        }
        out.push(0);
        let len = out.len() as u32;
        out[..4].copy_from_slice(&len.to_be_bytes());
        out
    }
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

/// Newest minor version of protocol 3 that a server of ours speaks.
pub const PROTOCOL_MINOR_MAX: u16 = 2;

impl StartupMessage {
    /// What a server answers that speaks protocol 3.2 and knows none of the `_pq_.` options; `None` where there is nothing to
    /// negotiate.
    pub fn negotiation(&self) -> Option<Vec<u8>> {
        let unknown: Vec<&[u8]> = self
            .params()
            .map(|(name, _)| name)
            .filter(|name| name.starts_with(b"_pq_."))
            .collect();
        if self.minor <= PROTOCOL_MINOR_MAX && unknown.is_empty() {
            return None;
        }
        let minor = self.minor.min(PROTOCOL_MINOR_MAX);
        let mut body = (3 << 16 | u32::from(minor)).to_be_bytes().to_vec();
        body.extend((unknown.len() as u32).to_be_bytes());
        for name in unknown {
            body.extend_from_slice(name);
            body.push(0);
        }
        let mut out = Vec::new();
        push_message(&mut out, b'v', &body);
        Some(out)
    }
}

/// How bad an ErrorResponse is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ends.
    Fatal,
}

/// An ErrorResponse. `code` is a SQLSTATE; NUL bytes cannot be sent and end the text.
pub fn encode_error(severity: Severity, code: &str, message: &str) -> Vec<u8> {
    encode_error_with_hint(severity, code, message, "")
}

/// An ErrorResponse with a hint, unless that is empty.
pub fn encode_error_with_hint(
    severity: Severity,
    code: &str,
    message: &str,
    hint: &str,
) -> Vec<u8> {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    let mut out = vec![b'E', 0, 0, 0, 0];
    for (field, text) in [
        (b'S', severity),
        (b'V', severity),
        (b'C', code),
        (b'M', message),
        (b'H', hint),
    ] {
        if text.is_empty() {
            continue;
        }
        out.push(field);
        out.extend(text.bytes().take_while(|byte| *byte != 0));
        out.push(0);
    }
    out.push(0);
    let len = (out.len() - 1) as u32;
    out[1..5].copy_from_slice(&len.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
        let mut out = (8 + rest.len() as u32).to_be_bytes().to_vec();
        out.extend(code.to_be_bytes());
        out.extend(rest);
        out
    }

    fn first(bytes: &[u8]) -> Result<First, StartupError> {
        parse_first(bytes).unwrap().map(|parsed| parsed.first)
    }

    #[test]
    fn a_startup_packet_keeps_order_and_survives_a_round_trip() {
        let bytes = packet(
            3 << 16 | 2,
            b"user\0ann\0database\0shop\0options\0-c a=b\0\0",
        );
        for cut in 0..bytes.len() {
            assert_eq!(parse_first(&bytes[..cut]), None);
        }
        let First::Startup(mut startup) = first(&bytes).unwrap() else {
            panic!()
        };
        assert_eq!((startup.major, startup.minor), (3, 2));
        assert_eq!(startup.database(), b"shop");
        assert_eq!(startup.encode(), bytes);
        startup.set(b"database", b"twin");
        assert_eq!(
            startup.encode(),
            packet(
                3 << 16 | 2,
                b"user\0ann\0database\0twin\0options\0-c a=b\0\0"
            )
        );
    }

    #[test]
    fn newer_versions_and_unknown_options_are_negotiated_down() {
        let negotiation = |minor: u32, params: &[u8]| {
            let First::Startup(startup) = first(&packet(3 << 16 | minor, params)).unwrap() else {
                panic!()
            };
            startup.negotiation()
        };
        assert_eq!(negotiation(0, b"user\0a\0\0"), None);
        assert_eq!(negotiation(2, b"user\0a\0\0"), None);
        assert_eq!(
            negotiation(9999, b"user\0a\0_pq_.x\x001\0\0").unwrap(),
            b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0"
        );
    }

    #[test]
    fn the_database_defaults_to_the_user() {
        let bytes = packet(3 << 16, b"user\0ann\0\0");
        let First::Startup(startup) = first(&bytes).unwrap() else {
            panic!()
        };
        assert_eq!(startup.database(), b"ann");
    }

    #[test]
    fn impossible_lengths_are_refused_with_four_bytes() {
        for len in [
            0u32,
            1,
            3,
            4,
            7,
            10_005,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
        ] {
            assert_eq!(
                parse_first(&len.to_be_bytes()),
                Some(Err(StartupError::BadLength)),
                "{len}"
            );
        }
        assert_eq!(parse_first(&10_004u32.to_be_bytes()), None);
    }

    #[test]
    fn other_protocols_are_told_apart_and_refused() {
        assert_eq!(first(b"\x16\x03\x01\x02\x00"), Err(StartupError::DirectTls));
        assert_eq!(first(b"POST / HTTP/1.1"), Err(StartupError::Http));
        assert_eq!(first(b"PRI * HTTP/2.0"), Err(StartupError::Http));
        assert_eq!(first(b"Host: x"), Err(StartupError::BadLength));
        assert_eq!(StartupError::Http.response(), None);
    }

    #[test]
    fn a_missing_terminator_a_missing_user_and_version_2_get_postgres_errors() {
        let error = first(&packet(3 << 16, b"user\0ann\0")).unwrap_err();
        assert_eq!(error, StartupError::NoTerminator);
        let text = error.response().unwrap();
        assert!(text.windows(5).any(|w| w == b"08P01"));
        assert_eq!(
            first(&packet(3 << 16, b"user\0ann\0\0x")),
            Err(StartupError::NoTerminator)
        );
        let Ok(First::Startup(nameless)) = first(&packet(3 << 16, b"a\0b\0\0")) else {
            panic!("a packet without a user is for the server to refuse");
        };
        assert_eq!(nameless.user(), None);
        assert_eq!(
            first(&packet(3 << 16, b"")),
            Err(StartupError::NoTerminator)
        );
        assert_eq!(
            first(&packet(2 << 16, b"\0")),
            Err(StartupError::UnsupportedProtocol { major: 2, minor: 0 })
        );
    }

    #[test]
    fn cancel_keys_have_4_to_256_bytes() {
        for (len, good) in [
            (0, false),
            (3, false),
            (4, true),
            (32, true),
            (256, true),
            (257, false),
        ] {
            let mut rest = 77u32.to_be_bytes().to_vec();
            rest.extend(vec![9; len]);
            let bytes = packet(CODE_CANCEL, &rest);
            match first(&bytes) {
                Ok(First::Cancel(cancel)) => {
                    assert!(good);
                    assert_eq!((cancel.pid, cancel.key.len()), (77, len));
                    assert_eq!(cancel.encode(), bytes);
                }
                other => assert!(!good && other == Err(StartupError::BadCancel), "{other:?}"),
            }
        }
    }

    #[test]
    fn bytes_behind_an_ssl_request_show_in_consumed() {
        let mut bytes = encode_ssl_request().to_vec();
        bytes.extend(b"select");
        let parsed = parse_first(&bytes).unwrap().unwrap();
        assert_eq!((parsed.first, parsed.consumed), (First::SslRequest, 8));
    }

    #[test]
    fn replication_is_seen_unless_it_is_a_false_word() {
        for (value, yes) in [
            ("true", true),
            ("database", true),
            ("1", true),
            ("f", false),
            ("off", false),
            ("0", false),
            ("No", false),
        ] {
            let mut startup = StartupMessage::new(b"u", b"d");
            startup.set(b"replication", value.as_bytes());
            assert_eq!(startup.is_replication(), yes, "{value}");
        }
    }
}
