//! Scripted transcripts: what each exchange must be read as.

use super::*;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn complete(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

fn failed(code: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0VERROR\0C{code}\0Mno\0\0").as_bytes())
}

fn ready(status: u8) -> Vec<u8> {
    message(b'Z', &[status])
}

/// A tracker and a plain record of what it said.
struct Script {
    tracker: Tracker,
}

impl Script {
    fn new() -> Self {
        let mut tracker = Tracker::new_ready();
        tracker.set_digest(true);
        Self { tracker }
    }

    fn client(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut log = Vec::new();
        self.tracker
            .client(bytes, &mut |event| {
                log.push(match event {
                    ClientEvent::Opened { cycle } => format!("opened {cycle}"),
                    ClientEvent::Bytes {
                        cycle,
                        range,
                        opens,
                        closes,
                    } => {
                        let opens = if opens { " opens" } else { "" };
                        let closes = if closes { " closes" } else { "" };
                        format!("bytes {cycle} {}{opens}{closes}", range.len())
                    }
                    ClientEvent::Stray { range } => format!("stray {}", range.len()),
                    ClientEvent::Statement { text, .. } => {
                        format!("sql {}", String::from_utf8_lossy(text.sql))
                    }
                    ClientEvent::Named {
                        named: Named::Parse { name, ordinal, .. },
                        ..
                    } => {
                        format!("named {} {ordinal}", String::from_utf8_lossy(name))
                    }
                    // Comes with each Query.
                    ClientEvent::Named {
                        named: Named::Query { .. },
                        ..
                    } => return,
                    ClientEvent::Named {
                        named: Named::Bind { name, .. },
                        ..
                    } => {
                        format!("bind {}", String::from_utf8_lossy(name))
                    }
                    ClientEvent::Named {
                        named: Named::Close { name, .. },
                        ..
                    } => {
                        format!("close {}", String::from_utf8_lossy(name))
                    }
                    ClientEvent::Password { range } => format!("password {}", range.len()),
                    ClientEvent::Terminate { .. } => "terminate".into(),
                });
            })
            .unwrap();
        log
    }

    fn server(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut log = Vec::new();
        self.tracker
            .server(bytes, &mut |event| {
                log.push(match event {
                    ServerEvent::StatementDone { cycle, outcome } => {
                        format!("done {cycle} {} rows={}", outcome.ending, outcome.rows)
                    }
                    ServerEvent::CycleDone(done) => format!(
                        "cycle {} {:?} error={} unfinished={}",
                        done.cycle, done.status, done.had_error, done.unfinished
                    ),
                    ServerEvent::CopyIn { cycle } => format!("copyin {cycle}"),
                    ServerEvent::Rows { cycle, .. } => format!("rows {cycle}"),
                    other => format!("{other:?}"),
                });
            })
            .unwrap();
        log
    }
}

#[test]
fn a_simple_query_is_one_cycle() {
    let mut s = Script::new();
    let sent = s.client(&query("select 1"));
    assert_eq!(
        sent,
        ["opened 1", "sql select 1", "bytes 1 14 opens closes"]
    );
    assert!(!s.tracker.idle());
    let mut reply = message(
        b'T',
        b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0",
    );
    reply.extend(message(b'D', b"\0\x01\0\0\0\x011"));
    reply.extend(complete("SELECT 1"));
    reply.extend(ready(b'I'));
    assert_eq!(
        s.server(&reply),
        [
            "rows 1",
            "done 1 SELECT 1 rows=1",
            "cycle 1 Idle error=false unfinished=0"
        ]
    );
    assert!(s.tracker.idle());
}

#[test]
fn the_messages_of_an_extended_cycle_are_one_stretch_of_bytes() {
    let mut s = Script::new();
    let bytes = [
        parse("s1", "select $1"),
        message(b'B', b"\0s1\0\0\0\0\0\0\0"),
        message(b'S', b""),
    ]
    .concat();
    let len = bytes.len();
    assert_eq!(
        s.client(&[bytes.clone(), bytes].concat()),
        [
            "opened 1",
            "sql select $1",
            "named s1 0",
            "bind s1",
            &format!("bytes 1 {len} opens closes"),
            "opened 2",
            "sql select $1",
            "named s1 0",
            "bind s1",
            &format!("bytes 2 {len} opens closes"),
        ]
    );
}

#[test]
fn a_large_statement_is_cut_and_says_so() {
    let mut tracker = Tracker::new_ready();
    let bytes = query(&"x".repeat(200_000));
    let mut seen = None;
    for piece in bytes.chunks(1000) {
        tracker
            .client(piece, &mut |event| {
                if let ClientEvent::Statement { text, .. } = event {
                    seen = Some((text.sql.len(), text.truncated));
                }
            })
            .unwrap();
    }
    assert_eq!(seen, Some((STATEMENT_CAPTURE_MAX, true)));
}

#[test]
fn copy_in_belongs_to_its_query() {
    let mut s = Script::new();
    s.client(&query("copy t from stdin"));
    assert_eq!(s.server(&message(b'G', b"\0\0\0")), ["copyin 1"]);
    assert_eq!(s.client(&message(b'd', b"1\n")), ["bytes 1 7"]);
    assert_eq!(s.client(&message(b'c', b"")), ["bytes 1 5"]);
    let reply = [complete("COPY 1"), ready(b'I')].concat();
    assert_eq!(
        s.server(&reply),
        [
            "done 1 COPY 1 rows=0",
            "cycle 1 Idle error=false unfinished=0"
        ]
    );
}

#[test]
fn copy_data_after_the_error_is_stray_and_a_half_sent_message_is_named() {
    let mut s = Script::new();
    s.client(&query("copy t from stdin"));
    s.server(&message(b'G', b"\0\0\0"));
    let data = message(b'd', &[b'x'; 100]);
    assert_eq!(s.client(&data[..40]), ["bytes 1 40"]);
    assert_eq!(
        s.server(&[failed("22P02"), ready(b'I')].concat()),
        [
            "done 1 ERROR 22P02 rows=0",
            "cycle 1 Idle error=true unfinished=40"
        ]
    );
    assert_eq!(s.client(&data[40..]), ["stray 65"]);
    assert_eq!(s.client(&message(b'c', b"")), ["stray 5"]);
    assert!(s.tracker.idle());
    assert_eq!(s.client(&query("x"))[0], "opened 2");
}

#[test]
fn an_error_in_the_middle_of_a_pipeline_skips_to_its_sync_only() {
    let mut s = Script::new();
    let cycle = [
        parse("", "x"),
        message(b'B', b"\0\0\0\0\0\0\0\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ]
    .concat();
    s.client(&[cycle.clone(), cycle.clone(), cycle].concat());
    let good = [
        message(b'1', b""),
        message(b'2', b""),
        complete("INSERT 0 1"),
        ready(b'I'),
    ]
    .concat();
    let bad = [message(b'1', b""), failed("42601"), ready(b'I')].concat();
    assert_eq!(
        s.server(&[good.clone(), bad, good].concat()),
        [
            "done 1 INSERT 0 1 rows=0",
            "cycle 1 Idle error=false unfinished=0",
            "done 2 ERROR 42601 rows=0",
            "cycle 2 Idle error=true unfinished=0",
            "done 3 INSERT 0 1 rows=0",
            "cycle 3 Idle error=false unfinished=0",
        ]
    );
    assert!(s.tracker.idle());
}

#[test]
fn pushes_may_come_anywhere() {
    let mut s = Script::new();
    let notify = message(b'A', b"\0\0\0\x01chan\0pay\0");
    assert_eq!(s.server(&notify), ["Notification"]);
    s.client(&query("select 1"));
    let reply = [notify.clone(), complete("SELECT 0"), notify, ready(b'T')].concat();
    assert_eq!(s.server(&reply).len(), 4);
    assert_eq!((s.tracker.outstanding(), s.tracker.idle()), (0, false));
}

#[test]
fn a_ready_that_nothing_asked_for_is_a_violation() {
    let mut tracker = Tracker::new_ready();
    assert_eq!(
        tracker.server(&ready(b'I'), &mut |_| {}),
        Err(Violation::UnexpectedReady)
    );
}

#[test]
fn passwords_are_told_apart_and_the_first_ready_closes_no_cycle() {
    let mut s = Script::new();
    s.tracker = Tracker::new(false);
    assert_eq!(
        s.server(&message(b'R', &[0, 0, 0, 3])),
        ["AuthRequest(Cleartext)"]
    );
    assert_eq!(s.client(&message(b'p', b"secret\0")), ["password 12"]);
    s.client(&query("select 1"));
    let reply = [
        message(b'R', &[0; 4]),
        message(b'S', b"TimeZone\0UTC\0"),
        message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]),
        ready(b'I'),
    ]
    .concat();
    assert_eq!(s.server(&reply).len(), 4);
    assert!(s.tracker.logged_in() && !s.tracker.idle());
    assert_eq!(
        s.server(&[complete("SELECT 1"), ready(b'I')].concat())
            .len(),
        2
    );
    assert!(s.tracker.idle());
}

#[test]
fn a_fatal_error_is_named_even_between_queries() {
    let mut s = Script::new();
    let fatal = message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mbye\0\0");
    assert_eq!(s.server(&fatal), ["FatalError { sqlstate: 57P01 }"]);
}

#[test]
fn replication_is_not_tracked() {
    let mut tracker = Tracker::new(true);
    assert!(tracker.replication());
    tracker.client(b"\xff\xff", &mut |_| panic!()).unwrap();
    tracker.server(b"\xff\xff", &mut |_| panic!()).unwrap();
}

#[test]
fn copy_data_appended_before_a_new_cycle_stays_with_the_old_one() {
    let mut s = Script::new();
    s.client(&query("copy t from stdin"));
    let bytes = [message(b'd', b"1\n"), message(b'c', b""), query("x")].concat();
    assert_eq!(
        s.client(&bytes),
        ["bytes 1 12", "opened 2", "sql x", "bytes 2 7 opens closes"]
    );
}
