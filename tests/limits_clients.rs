//! Limits on clients: how many, and how long silent.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use parhelion::testing::proxy::ProxyOptions;
use parhelion::testing::wait::eventually;
use support::faults::{PATIENCE, clients, postgres, redis, start, status, until_close};
use support::pg::{PgClient, wire};
use support::resp::{RespClient, encode};

fn fatal_code(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut fields = text.split('\0');
    fields
        .find_map(|field| field.strip_prefix('C'))
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_full_redis_listener_refuses_in_redis_words_and_takes_others_again() {
    let server = redis();
    let options = ProxyOptions::new("redis", server.address()).general("max_connections = 3");
    let proxy = start(&options);
    let mut inside: Vec<RespClient> = (0..3)
        .map(|_| RespClient::connect(proxy.address()))
        .collect();
    for client in &mut inside {
        assert_eq!(client.call(&["PING"]), b"+PONG\r\n");
    }
    for _ in 0..5 {
        let mut refused = TcpStream::connect(proxy.address()).unwrap();
        refused.write_all(&encode(&["PING"])).unwrap();
        let said = until_close(&mut refused, PATIENCE).unwrap();
        assert_eq!(said, b"-ERR max number of clients reached\r\n");
    }
    assert_eq!(inside[0].call(&["PING"]), b"+PONG\r\n");
    inside.pop();
    let again = eventually(PATIENCE, || {
        let mut client = RespClient::connect(proxy.address());
        client.send(&encode(&["PING"]));
        (client.reply().ok()? == b"+PONG\r\n").then_some(())
    });
    assert!(again.is_some(), "the place of a client that left is taken");
    assert!(
        status(proxy.control())["totals"]["refused"]
            .as_u64()
            .unwrap()
            >= 5
    );
}

#[test]
fn a_full_postgres_listener_refuses_with_53300_and_still_passes_cancels_on() {
    let server = postgres();
    let options = ProxyOptions::new("postgres", server.address())
        .general("max_connections = 8")
        .general("max_connections_per_address = 2");
    let proxy = start(&options);
    let (mut first, _) = PgClient::connect(proxy.address(), "postgres");
    let (mut second, _) = PgClient::connect(proxy.address(), "postgres");
    let mut refused = TcpStream::connect(proxy.address()).unwrap();
    // As libpq asks: first for TLS, then for the session.
    refused.write_all(&wire::ssl_request()).unwrap();
    let mut answer = [0];
    refused.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"N");
    refused
        .write_all(&wire::startup(&[("user", "postgres")]))
        .unwrap();
    let said = until_close(&mut refused, PATIENCE).unwrap();
    assert_eq!(fatal_code(&said), "53300", "{}", said.escape_ascii());
    assert!(String::from_utf8_lossy(&said).contains("sorry, too many clients already"));
    // The cancel comes on a connection for which there is no place.
    first.send(&wire::query("SELECT pg_sleep(60)"));
    let began = Instant::now();
    let cancelled = eventually(PATIENCE, || {
        let sleeping = second.query("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)%' AND state = 'active'");
        sleeping
            .iter()
            .any(|message| message[0] == b'D')
            .then_some(())
    });
    assert!(cancelled.is_some());
    let mut cancel = TcpStream::connect(proxy.address()).unwrap();
    cancel
        .write_all(&wire::cancel(first.pid, &first.key))
        .unwrap();
    let ended = first.until_ready();
    assert!(ended.iter().any(|message| fatal_code(message) == "57014"));
    assert!(began.elapsed() < Duration::from_secs(50));
}

#[test]
fn a_silent_redis_client_is_closed_at_the_timeout_and_a_waiting_one_is_not() {
    let server = redis();
    let options =
        ProxyOptions::new("redis", server.address()).general("client_idle_timeout = \"1s\"");
    let proxy = start(&options);
    let mut never = TcpStream::connect(proxy.address()).unwrap();
    let mut silent = RespClient::connect(proxy.address());
    let mut blocked = RespClient::connect(proxy.address());
    let mut subscribed = RespClient::connect(proxy.address());
    let mut open = RespClient::connect(proxy.address());
    blocked.send(&encode(&["BLPOP", "list", "0"]));
    subscribed.call(&["SUBSCRIBE", "news"]);
    open.call(&["MULTI"]);
    assert_eq!(silent.call(&["PING"]), b"+PONG\r\n");
    let began = Instant::now();
    assert_eq!(silent.rest().unwrap(), b"");
    let took = began.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
    assert_eq!(until_close(&mut never, PATIENCE).unwrap(), b"");
    // Beyond the timeout of the others as well.
    let busy = eventually(PATIENCE, || {
        (began.elapsed() > Duration::from_secs(4)).then_some(())
    });
    assert!(busy.is_some());
    assert_eq!(clients(proxy.control()), 3);
    let mut other = RespClient::connect(proxy.address());
    other.call(&["RPUSH", "list", "one"]);
    other.call(&["PUBLISH", "news", "two"]);
    assert!(blocked.reply().unwrap().ends_with(b"one\r\n"));
    assert!(subscribed.reply().unwrap().ends_with(b"two\r\n"));
    assert_eq!(open.call(&["EXEC"]), b"*0\r\n");
}

#[test]
fn a_silent_postgres_client_is_told_57p05_and_one_in_a_transaction_stays() {
    let server = postgres();
    let options = ProxyOptions::new("postgres", server.address())
        .general("client_idle_timeout = \"1s\"")
        .general("client_login_timeout = \"1s\"");
    let proxy = start(&options);
    let mut never = TcpStream::connect(proxy.address()).unwrap();
    let mut half = TcpStream::connect(proxy.address()).unwrap();
    half.write_all(&wire::startup(&[("user", "postgres")])[..10])
        .unwrap();
    let (mut silent, _) = PgClient::connect(proxy.address(), "postgres");
    let (mut open, _) = PgClient::connect(proxy.address(), "postgres");
    let (mut slow, _) = PgClient::connect(proxy.address(), "postgres");
    open.query("BEGIN");
    slow.send(&wire::query("SELECT pg_sleep(4)"));
    silent.query("SELECT 1");
    let began = Instant::now();
    let said = until_close(&mut silent.stream, PATIENCE).unwrap();
    let took = began.elapsed();
    assert_eq!(fatal_code(&said), "57P05", "{}", said.escape_ascii());
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
    // Those that never said who they are went at the login timeout.
    assert_eq!(
        until_close(&mut never, Duration::from_secs(5)).unwrap(),
        b""
    );
    assert_eq!(until_close(&mut half, Duration::from_secs(5)).unwrap(), b"");
    assert!(slow.until_ready().iter().any(|message| message[0] == b'D'));
    assert!(
        open.query("COMMIT")
            .iter()
            .any(|message| message[0] == b'Z')
    );
}
