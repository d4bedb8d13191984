//! Every rule of the configuration: what it refuses, at which line and key, with which way out.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::time::Duration;

use parhelion::config::{
    Auth, Blocking, Compare, Config, ConfigError, Cores, Endpoint, Input, Level, ListenAddress,
    Loaded, MirrorPoolMode, Pace, Protocol, RedisMode, SampleBy, TlsMode, parse,
};

const CPUS: &[usize] = &[0, 1, 2, 3];

/// A login for the mirror that most cases have.
const USERS: &str = r#"
[[users]]
name = "app"
database = "staging_db"
password = "canary-9931"
"#;

const BASE: &str = r#"
[[databases]]
name = "prod"
host = "10.0.0.1"
[[databases]]
name = "staging_db"
host = "10.0.2.25"
[[databases]]
name = "cache"
protocol = "redis"
host = "10.0.0.5"
[[databases]]
name = "cache_new"
protocol = "redis"
host = "10.0.0.6"
[[mirroring]]
source_db = "prod"
destination_db = "staging_db"
[[dual_write]]
primary = "cache"
secondary = "cache_new"
"#;

fn load_with(text: &str, users: &str) -> Result<Loaded, Vec<ConfigError>> {
    parse(&Input {
        file: Path::new("parhelion.toml"),
        text,
        users: Some((Path::new("users.toml"), users)),
        cpus: CPUS,
    })
    .map_err(|errors| errors.0)
}

fn good(text: &str) -> Config {
    match load_with(text, USERS) {
        Ok(loaded) => loaded.config,
        Err(errors) => panic!("refused: {errors:#?}\n{text}"),
    }
}

/// The line, from 1, of the line that holds `mark`.
fn line_of(text: &str, mark: &str) -> usize {
    text.lines()
        .position(|line| line.contains(mark))
        .expect("the mark stands in the text")
        + 1
}

/// Asserts that exactly one fault is found: at the line of `mark`, under `key`, saying `problem`, with a way out.
#[track_caller]
fn refused(text: &str, mark: &str, key: &str, problem: &str) {
    refused_with(text, USERS, mark, key, problem);
}

#[track_caller]
fn refused_with(text: &str, users: &str, mark: &str, key: &str, problem: &str) {
    let errors = load_with(text, users).expect_err("the configuration is refused");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let error = &errors[0];
    let source = if error.file == "users.toml" {
        users
    } else {
        text
    };
    assert_eq!(error.line, Some(line_of(source, mark)), "{error}");
    assert_eq!(error.key, key, "{error}");
    assert!(error.problem.contains(problem), "{error}");
    assert!(!error.way_out.is_empty(), "{error}");
    assert!(!error.to_string().contains("canary"), "{error}");
}

