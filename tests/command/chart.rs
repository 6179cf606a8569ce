//! What the chart renders, and what it refuses to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use promotion_controller::api::{crd, crd_yaml};
use promotion_controller::controller::END;
use serde_json::{Value, json};

use crate::testbed::chart_options::{every, least, most};
use crate::testbed::helm::{Helm, chart, objects, of_kind, only, root, strings};

/// Writes a generated file if `UPDATE` is set, and compares it otherwise.
fn drift(path: &Path, wanted: &str, filter: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is out of date; run: UPDATE=1 cargo test --test command chart::{filter}",
        path.display()
    );
}

fn file(name: &str) -> String {
    std::fs::read_to_string(chart().join(name)).unwrap()
}

#[tokio::test]
async fn deploy_is_what_the_chart_renders() {
    const HEADER: &str = "# Made from charts/promotion-controller with deploy/values.yaml; to make it anew:\n\
        # UPDATE=1 cargo test --test command chart::deploy\n";
    let folder = root().join("deploy");
    let values: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(folder.join("values.yaml")).unwrap())
            .unwrap();
    let manifests = Helm::alone()
        .await
        .template("promotion-controller", &values)
        .await;
    // Helm does not manage what kustomize applies.
    let helms = |line: &&str| {
        let line = line.trim_start();
        let of = |start: &str| line.starts_with(start);
        !of("helm.sh/chart:")
            && !of("app.kubernetes.io/managed-by:")
            && !of("helm.sh/resource-policy:")
            && !of("# Source:")
    };
    let (mut definition, mut rest) = (HEADER.to_owned(), HEADER.to_owned());
    for document in manifests.split("---\n").filter(|d| !d.trim().is_empty()) {
        let lines: Vec<&str> = document.lines().filter(helms).collect();
        let text = lines
            .join("\n")
            .trim()
            .replace("\n  annotations:\nspec:", "\nspec:")
            // What an overlay sets: the API server takes no container without an image.
            .replace(&format!("\"set-me:{}\"", env!("CARGO_PKG_VERSION")), "\"\"");
        let into = if text.contains("kind: CustomResourceDefinition\n") {
            &mut definition
        } else {
            &mut rest
        };
        into.extend(["---\n", text.as_str(), "\n"]);
    }
    drift(&folder.join("crd.yaml"), &definition, "deploy");
    drift(&folder.join("controller.yaml"), &rest, "deploy");
    assert!(!rest.contains("Helm") && !definition.contains("Helm"));
}

#[tokio::test]
async fn the_chart_lints_strictly_with_every_option_and_with_none() {
    let helm = Helm::alone().await;
    let folder = chart();
    let lint = ["lint", "--strict", folder.to_str().unwrap()];
    helm.ok(&lint, &Value::Null).await;
    helm.ok(&lint, &least()).await;
    helm.ok(&lint, &most()).await;
}

#[test]
fn the_definition_of_the_chart_is_what_the_types_say() {
    let path = chart().join("files/promotionrequests.yaml");
    drift(&path, &crd_yaml(), "the_definition");
}

#[test]
fn the_chart_is_of_the_version_of_the_crate() {
    let about: Value = serde_saphyr::from_str(&file("Chart.yaml")).unwrap();
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"));
}

// === values, schema, README ===

/// A value of values.yaml: its path, its default as it is written, and the comment above it.
struct Documented {
    path: String,
    default: String,
    comment: String,
}

/// Every value of values.yaml, in its order. What has a section's name alone on its line is a section.
fn documented() -> Vec<Documented> {
    let mut values = Vec::new();
    let mut sections: Vec<String> = Vec::new();
    let mut comment = String::new();
    for line in file("values.yaml").lines() {
        let text = line.trim_start();
        let depth = (line.len() - text.len()) / 2;
        if let Some(words) = text.strip_prefix("# ") {
            comment = format!("{comment} {words}");
            continue;
        }
        let Some((key, default)) = text.split_once(':') else {
            assert!(text.is_empty(), "what is this line of values.yaml? {line}");
            comment.clear();
            continue;
        };
        sections.truncate(depth);
        sections.push(key.trim_matches('"').into());
        if default.is_empty() {
            assert_eq!(comment, "", "{key} is a section: describe its values");
            continue;
        }
        values.push(Documented {
            path: sections.join("."),
            default: default.trim().into(),
            comment: std::mem::take(&mut comment).trim().into(),
        });
    }
    values
}

