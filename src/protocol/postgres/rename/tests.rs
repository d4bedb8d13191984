use super::*;
use crate::protocol::postgres::startup::{push_message, split_cstr};
use crate::protocol::postgres::statements::{CONN_STATEMENTS_MAX, mirror_name};
use crate::protocol::postgres::tracker::STATEMENT_CAPTURE_MAX;
use xxhash_rust::xxh3::xxh3_128;

#[derive(Default)]
struct Client {
    names: ClientStatements,
    renamer: Renamer,
    cycle: u64,
    transaction: Transaction,
}

impl Client {
    /// Sends one message in parts of `size`; returns what the server gets.
    fn send(
        &mut self,
        server: &mut ServerStatements,
        tag: u8,
        body: &[u8],
        size: usize,
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_message(&mut bytes, tag, body);
        let mut sent = Vec::new();
        let parts: Vec<&[u8]> = bytes.chunks(size).collect();
        for (at, part) in parts.iter().enumerate() {
            let last = at + 1 == parts.len();
            let ordinal = 0;
            let named = match tag {
                b'P' => Some(Named::Parse {
                    name: split_cstr(body).unwrap().0,
                    body: (body.len() <= STATEMENT_CAPTURE_MAX).then_some(body),
                    ordinal,
                }),
                b'Q' => Some(Named::Query { ordinal }),
                b'B' => {
                    let (_, rest) = split_cstr(body).unwrap();
                    let (name, _) = split_cstr(rest).unwrap();
                    Some(Named::Bind { name, ordinal })
                }
                _ => None,
            };
            if let Some(named) = named.filter(|_| last) {
                let names = &mut self.names;
                self.renamer.named(&named, self.cycle, names);
            }
            let part = Part {
                tag,
                bytes: part,
                first: at == 0,
                last,
            };
            let step =
                self.renamer
                    .client(part, &mut self.names, self.transaction, server, &mut sent);
            match step {
                Step::Pass => sent.extend_from_slice(part.bytes),
                Step::Replaced => {}
                Step::TooLong => panic!("too long"),
            }
            server.sent(self.cycle);
        }
        sent
    }
    /// Sends one message whole; returns the types of what the server gets.
    fn sends(&mut self, server: &mut ServerStatements, tag: u8, body: &[u8]) -> String {
        tags(&self.send(server, tag, body, usize::MAX))
    }
}

/// The types of messages.
fn tags(mut bytes: &[u8]) -> String {
    let mut out = String::new();
    while let Some((head, _)) = bytes.split_first_chunk::<5>() {
        out.push(head[0] as char);
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        bytes = &bytes[len + 1..];
    }
    out
}

const PARSE: &[u8] = b"s1\0SELECT 1\0\0\0";
const BIND: &[u8] = b"\0s1\0\0\0\0\0\0\0";
const PARSE_UNNAMED: &[u8] = b"\0SELECT 1\0\0\0";
const BIND_UNNAMED: &[u8] = b"\0\0\0\0\0\0\0\0";

/// The name on a connection of what [`PARSE`] prepares.
fn name_there() -> String {
    mirror_name(xxh3_128(b"SELECT 1\0\0\0"))
}

/// A client that has prepared [`PARSE`], and the connection that it gave back then.
fn prepared() -> (Client, ServerStatements) {
    let (mut client, mut server): (Client, ServerStatements) = Default::default();
    assert_eq!(client.sends(&mut server, b'P', PARSE), "CP");
    let replies = [b'3', b'1'].map(|tag| server.reply(tag));
    assert_eq!(replies, [Reply::Drop, Reply::Pass]);
    server.released();
    (client, server)
}

#[test]
fn a_statement_follows_its_client_to_another_connection_however_its_bytes_are_cut() {
    for size in [1, 3, 1000] {
        let (mut client, mut a, mut b): (Client, ServerStatements, ServerStatements) =
            Default::default();
        assert_eq!(tags(&client.send(&mut a, b'P', PARSE, size)), "CP");
        assert_eq!((a.reply(b'3'), a.reply(b'1')), (Reply::Drop, Reply::Pass));
        let bind = client.send(&mut a, b'B', BIND, size);
        let mut wanted = Vec::new();
        let body = [b"\0", name_there().as_bytes(), b"\0\0\0\0\0\0\0"].concat();
        push_message(&mut wanted, b'B', &body);
        assert_eq!(bind, wanted);
        assert_eq!(tags(&client.send(&mut b, b'B', BIND, size)), "CPB");
        let replies = [b'3', b'1', b'2'].map(|tag| b.reply(tag));
        assert_eq!(replies, [Reply::Drop, Reply::Drop, Reply::Pass]);
        assert_eq!(tags(&client.send(&mut b, b'B', BIND, size)), "B");
    }
}

#[test]
fn an_equal_statement_of_another_client_is_not_parsed_again() {
    let (_, mut server) = prepared();
    assert_eq!(Client::default().sends(&mut server, b'P', PARSE), "C");
    assert_eq!(server.reply(b'3'), Reply::As(b'1'));
}

