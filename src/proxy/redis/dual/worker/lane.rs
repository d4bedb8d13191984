//! One connection to the backend that follows, with what was asked on it.

use std::cell::RefMut;
use std::collections::VecDeque;
use std::rc::Rc;

use futures_lite::future::or;

use crate::limits::{DUAL_WINDOW, REDIS_COMPARE_BYTES, SOCKET_SEND_BYTES};
use crate::metrics::ErrorWord;
use crate::mirror::dual::keys;
use crate::mirror::dual::queue::{Item, Kind};
use crate::mirror::dual::repair::{Copying, is_foreign_format};
use crate::mirror::dual::scripts::with_body;
use crate::mirror::ledger::DropReason;
use crate::protocol::resp::Request;
use crate::protocol::resp::effects::encode;
use crate::proxy::redis::collect::{Collected, Frame};
use crate::proxy::redis::dual::link::{Broken, Link};
use crate::proxy::redis::dual::{Backend, Dual, State, judge, nanos, other};
use crate::proxy::redis::numbers;
use crate::proxy::redis::observe::Observer as _;
use crate::ring::Chunk;

/// The connection with what was asked on it.
pub(super) struct Lane {
    link: Link,
    collected: Collected,
    /// For each of our own commands on its way: how many items were on their way before it.
    preambles: VecDeque<Preamble>,
}

/// Our own commands in front of an item.
struct Preamble {
    /// Replies to come.
    replies: u32,
    /// Items still in front of it.
    behind: usize,
    /// A refusal ends the connection.
    matters: bool,
}

impl Lane {
    pub(super) fn new(link: Link) -> Lane {
        Lane {
            link,
            collected: Collected::default(),
            preambles: VecDeque::new(),
        }
    }

    /// Works until it breaks, or is needed no more; says why.
    pub(super) async fn serve(&mut self, dual: &Rc<Dual>, follower: Backend) -> Broken {
        loop {
            if dual.retired.get() || other(dual.front()) != follower {
                return Broken::Closed;
            }
            if !dual.mode.get().writes_both() && dual.state.borrow().queue.is_idle() {
                return Broken::Closed;
            }
            self.fill(dual);
            let room = dual.state.borrow().queue.in_flight() < DUAL_WINDOW
                && self.link.socket.queued() < SOCKET_SEND_BYTES;
            let socket = &self.link.socket;
            let received = if room {
                or(async { Some(socket.recv().await) }, async {
                    dual.work.wait().await;
                    None
                })
                .await
            } else {
                Some(socket.recv().await)
            };
            let chunk = match received {
                None => continue,
                Some(Ok(Some(chunk))) => chunk,
                Some(Ok(None)) => return Broken::Closed,
                Some(Err(error)) => return error.into(),
            };
            if let Err(broken) = self.receive(dual, &chunk) {
                return broken;
            }
        }
    }

    fn fill(&mut self, dual: &Dual) {
        let shadow_ns = nanos(dual.options.borrow().shadow_timeout);
        let now_ns = dual.context.ring.now_ns();
        let state = &mut *dual.state.borrow_mut();
        while state.queue.in_flight() < DUAL_WINDOW && self.link.socket.queued() < SOCKET_SEND_BYTES
        {
            let Some(item) = state.queue.front() else {
                return;
            };
            if item.kind == Kind::Read && now_ns.saturating_sub(item.queued_ns) > shadow_ns {
                dual.metrics.shadow_read_errors.add(1);
                state.queue.drop_front(DropReason::Timeout);
                continue;
            }
            let mut own = Vec::new();
            let behind = state.queue.in_flight();
            let db = numbers::database(item.db, dual.follower().db);
            if self.link.db != Some(db) {
                encode(&mut own, ["SELECT", &db.to_string()]);
                self.preambles.push_back(Preamble {
                    replies: 1,
                    behind,
                    matters: true,
                });
                // A transaction may leave the connection in another database.
                self.link.db = if item.commands > 1 { None } else { Some(db) };
            } else if item.commands > 1 {
                self.link.db = None;
            }
            if item.kind == Kind::Script {
                let unit = &item.request;
                for frame in keys::commands(unit) {
                    if state.scripts.tell(&Request::parse(frame), &mut own) {
                        self.preambles.push_back(Preamble {
                            replies: 1,
                            behind,
                            matters: false,
                        });
                    }
                }
            }
            if !own.is_empty() {
                self.link.socket.write(&own);
            }
            if let Some(item) = state.queue.send_next(now_ns) {
                self.link.socket.write(item.bytes());
            }
        }
    }

