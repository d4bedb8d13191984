//! Addresses: where clients connect and where databases are.
//!
//! Owns: the text forms `HOST:PORT`, `[::1]:PORT`, `:PORT`, `unix:/path`. Never does: resolve a name or open a socket.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::types::Protocol;

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// An IP address and port; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// The path of the socket itself.
    Unix(PathBuf),
}

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host name or IP address (without brackets) and a port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// The path of the socket itself.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ListenAddress {
    /// Parses `IP:PORT`, `[IPv6]:PORT`, `localhost:PORT`, `:PORT` (all interfaces) or `unix:/path`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return absolute_path(path).map(Self::Unix);
        }
        parse_socket_addr(text).map(Self::Tcp)
    }

    /// Whether both cannot be bound at once, or would steal each other's clients.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix(a), Self::Unix(b)) => a == b,
            (Self::Tcp(a), Self::Tcp(b)) => {
                let covers = |x: IpAddr, y: IpAddr| {
                    x == y || (x.is_unspecified() && (x.is_ipv6() || y.is_ipv4()))
                };
                a.port() != 0
                    && a.port() == b.port()
                    && (covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
            }
            _ => false,
        }
    }
}

impl Endpoint {
    /// Parses `HOST:PORT`, `[IPv6]:PORT`, `HOST` (the protocol's own port), `unix:/path`, or a directory `/path` as libpq does.
    pub fn parse(text: &str, protocol: Protocol) -> Result<Self, String> {
        if text.starts_with("unix:") || text.starts_with('/') {
            return Self::from_host_port(text, default_port(protocol), protocol);
        }
        let (host, port) = split_host_port(text)?;
        let port = match port {
            Some(0) => return Err("port 0 cannot be dialled".to_owned()),
            Some(port) => port,
            None => default_port(protocol),
        };
        Self::from_host_port(host, port, protocol)
    }

    /// From the keys `host` and `port`: a name, an address, `unix:/path/of/socket`, or `/directory` as libpq has it (Redis:
    /// the path of the socket itself).
    pub fn from_host_port(host: &str, port: u16, protocol: Protocol) -> Result<Self, String> {
        if let Some(path) = host.strip_prefix("unix:") {
            return absolute_path(path).map(Self::Unix);
        }
        if host.starts_with('/') {
            let path = PathBuf::from(host);
            return Ok(Self::Unix(match protocol {
                Protocol::Postgres => path.join(format!(".s.PGSQL.{port}")),
                Protocol::Redis => path,
            }));
        }
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        check_host(host)?;
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }

    /// Whether dialling this would reach a listener at `address`, as far as the texts show it.
    pub fn reaches(&self, address: &ListenAddress) -> bool {
        match (self, address) {
            (Self::Unix(a), ListenAddress::Unix(b)) => a == b,
            (Self::Tcp { host, port }, ListenAddress::Tcp(listen)) => {
                let Some(ip) = local_ip(host) else {
                    return false;
                };
                *port == listen.port()
                    && (ip == listen.ip()
                        || (listen.ip().is_unspecified()
                            && (ip.is_loopback() || ip.is_unspecified())))
            }
            _ => false,
        }
    }

    /// Whether this stays on this machine, as far as the text shows it.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp { host, .. } => local_ip(host).is_some_and(|ip| ip.is_loopback()),
            Self::Unix(_) => true,
        }
    }

    /// The same endpoint with `localhost` as an address and letters in lower case: for telling whether two are one.
    pub fn normalised(&self) -> Self {
        match self {
            Self::Tcp { host, port } => {
                let host = match local_ip(host) {
                    Some(ip) => ip.to_string(),
                    None => host.trim_end_matches('.').to_ascii_lowercase(),
                };
                Self::Tcp { host, port: *port }
            }
            Self::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

/// The port that a protocol's servers listen on unless told.
pub fn default_port(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Postgres => 5432,
        Protocol::Redis => 6379,
    }
}

/// Parses an address to listen on: `IP:PORT`, `localhost:PORT`, `:PORT`.
pub fn parse_socket_addr(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = split_host_port(text)?;
    let port = port.ok_or_else(|| format!("{text:?} has no port"))?;
    parse_listen_ip(host).map(|ip| SocketAddr::new(ip, port))
}

/// Parses a local interface: an IP address, `localhost`, or nothing for all interfaces.
pub fn parse_listen_ip(host: &str) -> Result<IpAddr, String> {
    match host {
        "" | "*" => Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => host
            .parse()
            .map_err(|_| format!("{host:?} is not an IP address of this machine")),
    }
}

/// Splits at the last colon, minding brackets; a bare IPv6 address is refused because its port cannot be told.
fn split_host_port(text: &str) -> Result<(&str, Option<u16>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest
            .split_once(']')
            .ok_or_else(|| format!("{text:?} has no closing bracket"))?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(format!("{host:?} is not an IPv6 address"));
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(parse_port(port)?))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(format!("{text:?} is not HOST:PORT")),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((_, rest)) if rest.contains(':') => Err(format!(
            "{text:?} has more than one colon: write an IPv6 address in brackets"
        )),
        Some((host, port)) => Ok((host, Some(parse_port(port)?))),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| format!("{text:?} is not a port (0 to 65535)"))
}

