//! Properties of the RESP framers, views and comparator, against naive models.

// Helpers of tests may unwrap like the tests themselves.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};

use parhelion::protocol::resp::command::lookup_request;
use parhelion::protocol::resp::{
    Comparison, DivergenceKind, Reply, ReplyFramer, ReplyHead, Request, RequestError,
    RequestFramer, Tracker, compare,
};
use proptest::prelude::*;

/// What a parser says about the front of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Front {
    Frame(usize),
    Incomplete,
    Bad,
}

// --- The naive parsers: recursive, on complete input, written for clarity.

fn line(bytes: &[u8]) -> Result<(&[u8], usize), Front> {
    let Some(cr) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return Err(Front::Incomplete);
    };
    match (bytes[cr], bytes.get(cr + 1)) {
        (b'\r', Some(b'\n')) => Ok((&bytes[..cr], cr + 2)),
        (b'\r', None) => Err(Front::Incomplete),
        _ => Err(Front::Bad),
    }
}

/// A header line of a request: a lone LF in it is just no number.
fn header(bytes: &[u8]) -> Result<(&[u8], usize), Front> {
    let cr = bytes
        .iter()
        .position(|byte| *byte == b'\r')
        .ok_or(Front::Incomplete)?;
    match bytes.get(cr + 1) {
        None => Err(Front::Incomplete),
        Some(b'\n') => Ok((&bytes[..cr], cr + 2)),
        Some(_) => Err(Front::Bad),
    }
}

