//! Each sentence about what an outcome changes that the table of `machine::table` does not show.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::machine::samples::{
    at, broken, digest, fault, float, image_spec, now, pin, prune, request, rescued,
};
use crate::machine::{Copying, FloatTags, Latch, Replaces};
use Phase::{BackedUp, Failed, Incoming, Latched, Pending, Planned, Posted};

fn context() -> Context {
    Context {
        now: now(),
        newest_stamp: None,
        jitter: 1.0,
    }
}

/// A committed request of one image in this phase, launched once.
fn launched(phase: Phase) -> Request {
    let mut request = request(Latch::Together, &[phase]);
    request.status.committed = true;
    request.status.images[0].attempts = 1;
    request
}

fn record(request: &mut Request, outcome: Outcome) -> Vec<Notice> {
    match advance(request, 0, outcome, &context()) {
        Effect::Recorded(notices) => notices,
        Effect::Ignored => panic!("ignored in {:?}", request.status.images[0].phase),
    }
}

fn resolved(float: Option<&str>) -> Outcome {
    let float = float.map(digest);
    Outcome::Resolved {
        source: digest("new"),
        media_type: None,
        float,
    }
}

#[test]
fn resolve_records_the_source_and_the_first_displaced_digest() {
    let mut request = launched(Pending);
    record(&mut request, resolved(Some("old")));
    let image = &request.status.images[0];
    assert_eq!(image.source.as_ref().unwrap().digest, digest("new"));
    assert_eq!(
        (image.phase, &image.displaced),
        (Pending, &vec![pin("old", 0)])
    );
    assert!(!image.unchanged);
}

#[test]
fn a_first_promotion_displaces_nothing() {
    let mut request = launched(Pending);
    record(&mut request, resolved(None));
    let image = &request.status.images[0];
    assert_eq!(
        (image.phase, image.displaced.len(), image.unchanged),
        (Pending, 0, false)
    );
}

#[test]
fn an_unchanged_float_is_posted_at_once() {
    let mut request = launched(Pending);
    record(&mut request, resolved(Some("new")));
    let image = &request.status.images[0];
    assert_eq!(
        (image.phase, image.reason),
        (Posted, Some(Reason::Unchanged))
    );
    assert!(image.unchanged && image.displaced.is_empty());
}

#[test]
fn a_plan_ends_as_planned_whatever_it_found() {
    for (found, unchanged) in [(None, false), (Some("old"), false), (Some("new"), true)] {
        let mut request = launched(Pending);
        request.spec.mode = Mode::Plan;
        record(&mut request, resolved(found));
        let image = &request.status.images[0];
        assert_eq!(
            (image.phase, image.reason, image.unchanged),
            (Planned, Some(Reason::Planned), unchanged)
        );
    }
}

#[test]
fn what_a_plan_foresees_is_its_message_and_none_of_what_promotes() {
    let held = |float: Option<&str>| FloatTags {
        float: float.map(digest),
        ..FloatTags::default()
    };
    let forecast_of = |found| {
        let copying = Copying::default();
        let forecast = crate::dry_run::forecast(
            &image_spec(0),
            digest("new"),
            Some("type".into()),
            held(found),
            copying,
        );
        Outcome::Forecast(Box::new(forecast))
    };
    for (found, unchanged, would_displace) in [
        (None, false, None),
        (Some("old"), false, Some(digest("old"))),
        (Some("new"), true, None),
    ] {
        let mut request = launched(Pending);
        let ignored = advance(&mut request, 0, forecast_of(found), &context());
        assert_eq!((ignored, &request), (Effect::Ignored, &launched(Pending)));
        request.spec.mode = Mode::Plan;
        record(&mut request, forecast_of(found));
        let image = &request.status.images[0];
        assert_eq!(
            (
                image.phase,
                image.reason,
                image.unchanged,
                image.would_displace,
                image.attempts
            ),
            (Planned, Some(Reason::Planned), unchanged, would_displace, 0)
        );
        // No tag is named that is never written.
        assert_eq!(image.displaced, []);
        let source = image.source.as_ref().unwrap();
        assert_eq!(
            (source.digest, source.media_type.as_deref()),
            (digest("new"), Some("type"))
        );
        let Outcome::Forecast(forecast) = forecast_of(found) else {
            unreachable!()
        };
        assert_eq!(image.message, forecast.to_string());
    }
}

