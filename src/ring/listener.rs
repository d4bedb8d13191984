//! Accepting connections.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::task::Poll;

use io_uring::{cqueue, opcode, types};

use super::core::Ring;
use super::op::{Key, Op};
use super::socket::Socket;
use super::state::{End, State};
use crate::limits;

/// A listening socket of this core, on a multishot accept.
pub struct Listener {
    ring: Ring,
    key: Key,
    /// When a failure may be logged again.
    silent_until_ns: Cell<u64>,
}

impl Ring {
    /// Takes over a bound, listening socket (blocking mode; the ring waits, not the socket).
    pub fn listen(&self, socket: OwnedFd) -> Listener {
        let mut state = self.core.state.borrow_mut();
        let key = state.insert(socket);
        state.arm_accept(key);
        Listener {
            ring: self.clone(),
            key,
            silent_until_ns: Cell::new(0),
        }
    }
}

impl Listener {
    /// The next connection.
    ///
    /// When the process is out of descriptors or memory this pauses
    /// ([`limits::ACCEPT_RETRY`]) and tries again: connections wait in the backlog meanwhile, and nothing spins.
    ///
    /// # Errors
    /// Only those after which the listener cannot go on.
    pub async fn accept(&self) -> io::Result<Socket> {
        loop {
            let accepted = poll_fn(|cx| {
                let mut state = self.ring.core.state.borrow_mut();
                let slot = state.slot(self.key);
                if let Some(fd) = slot.accepted.pop_front() {
                    return Poll::Ready(Ok(fd));
                }
                if let Some(End::Error(error)) = slot.end.take() {
                    return Poll::Ready(Err(error));
                }
                slot.reader = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            match accepted {
                Ok(fd) => return Ok(Socket::accepted(&self.ring, fd)),
                Err(error) if passing(error) => {
                    self.complain(error);
                    self.ring.sleep(limits::ACCEPT_RETRY, false).await;
                    self.ring.core.state.borrow_mut().arm_accept(self.key);
                }
                Err(error) => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

impl Listener {
    fn complain(&self, error: i32) {
        let now_ns = self.ring.now_ns();
        if now_ns >= self.silent_until_ns.get() {
            let pause_ns = limits::ACCEPT_COMPLAINT_PAUSE.as_nanos() as u64;
            self.silent_until_ns.set(now_ns + pause_ns);
            let error = io::Error::from_raw_os_error(error);
            tracing::warn!(%error, "cannot accept; new connections wait");
        }
    }

    /// Accepts nobody any more: a waiting [`Listener::accept`] fails with `ECANCELED`.
    pub fn stop(&self) {
        let mut state = self.ring.core.state.borrow_mut();
        state.slot(self.key).end = Some(End::Error(libc::ECANCELED));
        state.close_listener(self.key);
    }
}

/// Whether an accept that failed so is worth another try.
fn passing(error: i32) -> bool {
    matches!(
        error,
        libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::ECONNABORTED
            | libc::EPROTO
            | libc::EPERM
            | libc::EAGAIN
            | libc::EINTR
    )
}

impl Drop for Listener {
    fn drop(&mut self) {
        let now_ns = self.ring.now_ns();
        self.ring.core.state.borrow_mut().close(self.key, now_ns);
    }
}

impl State {
    /// Cancels the accept and wakes who waits for it.
    fn close_listener(&mut self, key: Key) {
        if self.slot(key).accepting {
            self.cancel(key, Op::Accept);
        }
        if let Some(reader) = self.slot(key).reader.take() {
            reader.wake();
        }
    }

    fn arm_accept(&mut self, key: Key) {
        let slot = self.slot(key);
        let Some(fd) = &slot.fd else { return };
        if slot.accepting {
            return;
        }
        slot.accepting = true;
        let entry = opcode::AcceptMulti::new(types::Fd(fd.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC)
            .build();
        self.push(key, Op::Accept, entry);
    }

    pub(super) fn accepted(&mut self, key: Key, result: i32, flags: u32) {
        let fd = (result >= 0).then(|| {
            // SAFETY: the kernel has just made this descriptor for this completion; nobody else owns it.
            unsafe { OwnedFd::from_raw_fd(result) }
        });
        let slot = self.slot(key);
        let mut ended = false;
        if !cqueue::more(flags) {
            slot.accepting = false;
            slot.ops -= 1;
            ended = true;
        }
        let failed = fd.is_none();
        slot.accepted.extend(fd);
        if failed && result != -libc::ECANCELED {
            slot.end = Some(End::Error(-result));
        }
        let reader = slot.reader.take();
        self.wake.extend(reader);
        self.stats.accept_errors += u64::from(failed);
        if ended && !failed {
            self.arm_accept(key);
        }
        self.settle_closed(key);
    }
}
