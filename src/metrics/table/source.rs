//! Source databases: what clients ask and primaries answer.

use super::super::SourceTotal;
use super::super::metric::{Metric, Scrape};

const SOURCE: &[&str] = &["database", "protocol"];

/// By source database.
pub(super) const METRICS: &[Metric] = &[
    Metric::counter(
        "parhelion_requests",
        SOURCE,
        "Requests (Redis) or transactions (Postgres) completed.",
        |s, out| per_source(s, |t, l| out.int(&l, t.requests)),
    ),
    Metric::counter(
        "parhelion_primary_errors",
        &["database", "protocol", "class"],
        "Error replies of the primary, by SQLSTATE class or Redis error word.",
        |s, out| {
            per_source(s, |t, [a, b]| {
                t.errors
                    .iter()
                    .for_each(|(class, n)| out.int(&[a, b, class], *n));
            })
        },
    ),
    Metric::histogram(
        "parhelion_primary_latency_seconds",
        SOURCE,
        "From a request sent to the primary to its complete reply.",
        |s, out| per_source(s, |t, l| out.latency(&l, &t.latency)),
    ),
    Metric::gauge(
        "parhelion_active_clients",
        SOURCE,
        "Clients of a source database.",
        |s, out| per_source(s, |t, l| out.int(&l, t.active_clients)),
    ),
    Metric::counter(
        "parhelion_primary_write_errors",
        SOURCE,
        "Writes that the primary refused or did not answer (Redis).",
        |s, out| per_source(s, |t, l| out.int(&l, t.write_errors)),
    ),
    Metric::counter(
        "parhelion_primary_read_errors",
        SOURCE,
        "Reads that the primary refused or did not answer (Redis).",
        |s, out| per_source(s, |t, l| out.int(&l, t.read_errors)),
    ),
    Metric::gauge(
        "parhelion_primary_connections_open",
        SOURCE,
        "Connections to the primary.",
        |s, out| per_source(s, |t, l| out.int(&l, t.connections_open)),
    ),
    Metric::gauge(
        "parhelion_primary_connections_idle",
        SOURCE,
        "Connections to the primary that wait for work.",
        |s, out| per_source(s, |t, l| out.int(&l, t.connections_idle)),
    ),
    Metric::counter(
        "parhelion_primary_reconnects",
        SOURCE,
        "Connections to the primary dialled again after a loss.",
        |s, out| per_source(s, |t, l| out.int(&l, t.reconnects)),
    ),
];

fn per_source(scrape: &Scrape, mut each: impl FnMut(&SourceTotal, [&str; 2])) {
    for source in &scrape.sources {
        each(source, [&source.name, source.protocol.as_str()]);
    }
}
