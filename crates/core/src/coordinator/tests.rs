//! What is known, shelved and inherited.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::image::Float;
use crate::log::WriteLog;
use crate::machine::claims::{Contender, Rival, Share, Standing, Verdict};
use crate::machine::pool::Pools;
use crate::machine::{Admission, Latch, Phase, Reason, References, Request, samples};

type State = Coordinator<Duration, (), (), ()>;

const NOW: Duration = Duration::from_secs(1_000);

#[test]
fn a_request_with_a_tombstone_does_not_contend_again_for_who_read_it_before() {
    let float: Float = "quay.io/openshift/ci:ocp_4.21_cli".parse().unwrap();
    let key = Key {
        namespace: "ci".into(),
        name: "r".into(),
    };
    let contender = |uid: &str| Contender {
        uid: uid.into(),
        name: "ci/r".into(),
        order: 1,
        shares: vec![Share {
            float: float.clone(),
            finished: false,
            committed: false,
            at_gate: false,
            frozen: false,
        }],
        registries: "quay.io".into(),
        together: true,
        started: false,
        suspended: false,
        gated: false,
        standing: Standing::Undecided,
    };
    let mut state = State::new(0);
    assert!(state.note(&key, 1, contender("old"), ()));
    assert!(state.forget("old", NOW).is_some());
    assert!(!state.note(&key, 2, contender("old"), ()));
    assert!(state.sharers(&contender("old")).is_empty());
    // Created anew under its name it is another request.
    assert!(state.note(&key, 3, contender("new"), ()));
    assert_eq!(state.named(&key), ["new"]);
}

/// One of a namespace, of so many floats.
fn request(namespace: &str, order: u64, floats: usize) -> (Key, Contender) {
    let key = Key {
        namespace: namespace.into(),
        name: format!("r{order}"),
    };
    let share = |n: usize| Share {
        float: format!("quay.io/{namespace}/ci:{order}-{n}")
            .parse()
            .unwrap(),
        finished: false,
        committed: false,
        at_gate: false,
        frozen: false,
    };
    let contender = Contender {
        uid: format!("{namespace}-{order}"),
        name: key.to_string(),
        order,
        shares: (0..floats).map(share).collect(),
        registries: "quay.io".into(),
        together: true,
        started: false,
        suspended: false,
        gated: false,
        standing: Standing::Eligible,
    };
    (key, contender)
}

fn note(state: &mut State, (key, contender): &(Key, Contender), version: u64) -> bool {
    state.note(key, version, contender.clone(), ())
}

#[test]
fn of_a_namespace_the_oldest_are_ready_and_the_others_come_in_their_order() {
    let mut state = State::new(0);
    let requests: Vec<_> = (0..40).map(|n| request("ci", 100 + n, 250)).collect();
    // Listed by name, or by chance.
    for n in (0..40).map(|n| n * 7 % 40) {
        note(&mut state, &requests[n], 1);
    }
    note(&mut state, &request("other", 1, 250), 1);
    let ready = |state: &State| -> Vec<bool> {
        let known = |one: &(Key, Contender)| state.known.contains_key(&one.1.uid);
        requests.iter().map(known).collect()
    };
    let oldest = |count: usize| (0..40).map(|n| n < count).collect::<Vec<_>>();
    assert_eq!(ready(&state), oldest(20));
    assert!(state.backlog.beyond(&requests[39].1.uid).is_some());
    // Nothing is noted twice.
    assert!(!note(&mut state, &requests[39], 1));
    state.woken.clear();
    // One begins, one ends: two are called, and come.
    let mut begun = requests[3].clone();
    begun.1.started = true;
    note(&mut state, &begun, 2);
    state.forget(&requests[0].1.uid, NOW);
    let called = std::mem::take(&mut state.woken);
    assert!(called.contains(&requests[20].0) && called.contains(&requests[21].0));
    assert!(!called.contains(&requests[22].0));
    // Each is called once, whatever ends before it comes.
    state.forget(&requests[1].1.uid, NOW);
    let called = std::mem::take(&mut state.woken);
    assert_eq!(called, BTreeSet::from([requests[22].0.clone()]));
    // They may come in any order.
    for n in [22, 21, 23, 20] {
        note(&mut state, &requests[n], 1);
    }
    let ready = ready(&state);
    assert!(ready[20] && ready[21] && ready[22] && !ready[23] && !ready[0]);
    // A newer one passes none of those that wait.
    let newest = request("ci", 999, 1);
    note(&mut state, &newest, 1);
    assert!(!state.known.contains_key(&newest.1.uid));
    assert_eq!(state.named(&newest.0), std::slice::from_ref(&newest.1.uid));
    state.forget(&newest.1.uid, NOW);
    assert!(state.named(&newest.0).is_empty());
}

#[test]
fn those_on_one_registry_take_no_room_and_no_place_of_those_on_another() {
    let mut state = State::new(1);
    let full: Vec<_> = (0..21).map(|n| request("ci", n, 250)).collect();
    for one in &full {
        note(&mut state, one, 1);
    }
    assert!(state.backlog.beyond(&full[20].1.uid).is_some());
    let mut apart = request("ci", 100, 250);
    apart.1.registries = "other.example".into();
    note(&mut state, &apart, 1);
    let admitted = |state: &mut State, (_, contender): &(Key, Contender)| {
        let known = &state.known[&contender.uid];
        let (key, uid) = (known.quota_key(), &contender.uid);
        (state.quota).try_admit(&key, uid, contender.order, std::iter::empty())
    };
    assert!(admitted(&mut state, &full[0]) && !admitted(&mut state, &full[1]));
    assert!(admitted(&mut state, &apart));
    for one in full.iter().chain([&apart]) {
        state.forget(&one.1.uid, NOW);
    }
    assert_eq!(state.pools, Pools::default());
}

