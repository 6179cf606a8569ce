//! Floats are taken back.

use std::time::Instant;

use quaylike::ImageSpec as Image;
use quaylike::{GateSpec, Shape};
use serde_json::{Value, json};

use super::{PATIENCE, Plugin};
use crate::ground::Ground;
use crate::testbed::floats::put;
use crate::testbed::stage::{condition, spec};

/// Promotes images of these names to floats `a` and `b` as one group, and gives their digests.
async fn promoted(ground: &Ground, request: &str) -> [String; 2] {
    let images =
        ["a", "b"].map(|tag| (ground.source(&format!("{request}{tag}")), ground.float(tag)));
    let pairs: Vec<(&str, &str)> = images
        .iter()
        .map(|((_, source), float)| (&**source, &**float))
        .collect();
    ground.stage.create(request, &spec(&pairs)).await;
    let done = ground.stage.finished(request, PATIENCE).await;
    assert_eq!(
        condition(&done, "Complete").0,
        "True",
        "{}",
        ground.stage.log()
    );
    images.map(|((digest, _), _)| digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_back_together_and_a_float_one_more_and_never_forward_again() {
    let ground = Ground::new("undo").await;
    let _controller = ground.controller(&[]);
    let plugin = Plugin::of(&ground.stage).await;
    let plain = format!("--plain-http={}", ground.registry.host());
    let old = ["a", "b"].map(|tag| ground.old(tag));
    let first = promoted(&ground, "one").await;
    let second = promoted(&ground, "two").await;
    let at = || ["a", "b"].map(|tag| ground.at(tag).unwrap());
    assert_eq!(at(), second);

    // It says what it would do, and does it only if that is asked for.
    let said = plugin.says(&["undo", "two", &plain]).await.exits(0);
    let printed: Value = serde_saphyr::from_str(&said.out).unwrap();
    assert_eq!(printed["spec"]["undo"], true);
    for (index, tag) in ["a", "b"].iter().enumerate() {
        let image = &printed["spec"]["images"][index];
        // Without a Secret: a rule may grant prune tags of a float's own.
        let displaced = &ground.stage.get("two").await.status.unwrap().images[index].displaced[0];
        assert_eq!(displaced.digest, first[index]);
        let source = ground.float(&displaced.prune_tag);
        let wanted =
            json!({"source": source, "float": ground.float(tag), "replaces": second[index]});
        assert_eq!(*image, wanted);
    }
    assert_eq!(ground.stage.list().await.len(), 2);
    let said = plugin
        .says(&["undo", "two", "--apply", "--wait", &plain, "-o", "json"])
        .await
        .exits(0);
    assert_eq!(at(), first);
    let undo: Value = serde_json::from_str(&said.out).unwrap();
    let name = undo["metadata"]["name"].as_str().unwrap();
    for image in undo["status"]["images"].as_array().unwrap() {
        let pin = image["displaced"][0]["pruneTag"].as_str().unwrap();
        assert!(pin.ends_with("__broken"), "{pin}");
    }

    // Not twice, nor forward again.
    plugin
        .says(&["undo", "two", &plain])
        .await
        .refuses(2, &["taken back already", "undo the float"]);
    plugin
        .says(&["undo", name, &plain])
        .await
        .refuses(2, &["is an undo"]);
    plugin
        .says(&["undo", &ground.float("a"), "--apply", "--wait", &plain])
        .await
        .exits(0);
    assert_eq!(at(), [old[0].clone(), first[1].clone()]);
    plugin
        .says(&["undo", &ground.float("a"), &plain])
        .await
        .refuses(2, &["nothing is known", "--to"]);
    let to = format!("--to={}", second[0]);
    plugin
        .says(&[
            "undo",
            &ground.float("a"),
            &to,
            "--apply",
            "--wait",
            "--no-registry",
        ])
        .await
        .exits(0);
    assert_eq!(at(), [second[0].clone(), first[1].clone()]);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_names_what_somebody_moved_since_and_takes_back_the_rest_only_if_asked() {
    let ground = Ground::new("since").await;
    let _controller = ground.controller(&[]);
    let plugin = Plugin::of(&ground.stage).await;
    let plain = format!("--plain-http={}", ground.registry.host());
    let old = ["a", "b"].map(|tag| ground.old(tag));
    promoted(&ground, "one").await;
    let foreign = Image::new(Shape::Oci, "foreign");
    let foreign = ground
        .registry
        .seed_spec("ci", "b", &foreign)
        .unwrap()
        .to_string();
    let before = ground.stage.list().await.len();
    let refused = ["ci:b is on", &foreign, "--partial"];
    plugin
        .says(&["undo", "one", "--apply", &plain])
        .await
        .refuses(2, &refused);
    plugin
        .says(&["undo", &ground.float("b"), "--apply", &plain])
        .await
        .refuses(2, &[&foreign, "--to"]);
    plugin
        .says(&["undo", &ground.float("never"), &plain])
        .await
        .refuses(2, &["nothing to take back"]);
    plugin
        .says(&["undo", &ground.float("a"), "--to=20200101000000", &plain])
        .await
        .refuses(2, &["--to 20200101000000"]);
    plugin
        .says(&["undo", "one", "--to=20200101000000", &plain])
        .await
        .refuses(2, &["--to goes with a float"]);
    plugin
        .says(&["undo", "absent", &plain])
        .await
        .refuses(2, &["absent does not exist"]);
    // One that moved nothing.
    let gone = format!("{}/src/none:gone", ground.registry.host());
    ground
        .stage
        .create("failed", &spec(&[(&gone, &ground.float("c"))]))
        .await;
    ground.stage.finished("failed", PATIENCE).await;
    plugin
        .says(&["undo", "failed", &plain])
        .await
        .refuses(2, &["nothing to go back to", "SourceGone"]);
    let mut held = spec(&[(&gone, &ground.float("d"))]);
    held["suspend"] = json!(true);
    ground.stage.create("held", &held).await;
    plugin
        .says(&["undo", "held", &plain])
        .await
        .refuses(2, &["has not ended", "cancel"]);
    // One that moved its float off nothing, and what it superseded.
    let (_, first) = ground.request("first", "d");
    ground.stage.create("first", &first).await;
    ground.stage.finished("first", PATIENCE).await;
    plugin
        .says(&["undo", "first", &plain])
        .await
        .refuses(2, &["moved no float off anything"]);
    plugin
        .says(&["undo", "held", &plain])
        .await
        .refuses(2, &["nothing to go back to", "Superseded"]);
    assert_eq!(ground.stage.list().await.len(), before + 3);

    let said = plugin
        .says(&["undo", "one", "--partial", "--apply", "--wait", &plain])
        .await
        .exits(0);
    assert!(
        said.err.contains("left out") && said.err.contains(&foreign),
        "{said:#?}"
    );
    assert_eq!(
        ["a", "b"].map(|tag| ground.at(tag).unwrap()),
        [old[0].clone(), foreign]
    );
    ground.assert_sound();
}

/// How many floats the group has: as many as `UNDO_FLOATS` says, for the figure.
fn many() -> usize {
    let said = std::env::var("UNDO_FLOATS");
    said.map_or(20, |number| number.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_moves_a_float_while_its_group_is_taken_back_leaves_all_others_where_they_are()
 {
    let ground = Ground::new("many").await;
    let _controller = ground.controller(&[]);
    let plugin = Plugin::of(&ground.stage).await;
    let plain = format!("--plain-http={}", ground.registry.host());
    let tags: Vec<String> = (0..many()).map(|number| format!("f{number}")).collect();
    let old: Vec<String> = tags.iter().map(|tag| ground.old(tag)).collect();
    let sources: Vec<_> = tags.iter().map(|tag| ground.source(tag)).collect();
    let floats: Vec<String> = tags.iter().map(|tag| ground.float(tag)).collect();
    let pairs = sources.iter().zip(&floats);
    let pairs: Vec<(&str, &str)> = pairs
        .map(|((_, source), float)| (&**source, &**float))
        .collect();
    ground.stage.create("group", &spec(&pairs)).await;
    let promoted = ground.stage.finished("group", PATIENCE).await;
    assert_eq!(condition(&promoted, "Complete").0, "True");
    let at = || -> Vec<String> { tags.iter().map(|tag| ground.at(tag).unwrap()).collect() };

    // The command has looked at every float; a stranger moves one before the undo commits.
    let gate = GateSpec::before(put(&format!("{}__pre", tags[1])));
    let gate = ground.registry.gate(gate);
    let arguments = ["undo", "group", "--apply", "--wait", &plain];
    let stranger = async {
        gate.reached().await;
        let image = Image::new(Shape::Oci, "foreign");
        let foreign = ground.registry.seed_spec("ci", &tags[0], &image).unwrap();
        gate.open();
        foreign.to_string()
    };
    let (said, foreign) = tokio::join!(plugin.says(&arguments), stranger);
    let said = said.exits(1);
    assert!(said.out.contains("PreconditionFailed"), "{said:#?}");
    let mut wanted: Vec<String> = sources.into_iter().map(|(digest, _)| digest).collect();
    wanted[0].clone_from(&foreign);
    assert_eq!(at(), wanted, "no other float moved");

    // And the rest of them goes back without it.
    let start = Instant::now();
    let arguments = ["undo", "group", "--partial", "--apply", "--wait", &plain];
    plugin.says(&arguments).await.exits(0);
    let floats = tags.len() - 1;
    println!("an undo of {floats} floats: {:.1?}", start.elapsed());
    let mut wanted = old;
    wanted[0] = foreign;
    assert_eq!(at(), wanted);
    ground.assert_sound();
}
