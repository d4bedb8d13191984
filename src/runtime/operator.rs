//! What an operator's commands do: the one layer under HTTP, `ctl` and the admin SQL.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::serve::ConfigFiles;
use super::{CoreMessage, CoreSender};
use crate::config::{self, Config};
use crate::control::{CommandError, Commands};
use crate::metrics::{MirrorSettings, Registry};
use crate::proxy::tls::{Material, TlsStore};

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
    /// One reload at a time.
    reloading: Mutex<()>,
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
            reloading: Mutex::new(()),
        }
    }

    /// The config in force as JSON, without secrets.
    pub(super) fn shown_config(&self) -> Value {
        config::to_json(&self.config.load())
    }

    /// The shared settings of a mirror, by its name.
    fn settings(&self, mirror: &str) -> Result<Arc<MirrorSettings>, CommandError> {
        match self.registry.resolve_mirror(mirror) {
            Some((source, destination)) => Ok(self.registry.mirror_settings(&source, &destination)),
            None => Err(CommandError::Unknown {
                what: "mirror",
                name: mirror.to_owned(),
                known: self
                    .registry
                    .mirrors()
                    .iter()
                    .map(|mirror| mirror.name.clone())
                    .collect(),
            }),
        }
    }

    fn tell_all(&self, message: impl Fn() -> CoreMessage) {
        self.cores.iter().for_each(|core| core.send(message()));
    }

    fn ask(&self, request: Request) -> Result<(), CommandError> {
        self.requests
            .send(request)
            .map_err(|_| CommandError::Conflict("the process is ending".to_owned()))
    }
}

impl Commands for Operator {
    fn status(&self) -> Result<Value, CommandError> {
        Ok(json!({ "listeners": self.addresses, "cores": self.cores.len() }))
    }

    fn clients(&self) -> Result<Value, CommandError> {
        let by_source: Vec<Value> = self
            .registry
            .sources()
            .iter()
            .map(|source| json!({ "database": source.name, "clients": source.active_clients }))
            .collect();
        Ok(json!(by_source))
    }

    fn servers(&self) -> Result<Value, CommandError> {
        let config = self.config.load();
        let servers: Vec<Value> = config
            .databases
            .iter()
            .map(|database| {
                json!({
                    "database": database.name,
                    "protocol": database.protocol.as_str(),
                    "endpoint": database.endpoint.to_string(),
                })
            })
            .collect();
        Ok(json!(servers))
    }

    fn set_exposure(&self, mirror: &str, exposure: f64) -> Result<Value, CommandError> {
        if !(0.0..=1.0).contains(&exposure) {
            return Err(CommandError::Invalid(format!(
                "{exposure} is not between 0.0 and 1.0; write e.g. 0.1 for 10 %"
            )));
        }
        let settings = self.settings(mirror)?;
        let before = settings.exposure();
        settings.set_exposure(exposure);
        self.tell_all(|| CoreMessage::Settings);
        tracing::info!(mirror, before, exposure, "exposure changed");
        Ok(json!({ "mirror": mirror, "before": before, "exposure": exposure }))
    }

    fn set_queue(&self, mirror: &str, units: u64) -> Result<Value, CommandError> {
        if units == 0 {
            return Err(CommandError::Invalid(
                "a ring holds at least 1 unit".to_owned(),
            ));
        }
        let settings = self.settings(mirror)?;
        let (before, bytes) = settings.queue_bounds();
        settings.set_queue_bounds(units, bytes);
        self.tell_all(|| CoreMessage::Settings);
        tracing::info!(mirror, before, units, "queue length changed");
        Ok(json!({ "mirror": mirror, "before": before, "queue_length": units }))
    }

    fn pause(&self, mirror: &str) -> Result<Value, CommandError> {
        self.set_paused(mirror, true)
    }

    fn resume(&self, mirror: &str) -> Result<Value, CommandError> {
        self.set_paused(mirror, false)
    }

    fn reconnect(&self, mirror: &str) -> Result<Value, CommandError> {
        self.settings(mirror)?;
        let (source, destination) = self.registry.resolve_mirror(mirror).unwrap_or_default();
        self.tell_all(|| CoreMessage::Reconnect {
            source: source.clone(),
            destination: destination.clone(),
        });
        Ok(json!({ "mirror": mirror, "reconnecting": true }))
    }

    fn set_mode(&self, name: &str, _mode: &str) -> Result<Value, CommandError> {
        let config = self.config.load();
        Err(CommandError::Unknown {
            what: "dual_write",
            name: name.to_owned(),
            known: config
                .dual_write
                .iter()
                .map(|dual| config.databases[dual.primary].name.clone())
                .collect(),
        })
    }

    fn reload(&self) -> Result<Value, CommandError> {
        let _one_at_a_time = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &self.files.config else {
            return Err(CommandError::Conflict(
                "this process was configured by its command line: there is no file to reload"
                    .to_owned(),
            ));
        };
        let new = config::load(path, self.files.users.as_deref(), &super::available_cpus())
            .map_err(|errors| CommandError::Invalid(errors.to_string()))?;
        let old = self.config.load_full();
        let changes = config::diff(&old, &new);
        // What needs a restart stays as it is; the rest is taken over whole.
        let merged = Arc::new(config::apply(&old, new));
        // Read anew even if the paths are the same: a certificate that was renewed is what most reloads are for.
        let material =
            Material::load(&merged).map_err(|error| CommandError::Invalid(error.to_string()))?;
        self.tls.replace(material);
        self.config.store(merged.clone());
        self.tell_all(|| CoreMessage::Config(merged.clone()));
        let answer = changes.to_json();
        tracing::info!(%answer, "config reloaded");
        Ok(answer)
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

impl Operator {
    fn set_paused(&self, mirror: &str, paused: bool) -> Result<Value, CommandError> {
        self.settings(mirror)?.set_paused(paused);
        self.tell_all(|| CoreMessage::Settings);
        tracing::info!(mirror, paused, "mirror paused or resumed");
        Ok(json!({ "mirror": mirror, "paused": paused }))
    }
}
