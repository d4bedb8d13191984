//! The framer of what servers send: RESP2 and RESP3 replies and pushes.

use memchr::memchr2;

use super::{Advance, Length, Scan};

/// Streamed aggregates (`*?`) may hold streamed aggregates. No server sends even one; four need no stack that grows.
const STREAM_DEPTH_MAX: usize = 4;

/// Why a server's bytes are refused. The connection cannot be used after any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A frame begins with a byte that is no type of RESP2 or RESP3.
    #[error("unknown reply type byte 0x{0:02x}")]
    UnknownType(u8),
    /// A length that is no number, or negative where it cannot be.
    #[error("invalid length in a reply")]
    InvalidLength,
    /// CR or LF where the other belongs, or a payload longer than announced.
    #[error("a reply line or payload does not end with CR LF")]
    MissingLineEnd,
    /// The frame is, or claims to be, larger than allowed.
    #[error("a reply exceeds the allowed size")]
    TooLarge,
    /// Streamed aggregates inside streamed aggregates, too deep.
    #[error("streamed aggregates are nested too deeply")]
    TooDeep,
}

/// Frames a server's replies. See [`ReplyFramer::advance`].
#[derive(Debug)]
pub struct ReplyFramer {
    state: State,
    /// Elements still to come: of the frame, or inside the innermost streamed aggregate.
    elements_left: u64,
    /// For each open streamed aggregate, `elements_left` of what is around it (itself included).
    outer: [u64; STREAM_DEPTH_MAX],
    depth: u8,
    /// 0 until the type byte of the frame has been seen; an attribute in front of it does not count.
    kind: u8,
    bytes_before: u64,
    bytes_max: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Between frames.
    Idle,
    /// At a type byte inside a frame.
    Type,
    Line,
    LineFeed,
    Header(u8, Length),
    /// Payload and CR LF still to come; whether it is a chunk of a streamed string.
    Payload(u64, bool),
    ChunkStart,
    ChunkLength(Length),
    Refused(ReplyError),
}

impl ReplyFramer {
    /// A framer at the start of a connection that refuses frames above `bytes_max` bytes.
    pub fn new(bytes_max: u64) -> Self {
        Self {
            state: State::Idle,
            elements_left: 0,
            outer: [0; STREAM_DEPTH_MAX],
            depth: 0,
            kind: 0,
            bytes_before: 0,
            bytes_max,
        }
    }

    /// The type byte of the current frame, or of the last one when between frames: `>` is a push. An attribute
    /// is not a type. `None` until known.
    pub fn kind(&self) -> Option<u8> {
        (self.kind != 0).then_some(self.kind)
    }

    /// Between frames: no byte of an unfinished one was consumed.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Consumes bytes of at most one reply from the front of `input`.
    ///
    /// With `done` the reply ends at `consumed`; call again with the rest. Without it all of `input` was
    /// consumed. After an error every call returns the same error.
    ///
    /// # Errors
    /// [`ReplyError`] as soon as the bytes cannot become a reply within the limits.
    pub fn advance(&mut self, input: &[u8]) -> Result<Advance, ReplyError> {
        let mut pos = 0;
        let outcome = self.run(input, &mut pos).and_then(|done| {
            let bytes = self.bytes_before + pos as u64;
            if bytes > self.bytes_max {
                Err(ReplyError::TooLarge)
            } else {
                Ok((done, bytes))
            }
        });
        match outcome {
            Ok((true, _)) => {
                self.state = State::Idle;
                self.bytes_before = 0;
                Ok(Advance::complete(pos))
            }
            Ok((false, bytes)) => {
                self.bytes_before = bytes;
                Ok(Advance::partial(pos))
            }
            Err(error) => {
                self.state = State::Refused(error);
                Err(error)
            }
        }
    }

    /// True when the frame is complete, false when the input ended first.
    fn run(&mut self, input: &[u8], pos: &mut usize) -> Result<bool, ReplyError> {
        loop {
            let element_done = match self.state {
                State::Refused(error) => return Err(error),
                State::Idle => {
                    if input.len() == *pos {
                        return Ok(false);
                    }
                    self.kind = 0;
                    self.elements_left = 1;
                    self.state = State::Type;
                    false
                }
                State::Type => match input.get(*pos) {
                    None => return Ok(false),
                    Some(&byte) => {
                        *pos += 1;
                        self.begin_element(byte)?;
                        false
                    }
                },
                State::Line => match memchr2(b'\r', b'\n', &input[*pos..]) {
                    None => {
                        *pos = input.len();
                        return Ok(false);
                    }
                    Some(at) if input[*pos + at] == b'\r' => {
                        *pos += at + 1;
                        self.state = State::LineFeed;
                        false
                    }
                    Some(_) => return Err(ReplyError::MissingLineEnd),
                },
                State::LineFeed => match input.get(*pos) {
                    None => return Ok(false),
                    Some(b'\n') => {
                        *pos += 1;
                        true
                    }
                    Some(_) => return Err(ReplyError::MissingLineEnd),
                },
                State::Header(kind, mut length) => {
                    if !scan(&mut length, input, pos)? {
                        self.state = State::Header(kind, length);
                        return Ok(false);
                    }
                    self.begin_sized(kind, length, *pos)?
                }
                State::Payload(left, chunk) => {
                    let left = take_payload(left, input, pos)?;
                    if left > 0 {
                        self.state = State::Payload(left, chunk);
                        return Ok(false);
                    }
                    self.state = State::ChunkStart;
                    !chunk
                }
                State::ChunkStart => match input.get(*pos) {
                    None => return Ok(false),
                    Some(b';') => {
                        *pos += 1;
                        self.state = State::ChunkLength(Length::default());
                        false
                    }
                    Some(&other) => return Err(ReplyError::UnknownType(other)),
                },
                State::ChunkLength(mut length) => {
                    if !scan(&mut length, input, pos)? {
                        self.state = State::ChunkLength(length);
                        return Ok(false);
                    }
                    let size = self.size(length, *pos)?;
                    self.state = State::Payload(size + 2, true);
                    size == 0
                }
            };
            if element_done && self.end_element() {
                return Ok(true);
            }
        }
    }

