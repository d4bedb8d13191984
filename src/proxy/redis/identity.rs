//! Who a connection is, and how a new connection to a backend is brought there.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::rc::Rc;

use zeroize::Zeroize;

use super::numbers;
use crate::config::Database;
use crate::limits::REDIS_MIRROR_REPLY_BYTES_MAX;
use crate::protocol::resp::{ReplyFramer, Request};
use crate::proxy::Context;
use crate::ring::Socket;

/// Credentials that the primary itself has accepted from a client. Kept as long as a connection may have to be
/// opened with them, and wiped with the last holder.
#[derive(Clone)]
pub(super) struct Identity(Rc<Credentials>);

struct Credentials {
    user: Option<Vec<u8>>,
    password: Vec<u8>,
}

impl Identity {
    /// What `AUTH` or `HELLO … AUTH` presents; `None` if the command presents nothing.
    pub fn presented(request: &Request<'_>) -> Option<Identity> {
        let arg = |index| request.arg(index).map(<[u8]>::to_vec);
        let (user, password) = if request.arg_is(0, b"AUTH") {
            match request.len() {
                2 => (None, arg(1)?),
                3 => (arg(1), arg(2)?),
                _ => return None,
            }
        } else {
            let at = (2..request.len()).find(|at| request.arg_is(*at, b"AUTH"))?;
            (arg(at + 1), arg(at + 2)?)
        };
        Some(Identity(Rc::new(Credentials { user, password })))
    }

    /// The user's name, for an operator.
    pub fn user(&self) -> String {
        let user = self.0.user.as_deref().unwrap_or(b"default");
        String::from_utf8_lossy(user).into_owned()
    }

    fn write_auth(&self, out: &mut Vec<u8>) {
        match &self.0.user {
            None => write_command(out, &[b"AUTH", &self.0.password]),
            Some(user) => write_command(out, &[b"AUTH", user, &self.0.password]),
        }
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
            || (self.0.user == other.0.user && self.0.password == other.0.password)
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Of the user alone: no digest of a password is needed to tell lanes apart.
        self.0.user.hash(state);
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.password.zeroize();
    }
}

/// What a new connection shall be like.
#[derive(Default)]
pub(super) struct Wanted<'a> {
    pub identity: Option<&'a Identity>,
    pub db: u32,
    /// 2 or 3.
    pub resp: u8,
    pub name: Option<&'a [u8]>,
    /// Find out whether a login is wanted.
    pub probe: bool,
    /// Commands whose replies do not matter, and their number.
    pub more: (&'a [u8], usize),
}

/// A connection that is as it was wanted.
pub(super) struct Established {
    pub socket: Socket,
    /// The backend lets nobody do anything on it before a login.
    pub wants_login: bool,
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Unavailable {
    #[error("{0}")]
    Down(String),
    #[error("it refused {0}")]
    Refused(&'static str),
}

impl From<io::Error> for Unavailable {
    fn from(error: io::Error) -> Unavailable {
        Unavailable::Down(error.to_string())
    }
}

/// Opens a connection and brings it to where it is wanted, all within `connect_timeout`.
pub(super) async fn establish(
    context: &Context,
    database: &Database,
    wanted: &Wanted<'_>,
) -> Result<Established, Unavailable> {
    let limit = context.config.borrow().general.connect_timeout;
    let timed = async {
        let socket = context.connect(database).await?;
        // Where a client begins is the database that the config names; the mirrors and the secondary hold it so too.
        let db = numbers::database(wanted.db, database.db);
        let wants_login = prepare(&socket, wanted, db).await?;
        Ok(Established {
            socket,
            wants_login,
        })
    };
    match context.ring.timeout(limit, timed).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

/// The step of a command whose refusal is ignored.
const NO_MATTER: &str = "a command that does not matter";

/// Sends the preamble as one write and reads its replies. True: the backend wants a login first.
async fn prepare(socket: &Socket, wanted: &Wanted<'_>, db: u32) -> Result<bool, Unavailable> {
    let mut out = Vec::new();
    let mut steps: Vec<&'static str> = Vec::new();
    if let Some(identity) = wanted.identity {
        identity.write_auth(&mut out);
        steps.push("the login");
    } else if wanted.probe {
        // Shows whether a login is wanted, which decides how much a client may send.
        write_command(&mut out, &[b"PING"]);
        steps.push("PING");
    }
    if wanted.resp == 3 {
        write_command(&mut out, &[b"HELLO", b"3"]);
        steps.push("HELLO");
    }
    if db != 0 {
        write_command(&mut out, &[b"SELECT", db.to_string().as_bytes()]);
        steps.push("SELECT");
    }
    if let Some(name) = wanted.name {
        write_command(&mut out, &[b"CLIENT", b"SETNAME", name]);
        steps.push("CLIENT SETNAME");
    }
    out.extend_from_slice(wanted.more.0);
    steps.extend(std::iter::repeat_n(NO_MATTER, wanted.more.1));
    socket.write(&out);
    out.zeroize();
    let mut framer = ReplyFramer::new(REDIS_MIRROR_REPLY_BYTES_MAX);
    let mut wants_login = false;
    for step in steps {
        let error = first_line(socket, &mut framer).await?;
        match error {
            Some(line) if step == "PING" => wants_login = line.starts_with(b"-NOAUTH"),
            Some(_) if step == NO_MATTER => {}
            Some(_) => return Err(Unavailable::Refused(step)),
            None => {}
        }
    }
    Ok(wants_login)
}

/// Reads one reply; returns its first bytes if it is an error.
async fn first_line(
    socket: &Socket,
    framer: &mut ReplyFramer,
) -> Result<Option<Vec<u8>>, Unavailable> {
    let mut head = Vec::new();
    loop {
        let Some(chunk) = socket.recv().await? else {
            return Err(Unavailable::Down("it closed the connection".to_owned()));
        };
        let advance = framer
            .advance(&chunk)
            .map_err(|error| Unavailable::Down(error.to_string()))?;
        let piece = &chunk[..advance.consumed];
        head.extend_from_slice(&piece[..piece.len().min(64 - head.len().min(64))]);
        if advance.done {
            socket.unrecv(chunk.slice(advance.consumed..chunk.len()));
            let failed = matches!(framer.kind(), Some(b'-' | b'!'));
            return Ok(failed.then_some(head));
        }
    }
}

/// Appends a command as an array of bulk strings.
pub(super) fn write_command(out: &mut Vec<u8>, args: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}
