//! Checks a client's identity as PostgreSQL does: SCRAM-SHA-256, md5, clear-text password, trust.
//!
//! Sans-IO: bytes in, bytes out; random bytes are arguments. A user who does not exist goes through the same exchange and
//! fails at its end with the same text. No error and no `Debug` output holds a secret.

mod scram;

use std::fmt;

use postgres_protocol::authentication::md5_hash;
use subtle::ConstantTimeEq;
use thiserror::Error;

use scram::{Exchange, MECHANISM, ScramError};
pub use scram::{NONCE_LEN, Verifier};

use super::capture::Capture;
use super::framer::{FrameError, MessageFramer};
use super::login::Secret;
use super::startup::{Severity, encode_error, split_cstr};

/// Longest SASL message (`PG_MAX_SASL_MESSAGE_LENGTH`).
const SASL_MESSAGE_MAX: usize = 1024;
/// Longest password message (`PG_MAX_AUTH_TOKEN_LENGTH`).
const PASSWORD_MESSAGE_MAX: usize = 65_535;

/// How a client is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    Trust,
    /// Its password, as it is.
    Cleartext,
    /// md5 of password, user and salt.
    Md5,
    /// SCRAM-SHA-256.
    Scram,
}

/// What is known of the user.
#[derive(Debug, Clone)]
pub struct Account {
    /// The password, where it is known: md5 needs it.
    pub password: Option<Secret>,
    /// For SCRAM and clear text.
    pub verifier: Verifier,
}

/// Random bytes of one exchange.
#[derive(Clone, Copy)]
pub struct Nonces {
    /// The server's part of SCRAM's nonce.
    pub scram: [u8; NONCE_LEN],
    /// The salt of md5.
    pub md5_salt: [u8; 4],
}

/// How far an exchange is.
#[derive(Debug, PartialEq, Eq)]
pub enum AuthProgress {
    /// Send what is in `out` and read on.
    Continue,
    /// The client is who it says. AuthenticationOk is in `out`; so many bytes of this input were used.
    Accepted {
        /// Bytes behind these belong to the session.
        consumed: usize,
    },
}

/// Why a client is refused. Send [`AuthError::response`] and close.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AuthError {
    /// Password or proof are wrong, or there is no such user.
    #[error("password authentication failed for user \"{0}\"")]
    WrongPassword(String),
    /// An empty password, which no user has.
    #[error("empty password returned by client")]
    EmptyPassword,
    /// Something else than the answer that was asked for.
    #[error("expected {0} response, got message type {1}")]
    Unexpected(&'static str, u8),
    /// An answer that cannot be read.
    #[error("{0}")]
    Malformed(&'static str),
    /// The stream is not the protocol.
    #[error("{0}")]
    Frame(#[from] FrameError),
}

impl AuthError {
    /// The FATAL message for the client, with PostgreSQL's SQLSTATE and text.
    pub fn response(&self) -> Vec<u8> {
        let code = match self {
            Self::WrongPassword(_) | Self::EmptyPassword => "28P01",
            Self::Unexpected(..) | Self::Malformed(_) | Self::Frame(_) => "08P01",
        };
        encode_error(Severity::Fatal, code, &self.to_string())
    }
}

/// The FATAL message for a user who may not log in at all.
pub fn not_permitted(user: &[u8]) -> Vec<u8> {
    let user = String::from_utf8_lossy(user);
    let text = format!("role \"{user}\" is not permitted to log in");
    encode_error(Severity::Fatal, "28000", &text)
}

enum State {
    Password,
    Md5,
    SaslFirst,
    SaslLast(Box<Exchange>),
    Done,
}

/// One client's exchange.
pub struct AuthServer {
    user: Vec<u8>,
    known: bool,
    account: Account,
    nonces: Nonces,
    framer: MessageFramer,
    capture: Capture,
    state: State,
}

impl fmt::Debug for AuthServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthServer").finish_non_exhaustive()
    }
}

impl AuthServer {
    /// Begins: the first request is appended to `out`. `None` for an `account` that does not exist, which is mocked with
    /// `salt_secret`. With [`Method::Trust`] the client is accepted at once.
    pub fn begin(
        method: Method,
        user: &[u8],
        account: Option<Account>,
        nonces: Nonces,
        salt_secret: &[u8; 32],
        out: &mut Vec<u8>,
    ) -> (AuthServer, AuthProgress) {
        let known = account.is_some();
        let account = account.unwrap_or_else(|| Account {
            password: None,
            verifier: Verifier::mock(user, salt_secret),
        });
        let (state, progress) = match method {
            Method::Trust => {
                push_request(out, 0, &[]);
                (State::Done, AuthProgress::Accepted { consumed: 0 })
            }
            Method::Cleartext => {
                push_request(out, 3, &[]);
                (State::Password, AuthProgress::Continue)
            }
            Method::Md5 => {
                push_request(out, 5, &nonces.md5_salt);
                (State::Md5, AuthProgress::Continue)
            }
            Method::Scram => {
                push_request(out, 10, &[MECHANISM.as_bytes(), b"\0\0"].concat());
                (State::SaslFirst, AuthProgress::Continue)
            }
        };
        let server = AuthServer {
            user: user.to_vec(),
            known,
            account,
            nonces,
            framer: MessageFramer::client(),
            capture: Capture::default(),
            state,
        };
        (server, progress)
    }

