//! The messages of a console, both ways.

use serde_json::Value;

use crate::control::admin_sql::{self, AdminError, Answer};
use crate::control::listing::{Column, ColumnType};
use crate::limits::{ADMIN_MESSAGE_BYTES_MAX, ADMIN_PREPARED_MAX};
use crate::protocol::postgres::startup::{Severity, encode_error_with_hint};

/// AuthenticationOk.
pub(super) fn authentication_ok() -> Vec<u8> {
    message(b'R', &0u32.to_be_bytes())
}

/// What follows a login.
pub(super) fn greeting() -> Vec<u8> {
    let mut out = Vec::new();
    let version = concat!("16.0 (parhelion ", env!("CARGO_PKG_VERSION"), ")");
    for (name, value) in [
        ("server_version", version),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
    ] {
        out.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    // A key that fits no backend: there is nothing to cancel here.
    out.extend(message(b'K', &[0; 8]));
    out.extend(READY);
    out
}

/// ReadyForQuery, idle.
pub(super) const READY: [u8; 6] = [b'Z', 0, 0, 0, 5, b'I'];

/// Splits one typed message off, header excluded.
pub(super) fn take_message(buffer: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, ()> {
    let &[tag, a, b, c, d, ..] = buffer.as_slice() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(4..=ADMIN_MESSAGE_BYTES_MAX).contains(&len) {
        return Err(());
    }
    if buffer.len() <= len {
        return Ok(None);
    }
    let body = buffer[5..=len].to_vec();
    buffer.drain(..=len);
    Ok(Some((tag, body)))
}

/// The fields of a message body.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn text(&mut self) -> Result<&'a [u8], AdminError> {
        let end = self.0.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| malformed("a text is not terminated"))?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Ok(text)
    }

    pub(super) fn byte(&mut self) -> Result<u8, AdminError> {
        let (first, rest) = self
            .0
            .split_first()
            .ok_or_else(|| malformed("a message is cut"))?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn number(&mut self) -> Result<u16, AdminError> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }
}

pub(super) fn malformed(message: &str) -> AdminError {
    AdminError {
        code: "08P01",
        message: message.to_owned(),
        hint: "SHOW HELP lists the statements".to_owned(),
    }
}

pub(super) fn missing(what: &str, name: &[u8]) -> AdminError {
    AdminError {
        code: if what == "portal" { "34000" } else { "26000" },
        message: format!(
            "{what} \"{}\" does not exist",
            String::from_utf8_lossy(name)
        ),
        hint: "prepare and bind it first".to_owned(),
    }
}

pub(super) fn too_many() -> AdminError {
    AdminError {
        code: "53400",
        message: format!("a console holds {ADMIN_PREPARED_MAX} prepared statements"),
        hint: "close some".to_owned(),
    }
}

pub(super) fn encode(error: &AdminError) -> Vec<u8> {
    encode_error_with_hint(Severity::Error, error.code, &error.message, &error.hint)
}

pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend(body);
    out
}

/// Result formats as Bind gives them: none for text, one for all, or one each.
fn format_of(formats: &[u16], column: usize) -> u16 {
    match formats {
        [] => 0,
        [all] => *all,
        each => each.get(column).copied().unwrap_or(0),
    }
}

pub(super) fn row_description(columns: &[Column], formats: &[u16]) -> Vec<u8> {
    let mut body = (columns.len() as u16).to_be_bytes().to_vec();
    for (index, column) in columns.iter().enumerate() {
        body.extend(column.name.as_bytes());
        body.push(0);
        // No table, no column of one.
        body.extend([0; 6]);
        let (oid, size): (u32, i16) = match column.kind {
            ColumnType::Text => (25, -1),
            ColumnType::Integer => (20, 8),
            ColumnType::Float => (701, 8),
            ColumnType::Bool => (16, 1),
        };
        body.extend(oid.to_be_bytes());
        body.extend(size.to_be_bytes());
        body.extend((-1i32).to_be_bytes());
        body.extend(format_of(formats, index).to_be_bytes());
    }
    message(b'T', &body)
}

pub(super) fn encode_answer(answer: &Answer, sql: &str, formats: &[u16]) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Answer::Error(error) => return encode(error),
        Answer::Done { tag, notice } => {
            if !notice.is_empty() {
                // A NoticeResponse has the fields of an error.
                let fields = format!(
                    "SNOTICE\0VNOTICE\0C00000\0M{}\0\0",
                    notice.replace('\0', "")
                );
                out.extend(message(b'N', fields.as_bytes()));
            }
            out.extend(message(b'C', format!("{tag}\0").as_bytes()));
        }
        Answer::Rows(rows) => {
            let columns = admin_sql::describe(sql).ok().flatten().unwrap_or_default();
            for row in rows {
                let mut body = (row.len() as u16).to_be_bytes().to_vec();
                for (index, value) in row.iter().enumerate() {
                    let kind = columns
                        .get(index)
                        .map_or(ColumnType::Text, |column| column.kind);
                    match encode_value(value, kind, format_of(formats, index) == 1) {
                        Some(bytes) => {
                            body.extend((bytes.len() as u32).to_be_bytes());
                            body.extend(bytes);
                        }
                        None => body.extend((-1i32).to_be_bytes()),
                    }
                }
                out.extend(message(b'D', &body));
            }
            out.extend(message(b'C', format!("SHOW {}\0", rows.len()).as_bytes()));
        }
    }
    out
}

fn encode_value(value: &Value, kind: ColumnType, binary: bool) -> Option<Vec<u8>> {
    if value.is_null() {
        return None;
    }
    Some(match (kind, binary) {
        (ColumnType::Integer, true) => value.as_i64().unwrap_or_default().to_be_bytes().to_vec(),
        (ColumnType::Float, true) => value.as_f64().unwrap_or_default().to_be_bytes().to_vec(),
        (ColumnType::Bool, true) => vec![u8::from(*value == true)],
        (ColumnType::Bool, false) => vec![if *value == true { b't' } else { b'f' }],
        _ => match value {
            Value::String(text) => text.bytes().filter(|byte| *byte != 0).collect(),
            other => other.to_string().into_bytes(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_and_a_claimed_length_reserves_nothing() {
        let mut buffer = message(b'Q', b"SHOW HELP\0");
        buffer.extend(b"S\0\0\0\x04Q\0");
        assert_eq!(
            take_message(&mut buffer),
            Ok(Some((b'Q', b"SHOW HELP\0".to_vec())))
        );
        assert_eq!(take_message(&mut buffer), Ok(Some((b'S', Vec::new()))));
        assert_eq!(take_message(&mut buffer), Ok(None));
        assert_eq!(take_message(&mut b"Q\x7f\xff\xff\xff".to_vec()), Err(()));
        assert_eq!(take_message(&mut b"Q\0\0\0\x03".to_vec()), Err(()));
    }
}
