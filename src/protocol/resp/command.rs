//! What the proxy knows about each command: class, keys, whether replies can be compared, what to replay.
//!
//! [`lookup`] finds a command without an allocation; unknown commands are writes (they go to both databases).

mod keys;
mod table;

pub use keys::Keys;

use std::sync::LazyLock;

use super::request::Request;
use table::{A, B, C, D, N, P, R, S, TABLE, W};

/// What a command does, as far as routing and mirroring care.
///
/// It departs from the server's flags where the flags say less: SWAPDB and FLUSHALL change data; SORT may store;
/// a non-blocking XREADGROUP moves its group's cursor; SCAN hands out cursors of one server, so it is Admin;
/// MIGRATE is sent to a third server, which nobody may do twice, so it is Admin; PFDEBUG likewise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandCategory {
    /// Leaves the data as they are.
    Read,
    /// May change data.
    Write,
    /// May wait for data.
    Blocking,
    /// Subscriptions. PUBLISH is a write.
    PubSub,
    /// About the server or the connection.
    Admin,
    /// MULTI and its kin.
    Txn,
    /// Scripts and functions.
    Script,
}

/// What is replayed instead of the command itself, where that is relative or nondeterministic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The command as it is.
    Verbatim,
    /// SPOP: SREM of the members in the reply.
    PopMembers,
    /// XADD: the ID in the reply instead of `*`.
    StreamId,
    /// A relative expiry becomes the absolute one.
    AbsoluteExpiry,
    /// INCRBYFLOAT, HINCRBYFLOAT: SET … KEEPTTL, HSET of the result.
    FloatResult,
    /// LMPOP, BLPOP …: the pop of the elements in the reply.
    ListPop,
    /// ZMPOP, BZPOPMIN …: ZREM of the members in the reply.
    SortedSetPop,
    /// BLMOVE, BRPOPLPUSH: the form that does not wait.
    NonBlockingMove,
    /// XREADGROUP: not blocking, plus an XCLAIM of what the consumer got.
    GroupRead,
    /// XCLAIM, XAUTOCLAIM: the claimed IDs by name.
    StreamClaim,
}

/// How the replies of a command are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplyShape {
    /// Element by element.
    Ordered,
    /// The order of the elements says nothing.
    Set,
    /// Pairs in any order, flat (RESP2) or as a map (RESP3).
    Map,
    /// Every scalar is a float, equal by value.
    Float,
    /// Members and, with WITHSCORES, a float behind each.
    Scored,
    /// A key, then members and scores.
    KeyedScores,
    /// GEOSEARCH and its kin: a name, then floats, per element; any order unless one was asked for.
    Geo,
    /// A number where 0 means "nothing there".
    Count,
    /// A string where the empty one means "nothing there".
    Text,
    /// TYPE: `none` means "nothing there".
    TypeName,
    /// Remaining seconds: equal within a tolerance.
    TtlSeconds,
    /// Remaining milliseconds: equal within a tolerance.
    TtlMillis,
    /// XADD: comparable unless the server chose the ID.
    EntryId,
    /// XPENDING: the extended form holds idle times.
    Pending,
    /// Depends on the server, the time or chance.
    NotCompared,
}

/// Where the keys are, as `COMMAND` reports it, and how to find them where that is not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// The first key's argument, 0 if there is none at a fixed place.
    pub first: i8,
    /// The last key's argument; negative: counted from the end.
    pub last: i8,
    /// From one key to the next.
    pub step: i8,
    finder: KeyFinder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyFinder {
    /// `first`, `last` and `step` say it all.
    Range,
    /// The number of keys stands in this argument, the keys behind it.
    NumKeys(u8),
    /// A destination, then a number of keys and the keys (ZUNIONSTORE).
    DestinationAndNumKeys,
    /// Behind STREAMS, the first half of what follows.
    Streams,
    /// Argument 1 and the one behind STORE.
    SortStore,
    /// Argument 1 and the one behind STORE or STOREDIST.
    GeoStore,
    /// Argument 3, or if that is empty what follows KEYS.
    Migrate,
}

/// One command, or one sub-command of a container.
#[derive(Debug)]
pub struct Command {
    name: &'static str,
    sub: &'static str,
    category: CommandCategory,
    keys: KeySpec,
    shape: ReplyShape,
    flags: u16,
    effect: Effect,
}

