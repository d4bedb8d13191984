//! The whole hot path of Redis allocates nothing per command in steady state: session, lane, ring, the units of a mirror,
//! and dual writes with their shadow reads. The proxy runs inside this process, under an allocator that counts per thread;
//! what its data core allocates for N more commands is held against N.
//!
//! `PARHELION_ALLOCATIONS_FROM=1` prints where allocations come from.

// Helpers of tests are no tests to the lint; an allocator is unsafe by its trait.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parhelion::protocol::resp::ReplyFramer;
use parhelion::protocol::resp::effects::encode;
use parhelion::testing::proxy::http_get;
use parhelion::testing::redis::{RedisOptions, RedisServer};
use parhelion::testing::wait::{eventually, free_port};

/// Allocations per command that pass for none: what happens by the clock, a few times a second, falls below it.
const BOUND: f64 = 0.01;
/// Where the load waits for the mirror, the executor's own pauses count too.
const BOUND_WITH_PAUSES: f64 = 0.02;
const COMMANDS: usize = 100_000;
const DEPTH: usize = 50;
/// So many commands at a time are not more than a mirror takes at once.
const LEVEL: usize = 1000;
const THREADS_MAX: usize = 64;
/// Backtraces that are taken where somebody wants to see them.
const SAMPLES: usize = 400;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ALLOCATIONS: [AtomicU64; THREADS_MAX] = [const { AtomicU64::new(0) }; THREADS_MAX];
static THREADS: [AtomicI32; THREADS_MAX] = [const { AtomicI32::new(0) }; THREADS_MAX];
static THREAD_COUNT: AtomicUsize = AtomicUsize::new(0);
static TRACING: AtomicBool = AtomicBool::new(false);
static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(usize::MAX) };
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    let _ = SLOT.try_with(|slot| {
        if slot.get() == usize::MAX {
            let next = THREAD_COUNT.fetch_add(1, Ordering::Relaxed);
            slot.set(next.min(THREADS_MAX - 1));
            let id = rustix::thread::gettid().as_raw_nonzero().get();
            THREADS[slot.get()].store(id, Ordering::Relaxed);
        }
        ALLOCATIONS[slot.get()].fetch_add(1, Ordering::Relaxed);
        if TRACING.load(Ordering::Relaxed) && is_core(slot.get()) {
            trace();
        }
    });
}

/// Whether the thread of this slot is the data core, as marked by [`mark_cores`].
fn is_core(slot: usize) -> bool {
    THREADS[slot].load(Ordering::Relaxed) < 0
}

