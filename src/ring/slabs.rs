//! The receive buffers of a core: one mapping cut into slabs, and the ring through which the kernel takes
//! them.
//!
//! A slab is in exactly one place: free, posted to the kernel, or referred to by chunks. Only part of the
//! free slabs is posted, the most recently used first: the kernel takes posted slabs in order, so posting all of them
//! would walk through the whole mapping and miss the cache at every receive.

use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, types::BufRingEntry};

/// The buffer group that all receives of a ring take from.
pub(super) const GROUP: u16 = 0;

/// How many slabs are posted at first; doubled whenever the kernel runs out while others are free.
const POSTED_AT_FIRST: usize = 64;

/// Bytes between two slabs that nobody uses: an odd number of cache lines. Slabs that began at multiples of a power of
/// two would compete for the same few sets of the cache.
const COLOUR: usize = 5 * 64;

/// An anonymous private mapping, unmapped on drop.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Mapping> {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of a mapping that this value alone owns.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The slabs of one ring. Single-threaded.
pub(super) struct Slabs {
    memory: Mapping,
    entries: Mapping,
    entry_mask: u16,
    size: usize,
    count: usize,
    /// Chunks that refer to each slab; 0 while it is free or posted.
    references: Box<[Cell<u32>]>,
    /// Last in, first out. `free.len() + posted + referenced == count`.
    free: RefCell<Vec<u16>>,
    posted: Cell<usize>,
    post_target: Cell<usize>,
    tail: Cell<u16>,
}

impl Slabs {
    /// Maps `count` slabs of `size` bytes (pages are touched when used) and the entries of their ring.
    pub(super) fn new(count: usize, size: usize) -> io::Result<Slabs> {
        let entries = count.next_power_of_two().min(1 << 15);
        let count = count.min(entries);
        let slabs = Slabs {
            memory: Mapping::new(count * (size + COLOUR))?,
            entries: Mapping::new(entries * size_of::<BufRingEntry>())?,
            entry_mask: (entries - 1) as u16,
            size,
            count,
            references: vec![Cell::new(0); count].into_boxed_slice(),
            free: RefCell::new((0..count as u16).rev().collect()),
            posted: Cell::new(0),
            post_target: Cell::new(POSTED_AT_FIRST.min(count)),
            tail: Cell::new(0),
        };
        Ok(slabs)
    }

    /// Registers the buffer ring; once, before the first receive.
    pub(super) fn register(&self, uring: &IoUring) -> io::Result<()> {
        let entries = usize::from(self.entry_mask) + 1;
        // SAFETY: the entries' mapping is page-aligned, of the stated size, and outlives the io_uring: `Core`
        // drops its ring before its slabs (field order).
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                self.entries.base.as_ptr() as u64,
                entries as u16,
                GROUP,
                0,
            )?;
        }
        self.replenish();
        Ok(())
    }

    /// Posts free slabs up to the target.
    pub(super) fn replenish(&self) {
        let target = self.post_target.get();
        if self.posted.get() >= target {
            return;
        }
        let mut free = self.free.borrow_mut();
        let mut tail = self.tail.get();
        while self.posted.get() < target {
            let Some(slab) = free.pop() else { break };
            debug_assert_eq!(self.references[usize::from(slab)].get(), 0);
            let index = usize::from(tail & self.entry_mask);
            // SAFETY: index is within the mapping; the kernel reads an entry only after the tail below passes it,
            // and has consumed whatever stood there because at most `count <= entries` slabs are posted.
            unsafe {
                let entry = &mut *self.entries.base.cast::<BufRingEntry>().add(index).as_ptr();
                entry.set_addr(self.slab(slab) as u64);
                entry.set_len(self.size as u32);
                entry.set_bid(slab);
            }
            tail = tail.wrapping_add(1);
            self.posted.set(self.posted.get() + 1);
        }
        self.tail.set(tail);
        // SAFETY: the tail lies in the first entry's reserved field, as `BufRingEntry::tail` says; it is shared with the
        // kernel, hence the atomic store, which also publishes the entries written above.
        unsafe {
            let tail_field = BufRingEntry::tail(self.entries.base.cast().as_ptr());
            (*tail_field.cast::<AtomicU16>()).store(tail, Ordering::Release);
        }
    }

    /// The kernel has filled this posted slab. The caller holds the first reference.
    pub(super) fn taken(&self, slab: u16) {
        debug_assert_eq!(self.references[usize::from(slab)].get(), 0);
        self.references[usize::from(slab)].set(1);
        self.posted.set(self.posted.get() - 1);
    }

    /// The kernel found no posted slab: post more at a time from now on, if there are more.
    pub(super) fn ran_out(&self) {
        self.post_target
            .set((self.post_target.get() * 2).min(self.count));
    }

    pub(super) fn retain(&self, slab: u16) {
        let references = &self.references[usize::from(slab)];
        references.set(references.get() + 1);
    }

    pub(super) fn release(&self, slab: u16) {
        let references = &self.references[usize::from(slab)];
        debug_assert!(references.get() > 0);
        references.set(references.get() - 1);
        if references.get() == 0 {
            self.free.borrow_mut().push(slab);
        }
    }

    /// How many receives armed now would find a slab.
    pub(super) fn posted(&self) -> usize {
        self.posted.get()
    }

    /// Whether less than a quarter of the slabs is left: what is received then is copied out at once.
    pub(super) fn scarce(&self) -> bool {
        (self.free.borrow().len() + self.posted.get()) * 4 < self.count
    }

    /// Slabs that chunks refer to.
    pub(super) fn in_use(&self) -> usize {
        self.count - self.free.borrow().len() - self.posted.get()
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// `len` bytes from `start` of a slab that the caller holds a reference to.
    pub(super) fn bytes(&self, slab: u16, start: u32, len: u32) -> &[u8] {
        debug_assert!(self.references[usize::from(slab)].get() > 0);
        assert!(start as usize + len as usize <= self.size);
        // SAFETY: the range lies within the slab (asserted), the slab within the mapping; a referenced slab is
        // not posted, so neither the kernel nor anybody else writes to it.
        unsafe { std::slice::from_raw_parts(self.slab(slab).add(start as usize), len as usize) }
    }

    fn slab(&self, slab: u16) -> *mut u8 {
        assert!(usize::from(slab) < self.count);
        // SAFETY: the offset is within the mapping.
        unsafe {
            self.memory
                .base
                .as_ptr()
                .add(usize::from(slab) * (self.size + COLOUR))
        }
    }
}
