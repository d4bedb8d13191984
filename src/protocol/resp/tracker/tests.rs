use super::*;
use crate::protocol::resp::framer::ReplyFramer;
use crate::protocol::resp::request::Request;

use Disposition::{Mirror, TxnMember};

/// Sends inline commands, numbered from 0, and returns what was said about them.
fn send(tracker: &mut Tracker<usize>, first: usize, lines: &[&str]) -> Vec<Disposition> {
    let request = |(index, line): (usize, &&str)| {
        let line = format!("{line}\r\n");
        tracker.request(&Request::parse(line.as_bytes()), first + index)
    };
    lines.iter().enumerate().map(request).collect()
}

/// Feeds a stream of replies and returns what each frame was.
fn receive(tracker: &mut Tracker<usize>, stream: &str) -> Vec<Paired<usize>> {
    let mut framer = ReplyFramer::new(1 << 20);
    let mut rest = stream.as_bytes();
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let advance = framer.advance(rest).unwrap();
        assert!(advance.done, "a whole number of replies");
        frames.push(tracker.reply(ReplyHead::whole(&rest[..advance.consumed])));
        rest = &rest[advance.consumed..];
    }
    frames
}

fn reply(tag: usize, end: UnitEnd) -> Paired<usize> {
    Paired::Reply { tag, end }
}

const OK: UnitEnd = UnitEnd::Complete { error: false };

#[test]
fn a_pipeline_is_paired_in_order() {
    let mut tracker = Tracker::new();
    assert_eq!(
        send(&mut tracker, 0, &["SET a 1", "GET a", "NOSUCH"]),
        vec![Mirror; 3]
    );
    assert_eq!(
        receive(&mut tracker, "+OK\r\n$1\r\n1\r\n-ERR unknown\r\n"),
        [
            reply(0, OK),
            reply(1, OK),
            reply(2, UnitEnd::Complete { error: true })
        ]
    );
    assert_eq!(receive(&mut tracker, "-ERR bye\r\n"), [Paired::Unsolicited]);
}

#[test]
fn a_transaction_is_a_unit_only_if_exec_succeeds() {
    for (answer, end) in [
        ("*1\r\n+OK\r\n", UnitEnd::Committed),
        ("*-1\r\n", UnitEnd::Discarded(Discarded::WatchedKey)),
        ("_\r\n", UnitEnd::Discarded(Discarded::WatchedKey)),
        ("-EXECABORT x\r\n", UnitEnd::Discarded(Discarded::Aborted)),
    ] {
        let mut tracker = Tracker::new();
        let said = send(&mut tracker, 0, &["MULTI", "SET a 1", "EXEC", "GET a"]);
        assert_eq!(said, [TxnMember, TxnMember, TxnMember, Mirror]);
        let frames = receive(&mut tracker, &format!("+OK\r\n+QUEUED\r\n{answer}$-1\r\n"));
        let open = UnitEnd::Open;
        assert_eq!(
            frames,
            [reply(0, open), reply(1, open), reply(2, end), reply(3, OK)]
        );
        assert!(!tracker.is_tied());
    }
}

#[test]
fn discard_reset_and_quit_end_a_transaction() {
    for (last, answer) in [("DISCARD", "+OK"), ("RESET", "+RESET"), ("QUIT", "+OK")] {
        let mut tracker = Tracker::new();
        send(&mut tracker, 0, &["MULTI", "SET a 1", last]);
        let frames = receive(&mut tracker, &format!("+OK\r\n+QUEUED\r\n{answer}\r\n"));
        assert_eq!(
            frames[2],
            reply(2, UnitEnd::Discarded(Discarded::ByClient)),
            "{last}"
        );
        assert!(!tracker.in_transaction());
    }
}

