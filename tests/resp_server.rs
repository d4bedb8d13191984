//! What the RESP modules claim about Redis, held against an installed redis-server.

// Helpers of tests may unwrap like the tests themselves.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use parhelion::protocol::resp::command::{all, lookup, lookup_request};
use parhelion::protocol::resp::{
    CommandCategory, Disposition, NotMirrored, Paired, Reply, ReplyFramer, ReplyHead, Request,
    RequestFramer, Tracker,
};

const DEADLINE: Duration = Duration::from_secs(10);

struct Server {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let process = Process::new("redis-server")
            .args(["--port", &port.to_string(), "--save", "", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let server = Self {
            process,
            port,
            _dir: dir,
        };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < DEADLINE, "redis-server does not listen");
            std::thread::yield_now();
        }
        server
    }

    fn connect(&self) -> Connection {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Connection {
            stream,
            buffer: Vec::new(),
            framer: ReplyFramer::new(1 << 30),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    framer: ReplyFramer,
}

impl Connection {
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next reply frame; `None` when the server has closed.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut seen = 0;
        loop {
            let advance = self.framer.advance(&self.buffer[seen..]).unwrap();
            seen += advance.consumed;
            if advance.done {
                let rest = self.buffer.split_off(seen);
                return Some(std::mem::replace(&mut self.buffer, rest));
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no reply: {error}"),
            }
        }
    }
}

fn text(reply: Reply<'_>) -> String {
    String::from_utf8_lossy(reply.text().unwrap_or_default()).into_owned()
}

#[test]
fn the_table_agrees_with_the_servers_command_list() {
    let server = Server::start();
    let mut connection = server.connect();
    connection.send(b"COMMAND\r\n");
    let reply = connection.receive().unwrap();
    let mut checked = 0;
    for command in Reply::parse(&reply).elements() {
        checked += check_command(command);
        for sub in command.elements().nth(9).unwrap().elements() {
            checked += check_command(sub);
        }
    }
    assert!(checked > 300, "{checked} commands");
}

/// Where the category departs from the server's `readonly` and `write` on purpose.
fn documented_exception(name: &str) -> bool {
    // SCAN, DBSIZE and LOLWUT say something about one server; MIGRATE talks to a third one; PFDEBUG is a debugging aid.
    matches!(name, "SCAN" | "DBSIZE" | "LOLWUT" | "MIGRATE" | "PFDEBUG" | "MEMORY")
        // Script containers may write whatever their flags say.
        || name == "FUNCTION"
}

fn check_command(reply: Reply<'_>) -> usize {
    let fields: Vec<Reply<'_>> = reply.elements().collect();
    let full = text(fields[0]).to_uppercase();
    let (name, sub) = full.split_once('|').unwrap_or((&full, ""));
    let command = lookup(name.as_bytes(), (!sub.is_empty()).then_some(sub.as_bytes()))
        .unwrap_or_else(|| panic!("{full} is missing"));
    assert_eq!(
        (command.name(), command.sub()),
        (name, sub),
        "{full} is missing"
    );
    let flags: Vec<String> = fields[2].elements().map(text).collect();
    let has = |flag: &str| flags.iter().any(|other| other == flag);
    assert_eq!(command.is_write(), has("write"), "{full}");
    assert_eq!(command.is_readonly(), has("readonly"), "{full}");
    assert_eq!(command.may_block(), has("blocking"), "{full}");
    assert_eq!(command.is_admin(), has("admin"), "{full}");
    let spec = command.key_spec();
    let expected = (3..6)
        .map(|field| fields[field].integer().unwrap())
        .collect::<Vec<_>>();
    let found = [spec.first, spec.last, spec.step].map(i64::from);
    assert_eq!(found[..], expected[..], "{full}");
    if !documented_exception(name) {
        match command.category() {
            CommandCategory::Read => assert!(!has("write"), "{full}"),
            CommandCategory::Write | CommandCategory::Blocking => {
                assert!(!has("readonly"), "{full}");
            }
            CommandCategory::Script => {}
            other => assert!(!has("write") && !has("readonly"), "{full} is {other:?}"),
        }
    }
    1
}

