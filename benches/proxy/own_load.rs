//! Redis loads that redis-benchmark has not: one client in nanoseconds, and those of the library's generator.
//!
//! The generator is that of `parhelion bench` (`src/load/`): closed and open loops, any number of connections, values
//! of any size. Every value begins with its key, so a reply that belongs to another client or request is found.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use parhelion::load::{self, Kind, LATENCY_NS_MAX, Options};

use crate::load::Seen;
use crate::process::loopback;
use crate::servers::{KEYS, VALUE_BYTES, own_key};

/// `$64\r\n`, the value, `\r\n`.
const REPLY_BYTES: usize = 5 + VALUE_BYTES + 2;
/// A step through the keys that visits all of them: 7919 is prime to 10,000.
const KEY_STEP: u64 = 7919;

fn request(key: u64) -> Vec<u8> {
    let mut out = Vec::new();
    Kind::Get.write(key, KEYS, VALUE_BYTES, &mut out);
    out
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
    let mut times = Histogram::<u64>::new_with_bounds(1, LATENCY_NS_MAX, 3)?;
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

/// `clients` connections, together `rate` requests per second.
pub fn open_loop(port: u16, clients: usize, rate: f64, length: Duration) -> Result<Seen> {
    generate(&Options {
        clients,
        rate: Some(rate),
        length,
        ..options(port)
    })
}

/// The load of this bench, as the library's generator takes it.
pub fn options(port: u16) -> Options {
    Options {
        keys: KEYS,
        value_size: VALUE_BYTES,
        ..Options::new(loopback(port))
    }
}

/// Bytes of the SET of a value, as the library's filling sends it.
pub fn set_bytes(value_size: usize) -> usize {
    let mut out = Vec::new();
    Kind::Set.write(0, 1, value_size, &mut out);
    out.len()
}

/// Runs the library's generator.
fn generate(options: &Options) -> Result<Seen> {
    let seen = load::run(options)?;
    Ok(Seen {
        requests: seen.replies,
        errors: seen.errors + seen.missing + seen.wrong + seen.unanswered,
        throughput: seen.throughput(),
        p50_us: seen.latency_us(0.5),
        p99_us: seen.latency_us(0.99),
        p999_us: Some(seen.latency_us(0.999)),
    })
}
