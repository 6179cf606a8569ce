//! Files that are damaged or never were what they should be: a clear error, and the file is left as it is.

use std::path::Path;
use std::time::{Duration, Instant};

use promotion_controller::api::PromotionRequest;
use promotion_controller::registry::Keyring;
use promotion_controller::store::Store as _;
use promotion_controller::store::file::{FileStore, read_requests};
use proptest::prelude::*;
use serde_json::json;

use crate::testbed::stage::{object, spec};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/example.yaml");

/// Opens a state file with the requests of the example; the error where that is refused.
fn opened(state: &Path) -> Result<(), String> {
    let objects = read_requests(Path::new(EXAMPLE)).unwrap();
    FileStore::open(
        objects,
        state,
        Keyring::anonymous(),
        Duration::ZERO,
        Duration::ZERO,
    )
    .map(drop)
    .map_err(|error| error.to_string())
}

/// That a file of this content is refused, in words that name it, and not touched.
fn refused(state: &Path, content: &[u8]) -> Result<(), String> {
    std::fs::write(state, content).unwrap();
    let Err(error) = opened(state) else {
        return Err("it is taken for a state".into());
    };
    if std::fs::read(state).unwrap() != content {
        return Err(format!("it was changed: {error}"));
    }
    let named = error.starts_with(&state.display().to_string()) || error.starts_with("cannot read");
    if !named || !error.contains("another --state") {
        return Err(format!("not clear: {error}"));
    }
    Ok(())
}

/// What a run has left: one request at work, with everything that a state can say of it.
async fn real(state: &Path) -> Vec<u8> {
    let objects = read_requests(Path::new(EXAMPLE)).unwrap();
    let (store, _updates) = FileStore::open(
        objects,
        state,
        Keyring::anonymous(),
        Duration::ZERO,
        Duration::ZERO,
    )
    .unwrap();
    let mut object = store.objects()[0].clone();
    let images: Vec<_> = object
        .spec
        .images
        .iter()
        .map(|image| {
            let (_, tag) = image.float.rsplit_once(':').unwrap();
            json!({
                "float": image.float, "phase": "BackedUp", "message": "x: y # \"z\"", "attempts": 1,
                "source": {"digest": crate::testbed::scripted::digest(b"source"), "mediaType": crate::testbed::scripted::OCI},
                "displaced": [{"digest": crate::testbed::scripted::digest(b"old"), "pruneTag": format!("20260101000000_prune_{tag}")}],
            })
        })
        .collect();
    let status = object.status.as_mut().unwrap();
    status.images = serde_json::from_value(json!(images)).unwrap();
    status.committed = Some(true);
    status.phase = Some("BackedUp".into());
    store.save(&object).await.unwrap();
    drop(store);
    std::fs::read(state).unwrap()
}

#[tokio::test]
async fn a_state_that_was_cut_off_or_changed_anywhere_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("a.state.yaml");
    let whole = real(&state).await;
    assert!(whole.len() > 1500, "{}", whole.len());
    for length in 1..whole.len() {
        if let Err(why) = refused(&state, &whole[..length]) {
            panic!(
                "the first {length} bytes: {why}\n{}",
                String::from_utf8_lossy(&whole[..length])
            );
        }
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        if let Err(why) = refused(&state, &changed) {
            panic!("byte {at}: {why}\n{}", String::from_utf8_lossy(&changed));
        }
    }
    std::fs::write(&state, &whole).unwrap();
    assert_eq!(opened(&state), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_other_text_is_a_state(text in "\\PC{1,200}|(kind: PromotionState\n)?([a-z]{0,5}(: |\n|- |\\{|\\[|&a |\\*a|\"|'|\\||>){0,3}){1,20}", noise in prop::collection::vec(any::<u8>(), 1..200)) {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a.state.yaml");
        // An empty one is no state yet.
        for content in [text.as_bytes(), &noise].into_iter().filter(|c| !c.is_empty()) {
            prop_assert_eq!(refused(&state, content), Ok(()));
        }
    }

    #[test]
    fn any_text_is_requests_or_refused_with_its_name(
        text in "\\PC{0,200}|([a-zA-Z]{0,5}(: |\n|- |\\{|\\[|&a |\\*a|\"|'|\\||>|---\n){0,3}){1,20}", at: prop::sample::Index, noise: Vec<u8>,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("requests.yaml");
        let mut example = std::fs::read(EXAMPLE).unwrap();
        let at = at.index(example.len());
        example.splice(at..at, noise.iter().copied());
        for content in [text.as_bytes(), &noise, &example[..at], &example] {
            std::fs::write(&file, content).unwrap();
            if let Err(error) = read_requests(&file) {
                let error = error.to_string();
                prop_assert!(error.contains(&file.display().to_string()), "{}", error);
            }
        }
    }
}

