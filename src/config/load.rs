//! From text to a validated [`Config`]: the order in which the parts are read, and the verdict.

use std::path::Path;

use toml::de::DeTable;

use super::address::ListenAddress;
use super::databases::{DatabaseEntry, check_names, read_database, read_user};
use super::error::{ConfigError, ConfigErrors};
use super::files;
use super::general::{GeneralEntry, read_general, read_ring, read_sentry};
use super::pgdog;
use super::reader::{Faults, Section, Source, fault};
use super::routes::{Scope, read_dual_write, read_listener, read_mirroring};
use super::rules::{self, Place, Places};
use super::types::{Config, Listener, Protocol, RingConfig, Sentry, User};

/// The texts that a configuration is read from, and what of the machine it depends on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The name of the configuration file, for messages; relative paths in it start at its folder.
    pub file: &'a Path,
    /// Its text.
    pub text: &'a str,
    /// The name and text of users.toml.
    pub users: Option<(&'a Path, &'a str)>,
    /// The CPUs that this process may run on.
    pub cpus: &'a [usize],
}

/// A validated configuration and what is worth a line in the log.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Allowed, but doubtful: a password file that everybody can read.
    pub warnings: Vec<ConfigError>,
}

/// Reads and validates the files; what is doubtful but allowed goes to the log.
///
/// `users`: users.toml; `None`: the one beside `config`, if there is one. `cpus`: those that this process may run on.
///
/// # Errors
/// Everything that is wrong with the files, or that they cannot be read.
pub fn load(config: &Path, users: Option<&Path>, cpus: &[usize]) -> Result<Config, ConfigErrors> {
    let loaded = load_with_warnings(config, users, cpus)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(loaded.config)
}

/// The same, for a caller that shows the warnings itself.
///
/// # Errors
/// As [`load`].
pub fn load_with_warnings(
    config: &Path,
    users: Option<&Path>,
    cpus: &[usize],
) -> Result<Loaded, ConfigErrors> {
    let text = read(
        config,
        "write the configuration there or name it with --config",
    )?;
    let beside = config.with_file_name("users.toml");
    let users = users
        .map(Path::to_path_buf)
        .or_else(|| beside.is_file().then_some(beside));
    let users = match users {
        Some(path) => {
            let text = read(&path, "name the file with --users")?;
            Some((path, text))
        }
        None => None,
    };
    let users = users
        .as_ref()
        .map(|(path, text)| (path.as_path(), text.as_str()));
    let mut loaded = parse(&Input {
        file: config,
        text: &text,
        users,
        cpus,
    })?;
    if let Some((path, text)) = users {
        // Passwords in the file itself; those in files of their own were looked at where they were read.
        let inline = text.contains("password") && !loaded.config.users.is_empty();
        if inline && files::world_readable(path) {
            loaded.warnings.push(ConfigError {
                file: path.display().to_string(),
                line: None,
                key: String::new(),
                problem: "can be read by every user and holds passwords".to_owned(),
                way_out: "chmod 600 it".to_owned(),
            });
        }
    }
    Ok(loaded)
}

fn read(path: &Path, way_out: &str) -> Result<String, ConfigErrors> {
    files::read_config(path).map_err(|error| {
        ConfigErrors(vec![ConfigError {
            file: path.display().to_string(),
            line: None,
            key: String::new(),
            problem: format!("cannot be read: {error}"),
            way_out: way_out.to_owned(),
        }])
    })
}

