//! Redis loads of our own: one client in nanoseconds, and an open loop.
//!
//! In the open loop every request has a place in a schedule that was fixed before the run. A late reply delays no later
//! request, and latency counts from the scheduled time: a stall shows in full (no coordinated omission). Every value
//! begins with its key, so a reply that belongs to another client or request is found.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::load::Seen;
use crate::process::loopback;
use crate::servers::{KEYS, VALUE_BYTES, own_key};

/// `$64\r\n`, the value, `\r\n`.
const REPLY_BYTES: usize = 5 + VALUE_BYTES + 2;
/// How long replies may come after the last request was due.
const GRACE: Duration = Duration::from_secs(2);
/// Latencies beyond a minute count as one.
const LONGEST_NS: u64 = 60_000_000_000;
/// A step through the keys that visits all of them: 7919 is prime to 10,000.
const KEY_STEP: u64 = 7919;

fn request(key: u64) -> Vec<u8> {
    let name = own_key(key);
    format!("*2\r\n$3\r\nGET\r\n${}\r\n{name}\r\n", name.len()).into_bytes()
}

fn right(reply: &[u8], key: u64) -> bool {
    let name = own_key(key);
    reply.starts_with(b"$64\r\n")
        && reply.ends_with(b"\r\n")
        && reply[5..].starts_with(name.as_bytes())
        && reply[5 + name.len()..REPLY_BYTES - 2]
            .iter()
            .all(|&byte| byte == b'x')
}

fn seen(times: &Histogram<u64>, errors: u64, took: Duration) -> Seen {
    let at = |q: f64| times.value_at_quantile(q) as f64 / 1e3;
    Seen {
        requests: times.len(),
        errors,
        throughput: times.len() as f64 / took.as_secs_f64(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: Some(at(0.999)),
    }
}

/// One connection, one request at a time.
pub fn one_client(port: u16, length: Duration) -> Result<Seen> {
    let mut stream = TcpStream::connect(loopback(port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut times = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3)?;
    let (mut errors, mut key) = (0, 0);
    let mut reply = [0; REPLY_BYTES];
    let start = Instant::now();
    while start.elapsed() < length {
        let asked = request(key);
        let sent = Instant::now();
        stream.write_all(&asked)?;
        stream.read_exact(&mut reply)?;
        times.saturating_record(sent.elapsed().as_nanos() as u64);
        errors += u64::from(!right(&reply, key));
        key = (key + KEY_STEP) % KEYS;
    }
    Ok(seen(&times, errors, start.elapsed()))
}

/// Checks bytes and sizes through a proxy: small, empty and large values, and a pipeline.
pub fn probe(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(loopback(port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    for len in [0, 1, 4096, 300_000] {
        let value: Vec<u8> = (0..len).map(|i: usize| (i % 251) as u8).collect();
        let mut asked = format!("*3\r\n$3\r\nSET\r\n$5\r\nprobe\r\n${len}\r\n").into_bytes();
        asked.extend_from_slice(&value);
        asked.extend_from_slice(b"\r\n*2\r\n$3\r\nGET\r\n$5\r\nprobe\r\n");
        stream.write_all(&asked)?;
        let mut wanted = format!("+OK\r\n${len}\r\n").into_bytes();
        wanted.extend_from_slice(&value);
        wanted.extend_from_slice(b"\r\n");
        let mut got = vec![0; wanted.len()];
        stream.read_exact(&mut got)?;
        if got != wanted {
            bail!("a value of {len} bytes came back changed");
        }
    }
    Ok(())
}

struct Client {
    stream: TcpStream,
    out: Vec<u8>,
    out_sent: usize,
    input: Vec<u8>,
    /// Scheduled time and key of every request that waits for its reply.
    due: VecDeque<(Duration, u64)>,
}

impl Client {
    fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(loopback(port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            out: Vec::new(),
            out_sent: 0,
            input: Vec::new(),
            due: VecDeque::new(),
        })
    }

    fn ask(&mut self, scheduled: Duration, key: u64) -> Result<()> {
        self.out.extend_from_slice(&request(key));
        self.due.push_back((scheduled, key));
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        while self.out_sent < self.out.len() {
            match self.stream.write(&self.out[self.out_sent..]) {
                Ok(n) => self.out_sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        self.out.clear();
        self.out_sent = 0;
        Ok(())
    }

    /// Takes what has arrived; returns how many replies were wrong.
    fn take(&mut self, start: Instant, times: &mut Histogram<u64>) -> Result<u64> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the proxy closed a connection"),
                Ok(n) => self.input.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        let now = start.elapsed();
        let mut wrong = 0;
        let whole = self.input.len() / REPLY_BYTES * REPLY_BYTES;
        for reply in self.input[..whole].chunks(REPLY_BYTES) {
            let Some((scheduled, key)) = self.due.pop_front() else {
                bail!("a reply that nobody asked for");
            };
            times.saturating_record(now.saturating_sub(scheduled).as_nanos() as u64);
            wrong += u64::from(!right(reply, key));
        }
        self.input.drain(..whole);
        Ok(wrong)
    }
}

/// `clients` connections, together `rate` requests per second.
pub fn open_loop(port: u16, clients: usize, rate: f64, length: Duration) -> Result<Seen> {
    let mut all: Vec<Client> = (0..clients)
        .map(|_| Client::connect(port))
        .collect::<Result<_>>()?;
    let mut times = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3)?;
    let total = (rate * length.as_secs_f64()) as u64;
    let scheduled = |n: u64| Duration::from_secs_f64(n as f64 / rate);
    let (mut next, mut wrong) = (0, 0);
    let start = Instant::now();
    loop {
        let now = start.elapsed();
        while next < total && scheduled(next) <= now {
            let key = next * KEY_STEP % KEYS;
            all[(next % clients as u64) as usize].ask(scheduled(next), key)?;
            next += 1;
        }
        if next == total && (all.iter().all(|c| c.due.is_empty()) || now > length + GRACE) {
            break;
        }
        let wait = if next < total {
            scheduled(next).saturating_sub(start.elapsed())
        } else {
            Duration::from_millis(10)
        };
        for index in ready(&all, wait)? {
            all[index].flush()?;
            wrong += all[index].take(start, &mut times)?;
        }
    }
    let lost: usize = all.iter().map(|client| client.due.len()).sum();
    Ok(seen(
        &times,
        wrong + lost as u64,
        length.max(start.elapsed()),
    ))
}

/// Connections that can be read (or written, where something waits), after at most `wait`.
fn ready(clients: &[Client], wait: Duration) -> Result<Vec<usize>> {
    let mut polled: Vec<PollFd<'_>> = clients
        .iter()
        .map(|client| {
            let mut wanted = PollFlags::IN;
            wanted.set(PollFlags::OUT, !client.out.is_empty());
            PollFd::new(&client.stream, wanted)
        })
        .collect();
    let timeout = Timespec {
        tv_sec: wait.as_secs() as i64,
        tv_nsec: i64::from(wait.subsec_nanos()),
    };
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    let set = polled
        .iter()
        .enumerate()
        .filter(|(_, fd)| !fd.revents().is_empty());
    Ok(set.map(|(index, _)| index).collect())
}
