//! The machine in every state that it can reach: a model checker over the shipped [`decide`](super::decide()),
//! [`advance`](super::advance()), [`coordinator`](crate::coordinator), [`steps`](crate::steps) and [`log`](crate::log).
//!
//! ```text
//! setup      scenarios, how often each fault may come, which guard is taken away
//! world      the registry that collects at once, time, strangers, users; one action is one indivisible step
//! process    a leader: the coordinator, which is shipped code, and the store and the registry that answer it
//! promises   what must hold at every write, at every save, in every state, at every end
//! random     ways at random, with more faults than can be searched
//! search     every state that can be reached, each once; the shortest trace to a violation
//! ```
//!
//! Every search is exhaustive within its bounds: a scenario, and how often each fault may come. `cargo test -p promotion-core` runs
//! them; `MODEL=deep cargo test --release -p promotion-core -- --nocapture` runs the larger ones too and prints the states of each.
//! That the checker would find a violation is shown by taking away one guard after the other.
//!
//! Outside: bytes (a digest is all there is of an image), pruners but while a request is suspended, foreign writers of our pins. Assumed: a write of
//! ours without an answer lands within L of its sending or never; a read is at most S old; creations are heard of in their order; a
//! leader whose lease ran out saves nothing.
#![allow(clippy::expect_used, clippy::panic)]

mod process;
mod promises;
mod random;
mod registry;
mod search;
mod setup;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, available_parallelism};

use promises::Promise;
use search::{Found, search};
use setup::{Deletion, Faults, Mutation, Scenario, Setup, Wish};
use world::World;

use super::{Latch, OnFailure};

/// More states than any of these searches has.
const BOUND: usize = 40_000_000;

const fn wish(images: &'static [(usize, &'static str)], latch: Latch) -> Wish {
    Wish {
        images,
        latch,
        on_failure: OnFailure::Hold,
        suspended: false,
        namespace: "a",
        replaces: None,
        undo: false,
        gate: false,
        exempt: false,
        remove: false,
    }
}

/// The same, of a group that is taken back when it fails.
const fn back(images: &'static [(usize, &'static str)]) -> Wish {
    Wish {
        on_failure: OnFailure::Rollback,
        ..wish(images, T)
    }
}

/// A request whose floats have to be on this digest (`none`: on nothing).
const fn replacing(
    images: &'static [(usize, &'static str)],
    replaces: &'static str,
    latch: Latch,
) -> Wish {
    Wish {
        replaces: Some(replaces),
        ..wish(images, latch)
    }
}

/// A request that takes a float back to a digest, off the one that was put there.
const fn undoing(images: &'static [(usize, &'static str)], off: &'static str) -> Wish {
    Wish {
        undo: true,
        ..replacing(images, off, T)
    }
}

const fn scenario(name: &'static str, wishes: &'static [Wish]) -> Scenario {
    Scenario {
        name,
        exists: true,
        lenient: false,
        refused: None,
        post1: false,
        attempts: 5,
        quota: 0,
        deletion: Deletion::OfTheTag,
        wishes,
    }
}

const T: Latch = Latch::Together;
const I: Latch = Latch::Independently;

const ONE: Scenario = scenario("A", &[wish(&[(0, "A0")], T)]);
const FIRST: Scenario = Scenario {
    exists: false,
    ..scenario(
        "first promotion, then another",
        &[wish(&[(0, "A0")], T), wish(&[(0, "B0")], T)],
    )
};
const OVER_POST1: Scenario = Scenario {
    post1: true,
    ..scenario(
        "A, and __post1 holds another image",
        &[wish(&[(0, "A0")], T)],
    )
};
const NEXT: Scenario = scenario("A, then B", &[wish(&[(0, "A0")], T), wish(&[(0, "B0")], T)]);
const LENIENT: Scenario = Scenario {
    lenient: true,
    ..scenario(
        "A, then B, lenient registry",
        &[wish(&[(0, "A0")], T), wish(&[(0, "B0")], T)],
    )
};
const BACK: Scenario = scenario(
    "A, then what was there",
    &[wish(&[(0, "A0")], T), wish(&[(0, "D0")], T)],
);
const PRE: Scenario = scenario(
    "A, then __pre",
    &[wish(&[(0, "A0")], T), wish(&[(0, "pre")], T)],
);
const HELD: Scenario = scenario(
    "A suspended, B",
    &[
        Wish {
            suspended: true,
            ..wish(&[(0, "A0")], T)
        },
        wish(&[(0, "B0")], T),
    ],
);
const HELD_TWO: Scenario = scenario(
    "A and B suspended, C",
    &[
        Wish {
            suspended: true,
            ..wish(&[(0, "A0")], T)
        },
        Wish {
            suspended: true,
            ..wish(&[(0, "B0")], T)
        },
        wish(&[(0, "C0")], T),
    ],
);
const GROUP: Scenario = scenario("a group of two", &[wish(&[(0, "A0"), (1, "A1")], T)]);
const GROUPS: Scenario = scenario(
    "two crossed groups",
    &[
        wish(&[(0, "A0"), (1, "A1")], T),
        wish(&[(1, "B1"), (0, "B0")], T),
    ],
);
const OVERLAP: Scenario = scenario(
    "a group, then one of its floats",
    &[wish(&[(0, "A0"), (1, "A1")], T), wish(&[(1, "B1")], T)],
);
const EACH: Scenario = scenario(
    "two each on its own, twice",
    &[
        wish(&[(0, "A0"), (1, "A1")], I),
        wish(&[(1, "B1"), (0, "B0")], I),
    ],
);
const MIXED: Scenario = scenario(
    "two each on its own, then a group",
    &[
        wish(&[(0, "A0"), (1, "A1")], I),
        wish(&[(1, "B1"), (0, "B0")], T),
    ],
);

