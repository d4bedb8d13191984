//! The driver of a core's ring: submits, waits, wakes.
//!
//! Plain form: loop { submit what the tasks queued; wait for a completion; hand completions to their
//! sockets; wake their tasks; let the tasks run }.
//!
//! Deviations, each measured or forced:
//! - It waits in our ring, not in glommio's parking. glommio's own timers run because a *standing* multishot
//!   timeout ends the wait every few milliseconds; arming a timer at every wait would reprogram the hardware timer.
//! - It must not wait while a task of either queue is ready. Serve tasks run first, for as long as they make
//!   each other ready; then mirror tasks get a turn: with clients busy by shares, else until the *baton*, a task at
//!   the mirror queue's tail, has been passed back.
//! - glommio goes to sleep although tasks are ready when its preemption timer ends before it has looked at the first of them:
//!   when the thread loses its CPU at that moment. None of our completions would wake it. Hence the executor of a ring should have a
//!   preemption timer that never ends ([`limits::PREEMPT`]): glommio then leaves its queues only when the driver was stopped.
//!   The driver passes control between the queues itself; a turn of mirror tasks is a number of polls. A timer of glommio's is pending all the same.
//! - Mirrors' sockets are on a second ring ([`super::aside`]), which is entered without a wait in turns in which it has
//!   something to do. A sleep ends for it only where clients come rarely.
//! - An idle core stops the standing timeout and waits with a long timeout instead.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::yield_now;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::aside::{Aside, BELL, Home};
use super::core::{Core, Ring, monotonic_ns};
use super::op::{Key, Op};
use super::task::{Notify, Queues};
use crate::limits;

/// Rounds of ready tasks before the ring is looked at again.
const ROUNDS_MAX: u32 = 16;

const TICK_KEY: Key = Key {
    slot: 0,
    generation: 0,
};

/// Drives `ring` until [`Ring::stop`]. Spawns its task into the serve queue and returns.
pub fn drive(ring: &Ring, queues: &Queues) {
    let baton = Rc::new(Baton::default());
    let driver = Driver {
        core: ring.core.clone(),
        queues: queues.clone(),
        baton: baton.clone(),
        tick: Box::new(timespec(limits::TICK)),
        ticking: false,
        quiet_ticks: 0,
        waited_until_ns: 0,
        completions: Vec::with_capacity(1024),
        rhythm: Rhythm::default(),
        waited: false,
    };
    let started = glommio::spawn_local_into(driver.run(), queues.serve_queue())
        .and_then(|task| {
            task.detach();
            glommio::spawn_local_into(unpark(), queues.serve_queue())
        })
        .and_then(|task| {
            task.detach();
            glommio::spawn_local_into(Baton::pass_back(baton), queues.mirror_queue())
        })
        .map(glommio::Task::detach);
    if let Err(error) = started {
        tracing::error!(%error, "cannot start the ring's driver");
    }
}

/// Keeps a timer of glommio's pending, which ends a sleep that it should not have begun.
async fn unpark() {
    loop {
        glommio::timer::sleep(limits::UNPARK).await;
    }
}

/// Goes out into the mirror queue and comes back when the tasks ready before it have run.
#[derive(Default)]
struct Baton {
    out: Notify,
    back: Notify,
}

impl Baton {
    async fn pass_back(baton: Rc<Baton>) {
        loop {
            baton.out.notified().await;
            baton.back.notify();
        }
    }
}

struct Driver {
    core: Rc<Core>,
    queues: Queues,
    baton: Rc<Baton>,
    /// The kernel reads the standing timeout's length from here when it is armed.
    tick: Box<types::Timespec>,
    ticking: bool,
    quiet_ticks: u32,
    /// When the last wait ended: what passes until the next one is work. 0 before the first.
    waited_until_ns: u64,
    completions: Vec<(u64, i32, u32)>,
    rhythm: Rhythm,
    /// This turn has waited, not only looked.
    waited: bool,
}

