//! Copies tainted keys from the backend in front to the one that follows.
//!
//! A key is read over a connection of our own. If no write of it was answered since the read was sent, the copy takes
//! its place in the queue: behind every write that it contains, in front of every later one. Else it is read again.
//! A write that was on its way during the read finds the read when it is answered, and taints the key once more.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::super::numbers;
use super::link::{Broken, Link};
use super::{Dual, OUR_STREAM, nanos, unix_ms};
use crate::limits::REPAIR_BATCH;
use crate::mirror::dual::expiries::End;
use crate::mirror::dual::queue::Kind;
use crate::mirror::dual::repair::{Copying, ask, databases, plan, scanned};
use crate::mirror::dual::taint::Key;
use crate::protocol::resp::Reply;
use crate::protocol::resp::effects::encode;
use crate::proxy::backoff::Backoff;
use crate::proxy::redis::observe::{Backend, Observer as _};

/// Pause when there is nothing to do but wait for keys that rest.
const REST: Duration = Duration::from_millis(5);

/// Works until the dual write is retired.
pub(super) async fn run(dual: Rc<Dual>) {
    let mut backoff = Backoff::default();
    while !dual.retired.get() {
        if !dual.may_repair() {
            dual.chores.wait().await;
            continue;
        }
        let front = dual.front();
        match Repair::open(&dual, front).await {
            Ok(mut repair) => {
                backoff.reset();
                if let Err(broken) = repair.work(&dual).await {
                    tracing::warn!(reason = %broken, source = dual.source, "a repair was interrupted");
                    dual.context.ring.sleep(REST * 10, false).await;
                }
            }
            Err(problem) => backoff.complain(&dual.leader().name, &problem),
        }
        backoff.pause(&dual.context, || dual.retired.get()).await;
    }
}

impl Dual {
    /// The follower is there and something is to be copied. Wakes the worker, should the follower not be there.
    fn may_repair(&self) -> bool {
        let due = self.options.borrow().repair
            && self.mode.get().writes_both()
            && !self.state.borrow().queue.taint.is_empty();
        if due && !self.connected.get() {
            self.work.wake_one();
        }
        due && self.connected.get()
    }
}

struct Repair {
    front: Backend,
    source: Link,
    walk: Option<Walk>,
}

/// A walk through all keys of both backends.
struct Walk {
    number: u64,
    follower: Link,
    /// Databases still to be read: of the follower, or of the source.
    left: VecDeque<(bool, u32)>,
    cursor: Vec<u8>,
}

impl Repair {
    async fn open(dual: &Dual, front: Backend) -> Result<Repair, Broken> {
        let source = Link::open(&dual.context, dual.at(front)).await?;
        Ok(Repair {
            front,
            source,
            walk: None,
        })
    }

    async fn work(&mut self, dual: &Rc<Dual>) -> Result<(), Broken> {
        while !dual.retired.get() && dual.may_repair() && dual.front() == self.front {
            if !self.has_room(dual) {
                dual.context.ring.sleep(REST, false).await;
                continue;
            }
            let batch = self.batch(dual);
            if !batch.is_empty() {
                let taken = self.copy(dual, &batch).await;
                if taken.is_err() {
                    let now_ns = dual.context.ring.now_ns();
                    let taint = &mut dual.state.borrow_mut().queue.taint;
                    batch.iter().for_each(|key| taint.retry(key.hash(), now_ns));
                }
                taken?;
            } else if dual.state.borrow().queue.taint.is_all() {
                self.walk_on(dual).await?;
            } else {
                dual.context.ring.sleep(REST, false).await;
            }
        }
        Ok(())
    }

    fn has_room(&self, dual: &Dual) -> bool {
        let state = dual.state.borrow();
        let (items, bytes) = dual.metrics.settings.queue_bounds();
        state.queue.len() as u64 <= items / 4 && state.queue.bytes() as u64 <= bytes / 4
    }

    fn batch(&self, dual: &Dual) -> Vec<Key> {
        let now_ns = dual.context.ring.now_ns();
        let taint = &mut dual.state.borrow_mut().queue.taint;
        let mut batch = Vec::new();
        while batch.len() < REPAIR_BATCH
            && let Some(key) = taint.next(now_ns)
        {
            batch.push(key);
        }
        batch.sort_by_key(|key| key.db);
        batch
    }

