//! Mismatches of shadow reads, read again on both sides before anybody is told.
//!
//! The backend in front is read over a connection of our own; the follower's turn comes through the queue, behind
//! every write that was answered before. Only if both still differ, and nobody wrote meanwhile, it is a divergence.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use super::super::judge::{Found, Judgement};
use super::super::numbers;
use super::link::{Broken, Link};
use super::{Dual, State};
use crate::limits::{
    EXPIRY_CLOCK_SKEW_MS, HELD_BACK_BATCH, HELD_BACK_BYTES_MAX, HELD_BACK_MAX, REREAD_ATTEMPTS,
    REREAD_WITHIN_NS, REREADS_MAX,
};
use crate::metrics::{DivergenceKind, MirrorMetrics};
use crate::mirror::dual::keys;
use crate::mirror::dual::queue::{Item, Kind};
use crate::mirror::unit::ClientId;
use crate::protocol::resp::command::lookup_request;
use crate::protocol::resp::effects::encode;
use crate::protocol::resp::{Command, Reply, Request};
use crate::proxy::backoff::Backoff;
use crate::proxy::redis::observe::{Backend, Observer as _};

/// Pause before the second and third attempt.
const PAUSE_NS: u64 = 25_000_000;

/// How long the mismatch of a write waits for the answers of writes that overlapped with it.
const HOLD_BACK_NS: u64 = 50_000_000;

/// Works until the dual write is retired.
pub(super) async fn run(dual: Rc<Dual>) {
    let mut backoff = Backoff::default();
    let mut link: Option<(Backend, Link)> = None;
    while !dual.retired.get() {
        let now_ns = dual.context.ring.now_ns();
        let due = dual.due_held_back(now_ns);
        for some in due.chunk_by(|a, b| a.db == b.db) {
            for some in some.chunks(HELD_BACK_BATCH) {
                let ended = match connected(&dual, &mut link, &mut backoff).await {
                    Some(link) => unseen_ends(&dual, link, some).await,
                    None => Err(Broken::Closed),
                };
                if ended.is_err() {
                    // An answer may still come, and is not to be taken for that to a later question.
                    link = None;
                }
                dual.judge_held_back(some, &ended.unwrap_or_default());
            }
        }
        let next = dual.state.borrow_mut().rereads.next(now_ns);
        let number = match next {
            Next::None => {
                dual.chores.wait().await;
                continue;
            }
            Next::At(at_ns) => {
                let pause = Duration::from_nanos(at_ns.saturating_sub(now_ns));
                dual.context.ring.sleep(pause, false).await;
                continue;
            }
            Next::Due(number) => number,
        };
        let read = match connected(&dual, &mut link, &mut backoff).await {
            Some(link) => read(&dual, link, number).await,
            None => Err(Broken::Closed),
        };
        if read.is_err() {
            link = None;
            dual.state
                .borrow_mut()
                .rereads
                .give_up(number, &dual.metrics);
            backoff.pause(&dual.context, || dual.retired.get()).await;
        }
    }
}

/// The connection to the backend in front.
async fn connected<'a>(
    dual: &Dual,
    link: &'a mut Option<(Backend, Link)>,
    backoff: &mut Backoff,
) -> Option<&'a mut Link> {
    let front = dual.front();
    if link.as_ref().is_none_or(|(backend, _)| *backend != front) {
        *link = match Link::open(&dual.context, dual.at(front)).await {
            Ok(open) => Some((front, open)),
            Err(problem) => {
                backoff.complain(&dual.leader().name, &problem);
                None
            }
        };
    }
    link.as_mut().map(|(_, link)| link)
}

