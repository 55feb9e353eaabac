//! What weights take in memory is known from the header, and while they are read little is held beside them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dunlin_model::random_model::{self, RandomModelSpec};
use dunlin_model::source::MemorySource;
use dunlin_model::{Embedding, Head, LayerWeights, ModelFile};
use safetensors::Dtype;
use support::allocations::{Counting, most_held};
use support::gguf::tiny;
use support::model_folder::ModelFolder;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Everything there is in `file` takes what was said, and what is held on the way is bounded.
fn check(file: &ModelFile) {
    let bounded = |what: &str, said: u64, load: &mut dyn FnMut() -> usize| {
        let (bytes, held) = most_held(load);
        assert_eq!(bytes as u64, said, "{what}");
        // A little is for names and the like.
        assert!(held as u64 <= said + file.load_bytes_max() + 4096, "{what} of {said} bytes held {held}");
    };
    for layer in 0..file.config().layers {
        let said = LayerWeights::bytes_in(file, layer).unwrap();
        bounded("a layer", said, &mut || LayerWeights::load(file, layer).unwrap().bytes());
    }
    let said = Embedding::bytes_in(file).unwrap();
    bounded("the embedding", said, &mut || Embedding::load(file).unwrap().bytes());
    let said = Head::bytes_in(file).unwrap();
    bounded("the head", said, &mut || Head::load(file, None).unwrap().bytes());
}

#[test]
fn of_every_kind_of_file() {
    check(&ModelFile::open(Arc::new(MemorySource(tiny().bytes()))).unwrap());
    for name in ["llama", "llama3-rope", "mistral", "qwen2", "qwen3"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name);
        check(&ModelFile::open_path(&folder).unwrap());
    }
    // Held in f16, and in bf16.
    for by in [1.0, 1e-6] {
        let folder = ModelFolder::new();
        folder.round_to_bf16(Dtype::BF16, |name| (!name.contains("norm")).then_some(by));
        check(&folder.open().unwrap());
    }
}

#[test]
fn of_matrices_that_are_read_in_pieces() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("memory-{}", std::process::id()));
    let spec =
        RandomModelSpec { layers: 1, hidden: 256, heads: 2, kv_heads: 2, ffn: 16, vocab: 20_000, seed: 1 };
    random_model::write(&folder, &spec).unwrap();
    let file = ModelFile::open_path(&folder).unwrap();
    let (said, piece) = (Embedding::bytes_in(&file).unwrap(), file.load_bytes_max());
    assert!(piece < said / 2, "{piece} of {said} bytes at once");
    check(&file);
    std::fs::remove_dir_all(&folder).unwrap();
}
