//! The client path in full, through relayed logins: protocol versions, cancel keys, function calls, COPY both ways,
//! unix sockets, databases by name, startup packets of every size.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use parhelion::testing::scripted::{ScriptedPeer, Step};
use parhelion::testing::servers::{PostgresOptions, PostgresServer};
use parhelion::testing::wait::eventually;
use support::pg::{PgClient, show, wire};
use support::pg_front::{Front, FrontOptions, SHOP};
use support::pg_pair::{ok, rows, sqlstate};
use support::run_ok;

const TIMEOUT: Duration = Duration::from_secs(60);

fn versioned(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut packet = wire::startup(parameters);
    packet[4..8].copy_from_slice(&version.to_be_bytes());
    packet
}

#[test]
fn every_version_of_protocol_3_is_answered_as_the_server_answers_it() {
    let front = Front::start(FrontOptions::default());
    let login = |address: SocketAddr, version: u32, more: &[(&str, &str)]| {
        let parameters = [&[("user", "postgres"), ("database", SHOP)], more].concat();
        let mut client = PgClient::open(address);
        client.send(&versioned(version, &parameters));
        show(&client.until_ready())
    };
    for version in [3 << 16, 3 << 16 | 1, 3 << 16 | 2, 3 << 16 | 9999] {
        for more in [&[][..], &[("_pq_.wishes", "1")]] {
            let direct = login(front.server.address(), version, more);
            let proxied = login(front.proxy.address(), version, more);
            assert_eq!(direct, proxied, "{version:#x}");
        }
    }
}

#[test]
fn a_server_of_protocol_3_2_may_give_cancel_keys_of_256_bytes() {
    let startup = versioned(3 << 16 | 2, &[("user", "ann"), ("database", SHOP)]);
    for length in [4_usize, 5, 32, 255, 256] {
        let key: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
        let mut welcome = wire::message(b'R', &[0; 4]);
        welcome.extend(wire::message(
            b'K',
            &[&77_u32.to_be_bytes()[..], &key].concat(),
        ));
        welcome.extend(wire::message(b'Z', b"I"));
        let cancel = wire::cancel(77, &key);
        let peer = ScriptedPeer::start(vec![
            vec![
                Step::Expect(startup.clone()),
                Step::Send(welcome.clone()),
                Step::ExpectClose,
            ],
            vec![Step::Expect(cancel.clone())],
        ])
        .unwrap();
        let server = PostgresServer::start(PostgresOptions::default()).unwrap();
        let front = Front::before(
            server,
            FrontOptions {
                port: Some(peer.address().port()),
                database: "tls = \"disable\"".into(),
                ..FrontOptions::default()
            },
        );
        let mut client = PgClient::open(front.proxy.address());
        client.send(&startup);
        client.until_ready();
        assert_eq!((client.pid, &client.key), (77, &key));
        let mut request = PgClient::open(front.proxy.address());
        request.send(&cancel);
        assert_eq!(peer.outcome(TIMEOUT), Ok(cancel), "{length}");
        drop(client);
        assert_eq!(peer.outcome(TIMEOUT), Ok(startup.clone()));
    }
}

#[test]
fn a_function_call_is_answered() {
    let front = Front::start(FrontOptions::default());
    // int4abs(-5) by its OID, in text.
    let mut call = 1397_u32.to_be_bytes().to_vec();
    call.extend([0, 1, 0, 0, 0, 1, 0, 0, 0, 2, b'-', b'5', 0, 0]);
    let answers = [front.server.address(), front.proxy.address()].map(|address| {
        let (mut client, _) = PgClient::connect(address, SHOP);
        client.send(&wire::message(b'F', &call));
        client.until_ready()
    });
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0][0], wire::message(b'V', b"\0\0\0\x015"));
}

#[test]
fn pg_basebackup_and_pg_receivewal_stream_through_a_replication_connection() {
    let front = Front::start(FrontOptions::default());
    let tool = |name: &str| {
        let mut command = Command::new(front.server.program(name));
        // A client without a database of its own asks for the one of its user's name.
        let dsn = format!(
            "host=127.0.0.1 port={} user=postgres dbname={SHOP}",
            front.port()
        );
        command.args(["-d", &dsn]);
        command
    };
    let target = tempfile::tempdir().unwrap();
    let backup = target.path().join("backup");
    run_ok(
        tool("pg_basebackup")
            .args(["-X", "stream", "-c", "fast", "-D"])
            .arg(&backup),
        b"",
        TIMEOUT,
    );
    assert!(backup.join("PG_VERSION").exists() && backup.join("base").exists());
    // It begins where the server is now and ends a segment later.
    let end = "SELECT pg_current_wal_lsn() + 20000000";
    let end = front.server.sql(SHOP, end).unwrap();
    let wal = target.path().join("wal");
    std::fs::create_dir(&wal).unwrap();
    let mut receive = tool("pg_receivewal");
    receive.args(["-n", "--endpos", &end, "-D"]).arg(&wal);
    let receiving = std::thread::spawn(move || run_ok(&mut receive, b"", TIMEOUT));
    let written = eventually(TIMEOUT, || {
        let fill = "CREATE TABLE IF NOT EXISTS w (t text); INSERT INTO w SELECT 'x'; \
                    SELECT pg_switch_wal()";
        front.server.sql(SHOP, fill).unwrap();
        receiving.is_finished().then_some(())
    });
    assert!(written.is_some());
    receiving.join().unwrap();
    assert!(std::fs::read_dir(&wal).unwrap().count() > 0);
}

