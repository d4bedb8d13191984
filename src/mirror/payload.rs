//! The bytes of a unit.
//!
//! A small piece is copied into one growing buffer: it must not pin the slab it arrived in. A large
//! piece stays where it is, by reference. The order of the pieces is the order in which the client
//! sent them; nothing here looks at what they say.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::limits::{
    PAYLOAD_GROWTH_BYTES_MIN, PAYLOAD_INLINE_BYTES, PAYLOAD_KEPT_PIECES, UNIT_KEPT_BYTES,
};

/// Bytes in order, partly copied, partly by reference into shared slabs of type `S`.
#[derive(Debug)]
pub struct Payload<S> {
    /// All copied pieces, back to back.
    copied: SmallVec<[u8; PAYLOAD_INLINE_BYTES]>,
    /// Empty as long as everything is copied. Copied pieces name their length only: they follow each other in `copied`.
    /// Two neighbours are never both copied.
    pieces: Vec<Piece<S>>,
    /// Sum of the pieces.
    len: usize,
    /// Memory that the shared pieces keep from being reused.
    pinned: usize,
}

#[derive(Debug)]
enum Piece<S> {
    Copied(usize),
    Shared(S),
}

/// One stretch of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a, S> {
    /// Bytes that the payload owns.
    Copied(&'a [u8]),
    /// A slice of a shared slab; cloning it keeps the slab alive while it is being sent.
    Shared(&'a S),
}

impl<S: AsRef<[u8]>> Part<'_, S> {
    /// The bytes, wherever they are.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Part::Copied(bytes) => bytes,
            Part::Shared(slice) => slice.as_ref(),
        }
    }
}

impl<S> Default for Payload<S> {
    fn default() -> Self {
        Payload {
            copied: SmallVec::new(),
            pieces: Vec::new(),
            len: 0,
            pinned: 0,
        }
    }
}

/// Whether a piece of `len` bytes is worth pinning `held` bytes of slab: queued bytes may hold at
/// most a quarter more memory than they are long.
pub const fn worth_sharing(len: usize, held: usize) -> bool {
    held <= len + len / 4
}

impl<S: AsRef<[u8]>> Payload<S> {
    /// Appends a copy.
    pub fn push_copy(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        reserve(&mut self.copied, bytes.len());
        self.copied.extend_from_slice(bytes);
        self.note_copied(bytes.len());
    }

    /// Appends a slice by reference. `held` is the memory that the slice alone keeps from reuse: the
    /// whole slab if nothing else of this payload holds it, 0 if an earlier piece already does.
    pub fn push_shared(&mut self, slice: S, held: usize) {
        let len = slice.as_ref().len();
        if len == 0 {
            return;
        }
        self.list();
        self.pieces.push(Piece::Shared(slice));
        self.len += len;
        self.pinned += held;
    }

    /// Moves everything of `other` to the end of this one.
    pub fn append(&mut self, mut other: Payload<S>) {
        other.list();
        if self.copied.is_empty() {
            // Nothing to join: take the other's buffer instead of copying it.
            self.copied = other.copied;
        } else {
            reserve(&mut self.copied, other.copied.len());
            self.copied.extend_from_slice(&other.copied);
        }
        self.pinned += other.pinned;
        for piece in other.pieces {
            match piece {
                Piece::Copied(len) => self.note_copied(len),
                Piece::Shared(slice) => {
                    self.list();
                    self.len += slice.as_ref().len();
                    self.pieces.push(Piece::Shared(slice));
                }
            }
        }
    }

    /// The stretches in order.
    pub fn parts(&self) -> impl Iterator<Item = Part<'_, S>> {
        let mut copied = self.copied.as_slice();
        let whole = self.is_one_copy().then_some(Part::Copied(copied));
        let pieces = self.pieces.iter().map(move |piece| match piece {
            Piece::Copied(len) => {
                let (head, tail) = copied.split_at(*len);
                copied = tail;
                Part::Copied(head)
            }
            Piece::Shared(slice) => Part::Shared(slice),
        });
        whole.into_iter().chain(pieces)
    }

    /// All bytes: as they lie where they are one stretch, else in a buffer.
    pub fn joined(&self) -> Cow<'_, [u8]> {
        let mut parts = self.parts();
        match (parts.next(), parts.next()) {
            (None, _) => Cow::Borrowed(&[]),
            (Some(Part::Copied(bytes)), None) => Cow::Borrowed(bytes),
            (Some(Part::Shared(slice)), None) => Cow::Borrowed(slice.as_ref()),
            _ => {
                let mut out = Vec::new();
                self.copy_into(&mut out);
                Cow::Owned(out)
            }
        }
    }

    /// Appends all bytes to `out`.
    pub fn copy_into(&self, out: &mut Vec<u8>) {
        out.reserve(self.len);
        for part in self.parts() {
            out.extend_from_slice(part.as_bytes());
        }
    }

    /// A piece of `len` bytes now lies at the end of `copied`.
    fn note_copied(&mut self, len: usize) {
        self.len += len;
        match self.pieces.last_mut() {
            None => {}
            Some(Piece::Copied(last)) => *last += len,
            Some(Piece::Shared(_)) => self.pieces.push(Piece::Copied(len)),
        }
    }

    /// Lists what is copied: something else follows.
    fn list(&mut self) {
        if self.is_one_copy() {
            self.pieces.push(Piece::Copied(self.len));
        }
    }
}

