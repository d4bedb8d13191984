//! Holds the body of a message that came in parts, up to a bound; a body that came in one part is borrowed.
//!
//! Memory grows with the bytes that arrived, never with what a length claims.

/// What a buffer may keep between messages: an idle connection should cost next to nothing.
const KEEP_CAPACITY_MAX: usize = 1024;

/// A bounded copy of one message body.
#[derive(Debug, Default)]
pub(super) struct Capture {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Capture {
    /// Takes the next part of a body and, with `done`, gives the whole of it and whether it was cut at `max`.
    ///
    /// `offset` is what had been seen of this body before `part`.
    pub fn feed<'a>(
        &'a mut self,
        offset: usize,
        part: &'a [u8],
        done: bool,
        max: usize,
    ) -> Option<(&'a [u8], bool)> {
        if offset == 0 {
            self.release();
            if done {
                let shown = part.len().min(max);
                return Some((&part[..shown], shown < part.len()));
            }
        }
        let room = (max - self.bytes.len()).min(part.len());
        self.bytes.extend_from_slice(&part[..room]);
        self.truncated |= room < part.len();
        done.then_some((self.bytes.as_slice(), self.truncated))
    }

    /// Forgets the body; gives memory back where it was much.
    pub fn release(&mut self) {
        self.truncated = false;
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_CAPACITY_MAX {
            self.bytes = Vec::new();
        }
    }
}
