//! What the API server keeps beside pods and nodes: objects by kind and name, each with a version.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// HTTP status of a conflict.
const CONFLICT: u16 = 409;

/// Objects of one namespace.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    kept: BTreeMap<(String, String), (u64, Value)>,
    versions: u64,
}

impl Objects {
    /// The object with its version, or `Null`.
    pub fn get(&self, kind: &str, name: &str) -> Value {
        let Some((version, object)) = self.kept.get(&(kind.to_owned(), name.to_owned())) else {
            return Value::Null;
        };
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        object
    }

    pub fn has(&self, kind: &str, name: &str) -> bool {
        self.kept.contains_key(&(kind.to_owned(), name.to_owned()))
    }

    /// Some object of `kind` is there.
    pub fn has_some(&self, kind: &str) -> bool {
        self.kept.keys().any(|(of, _)| of == kind)
    }

    /// Keeps a new object; as it is kept.
    ///
    /// # Errors
    /// The HTTP status when there is one of its name.
    pub fn create(&mut self, object: Value) -> Result<Value, u16> {
        let (kind, name) = key(&object);
        if self.has(&kind, &name) { Err(CONFLICT) } else { self.apply(object) }
    }

    /// Keeps an object in place of the one of its name, or of the version that it names; as it is kept.
    ///
    /// # Errors
    /// The HTTP status when there is another version.
    pub fn apply(&mut self, mut object: Value) -> Result<Value, u16> {
        let (kind, name) = key(&object);
        let known = self.get(&kind, &name);
        let replaced = object["metadata"]["resourceVersion"].take();
        if !replaced.is_null() && replaced != known["metadata"]["resourceVersion"] {
            return Err(CONFLICT);
        }
        self.versions += 1;
        self.kept.insert((kind.clone(), name.clone()), (self.versions, object));
        Ok(self.get(&kind, &name))
    }

    /// Somebody else has written it as it is.
    pub fn touch(&mut self, kind: &str, name: &str) {
        if let Some((version, _)) = self.kept.get_mut(&(kind.to_owned(), name.to_owned())) {
            self.versions += 1;
            *version = self.versions;
        }
    }
}

/// Kind and name of a manifest.
pub(crate) fn key(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["name"]))
}