    async fn copy(&mut self, dual: &Dual, batch: &[Key]) -> Result<(), Broken> {
        let limit = dual.options.borrow().secondary_timeout;
        for some in batch.chunk_by(|a, b| a.db == b.db) {
            let db = numbers::database(some[0].db, dual.at(self.front).db);
            self.source.select(&dual.context, db, limit).await?;
            let copying = dual.state.borrow().copying;
            let mut out = Vec::new();
            let mut replies = 0;
            for key in some {
                replies = ask(key, copying, &mut out) as usize;
            }
            let sent_ns = dual.context.ring.now_ns();
            let answers = self
                .source
                .call(&dual.context, &out, replies * some.len(), limit)
                .await?;
            for (key, answers) in some.iter().zip(answers.chunks(replies)) {
                let answers: Vec<&[u8]> = answers.iter().map(Vec::as_slice).collect();
                self.queue(dual, key, copying, &answers, sent_ns);
            }
        }
        dual.work.wake_one();
        Ok(())
    }

    fn queue(&self, dual: &Dual, key: &Key, copying: Copying, answers: &[&[u8]], sent_ns: u64) {
        let state = &mut *dual.state.borrow_mut();
        let (hash, now_ns) = (key.hash(), dual.context.ring.now_ns());
        if state.order.written_since(hash, sent_ns) || dual.front() != self.front {
            return state.queue.taint.retry(hash, now_ns);
        }
        state.rewrite.clear();
        if let Err(problem) = plan(key, copying, answers, unix_ms(), &mut state.rewrite) {
            tracing::warn!(source = dual.source, %problem, "a key cannot be copied");
            return state.queue.taint.retry(hash, now_ns);
        }
        if let Some(end_ms) = answers
            .get(1)
            .and_then(|bytes| Reply::parse(bytes).integer())
        {
            let end = u64::try_from(end_ms).map_or(End::Never, End::At);
            state.expiries.note(hash, end);
        }
        // Later answers of writes that were on their way find this read.
        state.order.answered(hash, OUR_STREAM, sent_ns, now_ns);
        let mut item = state.queue.item();
        item.kind = Kind::Repair(hash);
        encode(&mut item.request, [b"DEL", &*key.name]);
        item.commands = 1;
        item.db = key.db;
        item.queued_ns = now_ns;
        item.block = copying == Copying::ByType;
        if item.block {
            encode(&mut item.rewritten, ["MULTI"]);
        }
        item.rewritten.extend_from_slice(&state.rewrite.bytes);
        if item.block {
            encode(&mut item.rewritten, ["EXEC"]);
        }
        item.expected.extend_from_slice(&state.rewrite.expected);
        state.queue.taint.repaired(hash, now_ns);
        // Should there be no room it taints its key again.
        let _ = state.queue.offer(item);
    }

    /// Reads a few more names.
    async fn walk_on(&mut self, dual: &Dual) -> Result<(), Broken> {
        let limit = dual.options.borrow().secondary_timeout;
        let Some(walk) = &mut self.walk else {
            self.walk = Some(self.begin_walk(dual, limit).await?);
            return Ok(());
        };
        let Some((of_follower, db)) = walk.left.front().copied() else {
            let number = walk.number;
            self.walk = None;
            dual.state.borrow_mut().queue.taint.all_repaired(number);
            tracing::info!(source = dual.source, "every key was copied");
            return Ok(());
        };
        let link = if of_follower {
            &mut walk.follower
        } else {
            &mut self.source
        };
        link.select(&dual.context, db, limit).await?;
        let mut out = Vec::new();
        encode(
            &mut out,
            [b"SCAN".as_slice(), &walk.cursor, b"COUNT", b"256"],
        );
        let replies = link.call(&dual.context, &out, 1, limit).await?;
        let Some((cursor, names)) = scanned(&replies[0]) else {
            return Err(Broken::Refused("SCAN"));
        };
        let backend = match of_follower {
            true => super::other(self.front),
            false => self.front,
        };
        let called = numbers::called(db, dual.at(backend).db);
        let taint = &mut dual.state.borrow_mut().queue.taint;
        names.for_each(|name| taint.add(called, name));
        walk.cursor = cursor.to_vec();
        if walk.cursor == b"0" {
            walk.left.pop_front();
        }
        Ok(())
    }

    async fn begin_walk(&mut self, dual: &Dual, limit: Duration) -> Result<Walk, Broken> {
        let number = dual.state.borrow().queue.taint.walk();
        let mut follower = Link::open(&dual.context, dual.follower()).await?;
        let mut out = Vec::new();
        encode(&mut out, ["INFO", "keyspace"]);
        let mut left = VecDeque::new();
        for (of_follower, link) in [(true, &mut follower), (false, &mut self.source)] {
            let info = link.call(&dual.context, &out, 1, limit).await?;
            left.extend(databases(&info[0]).into_iter().map(|db| (of_follower, db)));
        }
        let _ = nanos(limit);
        Ok(Walk {
            number,
            follower,
            left,
            cursor: b"0".to_vec(),
        })
    }
}
