//! Each sentence about what may run, what ends a request, and what is launched.
#![allow(clippy::unwrap_used)]

mod frozen;

use super::*;
use crate::machine::samples::{at, float, inputs, now, request, running};
use crate::machine::{Launch, Mode, Status, Waiting};
use Phase::{BackedUp, Cancelled, Failed, Incoming, Latched, Pending, Posted};

fn ends(request: &Request) -> Vec<(Phase, Option<Reason>)> {
    request
        .status
        .images
        .iter()
        .map(|i| (i.phase, i.reason))
        .collect()
}

fn steps(decision: &Decision) -> Vec<(usize, Step)> {
    decision
        .launches
        .iter()
        .map(|launch| (launch.image, launch.step))
        .collect()
}

fn committed(phases: &[Phase]) -> Request {
    let mut request = request(Latch::Together, phases);
    request.status.committed = true;
    request
}

#[test]
fn the_first_save_records_order_and_deadline_and_the_claim_its_start() {
    let mut fresh = request(Latch::Together, &[Pending]);
    fresh.status = Status::new(1);
    let mut queued = inputs(1);
    queued.admission = Admission::Waits(Reason::Queued, "waits for ci/other".into());
    let waiting = decide(&mut fresh, &queued);
    assert_eq!(waiting.launches, []);
    assert_eq!(
        waiting.waiting,
        Some((Reason::Queued, "waits for ci/other".into()))
    );
    assert_eq!(waiting.wake, Some(at(7200)), "queueing counts");
    assert_eq!((fresh.status.order, fresh.status.started), (Some(9), None));
    let mut later = inputs(1);
    (later.now, later.resource_version) = (at(5), 11);
    assert_eq!(steps(&decide(&mut fresh, &later)), [(0, Step::Resolve)]);
    assert_eq!(fresh.status.order, Some(9), "as the leader first saw it");
    assert_eq!(
        (fresh.status.started, fresh.status.deadline),
        (Some(at(5)), Some(at(7200)))
    );
}

#[test]
fn a_launch_uses_an_attempt_and_is_told_when_it_may_have_run_before() {
    let mut request = request(Latch::Together, &[Incoming, Pending]);
    request.status.images[1].attempts = 1;
    let decision = decide(&mut request, &inputs(2));
    let first = Launch {
        image: 0,
        step: Step::BackUp,
        may_have_run: false,
    };
    let second = Launch {
        image: 1,
        step: Step::Resolve,
        may_have_run: true,
    };
    assert_eq!(decision.launches, [first, second]);
    assert_eq!(
        request
            .status
            .images
            .iter()
            .map(|i| i.attempts)
            .collect::<Vec<_>>(),
        [1, 2]
    );
}

#[test]
fn nothing_is_launched_on_what_runs_or_is_not_due_or_has_not_settled_or_while_draining() {
    let mut due = request(Latch::Together, &[Pending, Pending, Pending]);
    due.status.images[1].next_attempt = Some(at(9));
    let mut surroundings = running(3, 0, Step::Resolve);
    surroundings.contexts[2].quiet_until = Some(at(4));
    let waiting = decide(&mut due, &surroundings);
    assert_eq!((steps(&waiting), waiting.wake), (vec![], Some(at(4))));
    surroundings.now = at(9);
    surroundings.launching = false;
    assert_eq!(decide(&mut due, &surroundings).launches, []);
    surroundings.launching = true;
    assert_eq!(
        steps(&decide(&mut due, &surroundings)),
        [(1, Step::Resolve), (2, Step::Resolve)]
    );
}

