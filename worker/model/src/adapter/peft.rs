//! Folders in the form of Hugging Face's PEFT library: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use dunlin_kernels::Packer;
use serde_json::{Value, json};

use super::low_rank::{AdaptedRows, LayerAdapter, LowRank, in_file_order};
use super::modules::{self, Module};
use super::peft_keys;
use super::shape::AdapterShape;
use super::strangers::{self, PREFIX};
use crate::config::ModelConfig;
use crate::error::{ModelError, excerpt};
use crate::families::parts_of;
use crate::file::{Stored, side_json, widen};
use crate::safetensors::{self, SafeTensor};
use crate::source::{ByteSource, FileSource, LocalFolder};
use crate::spec::Projection;

/// The file with the configuration.
pub const CONFIG: &str = "adapter_config.json";
/// The file with the weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The name of the rows of a prompt.
pub const PROMPT: &str = "prompt_embeddings";
/// Widest that is read.
const RANK_MAX: usize = 4096;
/// Most rows of a prompt.
const PROMPT_MAX: usize = 1 << 14;

/// The name of one of both thin matrices, `lora_A` or `lora_B`.
#[must_use]
pub fn lora_name(layer: u32, which: Projection, part: &str) -> String {
    tensor_name(layer, which.module(), part)
}

fn tensor_name(layer: u32, module: &str, part: &str) -> String {
    format!("{PREFIX}model.layers.{layer}.{module}.{part}.weight")
}

/// What PEFT needs to know of an adapter of the model at `base`.
#[must_use]
pub fn config_json(shape: &AdapterShape, config: &ModelConfig, base: &str) -> Value {
    let mut out = json!({"base_model_name_or_path": base, "task_type": "CAUSAL_LM", "inference_mode": true, "revision": null});
    let own = match shape {
        AdapterShape::Lora(lora) => {
            let modules: Vec<&str> = lora.targets.iter().map(|t| t.module()).collect();
            let modules: Vec<&str> = modules.iter().filter_map(|m| m.rsplit('.').next()).collect();
            json!({
                "peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha, "target_modules": modules,
                "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": false, "init_lora_weights": true,
                "modules_to_save": null, "layers_to_transform": null, "use_dora": false, "use_rslora": false,
            })
        }
        AdapterShape::Prompt(prompt) => json!({
            "peft_type": "PROMPT_TUNING", "num_virtual_tokens": prompt.tokens, "token_dim": config.hidden,
            "num_transformer_submodules": 1, "num_attention_heads": config.block.attention.heads, "num_layers": config.layers,
            "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": null, "tokenizer_name_or_path": null,
        }),
    };
    if let (Value::Object(out), Value::Object(own)) = (&mut out, own) {
        out.extend(own);
    }
    out
}

/// An adapter, ready to be used with its model.
pub struct Adapter {
    /// Rows before every sequence: `prompt_rows * hidden` values.
    prompt: Vec<f32>,
    hidden: usize,
    layers: Vec<LayerAdapter>,
}

impl Adapter {
    /// Reads the adapter in `folder` for the model of `config`. Every tensor of it must have a place: what is not known here is refused, not
    /// passed over.
    ///
    /// # Errors
    /// When it cannot be read, is not sound, is of a kind that is not known here, or was made for another model.
    pub fn open(folder: &Path, config: &ModelConfig) -> Result<Self, ModelError> {
        let (json, mut file) = (side_json(&LocalFolder(folder.to_owned()), CONFIG)?, Weights::open(folder)?);
        let mut adapter = Self {
            prompt: Vec::new(),
            hidden: config.hidden,
            layers: (0..config.layers).map(|_| LayerAdapter::default()).collect(),
        };
        match file.kind(&json)? {
            Kind::Lora => {
                let said = Said::read(&json).map_err(|what| file.wrong(what))?;
                for (layer, own) in adapter.layers.iter_mut().enumerate() {
                    for module in modules::of(config) {
                        file.pairs(config, layer as u32, &module, &said, own)?;
                    }
                }
            }
            Kind::Prompt => adapter.prompt = file.prompt(config, &json)?,
        }
        if let Some(name) = file.tensors.keys().next() {
            let what = format!("tensor `{}` has no place: {}", excerpt(name), strangers::why(name, config));
            return Err(file.wrong(what));
        }
        if adapter.bytes() == 0 {
            return Err(file.wrong("it has no tensors: use a complete copy of it".to_owned()));
        }
        Ok(adapter)
    }

