//! Is the candidate ready? The answer from what was seen, the reasons, and what it rests on.
//!
//! Three answers, because silence is no evidence: a mirror that saw too little is neither ready nor
//! not. What the candidate did wrong speaks against it however little was seen; what Parhelion or
//! its operator withheld from it does not.

use serde::Serialize;

use super::ledger::{DropReason, LedgerSnapshot};

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Nothing speaks against the candidate, and enough was seen.
    Ready,
    /// Something speaks against it.
    NotReady,
    /// Nothing speaks against it, but too little was seen.
    TooLittleEvidence,
}

/// Latency of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Measurements.
    pub samples: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
}

/// What was seen of one mirror.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The mirror's books, all cores together.
    pub ledger: LedgerSnapshot,
    /// Whether replies are compared at all.
    pub compares: bool,
    /// Replies that were compared.
    pub compared: u64,
    /// Replies that could not be: streamed past the bound, volatile, not comparable.
    pub not_compared: u64,
    /// Divergences by kind, without those that were recognised as noise or healed by themselves.
    pub divergences: &'a [(&'a str, u64)],
    /// Latency of the primary for the units that the mirror saw.
    pub primary: Latency,
    /// Latency of the mirror for the same.
    pub mirror: Latency,
    /// How long the mirror was watched.
    pub watched_ns: u64,
}

/// Where the lines are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// How long the mirror must have been watched: a burst of a second shows no checkpoint, no eviction, no idle pool.
    pub watched_min_ns: u64,
    /// Units that must have been delivered.
    pub delivered_min: u64,
    /// Replies that must have been compared.
    pub compared_min: u64,
    /// Share of the replies that must have been comparable.
    pub compared_share_min: f64,
    /// Share of the compared replies that may differ.
    pub divergence_share_max: f64,
    /// Share of the offered units that the candidate may lose: too slow, away, or cut.
    pub lost_share_max: f64,
    /// How many times the primary's latency the candidate's may be, at p50 and at p99.
    pub latency_ratio_max: f64,
    /// A smaller difference in latency is never held against the candidate.
    pub latency_slack_ns: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            watched_min_ns: 60_000_000_000,
            delivered_min: 1_000,
            compared_min: 1_000,
            compared_share_min: 0.5,
            divergence_share_max: 0.0,
            lost_share_max: 0.01,
            latency_ratio_max: 1.25,
            latency_slack_ns: 500_000,
        }
    }
}

/// The answer with its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The answer.
    pub answer: Answer,
    /// Why it is not `ready`; empty if it is.
    pub reasons: Vec<String>,
    /// What was looked at, favourable or not.
    pub rests_on: Vec<String>,
}

/// Drops that the candidate has to answer for. A unit too large for a ring, a full memory, a pause
/// or the end of the process say nothing about it.
const BLAMED: [DropReason; 3] = [
    DropReason::QueueFull,
    DropReason::Unavailable,
    DropReason::Timeout,
];

/// Judges a mirror.
pub fn judge(evidence: &Evidence<'_>, thresholds: &Thresholds) -> Verdict {
    let against = against(evidence, thresholds);
    let missing = missing(evidence, thresholds);
    let answer = match (against.is_empty(), missing.is_empty()) {
        (false, _) => Answer::NotReady,
        (true, false) => Answer::TooLittleEvidence,
        (true, true) => Answer::Ready,
    };
    let mut reasons = against;
    reasons.extend(missing);
    Verdict {
        answer,
        reasons,
        rests_on: rests_on(evidence),
    }
}

