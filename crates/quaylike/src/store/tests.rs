//! What the store holds and what it lets go, exactly.

#![allow(clippy::unwrap_used)]

use super::super::seed::{Image, ImageBuilder, Layer};
use std::collections::HashSet;

use super::*;

const R: &str = "r";
const HOLD: Duration = Duration::from_mins(1);

struct World {
    store: Store,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let settings = Settings {
            hold: HOLD,
            audit: true,
            ..Settings::default()
        };
        Self {
            store: Store::new(settings),
            now: Instant::now(),
        }
    }

    fn push(&mut self, tag: &str, image: &Image) {
        image.put(&mut self.store, R, Some(tag), self.now).unwrap();
    }

    fn hold(&mut self, image: &Image) {
        image.put(&mut self.store, R, None, self.now).unwrap();
    }

    fn untag(&mut self, tag: &str) {
        self.store.delete_tag(R, tag, self.now).unwrap();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn resolves(&mut self, image: &Image) -> bool {
        self.store.manifest(R, image.digest(), self.now).is_ok()
    }

    fn has(&mut self, layer: &Layer) -> bool {
        self.store.blob(R, layer.digest(), self.now).is_ok()
    }

    /// Manifests and blobs left.
    fn left(&mut self) -> (usize, usize) {
        self.store.expire(self.now);
        let found = &self.store.repositories[R];
        (found.manifests.len(), found.blobs.len())
    }
}

fn image(seed: &str, layers: &[&str]) -> Image {
    let layers = layers.iter().map(|name| Layer::named(name));
    let builder = layers.fold(ImageBuilder::oci(seed), ImageBuilder::layer);
    builder.build().unwrap()
}

fn index(children: &[&Image]) -> Image {
    Image::index(children.iter().map(|child| (*child).clone()).collect()).unwrap()
}

#[test]
fn the_last_tag_takes_the_manifest_and_its_blobs_with_it() {
    let mut world = World::new();
    let a = image("a", &["one"]);
    world.push("x", &a);
    world.push("y", &a);
    world.untag("x");
    assert!(world.resolves(&a) && world.has(&Layer::named("one")));
    world.untag("y");
    assert_eq!(world.left(), (0, 0));
}

#[test]
fn a_tag_that_moves_collects_what_it_leaves_and_keeps_shared_blobs() {
    let mut world = World::new();
    let (a, b) = (
        image("a", &["base", "only-a"]),
        image("b", &["base", "only-b"]),
    );
    world.push("x", &a);
    world.push("x", &b);
    assert!(!world.resolves(&a) && world.resolves(&b));
    assert!(world.has(&Layer::named("base")) && !world.has(&Layer::named("only-a")));
    assert_eq!(world.left(), (1, 3));
}

#[test]
fn retagging_the_same_digest_changes_nothing_but_the_history() {
    let mut world = World::new();
    let a = image("a", &["one"]);
    world.push("x", &a);
    world.push("x", &a);
    assert_eq!(world.left(), (1, 2));
    assert_eq!(world.store.history(R, "x").len(), 2);
}

#[test]
fn an_index_holds_its_children_at_any_depth() {
    let mut world = World::new();
    let (a, b, c) = (
        image("a", &["one"]),
        image("b", &["two"]),
        image("c", &["three"]),
    );
    let inner = index(&[&a, &b]);
    let outer = index(&[&inner, &c]);
    world.push("x", &outer);
    world.push("child", &a);
    world.pass(HOLD * 2);
    assert_eq!(world.left(), (5, 6));
    world.untag("child");
    assert!(world.resolves(&a));
    world.push("child", &a);
    world.untag("x");
    assert!(world.resolves(&a) && !world.resolves(&inner) && !world.resolves(&b));
    assert_eq!(world.left(), (1, 2));
}