#[test]
fn a_request_that_waits_for_earlier_writes_to_land_says_so_until_it_goes_on() {
    let mut each = request(Latch::Independently, &[Pending, Incoming, Posted]);
    let mut surroundings = inputs(3);
    for context in &mut surroundings.contexts[..2] {
        context.quiet_until = Some(at(4));
    }
    let waits = decide(&mut each, &surroundings);
    assert_eq!((steps(&waits), waits.wake), (vec![], Some(at(4))));
    assert_eq!(waits.waiting, Some((Reason::Queued, QUIET.into())));
    surroundings.contexts[1].quiet_until = None;
    assert_eq!(decide(&mut each.clone(), &surroundings).waiting, None);
    surroundings.contexts[1].quiet_until = Some(at(4));
    surroundings.now = at(4);
    let goes_on = decide(&mut each, &surroundings);
    assert_eq!((steps(&goes_on).len(), goes_on.waiting), (2, None));
}

#[test]
fn what_is_paused_is_given_up_says_so_and_goes_on_as_if_nothing_had_been() {
    let mut each = request(Latch::Independently, &[Pending, Incoming, Pending]);
    each.status.images[2].attempts = 1;
    let mut surroundings = running(3, 2, Step::Resolve);
    for paused in [1, 2] {
        surroundings.contexts[paused].paused = Some("paused by ci".into());
    }
    let held = decide(&mut each, &surroundings);
    assert_eq!(
        (steps(&held), held.drops),
        (vec![(0, Step::Resolve)], vec![2])
    );
    assert_eq!(held.waiting, Some((Reason::Paused, "paused by ci".into())));
    let image = &each.status.images[1];
    assert_eq!(
        (image.reason, image.message.as_str()),
        (Some(Reason::Paused), "paused by ci")
    );
    assert_eq!(image.attempts, 0);
    // It goes on, but the float has not settled: nobody stops it any more.
    let mut quiet = running(3, 0, Step::Resolve);
    quiet.contexts[1].quiet_until = Some(at(4));
    let waits = decide(&mut each, &quiet);
    assert_eq!((waits.waiting, each.status.images[1].reason), (None, None));
    quiet.now = at(4);
    quiet.contexts[1].quiet_until = None;
    assert!(steps(&decide(&mut each, &quiet)).contains(&(1, Step::BackUp)));
}

#[test]
fn while_an_image_is_paused_its_group_is_not_committed_and_can_be_cancelled() {
    let mut group = request(Latch::Together, &[BackedUp, BackedUp]);
    let mut surroundings = inputs(2);
    surroundings.contexts[1].paused = Some("paused by ci".into());
    assert_eq!(decide(&mut group, &surroundings).launches, []);
    assert!(!group.status.committed);
    group.spec.cancel = true;
    decide(&mut group, &surroundings);
    assert!(ends(&group).iter().all(|end| end.0 == Cancelled));
    // What is committed stays so, and goes no further.
    let mut group = committed(&[BackedUp, Latched]);
    surroundings.contexts[0].paused = Some("paused by ci".into());
    assert_eq!(decide(&mut group, &surroundings).launches, []);
    assert!(group.status.committed);
    assert_eq!(
        steps(&decide(&mut group, &inputs(2))),
        [(0, Step::Latch), (1, Step::Post)]
    );
    let mut each = request(Latch::Independently, &[BackedUp, BackedUp]);
    surroundings.contexts[0].paused = None;
    decide(&mut each, &surroundings);
    assert_eq!((each.is_committed(0), each.is_committed(1)), (true, false));
}

#[test]
fn no_float_of_a_group_moves_until_every_image_is_backed_up() {
    let mut group = request(Latch::Together, &[BackedUp, Incoming, Posted]);
    assert_eq!(steps(&decide(&mut group, &inputs(3))), [(1, Step::BackUp)]);
    assert!(!group.status.committed);
    let mut group = request(Latch::Together, &[BackedUp, BackedUp, Posted]);
    let decision = decide(&mut group, &inputs(3));
    assert!(
        group.status.committed,
        "by the save that launches the latches"
    );
    assert_eq!(steps(&decision), [(0, Step::Latch), (1, Step::Latch)]);
}

