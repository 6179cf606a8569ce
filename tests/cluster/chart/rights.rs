//! What the chart's own service account may do, what it may not, and what the roles for people give.

use std::collections::BTreeSet;
use std::time::Instant;

use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use promotion_controller::api::labels::REQUESTED_BY;
use serde_json::json;

use super::freezes;
use super::ground::{Ground, NAME, PATIENCE};
use crate::testbed::helm::kubectl;
use crate::testbed::own_plane;
use crate::testbed::stage::LOOK;

/// A right: verb, group, resource, and the name it is narrowed to.
type Right = (String, String, String, String);

/// Every right that whoever asks has in a namespace, as the API server lists them.
async fn rights(client: &Client, namespace: &str) -> BTreeSet<Right> {
    let api: Api<SelfSubjectRulesReview> = Api::all(client.clone());
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec {
            namespace: Some(namespace.into()),
        },
        ..SelfSubjectRulesReview::default()
    };
    let answer = api.create(&PostParams::default(), &review).await.unwrap();
    let status = answer.status.unwrap();
    assert!(!status.incomplete);
    let mut rights = BTreeSet::new();
    for rule in status.resource_rules {
        let names = rule.resource_names.unwrap_or_default();
        let names = if names.is_empty() {
            vec![String::new()]
        } else {
            names
        };
        for verb in &rule.verbs {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    for name in &names {
                        rights.insert((
                            verb.clone(),
                            group.clone(),
                            resource.clone(),
                            name.clone(),
                        ));
                    }
                }
            }
        }
    }
    rights
}

/// Something that is asked of the API server.
#[derive(Debug, Clone, Copy)]
struct Ask {
    verb: &'static str,
    /// The path of the API, and the resource with its subresource: `api/v1`, `pods/exec`.
    api: &'static str,
    resource: &'static str,
    name: &'static str,
}

/// Asks it and returns the code of the answer.
async fn ask(client: &Client, ask: &Ask, namespace: &str, user: Option<&str>) -> u16 {
    let (resource, sub) = ask.resource.split_once('/').unwrap_or((ask.resource, ""));
    // What is created has no name, unless it is created under something that has.
    let nameless = match ask.verb {
        "list" | "watch" => true,
        "create" => sub.is_empty(),
        _ => ask.name.is_empty(),
    };
    let place = if namespace.is_empty() {
        String::new()
    } else {
        format!("namespaces/{namespace}")
    };
    let name = if nameless { "" } else { ask.name };
    let parts = [ask.api, &place, resource, name, sub].into_iter();
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    let path = format!("/{}", parts.join("/"));
    let selected = format!("fieldSelector=metadata.name%3D{}", ask.name);
    let (method, query) = match ask.verb {
        "get" => ("GET", String::new()),
        "list" if ask.name.is_empty() => ("GET", String::new()),
        "list" => ("GET", selected),
        "watch" if ask.name.is_empty() => ("GET", "watch=true&timeoutSeconds=1".into()),
        "watch" => ("GET", format!("watch=true&timeoutSeconds=1&{selected}")),
        "create" => ("POST", String::new()),
        "update" => ("PUT", String::new()),
        "patch" => ("PATCH", String::new()),
        "delete" | "deletecollection" => ("DELETE", String::new()),
        other => panic!("{other}"),
    };
    let mut request = http::Request::builder()
        .method(method)
        .uri(format!("{path}?{query}"));
    if let Some(user) = user {
        request = request.header("Impersonate-User", user);
    }
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = if method == "GET" { "" } else { "{}" };
    let request = request
        .header("Content-Type", kind)
        .body(body.as_bytes().to_vec())
        .unwrap();
    match client.request_text(request).await {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{ask:?}: {error}"),
    }
}

const CORE: &str = "api/v1";
const OURS: &str = "apis/ci.openshift.io/v1alpha1";
const LEASES: &str = "apis/coordination.k8s.io/v1";
const EVENTS: &str = "apis/events.k8s.io/v1";
const RBAC: &str = "apis/rbac.authorization.k8s.io/v1";
const CRDS: &str = "apis/apiextensions.k8s.io/v1";

const FREEZES: &str = promotion_controller::controller::freeze_map::NAME;

const REFUSED: bool = false;
const ALLOWED: bool = true;

