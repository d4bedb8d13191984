//! The unit: the smallest thing that is mirrored whole.
//!
//! A session owns a [`Draft`] while the unit grows, seals it when the primary has closed it, and
//! shares the sealed [`Unit`] with every mirror that sees it. Nobody changes a sealed unit. The
//! allocation goes back to the [`UnitPool`] with the last of its holders.

use std::cell::{Cell, RefCell};
use std::ops::{BitOr, BitOrAssign, Deref, DerefMut};
use std::rc::Rc;

use smallvec::SmallVec;

use super::payload::Payload;
use crate::limits::{UNIT_KEPT_GROUPS, UNIT_POOL_LEN_MAX};

/// A client of this core; never reused while the process lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(
    /// The number, as logs and admin show it.
    pub u64,
);

/// A set of mirrors of one source; bit `i` is mirror `i`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorSet(
    /// The bits.
    pub u64,
);

impl MirrorSet {
    /// No mirror.
    pub const EMPTY: MirrorSet = MirrorSet(0);

    /// Whether no mirror is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Number of mirrors in it.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether mirror `index` is in it.
    pub const fn contains(self, index: usize) -> bool {
        index < 64 && self.0 & (1 << index) != 0
    }

    /// Adds mirror `index`, which must be below 64.
    pub fn insert(&mut self, index: usize) {
        debug_assert!(index < 64, "the config bounds mirrors");
        self.0 |= 1 << index;
    }

    /// Takes mirror `index` out.
    pub fn remove(&mut self, index: usize) {
        self.0 &= !(1 << index);
    }

    /// The mirrors in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let index = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            (index < 64).then_some(index)
        })
    }
}

/// What a unit may do, as a union over its statements. BEGIN, COMMIT and the like add nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class(u8);

impl Class {
    /// Nothing yet: only transaction control.
    pub const NONE: Class = Class(0);
    /// Reads rows.
    pub const READS: Class = Class(1);
    /// Changes rows.
    pub const WRITES: Class = Class(2);
    /// Changes the schema.
    pub const DDL: Class = Class(4);
    /// May do anything: a function call, DO, what the classifier does not know.
    pub const UNKNOWN: Class = Class(8);

    /// Whether any of `bits` is set.
    pub const fn intersects(self, bits: Class) -> bool {
        self.0 & bits.0 != 0
    }
}

impl BitOr for Class {
    type Output = Class;

    fn bitor(self, other: Class) -> Class {
        Class(self.0 | other.0)
    }
}

impl BitOrAssign for Class {
    fn bitor_assign(&mut self, other: Class) {
        self.0 |= other.0;
    }
}

/// Which units a mirror takes, by what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Every unit.
    #[default]
    All,
    /// Units that read or change rows.
    Dml,
    /// Units that change the schema.
    Ddl,
    /// Units that only read.
    Reads,
    /// Units that change rows or the schema.
    Writes,
}

impl Level {
    /// Whether a unit of this class goes to the mirror. A unit goes whole or not at all, so one
    /// statement of the wanted kind is enough; a unit that may do anything is only kept from
    /// `reads`. A unit of nothing but transaction control goes with `all` alone.
    pub const fn admits(self, class: Class) -> bool {
        const WRITING: Class = Class(Class::WRITES.0 | Class::DDL.0 | Class::UNKNOWN.0);
        match self {
            Level::All => true,
            Level::Dml => {
                class.intersects(Class(Class::READS.0 | Class::WRITES.0 | Class::UNKNOWN.0))
            }
            Level::Ddl => class.intersects(Class(Class::DDL.0 | Class::UNKNOWN.0)),
            Level::Reads => class.intersects(Class::READS) && !class.intersects(WRITING),
            Level::Writes => class.intersects(WRITING),
        }
    }
}

/// A run of messages that arrived together: what pace reproduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Where the run begins in the payload.
    pub offset: usize,
    /// When its first byte arrived.
    pub arrived_ns: u64,
}

