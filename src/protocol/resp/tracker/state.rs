//! The connection as its replies have confirmed it.

use smallvec::SmallVec;

use super::request::{Role, Subscription};
use super::{Discarded, Disposition, ReplyHead, UnitEnd};
use crate::protocol::resp::reply::Reply;

/// Members of one transaction that change the connection (SELECT, HELLO, SUBSCRIBE …). A client that sends more in
/// one MULTI keeps the later ones unnoticed; it ties only its own connection.
const MULTI_ROLES_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Confirmed {
    pub(super) db: u32,
    pub(super) resp: u8,
    pub(super) authenticated: bool,
    pub(super) monitoring: bool,
    pub(super) multi: Option<Multi>,
    watching: bool,
    tracking: bool,
    channels: u64,
    patterns: u64,
    shards: u64,
    exec_rest: u32,
}

/// A transaction that the server has begun.
#[derive(Debug, Default)]
pub(super) struct Multi {
    queued: u32,
    /// What queued members will do to the connection, and which element of EXEC's reply says whether they did.
    roles: SmallVec<[(u32, Role); 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Channel,
    Pattern,
    Shard,
}

/// The first word of a frame of the pub/sub protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Message,
    Subscription(Family, bool),
}

impl Word {
    /// Reads `*3 $9 subscribe …` or the same as a push.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let line_end = memchr::memchr(b'\r', bytes.get(..bytes.len().min(24))?)?;
        let word = bytes.get(line_end + 2..)?.strip_prefix(b"$")?;
        let digits = memchr::memchr(b'\r', word)?;
        let word = word.get(digits + 2..)?;
        let word = &word[..memchr::memchr(b'\r', word.get(..word.len().min(16))?)?];
        Some(match word {
            b"message" | b"pmessage" | b"smessage" => Self::Message,
            b"subscribe" => Self::Subscription(Family::Channel, true),
            b"unsubscribe" => Self::Subscription(Family::Channel, false),
            b"psubscribe" => Self::Subscription(Family::Pattern, true),
            b"punsubscribe" => Self::Subscription(Family::Pattern, false),
            b"ssubscribe" => Self::Subscription(Family::Shard, true),
            b"sunsubscribe" => Self::Subscription(Family::Shard, false),
            _ => return None,
        })
    }

    pub(super) fn subscription(self) -> Option<(Family, bool)> {
        match self {
            Self::Subscription(family, subscribe) => Some((family, subscribe)),
            Self::Message => None,
        }
    }
}

impl Default for Confirmed {
    fn default() -> Self {
        Self {
            db: 0,
            resp: 2,
            authenticated: false,
            monitoring: false,
            multi: None,
            watching: false,
            tracking: false,
            channels: 0,
            patterns: 0,
            shards: 0,
            exec_rest: 0,
        }
    }
}

impl Confirmed {
    pub(super) fn subscriptions(&self) -> u64 {
        self.channels + self.patterns + self.shards
    }

    pub(super) fn is_tied(&self) -> bool {
        self.monitoring
            || self.watching
            || self.tracking
            || self.multi.is_some()
            || self.subscriptions() > 0
    }

    /// The server says nothing at all to a second MONITOR, unless it refuses it to a RESP2 subscriber.
    pub(super) fn ignores(&self, role: Role) -> bool {
        let refused = self.resp == 2 && self.subscriptions() > 0;
        role == Role::Monitor && self.monitoring && self.multi.is_none() && !refused
    }

    /// How many confirmations a subscription command gets.
    pub(super) fn confirmations(&self, asked: Subscription) -> u32 {
        if asked.channels > 0 {
            return asked.channels;
        }
        let all = match asked.family {
            Family::Channel => self.channels,
            Family::Pattern => self.patterns,
            Family::Shard => self.shards,
        };
        u32::try_from(all.max(1)).unwrap_or(u32::MAX)
    }

    /// A confirmation carries the number of subscriptions: of channels and patterns together, or of shard channels.
    pub(super) fn note_confirmation(&mut self, head: ReplyHead<'_>) {
        let Some((family, subscribe)) = Word::of(head.bytes).and_then(Word::subscription) else {
            return;
        };
        let count = if head.whole {
            head.reply()
                .elements()
                .nth(2)
                .and_then(|count| count.integer())
        } else {
            None
        };
        let count = count.and_then(|count| u64::try_from(count).ok());
        let others = match family {
            Family::Channel => self.patterns,
            Family::Pattern => self.channels,
            Family::Shard => 0,
        };
        let mine = match family {
            Family::Channel => &mut self.channels,
            Family::Pattern => &mut self.patterns,
            Family::Shard => &mut self.shards,
        };
        *mine = match count {
            Some(count) => count.saturating_sub(others),
            None if subscribe => mine.saturating_add(1),
            None => mine.saturating_sub(1),
        };
    }

    /// A request that gets no reply has been executed; nobody can say whether it succeeded.
    pub(super) fn apply_silent(&mut self, role: Role) {
        match role {
            Role::Multi => self.multi = Some(Multi::default()),
            Role::Discard => self.multi = None,
            Role::Exec(_) => self.exec_silent(),
            Role::Reset | Role::Quit => self.apply(role),
            other => match &mut self.multi {
                Some(multi) => multi.queue_silent(other),
                None => self.apply(other),
            },
        }
    }