#[test]
fn staging_adds_its_bytes_and_completes_the_media_type_but_never_changes_the_source() {
    let mut request = launched(Pending);
    record(&mut request, resolved(None));
    for media_type in ["first", "second"] {
        request.status.images[0].phase = Pending;
        record(
            &mut request,
            Outcome::Staged {
                media_type: media_type.into(),
                bytes: 40,
                notices: Vec::new(),
            },
        );
    }
    let image = &request.status.images[0];
    let source = image.source.as_ref().unwrap();
    assert_eq!(
        (source.digest, source.media_type.as_deref()),
        (digest("new"), Some("first"))
    );
    assert_eq!((image.bytes, image.phase), (80, Incoming));
}

#[test]
fn that_tags_expire_is_recorded_and_told_of_every_float() {
    let mut request = launched(Pending);
    let notice = |reason, message: &str| Notice {
        reason,
        message: message.into(),
    };
    let copied = notice(Reason::ReferrersFailed, "one was not copied");
    let mut told = Vec::new();
    for expires in ["first", "second"] {
        request.status.images[0].phase = Pending;
        let notices = vec![copied.clone(), notice(Reason::Expiring, expires)];
        told.push(record(
            &mut request,
            Outcome::Staged {
                media_type: "x".into(),
                bytes: 0,
                notices,
            },
        ));
    }
    let recorded = request.status.expiring.as_deref();
    assert_eq!(
        recorded,
        Some("first; second; build it without quay.expires-after")
    );
    let both =
        ["first", "second"].map(|expires| vec![copied.clone(), notice(Reason::Expiring, expires)]);
    assert_eq!(told, both);
}

#[test]
fn a_move_is_one_more_entry_back_to_incoming_and_keeps_its_attempt() {
    let mut request = launched(BackedUp);
    request.status.images[0].displaced = vec![pin("old", 0)];
    let notices = record(
        &mut request,
        Outcome::Moved {
            to: digest("foreign"),
        },
    );
    assert_eq!(notices[0].reason, Reason::FloatMoved);
    let image = &request.status.images[0];
    assert_eq!(image.displaced, [pin("old", 0), pin("foreign", 1)]);
    assert_eq!(
        (image.phase, image.attempts, image.next_attempt),
        (Incoming, 1, None)
    );
    assert!(request.status.committed);
}

#[test]
fn a_move_to_a_listed_digest_moves_its_entry_to_the_end_with_its_prune_tag() {
    let mut request = launched(BackedUp);
    request.status.images[0].displaced = vec![pin("old", 0), pin("foreign", 1)];
    record(&mut request, Outcome::Moved { to: digest("old") });
    assert_eq!(
        request.status.images[0].displaced,
        [pin("foreign", 1), pin("old", 0)]
    );
}

#[test]
fn a_move_to_a_rescued_digest_gives_it_the_name_of_what_a_float_showed() {
    let mut request = launched(BackedUp);
    let image = &mut request.status.images[0];
    (image.displaced, image.rescued) = (vec![pin("old", 0)], vec![rescued("rescued", 1)]);
    record(
        &mut request,
        Outcome::Moved {
            to: digest("rescued"),
        },
    );
    let image = &request.status.images[0];
    assert_eq!(image.displaced, [pin("old", 0), pin("rescued", 2)]);
    // It may have been written.
    assert_eq!(image.rescued, [rescued("rescued", 1)]);
}

