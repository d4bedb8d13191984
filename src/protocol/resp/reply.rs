//! A complete reply, read in place and without recursion.

use super::framer::ReplyFramer;

/// A view of one complete reply, as a [`ReplyFramer`] framed it. An attribute in front of it is skipped.
///
/// On bytes that are no complete reply the answers are empty, never a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    bytes: &'a [u8],
}

/// One step through a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A scalar: its type byte and text. The text of a streamed string is its chunks, headers included.
    Scalar(u8, &'a [u8]),
    /// A nil in any of its forms.
    Nil,
    /// An aggregate: its type byte and the number of items in it (a map's keys and values both count);
    /// `None` for a streamed one, which an [`Item::Close`] ends.
    Open(u8, Option<u64>),
    /// The end of a streamed aggregate.
    Close,
}

impl<'a> Reply<'a> {
    /// Reads one complete reply.
    pub fn parse(bytes: &'a [u8]) -> Self {
        let mut rest = bytes;
        while rest.first() == Some(&b'|') {
            let Some(behind) = behind_attribute(rest) else {
                break;
            };
            rest = behind;
        }
        Self { bytes: rest }
    }

    /// The bytes, without an attribute in front.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The type byte, 0 if there is nothing.
    pub fn kind(&self) -> u8 {
        self.bytes.first().copied().unwrap_or(0)
    }

    /// `-` or `!`.
    pub fn is_error(&self) -> bool {
        matches!(self.kind(), b'-' | b'!')
    }

    /// The first word of an error: `ERR`, `WRONGTYPE`, `MOVED` …
    pub fn error_code(&self) -> Option<&'a [u8]> {
        let text = self.text().filter(|_| self.is_error())?;
        text.split(|byte| *byte == b' ').next()
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&'a [u8]> {
        match self.cursor().next() {
            Some(Item::Scalar(_, text)) => Some(text),
            _ => None,
        }
    }

    /// Nil in any of its forms.
    pub fn is_nil(&self) -> bool {
        matches!(self.cursor().next(), Some(Item::Nil))
    }

    /// An array, set or map without elements.
    pub fn is_empty_collection(&self) -> bool {
        match self.cursor().next() {
            Some(Item::Open(_, Some(0))) => true,
            Some(Item::Open(_, None)) => self.elements().next().is_none(),
            _ => false,
        }
    }

    /// The value of an integer reply.
    pub fn integer(&self) -> Option<i64> {
        match self.cursor().next() {
            Some(Item::Scalar(b':', text)) => std::str::from_utf8(text).ok()?.parse().ok(),
            _ => None,
        }
    }

    /// The elements of an aggregate, each a reply of its own; a map gives keys and values in turn.
    pub fn elements(&self) -> Elements<'a> {
        let mut cursor = self.cursor();
        let left = match cursor.next() {
            Some(Item::Open(_, Some(count))) => count,
            Some(Item::Open(_, None)) => u64::MAX,
            _ => 0,
        };
        Elements {
            rest: cursor.rest,
            left,
        }
    }

    /// Walks through the reply and everything in it.
    pub fn cursor(&self) -> Cursor<'a> {
        Cursor { rest: self.bytes }
    }
}

/// What follows the attribute at the front of `bytes`.
fn behind_attribute(bytes: &[u8]) -> Option<&[u8]> {
    let mut cursor = Cursor { rest: bytes };
    let Some(Item::Open(b'|', Some(count))) = cursor.next() else {
        return None;
    };
    let mut elements = Elements {
        rest: cursor.rest,
        left: count,
    };
    for _ in 0..count {
        elements.next()?;
    }
    Some(elements.rest)
}

/// See [`Reply::elements`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    rest: &'a [u8],
    left: u64,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Reply<'a>;

    fn next(&mut self) -> Option<Reply<'a>> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let advance = ReplyFramer::new(u64::MAX)
            .advance(self.rest)
            .ok()
            .filter(|a| a.done)?;
        let (element, rest) = self.rest.split_at(advance.consumed);
        self.rest = rest;
        Some(Reply::parse(element))
    }
}

/// See [`Reply::cursor`]. Ends early on bytes that are no reply.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Cursor<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        let end = memchr::memchr(b'\r', rest)?;
        let line = &rest[..end];
        self.rest = rest.get(end + 2..)?;
        match kind {
            b'_' => Some(Item::Nil),
            b'.' => Some(Item::Close),
            b'+' | b'-' | b':' | b'#' | b',' | b'(' => Some(Item::Scalar(kind, line)),
            b'$' | b'!' | b'=' | b'*' | b'%' | b'~' | b'>' | b'|' => self.sized(kind, line),
            _ => None,
        }
    }
}

impl<'a> Cursor<'a> {
    fn sized(&mut self, kind: u8, line: &[u8]) -> Option<Item<'a>> {
        match (line, kind) {
            (b"-1", _) => return Some(Item::Nil),
            (b"?", b'$') => return self.streamed_string(),
            (b"?", _) => return Some(Item::Open(kind, None)),
            _ => {}
        }
        let count: u64 = std::str::from_utf8(line).ok()?.parse().ok()?;
        match kind {
            b'$' | b'!' | b'=' => {
                let text = self.take(count)?;
                // "txt:" in front of a verbatim string says how to show it.
                let text = if kind == b'=' {
                    text.get(4..).unwrap_or(text)
                } else {
                    text
                };
                Some(Item::Scalar(kind, text))
            }
            b'%' | b'|' => Some(Item::Open(kind, Some(count.checked_mul(2)?))),
            _ => Some(Item::Open(kind, Some(count))),
        }
    }

    fn streamed_string(&mut self) -> Option<Item<'a>> {
        let start = self.rest;
        loop {
            let chunk = self.rest.strip_prefix(b";")?;
            let end = memchr::memchr(b'\r', chunk)?;
            let count: u64 = std::str::from_utf8(&chunk[..end]).ok()?.parse().ok()?;
            self.rest = chunk.get(end + 2..)?;
            if count == 0 {
                return Some(Item::Scalar(b'$', &start[..start.len() - self.rest.len()]));
            }
            self.take(count)?;
        }
    }

    /// A payload and the CR LF behind it.
    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let count = usize::try_from(count).ok()?;
        let text = self.rest.get(..count)?;
        self.rest = self.rest.get(count.checked_add(2)?..)?;
        Some(text)
    }
}
