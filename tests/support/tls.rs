//! Certificates for the TLS tests, and the configurations and programs that use them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use parhelion::testing::postgres::PostgresServer;
use parhelion::testing::proxy::ProxyProcess;
use parhelion::testing::wait::{eventually, free_port};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A certificate authority with a folder for what it signs.
pub struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// Two PEM files.
#[derive(Clone)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Authority {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let names = &mut parameters.distinguished_name;
        names.push(DnType::CommonName, "Test authority");
        let key = KeyPair::generate().unwrap();
        let own = parameters.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), own.pem()).unwrap();
        Authority {
            folder,
            issuer: Issuer::new(parameters, key),
        }
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Signs a certificate for these hosts and common name; written over what had the file's name.
    pub fn sign(&self, file: &str, hosts: &[&str], name: &str) -> Pair {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut parameters = CertificateParams::new(hosts).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        let names = &mut parameters.distinguished_name;
        names.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let signed = parameters.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair {
            cert: self.folder.path().join(format!("{file}.pem")),
            key: self.folder.path().join(format!("{file}.key")),
        };
        fs::write(&pair.cert, signed.pem()).unwrap();
        fs::write(&pair.key, key.serialize_pem()).unwrap();
        // libpq and Postgres refuse keys that others may read.
        fs::set_permissions(&pair.key, fs::Permissions::from_mode(0o600)).unwrap();
        pair
    }

    /// For 127.0.0.1 and localhost.
    pub fn sign_local(&self, file: &str) -> Pair {
        self.sign(file, &["127.0.0.1", "localhost"], file)
    }
}

/// Turns TLS on in a running Postgres.
pub fn encrypt_postgres(server: &PostgresServer, pair: &Pair) {
    let folder = server.socket_folder();
    let owner = fs::metadata(folder.join("data")).unwrap();
    for (from, to) in [(&pair.cert, "server.crt"), (&pair.key, "server.key")] {
        let to = folder.join("data").join(to);
        fs::copy(from, &to).unwrap();
        chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
    }
    server.sql("postgres", "ALTER SYSTEM SET ssl = on").unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    let on = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let seen = eventually(Duration::from_secs(10), || {
        (server.sql("postgres", on).ok()? == "t").then_some(())
    });
    assert!(seen.is_some(), "{}", server.log().unwrap());
}

/// The proxy with a configuration file.
pub struct Configured {
    pub process: ProxyProcess,
    folder: tempfile::TempDir,
}

impl Configured {
    /// One core; `rest` holds the sections, `LISTEN` in it stands for the listener's address.
    pub fn start(rest: &str) -> Configured {
        let folder = tempfile::tempdir().unwrap();
        let [address, control] =
            [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap())));
        let core = core_affinity::get_core_ids().unwrap_or_default();
        let core = core.first().map_or(0, |core| core.id);
        let rest = rest.replace("LISTEN", &address.to_string());
        let path = folder.path().join("parhelion.toml");
        let text = format!("[general]\ncores = [{core}]\ncontrol = \"{control}\"\n{rest}");
        fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_parhelion"));
        command.arg("run").arg("--config").arg(&path);
        let process = ProxyProcess::spawn(command, address, control).unwrap();
        Configured { process, folder }
    }

    pub fn port(&self) -> u16 {
        self.process.address().port()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// A listener's `tls`.
pub fn listener_tls(pair: &Pair, client_ca: Option<&Path>) -> String {
    let ca = client_ca.map(|ca| format!(", client_ca = \"{}\"", ca.display()));
    format!(
        "tls = {{ cert = \"{}\", key = \"{}\"{} }}",
        pair.cert.display(),
        pair.key.display(),
        ca.unwrap_or_default()
    )
}