#[test]
fn the_eighth_entry_ends_as_float_moved_at_once() {
    let mut request = launched(BackedUp);
    request.spec.attempts = 100;
    for entry in 0..7 {
        request.status.images[0]
            .displaced
            .push(pin(&format!("moved {entry}"), entry));
    }
    let mut seventh = request.clone();
    seventh.status.images[0].displaced.pop();
    record(
        &mut seventh,
        Outcome::Moved {
            to: digest("seventh"),
        },
    );
    assert_eq!(seventh.status.images[0].phase, Incoming);
    record(
        &mut request,
        Outcome::Moved {
            to: digest("eighth"),
        },
    );
    let image = &request.status.images[0];
    assert_eq!(
        (image.phase, image.reason),
        (Failed, Some(Reason::FloatMoved))
    );
    assert_eq!(image.displaced.len(), DISPLACED_MAX);
}

#[test]
fn moves_end_with_the_attempts() {
    let mut request = launched(BackedUp);
    request.status.images[0].attempts = 5;
    record(
        &mut request,
        Outcome::Moved {
            to: digest("foreign"),
        },
    );
    assert_eq!(request.status.images[0].reason, Some(Reason::FloatMoved));
    assert_eq!(request.status.images[0].phase, Failed);
}

#[test]
fn a_displaced_digest_that_is_gone_is_replaced_by_what_the_float_shows_now() {
    let mut request = launched(Incoming);
    request.status.images[0].displaced = vec![pin("old", 0)];
    record(
        &mut request,
        Outcome::DisplacedGone {
            float: Some(digest("foreign")),
        },
    );
    let image = &request.status.images[0];
    assert_eq!((image.phase, image.attempts), (Incoming, 1));
    assert_eq!(
        image.displaced,
        [pin("foreign", 1)],
        "nothing pins the old one"
    );
    record(
        &mut request,
        Outcome::DisplacedGone {
            float: Some(digest("foreign")),
        },
    );
    let image = &request.status.images[0];
    assert_eq!(image.displaced, [pin("foreign", 1)], "it came back");
}

/// Nothing is left to pin; but a latch that meets that digest again has to take it for a move, because nothing pins it.
#[test]
fn a_displaced_digest_that_is_gone_is_not_listed_once_there_is_nothing_to_pin() {
    for float in [None, Some(digest("new"))] {
        let mut request = launched(Incoming);
        request.status.images[0].displaced = vec![pin("older", 0), pin("old", 1)];
        record(&mut request, Outcome::DisplacedGone { float });
        let image = &request.status.images[0];
        assert_eq!((image.phase, image.attempts), (BackedUp, 0));
        assert_eq!(image.displaced, [pin("older", 0)]);
    }
}

#[test]
fn a_rescued_digest_gets_a_prune_tag_and_the_fourth_is_backup_failed() {
    let mut request = launched(Latched);
    request.status.images[0].displaced = vec![pin("old", 0)];
    for name in ["one", "two", "three"] {
        record(
            &mut request,
            Outcome::Unpinned {
                digest: digest(name),
                notices: Vec::new(),
            },
        );
    }
    record(
        &mut request,
        Outcome::Unpinned {
            digest: digest("two"),
            notices: Vec::new(),
        },
    );
    record(
        &mut request,
        Outcome::Unpinned {
            digest: digest("old"),
            notices: Vec::new(),
        },
    );
    let image = &request.status.images[0];
    assert_eq!(
        image.rescued,
        [rescued("one", 1), rescued("two", 2), rescued("three", 3)]
    );
    assert_eq!((image.phase, image.displaced.len()), (Latched, 1));
    record(
        &mut request,
        Outcome::Unpinned {
            digest: digest("four"),
            notices: Vec::new(),
        },
    );
    let image = &request.status.images[0];
    assert_eq!(
        (image.phase, image.reason),
        (Failed, Some(Reason::BackupFailed))
    );
    assert_eq!(image.rescued.len(), RESCUED_MAX);
}

