//! Chance: every draw follows from the seed and from what it is for. One event less shifts no other draw.

use super::clock;

/// The draws of a run.
#[derive(Clone, Copy, Debug)]
pub struct Draws(pub u64);

impl Draws {
    /// A number for something: its name, and which of that name it is.
    pub fn number(self, name: &str, ordinal: u64) -> u64 {
        let mut state = self.0 ^ 0xcbf2_9ce4_8422_2325;
        for byte in name.bytes().chain(ordinal.to_le_bytes()) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        clock::next(&mut state)
    }

    /// One of `from..to`.
    pub fn within(self, name: &str, ordinal: u64, (from, to): (u64, u64)) -> u64 {
        from + self.number(name, ordinal) % (to - from).max(1)
    }

    /// Whether it happens, so many times of a hundred.
    pub fn percent(self, name: &str, ordinal: u64, chance: u64) -> bool {
        self.within(name, ordinal, (0, 100)) < chance
    }

    /// One of these.
    pub fn one_of<T: Copy>(self, name: &str, ordinal: u64, of: &[T]) -> T {
        let index = self.within(name, ordinal, (0, of.len() as u64));
        of[usize::try_from(index).unwrap_or_default()]
    }
}
