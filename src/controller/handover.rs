//! What a leader hands over with its lease: the tags that it wrote less than the settle time ago.
//!
//! A registry may still answer reads from before them. Whoever wrote them knows that and reads again; so does the next leader, if it is
//! told of them. It then goes on at once, as the last one would have done. They stand in an annotation of the Lease, under a name of
//! their own: a controller that does not know it takes the lease for one whose holder was erased, and waits.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::image::{Digest, Repository, Tag};
use crate::log::WriteLog;

/// The annotation that a leader leaves when it releases the lease with nothing on the wire, and all that it wrote long enough ago to show
/// in every read. Its value is the lease's number of transitions by then.
pub const RELEASED: &str = "promotion-controller.ci.openshift.io/released";
/// The annotation that has them.
pub const HANDED_OVER: &str = "promotion-controller.ci.openshift.io/handed-over";
/// Its size at the most: all annotations of an object may have 256 KiB.
const BYTES_MAX: usize = 128 * 1024;
/// What was handed over longer ago says nothing any more: others may have written since. As clocks may differ, the settle time is then
/// waited for.
const AGE_MAX: Duration = Duration::from_mins(1);

/// Tags and what was put to them, by repository; nothing: they were deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written(BTreeMap<String, BTreeMap<String, String>>);

/// What is known of the last leader's newest writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Inherited {
    /// There are none, or what is known of them is said elsewhere.
    #[default]
    Nothing,
    /// These.
    Tags(Vec<(Repository, Tag, Option<Digest>)>),
    /// There may be some: reads may be older than they.
    Unknown,
}

/// The annotation's value.
#[derive(Serialize, Deserialize)]
struct Mark {
    /// Of the lease, by then: another number is of an earlier release.
    transitions: i32,
    written: BTreeMap<String, BTreeMap<String, String>>,
}

impl Written {
    /// What a log has of them now. None where that is too much to be handed over.
    pub(super) fn of(log: &WriteLog<Instant>, now: Instant) -> Option<Self> {
        let mut written = Self::default();
        let mut bytes = 0;
        for (repository, tag, digest) in log.fresh(now) {
            let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
            let tag = tag.to_string();
            bytes += tag.len() + digest.len() + 8;
            let tags = written.0.entry(repository.to_string()).or_default();
            tags.insert(tag, digest);
        }
        bytes += written.0.keys().map(|name| name.len() + 8).sum::<usize>();
        (bytes <= BYTES_MAX).then_some(written)
    }
}

impl Inherited {
    /// Enters it in the log of the process that goes on.
    pub(super) fn enter(&self, log: &mut WriteLog<Instant>, now: Instant) {
        match self {
            Self::Nothing => {}
            Self::Tags(tags) => {
                for (repository, tag, digest) in tags {
                    log.inherit(repository.clone(), tag.clone(), *digest, now);
                }
            }
            Self::Unknown => {
                let settled = now + log.settle();
                log.keep_quiet(settled, settled);
            }
        }
    }
}

/// Marks a lease that is released.
pub(super) fn mark(lease: &mut Lease, written: &Written) {
    let transitions = transitions(lease);
    let marks = lease.metadata.annotations.get_or_insert_default();
    if written.0.is_empty() {
        marks.insert(RELEASED.into(), transitions.to_string());
        return;
    }
    let mark = Mark {
        transitions,
        written: written.0.clone(),
    };
    // Without a mark the next leader waits.
    if let Ok(text) = serde_json::to_string(&mark) {
        marks.insert(HANDED_OVER.into(), text);
    }
}

/// Whether the lease's last holder released it with such a mark.
pub(super) fn is_handed_over(lease: &Lease) -> bool {
    read(lease).is_some()
}

/// What the lease's last holder handed over.
pub(super) fn inherited(lease: &Lease) -> Inherited {
    let Some(mark) = read(lease) else {
        return Inherited::Nothing;
    };
    let released = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.renew_time.as_ref());
    let age = released.map(|at| Timestamp::now().duration_since(at.0).unsigned_abs());
    let Some(tags) = tags(&mark).filter(|_| age.is_some_and(|age| age <= AGE_MAX)) else {
        return Inherited::Unknown;
    };
    Inherited::Tags(tags)
}

/// How often it has changed hands.
pub(super) fn transitions(lease: &Lease) -> i32 {
    let spec = lease.spec.as_ref();
    spec.and_then(|spec| spec.lease_transitions)
        .unwrap_or_default()
}