    fn begin_element(&mut self, byte: u8) -> Result<(), ReplyError> {
        if self.depth > 0 && self.elements_left == 0 {
            if byte == b'.' {
                self.depth -= 1;
                self.elements_left = self.outer[usize::from(self.depth)];
                self.state = State::Line;
                return Ok(());
            }
            self.elements_left = 1;
        }
        if self.kind == 0 && byte != b'|' && self.depth == 0 && self.elements_left == 1 {
            self.kind = byte;
        }
        self.state = match byte {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => State::Line,
            b'$' | b'!' | b'=' | b'*' | b'%' | b'~' | b'>' | b'|' => {
                State::Header(byte, Length::default())
            }
            other => return Err(ReplyError::UnknownType(other)),
        };
        Ok(())
    }

    /// A header with a length is complete. True if the element ends with it.
    fn begin_sized(&mut self, kind: u8, length: Length, pos: usize) -> Result<bool, ReplyError> {
        if length.is_streamed() {
            return self.begin_streamed(kind);
        }
        if matches!(kind, b'$' | b'*') && length.value() == Some(-1) {
            return Ok(true);
        }
        let size = self.size(length, pos)?;
        match kind {
            b'$' | b'!' | b'=' => {
                self.state = State::Payload(size + 2, false);
                Ok(false)
            }
            b'*' | b'~' | b'>' => self.add_elements(size, true),
            b'%' => self.add_elements(size * 2, true),
            // An attribute is not an element: what it describes is still to come.
            _ => self.add_elements(size * 2, false),
        }
    }

    /// Adds the elements of an aggregate. True if there are none, which ends the aggregate itself.
    fn add_elements(&mut self, count: u64, is_element: bool) -> Result<bool, ReplyError> {
        self.state = State::Type;
        if count == 0 {
            return Ok(is_element);
        }
        // Each element costs at least three bytes ("_\r\n"), so a claim beyond the size limit is refused now.
        let total = self.elements_left.saturating_add(count);
        if total > self.bytes_max / 3 + 2 {
            return Err(ReplyError::TooLarge);
        }
        self.elements_left = total - u64::from(is_element);
        Ok(false)
    }

    fn begin_streamed(&mut self, kind: u8) -> Result<bool, ReplyError> {
        match kind {
            b'$' => self.state = State::ChunkStart,
            b'*' | b'%' | b'~' => {
                let slot = self
                    .outer
                    .get_mut(usize::from(self.depth))
                    .ok_or(ReplyError::TooDeep)?;
                *slot = self.elements_left;
                self.depth += 1;
                self.elements_left = 0;
                self.state = State::Type;
            }
            _ => return Err(ReplyError::InvalidLength),
        }
        Ok(false)
    }

    /// A length that must not be negative and must fit into what the frame may still hold.
    fn size(&self, length: Length, pos: usize) -> Result<u64, ReplyError> {
        let size = length
            .value()
            .and_then(|length| u64::try_from(length).ok())
            .ok_or(ReplyError::InvalidLength)?;
        if size
            > self
                .bytes_max
                .saturating_sub(self.bytes_before + pos as u64)
        {
            return Err(ReplyError::TooLarge);
        }
        Ok(size)
    }

    /// One element less to come. True if the frame is complete.
    fn end_element(&mut self) -> bool {
        self.elements_left -= 1;
        self.state = State::Type;
        self.elements_left == 0 && self.depth == 0
    }
}

/// Reads on in a header line. True if it is complete.
fn scan(length: &mut Length, input: &[u8], pos: &mut usize) -> Result<bool, ReplyError> {
    match length.scan(input, pos) {
        Scan::More if length.malformed => Err(ReplyError::InvalidLength),
        Scan::More => Ok(false),
        Scan::Done => Ok(true),
        Scan::NoLineFeed => Err(ReplyError::MissingLineEnd),
        Scan::TooLong => Err(ReplyError::InvalidLength),
    }
}

/// Consumes payload and its CR LF; returns what is still to come.
fn take_payload(mut left: u64, input: &[u8], pos: &mut usize) -> Result<u64, ReplyError> {
    let body = left.saturating_sub(2).min((input.len() - *pos) as u64);
    *pos += body as usize;
    left -= body;
    while (1..=2).contains(&left) {
        let Some(&byte) = input.get(*pos) else { break };
        if byte != (if left == 2 { b'\r' } else { b'\n' }) {
            return Err(ReplyError::MissingLineEnd);
        }
        *pos += 1;
        left -= 1;
    }
    Ok(left)
}
