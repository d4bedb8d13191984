//! Sentry, played by a local HTTP server that parses the envelopes.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use parhelion::control::sentry::SentryReporter;
use parhelion::metrics::DivergenceKind;
use support::ingest::ingest;

#[test]
fn a_divergence_arrives_as_a_warning_with_its_tags_and_fingerprint() {
    let (dsn, events) = ingest();
    let reporter = SentryReporter::new(&dsn, "staging", 1.0).unwrap();
    reporter.capture_divergence(DivergenceKind::DataMismatch, "GET");
    assert!(reporter.flush(Duration::from_secs(5)));
    let event = events.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(event["level"], "warning");
    assert_eq!(event["environment"], "staging");
    assert_eq!(event["tags"]["kind"], "data_mismatch");
    assert_eq!(event["tags"]["command"], "GET");
    assert_eq!(
        event["fingerprint"],
        serde_json::json!(["divergence", "data_mismatch", "GET"])
    );
    reporter.capture_failure("write", "SET", "-OOM command not allowed");
    assert!(reporter.flush(Duration::from_secs(5)));
    let event = events.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(event["fingerprint"], serde_json::json!(["write", "SET"]));
    // "error" is the level of an event that names none.
    let level = event.get("level").and_then(|level| level.as_str());
    assert_eq!(level.unwrap_or("error"), "error");
}

#[test]
fn the_same_fingerprint_is_reported_once_a_minute() {
    let (dsn, events) = ingest();
    let reporter = SentryReporter::new(&dsn, "", 1.0).unwrap();
    for _ in 0..1000 {
        reporter.capture_divergence(DivergenceKind::MigrationGap, "GET");
        reporter.capture_divergence(DivergenceKind::MigrationGap, "HGET");
    }
    assert!(reporter.flush(Duration::from_secs(5)));
    for _ in 0..2 {
        events.recv_timeout(Duration::from_secs(5)).unwrap();
    }
    assert!(events.recv_timeout(Duration::from_millis(200)).is_err());
    assert!(!reporter.should_report(&["divergence", "migration_gap", "GET"]));
}

#[test]
fn more_fingerprints_than_fit_are_dropped_and_counted() {
    let (dsn, _events) = ingest();
    let reporter = SentryReporter::new(&dsn, "", 1.0).unwrap();
    let admitted = (0..10_100)
        .filter(|number| reporter.should_report(&["x", &number.to_string()]))
        .count();
    assert_eq!((admitted, reporter.dropped()), (10_000, 100));
}

#[test]
fn an_empty_dsn_reports_to_nobody_and_a_bad_one_is_refused() {
    let reporter = SentryReporter::new("", "", 1.0).unwrap();
    assert!(!reporter.is_on() && !reporter.should_report(&["x"]));
    reporter.capture_divergence(DivergenceKind::ExtraData, "GET");
    assert!(reporter.flush(Duration::from_millis(1)));
    assert!(SentryReporter::new("not a dsn", "", 1.0).is_err());
}

#[test]
fn a_sample_rate_of_zero_sends_nothing() {
    let (dsn, events) = ingest();
    let reporter = SentryReporter::new(&dsn, "", 0.0).unwrap();
    reporter.capture_divergence(DivergenceKind::ExtraData, "GET");
    assert!(reporter.flush(Duration::from_secs(5)));
    assert!(events.recv_timeout(Duration::from_millis(200)).is_err());
}
