//! The hot path of Redis allocates nothing per command in steady state.
//!
//! Measured here is what can be driven without sockets: framing, the command table, the tracker, the books and the
//! metrics of a command over a lane with mirrors off; and of a dual write the queue, the order and the verbatim replay.
//! Not measured: the session and the lane themselves and the ring below them (glommio's tasks and io_uring's buffers),
//! because they do not run without a core. Rewrites to effects with a time in them allocate for its digits, see the last
//! test.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use allocation_counter::measure;
use parhelion::metrics::{Protocol, Registry};
use parhelion::mirror::dual::keys::{hash, visit};
use parhelion::mirror::dual::order::Order;
use parhelion::mirror::dual::queue::{DualBounds, DualQueue};
use parhelion::mirror::ledger::Ledger;
use parhelion::protocol::resp::command::lookup_request;
use parhelion::protocol::resp::effects::{Replay, Rewrite, effects, encode};
use parhelion::protocol::resp::tracker::{Paired, ReplyHead, Tracker};
use parhelion::protocol::resp::{Reply, ReplyFramer, Request, RequestFramer};

const ROUNDS: usize = 100;

/// Commands and replies of an ordinary pipeline.
fn traffic() -> (Vec<u8>, Vec<u8>, usize) {
    let (mut requests, mut replies) = (Vec::new(), Vec::new());
    let commands: [(&[&str], &str); 8] = [
        (&["GET", "key:1"], "$5\r\nvalue\r\n"),
        (&["SET", "key:2", "some value of a usual length"], "+OK\r\n"),
        (&["incr", "counter"], ":4711\r\n"),
        (
            &["MGET", "a", "b", "c"],
            "*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n3\r\n",
        ),
        (&["LPUSH", "list", "one", "two"], ":2\r\n"),
        (
            &["HGETALL", "hash"],
            "*4\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n2\r\n",
        ),
        (&["ZADD", "z", "1", "m"], ":1\r\n"),
        (&["GET", "wrong"], "-WRONGTYPE Operation against a key\r\n"),
    ];
    for (command, reply) in commands {
        encode(&mut requests, command);
        replies.extend_from_slice(reply.as_bytes());
    }
    (requests, replies, commands.len())
}

/// One round over a lane: requests in, replies out.
struct Forwarding {
    requests: RequestFramer,
    replies: ReplyFramer,
    tracker: Tracker<u64>,
    registry: Registry,
    number: u64,
}

impl Forwarding {
    fn round(&mut self, requests: &[u8], replies: &[u8]) -> usize {
        let mut at = 0;
        while at < requests.len() {
            let advance = self.requests.advance(&requests[at..]).unwrap();
            assert!(advance.done);
            let request = Request::parse(&requests[at..at + advance.consumed]);
            let command = lookup_request(&request).unwrap();
            assert!(!command.pins_for(&request));
            self.tracker.request(&request, self.number);
            self.number += 1;
            at += advance.consumed;
        }
        let (mut at, mut answered) = (0, 0);
        while at < replies.len() {
            let advance = self.replies.advance(&replies[at..]).unwrap();
            assert!(advance.done);
            let frame = &replies[at..at + advance.consumed];
            at += advance.consumed;
            let paired = self.tracker.reply(ReplyHead::whole(frame));
            assert!(matches!(paired, Paired::Reply { .. }));
            answered += 1;
        }
        answered
    }
}

#[test]
fn forwarding_over_a_lane_allocates_nothing_per_command() {
    let (requests, replies, count) = traffic();
    let mut lane = Forwarding {
        requests: RequestFramer::new(),
        replies: ReplyFramer::new(u64::MAX),
        tracker: Tracker::new(),
        registry: Registry::new(vec![0]),
        number: 0,
    };
    lane.requests.set_authenticated(true);
    lane.tracker.set_authenticated(true);
    let source = lane.registry.source(0, "primary", Protocol::Redis);
    let book = |requests: &[u8]| {
        let command = lookup_request(&Request::parse(requests)).unwrap();
        source.requests.add(1);
        source.latency.record(12_345);
        let metrics = source.commands.at(command.index(), command.name());
        metrics.record(true, 12_345);
    };
    let mut round = || {
        assert_eq!(lane.round(&requests, &replies), count);
        book(&requests);
    };
    round();
    let measured = measure(|| (0..ROUNDS).for_each(|_| round()));
    assert_eq!(measured.count_total, 0, "{measured:?}");
}

#[test]
fn a_dual_write_allocates_nothing_per_command() {
    let (requests, _, _) = traffic();
    let bounds = DualBounds {
        items: 1024,
        bytes: 1 << 20,
    };
    let mut queue = DualQueue::new(bounds, Arc::<Ledger>::default());
    let mut order = Order::default();
    let mut rewrite = Rewrite::default();
    let mut framer = RequestFramer::new();
    framer.set_authenticated(true);
    let mut now_ns = 1_000;
    let mut round = || {
        let mut at = 0;
        while at < requests.len() {
            let advance = framer.advance(&requests[at..]).unwrap();
            let frame = &requests[at..at + advance.consumed];
            at += advance.consumed;
            now_ns += 1_000;
            let mut item = queue.item();
            item.request.extend_from_slice(frame);
            item.reply.extend_from_slice(b"+OK\r\n");
            item.commands = 1;
            let request = Request::parse(frame);
            rewrite.clear();
            let reply = Reply::parse(b"+OK\r\n");
            let replay = effects(lookup_request(&request), &request, reply, 0, &mut rewrite);
            assert_eq!(replay, Replay::Verbatim);
            visit(&item.request, 0, |db, key| {
                order.answered(hash(db, key), 1, now_ns, now_ns + 10);
            });
            queue.offer(item).unwrap();
            queue.send_next(now_ns).unwrap();
            assert!(queue.expecting().is_some());
            let item = queue.replied().unwrap();
            queue.delivered(item, false);
        }
    };
    round();
    let measured = measure(|| (0..ROUNDS).for_each(|_| round()));
    assert_eq!(measured.count_total, 0, "{measured:?}");
}

#[test]
fn an_effect_with_a_time_allocates_for_its_digits_only() {
    let mut bytes = Vec::new();
    encode(&mut bytes, ["SET", "k", "v", "EX", "100"]);
    let request = Request::parse(&bytes);
    let mut rewrite = Rewrite::default();
    let mut round = || {
        rewrite.clear();
        let reply = Reply::parse(b"+OK\r\n");
        effects(
            lookup_request(&request),
            &request,
            reply,
            1_700_000_000_000,
            &mut rewrite,
        );
    };
    round();
    let measured = measure(|| (0..ROUNDS).for_each(|_| round()));
    let rounds = u64::try_from(ROUNDS).unwrap();
    assert!(measured.count_total <= 3 * rounds, "{measured:?}");
    assert_eq!(measured.count_current, 0, "nothing stays: {measured:?}");
}
