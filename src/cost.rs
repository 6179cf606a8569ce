//! What work costs, for the tests that bound it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// That something takes less than five seconds of this thread's processor time: how busy the machine is does not show in it.
///
/// # Panics
/// If it takes more.
pub fn is_cheap(work: impl FnOnce()) {
    let spent = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    let before = spent();
    work();
    let took = spent().saturating_sub(before);
    assert!(took < Duration::from_secs(5), "{took:?}");
}
