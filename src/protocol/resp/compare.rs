//! Decides whether two replies to one command mean the same.
//!
//! Equal bytes are equal. Else the command's [`ReplyShape`] says what may differ: the order of a set, the spelling of
//! a float, a TTL by a tick, a flat RESP2 list against a RESP3 map. Works in place, with two cursors and no memory of
//! its own: sets are compared by the sum of their elements' 128-bit digests.

mod digest;
mod options;

use std::fmt;

use super::command::{Command, ReplyShape};
use super::framer::RequestFramer;
use super::reply::{Cursor, Item, Reply};
use super::request::Request;
use crate::limits::{COMPARE_TTL_TOLERANCE_MILLIS, COMPARE_TTL_TOLERANCE_SECONDS};

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The replies mean the same.
    Equal,
    /// The replies may differ for good reason (cursors, chance, time, statistics).
    NotCompared,
    /// The replies differ.
    Different(DivergenceKind),
}

/// How two replies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DivergenceKind {
    /// The primary has data where the mirror has none.
    MigrationGap,
    /// Both have data, and they differ.
    DataMismatch,
    /// The mirror has data where the primary has none.
    ExtraData,
    /// The mirror refused what the primary executed.
    SecondaryError,
    /// The replies, or the keys behind them, are of different types.
    TypeMismatch,
}

impl fmt::Display for DivergenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MigrationGap => "migration_gap",
            Self::DataMismatch => "data_mismatch",
            Self::ExtraData => "extra_data",
            Self::SecondaryError => "secondary_error",
            Self::TypeMismatch => "type_mismatch",
        })
    }
}

use Comparison::{Different, Equal, NotCompared};
use DivergenceKind::{DataMismatch, ExtraData, MigrationGap, SecondaryError, TypeMismatch};

/// The comparison of equal replies, and of those that are never compared, where the request does not matter for it.
pub fn compare_at_a_glance(command: &Command, primary: &[u8], mirror: &[u8]) -> Option<Comparison> {
    match command.shape() {
        ReplyShape::NotCompared => Some(NotCompared),
        ReplyShape::Pending | ReplyShape::EntryId => None,
        _ => (primary == mirror).then_some(Equal),
    }
}

/// Compares the primary's and the mirror's complete reply to one command. `None` is an unknown command: compared
/// element by element.
pub fn compare(
    command: Option<&Command>,
    request: &Request<'_>,
    primary: &[u8],
    mirror: &[u8],
) -> Comparison {
    let shape = command.map_or(ReplyShape::Ordered, Command::shape);
    if !options::is_comparable(shape, request) {
        return NotCompared;
    }
    if primary == mirror {
        return Equal;
    }
    let (primary, mirror) = (Reply::parse(primary), Reply::parse(mirror));
    match (primary.is_error(), mirror.is_error()) {
        // The wording of an error belongs to the version; its code does not.
        (true, true) if primary.error_code() == mirror.error_code() => return Equal,
        (true, true) => return Different(DataMismatch),
        (false, true) => return Different(SecondaryError),
        (true, false) if primary.error_code() == Some(b"WRONGTYPE") => {
            return Different(TypeMismatch);
        }
        (true, false) => return Different(DataMismatch),
        (false, false) => {}
    }
    match (is_nothing(shape, primary), is_nothing(shape, mirror)) {
        // Nils for keys that are not there: as many on both sides.
        (true, true) if is_hollow(primary) || is_hollow(mirror) => {}
        (true, true) => return Equal,
        (false, true) => return Different(MigrationGap),
        (true, false) => return Different(ExtraData),
        (false, false) => {}
    }
    if class(primary.kind()) != class(mirror.kind()) {
        let floats = shape == ReplyShape::Float && digest::same_float(primary, mirror);
        return if floats {
            Equal
        } else {
            Different(TypeMismatch)
        };
    }
    by_shape(shape, request, primary, mirror)
}

/// Compares the replies to EXEC member by member. `unit` holds the complete commands from MULTI to EXEC.
///
/// The first difference counts. [`Comparison::NotCompared`] if no member could be compared.
pub fn compare_transaction(unit: &[u8], primary: &[u8], mirror: &[u8]) -> Comparison {
    let (primary, mirror) = (Reply::parse(primary), Reply::parse(mirror));
    if primary.is_error() || mirror.is_error() || primary.is_nil() || mirror.is_nil() {
        return compare(None, &Request::parse(b""), primary.bytes(), mirror.bytes());
    }
    let (mut primary, mut mirror) = (primary.elements(), mirror.elements());
    let mut outcome = NotCompared;
    for frame in Members::new(unit) {
        let request = Request::parse(frame);
        let replies = match (primary.next(), mirror.next()) {
            (Some(primary), Some(mirror)) => (primary.bytes(), mirror.bytes()),
            (None, None) => return outcome,
            _ => return Different(DataMismatch),
        };
        let command = super::command::lookup_request(&request);
        match compare(command, &request, replies.0, replies.1) {
            Different(kind) => return Different(kind),
            Equal => outcome = Equal,
            NotCompared => {}
        }
    }
    outcome
}

