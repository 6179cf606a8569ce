//! The rate limits of quay's proxy.
//!
//! In: requests, who sends them, and the time they happen at. Out: whether one more is within the rate. On HTTP/1.1 a client address has
//! a bucket for manifests and blobs together, and one for tag lists; on HTTP/2 each connection has them, ten times as large. Token
//! requests have a bucket for each `Authorization` header.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;

use super::names::RequestKind;

/// Requests for manifests, and for blobs, that may come at once beyond the rate: on HTTP/1.1, and on HTTP/2.
const BURSTS: [[f64; 2]; 2] = [[10.0, 50.0], [50.0, 100.0]];
/// The same for tag lists and tokens.
const SMALL_BURST: f64 = 2.0;
/// How many times the rate of HTTP/1.1 a connection of HTTP/2 has.
const HTTP2: f64 = 10.0;
/// The rates of tag lists and tokens, as parts of that of manifests and blobs: quay has 5 and 120 beside 50.
const TAG_LISTS: f64 = 0.1;
const TOKENS: f64 = 2.4;
/// Buckets kept before empty ones are forgotten.
const BUCKETS_MAX: usize = 1024;

/// Who sends a request, as far as limits go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// Of HTTP/1.1: all are one address.
    Address,
    /// A connection of HTTP/2.
    Connection(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Content(Client),
    TagLists(Client),
    Tokens(String),
}

#[derive(Debug)]
struct Bucket {
    at: Instant,
    level: f64,
    rate: f64,
}

/// All buckets.
#[derive(Debug, Default)]
pub(super) struct RateLimit(Mutex<HashMap<Key, Bucket>>);

impl RateLimit {
    /// Whether a request is within the rate; one that is not leaves its bucket as it is. `rate`: that of manifests and blobs on
    /// HTTP/1.1, no limits at 0.
    pub(super) fn admits(
        &self,
        kind: RequestKind,
        client: Client,
        authorization: Option<&str>,
        rate: u32,
        now: Instant,
    ) -> bool {
        if rate == 0 {
            return true;
        }
        let (times, bursts) = match client {
            Client::Address => (1.0, BURSTS[0]),
            Client::Connection(_) => (HTTP2, BURSTS[1]),
        };
        let rate = f64::from(rate);
        let (key, rate, burst) = match kind {
            RequestKind::Manifest => (Key::Content(client), rate * times, bursts[0]),
            RequestKind::Blob | RequestKind::Upload => {
                (Key::Content(client), rate * times, bursts[1])
            }
            RequestKind::Tags => {
                let rate = rate * TAG_LISTS * times;
                (Key::TagLists(client), rate, SMALL_BURST)
            }
            RequestKind::Token => {
                let who = authorization.unwrap_or_default().to_owned();
                (Key::Tokens(who), rate * TOKENS, SMALL_BURST)
            }
            _ => return true,
        };
        let mut buckets = self.0.lock();
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| bucket.level_at(now) >= 0.0);
        }
        let bucket = buckets.entry(key).or_insert(Bucket {
            at: now,
            level: -1.0,
            rate,
        });
        bucket.rate = rate;
        let level = bucket.level_at(now).max(-1.0) + 1.0;
        let within = level <= burst;
        if within {
            (bucket.at, bucket.level) = (now, level);
        }
        within
    }
}

impl Bucket {
    fn level_at(&self, now: Instant) -> f64 {
        self.level - now.saturating_duration_since(self.at).as_secs_f64() * self.rate
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How many of 200 are admitted at once.
    fn admitted(limit: &RateLimit, kind: RequestKind, client: Client, now: Instant) -> usize {
        let who = Some("Basic x");
        (0..200)
            .filter(|_| limit.admits(kind, client, who, 50, now))
            .count()
    }

    #[test]
    fn manifests_and_blobs_fill_one_bucket_and_differ_in_their_bursts() {
        let (limit, now) = (RateLimit::default(), Instant::now());
        let address = |kind, now| admitted(&limit, kind, Client::Address, now);
        assert_eq!(address(RequestKind::Manifest, now), 11);
        assert_eq!(address(RequestKind::Blob, now), 40);
        let later = now + Duration::from_secs(1);
        assert_eq!(address(RequestKind::Manifest, later), 10);
        assert_eq!(address(RequestKind::Ping, later), 200);
        assert!(limit.admits(RequestKind::Manifest, Client::Address, None, 0, later));
    }

    #[test]
    fn each_connection_of_http2_has_ten_times_as_much_and_tag_lists_and_tokens_are_apart() {
        let (limit, now) = (RateLimit::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        for connection in [1, 2] {
            let client = Client::Connection(connection);
            assert_eq!(admitted(&limit, RequestKind::Manifest, client, now), 51);
            for _ in 0..40 {
                assert!(limit.admits(RequestKind::Manifest, client, None, 50, later));
            }
            assert_eq!(admitted(&limit, RequestKind::Tags, client, now), 3);
        }
        let address = Client::Address;
        assert_eq!(admitted(&limit, RequestKind::Tags, address, now), 3);
        let some = now + Duration::from_millis(400);
        assert_eq!(admitted(&limit, RequestKind::Tags, address, some), 2);
        assert_eq!(admitted(&limit, RequestKind::Token, address, now), 3);
        assert!(limit.admits(RequestKind::Token, address, Some("Basic y"), 50, now));
    }
}
