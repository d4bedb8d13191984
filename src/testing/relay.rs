//! A plain byte relay on loopback with faults: it stalls, cuts after so many bytes, chops what it passes into small
//! pieces. Without faults it is the reference for "a proxy that does nothing".

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// Means "no limit" for [`Relay::cut_after`].
const NEVER: u64 = u64::MAX;
const BUFFER: usize = 64 * 1024;

/// A running relay. Dropping it closes its listener and every connection.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    upstream: SocketAddr,
    stop: AtomicBool,
    stalled: Mutex<bool>,
    moved: Condvar,
    /// Largest write in bytes, 0 for any.
    piece: AtomicUsize,
    cut_to_client: AtomicU64,
    cut_to_upstream: AtomicU64,
    sent_to_client: AtomicU64,
    /// The reply byte that is falsified.
    corrupt_at: AtomicU64,
    sent_to_upstream: AtomicU64,
    open: Mutex<Vec<(TcpStream, TcpStream)>>,
    accepted: AtomicU64,
}

#[derive(Clone, Copy)]
enum Direction {
    ToUpstream,
    ToClient,
}

impl Relay {
    /// Relays a free loopback port to `upstream`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(upstream: SocketAddr) -> io::Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            upstream,
            stop: AtomicBool::new(false),
            stalled: Mutex::new(false),
            moved: Condvar::new(),
            piece: AtomicUsize::new(0),
            cut_to_client: AtomicU64::new(NEVER),
            cut_to_upstream: AtomicU64::new(NEVER),
            sent_to_client: AtomicU64::new(0),
            corrupt_at: AtomicU64::new(NEVER),
            sent_to_upstream: AtomicU64::new(0),
            open: Mutex::default(),
            accepted: AtomicU64::new(0),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || accept(&listener, &shared));
        Ok(Relay { address, state })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Holds everything back, in both directions, until [`resume`](Self::resume).
    pub fn stall(&self) {
        *self
            .state
            .stalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Lets the bytes flow again.
    pub fn resume(&self) {
        *self
            .state
            .stalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = false;
        self.state.moved.notify_all();
    }

    /// Writes at most this many bytes at once (0: as they come).
    pub fn chop(&self, piece: usize) {
        self.state.piece.store(piece, Ordering::SeqCst);
    }

    /// Cuts every connection once this many more bytes have gone to clients.
    pub fn cut_replies_after(&self, bytes: u64) {
        let limit = self
            .state
            .sent_to_client
            .load(Ordering::SeqCst)
            .saturating_add(bytes);
        self.state.cut_to_client.store(limit, Ordering::SeqCst);
    }

    /// Cuts every connection once this many more bytes have gone upstream.
    pub fn cut_requests_after(&self, bytes: u64) {
        let limit = self
            .state
            .sent_to_upstream
            .load(Ordering::SeqCst)
            .saturating_add(bytes);
        self.state.cut_to_upstream.store(limit, Ordering::SeqCst);
    }

    /// Flips the lowest bit of the byte that goes to a client after so many more.
    pub fn corrupt_reply_after(&self, bytes: u64) {
        let at = self
            .state
            .sent_to_client
            .load(Ordering::SeqCst)
            .saturating_add(bytes);
        self.state.corrupt_at.store(at, Ordering::SeqCst);
    }

    /// No cut any more.
    pub fn heal(&self) {
        self.state.cut_to_client.store(NEVER, Ordering::SeqCst);
        self.state.cut_to_upstream.store(NEVER, Ordering::SeqCst);
        self.resume();
    }

    /// Closes every open connection; new ones are still accepted.
    pub fn drop_connections(&self) {
        self.state.close_all();
    }

    /// Bytes that went upstream and to clients so far.
    pub fn bytes(&self) -> (u64, u64) {
        let state = &self.state;
        (
            state.sent_to_upstream.load(Ordering::SeqCst),
            state.sent_to_client.load(Ordering::SeqCst),
        )
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        self.resume();
        self.state.close_all();
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn close_all(&self) {
        for (client, upstream) in self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            let _ = client.shutdown(Shutdown::Both);
            let _ = upstream.shutdown(Shutdown::Both);
        }
    }

    fn wait_unless_stopped(&self) {
        let mut stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        while *stalled && !self.stop.load(Ordering::SeqCst) {
            stalled = self
                .moved
                .wait(stalled)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn counters(&self, direction: Direction) -> (&AtomicU64, &AtomicU64) {
        match direction {
            Direction::ToUpstream => (&self.sent_to_upstream, &self.cut_to_upstream),
            Direction::ToClient => (&self.sent_to_client, &self.cut_to_client),
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for client in listener.incoming() {
        if state.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        state.accepted.fetch_add(1, Ordering::SeqCst);
        // A refused upstream closes the client, as a forwarder would.
        let _ = connect(client, state);
    }
}

fn connect(client: TcpStream, state: &Arc<State>) -> io::Result<()> {
    let upstream = TcpStream::connect(state.upstream)?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let pair = (client.try_clone()?, upstream.try_clone()?);
    state
        .open
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(pair);
    for (from, to, direction) in [
        (
            client.try_clone()?,
            upstream.try_clone()?,
            Direction::ToUpstream,
        ),
        (upstream, client, Direction::ToClient),
    ] {
        let state = Arc::clone(state);
        thread::spawn(move || {
            if pump(&from, &to, &state, direction).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            } else {
                let _ = to.shutdown(Shutdown::Write);
            }
        });
    }
    Ok(())
}

fn pump(
    mut from: &TcpStream,
    mut to: &TcpStream,
    state: &State,
    direction: Direction,
) -> io::Result<()> {
    let (sent, cut) = state.counters(direction);
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            state.wait_unless_stopped();
            let piece = match state.piece.load(Ordering::SeqCst) {
                0 => rest.len(),
                piece => piece.min(rest.len()),
            };
            let room = cut
                .load(Ordering::SeqCst)
                .saturating_sub(sent.load(Ordering::SeqCst));
            let piece = piece.min(usize::try_from(room).unwrap_or(usize::MAX));
            if piece == 0 {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let mut piece_bytes = rest[..piece].to_vec();
            if let Direction::ToClient = direction {
                let at = state.corrupt_at.load(Ordering::SeqCst);
                let offset = at.wrapping_sub(sent.load(Ordering::SeqCst));
                let place = usize::try_from(offset)
                    .ok()
                    .and_then(|offset| piece_bytes.get_mut(offset));
                if let Some(byte) = place {
                    *byte ^= 1;
                }
            }
            // Counted first: whoever has received the bytes must find them counted.
            sent.fetch_add(piece as u64, Ordering::SeqCst);
            to.write_all(&piece_bytes)?;
            rest = &rest[piece..];
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn echo_server() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut stream));
            }
        });
        address
    }

    #[test]
    fn bytes_pass_in_small_pieces_stall_and_resume() {
        let relay = Relay::start(echo_server()).unwrap();
        relay.chop(3);
        let mut client = TcpStream::connect(relay.address()).unwrap();
        client.write_all(b"hello, world").unwrap();
        let mut reply = [0; 12];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"hello, world");
        relay.stall();
        client.write_all(b"x").unwrap();
        client
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        assert!(client.read(&mut reply).is_err());
        relay.resume();
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert_eq!(client.read(&mut reply).unwrap(), 1);
        assert_eq!(relay.bytes(), (13, 13));
    }

    #[test]
    fn a_cut_lets_exactly_so_many_bytes_through() {
        let relay = Relay::start(echo_server()).unwrap();
        relay.cut_replies_after(5);
        let mut client = TcpStream::connect(relay.address()).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        client.write_all(b"hello, world").unwrap();
        let mut seen = Vec::new();
        // A reset instead of an orderly end is as good a cut.
        let _ = client.read_to_end(&mut seen);
        assert_eq!(seen, b"hello");
    }
}
