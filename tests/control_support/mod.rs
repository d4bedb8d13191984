//! A control port over made-up numbers.

#![allow(dead_code, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, reason = "support of tests")]

pub mod chromium;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use parhelion::control::{
    CommandError, Commands, ControlState, DivergenceRecord, DivergenceStore, Verdict, http,
};
use parhelion::metrics::{DivergenceKind, ErrorWord, Protocol, Registry};
use parhelion::mirror::ledger::{DropReason, Fate};
use serde_json::{Value, json};

/// Writes down what it is asked.
#[derive(Default)]
pub struct Recorder {
    pub calls: Mutex<Vec<String>>,
    /// Applies exposure and pause to this registry, so that a dashboard shows them.
    pub registry: Option<Arc<Registry>>,
    /// Makes a reload fail.
    pub refuse_reload: AtomicBool,
}

impl Recorder {
    fn note(&self, call: String) -> Result<Value, CommandError> {
        self.calls.lock().unwrap().push(call);
        Ok(json!({"done": true}))
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn settings(&self, name: &str) -> Option<Arc<parhelion::metrics::MirrorSettings>> {
        let registry = self.registry.as_ref()?;
        let (source, destination) = registry.resolve_mirror(name)?;
        Some(registry.mirror_settings(&source, &destination))
    }
}

impl Commands for Recorder {
    fn status(&self) -> Result<Value, CommandError> {
        Ok(json!({"listeners": ["127.0.0.1:6432"]}))
    }
    fn config(&self) -> Result<Value, CommandError> {
        Ok(json!({"databases": [{"name": "prod", "password": "hunter2"}]}))
    }
    fn mirrors(&self) -> Result<Vec<String>, CommandError> {
        Ok(vec!["next".into()])
    }
    fn secondaries(&self) -> Result<Vec<String>, CommandError> {
        Ok(Vec::new())
    }
    fn clients(&self) -> Result<Value, CommandError> {
        self.note("clients".into())?;
        Ok(
            json!({"clients": [{"id": 7, "database": "prod0", "protocol": "postgres", "user": "ann",
            "peer": "10.0.0.9:5000", "state": "idle", "core": 0}]}),
        )
    }
    fn servers(&self) -> Result<Value, CommandError> {
        self.note("servers".into())?;
        Ok(
            json!({"servers": [{"database": "next", "role": "mirror", "source": "prod0", "protocol": "postgres",
            "endpoint": "10.0.0.2:5432", "connections": 3, "idle": 1, "reconnects": 4}]}),
        )
    }
    fn set_exposure(&self, mirror: &str, exposure: f64) -> Result<Value, CommandError> {
        if mirror == "nobody" {
            return Err(CommandError::Unknown {
                what: "mirror",
                name: mirror.into(),
                known: vec!["next".into()],
            });
        }
        if let Some(settings) = self.settings(mirror) {
            settings.set_exposure(exposure);
        }
        self.note(format!("exposure {mirror} {exposure}"))
    }
    fn set_queue(&self, mirror: &str, units: u64) -> Result<Value, CommandError> {
        self.note(format!("queue {mirror} {units}"))
    }
    fn pause(&self, mirror: &str) -> Result<Value, CommandError> {
        if let Some(settings) = self.settings(mirror) {
            settings.set_paused(true);
        }
        self.note(format!("pause {mirror}"))
    }
    fn resume(&self, mirror: &str) -> Result<Value, CommandError> {
        if let Some(settings) = self.settings(mirror) {
            settings.set_paused(false);
        }
        self.note(format!("resume {mirror}"))
    }
    fn reconnect(&self, mirror: &str) -> Result<Value, CommandError> {
        self.note(format!("reconnect {mirror}"))
    }
    fn set_mode(&self, name: &str, mode: &str) -> Result<Value, CommandError> {
        self.note(format!("mode {name} {mode}"))
    }
    fn reload(&self) -> Result<Value, CommandError> {
        if self.refuse_reload.load(Ordering::Relaxed) {
            return Err(CommandError::Failed("parhelion.toml:3: unknown key".into()));
        }
        self.note("reload".into())
    }
    fn drain(&self) -> Result<Value, CommandError> {
        self.note("drain".into())
    }
    fn shutdown(&self) -> Result<Value, CommandError> {
        self.note("shutdown".into())
    }
}

/// A registry with numbers of `cores` cores and `mirrors` mirrors.
pub fn filled_registry(cores: usize, mirrors: usize) -> Registry {
    let registry = Registry::new((0..cores).collect());
    let mut rng = fastrand::Rng::with_seed(42);
    for core in 0..cores {
        let own = registry.core(core);
        own.busy_ns.add(600_000_000);
        own.idle_ns.add(400_000_000);
        own.slabs_capacity.set(2048);
        own.slabs_used.set(31);
        own.mirror_memory_capacity.set(256 << 20);
        own.mirror_memory_used.set(9 << 20);
        own.listener(Protocol::Postgres).accepted.add(50);
        own.listener(Protocol::Postgres).active.add(40);
        for mirror in 0..mirrors {
            step(&registry, core, mirror, &mut rng, 200);
        }
    }
    for mirror in 0..mirrors {
        let settings = registry.mirror_settings(&source(mirror), &destination(mirror));
        settings.set_exposure(0.5);
        settings.set_queue_bounds(128, 1 << 20);
    }
    registry
}

pub fn source(mirror: usize) -> String {
    format!("prod{}", mirror % 5)
}

pub fn destination(mirror: usize) -> String {
    if mirror == 0 {
        "next".into()
    } else {
        format!("next{mirror}")
    }
}

pub fn protocol(mirror: usize) -> Protocol {
    if mirror % 5 == 1 {
        Protocol::Redis
    } else {
        Protocol::Postgres
    }
}

/// Some traffic of one mirror on one core.
pub fn step(registry: &Registry, core: usize, mirror: usize, rng: &mut fastrand::Rng, units: u64) {
    let protocol = protocol(mirror);
    let from = registry.source(core, &source(mirror), protocol);
    let to = registry.mirror(core, &source(mirror), &destination(mirror), protocol);
    let mut latency = || (300_000.0 * (-(rng.f64().max(1e-6)).ln() + 0.3)) as u64;
    for unit in 0..units {
        let primary_ns = latency();
        from.requests.add(1);
        from.latency.record(primary_ns);
        match unit % 20 {
            0 => to.ledger.exclude(),
            1..10 => to.ledger.leave_unexposed(),
            10 => {
                to.ledger.offer();
                to.ledger
                    .settle(Fate::Dropped(DropReason::ALL[(unit as usize / 20) % 3]));
            }
            11 if unit % 60 == 11 => {
                to.ledger.offer();
                to.ledger.settle(Fate::Errored);
            }
            _ => {
                let mirror_ns = latency() + 150_000;
                to.ledger.offer();
                to.ledger.settle(Fate::Delivered);
                to.latency.record(mirror_ns);
                to.primary_latency.record(primary_ns);
                to.queue_delay.record(latency() / 4);
                to.compared.add(1);
                if unit == 15 {
                    to.diverge(DivergenceKind::DataMismatch);
                    to.diverge(DivergenceKind::Noise);
                    to.errors.count(ErrorWord::of_sqlstate(b"42P01"));
                }
                if protocol == Protocol::Redis {
                    from.commands.at(3, "get").record(true, primary_ns);
                    to.commands.at(3, "get").record(unit != 15, mirror_ns);
                    to.commands.at(3, "get").diverge(DivergenceKind::ExtraData);
                }
            }
        }
    }
    to.queued_units.set(rng.u64(0..90));
    to.queued_bytes.set(rng.u64(0..900_000));
}

/// A control port that serves until it is dropped.
pub struct Port {
    pub addr: SocketAddr,
    pub state: Arc<ControlState>,
    pub recorder: Arc<Recorder>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    pub fn start(registry: Registry, token: Option<&str>) -> Self {
        Self::start_on("127.0.0.1:0", registry, token)
    }

