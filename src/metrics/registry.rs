//! Finds every core's counters again. Locked at start, at reload and when read; never by a core at work.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::query::QueryTotal;
use super::totals::{CoreTotal, MirrorTotal, SourceTotal};
use super::{CoreMetrics, MirrorMetrics, MirrorSettings, Protocol, SourceMetrics};

/// All counters of the process.
#[derive(Debug)]
pub struct Registry {
    cores: Vec<Arc<CoreMetrics>>,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    /// By name; the metrics by core index.
    sources: BTreeMap<Box<str>, Vec<(usize, Arc<SourceMetrics>)>>,
    mirrors: BTreeMap<(Box<str>, Box<str>), MirrorEntry>,
}

#[derive(Debug, Default)]
struct MirrorEntry {
    settings: Arc<MirrorSettings>,
    cores: Vec<(usize, Arc<MirrorMetrics>)>,
}

impl Registry {
    /// A registry for the cores with these CPU ids.
    pub fn new(cores: Vec<usize>) -> Self {
        Self {
            cores: cores
                .into_iter()
                .map(|id| Arc::new(CoreMetrics::new(id)))
                .collect(),
            tables: Mutex::default(),
        }
    }

    /// The counters of the `index`-th core (not its CPU id).
    ///
    /// # Panics
    /// If there are fewer cores: the caller starts exactly the cores that it gave to [`Registry::new`].
    pub fn core(&self, index: usize) -> Arc<CoreMetrics> {
        Arc::clone(&self.cores[index])
    }

    /// All cores, in the order of [`Registry::new`].
    pub fn cores(&self) -> &[Arc<CoreMetrics>] {
        &self.cores
    }

    /// The counters of a source database on the `core`-th core; made on first use, kept over reloads.
    pub fn source(&self, core: usize, name: &str, protocol: Protocol) -> Arc<SourceMetrics> {
        let mut tables = self.lock();
        let cores = tables.sources.entry(name.into()).or_default();
        get_or_push(cores, core, || SourceMetrics::new(name, protocol))
    }

    /// The counters of a mirror on the `core`-th core; made on first use, kept over reloads.
    pub fn mirror(
        &self,
        core: usize,
        source: &str,
        destination: &str,
        protocol: Protocol,
    ) -> Arc<MirrorMetrics> {
        let mut tables = self.lock();
        let key = (source.into(), destination.into());
        let entry = tables.mirrors.entry(key).or_default();
        let settings = &entry.settings;
        get_or_push(&mut entry.cores, core, || {
            MirrorMetrics::new(source, destination, protocol, Arc::clone(settings))
        })
    }

    /// What is in force for a mirror on all cores; made on first use.
    pub fn mirror_settings(&self, source: &str, destination: &str) -> Arc<MirrorSettings> {
        let mut tables = self.lock();
        let key = (source.into(), destination.into());
        Arc::clone(&tables.mirrors.entry(key).or_default().settings)
    }

    /// The mirror that a command names, as (source, destination). A mirror's name is its destination's, or
    /// `source:destination`, which is needed where two sources share a destination.
    pub fn resolve_mirror(&self, name: &str) -> Option<(String, String)> {
        let tables = self.lock();
        let mut found = None;
        for (source, destination) in tables.mirrors.keys() {
            if name
                .strip_prefix(&**source)
                .and_then(|rest| rest.strip_prefix(':'))
                == Some(&**destination)
            {
                return Some((source.to_string(), destination.to_string()));
            }
            if **destination == *name {
                if found.is_some() {
                    return None;
                }
                found = Some((source.to_string(), destination.to_string()));
            }
        }
        found
    }

    /// Every core's own numbers.
    pub fn core_totals(&self) -> Vec<CoreTotal> {
        self.cores.iter().map(|core| CoreTotal::of(core)).collect()
    }

    /// Every source database, added up over the cores, by name. A mirror's destination is one once a client has used
    /// it as such.
    pub fn sources(&self) -> Vec<SourceTotal> {
        let entries: Vec<_> = {
            let tables = self.lock();
            let is_destination = |name: &str| tables.mirrors.keys().any(|(_, to)| **to == *name);
            let sources = tables.sources.iter().filter(|(name, cores)| {
                !is_destination(name) || cores.iter().any(|(_, metrics)| metrics.is_used())
            });
            sources.map(|(_, cores)| cores.clone()).collect()
        };
        entries
            .iter()
            .map(|cores| SourceTotal::merge(cores.iter().map(|(_, m)| &**m)))
            .collect()
    }

