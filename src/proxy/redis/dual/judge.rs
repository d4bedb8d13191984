//! Holds the follower's reply against what it must be.

use std::cmp::Ordering;

use super::super::judge::{self as mirror_judge, Found, Judgement};
use crate::config::Compare;
use crate::metrics::DivergenceKind;
use crate::mirror::dual::keys::commands;
use crate::mirror::dual::queue::{Item, Kind};
use crate::mirror::dual::repair::name_of;
use crate::protocol::resp::effects::Expected;
use crate::protocol::resp::{Reply, Request};

/// Judges reply number `index` of an item.
pub(super) fn judge(item: &Item, index: u32, reply: &[u8], whole: bool) -> Judgement {
    let last = index + 1 == item.replies();
    match item.kind {
        Kind::Repair(_) | Kind::Warmup => return Judgement::NotCompared,
        Kind::Write | Kind::Script | Kind::Read | Kind::Reread(_) => {}
    }
    let failed = matches!(reply.first(), Some(b'-' | b'!'));
    if item.block {
        return if last {
            block(item, reply)
        } else {
            not_failed(item, reply, failed)
        };
    }
    if item.rewritten.is_empty() && item.commands > 1 {
        return match last {
            true if whole && !item.reply.is_empty() => {
                mirror_judge::judge_transaction(&item.request, &item.reply, reply, Compare::Rows)
            }
            _ => not_failed(item, reply, failed),
        };
    }
    let expected = item
        .expected
        .get(index as usize)
        .copied()
        .unwrap_or(Expected::Same);
    expect(item, expected, reply, whole, failed)
}

fn expect(item: &Item, expected: Expected, reply: &[u8], whole: bool, failed: bool) -> Judgement {
    if failed && expected != Expected::Same {
        return different(item, DivergenceKind::SecondaryError, reply);
    }
    let view = Reply::parse(reply);
    match expected {
        Expected::Same if !whole || item.reply.is_empty() => Judgement::NotCompared,
        Expected::Same => {
            let request = if item.rewritten.is_empty() {
                &item.request
            } else {
                &item.rewritten
            };
            mirror_judge::judge_one(&Request::parse(request), &item.reply, reply, Compare::Rows)
        }
        Expected::Integer(number) if view.integer() == Some(number) => Judgement::Equal,
        Expected::Integer(number) => match view.integer() {
            Some(other) if other < number => different(item, DivergenceKind::MigrationGap, reply),
            _ => different(item, DivergenceKind::DataMismatch, reply),
        },
        Expected::Elements(number) => {
            // Counting is done on what was kept: a reply that is larger says nothing.
            let found = i64::try_from(view.elements().count()).unwrap_or(i64::MAX);
            match found.cmp(&number) {
                _ if !whole => Judgement::NotCompared,
                Ordering::Equal => Judgement::Equal,
                Ordering::Less => different(item, DivergenceKind::MigrationGap, reply),
                Ordering::Greater => different(item, DivergenceKind::DataMismatch, reply),
            }
        }
        Expected::Something if view.is_nil() => {
            different(item, DivergenceKind::MigrationGap, reply)
        }
        Expected::Something => Judgement::Equal,
        Expected::Anything => Judgement::NotCompared,
    }
}

/// The reply to EXEC of a block that we made.
fn block(item: &Item, reply: &[u8]) -> Judgement {
    let view = Reply::parse(reply);
    if view.is_error() || view.is_nil() {
        return different(item, DivergenceKind::SecondaryError, reply);
    }
    let mut compared = false;
    for (expected, element) in item.expected.iter().zip(view.elements()) {
        // What `Same` would be stands deep in the primary's own EXEC: errors alone are looked at.
        let expected = if *expected == Expected::Same {
            Expected::Anything
        } else {
            *expected
        };
        match expect(item, expected, element.bytes(), true, element.is_error()) {
            Judgement::Equal => compared = true,
            Judgement::NotCompared => {}
            different => return different,
        }
    }
    if compared {
        Judgement::Equal
    } else {
        Judgement::NotCompared
    }
}

fn not_failed(item: &Item, reply: &[u8], failed: bool) -> Judgement {
    match failed {
        true => different(item, DivergenceKind::SecondaryError, reply),
        false => Judgement::NotCompared,
    }
}

fn different(item: &Item, kind: DivergenceKind, reply: &[u8]) -> Judgement {
    let first = commands(&item.request).next().unwrap_or_default();
    let request = Request::parse(first);
    let known = crate::protocol::resp::command::lookup_request(&request);
    let key = known
        .and_then(|known| known.keys(&request).next())
        .and_then(|at| request.arg(at))
        .unwrap_or_default();
    Judgement::Different(Box::new(Found {
        command: name_of(&item.request),
        key: mirror_judge::shown(key),
        kind,
        primary: mirror_judge::shown(&item.reply),
        secondary: mirror_judge::shown(reply),
    }))
}
