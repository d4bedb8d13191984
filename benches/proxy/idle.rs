//! What clients that do nothing cost: memory while they are there, and what stays when they have gone.
//!
//! Each connection does one PING first, so that it is a client that has been served and not merely accepted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::measure::{Cpu, descriptors, rss_kib};
use crate::process::loopback;

/// How long the process is watched for idle CPU: 1 % of it is five clock ticks.
const WATCH: Duration = Duration::from_secs(5);
/// How long a proxy may take to let go of closed connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct IdleSample {
    /// Connections.
    pub clients: usize,
    /// Bytes of resident memory per connection.
    pub bytes_per_client: f64,
    /// Share of a core in percent with no connection.
    pub idle_cpu_percent: f64,
    /// Share of a core in percent with all of them.
    pub idle_cpu_with_clients_percent: f64,
    /// Resident KiB before, with them, after they closed.
    pub rss_kib: [u64; 3],
    /// Descriptors before, with them, after they closed.
    pub descriptors: [usize; 3],
}

/// Opens `clients` connections to a proxy, watches, closes them.
pub fn run(port: u16, pid: u32, clients: usize) -> Result<IdleSample> {
    let idle_cpu_percent = watch(pid)?;
    let before = (rss_kib(pid)?, descriptors(pid)?);
    let mut open = Vec::with_capacity(clients);
    for n in 0..clients {
        open.push(client(port).with_context(|| format!("idle connection {n}"))?);
    }
    let idle_cpu_with_clients_percent = watch(pid)?;
    let with = (rss_kib(pid)?, descriptors(pid)?);
    drop(open);
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    while descriptors(pid)? > before.1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let after = (rss_kib(pid)?, descriptors(pid)?);
    Ok(IdleSample {
        clients,
        bytes_per_client: with.0.saturating_sub(before.0) as f64 * 1024.0 / clients.max(1) as f64,
        idle_cpu_percent,
        idle_cpu_with_clients_percent,
        rss_kib: [before.0, with.0, after.0],
        descriptors: [before.1, with.1, after.1],
    })
}

/// Bytes of resident memory that each of `clients` idle connections adds.
pub fn growth(port: u16, pid: u32, clients: usize) -> Result<f64> {
    let before = rss_kib(pid)?;
    let open: Vec<TcpStream> = (0..clients)
        .map(|n| client(port).with_context(|| format!("idle connection {n}")))
        .collect::<Result<_>>()?;
    let with = rss_kib(pid)?;
    drop(open);
    Ok(with.saturating_sub(before) as f64 * 1024.0 / clients.max(1) as f64)
}

fn client(port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(loopback(port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"PING\r\n")?;
    let mut reply = [0; 7];
    stream.read_exact(&mut reply)?;
    if &reply != b"+PONG\r\n" {
        bail!("answered {:?}", String::from_utf8_lossy(&reply));
    }
    Ok(stream)
}

fn watch(pid: u32) -> Result<f64> {
    let (start, before) = (Instant::now(), Cpu::of(pid)?);
    std::thread::sleep(WATCH);
    Ok(100.0 * Cpu::of(pid)?.since(before).total_s() / start.elapsed().as_secs_f64())
}
