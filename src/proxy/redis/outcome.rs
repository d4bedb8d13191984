//! What a unit carries besides its bytes: the primary's reply and what a mirror connection must be like.

use smallvec::SmallVec;

use crate::mirror::unit::Outcome;
use crate::protocol::resp::{Command, CommandCategory};

/// Bytes of a reply that lie in the unit itself: a status, a number, a short value. See [`crate::limits::PAYLOAD_INLINE_BYTES`].
const REPLY_INLINE: usize = 96;
/// Memory for a reply that a unit keeps when it is used again.
const REPLY_KEPT: usize = 1024;

/// The primary's side of a unit.
#[derive(Debug, Default)]
pub struct RedisOutcome {
    /// The reply that is compared: that of the command, or of EXEC. Empty if it was larger than
    /// [`crate::limits::REDIS_COMPARE_BYTES`].
    pub reply: SmallVec<[u8; REPLY_INLINE]>,
    /// Replies that the mirror will send: one for each command of the unit.
    pub replies: u32,
    /// The database the client had selected.
    pub db: u32,
    /// The command; of a transaction its MULTI. `None`: the table does not know it.
    pub command: Option<&'static Command>,
    /// The RESP version the client had negotiated: 2 or 3.
    pub resp: u8,
    /// From the command's arrival to its reply at the primary.
    pub latency_ns: u64,
}

impl Outcome for RedisOutcome {
    fn reset(&mut self) {
        self.reply.clear();
        if self.reply.capacity() > REPLY_KEPT {
            self.reply = SmallVec::new();
        }
        self.replies = 0;
        self.db = 0;
        self.command = None;
        self.resp = 0;
        self.latency_ns = 0;
    }

    fn held_bytes(&self) -> usize {
        if self.reply.spilled() {
            self.reply.capacity()
        } else {
            0
        }
    }
}

/// Whether a command is booked as a write.
pub fn is_write(command: Option<&Command>) -> bool {
    command.is_none_or(|command| {
        matches!(
            command.category(),
            CommandCategory::Write | CommandCategory::Script | CommandCategory::Blocking
        )
    })
}