#[test]
fn a_child_of_two_indexes_stays_until_both_are_gone() {
    let mut world = World::new();
    let (a, b, c) = (image("a", &[]), image("b", &[]), image("c", &[]));
    world.push("x", &index(&[&a, &b]));
    world.push("y", &index(&[&a, &c]));
    world.untag("x");
    assert!(world.resolves(&a) && !world.resolves(&b) && world.resolves(&c));
    world.untag("y");
    assert_eq!(world.left(), (0, 0));
}

#[test]
fn what_is_pushed_without_a_tag_lives_for_the_grace_and_no_longer() {
    let mut world = World::new();
    let a = image("a", &["one"]);
    world.hold(&a);
    world.pass(HOLD.saturating_sub(Duration::from_millis(1)));
    assert!(world.resolves(&a));
    world.pass(Duration::from_millis(1));
    assert!(!world.resolves(&a));
    assert_eq!(world.left(), (0, 0));
}

#[test]
fn pushing_again_renews_the_grace() {
    let mut world = World::new();
    let a = image("a", &["one"]);
    world.hold(&a);
    world.pass(HOLD / 2);
    world.hold(&a);
    world.pass(HOLD / 2);
    assert!(world.resolves(&a));
    world.pass(HOLD / 2);
    assert!(!world.resolves(&a));
}

#[test]
fn a_grace_ends_with_the_first_tag_and_does_not_outlive_it() {
    let mut world = World::new();
    let (a, b) = (image("a", &["one"]), image("b", &["two"]));
    let both = index(&[&a, &b]);
    world.push("x", &both);
    world.hold(&image("a", &["one"]));
    world.push("y", &both);
    world.untag("x");
    world.untag("y");
    assert_eq!(world.left(), (0, 0));
}

#[test]
fn content_pushed_again_while_held_survives_its_holder_for_the_grace() {
    let mut world = World::new();
    let (a, b) = (image("a", &["one"]), image("b", &["two"]));
    world.push("x", &index(&[&a, &b]));
    world.hold(&a);
    world.untag("x");
    assert!(world.resolves(&a) && !world.resolves(&b));
    world.pass(HOLD);
    assert_eq!(world.left(), (0, 0));
}

#[test]
fn a_hold_that_expires_between_children_and_index_refuses_the_index() {
    let mut world = World::new();
    let (a, b) = (image("a", &["one"]), image("b", &["two"]));
    let both = index(&[&a, &b]);
    world.hold(&a);
    world.pass(HOLD / 2);
    world.hold(&b);
    world.pass(HOLD / 2);
    let refused = world
        .store
        .put_manifest(R, Some("x"), &both.manifest, world.now);
    let children = vec![a.digest()];
    assert_eq!(
        refused.unwrap_err(),
        StoreError::ContentUnknown {
            blobs: vec![],
            children
        }
    );
    assert!(world.store.tags(R, world.now).unwrap().is_empty());
}

#[test]
fn an_index_held_by_grace_holds_its_children_and_they_go_with_it() {
    let mut world = World::new();
    let a = image("a", &["one"]);
    world.push("child", &a);
    let of_a = index(&[&a]);
    world
        .store
        .put_manifest(R, None, &of_a.manifest, world.now)
        .unwrap();
    world.untag("child");
    assert!(world.resolves(&a));
    world.pass(HOLD);
    assert_eq!(world.left(), (0, 0));
}

#[test]
fn uploaded_and_mounted_blobs_live_for_the_grace() {
    let mut world = World::new();
    let layer = Layer::named("one");
    world.push("x", &image("a", &["one"]));
    world
        .store
        .mount_blob(R, "other", layer.digest(), world.now)
        .unwrap();
    assert!(world.store.blob("other", layer.digest(), world.now).is_ok());
    world.pass(HOLD);
    assert!(
        world
            .store
            .blob("other", layer.digest(), world.now)
            .is_err()
    );
    assert!(world.has(&layer));
}

