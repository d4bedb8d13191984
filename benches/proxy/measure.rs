//! What the kernel says about a process, and the statistics of repeated runs.
//!
//! CPU and memory come from the library's load generator, which `parhelion bench` shows them with too.

use std::fs;

use anyhow::Result;
pub use parhelion::load::cpu::{Cpu, rss_kib};
use serde::Serialize;

/// Open file descriptors.
pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// The median and the interquartile range around it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// The middle value.
    pub median: f64,
    /// First quartile.
    pub q1: f64,
    /// Third quartile.
    pub q3: f64,
    /// How many values there were.
    pub n: usize,
}

impl Spread {
    /// Of the given values; `None` when there is none or one of them is not finite.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let place = q * (values.len() - 1) as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            values[low] + (values[high] - values[low]) * (place - low as f64)
        };
        Some(Self {
            median: at(0.5),
            q1: at(0.25),
            q3: at(0.75),
            n: values.len(),
        })
    }

    /// Width of the interquartile range.
    pub fn width(self) -> f64 {
        self.q3 - self.q1
    }

    /// Half the range as a share of the median, in percent.
    pub fn percent(self) -> f64 {
        if self.median == 0.0 {
            0.0
        } else {
            50.0 * self.width() / self.median.abs()
        }
    }
}
