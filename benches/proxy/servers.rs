//! The databases behind the contenders: real servers with settings that keep the disk out of the numbers.
//!
//! A set holds the primary and a candidate, filled alike. The candidate can be stopped or slowed with signals. Knows how
//! to ask both how much work reached them; never measures anything itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{self, Process, Spawn, User, loopback, output};

/// Keys that the loads read.
pub const KEYS: u64 = 10_000;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 64;

/// What kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// redis-server.
    Redis,
    /// postgres.
    Postgres,
}

/// One running server.
pub struct Server {
    protocol: Protocol,
    process: Process,
    /// Where it listens on loopback.
    pub port: u16,
}

/// Primary and candidate.
pub struct Servers {
    /// What the clients' answers come from.
    pub primary: Server,
    /// What is mirrored to.
    pub candidate: Server,
    /// More candidates, for more than one mirror.
    more: Vec<Server>,
    folders: Vec<TempDir>,
}

impl Servers {
    /// Starts and fills both. `scale` is pgbench's.
    pub fn start(protocol: Protocol, cpus: &str, scale: u32) -> Result<Self> {
        let mut folders = Vec::new();
        let mut one = || -> Result<Server> {
            let folder = tempfile::Builder::new()
                .prefix("parhelion-bench-")
                .tempdir()?;
            let server = match protocol {
                Protocol::Redis => start_redis(folder.path(), cpus),
                Protocol::Postgres => start_postgres(folder.path(), cpus, scale),
            };
            folders.push(folder);
            server
        };
        let (primary, candidate) = (one()?, one()?);
        Ok(Self {
            primary,
            candidate,
            more: Vec::new(),
            folders,
        })
    }

    /// Starts further Redis candidates until there are `count` in all.
    pub fn add_candidates(&mut self, count: usize, cpus: &str) -> Result<()> {
        while self.more.len() + 1 < count {
            let folder = tempfile::Builder::new()
                .prefix("parhelion-bench-")
                .tempdir()?;
            self.more.push(start_redis(folder.path(), cpus)?);
            self.folders.push(folder);
        }
        Ok(())
    }

    /// From now on candidates get only the CPU time that nobody else wants (SCHED_IDLE): on a host with few CPUs they
    /// then take as little from load and primary as if each had a host of its own.
    pub fn candidates_yield(&self) -> Result<()> {
        let autogroup = std::fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled");
        if autogroup.is_ok_and(|enabled| enabled.trim() == "1") {
            bail!(
                "--candidates-yield needs `sysctl kernel.sched_autogroup_enabled=0`: Postgres gives each of its processes a \
                 session of its own, and each session gets an equal share of a CPU whatever its policy"
            );
        }
        for server in std::iter::once(&self.candidate).chain(&self.more) {
            for pid in tree(server.process.pid()) {
                let set = output(Command::new("chrt").args([
                    "--all-tasks",
                    "--idle",
                    "--pid",
                    "0",
                    &pid.to_string(),
                ]));
                // A child that ended meanwhile (a backend of the filling) needs nothing.
                if set.is_err() && Path::new(&format!("/proc/{pid}")).exists() {
                    set?;
                }
            }
        }
        Ok(())
    }

    /// Where the first `count` candidates listen.
    pub fn candidate_ports(&self, count: usize) -> Vec<u16> {
        std::iter::once(&self.candidate)
            .chain(&self.more)
            .take(count)
            .map(|server| server.port)
            .collect()
    }
}

fn start_redis(folder: &Path, cpus: &str) -> Result<Server> {
    let port = process::free_port()?;
    // No snapshots, no log of writes: the disk is not what is compared.
    let command = format!("redis-server --port {port} --bind 127.0.0.1 --protected-mode no");
    let limits = "--maxclients 50000 --tcp-backlog 4096 --appendonly no --save";
    let command = command.split(' ').chain(limits.split(' ')).chain([""]);
    let mut process = Spawn {
        name: "redis",
        command: command.map(str::to_owned).collect(),
        cpus: cpus.to_owned(),
        user: None,
        end: Signal::KILL,
        folder,
    }
    .start()?;
    process.wait_for_port(port).context("redis-server")?;
    let server = Server {
        protocol: Protocol::Redis,
        process,
        port,
    };
    server.fill_redis()?;
    Ok(server)
}

