//! Whole runs of the machine in a small world, with everything that can go wrong between any two requests.
//!
//! [`world`] has the promises, asserted at every event; the tests here choose worlds and events at random, let what is left run
//! to its end, and compare the ends. Read [`steps`](crate::steps) for what a step asks the registry, [`registry`] for how that answers.
#![allow(clippy::expect_used, clippy::panic)]

pub(super) mod registry;
mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{FaultClass, Latch, Reason};
use crate::image::{Digest, Stamp};
use world::{Case, Event, From, Wish, World, float};

fn from() -> impl Strategy<Value = From> {
    prop_oneof![6 => Just(From::New), 1 => Just(From::Old), 1 => Just(From::Pre)]
}

fn wish() -> impl Strategy<Value = Wish> {
    let floats = prop_oneof![
        Just(vec![0]),
        Just(vec![1]),
        Just(vec![0, 1]),
        Just(vec![1, 0])
    ];
    let latch = prop_oneof![Just(Latch::Together), Just(Latch::Independently)];
    let undecided = prop_oneof![5 => Just(0_i64), 1 => Just(20), 1 => Just(90)];
    (floats, prop::collection::vec(from(), 2), latch, undecided).prop_map(
        |(floats, from, latch, undecided)| Wish {
            images: floats.into_iter().zip(from).collect(),
            latch,
            undecided,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    (
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.3),
        prop::collection::vec(wish(), 1..=3),
    )
        .prop_map(|(exists, lenient, wishes)| Case {
            exists,
            lenient,
            wishes,
        })
}

/// What happens without mishaps.
fn quiet() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..3_usize).prop_map(Event::Reconcile),
        12 => (0..6_usize).prop_map(Event::Serve),
        1 => (1..12_i64).prop_map(Event::Tick),
    ]
}

/// Crashes, lost answers, late writes and pauses, which must not show in the end.
fn healed() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Crash),
        (0..6_usize).prop_map(Event::Lose),
        (0..6_usize).prop_map(Event::Late),
        Just(Event::Expire),
        (0..2_usize).prop_map(Event::Pause),
        Just(Event::Unpause),
    ]
}

/// Everything else.
fn wild() -> impl Strategy<Value = Event> {
    let class = prop_oneof![
        3 => Just(FaultClass::Attempt),
        1 => Just(FaultClass::Terminal),
        3 => (1..6_i64).prop_map(|seconds| FaultClass::Wait { seconds }),
    ];
    prop_oneof![
        3 => (0..6_usize, class).prop_map(|(index, class)| Event::Fault(index, class)),
        6 => (0..2_usize, 0..5_u8).prop_map(|(number, kind)| Event::Foreign(number, kind)),
        1 => (0..3_usize).prop_map(Event::Cancel),
        2 => (0..3_usize).prop_map(Event::Suspend),
        3 => (0..3_usize).prop_map(Event::Resume),
        1 => (0..3_usize).prop_map(Event::Delete),
        1 => Just(Event::Tick(70)),
        1 => Just(Event::Tick(7300)),
        1 => Just(Event::LoseSources),
    ]
}

fn run(case: &Case, events: &[Event]) -> World {
    let mut world = World::new(case);
    for &event in events {
        world.apply(event);
    }
    world.settle();
    world
}

/// The tags without the time in the names of prune tags: what two runs must agree on.
fn tags(world: &World) -> BTreeMap<(String, Option<Digest>), (Digest, usize)> {
    let mut tags = BTreeMap::new();
    for (tag, digest) in &world.registry.tags {
        let key = match Stamp::of(tag) {
            Some(_) => (tag.as_str()[14..].to_owned(), Some(*digest)),
            None => (tag.to_string(), None),
        };
        tags.entry(key).or_insert((*digest, 0)).1 += 1;
    }
    tags
}

/// Float by float, where nobody else writes: the last created that succeeded has its image there, unless a later one moved the
/// float and failed after that.
fn check_last_wins(world: &World) {
    for number in 0..2 {
        let float = float(number);
        let mut expected = None;
        for request in &world.requests {
            for (index, spec) in request.spec.images.iter().enumerate() {
                let image = &request.status.images[index];
                let source = image.source.as_ref().map(|source| source.digest);
                if spec.float == float && image.phase.is_posted() {
                    expected = Some(vec![source]);
                } else if let Some(sources) = &mut expected
                    && spec.float == float
                    && request.is_committed(index)
                {
                    sources.push(source);
                }
            }
        }
        let there = world.registry.look(float.tag());
        assert!(
            expected.is_none_or(|sources| sources.contains(&there)),
            "{float}: {there:?}"
        );
    }
}