#[test]
fn repositories_do_not_hold_each_others_content() {
    let mut world = World::new();
    let a = image("a", &["one"]);
    world.push("x", &a);
    a.put(&mut world.store, "other", Some("x"), world.now)
        .unwrap();
    world.untag("x");
    assert!(!world.resolves(&a));
    assert!(world.store.manifest("other", a.digest(), world.now).is_ok());
    assert!(
        world
            .store
            .blob("other", Layer::named("one").digest(), world.now)
            .is_ok()
    );
}

#[test]
fn deleting_a_digest_removes_all_its_tags_but_not_a_child_of_a_held_index() {
    let mut world = World::new();
    let (a, b) = (image("a", &["one"]), image("b", &["two"]));
    world.push("x", &a);
    world.push("y", &a);
    world.push("z", &index(&[&b]));
    world.push("b", &b);
    let mut removed = world
        .store
        .delete_manifest(R, a.digest(), world.now)
        .unwrap();
    removed.sort();
    assert_eq!(removed, ["x", "y"]);
    assert!(!world.resolves(&a));
    assert_eq!(
        world
            .store
            .delete_manifest(R, b.digest(), world.now)
            .unwrap(),
        ["b"]
    );
    assert!(world.resolves(&b));
    assert!(world.store.dangling().is_empty());
}

#[test]
fn without_a_referrers_api_only_a_list_holds_a_referrer() {
    let mut world = World::new();
    let settings = Settings {
        referrers: false,
        ..world.store.settings
    };
    world.store.change(settings, world.now);
    let subject = ImageBuilder::oci("subject").build().unwrap();
    let referrer = |kind: &str| {
        let builder = ImageBuilder::artifact(kind);
        builder.referring_to(&subject, kind).build().unwrap()
    };
    let (listed, unlisted) = (referrer("listed"), referrer("unlisted"));
    world.push("x", &subject);
    world.hold(&unlisted);
    let list = Image::index(vec![listed.clone()]).unwrap();
    world.push("list", &list);
    assert!(world.resolves(&unlisted));
    world.pass(HOLD);
    assert!(world.resolves(&listed) && !world.resolves(&unlisted));
    // Switched on again, subjects hold; switched off, they let go.
    let settings = Settings {
        referrers: true,
        ..settings
    };
    world.store.change(settings, world.now);
    world.hold(&unlisted);
    world.pass(HOLD);
    assert!(world.resolves(&unlisted));
    let settings = Settings {
        referrers: false,
        ..settings
    };
    world.store.change(settings, world.now);
    assert!(world.resolves(&listed) && !world.resolves(&unlisted));
}

#[test]
fn a_referrer_lives_as_long_as_its_subject() {
    let mut world = World::new();
    let a = image("a", &["one"]);
    let signature = ImageBuilder::oci("signature")
        .referring_to(&a, "sig")
        .build()
        .unwrap();
    world.push("x", &a);
    world.hold(&signature);
    world.pass(HOLD);
    assert!(world.resolves(&signature));
    assert_eq!(world.store.referrers(R, a.digest(), world.now).len(), 1);
    world.untag("x");
    assert!(!world.resolves(&signature));
    assert_eq!(world.left(), (0, 0));
}

#[test]
fn without_collection_everything_stays_until_it_is_switched_on() {
    let mut world = World::new();
    let mut settings = world.store.settings;
    settings.collect = false;
    world.store.change(settings, world.now);
    let (a, b) = (image("a", &["one"]), image("b", &["two"]));
    world.push("x", &a);
    world.push("x", &b);
    world.pass(HOLD * 2);
    assert!(world.resolves(&a));
    settings.collect = true;
    world.store.change(settings, world.now);
    assert_eq!(world.left(), (1, 2));
    assert!(world.resolves(&b));
}