/// `[general]` with one line, in front of the base.
#[track_caller]
fn general_refused(line: &str, key: &str, problem: &str) {
    refused(
        &format!("[general]\n{line}\n{BASE}"),
        line,
        &format!("general.{key}"),
        problem,
    );
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let config = good(BASE);
    let g = &config.general;
    assert_eq!(g.cores, Cores::All);
    assert_eq!(g.control, Some("127.0.0.1:9191".parse().unwrap()));
    assert_eq!((g.mirror_queue, g.mirror_queue_bytes), (128, 1 << 20));
    assert_eq!((g.mirror_memory, g.mirror_exposure), (256 << 20, 1.0));
    assert_eq!(
        (g.pace, g.mirror_pool_mode),
        (Pace::Transaction, MirrorPoolMode::Unit)
    );
    assert_eq!(g.mirror_timeout, Duration::from_secs(30));
    assert_eq!(g.connect_timeout, Duration::from_secs(5));
    assert_eq!(
        (g.client_idle_timeout, g.drain_timeout),
        (None, Duration::from_secs(30))
    );
    assert_eq!(g.client_login_timeout, Duration::from_secs(60));
    assert_eq!((g.max_connections, g.max_connections_per_address), (0, 0));
    assert_eq!(g.divergence_log, None);
    let r = &config.ring;
    assert_eq!((r.entries, r.slabs, r.slab_size), (4096, 2048, 16 << 10));
    assert_eq!(r.busy_poll, Duration::ZERO);
    let d = &config.databases[0];
    assert_eq!(
        (d.protocol, d.database_name.as_str()),
        (Protocol::Postgres, "prod")
    );
    assert_eq!(
        d.endpoint,
        Endpoint::Tcp {
            host: "10.0.0.1".into(),
            port: 5432
        }
    );
    assert_eq!(
        (d.pool_size, d.auth, d.tls),
        (10, Auth::Relay, TlsMode::Prefer)
    );
    assert_eq!(config.databases[2].endpoint.to_string(), "10.0.0.5:6379");
    let m = &config.mirroring[0];
    assert_eq!(
        (m.source, m.destination, m.queue_length, m.exposure),
        (0, 1, 128, 1.0)
    );
    assert_eq!(
        (m.level, m.compare, m.exposure_is_own),
        (Level::All, Compare::Rows, false)
    );
    let d = &config.dual_write[0];
    assert_eq!(
        (d.primary, d.secondary, d.mode),
        (2, 3, RedisMode::DualWrite)
    );
    assert_eq!(d.secondary_timeout, Duration::from_secs(30));
    assert_eq!(d.script_timeout, Duration::from_secs(300));
    assert_eq!(d.shadow_timeout, Duration::from_secs(3));
    assert_eq!(
        (d.exposure, d.sample_by, d.effects),
        (1.0, SampleBy::Request, true)
    );
    assert_eq!((d.blocking, d.repair), (Blocking::Effects, true));
    assert_eq!((d.queue_length, d.queue_bytes), (65_536, 64 << 20));
    assert_eq!(d.pubsub_compare_window, Duration::from_secs(2));
    assert_eq!(
        (config.sentry.dsn.is_none(), config.sentry.sample_rate),
        (true, 1.0)
    );
}

#[test]
fn without_listeners_postgres_stands_where_pgdog_would_and_redis_on_its_port() {
    let config = good(BASE);
    let shown: Vec<_> = config
        .listeners
        .iter()
        .map(|l| l.address.to_string())
        .collect();
    assert_eq!(shown, ["0.0.0.0:6432", "0.0.0.0:6479"]);
    assert_eq!(config.listeners[0].database, None);
    assert_eq!(config.listeners[1].database, Some(2));
    let pgdog = good(&format!(
        "[general]\nhost = \"127.0.0.1\"\nport = 7000\n{BASE}"
    ));
    assert_eq!(pgdog.listeners[0].address.to_string(), "127.0.0.1:7000");
}

#[test]
fn a_pgdog_users_files_start_unchanged() {
    let text = r#"
[general]
host = "0.0.0.0"
port = 6432
default_pool_size = 20
mirror_queue = 500
mirror_exposure = 0.25
[[databases]]
name = "prod"
host = "10.0.0.1"
role = "primary"
[[databases]]
name = "staging_db"
host = "10.0.2.25"
port = 5433
database_name = "staging"
shard = 0
[[mirroring]]
source_db = "prod"
destination_db = "staging_db"
queue_length = 256
exposure = 0.5
level = "ddl"
"#;
    let config = good(text);
    let m = &config.mirroring[0];
    assert_eq!(
        (m.queue_length, m.exposure, m.level),
        (256, 0.5, Level::Ddl)
    );
    assert!(m.exposure_is_own && m.queue_length_is_own);
    assert_eq!(
        (config.general.mirror_queue, config.general.mirror_exposure),
        (500, 0.25)
    );
    assert_eq!(config.databases[1].pool_size, 20);
    assert_eq!(
        config
            .backend_login(1, "app")
            .unwrap()
            .password
            .unwrap()
            .expose(),
        "canary-9931"
    );
    assert_eq!(config.backend_login(1, "someone"), None);
}