/// The last one is of another namespace, and newer than one of the first that is not admitted yet.
const SEATED: Scenario = Scenario {
    quota: 1,
    ..scenario(
        "a limit of one for two, and a float that another namespace wants",
        &[
            wish(&[(0, "A0")], T),
            wish(&[(1, "B1")], T),
            Wish {
                namespace: "b",
                ..wish(&[(1, "C1")], T)
            },
        ],
    )
};
/// All on one float, in one namespace.
const IN_LINE: Scenario = Scenario {
    quota: 1,
    ..scenario(
        "a limit of one, two on one float after another",
        &[
            wish(&[(1, "A1")], T),
            wish(&[(0, "B0")], T),
            wish(&[(0, "C0")], T),
        ],
    )
};

const FAILS: Scenario = Scenario {
    refused: Some("f0__post1"),
    ..scenario(
        "A, which fails after it moved its float",
        &[back(&[(0, "A0")])],
    )
};
const FAILS_OVER_POST1: Scenario = Scenario {
    refused: Some("f0__post1"),
    post1: true,
    ..scenario(
        "A, which fails, and __post1 holds another image",
        &[back(&[(0, "A0")])],
    )
};
const FAILS_THEN_NEXT: Scenario = Scenario {
    refused: Some("f0__post1"),
    ..scenario(
        "A, which fails, then B",
        &[back(&[(0, "A0")]), wish(&[(0, "B0")], T)],
    )
};
const GROUP_FAILS: Scenario = Scenario {
    refused: Some("f1"),
    ..scenario(
        "a group of two, one of which fails",
        &[back(&[(0, "A0"), (1, "A1")])],
    )
};
const GROUP_MOVED: Scenario = Scenario {
    attempts: 2,
    ..scenario(
        "a group of two that somebody else may make fail",
        &[back(&[(0, "A0"), (1, "A1")])],
    )
};
const GROUP_FAILS_THEN_NEXT: Scenario = Scenario {
    refused: Some("f1__post1"),
    ..scenario(
        "a group, one of which fails, then the other float",
        &[back(&[(0, "A0"), (1, "A1")]), wish(&[(0, "B0")], T)],
    )
};

const REPLACES: Scenario = scenario(
    "A, which replaces what was there, then B, which would as well",
    &[
        replacing(&[(0, "A0")], "D0", T),
        replacing(&[(0, "B0")], "D0", T),
    ],
);
/// Two versions of one name: the first stays.
const VERSION: Scenario = Scenario {
    exists: false,
    ..scenario(
        "a version that is never overwritten, twice",
        &[
            replacing(&[(0, "A0")], "none", T),
            replacing(&[(0, "B0")], "none", T),
        ],
    )
};
const GROUP_REPLACES: Scenario = scenario(
    "a group, one of which has to be on another digest",
    &[replacing(&[(0, "A0"), (1, "A1")], "D0", T)],
);
const EACH_REPLACES: Scenario = scenario(
    "two each on its own, one of which has to be on another digest",
    &[replacing(&[(0, "A0"), (1, "A1")], "D0", I)],
);
/// A request with a gate.
const fn gated(images: &'static [(usize, &'static str)], latch: Latch) -> Wish {
    Wish {
        gate: true,
        ..wish(images, latch)
    }
}

