//! `auth = "terminate"`: the proxy checks the client and logs in to the primary itself.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use parhelion::testing::servers::{PostgresOptions, UserAuth};
use parhelion::testing::wait::eventually;
use support::pg::{PgClient, show, wire};
use support::pg_front::{Front, FrontOptions, PASSWORD, SHOP, role, user};
use support::pg_pair::{ok, rows, sqlstate};

const TIMEOUT: Duration = Duration::from_secs(30);

/// psql through the proxy, with a right and a wrong password.
fn lets_in(front: &Front, who: &str) {
    assert_eq!(
        front.psql(who, PASSWORD, "SELECT current_user"),
        Ok(who.into())
    );
    let error = front.psql(who, "wrong", "SELECT 1").unwrap_err();
    let wanted = format!("FATAL:  password authentication failed for user \"{who}\"");
    assert!(error.contains(&wanted), "{error}");
}

#[test]
fn scram_md5_and_cleartext_are_checked_here_whatever_the_primary_asks_for() {
    let primary_asks = [
        ("ann", UserAuth::Scram),
        ("bob", UserAuth::Md5),
        ("cid", UserAuth::Password),
        ("dan", UserAuth::Trust),
    ];
    for method in ["scram-sha-256", "md5", "password"] {
        let proof = format!("password = \"{PASSWORD}\"");
        let front = Front::start(FrontOptions {
            database: format!("auth = \"terminate\"\nauth_method = \"{method}\""),
            users: primary_asks.map(|(name, _)| user(name, &proof)).concat(),
            server: PostgresOptions {
                users: primary_asks.map(|(name, auth)| role(name, auth)).into(),
                ..PostgresOptions::default()
            },
            ..FrontOptions::default()
        });
        for (name, _) in primary_asks {
            lets_in(&front, name);
        }
        let log = front.proxy.log().join("\n");
        assert!(!log.contains(PASSWORD), "{log}");
    }
}

#[test]
fn a_stored_verifier_is_enough_to_check_by_and_another_login_serves() {
    let server = PostgresOptions {
        users: vec![role("eve", UserAuth::Scram)],
        databases: vec![SHOP.into()],
        ..PostgresOptions::default()
    };
    let server = parhelion::testing::servers::PostgresServer::start(server).unwrap();
    let verifier = server
        .sql(
            "postgres",
            "SELECT rolpassword FROM pg_authid WHERE rolname = 'eve'",
        )
        .unwrap();
    let front = Front::before(
        server,
        FrontOptions {
            database: "auth = \"terminate\"\nuser = \"postgres\"".into(),
            users: user("eve", &format!("scram_verifier = \"{verifier}\"")),
            ..FrontOptions::default()
        },
    );
    let who = front.psql("eve", PASSWORD, "SELECT current_user");
    assert_eq!(who, Ok("postgres".into()));
    let error = front.psql("eve", "wrong", "SELECT 1").unwrap_err();
    assert!(
        error.contains("password authentication failed for user \"eve\""),
        "{error}"
    );
    assert!(!front.proxy.log().join("\n").contains(&verifier));
}

#[test]
fn an_unknown_user_meets_the_same_exchange_with_a_stable_salt_and_no_attempt_reaches_the_primary() {
    let front = Front::start(FrontOptions::terminate(""));
    let error = front.psql("nobody", PASSWORD, "SELECT 1").unwrap_err();
    assert!(
        error.contains("password authentication failed for user \"nobody\""),
        "{error}"
    );
    let server_first = |user: &str| {
        let mut client = PgClient::open(front.proxy.address());
        client.send(&wire::startup(&[("user", user), ("database", SHOP)]));
        assert_eq!(client.message()[5..9], [0, 0, 0, 10]);
        let first = b"n,,n=,r=clientnonce";
        let mut body = b"SCRAM-SHA-256\0".to_vec();
        body.extend(u32::try_from(first.len()).unwrap().to_be_bytes());
        body.extend(first);
        client.send(&wire::message(b'p', &body));
        let text = String::from_utf8(client.message()[9..].to_vec()).unwrap();
        text.split_once(",s=").unwrap().1.to_owned()
    };
    assert_eq!(server_first("nobody"), server_first("nobody"));
    assert_ne!(server_first("nobody"), server_first("nobody2"));
    assert_eq!(server_first("ann"), server_first("ann"));
    assert_eq!(server_first("ann").len(), server_first("nobody").len());
    let log = front.server.log().unwrap();
    assert!(!log.contains("authentication failed"), "{log}");
}

