//! What the secondary gets for a command that the primary has executed.
//!
//! A command that depends on chance, on the time or on who waits is replaced by what it did: SPOP by an SREM of the
//! members that went, EXPIRE by the absolute time, a blocking pop by the removal of exactly that element. What always
//! does the same to the same data goes verbatim. A command that failed, or did nothing, is not repeated.
//!
//! The time is an argument; approximate trimming (`MAXLEN ~`) and scripts that draw or look at the clock stay as they
//! are, because their effect cannot be read from the reply.

mod expiry;
mod pops;
mod streams;
#[cfg(test)]
mod tests;

use smallvec::SmallVec;

use super::command::{Command, Effect};
use super::reply::Reply;
use super::request::Request;

/// What to do on the secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The primary changed nothing.
    Nothing,
    /// The command itself.
    Verbatim,
    /// The commands that were appended to the [`Rewrite`].
    Rewritten,
}

/// What the secondary must answer if it holds the same data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// What the primary answered.
    Same,
    /// This number.
    Integer(i64),
    /// So many elements.
    Elements(i64),
    /// Anything but an error or nil.
    Something,
    /// Anything but an error.
    Anything,
}

/// Commands for the secondary, back to back, and what each must answer.
#[derive(Debug, Default)]
pub struct Rewrite {
    /// The commands as RESP arrays.
    pub bytes: Vec<u8>,
    /// One entry per command.
    pub expected: SmallVec<[Expected; 2]>,
    /// The backend in front makes a group's consumer even if it gives it no entry: Redis from 7.2 on.
    pub consumers_made_idle: bool,
}

impl Rewrite {
    /// Forgets the commands, keeps the memory and what is known of the backend.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.expected.clear();
    }

    /// Appends a command.
    pub fn push<A: AsRef<[u8]>>(&mut self, expected: Expected, args: impl IntoIterator<Item = A>) {
        encode(&mut self.bytes, args);
        self.expected.push(expected);
    }
}

/// Appends a command as a RESP array of bulk strings.
pub fn encode<A: AsRef<[u8]>>(out: &mut Vec<u8>, args: impl IntoIterator<Item = A>) {
    // The number of arguments is known only behind them; the header is spliced in when it is.
    let start = out.len();
    let mut count: usize = 0;
    for arg in args {
        let arg = arg.as_ref();
        out.push(b'$');
        number(out, arg.len());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
        count += 1;
    }
    let body = out.len();
    out.push(b'*');
    number(out, count);
    let header = out.len() - body;
    out[start..].rotate_right(header);
}

fn number(out: &mut Vec<u8>, value: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        // A digit fits.
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// What the secondary gets for `request`, which the primary answered with `reply`. `now_unix_ms` is when.
///
/// Commands are appended to `out`; it is unchanged unless the answer is [`Replay::Rewritten`].
pub fn effects(
    command: Option<&Command>,
    request: &Request<'_>,
    reply: Reply<'_>,
    now_unix_ms: u64,
    out: &mut Rewrite,
) -> Replay {
    if reply.is_error() {
        return Replay::Nothing;
    }
    match command.map_or(Effect::Verbatim, Command::effect) {
        Effect::Verbatim => verbatim(command, reply),
        Effect::PopMembers => pops::members(request, reply, out),
        Effect::StreamId => streams::added(request, reply, out),
        Effect::AbsoluteExpiry => expiry::absolute(request, reply, now_unix_ms, out),
        Effect::FloatResult => float_result(request, reply, out),
        Effect::ListPop => pops::list(request, reply, out),
        Effect::SortedSetPop => pops::sorted_set(request, reply, out),
        Effect::NonBlockingMove => pops::moved(request, reply, out),
        Effect::GroupRead => streams::group_read(request, reply, now_unix_ms, out),
        Effect::StreamClaim => streams::claimed(request, reply, now_unix_ms, out),
    }
}

/// The command is repeated as it is, unless it failed. For `effects = false`.
pub fn unchanged(reply: Reply<'_>) -> Replay {
    if reply.is_error() {
        Replay::Nothing
    } else {
        Replay::Verbatim
    }
}

/// Deterministic commands whose nil says that nothing was done.
fn verbatim(command: Option<&Command>, reply: Reply<'_>) -> Replay {
    let name = command.map_or("", Command::name);
    let pops = matches!(
        name,
        "LPOP"
            | "RPOP"
            | "RPOPLPUSH"
            | "LMOVE"
            | "GETDEL"
            | "LPUSHX"
            | "RPUSHX"
            | "SETNX"
            | "MSETNX"
    );
    let nothing =
        reply.is_nil() || (reply.integer() == Some(0) && name != "LPUSHX" && name != "RPUSHX");
    if pops && nothing {
        Replay::Nothing
    } else {
        Replay::Verbatim
    }
}

/// INCRBYFLOAT and HINCRBYFLOAT: two servers may round differently, so the result is written.
fn float_result(request: &Request<'_>, reply: Reply<'_>, out: &mut Rewrite) -> Replay {
    let (Some(key), Some(result)) = (request.arg(1), reply.text()) else {
        return Replay::Verbatim;
    };
    if request.len() == 3 {
        out.push(Expected::Something, [b"SET", key, result, b"KEEPTTL"]);
    } else if let Some(field) = request.arg(2) {
        // A sum that is the increment itself: the field may have been made just now.
        let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<f64>().ok();
        let expected = match (number(result), request.arg(3).and_then(number)) {
            (Some(sum), Some(increment)) if sum != increment => Expected::Integer(0),
            _ => Expected::Something,
        };
        out.push(expected, [b"HSET", key, field, result]);
    }
    Replay::Rewritten
}

/// The form of a blocking command that gives up almost at once, for `blocking = "warmup"`. `None` if it has none.
pub fn warmup(command: Option<&Command>, request: &Request<'_>) -> Option<Vec<u8>> {
    let at = match command?.name() {
        "BLPOP" | "BRPOP" | "BRPOPLPUSH" | "BLMOVE" | "BZPOPMIN" | "BZPOPMAX" => {
            request.len().checked_sub(1)?
        }
        "BLMPOP" | "BZMPOP" => 1,
        "XREAD" | "XREADGROUP" => (1..request.len()).find(|at| request.arg_is(*at, b"BLOCK"))? + 1,
        _ => return None,
    };
    // Milliseconds for streams, seconds elsewhere.
    let soon: &[u8] = if command?.name().starts_with('X') {
        b"10"
    } else {
        b"0.01"
    };
    let mut out = Vec::new();
    encode(
        &mut out,
        request
            .args()
            .enumerate()
            .map(|(index, arg)| if index == at { soon } else { arg }),
    );
    Some(out)
}
