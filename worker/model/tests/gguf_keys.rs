//! Every key of its architecture in a GGUF file is honoured as llama.cpp does it, or refused by name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use dunlin_kernels::RopeScaling;
use dunlin_model::source::MemorySource;
use dunlin_model::{ModelConfig, ModelFile};
use support::gguf::{ARRAY, Gguf, TEXT, U8, U32, array, text, tiny};

fn open(change: impl FnOnce(&mut Gguf)) -> Result<ModelConfig, String> {
    let mut file = tiny();
    change(&mut file);
    let opened = ModelFile::open(Arc::new(MemorySource(file.bytes())));
    opened.map(|file| file.config().clone()).map_err(|error| {
        assert!(!error.is_unreachable());
        error.to_string()
    })
}

#[track_caller]
fn refused(what: &str, change: impl FnOnce(&mut Gguf)) {
    let Err(message) = open(change) else { panic!("taken, but it should be refused for: {what}") };
    assert!(
        message.contains(what) && message.contains("; ") && message.len() < 400,
        "`{message}`, not `{what}`"
    );
}

#[test]
fn a_scaling_without_a_type_is_linear() {
    let scaling = |key: &'static str, kind: Option<&'static str>| {
        let config = open(|f| {
            f.set_f32(key, 4.0);
            if let Some(kind) = kind {
                f.set_text("llama.rope.scaling.type", kind);
            }
        });
        config.unwrap().block.rotary.scaling
    };
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        assert_eq!(scaling(key, None), RopeScaling::Linear(4.0));
        assert_eq!(scaling(key, Some("linear")), RopeScaling::Linear(4.0));
        assert_eq!(scaling(key, Some("none")), RopeScaling::None);
    }
    // Its tensors are not there, and would be Phi-3's.
    refused("rope scaling `longrope`; `none`, `linear` and `yarn`", |f| {
        f.set_text("llama.rope.scaling.type", "longrope").set_f32("llama.rope.scaling.factor", 4.0);
    });
    refused("no usable `llama.rope.scaling.factor`", |f| {
        f.set_text("llama.rope.scaling.type", "yarn");
    });
    refused("no usable `llama.rope.scaling.type`", |f| {
        f.set_u32("llama.rope.scaling.type", 2);
    });
    refused("no usable `llama.rope.freq_base`", |f| {
        f.set_text("llama.rope.freq_base", "10000");
    });
}

#[test]
fn other_keys_of_the_architecture_are_refused_by_name() {
    for i in 0..200u32 {
        let key = format!("llama.key_{:x}", i.wrapping_mul(0x9e37_79b9));
        refused(&format!("`{key}` is not known here"), |f| {
            f.set_u32(&key, i);
        });
    }
    for (key, value) in [
        ("attention.scale", 0.5),
        ("attention.causal", 0.0),
        ("attention.clamp_kqv", 8.0),
        ("attention.max_alibi_bias", 8.0),
        ("embedding_scale", 12.0),
        ("expert_used_count", 2.0),
        ("logit_scale", 0.1),
        ("residual_scale", 0.2),
        ("rope.scaling.attn_factor", 1.2),
        ("attention.value_length", 8.0),
    ] {
        refused(&format!("`llama.{key}` is {value}; only models where it is"), |f| {
            f.set_f32(&format!("llama.{key}"), value);
        });
    }
    refused("`llama.attention.causal` is \"no\"", |f| {
        f.set_text("llama.attention.causal", "no");
    });
    refused("layer_norm_rms_epsilon", |f| {
        f.remove("llama.attention.layer_norm_rms_epsilon");
    });
}

#[test]
fn keys_that_change_no_number_are_taken() {
    let plain = open(|_| {}).unwrap();
    let taken = open(|f| {
        f.set_u32("llama.vocab_size", 40).set_text("llama.tensor_data_layout", "Meta AI original pth");
        f.set_f32("llama.attention.scale", 0.25).set("llama.attention.causal", 7, [1]);
        f.set_u32("llama.attention.value_length", 16).set_f32("llama.logit_scale", 0.0);
        f.set_f32("llama.residual_scale", 1.0)
            .set_u32("llama.expert_count", 0)
            .set_u32("llama.expert_used_count", 0);
        f.set_u32("llama.rope.scaling.original_context_length", 8192);
        // Of others than the architecture.
        f.set_u32("quantize.imatrix.chunks_count", 7).set_text("general.name", "x").set_u32("llamas.x", 1);
        f.set_u32("qwen2.rope.scaling.factor", 7);
    });
    assert_eq!(taken, Ok(plain));
}

/// Some converters write one number for each layer.
#[test]
fn numbers_of_layers_are_taken_where_all_are_the_same() {
    let list = |numbers: &[u32]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        array(U32, numbers.len() as u64, &bytes)
    };
    let plain = open(|_| {});
    let with = |key: &str, list: Vec<u8>| {
        open(|f| {
            f.set(key, ARRAY, list);
        })
    };
    for (key, value) in
        [("attention.head_count_kv", 1), ("attention.head_count", 2), ("feed_forward_length", 64)]
    {
        let key = format!("llama.{key}");
        assert_eq!(with(&key, list(&[value])), plain);
        for wrong in [list(&[]), list(&[value; 2]), array(TEXT, 1, &text("1")), array(U8, 0, &[])] {
            let error = with(&key, wrong).unwrap_err();
            assert!(error.contains(&format!("no usable `{key}`")), "{error}");
        }
        refused(&format!("`{key}` is not the same for all layers"), |f| {
            f.set_u32("llama.block_count", 2).set(&key, ARRAY, list(&[value, 8]));
        });
    }
}

#[test]
fn a_part_of_a_model_says_so() {
    for (no, what) in [
        (0, "is part 1 of 2; its name must end in `-00001-of-00002.gguf`"),
        (1, "is part 2 of 2; give the first one, whose name ends in `-00001-of-00002.gguf`"),
    ] {
        refused(what, |f| {
            f.set("split.no", 2, [no, 0]).set("split.count", 2, [2, 0]);
            if no == 1 {
                f.values.retain(|(key, ..)| key.starts_with(b"split."));
            }
        });
    }
    let whole = open(|f| {
        f.set("split.count", 2, [1, 0]);
    });
    assert!(whole.is_ok());
}

/// Mistral's layers all slide. Those of a Qwen2 that do are not said in its files, so it stays within the window.
#[test]
fn a_window_is_that_of_all_layers_or_the_context() {
    let window = |architecture: &str| {
        open(|f| {
            for (key, ..) in &mut f.values {
                *key = String::from_utf8(key.clone())
                    .unwrap()
                    .replace("llama.", &format!("{architecture}."))
                    .into();
            }
            f.set_text("general.architecture", architecture);
            f.set_u32(&format!("{architecture}.attention.sliding_window"), 24);
            for (role, width) in [("q", 32), ("k", 16), ("v", 16)] {
                let mut bias = f.tensor("blk.0.attn_norm.weight").clone();
                bias.name = format!("blk.0.attn_{role}.bias").into();
                (bias.dimensions, bias.data) = (vec![width], vec![0; 4 * width as usize]);
                f.tensors.push(bias);
            }
        })
    };
    let llama = window("llama").unwrap();
    assert_eq!((llama.block.attention.window, llama.context_length), (Some(24), 64));
    let qwen2 = window("qwen2").unwrap();
    assert_eq!((qwen2.block.attention.window, qwen2.context_length), (None, 24));
}
