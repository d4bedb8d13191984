//! RELIABILITY.md names a test for every promise, and every test it names exists.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn page() -> String {
    std::fs::read_to_string(folder().join("RELIABILITY.md")).unwrap()
}

/// The `file::test` in a piece of the page.
fn named(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter_map(|name| name.split_once("::")).collect()
}

#[test]
fn every_test_that_the_page_names_exists() {
    let page = page();
    let names = named(&page);
    assert!(names.len() > 60, "{} names", names.len());
    for (file, test) in names {
        let path = folder().join(file).with_extension("rs");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(
            text.contains(&format!("fn {test}(")),
            "{file}.rs has no test {test}"
        );
    }
}

#[test]
fn every_row_has_a_test() {
    let page = page();
    for row in 1..=26 {
        let start = format!("| {row} | ");
        let line = page.lines().find(|line| line.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("row {row} is missing"));
        assert!(!named(line).is_empty(), "row {row} names no test");
    }
}
