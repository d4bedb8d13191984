//! Logs: lines to stderr, as text or JSON; how many, PARHELION_LOG says.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// The variable that holds the level: `warn`, or `info,parhelion::proxy=debug`.
pub const LOG_VARIABLE: &str = "PARHELION_LOG";

/// Sets up logging for the whole process. A second call changes nothing.
///
/// # Errors
/// PARHELION_LOG does not hold levels; the text says so.
pub fn init_logging(format: LogFormat) -> Result<(), String> {
    let levels = std::env::var(LOG_VARIABLE).unwrap_or_default();
    let levels = if levels.trim().is_empty() {
        "info"
    } else {
        levels.as_str()
    };
    let filter = EnvFilter::try_new(levels).map_err(|error| {
        format!("{LOG_VARIABLE}: {error}; write error, warn, info, debug or trace")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // A test, or a program that embeds the crate, may have set up its own.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
