//! Rules of listeners, databases, mirrorings and dual writes: who may be named where.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod config_support;

use config_support::{BASE, USERS, good, load_with, refused, refused_with};
use parhelion::config::{Endpoint, ListenAddress, Protocol};

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
