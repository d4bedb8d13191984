//! What the tests of the configuration's rules share: a base that is valid, and how to say what must be refused.

#![allow(dead_code, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use parhelion::config::{Config, ConfigError, Input, Loaded, parse};

pub const CPUS: &[usize] = &[0, 1, 2, 3];

/// A login for the mirror that most cases have.
pub const USERS: &str = r#"
[[users]]
name = "app"
database = "staging_db"
password = "canary-9931"
"#;

pub const BASE: &str = r#"
[[databases]]
name = "prod"
host = "10.0.0.1"
[[databases]]
name = "staging_db"
host = "10.0.2.25"
[[databases]]
name = "cache"
protocol = "redis"
host = "10.0.0.5"
[[databases]]
name = "cache_new"
protocol = "redis"
host = "10.0.0.6"
[[mirroring]]
source_db = "prod"
destination_db = "staging_db"
[[dual_write]]
primary = "cache"
secondary = "cache_new"
"#;

pub fn load_with(text: &str, users: &str) -> Result<Loaded, Vec<ConfigError>> {
    parse(&Input {
        file: Path::new("parhelion.toml"),
        text,
        users: Some((Path::new("users.toml"), users)),
        cpus: CPUS,
    })
    .map_err(|errors| errors.0)
}

pub fn good(text: &str) -> Config {
    match load_with(text, USERS) {
        Ok(loaded) => loaded.config,
        Err(errors) => panic!("refused: {errors:#?}\n{text}"),
    }
}

/// The line, from 1, of the line that holds `mark`.
pub fn line_of(text: &str, mark: &str) -> usize {
    text.lines()
        .position(|line| line.contains(mark))
        .expect("the mark stands in the text")
        + 1
}

/// Asserts that exactly one fault is found: at the line of `mark`, under `key`, saying `problem`, with a way out.
#[track_caller]
pub fn refused(text: &str, mark: &str, key: &str, problem: &str) {
    refused_with(text, USERS, mark, key, problem);
}

#[track_caller]
pub fn refused_with(text: &str, users: &str, mark: &str, key: &str, problem: &str) {
    let errors = load_with(text, users).expect_err("the configuration is refused");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let error = &errors[0];
    let source = if error.file == "users.toml" {
        users
    } else {
        text
    };
    assert_eq!(error.line, Some(line_of(source, mark)), "{error}");
    assert_eq!(error.key, key, "{error}");
    assert!(error.problem.contains(problem), "{error}");
    assert!(!error.way_out.is_empty(), "{error}");
    assert!(!error.to_string().contains("canary"), "{error}");
}

/// `[general]` with one line, in front of the base.
#[track_caller]
pub fn general_refused(line: &str, key: &str, problem: &str) {
    refused(
        &format!("[general]\n{line}\n{BASE}"),
        line,
        &format!("general.{key}"),
        problem,
    );
}