/// What the primary made of a unit; the protocol's own type.
pub trait Outcome: Default {
    /// Back to the default value, keeping allocations that an ordinary unit needs again.
    fn reset(&mut self) {
        *self = Self::default();
    }

    /// A control mirror has taken the unit: what it makes of it will be known.
    fn expect_control(&self) {}

    /// Heap memory of this outcome; counts against the ring's byte bound. Must not change once the
    /// unit is sealed.
    fn held_bytes(&self) -> usize {
        0
    }
}

impl Outcome for () {}

/// One transaction of a Postgres client, one request of a Redis client: bytes, when they arrived,
/// and what the primary answered.
#[derive(Debug)]
pub struct Unit<S, O> {
    /// Whose unit it is.
    pub client: ClientId,
    /// What it may do.
    pub class: Class,
    /// The client's own bytes.
    pub payload: Payload<S>,
    /// The message groups, ascending in offset and in time.
    pub groups: SmallVec<[Group; 1]>,
    /// When the first message arrived.
    pub began_ns: u64,
    /// When the primary had closed it.
    pub sealed_ns: u64,
    /// Whether its client pipelines: it does not wait for each answer before it goes on.
    pub pipelined: bool,
    /// What the primary made of it.
    pub outcome: O,
    /// How many rings hold it: the core's memory budget is charged once for all of them.
    pub(super) holders: Cell<u32>,
    /// What it held when it was sealed.
    pub(super) sealed_bytes: usize,
}

impl<S, O: Outcome> Unit<S, O> {
    /// Memory that this unit keeps from other use, itself included. Constant once it is sealed.
    pub fn held_bytes(&self) -> usize {
        let groups = if self.groups.spilled() {
            self.groups.capacity() * size_of::<Group>()
        } else {
            0
        };
        size_of::<Self>() + self.payload.held_bytes() + groups + self.outcome.held_bytes()
    }

    fn empty() -> Self {
        Unit {
            client: ClientId::default(),
            class: Class::NONE,
            payload: Payload::default(),
            groups: SmallVec::new(),
            began_ns: 0,
            sealed_ns: 0,
            pipelined: false,
            outcome: O::default(),
            holders: Cell::new(0),
            sealed_bytes: 0,
        }
    }

    fn clear(&mut self) {
        debug_assert_eq!(self.holders.get(), 0, "a ring forgot a unit");
        self.class = Class::NONE;
        self.pipelined = false;
        self.payload.clear();
        self.groups.clear();
        if self.groups.capacity() > UNIT_KEPT_GROUPS {
            self.groups = SmallVec::new();
        }
        self.outcome.reset();
    }
}

/// A unit that still grows. Its fields are the unit's.
#[derive(Debug)]
pub struct Draft<S, O>(Rc<Unit<S, O>>);

impl<S, O: Outcome> Draft<S, O> {
    /// Notes that the bytes pushed next arrived at `now_ns`, apart from those before.
    pub fn begin_group(&mut self, now_ns: u64) {
        let offset = self.payload.len();
        if self.groups.last().is_none_or(|last| last.offset < offset) {
            self.groups.push(Group {
                offset,
                arrived_ns: now_ns,
            });
        }
    }

    /// Closes the unit. Put the outcome in before.
    pub fn seal(mut self, now_ns: u64) -> Rc<Unit<S, O>> {
        self.sealed_ns = now_ns;
        self.sealed_bytes = self.held_bytes();
        self.0
    }
}

impl<S, O> Deref for Draft<S, O> {
    type Target = Unit<S, O>;

    fn deref(&self) -> &Unit<S, O> {
        &self.0
    }
}

impl<S, O> DerefMut for Draft<S, O> {
    fn deref_mut(&mut self) -> &mut Unit<S, O> {
        Rc::get_mut(&mut self.0).expect("a draft is the only holder of its unit")
    }
}

/// Units for reuse, shared by everything on one core.
#[derive(Debug)]
pub struct UnitPool<S, O>(Rc<RefCell<Kept<S, O>>>);

type Kept<S, O> = Vec<Rc<Unit<S, O>>>;

