//! The scripts of an object: a job's script is in the `ConfigMap` of its namespace, an older one in the arguments of its Pod.
//!
//! In comes a text; out come the scripts in it, each with the field that it stands in, if the text is such an object as YAML or JSON.

use serde_json::Value;

use super::script::is_script;

/// The scripts of a text that is an object, by their fields; none where the text is no object.
///
/// # Errors
/// It is an object without a script.
pub(super) fn scripts(text: &str) -> Option<Result<Vec<(String, String)>, String>> {
    let mut lines = text.lines();
    let object = text.trim_start().starts_with('{')
        || lines.any(|line| {
            line.split('#').next().unwrap_or_default().trim_end() == "kind: ConfigMap"
                || line.trim_end() == "kind: Pod"
        });
    if !object {
        return None;
    }
    let options = serde_saphyr::options! {
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 0 },
        with_snippet: false,
    };
    let object: Value = serde_saphyr::from_str_with_options(text, options).ok()?;
    let found = match object.pointer("/kind").and_then(Value::as_str)? {
        "ConfigMap" => of_data(object.get("data")),
        "Pod" => of_containers(object.get("spec")),
        _ => return None,
    };
    Some(if found.is_empty() {
        Err("no script in it runs 'oc image mirror'; name the file that has the script".into())
    } else {
        Ok(found)
    })
}

fn of_data(data: Option<&Value>) -> Vec<(String, String)> {
    let entries = data.and_then(Value::as_object).into_iter().flatten();
    let named = entries.filter_map(|(key, value)| script(format!("data.{key}"), value));
    named.collect()
}

fn of_containers(spec: Option<&Value>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for list in ["initContainers", "containers"] {
        let containers = spec.and_then(|spec| spec.get(list)?.as_array());
        for (number, container) in containers.into_iter().flatten().enumerate() {
            for field in ["command", "args"] {
                let words = container.get(field).and_then(Value::as_array);
                for (index, word) in words.into_iter().flatten().enumerate() {
                    let field = format!("spec.{list}[{number}].{field}[{index}]");
                    found.extend(script(field, word));
                }
            }
        }
    }
    found
}

fn script(field: String, value: &Value) -> Option<(String, String)> {
    let text = value.as_str().filter(|text| is_script(text))?;
    Some((field, text.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn scripts_are_found_where_jobs_have_them() {
        let script = "set -e\noc image mirror a=b\n";
        let map = json!({"kind": "ConfigMap", "data": {"promote.sh": script, "other": "x"}});
        let pod = json!({"kind": "Pod", "spec": {
            "containers": [{"command": ["sh", "-c"], "args": [script]}],
            "initContainers": [{"command": [script]}],
        }});
        for (object, wanted) in [
            (map, vec!["data.promote.sh"]),
            (
                pod,
                vec![
                    "spec.initContainers[0].command[0]",
                    "spec.containers[0].args[0]",
                ],
            ),
        ] {
            let yaml = serde_saphyr::to_string(&object).unwrap();
            for text in [object.to_string(), yaml] {
                let found = scripts(&text).unwrap().unwrap();
                let fields: Vec<_> = found.iter().map(|(field, _)| field.as_str()).collect();
                assert_eq!(fields, wanted, "{text}");
                assert!(found.iter().all(|(_, found)| found == script));
            }
        }
    }

    #[test]
    fn what_is_no_such_object_is_left_to_others_and_one_without_a_script_is_refused() {
        for text in [
            "a=b",
            "oc image mirror a=b",
            "{",
            "{}",
            "kind: ConfigMap\n\t:",
            "{\"kind\": \"Secret\"}",
        ] {
            assert_eq!(scripts(text), None, "{text}");
        }
        let none = scripts("kind: ConfigMap\ndata: {a: b}").unwrap();
        assert!(none.unwrap_err().contains("oc image mirror"));
    }

    proptest! {
        #[test]
        fn any_text_is_an_object_or_not(text in "\\PC{0,60}|(kind: ConfigMap\n|data:|  a: |\\{|\\}|\\[|oc image mirror|\n|'){0,20}") {
            let _ = scripts(&text);
        }
    }
}
