//! The proxy itself ends, is killed, or is given a file that it cannot take.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::servers::PostgresServer;
use parhelion::testing::wait::eventually;
use rustix::process::Signal;
use support::faults::{Load, PATIENCE, counter, postgres, redis, start};
use support::pg::{PgClient, wire};
use support::resp::RespClient;

#[test]
fn sigterm_under_load_ends_with_nothing_in_flight_and_code_0() {
    let (primary, mirror) = (redis(), redis());
    let mut proxy = start(&ProxyOptions::new("redis", primary.address()).mirror(mirror.address()));
    let load = Load::start(proxy.address(), 6, 100);
    load.progress(300);
    proxy.process().signal(Signal::TERM).unwrap();
    let ended = proxy.process().wait_exit(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(0));
    let (done, ends) = load.finish();
    assert!(
        ends.iter().all(Result::is_err),
        "a client outlived the proxy"
    );
    // A transaction that was begun was finished: each client's reply came whole or not at all.
    for end in ends {
        let text = end.unwrap_err();
        assert!(
            text.starts_with("closed after") || text.contains("reset") || text.contains("pipe"),
            "{text}"
        );
    }
    let applied: u64 = (0..6).map(|n| counter(&primary, &format!("b:{n}"))).sum();
    assert!(
        (done..=done + 6).contains(&applied),
        "{done} answered, {applied} applied"
    );
    // The last word of the books against the data of the mirror itself.
    let books = final_books(&proxy);
    let book = |key: &str| -> u64 { books[key].parse().unwrap() };
    println!("{done} answered, {applied} applied: {books:?}");
    assert_eq!((book("in_flight"), &books["balances"][..]), (0, "true"));
    // Every transaction that was applied is one unit, whether its client still read the answer or not.
    assert_eq!(book("offered"), applied, "{books:?}");
    let mut seen = 0;
    for client in 0..6 {
        let halves = ["a", "b"].map(|half| counter(&mirror, &format!("{half}:{client}")));
        assert_eq!(halves[0], halves[1], "half a unit");
        seen += halves[0];
    }
    let delivered = book("delivered");
    assert!(
        (delivered..=delivered + book("errored")).contains(&seen),
        "the mirror holds {seen}: {books:?}"
    );
}

