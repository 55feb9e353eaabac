//! Reading without ignoring anything.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Reads a part whose structs take fields that they do not know, and refuses the first such field by name: what a worker ignores could have
/// changed numbers.
pub(super) fn strict<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let mut unknown = None;
    let part = serde_ignored::deserialize(from, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    })?;
    match unknown {
        None => Ok(part),
        Some(path) => {
            let name = path.rsplit('.').next().unwrap_or(&path);
            Err(D::Error::custom(format!("unknown field `{name}`")))
        }
    }
}
