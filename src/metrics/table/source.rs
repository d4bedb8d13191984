//! Source databases: what clients ask and primaries answer.

use super::super::SourceTotal;
use super::super::metric::{Kind, Metric, Scrape};

const SOURCE: &[&str] = &["database", "protocol"];

/// By source database.
pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "parhelion_requests",
        kind: Kind::Counter,
        unit: "",
        labels: SOURCE,
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
        labels: SOURCE,
        help: "From a request sent to the primary to its complete reply.",
        collect: |s, out| per_source(s, |t, l| out.latency(&l, &t.latency)),
    },
    Metric {
        name: "parhelion_active_clients",
        kind: Kind::Gauge,
        unit: "",
        labels: SOURCE,
        help: "Clients of a source database.",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.active_clients)),
    },
    Metric {
        name: "parhelion_primary_write_errors",
        kind: Kind::Counter,
        unit: "",
        labels: SOURCE,
        help: "Writes that the primary refused or did not answer (Redis).",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.write_errors)),
    },
    Metric {
        name: "parhelion_primary_read_errors",
        kind: Kind::Counter,
        unit: "",
        labels: SOURCE,
        help: "Reads that the primary refused or did not answer (Redis).",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.read_errors)),
    },
    Metric {
        name: "parhelion_primary_connections_open",
        kind: Kind::Gauge,
        unit: "",
        labels: SOURCE,
        help: "Connections to the primary.",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.connections_open)),
    },
    Metric {
        name: "parhelion_primary_connections_idle",
        kind: Kind::Gauge,
        unit: "",
        labels: SOURCE,
        help: "Connections to the primary that wait for work.",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.connections_idle)),
    },
    Metric {
        name: "parhelion_primary_reconnects",
        kind: Kind::Counter,
        unit: "",
        labels: SOURCE,
        help: "Connections to the primary dialled again after a loss.",
        collect: |s, out| per_source(s, |t, l| out.int(&l, t.reconnects)),
    },
];

fn per_source(scrape: &Scrape, mut each: impl FnMut(&SourceTotal, [&str; 2])) {
    for source in &scrape.sources {
        each(source, [&source.name, source.protocol.as_str()]);
    }
}