/// What is asked with the chart's own token: verb, API, resource, namespace, name, and whether it may.
const TABLE: &[(&str, &str, &str, &str, &str, bool)] = &[
    // Secrets: one by one, where the values say so.
    ("get", CORE, "secrets", "named", "push", ALLOWED),
    ("get", CORE, "secrets", "other", "push", REFUSED),
    (
        "get",
        CORE,
        "secrets",
        "release",
        "own-credentials",
        REFUSED,
    ),
    ("get", CORE, "secrets", "kube-system", "push", REFUSED),
    ("list", CORE, "secrets", "", "", REFUSED),
    ("list", CORE, "secrets", "named", "", REFUSED),
    ("list", CORE, "secrets", "named", "push", REFUSED),
    ("list", CORE, "secrets", "release", "", REFUSED),
    ("watch", CORE, "secrets", "", "", REFUSED),
    ("watch", CORE, "secrets", "named", "", REFUSED),
    ("create", CORE, "secrets", "named", "", REFUSED),
    ("update", CORE, "secrets", "named", "push", REFUSED),
    ("patch", CORE, "secrets", "named", "push", REFUSED),
    ("delete", CORE, "secrets", "named", "push", REFUSED),
    ("deletecollection", CORE, "secrets", "named", "", REFUSED),
    // Requests: everything but what they ask for.
    ("list", OURS, "promotionrequests", "", "", ALLOWED),
    ("watch", OURS, "promotionrequests", "", "", ALLOWED),
    ("get", OURS, "promotionrequests", "other", "r", ALLOWED),
    (
        "update",
        OURS,
        "promotionrequests/status",
        "other",
        "r",
        ALLOWED,
    ),
    (
        "delete",
        OURS,
        "promotionrequests",
        "other",
        "none",
        ALLOWED,
    ),
    ("create", OURS, "promotionrequests", "named", "", REFUSED),
    ("update", OURS, "promotionrequests", "other", "r", REFUSED),
    ("patch", OURS, "promotionrequests", "other", "r", REFUSED),
    (
        "patch",
        OURS,
        "promotionrequests/status",
        "other",
        "r",
        REFUSED,
    ),
    (
        "deletecollection",
        OURS,
        "promotionrequests",
        "other",
        "",
        REFUSED,
    ),
    // Leases: its own, which it does not delete.
    ("create", LEASES, "leases", "release", "", ALLOWED),
    ("get", LEASES, "leases", "release", NAME, ALLOWED),
    ("update", LEASES, "leases", "release", NAME, ALLOWED),
    ("get", LEASES, "leases", "release", "another", REFUSED),
    ("update", LEASES, "leases", "release", "another", REFUSED),
    ("patch", LEASES, "leases", "release", NAME, REFUSED),
    ("delete", LEASES, "leases", "release", NAME, REFUSED),
    ("list", LEASES, "leases", "release", "", REFUSED),
    ("get", LEASES, "leases", "named", NAME, REFUSED),
    ("create", LEASES, "leases", "named", "", REFUSED),
    (
        "update",
        LEASES,
        "leases",
        "kube-system",
        "kube-controller-manager",
        REFUSED,
    ),
    // The ConfigMap that pauses it: read, and no other.
    ("get", CORE, "configmaps", "release", NAME, ALLOWED),
    ("list", CORE, "configmaps", "release", NAME, ALLOWED),
    ("watch", CORE, "configmaps", "release", NAME, ALLOWED),
    ("get", CORE, "configmaps", "release", FREEZES, ALLOWED),
    ("watch", CORE, "configmaps", "release", FREEZES, ALLOWED),
    ("update", CORE, "configmaps", "release", FREEZES, REFUSED),
    ("list", CORE, "configmaps", "release", "", REFUSED),
    ("watch", CORE, "configmaps", "release", "", REFUSED),
    ("get", CORE, "configmaps", "release", "example-ca", REFUSED),
    ("get", CORE, "configmaps", "named", NAME, REFUSED),
    ("create", CORE, "configmaps", "release", "", REFUSED),
    ("update", CORE, "configmaps", "release", NAME, REFUSED),
    ("delete", CORE, "configmaps", "release", NAME, REFUSED),
    // Events are told and never read.
    ("create", EVENTS, "events", "other", "", ALLOWED),
    ("patch", EVENTS, "events", "other", "r", ALLOWED),
    ("list", EVENTS, "events", "", "", REFUSED),
    ("delete", EVENTS, "events", "named", "e", REFUSED),
    ("create", CORE, "events", "named", "", REFUSED),
    // Nothing that gives more rights.
    ("create", RBAC, "rolebindings", "named", "", REFUSED),
    ("create", RBAC, "clusterrolebindings", "", "", REFUSED),
    ("patch", RBAC, "clusterroles", "", NAME, REFUSED),
    ("patch", RBAC, "roles", "release", NAME, REFUSED),
    (
        "create",
        CORE,
        "serviceaccounts/token",
        "release",
        NAME,
        REFUSED,
    ),
    ("get", CORE, "serviceaccounts", "release", NAME, REFUSED),
    // Nothing of the cluster but whose installation the definition belongs to.
    (
        "get",
        CRDS,
        "customresourcedefinitions",
        "",
        "promotionrequests.ci.openshift.io",
        ALLOWED,
    ),
    (
        "get",
        CRDS,
        "customresourcedefinitions",
        "",
        "others.example.com",
        REFUSED,
    ),
    ("list", CRDS, "customresourcedefinitions", "", "", REFUSED),
    (
        "update",
        CRDS,
        "customresourcedefinitions",
        "",
        "promotionrequests.ci.openshift.io",
        REFUSED,
    ),
    (
        "patch",
        CRDS,
        "customresourcedefinitions",
        "",
        "promotionrequests.ci.openshift.io",
        REFUSED,
    ),
    ("list", CORE, "pods", "", "", REFUSED),
    ("create", CORE, "pods", "named", "", REFUSED),
    ("list", CORE, "namespaces", "", "", REFUSED),
    ("delete", CORE, "namespaces", "", "named", REFUSED),
    ("list", CORE, "nodes", "", "", REFUSED),
];