/// Folders where distributions keep Postgres' programs, newest first.
pub fn postgres_folders() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|e| e.path().join("bin")).collect())
        .unwrap_or_default();
    found.sort();
    found.reverse();
    found
}

fn start_postgres(folder: &Path, cpus: &str, scale: u32) -> Result<Server> {
    let port = process::free_port()?;
    let user = User::unprivileged().context("a user `postgres` to run the server as")?;
    if let Some(user) = user {
        std::os::unix::fs::chown(folder, Some(user.uid), Some(user.gid))?;
    }
    let program = |name: &str| {
        process::find_program(name, &postgres_folders())
            .map(|path| path.to_string_lossy().into_owned())
            .with_context(|| format!("{name} is not installed"))
    };
    let data = folder.join("data").to_string_lossy().into_owned();
    let mut initdb = Command::new(program("initdb")?);
    initdb.args(["-A", "trust", "-U", "postgres", "-N", "-D", &data]);
    initdb.current_dir(folder);
    if let Some(user) = user {
        use std::os::unix::process::CommandExt;
        initdb.uid(user.uid).gid(user.gid);
    }
    output(&mut initdb)?;
    let mut command = vec![program("postgres")?, "-D".to_owned(), data];
    for setting in [
        format!("port={port}"),
        "listen_addresses=127.0.0.1".to_owned(),
        format!("unix_socket_directories={}", folder.display()),
        "max_connections=400".to_owned(),
        "shared_buffers=256MB".to_owned(),
        // The disk and background work are not what is compared.
        "fsync=off".to_owned(),
        "synchronous_commit=off".to_owned(),
        "autovacuum=off".to_owned(),
        "max_wal_size=8GB".to_owned(),
        "checkpoint_timeout=1h".to_owned(),
    ] {
        command.extend(["-c".to_owned(), setting]);
    }
    let mut process = Spawn {
        name: "postgres",
        command,
        cpus: cpus.to_owned(),
        user,
        // Immediate shutdown: the folder is thrown away.
        end: Signal::QUIT,
        folder,
    }
    .start()?;
    process.wait_for_port(port)?;
    let server = Server {
        protocol: Protocol::Postgres,
        process,
        port,
    };
    wait_for_login(port)?;
    let mut pgbench = Command::new("pgbench");
    pgbench.args([
        "-i",
        "-q",
        "-s",
        &scale.to_string(),
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
    ]);
    output(pgbench.args(["-p", &port.to_string(), "postgres"]))?;
    Ok(server)
}

