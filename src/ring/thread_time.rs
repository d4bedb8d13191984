//! How long the calling thread was on a CPU, in user mode and in the kernel.

/// Nanoseconds since the thread began; 0 where the kernel does not tell.
pub fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec on this stack, which the call writes and does not keep.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    match failed {
        0 => time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn work_counts_and_sleep_does_not() {
        let before = thread_cpu_ns();
        std::thread::sleep(Duration::from_millis(50));
        let slept = thread_cpu_ns() - before;
        assert!(slept < 25_000_000, "{slept} ns for a sleep");
        let deadline = Instant::now() + Duration::from_secs(20);
        while thread_cpu_ns() - before < 50_000_000 {
            assert!(
                Instant::now() < deadline,
                "a thread that works gets no time"
            );
        }
    }
}
