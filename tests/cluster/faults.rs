//! Single requests between the controller and the API server fail.

use std::time::{Duration, Instant};

use quaylike::GateSpec;

use super::ground::{Ground, PATIENCE, until, waits_for};
use super::relay::{Call, Fault, Relay};
use crate::testbed::floats::put;
use crate::testbed::stage::{Stage, phase};

const ALWAYS: usize = usize::MAX;
/// Beyond this an operator would ask what is wrong; what the watch promises, and a promotion.
const HEARD: Duration = Duration::from_mins(1);

async fn ground(prefix: &str) -> (Ground, Relay) {
    let ground = Ground::new(prefix).await;
    let relay = Relay::start(ground.stage.plane, &ground.stage.folder).await;
    (ground, relay)
}

/// The events of a request: reasons in order, each told once.
async fn told(ground: &Ground, name: &str, last: &str) -> Vec<String> {
    let events = ground.stage.events_until(name, last, PATIENCE).await;
    assert!(events.iter().all(|e| e.series.is_none()), "{events:#?}");
    events.into_iter().filter_map(|e| e.reason).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn saves_that_land_without_an_answer_use_no_attempt_and_launch_and_tell_nothing_twice() {
    let (ground, relay) = ground("lost").await;
    let old = ground.old("f");
    let (new, images) = ground.request("a", "f");
    relay.add(Call::Save, Fault::LoseAnswer, 1, ALWAYS);
    let _controller = ground.controller_through(&relay.kubeconfig, &[]);
    ground.stage.create("r", &images).await;
    let done = ground.stage.finished("r", PATIENCE).await;
    ground.assert_promoted_once(&done, "f", &old, &new);
    let phases = ["Pending", "Incoming", "BackedUp", "Latched", "Promoted"];
    assert_eq!(told(&ground, "r", "Promoted").await, phases);
    let saves = relay.seen(Call::Save);
    println!("{} saves, none of them answered", saves.len());
    assert!(saves.iter().all(|s| s.fault == Some(Fault::LoseAnswer)));
    // Nothing was saved again for want of an answer.
    assert!(saves.iter().all(|s| s.status == Some(200)), "{saves:?}");
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_landed_and_was_sent_again_by_the_client_is_known_as_our_own() {
    let (ground, relay) = ground("again").await;
    let old = ground.old("f");
    let (new, images) = ground.request("a", "f");
    // What is on the way answers for the server, which has long since saved: kube sends the save again, and meets its own.
    relay.add(Call::Save, Fault::TimeOutAfterwards, 2, ALWAYS);
    let _controller = ground.controller_through(&relay.kubeconfig, &[]);
    ground.stage.create("r", &images).await;
    let done = ground.stage.finished("r", PATIENCE).await;
    ground.assert_promoted_once(&done, "f", &old, &new);
    let statuses: Vec<_> = relay.seen(Call::Save).iter().map(|s| s.status).collect();
    assert!(statuses.contains(&Some(409)), "{statuses:?}");
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_cuts_of_every_kind_delay_and_lose_nothing() {
    const FLOATS: usize = 6;
    let ground = Ground::of(Stage::elected("refusals").await).await;
    let relay = Relay::start(ground.stage.plane, &ground.stage.folder).await;
    let olds: Vec<_> = (0..FLOATS).map(|n| ground.old(&format!("f{n}"))).collect();
    for call in [Call::Load, Call::Save] {
        relay.add(call, Fault::Refuse(500, None), 4, ALWAYS);
        relay.add(call, Fault::Refuse(503, None), 5, ALWAYS);
        relay.add(call, Fault::Refuse(429, Some(1)), 7, 8);
        relay.add(call, Fault::LoseAnswer, 6, ALWAYS);
        relay.add(call, Fault::Hang, 23, 1);
    }
    relay.add(Call::Save, Fault::Refuse(409, None), 9, ALWAYS);
    for call in [Call::List, Call::Watch] {
        relay.add(call, Fault::Refuse(500, None), 1, 1);
        relay.add(call, Fault::Refuse(429, Some(1)), 1, 1);
        relay.add(call, Fault::LoseAnswer, 1, 1);
    }
    // Not so often that together they keep a busy machine from renewing the lease for 15 s.
    relay.add(Call::Lease, Fault::Refuse(500, None), 5, ALWAYS);
    relay.add(Call::Lease, Fault::LoseAnswer, 7, ALWAYS);
    let lease = format!("--lease-namespace={}", ground.stage.namespace);
    let mut controller =
        ground.controller_through(&relay.kubeconfig, &["--leader-elect=true", &lease]);
    let mut news = Vec::new();
    for n in 0..FLOATS {
        let (new, images) = ground.request(&format!("s{n}"), &format!("f{n}"));
        ground.stage.create(&format!("r{n}"), &images).await;
        news.push(new);
    }
    for (n, (old, new)) in olds.iter().zip(&news).enumerate() {
        let done = ground.stage.finished(&format!("r{n}"), PATIENCE).await;
        ground.assert_promoted_once(&done, &format!("f{n}"), old, new);
    }
    let met = [Call::Load, Call::Save, Call::List, Call::Watch, Call::Lease];
    let met = met.map(|call| relay.faults(call));
    println!("faults met by loads, saves, lists, watches, the lease: {met:?}");
    assert!(met.iter().all(|&faults| faults >= 3), "{met:?}");
    assert_eq!(controller.exit_code(), None, "{}", controller.log());
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_not_served_for_a_while_deletes_nobody() {
    let (ground, relay) = ground("unserved").await;
    let old = ground.old("f");
    let (a, first) = ground.request("a", "f");
    let (b, second) = ground.request("b", "f");
    let _controller = ground.controller_through(&relay.kubeconfig, &[]);
    let gate = ground.registry.gate(GateSpec::before(put("f__pre")));
    ground.stage.create("first", &first).await;
    ground.stage.reached(&gate).await;
    ground.stage.create("second", &second).await;
    let end = Instant::now() + PATIENCE;
    while !waits_for(&ground.stage.get("second").await, "Queued") {
        assert!(Instant::now() < end, "{}", ground.stage.log());
    }
    for call in [Call::Load, Call::Save, Call::List, Call::Watch] {
        // As a path that is not there, and as a kind that is not there.
        relay.add(call, Fault::NotServed, 2, ALWAYS);
        relay.add(call, Fault::Refuse(404, None), 1, ALWAYS);
    }
    gate.open();
    until("four loads", PATIENCE, || relay.faults(Call::Load) >= 4).await;
    relay.clear();
    let first = ground.stage.finished("first", PATIENCE).await;
    assert_eq!(phase(&first), "Posted");
    let second = ground.stage.finished("second", PATIENCE).await;
    assert_eq!(phase(&second), "Posted");
    assert_eq!(ground.history("f"), [old, a, b], "{}", ground.stage.log());
    assert_eq!(ground.puts("f"), 2);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_goes_silent_is_given_up_and_what_it_kept_back_is_heard_of() {
    let (ground, relay) = ground("silent").await;
    let (old, waiting) = (ground.old("f"), ground.old("g"));
    let (new, images) = ground.request("a", "f");
    let _controller = ground.controller_through(&relay.kubeconfig, &[]);
    // One holds a float and is deleted unheard, another waits for that.
    let (_, held) = ground.request("b", "g");
    let gate = ground.registry.gate(GateSpec::before(put("g__pre")));
    ground.stage.create("held", &held).await;
    ground.stage.reached(&gate).await;
    let (next, waiter) = ground.request("c", "g");
    ground.stage.create("waiter", &waiter).await;
    let end = Instant::now() + PATIENCE;
    while !waits_for(&ground.stage.get("waiter").await, "Queued") {
        assert!(Instant::now() < end, "{}", ground.stage.log());
    }
    relay.silence_watches();
    let silent = Instant::now();
    ground.stage.delete("held").await;
    ground.stage.create("r", &images).await;
    let done = ground.stage.finished("r", HEARD).await;
    println!(
        "heard and promoted after {:.1?} of silence",
        silent.elapsed()
    );
    ground.assert_promoted_once(&done, "f", &old, &new);
    gate.open();
    let done = ground.stage.finished("waiter", PATIENCE).await;
    println!("the waiter went on after {:.1?}", silent.elapsed());
    assert_eq!(phase(&done), "Posted");
    assert_eq!(ground.history("g"), [waiting, next]);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_list_or_watch_that_is_never_answered_is_asked_again() {
    let (ground, relay) = ground("deaf").await;
    let old = ground.old("f");
    let (new, images) = ground.request("a", "f");
    relay.add(Call::List, Fault::Hang, 1, 1);
    let _controller = ground.controller_through(&relay.kubeconfig, &[]);
    until("a list", PATIENCE, || relay.faults(Call::List) == 1).await;
    let began = Instant::now();
    ground.stage.create("r", &images).await;
    let done = ground.stage.finished("r", HEARD).await;
    println!("promoted {:.1?} after the list that hung", began.elapsed());
    ground.assert_promoted_once(&done, "f", &old, &new);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_expired_resource_version_what_left_and_what_came_is_found_by_a_list() {
    for (prefix, expiry) in [
        ("expired-event", Fault::Expired),
        ("expired-answer", Fault::Refuse(410, None)),
    ] {
        let (ground, relay) = ground(prefix).await;
        let old = ground.old("f");
        let (_, held) = ground.request("a", "f");
        let (new, waiter) = ground.request("b", "f");
        let _controller = ground.controller_through(&relay.kubeconfig, &[]);
        let gate = ground.registry.gate(GateSpec::before(put("f__pre")));
        ground.stage.create("held", &held).await;
        ground.stage.reached(&gate).await;
        // While nothing is heard, one leaves and one comes; then where it was heard last has expired.
        relay.add(Call::Watch, Fault::Refuse(500, None), 1, ALWAYS);
        relay.drop_watches();
        until("a watch", PATIENCE, || relay.faults(Call::Watch) > 0).await;
        ground.stage.delete("held").await;
        ground.stage.create("waiter", &waiter).await;
        relay.clear();
        relay.add(Call::Watch, expiry, 1, 1);
        gate.open();
        let done = ground.stage.finished("waiter", PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{prefix}");
        assert_eq!(ground.history("f"), [old, new], "{prefix}");
        let expired = relay.seen(Call::Watch).into_iter();
        let expired = expired.filter(|s| s.fault == Some(expiry)).count();
        assert_eq!(expired, 1, "{prefix}");
        assert_eq!(
            relay
                .seen(Call::List)
                .iter()
                .filter(|s| s.status == Some(200))
                .count(),
            // One sees whether a leader has ever worked here, one begins the watch, one follows the expiry.
            3,
            "{prefix}"
        );
        ground.assert_sound();
    }
}
