//! What a controller tells those who look after it: metrics, health, alert rules, dashboard, lines of log.

#![allow(
    clippy::too_many_lines,
    reason = "tables of what is scraped and logged"
)]

mod health;
mod lines;
mod scrape;
pub mod scraped;
mod series;

pub use scraped::Scraped;
