//! A real Postgres server on a free loopback port, in a temporary folder.
//!
//! `initdb` runs once per machine boot and user: its result is kept as a template folder that each server copies.
//! Postgres refuses to run as root, so a root process starts it as the user `postgres` (or `nobody`).

mod cluster;

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::pg_wire;
use super::process::{Output, Process, is_executable};
use super::redis::tail;
use super::wait::{eventually, free_port};
use cluster::{Tools, configure, copy_tree, find_tools, give_to, template};

/// How long a server may take until it lets a user in.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Another process may take a free port before the server binds it.
const PORT_ATTEMPTS: usize = 5;
/// The superuser, who needs no password.
pub const SUPERUSER: &str = "postgres";

/// How pg_hba lets a user in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserAuth {
    /// No question asked.
    Trust,
    /// The password in clear text.
    Password,
    /// MD5.
    Md5,
    /// SCRAM-SHA-256.
    Scram,
}

impl UserAuth {
    fn method(self) -> &'static str {
        match self {
            UserAuth::Trust => "trust",
            UserAuth::Password => "password",
            UserAuth::Md5 => "md5",
            UserAuth::Scram => "scram-sha-256",
        }
    }

    fn encryption(self) -> &'static str {
        if self == UserAuth::Md5 {
            "md5"
        } else {
            "scram-sha-256"
        }
    }
}

/// A login role to create.
#[derive(Debug, Clone)]
pub struct PostgresUser {
    /// Role name.
    pub name: String,
    /// Its password.
    pub password: String,
    /// How it logs in.
    pub auth: UserAuth,
}

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    /// Roles beside the superuser.
    pub users: Vec<PostgresUser>,
    /// Databases beside `postgres`.
    pub databases: Vec<String>,
    /// Logs each statement (see [`PostgresServer::log`]) and each lock wait.
    pub log_statements: bool,
    /// More lines for postgresql.conf.
    pub settings: Vec<(String, String)>,
}

/// A running server; stopped by its pid when dropped.
#[derive(Debug)]
pub struct PostgresServer {
    process: Process,
    port: u16,
    folder: tempfile::TempDir,
    tools: Tools,
}

impl PostgresServer {
    /// Starts a server and returns once its superuser has logged in over TCP and the roles and databases exist.
    ///
    /// # Errors
    /// When there is no Postgres on this machine or it does not come up in time.
    pub fn start(options: PostgresOptions) -> io::Result<PostgresServer> {
        let tools = find_tools()?;
        let folder = tempfile::Builder::new().prefix("parhelion-pg-").tempdir()?;
        give_to(folder.path(), tools.run_as)?;
        copy_tree(template(&tools)?, &folder.path().join("data"))?;
        configure(folder.path(), &options, tools.run_as)?;
        let mut last = io::Error::other("not tried");
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port()?;
            match launch(folder.path(), port, &tools) {
                Ok(process) => {
                    let server = PostgresServer {
                        process,
                        port,
                        folder,
                        tools,
                    };
                    server.populate(&options)?;
                    return Ok(server);
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

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The folder with its unix socket `.s.PGSQL.<port>`.
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything it has logged since it was first started.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.folder.path().join("server.log"))?).into_owned())
    }

    /// A program of the same installation (`psql`, `pgbench` …), or the one on PATH.
    pub fn program(&self, name: &str) -> PathBuf {
        let own = self.tools.folder.join(name);
        if is_executable(&own) {
            own
        } else {
            PathBuf::from(name)
        }
    }

    /// Runs SQL through `psql` as the superuser; rows come back unaligned, columns separated by `|`.
    ///
    /// # Errors
    /// psql's standard error.
    pub fn sql(&self, database: &str, sql: &str) -> io::Result<String> {
        let port = self.port.to_string();
        let output = Command::new(self.program("psql"))
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-p",
                &port,
            ])
            .args(["-U", SUPERUSER, "-d", database, "-c", sql])
            .stdin(std::process::Stdio::null())
            .output()?;
        if !output.status.success() {
            return Err(io::Error::other(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned())
    }

    /// A connection as the superuser, past its login, with a read timeout of ten seconds.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn connect(&self, database: &str) -> io::Result<TcpStream> {
        log_in(self.address(), database, Duration::from_secs(10))
    }

    /// Stops every process of the server where it stands (SIGSTOP).
    ///
    /// # Errors
    /// When the postmaster is gone.
    pub fn pause(&self) -> io::Result<()> {
        // The postmaster first, so that no new backend escapes.
        self.process.pause()?;
        self.signal_backends(Signal::STOP);
        Ok(())
    }

    /// SIGCONT to every process.
    ///
    /// # Errors
    /// When the postmaster is gone.
    pub fn resume(&self) -> io::Result<()> {
        self.signal_backends(Signal::CONT);
        self.process.resume()
    }

    /// SIGKILL to the postmaster and its backends, reaped.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn kill9(&mut self) -> io::Result<()> {
        let backends = children_of(self.process.pid());
        self.process.kill9()?;
        send_to(&backends, Signal::KILL);
        Ok(())
    }

    /// Starts it again on the same port and data, after [`kill9`](Self::kill9) or by a fast shutdown now.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> io::Result<()> {
        self.process.stop(Signal::INT);
        // Shared memory of a killed postmaster is in use until its last backend has noticed.
        let started = eventually(READY_TIMEOUT, || {
            launch(self.folder.path(), self.port, &self.tools).ok()
        });
        self.process = started.ok_or_else(|| io::Error::other("postgres did not restart"))?;
        Ok(())
    }

    fn signal_backends(&self, signal: Signal) {
        send_to(&children_of(self.process.pid()), signal);
    }

    fn populate(&self, options: &PostgresOptions) -> io::Result<()> {
        for user in &options.users {
            let quoted = user.password.replace('\'', "''");
            self.sql(
                "postgres",
                &format!(
                    "SET password_encryption = '{}'; CREATE ROLE \"{}\" LOGIN PASSWORD '{quoted}'",
                    user.auth.encryption(),
                    user.name,
                ),
            )?;
        }
        for database in &options.databases {
            self.sql("postgres", &format!("CREATE DATABASE \"{database}\""))?;
            self.sql(database, "GRANT ALL ON SCHEMA public TO PUBLIC")?;
        }
        Ok(())
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.signal_backends(Signal::CONT);
        // Immediate shutdown: the data goes with the folder.
        self.process.stop(Signal::QUIT);
    }
}