#[test]
fn a_lax_registry_takes_a_dangling_index_and_the_audit_sees_it_come_and_go() {
    let mut world = World::new();
    let a = image("a", &["one"]);
    let of_a = index(&[&a]);
    world.store.settings.check = false;
    let put = world
        .store
        .put_manifest(R, Some("x"), &of_a.manifest, world.now);
    put.unwrap();
    let dangling = world.store.dangling();
    assert_eq!(dangling.len(), 1);
    assert_eq!(
        (dangling[0].tag.as_str(), dangling[0].missing),
        ("x", a.digest())
    );
    world.hold(&a);
    assert!(world.store.dangling().is_empty());
    assert_eq!(world.store.audit_trail()[0], dangling[0]);
    world.pass(HOLD);
    assert!(world.resolves(&a), "the index that came first holds it");
    world.untag("x");
    assert_eq!(world.left(), (0, 0));
}

#[test]
fn the_audit_notices_storage_that_breaks() {
    let mut world = World::new();
    let a = image("a", &["one"]);
    world.push("x", &index(&[&a]));
    assert!(world.store.audit_trail().is_empty());
    let lost = Layer::named("one").digest();
    assert!(world.store.lose_blob(R, lost));
    assert_eq!(world.store.dangling()[0].missing, lost);
    assert!(world.store.lose_manifest(R, a.digest()));
    assert_eq!(world.store.dangling()[0].missing, a.digest());
    assert_eq!(world.store.audit_trail().len(), 2);
}

#[test]
fn a_stale_read_shows_the_tag_as_it_was_even_when_that_is_collected() {
    let mut world = World::new();
    let (a, b) = (image("a", &[]), image("b", &[]));
    let lag = Duration::from_secs(5);
    world.push("x", &a);
    let stale = |world: &World| world.store.stale(R, "x", lag, world.now);
    assert!(matches!(stale(&world), Stale::Absent));
    world.pass(lag);
    assert!(matches!(stale(&world), Stale::Current));
    world.push("x", &b);
    assert!(matches!(stale(&world), Stale::Was(was) if was.digest == a.digest()));
    world.pass(lag);
    world.untag("x");
    assert!(matches!(stale(&world), Stale::Was(was) if was.digest == b.digest()));
    world.pass(lag);
    assert!(matches!(stale(&world), Stale::Current));
}

#[test]
fn a_long_random_life_keeps_exactly_what_a_full_walk_reaches() {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    let mut world = World::new();
    let mut draws = StdRng::seed_from_u64(7);
    let singles: Vec<Image> = (0..8)
        .map(|n| {
            image(
                &format!("i{n}"),
                &[["p", "q", "r"][n % 3], ["s", "t"][n % 2]],
            )
        })
        .collect();
    let mut images = singles.clone();
    images.push(index(&[&singles[0], &singles[1]]));
    images.push(index(&[&singles[1], &singles[2], &singles[3]]));
    images.push(index(&[&images[8].clone(), &singles[4]]));
    for _ in 0..3_000 {
        let image = images[draws.random_range(0..images.len())].clone();
        let tag = format!("t{}", draws.random_range(0..4));
        match draws.random_range(0..10) {
            0..6 => world.push(&tag, &image),
            6 => world.hold(&image),
            7 | 8 => drop(world.store.delete_tag(R, &tag, world.now)),
            _ => world.pass(HOLD / 3),
        }
        world.store.expire(world.now);
        let found = &world.store.repositories[R];
        // Walk from tags and from what has a grace.
        let graced = found
            .manifests
            .iter()
            .filter(|(_, kept)| kept.grace.is_some());
        let mut work: Vec<Digest> = found
            .tags
            .values()
            .copied()
            .chain(graced.map(|(d, _)| *d))
            .collect();
        let (mut manifests, mut blobs) = (HashSet::new(), HashSet::new());
        while let Some(digest) = work.pop() {
            if manifests.insert(digest) {
                let manifest = &found.manifests[&digest].content;
                work.extend(&manifest.children);
                blobs.extend(manifest.blobs.iter().copied());
            }
        }
        blobs.extend(
            found
                .blobs
                .iter()
                .filter(|(_, kept)| kept.grace.is_some())
                .map(|(d, _)| *d),
        );
        assert_eq!(
            found.manifests.keys().copied().collect::<HashSet<_>>(),
            manifests
        );
        assert_eq!(found.blobs.keys().copied().collect::<HashSet<_>>(), blobs);
    }
    assert!(world.store.audit_trail().is_empty());
}

