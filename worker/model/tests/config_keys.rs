//! Every key of config.json that could change numbers is honoured or refused by name, and what published models have is taken.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::path::Path;

use dunlin_kernels::RopeScaling;
use dunlin_model::config::from_json;
use dunlin_model::training::untrained;
use dunlin_model::{ModelConfig, ModelError};
use serde_json::{Value, json};

fn open(json: &Value) -> Result<ModelConfig, String> {
    from_json("config.json", json).map_err(|error| {
        assert!(!error.is_unreachable());
        assert!(matches!(
            error,
            ModelError::Refused { .. } | ModelError::Unsupported(_) | ModelError::Malformed { .. }
        ));
        error.to_string()
    })
}

/// `base` with the keys of `more` set, or removed where they are a list of no values.
fn with(base: &Value, more: Value) -> Value {
    let mut out = base.clone();
    for (key, value) in more.as_object().unwrap() {
        if value == &json!([]) {
            out.as_object_mut().unwrap().remove(key);
        } else {
            out[key] = value.clone();
        }
    }
    out
}

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "torch_dtype": "float16", "transformers_version": "4.35.0", "use_cache": true, "vocab_size": 32000,
    })
}

fn mistral() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000,
    })
}

fn qwen2() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643,
        "eos_token_id": 151_645, "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
        "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06, "rope_theta": 1_000_000.0, "sliding_window": 131_072, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 152_064,
    })
}

/// What recipes of fixtures have of published models.
fn published() -> Vec<(String, Value)> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let recipes = std::fs::read_dir(fixtures).unwrap();
    let recipes = recipes.filter_map(|entry| std::fs::read(entry.unwrap().path().join("recipe.json")).ok());
    let models = |text: Vec<u8>| serde_json::from_slice::<Value>(&text).unwrap()["published"].take();
    let models = recipes.map(models).filter_map(|models| models.as_object().cloned());
    models.flatten().collect()
}

fn llama3_rope() -> Value {
    json!({"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
           "original_max_position_embeddings": 8192, "rope_type": "llama3"})
}

