//! Fingerprints: what statements that differ only in their values have in common.

use xxhash_rust::xxh3::Xxh3;

use crate::protocol::postgres::lexer::{Lexer, Token};

/// Longest normalized text that [`fingerprint`] gives; the hash covers all of it.
pub const FINGERPRINT_TEXT_MAX: usize = 1024;

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
                Token::Word(word) => normal.push_word(word),
                Token::Quoted(name) => normal.push(name, false),
                Token::Op(b';') if tokens.peek().is_none() => {}
                Token::Op(byte) => normal.push(&[byte], true),
            }
        }
        normal
    }

    /// An unquoted word, in lower case.
    fn push_word(&mut self, word: &[u8]) {
        self.in_operator = false;
        if !self.glued {
            self.append(b" ");
        }
        self.glued = false;
        let mut lower = [0; 64];
        for part in word.chunks(lower.len()) {
            let lower = &mut lower[..part.len()];
            lower.copy_from_slice(part);
            lower.make_ascii_lowercase();
            self.append(lower);
        }
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
        if !(self.glued || follows) {
            self.append(b" ");
        }
        self.append(piece);
        self.glued = op && matches!(piece, b"(" | b"." | b":");
    }

    fn append(&mut self, part: &[u8]) {
        self.hash.update(part);
        let room = self.text_max - self.text.len();
        self.text.extend_from_slice(&part[..part.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let words = |word: &str| print(&format!("select {}, y", word.repeat(100)));
        assert_eq!(words("Ab"), words("aB"));
        assert_eq!(words("Ab").1, format!("select {}, y", "ab".repeat(100)));
        let long = format!("select {}", "x, ".repeat(5000));
        assert!(print(&long).1.len() <= FINGERPRINT_TEXT_MAX);
        assert_ne!(print(&long).0, print(&format!("{long} y")).0);
    }
}
