//! (in the making)

// --- mirror engine ---------------------------------------------------------------------------

/// Mirrors of one source: a set of them is one machine word.
pub const MIRRORS_MAX: usize = 64;

/// Empty rings that a dispatcher keeps for clients without a ring of their own: as many as clients
/// are likely to have a unit on its way to one mirror at once.
pub const SPARE_RINGS_LEN_MAX: usize = 64;

/// A ring that has grown beyond this (24 bytes per unit) is not kept.
pub const SPARE_RING_UNITS_MAX: usize = 64;

/// Units kept for reuse per core. A unit is needed per client that is inside a transaction and per
/// queued transaction; beyond this many idle ones the allocator keeps them as well as we do.
pub const UNIT_POOL_LEN_MAX: usize = 256;

/// Copy buffer that a recycled unit keeps. It counts as memory of whatever the unit holds next, so
/// it is the size of an ordinary transaction and not more.
pub const UNIT_KEPT_BYTES: usize = 1024;

/// Message groups that a recycled unit keeps room for (16 bytes each).
pub const UNIT_KEPT_GROUPS: usize = 32;

/// Least growth of a copy buffer: one ordinary query. Beyond it buffers grow by a quarter, because
/// doubling would hold twice the bytes queued.
pub const PAYLOAD_GROWTH_BYTES_MIN: usize = 128;

/// First pause after a mirror connection failed: short enough that a restart is hardly missed.
pub const BACKOFF_NS_MIN: u64 = 100_000_000;

/// Longest pause between attempts to reach a mirror, jitter included.
pub const BACKOFF_NS_MAX: u64 = 5_000_000_000;

/// The timer's own grain: a shorter pause would be slept too long, so it is saved up instead.
pub const PACE_GRAIN_NS: u64 = 1_000_000;

/// Longest lag behind the primary that `pace = "session"` keeps up on purpose; a longer one would
/// fill the rings with units that only wait for their time.
pub const PACE_LAG_NS_MAX: u64 = 5_000_000_000;

/// Bytes of a value that a divergence record shows.
pub const DIVERGENCE_VALUE_LEN_MAX: usize = 256;

/// The latest divergences kept for admin and dashboard: about 1 KiB each.
pub const DIVERGENCES_LEN_MAX: usize = 1024;

/// Pairs of command and kind that are counted apart. Commands come from a table, fingerprints of
/// queries do not: what is beyond this counts as `other`.
pub const DIVERGENCE_COUNTS_LEN_MAX: usize = 4096;

/// Pause between two log lines about the same thing.
pub const DIVERGENCE_LOG_INTERVAL_NS: u64 = 5_000_000_000;

/// Things that a rate limit tells apart: 32 bytes each.
pub const RATE_LIMIT_LEN_MAX: usize = 10_000;