#[test]
fn at_one_level_a_grandchild_of_a_tag_does_not_resolve_and_dangles() {
    let mut world = World::new();
    let settings = Settings {
        one_level: true,
        ..world.store.settings
    };
    world.store.change(settings, world.now);
    let (a, b) = (image("a", &["one"]), image("b", &["two"]));
    let inner = index(&[&a]);
    let outer = index(&[&inner, &b]);
    world.push("x", &outer);
    assert!(world.resolves(&outer) && world.resolves(&inner) && world.resolves(&b));
    assert!(!world.resolves(&a));
    let missing: Vec<Digest> = world.store.dangling().iter().map(|d| d.missing).collect();
    assert_eq!(missing, [a.digest()]);
    // A tag of its own makes it good, and it was never collected.
    world.push("inner", &inner);
    assert!(world.resolves(&a) && world.store.dangling().is_empty());
    world.untag("inner");
    assert!(!world.resolves(&a));
}

#[test]
fn a_sparse_index_is_taken_without_its_children_and_dangles() {
    let mut world = World::new();
    let settings = Settings {
        sparse: true,
        ..world.store.settings
    };
    world.store.change(settings, world.now);
    let (a, b) = (image("a", &["one"]), image("b", &["two"]));
    world.hold(&a);
    let both = index(&[&a, &b]);
    world
        .store
        .put_manifest(R, Some("x"), &both.manifest, world.now)
        .unwrap();
    let missing: Vec<Digest> = world.store.dangling().iter().map(|d| d.missing).collect();
    assert_eq!(missing, [b.digest()]);
    // Blobs are looked for all the same.
    let bare = image("c", &["three"]);
    let refused = world.store.put_manifest(R, None, &bare.manifest, world.now);
    assert!(refused.is_err());
}

fn labelled(seed: &str, labels: &[(&str, &str)]) -> Image {
    let builder = labels
        .iter()
        .fold(ImageBuilder::oci(seed), |image, (name, value)| {
            image.label(name, value)
        });
    builder.build().unwrap()
}

#[test]
fn a_label_makes_every_tag_of_its_image_expire_unless_it_is_set_again() {
    let mut world = World::new();
    let a = labelled("a", &[("quay.expires-after", "2h")]);
    world.push("x", &a);
    world.pass(Duration::from_hours(1));
    world.push("y", &a);
    world.pass(Duration::from_hours(1));
    assert!(world.store.tagged(R, "x", world.now).is_err());
    assert!(world.store.tagged(R, "y", world.now).is_ok());
    world.push("y", &image("b", &[]));
    world.pass(Duration::from_hours(9));
    assert!(world.store.tagged(R, "y", world.now).is_ok());
    assert_eq!(world.left().0, 1);
}

#[test]
fn an_index_has_the_labels_that_all_its_children_have_with_the_same_value() {
    let (expires, immutable) = ("quay.expires-after", "quay.immutable");
    for (other, expired, fixed) in [
        (vec![(expires, "2h"), (immutable, "true")], true, true),
        (vec![(expires, "3h"), (immutable, "true")], false, true),
        (vec![], false, false),
    ] {
        let mut world = World::new();
        let a = labelled("a", &[(expires, "2h"), (immutable, "true")]);
        world.push("x", &index(&[&a, &labelled("b", &other)]));
        assert_eq!(world.store.is_immutable(R, "x"), fixed, "{other:?}");
        world.pass(Duration::from_hours(2));
        let gone = world.store.tagged(R, "x", world.now).is_err();
        assert_eq!(gone, expired, "{other:?}");
        assert!(!world.store.is_immutable(R, "x") || !expired);
    }
}