#[test]
fn keys_are_found_where_the_server_finds_them() {
    let server = Server::start();
    let mut connection = server.connect();
    for line in [
        "GET k",
        "MSET a 1 b 2 c 3",
        "DEL a b c",
        "BLPOP a b 0",
        "EVAL x 2 a b c",
        "FCALL f 1 a b",
        "ZUNIONSTORE d 2 a b WEIGHTS 1 2",
        "ZUNION 2 a b",
        "SINTERCARD 2 a b LIMIT 1",
        "LMPOP 2 a b LEFT",
        "BLMPOP 0 2 a b LEFT",
        "BZMPOP 0 1 a MIN",
        "XREAD COUNT 2 STREAMS a b 0 0",
        "XREADGROUP GROUP g c COUNT 1 STREAMS a b > >",
        "SORT a BY w LIMIT 0 1 STORE d",
        "SORT a STORE x STORE d",
        "GEORADIUS k 1 2 3 km STORE d",
        "GEORADIUSBYMEMBER k m 3 km STOREDIST d",
        "MIGRATE h 1 k 0 1",
        "MIGRATE h 1 \"\" 0 1 COPY AUTH p KEYS a b",
        "OBJECT ENCODING k",
        "XGROUP CREATE k g $",
        "MEMORY USAGE k",
        "BITOP AND d a b",
        "SMOVE a b m",
        "COPY a b",
        "RENAME a b",
        "GEOSEARCHSTORE d s FROMMEMBER m BYRADIUS 1 km",
        "PFMERGE d a b",
        "LCS a b",
    ] {
        connection.send(format!("COMMAND GETKEYS {line}\r\n").as_bytes());
        let reply = connection.receive().unwrap();
        let expected: Vec<String> = Reply::parse(&reply).elements().map(text).collect();
        let line = format!("{line}\r\n");
        let request = Request::parse(line.as_bytes());
        let command = lookup_request(&request).unwrap();
        let mut found: Vec<String> = command
            .keys(&request)
            .map(|key| String::from_utf8_lossy(request.arg(key).unwrap()).into_owned())
            .collect();
        let mut expected = expected;
        // The server lists a destination behind the sources of ZUNIONSTORE; the order says nothing.
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{line}");
    }
}

#[test]
fn protocol_errors_read_as_the_servers() {
    let server = Server::start();
    let long = |head: &str| [head.as_bytes(), &[b'1'; 70_000]].concat();
    for bytes in [
        b"*3000000000\r\n".to_vec(),
        b"*1x\r\n".to_vec(),
        b"*01\r\n".to_vec(),
        b"*\r\n".to_vec(),
        b"*+1\r\n".to_vec(),
        b"*1\r\n$\r\n".to_vec(),
        b"*1\r\n$-10\r\n".to_vec(),
        b"*1\r\n$536870913\r\n".to_vec(),
        b"*1\r\n:4\r\n".to_vec(),
        b"*1\r\n\nab\r\n".to_vec(),
        b"*1\r\n\xffab\r\n".to_vec(),
        long("*"),
        long("*1\r\n$"),
        long("a"),
        b"\"abc\r\n".to_vec(),
        b"\"abc\"d\r\n".to_vec(),
        b"'a\\'\r\n".to_vec(),
        b"POST / HTTP/1.1\r\n".to_vec(),
        b"hOsT: a\r\n".to_vec(),
        b"*1\r\n$5\r\nHost:\r\n".to_vec(),
    ] {
        let mut connection = server.connect();
        // The server may close before it has read everything.
        let _ = connection.stream.write_all(&bytes);
        let said = connection.receive().unwrap_or_default();
        let mut framer = RequestFramer::new();
        framer.set_authenticated(true);
        let error = framer.advance(&bytes).expect_err("refused");
        let mut ours = Vec::new();
        error.write_reply(&mut ours);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(20)]).into_owned();
        assert_eq!(ours, said, "{shown}");
    }
}

#[test]
fn inline_commands_are_split_as_the_server_splits_them() {
    let server = Server::start();
    let mut connection = server.connect();
    for line in [
        "PING abc",
        "  PING   abc  ",
        "PING \"a b\"",
        "PING 'a \\' b\\n'",
        "PING \"\\x41\\n\\r\\t\\b\\a\\q\\x4\"",
        "PING a\"b\"",
        "PING \"\"",
        "\"PING\" x",
        "PING a\u{b}b",
        "\u{b}PING x",
        "PING \\x41",
    ] {
        let line = format!("{line}\r\n");
        connection.send(line.as_bytes());
        let reply = connection.receive().unwrap();
        let request = Request::parse(line.as_bytes());
        assert_eq!(request.len(), 2, "{line:?}");
        assert_eq!(Reply::parse(&reply).text(), request.arg(1), "{line:?}");
    }
}

