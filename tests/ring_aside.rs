//! Sockets of mirrors, which live on a ring in which nobody waits: they behave as all others do, their bytes know when they
//! came, and a core without clients hears them at once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/ring.rs"]
mod on_ring;

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use on_ring::{check_echo, check_echo_of, echo, listener, on_ring, small};
use parhelion::limits;
use parhelion::ring::{Address, Queue, Ring, Socket};

const PATIENCE: Duration = Duration::from_secs(20);

async fn mirror(ring: &Ring, address: SocketAddr) -> Socket {
    let socket = ring.connect_aside(&Address::Tcp(address)).await.unwrap();
    assert_eq!(ring.stats().rings, 2);
    socket
}

async fn until_no_socket_is_open(ring: &Ring) {
    let start = Instant::now();
    while ring.stats().sockets > 0 {
        assert!(start.elapsed() < PATIENCE, "{:?}", ring.stats());
        ring.sleep(Duration::from_millis(5), false).await;
    }
}

/// Serves each connection on a thread of its own.
fn server(
    connections: usize,
    serve: impl Fn(usize, TcpStream) + Clone + Send + 'static,
) -> (thread::JoinHandle<()>, SocketAddr) {
    let (listener, address) = listener();
    let accepting = thread::spawn(move || {
        let threads: Vec<_> = (0..connections)
            .map(|index| {
                let (stream, _) = listener.accept().unwrap();
                let serve = serve.clone();
                thread::spawn(move || serve(index, stream))
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    (accepting, address)
}

#[test]
fn a_core_without_mirrors_has_one_ring() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let _listening = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (peer, address) = server(1, |_, mut stream| stream.write_all(b"x").unwrap());
    on_ring(small(), async move |ring, _queues| {
        let socket = ring.connect(&Address::Tcp(address)).await.unwrap();
        socket.recv().await.unwrap().unwrap();
        // Nothing says when bytes of a unix socket came, so they wake the core.
        ring.connect_aside(&Address::Unix(path)).await.unwrap();
        assert_eq!(ring.stats().rings, 1);
    });
    peer.join().unwrap();
}

/// 32 mirrors that each send 1 MiB in odd pieces; 16 slabs of 4 KiB are posted for them at most.
#[test]
fn bytes_of_mirrors_come_in_order_with_few_slabs() {
    let (peer, address) = server(32, |seed, stream| {
        check_echo_of(stream, seed as u64, 1 << 20);
    });
    on_ring(small(), async move |ring, queues| {
        for _ in 0..32 {
            let socket = mirror(&ring, address).await;
            queues.spawn(Queue::Mirror, echo(socket));
        }
        until_no_socket_is_open(&ring).await;
        assert_eq!(ring.stats().slabs_in_use, 0, "every slab came back");
    });
    peer.join().unwrap();
}

#[test]
fn mirrors_that_flood_a_reader_that_does_not_read_are_pushed_back_and_leave_clients_their_slabs() {
    let (told, tell) = mpsc::channel::<()>();
    let (peer, address) = server(32, move |_, mut stream| {
        stream
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let (block, mut sent) = (vec![7u8; 1 << 16], 0);
        while let Ok(n) = stream.write(&block) {
            sent += n;
            assert!(sent < 64 << 20, "the receiver never pushed back");
        }
        told.send(()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // Until the other side has gone.
        let _ = stream.read(&mut [0; 1]);
    });
    let (plain, clients_address) = listener();
    let client = thread::spawn(move || check_echo(clients_address, 5, 1 << 20));
    on_ring(small(), async move |ring, queues| {
        let mut mirrors = Vec::new();
        for _ in 0..32 {
            mirrors.push(mirror(&ring, address).await);
        }
        for _ in 0..32 {
            while tell.try_recv().is_err() {
                ring.sleep(Duration::from_millis(5), false).await;
            }
        }
        let listener = ring.listen(plain.into());
        queues.spawn(Queue::Serve, echo(listener.accept().await.unwrap()));
        let start = Instant::now();
        while ring.stats().sockets > 33 {
            assert!(start.elapsed() < PATIENCE, "the client is not served");
            ring.sleep(Duration::from_millis(5), false).await;
        }
        let mut received = 0;
        for socket in mirrors {
            while let Some(chunk) = socket.recv().await.unwrap() {
                received += chunk.len();
            }
        }
        assert!(received > 32 << 16, "{received}");
    });
    client.join().unwrap();
    peer.join().unwrap();
}

#[test]
fn what_was_written_to_a_mirror_leaves_after_the_last_handle_is_gone() {
    let (tell, told) = mpsc::channel();
    let (peer, address) = server(1, move |_, mut stream| {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        tell.send(received.len()).unwrap();
    });
    on_ring(small(), async move |ring, _queues| {
        let socket = mirror(&ring, address).await;
        socket.write(&vec![1u8; 8 << 20]);
        drop(socket);
        until_no_socket_is_open(&ring).await;
    });
    assert_eq!(told.recv().unwrap(), 8 << 20);
    peer.join().unwrap();
}

#[test]
fn refusal_half_close_reset_and_a_stop_reach_a_mirrors_socket() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (peer, address) = server(3, |index, mut stream| match index {
        0 => {
            let mut received = String::new();
            stream.read_to_string(&mut received).unwrap();
            stream
                .write_all(received.to_uppercase().as_bytes())
                .unwrap();
        }
        1 => {
            // What was not read when the socket closes makes the close a reset.
            while stream.peek(&mut [0; 1]).unwrap() == 0 {}
        }
        _ => {
            let _ = stream.read(&mut [0; 1]);
        }
    });
    on_ring(small(), async move |ring, _queues| {
        let refused = ring.connect_aside(&Address::Tcp(closed)).await;
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::ConnectionRefused);

        let socket = mirror(&ring, address).await;
        socket.write(b"half closed");
        socket.shutdown_write();
        assert_eq!(&*socket.recv().await.unwrap().unwrap(), b"HALF CLOSED");
        assert!(socket.recv().await.unwrap().is_none());

        let reset = mirror(&ring, address).await;
        reset.write(b"unread");
        let error = reset.recv().await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);

        let stopped = mirror(&ring, address).await;
        stopped.stop_receiving();
        assert!(stopped.recv().await.unwrap().is_none());
        drop((socket, reset, stopped));
        until_no_socket_is_open(&ring).await;
    });
    peer.join().unwrap();
}

/// Not with the next tick of the driver (5 ms), nor when an idle driver looks around (100 ms).
#[test]
fn a_core_without_clients_hears_mirrors_at_once() {
    let (peer, address) = server(1, |_, mut stream| {
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte) {
            stream.write_all(&byte).unwrap();
        }
    });
    let mut took = on_ring(small(), async move |ring, _queues| {
        let socket = mirror(&ring, address).await;
        let mut took = Vec::new();
        for round in 0..120 {
            if round % 40 == 0 {
                // The driver is idle by then.
                ring.sleep(Duration::from_millis(250), false).await;
            }
            let start = Instant::now();
            socket.write(b"x");
            socket.recv().await.unwrap().unwrap();
            took.push(start.elapsed());
        }
        took
    });
    took.sort();
    assert!(took[60] < Duration::from_millis(1), "median {:?}", took[60]);
    peer.join().unwrap();
}

