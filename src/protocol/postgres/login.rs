//! A login that Parhelion makes itself: to a mirror, or to a primary when it terminates authentication.
//!
//! Sans-IO: bytes in, bytes out. Trust, clear-text password, md5 and SCRAM-SHA-256; the SCRAM and md5 messages come from the
//! `postgres-protocol` crate. A server that claims SCRAM must prove itself before it is believed. The password is held only
//! until it is used and is in no error and no `Debug` output.

use std::fmt;
use zeroize::Zeroizing;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use thiserror::Error;

use super::capture::Capture;
use super::framer::{FrameError, MessageFramer};
use super::startup::{CANCEL_KEY_LEN, StartupMessage, split_cstr};
use super::tracker::Sqlstate;

/// Longest message that is read during a login. PostgreSQL's own are below 1 KiB; notices may be longer.
const LOGIN_MESSAGE_MAX: usize = 64 * 1024;
/// Most settings that a server may report at login. PostgreSQL 18 reports 16.
const LOGIN_SETTINGS_MAX: usize = 256;
/// How much of a server's error text is kept.
const ERROR_TEXT_MAX: usize = 512;

/// A password that no log can show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for the message that needs it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Who logs in, where, and with which startup parameters.
#[derive(Debug, Clone)]
pub struct LoginParams {
    /// Role.
    pub user: Vec<u8>,
    /// Database.
    pub database: Vec<u8>,
    /// Needed unless the server trusts us.
    pub password: Option<Secret>,
    /// More startup parameters (`application_name`, `options`, `client_encoding` …).
    pub extra: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a finished login knows of the session.
#[derive(Debug, Clone, Default)]
pub struct LoggedIn {
    /// The settings that the server reported.
    pub settings: Vec<(Vec<u8>, Vec<u8>)>,
    /// What a CancelRequest needs, if the server gave it.
    pub backend_key: Option<BackendKey>,
    /// The notices that came with it, as messages (at most 64 KiB).
    pub notices: Vec<u8>,
}

/// Process and secret of a session, for its CancelRequest.
#[derive(Clone, PartialEq, Eq)]
pub struct BackendKey {
    /// The server process.
    pub pid: u32,
    /// 4 to 256 bytes.
    pub key: Box<[u8]>,
}

impl fmt::Debug for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendKey")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// How far a login is.
#[derive(Debug)]
pub enum LoginProgress {
    /// Send what is in `out` and read on.
    Continue,
    /// ReadyForQuery was read; `consumed` bytes of the input were used.
    Done {
        /// What was learnt.
        session: LoggedIn,
        /// Bytes of this call's input that belong to the login. Nothing should follow them.
        consumed: usize,
    },
}

/// Why a login failed. Close the connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoginError {
    /// The server's own error: wrong password, no such database, too many connections.
    #[error("server refuses the login: {sqlstate}: {message}")]
    Server {
        /// Its SQLSTATE.
        sqlstate: Sqlstate,
        /// Its text, at most 512 bytes.
        message: String,
        /// The ErrorResponse's body, for a client on whose behalf the login is made.
        body: Box<[u8]>,
    },
    /// The server wants a password and none is configured.
    #[error("server asks for a password and none is configured")]
    PasswordRequired,
    /// The server wants something else than a password.
    #[error("server asks for {0}, which is not supported")]
    UnsupportedAuth(&'static str),
    /// The SCRAM exchange went wrong; the server may not be who it says.
    #[error("SCRAM-SHA-256: {0}")]
    Scram(String),
    /// The stream is not the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A message that has no place here, or is malformed or too long.
    #[error("unexpected or malformed message of type 0x{0:02X} during login")]
    Protocol(u8),
}

enum State {
    /// Nothing asked yet.
    Asked,
    /// SCRAM: our first message is out.
    ScramFirst(Box<ScramSha256>),
    /// SCRAM: our proof is out.
    ScramFinal(Box<ScramSha256>),
    /// A password is out, or the server has proved itself: AuthenticationOk may come.
    Proved,
    /// Waiting for the first ReadyForQuery.
    Accepted,
}

/// One login under way.
pub struct Login {
    params: LoginParams,
    /// The startup packet of the client on whose behalf it is.
    startup: Option<StartupMessage>,
    framer: MessageFramer,
    capture: Capture,
    state: State,
    session: LoggedIn,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("params", &self.params)
            .finish_non_exhaustive()
    }
}

