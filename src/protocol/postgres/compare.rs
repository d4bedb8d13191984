//! Compares what a unit gave on the primary with what it gave on a mirror.

use std::fmt;

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use super::tracker::{Ending, StatementOutcome, TxStatus};

/// Statements of one unit whose outcomes are held one by one (about 128 KiB); those behind them are compared by one hash, so
/// that a transaction of a million inserts is compared in constant memory.
pub const STATEMENTS_HELD_MAX: usize = 1024;

/// The outcomes of one unit, in order.
#[derive(Debug, Clone, Default)]
pub struct UnitOutcome {
    statements: Vec<StatementOutcome>,
    /// When they ended, as far as [`UnitOutcome::stamp`] was called.
    ended_ns: SmallVec<[u64; 2]>,
    /// Statements that were counted and hashed but not held.
    more: u64,
    more_status: u64,
    more_rows: u64,
    errors: u64,
    /// The transaction status at the end.
    pub status: TxStatus,
}

impl UnitOutcome {
    /// Adds the next statement.
    pub fn push(&mut self, outcome: &StatementOutcome) {
        self.errors += u64::from(outcome.sqlstate().is_some());
        if self.statements.len() < STATEMENTS_HELD_MAX {
            self.statements.push(*outcome);
            return;
        }
        self.more += 1;
        let ending = match &outcome.ending {
            Ending::Complete(tag) => tag.as_str().as_bytes(),
            Ending::Error(code) => code.as_str().as_bytes(),
        };
        let digest = outcome.digest.map_or(0, |digest| digest.unordered as u64);
        let mut rows = [0; 16];
        rows[..8].copy_from_slice(&outcome.rows.to_be_bytes());
        rows[8..].copy_from_slice(&outcome.columns.to_be_bytes());
        let fold = |hash: u64, next: u64| hash.rotate_left(5).wrapping_add(next);
        self.more_status = fold(self.more_status, xxh3_64(ending));
        self.more_rows = fold(self.more_rows, xxh3_64(&rows).wrapping_add(digest));
    }

    /// Empty again, with the memory of an ordinary unit.
    pub fn clear(&mut self) {
        const KEPT: usize = 4;
        let mut statements = std::mem::take(&mut self.statements);
        statements.clear();
        statements.shrink_to(KEPT);
        *self = UnitOutcome {
            statements,
            ..UnitOutcome::default()
        };
    }

    /// What was pushed since the last call ended at `now_ns`.
    pub fn stamp(&mut self, now_ns: u64) {
        self.ended_ns.resize(self.statements.len(), now_ns);
    }

    /// Adds everything of a later part.
    pub fn append(&mut self, more: &UnitOutcome) {
        for (at, statement) in more.statements.iter().enumerate() {
            self.push(statement);
            self.stamp(more.ended_ns.get(at).copied().unwrap_or(0));
        }
    }

    /// When the held statements ended; empty if nobody noted it.
    pub fn ended_ns(&self) -> &[u64] {
        &self.ended_ns
    }

    /// The statements that are held.
    pub fn statements(&self) -> &[StatementOutcome] {
        &self.statements
    }

    /// How many statements there were.
    pub fn len(&self) -> u64 {
        self.statements.len() as u64 + self.more
    }

    /// No statement ended.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// How many failed.
    pub fn errors(&self) -> u64 {
        self.errors
    }
}

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Command tags and SQLSTATEs.
    Status,
    /// Also row counts, columns and digests of the rows.
    Rows,
}

/// In which way two outcomes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Another command tag, another SQLSTATE, or an error of the primary only.
    StatusMismatch,
    /// Other rows, another number of them, or other columns.
    DataMismatch,
    /// The mirror failed where the primary did not.
    SecondaryError,
    /// The primary has rows and the mirror none.
    MigrationGap,
    /// The mirror has rows and the primary none.
    ExtraData,
}

impl Kind {
    /// The name in metrics and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StatusMismatch => "status_mismatch",
            Self::DataMismatch => "data_mismatch",
            Self::SecondaryError => "secondary_error",
            Self::MigrationGap => "migration_gap",
            Self::ExtraData => "extra_data",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The first difference of two units. Holds no row data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// In which way they differ.
    pub kind: Kind,
    /// Which statement of the unit, from 0.
    pub statement: usize,
    /// What the primary gave.
    pub primary: String,
    /// What the mirror gave.
    pub mirror: String,
    /// The rows are the same and only their order differs: under an ORDER BY with ties both may be right.
    pub order_only: bool,
}

