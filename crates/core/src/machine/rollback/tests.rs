//! Each sentence about taking floats back.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::machine::samples::{at, broken, digest, fault, float, inputs, pin, request, running};
use crate::machine::{Latch, Pin, Step, advance, decide};
use Phase::{BackedUp, Failed, Latched, Posted};

const CONTEXT: fn() -> Context = || Context {
    now: at(0),
    newest_stamp: None,
    jitter: 1.0,
};

/// A committed group that has failed: one float moved, one held back whose latch may have landed, one new, one that failed itself.
fn failed() -> Request {
    let mut request = request(Latch::Together, &[Posted, Failed, Posted, Failed]);
    request.spec.on_failure = OnFailure::Rollback;
    request.status.committed = true;
    let images = &mut request.status.images;
    for (index, image) in images.iter_mut().enumerate() {
        image.displaced = vec![Pin {
            digest: digest("old"),
            tag: float(index).prune(Stamp::at(at(-60))),
        }];
    }
    images[1].reason = Some(Reason::Held);
    images[2].displaced.clear();
    images[3].reason = Some(Reason::PermissionDenied);
    images[3].message = "may not push".into();
    request
}

fn launched(decision: &Decision) -> Vec<(usize, Step, bool)> {
    let launches = decision.launches.iter();
    launches
        .map(|l| (l.image, l.step, l.may_have_run))
        .collect()
}

fn tag(request: &Request, index: usize) -> Option<&str> {
    request.status.images[index]
        .rollback
        .as_ref()
        .map(crate::image::Tag::as_str)
}

#[test]
fn a_failed_group_is_not_over_before_every_float_that_may_have_moved_was_looked_at() {
    let mut request = failed();
    assert!(!request.is_finished() && request.has_open_commit());
    assert_eq!(request.phase(), Latched);
    let first = decide(&mut request, &inputs(4));
    // The first promotion has nothing to go back to; all others are looked at, whatever their recorded phase.
    let all = [0, 1, 3].map(|index| (index, Step::RollBack, false));
    assert_eq!(launched(&first), all);
    assert!(request.status.rollback);
    assert_eq!(request.status.deadline, Some(at(GRACE_SECONDS)));
    assert_eq!(tag(&request, 0), Some(broken(0).as_str()));
    assert_eq!((tag(&request, 2), request.status.completed), (None, None));
    for (index, outcome) in [
        (0, Outcome::RolledBack),
        (1, Outcome::NothingToRollBack),
        (3, Outcome::RolledBack),
    ] {
        assert_eq!(request.phase(), Latched);
        let effect = advance(&mut request, index, outcome, &CONTEXT());
        assert_eq!(effect, Effect::Recorded(Vec::new()));
    }
    let last = decide(&mut request, &inputs(4));
    assert_eq!((launched(&last), last.wake), (vec![], None));
    assert_eq!(
        (request.phase(), request.status.completed),
        (Failed, Some(at(0)))
    );
    let ends: Vec<_> = request
        .status
        .images
        .iter()
        .map(|i| (i.phase, i.reason))
        .collect();
    let reasons = [
        (Failed, Some(Reason::RolledBack)),
        (Failed, Some(Reason::Held)),
        (Posted, None),
        (Failed, Some(Reason::PermissionDenied)),
    ];
    assert_eq!(ends, reasons);
    let own = &request.status.images[3].message;
    assert!(
        own.contains("back on") && own.contains("may not push"),
        "{own}"
    );
    assert!(
        request.status.images[0]
            .message
            .contains(broken(0).as_str())
    );
}

#[test]
fn nothing_is_taken_back_unless_it_was_asked_for_and_the_floats_could_move() {
    for change in [
        (|r: &mut Request| r.spec.on_failure = OnFailure::Hold) as fn(&mut Request),
        |r| r.status.committed = false,
        |r| {
            for image in &mut r.status.images {
                image.phase = Posted;
            }
        },
    ] {
        let mut request = failed();
        change(&mut request);
        assert!(request.is_finished());
        assert_eq!(decide(&mut request, &inputs(4)), Decision::default());
        assert!(!request.status.rollback);
    }
}