fn absolute_path(text: &str) -> Result<PathBuf, String> {
    // sockaddr_un holds 108 bytes with the terminator.
    if !text.starts_with('/') {
        Err(format!("unix:{text} is not an absolute path"))
    } else if text.len() > 107 || text.contains('\0') {
        Err(format!(
            "unix:{text} is longer than the 107 bytes that a socket's path may have"
        ))
    } else {
        Ok(PathBuf::from(text))
    }
}

fn check_host(host: &str) -> Result<(), String> {
    if host.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if host.is_empty() {
        Err("the host is empty".to_owned())
    } else if host.len() > 253 || !host.bytes().all(fits) {
        Err(format!("{host:?} is not a host name or IP address"))
    } else {
        Ok(())
    }
}

fn local_ip(host: &str) -> Option<IpAddr> {
    if host.eq_ignore_ascii_case("localhost") {
        return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    host.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn endpoints_take_names_addresses_brackets_and_sockets() {
        let pg = |text| Endpoint::parse(text, Protocol::Postgres);
        assert_eq!(pg("db.example:5433"), Ok(tcp("db.example", 5433)));
        assert_eq!(pg("db"), Ok(tcp("db", 5432)));
        assert_eq!(pg("[::1]:5432"), Ok(tcp("::1", 5432)));
        assert_eq!(pg("[::1]:5432").unwrap().to_string(), "[::1]:5432");
        assert_eq!(pg("unix:/tmp/s"), Ok(Endpoint::Unix("/tmp/s".into())));
        assert_eq!(
            pg("/run/pg"),
            Ok(Endpoint::Unix("/run/pg/.s.PGSQL.5432".into()))
        );
        let redis = Endpoint::parse("/run/redis.sock", Protocol::Redis);
        assert_eq!(redis, Ok(Endpoint::Unix("/run/redis.sock".into())));
    }

    #[test]
    fn endpoints_that_cannot_be_dialled_are_refused_with_a_reason() {
        for (text, reason) in [
            ("", "empty"),
            (":5432", "empty"),
            ("::1:5432", "brackets"),
            ("[::1", "closing bracket"),
            ("[zz]:1", "not an IPv6"),
            ("[::1]5432", "not HOST:PORT"),
            ("db:0", "port 0"),
            ("db:65536", "not a port"),
            ("db:+1", "not a port"),
            ("db:", "not a port"),
            ("a b:1", "not a host name"),
            ("unix:relative", "absolute"),
        ] {
            let error = Endpoint::parse(text, Protocol::Postgres).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn listen_addresses_are_of_this_machine() {
        let all: SocketAddr = "0.0.0.0:6479".parse().unwrap();
        assert_eq!(ListenAddress::parse(":6479"), Ok(ListenAddress::Tcp(all)));
        assert_eq!(
            ListenAddress::parse("[::1]:1").unwrap().to_string(),
            "[::1]:1"
        );
        assert!(
            ListenAddress::parse("db.example:6432")
                .unwrap_err()
                .contains("IP address")
        );
        assert!(
            ListenAddress::parse("127.0.0.1")
                .unwrap_err()
                .contains("no port")
        );
    }

    #[test]
    fn a_wildcard_overlaps_its_family_and_port_zero_overlaps_nothing() {
        let at = |text: &str| ListenAddress::parse(text).unwrap();
        assert!(at("0.0.0.0:1").overlaps(&at("127.0.0.1:1")));
        assert!(at("127.0.0.1:1").overlaps(&at("[::]:1")));
        assert!(!at("127.0.0.1:1").overlaps(&at("127.0.0.2:1")));
        assert!(!at("127.0.0.1:0").overlaps(&at("127.0.0.1:0")));
        assert!(at("unix:/a").overlaps(&at("unix:/a")));
    }

    #[test]
    fn an_endpoint_that_is_our_own_listener_is_recognised() {
        let listen = ListenAddress::parse("0.0.0.0:6432").unwrap();
        assert!(tcp("localhost", 6432).reaches(&listen));
        assert!(tcp("127.0.0.1", 6432).reaches(&listen));
        assert!(!tcp("10.0.0.1", 6432).reaches(&listen));
        assert!(!tcp("127.0.0.1", 5432).reaches(&listen));
    }
}
