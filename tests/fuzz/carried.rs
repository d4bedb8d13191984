//! Targets for what is carried from a client to connections that it shares: statements by name, session state, pipelined
//! units, the check of its password, and what a dual write makes of a command.

use parhelion::mirror::dual::{keys, pubsub, repair};
use parhelion::protocol::postgres::auth::{Account, AuthProgress, AuthServer, Method, Nonces};
use parhelion::protocol::postgres::auth::{NONCE_LEN, Verifier};
use parhelion::protocol::postgres::framer::MessageFramer;
use parhelion::protocol::postgres::lexer::{Lexer, Token};
use parhelion::protocol::postgres::login::Secret;
use parhelion::protocol::postgres::mechanisms::MechanismFilter;
use parhelion::protocol::postgres::pipelined::PipelinedReplay;
use parhelion::protocol::postgres::queries::queries;
use parhelion::protocol::postgres::rename::{
    Part, Renamer, Reply as Fate, ServerStatements, Step, Transaction,
};
use parhelion::protocol::postgres::session::SessionState;
use parhelion::protocol::postgres::startup::StartupMessage;
use parhelion::protocol::postgres::statements::{
    CONN_STATEMENTS_MAX, ClientStatements, ConnStatements, rewrite_unit,
};
use parhelion::protocol::postgres::tracker::{ClientEvent, ServerEvent, Tracker};
use parhelion::protocol::postgres::{pinning, sql};
use parhelion::protocol::resp::effects::{self, Replay, Rewrite};
use parhelion::protocol::resp::reply::Reply;
use parhelion::protocol::resp::{ReplyFramer, Request, command};

use super::{halves, reads};

/// A mirror that answers anything at all to units that were pipelined: each unit is given out once, however it is cut.
pub fn pg_pipeline(data: &[u8]) {
    let Some((&count, data)) = data.split_first() else {
        return;
    };
    let units = usize::from(count % 9);
    let answered = |reads: &mut dyn Iterator<Item = &[u8]>| {
        let mut replay = PipelinedReplay::new(true);
        for unit in 0..units {
            let bytes: &[u8] = match (usize::from(count) + unit) % 3 {
                0 => b"Q\0\0\0\x0dSELECT 1\0",
                1 => b"P\0\0\0\x10\0SELECT 2\0\0\0B\0\0\0\x0c\0\0\0\0\0\0\0\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04",
                _ => b"Q\0\0\0\x17SELECT 1; SELECT 2\0",
            };
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            for part in [head, tail] {
                replay.sent(part).expect("a unit of our own");
            }
            replay.end_unit();
        }
        let mut done = Vec::new();
        for read in reads {
            let result = replay.receive(read, 1);
            while let Some(outcome) = replay.next_done() {
                done.push(format!("{:?} {:?}", outcome.statements(), outcome.status));
            }
            assert_eq!(done.len() + replay.outstanding(), units);
            if let Err(error) = result {
                return (done, Some(error));
            }
        }
        (done, None)
    };
    let whole = data.get(1..).unwrap_or_default();
    let (all, error) = answered(&mut std::iter::once(whole));
    let (cut, cut_error) = answered(&mut reads(data));
    assert_eq!(error, cut_error);
    // What stands behind a failure in the same read has been read too.
    assert!(all.starts_with(&cut) && (error.is_some() || all == cut));
}

/// The statements of a client, and a unit that uses them: what runs is found where it is, and a connection that has been
/// prepared for the unit needs nothing the second time.
pub fn pg_queries(data: &[u8]) {
    let (before, unit) = halves(data);
    let mut names = ClientStatements::default();
    let mut tracker = Tracker::new_ready();
    let _ = tracker.client(before, &mut |event| {
        if let ClientEvent::Named { cycle, named } = event {
            names.observe(&named, cycle);
        }
    });
    let names = names.snapshot();
    let found = queries(unit, &names);
    let mut conn = ConnStatements::default();
    let Ok(first) = rewrite_unit(unit, &names, &conn) else {
        assert!(found.is_none(), "what cannot be framed has queries");
        return;
    };
    let mut last = None;
    for query in found.iter().flatten() {
        assert!(query.offset < unit.len() && query.statements > 0);
        assert!(last < Some(query.offset), "out of order");
        last = Some(query.offset);
        let (hash, text) = sql::fingerprint(query.sql);
        assert_eq!(hash, sql::fingerprint_hash(query.sql));
        assert!(text.len() <= 3 * query.sql.len().max(1) + 64);
        // The same message stands at the rewritten place.
        let at = first.offset(query.offset);
        assert_eq!(first.bytes.get(at), unit.get(query.offset));
    }
    conn.settle(&first, false);
    let again = rewrite_unit(unit, &names, &conn).expect("it was framed before");
    if unit.len() < 8 * CONN_STATEMENTS_MAX {
        assert!(again.prepare_first.is_empty(), "prepared twice");
    }
    assert_eq!(first.bytes, again.bytes);
    assert_eq!(first.unknown, again.unknown);
}

