//! The floor: what a bare io_uring TCP forwarder costs, with nothing but bytes going through.
//!
//! One thread, one ring, multishot accept and receive into provided buffers, sends straight out of the buffer that
//! was received, deferred task work. It owns its ring, its buffers and every socket. It never looks at a byte, never
//! parses, counts, logs or reconnects: the distance from here to Parhelion is the price of what Parhelion does.
//!
//! Started as `BENCH --floor LISTEN BACKEND`; whoever starts it pins it.
#![allow(unsafe_code)] // io_uring needs buffers that outlive a call; each block says why it holds.

mod buffers;

use std::collections::VecDeque;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context;
use buffers::Buffers;
use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};

/// Submission slots: more than are ever prepared between two waits at 500 clients with both directions busy.
const ENTRIES: u32 = 4096;
/// Completions may outnumber submissions, since receive and accept are multishot.
const COMPLETIONS: u32 = 8192;
/// Completions taken before the prepared operations are handed to the kernel.
const BATCH: usize = 4096;

/// What a completion belongs to; the upper half of `user_data`, the lower half being the index of the side.
const ACCEPT: u64 = 0;
const RECV: u64 = 1;
const SEND: u64 = 2;

/// One socket of a pair. Sides `2n` and `2n + 1` are peers.
struct Side {
    socket: OwnedFd,
    /// Received by the peer, waiting to be sent here: buffer and length.
    queue: VecDeque<(u16, u32)>,
    /// Bytes of the first queued buffer that are sent. `sent < queue[0].1`
    sent: u32,
    /// A send is in the kernel; its buffer is `queue[0]`.
    sending: bool,
    /// The receive has ended: the socket gives nothing more.
    ended: bool,
    /// A send failed: what is for this socket is thrown away.
    broken: bool,
}

impl Side {
    fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self {
            socket: socket.into(),
            queue: VecDeque::new(),
            sent: 0,
            sending: false,
            ended: false,
            broken: false,
        })
    }
}

struct Forwarder {
    backend: String,
    sides: Vec<Option<Side>>,
    /// Free pair numbers.
    free: Vec<usize>,
    buffers: Buffers,
    /// Operations for the next submission.
    prepared: Vec<Entry>,
    /// Sides whose receive stopped for want of buffers.
    starved: Vec<usize>,
}

/// Forwards every connection on `listen` to `backend` until the process is killed.
pub fn run(listen: &str, backend: &str) -> anyhow::Result<()> {
    let listener = listen_on(listen)?;
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(COMPLETIONS)
        .build(ENTRIES)
        .context("io_uring with DEFER_TASKRUN (Linux 6.1 or newer)")?;
    let buffers = Buffers::register(&ring).context("provided buffer ring")?;
    let mut forwarder = Forwarder {
        backend: backend.to_owned(),
        sides: Vec::new(),
        free: Vec::new(),
        buffers,
        prepared: vec![accept(&listener)],
        starved: Vec::new(),
    };
    let mut done: Vec<(u64, i32, u32)> = Vec::with_capacity(BATCH);
    loop {
        submit(&mut ring, &mut forwarder.prepared)?;
        done.extend(
            ring.completion()
                .take(BATCH)
                .map(|c| (c.user_data(), c.result(), c.flags())),
        );
        for (data, result, flags) in done.drain(..) {
            let index = (data & 0xffff_ffff) as usize;
            match data >> 32 {
                ACCEPT => {
                    forwarder.accepted(result);
                    if !cqueue::more(flags) {
                        forwarder.prepared.push(accept(&listener));
                    }
                }
                RECV => forwarder.received(index, result, flags),
                _ => forwarder.sent(index, result),
            }
        }
        forwarder.buffers.publish();
        forwarder.feed_starved();
    }
}

impl Forwarder {
    /// A new client: dials the backend (blocking: it is on the same machine) and starts both receives.
    fn accepted(&mut self, result: i32) {
        if result < 0 {
            return;
        }
        let client = buffers::adopt_socket(result);
        let pair = TcpStream::connect(&self.backend)
            .and_then(|backend| Ok((Side::new(client)?, Side::new(backend)?)));
        let Ok((client, backend)) = pair else { return };
        let first = match self.free.pop() {
            Some(pair) => pair * 2,
            None => {
                self.sides.extend([None, None]);
                self.sides.len() - 2
            }
        };
        self.sides[first] = Some(client);
        self.sides[first + 1] = Some(backend);
        self.arm(first);
        self.arm(first + 1);
    }

    fn arm(&mut self, index: usize) {
        if let Some(side) = &self.sides[index] {
            let fd = types::Fd(side.socket.as_raw_fd());
            let entry = opcode::RecvMulti::new(fd, Buffers::GROUP).build();
            self.prepared
                .push(entry.user_data(RECV << 32 | index as u64));
        }
    }

