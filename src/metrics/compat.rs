//! The names of the dual-write proxy that Redis users come from, under `compat_metrics`: their dashboards and
//! alerts go on. They know one primary and one secondary, so everything here is added up over all dual writes.

use std::collections::BTreeMap;

use super::encode::Samples;
use super::metric::{Kind, Metric, Scrape};
use super::{CommandTotal, DivergenceKind, MirrorTotal, Protocol, SourceTotal};

/// The metrics with the prefix `proxy_`.
pub const COMPAT_TABLE: &[Metric] = &[
    Metric {
        name: "proxy_command",
        kind: Kind::Counter,
        unit: "",
        labels: &["command", "backend", "status"],
        help: "Commands by backend and outcome.",
        collect: |s, out| {
            for ((backend, command), total) in commands(s) {
                out.int(&[command, backend, "ok"], total.ok);
                out.int(&[command, backend, "error"], total.errors);
            }
        },
    },
    Metric {
        name: "proxy_command_duration_seconds",
        kind: Kind::Histogram,
        unit: "seconds",
        labels: &["command", "backend"],
        help: "Duration of commands by backend.",
        collect: |s, out| {
            for ((backend, command), total) in commands(s) {
                out.command(&[command, backend], &total);
            }
        },
    },
    Metric {
        name: "proxy_divergences",
        kind: Kind::Counter,
        unit: "",
        labels: &["command", "kind"],
        help: "Divergences by command and kind.",
        collect: |s, out| {
            for ((_, command), total) in commands(s) {
                for kind in DivergenceKind::ALL.iter().filter(|kind| kind.is_real()) {
                    match total.divergences[*kind as usize] {
                        0 => {}
                        n => out.int(&[command, kind.as_str()], n),
                    }
                }
            }
        },
    },
    Metric {
        name: "proxy_migration_gaps",
        kind: Kind::Counter,
        unit: "",
        labels: &["command"],
        help: "Keys that only the primary has, by command.",
        collect: |s, out| {
            for ((_, command), total) in commands(s) {
                match total.divergences[DivergenceKind::MigrationGap as usize] {
                    0 => {}
                    n => out.int(&[command], n),
                }
            }
        },
    },
    Metric {
        name: "proxy_active_connections",
        kind: Kind::Gauge,
        unit: "",
        labels: &[],
        help: "Client connections open.",
        collect: |s, out| {
            let redis = s
                .cores
                .iter()
                .map(|c| c.listeners[Protocol::Redis as usize].active);
            out.int(&[], redis.sum());
        },
    },
    Metric {
        name: "proxy_pubsub_shadow_divergences",
        kind: Kind::Counter,
        unit: "",
        labels: &["kind"],
        help: "Messages that only one side published, by kind.",
        collect: |s, out| {
            out.int(&["data_mismatch"], mirrors(s, |m| m.pubsub_missing));
            out.int(&["extra_data"], mirrors(s, |m| m.pubsub_extra));
        },
    },
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
