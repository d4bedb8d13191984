//! Timers of a core, served by the driver.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::core::{Core, Ring};

/// The deadline passed before the future was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// Waits for a point in time; see [`Ring::sleep`].
pub struct Sleep {
    core: Rc<Core>,
    deadline_ns: u64,
    id: Option<u64>,
}

impl Ring {
    /// Waits for `duration`. Ends late by at most the core's tick (5 ms under load) when `precise` is false,
    /// by under a millisecond when it is true; a precise timer costs a system timer.
    pub fn sleep(&self, duration: Duration, precise: bool) -> Sleep {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sleep_until(self.core.clock_ns().saturating_add(nanos), precise)
    }

    /// Waits until [`Ring::now_ns`] reaches `deadline_ns`.
    pub fn sleep_until(&self, deadline_ns: u64, precise: bool) -> Sleep {
        let mut timers = self.core.timers.borrow_mut();
        let id = timers.next_id;
        timers.next_id += 1;
        timers.wakers.insert(id, None);
        timers.due.push(Reverse((deadline_ns, id)));
        // A wait that is begun again and again for the same time needs one entry.
        if precise && timers.precise.peek() != Some(&Reverse(deadline_ns)) {
            timers.precise.push(Reverse(deadline_ns));
        }
        Sleep {
            core: self.core.clone(),
            deadline_ns,
            id: Some(id),
        }
    }

    /// Runs `future` for at most `limit`; a zero `limit` means no limit.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is over; the future is dropped.
    pub async fn timeout<F: Future>(
        &self,
        limit: Duration,
        future: F,
    ) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        if limit.is_zero() {
            return Ok(future.await);
        }
        let mut sleep = pin!(self.sleep(limit, false));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            sleep.as_mut().poll(cx).map(|()| Err(Elapsed))
        })
        .await
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(id) = self.id else {
            return Poll::Ready(());
        };
        let mut timers = self.core.timers.borrow_mut();
        match timers.wakers.get_mut(&id) {
            None => Poll::Ready(()),
            Some(waker) => {
                if self.core.clock_ns() >= self.deadline_ns {
                    timers.wakers.remove(&id);
                    return Poll::Ready(());
                }
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.core.timers.borrow_mut().forget(id);
        }
    }
}

/// Every id in `wakers` is in `due`; an id in `due` alone was forgotten.
#[derive(Default)]
pub(super) struct Timers {
    due: BinaryHeap<Reverse<(u64, u64)>>,
    wakers: HashMap<u64, Option<Waker>>,
    precise: BinaryHeap<Reverse<u64>>,
    next_id: u64,
}

impl Timers {
    fn forget(&mut self, id: u64) {
        self.wakers.remove(&id);
        // Many short-lived timeouts must not pile up: sweep when most entries are forgotten.
        if self.due.len() > 64 && self.due.len() > 2 * self.wakers.len() {
            let wakers = &self.wakers;
            self.due.retain(|Reverse((_, id))| wakers.contains_key(id));
        }
    }

    /// When the next timer is due.
    pub(super) fn next_ns(&mut self) -> Option<u64> {
        while let Some(Reverse((deadline, id))) = self.due.peek().copied() {
            if self.wakers.contains_key(&id) {
                return Some(deadline);
            }
            self.due.pop();
        }
        None
    }

    /// When the next precise timer is due.
    pub(super) fn next_precise_ns(&mut self, now_ns: u64) -> Option<u64> {
        while let Some(Reverse(deadline)) = self.precise.peek().copied() {
            if deadline > now_ns {
                return Some(deadline);
            }
            self.precise.pop();
        }
        None
    }

    /// Moves the wakers of all timers that are due into `wake`.
    pub(super) fn take_due(&mut self, now_ns: u64, wake: &mut Vec<Waker>) {
        while let Some(Reverse((deadline, id))) = self.due.peek().copied() {
            if deadline > now_ns {
                break;
            }
            self.due.pop();
            if let Some(Some(waker)) = self.wakers.remove(&id) {
                wake.push(waker);
            }
        }
    }
}

/// Shared by the ring's core; its own cell because timers are set while sockets are borrowed.
pub(super) type TimersCell = RefCell<Timers>;
