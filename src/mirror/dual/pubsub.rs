//! Matches the messages of two subscriptions to the same channels, one at each server.
//!
//! Messages are matched as a multiset: in any order, but as often here as there, within a window of time. What is left
//! alone for longer was lost or invented.

use std::collections::{HashMap, VecDeque};

use xxhash_rust::xxh3::Xxh3;

use crate::limits::{DIVERGENCE_VALUE_LEN_MAX, PUBSUB_PENDING_MAX};
use crate::protocol::resp::Reply;

/// Which subscription saw a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that the client has.
    Primary,
    /// The shadow.
    Secondary,
}

/// A message that one side alone saw for longer than the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    /// Who saw it.
    pub side: Side,
    /// `MESSAGE`, `PMESSAGE` or `SMESSAGE`.
    pub kind: &'static str,
    /// The pattern; empty unless it is a PMESSAGE.
    pub pattern: Vec<u8>,
    /// The channel.
    pub channel: Vec<u8>,
    /// The beginning of the payload.
    pub payload: Vec<u8>,
}

#[derive(Debug)]
struct Waiting {
    side: Side,
    since: VecDeque<u64>,
    shown: Unmatched,
}

/// The messages of one client. See the module.
#[derive(Debug)]
pub struct Matcher {
    window_ns: u64,
    waiting: HashMap<u128, Waiting>,
    /// In the order of arrival; entries whose message was matched since are passed over.
    order: VecDeque<(u64, u128)>,
    pending: usize,
    overflowed: u64,
}

impl Matcher {
    /// Messages may come `window_ns` apart.
    pub fn new(window_ns: u64) -> Matcher {
        Matcher {
            window_ns,
            waiting: HashMap::new(),
            order: VecDeque::new(),
            pending: 0,
            overflowed: 0,
        }
    }

    /// A frame of one side. Anything but a message is passed over.
    pub fn see(&mut self, side: Side, frame: &[u8], now_ns: u64) {
        let Some(message) = Message::of(frame) else {
            return;
        };
        let digest = message.digest();
        if let Some(waiting) = self.waiting.get_mut(&digest)
            && waiting.side != side
        {
            waiting.since.pop_front();
            self.pending -= 1;
            if waiting.since.is_empty() {
                self.waiting.remove(&digest);
            }
            return;
        }
        if self.pending >= PUBSUB_PENDING_MAX {
            self.overflowed += 1;
            return;
        }
        self.pending += 1;
        self.order.push_back((now_ns, digest));
        let waiting = self.waiting.entry(digest).or_insert_with(|| Waiting {
            side,
            since: VecDeque::new(),
            shown: message.shown(side),
        });
        waiting.since.push_back(now_ns);
    }

    /// A message that has waited longer than the window; call it until there is none.
    pub fn expired(&mut self, now_ns: u64) -> Option<Unmatched> {
        loop {
            let (since, digest) = *self.order.front()?;
            if now_ns.saturating_sub(since) < self.window_ns {
                return None;
            }
            self.order.pop_front();
            let Some(waiting) = self.waiting.get_mut(&digest) else {
                continue;
            };
            // A match takes the oldest first: this one may have been matched by its time.
            if waiting.since.front() != Some(&since) {
                continue;
            }
            waiting.since.pop_front();
            self.pending -= 1;
            let shown = waiting.shown.clone();
            if waiting.since.is_empty() {
                self.waiting.remove(&digest);
            }
            return Some(shown);
        }
    }

    /// Messages that wait for their counterpart.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Messages that were not matched because too many waited.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }

    /// The shadow is gone: nothing is compared any more.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.order.clear();
        self.pending = 0;
    }
}

struct Message<'a> {
    kind: &'static str,
    pattern: &'a [u8],
    channel: &'a [u8],
    payload: Reply<'a>,
}