const GATED: Scenario = scenario("A with a gate", &[gated(&[(0, "A0")], T)]);
const GATED_THEN_NEXT: Scenario = scenario(
    "A with a gate, then B",
    &[gated(&[(0, "A0")], T), wish(&[(0, "B0")], T)],
);
const GATED_TWICE: Scenario = scenario(
    "A with a gate, then B with one",
    &[gated(&[(0, "A0")], T), gated(&[(0, "B0")], T)],
);
const GATED_THREE: Scenario = scenario(
    "A with a gate, then B with one, then C without",
    &[
        gated(&[(0, "A0")], T),
        gated(&[(0, "B0")], T),
        wish(&[(0, "C0")], T),
    ],
);
const GATED_GROUP: Scenario = scenario(
    "a group with a gate, then one of its floats",
    &[gated(&[(0, "A0"), (1, "A1")], T), wish(&[(1, "B1")], T)],
);
const GATED_EACH: Scenario = scenario(
    "two each on its own with a gate, then one of them",
    &[gated(&[(0, "A0"), (1, "A1")], I), wish(&[(1, "B1")], T)],
);
const GATED_REPLACES: Scenario = scenario(
    "A with a gate, which replaces what was there",
    &[Wish {
        gate: true,
        ..replacing(&[(0, "A0")], "D0", T)
    }],
);
const GATED_SEATED: Scenario = Scenario {
    quota: 1,
    ..scenario(
        "a limit of one, A with a gate, then another float",
        &[gated(&[(0, "A0")], T), wish(&[(1, "B1")], T)],
    )
};

/// A request that a freeze leaves out.
const fn exempt(images: &'static [(usize, &'static str)]) -> Wish {
    Wish {
        exempt: true,
        ..wish(images, T)
    }
}

const EXEMPT: Scenario = scenario(
    "A, then B, which a freeze leaves out",
    &[wish(&[(0, "A0")], T), exempt(&[(0, "B0")])],
);
const GROUP_EXEMPT: Scenario = scenario(
    "a group, then one of its floats, which a freeze leaves out",
    &[wish(&[(0, "A0"), (1, "A1")], T), exempt(&[(0, "B0")])],
);
const EACH_EXEMPT: Scenario = scenario(
    "two each on its own, then one of them, which a freeze leaves out",
    &[wish(&[(0, "A0"), (1, "A1")], I), exempt(&[(0, "B0")])],
);

const UNDO: Scenario = scenario(
    "A, then its undo",
    &[wish(&[(0, "A0")], T), undoing(&[(0, "D0")], "A0")],
);
/// B was created before the undo of A.
const UNDO_LATE: Scenario = scenario(
    "A, then B, then the undo of A",
    &[
        wish(&[(0, "A0")], T),
        wish(&[(0, "B0")], T),
        undoing(&[(0, "D0")], "A0"),
    ],
);
const VERSION_FAILS: Scenario = Scenario {
    exists: false,
    refused: Some("f1"),
    ..scenario(
        "a version in a group that fails and is taken back",
        &[Wish {
            on_failure: OnFailure::Rollback,
            ..replacing(&[(0, "A0"), (1, "A1")], "none", T)
        }],
    )
};

/// A request whose `_incoming` tags are to be removed.
const fn removing(images: &'static [(usize, &'static str)], latch: Latch) -> Wish {
    Wish {
        remove: true,
        ..wish(images, latch)
    }
}

/// A float that is written once: when `_incoming` is gone, nothing else holds its image.
const ONCE: Scenario = Scenario {
    exists: false,
    ..scenario("A once, without _incoming", &[removing(&[(0, "A0")], T)])
};
const ONCE_OF_THE_IMAGE: Scenario = Scenario {
    deletion: Deletion::OfTheImage,
    ..ONCE
};
const REMOVES: Scenario = scenario("A without _incoming", &[removing(&[(0, "A0")], T)]);
const ONCE_THEN_NEXT: Scenario = Scenario {
    exists: false,
    ..scenario(
        "A, then B, both without _incoming",
        &[removing(&[(0, "A0")], T), removing(&[(0, "B0")], T)],
    )
};
const EACH_REMOVES: Scenario = Scenario {
    exists: false,
    ..scenario(
        "two each on its own without _incoming, then one of them",
        &[removing(&[(0, "A0"), (1, "A1")], I), wish(&[(0, "B0")], T)],
    )
};
const GROUP_REMOVES: Scenario = Scenario {
    refused: Some("f1"),
    ..scenario(
        "a group without _incoming, one of which fails",
        &[Wish {
            remove: true,
            ..back(&[(0, "A0"), (1, "A1")])
        }],
    )
};
const GROUP_REMOVES_LATE: Scenario = Scenario {
    refused: Some("f1__post1"),
    ..GROUP_REMOVES
};

