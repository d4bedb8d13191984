//! Peers that mean harm or speak something else: clients of other protocols, mirrors that lie, and secrets that must
//! not be seen anywhere.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::servers::{
    PostgresOptions, PostgresServer, PostgresUser, RedisOptions, RedisServer, UserAuth,
};
use parhelion::testing::wait::eventually;
use support::faults::{Ledger, PATIENCE, resident, start};
use support::pg::{PgClient, wire};
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

fn closed(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => said,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => said,
        Err(error) => panic!("not closed: {error}"),
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

// --- hostile clients ---------------------------------------------------------------------------

#[test]
fn lengths_that_no_client_means_cost_nothing_and_end_as_on_the_server() {
    let server = PostgresServer::start(PostgresOptions::default()).unwrap();
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
    let server = RedisServer::start(RedisOptions::default()).unwrap();
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

// --- hostile mirrors ---------------------------------------------------------------------------

/// A mirror that answers every connection with the same bytes, endlessly if `endless`.
struct Liar {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl Liar {
    /// Waits for the first bytes of each client before it answers.
    fn start(greeting: Vec<u8>, endless: Vec<u8>) -> Liar {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, sent) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (count, bytes) = (connections.clone(), sent.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
                let (greeting, endless, bytes) = (greeting.clone(), endless.clone(), bytes.clone());
                std::thread::spawn(move || {
                    let mut reader = stream.try_clone().unwrap();
                    let mut first = [0; 4096];
                    let _ = reader.read(&mut first);
                    std::thread::spawn(move || {
                        let mut sink = [0; 65536];
                        while let Ok(1..) = reader.read(&mut sink) {}
                    });
                    if stream.write_all(&greeting).is_err() || endless.is_empty() {
                        // Held open: it is the proxy that must close.
                        let _ = stream.set_read_timeout(Some(PATIENCE));
                        let _ = stream.read(&mut [0]);
                        return;
                    }
                    while stream.write_all(&endless).is_ok() {
                        bytes.fetch_add(endless.len() as u64, Ordering::Relaxed);
                    }
                });
            }
        });
        Liar {
            address,
            connections,
            sent,
        }
    }
}

fn redis_beside(liar: &Liar, commands: usize) -> (ProxyProcess, Ledger) {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
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
        let (_, books) = redis_beside(&liar, 100);
        println!(
            "{name}: {} connections, {books:?}",
            liar.connections.load(Ordering::Relaxed)
        );
        let connections = liar.connections.load(Ordering::Relaxed);
        // More than one: the connection with the lie was closed. (A first "+OK" is an answer like any other.)
        assert!(
            connections > 1 || books.delivered < books.offered,
            "{name}: {books:?}"
        );
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
        let server = RedisServer::start(RedisOptions::default()).unwrap();
        let proxy = start(&ProxyOptions::new("redis", server.address()).mirror(liar.address));
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
        Ledger::of(proxy.control());
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
    let server = PostgresServer::start(PostgresOptions::default()).unwrap();
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
        while began.elapsed() < Duration::from_millis(2_500) {
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
        // Lost in the pool's back-off, not hammered.
        assert!(liar.connections.load(Ordering::Relaxed) < 60, "{name}");
    }
}

// --- secrets -----------------------------------------------------------------------------------

/// Everything that the proxy shows of itself.
fn everything(proxy: &mut ProxyProcess, journal: &std::path::Path) -> Vec<(String, String)> {
    let mut shown: Vec<(String, String)> = [
        "/metrics",
        "/api/status",
        "/api/mirrors",
        "/api/databases",
        "/api/divergences",
        "/api/config",
        "/api/report",
        "/report",
        "/",
    ]
    .into_iter()
    .map(|path| (path.to_owned(), proxy.get(path).unwrap()))
    .collect();
    proxy.terminate();
    shown.push(("log".to_owned(), proxy.log().join("\n")));
    let journal = std::fs::read_to_string(journal).unwrap_or_default();
    shown.push(("journal".to_owned(), journal));
    shown
}

fn assert_unseen(shown: &[(String, String)]) {
    for (place, text) in shown {
        let at = text.find("canary");
        let around = at.map(|at| &text[at.saturating_sub(200)..(at + 60).min(text.len())]);
        assert!(at.is_none(), "in {place}: {around:?}");
    }
}

