use super::*;
use crate::protocol::resp::command::lookup_request;

const NOW: u64 = 1_700_000_000_000;

/// What becomes of a command line and a reply; commands as words, one per line.
fn run(line: &str, reply: &str) -> (Replay, Vec<String>) {
    run_with(line, reply, Rewrite::default())
}

fn run_with(line: &str, reply: &str, mut out: Rewrite) -> (Replay, Vec<String>) {
    let mut bytes = Vec::new();
    encode(&mut bytes, line.split(' '));
    let request = Request::parse(&bytes);
    let reply = reply.replace(' ', "\r\n") + "\r\n";
    let replay = effects(
        lookup_request(&request),
        &request,
        Reply::parse(reply.as_bytes()),
        NOW,
        &mut out,
    );
    let mut framer = crate::protocol::resp::RequestFramer::new();
    framer.set_authenticated(true);
    let (mut rest, mut lines) = (out.bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let advance = framer.advance(rest).unwrap();
        assert!(advance.done, "a whole command");
        let words = Request::parse(&rest[..advance.consumed]);
        let words: Vec<_> = words
            .args()
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect();
        lines.push(words.join(" "));
        rest = &rest[advance.consumed..];
    }
    assert_eq!(lines.len(), out.expected.len());
    (replay, lines)
}

fn becomes(line: &str, reply: &str, expected: &[&str]) {
    assert_eq!(
        run(line, reply),
        (
            Replay::Rewritten,
            expected.iter().map(ToString::to_string).collect()
        ),
        "{line}"
    );
}

fn nothing(line: &str, reply: &str) {
    assert_eq!(
        run(line, reply),
        (Replay::Nothing, Vec::new()),
        "{line} -> {reply}"
    );
}

fn same(line: &str, reply: &str) {
    assert_eq!(
        run(line, reply),
        (Replay::Verbatim, Vec::new()),
        "{line} -> {reply}"
    );
}

#[test]
fn what_was_popped_from_a_set_is_removed_by_name() {
    becomes("SPOP s", "$1 a", &["SREM s a"]);
    becomes("spop s 2", "*2 $1 a $1 b", &["SREM s a b"]);
    becomes("SPOP s 2", "~2 $1 a $1 b", &["SREM s a b"]);
    nothing("SPOP s", "$-1");
    nothing("SPOP s 3", "*0");
    nothing("SPOP s", "-WRONGTYPE");
}

#[test]
fn expiries_become_absolute() {
    becomes("EXPIRE k 10", ":1", &["PEXPIREAT k 1700000010000"]);
    becomes("PEXPIRE k 10 NX", ":1", &["PEXPIREAT k 1700000000010"]);
    becomes("EXPIRE k -5", ":1", &["PEXPIREAT k 1699999995000"]);
    nothing("EXPIRE k 10 GT", ":0");
    becomes("SETEX k 2 v", "+OK", &["SET k v PXAT 1700000002000"]);
    becomes("psetex k 2 v", "+OK", &["SET k v PXAT 1700000000002"]);
    becomes("SET k v EX 2 NX", "+OK", &["SET k v PXAT 1700000002000 NX"]);
    becomes("SET EX EX PX 7", "+OK", &["SET EX EX PXAT 1700000000007"]);
    nothing("SET k v EX 2 NX", "$-1");
    nothing("SET k v NX", "_");
    same("SET k v", "+OK");
    same("SET k v PXAT 5", "+OK");
    nothing("SET k v XX GET", "$-1");
    nothing("SET k v NX GET", "$1 o");
    same("SET k v GET", "$-1");
    becomes(
        "SET k v NX GET EX 1",
        "$-1",
        &["SET k v NX GET PXAT 1700000001000"],
    );
    becomes("GETEX k EX 1", "$1 v", &["GETEX k PXAT 1700000001000"]);
    nothing("GETEX k EX 1", "$-1");
    same("GETEX k PERSIST", "$1 v");
    becomes(
        "HEXPIRE h 3 NX FIELDS 1 f",
        "*1 :1",
        &["HPEXPIREAT h 1700000003000 NX FIELDS 1 f"],
    );
    becomes(
        "HGETEX h EX 1 FIELDS 1 EX",
        "*1 $1 v",
        &["HGETEX h PXAT 1700000001000 FIELDS 1 EX"],
    );
    same("HGETEX h FIELDS 2 EX 5", "*2 $1 v $1 w");
    becomes(
        "RESTORE k 5 dump",
        "+OK",
        &["RESTORE k 1700000000005 dump ABSTTL"],
    );
    same("RESTORE k 0 dump", "+OK");
    same("RESTORE k 5 dump ABSTTL", "+OK");
}

