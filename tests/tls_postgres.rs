//! TLS between clients, the proxy and Postgres: real psql, real servers, and raw clients for what psql does not do.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use parhelion::testing::pg_wire as wire;
use parhelion::testing::postgres::{PostgresOptions, PostgresServer, PostgresUser, UserAuth};
use parhelion::testing::wait::eventually;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use support::tls::{Authority, Configured, encrypt_postgres, listener_tls};

const LIMIT: Duration = Duration::from_secs(60);

fn server(users: &[(&str, UserAuth)]) -> PostgresServer {
    let users = users.iter().map(|(name, auth)| PostgresUser {
        name: (*name).to_owned(),
        password: "secret".to_owned(),
        auth: *auth,
    });
    PostgresServer::start(PostgresOptions {
        users: users.collect(),
        databases: vec!["twin".to_owned()],
        ..PostgresOptions::default()
    })
    .unwrap()
}

/// The database `postgres` of the server, and a listener with these extra lines.
fn config(server: &PostgresServer, listener: &str, database: &str) -> String {
    config_at(server.port(), listener, database)
}

fn config_at(port: u16, listener: &str, database: &str) -> String {
    format!(
        "[[listeners]]\naddress = \"LISTEN\"\nprotocol = \"postgres\"\n{listener}\n\
         [[databases]]\nname = \"postgres\"\nhost = \"127.0.0.1\"\nport = {port}\n{database}\n"
    )
}

/// `psql` with a connection string; `port` is the proxy's.
fn psql(port: u16, conninfo: &str, sql: &str) -> Output {
    let mut command = Command::new("psql");
    let user = if conninfo.contains("user=") {
        ""
    } else {
        "user=postgres"
    };
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    command.arg(format!(
        "host=127.0.0.1 port={port} dbname=postgres {user} {conninfo}"
    ));
    support::run(&mut command, b"", LIMIT)
}

fn good(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim_end().to_owned()
}

fn refused(output: Output) -> String {
    assert!(!output.status.success(), "{}", text(&output.stdout));
    text(&output.stderr)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const MY_TLS: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

#[test]
fn clients_connect_with_every_sslmode_and_believe_only_the_right_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = server(&[]);
    let pair = authority.sign_local("proxy");
    let proxy = Configured::start(&config(&server, &listener_tls(&pair, None), ""));
    let (ca, other) = (authority.ca(), stranger.ca());
    for mode in ["disable", "allow", "prefer", "require"] {
        let sslmode = format!("sslmode={mode}");
        assert_eq!(good(psql(proxy.port(), &sslmode, "SELECT 1")), "1");
    }
    for mode in ["verify-ca", "verify-full"] {
        let with = |ca: &Path| format!("sslmode={mode} sslrootcert={}", ca.display());
        assert_eq!(good(psql(proxy.port(), &with(&ca), "SELECT 1")), "1");
        refused(psql(proxy.port(), &with(&other), "SELECT 1"));
    }
    let wrong_name = authority.sign("elsewhere", &["db.example"], "elsewhere");
    let proxy = Configured::start(&config(&server, &listener_tls(&wrong_name, None), ""));
    let with = |mode: &str| format!("sslmode={mode} sslrootcert={}", ca.display());
    good(psql(proxy.port(), &with("verify-ca"), "SELECT 1"));
    refused(psql(proxy.port(), &with("verify-full"), "SELECT 1"));
}

#[test]
fn a_client_without_tls_is_refused_where_it_is_required() {
    let server = server(&[]);
    let authority = Authority::new();
    let pair = authority.sign_local("proxy");
    let listener = format!("{}\ntls_required = true", listener_tls(&pair, None));
    let proxy = Configured::start(&config(&server, &listener, ""));
    let error = refused(psql(proxy.port(), "sslmode=disable", "SELECT 1"));
    assert!(error.contains("without TLS"), "{error}");
}

