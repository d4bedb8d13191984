//! One database, dialled once with plain blocking sockets: is it there, does it speak the protocol, can we log in?
//!
//! Owns: a connection with a deadline, and the few messages of a probe. Never does: write data, or send a password in the
//! clear over a network.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::config::{Database, Endpoint, Login as Credentials, Secret, TlsMode};
use crate::protocol::postgres::login::{
    LoggedIn, Login, LoginParams, LoginProgress, Secret as LoginSecret,
};

/// Bytes that a probe reads at most: a login's settings or INFO are below 16 KiB.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// What a probe found out, or in one sentence why it failed.
pub(super) type Finding = Result<Found, String>;

/// A server that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub version: Option<String>,
    pub note: &'static str,
}

trait Stream: Read + Write {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

impl Stream for UnixStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

/// A connection whose operations all end by one deadline.
struct Wire {
    stream: Box<dyn Stream>,
    deadline: Instant,
}

impl Wire {
    fn dial(endpoint: &Endpoint, deadline: Instant) -> Result<Self, String> {
        let stream: Box<dyn Stream> = match endpoint {
            Endpoint::Unix(path) => Box::new(
                UnixStream::connect(path).map_err(|error| format!("cannot connect: {error}"))?,
            ),
            Endpoint::Tcp { host, port } => Box::new(dial_tcp(host, *port, deadline)?),
        };
        Ok(Self { stream, deadline })
    }

    fn arm(&mut self) -> Result<(), String> {
        let left = left(self.deadline)?;
        self.stream
            .set_timeout(left)
            .map_err(|error| error.to_string())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.arm()?;
        self.stream.write_all(bytes).map_err(said)
    }

    /// Reads what there is, at least one byte.
    fn receive(&mut self, into: &mut Vec<u8>) -> Result<(), String> {
        self.arm()?;
        let mut piece = [0; 4096];
        let count = self.stream.read(&mut piece).map_err(said)?;
        if count == 0 {
            return Err("closed the connection".to_owned());
        }
        if into.len() + count > ANSWER_BYTES_MAX {
            return Err("answers more than a probe reads".to_owned());
        }
        into.extend_from_slice(&piece[..count]);
        Ok(())
    }
}

fn left(deadline: Instant) -> Result<Duration, String> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err("does not answer in time".to_owned())
    } else {
        Ok(left)
    }
}

fn said(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "does not answer in time".to_owned(),
        _ => format!("broke the connection: {error}"),
    }
}

fn dial_tcp(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, String> {
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("cannot resolve {host}: {error}"))?;
    let mut last = format!("{host} has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("cannot connect to {address}: {error}"),
        }
    }
    Err(last)
}

/// Whether a password may cross this connection in the clear: nobody else can listen.
fn is_private(database: &Database) -> bool {
    database.endpoint.is_loopback()
}

fn wants_tls(database: &Database) -> bool {
    !matches!(database.tls, TlsMode::Disable | TlsMode::Prefer)
}

/// Dials a Postgres. With a login: logs in. Without: sees that it is Postgres.
pub(super) fn postgres(
    database: &Database,
    login: Option<Credentials<'_>>,
    deadline: Instant,
) -> Finding {
    let offers_tls = ssl_request(database, deadline)?;
    if wants_tls(database) {
        return match offers_tls {
            true => Ok(Found {
                version: None,
                note: "offers TLS; login not tried",
            }),
            false => Err(format!(
                "does not offer TLS, and tls = \"{}\"",
                database.tls
            )),
        };
    }
    let mut wire = Wire::dial(&database.endpoint, deadline)?;
    match login {
        Some(login) => {
            let session = log_in(&mut wire, database, login)?;
            let version = session
                .settings
                .iter()
                .find(|(name, _)| name == b"server_version");
            let version = version.map(|(_, value)| printable(value));
            // Terminate: the server need not find out by itself.
            let _ = wire.send(&[b'X', 0, 0, 0, 4]);
            Ok(Found {
                version,
                note: "logged in",
            })
        }
        None => greet(&mut wire, database),
    }
}

/// Asks for TLS; whether the server would have it. Anything but `S` or `N` is not Postgres.
fn ssl_request(database: &Database, deadline: Instant) -> Result<bool, String> {
    let mut wire = Wire::dial(&database.endpoint, deadline)?;
    // SSLRequest: length 8, code 80877103.
    wire.send(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])?;
    let mut answer = Vec::new();
    wire.receive(&mut answer)?;
    match answer.first() {
        Some(b'S') => Ok(true),
        Some(b'N') => Ok(false),
        _ => Err("does not answer like Postgres".to_owned()),
    }
}

