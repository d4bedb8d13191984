//! Logs: lines to stderr, as text or JSON; how many, PARHELION_LOG says.

use std::io::{self, IsTerminal};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::LogFormat;
use crate::control::log_limit::LogLimit;
use crate::limits::LOG_LINES_QUEUED_MAX;

/// The variable that holds the level: `warn`, or `info,parhelion::proxy=debug`.
pub const LOG_VARIABLE: &str = "PARHELION_LOG";

/// What no level makes more talkative: the HTTP client writes down all that it sends, with the key of Sentry's DSN in it.
const QUIET: [&str; 2] = ["ureq=info", "ureq_proto=info"];

/// Sets up logging for the whole process. A second call changes nothing. What is logged is written by a thread of its own, so
/// that a log that nobody reads stops no core; lines that find no room are lost. Lines are written until the guard is dropped.
///
/// # Errors
/// PARHELION_LOG does not hold levels; the text says so.
pub fn init_logging(format: LogFormat) -> Result<WorkerGuard, String> {
    let levels = std::env::var(LOG_VARIABLE).unwrap_or_default();
    let levels = if levels.trim().is_empty() {
        "info"
    } else {
        levels.as_str()
    };
    let mut filter = EnvFilter::try_new(levels).map_err(|error| {
        format!("{LOG_VARIABLE}: {error}; write error, warn, info, debug or trace")
    })?;
    for quiet in QUIET {
        let directive = quiet.parse();
        filter = filter.add_directive(directive.map_err(|error| format!("{quiet}: {error}"))?);
    }
    let filter = filter.and(LogLimit::default());
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LOG_LINES_QUEUED_MAX)
        .thread_name("log")
        .finish(io::stderr());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(io::stderr().is_terminal());
    let registry = tracing_subscriber::registry();
    // A test, or a program that embeds the crate, may have set up its own.
    let _ = match format {
        LogFormat::Text => registry.with(layer.with_filter(filter)).try_init(),
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true);
            registry.with(layer.with_filter(filter)).try_init()
        }
    };
    Ok(guard)
}
