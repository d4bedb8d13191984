//! One data core: a pinned thread with an executor, a ring, and everything its clients need.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use glommio::{LocalExecutorBuilder, Placement};

use super::listeners::Bound;
use super::{CoreMessage, CoreSender, MESSAGES_MAX, StartError};
use crate::config::{Config, RingConfig};
use crate::limits;
use crate::metrics::Registry;
use crate::proxy::Context;
use crate::proxy::context::Event;
use crate::proxy::services::{Services, Shared};
use crate::ring::{
    Doorbell, Listener, Notify, Queue, Queues, Ring, RingOptions, RingStats, Ringer, drive,
    thread_cpu_ns,
};

/// How often a core publishes its ring's counters and looks at its drain.
const HOUSEKEEPING: Duration = Duration::from_millis(100);

/// glommio's own memory for storage I/O, which the cores do not do.
const EXECUTOR_IO_MEMORY: usize = 64 * 1024;

/// Entries of glommio's own rings, which carry nothing but its timers.
const EXECUTOR_RING_DEPTH: usize = 128;

/// Everything a core's thread is born with.
pub(super) struct CoreSeed {
    pub index: usize,
    pub cpu: usize,
    pub config: Arc<Config>,
    pub registry: Arc<Registry>,
    pub sockets: Vec<Bound>,
    pub events: Sender<Event>,
    pub shared: Arc<Shared>,
}

/// The control thread's side of a core.
pub(super) struct CoreHandle {
    pub sender: CoreSender,
    cpu: usize,
    drained: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl CoreHandle {
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Acquire)
    }

    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread, up to `limit`.
    pub fn join(self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.thread.is_finished() {
            let _ = self.thread.join();
        } else {
            tracing::warn!(
                cpu = self.cpu,
                "a core did not end in time and is left behind"
            );
        }
    }
}

/// Starts the thread and waits until it accepts.
pub(super) fn start(seed: CoreSeed) -> Result<CoreHandle, StartError> {
    let (messages, inbox) = crossbeam_channel::bounded(MESSAGES_MAX);
    let (ready, is_ready) = crossbeam_channel::bounded::<Result<Ringer, String>>(1);
    let drained = Arc::new(AtomicBool::new(false));
    let cpu = seed.cpu;
    let fail = |problem: String| StartError::Core { cpu, problem };
    let thread = std::thread::Builder::new()
        .name(format!("core-{cpu}"))
        .spawn({
            let drained = drained.clone();
            move || {
                let executor = LocalExecutorBuilder::new(Placement::Fixed(cpu))
                    .name(&format!("core-{cpu}"))
                    .io_memory(EXECUTOR_IO_MEMORY)
                    .ring_depth(EXECUTOR_RING_DEPTH)
                    .preempt_timer(limits::PREEMPT)
                    .make();
                match executor {
                    Ok(executor) => executor.run(run(seed, inbox, ready, drained)),
                    Err(error) => {
                        let _ = ready.send(Err(error.to_string()));
                    }
                }
            }
        })
        .map_err(|error| fail(error.to_string()))?;
    match is_ready.recv() {
        Ok(Ok(ringer)) => {
            let sender = CoreSender { messages, ringer };
            Ok(CoreHandle {
                sender,
                cpu,
                drained,
                thread,
            })
        }
        Ok(Err(problem)) => Err(fail(problem)),
        Err(_) => Err(fail("its thread ended".to_owned())),
    }
}

async fn run(
    seed: CoreSeed,
    inbox: Receiver<CoreMessage>,
    ready: Sender<Result<Ringer, String>>,
    drained: Arc<AtomicBool>,
) {
    let set_up = Ring::new(&ring_options(&seed.config.ring))
        .and_then(|ring| ring.doorbell().map(|bell| (ring, bell)));
    let (ring, bell) = match set_up {
        Ok(set_up) => set_up,
        Err(error) => {
            let _ = ready.send(Err(format!("cannot set up its ring: {error}")));
            return;
        }
    };
    let queues = Queues::new();
    drive(&ring, &queues);
    let CoreSeed {
        index,
        config,
        registry,
        sockets,
        events,
        shared,
        ..
    } = seed;
    let context = Rc::new(Context::new(
        index,
        ring,
        queues.clone(),
        registry,
        config.clone(),
        shared.tls.clone(),
        events,
    ));
    let ended = Rc::new(Notify::default());
    let core = Core {
        services: Rc::new(Services::new(&context, shared, &config)),
        context,
        accepting: Rc::new(Cell::new(true)),
        drained,
    };
    core.listen(sockets);
    core.keep_house();
    let _ = ready.send(Ok(bell.ringer()));
    queues.spawn(Queue::Serve, core.obey(inbox, bell, ended.clone()));
    ended.notified().await;
}

fn ring_options(config: &RingConfig) -> RingOptions {
    RingOptions {
        entries: config.entries,
        slabs: usize::from(config.slabs),
        slab_size: config.slab_size,
        busy_poll: config.busy_poll,
    }
}

struct Core {
    context: Rc<Context>,
    services: Rc<Services>,
    /// False once a drain began: the accept loops end and close their listeners.
    accepting: Rc<Cell<bool>>,
    drained: Arc<AtomicBool>,
}

