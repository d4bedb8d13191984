//! The framer of what clients send: multibulk commands and inline commands.

use memchr::{memchr, memchr3};

use super::{Advance, Length, Scan};
use crate::limits::{
    RESP_ARGS_MAX, RESP_ARGS_UNAUTHENTICATED_MAX, RESP_BULK_BYTES_MAX,
    RESP_BULK_BYTES_UNAUTHENTICATED_MAX, RESP_INLINE_BYTES_MAX, RESP_QUERY_BYTES_MAX,
};

/// Why a client's bytes are refused. The connection ends with any of them.
///
/// The texts are those of Redis 7. Two things are stricter than the server, because commands of several clients
/// share an upstream connection: a header or a payload must end with CR LF (the server skips any two bytes), and
/// an inline command must not contain NUL (the server waits for ever behind one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// `*` not followed by a number within the limit.
    #[error("Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    /// More arguments than a client may send before AUTH.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    /// The `*` line has no end.
    #[error("Protocol error: too big mbulk count string")]
    MultibulkHeaderTooLong,
    /// An argument does not begin with `$`.
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0))]
    ExpectedDollar(u8),
    /// `$` not followed by a number within the limit, or a payload longer than announced.
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    /// A larger argument than a client may send before AUTH.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    /// The `$` line has no end.
    #[error("Protocol error: too big bulk count string")]
    BulkHeaderTooLong,
    /// An inline command has no end, or a NUL that hides it.
    #[error("Protocol error: too big inline request")]
    InlineTooLong,
    /// An inline command with an open quote, or text right behind a closing one.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// The command as a whole is larger than the query buffer. The server closes without a word.
    #[error("the command is larger than the query buffer")]
    QueryTooLarge,
    /// HTTP or TLS on a Redis port. The server closes without a word.
    #[error("not the Redis protocol (HTTP or TLS?)")]
    CrossProtocol,
}

