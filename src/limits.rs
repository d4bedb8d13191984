//! Every bound of the program in one place, each with its reason.

use std::time::Duration;

/// Received bytes of one socket that its reader has not taken. Above it the ring stops receiving for this
/// socket. Four slabs of the default size: enough to keep a bulk transfer moving, small enough to hold for each of
/// 10,000 clients.
pub const SOCKET_RECEIVE_BYTES: usize = 64 * 1024;

/// Received pieces of one socket that its reader has not taken: a peer that sends single bytes must not
/// hold one slab for each.
pub const SOCKET_RECEIVE_CHUNKS: usize = 32;

/// Bytes waiting to leave through one socket above which its producer pauses. With what the kernel has in its
/// own buffers this keeps a gigabit path full; a client that never reads holds this much and no more.
pub const SOCKET_SEND_BYTES: usize = 128 * 1024;

/// How long a closed socket may take to hand its last bytes to the kernel.
pub const LINGER: Duration = Duration::from_secs(5);

/// The driver's standing tick while there is traffic: the precision of coarse timers.
pub const TICK: Duration = Duration::from_millis(5);

/// glommio's preemption timer on a data core: a day. When it ends just before glommio looks at its tasks, glommio sleeps
/// with tasks ready; the driver takes care of fairness, so it may as well never end.
pub const PREEMPT: Duration = Duration::from_secs(86_400);

/// How long such a sleep may last if it comes all the same.
pub const UNPARK: Duration = Duration::from_millis(10);

/// The longest wait of an idle driver: ten wake-ups a second cost nothing one could measure.
pub const IDLE_WAIT: Duration = Duration::from_millis(100);

/// Entries of the submission queue of the ring for mirrors: what one turn queues for them, beyond which it submits in parts.
pub const ASIDE_ENTRIES: u32 = 1024;

/// As long as clients and primaries come at least this often, mirrors are heard with them; else mirrors wake the core, as
/// everybody else does. A core that sleeps for so long each time has time for that.
pub const ASIDE_GAP: Duration = Duration::from_micros(200);

/// Ticks without any other completion before the driver counts as idle.
pub const IDLE_AFTER_TICKS: u32 = 20;

/// Pause before accepting again when the process is out of file descriptors or memory.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Pause between two log lines about accepts that fail, which are tried again all the time.
pub const ACCEPT_COMPLAINT_PAUSE: Duration = Duration::from_secs(5);

/// Connections that may wait in a listener's backlog (the kernel caps it at net.core.somaxconn).
pub const LISTEN_BACKLOG: i32 = 4096;

// --- mirror engine ---------------------------------------------------------------------------

/// Mirrors of one source: a set of them is one machine word.
pub const MIRRORS_MAX: usize = 64;

/// Empty rings that a dispatcher keeps for clients without a ring of their own: as many as clients
/// are likely to have a unit on its way to one mirror at once.
pub const SPARE_RINGS_LEN_MAX: usize = 64;

/// A ring that has grown beyond this (24 bytes per unit) is not kept.
pub const SPARE_RING_UNITS_MAX: usize = 64;

/// Units kept for reuse per core: a full [`REDIS_MIRROR_WINDOW`] of them and as many that grow. With
/// 256, pipelining clients made the allocator a tenth of the mirror's cost. At most 2 MiB of small ones.
pub const UNIT_POOL_LEN_MAX: usize = 2048;

/// Copy buffer that a recycled unit keeps. It counts as memory of whatever the unit holds next, so
/// it is the size of an ordinary transaction and not more.
pub const UNIT_KEPT_BYTES: usize = 1024;

/// Message groups that a recycled unit keeps room for (16 bytes each).
pub const UNIT_KEPT_GROUPS: usize = 32;

/// Bytes of a payload that lie in the unit itself: an ordinary read. Together with the rest of the unit they are fetched into the
/// cache at once; a buffer of their own would be fetched later, and waited for.
pub const PAYLOAD_INLINE_BYTES: usize = 96;

