//! Every bound and its reason.

use std::time::Duration;

// The control side.

/// Distinct error classes counted per source or mirror; the rest counts as `other`. Postgres has 43 SQLSTATE
/// classes, a mirror in trouble shows a few; Redis has about 20 error words. A hostile backend cannot grow a
/// series without end.
pub const ERROR_CLASSES_MAX: usize = 32;

/// Commands told apart in metrics. Redis 8 with its bundled modules has about 480; what lies beyond is `other`.
pub const METRIC_COMMANDS_MAX: usize = 512;

/// Examples of divergences kept per kind, so that a loud kind does not push out a rare one.
pub const DIVERGENCES_PER_KIND_MAX: usize = 256;

/// Longest text kept per field of an example: 256 bytes of a value tell what differs.
pub const DIVERGENCE_FIELD_BYTES_MAX: usize = 256;

/// Divergences in one answer of the API; about 1 MiB of JSON.
pub const DIVERGENCES_PER_ANSWER_MAX: usize = 1_000;

/// Connections of the control port at a time: dashboards, a scraper or two, an operator. More wait in the backlog.
pub const CONTROL_CONNECTIONS_MAX: usize = 128;

/// A control connection that moves nothing for so long is closed: a dashboard asks every 2 s, a scraper every 60 s
/// at most.
pub const CONTROL_SILENCE_MAX: Duration = Duration::from_secs(90);

/// Largest request body of the control port: the longest one holds a mode's name.
pub const CONTROL_BODY_BYTES_MAX: usize = 4 * 1024;

/// Largest answer that `parhelion ctl` reads: 50 mirrors with all commands are about 2 MiB.
pub const CTL_ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
