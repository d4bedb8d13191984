//! The same script, directly and through the proxy: the received bytes are identical.
//!
//! Both runs use the same server, emptied in between, so that hash seeds and the like cannot differ.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use parhelion::testing::servers::{RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;
use support::proxy::{Proxy, ProxyOptions};
use support::redis_corpus::{Entry, corpus};
use support::resp::{RespClient, clip, encode};

struct Bench {
    server: RedisServer,
    proxy: Proxy,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(|options| options)
    }

    fn with(change: impl FnOnce(ProxyOptions) -> ProxyOptions) -> Bench {
        let server = RedisServer::start(RedisOptions::default()).unwrap();
        let proxy = Proxy::start(&change(ProxyOptions::new("redis", server.address())));
        Bench { server, proxy }
    }

    /// Runs the script directly and through the proxy, on an empty server each time, and compares what it returns.
    fn compare(&self, script: impl Fn(SocketAddr) -> Vec<Vec<u8>>) {
        self.reset();
        let direct = script(self.server.address());
        self.reset();
        let proxied = script(self.proxy.address());
        for (number, (direct, proxied)) in direct.iter().zip(&proxied).enumerate() {
            assert!(
                direct == proxied,
                "answer {number}\n direct: {}\n  proxy: {}",
                clip(direct),
                clip(proxied)
            );
        }
        assert_eq!(direct.len(), proxied.len());
    }

    fn reset(&self) {
        let mut client = RespClient::connect(self.server.address());
        for command in [
            &["FLUSHALL"][..],
            &["SCRIPT", "FLUSH"],
            &["FUNCTION", "FLUSH"],
        ] {
            assert_eq!(client.call(command), b"+OK\r\n");
        }
    }
}

fn named(entry: &Entry, reply: &[u8]) -> Vec<u8> {
    let mut out = format!("line {} ({}): ", entry.line, entry.text).into_bytes();
    out.extend_from_slice(&entry.comparable(reply));
    out
}

fn one_by_one(address: SocketAddr, hello: Option<&str>) -> Vec<Vec<u8>> {
    let mut client = RespClient::connect(address);
    if let Some(version) = hello {
        client.call(&["HELLO", version]);
    }
    corpus()
        .iter()
        .map(|entry| named(entry, &client.call(&entry.args)))
        .collect()
}

#[test]
fn the_corpus_is_broad_enough() {
    assert!(corpus().len() >= 300, "{}", corpus().len());
}

#[test]
fn one_flipped_bit_in_a_reply_is_noticed() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let relay = parhelion::testing::relay::Relay::start(server.address()).unwrap();
    // Inside the value of the second reply: its framing stays right.
    relay.corrupt_reply_after(b"+OK\r\n$1000\r\n".len() as u64 + 500);
    let bench = Bench {
        server,
        proxy: Proxy::Forwarder(relay),
    };
    let comparison = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        bench.compare(|address| {
            let mut client = RespClient::connect(address);
            vec![
                client.call(&["SET", "v", &"x".repeat(1000)]),
                client.call(&["GET", "v"]),
            ]
        });
    }));
    assert!(comparison.is_err());
}

#[test]
fn each_command_is_answered_with_the_same_bytes_in_resp2() {
    Bench::new().compare(|address| one_by_one(address, None));
}

#[test]
fn each_command_is_answered_with_the_same_bytes_in_resp3() {
    Bench::new().compare(|address| one_by_one(address, Some("3")));
}

#[test]
fn one_pipeline_of_the_whole_corpus_is_answered_in_order() {
    Bench::new().compare(|address| {
        let mut client = RespClient::connect(address);
        let entries = corpus();
        let writer = client.send_aside(entries.iter().flat_map(Entry::bytes).collect());
        let replies = client.replies(entries.len());
        writer.join().unwrap();
        entries
            .iter()
            .zip(replies)
            .map(|(entry, reply)| named(entry, &reply))
            .collect()
    });
}