impl Driver {
    async fn run(mut self) {
        while !self.core.stopped.get() {
            self.turn();
            self.let_tasks_run().await;
        }
    }

    async fn let_tasks_run(&self) {
        for _ in 0..ROUNDS_MAX {
            yield_now().await;
            if !self.queues.serve_ready() {
                break;
            }
        }
        if !self.queues.mirror_ready() {
            return;
        }
        self.queues.grant_mirror_turn();
        if self.queues.serve_ready() {
            glommio::executor().yield_task_queue_now().await;
        } else {
            self.baton.out.notify();
            self.baton.back.notified().await;
        }
    }

    /// One submission, one wait where nothing is ready, and all completions there are.
    fn turn(&mut self) {
        self.queue_submissions();
        let core = self.core.clone();
        let due = core.aside().is_some_and(Aside::is_due);
        // What is to leave to clients leaves before mirrors are looked at.
        let submits = !core.uring.borrow_mut().submission().is_empty();
        if due && !submits {
            self.look_aside(core.tick_clock());
        }
        let before = monotonic_ns();
        let result = self.enter(before, due && submits);
        let now = self.core.tick_clock();
        if let Err(error) = result
            && !is_passing(&error)
        {
            tracing::error!(%error, "io_uring_enter failed");
        }
        self.dispatch(before, now, submits);
        if due && submits {
            self.look_aside(now);
        }
    }

    fn queue_submissions(&mut self) {
        let mut state = self.core.state.borrow_mut();
        self.core.slabs.replenish();
        state.feed_starved(Home::Main, &self.core.slabs);
        if let Some(aside) = self.core.aside() {
            aside.slabs.replenish();
            state.feed_starved(Home::Aside, &aside.slabs);
        }
        state.flush();
        if !self.ticking && self.quiet_ticks < limits::IDLE_AFTER_TICKS {
            self.ticking = true;
            let timeout = opcode::Timeout::new(&raw const *self.tick)
                .flags(types::TimeoutFlags::MULTISHOT)
                .build()
                .user_data(TICK_KEY.user_data(Op::Tick));
            state.pending.push(timeout);
        }
        if self.ticking && self.quiet_ticks >= limits::IDLE_AFTER_TICKS {
            self.ticking = false;
            let remove = opcode::TimeoutRemove::new(TICK_KEY.user_data(Op::Tick)).build();
            state
                .pending
                .push(remove.user_data(TICK_KEY.user_data(Op::Tick)));
        }
        let pending = (state.pending.len() + state.pending_aside.len()) as u64;
        state.stats.submissions += pending;
        state.stats.submissions_max = state.stats.submissions_max.max(pending);
        push(&mut self.core.uring.borrow_mut(), &mut state.pending);
        if let Some(aside) = self.core.aside() {
            push(&mut aside.uring.borrow_mut(), &mut state.pending_aside);
        }
    }

    /// Enters the mirrors' ring, and hands on what it has.
    fn look_aside(&mut self, now_ns: u64) {
        let core = self.core.clone();
        let Some(aside) = core.aside() else { return };
        let mut uring = aside.uring.borrow_mut();
        if let Err(error) = poll_ring(&uring)
            && !is_passing(&error)
        {
            tracing::error!(%error, "io_uring_enter failed for mirrors");
        }
        let entries = uring.completion();
        self.completions
            .extend(entries.map(|entry| (entry.user_data(), entry.result(), entry.flags())));
        drop(uring);
        let mut state = core.state.borrow_mut();
        state.now_ns = now_ns;
        state.stats.completions += self.completions.len() as u64;
        if !self.completions.is_empty() {
            self.quiet_ticks = 0;
        }
        for (user_data, result, flags) in self.completions.drain(..) {
            state.complete(&aside.slabs, user_data, result, flags);
        }
        drop(state);
        self.wake();
    }

