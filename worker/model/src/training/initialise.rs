//! First values of parameters.

use dunlin_kernels::math::{ln_f64, sin_cos};

use super::layout::{ParameterLayout, ParameterTensor};
use crate::adapter::peft::PROMPT;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::file::ModelFile;
use crate::weights::Embedding;

/// Standard deviation of random matrices (Radford et al. 2019).
const DEVIATION: f64 = 0.02;

/// Random first values: matrices normal with deviation 0.02, those that write into the rows of the residual stream with
/// `0.02 / sqrt(2 * layers)` (Radford et al. 2019); norms 1, biases 0.
///
/// A value depends on the seed, the name of its tensor and its index there, so it is the same wherever the model is cut; and the bits are the
/// same on every machine.
///
/// # Panics
/// When `out` is not as long as the layout.
pub fn initialise(layout: &ParameterLayout, config: &ModelConfig, seed: u64, out: &mut [f32]) {
    assert_eq!(out.len(), layout.len(), "as many values as parameters");
    for tensor in layout.tensors() {
        let values = &mut out[tensor.range()];
        match deviation(tensor, config) {
            Some(deviation) => normal(stream(seed, &tensor.name), deviation, values),
            None => values.fill(if tensor.name.ends_with(".bias") { 0.0 } else { 1.0 }),
        }
    }
}

/// First values of an adapter: `A` uniform up to `1 / sqrt(inputs)`, `B` 0, so that it changes nothing at first (Hu et al. 2021, with the
/// deviation that PEFT takes); the rows of a prompt those of random tokens of `embedding` (Lester et al. 2021).
///
/// As with [`initialise`], a value depends on the seed, the name of its tensor and its index there.
///
/// # Panics
/// When `out` is not as long as the layout, or a prompt has no embedding.
pub fn initialise_adapter(
    layout: &ParameterLayout,
    embedding: Option<&Embedding>,
    seed: u64,
    out: &mut [f32],
) {
    assert_eq!(out.len(), layout.len(), "as many values as parameters");
    for tensor in layout.tensors() {
        let values = &mut out[tensor.range()];
        let stream = stream(seed, &tensor.name);
        if tensor.name == PROMPT {
            let embedding = embedding.expect("the stage with the prompt has the embedding");
            let vocab = embedding.tokens() as u64;
            let tokens: Vec<u32> = (0..tensor.shape[0] as u64)
                .map(|i| (mix(stream.wrapping_add(mix(i))) % vocab) as u32)
                .collect();
            values
                .copy_from_slice(&embedding.rows(&tokens, None).expect("these tokens are in the vocabulary"));
        } else if tensor.name.ends_with("lora_A.weight") {
            let bound = 1.0 / (tensor.shape[1] as f64).sqrt();
            for (i, value) in values.iter_mut().enumerate() {
                *value = ((2.0 * unit(mix(stream.wrapping_add(mix(i as u64)))) - 1.0) * bound) as f32;
            }
        } else {
            values.fill(0.0);
        }
    }
}

/// Of a matrix.
fn deviation(tensor: &ParameterTensor, config: &ModelConfig) -> Option<f64> {
    let residual = ["o_proj.weight", "down_proj.weight"].iter().any(|role| tensor.name.ends_with(role));
    let by = if residual { (2.0 * f64::from(config.layers)).sqrt() } else { 1.0 };
    tensor.decay.then_some(DEVIATION / by)
}

/// One number for a seed and a name.
fn stream(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)))
}

/// The output function of SplitMix64 (Steele et al. 2014).
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Of 32 random bits, a number in (0, 1).
fn unit(bits: u64) -> f64 {
    ((bits & 0xffff_ffff) as f64 + 0.5) / 4_294_967_296.0
}

/// Normal values by pairs (Box and Muller 1958).
fn normal(stream: u64, deviation: f64, out: &mut [f32]) {
    for (pair, out) in out.chunks_mut(2).enumerate() {
        let bits = mix(stream.wrapping_add(mix(pair as u64)));
        let radius = (-2.0 * ln_f64(unit(bits))).sqrt() * deviation;
        let (sin, cos) = sin_cos(2.0 * std::f64::consts::PI * unit(bits >> 32));
        for (out, turn) in out.iter_mut().zip([cos, sin]) {
            *out = (radius * turn) as f32;
        }
    }
}

/// The stage's parameters from a checkpoint: a Hugging Face folder of f32, f16 or bf16.
///
/// # Errors
/// When the checkpoint has another form, or a tensor is missing, of another shape, or cannot be read.
///
/// # Panics
/// When `out` is not as long as the layout.
pub fn load(layout: &ParameterLayout, file: &ModelFile, out: &mut [f32]) -> Result<(), ModelError> {
    assert_eq!(out.len(), layout.len(), "as many values as parameters");
    if !file.is_folder() {
        let what = "training goes on from a folder with config.json and safetensors, not from a GGUF file";
        return Err(ModelError::Unsupported(what.to_owned()));
    }
    for tensor in layout.tensors() {
        file.floats(&tensor.name, &tensor.shape, &mut out[tensor.range()])?;
    }
    Ok(())
}
