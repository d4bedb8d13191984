//! The commands and their arguments.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use super::bench::BenchArgs;
use crate::config::{
    Compare, Cores, Endpoint, Level, ListenAddress, LogFormat, Pace, Protocol, RedisMode,
    parse_socket_addr,
};
use crate::control::ctl::CtlCommand;
use crate::demo::DemoArgs;

const EXAMPLES: &str = "\
Examples:
  See it work, with nothing installed:
    parhelion demo
  Mirror Postgres to an upgraded copy, a tenth of the transactions:
    parhelion postgres --primary 10.0.0.1:5432 --mirror 10.0.2.25:5432 \\
        --user mirror --password-file /etc/parhelion/mirror.pw --exposure 0.1
  Move from Redis to Valkey, writes to both, reads compared:
    parhelion redis --primary 10.0.0.5:6379 --secondary 10.0.0.6:6379 --mode dual-write-shadow
  Check a configuration, then serve it:
    parhelion check --config parhelion.toml && parhelion run --config parhelion.toml

Environment:
  PARHELION_LOG               log level: error, warn, info (default), debug, or per module
  PARHELION_PASSWORD          password of --user, instead of --password-file; password of bench
  PARHELION_PRIMARY_PASSWORD  password of a Redis primary, instead of --primary-password-file
  PARHELION_TOKEN             token of the control port, for ctl and report

Exit codes: 0 done, 2 bad arguments or configuration, 1 anything else.";

/// A mirroring proxy for Postgres and Redis
///
/// Parhelion stands in front of a production database, forwards every byte to it, and copies the traffic to candidates
/// that may be slow, wrong or dead without any client noticing. It compares answers and latencies and says whether a
/// candidate is ready.
#[derive(Debug, Parser)]
#[command(name = "parhelion", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a configuration until SIGTERM or SIGINT
    Run(FileArgs),
    /// Validate a configuration and dial every database in it
    Check(CheckArgs),
    /// Serve one Redis without a configuration file
    Redis(RedisArgs),
    /// Serve one Postgres without a configuration file
    Postgres(PostgresArgs),
    /// Primary, candidate, load, proxy, live view and report, all on this machine
    Demo(DemoArgs),
    /// Load-test a Redis port, beside the database behind it
    Bench(BenchArgs),
    /// Ask a running process or tell it what to do
    Ctl(CtlArgs),
    /// Write the report of a running process
    Report(ReportArgs),
    /// Print the completions of a shell
    Completions(CompletionsArgs),
}

/// Where the configuration is.
#[derive(Clone, Debug, clap::Args)]
pub struct FileArgs {
    /// The configuration, parhelion.toml or a PgDog user's pgdog.toml
    #[arg(long, value_name = "FILE", default_value = "parhelion.toml")]
    pub config: PathBuf,
    /// Users and their passwords [default: users.toml beside the configuration, if there is one]
    #[arg(long, value_name = "FILE")]
    pub users: Option<PathBuf>,
}

/// The arguments of `check`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit code: 0 if everything is well, 2 if not.\n\n\
    Example:\n  parhelion check --config parhelion.toml --users users.toml")]
pub struct CheckArgs {
    /// Where the configuration is.
    #[command(flatten)]
    pub files: FileArgs,
    /// Validate only, connect to nothing
    #[arg(long)]
    pub offline: bool,
}

/// What `redis` and `postgres` have in common.
#[derive(Clone, Debug, clap::Args)]
pub struct QuickArgs {
    /// Share of the units that are mirrored, and of the reads that are shadowed: 0.0 to 1.0
    #[arg(long, value_name = "SHARE", default_value = "1.0", value_parser = parse_share)]
    pub exposure: f64,
    /// How much of a mirror's answer is compared
    #[arg(long, default_value = "rows", value_parser = words(Compare::WORDS, Compare::from_word))]
    pub compare: Compare,
    /// How closely a mirror follows the primary's timing
    #[arg(long, default_value = "transaction", value_parser = words(Pace::WORDS, Pace::from_word))]
    pub pace: Pace,
    /// Which units a mirror gets (dml and ddl: Postgres only)
    #[arg(long, default_value = "all", value_parser = words(Level::WORDS, Level::from_word))]
    pub level: Level,
    /// Login of the mirrors and the secondary
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// File that holds the password of that login; or set PARHELION_PASSWORD
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// CPU ids, one data core each: 0,1 or all
    #[arg(long, value_name = "CPUS", default_value = "all", value_parser = parse_cores)]
    pub cores: Cores,
    /// Address of metrics, health, API and dashboard, or off
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9191", value_parser = parse_control)]
    pub control: ControlAddress,
    /// How log lines look
    #[arg(long, default_value = "text", value_parser = words(LogFormat::WORDS, LogFormat::from_word))]
    pub log_format: LogFormat,
    /// Journal of divergences, JSON lines
    #[arg(long, value_name = "FILE")]
    pub divergence_log: Option<PathBuf>,
}

