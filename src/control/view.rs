//! The JSON of the API: stable names, durations in nanoseconds, sizes in bytes, times in seconds since 1970.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::divergences::DivergenceFilter;
use super::state::ControlState;
use crate::config::RedisMode;
use crate::limits::DIVERGENCES_PER_ANSWER_MAX;
use crate::metrics::{
    CommandTotal, CoreTotal, DivergenceKind, Latency, MirrorTotal, ProcessSample, Protocol, Scrape,
    SourceTotal,
};
use crate::mirror::ledger::{DropReason, LedgerSnapshot};

/// `/api/status`: the process, its cores and the sums.
pub fn status(state: &ControlState) -> Value {
    let scrape = state.scrape();
    let runtime = match state.commands.status() {
        Ok(value) => value,
        Err(error) => json!({"error": error.to_string()}),
    };
    json!({
        "version": scrape.version,
        "started_unix": scrape.started_unix,
        "uptime_seconds": state.uptime_seconds(),
        "ready": state.ready(),
        "draining": state.draining(),
        "process": process(&scrape.process),
        "totals": totals(&scrape),
        "cores": scrape.cores.iter().map(core).collect::<Vec<_>>(),
        "runtime": runtime,
    })
}

/// `/api/databases`: the source databases.
pub fn databases(state: &ControlState) -> Value {
    let sources = state.registry.sources();
    json!({"databases": sources.iter().map(database).collect::<Vec<_>>()})
}

/// `/api/mirrors`: every mirror with its verdict.
pub fn mirrors(state: &ControlState) -> Value {
    let totals = state.registry.mirrors();
    let list: Vec<Value> = totals.iter().map(|total| mirror(state, total)).collect();
    json!({"mirrors": list})
}

/// `/api/divergences`: examples, newest first.
pub fn divergences(state: &ControlState, filter: &DivergenceFilter) -> Value {
    let mut filter = filter.clone();
    filter.limit = filter.limit.min(DIVERGENCES_PER_ANSWER_MAX);
    let (total, items) = state.divergences.query(&filter);
    json!({"total": total, "offset": filter.offset, "items": items})
}

fn process(sample: &ProcessSample) -> Value {
    json!({
        "resident_bytes": sample.resident_bytes,
        "virtual_bytes": sample.virtual_bytes,
        "open_fds": sample.open_fds,
        "max_fds": sample.max_fds,
        "threads": sample.threads,
        "cpu_seconds": sample.cpu_seconds,
    })
}

fn totals(scrape: &Scrape) -> Value {
    let listeners = || scrape.cores.iter().flat_map(|core| &core.listeners);
    let mut ledger_sum = LedgerSnapshot::default();
    scrape
        .mirrors
        .iter()
        .for_each(|m| ledger_sum.merge(&m.ledger));
    json!({
        "clients": listeners().map(|l| l.active).sum::<u64>(),
        "accepted": listeners().map(|l| l.accepted).sum::<u64>(),
        "refused": listeners().map(|l| l.refused).sum::<u64>(),
        "client_bytes_in": listeners().map(|l| l.client_bytes_in).sum::<u64>(),
        "client_bytes_out": listeners().map(|l| l.client_bytes_out).sum::<u64>(),
        "requests": scrape.sources.iter().map(|s| s.requests).sum::<u64>(),
        "primary_errors": scrape.sources.iter().map(SourceTotal::errors_total).sum::<u64>(),
        "divergences": scrape.mirrors.iter().map(MirrorTotal::divergences_real).sum::<u64>(),
        "queued_units": scrape.mirrors.iter().map(|m| m.queued_units).sum::<u64>(),
        "mirror_memory_used": scrape.cores.iter().map(|c| c.mirror_memory_used).sum::<u64>(),
        "mirror_memory_capacity":
            scrape.cores.iter().map(|c| c.mirror_memory_capacity).sum::<u64>(),
        "ledger": ledger(&ledger_sum),
    })
}

fn core(core: &CoreTotal) -> Value {
    let mut listeners = Map::new();
    for protocol in Protocol::ALL {
        let l = &core.listeners[protocol as usize];
        let value = json!({
            "accepted": l.accepted,
            "closed": l.closed,
            "refused": l.refused,
            "active": l.active,
            "client_bytes_in": l.client_bytes_in,
            "client_bytes_out": l.client_bytes_out,
            "primary_bytes_in": l.primary_bytes_in,
            "primary_bytes_out": l.primary_bytes_out,
        });
        listeners.insert(protocol.as_str().to_owned(), value);
    }
    json!({
        "core": core.core,
        "busy_ns": core.busy_ns,
        "idle_ns": core.idle_ns,
        "listeners": listeners,
        "ring": {
            "turns": core.ring_turns,
            "enters": core.ring_enters,
            "completions": core.ring_cqes,
            "submissions": core.ring_sqes,
            "submissions_max": core.ring_sqes_max,
            "completions_max": core.ring_cqes_max,
            "entries": core.ring_entries,
            "buffer_misses": core.ring_enobufs,
            "accept_errors": core.ring_accept_errors,
        },
        "session_panics": core.session_panics,
        "event_drops": core.event_drops,
        "slabs": {"used": core.slabs_used, "capacity": core.slabs_capacity},
        "mirror_memory": {
            "used": core.mirror_memory_used,
            "capacity": core.mirror_memory_capacity,
        },
    })
}

