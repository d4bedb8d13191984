//! Classification, word by word.
//!
//! A statement is classified by what it *may* do. `SELECT` reads; it also writes with `FOR UPDATE`, `INTO` or a CTE that writes.
//! A `SELECT` that calls a function which is not one of PostgreSQL's own plain ones may do anything: it is *unknown* as well, as
//! are `DO`, `CALL`, `EXECUTE` and every form that is not listed here. Unknown counts as both: it is never filtered from `dml`,
//! `ddl` or `writes`, and never passes `reads`. (Functions that an `INSERT`, `UPDATE` or `DELETE` calls are not looked at: the
//! statement counts as a write anyway.)

use super::Class;
use super::plain::PLAIN;
use crate::protocol::postgres::lexer::{Lexer, Token};

/// The union of what the statements of `sql` may do.
pub fn classify(sql: &[u8]) -> Class {
    let mut class = Class::NONE;
    let mut statement = Statement::default();
    for token in Lexer::new(sql) {
        match token {
            Token::Op(b';') if statement.depth == 0 => {
                class |= std::mem::take(&mut statement).class();
            }
            token => statement.take(token),
        }
    }
    class | statement.class()
}

/// The form of a statement, from its first word.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Form {
    #[default]
    Empty,
    /// Looks for writes, INTO, FOR UPDATE and functions inside.
    Query,
    Copy,
    /// The class of what follows, if it is run.
    Explain,
    /// ROLLBACK, COMMIT, PREPARE, SET …: decided by a later word.
    Rollback,
    Commit,
    Prepare,
    Set,
    Discard,
    Declare,
    /// Decided.
    Plain,
    /// BEGIN ATOMIC bodies and the like need no look inside.
    Opaque,
}

/// One statement, word by word.
#[derive(Default)]
struct Statement<'a> {
    form: Form,
    class: Class,
    depth: u32,
    words: u32,
    /// EXPLAIN with ANALYZE.
    analyzed: bool,
    explained: Class,
    prev: Option<Token<'a>>,
    before_prev: Option<Token<'a>>,
}

impl<'a> Statement<'a> {
    fn take(&mut self, token: Token<'a>) {
        match token {
            Token::Op(b'(') => {
                if self.form == Form::Query && self.calls_unknown_function() {
                    self.class |= Class::UNKNOWN;
                }
                self.depth += 1;
            }
            Token::Op(b')') => self.depth = self.depth.saturating_sub(1),
            Token::Word(word) => {
                let mut lower = [0; 24];
                let word = lower_word(word, &mut lower);
                if self.form == Form::Empty {
                    self.first_word(word);
                } else {
                    self.later_word(word);
                }
                self.words += 1;
            }
            _ => {}
        }
        if self.form == Form::Empty && !matches!(token, Token::Op(b'(') | Token::Word(_)) {
            // No statement begins like this.
            self.form = Form::Opaque;
            self.class = Class::UNKNOWN;
        }
        self.before_prev = self.prev;
        self.prev = Some(token);
    }