/// Pieces of a payload that a recycled unit keeps room for (48 bytes each): a copy, a large value by reference, and again.
pub const PAYLOAD_KEPT_PIECES: usize = 4;

/// Least growth of a copy buffer: one ordinary query. Beyond it buffers grow by a quarter, because
/// doubling would hold twice the bytes queued.
pub const PAYLOAD_GROWTH_BYTES_MIN: usize = 128;

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

/// First pause after a mirror connection failed: short enough that a restart is hardly missed.
pub const BACKOFF_NS_MIN: u64 = 100_000_000;

/// Longest pause between attempts to reach a mirror, jitter included.
pub const BACKOFF_NS_MAX: u64 = 5_000_000_000;

/// The timer's own grain: a shorter pause would be slept too long, so it is saved up instead.
pub const PACE_GRAIN_NS: u64 = 1_000_000;

/// Longest lag behind the primary that `pace = "session"` keeps up on purpose; a longer one would
/// fill the rings with units that only wait for their time.
pub const PACE_LAG_NS_MAX: u64 = 5_000_000_000;

/// Pause between two log lines about statements that fail on a mirror, and between two about its lost connections: an
/// operator needs to learn of it, not of each.
pub const MIRROR_LOG_INTERVAL_NS: u64 = 5_000_000_000;

// --- proxy ------------------------------------------------------------------------------------

/// How long a client that is refused for want of room may take to say whom it wants, and then to hear the answer.
pub const REFUSAL_TIME: Duration = Duration::from_secs(2);

/// How often a core looks for sessions whose clients are silent or gone.
pub const IDLE_LOOK: Duration = Duration::from_secs(1);

/// A client has ended its direction and waits for nothing: how long its primary may take to close as well. A primary
/// that stands still must not keep the descriptors of clients that have left.
pub const GONE_QUIET: Duration = Duration::from_secs(5);

/// The same while replies are outstanding, which a client that has only ended its own direction may still want.
pub const GONE_BUSY: Duration = Duration::from_secs(300);

/// Clients of one core that are being told that there is no room; more are closed without a word, so that a flood
/// costs accepts and nothing else.
pub const REFUSALS_MAX: usize = 256;

/// Longest wait of a client for a pooled primary connection (`query_wait_timeout`): PgBouncer's name and default.
pub const QUERY_WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// From the startup packet to the last message of a client's login where Parhelion checks it; PostgreSQL's own
/// `authentication_timeout`.
pub const POSTGRES_AUTH_TIMEOUT: Duration = Duration::from_secs(60);

/// Password verifiers kept, made once from the passwords of users.toml: about 200 bytes each.
pub const VERIFIERS_LEN_MAX: usize = 10_000;

/// How long a reset of a pooled connection between two clients may take before the connection is given up.
pub const POOL_RESET_TIMEOUT: Duration = Duration::from_secs(5);

/// Of a Redis request that arrives in pieces, how much is kept to know its name and keys.
pub const REDIS_HEAD_BYTES: usize = 4 * 1024;

/// Largest Redis reply that is compared; of larger ones only the fact is counted. It is held beside the unit in
/// the ring, whose byte bound it shares.
pub const REDIS_COMPARE_BYTES: usize = 64 * 1024;

/// Largest reply of a primary that is still followed: eight bulk strings of the largest size that Redis allows.
pub const REDIS_REPLY_BYTES_MAX: u64 = 4 << 30;

/// Largest reply of a Redis mirror: what no primary's reply that is compared can reach; a mirror that sends more is
/// hostile or broken.
pub const REDIS_MIRROR_REPLY_BYTES_MAX: u64 = 1 << 30;

