//! One core's ring: its sizes, its clock, and what it has done.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use io_uring::IoUring;

use super::aside::Aside;
use super::slabs::Slabs;
use super::state::State;
use super::timer::{Timers, TimersCell};

/// Sizes of one core's ring.
#[derive(Clone, Debug)]
pub struct RingOptions {
    /// Entries of the submission queue; the completion queue has four times as many.
    pub entries: u32,
    /// Receive buffers.
    pub slabs: usize,
    /// Bytes of a receive buffer.
    pub slab_size: usize,
    /// How long the driver spins before it sleeps.
    pub busy_poll: Duration,
}

impl Default for RingOptions {
    fn default() -> Self {
        RingOptions {
            entries: 4096,
            slabs: 2048,
            slab_size: 16 * 1024,
            busy_poll: Duration::ZERO,
        }
    }
}

/// What a ring has done so far; all counts are totals.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingStats {
    /// Turns of the driver.
    pub turns: u64,
    /// Completions handled.
    pub completions: u64,
    /// Operations submitted.
    pub submissions: u64,
    /// Most operations that one turn submitted.
    pub submissions_max: u64,
    /// Most completions that one turn found.
    pub completions_max: u64,
    /// Receives that found no slab.
    pub out_of_slabs: u64,
    /// Accepts that failed (out of descriptors, aborted connections).
    pub accept_errors: u64,
    /// Nanoseconds outside the wait.
    pub busy_ns: u64,
    /// Nanoseconds waiting.
    pub idle_ns: u64,
    /// Slabs there are, those of the second ring included.
    pub slabs: u64,
    /// Slabs referred to by queues of any kind, now.
    pub slabs_in_use: u64,
    /// Sockets open, now.
    pub sockets: u64,
    /// io_urings of this core: the second one comes with the first mirror.
    pub rings: u64,
}

/// A handle to the ring of this core. Cheap to clone; not `Send`.
#[derive(Clone)]
pub struct Ring {
    pub(super) core: Rc<Core>,
}

impl Ring {
    /// Sets up an io_uring and its slabs on the calling thread, which must be the one that drives it.
    ///
    /// # Errors
    /// Whatever the kernel refuses: `ENOSYS`/`EPERM` where io_uring is missing or disabled, `EINVAL` on kernels
    /// before 6.1, `ENOMEM` over the memlock limit.
    pub fn new(options: &RingOptions) -> io::Result<Ring> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(options.entries * 4)
            .build(options.entries)?;
        let slabs = Rc::new(Slabs::new(options.slabs, options.slab_size)?);
        slabs.register(&uring)?;
        let core = Core {
            uring: RefCell::new(uring),
            aside: OnceCell::new(),
            entries: options.entries,
            state: RefCell::default(),
            timers: RefCell::new(Timers::default()),
            slabs,
            clock: Cell::new(monotonic_ns()),
            busy_poll: options.busy_poll,
            stopped: Cell::new(false),
        };
        Ok(Ring {
            core: Rc::new(core),
        })
    }

    /// The time of the current turn: nanoseconds on a clock that all cores of the process share.
    pub fn now_ns(&self) -> u64 {
        self.core.clock_ns()
    }

    /// Ends the driver with this turn: the executor's main future can end then. Call it from a task.
    pub fn stop(&self) {
        self.core.stopped.set(true);
    }

    /// What the ring has done so far.
    pub fn stats(&self) -> RingStats {
        let state = self.core.state.borrow();
        let aside = self.core.aside();
        RingStats {
            slabs: (self.core.slabs.count() + aside.map_or(0, |aside| aside.slabs.count())) as u64,
            slabs_in_use: (self.core.slabs.in_use() + aside.map_or(0, |aside| aside.slabs.in_use()))
                as u64,
            sockets: (state.slots.len() - state.free.len()) as u64,
            rings: 1 + u64::from(aside.is_some()),
            ..state.stats
        }
    }

    /// Whether slabs are scarce: who wants to hold received bytes for long should copy them now.
    pub fn slabs_scarce(&self) -> bool {
        self.core.slabs.scarce()
    }
}

/// Nanoseconds since the process first asked.
pub(super) fn monotonic_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Field order matters: the io_urings go first on drop, then the memory it works on.
pub(super) struct Core {
    pub(super) uring: RefCell<IoUring>,
    /// Set up with the first peer that nobody waits for; `None` inside where that failed.
    pub(super) aside: OnceCell<Option<Aside>>,
    pub(super) entries: u32,
    pub(super) state: RefCell<State>,
    pub(super) timers: TimersCell,
    pub(super) slabs: Rc<Slabs>,
    clock: Cell<u64>,
    pub(super) busy_poll: Duration,
    pub(super) stopped: Cell<bool>,
}

impl Core {
    pub(super) fn clock_ns(&self) -> u64 {
        self.clock.get()
    }

    /// Reads the clock once for all of a turn.
    pub(super) fn tick_clock(&self) -> u64 {
        self.clock.set(monotonic_ns());
        self.clock.get()
    }
}