/// The undisturbed run's end: every order of its steps leads to the same.
fn undisturbed(scenario: Scenario) -> promises::End {
    let mut world = World::new(Setup::new(scenario, Faults::NONE, None));
    loop {
        let mut next = Vec::new();
        search::Model::successors(&world, &mut next);
        let here = search::fingerprint(&world);
        next.retain(|(_, world)| search::fingerprint(world) != here);
        match next.into_iter().next() {
            Some((_, after)) => world = after,
            None => return world.end(),
        }
    }
}

/// The faults of this list, each as often as it is named.
fn faults(list: &str) -> Faults {
    let mut faults = Faults::NONE;
    for kind in list.split('+').filter(|kind| !kind.is_empty()) {
        let count = faults.count(kind).expect("a kind of fault");
        *count += 1;
    }
    faults
}

/// A scenario with these faults, and how it ends without them, where that is certain.
fn setup(scenario: Scenario, faults: Faults, mutation: Option<Mutation>) -> Setup {
    let mut setup = Setup::new(scenario, faults, mutation);
    // Which of two requests begins is a matter of luck where one is held back.
    let luck = scenario
        .wishes
        .iter()
        .any(|wish| wish.suspended || wish.gate);
    let luck = luck || scenario.quota > 0 || (setup.splits() && scenario.wishes.len() > 1);
    // So is how far the others of a group got before one failed.
    let group = |wish: &Wish| wish.images.len() > 1;
    let fails = scenario.refused.is_some() || scenario.wishes.iter().any(|w| w.replaces.is_some());
    let luck = luck || (fails && scenario.wishes.iter().any(group));
    // And where the clock stands still, a next process may choose the very prune tag that holds the digest already.
    let luck = luck || (scenario.refused.is_some() && scenario.wishes.len() > 1);
    if setup.faults.heal() && !luck {
        setup.undisturbed = Some(undisturbed(scenario));
    }
    setup
}

fn explore(scenario: Scenario, list: &str, mutation: Option<Mutation>) -> Found {
    let setup = setup(scenario, faults(list), mutation);
    let found = search(&World::new(setup), BOUND);
    assert!(
        !found.cut,
        "{}, {list}: not all was searched",
        scenario.name
    );
    found
}

/// Explores all of these, as many at once as there are processors, prints what was explored, and fails with the trace of the first violation.
fn hold(explorations: &[(Scenario, &[&str])]) {
    let all = explorations.iter();
    let all = all.flat_map(|(scenario, lists)| lists.iter().map(move |list| (*scenario, *list)));
    let all: Vec<_> = all.collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let at_once = available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((at, (scenario, list))) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    all.get(at).map(|one| (at, one))
                } {
                    let explored = explore(*scenario, list, None);
                    found.lock().expect("no panic").insert(at, explored);
                }
            });
        }
    });
    let found = found.into_inner().expect("no panic");
    let (mut states, mut unseen, mut sums) = (0, 0, BTreeMap::new());
    for ((scenario, list), found) in all.iter().zip(found.into_values()) {
        println!(
            "{:>9} states, {:>9} steps, at most {:>3} deep: {}; {list}",
            found.states, found.steps, found.depth, scenario.name
        );
        if let Some((broken, trace)) = found.violation {
            panic!("{}; {list}: {broken:?}\n{trace}", scenario.name);
        }
        *sums.entry(scenario.name).or_insert(0) += found.states;
        states += found.states;
        unseen += found.unseen;
    }
    for (name, sum) in sums {
        println!("{sum:>9} states in all: {name}");
    }
    println!("{states} states; in {unseen} of them a foreign write was overwritten unseen");
}

/// Every kind of fault.
const KINDS: [&str; 21] = [
    "crash",
    "replace",
    "handover",
    "lost",
    "late",
    "unknown",
    "stale",
    "moved",
    "back",
    "removed",
    "suspend",
    "cancel",
    "delete",
    "deadline",
    "expire",
    "sources",
    "slow",
    "missing",
    "immutable",
    "unsent",
    "untyped",
];