fn launch(folder: &Path, port: u16, tools: &Tools) -> io::Result<Process> {
    let log_path = folder.join("server.log");
    let log = File::options().create(true).append(true).open(&log_path)?;
    let mut command = Command::new(tools.folder.join("postgres"));
    command.current_dir(folder);
    command
        .arg("-D")
        .arg(folder.join("data"))
        .arg("-k")
        .arg(folder);
    command.args(["-p", &port.to_string(), "-h", "127.0.0.1"]);
    let mut process = Process::spawn(command, Output::File(log), tools.run_as)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let ready = eventually(READY_TIMEOUT, || {
        if let Some(status) = process.exited() {
            return Some(Err(io::Error::other(format!("postgres ended: {status}"))));
        }
        log_in(address, "postgres", Duration::from_secs(2))
            .ok()
            .map(|_| Ok(()))
    });
    match ready {
        Some(Ok(())) => Ok(process),
        Some(Err(error)) => Err(io::Error::other(format!("{error}\n{}", tail(&log_path)))),
        None => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "postgres did not let anybody in",
        )),
    }
}

fn log_in(address: SocketAddr, database: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    pg_wire::log_in(&mut stream, &[("user", SUPERUSER), ("database", database)])?;
    Ok(stream)
}

fn children_of(pid: u32) -> Vec<u32> {
    let listing =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listing
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .collect()
}

fn send_to(pids: &[u32], signal: Signal) {
    for pid in pids {
        let raw = i32::try_from(*pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = raw {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_killed_server_comes_back_with_its_committed_rows() {
        let options = PostgresOptions {
            databases: vec!["shop".into()],
            ..PostgresOptions::default()
        };
        let mut server = PostgresServer::start(options).unwrap();
        server
            .sql(
                "shop",
                "CREATE TABLE t (a int); INSERT INTO t VALUES (7); CHECKPOINT",
            )
            .unwrap();
        server.kill9().unwrap();
        assert!(server.connect("shop").is_err());
        server.restart().unwrap();
        assert_eq!(server.sql("shop", "SELECT a FROM t").unwrap(), "7");
    }

    #[test]
    fn a_paused_server_answers_nothing() {
        let server = PostgresServer::start(PostgresOptions::default()).unwrap();
        let mut stream = server.connect("postgres").unwrap();
        server.pause().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        stream.write_all(&pg_wire::query("SELECT 1")).unwrap();
        assert!(
            stream.read(&mut [0; 1]).is_err(),
            "a stopped server answered"
        );
        server.resume().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert_eq!(pg_wire::read_message(&mut stream).unwrap()[0], b'T');
    }

    #[test]
    fn users_log_in_by_their_own_method_and_statements_are_logged() {
        let users = [UserAuth::Password, UserAuth::Md5, UserAuth::Scram].map(|auth| PostgresUser {
            name: format!("u_{}", auth.method().replace('-', "_")),
            password: "pa'ss".into(),
            auth,
        });
        let options = PostgresOptions {
            users: users.to_vec(),
            log_statements: true,
            ..PostgresOptions::default()
        };
        let server = PostgresServer::start(options).unwrap();
        // Authentication requests 3, 5 and 10 of the protocol.
        for (user, request) in users.iter().zip([3_u32, 5, 10]) {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            let hello = pg_wire::startup(&[("user", &user.name), ("database", "postgres")]);
            stream.write_all(&hello).unwrap();
            let answer = pg_wire::read_message(&mut stream).unwrap();
            assert_eq!(answer[5..9], request.to_be_bytes(), "{}", user.name);
        }
        server.sql("postgres", "SELECT 'marker-17'").unwrap();
        assert!(server.log().unwrap().contains("marker-17"));
    }
}
