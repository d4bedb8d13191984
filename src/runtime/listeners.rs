//! Binding: every core gets its own socket on every address it serves.
//!
//! TCP sockets share their address by SO_REUSEPORT, and the kernel spreads connections over them. A unix socket
//! cannot be shared so: it is bound once and every core accepts from it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use super::StartError;
use crate::config::{Config, ListenAddress, Listener, Protocol};
use crate::limits;

/// One listening socket of one core.
pub(super) struct Bound {
    /// Index of the listener in the config.
    pub listener: usize,
    /// The socket.
    pub socket: OwnedFd,
}

/// All sockets.
pub(super) struct BoundListeners {
    /// By index of the core.
    pub per_core: Vec<Vec<Bound>>,
    /// What clients can connect to, by listener.
    pub addresses: Vec<String>,
}

pub(super) fn bind(config: &Config, cpus: &[usize]) -> Result<BoundListeners, StartError> {
    let mut per_core: Vec<Vec<Bound>> = cpus.iter().map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let serving = serving(config, listener, cpus);
        let fail = |source| StartError::Listen {
            address: listener.address.to_string(),
            source,
        };
        let (sockets, address) = match &listener.address {
            ListenAddress::Tcp(address) => tcp(*address, serving.len()).map_err(fail)?,
            ListenAddress::Unix(path) => unix(path, serving.len()).map_err(fail)?,
        };
        addresses.push(address);
        for (core, socket) in serving.into_iter().zip(sockets) {
            per_core[core].push(Bound {
                listener: index,
                socket,
            });
        }
    }
    Ok(BoundListeners {
        per_core,
        addresses,
    })
}

/// The cores that accept for a listener, by index.
///
/// Postgres: all. Redis: one for each primary, so that all clients of a primary share its lanes and writes reach the
/// other side in the order of their execution; several primaries take turns. `cores` of the listener overrides both.
fn serving(config: &Config, listener: &Listener, cpus: &[usize]) -> Vec<usize> {
    let all = 0..cpus.len();
    match (&listener.cores, listener.protocol) {
        (Some(list), _) => all.filter(|core| list.contains(&cpus[*core])).collect(),
        (None, Protocol::Postgres) => all.collect(),
        (None, Protocol::Redis) => {
            let mut primaries: Vec<_> = config
                .listeners
                .iter()
                .filter(|other| other.protocol == Protocol::Redis)
                .map(|other| other.database)
                .collect();
            let mut seen = std::collections::HashSet::new();
            primaries.retain(|database| seen.insert(*database));
            let turn = primaries
                .iter()
                .position(|database| *database == listener.database);
            vec![turn.unwrap_or(0) % cpus.len().max(1)]
        }
    }
}

fn tcp(mut address: SocketAddr, count: usize) -> io::Result<(Vec<OwnedFd>, String)> {
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)?;
        socket.set_reuse_address(true)?;
        // Another process on the address must be an error, not a silent sharing of its clients: the first socket
        // is bound without SO_REUSEPORT once.
        if sockets.is_empty() && address.port() != 0 {
            let probe = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)?;
            probe.set_reuse_address(true)?;
            probe.bind(&address.into())?;
            probe.listen(1)?;
        }
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(limits::LISTEN_BACKLOG)?;
        if let Some(bound) = socket.local_addr()?.as_socket() {
            // Port 0: the cores share the port that the first one got.
            address = bound;
        }
        sockets.push(OwnedFd::from(socket));
    }
    Ok((sockets, address.to_string()))
}

fn unix(path: &Path, count: usize) -> io::Result<(Vec<OwnedFd>, String)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(limits::LISTEN_BACKLOG)?;
    let sockets = (0..count)
        .map(|_| socket.try_clone().map(OwnedFd::from))
        .collect::<io::Result<_>>()?;
    Ok((sockets, format!("unix:{}", path.display())))
}

/// Removes the socket file of a process that is gone; one that answers is in use.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let refused = || {
        std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    if metadata.file_type().is_socket() && refused() {
        return fs::remove_file(path);
    }
    Err(io::Error::from(io::ErrorKind::AddrInUse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_primary_has_one_core_unless_its_listener_names_some() {
        let text = r#"
[[listeners]]
address = "127.0.0.1:1"
protocol = "redis"
database = "a"
[[listeners]]
address = "127.0.0.1:2"
protocol = "redis"
database = "b"
[[listeners]]
address = "127.0.0.1:3"
protocol = "redis"
database = "a"
[[listeners]]
address = "127.0.0.1:4"
protocol = "redis"
database = "c"
cores = [4, 6]
[[listeners]]
address = "127.0.0.1:5"
[[databases]]
name = "a"
protocol = "redis"
[[databases]]
name = "b"
protocol = "redis"
[[databases]]
name = "c"
protocol = "redis"
[[databases]]
name = "p"
"#;
        let cpus = [4, 5, 6];
        let input = crate::config::Input {
            file: Path::new("parhelion.toml"),
            text,
            users: None,
            cpus: &cpus,
        };
        let config = crate::config::parse(&input).unwrap().config;
        let cores = |index: usize| serving(&config, &config.listeners[index], &cpus);
        assert_eq!([cores(0), cores(1), cores(2)], [[0], [1], [0]]);
        assert_eq!(cores(3), [0, 2]);
        assert_eq!(cores(4), [0, 1, 2]);
    }

    #[test]
    fn an_address_in_use_is_refused_although_our_own_cores_share_one() {
        let (sockets, address) = tcp("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert_eq!(sockets.len(), 3);
        let error = tcp(address.parse().unwrap(), 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("redis.sock");
        let (first, _) = unix(&path, 2).unwrap();
        assert_eq!(unix(&path, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert_eq!(unix(&path, 1).unwrap().0.len(), 1);
    }
}
