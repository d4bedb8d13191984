//! The command line: what `parhelion` understands and what it says about itself.
//!
//! Owns: the arguments, their help, the set-up of logging, and `check`. Never does: serve. A secret is never an argument,
//! because `ps` shows arguments to everybody.

pub mod args;
pub mod bench;
pub mod check;
pub mod logging;
mod probe;
mod quick;

pub use args::{
    CheckArgs, Cli, Command, CompletionsArgs, CtlArgs, FileArgs, PostgresArgs, QuickArgs,
    RedisArgs, ReportArgs,
};
pub use bench::BenchArgs;
pub use logging::init_logging;