#[test]
fn independently_each_float_moves_when_it_is_backed_up() {
    let mut each = request(Latch::Independently, &[BackedUp, Pending]);
    assert_eq!(
        steps(&decide(&mut each, &inputs(2))),
        [(0, Step::Latch), (1, Step::Resolve)]
    );
    assert_eq!((each.is_committed(0), each.is_committed(1)), (true, false));
    assert!(!each.status.committed);
}

#[test]
fn a_foreign_move_sends_one_committed_float_back_and_not_the_others() {
    let mut group = committed(&[Incoming, Latched, BackedUp]);
    let steps = steps(&decide(&mut group, &inputs(3)));
    assert_eq!(
        steps,
        [(0, Step::BackUp), (1, Step::Post), (2, Step::Latch)]
    );
}

#[test]
fn nothing_is_committed_on_what_is_cancelled_suspended_late_or_not_its_own() {
    let cases: [fn(&mut Request, &mut Inputs); 4] = [
        |request, _| request.spec.cancel = true,
        |request, _| request.spec.suspend = true,
        |_, inputs| inputs.now = at(7200),
        |_, inputs| inputs.admission = Admission::Waits(Reason::Queued, String::new()),
    ];
    for (number, case) in cases.iter().enumerate() {
        for latch in [Latch::Together, Latch::Independently] {
            let (mut request, mut inputs) = (request(latch, &[BackedUp]), inputs(1));
            case(&mut request, &mut inputs);
            let decision = decide(&mut request, &inputs);
            assert!(
                !request.is_committed(0) && decision.launches.is_empty(),
                "{number}"
            );
        }
    }
}

#[test]
fn cancel_before_the_commit_ends_what_does_not_run_and_drops_what_does() {
    let mut group = request(Latch::Together, &[Pending, Incoming]);
    group.spec.cancel = true;
    let first = decide(&mut group, &running(2, 1, Step::BackUp));
    assert_eq!((first.drops, first.launches), (vec![1], vec![]));
    assert_eq!(
        ends(&group),
        [(Cancelled, Some(Reason::Cancelled)), (Incoming, None)]
    );
    decide(&mut group, &inputs(2));
    assert_eq!(group.phase(), Cancelled);
    assert_eq!(group.status.completed, Some(now()));
}

#[test]
fn cancel_after_the_commit_is_ignored_and_said_so() {
    let mut group = committed(&[BackedUp, Latched]);
    group.spec.cancel = true;
    let decision = decide(&mut group, &inputs(2));
    assert!(decision.cancel_ignored);
    assert_eq!(steps(&decision), [(0, Step::Latch), (1, Step::Post)]);
}

#[test]
fn independently_cancel_ends_only_the_images_that_are_not_committed() {
    let mut each = request(Latch::Independently, &[Latched, Incoming]);
    each.status.images[0].committed = true;
    each.spec.cancel = true;
    assert_eq!(steps(&decide(&mut each, &inputs(2))), [(0, Step::Post)]);
    assert_eq!(ends(&each)[1], (Cancelled, Some(Reason::Cancelled)));
}

#[test]
fn the_deadline_ends_what_is_not_committed() {
    let mut group = request(Latch::Together, &[Pending, BackedUp]);
    let mut inputs = inputs(2);
    inputs.now = at(7199);
    assert_eq!(decide(&mut group, &inputs).wake, Some(at(7200)));
    let running = running(2, 0, Step::Resolve);
    let late = Inputs {
        now: at(7200),
        ..running
    };
    let first = decide(&mut group, &late);
    assert_eq!(
        (first.drops.as_slice(), first.wake),
        (&[0, 0][..], Some(at(7800))),
        "no wake in the past"
    );
    inputs.now = at(7201);
    decide(&mut group, &inputs);
    assert_eq!(ends(&group), [(Failed, Some(Reason::DeadlineExceeded)); 2]);
    assert!(
        group.status.images[0]
            .message
            .contains("deadlineSeconds (7200)")
    );
}