#[test]
fn the_readme_of_the_chart_lists_every_value_with_its_default_and_meaning() {
    let values = documented();
    let mut table = "| Value | Default | |\n|---|---|---|\n".to_owned();
    for value in &values {
        let Documented {
            path,
            default,
            comment,
        } = value;
        assert!(
            !comment.is_empty(),
            "values.yaml does not say what {path} is"
        );
        let comment = comment.replace('|', "\\|");
        let row = format!("| `{path}` | `{default}` | {comment} |\n");
        table.push_str(&row);
    }
    let path = chart().join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- values -->\n", "<!-- end of values -->\n");
    let (before, rest) = readme.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let wanted = format!("{before}{begin}{table}{end}{after}");
    drift(&path, &wanted, "the_readme");
}

/// Compares the keys of values with the properties of a schema, section by section.
fn compare(path: &str, values: &Value, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    assert_eq!(schema["additionalProperties"], json!(false), "{path}");
    let mut known: BTreeSet<&String> = properties.keys().collect();
    if path.is_empty() {
        // Helm's own.
        known.remove(&"global".to_owned());
    }
    let there: BTreeSet<&String> = values.as_object().unwrap().keys().collect();
    assert_eq!(there, known, "under '{path}'");
    for (key, value) in values.as_object().unwrap() {
        compare(&format!("{path}/{key}"), value, &properties[key]);
    }
}