/// Units on their way on one Redis mirror connection: deep enough to fill a 10 ms round trip at 100,000 units a
/// second, shallow enough that a lost connection loses little.
pub const REDIS_MIRROR_WINDOW: usize = 1024;
/// Replies between the one at hand and the one whose unit is fetched into the cache: between a pipeline's request and its
/// reply more units come and go than the cache holds.
pub const PREFETCH_AHEAD: usize = 3;
/// Units that are gathered for one send to a Redis mirror that still owes replies: a send costs as much as handling
/// several units, and with this many one more hardly matters.
pub const REDIS_MIRROR_GATHER: usize = 16;
/// Bytes of a value that a divergence record shows.
pub const DIVERGENCE_VALUE_LEN_MAX: usize = 256;

/// Pause between two log lines about the same thing.
pub const DIVERGENCE_LOG_INTERVAL_NS: u64 = 5_000_000_000;

/// Things that a rate limit tells apart: 32 bytes each.
pub const RATE_LIMIT_LEN_MAX: usize = 10_000;
// --- Comparison of replies.

/// How far two TTL replies may lie apart: the mirror answers a moment later, and both servers round.
pub const COMPARE_TTL_TOLERANCE_SECONDS: u64 = 1;
/// How far two PTTL replies may lie apart.
pub const COMPARE_TTL_TOLERANCE_MILLIS: u64 = 1000;

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

// --- configuration ---

/// Mirrors of one source. Each costs every client a ring and every unit an offer; more than this is a mistake in a
/// generated file.
pub const MIRRORS_PER_SOURCE_MAX: usize = 64;

/// Bytes of a configuration file. Ten thousand databases with their users fit; `/dev/zero` does not.
pub const CONFIG_FILE_BYTES_MAX: u64 = 4 << 20;

/// Bytes of a password file: what a Postgres or Redis login could carry in one message of a sensible size.
pub const SECRET_FILE_BYTES_MAX: u64 = 64 << 10;

// --- Sentry ---

/// Pause between two events of the same fingerprint.
pub const SENTRY_COOLDOWN_NS: u64 = 60_000_000_000;

/// Fingerprints told apart at one time: 32 bytes each.
pub const SENTRY_FINGERPRINTS_MAX: usize = 10_000;

/// How long the end of the process waits for the last events.
pub const SENTRY_FLUSH: Duration = Duration::from_secs(2);

// --- dual writes ---

/// Keys that are tainted by name; beyond it everything is. About 100 bytes each with an ordinary name.
pub const TAINT_KEYS_MAX: usize = 100_000;

/// Bytes of their names.
pub const TAINT_BYTES_MAX: usize = 16 << 20;

/// Keys whose latest answers are remembered per generation, of which there are two: 90 bytes each.
pub const ORDER_KEYS_MAX: usize = 65_536;

/// Age of a generation: longer than an ordinary command takes, so that what is forgotten cannot overlap.
pub const ORDER_GENERATION_NS: u64 = 10_000_000_000;

/// How long before its answer was read a command that waited may have been executed: a turn of a busy core. Writes that
/// matter to it and were answered within that time make its keys be copied again.
pub const ORDER_LAG_NS: u64 = 10_000_000;

/// The same for the question whether a reply that differs proves anything: an overloaded core.
pub const ORDER_NEAR_NS: u64 = 100_000_000;

/// How far the clocks of two servers, and of the machine of the proxy, may lie apart when it is asked whether a key may
/// have ended on one of them before a write and on the other one behind it.
pub const EXPIRY_CLOCK_SKEW_MS: u64 = 100;

/// Keys whose end is remembered per generation, of which there are two: 24 bytes each.
pub const EXPIRY_KEYS_MAX: usize = 65_536;

/// Items that a dual write's queue keeps for reuse.
pub const DUAL_SPARE_ITEMS_MAX: usize = 1024;

/// Buffer that a reused item keeps: an ordinary command and its reply.
pub const DUAL_KEPT_BYTES: usize = 1024;

/// Script bodies that are remembered, for a secondary that does not know one.
pub const SCRIPTS_MAX: usize = 1024;

/// Bytes of these bodies.
pub const SCRIPT_BYTES_MAX: usize = 16 << 20;

/// Messages of one client that wait for their counterpart in the shadow subscription.
pub const PUBSUB_PENDING_MAX: usize = 10_000;

