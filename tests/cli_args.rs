//! The command line: what the arguments mean, what is refused, and with which exit code.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use clap::{CommandFactory, Parser};
use parhelion::cli::{Cli, Command as Cmd};
use parhelion::config::{
    Compare, Config, ConfigErrors, Cores, Endpoint, Level, LogFormat, Pace, Protocol, RedisMode,
};

const CPUS: &[usize] = &[0, 1];

fn config(args: &str) -> Result<Config, ConfigErrors> {
    let words = ["parhelion"].into_iter().chain(args.split_whitespace());
    match Cli::try_parse_from(words)
        .unwrap_or_else(|error| panic!("{error}"))
        .command
    {
        Cmd::Redis(args) => args.to_config(CPUS),
        Cmd::Postgres(args) => args.to_config(CPUS),
        other => panic!("{other:?}"),
    }
}

fn refused_by_clap(args: &str) -> String {
    let words = ["parhelion"].into_iter().chain(args.split_whitespace());
    let error = Cli::try_parse_from(words).expect_err("the arguments are refused");
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

fn parhelion(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_parhelion"))
        .args(args)
        .env_remove("PARHELION_LOG")
        .env_remove("PARHELION_PASSWORD")
        .output()
        .unwrap()
}

#[track_caller]
fn exits(args: &[&str], code: i32, says: &str) {
    let output = parhelion(args);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(text.contains(says), "{args:?}: {text}");
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn redis_arguments_become_a_config_with_the_documented_names_and_defaults() {
    let config = config(
        "redis --primary 10.0.0.5:6379 --secondary [::1]:6380 --mirror m:6381 --mirror unix:/run/r.sock",
    )
    .unwrap();
    let names: Vec<_> = config.databases.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["primary", "secondary", "mirror-1", "mirror-2"]);
    assert_eq!(
        config.databases[1].endpoint,
        Endpoint::Tcp {
            host: "::1".into(),
            port: 6380
        }
    );
    assert_eq!(
        config.databases[3].endpoint,
        Endpoint::Unix("/run/r.sock".into())
    );
    assert_eq!(config.listeners[0].address.to_string(), "127.0.0.1:6479");
    assert_eq!(config.listeners[0].database, Some(0));
    assert_eq!(
        config.general.control.unwrap().to_string(),
        "127.0.0.1:9191"
    );
    assert_eq!(config.general.cores, Cores::All);
    assert_eq!(config.dual_write[0].mode, RedisMode::DualWrite);
    assert_eq!(
        (config.dual_write[0].primary, config.dual_write[0].secondary),
        (0, 1)
    );
    let pairs: Vec<_> = config
        .mirroring
        .iter()
        .map(|m| (m.source, m.destination))
        .collect();
    assert_eq!(pairs, [(0, 2), (0, 3)]);
}

#[test]
fn postgres_arguments_become_a_config_in_which_every_client_goes_to_the_primary() {
    let config = config(
        "postgres --listen 127.0.0.1:7000 --primary db --mirror db2:5433 --user u --cores 1 \
         --control off --exposure 0.25 --compare status --pace off --level reads --log-format json",
    )
    .unwrap();
    assert_eq!(config.listeners[0].protocol, Protocol::Postgres);
    assert_eq!(config.listeners[0].database, Some(0));
    assert_eq!(config.databases[0].endpoint.to_string(), "db:5432");
    assert_eq!(config.databases[1].user.as_deref(), Some("u"));
    assert_eq!(
        config.databases[0].user, None,
        "the primary checks clients itself"
    );
    assert_eq!(
        config.databases[1].database_name, "",
        "the one that the client asked for"
    );
    let g = &config.general;
    assert_eq!((&g.cores, g.control), (&Cores::List(vec![1]), None));
    assert_eq!((g.pace, g.log_format), (Pace::Off, LogFormat::Json));
    let m = &config.mirroring[0];
    assert_eq!(
        (m.exposure, m.compare, m.level),
        (0.25, Compare::Status, Level::Reads)
    );
}

#[test]
fn modes_have_the_names_of_the_proxy_that_users_come_from() {
    for (word, mode) in [
        ("redis-only", RedisMode::PrimaryOnly),
        ("primary-only", RedisMode::PrimaryOnly),
        ("dual-write", RedisMode::DualWrite),
        ("dual-write-shadow", RedisMode::DualWriteShadow),
        ("elastickv-primary", RedisMode::SecondaryPrimary),
        ("elastickv-only", RedisMode::SecondaryOnly),
    ] {
        let config = config(&format!("redis --primary a --secondary b --mode {word}")).unwrap();
        assert_eq!(config.dual_write[0].mode, mode);
    }
    assert!(
        config("redis --primary a --mode redis-only")
            .unwrap()
            .dual_write
            .is_empty()
    );
}

#[test]
fn a_password_comes_from_its_file_and_not_from_the_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pw");
    fs::write(&path, "canary-77\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let args = format!(
        "postgres --primary a --mirror b --user u --password-file {}",
        path.display()
    );
    let config = config(&args).unwrap();
    assert_eq!(
        config.databases[1].password.as_ref().unwrap().expose(),
        "canary-77"
    );
    assert!(!format!("{config:?}").contains("canary"));
    refused_by_clap("postgres --primary a --mirror b --user u --password canary");
}

