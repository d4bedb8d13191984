//! What waits for the secondary, and what is on its way there: first in, first out, bounded in items and bytes.
//!
//! Every item ends exactly once, and what was not applied for certain taints its keys. Items are kept for reuse, so
//! that the steady state allocates nothing.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use smallvec::SmallVec;

use super::keys::{self, Scope};
use super::taint::{HashIsHash, TaintSet};
use crate::limits::{DUAL_KEPT_BYTES, DUAL_SPARE_ITEMS_MAX};
use crate::mirror::ledger::{DropReason, Fate, Ledger};
use crate::mirror::unit::ClientId;
use crate::protocol::resp::Command;
use crate::protocol::resp::effects::Expected;

/// What an item is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A write, or a transaction.
    #[default]
    Write,
    /// A script or function: may take longer.
    Script,
    /// A shadow read.
    Read,
    /// A shadow read once more, after a mismatch; of this number.
    Reread(u64),
    /// A copy of a tainted key.
    Repair(u64),
    /// A short-timeout version of a blocking command; its reply says nothing.
    Warmup,
}

impl Kind {
    /// Whether losing it loses data.
    pub fn writes(self) -> bool {
        matches!(self, Kind::Write | Kind::Script | Kind::Repair(_))
    }

    /// A write of a client, not one of ours.
    pub fn is_clients_write(self) -> bool {
        matches!(self, Kind::Write | Kind::Script)
    }

    /// Whether the ledger knows it: what a client sent, not what we add.
    fn is_booked(self) -> bool {
        matches!(self, Kind::Write | Kind::Script | Kind::Read)
    }
}

/// One step for the secondary.
#[derive(Debug, Default)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// What the client sent: one command, or MULTI … EXEC.
    pub request: Vec<u8>,
    /// Number of commands in `request`.
    pub commands: u32,
    /// What goes to the secondary; empty: the request itself.
    pub rewritten: Vec<u8>,
    /// What each command that goes to the secondary must be answered with; empty: what the primary answered.
    pub expected: SmallVec<[Expected; 2]>,
    /// The whole of `rewritten` stands between MULTI and EXEC.
    pub block: bool,
    /// The primary's reply; empty if it is not compared.
    pub reply: Vec<u8>,
    /// The client's database.
    pub db: u32,
    /// Whose it was.
    pub client: ClientId,
    /// When it was queued.
    pub queued_ns: u64,
    /// From the command's arrival to the primary's reply.
    pub latency_ns: u64,
    /// When the primary's reply arrived.
    pub answered_ns: u64,
    /// When a key of it ends, if the primary may have executed it before that: milliseconds since 1970.
    pub ends_ms: Option<u64>,
    /// The command; of a transaction its MULTI. `None`: the table does not know it.
    pub command: Option<&'static Command>,
    /// Its place among other writes is not sure enough for a reply that differs to prove anything.
    pub raced: bool,
}

impl Item {
    /// The bytes that go to the secondary.
    pub fn bytes(&self) -> &[u8] {
        if self.rewritten.is_empty() {
            &self.request
        } else {
            &self.rewritten
        }
    }

    /// Replies that the secondary will send.
    pub fn replies(&self) -> u32 {
        match (self.rewritten.is_empty(), self.block) {
            (true, _) => self.commands,
            // A few per command; never near 2^32.
            (false, false) => self.expected.len() as u32,
            (false, true) => self.expected.len() as u32 + 2,
        }
    }

    fn held_bytes(&self) -> usize {
        self.request.len() + self.rewritten.len() + self.reply.len() + size_of::<Item>()
    }

    fn reset(&mut self) {
        for buffer in [&mut self.request, &mut self.rewritten, &mut self.reply] {
            buffer.clear();
            buffer.shrink_to(DUAL_KEPT_BYTES);
        }
        self.expected.clear();
        self.expected.shrink_to_fit();
        *self = Item {
            request: std::mem::take(&mut self.request),
            rewritten: std::mem::take(&mut self.rewritten),
            reply: std::mem::take(&mut self.reply),
            ..Item::default()
        };
    }
}

/// On its way to the secondary.
#[derive(Debug)]
struct Flight {
    item: Box<Item>,
    replies_left: u32,
    sent_ns: u64,
}

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualBounds {
    /// Items.
    pub items: usize,
    /// Bytes of requests and replies.
    pub bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct DualQueue {
    waiting: VecDeque<Box<Item>>,
    flying: VecDeque<Flight>,
    #[allow(
        clippy::vec_box,
        reason = "the boxes move between the queue and here, items do not"
    )]
    spare: Vec<Box<Item>>,
    bounds: DualBounds,
    bytes: usize,
    ledger: Arc<Ledger>,
    /// Copies that are queued or on their way, by key.
    repairing: HashMap<u64, u32, BuildHasherDefault<HashIsHash>>,
    /// What the secondary may hold wrongly.
    pub taint: TaintSet,
}

