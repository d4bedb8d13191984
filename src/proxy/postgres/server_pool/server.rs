//! A logged-in connection: its session, and what we say on it while no client holds it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future::poll_once;

use super::{PoolError, Soiled};
use crate::limits::{POOL_RESET_TIMEOUT, POSTGRES_AUTH_TIMEOUT};
use crate::protocol::postgres::framer::MessageFramer;
use crate::protocol::postgres::rename::ServerStatements;
use crate::protocol::postgres::session::SessionState;
use crate::protocol::postgres::startup::push_message;
use crate::proxy::Context;
use crate::proxy::postgres::cancel::CancelTarget;
use crate::proxy::postgres::terminate::OpenError;
use crate::ring::Socket;

/// Longest message that is read while no client holds the connection: settings, notices, errors.
const OWN_MESSAGE_MAX: usize = 64 * 1024;
/// How often a connection with a cancel request on its way is looked at.
const CANCEL_LOOK: Duration = Duration::from_millis(1);
/// A logged-in connection.
pub(in crate::proxy::postgres) struct Server {
    pub socket: Socket,
    /// What its session has.
    pub state: SessionState,
    pub statements: ServerStatements,
    /// The settings that the server reports, in its order.
    pub reported: Vec<(Vec<u8>, Vec<u8>)>,
    pub target: Option<Arc<CancelTarget>>,
}

impl Server {
    /// Whether it still stands; reads what arrived while nobody held it.
    pub(super) async fn is_alive(&mut self) -> bool {
        let mut own = Own::default();
        loop {
            match poll_once(self.socket.recv()).await {
                None => return true,
                Some(Ok(Some(chunk))) if self.read_own(&mut own, &chunk).is_ok() => {
                    if own.error.is_some() {
                        return false;
                    }
                }
                Some(_) => return false,
            }
        }
    }

    pub(super) fn is_aimed_at(&self) -> bool {
        self.target
            .as_ref()
            .is_some_and(|target| target.is_aimed_at())
    }

    /// As it was behind its login.
    pub(super) fn fresh_state(&self) -> SessionState {
        SessionState::fresh(
            self.reported
                .iter()
                .map(|(name, value)| (&name[..], &value[..])),
        )
    }

    /// The server reports a setting.
    pub fn parameter_status(&mut self, name: &[u8], value: &[u8]) {
        self.state.parameter_status(name, value);
        match self.reported.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => value.clone_into(known),
            None => self.reported.push((name.to_vec(), value.to_vec())),
        }
    }

    /// Brings the session to where the client's is.
    pub async fn adopt(
        &mut self,
        context: &Context,
        wanted: &SessionState,
    ) -> Result<(), PoolError> {
        let statements = wanted.diff(&self.state);
        if !statements.is_empty() {
            let limit = context.config.borrow().general.connect_timeout;
            let run = self.run(&statements);
            context
                .ring
                .timeout(limit, run)
                .await
                .map_err(|_| PoolError::Io(io::ErrorKind::TimedOut.into()))??;
            self.state.adopt(wanted);
        }
        Ok(())
    }

    /// Makes it fit for another client.
    pub(super) async fn clean(
        &mut self,
        context: &Context,
        soiled: Soiled,
    ) -> Result<(), PoolError> {
        let aimed = async {
            while self.is_aimed_at() {
                context.ring.sleep(CANCEL_LOOK, false).await;
            }
        };
        let timed_out = |_| PoolError::Io(io::ErrorKind::TimedOut.into());
        context
            .ring
            .timeout(POSTGRES_AUTH_TIMEOUT, aimed)
            .await
            .map_err(timed_out)?;
        let mut statements = Vec::new();
        if soiled.transaction {
            statements.push(b"ROLLBACK".to_vec());
        }
        if soiled.session {
            statements.push(b"DISCARD ALL".to_vec());
        }
        if statements.is_empty() {
            return Ok(());
        }
        let run = self.run(&statements);
        context
            .ring
            .timeout(POOL_RESET_TIMEOUT, run)
            .await
            .map_err(timed_out)??;
        if soiled.session {
            self.statements = ServerStatements::default();
            self.state = self.fresh_state();
        }
        Ok(())
    }

    /// Runs statements of our own; the first error ends them.
    async fn run(&mut self, statements: &[Vec<u8>]) -> Result<(), PoolError> {
        let mut messages = Vec::new();
        for sql in statements {
            push_message(&mut messages, b'Q', &[sql, &b"\0"[..]].concat());
        }
        self.socket.write(&messages);
        let mut own = Own::default();
        while own.ready < statements.len() {
            let Some(chunk) = self.socket.recv().await? else {
                return Err(PoolError::Open(OpenError::Closed));
            };
            self.read_own(&mut own, &chunk)?;
        }
        own.error
            .map_or(Ok(()), |body| Err(PoolError::Refused(body)))
    }

    /// Reads what the server says to us and not to a client.
    fn read_own(&mut self, own: &mut Own, chunk: &[u8]) -> io::Result<()> {
        own.bytes.extend_from_slice(chunk);
        let mut at = 0;
        while let Some((head, _)) = own.bytes[at..].split_first_chunk::<5>() {
            let mut framer = MessageFramer::server();
            framer.advance(head).map_err(io::Error::other)?;
            let end = at + head.len() + framer.body_len().unwrap_or_default();
            if end - at > OWN_MESSAGE_MAX {
                return Err(io::Error::other("a message is too long"));
            }
            let Some(body) = own.bytes.get(at + head.len()..end) else {
                break;
            };
            match head[0] {
                b'Z' => own.ready += 1,
                b'E' if own.error.is_none() => own.error = Some(body.to_vec()),
                b'S' => {
                    if let Some((name, rest)) = cut(body)
                        && let Some((value, _)) = cut(rest)
                    {
                        let (name, value) = (name.to_vec(), value.to_vec());
                        self.parameter_status(&name, &value);
                    }
                }
                _ => {}
            }
            at = end;
        }
        own.bytes.drain(..at);
        Ok(())
    }
}

/// A conversation of our own with a server.
#[derive(Default)]
struct Own {
    bytes: Vec<u8>,
    ready: usize,
    error: Option<Vec<u8>>,
}

/// The bytes before the first zero byte and those behind it.
fn cut(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}