/// Those that only matter where floats may be taken back.
const ENDS: [&str; 2] = ["overrun", "refused"];

/// Every two faults, of different kinds or of the same.
fn pairs() -> Vec<String> {
    let pair = |(at, a): (usize, &&str)| {
        let others = KINDS[at..].iter();
        others.map(|b| format!("{a}+{b}")).collect::<Vec<_>>()
    };
    KINDS.iter().enumerate().flat_map(pair).collect()
}

/// Whether the larger explorations are asked for.
fn deep() -> bool {
    std::env::var("MODEL").is_ok_and(|value| value == "deep")
}

#[test]
fn one_request_keeps_every_promise_under_every_pair_of_faults() {
    let pairs = pairs();
    let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
    hold(&[
        (ONE, &pairs),
        (ONE, &["suspend+pruned", "suspend+pruned+crash"]),
        (
            ONE,
            &[
                "pause+crash",
                "pause+late",
                "pause+suspend",
                "pause+cancel",
                "pause+moved",
                "denied+crash",
                "denied+late",
                "late+late+crash",
            ],
        ),
        (OVER_POST1, &["missing", "missing+crash", "missing+moved"]),
    ]);
    if deep() {
        let worst = [
            "crash+late+moved+stale",
            "crash+lost+unknown+expire",
            "moved+back+removed+late",
            "crash+moved+removed+cancel+expire",
        ];
        hold(&[
            (ONE, &worst),
            (FIRST, &pairs),
            (NEXT, &pairs),
            (LENIENT, &pairs),
            (BACK, &pairs),
            (PRE, &pairs),
            (HELD, &pairs),
        ]);
    }
}

#[test]
fn two_requests_on_one_float_keep_every_promise_under_every_fault() {
    hold(&[
        (FIRST, &KINDS),
        (NEXT, &KINDS),
        (LENIENT, &["late+delete", "late+expire"]),
        (BACK, &KINDS),
        (PRE, &KINDS),
        (HELD, &KINDS),
        (
            NEXT,
            &[
                "crash+moved",
                "crash+delete",
                "crash+stale",
                "late+delete",
                "late+moved",
                "cancel+lost",
                "suspend+delete",
                "pause+delete",
                "late+late+delete",
            ],
        ),
    ]);
}

#[test]
fn two_floats_keep_every_promise_under_a_crash_or_a_foreign_move() {
    hold(&[
        (
            GROUP,
            &[
                "crash", "late", "moved", "removed", "cancel", "suspend", "sources", "expire",
            ],
        ),
        (OVERLAP, &["crash", "moved"]),
        (GROUPS, &["", "moved", "delete"]),
        (EACH, &["", "cancel"]),
        (MIXED, &["", "suspend"]),
    ]);
    if deep() {
        let pairs = [
            "crash+moved",
            "crash+late",
            "late+moved",
            "crash+stale",
            "crash+cancel",
            "moved+removed",
            "late+delete",
        ];
        let worst: [&str; 1] = ["crash+moved"];
        hold(&[
            (GROUP, &pairs),
            (OVERLAP, &worst),
            (GROUPS, &worst),
            (EACH, &worst),
            (MIXED, &worst),
        ]);
    }
}

#[test]
fn a_group_that_fails_is_taken_back_or_says_what_was_not_under_every_fault() {
    let kinds: Vec<&str> = KINDS.into_iter().chain(ENDS).collect();
    hold(&[
        (FAILS, &kinds),
        (
            FAILS,
            &[
                "crash+lost",
                "crash+late",
                "late+overrun",
                "lost+overrun",
                "late+refused",
                "stale+crash",
                "moved+back",
                "moved+late",
                "removed+late",
                "lost+deadline+deadline",
                "late+deadline",
            ],
        ),
        (FAILS_OVER_POST1, &["", "crash", "stale"]),
        (FAILS_THEN_NEXT, &kinds),
        (
            GROUP_FAILS,
            &["", "crash", "late", "moved", "refused", "overrun"],
        ),
        (GROUP_MOVED, &["moved+moved", "refused", "refused+refused"]),
        (GROUP_FAILS_THEN_NEXT, &["", "moved"]),
    ]);
    if deep() {
        let mut pairs = pairs();
        for end in ENDS {
            pairs.extend(kinds.iter().map(|kind| format!("{kind}+{end}")));
        }
        let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
        let worst = [
            "crash+lost",
            "crash+moved",
            "late+refused",
            "late+overrun",
            "stale+crash",
        ];
        hold(&[
            (FAILS, &pairs),
            (FAILS_THEN_NEXT, &pairs),
            (GROUP_FAILS, &worst),
            (
                GROUP_FAILS_THEN_NEXT,
                &["crash", "late", "refused", "removed", "delete"],
            ),
        ]);
    }
}