    /// An EXEC whose array is suppressed; confirmations of subscriptions in it are not.
    fn exec_silent(&mut self) {
        self.watching = false;
        for (_, role) in self.multi.take().unwrap_or_default().roles {
            if let Role::Subscription(asked) = role {
                self.exec_rest = self.exec_rest.saturating_add(self.confirmations(asked));
            } else {
                self.apply(role);
            }
        }
    }

    /// The last EXEC's extra frames.
    pub(super) fn take_exec_rest(&mut self) -> u32 {
        std::mem::take(&mut self.exec_rest)
    }

    /// The reply to a request: updates the state and says what becomes of the unit.
    pub(super) fn settle(
        &mut self,
        role: Role,
        disposition: Disposition,
        head: ReplyHead<'_>,
    ) -> UnitEnd {
        let error = head.is_error();
        if !error && !matches!(role, Role::Open | Role::Reset | Role::Quit) {
            self.authenticated = true;
        }
        match role {
            Role::Exec(excluded) => return self.settle_exec(excluded, disposition, head),
            Role::Discard if !error => {
                self.multi = None;
                self.watching = false;
                return in_unit(disposition, UnitEnd::Discarded(Discarded::ByClient));
            }
            Role::Reset | Role::Quit if !error => {
                self.apply(role);
                return in_unit(disposition, UnitEnd::Discarded(Discarded::ByClient));
            }
            Role::Multi if self.multi.is_none() => {
                if error {
                    return UnitEnd::Discarded(Discarded::MultiRefused);
                }
                self.multi = Some(Multi::default());
                return UnitEnd::Open;
            }
            _ => {}
        }
        if let Some(multi) = &mut self.multi {
            if head.is_queued() {
                multi.queue(role);
            }
            return match disposition {
                Disposition::Mirror => UnitEnd::Misjudged,
                Disposition::TxnMember => UnitEnd::Open,
                Disposition::NotMirrored(_) => UnitEnd::NotAUnit,
            };
        }
        if !error {
            self.apply(role);
        }
        match disposition {
            Disposition::Mirror => UnitEnd::Complete { error },
            Disposition::TxnMember => UnitEnd::Stray { error },
            Disposition::NotMirrored(_) => UnitEnd::NotAUnit,
        }
    }

    fn settle_exec(
        &mut self,
        excluded: Option<super::NotMirrored>,
        disposition: Disposition,
        head: ReplyHead<'_>,
    ) -> UnitEnd {
        self.watching = false;
        let Some(multi) = self.multi.take() else {
            // EXEC without MULTI, or the MULTI had been refused.
            return in_unit(disposition, UnitEnd::Discarded(Discarded::MultiRefused));
        };
        if head.is_error() {
            return in_unit(disposition, UnitEnd::Discarded(Discarded::Aborted));
        }
        if head.is_nil() {
            return in_unit(disposition, UnitEnd::Discarded(Discarded::WatchedKey));
        }
        self.apply_queued(&multi, head);
        match excluded {
            Some(reason) => in_unit(disposition, UnitEnd::Excluded(reason)),
            None => in_unit(disposition, UnitEnd::Committed),
        }
    }

    /// What the members did to the connection. Where EXEC's reply is not at hand as a whole they count as successful.
    fn apply_queued(&mut self, multi: &Multi, head: ReplyHead<'_>) {
        for (index, role) in &multi.roles {
            if let Role::Subscription(asked) = role {
                // The array holds one frame per member; further confirmations of a member follow behind.
                self.exec_rest = self
                    .exec_rest
                    .saturating_add(self.confirmations(*asked) - 1);
            } else if !(head.whole && element_is_error(head.reply(), *index)) {
                self.apply(*role);
            }
        }
        if head.whole
            && multi
                .roles
                .iter()
                .any(|(_, role)| matches!(role, Role::Subscription(_)))
        {
            for element in head.reply().elements() {
                self.note_confirmation(ReplyHead::whole(element.bytes()));
            }
        }
    }

    fn apply(&mut self, role: Role) {
        match role {
            Role::Select(db) => self.db = db,
            Role::Hello(Some(resp)) => self.resp = resp,
            Role::Monitor => self.monitoring = true,
            Role::Watch => self.watching = true,
            Role::Unwatch => self.watching = false,
            Role::Tracking(on) => self.tracking = on,
            Role::Auth => self.authenticated = true,
            // Back to the state of a fresh connection; subscriptions end without a confirmation.
            Role::Reset => *self = Self::default(),
            Role::Quit => self.multi = None,
            _ => {}
        }
    }
}

impl Multi {
    fn queue(&mut self, role: Role) {
        if !matches!(role, Role::Plain | Role::Open) && self.roles.len() < MULTI_ROLES_MAX {
            self.roles.push((self.queued, role));
        }
        self.queued = self.queued.saturating_add(1);
    }

    /// Nobody knows which element of EXEC's reply belongs to a member that was queued without a reply.
    fn queue_silent(&mut self, role: Role) {
        if self.roles.len() < MULTI_ROLES_MAX {
            self.roles.push((u32::MAX, role));
        }
    }
}

fn element_is_error(reply: Reply<'_>, index: u32) -> bool {
    reply
        .elements()
        .nth(index as usize)
        .is_some_and(|element| element.is_error())
}

/// An end of a unit counts only for a request that belongs to one.
fn in_unit(disposition: Disposition, end: UnitEnd) -> UnitEnd {
    match disposition {
        Disposition::TxnMember => end,
        Disposition::Mirror => UnitEnd::Misjudged,
        Disposition::NotMirrored(_) => UnitEnd::NotAUnit,
    }
}