    pub fn start_on(address: &str, registry: Registry, token: Option<&str>) -> Self {
        let registry = Arc::new(registry);
        let recorder = Arc::new(Recorder {
            registry: Some(Arc::clone(&registry)),
            ..Recorder::default()
        });
        let divergences = Arc::new(DivergenceStore::default());
        for (kind, command) in [
            (DivergenceKind::DataMismatch, "SELECT * FROM t WHERE id = ?"),
            (DivergenceKind::ExtraData, "get"),
        ] {
            divergences.push(DivergenceRecord {
                at_unix_ms: 1_700_000_000_000,
                source: "prod0".into(),
                destination: "next".into(),
                kind,
                command: command.into(),
                key: "user:<7>".into(),
                pattern: String::new(),
                primary: "<script>alert(1)</script>".into(),
                mirror: "2".into(),
                core: 0,
                client: "10.0.0.9:5000".into(),
            });
        }
        let judge = |m: &parhelion::metrics::MirrorTotal, _| Verdict {
            verdict: if m.divergences_real() > 0 {
                "not ready"
            } else {
                "ready"
            }
            .into(),
            reasons: vec![format!("{} divergences", m.divergences_real())],
            rests_on: vec!["everything".into()],
        };
        let commands: Arc<dyn Commands> = recorder.clone();
        let token = token.map(str::to_owned);
        let state = ControlState::new(registry, divergences, commands, Box::new(judge), token);
        let state = Arc::new(state);
        let listener = TcpListener::bind(address).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let served = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            let shutdown = async move {
                let _ = stopped.await;
            };
            runtime
                .block_on(http::serve(listener, served, shutdown))
                .unwrap();
        });
        Self {
            addr,
            state,
            recorder,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, &[("Content-Type", "application/json")], body)
    }

    /// One request over a socket of its own, with exactly these headers besides Host and Content-Length.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut socket = TcpStream::connect(self.addr).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: {}\r\n", self.addr);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        socket.write_all(head.as_bytes()).unwrap();
        let mut raw = Vec::new();
        socket.read_to_end(&mut raw).unwrap();
        Answer::parse(&String::from_utf8(raw).unwrap())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    fn parse(raw: &str) -> Self {
        let (head, body) = raw.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self {
            status,
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}
