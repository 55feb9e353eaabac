//! Adapters in training and serving: gradients against finite differences in f64, bits against everything that must not change them, files.
#![allow(
    clippy::unwrap_used,
    clippy::needless_range_loop,
    reason = "a test may panic, and indexes several arrays"
)]

mod support;

use std::path::{Path, PathBuf};

use dunlin_kernels::gradient_sum::to_f32;
use dunlin_kernels::{GradientSums, Isa, Pool, bit_sum};
use dunlin_model::adapter::{AdapterShape, LoraShape, Projection, PromptShape, peft};
use dunlin_model::generate::Whole;
use dunlin_model::training::export::{write_config, write_safetensors};
use dunlin_model::training::{Base, Grad, ParameterLayout, ParameterTensor, StageInput, StageModel};
use dunlin_model::{Adapter, ModelConfig, ModelFile};
use safetensors::Dtype;
use serde_json::{Value, json};
use support::gguf::{Gguf, Tensor, tiny};
use support::model_folder::ModelFolder;
use support::training::{LENGTH, config, loss_f64, microbatch, parameters, wide};

const LIMIT: f32 = 1024.0;
const RANK: usize = 3;
const PROMPT: usize = 5;

fn lora() -> AdapterShape {
    AdapterShape::Lora(LoraShape { rank: RANK, alpha: 4.5, targets: Projection::ALL.to_vec() })
}

