//! The state of one ring: its queues and the table of its sockets.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::OnceLock;
use std::task::Waker;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::aside::{Arrivals, Aside, Home, Received};
use super::chunk::Chunk;
use super::out::{OutQueue, Outgoing, PILE_BYTES, Spare};
use super::slabs::{GROUP, Slabs};
use super::timer::{Timers, TimersCell};
use crate::limits;

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

/// What an operation is for; the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    Receive = 1,
    Send = 2,
    Connect = 3,
    Accept = 4,
    Cancel = 5,
    Tick = 6,
    Doorbell = 7,
    /// The second ring has something to do.
    Aside = 8,
}

impl Op {
    pub(super) fn of(user_data: u64) -> Option<Op> {
        [
            Op::Receive,
            Op::Send,
            Op::Connect,
            Op::Accept,
            Op::Cancel,
            Op::Tick,
            Op::Doorbell,
            Op::Aside,
        ]
        .into_iter()
        .find(|op| *op as u64 == user_data >> 56)
    }
}

/// Received pieces that wait for a reader, beyond which small ones are copied out of their slabs.
const PILE_CHUNKS: usize = 8;

const GENERATION_MASK: u32 = 0x00ff_ffff;

/// Names one use of one slot: a completion of an earlier use is told apart by the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl Key {
    pub(super) const fn user_data(self, op: Op) -> u64 {
        (op as u64) << 56 | (self.generation as u64) << 32 | self.slot as u64
    }

    fn of(user_data: u64) -> Key {
        Key {
            slot: user_data as u32,
            generation: (user_data >> 32) as u32 & GENERATION_MASK,
        }
    }
}

/// Everything about one socket or listener.
#[derive(Default)]
pub(super) struct Slot {
    generation: u32,
    /// The ring that all its operations are on.
    pub(super) home: Home,
    /// The kernel says when bytes came; receives are messages then.
    pub(super) stamped: bool,
    pub(super) fd: Option<OwnedFd>,
    /// Operations in the kernel that name this slot; it is reused only at 0.
    pub(super) ops: u32,
    /// With when it came.
    pub(super) received: VecDeque<(u64, Chunk)>,
    /// When what the reader took last had come.
    pub(super) heard_ns: u64,
    pub(super) received_bytes: usize,
    receiving: bool,
    cancelling: bool,
    pub(super) end: Option<End>,
    pub(super) reader: Option<Waker>,
    pub(super) out: OutQueue,
    dirty: bool,
    pub(super) send_error: Option<i32>,
    /// Tasks that wait for `out` to fall to a level.
    pub(super) writers: Vec<Waker>,
    pub(super) shutdown_wanted: bool,
    closing: bool,
    pub(super) connect: Option<Connecting>,
    /// When bytes last came in or went out.
    pub(super) active_ns: u64,
    pub(super) accepted: VecDeque<OwnedFd>,
    pub(super) accepting: bool,
}

/// How receiving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Eof,
    Error(i32),
}

/// A connect in the kernel, with the address it reads.
pub(super) struct Connecting {
    pub(super) address: Box<socket2::SockAddr>,
    pub(super) result: Option<i32>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) slots: Vec<Slot>,
    pub(super) free: Vec<u32>,
    /// Operations for the next submission.
    pub(super) pending: Vec<squeue::Entry>,
    /// The same for the second ring.
    pub(super) pending_aside: Vec<squeue::Entry>,
    /// How receives of the second ring are asked for, once it is there. The kernel reads it.
    pub(super) message: Option<Box<libc::msghdr>>,
    pub(super) arrivals: Arrivals,
    dirty: Vec<u32>,
    /// Sockets that found no slab, the longest hungry first.
    starved: VecDeque<Key>,
    starved_aside: VecDeque<Key>,
    pub(super) spare: Spare,
    /// Tasks to wake once the state is no longer borrowed.
    pub(super) wake: Vec<Waker>,
    linger: VecDeque<(u64, Key)>,
    /// The time of the current turn.
    pub(super) now_ns: u64,
    pub(super) doorbell: Option<Waker>,
    pub(super) doorbell_rung: bool,
    pub(super) stats: RingStats,
}