impl RequestError {
    /// Appends the error reply that the server would send before it closes; nothing where it closes silently.
    pub fn write_reply(&self, out: &mut Vec<u8>) {
        match self {
            Self::QueryTooLarge | Self::CrossProtocol => {}
            Self::ExpectedDollar(byte) => {
                // The byte goes out as it is, not as UTF-8; a line end inside an error becomes a space.
                let shown = if matches!(byte, b'\r' | b'\n') {
                    b' '
                } else {
                    *byte
                };
                out.extend_from_slice(b"-ERR Protocol error: expected '$', got '");
                out.extend_from_slice(&[shown, b'\'', b'\r', b'\n']);
            }
            other => {
                out.extend_from_slice(b"-ERR ");
                out.extend_from_slice(other.to_string().as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        }
    }
}

/// Frames a client's commands. See [`RequestFramer::advance`].
#[derive(Debug)]
pub struct RequestFramer {
    state: State,
    /// Arguments whose header has not been seen yet. 0 outside a multibulk command.
    args_left: u32,
    /// The command's name is being read: its payload is watched for HTTP words.
    in_name: bool,
    /// The first bytes of the name or of the inline command.
    name: Prefix,
    /// Bytes of the current command in earlier calls.
    bytes_before: u64,
    authenticated: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Start,
    Count(Length),
    ArgStart,
    ArgLength(Length),
    /// Bytes of payload and its CR LF that are still to come.
    Payload(u64),
    Inline(Inline),
    Refused(RequestError),
}

#[derive(Clone, Copy, Debug)]
struct Inline {
    quote: Quote,
    /// The line has at least one argument.
    any: bool,
    bytes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quote {
    Open,
    Double,
    DoubleEscape,
    Single,
    SingleEscape,
    /// Behind a closing quote: only white space may follow.
    Closed,
}

impl Default for RequestFramer {
    fn default() -> Self {
        Self::new()
    }
}

impl RequestFramer {
    /// A framer at the start of a connection, with the limits of a client that has not authenticated.
    pub fn new() -> Self {
        Self {
            state: State::Start,
            args_left: 0,
            in_name: false,
            name: Prefix::default(),
            bytes_before: 0,
            authenticated: false,
        }
    }

    /// Before AUTH (where the server wants one) a client may send 10 arguments of 16 KiB.
    pub fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
    }

    /// Between commands: no byte of an unfinished one was consumed.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Start)
    }

    /// Consumes bytes of at most one command from the front of `input`.
    ///
    /// With `done` the command ends at `consumed`; call again with the rest. Without it all of `input` was
    /// consumed. After an error every call returns the same error.
    ///
    /// # Errors
    /// [`RequestError`] as soon as the bytes cannot become a command; nothing of `input` counts as consumed.
    pub fn advance(&mut self, input: &[u8]) -> Result<Advance, RequestError> {
        let mut pos = 0;
        match self.run(input, &mut pos) {
            Ok(advance) => {
                self.bytes_before = if advance.done {
                    0
                } else {
                    self.bytes_before + advance.consumed as u64
                };
                if advance.done {
                    self.state = State::Start;
                }
                Ok(advance)
            }
            Err(error) => {
                self.state = State::Refused(error);
                Err(error)
            }
        }
    }

    fn run(&mut self, input: &[u8], pos: &mut usize) -> Result<Advance, RequestError> {
        loop {
            match self.state {
                State::Refused(error) => return Err(error),
                State::Start => match input.get(*pos) {
                    None => return Ok(Advance::partial(*pos)),
                    Some(b'*') => {
                        *pos += 1;
                        self.state = State::Count(Length::default());
                    }
                    Some(_) => {
                        self.name = Prefix::default();
                        let fresh = Inline {
                            quote: Quote::Open,
                            any: false,
                            bytes: 0,
                        };
                        self.state = State::Inline(fresh);
                    }
                },
                State::Count(mut count) => match count.scan(input, pos) {
                    Scan::More => {
                        self.state = State::Count(count);
                        return Ok(Advance::partial(*pos));
                    }
                    Scan::Done => {
                        if self.begin_multibulk(count)? {
                            return Ok(Advance::empty(*pos));
                        }
                    }
                    Scan::NoLineFeed => return Err(RequestError::InvalidMultibulkLength),
                    Scan::TooLong => return Err(RequestError::MultibulkHeaderTooLong),
                },
                State::ArgStart => match input.get(*pos) {
                    None => return Ok(Advance::partial(*pos)),
                    Some(b'$') => {
                        *pos += 1;
                        self.state = State::ArgLength(Length::default());
                    }
                    Some(&other) => return Err(RequestError::ExpectedDollar(other)),
                },
                State::ArgLength(mut length) => match length.scan(input, pos) {
                    Scan::More => {
                        self.state = State::ArgLength(length);
                        return Ok(Advance::partial(*pos));
                    }
                    Scan::Done => self.begin_payload(length, *pos)?,
                    Scan::NoLineFeed => return Err(RequestError::InvalidBulkLength),
                    Scan::TooLong => return Err(RequestError::BulkHeaderTooLong),
                },
                State::Payload(left) => {
                    let left = self.take_payload(left, input, pos)?;
                    if left > 0 {
                        self.state = State::Payload(left);
                        return Ok(Advance::partial(*pos));
                    }
                    if self.args_left == 0 {
                        return Ok(Advance::complete(*pos));
                    }
                    self.state = State::ArgStart;
                }
                State::Inline(line) => return self.run_inline(line, input, pos),
            }
        }
    }

    /// The `*` line is complete. True if the command has no arguments.
    fn begin_multibulk(&mut self, count: Length) -> Result<bool, RequestError> {
        let args = count.value().ok_or(RequestError::InvalidMultibulkLength)?;
        if args <= 0 {
            return Ok(true);
        }
        let args = u32::try_from(args).map_err(|_| RequestError::InvalidMultibulkLength)?;
        if args > RESP_ARGS_MAX {
            return Err(RequestError::InvalidMultibulkLength);
        }
        if !self.authenticated && args > RESP_ARGS_UNAUTHENTICATED_MAX {
            return Err(RequestError::UnauthenticatedMultibulkLength);
        }
        self.args_left = args;
        self.in_name = true;
        self.name = Prefix::default();
        self.state = State::ArgStart;
        Ok(false)
    }

    /// A `$` line is complete.
    fn begin_payload(&mut self, length: Length, pos: usize) -> Result<(), RequestError> {
        let length = length
            .value()
            .and_then(|length| u64::try_from(length).ok())
            .filter(|length| *length <= RESP_BULK_BYTES_MAX)
            .ok_or(RequestError::InvalidBulkLength)?;
        if !self.authenticated && length > RESP_BULK_BYTES_UNAUTHENTICATED_MAX {
            return Err(RequestError::UnauthenticatedBulkLength);
        }
        if self.bytes_before + pos as u64 + length > RESP_QUERY_BYTES_MAX {
            return Err(RequestError::QueryTooLarge);
        }
        self.args_left -= 1;
        self.state = State::Payload(length + 2);
        Ok(())
    }

    /// Consumes payload and its CR LF; returns what is still to come.
    fn take_payload(
        &mut self,
        mut left: u64,
        input: &[u8],
        pos: &mut usize,
    ) -> Result<u64, RequestError> {
        let body = left.saturating_sub(2).min((input.len() - *pos) as u64) as usize;
        if self.in_name {
            self.name.extend(&input[*pos..*pos + body]);
        }
        *pos += body;
        left -= body as u64;
        while (1..=2).contains(&left) {
            let Some(&byte) = input.get(*pos) else { break };
            if byte != (if left == 2 { b'\r' } else { b'\n' }) {
                return Err(RequestError::InvalidBulkLength);
            }
            *pos += 1;
            left -= 1;
        }
        if left == 0 && self.in_name {
            self.in_name = false;
            if self.name.is_http_word() {
                return Err(RequestError::CrossProtocol);
            }
        }
        Ok(left)
    }

    fn run_inline(
        &mut self,
        mut line: Inline,
        input: &[u8],
        pos: &mut usize,
    ) -> Result<Advance, RequestError> {
        let rest = &input[*pos..];
        let end = memchr(b'\n', rest);
        let text = &rest[..end.unwrap_or(rest.len())];
        let new = u32::try_from(text.len()).unwrap_or(u32::MAX);
        self.watch_inline(text)?;
        if line.bytes.saturating_add(new) > RESP_INLINE_BYTES_MAX {
            return Err(RequestError::InlineTooLong);
        }
        line.bytes += new;
        line.scan(text)?;
        if end.is_none() {
            *pos = input.len();
            self.state = State::Inline(line);
            return Ok(Advance::partial(*pos));
        }
        *pos += text.len() + 1;
        if !matches!(line.quote, Quote::Open | Quote::Closed) {
            return Err(RequestError::UnbalancedQuotes);
        }
        if self.name.first_word_is_http(true) {
            return Err(RequestError::CrossProtocol);
        }
        Ok(if line.any {
            Advance::complete(*pos)
        } else {
            Advance::empty(*pos)
        })
    }

    /// Looks at the first bytes of a line for other protocols, before anything of it goes on.
    fn watch_inline(&mut self, text: &[u8]) -> Result<(), RequestError> {
        if self.name.is_full() {
            return Ok(());
        }
        let text = if self.name.is_empty() {
            skip_space(text)
        } else {
            text
        };
        self.name.extend(text);
        if self.name.is_tls() || self.name.is_http2() || self.name.first_word_is_http(false) {
            return Err(RequestError::CrossProtocol);
        }
        Ok(())
    }
}

impl Inline {
    /// Follows the quoting of the line, as the server's argument splitter does.
    fn scan(&mut self, text: &[u8]) -> Result<(), RequestError> {
        if self.quote == Quote::Open && memchr3(b'"', b'\'', 0, text).is_none() {
            self.any = self.any || text.iter().any(|byte| !is_space(*byte));
            return Ok(());
        }
        for &byte in text {
            if byte == 0 {
                return Err(RequestError::InlineTooLong);
            }
            self.any |= !is_space(byte);
            self.quote = match (self.quote, byte) {
                (Quote::Open, b'"') => Quote::Double,
                (Quote::Open, b'\'') => Quote::Single,
                (Quote::Open, _) => Quote::Open,
                (Quote::Double, b'"') | (Quote::Single, b'\'') => Quote::Closed,
                (Quote::Double, b'\\') => Quote::DoubleEscape,
                (Quote::Double | Quote::DoubleEscape, _) => Quote::Double,
                (Quote::Single | Quote::SingleEscape, b'\\') => Quote::SingleEscape,
                (Quote::Single | Quote::SingleEscape, _) => Quote::Single,
                (Quote::Closed, byte) if is_space(byte) => Quote::Open,
                (Quote::Closed, _) => return Err(RequestError::UnbalancedQuotes),
            };
        }
        Ok(())
    }
}

/// White space as C's `isspace` has it, which decides in inline commands.
pub(in crate::protocol::resp) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

fn skip_space(text: &[u8]) -> &[u8] {
    let start = text
        .iter()
        .position(|byte| !is_space(*byte))
        .unwrap_or(text.len());
    &text[start..]
}

/// The first bytes of a name, enough to know HTTP and TLS.
#[derive(Clone, Copy, Debug, Default)]
struct Prefix {
    bytes: [u8; 8],
    len: u8,
}

impl Prefix {
    fn extend(&mut self, more: &[u8]) {
        let start = usize::from(self.len);
        let take = more.len().min(self.bytes.len() - start);
        self.bytes[start..start + take].copy_from_slice(&more[..take]);
        self.len += take as u8;
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn is_full(&self) -> bool {
        usize::from(self.len) == self.bytes.len()
    }

    fn is_tls(&self) -> bool {
        self.as_slice().starts_with(&[0x16, 0x03])
    }

    fn is_http2(&self) -> bool {
        self.as_slice().starts_with(b"PRI *")
    }

    /// The whole prefix is a word that browsers send.
    fn is_http_word(&self) -> bool {
        is_http_word(self.as_slice())
    }

    /// The first word is one that browsers send. `at_end`: the line ends here, which ends the word too.
    fn first_word_is_http(&self, at_end: bool) -> bool {
        let bytes = self.as_slice();
        match bytes.iter().position(|byte| is_space(*byte)) {
            Some(end) => is_http_word(&bytes[..end]),
            None => at_end && !self.is_full() && is_http_word(bytes),
        }
    }
}

/// `POST` or `Host:`: a browser that was led to a Redis port. The server closes on them in any position of a
/// stream, and so does the proxy, lest one client closes a connection that others share.
pub(in crate::protocol::resp) fn is_http_word(word: &[u8]) -> bool {
    word.eq_ignore_ascii_case(b"post") || word.eq_ignore_ascii_case(b"host:")
}
