//! When each request of an open loop is due: fixed before the run, whatever the replies do.

/// One thread's share of the schedule.
///
/// The requests of all threads together are due at equal distances; a thread takes every `step`-th.
#[derive(Clone, Debug)]
pub struct Schedule {
    interval_ns: f64,
    next: u64,
    step: u64,
    total: u64,
}

impl Schedule {
    /// `rate` per second for `length_ns`, of which this is share `index` of `shares`.
    pub fn new(rate: f64, length_ns: u64, index: usize, shares: usize) -> Self {
        Self {
            interval_ns: 1e9 / rate,
            next: index as u64,
            step: shares.max(1) as u64,
            total: (rate * length_ns as f64 / 1e9) as u64,
        }
    }

    /// When the next request is due; `None` after the last.
    pub fn next_ns(&self) -> Option<u64> {
        (self.next < self.total).then_some((self.next as f64 * self.interval_ns) as u64)
    }

    /// Takes the next request if it is due: its number among those of this share, and its time.
    pub fn take(&mut self, now_ns: u64) -> Option<(u64, u64)> {
        let due = self.next_ns().filter(|&due| due <= now_ns)?;
        let number = self.next / self.step;
        self.next += self.step;
        Some((number, due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_together_are_the_whole_schedule_at_equal_distances() {
        let mut due: Vec<u64> = (0..3)
            .flat_map(|index| {
                let mut share = Schedule::new(1000.0, 1_000_000_000, index, 3);
                std::iter::from_fn(move || share.take(u64::MAX).map(|(_, due)| due))
            })
            .collect();
        due.sort_unstable();
        let wanted: Vec<u64> = (0..1000).map(|n| n * 1_000_000).collect();
        assert_eq!(due, wanted);
    }

    #[test]
    fn nothing_is_taken_before_its_time_and_a_pause_loses_nothing() {
        let mut schedule = Schedule::new(10.0, 1_000_000_000, 0, 1);
        assert_eq!(schedule.take(0), Some((0, 0)));
        assert_eq!(schedule.take(99_999_999), None);
        assert_eq!(schedule.next_ns(), Some(100_000_000));
        let late: Vec<_> = std::iter::from_fn(|| schedule.take(350_000_000)).collect();
        assert_eq!(late, [(1, 100_000_000), (2, 200_000_000), (3, 300_000_000)]);
    }
}
