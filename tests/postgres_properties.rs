//! Properties of the Postgres parsers: any cut of a stream reads the same, a naive parser and `postgres-protocol` agree, and
//! no bytes make them panic.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ops::Range;

use bytes::BytesMut;
use parhelion::protocol::postgres::framer::MessageFramer;
use parhelion::protocol::postgres::login::{Login, LoginParams};
use parhelion::protocol::postgres::replay::Replay;
use parhelion::protocol::postgres::session::SessionState;
use parhelion::protocol::postgres::startup::parse_first;
use parhelion::protocol::postgres::statements::{ConnStatements, Snapshot, rewrite_unit};
use parhelion::protocol::postgres::tracker::{ClientEvent, ServerEvent, Tracker};
use parhelion::protocol::postgres::{lexer, sql};
use postgres_protocol::message::backend::Message;
use proptest::collection::vec;
use proptest::prelude::*;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn client_message() -> impl Strategy<Value = Vec<u8>> {
    let body = vec(any::<u8>(), 0..80);
    prop_oneof![
        "[a-z ;']{0,40}".prop_map(|sql| message(b'Q', format!("{sql}\0").as_bytes())),
        ("[a-c]?", "[a-z $1]{0,20}")
            .prop_map(|(name, sql)| message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())),
        "[a-c]?".prop_map(|name| message(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes())),
        "[a-c]?".prop_map(|name| message(b'D', format!("S{name}\0").as_bytes())),
        "[a-c]?".prop_map(|name| message(b'C', format!("S{name}\0").as_bytes())),
        Just(message(b'E', b"\0\0\0\0\0")),
        Just(message(b'S', b"")),
        Just(message(b'H', b"")),
        body.prop_map(|body| message(b'd', &body)),
        Just(message(b'c', b"")),
        Just(message(b'f', b"no\0")),
    ]
}

fn server_message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..60).prop_map(|value| {
            let mut body = vec![0, 1];
            body.extend((value.len() as u32).to_be_bytes());
            body.extend(value);
            message(b'D', &body)
        }),
        1 => "[a-z]{1,9}".prop_map(|name| {
            let mut body = vec![0, 1];
            body.extend(name.as_bytes());
            body.extend([0; 7]);
            body.extend([0, 0, 0, 23, 0, 4, 0xff, 0xff, 0xff, 0xff, 0, 0]);
            message(b'T', &body)
        }),
        2 => "(SELECT|UPDATE) [0-9]{1,3}".prop_map(|tag| message(b'C', format!("{tag}\0").as_bytes())),
        1 => "[0-9A-Z]{5}".prop_map(|code| {
            message(b'E', format!("SERROR\0VERROR\0C{code}\0Mtext\0\0").as_bytes())
        }),
        1 => Just(message(b'N', b"SNOTICE\0C00000\0Mx\0\0")),
        1 => Just(message(b'A', b"\0\0\0\x07chan\0pay\0")),
        1 => Just(message(b'S', b"TimeZone\0UTC\0")),
        1 => Just(message(b'1', b"")),
        1 => Just(message(b'2', b"")),
        1 => Just(message(b'n', b"")),
        1 => Just(message(b'G', b"\0\0\0")),
        2 => prop_oneof![Just(b"I"), Just(b"T"), Just(b"E")].prop_map(|status| message(b'Z', status)),
    ]
}

/// Cuts a stream at the given places, taken modulo its length.
fn pieces(len: usize, cuts: &[usize]) -> Vec<Range<usize>> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (len + 1)).collect();
    at.extend([0, len]);
    at.sort_unstable();
    at.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// What a tracker says of a client stream, with adjacent ranges joined so that cuts do not show: first what is read, in its
