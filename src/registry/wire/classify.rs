//! What an answer, or none, means for the request and for the host that was asked.
//!
//! Pure: kind of request, where the answer came from, status, headers, code and words in; a [`Verdict`] out. The table of `dialect` says
//! what code and words mean. Guaranteed: a request that may have changed something is never [`Fate::TryAgain`]; only the address that was
//! asked says anything about its host.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::dialect::{RequestKind, meaning};
use crate::registry::error::Meaning;

/// What becomes of a request, and what is known of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) fate: Fate,
    pub(crate) health: Health,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// There is an answer, which the caller reads.
    Answered,
    /// It was not sent, or definitely refused for now: it may be sent again.
    TryAgain,
    /// The registry may or may not have done it.
    OutcomeUnknown,
    /// A definite no.
    Refused,
}

/// What an answer, or none, says of the host that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// It was not asked.
    NotAsked,
    /// It serves.
    Serves,
    /// It limits the rate, and may say for how long.
    Limits { after: Option<Duration> },
    /// It is unavailable (for certain, or so it seems), and may say for how long.
    Unavailable {
        after: Option<Duration>,
        certain: bool,
    },
    /// It takes no writes.
    ReadOnly,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The registry's own address.
    Registry,
    /// An address that the registry leads to for tokens or uploads.
    Led,
    /// Whoever a redirect led to.
    Redirect,
    /// A web page that a redirect of the referrers API led to.
    Page,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// An address that must not be asked. `sent`: whether the registry itself had answered.
    Forbidden { sent: bool },
    /// A redirect that is not followed, a certificate that is not trusted, a host that speaks no TLS: it is the same the next time.
    Useless,
    /// No connection: nothing was sent.
    NotConnected,
    /// The connection broke, or the time was over.
    Broken,
}

/// Whether an answer has to be read before it can be classified: read-only maintenance is told by words alone.
pub(crate) fn needs_words(kind: RequestKind, from: Origin, status: u16) -> bool {
    status == 405 && kind.is_write() && from == Origin::Registry
}

/// What an answer means for the request and its host. `code` and `words` are empty where they were not read.
pub(crate) fn classify(
    kind: RequestKind,
    from: Origin,
    status: u16,
    headers: &HeaderMap,
    code: &str,
    words: &str,
) -> Verdict {
    use Fate::{Answered, OutcomeUnknown, Refused, TryAgain};
    use Health::{Limits, ReadOnly, Serves, Unavailable};
    let after = || retry_after(headers);
    // Whoever it was redirected to is no host of this registry's.
    let own = matches!(from, Origin::Registry | Origin::Led);
    let (fate, health) = match meaning(kind, status, code, words) {
        // A web page's limits and outages are no registry's.
        _ if from == Origin::Page => (Answered, Serves),
        Meaning::Limited if own => (TryAgain, Limits { after: after() }),
        Meaning::Limited => (TryAgain, Serves),
        Meaning::Unavailable if own => {
            let (after, certain) = (after(), false);
            (OutcomeUnknown, Unavailable { after, certain })
        }
        Meaning::Unavailable => (OutcomeUnknown, Serves),
        Meaning::ReadOnly if needs_words(kind, from, status) => (TryAgain, ReadOnly),
        _ if needs_words(kind, from, status) => (Refused, Serves),
        _ => (Answered, Serves),
    };
    Verdict { fate, health }
}

/// What it means that there is no answer. `own`: whether the address that was asked is the one that did not answer.
pub(crate) fn classify_no_answer(why: NoAnswer, own: bool) -> Verdict {
    let (fate, health) = match why {
        NoAnswer::Forbidden { sent: false } => (Fate::Refused, Health::NotAsked),
        NoAnswer::Forbidden { sent: true } | NoAnswer::Useless => (Fate::Refused, Health::Serves),
        // The registry itself has answered.
        NoAnswer::NotConnected | NoAnswer::Broken if !own => (Fate::TryAgain, Health::Serves),
        NoAnswer::NotConnected => (
            Fate::TryAgain,
            Health::Unavailable {
                after: None,
                certain: true,
            },
        ),
        NoAnswer::Broken => (
            Fate::OutcomeUnknown,
            Health::Unavailable {
                after: None,
                certain: false,
            },
        ),
    };
    Verdict { fate, health }
}

