//! A child process that is known by its pid alone, can be stopped, continued and killed, and never outlives us.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::wait::eventually;

/// How long a polite stop may take before the process is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The user and group that a child runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// Where the child's standard output and error go. (A `Command` cannot be asked for its streams, so they are not set
/// there.)
#[derive(Debug)]
pub enum Output {
    /// Nowhere.
    Null,
    /// Both into one file.
    File(File),
    /// Two pipes, which the caller must empty.
    Pipes,
}

/// A running child. Dropping it kills it and reaps it.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command` in a process group of its own (a Ctrl-C at the terminal reaches us, not the child), killed by
    /// the kernel should we die first.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(command: Command, output: Output, run_as: Option<RunAs>) -> io::Result<Process> {
        let mut command = die_with_us(command, run_as);
        command.process_group(0).stdin(Stdio::null());
        match output {
            Output::Null => command.stdout(Stdio::null()).stderr(Stdio::null()),
            Output::File(file) => command.stdout(file.try_clone()?).stderr(file),
            Output::Pipes => command.stdout(Stdio::piped()).stderr(Stdio::piped()),
        };
        let (reply, answer) = channel();
        spawner()
            .send((command, reply))
            .map_err(|_| io::Error::other("the spawner thread is gone"))?;
        let child = answer
            .recv()
            .map_err(|_| io::Error::other("the spawner thread is gone"))??;
        Ok(Process { child })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let raw = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        let pid = Pid::from_raw(raw).ok_or_else(|| io::Error::other("no such pid"))?;
        Ok(kill_process(pid, signal)?)
    }

    /// Stops the process where it stands (SIGSTOP): it keeps its sockets and answers nothing.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Continues a paused process.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills without warning and reaps.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn kill9(&mut self) -> io::Result<ExitStatus> {
        // A process that has ended already is what we want.
        let _ = self.child.kill();
        self.child.wait()
    }

    /// The exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the end of the process up to `timeout`.
    pub fn wait_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        eventually(timeout, || self.exited())
    }

    /// Sends `signal` and waits; kills when that takes too long.
    pub fn stop(&mut self, signal: Signal) -> Option<ExitStatus> {
        if let Some(status) = self.exited() {
            return Some(status);
        }
        let _ = self.resume();
        let _ = self.signal(signal);
        match self.wait_exit(STOP_TIMEOUT) {
            Some(status) => Some(status),
            None => self.kill9().ok(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill9();
    }
}

type Order = (Command, Sender<io::Result<Child>>);

/// Children are started from one thread that lives as long as the process: the kernel's parent-death signal is tied
/// to the *thread* that forked, and a test's thread ends with its test.
fn spawner() -> &'static Sender<Order> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    })
}

/// Wraps the command in `setpriv --pdeathsig KILL`, where there is one; `setpriv` replaces itself by the program, so
/// the pid stays that of the program.
fn die_with_us(mut command: Command, run_as: Option<RunAs>) -> Command {
    let Some(setpriv) = find_program("setpriv") else {
        if let Some(run_as) = run_as {
            command.uid(run_as.uid).gid(run_as.gid);
        }
        return command;
    };
    let mut wrapped = Command::new(setpriv);
    wrapped.args(["--pdeathsig", "KILL"]);
    if let Some(run_as) = run_as {
        wrapped.arg(format!("--reuid={}", run_as.uid));
        wrapped.arg(format!("--regid={}", run_as.gid));
        wrapped.arg("--clear-groups");
    }
    wrapped
        .arg("--")
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

/// The first executable of that name on PATH or in the system folders that a plain user's PATH lacks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| is_executable(candidate))
}

/// Whether there is an executable regular file.
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The user and group of a name in the passwd file.
pub fn user_by_name(name: &str) -> Option<RunAs> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(RunAs { uid, gid })
    })
}

/// Whether this process runs as root.
pub fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}
