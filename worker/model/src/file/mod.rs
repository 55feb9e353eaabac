//! A model on disk or on a server: one view on GGUF and safetensors.

mod gguf_config;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use dunlin_kernels::{Format, Matrix, Packer};
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::gguf;
use crate::safetensors::{self, Dtype};
use crate::source::{ByteSource, FileSource, Folder, LocalFolder};
use crate::tokenizer::{TokenFiles, Tokenizer};
use gguf_config::gguf_config;

/// tokenizer.json may not be longer than this.
const TOKENIZER_MAX: u64 = 64 << 20;
/// As above, config.json and tokenizer_config.json, which take many times their length in memory.
const CONFIG_MAX: u64 = 4 << 20;
/// Which file has which tensor.
const INDEX: &str = "model.safetensors.index.json";
/// As above, of that.
const INDEX_MAX: u64 = 64 << 20;
const SHARDS_MAX: usize = 4096;
/// Bytes of a matrix that are read at once, unless one panel of rows has more.
const PIECE_BYTES: usize = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Ggml(Format),
    Plain(Dtype),
}

struct Place {
    shape: Vec<usize>,
    stored: Stored,
    source: usize,
    offset: u64,
    bytes: usize,
}

enum Text {
    Gguf(BTreeMap<String, gguf::Value>),
    Folder { folder: Arc<dyn Folder>, config: Value },
}

/// An opened model: headers are read, weights are not.
pub struct ModelFile {
    config: ModelConfig,
    sources: Vec<Arc<dyn ByteSource>>,
    tensors: BTreeMap<String, Place>,
    text: Text,
    gguf_names: bool,
}

