//! A random adapter on disk, in PEFT's form. For tests and benchmarks.

use std::io;
use std::path::Path;

use super::peft::{CONFIG, WEIGHTS, config_json};
use super::shape::AdapterShape;
use crate::config::ModelConfig;
use crate::random_model::normal;
use crate::training::export::write_safetensors;
use crate::training::{ParameterLayout, ParameterTensor};

/// Writes an adapter of the model of `config` into `folder`, which is made if need be. It changes the rows of the model about as much as the
/// model's own matrices do.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path, config: &ModelConfig, shape: &AdapterShape, seed: u64) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let json = config_json(shape, config, "random");
    std::fs::write(folder.join(CONFIG), serde_json::to_string_pretty(&json)?)?;
    let layout = ParameterLayout::of_adapter(config, shape, 0..config.layers, true);
    let mut counter = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut values = Vec::with_capacity(layout.len());
    for tensor in layout.tensors() {
        let deviation = 1.0 / (tensor.shape[1] as f32).sqrt();
        values.extend((0..tensor.len()).map(|_| {
            counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
            normal(counter) * deviation
        }));
    }
    let tensors: Vec<&ParameterTensor> = layout.tensors().iter().collect();
    write_safetensors(&folder.join(WEIGHTS), &tensors, [values.as_slice()])
}
