//! A complete command, read in place.

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr, memchr2};
use smallvec::SmallVec;

use super::framer::{is_http_word, is_space};

/// Arguments that are located without an allocation.
const ARGS_INLINE: usize = 16;

/// A view of one complete command. Multibulk arguments borrow the frame; only an inline command with quotes or
/// escapes has its text unquoted into a buffer.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    text: Cow<'a, [u8]>,
    // Invariant: every range lies within `text`. 32 bits suffice: a command is at most 1 GiB.
    args: Args,
}

type Args = SmallVec<[Range<u32>; ARGS_INLINE]>;

impl<'a> Request<'a> {
    /// Reads the bytes of one complete command, as a [`super::RequestFramer`] framed them.
    ///
    /// Bytes that are not a complete command give a request without arguments.
    pub fn parse(bytes: &'a [u8]) -> Self {
        if bytes.first() != Some(&b'*') {
            return parse_inline(bytes).unwrap_or_else(|| Self::without_args(bytes));
        }
        let mut request = Self::without_args(bytes);
        let is_complete = match read_args(bytes, &mut request.args) {
            // A blank command has no arguments and no bytes behind its header.
            Some((count, end)) => {
                request.args.len() as u64 == count && (count == 0 || end <= bytes.len())
            }
            None => false,
        };
        if !is_complete {
            request.args.clear();
        }
        request
    }

    /// Reads the first bytes of a command that is too large to lie in memory: the arguments that are whole in `bytes`.
    pub fn parse_prefix(bytes: &'a [u8]) -> Self {
        let mut request = Self::without_args(bytes);
        if bytes.first() == Some(&b'*') {
            read_args(bytes, &mut request.args);
        }
        request
    }

    fn without_args(bytes: &'a [u8]) -> Self {
        Self {
            text: Cow::Borrowed(bytes),
            args: SmallVec::new(),
        }
    }

    /// Number of arguments, the name included.
    pub fn len(&self) -> usize {
        self.args.len()
    }

    /// A blank line or `*0`: nothing that the server would answer.
    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// The command's name as sent; empty if there is none.
    pub fn name(&self) -> &[u8] {
        self.arg(0).unwrap_or_default()
    }

    /// Argument `index`; the name is argument 0.
    pub fn arg(&self, index: usize) -> Option<&[u8]> {
        let range = self.args.get(index)?;
        self.text.get(range.start as usize..range.end as usize)
    }

    /// All arguments, the name first.
    pub fn args(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        self.args
            .iter()
            .map(|range| &self.text[range.start as usize..range.end as usize])
    }

    /// Where argument `index` lies in the frame; `None` also for an inline command that had to be unquoted.
    pub fn arg_range(&self, index: usize) -> Option<Range<usize>> {
        let range = self.args.get(index)?;
        matches!(self.text, Cow::Borrowed(_)).then_some(range.start as usize..range.end as usize)
    }

    /// Argument `index` equals `word` but for ASCII case.
    pub fn arg_is(&self, index: usize, word: &[u8]) -> bool {
        self.arg(index)
            .is_some_and(|arg| arg.eq_ignore_ascii_case(word))
    }

    /// `POST` or `Host:` in any disguise (quoted, escaped): the server would close the connection on it, so it
    /// must never go to a connection that clients share.
    pub fn is_cross_protocol(&self) -> bool {
        is_http_word(self.name())
    }
}

/// Finds the arguments that lie whole in `bytes`. How many there are to be, and where the last one found ends. They are
/// written where they stay: a list that is moved behind its last write waits for all writes before it.
fn read_args(bytes: &[u8], args: &mut Args) -> Option<(u64, usize)> {
    let (count, mut pos) = header(bytes, 0)?;
    // Grows with the arguments that are there, not with the count that was claimed.
    while (args.len() as u64) < count
        && let Some((range, next)) = arg_at(bytes, pos)
    {
        args.push(range);
        pos = next;
    }
    Some((count, pos))
}

/// The argument whose header begins at `pos`, and where the next one begins.
fn arg_at(bytes: &[u8], pos: usize) -> Option<(Range<u32>, usize)> {
    if bytes.get(pos) != Some(&b'$') {
        return None;
    }
    let (length, start) = header(bytes, pos)?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    let next = end.checked_add(2)?;
    let range = u32::try_from(start).ok()?..u32::try_from(end).ok()?;
    (bytes.len() >= next).then_some((range, next))
}