/// In a group that ended, either every float moved, or those that did not say why.
fn check_groups(world: &World) {
    for request in world.requests.iter().filter(|r| r.is_finished()) {
        let images = &request.status.images;
        let held = images
            .iter()
            .filter(|i| i.reason.is_some_and(Reason::is_held))
            .count();
        assert!(
            held == 0 || request.failed_float().is_some(),
            "{request:#?}"
        );
        assert!(
            request.status.completed.is_some()
                || images.iter().any(|i| i.reason == Some(Reason::Superseded))
        );
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
        max_global_rejects: 1 << 20,
        ..asked
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn crashes_and_lost_answers_do_not_show_in_the_tags_at_the_end(
        mut case in case(),
        events in prop::collection::vec(prop_oneof![30 => quiet(), 1 => healed()], 0..150),
    ) {
        for wish in &mut case.wishes {
            wish.undecided = 0;
        }
        let mishaps = events.iter().filter(|e| matches!(e, Event::Crash | Event::Expire)).count();
        prop_assume!(mishaps < 5);
        let calm = run(&case, &[]);
        // How far the rest of a failing group gets is a matter of luck.
        prop_assume!(calm.requests.iter().all(|request| request.phase().is_posted()));
        let world = run(&case, &events);
        prop_assert_eq!(tags(&world), tags(&calm));
        for (request, other) in world.requests.iter().zip(&calm.requests) {
            prop_assert_eq!(request.phase(), other.phase());
        }
        check_last_wins(&world);
        prop_assert_eq!(world.unseen, 0);
    }

    #[test]
    fn whatever_goes_wrong_but_others_writes_the_promises_hold_and_every_request_ends(
        case in case(),
        events in prop::collection::vec(prop_oneof![
            30 => quiet(),
            1 => healed(),
            2 => wild().prop_filter("nobody else writes", |e| !matches!(e, Event::Foreign(..))),
        ], 0..200),
    ) {
        let world = run(&case, &events);
        check_last_wins(&world);
        check_groups(&world);
        prop_assert_eq!(world.unseen, 0);
        let late = events.iter().any(|e| matches!(e, Event::Tick(7300)));
        for image in world.requests.iter().flat_map(|r| &r.status.images) {
            prop_assert!(late || image.reason != Some(Reason::DeadlineExceeded), "nothing is stuck");
        }
    }

    #[test]
    fn with_somebody_else_writing_the_floats_the_promises_hold_and_every_request_ends(
        case in case(),
        events in prop::collection::vec(prop_oneof![30 => quiet(), 1 => healed(), 3 => wild()], 0..200),
    ) {
        let world = run(&case, &events);
        check_groups(&world);
        let late = events.iter().any(|e| matches!(e, Event::Tick(7300)));
        for image in world.requests.iter().flat_map(|r| &r.status.images) {
            prop_assert!(late || image.reason != Some(Reason::DeadlineExceeded), "nothing is stuck");
        }
    }

    /// Traces F3, V2, V3: a tag write on the wire outlives its request and its process; nothing is launched until it has landed.
    #[test]
    fn a_write_that_lands_late_takes_no_float_back_when_its_request_is_deleted_or_its_process_dies(
        exists in any::<bool>(),
        events in prop::collection::vec(prop_oneof![
            20 => quiet().prop_filter("time stands still", |e| !matches!(e, Event::Tick(_))),
            3 => (0..2_usize).prop_map(Event::Late),
            1 => (0..1_usize).prop_map(Event::Delete),
            1 => Just(Event::Crash),
            2 => (1..10_i64).prop_map(Event::Tick),
        ], 0..120),
    ) {
        let wish = Wish { images: vec![(0, From::New)], latch: Latch::Together, undecided: 0 };
        let case = Case { exists, lenient: true, wishes: vec![wish.clone(), wish] };
        let world = run(&case, &events);
        check_last_wins(&world);
        prop_assert_eq!(world.unseen, 0);
    }
}
