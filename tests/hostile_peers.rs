//! Clients that mean harm or speak something else.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::wait::eventually;
use support::faults::{Ledger, PATIENCE, closed, postgres, redis, resident, start};
use support::pg::{PgClient, wire};
use support::resp::RespClient;

/// A database that writes down what reaches it. What the proxy asks of its own accord is answered, so that it believes in
/// the database: what does not arrive then was held back, and is not just waiting for a server that never came up.
struct Recorder {
    address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
    open: Arc<AtomicU64>,
}

impl Recorder {
    fn start() -> Recorder {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let open = Arc::<AtomicU64>::default();
        let (written, connections) = (received.clone(), open.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                connections.fetch_add(1, Ordering::SeqCst);
                let (written, connections) = (written.clone(), connections.clone());
                std::thread::spawn(move || {
                    let mut piece = [0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut piece) {
                        let piece = &piece[..length];
                        written.lock().unwrap().extend_from_slice(piece);
                        if piece == wire::ssl_request() {
                            let _ = stream.write_all(b"N");
                        } else if piece.starts_with(b"*") {
                            let pings = piece.windows(PROBE.len()).any(|part| part == PROBE);
                            let answer: &[u8] = if pings { b"+PONG\r\n" } else { b"+OK\r\n" };
                            let _ = stream.write_all(answer);
                        }
                    }
                    connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Recorder {
            address,
            received,
            open,
        }
    }

    fn received(&self) -> Vec<u8> {
        self.received.lock().unwrap().clone()
    }

    fn holds(&self, bytes: &[u8]) -> bool {
        self.received()
            .windows(bytes.len())
            .any(|part| part == bytes)
    }

    /// All that was sent to it, now that the proxy has ended: nothing is on its way any more.
    fn at_the_end(&self, proxy: &mut ProxyProcess) -> Vec<u8> {
        proxy.terminate();
        let ended = eventually(PATIENCE, || {
            (self.open.load(Ordering::SeqCst) == 0).then_some(())
        });
        assert!(ended.is_some(), "a connection outlives the proxy");
        self.received()
    }
}

/// What a browser, a TLS client and an HTTP/2 client send first.
fn strangers() -> Vec<(&'static str, Vec<u8>)> {
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend((0..500).map(|byte| byte as u8));
    vec![
        (
            "POST",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 22\r\n\r\nSET a b\r\nFLUSHALL\r\n"
                .to_vec(),
        ),
        ("Host:", b"Host: x\r\nFLUSHALL\r\n".to_vec()),
        ("TLS", hello),
        (
            "HTTP/2",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0".to_vec(),
        ),
    ]
}

/// The proxy's own question whether a Redis is there.
const PROBE: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// What a primary received beside that.
fn of_strangers(mut received: Vec<u8>) -> String {
    while let Some(at) = received.windows(PROBE.len()).position(|part| part == PROBE) {
        received.drain(at..at + PROBE.len());
    }
    received.escape_ascii().to_string()
}

/// A client that is none of them is heard, by all of `databases`: what follows could be.
fn is_heard(protocol: &str, proxy: &ProxyProcess, databases: &[&Recorder]) {
    let said: &[u8] = match protocol {
        "redis" => b"*3\r\n$3\r\nSET\r\n$5\r\nknown\r\n$1\r\n1\r\n",
        _ => &wire::startup(&[("user", "known"), ("database", "postgres")]),
    };
    let mut client = TcpStream::connect(proxy.address()).unwrap();
    client.write_all(said).unwrap();
    for database in databases {
        let heard = eventually(PATIENCE, || database.holds(b"known").then_some(()));
        assert!(heard.is_some(), "{protocol}: nobody is heard");
    }
}

#[test]
fn strangers_on_either_port_are_closed_and_no_database_hears_of_them() {
    for protocol in ["redis", "postgres"] {
        let (primary, mirror) = (Recorder::start(), Recorder::start());
        let mut proxy = start(
            &ProxyOptions::new(protocol, primary.address)
                .mirror(mirror.address)
                .general("mirror_timeout = \"2s\""),
        );
        // A mirror of Postgres hears of a session when that runs something, which needs a real primary.
        let databases = [&primary, &mirror];
        let heard = if protocol == "redis" { 2 } else { 1 };
        is_heard(protocol, &proxy, &databases[..heard]);
        if protocol == "redis" {
            Ledger::settled(proxy.control());
        }
        let known = databases.map(|database| database.received().len());
        for (name, bytes) in strangers() {
            let mut stream = TcpStream::connect(proxy.address()).unwrap();
            stream.write_all(&bytes).unwrap();
            let said = closed(&mut stream);
            assert!(
                said.is_empty() || said[0] == b'E',
                "{protocol}, {name}: {}",
                said.escape_ascii()
            );
        }
        for (database, known) in databases.into_iter().zip(known) {
            let after = database.at_the_end(&mut proxy).split_off(known);
            assert_eq!(of_strangers(after), "", "{protocol}");
        }
    }
}

#[test]
fn strangers_in_single_bytes_are_closed_and_no_database_hears_of_them() {
    for protocol in ["redis", "postgres"] {
        let primary = Recorder::start();
        let mut proxy = start(&ProxyOptions::new(protocol, primary.address));
        is_heard(protocol, &proxy, &[&primary]);
        let known = primary.received().len();
        for (_, bytes) in strangers() {
            let mut stream = TcpStream::connect(proxy.address()).unwrap();
            stream.set_nodelay(true).unwrap();
            for byte in bytes {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
            }
            closed(&mut stream);
        }
        let after = primary.at_the_end(&mut proxy).split_off(known);
        assert_eq!(of_strangers(after), "", "{protocol}");
    }
}

#[test]
fn what_stands_behind_an_encryption_request_reaches_no_database() {
    let primary = Recorder::start();
    let mut proxy = start(&ProxyOptions::new("postgres", primary.address));
    is_heard("postgres", &proxy, &[&primary]);
    let known = primary.received().len();
    let smuggled = wire::startup(&[("user", "smuggled"), ("database", "postgres")]);
    for request in [wire::ssl_request(), wire::gssenc_request()] {
        for behind in [&smuggled[..], &smuggled[..3], &request, b"x"] {
            let mut stream = TcpStream::connect(proxy.address()).unwrap();
            stream.write_all(&[&request, behind].concat()).unwrap();
            let said = closed(&mut stream);
            // Neither a yes to encryption nor any word of a session.
            let answer = said.escape_ascii().to_string();
            assert!(said.is_empty() || said[0] == b'E', "{answer}");
        }
    }
    let after = primary.at_the_end(&mut proxy).split_off(known);
    assert_eq!(after.escape_ascii().to_string(), "");
}

/// What both ends answer to `bytes`, sent by a client that keeps its side open: they must end it themselves.
fn ends(server: SocketAddr, proxy: &ProxyProcess, first: bool, bytes: &[u8]) -> [String; 2] {
    [server, proxy.address()].map(|address| {
        let mut client = match first {
            true => PgClient::open(address),
            false => PgClient::connect(address, "postgres").0,
        };
        client.send(bytes);
        closed(&mut client.stream).escape_ascii().to_string()
    })
}

#[test]
fn lengths_that_no_client_means_cost_nothing_and_end_as_on_the_server() {
    let server = postgres();
    let proxy = start(&ProxyOptions::new("postgres", server.address()));
    let (mut other, _) = PgClient::connect(proxy.address(), "postgres");
    let lengths = [0_u32, 1, 2, 3, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
    let packets = lengths.into_iter().flat_map(|length| {
        // In a session, and as the first packet of one.
        let [query, startup] =
            [b"Q".as_slice(), b""].map(|tag| [tag, &length.to_be_bytes(), b"SELECT 1\0"].concat());
        [(false, query), (true, startup)]
    });
    // The first time buffers and tables reach their working size.
    let mut memory = 0;
    for (number, (first, packet)) in packets.clone().chain(packets).enumerate() {
        if number == 2 * lengths.len() {
            memory = resident(proxy.pid());
        }
        // A close without a word, as on a direct connection.
        let [direct, proxied] = ends(server.address(), &proxy, first, &packet);
        assert_eq!(direct, proxied, "{}", packet.escape_ascii());
    }
    let grown = resident(proxy.pid()).saturating_sub(memory);
    println!("impossible lengths: {grown} bytes");
    // Of the 64 KiB that may be allocated (`a_hostile_length_reserves_nothing` counts them) the system shows whole pages, and
    // those of seven sessions.
    assert!(grown <= 256 << 10, "{grown} bytes");
    assert!(
        other
            .query("SELECT 1")
            .iter()
            .any(|message| message[0] == b'D')
    );
}

#[test]
fn redis_claims_of_billions_get_the_servers_error_and_no_memory() {
    let server = redis();
    let proxy = start(&ProxyOptions::new("redis", server.address()));
    let mut other = RespClient::connect(proxy.address());
    assert_eq!(other.call(&["PING"]), b"+PONG\r\n");
    let memory = resident(proxy.pid());
    let inline = vec![b'a'; 1 << 20];
    let nested = b"*1\r\n".repeat(100_000);
    for (bytes, text) in [
        (&b"*2000000000\r\n"[..], "invalid multibulk length"),
        (b"*1\r\n$-10\r\n", "invalid bulk length"),
        (b"*1\r\n$99999999999\r\n", "invalid bulk length"),
        (&inline, "too big inline request"),
        (&nested, "expected '$', got '*'"),
    ] {
        // Since 7.0 Redis itself waits for two thousand million arguments; the proxy goes by the bound of before.
        let patient = bytes.starts_with(b"*2");
        let told = if patient { 1 } else { 0 };
        for address in &[server.address(), proxy.address()][told..] {
            // A reset, because more was on its way, may lose the words: then once more.
            let answer = eventually(PATIENCE, || {
                let mut stream = TcpStream::connect(address).unwrap();
                let _ = stream.write_all(bytes);
                let answer = closed(&mut stream);
                (!answer.is_empty()).then_some(answer)
            });
            let answer = answer.unwrap_or_else(|| panic!("no word from {address}"));
            let wanted = format!("-ERR Protocol error: {text}\r\n");
            assert_eq!(String::from_utf8_lossy(&answer), wanted, "{address}");
        }
    }
    let grown = resident(proxy.pid()).saturating_sub(memory);
    println!("hostile claims: {grown} bytes");
    assert!(grown < 2 << 20, "{grown} bytes");
    assert_eq!(other.call(&["PING"]), b"+PONG\r\n");
}