/// order, then where the bytes belong, in theirs. (How the two interleave depends on the cuts.)
fn read_client(tracker: &mut Tracker, bytes: &[u8], cuts: &[usize]) -> Vec<String> {
    let (mut log, mut places): (Vec<String>, Vec<String>) = Default::default();
    let mut run: Option<(String, Range<usize>, bool, bool)> = None;
    for piece in pieces(bytes.len(), cuts) {
        let base = piece.start;
        let result = tracker.client(&bytes[piece], &mut |event| {
            let (name, range, opens, closes) = match event {
                ClientEvent::Bytes {
                    cycle,
                    range,
                    opens,
                    closes,
                } => (format!("cycle {cycle}"), range, opens, closes),
                ClientEvent::Stray { range } => ("stray".into(), range, false, false),
                ClientEvent::Password { range } => ("password".into(), range, false, false),
                ClientEvent::Terminate { range } => ("terminate".into(), range, false, false),
                other => return log.push(format!("{other:?}")),
            };
            let range = base + range.start..base + range.end;
            match &mut run {
                Some((have, open, _, closed)) if *have == name && open.end == range.start => {
                    open.end = range.end;
                    *closed |= closes;
                }
                _ => {
                    places.extend(run.take().map(|run| format!("{run:?}")));
                    run = Some((name, range, opens, closes));
                }
            }
        });
        if let Err(error) = result {
            log.push(error.to_string());
            break;
        }
    }
    places.extend(run.map(|run| format!("{run:?}")));
    log.extend(places);
    log
}

fn read_server(tracker: &mut Tracker, bytes: &[u8], cuts: &[usize]) -> Vec<String> {
    let mut log = Vec::new();
    for piece in pieces(bytes.len(), cuts) {
        let result = tracker.server(&bytes[piece], &mut |event| log.push(format!("{event:?}")));
        if let Err(error) = result {
            log.push(error.to_string());
            break;
        }
    }
    log
}

fn tracker() -> Tracker {
    let mut tracker = Tracker::new_ready();
    tracker.set_digest(true);
    tracker
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_cut_of_both_streams_gives_the_same_events(
        client in vec(client_message(), 0..30),
        server in vec(server_message(), 0..40),
        cuts in vec(any::<usize>(), 0..40),
    ) {
        let (client, server) = (client.concat(), server.concat());
        let (mut whole, mut cut) = (tracker(), tracker());
        prop_assert_eq!(
            read_client(&mut whole, &client, &[]),
            read_client(&mut cut, &client, &cuts)
        );
        let read = read_server(&mut whole, &server, &[]);
        prop_assert_eq!(&read, &read_server(&mut cut, &server, &cuts));
        prop_assert_eq!(whole.outstanding(), cut.outstanding());
        if read.last().is_some_and(|last| last.starts_with("server: ")) {
            // Behind a violation there is nothing to agree about.
            return Ok(());
        }
        prop_assert_eq!(whole.idle(), cut.idle());
    }

    #[test]
    fn the_framer_a_naive_parser_and_postgres_protocol_agree(
        server in vec(server_message(), 0..40),
        cuts in vec(any::<usize>(), 0..40),
    ) {
        let bytes = server.concat();
        let mut naive = Vec::new();
        let mut rest = bytes.as_slice();
        while rest.len() >= 5 {
            let len = u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize;
            naive.push((rest[0], len - 4));
            rest = &rest[1 + len..];
        }
        let mut framer = MessageFramer::server();
        let mut framed = Vec::new();
        for piece in pieces(bytes.len(), &cuts) {
            let mut input = &bytes[piece];
            while !input.is_empty() {
                let advance = framer.advance(input).unwrap();
                prop_assert!(advance.consumed > 0);
                if advance.done {
                    framed.push((framer.tag().unwrap(), framer.body_len().unwrap()));
                }
                input = &input[advance.consumed..];
            }
        }
        prop_assert_eq!(&framed, &naive);
        let (mut library, mut buffer) = (0, BytesMut::from(bytes.as_slice()));
        while let Some(parsed) = Message::parse(&mut buffer).unwrap() {
            let tag = naive[library].0;
            prop_assert_eq!(matches!(parsed, Message::DataRow(_)), tag == b'D');
            prop_assert_eq!(matches!(parsed, Message::ReadyForQuery(_)), tag == b'Z');
            library += 1;
        }
        prop_assert_eq!(library, naive.len());
    }

    #[test]
    fn mutated_streams_and_noise_never_panic(
        client in vec(client_message(), 0..20),
        server in vec(server_message(), 0..20),
        flips in vec((any::<usize>(), any::<u8>()), 0..8),
        cuts in vec(any::<usize>(), 0..10),
        noise in vec(any::<u8>(), 0..200),
    ) {
        for noisy in [false, true] {
            let (mut client, mut server) = (client.concat(), server.concat());
            if noisy {
                client.clone_from(&noise);
                server.clone_from(&noise);
            }
            for (at, value) in &flips {
                for bytes in [&mut client, &mut server] {
                    if !bytes.is_empty() {
                        let at = at % bytes.len();
                        bytes[at] = *value;
                    }
                }
            }
            for mut tracker in [Tracker::new(false), tracker()] {
                read_client(&mut tracker, &client, &cuts);
                read_server(&mut tracker, &server, &cuts);
                read_client(&mut tracker, &client, &cuts);
            }
            let mut replay = Replay::new(true);
            let mut out = Vec::new();
            let _ = replay.sent(&client);
            let _ = replay.finish(&mut out);
            let _ = replay.receive(&server, &mut out);
            let params = LoginParams {
                user: b"u".to_vec(), database: b"d".to_vec(), password: None, extra: Vec::new(),
            };
            let _ = Login::new(params).receive(&server, &mut out);
            let _ = parse_first(&client);
            let _ = rewrite_unit(&client, &Snapshot::default(), &ConnStatements::default());
            sql::classify(&client);
            sql::fingerprint(&client);
            sql::has_order_by(&client);
            let mut session = SessionState::default();
            session.observe(&client, 1);
            session.settle(1, true);
            session.diff(&SessionState::default());
        }
    }

    #[test]
    fn sql_of_any_shape_is_read_to_its_end(text in "[-a-zE$'\"/*;(), .1\\\\\n]{0,80}") {
        let mut lexer = lexer::Lexer::new(text.as_bytes());
        let tokens = lexer.by_ref().count();
        prop_assert!(tokens <= text.len());
        prop_assert_eq!(lexer.position(), text.len());
        sql::classify(text.as_bytes());
        let mut session = SessionState::default();
        session.observe(text.as_bytes(), 1);
        session.settle(1, true);
        session.diff(&SessionState::default());
    }

    #[test]
    fn a_rewritten_unit_has_the_same_messages_but_for_names(
        client in vec(client_message(), 0..20),
    ) {
        let unit = client.concat();
        let rewritten =
            rewrite_unit(&unit, &Snapshot::default(), &ConnStatements::default()).unwrap();
        let tags = |bytes: &[u8]| {
            let (mut framer, mut at, mut tags) = (MessageFramer::client(), 0, Vec::new());
            while at < bytes.len() {
                let advance = framer.advance(&bytes[at..]).unwrap();
                assert!(advance.done);
                let own_close = framer.tag() == Some(b'C')
                    && bytes[at + 5..].starts_with(b"Sph_");
                if !own_close {
                    tags.push(framer.tag());
                }
                at += advance.consumed;
            }
            tags
        };
        prop_assert_eq!(tags(&rewritten.bytes), tags(&unit));
    }
}