/// What speaks against the candidate.
fn against(evidence: &Evidence<'_>, thresholds: &Thresholds) -> Vec<String> {
    let mut reasons = Vec::new();
    let differing = divergences(evidence);
    let allowed = share_of(thresholds.divergence_share_max, evidence.compared);
    if differing as f64 > allowed {
        let kinds = evidence.divergences.iter().filter(|(_, count)| *count > 0);
        let kinds: Vec<String> = kinds.map(|(kind, n)| format!("{n} {kind}")).collect();
        reasons.push(format!(
            "{differing} of {} compared replies differ ({})",
            evidence.compared,
            kinds.join(", ")
        ));
    }
    let books = &evidence.ledger;
    let lost = lost(books);
    if lost as f64 > share_of(thresholds.lost_share_max, books.offered) {
        let mut parts: Vec<String> = BLAMED
            .iter()
            .map(|reason| (books.dropped_for(*reason), reason.as_str()))
            .chain([(books.errored, "errored")])
            .filter(|(count, _)| *count > 0)
            .map(|(count, label)| format!("{count} {label}"))
            .collect();
        parts.sort();
        reasons.push(format!(
            "{lost} of {} units were lost on the way to it ({})",
            books.offered,
            parts.join(", ")
        ));
    }
    if enough_latency(evidence, thresholds) {
        let (primary, mirror) = (evidence.primary, evidence.mirror);
        for (name, base_ns, seen_ns) in [
            ("p50", primary.p50_ns, mirror.p50_ns),
            ("p99", primary.p99_ns, mirror.p99_ns),
        ] {
            let slower_ns = seen_ns.saturating_sub(base_ns);
            let allowed_ns = base_ns as f64 * thresholds.latency_ratio_max;
            if seen_ns as f64 > allowed_ns && slower_ns > thresholds.latency_slack_ns {
                reasons.push(format!(
                    "{name} latency is {} against the primary's {}",
                    millis(seen_ns),
                    millis(base_ns)
                ));
            }
        }
    }
    reasons
}

/// What is missing for a `ready`.
fn missing(evidence: &Evidence<'_>, thresholds: &Thresholds) -> Vec<String> {
    let mut reasons = Vec::new();
    let books = &evidence.ledger;
    if !books.balances() {
        reasons.push("the ledger does not balance: report this as a bug".to_owned());
    }
    if evidence.watched_ns < thresholds.watched_min_ns {
        reasons.push(format!(
            "it was watched for less than {} s",
            thresholds.watched_min_ns / 1_000_000_000
        ));
    }
    if books.delivered < thresholds.delivered_min {
        reasons.push(format!(
            "{} units were delivered, at least {} are needed",
            books.delivered, thresholds.delivered_min
        ));
    }
    let withheld = books.dropped_total() - blamed(books);
    if withheld as f64 > share_of(thresholds.lost_share_max, books.offered) {
        reasons.push(format!(
            "{withheld} of {} units were kept from it (oversize, memory, paused or shutdown)",
            books.offered
        ));
    }
    if !evidence.compares {
        reasons.push("replies are not compared".to_owned());
        return reasons;
    }
    if evidence.compared < thresholds.compared_min {
        reasons.push(format!(
            "{} replies were compared, at least {} are needed",
            evidence.compared, thresholds.compared_min
        ));
    }
    let replies = evidence.compared + evidence.not_compared;
    if (evidence.compared as f64) < share_of(thresholds.compared_share_min, replies) {
        reasons.push(format!(
            "only {} of {replies} replies could be compared",
            evidence.compared
        ));
    }
    if !enough_latency(evidence, thresholds) {
        reasons.push("too few latencies were measured".to_owned());
    }
    reasons
}

fn rests_on(evidence: &Evidence<'_>) -> Vec<String> {
    let books = &evidence.ledger;
    let mut lines = vec![
        format!(
            "{} units seen in {} s: {} offered, {} left out by exposure, {} excluded",
            books.observed,
            evidence.watched_ns / 1_000_000_000,
            books.offered,
            books.unexposed,
            books.excluded
        ),
        format!(
            "{} delivered, {} dropped, {} errored, {} in flight",
            books.delivered,
            books.dropped_total(),
            books.errored,
            books.in_flight()
        ),
    ];
    if evidence.compares {
        lines.push(format!(
            "{} replies compared, {} not, {} different",
            evidence.compared,
            evidence.not_compared,
            divergences(evidence)
        ));
    }
    for (side, latency) in [("primary", evidence.primary), ("mirror", evidence.mirror)] {
        if latency.samples > 0 {
            lines.push(format!(
                "{side} latency p50 {}, p99 {} ({} measured)",
                millis(latency.p50_ns),
                millis(latency.p99_ns),
                latency.samples
            ));
        }
    }
    lines
}

fn divergences(evidence: &Evidence<'_>) -> u64 {
    evidence.divergences.iter().map(|(_, count)| count).sum()
}

fn blamed(books: &LedgerSnapshot) -> u64 {
    BLAMED.iter().map(|reason| books.dropped_for(*reason)).sum()
}

fn lost(books: &LedgerSnapshot) -> u64 {
    blamed(books) + books.errored
}

fn enough_latency(evidence: &Evidence<'_>, thresholds: &Thresholds) -> bool {
    let samples = evidence.primary.samples.min(evidence.mirror.samples);
    samples >= thresholds.delivered_min
}