fn database(source: &SourceTotal) -> Value {
    json!({
        "name": source.name,
        "protocol": source.protocol.as_str(),
        "requests": source.requests,
        "errors": source.errors,
        "errors_total": source.errors_total(),
        "write_errors": source.write_errors,
        "read_errors": source.read_errors,
        "active_clients": source.active_clients,
        "latency": quantiles(&source.latency),
        "connections": {
            "open": source.connections_open,
            "idle": source.connections_idle,
            "reconnects": source.reconnects,
        },
        "commands": commands(&source.all_commands()),
    })
}

fn mirror(state: &ControlState, total: &MirrorTotal) -> Value {
    let mut kinds = Map::new();
    for kind in DivergenceKind::ALL {
        kinds.insert(kind.as_str().to_owned(), total.divergences_of(kind).into());
    }
    let verdict = state.judge(total);
    json!({
        "name": total.name,
        "source": total.source,
        "destination": total.destination,
        "protocol": total.protocol.as_str(),
        "role": if total.is_secondary { "secondary" } else { "mirror" },
        "exposure": total.exposure,
        "paused": total.paused,
        "verdict": verdict.verdict,
        "reasons": verdict.reasons,
        "rests_on": verdict.rests_on,
        "ledger": ledger(&total.ledger),
        "latency": {
            "primary": quantiles(&total.primary_latency),
            "mirror": quantiles(&total.latency),
            "queue_delay": quantiles(&total.queue_delay),
        },
        "compared": total.compared,
        "not_compared": total.not_compared,
        "divergences": kinds,
        "divergences_total": total.divergences_real(),
        "errors": total.errors,
        "errors_total": total.errors_total(),
        "queue": {
            "units": total.queued_units,
            "bytes": total.queued_bytes,
            "units_max_per_client": total.queue_units_max,
            "bytes_max_per_client": total.queue_bytes_max,
        },
        "connections": {
            "open": total.connections_open,
            "idle": total.connections_idle,
            "reconnects": total.reconnects,
            "waits": total.pool_waits,
        },
        "unit_timeouts": total.unit_timeouts,
        "shadow_read_errors": total.shadow_read_errors,
        "mode": mode(total.mode),
        "repair": {"tainted_keys": total.tainted_keys, "repaired_keys": total.repaired_keys},
        "pubsub": {
            "errors": total.pubsub_errors,
            "missing": total.pubsub_missing,
            "extra": total.pubsub_extra,
        },
        "commands": paired_commands(total),
    })
}

/// The mode that is in force, which may not be the one that was asked for: backends change places when both are equal.
fn mode(number: u64) -> Value {
    let at = usize::try_from(number).unwrap_or(usize::MAX);
    match at.checked_sub(1).and_then(|at| RedisMode::WORDS.get(at)) {
        Some(word) => (*word).into(),
        None if number == 0 => Value::Null,
        None => "changing".into(),
    }
}

fn ledger(ledger: &LedgerSnapshot) -> Value {
    let mut dropped = Map::new();
    for reason in DropReason::ALL {
        dropped.insert(
            reason.as_str().to_owned(),
            ledger.dropped_for(reason).into(),
        );
    }
    json!({
        "observed": ledger.observed,
        "excluded": ledger.excluded,
        "unexposed": ledger.unexposed,
        "offered": ledger.offered,
        "delivered": ledger.delivered,
        "errored": ledger.errored,
        "in_flight": ledger.in_flight(),
        "dropped": dropped,
        "dropped_total": ledger.dropped_total(),
    })
}

pub(super) fn quantiles(latency: &Latency) -> Value {
    let count = latency.histogram.len();
    json!({
        "count": count,
        "mean_ns": latency.sum_ns.checked_div(count).unwrap_or(0),
        "p50_ns": latency.quantile_ns(0.5),
        "p90_ns": latency.quantile_ns(0.9),
        "p99_ns": latency.quantile_ns(0.99),
        "p999_ns": latency.quantile_ns(0.999),
        "max_ns": latency.histogram.max(),
    })
}

fn commands(totals: &BTreeMap<&'static str, CommandTotal>) -> Value {
    let list = totals.iter();
    list.map(|(name, total)| ((*name).to_owned(), command(total)))
        .collect::<Map<_, _>>()
        .into()
}

/// The commands of a mirror, each with the primary's answers to the same ones.
fn paired_commands(total: &MirrorTotal) -> Value {
    let all = total.all_commands();
    let list = all.iter();
    list.map(|(name, mirror)| {
        let mut value = command(mirror);
        if let Some(primary) = total.primary_commands.get(name) {
            value["primary"] = command(primary);
        }
        ((*name).to_owned(), value)
    })
    .collect::<Map<_, _>>()
    .into()
}

fn command(total: &CommandTotal) -> Value {
    let mut kinds = Map::new();
    for kind in DivergenceKind::ALL {
        let count = total.divergences[kind as usize];
        if count > 0 {
            kinds.insert(kind.as_str().to_owned(), count.into());
        }
    }
    json!({
        "ok": total.ok,
        "errors": total.errors,
        "mean_ns": total.mean_ns(),
        "p50_ns": total.quantile_ns(0.5),
        "p99_ns": total.quantile_ns(0.99),
        "divergences": kinds,
    })
}
