//! The worker of a Redis mirror on one core: one pipelined connection that carries all clients' units in order.

use std::cell::RefMut;
use std::io;
use std::rc::Rc;

use futures_lite::future::or;

use super::collect::{Collected, Frame};
use super::fifo::Fifo;
use super::judge::{self, Judgement};
use super::numbers;
use super::outcome::is_write;
use super::{LOADING, RedisOutcome};
use crate::config::{Compare, Database};
use crate::limits::{
    PREFETCH_AHEAD, REDIS_COMPARE_BYTES, REDIS_HEAD_KEPT_BYTES, REDIS_MIRROR_GATHER,
    REDIS_MIRROR_REPLY_BYTES_MAX, REDIS_MIRROR_WINDOW, SOCKET_SEND_BYTES,
};
use crate::metrics::{ErrorWord, WriteFailure};
use crate::mirror::dispatch::{Dispatcher, Ticket};
use crate::mirror::ledger::Fate;
use crate::mirror::payload::Part;
use crate::protocol::resp::ReplyFramer;
use crate::protocol::resp::command::lookup;
use crate::proxy::Context;
use crate::proxy::backoff::Backoff;
use crate::proxy::mirrors::Mirror;
use crate::ring::{Chunk, Queue, Socket, prefetch};

type RedisMirror = Mirror<RedisOutcome>;
type RedisTicket = Ticket<Chunk, RedisOutcome>;

/// Starts the worker; it ends when the mirror is retired.
pub fn start_workers(context: &Rc<Context>, mirror: Rc<RedisMirror>) {
    mirror
        .dispatcher
        .borrow_mut()
        .set_window(REDIS_MIRROR_WINDOW);
    let worker = Worker {
        context: context.clone(),
        mirror,
    };
    context.queues.spawn(Queue::Mirror, worker.run());
}

struct Worker {
    context: Rc<Context>,
    mirror: Rc<RedisMirror>,
}

/// Something whose reply is awaited.
#[derive(Default)]
struct Flight {
    /// `None`: HELLO or SELECT, to bring the connection where the next unit needs it.
    ticket: Option<RedisTicket>,
    replies_left: u32,
    sent_ns: u64,
}

/// One connection to the mirror.
struct Lane {
    socket: Socket,
    framer: ReplyFramer,
    collected: Collected,
    flights: Fifo<Flight>,
    db: u32,
    resp: u8,
    units: usize,
}

/// Why a lane cannot go on.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("it sent what is no reply: {0}")]
    Protocol(String),
    #[error("it refused {0}")]
    Refused(&'static str),
    #[error("it sent a reply that nobody asked for")]
    Unsolicited,
    #[error("it is loading its data and executes nothing")]
    Loading,
}

impl Worker {
    async fn run(self) {
        let mut backoff = Backoff::default();
        while !self.mirror.retired.get() {
            if self.dispatcher().queued_units() == 0 {
                self.mirror.work.wait().await;
                continue;
            }
            match self.open().await {
                Ok(mut lane) => {
                    backoff.reset();
                    self.dispatcher().set_unavailable(false);
                    self.mirror.metrics.connections_open.set(1);
                    let broken = self.serve(&mut lane).await;
                    self.mirror.wake_at.set(1);
                    self.mirror.metrics.connections_open.set(0);
                    self.abandon(lane, &broken);
                }
                Err(problem) => {
                    self.dispatcher().set_unavailable(true);
                    self.mirror.metrics.reconnects.add(1);
                    backoff.complain(&self.mirror.destination.name, &problem);
                }
            }
            backoff
                .pause(&self.context, || self.mirror.retired.get())
                .await;
        }
        self.dispatcher().set_unavailable(false);
    }

    async fn open(&self) -> Result<Lane, Broken> {
        let destination = &self.mirror.destination;
        let socket = self.context.connect(destination).await?;
        self.mirror.note_connection(socket.downgrade());
        let mut lane = Lane {
            socket,
            framer: ReplyFramer::new(REDIS_MIRROR_REPLY_BYTES_MAX),
            collected: Collected::default(),
            flights: Fifo::default(),
            db: 0,
            resp: 2,
            units: 0,
        };
        let limit = self.context.config.borrow().general.connect_timeout;
        let greeted = self.context.ring.timeout(limit, lane.greet(destination));
        greeted
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(lane)
    }

