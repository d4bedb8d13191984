//! Clients share upstream connections, and none of them can tell.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use parhelion::testing::relay::Relay;
use parhelion::testing::servers::{RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use support::proxy::Proxy;
use support::resp::{RespClient, clip, encode};

/// What a round trip past somebody else's trouble may take at most. Without isolation it takes for ever.
const PROMPT: Duration = Duration::from_secs(5);

fn behind_proxy() -> (RedisServer, Proxy) {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let proxy = Proxy::redis(server.address());
    (server, proxy)
}

/// Round trips of another client; each must be prompt and get its own answer.
fn prompt(client: &mut RespClient, count: usize) {
    for number in 0..count {
        let began = Instant::now();
        let text = format!("number {number}");
        let reply = client.call(&["ECHO", &text]);
        assert_eq!(reply, format!("${}\r\n{text}\r\n", text.len()).as_bytes());
        assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
    }
}

/// Redis as far as one client's own keys go.
#[derive(Default)]
struct Model {
    strings: HashMap<Vec<u8>, Vec<u8>>,
    lists: HashMap<Vec<u8>, Vec<Vec<u8>>>,
    counter: i64,
}

fn bulk(value: Option<&[u8]>) -> Vec<u8> {
    match value {
        None => b"$-1\r\n".to_vec(),
        Some(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
    }
}

impl Model {
    /// One random command and the reply it must get.
    fn step(&mut self, number: usize, rng: &mut fastrand::Rng) -> (Vec<u8>, Vec<u8>) {
        let slot = rng.u8(0..5);
        let key = format!("s:{number}:{slot}").into_bytes();
        let list = format!("l:{number}:{slot}").into_bytes();
        let size = if rng.u8(..) == 0 { 40_000 } else { 300 };
        let value: Vec<u8> = (0..rng.usize(0..size)).map(|_| rng.u8(..)).collect();
        match rng.u8(0..7) {
            0 => {
                let request = encode(&[b"SET".as_slice(), &key, &value]);
                self.strings.insert(key, value);
                (request, b"+OK\r\n".to_vec())
            }
            1 => {
                let whole = self.strings.entry(key.clone()).or_default();
                whole.extend_from_slice(&value[..value.len().min(50)]);
                let request = encode(&[b"APPEND".as_slice(), &key, &value[..value.len().min(50)]]);
                (request, format!(":{}\r\n", whole.len()).into_bytes())
            }
            2 => {
                let entries = self.lists.entry(list.clone()).or_default();
                entries.insert(0, value.clone());
                let request = encode(&[b"LPUSH".as_slice(), &list, &value]);
                (request, format!(":{}\r\n", entries.len()).into_bytes())
            }
            3 => {
                let entries = self.lists.get(&list).map_or(&[][..], Vec::as_slice);
                let mut reply = format!("*{}\r\n", entries.len().min(4)).into_bytes();
                for entry in entries.iter().take(4) {
                    reply.extend(bulk(Some(entry)));
                }
                (encode(&[b"LRANGE".as_slice(), &list, b"0", b"3"]), reply)
            }
            4 => {
                self.counter += 1;
                let request = encode(&["INCR", &format!("c:{number}")]);
                (request, format!(":{}\r\n", self.counter).into_bytes())
            }
            5 => {
                // A transaction: for a moment the client has its own connection.
                let inner = bulk(self.strings.get(&key).map(Vec::as_slice));
                let get = encode(&[b"GET".as_slice(), &key]);
                let request = [encode(&["MULTI"]), get, encode(&["EXEC"])].concat();
                (
                    request,
                    [b"+OK\r\n+QUEUED\r\n*1\r\n".as_slice(), &inner].concat(),
                )
            }
            _ => {
                let reply = bulk(self.strings.get(&key).map(Vec::as_slice));
                (encode(&[b"GET".as_slice(), &key]), reply)
            }
        }
    }
}

fn run_model(address: SocketAddr, number: usize, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut client = RespClient::connect(address);
    let mut model = Model::default();
    for round in 0..12 {
        let depth = rng.usize(1..120);
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for _ in 0..depth {
            let (request, reply) = model.step(number, &mut rng);
            bytes.extend(request);
            expected.extend(reply);
        }
        let writer = client.send_aside(bytes);
        let mut got = Vec::new();
        while got.len() < expected.len() {
            got.extend(client.reply().unwrap());
        }
        writer.join().unwrap();
        assert!(
            got == expected,
            "client {number}, round {round}\n wanted: {}\n    got: {}",
            clip(&expected),
            clip(&got)
        );
    }
}

#[test]
fn thirty_two_clients_with_mixed_pipelines_of_binary_data_each_get_their_own_replies() {
    let (_server, proxy) = behind_proxy();
    let address = proxy.address();
    let threads: Vec<_> = (0..32)
        .map(|number| thread::spawn(move || run_model(address, number, 0x1a9e5 + number as u64)))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_hundred_clients_share_one_upstream_connection() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let relay = Relay::start(server.address()).unwrap();
    let proxy = Proxy::redis(relay.address());
    let mut clients: Vec<RespClient> = (0..100)
        .map(|_| RespClient::connect(proxy.address()))
        .collect();
    for client in &mut clients {
        prompt(client, 3);
    }
    assert!(relay.accepted() <= 1, "{} connections", relay.accepted());
    // One that needs a connection of its own gets one, and needs no second.
    for _ in 0..3 {
        assert_eq!(clients[0].call(&["MULTI"]), b"+OK\r\n");
        assert_eq!(clients[0].call(&["EXEC"]), b"*0\r\n");
        prompt(&mut clients[0], 1);
    }
    assert_eq!(relay.accepted(), 2);
}

#[test]
fn a_client_that_does_not_read_delays_nobody_and_loses_nothing() {
    let (_server, proxy) = behind_proxy();
    let mut slow = RespClient::connect(proxy.address());
    let mut other = RespClient::connect(proxy.address());
    let value = "v".repeat(50_000);
    assert_eq!(slow.call(&["SET", "value", &value]), b"+OK\r\n");
    let writer = slow.send_aside(encode(&["GET", "value"]).repeat(2000));
    prompt(&mut other, 500);
    let expected = bulk(Some(value.as_bytes()));
    for number in 0..2000 {
        let reply = slow.reply().unwrap();
        assert!(reply == expected, "reply {number}: {}", clip(&reply));
    }
    writer.join().unwrap();
    prompt(&mut other, 10);
}

#[test]
fn a_huge_reply_crosses_whole_while_others_go_on() {
    let (server, proxy) = behind_proxy();
    let mut direct = RespClient::connect(server.address());
    let value: Vec<u8> = (0..100_000_000_u32)
        .map(|number| (number % 251) as u8)
        .collect();
    assert_eq!(
        direct.call(&[b"SET".as_slice(), b"huge", &value]),
        b"+OK\r\n"
    );
    let mut greedy = RespClient::connect(proxy.address());
    let mut other = RespClient::connect(proxy.address());
    prompt(&mut other, 1);
    greedy.send(&encode(&["GET", "huge"]));
    greedy.send(&encode(&["PING"]));
    prompt(&mut other, 200);
    let reply = greedy.reply().unwrap();
    assert!(reply == bulk(Some(&value)), "{}", clip(&reply));
    assert_eq!(greedy.reply().unwrap(), b"+PONG\r\n");
}

#[test]
fn a_command_that_stops_in_the_middle_holds_up_nobody_whatever_its_size() {
    let (_server, proxy) = behind_proxy();
    let mut other = RespClient::connect(proxy.address());
    for size in [10, 30_000, 200_000, 3_000_000] {
        let mut halting = RespClient::connect(proxy.address());
        let value = vec![b'x'; size];
        let command = encode(&[b"SET".as_slice(), b"halting", &value]);
        let (first, second) = command.split_at(command.len() / 2);
        halting.send(&[encode(&["PING"]), first.to_vec()].concat());
        assert_eq!(halting.reply().unwrap(), b"+PONG\r\n");
        prompt(&mut other, 20);
        halting.send(&[second, &encode(&["STRLEN", "halting"])].concat());
        assert_eq!(
            halting.replies(2),
            [b"+OK\r\n".to_vec(), format!(":{size}\r\n").into_bytes()]
        );
        // Back among the others.
        prompt(&mut halting, 2);
    }
}

#[test]
fn whoever_waits_watches_monitors_or_subscribes_is_alone_with_it() {
    let (_server, proxy) = behind_proxy();
    let connect = || RespClient::connect(proxy.address());
    let (mut popping, mut watching, mut monitoring, mut subscribing, mut tracking, mut other) = (
        connect(),
        connect(),
        connect(),
        connect(),
        connect(),
        connect(),
    );
    popping.send(&encode(&["BLPOP", "queue", "0"]));
    assert_eq!(watching.call(&["WATCH", "w"]), b"+OK\r\n");
    assert_eq!(monitoring.call(&["MONITOR"]), b"+OK\r\n");
    assert_eq!(
        subscribing.call(&["SUBSCRIBE", "news"]),
        b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"
    );
    tracking.call(&["HELLO", "3"]);
    assert_eq!(tracking.call(&["CLIENT", "TRACKING", "ON"]), b"+OK\r\n");
    assert_eq!(tracking.call(&["GET", "w"]), b"_\r\n");
    prompt(&mut other, 50);
    assert_eq!(other.call(&["SET", "w", "1"]), b"+OK\r\n");
    assert_eq!(other.call(&["PUBLISH", "news", "now"]), b":1\r\n");
    assert_eq!(other.call(&["RPUSH", "queue", "job"]), b":1\r\n");
    // Each got what is its own; the other client only ever got replies.
    assert_eq!(
        popping.reply().unwrap(),
        b"*2\r\n$5\r\nqueue\r\n$3\r\njob\r\n"
    );
    assert_eq!(
        subscribing.reply().unwrap(),
        b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$3\r\nnow\r\n"
    );
    assert_eq!(
        tracking.reply().unwrap(),
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nw\r\n"
    );
    assert_eq!(watching.call(&["MULTI"]), b"+OK\r\n");
    assert_eq!(watching.call(&["GET", "w"]), b"+QUEUED\r\n");
    assert_eq!(watching.call(&["EXEC"]), b"*-1\r\n");
    let line = monitoring.reply().unwrap();
    assert!(line[1].is_ascii_digit(), "{}", clip(&line));
    prompt(&mut other, 5);
    for client in [&mut popping, &mut watching] {
        prompt(client, 2);
    }
}

#[test]
fn a_pipeline_of_ten_thousand_is_answered_in_order_between_pushes() {
    let (_server, proxy) = behind_proxy();
    let mut client = RespClient::connect(proxy.address());
    let publisher = RespClient::connect(proxy.address());
    client.call(&["HELLO", "3"]);
    client.call(&["SUBSCRIBE", "c"]);
    let bytes: Vec<u8> = (0..10_000)
        .flat_map(|number| encode(&["ECHO", &number.to_string()]))
        .collect();
    let messages: Vec<u8> = (0..2_000)
        .flat_map(|number| encode(&["PUBLISH", "c", &number.to_string()]))
        .collect();
    let writers = [client.send_aside(bytes), publisher.send_aside(messages)];
    let (pushes, replies): (Vec<_>, Vec<_>) = client
        .replies(12_000)
        .into_iter()
        .partition(|reply| reply[0] == b'>');
    for (number, reply) in replies.iter().enumerate() {
        let text = number.to_string();
        assert_eq!(reply, &bulk(Some(text.as_bytes())));
    }
    for (number, push) in pushes.iter().enumerate() {
        let text = number.to_string();
        let wanted = [
            &b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n"[..],
            &bulk(Some(text.as_bytes())),
        ];
        assert_eq!(push, &wanted.concat());
    }
    assert_eq!((replies.len(), pushes.len()), (10_000, 2_000));
    for writer in writers {
        writer.join().unwrap();
    }
}

#[test]
fn clients_that_leave_with_replies_outstanding_disturb_nobody() {
    let (_server, proxy) = behind_proxy();
    let address = proxy.address();
    let mut other = RespClient::connect(address);
    for round in 0..60 {
        let mut leaving = RespClient::connect(address);
        leaving.send(&encode(&["ECHO", "not for you"]).repeat(1 + round * 7));
        if round % 2 == 0 {
            leaving.send(&encode(&["SET", "half", "never"])[..9]);
        }
        drop(leaving);
        prompt(&mut other, 3);
    }
}

#[test]
fn databases_and_versions_do_not_mix() {
    let (_server, proxy) = behind_proxy();
    let mut clients: Vec<RespClient> = (0..8)
        .map(|_| RespClient::connect(proxy.address()))
        .collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let db = (number % 4).to_string();
        if number >= 4 {
            client.call(&["HELLO", "3"]);
        }
        assert_eq!(client.call(&["SELECT", &db]), b"+OK\r\n");
        assert_eq!(client.call(&["SET", "db", &db]), b"+OK\r\n");
    }
    for _ in 0..20 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(&[encode(&["GET", "db"]), encode(&["GET", "none"])].concat());
            let nil = if number >= 4 { "_\r\n" } else { "$-1\r\n" };
            let wanted = format!("$1\r\n{}\r\n{nil}", number % 4);
            assert_eq!(client.replies(2).concat(), wanted.as_bytes());
        }
    }
    // A refused SELECT changes nothing.
    assert!(clients[1].call(&["SELECT", "99"]).starts_with(b"-ERR"));
    assert_eq!(clients[1].call(&["GET", "db"]), b"$1\r\n1\r\n");
    // A queued one takes effect with EXEC.
    for (request, reply) in [
        (&["MULTI"][..], &b"+OK\r\n"[..]),
        (&["SELECT", "2"], b"+QUEUED\r\n"),
        (&["EXEC"], b"*1\r\n+OK\r\n"),
        (&["GET", "db"], b"$1\r\n2\r\n"),
    ] {
        assert_eq!(clients[1].call(request), reply);
    }
    assert_eq!(clients[5].call(&["GET", "db"]), b"$1\r\n1\r\n");
}

