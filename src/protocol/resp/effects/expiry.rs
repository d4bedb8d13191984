//! Relative expiries made absolute.

use super::{Expected, Replay, Rewrite};
use crate::protocol::resp::command::{Command, lookup_request};
use crate::protocol::resp::reply::Reply;
use crate::protocol::resp::request::Request;

pub(super) fn absolute(
    request: &Request<'_>,
    reply: Reply<'_>,
    now_unix_ms: u64,
    out: &mut Rewrite,
) -> Replay {
    // Not a copy in capitals: every SET comes through here.
    let name = lookup_request(request).map_or("", Command::name);
    match name.as_bytes() {
        b"EXPIRE" => key_expiry(request, reply, now_unix_ms, 1000, out),
        b"PEXPIRE" => key_expiry(request, reply, now_unix_ms, 1, out),
        b"SETEX" => set_with_expiry(request, now_unix_ms, 1000, out),
        b"PSETEX" => set_with_expiry(request, now_unix_ms, 1, out),
        b"SET" if !was_set(request, reply) => Replay::Nothing,
        b"SET" => options(request, 3, now_unix_ms, out),
        b"GETEX" if reply.is_nil() => Replay::Nothing,
        b"GETEX" | b"HGETEX" | b"HSETEX" => options(request, 2, now_unix_ms, out),
        b"HEXPIRE" => field_expiry(request, now_unix_ms, 1000, out),
        b"HPEXPIRE" => field_expiry(request, now_unix_ms, 1, out),
        b"RESTORE" => restore(request, now_unix_ms, out),
        _ => Replay::Verbatim,
    }
}

/// The time `arg` units of `unit_ms` from now, in milliseconds since 1970.
fn from_now(arg: Option<&[u8]>, unit_ms: i64, now_unix_ms: u64) -> Option<Vec<u8>> {
    let relative: i64 = std::str::from_utf8(arg?).ok()?.parse().ok()?;
    let now = i64::try_from(now_unix_ms).ok()?;
    let at = relative.checked_mul(unit_ms)?.checked_add(now)?;
    // A time before 1970 is refused by the server; any time that has passed deletes the key.
    Some(at.max(1).to_string().into_bytes())
}

/// The conditions NX, XX, GT and LT have been decided by the primary: they are left out.
fn key_expiry(
    request: &Request<'_>,
    reply: Reply<'_>,
    now_unix_ms: u64,
    unit_ms: i64,
    out: &mut Rewrite,
) -> Replay {
    if reply.integer() == Some(0) {
        return Replay::Nothing;
    }
    let Some((key, at)) = request
        .arg(1)
        .zip(from_now(request.arg(2), unit_ms, now_unix_ms))
    else {
        return Replay::Verbatim;
    };
    out.push(Expected::Same, [b"PEXPIREAT", key, &at]);
    Replay::Rewritten
}

fn set_with_expiry(
    request: &Request<'_>,
    now_unix_ms: u64,
    unit_ms: i64,
    out: &mut Rewrite,
) -> Replay {
    let at = from_now(request.arg(2), unit_ms, now_unix_ms);
    let (Some(key), Some(at), Some(value)) = (request.arg(1), at, request.arg(3)) else {
        return Replay::Verbatim;
    };
    out.push(Expected::Same, [b"SET", key, value, b"PXAT", &at]);
    Replay::Rewritten
}

/// Whether a SET took place. With GET the reply is the old value, which decides together with the condition.
fn was_set(request: &Request<'_>, reply: Reply<'_>) -> bool {
    let has = |word: &[u8]| (3..request.len()).any(|at| request.arg_is(at, word));
    match (has(b"GET"), has(b"NX"), has(b"XX")) {
        (true, true, _) => reply.is_nil(),
        (true, _, true) => !reply.is_nil(),
        (true, ..) => true,
        _ => !reply.is_nil(),
    }
}

/// EX and PX among the options from `first` become PXAT. Everything else stays, so that the replies can be compared.
fn options(request: &Request<'_>, first: usize, now_unix_ms: u64, out: &mut Rewrite) -> Replay {
    let end = (first..request.len()).find(|at| request.arg_is(*at, b"FIELDS"));
    let end = end.unwrap_or(request.len());
    let found = (first..end).find_map(|at| {
        let unit_ms = match () {
            () if request.arg_is(at, b"EX") => 1000,
            () if request.arg_is(at, b"PX") => 1,
            () => return None,
        };
        from_now(request.arg(at + 1), unit_ms, now_unix_ms).map(|time| (at, time))
    });
    let Some((option, time)) = found else {
        return Replay::Verbatim;
    };
    let args = request.args().enumerate().map(|(at, arg)| match at {
        at if at == option => b"PXAT".as_slice(),
        at if at == option + 1 => &time,
        _ => arg,
    });
    out.push(Expected::Same, args);
    Replay::Rewritten
}

/// HEXPIRE key seconds [condition] FIELDS n field …: which fields a condition let through differs from field to
/// field, so it stays.
fn field_expiry(
    request: &Request<'_>,
    now_unix_ms: u64,
    unit_ms: i64,
    out: &mut Rewrite,
) -> Replay {
    let Some(time) = from_now(request.arg(2), unit_ms, now_unix_ms) else {
        return Replay::Verbatim;
    };
    let args = request.args().enumerate().map(|(at, arg)| match at {
        0 => b"HPEXPIREAT".as_slice(),
        2 => &time,
        _ => arg,
    });
    out.push(Expected::Same, args);
    Replay::Rewritten
}

/// RESTORE key ttl value [options]: a ttl of 0 is none, one with ABSTTL is absolute already.
fn restore(request: &Request<'_>, now_unix_ms: u64, out: &mut Rewrite) -> Replay {
    let absolute = (4..request.len()).any(|at| request.arg_is(at, b"ABSTTL"));
    if absolute || request.arg(2) == Some(b"0") {
        return Replay::Verbatim;
    }
    let Some(time) = from_now(request.arg(2), 1, now_unix_ms) else {
        return Replay::Verbatim;
    };
    let args = request
        .args()
        .enumerate()
        .map(|(at, arg)| if at == 2 { &time } else { arg });
    out.push(Expected::Same, args.chain([b"ABSTTL".as_slice()]));
    Replay::Rewritten
}
