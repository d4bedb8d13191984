//! The fuzz targets for about a second each: the corpus, then mutations of it. `PARHELION_FUZZ_SECONDS` for longer,
//! `PARHELION_FUZZ_SEED` for one seed. With a nightly toolchain libFuzzer drives the same functions: see tests/fuzz.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fuzz/seeds.rs"]
mod seeds;
#[path = "fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use targets::TARGETS;

/// Words that lie near decisions: lengths at their bounds, line ends, types, keywords.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"*",
    b"$",
    b"$-1",
    b"*-1",
    b"2147483647",
    b"-2147483648",
    b"9223372036854775807",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x04",
    b"Z\0\0\0\x05I",
    b"Z\0\0\0\x05E",
    b"MULTI",
    b"EXEC",
    b"DISCARD",
    b"HELLO",
    b"CLIENT REPLY OFF",
    b"SUBSCRIBE",
    b"'",
    b"$$",
    b"/*",
    b"--",
    b"E'\\",
    b"[[databases]]\n",
];

fn mutate(rng: &mut fastrand::Rng, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(0..=input.len());
        match rng.u8(0..8) {
            0 => input.insert(at, rng.u8(..)),
            1 if at < input.len() => input[at] ^= 1 << rng.u8(0..8),
            2 if at < input.len() => input[at] = rng.u8(..),
            3 if at < input.len() => {
                let end = rng.usize(at..=input.len().min(at + 40));
                input.drain(at..end);
            }
            4 => {
                let word = WORDS[rng.usize(0..WORDS.len())];
                input.splice(at..at, word.iter().copied());
            }
            5 if at < input.len() => {
                let end = rng.usize(at..=input.len().min(at + 60));
                let again = input[at..end].repeat(rng.usize(1..4));
                input.splice(at..at, again);
            }
            _ => {
                let other = &others[rng.usize(0..others.len())];
                let from = rng.usize(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        input.truncate(64 * 1024);
    }
}

/// What a target may hold of an input of at most 64 KiB at any time: some dozens of it, and not what a length in it claims.
const HELD_MAX: u64 = 4 << 20;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Runs one target for its time; fails with the input that broke it.
fn smoke(name: &str) {
    let target = TARGETS.iter().find(|(known, _)| *known == name).unwrap().1;
    let corpus = seeds::corpus(name);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    let time = Duration::from_secs(number("PARHELION_FUZZ_SECONDS", 1));
    let seed = number("PARHELION_FUZZ_SEED", 1);
    let mut rng = fastrand::Rng::with_seed(seed);
    let began = Instant::now();
    let mut pool = corpus.clone();
    let (mut runs, mut most) = (0_u64, 0);
    while began.elapsed() < time || runs < corpus.len() as u64 {
        let mut input = match corpus.get(runs as usize) {
            Some(whole) => whole.clone(),
            None => {
                let mut input = pool[rng.usize(0..pool.len())].clone();
                mutate(&mut rng, &mut input, &corpus);
                input
            }
        };
        let step = Instant::now();
        let mut done = Ok(());
        let used = allocation_counter::measure(|| {
            done = catch_unwind(AssertUnwindSafe(|| target(&input)));
        });
        assert!(
            done.is_ok(),
            "{name}, seed {seed}, run {runs}: {}",
            input.escape_ascii()
        );
        assert!(
            step.elapsed() < Duration::from_secs(5),
            "{name} hangs on {} bytes: {}",
            input.len(),
            input[..input.len().min(400)].escape_ascii()
        );
        most = most.max(used.bytes_max);
        assert!(
            used.bytes_max <= HELD_MAX,
            "{name}, seed {seed}, run {runs} holds {} for {} bytes: {}",
            used.bytes_max,
            input.len(),
            input[..input.len().min(400)].escape_ascii()
        );
        // Without coverage to steer by, a walk away from the corpus and back.
        if rng.u8(0..16) == 0 {
            input.truncate(4096);
            let place = rng.usize(0..256);
            match pool.get_mut(corpus.len() + place) {
                Some(old) => *old = input,
                None => pool.push(input),
            }
        }
        runs += 1;
    }
    println!("{name}: {runs} runs, at most {most} bytes held");
}

macro_rules! smokes {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            smoke(stringify!($name));
        })*

        #[test]
        fn every_target_is_run() {
            assert_eq!(TARGETS.len(), [$(stringify!($name)),*].len());
        }
    };
}

smokes! {
    resp_request resp_reply resp_session resp_compare pg_framer pg_startup pg_session pg_mirror pg_login pg_sql
    pg_pipeline pg_queries pg_pooled pg_state pg_auth resp_dual config admin_sql
}