impl ModelFile {
    /// Opens a GGUF file or a folder with config.json and safetensors.
    ///
    /// # Errors
    /// When it cannot be read or is not sound.
    pub fn open_path(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            return Self::open_folder(Arc::new(LocalFolder(path.to_owned())));
        }
        Self::open(Arc::new(FileSource::open(path)?))
    }

    /// Opens a GGUF file, wherever it is; reads its header only.
    ///
    /// # Errors
    /// When it cannot be read or is not sound.
    pub fn open(source: Arc<dyn ByteSource>) -> Result<Self, ModelError> {
        let header = gguf::read_header(source.as_ref())?;
        let tied = !header.tensors.contains_key("output.weight");
        let config = gguf_config(&source.describe(), &header.values, &header.tensors, tied)?;
        let tensors = header.tensors.into_iter().map(|(name, t)| {
            (
                name,
                Place {
                    shape: t.shape,
                    stored: Stored::Ggml(t.format),
                    source: 0,
                    offset: t.offset,
                    bytes: t.bytes,
                },
            )
        });
        let tensors = tensors.collect();
        Ok(Self { config, sources: vec![source], tensors, text: Text::Gguf(header.values), gguf_names: true })
    }

    /// Opens a folder with config.json and safetensors, wherever it is; reads headers only.
    ///
    /// # Errors
    /// When it cannot be read or is not sound.
    pub fn open_folder(folder: Arc<dyn Folder>) -> Result<Self, ModelError> {
        let json = side_json(&*folder, "config.json")?;
        let mut config = safetensors::config(&format!("{}/config.json", folder.describe()), &json)?;
        let names = weight_files(&*folder)?;
        if names.is_empty() || names.len() > SHARDS_MAX {
            let what = format!("{} has {} safetensors files", folder.describe(), names.len());
            return Err(ModelError::Unsupported(what));
        }
        let mut sources: Vec<Arc<dyn ByteSource>> = Vec::new();
        let mut tensors = BTreeMap::new();
        for name in names {
            let file = open(&*folder, &name)?;
            for (name, t) in safetensors::read_header(file.as_ref())? {
                let (source, stored) = (sources.len(), Stored::Plain(t.dtype));
                let place = Place { shape: t.shape, stored, source, offset: t.offset, bytes: t.bytes };
                if tensors.contains_key(&name) {
                    let what = format!("it has tensor `{name}`, which another file of the folder has, too");
                    return Err(ModelError::Malformed { file: file.describe(), format: "safetensors", what });
                }
                tensors.insert(name, place);
            }
            sources.push(file);
        }
        config.tied |= !tensors.contains_key("lm_head.weight");
        let text = Text::Folder { folder, config: json };
        Ok(Self { config, sources, tensors, text, gguf_names: false })
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// When there is none that is known here.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let tokenizer = match &self.text {
            Text::Gguf(values) => Tokenizer::from_gguf(values)?,
            Text::Folder { folder, config } => {
                let json = file_if_there(&**folder, "tokenizer.json", TOKENIZER_MAX)?;
                let json = json.ok_or_else(|| no_tokenizer(&**folder))?;
                let files = TokenFiles {
                    config: config.clone(),
                    tokenizer: json_if_there(&**folder, "tokenizer_config.json")?,
                    map: json_if_there(&**folder, "special_tokens_map.json")?,
                    generation: json_if_there(&**folder, "generation_config.json")?,
                };
                Tokenizer::from_json(&json, &files)?
            }
        };
        if tokenizer.vocab_size() > self.config.vocab {
            let (tokens, vocab) = (tokenizer.vocab_size(), self.config.vocab);
            return Err(ModelError::Tokenizer(format!(
                "it has {tokens} tokens, the model {vocab}; use the tokenizer that was made for this model"
            )));
        }
        Ok(tokenizer)
    }

    /// Has it a tokenizer, known here or not?
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn has_tokenizer(&self) -> Result<bool, ModelError> {
        match &self.text {
            Text::Gguf(values) => Ok(values.contains_key("tokenizer.ggml.tokens")),
            Text::Folder { folder, .. } => {
                for name in ["tokenizer.json", "tokenizer.model", "vocab.json"] {
                    if folder.open(name)?.is_some() {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// The folder with its files, if it is one.
    #[must_use]
    pub fn folder(&self) -> Option<&dyn Folder> {
        match &self.text {
            Text::Gguf(_) => None,
            Text::Folder { folder, .. } => Some(&**folder),
        }
    }

    /// The chat template (Jinja), if it has one: as transformers looks for it, `chat_template.jinja` before `chat_template.json` before that in
    /// `tokenizer_config.json`, and of several the one named `default`.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn chat_template(&self) -> Result<Option<String>, ModelError> {
        let folder = match &self.text {
            Text::Gguf(values) => {
                let template = values.get("tokenizer.chat_template");
                return Ok(template.and_then(|t| t.as_text().map(str::to_owned)));
            }
            Text::Folder { folder, .. } => &**folder,
        };
        if let Some(bytes) = file_if_there(folder, "chat_template.jinja", CONFIG_MAX)? {
            let file = format!("{}/chat_template.jinja", folder.describe());
            let wrong = |error: std::string::FromUtf8Error| ModelError::Malformed {
                file,
                format: "UTF-8",
                what: error.to_string(),
            };
            return String::from_utf8(bytes).map(Some).map_err(wrong);
        }
        for file in ["chat_template.json", "tokenizer_config.json"] {
            match &json_if_there(folder, file)?["chat_template"] {
                Value::Null => {}
                Value::String(template) => return Ok(Some(template.clone())),
                Value::Array(named) => {
                    let default = named.iter().find(|t| t["name"] == "default");
                    return Ok(default.and_then(|t| t["template"].as_str().map(str::to_owned)));
                }
                Value::Object(named) => {
                    return Ok(named.get("default").and_then(|t| t.as_str().map(str::to_owned)));
                }
                _ => {
                    let what = "its `chat_template` is neither text nor a list of named texts".to_owned();
                    let file = format!("{}/{file}", folder.describe());
                    return Err(ModelError::Malformed { file, format: "JSON", what });
                }
            }
        }
        Ok(None)
    }

    /// Bytes in the file of one decoder block.
    #[must_use]
    pub fn layer_bytes(&self, layer: u32) -> u64 {
        let prefix = if self.gguf_names { format!("blk.{layer}.") } else { format!("model.layers.{layer}.") };
        self.tensors.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, t)| t.bytes as u64).sum()
    }

    /// Bytes in the file of the embedding.
    #[must_use]
    pub fn embedding_bytes(&self) -> u64 {
        self.tensors.get(self.name("embed")).map_or(0, |t| t.bytes as u64)
    }

    /// Bytes in the file of the output matrix (the embedding when tied).
    #[must_use]
    pub fn head_bytes(&self) -> u64 {
        let name = if self.config.tied { "embed" } else { "head" };
        self.tensors.get(self.name(name)).map_or(0, |t| t.bytes as u64)
    }

    /// Name in the file of a tensor that is not in a block.
    pub(crate) fn name(&self, role: &str) -> &'static str {
        match (role, self.gguf_names) {
            ("embed", true) => "token_embd.weight",
            ("embed", false) => "model.embed_tokens.weight",
            ("norm", true) => "output_norm.weight",
            ("norm", false) => "model.norm.weight",
            (_, true) => "output.weight",
            (_, false) => "lm_head.weight",
        }
    }

    /// Name in the file of tensor `role` of a block, `role` being GGUF's name.
    pub(crate) fn layer_name(&self, layer: u32, role: &str) -> String {
        if self.gguf_names {
            return format!("blk.{layer}.{role}");
        }
        let role = match role {
            "attn_norm.weight" => "input_layernorm.weight",
            "ffn_norm.weight" => "post_attention_layernorm.weight",
            "attn_q.weight" => "self_attn.q_proj.weight",
            "attn_k.weight" => "self_attn.k_proj.weight",
            "attn_v.weight" => "self_attn.v_proj.weight",
            "attn_output.weight" => "self_attn.o_proj.weight",
            "attn_q.bias" => "self_attn.q_proj.bias",
            "attn_k.bias" => "self_attn.k_proj.bias",
            "attn_v.bias" => "self_attn.v_proj.bias",
            "ffn_gate.weight" => "mlp.gate_proj.weight",
            "ffn_up.weight" => "mlp.up_proj.weight",
            "ffn_down.weight" => "mlp.down_proj.weight",
            other => other,
        };
        format!("model.layers.{layer}.{role}")
    }

    /// The tensor of that name, which must have this shape.
    fn place(&self, name: &str, expected: &[usize]) -> Result<&Place, ModelError> {
        let place = self.tensors.get(name).ok_or_else(|| ModelError::MissingTensor(name.to_owned()))?;
        if place.shape != expected {
            let (name, found, expected) = (name.to_owned(), place.shape.clone(), expected.to_vec());
            return Err(ModelError::Shape { name, found, expected });
        }
        Ok(place)
    }

    /// Fills `bytes` with those of a tensor from `offset` on.
    fn read_at(&self, name: &str, place: &Place, offset: usize, bytes: &mut [u8]) -> Result<(), ModelError> {
        let source = &self.sources[place.source];
        source.read_at(place.offset + offset as u64, bytes).map_err(|error| ModelError::Read {
            what: format!("`{name}` of {}", source.describe()),
            source: error,
        })
    }

    fn read(&self, name: &str, expected: &[usize]) -> Result<(Stored, Vec<u8>), ModelError> {
        let place = self.place(name, expected)?;
        let mut bytes = vec![0; place.bytes];
        self.read_at(name, place, 0, &mut bytes)?;
        Ok((place.stored, bytes))
    }

    /// Reads and packs a matrix of `n` rows of `k` values, piece by piece: see [`ModelFile::load_bytes_max`].
    ///
    /// # Errors
    /// When it is missing, of another shape, or cannot be read.
    pub(crate) fn matrix(&self, name: &str, n: usize, k: usize) -> Result<Matrix, ModelError> {
        let place = self.place(name, &[n, k])?;
        let cannot = |source| ModelError::Pack { name: name.to_owned(), source };
        let format = place.stored.packed_from();
        let mut packer = Packer::new(format, n, k).map_err(cannot)?;
        let mut bytes = vec![0; piece_bytes(place.bytes, n)];
        let mut at = 0;
        while at < place.bytes {
            let piece = &mut bytes[..(place.bytes - at).min(piece_bytes(place.bytes, n))];
            self.read_at(name, place, at, piece)?;
            if place.stored == Stored::Plain(Dtype::Bf16) {
                bf16_to_f16(name, piece)?;
            }
            packer.push(piece).map_err(cannot)?;
            at += piece.len();
        }
        packer.finish().map_err(cannot)
    }

    /// Memory that a matrix takes when it is packed.
    ///
    /// # Errors
    /// When it is missing, of another shape, or cannot be packed.
    pub(crate) fn matrix_bytes(&self, name: &str, n: usize, k: usize) -> Result<u64, ModelError> {
        let format = self.place(name, &[n, k])?.stored.packed_from();
        let bytes = Matrix::packed_bytes(format, n, k);
        bytes.map(|b| b as u64).map_err(|source| ModelError::Pack { name: name.to_owned(), source })
    }

    /// Memory that is held beside packed weights while any of them is loaded, at most.
    #[must_use]
    pub fn load_bytes_max(&self) -> u64 {
        let buffer = |place: &Place| match place.shape.as_slice() {
            // A panel of Q6_K is widened on the way, to less than three times its bytes.
            [n, _] => piece_bytes(place.bytes, *n) + 3 * panel_bytes(place.bytes, *n),
            _ => place.bytes,
        };
        self.tensors.values().map(|place| buffer(place) as u64).max().unwrap_or(0)
    }

    /// Reads a vector of `n` values as f32.
    ///
    /// # Errors
    /// When it is missing, of another length, or cannot be read.
    pub(crate) fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let (stored, bytes) = self.read(name, &[n])?;
        let mut out = vec![0.0; n];
        widen(name, stored, &bytes, &mut out)?;
        Ok(out)
    }

    /// Reads a tensor of f32, f16 or bf16 as f32, row-major as in the file.
    ///
    /// # Errors
    /// When it is missing, of another shape, quantised, or cannot be read.
    pub(crate) fn floats(&self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<(), ModelError> {
        let (stored, bytes) = self.read(name, shape)?;
        widen(name, stored, &bytes, out)
    }

    /// Has it the names and the layout of Hugging Face?
    pub(crate) fn is_folder(&self) -> bool {
        !self.gguf_names
    }

    /// Is the tensor there?
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

/// The files with weights: those that `model.safetensors.index.json` names; else `model.safetensors`, beside which some models have the same
/// weights in another form; else all that there are.
fn weight_files(folder: &dyn Folder) -> Result<Vec<String>, ModelError> {
    const WHOLE: &str = "model.safetensors";
    if folder.open(INDEX)?.is_some() {
        return indexed_files(folder);
    }
    if folder.open(WHOLE)?.is_some() {
        return Ok(vec![WHOLE.to_owned()]);
    }
    let mut names = folder.names()?.unwrap_or_default();
    names.retain(|name| Path::new(name).extension().is_some_and(|e| e == "safetensors"));
    names.sort();
    Ok(names)
}

fn indexed_files(folder: &dyn Folder) -> Result<Vec<String>, ModelError> {
    let wrong = |what: String| ModelError::Malformed {
        file: format!("{}/{INDEX}", folder.describe()),
        format: "JSON",
        what,
    };
    let json = side_file(folder, INDEX, INDEX_MAX)?;
    let json: Index = serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
    let names: BTreeSet<String> = json.weight_map.into_values().collect();
    // A name with a path could point anywhere.
    match names.iter().find(|name| Path::new(name).file_name().is_none_or(|own| own != name.as_str())) {
        Some(name) => Err(wrong(format!("it names `{name}`, which is not a file of the folder"))),
        None => Ok(names.into_iter().collect()),
    }
}

/// `model.safetensors.index.json`: which file has which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Stored {
    /// The format of the bytes that are packed.
    fn packed_from(self) -> Format {
        match self {
            Self::Ggml(format) => format,
            Self::Plain(Dtype::F32) => Format::F32,
            Self::Plain(Dtype::F16 | Dtype::Bf16) => Format::F16,
        }
    }
}