/// Items on their way to a secondary: deep enough for a 10 ms round trip at 100,000 a second, shallow enough that a
/// lost connection taints few keys.
pub const DUAL_WINDOW: usize = 1024;

/// Keys that are copied at the same time by a repair.
pub const REPAIR_BATCH: usize = 64;

/// Mismatches that are read again at the same time; more count as not compared.
pub const REREADS_MAX: usize = 256;
/// Mismatches of writes that wait until it is known whether they mean anything: a twentieth of a second of a client that
/// pipelines. More are copied again and count as not compared.
pub const HELD_BACK_MAX: usize = 16_384;
/// Bytes of their requests.
pub const HELD_BACK_BYTES_MAX: usize = 8 << 20;
/// Keys whose ends are asked for with one question.
pub const HELD_BACK_BATCH: usize = 64;

/// How often a mismatch is read again, and within which time.
pub const REREAD_ATTEMPTS: u32 = 3;
/// See [`REREAD_ATTEMPTS`].
pub const REREAD_WITHIN_NS: u64 = 100_000_000;
// --- Redis lanes ---

/// A command that arrives in pieces is held until it is whole, up to this; a larger one goes over its client's own
/// connection as it comes. Four slabs: what a command may be without disturbing others' latency.
pub const REDIS_HELD_BYTES_MAX: usize = 64 * 1024;

/// A client that got a larger reply over a lane goes on over its own connection: others wait behind it while it
/// crosses. A quarter of a millisecond on a 10-gigabit link.
pub const REDIS_LANE_REPLY_BYTES: usize = 256 * 1024;

/// Smaller replies in a row until such a client is trusted with a lane again; twice as many each time it happens again.
pub const REDIS_HEAVY_REPLIES: u32 = 32;

/// How often that doubles: 32 << 10 replies are minutes of an ordinary client.
pub const REDIS_HEAVY_DOUBLINGS: u32 = 10;

/// A lane that waits for a slow client looks this often whether the client is still there.
pub const REDIS_PACED_LOOK: Duration = Duration::from_secs(1);

/// Replies of a client that may be outstanding on a lane at first; one more with every small reply, half with every
/// large one. What a client that does not read may make us hold is this times the reply's size.
pub const REDIS_WINDOW_FIRST: usize = 1;

/// The most: a deep pipeline fills a 10 ms round trip at 100,000 commands a second.
pub const REDIS_WINDOW_MAX: usize = 1024;

/// Replies that clients have not read, all slow readers of all cores together: a bound for each core would grow with
/// the machine. The one that exceeds it is closed; the largest bulk string that Redis allows fits.
pub const REDIS_SPILL_BYTES_MAX: usize = 1 << 30;

/// Of a large reply that nobody compares, how much is kept to know its kind: a status line and an error's word.
pub const REDIS_HEAD_KEPT_BYTES: usize = 128;

/// A lane without clients is closed after a minute.
pub const REDIS_LANE_IDLE_NS: u64 = 60_000_000_000;

/// After a failed attempt to open a lane, clients are refused for so long without another: a burst of them must not
/// become a burst of connection attempts.
pub const REDIS_LANE_RETRY_NS: u64 = 100_000_000;

/// A connection's name that is kept for the client's own connection to be opened again.
pub const REDIS_NAME_BYTES_MAX: usize = 256;

/// CLIENT SETINFO commands kept for the client's own connection: two of ordinary length.
pub const REDIS_INFO_BYTES_MAX: usize = 512;

/// Changes by operators that are kept for `changes` and the report: a day's work; the log has all.
pub const CHANGES_KEPT_MAX: usize = 256;
/// Longest text kept per field of a change: what a reload of a large config lists.
pub const CHANGE_FIELD_BYTES_MAX: usize = 2048;

/// Readings of a mirror that the report keeps: more than its chart is wide; 48 bytes each.
pub const TIMELINE_READINGS_MAX: usize = 720;

// --- admin SQL ---

