//! Moments, by every clock that may have gone on while this process did not.
//!
//! The monotonic clock stands still while the machine sleeps, and in most pauses of a virtual machine, while other hosts go on. The boot
//! clock counts a sleep, and the wall clock is set right after a pause: what has passed since a moment is what any of them says.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    running: Instant,
    boot: Duration,
    wall: SystemTime,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self {
            running: Instant::now(),
            boot: since_boot(),
            wall: SystemTime::now(),
        }
    }

    /// How long ago it was, by the clock that says most. A wall clock that was set back says nothing.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Self::now().since(self)
    }

    /// How much of that this process did not live through.
    #[must_use]
    pub fn slept(&self) -> Duration {
        let now = Self::now();
        let lived = now.running.saturating_duration_since(self.running);
        now.since(self).saturating_sub(lived)
    }

    fn since(&self, earlier: &Self) -> Duration {
        let lived = self.running.saturating_duration_since(earlier.running);
        let booted = self.boot.saturating_sub(earlier.boot);
        let wall = self.wall.duration_since(earlier.wall).unwrap_or_default();
        lived.max(booted).max(wall)
    }
}

#[cfg(target_os = "linux")]
fn since_boot() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// Elsewhere the wall clock has to do.
#[cfg(not(target_os = "linux"))]
fn since_boot() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
impl Moment {
    /// The same moment, as it is remembered after the machine slept so long: the monotonic clock has not moved.
    #[must_use]
    pub fn before_a_sleep(self, slept: Duration) -> Self {
        let boot = self.boot.saturating_sub(slept);
        Self { boot, ..self }
    }

    /// The same after a pause that only the wall clock shows.
    #[must_use]
    pub fn before_a_pause(self, paused: Duration) -> Self {
        let wall = self.wall - paused;
        Self { wall, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn what_a_sleep_or_a_pause_took_has_passed() {
        let now = Moment::now();
        assert!(now.elapsed() < MINUTE && now.slept() < MINUTE);
        for before in [now.before_a_sleep(MINUTE), now.before_a_pause(MINUTE)] {
            assert!(before.elapsed() >= MINUTE);
            assert!(before.slept() >= Duration::from_secs(59));
        }
        // A wall clock that was set back an hour takes nothing away.
        let ahead = Moment {
            wall: now.wall + MINUTE * 60,
            ..now
        };
        assert!(ahead.before_a_sleep(MINUTE).elapsed() >= MINUTE);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_boot_clock_goes_on() {
        let before = since_boot();
        std::thread::sleep(Duration::from_millis(20));
        let passed = since_boot().saturating_sub(before);
        assert!(passed >= Duration::from_millis(20) && passed < MINUTE);
    }
}
