//! What TLS needs beyond the bytes: certificates, keys and rules, read from files and shared by all cores.
//!
//! [`TlsStore`] holds what is in force. A reload reads every file anew and swaps the whole; connections that are open
//! keep what they began with. No connection reads a file.

mod subject;
mod verify;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection};

use super::Context;
use crate::config::{Config, Database, Endpoint, ListenerTls, Protocol, TlsMode};
use crate::limits::{TLS_HANDSHAKE_TIMEOUT, TLS_SESSIONS_MAX};
use crate::ring::{Secured, Socket};

pub use subject::common_name;

/// The application protocol of Postgres in ALPN; a client that begins with TLS at once must name it.
pub const POSTGRES_ALPN: &[u8] = b"postgresql";

/// Why TLS cannot be set up as the config says.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or does not hold what it should.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The library refuses.
    #[error("TLS cannot be set up: {0}")]
    Library(#[from] rustls::Error),
}

/// The client side of a listener.
pub struct ServerTls {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    /// Our own certificate (DER).
    pub certificate: Vec<u8>,
    /// Whether a client must not go on without TLS (Postgres; a Redis listener with TLS speaks nothing else).
    pub required: bool,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("ServerTls")
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

/// All TLS of a config, read from its files.
#[derive(Debug, Default)]
pub struct Material {
    listeners: Vec<(ListenerTls, Protocol, Arc<ServerTls>)>,
    /// What the predecessor had: cores that do not know the new config yet still ask for it.
    before: Vec<(ListenerTls, Protocol, Arc<ServerTls>)>,
    databases: HashMap<String, Arc<ClientConfig>>,
}

impl Material {
    /// Reads every file that `config` names for TLS.
    ///
    /// # Errors
    /// At the first file that is missing or does not hold what it should.
    pub fn load(config: &Config) -> Result<Material, TlsError> {
        let mut material = Material::default();
        for listener in &config.listeners {
            if let Some(tls) = &listener.tls
                && material.find(tls, listener.protocol).is_none()
            {
                let server = Arc::new(server(tls, listener.protocol)?);
                material
                    .listeners
                    .push((tls.clone(), listener.protocol, server));
            }
        }
        for database in &config.databases {
            if wants_tls(database) {
                let client = Arc::new(client(database)?);
                material.databases.insert(database.name.clone(), client);
            }
        }
        Ok(material)
    }

    fn find(&self, tls: &ListenerTls, protocol: Protocol) -> Option<&Arc<ServerTls>> {
        let mut known = self.listeners.iter().chain(&self.before);
        let found = known.find(|(have, speaks, _)| have == tls && *speaks == protocol);
        found.map(|(_, _, server)| server)
    }
}

/// What is in force, for all cores. Looked at once per connection.
#[derive(Debug, Default)]
pub struct TlsStore(ArcSwap<Material>);

impl TlsStore {
    /// With what was read.
    pub fn new(material: Material) -> TlsStore {
        TlsStore(ArcSwap::from_pointee(material))
    }

    /// Puts new material in force, for connections that begin from now on. To be done before the config that goes with
    /// it.
    pub fn replace(&self, mut material: Material) {
        material.before.clone_from(&self.0.load().listeners);
        self.0.store(Arc::new(material));
    }

    /// The client side of a listener.
    pub fn server(&self, tls: &ListenerTls, protocol: Protocol) -> Option<Arc<ServerTls>> {
        self.0.load().find(tls, protocol).cloned()
    }

    /// The side towards a database.
    pub fn client(&self, database: &Database) -> Option<Arc<ClientConfig>> {
        self.0.load().databases.get(&database.name).cloned()
    }
}

/// Does a listener's side of the handshake, in the time that it may take.
///
/// # Errors
/// When the handshake fails or takes too long.
pub async fn accept(context: &Context, client: &Socket, tls: &ServerTls) -> io::Result<Secured> {
    let connection = ServerConnection::new(tls.config.clone()).map_err(io::Error::other)?;
    // Boxed: a listener's plain clients run the same code and do not carry the handshake's state.
    let handshake = Box::pin(client.secure(connection.into()));
    let secured = context
        .ring
        .timeout(TLS_HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if let Some(certificate) = &secured.certificate {
        let name = common_name(certificate).unwrap_or_default();
        tracing::info!(peer = ?client.peer(), name, "a client has shown its certificate");
    }
    Ok(secured)
}

/// Whether a connection to this database is, or should be, TLS. On a unix socket there is none, as in libpq.
pub fn wants_tls(database: &Database) -> bool {
    database.tls != TlsMode::Disable && matches!(database.endpoint, Endpoint::Tcp { .. })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn server(tls: &ListenerTls, protocol: Protocol) -> Result<ServerTls, TlsError> {
    let chain = certificates(&tls.cert)?;
    let key =
        PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| fault(&tls.key, &error, "key"))?;
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(roots(ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = match tls.client_cert_required {
                true => verifier.build(),
                false => verifier.allow_unauthenticated().build(),
            };
            builder.with_client_cert_verifier(verifier.map_err(|error| refuse(ca, &error))?)
        }
    };
    let certificate = chain.first().map(|own| own.to_vec()).unwrap_or_default();
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| refuse(&tls.cert, &error))?;
    // Tickets are sealed with keys of this process that change every few hours; a reload makes new ones, so that
    // nobody comes back with a session that new rules would refuse.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(TLS_SESSIONS_MAX);
    if protocol == Protocol::Postgres {
        config.alpn_protocols = vec![POSTGRES_ALPN.to_vec()];
    }
    Ok(ServerTls {
        config: Arc::new(config),
        certificate,
        // A client without TLS shows no certificate either.
        required: tls.required || (tls.client_ca.is_some() && tls.client_cert_required),
    })
}

fn client(database: &Database) -> Result<ClientConfig, TlsError> {
    let roots = match &database.tls_ca {
        Some(ca) => roots(ca)?,
        None => RootCertStore::empty(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::Verifier::new(
            database.tls,
            roots,
            provider(),
        )))
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(TLS_SESSIONS_MAX);
    if database.protocol == Protocol::Postgres {
        config.alpn_protocols = vec![POSTGRES_ALPN.to_vec()];
    }
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let chain: Vec<_> = read.map_err(|error| fault(path, &error, "certificate"))?;
    match chain.is_empty() {
        true => Err(fault(path, &pem::Error::NoItemsFound, "certificate")),
        false => Ok(chain),
    }
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| refuse(path, &error))?;
    }
    Ok(roots)
}

fn fault(path: &Path, error: &pem::Error, what: &str) -> TlsError {
    let problem = match error {
        pem::Error::NoItemsFound => format!("holds no {what} in PEM"),
        pem::Error::Io(error) => io_problem(error),
        error => format!("is no valid PEM: {error}"),
    };
    let path = path.to_owned();
    TlsError::File { path, problem }
}

fn io_problem(error: &io::Error) -> String {
    format!("cannot be read: {error}")
}

fn refuse(path: &Path, error: &dyn fmt::Display) -> TlsError {
    TlsError::File {
        path: path.to_owned(),
        problem: error.to_string(),
    }
}