/// Compares a unit's outcomes; the first difference is the error. `ordered`: the order of rows counts.
pub fn compare(
    primary: &UnitOutcome,
    mirror: &UnitOutcome,
    mode: Mode,
    ordered: bool,
) -> Result<(), Divergence> {
    let pairs = primary
        .statements
        .iter()
        .zip(&mirror.statements)
        .enumerate();
    for (statement, (ours, theirs)) in pairs {
        compare_statement(statement, ours, theirs, mode, ordered)?;
    }
    let held = primary.statements.len().min(mirror.statements.len());
    let (ours, theirs) = (primary.len(), mirror.len());
    if ours != theirs {
        return Err(Divergence {
            kind: Kind::StatusMismatch,
            statement: held,
            primary: format!("{ours} statements"),
            mirror: format!("{theirs} statements"),
            order_only: false,
        });
    }
    let tails = [
        (
            Kind::StatusMismatch,
            primary.more_status,
            mirror.more_status,
        ),
        (Kind::DataMismatch, primary.more_rows, mirror.more_rows),
    ];
    let compared = if mode == Mode::Rows { 2 } else { 1 };
    match tails
        .iter()
        .take(compared)
        .find(|(_, ours, theirs)| ours != theirs)
    {
        Some((kind, ours, theirs)) => Err(Divergence {
            kind: *kind,
            statement: held,
            primary: format!("digest {ours:016x} of the statements from here on"),
            mirror: format!("digest {theirs:016x} of the statements from here on"),
            order_only: false,
        }),
        None => Ok(()),
    }
}

/// Every statement that differs, ascending; behind the last of the shorter outcome, the rest as one.
pub fn differing(
    primary: &UnitOutcome,
    mirror: &UnitOutcome,
    mode: Mode,
    ordered: bool,
) -> SmallVec<[usize; 4]> {
    let pairs = primary.statements.iter().zip(&mirror.statements);
    let differs = |(at, (ours, theirs)): (usize, (_, _))| {
        let same = compare_statement(at, ours, theirs, mode, ordered).is_ok();
        (!same).then_some(at)
    };
    let mut found: SmallVec<[usize; 4]> = pairs.enumerate().filter_map(differs).collect();
    let held = primary.statements.len().min(mirror.statements.len());
    let tails = |outcome: &UnitOutcome| (outcome.len(), outcome.more_status, outcome.more_rows);
    if tails(primary) != tails(mirror) {
        found.push(held);
    }
    found
}

