//! A real `redis-server` on a free loopback port, in a temporary folder.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::process::{Output, Process, find_program};
use super::wait::{eventually, free_port};

/// How long a server may take to answer its first PING.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Another process may take a free port before the server binds it.
const PORT_ATTEMPTS: usize = 5;

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// `requirepass`.
    pub password: Option<String>,
    /// `appendonly yes`: a restart keeps the data. Otherwise nothing is written.
    pub durable: bool,
    /// More `--key value` pairs for the command line.
    pub extra: Vec<(String, String)>,
}

/// A running server; stopped by its pid when dropped.
#[derive(Debug)]
pub struct RedisServer {
    process: Process,
    port: u16,
    options: RedisOptions,
    folder: tempfile::TempDir,
}

impl RedisServer {
    /// Starts a server and returns once it answers PING.
    ///
    /// # Errors
    /// When there is no `redis-server` on PATH or it does not come up in time.
    pub fn start(options: RedisOptions) -> io::Result<RedisServer> {
        let folder = tempfile::Builder::new()
            .prefix("parhelion-redis-")
            .tempdir()?;
        let mut last = io::Error::other("not tried");
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port()?;
            match launch(folder.path(), port, &options) {
                Ok(process) => {
                    return Ok(RedisServer {
                        process,
                        port,
                        options,
                        folder,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Opens a connection with a read timeout of ten seconds, logged in if there is a password.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn connect(&self) -> io::Result<TcpStream> {
        connect(
            self.address(),
            self.options.password.as_deref(),
            Duration::from_secs(10),
        )
    }

    /// One command over a connection of its own, and the first bytes of its reply (up to 64 KiB).
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn command(&self, args: &[&str]) -> io::Result<Vec<u8>> {
        let mut stream = self.connect()?;
        stream.write_all(&encode(args))?;
        let mut buffer = vec![0; 64 * 1024];
        let length = stream.read(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// SIGSTOP: connections stay open, nothing is answered.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn pause(&self) -> io::Result<()> {
        self.process.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resume(&self) -> io::Result<()> {
        self.process.resume()
    }

    /// SIGKILL, reaped.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn kill9(&mut self) -> io::Result<()> {
        self.process.kill9().map(drop)
    }

    /// Starts the server again on the same port and folder, after [`kill9`](Self::kill9) or a polite stop.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> io::Result<()> {
        self.process.stop(Signal::TERM);
        self.process = launch(self.folder.path(), self.port, &self.options)?;
        match self.options.durable {
            true => self.rewrite(),
            false => Ok(()),
        }
    }

    /// Has the append-only file written anew from what was loaded. A server that was killed while it wrote may have cut its file
    /// inside a transaction. Redis 7.0 then leaves MULTI and the first commands in the file, goes on behind them, and at the
    /// start after the next executes them a second time.
    fn rewrite(&self) -> io::Result<()> {
        let is_over = |fields: &[&str]| {
            let info = self.command(&["INFO", "persistence"]).ok()?;
            let info = String::from_utf8_lossy(&info);
            let zero = |field: &&str| info.contains(&format!("\n{field}:0\r\n"));
            fields.iter().all(zero).then_some(())
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "redis-server did not rewrite");
        eventually(READY_TIMEOUT, || is_over(&["loading"])).ok_or_else(late)?;
        let reply = self.command(&["BGREWRITEAOF"])?;
        if !reply.starts_with(b"+") {
            let reply = String::from_utf8_lossy(&reply).into_owned();
            return Err(io::Error::other(reply));
        }
        let fields = ["aof_rewrite_in_progress", "aof_rewrite_scheduled"];
        eventually(READY_TIMEOUT, || is_over(&fields)).ok_or_else(late)
    }
}

fn launch(folder: &Path, port: u16, options: &RedisOptions) -> io::Result<Process> {
    let program = find_program("redis-server").ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no redis-server on PATH: run tests/setup",
        )
    })?;
    let log_path = folder.join("server.log");
    let log = File::options().create(true).append(true).open(&log_path)?;
    let mut command = Command::new(program);
    command.current_dir(folder);
    command.args([
        "--bind",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--daemonize",
        "no",
    ]);
    command.args([
        "--save",
        "",
        "--appendonly",
        if options.durable { "yes" } else { "no" },
    ]);
    command.args(["--dir", &folder.to_string_lossy()]);
    if let Some(password) = &options.password {
        command.args(["--requirepass", password]);
    }
    for (key, value) in &options.extra {
        command.arg(format!("--{key}")).arg(value);
    }
    let mut process = Process::spawn(command, Output::File(log), None)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let ready = eventually(READY_TIMEOUT, || {
        if let Some(status) = process.exited() {
            return Some(Err(io::Error::other(format!(
                "redis-server ended: {status}"
            ))));
        }
        ping(address, options.password.as_deref(), process.pid())
            .ok()
            .map(Ok)
    });
    match ready {
        Some(Ok(())) => Ok(process),
        Some(Err(error)) => Err(io::Error::other(format!("{error}\n{}", tail(&log_path)))),
        None => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "redis-server did not answer PING",
        )),
    }
}

/// Asks for the process id rather than for PONG alone: another server may have taken the port.
fn ping(address: SocketAddr, password: Option<&str>, pid: u32) -> io::Result<()> {
    let mut stream = connect(address, password, Duration::from_secs(1))?;
    stream.write_all(&encode(&["INFO", "server"]))?;
    let wanted = format!("process_id:{pid}\r\n");
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let length = stream.read(&mut chunk)?;
        seen.extend_from_slice(&chunk[..length]);
        let text = String::from_utf8_lossy(&seen);
        if text.contains(&wanted) {
            return Ok(());
        }
        if length == 0 || text.starts_with('-') || text.contains("uptime_in_seconds") {
            return Err(io::Error::other(
                "another server, or one that is still loading",
            ));
        }
    }
}

fn connect(
    address: SocketAddr,
    password: Option<&str>,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    if let Some(password) = password {
        stream.write_all(&encode(&["AUTH", password]))?;
        let mut reply = [0; 5];
        stream.read_exact(&mut reply)?;
        if &reply != b"+OK\r\n" {
            return Err(io::Error::other("AUTH was refused"));
        }
    }
    Ok(stream)
}

/// A command as a RESP array of bulk strings.
pub fn encode<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// The end of a log file, for an error message.
pub(super) fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_server_answers_nothing_and_a_killed_one_comes_back_on_its_port() {
        let mut server = RedisServer::start(RedisOptions::default()).unwrap();
        assert_eq!(server.command(&["PING"]).unwrap(), b"+PONG\r\n");
        server.pause().unwrap();
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        stream.write_all(b"PING\r\n").unwrap();
        assert!(
            stream.read(&mut [0; 16]).is_err(),
            "a stopped server answered"
        );
        server.resume().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 7);
        server.kill9().unwrap();
        assert!(server.command(&["PING"]).is_err());
        server.restart().unwrap();
        assert_eq!(server.command(&["PING"]).unwrap(), b"+PONG\r\n");
    }

    #[test]
    fn a_password_is_asked_for() {
        let options = RedisOptions {
            password: Some("s3cret".into()),
            ..RedisOptions::default()
        };
        let server = RedisServer::start(options).unwrap();
        let mut bare = TcpStream::connect(server.address()).unwrap();
        bare.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        bare.write_all(b"GET a\r\n").unwrap();
        let mut reply = [0; 7];
        bare.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"-NOAUTH");
        assert_eq!(server.command(&["PING"]).unwrap(), b"+PONG\r\n");
    }
}
