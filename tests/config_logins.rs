//! Rules of users, logins and TLS.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod config_support;

use config_support::{BASE, USERS, good, load_with, refused, refused_with};

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
fn auth_methods_are_for_terminated_logins_and_md5_needs_passwords() {
    let with = |keys: &str| BASE.replace("\"10.0.0.1\"", &format!("\"10.0.0.1\"\n{keys}"));
    refused(
        &with("auth_method = \"md5\""),
        "auth_method",
        "databases.auth_method",
        "where the primary checks clients",
    );
    refused_with(
        &with("auth = \"terminate\"\nauth_method = \"kerberos\""),
        &format!("{USERS}[[users]]\nname = \"a\"\ndatabase = \"prod\"\npassword = \"x\"\n"),
        "auth_method",
        "databases.auth_method",
        "kerberos",
    );
    let key = "A".repeat(43);
    let users = format!(
        "{USERS}[[users]]\nname = \"a\"\ndatabase = \"prod\"\n\
         scram_verifier = \"SCRAM-SHA-256$4096:c2FsdA==${key}=:{key}=\"\n"
    );
    refused_with(
        &with("user = \"proxy\"\nauth = \"terminate\"\nauth_method = \"md5\""),
        &users,
        "auth =",
        "databases.auth",
        "by which md5 cannot be checked",
    );
    // Whoever trusts everybody needs no list of users, only a way in of its own.
    let trusting = with("user = \"proxy\"\nauth = \"terminate\"\nauth_method = \"trust\"");
    assert!(load_with(&trusting, USERS).is_ok());
    let lost = with("auth = \"terminate\"\nauth_method = \"trust\"");
    assert!(load_with(&lost, USERS).is_err());
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
