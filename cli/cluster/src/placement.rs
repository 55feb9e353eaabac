//! Which nodes a pod may run on, by the rules of the scheduler that a manifest can break: selectors, affinity, taints. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};
use kube::ResourceExt;

/// Why `pod` may not run on `node`; `None` when it may, as far as room is left.
#[must_use]
pub fn misfit(pod: &Pod, node: &Node) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let labels = node.labels();
    let selector = spec.node_selector.iter().flatten();
    if let Some((key, value)) = selector.into_iter().find(|(key, value)| labels.get(*key) != Some(*value)) {
        return Some(format!("it is not labelled {key}={value}"));
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref());
    if let Some(required) = required
        && !required.node_selector_terms.iter().any(|term| matches_term(term, labels, &node.name_any()))
    {
        let terms = required.node_selector_terms.iter();
        let wanted: Vec<String> =
            terms.flat_map(|t| t.match_expressions.iter().flatten()).map(told).collect();
        return Some(format!("its labels are not those wanted: {}", shortened(&wanted)));
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let hard = taints.filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute");
    let taint = hard.into_iter().find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))?;
    Some(match taint.key.as_str() {
        "node.kubernetes.io/unschedulable" => "it is cordoned".to_owned(),
        key => format!("its taint {key} is not tolerated"),
    })
}

/// `a, b or 3 others`.
fn shortened(words: &[String]) -> String {
    match words {
        [one, two, rest @ ..] if rest.len() > 1 => format!("{one}, {two} or {} others", rest.len()),
        all => all.join(", "),
    }
}

fn told(wanted: &NodeSelectorRequirement) -> String {
    let values = wanted.values.as_deref().unwrap_or_default().join("|");
    match wanted.operator.as_str() {
        "In" => format!("{}={values}", wanted.key),
        "NotIn" => format!("{}!={values}", wanted.key),
        "Exists" => wanted.key.clone(),
        "DoesNotExist" => format!("!{}", wanted.key),
        other => format!("{} {other} {values}", wanted.key),
    }
}

fn matches_term(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let (by_label, by_field) = (term.match_expressions.as_deref(), term.match_fields.as_deref());
    let (by_label, by_field) = (by_label.unwrap_or_default(), by_field.unwrap_or_default());
    // An empty term takes no node.
    (!by_label.is_empty() || !by_field.is_empty())
        && by_label.iter().all(|e| matches_one(e, labels.get(&e.key).map(String::as_str)))
        && by_field.iter().all(|e| matches_one(e, (e.key == "metadata.name").then_some(name)))
}

fn matches_one(wanted: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let has = |found: &str| values.iter().any(|value| value == found);
    let number = |text: &str| text.parse::<i64>().ok();
    let limit = || values.first().and_then(|v| number(v));
    match wanted.operator.as_str() {
        "In" => found.is_some_and(has),
        "NotIn" => !found.is_some_and(has),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => found.and_then(number).zip(limit()).is_some_and(|(found, limit)| found > limit),
        "Lt" => found.and_then(number).zip(limit()).is_some_and(|(found, limit)| found < limit),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let same =
        |ours: &Option<String>, theirs: &str| ours.as_deref().is_none_or(|o| o.is_empty() || o == theirs);
    let value = toleration.operator.as_deref() == Some("Exists")
        || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    same(&toleration.effect, &taint.effect) && same(&toleration.key, &taint.key) && value
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node() -> Node {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n1", "labels": {"disk": "hdd", "cores": "8"}},
            "spec": {"taints": [{"key": "team", "value": "a", "effect": "NoSchedule"}, {"key": "soft", "effect": "PreferNoSchedule"}]},
        }))
        .unwrap()
    }

    fn of(spec: Value) -> Option<String> {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
        pod["spec"]["containers"] = json!([]);
        misfit(&serde_json::from_value(pod).unwrap(), &node())
    }

    #[test]
    fn a_node_is_left_out_by_selector_affinity_or_taint() {
        let tolerated = json!([{"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}]);
        let everything = json!([{"operator": "Exists"}]);
        let terms = |terms: Value| json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let says = |text: &str| Some(text.to_owned());
        assert_eq!(of(json!({"nodeSelector": {"disk": "ssd"}})), says("it is not labelled disk=ssd"));
        assert_eq!(of(json!({"nodeSelector": {"disk": "hdd"}})), says("its taint team is not tolerated"));
        assert_eq!(of(json!({"tolerations": tolerated})), None);
        assert_eq!(of(json!({"tolerations": everything})), None);
        for (term, fits) in [
            (expression("disk", "In", &["ssd", "hdd"]), true),
            (expression("disk", "In", &["ssd"]), false),
            (expression("disk", "NotIn", &["ssd"]), true),
            (expression("gpu", "DoesNotExist", &[]), true),
            (expression("gpu", "Exists", &[]), false),
            (expression("cores", "Gt", &["4"]), true),
            (expression("cores", "Lt", &["8"]), false),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), true),
            (json!({}), false),
        ] {
            let found = of(json!({"tolerations": everything, "affinity": terms(json!([term]))}));
            assert_eq!(found.is_none(), fits, "{term} {found:?}");
        }
        // Any of several will do.
        let any = json!([expression("gpu", "Exists", &[]), expression("disk", "Exists", &[])]);
        assert_eq!(of(json!({"tolerations": everything, "affinity": terms(any)})), None);
        let spot = json!([
            expression("a/spot", "In", &["true"]),
            expression("b/spot", "In", &["true"]),
            expression("c", "Exists", &[]),
            expression("d", "Exists", &[])
        ]);
        assert_eq!(
            of(json!({"affinity": terms(spot)})),
            says("its labels are not those wanted: a/spot=true, b/spot=true or 2 others")
        );
    }
}
