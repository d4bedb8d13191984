//! TLS over a socket of the ring: rustls without I/O of its own, between the socket's bytes and its user.
//!
//! What is received is decrypted when the user asks for it, never ahead, so the socket's own bound on unread bytes
//! holds under TLS too; what is written is encrypted at once and waits in the socket's queue, which
//! [`Socket::drained`] watches. Only handshakes take turns of their own ([`Socket::secure`]).
//!
//! A stream that ends without the peer's close_notify was cut by somebody: its reader gets an error, not an end.

#![deny(unsafe_code)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::task::{Context, Poll, ready};

use rustls::Connection;

use super::chunk::Chunk;
use super::socket::{Handle, Socket};
use crate::limits;

/// The TLS side of one connection.
pub(super) struct Secure {
    connection: Connection,
    /// Decrypted and not taken. More than one piece of received bytes is never in here, but for what was put back.
    plain: VecDeque<Chunk>,
    /// The peer has said that it sends no more.
    peer_closed: bool,
    /// We have said, or will not say, that we send no more.
    closed: bool,
    /// Receiving was ended from our side: the end that the socket then reports is no cut.
    stopped: bool,
    failure: Option<Failure>,
    /// Bytes that TLS itself has written since the socket's queue was last empty.
    answers: usize,
}

#[derive(Clone, Debug)]
enum Failure {
    Cut,
    Protocol(rustls::Error),
    AnswersUnread,
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        match failure {
            Failure::Cut => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the TLS stream was cut: an end without close_notify",
            ),
            Failure::Protocol(error) => io::Error::new(io::ErrorKind::InvalidData, error),
            Failure::AnswersUnread => io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer asks TLS for answers and reads none",
            ),
        }
    }
}

/// What a finished handshake has settled.
#[derive(Clone, Debug, Default)]
pub struct Secured {
    /// The application protocol (ALPN) that both sides want.
    pub alpn: Option<Vec<u8>>,
    /// The peer's own certificate (DER), where it showed one.
    pub certificate: Option<Vec<u8>>,
}

impl Socket {
    /// Does a TLS handshake and speaks TLS from then on, through every clone of this socket. Bytes that were received or
    /// put back and not taken are the handshake's. There is no time limit here; see [`super::Ring::timeout`].
    ///
    /// # Errors
    /// When the handshake fails, the peer leaves, or the connection speaks TLS already. The connection is of no use
    /// then.
    pub async fn secure(&self, connection: Connection) -> io::Result<Secured> {
        let secure = Box::new(RefCell::new(Secure::new(connection)));
        if self.0.tls.set(secure).is_err() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        poll_fn(|cx| match self.0.tls.get() {
            Some(tls) => tls.borrow_mut().poll_handshake(&self.0, cx),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        })
        .await?;
        self.secured()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// What the handshake has settled; `None` on a plain connection.
    pub fn secured(&self) -> Option<Secured> {
        let secure = self.0.tls.get()?.borrow();
        let certificates = secure.connection.peer_certificates();
        Some(Secured {
            alpn: secure.connection.alpn_protocol().map(<[u8]>::to_vec),
            certificate: certificates
                .and_then(|chain| chain.first())
                .map(|own| own.to_vec()),
        })
    }

    /// Whether this connection speaks TLS.
    pub fn is_secure(&self) -> bool {
        self.0.tls.get().is_some()
    }
}

impl Secure {
    fn new(mut connection: Connection) -> Secure {
        // What is written is encrypted and passed on at once: nothing gathers in there, and a write must not be cut.
        connection.set_buffer_limit(None);
        Secure {
            connection,
            plain: VecDeque::new(),
            peer_closed: false,
            closed: false,
            stopped: false,
            failure: None,
            answers: 0,
        }
    }

    fn poll_handshake(&mut self, handle: &Handle, cx: &Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.pass_on(handle);
            if let Some(failure) = self.failure.clone() {
                return Poll::Ready(Err(failure.into()));
            }
            if !self.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            match ready!(handle.poll_receive(cx))? {
                Some(bytes) => self.feed(handle, &bytes),
                None => self.fail(Failure::Cut),
            }
        }
    }

