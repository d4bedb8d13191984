//! `parhelion demo` runs to its end, and its numbers agree with what the candidate itself counted.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::Duration;

use support::proxy::forwarder_wanted;
use support::run_ok;

const TIMEOUT: Duration = Duration::from_secs(90);

fn demo(args: &[&str]) -> String {
    run_ok(
        Command::new(env!("CARGO_BIN_EXE_parhelion"))
            .arg("demo")
            .args(args),
        b"",
        TIMEOUT,
    )
}

/// The number behind a word of the summary.
fn number_after(text: &str, word: &str) -> u64 {
    let (_, rest) = text
        .rsplit_once(word)
        .unwrap_or_else(|| panic!("no {word:?} in {text}"));
    let digits: String = rest
        .trim_start()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no number behind {word:?} in {text}"))
}

#[test]
fn every_falsified_reply_of_the_embedded_candidate_is_found_and_nothing_else() {
    if forwarder_wanted() {
        return;
    }
    let text = demo(&["--seconds", "4", "--rate", "2000", "--wrong-every", "50"]);
    assert!(text.contains("the ledger balances"), "{text}");
    assert!(
        text.contains(" 0 error replies, 0 broken connections"),
        "{text}"
    );
    assert_eq!(number_after(&text, "+ dropped "), 0, "{text}");
    assert!(!text.contains("p50 -"), "latencies are missing: {text}");
    let falsified = number_after(&text, "The candidate falsified ");
    assert!(falsified > 20, "{text}");
    assert_eq!(number_after(&text, "replies; "), falsified, "{text}");
}

#[test]
fn two_real_redis_servers_with_the_same_traffic_do_not_diverge() {
    if forwarder_wanted() {
        return;
    }
    let text = demo(&["redis", "--seconds", "3", "--rate", "2000"]);
    assert!(text.contains("the ledger balances"), "{text}");
    assert!(number_after(&text, "compared   ") > 1000, "{text}");
    assert_eq!(number_after(&text, ", divergences "), 0, "{text}");
}

#[test]
fn two_real_postgres_servers_with_the_same_reads_do_not_diverge() {
    if forwarder_wanted() {
        return;
    }
    let text = demo(&["postgres", "--seconds", "3", "--clients", "4"]);
    assert!(text.contains("the ledger balances"), "{text}");
    assert!(number_after(&text, "compared   ") > 100, "{text}");
    assert_eq!(number_after(&text, ", divergences "), 0, "{text}");
}
