//! The clocks and the entropy of a thread, in a run's hands while there is one.
//!
//! Much of what a controller is made of asks the C library itself: for the time of day, for the seeds of its hash maps and of its jitter.
//! No argument reaches all of that, so these two functions of the C library stand here. On a thread without a run they ask the kernel.

use std::cell::Cell;
use std::time::Duration;

/// What a thread's clocks show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`.
    pub running: Duration,
    /// `CLOCK_BOOTTIME`.
    pub boot: Duration,
    /// `CLOCK_REALTIME`.
    pub wall: Duration,
}

thread_local! {
    static CLOCKS: Cell<Option<Clocks>> = const { Cell::new(None) };
    static ENTROPY: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Sets this thread's clocks.
pub fn set(clocks: Clocks) {
    CLOCKS.set(Some(clocks));
}

/// Seeds this thread's entropy. Threads are seeded once, before anything asks: what hash maps are seeded with is asked for once.
pub fn seed(seed: u64) {
    ENTROPY.set(Some(seed));
}

/// The next of a series of numbers.
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// # Safety
/// As the C library's: `time` points to a `timespec`.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    let shown = CLOCKS.get().and_then(|clocks| match clock {
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_MONOTONIC_COARSE => {
            Some(clocks.running)
        }
        libc::CLOCK_BOOTTIME => Some(clocks.boot),
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(clocks.wall),
        _ => None,
    });
    let Some(shown) = shown else {
        // SAFETY: the arguments are passed on as they came.
        let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
        return libc::c_int::try_from(result).unwrap_or(-1);
    };
    let shown = libc::timespec {
        tv_sec: libc::time_t::try_from(shown.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(shown.subsec_nanos()),
    };
    // SAFETY: the caller gives a place for one.
    unsafe { time.write(shown) };
    0
}

/// # Safety
/// As the C library's: `buffer` has room for `length` bytes.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    let Some(mut state) = ENTROPY.get() else {
        // SAFETY: the arguments are passed on as they came.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return libc::ssize_t::try_from(got).unwrap_or(-1);
    };
    let bytes = buffer.cast::<u8>();
    for at in 0..length {
        let byte = next(&mut state).to_le_bytes()[0];
        // SAFETY: the caller gives room for `length` bytes.
        unsafe { bytes.add(at).write(byte) };
    }
    ENTROPY.set(Some(state));
    libc::ssize_t::try_from(length).unwrap_or(-1)
}

/// Everything that a controller is made of asks here: the standard library, the clock that goes on while a machine sleeps, random
/// numbers, hash maps.
#[test]
fn a_threads_clocks_and_entropy_are_its_runs() {
    use std::collections::hash_map::RandomState;
    use std::hash::BuildHasher as _;
    use std::time::{SystemTime, UNIX_EPOCH};

    let look = || {
        let thread = std::thread::spawn(|| {
            seed(7);
            set(Clocks::default());
            let begun = std::time::Instant::now();
            let moment = promotion_controller::engine::moment::Moment::now();
            let sleep = Duration::from_mins(1);
            set(Clocks {
                running: Duration::from_secs(5),
                boot: sleep,
                wall: Duration::from_secs(9),
            });
            assert_eq!(begun.elapsed(), Duration::from_secs(5));
            assert_eq!(moment.elapsed(), sleep);
            let wall = SystemTime::now().duration_since(UNIX_EPOCH);
            assert_eq!(wall.ok(), Some(Duration::from_secs(9)));
            let hash = RandomState::new().hash_one(1);
            (hash, rand::random::<u64>())
        });
        thread.join().ok()
    };
    let first = look();
    assert!(first.is_some() && first == look(), "{first:?}");
    assert!(std::time::Instant::now().elapsed() < Duration::from_mins(1));
}