#[test]
fn the_leg_to_the_primary_is_as_safe_as_its_tls_key_says() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let plain = server(&[]);
    let secure = server(&[]);
    encrypt_postgres(&secure, &authority.sign_local("server"));
    let elsewhere = server(&[]);
    encrypt_postgres(
        &elsewhere,
        &authority.sign("elsewhere", &["db.example"], "elsewhere"),
    );
    let ca = |mode: &str, authority: &Authority| {
        format!(
            "tls = \"{mode}\"\ntls_ca = \"{}\"",
            authority.ca().display()
        )
    };
    let ask = |server: &PostgresServer, database: &str| {
        let proxy = Configured::start(&config(server, "", database));
        psql(proxy.port(), "sslmode=disable", MY_TLS)
    };
    assert_eq!(good(ask(&secure, "tls = \"disable\"")), "f");
    assert_eq!(good(ask(&secure, "")), "t");
    assert_eq!(good(ask(&plain, "")), "f");
    assert_eq!(good(ask(&secure, "tls = \"require\"")), "t");
    assert_eq!(good(ask(&secure, &ca("verify-ca", &authority))), "t");
    assert_eq!(good(ask(&secure, &ca("verify-full", &authority))), "t");
    assert_eq!(good(ask(&elsewhere, &ca("verify-ca", &authority))), "t");
    for output in [
        ask(&plain, "tls = \"require\""),
        ask(&secure, &ca("verify-ca", &stranger)),
        ask(&secure, &ca("verify-full", &stranger)),
        ask(&elsewhere, &ca("verify-full", &authority)),
    ] {
        assert!(refused(output).contains("cannot be reached"));
    }
}

#[test]
fn every_login_goes_through_with_tls_on_either_leg_and_on_both() {
    let authority = Authority::new();
    let server = server(&[
        ("ann", UserAuth::Scram),
        ("bob", UserAuth::Md5),
        ("cay", UserAuth::Password),
    ]);
    encrypt_postgres(&server, &authority.sign_local("server"));
    let pair = authority.sign_local("proxy");
    for (listener, sslmode) in [
        (String::new(), "prefer"),
        (listener_tls(&pair, None), "disable"),
        (listener_tls(&pair, None), "require"),
    ] {
        let proxy = Configured::start(&config(&server, &listener, "tls = \"prefer\""));
        for user in ["ann", "bob", "cay"] {
            let conninfo = format!("user={user} password=secret sslmode={sslmode}");
            assert_eq!(good(psql(proxy.port(), &conninfo, "SELECT 1")), "1");
            let wrong = format!("user={user} password=wrong sslmode={sslmode}");
            refused(psql(proxy.port(), &wrong, "SELECT 1"));
        }
    }
}

#[test]
fn channel_binding_holds_through_the_proxy_where_both_legs_show_one_certificate() {
    let authority = Authority::new();
    let server = server(&[("ann", UserAuth::Scram)]);
    let pair = authority.sign_local("server");
    encrypt_postgres(&server, &pair);
    let proxy = Configured::start(&config(
        &server,
        &listener_tls(&pair, None),
        "tls = \"require\"",
    ));
    let conninfo = "user=ann password=secret sslmode=require channel_binding=require";
    assert_eq!(good(psql(proxy.port(), conninfo, MY_TLS)), "t");
}

#[test]
fn channel_binding_with_two_certificates_is_refused_and_can_be_done_without() {
    let authority = Authority::new();
    let server = server(&[("ann", UserAuth::Scram)]);
    encrypt_postgres(&server, &authority.sign_local("server"));
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let proxy = Configured::start(&config(&server, &listener, "tls = \"require\""));
    let with = |binding: &str| {
        let conninfo = format!("user=ann password=secret sslmode=require {binding}");
        psql(proxy.port(), &conninfo, MY_TLS)
    };
    assert_eq!(good(with("channel_binding=disable")), "t");
    refused(with("channel_binding=prefer"));
    refused(with("channel_binding=require"));
}

