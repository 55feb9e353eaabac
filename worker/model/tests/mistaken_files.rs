//! What people give in place of a model is named, with what to give instead.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::path::Path;

use dunlin_model::{ModelError, ModelFile};
use support::gguf::tiny;
use support::model_folder::ModelFolder;

#[track_caller]
fn refused(path: &Path, what: &str) {
    let Err(error) = ModelFile::open_path(path) else { panic!("{} is taken", path.display()) };
    let message = error.to_string();
    assert!(!error.is_unreachable() && matches!(error, ModelError::Refused { .. }), "{message}");
    assert!(message.contains(what), "`{message}` does not say `{what}`");
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";

#[test]
fn files_of_another_kind() {
    let folder = ModelFolder::new();
    let file = |name: &str, bytes: &[u8]| {
        folder.write(name, bytes);
        folder.path().join(name)
    };
    refused(&folder.path().join("model.safetensors"), "is a safetensors file; give the folder");
    refused(
        &file("model.gguf", POINTER.as_bytes()),
        "is a pointer of Git LFS, and not the file itself; fetch",
    );
    refused(
        &file("pytorch_model.bin", b"PK\x03\x04..........................."),
        "is an archive, as PyTorch writes it",
    );
    let mut big = tiny();
    big.version = 3u32.swap_bytes();
    refused(&file("big.gguf", &big.bytes()), "is a big-endian GGUF file; convert it");
    folder.write("model.safetensors", POINTER);
    refused(folder.path(), "is a pointer of Git LFS");
}

#[test]
fn folders_of_another_kind() {
    let folder = ModelFolder::new();
    folder.remove("config.json").remove("model.safetensors");
    refused(folder.path(), "has no config.json; give a folder with config.json");
    folder.write("params.json", "{}");
    refused(folder.path(), "has `params.json`, and no config.json; use the model in Hugging Face's form");
    std::fs::create_dir(folder.path().join("snapshots")).unwrap();
    refused(folder.path(), "is the hub's cache of a model, and not the model itself; give the folder below");
    folder.write("m-q4_0.gguf", "x");
    refused(folder.path(), "has no config.json, but `m-q4_0.gguf`; give the path of that file");
}

#[test]
fn folders_without_their_weights() {
    let folder = ModelFolder::new();
    folder.remove("model.safetensors");
    refused(folder.path(), "has no safetensors files; use a complete copy");
    folder.write("pytorch_model.bin", "x");
    refused(folder.path(), "has `pytorch_model.bin`, and no safetensors; save it");
    folder.write(
        "model.safetensors.index.json",
        r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#,
    );
    refused(folder.path(), "has no model-00001-of-00002.safetensors; use a complete copy");
}

/// transformers would take one, others the others.
#[test]
fn an_index_beside_a_whole_file_is_a_contradiction() {
    let folder = ModelFolder::new();
    let index = |file: &str| format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#);
    folder.write("model.safetensors.index.json", index("model-00001-of-00001.safetensors"));
    refused(folder.path(), "names other files with weights; remove those that are not the model");
    folder.write("model.safetensors.index.json", index("model.safetensors"));
    assert!(folder.open().is_ok());
}
