//! The sockets and listeners of one ring, and what is to be submitted for them.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::Waker;

use io_uring::{cqueue, opcode, squeue, types};

use super::aside::{Arrivals, Home, Received};
use super::chunk::Chunk;
use super::core::RingStats;
use super::op::{GENERATION_MASK, Key, Op};
use super::out::{OutQueue, Outgoing, PILE_BYTES, Spare};
use super::slabs::{GROUP, Slabs};
use crate::limits;

/// Received pieces that wait for a reader, beyond which small ones are copied out of their slabs.
const PILE_CHUNKS: usize = 8;

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
