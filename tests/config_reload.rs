//! What a reload applies, what it leaves until a restart, and that it names both.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use parhelion::config::{Changes, Config, Input, Secret, apply, diff, parse};

const BASE: &str = r#"
[general]
cores = [0]
mirror_exposure = 0.5
[[listeners]]
address = "127.0.0.1:6432"
[[databases]]
name = "prod"
host = "10.0.0.1"
[[databases]]
name = "staging"
host = "10.0.0.2"
user = "u"
password = "canary-1"
[[mirroring]]
source_db = "prod"
destination_db = "staging"
[[databases]]
name = "cache"
protocol = "redis"
host = "10.0.0.3"
[[databases]]
name = "cache_new"
protocol = "redis"
host = "10.0.0.4"
[[dual_write]]
primary = "cache"
secondary = "cache_new"
"#;

fn config(text: &str, users: &str) -> Config {
    let users = Some((Path::new("users.toml"), users));
    let input = Input {
        file: Path::new("parhelion.toml"),
        text,
        users,
        cpus: &[0, 1],
    };
    parse(&input)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .config
}

fn base() -> Config {
    config(BASE, "")
}

fn changed(from: &str, to: &str) -> (Config, Changes) {
    assert!(BASE.contains(from), "{from}");
    let new = config(&BASE.replacen(from, to, 1), "");
    let changes = diff(&base(), &new);
    (new, changes)
}

fn keys(changes: &[parhelion::config::Change]) -> Vec<&str> {
    changes.iter().map(|change| change.key.as_str()).collect()
}

#[test]
fn an_unchanged_file_changes_nothing() {
    assert!(diff(&base(), &base()).is_empty());
    assert_eq!(apply(&base(), base()), base());
}

#[test]
fn exposure_applies_at_once_and_reaches_the_mirrors_without_their_own() {
    let (new, changes) = changed("mirror_exposure = 0.5", "mirror_exposure = 0.25");
    assert_eq!(
        keys(&changes.applied),
        [
            "general.mirror_exposure",
            "mirroring[prod -> staging].exposure"
        ]
    );
    assert!(changes.needs_restart.is_empty());
    assert_eq!(
        changes.applied[0].to_string(),
        "general.mirror_exposure: 0.5 -> 0.25"
    );
    assert_eq!(apply(&base(), new).mirroring[0].exposure, 0.25);
}

#[test]
fn mode_level_compare_and_queues_apply_at_once() {
    for (from, to, key) in [
        (
            "secondary = \"cache_new\"",
            "secondary = \"cache_new\"\nmode = \"secondary-only\"",
            "dual_write[cache -> cache_new].mode",
        ),
        (
            "destination_db = \"staging\"",
            "destination_db = \"staging\"\nlevel = \"reads\"",
            "mirroring[prod -> staging].level",
        ),
        (
            "destination_db = \"staging\"",
            "destination_db = \"staging\"\ncompare = \"off\"",
            "mirroring[prod -> staging].compare",
        ),
        (
            "destination_db = \"staging\"",
            "destination_db = \"staging\"\nqueue_length = 9",
            "mirroring[prod -> staging].queue_length",
        ),
        ("user = \"u\"", "user = \"v\"", "databases[staging].user"),
    ] {
        let (new, changes) = changed(from, to);
        assert_eq!(keys(&changes.applied), [key]);
        assert!(changes.needs_restart.is_empty(), "{changes:?}");
        assert_eq!(apply(&base(), new.clone()), new, "{key} is in force whole");
    }
}

#[test]
fn what_needs_a_restart_is_named_and_stays_as_it_was() {
    for (from, to, key) in [
        ("cores = [0]", "cores = [1]", "general.cores"),
        (
            "cores = [0]",
            "cores = [0]\ncontrol = \"off\"",
            "general.control",
        ),
        (
            "cores = [0]",
            "cores = [0]\nmirror_memory = \"1GiB\"",
            "general.mirror_memory",
        ),
        (
            "[[listeners]]",
            "[ring]\nslabs = 64\n[[listeners]]",
            "ring.slabs",
        ),
        (
            "host = \"10.0.0.1\"",
            "host = \"10.0.0.9\"",
            "databases[prod].endpoint",
        ),
        (
            "[[listeners]]",
            "[sentry]\ndsn = \"https://canary@h/1\"\n[[listeners]]",
            "sentry.dsn",
        ),
    ] {
        let (new, changes) = changed(from, to);
        assert_eq!(keys(&changes.needs_restart), [key]);
        assert!(changes.applied.is_empty(), "{changes:?}");
        assert_eq!(apply(&base(), new), base(), "{key} waits");
    }
    let (new, changes) = changed("127.0.0.1:6432", "127.0.0.1:6433");
    assert_eq!(
        keys(&changes.needs_restart),
        ["listeners[127.0.0.1:6433]", "listeners[127.0.0.1:6432]"]
    );
    assert_eq!(apply(&base(), new).listeners, base().listeners);
}

#[test]
fn a_listener_keeps_its_database_when_the_order_of_the_file_changes_or_the_entry_leaves() {
    let text = "[[listeners]]\naddress = \"127.0.0.1:1\"\ndatabase = \"b\"\n\
                [[databases]]\nname = \"a\"\nhost = \"h1\"\n[[databases]]\nname = \"b\"\nhost = \"h2\"\n";
    let old = config(text, "");
    let turned = text.replace("\"a\"\nhost = \"h1\"", "\"c\"\nhost = \"h3\"");
    let turned = format!("{turned}[[databases]]\nname = \"a\"\nhost = \"h1\"\n");
    let merged = apply(&old, config(&turned, ""));
    let index = merged.listeners[0].database.unwrap();
    assert_eq!(merged.databases[index].name, "b");
    let gone =
        "[[listeners]]\naddress = \"127.0.0.1:2\"\n[[databases]]\nname = \"a\"\nhost = \"h1\"\n";
    let merged = apply(&old, config(gone, ""));
    let index = merged.listeners[0].database.unwrap();
    assert_eq!(
        (
            merged.databases[index].name.as_str(),
            merged.listeners.len()
        ),
        ("b", 1)
    );
}

#[test]
fn mirrors_and_users_come_and_go_and_secrets_never_show() {
    let without = BASE.replace(
        "[[mirroring]]\nsource_db = \"prod\"\ndestination_db = \"staging\"\n",
        "",
    );
    let removed = diff(&base(), &config(&without, ""));
    assert_eq!(keys(&removed.applied), ["mirroring[prod -> staging]"]);
    let added = diff(&config(&without, ""), &base());
    assert_eq!(keys(&added.applied), ["mirroring[prod -> staging]"]);

    let user = |password: &str| {
        format!("[[users]]\nname = \"app\"\ndatabase = \"prod\"\npassword = \"{password}\"\n")
    };
    let (one, two) = (
        config(BASE, &user("canary-2")),
        config(BASE, &user("canary-3")),
    );
    assert_eq!(keys(&diff(&base(), &one).applied), ["users[app@prod]"]);
    let changes = diff(&one, &two);
    assert_eq!(keys(&changes.applied), ["users[app@prod]"]);
    assert_eq!(
        apply(&one, two).users[0].password,
        Some(Secret::new("canary-3"))
    );

    let (new, changes2) = changed("canary-1", "canary-4");
    assert_eq!(keys(&changes2.applied), ["databases[staging].password"]);
    assert_eq!(
        apply(&base(), new).databases[1].password,
        Some(Secret::new("canary-4"))
    );
    let shown = format!("{:?} {} {:?}", changes, changes2.to_json(), changes2);
    assert!(!shown.contains("canary"), "{shown}");
}
