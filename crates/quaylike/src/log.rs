//! The log of requests, in the order they arrived, with their answers.
//!
//! In: every request of both listeners, twice: received and answered. Out: entries in order, counts by kind, and a wait for the
//! nth request that matches. The log is a ring; counts go on beyond it. No secret is kept: a credential is a user's name.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::names::RequestKind;

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It has arrived; it may have been executed.
    Received,
    /// Its answer was handed to the connection.
    Answered,
    /// The client disconnected before there was an answer.
    Dropped,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoggedRequest {
    /// Its number, counted from 1 in the order of arrival.
    pub seq: u64,
    /// When it arrived, in milliseconds since 1970, UTC.
    pub time: i64,
    /// How long it took to be answered, in microseconds.
    pub micros: u64,
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// Its query, without the question mark.
    pub query: String,
    /// What it is about.
    pub kind: RequestKind,
    /// The repository; for a token the first one asked for; else empty.
    pub repository: String,
    /// Tag or digest; for uploads the digest mounted or closed with, else the session; else empty.
    pub reference: String,
    /// Whose credential it carried; none for an anonymous request or a rejected credential.
    pub credential: Option<String>,
    /// Whether it carried an `Authorization` header, right or wrong.
    pub authorization: bool,
    /// The status it was answered with; none before that, and where the connection was cut instead.
    pub status: Option<u16>,
    /// Bytes of its body that were read.
    pub bytes_in: u64,
    /// Length of the answer's body, as announced.
    pub bytes_out: u64,
    /// How far it has come.
    pub phase: Phase,
}

/// The ring of entries.
#[derive(Debug)]
pub(super) struct Log {
    inner: Mutex<Inner>,
    changed: Notify,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Inner {
    entries: VecDeque<LoggedRequest>,
    next: u64,
    counts: BTreeMap<RequestKind, u64>,
    in_flight: usize,
    peak: usize,
}

impl Log {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                next: 1,
                ..Inner::default()
            }),
            changed: Notify::new(),
            capacity: capacity.max(1),
        }
    }

    /// Notes an arrival and gives the entry its number.
    pub(super) fn receive(&self, mut entry: LoggedRequest) -> LoggedRequest {
        {
            let mut inner = self.inner.lock();
            entry.seq = inner.next;
            inner.next += 1;
            *inner.counts.entry(entry.kind).or_default() += 1;
            inner.in_flight += 1;
            inner.peak = inner.peak.max(inner.in_flight);
            if inner.entries.len() == self.capacity {
                inner.entries.pop_front();
            }
            inner.entries.push_back(entry.clone());
        }
        self.changed.notify_waiters();
        entry
    }

    /// Notes the end of a request. An entry that has left the ring, or was reset, is let go.
    pub(super) fn close(&self, entry: &LoggedRequest) {
        {
            let mut inner = self.inner.lock();
            inner.in_flight = inner.in_flight.saturating_sub(1);
            let first = inner.entries.front().map(|front| front.seq);
            let place = first.and_then(|first| usize::try_from(entry.seq.checked_sub(first)?).ok());
            if let Some(kept) = place.and_then(|place| inner.entries.get_mut(place)) {
                kept.clone_from(entry);
            }
        }
        self.changed.notify_waiters();
    }

    /// Entries after number `after` that `wanted` picks, oldest first.
    pub(super) fn entries(
        &self,
        after: u64,
        limit: usize,
        wanted: impl Fn(&LoggedRequest) -> bool,
    ) -> Vec<LoggedRequest> {
        let inner = self.inner.lock();
        let first = inner.entries.front().map_or(after, |front| front.seq);
        let skip =
            usize::try_from(after.saturating_add(1).saturating_sub(first)).unwrap_or(usize::MAX);
        let picked = inner
            .entries
            .iter()
            .skip(skip)
            .filter(|entry| wanted(entry));
        picked.take(limit).cloned().collect()
    }

    /// The nth entry from now on the log that `wanted` picks, as soon as there is one. `nth` counts from 1.
    pub(super) async fn nth(
        &self,
        nth: usize,
        wanted: impl Fn(&LoggedRequest) -> bool,
    ) -> LoggedRequest {
        loop {
            let changed = self.changed.notified();
            if let Some(entry) = self
                .entries(0, nth.max(1), &wanted)
                .into_iter()
                .nth(nth.max(1) - 1)
            {
                return entry;
            }
            changed.await;
        }
    }

    /// Requests by kind since the last reset, also those that have left the ring.
    pub(super) fn counts(&self) -> BTreeMap<RequestKind, u64> {
        self.inner.lock().counts.clone()
    }

    /// The most requests that were ever under way at once since the last reset.
    pub(super) fn peak(&self) -> usize {
        self.inner.lock().peak
    }

    /// Forgets entries and counts. Numbers go on.
    pub(super) fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.entries.clear();
        inner.counts.clear();
        inner.peak = inner.in_flight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(reference: &str) -> LoggedRequest {
        LoggedRequest {
            seq: 0,
            time: 0,
            micros: 0,
            method: "GET".into(),
            path: String::new(),
            query: String::new(),
            kind: RequestKind::Manifest,
            repository: String::new(),
            reference: reference.into(),
            credential: None,
            authorization: false,
            status: None,
            bytes_in: 0,
            bytes_out: 0,
            phase: Phase::Received,
        }
    }

    #[tokio::test]
    async fn the_ring_forgets_the_oldest_and_the_counts_do_not() {
        let log = Log::new(2);
        let first = log.receive(entry("a"));
        log.receive(entry("b"));
        let mut last = log.receive(entry("c"));
        last.phase = Phase::Answered;
        log.close(&last);
        log.close(&first);
        let seen: Vec<_> = log
            .entries(0, 9, |_| true)
            .into_iter()
            .map(|entry| (entry.seq, entry.reference, entry.phase))
            .collect();
        let expected = [
            (2, "b".into(), Phase::Received),
            (3, "c".into(), Phase::Answered),
        ];
        assert_eq!(seen, expected);
        assert_eq!(log.counts()[&RequestKind::Manifest], 3);
        assert_eq!(log.peak(), 3);
        assert_eq!(log.entries(2, 9, |_| true).len(), 1);
    }

    #[tokio::test]
    async fn waiting_for_the_nth_request_ends_when_it_arrives() {
        let log = Log::new(9);
        let wait = log.nth(2, |entry| entry.reference == "x");
        let arrive = async {
            for reference in ["x", "y", "x"] {
                tokio::task::yield_now().await;
                log.receive(entry(reference));
            }
        };
        let (found, ()) = tokio::join!(wait, arrive);
        assert_eq!(found.seq, 3);
    }
}
