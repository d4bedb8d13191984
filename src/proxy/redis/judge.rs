//! Holds a mirror's reply against the primary's.

use super::RedisOutcome;
use super::collect::Frame;
use crate::config::Compare;
use crate::metrics::DivergenceKind;
use crate::mirror::unit::Unit;
use crate::protocol::resp::compare::{Comparison, compare, compare_at_a_glance};
use crate::protocol::resp::{Reply, Request, RequestFramer, command};
use crate::ring::Chunk;

/// Longest value in a divergence record, in bytes.
const SHOWN_BYTES_MAX: usize = 256;

/// What the comparison of one unit found.
pub(super) enum Judgement {
    Equal,
    /// Replies of this command cannot be compared, or one was too large to keep.
    NotCompared,
    Different(Box<Found>),
}

/// A difference.
#[derive(Clone)]
pub(super) struct Found {
    pub command: String,
    pub key: Vec<u8>,
    pub kind: DivergenceKind,
    pub primary: Vec<u8>,
    pub secondary: Vec<u8>,
}

/// Compares the reply of `unit` at the primary with `frame`, the last reply of the mirror.
pub(super) fn judge(
    unit: &Unit<Chunk, RedisOutcome>,
    frame: &Frame<'_>,
    how: Compare,
) -> Judgement {
    let primary = unit.outcome.reply.as_slice();
    if primary.is_empty() || !frame.is_whole() {
        return Judgement::NotCompared;
    }
    let mirror = frame.bytes();
    if primary == mirror && unit.outcome.replies > 1 {
        return Judgement::Equal;
    }
    let glance = unit.outcome.command.filter(|_| unit.outcome.replies == 1);
    match glance.and_then(|command| compare_at_a_glance(command, primary, mirror)) {
        Some(Comparison::Equal) => return Judgement::Equal,
        Some(Comparison::NotCompared) => return Judgement::NotCompared,
        Some(Comparison::Different(_)) | None => {}
    }
    let mut bytes = Vec::new();
    unit.payload.copy_into(&mut bytes);
    if unit.outcome.replies == 1 {
        return judge_one(&Request::parse(&bytes), primary, mirror, how);
    }
    judge_transaction(&bytes, primary, mirror, how)
}

pub(super) fn judge_one(
    request: &Request<'_>,
    primary: &[u8],
    mirror: &[u8],
    how: Compare,
) -> Judgement {
    let known = command::lookup_request(request);
    let kind = match compare(known, request, primary, mirror) {
        Comparison::Equal => return Judgement::Equal,
        Comparison::NotCompared => return Judgement::NotCompared,
        Comparison::Different(kind) => kind,
    };
    let one_failed = Reply::parse(primary).is_error() != Reply::parse(mirror).is_error();
    if how == Compare::Status && !one_failed {
        return Judgement::Equal;
    }
    let key = known
        .and_then(|known| known.keys(request).next())
        .and_then(|at| request.arg(at))
        .unwrap_or_default();
    Judgement::Different(Box::new(Found {
        command: known.map_or_else(|| "other".to_owned(), |known| known.name().to_owned()),
        key: shown(key),
        kind: kind.into(),
        primary: shown(primary),
        secondary: shown(mirror),
    }))
}

/// The replies of a transaction one by one; the first difference is reported.
pub(super) fn judge_transaction(
    unit: &[u8],
    primary: &[u8],
    mirror: &[u8],
    how: Compare,
) -> Judgement {
    let (primary, mirror) = (Reply::parse(primary), Reply::parse(mirror));
    if mirror.is_error() || mirror.is_nil() {
        let exec = Request::parse(b"*1\r\n$4\r\nEXEC\r\n");
        return judge_one(&exec, primary.bytes(), mirror.bytes(), how);
    }
    let mut framer = RequestFramer::new();
    framer.set_authenticated(true);
    let mut rest = unit;
    let mut requests = Vec::new();
    while let Ok(advance) = framer.advance(rest)
        && advance.done
    {
        requests.push(Request::parse(&rest[..advance.consumed]));
        rest = &rest[advance.consumed..];
    }
    let queued = requests
        .get(1..requests.len().saturating_sub(1))
        .unwrap_or_default();
    let mut all_compared = true;
    for ((request, ours), theirs) in queued.iter().zip(primary.elements()).zip(mirror.elements()) {
        match judge_one(request, ours.bytes(), theirs.bytes(), how) {
            Judgement::Equal => {}
            Judgement::NotCompared => all_compared = false,
            different => return different,
        }
    }
    if all_compared {
        Judgement::Equal
    } else {
        Judgement::NotCompared
    }
}

pub(super) fn shown(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len().min(SHOWN_BYTES_MAX)].to_vec()
}
