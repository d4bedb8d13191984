//! The ring's sockets, listeners and timers against plain blocking sockets of the standard library.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/ring.rs"]
mod on_ring;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use glommio::{LocalExecutorBuilder, Placement};
use on_ring::{check_echo, echo, listener, on_executor, on_ring, small};
use parhelion::ring::{Address, Queue, RingOptions};

/// 64 clients, each of which sends 2 MiB in odd pieces, through 64 slabs of 4 KiB.
#[test]
fn bytes_come_back_in_order_with_few_slabs() {
    let (listener, address) = listener();
    let clients = thread::spawn(move || {
        let threads: Vec<_> = (0..64u64)
            .map(|seed| thread::spawn(move || check_echo(address, seed, 2 << 20)))
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    on_ring(small(), async move |ring, queues| {
        let listener = ring.listen(listener.into());
        let open = Rc::new(Cell::new(0));
        for _ in 0..64 {
            let socket = listener.accept().await.unwrap();
            open.set(open.get() + 1);
            let open = open.clone();
            queues.spawn(Queue::Serve, async move {
                echo(socket).await;
                open.set(open.get() - 1);
            });
        }
        while open.get() > 0 {
            ring.sleep(Duration::from_millis(5), false).await;
        }
        drop(listener);
        while ring.stats().sockets > 0 {
            ring.sleep(Duration::from_millis(5), false).await;
        }
        assert_eq!(ring.stats().slabs_in_use, 0, "every slab came back");
    });
    clients.join().unwrap();
}

#[test]
fn a_socket_nobody_reads_from_stops_receiving() {
    let (listener, address) = listener();
    let (told, tell) = std::sync::mpsc::channel::<()>();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let block = vec![7u8; 1 << 16];
        let mut sent = 0;
        while let Ok(n) = stream.write(&block) {
            sent += n;
            assert!(sent < 64 << 20, "the receiver never pushed back");
        }
        told.send(()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        sent
    });
    let received = on_ring(RingOptions::default(), async move |ring, _queues| {
        let listener = ring.listen(listener.into());
        let socket = listener.accept().await.unwrap();
        while tell.try_recv().is_err() {
            ring.sleep(Duration::from_millis(5), false).await;
        }
        let held = ring.stats().slabs_in_use as usize * 16 * 1024;
        assert!(
            held <= 1 << 20,
            "{held} bytes held for a reader that does not read"
        );
        let mut received = 0;
        while let Some(chunk) = socket.recv().await.unwrap() {
            received += chunk.len();
        }
        received
    });
    assert_eq!(received, client.join().unwrap());
}

#[test]
fn what_was_written_leaves_after_the_last_handle_is_gone() {
    let (listener, address) = listener();
    let client = thread::spawn(move || {
        let mut received = Vec::new();
        TcpStream::connect(address)
            .unwrap()
            .read_to_end(&mut received)
            .unwrap();
        received.len()
    });
    on_ring(small(), async move |ring, _queues| {
        let listener = ring.listen(listener.into());
        let socket = listener.accept().await.unwrap();
        socket.write(&vec![1u8; 8 << 20]);
        drop((socket, listener));
        while ring.stats().sockets > 0 {
            ring.sleep(Duration::from_millis(5), false).await;
        }
    });
    assert_eq!(client.join().unwrap(), 8 << 20);
}

#[test]
fn connecting_reports_refusal_and_half_close_passes_both_ways() {
    let (listener, address) = listener();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        stream
            .write_all(received.to_uppercase().as_bytes())
            .unwrap();
    });
    on_ring(small(), async move |ring, _queues| {
        let refused = ring.connect(&Address::Tcp(closed)).await;
        assert_eq!(
            refused.err().unwrap().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
        let socket = ring.connect(&Address::Tcp(address)).await.unwrap();
        socket.write(b"half ");
        socket.write(b"closed");
        socket.shutdown_write();
        let reply = socket.recv().await.unwrap().unwrap();
        assert_eq!(&*reply, b"HALF CLOSED");
        assert!(socket.recv().await.unwrap().is_none());
    });
    server.join().unwrap();
}