/// The number behind the type byte at `pos`, and where the next line begins.
fn header(bytes: &[u8], pos: usize) -> Option<(u64, usize)> {
    let mut value: u64 = 0;
    let mut at = pos + 1;
    while let Some(digit @ b'0'..=b'9') = bytes.get(at) {
        value = value
            .checked_mul(10)?
            .checked_add(u64::from(digit - b'0'))?;
        at += 1;
    }
    (at > pos + 1 && bytes.get(at..at + 2) == Some(b"\r\n")).then_some((value, at + 2))
}

/// An inline command: words between white space, `"…"` with escapes, `'…'` with `\'` only.
fn parse_inline(bytes: &[u8]) -> Option<Request<'_>> {
    let line = bytes.strip_suffix(b"\n")?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // The server's splitter stops at a NUL. The framer refuses such a line; this view must end all the same.
    let line = &line[..memchr(0, line).unwrap_or(line.len())];
    if memchr2(b'"', b'\'', line).is_some() {
        return unquote(line);
    }
    let mut args = SmallVec::new();
    let mut pos = 0;
    while let Some(start) = next_word(line, pos) {
        pos = start;
        while line.get(pos).is_some_and(|byte| !ends_word(*byte)) {
            pos += 1;
        }
        args.push(u32::try_from(start).ok()?..u32::try_from(pos).ok()?);
    }
    Some(Request {
        text: Cow::Borrowed(bytes),
        args,
    })
}

fn next_word(line: &[u8], pos: usize) -> Option<usize> {
    let skipped = line[pos..].iter().position(|byte| !is_space(*byte))?;
    Some(pos + skipped)
}

/// Inside a word vertical tab and form feed are text, although they are skipped in front of one.
fn ends_word(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

fn unquote(line: &[u8]) -> Option<Request<'static>> {
    let mut text = Vec::with_capacity(line.len());
    let mut args = SmallVec::new();
    let mut pos = 0;
    while let Some(start) = next_word(line, pos) {
        let from = text.len();
        pos = unquote_word(line, start, &mut text)?;
        args.push(u32::try_from(from).ok()?..u32::try_from(text.len()).ok()?);
    }
    Some(Request {
        text: Cow::Owned(text),
        args,
    })
}

/// Appends the word at `pos` to `text`; returns the position behind it, or `None` for unbalanced quotes.
fn unquote_word(line: &[u8], mut pos: usize, text: &mut Vec<u8>) -> Option<usize> {
    while let Some(&byte) = line.get(pos) {
        match byte {
            b'"' | b'\'' => {
                pos = if byte == b'"' {
                    unquote_double(line, pos + 1, text)?
                } else {
                    unquote_single(line, pos + 1, text)?
                };
                return line
                    .get(pos)
                    .is_none_or(|next| is_space(*next))
                    .then_some(pos);
            }
            byte if ends_word(byte) => return Some(pos),
            byte => {
                text.push(byte);
                pos += 1;
            }
        }
    }
    Some(pos)
}

fn unquote_double(line: &[u8], mut pos: usize, text: &mut Vec<u8>) -> Option<usize> {
    loop {
        match *line.get(pos)? {
            b'"' => return Some(pos + 1),
            b'\\' => {
                let hex = line.get(pos + 1) == Some(&b'x');
                let digits = (hex_digit(line.get(pos + 2)), hex_digit(line.get(pos + 3)));
                if let (true, (Some(high), Some(low))) = (hex, digits) {
                    text.push(high << 4 | low);
                    pos += 4;
                } else {
                    text.push(unescape(*line.get(pos + 1)?));
                    pos += 2;
                }
            }
            byte => {
                text.push(byte);
                pos += 1;
            }
        }
    }
}

fn unquote_single(line: &[u8], mut pos: usize, text: &mut Vec<u8>) -> Option<usize> {
    loop {
        match *line.get(pos)? {
            b'\'' => return Some(pos + 1),
            b'\\' if line.get(pos + 1) == Some(&b'\'') => {
                text.push(b'\'');
                pos += 2;
            }
            byte => {
                text.push(byte);
                pos += 1;
            }
        }
    }
}

fn hex_digit(byte: Option<&u8>) -> Option<u8> {
    let digit = char::from(*byte?).to_digit(16)?;
    u8::try_from(digit).ok()
}

fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}
