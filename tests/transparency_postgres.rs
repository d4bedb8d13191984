//! The same script on two equal servers, one reached directly, one through the proxy: the received bytes are identical.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use parhelion::testing::servers::{PostgresOptions, PostgresServer, PostgresUser, UserAuth};
use parhelion::testing::wait::eventually;
use support::pg::{PgClient, show, wire};
use support::proxy::{Proxy, ProxyOptions};
use support::resp::clip;

const DATABASE: &str = "shop";

type Parameters<'a> = Vec<Option<&'a [u8]>>;
type Answers = Vec<(String, Vec<Vec<u8>>)>;

struct Bench {
    direct: PostgresServer,
    behind: PostgresServer,
    proxy: Proxy,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(|options| options)
    }

    fn with(change: impl FnOnce(ProxyOptions) -> ProxyOptions) -> Bench {
        let (direct, behind) = (server(), server());
        let proxy = Proxy::start(&change(ProxyOptions::new("postgres", behind.address())));
        Bench {
            direct,
            behind,
            proxy,
        }
    }

    fn compare(&self, script: impl Fn(SocketAddr) -> Answers) {
        assert_equal(
            &script(self.direct.address()),
            &script(self.proxy.address()),
        );
    }
}

fn server() -> PostgresServer {
    let options = PostgresOptions {
        databases: vec![DATABASE.into()],
        ..PostgresOptions::default()
    };
    PostgresServer::start(options).unwrap()
}

fn assert_equal(direct: &Answers, proxied: &Answers) {
    for ((step, direct), (_, proxied)) in direct.iter().zip(proxied) {
        assert!(
            direct == proxied,
            "{step}\n direct:\n   {}\n proxy:\n   {}",
            show(direct),
            show(proxied)
        );
    }
    assert_eq!(direct.len(), proxied.len());
}

fn statements() -> impl Iterator<Item = &'static str> {
    include_str!("support/pg_corpus.sql")
        .lines()
        .filter(|line| !line.is_empty())
}

fn simple(address: SocketAddr, mut size: impl FnMut() -> usize) -> Answers {
    let (mut client, login) = PgClient::connect(address, DATABASE);
    let mut out = vec![("login".to_owned(), login)];
    for sql in statements() {
        client.send_chunked(&wire::query(sql), &mut size);
        out.push((sql.to_owned(), client.until_ready()));
    }
    out
}

#[test]
fn the_corpus_is_broad_enough() {
    assert!(statements().count() >= 150, "{}", statements().count());
}

#[test]
fn simple_queries_are_answered_with_the_same_bytes() {
    Bench::new().compare(|address| simple(address, || usize::MAX));
}

#[test]
fn simple_queries_cut_at_odd_places_are_answered_the_same() {
    Bench::new().compare(|address| {
        let mut rng = fastrand::Rng::with_seed(3);
        simple(address, move || rng.usize(1..9))
    });
}

#[test]
fn extended_queries_are_answered_with_the_same_bytes() {
    Bench::new().compare(|address| {
        let (mut client, _) = PgClient::connect(address, DATABASE);
        let mut out = Answers::new();
        for (number, sql) in statements().enumerate() {
            // Text and binary results, named and unnamed statements, described and not.
            let name = if number % 3 == 0 {
                format!("s{number}")
            } else {
                String::new()
            };
            let mut bytes = wire::parse(&name, sql, &[]);
            if number % 2 == 0 {
                bytes.extend(wire::describe(b'S', &name));
            }
            bytes.extend(wire::bind("", &name, 0, &[], u16::from(number % 4 == 1)));
            bytes.extend(wire::describe(b'P', ""));
            bytes.extend(wire::execute("", 0));
            if number % 5 == 0 && !name.is_empty() {
                bytes.extend(wire::close(b'S', &name));
            }
            bytes.extend(wire::sync());
            client.send(&bytes);
            out.push((sql.to_owned(), client.until_ready()));
        }
        out
    });
}

