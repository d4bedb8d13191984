//! The cores: executors, pinning, listeners, start, drain. The only place that starts a glommio executor.
//!
//! [`start`] probes the machine, binds every listener and starts one thread per data core; it returns when
//! every core accepts. [`Cores`] is what the control thread then holds: it hands messages to the cores and ends them.

mod core;
mod events;
mod listeners;
mod operator;
mod probes;
pub mod serve;
mod watch;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::config::Config;
use crate::control::admin_sql::Answer;
use crate::metrics::Registry;
use crate::proxy::context::{Event, SessionInfo};
use crate::proxy::services::Shared;
use crate::proxy::tls::{Material, TlsError, TlsStore};
use crate::ring::Ringer;

pub use probes::raise_descriptor_limit;

/// Events that wait for the control thread; more are counted as lost.
const EVENTS_MAX: usize = 16 * 1024;

/// Messages that wait for a core: the control thread sends a handful in a lifetime.
const MESSAGES_MAX: usize = 1024;

/// Why the cores did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel or the limits of this process do not allow it.
    #[error("{0}")]
    Machine(String),
    /// A listener could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The listener's address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate or key is not what it should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A core's thread did not come up.
    #[error("core {cpu} did not start: {problem}")]
    Core {
        /// The CPU's number.
        cpu: usize,
        /// What went wrong.
        problem: String,
    },
}

/// What the control thread tells a core.
#[derive(Debug)]
pub enum CoreMessage {
    /// Exposures, pauses or bounds were changed in the shared settings.
    Settings,
    /// A new config is in force; the core says when it has taken it over.
    Config(Arc<Config>, Sender<()>),
    /// Tell who is connected.
    Sessions(Sender<Vec<SessionInfo>>),
    /// The answer to a statement of an admin session.
    Admin {
        /// What the request carried.
        ticket: u64,
        /// The answer.
        answer: Box<Answer>,
    },
    /// Replace the connections of this mirror.
    Reconnect {
        /// Source database.
        source: String,
        /// The mirror's database.
        destination: String,
    },
    /// Accept nobody any more and end sessions at their next quiet moment.
    Drain,
    /// End what is left and the core with it.
    Stop,
}

/// The CPUs that this process may use.
pub fn available_cpus() -> Vec<usize> {
    core_affinity::get_core_ids()
        .map(|ids| ids.into_iter().map(|id| id.id).collect())
        .unwrap_or_else(|| vec![0])
}

/// The running cores.
pub struct Cores {
    handles: Vec<core::CoreHandle>,
    /// What the cores report.
    pub events: Receiver<Event>,
    tell: Sender<Event>,
    /// The addresses that clients can reach, as bound.
    pub addresses: Vec<String>,
    /// What the cores share.
    pub shared: Arc<Shared>,
    /// Certificates and keys in force on all cores.
    pub tls: Arc<TlsStore>,
}

/// The sending half of one core.
#[derive(Clone, Debug)]
pub struct CoreSender {
    messages: Sender<CoreMessage>,
    ringer: Ringer,
}

impl CoreSender {
    /// Sends and wakes; false if the core has ended or is so far behind that its queue is full.
    pub fn send(&self, message: CoreMessage) -> bool {
        let sent = self.messages.try_send(message).is_ok();
        self.ringer.ring();
        sent
    }
}

/// Starts every core of `config` and returns when all accept.
///
/// # Errors
/// See [`StartError`]; nothing keeps running then.
pub fn start(config: &Arc<Config>, registry: &Arc<Registry>) -> Result<Cores, StartError> {
    let cpus = config.general.cores.resolve(&available_cpus());
    probes::check()?;
    let bound = listeners::bind(config, &cpus)?;
    let (tell, events) = crossbeam_channel::bounded(EVENTS_MAX);
    let tls = Arc::new(TlsStore::new(Material::load(config)?));
    let shared = Arc::new(Shared {
        tls: tls.clone(),
        ..Shared::default()
    });
    operator::publish_settings(registry, config, config);
    let mut handles = Vec::with_capacity(cpus.len());
    for ((index, cpu), sockets) in cpus.iter().enumerate().zip(bound.per_core) {
        let seed = core::CoreSeed {
            index,
            cpu: *cpu,
            config: config.clone(),
            registry: registry.clone(),
            sockets,
            events: tell.clone(),
            shared: shared.clone(),
        };
        match core::start(seed) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                Cores {
                    handles,
                    events,
                    tell,
                    addresses: Vec::new(),
                    shared,
                    tls,
                }
                .stop();
                return Err(error);
            }
        }
    }
    Ok(Cores {
        handles,
        events,
        tell,
        addresses: bound.addresses,
        shared,
        tls,
    })
}

impl Cores {
    /// Sends the same message to every core.
    pub fn tell_all(&self, message: impl Fn() -> CoreMessage) {
        self.handles.iter().for_each(|handle| {
            handle.sender.send(message());
        });
    }

    /// Senders to all cores, for other threads.
    pub fn senders(&self) -> Vec<CoreSender> {
        self.handles
            .iter()
            .map(|handle| handle.sender.clone())
            .collect()
    }

    /// Whether every core's sessions have ended and every offered unit is settled.
    pub fn is_drained(&self) -> bool {
        self.handles.iter().all(core::CoreHandle::is_drained)
    }

    /// Whether a core has ended by itself, which only a bug makes it do.
    pub fn any_ended(&self) -> bool {
        self.handles.iter().any(core::CoreHandle::has_ended)
    }

    /// Ends every core and waits for the threads, but not for ever.
    pub fn stop(self) {
        self.tell_all(|| CoreMessage::Stop);
        for handle in self.handles {
            handle.join(Duration::from_secs(5));
        }
        // Tasks of an ended executor may keep their senders: the end is said, not seen.
        let _ = self.tell.send_timeout(Event::End, Duration::from_secs(1));
    }
}
