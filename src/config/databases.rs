//! Reads `[[databases]]` and `[[users]]`, with the secrets that they name.

use std::path::Path;

use super::address::{Endpoint, default_port};
use super::files;
use super::pgdog;
use super::reader::{At, Faults, Section, fault};
use super::secret::Secret;
use super::types::{Auth, AuthMethod, Database, PoolMode, Protocol, TlsMode, User};

/// The name of the admin console, which no Postgres database can have.
pub(super) const ADMIN: &str = "admin";

/// A database and the lines that rules about it point to.
pub(super) struct DatabaseEntry {
    pub database: Database,
    pub file_line: usize,
    pub host_line: usize,
    pub auth_line: usize,
}

/// Reads one `[[databases]]`. What is wrong has been reported; the entry stands all the same, so that its name resolves.
pub(super) fn read_database(
    mut s: Section<'_, '_>,
    f: &mut Faults,
    base: &Path,
    pool_size: usize,
) -> DatabaseEntry {
    let name = match s.text(f, "name") {
        Some(at) => at.value,
        None => {
            s.missing(f, "name", "write e.g. name = \"prod\"");
            String::new()
        }
    };
    let protocol = s
        .word(f, "protocol", Protocol::WORDS, Protocol::from_word)
        .map_or(Protocol::Postgres, |at| at.value);
    if protocol == Protocol::Postgres && name == ADMIN {
        let problem = "\"admin\" is the name of the admin console";
        s.refuse(
            f,
            s.line_of("name"),
            "name",
            problem,
            "choose another and keep database_name",
        );
    }
    let endpoint = read_endpoint(&mut s, f, protocol);
    let mut database = Database::new(name, protocol, endpoint);
    if let Some(at) = s.text(f, "database_name") {
        database.database_name = at.value;
    }
    database.user = s.text(f, "user").map(|at| at.value);
    database.password = read_password(&mut s, f, base);
    database.pool_size = s
        .integer(f, "pool_size", 1..=10_000)
        .map_or(pool_size, |at| at.value as usize);
    database.auth = s
        .word(f, "auth", Auth::WORDS, Auth::from_word)
        .map_or(database.auth, |at| at.value);
    database.auth_method = s
        .word(f, "auth_method", AuthMethod::WORDS, AuthMethod::from_word)
        .map_or(database.auth_method, |at| at.value);
    if s.has("auth_method") && database.auth != Auth::Terminate {
        let problem = "has no effect where the primary checks clients";
        let way_out = "write auth = \"terminate\" too, or remove it";
        s.refuse(f, s.line_of("auth_method"), "auth_method", problem, way_out);
    }
    database.pool_mode = s
        .word(f, "pool_mode", PoolMode::WORDS, PoolMode::from_word)
        .map_or(database.pool_mode, |at| at.value);
    database.tls = s
        .word(f, "tls", TlsMode::WORDS, TlsMode::from_word)
        .map_or(database.tls, |at| at.value);
    database.tls_ca = read_path(&mut s, f, "tls_ca", base);
    // Redis itself takes any number up to that of its `databases` directive, an int.
    database.db = s
        .integer(f, "db", 0..=i32::MAX as u64)
        .map_or(0, |at| at.value as u32);
    check_protocol_keys(&s, f, &database);
    check_tls(&s, f, &database);
    check_pgdog_role(&mut s, f);
    if database.pool_mode == PoolMode::Transaction && database.auth != Auth::Terminate {
        let problem = "\"transaction\" shares primary connections, which relayed logins cannot";
        let way_out = "write auth = \"terminate\" too, or pool_mode = \"session\"";
        s.refuse(f, s.line_of("pool_mode"), "pool_mode", problem, way_out);
    }
    let entry = DatabaseEntry {
        database,
        file_line: s.line_of("name"),
        host_line: s.line_of("host"),
        auth_line: s.line_of("auth"),
    };
    s.finish(f, pgdog::databases);
    entry
}

