//! What a mirror's answer says: latencies, errors, and how it compares with the primary's.

use super::{PgTicket, Pool};
use crate::config::Compare;
use crate::metrics::{DivergenceKind, ErrorWord};
use crate::protocol::postgres::sql;
use crate::proxy::context::DivergenceReport;
use crate::proxy::postgres::connection::Ran;
use crate::proxy::postgres::control::Suspect;
use crate::proxy::postgres::judge;
use crate::proxy::postgres::queries::RunQueries;

impl Pool {
    /// Counts what the run of a unit gave, and compares it where that means something.
    pub(super) fn delivered(&self, ticket: &PgTicket, ran: &Ran) {
        let metrics = &self.mirror.metrics;
        let unit = &ticket.unit;
        metrics
            .queue_delay
            .record(ran.started_ns.saturating_sub(unit.sealed_ns));
        metrics
            .latency
            .record(ran.answered_ns.saturating_sub(ran.started_ns));
        metrics
            .primary_latency
            .record(unit.sealed_ns.saturating_sub(unit.outcome.turn_ns));
        let statements = ran.result.statements().iter();
        let codes = statements.filter_map(|statement| statement.sqlstate());
        for code in codes.chain(ran.session_errors.iter().copied()) {
            let word = ErrorWord::of_sqlstate(code.as_str().as_bytes());
            metrics.errors.count(word);
            if let Some(unsaid) = self.error_log.speaks(self.context.ring.now_ns()) {
                tracing::info!(mirror = self.mirror.destination.name, sqlstate = %code,
                    unsaid, "a statement failed on a mirror");
            }
        }
        if ran.timed_out {
            metrics.unit_timeouts.add(1);
            metrics.not_compared.add(1);
            return;
        }
        if !unit.outcome.cancels_ns.is_empty() {
            // How far each server came before it was cancelled is chance.
            if self.mirror.options.compare != Compare::Off {
                metrics.not_compared.add(1);
            }
            return;
        }
        let mut queries = self.queries.borrow_mut();
        let run = queries.record(&metrics.queries, unit, ran);
        drop(queries);
        self.compare(ticket, ran, &run);
    }

    /// Compares what the unit gave.
    fn compare(&self, ticket: &PgTicket, ran: &Ran, run: &RunQueries) {
        let metrics = &self.mirror.metrics;
        let unit = &ticket.unit;
        let how = self.mirror.options.compare;
        if how == Compare::Off {
            return;
        }
        metrics.compared.add(1);
        if self.mirror.options.control {
            let volatile = judge::volatile(unit, &ran.result, how);
            if !volatile.is_empty() {
                metrics.diverge(DivergenceKind::Noise);
            }
            return unit.outcome.control.answered(volatile.into_vec());
        }
        let Some((kind, found)) = judge::judge(unit, &ran.result, how) else {
            return;
        };
        let report = DivergenceReport {
            source: self.mirror.source.clone(),
            mirror: self.mirror.destination.name.clone(),
            command: sql::fingerprint(unit.outcome.text.as_bytes()).1,
            pattern: Vec::new(),
            key: format!("statement {}", found.statement + 1).into_bytes(),
            kind,
            primary: found.primary.into_bytes(),
            secondary: found.mirror.into_bytes(),
            client: ticket.unit.client,
            core: self.context.core,
        };
        unit.outcome.control.judge(Suspect {
            context: self.context.clone(),
            metrics: metrics.clone(),
            statement: found.statement,
            query: run.slot_of(found.statement),
            report: Some(Box::new(report)),
        });
    }
}