/// The commands of a unit without its MULTI.
struct Members<'a> {
    rest: &'a [u8],
    framer: RequestFramer,
}

impl<'a> Members<'a> {
    fn new(unit: &'a [u8]) -> Self {
        let mut framer = RequestFramer::new();
        framer.set_authenticated(true);
        let mut members = Self { rest: unit, framer };
        members.next();
        members
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let advance = self
                .framer
                .advance(self.rest)
                .ok()
                .filter(|advance| advance.done)?;
            let (frame, rest) = self.rest.split_at(advance.consumed);
            self.rest = rest;
            if !advance.empty {
                return Some(frame);
            }
        }
    }
}

/// The reply says that there are no data. A lone empty string is a value, but for GETRANGE.
fn is_nothing(shape: ReplyShape, reply: Reply<'_>) -> bool {
    if reply.is_nil() || reply.is_empty_collection() {
        return true;
    }
    match shape {
        ReplyShape::Count => reply.integer() == Some(0),
        ReplyShape::Text => reply.text() == Some(b""),
        ReplyShape::TypeName => reply.text() == Some(b"none"),
        ReplyShape::TtlSeconds | ReplyShape::TtlMillis if class(reply.kind()) == Class::Integer => {
            reply.integer() == Some(-2)
        }
        // MGET, HMGET, ZMSCORE …: nothing but nils.
        ReplyShape::Ordered | ReplyShape::Float if class(reply.kind()) == Class::Aggregate => reply
            .cursor()
            .all(|item| matches!(item, Item::Nil | Item::Open(_, _) | Item::Close)),
        _ => false,
    }
}

/// A list that holds something, if only nils.
fn is_hollow(reply: Reply<'_>) -> bool {
    class(reply.kind()) == Class::Aggregate && !reply.is_nil() && !reply.is_empty_collection()
}

/// What a type byte stands for in both RESP versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Status,
    /// A string. RESP2 writes doubles and big numbers as strings.
    Text,
    /// A number. RESP2 writes booleans as numbers.
    Integer,
    Aggregate,
    Other,
}

fn class(kind: u8) -> Class {
    match kind {
        b'+' => Class::Status,
        b'$' | b'=' | b',' | b'(' => Class::Text,
        b':' | b'#' => Class::Integer,
        b'*' | b'%' | b'~' | b'>' => Class::Aggregate,
        _ => Class::Other,
    }
}

fn by_shape(
    shape: ReplyShape,
    request: &Request<'_>,
    primary: Reply<'_>,
    mirror: Reply<'_>,
) -> Comparison {
    let aggregate = class(primary.kind()) == Class::Aggregate;
    match shape {
        ReplyShape::Set if aggregate => equal_if(digest::same_multiset(primary, mirror, 1)),
        ReplyShape::Map if aggregate => equal_if(digest::same_multiset(primary, mirror, 2)),
        ReplyShape::Geo if aggregate && !options::is_sorted(request) => {
            equal_if(digest::same_multiset_of_places(primary, mirror))
        }
        ReplyShape::Geo if aggregate => flat(primary, mirror, |_, first| !first),
        ReplyShape::Scored if options::has_scores(request) => {
            flat(primary, mirror, |index, _| index % 2 == 1)
        }
        ReplyShape::KeyedScores => flat(primary, mirror, |index, _| index > 0 && index % 2 == 0),
        ReplyShape::Float => in_order(primary, mirror, same_scalar_or_float),
        ReplyShape::TtlSeconds => in_order(primary, mirror, |a, b| {
            same_ttl(a, b, COMPARE_TTL_TOLERANCE_SECONDS)
        }),
        ReplyShape::TtlMillis => in_order(primary, mirror, |a, b| {
            same_ttl(a, b, COMPARE_TTL_TOLERANCE_MILLIS)
        }),
        _ => in_order(primary, mirror, same_scalar),
    }
}

fn equal_if(same: bool) -> Comparison {
    if same { Equal } else { Different(DataMismatch) }
}

/// A scalar: its type byte and text.
type Scalar<'a> = (u8, &'a [u8]);

fn same_scalar(a: Scalar<'_>, b: Scalar<'_>) -> bool {
    if a.0 == b.0 || (class(a.0) == class(b.0) && a.0 != b',' && b.0 != b',') {
        return a.1 == b.1 || digest::canonical(a) == digest::canonical(b);
    }
    // A RESP3 double against its RESP2 string.
    class(a.0) == class(b.0) && (a.1 == b.1 || digest::same_number(a.1, b.1))
}