#[test]
fn a_client_without_a_login_meets_the_servers_limits_and_harms_no_lane() {
    let options = RedisOptions {
        password: Some("s3cret".into()),
        ..RedisOptions::default()
    };
    let server = RedisServer::start(options).unwrap();
    let proxy = Proxy::redis(server.address());
    let mut known = RespClient::connect(proxy.address());
    let mut bare = RespClient::connect(proxy.address());
    assert_eq!(known.call(&["AUTH", "s3cret"]), b"+OK\r\n");
    assert!(bare.call(&["GET", "a"]).starts_with(b"-NOAUTH"));
    let large = "x".repeat(20_000);
    let many: Vec<String> = (0..12).map(|number| number.to_string()).collect();
    for (request, text) in [
        (encode(&["SET", "a", &large]), "bulk length"),
        (encode(&many), "multibulk length"),
    ] {
        let outcomes = [server.address(), proxy.address()].map(|address| {
            let mut client = RespClient::connect(address);
            let _ = client.stream.write_all(&request);
            client.rest().unwrap()
        });
        assert_eq!(outcomes[0], outcomes[1]);
        assert_eq!(
            outcomes[1],
            format!("-ERR Protocol error: unauthenticated {text}\r\n").as_bytes()
        );
    }
    // Neither the lane of those without a login nor that of the others has noticed.
    assert!(bare.call(&["GET", "a"]).starts_with(b"-NOAUTH"));
    assert_eq!(known.call(&["SET", "a", &large]), b"+OK\r\n");
    // The login and what needs it in one go.
    let mut eager = RespClient::connect(proxy.address());
    eager.send(&[encode(&["AUTH", "s3cret"]), encode(&["SET", "b", &large])].concat());
    assert_eq!(eager.replies(2), [b"+OK\r\n", b"+OK\r\n"]);
    assert!(eager.call(&["AUTH", "wrong"]).starts_with(b"-WRONGPASS"));
    assert_eq!(eager.call(&["STRLEN", "b"]), b":20000\r\n");
}