/// Words of one admin statement: the longest one has eight.
pub const ADMIN_STATEMENT_TOKENS_MAX: usize = 32;

/// One message of an admin client: the longest statement that means anything is far below.
pub const ADMIN_MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Prepared statements and portals of one admin session.
pub const ADMIN_PREPARED_MAX: usize = 64;

/// Admin statements that wait for the control thread, all sessions together.
pub const ADMIN_REQUESTS_MAX: usize = 64;

/// How long an admin client waits for its answer; a reload waits for every core.
pub const ADMIN_ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
// --- TLS ---

/// From the first byte of a TLS handshake to its last: three round trips over the worst link, and a busy core.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Plaintext that is encrypted at a time: one TLS record of the largest size, so that a large write is never held
/// twice.
pub const TLS_WRITE_BYTES: usize = 16 * 1024;

/// Answers of TLS itself (key updates, alerts) to a peer that takes none of them. An honest peer is owed a hundred
/// bytes or so.
pub const TLS_UNREAD_ANSWERS_BYTES: usize = 64 * 1024;

/// TLS 1.3 tickets, and sessions that a server or client remembers: one per client that is likely to come back soon.
pub const TLS_SESSIONS_MAX: usize = 1024;

// --- Logs ---

// --- Postgres pipelines and query latencies ---

/// Units of one client's pipeline on their way on one mirror connection. The client had them under way together too; it is
/// what a 1 ms round trip needs at 100,000 units a second, and what a lost connection loses of a pipeline at most.
pub const PIPELINED_UNITS_MAX: usize = 128;

/// A pipeline may hold so many times `mirror_queue_bytes`, before it is answered and then in its ring, while the mirror
/// answers: a primary works a deep pipeline off in one go and answers many hundred units in one read, before any mirror can
/// have got the first of them. 10,000 small units fit (about 1.5 KiB each), and on a busy host all of them may wait. The core's `mirror_memory` bounds all pipelines together.
pub const PIPELINE_QUEUE_FACTOR: usize = 32;

/// A mirror that has answered no unit for so long stands still, and pipelines get no room beyond the ring's own bounds. Longer
/// than a busy host keeps a server from running, far shorter than an outage. A client that has waited for every answer for so
/// long does not pipeline any more.
pub const PIPELINE_PATIENCE_NS: u64 = 250_000_000;

/// Query fingerprints told apart per mirror and core; later ones count as `other`. An application has some hundreds; each costs
/// about 7 KiB, with latencies that spread over six powers of two on either side.
pub const QUERY_FINGERPRINTS_MAX: usize = 500;

/// Query texts whose fingerprint is remembered per mirror and core, at the place that their hash gives: more than an
/// application has prepared statements; 32 bytes each.
pub const QUERY_TEXTS_LEN: usize = 1024;

/// A unit that is held in several pieces is broken down into its queries up to this size: larger ones are COPY data.
pub const QUERY_UNIT_BYTES_MAX: usize = 64 * 1024;

/// Queries in one answer of the API: all of a mirror on two cores.
pub const QUERIES_PER_ANSWER_MAX: usize = 1_000;
/// Lines that one place in the code writes to the log in a second: enough to see what happens, and a flood of refused
/// clients fills no disk.
pub const LOG_LINES_PER_SECOND_MAX: u32 = 20;
// --- names of databases --------------------------------------------------------------------------

/// How long an address of a name is taken for right: a database that moved is found within about a second.
pub const NAME_FRESH_NS: u64 = 1_000_000_000;

/// How long it still serves while it is asked for again: connections of an ordinary load do not wait for a resolver.
pub const NAME_STALE_NS: u64 = 30_000_000_000;

/// Between two looks whether the resolver has answered: little beside what it takes.
pub const NAME_POLL: Duration = Duration::from_millis(2);

// --- logs ---

/// Log lines that wait for whoever reads stderr, about 2 MiB of them: a burst. What comes then is lost, not waited for.
pub const LOG_LINES_QUEUED_MAX: usize = 8192;
