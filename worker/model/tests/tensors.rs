//! Every tensor of a model's files has a place or a stated reason, and every place has its tensor: known when a file is opened.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use dunlin_kernels::{Pool, RopeScaling};
use dunlin_model::generate::Whole;
use dunlin_model::source::MemorySource;
use dunlin_model::{ModelError, ModelFile};
use safetensors::Dtype;
use serde_json::{Value, json};
use support::gguf::{Gguf, Tensor, block, tiny, values};
use support::model_folder::ModelFolder;

fn bits(file: &ModelFile) -> Vec<u32> {
    let mut whole = Whole::load(file, Pool::new(1), 64).unwrap();
    let rows = whole.forward(&[3, 1, 4, 1, 5, 9, 2, 6]).unwrap();
    whole.logits(&rows).iter().map(|v| v.to_bits()).collect()
}

fn refusal(result: Result<ModelFile, ModelError>) -> String {
    let Err(error) = result else { panic!("it is taken") };
    let message = error.to_string();
    assert!(!error.is_unreachable() && message.len() < 400, "{message}");
    let advice = ["; ", "the configuration needs"];
    assert!(advice.iter().any(|advice| message.contains(advice)), "{message}");
    message
}

#[track_caller]
fn tells(message: &str, what: &str) {
    assert!(message.contains(what), "`{message}` does not say `{what}`");
}

#[test]
fn a_tensor_without_a_place_is_refused_by_name() {
    for name in [
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.k_scale",
        "model.layers.1.mlp.gate_proj.bias",
        "model.layers.1.mlp.up_proj.weight_scale",
        "model.layers.0.pre_feedforward_layernorm.weight",
        "model.layers.01.input_layernorm.weight",
        "model.norm.bias",
        "lm_head.bias",
        "embed_tokens.weight",
        "score.weight",
    ] {
        let folder = ModelFolder::new();
        let message = refusal(folder.add(name, Dtype::F32, &[16]).open());
        tells(&message, &format!("has a tensor `{name}`, which a llama model has no place for"));
    }
    // Of a type that does not run, by its name all the same.
    let folder = ModelFolder::new();
    let message = refusal(folder.add("model.layers.0.mlp.up_proj.qweight", Dtype::I32, &[4, 4]).open());
    tells(&message, "`model.layers.0.mlp.up_proj.qweight`");
    let message = refusal(ModelFolder::new().add(&"x".repeat(4000), Dtype::F32, &[4]).open());
    tells(&message, "xxx");
}

#[test]
fn a_tensor_without_effect_changes_nothing_whatever_its_type() {
    let plain = bits(&ModelFolder::new().open().unwrap());
    for (name, dtype, shape) in [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, &[4][..]),
        ("model.rotary_emb.inv_freq", Dtype::F64, &[4]),
        ("model.layers.1.self_attn.rotary_emb.cos_cached", Dtype::F16, &[1, 1, 8, 8]),
        ("model.position_ids", Dtype::I64, &[1, 64]),
        ("model.layers.0.self_attn.masked_bias", Dtype::F32, &[]),
        ("model.extra", Dtype::F32, &[0, 4]),
        // Layers that config.json does not count, as of a model that was cut.
        ("model.layers.2.input_layernorm.weight", Dtype::F8_E4M3, &[16]),
        ("model.layers.61.eh_proj.weight", Dtype::I8, &[16]),
    ] {
        let folder = ModelFolder::new();
        let file = folder.add(name, dtype, shape).open().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(bits(&file), plain, "{name}");
    }
}

#[test]
fn a_place_without_its_tensor_is_known_at_once() {
    let without = |name: &str| {
        let folder = ModelFolder::new();
        folder.change(|tensors| drop(tensors.remove(name).unwrap()));
        refusal(folder.open())
    };
    tells(&without("model.layers.1.mlp.down_proj.weight"), "no tensor `model.layers.1.mlp.down_proj.weight`");
    tells(&without("model.norm.weight"), "no tensor `model.norm.weight`");
    let renamed = |old: &str, new: &str| {
        let folder = ModelFolder::new();
        folder.change(|tensors| {
            let tensor = tensors.remove(old).unwrap();
            tensors.insert(new.to_owned(), tensor);
        });
        refusal(folder.open())
    };
    let message = renamed("model.embed_tokens.weight", "transformer.wte.weight");
    tells(&message, "tensor `transformer.wte.weight`, and no tensor `model.embed_tokens.weight`");
    let folder = ModelFolder::new();
    folder
        .change(|tensors| tensors.get_mut("model.layers.0.self_attn.o_proj.weight").unwrap().0 = Dtype::I32);
    tells(&refusal(folder.open()), "`model.layers.0.self_attn.o_proj.weight` has type I32; F32, F16");
    let folder = ModelFolder::new();
    folder.set("num_hidden_layers", json!(3));
    tells(&refusal(folder.open()), "no tensor `model.layers.2.input_layernorm.weight`");
    folder.set("num_hidden_layers", json!(1));
    assert!(folder.open().is_ok());
}

