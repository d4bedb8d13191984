//! What an operator's commands do: the one layer under HTTP, `ctl` and the admin SQL.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::serve::ConfigFiles;
use super::{CoreMessage, CoreSender};
use crate::config::{self, Config, DualWrite, Mirroring, RedisMode};
use crate::control::{CommandError, Commands};
use crate::metrics::{MirrorSettings, Registry};
use crate::proxy::tls::{Material, TlsStore};

/// How long a command waits for the cores to take something over: they look up at every turn of their rings.
const CORES_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What only the control thread's loop can do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    /// Accept nobody, let sessions and queues run empty.
    Drain,
    /// Drain and end.
    Shutdown,
}

/// Carries out commands on the running cores.
pub(super) struct Operator {
    config: ArcSwap<Config>,
    files: ConfigFiles,
    registry: Arc<Registry>,
    cores: Vec<CoreSender>,
    addresses: Vec<String>,
    tls: Arc<TlsStore>,
    requests: UnboundedSender<Request>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Operator {
    pub(super) fn new(
        config: Arc<Config>,
        files: ConfigFiles,
        registry: Arc<Registry>,
        cores: Vec<CoreSender>,
        addresses: Vec<String>,
        tls: Arc<TlsStore>,
        requests: UnboundedSender<Request>,
    ) -> Operator {
        Operator {
            config: ArcSwap::new(config),
            files,
            registry,
            cores,
            addresses,
            tls,
            requests,
            changing: Mutex::new(()),
        }
    }

    /// The config in force.
    pub(super) fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    fn known_mirrors(&self, config: &Config) -> Vec<String> {
        let shortest = |mirroring: &Mirroring| {
            let (source, destination) = names(config, mirroring);
            let unique = self.registry.resolve_mirror(destination);
            match unique.is_some_and(|(found, _)| found == source) {
                true => destination.to_owned(),
                false => format!("{source}:{destination}"),
            }
        };
        config.mirroring.iter().map(shortest).collect()
    }

    /// Mirrors and secondaries.
    fn known_names(&self, config: &Config) -> Vec<String> {
        let mut names = self.known_mirrors(config);
        let secondary = |dual: &DualWrite| ends(config, dual).1.to_owned();
        names.extend(config.dual_write.iter().map(secondary));
        names
    }

    /// The dual write of this name: its primary's, as for the mode, or its secondary's, as of a mirror.
    fn dual_of(&self, config: &Config, name: &str) -> Option<usize> {
        let Some((from, to)) = self.registry.resolve_mirror(name) else {
            let is_it = |dual: &DualWrite| ends(config, dual).0 == name;
            return config.dual_write.iter().position(is_it);
        };
        let is_it = |dual: &DualWrite| ends(config, dual) == (from.as_str(), to.as_str());
        config.dual_write.iter().position(is_it)
    }

    /// Changes the dual write whose secondary has this name, on every core. `None`: there is none of this name.
    fn change_dual<T>(
        &self,
        mirror: &str,
        change: impl FnOnce(&mut DualWrite) -> T,
    ) -> Result<Option<T>, CommandError> {
        let _one_at_a_time = self.lock();
        let mut config = Config::clone(&self.config.load());
        let Some(index) = self.dual_of(&config, mirror) else {
            return Ok(None);
        };
        let result = change(&mut config.dual_write[index]);
        self.put_in_force(config)?;
        Ok(Some(result))
    }

    /// Refuses to pause or resume a dual write: its secondary gets every write, in order, or it is none.
    fn refuse_dual(&self, mirror: &str) -> Result<(), CommandError> {
        let config = self.config.load();
        let Some(index) = self.dual_of(&config, mirror) else {
            return Ok(());
        };
        let (primary, _) = ends(&config, &config.dual_write[index]);
        Err(CommandError::Conflict(format!(
            "{mirror:?} is a dual write and cannot be paused: its secondary gets every write; the mode \
             primary-only of {primary:?} stops it"
        )))
    }

    /// Changes the entry of one mirror in the config in force, then what the cores read.
    fn change_mirror<T>(
        &self,
        mirror: &str,
        change: impl FnOnce(&mut Mirroring, &MirrorSettings) -> T,
    ) -> Result<T, CommandError> {
        let _one_at_a_time = self.lock();
        let mut config = Config::clone(&self.config.load());
        let found = self.registry.resolve_mirror(mirror).and_then(|(from, to)| {
            let is_it = |m: &Mirroring| names(&config, m) == (from.as_str(), to.as_str());
            Some((config.mirroring.iter().position(is_it)?, from, to))
        });
        let Some((index, source, destination)) = found else {
            return Err(CommandError::Unknown {
                what: "mirror",
                name: mirror.to_owned(),
                known: self.known_names(&config),
            });
        };
        let settings = self.registry.mirror_settings(&source, &destination);
        let result = change(&mut config.mirroring[index], &settings);
        self.config.store(Arc::new(config));
        self.tell_all(|| CoreMessage::Settings);
        Ok(result)
    }

    /// Gives a config to every core and waits until all have taken it over.
    fn put_in_force(&self, config: Config) -> Result<Arc<Config>, CommandError> {
        let config = Arc::new(config);
        publish_settings(&self.registry, &self.config.load(), &config);
        self.config.store(config.clone());
        let (done, taken) = crossbeam_channel::bounded(self.cores.len());
        let reached = self
            .cores
            .iter()
            .filter(|core| core.send(CoreMessage::Config(config.clone(), done.clone())))
            .count();
        let deadline = Instant::now() + CORES_ANSWER_TIMEOUT;
        let late = (0..reached).any(|_| taken.recv_deadline(deadline).is_err());
        if reached < self.cores.len() || late {
            return Err(CommandError::Failed(format!(
                "the new config is in force, but not every core said so within {CORES_ANSWER_TIMEOUT:?}"
            )));
        }
        Ok(config)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_all(&self, message: impl Fn() -> CoreMessage) {
        for core in &self.cores {
            core.send(message());
        }
    }

    fn ask(&self, request: Request) -> Result<(), CommandError> {
        self.requests
            .send(request)
            .map_err(|_| CommandError::Conflict("the process is ending".to_owned()))
    }

    fn set_paused(&self, mirror: &str, paused: bool) -> Result<Value, CommandError> {
        self.refuse_dual(mirror)?;
        let before = self.change_mirror(mirror, |_, settings| {
            let before = settings.paused();
            settings.set_paused(paused);
            before
        })?;
        Ok(json!({ "mirror": mirror, "before": before, "paused": paused }))
    }
}

fn names<'a>(config: &'a Config, mirroring: &Mirroring) -> (&'a str, &'a str) {
    let name = |index: usize| config.databases[index].name.as_str();
    (name(mirroring.source), name(mirroring.destination))
}

/// Primary and secondary.
fn ends<'a>(config: &'a Config, dual: &DualWrite) -> (&'a str, &'a str) {
    let name = |index: usize| config.databases[index].name.as_str();
    (name(dual.primary), name(dual.secondary))
}

