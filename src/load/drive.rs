//! Threads, sockets and the clock: each thread has its share of the connections and waits for all of them at once.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connect::{connect, peer};
use super::keys::Picker;
use super::{Cpu, Exchange, LoadError, Options, Schedule, Seen};

/// How long replies may come after the last request.
const GRACE: Duration = Duration::from_secs(2);
/// Longest wait at once.
const TICK: Duration = Duration::from_millis(10);
/// Connections looked at per wait.
const EVENTS: usize = 256;
/// Bytes read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Runs a load to its end and returns what all connections saw.
///
/// # Errors
/// When a connection cannot be made or breaks.
pub fn run(options: &Options) -> Result<Seen, LoadError> {
    if options.clients == 0 || options.pipeline == 0 || options.keys == 0 {
        let text = "clients, pipeline and keys are at least 1";
        return Err(LoadError::Argument(text.into()));
    }
    if options
        .rate
        .is_some_and(|rate| !rate.is_finite() || rate <= 0.0)
    {
        return Err(LoadError::Argument("the rate is above 0".into()));
    }
    let threads = options.threads.clamp(1, options.clients);
    let picker = Picker::new(options.distribution, options.keys);
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|index| {
                let (picker, barrier) = (picker.clone(), &barrier);
                scope.spawn(move || share(options, index, threads, picker, barrier))
            })
            .collect();
        let mut all = Seen::nothing()?;
        let mut failure = None;
        for thread in running {
            match thread.join().map_err(|_| LoadError::Thread).flatten() {
                Ok(seen) => all.merge(&seen)?,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(all), Err)
    })
}

/// One thread's work.
fn share(
    options: &Options,
    index: usize,
    threads: usize,
    picker: Picker,
    barrier: &Barrier,
) -> Result<Seen, LoadError> {
    // A late wake-up would count as the server's latency. Where it is refused the kernel's usual 50 us remain.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let made = Share::new(options, index, threads, picker);
    // All threads begin together, and one that failed does not keep the others waiting.
    barrier.wait();
    let mut share = made?;
    match options.rate {
        Some(rate) => {
            let length = options.length.as_nanos() as u64;
            share.open_loop(Schedule::new(rate, length, index, threads))?;
        }
        None => share.closed_loop()?,
    }
    let unanswered = share.connections.iter().map(|c| c.exchange.unanswered());
    share.seen.unanswered = unanswered.sum();
    Ok(share.seen)
}

struct Connection {
    stream: TcpStream,
    exchange: Exchange,
    /// The kernel's buffer was full: waits until the socket takes more.
    blocked: bool,
}

struct Share<'a> {
    options: &'a Options,
    connections: Vec<Connection>,
    /// Knows each connection by its place.
    epoll: OwnedFd,
    picker: Picker,
    rng: Rng,
    seen: Seen,
    start: Instant,
    chunk: Vec<u8>,
    /// The process to watch; one thread does it.
    watch: Option<u32>,
    cpu_before: Option<Cpu>,
}

impl<'a> Share<'a> {
    fn new(
        options: &'a Options,
        index: usize,
        threads: usize,
        picker: Picker,
    ) -> Result<Self, LoadError> {
        let own = options.clients / threads + usize::from(index < options.clients % threads);
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(std::io::Error::from)?;
        let mut connections = Vec::with_capacity(own);
        for place in 0..own {
            let stream = connect(options)?;
            stream.set_nonblocking(true)?;
            epoll::add(
                &epoll,
                &stream,
                EventData::new_u64(place as u64),
                EventFlags::IN,
            )
            .map_err(std::io::Error::from)?;
            connections.push(Connection {
                stream,
                exchange: Exchange::default(),
                blocked: false,
            });
        }
        Ok(Self {
            options,
            connections,
            epoll,
            picker,
            rng: Rng::with_seed(options.seed.wrapping_add(index as u64)),
            seen: Seen::nothing()?,
            start: Instant::now(),
            chunk: vec![0; CHUNK_BYTES],
            watch: options.watch.filter(|_| index == 0),
            cpu_before: None,
        })
    }

    fn begin_watch(&mut self) -> Result<(), LoadError> {
        self.cpu_before = self.watch.map(Cpu::of).transpose()?;
        Ok(())
    }

