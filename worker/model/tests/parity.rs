//! The same logits as Hugging Face's transformers, on tiny random models. The fixtures are written by parity/generate.py.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and print")]

use std::path::{Path, PathBuf};

use dunlin_kernels::{Pool, RopeScaling};
use dunlin_model::generate::Whole;
use dunlin_model::{Adapter, ModelFile};
use safetensors::SafeTensors;
use serde_json::Value;

/// Largest difference of a logit, relative to the largest logit of the fixture.
///
/// Both sides round to f32 (2^-24, 6e-8): ours everywhere, transformers in angles, norms and softmax. A logit has some 20 such operations
/// behind it, each a sum of up to 56 terms, and attention as sharp as here magnifies errors a few times. Seen are 0.9e-6 to 2.5e-6; that
/// this is fine enough is tested below: the smallest mistakes in a configuration differ by far more.
const TOLERANCE: f64 = 5e-6;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

struct Expected {
    tokens: Vec<u32>,
    /// Row by row.
    logits: Vec<f32>,
}

fn expected(name: &str) -> Expected {
    let bytes = std::fs::read(folder(&format!("{name}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (tokens, logits) = (file.tensor("tokens").unwrap(), file.tensor("logits").unwrap());
    let tokens = tokens.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    let logits = logits.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Expected { tokens, logits }
}

/// Logits of the prompt at once, and of the same tokens one by one.
fn both_ways(file: &ModelFile, tokens: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let mut whole = Whole::load(file, Pool::new(2), 64).unwrap();
    let rows = whole.forward(tokens).unwrap();
    let prefill = whole.logits(&rows);
    whole.reset();
    let mut decode = Vec::new();
    for token in tokens {
        let row = whole.forward(&[*token]).unwrap();
        decode.extend(whole.logits(&row));
    }
    (prefill, decode)
}

/// Largest difference, relative to the largest expected value.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0f32, |max, v| max.max(v.abs()));
    let most = found.iter().zip(expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    f64::from(most) / f64::from(scale)
}

/// What its recipe.json says of each fixture; parity/generate.py tells what that may be.
fn recipes() -> Vec<(String, Value)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder("")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = std::fs::read(path.join("recipe.json")) else { continue };
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        out.push((name, serde_json::from_slice(&text).unwrap()));
    }
    out.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert!(out.len() >= 13, "{} fixtures", out.len());
    out
}

/// The model in `file` has the logits of `name`.
fn check(file: &str, name: &str) {
    let model = open(file);
    let Expected { tokens, logits } = expected(name);
    let (prefill, decode) = both_ways(&model, &tokens);
    let differs = difference(&prefill, &logits);
    println!("{file}: largest difference of a logit {differs:.1e} of the largest logit");
    assert!(differs < TOLERANCE, "{file}: {differs:e}");
    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&prefill), bits(&decode), "{file}: one by one gives the same bits as all at once");
}

/// Every fixture, and the same model as llama.cpp's converter writes it.
#[test]
fn logits_are_those_of_transformers() {
    for (name, recipe) in recipes() {
        if recipe["own_test"].is_null() {
            check(&name, &name);
        }
        if !recipe["gguf"].is_null() {
            check(&format!("{name}.gguf"), &name);
        }
    }
}

fn open(name: &str) -> ModelFile {
    ModelFile::open_path(&folder(name)).unwrap()
}

/// In both forms.
fn open_both(name: &str) -> [ModelFile; 2] {
    [open(name), open(&format!("{name}.gguf"))]
}