#[test]
fn requests_cut_at_odd_places_are_answered_the_same() {
    let bench = Bench::new();
    for seed in 0..4 {
        bench.compare(|address| {
            let mut client = RespClient::connect(address);
            let mut rng = fastrand::Rng::with_seed(seed);
            let entries = corpus();
            // A few commands at a time, so that cuts fall inside and between them.
            entries
                .chunks(5)
                .flat_map(|few| {
                    let bytes: Vec<u8> = few.iter().flat_map(Entry::bytes).collect();
                    client.send_chunked(&bytes, || rng.usize(1..12));
                    let replies = client.replies(few.len());
                    few.iter()
                        .zip(replies)
                        .map(|(entry, reply)| named(entry, &reply))
                        .collect::<Vec<_>>()
                })
                .collect()
        });
    }
}

#[test]
fn a_deep_pipeline_of_ten_thousand_is_answered_in_order() {
    Bench::new().compare(|address| {
        let mut client = RespClient::connect(address);
        let mut bytes = Vec::new();
        for number in 0..10_000 {
            let key = format!("k{}", number % 97);
            bytes.extend(match number % 4 {
                0 => encode(&["INCR", "counter"]),
                1 => encode(&["SET", &key, &number.to_string()]),
                2 => encode(&["GET", &key]),
                _ => encode(&["LPUSH", "counter", "wrong type"]),
            });
        }
        let writer = client.send_aside(bytes);
        let replies = client.replies(10_000);
        writer.join().unwrap();
        replies
    });
}

#[test]
fn ten_mebibyte_values_cross_unchanged_in_both_directions() {
    Bench::new().compare(|address| {
        let mut client = RespClient::connect(address);
        let mut rng = fastrand::Rng::with_seed(7);
        let value: Vec<u8> = std::iter::repeat_with(|| rng.u8(..))
            .take(10 << 20)
            .collect();
        let mut replies = vec![client.call(&[b"SET".as_slice(), b"big", &value])];
        let reply = client.call(&["GET", "big"]);
        assert!(
            reply.len() > value.len()
                && reply[reply.len() - 2 - value.len()..reply.len() - 2] == value
        );
        replies.push(reply);
        replies.push(client.call(&["APPEND", "big", "x"]));
        replies.push(client.call(&["MGET", "big", "big", "none"]));
        replies.push(client.call(&["GETRANGE", "big", "1000", "2000000"]));
        replies.push(client.call(&["PING"]));
        replies
    });
}

#[test]
fn inline_commands_and_empty_lines_are_taken() {
    Bench::new().compare(|address| {
        let mut client = RespClient::connect(address);
        client.send(b"\r\nPING\r\n\n  set  inl \"a b\\x00\"  \r\nGET inl\nPING\r\n*0\r\n*1\r\n$4\r\nPING\r\n");
        client.replies(5)
    });
}

#[test]
fn protocol_errors_get_the_servers_text_and_a_close() {
    let bench = Bench::new();
    let cases: [&[u8]; 12] = [
        b"*3000000000\r\n",
        b"*abc\r\n",
        b"*1\r\n$-10\r\n",
        b"*1\r\n$abc\r\n",
        b"*1\r\n$999999999999\r\n",
        b"*1\r\n+PING\r\n",
        b"*2\r\n$3\r\nGET\r\n:1\r\n",
        b"set a \"unbalanced\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"Host: example\r\n",
        b"*1\r\n$4\r\nPING\r\n*x\r\n*1\r\n$4\r\nPING\r\n",
        b"*2\r\n$4\r\nECHO\r\n$1\r\na\r\nQUIT\r\nPING\r\n",
    ];
    for case in cases {
        bench.compare(|address| {
            let mut client = RespClient::connect(address);
            client.send(case);
            vec![
                client
                    .rest()
                    .unwrap_or_else(|error| panic!("{}: {error}", clip(case))),
            ]
        });
    }
}

#[test]
fn quit_is_answered_and_closes() {
    Bench::new().compare(|address| {
        let mut client = RespClient::connect(address);
        client.send(
            &[
                encode(&["SET", "a", "1"]),
                encode(&["QUIT"]),
                encode(&["GET", "a"]),
            ]
            .concat(),
        );
        vec![client.rest().unwrap()]
    });
}