/// The arguments of `redis`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Addresses: HOST:PORT, [::1]:PORT, HOST (port 6379), unix:/path/of/socket\n\n\
    Examples:\n  \
    parhelion redis --primary 10.0.0.5:6379 --mirror 10.0.0.7:6379 --mirror 10.0.0.8:6379\n  \
    parhelion redis --primary 10.0.0.5:6379 --secondary 10.0.0.6:6379 --mode dual-write-shadow"
)]
pub struct RedisArgs {
    /// Where clients connect: IP:PORT or unix:/path
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6479", value_parser = ListenAddress::parse)]
    pub listen: ListenAddress,
    /// The Redis that answers clients
    #[arg(long, value_name = "HOST:PORT", value_parser = redis_endpoint)]
    pub primary: Endpoint,
    /// The Redis that gets every write too
    #[arg(long, value_name = "HOST:PORT", value_parser = redis_endpoint)]
    pub secondary: Option<Endpoint>,
    /// What the secondary gets [default with --secondary: dual-write; also: redis-only, elastickv-primary, elastickv-only]
    #[arg(long, value_parser = words(RedisMode::WORDS, RedisMode::from_word))]
    pub mode: Option<RedisMode>,
    /// A candidate that gets the traffic too; may be repeated
    #[arg(long, value_name = "HOST:PORT", value_parser = redis_endpoint)]
    pub mirror: Vec<Endpoint>,
    /// Database number of the primary in which clients begin
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub primary_db: u32,
    /// Database number of the secondary that stands for it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub secondary_db: u32,
    /// File that holds the password of the primary's default user; or set PARHELION_PRIMARY_PASSWORD
    #[arg(long, value_name = "FILE")]
    pub primary_password_file: Option<PathBuf>,
    /// What both protocols have.
    #[command(flatten)]
    pub common: QuickArgs,
}

/// The arguments of `postgres`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Addresses: HOST:PORT, [::1]:PORT, HOST (port 5432), unix:/path/of/socket, /folder/of/the/socket\n\n\
    Clients log in to the primary with their own passwords; every client goes to the primary.\n\n\
    Example:\n  \
    parhelion postgres --primary 10.0.0.1:5432 --mirror 10.0.2.25:5432 --user mirror --password-file mirror.pw"
)]
pub struct PostgresArgs {
    /// Where clients connect: IP:PORT or unix:/path
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6432", value_parser = ListenAddress::parse)]
    pub listen: ListenAddress,
    /// The Postgres that answers clients
    #[arg(long, value_name = "HOST:PORT", value_parser = postgres_endpoint)]
    pub primary: Endpoint,
    /// A candidate that gets the traffic too; may be repeated
    #[arg(long, value_name = "HOST:PORT", value_parser = postgres_endpoint)]
    pub mirror: Vec<Endpoint>,
    /// Name of the database on the primary and the mirrors [default: the one that the client asks for]
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// What both protocols have.
    #[command(flatten)]
    pub common: QuickArgs,
}

/// The arguments of `ctl`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  parhelion ctl mirrors\n  parhelion ctl exposure staging_db 0.1\n  \
    parhelion ctl --url http://10.0.0.2:9191 --json status"
)]
pub struct CtlArgs {
    /// The control port
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:9191",
        global = true
    )]
    pub url: String,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    pub json: bool,
    /// What to ask or tell.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// The arguments of `report`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  parhelion report --out report.html")]
pub struct ReportArgs {
    /// The control port
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9191")]
    pub url: String,
    /// The file to write, HTML; JSON if it ends in .json
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    pub out: PathBuf,
}

/// The arguments of `completions`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  parhelion completions bash > /etc/bash_completion.d/parhelion")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// The address of the control port; `None` for `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlAddress(pub Option<SocketAddr>);

impl CompletionsArgs {
    /// Writes the completions.
    pub fn write(&self, out: &mut dyn io::Write) {
        clap_complete::generate(self.shell, &mut Cli::command(), "parhelion", out);
    }
}

fn redis_endpoint(text: &str) -> Result<Endpoint, String> {
    Endpoint::parse(text, Protocol::Redis)
}

fn postgres_endpoint(text: &str) -> Result<Endpoint, String> {
    Endpoint::parse(text, Protocol::Postgres)
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("not between 0.0 and 1.0; write e.g. 0.1 for 10 %".to_owned()),
    }
}

fn parse_cores(text: &str) -> Result<Cores, String> {
    if text == "all" {
        return Ok(Cores::All);
    }
    let ids: Result<Vec<usize>, _> = text.split(',').map(|id| id.trim().parse()).collect();
    ids.map(Cores::List)
        .map_err(|_| "write CPU ids with commas, e.g. 0,1, or all".to_owned())
}

fn parse_control(text: &str) -> Result<ControlAddress, String> {
    if text == "off" {
        return Ok(ControlAddress(None));
    }
    parse_socket_addr(text)
        .map(|address| ControlAddress(Some(address)))
        .map_err(|problem| format!("{problem}; write e.g. 127.0.0.1:9191 or off"))
}

/// A parser for one of several words; aliases are taken and not shown.
fn words<T: Clone + Send + Sync + 'static>(
    shown: &'static [&'static str],
    parse: fn(&str) -> Option<T>,
) -> impl clap::builder::TypedValueParser<Value = T> {
    WordParser { shown, parse }
}

#[derive(Clone)]
struct WordParser<T> {
    shown: &'static [&'static str],
    parse: fn(&str) -> Option<T>,
}

impl<T: Clone + Send + Sync + 'static> clap::builder::TypedValueParser for WordParser<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<T, clap::Error> {
        if let Some(value) = value.to_str().and_then(self.parse) {
            return Ok(value);
        }
        // Refuses with clap's own message: the words, and the nearest one.
        let refused = PossibleValuesParser::new(self.shown).parse_ref(command, arg, value);
        Err(refused
            .err()
            .unwrap_or_else(|| clap::Error::new(clap::error::ErrorKind::InvalidValue)))
    }

    fn possible_values(
        &self,
    ) -> Option<Box<dyn Iterator<Item = clap::builder::PossibleValue> + '_>> {
        Some(Box::new(
            self.shown.iter().map(clap::builder::PossibleValue::new),
        ))
    }
}