#[test]
fn a_stamp_lies_above_every_known_one_and_not_in_the_past() {
    for (known, own, expected) in [
        (None, None, 0),
        (Some(7), None, 8),
        (Some(-50), None, 0),
        (Some(3), Some(9), 10),
    ] {
        let mut request = launched(BackedUp);
        request.status.images[0]
            .rescued
            .extend(own.map(|seconds| pin("rescued", seconds)));
        let newest_stamp = known.map(|seconds| Stamp::at(at(seconds)));
        let context = Context {
            newest_stamp,
            ..context()
        };
        advance(
            &mut request,
            0,
            Outcome::Moved {
                to: digest("foreign"),
            },
            &context,
        );
        assert_eq!(
            request.status.images[0].displaced,
            [pin("foreign", expected)]
        );
    }
}

#[test]
fn a_clash_takes_the_next_second_for_that_pin_alone() {
    let mut request = launched(Incoming);
    let image = &mut request.status.images[0];
    // The rescue as an earlier version named it.
    (image.displaced, image.rescued) = (vec![pin("old", 0)], vec![pin("rescued", 1)]);
    record(&mut request, Outcome::StampTaken { tag: prune(0) });
    let image = &request.status.images[0];
    assert_eq!(
        (&image.displaced, &image.rescued),
        (&vec![pin("old", 2)], &vec![pin("rescued", 1)])
    );
    assert_eq!((image.attempts, image.next_attempt), (0, None));
    record(&mut request, Outcome::StampTaken { tag: prune(1) });
    assert_eq!(request.status.images[0].rescued, [rescued("rescued", 3)]);
}

#[test]
fn staged_content_that_is_gone_is_staged_again_with_everything_kept_but_an_attempt() {
    let mut request = launched(BackedUp);
    request.status.images[0].displaced = vec![pin("old", 0)];
    request.status.images[0].committed = true;
    record(&mut request, Outcome::StagedGone(None));
    let image = &request.status.images[0];
    assert_eq!((image.phase, image.attempts), (Pending, 1));
    assert_eq!(image.source.as_ref().unwrap().digest, digest("new"));
    assert_eq!((image.displaced.len(), image.committed), (1, true));
    assert!(request.status.committed && !request.is_staged());
    request.status.images[0].attempts = 5;
    request.status.images[0].phase = BackedUp;
    record(&mut request, Outcome::StagedGone(None));
    assert_eq!(request.status.images[0].reason, Some(Reason::RegistryError));
    assert_eq!(request.status.images[0].phase, Failed);
}

#[test]
fn a_source_that_is_gone_is_staged_lost_once_committed() {
    for (committed, reason) in [(false, Reason::SourceGone), (true, Reason::StagedLost)] {
        let mut request = launched(Pending);
        request.status.committed = committed;
        record(
            &mut request,
            fault(Reason::SourceGone, FaultClass::Terminal),
        );
        assert_eq!(request.status.images[0].reason, Some(reason));
        assert_eq!(request.status.images[0].phase, Failed);
    }
}

#[test]
fn what_goes_wrong_while_backing_up_is_backup_failed() {
    for (phase, expected) in [
        (Incoming, Reason::BackupFailed),
        (BackedUp, Reason::ManifestRejected),
    ] {
        let mut request = launched(phase);
        record(
            &mut request,
            fault(Reason::ManifestRejected, FaultClass::Attempt),
        );
        assert_eq!(request.status.images[0].reason, Some(expected));
    }
}

#[test]
fn a_failed_launch_is_tried_again_with_exponential_backoff_until_the_limit() {
    let mut request = launched(Pending);
    for (attempts, seconds) in [(1, 2), (2, 4), (3, 8), (4, 16)] {
        request.status.images[0].attempts = attempts;
        record(
            &mut request,
            fault(Reason::DigestMismatch, FaultClass::Attempt),
        );
        let image = &request.status.images[0];
        assert_eq!(
            (image.attempts, image.next_attempt),
            (attempts, Some(at(seconds)))
        );
    }
    request.status.images[0].attempts = 5;
    record(
        &mut request,
        fault(Reason::DigestMismatch, FaultClass::Attempt),
    );
    let image = &request.status.images[0];
    assert_eq!(
        (image.phase, image.reason),
        (Failed, Some(Reason::DigestMismatch))
    );
    assert_eq!(
        (image.message.as_str(), image.next_attempt),
        ("as answered", None)
    );
}

