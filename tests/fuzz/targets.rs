//! The functions that are fuzzed. libFuzzer drives them (`fuzz_targets/`), and so does the bounded run in
//! `cargo test` (`tests/fuzz_smoke.rs`).
//!
//! A target returns if the input was handled, whatever the verdict on it; it panics if an invariant broke. The first
//! byte of an input says where the rest is cut into reads, so that cuts are fuzzed too.

#[path = "carried.rs"]
mod carried;

use std::path::Path;

use parhelion::config::Input;
use parhelion::protocol::postgres::framer::MessageFramer;
use parhelion::protocol::postgres::login::{Login, LoginParams, LoginProgress, Secret};
use parhelion::protocol::postgres::replay::Replay;
use parhelion::protocol::postgres::startup::{First, parse_first};
use parhelion::protocol::postgres::{sql, tracker as pg};
use parhelion::protocol::resp::tracker::{Paired, ReplyHead, Tracker};
use parhelion::protocol::resp::{
    Comparison, ReplyFramer, Request, RequestFramer, command, compare, compare_transaction,
};

pub use carried::{pg_auth, pg_pipeline, pg_pooled, pg_queries, pg_state, resp_dual};

/// Takes any input without panic, hang or unbounded memory.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("resp_request", resp_request),
    ("resp_reply", resp_reply),
    ("resp_session", resp_session),
    ("resp_compare", resp_compare),
    ("pg_framer", pg_framer),
    ("pg_startup", pg_startup),
    ("pg_session", pg_session),
    ("pg_mirror", pg_mirror),
    ("pg_login", pg_login),
    ("pg_sql", pg_sql),
    ("pg_pipeline", pg_pipeline),
    ("pg_queries", pg_queries),
    ("pg_pooled", pg_pooled),
    ("pg_state", pg_state),
    ("pg_auth", pg_auth),
    ("resp_dual", resp_dual),
    ("config", config),
    ("admin_sql", admin_sql),
];

/// The input as reads: of one size that the first byte says, or whole.
fn reads(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (size, rest) = match data.split_first() {
        Some((0, rest)) => (usize::MAX, rest),
        Some((size, rest)) => (usize::from(*size), rest),
        None => (1, data),
    };
    rest.chunks(size.min(rest.len().max(1)))
}

/// Frames end at the same places however the stream is cut.
pub fn resp_request(data: &[u8]) {
    let ends = |reads: &mut dyn Iterator<Item = &[u8]>| {
        let mut framer = RequestFramer::new();
        framer.set_authenticated(data.len().is_multiple_of(2));
        let (mut ends, mut at) = (Vec::new(), 0);
        for read in reads {
            let mut rest = read;
            while !rest.is_empty() {
                let Ok(advance) = framer.advance(rest) else {
                    return (ends, true);
                };
                assert!(advance.consumed > 0 && advance.consumed <= rest.len());
                at += advance.consumed;
                rest = &rest[advance.consumed..];
                if advance.done {
                    ends.push(at);
                } else {
                    assert!(rest.is_empty(), "not done, and not all was taken");
                }
            }
        }
        (ends, false)
    };
    let whole = data.get(1..).unwrap_or_default();
    let (cut, refused_cut) = ends(&mut reads(data));
    let (all, refused) = ends(&mut std::iter::once(whole));
    assert_eq!(cut, all);
    // What is refused at the end of a read that goes on may be refused a little later when cut.
    assert!(refused || !refused_cut);
    let mut begin = 0;
    for end in all {
        let frame = &whole[begin..end];
        let request = Request::parse(frame);
        let _ = command::lookup_request(&request);
        let _ = request.name();
        begin = end;
    }
}

/// As [`resp_request`], for replies.
pub fn resp_reply(data: &[u8]) {
    let ends = |reads: &mut dyn Iterator<Item = &[u8]>| {
        let mut framer = ReplyFramer::new(1 << 30);
        let (mut ends, mut at) = (Vec::new(), 0);
        for read in reads {
            let mut rest = read;
            while !rest.is_empty() {
                let Ok(advance) = framer.advance(rest) else {
                    return ends;
                };
                assert!(advance.consumed > 0 && advance.consumed <= rest.len());
                at += advance.consumed;
                rest = &rest[advance.consumed..];
                if advance.done {
                    ends.push((at, framer.kind()));
                } else {
                    assert!(rest.is_empty());
                }
            }
        }
        ends
    };
    let whole = data.get(1..).unwrap_or_default();
    let all = ends(&mut std::iter::once(whole));
    assert_eq!(ends(&mut reads(data)), all);
}

/// A client's and a server's stream against the session core: no reply is paired that nobody waits for.
pub fn resp_session(data: &[u8]) {
    let (requests, replies) = halves(data);
    let mut tracker = Tracker::<usize>::new();
    let (mut framer, mut server) = (RequestFramer::new(), ReplyFramer::new(1 << 20));
    framer.set_authenticated(true);
    let (mut asked, mut answered, mut rest) = (0_usize, 0_usize, requests);
    while !rest.is_empty() {
        let Ok(advance) = framer.advance(rest) else {
            break;
        };
        if advance.done && !advance.empty {
            tracker.request(&Request::parse(&rest[..advance.consumed]), asked);
            asked += 1;
        }
        rest = &rest[advance.consumed..];
    }
    let mut rest = replies;
    let mut last = None;
    while !rest.is_empty() {
        let Ok(advance) = server.advance(rest) else {
            break;
        };
        if advance.done {
            let head = ReplyHead::whole(&rest[..advance.consumed]);
            if let Paired::Reply { tag, .. } = tracker.reply(head) {
                assert!(last.is_none_or(|last| last < tag), "replies out of order");
                last = Some(tag);
                answered += 1;
            }
        }
        rest = &rest[advance.consumed..];
    }
    assert!(
        answered + tracker.len() <= asked,
        "a request has two replies"
    );
}

