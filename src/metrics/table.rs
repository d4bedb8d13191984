//! The one table of every metric: name, type, unit, labels, help and where its values come from.
//!
//! The names are an interface: dashboards and alerts of users hang on them. `tests/control_metrics.rs` holds the
//! exposed text and this table to each other.

use std::collections::BTreeMap;

use super::metric::{Kind, Metric, Scrape};
use super::{
    ByCommand, CommandTotal, CoreTotal, DivergenceKind, ListenerTotal, MirrorTotal, Protocol,
    SourceTotal, WriteFailure,
};
use crate::mirror::ledger::DropReason;

/// Every metric there is.
pub const TABLE: &[Metric] = &[
    Metric {
        name: "parhelion_build",
        kind: Kind::Info,
        unit: "",
        labels: &["version"],
        help: "The build.",
        collect: |s, out| out.int(&[s.version], 1),
    },
    Metric {
        name: "parhelion_start_time_seconds",
        kind: Kind::Gauge,
        unit: "seconds",
        labels: &[],
        help: "Start of the process, seconds since 1970.",
        collect: |s, out| out.float(&[], s.started_unix),
    },
    Metric {
        name: "parhelion_ready",
        kind: Kind::Gauge,
        unit: "",
        labels: &[],
        help: "1 once every core accepts, 0 before and while draining.",
        collect: |s, out| out.int(&[], u64::from(s.ready)),
    },
    Metric {
        name: "parhelion_process_resident_memory_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: &[],
        help: "Resident memory.",
        collect: |s, out| out.int(&[], s.process.resident_bytes),
    },
    Metric {
        name: "parhelion_process_virtual_memory_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: &[],
        help: "Virtual memory.",
        collect: |s, out| out.int(&[], s.process.virtual_bytes),
    },
    Metric {
        name: "parhelion_process_open_fds",
        kind: Kind::Gauge,
        unit: "",
        labels: &[],
        help: "Open file descriptors.",
        collect: |s, out| out.int(&[], s.process.open_fds),
    },
    Metric {
        name: "parhelion_process_max_fds",
        kind: Kind::Gauge,
        unit: "",
        labels: &[],
        help: "Limit on open file descriptors.",
        collect: |s, out| out.int(&[], s.process.max_fds),
    },
    Metric {
        name: "parhelion_process_threads",
        kind: Kind::Gauge,
        unit: "",
        labels: &[],
        help: "Threads.",
        collect: |s, out| out.int(&[], s.process.threads),
    },
    Metric {
        name: "parhelion_process_cpu_seconds",
        kind: Kind::Counter,
        unit: "seconds",
        labels: &[],
        help: "Processor time, user and system.",
        collect: |s, out| out.float(&[], s.process.cpu_seconds),
    },
    Metric {
        name: "parhelion_ring_turns",
        kind: Kind::Counter,
        unit: "",
        labels: &["core"],
        help: "Turns of a core's driver.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_turns)),
    },
    Metric {
        name: "parhelion_ring_enters",
        kind: Kind::Counter,
        unit: "",
        labels: &["core"],
        help: "io_uring_enter system calls.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_enters)),
    },
    Metric {
        name: "parhelion_ring_completions",
        kind: Kind::Counter,
        unit: "",
        labels: &["core"],
        help: "io_uring completions handled.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_cqes)),
    },
    Metric {
        name: "parhelion_ring_submissions",
        kind: Kind::Counter,
        unit: "",
        labels: &["core"],
        help: "io_uring submissions made.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_sqes)),
    },
    Metric {
        name: "parhelion_ring_entries",
        kind: Kind::Gauge,
        unit: "",
        labels: &["core"],
        help: "Length of a core's submission queue; what does not fit is submitted at once.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_entries)),
    },
    Metric {
        name: "parhelion_ring_submissions_max",
        kind: Kind::Gauge,
        unit: "",
        labels: &["core"],
        help: "Most submissions of one turn since the start: how deep the submission queue was.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_sqes_max)),
    },
    Metric {
        name: "parhelion_ring_completions_max",
        kind: Kind::Gauge,
        unit: "",
        labels: &["core"],
        help: "Most completions of one turn since the start: how deep the completion queue was.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_cqes_max)),
    },
    Metric {
        name: "parhelion_ring_buffer_misses",
        kind: Kind::Counter,
        unit: "",
        labels: &["core"],
        help: "Receives that ended because no receive buffer was free.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_enobufs)),
    },
    Metric {
        name: "parhelion_accept_errors",
        kind: Kind::Counter,
        unit: "",
        labels: &["core"],
        help: "Accepts that failed.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_accept_errors)),
    },
    Metric {
        name: "parhelion_core_busy_seconds",
        kind: Kind::Counter,
        unit: "seconds",
        labels: &["core"],
        help: "Time a core spent working.",
        collect: |s, out| per_core(s, |core, id| out.seconds(&[id], core.busy_ns)),
    },
    Metric {
        name: "parhelion_core_idle_seconds",
        kind: Kind::Counter,
        unit: "seconds",
        labels: &["core"],
        help: "Time a core waited in its ring.",
        collect: |s, out| per_core(s, |core, id| out.seconds(&[id], core.idle_ns)),
    },
    Metric {
        name: "parhelion_session_panics",
        kind: Kind::Counter,
        unit: "",
        labels: &["core"],
        help: "Sessions that ended in a panic; the core went on.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.session_panics)),
    },
    Metric {
        name: "parhelion_event_drops",
        kind: Kind::Counter,
        unit: "",
        labels: &["core"],
        help: "Events for the control thread dropped because its channel was full.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.event_drops)),
    },
    Metric {
        name: "parhelion_slabs_used",
        kind: Kind::Gauge,
        unit: "",
        labels: &["core"],
        help: "Receive buffers in use.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.slabs_used)),
    },
    Metric {
        name: "parhelion_slabs_capacity",
        kind: Kind::Gauge,
        unit: "",
        labels: &["core"],
        help: "Receive buffers there are.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.slabs_capacity)),
    },
    Metric {
        name: "parhelion_mirror_memory_used_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: &["core"],
        help: "Bytes that all mirror rings of a core hold.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.mirror_memory_used)),
    },
    Metric {
        name: "parhelion_mirror_memory_capacity_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: &["core"],
        help: "Bound on those bytes.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.mirror_memory_capacity)),
    },
    Metric {
        name: "parhelion_connections_accepted",
        kind: Kind::Counter,
        unit: "",
        labels: &["core", "protocol"],
        help: "Client connections accepted.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.accepted)),
    },
    Metric {
        name: "parhelion_connections_closed",
        kind: Kind::Counter,
        unit: "",
        labels: &["core", "protocol"],
        help: "Client connections closed.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.closed)),
    },
    Metric {
        name: "parhelion_connections_refused",
        kind: Kind::Counter,
        unit: "",
        labels: &["core", "protocol"],
        help: "Client connections turned away.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.refused)),
    },
    Metric {
        name: "parhelion_active_connections",
        kind: Kind::Gauge,
        unit: "",
        labels: &["core", "protocol"],
        help: "Client connections open.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.active)),
    },
    Metric {
        name: "parhelion_client_received_bytes",
        kind: Kind::Counter,
        unit: "bytes",
        labels: &["core", "protocol"],
        help: "Bytes received from clients.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.client_bytes_in)),
    },
    Metric {
        name: "parhelion_client_sent_bytes",
        kind: Kind::Counter,
        unit: "bytes",
        labels: &["core", "protocol"],
        help: "Bytes sent to clients.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.client_bytes_out)),
    },
    Metric {
        name: "parhelion_primary_received_bytes",
        kind: Kind::Counter,
        unit: "bytes",
        labels: &["core", "protocol"],
        help: "Bytes received from primaries.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.primary_bytes_in)),
    },
    Metric {
        name: "parhelion_primary_sent_bytes",
        kind: Kind::Counter,
        unit: "bytes",
        labels: &["core", "protocol"],
        help: "Bytes sent to primaries.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.primary_bytes_out)),
    },
    Metric {
        name: "parhelion_requests",
        kind: Kind::Counter,
        unit: "",
        labels: &["database", "protocol"],
        help: "Requests (Redis) or transactions (Postgres) completed.",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.requests)),
    },
    Metric {
        name: "parhelion_primary_errors",
        kind: Kind::Counter,
        unit: "",
        labels: &["database", "protocol", "class"],
        help: "Error replies of the primary, by SQLSTATE class or Redis error word.",
        collect: |s, out| {
            per_source(s, |t, [a, b]| {
                t.errors
                    .iter()
                    .for_each(|(class, n)| out.int(&[a, b, class], *n));
            })
        },
    },
    Metric {
        name: "parhelion_primary_latency_seconds",
        kind: Kind::Histogram,
        unit: "seconds",
        labels: &["database", "protocol"],
        help: "From a request sent to the primary to its complete reply.",
        collect: |s, out| per_source(s, |t, l| out.latency(&l, &t.latency)),
    },
    Metric {
        name: "parhelion_active_clients",
        kind: Kind::Gauge,
        unit: "",
        labels: &["database", "protocol"],
        help: "Clients of a source database.",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.active_clients)),
    },
    Metric {
        name: "parhelion_primary_write_errors",
        kind: Kind::Counter,
        unit: "",
        labels: &["database", "protocol"],
        help: "Writes that the primary refused or did not answer (Redis).",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.write_errors)),
    },
    Metric {
        name: "parhelion_primary_read_errors",
        kind: Kind::Counter,
        unit: "",
        labels: &["database", "protocol"],
        help: "Reads that the primary refused or did not answer (Redis).",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.read_errors)),
    },
    Metric {
        name: "parhelion_primary_connections_open",
        kind: Kind::Gauge,
        unit: "",
        labels: &["database", "protocol"],
        help: "Connections to the primary.",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.connections_open)),
    },
    Metric {
        name: "parhelion_primary_connections_idle",
        kind: Kind::Gauge,
        unit: "",
        labels: &["database", "protocol"],
        help: "Connections to the primary that wait for work.",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.connections_idle)),
    },
    Metric {
        name: "parhelion_primary_reconnects",
        kind: Kind::Counter,
        unit: "",
        labels: &["database", "protocol"],
        help: "Connections to the primary dialled again after a loss.",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.reconnects)),
    },
    Metric {
        name: "parhelion_mirror_observed",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Units that a mirror could have seen: excluded, unexposed and offered ones.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.observed)),
    },
    Metric {
        name: "parhelion_mirror_excluded",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Units that never go to a mirror: level, unfinished, not mirrored.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.excluded)),
    },
    Metric {
        name: "parhelion_mirror_unexposed",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Units left out by the draw against the exposure.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.unexposed)),
    },
    Metric {
        name: "parhelion_mirror_offered",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Units meant for a mirror: delivered, dropped, errored and in-flight ones.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.offered)),
    },
    Metric {
        name: "parhelion_mirror_delivered",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Units whose complete reply was read, even if it is an error.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.delivered)),
    },
    Metric {
        name: "parhelion_mirror_errored",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Units of which some bytes were sent and whose outcome is unknown.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.errored)),
    },
    Metric {
        name: "parhelion_mirror_dropped",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol", "reason"],
        help: "Units of which no byte was sent, by reason.",
        collect: |s, out| {
            per_mirror(s, |t, [a, b, c]| {
                for reason in DropReason::ALL {
                    out.int(&[a, b, c, reason.as_str()], t.ledger.dropped_for(reason));
                }
            })
        },
    },
    Metric {
        name: "parhelion_mirror_in_flight",
        kind: Kind::Gauge,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Units offered and not yet settled.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.in_flight())),
    },
    Metric {
        name: "parhelion_mirror_latency_seconds",
        kind: Kind::Histogram,
        unit: "seconds",
        labels: &["source", "mirror", "protocol"],
        help: "From a unit sent to the mirror to its complete reply.",
        collect: |s, out| per_mirror(s, |t, l| out.latency(&l, &t.latency)),
    },
    Metric {
        name: "parhelion_mirror_primary_latency_seconds",
        kind: Kind::Histogram,
        unit: "seconds",
        labels: &["source", "mirror", "protocol"],
        help: "The primary's latency for the units that a mirror received.",
        collect: |s, out| per_mirror(s, |t, l| out.latency(&l, &t.primary_latency)),
    },
    Metric {
        name: "parhelion_mirror_queue_delay_seconds",
        kind: Kind::Histogram,
        unit: "seconds",
        labels: &["source", "mirror", "protocol"],
        help: "From a unit sealed to its first byte sent.",
        collect: |s, out| per_mirror(s, |t, l| out.latency(&l, &t.queue_delay)),
    },
    Metric {
        name: "parhelion_mirror_compared",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Replies compared with the primary's.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.compared)),
    },
    Metric {
        name: "parhelion_mirror_not_compared",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Replies delivered and not compared.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.not_compared)),
    },
    Metric {
        name: "parhelion_mirror_divergences",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol", "kind"],
        help: "Replies that differ from the primary's, by kind.",
        collect: |s, out| {
            per_mirror(s, |t, [a, b, c]| {
                for kind in DivergenceKind::ALL {
                    out.int(&[a, b, c, kind.as_str()], t.divergences_of(kind));
                }
            })
        },
    },
    Metric {
        name: "parhelion_mirror_errors",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol", "class"],
        help: "Error replies of the mirror, by SQLSTATE class or Redis error word.",
        collect: |s, out| {
            per_mirror(s, |t, [a, b, c]| {
                t.errors
                    .iter()
                    .for_each(|(class, n)| out.int(&[a, b, c, class], *n));
            })
        },
    },
    Metric {
        name: "parhelion_mirror_exposure_ratio",
        kind: Kind::Gauge,
        unit: "ratio",
        labels: &["source", "mirror", "protocol"],
        help: "Share of units offered to the mirror.",
        collect: |s, out| per_mirror(s, |t, l| out.float(&l, t.exposure)),
    },
    Metric {
        name: "parhelion_mirror_paused",
        kind: Kind::Gauge,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "1 while the mirror is paused.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, u64::from(t.paused))),
    },
    Metric {
        name: "parhelion_mirror_queue_units",
        kind: Kind::Gauge,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Units queued for the mirror, all clients.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.queued_units)),
    },
    Metric {
        name: "parhelion_mirror_queue_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: &["source", "mirror", "protocol"],
        help: "Bytes queued for the mirror, all clients.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.queued_bytes)),
    },
    Metric {
        name: "parhelion_mirror_queue_capacity_units",
        kind: Kind::Gauge,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Units that one client's ring holds.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.queue_units_max)),
    },
    Metric {
        name: "parhelion_mirror_queue_capacity_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: &["source", "mirror", "protocol"],
        help: "Bytes that one client's ring holds.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.queue_bytes_max)),
    },
    Metric {
        name: "parhelion_mirror_connections_open",
        kind: Kind::Gauge,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Connections to the mirror.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.connections_open)),
    },
    Metric {
        name: "parhelion_mirror_connections_idle",
        kind: Kind::Gauge,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Connections to the mirror that wait for work.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.connections_idle)),
    },
    Metric {
        name: "parhelion_mirror_reconnects",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Connections to the mirror dialled again after a loss.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.reconnects)),
    },
    Metric {
        name: "parhelion_mirror_unit_timeouts",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Units ended by mirror_timeout.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.unit_timeouts)),
    },
    Metric {
        name: "parhelion_mirror_pool_waits",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Times that units waited because every connection was in use (Postgres).",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.pool_waits)),
    },
    Metric {
        name: "parhelion_shadow_read_errors",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Shadow reads that failed (Redis).",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.shadow_read_errors)),
    },
    Metric {
        name: "parhelion_tainted_keys",
        kind: Kind::Gauge,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Keys whose write was dropped and that wait for repair (Redis).",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.tainted_keys)),
    },
    Metric {
        name: "parhelion_repaired_keys",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Keys repaired from the primary (Redis).",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.repaired_keys)),
    },
    Metric {
        name: "parhelion_pubsub_shadow_errors",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol"],
        help: "Shadow subscriptions that failed (Redis).",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.pubsub_errors)),
    },
    Metric {
        name: "parhelion_pubsub_shadow_divergences",
        kind: Kind::Counter,
        unit: "",
        labels: &["source", "mirror", "protocol", "kind"],
        help: "Messages that only one side published, by kind (Redis).",
        collect: |s, out| {
            per_mirror(s, |t, [a, b, c]| {
                out.int(&[a, b, c, "data_mismatch"], t.pubsub_missing);
                out.int(&[a, b, c, "extra_data"], t.pubsub_extra);
            })
        },
    },
    Metric {
        name: "parhelion_command",
        kind: Kind::Counter,
        unit: "",
        labels: &["database", "backend", "command", "status"],
        help: "Commands by backend and outcome (Redis).",
        collect: |s, out| {
            per_command(s, |[a, b, c], t| {
                out.int(&[a, b, c, "ok"], t.ok);
                out.int(&[a, b, c, "error"], t.errors);
            });
        },
    },
    Metric {
        name: "parhelion_command_duration_seconds",
        kind: Kind::Histogram,
        unit: "seconds",
        labels: &["database", "backend", "command"],
        help: "Duration of commands by backend (Redis).",
        collect: |s, out| per_command(s, |labels, t| out.command(&labels, t)),
    },
    Metric {
        name: "parhelion_divergences",
        kind: Kind::Counter,
        unit: "",
        labels: &["database", "backend", "command", "kind"],
        help: "Divergences by command and kind (Redis); kinds that never happened are left out.",
        collect: |s, out| {
            per_command(s, |[a, b, c], t| {
                for kind in DivergenceKind::ALL {
                    match t.divergences[kind as usize] {
                        0 => {}
                        n => out.int(&[a, b, c, kind.as_str()], n),
                    }
                }
            });
        },
    },
    Metric {
        name: "parhelion_migration_gaps",
        kind: Kind::Counter,
        unit: "",
        labels: &["database", "backend", "command"],
        help: "Replies where the secondary has nothing and the primary has data (Redis); only where it happened.",
        collect: |s, out| {
            per_command(s, |labels, t| {
                match t.divergences[DivergenceKind::MigrationGap as usize] {
                    0 => {}
                    n => out.int(&labels, n),
                }
            });
        },
    },
    Metric {
        name: "parhelion_secondary_write_errors",
        kind: Kind::Counter,
        unit: "",
        labels: &["database", "backend", "command", "reason"],
        help: "Writes that a secondary refused, or that were lost or stuck on their way (Redis); only where it happened.",
        collect: |s, out| {
            per_command(s, |[a, b, c], t| {
                for why in WriteFailure::ALL {
                    match t.write_failures[why as usize] {
                        0 => {}
                        n => out.int(&[a, b, c, why.as_str()], n),
                    }
                }
            });
        },
    },
    Metric {
        name: "parhelion_async_drops",
        kind: Kind::Counter,
        unit: "",
        labels: &["database", "queue", "reason"],
        help: "Commands dropped from the queue of a secondary, by reason (Redis).",
        collect: |s, out| {
            per_mirror(s, |m, [source, queue, _]| {
                if m.protocol == Protocol::Redis {
                    for reason in DropReason::ALL {
                        let dropped = m.ledger.dropped[reason as usize];
                        out.int(&[source, queue, reason.as_str()], dropped);
                    }
                }
            });
        },
    },
];

