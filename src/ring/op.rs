//! What the kernel is asked to do, and for which socket: the user data of an operation.

/// What an operation is for; the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    Receive = 1,
    Send = 2,
    Connect = 3,
    Accept = 4,
    Cancel = 5,
    Tick = 6,
    Doorbell = 7,
    /// The second ring has something to do.
    Aside = 8,
}

impl Op {
    pub(super) fn of(user_data: u64) -> Option<Op> {
        [
            Op::Receive,
            Op::Send,
            Op::Connect,
            Op::Accept,
            Op::Cancel,
            Op::Tick,
            Op::Doorbell,
            Op::Aside,
        ]
        .into_iter()
        .find(|op| *op as u64 == user_data >> 56)
    }
}

pub(super) const GENERATION_MASK: u32 = 0x00ff_ffff;

/// Names one use of one slot: a completion of an earlier use is told apart by the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl Key {
    pub(super) const fn user_data(self, op: Op) -> u64 {
        (op as u64) << 56 | (self.generation as u64) << 32 | self.slot as u64
    }

    pub(super) fn of(user_data: u64) -> Key {
        Key {
            slot: user_data as u32,
            generation: (user_data >> 32) as u32 & GENERATION_MASK,
        }
    }
}