#[test]
fn members_of_a_refused_multi_ran_by_themselves() {
    let mut tracker = Tracker::new();
    send(&mut tracker, 0, &["MULTI", "SET a 1", "EXEC", "GET a"]);
    let frames = receive(
        &mut tracker,
        "-NOPERM no\r\n+OK\r\n-ERR EXEC without MULTI\r\n$1\r\n1\r\n",
    );
    let refused = UnitEnd::Discarded(Discarded::MultiRefused);
    let stray = UnitEnd::Stray { error: false };
    assert_eq!(
        frames,
        [
            reply(0, refused),
            reply(1, stray),
            reply(2, refused),
            reply(3, OK)
        ]
    );
}

#[test]
fn a_nested_multi_is_an_error_inside_the_unit() {
    let mut tracker = Tracker::new();
    send(
        &mut tracker,
        0,
        &["MULTI", "MULTI", "WATCH a", "SET a 1", "EXEC"],
    );
    let frames = receive(
        &mut tracker,
        "+OK\r\n-ERR nested\r\n-ERR watch\r\n+QUEUED\r\n*1\r\n+OK\r\n",
    );
    assert_eq!(frames[1..4], [1, 2, 3].map(|tag| reply(tag, UnitEnd::Open)));
    assert_eq!(frames[4], reply(4, UnitEnd::Committed));
}

#[test]
fn an_exec_with_an_argument_aborts_and_such_a_discard_does_nothing() {
    let mut tracker = Tracker::new();
    send(
        &mut tracker,
        0,
        &["MULTI", "DISCARD x", "SET a 1", "EXEC x", "GET a"],
    );
    let frames = receive(
        &mut tracker,
        "+OK\r\n-ERR n\r\n+QUEUED\r\n-EXECABORT n\r\n$-1\r\n",
    );
    assert_eq!(frames[1], reply(1, UnitEnd::Open));
    assert_eq!(frames[3], reply(3, UnitEnd::Discarded(Discarded::Aborted)));
    assert_eq!(frames[4], reply(4, OK));
}

#[test]
fn a_transaction_with_a_command_of_the_server_is_excluded() {
    let mut tracker = Tracker::new();
    send(
        &mut tracker,
        0,
        &["MULTI", "PING", "CONFIG SET a b", "EXEC"],
    );
    let frames = receive(
        &mut tracker,
        "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+PONG\r\n+OK\r\n",
    );
    assert_eq!(frames[3], reply(3, UnitEnd::Excluded(NotMirrored::Admin)));
}

#[test]
fn resp2_subscriptions_get_one_confirmation_per_channel() {
    let mut tracker = Tracker::new();
    let said = send(
        &mut tracker,
        0,
        &["SUBSCRIBE a b", "PSUBSCRIBE p*", "PING", "UNSUBSCRIBE"],
    );
    assert_eq!(said[0], Disposition::NotMirrored(NotMirrored::PubSub));
    let frames = receive(
        &mut tracker,
        "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n\
         *3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n*3\r\n$10\r\npsubscribe\r\n$2\r\np*\r\n:3\r\n\
         *4\r\n$8\r\npmessage\r\n$2\r\np*\r\n$1\r\np\r\n$1\r\nx\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n\
         *3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:2\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:1\r\n",
    );
    let none = UnitEnd::NotAUnit;
    assert_eq!(
        frames,
        [
            Paired::Part,
            Paired::Push,
            reply(0, none),
            reply(1, none),
            Paired::Push,
            reply(2, none),
            Paired::Part,
            reply(3, none),
        ]
    );
    assert_eq!(tracker.subscriptions(), 1);
    send(
        &mut tracker,
        4,
        &["PUNSUBSCRIBE", "UNSUBSCRIBE", "LRANGE l 0 -1"],
    );
    let frames = receive(
        &mut tracker,
        "*3\r\n$12\r\npunsubscribe\r\n$2\r\np*\r\n:0\r\n*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n\
         *3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n",
    );
    assert_eq!(frames, [reply(4, none), reply(5, none), reply(6, OK)]);
    assert!(!tracker.is_tied());
}