#[test]
fn the_schema_knows_every_value_and_no_other() {
    let values: Value = serde_saphyr::from_str(&file("values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&file("values.schema.json")).unwrap();
    compare("", &values, &schema);
    // The tests turn every one of them.
    let (mut turned, most) = (values.clone(), most());
    turned["allNamespaces"] = json!(true);
    for (key, default) in values.as_object().unwrap() {
        assert!(
            key == "allNamespaces" || most[key] != *default,
            "options.rs does not turn {key}"
        );
    }
}

#[tokio::test]
async fn values_that_cannot_be_meant_are_refused_by_their_name() {
    let helm = Helm::alone().await;
    let cases = [
        ("/registries", json!({"registries": "quay.io"})),
        ("/registries/0", json!({"registries": ["https://quay.io"]})),
        ("/registries/0", json!({"registries": ["Quay.io"]})),
        ("/namespaces/0", json!({"namespaces": ["*"]})),
        ("/namespaces", json!({"namespaces": ["ci", "ci"]})),
        ("/allNamespaces", json!({"allNamespaces": "false"})),
        ("/plainHttp/0", json!({"plainHttp": ["http://registry"]})),
        (
            "/registryCa/0",
            json!({"registryCa": [{"host": "quay.io"}]}),
        ),
        (
            "/registryCa/0",
            json!({"registryCa": [{"host": "quay.io", "configMap": "ca", "secret": "x"}]}),
        ),
        ("/clusterRanges/0", json!({"clusterRanges": ["10.0.0.0"]})),
        ("/policy", json!({"policy": "rules: []"})),
        (
            "/policy/rules/0",
            json!({"policy": {"rules": [{"name": "x", "namespaces": ["ci"], "sources": ["**"]}]}}),
        ),
        (
            "/policy/rules/0/floats",
            json!({"policy": {"rules": [{"name": "x", "namespaces": ["ci"], "sources": ["**"], "floats": []}]}}),
        ),
        ("/qps", json!({"qps": -1})),
        ("/concurrency", json!({"concurrency": 2})),
        ("/concurrency", json!({"concurrency": 257})),
        ("/settleSeconds", json!({"settleSeconds": 13})),
        ("/settleSeconds", json!({"settleSeconds": 2})),
        ("/lateSeconds", json!({"lateSeconds": 14})),
        ("/lateSeconds", json!({"lateSeconds": 121})),
        ("/statusInterval", json!({"statusInterval": 0})),
        ("/sweepInterval", json!({"sweepInterval": 86_401})),
        (
            "/maxActiveRequestsPerNamespace",
            json!({"maxActiveRequestsPerNamespace": -1}),
        ),
        ("/logFormat", json!({"logFormat": "xml"})),
        ("/replicas", json!({"replicas": 0})),
        ("/replicas", json!({"replicas": "2"})),
        ("/image/digest", json!({"image": {"digest": "latest"}})),
        (
            "/image/pullPolicy",
            json!({"image": {"pullPolicy": "Sometimes"}}),
        ),
        ("/metrics/port", json!({"metrics": {"port": 80}})),
        (
            "/networkPolicy/dnsPorts",
            json!({"networkPolicy": {"dnsPorts": []}}),
        ),
        ("/labels/n", json!({"labels": {"n": 1}})),
        ("/secretNames/0", json!({"secretNames": ["*"]})),
        (
            "/statusWriters/0",
            json!({"statusWriters": ["admin'] || ['"]}),
        ),
        (
            "/proxy/https",
            json!({"proxy": {"https": "http://me:secret@proxy:3128"}}),
        ),
        ("/proxy/secret", json!({"proxy": {"secret": "Proxy"}})),
        ("'regsitries'", json!({"regsitries": ["quay.io"]})),
        ("'enable'", json!({"networkPolicy": {"enable": false}})),
    ];
    for (named, change) in cases {
        let mut values = least();
        for (key, value) in change.as_object().unwrap() {
            values[key] = value.clone();
        }
        let folder = chart();
        let template = ["template", "x", folder.to_str().unwrap()];
        let words = helm.refused(&template, &values).await;
        assert!(
            words.contains("values don't meet the specifications") && words.contains(named),
            "{change}: {named} is not in {words}"
        );
    }
}

#[tokio::test]
async fn without_registries_nothing_is_rendered_and_the_remedy_is_told() {
    let folder = chart();
    let template = ["template", "x", folder.to_str().unwrap()];
    for values in [Value::Null, json!({"registries": []})] {
        let words = Helm::alone().await.refused(&template, &values).await;
        assert!(
            words.contains("registries is empty: list the registries that may be contacted, for example --set 'registries={quay.io}'"),
            "{words}"
        );
    }
}

#[tokio::test]
async fn without_an_image_nothing_is_rendered_and_the_remedy_is_told() {
    let folder = chart();
    let template = ["template", "x", folder.to_str().unwrap()];
    let values = json!({"registries": ["quay.io"]});
    let words = Helm::alone().await.refused(&template, &values).await;
    assert!(
        words.contains("image.repository is empty: say where the image was pushed to"),
        "{words}"
    );
}

#[tokio::test]
async fn a_proxy_with_a_password_is_read_from_its_secret_where_no_value_is_given() {
    let mut values = least();
    values["proxy"] = json!({"secret": "proxy", "no": ".svc"});
    let rendered = objects(&Helm::alone().await.template("pc", &values).await);
    let environment = container(&rendered)["env"].as_array().unwrap();
    let of = |name: &str| environment.iter().find(|v| v["name"] == name).unwrap();
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        let wanted = json!({"name": "proxy", "key": name, "optional": true});
        assert_eq!(of(name)["valueFrom"]["secretKeyRef"], wanted);
    }
    assert_eq!(of("NO_PROXY")["value"], ".svc");
}

#[tokio::test]
async fn only_named_secrets_are_read_where_the_values_name_them() {
    let helm = Helm::alone().await;
    for (names, wanted) in [(json!([]), Value::Null), (json!(["push"]), json!(["push"]))] {
        let mut values = least();
        values["namespaces"] = json!(["ci"]);
        values["secretNames"] = names;
        let rendered = objects(&helm.template("pc", &values).await);
        let roles = of_kind(&rendered, "ClusterRole");
        let secrets = roles
            .iter()
            .find(|role| role["rules"][0]["resources"] == json!(["secrets"]))
            .unwrap();
        assert_eq!(secrets["rules"][0]["resourceNames"], wanted);
    }
}

// === the Deployment ===

fn container(objects: &[Value]) -> &Value {
    &only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
}

#[tokio::test]
async fn every_flag_of_the_controller_is_passed_or_is_none_for_a_pod() {
    // One process alone, and requests of one namespace alone, are for trying things out.
    const NOT_FOR_PODS: [&str; 3] = ["--leader-elect", "--namespace", "--help"];
    let program = env!("CARGO_BIN_EXE_promotion-controller");
    let help = std::process::Command::new(program)
        .args(["controller", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let name = |word: &str| word.split(['=', '[']).next().unwrap().to_owned();
    let known: BTreeSet<String> = help
        .lines()
        .filter_map(|line| {
            let line = line.trim_start();
            let line = line.strip_prefix("-h, ").unwrap_or(line);
            let word = line.split_whitespace().next()?;
            word.starts_with("--").then(|| name(word))
        })
        .filter(|flag| !NOT_FOR_PODS.contains(&flag.as_str()))
        .collect();
    let rendered = objects(&Helm::alone().await.template("pc", &most()).await);
    let arguments = strings(&container(&rendered)["args"]);
    assert_eq!(arguments[0], "controller");
    let passed: BTreeSet<String> = arguments[1..]
        .iter()
        .map(|argument| name(argument))
        .collect();
    assert_eq!(passed, known);
}

#[tokio::test]
async fn the_arguments_are_what_the_values_say() {
    let helm = Helm::alone().await;
    let rendered = objects(&helm.template("pc", &most()).await);
    let expected = [
        "controller",
        "--listen=[::]:9090",
        "--listen-probes=[::]:9091",
        "--log-format=text",
        "--lease-namespace=ci",
        "--registry-qps=0",
        "--registry-qps-max=500",
        "--registry-concurrency=32",
        "--settle-seconds=12",
        "--late-seconds=120",
        "--status-interval=5",
        "--sweep-interval=60",
        "--max-active-requests-per-namespace=7",
        "--allow-registry=quay.io",
        "--allow-registry=registry.*.ci.openshift.org",
        "--allow-registry=127.0.0.1:5000",
        "--plain-http=127.0.0.1:5000",
        "--plain-http=registry.ci.svc",
        "--registry-ca=registry.build02.ci.openshift.org=/etc/promotion-controller/ca-0/ca.crt",
        "--registry-ca=registry.build03.ci.openshift.org:5000=/etc/promotion-controller/ca-1/ca.crt",
        "--cluster-range=203.0.113.0/24",
        "--cluster-range=2001:db8::/32",
        "--policy=/etc/promotion-controller/policy/policy.yaml",
        "--registry-config=/etc/promotion-controller/registry-config/config.json",
        "--image-stream-namespace=ci",
        "--pull-host=quay.io/openshift/ci=quay-proxy.ci.openshift.org",
        "--create-image-streams",
    ];
    let controller = container(&rendered);
    assert_eq!(strings(&controller["args"]), expected);
    let environment: BTreeMap<String, String> = controller["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| {
            let text = |key: &str| variable[key].as_str().unwrap().to_owned();
            (text("name"), text("value"))
        })
        .collect();
    let wanted = [
        ("ALL_PROXY", "socks5://proxy:1080"),
        ("HTTPS_PROXY", "http://proxy:3129/"),
        ("HTTP_PROXY", "http://proxy:3128"),
        ("NO_PROXY", ".svc,10.0.0.0/8"),
        ("RUST_LOG", "debug"),
    ];
    let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(environment, BTreeMap::from(wanted));
    // Nothing is mounted, and no proxy set, that was not asked for.
    let least = objects(&helm.template("pc", &least()).await);
    let pod = &only(&least, "Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"], Value::Null);
    assert_eq!(container(&least)["env"].as_array().unwrap().len(), 1);
    assert_eq!(
        strings(&container(&least)["args"])[1..5],
        [
            "--listen=0.0.0.0:8080",
            "--listen-probes=0.0.0.0:8081",
            "--log-format=json",
            "--lease-namespace=pc"
        ]
    );
}

#[tokio::test]
async fn a_pod_that_is_ended_has_the_time_that_the_controller_takes_to_end() {
    let helm = Helm::alone().await;
    for late in [15, 30, 120] {
        let mut values = least();
        values["lateSeconds"] = json!(late);
        let rendered = objects(&helm.template("pc", &values).await);
        let pod = &only(&rendered, "Deployment")["spec"]["template"]["spec"];
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        let takes = END + Duration::from_secs(late);
        let spare = Duration::from_secs(grace).checked_sub(takes).unwrap();
        assert!(spare <= Duration::from_secs(5), "{grace} s for {takes:?}");
    }
}

// === the other objects ===

fn kinds(objects: &[Value]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for object in objects {
        *kinds
            .entry(object["kind"].as_str().unwrap().into())
            .or_insert(0) += 1;
    }
    kinds
}

#[tokio::test]
async fn every_option_makes_the_objects_it_is_for_and_no_others() {
    let helm = Helm::alone().await;
    let all = [
        ("ClusterRole", 4),
        ("ClusterRoleBinding", 1),
        ("ConfigMap", 1),
        ("CustomResourceDefinition", 1),
        ("Deployment", 1),
        ("Lease", 1),
        ("NetworkPolicy", 1),
        ("PodDisruptionBudget", 1),
        ("Role", 2),
        ("RoleBinding", 1),
        ("Service", 1),
        ("ServiceAccount", 1),
        ("ValidatingAdmissionPolicy", 4),
        ("ValidatingAdmissionPolicyBinding", 4),
    ];
    let all: BTreeMap<String, usize> = all.map(|(kind, n)| (kind.to_owned(), n)).into();
    for (case, values) in every() {
        let changed: &[(&str, usize)] = match case {
            "named namespaces" => &[("RoleBinding", 3)],
            "named Secrets" => &[("RoleBinding", 2)],
            "image streams" => &[("Role", 4), ("RoleBinding", 3)],
            "all namespaces" => &[("ClusterRoleBinding", 2)],
            "policy" | "dashboard" => &[("ConfigMap", 2)],
            "no definition" => &[
                ("CustomResourceDefinition", 0),
                ("ValidatingAdmissionPolicy", 3),
                ("ValidatingAdmissionPolicyBinding", 3),
            ],
            "no roles for people" => &[("ClusterRole", 2)],
            "another's account" => &[("ServiceAccount", 0)],
            "service monitor" => &[("ServiceMonitor", 1)],
            "alerts" => &[("PrometheusRule", 1)],
            "no network policy" => &[("NetworkPolicy", 0)],
            "no disruption budget" => &[("PodDisruptionBudget", 0)],
            "most" => &[
                ("ConfigMap", 3),
                ("Role", 3),
                ("CustomResourceDefinition", 0),
                ("ValidatingAdmissionPolicy", 3),
                ("ValidatingAdmissionPolicyBinding", 3),
                ("ClusterRole", 2),
                ("ServiceAccount", 0),
                ("ServiceMonitor", 1),
                ("PrometheusRule", 1),
                ("PodDisruptionBudget", 0),
                ("RoleBinding", 4),
            ],
            _ => &[],
        };
        let mut wanted = all.clone();
        wanted.extend(changed.iter().map(|&(kind, n)| (kind.to_owned(), n)));
        wanted.retain(|_, n| *n > 0);
        assert_eq!(
            kinds(&objects(&helm.template("pc", &values).await)),
            wanted,
            "{case}"
        );
    }
}

#[tokio::test]
async fn every_object_carries_the_labels_and_annotations_and_is_in_the_namespace_meant() {
    let rendered = objects(&Helm::alone().await.template("pc", &most()).await);
    let mut bindings = Vec::new();
    for object in &rendered {
        let (kind, about) = (object["kind"].as_str().unwrap(), &object["metadata"]);
        let label = |name: &str| about["labels"][name].as_str().unwrap_or_default();
        assert_eq!(label("team"), "test-platform", "{kind}");
        assert_eq!(label("app.kubernetes.io/name"), "promoter", "{kind}");
        assert_eq!(about["annotations"]["owner"], "test-platform", "{kind}");
        let namespace = about["namespace"].as_str().unwrap_or_default();
        match kind {
            "RoleBinding" => bindings.push(namespace),
            "Role" | "Lease" => assert_eq!(namespace, "ci"),
            "ClusterRole"
            | "ClusterRoleBinding"
            | "ValidatingAdmissionPolicy"
            | "ValidatingAdmissionPolicyBinding" => assert_eq!(namespace, ""),
            "ConfigMap" if about["name"] == "promotion-controller-freezes" => {
                assert_eq!(namespace, "ci");
                assert_eq!(object.get("data"), None, "an upgrade would lift freezes");
            }
            _ => assert_eq!(namespace, "pc", "{kind}"),
        }
        // Whoever pauses the controller makes this one, and an upgrade must not undo that.
        assert!(kind != "ConfigMap" || about["name"] != "promotion-controller");
    }
    bindings.sort_unstable();
    assert_eq!(bindings, ["ci", "ci", "ci", "ocp"]);
    let pod = &only(&rendered, "Deployment")["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["tier"], "ci");
    assert_eq!(pod["metadata"]["annotations"]["note"], "pods");
    assert_eq!(
        pod["spec"]["containers"][0]["image"],
        format!(
            "quay.io/example/promotion-controller@sha256:{}",
            "ab".repeat(32)
        )
    );
    for subject in of_kind(&rendered, "RoleBinding") {
        let somebody = json!([{"kind": "ServiceAccount", "name": "somebody", "namespace": "pc"}]);
        assert_eq!(subject["subjects"], somebody);
    }
}

#[tokio::test]
async fn the_network_is_open_to_what_the_values_name_and_to_nothing_else() {
    let helm = Helm::alone().await;
    let ports = |rule: &Value| -> Vec<u64> {
        let ports = rule["ports"].as_array().unwrap().iter();
        ports.map(|port| port["port"].as_u64().unwrap()).collect()
    };
    let rendered = objects(&helm.template("pc", &most()).await);
    let policy = &only(&rendered, "NetworkPolicy")["spec"];
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    let [dns, api, registries, further] = policy["egress"].as_array().unwrap().as_slice() else {
        panic!("{policy}")
    };
    assert_eq!(ports(dns), [53, 53]);
    assert_eq!(ports(api), [6443]);
    assert_eq!(api["to"][0]["ipBlock"]["cidr"], "192.0.2.1/32");
    assert_eq!(ports(registries), [443, 8443, 5000, 3128, 3129, 1080, 80]);
    assert_eq!(registries["to"][0]["ipBlock"]["cidr"], "0.0.0.0/0");
    assert_eq!(ports(further), [3128]);
    let ingress = policy["ingress"].as_array().unwrap();
    assert_eq!(ingress.len(), 1);
    assert_eq!(
        ingress[0]["ports"],
        json!([{"port": "metrics", "protocol": "TCP"}])
    );
    assert_eq!(ingress[0]["from"], most()["networkPolicy"]["metricsFrom"]);

    let rendered = objects(&helm.template("pc", &least()).await);
    let policy = &only(&rendered, "NetworkPolicy")["spec"];
    let egress: Vec<Vec<u64>> = policy["egress"]
        .as_array()
        .unwrap()
        .iter()
        .map(ports)
        .collect();
    assert_eq!(
        egress,
        [vec![53, 53, 5353, 5353], vec![443, 6443], vec![443]]
    );
}

#[tokio::test]
async fn the_definition_is_rendered_as_it_is_and_outlives_the_release() {
    let rendered = objects(&Helm::alone().await.template("pc", &least()).await);
    let definition = only(&rendered, "CustomResourceDefinition");
    let read: CustomResourceDefinition = serde_json::from_value(definition.clone()).unwrap();
    assert_eq!(read.spec, crd().spec);
    let about = &definition["metadata"];
    assert_eq!(about["annotations"]["helm.sh/resource-policy"], "keep");
    assert_eq!(
        about["labels"]["app.kubernetes.io/version"],
        env!("CARGO_PKG_VERSION")
    );
}

#[tokio::test]
async fn monitoring_is_made_of_the_files_of_the_chart() {
    let rendered = objects(&Helm::alone().await.template("pc", &most()).await);
    let rule = only(&rendered, "PrometheusRule");
    let alerts: Value = serde_saphyr::from_str(&file("files/alerts.yaml")).unwrap();
    assert_eq!(rule["spec"], alerts);
    assert_eq!(rule["metadata"]["labels"]["release"], "prometheus");
    let configs = of_kind(&rendered, "ConfigMap");
    let board = configs
        .iter()
        .find(|config| config["metadata"]["name"] == "promoter-main-dashboard")
        .unwrap();
    assert_eq!(board["metadata"]["labels"]["grafana_dashboard"], "yes");
    let text = board["data"]["promotion-controller.json"].as_str().unwrap();
    let board: Value = serde_json::from_str(text).unwrap();
    let wanted: Value = serde_json::from_str(&file("files/dashboard.json")).unwrap();
    assert_eq!(board, wanted);
    let monitor = only(&rendered, "ServiceMonitor");
    let service = only(&rendered, "Service");
    assert_eq!(
        monitor["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"]
    );
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], "metrics");
    assert_eq!(service["spec"]["ports"][0]["name"], "metrics");
}
