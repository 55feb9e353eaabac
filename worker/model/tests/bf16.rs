//! A model in bf16 computes what the same values in f32 do, to the bit, whatever their size.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::error::Error;
use std::sync::Arc;

use dunlin_kernels::Pool;
use dunlin_model::generate::Whole;
use dunlin_model::source::MemorySource;
use dunlin_model::{LayerWeights, ModelError, ModelFile};
use half::bf16;
use safetensors::Dtype;
use support::gguf::{Gguf, tiny};
use support::model_folder::ModelFolder;

const TOKENS: [u32; 9] = [1, 39, 7, 3, 28, 0, 12, 30, 5];

/// Bits of the logits of a prompt at once, and of the same tokens one by one.
fn logits(file: &ModelFile) -> Vec<u32> {
    let mut whole = Whole::load(file, Pool::new(2), 64).unwrap();
    let rows = whole.forward(&TOKENS).unwrap();
    let mut out = whole.logits(&rows);
    whole.reset();
    for token in TOKENS {
        let row = whole.forward(&[token]).unwrap();
        out.extend(whole.logits(&row));
    }
    out.iter().map(|v| v.to_bits()).collect()
}

fn folder(dtype: Dtype, tied: bool, by: impl Fn(&str) -> Option<f32>) -> Vec<u32> {
    let folder = ModelFolder::new();
    if tied {
        folder.change(|tensors| drop(tensors.remove("lm_head.weight")));
    }
    folder.round_to_bf16(dtype, by);
    logits(&folder.open().unwrap())
}

#[test]
fn matrices_that_f16_has_no_room_for() {
    for part in ["embed_tokens", "lm_head", "q_proj", "v_proj", "o_proj", "up_proj", "down_proj"] {
        for size in [1e-6, 1e-20, 1e6, 1e12] {
            let by = |name: &str| name.contains(part).then_some(size);
            let (narrow, wide) = (folder(Dtype::BF16, false, by), folder(Dtype::F32, false, by));
            assert!(narrow == wide, "{part} times {size}");
        }
    }
    for size in [1e-6, 1e6] {
        let by = |name: &str| name.contains("embed_tokens").then_some(size);
        assert!(folder(Dtype::BF16, true, by) == folder(Dtype::F32, true, by), "tied, times {size}");
    }
}

#[test]
fn matrices_whose_rows_span_more_than_f16_can() {
    let logits = |dtype| {
        let folder = ModelFolder::new();
        let projection = |name: &str| name.contains("v_proj") || name.contains("down_proj");
        folder.change(|tensors| {
            for (_, (.., bytes)) in tensors.iter_mut().filter(|(name, _)| projection(name)) {
                for (i, value) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let by = if i % 3 == 0 { 1e-12 } else { 1e9 };
                    *value = (f32::from_le_bytes(*value) * by).to_le_bytes();
                }
            }
        });
        folder.round_to_bf16(dtype, |name| projection(name).then_some(1.0));
        logits(&folder.open().unwrap())
    };
    assert!(logits(Dtype::BF16) == logits(Dtype::F32));
}

#[test]
fn in_gguf() {
    let with = |narrow: bool, by: f32| {
        let mut file: Gguf = tiny();
        for name in ["blk.0.attn_output.weight", "output_norm.weight"] {
            let tensor = file.tensor(name);
            let values =
                tensor.data.as_chunks::<4>().0.iter().map(|b| bf16::from_f32(f32::from_le_bytes(*b) * by));
            tensor.data = if narrow {
                tensor.kind = 30;
                values.flat_map(bf16::to_le_bytes).collect()
            } else {
                values.flat_map(|v| v.to_f32().to_le_bytes()).collect()
            };
        }
        logits(&ModelFile::open(Arc::new(MemorySource(file.bytes()))).unwrap())
    };
    for by in [1.0, 1e-6, 1e6] {
        assert!(with(true, by) == with(false, by), "times {by}");
    }
}

#[test]
fn values_that_are_not_finite_are_refused_by_name() {
    for value in [bf16::NAN, bf16::INFINITY] {
        let folder = ModelFolder::new();
        folder.round_to_bf16(Dtype::BF16, |name| name.contains("proj").then_some(1.0)).change(|tensors| {
            let (.., bytes) = tensors.get_mut("model.layers.0.mlp.down_proj.weight").unwrap();
            bytes[10..12].copy_from_slice(&value.to_le_bytes());
        });
        let file = folder.open().unwrap();
        let Err(error) = LayerWeights::load(&file, 0) else { panic!("{value} is taken") };
        assert!(
            matches!(&error, ModelError::Pack { name, .. } if name == "model.layers.0.mlp.down_proj.weight")
        );
        let why = error.source().unwrap().to_string();
        assert!(why.contains("values that are not finite; use an intact copy"), "{why}");
    }
}