#[test]
fn what_the_startup_packet_asks_for_reaches_the_primary() {
    for mode in ["session", "transaction"] {
        let mut options = FrontOptions::pooled(2);
        options.database = options
            .database
            .replace("\"transaction\"", &format!("\"{mode}\""));
        let front = Front::start(options);
        let mut client = front.client_with(&[
            ("application_name", "till"),
            ("TimeZone", "Asia/Tokyo"),
            ("client_encoding", "LATIN1"),
            ("options", "-c search_path=aisle -c work_mem=7MB"),
        ]);
        let names = [
            "application_name",
            "timezone",
            "client_encoding",
            "search_path",
            "work_mem",
        ];
        let values = names.map(|name| ok(&mut client, &format!("SHOW {name}")).remove(0));
        assert_eq!(
            values,
            ["till", "Asia/Tokyo", "LATIN1", "aisle", "7MB"],
            "{mode}"
        );
        // What cannot be had is refused in the primary's own words.
        let mut client = PgClient::open(front.proxy.address());
        client.send(&wire::startup(&[
            ("user", "postgres"),
            ("database", SHOP),
            ("options", "-c work_mem=much"),
        ]));
        let answer = client.until_ready();
        assert_eq!(
            sqlstate(&answer).as_deref(),
            Some("22023"),
            "{mode}: {}",
            show(&answer)
        );
    }
}

#[test]
fn a_login_is_welcomed_with_what_a_direct_one_is_welcomed_with() {
    for mode in ["session", "transaction"] {
        let mut options = FrontOptions::pooled(2);
        options.database = options
            .database
            .replace("\"transaction\"", &format!("\"{mode}\""));
        let front = Front::start(options);
        let (_, direct) = PgClient::connect(front.server.address(), SHOP);
        let (_, proxied) = PgClient::connect(front.proxy.address(), SHOP);
        assert_eq!(show(&direct), show(&proxied), "{mode}");
    }
}

#[test]
fn the_primarys_refusals_are_told_without_the_proxys_own_secrets() {
    let options = FrontOptions {
        database: "auth = \"terminate\"\ndatabase_name = \"nowhere\"".into(),
        ..FrontOptions::terminate("")
    };
    let front = Front::start(options);
    let error = front.psql("ann", PASSWORD, "SELECT 1").unwrap_err();
    assert!(
        error.contains("FATAL:  database \"nowhere\" does not exist"),
        "{error}"
    );
    // The primary's password is another one by now.
    let front = Front::start(FrontOptions::terminate(""));
    front
        .server
        .sql("postgres", "ALTER ROLE ann PASSWORD 'changed'")
        .unwrap();
    let error = front.psql("ann", PASSWORD, "SELECT 1").unwrap_err();
    assert!(error.contains("the primary refuses the login"), "{error}");
    assert!(!front.proxy.log().join("\n").contains(PASSWORD));
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_login_leaves_nothing_behind() {
    let front = Front::start(FrontOptions::terminate(""));
    for _ in 0..50 {
        let mut client = PgClient::open(front.proxy.address());
        client.send(&wire::startup(&[("user", "ann"), ("database", SHOP)]));
        client.message();
    }
    assert_eq!(front.psql("ann", PASSWORD, "SELECT 1"), Ok("1".into()));
    let active = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'ann'";
    let left = eventually(TIMEOUT, || {
        (front.server.sql(SHOP, active).unwrap() == "0").then_some(())
    });
    assert!(left.is_some());
}

#[test]
fn protocol_3_2_gets_a_long_cancel_key_and_newer_ones_are_negotiated_down() {
    let front = Front::start(FrontOptions::pooled(2));
    let login = |version: u32, more: &[(&str, &str)]| {
        let mut packet =
            wire::startup(&[&[("user", "postgres"), ("database", SHOP)], more].concat());
        packet[4..8].copy_from_slice(&version.to_be_bytes());
        let mut client = PgClient::open(front.proxy.address());
        client.send(&packet);
        let answer = client.until_ready();
        (client, answer)
    };
    let (client, answer) = login(3 << 16, &[]);
    assert_eq!((client.key.len(), answer[0][0]), (4, b'R'));
    let (client, answer) = login(3 << 16 | 2, &[]);
    assert_eq!((client.key.len(), answer[0][0]), (32, b'R'));
    let (client, answer) = login(3 << 16 | 9999, &[("_pq_.wishes", "1")]);
    assert_eq!(client.key.len(), 32);
    assert_eq!(answer[0], b"v\0\0\0\x18\0\x03\0\x02\0\0\0\x01_pq_.wishes\0");
}

#[test]
fn a_session_of_its_own_can_be_cancelled_and_replicated_from() {
    let front = Front::start(FrontOptions {
        database: "auth = \"terminate\"\nauth_method = \"trust\"\nuser = \"postgres\"".into(),
        ..FrontOptions::default()
    });
    let mut client = front.client();
    client.send(&wire::query("SELECT pg_sleep(60)"));
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'";
    let seen = eventually(TIMEOUT, || {
        (front.server.sql(SHOP, running).unwrap() == "1").then_some(())
    });
    assert!(seen.is_some());
    let mut canceller = PgClient::open(front.proxy.address());
    canceller.send(&wire::cancel(client.pid, &client.key));
    assert_eq!(sqlstate(&client.until_ready()).as_deref(), Some("57014"));
    let mut replica = front.client_with(&[("replication", "true")]);
    let answer = replica.query("IDENTIFY_SYSTEM");
    assert_eq!(rows(&answer).len(), 1, "{}", show(&answer));
}