/// Qwen2's biases are demanded of it and of nothing else.
#[test]
fn biases_are_what_the_configuration_says() {
    let folder = ModelFolder::new();
    folder.set("model_type", json!("qwen2")).set("architectures", json!(["Qwen2ForCausalLM"]));
    tells(&refusal(folder.open()), "no tensor `model.layers.0.self_attn.q_proj.bias`");
    for layer in 0..2 {
        for (role, width) in [("q", 16), ("k", 8), ("v", 8)] {
            folder.add(&format!("model.layers.{layer}.self_attn.{role}_proj.bias"), Dtype::F32, &[width]);
        }
    }
    assert!(folder.open().unwrap().config().block.attention.bias);
    folder.add("model.layers.0.self_attn.o_proj.bias", Dtype::F32, &[16]);
    tells(&refusal(folder.open()), "`model.layers.0.self_attn.o_proj.bias`");
}

#[test]
fn the_output_matrix_is_that_of_the_files_or_the_embedding() {
    for says in [json!(false), Value::Null] {
        let folder = ModelFolder::new();
        folder.set("tie_word_embeddings", says).change(|tensors| drop(tensors.remove("lm_head.weight")));
        assert!(folder.open().unwrap().config().tied);
        // A copy that lacks what its index promises is not intact.
        let index = json!({"weight_map": {"lm_head.weight": "model.safetensors"}});
        folder.write("model.safetensors.index.json", index.to_string());
        tells(&refusal(folder.open()), "no tensor `lm_head.weight`");
    }
    let folder = ModelFolder::new();
    let own = bits(&folder.open().unwrap());
    folder.set("tie_word_embeddings", json!(true));
    // A matrix of its own is used, as transformers 5 does.
    let file = folder.open().unwrap();
    assert!(!file.config().tied);
    assert_eq!(bits(&file), own);
    folder.change(|tensors| drop(tensors.remove("lm_head.weight")));
    let file = folder.open().unwrap();
    assert!(file.config().tied);
    assert_ne!(bits(&file), own);
}

fn open(file: &Gguf) -> Result<ModelFile, ModelError> {
    ModelFile::open(Arc::new(MemorySource(file.bytes())))
}

fn with(name: &str, data: &[f32]) -> Gguf {
    let mut file = tiny();
    file.tensors.push(Tensor {
        name: name.as_bytes().to_vec(),
        dimensions: vec![data.len() as u64],
        kind: 0,
        offset: None,
        data: data.iter().flat_map(|v| v.to_le_bytes()).collect(),
    });
    file
}

#[test]
fn gguf_tensors_without_a_place_are_refused_by_name() {
    for name in [
        "blk.0.attn_output.bias",
        "blk.0.ffn_gate.bias",
        "blk.0.ffn_up.bias",
        "blk.0.ffn_down.bias",
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_sub_norm.weight",
        "blk.1.attn_norm.weight",
        "output.bias",
        "output_norm.bias",
        "position_embd.weight",
    ] {
        tells(&refusal(open(&with(name, &[0.0; 32]))), &format!("has a tensor `{name}`"));
    }
    let mut qwen2 = with("rope_freqs.weight", &[1.0; 8]);
    for (key, ..) in &mut qwen2.values {
        *key = String::from_utf8(key.clone()).unwrap().replace("llama.", "qwen2.").into_bytes();
    }
    qwen2.set_text("general.architecture", "qwen2");
    for (role, width) in [("q", 32), ("k", 16), ("v", 16)] {
        let (name, data) = (format!("blk.0.attn_{role}.bias"), values("F32", 1, width));
        let (dimensions, kind) = (vec![width as u64], block("F32").0);
        qwen2.tensors.push(Tensor { name: name.into_bytes(), dimensions, kind, offset: None, data });
    }
    tells(&refusal(open(&qwen2)), "`rope_freqs.weight`");
    qwen2.tensors.retain(|t| t.name != b"rope_freqs.weight");
    assert!(open(&qwen2).unwrap().config().block.attention.bias);
}