impl<'a> Message<'a> {
    fn of(frame: &'a [u8]) -> Option<Message<'a>> {
        let reply = Reply::parse(frame);
        if !matches!(reply.kind(), b'*' | b'>') {
            return None;
        }
        let mut parts = reply.elements();
        let (kind, patterned) = match parts.next()?.text()? {
            b"message" => ("MESSAGE", false),
            b"pmessage" => ("PMESSAGE", true),
            b"smessage" => ("SMESSAGE", false),
            _ => return None,
        };
        let pattern = if patterned {
            parts.next()?.text()?
        } else {
            b""
        };
        Some(Message {
            kind,
            pattern,
            channel: parts.next()?.text()?,
            payload: parts.next()?,
        })
    }

    fn digest(&self) -> u128 {
        let mut hash = Xxh3::new();
        let payload = self.payload.text().unwrap_or(self.payload.bytes());
        for part in [self.kind.as_bytes(), self.pattern, self.channel, payload] {
            hash.update(&part.len().to_le_bytes());
            hash.update(part);
        }
        hash.digest128()
    }

    fn shown(&self, side: Side) -> Unmatched {
        let shown = |bytes: &[u8]| bytes[..bytes.len().min(DIVERGENCE_VALUE_LEN_MAX)].to_vec();
        Unmatched {
            side,
            kind: self.kind,
            pattern: shown(self.pattern),
            channel: shown(self.channel),
            payload: shown(self.payload.text().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(channel: &str, payload: &str) -> Vec<u8> {
        let mut out = Vec::new();
        crate::protocol::resp::effects::encode(&mut out, ["message", channel, payload]);
        out
    }

    #[test]
    fn messages_match_in_either_order_and_as_often_as_they_came() {
        let mut matcher = Matcher::new(100);
        for side in [Side::Primary, Side::Primary, Side::Secondary] {
            matcher.see(side, &message("c", "x"), 5);
        }
        matcher.see(Side::Secondary, &message("c", "y"), 6);
        matcher.see(Side::Primary, &message("c", "y"), 7);
        assert_eq!((matcher.pending(), matcher.expired(104)), (1, None));
        let alone = matcher.expired(105).unwrap();
        assert_eq!(
            (alone.side, alone.kind, alone.payload.as_slice()),
            (Side::Primary, "MESSAGE", b"x".as_slice())
        );
        assert_eq!((matcher.pending(), matcher.expired(1000)), (0, None));
    }

    #[test]
    fn resp3_pushes_equal_resp2_messages_and_patterns_count() {
        let mut matcher = Matcher::new(100);
        matcher.see(
            Side::Primary,
            b">4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\nc\r\n$1\r\nx\r\n",
            0,
        );
        matcher.see(
            Side::Secondary,
            b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\nc\r\n$1\r\nx\r\n",
            0,
        );
        matcher.see(
            Side::Primary,
            b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n",
            0,
        );
        assert_eq!(matcher.pending(), 0);
        matcher.see(Side::Secondary, &message("c", "x"), 0);
        assert_eq!(
            matcher.expired(100).map(|alone| alone.side),
            Some(Side::Secondary)
        );
    }

    #[test]
    fn a_random_interleaving_reports_exactly_the_surplus() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut matcher = Matcher::new(1000);
            let mut surplus = [0_i64; 5];
            for now in 0..200 {
                let which = rng.usize(..5);
                let side = if rng.bool() {
                    Side::Primary
                } else {
                    Side::Secondary
                };
                surplus[which] += if side == Side::Primary { 1 } else { -1 };
                matcher.see(side, &message("c", &which.to_string()), now);
            }
            let mut found = [0_i64; 5];
            while let Some(alone) = matcher.expired(10_000) {
                found[usize::from(alone.payload[0] - b'0')] +=
                    if alone.side == Side::Primary { 1 } else { -1 };
            }
            assert_eq!(found, surplus, "seed {seed}");
            assert!(matcher.order.is_empty() && matcher.waiting.is_empty());
        }
    }
}
