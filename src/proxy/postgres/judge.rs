//! Holds a mirror's results against the primary's.
//!
//! **What is flagged.** `compare = "status"` looks at the command tag or the SQLSTATE of every statement. A command tag
//! holds the number of rows that an INSERT, UPDATE, DELETE, COPY or SELECT touched, so a statement that hits another
//! number of rows is a difference; what is *in* the rows is not looked at. Results that only one server can give (the
//! time, random numbers, sequence values) are therefore never differences under `status`.
//!
//! `compare = "rows"` also looks at column names and types and at a digest of the rows. It flags as `data_mismatch`,
//! rightly but uselessly, a statement whose result is volatile: `now()`, `clock_timestamp()` and columns that they were
//! stored in; `random()`, `gen_random_uuid()`; `nextval()`, serial and identity values in RETURNING (they differ as soon
//! as one insert was sampled away, dropped, rolled back or raced); `txid_current()`, `xmin`, `ctid`; `pg_backend_pid()`,
//! `inet_server_port()`, `current_user` where the mirror has a login of its own; `version()`; EXPLAIN; statistics views;
//! floating-point sums over unordered rows; OIDs of user types and tables. Rows that come in another order are only a
//! difference if a statement of the unit has an ORDER BY; an ORDER BY with ties may still flag what both do right.
//! Below exposure 1.0 the mirror's data lags behind, so reads of rows that were written in transactions it did not see
//! differ too: compare rows of written data at exposure 1.0, or with `level = "reads"` against a snapshot that does not change.
//!
//! A control mirror (`control = true`, a server of the primary's own kind) recognises most of this: where it differs from the
//! primary in the same statement, a mismatch is `noise`.
//!
//! Not compared, and counted so: units that were cancelled on the primary (how far each server came is chance) and units
//! that timed out on the mirror.

use smallvec::SmallVec;

use super::outcome::PostgresOutcome;
use crate::config::Compare;
use crate::metrics::DivergenceKind;
use crate::mirror::unit::Unit;
use crate::protocol::postgres::compare::{Divergence, Kind, Mode, UnitOutcome, compare, differing};
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

/// The statements in which a control differs from the primary: what it cannot repeat is volatile.
pub(super) fn volatile(
    unit: &Unit<Chunk, PostgresOutcome>,
    control: &UnitOutcome,
    how: Compare,
) -> SmallVec<[usize; 4]> {
    let mode = match how {
        Compare::Off => return SmallVec::new(),
        Compare::Status => Mode::Status,
        Compare::Rows => Mode::Rows,
    };
    let primary = &unit.outcome.result;
    match compare(primary, control, mode, true) {
        Ok(()) => SmallVec::new(),
        Err(_) => differing(primary, control, mode, asks_for_order(unit)),
    }
}

/// Whether any statement of the unit has an ORDER BY; looked at only when the order is all that differs.
fn asks_for_order(unit: &Unit<Chunk, PostgresOutcome>) -> bool {
    let bytes = unit.payload.joined();
    let mut framer = MessageFramer::client();
    let mut rest = &bytes[..];
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
