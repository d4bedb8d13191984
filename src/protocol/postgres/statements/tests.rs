use std::borrow::Cow;

use super::*;
use crate::protocol::postgres::startup::push_message;
use crate::protocol::postgres::tracker::TxStatus;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    push_message(&mut out, tag, body);
    out
}

fn done(cycle: u64, had_error: bool, answered: u32) -> CycleDone {
    CycleDone {
        cycle,
        status: TxStatus::Idle,
        had_error,
        answered,
        unfinished: 0,
    }
}

fn observed(statements: &mut ClientStatements, name: &[u8], sql: &str, cycle: u64) {
    let body = [name, b"\0", sql.as_bytes(), b"\0\0\0"].concat();
    statements.observe(
        &Named::Parse {
            name,
            body: Some(&body),
            ordinal: 0,
        },
        cycle,
    );
}

#[test]
fn a_bind_to_an_older_statement_is_prepared_first_and_renamed() {
    let mut client = ClientStatements::default();
    observed(&mut client, b"s1", "select $1", 1);
    client.settle(&done(1, false, 1));
    let unit = [
        message(b'B', b"p\0s1\0rest"),
        message(b'E', b"p\0\0\0\0\0"),
        message(b'S', b""),
    ]
    .concat();
    let mut conn = ConnStatements::default();
    let id = client.get(b"s1").unwrap().id;
    let first = rewrite_unit(&unit, &client.snapshot(), &conn).unwrap();
    let name = mirror_name(id);
    let expected = [
        message(b'B', format!("p\0{name}\0rest").as_bytes()),
        message(b'E', b"p\0\0\0\0\0"),
        message(b'S', b""),
    ];
    assert_eq!(first.bytes, expected.concat());
    let prepare = [
        message(b'C', format!("S{name}\0").as_bytes()),
        message(b'P', format!("{name}\0select $1\0\0\0").as_bytes()),
        message(b'S', b""),
    ];
    assert_eq!(first.prepare_first, prepare.concat());
    conn.settle(&first, false);
    assert!(
        rewrite_unit(&unit, &client.snapshot(), &conn)
            .unwrap()
            .prepare_first
            .is_empty()
    );
    conn.settle(&first, true);
    assert!(!conn.has(id));
}

#[test]
fn an_unnamed_statement_of_an_earlier_unit_is_bound_by_its_content() {
    let mut client = ClientStatements::default();
    observed(&mut client, b"", "select 7 order by 1", 1);
    assert!(client.get(b"").unwrap().ordered);
    let unit = [message(b'B', b"\0\0rest"), message(b'S', b"")].concat();
    let conn = ConnStatements::default();
    let rewritten = rewrite_unit(&unit, &client.snapshot(), &conn).unwrap();
    let name = mirror_name(client.get(b"").unwrap().id);
    let bind = message(b'B', format!("\0{name}\0rest").as_bytes());
    assert!(rewritten.bytes.starts_with(&bind) && !rewritten.prepare_first.is_empty());
}

#[test]
fn a_unit_without_named_statements_is_not_copied() {
    let unit = [
        message(b'P', b"\0select 1\0\0\0"),
        message(b'B', b"\0\0"),
        message(b'S', b""),
    ]
    .concat();
    let rewritten = rewrite_unit(&unit, &Snapshot::default(), &ConnStatements::default()).unwrap();
    assert!(matches!(rewritten.bytes, Cow::Borrowed(_)) && !rewritten.unknown);
}

#[test]
fn a_statement_parsed_in_the_unit_goes_before_an_older_one_of_its_name() {
    let mut client = ClientStatements::default();
    observed(&mut client, b"s", "select 1", 1);
    let unit = [
        message(b'C', b"Ss\0"),
        message(b'P', b"s\0select 2\0\0\0"),
        message(b'D', b"Ss\0"),
        message(b'S', b""),
    ]
    .concat();
    let conn = ConnStatements::default();
    let rewritten = rewrite_unit(&unit, &client.snapshot(), &conn).unwrap();
    let name = mirror_name(xxh3_128(b"select 2\0\0\0"));
    let describe = message(b'D', format!("S{name}\0").as_bytes());
    assert!(
        rewritten
            .bytes
            .windows(describe.len())
            .any(|w| w == describe)
    );
    assert!(rewritten.prepare_first.is_empty());
    assert!(rewritten.bytes.starts_with(&message(b'C', b"Ss\0")));
}

#[test]
fn a_refused_parse_leaves_the_older_statement() {
    let mut client = ClientStatements::default();
    observed(&mut client, b"s", "select 1", 1);
    client.settle(&done(1, false, 1));
    let before = client.get(b"s").unwrap().id;
    observed(&mut client, b"s", "select 2", 2);
    assert_ne!(client.get(b"s").unwrap().id, before);
    client.settle(&done(2, true, 0));
    assert_eq!(client.get(b"s").unwrap().id, before);
    observed(&mut client, b"t", "selekt", 3);
    client.settle(&done(3, true, 0));
    assert!(client.get(b"t").is_none());
}

#[test]
fn memory_is_bounded_and_unknown_names_are_told() {
    let mut client = ClientStatements::default();
    for n in 0..5000u64 {
        observed(&mut client, format!("s{n}").as_bytes(), &"x".repeat(600), n);
    }
    assert!(client.bytes() <= CLIENT_STATEMENT_BYTES_MAX + 8);
    assert!(client.snapshot().names.len() <= CLIENT_STATEMENTS_MAX && client.lost() > 0);
    let unit = message(b'B', b"\0s4999\0");
    let conn = ConnStatements::default();
    assert!(
        rewrite_unit(&unit, &client.snapshot(), &conn)
            .unwrap()
            .unknown
    );
}

#[test]
fn a_connection_keeps_a_bounded_number_of_statements() {
    let mut conn = ConnStatements::default();
    for n in 0..CONN_STATEMENTS_MAX + 50 {
        let unit = message(b'P', format!("s\0select {n}\0\0\0").as_bytes());
        let rewritten = rewrite_unit(&unit, &Snapshot::default(), &conn).unwrap();
        conn.settle(&rewritten, false);
    }
    assert_eq!(conn.have.len(), CONN_STATEMENTS_MAX);
}

#[test]
fn the_name_on_the_mirror_is_appended_as_it_is_shown() {
    for id in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210] {
        let mut out = b"x".to_vec();
        push_mirror_name(&mut out, id);
        assert_eq!(out, format!("x{}", mirror_name(id)).as_bytes());
        assert_eq!(out.len(), 1 + MIRROR_NAME_LEN);
    }
}
