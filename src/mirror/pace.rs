//! When the next message group of a unit may start on a mirror.
//!
//! The gap between two groups is measured from start to start, on the primary and on the mirror
//! alike: the next group starts as long after the previous one *started on the mirror* as it came
//! after it on the primary, or when the mirror has answered, whichever is later. A pause after each
//! answer instead would add the mirror's own time to every gap.
//!
//! A pause below the timer's grain is not slept but kept: a group then counts as started at its due
//! time, so that many small gaps add up to a pause that is worth a timer, and none are lost.

use serde::{Deserialize, Serialize};

use super::unit::{Group, Unit};
use crate::limits::{PACE_GRAIN_NS, PACE_LAG_NS_MAX};

/// How closely a mirror follows the client's timing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// As fast as the mirror answers.
    Off,
    /// Gaps inside a unit are kept, gaps between units are not.
    #[default]
    Transaction,
    /// Gaps between the units of a client are kept too, at a constant lag behind the primary.
    Session,
}

/// What to do about a due time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Send it.
    Now,
    /// Set a timer for this time; it is at least one grain away.
    At(u64),
}

impl Start {
    /// Whether a group that is due at `due_ns` starts now.
    pub fn of(due_ns: u64, now_ns: u64) -> Start {
        if due_ns.saturating_sub(now_ns) < PACE_GRAIN_NS {
            Start::Now
        } else {
            Start::At(due_ns)
        }
    }
}

/// When a group is due: the rule itself.
///
/// `previous_start_ns` is when the previous group started on the mirror, `gap_ns` how much later
/// than that one it arrived on the primary, `answered_ns` when the mirror answered what the client
/// had the answer to before it went on (0 if it waited for none, as between two chunks of COPY data).
pub fn due_ns(pace: Pace, previous_start_ns: u64, gap_ns: u64, answered_ns: u64) -> u64 {
    match pace {
        Pace::Off => answered_ns,
        Pace::Transaction | Pace::Session => {
            previous_start_ns.saturating_add(gap_ns).max(answered_ns)
        }
    }
}

/// The timing of one unit on one mirror.
#[derive(Clone, Copy, Debug)]
pub struct UnitPacer {
    pace: Pace,
    /// The previous group on the primary.
    arrived_ns: u64,
    /// The previous group on the mirror: when it started, or was due if that was later.
    started_ns: u64,
}

impl UnitPacer {
    /// The first group, which arrived at `arrived_ns`, starts now.
    pub fn begin(pace: Pace, arrived_ns: u64, now_ns: u64) -> UnitPacer {
        UnitPacer {
            pace,
            arrived_ns,
            started_ns: now_ns,
        }
    }

    /// When `group` is due; for `answered_ns` see [`due_ns`].
    pub fn due_ns(&self, group: &Group, answered_ns: u64) -> u64 {
        let gap_ns = group.arrived_ns.saturating_sub(self.arrived_ns);
        due_ns(self.pace, self.started_ns, gap_ns, answered_ns)
    }

    /// Notes that `group`, due at `due_ns`, starts now.
    pub fn started(&mut self, group: &Group, due_ns: u64, now_ns: u64) {
        // Early by less than a grain counts as on time; late is late.
        self.started_ns = due_ns.max(now_ns);
        self.arrived_ns = group.arrived_ns;
    }
}

/// The lag of one client behind the primary under `pace = "session"`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionPacer {
    lag_ns: u64,
}

impl SessionPacer {
    /// When the unit is due. It can never start before it was sealed, so the lag is the longest
    /// unit of this client so far, up to [`PACE_LAG_NS_MAX`]; with it the starts of all units keep
    /// their distances. A mirror that is behind is past the due time and catches up: its slowness
    /// never becomes lag.
    pub fn due_ns<S, O>(&mut self, pace: Pace, unit: &Unit<S, O>) -> u64 {
        if pace != Pace::Session {
            return 0;
        }
        let length_ns = unit.sealed_ns.saturating_sub(unit.began_ns);
        self.lag_ns = self.lag_ns.max(length_ns.min(PACE_LAG_NS_MAX));
        unit.began_ns.saturating_add(self.lag_ns)
    }

