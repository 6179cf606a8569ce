//! The machine as a table: what every outcome does to an image in every phase, and which step leads on from where.
//!
//! The table has one row for each kind of outcome, with one cell for each phase. A variant that is added anywhere does not compile
//! here, or leaves a pair without its cell, until somebody has said what it does.
#![allow(clippy::unwrap_used)]

use jiff::Timestamp;

use super::decide::{Standing, next_step};
use super::samples::image_spec;
use super::{
    Context, Effect, Fault, FaultClass, Foreign, Image, ImageSpec, Latch, Outcome, Phase, Pin,
    Reason, Request, SourceFacts, Status, Step, advance,
};
use super::{Copying, FloatTags};
use crate::image::{Digest, Float};

/// What becomes of the attempt that the launch used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Kept,
    TakenBack,
}
use Attempt::{Kept, TakenBack};

/// What becomes of the reason the image had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// None: nothing is wrong.
    Cleared,
    /// This one.
    Is(Reason),
}
use Why::{Cleared, Is};

/// What an outcome does; none: it cannot follow from that phase, and changes nothing.
type Cell = Option<(Phase, Attempt, Why)>;

use Phase::{
    BackedUp, Cancelled, Failed, Incoming, Latched, Pending, Planned, Posted, Referencing,
};

/// One sample of every kind of outcome. The match has no wildcard: a new variant belongs into both lists.
fn kinds() -> Vec<(&'static str, Outcome)> {
    let fault = |class| {
        let (reason, message) = (Reason::RateLimited, "busy".into());
        Outcome::Faulted(Fault {
            reason,
            message,
            class,
        })
    };
    let all = vec![
        Outcome::Resolved {
            source: digest("new"),
            media_type: None,
            float: Some(digest("old")),
        },
        Outcome::Forecast(Box::new(crate::dry_run::forecast(
            &image_spec(0),
            digest("new"),
            None,
            FloatTags::default(),
            Copying::default(),
        ))),
        Outcome::Staged {
            media_type: "application/json".into(),
            bytes: 1,
            notices: Vec::new(),
        },
        Outcome::Unpinned {
            digest: digest("unpinned"),
            notices: Vec::new(),
        },
        Outcome::StampTaken {
            tag: float().prune(crate::image::Stamp::at(Timestamp::UNIX_EPOCH)),
        },
        Outcome::BackedUp {
            notices: Vec::new(),
        },
        Outcome::DisplacedGone { float: None },
        Outcome::Latched,
        Outcome::NotLatched,
        Outcome::Moved {
            to: digest("moved"),
        },
        Outcome::Unmet {
            float: Some(digest("moved")),
        },
        Outcome::Confirmed {
            float: Some(digest("old")),
            staged: true,
            pinned: true,
        },
        Outcome::StagedGone(None),
        Outcome::Posted {
            foreign: None,
            kept: None,
        },
        Outcome::RolledBack,
        Outcome::NothingToRollBack,
        fault(FaultClass::Attempt),
        fault(FaultClass::Terminal),
        fault(FaultClass::Wait { seconds: 1 }),
        Outcome::Dropped,
    ];
    all.into_iter()
        .map(|outcome| (kind(&outcome), outcome))
        .collect()
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Resolved {
            source: _,
            media_type: _,
            float: _,
        } => "Resolved",
        Outcome::Forecast(_) => "Forecast",
        Outcome::Staged {
            media_type: _,
            bytes: _,
            notices: _,
        } => "Staged",
        Outcome::Unpinned {
            digest: _,
            notices: _,
        } => "Unpinned",
        Outcome::StampTaken { tag: _ } => "StampTaken",
        Outcome::BackedUp { notices: _ } => "BackedUp",
        Outcome::DisplacedGone { float: _ } => "DisplacedGone",
        Outcome::Latched => "Latched",
        Outcome::NotLatched => "NotLatched",
        Outcome::Moved { to: _ } => "Moved",
        Outcome::Unmet { float: _ } => "Unmet",
        Outcome::Confirmed {
            float: _,
            staged: _,
            pinned: _,
        } => "Confirmed",
        Outcome::StagedGone(_) => "StagedGone",
        Outcome::Posted {
            foreign: None | Some(Foreign::To(_) | Foreign::Gone),
            kept: _,
        } => "Posted",
        Outcome::RolledBack => "RolledBack",
        Outcome::NothingToRollBack => "NothingToRollBack",
        Outcome::Faulted(Fault {
            reason: _,
            message: _,
            class,
        }) => match class {
            FaultClass::Attempt => "Faulted, attempt",
            FaultClass::Terminal => "Faulted, terminal",
            FaultClass::Wait { seconds: _ } => "Faulted, wait",
        },
        Outcome::Dropped => "Dropped",
    }
}