fn read_endpoint(s: &mut Section<'_, '_>, f: &mut Faults, protocol: Protocol) -> Endpoint {
    let port = s.integer(f, "port", 1..=65_535).map(|at| at.value as u16);
    let port = port.unwrap_or(default_port(protocol));
    let nowhere = Endpoint::Tcp {
        host: String::new(),
        port,
    };
    let Some(at) = s.text(f, "host") else {
        s.missing(
            f,
            "host",
            "write e.g. host = \"10.0.0.1\", or the folder of a unix socket",
        );
        return nowhere;
    };
    match Endpoint::from_host_port(&at.value, port, protocol) {
        Ok(endpoint) => endpoint,
        Err(problem) => {
            let way_out = "write a name or address without port, or unix:/path";
            s.refuse(f, at.line, "host", problem, way_out);
            nowhere
        }
    }
}

fn check_protocol_keys(s: &Section<'_, '_>, f: &mut Faults, database: &Database) {
    let (others, owner): (&[&str], _) = match database.protocol {
        Protocol::Postgres => (&["db"], "Redis"),
        Protocol::Redis => (
            &[
                "database_name",
                "auth",
                "auth_method",
                "pool_mode",
                "role",
                "shard",
            ],
            "Postgres",
        ),
    };
    for key in others.iter().filter(|key| s.has(key)) {
        let way_out = format!(
            "remove it, or write protocol = \"{}\"",
            owner.to_lowercase()
        );
        s.refuse(
            f,
            s.line_of(key),
            key,
            format!("is for {owner} only"),
            way_out,
        );
    }
}

fn check_tls(s: &Section<'_, '_>, f: &mut Faults, database: &Database) {
    let line = s.line_of("tls");
    let tls = database.tls;
    if database.protocol == Protocol::Redis && tls == TlsMode::Prefer {
        let problem =
            "\"prefer\" is not possible: Redis cannot switch to TLS on an open connection";
        s.refuse(f, line, "tls", problem, "write \"require\" or \"disable\"");
    }
    let verifies = matches!(tls, TlsMode::VerifyCa | TlsMode::VerifyFull);
    if verifies && !s.has("tls_ca") {
        let way_out = "write tls_ca = \"/path/of/ca.pem\"";
        s.refuse(f, line, "tls", format!("\"{tls}\" needs tls_ca"), way_out);
    }
    if !verifies && database.tls_ca.is_some() {
        let problem = format!("has no effect with tls = \"{tls}\"");
        let way_out = "write tls = \"verify-full\", or remove it";
        s.refuse(f, s.line_of("tls_ca"), "tls_ca", problem, way_out);
    }
}

/// PgDog's `role` and `shard`: one primary without shards is what Parhelion stands in front of.
fn check_pgdog_role(s: &mut Section<'_, '_>, f: &mut Faults) {
    let role = s.word(f, "role", &["primary"], |word| {
        matches!(word, "primary" | "replica" | "auto").then(|| word == "primary")
    });
    if let Some(At { value: false, line }) = role {
        let problem = "Parhelion forwards to one server and does not balance over replicas";
        s.refuse(f, line, "role", problem, "keep the primary's entry only");
    }
    s.integer(f, "shard", 0..=0);
}

/// Reads `password` or `password_file`.
fn read_password(s: &mut Section<'_, '_>, f: &mut Faults, base: &Path) -> Option<Secret> {
    let inline = s.secret(f, "password");
    let file = s.text(f, "password_file");
    if let (Some(_), Some(at)) = (&inline, &file) {
        let way_out = "keep password_file";
        s.refuse(
            f,
            at.line,
            "password_file",
            "stands beside password",
            way_out,
        );
    }
    if file.is_none() {
        return inline.map(|at| at.value);
    }
    secret_of(s, f, "password_file", file, base)
}

/// Reads a key that names a file which holds a secret and nothing else.
pub(super) fn read_secret_file(
    s: &mut Section<'_, '_>,
    f: &mut Faults,
    key: &'static str,
    base: &Path,
) -> Option<Secret> {
    let file = s.text(f, key);
    secret_of(s, f, key, file, base)
}

fn secret_of(
    s: &mut Section<'_, '_>,
    f: &mut Faults,
    key: &'static str,
    file: Option<At<String>>,
    base: &Path,
) -> Option<Secret> {
    let at = file?;
    let path = files::resolve(base, &at.value);
    match files::read_secret(&path) {
        Ok(read) => {
            if read.world_readable {
                let problem = format!("{} can be read by every user", path.display());
                f.warnings
                    .push(s.fault(at.line, key, problem, "chmod 600 it"));
            }
            Some(read.secret)
        }
        Err(error) => {
            let problem = format!("cannot read {}: {error}", path.display());
            let way_out = "write the path of a file that holds the secret and nothing else";
            s.refuse(f, at.line, key, problem, way_out);
            None
        }
    }
}

