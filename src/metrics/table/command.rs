//! Redis numbers by command, under the names that its users know.

use std::collections::BTreeMap;

use super::super::metric::{Metric, Scrape};
use super::super::{ByCommand, CommandTotal, DivergenceKind, Protocol, WriteFailure};
use super::mirror::per_mirror;
use crate::mirror::ledger::DropReason;

/// By Redis command and backend.
pub(super) const METRICS: &[Metric] = &[
    Metric::counter(
        "parhelion_command",
        &["database", "backend", "command", "status"],
        "Commands by backend and outcome (Redis).",
        |s, out| {
            per_command(s, |[a, b, c], t| {
                out.int(&[a, b, c, "ok"], t.ok);
                out.int(&[a, b, c, "error"], t.errors);
            });
        },
    ),
    Metric::histogram(
        "parhelion_command_duration_seconds",
        &["database", "backend", "command"],
        "Duration of commands by backend (Redis).",
        |s, out| per_command(s, |labels, t| out.command(&labels, t)),
    ),
    Metric::counter(
        "parhelion_divergences",
        &["database", "backend", "command", "kind"],
        "Divergences by command and kind (Redis); kinds that never happened are left out.",
        |s, out| {
            per_command(s, |[a, b, c], t| {
                for kind in DivergenceKind::ALL {
                    out.int_if_any(&[a, b, c, kind.as_str()], t.divergences[kind as usize]);
                }
            });
        },
    ),
    Metric::counter(
        "parhelion_migration_gaps",
        &["database", "backend", "command"],
        "Replies where the secondary has nothing and the primary has data (Redis); only where it happened.",
        |s, out| {
            per_command(s, |labels, t| {
                out.int_if_any(
                    &labels,
                    t.divergences[DivergenceKind::MigrationGap as usize],
                );
            });
        },
    ),
    Metric::counter(
        "parhelion_secondary_write_errors",
        &["database", "backend", "command", "reason"],
        "Writes that a secondary refused, or that were lost or stuck on their way (Redis); only where it happened.",
        |s, out| {
            per_command(s, |[a, b, c], t| {
                for why in WriteFailure::ALL {
                    out.int_if_any(&[a, b, c, why.as_str()], t.write_failures[why as usize]);
                }
            });
        },
    ),
    Metric::counter(
        "parhelion_async_drops",
        &["database", "queue", "reason"],
        "Commands dropped from the queue of a secondary, by reason (Redis).",
        |s, out| {
            per_mirror(s, |m, [source, queue, _]| {
                if m.protocol == Protocol::Redis {
                    for reason in DropReason::ALL {
                        let dropped = m.ledger.dropped[reason as usize];
                        out.int(&[source, queue, reason.as_str()], dropped);
                    }
                }
            });
        },
    ),
];

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
