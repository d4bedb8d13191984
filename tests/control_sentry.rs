//! Sentry, played by a local HTTP server that parses the envelopes.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use parhelion::control::sentry::SentryReporter;
use parhelion::metrics::DivergenceKind;
use serde_json::Value;

/// Listens, answers every envelope and hands on the events in them.
fn ingest() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dsn = format!("http://public@{}/42", listener.local_addr().unwrap());
    let (sender, events) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while let Some(body) = request(&mut reader) {
                    for event in envelope(&body) {
                        let _ = sender.send(event);
                    }
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    reader.get_mut().write_all(answer.as_bytes()).unwrap();
                }
            });
        }
    });
    (dsn, events)
}

fn request(reader: &mut BufReader<std::net::TcpStream>) -> Option<Vec<u8>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    assert!(head.starts_with("POST /api/42/envelope/"), "{head}");
    let head = head.to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name).map(|v| v.trim().to_owned()));
    let mut body = Vec::new();
    if let Some(length) = field("content-length:") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body).unwrap();
        return Some(body);
    }
    // Chunked.
    loop {
        let mut size = String::new();
        reader.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).unwrap();
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

/// The events of an envelope: a header line, then for each item a header line and its payload.
fn envelope(body: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(body).unwrap();
    let mut lines = text.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert!(header["event_id"].is_string());
    let mut events = Vec::new();
    while let (Some(item), Some(payload)) = (lines.next(), lines.next()) {
        let item: Value = serde_json::from_str(item).unwrap();
        if item["type"] == "event" {
            assert_eq!(item["length"].as_u64().unwrap() as usize, payload.len());
            events.push(serde_json::from_str(payload).unwrap());
        }
    }
    events
}

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
    assert_eq!(event["fingerprint"], serde_json::json!(["divergence", "data_mismatch", "GET"]));
    reporter.capture_failure("write", "SET", "-OOM command not allowed");
    assert!(reporter.flush(Duration::from_secs(5)));
    let event = events.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(event["fingerprint"], serde_json::json!(["write", "SET"]));
    assert_eq!(event["level"], "error");
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
    let admitted = (0..10_100).filter(|number| reporter.should_report(&["x", &number.to_string()])).count();
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
