//! The command corpus: one command per line of `redis_corpus.txt`, each with exactly one reply.

use super::resp::encode;

const TEXT: &str = include_str!("redis_corpus.txt");

/// One command of the corpus.
pub struct Entry {
    /// The line number, for messages.
    pub line: usize,
    pub text: &'static str,
    pub args: Vec<Vec<u8>>,
    /// The reply's value depends on the clock or the connection: only its type is compared.
    pub volatile: bool,
}

impl Entry {
    pub fn bytes(&self) -> Vec<u8> {
        encode(&self.args)
    }

    /// What of a reply must be equal.
    pub fn comparable(&self, reply: &[u8]) -> Vec<u8> {
        if self.volatile {
            reply[..1].to_vec()
        } else {
            reply.to_vec()
        }
    }
}

/// The corpus in order. Empty lines and lines that begin with `#` are comments; `~` in front marks a volatile reply.
pub fn corpus() -> Vec<Entry> {
    let lines = TEXT
        .lines()
        .enumerate()
        .map(|(at, text)| (at + 1, text.trim()));
    let lines = lines.filter(|(_, text)| !text.is_empty() && !text.starts_with('#'));
    lines
        .map(|(line, text)| {
            let (volatile, words) = match text.strip_prefix('~') {
                Some(rest) => (true, rest),
                None => (false, text),
            };
            Entry {
                line,
                text,
                args: split(words),
                volatile,
            }
        })
        .collect()
}

/// Words as redis-cli takes them: blanks separate, double quotes hold `\n \r \t \" \\ \xHH`.
fn split(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quoted = false;
    let mut bytes = line.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            b'\\' if quoted => {
                let escaped = match bytes.next().expect("an escape") {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'x' => {
                        let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                        u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                    }
                    other => other,
                };
                word.get_or_insert_default().push(escaped);
            }
            b' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    assert!(!quoted, "unbalanced quotes: {line}");
    words.extend(word);
    words
}