    fn first_word(&mut self, word: &[u8]) {
        let (form, class) = match word {
            b"select" | b"with" | b"values" | b"table" => (Form::Query, Class::READS),
            b"insert" | b"update" | b"delete" | b"merge" | b"lock" | b"notify" => {
                (Form::Plain, Class::WRITES)
            }
            b"truncate" | b"refresh" => (Form::Plain, Class::WRITES | Class::DDL),
            b"create" | b"alter" | b"drop" | b"comment" | b"grant" | b"revoke" | b"reindex"
            | b"cluster" | b"reassign" | b"security" | b"import" | b"vacuum" | b"analyze"
            | b"analyse" | b"checkpoint" => (Form::Opaque, Class::DDL),
            b"show" | b"fetch" | b"move" | b"close" => (Form::Plain, Class::READS),
            b"declare" => (Form::Declare, Class::READS),
            b"copy" => (Form::Copy, Class::NONE),
            b"explain" => (Form::Explain, Class::READS),
            b"begin" | b"start" => (Form::Plain, Class::BEGIN),
            b"commit" | b"end" => (Form::Commit, Class::COMMIT),
            b"rollback" | b"abort" => (Form::Rollback, Class::ROLLBACK),
            b"savepoint" | b"release" => (Form::Plain, Class::SAVEPOINT),
            b"set" => (Form::Set, Class::SESSION),
            b"reset" | b"listen" | b"unlisten" | b"load" => (Form::Plain, Class::SESSION),
            b"discard" | b"deallocate" => (Form::Discard, Class::SESSION | Class::DEALLOCATES),
            b"prepare" => (Form::Prepare, Class::SESSION),
            _ => (Form::Opaque, Class::UNKNOWN),
        };
        self.form = form;
        self.class = class;
    }

    fn later_word(&mut self, word: &[u8]) {
        let second = self.words == 1;
        match (self.form, word) {
            (Form::Query | Form::Declare, _) => self.query_word(word),
            (Form::Copy, _) => self.copy_word(word),
            (Form::Explain, b"analyze" | b"analyse") => self.analyzed = true,
            (Form::Explain, _) => self.explain_word(word),
            (Form::Rollback, b"to") => self.class = Class::SAVEPOINT,
            (Form::Rollback | Form::Commit, b"prepared") if second => self.class = Class::UNKNOWN,
            (Form::Prepare, b"transaction") if second => {
                self.class = Class::COMMIT | Class::WRITES;
            }
            (Form::Set, b"local" | b"transaction" | b"constraints") if second => {
                self.class = Class::NONE;
            }
            _ => {}
        }
    }

    fn prev_is(&self, keyword: &str) -> bool {
        self.prev.is_some_and(|prev| prev.is(keyword))
    }

    fn query_word(&mut self, word: &[u8]) {
        match word {
            b"insert" | b"delete" | b"merge" if self.may_begin_statement() => {
                self.class |= Class::WRITES;
            }
            b"update"
                if self.may_begin_statement() || self.prev_is("for") || self.prev_is("key") =>
            {
                self.class |= Class::WRITES;
            }
            b"share" if self.prev_is("for") || self.prev_is("key") => self.class |= Class::WRITES,
            b"into" if !self.prev_is("insert") && !self.prev_is("merge") => {
                self.class |= Class::WRITES | Class::DDL;
            }
            _ => {}
        }
    }

    /// Here a statement may begin: behind `(` (a CTE's body) or `)` (behind the last CTE).
    fn may_begin_statement(&self) -> bool {
        matches!(self.prev, Some(Token::Op(b'(' | b')')))
    }

    fn copy_word(&mut self, word: &[u8]) {
        match word {
            b"from" if self.depth == 0 => self.class |= Class::WRITES,
            b"to" if self.depth == 0 => self.class |= Class::READS,
            b"stdin" if self.prev_is("from") => self.class |= Class::COPY_IN,
            b"stdout" if self.prev_is("to") => self.class |= Class::COPY_OUT,
            _ if self.depth > 0 => self.query_word(word),
            _ => {}
        }
    }

    /// The explained statement's own first word, outside of EXPLAIN's options.
    fn explain_word(&mut self, word: &[u8]) {
        if self.explained == Class::NONE && self.depth == 0 && word != b"verbose" {
            let mut inner = Statement::default();
            inner.first_word(word);
            self.explained = inner.class;
        } else {
            let before = self.class;
            self.query_word(word);
            self.explained |= self.class;
            self.class = before;
        }
    }