    /// Rows before every sequence that the adapter in `folder` has. No other weights are read: this is for those who do not compute.
    ///
    /// # Errors
    /// As [`Adapter::open`], as far as it looks.
    pub fn prompt_rows_in(folder: &Path, config: &ModelConfig) -> Result<usize, ModelError> {
        let (json, mut file) = (side_json(&LocalFolder(folder.to_owned()), CONFIG)?, Weights::open(folder)?);
        match file.kind(&json)? {
            Kind::Lora => Ok(0),
            Kind::Prompt => Ok(file.prompt(config, &json)?.len() / config.hidden),
        }
    }

    /// Memory that the adapter in `folder` takes, at most, by the header of its file.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn bytes_in(folder: &Path) -> Result<u64, ModelError> {
        let file = Weights::open(folder)?;
        let bytes = file.tensors.iter().map(|(name, tensor)| match tensor.shape.as_slice() {
            [first, rest @ ..] => {
                // Every part of a module has the first matrix, and its own rows of the second.
                let parts = parts_of(name);
                let rows = if name.contains("lora_A") { first.saturating_mul(parts) } else { *first };
                let rows = rows.next_multiple_of(Packer::ROWS).saturating_add((parts - 1) * Packer::ROWS);
                let width = rest.iter().fold(size_of::<f32>() as u64, |all, n| all.saturating_mul(*n as u64));
                width.saturating_mul(rows as u64)
            }
            [] => 0,
        });
        Ok(bytes.fold(0, u64::saturating_add))
    }

    /// Rows before every sequence.
    #[must_use]
    pub fn prompt_rows(&self) -> usize {
        self.prompt.len() / self.hidden
    }

    /// The tokens that stand for them, behind the vocabulary.
    #[must_use]
    pub fn prompt_tokens(&self, config: &ModelConfig) -> Range<u32> {
        let first = config.vocab as u32;
        first..first + self.prompt_rows() as u32
    }

    /// Row `i` of them.
    #[must_use]
    pub fn prompt_row(&self, i: usize) -> Option<&[f32]> {
        self.prompt.chunks_exact(self.hidden).nth(i)
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.prompt.len() * size_of::<f32>() + self.layers.iter().map(LayerAdapter::bytes).sum::<usize>()
    }

    /// By layer what it adds there.
    #[must_use]
    pub fn layers(&self) -> &[LayerAdapter] {
        &self.layers
    }

    /// What it adds in block `layer` to some rows.
    #[must_use]
    pub fn for_rows(&self, layer: u32, rows: Range<usize>) -> Option<AdaptedRows<'_>> {
        Some(AdaptedRows { rows, adapter: self.layers.get(layer as usize)? })
    }
}

/// What PEFT calls its type.
enum Kind {
    Lora,
    Prompt,
}

/// What its configuration says of a LoRA.
struct Said {
    alpha: f32,
    root: bool,
    /// Modules that are changed; none when they are said in another way than by their names.
    modules: Option<Vec<String>>,
}

impl Said {
    fn read(json: &Value) -> Result<Self, String> {
        let unusable = |key: &str| format!("it has no usable `{key}`");
        let alpha = json["lora_alpha"].as_f64().filter(|v| v.is_finite());
        let alpha = alpha.ok_or_else(|| unusable("lora_alpha"))?;
        let flag = |key: &str| match &json[key] {
            Value::Null => Ok(false),
            value => value.as_bool().ok_or_else(|| unusable(key)),
        };
        let modules = json["target_modules"].as_array();
        let modules =
            modules.map(|list| list.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect());
        Ok(Self { alpha: alpha as f32, root: flag("use_rslora")?, modules })
    }

    /// By what a product of this rank counts.
    fn scale(&self, rank: usize) -> f32 {
        self.alpha / if self.root { (rank as f32).sqrt() } else { rank as f32 }
    }

    /// Is this module changed? PEFT leaves out tensors of the others.
    fn names(&self, layer: u32, module: &str) -> bool {
        let path = format!("model.layers.{layer}.{module}");
        let ends = |name: &String| path.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
        self.modules.as_ref().is_none_or(|names| names.iter().any(|name| *name == path || ends(name)))
    }
}

/// The tensors that nobody has asked for yet.
struct Weights {
    folder: String,
    source: FileSource,
    tensors: BTreeMap<String, SafeTensor>,
}

impl Weights {
    fn open(folder: &Path) -> Result<Self, ModelError> {
        let place = folder.display().to_string();
        if !folder.join(WEIGHTS).exists() && folder.exists() {
            let what = if folder.join("adapter_model.bin").exists() {
                "it has adapter_model.bin, and no safetensors: save it with PEFT's `save_pretrained`"
                    .to_owned()
            } else {
                format!("it has no {WEIGHTS}: use a complete copy of it")
            };
            return Err(ModelError::Adapter { folder: place, what });
        }
        let source = FileSource::open(&folder.join(WEIGHTS))?;
        let tensors = safetensors::read_header(&source)?;
        Ok(Self { folder: place, source, tensors })
    }

