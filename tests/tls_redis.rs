//! TLS between clients, the proxy and Redis: redis-cli and redis-server with TLS of their own.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use parhelion::testing::redis::{RedisOptions, RedisServer};
use parhelion::testing::wait::{eventually, free_port};
use support::tls::{Authority, Configured, Pair, listener_tls};

const LIMIT: Duration = Duration::from_secs(60);

fn cli(port: u16, tls: &[&str], command: &[&str]) -> Output {
    let mut program = Command::new("redis-cli");
    program.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    program.args(tls).args(command);
    support::run(&mut program, b"", LIMIT)
}

fn answer(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

/// A server with a TLS port beside its plain one.
fn secure_server(authority: &Authority, pair: &Pair) -> (RedisServer, u16) {
    let port = free_port().unwrap();
    let option = |key: &str, value: &Path| (format!("--{key}"), value.display().to_string());
    let server = RedisServer::start(RedisOptions {
        extra: vec![
            ("--tls-port".to_owned(), port.to_string()),
            option("tls-cert-file", &pair.cert),
            option("tls-key-file", &pair.key),
            option("tls-ca-cert-file", &authority.ca()),
            ("--tls-auth-clients".to_owned(), "no".to_owned()),
        ],
        ..RedisOptions::default()
    })
    .unwrap();
    (server, port)
}

fn config(port: u16, listener: &str, database: &str) -> String {
    format!(
        "[[listeners]]\naddress = \"LISTEN\"\nprotocol = \"redis\"\ndatabase = \"cache\"\n{listener}\n\
         [[databases]]\nname = \"cache\"\nprotocol = \"redis\"\nhost = \"127.0.0.1\"\nport = {port}\n{database}\n"
    )
}

#[test]
fn redis_speaks_tls_on_both_legs_and_to_the_mirror() {
    let authority = Authority::new();
    let pair = authority.sign_local("server");
    let (primary, secure) = secure_server(&authority, &pair);
    let (twin, twin_secure) = secure_server(&authority, &pair);
    let ca = authority.ca();
    let verified = format!("tls = \"verify-full\"\ntls_ca = \"{}\"", ca.display());
    let mirror = format!(
        "[[databases]]\nname = \"twin\"\nprotocol = \"redis\"\nhost = \"localhost\"\nport = {twin_secure}\n{verified}\n\
         [[mirroring]]\nsource_db = \"cache\"\ndestination_db = \"twin\"\n"
    );
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let proxy = Configured::start(&(config(secure, &listener, &verified) + &mirror));
    let tls = ["--tls", "--cacert", ca.to_str().unwrap()];
    let big = "x".repeat(60_000);
    assert_eq!(answer(&cli(proxy.port(), &tls, &["SET", "k", &big])), "OK");
    assert_eq!(answer(&cli(proxy.port(), &tls, &["GET", "k"])), big);
    for server in [&primary, &twin] {
        let seen = eventually(LIMIT, || {
            let seen = server.command(&["STRLEN", "k"]).unwrap();
            (seen == b":60000\r\n").then_some(())
        });
        assert!(seen.is_some(), "{}", proxy.process.log().join("\n"));
    }
    let stranger = Authority::new();
    let doubting = ["--tls", "--cacert", &stranger.ca().display().to_string()].map(str::to_owned);
    let doubting: Vec<&str> = doubting.iter().map(String::as_str).collect();
    assert_ne!(answer(&cli(proxy.port(), &doubting, &["PING"])), "PONG");
}

#[test]
fn a_server_whose_certificate_is_not_believed_gets_nothing() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (_server, secure) = secure_server(&authority, &authority.sign_local("server"));
    let database = format!(
        "tls = \"verify-ca\"\ntls_ca = \"{}\"",
        stranger.ca().display()
    );
    let proxy = Configured::start(&config(secure, "", &database));
    assert_ne!(answer(&cli(proxy.port(), &[], &["PING"])), "PONG");
}

#[test]
fn plaintext_on_a_tls_listener_and_tls_on_a_plain_one_reach_nobody() {
    let primary = TcpListener::bind("127.0.0.1:0").unwrap();
    primary.set_nonblocking(true).unwrap();
    let port = primary.local_addr().unwrap().port();
    let authority = Authority::new();
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let proxy = Configured::start(&config(port, &listener, ""));
    let mut stream = TcpStream::connect(proxy.process.address()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"+"));
    assert!(primary.accept().is_err());

    let proxy = Configured::start(&config(port, "", ""));
    let ca = authority.ca();
    let tls = ["--tls", "--cacert", ca.to_str().unwrap()];
    assert_ne!(answer(&cli(proxy.port(), &tls, &["PING"])), "PONG");
    // The connection to the primary is made at accept; not one byte goes over it.
    if let Ok((mut stream, _)) = primary.accept() {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn client_certificates_are_asked_for_and_checked() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let ca = authority.ca();
    let listener = listener_tls(&authority.sign_local("proxy"), Some(&ca));
    let proxy = Configured::start(&config(server.port(), &listener, ""));
    let ping = |pair: Option<&Pair>| {
        let mut tls = vec!["--tls", "--cacert", ca.to_str().unwrap()];
        if let Some(pair) = pair {
            let [cert, key] = [&pair.cert, &pair.key].map(|path| path.to_str().unwrap());
            tls.extend(["--cert", cert, "--key", key]);
        }
        answer(&cli(proxy.port(), &tls, &["PING"]))
    };
    assert_eq!(ping(Some(&authority.sign("ann", &[], "ann"))), "PONG");
    assert_ne!(ping(Some(&stranger.sign("eve", &[], "eve"))), "PONG");
    assert_ne!(ping(None), "PONG");
}
