//! A random Llama on disk: config.json, model.safetensors (f32), tokenizer.json, a chat template. For tests and benchmarks.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::safetensors::f32_header;

/// Shape of the model.
#[derive(Clone, Debug)]
pub struct RandomModelSpec {
    /// Decoder blocks.
    pub layers: u32,
    /// Width of a row.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width inside of the feed-forward part.
    pub ffn: usize,
    /// Tokens, at least 258: all bytes, a begin and an end.
    pub vocab: usize,
    /// Seeds the weights.
    pub seed: u64,
}

/// ChatML, the template of many models.
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Writes the model into `folder`, which is made if need be.
///
/// # Errors
/// When the shape makes no sense or a file cannot be written.
pub fn write(folder: &Path, spec: &RandomModelSpec) -> io::Result<()> {
    write_telling(folder, spec, &mut |_, _| {})
}

/// The same; `told` hears after each tensor how many bytes of how many are written.
///
/// # Errors
/// As [`write`].
pub fn write_telling(
    folder: &Path,
    spec: &RandomModelSpec,
    told: &mut dyn FnMut(u64, u64),
) -> io::Result<()> {
    let sound = spec.vocab >= 258
        && spec.layers > 0
        && spec.heads > 0
        && spec.kv_heads > 0
        && spec.hidden.is_multiple_of(spec.heads * 8)
        && spec.heads.is_multiple_of(spec.kv_heads);
    if !sound {
        let text =
            "hidden must be a multiple of 8 * heads, heads of kv-heads, and the vocabulary at least 258";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config(spec))?)?;
    std::fs::write(folder.join("tokenizer.json"), tokenizer(spec.vocab).to_string())?;
    std::fs::write(folder.join("tokenizer_config.json"), json!({"chat_template": TEMPLATE}).to_string())?;
    write_weights(&folder.join("model.safetensors"), spec, told)
}

fn config(spec: &RandomModelSpec) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": spec.hidden, "intermediate_size": spec.ffn, "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads, "vocab_size": spec.vocab,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "torch_dtype": "float32",
        "bos_token_id": spec.vocab - 2, "eos_token_id": spec.vocab - 1,
    })
}

/// A byte-level BPE: all bytes, pairs of letters as merges until the vocabulary is full, begin and end.
fn tokenizer(vocab: usize) -> Value {
    let byte = |b: u32| {
        char::from_u32(if matches!(b, 33..=126 | 161..=172 | 174..=255) { b } else { 256 + b }).unwrap_or(' ')
    };
    let mut tokens: Vec<String> = (0..256).map(|b| byte(b).to_string()).collect();
    let mut merges = Vec::new();
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let mut level = letters.clone();
    'full: while tokens.len() < vocab - 2 {
        let mut next = Vec::new();
        for left in &level {
            for right in &letters {
                if tokens.len() == vocab - 2 {
                    break 'full;
                }
                merges.push(format!("{left} {right}"));
                tokens.push(format!("{left}{right}"));
                next.push(format!("{left}{right}"));
            }
        }
        level = next;
    }
    let mut entries: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect();
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    entries.insert("<s>".to_owned(), json!(vocab - 2));
    entries.insert("</s>".to_owned(), json!(vocab - 1));
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "added_tokens": [special(vocab - 2, "<s>"), special(vocab - 1, "</s>")],
        "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": entries, "merges": merges},
    })
}

fn write_weights(path: &Path, spec: &RandomModelSpec, told: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
    let kv_width = spec.hidden / spec.heads * spec.kv_heads;
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".to_owned(), vec![spec.vocab, spec.hidden])];
    for layer in 0..spec.layers {
        for (role, shape) in [
            ("input_layernorm", vec![spec.hidden]),
            ("self_attn.q_proj", vec![spec.hidden, spec.hidden]),
            ("self_attn.k_proj", vec![kv_width, spec.hidden]),
            ("self_attn.v_proj", vec![kv_width, spec.hidden]),
            ("self_attn.o_proj", vec![spec.hidden, spec.hidden]),
            ("post_attention_layernorm", vec![spec.hidden]),
            ("mlp.gate_proj", vec![spec.ffn, spec.hidden]),
            ("mlp.up_proj", vec![spec.ffn, spec.hidden]),
            ("mlp.down_proj", vec![spec.hidden, spec.ffn]),
        ] {
            tensors.push((format!("model.layers.{layer}.{role}.weight"), shape));
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![spec.hidden]));
    tensors.push(("lm_head.weight".to_owned(), vec![spec.vocab, spec.hidden]));
    let shapes: Vec<_> = tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&f32_header(&shapes))?;
    let bytes = |shape: &[usize]| (shape.iter().product::<usize>() * size_of::<f32>()) as u64;
    let all = tensors.iter().map(|(_, shape)| bytes(shape)).sum();
    let mut written = 0;
    let mut counter = spec.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (_, shape) in &tensors {
        let norm = shape.len() == 1;
        // Keeps the size of rows through the layers.
        let deviation = if norm { 0.1 } else { 1.0 / (shape[1] as f32).sqrt() };
        for _ in 0..shape.iter().product::<usize>() {
            counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let value = f32::from(u8::from(norm)) + normal(counter) * deviation;
            file.write_all(&value.to_le_bytes())?;
        }
        written += bytes(shape);
        told(written, all);
    }
    file.flush()
}

/// Roughly normal: the sum of twelve 16-bit uniform numbers.
pub(crate) fn normal(counter: u64) -> f32 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let sum: u64 = (0..3)
        .map(|i| mix(counter ^ i << 62))
        .map(|z| (0..4).map(|j| z >> (16 * j) & 0xffff).sum::<u64>())
        .sum();
    sum as f32 / 65_536.0 - 6.0
}
