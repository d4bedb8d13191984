//! Which seeds a simulation runs, and what a failed one says.

use std::ops::Range;

/// 256 seeds; `PARHELION_SIM_SEEDS=10000` for more, `PARHELION_SIM_SEED=7` for one.
pub fn seeds() -> Range<u64> {
    match number("PARHELION_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PARHELION_SIM_SEEDS").unwrap_or(256),
    }
}

/// What to tell of a panic: how to run its seed again, and what was wrong.
pub fn report(seed: u64, panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a text");
    format!("PARHELION_SIM_SEED={seed}: {text}")
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}