fn prompt() -> AdapterShape {
    AdapterShape::Prompt(PromptShape { tokens: PROMPT })
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("adapters-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn write(path: &Path, layout: &ParameterLayout, values: &[f32]) {
    let tensors: Vec<&ParameterTensor> = layout.tensors().iter().collect();
    write_safetensors(path, &tensors, [values]).unwrap();
}

/// A whole model in a folder, and its parameters.
fn base(name: &str, config: &ModelConfig) -> (PathBuf, ParameterLayout, Vec<f32>) {
    let path = folder(name);
    let layout = ParameterLayout::new(config, 0..config.layers, true, true);
    let values = parameters(config, &layout);
    write_config(&path, config).unwrap();
    write(&path.join("model.safetensors"), &layout, &values);
    (path, layout, values)
}

/// Values as in the middle of training, all different.
fn trained(layout: &ParameterLayout) -> Vec<f32> {
    (0..layout.len()).map(|i| (i as f32 * 0.37 + (i % 7) as f32).sin() * 0.2).collect()
}

fn stage(
    path: &Path,
    config: &ModelConfig,
    shape: &AdapterShape,
    layers: std::ops::Range<u32>,
) -> StageModel {
    let file = ModelFile::open_path(path).unwrap();
    let (first, last) = (layers.start == 0, layers.end == config.layers);
    let base = Base::load(&file, layers.clone(), first, last).unwrap();
    StageModel::over(config, base, shape, layers, LENGTH).unwrap()
}

/// Loss and sums of one microbatch through the whole model.
fn gradients(path: &Path, config: &ModelConfig, shape: &AdapterShape, pool: &Pool) -> (f64, Vec<i64>) {
    let (tokens, targets) = microbatch(config, 2, 3);
    let mut model = stage(path, config, shape, 0..config.layers);
    let values = trained(model.layout());
    model.set_parameters(pool, &values).unwrap();
    let mut sums = GradientSums::new(values.len());
    let grad = Grad::Targets { targets: &targets, scale: 0.5 };
    let out = model.backward(pool, StageInput::Tokens(&tokens), grad, Some(&mut sums), LIMIT).unwrap();
    assert_eq!(model.loss(pool, StageInput::Tokens(&tokens), &targets).unwrap(), out.loss.unwrap());
    let held = model.held();
    for copy in held.iter().filter(|held| held.of.is_some()) {
        let place = copy.of.clone().unwrap();
        assert_eq!(copy.bits.sum(pool.isa()), bit_sum::of_values(pool.isa(), &values[place]));
    }
    assert!(held.iter().any(|held| held.of.is_none()), "the weights below");
    (out.loss.unwrap(), sums.values().to_vec())
}

/// The loss in f64 of the model whose matrices have what a LoRA adapter adds added to them.
fn merged_loss(
    config: &ModelConfig,
    (layout, base): (&ParameterLayout, &[f32]),
    (adapter, values): (&ParameterLayout, &[f64]),
) -> f64 {
    let mut merged = wide(base);
    for layer in 0..config.layers {
        for which in Projection::ALL {
            let part = |part| adapter.tensor(&peft::lora_name(layer, which, part)).unwrap().range();
            let (a, b) = (&values[part("lora_A")], &values[part("lora_B")]);
            let (n, k) = config.matrix(which);
            let at =
                layout.tensor(&format!("model.layers.{layer}.{}.weight", which.module())).unwrap().offset;
            for i in 0..n {
                for j in 0..k {
                    let product: f64 = (0..RANK).map(|r| b[i * RANK + r] * a[r * k + j]).sum();
                    merged[at + i * k + j] += 4.5 / RANK as f64 * product;
                }
            }
        }
    }
    let (tokens, targets) = microbatch(config, 2, 3);
    loss_f64(config, layout, &merged, &[], &tokens, &targets)
}

fn families() -> Vec<ModelConfig> {
    [("llama", true), ("mistral", false), ("qwen2", true)].map(|(name, tied)| config(name, tied)).to_vec()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for (shape, name) in [(lora(), "lora"), (prompt(), "prompt")] {
        for config in families() {
            let (path, layout, values) =
                base(&format!("differences-{name}-{}", config.architecture), &config);
            let (loss, sums) = gradients(&path, &config, &shape, &Pool::new(2));
            let adapter = ParameterLayout::of_adapter(&config, &shape, 0..config.layers, true);
            let mut at = wide(&trained(&adapter));
            let (tokens, targets) = microbatch(&config, 2, 3);
            let f64_loss = |at: &[f64]| match shape {
                AdapterShape::Lora(_) => merged_loss(&config, (&layout, &values), (&adapter, at)),
                AdapterShape::Prompt(_) => loss_f64(&config, &layout, &wide(&values), at, &tokens, &targets),
            };
            let want = f64_loss(&at);
            assert!((loss - want).abs() < 1e-6 * want, "{loss} not {want}");
            for tensor in adapter.tensors() {
                let got: Vec<f64> = sums[tensor.range()].iter().map(|sum| f64::from(to_f32(*sum))).collect();
                let size = got.iter().fold(0f64, |max, v| max.max(v.abs()));
                for i in (0..tensor.len()).step_by(tensor.len().div_ceil(4)) {
                    let value = at[tensor.offset + i];
                    let mut moved = |by: f64| {
                        at[tensor.offset + i] = value + by;
                        f64_loss(&at)
                    };
                    let want = 0.5 * (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    at[tensor.offset + i] = value;
                    let error = (got[i] - want).abs();
                    assert!(error < 2e-5 * size, "{} {i}: {} not {want} ({size})", tensor.name, got[i]);
                }
            }
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
}

#[test]
fn every_value_has_a_gradient_and_nothing_else_does() {
    for shape in [lora(), prompt()] {
        for config in families() {
            let (path, ..) = base(&format!("every-{}-{}", shape.prompt_rows(), config.architecture), &config);
            let (_, sums) = gradients(&path, &config, &shape, &Pool::new(1));
            let expected = match shape {
                AdapterShape::Prompt(_) => PROMPT * config.hidden,
                AdapterShape::Lora(_) => {
                    let pair = |which: Projection| RANK * (config.matrix(which).0 + config.matrix(which).1);
                    config.layers as usize * Projection::ALL.map(pair).iter().sum::<usize>()
                }
            };
            assert_eq!(sums.len(), expected);
            assert!(sums.iter().all(|sum| *sum != 0));
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_instructions_or_cuts() {
    for shape in [lora(), prompt()] {
        let config = config("qwen2", true);
        let (path, ..) = base(&format!("bits-{}", shape.prompt_rows()), &config);
        let (loss, sums) = gradients(&path, &config, &shape, &Pool::with_isa(1, Isa::Scalar));
        for isa in Isa::all() {
            let other = gradients(&path, &config, &shape, &Pool::with_isa(3, isa));
            assert_eq!((loss.to_bits(), &sums), (other.0.to_bits(), &other.1), "{isa:?}");
        }
        let pool = Pool::new(2);
        let (tokens, targets) = microbatch(&config, 2, 3);
        let all = trained(&ParameterLayout::of_adapter(&config, &shape, 0..3, true));
        let mut before = stage(&path, &config, &shape, 0..2);
        let mut behind = stage(&path, &config, &shape, 2..3);
        let cut = before.layout().len();
        before.set_parameters(&pool, &all[..cut]).unwrap();
        behind.set_parameters(&pool, &all[cut..]).unwrap();
        let rows = before.forward(&pool, StageInput::Tokens(&tokens), 2).unwrap();
        let (mut sums_before, mut sums_behind) = (GradientSums::new(cut), GradientSums::new(all.len() - cut));
        let grad = Grad::Targets { targets: &targets, scale: 0.5 };
        let out =
            behind.backward(&pool, StageInput::Rows(&rows), grad, Some(&mut sums_behind), LIMIT).unwrap();
        let back = out.input_gradient.unwrap();
        before
            .backward(&pool, StageInput::Tokens(&tokens), Grad::Rows(&back), Some(&mut sums_before), LIMIT)
            .unwrap();
        let cut_sums = [sums_before.values(), sums_behind.values()].concat();
        assert_eq!((loss.to_bits(), &sums), (out.loss.unwrap().to_bits(), &cut_sums));
        std::fs::remove_dir_all(&path).unwrap();
    }
}

/// An adapter in a folder of its own.
fn written(name: &str, config: &ModelConfig, shape: &AdapterShape) -> (PathBuf, Vec<f32>) {
    let path = folder(name);
    let layout = ParameterLayout::of_adapter(config, shape, 0..config.layers, true);
    let values = trained(&layout);
    let json = peft::config_json(shape, config, "base");
    std::fs::write(path.join(peft::CONFIG), json.to_string()).unwrap();
    write(&path.join(peft::WEIGHTS), &layout, &values);
    (path, values)
}

#[test]
fn what_was_trained_is_served_with_the_same_bits() {
    for (name, shape) in [("lora", lora()), ("prompt", prompt())] {
        let config = config("qwen2", false);
        let (path, ..) = base(&format!("served-{name}"), &config);
        let (adapter, values) = written(&format!("served-{name}-adapter"), &config, &shape);
        let pool = Pool::new(2);
        let mut model = stage(&path, &config, &shape, 0..3);
        model.set_parameters(&pool, &values).unwrap();
        let (tokens, _) = microbatch(&config, 1, 20);
        let rows = model.forward(&pool, StageInput::Tokens(&tokens), 1).unwrap();

        let opened = Adapter::open(&adapter, &config).unwrap();
        let tokens: Vec<u32> = opened.prompt_tokens(&config).chain(tokens).collect();
        let file = ModelFile::open_path(&path).unwrap();
        let served = Whole::load(&file, Pool::new(1), 64).unwrap().with(opened).forward(&tokens).unwrap();
        let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&rows), bits(&served));
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::remove_dir_all(&adapter).unwrap();
    }
}

/// The model as a GGUF file of f32, which has both halves of each head of queries and keys interleaved.
fn gguf(config: &ModelConfig, layout: &ParameterLayout, values: &[f32]) -> Vec<u8> {
    let c = config;
    let mut file = Gguf {
        magic: *b"GGUF",
        version: 3,
        tensor_count: None,
        key_count: None,
        values: Vec::new(),
        tensors: Vec::new(),
    };
    file.set_text("general.architecture", "llama")
        .set_u32("llama.block_count", c.layers)
        .set_u32("llama.embedding_length", c.hidden as u32)
        .set_u32("llama.feed_forward_length", c.block.mlp.width as u32)
        .set_u32("llama.attention.head_count", c.block.attention.heads as u32)
        .set_u32("llama.attention.head_count_kv", c.block.attention.kv_heads as u32)
        .set_u32("llama.attention.key_length", c.block.attention.head_dim as u32)
        .set_u32("llama.context_length", c.context_length)
        .set_f32("llama.attention.layer_norm_rms_epsilon", c.block.norm.eps)
        .set_f32("llama.rope.freq_base", 10_000.0);
    for tensor in layout.tensors() {
        let mut name = tensor.name.replace("model.layers.", "blk.");
        for (from, to) in [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ] {
            name = name.replace(from, to);
        }
        let values = &values[tensor.range()];
        let width = *tensor.shape.last().unwrap();
        let rows = values.len() / width;
        let row = |i: usize| {
            let head_dim = c.block.attention.head_dim;
            let (head, at, half) = (i / head_dim, i % head_dim, head_dim / 2);
            let turned = name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight");
            let from = if turned { head * head_dim + at % 2 * half + at / 2 } else { i };
            &values[from * width..][..width]
        };
        let data = (0..rows).flat_map(row).flat_map(|v| v.to_le_bytes()).collect();
        let dimensions = tensor.shape.iter().rev().map(|d| *d as u64).collect();
        file.tensors.push(Tensor { name: name.into_bytes(), dimensions, kind: 0, offset: None, data });
    }
    file.bytes()
}

#[test]
fn values_are_in_the_order_of_peft_whatever_that_of_the_model_is() {
    let config = config("llama", false);
    let (path, layout, values) = base("order", &config);
    let file = path.join("model.gguf");
    std::fs::write(&file, gguf(&config, &layout, &values)).unwrap();
    let pool = Pool::new(2);
    let (loss, sums) = gradients(&path, &config, &lora(), &pool);
    let turned = ModelFile::open_path(&file).unwrap().config().clone();
    assert_ne!(turned.block.rotary.layout, config.block.rotary.layout);
    let (other, others) = gradients(&file, &turned, &lora(), &pool);
    assert!((loss - other).abs() < 1e-6 * loss, "{loss} {other}");
    let size = sums.iter().fold(0f32, |max, sum| max.max(to_f32(*sum).abs()));
    for (i, (a, b)) in sums.iter().zip(&others).enumerate() {
        assert!((to_f32(*a) - to_f32(*b)).abs() < 1e-5 * size, "{i}: {a} {b}");
    }

    let (adapter, _) = written("order-adapter", &config, &lora());
    let (tokens, _) = microbatch(&config, 1, 20);
    let logits = |path: &Path, config: &ModelConfig| {
        let file = ModelFile::open_path(path).unwrap();
        let opened = Adapter::open(&adapter, config).unwrap();
        let mut whole = Whole::load(&file, Pool::new(1), 64).unwrap().with(opened);
        let rows = whole.forward(&tokens).unwrap();
        whole.logits(&rows)
    };
    let (ours, theirs) = (logits(&path, &config), logits(&file, &turned));
    let size = ours.iter().fold(0f32, |max, v| max.max(v.abs()));
    assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-5 * size));
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::remove_dir_all(&adapter).unwrap();
}

/// Quantised weights stay so: gradients are those of the same weights widened, through the rounding of activations.
#[test]
fn a_quantised_model_is_trained_over_as_it_is() {
    let path = folder("quantised");
    let file = path.join("model.gguf");
    std::fs::write(&file, tiny().bytes()).unwrap();
    let config = ModelFile::open_path(&file).unwrap().config().clone();
    for shape in [lora(), prompt()] {
        let (loss, sums) = gradients(&file, &config, &shape, &Pool::with_isa(1, Isa::Scalar));
        assert!(loss.is_finite() && sums.iter().filter(|sum| **sum != 0).count() > sums.len() / 2);
        let (other, others) = gradients(&file, &config, &shape, &Pool::new(3));
        assert_eq!((loss.to_bits(), sums), (other.to_bits(), others));
    }
    std::fs::remove_dir_all(&path).unwrap();
}

/// Weights in bf16 that f16 has no room for have the gradients of the same weights in f32.
#[test]
fn a_model_in_bf16_is_trained_over_as_it_is() {
    let tiny_in_the_middle = |name: &str| name.contains("mlp").then_some(1e-6);
    let gradients = |dtype: Dtype, shape: &AdapterShape| {
        let folder = ModelFolder::new();
        folder.round_to_bf16(dtype, tiny_in_the_middle);
        let config = folder.open().unwrap().config().clone();
        gradients(folder.path(), &config, shape, &Pool::new(2))
    };
    for shape in [lora(), prompt()] {
        let ((loss, sums), (other, others)) = (gradients(Dtype::BF16, &shape), gradients(Dtype::F32, &shape));
        assert!(sums.iter().any(|sum| *sum != 0));
        assert_eq!((loss.to_bits(), sums), (other.to_bits(), others));
    }
}

#[test]
fn an_adapter_begins_as_nothing_and_a_prompt_as_words() {
    let config = config("llama", true);
    let (path, layout, values) = base("begins", &config);
    let pool = Pool::new(1);
    let (tokens, targets) = microbatch(&config, 2, 3);
    let mut plain = StageModel::new(&config, 0..3, true, true, LENGTH).unwrap();
    plain.set_parameters(&pool, &values).unwrap();
    let mut model = stage(&path, &config, &lora(), 0..3);
    let first = model.initial(7);
    assert_ne!(first, model.initial(8));
    model.set_parameters(&pool, &first).unwrap();
    let loss = |model: &mut StageModel| model.loss(&pool, StageInput::Tokens(&tokens), &targets).unwrap();
    assert_eq!(loss(&mut model), loss(&mut plain));

    let embedding = &values[layout.tensor("model.embed_tokens.weight").unwrap().range()];
    let first = stage(&path, &config, &prompt(), 0..3).initial(7);
    assert_eq!(first.len(), PROMPT * config.hidden);
    for row in first.chunks(config.hidden) {
        assert!(embedding.chunks(config.hidden).any(|word| word == row));
    }
    assert!(stage(&path, &config, &prompt(), 1..3).initial(7).is_empty());
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn what_has_no_place_is_refused() {
    let config = config("llama", true);
    let (path, _) = written("refused", &config, &lora());
    let sound = std::fs::read_to_string(path.join(peft::CONFIG)).unwrap();
    let refused = |key: &str, value: Value| {
        let mut json: Value = serde_json::from_str(&sound).unwrap();
        json[key] = value;
        std::fs::write(path.join(peft::CONFIG), json.to_string()).unwrap();
        Adapter::open(&path, &config).map(drop).unwrap_err().to_string()
    };
    for (key, value, message) in [
        ("peft_type", json!("IA3"), "its peft_type is IA3"),
        ("use_dora", json!(true), "it has `use_dora`"),
        ("bias", json!("all"), "it has `bias`"),
        ("modules_to_save", json!(["lm_head"]), "it has `modules_to_save`"),
        ("lora_alpha", json!(null), "no usable `lora_alpha`"),
        ("peft_type", json!("PROMPT_TUNING"), "it has `init_lora_weights`"),
    ] {
        let error = refused(key, value);
        assert!(error.contains(message), "{key}: {error}");
    }
    std::fs::write(path.join(peft::CONFIG), &sound).unwrap();
    let mut other = config.clone();
    other.block.mlp.width = 32;
    let error = Adapter::open(&path, &other).map(drop).unwrap_err().to_string();
    assert!(error.contains("mlp.gate_proj.lora_B.weight` has 28 rows, the model needs 32"), "{error}");
    let fewer = ModelConfig { layers: 2, ..config.clone() };
    let error = Adapter::open(&path, &fewer).map(drop).unwrap_err().to_string();
    assert!(error.contains("model.layers.2.") && error.contains("has no place"), "{error}");
    std::fs::remove_dir_all(&path).unwrap();
}