/// Writes what the config says about the mirrors to where all cores read it. Only the control thread writes there, so a
/// slow core cannot bring an old value back. A mirror that is gone gets nothing any more.
pub(super) fn publish_settings(registry: &Registry, old: &Config, new: &Config) {
    for mirroring in &old.mirroring {
        let (source, destination) = names(old, mirroring);
        registry
            .mirror_settings(source, destination)
            .set_exposure(0.0);
    }
    for mirroring in &new.mirroring {
        let (source, destination) = names(new, mirroring);
        let settings = registry.mirror_settings(source, destination);
        settings.set_exposure(mirroring.exposure);
        let bytes = new.general.mirror_queue_bytes as u64;
        settings.set_queue_bounds(mirroring.queue_length as u64, bytes);
    }
    for dual in &new.dual_write {
        let (primary, secondary) = ends(new, dual);
        let settings = registry.mirror_settings(primary, secondary);
        settings.set_secondary(true);
        settings.set_exposure(dual.exposure);
        settings.set_queue_bounds(dual.queue_length as u64, dual.queue_bytes as u64);
    }
}

impl Commands for Operator {
    fn status(&self) -> Result<Value, CommandError> {
        Ok(json!({ "listeners": self.addresses, "cores": self.cores.len() }))
    }

    fn config(&self) -> Result<Value, CommandError> {
        Ok(config::to_json(&self.config.load()))
    }

