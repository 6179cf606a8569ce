//! What a scrape brings.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::testbed::stage::LOOK;

const PREFIX: &str = "promotion_controller_";

/// Every series and its value; a series as it is written, without the prefix: `images{phase="Pending"}`.
#[derive(Debug, Clone)]
pub struct Scraped {
    pub text: String,
    pub series: BTreeMap<String, f64>,
}

/// A series: its name and its labels.
pub struct Series<'a> {
    pub name: &'a str,
    pub labels: Vec<(&'a str, &'a str)>,
}

/// What a path of a controller answers: the code and the body.
pub async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let answer = reqwest::get(format!("http://127.0.0.1:{port}{path}"))
        .await
        .ok()?;
    let code = answer.status().as_u16();
    Some((code, answer.text().await.ok()?))
}

impl Scraped {
    pub async fn of(port: u16) -> Option<Self> {
        let (code, text) = get(port, "/metrics").await?;
        assert_eq!(code, 200, "{text}");
        Some(Self::parse(&text))
    }

    /// A scrape that `wanted` is true of.
    ///
    /// # Panics
    /// With the last one, if there is none within `patience`.
    pub async fn until(port: u16, patience: Duration, wanted: impl Fn(&Self) -> bool) -> Self {
        let end = Instant::now() + patience;
        loop {
            let scraped = Self::of(port).await;
            if let Some(scraped) = scraped.clone().filter(&wanted) {
                return scraped;
            }
            let text = scraped.map(|scraped| scraped.text).unwrap_or_default();
            assert!(Instant::now() < end, "not within {patience:?}:\n{text}");
            tokio::time::sleep(LOOK).await;
        }
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let series = series.strip_prefix(PREFIX).unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        Self {
            text: text.to_owned(),
            series: series.collect(),
        }
    }

    /// The sum of the series that have this name and all of these labels, in whole numbers: `images`, `images{phase="Pending"}`.
    pub fn sum(&self, wanted: &str) -> u64 {
        let wanted = Series::parse(wanted);
        let matching = self.series.iter().filter(|(text, _)| {
            let series = Series::parse(text);
            series.name == wanted.name
                && wanted
                    .labels
                    .iter()
                    .all(|label| series.labels.contains(label))
        });
        whole(matching.map(|(_, value)| value).sum())
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts, bytes and seconds of a short test"
)]
fn whole(value: f64) -> u64 {
    assert!(value >= 0.0, "{value}");
    value as u64
}

impl<'a> Series<'a> {
    pub fn parse(text: &'a str) -> Self {
        let (name, labels) = match text.split_once('{') {
            Some((name, labels)) => (name, labels.trim_end_matches('}')),
            None => (text, ""),
        };
        let labels = labels.split("\",").filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (name, value) = label.split_once("=\"").unwrap();
            (name, value.trim_end_matches('"'))
        });
        Self {
            name,
            labels: labels.collect(),
        }
    }
}
