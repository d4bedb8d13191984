//! Follows one client and its primary after the startup packet: which bytes belong to which cycle, when a cycle is
//! answered, and how its statements ended.
//!
//! The tracker reads both directions in whatever pieces they come, borrows them, and holds headers, bounded captures and
//! hash states. It never changes, delays or invents a byte. When it reports a [`Violation`] the stream cannot be followed
//! any more; the bytes may still be forwarded, but not mirrored.

mod client;
mod cycles;
mod events;
mod server;

use thiserror::Error;

use super::capture::Capture;
use super::digest::{ColumnsHasher, RowHasher, RowsDigest};
use super::framer::{FrameError, MessageFramer};
use cycles::{Cycles, Place};
pub use events::*;

/// How much of a statement is captured to classify it.
pub const STATEMENT_CAPTURE_MAX: usize = 64 * 1024;
/// How much of a server's short message (ParameterStatus, BackendKeyData, CommandComplete) is captured. PostgreSQL's own
/// values are far shorter; a longer one is passed on unread.
pub const SERVER_CAPTURE_MAX: usize = 8 * 1024;

/// Why a connection cannot be followed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Violation {
    /// The client's stream is not the protocol.
    #[error("client: {0}")]
    ClientFrame(FrameError),
    /// The server's stream is not the protocol.
    #[error("server: {0}")]
    ServerFrame(FrameError),
    /// A ReadyForQuery that nothing asked for.
    #[error("server: ReadyForQuery without a query")]
    UnexpectedReady,
    /// A message of this type while nothing was asked.
    #[error("server: message of type 0x{0:02X} without a query")]
    Unexpected(u8),
    /// A message whose body is not what its type says.
    #[error("server: malformed message of type 0x{0:02X}")]
    Malformed(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Until AuthenticationOk.
    Auth,
    /// Until the first ReadyForQuery.
    Starting,
    Ready,
    /// Replication: nothing is tracked.
    Replication,
}

/// One client and its primary (or one unit and its mirror).
#[derive(Debug)]
pub struct Tracker {
    phase: Phase,
    cycles: Cycles,
    status: TxStatus,
    capture_statements: bool,
    digest_preset: bool,
    client: ClientSide,
    server: ServerSide,
}

/// What the client direction holds between calls.
#[derive(Debug)]
struct ClientSide {
    framer: MessageFramer,
    /// Where the current message belongs.
    place: Place,
    capture: Capture,
    /// Extended messages in the newest cycle.
    extended: u32,
    /// The next bytes of the newest cycle are its first.
    opening: bool,
}

/// What the server direction holds between calls.
#[derive(Debug)]
struct ServerSide {
    framer: MessageFramer,
    capture: Capture,
    columns_hasher: Option<ColumnsHasher>,
    row_hasher: RowHasher,
    /// The result set under way.
    columns: u64,
    rows: u64,
    digest: Option<RowsDigest>,
    /// Of the cycle under way.
    had_error: bool,
    error: server::ErrorFields,
}

impl Tracker {
    /// For a connection whose startup packet was just sent. `replication`: the startup asked for it; nothing is tracked.
    pub fn new(replication: bool) -> Self {
        Self::with_phase(if replication {
            Phase::Replication
        } else {
            Phase::Auth
        })
    }

    /// For a connection that is logged in and idle.
    pub fn new_ready() -> Self {
        Self::with_phase(Phase::Ready)
    }

    fn with_phase(phase: Phase) -> Self {
        Self {
            phase,
            cycles: Cycles::default(),
            status: TxStatus::Idle,
            capture_statements: true,
            digest_preset: false,
            client: ClientSide {
                framer: MessageFramer::client(),
                place: Place::Stray,
                capture: Capture::default(),
                extended: 0,
                opening: false,
            },
            server: ServerSide {
                framer: MessageFramer::server(),
                capture: Capture::default(),
                columns_hasher: None,
                row_hasher: RowHasher::default(),
                columns: 0,
                rows: 0,
                digest: None,
                had_error: false,
                error: server::ErrorFields::default(),
            },
        }
    }

    /// Whether result sets are digested unless the owner says otherwise at [`ServerEvent::Rows`]. Off at first.
    pub fn set_digest(&mut self, on: bool) {
        self.digest_preset = on;
    }

    /// Whether [`ClientEvent::Statement`] and [`ClientEvent::Named`] are given. On at first.
    pub fn set_capture(&mut self, on: bool) {
        self.capture_statements = on;
    }

    /// Logged in, no transaction open, no cycle unanswered or under way.
    pub fn idle(&self) -> bool {
        self.phase == Phase::Ready
            && self.status == TxStatus::Idle
            && self.cycles.outstanding() == 0
            && !self.client.framer.in_message()
            && !self.server.framer.in_message()
    }

    /// Idle, and nothing that was exchanged so far leaves a doubt about what comes.
    pub fn is_settled(&self) -> bool {
        self.idle() && self.cycles.is_settled()
    }

    /// The login is complete.
    pub fn logged_in(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// The connection is a replication connection: forwarded, never mirrored.
    pub fn replication(&self) -> bool {
        self.phase == Phase::Replication
    }

    /// The transaction status of the last ReadyForQuery.
    pub fn status(&self) -> TxStatus {
        self.status
    }

    /// Cycles that wait for their ReadyForQuery, the one the client has not finished included.
    pub fn outstanding(&self) -> u64 {
        self.cycles.outstanding()
    }

    /// The newest cycle lacks what would make the server answer it (a Sync, as a rule).
    pub fn is_open(&self) -> bool {
        self.cycles.is_open()
    }

    /// The server waits for copy data.
    pub fn copy_in(&self) -> bool {
        self.cycles.copy_in()
    }

    /// Number of the newest cycle; 0 before the first.
    pub fn newest_cycle(&self) -> u64 {
        self.cycles.newest()
    }

    /// Number of the cycle that the server answers now; the newest if all are answered.
    pub fn head_cycle(&self) -> u64 {
        self.cycles.head()
    }

    /// The pipeline is so deep that the owner should read from the server before it reads more from the client.
    pub fn is_deep(&self) -> bool {
        self.cycles.is_deep()
    }
}

#[cfg(test)]
mod tests;