/// Bytes of so many of a tensor's `n` rows that they make a panel.
fn panel_bytes(tensor: usize, n: usize) -> usize {
    tensor.checked_div(n).unwrap_or(0).saturating_mul(Packer::ROWS).min(tensor)
}

/// Bytes of a tensor of `n` rows that are read at once: whole panels.
fn piece_bytes(tensor: usize, n: usize) -> usize {
    let panel = panel_bytes(tensor, n);
    let panels = PIECE_BYTES.checked_div(panel).unwrap_or(0).max(1);
    panel.saturating_mul(panels).min(tensor)
}

/// Rounds bf16 values to f16, in place.
fn bf16_to_f16(name: &str, bytes: &mut [u8]) -> Result<(), ModelError> {
    let mut finite = true;
    for value in bytes.as_chunks_mut::<2>().0 {
        let rounded = f16::from_f32(bf16::from_le_bytes(*value).to_f32());
        finite &= rounded.is_finite();
        *value = rounded.to_le_bytes();
    }
    if finite { Ok(()) } else { Err(ModelError::Range(name.to_owned())) }
}

/// Plain floats of a file as f32.
pub(crate) fn widen(name: &str, stored: Stored, bytes: &[u8], out: &mut [f32]) -> Result<(), ModelError> {
    let halves = bytes.as_chunks::<2>().0;
    match stored {
        Stored::Ggml(Format::F32) | Stored::Plain(Dtype::F32) => {
            out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(out, b)| *out = f32::from_le_bytes(*b));
        }
        Stored::Ggml(Format::F16) | Stored::Plain(Dtype::F16) => {
            out.iter_mut().zip(halves).for_each(|(out, b)| *out = f16::from_le_bytes(*b).to_f32());
        }
        Stored::Plain(Dtype::Bf16) => {
            out.iter_mut().zip(halves).for_each(|(out, b)| *out = bf16::from_le_bytes(*b).to_f32());
        }
        Stored::Ggml(format) => {
            return Err(ModelError::Unsupported(format!("tensor `{name}` is {format:?}")));
        }
    }
    Ok(())
}

