//! What a request will do to the connection, judged before its reply is known.

use super::state::Family;
use super::{Disposition, Entry, NotMirrored, Tracker};
use crate::protocol::resp::command::{Command, CommandCategory, lookup_request};
use crate::protocol::resp::request::Request;

/// What a request does to the connection if it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Plain,
    /// Allowed without a login: its success says nothing about one.
    Open,
    Multi,
    /// With the reason why the transaction is not mirrored, if there is one.
    Exec(Option<NotMirrored>),
    Discard,
    Watch,
    Unwatch,
    Auth,
    Hello(Option<u8>),
    Select(u32),
    Subscription(Subscription),
    Monitor,
    Tracking(bool),
    Reset,
    Quit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) family: Family,
    pub(super) subscribe: bool,
    /// Channels named; 0 (unsubscribe only) means all.
    pub(super) channels: u32,
}

/// The connection as it will be when everything sent so far has succeeded.
#[derive(Debug, Default)]
pub(super) struct Prediction {
    pub(super) transaction: Option<Transaction>,
    pub(super) quitting: bool,
    /// In RESP2 a subscriber may say nothing but what concerns subscriptions: CLIENT REPLY is refused, with an error.
    /// Stays set behind a pipelined UNSUBSCRIBE: whether any subscription is left is known only with the replies.
    subscriber: bool,
    reply_mode: ReplyMode,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Transaction {
    /// MULTI itself gets a reply.
    visible: bool,
    excluded: Option<NotMirrored>,
}

/// CLIENT REPLY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ReplyMode {
    #[default]
    On,
    Off,
    /// The next command gets no reply.
    Skip,
}

impl Prediction {
    pub(super) fn is_silent(&self) -> bool {
        self.reply_mode != ReplyMode::On
    }
}

impl<T> Tracker<T> {
    /// A request goes to the server.
    ///
    /// With [`NotMirrored::NoReply`] or [`NotMirrored::AfterQuit`] no reply will come for it and the tag is dropped.
    pub fn request(&mut self, request: &Request<'_>, tag: T) -> Disposition {
        if self.queue.is_empty() {
            self.align_prediction();
        }
        if self.prediction.quitting {
            return Disposition::NotMirrored(NotMirrored::AfterQuit);
        }
        if request.is_empty() {
            return Disposition::NotMirrored(NotMirrored::NoReply);
        }
        let command = lookup_request(request);
        if let Some(mode) = self.reply_mode_of(command, request) {
            self.prediction.reply_mode = mode;
            if mode != ReplyMode::On {
                return Disposition::NotMirrored(NotMirrored::NoReply);
            }
        }
        let role = command.map_or(Role::Plain, |command| role_of(command, request));
        // RESET answers even after CLIENT REPLY OFF, but not right behind a SKIP.
        if role == Role::Reset && self.prediction.reply_mode == ReplyMode::Off {
            self.prediction.reply_mode = ReplyMode::On;
        }
        let silent = self.prediction.is_silent();
        if self.prediction.reply_mode == ReplyMode::Skip {
            self.prediction.reply_mode = ReplyMode::On;
        }
        let (role, disposition) = self.predict(command, request, role, silent);
        if silent {
            self.enqueue_silent(role);
            return Disposition::NotMirrored(NotMirrored::NoReply);
        }
        self.queue.push_back(Entry {
            tag: Some(tag),
            role,
            disposition,
            confirmations_left: 0,
        });
        disposition
    }

    /// With nothing outstanding the truth is known.
    fn align_prediction(&mut self) {
        self.prediction.subscriber = self.confirmed.resp == 2 && self.confirmed.subscriptions() > 0;
        match (&self.confirmed.multi, self.prediction.transaction) {
            (None, Some(_)) => self.prediction.transaction = None,
            (Some(_), None) => {
                let excluded = Some(NotMirrored::ConnectionState);
                self.prediction.transaction = Some(Transaction {
                    visible: true,
                    excluded,
                });
            }
            _ => {}
        }
    }

    /// A request without a reply only matters if it changes the state.
    fn enqueue_silent(&mut self, role: Role) {
        if matches!(role, Role::Plain | Role::Open) {
            return;
        }
        let confirmed_later =
            matches!(role, Role::Subscription(_)) && self.prediction.transaction.is_none();
        if self.queue.is_empty() && !confirmed_later {
            self.confirmed.apply_silent(role);
            self.exec_rest = self
                .exec_rest
                .saturating_add(self.confirmed.take_exec_rest());
            return;
        }
        let disposition = Disposition::NotMirrored(NotMirrored::NoReply);
        self.queue.push_back(Entry {
            tag: None,
            role,
            disposition,
            confirmations_left: 0,
        });
    }

    /// The mode that a valid CLIENT REPLY sets. Inside MULTI it is only queued.
    fn reply_mode_of(&self, command: Option<&Command>, request: &Request<'_>) -> Option<ReplyMode> {
        let command = command.filter(|command| command.name() == "CLIENT")?;
        let refused = self.prediction.transaction.is_some() || self.prediction.subscriber;
        if command.sub() != "REPLY" || request.len() != 3 || refused {
            return None;
        }
        if request.arg_is(2, b"ON") {
            Some(ReplyMode::On)
        } else if request.arg_is(2, b"OFF") {
            Some(ReplyMode::Off)
        } else if request.arg_is(2, b"SKIP") {
            // After OFF it changes nothing.
            let off = self.prediction.reply_mode == ReplyMode::Off;
            Some(if off { ReplyMode::Off } else { ReplyMode::Skip })
        } else {
            None
        }
    }