/// A reply is equal to itself, and comparing never fails.
pub fn resp_compare(data: &[u8]) {
    let (request, rest) = halves(data);
    let (primary, mirror) = halves(rest);
    let request = Request::parse(request);
    let command = command::lookup_request(&request);
    let _ = compare(command, &request, primary, mirror);
    let same = compare(command, &request, primary, primary);
    assert!(!matches!(same, Comparison::Different(_)));
    let _ = compare_transaction(rest, primary, mirror);
}

/// Message boundaries do not depend on the reads, on either side.
pub fn pg_framer(data: &[u8]) {
    for new in [MessageFramer::client, MessageFramer::server] {
        let ends = |reads: &mut dyn Iterator<Item = &[u8]>| {
            let (mut framer, mut ends, mut at) = (new(), Vec::new(), 0);
            for read in reads {
                let mut rest = read;
                while !rest.is_empty() {
                    let Ok(advance) = framer.advance(rest) else {
                        return ends;
                    };
                    assert!(advance.consumed > 0 && advance.consumed <= rest.len());
                    at += advance.consumed;
                    rest = &rest[advance.consumed..];
                    if !framer.in_message() {
                        ends.push(at);
                    }
                }
            }
            ends
        };
        let whole = data.get(1..).unwrap_or_default();
        let all = ends(&mut std::iter::once(whole));
        assert_eq!(ends(&mut reads(data)), all);
    }
}

/// A startup packet that is taken is written again as it was meant.
pub fn pg_startup(data: &[u8]) {
    if let Some(Ok(parsed)) = parse_first(data) {
        assert!(parsed.consumed <= data.len());
        if let First::Startup(startup) = parsed.first {
            let again = startup.encode();
            let Some(Ok(parsed)) = parse_first(&again) else {
                panic!("what was taken is refused when it is sent on");
            };
            let First::Startup(same) = parsed.first else {
                panic!("another packet");
            };
            assert!(startup.params().eq(same.params()));
        }
    }
}

/// Both streams of a session, cut anywhere: a violation is an error, and nothing else.
pub fn pg_session(data: &[u8]) {
    let (client, server) = halves(data);
    let mut tracker = pg::Tracker::new_ready();
    tracker.set_digest(true);
    tracker.set_capture(true);
    let (mut ours, mut theirs) = (reads(client), reads(server));
    loop {
        let (sent, received) = (ours.next(), theirs.next());
        if sent.is_none() && received.is_none() {
            break;
        }
        if tracker
            .client(sent.unwrap_or_default(), &mut |_| {})
            .is_err()
            || tracker
                .server(received.unwrap_or_default(), &mut |_| {})
                .is_err()
        {
            break;
        }
        assert!(tracker.head_cycle() <= tracker.newest_cycle().saturating_add(1));
    }
}

/// A mirror that answers anything at all to a unit that was sent.
pub fn pg_mirror(data: &[u8]) {
    let mut replay = Replay::new(true);
    let unit = b"Q\0\0\0\x0dSELECT 1\0Q\0\0\0\x0dSELECT 2\0";
    replay.sent(unit).expect("a unit of our own");
    let mut out = Vec::new();
    for read in reads(data) {
        if replay.receive(read, &mut out).is_err() {
            return;
        }
        assert!(out.len() < 1 << 16, "answers without end");
    }
}

/// A server that answers anything at all to a login.
pub fn pg_login(data: &[u8]) {
    let mut login = Login::new(LoginParams {
        user: b"u".to_vec(),
        database: b"d".to_vec(),
        password: Some(Secret::new("p")),
        extra: Vec::new(),
    });
    let mut out = login.start();
    for read in reads(data) {
        out.clear();
        match login.receive(read, &mut out) {
            Ok(LoginProgress::Continue) => {}
            Ok(LoginProgress::Done { .. }) | Err(_) => return,
        }
    }
}

/// Any text is classified and fingerprinted, and no literal stays in the fingerprint.
pub fn pg_sql(data: &[u8]) {
    let _ = sql::classify(data);
    let _ = sql::has_order_by(data);
    let (hash, text) = sql::fingerprint(data);
    assert_eq!(sql::fingerprint(data), (hash, text));
}

/// A configuration is taken or refused, with a line that exists.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let input = Input {
        file: Path::new("/nowhere/parhelion.toml"),
        text,
        users: None,
        cpus: &[0, 1],
    };
    if let Err(errors) = parhelion::config::parse(&input) {
        assert!(!errors.to_string().is_empty());
    }
}

/// Any statement of an operator is split, and each part described or refused.
pub fn admin_sql(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for statement in parhelion::control::admin_sql::split(&text) {
        assert!(text.contains(statement));
        let _ = parhelion::control::admin_sql::describe(statement);
    }
}

/// Two halves, the first as long as two bytes say.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    match data {
        [high, low, rest @ ..] => {
            let at = usize::from(u16::from_be_bytes([*high, *low])) % (rest.len() + 1);
            rest.split_at(at)
        }
        _ => (data, &[]),
    }
}
