//! The sources and mirrors of a config: what is new is made, what is as it was goes on, what has left is retired.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::{Services, metric_protocol};
use crate::config::{Config, Database, Protocol};
use crate::metrics;
use crate::mirror::unit::{Outcome, UnitPool};
use crate::proxy::mirrors::{Mirror, MirrorGroup};
use crate::proxy::{Context, postgres, redis};

/// The mirrors of one protocol.
type Mirrors<O> = Vec<Rc<Mirror<O>>>;

/// The mirror groups that open sessions hold, by source.
type Groups<O> = HashMap<String, Rc<MirrorGroup<O>>>;
impl Services {
    /// Takes a new config into force: for new connections whole, for mirrors that stay their settings.
    pub fn reconfigure(&self, config: &Arc<Config>) {
        *self.context.config.borrow_mut() = config.clone();
        self.context.budget.set_limit(config.general.mirror_memory);
        let groups = |source: &postgres::SharedSource| {
            (source.database.name.clone(), source.mirrors.clone())
        };
        let groups = self.postgres.borrow().values().map(groups).collect();
        let postgres = self.remake(
            config,
            Protocol::Postgres,
            (&self.postgres_mirrors, groups),
            postgres::start_workers,
            |index, mirrors, metrics| {
                let database = Arc::new(config.databases[index].clone());
                Rc::new(postgres::Source {
                    pools: self.pools(&database),
                    database,
                    mirrors,
                    metrics,
                })
            },
        );
        *self.postgres.borrow_mut() = postgres;
        let duals = self.remake_duals(config);
        let groups =
            |source: &redis::SharedSource| (source.database.name.clone(), source.mirrors.clone());
        let groups = self.redis.borrow().values().map(groups).collect();
        let redis = self.remake(
            config,
            Protocol::Redis,
            (&self.redis_mirrors, groups),
            redis::start_workers,
            |index, mirrors, metrics| {
                let database = config.databases[index].clone();
                let dual = duals.iter().find(|dual| dual.source == database.name);
                let observer = dual.map(|dual| dual.clone() as Rc<dyn redis::observe::Observer>);
                Rc::new(redis::Source::new(database, mirrors, metrics, observer))
            },
        );
        *self.redis.borrow_mut() = redis;
    }

    /// Dual writes between the same databases go on with what is new; others are retired.
    fn remake_duals(&self, config: &Config) -> Vec<Rc<redis::dual::Dual>> {
        let before = std::mem::take(&mut *self.duals.borrow_mut());
        let duals: Vec<_> = config
            .dual_write
            .iter()
            .map(|options| {
                if let Some(kept) = before.iter().find(|dual| dual.fits(config, options)) {
                    kept.reconfigure(options);
                    return kept.clone();
                }
                let metrics = self.context.registry.mirror(
                    self.context.core,
                    &config.databases[options.primary].name,
                    &config.databases[options.secondary].name,
                    metrics::Protocol::Redis,
                );
                redis::dual::Dual::start(&self.context, config, options, metrics)
            })
            .collect();
        for dual in before {
            if !duals.iter().any(|kept| Rc::ptr_eq(kept, &dual)) {
                dual.retire();
            }
        }
        *self.duals.borrow_mut() = duals.clone();
        duals
    }

    /// Makes the sources of one protocol. The mirrors of a source that was here change under its open sessions; mirrors
    /// whose definition is the same go on, others are retired.
    fn remake<O: Outcome + 'static, T>(
        &self,
        config: &Config,
        protocol: Protocol,
        (known, groups): (&RefCell<Mirrors<O>>, Groups<O>),
        start: impl Fn(&Rc<Context>, Rc<Mirror<O>>),
        source: impl Fn(usize, Rc<MirrorGroup<O>>, Arc<metrics::SourceMetrics>) -> T,
    ) -> HashMap<usize, T> {
        let before = std::mem::take(&mut *known.borrow_mut());
        let units = groups
            .values()
            .next()
            .map_or_else(UnitPool::default, |group| group.units.clone());
        let mut sources = HashMap::new();
        let mut now = Vec::new();
        for (index, database) in config.databases.iter().enumerate() {
            if database.protocol != protocol {
                continue;
            }
            let mirrors = config.mirrors_of(index).map(|mirroring| {
                let destination = config.destination(mirroring);
                let kept = before.iter().find(|mirror| {
                    mirror.source == database.name
                        && mirror.destination == *destination
                        && mirror.options.level == mirroring.level
                        && mirror.options.compare == mirroring.compare
                });
                if let Some(kept) = kept {
                    return kept.clone();
                }
                let metrics = self.context.registry.mirror(
                    self.context.core,
                    &database.name,
                    &destination.name,
                    metric_protocol(protocol),
                );
                let mirror = Rc::new(Mirror::new(
                    &database.name,
                    destination.clone(),
                    mirroring.clone(),
                    (metrics, self.context.budget.clone(), units.clone()),
                    config.general.mirror_queue_bytes,
                ));
                let replaced = before.iter().find(|old| {
                    old.source == mirror.source && old.destination.name == mirror.destination.name
                });
                if let Some(replaced) = replaced {
                    replaced.dispatcher.borrow_mut().share_ledger();
                    mirror.dispatcher.borrow_mut().share_ledger();
                }
                start(&self.context, mirror.clone());
                mirror
            });
            let mirrors: Vec<_> = mirrors.collect();
            now.extend(mirrors.iter().cloned());
            let metrics = self.context.registry.source(
                self.context.core,
                &database.name,
                metric_protocol(protocol),
            );
            let fresh = || Rc::new(MirrorGroup::new(units.clone()));
            let group = groups.get(&database.name).cloned().unwrap_or_else(fresh);
            if protocol == Protocol::Postgres && !mirrors.is_empty() {
                // Before clients come: where it cannot be had, mirrors do without. Redis mirrors gather what they are sent, and
                // cost no less on a ring of their own.
                self.context.ring.set_aside();
            }
            group.set_mirrors(&mirrors, self.context.ring.now_ns());
            sources.insert(index, source(index, group, metrics));
        }
        for (name, group) in &groups {
            // A database that has left the config: its sessions go on, unmirrored.
            if config.database_index(name).is_none() {
                group.set_mirrors(&[], self.context.ring.now_ns());
            }
        }
        for mirror in before {
            if !now.iter().any(|kept| Rc::ptr_eq(kept, &mirror)) {
                mirror.retire();
            }
        }
        *known.borrow_mut() = now;
        sources
    }

    /// The primary connections of a database that is as it was, or none.
    fn pools(&self, database: &Database) -> Rc<postgres::ServerPools> {
        let known = self.postgres.borrow();
        known
            .values()
            .find(|source| *source.database == *database)
            .map_or_else(Rc::default, |source| source.pools.clone())
    }
}
