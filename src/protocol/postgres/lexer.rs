//! Cuts SQL into tokens: enough of PostgreSQL's lexical rules to know what is a word, what is a literal and what is nested.
//!
//! Works on bytes of any encoding, borrows them, never recurses and never fails: an unfinished literal or comment ends with
//! the text. `standard_conforming_strings` is assumed to be on.

/// A token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'a> {
    /// An unquoted word: keyword or identifier.
    Word(&'a [u8]),
    /// A quoted identifier, quotes included.
    Quoted(&'a [u8]),
    /// A string, bit string or number.
    Literal(&'a [u8]),
    /// A parameter such as `$1`.
    Param(&'a [u8]),
    /// Any other single byte.
    Op(u8),
}

impl Token<'_> {
    /// The token is this keyword, whatever its case.
    pub fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Word(word) if word.eq_ignore_ascii_case(keyword.as_bytes()))
    }

    /// The token names something that outlives its transaction in the session.
    pub(super) fn is_trace(&self) -> bool {
        const TRACES: [&str; 8] = [
            "temp",
            "temporary",
            "hold",
            "set_config",
            "pg_advisory_lock",
            "pg_advisory_lock_shared",
            "pg_try_advisory_lock",
            "pg_try_advisory_lock_shared",
        ];
        TRACES.iter().any(|trace| self.is(trace))
    }
}

/// Iterates over the tokens of a text.
#[derive(Debug, Clone)]
pub struct Lexer<'a> {
    sql: &'a [u8],
    at: usize,
}

impl<'a> Lexer<'a> {
    /// Begins at the start of `sql`.
    pub fn new(sql: &'a [u8]) -> Self {
        Self { sql, at: 0 }
    }

    /// Where in the text the next token is looked for.
    pub fn position(&self) -> usize {
        self.at
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.sql.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_blank(&mut self) {
        while self.at < self.sql.len() {
            match (self.peek(0), self.peek(1)) {
                (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, _) => self.at += 1,
                (b'-', b'-') => {
                    let rest = &self.sql[self.at..];
                    self.at += memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                }
                (b'/', b'*') => self.skip_comment(),
                _ => return,
            }
        }
    }

    /// `/* … */`, nested as PostgreSQL nests them.
    fn skip_comment(&mut self) {
        let mut depth = 0usize;
        while self.at < self.sql.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    /// Behind the closing quote. A doubled quote stands for itself; with `escapes` so does a backslashed one.
    fn skip_quoted(&mut self, quote: u8, escapes: bool) {
        self.at += 1;
        while self.at < self.sql.len() {
            let byte = self.peek(0);
            let escaped = byte == b'\\' && escapes;
            if escaped || byte == quote && self.peek(1) == quote {
                self.at += 2;
            } else {
                self.at += 1;
                if byte == quote {
                    break;
                }
            }
        }
        self.at = self.at.min(self.sql.len());
    }

    /// `$tag$ … $tag$`; false if no such opening stands here.
    fn skip_dollar_string(&mut self) -> bool {
        let rest = &self.sql[self.at..];
        let Some(close) = memchr::memchr(b'$', &rest[1..]) else {
            return false;
        };
        let tag = &rest[..close + 2];
        let name = &tag[1..tag.len() - 1];
        let named = name.iter().all(|byte| is_word(*byte) && *byte != b'$')
            && !name.first().is_some_and(u8::is_ascii_digit);
        if !named {
            return false;
        }
        let body = &rest[tag.len()..];
        self.at += match memchr::memmem::find(body, tag) {
            Some(end) => tag.len() + end + tag.len(),
            None => rest.len(),
        };
        true
    }

    fn skip_while(&mut self, keep: impl Fn(u8) -> bool) {
        while self.at < self.sql.len() && keep(self.sql[self.at]) {
            self.at += 1;
        }
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.skip_blank();
        let start = self.at;
        let byte = *self.sql.get(start)?;
        let prefix = byte | 0x20;
        match (byte, self.peek(1)) {
            (b'\'', _) => self.skip_quoted(b'\'', false),
            (b'"', _) => {
                self.skip_quoted(b'"', false);
                return Some(Token::Quoted(&self.sql[start..self.at]));
            }
            (_, b'\'') if matches!(prefix, b'e' | b'b' | b'x' | b'n') => {
                self.at += 1;
                self.skip_quoted(b'\'', prefix == b'e');
            }
            (_, b'&') if prefix == b'u' && matches!(self.peek(2), b'\'' | b'"') => {
                let quote = self.peek(2);
                self.at += 2;
                self.skip_quoted(quote, false);
                if quote == b'"' {
                    return Some(Token::Quoted(&self.sql[start..self.at]));
                }
            }
            (b'$', b'0'..=b'9') => {
                self.at += 1;
                self.skip_while(|byte| byte.is_ascii_digit());
                return Some(Token::Param(&self.sql[start..self.at]));
            }
            (b'$', _) if self.skip_dollar_string() => {}
            (b'0'..=b'9', _) | (b'.', b'0'..=b'9') => self.skip_number(),
            _ if is_word_start(byte) => {
                self.skip_while(is_word);
                return Some(Token::Word(&self.sql[start..self.at]));
            }
            _ => {
                self.at += 1;
                return Some(Token::Op(byte));
            }
        }
        Some(Token::Literal(&self.sql[start..self.at]))
    }
}

impl Lexer<'_> {
    fn skip_number(&mut self) {
        while self.at < self.sql.len() {
            let byte = self.peek(0);
            let exponent = byte | 0x20 == b'e' && matches!(self.peek(1), b'+' | b'-');
            if exponent && self.peek(2).is_ascii_digit() {
                self.at += 2;
            } else if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.') {
                self.at += 1;
            } else {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(sql: &str) -> String {
        Lexer::new(sql.as_bytes())
            .map(|token| match token {
                Token::Word(word) => String::from_utf8_lossy(word).into_owned(),
                Token::Quoted(_) => "Q".into(),
                Token::Literal(_) => "L".into(),
                Token::Param(_) => "P".into(),
                Token::Op(byte) => (byte as char).to_string(),
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn literals_comments_and_names_are_told_apart() {
        assert_eq!(
            shape("select 'it''s', E'a\\'b', $1, $$x;y$$, $t$a$$b$t$, 1.5e-3"),
            "select L , L , P , L , L , L"
        );
        assert_eq!(shape("a /* x /* y */ z */ b -- c\n d"), "a b d");
        assert_eq!(shape("\"a\"\"b\" U&\"x\" u&'y' b'01' 'open"), "Q Q L L L");
        assert_eq!(shape("'a\\' x"), "L x");
        assert_eq!(shape("a$b$c"), "a$b$c");
        assert_eq!(shape("x::int[1]"), "x : : int [ L ]");
    }

    #[test]
    fn unfinished_text_ends_with_the_text() {
        for sql in [
            "'", "E'\\", "\"", "$a$ x", "/* /*", "--", "$", "U&'", "1e", "$$",
        ] {
            assert!(Lexer::new(sql.as_bytes()).count() <= 3, "{sql}");
        }
    }
}