#[test]
fn resp3_pushes_stand_between_replies_and_confirm_subscriptions() {
    let mut tracker = Tracker::new();
    send(
        &mut tracker,
        0,
        &["HELLO 3", "SUBSCRIBE a b", "GET x", "SUBSCRIBE", "GET y"],
    );
    let frames = receive(
        &mut tracker,
        "%1\r\n$5\r\nproto\r\n:3\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n\
         >3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n\
         >2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nx\r\n_\r\n-ERR arity\r\n_\r\n",
    );
    let none = UnitEnd::NotAUnit;
    assert_eq!(
        frames,
        [
            reply(0, none),
            Paired::Part,
            Paired::Push,
            reply(1, none),
            Paired::Push,
            reply(2, OK),
            reply(3, none),
            reply(4, OK),
        ]
    );
    assert_eq!(tracker.resp(), 3);
    assert_eq!(tracker.subscriptions(), 2);
}

#[test]
fn subscribe_inside_multi_owes_further_frames() {
    let mut tracker = Tracker::new();
    send(
        &mut tracker,
        0,
        &["MULTI", "SUBSCRIBE a b", "PING", "EXEC", "PING"],
    );
    let frames = receive(
        &mut tracker,
        "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n\
         *3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n\
         *2\r\n$4\r\npong\r\n$0\r\n\r\n",
    );
    assert_eq!(frames[3], reply(3, UnitEnd::Excluded(NotMirrored::PubSub)));
    assert_eq!(frames[4..], [Paired::Part, reply(4, UnitEnd::NotAUnit)]);
    assert_eq!(tracker.subscriptions(), 2);
}

#[test]
fn client_reply_off_and_skip_leave_no_reply_to_wait_for() {
    let mut tracker = Tracker::new();
    let silent = Disposition::NotMirrored(NotMirrored::NoReply);
    let said = send(
        &mut tracker,
        0,
        &[
            "CLIENT REPLY SKIP",
            "SET a 1",
            "GET a",
            "CLIENT REPLY OFF",
            "SET b 1",
            "SELECT 3",
        ],
    );
    assert_eq!(said, [silent, silent, Mirror, silent, silent, silent]);
    assert_eq!(receive(&mut tracker, "$1\r\n1\r\n"), [reply(2, OK)]);
    assert!(tracker.is_tied());
    send(&mut tracker, 6, &["CLIENT REPLY ON", "GET b"]);
    let frames = receive(&mut tracker, "+OK\r\n$1\r\n1\r\n");
    assert_eq!(frames, [reply(6, UnitEnd::NotAUnit), reply(7, OK)]);
    assert_eq!(tracker.db(), 3);
    send(&mut tracker, 8, &["CLIENT REPLY OFF", "RESET"]);
    assert_eq!(
        receive(&mut tracker, "+RESET\r\n"),
        [reply(9, UnitEnd::NotAUnit)]
    );
    assert_eq!(tracker.db(), 0);
}

#[test]
fn a_transaction_without_replies_is_not_mirrored() {
    let mut tracker = Tracker::new();
    let said = send(
        &mut tracker,
        0,
        &["CLIENT REPLY SKIP", "MULTI", "SET a 1", "EXEC", "GET a"],
    );
    let silent = Disposition::NotMirrored(NotMirrored::NoReply);
    let member = Disposition::NotMirrored(NotMirrored::SilentTransaction);
    assert_eq!(said, [silent, silent, member, member, Mirror]);
    let frames = receive(&mut tracker, "+QUEUED\r\n*1\r\n+OK\r\n$1\r\n1\r\n");
    let none = UnitEnd::NotAUnit;
    assert_eq!(frames, [reply(2, none), reply(3, none), reply(4, OK)]);
}