#[test]
fn tls_to_the_primary_is_given_up_only_for_a_client_that_would_be_refused_and_not_in_silence() {
    let authority = Authority::new();
    let server = server(&[("ann", UserAuth::Scram)]);
    encrypt_postgres(&server, &authority.sign_local("server"));
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let proxy = Configured::start(&config(&server, &listener, "tls = \"prefer\""));
    let with = |binding: &str, password: &str| {
        let conninfo = format!("user=ann password={password} sslmode=require {binding}");
        psql(proxy.port(), &conninfo, MY_TLS)
    };
    let said = || proxy.process.log().join("\n").contains("is not encrypted");
    assert_eq!(good(with("channel_binding=disable", "secret")), "t");
    refused(with("channel_binding=disable", "wrong"));
    refused(with("channel_binding=require", "secret"));
    assert!(!said(), "{:?}", proxy.process.log());
    assert_eq!(good(with("channel_binding=prefer", "secret")), "f");
    refused(with("channel_binding=prefer", "wrong"));
    assert_eq!(good(with("", "secret")), "f");
    let told = eventually(LIMIT, || said().then_some(()));
    assert!(told.is_some(), "{:?}", proxy.process.log());
}

#[test]
fn client_certificates_are_asked_for_and_checked() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = server(&[]);
    let pair = authority.sign_local("proxy");
    let (ann, eve) = (
        authority.sign("ann", &[], "ann of accounts"),
        stranger.sign("eve", &[], "eve"),
    );
    let ca = authority.ca();
    let listener = listener_tls(&pair, Some(&ca));
    let proxy = Configured::start(&config(&server, &listener, ""));
    let with = |pair: &support::tls::Pair| {
        let (cert, key) = (pair.cert.display(), pair.key.display());
        format!("sslmode=require sslcert={cert} sslkey={key}")
    };
    assert_eq!(good(psql(proxy.port(), &with(&ann), "SELECT 1")), "1");
    let log = proxy.process.log().join("\n");
    assert!(log.contains("ann of accounts"), "{log}");
    refused(psql(proxy.port(), &with(&eve), "SELECT 1"));
    let none = "sslmode=require sslcert=/nowhere sslkey=/nowhere";
    refused(psql(proxy.port(), none, "SELECT 1"));
    refused(psql(proxy.port(), "sslmode=disable", "SELECT 1"));

    let optional = listener.replace(" }", ", client_cert_required = false }");
    let proxy = Configured::start(&config(&server, &optional, ""));
    good(psql(proxy.port(), &with(&ann), "SELECT 1"));
    good(psql(proxy.port(), none, "SELECT 1"));
    good(psql(proxy.port(), "sslmode=disable", "SELECT 1"));
    refused(psql(proxy.port(), &with(&eve), "SELECT 1"));
}

/// A raw TLS client.
fn encrypt(
    stream: TcpStream,
    ca: &Path,
    alpn: Option<&[u8]>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, stream)
}

fn open(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const STARTUP: &[(&str, &str)] = &[("user", "postgres"), ("database", "postgres")];

fn ask_and_encrypt(address: SocketAddr, ca: &Path) -> StreamOwned<ClientConnection, TcpStream> {
    let mut stream = open(address);
    stream.write_all(&SSL_REQUEST).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"S");
    encrypt(stream, ca, None)
}

fn until(stream: &mut impl Read, tag: u8) -> io::Result<Vec<Vec<u8>>> {
    let mut messages = Vec::new();
    loop {
        let message = wire::read_message(stream)?;
        let ended = message[0] == tag;
        messages.push(message);
        if ended {
            return Ok(messages);
        }
    }
}

#[test]
fn tls_from_the_first_byte_needs_the_protocols_name() {
    let authority = Authority::new();
    let server = server(&[]);
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let proxy = Configured::start(&config(&server, &listener, ""));
    let address = proxy.process.address();
    let mut direct = encrypt(open(address), &authority.ca(), Some(b"postgresql"));
    direct.write_all(&wire::startup(STARTUP)).unwrap();
    until(&mut direct, b'Z').unwrap();
    for alpn in [None, Some(&b"http/1.1"[..])] {
        let mut direct = encrypt(open(address), &authority.ca(), alpn);
        let told = direct.write_all(&wire::startup(STARTUP));
        assert!(told.is_err() || until(&mut direct, b'Z').is_err());
    }
}

