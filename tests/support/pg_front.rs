//! One real server behind the real proxy, configured by file.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use parhelion::testing::proxy::ProxyProcess;
use parhelion::testing::servers::{PostgresOptions, PostgresServer, PostgresUser, UserAuth};
use parhelion::testing::wait::free_port;

use super::pg::PgClient;

/// The database on the server, and what clients call it.
pub const SHOP: &str = "shop";
/// The password of every user that has one.
pub const PASSWORD: &str = "s3cr\u{e9}t";

/// What a test changes.
#[derive(Default)]
pub struct FrontOptions {
    /// Lines of `[general]`.
    pub general: String,
    /// Lines of `[[databases]]`.
    pub database: String,
    /// More sections; `{port}` stands for the server's port.
    pub more: String,
    /// users.toml.
    pub users: String,
    /// The address in `[[databases]]` instead of the server's.
    pub host: Option<String>,
    pub port: Option<u16>,
    pub server: PostgresOptions,
}

impl FrontOptions {
    /// Parhelion checks everybody; `ann` logs in by SCRAM on both sides.
    pub fn terminate(lines: &str) -> FrontOptions {
        FrontOptions {
            database: format!("auth = \"terminate\"\n{lines}"),
            users: user("ann", &format!("password = \"{PASSWORD}\"")),
            server: PostgresOptions {
                users: vec![role("ann", UserAuth::Scram)],
                ..PostgresOptions::default()
            },
            ..FrontOptions::default()
        }
    }

    /// Primary connections are shared, and nobody is asked for a password: what is tested is the sharing.
    pub fn pooled(pool_size: usize) -> FrontOptions {
        FrontOptions {
            database: format!(
                "auth = \"terminate\"\nauth_method = \"trust\"\nuser = \"postgres\"\n\
                 pool_mode = \"transaction\"\npool_size = {pool_size}\n"
            ),
            ..FrontOptions::default()
        }
    }

    pub fn general(mut self, lines: &str) -> FrontOptions {
        self.general.push_str(lines);
        self
    }
}

/// A login role with [`PASSWORD`].
pub fn role(name: &str, auth: UserAuth) -> PostgresUser {
    PostgresUser {
        name: name.into(),
        password: PASSWORD.into(),
        auth,
    }
}

/// An entry of users.toml.
pub fn user(name: &str, proof: &str) -> String {
    format!("[[users]]\nname = \"{name}\"\ndatabase = \"{SHOP}\"\n{proof}\n")
}

pub struct Front {
    pub server: PostgresServer,
    pub proxy: ProxyProcess,
    pub folder: tempfile::TempDir,
}

impl Front {
    pub fn start(mut options: FrontOptions) -> Front {
        let mut server = std::mem::take(&mut options.server);
        server.databases.push(SHOP.into());
        Front::before(PostgresServer::start(server).unwrap(), options)
    }

    pub fn before(server: PostgresServer, options: FrontOptions) -> Front {
        let folder = tempfile::tempdir().unwrap();
        let [listen, control] = [(); 2].map(|()| free_port().unwrap());
        let core = core_affinity::get_core_ids()
            .and_then(|cores| cores.first().map(|core| core.id))
            .unwrap_or(0);
        let FrontOptions {
            general,
            database,
            more,
            users,
            host,
            port,
            ..
        } = options;
        let host = host.unwrap_or_else(|| "127.0.0.1".into());
        let port = port.unwrap_or_else(|| server.port());
        let cores = match general.contains("cores") {
            true => String::new(),
            false => format!("cores = [{core}]"),
        };
        let more = more
            .replace("{port}", &server.port().to_string())
            .replace("{folder}", &folder.path().to_string_lossy());
        let text = format!(
            "[general]\ncontrol = \"127.0.0.1:{control}\"\n{cores}\n{general}\n\
             [[listeners]]\naddress = \"127.0.0.1:{listen}\"\nprotocol = \"postgres\"\n\
             [[databases]]\nname = \"{SHOP}\"\nhost = \"{host}\"\nport = {port}\n{database}\n{more}\n"
        );
        let path = folder.path().join("parhelion.toml");
        fs::write(&path, text).unwrap();
        fs::write(folder.path().join("users.toml"), users).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_parhelion"));
        command.arg("run").arg("--config").arg(path);
        command.env("PARHELION_LOG", "debug");
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let proxy = ProxyProcess::spawn(command, address(listen), address(control)).unwrap();
        Front {
            server,
            proxy,
            folder,
        }
    }

    pub fn port(&self) -> String {
        self.proxy.address().port().to_string()
    }

    /// A client that needs no password.
    pub fn client(&self) -> PgClient {
        self.client_with(&[])
    }

    pub fn client_with(&self, more: &[(&str, &str)]) -> PgClient {
        let mut parameters = vec![("user", "postgres"), ("database", SHOP)];
        parameters.extend(more);
        PgClient::connect_with(self.proxy.address(), &parameters).0
    }

    /// What psql prints; its standard error as `Err`.
    pub fn psql(&self, user: &str, password: &str, sql: &str) -> Result<String, String> {
        let mut command = Command::new(self.server.program("psql"));
        command.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1"]);
        command.args(["-h", "127.0.0.1", "-p", &self.port(), "-U", user]);
        command.args(["-d", SHOP, "-c", sql]);
        command.env("PGPASSWORD", password);
        let output = super::run(&mut command, b"", std::time::Duration::from_secs(60));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }
}
