//! Floats are taken back.

use quaylike::ImageSpec as Image;
use quaylike::Shape;
use serde_json::{Value, json};

use super::{PATIENCE, Plugin};
use crate::ground::Ground;
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
    assert_eq!(ground.stage.list().await.len(), before + 2);

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