    fn enter(&mut self, now_ns: u64, at_once: bool) -> io::Result<usize> {
        let core = self.core.clone();
        let uring = core.uring.borrow();
        let wait_ns = self.wait_ns(now_ns);
        if at_once || wait_ns == Some(0) {
            return poll_ring(&uring);
        }
        if !core.busy_poll.is_zero() {
            let spin_until = now_ns + core.busy_poll.as_nanos() as u64;
            loop {
                poll_ring(&uring)?;
                // SAFETY: the completion queue is looked at by this thread alone, here and in `dispatch`.
                if !unsafe { uring.completion_shared() }.is_empty() {
                    return Ok(0);
                }
                if core.aside().is_some_and(Aside::is_due) {
                    return Ok(0);
                }
                if monotonic_ns() >= spin_until {
                    break;
                }
            }
        }
        // Whoever comes often is soon here again; then mirrors are looked at too.
        let heard_soon = self.rhythm.continues(now_ns);
        let listened = core.aside().filter(|_| !heard_soon);
        if let Some(aside) = listened
            && !aside.listen()
        {
            aside.stop_listening();
            return poll_ring(&uring);
        }
        let result = match wait_ns {
            None => uring.submit_and_wait(1),
            Some(wait) => {
                let wait = timespec(Duration::from_nanos(wait));
                let args = types::SubmitArgs::new().timespec(&wait);
                uring.submitter().submit_with_args(1, &args)
            }
        };
        if let Some(aside) = listened {
            aside.stop_listening();
        }
        self.waited = true;
        result
    }

    /// How long this wait may last; `None`: until the next completion (the standing tick is one).
    fn wait_ns(&self, now_ns: u64) -> Option<u64> {
        let state = self.core.state.borrow();
        let unsubmitted = !state.pending.is_empty() || !state.pending_aside.is_empty();
        drop(state);
        if unsubmitted || self.queues.serve_ready() || self.queues.mirror_ready() {
            return Some(0);
        }
        let mut timers = self.core.timers.borrow_mut();
        if self.ticking {
            let next = timers.next_precise_ns(now_ns)?;
            // A precise timer beyond the next tick can wait for a later turn.
            let wait = next - now_ns;
            return (wait < limits::TICK.as_nanos() as u64).then_some(wait);
        }
        let linger = self.core.state.borrow().next_linger_ns();
        let next = timers.next_ns().into_iter().chain(linger).min();
        let idle = limits::IDLE_WAIT.as_nanos() as u64;
        Some(next.map_or(idle, |next| next.saturating_sub(now_ns).min(idle)))
    }

    fn dispatch(&mut self, before_ns: u64, now_ns: u64, submitted: bool) {
        let core = &self.core;
        self.completions.extend(
            core.uring
                .borrow_mut()
                .completion()
                .map(|entry| (entry.user_data(), entry.result(), entry.flags())),
        );
        let mut state = core.state.borrow_mut();
        state.now_ns = now_ns;
        // A send that was submitted with the wait ends it before it has begun.
        let is_send = |user_data| Op::of(user_data) == Some(Op::Send);
        if std::mem::take(&mut self.waited)
            && core.aside().is_some()
            && !(submitted
                && self
                    .completions
                    .iter()
                    .any(|(user_data, ..)| is_send(*user_data)))
        {
            state.arrivals.slept(before_ns..now_ns);
        }
        let (mut ticked, mut worked) = (false, false);
        let found = self.completions.len() as u64;
        state.stats.completions += found;
        state.stats.completions_max = state.stats.completions_max.max(found);
        for (user_data, result, flags) in self.completions.drain(..) {
            if user_data == TICK_KEY.user_data(Op::Tick) {
                ticked = true;
                // A standing timeout that ended by itself (completion queue overflow) is armed anew.
                self.ticking &= result != -libc::ETIME || cqueue::more(flags);
                continue;
            }
            if user_data == BELL {
                if !cqueue::more(flags)
                    && let Some(aside) = core.aside()
                {
                    state.pending.push(aside.bell_poll());
                }
                continue;
            }
            worked = true;
            state.complete(&core.slabs, user_data, result, flags);
        }
        if worked {
            self.rhythm.beat(now_ns);
        }
        state.end_linger(now_ns);
        core.timers.borrow_mut().take_due(now_ns, &mut state.wake);
        worked |= !state.wake.is_empty();
        self.quiet_ticks = match (worked, ticked) {
            (true, _) => 0,
            (false, true) => self.quiet_ticks + 1,
            (false, false) => self.quiet_ticks,
        };
        state.stats.turns += 1;
        state.stats.idle_ns += now_ns - before_ns;
        if self.waited_until_ns > 0 {
            state.stats.busy_ns += before_ns.saturating_sub(self.waited_until_ns);
        }
        self.waited_until_ns = now_ns;
        drop(state);
        self.wake();
    }

