//! Mirrors that lie: what they say costs them their connection, the proxy little, and clients nothing.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::wait::eventually;
use support::faults::{Ledger, PATIENCE, postgres, redis, resident, start};
use support::pg::{PgClient, wire};
use support::resp::RespClient;

/// A mirror that answers every connection with the same bytes, endlessly if `endless`.
struct Liar {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    /// How many of them the proxy ended.
    closed: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl Liar {
    /// Waits for the first bytes of each client before it answers.
    fn start(greeting: Vec<u8>, endless: Vec<u8>) -> Liar {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, sent) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let closed = Arc::<AtomicU64>::default();
        let (count, bytes, ended) = (connections.clone(), sent.clone(), closed.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
                let (greeting, endless, bytes) = (greeting.clone(), endless.clone(), bytes.clone());
                let ended = ended.clone();
                std::thread::spawn(move || {
                    let mut reader = stream.try_clone().unwrap();
                    let mut first = [0; 4096];
                    let _ = reader.read(&mut first);
                    std::thread::spawn(move || {
                        let mut sink = [0; 65536];
                        while let Ok(1..) = reader.read(&mut sink) {}
                        // Held open until then: it is the proxy that closed.
                        ended.fetch_add(1, Ordering::Relaxed);
                    });
                    let _ = stream.write_all(&greeting);
                    while !endless.is_empty() && stream.write_all(&endless).is_ok() {
                        bytes.fetch_add(endless.len() as u64, Ordering::Relaxed);
                    }
                });
            }
        });
        Liar {
            address,
            connections,
            closed,
            sent,
        }
    }

    /// The proxy ends a connection.
    fn is_left(&self) -> bool {
        let left = || (self.closed.load(Ordering::Relaxed) > 0).then_some(());
        eventually(PATIENCE, left).is_some()
    }
}

fn redis_beside(liar: &Liar, commands: usize) -> (ProxyProcess, Ledger) {
    let server = redis();
    let options = ProxyOptions::new("redis", server.address())
        .mirror(liar.address)
        .general("mirror_timeout = \"2s\"");
    let proxy = start(&options);
    let mut client = RespClient::connect(proxy.address());
    for number in 0..commands {
        let value = number.to_string();
        assert_eq!(client.call(&["SET", "k", &value]), b"+OK\r\n");
        let reply = format!("${}\r\n{value}\r\n", value.len());
        assert_eq!(client.call(&["GET", "k"]), reply.as_bytes());
    }
    let books = Ledger::settled(proxy.control());
    assert_eq!(books.offered, 2 * commands as u64);
    (proxy, books)
}

