//! The mirror side of a run of units that a client pipelined and that are sent as a pipeline again.
//!
//! As [`Replay`](super::replay::Replay) reads one unit's answers, this reads those of several: it is told the whole units that
//! were sent, follows what the mirror answers, and gives out what each unit gave as soon as it is complete. Only units that
//! [`may_be_followed`] are sent this way with another behind them; if the mirror stays in a transaction behind one of them all the same, the
//! rest has run inside it and its outcome is not known: [`PipelineError::NotIdle`].

use std::collections::VecDeque;

use thiserror::Error;

use super::compare::UnitOutcome;
use super::tracker::{Ending, ServerEvent, Sqlstate, Tracker, TxStatus, Violation};

/// Why the mirror's connection must be closed; the units that are not answered are lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PipelineError {
    /// What it sends is not an answer to the units.
    #[error("mirror: {0}")]
    Protocol(#[from] Violation),
    /// It ended the session.
    #[error("mirror ended the session: {0}")]
    Fatal(Sqlstate),
    /// It is still in a transaction behind a unit that on the primary began none.
    #[error("mirror: a transaction stays open in a pipeline")]
    NotIdle,
    /// It gave one answer to several units.
    #[error("mirror: it skipped a unit of a pipeline")]
    Skipped,
}

/// Whether the mirror is certain to be idle behind this unit, so that another may be sent before it has answered: every
/// statement succeeded on the primary, and none of them began a transaction or took data.
pub fn may_be_followed(primary: &UnitOutcome) -> bool {
    let plain = |ending: &Ending| match ending {
        Ending::Complete(tag) => {
            let verb = tag.as_str().split(' ').next().unwrap_or_default();
            !matches!(verb, "BEGIN" | "START" | "COPY")
        }
        Ending::Error(_) => false,
    };
    let statements = primary.statements();
    primary.status == TxStatus::Idle
        && primary.len() == statements.len() as u64
        && statements.iter().all(|statement| plain(&statement.ending))
}

/// Units on one mirror connection that was idle.
#[derive(Debug)]
pub struct PipelinedReplay {
    tracker: Tracker,
    /// What the unit that is answered now gave so far.
    outcome: UnitOutcome,
    /// The last cycle of every unit that was sent and is not answered, oldest first.
    ends: VecDeque<u64>,
    done: VecDeque<UnitOutcome>,
}

impl PipelinedReplay {
    /// `digest`: result sets are digested, for [`super::compare::Mode::Rows`].
    pub fn new(digest: bool) -> Self {
        let mut tracker = Tracker::new_ready();
        tracker.set_digest(digest);
        tracker.set_capture(false);
        Self {
            tracker,
            outcome: UnitOutcome::default(),
            ends: VecDeque::new(),
            done: VecDeque::new(),
        }
    }

    /// These bytes of the newest unit (cut anywhere) were sent to the mirror.
    pub fn sent(&mut self, bytes: &[u8]) -> Result<(), PipelineError> {
        Ok(self.tracker.client(bytes, &mut |_| {})?)
    }

    /// The newest unit has no more bytes.
    pub fn end_unit(&mut self) {
        self.ends.push_back(self.tracker.newest_cycle());
    }

    /// Reads what the mirror sent at `now_ns`.
    pub fn receive(&mut self, input: &[u8], now_ns: u64) -> Result<(), PipelineError> {
        let Self {
            tracker,
            outcome,
            ends,
            done,
        } = self;
        let mut failed = None;
        let read = tracker.server(input, &mut |event| match event {
            ServerEvent::StatementDone {
                outcome: statement, ..
            } => {
                outcome.push(statement);
                outcome.stamp(now_ns);
            }
            ServerEvent::CycleDone(cycle) => {
                outcome.status = cycle.status;
                if ends.front().is_some_and(|end| *end <= cycle.cycle) {
                    ends.pop_front();
                    done.push_back(std::mem::take(outcome));
                    if ends.front().is_some_and(|end| *end <= cycle.cycle) {
                        failed = failed.or(Some(PipelineError::Skipped));
                    }
                    if cycle.status != TxStatus::Idle {
                        failed = failed.or(Some(PipelineError::NotIdle));
                    }
                }
            }
            ServerEvent::FatalError { sqlstate } => {
                failed = failed.or(Some(PipelineError::Fatal(sqlstate)));
            }
            _ => {}
        });
        match failed {
            Some(failed) => Err(failed),
            None => Ok(read?),
        }
    }