/// For each write, all of one database, whether its key has ended, or is about to, by a time that nobody told us: a write
/// before that moment and its repetition behind it find different things. It has if it is gone although the last write of
/// it leaves a key.
async fn unseen_ends(dual: &Dual, link: &mut Link, held: &[HeldBack]) -> Result<Vec<bool>, Broken> {
    let keys: Vec<_> = held.iter().map(|held| lasting_key(&held.request)).collect();
    let mut question = Vec::new();
    let mut asked = 0;
    for key in keys.iter().flatten() {
        encode(&mut question, [b"PTTL".as_slice(), key]);
        asked += 1;
    }
    if asked == 0 {
        return Ok(vec![false; held.len()]);
    }
    let limit = dual.options.borrow().shadow_timeout;
    let database = numbers::database(held[0].db, dual.leader().db);
    link.select(&dual.context, database, limit).await?;
    let replies = link.call(&dual.context, &question, asked, limit).await?;
    let order = &dual.state.borrow().order;
    let mut left_ms = replies.iter().map(|reply| Reply::parse(reply).integer());
    let ended = |(held, key): (&HeldBack, &Option<Vec<u8>>)| {
        let Some(key) = key else { return false };
        match left_ms.next().flatten() {
            Some(-2) => !order.written_since(keys::hash(held.db, key), held.answered_ns + 1),
            Some(left_ms @ 0..) => left_ms.unsigned_abs() <= EXPIRY_CLOCK_SKEW_MS,
            _ => false,
        }
    };
    Ok(held.iter().zip(&keys).map(ended).collect())
}

/// Reads the backend in front once more and queues the follower's turn.
async fn read(dual: &Dual, link: &mut Link, number: u64) -> Result<(), Broken> {
    let (request, db) = match dual.state.borrow().rereads.open.get(&number) {
        Some(suspicion) => (suspicion.request.clone(), suspicion.db),
        None => return Ok(()),
    };
    let limit = dual.options.borrow().shadow_timeout;
    let database = numbers::database(db, dual.leader().db);
    link.select(&dual.context, database, limit).await?;
    let sent_ns = dual.context.ring.now_ns();
    let replies = link.call(&dual.context, &request, 1, limit).await?;
    let state = &mut *dual.state.borrow_mut();
    if let Some(suspicion) = state.rereads.open.get_mut(&number) {
        suspicion.sent_ns = sent_ns;
    }
    let mut item = state.queue.item();
    item.kind = Kind::Reread(number);
    item.request.extend_from_slice(&request);
    item.reply.extend_from_slice(&replies[0]);
    item.commands = 1;
    item.db = db;
    item.queued_ns = dual.context.ring.now_ns();
    if state.queue.offer(item).is_err() {
        state.rereads.give_up(number, &dual.metrics);
    }
    dual.work.wake_one();
    Ok(())
}

/// One mismatch.
struct Suspicion {
    request: Vec<u8>,
    db: u32,
    client: ClientId,
    found: Found,
    attempts: u32,
    since_ns: u64,
    sent_ns: u64,
}

/// The mismatches that are being read again.
#[derive(Default)]
pub(super) struct Rereads {
    open: HashMap<u64, Suspicion>,
    /// Mismatches of writes that are told if no doubt about their order comes up.
    held_back: VecDeque<HeldBack>,
    /// Bytes of their requests.
    held_back_bytes: usize,
    due: VecDeque<(u64, u64)>,
    last: u64,
}

/// A write whose reply differed.
struct HeldBack {
    due_ns: u64,
    found: Found,
    client: ClientId,
    /// Its bytes, for its keys.
    request: Vec<u8>,
    db: u32,
    answered_ns: u64,
    raced: bool,
    /// It may have waited itself.
    waited: bool,
}

/// Commands behind which their key is there, whatever was there before.
const LEAVES_A_KEY: [&str; 22] = [
    "APPEND",
    "DECR",
    "DECRBY",
    "GEOADD",
    "GETSET",
    "HINCRBY",
    "HINCRBYFLOAT",
    "HMSET",
    "HSET",
    "HSETNX",
    "INCR",
    "INCRBY",
    "INCRBYFLOAT",
    "LPUSH",
    "PFADD",
    "RPUSH",
    "SADD",
    "SETBIT",
    "SETNX",
    "XADD",
    "ZADD",
    "ZINCRBY",
];

