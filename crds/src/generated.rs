//! The files that are made from the types. `make crds` writes them; the tests here compare them with what is checked in.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::{InferenceSwarm, TrainingSwarm, reference};

/// A kind of this API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceKind {
    /// [`InferenceSwarm`].
    Inference,
    /// [`TrainingSwarm`].
    Training,
}

/// The kind called `name` in lower case, such as `trainingswarm`.
#[must_use]
pub fn kind(name: &str) -> Option<ResourceKind> {
    match name {
        "inferenceswarm" => Some(ResourceKind::Inference),
        "trainingswarm" => Some(ResourceKind::Training),
        _ => None,
    }
}

/// The CustomResourceDefinition as YAML: a file under `charts/dunlin/files/crds/`.
///
/// # Errors
/// When the schema cannot be written: a bug in the types.
pub fn crd(kind: ResourceKind) -> Result<String, Box<dyn std::error::Error>> {
    Ok(serde_saphyr::to_string(&definition(kind)?)?)
}

/// The reference in Markdown: a file under `docs/reference/`.
///
/// # Errors
/// When the schema cannot be written: a bug in the types.
pub fn docs(kind: ResourceKind) -> Result<String, Box<dyn std::error::Error>> {
    Ok(reference::markdown(&definition(kind)?))
}

