//! Files of a folder beside the weights.

use std::sync::Arc;

use serde_json::Value;

use crate::error::ModelError;
use crate::source::{ByteSource, Folder};

/// config.json and tokenizer_config.json may not be longer than this: they take many times their length in memory.
pub(super) const CONFIG_MAX: u64 = 4 << 20;

/// A file that must be there.
pub(super) fn open(folder: &dyn Folder, name: &str) -> Result<Arc<dyn ByteSource>, ModelError> {
    folder.open(name)?.ok_or_else(|| ModelError::Refused {
        what: format!("{} has no {name}", folder.describe()),
        remedy: "use a complete copy of it".to_owned(),
    })
}

pub(super) fn side_file(folder: &dyn Folder, name: &str, bytes_max: u64) -> Result<Vec<u8>, ModelError> {
    let file = open(folder, name)?;
    if file.len() > bytes_max {
        let what = format!("it has {} bytes, more than {bytes_max}", file.len());
        return Err(ModelError::Malformed { file: file.describe(), format: "JSON", what });
    }
    let mut bytes = vec![0; file.len() as usize];
    let read = file.read_at(0, &mut bytes);
    read.map_err(|source| ModelError::Read { what: file.describe(), source })?;
    Ok(bytes)
}

/// A file of a folder, if it is there; it must not be longer than `bytes_max`.
///
/// # Errors
/// When it cannot be read, or is too long.
pub fn file_if_there(folder: &dyn Folder, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, ModelError> {
    if folder.open(name)?.is_none() {
        return Ok(None);
    }
    side_file(folder, name, bytes_max).map(Some)
}

/// A file of JSON, null if it is not there.
pub(super) fn json_if_there(folder: &dyn Folder, name: &str) -> Result<Value, ModelError> {
    match folder.open(name)? {
        None => Ok(Value::Null),
        Some(_) => side_json(folder, name),
    }
}

pub(crate) fn side_json(folder: &dyn Folder, name: &str) -> Result<Value, ModelError> {
    serde_json::from_slice(&side_file(folder, name, CONFIG_MAX)?).map_err(|error| ModelError::Malformed {
        file: format!("{}/{name}", folder.describe()),
        format: "JSON",
        what: error.to_string(),
    })
}