#[test]
fn the_intent_is_saved_only_when_nothing_runs_and_every_float_has_settled() {
    let mut busy = failed();
    assert_eq!(
        decide(&mut busy, &running(4, 1, Step::Latch)),
        Decision::default()
    );
    assert!(!busy.status.rollback);
    let mut unsettled = inputs(4);
    unsettled.contexts[2].quiet_until = Some(at(7));
    unsettled.contexts[0].quiet_until = Some(at(3));
    let waits = decide(&mut busy, &unsettled);
    assert_eq!((launched(&waits), waits.wake), (vec![], Some(at(7))));
    assert!(!busy.status.rollback);
}

#[test]
fn a_failure_in_this_very_plan_begins_to_take_floats_back() {
    let mut request = failed();
    request.status.images[1].phase = BackedUp;
    request.status.images[1].attempts = request.spec.attempts;
    let decision = decide(&mut request, &inputs(4));
    assert_eq!(decision.launches.len(), 3);
    assert!(request.status.rollback);
}

#[test]
fn the_prune_tag_is_above_every_stamp_that_is_known() {
    let mut request = failed();
    let mut inputs = inputs(4);
    inputs.contexts[0].newest_stamp = Some(Stamp::at(at(5)));
    request.status.images[1].displaced = vec![pin("old", 30)];
    decide(&mut request, &inputs);
    assert_eq!(tag(&request, 0), Some(broken(6).as_str()));
    let first = Stamp::of(request.status.images[1].rollback.as_ref().unwrap());
    assert_eq!(first, Some(Stamp::at(at(31))));
    let taken = request.status.images[0].rollback.clone().unwrap();
    let effect = advance(
        &mut request,
        0,
        Outcome::StampTaken { tag: taken },
        &CONTEXT(),
    );
    assert_eq!(effect, Effect::Recorded(Vec::new()));
    assert_eq!(tag(&request, 0), Some(broken(7).as_str()));
    assert_eq!(request.status.images[0].attempts, 0);
}

#[test]
fn what_fails_for_now_is_tried_again_and_what_fails_for_good_is_named() {
    let mut request = failed();
    decide(&mut request, &inputs(4));
    let wait = fault(Reason::RegistryUnavailable, FaultClass::Wait { seconds: 9 });
    advance(&mut request, 0, wait, &CONTEXT());
    let attempt = fault(Reason::ManifestRejected, FaultClass::Attempt);
    advance(&mut request, 1, attempt, &CONTEXT());
    let images = &request.status.images;
    assert_eq!(
        (images[0].attempts, images[0].next_attempt),
        (0, Some(at(9)))
    );
    assert_eq!(
        (images[1].attempts, images[1].next_attempt),
        (1, Some(at(2)))
    );
    assert_eq!(
        (images[0].phase, images[1].reason),
        (Posted, Some(Reason::Held))
    );
    let denied = fault(Reason::PermissionDenied, FaultClass::Terminal);
    advance(&mut request, 3, denied, &CONTEXT());
    let image = &request.status.images[3];
    assert_eq!((image.phase, &image.rollback), (Failed, &None));
    assert!(
        image
            .message
            .contains("not rolled back: PermissionDenied: as answered"),
        "{}",
        image.message
    );
    assert!(image.message.contains("may not push"), "{}", image.message);
    // It is what the group failed for, whatever became of its float; and what was only left behind has not failed itself.
    assert_eq!(image.reason, Some(Reason::PermissionDenied));
    let gone = fault(Reason::BackupFailed, FaultClass::Terminal);
    let mut other = request.clone();
    advance(&mut other, 0, gone, &CONTEXT());
    assert_eq!(other.status.images[0].reason, Some(Reason::NotRolledBack));
    assert_eq!(other.failed_float(), Some(&float(3)));
    let mut later = inputs(4);
    later.now = at(2);
    assert_eq!(
        launched(&decide(&mut request, &later)),
        [(1, Step::RollBack, true)]
    );
}