    /// The lag that is kept up now.
    pub fn lag_ns(&self) -> u64 {
        self.lag_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::unit::{ClientId, UnitPool};

    const MS: u64 = 1_000_000;

    /// Replays groups that arrived at `arrivals` on a mirror that takes `work_ns` for each; the
    /// start of each, and the end of the last.
    fn replay(pace: Pace, arrivals: &[u64], work_ns: u64) -> (Vec<u64>, u64) {
        let mut now = 1_000 * MS;
        let mut starts = vec![now];
        let mut pacer = UnitPacer::begin(pace, arrivals[0], now);
        now += work_ns;
        for arrived_ns in &arrivals[1..] {
            let group = Group {
                offset: 0,
                arrived_ns: *arrived_ns,
            };
            let due = pacer.due_ns(&group, now);
            if let Start::At(at) = Start::of(due, now) {
                now = at;
            }
            pacer.started(&group, due, now);
            starts.push(now);
            now += work_ns;
        }
        (starts, now)
    }

    #[test]
    fn half_a_second_of_work_and_half_of_thought_take_one_second() {
        let (starts, _) = replay(Pace::Transaction, &[0, 1_000 * MS], 500 * MS);
        assert_eq!(starts[1] - starts[0], 1_000 * MS);
    }

    #[test]
    fn a_slower_mirror_is_not_paused_on_top() {
        let (starts, _) = replay(Pace::Transaction, &[0, 100 * MS, 200 * MS], 150 * MS);
        assert_eq!(starts[2] - starts[0], 300 * MS);
    }

    #[test]
    fn a_hundred_inserts_in_six_milliseconds_take_six() {
        let arrivals: Vec<u64> = (0..100).map(|i| i * 60_000).collect();
        let (starts, end) = replay(Pace::Transaction, &arrivals, 20_000);
        let took = end - starts[0];
        assert!((5 * MS..7 * MS).contains(&took), "{took}");
    }

    #[test]
    fn small_gaps_add_up_and_every_start_is_within_a_grain() {
        let arrivals: Vec<u64> = (0..1000).map(|i| i * 900_000).collect();
        let (starts, _) = replay(Pace::Transaction, &arrivals, 10_000);
        for (start, arrived) in starts.iter().zip(&arrivals) {
            assert!((start - starts[0]).abs_diff(*arrived) < PACE_GRAIN_NS);
        }
    }

    #[test]
    fn off_starts_as_soon_as_the_mirror_has_answered() {
        let (_, end) = replay(Pace::Off, &[0, 1_000 * MS, 2_000 * MS], 5 * MS);
        assert_eq!(end, 1_015 * MS);
    }

    #[test]
    fn session_pace_keeps_the_distance_of_starts_and_catches_up_when_behind() {
        let units = UnitPool::<std::rc::Rc<[u8]>, ()>::default();
        let unit = |began, sealed| units.draft(ClientId(1), began).seal(sealed);
        let mut pacer = SessionPacer::default();
        let mut due = |began, sealed| pacer.due_ns(Pace::Session, &unit(began, sealed));
        assert_eq!(due(0, 50), 50);
        assert_eq!(due(1_000, 1_010), 1_050);
        assert_eq!(due(2_000, 2_030), 2_050);
        // Behind: the due time has passed, the unit starts at once and the lag stays.
        assert_eq!(Start::of(due(3_000, 3_050), 9_000), Start::Now);
        assert_eq!(due(60_000, 60_001), 60_050);
        assert_eq!(pacer.lag_ns(), 50);
        assert_eq!(pacer.due_ns(Pace::Transaction, &unit(5, 6)), 0);
    }
}