impl Command {
    /// The name in capitals, without the sub-command.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A small number that all sub-commands of one name share: the place of its metrics.
    pub fn index(&self) -> usize {
        static BY_NAME: LazyLock<Vec<usize>> = LazyLock::new(|| {
            let first =
                |command: &Command| TABLE.iter().position(|other| other.name == command.name);
            TABLE
                .iter()
                .map(|command| first(command).unwrap_or_default())
                .collect()
        });
        let offset = std::ptr::from_ref(self).addr() - TABLE.as_ptr().addr();
        BY_NAME[offset / size_of::<Command>()]
    }

    /// The sub-command in capitals; empty if this is not one.
    pub fn sub(&self) -> &'static str {
        self.sub
    }

    /// The class from the table alone; [`classify`] also looks at the arguments.
    pub fn category(&self) -> CommandCategory {
        self.category
    }

    /// The class of one call. XREAD and XREADGROUP block only with BLOCK among their options.
    pub fn category_of(&self, request: &Request<'_>) -> CommandCategory {
        refine(self, request.args())
    }

    /// Key positions as the server reports them.
    pub fn key_spec(&self) -> KeySpec {
        self.keys
    }

    /// The arguments of `request` that are keys, by index.
    pub fn keys(&self, request: &Request<'_>) -> Keys {
        if self.flags & N != 0 || self.category == CommandCategory::PubSub {
            return Keys::none();
        }
        keys::find(self.keys, request)
    }

    /// How replies are compared.
    pub fn shape(&self) -> ReplyShape {
        self.shape
    }

    /// The order of the reply's elements means something.
    pub fn ordered(&self) -> bool {
        !matches!(self.shape, ReplyShape::Set | ReplyShape::Map)
    }

    /// The same call on the same data gives the same reply and the same data.
    pub fn deterministic(&self) -> bool {
        self.flags & D != 0
    }

    /// What to replay instead of the command.
    pub fn effect(&self) -> Effect {
        self.effect
    }

    /// Needs an upstream connection of its own, whatever the arguments. See also [`Command::pins_for`].
    pub fn pins(&self) -> bool {
        self.flags & P != 0
    }

    /// This call needs an upstream connection of its own.
    pub fn pins_for(&self, request: &Request<'_>) -> bool {
        self.pins() || self.category_of(request) == CommandCategory::Blocking
    }

    /// The server calls it `readonly`.
    pub fn is_readonly(&self) -> bool {
        self.flags & R != 0
    }

    /// The server calls it `write`.
    pub fn is_write(&self) -> bool {
        self.flags & W != 0
    }

    /// The server calls it `blocking`.
    pub fn may_block(&self) -> bool {
        self.flags & B != 0
    }

    /// The server calls it `admin`.
    pub fn is_admin(&self) -> bool {
        self.flags & A != 0
    }

    /// Sets or shows state of the connection itself: on a shared connection it means something else.
    pub fn is_connection_state(&self) -> bool {
        self.flags & S != 0
    }

    /// Has sub-commands.
    pub fn is_container(&self) -> bool {
        self.flags & C != 0
    }
}

/// All commands, sub-commands included.
pub fn all() -> &'static [Command] {
    &TABLE
}

/// Finds a command by name, in any case. For a container the sub-command if it is known, else the container.
pub fn lookup(name: &[u8], sub: Option<&[u8]>) -> Option<&'static Command> {
    let command = find(name, b"")?;
    match sub {
        Some(sub) if command.is_container() && !sub.is_empty() => {
            Some(find(name, sub).unwrap_or(command))
        }
        _ => Some(command),
    }
}

/// Finds the command of a request.
pub fn lookup_request(request: &Request<'_>) -> Option<&'static Command> {
    lookup(request.name(), request.arg(1))
}

/// The class of a call. `args` holds all arguments, the name first.
pub fn classify<'a>(name: &[u8], args: impl Iterator<Item = &'a [u8]> + Clone) -> CommandCategory {
    match lookup(name, args.clone().nth(1)) {
        Some(command) => refine(command, args),
        None => CommandCategory::Write,
    }
}

fn refine<'a>(command: &Command, args: impl Iterator<Item = &'a [u8]>) -> CommandCategory {
    if !matches!(command.name, "XREAD" | "XREADGROUP") || !has_block_option(args) {
        return command.category;
    }
    CommandCategory::Blocking
}

