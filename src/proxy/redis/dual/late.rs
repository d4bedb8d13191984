//! What the backend that was in front answers after the backends have changed places: a pop that waited, a script that
//! ran long, a transaction that had begun. It took place there, so the backend that is in front now gets it too, over a
//! connection of our own; behind what it has meanwhile been written, the keys are copied to the one that follows.

use std::rc::Rc;

use super::super::numbers;
use super::link::{Broken, Link};
use super::{Dual, admit};
use crate::mirror::dual::keys;
use crate::mirror::dual::queue::{Item, Kind};
use crate::mirror::dual::scripts::with_body;
use crate::protocol::resp::Request;
use crate::proxy::backoff::Backoff;
use crate::proxy::redis::observe::Observer as _;
use crate::ring::Queue;

impl Dual {
    /// An item of the backend that is not in front any more.
    pub(super) fn take_late(self: &Rc<Self>, item: Box<Item>) {
        if item.kind.writes() && admit::writes(&item.request) {
            self.late.borrow_mut().push_back(item);
            if !self.applying.replace(true) {
                self.context.queues.spawn(Queue::Mirror, run(self.clone()));
            }
        } else {
            self.state.borrow_mut().queue.recycle(item);
        }
    }
}

/// Applies what is there, in order.
async fn run(dual: Rc<Dual>) {
    let mut backoff = Backoff::default();
    let mut link = None;
    while !dual.retired.get() {
        let Some(item) = dual.late.borrow_mut().pop_front() else {
            break;
        };
        let front = dual.front();
        while link.is_none() && !dual.retired.get() {
            match Link::open(&dual.context, dual.at(front)).await {
                Ok(open) => link = Some(open),
                Err(problem) => {
                    backoff.complain(&dual.at(front).name, &problem);
                    backoff.pause(&dual.context, || dual.retired.get()).await;
                }
            }
        }
        let Some(open) = &mut link else { break };
        if let Err(problem) = apply(&dual, open, &item).await {
            // It may have been applied: once more would be twice.
            tracing::error!(source = dual.source, reason = %problem, "a late write may be missing at the backend in front");
            dual.tell_failure("late", "", &problem);
            link = None;
        }
        let queue = &mut dual.state.borrow_mut().queue;
        queue.taint_unit(&item.request, item.db);
        queue.recycle(item);
        dual.chores.wake_all();
        dual.work.wake_one();
    }
    dual.applying.set(false);
    dual.gate.wake_all();
}

async fn apply(dual: &Dual, link: &mut Link, item: &Item) -> Result<(), Broken> {
    let limit = match item.kind {
        Kind::Script => dual.options.borrow().script_timeout,
        _ => dual.options.borrow().secondary_timeout,
    };
    let db = numbers::database(item.db, dual.leader().db);
    link.select(&dual.context, db, limit).await?;
    let mut bytes = Vec::new();
    for frame in keys::commands(item.bytes()) {
        let request = Request::parse(frame);
        match dual.state.borrow().scripts.body(&request) {
            Some(body) => with_body(&request, body, &mut bytes),
            None => bytes.extend_from_slice(frame),
        }
    }
    let replies = item.replies() as usize;
    let answers = link.call(&dual.context, &bytes, replies, limit).await?;
    if item.commands > 1 {
        // It may have selected another database.
        link.db = None;
    }
    match answers
        .iter()
        .find(|answer| matches!(answer.first(), Some(b'-' | b'!')))
    {
        Some(refusal) => {
            let text = String::from_utf8_lossy(refusal).trim_end().to_owned();
            dual.tell_failure("late", "", &text);
            Ok(())
        }
        None => Ok(()),
    }
}