#[test]
fn floats_are_written_as_the_primary_computed_them() {
    becomes("INCRBYFLOAT k 0.1", "$3 1.1", &["SET k 1.1 KEEPTTL"]);
    becomes("HINCRBYFLOAT h f 0.1", "$3 1.1", &["HSET h f 1.1"]);
}

#[test]
fn list_pops_remove_exactly_the_element() {
    becomes("BLPOP a b 0", "*2 $1 b $1 x", &["LREM b 1 x"]);
    becomes("BRPOP a 0", "*2 $1 a $1 x", &["LREM a -1 x"]);
    becomes(
        "LMPOP 2 RIGHT b LEFT COUNT 2",
        "*2 $1 b *2 $1 x $1 y",
        &["LREM b 1 x", "LREM b 1 y"],
    );
    becomes("BLMPOP 0 1 b RIGHT", "*2 $1 b *1 $1 x", &["LREM b -1 x"]);
    nothing("BLPOP a 1", "*-1");
    nothing("LMPOP 1 a LEFT", "*-1");
    becomes("BLMOVE a b LEFT RIGHT 0", "$1 x", &["LMOVE a b LEFT RIGHT"]);
    becomes("BRPOPLPUSH a b 0", "$1 x", &["LMOVE a b RIGHT LEFT"]);
    nothing("BRPOPLPUSH a b 1", "$-1");
}

#[test]
fn sorted_set_pops_remove_exactly_the_members() {
    becomes("ZPOPMIN z", "*2 $1 a $1 1", &["ZREM z a"]);
    becomes("ZPOPMAX z 2", "*4 $1 a $1 1 $1 b $1 2", &["ZREM z a b"]);
    becomes("ZPOPMAX z 2", "*2 *2 $1 a ,1 *2 $1 b ,2", &["ZREM z a b"]);
    becomes("BZPOPMIN z 0", "*3 $1 z $1 a $1 1", &["ZREM z a"]);
    becomes("ZMPOP 1 z MIN", "*2 $1 z *1 *2 $1 a $1 1", &["ZREM z a"]);
    becomes("BZMPOP 0 1 z MIN", "*2 $1 z *1 *2 $1 a $1 1", &["ZREM z a"]);
    nothing("ZPOPMIN z", "*0");
    nothing("BZPOPMIN z 1", "_");
    nothing("ZMPOP 1 z MIN", "*-1");
}

#[test]
fn stream_commands_name_what_the_primary_decided() {
    becomes("XADD s * f v", "$3 5-1", &["XADD s 5-1 f v"]);
    becomes(
        "XADD s MAXLEN ~ 5 * * *",
        "$3 5-1",
        &["XADD s MAXLEN ~ 5 5-1 * *"],
    );
    becomes(
        "XADD s NOMKSTREAM MINID 4 LIMIT 3 7-* f v",
        "$3 7-0",
        &["XADD s NOMKSTREAM MINID 4 LIMIT 3 7-0 f v"],
    );
    same("XADD s 5-1 f v", "$3 5-1");
    nothing("XADD s NOMKSTREAM * f v", "$-1");
    let entries = "*1 *2 $1 s *2 *2 $3 1-0 *2 $1 f $1 v *2 $3 2-0 *2 $1 f $1 v";
    becomes(
        "XREADGROUP GROUP g c COUNT 5 BLOCK 0 STREAMS s t > 0",
        entries,
        &[
            "XREADGROUP GROUP g c COUNT 2 NOACK STREAMS s >",
            "XCLAIM s g c 0 1-0 2-0 TIME 1700000000000 RETRYCOUNT 1 FORCE JUSTID",
        ],
    );
    becomes(
        "XREADGROUP GROUP g c NOACK STREAMS s >",
        "%1 $1 s *1 *2 $3 1-0 *2 $1 f $1 v",
        &["XREADGROUP GROUP g c COUNT 1 NOACK STREAMS s >"],
    );
    // Its own past: deliveries are counted there too.
    becomes(
        "XREADGROUP GROUP g c STREAMS s 0",
        "*1 *2 $1 s *1 *2 $3 1-0 *2 $1 f $1 v",
        &["XREADGROUP GROUP g c COUNT 1 STREAMS s 0"],
    );
    // A consumer that asks for its past is made, even if it has none.
    becomes(
        "XREADGROUP GROUP g c STREAMS s 0",
        "*1 *2 $1 s *0",
        &["XGROUP CREATECONSUMER s g c"],
    );
    nothing("XREADGROUP GROUP g c STREAMS s >", "*-1");
    becomes(
        "XCLAIM s g c 1000 1-0 2-0 RETRYCOUNT 3 IDLE 5 JUSTID",
        "*1 $3 2-0",
        &["XCLAIM s g c 0 2-0 TIME 1699999999995 RETRYCOUNT 3 JUSTID"],
    );
    becomes(
        "XAUTOCLAIM s g c 1000 0 COUNT 2",
        "*3 $3 0-0 *1 *2 $3 1-0 *2 $1 f $1 v *1 $3 2-0",
        &["XCLAIM s g c 0 1-0 TIME 1700000000000", "XACK s g 2-0"],
    );
    nothing("XCLAIM s g c 1000 1-0", "*0");
}