impl Core {
    fn listen(&self, sockets: Vec<Bound>) {
        for Bound {
            listener: index,
            socket,
        } in sockets
        {
            let listener = Rc::new(self.context.ring.listen(socket));
            self.services.keep_listener(Rc::downgrade(&listener));
            let (services, accepting) = (self.services.clone(), self.accepting.clone());
            self.context.queues.spawn(Queue::Serve, async move {
                accept(&listener, &accepting, |socket| {
                    services.serve(index, socket)
                })
                .await;
            });
        }
    }

    /// Publishes the ring's counters, drops units that waited too long, and notices the end of a drain.
    fn keep_house(&self) {
        let (context, services) = (self.context.clone(), self.services.clone());
        let (accepting, drained) = (self.accepting.clone(), self.drained.clone());
        self.context.queues.spawn(Queue::Serve, async move {
            loop {
                context.ring.sleep(HOUSEKEEPING, false).await;
                publish(&context);
                services.expire();
                context.end_idle_sessions();
                let done =
                    !accepting.get() && context.session_count() == 0 && services.is_settled();
                drained.store(done, Ordering::Release);
            }
        });
    }

    async fn obey(self, inbox: Receiver<CoreMessage>, mut bell: Doorbell, ended: Rc<Notify>) {
        loop {
            bell.rung().await;
            while let Ok(message) = inbox.try_recv() {
                match message {
                    CoreMessage::Settings => self.services.refresh(),
                    CoreMessage::Config(config, done) => {
                        self.services.reconfigure(&config);
                        self.context.mirrors_changed();
                        let _ = done.try_send(());
                    }
                    CoreMessage::Sessions(answer) => {
                        let _ = answer.try_send(self.context.describe_sessions());
                    }
                    CoreMessage::Admin { ticket, answer } => {
                        self.services.admin.deliver(ticket, *answer);
                    }
                    CoreMessage::Reconnect {
                        source,
                        destination,
                    } => {
                        self.services.reconnect(&source, &destination);
                    }
                    CoreMessage::Drain => {
                        self.accepting.set(false);
                        self.services.close_listeners();
                        self.context.drain();
                    }
                    CoreMessage::Stop => {
                        self.services.close_listeners();
                        self.context.stop_sessions();
                        self.services.retire();
                        // Sessions and workers are awake; give them turns to book what they had.
                        let mut turns = 100;
                        while turns > 0
                            && (self.context.session_count() > 0 || !self.services.is_settled())
                        {
                            self.context
                                .ring
                                .sleep(Duration::from_millis(2), true)
                                .await;
                            turns -= 1;
                        }
                        publish(&self.context);
                        ended.notify();
                        self.context.ring.stop();
                        return;
                    }
                }
            }
        }
    }
}

async fn accept(
    listener: &Listener,
    accepting: &Cell<bool>,
    mut serve: impl FnMut(crate::ring::Socket),
) {
    while accepting.get() {
        match listener.accept().await {
            Ok(socket) => serve(socket),
            Err(error) if accepting.get() => {
                tracing::error!(%error, "a listener failed and accepts no more");
                return;
            }
            Err(_) => return,
        }
    }
}

/// How long the core worked and how long it waited. The kernel moves the bytes of a turn inside the call that waits for the next
/// one, so most of the work is within what the ring knows as its wait: the thread's CPU time has all of it. A core that polls
/// burns its CPU while it waits; there the time outside the wait is all that can be told.
fn publish_times(context: &Context, stats: &RingStats) {
    let metrics = &context.metrics;
    let polls = !context.config.borrow().ring.busy_poll.is_zero();
    let busy_ns = if polls {
        stats.busy_ns
    } else {
        thread_cpu_ns()
    };
    metrics.busy_ns.set(busy_ns);
    let whole_ns = stats.busy_ns + stats.idle_ns;
    // The turn that goes on is in the CPU time and not yet in the whole: a counter must not go back for that.
    let idle_ns = whole_ns.saturating_sub(busy_ns);
    metrics.idle_ns.set(idle_ns.max(metrics.idle_ns.get()));
}

fn publish(context: &Context) {
    let stats = context.ring.stats();
    let metrics = &context.metrics;
    metrics.ring.turns.set(stats.turns);
    metrics.ring.enters.set(stats.turns);
    metrics.ring.cqes.set(stats.completions);
    metrics.ring.sqes.set(stats.submissions);
    metrics.ring.sqes_max.set(stats.submissions_max);
    metrics.ring.cqes_max.set(stats.completions_max);
    let entries = context.config.borrow().ring.entries;
    metrics.ring.entries.set(u64::from(entries));
    metrics.ring.enobufs.set(stats.out_of_slabs);
    metrics.ring.accept_errors.set(stats.accept_errors);
    publish_times(context, &stats);
    metrics.slabs_used.set(stats.slabs_in_use);
    metrics.slabs_capacity.set(stats.slabs);
    metrics.session_panics.set(context.queues.panics());
    metrics.mirror_memory_used.set(context.budget.used() as u64);
    metrics
        .mirror_memory_capacity
        .set(context.budget.limit() as u64);
}
