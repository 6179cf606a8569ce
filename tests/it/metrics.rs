//! What a controller tells those who look after it: metrics, health, alert rules, dashboard, lines of log.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets an error has failed"
)]
#![allow(
    clippy::too_many_lines,
    reason = "tables of what is scraped and logged"
)]

mod documents;
mod health;
mod lines;
mod scrape;
pub mod scraped;
mod series;

pub use scraped::Scraped;