impl State {
    pub(super) fn insert(&mut self, fd: OwnedFd) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let now_ns = self.now_ns;
        let entry = &mut self.slots[slot as usize];
        entry.fd = Some(fd);
        entry.active_ns = now_ns;
        Key {
            slot,
            generation: entry.generation,
        }
    }

    pub(super) fn slot(&mut self, key: Key) -> &mut Slot {
        let slot = &mut self.slots[key.slot as usize];
        debug_assert_eq!(slot.generation, key.generation);
        slot
    }

    pub(super) fn push(&mut self, key: Key, op: Op, entry: squeue::Entry) {
        let slot = self.slot(key);
        slot.ops += 1;
        let entry = entry.user_data(key.user_data(op));
        match slot.home {
            Home::Main => self.pending.push(entry),
            Home::Aside => self.pending_aside.push(entry),
        }
    }

    fn raw_fd(&mut self, key: Key) -> RawFd {
        self.slot(key).fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Starts receiving unless that is under way, ended, or the reader is behind.
    pub(super) fn arm_receive(&mut self, key: Key) {
        let slot = self.slot(key);
        let behind = slot.received_bytes >= limits::SOCKET_RECEIVE_BYTES
            || slot.received.len() >= limits::SOCKET_RECEIVE_CHUNKS;
        if slot.receiving || slot.end.is_some() || slot.closing || behind {
            return;
        }
        slot.receiving = true;
        let fd = types::Fd(self.raw_fd(key));
        let message = self.message.as_deref();
        let receive = match message.filter(|_| self.slots[key.slot as usize].stamped) {
            Some(message) => opcode::RecvMsgMulti::new(fd, message, GROUP).build(),
            None => opcode::RecvMulti::new(fd, GROUP).build(),
        };
        self.push(key, Op::Receive, receive);
    }

    pub(super) fn cancel(&mut self, key: Key, op: Op) {
        let entry = opcode::AsyncCancel::new(key.user_data(op)).build();
        self.push(key, Op::Cancel, entry);
    }

    pub(super) fn mark_dirty(&mut self, key: Key) {
        let slot = self.slot(key);
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(key.slot);
        }
    }

    /// Turns what waits on sockets into sends, one for each socket.
    pub(super) fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            let entry = &mut self.slots[slot as usize];
            entry.dirty = false;
            let key = Key {
                slot,
                generation: entry.generation,
            };
            let Some(fd) = entry.fd.as_ref().map(AsRawFd::as_raw_fd) else {
                continue;
            };
            let fd = types::Fd(fd);
            let Some(outgoing) = entry.out.start(&mut self.spare) else {
                continue;
            };
            // WAITALL lets the kernel go on after a short send by itself.
            let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
            match outgoing {
                Outgoing::One(base, len) => {
                    let send = opcode::Send::new(fd, base, len).flags(flags).build();
                    self.push(key, Op::Send, send);
                }
                Outgoing::Several(header) => {
                    let send = opcode::SendMsg::new(fd, header).flags(flags as u32).build();
                    self.push(key, Op::Send, send);
                }
            }
        }
        self.dirty = dirty;
    }

    /// Receives again on sockets that found no slab: as many as there are slabs, the longest hungry first. More of them
    /// would only come back hungry, and the same ones every time.
    pub(super) fn feed_starved(&mut self, home: Home, slabs: &Slabs) {
        let mut room = slabs.posted();
        while room > 0
            && let Some(key) = self.starved(home).pop_front()
        {
            if self.slots[key.slot as usize].generation == key.generation {
                self.arm_receive(key);
                room -= 1;
            }
        }
    }

    fn starved(&mut self, home: Home) -> &mut VecDeque<Key> {
        match home {
            Home::Main => &mut self.starved,
            Home::Aside => &mut self.starved_aside,
        }
    }

    /// Lets go of a socket: its last bytes still leave, then it is closed.
    pub(super) fn close(&mut self, key: Key, now_ns: u64) {
        let slot = self.slot(key);
        slot.closing = true;
        slot.received.clear();
        slot.received_bytes = 0;
        slot.reader = None;
        slot.writers.clear();
        slot.accepted.clear();
        let (receiving, accepting) = (slot.receiving && !slot.cancelling, slot.accepting);
        let connecting = slot
            .connect
            .as_ref()
            .is_some_and(|connect| connect.result.is_none());
        let lingers = slot.out.len() > 0 && slot.send_error.is_none();
        if receiving {
            self.slot(key).cancelling = true;
            self.cancel(key, Op::Receive);
        }
        if connecting {
            self.cancel(key, Op::Connect);
        }
        if accepting {
            self.cancel(key, Op::Accept);
        }
        if lingers {
            self.linger
                .push_back((now_ns + limits::LINGER.as_nanos() as u64, key));
        }
        self.settle_closed(key);
    }

    /// Nothing more leaves through this socket, and what waited is dropped.
    pub(super) fn abandon(&mut self, key: Key) {
        let slot = self.slot(key);
        slot.send_error.get_or_insert(libc::ECONNABORTED);
        slot.out.abandon();
        let sending = slot.out.sending();
        let writers = std::mem::take(&mut slot.writers);
        if sending {
            self.cancel(key, Op::Send);
        }
        for writer in writers {
            writer.wake();
        }
    }

    /// Ends receiving as if the peer had ended.
    pub(super) fn stop_receiving(&mut self, key: Key) {
        let slot = self.slot(key);
        slot.end.get_or_insert(End::Eof);
        let reader = slot.reader.take();
        if slot.receiving && !slot.cancelling {
            slot.cancelling = true;
            self.cancel(key, Op::Receive);
        }
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Gives up on the last bytes of sockets that were closed too long ago.
    pub(super) fn end_linger(&mut self, now_ns: u64) {
        while self
            .linger
            .front()
            .is_some_and(|(deadline, _)| *deadline <= now_ns)
        {
            let Some((_, key)) = self.linger.pop_front() else {
                return;
            };
            if self.slots[key.slot as usize].generation == key.generation {
                let slot = self.slot(key);
                slot.send_error = Some(libc::ETIMEDOUT);
                if slot.out.sending() {
                    self.cancel(key, Op::Send);
                }
                self.settle_closed(key);
            }
        }
    }

    /// When the next lingering socket is given up.
    pub(super) fn next_linger_ns(&self) -> Option<u64> {
        self.linger.front().map(|(deadline, _)| *deadline)
    }

    pub(super) fn settle_closed(&mut self, key: Key) {
        let slot = self.slot(key);
        let unsent = slot.out.len() > 0 && slot.send_error.is_none();
        if !slot.closing || slot.ops > 0 || unsent {
            return;
        }
        let generation = slot.generation.wrapping_add(1) & GENERATION_MASK;
        // A dirty mark may still stand in the list; `flush` skips slots without a descriptor.
        let dirty = slot.dirty;
        *slot = Slot {
            generation,
            dirty,
            ..Slot::default()
        };
        self.free.push(key.slot);
    }

    /// Handles one completion.
    pub(super) fn complete(&mut self, slabs: &Rc<Slabs>, user_data: u64, result: i32, flags: u32) {
        let key = Key::of(user_data);
        match Op::of(user_data) {
            Some(Op::Receive) => self.received(slabs, key, result, flags),
            Some(Op::Send) => self.sent(key, result),
            Some(Op::Connect) => self.connected(key, result),
            Some(Op::Accept) => self.accepted(key, result, flags),
            Some(Op::Cancel) => {
                self.slot(key).ops -= 1;
                self.settle_closed(key);
            }
            Some(Op::Doorbell) => {
                self.doorbell_rung = true;
                self.wake.extend(self.doorbell.take());
            }
            Some(Op::Tick | Op::Aside) | None => {}
        }
    }

    fn received(&mut self, slabs: &Rc<Slabs>, key: Key, result: i32, flags: u32) {
        let more = cqueue::more(flags);
        let home = self.slot(key).home;
        let Received {
            result,
            chunk,
            heard_ns,
        } = self.take_received(slabs, key, result, flags);
        let now_ns = self.now_ns;
        let slot = self.slot(key);
        slot.active_ns = now_ns;
        if !more {
            slot.receiving = false;
            slot.cancelling = false;
            slot.ops -= 1;
        }
        if slot.closing {
            return self.settle_closed(key);
        }
        match result {
            1.. => {
                if let Some(chunk) = chunk {
                    slot.received_bytes += chunk.len();
                    // A reader that is behind does not hold a slab for each small piece.
                    let piles = slot.received.len() >= PILE_CHUNKS && chunk.len() < PILE_BYTES;
                    let chunk = if slabs.scarce() || piles {
                        chunk.into_heap()
                    } else {
                        chunk
                    };
                    slot.received.push_back((heard_ns, chunk));
                }
            }
            0 => slot.end = Some(End::Eof),
            _ if result == -libc::ENOBUFS => {
                self.stats.out_of_slabs += 1;
                slabs.ran_out();
                slabs.replenish();
                self.starved(home).push_back(key);
                return;
            }
            // Cancelled because the reader is behind: not an end.
            _ if result == -libc::ECANCELED => {}
            error => slot.end = Some(End::Error(-error)),
        }
        let reader = slot.reader.take();
        let behind = slot.received_bytes >= limits::SOCKET_RECEIVE_BYTES
            || slot.received.len() >= limits::SOCKET_RECEIVE_CHUNKS;
        if slot.receiving && behind && !slot.cancelling {
            slot.cancelling = true;
            self.cancel(key, Op::Receive);
        } else {
            self.arm_receive(key);
        }
        self.wake.extend(reader);
    }

    fn sent(&mut self, key: Key, result: i32) {
        let State {
            slots,
            spare,
            wake,
            now_ns,
            ..
        } = self;
        let slot = &mut slots[key.slot as usize];
        slot.active_ns = *now_ns;
        slot.ops -= 1;
        match result {
            0.. if slot.send_error.is_none() => slot.out.sent(result as usize, spare),
            0.. => slot.out.failed(),
            error => {
                slot.send_error.get_or_insert(-error);
                slot.out.failed();
            }
        }
        wake.append(&mut slot.writers);
        if slot.out.len() > 0 {
            self.mark_dirty(key);
        } else if slot.shutdown_wanted {
            self.shutdown_now(key);
        }
        self.settle_closed(key);
    }

    /// Sends FIN: the peer sees the end, receiving goes on.
    pub(super) fn shutdown_now(&mut self, key: Key) {
        let slot = self.slot(key);
        slot.shutdown_wanted = false;
        if let Some(fd) = &slot.fd {
            // The peer may be gone already; then there is nobody to tell.
            let _ = socket2::SockRef::from(fd).shutdown(std::net::Shutdown::Write);
        }
    }

    fn connected(&mut self, key: Key, result: i32) {
        let slot = self.slot(key);
        slot.ops -= 1;
        if let Some(connect) = &mut slot.connect {
            connect.result = Some(result);
        }
        let reader = slot.reader.take();
        self.wake.extend(reader);
        self.settle_closed(key);
    }
}
