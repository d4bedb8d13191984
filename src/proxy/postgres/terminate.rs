//! `auth = "terminate"`: checks the client here, and logs in to the primary with a login of Parhelion's own.
//!
//! The primary sees no attempt of a client that fails here. Nothing secret is logged: of a refused client its name, of the
//! primary's refusal its text.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::SharedSource;
use super::handshake::Hello;
use crate::config::{AuthMethod, Config, Secret as ConfigSecret, User};
use crate::limits::{POSTGRES_AUTH_TIMEOUT, VERIFIERS_LEN_MAX};
use crate::protocol::postgres::auth::{
    Account, AuthError, AuthProgress, AuthServer, Method, Nonces, Verifier, not_permitted,
};
use crate::protocol::postgres::login::{
    LoggedIn, Login, LoginError, LoginParams, LoginProgress, Secret,
};
use crate::protocol::postgres::startup::{Severity, encode_error, push_message};
use crate::proxy::Context;
use crate::ring::Socket;

/// What all cores know for checking clients. Locked at logins only.
#[derive(Default)]
pub struct Accounts {
    salt_secret: OnceLock<[u8; 32]>,
    /// By database and user: the password that the verifier was made of.
    verifiers: Mutex<HashMap<(String, String), (ConfigSecret, Verifier)>>,
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts").finish_non_exhaustive()
    }
}

impl Accounts {
    /// Makes salts that look alike whether a user exists or not.
    fn salt_secret(&self) -> io::Result<&[u8; 32]> {
        if let Some(secret) = self.salt_secret.get() {
            return Ok(secret);
        }
        let secret = random()?;
        Ok(self.salt_secret.get_or_init(|| secret))
    }

    /// What is known of a user; `None` if that is nothing.
    fn account(&self, database: &str, user: &User, method: Method) -> io::Result<Option<Account>> {
        let secret = self.salt_secret()?;
        let stored = user.scram_verifier.as_ref();
        let verifier = match (stored, &user.password) {
            (Some(stored), _) => Verifier::parse(stored.expose()),
            // No other method looks at it.
            (None, Some(_)) if method != Method::Scram => {
                Some(Verifier::mock(user.name.as_bytes(), secret))
            }
            (None, Some(password)) => Some(self.verifier(database, &user.name, password, secret)),
            (None, None) => None,
        };
        Ok(verifier.map(|verifier| Account {
            password: user.password.as_ref().map(own_secret),
            verifier,
        }))
    }

