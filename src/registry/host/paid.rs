//! Tokens of tag PUTs, taken with that of the look that they rest on.
//!
//! Guaranteed: those that are not used are given back.

use std::fmt;
use std::sync::Arc;

use super::limits::Slowings;

/// Whoever gave the tokens.
pub(crate) trait Giver: fmt::Debug + Send + Sync {
    /// So many were not used.
    fn take_back(self: Arc<Self>, puts: u32);
}

/// Of whom they are, and how often each bucket had been slowed when they were taken.
pub(crate) type Given = (Arc<dyn Giver>, Slowings);

/// Tokens of tag PUTs that may follow a look at once.
#[derive(Debug)]
pub(crate) struct PaidPuts {
    left: u32,
    /// Of the credential and of the host.
    given: [Given; 2],
}

impl PaidPuts {
    pub(crate) fn new(puts: u32, given: [Given; 2]) -> Self {
        Self { left: puts, given }
    }

    /// Takes those of one tag PUT, if they are of these two.
    pub(crate) fn take(&mut self, from: [&dyn Giver; 2]) -> Option<[Slowings; 2]> {
        let mut pairs = self.given.iter().zip(from);
        let same = pairs.all(|((giver, _), from)| std::ptr::addr_eq(Arc::as_ptr(giver), from));
        self.left = self.left.checked_sub(u32::from(same))?;
        same.then_some([self.given[0].1, self.given[1].1])
    }
}

impl Drop for PaidPuts {
    fn drop(&mut self) {
        if self.left > 0 {
            for (giver, _) in &self.given {
                Arc::clone(giver).take_back(self.left);
            }
        }
    }
}