/// Both streams of a client that shares its connection: what goes to the server are whole messages of known length, the
/// same however the client's bytes are cut; whatever the server answers is taken or refused.
pub fn pg_pooled(data: &[u8]) {
    let (client, server) = halves(data);
    let whole = client.get(1..).unwrap_or_default();
    let cut = Shared::sent(&mut reads(client));
    let mut shared = Shared::sent(&mut std::iter::once(whole));
    // Of a read that is refused, what stands before the violation may have gone or not.
    assert_eq!(shared.refused, cut.refused);
    assert!(cut.out.starts_with(&shared.out));
    assert!(shared.refused || shared.out == cut.out);
    let mut framer = MessageFramer::client();
    let mut rest = &shared.out[..];
    while !rest.is_empty() {
        let advance = framer.advance(rest).expect("a message of our own making");
        rest = &rest[advance.consumed..];
    }
    if !shared.from_client.in_message() && !shared.refused {
        assert!(
            !framer.in_message(),
            "the server waits for bytes that the client sent"
        );
    }
    for read in reads(server) {
        if !shared.receive(read) {
            break;
        }
    }
    shared.statements.released();
}

/// One client on one shared connection, as `proxy::postgres::pooled` drives the parts.
struct Shared {
    tracker: Tracker,
    names: ClientStatements,
    renamer: Renamer,
    statements: ServerStatements,
    from_client: MessageFramer,
    from_server: MessageFramer,
    fate: Fate,
    out: Vec<u8>,
    refused: bool,
}

impl Shared {
    fn sent(reads: &mut dyn Iterator<Item = &[u8]>) -> Shared {
        let mut shared = Shared {
            tracker: Tracker::new_ready(),
            names: ClientStatements::default(),
            renamer: Renamer::default(),
            statements: ServerStatements::default(),
            from_client: MessageFramer::client(),
            from_server: MessageFramer::server(),
            fate: Fate::Pass,
            out: Vec::new(),
            refused: false,
        };
        for read in reads {
            if !shared.send(read) {
                shared.refused = true;
                break;
            }
        }
        shared
    }

    fn send(&mut self, read: &[u8]) -> bool {
        let mut at = 0;
        while at < read.len() {
            let first = !self.from_client.in_message();
            let Ok(advance) = self.from_client.advance(&read[at..]) else {
                return false;
            };
            let piece = &read[at..at + advance.consumed];
            at += advance.consumed;
            let tag = self.from_client.tag().unwrap_or_default();
            let (names, statements) = (&mut self.names, &mut self.statements);
            let renamer = &mut self.renamer;
            let followed = self.tracker.client(piece, &mut |event| match event {
                ClientEvent::Statement { text, .. } => {
                    renamer.statement(&text, sql::classify(text.sql), statements);
                    let _ = (pinning::pins(text.sql), pinning::Reset::of(text.sql));
                }
                ClientEvent::Named { cycle, named } => {
                    renamer.named(&named, cycle, names);
                }
                _ => {}
            });
            if followed.is_err() {
                return false;
            }
            let part = Part {
                tag,
                bytes: piece,
                first,
                last: advance.done,
            };
            let transaction = Transaction::of(&self.tracker);
            let step = self.renamer.client(
                part,
                &mut self.names,
                transaction,
                &mut self.statements,
                &mut self.out,
            );
            self.statements.sent(self.tracker.newest_cycle());
            match step {
                Step::Pass => self.out.extend_from_slice(piece),
                Step::Replaced => {}
                Step::TooLong => return false,
            }
        }
        true
    }

    fn receive(&mut self, read: &[u8]) -> bool {
        let mut at = 0;
        while at < read.len() {
            let first = !self.from_server.in_message();
            let Ok(advance) = self.from_server.advance(&read[at..]) else {
                return false;
            };
            let piece = &read[at..at + advance.consumed];
            at += advance.consumed;
            if first {
                self.fate = self
                    .statements
                    .reply(self.from_server.tag().unwrap_or_default());
            }
            let other = match self.fate {
                Fate::As(other) if advance.done => [other, 0, 0, 0, 4],
                Fate::Pass => [0; 5],
                _ => continue,
            };
            let bytes = if self.fate == Fate::Pass {
                piece
            } else {
                &other
            };
            let (names, statements) = (&mut self.names, &mut self.statements);
            let followed = self.tracker.server(bytes, &mut |event| {
                if let ServerEvent::CycleDone(done) = event {
                    statements.cycle_done(done.cycle, done.had_error);
                    names.settle(&done);
                }
            });
            if followed.is_err() {
                return false;
            }
        }
        true
    }
}