#[test]
fn exposure_outside_zero_to_one_is_refused() {
    for value in ["1.5", "-0.1", "nan", "-nan", "inf", "2", "1e9"] {
        general_refused(
            &format!("mirror_exposure = {value}"),
            "mirror_exposure",
            "is not between 0.0 and 1.0",
        );
    }
    general_refused(
        "mirror_exposure = \"50%\"",
        "mirror_exposure",
        "the string \"50%\"",
    );
    let text = format!("[general]\n\nmirror_exposure = 1.5\n{BASE}");
    let errors = load_with(&text, USERS).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "parhelion.toml:3: general.mirror_exposure: 1.5 is not between 0.0 and 1.0; \
         write e.g. 0.1 for 10 %"
    );
    assert_eq!(
        good(&format!("[general]\nmirror_exposure = 1\n{BASE}")).mirroring[0].exposure,
        1.0
    );
    let text = BASE.replace(
        "\"staging_db\"\n[[dual",
        "\"staging_db\"\nexposure = 1.01\n[[dual",
    );
    refused(&text, "exposure = 1.01", "mirroring.exposure", "1.01");
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    general_refused("miror_exposure = 0.1", "miror_exposure", "unknown key");
    for (text, mark, key, hint) in [
        (
            "[general]\nmirror_que = 1\n",
            "mirror_que",
            "general.mirror_que",
            "mirror_queue",
        ),
        (
            "[general]\nworkers = 2\n",
            "workers",
            "general.workers",
            "PgDog",
        ),
        ("[gneral]\n", "[gneral]", "gneral", "\"general\""),
        (
            "[admin]\npassword = \"canary-1\"\n",
            "[admin]",
            "admin",
            "users.toml",
        ),
    ] {
        let text = format!("{text}{BASE}");
        refused(&text, mark, key, "unknown key");
        let way_out = &load_with(&text, USERS).unwrap_err()[0].way_out;
        assert!(way_out.contains(hint), "{way_out}");
    }
    let text = format!("{BASE}secondry_timeout = \"1s\"\n");
    refused(
        &text,
        "secondry",
        "dual_write.secondry_timeout",
        "unknown key",
    );
}

#[test]
fn units_are_required_and_known() {
    general_refused("mirror_timeout = 30", "mirror_timeout", "30 has no unit");
    general_refused("mirror_timeout = \"30\"", "mirror_timeout", "has no unit");
    general_refused(
        "mirror_timeout = \"30 parsecs\"",
        "mirror_timeout",
        "not a unit of time",
    );
    general_refused(
        "mirror_timeout = \"0s\"",
        "mirror_timeout",
        "is not between",
    );
    general_refused("mirror_memory = 1000", "mirror_memory", "1000 has no unit");
    general_refused(
        "mirror_memory = \"1 furlong\"",
        "mirror_memory",
        "not a unit of size",
    );
    general_refused(
        "mirror_memory = \"1KiB\"",
        "mirror_memory",
        "is not between 1MiB and",
    );
    general_refused(
        "mirror_queue_bytes = \"512MiB\"",
        "mirror_queue_bytes",
        "mirror_memory",
    );
}

#[test]
fn numbers_are_numbers_and_in_range() {
    general_refused("mirror_queue = 0", "mirror_queue", "0 is not between 1 and");
    general_refused("mirror_queue = -1", "mirror_queue", "-1 is not between");
    general_refused(
        "mirror_queue = \"128\"",
        "mirror_queue",
        "is not a whole number",
    );
    general_refused(
        "mirror_queue = 1.5",
        "mirror_queue",
        "is not a whole number",
    );
    general_refused(
        "mirror_queue = 99999999999999999999",
        "mirror_queue",
        "is not between",
    );
    general_refused(
        "compat_metrics = 1",
        "compat_metrics",
        "is not true or false",
    );
    general_refused("pace = \"transactoin\"", "pace", "is not known");
    general_refused("pace = 1", "pace", "where a string is expected");
    general_refused("control = \"9191\"", "control", "no port");
    general_refused("port = 70000", "port", "is not between");
}

#[test]
fn a_cap_for_one_address_fits_into_the_cap_for_all() {
    let text = "[general]\nmax_connections = 10\nmax_connections_per_address = 11\n";
    refused(
        &format!("{text}{BASE}"),
        "max_connections_per_address = 11",
        "general.max_connections_per_address",
        "caps nothing",
    );
    general_refused("max_connections = -1", "max_connections", "-1");
    let config = good(&format!(
        "[general]\nmax_connections_per_address = 11\n{BASE}"
    ));
    assert_eq!(config.general.max_connections_per_address, 11);
}

