//! Names, words and literals of the statements that change a session.

use crate::protocol::postgres::lexer::{Lexer, Token};

/// A word in lower case, a quoted name without its quotes, an operator as it is; a literal's own bytes.
pub(super) fn name_of(token: &Token<'_>) -> Vec<u8> {
    match token {
        Token::Word(word) => word.to_ascii_lowercase(),
        Token::Quoted(name) if name.len() >= 2 => {
            let mut out = Vec::with_capacity(name.len());
            let mut bytes = name[1..name.len() - 1].iter();
            while let Some(&byte) = bytes.next() {
                out.push(byte);
                if byte == b'"' {
                    bytes.next();
                }
            }
            out
        }
        Token::Quoted(text) | Token::Literal(text) | Token::Param(text) => text.to_vec(),
        Token::Op(byte) => vec![*byte],
    }
}

/// The setting that `SET …` changes for the session; `None` for what belongs to a transaction.
pub(super) fn set_name(words: &[&[u8]]) -> Option<Vec<u8>> {
    match words {
        [b"local" | b"transaction" | b"constraints", ..] => None,
        [b"session", b"characteristics", ..] => Some(b"session characteristics".to_vec()),
        [b"session", b"authorization", ..] => Some(b"session_authorization".to_vec()),
        [b"session", b"session", b"authorization", ..] => Some(b"session_authorization".to_vec()),
        [b"session", rest @ ..] => set_name(rest),
        [b"time", b"zone", ..] => Some(b"timezone".to_vec()),
        [b"names", ..] => Some(b"client_encoding".to_vec()),
        [b"schema", ..] => Some(b"search_path".to_vec()),
        [name, rest @ ..] => Some(qualified(&name.to_ascii_lowercase(), rest)),
        [] => None,
    }
}

/// `name`, or `name.more` for a setting of an extension.
pub(super) fn qualified(name: &[u8], rest: &[&[u8]]) -> Vec<u8> {
    match rest {
        [b".", more, ..] => [name, b".", &more.to_ascii_lowercase()].concat(),
        _ => name.to_ascii_lowercase(),
    }
}

/// `ROLLBACK [WORK|TRANSACTION] TO [SAVEPOINT] name`.
pub(super) fn rollback_to(words: &[&[u8]]) -> Option<Vec<u8>> {
    let at = words.iter().position(|word| *word == b"to")?;
    match &words[at + 1..] {
        [b"savepoint", name, ..] | [name, ..] => Some(name.to_vec()),
        [] => None,
    }
}

/// `SET x TO DEFAULT`, `SET ROLE NONE`, `SET SESSION AUTHORIZATION DEFAULT`.
pub(super) fn to_default(text: &[u8]) -> bool {
    let mut tokens = Lexer::new(text);
    let (mut last, mut role) = (None, false);
    for token in tokens.by_ref() {
        role |= token.is("role");
        last = Some(token);
    }
    last.is_some_and(|last| last.is("default") || role && last.is("none"))
}

/// `set_config` takes lists such as search_path as they are reported, where SET would quote them as one name.
pub(super) fn set_config(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = b"SELECT pg_catalog.set_config(".to_vec();
    quote_literal(&mut out, name);
    out.extend(b", ");
    quote_literal(&mut out, value);
    out.extend(b", false)");
    out
}

fn quote_literal(out: &mut Vec<u8>, text: &[u8]) {
    if text.contains(&b'\\') {
        out.extend(b" E");
    }
    out.push(b'\'');
    for &byte in text.iter().filter(|byte| **byte != 0) {
        if matches!(byte, b'\'' | b'\\') {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'\'');
}

/// A name with its quotes; the parts of an extension's setting are quoted one by one.
pub(super) fn quote_name(name: &[u8]) -> Vec<u8> {
    if name == b"session characteristics" {
        return b"default_transaction_isolation".to_vec();
    }
    let mut out = Vec::with_capacity(name.len() + 2);
    for (at, part) in name.split(|byte| *byte == b'.').enumerate() {
        if at > 0 {
            out.push(b'.');
        }
        out.push(b'"');
        for &byte in part {
            if byte == b'"' {
                out.push(byte);
            }
            out.push(byte);
        }
        out.push(b'"');
    }
    out
}