fn compare_statement(
    statement: usize,
    primary: &StatementOutcome,
    mirror: &StatementOutcome,
    mode: Mode,
    ordered: bool,
) -> Result<(), Divergence> {
    let differ = |kind, ours: String, theirs: String, order_only| {
        Err(Divergence {
            kind,
            statement,
            primary: ours,
            mirror: theirs,
            order_only,
        })
    };
    let endings = || (primary.ending.to_string(), mirror.ending.to_string());
    match (primary.sqlstate(), mirror.sqlstate()) {
        (None, Some(_)) => {
            let (ours, theirs) = endings();
            return differ(Kind::SecondaryError, ours, theirs, false);
        }
        (Some(ours), Some(theirs)) if ours == theirs => return Ok(()),
        (None, None) if primary.rows == 0 && mirror.rows == 0 => {}
        (None, None) => {
            let kind = match (primary.rows, mirror.rows) {
                (_, 0) => Some(Kind::MigrationGap),
                (0, _) => Some(Kind::ExtraData),
                (ours, theirs) if ours != theirs => Some(Kind::DataMismatch),
                _ => None,
            };
            if let Some(kind) = kind.filter(|_| mode == Mode::Rows) {
                let rows = |n| format!("{n} rows");
                return differ(kind, rows(primary.rows), rows(mirror.rows), false);
            }
        }
        (Some(_), _) => {}
    }
    if primary.ending != mirror.ending {
        let (ours, theirs) = endings();
        return differ(Kind::StatusMismatch, ours, theirs, false);
    }
    if mode == Mode::Status {
        return Ok(());
    }
    if primary.columns != mirror.columns {
        let columns = |n| format!("columns {n:016x}");
        return differ(
            Kind::DataMismatch,
            columns(primary.columns),
            columns(mirror.columns),
            false,
        );
    }
    if let (Some(ours), Some(theirs)) = (primary.digest, mirror.digest)
        && (ours.unordered != theirs.unordered || ordered && ours.ordered != theirs.ordered)
    {
        let order_only = ours.unordered == theirs.unordered;
        let text = |digest: u128| format!("{} rows, digest {digest:032x}", primary.rows);
        return if order_only {
            differ(
                Kind::DataMismatch,
                text(ours.ordered),
                text(theirs.ordered),
                true,
            )
        } else {
            differ(
                Kind::DataMismatch,
                text(ours.unordered),
                text(theirs.unordered),
                false,
            )
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::postgres::digest::RowsDigest;
    use crate::protocol::postgres::tracker::{CommandTag, Sqlstate};

    fn rows(tag: &str, rows: &[u128]) -> StatementOutcome {
        let mut digest = RowsDigest::default();
        rows.iter().for_each(|row| digest.add(*row));
        StatementOutcome {
            ending: Ending::Complete(CommandTag::new(tag.as_bytes())),
            rows: rows.len() as u64,
            columns: 7,
            digest: Some(digest),
        }
    }

    fn failed(code: &str) -> StatementOutcome {
        StatementOutcome {
            ending: Ending::Error(Sqlstate::new(code.as_bytes())),
            ..rows("", &[])
        }
    }

    fn unit(statements: &[StatementOutcome]) -> UnitOutcome {
        let mut unit = UnitOutcome::default();
        statements.iter().for_each(|statement| unit.push(statement));
        unit
    }

    fn kind(ours: StatementOutcome, theirs: StatementOutcome, ordered: bool) -> Option<String> {
        compare(&unit(&[ours]), &unit(&[theirs]), Mode::Rows, ordered)
            .err()
            .map(|divergence| divergence.kind.to_string())
    }

    #[test]
    fn each_difference_has_its_kind() {
        let two = rows("SELECT 2", &[5, 6]);
        let swapped = rows("SELECT 2", &[6, 5]);
        assert_eq!(kind(two, two, true), None);
        assert_eq!(kind(two, swapped, false), None);
        assert_eq!(kind(two, swapped, true).as_deref(), Some("data_mismatch"));
        assert_eq!(
            kind(two, rows("SELECT 2", &[5, 7]), false).as_deref(),
            Some("data_mismatch")
        );
        assert_eq!(
            kind(two, rows("SELECT 1", &[5]), false).as_deref(),
            Some("data_mismatch")
        );
        assert_eq!(
            kind(two, rows("SELECT 0", &[]), false).as_deref(),
            Some("migration_gap")
        );
        assert_eq!(
            kind(rows("SELECT 0", &[]), two, false).as_deref(),
            Some("extra_data")
        );
        assert_eq!(
            kind(two, failed("42P01"), false).as_deref(),
            Some("secondary_error")
        );
        assert_eq!(
            kind(failed("42P01"), two, false).as_deref(),
            Some("status_mismatch")
        );
        assert_eq!(kind(failed("42P01"), failed("42P01"), false), None);
        assert_eq!(
            kind(failed("42P01"), failed("23505"), false).as_deref(),
            Some("status_mismatch")
        );
        assert_eq!(
            kind(rows("UPDATE 1", &[]), rows("UPDATE 2", &[]), false).as_deref(),
            Some("status_mismatch")
        );
        let mut other = two;
        other.columns = 8;
        assert_eq!(kind(two, other, false).as_deref(), Some("data_mismatch"));
    }

    #[test]
    fn status_mode_looks_at_tags_only() {
        let ours = unit(&[rows("SELECT 2", &[5, 6])]);
        let theirs = unit(&[rows("SELECT 2", &[5, 7])]);
        assert_eq!(compare(&ours, &theirs, Mode::Status, true), Ok(()));
    }

    #[test]
    fn a_long_unit_is_compared_in_bounded_memory() {
        let many = vec![rows("INSERT 0 1", &[]); 50_000];
        let (ours, same) = (unit(&many), unit(&many));
        assert_eq!(
            (ours.statements().len(), ours.len()),
            (STATEMENTS_HELD_MAX, 50_000)
        );
        assert_eq!(compare(&ours, &same, Mode::Rows, true), Ok(()));
        let mut other = many.clone();
        other[40_000] = failed("23505");
        assert!(compare(&ours, &unit(&other), Mode::Rows, true).is_err());
        assert!(compare(&ours, &unit(&many[1..]), Mode::Rows, true).is_err());
    }
}