#[test]
fn cores_exist_and_stand_there_once() {
    general_refused("cores = [0, 7]", "cores", "CPU 7 is not available");
    general_refused("cores = [0, 0]", "cores", "CPU 0 stands there twice");
    general_refused("cores = []", "cores", "empty");
    general_refused("cores = \"some\"", "cores", "not a list of CPU ids");
    general_refused("cores = [-1]", "cores", "is not a CPU id");
    assert_eq!(
        good(&format!("[general]\ncores = [2, 1]\n{BASE}"))
            .general
            .cores,
        Cores::List(vec![2, 1])
    );
    let listener = "[[listeners]]\naddress = \"0.0.0.0:1\"\ncores = [2]\n";
    let text = format!("[general]\ncores = [0]\n{listener}{BASE}");
    refused(
        &text,
        "cores = [2]",
        "listeners.cores",
        "CPU 2 is not available",
    );
}

#[test]
fn ring_sizes_are_powers_of_two_in_range() {
    for (line, key, problem) in [
        ("entries = 1000", "entries", "power of two"),
        ("entries = 65536", "entries", "is not between"),
        ("slabs = 100", "slabs", "power of two"),
        ("slab_size = \"24KiB\"", "slab_size", "power of two"),
        (
            "slab_size = \"2KiB\"",
            "slab_size",
            "is not between 4KiB and 1MiB",
        ),
        (
            "slab_size = \"2MiB\"",
            "slab_size",
            "is not between 4KiB and 1MiB",
        ),
        ("busy_poll = \"1s\"", "busy_poll", "is not between"),
    ] {
        refused(
            &format!("[ring]\n{line}\n{BASE}"),
            line,
            &format!("ring.{key}"),
            problem,
        );
    }
}

#[test]
fn a_mirror_of_itself_is_refused_by_name_and_by_endpoint() {
    let text = BASE.replace(
        "destination_db = \"staging_db\"",
        "destination_db = \"prod\"",
    );
    refused(
        &text,
        "destination_db",
        "mirroring.destination_db",
        "mirror of itself",
    );
    let twin = BASE.replace(
        "host = \"10.0.2.25\"",
        "host = \"10.0.0.1\"\ndatabase_name = \"prod\"",
    );
    refused(
        &twin,
        "destination_db",
        "mirroring.destination_db",
        "the same database as \"prod\"",
    );
    let other = BASE.replace("host = \"10.0.2.25\"", "host = \"10.0.0.1\"");
    assert_eq!(
        good(&other).mirroring.len(),
        1,
        "another database of one server is no twin"
    );
    let redis = BASE.replace("host = \"10.0.0.6\"", "host = \"10.0.0.5\"");
    refused(
        &redis,
        "secondary =",
        "dual_write.secondary",
        "the same database as \"cache\"",
    );
}

#[test]
fn a_mirror_cycle_is_refused_by_name_and_by_endpoint() {
    let users =
        format!("{USERS}[[users]]\nname = \"app\"\ndatabase = \"prod\"\npassword = \"x\"\n");
    let back = "[[mirroring]]\nsource_db = \"staging_db\"\ndestination_db = \"prod\" # back\n";
    let text = format!("{BASE}{back}");
    refused_with(
        &text,
        &users,
        "# back",
        "mirroring.destination_db",
        "staging_db -> prod -> staging_db",
    );
    let alias = "[[databases]]\nname = \"alias\"\nhost = \"10.0.0.1\"\ndatabase_name = \"prod\"\nuser = \"u\"\n";
    let back = "[[mirroring]]\nsource_db = \"staging_db\"\ndestination_db = \"alias\" # back\n";
    let text = format!("{BASE}{alias}{back}");
    refused(
        &text,
        "# back",
        "mirroring.destination_db",
        "a mirror cycle",
    );
}

