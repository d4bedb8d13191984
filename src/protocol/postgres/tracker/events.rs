//! What the tracker tells its owner.

use std::fmt;
use std::ops::Range;

use super::super::digest::RowsDigest;
use super::super::sql::{self, Class};

/// What a client's bytes mean. Ranges are of the input of the call.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientEvent<'a> {
    /// A new cycle begins. Comes before every other event of the cycle.
    Opened {
        /// Number of the cycle, from 1, rising by 1.
        cycle: u64,
    },
    /// Contiguous bytes of the newest cycle.
    ///
    /// Bytes with `opens == false` behind some with `closes == true` are appended to a cycle that seemed complete: copy data, or
    /// what a server skips after an error.
    Bytes {
        /// The cycle they belong to, always the newest.
        cycle: u64,
        /// Where they are.
        range: Range<usize>,
        /// The first bytes of the cycle.
        opens: bool,
        /// With these bytes the cycle has all that the server needs to answer it with ReadyForQuery.
        closes: bool,
    },
    /// Bytes that belong to no cycle and change nothing: copy data that came too late, a lone Flush.
    Stray {
        /// Where they are.
        range: Range<usize>,
    },
    /// The text of a Query or Parse message. Comes before the bytes that end the message.
    Statement {
        /// The cycle it belongs to, always the newest: whoever reads a message in pieces need not remember where it began.
        cycle: u64,
        /// The text.
        text: StatementText<'a>,
    },
    /// A prepared statement, named or not, is made, used or closed. Comes before the bytes that end the message.
    Named {
        /// As of a text.
        cycle: u64,
        /// What happens to it.
        named: Named<'a>,
    },
    /// Bytes of a password, SASL or GSS message: never data, never to be shown.
    Password {
        /// Where they are.
        range: Range<usize>,
    },
    /// The client says good-bye.
    Terminate {
        /// Where the message's bytes are.
        range: Range<usize>,
    },
}

/// The SQL of one message, in the client's encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatementText<'a> {
    /// The text, without its terminator.
    pub sql: &'a [u8],
    /// Only the first part of it is here.
    pub truncated: bool,
    /// From a Parse message (one statement) and not from a Query (any number of them).
    pub extended: bool,
}

impl StatementText<'_> {
    /// What it does. Of a text that is not all here that is not known.
    pub fn class(&self) -> Class {
        match self.truncated {
            true => Class::UNKNOWN,
            false => sql::classify(self.sql),
        }
    }
}

/// What happens to a prepared statement. The unnamed one has the empty name: it too outlives its cycle. It takes effect only if the server agrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    /// A Parse message.
    Parse {
        /// The statement's name.
        name: &'a [u8],
        /// The message's body; `None` if it is larger than the tracker holds.
        body: Option<&'a [u8]>,
        /// How many extended messages came before it in the cycle; see [`CycleDone::answered`].
        ordinal: u32,
    },
    /// A Bind message: the statement is about to be executed.
    Bind {
        /// The statement's name.
        name: &'a [u8],
        /// As of a Parse.
        ordinal: u32,
    },
    /// A Close message for a statement.
    Close {
        /// The statement's name.
        name: &'a [u8],
        /// As of a Parse.
        ordinal: u32,
    },
    /// A Query message, behind its text: it ends the unnamed statement.
    Query {
        /// As of a Parse.
        ordinal: u32,
    },
}

/// What a server's bytes mean.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerEvent<'a> {
    /// The server asks for a proof of identity.
    AuthRequest(AuthKind),
    /// The server believes the client.
    Authenticated,
    /// The login is complete: the ReadyForQuery that answers no cycle.
    LoggedIn,
    /// The server supports less than the client asked for.
    NegotiateProtocol,
    /// A setting's value, at login or at any later time.
    ParameterStatus {
        /// The setting.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// What a CancelRequest needs.
    BackendKey {
        /// The server process.
        pid: u32,
        /// The secret, 4 to 256 bytes.
        key: &'a [u8],
    },
    /// The first row of a result set is about to be read; the owner may switch its digest on or off.
    Rows {
        /// The cycle it answers.
        cycle: u64,
        /// Compute a digest of this result set. Preset with [`super::Tracker::set_digest`]'s value.
        digest: &'a mut bool,
    },
    /// A statement has ended, well or badly.
    StatementDone {
        /// The cycle it belongs to.
        cycle: u64,
        /// How it ended.
        outcome: &'a StatementOutcome,
    },
    /// A NoticeResponse.
    Notice,
    /// A NotificationResponse.
    Notification,
    /// The server waits for copy data of this cycle.
    CopyIn {
        /// The cycle that holds the COPY.
        cycle: u64,
    },
    /// The server sends copy data.
    CopyOut {
        /// The cycle that holds the COPY.
        cycle: u64,
    },
    /// Replication: from here on nothing is tracked.
    CopyBoth,
    /// The server ends the session (severity FATAL or PANIC).
    FatalError {
        /// Why.
        sqlstate: Sqlstate,
    },
    /// ReadyForQuery.
    CycleDone(CycleDone),
}

