//! Prepared statements and settings of clients that share connections, against a connection of their own: the same scripts,
//! drawn from a seed, through the built proxy and directly. `PARHELION_POOL_SEEDS=200` for more than a few seeds.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use fastrand::Rng;
use support::pg::{PgClient, show, wire};
use support::pg_front::{Front, FrontOptions, SHOP};
use support::pg_pair::sqlstate;
use support::pool_script::{Texts, script};

const CLIENTS: usize = 4;
const CONNECTIONS: usize = 2;

/// The second column tells whose session it is.
const TEXTS: Texts = Texts {
    good: &[
        "select 1, current_setting('work_mem'), current_setting('lock_timeout')",
        "select 2, current_setting('work_mem'), current_setting('lock_timeout')",
        "select 3, current_setting('work_mem'), current_setting('lock_timeout')",
    ],
    bad: "selec",
    fails: "select 1/0",
    settings: ["work_mem", "lock_timeout"],
    undoes_settings: true,
};

/// A client of the pool and its twin.
struct Twins {
    pooled: PgClient,
    direct: PgClient,
    status: u8,
}

/// What must be alike: an error's text may name a statement as the server knows it.
fn alike(answer: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let answer = answer.into_iter().map(|message| match message[0] {
        b'E' => sqlstate(&[message]).unwrap().into_bytes(),
        _ => message,
    });
    answer.collect()
}

/// Every answer to so many cycles.
fn answers(client: &mut PgClient, cycles: usize) -> Vec<Vec<u8>> {
    let answers = (0..cycles).flat_map(|_| client.until_ready());
    alike(answers.collect())
}

/// How many ReadyForQuery the server answers with.
fn cycles(mut script: &[u8]) -> usize {
    let mut count = 0;
    while let Some((head, _)) = script.split_first_chunk::<5>() {
        count += usize::from(matches!(head[0], b'Q' | b'S'));
        script = &script[u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1..];
    }
    count
}

#[test]
fn clients_of_the_pool_are_answered_as_on_connections_of_their_own() {
    let front = Front::start(FrontOptions::pooled(CONNECTIONS));
    let seeds = std::env::var("PARHELION_POOL_SEEDS");
    let seeds = seeds.map_or(6, |text| text.parse().unwrap());
    let (mut exchanges, mut errors) = (0, 0_usize);
    for seed in 0..seeds {
        let mut rng = Rng::with_seed(seed);
        let mut twins: Vec<Twins> = (0..CLIENTS)
            .map(|_| Twins {
                pooled: front.client(),
                direct: PgClient::connect(front.server.address(), SHOP).0,
                status: b'I',
            })
            .collect();
        for step in 0..200 {
            let at = rng.usize(..CLIENTS);
            let held = twins.iter().filter(|twin| twin.status != b'I').count();
            let twin = &mut twins[at];
            if held == CONNECTIONS && twin.status == b'I' {
                // It would wait for a connection.
                continue;
            }
            let script = script(&TEXTS, &mut rng, twin.status != b'I');
            let count = cycles(&script);
            twin.direct.send(&script);
            let wanted = answers(&mut twin.direct, count);
            let size = rng.usize(1..200);
            twin.pooled.send_chunked(&script, || size);
            let got = answers(&mut twin.pooled, count);
            assert!(
                got == wanted,
                "seed {seed}, step {step}, client {at}: {}\n   is answered\n   {}\n   and directly\n   {}",
                script.escape_ascii(),
                show(&got),
                show(&wanted)
            );
            twin.status = *wanted.last().unwrap().last().unwrap();
            let codes = wanted
                .iter()
                .filter(|message| message.iter().all(u8::is_ascii_alphanumeric));
            errors += codes.count();
            exchanges += 1;
        }
        for twin in &mut twins {
            twin.pooled.send(&wire::terminate());
        }
    }
    println!("{exchanges} exchanges over {seeds} seeds, {errors} errors in them");
    assert!(exchanges > 100 * seeds && errors as u64 > 10 * seeds);
}

