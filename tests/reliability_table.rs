//! RELIABILITY.md and REDIS.md name a test for every promise, and every test they name exists.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

/// The pages, with how many rows each has.
const PAGES: [(&str, usize); 2] = [("RELIABILITY.md", 26), ("REDIS.md", 63)];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join("tests").join(name)).unwrap()
}

/// The `file::test` in a piece of a page.
fn named(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter_map(|name| name.split_once("::")).collect()
}

/// A file of `tests/`, or a path below `src/` to a test beside the code.
fn path_of(file: &str) -> PathBuf {
    match file.starts_with("src/") {
        true => root().join(file),
        false => root().join("tests").join(file).with_extension("rs"),
    }
}

#[test]
fn every_test_that_a_page_names_exists() {
    for (name, rows) in PAGES {
        let page = page(name);
        let names = named(&page);
        assert!(names.len() > rows, "{name}: {} names", names.len());
        for (file, test) in names {
            let path = path_of(file);
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{name}: {}: {error}", path.display()));
            assert!(
                text.contains(&format!("fn {test}(")),
                "{name}: {file} has no test {test}"
            );
        }
    }
}

#[test]
fn every_row_has_a_test() {
    for (name, rows) in PAGES {
        let page = page(name);
        for row in 1..=rows {
            let start = format!("| {row} | ");
            let line = page.lines().find(|line| line.starts_with(&start));
            let line = line.unwrap_or_else(|| panic!("{name}: row {row} is missing"));
            assert!(!named(line).is_empty(), "{name}: row {row} names no test");
        }
        let more = page.contains(&format!("| {} | ", rows + 1));
        assert!(!more, "{name} has more than {rows} rows");
    }
}
