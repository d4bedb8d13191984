//! What a statement may do, told from its words; its fingerprint; whether its rows have an order.
//!
//! **Classification.** A statement is classified by what it *may* do. `SELECT` reads; it also writes with `FOR UPDATE`,
//! `INTO` or a CTE that writes. A `SELECT` that calls a function which is not one of PostgreSQL's own plain ones may do anything:
//! it is *unknown* as well, as are `DO`, `CALL`, `EXECUTE` and every form that is not listed here. Unknown counts as both: it
//! is never filtered from `dml`, `ddl` or `writes`, and never passes `reads`. (Functions that an `INSERT`, `UPDATE` or `DELETE` calls are
//! not looked at: the statement counts as a write anyway.)

use std::ops::{BitOr, BitOrAssign};

use xxhash_rust::xxh3::Xxh3;

use super::lexer::{Lexer, Token};

/// Longest normalized text that [`fingerprint`] gives; the hash covers all of it.
pub const FINGERPRINT_TEXT_MAX: usize = 1024;

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

/// Words that stand before a parenthesis and change nothing: keywords, type names, PostgreSQL's common plain functions. Sorted.
const PLAIN: &[&[u8]] = &[
    b"abs",
    b"age",
    b"all",
    b"and",
    b"any",
    b"array",
    b"array_agg",
    b"array_append",
    b"array_length",
    b"array_to_string",
    b"as",
    b"avg",
    b"between",
    b"bit_length",
    b"bool_and",
    b"bool_or",
    b"btrim",
    b"by",
    b"case",
    b"cast",
    b"ceil",
    b"ceiling",
    b"char",
    b"char_length",
    b"character",
    b"coalesce",
    b"concat",
    b"concat_ws",
    b"count",
    b"cube",
    b"date_part",
    b"date_trunc",
    b"decimal",
    b"decode",
    b"dense_rank",
    b"distinct",
    b"else",
    b"encode",
    b"every",
    b"except",
    b"exists",
    b"exp",
    b"extract",
    b"filter",
    b"first_value",
    b"float",
    b"floor",
    b"format",
    b"from",
    b"generate_series",
    b"greatest",
    b"group",
    b"grouping",
    b"having",
    b"in",
    b"initcap",
    b"intersect",
    b"interval",
    b"join",
    b"json_agg",
    b"json_build_object",
    b"jsonb_agg",
    b"jsonb_build_object",
    b"lag",
    b"last_value",
    b"lateral",
    b"lead",
    b"least",
    b"left",
    b"length",
    b"limit",
    b"ln",
    b"log",
    b"lower",
    b"lpad",
    b"ltrim",
    b"make_date",
    b"materialized",
    b"max",
    b"md5",
    b"min",
    b"mod",
    b"not",
    b"now",
    b"ntile",
    b"nullif",
    b"numeric",
    b"octet_length",
    b"offset",
    b"on",
    b"or",
    b"over",
    b"overlay",
    b"partition",
    b"position",
    b"power",
    b"rank",
    b"regexp_replace",
    b"repeat",
    b"replace",
    b"reverse",
    b"right",
    b"rollup",
    b"round",
    b"row",
    b"row_number",
    b"row_to_json",
    b"rpad",
    b"rtrim",
    b"select",
    b"sets",
    b"sign",
    b"some",
    b"split_part",
    b"sqrt",
    b"stddev",
    b"string_agg",
    b"string_to_array",
    b"strpos",
    b"substr",
    b"substring",
    b"sum",
    b"then",
    b"time",
    b"timestamp",
    b"timestamptz",
    b"to_char",
    b"to_date",
    b"to_json",
    b"to_jsonb",
    b"to_number",
    b"to_timestamp",
    b"translate",
    b"trim",
    b"trunc",
    b"union",
    b"unnest",
    b"upper",
    b"using",
    b"values",
    b"varchar",
    b"variance",
    b"varying",
    b"when",
    b"where",
    b"within",
];

/// A hash that is the same for statements that differ only in literals, parameters, comments, spacing and case of unquoted words, and
/// the normalized text (at most [`FINGERPRINT_TEXT_MAX`] bytes). Lists of literals count as one.
pub fn fingerprint(sql: &[u8]) -> (u64, String) {
    let normal = Normal::of(sql, FINGERPRINT_TEXT_MAX);
    (
        normal.hash.digest(),
        String::from_utf8_lossy(&normal.text).into_owned(),
    )
}