fn per_core(scrape: &Scrape, mut each: impl FnMut(&CoreTotal, &str)) {
    for core in &scrape.cores {
        each(core, &core.core.to_string());
    }
}

fn per_listener(scrape: &Scrape, mut each: impl FnMut(&ListenerTotal, [&str; 2])) {
    for core in &scrape.cores {
        let id = core.core.to_string();
        for protocol in Protocol::ALL {
            each(&core.listeners[protocol as usize], [&id, protocol.as_str()]);
        }
    }
}

fn per_source(scrape: &Scrape, mut each: impl FnMut(&SourceTotal, [&str; 2])) {
    for source in &scrape.sources {
        each(source, [&source.name, source.protocol.as_str()]);
    }
}

fn per_mirror(scrape: &Scrape, mut each: impl FnMut(&MirrorTotal, [&str; 3])) {
    for mirror in &scrape.mirrors {
        let labels = [
            &*mirror.source,
            &*mirror.destination,
            mirror.protocol.as_str(),
        ];
        each(mirror, labels);
    }
}

/// The primary's commands under backend `primary`, each mirror's under its destination's name.
fn per_command(scrape: &Scrape, mut each: impl FnMut([&str; 3], &CommandTotal)) {
    // A secondary in front serves clients, and the primary behind it gets what is repeated.
    let mut sums: BTreeMap<[&str; 3], CommandTotal> = BTreeMap::new();
    for source in &scrape.sources {
        add(&mut sums, [&source.name, "primary"], &source.commands);
        let mut duals = scrape.mirrors.iter().filter(|mirror| mirror.is_secondary);
        if let Some(dual) = duals.find(|dual| dual.source == source.name) {
            let labels = [source.name.as_str(), dual.destination.as_str()];
            add(&mut sums, labels, &source.secondary_commands);
        }
    }
    for mirror in &scrape.mirrors {
        let labels = [mirror.source.as_str(), mirror.destination.as_str()];
        add(&mut sums, labels, &mirror.commands);
        add(&mut sums, [labels[0], "primary"], &mirror.following_primary);
    }
    for (labels, total) in &sums {
        each(*labels, total);
    }
}

fn add<'a>(
    sums: &mut BTreeMap<[&'a str; 3], CommandTotal>,
    [database, backend]: [&'a str; 2],
    commands: &'a ByCommand,
) {
    for (command, total) in commands {
        let sum = sums.entry([database, backend, command]).or_default();
        sum.merge(total);
    }
}