/// Rights in every namespace, as the API server lists them: verb, group, resource, name. What is not here is not allowed.
const EVERYWHERE: &[(&str, &str, &str, &str)] = &[
    ("get", "ci.openshift.io", "promotionrequests", ""),
    ("list", "ci.openshift.io", "promotionrequests", ""),
    ("watch", "ci.openshift.io", "promotionrequests", ""),
    ("delete", "ci.openshift.io", "promotionrequests", ""),
    ("update", "ci.openshift.io", "promotionrequests/status", ""),
    ("create", "events.k8s.io", "events", ""),
    ("patch", "events.k8s.io", "events", ""),
    (
        "get",
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        "promotionrequests.ci.openshift.io",
    ),
    // Those of everybody whom the API server knows.
    (
        "create",
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "",
    ),
    (
        "create",
        "authorization.k8s.io",
        "selfsubjectrulesreviews",
        "",
    ),
    ("create", "authentication.k8s.io", "selfsubjectreviews", ""),
];
/// Beside these, in the namespaces that the values name.
const NAMED: &[(&str, &str, &str, &str)] = &[("get", "", "secrets", "")];
/// Beside these, where tags of image streams may follow floats.
const STREAMS: &[(&str, &str, &str, &str)] = &[
    ("get", "image.openshift.io", "imagestreams", ""),
    ("update", "image.openshift.io", "imagestreams", ""),
];
/// Beside these, in the Lease's namespace.
const RELEASE: &[(&str, &str, &str, &str)] = &[
    ("create", "coordination.k8s.io", "leases", ""),
    ("get", "coordination.k8s.io", "leases", NAME),
    ("update", "coordination.k8s.io", "leases", NAME),
    ("get", "", "configmaps", NAME),
    ("list", "", "configmaps", NAME),
    ("watch", "", "configmaps", NAME),
    ("get", "", "configmaps", FREEZES),
    ("list", "", "configmaps", FREEZES),
    ("watch", "", "configmaps", FREEZES),
];