    fn end_watch(&mut self) -> Result<(), LoadError> {
        if let (Some(pid), Some(before)) = (self.watch, self.cpu_before) {
            self.seen.cpu = Some(Cpu::of(pid)?.since(before));
        }
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn ask(&mut self, place: usize, since_ns: u64, silent: bool) {
        let kind = self.options.mix.draw(&mut self.rng);
        let key = self.picker.draw(&mut self.rng);
        let exchange = &mut self.connections[place].exchange;
        exchange.ask(kind, key, self.options, since_ns, silent);
    }

    /// Requests leave on schedule, spread over the connections in turn.
    fn open_loop(&mut self, mut schedule: Schedule) -> Result<(), LoadError> {
        self.begin_watch()?;
        self.start = Instant::now();
        let end = self.options.length + GRACE;
        loop {
            let now_ns = self.now_ns();
            while let Some((number, due_ns)) = schedule.take(now_ns) {
                let place = (number % self.connections.len() as u64) as usize;
                self.ask(place, due_ns, false);
                self.flush(place)?;
                let late = Duration::from_nanos(self.now_ns().saturating_sub(due_ns));
                self.seen.late = self.seen.late.max(late);
            }
            let wait = match schedule.next_ns() {
                Some(due_ns) => Duration::from_nanos(due_ns.saturating_sub(self.now_ns())),
                None if self.all_answered() || self.start.elapsed() > end => break,
                None => TICK,
            };
            self.turn(wait)?;
        }
        self.seen.took = self.start.elapsed().max(self.options.length);
        self.end_watch()?;
        Ok(())
    }

    /// Every connection sends a batch as soon as all of its last one is answered.
    fn closed_loop(&mut self) -> Result<(), LoadError> {
        self.start = Instant::now();
        let measured = self.options.warm_up;
        let end = measured + self.options.length;
        let mut warm = measured.is_zero();
        if warm {
            self.begin_watch()?;
        }
        for place in 0..self.connections.len() {
            self.batch(place, measured)?;
        }
        let mut ready = Vec::new();
        while self.start.elapsed() < end {
            if !warm && self.start.elapsed() >= measured {
                warm = true;
                self.begin_watch()?;
            }
            self.turn_into(TICK, &mut ready)?;
            for &place in &ready {
                if self.connections[place].exchange.waiting() == 0 {
                    self.batch(place, measured)?;
                }
            }
        }
        self.seen.took = self.start.elapsed() - measured;
        self.end_watch()?;
        // What is on its way now is neither counted nor lost, unless it never comes.
        let counted = (self.seen.replies, self.seen.latency.clone());
        while !self.all_answered() && self.start.elapsed() < end + GRACE {
            self.turn(TICK)?;
        }
        (self.seen.replies, self.seen.latency) = counted;
        Ok(())
    }

    fn batch(&mut self, place: usize, measured: Duration) -> Result<(), LoadError> {
        let now = self.start.elapsed();
        for _ in 0..self.options.pipeline {
            self.ask(place, now.as_nanos() as u64, now < measured);
        }
        self.flush(place)
    }

    fn all_answered(&self) -> bool {
        self.connections.iter().all(|c| c.exchange.waiting() == 0)
    }

    fn turn(&mut self, wait: Duration) -> Result<(), LoadError> {
        self.turn_into(wait, &mut Vec::new())
    }

    /// Waits for sockets, then reads and writes; `ready` gets the connections that could be read.
    fn turn_into(&mut self, wait: Duration, ready: &mut Vec<usize>) -> Result<(), LoadError> {
        ready.clear();
        let timeout = |wait: Duration| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        // epoll counts milliseconds; poll, on the epoll itself, nanoseconds.
        let mut polled = [PollFd::new(&self.epoll, PollFlags::IN)];
        match poll(&mut polled, Some(&timeout(wait))) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        let mut events = Vec::with_capacity(EVENTS);
        epoll::wait(
            &self.epoll,
            spare_capacity(&mut events),
            Some(&timeout(Duration::ZERO)),
        )
        .map_err(std::io::Error::from)?;
        for event in events {
            let data = event.data;
            let place = data.u64() as usize;
            self.flush(place)?;
            self.receive(place)?;
            ready.push(place);
        }
        Ok(())
    }

    fn receive(&mut self, place: usize) -> Result<(), LoadError> {
        let options = self.options;
        loop {
            let length = match self.connections[place].stream.read(&mut self.chunk) {
                Ok(0) => return Err(peer(options, "closed a connection")),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(peer(options, error)),
            };
            let now_ns = self.start.elapsed().as_nanos() as u64;
            self.connections[place]
                .exchange
                .receive(&self.chunk[..length], now_ns, &mut self.seen)
                .map_err(|problem| peer(options, problem))?;
            if length < self.chunk.len() {
                return Ok(());
            }
        }
    }

    fn flush(&mut self, place: usize) -> Result<(), LoadError> {
        let connection = &mut self.connections[place];
        let out = &mut connection.exchange.out;
        let mut sent = 0;
        while sent < out.len() {
            match connection.stream.write(&out[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(peer(self.options, error)),
            }
        }
        out.drain(..sent);
        let blocked = !out.is_empty();
        if blocked != connection.blocked {
            connection.blocked = blocked;
            let mut wanted = EventFlags::IN;
            wanted.set(EventFlags::OUT, blocked);
            let data = EventData::new_u64(place as u64);
            epoll::modify(&self.epoll, &connection.stream, data, wanted)
                .map_err(std::io::Error::from)?;
        }
        Ok(())
    }
}
