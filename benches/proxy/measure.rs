//! What the kernel says about a process, and the statistics of repeated runs.
//!
//! CPU comes from `/proc/PID/stat`, whose times are those of all threads, living and ended. It never samples: it reads
//! before and after, and the difference is divided by the requests.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// CPU time of a process with all its threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// Seconds in user mode.
    pub user_s: f64,
    /// Seconds in the kernel.
    pub system_s: f64,
}

impl Cpu {
    /// Reads the times now.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process ended")?;
        // The name in parentheses may hold anything: fields count from behind the last one.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        let ticks = |n: usize| -> Result<f64> {
            Ok(fields.get(n).context("/proc/PID/stat")?.parse::<u64>()? as f64)
        };
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        Ok(Self {
            user_s: ticks(11)? / per_second,
            system_s: ticks(12)? / per_second,
        })
    }

    /// What was spent since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            user_s: self.user_s - earlier.user_s,
            system_s: self.system_s - earlier.system_s,
        }
    }

    /// User and kernel together.
    pub fn total_s(self) -> f64 {
        self.user_s + self.system_s
    }
}

/// Resident memory in KiB.
pub fn rss_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process ended")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

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