    fn mirrors(&self) -> Result<Vec<String>, CommandError> {
        Ok(self.known_mirrors(&self.config.load()))
    }

    fn secondaries(&self) -> Result<Vec<String>, CommandError> {
        let config = self.config.load();
        let name = |dual: &DualWrite| {
            let (primary, secondary) = ends(&config, dual);
            format!("{primary}:{secondary}")
        };
        Ok(config.dual_write.iter().map(name).collect())
    }

    fn clients(&self) -> Result<Value, CommandError> {
        let (answer, answers) = crossbeam_channel::bounded(self.cores.len());
        self.tell_all(|| CoreMessage::Sessions(answer.clone()));
        drop(answer);
        let deadline = Instant::now() + CORES_ANSWER_TIMEOUT;
        let mut clients = Vec::new();
        // Ends when every core has answered, or in time: a stuck core shows as missing, not as a stuck console.
        while let Ok(more) = answers.recv_deadline(deadline) {
            clients.extend(more);
        }
        clients.sort_unstable_by_key(|client| client.id);
        Ok(json!({ "clients": clients }))
    }

    fn servers(&self) -> Result<Value, CommandError> {
        let config = self.config.load();
        let (sources, mirrors) = (self.registry.sources(), self.registry.mirrors());
        let mut servers = Vec::new();
        for (index, database) in config.databases.iter().enumerate() {
            let shown = |role: &str, source: &str, (open, idle, reconnects): (u64, u64, u64)| {
                json!({
                    "database": database.name,
                    "role": role,
                    "source": source,
                    "protocol": database.protocol.as_str(),
                    "endpoint": database.endpoint.to_string(),
                    "connections": open,
                    "idle": idle,
                    "reconnects": reconnects,
                })
            };
            let source = sources.iter().find(|source| source.name == database.name);
            let counts = source.map_or((0, 0, 0), |source| {
                (
                    source.connections_open,
                    source.connections_idle,
                    source.reconnects,
                )
            });
            let as_mirror = config
                .mirroring
                .iter()
                .filter(|m| m.destination == index)
                .map(|m| ("mirror", names(&config, m)));
            let as_secondary = config
                .dual_write
                .iter()
                .filter(|dual| dual.secondary == index)
                .map(|dual| ("secondary", ends(&config, dual)));
            let follows: Vec<_> = as_mirror.chain(as_secondary).collect();
            if follows.is_empty() || source.is_some_and(|source| source.requests > 0) {
                servers.push(shown("primary", "", counts));
            }
            for (role, (from, to)) in follows {
                let total = mirrors
                    .iter()
                    .find(|m| m.source == from && m.destination == to);
                let counts = total.map_or((0, 0, 0), |total| {
                    (
                        total.connections_open,
                        total.connections_idle,
                        total.reconnects,
                    )
                });
                servers.push(shown(role, from, counts));
            }
        }
        Ok(json!({ "servers": servers }))
    }

    fn set_exposure(&self, mirror: &str, exposure: f64) -> Result<Value, CommandError> {
        let of_dual = self.change_dual(mirror, |dual| {
            std::mem::replace(&mut dual.exposure, exposure)
        })?;
        if let Some(before) = of_dual {
            return Ok(json!({ "mirror": mirror, "before": before, "exposure": exposure }));
        }
        let before = self.change_mirror(mirror, |mirroring, settings| {
            let before = settings.exposure();
            mirroring.exposure = exposure;
            settings.set_exposure(exposure);
            before
        })?;
        Ok(json!({ "mirror": mirror, "before": before, "exposure": exposure }))
    }

