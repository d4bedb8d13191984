use super::*;

fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
    let mut out = (8 + rest.len() as u32).to_be_bytes().to_vec();
    out.extend(code.to_be_bytes());
    out.extend(rest);
    out
}

fn first(bytes: &[u8]) -> Result<First, StartupError> {
    parse_first(bytes).unwrap().map(|parsed| parsed.first)
}

#[test]
fn a_startup_packet_keeps_order_and_survives_a_round_trip() {
    let bytes = packet(
        3 << 16 | 2,
        b"user\0ann\0database\0shop\0options\0-c a=b\0\0",
    );
    for cut in 0..bytes.len() {
        assert_eq!(parse_first(&bytes[..cut]), None);
    }
    let First::Startup(mut startup) = first(&bytes).unwrap() else {
        panic!()
    };
    assert_eq!((startup.major, startup.minor), (3, 2));
    assert_eq!(startup.database(), b"shop");
    assert_eq!(startup.encode(), bytes);
    startup.set(b"database", b"twin");
    assert_eq!(
        startup.encode(),
        packet(
            3 << 16 | 2,
            b"user\0ann\0database\0twin\0options\0-c a=b\0\0"
        )
    );
}

#[test]
fn newer_versions_and_unknown_options_are_negotiated_down() {
    let negotiation = |minor: u32, params: &[u8]| {
        let First::Startup(startup) = first(&packet(3 << 16 | minor, params)).unwrap() else {
            panic!()
        };
        startup.negotiation()
    };
    assert_eq!(negotiation(0, b"user\0a\0\0"), None);
    assert_eq!(negotiation(2, b"user\0a\0\0"), None);
    assert_eq!(
        negotiation(9999, b"user\0a\0_pq_.x\x001\0\0").unwrap(),
        b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0"
    );
}

#[test]
fn the_database_defaults_to_the_user() {
    let bytes = packet(3 << 16, b"user\0ann\0\0");
    let First::Startup(startup) = first(&bytes).unwrap() else {
        panic!()
    };
    assert_eq!(startup.database(), b"ann");
}

#[test]
fn impossible_lengths_are_refused_with_four_bytes() {
    for len in [
        0u32,
        1,
        3,
        4,
        7,
        10_005,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
    ] {
        assert_eq!(
            parse_first(&len.to_be_bytes()),
            Some(Err(StartupError::BadLength)),
            "{len}"
        );
    }
    assert_eq!(parse_first(&10_004u32.to_be_bytes()), None);
}

#[test]
fn other_protocols_are_told_apart_and_refused() {
    assert_eq!(first(b"\x16\x03\x01\x02\x00"), Err(StartupError::DirectTls));
    assert_eq!(first(b"POST / HTTP/1.1"), Err(StartupError::Http));
    assert_eq!(first(b"PRI * HTTP/2.0"), Err(StartupError::Http));
    assert_eq!(first(b"Host: x"), Err(StartupError::BadLength));
    assert_eq!(StartupError::Http.response(), None);
}

#[test]
fn a_missing_terminator_a_missing_user_and_version_2_get_postgres_errors() {
    let error = first(&packet(3 << 16, b"user\0ann\0")).unwrap_err();
    assert_eq!(error, StartupError::NoTerminator);
    let text = error.response().unwrap();
    assert!(text.windows(5).any(|w| w == b"08P01"));
    assert_eq!(
        first(&packet(3 << 16, b"user\0ann\0\0x")),
        Err(StartupError::NoTerminator)
    );
    let Ok(First::Startup(nameless)) = first(&packet(3 << 16, b"a\0b\0\0")) else {
        panic!("a packet without a user is for the server to refuse");
    };
    assert_eq!(nameless.user(), None);
    assert_eq!(
        first(&packet(3 << 16, b"")),
        Err(StartupError::NoTerminator)
    );
    assert_eq!(
        first(&packet(2 << 16, b"\0")),
        Err(StartupError::UnsupportedProtocol { major: 2, minor: 0 })
    );
}

#[test]
fn cancel_keys_have_4_to_256_bytes() {
    for (len, good) in [
        (0, false),
        (3, false),
        (4, true),
        (32, true),
        (256, true),
        (257, false),
    ] {
        let mut rest = 77u32.to_be_bytes().to_vec();
        rest.extend(vec![9; len]);
        let bytes = packet(CODE_CANCEL, &rest);
        match first(&bytes) {
            Ok(First::Cancel(cancel)) => {
                assert!(good);
                assert_eq!((cancel.pid, cancel.key.len()), (77, len));
                assert_eq!(cancel.encode(), bytes);
            }
            other => assert!(!good && other == Err(StartupError::BadCancel), "{other:?}"),
        }
    }
}

#[test]
fn bytes_behind_an_ssl_request_show_in_consumed() {
    let mut bytes = encode_ssl_request().to_vec();
    bytes.extend(b"select");
    let parsed = parse_first(&bytes).unwrap().unwrap();
    assert_eq!((parsed.first, parsed.consumed), (First::SslRequest, 8));
}

#[test]
fn replication_is_seen_unless_it_is_a_false_word() {
    for (value, yes) in [
        ("true", true),
        ("database", true),
        ("1", true),
        ("f", false),
        ("off", false),
        ("0", false),
        ("No", false),
    ] {
        let mut startup = StartupMessage::new(b"u", b"d");
        startup.set(b"replication", value.as_bytes());
        assert_eq!(startup.is_replication(), yes, "{value}");
    }
}