/// Validates texts. Reads the files that they name (passwords, certificates), nothing else.
///
/// # Errors
/// Everything that is wrong, in the order of the lines.
pub fn parse(input: &Input<'_>) -> Result<Loaded, ConfigErrors> {
    let file = input.file.display().to_string();
    let source = Source::new(&file, input.text);
    let mut faults = Faults::default();
    let table = parse_toml(&source, &mut faults);
    let users_file = input
        .users
        .map(|(path, _)| path.display().to_string())
        .unwrap_or_default();
    let users_source = Source::new(&users_file, input.users.map_or("", |(_, text)| text));
    let users_table = parse_toml(&users_source, &mut faults);
    let (Some(table), Some(users_table)) = (table, users_table) else {
        return Err(ConfigErrors(faults.errors));
    };

    let root = Section::new(&source, "", 1, &table);
    let users_root = Section::new(&users_source, "", 1, &users_table);
    let users_base = input.users.map_or(Path::new(""), |(path, _)| folder(path));
    let (config, places) = read_root(root, &mut faults, input, &file, users_root, users_base);

    faults.errors.extend(rules::check(&config, &places));
    faults.warnings.extend(rules::warn(&config, &places));
    if faults.errors.is_empty() {
        return Ok(Loaded {
            config,
            warnings: faults.warnings,
        });
    }
    faults
        .errors
        .sort_by_key(|error| (error.file != file, error.line));
    Err(ConfigErrors(faults.errors))
}

fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

/// Parses TOML; every syntax fault is reported without quoting the line, which may hold a password.
fn parse_toml<'i>(source: &Source<'i>, faults: &mut Faults) -> Option<DeTable<'i>> {
    let (table, errors) = DeTable::parse_recoverable(source.text);
    for error in &errors {
        let line = source.line(error.span().map_or(0, |span| span.start));
        let way_out = "see https://toml.io for the format";
        faults
            .errors
            .push(fault(source.name, line, "", error.message(), way_out));
    }
    errors.is_empty().then(|| table.into_inner())
}

fn read_root(
    mut root: Section<'_, '_>,
    f: &mut Faults,
    input: &Input<'_>,
    file: &str,
    users: Section<'_, '_>,
    users_base: &Path,
) -> (Config, Places) {
    let base = folder(input.file);
    let general = root
        .table(f, "general")
        .map_or_else(GeneralEntry::default, |s| {
            read_general(s, f, base, input.cpus)
        });
    let ring = root
        .table(f, "ring")
        .map_or_else(RingConfig::default, |s| read_ring(s, f));
    let sentry = root
        .table(f, "sentry")
        .map_or_else(Sentry::default, |s| read_sentry(s, f));
    let listeners = root.tables(f, "listeners");
    let databases: Vec<DatabaseEntry> = root
        .tables(f, "databases")
        .into_iter()
        .map(|s| read_database(s, f, base, general.pool_size))
        .collect();
    if databases.is_empty() {
        root.missing(
            f,
            "databases",
            "add a [[databases]] entry with name and host",
        );
    }
    check_names(file, f, &databases);

    let mut scope = Scope {
        file,
        base,
        cpus: input.cpus,
        general: &general,
        databases: &databases,
        redis_sources: Vec::new(),
        complete: false,
    };
    let mirroring = root.tables(f, "mirroring");
    let mut named = mirroring.len();
    let mirroring: Vec<_> = mirroring
        .into_iter()
        .filter_map(|s| read_mirroring(s, f, &scope))
        .collect();
    let dual_write = root.tables(f, "dual_write");
    named += dual_write.len();
    let dual_write: Vec<_> = dual_write
        .into_iter()
        .filter_map(|s| read_dual_write(s, f, &scope))
        .collect();
    let is_target = |index: usize| {
        mirroring.iter().any(|(m, _)| m.destination == index)
            || dual_write.iter().any(|(d, _)| d.secondary == index)
    };
    scope.redis_sources = (0..databases.len())
        .filter(|i| databases[*i].database.protocol == Protocol::Redis && !is_target(*i))
        .collect();
    scope.complete = named == mirroring.len() + dual_write.len();
    let had_listeners = !listeners.is_empty();
    let listeners: Vec<_> = listeners
        .into_iter()
        .filter_map(|s| read_listener(s, f, &scope))
        .collect();
    let listeners = if had_listeners {
        refuse_pgdog_listen(f, &scope);
        listeners
    } else {
        default_listeners(f, &scope)
    };
    root.finish(f, pgdog::sections);
    let users = read_users(users, f, users_base, &databases);
    assemble(Parts {
        file,
        general,
        ring,
        sentry,
        databases,
        listeners,
        mirroring,
        dual_write,
        users,
    })
}

