//! The mirror side of one unit: is the reply complete, what did it give, and what must be sent so that the connection ends idle.
//!
//! The replay is told every byte that was sent to the mirror and reads every byte that came back. It counts by following the
//! mirror's own behaviour, which may differ from the primary's: a COPY that the primary refused may wait for data here, and a
//! query that the primary skipped may be answered here.

use thiserror::Error;

use super::compare::UnitOutcome;
use super::tracker::{ServerEvent, Sqlstate, Tracker, TxStatus, Violation};

/// How far a unit is on the mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayProgress {
    /// More must be read.
    Reading,
    /// Every reply was read, the connection is idle and may serve the next unit.
    Done,
}

/// Why the mirror's connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// What it sends is not an answer to the unit.
    #[error("mirror: {0}")]
    Protocol(#[from] Violation),
    /// It ended the session.
    #[error("mirror ended the session: {0}")]
    Fatal(Sqlstate),
    /// Its transaction is still open after a ROLLBACK.
    #[error("mirror: the transaction does not end")]
    StuckTransaction,
}

/// One unit on one mirror connection that was idle.
#[derive(Debug)]
pub struct Replay {
    tracker: Tracker,
    outcome: UnitOutcome,
    sent_all: bool,
    rolled_back: bool,
}

impl Replay {
    /// `digest`: result sets are digested, for [`super::compare::Mode::Rows`].
    pub fn new(digest: bool) -> Self {
        let mut replay = Self {
            tracker: Tracker::new_ready(),
            outcome: UnitOutcome::default(),
            sent_all: false,
            rolled_back: false,
        };
        replay.tracker.set_capture(false);
        replay.tracker.set_digest(digest);
        replay
    }

    /// As new, for the next unit on the same connection, with the memory of the last one.
    pub fn restart(&mut self, digest: bool) {
        if !self.tracker.is_settled() {
            *self = Self::new(digest);
            return;
        }
        self.tracker.set_digest(digest);
        self.outcome.clear();
        self.sent_all = false;
        self.rolled_back = false;
    }

    /// These bytes of the unit (cut anywhere) were sent to the mirror.
    pub fn sent(&mut self, bytes: &[u8]) -> Result<(), ReplayError> {
        Ok(self.tracker.client(bytes, &mut |_| {})?)
    }