/// The CustomResourceDefinition. By way of a JSON value, so that keys are in alphabetical order.
///
/// # Errors
/// When the schema cannot be written: a bug in the types.
pub fn definition(kind: ResourceKind) -> Result<Value, serde_json::Error> {
    let mut crd = serde_json::to_value(match kind {
        ResourceKind::Inference => InferenceSwarm::crd(),
        ResourceKind::Training => TrainingSwarm::crd(),
    })?;
    // An object that no operator has seen has a status that says so. Without one, whoever waits for it by the rules of kstatus (Helm, Flux)
    // takes it for done.
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["default"] =
        json!({"observedGeneration": -1});
    Ok(crd)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const KINDS: [(&str, ResourceKind); 2] =
        [("inferenceswarm", ResourceKind::Inference), ("trainingswarm", ResourceKind::Training)];

    fn checked_in(path: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}: run `make crds`", path.display()))
    }

    #[test]
    fn the_chart_has_these_schemas() {
        for (name, kind) in KINDS {
            let found = checked_in(&format!("charts/dunlin/files/crds/{name}s.yaml"));
            assert!(found == crd(kind).unwrap(), "the chart's {name} is out of date: run `make crds`");
        }
    }

    #[test]
    fn the_references_have_these_schemas() {
        for (name, kind) in KINDS {
            let found = checked_in(&format!("docs/reference/{name}.md"));
            assert!(found == docs(kind).unwrap(), "the reference of {name} is out of date: run `make crds`");
        }
    }

    /// Every string, number, list and map of a manifest has a bound, and every field says what it is.
    #[test]
    fn every_field_of_a_spec_is_bounded_and_documented() {
        for (name, kind) in KINDS {
            let crd = definition(kind).unwrap();
            let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            check(name, spec);
        }
    }

    fn check(path: &str, node: &Value) {
        // Something of Kubernetes itself, which checks it.
        if node["x-kubernetes-preserve-unknown-fields"] == true {
            return;
        }
        let has = |keys: &[&str]| keys.iter().all(|key| node.get(key).is_some());
        let bounded = match node["type"].as_str() {
            Some("string") => has(&["enum"]) || has(&["maxLength"]),
            Some("integer" | "number") => has(&["minimum", "maximum"]),
            Some("array") => has(&["maxItems"]),
            Some("object") => has(&["properties"]) || has(&["additionalProperties", "maxProperties"]),
            None if node["x-kubernetes-int-or-string"] == true => has(&["maxLength"]),
            kind => kind == Some("boolean"),
        };
        assert!(bounded, "{path} has no bound: {node}");
        for (name, field) in node["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(
                field["description"].as_str().is_some_and(|text| text.len() > 4),
                "{path}: no description"
            );
            check(&path, field);
        }
        for inner in ["items", "additionalProperties"] {
            if node[inner].is_object() {
                check(&format!("{path}.{inner}"), &node[inner]);
            }
        }
    }

    /// Lists whose entries have no name: they are owned as a whole.
    const UNNAMED: [&str; 2] = ["tolerations", "topologySpreadConstraints"];

    fn assert_keyed(path: &str, node: &Value) {
        let items = &node["items"];
        if items["type"] == "object" && !UNNAMED.iter().any(|list| path.ends_with(list)) {
            assert_eq!(node["x-kubernetes-list-type"], "map", "{path} has one owner for all of its entries");
            for key in node["x-kubernetes-list-map-keys"].as_array().unwrap() {
                let property = &items["properties"][key.as_str().unwrap()];
                let is_there = items["required"].as_array().is_some_and(|required| required.contains(key));
                assert!(is_there || property.get("default").is_some(), "{path}: {key} may be missing");
            }
        }
        for (name, field) in node["properties"].as_object().into_iter().flatten() {
            assert_keyed(&format!("{path}.{name}"), field);
        }
        if items.is_object() {
            assert_keyed(&format!("{path}[]"), items);
        }
    }

    /// Two managers, such as a GitOps tool and a person, may each have entries of their own in a list.
    #[test]
    fn entries_of_lists_are_told_apart_by_their_names() {
        for (name, kind) in KINDS {
            let crd = definition(kind).unwrap();
            assert_keyed(name, &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
        }
    }

    /// What `kubectl explain` begins with, and where a refusal says that the fault is.
    #[test]
    fn kinds_are_described_and_rules_about_fields_name_them() {
        for (name, kind) in KINDS {
            let crd = definition(kind).unwrap();
            let root = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            let (words, named) =
                (root["description"].as_str().unwrap(), crd["spec"]["names"]["kind"].as_str().unwrap());
            assert!(words.contains(named) && words.ends_with('.'), "{name}: {words}");
            for rule in root["x-kubernetes-validations"].as_array().unwrap() {
                let about_spec = rule["rule"].as_str().unwrap().contains("self.spec");
                assert_eq!(about_spec, rule.get("fieldPath").is_some(), "{name}: {rule}");
            }
        }
    }

    /// Autoscalers read all three; what a manifest may leave out must have a default, or they read nothing.
    #[test]
    fn whatever_a_manifest_leaves_out_scale_has_all_that_autoscalers_read() {
        for (name, kind) in KINDS {
            let crd = definition(kind).unwrap();
            let version = &crd["spec"]["versions"][0];
            let at = |path: &str| {
                let pointer =
                    version["subresources"]["scale"][path].as_str().unwrap().replace('.', "/properties/");
                version["schema"]["openAPIV3Schema"].pointer(&pointer).cloned().unwrap_or_default()
            };
            let (wanted, there) = (at("specReplicasPath"), at("statusReplicasPath"));
            // With none at all an HPA takes itself to be switched off.
            assert_eq!(
                (&wanted["default"], &wanted["type"]),
                (&json!(1), &json!("integer")),
                "{name}: {wanted}"
            );
            assert!(wanted.get("nullable").is_none(), "{name}: {wanted}");
            assert_eq!(there["type"], "integer", "{name}");
            assert_eq!(at("labelSelectorPath")["type"], "string", "{name}");
        }
    }

    /// Autoscalers stay within what the swarm allows: beyond, the API server refuses them.
    #[test]
    fn the_examples_of_autoscalers_are_for_the_example_swarm() {
        let swarm = example("smollm2.yaml", "InferenceSwarm");
        let peers = &swarm["spec"]["pools"][0]["peers"];
        for (file, kind, least, most) in [
            ("hpa.yaml", "HorizontalPodAutoscaler", "minReplicas", "maxReplicas"),
            ("keda.yaml", "ScaledObject", "minReplicaCount", "maxReplicaCount"),
        ] {
            let spec = &example(file, kind)["spec"];
            let target = json!({"apiVersion": swarm["apiVersion"], "kind": "InferenceSwarm", "name": swarm["metadata"]["name"]});
            assert_eq!(spec["scaleTargetRef"], target, "{file}");
            assert_eq!((&spec[least], &spec[most]), (&peers["min"], &peers["max"]), "{file}");
        }
    }

    /// The document of `kind` in an example.
    fn example(file: &str, kind: &str) -> Value {
        documents(file).into_iter().find(|document| document["kind"] == kind).unwrap()
    }

    /// The objects of an example.
    fn documents(file: &str) -> Vec<Value> {
        let text = checked_in(&format!("examples/{file}"));
        text.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect()
    }

    /// Every field of `part` is in `whole`.
    fn assert_contains(whole: &Value, part: &Value, path: &str) {
        match (whole, part) {
            (Value::Object(whole), Value::Object(part)) => {
                for (key, value) in part {
                    assert_contains(&whole[key], value, &format!("{path}.{key}"));
                }
            }
            (Value::Array(whole), Value::Array(part)) => {
                for (i, (a, b)) in whole.iter().zip(part).enumerate() {
                    assert_contains(a, b, &format!("{path}[{i}]"));
                }
            }
            // 16 is 16.0.
            (Value::Number(whole), Value::Number(part)) => {
                assert_eq!(whole.as_f64(), part.as_f64(), "{path}")
            }
            _ => assert_eq!(whole, part, "{path}"),
        }
    }

    #[test]
    fn the_examples_are_understood_without_leftovers() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let names =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut swarms = 0;
        for file in names.filter(|name| name.ends_with(".yaml")) {
            for example in documents(&file) {
                let understood = match example["kind"].as_str().unwrap() {
                    "InferenceSwarm" => serde_json::to_value(
                        serde_json::from_value::<InferenceSwarm>(example.clone()).unwrap(),
                    ),
                    "TrainingSwarm" => serde_json::to_value(
                        serde_json::from_value::<TrainingSwarm>(example.clone()).unwrap(),
                    ),
                    _ => continue,
                };
                assert_contains(&understood.unwrap(), &example, &file);
                swarms += 1;
            }
        }
        assert!(swarms >= 6, "{swarms} swarms");
    }
}
