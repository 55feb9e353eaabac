//! Which files of a folder have the weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::side::side_file;
use crate::error::{ModelError, excerpt};
use crate::mistaken;
use crate::source::Folder;

const WHOLE: &str = "model.safetensors";
/// Which file has which tensor.
const INDEX: &str = "model.safetensors.index.json";
const INDEX_BYTES_MAX: u64 = 64 << 20;
const FILES_MAX: usize = 4096;

/// Files with weights.
pub(super) struct WeightFiles {
    /// Their names.
    pub names: Vec<String>,
    /// Tensors that must be in them, if the folder says so.
    pub promised: BTreeSet<String>,
}

/// Those that `model.safetensors.index.json` names; else `model.safetensors`, beside which some models have the same weights in another form;
/// else all that there are.
pub(super) fn find(folder: &dyn Folder) -> Result<WeightFiles, ModelError> {
    let whole = folder.open(WHOLE)?.is_some();
    let mut promised = BTreeSet::new();
    let names = if folder.open(INDEX)?.is_some() {
        let (names, tensors) = indexed(folder, whole)?;
        promised = tensors;
        names
    } else if whole {
        vec![WHOLE.to_owned()]
    } else {
        let mut names = folder.names()?.unwrap_or_default();
        names.retain(|name| Path::new(name).extension().is_some_and(|e| e == "safetensors"));
        names.sort();
        names
    };
    match names.len() {
        0 => Err(mistaken::folder_without_weights(folder)),
        1..=FILES_MAX => Ok(WeightFiles { names, promised }),
        many => Err(ModelError::Refused {
            what: format!("{} has {many} safetensors files", folder.describe()),
            remedy: format!("up to {FILES_MAX} are read; save it in larger ones"),
        }),
    }
}

/// Files and tensors that the index names.
fn indexed(folder: &dyn Folder, whole: bool) -> Result<(Vec<String>, BTreeSet<String>), ModelError> {
    let wrong = |what: String| ModelError::Malformed {
        file: format!("{}/{INDEX}", folder.describe()),
        format: "JSON",
        what,
    };
    let json = side_file(folder, INDEX, INDEX_BYTES_MAX)?;
    let json: Index = serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
    let (tensors, names): (BTreeSet<String>, BTreeSet<String>) = json.weight_map.into_iter().unzip();
    // A name with a path could point anywhere.
    if let Some(name) =
        names.iter().find(|name| Path::new(name).file_name().is_none_or(|own| own != name.as_str()))
    {
        return Err(wrong(format!("it names `{}`, which is not a file of the folder", excerpt(name))));
    }
    // transformers takes one, others take the others.
    if whole && !names.is_empty() && !names.contains(WHOLE) {
        return Err(ModelError::Refused {
            what: format!(
                "{} has `{WHOLE}`, and `{INDEX}` names other files with weights",
                folder.describe()
            ),
            remedy: "remove those that are not the model".to_owned(),
        });
    }
    Ok((names.into_iter().collect(), tensors))
}

/// `model.safetensors.index.json`: which file has which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}