/// `Retry-After` in both forms: seconds or a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(
        date.duration_since(std::time::SystemTime::now())
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;
    use Fate::{Answered, OutcomeUnknown, Refused, TryAgain};
    use Health::{Limits, NotAsked, ReadOnly, Serves, Unavailable};
    use Origin::{Led, Page, Redirect, Registry};
    use RequestKind::{
        Blob, Child, Deletion, Manifest, Mount, Ping, Referrers, Tag, Token, Upload,
    };

    /// These requests, from these places, with one of these statuses, this code and these words.
    type Row<'a> = (
        &'a [RequestKind],
        &'a [Origin],
        &'a [u16],
        &'a str,
        &'a str,
        (Fate, Health),
    );

    const EVERY: [RequestKind; 10] = [
        Ping, Token, Manifest, Referrers, Blob, Child, Tag, Deletion, Upload, Mount,
    ];
    const WRITES: [RequestKind; 5] = [Child, Tag, Deletion, Upload, Mount];

    fn verdict(
        kind: RequestKind,
        from: Origin,
        status: u16,
        code: &str,
        words: &str,
    ) -> (Fate, Health) {
        let seven = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("7"))]);
        let Verdict { fate, health } = classify(kind, from, status, &seven, code, words);
        (fate, health)
    }

    #[test]
    fn an_answer_decides_of_its_request_and_of_the_host_that_was_asked() {
        let after = Some(Duration::from_secs(7));
        let (limits, seems_down) = (
            Limits { after },
            Unavailable {
                after,
                certain: false,
            },
        );
        let known = "manifest unknown";
        #[rustfmt::skip]
        let table: &[Row] = &[
            (&EVERY,  &[Registry, Led],           &[429],                               "",            "",                   (TryAgain, limits)),
            (&EVERY,  &[Redirect],                &[429],                               "",            "",                   (TryAgain, Serves)),
            (&EVERY,  &[Registry, Led],           &[408, 500, 502, 503, 504, 507, 599], "",            "",                   (OutcomeUnknown, seems_down)),
            (&EVERY,  &[Redirect],                &[408, 500, 502, 503, 504, 507, 599], "",            "",                   (OutcomeUnknown, Serves)),
            (&EVERY,  &[Page],                    &[200, 404, 408, 429, 500, 503],      "",            "",                   (Answered, Serves)),
            (&EVERY,  &[Registry, Led, Redirect], &[200, 201, 202, 307, 401, 403, 413, 501, 505], "",  "",                   (Answered, Serves)),
            (&EVERY,  &[Registry, Led, Redirect], &[400, 404],             "MANIFEST_UNKNOWN",         known,                (Answered, Serves)),
            // Maintenance, as the registry itself says it of a write.
            (&[Child, Tag, Deletion, Upload], &[Registry], &[405],                      "DENIED",      "read-only",          (TryAgain, ReadOnly)),
            (&[Mount], &[Registry],               &[405],                               "DENIED",      "read-only",          (Refused, Serves)),
            (&WRITES, &[Registry],                &[405],                               "UNSUPPORTED", "",                   (Refused, Serves)),
            (&WRITES, &[Registry],                &[405],                               "",            "",                   (Refused, Serves)),
            // What a storage does not do says nothing of maintenance, nor what is not there to be read.
            (&WRITES, &[Led, Redirect],           &[405],                               "DENIED",      "read-only",          (Answered, Serves)),
            (&[Ping, Token, Manifest, Referrers, Blob], &[Registry, Led, Redirect], &[405], "DENIED",  "read-only",          (Answered, Serves)),
        ];
        for (kinds, from, statuses, code, words, wanted) in table {
            for (kind, from, status) in each(kinds, from, statuses) {
                let found = verdict(kind, from, status, code, words);
                assert_eq!(found, *wanted, "{kind:?} {from:?} {status} {code} {words}");
            }
        }
    }

    fn each(
        kinds: &[RequestKind],
        from: &[Origin],
        statuses: &[u16],
    ) -> Vec<(RequestKind, Origin, u16)> {
        let mut all = Vec::new();
        for kind in kinds {
            for from in from {
                all.extend(statuses.iter().map(|status| (*kind, *from, *status)));
            }
        }
        all
    }

    #[test]
    fn without_an_answer_only_what_was_not_sent_is_sent_again() {
        let down = |certain| Unavailable {
            after: None,
            certain,
        };
        for (why, own, wanted) in [
            (
                NoAnswer::Forbidden { sent: false },
                true,
                (Refused, NotAsked),
            ),
            (NoAnswer::Forbidden { sent: true }, false, (Refused, Serves)),
            (NoAnswer::Useless, true, (Refused, Serves)),
            (NoAnswer::Useless, false, (Refused, Serves)),
            (NoAnswer::NotConnected, true, (TryAgain, down(true))),
            (NoAnswer::NotConnected, false, (TryAgain, Serves)),
            (NoAnswer::Broken, true, (OutcomeUnknown, down(false))),
            // Only a read is redirected that far.
            (NoAnswer::Broken, false, (TryAgain, Serves)),
        ] {
            let Verdict { fate, health } = classify_no_answer(why, own);
            assert_eq!((fate, health), wanted, "{why:?} {own}");
        }
    }

    proptest! {
        #[test]
        fn only_what_is_definitely_refused_is_tried_again(kind in 0..EVERY.len(), from in 0_usize..4, status in 100_u16..1000, code in "[A-Z_]{0,20}", words in "[a-z -]{0,40}") {
            let from = [Registry, Led, Redirect, Page][from];
            let (fate, _) = verdict(EVERY[kind], from, status, &code, &words);
            prop_assert!(fate != TryAgain || matches!(status, 405 | 429), "{status}");
            prop_assert!(fate != Refused || status == 405, "{status}");
        }

        #[test]
        fn any_retry_after_is_a_time_or_none(bytes: Vec<u8>, number: i128) {
            for bytes in [bytes, number.to_string().into_bytes()] {
                if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                    let _ = retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]));
                }
            }
        }
    }

    #[test]
    fn a_time_that_has_passed_is_now_and_one_before_now_is_none() {
        let after = |value: &'static str| {
            retry_after(&HeaderMap::from_iter([(
                RETRY_AFTER,
                HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(
            after("1000000000000"),
            Some(Duration::from_secs(1_000_000_000_000))
        );
        assert_eq!(
            after("18446744073709551615"),
            Some(Duration::from_secs(u64::MAX))
        );
        for none in ["-5", "1e12", "18446744073709551616", "soon", ""] {
            assert_eq!(after(none), None, "{none}");
        }
    }
}