#[test]
fn a_certificate_is_replaced_while_a_session_lives() {
    let (first, second) = (Authority::new(), Authority::new());
    let server = server(&[]);
    let pair = first.sign_local("proxy");
    let proxy = Configured::start(&config(&server, &listener_tls(&pair, None), ""));
    let address = proxy.process.address();
    let mut old = ask_and_encrypt(address, &first.ca());
    old.write_all(&wire::startup(STARTUP)).unwrap();
    until(&mut old, b'Z').unwrap();

    let renewed = second.sign_local("proxy");
    fs::copy(&renewed.cert, &pair.cert).unwrap();
    fs::copy(&renewed.key, &pair.key).unwrap();
    reload(&proxy);
    let with = |authority: &Authority| {
        let ca = authority.ca();
        format!("sslmode=verify-full sslrootcert={}", ca.display())
    };
    let seen = eventually(LIMIT, || {
        let output = psql(proxy.port(), &with(&second), "SELECT 1");
        output.status.success().then_some(())
    });
    assert!(seen.is_some(), "{}", proxy.process.log().join("\n"));
    refused(psql(proxy.port(), &with(&first), "SELECT 1"));
    old.write_all(&wire::query("SELECT 1")).unwrap();
    until(&mut old, b'Z').unwrap();

    // A file that is no key changes nothing.
    fs::write(&pair.key, "nonsense").unwrap();
    reload(&proxy);
    let told = eventually(LIMIT, || {
        let log = proxy.process.log().join("\n");
        log.contains("the old config stays in force").then_some(())
    });
    assert!(told.is_some(), "{}", proxy.process.log().join("\n"));
    good(psql(proxy.port(), &with(&second), "SELECT 1"));
}

fn reload(proxy: &Configured) {
    let pid = rustix::process::Pid::from_raw(proxy.process.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}

/// A primary that only notes whether anybody sent it anything.
fn listening() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn bytes_behind_an_ssl_request_close_the_connection_and_reach_nobody() {
    let (primary, port) = listening();
    let authority = Authority::new();
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let proxy = Configured::start(&config_at(port, &listener, ""));
    for extra in [&wire::startup(STARTUP)[..], b"x", &[0x16, 3, 1]] {
        let mut stream = open(proxy.process.address());
        stream
            .write_all(&[&SSL_REQUEST[..], extra].concat())
            .unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(ended.is_ok() || !answer.contains(&b'S'), "{ended:?}");
        assert_eq!(answer, b"");
    }
    assert!(primary.accept().is_err());
}

#[test]
fn plaintext_where_a_handshake_was_agreed_on_reaches_nobody() {
    let (primary, port) = listening();
    let authority = Authority::new();
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let proxy = Configured::start(&config_at(port, &listener, ""));
    // All at once, and in two reads, the first of which could be the beginning of anything.
    for first in [0, 1, 5] {
        let mut stream = open(proxy.process.address());
        stream.set_nodelay(true).unwrap();
        stream.write_all(&SSL_REQUEST).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"S");
        let startup = wire::startup(STARTUP);
        for piece in [&startup[..first], &startup[first..]] {
            // It may be closed by then.
            let _ = stream.write_all(piece);
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        // At most TLS's own alert: no answer to the startup packet, in clear.
        assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
    }
    assert!(primary.accept().is_err());
}

/// A primary that answers each first message so; what each connection sent it.
fn answering(answer: &[u8]) -> (u16, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, heard) = std::sync::mpsc::channel();
    let answer = answer.to_vec();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut first = [0; 1024];
            let length = stream.read(&mut first).unwrap_or(0);
            let mut all = first[..length].to_vec();
            let _ = stream.write_all(&answer);
            let _ = stream.read_to_end(&mut all);
            let _ = sender.send(all);
        }
    });
    (port, heard)
}

