//! Header of a safetensors file and the configuration beside it, with limits.

use std::collections::BTreeMap;
use std::fmt;

use dunlin_kernels::{RopeLayout, RopeScaling};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::{Value, json};

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
    let Entries(entries) =
        serde_json::from_slice(&header).map_err(|e| wrong(format!("its header is not sound JSON: {e}")))?;
    let data = 8 + length;
    let mut out = BTreeMap::new();
    let mut spans = Vec::new();
    for (name, Entry { dtype, shape, data_offsets: [start, end] }) in entries {
        let dtype = match dtype.as_str() {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::Bf16,
            other => {
                let file = source.describe();
                let what = format!("tensor `{name}` of {file} has type `{other}`, not F32, F16 or BF16");
                return Err(ModelError::Unsupported(what));
            }
        };
        let shape: Vec<usize> = shape.into_iter().map(|s| usize::try_from(s).unwrap_or(usize::MAX)).collect();
        let values = shape.iter().try_fold(1usize, |product, &s| product.checked_mul(s));
        let bytes = values.and_then(|v| v.checked_mul(dtype.bytes()));
        let Some(bytes) = bytes.filter(|b| start.checked_add(*b as u64) == Some(end)) else {
            return Err(wrong(format!("tensor `{name}` of shape {shape:?} is at {start}..{end}")));
        };
        if data.checked_add(end).is_none_or(|end| end > source.len()) {
            let len = source.len();
            return Err(wrong(format!(
                "tensor `{name}` is at {start}..{end} behind a header of {length} bytes in a file of {len}; it may be truncated"
            )));
        }
        if bytes > 0 {
            spans.push((start, end, name.clone()));
        }
        out.insert(name, Tensor { shape, dtype, offset: data + start, bytes });
    }
    spans.sort();
    match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(wrong(format!("tensors `{}` and `{}` overlap", pair[0].2, pair[1].2))),
        None => Ok(out),
    }
}

/// The bytes before those of f32 tensors that follow each other in this order.
#[must_use]
pub fn f32_header(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * 4;
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [offset, end]});
        header.insert((*name).to_owned(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
}

/// What the header says of a tensor.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header. Read without `serde_json::Value`, which takes many times the memory of the text and forgets names that come twice.
struct Entries(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names to tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut out = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value()?;
                    if out.contains_key(&name) {
                        return Err(A::Error::custom(format!("tensor `{name}` twice")));
                    }
                    out.insert(name, entry);
                    if out.len() > TENSORS_MAX {
                        return Err(A::Error::custom(format!("more than {TENSORS_MAX} tensors")));
                    }
                }
                Ok(Entries(out))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
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
        layers: u32::try_from(number("num_hidden_layers")?).unwrap_or(u32::MAX),
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