#[test]
fn a_password_that_is_set_through_the_proxy_holds_for_the_next_client() {
    let (_server, proxy) = behind_proxy();
    let mut operator = RespClient::connect(proxy.address());
    prompt(&mut operator, 1);
    assert_eq!(
        operator.call(&["CONFIG", "SET", "requirepass", "new"]),
        b"+OK\r\n"
    );
    let mut next = RespClient::connect(proxy.address());
    assert!(next.call(&["GET", "a"]).starts_with(b"-NOAUTH"));
    assert_eq!(next.call(&["AUTH", "new"]), b"+OK\r\n");
    assert_eq!(next.call(&["GET", "a"]), b"$-1\r\n");
    // As on a direct connection, whoever was there stays.
    assert_eq!(operator.call(&["GET", "a"]), b"$-1\r\n");
}

#[test]
fn wait_waits_for_writes_that_went_over_a_lane() {
    let (server, proxy) = behind_proxy();
    let replica = RedisServer::start(RedisOptions {
        extra: vec![("replicaof".into(), format!("127.0.0.1 {}", server.port()))],
        ..RedisOptions::default()
    })
    .unwrap();
    let online = eventually(Duration::from_secs(30), || {
        let info = server.command(&["INFO", "replication"]).unwrap();
        String::from_utf8_lossy(&info)
            .contains("state=online")
            .then_some(())
    });
    assert!(online.is_some(), "the replica never came up");
    let mut client = RespClient::connect(proxy.address());
    client.call(&["SET", "seen", "1"]);
    assert_eq!(client.call(&["WAIT", "1", "10000"]), b":1\r\n");
    replica.pause().unwrap();
    assert_eq!(client.call(&["SET", "unseen", "1"]), b"+OK\r\n");
    assert_eq!(client.call(&["WAIT", "1", "300"]), b":0\r\n");
    replica.resume().unwrap();
    assert_eq!(client.call(&["WAIT", "1", "10000"]), b":1\r\n");
    prompt(&mut client, 1);
}