fn wait_for_login(port: u16) -> Result<()> {
    let mut last = None;
    for _ in 0..200 {
        match psql(port, "select 1") {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    bail!("postgres does not take logins: {last:?}")
}

/// Runs a query; the columns of the only row, as text.
pub fn psql(port: u16, query: &str) -> Result<String> {
    let port = port.to_string();
    let mut psql = Command::new("psql");
    psql.args([
        "-XAtq",
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-p",
        &port,
        "-c",
        query,
        "postgres",
    ]);
    Ok(output(&mut psql)?.trim().to_owned())
}

/// What reached a server so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Redis: GET and SET calls. Postgres: rows in pgbench_history.
    pub count: i64,
    /// Postgres: the sum of all deltas, which finds a transaction run twice or differently.
    pub sum: i64,
    /// Postgres: commits. Backends report them when they end, so ask after the proxy is gone.
    pub commits: i64,
}

impl Server {
    /// Asks the server, past all proxies.
    pub fn work(&self) -> Result<Work> {
        match self.protocol {
            Protocol::Redis => {
                let stats = self.redis_bulk("INFO commandstats\r\n")?;
                let calls = |name: &str| -> i64 {
                    stats
                        .lines()
                        .find_map(|line| line.strip_prefix(name)?.strip_prefix(":calls="))
                        .and_then(|rest| rest.split(',').next()?.parse().ok())
                        .unwrap_or(0)
                };
                Ok(Work {
                    count: calls("cmdstat_get") + calls("cmdstat_set"),
                    ..Work::default()
                })
            }
            Protocol::Postgres => {
                let row = psql(
                    self.port,
                    "select count(*), coalesce(sum(delta), 0), (select xact_commit from \
                     pg_stat_database where datname = 'postgres') from pgbench_history",
                )?;
                let mut columns = row.split('|').map(str::parse::<i64>);
                let mut next = || -> Result<i64> { Ok(columns.next().context("a column")??) };
                Ok(Work {
                    count: next()?,
                    sum: next()?,
                    commits: next()?,
                })
            }
        }
    }

    /// What reached the server once nothing more arrives, after at most five seconds.
    pub fn settled_work(&self) -> Result<Work> {
        let mut last = self.work()?;
        let mut quiet = 0;
        for _ in 0..50 {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.work()?;
            quiet = if now.count == last.count {
                quiet + 1
            } else {
                0
            };
            last = now;
            if quiet == 3 {
                break;
            }
        }
        Ok(last)
    }

    /// Stops the server with all its processes until the value is dropped.
    pub fn stop(&self) -> Halted {
        let tree = tree(self.process.pid());
        signal_all(&tree, Signal::STOP);
        Halted {
            pid: self.process.pid(),
            end: None,
        }
    }

    /// Lets the server run a tenth of the time (10 ms of 100 ms) until the value is dropped.
    pub fn slow_down(&self) -> Halted {
        let pid = self.process.pid();
        let end = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                signal_all(&tree(pid), Signal::STOP);
                std::thread::sleep(Duration::from_millis(90));
                signal_all(&tree(pid), Signal::CONT);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Halted {
            pid,
            end: Some((end, thread)),
        }
    }

    fn redis_bulk(&self, request: &str) -> Result<String> {
        let mut stream = BufReader::new(TcpStream::connect(loopback(self.port))?);
        stream.get_mut().write_all(request.as_bytes())?;
        let mut head = String::new();
        stream.read_line(&mut head)?;
        let len: usize = head
            .trim()
            .strip_prefix('$')
            .context("a bulk reply")?
            .parse()?;
        let mut body = vec![0; len];
        stream.read_exact(&mut body)?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Fills the keys of redis-benchmark and those of our own load.
    fn fill_redis(&self) -> Result<()> {
        let mut stream = TcpStream::connect(loopback(self.port))?;
        let mut request = Vec::new();
        for key in 0..KEYS {
            for name in [format!("key:{key:012}"), own_key(key)] {
                write!(request, "*3\r\n$3\r\nSET\r\n${}\r\n{name}\r\n", name.len())?;
                write!(request, "${VALUE_BYTES}\r\n{name:x<VALUE_BYTES$}\r\n")?;
            }
            if key % 500 == 499 {
                stream.write_all(&request)?;
                request.clear();
                let mut replies = vec![0; b"+OK\r\n".len() * 1000];
                stream.read_exact(&mut replies)?;
                if replies.chunks(5).any(|reply| reply != b"+OK\r\n") {
                    bail!("redis-server refused a SET");
                }
            }
        }
        Ok(())
    }
}

/// The key of our own load; its value begins with the key.
pub fn own_key(key: u64) -> String {
    parhelion::load::keys::name(key)
}

/// A stopped or slowed server; runs again when dropped.
pub struct Halted {
    pid: u32,
    end: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Drop for Halted {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.end.take() {
            end.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
        signal_all(&tree(self.pid), Signal::CONT);
    }
}

/// A process and its children (Postgres: a backend per connection).
fn tree(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    std::iter::once(pid)
        .chain(children.split_whitespace().filter_map(|c| c.parse().ok()))
        .collect()
}

fn signal_all(pids: &[u32], signal: Signal) {
    for pid in pids {
        process::signal(*pid, signal);
    }
}