    /// Reads what the client answered; what must be sent next is appended to `out`.
    ///
    /// # Errors
    /// Why the client is refused; nothing of `out` must be sent then.
    pub fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<AuthProgress, AuthError> {
        let mut at = 0;
        while at < input.len() {
            let advance = self.framer.advance(&input[at..])?;
            let body = &input[at + advance.body_at..at + advance.consumed];
            at += advance.consumed;
            let tag = self.framer.tag().unwrap_or_default();
            let (what, len_max) = match self.state {
                State::Password | State::Md5 => ("password", PASSWORD_MESSAGE_MAX),
                _ => ("SASL", SASL_MESSAGE_MAX),
            };
            if tag != b'p' {
                return Err(AuthError::Unexpected(what, tag));
            }
            let Some(len) = self.framer.body_len() else {
                continue;
            };
            if len > len_max {
                return Err(AuthError::Malformed("authentication message is too long"));
            }
            let mut capture = std::mem::take(&mut self.capture);
            let fed = capture.feed(advance.body_offset, body, advance.done, len_max);
            let accepted = match fed {
                Some((body, _)) => self.message(body, out)?,
                None => false,
            };
            self.capture = capture;
            if accepted {
                push_request(out, 0, &[]);
                return Ok(AuthProgress::Accepted { consumed: at });
            }
        }
        Ok(AuthProgress::Continue)
    }

    /// One whole answer; whether it proves the client.
    fn message(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<bool, AuthError> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Password => {
                let password = password_of(body)?;
                let right = match &self.account.password {
                    Some(known) => known.expose().ct_eq(password).into(),
                    // The rounds of a verifier are not spent on whoever does not exist.
                    None => self.known && self.account.verifier.fits(password),
                };
                self.decide(right)
            }
            State::Md5 => {
                let answer = password_of(body)?;
                let password = self.account.password.as_ref();
                let right = md5_hash(
                    &self.user,
                    password.map_or(b"", |password| password.expose()),
                    self.nonces.md5_salt,
                );
                let same: bool = answer.ct_eq(right.as_bytes()).into();
                self.decide(same && password.is_some())
            }
            State::SaslFirst => {
                let (mechanism, rest) =
                    split_cstr(body).ok_or(AuthError::Malformed("malformed SASL message"))?;
                if mechanism != MECHANISM.as_bytes() {
                    let text = "client selected an invalid SASL authentication mechanism";
                    return Err(AuthError::Malformed(text));
                }
                let first = rest
                    .split_first_chunk::<4>()
                    .filter(|(len, first)| u32::from_be_bytes(**len) as usize == first.len())
                    .ok_or(AuthError::Malformed("malformed SASL message"))?
                    .1;
                let verifier = self.account.verifier.clone();
                let (exchange, answer) = Exchange::begin(first, verifier, &self.nonces.scram)
                    .map_err(|error| self.scram_error(error))?;
                push_request(out, 11, &answer);
                self.state = State::SaslLast(Box::new(exchange));
                Ok(false)
            }
            State::SaslLast(exchange) => {
                let proof = exchange
                    .finish(body)
                    .map_err(|error| self.scram_error(error))?;
                push_request(out, 12, &proof);
                self.decide(true)
            }
            State::Done => Err(AuthError::Unexpected("no", b'p')),
        }
    }

    fn decide(&self, right: bool) -> Result<bool, AuthError> {
        if right && self.known {
            Ok(true)
        } else {
            Err(self.wrong_password())
        }
    }

    fn wrong_password(&self) -> AuthError {
        AuthError::WrongPassword(String::from_utf8_lossy(&self.user).into_owned())
    }

    fn scram_error(&self, error: ScramError) -> AuthError {
        AuthError::Malformed(match error {
            ScramError::WrongPassword => return self.wrong_password(),
            ScramError::Malformed => "malformed SCRAM message",
            ScramError::ChannelBinding => "SCRAM channel binding check failed",
            ScramError::Authzid => "client uses authorization identity, but it is not supported",
            ScramError::Nonce => "invalid SCRAM response",
        })
    }
}

