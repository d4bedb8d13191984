//! A piece of received bytes, by reference.

use std::fmt;
use std::ops::{Deref, Range};
use std::rc::Rc;

use bytes::Bytes;

use super::slabs::Slabs;

/// Received bytes: a refcounted piece of a slab, or of the heap where slabs were scarce.
///
/// Cloning and cutting copy no bytes. Not `Send`: a chunk lives and dies on its core.
#[derive(Clone)]
pub struct Chunk(Inner);

#[derive(Clone)]
enum Inner {
    Slab(Piece),
    /// With the length of the whole allocation, which a cut keeps alive.
    Heap(Bytes, usize),
}

/// Holds one reference to its slab.
struct Piece {
    slabs: Rc<Slabs>,
    slab: u16,
    start: u32,
    len: u32,
}

impl Chunk {
    /// Takes over the reference that [`Slabs::taken`] set.
    pub(super) fn from_slab(slabs: &Rc<Slabs>, slab: u16, len: u32) -> Chunk {
        Chunk(Inner::Slab(Piece {
            slabs: slabs.clone(),
            slab,
            start: 0,
            len,
        }))
    }

    /// The bytes in `range`, by reference.
    ///
    /// # Panics
    /// If the range does not lie within the chunk.
    pub fn slice(&self, range: Range<usize>) -> Chunk {
        assert!(range.start <= range.end && range.end <= self.len());
        match &self.0 {
            Inner::Heap(bytes, whole) => Chunk(Inner::Heap(bytes.slice(range), *whole)),
            Inner::Slab(piece) => {
                let mut piece = piece.clone();
                piece.start += range.start as u32;
                piece.len = (range.end - range.start) as u32;
                Chunk(Inner::Slab(piece))
            }
        }
    }

    /// Memory that this chunk keeps from being used again, in bytes: a whole slab, or the whole of what was
    /// allocated on the heap.
    pub fn pinned_bytes(&self) -> usize {
        match &self.0 {
            Inner::Slab(piece) => piece.slabs.size(),
            Inner::Heap(_, whole) => *whole,
        }
    }

    /// The same bytes on the heap; gives the slab back if this was its last reference.
    pub fn into_heap(self) -> Chunk {
        match self.0 {
            Inner::Slab(piece) => Chunk::from(piece.to_vec()),
            heap => Chunk(heap),
        }
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(bytes: Vec<u8>) -> Chunk {
        let whole = bytes.len();
        Chunk(Inner::Heap(Bytes::from(bytes), whole))
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Inner::Slab(piece) => piece,
            Inner::Heap(bytes, _) => bytes,
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the bytes: they are a client's.
        write!(f, "Chunk({} bytes)", self.len())
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.slabs.bytes(self.slab, self.start, self.len)
    }
}

impl Clone for Piece {
    fn clone(&self) -> Piece {
        self.slabs.retain(self.slab);
        Piece {
            slabs: self.slabs.clone(),
            slab: self.slab,
            start: self.start,
            len: self.len,
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.slabs.release(self.slab);
    }
}