/// While a client comes and goes all the time, its mirror does not wake the core; when the client then pauses, the mirror is
/// heard with a tick. What it said is stamped with when it came all the same.
#[test]
fn a_mirror_that_is_heard_late_is_not_slow() {
    const ROUNDS: usize = 100;
    let (plain, client_address) = listener();
    let (peer, mirror_address) = listener();
    let base = Instant::now();
    let since = move || base.elapsed().as_nanos() as u64;
    let (say, said) = mpsc::channel();
    let other_side = thread::spawn(move || {
        let (mut mirror, _) = peer.accept().unwrap();
        let mut client = TcpStream::connect(client_address).unwrap();
        client.set_nodelay(true).unwrap();
        let mut byte = [0];
        for _ in 0..ROUNDS {
            for _ in 0..60 {
                client.write_all(b"x").unwrap();
                client.read_exact(&mut byte).unwrap();
            }
            thread::sleep(Duration::from_micros(300));
            let before_ns = since();
            mirror.write_all(b"answer").unwrap();
            say.send(before_ns..=since()).unwrap();
            // The core has read it.
            mirror.read_exact(&mut byte).unwrap();
        }
    });
    let heard = on_ring(small(), async move |ring, queues| {
        let listener = ring.listen(plain.into());
        let mirror = mirror(&ring, mirror_address).await;
        queues.spawn(Queue::Serve, echo(listener.accept().await.unwrap()));
        // How much the test's clock is ahead of the ring's, which says when the turn began.
        let ahead_ns = Rc::new(Cell::new(u64::MAX));
        let mut heard = Vec::new();
        for _ in 0..ROUNDS {
            let chunk = mirror.recv().await.unwrap().unwrap();
            assert_eq!(&*chunk, b"answer");
            let (now_ns, read_ns) = (ring.now_ns(), since());
            ahead_ns.set(ahead_ns.get().min(read_ns.wrapping_sub(now_ns)));
            heard.push((mirror.heard_ns(), read_ns));
            mirror.write(b"x");
        }
        assert!(mirror.recv().await.unwrap().is_none());
        heard
            .into_iter()
            .map(|(heard_ns, read_ns)| (heard_ns.wrapping_add(ahead_ns.get()), read_ns))
            .collect::<Vec<_>>()
    });
    other_side.join().unwrap();
    let mut late_by = Vec::new();
    for (heard_ns, read_ns) in heard {
        let sent_ns = said.recv().unwrap();
        let said_so = format!("sent at {sent_ns:?}, heard at {heard_ns}, read at {read_ns}");
        assert!(heard_ns + 200_000 >= *sent_ns.start(), "{said_so}");
        if read_ns > sent_ns.end() + 1_500_000 {
            late_by.push(heard_ns.saturating_sub(*sent_ns.end()));
        }
    }
    late_by.sort();
    let tick = limits::TICK;
    assert!(
        late_by.len() > 5,
        "few answers waited for the tick of {tick:?}: {late_by:?}"
    );
    // Not each: what comes while the core is kept from its work is heard when it goes on, as from everybody else.
    let median_ns = late_by[late_by.len() / 2];
    assert!(median_ns < 300_000, "{late_by:?}");
}
