//! An object of config.json.

use serde_json::{Map, Value};

use crate::error::{ModelError, excerpt};

/// An object of config.json whose values are of the type that is asked for, or refused. Null is as good as nothing.
pub(crate) struct Section<'a> {
    pub(crate) file: &'a str,
    /// What stands before its keys, `rope_scaling.`.
    at: String,
    pub(crate) map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    pub(crate) fn new(file: &'a str, at: &str, json: &'a Value) -> Result<Self, ModelError> {
        let at = at.to_owned();
        match json.as_object() {
            Some(map) => Ok(Self { file, at, map }),
            None => Err(ModelError::Malformed {
                file: file.to_owned(),
                format: "JSON",
                what: format!(
                    "{} is not an object",
                    if at.is_empty() { "it" } else { at.trim_end_matches('.') }
                ),
            }),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(&self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, ModelError> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.unusable(key))).transpose()
    }

    pub(crate) fn whole(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.typed(key, |value| value.as_u64().and_then(|v| usize::try_from(v).ok()))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, Value::as_f64)
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, Value::as_bool)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, Value::as_str)
    }

    /// The key as a user finds it.
    pub(crate) fn path(&self, key: &str) -> String {
        format!("{}{}", self.at, excerpt(key))
    }

    pub(crate) fn unusable(&self, key: &str) -> ModelError {
        ModelError::Malformed {
            file: self.file.to_owned(),
            format: "config.json",
            what: format!("no usable `{}`", self.path(key)),
        }
    }

    pub(crate) fn refused(&self, what: &str, remedy: &str) -> ModelError {
        ModelError::Refused { what: format!("{}: {what}", self.file), remedy: remedy.to_owned() }
    }

    pub(crate) fn unknown(&self, key: &str) -> ModelError {
        self.refused(
            &format!("`{}` is not known here, and could change what the model computes", self.path(key)),
            "if it does not, remove it from config.json",
        )
    }
}
