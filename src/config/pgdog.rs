//! Keys of PgDog's files that Parhelion knows about: which it accepts and what it says of the others.
//!
//! Accepted with PgDog's meaning: `general.host`, `general.port`, `general.default_pool_size`, `databases.role =
//! "primary"`, `databases.shard = 0`, and everything that carries the same name here (`mirror_queue`, `mirror_exposure`,
//! `databases.name/host/port/database_name/user/password/pool_size`, all of `[[mirroring]]`, `users.name/database/password`).

/// What to say of a PgDog key in `[general]` that Parhelion does not have.
pub(super) fn general(key: &str) -> Option<&'static str> {
    Some(match key {
        "workers" => "this is PgDog's; remove it and choose CPUs with general.cores",
        "pooler_mode" => "this is PgDog's; write pool_mode in [[databases]]",
        "shutdown_timeout" => "this is PgDog's; write drain_timeout = \"60s\"",
        "openmetrics_port" => "this is PgDog's; metrics are served at general.control",
        "tls_certificate" | "tls_private_key" | "tls_client_required" => {
            "this is PgDog's; write tls = { cert = \"…\", key = \"…\" } in [[listeners]]"
        }
        "tls_verify" | "tls_server_ca_certificate" => {
            "this is PgDog's; write tls and tls_ca in [[databases]]"
        }
        "auth_type" | "passthrough_auth" => "this is PgDog's; write auth in [[databases]]",
        "min_pool_size"
        | "healthcheck_interval"
        | "healthcheck_timeout"
        | "idle_healthcheck_interval"
        | "idle_healthcheck_delay"
        | "ban_timeout"
        | "rollback_timeout"
        | "load_balancing_strategy"
        | "read_write_strategy"
        | "read_write_split"
        | "shutdown_termination_timeout"
        | "openmetrics_namespace"
        | "prepared_statements"
        | "prepared_statements_limit"
        | "query_cache_limit"
        | "connect_attempts"
        | "connect_attempt_delay"
        | "query_timeout"
        | "checkout_timeout"
        | "dry_run"
        | "idle_timeout"
        | "cross_shard_disabled"
        | "dns_ttl"
        | "broadcast_address"
        | "broadcast_port"
        | "query_log"
        | "log_connections"
        | "log_disconnections"
        | "pub_sub_channel_size"
        | "two_phase_commit"
        | "two_phase_commit_auto" => "this is PgDog's and has no counterpart here; remove it",
        _ => return None,
    })
}

/// The same for `[[databases]]`.
pub(super) fn databases(key: &str) -> Option<&'static str> {
    Some(match key {
        "pooler_mode" => "this is PgDog's; write pool_mode",
        "min_pool_size" | "statement_timeout" | "idle_timeout" | "read_only"
        | "server_lifetime" => "this is PgDog's and has no counterpart here; remove it",
        _ => return None,
    })
}

/// The same for `[[users]]`.
pub(super) fn users(key: &str) -> Option<&'static str> {
    Some(match key {
        "server_user" | "server_password" => {
            "this is PgDog's; write user and password_file in [[databases]]"
        }
        "pool_size" | "pooler_mode" | "min_pool_size" | "statement_timeout" | "idle_timeout"
        | "databases" | "all_databases" | "replication_mode" | "schema_admin" => {
            "this is PgDog's and has no counterpart here; remove it"
        }
        _ => return None,
    })
}

/// The same for whole sections.
pub(super) fn sections(key: &str) -> Option<&'static str> {
    Some(match key {
        "admin" => {
            "this is PgDog's; name the admin's users in users.toml with database = \"admin\""
        }
        "tcp" | "plugins" | "sharded_tables" | "sharded_mappings" | "manual_queries"
        | "multi_tenant" | "replication" | "omnisharded_tables" | "sharded_schemas" | "rewrite"
        | "query_parser" | "memory" | "vault" => {
            "this is PgDog's and has no counterpart here; remove it"
        }
        _ => return None,
    })
}
