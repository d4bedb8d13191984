//! A raw Postgres client: it writes messages and keeps the bytes it receives, message by message.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub use parhelion::testing::pg_wire as wire;

/// Nothing in these tests waits longer for one message.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(20);

pub struct PgClient {
    pub stream: TcpStream,
    /// Process id and key, from BackendKeyData.
    pub pid: u32,
    pub key: Vec<u8>,
}

impl PgClient {
    /// Connects and logs in as the superuser; returns what the login received, masked.
    pub fn connect(address: SocketAddr, database: &str) -> (PgClient, Vec<Vec<u8>>) {
        PgClient::connect_with(address, &[("user", "postgres"), ("database", database)])
    }

    pub fn connect_with(
        address: SocketAddr,
        parameters: &[(&str, &str)],
    ) -> (PgClient, Vec<Vec<u8>>) {
        let mut client = PgClient::open(address);
        client.send(&wire::startup(parameters));
        let messages = client.until_ready();
        assert_eq!(
            messages.last().map(|message| message[0]),
            Some(b'Z'),
            "login refused: {}",
            show(&messages)
        );
        (client, messages)
    }

    /// Connected, nothing sent.
    pub fn open(address: SocketAddr) -> PgClient {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(MESSAGE_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(MESSAGE_TIMEOUT)).unwrap();
        PgClient {
            stream,
            pid: 0,
            key: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends in pieces of changing size.
    pub fn send_chunked(&mut self, bytes: &[u8], mut size: impl FnMut() -> usize) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(size().clamp(1, rest.len()));
            self.stream.write_all(piece).unwrap();
            rest = more;
        }
    }

    /// Sends from a thread of its own.
    pub fn send_aside(&self, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
        let mut stream = self.stream.try_clone().unwrap();
        std::thread::spawn(move || stream.write_all(&bytes).unwrap())
    }

    /// The next message, masked.
    pub fn message(&mut self) -> Vec<u8> {
        let message = wire::read_message(&mut self.stream)
            .unwrap_or_else(|error| panic!("no message: {error}"));
        if message[0] == b'K' {
            self.pid = u32::from_be_bytes(message[5..9].try_into().unwrap());
            self.key = message[9..].to_vec();
        }
        masked(message)
    }

    /// Up to and with the next message of this type.
    pub fn until(&mut self, tag: u8) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            out.push(self.message());
            if out.last().is_some_and(|message| message[0] == tag) {
                return out;
            }
        }
    }

    /// Up to ReadyForQuery, or to the close behind an error.
    pub fn until_ready(&mut self) -> Vec<Vec<u8>> {
        let mut out: Vec<Vec<u8>> = Vec::new();
        loop {
            match wire::read_message(&mut self.stream) {
                Ok(message) => {
                    if message[0] == b'K' {
                        self.pid = u32::from_be_bytes(message[5..9].try_into().unwrap());
                        self.key = message[9..].to_vec();
                    }
                    let ready = message[0] == b'Z';
                    out.push(masked(message));
                    if ready {
                        return out;
                    }
                }
                Err(error) if out.iter().any(|message| message[0] == b'E') => {
                    out.push(format!("closed: {:?}", error.kind()).into_bytes());
                    return out;
                }
                Err(error) => panic!("{error} after {}", show(&out)),
            }
        }
    }

    /// A simple query and everything it returns.
    pub fn query(&mut self, sql: &str) -> Vec<Vec<u8>> {
        self.send(&wire::query(sql));
        self.until_ready()
    }
}

/// What legitimately differs between two connections is blanked: BackendKeyData, the sender's pid of a notification,
/// the OIDs of user tables in RowDescription.
fn masked(mut message: Vec<u8>) -> Vec<u8> {
    match message[0] {
        b'K' => message[5..].fill(0),
        b'A' => message[5..9].fill(0),
        b'T' => mask_table_oids(&mut message),
        _ => {}
    }
    message
}

fn mask_table_oids(message: &mut [u8]) {
    let fields = u16::from_be_bytes([message[5], message[6]]);
    let mut at = 7;
    for _ in 0..fields {
        at += message[at..].iter().position(|byte| *byte == 0).unwrap() + 1;
        message[at..at + 4].fill(0);
        at += 18;
    }
}

/// Messages for a failure text.
pub fn show(messages: &[Vec<u8>]) -> String {
    messages
        .iter()
        .map(|message| super::resp::clip(message))
        .collect::<Vec<_>>()
        .join("\n   ")
}
