//! Training and files: what is written is an ordinary model that serving reads, with the same bits; and training goes on from one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};

use dunlin_kernels::{Pool, RopeScaling};
use dunlin_model::generate::Whole;
use dunlin_model::training::export::{config_json, write_config, write_safetensors};
use dunlin_model::training::{ParameterLayout, ParameterTensor, StageInput, StageModel, load};
use dunlin_model::{ModelConfig, ModelFile};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use support::training::{LENGTH, config, microbatch, parameters};

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("training-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A whole model in a folder, and its parameters.
fn written(name: &str, config: &ModelConfig) -> (PathBuf, ParameterLayout, Vec<f32>) {
    let path = folder(name);
    let layout = ParameterLayout::new(config, 0..config.layers, true, true);
    let values = parameters(config, &layout);
    write_config(&path, config).unwrap();
    let tensors: Vec<&ParameterTensor> = layout.tensors().iter().collect();
    write_safetensors(&path.join("model.safetensors"), &tensors, [values.as_slice()]).unwrap();
    (path, layout, values)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn training_has_the_bits_of_serving() {
    for (name, tied) in [("llama", false), ("mistral", true), ("qwen2", true), ("qwen2", false)] {
        let config = config(name, tied);
        let (path, layout, values) = written(&format!("{name}-{tied}"), &config);
        let file = ModelFile::open_path(&path).unwrap();
        assert_eq!(file.config(), &config);
        let mut loaded = vec![f32::NAN; layout.len()];
        load(&layout, &file, &mut loaded).unwrap();
        assert_eq!(bits(&loaded), bits(&values));

        let pool = Pool::new(2);
        let mut model = StageModel::new(&config, 0..3, true, true, LENGTH).unwrap();
        model.set_parameters(&pool, &values).unwrap();
        let (tokens, targets) = microbatch(&config, 2, 20);
        let trained = model.forward(&pool, StageInput::Tokens(&tokens), 2).unwrap();
        let mut serving = Whole::load(&file, Pool::new(1), 64).unwrap();
        let mut loss = 0.0;
        let rows: Vec<f32> = tokens
            .chunks(LENGTH)
            .zip(targets.chunks(LENGTH))
            .flat_map(|(tokens, targets)| {
                serving.reset();
                let rows = serving.forward(tokens).unwrap();
                for (logits, target) in serving.logits(&rows).chunks(config.vocab).zip(targets) {
                    let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
                    loss += sum.ln() - f64::from(logits[*target as usize]);
                }
                rows
            })
            .collect();
        assert_eq!(bits(&trained), bits(&rows), "{name}");
        let trained = model.loss(&pool, StageInput::Tokens(&tokens), &targets).unwrap();
        assert!((trained - loss).abs() < 1e-6 * loss, "{trained} not {loss}");
        std::fs::remove_dir_all(&path).unwrap();
    }
}

#[test]
fn configurations_come_back_as_they_were() {
    let path = folder("config");
    for scaling in [
        RopeScaling::None,
        RopeScaling::Linear(4.0),
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        },
        RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 24.0,
            beta_slow: 2.0,
            original_context: 8192.0,
            truncate: false,
            magnitude: 1.25,
        },
    ] {
        for name in ["llama", "mistral", "qwen2"] {
            for tied in [false, true] {
                let mut config = config(name, tied);
                let block = &mut config.block;
                (block.rotary.scaling, block.rotary.base, block.norm.eps) =
                    (scaling.clone(), 500_000.0, 1e-6);
                if name == "qwen2" {
                    let mut sliding = config.block.clone();
                    sliding.attention.window = Some(16);
                    config.other_blocks.insert(1, sliding);
                } else if name == "mistral" {
                    config.block.attention.window = Some(16);
                }
                write_config(&path, &config).unwrap();
                let json = std::fs::read(path.join("config.json")).unwrap();
                let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
                assert_eq!(json, config_json(&config));
                assert_eq!(json["rms_norm_eps"], json!(1e-6));
                let layout = ParameterLayout::new(&config, 0..3, true, true);
                let tensors: Vec<&ParameterTensor> = layout.tensors().iter().collect();
                let values = vec![0.5; layout.len()];
                write_safetensors(&path.join("model.safetensors"), &tensors, values.chunks(1000)).unwrap();
                assert_eq!(ModelFile::open_path(&path).unwrap().config(), &config);
                for wrong in [&values[1..], &[values.as_slice(), &[0.5]].concat()] {
                    assert!(write_safetensors(&path.join("wrong"), &tensors, [wrong]).is_err());
                }
            }
        }
    }
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn training_goes_on_from_half_precision() {
    let config = config("qwen2", true);
    let (path, layout, values) = written("half", &config);
    for dtype in [Dtype::F16, Dtype::BF16] {
        let encode = |v: &f32| -> (Vec<u8>, f32) {
            match dtype {
                Dtype::F16 => (f16::from_f32(*v).to_le_bytes().to_vec(), f16::from_f32(*v).to_f32()),
                _ => (bf16::from_f32(*v).to_le_bytes().to_vec(), bf16::from_f32(*v).to_f32()),
            }
        };
        let data: Vec<Vec<u8>> = layout
            .tensors()
            .iter()
            .map(|tensor| values[tensor.range()].iter().flat_map(|v| encode(v).0).collect())
            .collect();
        let views = layout.tensors().iter().zip(&data).map(|(tensor, data)| {
            (tensor.name.as_str(), TensorView::new(dtype, tensor.shape.clone(), data).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(path.join("model.safetensors"), bytes).unwrap();
        // The last stage of two: the head is the embedding.
        let part = ParameterLayout::new(&config, 1..3, false, true);
        let mut loaded = vec![f32::NAN; part.len()];
        load(&part, &ModelFile::open_path(&path).unwrap(), &mut loaded).unwrap();
        for tensor in part.tensors() {
            let want = &values[layout.tensor(&tensor.name).unwrap().range()];
            let want: Vec<f32> = want.iter().map(|v| encode(v).1).collect();
            assert_eq!(bits(&loaded[tensor.range()]), bits(&want), "{}", tensor.name);
        }
    }
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_folder_of_shards_is_read_by_its_index() {
    let config = config("llama", false);
    let (path, layout, values) = written("shards", &config);
    std::fs::remove_file(path.join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (i, tensors) in layout.tensors().chunks(10).enumerate() {
        let name = format!("model-{i:05}.safetensors");
        let tensors: Vec<&ParameterTensor> = tensors.iter().collect();
        let parts = tensors.iter().map(|tensor| &values[tensor.range()]);
        write_safetensors(&path.join(&name), &tensors, parts).unwrap();
        map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(name))));
    }
    let index = path.join("model.safetensors.index.json");
    let write = |map: &serde_json::Map<String, serde_json::Value>| {
        std::fs::write(&index, json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string())
            .unwrap();
    };
    let loads = || {
        let file = ModelFile::open_path(&path).map_err(|error| error.to_string())?;
        let mut loaded = vec![f32::NAN; layout.len()];
        load(&layout, &file, &mut loaded).map_err(|error| error.to_string())?;
        assert_eq!(bits(&loaded), bits(&values));
        Ok::<(), String>(())
    };
    loads().unwrap();
    write(&map);
    loads().unwrap();
    // The same weights once more beside the shards are nothing to the index, but too many without it.
    std::fs::copy(path.join("model-00000.safetensors"), path.join("consolidated.safetensors")).unwrap();
    loads().unwrap();
    std::fs::remove_file(&index).unwrap();
    assert!(loads().unwrap_err().contains("which another file of the folder has, too"));
    for outside in ["../model.safetensors", "/etc/passwd", "a/b", "..", ""] {
        let mut map = map.clone();
        map.insert("x".to_owned(), json!(outside));
        write(&map);
        assert!(loads().unwrap_err().contains("is not a file of the folder"), "{outside}");
    }
    map.insert("x".to_owned(), json!("missing.safetensors"));
    write(&map);
    assert!(loads().unwrap_err().contains("missing.safetensors"));
    std::fs::remove_dir_all(&path).unwrap();
}
