#![allow(clippy::unwrap_used)]
use super::*;

const SETTLE: Duration = Duration::from_secs(10);
const LATE: Duration = Duration::from_secs(30);

fn float() -> Float {
    "quay.io/openshift/ci:ocp_4.21_cli".parse().unwrap()
}

/// The time at which the tests begin.
const START: Duration = Duration::from_hours(1);

fn log() -> WriteLog<Duration> {
    WriteLog::new(SETTLE, LATE)
}

fn digests() -> (Digest, Digest) {
    (Digest::of(b"ours"), Digest::of(b"other"))
}

fn write(log: &mut WriteLog<Duration>, float: &Float, tag: &Tag, digest: Digest, at: Duration) {
    assert!(log.enter(float, tag, Some(digest), None, at));
    log.answered(float, tag, Some(digest), at, at);
}

#[test]
fn a_read_that_contradicts_our_own_write_is_not_believed_until_it_settled() {
    let mut log = log();
    let (float, now) = (float(), START);
    let (repository, tag) = (float.repository(), float.tag());
    let (ours, other) = digests();
    assert!(!log.contradicts(repository, tag, None, now));
    write(&mut log, &float, tag, ours, now);
    assert!(!log.contradicts(repository, tag, Some(ours), now));
    assert!(log.contradicts(repository, tag, Some(other), now));
    assert!(log.contradicts(repository, tag, None, now + Duration::from_secs(9)));
    assert!(!log.contradicts(repository, tag, None, now + SETTLE));
    // What was sent since and not answered may show as well as what was there before; nothing else may.
    assert!(log.enter(&float, tag, Some(other), None, now));
    assert!(!log.contradicts(repository, tag, Some(other), now));
    assert!(!log.contradicts(repository, tag, Some(ours), now));
    assert!(log.contradicts(repository, tag, None, now));
    assert!(!log.wrote(repository, tag, ours, now));
}

#[test]
fn a_write_keeps_its_float_quiet_from_its_sending_and_is_late_for_longer() {
    let mut log = log();
    let (float, now) = (float(), START);
    let pre = float.pre();
    // Nothing is said of it any more: as after a panic, or an answer that was lost.
    assert!(log.enter(&float, &pre, Some(digests().0), None, now));
    assert_eq!(log.quiet_until(&float, now), Some(now + SETTLE));
    assert_eq!(log.late_until(&float, now), Some(now + LATE));
    assert_eq!(log.quiet_until(&float, now + SETTLE), None);
    assert_eq!(log.late_until(&float, now + SETTLE), Some(now + LATE));
    assert_eq!(log.late_until(&float, now + LATE), None);
    let other: Float = "quay.io/openshift/ci:other".parse().unwrap();
    assert_eq!(log.quiet_until(&other, now), None);
}

#[test]
fn another_digest_is_not_put_to_a_tag_where_one_may_still_land_and_the_same_is() {
    let mut log = log();
    let (float, now) = (float(), START);
    let (ours, other) = digests();
    assert!(log.enter(&float, float.tag(), Some(ours), None, now));
    let (tag, later) = (float.tag(), now + SETTLE);
    assert!(!log.enter(&float, tag, Some(other), None, later));
    assert!(log.enter(&float, tag, Some(ours), None, later));
    log.answered(&float, tag, Some(ours), later, later);
    // That one was answered says nothing of the other.
    assert!(!log.enter(&float, tag, Some(other), None, later));
    assert!(log.enter(&float, tag, Some(other), None, now + LATE));
}

#[test]
fn nothing_is_put_where_a_deletion_may_land_and_nothing_deleted_where_a_write_may() {
    let mut log = log();
    let (float, now) = (float(), START);
    let (tag, ours) = (float.incoming(), digests().0);
    assert!(log.enter(&float, &tag, Some(ours), None, now));
    let later = now + SETTLE;
    assert!(!log.enter(&float, &tag, None, None, later));
    assert!(log.enter(&float, &tag, None, None, now + LATE));
    // Nothing more is known of it: its float is kept, and the tag may only be deleted again.
    let (deleted, again) = (now + LATE, now + LATE + SETTLE);
    assert_eq!(log.late_until(&float, again), Some(deleted + LATE));
    assert!(!log.enter(&float, &tag, Some(ours), None, again));
    assert!(log.enter(&float, &tag, None, None, again));
    log.answered(&float, &tag, None, again, again);
    let shows = |log: &WriteLog<_>, seen| !log.contradicts(float.repository(), &tag, seen, again);
    assert!(shows(&log, None) && !shows(&log, Some(ours)));
    assert!(!log.wrote(float.repository(), &tag, ours, again));
}

