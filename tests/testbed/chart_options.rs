//! Values that turn every option of the chart on and off.

use serde_json::{Value, json};

/// What has to be given.
pub fn least() -> Value {
    json!({
        "registries": ["quay.io"],
        "image": {"repository": "registry.example.com/promotion-controller"},
    })
}

fn rule() -> Value {
    json!({"name": "ocp", "namespaces": ["ci"], "sources": ["quay.io/openshift/**"], "floats": ["quay.io/openshift/ci:*"]})
}

/// Every option set to something else than its default.
pub fn most() -> Value {
    let mut most = json!({
        "registries": ["quay.io", "registry.*.ci.openshift.org", "127.0.0.1:5000"],
        "namespaces": ["ci", "ocp"],
        "secretNames": ["push", "pull"],
        "statusWriters": ["system:serviceaccount:velero:velero"],
        "plainHttp": ["127.0.0.1:5000", "registry.ci.svc"],
        "registryCa": [
            {"host": "registry.build02.ci.openshift.org", "configMap": "build02-ca"},
            {"host": "registry.build03.ci.openshift.org:5000", "configMap": "build03-ca", "key": "service-ca.crt"},
        ],
        "clusterRanges": ["203.0.113.0/24", "2001:db8::/32"],
        "policy": {"rules": [rule()]},
        "registryConfig": "own-credentials",
        "qps": 0,
        "concurrency": 32,
        "settleSeconds": 12,
        "lateSeconds": 120,
        "statusInterval": 5,
        "sweepInterval": 60,
        "maxActiveRequestsPerNamespace": 7,
        "logFormat": "text",
        "logLevel": "debug",
        "replicas": 3,
        "leaseNamespace": "ci",
        "image": {
            "repository": "quay.io/example/promotion-controller",
            "tag": "v1",
            "digest": format!("sha256:{}", "ab".repeat(32)),
            "pullPolicy": "Always",
        },
        "imagePullSecrets": [{"name": "pull"}],
        "proxy": {"http": "http://proxy:3128", "https": "http://proxy:3129/", "all": "socks5://proxy:1080", "no": ".svc,10.0.0.0/8"},
        "crds": {"install": false},
        "roles": {"aggregate": false},
        "serviceAccount": {"create": false, "name": "somebody", "annotations": {"a": "b"}},
        "metrics": {
            "address": "[::]",
            "port": 9090,
            "probePort": 9091,
            "serviceMonitor": {"enabled": true, "interval": "15s", "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": true, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": true, "labels": {"grafana_dashboard": "yes"}},
        },
        "networkPolicy": {
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "dnsPorts": [53],
            "apiServerPorts": [6443],
            "apiServerTo": [{"ipBlock": {"cidr": "192.0.2.1/32"}}],
            "registryPorts": [443, 8443],
            "registryTo": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}],
            "extraEgress": [{"ports": [{"port": 3128, "protocol": "TCP"}]}],
        },
        "resources": {"requests": {"cpu": "1", "memory": "200Mi"}, "limits": {"memory": "1Gi"}},
        "podDisruptionBudget": {"enabled": false},
        "topologySpread": false,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "ci", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "system-cluster-critical",
        "labels": {"team": "test-platform", "app.kubernetes.io/name": "cannot-be-replaced"},
        "annotations": {"owner": "test-platform"},
        "podLabels": {"tier": "ci"},
        "podAnnotations": {"note": "pods"},
        "nameOverride": "promoter",
        "fullnameOverride": "promoter-main",
    });
    // As much as one macro takes.
    most["qpsMax"] = json!(500);
    let pulled =
        json!({"repository": "quay.io/openshift/ci", "host": "quay-proxy.ci.openshift.org"});
    most["imageStreams"] = json!({"namespaces": ["ci"], "pullHosts": [pulled], "create": true});
    most
}

/// Each under a name: the least, the most, and the least with one option on or off.
pub fn every() -> Vec<(&'static str, Value)> {
    let mut cases = vec![("least", least()), ("most", most())];
    let mut single = |name, change: Value| {
        let mut values = least();
        for (key, value) in change.as_object().unwrap() {
            values[key] = value.clone();
        }
        cases.push((name, values));
    };
    single("named namespaces", json!({"namespaces": ["ci", "ocp"]}));
    single(
        "all namespaces",
        json!({"allNamespaces": true, "namespaces": ["ci"]}),
    );
    single("policy", json!({"policy": {"rules": [rule()]}}));
    single(
        "image streams",
        json!({"imageStreams": {"namespaces": ["ci", "ocp"]}}),
    );
    single("own credentials", json!({"registryConfig": "own"}));
    single(
        "private CA",
        json!({"registryCa": [{"host": "quay.io", "configMap": "ca"}]}),
    );
    single(
        "plain HTTP",
        json!({"plainHttp": ["[fd00::1]:5000", "registry.ci.svc"]}),
    );
    single("no definition", json!({"crds": {"install": false}}));
    single(
        "no roles for people",
        json!({"roles": {"aggregate": false}}),
    );
    single(
        "another's account",
        json!({"serviceAccount": {"create": false}}),
    );
    single(
        "a named account",
        json!({"serviceAccount": {"name": "pc", "annotations": {"a": "b"}}}),
    );
    single(
        "service monitor",
        json!({"metrics": {"serviceMonitor": {"enabled": true}}}),
    );
    single(
        "alerts",
        json!({"metrics": {"prometheusRule": {"enabled": true}}}),
    );
    single(
        "dashboard",
        json!({"metrics": {"dashboard": {"enabled": true}}}),
    );
    single(
        "no network policy",
        json!({"networkPolicy": {"enabled": false}}),
    );
    single(
        "no disruption budget",
        json!({"podDisruptionBudget": {"enabled": false}}),
    );
    single("no spread", json!({"topologySpread": false}));
    single("a lease elsewhere", json!({"leaseNamespace": "ci"}));
    single("another name", json!({"nameOverride": "x"}));
    single("a proxy", json!({"proxy": {"https": "http://proxy:3128"}}));
    single(
        "a proxy with a password",
        json!({"proxy": {"secret": "proxy", "no": ".svc"}}),
    );
    single(
        "named Secrets",
        json!({"namespaces": ["ci"], "secretNames": ["push"]}),
    );
    single("who restores", json!({"statusWriters": ["admin"]}));
    cases
}
