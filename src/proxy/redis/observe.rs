//! The seam for dual writes and shadow reads: an observer sees what the primary has answered, in the order in which
//! it answered, and says which backend is in front.
//!
//! Called from the core's own tasks, between two frames: an implementation must not wait, and must not call back into
//! the session.

use crate::mirror::payload::Payload;
use crate::mirror::unit::ClientId;
use crate::protocol::resp::Request;
use crate::protocol::resp::command::Command;
use crate::ring::{Chunk, WaitQueue};

/// Which database of a source serves a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// The source itself.
    #[default]
    Primary,
    /// The other one, once the modes of a dual write put it in front.
    Secondary,
}

/// A command, or a transaction as a whole, that the backend in front has answered.
pub struct Answered<'a> {
    /// Whose it was.
    pub client: ClientId,
    /// Which backend answered.
    pub backend: Backend,
    /// Which connection to it: answers of one stream come in the order of execution.
    pub stream: u64,
    /// Of its commands, how many [`Observer::wants`] had said yes to.
    pub wanted: u32,
    /// Of a transaction: MULTI's.
    pub command: Option<&'static Command>,
    /// Number of commands: 1, or those from MULTI to EXEC.
    pub commands: u32,
    /// The client's own bytes; empty if they were larger than any ring takes.
    pub request: &'a Payload<Chunk>,
    /// The bytes of the request were too many to be kept.
    pub oversize: bool,
    /// The reply, or EXEC's; only its first bytes if not `whole`.
    pub reply: &'a [u8],
    /// `reply` is all of it.
    pub whole: bool,
    /// The database the client had selected.
    pub db: u32,
    /// The RESP version the reply is written in.
    pub resp: u8,
    /// When the command's last byte had arrived.
    pub arrived_ns: u64,
    /// When its reply had.
    pub answered_ns: u64,
}

/// See the module.
pub trait Observer {
    /// Which backend serves commands that arrive now. A client moves there as soon as nothing ties it.
    fn front(&self) -> Backend;

    /// Where `backend` is.
    fn database(&self, backend: Backend) -> crate::config::Database;

    /// Whether the bytes of this command must be kept until its reply. Asked when it arrives.
    fn wants(&self, command: Option<&'static Command>, request: &Request<'_>, db: u32) -> bool;

    /// The largest request whose bytes are kept.
    fn request_bytes_max(&self) -> usize;

    /// A wanted command was answered, error or not. Transactions come only if EXEC succeeded.
    fn answered(&self, answered: &Answered<'_>);

    /// So many wanted commands ended without effect: their transaction was not executed.
    fn dismissed(&self, wanted: u32);

    /// No answer comes to so many wanted commands: whether they were applied is unknown.
    fn lost(&self, request: &Payload<Chunk>, db: u32, wanted: u32);

    /// Clients that nothing ties wait with their next command, at [`Observer::gate`].
    fn held(&self) -> bool;

    /// Where they wait.
    fn gate(&self) -> &WaitQueue;
}