#[test]
fn a_half_closed_client_still_gets_its_replies() {
    Bench::new().compare(|address| {
        let mut client = RespClient::connect(address);
        client.send(&encode(&["SET", "a", "1"]));
        let first = client.reply().unwrap();
        client.send(&encode(&["GET", "a"]));
        let second = client.reply().unwrap();
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        vec![first, second, client.rest().unwrap()]
    });
}

#[test]
fn watch_fails_when_another_client_writes_and_only_then() {
    Bench::new().compare(|address| {
        let mut one = RespClient::connect(address);
        let mut two = RespClient::connect(address);
        let mut out = vec![
            one.call(&["WATCH", "w"]),
            two.call(&["SET", "w", "2"]),
            one.call(&["MULTI"]),
        ];
        out.push(one.call(&["SET", "w", "1"]));
        out.push(one.call(&["EXEC"]));
        out.push(one.call(&["GET", "w"]));
        // Two transactions at once, interleaved: neither sees the other's queue.
        out.push(one.call(&["MULTI"]));
        out.push(two.call(&["MULTI"]));
        out.push(one.call(&["SET", "a", "one"]));
        out.push(two.call(&["SET", "a", "two"]));
        out.push(two.call(&["EXEC"]));
        out.push(one.call(&["GET", "a"]));
        out.push(one.call(&["EXEC"]));
        out.push(two.call(&["GET", "a"]));
        out
    });
}

#[test]
fn a_blocked_pop_is_woken_by_another_client_and_blocks_nobody_else() {
    Bench::new().compare(|address| {
        let mut blocked = RespClient::connect(address);
        let mut other = RespClient::connect(address);
        blocked.send(&encode(&["BLPOP", "queue", "20"]));
        wait_for_blocked(&mut other, 1);
        let mut out = vec![
            other.call(&["PING"]),
            other.call(&["RPUSH", "queue", "x", "y"]),
        ];
        out.push(blocked.reply().unwrap());
        out.push(blocked.call(&["LRANGE", "queue", "0", "-1"]));
        out
    });
}

#[test]
fn a_client_that_leaves_while_blocked_takes_no_element() {
    Bench::new().compare(|address| {
        let mut blocked = RespClient::connect(address);
        let mut other = RespClient::connect(address);
        blocked.send(&encode(&["BLPOP", "queue", "0"]));
        wait_for_blocked(&mut other, 1);
        drop(blocked);
        wait_for_blocked(&mut other, 0);
        vec![
            other.call(&["RPUSH", "queue", "x"]),
            other.call(&["LRANGE", "queue", "0", "-1"]),
        ]
    });
}

fn wait_for_blocked(client: &mut RespClient, count: usize) {
    let wanted = format!("blocked_clients:{count}\r\n");
    let seen = eventually(Duration::from_secs(10), || {
        let info = client.call(&["INFO", "clients"]);
        String::from_utf8_lossy(&info)
            .contains(&wanted)
            .then_some(())
    });
    assert!(seen.is_some(), "never {wanted}");
}

fn pub_sub(address: SocketAddr, version: &str) -> Vec<Vec<u8>> {
    let mut subscriber = RespClient::connect(address);
    let mut publisher = RespClient::connect(address);
    subscriber.call(&["HELLO", version]);
    subscriber.send(&encode(&["SUBSCRIBE", "news", "sport"]));
    let mut out = subscriber.replies(2);
    out.push(subscriber.call(&["PSUBSCRIBE", "n*"]));
    out.push(publisher.call(&["PUBLISH", "news", "hello \u{0}\r\n"]));
    out.extend(subscriber.replies(2));
    out.push(publisher.call(&["PUBSUB", "NUMSUB", "news", "other"]));
    // In RESP2 most commands are refused now, in RESP3 all are allowed.
    out.push(subscriber.call(&["GET", "a"]));
    out.push(subscriber.call(&["PING"]));
    subscriber.send(&encode(&["UNSUBSCRIBE"]));
    out.extend(subscriber.replies(2));
    out.push(subscriber.call(&["PUNSUBSCRIBE", "n*"]));
    out.push(subscriber.call(&["SSUBSCRIBE", "shard"]));
    out.push(publisher.call(&["SPUBLISH", "shard", "s"]));
    out.push(subscriber.reply().unwrap());
    out.push(subscriber.call(&["SUNSUBSCRIBE"]));
    out.push(subscriber.call(&["SET", "after", "1"]));
    out.push(subscriber.call(&["GET", "after"]));
    out.push(publisher.call(&["PUBLISH", "news", "nobody"]));
    out.push(subscriber.call(&["UNSUBSCRIBE", "never"]));
    out
}

