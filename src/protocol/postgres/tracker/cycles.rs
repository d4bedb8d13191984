//! Keeps cycles and ReadyForQuery in step. Pure bookkeeping: message types in, cycle numbers out.
//!
//! A cycle is what is answered by one ReadyForQuery. Which messages that is depends on the server: after an error in the
//! extended protocol it skips everything up to a Sync, even a Query; while it reads copy data it ignores a Sync. The client
//! side therefore records what *should* close a cycle, and the server side takes that back when it sees that the server
//! did not read it so. Cycles that turn out to be one are merged by forgetting the closer between them.

use std::collections::VecDeque;

/// From this many runs on [`Cycles::is_deep`] asks the owner to read no more from the client: 12 bytes each. A pipeline of equal
/// cycles is one run, so only a client that mixes forms thousands deep ever gets here.
const RUNS_DEEP: usize = 16_384;

/// Something the client sent that the server will come to in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    /// Closes a cycle: a Sync. `bare`: it is all there is in the cycle.
    Sync { bare: bool },
    /// Closes a cycle: a Query or FunctionCall, behind so many extended messages without a Sync.
    Simple { extended: u32 },
    /// A CopyDone or CopyFail. `late`: it came after its cycle's closer.
    CopyEnd { late: bool },
}

impl Item {
    fn closes(self) -> bool {
        !matches!(self, Self::CopyEnd { .. })
    }
}

/// Where a client message belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It begins a cycle.
    Opens,
    /// It belongs to the newest cycle.
    Continues,
    /// It belongs to none.
    Stray,
}

/// A ReadyForQuery that no cycle explains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Surplus;

/// The cycles of one connection.
#[derive(Debug, Default)]
pub(super) struct Cycles {
    /// Equal neighbours are one run; counts are never 0.
    runs: VecDeque<(Item, u32)>,
    /// Closers in `runs`.
    closed: u64,
    /// Number of the newest cycle; 0 before the first.
    newest: u64,
    /// The newest cycle has no closer yet.
    open: bool,
    /// Extended messages in the open cycle.
    open_extended: u32,
    /// Nothing but a Sync so far in the open cycle.
    open_bare: bool,
    /// Extended messages of the oldest unanswered cycle that have their reply.
    answered: u32,
    /// The server reads copy data and the client has not ended it.
    copy_in: bool,
    /// The server skips to a Sync that the client has not sent yet.
    skipping: bool,
    /// Syncs that the server is believed to have ignored during a copy-in that has not ended well. If it read them after all,
    /// each gives a ReadyForQuery more.
    ghosts: u32,
}

impl Cycles {
    /// Cycles without their ReadyForQuery, the open one included.
    pub fn outstanding(&self) -> u64 {
        self.closed + u64::from(self.open)
    }

    /// The newest cycle's number.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// The cycle that the server answers now; the newest if all are answered.
    pub fn head(&self) -> u64 {
        self.newest + 1 - self.outstanding().max(1)
    }

    /// The newest cycle waits for more from the client before the server answers it.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The server waits for copy data.
    pub fn copy_in(&self) -> bool {
        self.copy_in
    }

    /// Nothing is awaited and nothing in doubt.
    pub fn is_settled(&self) -> bool {
        self.runs.is_empty() && !self.open && !self.copy_in && !self.skipping && self.ghosts == 0
    }

    /// So much is unanswered that the owner should wait for the server.
    pub fn is_deep(&self) -> bool {
        self.runs.len() >= RUNS_DEEP
    }

    /// The first byte of a client message.
    pub fn begin(&mut self, tag: u8) -> Place {
        let known = self.outstanding() > 0;
        match tag {
            b'd' | b'c' | b'f' if known => Place::Continues,
            b'd' | b'c' | b'f' => Place::Stray,
            b'H' if !self.open && !self.copy_in => Place::Stray,
            b'H' | b'S' if self.copy_in => Place::Continues,
            _ if self.open => Place::Continues,
            _ => {
                self.newest += 1;
                self.open = true;
                self.open_extended = 0;
                self.open_bare = true;
                Place::Opens
            }
        }
    }

    /// The last byte of a client message that belongs to the newest cycle. Whether it closes it.
    pub fn end(&mut self, tag: u8) -> bool {
        match tag {
            b'S' if self.copy_in => {
                self.ghosts = self.ghosts.saturating_add(1);
                if self.simple_head().is_some() {
                    self.open = false;
                }
                false
            }
            b'S' => self.close(Item::Sync {
                bare: self.open_bare,
            }),
            b'Q' | b'F' if self.skipping => false,
            b'Q' | b'F' => self.close(Item::Simple {
                extended: self.open_extended,
            }),
            b'P' | b'B' | b'D' | b'C' | b'E' => {
                self.open_extended = self.open_extended.saturating_add(1);
                self.open_bare = false;
                false
            }
            b'c' | b'f' if self.copy_in => {
                self.copy_in = false;
                false
            }
            b'c' | b'f' => {
                self.push(Item::CopyEnd { late: !self.open });
                false
            }
            _ => false,
        }
    }

