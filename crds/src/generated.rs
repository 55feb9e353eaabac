//! The files that are made from the types. `make crds` writes them; the tests here compare them with what is checked in.

use kube::CustomResourceExt;
use serde_json::Value;

use crate::{InferenceSwarm, reference};

/// The CustomResourceDefinition as YAML: `charts/dunlin/files/crds/inferenceswarms.yaml`.
///
/// # Errors
/// When the schema cannot be written: a bug in the types.
pub fn crd() -> Result<String, Box<dyn std::error::Error>> {
    Ok(serde_saphyr::to_string(&definition()?)?)
}

/// The reference in Markdown: `docs/reference/inferenceswarm.md`.
///
/// # Errors
/// When the schema cannot be written: a bug in the types.
pub fn docs() -> Result<String, Box<dyn std::error::Error>> {
    Ok(reference::markdown(&definition()?))
}

/// By way of a JSON value, so that keys are in alphabetical order.
fn definition() -> Result<Value, serde_json::Error> {
    serde_json::to_value(InferenceSwarm::crd())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn checked_in(path: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}: run `make crds`", path.display()))
    }

    #[test]
    fn the_chart_has_this_schema() {
        let found = checked_in("charts/dunlin/files/crds/inferenceswarms.yaml");
        assert!(found == crd().unwrap(), "the chart's CRD is out of date: run `make crds`");
    }

    #[test]
    fn the_reference_has_this_schema() {
        let found = checked_in("docs/reference/inferenceswarm.md");
        assert!(found == docs().unwrap(), "the reference is out of date: run `make crds`");
    }

    #[test]
    fn the_example_is_understood_without_leftovers() {
        let example: Value = serde_saphyr::from_str(&checked_in("examples/smollm2.yaml")).unwrap();
        let swarm: InferenceSwarm = serde_json::from_value(example.clone()).unwrap();
        let back = serde_json::to_value(&swarm).unwrap();
        for (field, value) in example["spec"]["pools"][0].as_object().unwrap() {
            assert_eq!(&back["spec"]["pools"][0][field], value, "{field}");
        }
        assert_eq!(back["spec"]["model"], example["spec"]["model"]);
    }
}
