//! Child processes: pinned, logged to a file, never left behind.
//!
//! Each is started through `setpriv --pdeathsig` (it dies with the bench, even when that is killed) and `taskset -c`
//! (its CPUs). Both exec, so that the child's pid is the program's own.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a program may take until it accepts connections.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a program may take to end after its signal before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// An unprivileged user that a program insists on.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl User {
    /// The user for programs that refuse to run as root: `postgres`, or nobody's change when we are not root.
    pub fn unprivileged() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let id = |flag: &str| -> Result<u32> {
            let out = output(Command::new("id").args([flag, "postgres"]))?;
            Ok(out.trim().parse()?)
        };
        Ok(Some(Self {
            uid: id("-u")?,
            gid: id("-g")?,
        }))
    }
}

/// A program to start.
pub struct Spawn<'a> {
    /// Name of the log file.
    pub name: &'a str,
    /// Program and arguments.
    pub command: Vec<String>,
    /// CPU list as `taskset -c` takes it.
    pub cpus: String,
    /// Run as this user.
    pub user: Option<User>,
    /// The signal that ends it.
    pub end: Signal,
    /// Where its log goes.
    pub folder: &'a Path,
}

/// A running program; ends with the value.
pub struct Process {
    child: Child,
    end: Signal,
    /// Its stdout and stderr.
    pub log: PathBuf,
}

impl Spawn<'_> {
    /// Starts it.
    pub fn start(self) -> Result<Process> {
        static SERIAL: AtomicU16 = AtomicU16::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.join(format!("{}-{serial}.log", self.name));
        let file = File::create(&log)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", death_signal(self.end), "taskset", "-c"])
            .arg(&self.cpus)
            .args(&self.command)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .current_dir(self.folder);
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        let child = command.spawn().context("setpriv (util-linux)")?;
        Ok(Process {
            child,
            end: self.end,
            log,
        })
    }
}

fn death_signal(end: Signal) -> &'static str {
    if end == Signal::QUIT { "QUIT" } else { "KILL" }
}

impl Process {
    /// The pid of the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `port` accepts on loopback.
    pub fn wait_for_port(&mut self, port: u16) -> Result<()> {
        self.wait_until(&format!("accept on port {port}"), |_| {
            TcpStream::connect_timeout(&loopback(port), Duration::from_millis(200)).is_ok()
        })
    }

    /// Waits until the log holds a line that begins with `start`.
    pub fn wait_for_line(&mut self, start: &str) -> Result<()> {
        self.wait_until(&format!("print a line `{start}`"), |log| {
            log.lines().any(|line| line.starts_with(start))
        })
    }

    fn wait_until(&mut self, what: &str, mut ready: impl FnMut(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status} before it could {what}: {}", tail(&log));
            }
            if ready(&log) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("did not {what} in time: {}", tail(&log));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        signal(self.pid(), Signal::CONT);
        signal(self.pid(), self.end);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The last lines of a log, for an error message.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// `127.0.0.1:port`.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A port of loopback that nobody listens on, below the range from which outgoing connections are numbered.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = std::process::id() as u16 % 97 * 100;
    for _ in 0..10_000 {
        let port = 20_000 + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(loopback(port)).is_ok() {
            return Ok(port);
        }
    }
    Err(anyhow!("no free port between 20000 and 30000"))
}

/// Runs a program to its end; its stdout, or an error with its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command
        .stdin(Stdio::null())
        .output()
        .context(name.clone())?;
    if !out.status.success() {
        let errors = String::from_utf8_lossy(&out.stderr);
        bail!("{name}: {}: {}", out.status, tail(&errors));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Where a program is: on PATH or in one of the given folders.
pub fn find_program(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(folders.iter().cloned())
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
