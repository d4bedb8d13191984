//! The second io_uring of a core: for peers that nobody waits for.
//!
//! A mirror's reply need not end the core's sleep: a sleep and its wake-up cost as much as all else that a mirrored request
//! costs here. The sockets of mirrors therefore live on a ring of their own, in which nobody waits. The driver enters it in turns
//! in which it has something to do; the kernel sets a flag in it when there is, so looking costs a load. It is set up with
//! the first mirror, with slabs of its own, a quarter of the core's; where it cannot be had, mirrors live on the main ring.
//!
//! Two things keep that invisible:
//! - While clients come rarely the driver *listens*: an eventfd wakes it for mirrors as a completion of the main ring would.
//! - What mirrors send carries the kernel's receive time ([`Arrivals`]), so a mirror is not slower for being heard late; so does
//!   what the main ring's own connections receive, so a mirror is not quicker for not having to wake the core.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::chunk::Chunk;
use super::core::{Core, Ring, monotonic_ns};
use super::op::{Key, Op};
use super::slabs::Slabs;
use super::state::State;
use crate::limits;

/// Where a socket lives: on the ring that the core waits in, or on the one beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Home {
    #[default]
    Main,
    Aside,
}

/// The ring, and the bell that it rings while the driver listens. Field order matters as in [`Core`].
pub(super) struct Aside {
    pub(super) uring: RefCell<IoUring>,
    pub(super) slabs: Rc<Slabs>,
    bell: File,
}

/// The bell's poll is one for the core.
const BELL_KEY: Key = Key {
    slot: 0,
    generation: 0,
};

pub(super) const BELL: u64 = BELL_KEY.user_data(Op::Aside);