fn read(lease: &Lease) -> Option<Mark> {
    let text = lease.metadata.annotations.as_ref()?.get(HANDED_OVER)?;
    let mark: Mark = serde_json::from_str(text).ok()?;
    (mark.transitions == transitions(lease)).then_some(mark)
}

fn tags(mark: &Mark) -> Option<Vec<(Repository, Tag, Option<Digest>)>> {
    let all = mark.written.iter().flat_map(|(name, tags)| {
        tags.iter().map(move |(tag, digest)| {
            let digest = match digest.as_str() {
                "" => None,
                digest => Some(digest.parse().ok()?),
            };
            Some((name.parse().ok()?, tag.parse().ok()?, digest))
        })
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;
    use crate::image::Float;

    const SETTLE: Duration = Duration::from_secs(10);

    fn digest() -> Digest {
        Digest::of(b"image")
    }

    fn float(n: usize) -> Float {
        format!("quay.io/openshift/ci:{}{n}", "f".repeat(80))
            .parse()
            .unwrap()
    }

    fn log(floats: usize, now: Instant) -> WriteLog<Instant> {
        let mut log = WriteLog::new(SETTLE, SETTLE * 3);
        for float in (0..floats).map(float) {
            assert!(log.enter(&float, float.tag(), Some(digest()), None, now));
            log.answered(&float, float.tag(), Some(digest()), now, now);
        }
        log
    }

    fn released(ago: Duration, written: &Written) -> Lease {
        let mut lease = Lease {
            spec: Some(LeaseSpec {
                lease_transitions: Some(3),
                renew_time: Some(MicroTime(Timestamp::now() - ago)),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        mark(&mut lease, written);
        lease
    }

    #[test]
    fn the_next_leader_knows_what_was_written_a_moment_ago_and_waits_for_nothing() {
        let now = Instant::now();
        let mut log = log(3, now);
        let (deleted, ours) = (float(1).incoming(), digest());
        assert!(log.enter(&float(1), &deleted, None, None, now));
        log.answered(&float(1), &deleted, None, now, now);
        let written = Written::of(&log, now).unwrap();
        let lease = released(Duration::ZERO, &written);
        assert!(is_handed_over(&lease));
        let mut next = WriteLog::new(SETTLE, SETTLE * 3);
        inherited(&lease).enter(&mut next, now);
        let float = float(1);
        assert_eq!(next.quiet_until(&float, now), None);
        assert!(next.contradicts(float.repository(), float.tag(), None, now));
        assert!(next.contradicts(float.repository(), &deleted, Some(ours), now));
        assert!(!next.contradicts(float.repository(), &deleted, None, now));
        assert_eq!(Written::of(&next, now), Some(written));
    }

    #[test]
    fn what_was_handed_over_long_ago_or_cannot_be_read_is_waited_for() {
        let now = Instant::now();
        let written = Written::of(&log(1, now), now).unwrap();
        let old = released(AGE_MAX * 2, &written);
        let mut odd = written.clone();
        odd.0
            .insert("no repository".into(), [("t".into(), "x".into())].into());
        for lease in [old, released(Duration::ZERO, &odd)] {
            assert_eq!(inherited(&lease), Inherited::Unknown);
            let mut next = WriteLog::new(SETTLE, SETTLE * 3);
            inherited(&lease).enter(&mut next, now);
            assert_eq!(next.quiet_until(&float(0), now), Some(now + SETTLE));
            assert_eq!(next.late_until(&float(0), now), Some(now + SETTLE));
        }
        let mut earlier = released(Duration::ZERO, &written);
        earlier.spec.as_mut().unwrap().lease_transitions = Some(4);
        assert!(!is_handed_over(&earlier));
        assert_eq!(inherited(&earlier), Inherited::Nothing);
    }

    #[test]
    fn no_more_is_handed_over_than_an_annotation_holds() {
        let now = Instant::now();
        let many = log(2000, now);
        assert_eq!(Written::of(&many, now), None);
        assert_eq!(Written::of(&many, now + SETTLE), Some(Written::default()));
        let most = Written::of(&log(600, now), now).unwrap();
        let lease = released(Duration::ZERO, &most);
        assert!(lease.metadata.annotations.unwrap()[HANDED_OVER].len() <= 2 * BYTES_MAX);
        // Nothing to say is the mark that every version knows.
        let none = released(Duration::ZERO, &Written::default());
        assert_eq!(none.metadata.annotations.unwrap()[RELEASED], "3");
    }
}