/// What the server skips behind an error is still as it was.
#[test]
fn a_close_that_the_server_skips_closes_nothing() {
    let front = Front::start(FrontOptions::pooled(1));
    let run = |name: &str| [wire::bind("", name, 0, &[], 0), wire::execute("", 0)].concat();
    let script = |client: &mut PgClient| {
        let mut ask = |messages: &[Vec<u8>]| {
            client.send(&[messages.concat(), wire::sync()].concat());
            alike(client.until_ready())
        };
        vec![
            ask(&[wire::parse("c", "select 7", &[])]),
            // The error comes first: the Close and the Parse behind it are skipped.
            ask(&[
                wire::parse("x", "selec", &[]),
                wire::close(b'S', "c"),
                wire::parse("c", "select 8", &[]),
            ]),
            ask(&[run("c")]),
            // Here it comes last: both have happened.
            ask(&[
                wire::close(b'S', "c"),
                wire::parse("c", "select 9", &[]),
                run("nobody's"),
            ]),
            ask(&[run("c")]),
            // The unnamed statement ends with a Parse that fails, and with a Query.
            ask(&[
                wire::parse("", "select 10", &[]),
                wire::parse("", "selec", &[]),
            ]),
            ask(&[run("")]),
            ask(&[wire::parse("", "select 11", &[])]),
            alike(client_query(client)),
        ]
    };
    fn client_query(client: &mut PgClient) -> Vec<Vec<u8>> {
        let mut answer = client.query("select 12");
        client.send(&[wire::bind("", "", 0, &[], 0), wire::sync()].concat());
        answer.extend(client.until_ready());
        answer
    }
    let direct = script(&mut PgClient::connect(front.server.address(), SHOP).0);
    let pooled = script(&mut front.client());
    for (step, (direct, pooled)) in direct.iter().zip(&pooled).enumerate() {
        assert_eq!(show(direct), show(pooled), "step {step}");
    }
}

#[test]
fn a_client_never_binds_the_unnamed_statement_of_another() {
    let front = Front::start(FrontOptions::pooled(1));
    let (mut one, mut two) = (front.client(), front.client());
    one.send(&[wire::parse("", "select 'secret'", &[]), wire::sync()].concat());
    one.until_ready();
    for ask in [
        wire::describe(b'S', ""),
        [wire::bind("", "", 0, &[], 0), wire::execute("", 0)].concat(),
    ] {
        two.send(&[ask, wire::sync()].concat());
        let answer = two.until_ready();
        assert_eq!(
            sqlstate(&answer).as_deref(),
            Some("26000"),
            "{}",
            show(&answer)
        );
    }
}

#[test]
fn a_large_unnamed_statement_is_bound_in_a_later_cycle() {
    let front = Front::start(FrontOptions::pooled(2));
    let mut client = front.client();
    let text = format!("select 5 /*{}*/", "x".repeat(1 << 20));
    for _ in 0..3 {
        let parse = [
            wire::parse("", &text, &[]),
            wire::describe(b'S', ""),
            wire::sync(),
        ];
        client.send(&parse.concat());
        client.until_ready();
        // Another client takes what is free meanwhile.
        let mut other = front.client();
        other.query("begin");
        client.send(
            &[
                wire::bind("", "", 0, &[], 0),
                wire::execute("", 0),
                wire::sync(),
            ]
            .concat(),
        );
        let answer = client.until_ready();
        assert_eq!(support::pg_pair::rows(&answer), ["5"], "{}", show(&answer));
        // Now nothing keeps the connection: two others get one each.
        let mut third = front.client();
        third.query("begin");
        other.query("rollback");
        third.query("rollback");
    }
}

/// On the server the two are one statement.
#[test]
fn a_parse_in_a_failed_transaction_costs_nobody_the_statement_of_the_same_text() {
    let front = Front::start(FrontOptions::pooled(1));
    let (mut one, mut two) = (front.client(), front.client());
    one.send(&[wire::parse("a", "select 1", &[]), wire::sync()].concat());
    one.until_ready();
    two.query("begin");
    two.query("select 1/0");
    two.send(&[wire::parse("b", "select 1", &[]), wire::sync()].concat());
    assert_eq!(sqlstate(&two.until_ready()).as_deref(), Some("25P02"));
    two.query("rollback");
    one.send(
        &[
            wire::bind("", "a", 0, &[], 0),
            wire::execute("", 0),
            wire::sync(),
        ]
        .concat(),
    );
    let answer = one.until_ready();
    assert_eq!(support::pg_pair::rows(&answer), ["1"], "{}", show(&answer));
}

#[test]
fn a_prepared_deallocate_all_may_be_prepared_and_run_again() {
    let front = Front::start(FrontOptions::pooled(1));
    let mut client = front.client();
    let run = [wire::bind("", "a", 0, &[], 0), wire::execute("", 0)].concat();
    for _ in 0..3 {
        for ask in [wire::parse("a", "DEALLOCATE ALL", &[]), run.clone()] {
            client.send(&[ask, wire::sync()].concat());
            let answer = client.until_ready();
            assert_eq!(sqlstate(&answer), None, "{}", show(&answer));
            // Another client of the same statement in between.
            let mut other = front.client();
            other.query("select 1");
        }
    }
}