#[test]
fn backoff_has_full_jitter_from_one_second_to_120() {
    for attempts in 0..100 {
        let spread = [0.0, 0.3, 0.7, 1.0, 7.0, f64::NAN].map(|jitter| backoff(attempts, jitter));
        assert!(
            spread.iter().all(|s| (1..=120).contains(s)),
            "{attempts}: {spread:?}"
        );
    }
    assert_eq!(
        [backoff(7, 0.0), backoff(7, 0.5), backoff(7, 1.0)],
        [1, 60, 120]
    );
}

#[test]
fn waiting_uses_no_attempt_however_often() {
    let mut request = launched(Pending);
    for _ in 0..100 {
        request.status.images[0].attempts = 5;
        record(
            &mut request,
            fault(Reason::RegistryUnavailable, FaultClass::Wait { seconds: 8 }),
        );
        let image = &request.status.images[0];
        assert_eq!(
            (image.phase, image.attempts, image.next_attempt),
            (Pending, 4, Some(at(8)))
        );
    }
}

#[test]
fn a_wait_beyond_the_end_of_time_is_a_wait_until_then() {
    let mut request = launched(Pending);
    record(
        &mut request,
        fault(Reason::RateLimited, FaultClass::Wait { seconds: i64::MAX }),
    );
    assert_eq!(
        request.status.images[0].next_attempt,
        Some(jiff::Timestamp::MAX)
    );
}

#[test]
fn a_float_that_somebody_moved_after_the_latch_is_posted_and_told() {
    for foreign in [Foreign::To(digest("foreign")), Foreign::Gone] {
        let mut request = launched(Latched);
        let notices = record(
            &mut request,
            Outcome::Posted {
                foreign: Some(foreign),
                kept: None,
            },
        );
        assert_eq!(
            notices.iter().map(|n| n.reason).collect::<Vec<_>>(),
            [Reason::FloatMoved]
        );
        let image = &request.status.images[0];
        assert_eq!(
            (image.phase, image.reason),
            (Posted, Some(Reason::Promoted))
        );
    }
}

#[test]
fn an_incoming_tag_that_could_not_be_removed_is_told_in_status_and_event() {
    let mut request = launched(Latched);
    let notices = record(
        &mut request,
        Outcome::Posted {
            foreign: None,
            kept: Some("the registry cannot".into()),
        },
    );
    let image = &request.status.images[0];
    assert_eq!(
        (image.phase, image.reason),
        (Posted, Some(Reason::Promoted))
    );
    let message = "f0_incoming was not removed: the registry cannot";
    assert_eq!(image.message, message);
    assert_eq!(
        notices,
        [Notice {
            reason: Reason::IncomingKept,
            message: message.into()
        }]
    );
}

#[test]
fn a_latch_that_was_not_sent_is_held_with_the_float_that_failed_named() {
    let mut group = request(Latch::Together, &[BackedUp, Failed]);
    group.status.committed = true;
    group.status.images[1].reason = Some(Reason::FloatMoved);
    record(&mut group, Outcome::NotLatched);
    let image = &group.status.images[0];
    assert_eq!((image.phase, image.reason), (Failed, Some(Reason::Held)));
    assert!(image.message.contains(&float(1).to_string()));
}

