//! `parhelion demo`: everything on one machine, a live view, and a summary that can be checked.
//!
//! Owns: an embedded Redis-like server ([`resp_server`]), a load generator ([`load`]), the view. The proxy is this very
//! program as a child process, over its own command line: the demo shows what a user gets.

pub mod load;
pub mod reply_len;
mod resp_parse;
pub mod resp_server;
mod resp_store;
mod run;
mod view;

pub use run::run;

/// Which real servers to use instead of the embedded ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoKind {
    /// Two `redis-server` processes.
    Redis,
    /// Two `postgres` servers, `pgbench` as the load.
    Postgres,
}

/// The arguments of `parhelion demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Use real servers of this kind, in a temporary folder, instead of the embedded ones
    #[arg(value_enum)]
    pub kind: Option<DemoKind>,
    /// How long to send load
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Concurrent clients
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub clients: u64,
    /// Requests per second of all clients together (embedded servers and Redis); 0 for as fast as they go
    #[arg(long, default_value_t = 5000)]
    pub rate: u64,
    /// The embedded candidate answers one in so many reads wrongly; 0 for none
    #[arg(long, default_value_t = 500)]
    pub wrong_every: u32,
    /// The embedded candidate answers each batch so many microseconds late
    #[arg(long, default_value_t = 300)]
    pub delay_us: u64,
    /// Seed of the load and of the wrong replies
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Default for DemoArgs {
    fn default() -> DemoArgs {
        DemoArgs {
            kind: None,
            seconds: 10,
            clients: 16,
            rate: 5000,
            wrong_every: 500,
            delay_us: 300,
            seed: 1,
        }
    }
}