    fn close(&mut self, closer: Item) -> bool {
        self.push(closer);
        self.closed += 1;
        self.open = false;
        self.skipping = false;
        true
    }

    fn push(&mut self, item: Item) {
        match self.runs.back_mut() {
            Some((last, count)) if *last == item && *count < u32::MAX => *count += 1,
            _ => self.runs.push_back((item, 1)),
        }
    }

    /// The closer that the server comes to next: where in the runs it is, and what.
    fn next_closer(&self) -> Option<(usize, Item)> {
        self.runs
            .iter()
            .map(|run| run.0)
            .enumerate()
            .find(|(_, item)| item.closes())
    }

    /// The server is in the Query or FunctionCall that closes its cycle: where that stands.
    fn simple_head(&self) -> Option<usize> {
        match self.next_closer() {
            Some((at, Item::Simple { extended })) if self.answered >= extended => Some(at),
            _ => None,
        }
    }

    /// Takes one item out of a run.
    fn take_one(&mut self, at: usize) {
        let Some((item, count)) = self.runs.get_mut(at) else {
            return;
        };
        let closes = item.closes();
        *count -= 1;
        if *count == 0 {
            self.runs.remove(at);
        }
        self.closed -= u64::from(closes);
    }

    /// The newest cycle has lost its closer.
    fn reopen_if_none(&mut self) {
        if self.closed == 0 && !self.open {
            self.open = true;
            self.open_extended = 0;
            self.open_bare = false;
        }
    }

    /// Extended messages of the cycle under way that the server has completed.
    pub fn answered(&self) -> u32 {
        self.answered
    }

    /// The server completed an extended message.
    pub fn answer(&mut self) {
        self.answered = self.answered.saturating_add(1);
    }

    /// The server completed a statement: nothing that came before it is in doubt.
    pub fn statement_done(&mut self) {
        if !self.copy_in {
            self.ghosts = 0;
        }
    }

    /// CopyInResponse. The server now reads everything behind the COPY as copy data.
    pub fn copy_in_started(&mut self) {
        if self.outstanding() == 0 {
            return;
        }
        let at = match self.simple_head() {
            // The rest of this run are other queries: PostgreSQL loses its step and ends the session.
            Some(at) if self.runs[at].1 > 1 => return,
            Some(at) => at + 1,
            None => 0,
        };
        let mut own_sync = at == 0;
        while let Some(&(item, _)) = self.runs.get(at) {
            match item {
                Item::CopyEnd { .. } => {
                    self.take_one(at);
                    self.reopen_if_none();
                    return;
                }
                Item::Sync { bare } if bare || own_sync => {
                    own_sync = false;
                    self.ghosts = self.ghosts.saturating_add(1);
                    self.take_one(at);
                }
                Item::Sync { .. } | Item::Simple { .. } => break,
            }
        }
        self.reopen_if_none();
        self.copy_in = true;
    }

    /// ErrorResponse.
    pub fn error(&mut self) {
        self.copy_in = false;
        if self.outstanding() == 0 || self.simple_head().is_some() {
            return;
        }
        // The server skips to the next Sync: queries before it will not be answered.
        while let Some((at, item)) = self.next_closer() {
            if matches!(item, Item::Sync { .. }) {
                return;
            }
            self.take_one(at);
        }
        self.reopen_if_none();
        self.skipping = true;
    }

    /// ReadyForQuery: the number of the cycle that it answers, with all before it. `None` if it is one of the doubtful
    /// Syncs' and nothing waits for it.
    pub fn ready(&mut self) -> Result<Option<u64>, Surplus> {
        let head = self.head();
        self.copy_in = false;
        self.answered = 0;
        if let Some((at, _)) = self.next_closer() {
            self.runs.drain(..at);
            self.take_closer();
            return Ok(Some(head));
        }
        if self.ghosts == 0 {
            return Err(Surplus);
        }
        self.ghosts -= 1;
        if self.open {
            self.open = false;
            self.skipping = false;
            self.runs.clear();
            return Ok(Some(head));
        }
        Ok(None)
    }

