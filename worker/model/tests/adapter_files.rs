//! Adapters as PEFT and others save them: what could change numbers is honoured or refused by name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};

use dunlin_model::adapter::{AdapterShape, LoraShape, Projection, PromptShape, random};
use dunlin_model::{Adapter, ModelConfig, ModelFile};
use serde_json::{Value, json};
use support::model_folder::ModelFolder;

/// An adapter beside its model.
struct Files {
    model: ModelFolder,
    config: ModelConfig,
}

impl Files {
    fn new(shape: &AdapterShape) -> Self {
        let model = ModelFolder::new();
        let config = model.open().unwrap().config().clone();
        random::write(&model.path().join("adapter"), &config, shape, 1).unwrap();
        Self { model, config }
    }

    fn path(&self) -> PathBuf {
        self.model.path().join("adapter")
    }

    /// Opens it with these keys set.
    fn with(&self, more: Value) -> Result<Adapter, String> {
        let path = self.path().join("adapter_config.json");
        let sound = std::fs::read(&path).unwrap();
        let mut json: Value = serde_json::from_slice(&sound).unwrap();
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        std::fs::write(&path, json.to_string()).unwrap();
        let opened = self.open();
        std::fs::write(&path, sound).unwrap();
        opened
    }

    fn open(&self) -> Result<Adapter, String> {
        Adapter::open(&self.path(), &self.config).map_err(|error| {
            assert!(!error.is_unreachable(), "{error}");
            let message = error.to_string();
            assert!(message.len() < 600, "{message}");
            message
        })
    }

    /// Opens it with `old` in all names of tensors replaced.
    fn renamed(&self, old: &str, new: &str) -> Result<Adapter, String> {
        // The header grows or shrinks, the offsets are of what follows it.
        let path = self.path().join("adapter_model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = String::from_utf8(bytes[8..end].to_vec()).unwrap().replace(old, new);
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(&path, [&length[..], header.as_bytes(), &bytes[end..]].concat()).unwrap();
        self.open()
    }
}

fn lora() -> AdapterShape {
    let targets = vec![Projection::Query, Projection::Value];
    AdapterShape::Lora(LoraShape { rank: 2, alpha: 4.0, targets })
}

#[track_caller]
fn refused(result: Result<Adapter, String>, what: &str) {
    match result {
        Ok(_) => panic!("taken, but it should be refused for: {what}"),
        Err(message) => assert!(message.contains(what), "`{message}` does not say `{what}`"),
    }
}

#[test]
fn what_changes_the_model_is_refused_with_what_to_do() {
    let files = Files::new(&lora());
    for how in ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "something"] {
        let result = files.with(json!({"init_lora_weights": how}));
        refused(
            result,
            &format!("its `init_lora_weights` is \"{how}\", which changes the weights of the model"),
        );
        let result = files.with(json!({"init_lora_weights": how}));
        refused(result, "path_initial_model_for_weight_conversion");
    }
    for how in [json!(true), json!(false), Value::Null, json!("gaussian"), json!("orthogonal"), json!("eva")]
    {
        assert!(files.with(json!({"init_lora_weights": how})).is_ok(), "{how}");
    }
}

#[test]
fn every_key_is_known_or_refused_by_name() {
    let files = Files::new(&lora());
    for (key, value) in [
        ("alora_invocation_tokens", json!([1])),
        ("alpha_pattern", json!({"q_proj": 8})),
        ("arrow_config", json!({"top_k": 2})),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("lora_bias", json!(true)),
        ("megatron_config", json!({"x": 1})),
        ("modules_to_save", json!(["lm_head"])),
        ("trainable_token_indices", json!([1, 2])),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("a_key_of_next_year", json!(0.5)),
        ("num_virtual_tokens", json!(4)),
    ] {
        refused(files.with(json!({key: value})), &format!("it has `{key}`, which is not known here"));
    }
    // What PEFT writes for all of these when nothing is asked for, and what only training reads.
    let keys = json!({
        "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
        "bias": "none", "corda_config": null, "ensure_weight_tying": false, "eva_config": null,
        "exclude_modules": null, "fan_in_fan_out": false, "layer_replication": null, "layers_pattern": null,
        "layers_to_transform": [0, 1], "loftq_config": {}, "lora_bias": false, "lora_dropout": 0.1,
        "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
        "peft_version": "0.18.1", "qalora_group_size": 16, "revision": "main", "target_parameters": null,
        "trainable_token_indices": null, "use_dora": false, "use_qalora": false, "use_rslora": true,
        "a_key_of_next_year": false,
    });
    assert!(files.with(keys).is_ok());
    let prompt = Files::new(&AdapterShape::Prompt(PromptShape { tokens: 3 }));
    assert_eq!(prompt.open().unwrap().prompt_rows(), 3);
    refused(
        prompt.with(json!({"num_virtual_tokens": 4})),
        "`num_virtual_tokens` is 4, and `prompt_embeddings` has 3 rows",
    );
    refused(prompt.with(json!({"num_transformer_submodules": 2})), "`num_transformer_submodules`");
    refused(prompt.with(json!({"r": 2})), "it has `r`");
}

