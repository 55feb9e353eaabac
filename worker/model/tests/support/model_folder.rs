//! A small model in Hugging Face's form whose files can be changed, gone when it is dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use dunlin_model::random_model::{self, RandomModelSpec};
use dunlin_model::{ModelError, ModelFile};
use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

/// Type, shape, bytes.
pub type Raw = (Dtype, Vec<usize>, Vec<u8>);

pub struct ModelFolder(PathBuf);

impl Drop for ModelFolder {
    fn drop(&mut self) {
        // What is left over says what went wrong with its removal.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl ModelFolder {
    /// Two layers, heads of 8, 300 tokens.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = Self(std::env::temp_dir().join(format!("dunlin-model-{}-{count}", std::process::id())));
        let spec =
            RandomModelSpec { layers: 2, hidden: 16, heads: 2, kv_heads: 1, ffn: 16, vocab: 300, seed: 1 };
        random_model::write(&folder.0, &spec).unwrap();
        folder
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn open(&self) -> Result<ModelFile, ModelError> {
        ModelFile::open_path(&self.0)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.0.join(name), bytes).unwrap();
        self
    }

    pub fn remove(&self, name: &str) -> &Self {
        std::fs::remove_file(self.0.join(name)).unwrap();
        self
    }

    pub fn set(&self, key: &str, value: Value) -> &Self {
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(self.0.join("config.json")).unwrap()).unwrap();
        config[key] = value;
        self.write("config.json", config.to_string())
    }

    pub fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Raw>)) -> &Self {
        let bytes = std::fs::read(self.0.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let raw = |t: TensorView<'_>| (t.dtype(), t.shape().to_vec(), t.data().to_vec());
        let mut tensors = file.tensors().into_iter().map(|(name, t)| (name, raw(t))).collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        self.write("model.safetensors", bytes)
    }

    /// Tensors for which there is a factor, times that and rounded to bf16; their type is `dtype`, BF16 or, for the same values, F32.
    pub fn round_to_bf16(&self, dtype: Dtype, by: impl Fn(&str) -> Option<f32>) -> &Self {
        self.change(|tensors| {
            for (name, (stored, _, bytes)) in tensors {
                let Some(by) = by(name) else { continue };
                let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
                let rounded = values.map(|v| bf16::from_f32(v * by));
                *bytes = match dtype {
                    Dtype::BF16 => rounded.flat_map(bf16::to_le_bytes).collect(),
                    _ => rounded.flat_map(|v| v.to_f32().to_le_bytes()).collect(),
                };
                *stored = dtype;
            }
        })
    }

    /// One more tensor, all zero.
    pub fn add(&self, name: &str, dtype: Dtype, shape: &[usize]) -> &Self {
        let bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
        self.change(|tensors| {
            tensors.insert(name.to_owned(), (dtype, shape.to_vec(), bytes));
        })
    }
}
