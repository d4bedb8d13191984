//! Units as the real session cores make them: a script is cut into reads, framed and tracked with the primary's
//! replies, and the unit is what the core says belongs together.

use std::collections::HashMap;

use fastrand::Rng;
use parhelion::mirror::unit::Class;
use parhelion::protocol::postgres::framer::MessageFramer;
use parhelion::protocol::postgres::tracker::{self as pg, ClientEvent, ServerEvent, TxStatus};
use parhelion::protocol::resp::tracker::{Paired, ReplyHead, Tracker, UnitEnd};
use parhelion::protocol::resp::{Disposition, Request, RequestFramer};

use super::Mistake;
use super::source::{Drawn, Piece, Seen, UnitSource};

/// Redis: single commands and transactions.
#[derive(Default)]
pub struct Resp {
    /// A planted mistake: now and then the primary's reply is taken twice.
    doubled: bool,
    sessions: HashMap<u64, (RequestFramer, Tracker<()>)>,
}

fn command(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn name(client: u64, seq: u64) -> String {
    format!("{client}:{seq}")
}

fn named(text: &[u8]) -> Option<(u64, u64)> {
    let (client, seq) = std::str::from_utf8(text).ok()?.split_once(':')?;
    Some((client.parse().ok()?, seq.parse().ok()?))
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.u8(0..20) {
        0 => rng.usize(8_000..40_000),
        1..=4 => rng.usize(500..4_000),
        _ => rng.usize(0..120),
    };
    vec![b'v'; len]
}

/// A message as a group: the gap before it, and its bytes by copy or by reference.
fn group(rng: &mut Rng, bytes: &[u8]) -> (u64, Vec<Piece>) {
    let gap_ns = rng.u64(0..3) * rng.u64(0..4_000_000);
    let piece = match rng.bool() {
        true => Piece::Copied(bytes.to_vec()),
        false => Piece::Shared(bytes.into()),
    };
    (gap_ns, vec![piece])
}

/// The script in reads of any size.
fn reads<'a>(rng: &mut Rng, script: &'a [u8]) -> Vec<&'a [u8]> {
    let mut rest = script;
    let mut reads = Vec::new();
    while !rest.is_empty() {
        let (read, tail) = rest.split_at(rng.usize(1..=rest.len()));
        reads.push(read);
        rest = tail;
    }
    reads
}

impl UnitSource for Resp {
    fn plant(&mut self, mistake: Mistake) {
        self.doubled = mistake == Mistake::DoubleReply;
    }

    fn draw(&mut self, rng: &mut Rng, client: u64, seq: u64) -> Drawn {
        let set = command(&[b"SET", name(client, seq).as_bytes(), &value(rng)]);
        let extra = rng.usize(0..3);
        let (commands, mut replies) = if rng.bool() {
            (vec![set], vec![b"+OK\r\n".to_vec()])
        } else {
            let mut commands = vec![command(&[b"MULTI"]), set];
            commands.extend((0..extra).map(|_| command(&[b"INCR", b"n"])));
            commands.push(command(&[b"EXEC"]));
            let mut replies = vec![b"+QUEUED\r\n".to_vec(); extra + 2];
            replies[0] = b"+OK\r\n".to_vec();
            let results = b":1\r\n".repeat(extra);
            let header = format!("*{}\r\n+OK\r\n", extra + 1).into_bytes();
            replies.push([header, results].concat());
            (commands, replies)
        };
        let (framer, tracker) = self.sessions.entry(client).or_insert_with(|| {
            let mut framer = RequestFramer::new();
            framer.set_authenticated(true);
            (framer, Tracker::new())
        });
        let script = commands.concat();
        let (mut frames, mut frame) = (Vec::new(), Vec::new());
        for read in reads(rng, &script) {
            let mut rest = read;
            while !rest.is_empty() {
                let advance = framer.advance(rest).expect("a sound script");
                frame.extend_from_slice(&rest[..advance.consumed]);
                rest = &rest[advance.consumed..];
                if advance.done {
                    frames.push(std::mem::take(&mut frame));
                }
            }
        }
        assert_eq!(frames, commands, "framed otherwise than written");
        for frame in &frames {
            let said = tracker.request(&Request::parse(frame), ());
            let right = match frames.len() {
                1 => said == Disposition::Mirror,
                _ => said == Disposition::TxnMember,
            };
            assert!(right, "the core says {said:?}");
        }
        if self.doubled && rng.u8(0..8) == 0 {
            replies.push(replies[0].clone());
        }
        for (number, reply) in replies.iter().enumerate() {
            let Paired::Reply { end, .. } = tracker.reply(ReplyHead::whole(reply)) else {
                panic!("a reply is paired with nothing");
            };
            let last = number + 1 == replies.len();
            let right = match (last, frames.len()) {
                (true, 1) => end == UnitEnd::Complete { error: false },
                (true, _) => end == UnitEnd::Committed,
                (false, _) => end == UnitEnd::Open,
            };
            assert!(right, "reply {number} ends the unit so: {end:?}");
        }
        assert!(tracker.is_empty());
        Drawn {
            class: Class::WRITES,
            groups: frames.iter().map(|frame| group(rng, frame)).collect(),
        }
    }