/// What a session is brought over with takes effect once, and no value gets out of its quotes.
pub fn pg_state(data: &[u8]) {
    let (options, script) = halves(data);
    let mut startup = StartupMessage::new(b"ann", b"shop");
    for (at, value) in options.split(|byte| *byte == 0).take(4).enumerate() {
        let name: &[u8] = [
            &b"options"[..],
            b"application_name",
            b"my.Var",
            b"search_path",
        ][at];
        startup.set(name, value);
    }
    let mut want = SessionState::from_startup(&startup);
    for statement in want.diff(&SessionState::default()) {
        let ends = Lexer::new(&statement).filter(|token| *token == Token::Op(b';'));
        assert_eq!(ends.count(), 0, "a value is outside of its quotes");
    }
    for text in script.split(|byte| *byte == 0) {
        want.observe(text, 1);
        want.settle(1, text.len() % 3 != 0);
    }
    let mut have = SessionState::default();
    have.adopt(&want);
    assert!(want.diff(&have).is_empty(), "it is never there");
    let _ = SessionState::default().diff(&have);
    assert_eq!(want.scope(), have.scope());
}

/// A client that answers anything at all to the question for its password, by every method.
pub fn pg_auth(data: &[u8]) {
    let Some((&way, data)) = data.split_first() else {
        return;
    };
    let method =
        [Method::Trust, Method::Cleartext, Method::Md5, Method::Scram][usize::from(way % 4)];
    let verifier = Verifier::parse(
        "SCRAM-SHA-256$1:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
         AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    );
    let _ = Verifier::parse(&String::from_utf8_lossy(data));
    let account = Account {
        password: (way & 4 == 0).then(|| Secret::new("p")),
        verifier: verifier.expect("a verifier"),
    };
    let nonces = Nonces {
        scram: [b'n'; NONCE_LEN],
        md5_salt: [1; 4],
    };
    let mut out = Vec::new();
    let (mut server, progress) =
        AuthServer::begin(method, b"u", Some(account), nonces, &[7; 32], &mut out);
    if progress == AuthProgress::Continue {
        for read in reads(data) {
            out.clear();
            match server.receive(read, &mut out) {
                Ok(AuthProgress::Continue) => assert!(out.len() < 1 << 12),
                Ok(AuthProgress::Accepted { consumed }) => {
                    assert!(consumed <= read.len());
                    // A verifier of zeros fits no proof.
                    assert!(method != Method::Scram, "nobody knows the password");
                    break;
                }
                Err(error) => {
                    assert!(!error.response().is_empty());
                    break;
                }
            }
        }
    }
    let offered = |reads: &mut dyn Iterator<Item = &[u8]>| {
        let (mut filter, mut out) = (MechanismFilter::default(), Vec::new());
        reads.for_each(|read| filter.push(read, &mut out));
        (out, filter.is_done(), filter.took_plus())
    };
    let whole = data.get(1..).unwrap_or_default();
    let all = offered(&mut std::iter::once(whole));
    assert_eq!(all, offered(&mut reads(data)));
    assert!(all.0.len() <= whole.len());
}

/// What a dual write makes of a command and its reply: whole commands, as many as it says.
pub fn resp_dual(data: &[u8]) {
    let (request, reply) = halves(data);
    let parsed = Request::parse(request);
    let command = command::lookup_request(&parsed);
    let mut out = Rewrite::default();
    let replay = effects::effects(
        command,
        &parsed,
        Reply::parse(reply),
        1_700_000_000_000,
        &mut out,
    );
    match replay {
        Replay::Rewritten => {
            assert_eq!(keys::commands(&out.bytes).count(), out.expected.len());
            let len: usize = keys::commands(&out.bytes).map(<[u8]>::len).sum();
            assert_eq!(len, out.bytes.len());
        }
        _ => assert!(out.bytes.is_empty() && out.expected.is_empty()),
    }
    if let Some(soon) = effects::warmup(command, &parsed) {
        assert_eq!(keys::commands(&soon).count(), 1);
    }
    let mut named = 0;
    let _ = keys::visit(request, 0, |_, key| named += key.len());
    let _ = (repair::name_of(request), repair::is_foreign_format(reply));
    let _ = (repair::databases(reply), repair::run_id(reply));
    if let Some((cursor, names)) = repair::scanned(reply) {
        assert!(cursor.len() + names.map(<[u8]>::len).sum::<usize>() <= reply.len());
    }
    let mut matcher = pubsub::Matcher::new(1000);
    let (mut framer, mut rest, mut seen) = (ReplyFramer::new(1 << 20), reply, 0);
    while let Ok(advance) = framer.advance(rest) {
        if !advance.done || advance.consumed == 0 {
            break;
        }
        let side = [pubsub::Side::Primary, pubsub::Side::Secondary][seen % 2];
        matcher.see(side, &rest[..advance.consumed], seen as u64 * 100);
        seen += 1;
        assert!(matcher.pending() <= seen);
        rest = &rest[advance.consumed..];
    }
    while matcher.expired(u64::MAX).is_some() {}
    assert_eq!(matcher.pending(), 0);
}