impl Login {
    /// A login that has not begun.
    pub fn new(params: LoginParams) -> Self {
        Self {
            params,
            startup: None,
            framer: MessageFramer::server(),
            capture: Capture::default(),
            state: State::Asked,
            session: LoggedIn::default(),
        }
    }

    /// A login on behalf of a client, with everything that its startup packet asks for but user and database.
    pub fn on_behalf(mut startup: StartupMessage, params: LoginParams) -> Self {
        startup.minor = 0;
        let options: Vec<_> = startup
            .params()
            .map(|(name, _)| name.to_vec())
            .filter(|name| name.starts_with(b"_pq_."))
            .collect();
        for name in options {
            startup.remove(&name);
        }
        startup.set(b"user", &params.user);
        startup.set(b"database", &params.database);
        Self {
            startup: Some(startup),
            ..Self::new(params)
        }
    }

    /// The startup packet.
    pub fn start(&self) -> Vec<u8> {
        if let Some(startup) = &self.startup {
            return startup.encode();
        }
        let mut startup = StartupMessage::new(&self.params.user, &self.params.database);
        for (name, value) in &self.params.extra {
            if !matches!(
                name.as_slice(),
                b"" | b"user" | b"database" | b"replication"
            ) {
                startup.set(name, value);
            }
        }
        startup.encode()
    }