#[test]
fn the_rules_hold_for_arguments_too() {
    for (args, key, problem) in [
        (
            "redis --primary a:1 --mirror a:1",
            "--mirror",
            "the same database",
        ),
        (
            "redis --primary a:1 --secondary A:1",
            "--secondary",
            "the same database",
        ),
        (
            "redis --primary a:1 --mode dual-write-shadow",
            "--mode",
            "needs a second Redis",
        ),
        (
            "redis --primary a:1 --mirror b:1 --level ddl",
            "--level",
            "Postgres only",
        ),
        (
            "redis --primary 127.0.0.1:6479",
            "--primary",
            "own listener",
        ),
        (
            "redis --primary a --control 127.0.0.1:6479",
            "--control",
            "a listener has",
        ),
        ("redis --primary a --cores 0,7", "--cores", "CPU 7"),
        ("redis --primary a --cores 1,1", "--cores", "twice"),
        (
            "postgres --primary a --mirror b --mirror c",
            "--user",
            "needs a login",
        ),
        (
            "postgres --primary a --mirror b --user u --password-file /nowhere",
            "--password-file",
            "cannot read",
        ),
    ] {
        let errors = config(args).expect_err(args).0;
        assert_eq!(errors.len(), 1, "{args}: {errors:#?}");
        assert_eq!(errors[0].key, key, "{args}");
        let shown = errors[0].to_string();
        assert!(
            shown.starts_with(&format!("command line: {key}: ")),
            "{shown}"
        );
        assert!(
            shown.contains(problem) && !errors[0].way_out.is_empty(),
            "{shown}"
        );
    }
}

#[test]
fn bad_values_are_refused_with_a_reason() {
    for (args, reason) in [
        ("redis --primary ::1:6379", "brackets"),
        ("redis --primary a:99999", "not a port"),
        ("redis --primary a --listen example.org:1", "IP address"),
        ("redis --primary a --exposure 1.5", "between 0.0 and 1.0"),
        ("redis --primary a --exposure nan", "between 0.0 and 1.0"),
        ("redis --primary a --mode dual-wite", "dual-write"),
        ("redis --primary a --cores x", "commas"),
        ("redis --primary a --control 9191", "no port"),
        ("redis", "--primary"),
        ("serve", "unrecognized"),
    ] {
        let text = refused_by_clap(args);
        assert!(text.contains(reason), "{args}: {text}");
    }
}

#[test]
fn exit_codes_are_0_for_done_2_for_bad_arguments_or_config_and_1_for_the_rest() {
    exits(&["--version"], 0, env!("CARGO_PKG_VERSION"));
    exits(&["--help"], 0, "Examples:");
    exits(&["completions", "bash"], 0, "parhelion");
    exits(&["redis"], 2, "--primary");
    exits(
        &["run", "--config", "/nowhere/parhelion.toml"],
        2,
        "cannot be read",
    );
    exits(
        &["redis", "--primary", "a:1", "--mirror", "a:1"],
        2,
        "the same database",
    );
    exits(
        &["ctl", "--url", "http://127.0.0.1:1", "status"],
        1,
        "cannot reach",
    );
    exits(
        &[
            "report",
            "--url",
            "http://127.0.0.1:1",
            "--out",
            "/nowhere/r.html",
        ],
        1,
        "cannot reach",
    );
}

#[test]
fn every_command_has_help_with_every_argument_explained() {
    fn visit(command: &clap::Command) {
        for argument in command.get_arguments() {
            let explained = argument.get_help().is_some() || argument.is_hide_set();
            assert!(explained, "{} {}", command.get_name(), argument.get_id());
        }
        assert!(command.get_about().is_some(), "{}", command.get_name());
        command.get_subcommands().for_each(visit);
    }
    visit(&Cli::command());
}

#[test]
fn a_bad_log_level_is_a_bad_argument() {
    let output = Command::new(env!("CARGO_BIN_EXE_parhelion"))
        .args(["redis", "--primary", "a:1"])
        .env("PARHELION_LOG", "=loud=")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("PARHELION_LOG"));
}
