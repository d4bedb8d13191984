//! The floor's provided buffers and the few plain system calls on raw descriptors.
//!
//! Owns one mapping of equal buffers and the ring through which the kernel is given them. Never unmaps: both live as
//! long as the process.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// Buffers; a power of two, as the kernel asks.
const COUNT: u16 = 4096;
/// Bytes per buffer: 16 MiB in all, enough for a pipeline of 16 commands or replies in one piece.
const SIZE: usize = 4096;

/// The provided buffers of the ring.
pub struct Buffers {
    memory: *mut u8,
    ring: *mut BufRingEntry,
    /// Where the next buffer is put. `published <= tail`, counted modulo 2^16.
    tail: u16,
    /// Buffers that the kernel or the queue holds are those not available.
    available: u32,
    fresh: u32,
}

impl Buffers {
    /// The buffer group of the ring.
    pub const GROUP: u16 = 0;

    /// Maps the buffers and gives all of them to the kernel.
    pub fn register(ring: &IoUring) -> io::Result<Self> {
        let memory = map(usize::from(COUNT) * SIZE)?;
        let entries = map(usize::from(COUNT) * size_of::<BufRingEntry>())?.cast::<BufRingEntry>();
        // SAFETY: `entries` is page-aligned, holds COUNT entries and is never unmapped.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(entries as u64, COUNT, Self::GROUP, 0)
        }?;
        let mut buffers = Self {
            memory,
            ring: entries,
            tail: 0,
            available: 0,
            fresh: 0,
        };
        for buffer in 0..COUNT {
            buffers.give_back(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// The first byte of a buffer. `buffer` comes from the kernel, which knows only numbers below COUNT.
    pub fn start(&self, buffer: u16) -> *const u8 {
        self.memory.wrapping_add(usize::from(buffer) * SIZE)
    }

    /// Puts a buffer back; the kernel sees it after [`Buffers::publish`].
    pub fn give_back(&mut self, buffer: u16) {
        let slot = usize::from(self.tail & (COUNT - 1));
        // SAFETY: `slot < COUNT`; there are COUNT buffers in all, so the slot is one the kernel has consumed. The tail
        // field, which overlays part of slot 0, is not among the three that are written.
        unsafe {
            let entry = &mut *self.ring.add(slot);
            entry.set_addr(self.start(buffer) as u64);
            entry.set_len(SIZE as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        self.fresh += 1;
    }

    /// Shows the kernel everything that was put back.
    pub fn publish(&mut self) {
        // SAFETY: the ring is mapped for good and the tail is an aligned u16 that only this thread writes.
        let tail = unsafe { &*BufRingEntry::tail(self.ring).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
        self.available = self.fresh;
        self.fresh = 0;
    }

    /// Buffers made visible by the last publish: a sign that a starved receive may go on.
    pub fn available(&self) -> u32 {
        self.available
    }
}

fn map(bytes: usize) -> io::Result<*mut u8> {
    // SAFETY: a new private mapping; no memory of ours is touched.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(at.cast())
}

/// Takes over the descriptor of an accept completion.
pub fn adopt_socket(descriptor: i32) -> TcpStream {
    // SAFETY: the kernel made the descriptor for this completion; nobody else has it.
    unsafe { TcpStream::from_raw_fd(descriptor) }
}

/// Ends one or both directions; a socket that is gone already is no error.
pub fn shutdown(socket: &OwnedFd, how: i32) {
    // SAFETY: the descriptor is open, since it is owned.
    unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}
