//! The life of a serving process: start the cores, say `ready`, obey signals and operators, drain, end.
//!
//! Runs on the main thread, which is the control thread; nothing here is on a client's path.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::operator::{Operator, Request};
use super::watch;
use super::{CoreMessage, CoreSender, Cores, StartError, events};
use crate::config::Config;
use crate::control::divergences::{DivergenceStore, Redaction};
use crate::control::sentry::SentryReporter;
use crate::control::{ControlState, Operation, Who, admin_sql, http, log_limit};
use crate::limits::ADMIN_REQUESTS_MAX;
use crate::metrics::Registry;
use crate::proxy::postgres::AdminRequest;

/// Where the config came from, for reloads. `None`: from the command line, nothing to reload.
#[derive(Clone, Debug, Default)]
pub struct ConfigFiles {
    /// The config file.
    pub config: Option<PathBuf>,
    /// The users file.
    pub users: Option<PathBuf>,
}

/// Why a process that should serve does not.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A core could not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The control port could not be bound.
    #[error("cannot listen on {address} for control: {source}")]
    Control {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The divergence journal could not be opened.
    #[error("cannot write the divergence log {path}: {source}")]
    Journal {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The control thread could not be set up.
    #[error("cannot set up the control thread: {0}")]
    Io(#[from] io::Error),
    /// A core ended by itself: a bug.
    #[error("a core ended by itself")]
    CoreEnded,
}

/// Serves `config` until SIGTERM or SIGINT, or until an operator ends it.
///
/// # Errors
/// See [`ServeError`]; a drained end is `Ok`.
pub fn run(config: Config, files: ConfigFiles) -> Result<(), ServeError> {
    let config = Arc::new(config);
    let cpus = config.general.cores.resolve(&super::available_cpus());
    let registry = Arc::new(Registry::new(cpus));
    let control = config.general.control.map(bind_control).transpose()?;
    if cfg!(feature = "bench-uncounted") {
        tracing::warn!("built to count nothing, for the bench: every number shows 0");
    }
    let divergences = Arc::new(DivergenceStore::default());
    let journal = events::Journal::open(config.general.divergence_log.as_deref())
        .map_err(|(path, source)| ServeError::Journal { path, source })?;
    let cores = super::start(&config, &registry)?;
    let (requests, inbox) = mpsc::unbounded_channel();
    let (door, statements) = mpsc::channel(ADMIN_REQUESTS_MAX);
    // Nobody else sets it.
    let _ = cores.shared.admin.set(door);
    let operator = Arc::new(Operator::new(
        config.clone(),
        files.clone(),
        registry.clone(),
        cores.senders(),
        cores.addresses.clone(),
        cores.tls.clone(),
        requests,
    ));
    let state = Arc::new(ControlState::new(
        registry.clone(),
        divergences.clone(),
        operator.clone(),
        Box::new(events::judge),
        config
            .general
            .control_token
            .as_ref()
            .map(|token| token.expose().to_owned()),
    ));
    state.set_compat_metrics(config.general.compat_metrics);
    let watch = match config.general.watch_config {
        true => Some(watch::Watch::start(&files)?),
        false => None,
    };
    let consumer = events::consume(
        cores.events.clone(),
        divergences,
        journal,
        Redaction::new(config.general.redact),
        SentryReporter::from_config(&config.sentry),
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let inputs = Inputs {
        requests: inbox,
        statements,
        watch,
    };
    let outcome = runtime.block_on(serve(&operator, cores, control, state, inputs));
    runtime.shutdown_timeout(Duration::from_millis(200));
    // It ends when it has read what the cores left.
    let _ = consumer.join();
    events::log_ledgers(&registry);
    outcome
}

fn bind_control(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).map_err(|source| ServeError::Control { address, source })
}

/// What the control thread obeys besides signals.
struct Inputs {
    requests: mpsc::UnboundedReceiver<Request>,
    statements: mpsc::Receiver<AdminRequest>,
    watch: Option<watch::Watch>,
}

async fn serve(
    operator: &Operator,
    cores: Cores,
    control: Option<TcpListener>,
    state: Arc<ControlState>,
    inputs: Inputs,
) -> Result<(), ServeError> {
    let Inputs {
        requests: mut inbox,
        statements,
        watch,
    } = inputs;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let address = control
        .as_ref()
        .and_then(|listener| listener.local_addr().ok());
    if let Some(listener) = control {
        tokio::spawn(http::serve(listener, state.clone(), std::future::pending()));
    }
    if let Some(mut watch) = watch {
        // A task of its own: a branch of the loop below would forget what it was told whenever another is taken.
        let state = state.clone();
        tokio::spawn(async move {
            while watch.changed().await {
                reload(state.clone(), Who::new("file", "changed"));
            }
        });
    }
    tokio::spawn(answer_admins(statements, state.clone(), cores.senders()));
    state.set_ready(true);
    say_ready(&cores, address);
    let mut health = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(state.clone(), Who::new("signal", "SIGHUP")),
            request = inbox.recv() => match request {
                Some(Request::Drain) => {
                    state.set_draining(true);
                    cores.tell_all(|| CoreMessage::Drain);
                }
                Some(Request::Shutdown) | None => break,
            },
            _ = health.tick() => {
                state.note_time();
                match log_limit::take_suppressed() {
                    0 => {}
                    lines => tracing::warn!(lines, "log lines were left out: too many a second of a kind"),
                }
                if cores.any_ended() {
                    return Err(ServeError::CoreEnded);
                }
            }
        }
    }
    state.set_draining(true);
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    let drain_timeout = operator.config().general.drain_timeout;
    tracing::info!(timeout = ?drain_timeout, "draining");
    cores.tell_all(|| CoreMessage::Drain);
    let deadline = Instant::now() + drain_timeout;
    let mut poll = tokio::time::interval(Duration::from_millis(20));
    while !cores.is_drained() && Instant::now() < deadline {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = poll.tick() => {}
        }
    }
    cores.stop();
    Ok(())
}

/// One line for people and for whoever waits for it, and systemd's.
fn say_ready(cores: &Cores, control: Option<SocketAddr>) {
    let control = control.map_or_else(|| "off".to_owned(), |address| address.to_string());
    eprintln!("ready {} control={control}", cores.addresses.join(" "));
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
}

/// Reads the config again on behalf of a signal or the file watch; the log tells what came of it.
fn reload(state: Arc<ControlState>, who: Who) {
    tokio::task::spawn_blocking(move || state.perform(&who, &Operation::Reload));
}

/// Answers the statements of admin sessions, each off the event loop: a slow one holds up nobody.
async fn answer_admins(
    mut statements: mpsc::Receiver<AdminRequest>,
    state: Arc<ControlState>,
    cores: Vec<CoreSender>,
) {
    while let Some(request) = statements.recv().await {
        let (state, core) = (state.clone(), cores.get(request.core).cloned());
        tokio::task::spawn_blocking(move || {
            let answer = admin_sql::execute(&state, &request.who, &request.sql);
            if let Some(core) = core {
                core.send(CoreMessage::Admin {
                    ticket: request.ticket,
                    answer: Box::new(answer),
                });
            }
        });
    }
}