/// The look was sent while an earlier write of the float could land: it may have landed since.
#[test]
fn a_float_that_is_not_on_what_replaces_says_is_no_end_while_a_write_of_ours_may_land_there() {
    let mut request = launched(BackedUp);
    request.status.committed = true;
    request.spec.images[0].replaces = Some(Replaces::Nothing);
    request.status.images[0].late_until = Some(at(-1));
    let unmet = Outcome::Unmet {
        float: Some(digest("foreign")),
    };
    record(&mut request, unmet.clone());
    let image = &request.status.images[0];
    assert_eq!(
        (image.phase, image.pinned, image.next_attempt),
        (BackedUp, None, Some(at(-1)))
    );
    assert!(image.reason.is_some_and(Reason::is_waiting));
    request.status.images[0].late_until = None;
    record(&mut request, unmet);
    let image = &request.status.images[0];
    let ended = (image.phase, image.reason);
    assert_eq!(ended, (Failed, Some(Reason::PreconditionFailed)));
    assert!(
        image.message.contains("replaces says None"),
        "{}",
        image.message
    );
}

#[test]
fn a_look_decides_what_replaces_means_wherever_it_is_made() {
    let (old, new) = (digest("old"), digest("new"));
    let resolved = |float| Outcome::Resolved {
        source: new,
        media_type: None,
        float,
    };
    let confirmed = |float| Outcome::Confirmed {
        float,
        staged: true,
        pinned: true,
    };
    let gone = |float| Outcome::DisplacedGone { float };
    let failed = Some(Reason::PreconditionFailed);
    for (phase, replaces, outcome, expected) in [
        (
            Pending,
            Replaces::Digest(old),
            resolved(Some(old)),
            (Pending, None),
        ),
        (
            Pending,
            Replaces::Digest(old),
            resolved(None),
            (Failed, failed),
        ),
        (
            Pending,
            Replaces::Digest(old),
            resolved(Some(digest("other"))),
            (Failed, failed),
        ),
        (
            Pending,
            Replaces::Nothing,
            resolved(Some(old)),
            (Failed, failed),
        ),
        (Pending, Replaces::Nothing, resolved(None), (Pending, None)),
        (
            Pending,
            Replaces::Nothing,
            resolved(Some(new)),
            (Posted, Some(Reason::Unchanged)),
        ),
        (
            Incoming,
            Replaces::Digest(old),
            gone(None),
            (Failed, failed),
        ),
        (
            Incoming,
            Replaces::Digest(old),
            gone(Some(digest("other"))),
            (Failed, failed),
        ),
        (
            Incoming,
            Replaces::Digest(old),
            gone(Some(new)),
            (BackedUp, None),
        ),
        (
            BackedUp,
            Replaces::Nothing,
            confirmed(Some(old)),
            (Failed, failed),
        ),
        (
            BackedUp,
            Replaces::Nothing,
            confirmed(None),
            (BackedUp, None),
        ),
        (
            BackedUp,
            Replaces::Digest(old),
            confirmed(None),
            (Failed, failed),
        ),
        (
            BackedUp,
            Replaces::Digest(old),
            confirmed(Some(new)),
            (BackedUp, None),
        ),
    ] {
        let mut request = launched(phase);
        request.spec.images[0].replaces = Some(replaces);
        record(&mut request, outcome.clone());
        let image = &request.status.images[0];
        assert_eq!(
            (image.phase, image.reason),
            expected,
            "{replaces} {outcome:?}"
        );
        assert_eq!(image.attempts, 0, "{replaces} {outcome:?}");
    }
}

#[test]
fn what_an_undo_displaces_has_no_plain_prune_tag() {
    let mut request = launched(Pending);
    request.spec.undo = true;
    let resolved = Outcome::Resolved {
        source: digest("new"),
        media_type: None,
        float: Some(digest("bad")),
    };
    record(&mut request, resolved);
    let pins = &request.status.images[0].displaced;
    assert_eq!(pins[0].tag, broken(0));
    request.status.images[0].enter(Incoming);
    record(&mut request, Outcome::StampTaken { tag: broken(0) });
    assert_eq!(request.status.images[0].displaced[0].tag, broken(1));
}
