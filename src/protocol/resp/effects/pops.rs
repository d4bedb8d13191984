//! Pops and moves: exactly what went is taken from the secondary too.

use super::{Expected, Replay, Rewrite};
use crate::protocol::resp::reply::Reply;
use crate::protocol::resp::request::Request;

/// SPOP: one member, or an array of them.
pub(super) fn members(request: &Request<'_>, reply: Reply<'_>, out: &mut Rewrite) -> Replay {
    let Some(key) = request.arg(1) else {
        return Replay::Verbatim;
    };
    if let Some(member) = reply.text() {
        out.push(Expected::Integer(1), [b"SREM", key, member]);
        return Replay::Rewritten;
    }
    let count = reply.elements().count();
    if count == 0 {
        return Replay::Nothing;
    }
    let members = reply.elements().filter_map(|member| member.text());
    let args = [b"SREM".as_slice(), key].into_iter().chain(members);
    out.push(expect_count(count), args);
    Replay::Rewritten
}

/// LMPOP, BLMPOP: the key and its elements. BLPOP, BRPOP: the key and one element.
pub(super) fn list(request: &Request<'_>, reply: Reply<'_>, out: &mut Rewrite) -> Replay {
    let mut parts = reply.elements();
    let (Some(key), Some(popped)) = (parts.next().and_then(|key| key.text()), parts.next()) else {
        return Replay::Nothing;
    };
    // From the head the first such element went, from the tail the last.
    let count: &[u8] = if from_tail(request) { b"-1" } else { b"1" };
    if let Some(element) = popped.text() {
        out.push(Expected::Integer(1), [b"LREM", key, count, element]);
        return Replay::Rewritten;
    }
    for element in popped.elements().filter_map(|element| element.text()) {
        out.push(Expected::Integer(1), [b"LREM", key, count, element]);
    }
    Replay::Rewritten
}

fn from_tail(request: &Request<'_>) -> bool {
    if request.arg_is(0, b"BRPOP") {
        return true;
    }
    // LMPOP numkeys key … LEFT|RIGHT; BLMPOP has its timeout in front. A key may be called RIGHT: count.
    let at = match () {
        () if request.arg_is(0, b"LMPOP") => 1,
        () if request.arg_is(0, b"BLMPOP") => 2,
        () => return false,
    };
    let keys = request
        .arg(at)
        .and_then(|count| std::str::from_utf8(count).ok()?.parse::<usize>().ok());
    keys.and_then(|keys| at.checked_add(1)?.checked_add(keys))
        .is_some_and(|direction| request.arg_is(direction, b"RIGHT"))
}

/// ZPOPMIN, ZPOPMAX: members and scores, flat or in pairs. BZPOPMIN: the key in front. ZMPOP: key and pairs.
pub(super) fn sorted_set(request: &Request<'_>, reply: Reply<'_>, out: &mut Rewrite) -> Replay {
    let mut parts = reply.elements();
    let first = request.name().first().copied().unwrap_or_default();
    let plain = request.arg_is(0, b"ZPOPMIN") || request.arg_is(0, b"ZPOPMAX");
    let key = if plain {
        request.arg(1)
    } else {
        parts.next().and_then(|key| key.text())
    };
    let Some(key) = key else {
        return Replay::Nothing;
    };
    let nested = request.arg_is(0, b"ZMPOP") || request.arg_is(0, b"BZMPOP");
    let mut members = Vec::new();
    let pairs = if nested {
        parts.next().map(|pairs| pairs.elements())
    } else {
        Some(parts)
    };
    let Some(mut pairs) = pairs else {
        return Replay::Nothing;
    };
    while let Some(member) = pairs.next() {
        match member.text() {
            // Flat: the score follows.
            Some(member) => {
                members.push(member);
                pairs.next();
            }
            None => members.extend(member.elements().next().and_then(|member| member.text())),
        }
    }
    debug_assert!(first != 0, "the command has a name");
    if members.is_empty() {
        return Replay::Nothing;
    }
    let expected = expect_count(members.len());
    let args = [b"ZREM".as_slice(), key].into_iter().chain(members);
    out.push(expected, args);
    Replay::Rewritten
}

/// BLMOVE source destination from to timeout; BRPOPLPUSH source destination timeout.
pub(super) fn moved(request: &Request<'_>, reply: Reply<'_>, out: &mut Rewrite) -> Replay {
    let (Some(source), Some(destination)) = (request.arg(1), request.arg(2)) else {
        return Replay::Verbatim;
    };
    if reply.is_nil() {
        return Replay::Nothing;
    }
    let (from, to) = if request.arg_is(0, b"BRPOPLPUSH") {
        (b"RIGHT".as_slice(), b"LEFT".as_slice())
    } else {
        (
            request.arg(3).unwrap_or_default(),
            request.arg(4).unwrap_or_default(),
        )
    };
    out.push(Expected::Same, [b"LMOVE", source, destination, from, to]);
    Replay::Rewritten
}

fn expect_count(count: usize) -> Expected {
    i64::try_from(count).map_or(Expected::Anything, Expected::Integer)
}