#[test]
fn subscriptions_and_messages_are_the_same_in_resp2() {
    Bench::new().compare(|address| pub_sub(address, "2"));
}

#[test]
fn subscriptions_and_pushes_are_the_same_in_resp3() {
    Bench::new().compare(|address| pub_sub(address, "3"));
}

#[test]
fn a_thousand_messages_arrive_in_order_between_pipelined_replies() {
    Bench::new().compare(|address| {
        let mut subscriber = RespClient::connect(address);
        let mut publisher = RespClient::connect(address);
        subscriber.call(&["HELLO", "3"]);
        let mut out = vec![subscriber.call(&["SUBSCRIBE", "c"])];
        let bytes: Vec<u8> = (0..1000)
            .flat_map(|number| encode(&["PUBLISH", "c", &number.to_string()]))
            .collect();
        publisher.send(&bytes);
        out.extend(publisher.replies(1000));
        let pings: Vec<u8> = (0..1000)
            .flat_map(|number| encode(&["ECHO", &number.to_string()]))
            .collect();
        subscriber.send(&pings);
        // How pushes and replies interleave is the server's affair; each of the two orders is not.
        let (pushes, replies): (Vec<_>, Vec<_>) = subscriber
            .replies(2000)
            .into_iter()
            .partition(|reply| reply[0] == b'>');
        out.extend(pushes);
        out.extend(replies);
        out
    });
}

#[test]
fn client_reply_off_skip_and_on_silence_only_their_own_connection() {
    Bench::new().compare(|address| {
        let mut one = RespClient::connect(address);
        let mut two = RespClient::connect(address);
        one.send(&encode(&["CLIENT", "REPLY", "OFF"]));
        one.send(&encode(&["SET", "quiet", "1"]));
        let mut out = vec![two.call(&["PING"])];
        one.send(&encode(&["CLIENT", "REPLY", "ON"]));
        out.push(one.reply().unwrap());
        one.send(
            &[
                encode(&["CLIENT", "REPLY", "SKIP"]),
                encode(&["INCR", "quiet"]),
            ]
            .concat(),
        );
        out.push(one.call(&["GET", "quiet"]));
        out.push(two.call(&["GET", "quiet"]));
        out
    });
}

#[test]
fn state_of_one_connection_is_not_seen_by_another() {
    Bench::new().compare(|address| {
        let mut clients: Vec<RespClient> = (0..4).map(|_| RespClient::connect(address)).collect();
        let mut out = Vec::new();
        for (number, client) in clients.iter_mut().enumerate() {
            out.push(client.call(&["SELECT", &number.to_string()]));
            out.push(client.call(&["CLIENT", "SETNAME", &format!("client-{number}")]));
            out.push(client.call(&["SET", "mine", &number.to_string()]));
        }
        for client in &mut clients {
            out.push(client.call(&["GET", "mine"]));
            out.push(client.call(&["CLIENT", "GETNAME"]));
        }
        clients[1].call(&["HELLO", "3"]);
        out.push(clients[1].call(&["HGETALL", "none"]));
        out.push(clients[0].call(&["HGETALL", "none"]));
        out.push(clients[2].call(&["RESET"]));
        out.push(clients[2].call(&["GET", "mine"]));
        out.push(clients[3].call(&["GET", "mine"]));
        out
    });
}