#[test]
fn passwords_of_redis_clients_are_shown_nowhere() {
    let primary = RedisServer::start(RedisOptions {
        password: Some("canary-require".to_owned()),
        ..RedisOptions::default()
    })
    .unwrap();
    // It has another opinion of everything, so that everything diverges.
    let mirror = RedisServer::start(RedisOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("divergences.jsonl");
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(mirror.address())
        .general(&format!("divergence_log = \"{}\"", journal.display()))
        .env("PARHELION_LOG", "trace");
    let mut proxy = start(&options);
    let mut client = RespClient::connect(proxy.address());
    let commands: [&[&str]; 9] = [
        &["AUTH", "canary-wrong"],
        &["AUTH", "default", "canary-wrong-too"],
        &["HELLO", "3", "AUTH", "default", "canary-require"],
        &["AUTH", "canary-require"],
        &["ACL", "SETUSER", "bob", "on", ">canary-acl", "~*", "+@all"],
        &["CONFIG", "SET", "masterauth", "canary-config"],
        &["CONFIG", "GET", "masterauth"],
        &[
            "MIGRATE",
            "127.0.0.1",
            "1",
            "k",
            "0",
            "1",
            "AUTH",
            "canary-migrate",
        ],
        &["EVAL", "return redis.call('nosuch', 'canary-script')", "0"],
    ];
    for command in commands {
        client.call(command);
    }
    // One known difference, so that the journal and the store are not just empty.
    RedisClientDirect::set(&mirror, "differs");
    client.call(&["GET", "differs"]);
    Ledger::settled(proxy.control());
    let shown = everything(&mut proxy, &journal);
    let told = &shown
        .iter()
        .find(|(place, _)| place == "journal")
        .unwrap()
        .1;
    assert!(told.contains("differs"), "the journal is not written");
    assert_unseen(&shown);
}

struct RedisClientDirect;

impl RedisClientDirect {
    fn set(server: &RedisServer, key: &str) {
        assert_eq!(server.command(&["SET", key, "1"]).unwrap(), b"+OK\r\n");
    }
}

#[test]
fn passwords_in_postgres_traffic_are_shown_nowhere() {
    let user = PostgresUser {
        name: "carla".to_owned(),
        password: "canary-scram".to_owned(),
        auth: UserAuth::Scram,
    };
    let primary = PostgresServer::start(PostgresOptions {
        users: vec![user],
        ..PostgresOptions::default()
    })
    .unwrap();
    let mirror = PostgresServer::start(PostgresOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("divergences.jsonl");
    let options = ProxyOptions::new("postgres", primary.address())
        .mirror(mirror.address())
        .general(&format!("divergence_log = \"{}\"", journal.display()))
        .env("PARHELION_LOG", "trace");
    let mut proxy = start(&options);
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    for sql in [
        // On the mirror there is no carla: each of these diverges.
        "ALTER ROLE carla PASSWORD 'canary-alter'",
        "ALTER USER carla WITH ENCRYPTED PASSWORD 'canary-alter-user'",
        "DO $$ BEGIN EXECUTE 'ALTER ROLE carla PASSWORD ''canary-do'''; END $$",
        "CREATE ROLE dora LOGIN PASSWORD 'canary-create'",
        "ALTER ROLE carla PASSWORD $x$canary-dollar$x$",
        "ALTER ROLE carla PASSWORD E'canary-escape'",
        "ALTER ROLE carla PASSWORD U&'canary-unicode'",
        "SELECT 'canary-literal'::text, current_setting('nosuch.setting')",
    ] {
        client.query(sql);
    }
    client.send(&wire::parse(
        "",
        "ALTER ROLE carla PASSWORD 'canary-parse'",
        &[],
    ));
    client.send(&wire::bind("", "", 0, &[], 0));
    client.send(&wire::execute("", 0));
    client.send(&wire::sync());
    client.until_ready();
    let mut refused = PgClient::open(proxy.address());
    refused.send(&wire::startup(&[
        ("user", "nobody"),
        ("options", "-c canary.password=canary-startup"),
    ]));
    let _ = closed(&mut refused.stream);
    Ledger::settled(proxy.control());
    let shown = everything(&mut proxy, &journal);
    let told = &shown
        .iter()
        .find(|(place, _)| place == "journal")
        .unwrap()
        .1;
    assert!(told.contains('{'), "the journal is not written");
    assert_unseen(&shown);
}

#[test]
fn passwords_of_the_configuration_are_shown_nowhere() {
    let mut server = RedisServer::start(RedisOptions {
        password: Some("canary-mirror".to_owned()),
        ..RedisOptions::default()
    })
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("password");
    std::fs::write(&secret, "canary-mirror").unwrap();
    let primary = RedisServer::start(RedisOptions::default()).unwrap();
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(server.address())
        .args(&["--password-file", secret.to_str().unwrap()])
        .env("PARHELION_LOG", "trace");
    let mut proxy = start(&options);
    let mut client = RespClient::connect(proxy.address());
    client.call(&["SET", "a", "1"]);
    let books = Ledger::settled(proxy.control());
    assert_eq!(books.delivered, 1, "{books:?}");
    // Now the login fails: the error must not quote it.
    server.kill9().unwrap();
    client.call(&["SET", "a", "2"]);
    let shown = everything(&mut proxy, &folder.path().join("none"));
    assert_unseen(&shown);
}