/// Random pipelines with everything that changes how replies are counted. `ECHO <tag>` tells which request a reply
/// really belongs to.
#[test]
fn replies_of_a_real_server_are_paired_with_their_requests() {
    let server = Server::start();
    let words = [
        "MULTI",
        "EXEC",
        "DISCARD",
        "WATCH k",
        "UNWATCH",
        "SUBSCRIBE a b",
        "SUBSCRIBE a",
        "UNSUBSCRIBE",
        "UNSUBSCRIBE a",
        "PSUBSCRIBE p* q*",
        "PUNSUBSCRIBE",
        "SSUBSCRIBE s",
        "SUNSUBSCRIBE",
        "PING",
        "HELLO 3",
        "HELLO 2",
        "RESET",
        "SELECT 3",
        "SELECT 99",
        "CLIENT REPLY SKIP",
        "CLIENT REPLY OFF",
        "CLIENT REPLY ON",
        "CLIENT TRACKING ON",
        "INCR k",
        "NOSUCH",
        "SET k",
        "GET k",
        "MONITOR",
        "EXEC x",
        "DISCARD x",
        "PUBLISH a m",
        "BLPOP nothing 0.001",
    ];
    for seed in 0..256 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut tracker = Tracker::new();
        let mut expected = BTreeMap::new();
        let mut stream = Vec::new();
        // Subscribing or CLIENT REPLY inside MULTI makes the server itself send a stream that is out of step in RESP3
        // or after OFF; those two stay out of transactions here.
        let mut subscribed = false;
        for tag in 0..40_usize {
            let mut line = match random.u32(0..3) {
                0 => random.choice(words).unwrap().to_string(),
                _ => format!("ECHO tag:{tag}"),
            };
            if tracker.in_transaction() && (line.contains("SUBSCRIBE") || line.contains("REPLY")) {
                line = format!("ECHO tag:{tag}");
            }
            // Behind pipelined subscriptions nobody can say in advance whether RESP2 allows CLIENT REPLY.
            subscribed = (subscribed || line.contains("SUBSCRIBE")) && line != "RESET";
            if subscribed && line.contains("REPLY") {
                line = format!("ECHO tag:{tag}");
            }
            submit(&mut tracker, &mut expected, &mut stream, tag, &line);
        }
        // The PING takes a pending SKIP; RESET ends everything else.
        for (tag, line) in [(40, "PING"), (41, "RESET"), (42, "ECHO tag:42")] {
            submit(&mut tracker, &mut expected, &mut stream, tag, line);
        }
        let mut connection = server.connect();
        connection.send(&stream);
        drain(&mut connection, &mut tracker, &expected, seed);
        assert!(!tracker.is_tied(), "seed {seed}");
        assert_eq!((tracker.db(), tracker.resp()), (0, 2), "seed {seed}");
    }
}

fn submit(
    tracker: &mut Tracker<usize>,
    expected: &mut BTreeMap<usize, String>,
    stream: &mut Vec<u8>,
    tag: usize,
    line: &str,
) {
    let line = format!("{line}\r\n");
    stream.extend_from_slice(line.as_bytes());
    let said = tracker.request(&Request::parse(line.as_bytes()), tag);
    if said != Disposition::NotMirrored(NotMirrored::NoReply) {
        expected.insert(tag, line);
    }
}

/// Reads until the sentinel has been paired, checking every pair that can be checked.
fn drain(
    connection: &mut Connection,
    tracker: &mut Tracker<usize>,
    expected: &BTreeMap<usize, String>,
    seed: u64,
) {
    let mut tags = expected.iter().peekable();
    while !tracker.is_empty() {
        let frame = connection.receive().unwrap();
        let shown = String::from_utf8_lossy(&frame).into_owned();
        match tracker.reply(ReplyHead::whole(&frame)) {
            Paired::Reply { tag, .. } => {
                // Only a second MONITOR may be passed over: the server ignores it.
                while tags
                    .next_if(|(t, line)| **t != tag && *line == "MONITOR\r\n")
                    .is_some()
                {}
                assert_eq!(
                    Some(&tag),
                    tags.next().map(|(t, _)| t),
                    "seed {seed}: {shown:?}"
                );
                if let Some(echo) = text(Reply::parse(&frame)).strip_prefix("tag:") {
                    assert_eq!(echo, tag.to_string(), "seed {seed}");
                }
                if tag == 42 {
                    assert_eq!(shown, "$6\r\ntag:42\r\n", "seed {seed}");
                }
            }
            Paired::Part | Paired::Push => {}
            Paired::Unsolicited => panic!("seed {seed}: {shown:?} belongs to nobody"),
        }
    }
    assert_eq!(tags.next(), None, "seed {seed}");
}

#[test]
fn every_name_in_the_table_is_unique() {
    let mut names: Vec<_> = all()
        .iter()
        .map(|command| (command.name(), command.sub()))
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