    fn received(&mut self, index: usize, result: i32, flags: u32) {
        let peer = index ^ 1;
        if result > 0 {
            if let Some(buffer) = cqueue::buffer_select(flags) {
                match self.sides[peer].as_mut().filter(|side| !side.broken) {
                    Some(side) => side.queue.push_back((buffer, result as u32)),
                    None => self.buffers.give_back(buffer),
                }
                self.send_next(peer);
            }
            if !cqueue::more(flags) {
                self.arm(index);
            }
        } else if result == -libc::ENOBUFS {
            self.starved.push(index);
        } else {
            if let Some(side) = self.sides[index].as_mut() {
                side.ended = true;
            }
            self.pass_on_end(index);
        }
    }

    /// Starts the next send to a side unless one is in the kernel.
    fn send_next(&mut self, index: usize) {
        let Some(side) = self.sides[index].as_mut().filter(|side| !side.sending) else {
            return;
        };
        let Some(&(buffer, len)) = side.queue.front() else {
            return;
        };
        side.sending = true;
        // The buffer is given back only in `sent`, after the kernel is done with it.
        let from = self.buffers.start(buffer).wrapping_add(side.sent as usize);
        let fd = types::Fd(side.socket.as_raw_fd());
        let entry = opcode::Send::new(fd, from, len - side.sent).flags(libc::MSG_NOSIGNAL);
        self.prepared
            .push(entry.build().user_data(SEND << 32 | index as u64));
    }

    fn sent(&mut self, index: usize, result: i32) {
        let Some(side) = self.sides[index].as_mut() else {
            return;
        };
        side.sending = false;
        if result < 0 {
            side.broken = true;
            side.sent = 0;
            for (buffer, _) in side.queue.drain(..) {
                self.buffers.give_back(buffer);
            }
            // Ends both receives, so that the pair is closed.
            buffers::shutdown(&side.socket, libc::SHUT_RDWR);
            if let Some(peer) = &self.sides[index ^ 1] {
                buffers::shutdown(&peer.socket, libc::SHUT_RDWR);
            }
        } else {
            side.sent += result as u32;
            if let Some(&(buffer, len)) = side.queue.front()
                && side.sent >= len
            {
                side.queue.pop_front();
                side.sent = 0;
                self.buffers.give_back(buffer);
            }
            self.send_next(index);
        }
        self.pass_on_end(index ^ 1);
    }

    /// When side `index` has ended and everything from it is sent: ends the peer's stream too, and closes the pair
    /// once both have ended.
    fn pass_on_end(&mut self, index: usize) {
        let peer = index ^ 1;
        let (Some(here), Some(there)) = (&self.sides[index], &self.sides[peer]) else {
            return;
        };
        if !here.ended || there.sending || !there.queue.is_empty() {
            return;
        }
        buffers::shutdown(&there.socket, libc::SHUT_WR);
        let idle = !here.sending && here.queue.is_empty();
        if there.ended && idle {
            // No operation of the pair is in the kernel: both receives have ended, no send is under way.
            self.sides[index] = None;
            self.sides[peer] = None;
            self.free.push(index / 2);
        }
    }

    /// Arms receives that stopped for want of buffers, as soon as there are some.
    fn feed_starved(&mut self) {
        if self.starved.is_empty() || self.buffers.available() == 0 {
            return;
        }
        for index in std::mem::take(&mut self.starved) {
            self.arm(index);
        }
    }
}

fn listen_on(address: &str) -> anyhow::Result<TcpListener> {
    let parsed: std::net::SocketAddr = address.parse()?;
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(parsed),
        socket2::Type::STREAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&parsed.into()).context(address.to_owned())?;
    // Room for a connection storm: the idle bench opens thousands at once.
    socket.listen(4096)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener) -> Entry {
    opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd()))
        .build()
        .user_data(ACCEPT << 32)
}

/// Hands all prepared operations to the kernel and waits for at least one completion.
fn submit(ring: &mut IoUring, prepared: &mut Vec<Entry>) -> anyhow::Result<()> {
    let mut rest = prepared.as_slice();
    while !rest.is_empty() {
        let mut queue = ring.submission();
        let room = (queue.capacity() - queue.len()).min(rest.len());
        let (now, later) = rest.split_at(room);
        // SAFETY: the memory of every send is a provided buffer that stays mapped for the whole process and is not
        // given back before its completion; sockets stay open while an operation on them is in the kernel.
        unsafe { queue.push_multiple(now) }.context("submission queue")?;
        drop(queue);
        rest = later;
        if !rest.is_empty() {
            ring.submit().context("io_uring_enter")?;
        }
    }
    prepared.clear();
    match ring.submit_and_wait(1) {
        Ok(_) => Ok(()),
        // Completions wait to be taken, or a signal came: the caller's next turn sees to it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => Ok(()),
        Err(e) => Err(e).context("io_uring_enter"),
    }
}