#[test]
fn an_end_by_the_deadline_names_the_last_cause() {
    let fault = |request: &mut Request, reason: Reason, message: &str| {
        request.status.images[0].reason = Some(reason);
        request.status.images[0].message = message.into();
    };
    let said = |request: &mut Request, mut inputs: Inputs| -> Vec<String> {
        inputs.now = at(7201);
        decide(request, &inputs);
        let images = request.status.images.iter();
        images
            .map(|image| {
                assert_eq!(image.reason, Some(Reason::DeadlineExceeded));
                let (_, cause) = image.message.split_once("; last: ").unwrap();
                cause.to_owned()
            })
            .collect()
    };
    // Its own, and of a group another's.
    let mut group = request(Latch::Together, &[Pending, BackedUp]);
    fault(&mut group, Reason::RegistryUnavailable, "x.io answered 503");
    let cause = "RegistryUnavailable: x.io answered 503";
    let of_other = format!("{}: {cause}", float(0));
    assert_eq!(said(&mut group, inputs(2)), [cause.to_owned(), of_other]);
    // What it waited for as a whole.
    let mut queued = request(Latch::Together, &[Pending]);
    let mut waits = inputs(1);
    waits.admission = Admission::Waits(Reason::SecretNotFound, "Secret ci/push".into());
    assert_eq!(said(&mut queued, waits), ["SecretNotFound: Secret ci/push"]);
    // Nothing but work.
    let mut busy = request(Latch::Together, &[Pending]);
    let worked = said(&mut busy, inputs(1));
    assert!(worked[0].contains("phase Pending"), "{worked:?}");
    // It was launched once more, had no answer, and was given up for the deadline.
    let mut again = request(Latch::Together, &[Pending]);
    fault(&mut again, Reason::RegistryError, "no token");
    assert_eq!(steps(&decide(&mut again, &inputs(1))), [(0, Step::Resolve)]);
    let mut late = running(1, 0, Step::Resolve);
    late.now = at(7200);
    assert_eq!(decide(&mut again, &late).drops, [0]);
    let context = crate::machine::Context {
        now: at(7200),
        newest_stamp: None,
        jitter: 0.0,
    };
    crate::machine::advance(&mut again, 0, crate::machine::Outcome::Dropped, &context);
    assert_eq!(said(&mut again, inputs(1)), ["RegistryError: no token"]);
}

#[test]
fn a_wait_says_when_it_is_tried_next_and_a_launch_that_follows_waits_no_more() {
    let mut request = request(Latch::Together, &[Incoming]);
    let image = &mut request.status.images[0];
    image.reason = Some(Reason::RateLimited);
    image.message = "x.io limits the rate".into();
    image.next_attempt = Some(at(9));
    let waits = |request: &mut Request, inputs: &Inputs| decide(request, inputs).waiting;
    let message = format!("x.io limits the rate; next try {}", at(9));
    let wanted = Some((Reason::RateLimited, message));
    assert_eq!(waits(&mut request, &inputs(1)), wanted);
    let mut due = inputs(1);
    due.now = at(9);
    assert_eq!(waits(&mut request, &due), None);
    let image = &request.status.images[0];
    let known = (image.reason, image.next_attempt, image.attempts);
    assert_eq!(
        known,
        (Some(Reason::RateLimited), None, 1),
        "the last cause"
    );
}

#[test]
fn a_committed_request_has_600_seconds_more() {
    let mut group = committed(&[BackedUp]);
    group.status.images[0].pinned = Some(at(7700));
    let mut inputs = inputs(1);
    inputs.now = at(7799);
    let going = decide(&mut group, &inputs);
    assert_eq!(
        (steps(&going), going.wake),
        (vec![(0, Step::Latch)], Some(at(7800)))
    );
    inputs.now = at(7800);
    decide(&mut group, &inputs);
    assert_eq!(ends(&group), [(Failed, Some(Reason::DeadlineExceeded))]);
}

