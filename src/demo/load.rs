//! Load for a Redis port: plain threads and sockets, mixed commands, the latency of each request.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::reply_len::{Scan, reply_length};
use crate::testing::redis::encode;

/// A reply that takes longer ends the client with an error.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// One minute in microseconds, the longest latency that is told apart.
const LATENCY_MAX_US: u64 = 60_000_000;
/// Keys per client: few enough that reads find what was written.
const KEYS: u64 = 100;

/// What to send.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where.
    pub address: SocketAddr,
    /// Connections, one thread each.
    pub clients: usize,
    /// Requests per second of all clients together; 0 for as fast as they go.
    pub rate: u64,
    /// When to stop by itself.
    pub duration: Duration,
    /// Seed of the mix.
    pub seed: u64,
}

/// Counters of a running load.
#[derive(Debug)]
pub struct LoadStats {
    /// Replies received.
    pub requests: AtomicU64,
    /// Error replies received.
    pub errors: AtomicU64,
    /// Clients that ended by a broken connection or a malformed reply.
    pub failed_clients: AtomicU64,
    /// Microseconds per request.
    latency: Mutex<Histogram<u64>>,
    stop: AtomicBool,
}

impl LoadStats {
    /// The latency at a quantile (0 to 1), in microseconds.
    pub fn latency_us(&self, quantile: f64) -> u64 {
        self.latency
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .value_at_quantile(quantile)
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    stats: Arc<LoadStats>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the clients.
    ///
    /// # Errors
    /// When the histogram's bounds are refused.
    pub fn start(options: &LoadOptions) -> io::Result<Load> {
        let latency = Histogram::new_with_max(LATENCY_MAX_US, 3).map_err(io::Error::other)?;
        let stats = Arc::new(LoadStats {
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            failed_clients: AtomicU64::new(0),
            latency: Mutex::new(latency),
            stop: AtomicBool::new(false),
        });
        let threads = (0..options.clients)
            .map(|number| {
                let (stats, options) = (Arc::clone(&stats), options.clone());
                thread::spawn(move || {
                    if run_client(number as u64, &options, &stats).is_err() {
                        stats.failed_clients.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Ok(Load { stats, threads })
    }

    /// The counters so far.
    pub fn stats(&self) -> &LoadStats {
        &self.stats
    }

    /// Whether every client has ended.
    pub fn finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Stops the clients and waits for their last replies.
    pub fn stop(self) -> Arc<LoadStats> {
        self.stats.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
        self.stats
    }
}

fn run_client(number: u64, options: &LoadOptions, stats: &LoadStats) -> io::Result<()> {
    let mut stream = TcpStream::connect(options.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    let mut rng = fastrand::Rng::with_seed(options.seed ^ (number << 32));
    let mut input = Vec::new();
    let started = Instant::now();
    let clients = options.clients as u64;
    for sent in 0_u64.. {
        let due = match options.rate {
            0 => Duration::ZERO,
            rate => {
                Duration::from_nanos((sent * clients + number).saturating_mul(1_000_000_000) / rate)
            }
        };
        if stats.stop.load(Ordering::Relaxed) || started.elapsed().max(due) >= options.duration {
            break;
        }
        thread::sleep(due.saturating_sub(started.elapsed()));
        let begin = Instant::now();
        stream.write_all(&command(number, &mut rng))?;
        let is_error = read_reply(&mut stream, &mut input)?;
        let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        stats
            .latency
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .saturating_record(micros);
        stats.requests.fetch_add(1, Ordering::Relaxed);
        if is_error {
            stats.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Reads exactly one reply; says whether it is an error.
fn read_reply(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<bool> {
    input.clear();
    let mut chunk = [0; 16 * 1024];
    loop {
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        input.extend_from_slice(&chunk[..length]);
        match reply_length(input) {
            Scan::Complete(length) if length == input.len() => return Ok(input[0] == b'-'),
            Scan::Incomplete => {}
            Scan::Complete(_) | Scan::Malformed => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "malformed or surplus reply",
                ));
            }
        }
    }
}

/// About two reads for each write, over every type; each client has its own keys, so that what a mirror answers does
/// not depend on how clients interleave.
fn command(client: u64, rng: &mut fastrand::Rng) -> Vec<u8> {
    let key = |kind: &str, number: u64| format!("demo:{kind}:{client}:{number}");
    let number = rng.u64(..KEYS);
    let value = format!("{:016x}", rng.u64(..));
    match rng.u32(..100) {
        0..45 => encode(&["GET", &key("text", number)]),
        45..62 => encode(&["SET", &key("text", number), &value]),
        62..68 => encode(&["INCR", &key("count", number)]),
        68..74 => encode(&["HSET", &key("hash", number), &value[..1], &value]),
        74..84 => encode(&["HGETALL", &key("hash", number)]),
        84..87 => encode(&["RPUSH", &key("list", number), &value]),
        87..90 => encode(&["LPOP", &key("list", number)]),
        90..93 => encode(&["LRANGE", &key("list", number), "0", "5"]),
        93..95 => encode(&["SADD", &key("set", number), &value[..2]]),
        95..98 => encode(&["SCARD", &key("set", number)]),
        _ => encode(&[
            "MGET",
            &key("text", number),
            &key("text", (number + 1) % KEYS),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::resp_server::{RespOptions, RespServer};

    #[test]
    fn every_request_is_answered_and_the_rate_is_kept() {
        let server = RespServer::start(RespOptions::default()).unwrap();
        let options = LoadOptions {
            address: server.address(),
            clients: 4,
            rate: 1000,
            duration: Duration::from_millis(500),
            seed: 1,
        };
        let load = Load::start(&options).unwrap();
        crate::testing::wait::eventually(Duration::from_secs(20), || load.finished().then_some(()))
            .unwrap();
        let stats = load.stop();
        let requests = stats.requests.load(Ordering::Relaxed);
        assert_eq!(stats.failed_clients.load(Ordering::Relaxed), 0);
        assert_eq!(stats.errors.load(Ordering::Relaxed), 0);
        assert!((1..=500).contains(&requests), "{requests}");
        assert_eq!(server.commands(), requests);
        assert!(stats.latency_us(0.99) >= stats.latency_us(0.5));
    }

    #[test]
    fn a_peer_that_is_no_redis_fails_the_client() {
        use crate::testing::scripted::{ScriptedPeer, Step};
        let peer = ScriptedPeer::start(vec![vec![
            Step::Take(1),
            Step::Send(b"HTTP/1.1 200 OK\r\n".to_vec()),
        ]])
        .unwrap();
        let options = LoadOptions {
            address: peer.address(),
            clients: 1,
            rate: 0,
            duration: Duration::from_secs(20),
            seed: 1,
        };
        let load = Load::start(&options).unwrap();
        crate::testing::wait::eventually(Duration::from_secs(20), || load.finished().then_some(()))
            .unwrap();
        assert_eq!(load.stop().failed_clients.load(Ordering::Relaxed), 1);
    }
}
