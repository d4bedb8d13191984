//! What one connection asked and what came back: sans-IO, so that a test can script the server and the clock.

use std::collections::VecDeque;

use super::mix::Kind;
use super::{LoadError, Options, Seen};
use crate::demo::reply_len::{Scan, reply_length};

/// What a reply was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// What the command answers.
    Right,
    /// A read that found nothing.
    Missing,
    /// An error reply.
    Error,
    /// Nothing that the command could answer.
    Wrong,
}

/// A request without its reply.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// From when its latency counts.
    since_ns: u64,
    kind: Kind,
    key: u64,
    /// Part of the warm-up.
    silent: bool,
}

/// One connection's state.
#[derive(Debug, Default)]
pub struct Exchange {
    /// What the socket has not taken yet; the driver drains it from the front.
    pub out: Vec<u8>,
    input: Vec<u8>,
    /// Oldest first.
    asked: VecDeque<Asked>,
}

impl Exchange {
    /// Appends a request to `out`. `since_ns`: its scheduled time in an open loop, else now. `silent`: it does not count.
    pub fn ask(&mut self, kind: Kind, key: u64, options: &Options, since_ns: u64, silent: bool) {
        kind.write(key, options.keys, options.value_size, &mut self.out);
        self.asked.push_back(Asked {
            since_ns,
            kind,
            key,
            silent,
        });
    }

    /// Requests without a reply.
    pub fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// Requests without a reply that count.
    pub fn unanswered(&self) -> u64 {
        self.asked.iter().filter(|asked| !asked.silent).count() as u64
    }

    /// Takes bytes that arrived at `now_ns` and books every reply that is complete.
    ///
    /// # Errors
    /// Bytes that are no reply, or one that nobody asked for.
    pub fn receive(&mut self, bytes: &[u8], now_ns: u64, seen: &mut Seen) -> Result<(), String> {
        self.input.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let rest = &self.input[at..];
            let length = match reply_length(rest) {
                Scan::Incomplete => break,
                Scan::Malformed => return Err("bytes that are no Redis reply".into()),
                Scan::Complete(length) => length,
            };
            let reply = &rest[..length];
            at += length;
            if reply[0] == b'>' {
                // A push answers nothing.
                continue;
            }
            let Some(asked) = self.asked.pop_front() else {
                return Err("a reply that nobody asked for".into());
            };
            let judged = asked.kind.judge(asked.key, reply);
            seen.wrong += u64::from(judged == Judged::Wrong);
            if asked.silent {
                continue;
            }
            seen.replies += 1;
            seen.errors += u64::from(judged == Judged::Error);
            seen.missing += u64::from(judged == Judged::Missing);
            seen.latency
                .saturating_record(now_ns.saturating_sub(asked.since_ns).max(1));
        }
        self.input.drain(..at);
        Ok(())
    }
}

impl Seen {
    /// Nothing yet.
    ///
    /// # Errors
    /// When the histogram's bounds are refused.
    pub fn nothing() -> Result<Self, LoadError> {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Schedule;

    const MS: u64 = 1_000_000;

    /// A server that answers at once, but stands still for a second of ten; returns what the loop saw.
    fn with_a_stall(open: bool) -> Seen {
        let options = Options::new(([127, 0, 0, 1], 1).into());
        let mut seen = Seen::nothing().unwrap();
        let mut exchange = Exchange::default();
        let mut schedule = Schedule::new(1000.0, 10_000 * MS, 0, 1);
        for now in (0..12_000).map(|ms| ms * MS) {
            if open {
                while let Some((_, due)) = schedule.take(now) {
                    exchange.ask(Kind::Ping, 0, &options, due, false);
                }
            } else if exchange.waiting() == 0 && now < 10_000 * MS {
                exchange.ask(Kind::Ping, 0, &options, now, false);
            }
            let stalled = (3_000 * MS..4_000 * MS).contains(&now);
            if !stalled {
                let replies = b"+PONG\r\n".repeat(exchange.waiting());
                exchange
                    .receive(&replies, now + MS / 10, &mut seen)
                    .unwrap();
            }
        }
        assert_eq!(exchange.unanswered(), 0);
        seen
    }

    #[test]
    fn a_stall_shows_in_full_in_the_open_loop_and_hides_in_the_closed_one() {
        let open = with_a_stall(true);
        assert_eq!(open.replies, 10_000);
        // A tenth of the requests fell due during the stall, the first of them waited all of it.
        assert!(
            open.latency_us(0.999) > 980_000.0,
            "{}",
            open.latency_us(0.999)
        );
        assert!(
            (450_000.0..550_000.0).contains(&open.latency_us(0.95)),
            "{}",
            open.latency_us(0.95)
        );
        assert!(open.latency_us(0.5) < 200.0);
        let closed = with_a_stall(false);
        assert!(
            closed.latency_us(0.999) < 200.0,
            "{}",
            closed.latency_us(0.999)
        );
        assert!(closed.latency.max() > 990 * MS);
    }

    #[test]
    fn replies_cut_anywhere_are_paired_with_their_requests_and_pushes_are_not() {
        let options = Options::new(([127, 0, 0, 1], 1).into());
        let stream =
            b"+PONG\r\n>2\r\n$3\r\nfoo\r\n$3\r\nbar\r\n:1\r\n-ERR no\r\n$-1\r\n+surprise\r\n";
        for cut in 1..stream.len() {
            let mut seen = Seen::nothing().unwrap();
            let mut exchange = Exchange::default();
            for kind in [Kind::Ping, Kind::Incr, Kind::Set, Kind::Get, Kind::Get] {
                exchange.ask(kind, 1, &options, 0, false);
            }
            exchange.receive(&stream[..cut], 10, &mut seen).unwrap();
            exchange.receive(&stream[cut..], 20, &mut seen).unwrap();
            let found = (seen.replies, seen.errors, seen.missing, seen.wrong);
            assert_eq!(found, (5, 1, 1, 1), "cut at {cut}");
        }
    }

    #[test]
    fn what_no_server_says_ends_the_connection() {
        let mut seen = Seen::nothing().unwrap();
        let mut exchange = Exchange::default();
        assert!(exchange.receive(b"+PONG\r\n", 1, &mut seen).is_err());
        assert!(
            exchange
                .receive(b"HTTP/1.1 200 OK\r\n", 1, &mut seen)
                .is_err()
        );
    }
}