#[test]
fn parameters_of_every_kind_cross_unchanged() {
    Bench::new().compare(|address| {
        let (mut client, _) = PgClient::connect(address, DATABASE);
        let mut out = Answers::new();
        let big = vec![b'x'; 3 << 20];
        let cases: [(&str, u16, Parameters<'_>); 5] = [
            ("SELECT $1::int4 + 1", 1, vec![Some(&[0, 0, 0, 41])]),
            ("SELECT $1::text, $2::bytea", 0, vec![Some(b"text"), None]),
            ("SELECT $1::bytea", 1, vec![Some(&[0, 255, 0, 1])]),
            ("SELECT length($1::text)", 0, vec![Some(&big)]),
            ("SELECT $1::int4", 0, vec![Some(b"not a number")]),
        ];
        for result in [0, 1] {
            for (sql, format, parameters) in &cases {
                let bytes = [
                    wire::parse("", sql, &[]),
                    wire::bind("", "", *format, parameters, result),
                    wire::describe(b'P', ""),
                    wire::execute("", 0),
                    wire::sync(),
                ];
                client.send(&bytes.concat());
                out.push(((*sql).to_owned(), client.until_ready()));
            }
        }
        out
    });
}

#[test]
fn pipelines_portals_and_errors_inside_them_are_answered_the_same() {
    Bench::new().compare(|address| {
        let (mut client, _) = PgClient::connect(address, DATABASE);
        let mut out = Answers::new();
        // A thousand statements with one Sync each, sent as one.
        let mut bytes = Vec::new();
        for number in 0..1000 {
            let sql = if number % 100 == 99 {
                "SELECT 1/0".to_owned()
            } else {
                format!("SELECT {number}")
            };
            bytes.extend(wire::parse("", &sql, &[]));
            bytes.extend(wire::bind("", "", 0, &[], 0));
            bytes.extend(wire::execute("", 0));
            bytes.extend(wire::sync());
        }
        let writer = client.send_aside(bytes);
        for number in 0..1000 {
            out.push((format!("pipelined {number}"), client.until_ready()));
        }
        writer.join().unwrap();
        // An error skips the rest up to the Sync.
        let skipped = [
            wire::parse("", "SELECT 1", &[]),
            wire::bind("", "", 0, &[], 0),
            wire::execute("", 0),
            wire::parse("", "SELECT nonsense", &[]),
            wire::bind("", "", 0, &[], 0),
            wire::execute("", 0),
            wire::sync(),
            wire::query("SELECT 'after'"),
        ];
        client.send(&skipped.concat());
        out.push(("skipped".into(), client.until_ready()));
        out.push(("after".into(), client.until_ready()));
        // A portal read in portions, with Flush between them.
        client.send(
            &[
                wire::query("BEGIN"),
                wire::parse("ps", "SELECT generate_series(1, 25)", &[]),
            ]
            .concat(),
        );
        client.send(
            &[
                wire::bind("po", "ps", 0, &[], 0),
                wire::execute("po", 10),
                wire::flush(),
            ]
            .concat(),
        );
        out.push(("begin".into(), client.until_ready()));
        out.push(("portion 1".into(), client.until(b's')));
        client.send(&[wire::execute("po", 10), wire::flush()].concat());
        out.push(("portion 2".into(), client.until(b's')));
        client.send(
            &[
                wire::execute("po", 10),
                wire::close(b'P', "po"),
                wire::sync(),
                wire::query("COMMIT"),
            ]
            .concat(),
        );
        out.push(("portion 3".into(), client.until_ready()));
        out.push(("commit".into(), client.until_ready()));
        out
    });
}

#[test]
fn copy_in_out_and_their_failures_are_answered_the_same() {
    Bench::new().compare(|address| {
        let (mut client, _) = PgClient::connect(address, DATABASE);
        let mut out = Answers::new();
        out.push((
            "create".into(),
            client.query("CREATE TABLE c (a int, b text)"),
        ));
        client.send(&wire::query("COPY c FROM STDIN"));
        out.push(("copy in".into(), client.until(b'G')));
        let mut bytes = Vec::new();
        for row in 0..50_000 {
            bytes.extend(wire::message(
                b'd',
                format!("{row}\trow {row} \\N\n").as_bytes(),
            ));
        }
        bytes.extend(wire::message(b'c', b""));
        let writer = client.send_aside(bytes);
        out.push(("copied".into(), client.until_ready()));
        writer.join().unwrap();
        client.send(&wire::query("COPY (SELECT * FROM c ORDER BY a) TO STDOUT"));
        out.push(("copy out".into(), client.until_ready()));
        client.send(&wire::query(
            "COPY (SELECT a FROM c ORDER BY a LIMIT 100) TO STDOUT (FORMAT binary)",
        ));
        out.push(("copy out binary".into(), client.until_ready()));
        client.send(&wire::query("COPY c FROM STDIN"));
        out.push(("copy in".into(), client.until(b'G')));
        client.send(
            &[
                wire::message(b'd', b"1\tx\n"),
                wire::message(b'f', b"changed my mind\0"),
            ]
            .concat(),
        );
        out.push(("copy fail".into(), client.until_ready()));
        client.send(&wire::query("COPY c FROM STDIN"));
        out.push(("copy in".into(), client.until(b'G')));
        client.send(
            &[
                wire::message(b'd', b"not a number\tx\n"),
                wire::message(b'c', b""),
            ]
            .concat(),
        );
        out.push(("copy bad row".into(), client.until_ready()));
        out.push((
            "count".into(),
            client.query("SELECT count(*), sum(a) FROM c"),
        ));
        // COPY through the extended protocol.
        let extended = [
            wire::parse("", "COPY c FROM STDIN", &[]),
            wire::bind("", "", 0, &[], 0),
            wire::execute("", 0),
            wire::message(b'd', b"7\tseven\n"),
            wire::message(b'c', b""),
            wire::sync(),
        ];
        client.send(&extended.concat());
        out.push(("extended copy".into(), client.until_ready()));
        out
    });
}

#[test]
fn a_hundred_megabytes_of_rows_cross_unchanged() {
    Bench::new().compare(|address| {
        let (mut client, _) = PgClient::connect(address, DATABASE);
        client.send(&wire::query(
            "SELECT repeat(chr(65 + i % 26), 1000000) FROM generate_series(1, 100) i",
        ));
        let answer = client.until_ready();
        // The rows by digest: a failed comparison must stay readable.
        let digest = |message: &Vec<u8>| xxhash_rust::xxh3::xxh3_64(message).to_be_bytes().to_vec();
        assert!(answer.iter().map(Vec::len).sum::<usize>() > 100_000_000);
        vec![("rows".into(), answer.iter().map(digest).collect())]
    });
}

#[test]
fn notifications_of_another_session_arrive() {
    Bench::new().compare(|address| {
        let (mut listener, _) = PgClient::connect(address, DATABASE);
        let (mut notifier, _) = PgClient::connect(address, DATABASE);
        let mut out = vec![("listen".to_owned(), listener.query("LISTEN news"))];
        out.push(("notify".into(), notifier.query("NOTIFY news, 'hello'")));
        // Nothing is asked: the notification comes by itself.
        out.push(("notification".into(), listener.until(b'A')));
        out.push(("again".into(), listener.query("SELECT 1")));
        out
    });
}

#[test]
fn a_cancel_request_ends_the_query_it_is_for_and_no_other() {
    Bench::new().compare(|address| {
        let (mut victim, _) = PgClient::connect(address, DATABASE);
        let (mut other, _) = PgClient::connect(address, DATABASE);
        victim.send(&wire::query("SELECT pg_sleep(60)"));
        other.send(&wire::query("SELECT pg_sleep(0.5), 'other'"));
        wait_for_sleepers(address, 2);
        let mut canceller = PgClient::open(address);
        canceller.send(&wire::cancel(victim.pid, &victim.key));
        let mut end = Vec::new();
        canceller.stream.read_to_end(&mut end).unwrap();
        let mut out = vec![("cancel connection".to_owned(), vec![end])];
        out.push(("cancelled".into(), victim.until_ready()));
        out.push(("other".into(), other.until_ready()));
        out.push(("usable".into(), victim.query("SELECT 1")));
        // A wrong key cancels nothing and is not answered.
        let mut forger = PgClient::open(address);
        forger.send(&wire::cancel(victim.pid, &[0; 4]));
        let mut end = Vec::new();
        forger.stream.read_to_end(&mut end).unwrap();
        out.push(("forged".into(), vec![end]));
        out
    });
}

fn wait_for_sleepers(address: SocketAddr, count: usize) {
    let (mut watcher, _) = PgClient::connect(address, DATABASE);
    let sql = "SELECT 'n=' || count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let wanted = format!("n={count}");
    let seen = eventually(Duration::from_secs(10), || {
        let rows = watcher.query(sql).concat();
        rows.windows(wanted.len())
            .any(|part| part == wanted.as_bytes())
            .then_some(())
    });
    assert!(seen.is_some(), "never {count} sleeping queries");
}

#[test]
fn startup_options_are_in_force_and_refusals_are_the_servers_own() {
    Bench::new().compare(|address| {
        let mut out = Answers::new();
        let (mut client, login) = PgClient::connect_with(
            address,
            &[
                ("user", "postgres"),
                ("database", DATABASE),
                (
                    "options",
                    "-c search_path=pg_catalog -c statement_timeout=12345",
                ),
                ("application_name", "tester ü"),
                ("client_encoding", "LATIN1"),
                ("timezone", "Asia/Tokyo"),
            ],
        );
        out.push(("login".into(), login));
        for name in [
            "search_path",
            "statement_timeout",
            "application_name",
            "client_encoding",
            "timezone",
        ] {
            out.push((name.into(), client.query(&format!("SHOW {name}"))));
        }
        let refused: [&[(&str, &str)]; 4] = [
            &[("user", "postgres"), ("database", "nosuch")],
            &[("user", "nosuch"), ("database", DATABASE)],
            &[("database", DATABASE)],
            &[
                ("user", "postgres"),
                ("database", DATABASE),
                ("nosuch_parameter", "1"),
            ],
        ];
        for parameters in refused {
            let mut client = PgClient::open(address);
            client.send(&wire::startup(parameters));
            out.push((format!("{parameters:?}"), client.until_ready()));
        }
        out
    });
}

/// A first packet with this body, whose length word says `claimed` if that is given.
fn first_packet(body: &[u8], claimed: Option<u32>) -> Vec<u8> {
    let length = claimed.unwrap_or(body.len() as u32 + 4);
    [&length.to_be_bytes(), body].concat()
}

#[test]
fn startup_packets_that_are_none_end_as_on_the_server() {
    let version = [0, 3, 0, 0];
    let known = b"user\0postgres\0database\0shop\0";
    let padded = |length: usize| {
        let rest = [&version[..], known, b"application_name\0"].concat();
        let value = vec![b'x'; length - 4 - rest.len() - 2];
        first_packet(&[&rest[..], &value, b"\0\0"].concat(), None)
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("the longest", padded(10_000)),
        ("one byte more than most", padded(10_001)),
        ("four bytes more", padded(10_004)),
        ("too long", padded(10_005)),
        ("far too long", padded(20_000)),
        (
            "no terminator",
            first_packet(&[&version[..], known].concat(), None),
        ),
        (
            "half a parameter",
            first_packet(&[&version[..], b"user\0\0"].concat(), None),
        ),
        (
            "a name without its end",
            first_packet(&[&version[..], b"user"].concat(), None),
        ),
        (
            "bytes behind the end",
            first_packet(&[&version[..], known, b"\0junk\0"].concat(), None),
        ),
        (
            "no parameters",
            first_packet(&[&version[..], b"\0"].concat(), None),
        ),
        ("only a version", first_packet(&version, None)),
        ("length of 0", first_packet(&version, Some(0))),
        ("length of 4", first_packet(&version, Some(4))),
        ("length of 7", first_packet(&version, Some(7))),
        (
            "a length of 2 GiB",
            first_packet(&version, Some(0x7fff_ffff)),
        ),
        (
            "a negative length",
            first_packet(&version, Some(0xffff_ffff)),
        ),
    ];
    let bench = Bench::new();
    for (name, bytes) in cases {
        bench.compare(|address| {
            let mut client = PgClient::open(address);
            client.send(&bytes);
            vec![(name.to_owned(), vec![until_ready_or_end(&mut client)])]
        });
    }
    // What follows is refused as a version of the protocol that is not spoken; each side names those that it speaks itself. A
    // server built with GSSAPI goes on with it, so that for this one there is no direct run.
    let versions = [2, 4].map(|major| {
        let body = [&[0, major, 0, 0], &known[..], b"\0"].concat();
        (format!("{major}.0"), first_packet(&body, None), false)
    });
    let again = [
        ("1234.5679".to_owned(), wire::ssl_request(), true),
        ("1234.5680".to_owned(), wire::gssenc_request(), true),
    ];
    for (version, packet, answered) in versions.into_iter().chain(again) {
        let addresses = [bench.proxy.address(), bench.direct.address()];
        let both = if version == "1234.5680" { 1 } else { 2 };
        for address in &addresses[..both] {
            let mut client = PgClient::open(*address);
            if answered {
                client.send(&packet);
                client.stream.read_exact(&mut [0]).unwrap();
            }
            client.send(&packet);
            let mut said = Vec::new();
            let ended = client.stream.read_to_end(&mut said);
            assert!(ended.is_ok(), "{version} at {address}: {ended:?}");
            let wanted = format!("unsupported frontend protocol {version}");
            let text = String::from_utf8_lossy(&said);
            assert!(text.contains(&wanted), "{version} at {address}: {text}");
        }
    }
}

/// An error without the place in the server's source.
fn without_source(message: Vec<u8>) -> Vec<u8> {
    if message[0] != b'E' {
        return message;
    }
    let fields = message[5..].split(|byte| *byte == 0);
    let said = fields.filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')));
    said.collect::<Vec<_>>().join(&b'\n')
}

/// The types of the messages of a login, or all that came before the end, which must come.
fn until_ready_or_end(client: &mut PgClient) -> Vec<u8> {
    let (mut tags, mut all) = (Vec::new(), Vec::new());
    loop {
        match wire::read_message(&mut client.stream) {
            Ok(message) => {
                tags.push(message[0]);
                if message[0] == b'Z' {
                    return tags;
                }
                all.extend(without_source(message));
            }
            Err(error) => {
                let waits = [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut];
                assert!(
                    !waits.contains(&error.kind()),
                    "kept open after {}",
                    clip(&all)
                );
                return all;
            }
        }
    }
}

/// What each request is answered with, and the login after them on the same connection.
fn negotiate(address: SocketAddr, requests: &[Vec<u8>]) -> Answers {
    let mut client = PgClient::open(address);
    let mut out = Answers::new();
    for request in requests {
        client.send(request);
        let mut answer = [0];
        client.stream.read_exact(&mut answer).unwrap();
        out.push((clip(request), vec![answer.to_vec()]));
    }
    client.send(&wire::startup(&[
        ("user", "postgres"),
        ("database", DATABASE),
    ]));
    out.push(("login".into(), client.until_ready()));
    out
}

#[test]
fn an_ssl_request_gets_one_byte_and_the_login_goes_on() {
    Bench::new().compare(|address| negotiate(address, &[wire::ssl_request()]));
}

#[test]
fn a_gssenc_request_is_answered_n_and_the_login_goes_on() {
    // A server built with GSSAPI offers it; the proxy does not, so there is no direct run to compare with.
    let mut bench = Bench::new();
    if support::proxy::forwarder_wanted() {
        return;
    }
    let address = bench.proxy.real().address();
    let answers = negotiate(address, &[wire::gssenc_request(), wire::ssl_request()]);
    assert_eq!(answers[0].1, [b"N"]);
    assert_eq!(answers[1].1, [b"N"]);
}

#[test]
fn bytes_behind_an_ssl_request_in_one_segment_reach_no_database() {
    let mut bench = Bench::new();
    if support::proxy::forwarder_wanted() {
        return;
    }
    let mut client = PgClient::open(bench.proxy.real().address());
    let startup = wire::startup(&[
        ("user", "postgres"),
        ("database", DATABASE),
        ("application_name", "injected"),
    ]);
    client.send(&[wire::ssl_request(), startup].concat());
    let mut rest = Vec::new();
    // A reset is a close, too.
    let _ = client.stream.read_to_end(&mut rest);
    assert!(rest.len() <= 1, "answered {}", clip(&rest));
    let sessions = bench.behind.sql(
        DATABASE,
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'injected'",
    );
    assert_eq!(sessions.unwrap(), "0");
}

#[test]
fn protocol_violations_are_answered_as_by_the_server() {
    let bench = Bench::new();
    let cases: [(&str, Vec<u8>); 4] = [
        ("unknown message type", wire::message(b'~', b"")),
        ("length below four", vec![b'Q', 0, 0, 0, 3]),
        ("query without terminator", wire::message(b'Q', b"SELECT 1")),
        ("terminate", wire::terminate()),
    ];
    for (name, bytes) in cases {
        bench.compare(|address| {
            let (mut client, _) = PgClient::connect(address, DATABASE);
            client.send(&bytes);
            let mut rest = Vec::new();
            if name == "query without terminator" {
                // An error, and the session goes on.
                return vec![(name.to_owned(), client.until_ready())];
            }
            // A reset is a close, too.
            let _ = client.stream.read_to_end(&mut rest);
            vec![(name.to_owned(), vec![rest])]
        });
    }
}

#[test]
fn every_login_method_works_and_a_wrong_password_is_refused() {
    let users = [UserAuth::Password, UserAuth::Md5, UserAuth::Scram].map(|auth| PostgresUser {
        name: format!("{auth:?}").to_lowercase(),
        password: "right".into(),
        auth,
    });
    let options = PostgresOptions {
        users: users.to_vec(),
        databases: vec![DATABASE.into()],
        ..PostgresOptions::default()
    };
    let server = PostgresServer::start(options).unwrap();
    let proxy = Proxy::postgres(server.address());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for user in &users {
        for (password, welcome) in [("right", true), ("wrong", false)] {
            for address in [server.address(), proxy.address()] {
                let mut config = tokio_postgres::Config::new();
                config
                    .host("127.0.0.1")
                    .port(address.port())
                    .user(&user.name)
                    .password(password)
                    .dbname(DATABASE);
                config.connect_timeout(Duration::from_secs(10));
                let outcome = runtime.block_on(async {
                    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
                    tokio::spawn(connection);
                    client
                        .query_one("SELECT current_user::text", &[])
                        .await
                        .map(|row| row.get::<_, String>(0))
                });
                match outcome {
                    Ok(name) => assert!(welcome && name == user.name, "{} at {address}", user.name),
                    Err(error) => {
                        let code = error.code().map(|code| code.code().to_owned());
                        assert!(
                            !welcome && code.as_deref() == Some("28P01"),
                            "{} at {address}: {error:?}",
                            user.name
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_mirror_changes_nothing_whether_it_is_healthy_stopped_or_dead() {
    let healthy = server();
    let stopped = server();
    stopped.pause().unwrap();
    let mut dead = server();
    dead.kill9().unwrap();
    for mirror in [&healthy, &stopped, &dead] {
        let bench = Bench::with(|options| {
            options
                .mirror(mirror.address())
                .args(&["--user", "postgres"])
        });
        bench.compare(|address| simple(address, || usize::MAX));
    }
}
