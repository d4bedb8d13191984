//! The bytes waiting to leave through one socket.
//!
//! Small writes are copied behind one another into one buffer; large pieces stay in their slab by
//! reference. What waits at the end of a turn leaves as one send, vectored if it is in several pieces.

use std::collections::VecDeque;

use super::chunk::Chunk;

/// Pieces from this size on are sent by reference: below it a copy is cheaper than a vector entry, and a
/// small piece would keep a whole slab while it waits.
pub const BY_REFERENCE_BYTES: usize = 2048;

/// In a queue that is long already, smaller pieces than this are copied: a peer that does not read holds half empty slabs at
/// most.
pub(super) const PILE_BYTES: usize = 8 * 1024;

/// A queue longer than this is long; a copied piece does not grow beyond it: growing holds up to twice what is
/// in it.
const LONG_BYTES: usize = 32 * 1024;

/// Pieces of one vectored send.
pub(super) const VECTOR: usize = 64;

/// A buffer larger than this is given back to the allocator, not kept for reuse.
const SPARE_BYTES_MAX: usize = 64 * 1024;

/// How many empty buffers, and how many vectors, a core keeps.
const SPARE_MAX: usize = 512;

/// Buffers that no socket uses now, so that an idle socket holds none.
#[derive(Default)]
pub(super) struct Spare {
    buffers: Vec<Vec<u8>>,
    #[expect(
        clippy::vec_box,
        reason = "the kernel reads a vector in flight: it may not move"
    )]
    vectors: Vec<Box<Vector>>,
}

impl Spare {
    fn take(&mut self) -> Vec<u8> {
        self.buffers
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(1024))
    }

    fn take_vector(&mut self) -> Box<Vector> {
        self.vectors.pop().unwrap_or_default()
    }

    fn give_vector(&mut self, vector: Box<Vector>) {
        if self.vectors.len() < SPARE_MAX {
            self.vectors.push(vector);
        }
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < SPARE_MAX && buffer.capacity() <= SPARE_BYTES_MAX {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }
}

enum Piece {
    Copied(Vec<u8>),
    Chunk(Chunk),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Copied(bytes) => bytes,
            Piece::Chunk(chunk) => chunk,
        }
    }
}

/// `sent_of_first < pieces[0].len()`; the first `in_flight` pieces must not change: the kernel reads them.
#[derive(Default)]
pub(super) struct OutQueue {
    pieces: VecDeque<Piece>,
    sent_of_first: usize,
    bytes: usize,
    in_flight: usize,
    /// The vector of the send in flight, where there is more than one piece.
    vector: Option<Box<Vector>>,
}

struct Vector {
    header: libc::msghdr,
    pieces: [libc::iovec; VECTOR],
}

impl Default for Vector {
    fn default() -> Self {
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Vector {
            // SAFETY: msghdr is plain data for which zero means "none" in every field.
            header: unsafe { std::mem::zeroed() },
            pieces: [empty; VECTOR],
        }
    }
}

/// What to hand to the kernel. The memory stays in place until [`OutQueue::sent`] or [`OutQueue::failed`].
pub(super) enum Outgoing {
    One(*const u8, u32),
    Several(*const libc::msghdr),
}