fn trace() {
    BUSY.with(|busy| {
        if busy.replace(true) {
            return;
        }
        let text = Backtrace::force_capture().to_string();
        if let Ok(mut found) = FOUND.lock()
            && found.len() < SAMPLES
        {
            let lines = text.lines().map(str::trim);
            let ours: Vec<&str> = lines
                .filter(|line| line.contains(": parhelion::") || line.contains(": glommio::"))
                .filter_map(|line| Some(line.split_once(": ")?.1))
                .take(4)
                .collect();
            found.push(ours.join(" < "));
        }
        busy.set(false);
    });
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Finds the slots of the data cores: their threads are named so. From here on their ids are negative.
fn mark_cores() -> Vec<usize> {
    let known = THREAD_COUNT.load(Ordering::Relaxed).min(THREADS_MAX);
    let is_named = |slot: &usize| {
        let id = THREADS[*slot].load(Ordering::Relaxed);
        let name = std::fs::read_to_string(format!("/proc/self/task/{id}/comm"));
        name.is_ok_and(|name| name.starts_with("core-"))
    };
    // Those of earlier proxies of this process have been marked before.
    let cores: Vec<usize> = (0..known).filter(is_named).collect();
    for slot in &cores {
        let id = THREADS[*slot].load(Ordering::Relaxed);
        THREADS[*slot].store(-id, Ordering::Relaxed);
    }
    cores
}

/// Serves in front of `primary`; `more` stands behind the listener in the configuration. Also returns the control port.
fn serve(primary: SocketAddr, other: SocketAddr, more: &str) -> (SocketAddr, SocketAddr) {
    let port = free_port().unwrap();
    let control = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    let database = |name: &str, at: SocketAddr| {
        format!(
            "[[databases]]\nname = \"{name}\"\nprotocol = \"redis\"\nhost = \"127.0.0.1\"\nport = {}\n",
            at.port()
        )
    };
    let text = format!(
        "[general]\ncores = [{}]\ncontrol = \"{control}\"\n[[listeners]]\naddress = \"127.0.0.1:{port}\"\nprotocol = \"redis\"\n\
         database = \"primary\"\n{}{}{more}",
        parhelion::runtime::available_cpus()[0],
        database("primary", primary),
        database("other", other)
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("parhelion.toml");
    std::fs::write(&path, text).unwrap();
    let cpus = parhelion::runtime::available_cpus();
    let config = parhelion::config::load(&path, None, &cpus).unwrap();
    std::thread::spawn(move || {
        parhelion::runtime::serve::run(config, parhelion::runtime::serve::ConfigFiles::default())
            .unwrap();
    });
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let up = || TcpStream::connect(address).ok();
    eventually(Duration::from_secs(20), up).expect("the proxy listens");
    (address, control)
}

/// Sends the same pipeline again and again and takes its replies; allocates nothing itself.
struct Load {
    stream: TcpStream,
    pipeline: Vec<u8>,
    framer: ReplyFramer,
    buffer: Vec<u8>,
    control: SocketAddr,
    sent: usize,
    /// Lets the mirror catch up now and then.
    waits: bool,
}

impl Load {
    fn new(address: SocketAddr, control: SocketAddr, waits: bool) -> Load {
        let commands: [&[&str]; 8] = [
            &["GET", "key:1"],
            &["SET", "key:2", "some value of a usual length"],
            &["INCR", "counter"],
            &["MGET", "key:1", "key:2", "nothing"],
            &["HSET", "hash", "field", "value"],
            &["HGETALL", "hash"],
            &["SADD", "set", "member"],
            &["GET", "nothing"],
        ];
        let mut pipeline = Vec::new();
        for number in 0..DEPTH {
            encode(&mut pipeline, commands[number % commands.len()]);
        }
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        Load {
            stream,
            pipeline,
            framer: ReplyFramer::new(1 << 20),
            buffer: vec![0; 64 * 1024],
            control,
            sent: 0,
            waits,
        }
    }

    fn send(&mut self, commands: usize) {
        for _ in 0..commands / DEPTH {
            self.stream.write_all(&self.pipeline).unwrap();
            self.sent += DEPTH;
            if self.waits && self.sent.is_multiple_of(LEVEL) {
                self.let_mirrors_catch_up();
            }
            let mut replies = 0;
            while replies < DEPTH {
                let length = self.stream.read(&mut self.buffer).unwrap();
                assert!(length > 0, "closed");
                let mut at = 0;
                while at < length {
                    let advance = self.framer.advance(&self.buffer[at..length]).unwrap();
                    at += advance.consumed;
                    replies += usize::from(advance.done);
                }
            }
        }
    }
}

impl Load {
    /// What is queued for a mirror that cannot keep up is memory that must come from somewhere: that is not measured here.
    fn let_mirrors_catch_up(&self) {
        let behind = || {
            let text = http_get(self.control, "/api/mirrors").unwrap();
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            let mut mirrors = json["mirrors"].as_array().into_iter().flatten();
            mirrors.any(|mirror| mirror["ledger"]["in_flight"] != 0)
        };
        let level = eventually(Duration::from_secs(60), || (!behind()).then_some(()));
        assert!(level.is_some(), "the mirror does not catch up");
    }
}

/// Allocations of the data core per command, with `more` configured, over two real servers.
fn per_command(more: &str, waits: bool) -> f64 {
    let [primary, other] = [(); 2].map(|()| RedisServer::start(RedisOptions::default()).unwrap());
    let (address, control) = serve(primary.address(), other.address(), more);
    let mut load = Load::new(address, control, waits);
    load.send(COMMANDS);
    let cores = mark_cores();
    // The core, and the helper that its executor starts.
    assert!(!cores.is_empty());
    let one = |slot: &usize| ALLOCATIONS[*slot].load(Ordering::Relaxed);
    let allocations = || cores.iter().map(one).sum::<u64>();
    let measure = |load: &mut Load, commands: usize| {
        let before = allocations();
        load.send(commands);
        allocations() - before
    };
    let (once, twice) = (
        measure(&mut load, COMMANDS),
        measure(&mut load, 2 * COMMANDS),
    );
    println!("{once} allocations for {COMMANDS} commands, {twice} for twice as many");
    let each = twice as f64 / (2 * COMMANDS) as f64;
    if each >= bound(waits) || std::env::var("PARHELION_ALLOCATIONS_FROM").is_ok() {
        TRACING.store(true, Ordering::Relaxed);
        load.send(COMMANDS / 10);
        TRACING.store(false, Ordering::Relaxed);
        let mut places: HashMap<String, usize> = HashMap::new();
        for place in FOUND.lock().unwrap().drain(..) {
            *places.entry(place).or_default() += 1;
        }
        let mut places: Vec<_> = places.into_iter().collect();
        places.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (place, count) in places.iter().take(20) {
            println!("{count:5}  {place}");
        }
    }
    each
}

fn bound(waits: bool) -> f64 {
    if waits { BOUND_WITH_PAUSES } else { BOUND }
}

/// One after another, where they share a process.
fn check(more: &str, waits: bool) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    let each = per_command(more, waits);
    assert!(each < bound(waits), "{each} allocations per command");
}

#[test]
fn a_client_on_a_lane_costs_no_allocation_per_command() {
    check("", false);
}

#[test]
fn a_mirror_costs_no_allocation_per_command() {
    check(
        "[[mirroring]]\nsource_db = \"primary\"\ndestination_db = \"other\"\n",
        true,
    );
}

#[test]
fn a_dual_write_costs_no_allocation_per_command() {
    check(
        "[[dual_write]]\nprimary = \"primary\"\nsecondary = \"other\"\nmode = \"dual-write\"\n",
        true,
    );
}

#[test]
fn a_dual_write_with_shadow_reads_costs_no_allocation_per_command() {
    check(
        "[[dual_write]]\nprimary = \"primary\"\nsecondary = \"other\"\nmode = \"dual-write-shadow\"\n",
        true,
    );
}
