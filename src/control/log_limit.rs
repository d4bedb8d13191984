//! Keeps traffic from flooding the log: each place in the code writes so many lines a second, the rest is counted.
//!
//! Debug and trace lines are left alone: who asks for them wants all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

use crate::limits::LOG_LINES_PER_SECOND_MAX;

const SECOND: Duration = Duration::from_secs(1);

/// Lines that were left out, in the whole process.
static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// How many lines were left out since it was last asked.
pub fn take_suppressed() -> u64 {
    SUPPRESSED.swap(0, Ordering::Relaxed)
}

/// The filter of one subscriber. Its lock is taken for lines that would be written, which take the log's own lock too.
#[derive(Debug, Default)]
pub struct LogLimit {
    places: Mutex<HashMap<Identifier, Window>>,
}

/// The lines of one place since its second began.
#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
}

impl Window {
    fn begin(now: Instant) -> Window {
        Window {
            since: now,
            lines: 0,
        }
    }

    fn admits(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= SECOND {
            *self = Window::begin(now);
        }
        self.lines += 1;
        self.lines <= LOG_LINES_PER_SECOND_MAX
    }
}

impl LogLimit {
    fn admits(&self, place: Identifier) -> bool {
        let now = Instant::now();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let window = places.entry(place).or_insert_with(|| Window::begin(now));
        window.admits(now)
    }
}

impl<S: Subscriber> Filter<S> for LogLimit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let place = event.metadata();
        let admitted = *place.level() > Level::INFO || self.admits(place.callsite());
        if !admitted {
            SUPPRESSED.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use tracing_subscriber::Layer as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0
                .lock()
                .expect("nobody panics")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flood_at_one_place_leaves_room_for_the_others() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_filter(LogLimit::default());
        let before = take_suppressed();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for _ in 0..10_000 {
                tracing::warn!("flood");
            }
            tracing::warn!("rare");
            for _ in 0..100 {
                tracing::debug!("asked for");
            }
        });
        let text = String::from_utf8(lines.0.lock().expect("nobody panics").clone())
            .expect("lines are text");
        let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        // A slow machine may need more than one second for it.
        assert!((1..=10).contains(&(count("flood") / LOG_LINES_PER_SECOND_MAX as usize)));
        assert_eq!((count("rare"), count("asked for")), (1, 100));
        assert!(before + take_suppressed() >= 5_000);
    }

    #[test]
    fn a_new_second_is_a_new_allowance() {
        let start = Instant::now();
        let mut window = Window::begin(start);
        let mut admitted = |at: Duration| (0..100).filter(|_| window.admits(start + at)).count();
        assert_eq!(admitted(Duration::ZERO), LOG_LINES_PER_SECOND_MAX as usize);
        assert_eq!(admitted(SECOND / 2), 0);
        assert_eq!(admitted(SECOND), LOG_LINES_PER_SECOND_MAX as usize);
    }
}
