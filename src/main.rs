//! The `parhelion` command line.

fn main() {}