/// Adapters as PEFT saves them, with PEFT's logits; the fixtures are written by parity/adapters.py.
#[test]
fn adapters_of_peft() {
    for (name, base) in [
        ("llama-lora", "llama"),
        ("mistral-rslora", "mistral"),
        ("qwen2-prompt", "qwen2"),
        ("phi3-lora", "phi3"),
        ("phi3-lora", "phi3.gguf"),
    ] {
        let file = ModelFile::open_path(&folder(base)).unwrap();
        let Expected { tokens, logits } = expected(name);
        let adapter = Adapter::open(&folder(name), file.config()).unwrap();
        let tokens: Vec<u32> = adapter.prompt_tokens(file.config()).chain(tokens).collect();
        let mut whole = Whole::load(&file, Pool::new(2), 64).unwrap();
        let plain = whole.forward(&tokens[tokens.len() - 37..]).unwrap();
        let plain = difference(&whole.logits(&plain), &logits);
        let mut whole = Whole::load(&file, Pool::new(2), 64).unwrap().with(adapter);
        let rows = whole.forward(&tokens).unwrap();
        let found = whole.logits(&rows[rows.len() - 37 * file.config().hidden..]);
        let differs = difference(&found, &logits);
        println!(
            "{name}: largest difference of a logit {differs:.1e} of the largest logit; {plain:.1e} without"
        );
        assert!(differs < TOLERANCE, "{name}: {differs:e}");
        assert!(plain > 0.01, "{name}: the adapter changes nothing");
    }
}