/// Some 4 KiB of what sessions are made of, in both directions.
fn session() -> (Vec<u8>, Vec<u8>) {
    let (mut client, mut server) = (Vec::new(), Vec::new());
    let columns = b"\0\x01name\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0";
    let ready = message(b'Z', b"I");
    let text = format!("SET work_mem = '1MB'; SELECT 1 /* {} */\0", "x".repeat(600));
    let row = [&b"\0\x01\0\0\x02\0"[..], &[b'x'; 512]].concat();
    while client.len() < 4096 || server.len() < 4096 {
        client.extend(message(b'Q', text.as_bytes()));
        server.extend(
            [
                message(b'C', b"SET\0"),
                message(b'T', columns),
                message(b'D', &row),
                message(b'C', b"SELECT 1\0"),
                ready.clone(),
            ]
            .concat(),
        );
        client.extend(
            [
                message(b'P', b"s\0SELECT $1\0\0\0"),
                message(b'B', b"\0s\0\0\0\0\x01\0\0\0\x01x\0\0"),
                message(b'D', b"P\0"),
                message(b'E', b"\0\0\0\0\0"),
                message(b'C', b"Ss\0"),
                message(b'S', b""),
            ]
            .concat(),
        );
        server.extend(
            [
                message(b'1', b""),
                message(b'2', b""),
                message(b'A', b"\0\0\0\x07news\0extra\0"),
                message(b'n', b""),
                message(b'E', b"SERROR\0C22012\0Mno\0\0"),
                ready.clone(),
            ]
            .concat(),
        );
        client.extend(
            [
                message(b'Q', b"COPY t FROM STDIN\0"),
                message(b'd', b"1\n2\n"),
                message(b'c', b""),
            ]
            .concat(),
        );
        server.extend(
            [
                message(b'G', b"\0\0\0"),
                message(b'C', b"COPY 2\0"),
                ready.clone(),
            ]
            .concat(),
        );
    }
    (client, server)
}