/// A save, its answer, and whether a request may push are known one after the other here, and anything may come between: a deletion, a
/// takeover, the save of a leader that is one no more.
#[test]
fn what_comes_between_a_save_and_its_answer_breaks_no_promise() {
    hold(&[
        (ONE, &SPLIT),
        (
            ONE,
            &[
                "split+replace+delete",
                "split+loads+delete",
                "split+loads+suspend",
                "split+loads+cancel",
                "split+loads+silent",
                "split+loads+crash",
            ],
        ),
        (NEXT, &["split", "split+delete", "split+silent", "older"]),
        (GROUP, &["split+immutable"]),
    ]);
    if deep() {
        let rest = "split".len();
        let pairs = SPLIT.map(|one| SPLIT.map(|two| format!("{one}{}", &two[rest..])));
        let pairs: Vec<String> = pairs.into_iter().flatten().collect();
        let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
        hold(&[
            (ONE, &pairs),
            (NEXT, &pairs),
            (GROUP, &SPLIT),
            (OVERLAP, &["split"]),
        ]);
    }
}

/// A process that was frozen until another led goes on beside it: its reads are answered, its saves land or are refused, it launches what
/// they say, and it hears of ends.
#[test]
fn two_leaders_at_once_keep_every_promise() {
    hold(&[
        (
            ONE,
            &[
                "replace+awake",
                "replace+awake+moved",
                "replace+awake+late",
                "replace+awake+crash",
                "replace+awake+suspend",
                "split+replace+awake",
            ],
        ),
        (NEXT, &["replace+awake"]),
        (FAILS, &["replace+awake"]),
    ]);
    if deep() {
        hold(&[
            (NEXT, &["split+replace+awake", "replace+awake+delete"]),
            (GROUP, &["replace+awake", "split+replace+awake"]),
            (FAILS, &["replace+awake+overrun", "replace+awake+moved"]),
        ]);
    }
}

/// The older ones are ended one by one, and anything may come between two of them.
#[test]
fn a_claim_that_ends_two_older_requests_is_none_before_both_have_ended() {
    hold(&[(HELD_TWO, &["", "handover", "delete", "split"])]);
    if deep() {
        hold(&[(HELD_TWO, &["crash", "split+delete"])]);
    }
}

/// With a save, its answer and the permission as actions of their own, each of these.
const SPLIT: [&str; 13] = [
    "split",
    "split+crash",
    "split+replace",
    "split+handover",
    "split+silent",
    "split+older",
    "split+slow",
    "split+delete",
    "split+suspend",
    "split+cancel",
    "split+lost",
    "split+late",
    "split+moved",
];

#[test]
fn a_request_that_waits_for_a_seat_keeps_every_promise_and_ends_like_every_other() {
    hold(&[
        (SEATED, &["", "suspend"]),
        (IN_LINE, &["", "suspend", "delete"]),
    ]);
    if deep() {
        hold(&[(SEATED, &["crash"])]);
    }
}

#[test]
fn a_float_is_moved_off_nothing_but_what_replaces_says_and_an_undo_hides_what_it_displaces() {
    hold(&[
        (REPLACES, &KINDS),
        (VERSION, &KINDS),
        (UNDO, &KINDS),
        (UNDO_LATE, &["", "moved", "delete"]),
        (GROUP_REPLACES, &["", "moved"]),
        (EACH_REPLACES, &["", "moved"]),
        (VERSION_FAILS, &["", "crash", "moved", "late"]),
        (
            REPLACES,
            &["late+moved", "crash+moved", "late+removed", "moved+back"],
        ),
        (VERSION, &["late+moved", "crash+moved"]),
    ]);
    if deep() {
        let pairs = pairs();
        let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
        hold(&[(REPLACES, &pairs), (VERSION, &pairs), (UNDO, &pairs)]);
    }
}