    fn set_queue(&self, mirror: &str, units: u64) -> Result<Value, CommandError> {
        let of_dual = self.change_dual(mirror, |dual| {
            std::mem::replace(&mut dual.queue_length, units as usize)
        })?;
        if let Some(before) = of_dual {
            return Ok(json!({ "mirror": mirror, "before": before, "queue_length": units }));
        }
        let before = self.change_mirror(mirror, |mirroring, settings| {
            let (before, bytes) = settings.queue_bounds();
            mirroring.queue_length = units as usize;
            settings.set_queue_bounds(units, bytes);
            before
        })?;
        Ok(json!({ "mirror": mirror, "before": before, "queue_length": units }))
    }

    fn pause(&self, mirror: &str) -> Result<Value, CommandError> {
        self.set_paused(mirror, true)
    }

    fn resume(&self, mirror: &str) -> Result<Value, CommandError> {
        self.set_paused(mirror, false)
    }

    fn reconnect(&self, mirror: &str) -> Result<Value, CommandError> {
        let config = self.config.load();
        // What is on its way to a secondary gets lost like what is on its way to a mirror; its keys are copied again.
        let (source, destination) = match self.dual_of(&config, mirror) {
            Some(index) => {
                let (primary, secondary) = ends(&config, &config.dual_write[index]);
                (primary.to_owned(), secondary.to_owned())
            }
            None => {
                self.change_mirror(mirror, |_, _| ())?;
                self.registry.resolve_mirror(mirror).unwrap_or_default()
            }
        };
        self.tell_all(|| CoreMessage::Reconnect {
            source: source.clone(),
            destination: destination.clone(),
        });
        Ok(json!({ "mirror": mirror, "reconnecting": true }))
    }

    fn set_mode(&self, name: &str, mode: &str) -> Result<Value, CommandError> {
        let _one_at_a_time = self.lock();
        let mut config = Config::clone(&self.config.load());
        let mode = RedisMode::from_word(mode).ok_or_else(|| {
            let words = RedisMode::WORDS.join(", ");
            CommandError::Invalid(format!("{mode:?} is no mode; there are: {words}"))
        })?;
        let primary = |dual: &DualWrite| config.databases[dual.primary].name.clone();
        let found = config
            .dual_write
            .iter()
            .position(|dual| primary(dual) == name);
        let Some(index) = found else {
            return Err(CommandError::Unknown {
                what: "dual_write",
                name: name.to_owned(),
                known: config.dual_write.iter().map(primary).collect(),
            });
        };
        let before = std::mem::replace(&mut config.dual_write[index].mode, mode);
        self.put_in_force(config)?;
        Ok(json!({ "database": name, "before": before.as_str(), "mode": mode.as_str() }))
    }

    fn reload(&self) -> Result<Value, CommandError> {
        let _one_at_a_time = self.lock();
        let Some(path) = &self.files.config else {
            return Err(CommandError::Conflict(
                "this process was configured by its command line: there is no file to reload"
                    .to_owned(),
            ));
        };
        let new = config::load(path, self.files.users.as_deref(), &super::available_cpus())
            .map_err(|errors| {
                CommandError::Invalid(format!("the old config stays in force: {errors}"))
            })?;
        let old = self.config.load_full();
        let changes = config::diff(&old, &new);
        // What needs a restart stays as it is; the rest is taken over whole.
        let merged = config::apply(&old, new);
        // Read anew even if the paths are the same: a certificate that was renewed is what most reloads are for.
        let material = Material::load(&merged).map_err(|error| {
            CommandError::Invalid(format!("the old config stays in force: {error}"))
        })?;
        self.tls.replace(material);
        self.put_in_force(merged)?;
        Ok(changes.to_json())
    }

    fn drain(&self) -> Result<Value, CommandError> {
        self.ask(Request::Drain)?;
        Ok(json!({ "draining": true }))
    }

    fn shutdown(&self) -> Result<Value, CommandError> {
        self.ask(Request::Shutdown)?;
        Ok(json!({ "shutting_down": true }))
    }
}