impl OutQueue {
    /// Bytes not yet accepted by the kernel.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn sending(&self) -> bool {
        self.in_flight > 0
    }

    pub(super) fn copy(&mut self, bytes: &[u8], spare: &mut Spare) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        if self.pieces.len() > self.in_flight
            && let Some(Piece::Copied(last)) = self.pieces.back_mut()
            && last.len() + bytes.len() <= last.capacity().max(LONG_BYTES)
        {
            last.extend_from_slice(bytes);
            return;
        }
        let mut buffer = spare.take();
        buffer.extend_from_slice(bytes);
        self.pieces.push_back(Piece::Copied(buffer));
    }

    pub(super) fn chunk(&mut self, chunk: Chunk, spare: &mut Spare) {
        if self.bytes > LONG_BYTES && chunk.len() < PILE_BYTES {
            self.copy(&chunk, spare);
        } else if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.pieces.push_back(Piece::Chunk(chunk));
        }
    }

    /// The next send; `None` while one is in flight or nothing waits.
    pub(super) fn start(&mut self, spare: &mut Spare) -> Option<Outgoing> {
        if self.in_flight > 0 || self.pieces.is_empty() {
            return None;
        }
        if self.pieces.len() == 1 {
            self.in_flight = 1;
            let bytes = &self.pieces[0].bytes()[self.sent_of_first..];
            return Some(Outgoing::One(bytes.as_ptr(), bytes.len() as u32));
        }
        let vector = self.vector.get_or_insert_with(|| spare.take_vector());
        self.in_flight = self.pieces.len().min(VECTOR);
        let mut skip = self.sent_of_first;
        for (slot, piece) in vector.pieces.iter_mut().zip(&self.pieces) {
            let bytes = &piece.bytes()[skip..];
            skip = 0;
            slot.iov_base = bytes.as_ptr().cast_mut().cast();
            slot.iov_len = bytes.len();
        }
        vector.header.msg_iov = vector.pieces.as_mut_ptr();
        vector.header.msg_iovlen = self.in_flight as _;
        Some(Outgoing::Several(&raw const vector.header))
    }

    /// The send in flight ended and the kernel took `sent` bytes of it.
    pub(super) fn sent(&mut self, sent: usize, spare: &mut Spare) {
        self.in_flight = 0;
        self.bytes -= sent;
        let mut left = sent;
        while let Some(first) = self.pieces.front() {
            let rest = first.bytes().len() - self.sent_of_first;
            if left < rest {
                self.sent_of_first += left;
                return;
            }
            left -= rest;
            self.sent_of_first = 0;
            if let Some(Piece::Copied(buffer)) = self.pieces.pop_front() {
                spare.give(buffer);
            }
        }
        if let Some(vector) = self.vector.take() {
            spare.give_vector(vector);
        }
        self.shrink();
    }

    /// The send in flight failed: nothing more will leave through this socket.
    pub(super) fn failed(&mut self) {
        self.in_flight = 0;
        self.bytes = 0;
        self.sent_of_first = 0;
        self.pieces.clear();
        self.shrink();
    }

    /// Drops what has not been handed to the kernel; a send in flight keeps its memory until it ends.
    pub(super) fn abandon(&mut self) {
        if self.in_flight == 0 {
            return self.failed();
        }
        self.pieces.truncate(self.in_flight);
        let bytes: usize = self.pieces.iter().map(|piece| piece.bytes().len()).sum();
        self.bytes = bytes - self.sent_of_first;
        self.pieces.shrink_to_fit();
    }

    /// An idle socket holds no vector and no long list.
    fn shrink(&mut self) {
        if self.pieces.capacity() > 8 {
            self.pieces.shrink_to(4);
        }
        self.vector = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_bytes(outgoing: &Outgoing) -> Vec<u8> {
        let piece = |base: *const u8, len: usize| {
            // SAFETY: the queue keeps the memory in place while a send is in flight, and the test ends none before.
            unsafe { std::slice::from_raw_parts(base, len) }.to_vec()
        };
        match outgoing {
            Outgoing::One(base, len) => piece(*base, *len as usize),
            Outgoing::Several(header) => {
                // SAFETY: as above; the header and its vector live in the queue.
                let header = unsafe { &**header };
                (0..header.msg_iovlen)
                    .flat_map(|i| {
                        // SAFETY: i is below the vector's length.
                        let one = unsafe { &*header.msg_iov.add(i) };
                        piece(one.iov_base.cast(), one.iov_len)
                    })
                    .collect()
            }
        }
    }

    #[test]
    fn an_abandoned_queue_keeps_only_what_the_kernel_reads() {
        let (mut queue, mut spare) = (OutQueue::default(), Spare::default());
        queue.chunk(Chunk::from(b"first".to_vec()), &mut spare);
        let outgoing = queue.start(&mut spare).unwrap();
        queue.sent(2, &mut spare);
        assert!(matches!(outgoing, Outgoing::One(_, 5)));
        let outgoing = queue.start(&mut spare).unwrap();
        queue.chunk(Chunk::from(vec![0; 100_000]), &mut spare);
        queue.copy(b"last", &mut spare);
        queue.abandon();
        assert_eq!(queue.len(), 3);
        assert_eq!(sent_bytes(&outgoing), b"rst");
        queue.failed();
        assert_eq!(queue.len(), 0);
        queue.copy(b"more", &mut spare);
        queue.abandon();
        assert_eq!(queue.len(), 0);
        assert!(queue.start(&mut spare).is_none());
    }

    #[test]
    fn short_sends_lose_and_repeat_nothing() {
        let (mut queue, mut spare) = (OutQueue::default(), Spare::default());
        let mut random = fastrand::Rng::with_seed(7);
        let (mut written, mut taken) = (Vec::new(), Vec::new());
        for step in 0..20_000u32 {
            let bytes = step.to_le_bytes().repeat(random.usize(0..6));
            written.extend_from_slice(&bytes);
            match random.bool() {
                true => queue.copy(&bytes, &mut spare),
                false => queue.chunk(Chunk::from(bytes), &mut spare),
            }
            if random.u8(..) < 60
                && let Some(outgoing) = queue.start(&mut spare)
            {
                let offered = sent_bytes(&outgoing);
                // Appending while a send is in flight must not touch what is in flight.
                queue.copy(b"later", &mut spare);
                written.extend_from_slice(b"later");
                assert_eq!(sent_bytes(&outgoing), offered);
                let accepted = random.usize(0..=offered.len());
                taken.extend_from_slice(&offered[..accepted]);
                queue.sent(accepted, &mut spare);
                assert_eq!(queue.len(), written.len() - taken.len());
            }
        }
        while let Some(outgoing) = queue.start(&mut spare) {
            let offered = sent_bytes(&outgoing);
            taken.extend_from_slice(&offered);
            queue.sent(offered.len(), &mut spare);
        }
        assert!(taken == written);
        assert_eq!(queue.len(), 0);
    }
}