#[test]
fn a_cycle_of_three_is_refused_and_a_chain_or_diamond_is_not() {
    let database = |name: &str, at: u8| {
        format!("[[databases]]\nname = \"{name}\"\nhost = \"10.0.9.{at}\"\nuser = \"u\"\n")
    };
    let mirror = |a: &str, b: &str| {
        format!("[[mirroring]]\nsource_db = \"{a}\"\ndestination_db = \"{b}\" # {a}{b}\n")
    };
    let three: String = [("a", 1), ("b", 2), ("c", 3)]
        .map(|(n, at)| database(n, at))
        .concat();
    let chain = format!(
        "{three}{}{}{}",
        mirror("a", "b"),
        mirror("b", "c"),
        mirror("a", "c")
    );
    assert_eq!(good(&format!("{chain}{BASE}")).mirroring.len(), 4);
    let cycle = format!(
        "{three}{}{}{}{BASE}",
        mirror("a", "b"),
        mirror("b", "c"),
        mirror("c", "a")
    );
    refused(
        &cycle,
        "# ca",
        "mirroring.destination_db",
        "c -> a -> b -> c",
    );
}

#[test]
fn two_listeners_on_one_address_are_refused() {
    let two = |a: &str, b: &str| {
        format!(
            "[[listeners]]\naddress = \"{a}\"\n[[listeners]]\naddress = \"{b}\" # second\n{BASE}"
        )
    };
    for (a, b) in [
        ("0.0.0.0:1", "0.0.0.0:1"),
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("unix:/s", "unix:/s"),
    ] {
        refused(
            &two(a, b),
            "# second",
            "listeners.address",
            "another listener (line 2)",
        );
    }
    assert_eq!(good(&two("127.0.0.1:1", "127.0.0.2:1")).listeners.len(), 2);
    let text = format!("[general]\ncontrol = \"127.0.0.1:6432\"\n{BASE}");
    refused(
        &text,
        "control",
        "general.control",
        "a listener has 127.0.0.1:6432 too",
    );
    let text = format!("[general]\nport = 1\n[[listeners]]\naddress = \"0.0.0.0:1\"\n{BASE}");
    refused(&text, "port = 1", "general.host", "already");
}

#[test]
fn listeners_name_a_database_that_speaks_their_protocol() {
    let listener =
        |rest: &str| format!("[[listeners]]\naddress = \"0.0.0.0:1\" # it\n{rest}\n{BASE}");
    let text = listener("protocol = \"redis\"\ndatabase = \"prod\"");
    refused(&text, "# it", "listeners.address", "speaks postgres");
    let text = listener("database = \"prd\"");
    refused(
        &text,
        "\"prd\"",
        "listeners.database",
        "no database \"prd\"",
    );
    assert_eq!(
        good(&listener("protocol = \"redis\"")).listeners[0].database,
        Some(2)
    );
    let config = good(&listener("database = \"cache\""));
    assert_eq!(config.listeners[0].protocol, Protocol::Redis);
    let more = "[[databases]]\nname = \"third\"\nprotocol = \"redis\"\nhost = \"10.0.0.7\"\n";
    let text = format!("{}{more}", listener("protocol = \"redis\""));
    refused(&text, "[[listeners]]", "listeners.database", "is missing");
    refused(
        &format!("\n{BASE}{more}"),
        "",
        "listeners",
        "several Redis databases",
    );
    refused(
        &listener("").replace("0.0.0.0:1", "db.example:1"),
        "# it",
        "listeners.address",
        "IP address",
    );
}

#[test]
fn a_database_that_is_our_own_listener_is_refused() {
    let text = BASE.replace("\"10.0.0.1\"", "\"127.0.0.1\"\nport = 6432");
    refused(&text, "127.0.0.1", "databases.host", "own listener");
}

#[test]
fn database_names_are_unique_present_and_not_admin() {
    let twice = format!("{BASE}[[databases]]\nname = \"prod\" # twice\nhost = \"h\"\n");
    refused(
        &twice,
        "# twice",
        "databases.name",
        "\"prod\" is already the name of the one in line 3",
    );
    let nameless = format!("{BASE}[[databases]]\nhost = \"h\"\n")
        .replace("[[databases]]\nhost", "[[databases]] # it\nhost");
    refused(&nameless, "# it", "databases.name", "is missing");
    let hostless = format!("{BASE}[[databases]] # it\nname = \"h\"\n");
    refused(&hostless, "# it", "databases.host", "is missing");
    let admin = format!("{BASE}[[databases]]\nname = \"admin\"\nhost = \"h\"\n");
    refused(&admin, "\"admin\"", "databases.name", "admin console");
    refused_with("\n", "", "", "databases", "is missing");
}

