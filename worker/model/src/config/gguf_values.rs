//! What the metadata of a GGUF file says under a key, of the type that is asked for.

use std::collections::BTreeMap;

use crate::error::{ModelError, excerpt};
use crate::gguf::Value;

/// What every frequency of the rotary embedding is divided by, in files of Llama 3.1 and later.
pub(crate) const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// The same in files of LongRoPE, for contexts up to the original one.
pub(crate) const ROPE_SHORT: &str = "rope_factors_short.weight";
/// And for longer ones.
pub(crate) const ROPE_LONG: &str = "rope_factors_long.weight";

/// Values of those of these tensors that a file has.
pub(crate) type RopeTensors = BTreeMap<&'static str, Vec<f32>>;

pub(crate) fn malformed(file: &str, what: String) -> ModelError {
    ModelError::Malformed { file: file.to_owned(), format: "GGUF", what }
}

/// The metadata of an architecture, of the types that are asked for, or refused.
pub(crate) struct Keys<'a> {
    pub(crate) file: &'a str,
    pub(crate) architecture: &'a str,
    pub(crate) values: &'a BTreeMap<String, Value>,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.get(&format!("{}.{key}", self.architecture))
    }

    fn typed<T>(&self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, ModelError> {
        self.get(key).map(|value| self.needed(key, read(value))).transpose()
    }

    pub(crate) fn needed<T>(&self, key: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| {
            malformed(self.file, format!("no usable `{}.{}`", self.architecture, excerpt(key)))
        })
    }

    pub(crate) fn whole(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.typed(key, |value| value.as_u32().map(|v| v as usize))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, Value::as_f64)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, Value::as_text)
    }

    /// A number, or one for each layer, all of them the same.
    pub(crate) fn of_layers(&self, key: &str, layers: usize) -> Result<Option<usize>, ModelError> {
        let Some(Value::Numbers(numbers)) = self.get(key) else { return self.whole(key) };
        let first = numbers.first().copied().filter(|_| numbers.len() == layers);
        let first = self.needed(key, first)?;
        if numbers.iter().any(|number| *number != first) {
            return Err(self.refused(
                &format!("`{}.{key}` is not the same for all layers", self.architecture),
                "only models whose layers are all alike run here",
            ));
        }
        // Counts are below 2^32, so that they are whole in f64.
        self.needed(key, Some(first).filter(|v| (0.0..4_294_967_296.0).contains(v) && v.fract() == 0.0))
            .map(|count| Some(count as usize))
    }

    pub(crate) fn refused(&self, what: &str, remedy: &str) -> ModelError {
        ModelError::Refused { what: format!("{}: {what}", self.file), remedy: remedy.to_owned() }
    }
}