#[test]
fn of_two_that_have_begun_on_one_float_the_older_one_owns_it_after_a_takeover() {
    for round in 0..20 {
        let mut state = State::new(0);
        let mut both = [1, 2].map(|order| request("ci", order, 1));
        both[1].1.shares = both[0].1.shares.clone();
        for one in &mut both {
            one.1.started = true;
            note(&mut state, one, 1);
        }
        state.rebuild();
        let float = &both[0].1.shares[0].float;
        let owner = state.claims().owner(float).map(String::as_str);
        assert_eq!(owner, Some("ci-1"), "{round}");
        // What the newer one has on the wire is not known: it is waited for.
        assert!(!state.inherited.contains_key(float), "{round}");
    }
}

#[test]
fn who_claims_a_float_finds_the_older_requests_that_are_shelved() {
    let mut state = State::new(0);
    let mut older = request("ci", 1, 3);
    older.1.suspended = true;
    note(&mut state, &older, 1);
    assert!(state.known.is_empty());
    let mut newer = request("ci", 2, 1);
    newer.1.shares[0].float = older.1.shares[1].float.clone();
    let found = state.backlog.sharers(&newer.1);
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].uid, found[0].shares.len()), (&older.1.uid, 1));
    let verdict = state.claims.judge(&newer.1, found.iter(), Duration::ZERO);
    assert!(matches!(verdict, Verdict::Claim(rivals) if rivals.len() == 1));
    assert_eq!(state.key_of(&older.1.uid), Some(older.0.clone()));
    // Resumed, it contends like all others, in its old place; suspended again, nobody waits for it.
    older.1.suspended = false;
    note(&mut state, &older, 2);
    assert!(state.known.contains_key(&older.1.uid));
    assert!(state.backlog.sharers(&newer.1).is_empty());
    note(&mut state, &newer, 2);
    older.1.suspended = true;
    note(&mut state, &older, 3);
    assert!(!state.known.contains_key(&older.1.uid));
    assert!(state.woken.contains(&newer.0));
    state.forget(&older.1.uid, NOW);
    assert!(state.backlog.sharers(&newer.1).is_empty());
}

#[test]
fn a_claim_that_a_late_write_keeps_is_none_before_its_rivals_have_ended() {
    let (mut state, mut log) = (State::new(0), WriteLog::new(Duration::ZERO, NOW));
    // Of the process before.
    log.follow(NOW);
    let mut request = samples::request(Latch::Together, &[Phase::Pending]);
    request.status.started = None;
    for (uid, order) in [("old", 1), ("new", 2)] {
        let key = Key {
            namespace: "ci".into(),
            name: uid.into(),
        };
        let contender = Contender::of(uid, uid, order, &request, Standing::Undecided);
        assert!(state.note(&key, 1, contender, ()));
    }
    state.is_ineligible("old");
    state.permit("new", NOW);
    let float = &request.spec.images[0].float;
    let (mut me, asked) = asked_last(&mut state, &mut log, &request);
    assert!(matches!(asked, Ask::End(rival) if rival.uid == "old"));
    // The older one is being changed, so that it cannot be ended.
    let waits = Admission::Waits(Reason::Queued, String::new());
    let (_, again) = state.admit(&log, &mut me, Answer::Settled(waits, None), NOW);
    assert_eq!(again, Some(NOW + NOW));
    let (mut me, asked) = asked_last(&mut state, &mut log, &request);
    assert!(matches!(asked, Ask::End(rival) if rival.uid == "old"));
    assert!(!state.is_entitled("new", float));
    assert_eq!(state.admit(&log, &mut me, Answer::Yes, NOW), (None, None));
    assert_eq!(*me.admission(), Admission::Holds);
    assert!(state.is_entitled("new", float));
}

/// What is asked of the newer request once it may act.
fn asked_last(
    state: &mut State,
    log: &mut WriteLog<Duration>,
    request: &Request,
) -> (Recorded, Ask) {
    let key = Key {
        namespace: "ci".into(),
        name: "new".into(),
    };
    let loaded = Object {
        key: &key,
        version: 1,
        contender: Contender::of("new", "new", 2, request, Standing::Undecided),
        counts: (),
    };
    let wall = |_| Timestamp::UNIX_EPOCH;
    let taken = state.take_up(log, request.clone(), loaded, NOW, wall);
    let mut me = taken.unwrap().record(log, wall(NOW), || 0.5);
    let mut asked = [Ask::Policy, Ask::Access].map(Some).into_iter();
    loop {
        let (ask, _) = state.admit(log, &mut me, Answer::Yes, NOW);
        match asked.next() {
            Some(expected) => assert_eq!(ask, expected),
            None => return (me, ask.unwrap()),
        }
    }
}

/// Its stream tags are set after the end of its floats, and are part of what it is waited for.
#[test]
fn a_superseded_request_has_not_ended_while_a_stream_tag_is_to_be_set() {
    for references in [References::Open, References::None] {
        let mut request = samples::request(Latch::Independently, &[Phase::Posted, Phase::Pending]);
        request.status.references = references.clone();
        let rival = Rival {
            uid: "old".into(),
            name: "ci/old".into(),
            floats: vec![request.spec.images[1].float.clone()],
        };
        let now = Timestamp::UNIX_EPOCH;
        assert!(end_rival(&mut request, &rival, 1, "by another", now));
        assert_eq!(request.status.images[1].reason, Some(Reason::Superseded));
        let open = references == References::Open;
        assert_eq!(request.status.completed, (!open).then_some(now));
    }
}