    /// Sends units and reads replies until the connection ends.
    async fn serve(&self, lane: &mut Lane) -> Broken {
        loop {
            if self.mirror.retired.get() {
                return Broken::Closed;
            }
            self.fill(lane);
            // As long as a reply is to come, more units are gathered: fewer, larger sends.
            let gathered = if lane.units > 0 {
                REDIS_MIRROR_GATHER
            } else {
                1
            };
            self.mirror.wake_at.set(gathered);
            self.mirror.oldest_sent_ns.set(lane.oldest_sent_ns());
            let received =
                if lane.units < REDIS_MIRROR_WINDOW && lane.socket.queued() < SOCKET_SEND_BYTES {
                    // Whatever comes first: a reply, or another unit.
                    or(async { Some(lane.socket.recv().await) }, async {
                        self.mirror.work.wait().await;
                        None
                    })
                    .await
                } else {
                    Some(lane.socket.recv().await)
                };
            let chunk = match received {
                None => continue,
                Some(Ok(Some(chunk))) => chunk,
                Some(Ok(None)) => return Broken::Closed,
                Some(Err(error)) => return error.into(),
            };
            if let Err(broken) = self.receive(lane, &chunk) {
                return broken;
            }
            self.mirror.note_queue();
        }
    }

    fn fill(&self, lane: &mut Lane) {
        while lane.units < REDIS_MIRROR_WINDOW && lane.socket.queued() < SOCKET_SEND_BYTES {
            let Some(ticket) = self.dispatcher().next() else {
                return;
            };
            let now_ns = self.context.ring.now_ns();
            let delay = now_ns.saturating_sub(ticket.unit.sealed_ns);
            self.mirror.metrics.queue_delay.record(delay);
            lane.send(ticket, self.mirror.destination.db, now_ns);
        }
    }

    fn receive(&self, lane: &mut Lane, chunk: &Chunk) -> Result<(), Broken> {
        let mut offset = 0;
        while offset < chunk.len() {
            let advance = lane
                .framer
                .advance(&chunk[offset..])
                .map_err(|error| Broken::Protocol(error.to_string()))?;
            let piece = offset..offset + advance.consumed;
            offset = piece.end;
            let push = lane.framer.kind() == Some(b'>');
            if advance.done && lane.collected.is_empty() {
                if !push {
                    self.reply(lane, &Frame::Whole(chunk, piece))?;
                }
                continue;
            }
            lane.collected.push(&chunk[piece], REDIS_COMPARE_BYTES);
            if advance.done {
                let collected = std::mem::take(&mut lane.collected);
                if !push {
                    self.reply(lane, &Frame::Collected(&collected))?;
                }
            }
        }
        Ok(())
    }

    fn reply(&self, lane: &mut Lane, frame: &Frame<'_>) -> Result<(), Broken> {
        let failed = frame
            .bytes()
            .first()
            .is_some_and(|kind| matches!(kind, b'-' | b'!'));
        // Not an answer: what was sent is lost as with a server that is not there.
        if failed && frame.bytes().starts_with(LOADING) {
            return Err(Broken::Loading);
        }
        let Some(flight) = lane.flights.front_mut() else {
            return Err(Broken::Unsolicited);
        };
        if flight.ticket.is_none() {
            lane.flights.pop();
            return match failed {
                true => Err(Broken::Refused("HELLO or SELECT")),
                false => Ok(()),
            };
        }
        if failed {
            let word = ErrorWord::of_redis(frame.bytes());
            self.mirror.metrics.errors.count(word);
        }
        flight.replies_left -= 1;
        if flight.replies_left > 0 {
            return Ok(());
        }
        let sent_ns = flight.sent_ns;
        let ticket = flight.ticket.take();
        lane.flights.pop();
        lane.units -= 1;
        let later = lane.flights.get(PREFETCH_AHEAD);
        if let Some(ticket) = later.and_then(|flight| flight.ticket.as_ref()) {
            prefetch(&*ticket.unit);
        }
        let latency_ns = lane.socket.heard_ns().saturating_sub(sent_ns);
        if let Some(ticket) = ticket {
            self.delivered(ticket, latency_ns, frame);
        }
        Ok(())
    }

    fn delivered(&self, ticket: RedisTicket, latency: u64, frame: &Frame<'_>) {
        let metrics = &self.mirror.metrics;
        metrics.latency.record(latency);
        let outcome = &ticket.unit.outcome;
        let failed = matches!(frame.bytes().first(), Some(b'-' | b'!'));
        let by_command = metrics.commands.of(outcome.command);
        by_command.record(!failed, latency);
        if failed && is_write(outcome.command) {
            by_command.fail_write(WriteFailure::Refused);
        }
        let refused = matches!(outcome.reply.first(), Some(b'-' | b'!'));
        let primary = metrics.primary_commands.of(outcome.command);
        primary.record(!refused, outcome.latency_ns);
        metrics.primary_latency.record(outcome.latency_ns);
        if self.mirror.options.compare != Compare::Off {
            match judge::judge(&ticket.unit, frame, self.mirror.options.compare) {
                Judgement::Equal => metrics.compared.add(1),
                Judgement::NotCompared => metrics.not_compared.add(1),
                Judgement::Different(report) => {
                    metrics.compared.add(1);
                    metrics.diverge(report.kind);
                    let found = lookup(report.command.as_bytes(), None);
                    metrics.commands.of(found).diverge(report.kind);
                    self.tell(*report, &ticket);
                }
            }
        }
        self.dispatcher().settle(ticket, Fate::Delivered);
    }