#[test]
fn client_side_caching_invalidations_are_pushed() {
    Bench::new().compare(|address| {
        let mut tracking = RespClient::connect(address);
        let mut writer = RespClient::connect(address);
        tracking.call(&["HELLO", "3"]);
        let mut out = vec![
            tracking.call(&["CLIENT", "TRACKING", "ON"]),
            tracking.call(&["GET", "cached"]),
        ];
        out.push(writer.call(&["SET", "cached", "new"]));
        out.push(tracking.reply().unwrap());
        out.push(tracking.call(&["GET", "cached"]));
        out
    });
}

#[test]
fn hello_reports_the_server_except_for_the_connection_id() {
    Bench::new().compare(|address| {
        let mut client = RespClient::connect(address);
        let mut out = Vec::new();
        for args in [
            &["HELLO", "3", "SETNAME", "me"][..],
            &["HELLO", "2"],
            &["HELLO"],
            &["HELLO", "1"],
            &["HELLO", "x"],
        ] {
            out.push(without_id(&client.call(args)));
        }
        out.push(client.call(&["CLIENT", "GETNAME"]));
        out
    });
}

/// Takes the digits after `id` out of a HELLO reply.
fn without_id(reply: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(reply);
    match text.split_once("$2\r\nid\r\n:") {
        None => reply.to_vec(),
        Some((head, tail)) => format!(
            "{head}id{}",
            tail.trim_start_matches(|c: char| c.is_ascii_digit())
        )
        .into_bytes(),
    }
}

#[test]
fn a_password_is_checked_by_the_primary_itself() {
    let options = RedisOptions {
        password: Some("s3cret".into()),
        ..RedisOptions::default()
    };
    let server = RedisServer::start(options).unwrap();
    let proxy = Proxy::redis(server.address());
    let script = |address| {
        let mut client = RespClient::connect(address);
        let mut out = Vec::new();
        for args in [
            &["GET", "a"][..],
            &["HELLO", "3"],
            &["AUTH", "wrong"],
            &["AUTH", "nobody", "s3cret"],
            &["GET", "a"],
            &["AUTH", "s3cret"],
            &["SET", "a", "1"],
            &["AUTH", "wrong"],
            &["GET", "a"],
            &["RESET"],
            &["GET", "a"],
            &["HELLO", "3", "AUTH", "default", "wrong"],
            &["HELLO", "2", "AUTH", "default", "s3cret"],
            &["GET", "a"],
        ] {
            out.push(without_id(&client.call(args)));
        }
        // Another client is not logged in by the first one's password.
        out.push(RespClient::connect(address).call(&["GET", "a"]));
        out
    };
    let (direct, proxied) = (script(server.address()), script(proxy.address()));
    for (number, (direct, proxied)) in direct.iter().zip(&proxied).enumerate() {
        assert!(
            direct == proxied,
            "answer {number}\n direct: {}\n  proxy: {}",
            clip(direct),
            clip(proxied)
        );
    }
}

#[test]
fn a_mirror_changes_nothing_whether_it_is_healthy_stopped_or_dead() {
    let healthy = RedisServer::start(RedisOptions::default()).unwrap();
    let stopped = RedisServer::start(RedisOptions::default()).unwrap();
    stopped.pause().unwrap();
    let mut dead = RedisServer::start(RedisOptions::default()).unwrap();
    dead.kill9().unwrap();
    for mirror in [&healthy, &stopped, &dead] {
        Bench::with(|options| options.mirror(mirror.address()))
            .compare(|address| one_by_one(address, None));
    }
}

#[test]
fn fifty_clients_at_once_get_their_own_replies() {
    let bench = Bench::new();
    let address = bench.proxy.address();
    let threads: Vec<_> = (0..50)
        .map(|number| {
            std::thread::spawn(move || {
                let mut client = RespClient::connect(address);
                for round in 0..200 {
                    let (key, value) = (format!("k:{number}"), format!("{number}:{round}"));
                    client.send(&[encode(&["SET", &key, &value]), encode(&["GET", &key])].concat());
                    let replies = client.replies(2);
                    assert_eq!(replies[0], b"+OK\r\n");
                    assert_eq!(
                        replies[1],
                        format!("${}\r\n{value}\r\n", value.len()).as_bytes()
                    );
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
