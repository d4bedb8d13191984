//! The lanes of a source on a core: opened when somebody needs one, one attempt at a time; closed when nobody does; and what
//! their clients have not read, counted over all cores.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Lane, State, read};
use crate::limits::{
    REDIS_LANE_IDLE_NS, REDIS_LANE_RETRY_NS, REDIS_SPILL_BYTES_MAX, SOCKET_SEND_BYTES,
};
use crate::metrics::OpenConnection;
use crate::proxy::Context;
use crate::proxy::redis::SharedSource;
use crate::proxy::redis::identity::{self, Identity, Unavailable, Wanted};
use crate::proxy::redis::observe::Backend;
use crate::proxy::redis::session::Session;
use crate::ring::{Queue, WaitQueue};

/// What the clients of one lane have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::proxy::redis) struct LaneKey {
    pub backend: Backend,
    pub identity: Option<Identity>,
    pub db: u32,
    pub resp: u8,
}

/// Bytes that clients of all cores have not read, as far as they have more waiting than they should. Off the hot path:
/// only such clients touch it.
static SPILLED: AtomicUsize = AtomicUsize::new(0);

/// The lanes of one source on one core.
#[derive(Default)]
pub struct Lanes {
    slots: RefCell<HashMap<LaneKey, Rc<Slot>>>,
    /// Clients with more replies waiting than they should have.
    spilling: RefCell<Vec<Weak<Session>>>,
    /// What they hold, as counted in [`SPILLED`].
    spilled: Cell<usize>,
    /// What the last connection without credentials has shown.
    wants_login: Cell<bool>,
    /// Lanes that take no commands any more and still owe replies.
    retired: RefCell<Vec<Rc<Lane>>>,
}

/// The place of a lane; at most one connection attempt at a time.
#[derive(Default)]
struct Slot {
    lane: RefCell<Option<Rc<Lane>>>,
    opening: Cell<bool>,
    opened: WaitQueue,
    failure: RefCell<Option<(u64, Unavailable)>>,
}

impl Lanes {
    /// The lane for `key`, opened if there is none.
    pub(in crate::proxy::redis) async fn get(
        context: &Rc<Context>,
        source: &SharedSource,
        key: &LaneKey,
    ) -> Result<Rc<Lane>, Unavailable> {
        let slot = {
            let mut slots = source.lanes.slots.borrow_mut();
            match slots.get(key) {
                Some(slot) => slot.clone(),
                None => slots.entry(key.clone()).or_default().clone(),
            }
        };
        if let Some(lane) = slot.live() {
            return Ok(lane);
        }
        if !slot.opening.get() {
            let recent = context.ring.now_ns().saturating_sub(REDIS_LANE_RETRY_NS);
            if let Some((at_ns, failure)) = &*slot.failure.borrow()
                && *at_ns > recent
            {
                return Err(failure.clone());
            }
            slot.opening.set(true);
            let opening = open(context.clone(), source.clone(), slot.clone(), key.clone());
            context.queues.spawn(Queue::Serve, opening);
        }
        slot.opened.wait().await;
        slot.live().ok_or_else(|| {
            let failure = slot.failure.borrow();
            failure.as_ref().map_or_else(
                || Unavailable::Down("it closed the connection".to_owned()),
                |(_, failure)| failure.clone(),
            )
        })
    }

    /// Whether the backend wants a login before anything else, as far as known.
    pub(in crate::proxy::redis) fn wants_login(&self) -> bool {
        self.wants_login.get()
    }

    /// Closes lanes that nobody has used for long, and forgets the lost ones.
    pub fn sweep(&self, now_ns: u64) {
        if self.spilled.get() > 0 {
            self.count_spilled();
        }
        self.slots.borrow_mut().retain(|_, slot| {
            let unused = match &*slot.lane.borrow() {
                None => true,
                Some(lane) => {
                    let idle = lane.used_ns.get().saturating_add(REDIS_LANE_IDLE_NS) < now_ns;
                    // A client that holds the lane may use it again: two lanes would break the order of its writes.
                    let alone = Rc::strong_count(lane) == 1;
                    !lane.alive.get() || (idle && alone && lane.is_idle())
                }
            };
            slot.opening.get() || !unused || Rc::strong_count(slot) > 1
        });
    }