fn as_set(rights: &[(&str, &str, &str, &str)]) -> BTreeSet<Right> {
    let owned = |&(verb, group, resource, name): &(&str, &str, &str, &str)| {
        [verb, group, resource, name].map(str::to_owned).into()
    };
    rights.iter().map(owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_api_the_controller_may_use_what_it_needs_and_nothing_else() {
    let (_turn, plane) = own_plane().await;
    let ground = Ground::new(plane).await;
    ground.install().await;
    let (_, images) = ground.request("f");
    ground.other.create("r", &images).await;
    let client = ground.client().await;
    let real = |namespace: &str| match namespace {
        "named" => ground.named.namespace.clone(),
        "other" => ground.other.namespace.clone(),
        "release" => ground.release.namespace.clone(),
        namespace => namespace.to_owned(),
    };
    let mut wrong = Vec::new();
    for &(verb, api, resource, namespace, name, allowed) in TABLE {
        let asked = Ask {
            verb,
            api,
            resource,
            name,
        };
        let code = ask(&client, &asked, &real(namespace), None).await;
        if (code != 403) != allowed {
            wrong.push(format!("{asked:?} in {namespace}: {code}"));
        }
        // Everybody else's rights are not its own either.
        if !allowed {
            let code = ask(&client, &asked, &real(namespace), Some("admin")).await;
            assert_eq!(code, 403, "as admin, {asked:?} in {namespace}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let refused = TABLE.iter().filter(|row| !row.5).count();
    println!("{} allowed, {refused} refused", TABLE.len() - refused);
    assert!(refused >= 12);

    for (namespace, wanted) in [
        ("named", &[EVERYWHERE, NAMED].concat()),
        ("release", &[EVERYWHERE, RELEASE].concat()),
        ("other", &EVERYWHERE.to_vec()),
        ("kube-system", &EVERYWHERE.to_vec()),
    ] {
        assert_eq!(
            rights(&client, &real(namespace)).await,
            as_set(wanted),
            "{namespace}"
        );
    }

    // Image streams where the values say so, and nowhere else.
    let mut values = ground.values();
    values["imageStreams"] = json!({"namespaces": [ground.named.namespace]});
    ground.helm("upgrade", &values).await;
    let wanted = as_set(&[EVERYWHERE, NAMED, STREAMS].concat());
    let end = Instant::now() + PATIENCE;
    while rights(&client, &ground.named.namespace).await != wanted {
        let rights = rights(&client, &ground.named.namespace).await;
        assert!(Instant::now() < end, "{rights:#?}");
        tokio::time::sleep(LOOK).await;
    }
    let other = rights(&client, &ground.other.namespace).await;
    assert_eq!(other, as_set(EVERYWHERE));
    // Everywhere, if the values say so: and still one by one.
    let mut values = ground.values();
    values["allNamespaces"] = json!(true);
    ground.helm("upgrade", &values).await;
    let wanted = as_set(&[EVERYWHERE, NAMED].concat());
    let end = Instant::now() + PATIENCE;
    while rights(&client, "kube-system").await != wanted {
        let rights = rights(&client, "kube-system").await;
        assert!(Instant::now() < end, "{rights:#?}");
        tokio::time::sleep(LOOK).await;
    }
    // And of these only the named ones, if the values name any.
    values["secretNames"] = json!(["push"]);
    ground.helm("upgrade", &values).await;
    let wanted = as_set(&[EVERYWHERE, &[("get", "", "secrets", "push")]].concat());
    let end = Instant::now() + PATIENCE;
    while rights(&client, "kube-system").await != wanted {
        let rights = rights(&client, "kube-system").await;
        assert!(Instant::now() < end, "{rights:#?}");
        tokio::time::sleep(LOOK).await;
    }
    people(&ground).await;
    nobody_asks_in_anothers_name(&ground).await;
    nobody_else_writes_status(&ground).await;
    freezes::are_written_by_whom_the_role_is_bound_to(&ground).await;
    ground.uninstall().await;
}

/// A request may say who created it, nobody else, and says so for ever.
async fn nobody_asks_in_anothers_name(ground: &Ground) {
    let api = ground.named.requests();
    let (params, merge) = (PostParams::default(), PatchParams::default());
    let request = |name: &str, user: Option<&str>| {
        let (_, images) = ground.request(name);
        let mut request = crate::testbed::stage::object(name, &images);
        let note = |user: &str| [(REQUESTED_BY.to_owned(), user.to_owned())].into();
        request.metadata.annotations = user.map(note);
        request
    };
    // The policy acts a moment after it is there.
    let end = Instant::now() + PATIENCE;
    let refused = loop {
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match api.create(&dry, &request("n", Some("ada"))).await {
            Err(kube::Error::Api(status)) => break status.message,
            answer => assert!(Instant::now() < end, "{answer:?}"),
        }
        tokio::time::sleep(LOOK).await;
    };
    for word in [REQUESTED_BY, "is ada", "admin creates", "leave it out"] {
        assert!(refused.contains(word), "{refused}");
    }
    api.create(&params, &request("n", Some("admin")))
        .await
        .unwrap();
    api.create(&params, &request("m", None)).await.unwrap();
    for (name, user) in [
        ("n", json!("ada")),
        ("n", json!(null)),
        ("m", json!("admin")),
    ] {
        let patch = json!({"metadata": {"annotations": {REQUESTED_BY: user}}});
        let refused = api.patch(name, &merge, &Patch::Merge(&patch)).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("leave it as it is"), "{refused}");
    }
    for name in ["n", "m"] {
        ground
            .named
            .patch(
                name,
                &json!({"metadata": {"annotations": {"other": "x"}}, "spec": {"cancel": true}}),
            )
            .await;
    }
}

/// Not even an administrator, unless the values name who restores backups. A spec is changed as ever.
async fn nobody_else_writes_status(ground: &Ground) {
    let (_, images) = ground.request("q");
    ground.named.create("q", &images).await;
    let forged = json!({"status": {"committed": true, "phase": "BackedUp"}});
    let api = ground.named.requests();
    let (params, patch) = (PatchParams::default(), Patch::Merge(&forged));
    // The policy acts a moment after it is there.
    let end = Instant::now() + PATIENCE;
    let refused = loop {
        match api.patch_status("q", &params, &patch).await {
            Err(kube::Error::Api(status)) => break status.message,
            answer => assert!(Instant::now() < end, "{answer:?}"),
        }
        tokio::time::sleep(LOOK).await;
    };
    let account = format!("system:serviceaccount:{}:{NAME}", ground.release.namespace);
    for word in [account.as_str(), "not admin", "statusWriters"] {
        assert!(refused.contains(word), "{refused}");
    }
    let mut whole = ground.named.get("q").await;
    whole.status = serde_json::from_value(forged["status"].clone()).ok();
    let replaced = api
        .replace_status("q", &PostParams::default(), &whole)
        .await;
    assert!(replaced.is_err(), "{replaced:?}");
    ground
        .named
        .patch("q", &json!({"spec": {"suspend": true}}))
        .await;
    let mut values = ground.values();
    values["statusWriters"] = json!(["admin"]);
    ground.helm("upgrade", &values).await;
    while let Err(error) = api.patch_status("q", &params, &patch).await {
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Who has view sees requests, who has edit or admin makes them, and status is nobody's but the controller's.
async fn people(ground: &Ground) {
    let (plane, namespace) = (ground.plane, &ground.named.namespace);
    plane
        .start_controllers(&["clusterrole-aggregation"])
        .await
        .unwrap();
    for (user, role) in [("vera", "view"), ("eddy", "edit"), ("ada", "admin")] {
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        let name = format!("people-{}", user.trim_start_matches("--user="));
        let bind = [
            "create",
            "rolebinding",
            &name,
            &role,
            &user,
            "-n",
            namespace,
        ];
        kubectl(plane, &bind, "").await;
    }
    let (_, images) = ground.request("p");
    ground.named.create("p", &images).await;
    let admin = plane.client().unwrap();
    let row = |verb, resource, name| Ask {
        verb,
        api: OURS,
        resource,
        name,
    };
    // The roles are put together a moment after they are there.
    let end = Instant::now() + PATIENCE;
    let edit = row("patch", "promotionrequests", "p");
    while ask(&admin, &edit, namespace, Some("ada")).await == 403 {
        assert!(Instant::now() < end, "admin does not take the role in");
        tokio::time::sleep(LOOK).await;
    }
    let all = "promotionrequests";
    let status = "promotionrequests/status";
    for (asked, users) in [
        (row("get", all, "p"), "vera eddy ada"),
        (row("list", all, ""), "vera eddy ada"),
        (row("watch", all, ""), "vera eddy ada"),
        (row("get", status, "p"), "vera eddy ada"),
        (row("create", all, ""), "eddy ada"),
        (row("update", all, "p"), "eddy ada"),
        (row("patch", all, "p"), "eddy ada"),
        (row("delete", all, "none"), "eddy ada"),
        (row("deletecollection", all, ""), "eddy ada"),
        (row("update", status, "p"), ""),
        (row("patch", status, "p"), ""),
    ] {
        for user in ["vera", "eddy", "ada", "nobody"] {
            let code = ask(&admin, &asked, namespace, Some(user)).await;
            let may = users.split(' ').any(|one| one == user);
            assert_eq!(code != 403, may, "{user}: {asked:?}: {code}");
            let elsewhere = ask(&admin, &asked, &ground.other.namespace, Some(user)).await;
            assert_eq!(elsewhere, 403, "{user} elsewhere: {asked:?}");
        }
    }
}
