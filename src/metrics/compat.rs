//! The names of the dual-write proxy that Redis users come from, under `compat_metrics`: their dashboards and
//! alerts go on. They know one primary and one secondary, so everything here is added up over all dual writes.

use std::collections::BTreeMap;

use super::encode::Samples;
use super::metric::{Kind, Metric, Scrape};
use super::{CommandTotal, DivergenceKind, MirrorTotal, Protocol, SourceTotal};

/// The metrics with the prefix `proxy_`.
pub const COMPAT_TABLE: &[Metric] = &[
    Metric::counter(
        "proxy_command",
        &["command", "backend", "status"],
        "Commands by backend and outcome.",
        |s, out| {
            for ((backend, command), total) in commands(s) {
                out.int(&[command, backend, "ok"], total.ok);
                out.int(&[command, backend, "error"], total.errors);
            }
        },
    ),
    Metric::histogram(
        "proxy_command_duration_seconds",
        &["command", "backend"],
        "Duration of commands by backend.",
        |s, out| {
            for ((backend, command), total) in commands(s) {
                out.command(&[command, backend], &total);
            }
        },
    )
    .in_units("seconds"),
    Metric::counter(
        "proxy_divergences",
        &["command", "kind"],
        "Divergences by command and kind.",
        |s, out| {
            for ((_, command), total) in commands(s) {
                for kind in DivergenceKind::ALL.iter().filter(|kind| kind.is_real()) {
                    out.int_if_any(&[command, kind.as_str()], total.divergences[*kind as usize]);
                }
            }
        },
    ),
    Metric::counter(
        "proxy_migration_gaps",
        &["command"],
        "Keys that only the primary has, by command.",
        |s, out| {
            for ((_, command), total) in commands(s) {
                out.int_if_any(
                    &[command],
                    total.divergences[DivergenceKind::MigrationGap as usize],
                );
            }
        },
    ),
    Metric::gauge(
        "proxy_active_connections",
        &[],
        "Client connections open.",
        |s, out| {
            let redis = s
                .cores
                .iter()
                .map(|c| c.listeners[Protocol::Redis as usize].active);
            out.int(&[], redis.sum());
        },
    ),
    Metric::counter(
        "proxy_pubsub_shadow_divergences",
        &["kind"],
        "Messages that only one side published, by kind.",
        |s, out| {
            out.int(&["data_mismatch"], mirrors(s, |m| m.pubsub_missing));
            out.int(&["extra_data"], mirrors(s, |m| m.pubsub_extra));
        },
    ),
    counter(
        "proxy_primary_write_errors",
        "Writes that the primary refused or did not answer.",
        |s, out| out.int(&[], sources(s, |t| t.write_errors)),
    ),
    counter(
        "proxy_primary_read_errors",
        "Reads that the primary refused or did not answer.",
        |s, out| out.int(&[], sources(s, |t| t.read_errors)),
    ),
    counter(
        "proxy_secondary_write_errors",
        "Writes that the secondary refused or whose outcome is unknown.",
        |s, out| out.int(&[], mirrors(s, write_failures)),
    ),
    counter(
        "proxy_shadow_read_errors",
        "Shadow reads that failed.",
        |s, out| out.int(&[], mirrors(s, |m| m.shadow_read_errors)),
    ),
    counter(
        "proxy_async_drops",
        "Commands dropped before they reached the secondary.",
        |s, out| out.int(&[], mirrors(s, |m| m.ledger.dropped_total())),
    ),
    counter(
        "proxy_pubsub_shadow_errors",
        "Shadow subscriptions that failed.",
        |s, out| out.int(&[], mirrors(s, |m| m.pubsub_errors)),
    ),
];

type Collect = fn(&Scrape, &mut Samples<'_>);

/// A counter without labels.
const fn counter(name: &'static str, help: &'static str, collect: Collect) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        unit: "",
        labels: &[],
        help,
        collect,
    }
}

fn sources(scrape: &Scrape, value: impl Fn(&SourceTotal) -> u64) -> u64 {
    let redis = scrape
        .sources
        .iter()
        .filter(|s| s.protocol == Protocol::Redis);
    redis.map(value).sum()
}

fn mirrors(scrape: &Scrape, value: impl Fn(&MirrorTotal) -> u64) -> u64 {
    let redis = scrape
        .mirrors
        .iter()
        .filter(|m| m.protocol == Protocol::Redis);
    redis.map(value).sum()
}

fn write_failures(mirror: &MirrorTotal) -> u64 {
    let all = mirror.commands.values();
    let all = all.chain(mirror.following_primary.values());
    all.flat_map(|command| command.write_failures).sum()
}

/// By backend and command.
fn commands(scrape: &Scrape) -> BTreeMap<(&'static str, &'static str), CommandTotal> {
    let mut sums: BTreeMap<_, CommandTotal> = BTreeMap::new();
    let (sources, mirrors) = (&scrape.sources, &scrape.mirrors);
    let primary = sources.iter().map(|s| ("primary", &s.commands));
    let in_front = sources.iter().map(|s| ("secondary", &s.secondary_commands));
    let secondary = mirrors.iter().map(|m| ("secondary", &m.commands));
    let behind = mirrors.iter().map(|m| ("primary", &m.following_primary));
    for (backend, totals) in primary.chain(in_front).chain(secondary).chain(behind) {
        for (command, total) in totals {
            sums.entry((backend, *command)).or_default().merge(total);
        }
    }
    sums
}
