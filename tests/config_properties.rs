//! Whatever stands in the files: no panic, and every fault has a line, a problem and a way out.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use parhelion::config::{
    Endpoint, Input, ListenAddress, Protocol, apply, diff, parse, parse_duration, parse_size,
};
use proptest::prelude::*;

const FILES: &[&str] = &[
    include_str!("../tuning/postgres-mirror.toml"),
    include_str!("../tuning/redis-mirror.toml"),
    include_str!("../tuning/redis-dual-write.toml"),
    include_str!("../tuning/pgdog.toml"),
];
const USERS: &str = include_str!("../tuning/users.toml");

/// Pieces that mean something to the format.
const PIECES: &[&str] = &[
    "\"",
    "'",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    "\n",
    "#",
    ".",
    ",",
    "nan",
    "-inf",
    "1e999",
    "0",
    "-1",
    "18446744073709551616",
    "0x",
    "true",
    "1979-05-27",
    "\"off\"",
    "\"\"",
    "\"\\u0000\"",
    "[general]",
    "[[users]]",
    "[[mirroring]]\nsource_db = \"prod\"\ndestination_db = \"prod\"\n",
    "\u{fffd}",
    "\t",
    "name = \"prod\"",
    "[[[[[[[[",
    "a.b.c.d.e = 1",
    "host = \"/\"",
    "address = \"unix:/\"",
    "\"0s\"",
    "\"99999999999999999h\"",
];

#[derive(Debug, Clone)]
enum Edit {
    Insert(usize, usize),
    Cut(usize, usize),
    Repeat(usize, usize),
    Swap(usize, usize),
    Char(usize, char),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<usize>();
    prop_oneof![
        (at, any::<usize>()).prop_map(|(a, b)| Edit::Insert(a, b)),
        (at, 1usize..40).prop_map(|(a, b)| Edit::Cut(a, b)),
        (at, 1usize..400).prop_map(|(a, b)| Edit::Repeat(a, b)),
        (at, any::<usize>()).prop_map(|(a, b)| Edit::Swap(a, b)),
        (at, any::<char>()).prop_map(|(a, b)| Edit::Char(a, b)),
    ]
}

fn mutate(text: &str, edits: &[Edit]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for edit in edits {
        let len = chars.len().max(1);
        match *edit {
            Edit::Insert(at, piece) => {
                let at = (at % len).min(chars.len());
                chars.splice(at..at, PIECES[piece % PIECES.len()].chars());
            }
            Edit::Cut(at, count) => {
                let at = (at % len).min(chars.len());
                let end = (at + count).min(chars.len());
                chars.drain(at..end);
            }
            Edit::Repeat(at, count) => {
                let at = (at % len).min(chars.len());
                let piece: Vec<char> = chars[at..(at + count).min(chars.len())].to_vec();
                chars.splice(at..at, piece);
            }
            Edit::Swap(a, b) if !chars.is_empty() => chars.swap(a % len, b % len),
            Edit::Swap(..) => {}
            Edit::Char(at, c) => {
                let at = (at % len).min(chars.len());
                chars.insert(at, c);
            }
        }
    }
    chars.into_iter().collect()
}

fn load(
    text: &str,
    users: &str,
) -> Result<parhelion::config::Config, parhelion::config::ConfigErrors> {
    let input = Input {
        file: Path::new("parhelion.toml"),
        text,
        users: Some((Path::new("users.toml"), users)),
        cpus: &[0, 1],
    };
    parse(&input).map(|loaded| loaded.config)
}

#[test]
fn the_examples_are_valid() {
    for text in FILES {
        let users = if text.contains("staging_db") {
            USERS
        } else {
            ""
        };
        load(text, users).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_never_panic_and_every_fault_says_where_and_what_to_do(
        file in 0..FILES.len(),
        edits in prop::collection::vec(edit(), 1..6),
        user_edits in prop::collection::vec(edit(), 0..3),
    ) {
        let users = if file == 3 { USERS } else { "" };
        let (text, users_text) = (mutate(FILES[file], &edits), mutate(users, &user_edits));
        match load(&text, &users_text) {
            Ok(config) => {
                let old = load(FILES[file], users).unwrap();
                let merged = apply(&old, config.clone());
                prop_assert_eq!(&merged.ring, &old.ring);
                prop_assert!(merged.listeners.iter().filter_map(|l| l.database).all(|i| i < merged.databases.len()));
                let _ = diff(&old, &config);
            }
            Err(errors) => {
                prop_assert!(!errors.0.is_empty());
                for error in &errors.0 {
                    let lines = text.lines().count().max(users_text.lines().count()) + 1;
                    prop_assert!(error.line.is_some_and(|line| (1..=lines).contains(&line)), "{}", error);
                    prop_assert!(!error.problem.is_empty() && !error.way_out.is_empty(), "{:?}", error);
                }
            }
        }
    }

    #[test]
    fn any_text_as_address_duration_or_size_never_panics(text in ".{0,60}") {
        let _ = (ListenAddress::parse(&text), Endpoint::parse(&text, Protocol::Postgres));
        let _ = (Endpoint::parse(&text, Protocol::Redis), parse_duration(&text), parse_size(&text));
    }

    #[test]
    fn an_endpoint_that_is_shown_parses_back(host in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", port in 1u16..) {
        for host in [host.as_str(), "::1", "10.0.0.1"] {
            let endpoint = Endpoint::Tcp { host: host.to_owned(), port };
            prop_assert_eq!(Endpoint::parse(&endpoint.to_string(), Protocol::Redis), Ok(endpoint));
        }
    }
}
