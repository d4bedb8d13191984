//! Shadow reads: behind the writes before them, and read again before they are told.

use parhelion::mirror::dual::keys::{hash, visit};
use parhelion::mirror::dual::queue::Kind;

use super::Mistake;
use super::world::{STREAMS, World, read};

/// Attempts to read again, as the proxy makes them.
const ATTEMPTS: u32 = 3;
/// A shadow read that differed.
pub struct Suspicion {
    request: Vec<u8>,
    attempts: u32,
    sent_ns: u64,
    /// Its turn is in the queue.
    queued: bool,
}

impl World {
    /// A read that the primary has answered goes behind the writes that it has answered.
    pub fn shadow(&mut self, request: Vec<u8>, reply: Vec<u8>) {
        if self.mistake == Some(Mistake::Fence) {
            if self.connected
                && read(&self.secondary, &request) != reply
                && !self.in_doubt(&request)
            {
                self.told += 1;
            }
            return;
        }
        let mut item = self.queue.item();
        item.kind = Kind::Read;
        item.request = request;
        item.reply = reply;
        item.commands = 1;
        let _ = self.queue.offer(item);
    }

    fn in_doubt(&self, request: &[u8]) -> bool {
        let mut doubt = self.queue.taint.is_all();
        visit(request, 0, |db, key| {
            doubt |= self.queue.in_doubt(hash(db, key));
        });
        doubt
    }

    /// The secondary has answered a read: what differs is read again, as the proxy's rereads do.
    pub fn read_answered(&mut self, kind: Kind, request: Vec<u8>, wanted: &[u8]) {
        let differs = read(&self.secondary, &request) != wanted && !self.in_doubt(&request);
        self.compared += 1;
        match kind {
            Kind::Read if differs && self.mistake == Some(Mistake::Reread) => self.told += 1,
            Kind::Read if differs => {
                self.last_suspicion += 1;
                let suspicion = Suspicion {
                    request,
                    attempts: 0,
                    sent_ns: 0,
                    queued: false,
                };
                self.suspicions.insert(self.last_suspicion, suspicion);
            }
            Kind::Reread(number) => {
                // An answer is never on its way for as long as a read again takes its turn: what the primary had executed
                // before it was read is known by now.
                for stream in 0..STREAMS {
                    while self.streams[stream]
                        .front()
                        .is_some_and(|pending| pending.executed)
                    {
                        self.stream_answers(stream);
                    }
                }
                let Some(mut suspicion) = self.suspicions.remove(&number) else {
                    return;
                };
                if !differs {
                    return;
                }
                suspicion.attempts += 1;
                suspicion.queued = false;
                if suspicion.attempts < ATTEMPTS {
                    self.suspicions.insert(number, suspicion);
                    return;
                }
                let mut raced = self.in_doubt(&suspicion.request);
                visit(&suspicion.request, 0, |db, key| {
                    raced |= self.order.written_since(hash(db, key), suspicion.sent_ns);
                });
                self.told += u64::from(!raced);
            }
            _ => {}
        }
    }

    /// Reads the primary once more and queues the secondary's turn.
    pub fn read_again(&mut self) {
        let next = self.suspicions.iter_mut().find(|(_, one)| !one.queued);
        let Some((number, suspicion)) = next else {
            return;
        };
        suspicion.sent_ns = self.now_ns;
        suspicion.queued = true;
        let number = *number;
        let mut item = self.queue.item();
        item.kind = Kind::Reread(number);
        item.request.clone_from(&suspicion.request);
        item.reply = read(&self.primary, &suspicion.request);
        item.commands = 1;
        if self.queue.offer(item).is_err() {
            self.suspicions.remove(&number);
        }
    }
}