    /// The token before this `(` names a function that is not known to be plain.
    fn calls_unknown_function(&self) -> bool {
        let qualified = matches!(self.before_prev, Some(Token::Op(b'.')));
        match self.prev {
            Some(Token::Quoted(_)) => true,
            Some(Token::Word(word)) => {
                let defines = self.before_prev.is_some_and(|token| {
                    token.is("with") || token.is("recursive") || token.is("as")
                }) || matches!(self.before_prev, Some(Token::Op(b')')));
                let mut lower = [0; 24];
                let word = lower_word(word, &mut lower);
                qualified || !(defines || PLAIN.binary_search(&word).is_ok())
            }
            _ => false,
        }
    }

    fn class(self) -> Class {
        match self.form {
            Form::Explain if self.analyzed => self.class | self.explained,
            _ => self.class,
        }
    }
}

/// The word in lower case; one that is too long to be a keyword as it stands.
fn lower_word<'b>(word: &'b [u8], buffer: &'b mut [u8; 24]) -> &'b [u8] {
    match buffer.get_mut(..word.len()) {
        Some(lower) => {
            lower.copy_from_slice(word);
            lower.make_ascii_lowercase();
            lower
        }
        None => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_classified_by_what_they_may_do() {
        use Class as C;
        for (sql, want) in [
            ("", C::NONE),
            (" ; ; ", C::NONE),
            ("select 1", C::READS),
            ("(select 1) union (select 2)", C::READS),
            ("select count(*), max(x) from t where a in (1,2)", C::READS),
            ("select nextval('s')", C::READS | C::UNKNOWN),
            ("select my.lower(x) from t", C::READS | C::UNKNOWN),
            ("select * from t for update", C::READS | C::WRITES),
            ("select * from t for no key update", C::READS | C::WRITES),
            ("select * from t for share", C::READS | C::WRITES),
            ("select a into b from c", C::READS | C::WRITES | C::DDL),
            (
                "with x as (delete from t returning *) select * from x",
                C::READS | C::WRITES,
            ),
            (
                "with x as (select 1) insert into t select * from x",
                C::READS | C::WRITES,
            ),
            (
                "with x(a) as materialized (select 1) select a from x",
                C::READS,
            ),
            ("select 'delete from t' as \"insert\"", C::READS),
            ("insert into t(a) values (1)", C::WRITES),
            (
                "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE",
                C::WRITES,
            ),
            ("truncate t", C::WRITES | C::DDL),
            ("do $$ begin delete from t; end $$", C::UNKNOWN),
            ("call p()", C::UNKNOWN),
            ("execute s1", C::UNKNOWN),
            ("explain delete from t", C::READS),
            ("explain analyze delete from t", C::READS | C::WRITES),
            (
                "explain (analyze, buffers) delete from t",
                C::READS | C::WRITES,
            ),
            ("explain (costs off) select 1", C::READS),
            ("create table t as select 1", C::DDL),
            ("copy t from stdin", C::WRITES | C::COPY_IN),
            (
                "copy t (a, b) from stdin with (format csv)",
                C::WRITES | C::COPY_IN,
            ),
            ("copy (select 1) to stdout", C::READS | C::COPY_OUT),
            (
                "copy (delete from t returning a) to stdout",
                C::READS | C::WRITES | C::COPY_OUT,
            ),
            ("begin", C::BEGIN),
            ("start transaction read only", C::BEGIN),
            ("end", C::COMMIT),
            ("rollback", C::ROLLBACK),
            ("rollback to savepoint a", C::SAVEPOINT),
            ("commit prepared 'x'", C::UNKNOWN),
            ("set timezone = 'UTC'", C::SESSION),
            ("set local timezone = 'UTC'", C::NONE),
            ("discard all", C::SESSION | C::DEALLOCATES),
            (
                "begin; insert into t values (1); commit",
                C::BEGIN | C::WRITES | C::COMMIT,
            ),
            ("frobnicate", C::UNKNOWN),
            ("'x'", C::UNKNOWN),
        ] {
            assert_eq!(classify(sql.as_bytes()), want, "{sql}");
        }
    }
}
