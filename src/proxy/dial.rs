//! The way to a database: address, connection, TLS. Names are resolved elsewhere than on the core ([`super::resolver`]).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::Context;
use crate::config::{Database, Endpoint, Protocol, TlsMode};
use crate::protocol::postgres::startup::encode_ssl_request;
use crate::ring::{Address, Socket};

/// Why a connection is not encrypted.
#[derive(Debug, thiserror::Error)]
enum Unencrypted {
    #[error("the server does not offer TLS")]
    NotOffered,
    /// Somebody in between would have its bytes taken for the server's (CVE-2021-23222).
    #[error("unencrypted bytes behind the server's answer to an SSLRequest")]
    Smuggled,
    #[error("the server answered an SSLRequest with neither S nor N")]
    NotPostgres,
    #[error("the server closed")]
    Closed,
    #[error("no TLS configuration for this database is in force")]
    NotSetUp,
}

impl Context {
    /// Connects to a database as its `tls` says, within `connect_timeout` for the connection and again for TLS.
    ///
    /// # Errors
    /// Resolution, refusal, timeout; TLS that cannot be had and must be.
    pub async fn connect(&self, database: &Database) -> io::Result<Socket> {
        // Once per connection: what it takes is not to be a part of the future of every client, for as long as that lives.
        Box::pin(self.dial(database, false)).await
    }

    /// The same for a mirror of Postgres: nothing that a client waits for may go this way ([`crate::ring::Ring::connect_aside`]).
    ///
    /// # Errors
    /// As [`Context::connect`].
    pub async fn connect_mirror(&self, database: &Database) -> io::Result<Socket> {
        Box::pin(self.dial(database, true)).await
    }

    async fn dial(&self, database: &Database, aside: bool) -> io::Result<Socket> {
        let socket = self.reach_on(&database.endpoint, aside).await?;
        if !super::tls::wants_tls(database) {
            return Ok(socket);
        }
        let limit = self.config.borrow().general.connect_timeout;
        let secured = self.ring.timeout(limit, self.encrypt(&socket, database));
        match secured.await {
            Ok(Ok(())) => Ok(socket),
            Ok(Err(error)) if database.tls == TlsMode::Prefer => {
                // As libpq: what cannot be had is done without, on a new connection.
                tracing::debug!(database = database.name, %error, "TLS preferred, and not had");
                drop(socket);
                self.reach_on(&database.endpoint, aside).await
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Connects without TLS, whatever the database's `tls` says.
    ///
    /// # Errors
    /// Resolution, refusal, timeout.
    pub async fn reach(&self, endpoint: &Endpoint) -> io::Result<Socket> {
        self.reach_on(endpoint, false).await
    }

    async fn reach_on(&self, endpoint: &Endpoint, aside: bool) -> io::Result<Socket> {
        let limit = self.config.borrow().general.connect_timeout;
        let addresses = self.ring.timeout(limit, self.addresses(endpoint)).await;
        let addresses = addresses.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, "its name was not resolved in time")
        })??;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in addresses {
            let connecting = async {
                match aside {
                    false => self.ring.connect(&address).await,
                    true => self.ring.connect_aside(&address).await,
                }
            };
            match self.ring.timeout(limit, connecting).await {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    async fn addresses(&self, endpoint: &Endpoint) -> io::Result<Vec<Address>> {
        match endpoint {
            Endpoint::Unix(path) => Ok(vec![Address::Unix(path.clone())]),
            Endpoint::Tcp { host, port } => {
                let found = self.resolver.addresses(&self.ring, host).await?;
                let with_port = |ip| Address::Tcp(SocketAddr::new(ip, *port));
                Ok(found.into_iter().map(with_port).collect())
            }
        }
    }

    async fn encrypt(&self, socket: &Socket, database: &Database) -> io::Result<()> {
        let Some(config) = self.tls.client(database) else {
            return Err(io::Error::other(Unencrypted::NotSetUp));
        };
        if database.protocol == Protocol::Postgres && !ask(socket, database.tls).await? {
            return Ok(());
        }
        let client = client_connection(config, database, socket)?;
        socket.secure(client.into()).await.map(drop)
    }
}

/// Asks a Postgres server for TLS; false: it has none and need not.
async fn ask(socket: &Socket, mode: TlsMode) -> io::Result<bool> {
    socket.write(&encode_ssl_request());
    let problem = match socket.recv().await? {
        None => Unencrypted::Closed,
        Some(answer) => match &answer[..] {
            b"S" => return Ok(true),
            b"N" if mode == TlsMode::Prefer => return Ok(false),
            b"N" => Unencrypted::NotOffered,
            [b'S' | b'N', ..] => Unencrypted::Smuggled,
            _ => Unencrypted::NotPostgres,
        },
    };
    Err(io::Error::other(problem))
}

/// Under the name of the config (SNI), or under the address where that is no name.
fn client_connection(
    config: Arc<ClientConfig>,
    database: &Database,
    socket: &Socket,
) -> io::Result<ClientConnection> {
    let name = match &database.endpoint {
        Endpoint::Tcp { host, .. } => ServerName::try_from(host.clone()).ok(),
        Endpoint::Unix(_) => None,
    };
    let address = || socket.peer().map(|peer| ServerName::from(peer.ip()));
    let name = match name {
        Some(name) => name,
        // A certificate cannot be for such a name.
        None if database.tls == TlsMode::VerifyFull => {
            return Err(io::Error::other(rustls::Error::InvalidCertificate(
                rustls::CertificateError::NotValidForName,
            )));
        }
        None => address().ok_or(io::ErrorKind::NotConnected)?,
    };
    ClientConnection::new(config, name).map_err(io::Error::other)
}