    fn tell(&self, found: judge::Found, ticket: &RedisTicket) {
        let report = crate::proxy::context::DivergenceReport {
            source: self.mirror.source.clone(),
            mirror: self.mirror.destination.name.clone(),
            command: found.command,
            key: found.key,
            pattern: Vec::new(),
            kind: found.kind,
            primary: found.primary,
            secondary: found.secondary,
            client: ticket.unit.client,
            core: self.context.core,
        };
        self.context
            .tell(crate::proxy::context::Event::Divergence(Box::new(report)));
    }

    /// The connection is gone: what was on its way has an unknown outcome.
    fn abandon(&self, lane: Lane, broken: &Broken) {
        if !self.mirror.retired.get() {
            tracing::warn!(mirror = self.mirror.destination.name, reason = %broken,
                lost = lane.units, "the connection to a mirror ended");
            self.mirror.metrics.reconnects.add(1);
        }
        for flight in lane.flights {
            if let Some(ticket) = flight.ticket {
                let command = ticket.unit.outcome.command;
                if is_write(command) {
                    self.mirror
                        .metrics
                        .commands
                        .of(command)
                        .fail_write(WriteFailure::Lost);
                }
                self.dispatcher().settle(ticket, Fate::Errored);
            }
        }
        self.mirror.oldest_sent_ns.set(u64::MAX);
        self.mirror.note_queue();
    }

    fn dispatcher(&self) -> RefMut<'_, Dispatcher<Chunk, RedisOutcome>> {
        self.mirror.dispatcher.borrow_mut()
    }
}

impl Lane {
    fn send(&mut self, ticket: RedisTicket, default_db: u32, now_ns: u64) {
        let outcome = &ticket.unit.outcome;
        if outcome.resp != self.resp {
            self.resp = outcome.resp;
            let version = [b'0' + self.resp];
            self.command(&[b"HELLO", &version]);
            self.flights.push(|_| {});
        }
        let db = numbers::database(outcome.db, default_db);
        if db != self.db {
            self.db = db;
            self.command(&[b"SELECT", db.to_string().as_bytes()]);
            self.flights.push(|_| {});
        }
        for part in ticket.unit.payload.parts() {
            match part {
                Part::Copied(bytes) => self.socket.write(bytes),
                Part::Shared(chunk) => self.socket.send(chunk.clone()),
            }
        }
        self.units += 1;
        self.flights.push(|flight| {
            flight.replies_left = ticket.unit.outcome.replies;
            flight.sent_ns = now_ns;
            flight.ticket = Some(ticket);
        });
    }

    fn command(&self, args: &[&[u8]]) {
        let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            bytes.extend_from_slice(arg);
            bytes.extend_from_slice(b"\r\n");
        }
        self.socket.write(&bytes);
    }

    /// Logs in, and waits for a sign that commands are executed. A server that loads its data refuses them one by one, and may
    /// begin to execute them in the middle of a transaction whose MULTI it has refused: half a unit.
    async fn greet(&mut self, destination: &Database) -> Result<(), Broken> {
        if let Some(password) = &destination.password {
            let user = destination.user.as_deref().unwrap_or("default");
            self.command(&[b"AUTH", user.as_bytes(), password.expose().as_bytes()]);
            if !self.reply().await?.starts_with(b"+") {
                return Err(Broken::Refused("the login"));
            }
        }
        self.command(&[b"PING"]);
        match self.reply().await?.starts_with(LOADING) {
            true => Err(Broken::Loading),
            false => Ok(()),
        }
    }

    /// Reads one reply while nothing else is on its way; returns its beginning.
    async fn reply(&mut self) -> Result<Vec<u8>, Broken> {
        let mut head = Vec::new();
        loop {
            let Some(chunk) = self.socket.recv().await? else {
                return Err(Broken::Closed);
            };
            let advance = self
                .framer
                .advance(&chunk)
                .map_err(|error| Broken::Protocol(error.to_string()))?;
            let kept = advance
                .consumed
                .min(REDIS_HEAD_KEPT_BYTES.saturating_sub(head.len()));
            head.extend_from_slice(&chunk[..kept]);
            if advance.done {
                self.socket
                    .unrecv(chunk.slice(advance.consumed..chunk.len()));
                return Ok(head);
            }
        }
    }

    /// When the oldest unit on its way was sent; `u64::MAX` if there is none.
    fn oldest_sent_ns(&self) -> u64 {
        let unit = self.flights.iter().find(|flight| flight.ticket.is_some());
        unit.map_or(u64::MAX, |flight| flight.sent_ns)
    }
}