    fn predict(
        &mut self,
        command: Option<&Command>,
        request: &Request<'_>,
        role: Role,
        silent: bool,
    ) -> (Role, Disposition) {
        self.prediction.quitting |= role == Role::Quit;
        match role {
            Role::Subscription(asked) if asked.subscribe && self.confirmed.resp == 2 => {
                self.prediction.subscriber = true;
            }
            Role::Reset => self.prediction.subscriber = false,
            _ => {}
        }
        let Some(mut transaction) = self.prediction.transaction else {
            if role == Role::Multi {
                let fresh = Transaction {
                    visible: !silent,
                    excluded: None,
                };
                self.prediction.transaction = Some(fresh);
            }
            return (role, disposition_of(command, request, role));
        };
        let role = match role {
            Role::Exec(_) => Role::Exec(transaction.excluded),
            // Refused inside a transaction.
            Role::Multi | Role::Watch => Role::Open,
            other => other,
        };
        if matches!(
            role,
            Role::Exec(_) | Role::Discard | Role::Reset | Role::Quit
        ) {
            self.prediction.transaction = None;
        } else if let Some(reason) = excludes(command, request) {
            transaction.excluded.get_or_insert(reason);
            self.prediction.transaction = Some(transaction);
        }
        if transaction.visible {
            (role, Disposition::TxnMember)
        } else {
            (
                role,
                Disposition::NotMirrored(NotMirrored::SilentTransaction),
            )
        }
    }
}

fn role_of(command: &Command, request: &Request<'_>) -> Role {
    // All commands that change a connection are flagged, so that the others cost nothing here.
    if !command.pins() && !command.is_connection_state() {
        return Role::Plain;
    }
    let exact = request.len() == 1;
    match (command.name(), command.sub()) {
        ("MULTI", _) if exact => Role::Multi,
        // EXEC with arguments aborts the transaction, DISCARD with arguments does nothing.
        ("EXEC", _) => Role::Exec(None),
        ("DISCARD", _) if exact => Role::Discard,
        ("WATCH", _) => Role::Watch,
        ("UNWATCH", _) => Role::Unwatch,
        ("AUTH", _) => Role::Auth,
        ("HELLO", _) => match request.arg(1) {
            Some(b"2") => Role::Hello(Some(2)),
            Some(b"3") => Role::Hello(Some(3)),
            _ => Role::Hello(None),
        },
        ("SELECT", _) => number(request.arg(1)).map_or(Role::Plain, Role::Select),
        ("SUBSCRIBE", _) => subscription(Family::Channel, true, request),
        ("UNSUBSCRIBE", _) => subscription(Family::Channel, false, request),
        ("PSUBSCRIBE", _) => subscription(Family::Pattern, true, request),
        ("PUNSUBSCRIBE", _) => subscription(Family::Pattern, false, request),
        ("SSUBSCRIBE", _) => subscription(Family::Shard, true, request),
        ("SUNSUBSCRIBE", _) => subscription(Family::Shard, false, request),
        ("MONITOR", _) if exact => Role::Monitor,
        ("CLIENT", "TRACKING") => Role::Tracking(request.arg_is(2, b"ON")),
        ("RESET", _) if exact => Role::Reset,
        ("QUIT", _) => Role::Quit,
        _ => Role::Plain,
    }
}

fn subscription(family: Family, subscribe: bool, request: &Request<'_>) -> Role {
    let channels = u32::try_from(request.len() - 1).unwrap_or(u32::MAX);
    Role::Subscription(Subscription {
        family,
        subscribe,
        channels,
    })
}

fn number(arg: Option<&[u8]>) -> Option<u32> {
    std::str::from_utf8(arg?).ok()?.parse().ok()
}

/// Outside a transaction.
fn disposition_of(command: Option<&Command>, request: &Request<'_>, role: Role) -> Disposition {
    let Some(command) = command else {
        return Disposition::Mirror;
    };
    let reason = match command.category_of(request) {
        CommandCategory::Read | CommandCategory::Write | CommandCategory::Script => {
            return Disposition::Mirror;
        }
        CommandCategory::Txn if role == Role::Multi => return Disposition::TxnMember,
        CommandCategory::Txn => NotMirrored::ConnectionState,
        CommandCategory::Blocking => NotMirrored::Blocking,
        CommandCategory::PubSub => NotMirrored::PubSub,
        CommandCategory::Admin => match command.name() {
            "MONITOR" | "SYNC" | "PSYNC" | "REPLCONF" => NotMirrored::Replication,
            _ if command.is_connection_state() => NotMirrored::ConnectionState,
            _ => NotMirrored::Admin,
        },
    };
    Disposition::NotMirrored(reason)
}

/// Why a transaction with this command in it is not mirrored, if that is so. Blocking commands do not block inside
/// a transaction, and what only asks the server does no harm.
fn excludes(command: Option<&Command>, request: &Request<'_>) -> Option<NotMirrored> {
    let command = command?;
    match command.category_of(request) {
        CommandCategory::PubSub => Some(NotMirrored::PubSub),
        CommandCategory::Admin => match command.name() {
            "PING" | "ECHO" | "TIME" | "SELECT" | "DBSIZE" | "INFO" | "SCAN" | "LASTSAVE"
            | "LOLWUT" | "COMMAND" | "ROLE" => None,
            _ if command.is_connection_state() => Some(NotMirrored::ConnectionState),
            _ => Some(NotMirrored::Admin),
        },
        _ => None,
    }
}
