//! The little of the Postgres wire protocol that tests need, spoken byte by byte: building the client's messages and
//! splitting the server's. No driver stands between a test and what was received.
//!
//! Source: PostgreSQL documentation, "Frontend/Backend Protocol".

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// A message of the server that claims to be longer is taken for a framing error of the test.
const MESSAGE_MAX: usize = 1 << 30;

/// The protocol 3.0 startup packet with these parameters.
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for (name, value) in parameters {
        put_str(&mut body, name);
        put_str(&mut body, value);
    }
    body.push(0);
    let mut out = length_of(body.len()).to_vec();
    out.extend_from_slice(&body);
    out
}

/// CancelRequest for a backend.
pub fn cancel(pid: u32, key: &[u8]) -> Vec<u8> {
    let mut out = length_of(8 + key.len()).to_vec();
    out.extend_from_slice(&80_877_102_u32.to_be_bytes());
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// SSLRequest.
pub fn ssl_request() -> Vec<u8> {
    [8_u32.to_be_bytes(), 80_877_103_u32.to_be_bytes()].concat()
}

/// GSSENCRequest.
pub fn gssenc_request() -> Vec<u8> {
    [8_u32.to_be_bytes(), 80_877_104_u32.to_be_bytes()].concat()
}

/// Any typed message.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&length_of(body.len()));
    out.extend_from_slice(body);
    out
}

/// Simple query.
pub fn query(sql: &str) -> Vec<u8> {
    let mut body = Vec::new();
    put_str(&mut body, sql);
    message(b'Q', &body)
}

/// Parse, with parameter type OIDs.
pub fn parse(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let mut body = Vec::new();
    put_str(&mut body, name);
    put_str(&mut body, sql);
    body.extend_from_slice(&count(types.len()));
    for oid in types {
        body.extend_from_slice(&oid.to_be_bytes());
    }
    message(b'P', &body)
}

/// Bind with text or binary parameters (one format for all) and one result format.
pub fn bind(
    portal: &str,
    statement: &str,
    format: u16,
    parameters: &[Option<&[u8]>],
    result: u16,
) -> Vec<u8> {
    let mut body = Vec::new();
    put_str(&mut body, portal);
    put_str(&mut body, statement);
    body.extend_from_slice(&1_u16.to_be_bytes());
    body.extend_from_slice(&format.to_be_bytes());
    body.extend_from_slice(&count(parameters.len()));
    for parameter in parameters {
        match parameter {
            None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(value) => {
                body.extend_from_slice(
                    &u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes(),
                );
                body.extend_from_slice(value);
            }
        }
    }
    body.extend_from_slice(&1_u16.to_be_bytes());
    body.extend_from_slice(&result.to_be_bytes());
    message(b'B', &body)
}

/// Describe a statement (`S`) or portal (`P`).
pub fn describe(kind: u8, name: &str) -> Vec<u8> {
    named(b'D', kind, name)
}

/// Close a statement (`S`) or portal (`P`).
pub fn close(kind: u8, name: &str) -> Vec<u8> {
    named(b'C', kind, name)
}

/// Execute with a row limit (0: all).
pub fn execute(portal: &str, rows_max: u32) -> Vec<u8> {
    let mut body = Vec::new();
    put_str(&mut body, portal);
    body.extend_from_slice(&rows_max.to_be_bytes());
    message(b'E', &body)
}

/// Sync.
pub fn sync() -> Vec<u8> {
    message(b'S', &[])
}

/// Flush.
pub fn flush() -> Vec<u8> {
    message(b'H', &[])
}

/// Terminate.
pub fn terminate() -> Vec<u8> {
    message(b'X', &[])
}

/// Reads one typed message of the server, header included.
///
/// # Errors
/// When the stream ends or times out, or when the length cannot be right.
pub fn read_message(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut out = vec![0; 5];
    stream.read_exact(&mut out)?;
    let length = u32::from_be_bytes([out[1], out[2], out[3], out[4]]) as usize;
    if !(4..=MESSAGE_MAX).contains(&length) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message length {length}"),
        ));
    }
    let body = length as u64 - 4;
    let read = stream.take(body).read_to_end(&mut out)?;
    if read as u64 != body {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(out)
}

/// Logs in as a user who needs no password and returns what arrived up to the first ReadyForQuery.
///
/// # Errors
/// The server's own error text, or the socket's.
pub fn log_in(stream: &mut TcpStream, parameters: &[(&str, &str)]) -> io::Result<Vec<Vec<u8>>> {
    stream.write_all(&startup(parameters))?;
    let mut messages = Vec::new();
    loop {
        let message = read_message(stream)?;
        let tag = message[0];
        if tag == b'E' {
            return Err(io::Error::other(
                String::from_utf8_lossy(&message[5..]).into_owned(),
            ));
        }
        messages.push(message);
        if tag == b'Z' {
            return Ok(messages);
        }
    }
}

fn named(tag: u8, kind: u8, name: &str) -> Vec<u8> {
    let mut body = vec![kind];
    put_str(&mut body, name);
    message(tag, &body)
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn length_of(body: usize) -> [u8; 4] {
    u32::try_from(body + 4).unwrap_or(u32::MAX).to_be_bytes()
}

fn count(items: usize) -> [u8; 2] {
    u16::try_from(items).unwrap_or(u16::MAX).to_be_bytes()
}