#[test]
fn processes_that_end_under_a_launch_use_one_attempt_however_many_and_failures_count() {
    let mut one = committed(&[BackedUp]);
    one.spec.attempts = 1;
    let mut taken_over = inputs(1);
    taken_over.contexts[0].taken_over = true;
    let launch = |request: &mut Request, inputs: &Inputs| {
        let decision = decide(request, inputs);
        let again: Vec<_> = decision
            .launches
            .iter()
            .map(|launch| launch.may_have_run)
            .collect();
        (again, request.status.images[0].attempts)
    };
    assert_eq!(launch(&mut one, &taken_over), (vec![false], 1));
    for _ in 0..20 {
        assert_eq!(launch(&mut one, &taken_over), (vec![true], 1));
    }
    // As it was, or while its step waited inside.
    one.status.images[0].reason = Some(Reason::RegistryUnavailable);
    assert_eq!(launch(&mut one, &taken_over), (vec![true], 1));
    // One that failed, and one that this process launched, are used up.
    let mut failed = one.clone();
    failed.status.images[0].reason = Some(Reason::RegistryError);
    failed.status.images[0].next_attempt = Some(at(0));
    for (mut request, inputs) in [(failed, taken_over), (one, inputs(1))] {
        assert_eq!(launch(&mut request, &inputs), (vec![], 1));
        assert_eq!(ends(&request), [(Failed, Some(Reason::RegistryError))]);
    }
}

#[test]
fn a_clock_that_is_set_ahead_ends_nothing_and_wakes_when_the_time_has_passed() {
    let hour = 3600;
    for (mut group, end) in [
        (committed(&[BackedUp]), 7800),
        (request(Latch::Together, &[Pending]), 7200),
    ] {
        let mut ahead = inputs(1);
        ahead.stepped = hour;
        ahead.now = at(end + hour - 1);
        let going = decide(&mut group, &ahead);
        assert_eq!((steps(&going).len(), going.wake), (1, Some(at(end + hour))));
        ahead.now = at(end + hour);
        decide(&mut group, &ahead);
        assert_eq!(ends(&group), [(Failed, Some(Reason::DeadlineExceeded))]);
    }
}

#[test]
fn a_committed_request_that_has_to_wait_past_its_deadline_is_woken_for_its_grace() {
    let mut group = committed(&[BackedUp]);
    let mut inputs = inputs(1);
    inputs.now = at(7300);
    inputs.admission = Admission::Waits(Reason::SecretNotFound, "push".into());
    assert_eq!(decide(&mut group, &inputs).wake, Some(at(7800)));
}

#[test]
fn suspend_before_the_commit_removes_the_deadline_and_resuming_sets_it_anew() {
    let mut group = request(Latch::Together, &[Incoming, BackedUp]);
    group.spec.suspend = true;
    let held = decide(&mut group, &running(2, 0, Step::BackUp));
    assert_eq!(
        (held.drops, held.launches, held.wake),
        (vec![0], vec![], None)
    );
    assert_eq!(held.waiting.unwrap().0, Reason::Suspended);
    assert_eq!(group.status.deadline, None);
    let mut later = inputs(2);
    later.now = at(90_000);
    decide(&mut group, &later);
    assert!(!group.is_finished());
    group.spec.suspend = false;
    assert_eq!(steps(&decide(&mut group, &later)), [(0, Step::BackUp)]);
    assert_eq!(group.status.deadline, Some(at(97_200)));
}

#[test]
fn suspend_after_the_commit_changes_nothing() {
    let mut group = committed(&[BackedUp]);
    group.spec.suspend = true;
    let decision = decide(&mut group, &inputs(1));
    assert_eq!(
        (steps(&decision), decision.waiting),
        (vec![(0, Step::Latch)], None)
    );
    assert_eq!(group.status.deadline, Some(at(7200)));
}