const KINDS: [&str; 20] = [
    "Resolved",
    "Forecast",
    "Staged",
    "Unpinned",
    "StampTaken",
    "BackedUp",
    "DisplacedGone",
    "Latched",
    "NotLatched",
    "Moved",
    "Unmet",
    "Confirmed",
    "StagedGone",
    "Posted",
    "RolledBack",
    "NothingToRollBack",
    "Faulted, attempt",
    "Faulted, terminal",
    "Faulted, wait",
    "Dropped",
];

/// The unfinished phases: the columns of the table.
const OPEN: [Phase; 4] = [Pending, Incoming, BackedUp, Latched];

fn is_open(phase: Phase) -> bool {
    match phase {
        Pending | Incoming | BackedUp | Latched => true,
        Posted | Planned | Failed | Cancelled | Referencing => false,
    }
}

/// What each kind of outcome does in each unfinished phase; one that has finished is changed by nothing.
#[rustfmt::skip]
fn table() -> Vec<(&'static str, [Cell; 4])> {
    let same = |attempt, why| OPEN.map(|phase| Some((phase, attempt, why)));
    let end = |reason| OPEN.map(|_| Some((Failed, Kept, Is(reason))));
    vec![
        //                   Pending                                Incoming                                    BackedUp                                    Latched
        ("Resolved",      [Some((Pending, TakenBack, Cleared)),  None,                                       None,                                       None]),
        // The end of a plan, and none of what promotes.
        ("Forecast",      [None,                                 None,                                       None,                                       None]),
        ("Staged",        [Some((Incoming, TakenBack, Cleared)), None,                                       None,                                       None]),
        ("Unpinned",      [Some((Pending, TakenBack, Cleared)),  None,                                       None,                                       Some((Latched, TakenBack, Cleared))]),
        ("StampTaken",    [Some((Pending, TakenBack, Cleared)),  Some((Incoming, TakenBack, Cleared)),       None,                                       Some((Latched, TakenBack, Cleared))]),
        ("BackedUp",      [None,                                 Some((BackedUp, TakenBack, Cleared)),       None,                                       None]),
        ("DisplacedGone", [None,                                 Some((BackedUp, TakenBack, Cleared)),       None,                                       None]),
        ("Latched",       [None,                                 None,                                       Some((Latched, TakenBack, Cleared)),        None]),
        ("NotLatched",    [None,                                 None,                                       Some((Failed, TakenBack, Is(Reason::Held))), None]),
        ("Moved",         [None,                                 None,                                       Some((Incoming, Kept, Is(Reason::FloatMoved))), None]),
        ("Unmet",         [None,                                 None,                                       Some((Failed, TakenBack, Is(Reason::PreconditionFailed))), None]),
        ("Confirmed",     [None,                                 None,                                       Some((BackedUp, TakenBack, Cleared)),       None]),
        ("StagedGone",    [None,                                 None,                                       Some((Pending, Kept, Is(Reason::RegistryError))), None]),
        ("Posted",        [None,                                 None,                                       None,                                       Some((Posted, TakenBack, Is(Reason::Promoted)))]),
        // A float is taken back only once its image has ended.
        ("RolledBack",    [None,                                 None,                                       None,                                       None]),
        ("NothingToRollBack",          [None,                                 None,                                       None,                                       None]),
        ("Faulted, attempt",  same(Kept, Is(Reason::RateLimited))),
        ("Faulted, terminal", end(Reason::RateLimited)),
        ("Faulted, wait",     same(TakenBack, Is(Reason::RateLimited))),
        ("Dropped",           same(TakenBack, Cleared)),
    ]
}

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn float() -> Float {
    "quay.io/openshift/ci:ocp_4.21_cli".parse().unwrap()
}

/// A committed request of one image in this phase, launched for the second time.
fn request(phase: Phase) -> Request {
    let spec = ImageSpec {
        source: format!("registry.ci/ci/src@{}", digest("new"))
            .parse()
            .unwrap(),
        float: float(),
        replaces: None,
        freeze: None,
        remove_incoming: false,
    };
    let pin = Pin {
        digest: digest("old"),
        tag: float().prune(crate::image::Stamp::at(now())),
    };
    let image = Image {
        phase,
        source: Some(SourceFacts {
            digest: digest("new"),
            media_type: None,
        }),
        displaced: if phase == Pending {
            Vec::new()
        } else {
            vec![pin]
        },
        attempts: 2,
        ..Image::default()
    };
    let status = Status {
        committed: true,
        images: vec![image],
        ..Status::default()
    };
    let spec = super::samples::spec(vec![spec], Latch::Together);
    Request { spec, status }
}

