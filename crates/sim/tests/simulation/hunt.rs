//! The hunt: runs drawn from seeds. A run that fails is made smaller: faults, edits and requests go while it still fails.
//!
//! `SIM_SEED=7` runs that seed of each hunt alone and prints its log; `SIM_SECONDS=600` hunts for so long instead of over a fixed number
//! of seeds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::draws::Draws;
use super::faults::{Act, Fault, Moment, Role};
use super::registries::USERS;
use super::scene::{Asked, Ran, Replaces, Scene, Wants};
use super::world::Edit;

/// What may go wrong in a hunt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Processes are killed or asked to end.
    Ends,
    /// Requests and answers are lost, late, slow or refused.
    Lost,
    /// Servers are out of reach.
    Outages,
    /// Processes and machines stand still; clocks differ.
    Clocks,
    /// Users suspend, cancel and delete.
    Users,
    /// The operator freezes and pauses; the registry refuses a float for good.
    Operator,
    /// Somebody else writes floats and what belongs to them.
    Strangers,
}

/// Events, and about how many there are of each in a run.
const EVENTS: [(&str, u64); 17] = [
    ("save", 30),
    ("load", 40),
    ("renew", 20),
    ("definition", 20),
    ("watch", 10),
    ("list", 4),
    ("look", 40),
    ("token", 10),
    ("source", 20),
    ("put float", 6),
    ("put incoming", 6),
    ("put pre", 6),
    ("put post1", 6),
    ("put prune", 6),
    ("delete tag", 3),
    ("see stream", 4),
    ("put stream", 3),
];

#[test]
fn whatever_ends_processes_and_whoever_edits_the_promises_hold() {
    hunt(&[Class::Ends, Class::Users], 16);
}

#[test]
fn whatever_is_lost_late_or_refused_the_promises_hold() {
    hunt(&[Class::Lost, Class::Ends], 16);
}

#[test]
fn whoever_else_writes_and_whatever_is_frozen_the_promises_hold() {
    hunt(&[Class::Strangers, Class::Operator, Class::Ends], 16);
}

#[test]
fn with_everything_at_once_the_promises_hold() {
    let all = [
        Class::Ends,
        Class::Lost,
        Class::Outages,
        Class::Clocks,
        Class::Users,
        Class::Operator,
        Class::Strangers,
    ];
    hunt(&all, 16);
}

