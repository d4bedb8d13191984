//! The processor time and memory of another process, from /proc.
//!
//! It never samples: it reads before and after, and the difference is divided by the requests.

use std::fs;

use super::LoadError;

/// CPU time of a process with all its threads, living and ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// Seconds in user mode.
    pub user_s: f64,
    /// Seconds in the kernel.
    pub system_s: f64,
}

impl Cpu {
    /// Reads the times now.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(pid: u32) -> Result<Self, LoadError> {
        let stat = read(pid, "stat")?;
        // The name in parentheses may hold anything: fields count from behind the last one.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        let seconds = |n: usize| -> Result<f64, LoadError> {
            let ticks: Option<u64> = fields.get(n).and_then(|field| field.parse().ok());
            let ticks = ticks.ok_or_else(|| gone(pid, "/proc/PID/stat"))?;
            Ok(ticks as f64 / per_second)
        };
        Ok(Self {
            user_s: seconds(11)?,
            system_s: seconds(12)?,
        })
    }

    /// What was spent since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            user_s: self.user_s - earlier.user_s,
            system_s: self.system_s - earlier.system_s,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            user_s: self.user_s + other.user_s,
            system_s: self.system_s + other.system_s,
        }
    }

    /// User and kernel together.
    pub fn total_s(self) -> f64 {
        self.user_s + self.system_s
    }
}

/// Resident memory in KiB.
///
/// # Errors
/// When the process is gone.
pub fn rss_kib(pid: u32) -> Result<u64, LoadError> {
    let status = read(pid, "status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
    line.ok_or_else(|| gone(pid, "no resident memory: it has ended"))
}

fn read(pid: u32, file: &str) -> Result<String, LoadError> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|error| gone(pid, error))
}

fn gone(pid: u32, problem: impl ToString) -> LoadError {
    LoadError::Process {
        pid,
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_its_work_shows() {
        let pid = std::process::id();
        assert!(rss_kib(pid).unwrap() > 100);
        let before = Cpu::of(pid).unwrap();
        let mut sum = 0_u64;
        while Cpu::of(pid).unwrap().since(before).total_s() < 0.02 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        assert!(Cpu::of(0).is_err());
    }
}