#[test]
fn a_primary_with_bytes_behind_its_yes_to_tls_is_not_believed_and_hears_no_client() {
    // Somebody in between has put a login that succeeds behind the answer.
    let smuggled = [wire::message(b'R', &[0; 4]), wire::message(b'Z', b"I")].concat();
    let authority = Authority::new();
    let ca = authority.ca();
    for answer in [b"S", b"N"] {
        for mode in ["require", "verify-full"] {
            let (port, heard) = answering(&[&answer[..], &smuggled].concat());
            let tls = match mode {
                "require" => format!("tls = \"{mode}\""),
                _ => format!("tls = \"{mode}\"\ntls_ca = \"{}\"", ca.display()),
            };
            let proxy = Configured::start(&config_at(port, "", &tls));
            let mut stream = open(proxy.process.address());
            stream.write_all(&wire::startup(STARTUP)).unwrap();
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said);
            assert!(
                said.is_empty() || said[0] == b'E',
                "{mode}: {}",
                said.escape_ascii()
            );
            // Nothing of the client's went there unencrypted.
            assert_eq!(heard.recv_timeout(LIMIT).unwrap(), SSL_REQUEST, "{mode}");
        }
    }
}

#[test]
fn a_tls_hello_on_a_plain_listener_is_closed_and_reaches_nobody() {
    let (primary, port) = listening();
    let proxy = Configured::start(&config_at(port, "", ""));
    let mut stream = encrypt(
        open(proxy.process.address()),
        &Authority::new().ca(),
        Some(b"postgresql"),
    );
    assert!(stream.write_all(b"x").is_err());
    assert!(primary.accept().is_err());
}

#[test]
fn a_hundred_megabytes_cross_both_legs_in_both_directions() {
    let authority = Authority::new();
    let server = server(&[]);
    encrypt_postgres(&server, &authority.sign_local("server"));
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let proxy = Configured::start(&config(&server, &listener, "tls = \"require\""));
    let rows = "SELECT repeat(md5(i::text), 32) FROM generate_series(1, 100000) i";
    let through = good(psql(proxy.port(), "sslmode=require", rows));
    assert_eq!(through.len(), 100_000 * 1025 - 1);
    assert!(through == server.sql("postgres", rows).unwrap());

    server.sql("postgres", "CREATE TABLE t (v text)").unwrap();
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-c", "COPY t FROM STDIN"]);
    command.arg(format!(
        "host=127.0.0.1 port={} dbname=postgres user=postgres sslmode=require",
        proxy.port()
    ));
    support::run_ok(&mut command, format!("{through}\n").as_bytes(), LIMIT);
    let digest = "SELECT count(*), md5(string_agg(v, '' ORDER BY ctid)) FROM t";
    let wanted = format!(
        "SELECT count(*), md5(string_agg(v, '' ORDER BY i)) FROM (SELECT i, {} v FROM generate_series(1, 100000) i) x",
        "repeat(md5(i::text), 32)"
    );
    assert_eq!(
        server.sql("postgres", digest).unwrap(),
        server.sql("postgres", &wanted).unwrap()
    );
}

