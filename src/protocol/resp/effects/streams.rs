//! Streams: IDs, groups and claims as the primary decided them.

use super::{Expected, Replay, Rewrite};
use crate::protocol::resp::reply::Reply;
use crate::protocol::resp::request::Request;

/// XADD: the ID that the primary chose instead of `*` or `ms-*`.
pub(super) fn added(request: &Request<'_>, reply: Reply<'_>, out: &mut Rewrite) -> Replay {
    let Some(id) = reply.text() else {
        // NOMKSTREAM on a stream that is not there.
        return Replay::Nothing;
    };
    let Some(at) = id_position(request) else {
        return Replay::Verbatim;
    };
    if request.arg(at) == Some(id) {
        return Replay::Verbatim;
    }
    let args = request
        .args()
        .enumerate()
        .map(|(index, arg)| if index == at { id } else { arg });
    out.push(Expected::Same, args);
    Replay::Rewritten
}

/// XADD key [NOMKSTREAM] [MAXLEN|MINLEN [=|~] threshold [LIMIT count]] [KEEPREF|DELREF|ACKED] id field value …
fn id_position(request: &Request<'_>) -> Option<usize> {
    let mut at = 2;
    while at < request.len() {
        let is = |word: &[u8]| request.arg_is(at, word);
        if is(b"NOMKSTREAM") || is(b"KEEPREF") || is(b"DELREF") || is(b"ACKED") {
            at += 1;
        } else if is(b"MAXLEN") || is(b"MINID") {
            let sign = request.arg_is(at + 1, b"=") || request.arg_is(at + 1, b"~");
            at += if sign { 3 } else { 2 };
        } else if is(b"LIMIT") || is(b"IDMP") {
            at += if is(b"LIMIT") { 2 } else { 3 };
        } else if is(b"IDMPAUTO") {
            at += 2;
        } else {
            return Some(at);
        }
    }
    None
}

/// XREADGROUP: for each stream that gave new entries, a read of as many without waiting and without a pending list, which
/// moves the group's cursor and its counter, and an XCLAIM that puts exactly these entries into the consumer's pending
/// list. Neither depends on which of two consumers' reads comes first. What a consumer reads of its own past only counts
/// deliveries: that is repeated.
pub(super) fn group_read(
    request: &Request<'_>,
    reply: Reply<'_>,
    now_unix_ms: u64,
    out: &mut Rewrite,
) -> Replay {
    let Some(call) = GroupRead::of(request) else {
        return if reply.is_nil() {
            Replay::Nothing
        } else {
            Replay::Verbatim
        };
    };
    let before = out.expected.len();
    let now = now_unix_ms.to_string();
    for (stream, entries) in streams_of(reply) {
        let ids: Vec<&[u8]> = entries.elements().filter_map(entry_id).collect();
        let Some(from) = call.id_of(request, stream) else {
            continue;
        };
        let new = from == b">";
        if ids.is_empty() {
            // Who asks for its past is made by every version.
            make_consumer(stream, call.group, call.consumer, out);
            continue;
        }
        let count = ids.len().to_string();
        let mut args: Vec<&[u8]> = vec![b"XREADGROUP", b"GROUP", call.group, call.consumer];
        args.extend([b"COUNT".as_slice(), count.as_bytes()]);
        if new || call.no_ack {
            args.push(b"NOACK");
        }
        args.extend([b"STREAMS".as_slice(), stream, from]);
        out.push(Expected::Something, args);
        if new && !call.no_ack {
            let expected = i64::try_from(ids.len()).map_or(Expected::Anything, Expected::Elements);
            let mut args: Vec<&[u8]> = vec![b"XCLAIM", stream, call.group, call.consumer, b"0"];
            args.extend(ids);
            args.extend([b"TIME".as_slice(), now.as_bytes()]);
            args.extend([b"RETRYCOUNT".as_slice(), b"1", b"FORCE", b"JUSTID"]);
            out.push(expected, args);
        }
    }
    if out.consumers_made_idle {
        let answered = |stream: &[u8]| streams_of(reply).any(|(name, _)| name == stream);
        for stream in call.streams_of(request).filter(|stream| !answered(stream)) {
            make_consumer(stream, call.group, call.consumer, out);
        }
    }
    if out.expected.len() == before {
        Replay::Nothing
    } else {
        Replay::Rewritten
    }
}

/// A consumer that got nothing stands in the group all the same.
fn make_consumer(stream: &[u8], group: &[u8], consumer: &[u8], out: &mut Rewrite) {
    let args = [
        b"XGROUP",
        b"CREATECONSUMER".as_slice(),
        stream,
        group,
        consumer,
    ];
    out.push(Expected::Anything, args);
}

/// The streams of a reply with their entries: pairs (RESP2) or a map (RESP3).
fn streams_of<'a>(reply: Reply<'a>) -> impl Iterator<Item = (&'a [u8], Reply<'a>)> {
    let mut elements = reply.elements();
    std::iter::from_fn(move || {
        let first = elements.next()?;
        match first.text() {
            Some(stream) => Some((stream, elements.next()?)),
            None => {
                let mut pair = first.elements();
                Some((pair.next()?.text()?, pair.next()?))
            }
        }
    })
}