impl<S, O> Clone for UnitPool<S, O> {
    fn clone(&self) -> Self {
        UnitPool(Rc::clone(&self.0))
    }
}

impl<S, O> Default for UnitPool<S, O> {
    fn default() -> Self {
        UnitPool(Rc::default())
    }
}

impl<S, O: Outcome> UnitPool<S, O> {
    /// An empty unit for `client`, whose first message arrives at `now_ns`.
    pub fn draft(&self, client: ClientId, now_ns: u64) -> Draft<S, O> {
        let kept = self.0.borrow_mut().pop();
        let mut draft = Draft(kept.unwrap_or_else(|| Rc::new(Unit::empty())));
        draft.client = client;
        draft.began_ns = now_ns;
        draft
    }

    /// Shows the unit that a draft soon takes, if it is there already.
    pub fn look_ahead(&self, look: impl FnOnce(&Unit<S, O>)) {
        let kept = self.0.borrow();
        if let Some(unit) = kept.len().checked_sub(2).and_then(|at| kept.get(at)) {
            look(unit);
        }
    }

    /// Gives up a sealed unit; the last holder's allocation is kept.
    pub fn recycle(&self, mut unit: Rc<Unit<S, O>>) {
        if let Some(sole) = Rc::get_mut(&mut unit) {
            sole.clear();
            let mut kept = self.0.borrow_mut();
            if kept.len() < UNIT_POOL_LEN_MAX {
                kept.push(unit);
            }
        }
    }

    /// Gives up a unit that is never sealed.
    pub fn discard(&self, draft: Draft<S, O>) {
        self.recycle(draft.0);
    }

    /// Units ready for reuse.
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Whether the next draft allocates.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_set_lists_its_mirrors_up_to_the_last_bit() {
        let mut set = MirrorSet::EMPTY;
        for index in [0, 5, 63] {
            set.insert(index);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63]);
        set.remove(5);
        assert!(!set.contains(5) && set.contains(63) && !set.contains(64));
        assert_eq!(MirrorSet(u64::MAX).iter().count(), 64);
        assert_eq!(MirrorSet::EMPTY.iter().count(), 0);
    }

    #[test]
    fn unknown_units_are_kept_from_reads_only() {
        use Level::*;
        let unknown = Class::UNKNOWN;
        assert!([All, Dml, Ddl, Writes].iter().all(|l| l.admits(unknown)));
        assert!(!Reads.admits(unknown) && !Reads.admits(Class::READS | unknown));
    }

    #[test]
    fn one_statement_of_the_wanted_kind_brings_the_whole_unit() {
        let mixed = Class::READS | Class::DDL;
        assert!(Level::Ddl.admits(mixed) && Level::Dml.admits(mixed));
        assert!(Level::Writes.admits(mixed) && !Level::Reads.admits(mixed));
        assert!(Level::Reads.admits(Class::READS) && Level::Dml.admits(Class::READS));
        assert!(!Level::Ddl.admits(Class::WRITES) && !Level::Writes.admits(Class::READS));
        assert!(Level::All.admits(Class::NONE) && !Level::Reads.admits(Class::NONE));
    }

    #[test]
    fn the_last_holder_brings_the_allocation_back() {
        let pool = UnitPool::<Rc<[u8]>, ()>::default();
        let mut draft = pool.draft(ClientId(1), 10);
        draft.begin_group(10);
        draft.begin_group(11);
        draft.payload.push_copy(b"SELECT 1");
        draft.begin_group(20);
        assert_eq!(draft.groups.len(), 2);
        let unit = draft.seal(30);
        let address = Rc::as_ptr(&unit);
        let other = Rc::clone(&unit);
        pool.recycle(unit);
        assert!(pool.is_empty());
        pool.recycle(other);
        let next = pool.draft(ClientId(2), 40);
        assert_eq!(std::ptr::from_ref::<Unit<_, _>>(&next), address);
        assert!(next.payload.is_empty() && next.groups.is_empty());
    }
}