    /// Every mirror, added up over the cores, by source and destination.
    pub fn mirrors(&self) -> Vec<MirrorTotal> {
        let entries: Vec<Vec<_>> = {
            let tables = self.lock();
            let started = tables.mirrors.values().filter(|e| !e.cores.is_empty());
            started.map(|e| e.cores.clone()).collect()
        };
        let mut totals: Vec<MirrorTotal> = entries
            .iter()
            .map(|cores| MirrorTotal::merge(cores.iter().map(|(_, m)| &**m)))
            .collect();
        name_mirrors(&mut totals);
        totals
    }

    /// Every query fingerprint of every mirror, added up over the cores. Not part of a scrape: it is made when asked for.
    pub fn queries(&self) -> Vec<QueryTotal> {
        let entries: Vec<_> = self
            .lock()
            .mirrors
            .values()
            .map(|e| e.cores.clone())
            .collect();
        let mut out = Vec::new();
        for cores in entries {
            let mut totals: BTreeMap<u64, QueryTotal> = BTreeMap::new();
            for (_, core) in &cores {
                core.queries.for_each(|slot, query| {
                    let fingerprint = if slot.is_some() { query.fingerprint } else { 0 };
                    let total = totals.entry(fingerprint).or_insert_with(|| QueryTotal {
                        source: core.source.to_string(),
                        destination: core.destination.to_string(),
                        fingerprint,
                        text: query.text.to_string(),
                        ..QueryTotal::default()
                    });
                    total.add(query);
                });
            }
            out.extend(totals.into_values());
        }
        out
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        // The tables are whole after every statement that changes them: a panic elsewhere does not spoil them.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn get_or_push<T>(
    cores: &mut Vec<(usize, Arc<T>)>,
    core: usize,
    make: impl FnOnce() -> T,
) -> Arc<T> {
    if let Some((_, found)) = cores.iter().find(|(index, _)| *index == core) {
        return Arc::clone(found);
    }
    let made = Arc::new(make());
    cores.push((core, Arc::clone(&made)));
    made
}

/// Gives every mirror the shortest name that [`Registry::resolve_mirror`] understands.
fn name_mirrors(totals: &mut [MirrorTotal]) {
    let mut uses = BTreeMap::new();
    for total in totals.iter() {
        *uses.entry(total.destination.clone()).or_insert(0) += 1;
    }
    for total in totals.iter_mut() {
        if uses.get(&total.destination) == Some(&1) {
            total.name = total.destination.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::ledger::Fate;

    #[test]
    fn the_same_counters_come_back_after_a_reload() {
        let registry = Registry::new(vec![0, 3]);
        registry
            .source(1, "prod", Protocol::Postgres)
            .requests
            .add(5);
        registry
            .source(1, "prod", Protocol::Postgres)
            .requests
            .add(1);
        registry
            .source(0, "prod", Protocol::Postgres)
            .requests
            .add(1);
        for core in [0, 1, 1] {
            let mirror = registry.mirror(core, "prod", "next", Protocol::Postgres);
            mirror.ledger.offer();
            mirror.ledger.settle(Fate::Delivered);
        }
        assert_eq!(registry.sources()[0].requests, 7);
        assert_eq!(registry.mirrors()[0].ledger.delivered, 3);
        assert_eq!(registry.core(1).core, 3);
    }

    #[test]
    fn a_mirror_is_named_by_its_destination_where_that_is_unique() {
        let registry = Registry::new(vec![0]);
        for (source, destination) in [("a", "x"), ("b", "x"), ("b", "y")] {
            registry.mirror(0, source, destination, Protocol::Redis);
        }
        let names: Vec<_> = registry.mirrors().into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["a:x", "b:x", "y"]);
        let pair = |s: &str, d: &str| Some((s.to_owned(), d.to_owned()));
        assert_eq!(registry.resolve_mirror("x"), None);
        assert_eq!(registry.resolve_mirror("b:x"), pair("b", "x"));
        assert_eq!(registry.resolve_mirror("y"), pair("b", "y"));
        assert_eq!(registry.resolve_mirror("z"), None);
    }
}