fn share_of(share: f64, whole: u64) -> f64 {
    share * whole as f64
}

fn millis(ns: u64) -> String {
    format!("{:.3} ms", ns as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: Latency = Latency {
        samples: 10_000,
        p50_ns: 1_000_000,
        p99_ns: 10_000_000,
    };

    /// 10,000 units, all delivered and equal.
    fn good() -> Evidence<'static> {
        Evidence {
            ledger: LedgerSnapshot {
                observed: 12_000,
                excluded: 500,
                unexposed: 1_500,
                offered: 10_000,
                delivered: 10_000,
                ..LedgerSnapshot::default()
            },
            compares: true,
            compared: 9_900,
            not_compared: 100,
            divergences: &[],
            primary: SIDE,
            mirror: SIDE,
            watched_ns: 60_000_000_000,
        }
    }

    fn answer(evidence: &Evidence<'_>) -> (Answer, String) {
        let verdict = judge(evidence, &Thresholds::default());
        (verdict.answer, verdict.reasons.join("; "))
    }

    fn dropped(reason: DropReason, count: u64) -> Evidence<'static> {
        let mut evidence = good();
        evidence.ledger.dropped[reason as usize] = count;
        evidence.ledger.delivered -= count;
        evidence
    }

    #[test]
    fn equal_quick_and_complete_is_ready_without_a_reason() {
        assert_eq!(answer(&good()), (Answer::Ready, String::new()));
        let verdict = judge(&good(), &Thresholds::default());
        assert_eq!(verdict.rests_on.len(), 5);
    }

    #[test]
    fn one_divergence_speaks_against_it_however_little_was_seen() {
        let mut evidence = good();
        evidence.ledger = LedgerSnapshot::default();
        evidence.compared = 3;
        evidence.divergences = &[("data_mismatch", 1), ("type_mismatch", 0)];
        let (answer, reasons) = answer(&evidence);
        assert_eq!(answer, Answer::NotReady);
        assert!(reasons.starts_with("1 of 3 compared replies differ (1 data_mismatch)"));
    }

    #[test]
    fn silence_is_too_little_evidence() {
        let mut evidence = good();
        evidence.ledger = LedgerSnapshot::default();
        (evidence.compared, evidence.not_compared) = (0, 0);
        assert_eq!(answer(&evidence).0, Answer::TooLittleEvidence);
        let uncompared = Evidence {
            compares: false,
            ..good()
        };
        assert_eq!(answer(&uncompared).0, Answer::TooLittleEvidence);
        let streamed = Evidence {
            not_compared: 100_000,
            ..good()
        };
        assert_eq!(answer(&streamed).0, Answer::TooLittleEvidence);
        let brief = Evidence {
            watched_ns: 59_999_999_999,
            ..good()
        };
        let wanted = "it was watched for less than 60 s".to_owned();
        assert_eq!(answer(&brief), (Answer::TooLittleEvidence, wanted));
    }

    #[test]
    fn losses_of_the_candidate_count_against_it_and_ours_do_not() {
        let (slow, reasons) = answer(&dropped(DropReason::QueueFull, 101));
        assert_eq!(slow, Answer::NotReady);
        assert!(reasons.contains("(101 queue_full)"), "{reasons}");
        assert_eq!(
            answer(&dropped(DropReason::QueueFull, 100)).0,
            Answer::Ready
        );
        let paused = answer(&dropped(DropReason::Paused, 5_000)).0;
        assert_eq!(paused, Answer::TooLittleEvidence);
    }

    #[test]
    fn latency_counts_beyond_the_ratio_and_the_slack() {
        let mut evidence = good();
        evidence.mirror.p99_ns = 12_400_000;
        assert_eq!(answer(&evidence).0, Answer::Ready);
        evidence.mirror.p99_ns = 12_600_000;
        let (slow, reasons) = answer(&evidence);
        assert_eq!(slow, Answer::NotReady);
        assert_eq!(
            reasons,
            "p99 latency is 12.600 ms against the primary's 10.000 ms"
        );
        evidence = good();
        (evidence.primary.p50_ns, evidence.mirror.p50_ns) = (50_000, 500_000);
        assert_eq!(answer(&evidence).0, Answer::Ready, "within the slack");
    }

    #[test]
    fn books_that_do_not_balance_are_never_ready() {
        let mut evidence = good();
        evidence.ledger.observed += 1;
        assert_eq!(answer(&evidence).0, Answer::TooLittleEvidence);
    }
}
