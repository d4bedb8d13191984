//! Connections that are greeted and logged in, and the keys of a run: written before it, removed after it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::keys::{KEYS_MAX, name, value};
use super::mix::{Kind, command, typed_name};
use super::{LoadError, Options, Resp};
use crate::demo::reply_len::{Scan, reply_length};

/// How long a connection, a greeting or a batch of the filling may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of requests that are sent before their replies are read.
const BATCH_BYTES: usize = 256 * 1024;

/// Names the peer in an error.
pub(super) fn peer(options: &Options, problem: impl ToString) -> LoadError {
    LoadError::Peer {
        address: options.address,
        problem: problem.to_string(),
    }
}

/// A connection that is ready for requests.
pub(super) fn connect(options: &Options) -> Result<TcpStream, LoadError> {
    let io = |error: std::io::Error| peer(options, error);
    let mut stream = TcpStream::connect_timeout(&options.address, TIMEOUT).map_err(io)?;
    stream.set_nodelay(true).map_err(io)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(io)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(io)?;
    let (out, count) = greeting(options);
    exchange(&mut stream, &out, count, options)?;
    Ok(stream)
}

fn greeting(options: &Options) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    let user = options.login.user.as_deref().unwrap_or("default");
    let mut words: Vec<&[u8]> = match (options.resp, &options.login.password) {
        (Resp::Two, None) => return (out, 0),
        (Resp::Two, Some(_)) => vec![b"AUTH"],
        (Resp::Three, None) => vec![b"HELLO", b"3"],
        (Resp::Three, Some(_)) => vec![b"HELLO", b"3", b"AUTH"],
    };
    if let Some(password) = &options.login.password {
        words.extend([user.as_bytes(), password.as_bytes()]);
    }
    command(&mut out, &words);
    (out, 1)
}

/// Sends requests and reads as many replies; an error reply is an error.
fn exchange(
    stream: &mut TcpStream,
    out: &[u8],
    mut count: usize,
    options: &Options,
) -> Result<(), LoadError> {
    stream.write_all(out).map_err(|e| peer(options, e))?;
    let (mut input, mut at) = (Vec::new(), 0);
    let mut chunk = [0; 16 * 1024];
    while count > 0 {
        match reply_length(&input[at..]) {
            Scan::Complete(length) => {
                let reply = &input[at..at + length];
                if matches!(reply[0], b'-' | b'!') {
                    let text = String::from_utf8_lossy(&reply[1..]).trim().to_owned();
                    return Err(peer(options, text));
                }
                count -= usize::from(reply[0] != b'>');
                at += length;
            }
            Scan::Malformed => return Err(peer(options, "bytes that are no Redis reply")),
            Scan::Incomplete => {
                input.drain(..at);
                at = 0;
                match stream.read(&mut chunk) {
                    Ok(0) => return Err(peer(options, "closed the connection")),
                    Ok(n) => input.extend_from_slice(&chunk[..n]),
                    Err(error) => return Err(peer(options, error)),
                }
            }
        }
    }
    Ok(())
}

/// Writes every string key of a run.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn fill(options: &Options) -> Result<(), LoadError> {
    for_all_keys(options, |key, out| {
        command(
            out,
            &[
                b"SET",
                name(key).as_bytes(),
                &value(key, options.value_size),
            ],
        );
    })
}

/// Removes every key that a run may have made.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn remove(options: &Options) -> Result<(), LoadError> {
    for_all_keys(options, |key, out| {
        let names = [Kind::Get, Kind::Incr, Kind::Hset, Kind::Lpush]
            .map(|kind| typed_name(kind, key).into_bytes());
        let [string, count, hash, list] = &names;
        command(out, &[b"DEL", string, count, hash, list]);
    })
}

fn for_all_keys(options: &Options, write: impl Fn(u64, &mut Vec<u8>)) -> Result<(), LoadError> {
    let mut stream = connect(options)?;
    let (mut out, mut count) = (Vec::new(), 0);
    for key in 0..options.keys.min(KEYS_MAX) {
        write(key, &mut out);
        count += 1;
        // Replies are small: they wait in the socket while the batch is written.
        if out.len() >= BATCH_BYTES || count == 1000 {
            exchange(&mut stream, &out, count, options)?;
            out.clear();
            count = 0;
        }
    }
    exchange(&mut stream, &out, count, options)
}