impl<S> Payload<S> {
    /// Bytes to send.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of stretches: what a vectored send needs entries for.
    pub fn parts_len(&self) -> usize {
        self.pieces.len() + usize::from(self.is_one_copy())
    }

    /// Whether everything is copied, which is not listed.
    fn is_one_copy(&self) -> bool {
        self.pieces.is_empty() && self.len > 0
    }

    /// Memory that this payload keeps from being used for anything else, on the heap and in slabs.
    pub fn held_bytes(&self) -> usize {
        let list = self.pieces.capacity() * size_of::<Piece<S>>();
        let copied = match self.copied.spilled() {
            true => self.copied.capacity(),
            false => 0,
        };
        copied + self.pinned + list
    }

    /// Empties the payload and lets the slabs go. An ordinary buffer is kept for the next unit, a
    /// large one is given back.
    pub fn clear(&mut self) {
        self.len = 0;
        self.pinned = 0;
        self.copied.clear();
        if self.copied.capacity() > UNIT_KEPT_BYTES {
            self.copied = SmallVec::new();
        }
        self.pieces.clear();
        if self.pieces.capacity() > PAYLOAD_KEPT_PIECES {
            self.pieces = Vec::new();
        }
    }
}

/// Room for `more` bytes, growing by a quarter instead of doubling: see [`worth_sharing`].
fn reserve(buffer: &mut SmallVec<[u8; PAYLOAD_INLINE_BYTES]>, more: usize) {
    if buffer.capacity() - buffer.len() < more {
        let step = (buffer.len() / 4).max(PAYLOAD_GROWTH_BYTES_MIN);
        buffer.reserve_exact(more.max(step));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    type Slice = Rc<[u8]>;

    fn bytes(payload: &Payload<Slice>) -> Vec<u8> {
        let mut out = Vec::new();
        payload.copy_into(&mut out);
        out
    }

    #[test]
    fn adjacent_copies_are_one_part_and_order_is_kept() {
        let mut payload = Payload::<Slice>::default();
        payload.push_copy(b"ab");
        payload.push_copy(b"");
        payload.push_copy(b"cd");
        payload.push_shared(Rc::from(&b"EFG"[..]), 4);
        payload.push_copy(b"h");
        let parts: Vec<_> = payload.parts().collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(payload.parts_len(), 3);
        assert_eq!(parts[0], Part::Copied(b"abcd"));
        assert_eq!(parts[1].as_bytes(), b"EFG");
        assert_eq!(parts[2], Part::Copied(b"h"));
        assert_eq!((payload.len(), bytes(&payload)), (8, b"abcdEFGh".to_vec()));
        assert_eq!(*payload.joined(), *b"abcdEFGh");
    }

    #[test]
    fn append_equals_pushing_one_after_the_other() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut all = Vec::new();
            let mut whole = Payload::<Slice>::default();
            for _ in 0..rng.usize(0..4) {
                let mut next = Payload::<Slice>::default();
                for _ in 0..rng.usize(0..5) {
                    let piece: Vec<u8> = (0..rng.usize(0..40)).map(|_| rng.u8(..)).collect();
                    all.extend_from_slice(&piece);
                    if rng.bool() {
                        next.push_copy(&piece);
                    } else {
                        next.push_shared(Rc::from(piece), 64);
                    }
                }
                whole.append(next);
            }
            assert_eq!((bytes(&whole), whole.len()), (all.clone(), all.len()));
            assert_eq!(*whole.joined(), *all);
            let copied = whole
                .parts()
                .map(|part| matches!(part, Part::Copied(_)))
                .collect::<Vec<_>>();
            assert!(copied.windows(2).all(|pair| pair != [true, true]));
        }
    }

    #[test]
    fn clear_lets_slabs_and_large_buffers_go_and_keeps_ordinary_ones() {
        let slab: Slice = Rc::from(vec![1; 4096]);
        let mut payload = Payload::<Slice>::default();
        payload.push_shared(slab.clone(), 4096);
        payload.push_copy(&[0; 200]);
        assert!(payload.held_bytes() >= 4296);
        payload.clear();
        assert_eq!(Rc::strong_count(&slab), 1);
        assert!(payload.is_empty() && payload.held_bytes() >= 200);
        payload.push_copy(&[0; 100_000]);
        payload.clear();
        let list = PAYLOAD_KEPT_PIECES * size_of::<Piece<Slice>>();
        assert!(payload.held_bytes() <= UNIT_KEPT_BYTES + list);
        for _ in 0..PAYLOAD_KEPT_PIECES + 1 {
            payload.push_shared(slab.clone(), 0);
        }
        payload.clear();
        assert!(
            payload.held_bytes() <= UNIT_KEPT_BYTES,
            "a long list is given back"
        );
    }

    #[test]
    fn copied_bytes_hold_at_most_a_quarter_more_than_their_length() {
        let mut payload = Payload::<Slice>::default();
        for _ in 0..10_000 {
            payload.push_copy(&[b'x'; 60]);
            let allowed = payload.len() + payload.len() / 4 + PAYLOAD_GROWTH_BYTES_MIN;
            assert!(payload.held_bytes() <= allowed);
        }
    }
}