#[test]
fn state_follows_the_replies_not_the_requests() {
    let mut tracker = Tracker::new();
    send(
        &mut tracker,
        0,
        &["AUTH x", "AUTH y", "SELECT 5", "SELECT 99", "HELLO 3"],
    );
    assert_eq!(
        (tracker.db(), tracker.resp(), tracker.is_authenticated()),
        (0, 2, false)
    );
    receive(&mut tracker, "-WRONGPASS no\r\n");
    assert!(!tracker.is_authenticated());
    receive(
        &mut tracker,
        "+OK\r\n+OK\r\n-ERR DB index is out of range\r\n",
    );
    assert!(tracker.is_authenticated());
    assert_eq!((tracker.db(), tracker.resp()), (5, 2));
    receive(&mut tracker, "%1\r\n+proto\r\n:3\r\n");
    assert_eq!(tracker.resp(), 3);
    send(
        &mut tracker,
        5,
        &["MULTI", "SELECT 7", "SELECT 99", "EXEC", "RESET"],
    );
    receive(
        &mut tracker,
        "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n-ERR range\r\n",
    );
    assert_eq!(tracker.db(), 7);
    receive(&mut tracker, "+RESET\r\n");
    assert_eq!((tracker.db(), tracker.resp()), (0, 2));
}

#[test]
fn monitor_lines_are_no_replies() {
    let mut tracker = Tracker::new();
    send(&mut tracker, 0, &["MONITOR", "PING"]);
    let frames = receive(
        &mut tracker,
        "+OK\r\n+1700.1 [0 x] \"PING\"\r\n+PONG\r\n+1.2 [0 x]\r\n",
    );
    let none = UnitEnd::NotAUnit;
    assert_eq!(
        frames,
        [reply(0, none), Paired::Push, reply(1, none), Paired::Push]
    );
    assert!(tracker.is_tied());
}

#[test]
fn nothing_behind_quit_is_waited_for() {
    let mut tracker = Tracker::new();
    let said = send(&mut tracker, 0, &["QUIT", "GET a"]);
    assert_eq!(said[1], Disposition::NotMirrored(NotMirrored::AfterQuit));
    assert_eq!(tracker.len(), 1);
}

#[test]
fn ten_thousand_requests_with_pushes_in_between_are_paired() {
    let mut tracker = Tracker::new();
    send(&mut tracker, 0, &["HELLO 3"]);
    receive(&mut tracker, "%0\r\n");
    let mut stream = String::new();
    for tag in 0..10_000 {
        send(&mut tracker, tag, &["GET a"]);
        if tag % 3 == 0 {
            stream.push_str(">1\r\n+invalidate\r\n");
        }
        stream.push_str("_\r\n");
    }
    let frames = receive(&mut tracker, &stream);
    let tags: Vec<usize> = frames
        .iter()
        .filter_map(|frame| match frame {
            Paired::Reply { tag, .. } => Some(*tag),
            _ => None,
        })
        .collect();
    assert_eq!(tags, (0..10_000).collect::<Vec<_>>());
}

#[test]
fn a_blocking_command_and_a_watch_are_not_mirrored() {
    let mut tracker = Tracker::new();
    let said = send(
        &mut tracker,
        0,
        &["BLPOP a 0", "WATCH a", "XREAD BLOCK 1 STREAMS a 0"],
    );
    let not = Disposition::NotMirrored;
    assert_eq!(
        said,
        [
            not(NotMirrored::Blocking),
            not(NotMirrored::ConnectionState),
            not(NotMirrored::Blocking)
        ]
    );
}

#[test]
fn a_resp2_subscriber_is_refused_client_reply_and_waits_for_the_error() {
    let mut tracker = Tracker::new();
    send(
        &mut tracker,
        0,
        &["SUBSCRIBE a", "CLIENT REPLY OFF", "PING"],
    );
    let frames = receive(
        &mut tracker,
        "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n-ERR Can't execute\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n",
    );
    assert_eq!(frames, [0, 1, 2].map(|tag| reply(tag, UnitEnd::NotAUnit)));
}

#[test]
fn subscriptions_are_confirmed_even_without_replies() {
    let mut tracker = Tracker::new();
    send(
        &mut tracker,
        0,
        &["CLIENT REPLY SKIP", "SUBSCRIBE a b", "PING"],
    );
    let frames = receive(
        &mut tracker,
        "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n\
         *2\r\n$4\r\npong\r\n$0\r\n\r\n",
    );
    assert_eq!(
        frames,
        [Paired::Part, Paired::Part, reply(2, UnitEnd::NotAUnit)]
    );
    assert_eq!(tracker.subscriptions(), 2);
}