impl DualQueue {
    /// An empty queue. The ledger is this queue's alone.
    pub fn new(bounds: DualBounds, ledger: Arc<Ledger>) -> DualQueue {
        DualQueue {
            waiting: VecDeque::new(),
            flying: VecDeque::new(),
            spare: Vec::new(),
            bounds,
            bytes: 0,
            ledger,
            repairing: HashMap::default(),
            taint: TaintSet::default(),
        }
    }

    /// An empty item, to be filled and offered.
    pub fn item(&mut self) -> Box<Item> {
        self.spare.pop().unwrap_or_default()
    }

    /// Gives an item back that is not offered.
    pub fn recycle(&mut self, mut item: Box<Item>) {
        if self.spare.len() < DUAL_SPARE_ITEMS_MAX {
            item.reset();
            self.spare.push(item);
        }
    }

    /// Changes the bounds. What waits beyond smaller ones stays.
    pub fn set_bounds(&mut self, bounds: DualBounds) {
        self.bounds = bounds;
    }

    /// Queues an item or drops it whole. A write that is dropped taints its keys. Reads take no more than half of the
    /// room, so that they never cost a write.
    pub fn offer(&mut self, item: Box<Item>) -> Result<(), DropReason> {
        if item.kind.is_booked() {
            self.ledger.offer();
        }
        let share = if item.kind.writes() { 1 } else { 2 };
        let bytes = item.held_bytes();
        let reason = if bytes > self.bounds.bytes / share {
            DropReason::Oversize
        } else if self.waiting.len() >= self.bounds.items / share
            || self.bytes + bytes > self.bounds.bytes / share
        {
            DropReason::QueueFull
        } else {
            self.bytes += bytes;
            if let Kind::Repair(key) = item.kind {
                *self.repairing.entry(key).or_default() += 1;
            }
            self.waiting.push_back(item);
            return Ok(());
        };
        self.finish(item, Fate::Dropped(reason));
        Err(reason)
    }

    /// Books a write whose bytes could not be kept, and of which only the first ones are here.
    pub fn refuse(&mut self, head: &[u8], db: u32, reason: DropReason) {
        self.ledger.offer();
        self.ledger.settle(Fate::Dropped(reason));
        let request = crate::protocol::resp::Request::parse_prefix(head);
        if request.is_empty() {
            self.taint.add_all();
        } else {
            self.taint_unit(head, db);
        }
    }

    /// Books what never goes to the secondary.
    pub fn exclude(&self) {
        self.ledger.exclude();
    }

    /// Books what the draw left out.
    pub fn leave_unexposed(&self) {
        self.ledger.leave_unexposed();
    }

    /// The next item to send; it is on its way from now on. The caller sends [`Item::bytes`].
    pub fn send_next(&mut self, now_ns: u64) -> Option<&Item> {
        let item = self.waiting.pop_front()?;
        self.bytes -= item.held_bytes();
        let replies_left = item.replies();
        self.flying.push_back(Flight {
            item,
            replies_left,
            sent_ns: now_ns,
        });
        self.flying.back().map(|flight| &*flight.item)
    }

    /// What [`DualQueue::send_next`] would give.
    pub fn front(&self) -> Option<&Item> {
        self.waiting.front().map(|item| &**item)
    }

    /// Drops the item in front without sending it.
    pub fn drop_front(&mut self, reason: DropReason) {
        if let Some(item) = self.waiting.pop_front() {
            self.bytes -= item.held_bytes();
            self.end(item, Fate::Dropped(reason));
        }
    }

    /// The item whose reply comes next, which of its replies that is (from 0), and when it was sent.
    pub fn expecting(&self) -> Option<(&Item, u32, u64)> {
        let flight = self.flying.front()?;
        let index = flight.item.replies() - flight.replies_left;
        Some((&flight.item, index, flight.sent_ns))
    }

    /// A reply was read. Gives the item if it was its last one; the caller ends it with [`DualQueue::delivered`].
    pub fn replied(&mut self) -> Option<Box<Item>> {
        let flight = self.flying.front_mut()?;
        flight.replies_left = flight.replies_left.saturating_sub(1);
        if flight.replies_left > 0 {
            return None;
        }
        self.flying.pop_front().map(|flight| flight.item)
    }

