//! A statement's letters as words: quotes, semicolons, equals signs.

use super::{AdminError, unknown};
use crate::control::commands::EVERY;
use crate::limits::ADMIN_STATEMENT_TOKENS_MAX;

/// The statements of a simple query: split at semicolons outside quotes, empty ones left out.
pub fn split(sql: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut quote, mut start) = (None, 0);
    for (at, letter) in sql.char_indices() {
        match (quote, letter) {
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), letter) if open == letter => quote = None,
            (None, ';') => {
                out.push(&sql[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&sql[start..]);
    out.retain(|part| !part.trim().is_empty());
    out
}

/// One word; `quoted` words are never keywords.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) text: String,
    quoted: bool,
}

/// What is left of a statement.
pub(super) struct Words(std::iter::Peekable<std::vec::IntoIter<Word>>);

impl Words {
    pub(super) fn of(sql: &str) -> Result<Words, AdminError> {
        let mut words = Vec::new();
        let mut letters = sql.chars().peekable();
        while let Some(letter) = letters.next() {
            if words.len() > ADMIN_STATEMENT_TOKENS_MAX {
                return Err(unknown("the statement is too long"));
            }
            match letter {
                ';' => {}
                letter if letter.is_whitespace() => {}
                '\'' | '"' => {
                    let mut text = String::new();
                    loop {
                        match letters.next() {
                            Some(end) if end == letter && letters.peek() == Some(&letter) => {
                                letters.next();
                                text.push(letter);
                            }
                            Some(end) if end == letter => break,
                            Some(other) => text.push(other),
                            None => return Err(unknown("a quote is not closed")),
                        }
                    }
                    words.push(Word { text, quoted: true });
                }
                '=' => words.push(Word {
                    text: "=".to_owned(),
                    quoted: false,
                }),
                letter => {
                    let mut text = String::from(letter);
                    let ends = |c: &char| c.is_whitespace() || ";='\"".contains(*c);
                    while let Some(more) = letters.next_if(|c| !ends(c)) {
                        text.push(more);
                    }
                    words.push(Word {
                        text,
                        quoted: false,
                    });
                }
            }
        }
        Ok(Words(words.into_iter().peekable()))
    }

    pub(super) fn next(&mut self) -> Option<Word> {
        self.0.next()
    }

    /// The next word in lower case, unless it is quoted.
    pub(super) fn keyword(&mut self) -> Option<String> {
        let word = self.0.next_if(|word| !word.quoted)?;
        Some(word.text.to_lowercase())
    }

    pub(super) fn peek_keyword(&mut self) -> Option<String> {
        let word = self.0.peek().filter(|word| !word.quoted)?;
        Some(word.text.to_lowercase())
    }

    /// `FOR name`, if it stands here.
    pub(super) fn target(&mut self) -> Option<String> {
        (self.peek_keyword().as_deref() == Some("for")).then(|| {
            self.next();
            self.name()
        })
    }

    /// A name as it was written; without one, every mirror.
    pub(super) fn name(&mut self) -> String {
        self.next()
            .map_or_else(|| EVERY.to_owned(), |word| word.text)
    }

    /// A word that has to be there.
    pub(super) fn value(&mut self, after: &str) -> Result<String, AdminError> {
        let word = self.next().map(|word| word.text);
        word.ok_or_else(|| unknown(&format!("{after} lacks its value")))
    }

    pub(super) fn number(&mut self, after: &str) -> Result<usize, AdminError> {
        let number = self.next().and_then(|word| word.text.parse().ok());
        number.ok_or_else(|| unknown(&format!("{after} takes a number")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_split_outside_quotes() {
        assert_eq!(
            split("SHOW HELP; PAUSE 'a;b' ;; "),
            ["SHOW HELP", " PAUSE 'a;b' "]
        );
    }
}