    /// Reads what the server answered; what must be sent next is appended to `out`.
    pub fn receive(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<LoginProgress, LoginError> {
        let mut at = 0;
        while at < input.len() {
            let advance = self.framer.advance(&input[at..])?;
            let body = &input[at + advance.body_at..at + advance.consumed];
            at += advance.consumed;
            let Some(len) = self.framer.body_len() else {
                continue;
            };
            let tag = self.framer.tag().unwrap_or_default();
            if len > LOGIN_MESSAGE_MAX {
                return Err(LoginError::Protocol(tag));
            }
            let mut capture = std::mem::take(&mut self.capture);
            let fed = capture.feed(advance.body_offset, body, advance.done, LOGIN_MESSAGE_MAX);
            let done = match fed {
                Some((body, _)) => self.message(tag, body, out)?,
                None => false,
            };
            self.capture = capture;
            if done {
                let session = std::mem::take(&mut self.session);
                return Ok(LoginProgress::Done {
                    session,
                    consumed: at,
                });
            }
        }
        Ok(LoginProgress::Continue)
    }

    /// One whole message; whether the login is complete.
    fn message(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Result<bool, LoginError> {
        let malformed = LoginError::Protocol(tag);
        let accepted = matches!(self.state, State::Accepted);
        match tag {
            b'E' => return Err(server_error(body)),
            b'N' => {
                let notices = &mut self.session.notices;
                if notices.len() + body.len() <= LOGIN_MESSAGE_MAX {
                    notices.push(b'N');
                    notices.extend((body.len() as u32 + 4).to_be_bytes());
                    notices.extend_from_slice(body);
                }
            }
            b'v' => {}
            b'R' if !accepted => {
                let (kind, rest) = body.split_first_chunk::<4>().ok_or(malformed)?;
                self.authentication(u32::from_be_bytes(*kind), rest, out)?;
            }
            b'S' if accepted => {
                let (name, rest) = split_cstr(body).ok_or(malformed.clone())?;
                let (value, _) = split_cstr(rest).ok_or(malformed.clone())?;
                if self.session.settings.len() == LOGIN_SETTINGS_MAX {
                    return Err(malformed);
                }
                self.session.settings.push((name.to_vec(), value.to_vec()));
            }
            b'K' if accepted => {
                let (pid, key) = body.split_first_chunk::<4>().ok_or(malformed.clone())?;
                if !CANCEL_KEY_LEN.contains(&key.len()) {
                    return Err(malformed);
                }
                let pid = u32::from_be_bytes(*pid);
                self.session.backend_key = Some(BackendKey {
                    pid,
                    key: key.into(),
                });
            }
            b'Z' if accepted => return Ok(true),
            _ => return Err(malformed),
        }
        Ok(false)
    }

    fn authentication(
        &mut self,
        kind: u32,
        rest: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), LoginError> {
        let state = std::mem::replace(&mut self.state, State::Asked);
        self.state = match (kind, state) {
            (0, State::Asked | State::Proved) => State::Accepted,
            (3, State::Asked) => {
                let mut password = self.password()?.expose().to_vec();
                password.push(0);
                push_message(out, &password);
                State::Proved
            }
            (5, State::Asked) => {
                let salt = rest.try_into().map_err(|_| LoginError::Protocol(b'R'))?;
                let hash = md5_hash(&self.params.user, self.password()?.expose(), salt);
                push_message(out, format!("{hash}\0").as_bytes());
                State::Proved
            }
            (10, State::Asked) => self.scram_begin(rest, out)?,
            (11, State::ScramFirst(mut scram)) => {
                scram.update(rest).map_err(scram_error)?;
                push_message(out, scram.message());
                State::ScramFinal(scram)
            }
            (12, State::ScramFinal(mut scram)) => {
                scram.finish(rest).map_err(scram_error)?;
                State::Proved
            }
            (2, _) => return Err(LoginError::UnsupportedAuth("Kerberos V5")),
            (7, _) => return Err(LoginError::UnsupportedAuth("GSSAPI")),
            (9, _) => return Err(LoginError::UnsupportedAuth("SSPI")),
            (0, _) => {
                return Err(LoginError::Scram(
                    "server did not prove that it knows the password".into(),
                ));
            }
            _ => return Err(LoginError::Protocol(b'R')),
        };
        Ok(())
    }

    fn scram_begin(&self, mechanisms: &[u8], out: &mut Vec<u8>) -> Result<State, LoginError> {
        if !mechanisms
            .split(|byte| *byte == 0)
            .any(|name| name == SCRAM_SHA_256.as_bytes())
        {
            return Err(LoginError::UnsupportedAuth("SASL other than SCRAM-SHA-256"));
        }
        let password = self.password()?.expose();
        let scram = Box::new(ScramSha256::new(password, ChannelBinding::unsupported()));
        let mut body = SCRAM_SHA_256.as_bytes().to_vec();
        body.push(0);
        body.extend((scram.message().len() as i32).to_be_bytes());
        body.extend_from_slice(scram.message());
        push_message(out, &body);
        Ok(State::ScramFirst(scram))
    }

    fn password(&self) -> Result<&Secret, LoginError> {
        self.params
            .password
            .as_ref()
            .ok_or(LoginError::PasswordRequired)
    }
}

/// A password, SASLInitialResponse or SASLResponse message: all have the type `p`.
fn push_message(out: &mut Vec<u8>, body: &[u8]) {
    out.push(b'p');
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
}

fn scram_error(error: std::io::Error) -> LoginError {
    LoginError::Scram(error.to_string().chars().take(ERROR_TEXT_MAX).collect())
}

/// SQLSTATE and text of an ErrorResponse.
fn server_error(whole: &[u8]) -> LoginError {
    let mut body = whole;
    let (mut sqlstate, mut message) = (Sqlstate::new(b""), String::new());
    while let Some((&field, rest)) = body.split_first() {
        let Some((text, rest)) = split_cstr(rest) else {
            break;
        };
        match field {
            b'C' => sqlstate = Sqlstate::new(text),
            b'M' => {
                let text = &text[..text.len().min(ERROR_TEXT_MAX)];
                message = String::from_utf8_lossy(text).into_owned();
            }
            _ => {}
        }
        body = rest;
    }
    LoginError::Server {
        sqlstate,
        message,
        body: whole.into(),
    }
}

#[cfg(test)]
mod tests;
