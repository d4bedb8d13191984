//! Frames that arrive in pieces, collected up to a bound.

use crate::ring::Chunk;

/// The bytes of one frame that did not come in one piece. What exceeds the bound is counted, not kept.
#[derive(Default)]
pub(super) struct Collected {
    head: Vec<u8>,
    len: usize,
}

impl Collected {
    /// Appends the next piece, keeping at most `bytes_max` bytes in all.
    pub fn push(&mut self, piece: &[u8], bytes_max: usize) {
        let room = bytes_max.saturating_sub(self.head.len());
        self.head.extend_from_slice(&piece[..piece.len().min(room)]);
        self.len += piece.len();
    }

    /// Nothing of a frame was collected.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The whole frame is here.
    pub fn is_whole(&self) -> bool {
        self.head.len() == self.len
    }

    /// What was kept.
    pub fn bytes(&self) -> &[u8] {
        &self.head
    }

    /// Ready for the next frame; gives up a large buffer.
    pub fn clear(&mut self) {
        self.len = 0;
        self.head.clear();
        // An idle client holds nothing here.
        self.head.shrink_to(0);
    }
}

/// A frame, where it lies as a whole in one chunk or was collected.
pub(super) enum Frame<'a> {
    Whole(&'a Chunk, std::ops::Range<usize>),
    Collected(&'a Collected),
}

impl Frame<'_> {
    /// The frame's bytes, or its first ones.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Frame::Whole(chunk, range) => &chunk[range.clone()],
            Frame::Collected(collected) => collected.bytes(),
        }
    }

    /// Whether [`Frame::bytes`] is all of it.
    pub fn is_whole(&self) -> bool {
        match self {
            Frame::Whole(..) => true,
            Frame::Collected(collected) => collected.is_whole(),
        }
    }
}
