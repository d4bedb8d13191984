//! What Linux says about this process, read from /proc at every scrape; by the control thread only.

use std::fs;

/// The kernel's USER_HZ, in which /proc counts processor time; 100 on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// The process at one time. What /proc does not give stays 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessSample {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Virtual memory.
    pub virtual_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// The soft limit on them.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
    /// User and system time in seconds.
    pub cpu_seconds: f64,
}

impl ProcessSample {
    /// Reads /proc/self.
    pub fn take() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        Self {
            resident_bytes: field(&status, "VmRSS:") * 1024,
            virtual_bytes: field(&status, "VmSize:") * 1024,
            // The directory being read is itself open: not ours.
            open_fds: fs::read_dir("/proc/self/fd")
                .map_or(0, |dir| (dir.count() as u64).saturating_sub(1)),
            max_fds: field(&limits, "Max open files"),
            threads: field(&status, "Threads:"),
            cpu_seconds: cpu_seconds(&stat),
        }
    }
}

/// The first number after `key` at a line's start.
fn field(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// proc(5): utime and stime are fields 14 and 15; the second field, in parentheses, may hold spaces.
fn cpu_seconds(stat: &str) -> f64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |i: usize| -> f64 { fields.get(i).and_then(|f| f.parse().ok()).unwrap_or(0.0) };
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_files_and_threads() {
        let sample = ProcessSample::take();
        assert!(sample.resident_bytes > 100_000 && sample.virtual_bytes >= sample.resident_bytes);
        assert!(sample.open_fds >= 3 && sample.open_fds <= sample.max_fds);
        assert!(sample.threads >= 1);
    }

    #[test]
    fn a_process_name_with_spaces_does_not_shift_the_fields() {
        let stat = "7 (a b) c) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0";
        assert!((cpu_seconds(stat) - 2.0).abs() < 1e-9);
    }
}
