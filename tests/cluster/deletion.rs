//! A request is deleted at each of its tag writes, before it lands and after: the tags stay safe, and those who wait go on.

use std::time::{Duration, Instant};

use quaylike::{GateSpec, Matcher, Moment};

use super::ground::{Ground, PATIENCE, waits_for};
use crate::testbed::floats::put;
use crate::testbed::stage::phase;

const WRITES: [&str; 5] = ["incoming", "prune", "pre", "latch", "post"];

fn write(kind: &str, tag: &str) -> Matcher {
    match kind {
        "incoming" => put(&format!("{tag}_incoming")),
        "prune" => Matcher::put_manifest()
            .repository("ci")
            .reference_suffix(&format!("_prune_{tag}")),
        "pre" => put(&format!("{tag}__pre")),
        "latch" => put(tag),
        _ => put(&format!("{tag}__post1")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_deleted_at_any_tag_write_leaves_safe_tags_and_lets_the_next_one_go_on() {
    let ground = Ground::new("deletions").await;
    // Time for a tag write to stand at its gate.
    let _controller = ground.controller(&["--settle-seconds=8"]);
    let cases = WRITES.into_iter().flat_map(|kind| {
        let moments = [Moment::Before, Moment::After];
        moments.map(|moment| deleted_at(&ground, kind, moment))
    });
    futures::future::join_all(cases).await;
    assert_eq!(ground.stage.list().await.len(), 2 * WRITES.len());
    ground.assert_sound();
}

async fn deleted_at(ground: &Ground, kind: &str, moment: Moment) {
    let tag = format!("{kind}-{moment:?}").to_lowercase();
    let old = ground.old(&tag);
    let (a, first) = ground.request(&format!("{tag}-a"), &tag);
    let (b, second) = ground.request(&format!("{tag}-b"), &tag);
    let gate = ground.registry.gate(GateSpec {
        matcher: write(kind, &tag),
        nth: 1,
        moment,
    });
    ground.stage.create(&tag, &first).await;
    ground.stage.reached(&gate).await;
    let waiter = format!("{tag}-waiter");
    ground.stage.create(&waiter, &second).await;
    let end = Instant::now() + PATIENCE;
    while !waits_for(&ground.stage.get(&waiter).await, "Queued") {
        assert!(Instant::now() < end, "{tag}: {}", ground.stage.log());
    }
    ground.stage.delete(&tag).await;
    // Its deletion is heard of while the write stands there.
    tokio::time::sleep(Duration::from_millis(500)).await;
    gate.open();
    let done = ground.stage.finished(&waiter, PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{tag}");
    let moved = matches!(kind, "latch" | "post");
    let wanted = if moved { vec![old, a, b] } else { vec![old, b] };
    assert_eq!(ground.history(&tag), wanted, "{tag}");
    // Everything that the float showed is still held by a prune tag of it.
    let suffix = format!("_prune_{tag}");
    let tags = ground.registry.tags("ci");
    let pinned: Vec<String> = tags
        .iter()
        .filter(|(name, _)| name.ends_with(&suffix))
        .map(|(_, digest)| digest.to_string())
        .collect();
    for digest in &wanted[..wanted.len() - 1] {
        assert!(pinned.contains(digest), "{tag}: {digest} of {tags:?}");
    }
}