fn refuse_pgdog_listen(f: &mut Faults, scope: &Scope<'_>) {
    if let Some(line) = scope.general.listen_line {
        let problem = "[[listeners]] says where to listen already";
        let way_out = "remove host and port from [general]";
        f.errors
            .push(fault(scope.file, line, "general.host", problem, way_out));
    }
}

/// Without `[[listeners]]`: Postgres where PgDog would listen, Redis on its customary port if it is clear for which.
fn default_listeners(f: &mut Faults, scope: &Scope<'_>) -> Vec<(Listener, Place)> {
    let make = |address, protocol, database| {
        let listener = Listener {
            address,
            protocol,
            database,
            cores: None,
            tls: None,
        };
        let line = scope.general.listen_line.unwrap_or(1);
        let place = Place {
            file: scope.file.to_owned(),
            line: Some(line),
            key: "listeners".to_owned(),
        };
        (listener, place)
    };
    let mut listeners = Vec::new();
    if scope
        .databases
        .iter()
        .any(|entry| entry.database.protocol == Protocol::Postgres)
    {
        let address = ListenAddress::Tcp(scope.general.listen);
        listeners.push(make(address, Protocol::Postgres, None));
    }
    match scope.redis_sources.as_slice() {
        [] => {}
        [only] => {
            let address = ListenAddress::Tcp(([0, 0, 0, 0], 6479).into());
            listeners.push(make(address, Protocol::Redis, Some(*only)));
        }
        _ if !scope.complete => {}
        _ => {
            let problem = "is missing, and there are several Redis databases to choose from";
            let way_out = "add [[listeners]] with address, protocol = \"redis\" and database";
            f.errors
                .push(fault(scope.file, 1, "listeners", problem, way_out));
        }
    }
    listeners
}

fn read_users(
    mut root: Section<'_, '_>,
    f: &mut Faults,
    base: &Path,
    databases: &[DatabaseEntry],
) -> Vec<(User, Place)> {
    let name = root.fault(1, "", "", "").file;
    let users = root.tables(f, "users");
    let users: Vec<_> = users
        .into_iter()
        .filter_map(|s| read_user(s, f, base, databases))
        .map(|(user, line)| {
            let place = Place {
                file: name.clone(),
                line: Some(line),
                key: "users.name".to_owned(),
            };
            (user, place)
        })
        .collect();
    root.finish(f, pgdog::sections);
    users
}

struct Parts<'a> {
    file: &'a str,
    general: GeneralEntry,
    ring: RingConfig,
    sentry: Sentry,
    databases: Vec<DatabaseEntry>,
    listeners: Vec<(Listener, Place)>,
    mirroring: Vec<(super::Mirroring, Place)>,
    dual_write: Vec<(super::DualWrite, Place)>,
    users: Vec<(User, Place)>,
}

fn assemble(parts: Parts<'_>) -> (Config, Places) {
    let place = |line: usize, key: &str| Place {
        file: parts.file.to_owned(),
        line: Some(line),
        key: key.to_owned(),
    };
    let mut places = Places {
        control: Some(place(parts.general.control_line, "general.control")),
        databases: parts
            .databases
            .iter()
            .map(|e| place(e.host_line, "databases.host"))
            .collect(),
        auth: parts
            .databases
            .iter()
            .map(|e| place(e.auth_line, "databases.auth"))
            .collect(),
        ..Places::default()
    };
    let listeners;
    let mirroring;
    let dual_write;
    let users;
    (listeners, places.listeners) = parts.listeners.into_iter().unzip();
    (mirroring, places.mirroring) = parts.mirroring.into_iter().unzip();
    (dual_write, places.dual_write) = parts.dual_write.into_iter().unzip();
    (users, places.users) = parts.users.into_iter().unzip();
    let config = Config {
        general: parts.general.general,
        ring: parts.ring,
        listeners,
        databases: parts
            .databases
            .into_iter()
            .map(|entry| entry.database)
            .collect(),
        mirroring,
        dual_write,
        sentry: parts.sentry,
        users,
    };
    (config, places)
}
