//! Dual writes and shadow subscriptions between two real servers, through the real binary.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use parhelion::testing::wait::eventually;
use support::dual::{PATIENCE, Pair, fill, read_all};
use support::resp::RespClient;

#[test]
fn a_dead_secondary_neither_delays_nor_fails_a_client_and_gets_everything_when_it_returns() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let mut client = pair.client();
    fill(&mut client, 100);
    assert!(pair.becomes_same());
    pair.secondary.kill9().unwrap();
    fill(&mut client, 1000);
    read_all(&mut client, 1000);
    assert_eq!(client.call(&["DEL", "k:7"]), b":1\r\n");
    pair.secondary.restart().unwrap();
    assert!(pair.becomes_same());
}

#[test]
fn a_script_that_the_secondary_has_never_seen_is_told_to_it() {
    let pair = Pair::new("mode = \"dual-write\"");
    let mut client = pair.client();
    let mut other = pair.client();
    let script = "return redis.call('INCR', KEYS[1])";
    let reply = other.call(&["SCRIPT", "LOAD", script]);
    let sha = String::from_utf8(reply[5..45].to_vec()).unwrap();
    assert_eq!(client.call(&["EVALSHA", &sha, "1", "n"]), b":1\r\n");
    assert!(pair.becomes_same());
    RespClient::connect(pair.secondary.address()).call(&["SCRIPT", "FLUSH"]);
    assert_eq!(client.call(&["EVALSHA", &sha, "1", "n"]), b":2\r\n");
    assert!(pair.becomes_same());
}

#[test]
fn a_transaction_that_was_not_executed_is_not_replayed() {
    let pair = Pair::new("mode = \"dual-write\"");
    let (mut client, mut other) = (pair.client(), pair.client());
    client.call(&["SET", "a", "1"]);
    client.call(&["WATCH", "a"]);
    client.call(&["MULTI"]);
    client.call(&["SET", "b", "1"]);
    other.call(&["SET", "a", "2"]);
    assert_eq!(client.call(&["EXEC"]), b"*-1\r\n");
    client.call(&["MULTI"]);
    client.call(&["SET", "c", "1"]);
    client.call(&["DISCARD"]);
    client.call(&["MULTI"]);
    client.call(&["SADD", "s", "x", "y", "z"]);
    client.call(&["SPOP", "s", "2"]);
    client.call(&["SELECT", "3"]);
    client.call(&["SET", "d", "1"]);
    client.call(&["EXEC"]);
    client.call(&["SET", "e", "1"]);
    assert!(pair.becomes_same());
    let mut behind = RespClient::connect(pair.secondary.address());
    assert_eq!(behind.call(&["EXISTS", "b", "c"]), b":0\r\n");
    behind.call(&["SELECT", "3"]);
    assert_eq!(behind.call(&["EXISTS", "d", "e"]), b":2\r\n");
}

#[test]
fn messages_are_matched_between_both_subscriptions_sharded_ones_too() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"");
    let mut subscriber = pair.client();
    subscriber.call(&["SUBSCRIBE", "news"]);
    subscriber.call(&["SSUBSCRIBE", "shard"]);
    subscriber.call(&["PSUBSCRIBE", "p*"]);
    let mut behind = RespClient::connect(pair.secondary.address());
    let shadowed = eventually(PATIENCE, || {
        (behind.call(&["PUBSUB", "NUMPAT"]) == b":1\r\n").then_some(())
    });
    assert!(shadowed.is_some(), "no shadow subscription");
    // Behind the window in which the two subscriptions may differ for good reason.
    std::thread::sleep(Duration::from_millis(2500));
    let mut client = pair.client();
    for number in 0..20 {
        let text = number.to_string();
        client.call(&["PUBLISH", "news", &text]);
        client.call(&["SPUBLISH", "shard", &text]);
        client.call(&["PUBLISH", "pat", &text]);
    }
    subscriber.replies(60);
    RespClient::connect(pair.primary.address()).call(&["PUBLISH", "news", "lost"]);
    behind.call(&["PUBLISH", "pat", "invented"]);
    let kinds = ["\"data_mismatch\"", "\"extra_data\""];
    let found = eventually(PATIENCE, || {
        let counts = kinds.map(|kind| pair.metric("parhelion_mirror_divergences_total", &[kind]));
        (counts == [1.0, 1.0]).then_some(())
    });
    assert!(
        found.is_some(),
        "{}",
        pair.proxy.real().get("/api/divergences").unwrap()
    );
}

#[test]
fn a_message_that_is_still_young_when_its_client_leaves_is_not_reported() {
    let mut pair = Pair::new("mode = \"dual-write-shadow\"\npubsub_compare_window = \"300ms\"");
    let mut behind = RespClient::connect(pair.secondary.address());
    let mut ours = RespClient::connect(pair.primary.address());
    let shadows = |count: usize, behind: &mut RespClient| {
        let answer = format!("*2\r\n$4\r\nnews\r\n:{count}\r\n").into_bytes();
        let seen = eventually(PATIENCE, || {
            (behind.call(&["PUBSUB", "NUMSUB", "news"]) == answer).then_some(())
        });
        assert!(seen.is_some(), "{count} shadow subscriptions");
    };
    for _ in 0..5 {
        let mut subscriber = pair.client();
        subscriber.call(&["SUBSCRIBE", "news"]);
        shadows(1, &mut behind);
        // Beyond the window in which the two subscriptions may differ for good reason.
        std::thread::sleep(Duration::from_millis(400));
        ours.call(&["PUBLISH", "news", "on one side only"]);
        assert!(subscriber.reply().unwrap().ends_with(b"only\r\n"));
        drop(subscriber);
        shadows(0, &mut behind);
    }
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(pair.divergences(), (0.0, 0.0));
}