#[test]
fn redis_mirrors_that_lie_lose_their_connection_and_clients_notice_nothing() {
    let lies: [(&str, Vec<u8>); 5] = [
        ("extra replies", b"+OK\r\n".repeat(4_000)),
        ("huge length", b"$99999999999999\r\n".to_vec()),
        ("negative length", b"*-7\r\n".to_vec()),
        ("not Redis", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("nested", b"*1\r\n".repeat(100_000)),
    ];
    for (name, lie) in lies {
        let liar = Liar::start(lie, Vec::new());
        let (_proxy, books) = redis_beside(&liar, 100);
        println!(
            "{name}: {} connections, {books:?}",
            liar.connections.load(Ordering::Relaxed)
        );
        assert!(liar.is_left(), "{name}: the connection is kept");
        // (A first "+OK" is an answer like any other.)
        let answers = if name == "extra replies" { u64::MAX } else { 0 };
        assert!(books.delivered <= answers, "{name}: {books:?}");
    }
}

#[test]
fn what_a_mirror_refuses_while_it_loads_its_data_is_not_booked_as_delivered() {
    let loading = b"-LOADING Redis is loading the dataset in memory\r\n".repeat(64);
    // One that says so at once gets nothing; one that says so later (a replica that is filled anew) had something.
    for greeting in [&b""[..], b"+PONG\r\n"] {
        let liar = Liar::start([greeting, &loading].concat(), Vec::new());
        let (_proxy, books) = redis_beside(&liar, 20);
        assert_eq!(books.delivered, 0, "{books:?}");
        assert_eq!(books.errored > 0, !greeting.is_empty(), "{books:?}");
        assert!(liar.connections.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn an_endless_reply_of_a_redis_mirror_is_not_collected() {
    for (name, head, more) in [
        (
            "array",
            b"*1000000000\r\n".as_slice(),
            b":1\r\n".repeat(16_000),
        ),
        ("bulk", b"$1000000000\r\n", vec![b'x'; 64 << 10]),
        ("line", b"+", vec![b'x'; 64 << 10]),
    ] {
        let liar = Liar::start(head.to_vec(), more);
        let server = redis();
        let options = ProxyOptions::new("redis", server.address()).mirror(liar.address);
        let proxy = start(&options.general("mirror_timeout = \"5s\""));
        let mut client = RespClient::connect(proxy.address());
        assert_eq!(client.call(&["SET", "k", "v"]), b"+OK\r\n");
        let memory = resident(proxy.pid());
        let much = eventually(Duration::from_secs(10), || {
            // A connection that was closed is opened again for the next unit.
            assert_eq!(client.call(&["GET", "k"]), b"$1\r\nv\r\n");
            (liar.sent.load(Ordering::Relaxed) > 20 << 20
                || liar.connections.load(Ordering::Relaxed) > 1)
                .then_some(())
        });
        assert!(much.is_some(), "{name}: neither read nor closed");
        for _ in 0..50 {
            assert_eq!(client.call(&["GET", "k"]), b"$1\r\nv\r\n");
        }
        let grown = resident(proxy.pid()).saturating_sub(memory);
        println!(
            "endless {name}: {} MiB sent, grew by {grown}",
            liar.sent.load(Ordering::Relaxed) >> 20
        );
        assert!(grown < 8 << 20, "{name}: {grown} bytes");
        // It is left at the latest when the unit that it answers has timed out.
        assert!(liar.is_left(), "{name}: the connection is kept");
        assert_eq!(Ledger::of(proxy.control()).delivered, 0, "{name}");
    }
}

fn pg_message(tag: u8, body: &[u8]) -> Vec<u8> {
    wire::message(tag, body)
}

#[test]
fn postgres_mirrors_that_lie_lose_their_connection_and_clients_notice_nothing() {
    let ok = pg_message(b'R', &[0; 4]);
    let ready = pg_message(b'Z', b"I");
    let login = [ok.clone(), ready.clone()].concat();
    let row = pg_message(b'D', &[0, 1, 0, 0, 0, 1, b'x']);
    let mut huge = vec![b'D'];
    huge.extend_from_slice(&0x7fff_ffff_u32.to_be_bytes());
    let mut negative = vec![b'D'];
    negative.extend_from_slice(&3_u32.to_be_bytes());
    let lies: [(&str, Vec<u8>, Vec<u8>); 8] = [
        (
            "unknown login",
            pg_message(b'R', &[0, 0, 0, 99]),
            Vec::new(),
        ),
        (
            "password in clear",
            pg_message(b'R', &[0, 0, 0, 3]),
            Vec::new(),
        ),
        (
            "error",
            pg_message(b'E', b"SFATAL\0C28P01\0Mno\0\0"),
            Vec::new(),
        ),
        (
            "not Postgres",
            b"-ERR unknown command\r\n".to_vec(),
            Vec::new(),
        ),
        (
            "extra ready",
            [login.clone(), ready.repeat(1_000)].concat(),
            Vec::new(),
        ),
        (
            "huge message",
            [login.clone(), huge].concat(),
            vec![b'x'; 64 << 10],
        ),
        (
            "short length",
            [login.clone(), negative].concat(),
            Vec::new(),
        ),
        ("endless rows", login, row.repeat(4_000)),
    ];
    let server = postgres();
    for (name, greeting, endless) in lies {
        let liar = Liar::start(greeting, endless);
        let options = ProxyOptions::new("postgres", server.address())
            .mirror(liar.address)
            .general("mirror_timeout = \"1s\"")
            .general("connect_timeout = \"1s\"");
        let proxy = start(&options);
        let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
        let memory = resident(proxy.pid());
        let began = std::time::Instant::now();
        let mut queries = 0;
        // At least so long, and until the liar has been asked something.
        while began.elapsed() < Duration::from_millis(2_500)
            || liar.connections.load(Ordering::Relaxed) == 0 && began.elapsed() < PATIENCE
        {
            let answer = client.query("SELECT 42");
            assert!(
                answer.iter().any(|message| message.ends_with(b"42")),
                "{name}"
            );
            queries += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        let grown = resident(proxy.pid()).saturating_sub(memory);
        let books = Ledger::of(proxy.control());
        println!(
            "{name}: {} connections, {} MiB sent, grew by {} KiB, {books:?}",
            liar.connections.load(Ordering::Relaxed),
            liar.sent.load(Ordering::Relaxed) >> 20,
            grown >> 10
        );
        assert!(grown < 12 << 20, "{name}: {grown} bytes");
        assert_eq!(books.observed, queries, "{name}");
        assert_eq!(books.delivered, 0, "{name}: {books:?}");
        assert!(liar.is_left(), "{name}: the connection is kept");
        println!("{name}: left after {:?}", began.elapsed());
        // Lost in the pool's back-off, not hammered.
        assert!(liar.connections.load(Ordering::Relaxed) < 60, "{name}");
    }
}