fn now() -> Timestamp {
    Timestamp::from_second(1_770_000_000).unwrap()
}

#[test]
fn the_table_has_every_outcome_and_every_phase_once() {
    assert_eq!(
        kinds().iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
        KINDS
    );
    assert_eq!(
        table().iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
        KINDS
    );
    let open: Vec<_> = Phase::ALL
        .into_iter()
        .filter(|phase| is_open(*phase))
        .collect();
    assert_eq!(open, OPEN);
    let done = Phase::ALL
        .into_iter()
        .filter(|phase| phase.has_done_with_floats())
        .count();
    assert_eq!(open.len() + done, Phase::ALL.len());
    assert!(OPEN.iter().all(|phase| !phase.has_done_with_floats()));
}

#[test]
fn every_outcome_does_in_every_phase_what_the_table_says() {
    let context = Context {
        now: now(),
        newest_stamp: None,
        jitter: 0.5,
    };
    for ((kind, outcome), (_, cells)) in kinds().into_iter().zip(table()) {
        for phase in Phase::ALL {
            let before = request(phase);
            let mut after = before.clone();
            let effect = advance(&mut after, 0, outcome.clone(), &context);
            let column = OPEN.iter().position(|open| *open == phase);
            let Some((next, attempt, why)) = column.and_then(|column| cells[column]) else {
                assert_eq!(effect, Effect::Ignored, "{phase:?}, {kind}");
                assert_eq!(after, before, "{phase:?}, {kind}");
                continue;
            };
            assert!(matches!(effect, Effect::Recorded(_)), "{phase:?}, {kind}");
            let image = &after.status.images[0];
            let attempts = if attempt == Kept { 2 } else { 1 };
            let reason = if let Is(reason) = why {
                Some(reason)
            } else {
                None
            };
            let got = (image.phase, image.attempts, image.reason);
            assert_eq!(got, (next, attempts, reason), "{phase:?}, {kind}");
        }
    }
}

#[test]
fn an_outcome_for_an_image_that_is_not_there_changes_nothing() {
    let context = Context {
        now: now(),
        newest_stamp: None,
        jitter: 0.5,
    };
    let mut after = request(BackedUp);
    assert_eq!(
        advance(&mut after, 1, Outcome::Latched, &context),
        Effect::Ignored
    );
    assert_eq!(after, request(BackedUp));
}

/// Which step leads on, by phase and by (resolved, ready, pinned, committed, a float of the group failed).
fn expected(phase: Phase, bits: [bool; 5]) -> Option<Step> {
    let [resolved, ready, pinned, committed, failed] = bits;
    match (phase, pinned, committed, failed) {
        (Pending, _, _, _) if resolved => Some(Step::Stage),
        (Pending, _, _, _) => Some(Step::Resolve),
        (Incoming, _, _, _) => Some(Step::BackUp),
        (BackedUp, _, true, true) => Some(Step::Verify),
        (BackedUp, false, _, false) if ready => Some(Step::Confirm),
        (BackedUp, true, true, false) => Some(Step::Latch),
        (Latched, _, _, _) => Some(Step::Post),
        (BackedUp | Posted | Planned | Failed | Cancelled | Referencing, _, _, _) => None,
    }
}

#[test]
fn every_phase_leads_on_by_its_step_and_every_step_is_led_to() {
    let mut reached = Vec::new();
    for phase in Phase::ALL {
        for number in 0..32_u8 {
            let bits = [1, 2, 4, 8, 16].map(|bit| number & bit != 0);
            let [resolved, ready, pinned, committed, failed] = bits;
            let standing = Standing {
                resolved,
                ready,
                pinned,
                committed,
                failed,
            };
            let step = next_step(phase, standing);
            assert_eq!(step, expected(phase, bits), "{phase:?} {standing:?}");
            reached.extend(step);
        }
    }
    for step in Step::ALL.into_iter().filter(|s| *s != Step::RollBack) {
        assert!(reached.contains(&step), "nothing leads to {step:?}");
        // A step that is added stands in `Step::ALL` as well.
        match step {
            Step::Resolve
            | Step::Stage
            | Step::BackUp
            | Step::Confirm
            | Step::Latch
            | Step::Post
            | Step::Verify => {}
            // Not by a phase: by the failure of a group.
            Step::RollBack => unreachable!(),
        }
    }
}

#[test]
fn names_of_phases_are_read_back() {
    for phase in Phase::ALL {
        assert_eq!(Phase::parse(phase.as_str()), Some(phase));
    }
    assert_eq!(Phase::parse("Levitating"), None);
}
