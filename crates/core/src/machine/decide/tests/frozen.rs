//! A float that the operator keeps where it is.

use super::*;
use crate::machine::Freeze;

const WHY: &str = "frozen until 2026-12-24T18:00:00Z: release week";

fn freeze(request: &mut Request, index: usize, unreadable: bool) {
    request.spec.images[index].freeze = Some(Freeze {
        message: WHY.into(),
        unreadable,
    });
}

fn thaw(request: &mut Request) {
    for image in &mut request.spec.images {
        image.freeze = None;
    }
}

#[test]
fn a_group_with_one_frozen_float_waits_as_a_whole_and_its_deadline_runs_and_names_the_freeze() {
    let mut group = request(Latch::Together, &[Incoming, BackedUp]);
    freeze(&mut group, 1, false);
    let held = decide(&mut group, &running(2, 0, Step::BackUp));
    assert_eq!((held.drops, held.launches), (vec![0], vec![]));
    assert_eq!(held.waiting, Some((Reason::FloatFrozen, WHY.into())));
    assert_eq!(group.status.deadline, Some(at(7200)));
    let frozen = &group.status.images[1];
    assert_eq!(
        (frozen.reason, &*frozen.message),
        (Some(Reason::FloatFrozen), WHY)
    );
    assert_eq!(frozen.pinned, None, "others may have its float");
    assert!(group.wanted_floats().is_empty());
    let mut late = inputs(2);
    late.now = at(7200);
    let mut ended = group.clone();
    decide(&mut ended, &late);
    for image in &ended.status.images {
        assert_eq!(image.reason, Some(Reason::DeadlineExceeded));
        assert!(image.message.contains(WHY), "{}", image.message);
    }
    thaw(&mut group);
    assert_eq!(steps(&decide(&mut group, &inputs(2))), [(0, Step::BackUp)]);
    assert_eq!(group.status.images[1].reason, None);
}

#[test]
fn independently_a_freeze_holds_its_own_image_alone() {
    let mut each = request(Latch::Independently, &[Incoming, BackedUp]);
    freeze(&mut each, 0, false);
    let decision = decide(&mut each, &inputs(2));
    assert_eq!(steps(&decision), [(1, Step::Latch)]);
    assert_eq!((each.is_committed(0), each.is_committed(1)), (false, true));
    assert_eq!(each.wanted_floats(), [each.spec.images[1].float.clone()]);
    assert_eq!(each.status.images[0].reason, Some(Reason::FloatFrozen));
}

#[test]
fn what_is_committed_runs_to_its_end_whatever_is_frozen() {
    let mut group = committed(&[BackedUp, Latched]);
    freeze(&mut group, 0, false);
    freeze(&mut group, 1, true);
    let decision = decide(&mut group, &inputs(2));
    assert_eq!(steps(&decision), [(0, Step::Latch), (1, Step::Post)]);
    assert_eq!((decision.waiting, decision.drops), (None, vec![]));
}

#[test]
fn where_a_freeze_cannot_be_read_all_goes_on_but_the_commit() {
    let mut group = request(Latch::Together, &[Incoming]);
    freeze(&mut group, 0, true);
    let decision = decide(&mut group, &inputs(1));
    assert_eq!(
        (steps(&decision), decision.waiting),
        (vec![(0, Step::BackUp)], None)
    );
    let mut group = request(Latch::Together, &[BackedUp]);
    freeze(&mut group, 0, true);
    let held = decide(&mut group, &inputs(1));
    assert_eq!(held.launches, []);
    assert_eq!(held.waiting, Some((Reason::FloatFrozen, WHY.into())));
    assert!(!group.status.committed);
    // Its pins are looked at before it is let move.
    thaw(&mut group);
    assert_eq!(steps(&decide(&mut group, &inputs(1))), [(0, Step::Confirm)]);
    assert!(!group.status.committed);
}