#[test]
fn a_request_with_a_gate_moves_nothing_before_it_is_removed_and_delays_only_those_with_gates() {
    let kinds: Vec<&str> = KINDS.into_iter().chain(["pruned"]).collect();
    hold(&[
        (GATED, &kinds),
        (GATED, &["pruned+crash", "moved+late", "crash+late"]),
        (GATED_THEN_NEXT, &KINDS),
        (GATED_TWICE, &KINDS),
        (GATED_THREE, &["", "delete", "suspend"]),
        (GATED_GROUP, &["", "moved"]),
        (GATED_EACH, &["", "cancel"]),
        (GATED_REPLACES, &["moved", "removed", "late+moved"]),
        (GATED_SEATED, &["", "delete"]),
    ]);
    if deep() {
        let pairs = pairs();
        let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
        hold(&[
            (GATED, &pairs),
            (GATED_THEN_NEXT, &pairs),
            (GATED_TWICE, &pairs),
        ]);
    }
}

#[test]
fn a_frozen_float_is_let_move_by_nobody_and_what_waits_for_it_delays_nobody() {
    let kinds = KINDS.map(|kind| format!("freeze+{kind}"));
    let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
    hold(&[
        (ONE, &kinds),
        (
            ONE,
            &["freeze+pruned", "freeze+freeze", "freeze+late+crash"],
        ),
        (NEXT, &["freeze", "freeze+crash", "freeze+delete"]),
        (
            EXEMPT,
            &["freeze", "freeze+crash", "freeze+late", "freeze+handover"],
        ),
        (GROUP_EXEMPT, &["freeze"]),
        (EACH_EXEMPT, &["freeze"]),
        (FAILS, &["freeze", "freeze+crash", "freeze+late"]),
        (GROUP_FAILS, &["freeze"]),
        (GATED_TWICE, &["freeze", "freeze+freeze"]),
        (UNDO, &["freeze"]),
        (GATED_SEATED, &["freeze"]),
    ]);
    if deep() {
        hold(&[(NEXT, &kinds), (EXEMPT, &kinds)]);
    }
}

#[test]
fn an_incoming_tag_goes_only_where_the_float_holds_its_image_and_never_after_another_was_staged() {
    let kinds: Vec<&str> = KINDS.into_iter().chain(["refused", "denied"]).collect();
    let pairs = pairs();
    let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
    hold(&[
        (ONCE, &pairs),
        (REMOVES, &kinds),
        (REMOVES, &["late+moved", "crash+late", "late+late"]),
        (ONCE_OF_THE_IMAGE, &kinds),
        (ONCE_THEN_NEXT, &kinds),
        (ONCE_THEN_NEXT, &["late+delete", "late+moved"]),
        (EACH_REMOVES, &[""]),
        (GROUP_REMOVES, &["", "crash", "moved"]),
        (GROUP_REMOVES_LATE, &["", "crash"]),
    ]);
    if deep() {
        hold(&[
            (REMOVES, &pairs),
            (ONCE_OF_THE_IMAGE, &pairs),
            (ONCE_THEN_NEXT, &pairs),
            (ONCE_THEN_NEXT, &SPLIT),
            (ONCE_THEN_NEXT, &["late+late+delete"]),
            (EACH_REMOVES, &["late"]),
            (GROUP_REMOVES, &["late"]),
            (GROUP_REMOVES_LATE, &kinds),
        ]);
    }
}