#[test]
fn what_failed_is_prepared_anew() {
    let (mut client, mut server): (Client, ServerStatements) = Default::default();
    client.cycle = 1;
    client.sends(&mut server, b'P', PARSE);
    server.cycle_done(1, true);
    assert_eq!(server.reply(b'3'), Reply::Pass, "nothing is awaited");
    assert_eq!(client.sends(&mut server, b'B', BIND), "CPB");
}

#[test]
fn what_was_closed_for_a_parse_that_failed_is_prepared_anew() {
    let (mut one, mut server) = prepared();
    let mut two = Client {
        transaction: Transaction::Failed,
        ..Client::default()
    };
    assert_eq!(two.sends(&mut server, b'P', PARSE), "CP");
    assert_eq!(server.reply(b'3'), Reply::Drop);
    server.cycle_done(0, true);
    server.released();
    assert_eq!(one.sends(&mut server, b'B', BIND), "CPB");
}

#[test]
fn a_name_that_is_taken_is_parsed_under_the_name_that_is_taken() {
    let (mut client, mut server): (Client, ServerStatements) = Default::default();
    client.sends(&mut server, b'P', PARSE);
    let sent = client.send(&mut server, b'P', b"s1\0SELECT 2\0\0\0", 99);
    assert_eq!(tags(&sent), "P");
    assert!(sent[5..].starts_with(name_there().as_bytes()));
}

#[test]
fn the_unnamed_statement_is_carried_too_and_a_query_ends_it() {
    let (mut client, mut a, mut b): (Client, ServerStatements, ServerStatements) =
        Default::default();
    let parse = client.send(&mut a, b'P', PARSE_UNNAMED, 2);
    assert_eq!(tags(&parse), "P");
    assert_eq!(client.sends(&mut a, b'B', BIND_UNNAMED), "B");
    assert_eq!(client.sends(&mut b, b'B', BIND_UNNAMED), "PB");
    client.sends(&mut a, b'Q', b"SELECT 1\0");
    assert_eq!(client.sends(&mut a, b'B', BIND_UNNAMED), "CB");
}

#[test]
fn a_client_without_an_unnamed_statement_never_binds_another_clients() {
    let (mut one, mut two, mut server): (Client, Client, ServerStatements) = Default::default();
    one.sends(&mut server, b'P', PARSE_UNNAMED);
    assert_eq!(server.reply(b'1'), Reply::Pass);
    server.released();
    let sent = two.send(&mut server, b'B', BIND_UNNAMED, 99);
    assert_eq!((tags(&sent).as_str(), &sent[5..7]), ("CB", &b"S\0"[..]));
    assert_eq!(server.reply(b'3'), Reply::Drop);
    server.released();
    assert_eq!(two.sends(&mut server, b'D', b"S\0"), "CD");
}

#[test]
fn a_large_unnamed_statement_keeps_its_connection_until_it_is_bound() {
    let (mut client, mut server): (Client, ServerStatements) = Default::default();
    let body = [b"\0", &vec![b'x'; 4 * STATEMENT_CAPTURE_MAX][..], b"\0\0\0"].concat();
    client.send(&mut server, b'P', &body, 8192);
    assert!(client.renamer.awaits_bind());
    assert_eq!(client.sends(&mut server, b'B', BIND_UNNAMED), "B");
    assert!(!client.renamer.awaits_bind() && !client.renamer.take_pin());
    client.renamer.forget_large();
    server.released();
    assert_eq!(client.sends(&mut server, b'B', BIND_UNNAMED), "CB");
}

#[test]
fn a_prepared_deallocate_all_ends_itself_too() {
    let (mut client, mut server): (Client, ServerStatements) = Default::default();
    client.sends(&mut server, b'P', b"s1\0DEALLOCATE ALL\0\0\0");
    server.released();
    assert_eq!(client.sends(&mut server, b'B', BIND), "CPB");
    for tag in [b'3', b'1'] {
        server.reply(tag);
    }
    assert_eq!(server.certain().count(), 0);
    assert_eq!(client.sends(&mut server, b'B', BIND), "B");
}

#[test]
fn a_connection_keeps_a_bounded_number_of_statements() {
    let (mut client, mut server): (Client, ServerStatements) = Default::default();
    for number in 0..2 * CONN_STATEMENTS_MAX {
        let body = format!("n{number}\0SELECT {number}\0\0\0");
        let sent = client.sends(&mut server, b'P', body.as_bytes());
        let is_full = number >= CONN_STATEMENTS_MAX;
        assert_eq!(sent, if is_full { "CCP" } else { "CP" });
        for message in sent.chars() {
            server.reply(if message == 'C' { b'3' } else { b'1' });
        }
        client.sends(&mut server, b'S', b"");
    }
    assert_eq!(server.certain().count(), CONN_STATEMENTS_MAX);
}

#[test]
fn a_statement_too_large_to_carry_pins_and_is_not_held() {
    let (mut client, mut server): (Client, ServerStatements) = Default::default();
    let large = vec![b'x'; 4 * STATEMENT_CAPTURE_MAX];
    let body = [b"big\0", &large[..], b"\0\0\0"].concat();
    let sent = client.send(&mut server, b'P', &body, 8192);
    assert_eq!(sent.len(), body.len() + 5);
    assert!(client.renamer.take_pin() && client.renamer.held.is_empty());
}