    pub(super) fn poll_receive(
        &mut self,
        handle: &Handle,
        cx: &Context<'_>,
    ) -> Poll<io::Result<Option<Chunk>>> {
        loop {
            if let Some(plain) = self.plain.pop_front() {
                return Poll::Ready(Ok(Some(plain)));
            }
            if let Some(failure) = self.failure.clone() {
                return Poll::Ready(Err(failure.into()));
            }
            if self.peer_closed {
                return Poll::Ready(Ok(None));
            }
            match ready!(handle.poll_receive(cx))? {
                Some(bytes) => self.feed(handle, &bytes),
                None if self.stopped => return Poll::Ready(Ok(None)),
                None => self.fail(Failure::Cut),
            }
        }
    }

    pub(super) fn put_back(&mut self, plain: Chunk) {
        self.plain.push_front(plain);
    }

    pub(super) fn write(&mut self, handle: &Handle, bytes: &[u8]) {
        if self.closed {
            return;
        }
        for piece in bytes.chunks(limits::TLS_WRITE_BYTES) {
            // Without a limit the writer takes all of it.
            let _ = self.connection.writer().write_all(piece);
            self.pass_on(handle);
        }
    }

    /// Says that we send no more; unless the stream failed: then its end must not look like one that was meant.
    pub(super) fn close(&mut self, handle: &Handle) {
        let told = std::mem::replace(&mut self.closed, true);
        if !told && self.failure.is_none() && !self.connection.is_handshaking() {
            self.connection.send_close_notify();
            self.pass_on(handle);
        }
    }

    /// Sends nothing any more, no close_notify either.
    pub(super) fn abandon(&mut self) {
        self.closed = true;
    }

    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether nothing more can be read. Looks through what the socket holds, which may be TLS's own messages.
    pub(super) fn is_ended(&mut self, handle: &Handle) -> bool {
        loop {
            if !self.plain.is_empty() {
                return false;
            }
            if self.peer_closed || self.failure.is_some() {
                return true;
            }
            match handle.take_received() {
                Some(bytes) => self.feed(handle, &bytes),
                None => return handle.is_ended(),
            }
        }
    }

    /// Decrypts received bytes.
    fn feed(&mut self, handle: &Handle, mut bytes: &[u8]) {
        let mut plain = Vec::new();
        while !bytes.is_empty() && !self.peer_closed && self.failure.is_none() {
            // Reading from a slice does not fail, and plaintext is taken out before the next read.
            let read = self.connection.read_tls(&mut bytes);
            let state = match (read, self.connection.process_new_packets()) {
                (Ok(1..), Ok(state)) => state,
                (_, Err(error)) => {
                    self.fail(Failure::Protocol(error));
                    break;
                }
                (_, Ok(_)) => break,
            };
            let (at, more) = (plain.len(), state.plaintext_bytes_to_read());
            if more > 0 {
                plain.reserve(more.max(bytes.len()));
                plain.resize(at + more, 0);
                let _ = self.connection.reader().read_exact(&mut plain[at..]);
            }
            self.peer_closed = state.peer_has_closed();
        }
        if !plain.is_empty() {
            plain.shrink_to_fit();
            self.plain.push_back(Chunk::from(plain));
        }
        self.answer(handle);
    }

    /// Passes on what TLS itself has to say, as long as the peer takes it.
    fn answer(&mut self, handle: &Handle) {
        let before = handle.queued();
        if before == 0 {
            self.answers = 0;
        }
        self.pass_on(handle);
        self.answers += handle.queued().saturating_sub(before);
        if self.answers > limits::TLS_UNREAD_ANSWERS_BYTES {
            self.fail(Failure::AnswersUnread);
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    fn pass_on(&mut self, handle: &Handle) {
        while self.connection.wants_write() {
            // Queueing does not fail.
            if !matches!(self.connection.write_tls(&mut Outgoing(handle)), Ok(1..)) {
                return;
            }
        }
    }
}

/// Takes encrypted bytes into the socket's queue.
struct Outgoing<'a>(&'a Handle);

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        pieces.iter().for_each(|piece| self.0.write(piece));
        Ok(pieces.iter().map(|piece| piece.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
