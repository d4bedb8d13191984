//! A raw Redis client: it writes the bytes it is given and keeps the bytes it receives, reply by reply.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use parhelion::demo::reply_len::{Scan, reply_length};
pub use parhelion::testing::redis::encode;

/// Nothing in these tests waits longer for one reply.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

pub struct RespClient {
    pub stream: TcpStream,
    input: Vec<u8>,
    start: usize,
}

impl RespClient {
    pub fn connect(address: SocketAddr) -> RespClient {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(REPLY_TIMEOUT)).unwrap();
        RespClient {
            stream,
            input: Vec::new(),
            start: 0,
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends in pieces, each its own segment as far as the kernel allows.
    pub fn send_chunked(&mut self, bytes: &[u8], mut size: impl FnMut() -> usize) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(size().clamp(1, rest.len()));
            self.stream.write_all(piece).unwrap();
            rest = more;
        }
    }

    /// Sends from a thread of its own, so that large pipelines do not deadlock with their replies.
    pub fn send_aside(&self, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
        let mut stream = self.stream.try_clone().unwrap();
        std::thread::spawn(move || stream.write_all(&bytes).unwrap())
    }

    /// The next reply or push, as bytes; what arrived so far on a timeout or close.
    pub fn reply(&mut self) -> Result<Vec<u8>, String> {
        loop {
            let rest = &self.input[self.start..];
            match reply_length(rest) {
                Scan::Complete(length) => {
                    let reply = rest[..length].to_vec();
                    self.start += length;
                    if self.start == self.input.len() {
                        self.input.clear();
                        self.start = 0;
                    }
                    return Ok(reply);
                }
                Scan::Malformed => return Err(format!("malformed: {}", clip(rest))),
                Scan::Incomplete => {}
            }
            // Grown at the doubling pace, so that scanning a large reply again stays cheap.
            let mut chunk = vec![0; (self.input.len() - self.start).clamp(64 * 1024, 1 << 22)];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(format!("closed after {}", clip(&self.input[self.start..]))),
                Ok(length) => self.input.extend_from_slice(&chunk[..length]),
                Err(error) => {
                    return Err(format!("{error} after {}", clip(&self.input[self.start..])));
                }
            }
        }
    }

    pub fn replies(&mut self, count: usize) -> Vec<Vec<u8>> {
        (0..count)
            .map(|number| {
                self.reply()
                    .unwrap_or_else(|error| panic!("reply {number} of {count}: {error}"))
            })
            .collect()
    }

    /// Sends one command and returns its reply.
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Vec<u8> {
        self.send(&encode(args));
        self.reply().unwrap_or_else(|error| {
            let text: Vec<String> = args.iter().map(|arg| clip(arg.as_ref())).collect();
            panic!("{}: {error}", text.join(" "))
        })
    }

    /// Everything up to the close by the other side.
    pub fn rest(&mut self) -> Result<Vec<u8>, String> {
        let mut out = self.input.split_off(self.start);
        match self.stream.read_to_end(&mut out) {
            Ok(_) => Ok(out),
            // A close with our bytes unread arrives as a reset.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(out),
            Err(error) => Err(format!("not closed: {error} after {}", clip(&out))),
        }
    }
}

/// Bytes for a message, not more than fit.
pub fn clip(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(200)];
    let more = if bytes.len() > head.len() {
        format!("… ({} bytes)", bytes.len())
    } else {
        String::new()
    };
    format!("{}{more}", head.escape_ascii())
}
