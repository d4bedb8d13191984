//! Holds a mirror's results against the primary's.

use super::outcome::PostgresOutcome;
use crate::config::Compare;
use crate::metrics::DivergenceKind;
use crate::mirror::unit::Unit;
use crate::protocol::postgres::compare::{Divergence, Kind, Mode, UnitOutcome, compare};
use crate::protocol::postgres::framer::MessageFramer;
use crate::protocol::postgres::sql;
use crate::ring::Chunk;

/// The first difference, if there is one.
pub(super) fn judge(
    unit: &Unit<Chunk, PostgresOutcome>,
    mirror: &UnitOutcome,
    how: Compare,
) -> Option<(DivergenceKind, Divergence)> {
    let mode = match how {
        Compare::Off => return None,
        Compare::Status => Mode::Status,
        Compare::Rows => Mode::Rows,
    };
    let primary = &unit.outcome.result;
    let mut found = compare(primary, mirror, mode, true).err()?;
    if found.order_only && !asks_for_order(unit) {
        // Without ORDER BY the order of rows is nobody's promise.
        found = compare(primary, mirror, mode, false).err()?;
    }
    Some((kind(found.kind), found))
}

/// Whether any statement of the unit has an ORDER BY; looked at only when the order is all that differs.
fn asks_for_order(unit: &Unit<Chunk, PostgresOutcome>) -> bool {
    let mut bytes = Vec::new();
    unit.payload.copy_into(&mut bytes);
    let mut framer = MessageFramer::client();
    let mut rest = bytes.as_slice();
    while let Ok(advance) = framer.advance(rest)
        && advance.done
    {
        let body = &rest[advance.body_at..advance.consumed];
        rest = &rest[advance.consumed..];
        let text = match framer.tag() {
            Some(b'Q') => body.split(|byte| *byte == 0).next(),
            Some(b'P') => body.split(|byte| *byte == 0).nth(1),
            // Its text came with an earlier unit.
            Some(b'B') => {
                let name = body.split(|byte| *byte == 0).nth(1).unwrap_or_default();
                unit.outcome
                    .names
                    .get(name)
                    .map(|statement| statement.sql())
            }
            _ => None,
        };
        if text.is_some_and(sql::has_order_by) {
            return true;
        }
    }
    false
}

fn kind(kind: Kind) -> DivergenceKind {
    match kind {
        Kind::StatusMismatch => DivergenceKind::StatusMismatch,
        Kind::DataMismatch => DivergenceKind::DataMismatch,
        Kind::SecondaryError => DivergenceKind::SecondaryError,
        Kind::MigrationGap => DivergenceKind::MigrationGap,
        Kind::ExtraData => DivergenceKind::ExtraData,
    }
}
