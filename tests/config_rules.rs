//! Every rule of the configuration: what it refuses, at which line and key, with which way out. Here: defaults,
//! `[general]`, `[ring]`, and the text as such.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod config_support;

use std::time::Duration;

use config_support::{BASE, USERS, general_refused, good, line_of, load_with, refused};
use parhelion::config::{
    Auth, Blocking, Compare, Cores, Endpoint, Level, MirrorPoolMode, Pace, Protocol, RedisMode,
    SampleBy, TlsMode,
};

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
