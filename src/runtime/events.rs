//! What the cores report, off their hands: divergences into the store, the journal and the log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;

use crate::control::Verdict;
use crate::control::divergences::{DivergenceRecord, DivergenceStore, Redaction};
use crate::control::sentry::SentryReporter;
use crate::limits::{DIVERGENCE_LOG_INTERVAL_NS, RATE_LIMIT_LEN_MAX, SENTRY_FLUSH};
use crate::metrics::{self, DivergenceKind, MirrorTotal, Registry};
use crate::mirror::ledger::DropReason;
use crate::mirror::rate_limit::RateLimit;
use crate::mirror::verdict::{self, Answer, Evidence, Thresholds};
use crate::proxy::context::{DivergenceReport, Event, TaintReport};

/// JSON lines of divergences, if a file was configured.
pub(super) struct Journal(Option<File>);

impl Journal {
    pub(super) fn open(path: Option<&Path>) -> Result<Journal, (PathBuf, io::Error)> {
        let Some(path) = path else {
            return Ok(Journal(None));
        };
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.map(|file| Journal(Some(file)))
            .map_err(|error| (path.to_owned(), error))
    }

    /// One line per key, and one more if every key is meant.
    fn tainted(&mut self, report: &TaintReport, redaction: &Redaction) {
        let line = |key: &str, db: u32| {
            serde_json::json!({
                "tainted": key,
                "db": db,
                "all": report.all,
                "source": report.source,
                "destination": report.mirror,
                "core": report.core,
            })
        };
        if report.all {
            self.write(&line("", 0));
        }
        for (db, key) in &report.keys {
            self.write(&line(&redaction.key(key), *db));
        }
    }

    fn write(&mut self, record: &impl serde::Serialize) {
        let Some(file) = &mut self.0 else { return };
        let Ok(mut line) = serde_json::to_string(record) else {
            return;
        };
        line.push('\n');
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::error!(%error, "cannot write the divergence log; no more is written");
            self.0 = None;
        }
    }
}

/// Starts the thread that takes events until every core has ended.
pub(super) fn consume(
    events: Receiver<Event>,
    store: Arc<DivergenceStore>,
    mut journal: Journal,
    redaction: Redaction,
    sentry: SentryReporter,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("events".to_owned())
        .spawn(move || {
            let started = Instant::now();
            let mut limit = RateLimit::new(DIVERGENCE_LOG_INTERVAL_NS, RATE_LIMIT_LEN_MAX);
            for event in events {
                match event {
                    Event::End => {
                        if !sentry.flush(SENTRY_FLUSH) {
                            tracing::warn!("Sentry did not take every event in time");
                        }
                        return;
                    }
                    Event::Failure(report) => {
                        let problem = without_values(&report.problem);
                        sentry.capture_failure(report.operation, &report.command, problem);
                        let now_ns = started.elapsed().as_nanos() as u64;
                        let text = [&report.mirror, report.operation, &report.command].join("\0");
                        let fingerprint = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
                        if let Some(suppressed) = limit.admit(fingerprint, now_ns) {
                            tracing::warn!(
                                source = report.source,
                                secondary = report.mirror,
                                operation = report.operation,
                                command = report.command,
                                reason = problem,
                                suppressed,
                                "a secondary failed"
                            );
                        }
                    }
                    Event::Tainted(report) => {
                        tracing::warn!(
                            source = report.source,
                            secondary = report.mirror,
                            keys = report.keys.len(),
                            all = report.all,
                            "keys were left that the secondary may hold wrongly"
                        );
                        journal.tainted(&report, &redaction);
                    }
                    Event::Divergence(report) => {
                        let record = record(&report, &redaction);
                        let now_ns = started.elapsed().as_nanos() as u64;
                        if let Some(suppressed) = limit.admit(fingerprint(&record), now_ns) {
                            tracing::warn!(
                                source = record.source,
                                mirror = record.destination,
                                kind = record.kind.as_str(),
                                command = record.command,
                                suppressed,
                                "a mirror's reply differs"
                            );
                        }
                        sentry.capture_divergence(record.kind, &record.command);
                        journal.write(&record);
                        store.push(record);
                    }
                }
            }
        })
}

/// An error reply of a server may quote what it was sent; its first word does not. The whole of it is in the
/// divergence's record, as far as `redact` allows.
fn without_values(problem: &str) -> &str {
    match problem.strip_prefix(['-', '!']) {
        Some(reply) => reply.split_whitespace().next().unwrap_or("an error"),
        None => problem,
    }
}

