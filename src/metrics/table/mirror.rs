//! Mirrors and secondaries: ledger, latency, queue, comparison.

use super::super::metric::{Kind, Metric, Scrape};
use super::super::{DivergenceKind, MirrorTotal};
use crate::mirror::ledger::DropReason;

const MIRROR: &[&str] = &["source", "mirror", "protocol"];

/// By mirror.
pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "parhelion_mirror_observed",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Units that a mirror could have seen: excluded, unexposed and offered ones.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.observed)),
    },
    Metric {
        name: "parhelion_mirror_excluded",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Units that never go to a mirror: level, unfinished, not mirrored.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.excluded)),
    },
    Metric {
        name: "parhelion_mirror_unexposed",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Units left out by the draw against the exposure.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.unexposed)),
    },
    Metric {
        name: "parhelion_mirror_offered",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Units meant for a mirror: delivered, dropped, errored and in-flight ones.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.offered)),
    },
    Metric {
        name: "parhelion_mirror_delivered",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Units whose complete reply was read, even if it is an error.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.delivered)),
    },
    Metric {
        name: "parhelion_mirror_errored",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
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
        labels: MIRROR,
        help: "Units offered and not yet settled.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.in_flight())),
    },
    Metric {
        name: "parhelion_mirror_latency_seconds",
        kind: Kind::Histogram,
        unit: "seconds",
        labels: MIRROR,
        help: "From a unit sent to the mirror to its complete reply.",
        collect: |s, out| per_mirror(s, |t, l| out.latency(&l, &t.latency)),
    },
    Metric {
        name: "parhelion_mirror_primary_latency_seconds",
        kind: Kind::Histogram,
        unit: "seconds",
        labels: MIRROR,
        help: "The primary's latency for the units that a mirror received.",
        collect: |s, out| per_mirror(s, |t, l| out.latency(&l, &t.primary_latency)),
    },
    Metric {
        name: "parhelion_mirror_queue_delay_seconds",
        kind: Kind::Histogram,
        unit: "seconds",
        labels: MIRROR,
        help: "From a unit sealed to its first byte sent.",
        collect: |s, out| per_mirror(s, |t, l| out.latency(&l, &t.queue_delay)),
    },
    Metric {
        name: "parhelion_mirror_compared",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Replies compared with the primary's.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.compared)),
    },
    Metric {
        name: "parhelion_mirror_not_compared",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
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
        labels: MIRROR,
        help: "Share of units offered to the mirror.",
        collect: |s, out| per_mirror(s, |t, l| out.float(&l, t.exposure)),
    },
    Metric {
        name: "parhelion_mirror_paused",
        kind: Kind::Gauge,
        unit: "",
        labels: MIRROR,
        help: "1 while the mirror is paused.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, u64::from(t.paused))),
    },
    Metric {
        name: "parhelion_mirror_queue_units",
        kind: Kind::Gauge,
        unit: "",
        labels: MIRROR,
        help: "Units queued for the mirror, all clients.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.queued_units)),
    },
    Metric {
        name: "parhelion_mirror_queue_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: MIRROR,
        help: "Bytes queued for the mirror, all clients.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.queued_bytes)),
    },
    Metric {
        name: "parhelion_mirror_queue_capacity_units",
        kind: Kind::Gauge,
        unit: "",
        labels: MIRROR,
        help: "Units that one client's ring holds.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.queue_units_max)),
    },
    Metric {
        name: "parhelion_mirror_queue_capacity_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: MIRROR,
        help: "Bytes that one client's ring holds.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.queue_bytes_max)),
    },
    Metric {
        name: "parhelion_mirror_connections_open",
        kind: Kind::Gauge,
        unit: "",
        labels: MIRROR,
        help: "Connections to the mirror.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.connections_open)),
    },
    Metric {
        name: "parhelion_mirror_connections_idle",
        kind: Kind::Gauge,
        unit: "",
        labels: MIRROR,
        help: "Connections to the mirror that wait for work.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.connections_idle)),
    },
    Metric {
        name: "parhelion_mirror_reconnects",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Connections to the mirror dialled again after a loss.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.reconnects)),
    },
    Metric {
        name: "parhelion_mirror_unit_timeouts",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Units ended by mirror_timeout.",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.unit_timeouts)),
    },
    Metric {
        name: "parhelion_mirror_pool_waits",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Times that units waited because every connection was in use (Postgres).",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.pool_waits)),
    },
    Metric {
        name: "parhelion_shadow_read_errors",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Shadow reads that failed (Redis).",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.shadow_read_errors)),
    },
    Metric {
        name: "parhelion_tainted_keys",
        kind: Kind::Gauge,
        unit: "",
        labels: MIRROR,
        help: "Keys whose write was dropped and that wait for repair (Redis).",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.tainted_keys)),
    },
    Metric {
        name: "parhelion_repaired_keys",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
        help: "Keys repaired from the primary (Redis).",
        collect: |s, out| per_mirror(s, |t, l| out.int(&l, t.repaired_keys)),
    },
    Metric {
        name: "parhelion_pubsub_shadow_errors",
        kind: Kind::Counter,
        unit: "",
        labels: MIRROR,
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
];

pub(super) fn per_mirror(scrape: &Scrape, mut each: impl FnMut(&MirrorTotal, [&str; 3])) {
    for mirror in &scrape.mirrors {
        let labels = [
            &*mirror.source,
            &*mirror.destination,
            mirror.protocol.as_str(),
        ];
        each(mirror, labels);
    }
}
