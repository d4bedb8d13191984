//! The one table of every metric: name, type, unit, labels, help and where its values come from.
//!
//! The names are an interface: dashboards and alerts of users hang on them. `tests/control_metrics.rs` holds the
//! exposed text and this table to each other.

mod command;
mod core;
mod mirror;
mod source;

use super::metric::Metric;

const PARTS: [&[Metric]; 4] = [
    core::METRICS,
    source::METRICS,
    mirror::METRICS,
    command::METRICS,
];

const COUNT: usize = {
    let (mut count, mut part) = (0, 0);
    while part < PARTS.len() {
        count += PARTS[part].len();
        part += 1;
    }
    count
};

/// Every metric there is.
pub const TABLE: &[Metric] = &joined();

/// The parts one after the other; a loop because iterators are not for constants.
const fn joined() -> [Metric; COUNT] {
    let mut all = [PARTS[0][0]; COUNT];
    let (mut at, mut part) = (0, 0);
    while part < PARTS.len() {
        let mut within = 0;
        while within < PARTS[part].len() {
            all[at] = PARTS[part][within];
            at += 1;
            within += 1;
        }
        part += 1;
    }
    all
}