    /// What the oldest unit gave that is complete, once; in the order in which they were sent.
    pub fn next_done(&mut self) -> Option<UnitOutcome> {
        self.done.pop_front()
    }

    /// Units that are not complete.
    pub fn outstanding(&self) -> usize {
        self.ends.len()
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

    fn reply(tag: &str, status: &[u8]) -> Vec<u8> {
        let complete = message(b'C', format!("{tag}\0").as_bytes());
        [complete, message(b'Z', status)].concat()
    }

    fn sent(units: usize) -> PipelinedReplay {
        let mut replay = PipelinedReplay::new(true);
        for _ in 0..units {
            replay.sent(&message(b'Q', b"select 1\0")).unwrap();
            replay.end_unit();
        }
        replay
    }

    #[test]
    fn every_unit_gets_its_own_answers_however_they_are_cut() {
        let answers: Vec<u8> = (0..5)
            .flat_map(|n| reply(&format!("SELECT {n}"), b"I"))
            .collect();
        for size in [1, 3, 7, answers.len()] {
            let mut replay = sent(5);
            let mut tags = Vec::new();
            for (at, piece) in answers.chunks(size).enumerate() {
                replay.receive(piece, at as u64).unwrap();
                while let Some(done) = replay.next_done() {
                    tags.push(done.statements()[0].ending.to_string());
                    assert_eq!(done.len(), 1);
                }
            }
            assert_eq!(replay.outstanding(), 0);
            assert_eq!(
                tags,
                (0..5).map(|n| format!("SELECT {n}")).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn what_was_answered_before_the_end_of_a_connection_is_given_out() {
        let mut replay = sent(3);
        let fatal = message(b'E', b"SFATAL\0VFATAL\0C57P01\0\0");
        let bytes = [reply("SELECT 1", b"I"), fatal].concat();
        assert!(matches!(
            replay.receive(&bytes, 1),
            Err(PipelineError::Fatal(_))
        ));
        assert!(replay.next_done().is_some() && replay.next_done().is_none());
        assert_eq!(replay.outstanding(), 2);
    }

    #[test]
    fn a_transaction_that_stays_open_ends_the_pipeline() {
        let mut replay = sent(2);
        let bytes = reply("BEGIN", b"T");
        assert_eq!(replay.receive(&bytes, 1), Err(PipelineError::NotIdle));
        assert_eq!(replay.outstanding(), 1);
    }

    #[test]
    fn only_what_surely_ends_idle_may_be_followed() {
        let outcome = |tag: &str| {
            let mut replay = sent(1);
            replay.receive(&reply(tag, b"I"), 1).unwrap();
            replay.next_done().unwrap()
        };
        for tag in ["SELECT 1", "INSERT 0 1", "COMMIT", "CREATE TABLE"] {
            assert!(may_be_followed(&outcome(tag)), "{tag}");
        }
        for tag in ["BEGIN", "START TRANSACTION", "COPY 5"] {
            assert!(!may_be_followed(&outcome(tag)), "{tag}");
        }
        let mut replay = sent(1);
        let error = message(b'E', b"SERROR\0VERROR\0C22012\0\0");
        let bytes = [error, message(b'Z', b"I")].concat();
        replay.receive(&bytes, 1).unwrap();
        assert!(!may_be_followed(&replay.next_done().unwrap()));
    }
}