fn integer(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn payload(bytes: &[u8], length: usize) -> Result<usize, Front> {
    for (at, expected) in [(length, b'\r'), (length.saturating_add(1), b'\n')] {
        match bytes.get(at) {
            None => return Err(Front::Incomplete),
            Some(byte) if *byte != expected => return Err(Front::Bad),
            _ => {}
        }
    }
    Ok(length + 2)
}

fn naive_multibulk(bytes: &[u8]) -> Result<usize, Front> {
    let (count, mut pos) = header(&bytes[1..])?;
    let count = integer(count)
        .filter(|count| *count <= 1 << 20)
        .ok_or(Front::Bad)?;
    pos += 1;
    for _ in 0..count.max(0) {
        match bytes.get(pos) {
            None => return Err(Front::Incomplete),
            Some(b'$') => pos += 1,
            Some(_) => return Err(Front::Bad),
        }
        let (length, used) = header(&bytes[pos..])?;
        let length = integer(length)
            .filter(|n| (0..=512 << 20).contains(n))
            .ok_or(Front::Bad)?;
        pos += used;
        pos += payload(&bytes[pos..], length as usize)?;
    }
    Ok(pos)
}

fn naive_reply(bytes: &[u8]) -> Result<usize, Front> {
    let kind = *bytes.first().ok_or(Front::Incomplete)?;
    if !b"+-:_#,($!=*%~>|".contains(&kind) {
        return Err(Front::Bad);
    }
    let (text, used) = line(&bytes[1..])?;
    let mut pos = used + 1;
    if b"+-:_#,(".contains(&kind) {
        return Ok(pos);
    }
    if text == b"?" {
        return naive_streamed(kind, bytes, pos);
    }
    let length = integer(text).ok_or(Front::Bad)?;
    if length == -1 && matches!(kind, b'$' | b'*') {
        return Ok(pos);
    }
    let length = usize::try_from(length).map_err(|_| Front::Bad)?;
    let elements = match kind {
        b'$' | b'!' | b'=' => return Ok(pos + payload(&bytes[pos..], length)?),
        b'%' => length.saturating_mul(2),
        b'|' => length.saturating_mul(2).saturating_add(1),
        _ => length,
    };
    for _ in 0..elements {
        pos += naive_reply(&bytes[pos..])?;
    }
    Ok(pos)
}

fn naive_streamed(kind: u8, bytes: &[u8], mut pos: usize) -> Result<usize, Front> {
    match kind {
        b'$' => loop {
            match bytes.get(pos) {
                None => return Err(Front::Incomplete),
                Some(b';') => {}
                Some(_) => return Err(Front::Bad),
            }
            let (length, used) = line(&bytes[pos + 1..])?;
            let length = integer(length)
                .filter(|length| *length >= 0)
                .ok_or(Front::Bad)?;
            pos += used + 1;
            if length == 0 {
                return Ok(pos);
            }
            pos += payload(&bytes[pos..], length as usize)?;
        },
        b'*' | b'%' | b'~' => loop {
            if bytes.get(pos) == Some(&b'.') {
                return Ok(pos + 1 + line(&bytes[pos + 1..])?.1);
            }
            pos += naive_reply(&bytes[pos..])?;
        },
        _ => Err(Front::Bad),
    }
}

fn front(result: Result<usize, Front>) -> Front {
    result.map_or_else(|front| front, Front::Frame)
}

// --- Driving the framers.

/// Frame lengths, and the error that ended the stream.
fn frame_requests(chunks: &[&[u8]]) -> (Vec<(usize, bool)>, Option<RequestError>) {
    let mut framer = RequestFramer::new();
    framer.set_authenticated(true);
    let (mut frames, mut pending) = (Vec::new(), 0);
    for chunk in chunks {
        let mut rest = *chunk;
        while !rest.is_empty() {
            match framer.advance(rest) {
                Err(error) => return (frames, Some(error)),
                Ok(advance) => {
                    pending += advance.consumed;
                    rest = &rest[advance.consumed..];
                    if advance.done {
                        frames.push((pending, advance.empty));
                        pending = 0;
                    } else {
                        assert!(rest.is_empty(), "without done everything is consumed");
                    }
                }
            }
        }
    }
    (frames, None)
}

fn frame_replies(chunks: &[&[u8]]) -> (Vec<(usize, u8)>, bool) {
    let mut framer = ReplyFramer::new(1 << 40);
    let (mut frames, mut pending) = (Vec::new(), 0);
    for chunk in chunks {
        let mut rest = *chunk;
        while !rest.is_empty() {
            let Ok(advance) = framer.advance(rest) else {
                return (frames, true);
            };
            pending += advance.consumed;
            rest = &rest[advance.consumed..];
            if advance.done {
                frames.push((pending, framer.kind().unwrap()));
                pending = 0;
            } else {
                assert!(rest.is_empty(), "without done everything is consumed");
            }
        }
    }
    (frames, false)
}

fn cut<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

// --- Strategies.

fn multibulk(args: &[Vec<u8>]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend(format!("${}\r\n", arg.len()).bytes());
        out.extend(arg);
        out.extend(b"\r\n");
    }
    out
}

fn quoted(args: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for arg in args {
        out.push(b'"');
        for byte in arg {
            out.extend(format!("\\x{byte:02x}").bytes());
        }
        out.extend(b"\" ");
    }
    out.extend(b"\r\n");
    out
}

fn args() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..25)
        .prop_filter("HTTP words close", |args| {
            !args[0].eq_ignore_ascii_case(b"post") && !args[0].eq_ignore_ascii_case(b"host:")
        })
}