#[test]
fn mirrorings_and_dual_writes_name_databases_that_exist() {
    let text = BASE.replace(
        "destination_db = \"staging_db\"",
        "destination_db = \"stagin_db\"",
    );
    refused(
        &text,
        "destination_db",
        "mirroring.destination_db",
        "no database \"stagin_db\"",
    );
    let text = BASE.replace("source_db = \"prod\"\n", "");
    refused(&text, "[[mirroring]]", "mirroring.source_db", "is missing");
    let text = BASE.replace("secondary = \"cache_new\"", "secondary = \"nowhere\"");
    refused(&text, "nowhere", "dual_write.secondary", "no database");
}

#[test]
fn both_ends_of_a_copy_speak_one_protocol() {
    let text = BASE.replace(
        "destination_db = \"staging_db\"",
        "destination_db = \"cache_new\"",
    );
    refused(
        &text,
        "destination_db",
        "mirroring.destination_db",
        "speaks redis",
    );
    let text =
        format!("{BASE}[[dual_write]]\nprimary = \"prod\"\nsecondary = \"staging_db\" # it\n");
    refused(&text, "# it", "dual_write.secondary", "speak postgres");
    let level =
        "[[mirroring]]\nsource_db = \"cache\"\ndestination_db = \"cache_new\"\nlevel = \"dml\"\n";
    refused(
        &format!("{BASE}{level}"),
        "\"dml\"",
        "mirroring.level",
        "Postgres only",
    );
}

#[test]
fn one_entry_per_pair_one_secondary_per_primary_and_64_mirrors_per_source() {
    let again = "[[mirroring]]\nsource_db = \"prod\"\ndestination_db = \"staging_db\" # again\n";
    refused(
        &format!("{BASE}{again}"),
        "# again",
        "mirroring.destination_db",
        "already",
    );
    let third = "[[databases]]\nname = \"third\"\nprotocol = \"redis\"\nhost = \"10.0.0.7\"\n\
                 [[dual_write]]\nprimary = \"cache\"\nsecondary = \"third\" # again\n";
    refused(
        &format!("{BASE}{third}"),
        "# again",
        "dual_write.secondary",
        "already",
    );
    let mirrors = |count: usize| {
        let one = |n: usize| {
            format!(
                "[[databases]]\nname = \"m{n}\"\nhost = \"10.1.0.{n}\"\nuser = \"u\"\n\
             [[mirroring]]\nsource_db = \"prod\"\ndestination_db = \"m{n}\" # number {n}.\n"
            )
        };
        (1..=count).map(one).collect::<String>() + BASE
    };
    assert_eq!(good(&mirrors(63)).mirroring.len(), 64);
    let text = mirrors(64);
    refused(
        &text,
        "destination_db = \"staging_db\"",
        "mirroring.destination_db",
        "more than 64",
    );
}

#[test]
fn a_postgres_mirror_needs_a_login() {
    refused_with(
        BASE,
        "",
        "destination_db",
        "mirroring.destination_db",
        "no login for the mirror",
    );
    let own = BASE.replace("\"10.0.2.25\"", "\"10.0.2.25\"\nuser = \"mirror\"");
    assert!(
        load_with(&own, "").is_ok(),
        "a user of the entry is a login"
    );
    let key = "A".repeat(43);
    let verifier = format!("SCRAM-SHA-256$4096:c2FsdA==${key}=:{key}=");
    let users = format!(
        "[[users]]\nname = \"a\"\ndatabase = \"staging_db\"\nscram_verifier = \"{verifier}\"\n"
    );
    refused_with(
        BASE,
        &users,
        "destination_db",
        "mirroring.destination_db",
        "a verifier cannot log in",
    );
}