/// Reads a key that names a file which must be readable.
pub(super) fn read_path(
    s: &mut Section<'_, '_>,
    f: &mut Faults,
    key: &'static str,
    base: &Path,
) -> Option<std::path::PathBuf> {
    let at = s.text(f, key)?;
    let path = files::resolve(base, &at.value);
    if let Err(error) = files::readable(&path) {
        let problem = format!("cannot read {}: {error}", path.display());
        s.refuse(
            f,
            at.line,
            key,
            problem,
            "write the path of a readable PEM file",
        );
    }
    Some(path)
}

/// Reads one `[[users]]`; `None` when it has no name or its database is not known.
pub(super) fn read_user(
    mut s: Section<'_, '_>,
    f: &mut Faults,
    base: &Path,
    databases: &[DatabaseEntry],
) -> Option<(User, usize)> {
    let name = s.text(f, "name");
    if name.is_none() {
        s.missing(f, "name", "write e.g. name = \"app\"");
    }
    let database = s.text(f, "database");
    if database.is_none() {
        s.missing(f, "database", "write the name of a [[databases]] entry");
    }
    let password = read_password(&mut s, f, base);
    let verifier = s.secret(f, "scram_verifier");
    if let Some(at) = &verifier
        && !is_scram_verifier(at.value.expose())
    {
        let way_out = "write SCRAM-SHA-256$ITERATIONS:SALT$STORED:SERVER as in pg_authid";
        s.refuse(
            f,
            at.line,
            "scram_verifier",
            "is not a SCRAM verifier",
            way_out,
        );
    }
    let line = s.line;
    let resolved = database.and_then(|at| resolve_user_database(&s, f, at, databases));
    s.finish(f, pgdog::users);
    let user = User {
        name: name?.value,
        database: resolved?,
        password,
        scram_verifier: verifier.map(|at| at.value),
    };
    Some((user, line))
}

fn resolve_user_database(
    s: &Section<'_, '_>,
    f: &mut Faults,
    at: At<String>,
    databases: &[DatabaseEntry],
) -> Option<Option<usize>> {
    if let Some(index) = databases
        .iter()
        .position(|entry| entry.database.name == at.value)
    {
        return Some(Some(index));
    }
    if at.value == ADMIN {
        return Some(None);
    }
    let known: Vec<&str> = databases.iter().map(|e| e.database.name.as_str()).collect();
    let way_out = format!("[[databases]] has {}", known.join(", "));
    s.refuse(
        f,
        at.line,
        "database",
        format!("there is no database {:?}", at.value),
        way_out,
    );
    None
}

/// Whether this has the form of `pg_authid.rolpassword` for SCRAM-SHA-256.
fn is_scram_verifier(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("SCRAM-SHA-256$") else {
        return false;
    };
    let Some((first, second)) = rest.split_once('$') else {
        return false;
    };
    let (Some((iterations, salt)), Some((stored, server))) =
        (first.split_once(':'), second.split_once(':'))
    else {
        return false;
    };
    let base64 = |text: &str, len: std::ops::RangeInclusive<usize>| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
        len.contains(&text.len()) && text.len().is_multiple_of(4) && text.bytes().all(fits)
    };
    // A key is 32 bytes, which is 44 characters.
    iterations.parse::<u32>().is_ok_and(|n| n > 0)
        && base64(salt, 4..=1024)
        && base64(stored, 44..=44)
        && base64(server, 44..=44)
}

/// Refuses names that stand twice.
pub(super) fn check_names(file: &str, f: &mut Faults, databases: &[DatabaseEntry]) {
    for (index, entry) in databases.iter().enumerate() {
        let name = &entry.database.name;
        let first = databases[..index]
            .iter()
            .find(|other| other.database.name == *name);
        if let (Some(first), false) = (first, name.is_empty()) {
            let problem = format!(
                "{name:?} is already the name of the one in line {}",
                first.file_line
            );
            let way_out = "give each database a name of its own";
            f.errors.push(fault(
                file,
                entry.file_line,
                "databases.name",
                problem,
                way_out,
            ));
        }
    }
}