fn same_scalar_or_float(a: Scalar<'_>, b: Scalar<'_>) -> bool {
    same_scalar(a, b) || digest::same_number(a.1, b.1)
}

fn same_ttl(a: Scalar<'_>, b: Scalar<'_>, tolerance: u64) -> bool {
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<i64>().ok();
    match (number(a.1), number(b.1)) {
        (Some(a), Some(b)) if a >= 0 && b >= 0 => a.abs_diff(b) <= tolerance,
        (a, b) => a == b,
    }
}

/// Element by element. Where the only differences are nils on one side the kind says so (MGET of a key that was
/// not migrated).
fn in_order(
    primary: Reply<'_>,
    mirror: Reply<'_>,
    same: impl Fn(Scalar<'_>, Scalar<'_>) -> bool,
) -> Comparison {
    let (mut primary, mut mirror) = (primary.cursor(), mirror.cursor());
    let (mut missing, mut extra) = (false, false);
    loop {
        match (next(&mut primary), next(&mut mirror)) {
            (None, None) => break,
            (Some(Item::Nil), Some(Item::Nil)) | (Some(Item::Close), Some(Item::Close)) => {}
            (Some(Item::Nil), Some(other)) if other != Item::Close => {
                skip(other, &mut mirror);
                extra = true;
            }
            (Some(other), Some(Item::Nil)) if other != Item::Close => {
                skip(other, &mut primary);
                missing = true;
            }
            (Some(Item::Open(_, a)), Some(Item::Open(_, b))) if a == b => {}
            (Some(Item::Scalar(a, a_text)), Some(Item::Scalar(b, b_text)))
                if same((a, a_text), (b, b_text)) => {}
            _ => return Different(DataMismatch),
        }
    }
    match (missing, extra) {
        (false, false) => Equal,
        (true, false) => Different(MigrationGap),
        (false, true) => Different(ExtraData),
        (true, true) => Different(DataMismatch),
    }
}

/// Scalars in order, whatever aggregates they stand in: RESP3 puts members and scores into pairs, RESP2 does not.
/// `is_float(index, first)` says by a scalar's position, and whether it opens its aggregate, that its value counts.
fn flat(
    primary: Reply<'_>,
    mirror: Reply<'_>,
    is_float: impl Fn(usize, bool) -> bool,
) -> Comparison {
    let (mut primary, mut mirror) = (primary.cursor(), mirror.cursor());
    let mut index = 0;
    loop {
        let (a, b) = (next_scalar(&mut primary), next_scalar(&mut mirror));
        let same = match (a, b) {
            (None, None) => return Equal,
            (Some((Item::Scalar(a, a_text), first)), Some((Item::Scalar(b, b_text), _))) => {
                let (a, b) = ((a, a_text), (b, b_text));
                if is_float(index, first) {
                    same_scalar_or_float(a, b)
                } else {
                    same_scalar(a, b)
                }
            }
            (Some((a, _)), Some((b, _))) => a == b,
            _ => false,
        };
        if !same {
            return Different(DataMismatch);
        }
        index += 1;
    }
}

/// The next scalar or nil, and whether it opens an aggregate.
fn next_scalar<'a>(cursor: &mut Cursor<'a>) -> Option<(Item<'a>, bool)> {
    let mut first = false;
    loop {
        match next(cursor)? {
            Item::Open(_, _) => first = true,
            Item::Close => {}
            item => return Some((item, first)),
        }
    }
}

/// The next item; attributes are no data.
fn next<'a>(cursor: &mut Cursor<'a>) -> Option<Item<'a>> {
    loop {
        match cursor.next()? {
            attribute @ Item::Open(b'|', _) => skip(attribute, cursor),
            item => return Some(item),
        }
    }
}

/// Passes over what is inside an item that has been opened.
fn skip(item: Item<'_>, cursor: &mut Cursor<'_>) {
    let Item::Open(_, count) = item else { return };
    // Streamed aggregates end with a Close; the others are counted. An attribute adds its own items only.
    let (mut left, mut open) = (count.unwrap_or(0), u64::from(count.is_none()));
    while left > 0 || open > 0 {
        let Some(item) = cursor.next() else { return };
        match item {
            Item::Close => {
                open = open.saturating_sub(1);
                continue;
            }
            Item::Open(b'|', Some(more)) => {
                left = left.saturating_add(more);
                continue;
            }
            Item::Open(_, Some(more)) => left = left.saturating_add(more),
            Item::Open(_, None) => open += 1,
            _ => {}
        }
        left = left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests;