#[test]
fn terminated_logins_need_users_that_can_be_checked_and_a_way_in() {
    let text = BASE.replace("\"10.0.0.1\"", "\"10.0.0.1\"\nauth = \"terminate\"");
    refused(
        &text,
        "auth =",
        "databases.auth",
        "users.toml has none for \"prod\"",
    );
    let users = format!("{USERS}[[users]]\nname = \"a\"\ndatabase = \"prod\"\n");
    refused_with(
        &text,
        &users,
        "auth =",
        "databases.auth",
        "nothing to be checked by",
    );
    let key = "A".repeat(43);
    let users = format!("{users}scram_verifier = \"SCRAM-SHA-256$4096:c2FsdA==${key}=:{key}=\"\n");
    refused_with(
        &text,
        &users,
        "auth =",
        "databases.auth",
        "cannot log in to \"prod\"",
    );
    let with_user = text.replace("auth =", "user = \"proxy\"\nauth =");
    assert!(load_with(&with_user, &users).is_ok());
    let pooled = BASE.replace("\"10.0.0.1\"", "\"10.0.0.1\"\npool_mode = \"transaction\"");
    refused(
        &pooled,
        "pool_mode",
        "databases.pool_mode",
        "relayed logins cannot",
    );
}

#[test]
fn users_have_a_name_a_known_database_and_one_entry() {
    let with = |rest: &str| format!("{USERS}[[users]] # it\n{rest}\n");
    let at = |rest: &str, mark: &str, key: &str, problem: &str| {
        refused_with(BASE, &with(rest), mark, key, problem);
    };
    at("database = \"prod\"", "# it", "users.name", "is missing");
    at("name = \"a\"", "# it", "users.database", "is missing");
    at(
        "name = \"a\"\ndatabase = \"nope\"",
        "nope",
        "users.database",
        "no database \"nope\"",
    );
    at(
        "name = \"app\"\ndatabase = \"staging_db\"",
        "# it",
        "users.name",
        "twice",
    );
    at(
        "name = \"a\"\ndatabase = \"prod\"\npasword = \"canary\"",
        "pasword",
        "users.pasword",
        "unknown key",
    );
    at(
        "name = \"a\"\ndatabase = \"prod\"\npassword = 4711",
        "4711",
        "users.password",
        "is not a string",
    );
    at(
        "name = \"a\"\ndatabase = \"prod\"\nscram_verifier = \"canary\"",
        "scram_v",
        "users.scram_verifier",
        "not a SCRAM verifier",
    );
    let admin = load_with(
        BASE,
        &with("name = \"ops\"\ndatabase = \"admin\"\npassword = \"x\""),
    );
    assert_eq!(
        admin
            .unwrap()
            .config
            .user("ops", None)
            .map(|user| user.name.as_str()),
        Some("ops")
    );
}

#[test]
fn keys_of_the_other_protocol_and_impossible_tls_are_refused() {
    let redis = |line: &str| BASE.replace("\"10.0.0.5\"", &format!("\"10.0.0.5\"\n{line}"));
    let pg = |line: &str| BASE.replace("\"10.0.0.1\"", &format!("\"10.0.0.1\"\n{line}"));
    refused(
        &redis("auth = \"relay\""),
        "auth =",
        "databases.auth",
        "for Postgres only",
    );
    refused(&pg("db = 3"), "db = 3", "databases.db", "for Redis only");
    refused(
        &redis("tls = \"prefer\""),
        "tls =",
        "databases.tls",
        "not possible",
    );
    refused(
        &pg("tls = \"verify-full\""),
        "tls =",
        "databases.tls",
        "needs tls_ca",
    );
    refused(
        &pg("tls_ca = \"Cargo.toml\""),
        "tls_ca",
        "databases.tls_ca",
        "no effect",
    );
    refused(
        &pg("tls = \"verify-ca\"\ntls_ca = \"/nowhere.pem\""),
        "tls_ca",
        "databases.tls_ca",
        "cannot read",
    );
    refused(
        &pg("role = \"replica\""),
        "role",
        "databases.role",
        "replicas",
    );
    refused(
        &pg("host = \"h\"")
            .replacen("host = \"10.0.0.1\"\n", "", 1)
            .replace("\"h\"", "\"a b\""),
        "a b",
        "databases.host",
        "not a host name",
    );
}

