//! Which connection a command needs: a lane that all clients share, or the client's own.
//!
//! A command goes onto a lane only if it is known to leave nothing behind on a connection and to wait for nothing.
//! What the table does not know goes over the client's own connection, but for the modules that are known to be
//! harmless.

use crate::protocol::resp::command::Command;
use crate::protocol::resp::tracker::{Disposition, NotMirrored};
use crate::protocol::resp::{CommandCategory, Request};

/// Where a command belongs when nothing ties its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Any lane of the client's identity, database and version.
    Lane,
    /// The client's own connection.
    Own,
    /// The client's own connection, and nothing behind it is read before its reply: it changes what the client is.
    OwnAndWait,
    /// The client's own connection, once that has seen the writes that went over a lane.
    Fenced,
    /// A lane, and noted for the client's own connection.
    Info,
    /// Answered here.
    Quit,
}

/// Modules whose commands act on keys and answer at once.
const LANE_MODULES: [&[u8]; 8] = [
    b"JSON.",
    b"FT.",
    b"BF.",
    b"CF.",
    b"CMS.",
    b"TOPK.",
    b"TDIGEST.",
    b"TS.",
];

/// Decides for one command.
pub(super) fn place(command: Option<&Command>, request: &Request<'_>) -> Place {
    let Some(command) = command else {
        let name = request.name();
        let known = LANE_MODULES.iter().any(|module| {
            name.get(..module.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(module))
        });
        return if known { Place::Lane } else { Place::Own };
    };
    if !command.pins() && !command.is_connection_state() && !command.may_block() {
        // Of a container only what is known by its full name.
        let unknown_sub = command.is_container() && command.sub().is_empty() && request.len() > 1;
        return if unknown_sub { Place::Own } else { Place::Lane };
    }
    match command.name() {
        "QUIT" => Place::Quit,
        "AUTH" | "HELLO" | "RESET" | "SELECT" => Place::OwnAndWait,
        "WAIT" | "WAITAOF" => Place::Fenced,
        "ACL" => Place::Lane,
        // Says which library it is: noted for the client's own connection, if it ever has one.
        "CLIENT" if command.sub() == "SETINFO" => Place::Info,
        _ if !command.pins() && !command.is_connection_state() && !command.pins_for(request) => {
            Place::Lane
        }
        _ => Place::Own,
    }
}

/// The command leaves something on the connection that no reply takes back: its client stays there.
pub(super) fn sticks(command: Option<&Command>) -> bool {
    command.is_some_and(|command| {
        let client = matches!(
            command.sub(),
            "" | "CACHING" | "CAPA" | "ID" | "IMPORT-SOURCE" | "NO-EVICT" | "NO-TOUCH" | "REPLY"
        );
        match command.name() {
            "CLIENT" => client,
            "SCRIPT" => command.sub() == "DEBUG",
            name => matches!(
                name,
                "READONLY" | "READWRITE" | "ASKING" | "SYNC" | "PSYNC" | "REPLCONF"
            ),
        }
    })
}

/// What the mirror makes of a command on a lane.
pub(super) fn disposition(command: Option<&Command>, request: &Request<'_>) -> Disposition {
    let Some(command) = command else {
        return Disposition::Mirror;
    };
    let reason = match command.category_of(request) {
        CommandCategory::Read | CommandCategory::Write | CommandCategory::Script => {
            return Disposition::Mirror;
        }
        CommandCategory::PubSub => NotMirrored::PubSub,
        CommandCategory::Blocking => NotMirrored::Blocking,
        CommandCategory::Txn => NotMirrored::ConnectionState,
        CommandCategory::Admin => NotMirrored::Admin,
    };
    Disposition::NotMirrored(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::resp::command;

    fn placed(line: &str) -> Place {
        let bytes = format!("{line}\r\n");
        let request = Request::parse(bytes.as_bytes());
        place(command::lookup_request(&request), &request)
    }

    #[test]
    fn only_what_leaves_nothing_behind_and_waits_for_nothing_takes_a_lane() {
        for line in [
            "get a",
            "SET a 1",
            "eval x 0",
            "ping",
            "info",
            "config get x",
            "xread streams a 0",
            "publish a b",
            "scan 0",
            "acl whoami",
            "json.get a",
            "object encoding a",
            "client help",
        ] {
            assert_eq!(placed(line), Place::Lane, "{line}");
        }
        for line in [
            "multi",
            "watch a",
            "blpop a 0",
            "xread block 0 streams a 0",
            "subscribe a",
            "monitor",
            "client id",
            "client setname a",
            "client tracking on",
            "client nosuch",
            "nosuch a",
            "debug sleep 1",
            "script debug yes",
            "client reply off",
        ] {
            assert_eq!(placed(line), Place::Own, "{line}");
        }
        for line in ["auth a", "hello 3", "reset", "select 3"] {
            assert_eq!(placed(line), Place::OwnAndWait, "{line}");
        }
        assert_eq!(placed("wait 1 0"), Place::Fenced);
        assert_eq!(placed("quit"), Place::Quit);
    }
}
