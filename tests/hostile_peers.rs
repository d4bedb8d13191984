//! Clients that mean harm or speak something else.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use parhelion::testing::proxy::ProxyOptions;
use support::faults::{closed, postgres, redis, resident, start};
use support::pg::PgClient;
use support::resp::RespClient;

/// A database that only writes down what reaches it.
struct Recorder {
    address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    fn start() -> Recorder {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let written = received.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let written = written.clone();
                std::thread::spawn(move || {
                    let mut piece = [0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut piece) {
                        written.lock().unwrap().extend_from_slice(&piece[..length]);
                    }
                });
            }
        });
        Recorder { address, received }
    }

    fn received(&self) -> Vec<u8> {
        self.received.lock().unwrap().clone()
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

/// What a primary received beside the proxy's own question whether it is there.
fn of_strangers(primary: &Recorder) -> Vec<u8> {
    let probe = b"*1\r\n$4\r\nPING\r\n";
    let mut received = primary.received().to_vec();
    while let Some(at) = received.windows(probe.len()).position(|part| part == probe) {
        received.drain(at..at + probe.len());
    }
    received
}

#[test]
fn strangers_on_either_port_are_closed_and_no_database_hears_of_them() {
    for protocol in ["redis", "postgres"] {
        let (primary, mirror) = (Recorder::start(), Recorder::start());
        let proxy = start(
            &ProxyOptions::new(protocol, primary.address)
                .mirror(mirror.address)
                .general("mirror_timeout = \"2s\""),
        );
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
        assert_eq!(
            of_strangers(&primary).escape_ascii().to_string(),
            "",
            "{protocol}"
        );
        assert_eq!(
            mirror.received().escape_ascii().to_string(),
            "",
            "{protocol}"
        );
    }
}

#[test]
fn a_stranger_in_single_bytes_gets_no_whole_line_to_a_database() {
    let primary = Recorder::start();
    let proxy = start(&ProxyOptions::new("redis", primary.address));
    for (name, bytes) in strangers() {
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in bytes {
            if stream.write_all(&[byte]).is_err() {
                break;
            }
        }
        closed(&mut stream);
        let received = of_strangers(&primary);
        assert!(
            !received.contains(&b'\n'),
            "{name}: {}",
            received.escape_ascii()
        );
    }
}

#[test]
fn lengths_that_no_client_means_cost_nothing_and_end_as_on_the_server() {
    let server = postgres();
    let proxy = start(&ProxyOptions::new("postgres", server.address()));
    let (mut other, _) = PgClient::connect(proxy.address(), "postgres");
    let memory = resident(proxy.pid());
    for length in [0_u32, 1, 2, 3, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
        let ends = [server.address(), proxy.address()].map(|address| {
            let (mut client, _) = PgClient::connect(address, "postgres");
            let mut message = vec![b'Q'];
            message.extend_from_slice(&length.to_be_bytes());
            message.extend_from_slice(b"SELECT 1\0");
            client.send(&message);
            let _ = client.stream.shutdown(std::net::Shutdown::Write);
            println!("length {length:#x} at {address}");
            closed(&mut client.stream)
        });
        // The server's own words, as on a direct connection.
        assert_eq!(ends[0].first(), ends[1].first(), "length {length:#x}");
    }
    let mut startup = TcpStream::connect(proxy.address()).unwrap();
    startup.write_all(&10_005_u32.to_be_bytes()).unwrap();
    startup.write_all(&[0; 64]).unwrap();
    closed(&mut startup);
    let grown = resident(proxy.pid()).saturating_sub(memory);
    assert!(grown < 1 << 20, "{grown} bytes");
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
    for bytes in [
        b"*2000000000\r\n".as_slice(),
        b"*1\r\n$-10\r\n",
        b"*1\r\n$99999999999\r\n",
        &inline,
        &nested,
    ] {
        let ends = [server.address(), proxy.address()].map(|address| {
            let mut stream = TcpStream::connect(address).unwrap();
            // The server may close before it has taken everything.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            closed(&mut stream)
        });
        // A reset may lose the last words on either way; what came must agree.
        let (short, long) = if ends[0].len() < ends[1].len() {
            (&ends[0], &ends[1])
        } else {
            (&ends[1], &ends[0])
        };
        assert!(long.starts_with(short), "{}", long.escape_ascii());
    }
    let grown = resident(proxy.pid()).saturating_sub(memory);
    println!("hostile claims: {grown} bytes");
    assert!(grown < 2 << 20, "{grown} bytes");
    assert_eq!(other.call(&["PING"]), b"+PONG\r\n");
}
