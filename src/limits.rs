//! (in the making)

// --- RESP: what a client may send. The numbers are Redis's own, so that a client meets the limits it knows.

/// One command as a whole: `client-query-buffer-limit`, 1 GiB. Also keeps positions inside a command in 32 bits.
pub const RESP_QUERY_BYTES_MAX: u64 = 1 << 30;
/// One argument: `proto-max-bulk-len`, 512 MiB.
pub const RESP_BULK_BYTES_MAX: u64 = 512 << 20;
/// Arguments of one command: 1024 * 1024, the bound that Redis had until 7.0.
pub const RESP_ARGS_MAX: u32 = 1 << 20;
/// An inline command, or a header line: 64 KiB (`PROTO_INLINE_MAX_SIZE`).
pub const RESP_INLINE_BYTES_MAX: u32 = 64 << 10;
/// Arguments before AUTH: AUTH and HELLO need no more.
pub const RESP_ARGS_UNAUTHENTICATED_MAX: u32 = 10;
/// One argument before AUTH: 16 KiB.
pub const RESP_BULK_BYTES_UNAUTHENTICATED_MAX: u64 = 16 << 10;

// --- Comparison of replies.

/// How far two TTL replies may lie apart: the mirror answers a moment later, and both servers round.
pub const COMPARE_TTL_TOLERANCE_SECONDS: u64 = 1;
/// How far two PTTL replies may lie apart.
pub const COMPARE_TTL_TOLERANCE_MILLIS: u64 = 1000;