    fn wrong(&self, what: String) -> ModelError {
        ModelError::Adapter { folder: self.folder.clone(), what }
    }

    fn kind(&self, json: &Value) -> Result<Kind, ModelError> {
        let kind = match json["peft_type"].as_str() {
            Some("LORA") => Kind::Lora,
            Some("PROMPT_TUNING") => Kind::Prompt,
            other => {
                let kind = excerpt(other.unwrap_or("none"));
                return Err(self.wrong(format!("its peft_type is {kind}, not LORA or PROMPT_TUNING")));
            }
        };
        peft_keys::check(json, matches!(kind, Kind::Lora)).map_err(|what| self.wrong(what))?;
        Ok(kind)
    }

    /// The rows of a prompt.
    fn prompt(&mut self, config: &ModelConfig, json: &Value) -> Result<Vec<f32>, ModelError> {
        let rows = self.rows(PROMPT, config.hidden, PROMPT_MAX)?;
        let (rows, values) = rows.ok_or_else(|| self.wrong(format!("it has no tensor `{PROMPT}`")))?;
        let said = &json["num_virtual_tokens"];
        if !said.is_null() && said.as_u64() != Some(rows as u64) {
            let said = excerpt(&said.to_string()).to_owned();
            return Err(
                self.wrong(format!("its `num_virtual_tokens` is {said}, and `{PROMPT}` has {rows} rows"))
            );
        }
        Ok(values)
    }

    /// A matrix with rows of `width` values, up to `rows_max` of them; none if it is not there.
    fn rows(
        &mut self,
        name: &str,
        width: usize,
        rows_max: usize,
    ) -> Result<Option<(usize, Vec<f32>)>, ModelError> {
        let Some(tensor) = self.tensors.remove(name) else { return Ok(None) };
        let &[rows, columns] = tensor.shape.as_slice() else {
            return Err(self.wrong(format!("tensor `{name}` is {:?}, not a matrix", tensor.shape)));
        };
        if columns != width || rows == 0 || rows > rows_max {
            return Err(self.wrong(format!(
                "tensor `{name}` is {rows} x {columns}, the model needs up to {rows_max} rows of {width}"
            )));
        }
        let mut bytes = vec![0; tensor.bytes];
        self.source
            .read_at(tensor.offset, &mut bytes)
            .map_err(|source| ModelError::Read { what: format!("`{name}` of {}", self.folder), source })?;
        let mut values = vec![0.0; rows * width];
        widen(name, Stored::Plain(tensor.dtype), &bytes, &mut values)?;
        if !dunlin_kernels::all_finite(&values) {
            return Err(self.wrong(format!("tensor `{name}` has values that are not finite")));
        }
        Ok(Some((rows, values)))
    }

    /// Both thin matrices beside a module of the model, for each of its parts: all of them have the same inputs, and each its own rows of what comes out.
    fn pairs(
        &mut self,
        config: &ModelConfig,
        layer: u32,
        module: &Module,
        said: &Said,
        into: &mut LayerAdapter,
    ) -> Result<(), ModelError> {
        let Module { name, parts } = *module;
        let n = parts.iter().map(|&part| config.matrix(part).0).sum();
        let (name_a, name_b) = (tensor_name(layer, name, "lora_A"), tensor_name(layer, name, "lora_B"));
        let (_, k) = config.matrix(parts[0]);
        let Some((rank, a)) = self.rows(&name_a, k, RANK_MAX)? else {
            // A lonely B is found at the end, as a tensor without a place.
            return Ok(());
        };
        if !said.names(layer, name) {
            let what = format!("it has tensor `{name_a}`, and its `target_modules` do not name the module");
            return Err(self.wrong(what));
        }
        let Some((rows, b)) = self.rows(&name_b, rank, n)? else {
            return Err(self.wrong(format!("it has no tensor `{name_b}`")));
        };
        if rows != n {
            return Err(self.wrong(format!("tensor `{name_b}` has {rows} rows, the model needs {n}")));
        }
        let (mut rest, mut ordered) = (b.as_slice(), Vec::new());
        for which in parts {
            let (n, k) = config.matrix(*which);
            let (own, behind) = rest.split_at(n * rank);
            rest = behind;
            in_file_order(config, *which, own, rank, &mut ordered);
            let pair = LowRank::new((n, k, rank), &a, &ordered, said.scale(rank));
            if into.pairs[*which as usize].replace(pair).is_some() {
                let what = format!(
                    "tensor `{name_a}` is beside a matrix that another one is beside, too: use the adapter as PEFT saved it"
                );
                return Err(self.wrong(what));
            }
        }
        Ok(())
    }
}