/// A Qwen3 has norms of queries and keys, and no biases.
#[test]
fn gguf_norms_of_heads_are_demanded_and_used() {
    let qwen3 = |norms: &[(&str, f32)]| {
        let mut file = tiny();
        for (key, ..) in &mut file.values {
            *key = String::from_utf8(key.clone()).unwrap().replace("llama.", "qwen3.").into_bytes();
        }
        file.set_text("general.architecture", "qwen3");
        for (role, value) in norms {
            file.tensors
                .push(with(&format!("blk.0.attn_{role}_norm.weight"), &[*value; 16]).tensors.pop().unwrap());
        }
        file
    };
    tells(&refusal(open(&qwen3(&[]))), "no tensor `blk.0.attn_q_norm.weight`");
    let ones = open(&qwen3(&[("q", 1.0), ("k", 1.0)])).unwrap();
    assert!(ones.config().block.attention.qk_norm && !ones.config().block.attention.bias);
    let larger = open(&qwen3(&[("q", 1.0), ("k", 1.5)])).unwrap();
    assert_ne!(bits(&ones), bits(&larger));
    let mut biased = qwen3(&[("q", 1.0), ("k", 1.0)]);
    biased.tensors.push(with("blk.0.attn_q.bias", &[0.0; 32]).tensors.pop().unwrap());
    tells(&refusal(open(&biased)), "has a tensor `blk.0.attn_q.bias`");
}

/// A Llama may have biases of queries, keys and values: all three or none.
#[test]
fn gguf_biases_of_a_llama_are_used_whole_or_refused() {
    let mut file = with("blk.0.attn_v.bias", &[0.5; 16]);
    tells(&refusal(open(&file)), "no tensor `blk.0.attn_q.bias`");
    for (role, width) in [("q", 32), ("k", 16)] {
        let more = with(&format!("blk.0.attn_{role}.bias"), &vec![0.25; width]);
        file.tensors.push(more.tensors.last().unwrap().clone());
    }
    let biased = open(&file).unwrap();
    assert!(biased.config().block.attention.bias);
    assert_ne!(bits(&biased), bits(&open(&tiny()).unwrap()));
}

/// Llama 3.1 and later: the same frequencies as their folders compute from `rope_scaling`.
#[test]
fn gguf_divisors_of_rope_frequencies_are_used() {
    let plain = bits(&open(&tiny()).unwrap());
    assert_eq!(bits(&open(&with("rope_freqs.weight", &[1.0; 8])).unwrap()), plain);
    let mut linear = tiny();
    linear.set_f32("llama.rope.scaling.factor", 4.0);
    let stretched = bits(&open(&linear).unwrap());
    assert_eq!(bits(&open(&with("rope_freqs.weight", &[4.0; 8])).unwrap()), stretched);
    let mut both = with("rope_freqs.weight", &[2.0; 8]);
    both.set_f32("llama.rope.scaling.factor", 2.0);
    assert_eq!(bits(&open(&both).unwrap()), stretched);

    // As llama.cpp's converter writes them.
    let (factor, low, high, original) = (8.0, 1.0, 4.0, 32.0);
    let divisor = |i: usize| {
        let frequency = 10_000f64.powf(-(i as f64) / 8.0);
        let length = 2.0 * std::f64::consts::PI / frequency;
        let smooth = (original / length - low) / (high - low);
        match length {
            length if length < original / high => 1.0,
            length if length > original / low => factor,
            _ => 1.0 / ((1.0 - smooth) / factor + smooth),
        }
    };
    let divisors: Vec<f32> = (0..8).map(|i| divisor(i) as f32).collect();
    let file = open(&with("rope_freqs.weight", &divisors)).unwrap();
    let RopeScaling::Divided { .. } = file.config().block.rotary.scaling else { panic!("not divided") };
    let table = |scaling: RopeScaling| {
        let mut row: Vec<f32> = (0..16u8).map(f32::from).collect();
        let table = dunlin_kernels::RopeTable::new(16, 10_000.0, scaling, 64);
        dunlin_kernels::rope(&table, dunlin_kernels::RopeLayout::Halves, &mut row, 1, 50);
        row
    };
    let of_folder = table(RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_context: original,
    });
    for (found, wanted) in table(file.config().block.rotary.scaling.clone()).iter().zip(&of_folder) {
        assert!((found - wanted).abs() < 1e-4, "{found} {wanted}");
    }

    for wrong in [&[1.0; 7][..], &[1.0; 9], &[0.0; 8], &[f32::NAN; 8], &[-1.0; 8], &[1e30; 8], &[1.0; 129]] {
        refusal(open(&with("rope_freqs.weight", wrong)));
    }
}
