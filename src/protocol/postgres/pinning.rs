//! Which statements leave something in the session that cannot be carried to another connection: where primary connections are
//! shared, the client that runs one keeps its connection.
//!
//! Temporary tables, session-level advisory locks, LISTEN, cursors WITH HOLD, LOAD, and `set_config` for the session. Read from
//! the text alone: what a function does inside is not seen. Beside them: what undoes such things.

use super::lexer::{Lexer, Token};

/// Whether the text may leave such a thing behind.
pub fn pins(sql: &[u8]) -> bool {
    let mut begins = true;
    // The word before, in lower case, as far as it matters.
    let mut before = Before::Other;
    let mut lexer = Lexer::new(sql);
    while let Some(token) = lexer.next() {
        let Token::Word(word) = token else {
            begins = token == Token::Op(b';');
            before = Before::Other;
            continue;
        };
        let is = |keyword: &str| word.eq_ignore_ascii_case(keyword.as_bytes());
        let begins_with = |prefix: &str| {
            word.get(..prefix.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        if begins && (is("listen") || is("load")) {
            return true;
        }
        let pinned = match before {
            Before::Create => is("temp") || is("temporary"),
            Before::With => is("hold"),
            Before::Other => false,
        };
        if pinned
            || is("pg_temp")
            || begins_with("pg_advisory_lock")
            || begins_with("pg_try_advisory_lock")
            || (is("set_config") && !is_local(lexer.clone()))
        {
            return true;
        }
        before = match () {
            () if is("create") || is("into") || is("local") || is("global") || is("replace") => {
                Before::Create
            }
            () if is("with") => Before::With,
            () => Before::Other,
        };
        begins = false;
    }
    false
}

#[derive(Clone, Copy)]
enum Before {
    Create,
    With,
    Other,
}

/// Whether the call that `lexer` is about to read ends with `true)`.
fn is_local(lexer: Lexer<'_>) -> bool {
    let (mut depth, mut last) = (0_u32, None);
    for token in lexer {
        match token {
            Token::Op(b'(') => depth += 1,
            Token::Op(b')') if depth <= 1 => {
                return last.is_some_and(|token: Token<'_>| token.is("true"));
            }
            Token::Op(b')') => depth -= 1,
            _ => {}
        }
        last = Some(token);
    }
    false
}

/// What RESET or DISCARD ALL returns to what it was.
#[derive(Debug, PartialEq, Eq)]
pub enum Reset {
    /// Everything.
    All,
    /// The setting of this name.
    One(Vec<u8>),
}

impl Reset {
    /// What this text resets, if it begins with such a statement.
    pub fn of(sql: &[u8]) -> Option<Reset> {
        let mut words = Lexer::new(sql);
        let first = words.next()?;
        let second = words.next()?;
        match second {
            _ if !first.is("reset") && !first.is("discard") => None,
            _ if second.is("all") => Some(Reset::All),
            Token::Word(name) if first.is("reset") => Some(match second.is("time") {
                true => Reset::One(b"TimeZone".to_vec()),
                false => Reset::One(name.to_vec()),
            }),
            _ => None,
        }
    }
}

/// Whether the text is DISCARD ALL, DEALLOCATE ALL or DEALLOCATE PREPARE ALL. (A single DEALLOCATE cannot find a statement
/// that was prepared by the protocol: it has another name on the server.)
pub fn clears_all(sql: &[u8]) -> bool {
    let mut words = Lexer::new(sql);
    let first = words.next();
    if !first.is_some_and(|word| word.is("discard") || word.is("deallocate")) {
        return false;
    }
    let last = match words.next() {
        Some(word) if word.is("prepare") => words.next(),
        other => other,
    };
    last.is_some_and(|word| word.is("all"))
}

/// Whether the text's first word is this keyword.
pub fn begins_with(sql: &[u8], keyword: &str) -> bool {
    Lexer::new(sql)
        .next()
        .is_some_and(|token| token.is(keyword))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_in_the_session_is_seen() {
        for sql in [
            "LISTEN news",
            "SELECT 1; listen news",
            "CREATE TEMP TABLE t (a int)",
            "create temporary sequence s",
            "CREATE LOCAL TEMP TABLE t (a int)",
            "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
            "SELECT 1 AS a INTO TEMP t",
            "CREATE TABLE pg_temp.t (a int)",
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_try_advisory_lock_shared(1)",
            "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "LOAD 'auto_explain'",
            "SELECT set_config('search_path', 'x', false)",
            "SELECT set_config('a.b', $1, $2)",
        ] {
            assert!(pins(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn what_ends_with_the_transaction_or_can_be_carried_is_not() {
        for sql in [
            "SELECT 'LISTEN; pg_advisory_lock(1)'",
            "-- CREATE TEMP TABLE\nSELECT 1",
            "SELECT pg_advisory_xact_lock(1)",
            "SELECT pg_advisory_unlock(1)",
            "SET search_path = x",
            "NOTIFY news",
            "UNLISTEN *",
            "SELECT temp FROM weather",
            "INSERT INTO temps VALUES (1)",
            "WITH hold_on AS (SELECT 1) SELECT 1",
            "SELECT set_config('a.b', 'c', true)",
            "PREPARE p AS SELECT 1",
        ] {
            assert!(!pins(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn resets_and_clearings_are_told_from_their_likes() {
        assert_eq!(Reset::of(b"RESET ALL"), Some(Reset::All));
        assert_eq!(Reset::of(b"discard all"), Some(Reset::All));
        assert_eq!(
            Reset::of(b"RESET work_mem"),
            Some(Reset::One(b"work_mem".to_vec()))
        );
        assert_eq!(
            Reset::of(b"RESET TIME ZONE"),
            Some(Reset::One(b"TimeZone".to_vec()))
        );
        assert_eq!(Reset::of(b"DISCARD PLANS"), None);
        assert_eq!(Reset::of(b"SELECT all"), None);
        assert!(clears_all(b"DEALLOCATE PREPARE ALL") && clears_all(b"DISCARD ALL"));
        assert!(!clears_all(b"DEALLOCATE a") && !clears_all(b"DISCARD PLANS"));
    }
}