#[test]
fn both_streams_of_a_session_may_be_cut_anywhere() {
    let (client, server) = session();
    let read = |at: usize| {
        let mut tracker = tracker();
        let both = [
            read_client(&mut tracker, &client, &[at.min(client.len())]),
            read_server(&mut tracker, &server, &[at.min(server.len())]),
        ];
        assert!(tracker.idle(), "cut at {at}");
        both
    };
    let whole = read(0);
    assert!(whole.iter().all(|log| log.len() > 30), "{whole:?}");
    for at in 1..=client.len().max(server.len()) {
        assert_eq!(read(at), whole, "cut at {at}");
    }
}

/// What `read` holds at most while it runs, in bytes.
fn held(read: impl FnOnce()) -> u64 {
    allocation_counter::measure(read).bytes_max
}

/// Bound of the specification for what a length field may cost.
const RESERVED_MAX: u64 = 64 << 10;

#[test]
fn a_hostile_length_reserves_nothing() {
    // Impossible ones, and the largest that the protocol allows; only the header is ever sent, and a few bytes.
    for length in [
        0,
        1,
        2,
        3,
        0x3fff_fffe_u32,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
    ] {
        let head = |tag: u8| [&[tag][..], &length.to_be_bytes(), &[b'x'; 100]].concat();
        for tag in *b"QPBCDEdpF~" {
            let input = head(tag);
            let cost = held(|| {
                let mut tracker = tracker();
                let read = tracker.client(&input, &mut |_| {});
                assert!(
                    read.is_err() || (4..0x4000_0000).contains(&length),
                    "{tag} {length}"
                );
            });
            assert!(cost <= RESERVED_MAX, "{tag} {length:#x}: {cost} bytes");
        }
        for tag in *b"DTCEZSKNARGHWtV~" {
            let input = head(tag);
            let cost = held(|| {
                let mut tracker = tracker();
                tracker.client(&message(b'Q', b"x\0"), &mut |_| {}).unwrap();
                let mut rows = 0;
                let _ = tracker.server(&input, &mut |event| {
                    rows += u32::from(matches!(event, ServerEvent::Rows { .. }));
                });
                assert!(rows == 0 || (4..0x4000_0000).contains(&length));
            });
            assert!(cost <= RESERVED_MAX, "{tag} {length:#x}: {cost} bytes");
        }
    }
}

#[test]
fn negative_and_huge_lengths_of_fields_cost_nothing() {
    for field in [-1_i32, -2, -10, i32::MIN, i32::MAX, 0x3fff_ffff] {
        let field = field.to_be_bytes();
        for count in [1_u16, 0x7fff, 0x8000, 0xffff] {
            let count = count.to_be_bytes();
            // A row, the parameters of a Bind and of a function call, and what a server negotiates.
            let row = [&count[..], &field, b"xyz"].concat();
            let bind = [&b"\0\0\0\0"[..], &count, &field, b"xyz\0\0"].concat();
            let call = [&b"\0\0\0\x01\0\0"[..], &count, &field, b"xyz\0\0"].concat();
            let bytes = [message(b'B', &bind), message(b'F', &call)].concat();
            let rows = [
                message(b'T', &row),
                message(b'D', &row),
                message(b'v', &[&field, &field[..]].concat()),
            ]
            .concat();
            let cost = held(|| {
                let mut tracker = tracker();
                let _ = tracker.client(&message(b'Q', b"x\0"), &mut |_| {});
                let _ = tracker.client(&bytes, &mut |_| {});
                let _ = tracker.server(&rows, &mut |_| {});
                let mut replay = Replay::new(true);
                let mut out = Vec::new();
                let _ = replay.sent(&bytes);
                let _ = replay.finish(&mut out);
                let _ = replay.receive(&rows, &mut out);
                let _ = rewrite_unit(&bytes, &Snapshot::default(), &ConnStatements::default());
            });
            assert!(cost <= RESERVED_MAX, "{field:?} {count:?}: {cost} bytes");
        }
    }
}