    /// Takes the closer at the front, and what came late for its cycle.
    fn take_closer(&mut self) {
        let last_of_run = self.runs.front().is_some_and(|run| run.1 == 1);
        self.take_one(0);
        while last_of_run && matches!(self.runs.front(), Some((Item::CopyEnd { late: true }, _))) {
            self.runs.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds whole client messages; gives what each was.
    fn send(cycles: &mut Cycles, tags: &str) -> Vec<(Place, bool)> {
        let mut out = Vec::new();
        for tag in tags.bytes() {
            let place = cycles.begin(tag);
            let closes = place != Place::Stray && cycles.end(tag);
            out.push((place, closes));
        }
        out
    }

    #[test]
    fn a_deep_pipeline_of_equal_cycles_is_one_run() {
        let mut cycles = Cycles::default();
        for _ in 0..100_000 {
            send(&mut cycles, "PBES");
        }
        assert_eq!((cycles.runs.len(), cycles.outstanding()), (1, 100_000));
        for cycle in 1..=100_000 {
            assert_eq!(cycles.ready(), Ok(Some(cycle)));
        }
        assert_eq!(cycles.ready(), Err(Surplus));
    }

    #[test]
    fn a_query_behind_a_failed_parse_is_skipped_and_answered_with_the_sync() {
        let mut cycles = Cycles::default();
        send(&mut cycles, "PBQS");
        assert_eq!(cycles.outstanding(), 2);
        cycles.answer();
        cycles.error();
        assert_eq!(cycles.ready(), Ok(Some(2)));
        assert_eq!(cycles.outstanding(), 0);
    }

    #[test]
    fn a_failed_query_behind_extended_messages_is_answered_itself() {
        let mut cycles = Cycles::default();
        send(&mut cycles, "PBQS");
        cycles.answer();
        cycles.answer();
        cycles.error();
        assert_eq!(cycles.ready(), Ok(Some(1)));
        assert_eq!(cycles.ready(), Ok(Some(2)));
    }

    #[test]
    fn a_query_sent_after_the_error_is_seen_does_not_close_the_cycle() {
        let mut cycles = Cycles::default();
        send(&mut cycles, "PH");
        cycles.error();
        assert_eq!(
            send(&mut cycles, "QS"),
            [(Place::Continues, false), (Place::Continues, true)]
        );
        assert_eq!(cycles.ready(), Ok(Some(1)));
    }

    #[test]
    fn a_sync_during_copy_in_closes_nothing() {
        let mut cycles = Cycles::default();
        send(&mut cycles, "Q");
        cycles.copy_in_started();
        assert_eq!(
            send(&mut cycles, "dSdc").last(),
            Some(&(Place::Continues, false))
        );
        cycles.statement_done();
        assert_eq!(cycles.ready(), Ok(Some(1)));
        assert_eq!(cycles.ready(), Err(Surplus));
    }

    #[test]
    fn libpq_copy_in_by_the_extended_protocol_is_one_cycle() {
        let mut cycles = Cycles::default();
        send(&mut cycles, "PBDES");
        cycles.copy_in_started();
        assert!(cycles.copy_in());
        let sent = send(&mut cycles, "ddcS");
        assert_eq!(sent.last(), Some(&(Place::Continues, true)));
        cycles.statement_done();
        assert_eq!(cycles.ready(), Ok(Some(1)));
        assert_eq!(cycles.outstanding(), 0);
    }

    #[test]
    fn the_same_sent_blindly_is_merged_when_the_server_says_copy_in() {
        let mut cycles = Cycles::default();
        send(&mut cycles, "PBDESddcS");
        assert_eq!(cycles.outstanding(), 2);
        cycles.copy_in_started();
        assert!(!cycles.copy_in());
        cycles.statement_done();
        assert_eq!(cycles.ready(), Ok(Some(2)));
        assert_eq!(cycles.outstanding(), 0);
    }

    #[test]
    fn an_extended_copy_that_fails_before_it_reads_is_answered_at_the_first_sync() {
        let mut cycles = Cycles::default();
        send(&mut cycles, "PBES");
        cycles.copy_in_started();
        cycles.error();
        assert_eq!(cycles.ready(), Ok(Some(1)));
        assert_eq!(send(&mut cycles, "dcS")[0], (Place::Stray, false));
        assert_eq!(cycles.ready(), Ok(Some(2)));
    }

    #[test]
    fn two_copies_in_one_query_take_two_copy_ends() {
        let mut cycles = Cycles::default();
        send(&mut cycles, "Qdcdc");
        cycles.copy_in_started();
        assert!(!cycles.copy_in());
        cycles.copy_in_started();
        assert!(!cycles.copy_in());
        cycles.copy_in_started();
        assert!(cycles.copy_in());
    }

    #[test]
    fn a_copy_end_for_a_failed_query_is_not_the_next_copys() {
        let mut cycles = Cycles::default();
        send(&mut cycles, "Qdc");
        send(&mut cycles, "Q");
        cycles.error();
        assert_eq!(cycles.ready(), Ok(Some(1)));
        cycles.copy_in_started();
        assert!(cycles.copy_in());
    }

    #[test]
    fn late_copy_messages_are_stray() {
        let mut cycles = Cycles::default();
        send(&mut cycles, "Q");
        cycles.copy_in_started();
        send(&mut cycles, "d");
        cycles.error();
        assert_eq!(cycles.ready(), Ok(Some(1)));
        assert!(
            send(&mut cycles, "ddc")
                .iter()
                .all(|sent| sent.0 == Place::Stray)
        );
    }

    #[test]
    fn a_lone_flush_opens_nothing() {
        let mut cycles = Cycles::default();
        assert_eq!(send(&mut cycles, "H"), [(Place::Stray, false)]);
        assert_eq!(cycles.outstanding(), 0);
    }
}