#[test]
fn after_its_own_time_it_ends_and_says_what_was_not_taken_back() {
    let mut request = failed();
    decide(&mut request, &inputs(4));
    advance(&mut request, 3, Outcome::RolledBack, &CONTEXT());
    let mut late = running(4, 1, Step::RollBack);
    late.now = at(GRACE_SECONDS);
    let drops = decide(&mut request, &late);
    assert_eq!(
        (drops.drops.as_slice(), request.is_finished()),
        (&[1][..], false)
    );
    late.contexts[1].running = None;
    decide(&mut request, &late);
    assert_eq!(
        (request.phase(), request.status.completed),
        (Failed, Some(late.now))
    );
    for index in [0, 1] {
        let image = &request.status.images[index];
        assert_eq!(image.reason, Some(Reason::NotRolledBack));
        assert!(
            image.message.contains("not rolled back"),
            "{}",
            image.message
        );
    }
}

#[test]
fn an_outcome_that_comes_when_it_is_known_already_changes_nothing() {
    let mut request = failed();
    decide(&mut request, &inputs(4));
    advance(&mut request, 0, Outcome::RolledBack, &CONTEXT());
    let before = request.clone();
    for (index, outcome) in [
        (0, Outcome::NothingToRollBack),
        (2, Outcome::RolledBack),
        (1, Outcome::Latched),
    ] {
        assert_eq!(
            advance(&mut request, index, outcome, &CONTEXT()),
            Effect::Ignored
        );
    }
    assert_eq!(request, before);
}

#[test]
fn a_cancel_or_a_suspension_that_comes_while_floats_are_taken_back_changes_nothing() {
    let mut told = Vec::new();
    for change in [
        (|r: &mut Request| r.spec.cancel = true) as fn(&mut Request),
        |r| r.spec.suspend = true,
    ] {
        let mut request = failed();
        change(&mut request);
        let decision = decide(&mut request, &inputs(4));
        assert_eq!(decision.launches.len(), 3);
        assert_eq!((decision.waiting, request.phase()), (None, Latched));
        told.push(decision.cancel_ignored);
    }
    assert_eq!(told, [true, false]);
}

#[test]
fn a_float_that_may_be_taken_back_is_kept_to_the_end_of_the_whole_request() {
    for (on_failure, open) in [(OnFailure::Rollback, true), (OnFailure::Hold, false)] {
        let mut request = request(Latch::Together, &[Posted, Latched]);
        request.spec.on_failure = on_failure;
        request.status.committed = true;
        assert_eq!((request.is_open(0), request.is_open(1)), (open, true));
        request.status.images[1].phase = Posted;
        assert!(!request.is_open(0) && !request.is_open(1));
    }
}

#[test]
fn a_paused_registry_holds_the_floats_where_they_are_and_the_request_says_so() {
    let mut request = failed();
    let mut paused = inputs(4);
    for context in &mut paused.contexts {
        context.paused = Some("paused by ci".into());
    }
    let held = decide(&mut request, &paused);
    assert_eq!(launched(&held), []);
    assert_eq!(held.waiting, Some((Reason::Paused, "paused by ci".into())));
    assert_eq!(held.wake, Some(at(GRACE_SECONDS)), "its time runs");
    let mut one = running(4, 0, Step::RollBack);
    one.contexts[0].paused = Some("paused by ci".into());
    let dropped = decide(&mut request, &one);
    assert_eq!(dropped.drops, [0]);
    let others = [1, 3].map(|index| (index, Step::RollBack, false));
    assert_eq!(launched(&dropped), others);
}
