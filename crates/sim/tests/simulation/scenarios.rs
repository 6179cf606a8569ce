//! Directed scenarios: how each fault that the protocol once had at its edges shows, and that what was done about it holds.
//!
//! Where the repair can be taken out from outside (a time of zero, clocks that lie, a definition that names whoever asks), the same
//! scenario without it fails: that shows that it would. Each of the others failed with its repair taken out by hand.

use std::time::Duration;

use super::faults::{Act, Fault, Role};
use super::registries::USERS;
use super::scene::{Asked, Ran, Scene};
use super::world::Edit;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// All went well, and every fault has happened.
#[track_caller]
fn holds(ran: &Ran, ends: &[(&str, &str)]) {
    assert!(ran.wrong.is_empty(), "{}", told(ran));
    assert!(ran.left.is_empty(), "{}", told(ran));
    for (name, end) in ends {
        assert_eq!(
            ran.ends.get(*name).map(String::as_str),
            Some(*end),
            "{}",
            told(ran)
        );
    }
}

/// The monitors have seen this.
#[track_caller]
fn breaks(ran: &Ran, promise: &str) {
    assert!(
        ran.wrong.iter().any(|what| what.contains(promise)),
        "{}",
        told(ran)
    );
}

pub fn told(ran: &Ran) -> String {
    format!(
        "{:#?}\n{}\n{:?} {:?} {:?}",
        ran.wrong,
        ran.log.join("\n"),
        ran.left,
        ran.ends,
        ran.lasted
    )
}

/// Two requests for one float, the second soon after the first.
fn two() -> Vec<Asked> {
    vec![Asked::new(3, "r1", &[0]), Asked::new(4, "r2", &[0])]
}

const BOTH_POSTED: [(&str, &str); 2] = [("r1", "Posted Promoted"), ("r2", "Posted Promoted")];

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let asked = vec![Asked::new(3, "r1", &[0, 1]), Asked::new(4, "r2", &[0])];
    let scene = Scene::new(
        1,
        asked,
        vec![Fault::landed("save", 4, Act::Kill(seconds(1)))],
    );
    let (one, other) = (scene.run(), scene.run());
    holds(&one, &[]);
    assert_eq!(one.log, other.log);
    let next = Scene { seed: 2, ..scene }.run();
    assert_ne!(one.log, next.log);
}

/// P1: a tag write that was given up lands late. What is waited for is L.
#[test]
fn a_tag_write_that_lands_after_it_was_given_up_moves_no_float_back() {
    let late = vec![Fault::sent("put float", 1, Act::Late(seconds(25)))];
    let scene = Scene::new(3, two(), late);
    holds(&scene.run(), &BOTH_POSTED);
    let mut without = scene;
    for (_, options) in &mut without.places {
        options.late = Duration::ZERO;
    }
    breaks(&without.run(), "nothing lands late");
}

/// P2: two installations at one definition. What keeps them apart is the Lease that the definition names.
#[test]
fn a_second_installation_at_the_same_definition_does_not_lead() {
    let mut scene = Scene::new(3, two(), Vec::new());
    scene.places[1].1.home = "elsewhere".into();
    holds(&scene.run(), &BOTH_POSTED);
    scene.two_installations = true;
    breaks(&scene.run(), "one installation");
}

/// P3: a leader whose machine slept. What tells it are clocks that go on in a sleep.
#[test]
fn a_leader_whose_machine_slept_writes_no_tag_on_a_lease_that_ran_out() {
    let mut found = 0;
    for nth in 1..=8 {
        let slept = vec![Fault::landed("look", nth, Act::Sleep(seconds(40)))];
        let mut scene = Scene::new(3, two(), slept);
        holds(&scene.run(), &BOTH_POSTED);
        for (_, options) in &mut scene.places {
            options.sleepless_clocks = false;
        }
        let without = scene.run();
        found += u32::from(without.wrong.iter().any(|what| what.contains("one leader")));
    }
    assert!(found > 0);
}

/// P4: a request is deleted, and another one is at work on its float, when the answer to a save comes that was to launch a step.
#[test]
fn what_a_save_launches_is_not_launched_for_a_request_that_is_gone_meanwhile() {
    for nth in 1..=8 {
        let faults = vec![
            Fault::landed("save", nth, Act::Slow(seconds(1))),
            Fault::landed("save", nth, Act::Delete),
        ];
        holds(&Scene::new(3, two(), faults).run(), &[]);
    }
}

/// P5: a request that a newer version has taken on cannot be read by the leader that follows.
#[test]
fn a_committed_request_that_cannot_be_read_keeps_its_float_through_a_takeover() {
    let mut asked = vec![Asked::new(3, "r1", &[0]), Asked::new(30, "r2", &[0])];
    asked[0].edits = vec![
        (seconds(11), Edit::Newer(true)),
        (seconds(150), Edit::Newer(false)),
    ];
    let faults = vec![
        Fault::sent("put float", 1, Act::LoseRequest),
        Fault::sent("renew", 10, Act::Kill(seconds(1))),
    ];
    let ran = Scene::new(3, asked, faults).run();
    holds(&ran, &BOTH_POSTED);
}

/// P6: a registry is silent until 60 s after both asked whether they may push, and answers the newer one first.
#[test]
fn an_outage_lets_no_newer_request_end_an_older_group() {
    for lost in 2..=5 {
        let mut asked = vec![Asked::new(3, "r1", &[0, 1]), Asked::new(4, "r2", &[0])];
        asked[1].user = USERS[1];
        let mut faults = vec![Fault::landed("token", 1, Act::Slow(seconds(20)))];
        faults.extend((1..=lost).map(|nth| Fault::sent("token", nth, Act::LoseRequest)));
        let ends = [
            ("r1", "Posted Promoted Promoted"),
            ("r2", "Posted Promoted"),
        ];
        holds(&Scene::new(3, asked, faults).run(), &ends);
    }
}

/// P7: what only `_incoming` holds cannot be pinned at first.
#[test]
fn what_could_not_be_pinned_is_not_overwritten() {
    let faults = vec![
        Fault::landed("put incoming", 1, Act::Delete),
        Fault::sent("put prune", 1, Act::Refuse(400)),
    ];
    let ran = Scene::new(3, two(), faults).run();
    holds(&ran, &[("r2", "Posted Promoted")]);
}

/// The leader says that it follows a freeze while a save of a decision from before it is on its way.
#[test]
fn a_freeze_is_followed_once_no_save_on_its_way_can_let_a_float_move() {
    for nth in 2..=6 {
        let faults = vec![
            Fault::sent("save", nth, Act::Slow(seconds(5))),
            Fault::sent("save", nth, Act::FreezeFloat(seconds(60))),
        ];
        let ran = Scene::new(3, vec![Asked::new(3, "r1", &[0])], faults).run();
        holds(&ran, &[("r1", "Posted Promoted")]);
    }
}

/// Somebody else moves a new float while its promotion ends: what the image was staged on may be its last tag.
#[test]
fn what_was_staged_is_deleted_only_once_its_float_was_seen_to_hold_it() {
    for nth in 3..=7 {
        let mut asked = Asked::new(3, "r1", &[0]);
        asked.wants.removes_incoming = true;
        let theirs = vec![Fault::landed("look", nth, Act::Meddle(Role::Float, true))];
        let mut scene = Scene::new(3, vec![asked], theirs);
        scene.new = vec![0];
        holds(&scene.run(), &[("r1", "Posted Promoted")]);
    }
}