fn hunt(classes: &[Class], seeds: u64) {
    if let Some(seed) = number("SIM_SEED") {
        let scene = drawn(seed, classes);
        let ran = scene.run();
        println!("{scene:#?}\n{}", ran.log.join("\n"));
        assert!(ran.wrong.is_empty(), "{:#?}", ran.wrong);
        return;
    }
    let until = number("SIM_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (mut seed, begun, mut all) = (0, Instant::now(), Totals::default());
    while until.map_or(seed < seeds, |until| Instant::now() < until) {
        let scene = drawn(seed, classes);
        let ran = scene.run();
        assert!(ran.wrong.is_empty(), "{}", report(seed, scene, ran));
        all.add(&ran);
        seed += 1;
    }
    println!(
        "{seed} seeds, {all}, in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A run, from its seed.
fn drawn(seed: u64, classes: &[Class]) -> Scene {
    let draws = Draws(seed);
    let floats = draws.within("floats", 0, (1, 4));
    let asked = (0..draws.within("requests", 0, (3, 7))).map(|number| {
        let first = draws.within("first float", number, (0, floats));
        let second = draws.within("second float", number, (0, floats));
        let mut of = vec![first, second];
        of.dedup();
        let at = 3 + draws.within("asked at", number, (0, 50));
        let mut asked = Asked::new(at, &format!("r{number}"), &of);
        asked.together = draws.percent("together", number, 70);
        asked.wants = wants(draws, number, asked.together);
        if draws.percent("another user", number, 20) {
            asked.user = USERS[1];
        }
        if classes.contains(&Class::Users) {
            asked.edits = edits(draws, number);
        }
        asked
    });
    let asked = asked.collect();
    let faults = (0..draws.within("faults", 0, (3, 13))).map(|number| {
        let class = draws.one_of("class", number, classes);
        fault(draws, class, number)
    });
    let mut scene = Scene::new(seed, asked, faults.collect());
    let new = |float: &u64| draws.percent("new", *float, 15);
    scene.new = (0..floats).filter(new).collect();
    if draws.percent("limited", 0, 20) {
        for (_, options) in &mut scene.places {
            options.namespace_max = 1;
        }
    }
    scene.skewed = classes.contains(&Class::Clocks) && draws.percent("skewed", 0, 50);
    scene
}

fn wants(draws: Draws, number: u64, together: bool) -> Wants {
    let percent = |name: &str, chance| draws.percent(name, number, chance);
    let gate = || Duration::from_millis(draws.within("opened", number, (0, 60_000)));
    let replaces = || {
        let all = [Replaces::Old, Replaces::Nothing, Replaces::Last];
        draws.one_of("replaces", number, &all)
    };
    Wants {
        rollback: together && percent("rollback", 50),
        gate: percent("gate", 20).then(gate),
        replaces: percent("replaces at all", 15).then(replaces),
        removes_incoming: percent("removes incoming", 20),
        // Those of one run set the same ones.
        streams: draws.percent("streams", 0, 30),
        sourceless: percent("sourceless", 5),
    }
}

fn edits(draws: Draws, number: u64) -> Vec<(Duration, Edit)> {
    let after = |name: &str| Duration::from_millis(draws.within(name, number, (0, 30_000)));
    match draws.within("edits", number, (0, 10)) {
        0 => vec![(after("cancelled"), Edit::Cancel)],
        1 | 2 => vec![(after("deleted"), Edit::Delete)],
        3 => {
            let suspended = after("suspended");
            let resumed = suspended + after("resumed");
            vec![
                (suspended, Edit::Suspend(true)),
                (resumed, Edit::Suspend(false)),
            ]
        }
        _ => Vec::new(),
    }
}

fn fault(draws: Draws, class: Class, number: u64) -> Fault {
    let (mut on, often) = draws.one_of("event", number, &EVENTS);
    let mut nth = draws.within("nth", number, (1, often + 1));
    let seconds = |from: u64, to: u64| {
        let millis = draws.within("seconds", number, (from * 1000, to * 1000));
        Duration::from_millis(millis)
    };
    let mut moment = draws.one_of("moment", number, &[Moment::Sent, Moment::Landed]);
    let one_of = |acts: &[Act]| draws.one_of("act", number, acts);
    let act = match class {
        Class::Ends => one_of(&[
            Act::Kill(seconds(1, 5)),
            Act::Kill(seconds(1, 5)),
            Act::Stop,
        ]),
        Class::Lost => {
            let status = draws.one_of("status", number, &[500, 502, 503, 429]);
            let act = one_of(&[
                Act::LoseAnswer,
                Act::LoseRequest,
                Act::Refuse(status),
                Act::Slow(seconds(1, 12)),
                Act::Late(seconds(9, 36)),
                Act::Stale(seconds(1, 9)),
            ]);
            // Nothing is later than the time that is waited for; of the rest no such promise is made.
            if matches!(act, Act::Late(_)) && !on.starts_with("put") && on != "delete tag" {
                (on, nth) = ("put float", 1 + nth % 4);
            }
            if matches!(act, Act::Stale(_)) {
                on = "look";
            }
            if !matches!(act, Act::Slow(_)) {
                moment = Moment::Sent;
            }
            act
        }
        Class::Outages => one_of(&[
            Act::Down(seconds(1, 90)),
            Act::Cut(seconds(1, 60)),
            Act::Compact,
        ]),
        Class::Clocks => one_of(&[Act::Freeze(seconds(1, 50)), Act::Sleep(seconds(1, 50))]),
        Class::Users => Act::Delete,
        Class::Operator => {
            let act = one_of(&[
                Act::FreezeFloat(seconds(1, 60)),
                Act::Pause(seconds(1, 60)),
                Act::Forbid(seconds(1, 60)),
                Act::Forbid(seconds(1, 60)),
            ]);
            if matches!(act, Act::Forbid(_)) {
                (on, nth, moment) = ("put float", 1 + nth % 6, Moment::Sent);
            }
            act
        }
        Class::Strangers => {
            let roles = [
                Role::Float,
                Role::Float,
                Role::Incoming,
                Role::Pre,
                Role::Post1,
                Role::Prune,
            ];
            let role = draws.one_of("role", number, &roles);
            Act::Meddle(role, draws.percent("theirs", number, 75))
        }
    };
    Fault {
        on,
        moment,
        nth,
        act,
    }
}

/// What hunts have done.
#[derive(Default)]
struct Totals {
    lasted: Duration,
    calls: u64,
    /// By what happened.
    faults: BTreeMap<String, u64>,
    moves: u64,
    /// Writes of image streams.
    streams: usize,
    /// Images, by how they ended.
    ends: BTreeMap<String, u64>,
}

impl Totals {
    fn add(&mut self, ran: &Ran) {
        self.lasted += ran.lasted;
        self.calls += ran.counts.calls;
        for (fault, times) in &ran.counts.faults {
            *self.faults.entry(fault.clone()).or_default() += times;
        }
        self.moves += ran.moves;
        let writes = |line: &&String| line.contains(" put stream ");
        self.streams += ran.log.iter().filter(writes).count();
        for end in ran.ends.values() {
            for reason in end.split_whitespace().skip(1) {
                *self.ends.entry(reason.to_owned()).or_default() += 1;
            }
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            lasted,
            calls,
            faults,
            moves,
            streams,
            ends,
        } = self;
        let all: u64 = faults.values().sum();
        let hours = lasted.as_secs_f64() / 3600.0;
        write!(
            f,
            "{hours:.2} hours of their time, {calls} requests, {all} faults {faults:?}, {moves} moves of floats, {streams} writes of image streams, images that ended {ends:?}"
        )
    }
}

/// Everything that can go and leave the run failing goes; then it is told.
fn report(seed: u64, mut scene: Scene, mut ran: Ran) -> String {
    let first = kind(&ran);
    loop {
        let smaller = smaller(&scene).into_iter().find_map(|scene| {
            let ran = scene.run();
            (kind(&ran) == first).then_some((scene, ran))
        });
        match smaller {
            Some(found) => (scene, ran) = found,
            None => break,
        }
    }
    let mut text = format!("seed {seed}: {:#?}\n", ran.wrong);
    let _ = writeln!(
        text,
        "it is enough that: {:#?}\n{:#?}",
        scene.asked, scene.faults
    );
    let matters = |line: &&String| {
        let words = [
            "FAULT",
            " put ",
            "has put",
            " is ",
            "ended",
            "starts",
            "wakes",
            "killed",
            "a user",
            "the operator",
            "somebody",
        ];
        words.iter().any(|word| line.contains(word))
    };
    let lines: Vec<&str> = ran.log.iter().filter(matters).map(String::as_str).collect();
    let _ = write!(
        text,
        "{}\nSIM_SEED={seed} shows all of it",
        lines.join("\n")
    );
    text
}

/// Which promise is broken.
fn kind(ran: &Ran) -> Option<String> {
    let first = ran.wrong.first()?;
    let (_, what) = first.split_once(' ')?;
    Some(what.split(':').next()?.to_owned())
}

/// The same run with one thing less, in all ways.
fn smaller(scene: &Scene) -> Vec<Scene> {
    let mut all = Vec::new();
    for index in 0..scene.faults.len() {
        let mut less = scene.clone();
        less.faults.remove(index);
        all.push(less);
    }
    for index in 0..scene.asked.len() {
        let mut less = scene.clone();
        less.asked.remove(index);
        all.push(less);
        if scene.asked[index].wants != Wants::default() {
            let mut less = scene.clone();
            less.asked[index].wants = Wants::default();
            all.push(less);
        }
        if !scene.asked[index].edits.is_empty() {
            let mut less = scene.clone();
            less.asked[index].edits.clear();
            all.push(less);
        }
    }
    all
}