/// As the folders of these models have it on the hub.
#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn published_models_are_taken() {
    let of_llama3 = json!({
        "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009], "intermediate_size": 14336,
        "max_position_embeddings": 131_072, "mlp_bias": false, "num_key_value_heads": 8, "rope_theta": 500_000.0,
        "rope_scaling": llama3_rope(), "torch_dtype": "bfloat16", "vocab_size": 128_256,
    });
    let llama3 = with(&llama(), of_llama3);
    let of_transformers5 = json!({
        "rope_theta": [], "torch_dtype": [], "dtype": "bfloat16", "head_dim": 128, "pad_token_id": null,
        "transformers_version": "5.1.0",
    });
    let models = [
        (
            "Llama 1",
            with(
                &llama(),
                json!({
                    "_name_or_path": "", "max_sequence_length": 2048, "max_position_embeddings": 2048, "pad_token_id": 0,
                    "rms_norm_eps": 1e-06, "attention_bias": [], "num_key_value_heads": [], "rope_theta": [],
                    "transformers_version": "4.27.0.dev0",
                }),
            ),
        ),
        ("Llama 2 7B", with(&llama(), json!({"_name_or_path": "meta-llama/Llama-2-7b-hf"}))),
        ("Llama 2 13B", with(&llama(), json!({"pretraining_tp": 2}))),
        (
            "Vicuna 16K",
            with(
                &llama(),
                json!({
                    "_name_or_path": "vicuna-7b-v1.5-16k", "max_sequence_length": 16384, "temperature": 0.9, "top_p": 0.6,
                    "do_sample": true, "pad_token_id": 0, "rope_scaling": {"factor": 4.0, "type": "linear"},
                }),
            ),
        ),
        (
            "DeepSeek Coder 6.7B",
            with(
                &llama(),
                json!({
                    "rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100_000, "vocab_size": 32256,
                }),
            ),
        ),
        (
            "Yi 34B",
            with(&llama(), json!({"pad_token_id": 0, "rope_theta": 5_000_000.0, "num_key_value_heads": 8})),
        ),
        (
            "LLaMA 2 7B 32K",
            with(
                &llama(),
                json!({
                    "auto_map": {"AutoModelForCausalLM": "modeling_flash_llama.LlamaForCausalLM"},
                    "rope_scaling": {"factor": 8.0, "type": "linear"},
                }),
            ),
        ),
        (
            "Llama 3 8B",
            with(&llama3, json!({"rope_scaling": null, "mlp_bias": [], "max_position_embeddings": 8192})),
        ),
        ("Llama 3.1 8B", llama3.clone()),
        (
            "Llama 3.2 1B",
            with(
                &llama3,
                json!({
                    "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
                    "tie_word_embeddings": true, "unsloth_fixed": true, "unsloth_version": "2025.1.5",
                }),
            ),
        ),
        ("DeepSeek R1 Distill Llama 8B", with(&llama3, json!({"eos_token_id": 128_001}))),
        (
            "TinyLlama 1.1B",
            with(
                &llama(),
                json!({
                    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4,
                    "max_position_embeddings": 2048,
                }),
            ),
        ),
        (
            "SmolLM2 135M",
            with(
                &llama(),
                json!({
                    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
                    "num_hidden_layers": 30, "is_llama_config": true, "rope_interleaved": false, "pad_token_id": 2,
                    "rope_theta": 100_000, "initializer_range": 0.041_666_666, "tie_word_embeddings": true,
                    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "vocab_size": 49152,
                }),
            ),
        ),
        (
            "Llama 3.1 of transformers 5",
            with(
                &with(&llama3, of_transformers5.clone()),
                json!({
                    "rope_scaling": [],
                    "rope_parameters": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_theta": 500_000.0,
                                        "original_max_position_embeddings": 8192, "rope_type": "llama3"},
                }),
            ),
        ),
        ("Mistral 7B v0.1", mistral()),
        (
            "Mistral 7B v0.3",
            with(
                &mistral(),
                json!({
                    "sliding_window": null, "rope_theta": 1_000_000.0, "vocab_size": 32768, "attention_dropout": 0.0,
                }),
            ),
        ),
        (
            "Mistral Nemo",
            with(
                &mistral(),
                json!({
                    "head_dim": 128, "hidden_size": 5120, "max_position_embeddings": 1_024_000, "num_hidden_layers": 40,
                    "sliding_window": null, "rope_theta": 1_000_000.0, "vocab_size": 131_072,
                }),
            ),
        ),
        (
            "Zephyr 7B",
            with(
                &mistral(),
                json!({"_name_or_path": "x", "pad_token_id": 2, "_attn_implementation": "sdpa"}),
            ),
        ),
        (
            "Mistral of transformers 5",
            with(
                &with(&mistral(), of_transformers5.clone()),
                json!({
                    "sliding_window": null, "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"},
                }),
            ),
        ),
        ("Qwen2 7B", with(&qwen2(), json!({"transformers_version": "4.41.2"}))),
        ("Qwen2.5 7B", qwen2()),
        (
            "Qwen2.5 0.5B",
            with(
                &qwen2(),
                json!({
                    "hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 21, "num_attention_heads": 14,
                    "num_hidden_layers": 24, "num_key_value_heads": 2, "sliding_window": 32768,
                    "tie_word_embeddings": true, "vocab_size": 151_936,
                }),
            ),
        ),
        (
            "DeepSeek R1 Distill Qwen 1.5B",
            with(
                &qwen2(),
                json!({
                    "use_mrope": false, "max_window_layers": 21, "rope_theta": 10000, "sliding_window": 4096,
                }),
            ),
        ),
        (
            "Qwen2 of transformers 5",
            with(
                &with(&qwen2(), of_transformers5),
                json!({
                    "layer_types": vec!["full_attention"; 28], "sliding_window": null,
                    "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"},
                }),
            ),
        ),
    ];
    for (name, config) in models {
        open(&config).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (name, config) in published() {
        open(&config).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert_eq!(open(&mistral()).unwrap().block.attention.window, Some(4096));
    assert_eq!(open(&mistral()).unwrap().context_length, 32768);
    assert_eq!(open(&qwen2()).unwrap().context_length, 32768);
    assert!(matches!(open(&llama3).unwrap().block.rotary.scaling, RopeScaling::Llama3 { .. }));
}

/// What transformers 4 wrote of the defaults of all models, and what trainers and converters leave.
#[test]
fn keys_that_change_no_number_are_taken() {
    let keys = json!({
        "_attn_implementation_autoset": true, "_commit_hash": "x", "add_cross_attention": false,
        "bad_words_ids": null, "begin_suppress_tokens": null, "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": null, "decoder_start_token_id": null, "diversity_penalty": 0.0,
        "do_sample": false, "early_stopping": false, "encoder_no_repeat_ngram_size": 0,
        "exponential_decay_length_penalty": null, "finetuning_task": null, "forced_bos_token_id": null,
        "forced_eos_token_id": null, "id2label": {"0": "LABEL_0"}, "is_decoder": false,
        "is_encoder_decoder": false, "label2id": {"LABEL_0": 0}, "length_penalty": 1.0, "max_length": 20,
        "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
        "num_return_sequences": 1, "output_attentions": false, "output_hidden_states": false,
        "output_scores": false, "prefix": null, "problem_type": null, "pruned_heads": {},
        "remove_invalid_values": false, "repetition_penalty": 1.0, "return_dict": true,
        "return_dict_in_generate": false, "sep_token_id": null, "suppress_tokens": null,
        "task_specific_params": null, "temperature": 1.0, "tf_legacy_loss": false,
        "tie_encoder_decoder": false, "tokenizer_class": null, "top_k": 50, "top_p": 1.0, "torchscript": false,
        "typical_p": 1.0, "use_bfloat16": false, "quantization_config": null, "partial_rotary_factor": 1,
        "embedding_multiplier": 1.0, "logits_scaling": 1, "attn_logit_softcapping": null,
        "final_logit_softcapping": null, "num_experts": 0, "classifier_dropout": 0.1, "loss_type": "ForCausalLM",
        "a_key_that_nobody_set": null, "use_flash_attn": true, "model_max_length": 4096,
    });
    for base in [llama(), mistral(), qwen2()] {
        let plain = open(&base).unwrap();
        for (key, value) in keys.as_object().unwrap() {
            let found = open(&with(&base, json!({key: value})));
            assert_eq!(found.as_ref(), Ok(&plain), "{key}");
        }
        assert_eq!(open(&with(&base, keys.clone())), Ok(plain));
    }
}

fn refused(base: &Value, more: Value, what: &str) {
    match open(&with(base, more.clone())) {
        Ok(_) => panic!("{more} is taken"),
        Err(error) => {
            assert!(error.contains(what), "`{error}` does not say `{what}`");
            assert!(error.starts_with("config.json") && error.contains("; ") && error.len() < 400, "{error}");
        }
    }
}

#[test]
fn every_other_key_is_refused_by_name() {
    for base in [llama(), mistral(), qwen2()] {
        for (key, value) in [
            ("attention_multiplier", json!(0.015_625)),
            ("attn_logit_softcapping", json!(50.0)),
            ("clip_qkv", json!(8.0)),
            ("dual_chunk_attention_config", json!({"chunk_size": 262_144})),
            ("embedding_multiplier", json!(12.0)),
            ("final_logit_softcapping", json!(30.0)),
            ("is_causal", json!(false)),
            ("layer_norm_eps", json!(1e-5)),
            ("logit_scale", json!(0.0625)),
            ("logits_scaling", json!(8.0)),
            ("mlp_bias", json!(true)),
            ("no_rope_layers", json!([1, 1, 0])),
            ("num_experts", json!(8)),
            ("partial_rotary_factor", json!(0.5)),
            ("pruned_heads", json!({"1": [0]})),
            ("query_pre_attn_scalar", json!(256)),
            ("residual_multiplier", json!(0.22)),
            ("rope_interleaved", json!(true)),
            ("use_qk_norm", json!(true)),
        ] {
            refused(&base, json!({key: value}), &format!("`{key}`"));
        }
        // Keys that nobody has thought of yet, with values of all kinds.
        for i in 0..200u32 {
            let key = format!("key_{:x}", i.wrapping_mul(0x9e37_79b9));
            let values = [json!(i), json!(0.5), json!(true), json!("x"), json!([i]), json!({"x": i})];
            refused(&base, json!({&key: values[i as usize % 6]}), &format!("`{key}`"));
        }
        refused(&base, json!({"k".repeat(10_000): 1}), &"k".repeat(80));
        refused(
            &base,
            json!({"quantization_config": {"quant_method": "awq", "bits": 4}}),
            "quantised with awq",
        );
        refused(&base, json!({"quantization_config": {}}), "`quantization_config`");
        // A value of another type is not one that is not there.
        for key in ["head_dim", "num_key_value_heads", "rope_theta", "tie_word_embeddings", "sliding_window"]
        {
            refused(&base, json!({key: "1"}), &format!("no usable `{key}`"));
        }
        refused(&base, json!({"hidden_act": "gelu"}), "`hidden_act` is `gelu`");
        assert!(open(&with(&base, json!({"hidden_act": "swish"}))).is_ok());
    }
    refused(&llama(), json!({"attention_bias": true}), "`attention_bias` is true");
    refused(&mistral(), json!({"attention_bias": true}), "`attention_bias` is true");
}

#[test]
fn the_kind_is_what_both_keys_say() {
    let by_type = open(&with(&mistral(), json!({"architectures": []}))).unwrap();
    assert_eq!(by_type.architecture, "mistral");
    assert!(open(&with(&qwen2(), json!({"model_type": []}))).is_ok());
    // Of the three kinds the class decides.
    let by_class = open(&with(&qwen2(), json!({"model_type": "llama"}))).unwrap();
    assert_eq!(by_class.architecture, "qwen2");
    refused(
        &llama(),
        json!({"model_type": "granite"}),
        "says `LlamaForCausalLM`, and `model_type` says `granite`",
    );
    refused(&llama(), json!({"architectures": ["PhiForCausalLM"]}), "the architecture is `PhiForCausalLM`");
    refused(&llama(), json!({"architectures": null, "model_type": "phi"}), "the `model_type` is `phi`");
    refused(
        &llama(),
        json!({"architectures": null, "model_type": null}),
        "neither `architectures` nor `model_type`",
    );
}

fn rope(base: Value, more: Value) -> (f64, RopeScaling) {
    let config = open(&with(&base, more.clone())).unwrap_or_else(|error| panic!("{more}: {error}"));
    (config.block.rotary.base, config.block.rotary.scaling)
}

/// transformers 5: an object wins over a `rope_theta` beside it; an empty one is none.
#[test]
fn rope_parameters_win_over_what_is_left_of_older_keys() {
    let plain = json!({"rope_type": "default", "rope_theta": 5e5});
    let linear = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5});
    let (stretched, none) = (RopeScaling::Linear(4.0), RopeScaling::None);
    for (more, want) in [
        (json!({"rope_parameters": plain}), (5e5, none.clone())),
        (json!({"rope_parameters": plain, "rope_theta": []}), (5e5, none.clone())),
        (json!({"rope_parameters": linear, "rope_scaling": {}}), (5e5, stretched.clone())),
        (json!({"rope_parameters": linear, "rope_scaling": null}), (5e5, stretched.clone())),
        (
            json!({"rope_parameters": linear, "rope_scaling": {"type": "linear", "factor": 4}}),
            (5e5, stretched.clone()),
        ),
        (json!({"rope_parameters": {"rope_type": "linear", "factor": 4}}), (1e4, stretched.clone())),
        (json!({"rope_parameters": {}, "rope_theta": []}), (1e4, none.clone())),
        (json!({"rope_parameters": {"rope_theta": 5e5}}), (5e5, none.clone())),
        (
            json!({"rope_parameters": {"full_attention": linear, "sliding_attention": linear}}),
            (5e5, stretched.clone()),
        ),
        (json!({"rope_parameters": {"full_attention": plain}}), (5e5, none.clone())),
        (json!({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4}}), (1e4, stretched)),
        (json!({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 1.0}}), (1e4, none)),
    ] {
        assert_eq!(rope(llama(), more.clone()), want, "{more}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn other_rope_parameters_are_refused_by_name() {
    let scaled = |more: Value| json!({"rope_scaling": more});
    for kind in ["dynamic", "mrope", "proportional"] {
        for key in ["rope_type", "type"] {
            refused(
                &llama(),
                scaled(json!({key: kind, "factor": 4.0})),
                &format!("rope scaling `{kind}`; `default`, `linear`"),
            );
        }
    }
    for (more, what) in [
        (json!({"rope_type": "yarn"}), "rope scaling `yarn` has no usable `factor`"),
        (json!({"rope_type": "yarn", "factor": 4, "mscale": 1.0}), "`rope_scaling.mscale`"),
        (json!({"rope_type": "yarn", "factor": 4, "beta_fast": 1}), "the rope scaling is out of bounds"),
        (
            json!({"rope_type": "longrope", "long_factor": [1.0]}),
            "rope scaling `longrope` has no usable `short_factor`",
        ),
        (
            json!({"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}),
            "the rope scaling is out of bounds",
        ),
        (
            json!({"type": "su", "long_factor": vec![1.0; 64], "short_factor": vec![0.0; 64]}),
            "the rope scaling is out of bounds",
        ),
    ] {
        let json = with(&llama(), scaled(more));
        let error = open(&json).unwrap_err();
        assert!(error.contains(what), "`{error}` does not say `{what}`");
    }
    refused(&llama(), scaled(json!({"factor": 4.0})), "a `factor` and no `rope_type`");
    refused(&llama(), scaled(json!({"rope_type": "default", "factor": 4.0})), "`rope_scaling.factor`");
    refused(
        &llama(),
        scaled(json!({"rope_type": "default", "mrope_section": [1]})),
        "`rope_scaling.mrope_section`",
    );
    refused(
        &llama(),
        scaled(json!({"rope_type": "linear", "type": "default", "factor": 4.0})),
        "`linear` and `default` at once",
    );
    refused(
        &llama(),
        scaled(json!({"rope_type": "linear", "factor": 4.0, "beta_fast": 32})),
        "`rope_scaling.beta_fast`",
    );
    refused(&llama(), scaled(json!({"rope_type": "linear"})), "rope scaling `linear` has no usable `factor`");
    refused(&llama(), scaled(json!("linear")), "rope_scaling is not an object");
    let parameters = |more: Value| json!({"rope_parameters": more});
    refused(
        &llama(),
        parameters(json!({"rope_theta": 5e5, "partial_rotary_factor": 0.5})),
        "`rope_parameters.partial_rotary_factor` is 0.5",
    );
    let (slow, fast) = (json!({"rope_theta": 1e6}), json!({"rope_theta": 1e4}));
    refused(
        &llama(),
        parameters(json!({"full_attention": slow, "sliding_attention": fast})),
        "not the same for all kinds",
    );
    let both =
        json!({"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"type": "linear", "factor": 4.0}});
    refused(&llama(), both, "say different things");
}

/// As in Llamas that were Phi-3. transformers 5.0 (`standardize_rope_params`) takes it for `llama3`, and 4.57 the one within.
#[test]
fn an_original_context_beside_the_scaling_is_that_of_it() {
    let key = "original_max_position_embeddings";
    let plain = open(&llama()).unwrap();
    assert_eq!(open(&with(&llama(), json!({key: 1024}))), Ok(plain.clone()));
    let linear = json!({"rope_scaling": {"type": "linear", "factor": 4.0}});
    let found = open(&with(&with(&llama(), linear.clone()), json!({key: 1024})));
    assert_eq!(found, open(&with(&llama(), linear)));
    let original =
        |scaling: Value, more: Value| match rope(with(&llama(), json!({"rope_scaling": scaling})), more).1 {
            RopeScaling::Llama3 { original_context, .. } => original_context,
            other => panic!("{other:?}"),
        };
    let within = llama3_rope();
    let without = with(&within, json!({key: []}));
    assert_eq!(original(within.clone(), json!({key: 8192})), 8192.0);
    assert_eq!(original(without.clone(), json!({key: 1024})), 1024.0);
    assert_eq!(original(without, json!({})), 4096.0);
    refused(
        &llama(),
        json!({"rope_scaling": within, key: 4096}),
        "`rope_scaling.original_max_position_embeddings` is 8192, and `original_max_position_embeddings` beside it is 4096",
    );
    refused(&llama(), json!({key: "4096"}), "no usable `original_max_position_embeddings`");
}

/// The defaults of `LlamaConfig`, `MistralConfig` and `Qwen2Config` in transformers 4.57 and 5.0.
#[test]
fn what_config_json_leaves_out_is_what_the_family_s_class_says() {
    let none = json!({"sliding_window": null, "rms_norm_eps": [], "max_position_embeddings": [], "num_key_value_heads": []});
    for (base, positions, kv_heads) in [(llama(), 2048, 32), (mistral(), 131_072, 8), (qwen2(), 32768, 32)] {
        let found = open(&with(&with(&base, json!({"num_attention_heads": 32})), none.clone())).unwrap();
        let of_block = (found.block.attention.kv_heads, found.block.norm.eps);
        assert_eq!((found.context_length, of_block), (positions, (kv_heads, 1e-6)));
        // transformers does not get far with these.
        for key in ["rms_norm_eps", "max_position_embeddings"] {
            refused(&base, json!({key: null}), &format!("no usable `{key}`"));
        }
    }
    assert_eq!(
        open(&with(&mistral(), json!({"num_key_value_heads": null}))).unwrap().block.attention.kv_heads,
        32
    );
}

/// Each layer has the window that transformers gives it. A Llama's class knows none, so it stays within the one that is written down.
#[test]
fn a_window_is_that_of_the_layers_that_slide() {
    let windows = |base: &Value, more: Value| -> Vec<Option<u32>> {
        let config = open(&with(base, more)).unwrap();
        assert_eq!(config.context_length, 32768);
        (0..config.layers).map(|layer| config.block(layer).attention.window).collect()
    };
    assert_eq!(windows(&mistral(), json!({})), [Some(4096); 32]);
    assert_eq!(windows(&mistral(), json!({"sliding_window": []})), [Some(4096); 32]);
    assert_eq!(windows(&mistral(), json!({"sliding_window": null})), [None; 32]);
    // One as long as the context does nothing.
    assert_eq!(windows(&mistral(), json!({"sliding_window": 32768})), [None; 32]);
    refused(&mistral(), json!({"layer_types": vec!["full_attention"; 32]}), "`sliding_window` is for all");
    let on = json!({"use_sliding_window": true, "sliding_window": 1024});
    assert_eq!(windows(&with(&qwen2(), on.clone()), json!({})), [None; 28]);
    let mut last = [None; 28];
    last[27] = Some(1024);
    assert_eq!(windows(&with(&qwen2(), on.clone()), json!({"max_window_layers": 27})), last);
    assert_eq!(windows(&with(&qwen2(), on.clone()), json!({"max_window_layers": 0})), [Some(1024); 28]);
    let mut types = vec!["full_attention"; 28];
    let none = json!({"max_window_layers": 0, "layer_types": types});
    assert_eq!(windows(&with(&qwen2(), on.clone()), none), [None; 28]);
    types[27] = "sliding_attention";
    assert_eq!(windows(&with(&qwen2(), on), json!({"layer_types": types})), last);
    assert_eq!(windows(&qwen2(), json!({"layer_types": types})), [None; 28]);
    types[3] = "chunked_attention";
    refused(&qwen2(), json!({"layer_types": types}), "`layer_types` has \"chunked_attention\"");
    refused(&qwen2(), json!({"layer_types": ["full_attention"]}), "no usable `layer_types`");
    let context = |more: Value| open(&with(&llama(), more)).unwrap().context_length;
    assert_eq!(context(json!({"sliding_window": 1024})), 1024);
    assert_eq!(context(json!({"sliding_window": 1024, "use_sliding_window": false})), 4096);
    // Longer sequences are not trained.
    assert_eq!(open(&mistral()).unwrap().trained_length_max(), 4096);
}

fn gemma3() -> Value {
    json!({
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": null, "rope_theta": 1_000_000, "sliding_window": 512, "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262_144,
    })
}

/// As Gemma 3 1B has it on the hub, and as transformers 5 writes it.
#[test]
fn a_gemma_3_alternates() {
    let config = open(&gemma3()).unwrap();
    for layer in 0..26 {
        let block = config.block(layer);
        let whole = layer % 6 == 5;
        assert_eq!(block.attention.window, (!whole).then_some(512), "{layer}");
        assert_eq!(block.rotary.base, if whole { 1e6 } else { 1e4 }, "{layer}");
        assert!(block.post_norms && block.norm.plus_one && block.attention.qk_norm);
        assert_eq!(block.attention.scale, Some(0.0625));
    }
    assert_eq!(config.embedding_scale, Some(1152f32.sqrt()));
    let newer = json!({
        "rope_theta": [], "rope_local_base_freq": [], "rope_scaling": [], "sliding_window_pattern": [],
        "_sliding_window_pattern": 6, "use_bidirectional_attention": false,
        "layer_types": (1..27).map(|i| if i % 6 == 0 { "full_attention" } else { "sliding_attention" }).collect::<Vec<_>>(),
        "rope_parameters": {
            "full_attention": {"rope_theta": 1_000_000, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10000, "rope_type": "default"},
        },
    });
    assert_eq!(open(&with(&gemma3(), newer)).as_ref(), Ok(&config));
    // As of 4B: only layers that see everything are stretched.
    let stretched =
        open(&with(&gemma3(), json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}))).unwrap();
    assert_eq!(stretched.block(5).rotary.scaling, RopeScaling::Linear(8.0));
    assert_eq!(stretched.block(0), config.block(0));
    assert_eq!(untrained(&config), Some("norms queries and keys"));
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        refused(&gemma3(), json!({key: 30.0}), &format!("`{key}`"));
    }
    refused(&gemma3(), json!({"use_bidirectional_attention": true}), "`use_bidirectional_attention`");
    refused(&gemma3(), json!({"hidden_activation": "gelu"}), "`hidden_activation` is `gelu`");
    refused(&gemma3(), json!({"rope_parameters": {"rope_theta": 1e6}}), "does not say which layers");
    refused(&gemma3(), json!({"query_pre_attn_scalar": -1}), "not scaled by a number above 0");
}

/// As Phi-3 mini has it on the hub, with a context of 4K and of 128K.
#[test]
fn a_phi_3_is_taken() {
    let mini = json!({
        "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"], "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1, "embd_pdrop": 0.0,
        "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
        "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
        "sliding_window": 2047, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.2", "use_cache": true, "attention_bias": false, "vocab_size": 32064,
    });
    let config = open(&mini).unwrap();
    assert_eq!((config.block.attention.window, config.other_blocks.len()), (Some(2047), 0));
    assert_eq!(untrained(&config), Some("has matrices that are one tensor"));
    let (long, short) = (vec![1.5; 48], vec![1.05; 48]);
    let longer = json!({
        "max_position_embeddings": 131_072, "sliding_window": 262_144,
        "rope_scaling": {"long_factor": long, "short_factor": short, "type": "longrope"},
    });
    let RopeScaling::Divided { by, magnitude } = rope(mini.clone(), longer.clone()).1 else {
        panic!("not longrope")
    };
    // The root of 1 + ln 32 / ln 4096.
    assert!((f64::from(magnitude) - 1.190_238).abs() < 1e-6, "{magnitude}");
    assert_eq!(*by, vec![1.5; 48]);
    let shorter = json!({"max_position_embeddings": 4096});
    let RopeScaling::Divided { by, magnitude } = rope(with(&mini, longer), shorter).1 else {
        panic!("not longrope")
    };
    assert_eq!((magnitude, &*by), (1.0, &[1.05; 48][..]));
    refused(&mini, json!({"partial_rotary_factor": 0.75}), "`partial_rotary_factor` is 0.75");
}
