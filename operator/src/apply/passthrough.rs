//! What a manifest gives to pods beside what they need. It is added, and never takes the place of what the operator writes: the schema refuses
//! what could. Pure.

use dunlin_crds::PodTemplateSpec;
use serde_json::{Map, Value, json};

use crate::labels::OURS;

/// Adds `template` to `pod`, which has `metadata` and a `spec` with one container.
pub fn add(template: &PodTemplateSpec, pod: &mut Value) {
    // Whatever a schema of long ago let pass: what the operator says of a pod stays. A label that it has from its swarm does not.
    let ours = |key: &str| key.starts_with(OURS) || key.starts_with("app.kubernetes.io/");
    for (key, value) in template.labels.iter().filter(|(key, _)| !ours(key)) {
        pod["metadata"]["labels"][key.as_str()] = json!(value);
    }
    for (key, value) in &template.annotations {
        let slot = &mut pod["metadata"]["annotations"][key.as_str()];
        if slot.is_null() {
            *slot = json!(value);
        }
    }
    let spec = &mut pod["spec"];
    let names = template.image_pull_secrets.iter().map(|secret| json!(secret));
    append(spec, "imagePullSecrets", names);
    append(spec, "tolerations", template.tolerations.iter().map(|t| json!(t)));
    append(spec, "topologySpreadConstraints", template.topology_spread_constraints.iter().map(|t| json!(t)));
    append(spec, "volumes", template.volumes.iter().map(|v| json!(v)));
    for (field, value) in [
        ("priorityClassName", &template.priority_class_name),
        ("runtimeClassName", &template.runtime_class_name),
        ("schedulerName", &template.scheduler_name),
        ("serviceAccountName", &template.service_account_name),
    ] {
        if let Some(value) = value {
            spec[field] = json!(value);
        }
    }
    if let Some(theirs) = &template.affinity {
        affinity(&mut spec["affinity"], &theirs.0);
    }
    let container = &mut spec["containers"][0];
    append(container, "env", template.env.iter().map(|e| json!(e)));
    append(container, "volumeMounts", template.volume_mounts.iter().map(|m| json!(m)));
    if let Some(image) = &template.image {
        container["image"] = json!(image);
    }
}

/// Adds to the list `key` of `object`; without anything to add it is not made.
fn append(object: &mut Value, key: &str, more: impl Iterator<Item = Value>) {
    let more: Vec<Value> = more.collect();
    if more.is_empty() {
        return;
    }
    let list = &mut object[key];
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(more);
    }
}

/// Both must hold: terms that nodes must match are combined, each of ours with each of theirs; everything else is a list of demands or
/// preferences, which add up.
fn affinity(ours: &mut Value, theirs: &Map<String, Value>) {
    const NODES: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    for (kind, rules) in theirs {
        for (rule, asked) in rules.as_object().into_iter().flatten() {
            let slot = &mut ours[kind.as_str()][rule.as_str()];
            if slot.is_null() {
                *slot = asked.clone();
            } else if kind == "nodeAffinity" && rule == NODES {
                let terms =
                    |value: &Value| value["nodeSelectorTerms"].as_array().cloned().unwrap_or_default();
                let (ours, theirs) = (terms(slot), terms(asked));
                let both = ours.iter().flat_map(|ours| theirs.iter().map(|theirs| both(ours, theirs)));
                *slot = json!({"nodeSelectorTerms": both.collect::<Vec<_>>()});
            } else {
                append(&mut ours[kind.as_str()], rule, asked.as_array().into_iter().flatten().cloned());
            }
        }
    }
}

/// A node selector term that takes the nodes that both take.
fn both(ours: &Value, theirs: &Value) -> Value {
    let mut term = ours.clone();
    for list in ["matchExpressions", "matchFields"] {
        append(&mut term, list, theirs[list].as_array().into_iter().flatten().cloned());
    }
    term
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({
            "metadata": {"labels": {"dunlin.dev/role": "stage", "tier": "the swarm's"}, "annotations": {"a": "ours"}},
            "spec": {
                "tolerations": [{"key": "spot"}],
                "affinity": {
                    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "spot"}]}, {"matchExpressions": [{"key": "preemptible"}]},
                    ]}},
                    "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100}]},
                },
                "volumes": [{"name": "tls"}],
                "containers": [{"image": "ours", "env": [{"name": "POD_NAME"}], "volumeMounts": [{"name": "tls"}]}],
            },
        })
    }

    fn added(template: Value) -> Value {
        let mut pod = pod();
        add(&serde_json::from_value(template).unwrap(), &mut pod);
        pod
    }

    #[test]
    fn an_empty_template_changes_nothing() {
        assert_eq!(added(json!({})), pod());
    }

    #[test]
    fn everything_is_added_and_nothing_of_ours_is_replaced() {
        let got = added(json!({
            "labels": {"team": "x", "tier": "the pool's", "dunlin.dev/role": "gateway"},
            "annotations": {"a": "theirs", "b": "theirs"},
            "image": "theirs",
            "imagePullSecrets": [{"name": "registry"}],
            "env": [{"name": "X", "value": "1"}, {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
            "topologySpreadConstraints": [{"maxSkew": 1}],
            "priorityClassName": "high",
            "runtimeClassName": "gvisor",
            "schedulerName": "other",
            "serviceAccountName": "puller",
            "volumes": [{"name": "extra", "emptyDir": {}}],
            "volumeMounts": [{"name": "extra", "mountPath": "/extra"}],
        }));
        let (metadata, spec) = (&got["metadata"], &got["spec"]);
        assert_eq!(
            metadata["labels"],
            json!({"dunlin.dev/role": "stage", "team": "x", "tier": "the pool's"})
        );
        assert_eq!(metadata["annotations"], json!({"a": "ours", "b": "theirs"}));
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
        assert_eq!(spec["tolerations"][0]["key"], "spot");
        assert_eq!(
            spec["tolerations"][1],
            json!({"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"})
        );
        assert_eq!(spec["topologySpreadConstraints"], json!([{"maxSkew": 1}]));
        let names = ["priorityClassName", "runtimeClassName", "schedulerName", "serviceAccountName"];
        assert_eq!(names.map(|name| &spec[name]), ["high", "gvisor", "other", "puller"]);
        assert_eq!(spec["volumes"][1], json!({"name": "extra", "emptyDir": {}}));
        let container = &spec["containers"][0];
        assert_eq!(container["image"], "theirs");
        assert_eq!(container["env"][1], json!({"name": "X", "value": "1"}));
        assert_eq!(container["env"][2]["valueFrom"]["secretKeyRef"]["key"], "k");
        assert_eq!(container["volumeMounts"][1]["mountPath"], "/extra");
    }

    #[test]
    fn nodes_must_satisfy_both_and_preferences_add_up() {
        let nodes = "requiredDuringSchedulingIgnoredDuringExecution";
        let got = added(json!({"affinity": {
            "nodeAffinity": {nodes: {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone"}]}]}},
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 7}]},
            "podAffinity": {nodes: [{"topologyKey": "rack"}]},
        }}));
        let affinity = &got["spec"]["affinity"];
        let expected = json!([
            {"matchExpressions": [{"key": "spot"}, {"key": "zone"}]},
            {"matchExpressions": [{"key": "preemptible"}, {"key": "zone"}]},
        ]);
        assert_eq!(affinity["nodeAffinity"][nodes]["nodeSelectorTerms"], expected);
        let apart = &affinity["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(apart, &json!([{"weight": 100}, {"weight": 7}]));
        assert_eq!(affinity["podAffinity"][nodes], json!([{"topologyKey": "rack"}]));
    }
}
