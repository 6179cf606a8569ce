#![allow(clippy::unwrap_used)]
use super::*;

const SETTLE: Duration = Duration::from_secs(10);
const LATE: Duration = Duration::from_secs(30);

fn float() -> Float {
    "quay.io/openshift/ci:ocp_4.21_cli".parse().unwrap()
}

fn memory() -> Memory {
    Memory::new(SETTLE, LATE)
}

fn digests() -> (Digest, Digest) {
    (Digest::of(b"ours"), Digest::of(b"other"))
}

fn write(memory: &Memory, float: &Float, tag: &Tag, digest: Digest, at: Instant) {
    let write = memory.write(float, tag, digest);
    assert!(write.enter(at));
    write.answered(at);
}

#[test]
fn a_read_that_contradicts_our_own_write_is_not_believed_until_it_settled() {
    let memory = memory();
    let (float, now) = (float(), Instant::now());
    let (repository, tag) = (float.repository(), float.tag());
    let (ours, other) = digests();
    assert!(!memory.contradicts(repository, tag, None, now));
    write(&memory, &float, tag, ours, now);
    assert!(!memory.contradicts(repository, tag, Some(ours), now));
    assert!(memory.contradicts(repository, tag, Some(other), now));
    assert!(memory.contradicts(repository, tag, None, now + Duration::from_secs(9)));
    assert!(!memory.contradicts(repository, tag, None, now + SETTLE));
    // What was sent since and not answered may show as well as what was there before; nothing else may.
    let next = memory.write(&float, tag, other);
    assert!(next.enter(now));
    assert!(!memory.contradicts(repository, tag, Some(other), now));
    assert!(!memory.contradicts(repository, tag, Some(ours), now));
    assert!(memory.contradicts(repository, tag, None, now));
    assert!(!memory.wrote(repository, tag, ours, now));
}

#[test]
fn a_write_keeps_its_float_quiet_from_its_sending_and_is_late_for_longer() {
    let memory = memory();
    let (float, now) = (float(), Instant::now());
    let pre = float.pre();
    // Nothing is said of it any more: as after a panic, or an answer that was lost.
    assert!(memory.write(&float, &pre, digests().0).enter(now));
    assert_eq!(memory.quiet_until(&float, now), Some(now + SETTLE));
    assert_eq!(memory.late_until(&float, now), Some(now + LATE));
    assert_eq!(memory.quiet_until(&float, now + SETTLE), None);
    assert_eq!(memory.late_until(&float, now + SETTLE), Some(now + LATE));
    assert_eq!(memory.late_until(&float, now + LATE), None);
    let other: Float = "quay.io/openshift/ci:other".parse().unwrap();
    assert_eq!(memory.quiet_until(&other, now), None);
}

#[test]
fn another_digest_is_not_put_to_a_tag_where_one_may_still_land_and_the_same_is() {
    let memory = memory();
    let (float, now) = (float(), Instant::now());
    let (ours, other) = digests();
    assert!(memory.write(&float, float.tag(), ours).enter(now));
    let (again, next) = (
        memory.write(&float, float.tag(), ours),
        memory.write(&float, float.tag(), other),
    );
    let later = now + SETTLE;
    assert!(!next.enter(later));
    assert!(again.enter(later));
    again.answered(later);
    // That one was answered says nothing of the other.
    assert!(!next.enter(later));
    assert!(next.enter(now + LATE));
}

#[test]
fn a_prune_tag_that_may_land_late_keeps_nothing_longer_than_the_settle_time() {
    let memory = memory();
    let (float, now) = (float(), Instant::now());
    let prune = float.prune(Stamp::at(jiff::Timestamp::UNIX_EPOCH));
    assert!(memory.write(&float, &prune, digests().0).enter(now));
    assert_eq!(memory.late_until(&float, now), Some(now + SETTLE));
    assert_eq!(memory.settled_at(now), Some(now + SETTLE));
}

#[test]
fn a_write_that_was_refused_or_never_sent_is_none() {
    let memory = memory();
    let (float, now) = (float(), Instant::now());
    let (ours, other) = digests();
    assert!(memory.write(&float, float.tag(), ours).enter(now));
    let refused = memory.write(&float, float.tag(), ours);
    let later = now + SETTLE;
    assert!(refused.enter(later));
    // Asked again before it is sent again.
    assert!(refused.enter(later + Duration::from_secs(1)));
    refused.refused();
    // The one before it may land all the same.
    assert_eq!(memory.late_until(&float, later), Some(now + LATE));
    assert!(!memory.write(&float, float.tag(), other).enter(later));
    assert_eq!(memory.settled_at(later), Some(now + LATE));
}

#[test]
fn after_an_earlier_process_a_float_is_quiet_until_its_last_write_cannot_land_unless_it_is_spared()
{
    let memory = memory();
    let now = Instant::now();
    let other: Float = "quay.io/openshift/ci:other".parse().unwrap();
    memory.follow(now);
    assert!(!memory.may_spare(now));
    assert!(memory.may_spare(now + SETTLE));
    memory.spare(&float());
    assert_eq!(memory.quiet_until(&float(), now), Some(now + SETTLE));
    assert_eq!(memory.late_until(&float(), now), Some(now + SETTLE));
    assert_eq!(memory.quiet_until(&other, now), Some(now + LATE));
    assert_eq!(memory.quiet_until(&other, now + LATE), None);
}

#[test]
fn all_is_settled_when_the_newest_answer_has_shown_and_no_sending_can_land() {
    let memory = memory();
    let (float, now) = (float(), Instant::now());
    assert_eq!(memory.settled_at(now), None);
    write(&memory, &float, float.tag(), digests().0, now);
    assert_eq!(memory.settled_at(now), Some(now + SETTLE));
    assert!(memory.write(&float, &float.pre(), digests().0).enter(now));
    assert_eq!(memory.settled_at(now), Some(now + LATE));
    assert_eq!(memory.settled_at(now + LATE), None);
}
