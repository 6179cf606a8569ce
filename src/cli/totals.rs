//! What a run has come to in all, in one line: how many are done, how much is copied, how fast, and how long what is known takes.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::columns::duration;
use crate::machine::Bytes;

/// What speeds are taken from.
const RECENT: Duration = Duration::from_secs(10);

/// How fast something grows.
#[derive(Debug, Default)]
pub(super) struct Speed {
    seen: VecDeque<(Instant, u64)>,
}

/// What several images have come to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) all: usize,
    /// Those that ended well.
    pub(super) done: usize,
    /// Those that ended otherwise.
    pub(super) failed: usize,
    /// Those of which it is not known yet how much is to be copied.
    pub(super) unknown: usize,
    /// Bytes that were written.
    pub(super) written: u64,
    /// Bytes that are still to be written, as far as is known.
    pub(super) left: u64,
}

// === impl Speed ===

impl Speed {
    pub(super) fn note(&mut self, bytes: u64, now: Instant) {
        // A copy was cut off and begins anew.
        if self.seen.back().is_some_and(|(_, before)| *before > bytes) {
            self.seen.clear();
        }
        self.seen.push_back((now, bytes));
        while self.seen.len() > 2 && self.seen.front().is_some_and(|(at, _)| now - *at > RECENT) {
            self.seen.pop_front();
        }
    }

    /// Bytes a second, once it was looked at for a second; none while nothing is written.
    pub(super) fn per_second(&self) -> Option<u64> {
        let ((from, before), (to, after)) = (self.seen.front()?, self.seen.back()?);
        let seconds = (*to - *from).as_secs();
        let speed = (after - before).checked_div(seconds)?;
        (speed > 0).then_some(speed)
    }
}

// === impl Totals ===

impl Totals {
    /// As `12 of 60 floats done, 1 failed; 1.2 GiB of 3.4 GiB copied, 34.0 MiB/s, 63s left`; `what` has the noun and the verb.
    pub(super) fn said(&self, what: [&str; 2], speed: Option<u64>) -> String {
        let [noun, verb] = what;
        let mut said = format!("{} of {} {noun} {verb}", self.done, self.all);
        if self.failed > 0 {
            let _ = write!(said, ", {} failed", self.failed);
        }
        match copied(self.written, self.left, self.unknown == 0, speed) {
            Some(copied) => format!("{said}; {copied}"),
            None => said,
        }
    }
}

/// As `3.0 MiB of 9.0 MiB copied, 1.0 MiB/s, 6s left`, where anything was; how long it takes only if all of it is known.
pub(super) fn copied(written: u64, left: u64, known: bool, speed: Option<u64>) -> Option<String> {
    let mut said = match (written, left, known) {
        (0, 0, _) => return None,
        (_, 0, _) => format!("{} copied", Bytes(written)),
        (_, _, true) => format!("{} of {} copied", Bytes(written), Bytes(written + left)),
        (_, _, false) => {
            let least = Bytes(written + left);
            format!("{} of at least {least} copied", Bytes(written))
        }
    };
    if let Some(speed) = speed.filter(|_| left > 0) {
        let _ = write!(said, ", {}/s", Bytes(speed));
        if known {
            let seconds = i64::try_from(left / speed.max(1)).unwrap_or(i64::MAX);
            let _ = write!(said, ", {} left", duration(seconds));
        }
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_that_of_the_last_seconds_and_begins_anew_with_a_copy_that_does() {
        let (mut speed, start) = (Speed::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        speed.note(0, at(0));
        assert_eq!(speed.per_second(), None);
        speed.note(100, at(1));
        assert_eq!(speed.per_second(), Some(100));
        for second in 2..30 {
            speed.note(100 + 7 * second, at(second));
        }
        assert_eq!(speed.per_second(), Some(7));
        speed.note(5, at(30));
        assert_eq!(speed.per_second(), None);
        speed.note(9, at(32));
        assert_eq!(speed.per_second(), Some(2));
    }

    #[test]
    fn how_long_it_takes_is_said_only_where_all_totals_are_known() {
        let mut totals = Totals {
            all: 60,
            done: 12,
            ..Totals::default()
        };
        let said = |totals: &Totals| totals.said(["floats", "done"], Some(1 << 20));
        assert_eq!(said(&totals), "12 of 60 floats done");
        (totals.written, totals.left) = (3 << 20, 6 << 20);
        let known = "12 of 60 floats done; 3.0 MiB of 9.0 MiB copied, 1.0 MiB/s, 6s left";
        assert_eq!(said(&totals), known);
        (totals.unknown, totals.failed) = (1, 2);
        let unknown =
            "12 of 60 floats done, 2 failed; 3.0 MiB of at least 9.0 MiB copied, 1.0 MiB/s";
        assert_eq!(said(&totals), unknown);
        (totals.left, totals.failed) = (0, 0);
        assert_eq!(said(&totals), "12 of 60 floats done; 3.0 MiB copied");
    }
}