/// BLOCK in option position: a key or group of that name does not count.
fn has_block_option<'a>(mut args: impl Iterator<Item = &'a [u8]>) -> bool {
    args.next();
    while let Some(option) = args.next() {
        let is = |word: &[u8]| option.eq_ignore_ascii_case(word);
        if is(b"BLOCK") {
            return true;
        } else if is(b"COUNT") || is(b"CLAIM") {
            args.next();
        } else if is(b"GROUP") {
            args.nth(1);
        } else if !is(b"NOACK") {
            return false;
        }
    }
    false
}

/// Slots of the hash index. More than twice the commands, so that probes are short.
const SLOTS: usize = 1024;
/// No command has a longer name; longer ones need not be hashed.
const NAME_MAX: usize = 32;

/// Open addressing with linear probing, built at compile time: 0 is empty, else the table's index + 1.
static INDEX: [u16; SLOTS] = build_index();

const fn build_index() -> [u16; SLOTS] {
    let mut index = [0; SLOTS];
    let mut row = 0;
    while row < TABLE.len() {
        let hash = hash(TABLE[row].name.as_bytes(), TABLE[row].sub.as_bytes());
        let mut slot = hash as usize % SLOTS;
        while index[slot] != 0 {
            slot = (slot + 1) % SLOTS;
        }
        index[slot] = row as u16 + 1;
        row += 1;
    }
    index
}

/// FNV-1a over both words in lower case.
const fn hash(name: &[u8], sub: &[u8]) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    let mut at = 0;
    while at < name.len() + sub.len() {
        let byte = if at < name.len() {
            name[at]
        } else {
            sub[at - name.len()]
        };
        hash = (hash ^ byte.to_ascii_lowercase() as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    hash ^ (hash >> 15)
}

fn find(name: &[u8], sub: &[u8]) -> Option<&'static Command> {
    if name.len() > NAME_MAX || sub.len() > NAME_MAX {
        return None;
    }
    let mut slot = hash(name, sub) as usize % SLOTS;
    loop {
        let row = usize::from(INDEX[slot]).checked_sub(1)?;
        let command = &TABLE[row];
        if name.eq_ignore_ascii_case(command.name.as_bytes())
            && sub.eq_ignore_ascii_case(command.sub.as_bytes())
        {
            return Some(command);
        }
        slot = (slot + 1) % SLOTS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(line: &str) -> CommandCategory {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        classify(words[0], words.iter().copied())
    }

    #[test]
    fn every_row_is_found_in_any_case() {
        for command in all() {
            for name in [command.name.to_string(), command.name.to_lowercase()] {
                let sub = command.sub.to_lowercase();
                let sub = (!sub.is_empty()).then_some(sub.as_bytes());
                let found = lookup(name.as_bytes(), sub).unwrap();
                assert!(std::ptr::eq(found, command), "{name} {:?}", command.sub);
            }
        }
        assert!(lookup(b"NOSUCH", None).is_none());
        assert!(lookup(&[b'A'; 100], None).is_none());
        assert_eq!(lookup(b"client", Some(b"nosuch")).unwrap().sub(), "");
    }

    #[test]
    fn block_counts_only_among_the_options() {
        use CommandCategory::{Blocking, Read, Write};
        assert_eq!(class("xread COUNT 1 BLOCK 0 STREAMS a 0"), Blocking);
        assert_eq!(class("XREAD COUNT 1 STREAMS BLOCK 0"), Read);
        assert_eq!(class("XREAD COUNT BLOCK STREAMS a 0"), Read);
        assert_eq!(class("XREADGROUP GROUP BLOCK BLOCK STREAMS a >"), Write);
        assert_eq!(
            class("XREADGROUP GROUP g c NOACK BLOCK 5 STREAMS a >"),
            Blocking
        );
    }

    #[test]
    fn an_unknown_command_is_a_write() {
        assert_eq!(class("JSON.SET a $ 1"), CommandCategory::Write);
        assert_eq!(class(""), CommandCategory::Write);
    }

    #[test]
    fn subcommands_have_classes_of_their_own() {
        assert_eq!(class("script load x"), CommandCategory::Script);
        assert_eq!(class("script kill"), CommandCategory::Admin);
        assert_eq!(class("xgroup create a b $"), CommandCategory::Write);
        assert_eq!(class("object encoding a"), CommandCategory::Read);
        assert_eq!(class("pubsub channels"), CommandCategory::PubSub);
    }
}