    fn wake(&self) {
        let core = &self.core;
        let mut wake = std::mem::take(&mut core.state.borrow_mut().wake);
        // A waker may be a task's last reference; dropping it may close sockets, hence the state is free by now.
        for waker in wake.drain(..) {
            waker.wake();
        }
        let mut state = core.state.borrow_mut();
        if state.wake.is_empty() {
            state.wake = wake;
        }
    }
}

/// How often others than mirrors come.
#[derive(Default)]
struct Rhythm {
    last_ns: u64,
    /// The mean of the last gaps, in which a new one has an eighth.
    gap_ns: u64,
}

impl Rhythm {
    fn beat(&mut self, now_ns: u64) {
        // One long pause is not to count for many gaps.
        let gap_ns = (now_ns - self.last_ns).min(Self::soon_ns() * 8);
        self.gap_ns = self.gap_ns - self.gap_ns / 8 + gap_ns / 8;
        self.last_ns = now_ns;
    }

    /// Whether the next is to be expected soon.
    fn continues(&self, now_ns: u64) -> bool {
        let soon_ns = Self::soon_ns();
        self.gap_ns < soon_ns && now_ns - self.last_ns < soon_ns
    }

    fn soon_ns() -> u64 {
        limits::ASIDE_GAP.as_nanos() as u64
    }
}

/// Moves what is to be submitted into the ring's queue, and submits where that is full.
fn push(uring: &mut IoUring, pending: &mut Vec<squeue::Entry>) {
    let mut pushed_len = 0;
    while pushed_len < pending.len() {
        let rest = &pending[pushed_len..];
        let mut queue = uring.submission();
        let room = (queue.capacity() - queue.len()).min(rest.len());
        // SAFETY: every pending entry points only to memory that stays in place until its completion: slabs, the
        // out queue and the connect address of a slot (kept while its `ops` count it), the message header of receives
        // aside (kept by the state), the doorbell's and the tick's boxes (kept by the driver's owner).
        let pushed = unsafe { queue.push_multiple(&rest[..room]) };
        drop(queue);
        if pushed.is_ok() {
            pushed_len += room;
        }
        if pushed_len < pending.len()
            && let Err(error) = uring.submit()
        {
            tracing::error!(%error, "io_uring_enter failed");
            // The others go with the next turn: a lost one would leave its socket deaf.
            break;
        }
    }
    pending.drain(..pushed_len);
}

/// Whether entering a ring failed as it may: it was interrupted, or its time was over.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

/// Submits and runs the kernel's deferred work without waiting.
fn poll_ring(uring: &IoUring) -> io::Result<usize> {
    const GETEVENTS: u32 = 1;
    // SAFETY: only this thread pushes to or submits from the queue.
    let queued = unsafe { uring.submission_shared() }.len() as u32;
    // SAFETY: the call passes no argument structure; entries were checked when they were pushed.
    unsafe {
        uring
            .submitter()
            .enter::<libc::sigset_t>(queued, 0, GETEVENTS, None)
    }
}

fn timespec(duration: Duration) -> types::Timespec {
    types::Timespec::from(duration)
}