fn reply() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        "[+-][a-zA-Z ]{0,12}\r\n".prop_map(String::into_bytes),
        any::<i64>().prop_map(|n| format!(":{n}\r\n").into_bytes()),
        Just(b"_\r\n".to_vec()),
        Just(b"$-1\r\n".to_vec()),
        Just(b"*-1\r\n".to_vec()),
        Just(b"#t\r\n".to_vec()),
        Just(b",1.5\r\n".to_vec()),
        Just(b"(12345678901234567890\r\n".to_vec()),
        Just(b"$?\r\n;3\r\nabc\r\n;1\r\nd\r\n;0\r\n".to_vec()),
        (
            prop_oneof![Just('$'), Just('!')],
            prop::collection::vec(any::<u8>(), 0..50)
        )
            .prop_map(|(kind, text)| {
                let mut out = format!("{kind}{}\r\n", text.len()).into_bytes();
                out.extend(text);
                out.extend(b"\r\n");
                out
            }),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        (
            prop::sample::select(vec!["*", "~", ">", "%", "|", "*?", "~?"]),
            prop::collection::vec(inner, 0..7),
        )
            .prop_map(|(kind, items)| {
                let mut items = items;
                let header = match kind {
                    "%" => {
                        items.truncate(items.len() / 2 * 2);
                        format!("%{}\r\n", items.len() / 2)
                    }
                    "|" => {
                        if items.len() % 2 == 0 {
                            items.push(b"+v\r\n".to_vec());
                        }
                        format!("|{}\r\n", items.len() / 2)
                    }
                    streamed if streamed.ends_with('?') => format!("{streamed}\r\n"),
                    counted => format!("{counted}{}\r\n", items.len()),
                };
                let end: &[u8] = if kind.ends_with('?') { b".\r\n" } else { b"" };
                [header.as_bytes(), &items.concat(), end].concat()
            })
    })
}

/// Bytes that look like RESP now and then.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => prop::sample::select(vec![
            "*", "$", "1", "2", "3", "0", "-1", "\r\n", "\r\n", "\r", "\n", "a", "\"", "'", "\\", " ", "?", ";", ".",
            ">", "%", "|", "~", ":", "+", "_\r\n", "$1\r\nx\r\n", "*2\r\n", "99999999999999999999", "\0", "POST ",
        ]).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..4),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn mutated(bytes: Vec<u8>, at: &prop::sample::Index, byte: u8) -> Vec<u8> {
    let mut bytes = bytes;
    if !bytes.is_empty() {
        let at = at.index(bytes.len());
        bytes[at] = byte;
    }
    bytes
}