#[test]
fn from_redis_7_2_on_a_consumer_is_made_even_if_it_gets_nothing() {
    let made = |line: &str, reply: &str| {
        let newer = Rewrite {
            consumers_made_idle: true,
            ..Rewrite::default()
        };
        run_with(line, reply, newer).1
    };
    assert_eq!(
        made("XREADGROUP GROUP g c BLOCK 5 STREAMS s t > >", "*-1"),
        ["XGROUP CREATECONSUMER s g c", "XGROUP CREATECONSUMER t g c"]
    );
    assert_eq!(
        made("XREADGROUP GROUP g c STREAMS s t > >", "_"),
        ["XGROUP CREATECONSUMER s g c", "XGROUP CREATECONSUMER t g c"]
    );
    assert_eq!(
        made(
            "XREADGROUP GROUP g c NOACK STREAMS s t > >",
            "*1 *2 $1 s *1 *2 $3 1-0 *2 $1 f $1 v"
        ),
        [
            "XREADGROUP GROUP g c COUNT 1 NOACK STREAMS s >",
            "XGROUP CREATECONSUMER t g c"
        ]
    );
    for (claim, reply) in [
        ("XCLAIM s g c 1000 1-0", "*0"),
        ("XAUTOCLAIM s g c 1000 0", "*3 $3 0-0 *0 *0"),
    ] {
        assert_eq!(made(claim, reply), ["XGROUP CREATECONSUMER s g c"]);
    }
}

#[test]
fn deterministic_commands_go_as_they_are_and_failed_ones_not_at_all() {
    same("LPUSH l a", ":1");
    same("JSON.SET k $ 1", "+OK");
    same("LPOP l", "$1 a");
    nothing("LPOP l", "$-1");
    nothing("SETNX k v", ":0");
    nothing("INCR k", "-WRONGTYPE no");
    same("GEORADIUS g 0 0 1 km STORE d", ":0");
}

#[test]
fn a_warmed_up_command_waits_ten_milliseconds() {
    let shown = |line: &str| {
        let mut bytes = Vec::new();
        encode(&mut bytes, line.split(' '));
        let request = Request::parse(&bytes);
        let warm = warmup(lookup_request(&request), &request)?;
        let words = Request::parse(&warm);
        Some(
            words
                .args()
                .map(|arg| String::from_utf8_lossy(arg).into_owned())
                .collect::<Vec<_>>()
                .join(" "),
        )
    };
    assert_eq!(shown("BLPOP a 0").unwrap(), "BLPOP a 0.01");
    assert_eq!(shown("BLMPOP 0 1 a LEFT").unwrap(), "BLMPOP 0.01 1 a LEFT");
    assert_eq!(
        shown("XREAD BLOCK 0 STREAMS a $").unwrap(),
        "XREAD BLOCK 10 STREAMS a $"
    );
    assert_eq!(shown("GET a"), None);
}

#[test]
fn hostile_commands_and_replies_never_panic() {
    let mut rng = fastrand::Rng::with_seed(3);
    let words = [
        "XADD",
        "SET",
        "GETEX",
        "LMPOP",
        "BLMPOP",
        "ZPOPMIN",
        "ZMPOP",
        "XREADGROUP",
        "XCLAIM",
        "XAUTOCLAIM",
        "SPOP",
        "EXPIRE",
        "BLMOVE",
        "RESTORE",
        "HEXPIRE",
        "INCRBYFLOAT",
        "GROUP",
        "STREAMS",
        "MAXLEN",
        "~",
        "*",
        "EX",
        "PX",
        "9223372036854775807",
        "-1",
        "18446744073709551615",
        "k",
        "FIELDS",
        "COUNT",
        "LEFT",
    ];
    let replies = [
        "*1 *1 *0",
        "$1 a",
        ":1",
        "*2 $1 a",
        "*2 *0 *0",
        "%1 $1 a *1 $1 b",
        "_",
        "*-1",
        "+OK",
        "#t",
        "*3 $1 a *1 :1 *1 $-1",
    ];
    for _ in 0..20_000 {
        let line: Vec<&str> = (0..rng.usize(1..9))
            .map(|_| words[rng.usize(..words.len())])
            .collect();
        run(&line.join(" "), replies[rng.usize(..replies.len())]);
    }
}
