//! What one registry host is asked to bear, and whose request goes next.

pub(crate) mod admission;
pub(crate) mod breaker;
pub(crate) mod hosts;
mod learnt_rate;
pub(crate) mod limits;
pub(crate) mod paid;
pub(crate) mod progress;
pub(crate) mod queue;
pub(crate) mod reserve;
pub(crate) mod token_bucket;

#[cfg(test)]
mod day;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
