//! Latency by query fingerprint: what a delivered unit says about each of its queries.
//!
//! Runs in the mirror queue, never on a client's path. A text is fingerprinted when it is new: texts that come again, as
//! those of prepared statements do, are known by a hash of their bytes.

use std::collections::HashMap;

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use super::connection::Ran;
use super::outcome::PostgresOutcome;
use crate::limits::{QUERY_TEXTS_LEN, QUERY_UNIT_BYTES_MAX};
use crate::metrics::QueryTable;
use crate::mirror::unit::Unit;
use crate::protocol::postgres::queries::queries;
use crate::protocol::postgres::sql;
use crate::ring::Chunk;

type PgUnit = Unit<Chunk, PostgresOutcome>;

/// The queries of one unit: where each stands in the table, and the statement behind its last.
#[derive(Default)]
pub(super) struct RunQueries(SmallVec<[(usize, Option<usize>); 4]>);

impl RunQueries {
    /// Where the query stands that this statement belongs to; `None`: it is not known.
    pub fn slot_of(&self, statement: usize) -> Option<Option<usize>> {
        let run = self.0.iter().find(|(end, _)| statement < *end);
        run.map(|(_, slot)| *slot)
    }
}

/// Where the fingerprints of one mirror stand in its table.
pub(super) struct Queries {
    slots: HashMap<u64, Option<usize>>,
    /// Texts seen lately: their hash and their slot, at the place that the hash gives.
    texts: Box<[(u64, Option<usize>)]>,
}

impl Queries {
    /// For a table that may have been filled before a reload.
    pub fn of(table: &QueryTable) -> Queries {
        let mut slots = HashMap::new();
        table.for_each(|slot, query| {
            if slot.is_some() {
                slots.insert(query.fingerprint, slot);
            }
        });
        Queries {
            slots,
            texts: vec![(0, None); QUERY_TEXTS_LEN].into(),
        }
    }

    /// Records a unit that succeeded on the primary and was answered by the mirror; tells which queries it was.
    pub fn record(&mut self, table: &QueryTable, unit: &PgUnit, ran: &Ran) -> RunQueries {
        let mut run = RunQueries::default();
        let primary = &unit.outcome.result;
        let (ours, theirs) = (primary.ended_ns(), ran.result.ended_ns());
        if primary.errors() > 0 || ours.is_empty() || ours.len() as u64 != primary.len() {
            return run;
        }
        if unit.payload.parts_len() > 1 && unit.payload.len() > QUERY_UNIT_BYTES_MAX {
            return run;
        }
        let bytes = unit.payload.joined();
        let Some(found) = queries(&bytes, &unit.outcome.names) else {
            return run;
        };
        if found.iter().map(|query| query.statements).sum::<usize>() != ours.len() {
            // Its statements were counted otherwise than the server counted them.
            return run;
        }
        let failed = ran.result.statements().iter();
        let failed = failed.take(ours.len()).position(|s| s.sqlstate().is_some());
        let whole = failed.unwrap_or(theirs.len());
        let mut times = Times::of(unit, ran);
        let mut first = 0;
        for query in &found {
            let end = first + query.statements;
            let slot = self.slot(table, query.sql);
            run.0.push((end, slot));
            let metrics = table.at(slot);
            metrics.calls.add(1);
            if failed.is_some_and(|at| (first..end).contains(&at)) {
                metrics.errors.add(1);
            }
            if end > whole {
                // What came behind an error on the mirror is no answer to the rest.
                break;
            }
            let (primary_ns, mirror_ns) = times.next(query.offset, ours[end - 1], theirs[end - 1]);
            metrics.primary.record(primary_ns);
            metrics.mirror.record(mirror_ns);
            first = end;
        }
        run
    }

    fn slot(&mut self, table: &QueryTable, text: &[u8]) -> Option<usize> {
        let hash = xxh3_64(text);
        let place = hash as usize % self.texts.len();
        if self.texts[place].0 == hash {
            return self.texts[place].1;
        }
        let fingerprint = sql::fingerprint_hash(text);
        let slot = match self.slots.get(&fingerprint) {
            Some(slot) => *slot,
            None => {
                let slot = table.claim(fingerprint, || sql::fingerprint(text).1);
                if slot.is_some() {
                    self.slots.insert(fingerprint, slot);
                }
                slot
            }
        };
        self.texts[place] = (hash, slot);
        slot
    }
}

/// How long each query took on either side: from when it was sent, or the one before it had ended, to its own end.
struct Times<'a> {
    unit: &'a PgUnit,
    sent_ns: &'a SmallVec<[u64; 2]>,
    before_ns: (u64, u64),
}

impl<'a> Times<'a> {
    fn of(unit: &'a PgUnit, ran: &'a Ran) -> Times<'a> {
        Times {
            unit,
            sent_ns: &ran.sent_ns,
            before_ns: (unit.outcome.turn_ns, ran.started_ns),
        }
    }

    fn next(&mut self, offset: usize, primary_ns: u64, mirror_ns: u64) -> (u64, u64) {
        let groups = &self.unit.groups;
        let group = groups
            .partition_point(|group| group.offset <= offset)
            .saturating_sub(1);
        let arrived_ns = groups.get(group).map_or(0, |group| group.arrived_ns);
        let sent_ns = self.sent_ns.get(group).copied().unwrap_or(0);
        let before = std::mem::replace(&mut self.before_ns, (primary_ns, mirror_ns));
        (
            primary_ns.saturating_sub(arrived_ns.max(before.0)),
            mirror_ns.saturating_sub(sent_ns.max(before.1)),
        )
    }
}