/// The text of a password message.
fn password_of(body: &[u8]) -> Result<&[u8], AuthError> {
    match split_cstr(body) {
        Some((b"", _)) => Err(AuthError::EmptyPassword),
        Some((password, b"")) => Ok(password),
        _ => Err(AuthError::Malformed("invalid password packet size")),
    }
}

/// An Authentication… message.
fn push_request(out: &mut Vec<u8>, kind: u32, body: &[u8]) {
    out.push(b'R');
    out.extend((body.len() as u32 + 8).to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::super::login::{Login, LoginError, LoginParams, LoginProgress};
    use super::*;

    const SECRET: [u8; 32] = [9; 32];
    const NONCES: Nonces = Nonces {
        scram: [5; NONCE_LEN],
        md5_salt: [1, 2, 3, 4],
    };

    fn account(password: &str) -> Account {
        Account {
            password: Some(Secret::new(password)),
            verifier: Verifier::from_password(password.as_bytes(), b"ann", &SECRET),
        }
    }

    /// Our own login against our own check; the client's side is checked against real servers elsewhere. The bytes travel
    /// in pieces of `size`.
    fn meet(
        method: Method,
        account: Option<Account>,
        password: &str,
        size: usize,
    ) -> Result<(), Result<AuthError, LoginError>> {
        let mut login = Login::new(LoginParams {
            user: b"ann".to_vec(),
            database: b"shop".to_vec(),
            password: Some(Secret::new(password)),
            extra: Vec::new(),
        });
        let mut to_client = Vec::new();
        let (mut server, mut progress) =
            AuthServer::begin(method, b"ann", account, NONCES, &SECRET, &mut to_client);
        for _ in 0..4 {
            let mut to_server = Vec::new();
            for piece in std::mem::take(&mut to_client).chunks(size) {
                let said = login.receive(piece, &mut to_server).map_err(Err)?;
                assert!(matches!(said, LoginProgress::Continue));
            }
            if matches!(progress, AuthProgress::Accepted { .. }) {
                return Ok(());
            }
            for piece in to_server.chunks(size) {
                progress = server.receive(piece, &mut to_client).map_err(Ok)?;
            }
        }
        panic!("no end");
    }

    #[test]
    fn the_right_password_is_believed_however_its_bytes_are_cut() {
        for method in [Method::Trust, Method::Cleartext, Method::Md5, Method::Scram] {
            for size in [1, 7, 1000] {
                assert_eq!(meet(method, Some(account("pw")), "pw", size), Ok(()));
            }
        }
    }

    #[test]
    fn a_wrong_password_and_a_missing_user_fail_alike_in_every_method() {
        let failed = AuthError::WrongPassword("ann".into());
        for method in [Method::Cleartext, Method::Md5, Method::Scram] {
            let wrong = meet(method, Some(account("pw")), "other", 1000);
            assert_eq!(wrong, Err(Ok(failed.clone())), "{method:?}");
            let missing = meet(method, None, "pw", 1000);
            assert_eq!(missing, Err(Ok(failed.clone())), "{method:?}");
        }
        let text = String::from_utf8(failed.response()).unwrap();
        assert!(text.contains("C28P01\0"), "{text}");
        assert!(text.contains("password authentication failed for user \"ann\""));
    }

    #[test]
    fn md5_cannot_be_checked_by_a_verifier() {
        let mut only_verifier = account("pw");
        only_verifier.password = None;
        assert!(meet(Method::Md5, Some(only_verifier.clone()), "pw", 9).is_err());
        assert!(meet(Method::Md5, Some(only_verifier), "", 9).is_err());
    }

    #[test]
    fn other_messages_and_long_ones_are_refused_before_they_are_held() {
        let mut out = Vec::new();
        let mut begin =
            |method| AuthServer::begin(method, b"ann", None, NONCES, &SECRET, &mut out).0;
        let error = begin(Method::Scram).receive(b"Q\0\0\0\x08ab\0", &mut Vec::new());
        assert_eq!(error, Err(AuthError::Unexpected("SASL", b'Q')));
        let error = begin(Method::Scram).receive(b"p\0\0\x08\0", &mut Vec::new());
        assert!(matches!(error, Err(AuthError::Malformed(_))));
        let error = begin(Method::Cleartext).receive(b"p\0\0\0\x05\0", &mut Vec::new());
        assert_eq!(error, Err(AuthError::EmptyPassword));
        let error = begin(Method::Cleartext).receive(b"p\0\0\0\x07ab\0", &mut Vec::new());
        assert!(matches!(error, Err(AuthError::WrongPassword(_))));
        let error = begin(Method::Cleartext).receive(b"p\0\0\0\x07abc", &mut Vec::new());
        assert!(matches!(error, Err(AuthError::Malformed(_))));
    }
}