#[test]
fn independently_a_suspension_lets_the_committed_image_end_and_then_removes_the_deadline() {
    let mut each = request(Latch::Independently, &[Latched, Incoming]);
    each.status.images[0].committed = true;
    each.spec.suspend = true;
    assert_eq!(steps(&decide(&mut each, &inputs(2))), [(0, Step::Post)]);
    assert_eq!(each.status.deadline, Some(at(7200)));
    each.status.images[0].end(Posted, Reason::Promoted, "");
    let held = decide(&mut each, &inputs(2));
    assert_eq!((held.launches, held.wake), (vec![], None));
    assert_eq!(held.waiting.unwrap().0, Reason::Suspended);
    assert_eq!(each.status.deadline, None);
}

#[test]
fn a_refusal_ends_what_is_not_committed() {
    let mut inputs = inputs(1);
    inputs.admission = Admission::Refused(Reason::PermissionDenied, "may not push".into());
    let mut request = request(Latch::Together, &[Incoming]);
    decide(&mut request, &inputs);
    assert_eq!(ends(&request), [(Failed, Some(Reason::PermissionDenied))]);
    let mut group = committed(&[BackedUp]);
    assert_eq!(decide(&mut group, &inputs).launches, []);
    assert!(!group.is_finished());
}

#[test]
fn a_newer_request_ends_the_images_that_it_takes_and_no_committed_one() {
    let mut inputs = inputs(2);
    inputs.admission = Admission::Superseded(vec![0, 1], "superseded by ci/newer".into());
    let mut each = request(Latch::Independently, &[Latched, Incoming]);
    each.status.images[0].committed = true;
    decide(&mut each, &inputs);
    assert_eq!(
        ends(&each),
        [(Latched, None), (Failed, Some(Reason::Superseded))]
    );
    inputs.admission = Admission::Superseded(vec![1], "superseded by ci/newer".into());
    let mut each = request(Latch::Independently, &[Pending, Incoming]);
    decide(&mut each, &inputs);
    assert_eq!(
        ends(&each),
        [(Pending, None), (Failed, Some(Reason::Superseded))]
    );
}

#[test]
fn a_failure_in_a_group_holds_the_rest_back_and_names_the_float_that_failed() {
    let mut group = request(Latch::Together, &[Pending, Incoming, BackedUp, Posted]);
    group.status.images[0].end(Failed, Reason::QuotaExceeded, "");
    let decision = decide(&mut group, &running(4, 1, Step::BackUp));
    assert_eq!((decision.launches, decision.drops), (vec![], vec![1]));
    let held = (Failed, Some(Reason::Held));
    assert_eq!(
        ends(&group),
        [
            (Failed, Some(Reason::QuotaExceeded)),
            (Incoming, None),
            held,
            (Posted, None)
        ]
    );
    assert!(
        group.status.images[2]
            .message
            .contains(&float(0).to_string())
    );
    super::decide(&mut group, &inputs(4));
    assert_eq!(ends(&group)[1], held);
    assert_eq!(group.phase(), Failed);
}

#[test]
fn after_a_failure_in_a_committed_group_a_latch_that_may_have_been_sent_is_only_looked_for() {
    let mut group = committed(&[Failed, BackedUp, Latched, Pending, BackedUp]);
    group.status.images[0].end(Failed, Reason::FloatMoved, "");
    group.status.images[3].source = Some(crate::machine::samples::image(BackedUp).source.unwrap());
    let decision = decide(&mut group, &running(5, 4, Step::Latch));
    assert_eq!(steps(&decision), [(1, Step::Verify), (2, Step::Post)]);
    assert_eq!(decision.drops, [4]);
    assert_eq!(ends(&group)[3], (Failed, Some(Reason::Held)));
    let mut verifying = inputs(5);
    verifying.contexts[1].running = Some(Step::Verify);
    verifying.contexts[2].running = Some(Step::Post);
    let next = super::decide(&mut group, &verifying);
    assert_eq!(
        (steps(&next), next.drops),
        (vec![(4, Step::Verify)], vec![]),
        "these run on"
    );
}