/// The key of a command that surely left one. With XX or NOMKSTREAM it may leave nothing.
fn lasting_key(request: &[u8]) -> Option<Vec<u8>> {
    let request = Request::parse(request);
    let command = lookup_request(&request)?;
    let leaves = LEAVES_A_KEY.contains(&command.name());
    let option: &[u8] = match command.name() {
        "GEOADD" | "ZADD" => b"XX",
        "XADD" => b"NOMKSTREAM",
        _ => b"",
    };
    let mut words = (2..request.len()).filter_map(|at| request.arg(at));
    let conditional = !option.is_empty() && words.any(|word| word.eq_ignore_ascii_case(option));
    (leaves && !conditional).then(|| request.arg(1).map(<[u8]>::to_vec))?
}

enum Next {
    None,
    At(u64),
    Due(u64),
}

impl Rereads {
    /// A shadow read differed.
    pub fn suspect(&mut self, item: &Item, found: Found, metrics: &MirrorMetrics) {
        if self.open.len() >= REREADS_MAX {
            // Nothing is told that was not read again; the ones that are tell enough.
            metrics.not_compared.add(1);
            return;
        }
        self.last += 1;
        let suspicion = Suspicion {
            request: item.request.clone(),
            db: item.db,
            client: item.client,
            found,
            attempts: 0,
            since_ns: item.queued_ns,
            sent_ns: 0,
        };
        self.open.insert(self.last, suspicion);
        self.due.push_back((0, self.last));
    }

    /// The connection to the follower is gone, and with it what was on its way.
    pub fn lost(&mut self) {
        self.open.clear();
        self.due.clear();
    }

    /// Something is to be read again or told, now or soon.
    pub fn is_due(&self) -> bool {
        !self.due.is_empty() || !self.held_back.is_empty()
    }

    /// The reply of a write differed. A write that overlapped with it may not have been answered yet: it is told a
    /// little later, unless the order turns out to be unknown. False: there is no room.
    pub fn hold_back(&mut self, item: &Item, found: &Found, now_ns: u64) -> bool {
        let bytes = self.held_back_bytes + item.request.len();
        if self.held_back.len() >= HELD_BACK_MAX || bytes > HELD_BACK_BYTES_MAX {
            return false;
        }
        self.held_back_bytes = bytes;
        self.held_back.push_back(HeldBack {
            due_ns: now_ns + HOLD_BACK_NS,
            found: found.clone(),
            client: item.client,
            request: item.request.clone(),
            db: item.db,
            answered_ns: item.answered_ns,
            raced: item.raced,
            waited: item.commands == 1 && item.command.is_some_and(Command::may_block),
        });
        true
    }

    fn next(&mut self, now_ns: u64) -> Next {
        let held_ns = self.held_back.front().map(|held| held.due_ns);
        match self.due.front() {
            None => held_ns.map_or(Next::None, Next::At),
            Some((at_ns, _)) if *at_ns > now_ns => {
                Next::At(held_ns.map_or(*at_ns, |held_ns| held_ns.min(*at_ns)))
            }
            Some((_, number)) => {
                let number = *number;
                self.due.pop_front();
                Next::Due(number)
            }
        }
    }

    fn give_up(&mut self, number: u64, metrics: &MirrorMetrics) {
        if self.open.remove(&number).is_some() {
            metrics.shadow_read_errors.add(1);
        }
    }
}

