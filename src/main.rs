//! The `parhelion` command line: each command calls the part of the crate that does it.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::{env, fs};

use clap::Parser as _;
use parhelion::cli::{
    BenchArgs, CheckArgs, Cli, Command, CtlArgs, FileArgs, ReportArgs, check, init_logging,
};
use parhelion::config::{Config, ConfigErrors, Loaded, load_with_warnings};
use parhelion::control::ctl;
use parhelion::proxy::tls::Material;
use parhelion::runtime::serve::ConfigFiles;
use parhelion::runtime::{available_cpus, serve};

/// Bad arguments or configuration; clap ends with the same for arguments that it refuses.
const BAD_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Check(args) => check(&args),
        Command::Redis(args) => quick(&args.common, |cpus| args.to_config(cpus)),
        Command::Postgres(args) => quick(&args.common, |cpus| args.to_config(cpus)),
        Command::Demo(args) => parhelion::demo::run(&args).map_err(Failure::other),
        Command::Bench(args) => bench(&args),
        Command::Ctl(args) => ctl(args),
        Command::Report(args) => report(&args),
        Command::Completions(args) => {
            args.write(&mut io::stdout());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("parhelion: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// What went wrong, and the exit code for it.
struct Failure {
    text: String,
    code: u8,
}

impl Failure {
    fn other(error: impl Display) -> Self {
        Self {
            text: error.to_string(),
            code: 1,
        }
    }

    fn config(error: impl Display) -> Self {
        Self {
            text: error.to_string(),
            code: BAD_CONFIG,
        }
    }

    /// Every fault on a line of its own.
    fn refused(errors: &ConfigErrors) -> Self {
        Self::config(format_args!("the configuration is refused\n{errors}"))
    }
}

fn load(files: &FileArgs) -> Result<Loaded, Failure> {
    let loaded = load_with_warnings(&files.config, files.users.as_deref(), &available_cpus())
        .map_err(|errors| Failure::refused(&errors))?;
    // A certificate that cannot serve is a fault of the configuration too.
    Material::load(&loaded.config).map_err(Failure::config)?;
    Ok(loaded)
}

fn run(args: &FileArgs) -> Result<(), Failure> {
    let loaded = load(args)?;
    init_logging(loaded.config.general.log_format).map_err(Failure::config)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let files = ConfigFiles {
        config: Some(args.config.clone()),
        users: args.users.clone(),
    };
    serve::run(loaded.config, files).map_err(Failure::other)
}

fn quick(
    common: &parhelion::cli::QuickArgs,
    to_config: impl FnOnce(&[usize]) -> Result<Config, ConfigErrors>,
) -> Result<(), Failure> {
    init_logging(common.log_format).map_err(Failure::config)?;
    let config = to_config(&available_cpus()).map_err(|errors| Failure::refused(&errors))?;
    serve::run(config, ConfigFiles::default()).map_err(Failure::other)
}

fn check(args: &CheckArgs) -> Result<(), Failure> {
    let loaded = load(&args.files)?;
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let path = args.files.config.display();
    if args.offline {
        println!("{path}: the configuration is valid");
        return Ok(());
    }
    let dialled = check::check_dial(&loaded.config, loaded.config.general.connect_timeout);
    print!("{}", check::table(&dialled));
    match dialled.iter().filter(|dialled| !dialled.ok).count() {
        0 => Ok(()),
        failed => Err(Failure::config(format_args!(
            "{path} is valid, but {failed} of {} probes failed",
            dialled.len()
        ))),
    }
}

fn bench(args: &BenchArgs) -> Result<(), Failure> {
    match parhelion::cli::bench::run(args, &mut io::stdout().lock()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::other("not every request was answered rightly")),
        Err(error) => Err(Failure::other(error)),
    }
}

/// The token of the control port. From the environment: `ps` shows arguments.
fn token() -> Option<String> {
    env::var("PARHELION_TOKEN")
        .ok()
        .filter(|token| !token.is_empty())
}

fn ctl(args: CtlArgs) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let done = ctl::run(args.command, &args.url, token(), args.json, &mut out)
        .and_then(|()| Ok(out.flush()?));
    match done {
        // `ctl mirrors | head` has seen enough.
        Err(ctl::CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(Failure::other),
    }
}

fn report(args: &ReportArgs) -> Result<(), Failure> {
    let report = ctl::fetch_report(&args.url, token()).map_err(Failure::other)?;
    let json = args
        .out
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("json"));
    let text = if json {
        format!("{:#}", report.json)
    } else {
        report.html
    };
    let path = args.out.display();
    fs::write(&args.out, text)
        .map_err(|error| Failure::other(format_args!("cannot write {path}: {error}")))?;
    println!("{path}");
    Ok(())
}
