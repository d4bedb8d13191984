//! Changes the mode while clients go on.
//!
//! Where the same backend stays in front the mode changes at once. Where the backends change places, the one that comes
//! to the front must hold everything first: writes go on to both until next to nothing is queued or tainted, then clients
//! wait for the few milliseconds in which the last answers come and the last writes and copies arrive, and go on there.
//! A key that is written all the time finds the quiet for its copy only then.

use std::rc::Rc;
use std::time::Duration;

use super::Dual;
use crate::config::RedisMode;
use crate::limits::REPAIR_BATCH;

/// How often the state is looked at while a change of places waits.
const POLL: Duration = Duration::from_millis(2);
/// The longest that clients wait.
const HOLD_MAX: Duration = Duration::from_millis(500);
/// A command that takes longer than this at the backend in front is not waited for: see [`super::late`].
const OUTSTANDING_MAX: Duration = Duration::from_millis(100);
/// A queue this short is emptied within a moment.
const NEARLY_EMPTY: usize = 256;

/// Follows the mode that is wanted until it is in force.
pub(super) async fn run(dual: Rc<Dual>) {
    while dual.mode.get() != dual.wanted.get() && !dual.retired.get() {
        let (mode, wanted) = (dual.mode.get(), dual.wanted.get());
        if mode.serves_secondary() == wanted.serves_secondary() {
            dual.enter(wanted);
            continue;
        }
        if !mode.writes_both() {
            // The backend that comes to the front has to catch up first.
            dual.enter(if mode.serves_secondary() {
                RedisMode::SecondaryPrimary
            } else {
                RedisMode::DualWrite
            });
        }
        if !dual.nearly_synced() {
            dual.context.ring.sleep(POLL * 5, false).await;
            continue;
        }
        dual.change_places(wanted).await;
    }
    dual.switching.set(false);
}

impl Dual {
    fn enter(&self, mode: RedisMode) {
        tracing::info!(source = self.source, before = %self.mode.get(), %mode, "the mode changes");
        self.mode.set(mode);
        self.note_gauges();
        self.work.wake_all();
        self.chores.wake_all();
    }

    fn nearly_synced(&self) -> bool {
        let state = self.state.borrow();
        let taint = &state.queue.taint;
        let few = !taint.is_all() && taint.len() <= REPAIR_BATCH;
        (few || !self.options.borrow().repair) && state.queue.len() < NEARLY_EMPTY
    }

    async fn change_places(&self, wanted: RedisMode) {
        self.held.set(true);
        let since_ns = self.context.ring.now_ns();
        let in_time = loop {
            let synced = {
                let mut state = self.state.borrow_mut();
                state.queue.taint.hurry();
                let repaired = state.queue.taint.is_empty() || !self.options.borrow().repair;
                state.queue.is_idle() && repaired && !self.applying.get()
            };
            let held_ns = self.context.ring.now_ns().saturating_sub(since_ns);
            let late = held_ns > super::nanos(HOLD_MAX);
            let answered = self.outstanding.get() == 0 || held_ns > super::nanos(OUTSTANDING_MAX);
            if synced && answered {
                break true;
            }
            if late || self.wanted.get() != wanted || self.retired.get() {
                break false;
            }
            self.context.ring.sleep(POLL, true).await;
        };
        if in_time {
            self.outstanding.set(0);
            self.enter(wanted);
            // The worker's connection leads to the backend that is in front now.
            self.end_connection();
        }
        self.held.set(false);
        self.gate.wake_all();
        if !in_time {
            self.context.ring.sleep(POLL * 25, false).await;
        }
    }
}
