//! Mirrors and secondaries: ledger, latency, queue, comparison.

use super::super::metric::{Metric, Scrape};
use super::super::{DivergenceKind, MirrorTotal};
use crate::mirror::ledger::DropReason;

const MIRROR: &[&str] = &["source", "mirror", "protocol"];

/// By mirror.
pub(super) const METRICS: &[Metric] = &[
    Metric::counter(
        "parhelion_mirror_observed",
        MIRROR,
        "Units that a mirror could have seen: excluded, unexposed and offered ones.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.observed)),
    ),
    Metric::counter(
        "parhelion_mirror_excluded",
        MIRROR,
        "Units that never go to a mirror: level, unfinished, not mirrored.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.excluded)),
    ),
    Metric::counter(
        "parhelion_mirror_unexposed",
        MIRROR,
        "Units left out by the draw against the exposure.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.unexposed)),
    ),
    Metric::counter(
        "parhelion_mirror_offered",
        MIRROR,
        "Units meant for a mirror: delivered, dropped, errored and in-flight ones.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.offered)),
    ),
    Metric::counter(
        "parhelion_mirror_delivered",
        MIRROR,
        "Units whose complete reply was read, even if it is an error.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.delivered)),
    ),
    Metric::counter(
        "parhelion_mirror_errored",
        MIRROR,
        "Units of which some bytes were sent and whose outcome is unknown.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.errored)),
    ),
    Metric::counter(
        "parhelion_mirror_dropped",
        &["source", "mirror", "protocol", "reason"],
        "Units of which no byte was sent, by reason.",
        |s, out| {
            per_mirror(s, |t, [a, b, c]| {
                for reason in DropReason::ALL {
                    out.int(&[a, b, c, reason.as_str()], t.ledger.dropped_for(reason));
                }
            })
        },
    ),
    Metric::gauge(
        "parhelion_mirror_in_flight",
        MIRROR,
        "Units offered and not yet settled.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.ledger.in_flight())),
    ),
    Metric::histogram(
        "parhelion_mirror_latency_seconds",
        MIRROR,
        "From a unit sent to the mirror to its complete reply.",
        |s, out| per_mirror(s, |t, l| out.latency(&l, &t.latency)),
    ),
    Metric::histogram(
        "parhelion_mirror_primary_latency_seconds",
        MIRROR,
        "The primary's latency for the units that a mirror received.",
        |s, out| per_mirror(s, |t, l| out.latency(&l, &t.primary_latency)),
    ),
    Metric::histogram(
        "parhelion_mirror_queue_delay_seconds",
        MIRROR,
        "From a unit sealed to its first byte sent.",
        |s, out| per_mirror(s, |t, l| out.latency(&l, &t.queue_delay)),
    ),
    Metric::counter(
        "parhelion_mirror_compared",
        MIRROR,
        "Replies compared with the primary's.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.compared)),
    ),
    Metric::counter(
        "parhelion_mirror_not_compared",
        MIRROR,
        "Replies delivered and not compared.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.not_compared)),
    ),
    Metric::counter(
        "parhelion_mirror_divergences",
        &["source", "mirror", "protocol", "kind"],
        "Replies that differ from the primary's, by kind.",
        |s, out| {
            per_mirror(s, |t, [a, b, c]| {
                for kind in DivergenceKind::ALL {
                    out.int(&[a, b, c, kind.as_str()], t.divergences_of(kind));
                }
            })
        },
    ),
    Metric::counter(
        "parhelion_mirror_errors",
        &["source", "mirror", "protocol", "class"],
        "Error replies of the mirror, by SQLSTATE class or Redis error word.",
        |s, out| {
            per_mirror(s, |t, [a, b, c]| {
                t.errors
                    .iter()
                    .for_each(|(class, n)| out.int(&[a, b, c, class], *n));
            })
        },
    ),
    Metric::gauge(
        "parhelion_mirror_exposure_ratio",
        MIRROR,
        "Share of units offered to the mirror.",
        |s, out| per_mirror(s, |t, l| out.float(&l, t.exposure)),
    )
    .in_units("ratio"),
    Metric::gauge(
        "parhelion_mirror_paused",
        MIRROR,
        "1 while the mirror is paused.",
        |s, out| per_mirror(s, |t, l| out.int(&l, u64::from(t.paused))),
    ),
    Metric::gauge(
        "parhelion_mirror_queue_units",
        MIRROR,
        "Units queued for the mirror, all clients.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.queued_units)),
    ),
    Metric::gauge(
        "parhelion_mirror_queue_bytes",
        MIRROR,
        "Bytes queued for the mirror, all clients.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.queued_bytes)),
    )
    .in_units("bytes"),
    Metric::gauge(
        "parhelion_mirror_queue_capacity_units",
        MIRROR,
        "Units that one client's ring holds.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.queue_units_max)),
    ),
    Metric::gauge(
        "parhelion_mirror_queue_capacity_bytes",
        MIRROR,
        "Bytes that one client's ring holds.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.queue_bytes_max)),
    )
    .in_units("bytes"),
    Metric::gauge(
        "parhelion_mirror_connections_open",
        MIRROR,
        "Connections to the mirror.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.connections_open)),
    ),
    Metric::gauge(
        "parhelion_mirror_connections_idle",
        MIRROR,
        "Connections to the mirror that wait for work.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.connections_idle)),
    ),
    Metric::counter(
        "parhelion_mirror_reconnects",
        MIRROR,
        "Connections to the mirror dialled again after a loss.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.reconnects)),
    ),
    Metric::counter(
        "parhelion_mirror_unit_timeouts",
        MIRROR,
        "Units ended by mirror_timeout.",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.unit_timeouts)),
    ),
    Metric::counter(
        "parhelion_mirror_pool_waits",
        MIRROR,
        "Times that units waited because every connection was in use (Postgres).",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.pool_waits)),
    ),
    Metric::counter(
        "parhelion_shadow_read_errors",
        MIRROR,
        "Shadow reads that failed (Redis).",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.shadow_read_errors)),
    ),
    Metric::gauge(
        "parhelion_tainted_keys",
        MIRROR,
        "Keys whose write was dropped and that wait for repair (Redis).",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.tainted_keys)),
    ),
    Metric::counter(
        "parhelion_repaired_keys",
        MIRROR,
        "Keys repaired from the primary (Redis).",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.repaired_keys)),
    ),
    Metric::counter(
        "parhelion_pubsub_shadow_errors",
        MIRROR,
        "Shadow subscriptions that failed (Redis).",
        |s, out| per_mirror(s, |t, l| out.int(&l, t.pubsub_errors)),
    ),
    Metric::counter(
        "parhelion_pubsub_shadow_divergences",
        &["source", "mirror", "protocol", "kind"],
        "Messages that only one side published, by kind (Redis).",
        |s, out| {
            per_mirror(s, |t, [a, b, c]| {
                out.int(&[a, b, c, "data_mismatch"], t.pubsub_missing);
                out.int(&[a, b, c, "extra_data"], t.pubsub_extra);
            })
        },
    ),
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