fn log_in(
    wire: &mut Wire,
    database: &Database,
    login: Credentials<'_>,
) -> Result<LoggedIn, String> {
    let params = LoginParams {
        user: login.user.as_bytes().to_vec(),
        database: database.database_name.as_bytes().to_vec(),
        password: login
            .password
            .map(|secret| LoginSecret::new(secret.expose())),
        extra: vec![(b"application_name".to_vec(), b"parhelion check".to_vec())],
    };
    let mut login = Login::new(params);
    wire.send(&login.start())?;
    let mut seen = Vec::new();
    let mut out = Vec::new();
    loop {
        let before = seen.len();
        wire.receive(&mut seen)?;
        // AuthenticationCleartextPassword is the first thing that a server says, if it does.
        if seen.starts_with(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]) && !is_private(database) {
            return Err("asks for the password in the clear: not sent without TLS".to_owned());
        }
        match login
            .receive(&seen[before..], &mut out)
            .map_err(|error| error.to_string())?
        {
            LoginProgress::Done { session, .. } => return Ok(session),
            LoginProgress::Continue => {}
        }
        if !out.is_empty() {
            wire.send(&out)?;
            out.clear();
        }
    }
}

/// Sends a startup packet and looks at the first answer; a password is not asked for further.
fn greet(wire: &mut Wire, database: &Database) -> Finding {
    let params = LoginParams {
        user: b"parhelion_check".to_vec(),
        database: database.database_name.as_bytes().to_vec(),
        password: None,
        extra: Vec::new(),
    };
    wire.send(&Login::new(params).start())?;
    let mut answer = Vec::new();
    wire.receive(&mut answer)?;
    match answer.first() {
        // An authentication request, an error such as "role does not exist", or a version negotiation.
        Some(b'R' | b'E' | b'v') => Ok(Found {
            version: None,
            note: "speaks Postgres",
        }),
        _ => Err("does not answer like Postgres".to_owned()),
    }
}

/// Dials a Redis. `must_log_in`: Parhelion itself needs to get in, not only its clients.
pub(super) fn redis(database: &Database, must_log_in: bool, deadline: Instant) -> Finding {
    let mut wire = Wire::dial(&database.endpoint, deadline)?;
    if wants_tls(database) {
        return Ok(Found {
            version: None,
            note: "reachable; TLS and login not tried",
        });
    }
    if let Some(password) = &database.password {
        let user = database.user.as_deref();
        let reply = call(&mut wire, &auth(user, password))?;
        if let Some(error) = error_of(&reply) {
            return Err(format!("refuses the login: {error}"));
        }
    }
    let reply = call(&mut wire, &[b"PING"])?;
    match error_of(&reply) {
        Some(error) if error.starts_with("NOAUTH") && !must_log_in => {
            return Ok(Found {
                version: None,
                note: "asks clients for a password",
            });
        }
        Some(error) if error.starts_with("NOAUTH") => {
            return Err("asks for a password and none is configured".to_owned());
        }
        Some(error) => return Err(error),
        None if reply != b"+PONG\r\n" => return Err("does not answer like Redis".to_owned()),
        None => {}
    }
    if database.db != 0 {
        let reply = call(&mut wire, &[b"SELECT", database.db.to_string().as_bytes()])?;
        if let Some(error) = error_of(&reply) {
            return Err(format!("SELECT {}: {error}", database.db));
        }
    }
    // A user who may not run INFO can still be mirrored to.
    let info = call(&mut wire, &[b"INFO", b"server"])?;
    Ok(Found {
        version: redis_version(&info),
        note: "answers",
    })
}

fn auth<'a>(user: Option<&'a str>, password: &'a Secret) -> Vec<&'a [u8]> {
    let mut command: Vec<&[u8]> = vec![b"AUTH"];
    command.extend(user.map(str::as_bytes));
    command.push(password.expose_bytes());
    command
}

/// Sends one command and reads its whole reply: a line or a bulk string.
fn call(wire: &mut Wire, command: &[&[u8]]) -> Result<Vec<u8>, String> {
    let mut request = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        request.extend(format!("${}\r\n", word.len()).bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    wire.send(&request)?;
    let mut reply = Vec::new();
    loop {
        wire.receive(&mut reply)?;
        if !matches!(reply.first(), Some(b'+' | b'-' | b':' | b'$')) {
            return Err("does not answer like Redis".to_owned());
        }
        let Some(end) = memchr::memchr(b'\n', &reply) else {
            continue;
        };
        let body = match (reply[0], std::str::from_utf8(&reply[1..end])) {
            (b'$', Ok(len)) => match len.trim_end().parse::<usize>() {
                Ok(len) => len.saturating_add(2),
                Err(_) => 0,
            },
            _ => 0,
        };
        if reply.len() - end > body {
            return Ok(reply);
        }
    }
}

fn error_of(reply: &[u8]) -> Option<String> {
    let text = reply.strip_prefix(b"-")?;
    Some(printable(text))
}

/// `Redis 7.4.1`, `Valkey 8.0.1`: the more specific name wins.
fn redis_version(info: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(info);
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| printable(value.as_bytes()))
    };
    [
        ("valkey_version", "Valkey"),
        ("dragonfly_version", "Dragonfly"),
        ("redis_version", "Redis"),
    ]
    .into_iter()
    .find_map(|(key, name)| Some(format!("{name} {}", field(key)?)))
}

/// Foreign text for a terminal: one line, no control characters, at most 200 characters.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect()
}
