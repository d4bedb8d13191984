//! The control side: HTTP, admin SQL, `parhelion ctl`, the dashboard and the report.
//!
//! Runs on the control thread, never on a data core. It reads what the cores count and hands commands to the
//! runtime through [`Commands`]; it owns no traffic and decides nothing about it.

pub mod admin_sql;
pub mod changes;
pub mod commands;
pub mod ctl;
pub mod divergences;
mod guard;
pub mod http;
pub mod latency;
mod listener;
pub mod listing;
pub mod log_limit;
pub mod queries;
mod reply_text;
pub mod report;
pub mod samples;
pub mod sentry;
pub mod state;
mod table;
pub mod timeline;
pub mod view;

pub use self::commands::{CommandError, Commands, Operation, Who};
pub use self::divergences::{DivergenceRecord, DivergenceStore, Redaction};
pub use self::state::{ControlState, Verdict};