/// A ReadyForQuery and what it concludes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CycleDone {
    /// This cycle **and every earlier one** is answered. (Cycles become one when a server skips or ignores the message
    /// that seemed to close one: after an error before a Sync, or a Sync during copy-in.)
    pub cycle: u64,
    /// The state of the transaction now.
    pub status: TxStatus,
    /// An ErrorResponse was among the answers.
    pub had_error: bool,
    /// How many extended messages of the cycle were completed. After an error in one of them that one's ordinal is this number,
    /// and those with a higher one were skipped.
    pub answered: u32,
    /// So many bytes at the end of the cycle's bytes belong to a message that the client had not finished: leave them away.
    /// The rest of that message comes as [`ClientEvent::Stray`].
    pub unfinished: usize,
}

/// The transaction status of ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TxStatus {
    /// `I`: no transaction.
    #[default]
    Idle,
    /// `T`: in a transaction.
    InTransaction,
    /// `E`: in a failed transaction.
    Failed,
}

/// What the server wants as a proof of identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthKind {
    /// The password as it is.
    Cleartext,
    /// md5 of password, user and salt.
    Md5,
    /// SASL (SCRAM-SHA-256), first request.
    Sasl,
    /// SASL, later requests.
    SaslContinue,
    /// SASL, the server's own proof.
    SaslFinal,
    /// Kerberos, GSSAPI, SSPI or unknown; the number of the request.
    Other(u32),
}

/// A SQLSTATE: five letters or digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sqlstate([u8; 5]);

impl Sqlstate {
    /// Takes a code as it was sent; what is no letter or digit becomes `?`.
    pub fn new(code: &[u8]) -> Self {
        let mut bytes = [b'?'; 5];
        for (to, from) in bytes.iter_mut().zip(code) {
            *to = if from.is_ascii_alphanumeric() {
                *from
            } else {
                b'?'
            };
        }
        Self(bytes)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("?????")
    }

    /// The class: the first two characters.
    pub fn class(&self) -> &str {
        &self.as_str()[..2]
    }
}

impl fmt::Debug for Sqlstate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Sqlstate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Longest command tag that is kept (the longest that PostgreSQL sends is under 40 bytes with its numbers).
pub const TAG_LEN_MAX: usize = 46;

/// A command tag such as `INSERT 0 1`, held inline; bytes beyond [`TAG_LEN_MAX`] are cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CommandTag {
    bytes: [u8; TAG_LEN_MAX],
    len: u8,
}

impl CommandTag {
    /// Takes a tag as it was sent; anything that is not printable ASCII becomes `?`.
    pub fn new(tag: &[u8]) -> Self {
        let len = tag.len().min(TAG_LEN_MAX);
        let mut bytes = [0; TAG_LEN_MAX];
        for (to, from) in bytes.iter_mut().zip(tag) {
            *to = if (b' '..=b'~').contains(from) {
                *from
            } else {
                b'?'
            };
        }
        Self {
            bytes,
            len: len as u8,
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Debug for CommandTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// How a statement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// CommandComplete with its tag. Endings that have none of their own read `(empty)`, `(suspended)`, `(function)`.
    Complete(CommandTag),
    /// ErrorResponse.
    Error(Sqlstate),
}

/// What a statement gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatementOutcome {
    /// Command tag or SQLSTATE.
    pub ending: Ending,
    /// Rows (or copy-out messages) that were sent.
    pub rows: u64,
    /// Digest of column names and types; 0 without a RowDescription.
    pub columns: u64,
    /// Digest of the rows; `None` if it was not asked for. Without rows: the digest of nothing.
    pub digest: Option<RowsDigest>,
}

impl StatementOutcome {
    /// The SQLSTATE if the statement failed.
    pub fn sqlstate(&self) -> Option<Sqlstate> {
        match self.ending {
            Ending::Error(code) => Some(code),
            Ending::Complete(_) => None,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete(tag) => f.write_str(tag.as_str()),
            Self::Error(code) => write!(f, "ERROR {code}"),
        }
    }
}
