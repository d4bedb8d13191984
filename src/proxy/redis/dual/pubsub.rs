//! Shadow subscriptions: what a client subscribes to at the backend in front is subscribed to at the other one too, and
//! the messages of both are matched.
//!
//! Nothing is compared until the shadow is confirmed, nor what arrives within one window of a change of subscriptions:
//! the two servers make the change at different moments.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::or;

use super::link::{Broken, Link};
use super::{Dual, nanos};
use crate::metrics::DivergenceKind;
use crate::mirror::dual::pubsub::{Matcher, Side, Unmatched};
use crate::mirror::unit::ClientId;
use crate::proxy::context::{DivergenceReport, Event};
use crate::ring::{Queue, WaitQueue};

/// How often messages are looked at that wait for their counterpart.
const LOOK: Duration = Duration::from_millis(100);

/// Subscription commands that may wait for the shadow.
const COMMANDS_MAX: usize = 1024;

/// The shadow of one client's subscriptions.
pub(super) struct Shadow {
    matcher: RefCell<Matcher>,
    commands: RefCell<VecDeque<Vec<u8>>>,
    changed: WaitQueue,
    /// When the shadow confirmed the last change; 0: not yet.
    ready_ns: Cell<u64>,
    ended: Cell<bool>,
}

impl Dual {
    /// The client changes its subscriptions with this command.
    pub(super) fn follow_subscription(self: &Rc<Self>, client: ClientId, command: &[u8]) {
        if !self.mode.get().shadows_reads() {
            return;
        }
        let known = self.shadows.borrow().get(&client).cloned();
        let shadow = known.unwrap_or_else(|| {
            let window_ns = nanos(self.options.borrow().pubsub_compare_window);
            let shadow = Rc::new(Shadow {
                matcher: RefCell::new(Matcher::new(window_ns)),
                commands: RefCell::default(),
                changed: WaitQueue::default(),
                ready_ns: Cell::new(0),
                ended: Cell::new(false),
            });
            self.shadows.borrow_mut().insert(client, shadow.clone());
            let running = run(self.clone(), shadow.clone(), client);
            self.context.queues.spawn(Queue::Mirror, running);
            shadow
        });
        let mut commands = shadow.commands.borrow_mut();
        if commands.len() < COMMANDS_MAX {
            commands.push_back(command.to_vec());
        }
        drop(commands);
        shadow.ready_ns.set(0);
        shadow.changed.wake_all();
    }

    /// The client was sent this frame.
    pub(super) fn match_message(&self, client: ClientId, frame: &[u8]) {
        let now_ns = self.context.ring.now_ns();
        if let Some(shadow) = self.shadows.borrow().get(&client)
            && shadow.ready_ns.get() > 0
        {
            shadow
                .matcher
                .borrow_mut()
                .see(Side::Primary, frame, now_ns);
        }
    }

    /// The client has left, or is back to a fresh connection: what is young is not reported.
    pub(super) fn end_shadow(&self, client: ClientId) {
        if let Some(shadow) = self.shadows.borrow_mut().remove(&client) {
            shadow.ended.set(true);
            shadow.changed.wake_all();
        }
    }

    fn report_unmatched(&self, alone: Unmatched, client: ClientId) {
        let (kind, primary, secondary) = match alone.side {
            Side::Primary => {
                self.metrics.pubsub_missing.add(1);
                (DivergenceKind::DataMismatch, alone.payload, Vec::new())
            }
            Side::Secondary => {
                self.metrics.pubsub_extra.add(1);
                (DivergenceKind::ExtraData, Vec::new(), alone.payload)
            }
        };
        self.metrics.diverge(kind);
        let report = DivergenceReport {
            source: self.source.clone(),
            mirror: self.follower().name.clone(),
            command: alone.kind.to_owned(),
            key: alone.channel,
            pattern: alone.pattern,
            kind,
            primary,
            secondary,
            client,
            core: self.context.core,
        };
        self.context.tell(Event::Divergence(Box::new(report)));
    }
}

async fn run(dual: Rc<Dual>, shadow: Rc<Shadow>, client: ClientId) {
    if let Err(broken) = serve(&dual, &shadow, client).await {
        dual.metrics.pubsub_errors.add(1);
        tracing::warn!(secondary = dual.follower().name, reason = %broken, client = client.0,
            "a shadow subscription ended: its messages are not compared any more");
    }
    shadow.ready_ns.set(0);
    shadow.matcher.borrow_mut().clear();
    // The entry stays while the client does, so that one failure is one error.
    if shadow.ended.get() || dual.retired.get() || !dual.mode.get().shadows_reads() {
        dual.shadows.borrow_mut().remove(&client);
    }
}

async fn serve(dual: &Rc<Dual>, shadow: &Shadow, client: ClientId) -> Result<(), Broken> {
    let mut link = Link::open(&dual.context, dual.follower()).await?;
    let window_ns = nanos(dual.options.borrow().pubsub_compare_window);
    let mut collected = Vec::new();
    loop {
        if shadow.ended.get() || dual.retired.get() || !dual.mode.get().shadows_reads() {
            return Ok(());
        }
        while let Some(command) = shadow.commands.borrow_mut().pop_front() {
            link.socket.write(&command);
        }
        let woken = async {
            or(shadow.changed.wait(), dual.context.ring.sleep(LOOK, false)).await;
            None
        };
        let received = or(async { Some(link.socket.recv().await) }, woken).await;
        let now_ns = dual.context.ring.now_ns();
        if let Some(received) = received {
            let Some(chunk) = received? else {
                return Err(Broken::Closed);
            };
            let mut offset = 0;
            while offset < chunk.len() {
                let advance = link
                    .framer
                    .advance(&chunk[offset..])
                    .map_err(|error| Broken::Protocol(error.to_string()))?;
                collected.extend_from_slice(&chunk[offset..offset + advance.consumed]);
                offset += advance.consumed;
                if advance.done {
                    take(shadow, &collected, now_ns);
                    collected.clear();
                }
            }
        }
        loop {
            let alone = shadow.matcher.borrow_mut().expired(now_ns);
            let Some(alone) = alone else { break };
            let settled_ns = shadow.ready_ns.get().saturating_add(window_ns);
            if shadow.ready_ns.get() > 0 && alone.since_ns >= settled_ns {
                dual.report_unmatched(alone, client);
            }
        }
    }
}

fn take(shadow: &Shadow, frame: &[u8], now_ns: u64) {
    let is_message = frame.windows(9).take(32).any(|at| at == b"message\r\n");
    if !is_message {
        // A confirmation.
        shadow.ready_ns.set(now_ns);
    } else if shadow.ready_ns.get() > 0 {
        shadow
            .matcher
            .borrow_mut()
            .see(Side::Secondary, frame, now_ns);
    }
}
