//! What a statement may do, told from its words; its fingerprint; whether its rows have an order. Reads a text and keeps nothing.

mod classify;
mod fingerprint;
mod plain;

use std::ops::{BitOr, BitOrAssign};

use super::lexer::{Lexer, Token};
pub use classify::classify;
pub use fingerprint::{FINGERPRINT_TEXT_MAX, fingerprint, fingerprint_hash};

/// A set of things that statements may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Class(u16);

impl Class {
    /// Nothing: an empty text.
    pub const NONE: Self = Self(0);
    /// Reads rows.
    pub const READS: Self = Self(1);
    /// Changes rows or takes locks on them.
    pub const WRITES: Self = Self(1 << 1);
    /// Changes definitions.
    pub const DDL: Self = Self(1 << 2);
    /// May do anything.
    pub const UNKNOWN: Self = Self(1 << 3);
    /// Opens a transaction block.
    pub const BEGIN: Self = Self(1 << 4);
    /// Commits it.
    pub const COMMIT: Self = Self(1 << 5);
    /// Rolls it back whole.
    pub const ROLLBACK: Self = Self(1 << 6);
    /// SAVEPOINT, RELEASE, ROLLBACK TO.
    pub const SAVEPOINT: Self = Self(1 << 7);
    /// Changes the session: SET, RESET, DISCARD, PREPARE, DEALLOCATE, LISTEN, UNLISTEN, LOAD.
    pub const SESSION: Self = Self(1 << 8);
    /// COPY … FROM STDIN.
    pub const COPY_IN: Self = Self(1 << 9);
    /// COPY … TO STDOUT.
    pub const COPY_OUT: Self = Self(1 << 10);
    /// DEALLOCATE or DISCARD: prepared statements may be gone.
    pub const DEALLOCATES: Self = Self(1 << 11);

    /// All of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Something of `other` is in this set.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// A transaction with this class passes `level`. The class of a transaction is the union of its statements'.
    pub fn passes(self, level: Level) -> bool {
        let (reads, writes) = (Self::READS, Self::WRITES | Self::DDL | Self::UNKNOWN);
        match level {
            Level::All => true,
            Level::Dml => self.intersects(Self::READS | Self::WRITES | Self::UNKNOWN),
            Level::Ddl => self.intersects(Self::DDL | Self::UNKNOWN),
            Level::Reads => self.intersects(reads) && !self.intersects(writes),
            Level::Writes => self.intersects(writes),
        }
    }
}

impl BitOr for Class {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Class {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Which transactions a mirror is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// All.
    All,
    /// Those that read or change rows.
    Dml,
    /// Those that change definitions.
    Ddl,
    /// Those that only read.
    Reads,
    /// Those that change anything.
    Writes,
}

/// Whether running `sql`, of this class, may leave something in the session that no later statement can take over to
/// another connection and that is in the way there: temporary tables, session locks, cursors WITH HOLD, settings made
/// by `set_config`. What functions and DO blocks do inside is not seen.
pub fn leaves_traces(sql: &[u8], class: Class) -> bool {
    // SELECT … INTO TEMP counts as DDL, a function as unknown; cursors are the only traces of what else there is.
    let may = class.intersects(Class::DDL | Class::UNKNOWN);
    let declares = || {
        Lexer::new(sql)
            .next()
            .is_some_and(|first| first.is("declare"))
    };
    (may || declares()) && Lexer::new(sql).any(|token| token.is_trace())
}

/// Every statement of `sql` has an ORDER BY of its own (not only in a subquery, window or aggregate): the order of its rows means
/// something. Rows that are equal under it may still come in any order.
pub fn has_order_by(sql: &[u8]) -> bool {
    let (mut depth, mut ordered, mut any, mut all) = (0u32, false, false, true);
    let mut order = false;
    for token in Lexer::new(sql) {
        let after_order = std::mem::replace(&mut order, depth == 0 && token.is("order"));
        match token {
            Token::Op(b'(') => depth += 1,
            Token::Op(b')') => depth = depth.saturating_sub(1),
            Token::Op(b';') if depth == 0 => {
                all &= ordered || !any;
                (ordered, any) = (false, false);
                continue;
            }
            _ if after_order && token.is("by") => ordered = true,
            _ => {}
        }
        any = true;
    }
    let last = ordered || !any;
    all && last
        && sql
            .iter()
            .any(|byte| !byte.is_ascii_whitespace() && *byte != b';')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(sql: &str) -> Class {
        classify(sql.as_bytes())
    }

    #[test]
    fn what_stays_in_the_session_without_a_statement_to_carry_it_is_a_trace() {
        let traces = |sql: &str| leaves_traces(sql.as_bytes(), classify(sql.as_bytes()));
        for sql in [
            "CREATE TEMP TABLE t(id int)",
            "create temporary view v as select 1",
            "SELECT 1 INTO TEMP t",
            "SELECT set_config('a.b', 'c', false)",
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_try_advisory_lock_shared(1)",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "SELECT 1; CREATE TEMP TABLE t(id int)",
        ] {
            assert!(traces(sql), "{sql}");
        }
        for sql in [
            "CREATE TABLE t(id int)",
            "SELECT pg_advisory_xact_lock(1)",
            "INSERT INTO temp VALUES ('temp')",
            "SELECT temp FROM hold",
            "DECLARE c CURSOR FOR SELECT 1",
            "SELECT f('temp')",
            "",
        ] {
            assert!(!traces(sql), "{sql}");
        }
    }

    #[test]
    fn unknown_passes_every_level_but_reads() {
        let unknown = class("call p()");
        assert!(
            [Level::All, Level::Dml, Level::Ddl, Level::Writes]
                .map(|l| unknown.passes(l))
                .iter()
                .all(|passes| *passes)
        );
        assert!(!unknown.passes(Level::Reads));
        assert!(class("begin; select 1; commit").passes(Level::Reads));
        assert!(!class("begin; select 1; update t set a = 1; commit").passes(Level::Reads));
        assert!(class("begin; drop table t; rollback").passes(Level::Ddl));
        assert!(!class("begin; drop table t; rollback").passes(Level::Dml));
        assert!(!class("insert into t values (1)").passes(Level::Ddl));
    }

    #[test]
    fn only_an_order_of_the_statement_itself_counts() {
        assert!(has_order_by(b"select a from t order by a"));
        assert!(has_order_by(b"select a from t ORDER /* x */ BY a;"));
        assert!(!has_order_by(
            b"select row_number() over (order by a) from t"
        ));
        assert!(!has_order_by(
            b"select a from t order by a; select b from t"
        ));
        assert!(!has_order_by(b"select 'order by' from t"));
        assert!(!has_order_by(b""));
    }
}
