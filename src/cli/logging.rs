//! Logs: lines to stderr, as text or JSON; how many, PARHELION_LOG says.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::LogFormat;
use crate::control::log_limit::LogLimit;

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
    let filter = filter.and(LogLimit::default());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
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
    Ok(())
}