/// What to do about a folder that has no tokenizer.json.
fn no_tokenizer(folder: &dyn Folder) -> ModelError {
    ModelError::Tokenizer(format!(
        "{} has no tokenizer.json; make it with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers, or copy it from \
         where the model is from",
        folder.describe()
    ))
}

/// A file that must be there.
fn open(folder: &dyn Folder, name: &str) -> Result<Arc<dyn ByteSource>, ModelError> {
    folder.open(name)?.ok_or_else(|| ModelError::Read {
        what: format!("{}/{name}", folder.describe()),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

fn side_file(folder: &dyn Folder, name: &str, bytes_max: u64) -> Result<Vec<u8>, ModelError> {
    let file = open(folder, name)?;
    if file.len() > bytes_max {
        let what = format!("it has {} bytes, more than {bytes_max}", file.len());
        return Err(ModelError::Malformed { file: file.describe(), format: "JSON", what });
    }
    let mut bytes = vec![0; file.len() as usize];
    let read = file.read_at(0, &mut bytes);
    read.map_err(|source| ModelError::Read { what: file.describe(), source })?;
    Ok(bytes)
}

/// A file of a folder, if it is there; it must not be longer than `bytes_max`.
///
/// # Errors
/// When it cannot be read, or is too long.
pub fn file_if_there(folder: &dyn Folder, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, ModelError> {
    if folder.open(name)?.is_none() {
        return Ok(None);
    }
    side_file(folder, name, bytes_max).map(Some)
}

/// A file of JSON, null if it is not there.
fn json_if_there(folder: &dyn Folder, name: &str) -> Result<Value, ModelError> {
    match folder.open(name)? {
        None => Ok(Value::Null),
        Some(_) => side_json(folder, name),
    }
}

pub(crate) fn side_json(folder: &dyn Folder, name: &str) -> Result<Value, ModelError> {
    serde_json::from_slice(&side_file(folder, name, CONFIG_MAX)?).map_err(|error| ModelError::Malformed {
        file: format!("{}/{name}", folder.describe()),
        format: "JSON",
        what: error.to_string(),
    })
}