struct GroupRead<'a> {
    group: &'a [u8],
    consumer: &'a [u8],
    no_ack: bool,
    /// Where the keys begin.
    streams: usize,
}

impl<'a> GroupRead<'a> {
    fn of(request: &'a Request<'_>) -> Option<Self> {
        let mut call = GroupRead {
            group: b"",
            consumer: b"",
            no_ack: false,
            streams: 0,
        };
        let mut at = 1;
        while at < request.len() {
            let is = |word: &[u8]| request.arg_is(at, word);
            if is(b"GROUP") {
                (call.group, call.consumer) = (request.arg(at + 1)?, request.arg(at + 2)?);
                at += 3;
            } else if is(b"COUNT") || is(b"BLOCK") || is(b"CLAIM") {
                at += 2;
            } else if is(b"NOACK") {
                call.no_ack = true;
                at += 1;
            } else if is(b"STREAMS") {
                call.streams = at + 1;
                return Some(call);
            } else {
                return None;
            }
        }
        None
    }

    /// The keys that it reads.
    fn streams_of(&self, request: &'a Request<'_>) -> impl Iterator<Item = &'a [u8]> {
        let count = request.len().saturating_sub(self.streams) / 2;
        (self.streams..self.streams + count).filter_map(|at| request.arg(at))
    }

    fn id_of(&self, request: &'a Request<'_>, stream: &[u8]) -> Option<&'a [u8]> {
        let count = request.len().checked_sub(self.streams)? / 2;
        let at =
            (self.streams..self.streams + count).find(|at| request.arg(*at) == Some(stream))?;
        request.arg(at + count)
    }
}

/// XCLAIM and XAUTOCLAIM: the IDs that the primary handed over, whatever their idle time is on the secondary.
pub(super) fn claimed(
    request: &Request<'_>,
    reply: Reply<'_>,
    now_unix_ms: u64,
    out: &mut Rewrite,
) -> Replay {
    let auto = request.arg_is(0, b"XAUTOCLAIM");
    let (Some(key), Some(group), Some(consumer)) = (request.arg(1), request.arg(2), request.arg(3))
    else {
        return Replay::Verbatim;
    };
    let (entries, deleted) = if auto {
        let mut parts = reply.elements().skip(1);
        (parts.next(), parts.next())
    } else {
        (Some(reply), None)
    };
    let before = out.expected.len();
    let ids: Vec<&[u8]> = entries
        .into_iter()
        .flat_map(|all| all.elements())
        .filter_map(entry_id)
        .collect();
    if !ids.is_empty() {
        let just_ids = (5..request.len()).any(|at| request.arg_is(at, b"JUSTID"));
        let delivered_ms = if auto {
            None
        } else {
            delivery_time(request, now_unix_ms)
        };
        let time = delivered_ms.unwrap_or(now_unix_ms).to_string();
        let mut args: Vec<&[u8]> = vec![b"XCLAIM", key, group, consumer, b"0"];
        args.extend(&ids);
        args.extend([b"TIME".as_slice(), time.as_bytes()]);
        if !auto {
            args.extend(claim_options(request));
        }
        if just_ids {
            args.push(b"JUSTID");
        }
        out.push(Expected::Something, args);
    } else if out.consumers_made_idle {
        make_consumer(key, group, consumer, out);
    }
    let gone: Vec<&[u8]> = deleted
        .into_iter()
        .flat_map(|all| all.elements())
        .filter_map(|id| id.text())
        .collect();
    if !gone.is_empty() {
        let args = [b"XACK".as_slice(), key, group].into_iter().chain(gone);
        out.push(Expected::Anything, args);
    }
    if out.expected.len() == before {
        Replay::Nothing
    } else {
        Replay::Rewritten
    }
}

/// An entry of XCLAIM's reply: its ID alone (JUSTID), or the ID and the fields.
fn entry_id<'a>(entry: Reply<'a>) -> Option<&'a [u8]> {
    entry.text().or_else(|| entry.elements().next()?.text())
}

/// What IDLE or TIME of an XCLAIM make of the entries' time of delivery.
fn delivery_time(request: &Request<'_>, now_unix_ms: u64) -> Option<u64> {
    (5..request.len()).find_map(|at| {
        let number =
            || -> Option<u64> { std::str::from_utf8(request.arg(at + 1)?).ok()?.parse().ok() };
        if request.arg_is(at, b"IDLE") {
            return number().map(|idle_ms| now_unix_ms.saturating_sub(idle_ms));
        }
        request.arg_is(at, b"TIME").then(number).flatten()
    })
}

/// The options of an XCLAIM that do not speak of the idle time.
fn claim_options<'a>(request: &'a Request<'_>) -> Vec<&'a [u8]> {
    let mut kept = Vec::new();
    let mut at = 5;
    while let Some(option) = request.arg(at) {
        let is = |word: &[u8]| option.eq_ignore_ascii_case(word);
        if is(b"FORCE") {
            kept.push(option);
        } else if (is(b"RETRYCOUNT") || is(b"LASTID")) && at + 1 < request.len() {
            kept.extend([option, request.arg(at + 1).unwrap_or_default()]);
            at += 1;
        }
        at += 1;
    }
    kept
}
