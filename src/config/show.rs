//! A configuration as JSON, for the admin and the API: the keys of the file, the values in force, no secret.

use serde_json::{Map, Value, json};

use super::types::{Config, Cores, Database, DualWrite, Listener, Mirroring, User};
use super::units::{show_duration, show_size};

/// The configuration in force with the file's own keys and units. Passwords and DSNs show only whether they are set.
pub fn to_json(config: &Config) -> Value {
    json!({
        "general": general(config),
        "ring": ring(config),
        "listeners": config.listeners.iter().map(|l| listener(config, l)).collect::<Vec<_>>(),
        "databases": config.databases.iter().map(database).collect::<Vec<_>>(),
        "mirroring": config.mirroring.iter().map(|m| mirroring(config, m)).collect::<Vec<_>>(),
        "dual_write": config.dual_write.iter().map(|d| dual_write(config, d)).collect::<Vec<_>>(),
        "sentry": sentry(config),
        "users": config.users.iter().map(|u| user(config, u)).collect::<Vec<_>>(),
    })
}

/// `***` for a secret that is set.
fn masked<T>(secret: Option<&T>) -> Value {
    secret.map_or(Value::Null, |_| json!("***"))
}

pub(super) fn general(config: &Config) -> Value {
    let g = &config.general;
    json!({
        "cores": match &g.cores { Cores::All => json!("all"), Cores::List(list) => json!(list) },
        "control": g.control.map_or("off".to_owned(), |address| address.to_string()),
        "mirror_queue": g.mirror_queue,
        "mirror_queue_bytes": show_size(g.mirror_queue_bytes),
        "mirror_memory": show_size(g.mirror_memory),
        "mirror_exposure": g.mirror_exposure,
        "pace": g.pace.as_str(),
        "mirror_timeout": show_duration(g.mirror_timeout),
        "mirror_pool_mode": g.mirror_pool_mode.as_str(),
        "connect_timeout": show_duration(g.connect_timeout),
        "query_wait_timeout": show_duration(g.query_wait_timeout),
        "client_idle_timeout": show_duration(g.client_idle_timeout.unwrap_or_default()),
        "client_login_timeout": show_duration(g.client_login_timeout),
        "max_connections": g.max_connections,
        "max_connections_per_address": g.max_connections_per_address,
        "drain_timeout": show_duration(g.drain_timeout),
        "log_format": g.log_format.as_str(),
        "control_token": masked(g.control_token.as_ref()),
        "watch_config": g.watch_config,
        "redact": g.redact.as_str(),
        "divergence_log": g.divergence_log.as_ref().map(|path| path.display().to_string()),
        "compat_metrics": g.compat_metrics,
    })
}

pub(super) fn ring(config: &Config) -> Value {
    json!({
        "entries": config.ring.entries,
        "slabs": config.ring.slabs,
        "slab_size": show_size(config.ring.slab_size),
        "busy_poll": show_duration(config.ring.busy_poll),
    })
}

pub(super) fn sentry(config: &Config) -> Value {
    json!({
        "dsn": masked(config.sentry.dsn.as_ref()),
        "environment": config.sentry.environment,
        "sample_rate": config.sentry.sample_rate,
    })
}

pub(super) fn listener(config: &Config, listener: &Listener) -> Value {
    json!({
        "address": listener.address.to_string(),
        "protocol": listener.protocol.as_str(),
        "database": listener.database.map(|index| &config.databases[index].name),
        "cores": listener.cores,
        "tls": listener.tls.as_ref().map(|tls| json!({
            "cert": tls.cert,
            "key": tls.key,
            "client_ca": tls.client_ca,
            "client_cert_required": tls.client_cert_required,
            "required": tls.required,
        })),
    })
}

pub(super) fn database(database: &Database) -> Value {
    json!({
        "name": database.name,
        "protocol": database.protocol.as_str(),
        "endpoint": database.endpoint.to_string(),
        "database_name": database.database_name,
        "user": database.user,
        "password": masked(database.password.as_ref()),
        "pool_size": database.pool_size,
        "auth": database.auth.as_str(),
        "auth_method": database.auth_method.as_str(),
        "pool_mode": database.pool_mode.as_str(),
        "tls": database.tls.as_str(),
        "tls_ca": database.tls_ca,
        "db": database.db,
    })
}

pub(super) fn mirroring(config: &Config, mirroring: &Mirroring) -> Value {
    json!({
        "source_db": config.databases[mirroring.source].name,
        "destination_db": config.databases[mirroring.destination].name,
        "queue_length": mirroring.queue_length,
        "exposure": mirroring.exposure,
        "level": mirroring.level.as_str(),
        "compare": mirroring.compare.as_str(),
        "control": mirroring.control,
    })
}

pub(super) fn dual_write(config: &Config, dual: &DualWrite) -> Value {
    json!({
        "primary": config.databases[dual.primary].name,
        "secondary": config.databases[dual.secondary].name,
        "mode": dual.mode.as_str(),
        "secondary_timeout": show_duration(dual.secondary_timeout),
        "script_timeout": show_duration(dual.script_timeout),
        "shadow_timeout": show_duration(dual.shadow_timeout),
        "exposure": dual.exposure,
        "sample_by": dual.sample_by.as_str(),
        "effects": dual.effects,
        "blocking": dual.blocking.as_str(),
        "repair": dual.repair,
        "queue_length": dual.queue_length,
        "queue_bytes": show_size(dual.queue_bytes),
        "pubsub_compare_window": show_duration(dual.pubsub_compare_window),
    })
}

pub(super) fn user(config: &Config, user: &User) -> Value {
    json!({
        "name": user.name,
        "database": user.database.map_or("admin", |index| &config.databases[index].name),
        "password": masked(user.password.as_ref()),
        "scram_verifier": masked(user.scram_verifier.as_ref()),
    })
}

/// The keys of two objects of the same kind whose values differ, with both values.
pub(super) fn differing(old: &Value, new: &Value) -> Vec<(String, Value, Value)> {
    let empty = Map::new();
    let (old, new) = (
        old.as_object().unwrap_or(&empty),
        new.as_object().unwrap_or(&empty),
    );
    new.iter()
        .filter_map(|(key, value)| {
            let before = old.get(key).unwrap_or(&Value::Null);
            (before != value).then(|| (key.clone(), before.clone(), value.clone()))
        })
        .collect()
}