#[test]
fn a_client_that_does_not_read_holds_little_memory_under_tls() {
    let authority = Authority::new();
    let server = server(&[]);
    encrypt_postgres(&server, &authority.sign_local("server"));
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let proxy = Configured::start(&config(&server, &listener, "tls = \"require\""));
    let mut slow = ask_and_encrypt(proxy.process.address(), &authority.ca());
    slow.write_all(&wire::startup(STARTUP)).unwrap();
    until(&mut slow, b'Z').unwrap();
    let before = resident_kib(proxy.process.pid());
    let rows = "SELECT repeat('x', 1000000) FROM generate_series(1, 300)";
    slow.write_all(&wire::query(rows)).unwrap();
    // The proxy stops taking from the primary, which shows as a backend that waits for its client.
    let waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite'";
    let stalled = eventually(LIMIT, || {
        (server.sql("postgres", waits).unwrap() == "1").then_some(())
    });
    assert!(stalled.is_some());
    let grown = resident_kib(proxy.process.pid()).saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB for one client");
    // And it still gets all of it.
    let messages = until(&mut slow, b'Z').unwrap();
    assert_eq!(messages.iter().filter(|row| row[0] == b'D').count(), 300);
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_stream_that_is_cut_is_no_end_and_the_primary_commits_nothing_of_it() {
    let authority = Authority::new();
    let server = server(&[]);
    server.sql("postgres", "CREATE TABLE t (v text)").unwrap();
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let proxy = Configured::start(&config(&server, &listener, ""));
    let mut client = ask_and_encrypt(proxy.process.address(), &authority.ca());
    client.write_all(&wire::startup(STARTUP)).unwrap();
    until(&mut client, b'Z').unwrap();
    client.write_all(&wire::query("COPY t FROM STDIN")).unwrap();
    until(&mut client, b'G').unwrap();
    client.write_all(b"d\0\0\0\x06a\n").unwrap();
    client.sock.shutdown(std::net::Shutdown::Both).unwrap();
    drop(client);
    let gone = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%'";
    let ended = eventually(LIMIT, || {
        (server.sql("postgres", gone).unwrap() == "0").then_some(())
    });
    assert!(ended.is_some());
    let count = "SELECT count(*) FROM t";
    assert_eq!(server.sql("postgres", count).unwrap(), "0");
}

#[test]
fn cancels_and_mirrored_units_go_over_tls_too() {
    let authority = Authority::new();
    let server = server(&[("ann", UserAuth::Scram)]);
    for database in ["postgres", "twin"] {
        let table = "CREATE TABLE seen (v int, tls bool DEFAULT NULL); GRANT ALL ON seen TO ann";
        server.sql(database, table).unwrap();
    }
    encrypt_postgres(&server, &authority.sign_local("server"));
    let verified = format!(
        "tls = \"verify-full\"\ntls_ca = \"{}\"",
        authority.ca().display()
    );
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "secret").unwrap();
    let listener = listener_tls(&authority.sign_local("proxy"), None);
    let mirror = format!(
        "[[databases]]\nname = \"twin\"\nhost = \"localhost\"\nport = {}\nuser = \"ann\"\n\
         password_file = \"{}\"\n{verified}\n\
         [[mirroring]]\nsource_db = \"postgres\"\ndestination_db = \"twin\"\n",
        server.port(),
        secret.path().display()
    );
    let text = config(&server, &listener, &verified) + &mirror;
    let proxy = Configured::start(&text);
    let insert = "INSERT INTO seen SELECT 1, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    good(psql(proxy.port(), "sslmode=require", insert));
    for database in ["postgres", "twin"] {
        let seen = eventually(LIMIT, || {
            let seen = server.sql(database, "SELECT v, tls FROM seen").unwrap();
            (seen == "1|t").then_some(())
        });
        assert!(seen.is_some(), "{}", proxy.process.log().join("\n"));
    }

    let mut client = ask_and_encrypt(proxy.process.address(), &authority.ca());
    client.write_all(&wire::startup(STARTUP)).unwrap();
    let login = until(&mut client, b'Z').unwrap();
    let key = login.iter().find(|message| message[0] == b'K').unwrap();
    client
        .write_all(&wire::query("SELECT pg_sleep(60)"))
        .unwrap();
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually(LIMIT, || {
        (server.sql("postgres", sleeping).unwrap() != "0").then_some(())
    });
    let mut cancel = ask_and_encrypt(proxy.process.address(), &authority.ca());
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46], &key[5..13]].concat();
    cancel.write_all(&request).unwrap();
    let messages = until(&mut client, b'Z').unwrap();
    assert!(text_of(&messages).contains("57014"));
}

fn text_of(messages: &[Vec<u8>]) -> String {
    text(&messages.concat())
}