#[test]
fn depth_aliases_and_length_of_a_file_cost_no_more_than_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let (requests, state) = (
        folder.path().join("requests.yaml"),
        folder.path().join("a.state.yaml"),
    );
    let mut aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..20 {
        let nine = vec![format!("*a{}", n - 1); 9].join(", ");
        aliases = [aliases, format!("a{n}: &a{n} [{nine}]\n")].concat();
    }
    let began = Instant::now();
    for text in [
        "[".repeat(200_000),
        "{a: ".repeat(200_000),
        "- ".repeat(200_000),
        "? ".repeat(100_000),
        (0..1000)
            .map(|n| format!("{}a:\n", " ".repeat(n)))
            .collect::<Vec<_>>()
            .concat(),
        aliases.clone(),
        format!("kind: PromotionState\n{aliases}"),
        format!("kind: PromotionState\nrequests: {}", "[".repeat(200_000)),
        format!(
            "kind: PromotionState\nrequests: [{}]\n",
            "7,".repeat(50_000)
        ),
        "&a ".repeat(100_000),
        "\u{feff}".repeat(100_000),
        "%YAML 1.2\n".repeat(10_000),
    ] {
        std::fs::write(&requests, &text).unwrap();
        let error = read_requests(&requests).unwrap_err().to_string();
        assert!(error.len() < 2000, "{} bytes", error.len());
        assert_eq!(refused(&state, text.as_bytes()), Ok(()), "{}", &text[..50]);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_mins(1), "{took:?}");
}

#[tokio::test]
async fn what_no_tag_write_relies_on_is_written_with_what_one_does_or_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.state.yaml");
    let written = || std::fs::read_to_string(&path).unwrap_or_default();
    let objects = || {
        ["one", "two"].map(|name| {
            let float = format!("docker.io/x:{name}");
            object(name, &spec(&[("docker.io/src:t", &float)]))
        })
    };
    let open = || {
        let (settle, late) = (Duration::ZERO, Duration::ZERO);
        FileStore::open(objects().into(), &path, Keyring::anonymous(), settle, late).unwrap()
    };
    let claimed = |object: &PromotionRequest| {
        let mut object = object.clone();
        let status = object.status.get_or_insert_default();
        status.start_time = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        object
    };
    let (store, _updates) = open();
    let [one, two] = [0, 1].map(|n| claimed(&store.objects()[n]));
    let mut one = store.save(&one).await.unwrap();
    assert_eq!(written(), "", "before a source is recorded");
    let image = json!([{
        "float": one.spec.images[0].float, "phase": "Pending", "attempts": 1,
        "source": {"digest": crate::testbed::scripted::digest(b"source")},
    }]);
    one.status.as_mut().unwrap().images = serde_json::from_value(image).unwrap();
    store.save(&one).await.unwrap();
    let first = written();
    assert!(
        first.contains("startTime") && first.contains("attempts: 1"),
        "{first}"
    );
    store.save(&two).await.unwrap();
    assert_eq!(written(), first);
    drop(store);
    assert_eq!(written().matches("startTime").count(), 2, "{}", written());
    // What is relied on is there before a run begins on it.
    let (_store, _updates) = open();
    assert!(written().contains("attempts: 1"));
}

/// Written when `docker.io/x` was another repository than `docker.io/library/x`: its requests are the same, their floats one.
#[tokio::test]
async fn a_state_that_spells_one_float_in_two_ways_is_taken_up_and_keeps_the_order() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("a.state.yaml");
    let open = || {
        let both = [
            ("short", "docker.io/x:f"),
            ("long", "docker.io/library/x:f"),
        ];
        let both = both.map(|(name, float)| object(name, &spec(&[("docker.io/src:t", float)])));
        let (settle, late) = (Duration::ZERO, Duration::ZERO);
        FileStore::open(both.into(), &state, Keyring::anonymous(), settle, late).unwrap()
    };
    for (begun, ended) in [(0, None), (1, Some("Superseded"))] {
        let (store, _updates) = open();
        let mut object = store.objects()[begun].clone();
        let status = object.status.get_or_insert_default();
        status.start_time = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        status.phase = Some("Incoming".into());
        status.images = serde_json::from_value(json!([{
            "float": object.spec.images[0].float, "phase": "Incoming",
            "source": {"digest": crate::testbed::scripted::digest(b"source")},
        }]))
        .unwrap();
        store.save(&object).await.unwrap();
        drop(store);
        let (store, _updates) = open();
        let short = store.objects()[0].status.clone().unwrap_or_default();
        let reason = short.images.first().and_then(|image| image.reason.clone());
        assert_eq!(reason.as_deref(), ended, "{short:?}");
    }
}