    /// The unit has no more bytes. What must be sent as well (the end of a COPY, a Sync, a ROLLBACK) is appended to `out`.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<ReplayProgress, ReplayError> {
        self.sent_all = true;
        self.settle(out)
    }

    /// Reads what the mirror sent. What must be sent next is appended to `out`, only after [`finish`](Self::finish).
    pub fn receive(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<ReplayProgress, ReplayError> {
        let (outcome, recorded) = (&mut self.outcome, !self.rolled_back);
        let mut fatal = None;
        let read = self.tracker.server(input, &mut |event| match event {
            ServerEvent::StatementDone {
                outcome: statement, ..
            } if recorded => {
                outcome.push(statement);
            }
            ServerEvent::CycleDone(done) if recorded => outcome.status = done.status,
            ServerEvent::FatalError { sqlstate } => fatal = Some(sqlstate),
            _ => {}
        });
        match fatal {
            Some(sqlstate) => return Err(ReplayError::Fatal(sqlstate)),
            None => read?,
        }
        self.settle(out)
    }

    /// The statements whose ends were read since the last call ended at `now_ns`.
    pub fn stamp(&mut self, now_ns: u64) {
        self.outcome.stamp(now_ns);
    }

    fn settle(&mut self, out: &mut Vec<u8>) -> Result<ReplayProgress, ReplayError> {
        if !self.sent_all {
            return Ok(ReplayProgress::Reading);
        }
        if self.tracker.copy_in() {
            self.send(b"f\0\0\0\x20unit without more copy data\0", out)?;
        }
        if self.tracker.is_open() {
            self.send(b"S\0\0\0\x04", out)?;
        }
        if self.tracker.outstanding() > 0 {
            return Ok(ReplayProgress::Reading);
        }
        if self.tracker.status() == TxStatus::Idle {
            let done = self.tracker.idle();
            return Ok(if done {
                ReplayProgress::Done
            } else {
                ReplayProgress::Reading
            });
        }
        if self.rolled_back {
            return Err(ReplayError::StuckTransaction);
        }
        self.rolled_back = true;
        self.send(b"Q\0\0\0\x0dROLLBACK\0", out)?;
        Ok(ReplayProgress::Reading)
    }

    fn send(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), ReplayError> {
        out.extend_from_slice(message);
        self.sent(message)
    }

    /// Cycles that were sent and not answered: 0 means that the mirror has answered and the next may be sent.
    pub fn outstanding(&self) -> u64 {
        self.tracker.outstanding()
    }

    /// Whether more of the unit may be sent before the mirror has answered what it has: it waits for copy data, or
    /// has not got what would make it answer.
    pub fn wants_more(&self) -> bool {
        self.tracker.copy_in() || self.tracker.is_open() || self.tracker.outstanding() == 0
    }

    /// The mirror waits for copy data.
    pub fn copy_in(&self) -> bool {
        self.tracker.copy_in()
    }

    /// The unit left a transaction open, which was rolled back.
    pub fn rolled_back(&self) -> bool {
        self.rolled_back
    }

    /// What the unit gave so far.
    pub fn outcome(&self) -> &UnitOutcome {
        &self.outcome
    }

    /// What the unit gave; nothing is left of it here.
    pub fn take_outcome(&mut self) -> UnitOutcome {
        std::mem::take(&mut self.outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend((body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    fn run(unit: &[u8]) -> Replay {
        let mut replay = Replay::new(true);
        replay.sent(unit).unwrap();
        let mut out = Vec::new();
        assert_eq!(replay.finish(&mut out), Ok(ReplayProgress::Reading));
        assert!(out.is_empty());
        replay
    }

    #[test]
    fn a_unit_is_done_when_every_cycle_is_answered() {
        let query = message(b'Q', b"select 1\0");
        let mut replay = run(&[query.clone(), query].concat());
        let reply = [message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
        let mut out = Vec::new();
        assert_eq!(
            replay.receive(&reply, &mut out),
            Ok(ReplayProgress::Reading)
        );
        let notify = message(b'A', b"\0\0\0\x01c\0p\0");
        let reply = [notify, reply].concat();
        for piece in reply[..reply.len() - 1].chunks(1) {
            assert_eq!(replay.receive(piece, &mut out), Ok(ReplayProgress::Reading));
        }
        assert_eq!(replay.receive(b"I", &mut out), Ok(ReplayProgress::Done));
        assert_eq!((replay.outcome().len(), out.len()), (2, 0));
    }

    #[test]
    fn an_open_transaction_is_rolled_back_once() {
        let mut replay = run(&message(b'Q', b"begin\0"));
        let mut out = Vec::new();
        let open = [message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat();
        assert_eq!(replay.receive(&open, &mut out), Ok(ReplayProgress::Reading));
        assert_eq!(out, message(b'Q', b"ROLLBACK\0"));
        let end = [message(b'C', b"ROLLBACK\0"), message(b'Z', b"I")].concat();
        assert_eq!(replay.receive(&end, &mut out), Ok(ReplayProgress::Done));
        assert_eq!(
            (replay.outcome().len(), replay.outcome().status),
            (1, TxStatus::InTransaction)
        );
        let mut replay = run(&message(b'Q', b"begin\0"));
        replay.receive(&open, &mut out).unwrap();
        assert_eq!(
            replay.receive(&open, &mut out),
            Err(ReplayError::StuckTransaction)
        );
    }

    #[test]
    fn a_copy_without_data_is_failed_in_both_protocols() {
        let copy_in = message(b'G', b"\0\0\0");
        let error = message(b'E', b"SERROR\0C57014\0\0");
        let mut out = Vec::new();
        let mut replay = run(&message(b'Q', b"copy t from stdin\0"));
        replay.receive(&copy_in, &mut out).unwrap();
        assert_eq!((out[0], out.len()), (b'f', 33));
        let end = [error.clone(), message(b'Z', b"I")].concat();
        assert_eq!(replay.receive(&end, &mut out), Ok(ReplayProgress::Done));
        let extended = [
            message(b'P', b"\0copy t from stdin\0\0\0"),
            message(b'B', b"\0\0\0\0\0\0\0\0"),
            message(b'E', b"\0\0\0\0\0"),
            message(b'S', b""),
        ];
        let mut replay = run(&extended.concat());
        out.clear();
        let begun = [message(b'1', b""), message(b'2', b""), copy_in].concat();
        replay.receive(&begun, &mut out).unwrap();
        assert_eq!((out[0], &out[33..]), (b'f', &b"S\0\0\0\x04"[..]));
        assert_eq!(replay.receive(&end, &mut out), Ok(ReplayProgress::Done));
    }

    #[test]
    fn what_is_no_answer_ends_the_connection() {
        let reply = [message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
        for extra in [
            message(b'Z', b"I"),
            message(b'C', b"SELECT 1\0"),
            b"?".to_vec(),
            b"D\x7f\xff\xff\xff".to_vec(),
            message(b'D', b"\0\0"),
        ] {
            let mut replay = run(&message(b'Q', b"select 1\0"));
            let bytes = [reply.clone(), extra].concat();
            assert!(matches!(
                replay.receive(&bytes, &mut Vec::new()),
                Err(ReplayError::Protocol(_))
            ));
        }
        let fatal = message(b'E', b"SFATAL\0VFATAL\0C57P01\0\0");
        let mut replay = run(&message(b'Q', b"select 1\0"));
        assert_eq!(
            replay.receive(&fatal, &mut Vec::new()),
            Err(ReplayError::Fatal(Sqlstate::new(b"57P01")))
        );
    }
}