impl Aside {
    fn new(entries: u32, main: &Slabs) -> io::Result<Aside> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(entries * 4)
            .build(entries)?;
        let slabs = Rc::new(Slabs::new(main.count().div_ceil(4), main.size())?);
        slabs.register(&uring)?;
        // SAFETY: eventfd takes no pointers.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if bell < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made above and belongs to nobody else.
        let bell = unsafe { File::from_raw_fd(bell) };
        uring.submitter().register_eventfd(bell.as_raw_fd())?;
        let aside = Aside {
            uring: RefCell::new(uring),
            slabs,
            bell,
        };
        aside.stop_listening();
        Ok(aside)
    }

    /// Whether entering this ring would do anything.
    pub(super) fn is_due(&self) -> bool {
        let mut uring = self.uring.borrow_mut();
        let queue = uring.submission();
        queue.taskrun() || queue.cq_overflow() || !queue.is_empty()
    }

    /// From now on the bell wakes the driver when there is something to do. False: there is already.
    pub(super) fn listen(&self) -> bool {
        self.uring.borrow_mut().completion().enable_eventfd();
        // The kernel sets the flag that `is_due` reads, then looks whether the bell is to ring: one of the two is seen.
        fence(Ordering::SeqCst);
        !self.is_due()
    }

    pub(super) fn stop_listening(&self) {
        self.uring.borrow_mut().completion().disable_eventfd();
    }

    /// The standing poll of the bell, for the main ring.
    pub(super) fn bell_poll(&self) -> squeue::Entry {
        opcode::PollAdd::new(types::Fd(self.bell.as_raw_fd()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(BELL)
    }
}

impl Core {
    /// The second ring, if there is one.
    pub(super) fn aside(&self) -> Option<&Aside> {
        self.aside.get()?.as_ref()
    }
}

impl Ring {
    /// Sets the second ring up, unless that was done: there are mirrors. Connections made from here on help to tell how long the
    /// core takes to wake up. False: the ring cannot be had, now or ever.
    pub fn set_aside(&self) -> bool {
        let core = &self.core;
        let first = core.aside.get().is_none();
        let aside = core.aside.get_or_init(|| {
            let aside = Aside::new(core.entries.min(limits::ASIDE_ENTRIES), &core.slabs);
            aside
                .inspect_err(|error| tracing::warn!(%error, "no ring of their own for mirrors"))
                .ok()
        });
        let Some(aside) = aside else { return false };
        if first {
            let mut state = core.state.borrow_mut();
            state.message = Some(message());
            state.pending.push(aside.bell_poll());
        }
        true
    }
}

/// A receive that asks for nothing but the time.
fn message() -> Box<libc::msghdr> {
    // SAFETY: msghdr is plain data for which zero means "none" in every field.
    let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
    header.msg_controllen = (size_of::<libc::cmsghdr>() + size_of::<libc::timespec>()) as _;
    header
}

/// Asks the kernel to tell when bytes came in.
pub(super) fn stamp_arrivals(fd: &OwnedFd) -> bool {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is the integer above, whose size is passed with it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    result == 0
}

/// What one receive has brought.
pub(super) struct Received {
    /// As of a plain receive: the number of bytes, 0 at the end, or an error.
    pub(super) result: i32,
    pub(super) chunk: Option<Chunk>,
    pub(super) heard_ns: u64,
}

impl State {
    /// Takes what a receive's completion names out of its slab, on whichever ring it was.
    pub(super) fn take_received(
        &mut self,
        slabs: &Rc<Slabs>,
        key: Key,
        result: i32,
        flags: u32,
    ) -> Received {
        let mut received = Received {
            result,
            chunk: None,
            heard_ns: self.now_ns,
        };
        let Some(slab) = cqueue::buffer_select(flags) else {
            return received;
        };
        slabs.taken(slab);
        let chunk = Chunk::from_slab(slabs, slab, result.max(0) as u32);
        let (home, stamped) = (self.slot(key).home, self.slot(key).stamped);
        let header = self.message.as_deref().filter(|_| stamped);
        let Some(header) = header else {
            received.chunk = Some(chunk);
            return received;
        };
        if let Some((payload, stamp)) = take_apart(&chunk, header) {
            received.result = payload.len() as i32;
            match home {
                Home::Main => self.arrivals.woken(stamp, self.now_ns),
                Home::Aside => received.heard_ns = self.arrivals.heard_ns(stamp, self.now_ns),
            }
            received.chunk = Some(chunk.slice(payload));
        }
        received
    }
}

/// Where the bytes of a message are, and when they came by the system's clock.
fn take_apart(bytes: &[u8], header: &libc::msghdr) -> Option<(Range<usize>, Option<u64>)> {
    let message = types::RecvMsgOut::parse(bytes, header).ok()?;
    let payload = message.payload_data().len();
    // The payload is the last thing in there.
    let start = bytes.len() - payload;
    Some((start..start + payload, stamp(message.control_data())))
}

/// The time in a control message: nanoseconds of the system's clock.
fn stamp(control: &[u8]) -> Option<u64> {
    let (header, data) = control.split_at_checked(size_of::<libc::cmsghdr>())?;
    let number = |bytes: &[u8]| Some(i32::from_ne_bytes(bytes.try_into().ok()?));
    let level = number(header.get(header.len() - 8..header.len() - 4)?)?;
    let kind = number(header.get(header.len() - 4..)?)?;
    if (level, kind) != (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
        return None;
    }
    let long = |bytes: &[u8]| Some(u64::from_ne_bytes(bytes.try_into().ok()?));
    let (seconds, nanos) = (long(data.get(..8)?)?, long(data.get(8..16)?)?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// When mirrors' bytes came, by the rule that holds for all others: those that come while the core is at work are heard
/// with its next turn, those that come while it sleeps wake it, and are heard when it is awake.
///
/// Mirrors' bytes do not wake it; the kernel's stamp says when they would have begun to. How long it takes to wake up is seen
/// from the bytes that did wake it, where those have a stamp, and else guessed from earlier ones.
#[derive(Default)]
pub(super) struct Arrivals {
    /// When the last sleep began and ended.
    slept_ns: Range<u64>,
    /// From the first bytes that came in that sleep to its end, where that is known.
    woke_in_ns: Option<u64>,
    /// The mean of those.
    wakes_in_ns: u64,
    /// What the system's clock is ahead of ours.
    ahead_ns: u64,
    /// When that is to be read again: the clocks drift apart, and the system's may be set.
    read_again_ns: u64,
}

impl Arrivals {
    /// The core has slept.
    pub(super) fn slept(&mut self, slept_ns: Range<u64>) {
        if let Some(woke_in_ns) = self.woke_in_ns.take() {
            self.wakes_in_ns = self.wakes_in_ns - self.wakes_in_ns / 16 + woke_in_ns / 16;
        }
        self.slept_ns = slept_ns;
    }

    /// Bytes have come that wake the core.
    fn woken(&mut self, stamp: Option<u64>, now_ns: u64) {
        if let Some(came_ns) = self.came_asleep_ns(stamp, now_ns) {
            let woke_in_ns = self.slept_ns.end - came_ns;
            self.woke_in_ns = Some(self.woke_in_ns.unwrap_or(0).max(woke_in_ns));
        }
    }

    /// When bytes that came aside are to count as heard.
    fn heard_ns(&mut self, stamp: Option<u64>, now_ns: u64) -> u64 {
        let Some(came_ns) = self.came_asleep_ns(stamp, now_ns) else {
            return now_ns;
        };
        let wakes_in_ns = self.woke_in_ns.unwrap_or(self.wakes_in_ns);
        (came_ns + wakes_in_ns).min(self.slept_ns.end)
    }

    /// When in the last sleep that was, if it was then.
    fn came_asleep_ns(&mut self, stamp: Option<u64>, now_ns: u64) -> Option<u64> {
        let stamp = stamp?;
        if now_ns >= self.read_again_ns {
            self.ahead_ns = system_ns().wrapping_sub(monotonic_ns());
            self.read_again_ns = now_ns + CLOCK_HOLDS_NS;
        }
        let came_ns = stamp.wrapping_sub(self.ahead_ns);
        (came_ns <= self.slept_ns.end).then(|| came_ns.max(self.slept_ns.start))
    }
}

/// For how long one reading of both clocks serves: at the pace that NTP may set, they are then half a microsecond apart.
const CLOCK_HOLDS_NS: u64 = 1_000_000;

/// The system's clock, which the kernel stamps with.
fn system_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(slept_ns: Range<u64>) -> Arrivals {
        Arrivals {
            slept_ns,
            ahead_ns: 1_000_000,
            read_again_ns: u64::MAX,
            ..Arrivals::default()
        }
    }

    #[test]
    fn bytes_that_came_in_a_sleep_are_heard_when_they_came() {
        assert_eq!(arrivals(100..500).heard_ns(Some(1_000_300), 900), 300);
    }

    #[test]
    fn waking_up_takes_a_mirror_as_long_as_it_took_who_woke_the_core() {
        let mut arrivals = arrivals(100..500);
        arrivals.woken(Some(1_000_460), 500);
        arrivals.woken(Some(1_000_480), 500);
        assert_eq!(arrivals.heard_ns(Some(1_000_300), 900), 340);
        assert_eq!(
            arrivals.heard_ns(Some(1_000_470), 900),
            500,
            "awake by then"
        );
        // From then on it is known about how long it takes.
        for sleep in 1..100u64 {
            let start_ns = sleep * 1_000;
            arrivals.slept(start_ns..start_ns + 500);
            arrivals.woken(Some(1_000_000 + start_ns + 420), start_ns + 500);
        }
        arrivals.slept(200_000..200_500);
        let heard_ns = arrivals.heard_ns(Some(1_200_100), 201_000);
        assert!((200_160..=200_180).contains(&heard_ns), "{heard_ns}");
    }

    #[test]
    fn bytes_that_came_while_the_core_worked_are_heard_with_the_turn() {
        assert_eq!(arrivals(100..500).heard_ns(Some(1_000_700), 900), 900);
        assert_eq!(arrivals(100..500).heard_ns(None, 900), 900);
        let mut busy = arrivals(100..500);
        busy.woken(Some(1_000_700), 900);
        assert_eq!(busy.woke_in_ns, None);
    }

    #[test]
    fn a_clock_that_was_set_moves_no_stamp_out_of_the_sleep_and_the_turn() {
        assert_eq!(arrivals(100..500).heard_ns(Some(5), 900), 900, "wraps");
        assert_eq!(arrivals(100..500).heard_ns(Some(1_000_001), 900), 100);
        assert_eq!(arrivals(100..500).heard_ns(Some(u64::MAX), 900), 900);
    }

    #[test]
    fn a_stamp_is_read_and_anything_else_is_none() {
        let mut control = Vec::new();
        control.extend_from_slice(&32usize.to_ne_bytes());
        control.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        control.extend_from_slice(&libc::SCM_TIMESTAMPNS.to_ne_bytes());
        control.extend_from_slice(&7u64.to_ne_bytes());
        control.extend_from_slice(&9u64.to_ne_bytes());
        assert_eq!(stamp(&control), Some(7_000_000_009));
        for len in 0..control.len() {
            assert_eq!(stamp(&control[..len]), None, "{len}");
        }
        control[12] ^= 1;
        assert_eq!(stamp(&control), None, "another kind");
    }
}
