//! The real model: SmolLM2-135M-Instruct, Q4_1, from the cache of e2e/fetch-model.sh.

use std::path::PathBuf;

use dunlin_model::ModelFile;

/// Opens it.
pub fn open() -> ModelFile {
    let cache = std::env::var_os("DUNLIN_CACHE").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/dunlin"));
    let path = cache.join("models/smollm2-135m-instruct-q4_1.gguf");
    assert!(path.exists(), "{} is missing: run e2e/fetch-model.sh", path.display());
    ModelFile::open_path(&path).unwrap()
}