#[test]
fn unix_sockets_serve_on_both_sides() {
    let server = PostgresServer::start(PostgresOptions {
        databases: vec![SHOP.into()],
        ..PostgresOptions::default()
    })
    .unwrap();
    let host = server.socket_folder().to_string_lossy().into_owned();
    let front = Front::before(
        server,
        FrontOptions {
            host: Some(host),
            more: "[[listeners]]\naddress = \"unix:{folder}/.s.PGSQL.6432\"\nprotocol = \"postgres\"\n".into(),
            ..FrontOptions::default()
        },
    );
    assert_eq!(
        ok(&mut front.client(), "SELECT inet_server_addr() IS NULL"),
        ["t"]
    );
    let mut stream = UnixStream::connect(front.folder.path().join(".s.PGSQL.6432")).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
        .write_all(&wire::startup(&[("user", "postgres"), ("database", SHOP)]))
        .unwrap();
    stream.write_all(&wire::query("SELECT 'by unix'")).unwrap();
    stream.write_all(&wire::terminate()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(memchr::memmem::find(&answer, b"by unix").is_some());
}

#[test]
fn databases_are_chosen_by_name_and_a_mirror_is_one_of_them() {
    let server = PostgresServer::start(PostgresOptions {
        databases: vec![SHOP.into(), "twin".into()],
        ..PostgresOptions::default()
    })
    .unwrap();
    let more = "[[databases]]\nname = \"twin_db\"\ndatabase_name = \"twin\"\nhost = \"127.0.0.1\"\nport = {port}\n\
                user = \"postgres\"\n[[mirroring]]\nsource_db = \"shop\"\ndestination_db = \"twin_db\"\n";
    let front = Front::before(
        server,
        FrontOptions {
            more: more.into(),
            ..FrontOptions::default()
        },
    );
    let name = "SELECT current_database()";
    assert_eq!(ok(&mut front.client(), name), [SHOP]);
    assert_eq!(
        ok(&mut front.client_with(&[("database", "twin_db")]), name),
        ["twin"]
    );
    let mut client = PgClient::open(front.proxy.address());
    client.send(&wire::startup(&[
        ("user", "postgres"),
        ("database", "nowhere"),
    ]));
    let answer = client.until_ready();
    assert_eq!(sqlstate(&answer).as_deref(), Some("3D000"));
    let text = String::from_utf8_lossy(&answer[0]).into_owned();
    assert!(
        text.contains("database \"nowhere\" does not exist"),
        "{text}"
    );
}

#[test]
fn startup_packets_up_to_postgres_limit_pass_and_larger_ones_are_refused() {
    let front = Front::start(FrontOptions::default());
    let fixed = wire::startup(&[("user", "postgres"), ("database", SHOP), ("options", "")]).len();
    for (length, fits) in [
        (9_000, true),
        (10_000, true),
        (10_004, true),
        (10_005, false),
        (100_000, false),
    ] {
        let padding = format!(
            "-c work_mem=5MB{}",
            " ".repeat(length - fixed - "-c work_mem=5MB".len())
        );
        let packet = wire::startup(&[
            ("user", "postgres"),
            ("database", SHOP),
            ("options", &padding),
        ]);
        assert_eq!(packet.len(), length);
        for address in [front.server.address(), front.proxy.address()] {
            let mut client = PgClient::open(address);
            client.send(&packet);
            let mut first = [0];
            let got = client.stream.read(&mut first).unwrap_or(0);
            assert_eq!(got == 1 && first[0] == b'R', fits, "{length} at {address}");
        }
    }
}

#[test]
fn a_cancel_request_ends_the_running_query_and_its_connection_is_closed_behind_it() {
    let front = Front::start(FrontOptions::default());
    let mut client = front.client();
    client.send(&wire::query("SELECT pg_sleep(60)"));
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'";
    let seen = eventually(TIMEOUT, || {
        (front.server.sql(SHOP, running).unwrap() == "1").then_some(())
    });
    assert!(seen.is_some());
    let mut request = PgClient::open(front.proxy.address());
    request.send(&wire::cancel(client.pid, &client.key));
    let mut rest = Vec::new();
    assert_eq!(request.stream.read_to_end(&mut rest).unwrap(), 0);
    assert_eq!(sqlstate(&client.until_ready()).as_deref(), Some("57014"));
    assert_eq!(rows(&client.query("SELECT 1")), ["1"]);
}
