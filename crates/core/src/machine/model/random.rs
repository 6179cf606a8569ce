//! Ways at random through the model's world: longer ones, with more faults at once, than can be searched. Every promise is checked in
//! each state on the way; then what is left runs to its end without a further fault.

use proptest::prelude::*;

use super::promises::Promise;
use super::search::{Model, fingerprint};
use super::setup::{Faults, Scenario, Setup};
use super::world::{Action, World};
use super::{
    BACK, EACH, FAILS, FIRST, GROUP_FAILS_THEN_NEXT, GROUPS, HELD, IN_LINE, LENIENT, MIXED, NEXT,
    OVERLAP, PRE, REPLACES, SEATED, T, UNDO_LATE, scenario, wish,
};

const THREE: Scenario = scenario(
    "a group, then each of its floats",
    &[
        wish(&[(0, "A0"), (1, "A1")], T),
        wish(&[(1, "B1")], T),
        wish(&[(0, "C0")], T),
    ],
);
const PRE_THEN_NEXT: Scenario = Scenario {
    lenient: true,
    ..scenario(
        "A, then __pre, then B",
        &[
            wish(&[(0, "A0")], T),
            wish(&[(0, "pre")], T),
            wish(&[(0, "B0")], T),
        ],
    )
};
const SCENARIOS: [Scenario; 18] = [
    FIRST,
    NEXT,
    LENIENT,
    BACK,
    PRE,
    HELD,
    GROUPS,
    OVERLAP,
    EACH,
    MIXED,
    SEATED,
    IN_LINE,
    FAILS,
    GROUP_FAILS_THEN_NEXT,
    REPLACES,
    UNDO_LATE,
    THREE,
    PRE_THEN_NEXT,
];

/// What must not show in the tags at the end.
const HEALED: [&str; 5] = ["crash", "lost", "late", "expire", "pause"];
/// What else may come, but somebody else's writes.
const WILD: [&str; 24] = [
    "replace",
    "handover",
    "unknown",
    "stale",
    "untyped",
    "unsent",
    "missing",
    "immutable",
    "refused",
    "denied",
    "suspend",
    "cancel",
    "delete",
    "deadline",
    "overrun",
    "sources",
    "slow",
    "freeze",
    "split",
    "silent",
    "older",
    "lost",
    "late",
    "crash",
];
const FOREIGN: [&str; 3] = ["moved", "back", "removed"];

/// More steps than any of these worlds takes to its end.
const STEPS_MAX: usize = 5_000;

/// Each of these kinds up to twice.
fn some(kinds: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(kinds), 0..6)
}

fn faults(kinds: &[&str]) -> Faults {
    let mut faults = Faults::NONE;
    for kind in kinds {
        *faults.count(kind).expect("a kind of fault") += 1;
    }
    faults
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    prop::sample::select(&SCENARIOS[..])
}

fn choices() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(any::<u16>(), 0..250)
}

fn walk(mut setup: Setup, choices: &[u16]) -> World {
    setup.repeats = true;
    setup.faults.awake = 1;
    let mut world = World::new(setup);
    for &choice in choices {
        let (faults, steps): (Vec<_>, Vec<_>) =
            (world.actions().into_iter()).partition(|action| World::is_fault(*action));
        // One in eight is a fault, while there are any left.
        let of = if choice % 8 == 0 { &faults } else { &steps };
        let at = usize::from(choice / 8) % of.len().max(1);
        if let Some(action) = of.get(at) {
            world = world.after(*action);
            check(&world, false);
        }
    }
    for turn in 0..STEPS_MAX {
        let Some(after) = step(&world, turn) else {
            check(&world, true);
            return world;
        };
        world = after;
        check(&world, false);
    }
    panic!("it does not end: {:#?}", world.objects);
}

/// The world after one of the steps that change it, another one each turn.
fn step(world: &World, turn: usize) -> Option<World> {
    let actions = world.actions().into_iter();
    let mut actions: Vec<Action> = actions.filter(|a| !World::is_fault(*a)).collect();
    let first = turn % actions.len().max(1);
    actions.rotate_left(first);
    let here = fingerprint(world);
    let mut after = actions.into_iter().map(|action| world.after(action));
    after.find(|after| fingerprint(after) != here)
}

fn check(world: &World, last: bool) {
    if let Some(broken) = world.broken(last) {
        let promise: Promise = broken.promise;
        panic!("{promise:?}: {}\n{:#?}", broken.what, world.objects);
    }
}

/// So many cases, or as many as `PROPTEST_CASES` asks for.
fn cases(cases: u32) -> ProptestConfig {
    let asked = ProptestConfig::default();
    let cases = std::env::var_os("PROPTEST_CASES").map_or(cases, |_| asked.cases);
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 4_000,
        ..asked
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn crashes_and_lost_answers_do_not_show_in_the_tags_at_the_end(
        scenario in scenarios(),
        kinds in some(&HEALED),
        choices in choices(),
    ) {
        let world = walk(super::setup(scenario, faults(&kinds), None), &choices);
        prop_assert!(!world.unseen());
    }

    #[test]
    fn whatever_goes_wrong_but_others_writes_the_promises_hold_and_every_request_ends(
        scenario in scenarios(),
        healed in some(&HEALED),
        wild in some(&WILD),
        choices in choices(),
    ) {
        let kinds = [healed, wild].concat();
        let world = walk(super::setup(scenario, faults(&kinds), None), &choices);
        prop_assert!(!world.unseen());
    }

    #[test]
    fn with_somebody_else_writing_the_floats_the_promises_hold_and_every_request_ends(
        scenario in scenarios(),
        healed in some(&HEALED),
        wild in some(&WILD),
        foreign in some(&FOREIGN),
        choices in choices(),
    ) {
        let kinds = [healed, wild, foreign].concat();
        walk(super::setup(scenario, faults(&kinds), None), &choices);
    }
}
