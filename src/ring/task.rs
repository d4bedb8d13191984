//! Tasks on the executor whose readiness the driver can see.
//!
//! The driver may wait in the ring only while no task is ready. glommio does not tell, so every task is
//! spawned through [`Queues::spawn`], which wraps its waker: a wake marks the task ready, a poll takes the
//! mark away, and the marks are counted per queue. A panic in a task ends that task alone.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

use glommio::{Latency, Shares, TaskQueueHandle};

/// The two queues of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Clients and the primary.
    Serve,
    /// Mirrors: runs in what time `Serve` leaves, by shares.
    Mirror,
}

/// Shares of a busy core: nine tenths for clients when both queues want all of it.
const SERVE_SHARES: usize = 900;
const MIRROR_SHARES: usize = 100;

/// Polls of mirror tasks in one of their turns, after which clients are looked at again.
const MIRROR_POLLS: u32 = 64;

/// Creates tasks in the two queues and counts those that are ready to run.
#[derive(Clone)]
pub struct Queues(Rc<Inner>);

struct Inner {
    serve: TaskQueueHandle,
    mirror: TaskQueueHandle,
    serve_ready: Arc<AtomicUsize>,
    mirror_ready: Arc<AtomicUsize>,
    /// Polls that mirror tasks have left until the driver passes them the core again.
    mirror_polls: Cell<u32>,
    /// Mirror tasks that are ready and found no poll left. They count as ready.
    held: RefCell<Vec<Waker>>,
    panics: Cell<u64>,
}

impl Queues {
    /// Creates the queues on the executor of the calling thread.
    ///
    /// # Panics
    /// Outside a glommio executor.
    pub fn new() -> Queues {
        let executor = glommio::executor();
        let queue = |shares, name| {
            executor.create_task_queue(Shares::Static(shares), Latency::NotImportant, name)
        };
        Queues(Rc::new(Inner {
            serve: queue(SERVE_SHARES, "serve"),
            mirror: queue(MIRROR_SHARES, "mirror"),
            serve_ready: Arc::default(),
            mirror_ready: Arc::default(),
            mirror_polls: Cell::new(MIRROR_POLLS),
            held: RefCell::default(),
            panics: Cell::new(0),
        }))
    }

    /// Runs `future` to its end in `queue`, detached. A panic in it is logged and counted.
    pub fn spawn(&self, queue: Queue, future: impl Future<Output = ()> + 'static) {
        let (handle, ready) = match queue {
            Queue::Serve => (self.0.serve, &self.0.serve_ready),
            Queue::Mirror => (self.0.mirror, &self.0.mirror_ready),
        };
        ready.fetch_add(1, Ordering::Relaxed);
        let mark = Arc::new(Mark {
            state: AtomicU8::new(READY),
            ready: ready.clone(),
            task: OnceLock::new(),
        });
        let tracked = Tracked {
            waker: Waker::from(mark.clone()),
            mark,
            future: Box::pin(future),
            queue,
            queues: self.clone(),
        };
        match glommio::spawn_local_into(tracked, handle) {
            Ok(task) => {
                task.detach();
            }
            Err(error) => tracing::error!(%error, "cannot start a task"),
        }
    }

    /// Panics of tasks so far.
    pub fn panics(&self) -> u64 {
        self.0.panics.get()
    }

    /// Runs the driver itself, outside the count of ready tasks.
    pub(super) fn serve_queue(&self) -> TaskQueueHandle {
        self.0.serve
    }

    /// Runs the baton itself, which is never held back.
    pub(super) fn mirror_queue(&self) -> TaskQueueHandle {
        self.0.mirror
    }

    /// Lets mirror tasks run for one turn of theirs.
    pub(super) fn grant_mirror_turn(&self) {
        self.0.mirror_polls.set(MIRROR_POLLS);
        let mut held = std::mem::take(&mut *self.0.held.borrow_mut());
        for task in held.drain(..) {
            task.wake();
        }
        *self.0.held.borrow_mut() = held;
    }

    /// Whether a mirror task may run now. Otherwise it runs in the next turn.
    fn takes_poll(&self, task: &Waker) -> bool {
        let left = self.0.mirror_polls.get();
        if left == 0 {
            self.0.held.borrow_mut().push(task.clone());
            return false;
        }
        self.0.mirror_polls.set(left - 1);
        true
    }

    pub(super) fn serve_ready(&self) -> bool {
        self.0.serve_ready.load(Ordering::Relaxed) > 0
    }