    /// Lets no later client join the lanes there are: what the server asks of a new connection may have changed.
    pub(in crate::proxy::redis) fn renew(&self) {
        self.slots.borrow_mut().retain(|_, slot| slot.opening.get());
    }

    /// Lets no later command onto a lane on which a huge reply crosses.
    pub(super) fn retire(&self, lane: &Rc<Lane>) {
        lane.alive.set(false);
        lane.retired.set(true);
        self.retired.borrow_mut().push(lane.clone());
    }

    /// Forgets a lane that owes nothing any more.
    pub(super) fn forget(&self, lane: &Rc<Lane>) {
        let other = |other: &Rc<Lane>| !Rc::ptr_eq(other, lane);
        self.retired.borrow_mut().retain(other);
    }

    /// Notes a client whose replies pile up. False: there is no room for more of them.
    pub(in crate::proxy::redis) fn spill(&self, session: &Rc<Session>) -> bool {
        if !session.spilling.replace(true) {
            self.spilling.borrow_mut().push(Rc::downgrade(session));
        }
        self.count_spilled() <= REDIS_SPILL_BYTES_MAX
    }

    /// Counts what clients have not read; the sum over all cores.
    fn count_spilled(&self) -> usize {
        let mut total = 0;
        self.spilling.borrow_mut().retain(|weak| {
            let Some(session) = weak.upgrade() else {
                return false;
            };
            let waiting = session.backlog();
            total += waiting;
            let stays = waiting > SOCKET_SEND_BYTES;
            session.spilling.set(stays);
            stays
        });
        self.publish_spilled(total)
    }

    fn publish_spilled(&self, total: usize) -> usize {
        let more = total.wrapping_sub(self.spilled.replace(total));
        SPILLED
            .fetch_add(more, Ordering::Relaxed)
            .wrapping_add(more)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.publish_spilled(0);
    }
}

impl Slot {
    fn live(&self) -> Option<Rc<Lane>> {
        self.lane.borrow().clone().filter(|lane| lane.is_alive())
    }
}

/// Connects one lane and starts its reader.
async fn open(context: Rc<Context>, source: SharedSource, slot: Rc<Slot>, key: LaneKey) {
    let wanted = Wanted {
        identity: key.identity.as_ref(),
        db: key.db,
        resp: key.resp,
        probe: true,
        ..Wanted::default()
    };
    let database = source.backend(key.backend);
    match identity::establish(&context, &database, &wanted).await {
        Ok(established) => {
            if key.identity.is_none() {
                source.lanes.wants_login.set(established.wants_login);
            }
            let lane = Rc::new(Lane {
                key,
                stream: context.new_client().0,
                context: context.clone(),
                wants_login: established.wants_login,
                source: Rc::downgrade(&source),
                alive: Cell::new(true),
                retired: Cell::new(false),
                used_ns: Cell::new(context.ring.now_ns()),
                state: RefCell::new(State::default()),
                socket: established.socket,
                _open: OpenConnection::of(&source.metrics),
            });
            let reading = read(lane.socket.clone(), Rc::downgrade(&lane));
            context.queues.spawn(Queue::Serve, reading);
            *slot.failure.borrow_mut() = None;
            *slot.lane.borrow_mut() = Some(lane);
        }
        Err(problem) => {
            let error = io::Error::other(problem.clone());
            context.primary_unreachable(&database.name, &error);
            *slot.failure.borrow_mut() = Some((context.ring.now_ns(), problem));
        }
    }
    slot.opening.set(false);
    slot.opened.wake_all();
}