    fn receive(&mut self, dual: &Dual, chunk: &Chunk) -> Result<(), Broken> {
        let mut offset = 0;
        while offset < chunk.len() {
            let advance = self
                .link
                .framer
                .advance(&chunk[offset..])
                .map_err(|error| Broken::Protocol(error.to_string()))?;
            let piece = offset..offset + advance.consumed;
            offset = piece.end;
            let push = self.link.framer.kind() == Some(b'>');
            if advance.done && self.collected.is_empty() {
                if !push {
                    self.reply(dual, &Frame::Whole(chunk, piece))?;
                }
                continue;
            }
            self.collected.push(&chunk[piece], REDIS_COMPARE_BYTES);
            if advance.done {
                let collected = std::mem::take(&mut self.collected);
                if !push {
                    self.reply(dual, &Frame::Collected(&collected))?;
                }
            }
        }
        Ok(())
    }

    fn reply(&mut self, dual: &Dual, frame: &Frame<'_>) -> Result<(), Broken> {
        let bytes = frame.bytes();
        let failed = matches!(bytes.first(), Some(b'-' | b'!'));
        if let Some(preamble) = self
            .preambles
            .front_mut()
            .filter(|preamble| preamble.behind == 0)
        {
            if failed && preamble.matters {
                return Err(Broken::Refused("SELECT"));
            }
            preamble.replies -= 1;
            if preamble.replies == 0 {
                self.preambles.pop_front();
            }
            return Ok(());
        }
        let mut state = dual.state.borrow_mut();
        let Some((item, index, sent_ns)) = state.queue.expecting() else {
            return Err(Broken::Unsolicited);
        };
        if failed {
            dual.metrics.errors.count(ErrorWord::of_redis(bytes));
        }
        let judgement = judge::judge(item, index, bytes, frame.is_whole());
        let refused = failed && refuses_write(item, index);
        let no_script = failed && bytes.starts_with(b"-NOSCRIPT");
        let no_function = failed && bytes.starts_with(b"-ERR Function not found");
        let foreign = failed && matches!(item.kind, Kind::Repair(_)) && is_foreign_format(bytes);
        let aborted = item.replies() > 1
            && index + 1 == item.replies()
            && (bytes.starts_with(b"*-1") || bytes.starts_with(b"_"));
        if foreign {
            state.copying = Copying::ByType;
        }
        let Some(item) = state.queue.replied() else {
            // One of several: what it shows counts at once.
            if refused {
                let (request, db) = state
                    .queue
                    .expecting()
                    .map(|(item, ..)| (item.request.clone(), item.db))
                    .unwrap_or_default();
                state.queue.taint_unit(&request, db);
                dual.chores.wake_all();
            }
            return Ok(());
        };
        for preamble in &mut self.preambles {
            preamble.behind -= 1;
        }
        if (no_script || no_function) && self.resend(&mut state, &item, no_function) {
            // The body follows right away. What was already on its way behind it came first: its keys are in doubt.
            if state.queue.in_flight() > 0 {
                state.queue.taint_unit(&item.request, item.db);
            }
            state.queue.delivered(item, false);
            dual.chores.wake_all();
            return Ok(());
        }
        drop(state);
        let ok = !failed && !aborted;
        let heard_ns = self.link.socket.heard_ns();
        dual.done(item, judgement, refused || aborted, ok, [sent_ns, heard_ns]);
        Ok(())
    }

    /// Sends a script once more, with its body. False: nobody knows it.
    fn resend(&mut self, state: &mut RefMut<'_, State>, item: &Item, function: bool) -> bool {
        let request = Request::parse(&item.request);
        let mut out = Vec::new();
        let mut replies = 1;
        if function {
            replies += state.scripts.libraries(&mut out);
            out.extend_from_slice(&item.request);
        } else {
            let Some(body) = state.scripts.body(&request).cloned() else {
                return false;
            };
            with_body(&request, &body, &mut out);
        }
        if replies == 1 && function {
            return false;
        }
        self.link.socket.write(&out);
        let behind = state.queue.in_flight();
        self.preambles.push_back(Preamble {
            replies,
            behind,
            matters: false,
        });
        true
    }
}

/// An error means that a write did not take place here although it did at the other backend.
fn refuses_write(item: &Item, _index: u32) -> bool {
    item.kind.writes()
}