impl Dual {
    /// Writes whose replies differed, where nothing speaks against telling it.
    fn due_held_back(&self, now_ns: u64) -> Vec<HeldBack> {
        let mut due = Vec::new();
        loop {
            let told = {
                let state = &mut *self.state.borrow_mut();
                let held_back = &mut state.rereads.held_back;
                if held_back.front().is_none_or(|held| held.due_ns > now_ns) {
                    return due;
                }
                let Some(held) = held_back.pop_front() else {
                    return due;
                };
                state.rereads.held_back_bytes -= held.request.len();
                let (mut raced, mut overtaken) = (false, held.raced);
                keys::visit(&held.request, held.db, |db, key| {
                    let hash = keys::hash(db, key);
                    overtaken |= !held.waited && state.order.waited_since(hash, held.answered_ns);
                    raced |= state.order.doubted_since(hash, held.answered_ns)
                        || state.queue.taint.contains(hash);
                });
                if overtaken {
                    // Who was first is not known: what came of it is copied.
                    state.queue.taint_unit(&held.request, held.db);
                }
                (!raced && !overtaken).then_some(held)
            };
            match told {
                Some(held) => due.push(held),
                None => {
                    self.metrics.diverge(DivergenceKind::Transient);
                    self.chores.wake_all();
                }
            }
        }
    }

    /// Tells of the writes whose keys have not ended unseen; copies the keys of the others.
    fn judge_held_back(&self, held: &[HeldBack], ended: &[bool]) {
        for (at, held) in held.iter().enumerate() {
            if ended.get(at).copied().unwrap_or_default() {
                let state = &mut *self.state.borrow_mut();
                state.queue.taint_unit(&held.request, held.db);
                self.metrics.diverge(DivergenceKind::Transient);
                self.chores.wake_all();
            } else {
                self.tell(held.found.clone(), held.client);
            }
        }
    }

    /// The follower has answered a reread.
    pub(super) fn reread_answered(
        &self,
        state: &mut State,
        number: u64,
        item: &Item,
        judgement: &Judgement,
    ) {
        let now_ns = self.context.ring.now_ns();
        let Some(suspicion) = state.rereads.open.get_mut(&number) else {
            return;
        };
        let Judgement::Different(found) = judgement else {
            state.rereads.open.remove(&number);
            return self.metrics.diverge(DivergenceKind::Transient);
        };
        suspicion.attempts += 1;
        suspicion.found = (**found).clone();
        let late = now_ns.saturating_sub(suspicion.since_ns) + PAUSE_NS > REREAD_WITHIN_NS;
        if suspicion.attempts < REREAD_ATTEMPTS && !(late && suspicion.attempts > 0) {
            state.rereads.due.push_back((now_ns + PAUSE_NS, number));
            return;
        }
        let sent_ns = suspicion.sent_ns;
        let mut raced = false;
        keys::visit(&item.request, item.db, |db, key| {
            let hash = keys::hash(db, key);
            raced |= state.order.written_since(hash, sent_ns) || state.queue.in_doubt(hash);
        });
        let Some(suspicion) = state.rereads.open.remove(&number) else {
            return;
        };
        if raced {
            // Written to during every attempt: nothing is known about it, and it is looked at again with its next read.
            return self.metrics.diverge(DivergenceKind::Transient);
        }
        self.tell(suspicion.found, suspicion.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_leaves_a_key_may_be_excused_by_one_that_is_gone() {
        let key_of = |words: &[&str]| {
            let mut request = Vec::new();
            encode(&mut request, words);
            lasting_key(&request)
        };
        for words in [
            &["ZADD", "k", "1", "m"][..],
            &["XADD", "k", "*", "f", "v"],
            &["LPUSH", "k", "xx"],
        ] {
            assert_eq!(key_of(words).as_deref(), Some(&b"k"[..]), "{words:?}");
        }
        for words in [
            &["ZADD", "k", "xx", "1", "m"][..],
            &["GEOADD", "k", "XX", "1", "2", "m"],
            &["XADD", "k", "NOMKSTREAM", "*", "f", "v"],
            &["SETRANGE", "k", "0", ""],
            &["BITFIELD", "k", "GET", "u8", "0"],
            &["LPUSHX", "k", "v"],
            &["DEL", "k"],
        ] {
            assert_eq!(key_of(words), None, "{words:?}");
        }
    }
}
