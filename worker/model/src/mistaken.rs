//! What a file or a folder is that is not a model as it should be: people give the one beside the right one. Asked only when it turned out so.

use std::path::Path;

use crate::error::ModelError;
use crate::source::{ByteSource, Folder};

/// How files begin that are taken for others.
const GIT_LFS: &[u8] = b"version https://git-lfs";
const ZIP: &[u8] = b"PK\x03\x04";
/// GGUF, and a version of it the other way round.
const BIG_ENDIAN: [&[u8]; 2] = [b"GGUF\0\0\0\x03", b"GGUF\0\0\0\x02"];

fn refused(what: String, remedy: &str) -> ModelError {
    ModelError::Refused { what, remedy: remedy.to_owned() }
}

/// Its first bytes; fewer when there are not so many, none when they cannot be read, which the next to read them says.
fn first_bytes(source: &dyn ByteSource) -> Vec<u8> {
    let mut bytes = vec![0; source.len().min(GIT_LFS.len() as u64) as usize];
    match source.read_at(0, &mut bytes) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

fn git_lfs(source: &dyn ByteSource, first: &[u8]) -> Result<(), ModelError> {
    if first != GIT_LFS {
        return Ok(());
    }
    let what = format!("{} is a pointer of Git LFS, and not the file itself", source.describe());
    Err(refused(what, "fetch the file with `git lfs pull`"))
}

/// What is this, if it is no GGUF file of this machine's order?
///
/// # Errors
/// With what it is, if that can be told.
pub(crate) fn for_gguf(source: &dyn ByteSource) -> Result<(), ModelError> {
    let (file, first) = (source.describe(), first_bytes(source));
    git_lfs(source, &first)?;
    if BIG_ENDIAN.iter().any(|begin| first.starts_with(begin)) {
        let what = format!("{file} is a big-endian GGUF file");
        return Err(refused(what, "convert it with gguf-py's `gguf_convert_endian.py FILE little`"));
    }
    if first.starts_with(ZIP) {
        let what = format!("{file} is an archive, as PyTorch writes it");
        return Err(refused(what, "save the model as safetensors, and give its folder"));
    }
    if Path::new(&file).extension().is_some_and(|end| end == "safetensors") {
        let what = format!("{file} is a safetensors file");
        return Err(refused(what, "give the folder that has it and config.json"));
    }
    Ok(())
}

/// What is this, if it is no safetensors file?
///
/// # Errors
/// With what it is, if that can be told.
pub(crate) fn for_safetensors(source: &dyn ByteSource) -> Result<(), ModelError> {
    git_lfs(source, &first_bytes(source))
}

/// Why a folder without config.json is no model.
pub(crate) fn folder(folder: &dyn Folder) -> ModelError {
    let (place, names) = (folder.describe(), folder.names().ok().flatten().unwrap_or_default());
    if let Some(file) = names.iter().find(|name| Path::new(name).extension().is_some_and(|end| end == "gguf"))
    {
        return refused(format!("{place} has no config.json, but `{file}`"), "give the path of that file");
    }
    if names.iter().any(|name| name == "snapshots") {
        let what = format!("{place} is the hub's cache of a model, and not the model itself");
        return refused(what, "give the folder below its `snapshots`");
    }
    if names.iter().any(|name| name == "params.json") {
        let what = format!("{place} has `params.json`, and no config.json");
        return refused(what, "use the model in Hugging Face's form");
    }
    let remedy = "give a folder with config.json, tokenizer.json and safetensors, or a GGUF file";
    refused(format!("{place} has no config.json"), remedy)
}

/// Why a folder without safetensors is no model.
pub(crate) fn folder_without_weights(folder: &dyn Folder) -> ModelError {
    let place = folder.describe();
    let bin = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    if bin.iter().any(|name| matches!(folder.open(name), Ok(Some(_)))) {
        return refused(
            format!("{place} has `pytorch_model.bin`, and no safetensors"),
            "save it with transformers' `save_pretrained`, which writes safetensors",
        );
    }
    let remedy = "use a complete copy of the model, with its safetensors";
    refused(format!("{place} has no safetensors files"), remedy)
}