    fn recognise(&self, stream: &[u8]) -> Seen {
        let mut framer = RequestFramer::new();
        framer.set_authenticated(true);
        let (mut at, mut begin, mut open, mut who) = (0, 0, false, None);
        while at < stream.len() {
            let Ok(advance) = framer.advance(&stream[at..]) else {
                return Seen::Foreign;
            };
            at += advance.consumed;
            if !advance.done {
                break;
            }
            let request = Request::parse(&stream[begin..at]);
            begin = at;
            match request.name() {
                b"MULTI" if !open => open = true,
                b"SET" if who.is_none() => who = request.arg(1).and_then(named),
                b"INCR" if open && who.is_some() => continue,
                b"EXEC" if open && who.is_some() => open = false,
                _ => return Seen::Foreign,
            }
            if let (false, Some((client, seq))) = (open, who) {
                return Seen::Whole {
                    client,
                    seq,
                    len: at,
                };
            }
        }
        Seen::Part(who)
    }
}

/// Postgres: single statements and transactions of simple queries.
#[derive(Default)]
pub struct Postgres {
    doubled: bool,
    sessions: HashMap<u64, pg::Tracker>,
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

impl UnitSource for Postgres {
    fn plant(&mut self, mistake: Mistake) {
        self.doubled = mistake == Mistake::DoubleReply;
    }

    fn draw(&mut self, rng: &mut Rng, client: u64, seq: u64) -> Drawn {
        let padding = String::from_utf8(value(rng)).expect("letters");
        let insert = format!(
            "INSERT INTO t VALUES ('{}', '{padding}')",
            name(client, seq)
        );
        let steps: Vec<(String, &str, u8)> = if rng.bool() {
            vec![(insert, "INSERT 0 1", b'I')]
        } else {
            vec![
                ("BEGIN".to_owned(), "BEGIN", b'T'),
                (insert, "INSERT 0 1", b'T'),
                ("COMMIT".to_owned(), "COMMIT", b'I'),
            ]
        };
        let tracker = self
            .sessions
            .entry(client)
            .or_insert_with(pg::Tracker::new_ready);
        assert!(tracker.idle());
        let mut groups = Vec::new();
        for (number, (sql, tag, status)) in steps.iter().enumerate() {
            let sent = query(sql);
            let mut belongs = Vec::new();
            for read in reads(rng, &sent) {
                tracker
                    .client(read, &mut |event| {
                        if let ClientEvent::Bytes { range, .. } = event {
                            belongs.extend_from_slice(&read[range]);
                        }
                    })
                    .expect("a sound script");
            }
            assert!(belongs == sent, "the core gives other bytes than were sent");
            assert!(!tracker.idle(), "idle with a query under way");
            let answer = [
                message(b'C', &[tag.as_bytes(), b"\0"].concat()),
                message(b'Z', &[*status]),
            ]
            .concat();
            let times = 1 + usize::from(self.doubled && rng.u8(0..8) == 0);
            let answer = answer.repeat(times);
            let mut cycles = 0;
            for read in reads(rng, &answer) {
                let done = tracker.server(read, &mut |event| {
                    cycles += usize::from(matches!(event, ServerEvent::CycleDone(_)));
                });
                done.expect("a sound answer");
            }
            assert_eq!(cycles, 1, "one query, one answer");
            let last = number + 1 == steps.len();
            assert_eq!(tracker.idle(), last, "the unit ends with its transaction");
            assert_eq!(tracker.status() == TxStatus::Idle, last);
            groups.push(group(rng, &belongs));
        }
        Drawn {
            class: Class::WRITES,
            groups,
        }
    }

    fn recognise(&self, stream: &[u8]) -> Seen {
        let mut framer = MessageFramer::client();
        let (mut at, mut begin, mut open, mut who) = (0, 0, false, None);
        while at < stream.len() {
            let Ok(advance) = framer.advance(&stream[at..]) else {
                return Seen::Foreign;
            };
            at += advance.consumed;
            if framer.in_message() {
                break;
            }
            let whole = &stream[begin..at];
            begin = at;
            let (tag, sql) = (whole[0], &whole[5..whole.len() - 1]);
            match (tag, sql) {
                (b'Q', b"BEGIN") if !open => open = true,
                (b'Q', b"COMMIT") if open && who.is_some() => open = false,
                (b'Q', _) if who.is_none() && sql.starts_with(b"INSERT INTO t VALUES ('") => {
                    let rest = &sql[b"INSERT INTO t VALUES ('".len()..];
                    let end = rest.iter().position(|byte| *byte == b'\'');
                    who = end.and_then(|end| named(&rest[..end]));
                    if who.is_none() {
                        return Seen::Foreign;
                    }
                }
                _ => return Seen::Foreign,
            }
            if let (false, Some((client, seq))) = (open, who) {
                return Seen::Whole {
                    client,
                    seq,
                    len: at,
                };
            }
        }
        Seen::Part(who)
    }
}