fn request_front(bytes: &[u8]) -> Front {
    let mut framer = RequestFramer::new();
    framer.set_authenticated(true);
    match framer.advance(bytes) {
        Ok(advance) if advance.done => Front::Frame(advance.consumed),
        Ok(_) => Front::Incomplete,
        Err(_) => Front::Bad,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn commands_are_framed_alike_in_any_chunks_and_read_back(
        commands in prop::collection::vec((args(), any::<bool>()), 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let frames: Vec<Vec<u8>> = commands
            .iter()
            .map(|(args, inline)| if *inline { quoted(args) } else { multibulk(args) })
            .collect();
        let stream = frames.concat();
        let expected: Vec<(usize, bool)> = frames.iter().map(|f| (f.len(), false)).collect();
        prop_assert_eq!(frame_requests(&cut(&stream, &cuts)), (expected.clone(), None));
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(frame_requests(&bytes), (expected, None));
        for (frame, (args, _)) in frames.iter().zip(&commands) {
            let request = Request::parse(frame);
            let read: Vec<&[u8]> = request.args().collect();
            prop_assert_eq!(&read, &args.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(request.arg(args.len()), None);
        }
    }

    #[test]
    fn the_request_framer_agrees_with_a_naive_parser(
        args in args(), at in any::<prop::sample::Index>(), byte in any::<u8>(), noise in noise(),
        end in any::<prop::sample::Index>(),
    ) {
        let valid = multibulk(&args);
        let shortened = valid[..end.index(valid.len())].to_vec();
        for bytes in [mutated(valid.clone(), &at, byte), shortened, [b"*".to_vec(), noise].concat()] {
            if bytes.first() != Some(&b'*') {
                continue;
            }
            let (naive, found) = (front(naive_multibulk(&bytes)), request_front(&bytes));
            // A header without a line end may be refused as soon as it is hopeless, or an HTTP word.
            let early = naive == Front::Incomplete && found == Front::Bad;
            let http = found == Front::Bad && bytes.to_ascii_lowercase().windows(4).any(|w| w == b"post" || w == b"host");
            prop_assert!(naive == found || early || http, "{:?}: {:?} {:?}", bytes, naive, found);
        }
    }

    #[test]
    fn replies_are_framed_alike_in_any_chunks(
        replies in prop::collection::vec(reply(), 1..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stream = replies.concat();
        let expected: Vec<usize> = replies.iter().map(Vec::len).collect();
        let (frames, refused) = frame_replies(&cut(&stream, &cuts));
        prop_assert!(!refused);
        prop_assert_eq!(frames.iter().map(|frame| frame.0).collect::<Vec<_>>(), expected);
        prop_assert_eq!(&frame_replies(&stream.chunks(1).collect::<Vec<_>>()).0, &frames);
        for (reply, (_, kind)) in replies.iter().zip(frames) {
            prop_assert_eq!(Reply::parse(reply).kind(), kind);
            prop_assert_eq!(naive_reply(reply), Ok(reply.len()));
        }
    }

    #[test]
    fn the_reply_framer_agrees_with_a_naive_parser(
        valid in reply(), at in any::<prop::sample::Index>(), byte in any::<u8>(), noise in noise(),
        end in any::<prop::sample::Index>(),
    ) {
        let shortened = valid[..end.index(valid.len())].to_vec();
        for bytes in [mutated(valid.clone(), &at, byte), shortened, noise] {
            let mut framer = ReplyFramer::new(1 << 40);
            let found = match framer.advance(&bytes) {
                Ok(advance) if advance.done => Front::Frame(advance.consumed),
                Ok(_) => Front::Incomplete,
                Err(_) => Front::Bad,
            };
            let naive = front(naive_reply(&bytes));
            // What claims more than the limit, or cannot become a length, is refused before its end.
            let early = found == Front::Bad && naive == Front::Incomplete;
            prop_assert!(naive == found || early, "{:?}: {:?} {:?}", bytes, naive, found);
        }
    }

    #[test]
    fn noise_is_framed_alike_in_any_chunks_and_never_panics(
        noise in noise(), other in noise(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        line in prop::sample::select(vec![
            "SMEMBERS k", "HGETALL k", "ZRANGE k 0 -1 WITHSCORES", "GEOSEARCH k x", "TTL k", "GET k", "MGET a b",
            "XADD k * a b", "ZMPOP 1 k MIN", "NOSUCH",
        ]),
    ) {
        prop_assert_eq!(frame_requests(&[&noise]), frame_requests(&cut(&noise, &cuts)));
        prop_assert_eq!(frame_replies(&[&noise]), frame_replies(&cut(&noise, &cuts)));
        let request = Request::parse(&noise);
        if let Some(command) = lookup_request(&request) {
            for key in command.keys(&request) {
                prop_assert!(request.arg(key).is_some());
            }
        }
        let line = format!("{line}\r\n");
        let request = Request::parse(line.as_bytes());
        let _ = compare(lookup_request(&request), &request, &noise, &other);
        let reply = Reply::parse(&noise);
        let _ = (reply.integer(), reply.error_code(), reply.is_nil(), reply.elements().count());
    }

    #[test]
    fn a_tracker_survives_any_replies_to_any_requests(
        words in prop::collection::vec(prop::sample::select(vec![
            "MULTI", "EXEC", "DISCARD", "SUBSCRIBE a b", "UNSUBSCRIBE", "GET a", "RESET", "HELLO 3", "MONITOR",
            "CLIENT REPLY OFF", "CLIENT REPLY SKIP", "CLIENT REPLY ON", "SELECT 1", "PSUBSCRIBE x", "SSUBSCRIBE",
        ]), 0..30),
        replies in prop::collection::vec(prop_oneof![
            reply(),
            prop::sample::select(vec![
                "+OK\r\n", "+QUEUED\r\n", "-ERR x\r\n", "*-1\r\n", "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n",
                ">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n", "*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n",
            ]).prop_map(|reply| reply.as_bytes().to_vec()),
        ], 0..60),
    ) {
        let mut tracker = Tracker::new();
        for (tag, word) in words.iter().enumerate() {
            tracker.request(&Request::parse(format!("{word}\r\n").as_bytes()), tag);
            if let Some(reply) = replies.get(tag) {
                tracker.reply(ReplyHead::whole(reply));
            }
        }
        for reply in replies.iter().skip(words.len()) {
            tracker.reply(ReplyHead::whole(reply));
        }
        prop_assert!(tracker.len() <= words.len());
    }

    #[test]
    fn sets_are_compared_as_a_hash_set_would(
        a in prop::collection::hash_set("[a-c]{1,2}", 1..6),
        b in prop::collection::hash_set("[a-c]{1,2}", 1..6),
        resp3 in any::<bool>(),
    ) {
        let encode = |kind: char, items: Vec<&String>| {
            let mut out = format!("{kind}{}\r\n", items.len());
            for item in items {
                out.push_str(&format!("${}\r\n{item}\r\n", item.len()));
            }
            out
        };
        let request = Request::parse(b"SMEMBERS k\r\n");
        let primary = encode('*', a.iter().collect());
        let mirror = encode(if resp3 { '~' } else { '*' }, b.iter().collect());
        let said = compare(lookup_request(&request), &request, primary.as_bytes(), mirror.as_bytes());
        let same: bool = a.iter().collect::<HashSet<_>>() == b.iter().collect::<HashSet<_>>();
        let expected = if same { Comparison::Equal } else { Comparison::Different(DivergenceKind::DataMismatch) };
        prop_assert_eq!(said, expected);
    }

    #[test]
    fn maps_are_compared_as_a_hash_map_would(
        a in prop::collection::hash_map("[a-b]{1,2}", "[a-b]", 1..4),
        b in prop::collection::hash_map("[a-b]{1,2}", "[a-b]", 1..4),
    ) {
        let encode = |flat: bool, map: &HashMap<String, String>| {
            let mut out = if flat { format!("*{}\r\n", map.len() * 2) } else { format!("%{}\r\n", map.len()) };
            for text in map.iter().flat_map(|(key, value)| [key, value]) {
                out.push_str(&format!("${}\r\n{text}\r\n", text.len()));
            }
            out
        };
        let request = Request::parse(b"HGETALL k\r\n");
        let (primary, mirror) = (encode(true, &a), encode(false, &b));
        let said = compare(lookup_request(&request), &request, primary.as_bytes(), mirror.as_bytes());
        let expected =
            if a == b { Comparison::Equal } else { Comparison::Different(DivergenceKind::DataMismatch) };
        prop_assert_eq!(said, expected);
    }

    #[test]
    fn a_reply_equals_itself_unless_it_is_not_compared(reply in reply(), line in "(GET|SMEMBERS|HGETALL|ZRANGE|TTL) k") {
        let line = format!("{line}\r\n");
        let request = Request::parse(line.as_bytes());
        let said = compare(lookup_request(&request), &request, &reply, &reply);
        prop_assert_eq!(said, Comparison::Equal);
    }
}

#[test]
fn a_pipeline_may_be_cut_anywhere() {
    let mut stream = Vec::new();
    while stream.len() < 4096 {
        stream.extend(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$10\r\n0123456789\r\nGET k\r\n\r\n*0\r\n");
    }
    let whole = frame_requests(&[&stream]);
    for at in 0..=stream.len() {
        let (head, tail) = stream.split_at(at);
        assert_eq!(frame_requests(&[head, tail]), whole, "cut at {at}");
    }
}

#[test]
fn replies_may_be_cut_anywhere() {
    let mut stream = Vec::new();
    while stream.len() < 4096 {
        stream.extend(b"+OK\r\n$10\r\n0123456789\r\n*3\r\n:1\r\n$-1\r\n*1\r\n-ERR x\r\n_\r\n");
        stream.extend(
            b">2\r\n+pubsub\r\n$0\r\n\r\n%1\r\n#t\r\n,1.5\r\n|1\r\n+ttl\r\n:3\r\n$1\r\nx\r\n",
        );
        stream.extend(b"$?\r\n;4\r\nabcd\r\n;0\r\n*?\r\n:1\r\n.\r\n=7\r\ntxt:abc\r\n!3\r\nERR\r\n(123\r\n*-1\r\n");
    }
    let whole = frame_replies(&[&stream]);
    assert!(!whole.1 && whole.0.len() > 100);
    for at in 0..=stream.len() {
        let (head, tail) = stream.split_at(at);
        assert_eq!(frame_replies(&[head, tail]), whole, "cut at {at}");
    }
}

#[test]
fn hostile_requests_are_refused_with_the_servers_words() {
    for (bytes, text) in [
        (
            &b"*2000000000\r\n"[..],
            "-ERR Protocol error: invalid multibulk length\r\n",
        ),
        (
            b"*1\r\n$-10\r\n",
            "-ERR Protocol error: invalid bulk length\r\n",
        ),
        (
            b"*1\r\n$536870913\r\n",
            "-ERR Protocol error: invalid bulk length\r\n",
        ),
        (
            b"*1\r\n:4\r\n",
            "-ERR Protocol error: expected '$', got ':'\r\n",
        ),
        (
            &[b'a'; 1 << 20],
            "-ERR Protocol error: too big inline request\r\n",
        ),
        (
            b"\"a\"b\r\n",
            "-ERR Protocol error: unbalanced quotes in request\r\n",
        ),
        (b"POST / HTTP/1.1\r\n", ""),
        (b"Host: x\r\n", ""),
        (b"*1\r\n$4\r\npost\r\n", ""),
        (b"\x16\x03\x01\x02\x00", ""),
        (b"PRI * HTTP/2.0\r\n", ""),
    ] {
        let mut framer = RequestFramer::new();
        framer.set_authenticated(true);
        let error = framer.advance(bytes).unwrap_err();
        let mut reply = Vec::new();
        error.write_reply(&mut reply);
        assert_eq!(String::from_utf8_lossy(&reply), text);
        assert_eq!(framer.advance(b"PING\r\n"), Err(error), "an error is final");
    }
}

#[test]
fn before_a_login_commands_are_small() {
    let mut framer = RequestFramer::new();
    assert_eq!(
        framer.advance(b"*11\r\n"),
        Err(RequestError::UnauthenticatedMultibulkLength)
    );
    let mut framer = RequestFramer::new();
    assert_eq!(
        framer.advance(b"*1\r\n$16385\r\n"),
        Err(RequestError::UnauthenticatedBulkLength)
    );
}

#[test]
fn deep_nesting_and_huge_claims_cost_nothing() {
    let mut framer = ReplyFramer::new(1 << 30);
    let deep = b"*1\r\n".repeat(100_000);
    // On a stack that a frame for each level would overflow.
    let deep_walk = move || {
        let used = allocation_counter::measure(|| {
            assert!(!framer.advance(&deep).unwrap().done);
            assert!(framer.advance(b":1\r\n").unwrap().done);
        });
        // A level costs what it counts, and no level is kept twice.
        assert!(used.bytes_max <= 4 << 20, "{used:?}");
    };
    let small = std::thread::Builder::new().stack_size(64 << 10);
    small.spawn(deep_walk).unwrap().join().unwrap();
    for request in [
        &b"*2000000000\r\n"[..],
        b"*1048576\r\n",
        b"*1\r\n$-10\r\n",
        b"*1\r\n$536870912\r\n",
    ] {
        let used = allocation_counter::measure(|| {
            let mut framer = RequestFramer::new();
            framer.set_authenticated(true);
            let _ = framer.advance(request);
        });
        assert!(
            used.bytes_max <= 1 << 10,
            "{}: {used:?}",
            request.escape_ascii()
        );
    }
    for claim in [
        "*9223372036854775807\r\n",
        "%4611686018427387904\r\n",
        "$9223372036854775807\r\n",
    ] {
        assert!(
            ReplyFramer::new(1 << 30).advance(claim.as_bytes()).is_err(),
            "{claim}"
        );
    }
    let mut endless = ReplyFramer::new(1000);
    endless.advance(b"+").unwrap();
    assert!(endless.advance(&[b'a'; 2000]).is_err());
}