/// The hash of [`fingerprint`] alone; allocates nothing.
pub fn fingerprint_hash(sql: &[u8]) -> u64 {
    Normal::of(sql, 0).hash.digest()
}

/// Behind a literal: takes `, literal` as often as it stands there.
fn skip_list(tokens: &mut std::iter::Peekable<Lexer<'_>>) {
    while tokens.peek() == Some(&Token::Op(b',')) {
        let mut ahead = tokens.clone();
        ahead.next();
        if !matches!(ahead.next(), Some(Token::Literal(_) | Token::Param(_))) {
            return;
        }
        *tokens = ahead;
    }
}

struct Normal {
    hash: Xxh3,
    /// The text's beginning.
    text: Vec<u8>,
    /// Longest text that is kept.
    text_max: usize,
    /// The next piece needs no space before it.
    glued: bool,
    /// The last piece is a letter of an operator, which the next may go on.
    in_operator: bool,
}

impl Normal {
    fn of(sql: &[u8], text_max: usize) -> Normal {
        let mut normal = Normal {
            hash: Xxh3::new(),
            text: Vec::new(),
            text_max,
            glued: true,
            in_operator: false,
        };
        let mut tokens = Lexer::new(sql).peekable();
        while let Some(token) = tokens.next() {
            match token {
                Token::Literal(_) | Token::Param(_) => {
                    normal.push(b"?", false);
                    skip_list(&mut tokens);
                }
                Token::Word(word) => normal.push(&word.to_ascii_lowercase(), false),
                Token::Quoted(name) => normal.push(name, false),
                Token::Op(b';') if tokens.peek().is_none() => {}
                Token::Op(byte) => normal.push(&[byte], true),
            }
        }
        normal
    }

    fn push(&mut self, piece: &[u8], op: bool) {
        const OPERATORS: &[u8] = b"+-*/<>=~!@#%^&|`?";
        let is_operator = op && OPERATORS.contains(&piece[0]);
        let follows = match piece {
            b")" | b"," | b"." | b";" | b":" => op,
            b"(" => op && !self.in_operator,
            // A sign begins anew, or two of them would read as a comment.
            b"+" | b"-" => false,
            _ => is_operator && self.in_operator,
        };
        self.in_operator = is_operator;
        let space = !(self.glued || follows);
        for part in [if space { &b" "[..] } else { b"" }, piece] {
            self.hash.update(part);
            let room = self.text_max - self.text.len();
            self.text.extend_from_slice(&part[..part.len().min(room)]);
        }
        self.glued = op && matches!(piece, b"(" | b"." | b":");
    }
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
    fn operators_of_several_letters_stay_whole_in_the_text() {
        for (sql, text) in [
            ("select a||'x' from t", "select a || ? from t"),
            ("select a || (b) from t", "select a || (b) from t"),
            (
                "where a<=1 and b!=2 and c->>'k'='v'",
                "where a <= ? and b != ? and c ->> ? = ?",
            ),
            ("select a - -1, a*-1, f(x)", "select a - - ?, a * - ?, f(x)"),
            ("select count(*) from t", "select count(*) from t"),
            ("select x::int", "select x::int"),
        ] {
            assert_eq!(fingerprint(sql.as_bytes()).1, text, "{sql}");
        }
    }

    #[test]
    fn the_table_of_plain_words_is_sorted() {
        assert!(PLAIN.is_sorted());
    }

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
            assert_eq!(class(sql), want, "{sql}");
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
    fn the_fingerprint_sees_the_form_and_not_the_values() {
        let print = |sql: &str| fingerprint(sql.as_bytes());
        let base = print("select a.b from t where x = 1 and y in (1, 2, 3)");
        assert_eq!(
            base.0,
            fingerprint_hash(b"SELECT a.b FROM t WHERE x = 2 AND y IN ($1)")
        );
        assert_eq!(base.1, "select a.b from t where x = ? and y in(?)");
        assert_eq!(
            base,
            print("SELECT a.b /* c */ FROM t\nWHERE x = 'z' AND y IN ($1,$2);")
        );
        assert_ne!(
            base.0,
            print("select a.c from t where x = 1 and y in (1)").0
        );
        let long = format!("select {}", "x, ".repeat(5000));
        assert!(print(&long).1.len() <= FINGERPRINT_TEXT_MAX);
        assert_ne!(print(&long).0, print(&format!("{long} y")).0);
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