/// For each guard: where it is missed, and the promise that breaks first.
const GUARDS: [(Mutation, Scenario, &str, Promise); 52] = {
    use Mutation as M;
    use Promise as P;
    [
        (M::LatchWithoutLook, NEXT, "moved", P::NothingLost),
        (M::BackUpSkipped, NEXT, "", P::NothingLost),
        (M::PreSkipped, NEXT, "", P::NothingLost),
        (M::StampReused, NEXT, "", P::NothingLost),
        (M::RescueSkipped, FIRST, "moved", P::NothingLost),
        (M::NoMemory, FIRST, "stale+stale", P::RecordedBeforeDone),
        (
            M::HandoverForgets,
            FIRST,
            "handover+stale+stale",
            P::RecordedBeforeDone,
        ),
        (M::NoFence, NEXT, "late+delete", P::NothingLost),
        (M::LateIgnored, NEXT, "late+delete", P::NothingLost),
        (M::OtherDigestSent, ONE, "late+moved", P::NothingLost),
        (M::NoQuietStart, NEXT, "late+crash", P::NothingLost),
        (M::AllSpared, FAILS, "late+crash+overrun", P::Together),
        (M::StaleLaunch, BACK, "", P::NothingLost),
        (
            M::FormerSaves,
            ONE,
            "replace+awake+moved+unknown",
            P::RecordedBeforeDone,
        ),
        (M::FormerWrites, NEXT, "replace+awake", P::NothingLost),
        (M::IncomingSkipped, LENIENT, "expire", P::NeverDangling),
        (M::HeardOutOfOrder, HELD, "", P::ForwardsOnly),
        (M::LaunchBeforeSave, NEXT, "", P::RecordedBeforeDone),
        (
            M::CommitIgnored,
            GROUP,
            "cancel+lost",
            P::RecordedBeforeDone,
        ),
        (M::LandedIsMoved, NEXT, "crash", P::RecordedBeforeDone),
        (M::ListedAgain, NEXT, "moved+back", P::Idempotent),
        (M::UnknownIsAbsent, NEXT, "unknown", P::FailsClosed),
        (M::SupersededUnrecorded, HELD, "", P::ForwardsOnly),
        (M::RivalsForgotten, HELD_TWO, "", P::ForwardsOnly),
        (M::NoClaims, BACK, "", P::ForwardsOnly),
        (M::CommitEarly, GROUP, "", P::Together),
        (M::LatchOnItsOwn, GROUP, "", P::Together),
        (M::ClaimKept, NEXT, "", P::Ends),
        (M::OnlyLatchedExamined, FAILS, "lost+overrun", P::Together),
        (M::IntentUnsettled, FAILS, "late+overrun", P::Together),
        (M::RescuedIsDisplaced, FAILS_OVER_POST1, "", P::ForwardsOnly),
        (M::PromotedUnpinned, FAILS, "", P::NothingLost),
        (M::TakenBackWithoutLook, FAILS, "moved", P::NothingLost),
        (
            M::RefusalBelieved,
            OVER_POST1,
            "missing",
            P::RecordedBeforeDone,
        ),
        (M::Unconfirmed, ONE, "suspend+pruned", P::NothingLost),
        (M::ReplacesIgnored, VERSION, "moved", P::FailsClosed),
        (M::GateIgnored, GATED, "", P::Together),
        (M::GateKeepsClaim, GATED_THEN_NEXT, "", P::Ends),
        (M::GatedPasses, GATED_TWICE, "", P::ForwardsOnly),
        (M::FreezeIgnored, ONE, "freeze", P::FailsClosed),
        (M::FreezeOfOne, GROUP, "freeze", P::FailsClosed),
        (M::FreezeKeepsClaim, EXEMPT, "freeze", P::Ends),
        (M::UndoShown, UNDO, "", P::NothingLost),
        (M::Unentitled, NEXT, "split+delete", P::ForwardsOnly),
        (M::UnreadUnheard, NEXT, "older", P::ForwardsOnly),
        (M::PatienceSpent, NEXT, "split", P::ForwardsOnly),
        (M::SaveUnchecked, NEXT, "split+crash", P::RecordedBeforeDone),
        (M::ReleasedEarly, FAILS_THEN_NEXT, "unknown", P::NothingLost),
        (M::DeletionUntried, ONCE_OF_THE_IMAGE, "", P::NothingLost),
        (M::RemovedUnseen, ONCE, "moved", P::NothingLost),
        (M::RemovedEarly, ONCE, "late", P::RecordedBeforeDone),
        (M::RemovalUnentered, ONCE_THEN_NEXT, "late", P::NothingLost),
    ]
};

#[test]
fn each_promise_breaks_when_its_guard_is_taken_away_and_holds_with_it() {
    let mut wrong = Vec::new();
    for (mutation, scenario, list, promise) in GUARDS {
        let without = explore(scenario, list, Some(mutation)).violation;
        let Some((broken, trace)) = without else {
            wrong.push(format!("{mutation:?} breaks nothing"));
            continue;
        };
        println!(
            "{mutation:?}; {list}: {:?}, {}\n{trace}",
            broken.promise, broken.what
        );
        if broken.promise != promise {
            wrong.push(format!(
                "{mutation:?} breaks {:?}, not {promise:?}",
                broken.promise
            ));
        }
    }
    // That nothing breaks there with the guards is what the other tests show, but for these.
    hold(&[
        (ONE, &["replace+awake+moved+unknown"]),
        (FIRST, &["handover+stale+stale"]),
        (NEXT, &["handover+stale", "handover+unknown"]),
        (NEXT, &["moved+back"]),
    ]);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_way_that_comes_back_to_itself_without_a_fault_is_found() {
    let found = explore(NEXT, "removed", Some(Mutation::MovesUncounted));
    let (broken, trace) = found.violation.expect("it goes round for ever");
    assert_eq!(broken.promise, Promise::Ends, "{}\n{trace}", broken.what);
}