/// Opens the model of `name` with a changed configuration.
fn reconfigured(name: &str, change: impl Fn(&mut Value)) -> Result<ModelFile, String> {
    let unique = format!("{name}-{}-{:?}", std::process::id(), std::thread::current().id());
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
    std::fs::create_dir_all(&copy).unwrap();
    std::fs::copy(folder(name).join("model.safetensors"), copy.join("model.safetensors")).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(folder(name).join("config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(copy.join("config.json"), config.to_string()).unwrap();
    let opened = ModelFile::open_path(&copy).map_err(|error| error.to_string());
    // What was opened stays readable.
    std::fs::remove_dir_all(&copy).unwrap();
    opened
}

#[test]
fn llama_with_grouped_heads() {
    assert!(!open("llama").config().tied);
}

#[test]
fn llama_with_the_rope_scaling_of_llama_3() {
    let file = open("llama3-rope");
    assert!(matches!(file.config().block.rotary.scaling, RopeScaling::Llama3 { .. }));
    assert!(file.config().tied);
}

#[test]
fn llama_with_linear_rope_scaling() {
    assert_eq!(open("llama-linear-rope").config().block.rotary.scaling, RopeScaling::Linear(4.0));
}

#[test]
fn mistral_with_wide_heads() {
    let file = open("mistral");
    assert_eq!((file.config().block.attention.head_dim, file.config().context_length), (16, 256));
}

#[test]
fn qwen2_with_biases_and_tied_embeddings() {
    let file = open("qwen2");
    assert!(file.config().block.attention.bias && file.config().tied);
}

#[test]
fn qwen3_with_norms_of_heads() {
    let file = open("qwen3");
    let c = file.config();
    assert!(c.block.attention.qk_norm && !c.block.attention.bias && !c.tied);
    assert_ne!(c.q_width(), c.hidden);
}

#[test]
fn llama_with_yarn() {
    for file in open_both("llama-yarn") {
        assert!(matches!(file.config().block.rotary.scaling, RopeScaling::Yarn { .. }));
    }
}

/// The sequence is longer than the window.
#[test]
fn mistral_with_a_window() {
    let file = open("mistral-window");
    assert_eq!((file.config().block.attention.window, file.config().context_length), (Some(16), 256));
}

#[test]
fn qwen2_with_layers_that_slide() {
    let file = open("qwen2-window");
    let windows = [0, 1].map(|layer| file.config().block(layer).attention.window);
    assert_eq!(windows, [None, Some(16)]);
}

#[test]
fn gemma3_with_two_kinds_of_layers() {
    for file in open_both("gemma3") {
        let c = file.config();
        let windows: Vec<_> = (0..7).map(|layer| c.block(layer).attention.window).collect();
        assert_eq!(windows, [Some(16), Some(16), Some(16), Some(16), Some(16), None, Some(16)]);
        assert_eq!(c.rotaries().len(), 2);
    }
}

#[test]
fn phi3_with_fused_matrices_and_a_window() {
    for file in open_both("phi3") {
        assert_eq!(file.config().block.attention.window, Some(16));
    }
}

/// LongRoPE has frequencies for models with the original context, 32, and others for those with more. transformers goes by the sequence, and has the
/// former for one of 32 rows; the factor is that of the longer context.
#[test]
fn phi3_with_short_and_long_contexts() {
    let Expected { tokens, logits } = expected("phi3-short");
    let shorter = reconfigured("phi3-short", |c| {
        c["max_position_embeddings"] = 32.into();
        c["rope_parameters"]["attention_factor"] = (1.0 + 4f64.ln() / 32f64.ln()).sqrt().into();
    });
    let (found, _) = both_ways(&shorter.unwrap(), &tokens);
    let differs = difference(&found, &logits);
    assert!(differs < TOLERANCE, "{differs:e}");
    let (longer, _) = both_ways(&ModelFile::open_path(&folder("phi3-short")).unwrap(), &tokens);
    assert!(difference(&longer, &logits) > 0.01, "both are the same");
}

/// Published models have `rope_theta` and `rope_scaling`; newer versions of transformers write `rope_parameters`.
#[test]
fn both_ways_to_write_rope_parameters_mean_the_same() {
    for name in ["llama", "llama3-rope", "llama-linear-rope", "mistral", "qwen2", "qwen3", "llama-yarn"] {
        let older = reconfigured(name, |config| {
            let mut rope = config.as_object_mut().unwrap().remove("rope_parameters").unwrap();
            config["rope_theta"] = rope.as_object_mut().unwrap().remove("rope_theta").unwrap();
            let plain = rope["rope_type"] == "default";
            config["rope_scaling"] = if plain { Value::Null } else { rope };
        });
        let newer = ModelFile::open_path(&folder(name)).unwrap();
        assert_eq!(older.unwrap().config(), newer.config(), "{name}");
    }
}

#[test]
fn what_would_compute_something_else_is_refused() {
    let refused = |name: &str, change: &dyn Fn(&mut Value), what: &str| {
        let error = reconfigured(name, change).err().unwrap_or_else(|| panic!("{what} is taken"));
        assert!(error.contains(what), "{error}");
    };
    for kind in ["yarn", "dynamic", "longrope"] {
        refused("llama", &|c| c["rope_parameters"]["rope_type"] = kind.into(), kind);
    }
    refused("llama3-rope", &|c| c["rope_parameters"]["factor"] = Value::Null, "rope scaling");
    refused("llama", &|c| c["attention_bias"] = true.into(), "`attention_bias`");
    refused("llama", &|c| c["mlp_bias"] = true.into(), "`mlp_bias`");
    refused("llama", &|c| c["hidden_act"] = "gelu".into(), "gelu");
    refused("llama", &|c| c["architectures"] = serde_json::json!(["PhiForCausalLM"]), "PhiForCausalLM");
}

/// Sets what is at this place, `/rope_parameters/factor`; it may be new.
fn set(config: &mut Value, place: &str, value: &Value) {
    let (parent, key) = place.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap_or_else(|| panic!("`{place}` is in nothing")) {
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
        parent => parent[key] = value.clone(),
    }
}

/// A tolerance that hides mistakes is worth nothing.
#[test]
fn small_mistakes_are_seen() {
    for (name, recipe) in recipes() {
        for (place, value) in recipe["mistakes"].as_object().into_iter().flatten() {
            let Expected { tokens, logits } = expected(&name);
            let mistaken = reconfigured(&name, |config| set(config, place, value)).unwrap();
            let (found, _) = both_ways(&mistaken, &tokens);
            let differs = difference(&found, &logits);
            println!("{name} with {place} {value}: {differs:.1e}");
            assert!(differs > 4.0 * TOLERANCE, "{name} with {place} {value}: {differs:e}");
        }
    }
}