#[test]
fn tensors_are_what_the_configuration_says() {
    let files = Files::new(&lora());
    refused(
        files.with(json!({"target_modules": ["k_proj", "v_proj"]})),
        "its `target_modules` do not name the module",
    );
    refused(files.with(json!({"target_modules": ["_proj"]})), "its `target_modules` do not name the module");
    for modules in
        [json!(["q_proj", "self_attn.v_proj"]), json!("all-linear"), json!(".*[qv]_proj"), Value::Null]
    {
        assert!(files.with(json!({"target_modules": modules})).is_ok(), "{modules}");
    }
    refused(files.with(json!({"use_rslora": "yes"})), "no usable `use_rslora`");
    refused(files.with(json!({"peft_type": "IA3"})), "its peft_type is IA3");
}

#[test]
fn a_tensor_without_a_place_is_explained() {
    let begin = "base_model.model.model.layers.1.self_attn.q_proj.";
    for (old, new, why) in [
        ("base_model.model.", "", "names of adapters begin with `base_model.model.model.layers.`"),
        (
            "model.model.layers",
            "model.layers",
            "of a model with a head begin with `base_model.model.model.layers.`",
        ),
        (".weight", ".default.weight", "it has the name of a model in training; save it with PEFT's"),
        ("layers.1.", "layers.7.", "the model has 2 layers, the adapter was made for one with more"),
        ("q_proj.", "qkv_proj.", "adapters are known beside self_attn.q_proj, self_attn.k_proj"),
        ("lora_B.weight", "lora_B.bias", "it has no tensor"),
        ("lora_A", "lora_magnitude_vector", "is a pair of `lora_A.weight` and `lora_B.weight`"),
        (
            begin,
            "base_model.model.lm_head.",
            "adapters of embeddings, norms and the output matrix are not known here",
        ),
    ] {
        refused(Files::new(&lora()).renamed(old, new), why);
    }
}

/// Of Phi-3, which has queries, keys and values in one module; parity.rs looks at the numbers.
#[test]
fn beside_a_module_and_a_part_of_it_there_is_one_adapter() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let model = ModelFolder::new();
    let config = ModelFile::open_path(&fixtures.join("phi3")).unwrap().config().clone();
    let files = Files { model, config };
    std::fs::create_dir(files.path()).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixtures.join("phi3-lora").join(name), files.path().join(name)).unwrap();
    }
    let bytes = files.open().unwrap().bytes() as u64;
    assert!(bytes <= Adapter::bytes_in(&files.path()).unwrap());
    let path = files.path().join("adapter_config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["target_modules"] = Value::Null;
    std::fs::write(&path, json.to_string()).unwrap();
    // Its output matrix has the shape of that of queries.
    refused(
        files.renamed("self_attn.o_proj", "self_attn.q_proj"),
        "beside a matrix that another one is beside",
    );
    assert!(files.renamed("self_attn.q_proj", "self_attn.o_proj").is_ok());
    refused(
        files.renamed("gate_up_proj", "gate_and_up"),
        "adapters are known beside self_attn.qkv_proj, mlp.gate_up_proj",
    );
}

#[test]
fn an_adapter_without_its_files_or_tensors_is_refused() {
    let files = Files::new(&lora());
    let weights = files.path().join("adapter_model.safetensors");
    std::fs::write(&weights, [&2u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    refused(files.open(), "it has no tensors");
    std::fs::remove_file(&weights).unwrap();
    refused(files.open(), "it has no adapter_model.safetensors");
    std::fs::write(files.path().join("adapter_model.bin"), "x").unwrap();
    refused(files.open(), "it has adapter_model.bin, and no safetensors");
    std::fs::remove_file(files.path().join("adapter_config.json")).unwrap();
    refused(files.open(), "has no adapter_config.json");
    let error = Adapter::open(Path::new("/no/such/folder"), &files.config).map(drop).unwrap_err();
    assert!(error.is_unreachable(), "{error}");
}
