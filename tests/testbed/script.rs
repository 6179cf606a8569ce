//! The script that `convert` reads, and what it means.

use std::path::Path;

use serde_json::{Value, json};

/// A form of the script, by its file name.
pub fn sample(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/command/convert");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// What all forms of the sample mean.
pub fn images() -> Value {
    let image = |digit: &str, float: &str| {
        json!({
            "source": format!("registry.build02.ci.openshift.org/ci-op-x/pipeline@sha256:{}", digit.repeat(64)),
            "float": format!("quay.io/openshift/ci:{float}"),
        })
    };
    json!([
        image("a", "ci_tools_latest"),
        image("a", "ocp_4.21_cli"),
        image("b", "ocp_4.21_machine-os"),
        image("c", "ocp_4.21_ovn-kubernetes"),
        image("d", "ocp_4.21_tests"),
    ])
}

/// The spec that a form means: the staged script lets a tag of an image stream follow a float.
pub fn meant(form: &str) -> Value {
    let mut spec = serde_json::json!({ "images": images() });
    if form == "promote.sh" {
        let images = spec["images"].as_array_mut().unwrap();
        let cli = |image: &&mut Value| {
            let float = image["float"].as_str().unwrap();
            float.ends_with(":ocp_4.21_cli")
        };
        images.iter_mut().find(cli).unwrap()["imageStreamTag"] = "4.21:cli".into();
        spec["imageStreamNamespace"] = "ocp".into();
    }
    spec
}
