//! A ring and its driver on an executor of their own, for a test's body; and plain peers.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test that cannot go on fails; not every test uses all of it"
)]

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::thread;

use glommio::{LocalExecutorBuilder, Placement};
use parhelion::limits;
use parhelion::ring::{Notify, Queue, Queues, Ring, RingOptions, Socket, drive};

pub fn on_ring<T: Send + 'static>(
    options: RingOptions,
    body: impl AsyncFnOnce(Ring, Queues) -> T + Send + 'static,
) -> T {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).preempt_timer(limits::PREEMPT);
    on_executor(executor, options, body)
}

/// Ends the executor with the body, also when that panics.
struct End(Ring, Rc<Notify>);

impl Drop for End {
    fn drop(&mut self) {
        self.1.notify();
        self.0.stop();
    }
}

pub fn on_executor<T: Send + 'static>(
    executor: LocalExecutorBuilder,
    options: RingOptions,
    body: impl AsyncFnOnce(Ring, Queues) -> T + Send + 'static,
) -> T {
    executor
        .spawn(move || async move {
            let ring = Ring::new(&options).unwrap();
            let queues = Queues::new();
            drive(&ring, &queues);
            let (done, result) = (Rc::new(Notify::default()), Rc::new(Cell::new(None)));
            // The driver sees only tasks that were spawned through the queues.
            let (tell, output) = (done.clone(), result.clone());
            queues.clone().spawn(Queue::Serve, async move {
                let _end = End(ring.clone(), tell);
                output.set(Some(body(ring, queues).await));
            });
            done.notified().await;
            result.take().expect("the body has run")
        })
        .unwrap()
        .join()
        .unwrap()
}

pub fn small() -> RingOptions {
    RingOptions {
        entries: 64,
        slabs: 64,
        slab_size: 4096,
        ..RingOptions::default()
    }
}

pub fn listener() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub async fn echo(socket: Socket) {
    while let Ok(Some(chunk)) = socket.recv().await {
        socket.send(chunk);
        if socket.drained(limits::SOCKET_SEND_BYTES).await.is_err() {
            return;
        }
    }
    socket.shutdown_write();
}

pub fn check_echo(address: std::net::SocketAddr, seed: u64, total: usize) {
    check_echo_of(TcpStream::connect(address).unwrap(), seed, total);
}

/// Sends seeded bytes in odd pieces and expects the same ones back.
pub fn check_echo_of(mut stream: TcpStream, seed: u64, total: usize) {
    let mut reader = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut data = fastrand::Rng::with_seed(!seed);
        let mut sent = 0;
        while sent < total {
            let len = random.usize(1..20_000).min(total - sent);
            let bytes: Vec<u8> = (0..len).map(|_| data.u8(..)).collect();
            stream.write_all(&bytes).unwrap();
            sent += len;
        }
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let mut data = fastrand::Rng::with_seed(!seed);
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), total);
    assert!(received.iter().all(|byte| *byte == data.u8(..)));
    writer.join().unwrap();
}