#[test]
fn listener_tls_needs_both_files() {
    let tls =
        |rest: &str| format!("[[listeners]]\naddress = \"0.0.0.0:1\"\ntls = {{ {rest} }}\n{BASE}");
    refused(
        &tls("cert = \"Cargo.toml\""),
        "tls =",
        "listeners.tls.key",
        "is missing",
    );
    refused(
        &tls("cert = \"Cargo.toml\", key = \"/nowhere\""),
        "tls =",
        "listeners.tls.key",
        "cannot read",
    );
    assert!(
        good(&tls("cert = \"Cargo.toml\", key = \"Cargo.toml\"")).listeners[0]
            .tls
            .is_some()
    );
}

#[test]
fn what_makes_tls_stricter_needs_the_tls_that_it_is_about() {
    let listener = |rest: &str| format!("[[listeners]]\naddress = \"0.0.0.0:1\"\n{rest}\n{BASE}");
    refused(
        &listener("tls_required = true"),
        "tls_required",
        "listeners.tls_required",
        "needs tls",
    );
    let files = "cert = \"Cargo.toml\", key = \"Cargo.toml\"";
    refused(
        &listener(&format!(
            "tls = {{ {files}, client_cert_required = false }}"
        )),
        "tls =",
        "listeners.tls.client_cert_required",
        "no effect without client_ca",
    );
    let text = listener(&format!("tls_required = true\ntls = {{ {files} }}"));
    let tls = good(&text).listeners[0].tls.clone().unwrap();
    assert!(tls.required && tls.client_cert_required);
}

#[test]
fn unix_sockets_work_on_both_sides() {
    let text = BASE.replace("\"10.0.0.1\"", "\"/run/postgresql\"");
    let text = format!("[[listeners]]\naddress = \"unix:/run/parhelion/.s.PGSQL.6432\"\n{text}");
    let config = good(&text);
    assert_eq!(
        config.databases[0].endpoint,
        Endpoint::Unix("/run/postgresql/.s.PGSQL.5432".into())
    );
    assert!(matches!(
        config.listeners[0].address,
        ListenAddress::Unix(_)
    ));
}

#[test]
fn all_faults_are_reported_in_the_order_of_the_lines() {
    let text = format!(
        "[general]\nmirror_exposure = 2.0\nmirror_queue = 0\npase = 1\n[ring]\nentries = 3\n{BASE}"
    );
    let errors = load_with(&text, "[[users]]\nname = \"a\"\n").unwrap_err();
    let seen: Vec<_> = errors
        .iter()
        .map(|e| (e.file.as_str(), e.line, e.key.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            ("parhelion.toml", Some(2), "general.mirror_exposure"),
            ("parhelion.toml", Some(3), "general.mirror_queue"),
            ("parhelion.toml", Some(4), "general.pase"),
            ("parhelion.toml", Some(6), "ring.entries"),
            (
                "parhelion.toml",
                Some(line_of(&text, "destination_db")),
                "mirroring.destination_db"
            ),
            ("users.toml", Some(1), "users.database"),
        ]
    );
}

#[test]
fn bad_toml_is_refused_with_its_line_and_without_quoting_it() {
    let errors = load_with("[general]\n\npassword = \"canary-1\n", "").unwrap_err();
    assert_eq!(errors[0].line, Some(3), "{errors:?}");
    assert!(!format!("{errors:?}").contains("canary"), "{errors:?}");
    let errors = load_with("a = 1\na = 2\n", "").unwrap_err();
    assert_eq!(errors[0].line, Some(2), "{errors:?}");
}

#[test]
fn no_secret_shows_in_debug_output() {
    let text = BASE.replace(
        "\"10.0.2.25\"",
        "\"10.0.2.25\"\nuser = \"u\"\npassword = \"canary-2\"",
    );
    let config = good(&format!("[sentry]\ndsn = \"https://canary-3@h/1\"\n{text}"));
    assert!(!format!("{config:?}").contains("canary"));
    assert!(
        !parhelion::config::to_json(&config)
            .to_string()
            .contains("canary")
    );
}