    pub(super) fn mirror_ready(&self) -> bool {
        self.0.mirror_ready.load(Ordering::Relaxed) > 0
    }
}

impl Default for Queues {
    fn default() -> Self {
        Queues::new()
    }
}

const IDLE: u8 = 0;
const READY: u8 = 1;
const DONE: u8 = 2;

/// The ready mark of one task, and its waker.
struct Mark {
    state: AtomicU8,
    ready: Arc<AtomicUsize>,
    /// glommio's waker of the task; the same at every poll, set at the first.
    task: OnceLock<Waker>,
}

impl Wake for Mark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let woken = self
            .state
            .compare_exchange(IDLE, READY, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        if woken {
            self.ready.fetch_add(1, Ordering::Relaxed);
            if let Some(task) = self.task.get() {
                task.wake_by_ref();
            }
        }
    }
}

struct Tracked<F> {
    mark: Arc<Mark>,
    /// Of the mark.
    waker: Waker,
    future: Pin<Box<F>>,
    queue: Queue,
    queues: Queues,
}

impl<F: Future<Output = ()>> Future for Tracked<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.mark.task.get_or_init(|| cx.waker().clone());
        if this.queue == Queue::Mirror && !this.queues.takes_poll(cx.waker()) {
            return Poll::Pending;
        }
        if this.mark.state.swap(IDLE, Ordering::AcqRel) == READY {
            this.mark.ready.fetch_sub(1, Ordering::Relaxed);
        }
        let mut cx = Context::from_waker(&this.waker);
        match catch_unwind(AssertUnwindSafe(|| this.future.as_mut().poll(&mut cx))) {
            Ok(poll) => poll,
            Err(_) => {
                // The panic hook has logged message and place.
                this.queues.0.panics.set(this.queues.0.panics.get() + 1);
                Poll::Ready(())
            }
        }
    }
}

impl<F> Drop for Tracked<F> {
    fn drop(&mut self) {
        if self.mark.state.swap(DONE, Ordering::AcqRel) == READY {
            self.mark.ready.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Wakes one waiting task of the same core; a notification without a waiter is kept for the next.
#[derive(Default)]
pub struct Notify {
    notified: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Notify {
    /// Wakes the waiter, or lets the next [`Notify::notified`] return at once.
    pub fn notify(&self) {
        if !self.notified.replace(true)
            && let Some(waiter) = self.waiter.borrow_mut().take()
        {
            waiter.wake();
        }
    }

    /// Waits for a notification and takes it.
    pub async fn notified(&self) {
        poll_fn(|cx| {
            if self.notified.take() {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Tasks of one core that wait for work of the same kind; each call of [`WaitQueue::wake_one`] wakes the one
/// that has waited longest.
#[derive(Default)]
pub struct WaitQueue(RefCell<VecDeque<(u64, Waker)>>, Cell<u64>);

impl WaitQueue {
    /// Wakes one waiter, if there is one. Work is looked for before waiting, so none is missed.
    pub fn wake_one(&self) {
        let waiter = self.0.borrow_mut().pop_front();
        if let Some((_, waker)) = waiter {
            waker.wake();
        }
    }

    /// Wakes every waiter.
    pub fn wake_all(&self) {
        for (_, waker) in std::mem::take(&mut *self.0.borrow_mut()) {
            waker.wake();
        }
    }

    /// Waits to be woken. The caller looks for work first, and again afterwards. A waiter that was woken and gave up
    /// its wait at that moment must look for work too.
    pub fn wait(&self) -> Waiting<'_> {
        Waiting {
            queue: self,
            ticket: None,
        }
    }
}

/// See [`WaitQueue::wait`].
pub struct Waiting<'a> {
    queue: &'a WaitQueue,
    ticket: Option<u64>,
}

impl Future for Waiting<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiters = self.queue.0.borrow_mut();
        match self.ticket {
            None => {
                let ticket = self.queue.1.get();
                self.queue.1.set(ticket + 1);
                waiters.push_back((ticket, cx.waker().clone()));
                drop(waiters);
                self.ticket = Some(ticket);
                Poll::Pending
            }
            Some(ticket) if waiters.iter().any(|(waiting, _)| *waiting == ticket) => Poll::Pending,
            Some(_) => Poll::Ready(()),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.queue
                .0
                .borrow_mut()
                .retain(|(waiting, _)| *waiting != ticket);
        }
    }
}
