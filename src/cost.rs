//! What work costs, for the tests that bound it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Few and many of a crowd.
const FEW: usize = 2_000;
const MANY: usize = 8 * FEW;
/// Among many an event may be so many times as dear. A look at all of them makes it eight times as dear.
const GROWTH: u32 = 4;
const EVENTS: usize = 400;

/// This thread's processor time, in which does not show how busy the machine is.
fn of(work: impl FnOnce()) -> Duration {
    let spent = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    let before = spent();
    work();
    spent().saturating_sub(before)
}

/// That something takes less than five seconds.
///
/// # Panics
/// If it takes more.
pub fn is_cheap(work: impl FnOnce()) {
    let took = of(work);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// That an event costs no more in a crowd of many than of few.
///
/// # Panics
/// If it does.
pub fn does_not_grow<C>(crowd: impl Fn(usize) -> C, event: impl Fn(&mut C)) {
    let [few, many] = [FEW, MANY].map(|count| {
        let mut crowd = crowd(count);
        // The cheapest of three: whatever else the machine does makes it dearer.
        let costs = [(); 3].map(|()| of(|| (0..EVENTS).for_each(|_| event(&mut crowd))));
        costs.into_iter().min().unwrap_or_default()
    });
    println!("{few:?} for {EVENTS} among {FEW}, {many:?} among {MANY}");
    assert!(many < few * GROWTH, "{few:?}, then {many:?}");
}