#[test]
fn a_prune_tag_that_may_land_late_keeps_nothing_longer_than_the_settle_time() {
    let mut log = log();
    let (float, now) = (float(), START);
    let prune = float.prune(Stamp::at(jiff::Timestamp::UNIX_EPOCH));
    assert!(log.enter(&float, &prune, Some(digests().0), None, now));
    assert_eq!(log.late_until(&float, now), Some(now + SETTLE));
    assert_eq!(log.landed_at(now), Some(now + SETTLE));
}

#[test]
fn a_write_that_was_refused_or_never_sent_is_none() {
    let mut log = log();
    let (float, now) = (float(), START);
    let (ours, other) = digests();
    assert!(log.enter(&float, float.tag(), Some(ours), None, now));
    let (tag, later) = (float.tag(), now + SETTLE);
    let again = later + Duration::from_secs(1);
    assert!(log.enter(&float, tag, Some(ours), None, later));
    // Asked again before it is sent again.
    assert!(log.enter(&float, tag, Some(ours), Some(later), again));
    log.refused(&float, tag, Some(ours), again);
    // The one before it may land all the same.
    assert_eq!(log.late_until(&float, later), Some(now + LATE));
    assert!(!log.enter(&float, float.tag(), Some(other), None, later));
    assert_eq!(log.landed_at(later), Some(now + LATE));
}

#[test]
fn after_an_earlier_process_a_float_is_quiet_until_its_last_write_cannot_land_unless_it_is_spared()
{
    let mut log = log();
    let now = START;
    let other: Float = "quay.io/openshift/ci:other".parse().unwrap();
    log.follow(now);
    assert!(!log.may_spare(now));
    assert!(log.may_spare(now + SETTLE));
    log.spare(&float());
    assert_eq!(log.quiet_until(&float(), now), Some(now + SETTLE));
    assert_eq!(log.late_until(&float(), now), Some(now + SETTLE));
    assert_eq!(log.quiet_until(&other, now), Some(now + LATE));
    assert_eq!(log.quiet_until(&other, now + LATE), None);
}

#[test]
fn whoever_goes_on_from_a_log_that_is_handed_over_disbelieves_the_same_reads() {
    let mut log = log();
    let (float, now) = (float(), START);
    let (ours, other) = digests();
    let handed_over = |log: &WriteLog<_>, at| {
        let fresh = log.fresh(at).map(|(r, t, d)| (r.clone(), t.clone(), d));
        fresh.collect::<Vec<_>>()
    };
    assert_eq!((log.landed_at(now), handed_over(&log, now)), (None, vec![]));
    write(&mut log, &float, float.tag(), ours, now);
    assert_eq!(log.landed_at(now), None);
    let fresh = handed_over(&log, now);
    assert_eq!(fresh.len(), 1);
    assert_eq!(handed_over(&log, now + SETTLE), []);
    assert!(log.enter(&float, &float.pre(), Some(other), None, now));
    assert_eq!(log.landed_at(now), Some(now + LATE));
    assert_eq!(log.landed_at(now + LATE), None);
    let mut next = WriteLog::new(SETTLE, LATE);
    for (repository, tag, digest) in fresh {
        next.inherit(repository, tag, digest, now);
    }
    let repository = float.repository();
    for seen in [None, Some(other)] {
        assert!(next.contradicts(repository, float.tag(), seen, now));
    }
    assert!(!next.contradicts(repository, float.tag(), Some(ours), now));
    assert!(!next.contradicts(repository, float.tag(), None, now + SETTLE));
    assert_eq!(next.quiet_until(&float, now), None);
}