#[test]
fn precise_timers_end_within_a_millisecond_and_timeouts_end() {
    let mut late = on_ring(small(), async |ring, _queues| {
        let never = ring
            .timeout(Duration::from_millis(20), std::future::pending::<()>())
            .await;
        assert!(never.is_err());
        let mut late = Vec::new();
        for step in 0..100u64 {
            let wanted = Duration::from_micros(500 + step * 37);
            // A turn's time may lie some way back when the thread has lost its CPU since.
            let (start, turn_ns) = (Instant::now(), ring.now_ns());
            ring.sleep(wanted, true).await;
            assert!(ring.now_ns() - turn_ns >= wanted.as_nanos() as u64);
            late.push(start.elapsed().saturating_sub(wanted));
        }
        late
    });
    late.sort();
    assert!(
        late[50] < Duration::from_millis(1),
        "median {:?} late",
        late[50]
    );
}

#[test]
fn bytes_know_when_they_came_however_late_they_are_read() {
    let (plain, address) = listener();
    let peer = thread::spawn(move || plain.accept().unwrap().0.write_all(b"answer").unwrap());
    let (heard_ns, read_ns) = on_ring(small(), async move |ring, _queues| {
        let socket = ring.connect(&Address::Tcp(address)).await.unwrap();
        let arrived = async {
            while !socket.is_ended() {
                ring.sleep(Duration::from_millis(1), false).await
            }
        };
        ring.timeout(Duration::from_secs(5), arrived).await.unwrap();
        let came_by_ns = ring.now_ns();
        ring.sleep(Duration::from_millis(50), true).await;
        assert_eq!(&*socket.recv().await.unwrap().unwrap(), b"answer");
        assert!(socket.heard_ns() <= came_by_ns);
        (socket.heard_ns(), ring.now_ns())
    });
    assert!(read_ns - heard_ns >= 50_000_000, "{heard_ns} {read_ns}");
    peer.join().unwrap();
}

#[test]
fn a_mirror_task_that_is_always_ready_does_not_hold_up_a_client() {
    let (listener, address) = listener();
    let client = thread::spawn(move || check_echo(address, 3, 256 * 1024));
    on_ring(small(), async move |ring, queues| {
        let spins = Rc::new(Cell::new(0u64));
        let spinner = spins.clone();
        queues.spawn(Queue::Mirror, async move {
            loop {
                spinner.set(spinner.get() + 1);
                futures_lite::future::yield_now().await;
            }
        });
        let listener = ring.listen(listener.into());
        echo(listener.accept().await.unwrap()).await;
        drop(listener);
        while ring.stats().sockets > 0 {
            ring.sleep(Duration::from_millis(5), false).await;
        }
        assert!(spins.get() > 0);
    });
    client.join().unwrap();
}

#[test]
fn a_panic_ends_its_own_task_only() {
    let panics = on_ring(small(), async |ring, queues| {
        queues.spawn(Queue::Serve, async { panic!("planted") });
        ring.sleep(Duration::from_millis(20), false).await;
        queues.panics()
    });
    assert_eq!(panics, 1);
}

#[test]
fn a_doorbell_wakes_an_idle_core() {
    let waited = on_ring(small(), async |ring, _queues| {
        let mut bell = ring.doorbell().unwrap();
        let ringer = bell.ringer();
        thread::spawn(move || ringer.ring());
        let start = Instant::now();
        bell.rung().await;
        start.elapsed()
    });
    assert!(waited < Duration::from_secs(1), "{waited:?}");
}

/// glommio goes to sleep with tasks ready if its preemption timer has ended before it looks at the first of them: when the
/// thread loses its CPU at that moment. A timer this short ends there every few rounds.
#[test]
#[ignore = "the timer must be a little longer than glommio's way to its first task on this host: run it by hand"]
fn a_core_that_lost_its_cpu_before_its_tasks_goes_on() {
    let (plain, address) = listener();
    let peer = thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut answer = [0; 4];
        for round in 0..3_000 {
            stream.write_all(b"ping").unwrap();
            if let Err(error) = stream.read_exact(&mut answer) {
                panic!("no echo in round {round}: {error}");
            }
        }
    });
    let executor =
        LocalExecutorBuilder::new(Placement::Unbound).preempt_timer(Duration::from_micros(20));
    on_executor(executor, small(), async move |ring, _queues| {
        let socket = ring.connect(&Address::Tcp(address)).await.unwrap();
        echo(socket).await;
    });
    peer.join().unwrap();
}
