//! Header of a safetensors file and the configuration beside it, with limits.

use std::collections::BTreeMap;

use dunlin_kernels::{RopeLayout, RopeScaling};
use serde_json::Value;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::source::ByteSource;

/// As the format's own limit.
const HEADER_MAX: u64 = 100_000_000;
const TENSORS_MAX: usize = 1 << 18;

/// Element types that are read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16, turned into f16 on loading.
    Bf16,
}

impl Dtype {
    fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Rows first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub dtype: Dtype,
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: usize,
}

/// Reads and checks the header.
///
/// # Errors
/// When it cannot be read, or is not sound.
pub fn read_header(source: &dyn ByteSource) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let wrong = |what: String| ModelError::Malformed { file: source.describe(), format: "safetensors", what };
    let read = |error| ModelError::Read { what: source.describe(), source: error };
    if source.len() < 8 {
        return Err(wrong("it is shorter than 8 bytes".to_owned()));
    }
    let mut length = [0; 8];
    source.read_at(0, &mut length).map_err(read)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_MAX || length + 8 > source.len() {
        return Err(wrong(format!("a header of {length} bytes in a file of {}", source.len())));
    }
    let mut header = vec![0; length as usize];
    source.read_at(8, &mut header).map_err(read)?;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|e| wrong(format!("its header is not JSON: {e}")))?;
    if header.len() > TENSORS_MAX {
        return Err(wrong(format!("{} tensors", header.len())));
    }
    let data = 8 + length;
    let mut out = BTreeMap::new();
    for (name, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let dtype = match entry["dtype"].as_str() {
            Some("F32") => Dtype::F32,
            Some("F16") => Dtype::F16,
            Some("BF16") => Dtype::Bf16,
            other => {
                let what = format!("tensor `{name}` of {} has type {other:?}", source.describe());
                return Err(ModelError::Unsupported(what));
            }
        };
        let numbers =
            |value: &Value| -> Option<Vec<u64>> { value.as_array()?.iter().map(Value::as_u64).collect() };
        let (Some(shape), Some(span)) = (numbers(&entry["shape"]), numbers(&entry["data_offsets"])) else {
            return Err(wrong(format!("tensor `{name}` has no shape or offsets")));
        };
        let shape: Vec<usize> = shape.into_iter().map(|s| usize::try_from(s).unwrap_or(usize::MAX)).collect();
        let values = shape.iter().try_fold(1usize, |product, &s| product.checked_mul(s));
        let bytes = values.and_then(|v| v.checked_mul(dtype.bytes()));
        let fits = span.len() == 2
            && span[0] <= span[1]
            && bytes.is_some_and(|b| b as u64 == span[1] - span[0])
            && data.checked_add(span[1]).is_some_and(|end| end <= source.len());
        let (true, Some(bytes)) = (fits, bytes) else {
            return Err(wrong(format!(
                "tensor `{name}` of shape {shape:?} at {span:?}; it may be truncated"
            )));
        };
        out.insert(name.clone(), Tensor { shape, dtype, offset: data + span[0], bytes });
    }
    Ok(out)
}

/// The configuration from Hugging Face's `config.json`.
///
/// # Errors
/// When something is missing, or is not known here.
pub fn config(file: &str, json: &Value) -> Result<ModelConfig, ModelError> {
    let missing = |key: &str| ModelError::Malformed {
        file: file.to_owned(),
        format: "config.json",
        what: format!("no usable `{key}`"),
    };
    let number =
        |key: &str| json[key].as_u64().and_then(|v| usize::try_from(v).ok()).ok_or_else(|| missing(key));
    let architecture = json["architectures"][0].as_str().unwrap_or_default();
    let (name, bias) = match architecture {
        "LlamaForCausalLM" => ("llama", json["attention_bias"].as_bool().unwrap_or(false)),
        "MistralForCausalLM" => ("mistral", false),
        "Qwen2ForCausalLM" => ("qwen2", true),
        other => return Err(ModelError::Unsupported(format!("{file}: the architecture is `{other}`"))),
    };
    if json["mlp_bias"].as_bool().unwrap_or(false) || (name == "llama" && bias) {
        return Err(ModelError::Unsupported(format!(
            "{file}: biases in attention output or feed-forward layers"
        )));
    }
    if json["hidden_act"].as_str().unwrap_or("silu") != "silu" {
        return Err(ModelError::Unsupported(format!("{file}: hidden_act is {}", json["hidden_act"])));
    }
    let (hidden, heads) = (number("hidden_size")?, number("num_attention_heads")?);
    let mut context_length = number("max_position_embeddings")?;
    let slides = name == "mistral" || json["use_sliding_window"].as_bool().unwrap_or(false);
    if let (true, Some(window)) = (slides, json["sliding_window"].as_u64()) {
        // Inside of the window a sliding one changes nothing.
        context_length = context_length.min(window as usize);
    }
    let config = ModelConfig {
        architecture: name.to_owned(),
        layers: number("num_hidden_layers")? as u32,
        hidden,
        heads,
        kv_heads: json["num_key_value_heads"].as_u64().map_or(heads, |v| v as usize),
        head_dim: json["head_dim"].as_u64().map_or(hidden / heads.max(1), |v| v as usize),
        ffn: number("intermediate_size")?,
        vocab: number("vocab_size")?,
        rms_eps: json["rms_norm_eps"].as_f64().ok_or_else(|| missing("rms_norm_eps"))? as f32,
        rope_base: json["rope_theta"]
            .as_f64()
            .or_else(|| json["rope_parameters"]["rope_theta"].as_f64())
            .unwrap_or(10_000.0),
        rope_scaling: rope_scaling(file, json)?,
        rope_layout: RopeLayout::Halves,
        context_length: u32::try_from(context_length).unwrap_or(u32::MAX),
        qkv_bias: bias,
        tied: json["tie_word_embeddings"].as_bool().unwrap_or(false),
    };
    config.validate(file)?;
    Ok(config)
}

fn rope_scaling(file: &str, json: &Value) -> Result<RopeScaling, ModelError> {
    let scaling =
        if json["rope_scaling"].is_object() { &json["rope_scaling"] } else { &json["rope_parameters"] };
    let kind = scaling["rope_type"].as_str().or_else(|| scaling["type"].as_str());
    let number = |key: &str| scaling[key].as_f64().filter(|v| v.is_finite() && *v > 0.0);
    let scaled = match kind {
        None | Some("default") => Some(RopeScaling::None),
        Some("linear") => number("factor").map(RopeScaling::Linear),
        Some("llama3") => (|| {
            Some(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_context: number("original_max_position_embeddings")?,
            })
        })(),
        Some(_) => None,
    };
    scaled.ok_or_else(|| ModelError::Unsupported(format!("{file}: rope scaling {scaling}")))
}