fn fingerprint(record: &DivergenceRecord) -> u64 {
    let text = [&record.destination, &record.command, record.kind.as_str()].join("\0");
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

fn record(report: &DivergenceReport, redaction: &Redaction) -> DivergenceRecord {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    DivergenceRecord {
        at_unix_ms: since.as_millis() as u64,
        source: report.source.clone(),
        destination: report.mirror.clone(),
        kind: report.kind,
        command: report.command.clone(),
        key: redaction.key(&report.key),
        pattern: redaction.key(&report.pattern),
        primary: redaction.value(&report.primary),
        mirror: redaction.value(&report.secondary),
        core: report.core,
        client: report.client.0.to_string(),
    }
}

/// Whether a mirror's numbers allow to call it ready.
pub(super) fn judge(total: &MirrorTotal, watched: Duration) -> Verdict {
    let divergences: Vec<(&str, u64)> = DivergenceKind::ALL
        .into_iter()
        .zip(total.divergences)
        .filter(|(kind, count)| kind.is_real() && *count > 0)
        .map(|(kind, count)| (kind.as_str(), count))
        .collect();
    let evidence = Evidence {
        ledger: total.ledger,
        // Of a mirror that got nothing it is not known, and it is not the reason.
        compares: total.compared + total.not_compared > 0 || total.ledger.delivered == 0,
        compared: total.compared,
        not_compared: total.not_compared,
        divergences: &divergences,
        primary: latency(&total.primary_latency),
        mirror: latency(&total.latency),
        watched_ns: u64::try_from(watched.as_nanos()).unwrap_or(u64::MAX),
    };
    let verdict = verdict::judge(&evidence, &Thresholds::default());
    let word = match verdict.answer {
        Answer::Ready => "ready",
        Answer::NotReady => "not ready",
        Answer::TooLittleEvidence => "too little evidence",
    };
    Verdict {
        verdict: word.to_owned(),
        reasons: verdict.reasons,
        rests_on: verdict.rests_on,
    }
}

fn latency(total: &metrics::Latency) -> verdict::Latency {
    verdict::Latency {
        samples: total.histogram.len(),
        p50_ns: total.quantile_ns(0.5),
        p99_ns: total.quantile_ns(0.99),
    }
}

/// The last word of a process: where every unit went.
pub(super) fn log_ledgers(registry: &Registry) {
    for mirror in registry.mirrors() {
        let ledger = &mirror.ledger;
        let dropped: Vec<String> = DropReason::ALL
            .into_iter()
            .filter(|reason| ledger.dropped_for(*reason) > 0)
            .map(|reason| format!("{reason}={}", ledger.dropped_for(reason)))
            .collect();
        tracing::info!(
            mirror = mirror.name,
            observed = ledger.observed,
            excluded = ledger.excluded,
            unexposed = ledger.unexposed,
            offered = ledger.offered,
            delivered = ledger.delivered,
            errored = ledger.errored,
            dropped = dropped.join(","),
            in_flight = ledger.in_flight(),
            balances = ledger.balances(),
            "final ledger"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Redact;

    #[test]
    fn a_mirror_that_got_nothing_is_not_said_to_compare_nothing() {
        use crate::metrics::Protocol;
        use crate::mirror::ledger::Fate;
        let registry = Registry::new(vec![0]);
        let mirror = registry.mirror(0, "cache", "gone", Protocol::Redis);
        let reasons = || judge(&registry.mirrors()[0], Duration::from_secs(9)).reasons;
        mirror.ledger.offer();
        mirror.ledger.settle(Fate::Dropped(DropReason::Unavailable));
        let said = reasons();
        let compares_nothing =
            |said: &[String]| said.iter().any(|line| line.contains("not compared"));
        assert!(!compares_nothing(&said), "{said:?}");
        assert!(
            said.iter()
                .any(|line| line.contains("0 units were delivered"))
        );
        // One that answered and was never held against the primary is.
        mirror.ledger.offer();
        mirror.ledger.settle(Fate::Delivered);
        assert!(compares_nothing(&reasons()));
    }

    #[test]
    fn tainted_keys_stand_in_the_journal_as_redact_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let report = TaintReport {
            source: "cache".into(),
            mirror: "cache_new".into(),
            all: false,
            keys: vec![(3, b"canary:7".to_vec())],
            core: 1,
        };
        for (redact, is_shown) in [
            (Redact::Off, true),
            (Redact::Values, true),
            (Redact::Keys, false),
        ] {
            let mut journal = Journal::open(Some(&path)).expect("a journal");
            journal.tainted(&report, &Redaction::new(redact));
            let text = std::fs::read_to_string(&path).expect("its text");
            assert_eq!(text.contains("canary:7"), is_shown, "{redact:?}: {text}");
            assert!(text.contains("\"db\":3") && text.ends_with("}\n"), "{text}");
            std::fs::remove_file(&path).expect("its end");
        }
    }

    #[test]
    fn what_a_server_quotes_in_its_error_is_not_logged() {
        let quoted = "-ERR unknown command 'X', with args beginning with: 'canary'";
        assert_eq!(without_values(quoted), "ERR");
        assert_eq!(without_values("-"), "an error");
        assert_eq!(
            without_values("it closed the connection"),
            "it closed the connection"
        );
    }
}
