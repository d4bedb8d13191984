//! A connected stream socket, TCP or unix.

use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use io_uring::{opcode, types};
use socket2::{Domain, SockAddr, SockRef, TcpKeepalive, Type};

use super::aside::{Home, stamp_arrivals};
use super::chunk::Chunk;
use super::core::Ring;
use super::op::{Key, Op};
use super::out::BY_REFERENCE_BYTES;
use super::secure::Secure;
use super::state::{Connecting, End, State};

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A resolved TCP address.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connection. Clones share it; when the last clone goes, what was written still leaves (for at most
/// [`crate::limits::LINGER`]) and the connection closes.
#[derive(Clone)]
pub struct Socket(pub(super) Rc<Handle>);

pub(super) struct Handle {
    ring: Ring,
    key: Key,
    /// TLS over this connection; a plain one pays one look at this.
    pub(super) tls: OnceCell<Box<RefCell<Secure>>>,
}

/// What TLS costs a plain connection: one empty pointer.
const _: () = assert!(size_of::<OnceCell<Box<RefCell<Secure>>>>() == size_of::<usize>());

/// Idle connections are probed after this time, so that a peer that vanished is noticed.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

impl Ring {
    /// Connects a new socket.
    ///
    /// # Errors
    /// Whatever the system reports: refused, unreachable, out of descriptors. There is no time limit here; see
    /// [`Ring::timeout`].
    pub async fn connect(&self, address: &Address) -> io::Result<Socket> {
        self.connect_on(address, Home::Main).await
    }

    /// The same for a peer that nobody waits for, a mirror: while clients keep the core busy, what it sends does not wake the core
    /// but is heard with the core's next turn. [`Socket::heard_ns`] says when it came.
    ///
    /// # Errors
    /// As [`Ring::connect`].
    pub async fn connect_aside(&self, address: &Address) -> io::Result<Socket> {
        // The kernel stamps TCP alone, and a mirror is not to look slower than it is.
        let aside = matches!(address, Address::Tcp(_)) && self.set_aside();
        let home = if aside { Home::Aside } else { Home::Main };
        self.connect_on(address, home).await
    }

    async fn connect_on(&self, address: &Address, home: Home) -> io::Result<Socket> {
        let (domain, target) = match address {
            Address::Tcp(address) => (Domain::for_address(*address), SockAddr::from(*address)),
            Address::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
        };
        let fd = OwnedFd::from(socket2::Socket::new(domain, Type::STREAM.cloexec(), None)?);
        let connecting = Connecting {
            address: Box::new(target),
            result: None,
        };
        let socket = Socket::insert(self, fd, Some(connecting), home);
        let result = poll_fn(|cx| {
            let mut state = self.core.state.borrow_mut();
            let slot = state.slot(socket.0.key);
            match slot.connect.as_ref().and_then(|connect| connect.result) {
                Some(result) => {
                    slot.connect = None;
                    Poll::Ready(result)
                }
                None => {
                    slot.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        self.core.state.borrow_mut().arm_receive(socket.0.key);
        Ok(socket)
    }
}

impl Socket {
    pub(super) fn accepted(ring: &Ring, fd: OwnedFd) -> Socket {
        let socket = Socket::insert(ring, fd, None, Home::Main);
        ring.core.state.borrow_mut().arm_receive(socket.0.key);
        socket
    }

    fn insert(ring: &Ring, fd: OwnedFd, connecting: Option<Connecting>, home: Home) -> Socket {
        // On a unix socket these do not exist; and none of them is worth refusing a client for.
        let options = SockRef::from(&fd);
        let _ = options.set_tcp_nodelay(true);
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_EVERY);
        let _ = options.set_tcp_keepalive(&keepalive);
        // Only what this core connects to itself: primaries and mirrors.
        let stamped = connecting.is_some() && ring.core.aside().is_some() && stamp_arrivals(&fd);
        let mut state = ring.core.state.borrow_mut();
        let raw = fd.as_raw_fd();
        let key = state.insert(fd);
        state.slot(key).home = home;
        state.slot(key).stamped = stamped;
        if let Some(connecting) = connecting {
            let (base, len) = (connecting.address.as_ptr(), connecting.address.len());
            state.slot(key).connect = Some(connecting);
            let connect = opcode::Connect::new(types::Fd(raw), base.cast(), len).build();
            state.push(key, Op::Connect, connect);
        }
        drop(state);
        Socket(Rc::new(Handle {
            ring: ring.clone(),
            key,
            tls: OnceCell::new(),
        }))
    }

    /// The next received bytes; `None` at the peer's end of stream.
    ///
    /// # Errors
    /// When the connection broke (reset, keepalive timeout; under TLS also a stream that was cut or tampered with).
    pub async fn recv(&self) -> io::Result<Option<Chunk>> {
        poll_fn(|cx| match self.0.tls.get() {
            None => self.0.poll_receive(cx),
            Some(tls) => tls.borrow_mut().poll_receive(&self.0, cx),
        })
        .await
    }

    /// When the bytes that [`Socket::recv`] returned last came in: the time of that turn, however long they waited for
    /// their reader. A mirror's tasks may wait long on a busy core, which is not the mirror's slowness. Nor is it that its bytes
    /// did not end the core's sleep ([`Ring::connect_aside`]): then this is when they came.
    pub fn heard_ns(&self) -> u64 {
        self.state().slot(self.0.key).heard_ns
    }

    /// Puts back bytes that were taken too early; the next [`Socket::recv`] returns them.
    pub fn unrecv(&self, chunk: Chunk) {
        if chunk.is_empty() {
            return;
        }
        if let Some(tls) = self.0.tls.get() {
            return tls.borrow_mut().put_back(chunk);
        }
        let mut state = self.state();
        let slot = state.slot(self.0.key);
        slot.received_bytes += chunk.len();
        slot.received.push_front((slot.heard_ns, chunk));
    }

    /// Queues a copy of `bytes`; they leave at the end of this turn. After a send error they are discarded:
    /// the reader learns of the loss.
    pub fn write(&self, bytes: &[u8]) {
        match self.0.tls.get() {
            None => self.0.write(bytes),
            Some(tls) => tls.borrow_mut().write(&self.0, bytes),
        }
    }

    /// Queues received bytes, by reference where that is cheaper than a copy.
    pub fn send(&self, chunk: Chunk) {
        let small = chunk.len() < BY_REFERENCE_BYTES;
        if small || self.0.tls.get().is_some() || self.0.ring.slabs_scarce() {
            return self.write(&chunk);
        }
        let mut state = self.state();
        let State { slots, spare, .. } = &mut *state;
        let slot = &mut slots[self.0.key.slot as usize];
        if slot.send_error.is_none() {
            slot.out.chunk(chunk, spare);
            state.mark_dirty(self.0.key);
        }
    }

    /// Bytes queued here that the kernel has not taken.
    pub fn queued(&self) -> usize {
        self.0.queued()
    }

    /// Waits until at most `level` bytes are queued.
    ///
    /// # Errors
    /// When sending failed: nothing more will leave.
    pub async fn drained(&self, level: usize) -> io::Result<()> {
        poll_fn(|cx| {
            let mut state = self.state();
            let slot = state.slot(self.0.key);
            if let Some(error) = slot.send_error {
                return Poll::Ready(Err(io::Error::from_raw_os_error(error)));
            }
            if slot.out.len() <= level {
                return Poll::Ready(Ok(()));
            }
            slot.writers.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Ends our direction after what is queued has left; receiving goes on.
    pub fn shutdown_write(&self) {
        if let Some(tls) = self.0.tls.get() {
            tls.borrow_mut().close(&self.0);
        }
        let mut state = self.state();
        let slot = state.slot(self.0.key);
        if slot.out.len() > 0 {
            slot.shutdown_wanted = true;
        } else {
            state.shutdown_now(self.0.key);
        }
    }

    /// Ends receiving from here: what arrived is still read, then the reader sees the end of the stream.
    pub fn stop_receiving(&self) {
        if let Some(tls) = self.0.tls.get() {
            tls.borrow_mut().stop();
        }
        self.state().stop_receiving(self.0.key);
    }

    /// A handle that does not keep the connection open.
    pub fn downgrade(&self) -> WeakSocket {
        WeakSocket(Rc::downgrade(&self.0))
    }

    /// Makes the close that follows a reset instead of an orderly end. What has not left is dropped at once.
    pub fn reset_on_close(&self) {
        if let Some(tls) = self.0.tls.get() {
            tls.borrow_mut().abandon();
        }
        let mut state = self.state();
        let slot = state.slot(self.0.key);
        if let Some(fd) = &slot.fd {
            let _ = SockRef::from(fd).set_linger(Some(Duration::ZERO));
        }
        state.abandon(self.0.key);
    }

    /// Whether the peer has ended or the connection is lost; received bytes may still wait for their reader.
    pub fn is_ended(&self) -> bool {
        match self.0.tls.get() {
            None => self.0.is_ended(),
            Some(tls) => tls.borrow_mut().is_ended(&self.0),
        }
    }

    /// When bytes last came in or the kernel last took some, on the clock of [`Ring::now_ns`].
    pub fn active_ns(&self) -> u64 {
        self.state().slot(self.0.key).active_ns
    }

    /// Breaks the connection when the peer has been unreachable for `timeout`: at the latest a second after
    /// that, whether we send or are silent. Also when it takes no byte for that long, which TCP does not tell apart.
    pub fn lose_after(&self, timeout: Duration) {
        let mut state = self.state();
        let Some(fd) = &state.slot(self.0.key).fd else {
            return;
        };
        let options = SockRef::from(fd);
        // Probes start at half of the time and follow every second: a peer that answers is not asked again for long.
        let keepalive = TcpKeepalive::new()
            .with_time((timeout / 2).clamp(Duration::from_secs(1), KEEPALIVE_AFTER))
            .with_interval(Duration::from_secs(1));
        // On a unix socket these do not exist; a peer there cannot vanish without a close.
        let _ = options.set_tcp_keepalive(&keepalive);
        let _ = options.set_tcp_user_timeout(Some(timeout));
    }

    /// The peer's address, where it has one.
    pub fn peer(&self) -> Option<SocketAddr> {
        let mut state = self.state();
        let fd = state.slot(self.0.key).fd.as_ref()?;
        SockRef::from(fd).peer_addr().ok()?.as_socket()
    }

    fn state(&self) -> std::cell::RefMut<'_, State> {
        self.0.ring.core.state.borrow_mut()
    }
}

/// The connection's own bytes, below TLS where there is some.
impl Handle {
    pub(super) fn poll_receive(&self, cx: &Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        if let Some(chunk) = self.take_received() {
            return Poll::Ready(Ok(Some(chunk)));
        }
        let mut state = self.ring.core.state.borrow_mut();
        let slot = state.slot(self.key);
        match slot.end {
            Some(End::Eof) => Poll::Ready(Ok(None)),
            Some(End::Error(error)) => Poll::Ready(Err(io::Error::from_raw_os_error(error))),
            None => {
                slot.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn take_received(&self) -> Option<Chunk> {
        let mut state = self.ring.core.state.borrow_mut();
        let slot = state.slot(self.key);
        let (heard_ns, chunk) = slot.received.pop_front()?;
        slot.heard_ns = heard_ns;
        slot.received_bytes -= chunk.len();
        state.arm_receive(self.key);
        Some(chunk)
    }

    pub(super) fn write(&self, bytes: &[u8]) {
        let mut state = self.ring.core.state.borrow_mut();
        let State { slots, spare, .. } = &mut *state;
        let slot = &mut slots[self.key.slot as usize];
        if slot.send_error.is_none() {
            slot.out.copy(bytes, spare);
            state.mark_dirty(self.key);
        }
    }

    /// Bytes that the kernel has not taken.
    pub(super) fn queued(&self) -> usize {
        let mut state = self.ring.core.state.borrow_mut();
        state.slot(self.key).out.len()
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ring
            .core
            .state
            .borrow_mut()
            .slot(self.key)
            .end
            .is_some()
    }
}

/// A handle to a connection that others may close.
#[derive(Clone)]
pub struct WeakSocket(Weak<Handle>);

impl WeakSocket {
    /// The connection, if it is still open.
    pub fn upgrade(&self) -> Option<Socket> {
        self.0.upgrade().map(Socket)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(tls) = self.tls.take() {
            tls.borrow_mut().close(self);
        }
        let now_ns = self.ring.now_ns();
        self.ring.core.state.borrow_mut().close(self.key, now_ns);
    }
}
