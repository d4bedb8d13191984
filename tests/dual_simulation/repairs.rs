//! Repairs: keys in doubt are copied from the primary.

use parhelion::mirror::dual::queue::Kind;
use parhelion::mirror::dual::taint::Key;
use parhelion::protocol::resp::effects::encode;

use super::Mistake;
use super::world::World;

pub struct Copy {
    key: Key,
    sent_ns: u64,
    value: Option<Option<Vec<u8>>>,
}

impl World {
    pub fn repair(&mut self) {
        match self.rng.u8(0..3) {
            0 => self.begin_copy(),
            // The primary reads the key at some moment of the request.
            1 => {
                for copy in &mut self.copies {
                    copy.value
                        .get_or_insert_with(|| self.primary.get(&*copy.key.name).cloned());
                }
            }
            _ => self.end_copy(),
        }
    }

    fn begin_copy(&mut self) {
        if !self.connected {
            return;
        }
        if self.queue.taint.is_all() {
            let walk = self.queue.taint.walk();
            let names: Vec<_> = self
                .primary
                .keys()
                .chain(self.secondary.keys())
                .cloned()
                .collect();
            names.iter().for_each(|name| self.queue.taint.add(0, name));
            self.queue.taint.all_repaired(walk);
        }
        if let Some(key) = self.queue.taint.next(self.now_ns) {
            self.copies.push(Copy {
                key,
                sent_ns: self.now_ns,
                value: None,
            });
        }
    }

    fn end_copy(&mut self) {
        if self.copies.first().is_none_or(|copy| copy.value.is_none()) {
            return;
        }
        let Copy {
            key,
            sent_ns,
            value,
        } = self.copies.remove(0);
        let name = key.hash();
        if self.order.written_since(name, sent_ns) && self.mistake != Some(Mistake::Copies) {
            return self.queue.taint.retry(name, self.now_ns);
        }
        self.order.answered(name, 0, sent_ns, self.now_ns);
        let mut item = self.queue.item();
        item.kind = Kind::Repair(name);
        encode(&mut item.request, [b"DEL".as_slice(), &key.name]);
        item.commands = 1;
        match value.unwrap() {
            Some(value) => encode(&mut item.rewritten, [b"SET".as_slice(), &key.name, &value]),
            None => encode(&mut item.rewritten, [b"DEL".as_slice(), &key.name]),
        }
        item.expected
            .push(parhelion::protocol::resp::effects::Expected::Anything);
        self.queue.taint.repaired(name, self.now_ns);
        let _ = self.queue.offer(item);
    }
}