#[test]
fn sigterm_under_load_cuts_no_transaction_of_postgres_and_the_mirror_has_the_same_ones() {
    let (primary, mirror) = (postgres(), postgres());
    for server in [&primary, &mirror] {
        let table = "CREATE TABLE steps (unit text, half int)";
        server.sql("postgres", table).unwrap();
    }
    let options = ProxyOptions::new("postgres", primary.address()).mirror(mirror.address());
    let mut proxy = start(&options.general("pace = \"off\""));
    let address = proxy.address();
    let done = Arc::<AtomicU64>::default();
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let done = done.clone();
            std::thread::spawn(move || {
                let (mut client, _) = PgClient::connect(address, "postgres");
                for unit in 0.. {
                    let unit = format!("'{number}/{unit}'");
                    for (step, sql) in [
                        "BEGIN".to_owned(),
                        format!("INSERT INTO steps VALUES ({unit}, 1)"),
                        format!("INSERT INTO steps VALUES ({unit}, 2)"),
                        "COMMIT".to_owned(),
                    ]
                    .into_iter()
                    .enumerate()
                    {
                        if let Err(reason) = answered(&mut client, &sql) {
                            return (step, reason);
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                unreachable!("it is ended before")
            })
        })
        .collect();
    let loaded = || (done.load(Ordering::Relaxed) > 200).then_some(());
    assert!(eventually(PATIENCE, loaded).is_some());
    proxy.process().signal(Signal::TERM).unwrap();
    let ended = proxy.process().wait_exit(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(0));
    for client in clients {
        // Between two transactions, with the server's own words for it, or with a close.
        let (step, reason) = client.join().unwrap();
        assert_eq!(step, 0, "cut in a transaction: {reason}");
        assert!(reason.is_empty() || reason.contains("57P01"), "{reason}");
    }
    let done = done.load(Ordering::Relaxed);
    let books = final_books(&proxy);
    println!("{done} transactions: {books:?}");
    let book = |key: &str| -> u64 { books[key].parse().unwrap() };
    assert_eq!((book("in_flight"), &books["balances"][..]), (0, "true"));
    assert_eq!(book("offered"), done, "{books:?}");
    let units = |server: &PostgresServer| -> u64 {
        let whole = "SELECT count(*) FROM \
                     (SELECT unit FROM steps GROUP BY unit HAVING sum(half) = 3 AND count(*) = 2) whole";
        let rows = server
            .sql("postgres", "SELECT count(*) FROM steps")
            .unwrap();
        let whole: u64 = server.sql("postgres", whole).unwrap().parse().unwrap();
        assert_eq!(rows, (2 * whole).to_string(), "half a transaction");
        whole
    };
    assert_eq!(units(&primary), done);
    let seen = units(&mirror);
    let delivered = book("delivered");
    assert!(
        (delivered..=delivered + book("errored")).contains(&seen),
        "the mirror holds {seen}: {books:?}"
    );
}

/// Runs a statement; an error is what the client was told before the end, nothing if it was only closed.
fn answered(client: &mut PgClient, sql: &str) -> Result<(), String> {
    // A close that has come already shows at the answer.
    let _ = client.stream.write_all(&wire::query(sql));
    let mut told = String::new();
    loop {
        match wire::read_message(&mut client.stream) {
            Ok(message) if message[0] == b'Z' => return Ok(()),
            Ok(message) if message[0] == b'E' => told = message.escape_ascii().to_string(),
            Ok(_) => {}
            Err(_) => return Err(told),
        }
    }
}

/// What the process says of its mirror as its last word.
fn final_books(proxy: &ProxyProcess) -> HashMap<String, String> {
    // The process has ended; its last lines may still be on their way through the pipe.
    let line = eventually(PATIENCE, || {
        let mut lines = proxy.log().into_iter();
        lines.find(|line| line.contains("final ledger"))
    });
    let line = line.unwrap_or_else(|| panic!("{:#?}", proxy.log()));
    let fields = line.split_whitespace().filter_map(|field| {
        let (key, value) = field.split_once('=')?;
        Some((key.to_owned(), value.trim_matches('"').to_owned()))
    });
    fields.collect()
}

#[test]
fn a_transaction_that_does_not_end_is_cut_at_the_drain_timeout_and_rolled_back() {
    let primary = postgres();
    let options = ProxyOptions::new("postgres", primary.address());
    let mut proxy = start(&options.general("drain_timeout = \"1s\""));
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    client.query("CREATE TABLE kept (n int)");
    client.query("BEGIN");
    client.query("INSERT INTO kept VALUES (1)");
    let began = Instant::now();
    proxy.process().signal(Signal::TERM).unwrap();
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
    // At most a reason, never a success.
    assert!(
        rest.is_empty() || rest[0] == b'E',
        "{}",
        rest.escape_ascii()
    );
    let ended = proxy.process().wait_exit(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(0));
    let took = began.elapsed();
    println!("drained after {took:?} with a timeout of 1 s");
    // Not before the time that was promised to the transaction; a second and a half for everything else.
    assert!((1_000..2_500).contains(&took.as_millis()), "{took:?}");
    is_rolled_back(&primary);
}

/// No transaction is open, and nothing of one is there.
fn is_rolled_back(primary: &PostgresServer) {
    let gone = eventually(PATIENCE, || {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
        (primary.sql("postgres", open).unwrap() == "0").then_some(())
    });
    assert!(gone.is_some(), "the transaction is still open");
    let kept = primary.sql("postgres", "SELECT count(*) FROM kept");
    assert_eq!(kept.unwrap(), "0");
}

/// A client behind a proxy that has inserted a row and not committed it.
fn in_transaction() -> (PostgresServer, ProxyProcess, PgClient) {
    let primary = postgres();
    let proxy = start(&ProxyOptions::new("postgres", primary.address()));
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    client.query("CREATE TABLE kept (n int)");
    client.query("BEGIN");
    client.query("INSERT INTO kept VALUES (1)");
    (primary, proxy, client)
}

#[test]
fn a_drain_waits_for_a_transaction_and_a_second_sigterm_does_not() {
    let (primary, mut proxy, mut client) = in_transaction();
    let (mut idle, _) = PgClient::connect(proxy.address(), "postgres");
    proxy.process().signal(Signal::TERM).unwrap();
    // The idle one is told at once.
    assert_eq!(idle.message()[0], b'E');
    assert!(
        std::net::TcpStream::connect(proxy.address()).is_err() || {
            let refused = eventually(PATIENCE, || {
                std::net::TcpStream::connect(proxy.address())
                    .is_err()
                    .then_some(())
            });
            refused.is_some()
        }
    );
    assert!(
        client
            .query("SELECT 1")
            .iter()
            .any(|message| message[0] == b'D')
    );
    assert!(proxy.process().exited().is_none());
    let (mut second, began) = (Vec::new(), Instant::now());
    assert!(
        client
            .query("COMMIT")
            .iter()
            .any(|message| message[0] == b'C')
    );
    client.stream.read_to_end(&mut second).ok();
    let ended = proxy.process().wait_exit(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        primary
            .sql("postgres", "SELECT count(*) FROM kept")
            .unwrap(),
        "1"
    );

    let mut proxy = start(&ProxyOptions::new("postgres", primary.address()));
    let (mut client, _) = PgClient::connect(proxy.address(), "postgres");
    client.query("BEGIN");
    client.query("INSERT INTO kept VALUES (2)");
    proxy.process().signal(Signal::TERM).unwrap();
    let refused = eventually(PATIENCE, || {
        std::net::TcpStream::connect(proxy.address())
            .is_err()
            .then_some(())
    });
    assert!(refused.is_some(), "a draining proxy accepts");
    assert!(proxy.process().exited().is_none(), "it did not wait");
    let began = Instant::now();
    proxy.process().signal(Signal::TERM).unwrap();
    let ended = proxy.process().wait_exit(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        primary
            .sql("postgres", "SELECT count(*) FROM kept")
            .unwrap(),
        "1"
    );
}

#[test]
fn a_killed_proxy_is_a_closed_connection_and_a_rolled_back_transaction() {
    let (primary, mut proxy, mut client) = in_transaction();
    let began = Instant::now();
    proxy.process().kill9().unwrap();
    let mut rest = Vec::new();
    // An orderly end or a reset: never an answer.
    let _ = client.stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert!(began.elapsed() < Duration::from_secs(1));
    is_rolled_back(&primary);
}

#[test]
fn a_bad_file_at_a_reload_changes_nothing_and_is_named() {
    let primary = redis();
    let proxy = support::tls::Configured::start(&format!(
        "[[listeners]]\naddress = \"LISTEN\"\nprotocol = \"redis\"\ndatabase = \"here\"\n\
         [[databases]]\nname = \"here\"\nprotocol = \"redis\"\nhost = \"127.0.0.1\"\nport = {}\n",
        primary.port()
    ));
    let address = proxy.process.address();
    let mut client = RespClient::connect(address);
    assert_eq!(client.call(&["SET", "k", "v"]), b"+OK\r\n");
    let file = proxy.folder().join("parhelion.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    for (bad, named) in [
        (format!("{good}colour = \"blue\"\n"), "colour"),
        (
            good.replace(
                "[[listeners]]",
                "connect_timeout = \"5 parsecs\"\n[[listeners]]",
            ),
            "connect_timeout",
        ),
        (good.replace("name = \"here\"", "name = \"there\""), "here"),
        (
            good.replacen("[[databases]]", "[[databases]", 1),
            "unclosed",
        ),
    ] {
        let known = proxy.process.log().len();
        std::fs::write(&file, &bad).unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(proxy.process.pid()).unwrap());
        rustix::process::kill_process(pid.unwrap(), Signal::HUP).unwrap();
        let said = eventually(PATIENCE, || {
            let log = proxy.process.log();
            let lines = log[known..].join("\n");
            // Named with the file and the line.
            let place = lines.split("parhelion.toml:").nth(1);
            let line = place.is_some_and(|place| place.starts_with(|c: char| c.is_ascii_digit()));
            (lines.contains(named) && lines.contains("refused") && line).then_some(lines)
        });
        assert!(
            said.is_some(),
            "{named}: {:?}",
            &proxy.process.log()[known..]
        );
        assert_eq!(client.call(&["GET", "k"]), b"$1\r\nv\r\n");
        assert_eq!(
            RespClient::connect(address).call(&["GET", "k"]),
            b"$1\r\nv\r\n"
        );
    }
}
