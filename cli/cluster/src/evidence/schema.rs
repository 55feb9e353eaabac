//! Whether the CustomResourceDefinition of a cluster is of the version that this program knows. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

/// Most fields that are named.
const NAMED_MAX: usize = 5;

/// Fields of `ours` that `theirs` does not have: the first few, in order. Both are CustomResourceDefinitions.
#[must_use]
pub fn lacks(ours: &Value, theirs: &Value) -> Vec<String> {
    let fields = |definition: &Value| {
        let mut found = BTreeSet::new();
        let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
        for version in versions.filter(|v| v["name"] == "v1alpha1") {
            walk(&version["schema"]["openAPIV3Schema"], String::new(), &mut found);
        }
        found
    };
    let (ours, theirs) = (fields(ours), fields(theirs));
    let missing: Vec<&String> = ours.difference(&theirs).collect();
    // What is inside of a missing field is missing with it.
    let outermost =
        missing.iter().filter(|field| !missing.iter().any(|outer| field.starts_with(&format!("{outer}."))));
    outermost.take(NAMED_MAX).map(|field| (*field).clone()).collect()
}

fn walk(schema: &Value, path: String, found: &mut BTreeSet<String>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        // What is under metadata is Kubernetes' own, and conditions are of a type of its own.
        if path == "metadata" || path.ends_with(".conditions") {
            continue;
        }
        found.insert(path.clone());
        walk(inner, path, found);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], format!("{path}[]"), found);
    }
}

#[cfg(test)]
mod tests {
    use dunlin_crds::generated::{ResourceKind, definition};
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_an_older_definition_lacks_are_named_once() {
        let ours = definition(ResourceKind::Inference).unwrap();
        assert_eq!(lacks(&ours, &ours), [""; 0]);
        let mut older = ours.clone();
        let schema = &mut older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        schema.as_object_mut().unwrap().remove("gateway");
        schema["pools"]["items"]["properties"].as_object_mut().unwrap().remove("podTemplate");
        assert_eq!(lacks(&ours, &older), ["spec.gateway", "spec.pools[].podTemplate"]);
        assert_eq!(lacks(&ours, &json!({})), ["spec", "status"]);
    }
}