    /// Whether a comparison of this key says nothing: it is tainted, or its copy has not arrived. What is in front of
    /// the copy was queued when the key was in doubt.
    pub fn in_doubt(&self, key: u64) -> bool {
        self.taint.contains(key) || self.repairing.contains_key(&key)
    }

    /// Ends an item that [`DualQueue::replied`] gave. A write that the secondary `failed` taints its keys.
    pub fn delivered(&mut self, item: Box<Item>, failed: bool) {
        if item.kind.is_booked() {
            self.ledger.settle(Fate::Delivered);
        }
        self.forget_copy(item.kind);
        if failed && item.kind.writes() {
            self.taint_unit(&item.request, item.db);
        }
        self.recycle(item);
    }

    /// The connection is gone: the outcome of what was on its way is unknown, and its keys are tainted.
    pub fn broken(&mut self) -> usize {
        let lost = self.flying.len();
        while let Some(flight) = self.flying.pop_front() {
            self.end(flight.item, Fate::Errored);
        }
        lost
    }

    /// Drops everything that waits.
    pub fn drop_waiting(&mut self, reason: DropReason) -> usize {
        let dropped = self.waiting.len();
        while !self.waiting.is_empty() {
            self.drop_front(reason);
        }
        dropped
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Items on their way.
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// The items on their way.
    pub fn flying(&self) -> impl Iterator<Item = &Item> {
        self.flying.iter().map(|flight| &*flight.item)
    }

    /// Nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Taints the keys of a unit.
    pub fn taint_unit(&mut self, unit: &[u8], db: u32) {
        if keys::visit(unit, db, |db, key| self.taint.add(db, key)) == Scope::Everything {
            self.taint.add_all();
        }
    }

    /// A copy that was queued is over.
    fn forget_copy(&mut self, kind: Kind) {
        if let Kind::Repair(key) = kind
            && let Some(count) = self.repairing.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                self.repairing.remove(&key);
            }
        }
    }

    fn end(&mut self, item: Box<Item>, fate: Fate) {
        self.forget_copy(item.kind);
        self.finish(item, fate);
    }

    fn finish(&mut self, item: Box<Item>, fate: Fate) {
        if item.kind.is_booked() {
            self.ledger.settle(fate);
        }
        if item.kind.writes() {
            self.taint_unit(&item.request, item.db);
        }
        self.recycle(item);
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::hash;
    use super::*;

    fn queue(items: usize) -> DualQueue {
        DualQueue::new(
            DualBounds {
                items,
                bytes: 1 << 20,
            },
            Arc::default(),
        )
    }

    fn write(queue: &mut DualQueue, text: &str) -> Result<(), DropReason> {
        let mut item = queue.item();
        item.request.extend_from_slice(text.as_bytes());
        item.request.extend_from_slice(b"\r\n");
        item.commands = 1;
        queue.offer(item)
    }

    #[test]
    fn what_is_dropped_or_lost_taints_its_keys_and_the_ledger_balances() {
        let mut queue = queue(2);
        write(&mut queue, "SET a 1").unwrap();
        write(&mut queue, "SET b 1").unwrap();
        assert_eq!(write(&mut queue, "SET c 1"), Err(DropReason::QueueFull));
        assert!(queue.taint.contains(hash(0, b"c")) && !queue.taint.contains(hash(0, b"a")));
        assert_eq!(queue.send_next(5).unwrap().bytes(), b"SET a 1\r\n");
        assert_eq!(queue.broken(), 1);
        assert!(queue.taint.contains(hash(0, b"a")));
        queue.send_next(6).unwrap();
        let item = queue.replied().unwrap();
        queue.delivered(item, true);
        assert!(
            queue.taint.contains(hash(0, b"b")),
            "the secondary refused it"
        );
        let books = queue.ledger.snapshot();
        assert!(books.balances() && books.in_flight() == 0);
        assert_eq!(
            (books.delivered, books.errored, books.dropped_total()),
            (1, 1, 1)
        );
        assert!(queue.is_idle() && queue.bytes() == 0);
    }

    #[test]
    fn reads_never_cost_a_write_its_room() {
        let mut queue = queue(4);
        for expected in [true, true, false] {
            let mut item = queue.item();
            item.kind = Kind::Read;
            item.request.extend_from_slice(b"GET a\r\n");
            assert_eq!(queue.offer(item).is_ok(), expected);
        }
        assert!(write(&mut queue, "SET a 1").is_ok() && write(&mut queue, "SET a 1").is_ok());
        assert!(queue.taint.is_empty());
    }
}