    /// The verifier of a password; made once, for it costs some milliseconds.
    fn verifier(
        &self,
        database: &str,
        user: &str,
        password: &ConfigSecret,
        salt_secret: &[u8; 32],
    ) -> Verifier {
        let key = (database.to_owned(), user.to_owned());
        let lock = || {
            self.verifiers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some((of, verifier)) = lock().get(&key)
            && of == password
        {
            return verifier.clone();
        }
        let made = Verifier::from_password(password.expose_bytes(), user.as_bytes(), salt_secret);
        let mut known = lock();
        if known.len() >= VERIFIERS_LEN_MAX {
            known.clear();
        }
        known.insert(key, (password.clone(), made.clone()));
        made
    }
}

/// Why a client gets no session. The client has been told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the client left during its login")]
    Gone,
    #[error("the login took too long")]
    TimedOut,
    #[error("{0}")]
    Auth(#[from] AuthError),
    #[error("there is no login to the primary for this user")]
    NoLogin,
    #[error("the primary refuses the login: {0}")]
    Primary(String),
    #[error("a replication connection where connections are pooled")]
    Replication,
}

/// Checks the client; it has AuthenticationOk when this returns.
pub(super) async fn check(
    context: &Context,
    accounts: &Accounts,
    source: &SharedSource,
    client: &Socket,
    hello: &Hello,
) -> Result<(), Refused> {
    let config = context.config.borrow().clone();
    let name = &source.database.name;
    // Of a database that has left the config nobody is a user; `None` would be the console's.
    let index = config.database_index(name).unwrap_or(usize::MAX);
    let of = (name.as_str(), Some(index));
    let method = match source.database.auth_method {
        AuthMethod::Scram => Method::Scram,
        AuthMethod::Md5 => Method::Md5,
        AuthMethod::Password => Method::Cleartext,
        AuthMethod::Trust => Method::Trust,
    };
    check_user(context, accounts, of, method, client, hello).await
}

/// The same for the admin console, whose users have no database.
pub(super) async fn check_admin(
    context: &Context,
    accounts: &Accounts,
    client: &Socket,
    hello: &Hello,
) -> Result<(), Refused> {
    // No database is called so: the config refuses it.
    let of = ("admin", None);
    check_user(context, accounts, of, Method::Scram, client, hello).await
}

async fn check_user(
    context: &Context,
    accounts: &Accounts,
    of: (&str, Option<usize>),
    method: Method,
    client: &Socket,
    hello: &Hello,
) -> Result<(), Refused> {
    if let Some(negotiation) = hello.startup.negotiation() {
        client.write(&negotiation);
    }
    let config = context.config.borrow().clone();
    let exchange = exchange(accounts, &config, of, method, client, hello);
    let result = match context.ring.timeout(POSTGRES_AUTH_TIMEOUT, exchange).await {
        Ok(result) => result,
        Err(_) => Err(Refused::TimedOut),
    };
    if let Err(Refused::Auth(error)) = &result {
        client.write(&error.response());
    }
    result
}

async fn exchange(
    accounts: &Accounts,
    config: &Config,
    (database, index): (&str, Option<usize>),
    method: Method,
    client: &Socket,
    hello: &Hello,
) -> Result<(), Refused> {
    let user = hello.startup.user().unwrap_or_default();
    let known = std::str::from_utf8(user)
        .ok()
        .and_then(|name| config.user(name, index));
    let account = match known {
        Some(user) => accounts.account(database, user, method)?,
        None => None,
    };
    let nonces = Nonces {
        scram: random()?,
        md5_salt: random()?,
    };
    let mut out = Vec::new();
    let secret = accounts.salt_secret()?;
    let (mut server, mut progress) =
        AuthServer::begin(method, user, account, nonces, secret, &mut out);
    loop {
        client.write(&out);
        out.clear();
        if let AuthProgress::Accepted { .. } = progress {
            return Ok(());
        }
        let Some(chunk) = client.recv().await? else {
            return Err(Refused::Gone);
        };
        progress = server.receive(&chunk, &mut out)?;
        if let AuthProgress::Accepted { consumed } = progress {
            client.unrecv(chunk.slice(consumed..chunk.len()));
        }
    }
}

/// The login that serves this client; tells the client if there is none.
pub(super) fn backend_login(
    context: &Context,
    source: &SharedSource,
    client: &Socket,
    hello: &Hello,
) -> Result<LoginParams, Refused> {
    let config = context.config.borrow();
    let user = hello.startup.user().unwrap_or_default();
    let index = config.database_index(&source.database.name);
    let login = index
        .zip(std::str::from_utf8(user).ok())
        .and_then(|(index, name)| config.backend_login(index, name));
    let Some(login) = login else {
        client.write(&not_permitted(user));
        return Err(Refused::NoLogin);
    };
    Ok(LoginParams {
        user: login.user.as_bytes().to_vec(),
        database: source.database.database_name.as_bytes().to_vec(),
        password: login.password.map(own_secret),
        extra: Vec::new(),
    })
}

/// Opens this client's own primary connection and logs in on its behalf; tells the client if that fails.
pub(super) async fn connect(
    context: &Context,
    source: &SharedSource,
    client: &Socket,
    hello: &Hello,
    params: LoginParams,
) -> Result<(Socket, LoggedIn), Refused> {
    let mut login = Login::on_behalf(hello.startup.clone(), params);
    let opened = open(context, source, &mut login).await;
    opened.map_err(|error| {
        client.write(&error.response());
        tracing::warn!(database = source.database.name, %error, "no connection to the primary");
        Refused::Primary(error.to_string())
    })
}

/// Why there is no logged-in connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("{0}")]
    Login(#[from] LoginError),
}

impl OpenError {
    /// What the client is told: the primary's own words, unless they are about Parhelion's credentials.
    pub fn response(&self) -> Vec<u8> {
        match self {
            Self::Login(LoginError::Server { sqlstate, body, .. }) if sqlstate.class() != "28" => {
                let mut out = Vec::new();
                push_message(&mut out, b'E', body);
                out
            }
            Self::Login(_) => {
                let text = "the primary refuses the login that the proxy makes for this user";
                encode_error(Severity::Fatal, "08004", text)
            }
            Self::Io(_) | Self::Closed => {
                encode_error(Severity::Fatal, "08006", "the primary cannot be reached")
            }
        }
    }
}

/// Connects and logs in within `connect_timeout`.
pub(super) async fn open(
    context: &Context,
    source: &super::Source,
    login: &mut Login,
) -> Result<(Socket, LoggedIn), OpenError> {
    let socket = context.connect(&source.database).await?;
    socket.write(&login.start());
    let limit = context.config.borrow().general.connect_timeout;
    let session = context
        .ring
        .timeout(limit, converse(&socket, login))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok((socket, session))
}

async fn converse(socket: &Socket, login: &mut Login) -> Result<LoggedIn, OpenError> {
    let mut out = Vec::new();
    loop {
        let Some(chunk) = socket.recv().await? else {
            return Err(OpenError::Closed);
        };
        let progress = login.receive(&chunk, &mut out)?;
        socket.write(&out);
        out.clear();
        if let LoginProgress::Done { session, consumed } = progress {
            socket.unrecv(chunk.slice(consumed..chunk.len()));
            return Ok(session);
        }
    }
}

/// The messages behind AuthenticationOk: what came with the login, the settings, the key, ReadyForQuery.
pub(super) fn welcome<'a>(
    notices: &[u8],
    settings: impl Iterator<Item = &'a (Vec<u8>, Vec<u8>)>,
    key: Option<(u32, &[u8])>,
) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in settings {
        push_message(&mut out, b'S', &[name, &b"\0"[..], value, b"\0"].concat());
    }
    if let Some((pid, key)) = key {
        push_message(&mut out, b'K', &[&pid.to_be_bytes(), key].concat());
    }
    out.extend_from_slice(notices);
    push_message(&mut out, b'Z', b"I");
    out
}

/// Random bytes for secrets, from the system.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn own_secret(secret: &ConfigSecret) -> Secret {
    Secret::new(secret.expose())
}