#[test]
fn independently_a_failure_holds_nothing_back() {
    let mut each = request(Latch::Independently, &[Failed, Incoming]);
    each.status.images[0].end(Failed, Reason::QuotaExceeded, "");
    assert_eq!(steps(&decide(&mut each, &inputs(2))), [(1, Step::BackUp)]);
}

#[test]
fn an_image_whose_attempts_are_used_up_ends_with_its_last_reason_or_as_cut_off() {
    let mut each = request(Latch::Independently, &[Pending, Pending, Pending, Pending]);
    for image in &mut each.status.images {
        image.attempts = 5;
    }
    each.status.images[0].reason = Some(Reason::DigestMismatch);
    each.status.images[0].message = "bytes differ".into();
    each.status.images[1].reason = Some(Reason::RateLimited);
    let decision = decide(&mut each, &running(4, 3, Step::Resolve));
    assert_eq!(decision.launches, []);
    let cut_off = (Failed, Some(Reason::RegistryError));
    assert_eq!(
        ends(&each),
        [
            (Failed, Some(Reason::DigestMismatch)),
            cut_off,
            cut_off,
            (Pending, None)
        ]
    );
    assert_eq!(each.status.images[0].message, "bytes differ");
    assert!(each.status.images[2].message.contains("cut off 5 times"));
}

#[test]
fn a_step_that_waits_says_so_and_takes_it_back_when_it_goes_on() {
    let mut request = request(Latch::Together, &[Pending]);
    request.status.images[0].attempts = 1;
    let mut inputs = running(1, 0, Step::Resolve);
    let message = "429".to_owned();
    inputs.contexts[0].waiting = Some(Waiting {
        reason: Reason::RateLimited,
        message,
        until: at(8),
    });
    let waiting = decide(&mut request, &inputs);
    let message = format!("429; next try {}", at(8));
    assert_eq!(waiting.waiting, Some((Reason::RateLimited, message)));
    assert_eq!(request.status.images[0].next_attempt, Some(at(8)));
    inputs.contexts[0].waiting = None;
    assert_eq!(decide(&mut request, &inputs).waiting, None);
    assert_eq!(
        (
            request.status.images[0].reason,
            request.status.images[0].attempts
        ),
        (None, 1)
    );
}

#[test]
fn one_wait_computed_again_from_a_running_clock_is_no_news() {
    let mut request = request(Latch::Together, &[Pending]);
    let mut inputs = running(1, 0, Step::Resolve);
    let waiting = |until| {
        Some(Waiting {
            reason: Reason::RateLimited,
            message: "429".into(),
            until,
        })
    };
    inputs.contexts[0].waiting = waiting(at(8));
    decide(&mut request, &inputs);
    let before = request.clone();
    for same in [at(9), at(7), at(8)] {
        inputs.contexts[0].waiting = waiting(same);
        decide(&mut request, &inputs);
        assert_eq!(request, before);
    }
    inputs.contexts[0].waiting = waiting(at(10));
    decide(&mut request, &inputs);
    assert_eq!(request.status.images[0].next_attempt, Some(at(10)));
}

#[test]
fn a_finished_request_is_given_its_time_and_left_alone() {
    let mut done = request(Latch::Together, &[Posted, Failed]);
    assert_eq!(decide(&mut done, &inputs(2)), Decision::default());
    assert_eq!(done.status.completed, Some(now()));
    let before = done.clone();
    let mut later = inputs(2);
    later.now = at(90_000);
    decide(&mut done, &later);
    assert_eq!(done, before);
}

#[test]
fn a_plan_only_resolves() {
    let mut planning = request(Latch::Together, &[Pending]);
    planning.spec.mode = Mode::Plan;
    assert_eq!(
        steps(&decide(&mut planning, &inputs(1))),
        [(0, Step::Resolve)]
    );
    planning.status.images[0].end(Phase::Planned, Reason::Planned, "");
    assert_eq!(decide(&mut planning, &inputs(1)).launches, []);
    assert_eq!(planning.phase(), Phase::Planned);
}
