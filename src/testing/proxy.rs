//! The real `parhelion` binary as a child process: started on free ports, waited for until it says `ready`, stopped by
//! its pid.

use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::process::{Output, Process};
use super::wait::free_port;

/// How long the proxy may take until it accepts.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Lines of its log that are kept.
const LOG_LINES_MAX: usize = 10_000;

/// What to start.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// `redis` or `postgres`.
    pub protocol: &'static str,
    /// The primary.
    pub primary: SocketAddr,
    /// Mirrors, in order.
    pub mirrors: Vec<SocketAddr>,
    /// More arguments.
    pub extra: Vec<String>,
    /// Variables of the environment.
    pub envs: Vec<(String, String)>,
    /// Lines of `[general]` and of `[ring]`: with any, the proxy runs from a config file.
    pub config: [Vec<String>; 2],
    /// What follows in the config file; with anything, the proxy runs from one.
    pub sections: String,
    /// Where it listens.
    pub listen: IpAddr,
}

impl ProxyOptions {
    /// In front of `primary`, nothing mirrored.
    pub fn new(protocol: &'static str, primary: SocketAddr) -> ProxyOptions {
        ProxyOptions {
            protocol,
            primary,
            mirrors: Vec::new(),
            extra: Vec::new(),
            envs: Vec::new(),
            config: Default::default(),
            sections: String::new(),
            listen: Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// With one more line in `[general]` of a config file.
    #[must_use]
    pub fn general(mut self, line: &str) -> ProxyOptions {
        self.config[0].push(line.to_owned());
        self
    }

    /// With one more line in `[ring]` of a config file.
    #[must_use]
    pub fn ring(mut self, line: &str) -> ProxyOptions {
        self.config[1].push(line.to_owned());
        self
    }

    /// With more sections at the end of a config file.
    #[must_use]
    pub fn section(mut self, text: &str) -> ProxyOptions {
        self.sections += text;
        self
    }

    /// On another address than 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, address: IpAddr) -> ProxyOptions {
        self.listen = address;
        self
    }

    /// With one more variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> ProxyOptions {
        self.envs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same as a config file; the mirrors of a Postgres are logged in to as its superuser.
    fn config_file(&self, address: SocketAddr, control: SocketAddr) -> String {
        let [general, ring] = &self.config;
        let protocol = self.protocol;
        let mut text = format!(
            "[general]\ncores = [{}]\ncontrol = \"{control}\"\n{}\n[ring]\n{}\n\
             [[listeners]]\naddress = \"{address}\"\nprotocol = \"{protocol}\"\ndatabase = \"primary\"\n",
            first_core(),
            general.join("\n"),
            ring.join("\n"),
        );
        let mut database = |name: &str, at: SocketAddr, more: &str| {
            text += &format!(
                "[[databases]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\nhost = \"{}\"\nport = {}\n{more}\n",
                at.ip(),
                at.port(),
            );
        };
        let named = if protocol == "postgres" {
            "database_name = \"postgres\""
        } else {
            ""
        };
        database("primary", self.primary, named);
        let user = if protocol == "postgres" {
            "user = \"postgres\"\ndatabase_name = \"postgres\""
        } else {
            ""
        };
        for (number, mirror) in self.mirrors.iter().enumerate() {
            database(&format!("mirror{number}"), *mirror, user);
        }
        for number in 0..self.mirrors.len() {
            text += &format!(
                "[[mirroring]]\nsource_db = \"primary\"\ndestination_db = \"mirror{number}\"\n"
            );
        }
        text += &self.sections;
        text
    }

    /// With one more mirror.
    #[must_use]
    pub fn mirror(mut self, mirror: SocketAddr) -> ProxyOptions {
        self.mirrors.push(mirror);
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> ProxyOptions {
        self.extra.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct ProxyProcess {
    process: Process,
    address: SocketAddr,
    control: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    /// Of its config file, if it has one.
    folder: Option<tempfile::TempDir>,
}

impl ProxyProcess {
    /// Starts `binary` and returns once it has printed `ready`.
    ///
    /// # Errors
    /// When it ends or stays silent; the text holds what it logged.
    pub fn start(binary: &Path, options: &ProxyOptions) -> io::Result<ProxyProcess> {
        let address = SocketAddr::from((options.listen, free_port()?));
        let control = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = Command::new(binary);
        let mut folder = None;
        if !options.sections.is_empty() || options.config.iter().any(|lines| !lines.is_empty()) {
            let made = tempfile::Builder::new().prefix("parhelion-").tempdir()?;
            let file = made.path().join("parhelion.toml");
            std::fs::write(&file, options.config_file(address, control))?;
            command.arg("run").arg("--config").arg(file);
            folder = Some(made);
        } else {
            quick(&mut command, options, address, control);
        }
        command.args(&options.extra);
        command.envs(options.envs.iter().map(|(name, value)| (name, value)));
        let mut proxy = ProxyProcess::spawn(command, address, control)?;
        proxy.folder = folder;
        Ok(proxy)
    }

    /// Starts `command`, a `parhelion run` whose configuration listens at `address` and `control`, and returns once it
    /// has printed `ready`.
    ///
    /// # Errors
    /// When it ends or stays silent; the text holds what it logged.
    pub fn spawn(
        command: Command,
        address: SocketAddr,
        control: SocketAddr,
    ) -> io::Result<ProxyProcess> {
        let mut process = Process::spawn(command, Output::Pipes, None)?;
        let log = Arc::<Mutex<Vec<String>>>::default();
        let ready = follow(&mut process, &log);
        let mut proxy = ProxyProcess {
            process,
            address,
            control,
            log,
            folder: None,
        };
        proxy.wait_ready(&ready)?;
        Ok(proxy)
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its HTTP answers.
    pub fn control(&self) -> SocketAddr {
        self.control
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The lines it has logged so far (standard output and error).
    pub fn log(&self) -> Vec<String> {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The process, for signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGTERM, then waits for its end; killed when it takes more than ten seconds.
    pub fn terminate(&mut self) -> Option<ExitStatus> {
        self.process.stop(Signal::TERM)
    }

    /// The body of `GET path` on the control port.
    ///
    /// # Errors
    /// When it does not answer 200.
    pub fn get(&self, path: &str) -> io::Result<String> {
        http_get(self.control, path)
    }

    fn wait_ready(&mut self, ready: &Receiver<()>) -> io::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if ready.recv_timeout(Duration::from_millis(20)).is_ok() {
                return Ok(());
            }
            let ended = self.process.exited();
            if ended.is_some() || Instant::now() >= deadline {
                let what = ended.map_or("not ready in time".to_owned(), |status| {
                    format!("ended: {status}")
                });
                return Err(io::Error::other(format!(
                    "parhelion {what}\n{}",
                    self.log().join("\n")
                )));
            }
        }
    }
}

/// The arguments of a quick start.
fn quick(command: &mut Command, options: &ProxyOptions, address: SocketAddr, control: SocketAddr) {
    command.arg(options.protocol);
    command.args([
        "--listen",
        &address.to_string(),
        "--primary",
        &options.primary.to_string(),
    ]);
    for mirror in &options.mirrors {
        command.args(["--mirror", &mirror.to_string()]);
    }
    command.args(["--control", &control.to_string()]);
    if !options.extra.iter().any(|arg| arg == "--cores") {
        command.args(["--cores", &first_core().to_string()]);
    }
}

/// The body of an HTTP GET.
///
/// # Errors
/// When the answer is not 200 or does not come within two seconds.
pub fn http_get(address: SocketAddr, path: &str) -> io::Result<String> {
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(2)));
    let agent: ureq::Agent = config.build().into();
    let mut answer = agent
        .get(format!("http://{address}{path}"))
        .call()
        .map_err(io::Error::other)?;
    answer.body_mut().read_to_string().map_err(io::Error::other)
}

/// The first CPU that this process may run on.
fn first_core() -> usize {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    cores.first().map_or(0, |core| core.id)
}

/// Empties both pipes into the log for as long as the process lives, and reports the `ready` line.
fn follow(process: &mut Process, log: &Arc<Mutex<Vec<String>>>) -> Receiver<()> {
    let (report, ready) = channel();
    let child = process.child_mut();
    let streams: [Option<Box<dyn io::Read + Send>>; 2] = [
        child
            .stdout
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn io::Read + Send>),
        child
            .stderr
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn io::Read + Send>),
    ];
    for stream in streams.into_iter().flatten() {
        let (log, report) = (Arc::clone(log), report.clone());
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if line.contains("ready") {
                    let _ = report.send(());
                }
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                if log.len() < LOG_LINES_MAX {
                    log.push(line);
                }
            }
        });
    }
    ready
}
