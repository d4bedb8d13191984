//! Numbers: what the cores write and the control thread reads.
//!
//! Owns the counters, the latency histograms, the registry that finds them again, and the one table of every
//! metric's name, type, unit and labels. A core writes its own counters only, with loads and stores: no lock and
//! no read-modify-write instruction on the hot path. Never decides anything about traffic.

mod command;
mod compat;
mod core;
mod encode;
mod error_table;
mod histogram;
mod metric;
mod mirror;
mod process;
mod query;
mod registry;
mod table;
mod totals;

pub use self::command::{CommandMetrics, CommandTable, CommandTotal, WriteFailure};
pub use self::compat::COMPAT_TABLE;
pub use self::core::{CoreMetrics, ListenerMetrics, RingMetrics};
pub use self::encode::{TextFormat, encode, encode_tables};
pub use self::error_table::{ErrorTable, ErrorWord};
pub use self::histogram::{AtomicHistogram, LE_BUCKETS_NS};
pub use self::metric::{Kind, Metric, Scrape};
pub use self::mirror::{
    DivergenceKind, MirrorMetrics, MirrorSettings, OpenConnection, SourceMetrics,
};
pub use self::process::ProcessSample;
pub use self::query::{QueryMetrics, QueryTable, QueryTotal};
pub use self::registry::Registry;
pub use self::table::TABLE;
pub use self::totals::{ByCommand, CoreTotal, Latency, ListenerTotal, MirrorTotal, SourceTotal};

pub use crate::mirror::ledger::Counter;

/// What a listener, a source database or a mirror speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum Protocol {
    /// The Postgres wire protocol, version 3.
    Postgres,
    /// RESP2 and RESP3.
    Redis,
}

impl Protocol {
    /// Every protocol, in the order of the counters.
    pub const ALL: [Protocol; 2] = [Protocol::Postgres, Protocol::Redis];

    /// The label in metrics and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Postgres => "postgres",
            Protocol::Redis => "redis",
        }
    }
}
