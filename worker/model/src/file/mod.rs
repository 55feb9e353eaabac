//! A model on disk or on a server: one view on GGUF and safetensors.

mod names;
mod parts;
mod places;
mod side;
mod stored;
mod weight_files;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use dunlin_kernels::{Matrix, Packer};
use serde_json::Value;

use crate::config::gguf_values::{ROPE_DIVISORS, ROPE_LONG, ROPE_SHORT, RopeTensors};
use crate::config::{self, ModelConfig};
use crate::error::ModelError;
use crate::families::family::Form;
use crate::families::named;
use crate::gguf;
use crate::mistaken;
use crate::safetensors;
use crate::source::{ByteSource, FileSource, Folder, LocalFolder};
use crate::spec::TensorRole;
use crate::tokenizer::{TokenFiles, Tokenizer};

pub(crate) use names::{Names, Outer};
pub use parts::Beside;
use parts::Parts;
pub use side::file_if_there;
pub(crate) use side::side_json;
use side::{CONFIG_MAX, json_if_there, open};
use stored::{Place, piece_bytes};
pub(crate) use stored::{Stored, widen};

/// tokenizer.json may not be longer than this.
const TOKENIZER_MAX: u64 = 64 << 20;

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
    names: Names,
}

impl ModelFile {
    /// Opens a GGUF file, with the parts beside it when it is the first of several, or a folder with config.json and safetensors.
    ///
    /// # Errors
    /// When it cannot be read or is not sound.
    pub fn open_path(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            return Self::open_folder(Arc::new(LocalFolder(path.to_owned())));
        }
        let source = Arc::new(FileSource::open(path)?);
        match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
            (Some(folder), Some(name)) => {
                let folder =
                    LocalFolder(if folder.as_os_str().is_empty() { ".".into() } else { folder.into() });
                Self::open_beside(source, Some(&Beside { folder: &folder, name }))
            }
            _ => Self::open(source),
        }
    }

    /// Opens a GGUF file that is in one part, wherever it is; reads its header only.
    ///
    /// # Errors
    /// When it cannot be read or is not sound.
    pub fn open(source: Arc<dyn ByteSource>) -> Result<Self, ModelError> {
        Self::open_beside(source, None)
    }

    /// The same with the parts beside it, when it is the first of several.
    ///
    /// # Errors
    /// When one cannot be read or is not sound, or they do not belong together.
    pub fn open_beside(source: Arc<dyn ByteSource>, beside: Option<&Beside<'_>>) -> Result<Self, ModelError> {
        let file = source.describe();
        let parts = parts::read(source, beside)?;
        let rope = rope_tensors(&parts)?;
        let config = config::from_gguf(&file, &parts.header, &rope)?;
        let place = |name: &str, t: &gguf::GgufTensor| Place {
            shape: t.shape.clone(),
            stored: Stored::Ggml(t.format),
            source: parts.source_of(name),
            offset: t.offset,
            bytes: t.bytes,
        };
        let tensors = parts.header.tensors.iter().map(|(name, t)| (name.clone(), place(name, t))).collect();
        let names = Names { form: Form::Gguf, family: named(&config.architecture) };
        let text = Text::Gguf(parts.header.values);
        let tensors = places::settle(&file, names, &config, tensors)?;
        Ok(Self { config, sources: parts.sources, tensors, text, names })
    }

    /// Opens a folder with config.json and safetensors, wherever it is; reads headers only.
    ///
    /// # Errors
    /// When it cannot be read or is not sound.
    pub fn open_folder(folder: Arc<dyn Folder>) -> Result<Self, ModelError> {
        let json = match folder.open("config.json")? {
            Some(_) => side_json(&*folder, "config.json")?,
            None => return Err(mistaken::folder(&*folder)),
        };
        let mut config = config::from_json(&format!("{}/config.json", folder.describe()), &json)?;
        let mut sources: Vec<Arc<dyn ByteSource>> = Vec::new();
        let mut tensors = BTreeMap::new();
        let files = weight_files::find(&*folder)?;
        for name in files.names {
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
        let names = Names { form: Form::HuggingFace, family: named(&config.architecture) };
        let head = names.outer(Outer::Head);
        if !config.tied && files.promised.contains(head) && !tensors.contains_key(head) {
            return Err(ModelError::MissingTensor(head.to_owned()));
        }
        // An output matrix that is there is used, as transformers 5 does. If no file has one, and none was promised, the embedding is it: many
        // configurations of tied models do not say so.
        config.tied = !tensors.contains_key(head);
        let tensors = places::settle(&folder.describe(), names, &config, tensors)?;
        let text = Text::Folder { folder, config: json };
        Ok(Self { config, sources, tensors, text, names })
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tokenizer that its files describe.
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
        let prefix = self.names.block(layer);
        self.tensors.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, t)| t.bytes as u64).sum()
    }

    /// Bytes in the file of the embedding.
    #[must_use]
    pub fn embedding_bytes(&self) -> u64 {
        self.tensors.get(self.name(Outer::Embedding)).map_or(0, |t| t.bytes as u64)
    }

    /// Bytes in the file of the output matrix (the embedding when tied).
    #[must_use]
    pub fn head_bytes(&self) -> u64 {
        let which = if self.config.tied { Outer::Embedding } else { Outer::Head };
        self.tensors.get(self.name(which)).map_or(0, |t| t.bytes as u64)
    }

    /// Name in the file of a tensor that is not in a block.
    pub(crate) fn name(&self, which: Outer) -> &'static str {
        self.names.outer(which)
    }

    /// Name of a tensor of a block.
    pub(crate) fn layer_name(&self, layer: u32, role: TensorRole) -> String {
        self.names.in_block(layer, role)
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
    /// When it is missing, of another shape, cannot be read, or has values in bf16 that are not finite.
    pub(crate) fn matrix(&self, name: &str, n: usize, k: usize) -> Result<Matrix, ModelError> {
        let place = self.place(name, &[n, k])?;
        let cannot = |source| ModelError::Pack { name: name.to_owned(), source };
        let format = place.stored.packed_from(name)?;
        let mut packer = Packer::new(format, n, k).map_err(cannot)?;
        let mut bytes = vec![0; piece_bytes(place.bytes, n)];
        let mut at = 0;
        while at < place.bytes {
            let piece = &mut bytes[..(place.bytes - at).min(piece_bytes(place.bytes, n))];
            self.read_at(name, place, at, piece)?;
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
        let format = self.place(name, &[n, k])?.stored.packed_from(name)?;
        let bytes = Matrix::packed_bytes(format, n, k);
        bytes.map(|b| b as u64).map_err(|source| ModelError::Pack { name: name.to_owned(), source })
    }

    /// Memory that is held beside packed weights while any of them is loaded, at most.
    #[must_use]
    pub fn load_bytes_max(&self) -> u64 {
        let buffer = |place: &Place| match place.shape.as_slice() {
            [n, _] => piece_bytes(place.bytes, *n) + place.stored.counts_bytes(),
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

    /// Reads the `n` weights of a norm.
    ///
    /// # Errors
    /// As [`Self::vector`].
    pub(crate) fn norm(&self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let mut out = self.vector(name, n)?;
        if self.config.block.norm.plus_one {
            out.iter_mut().for_each(|weight| *weight += 1.0);
        }
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
        self.names.form == Form::HuggingFace
    }
}

/// The values of tensors that say how frequencies are stretched.
fn rope_tensors(parts: &Parts) -> Result<RopeTensors, ModelError> {
    /// Half of the widest head.
    const PAIRS_MAX: usize = 128;
    let mut out = RopeTensors::new();
    for name in [ROPE_DIVISORS, ROPE_SHORT, ROPE_LONG] {
        let Some(tensor) = parts.header.tensors.get(name) else { continue };
        let source = &parts.sources[parts.source_of(name)];
        let &[pairs @ ..=PAIRS_MAX] = tensor.shape.as_slice() else {
            let (name, found) = (name.to_owned(), tensor.shape.clone());
            return Err(ModelError::Shape { name, found, expected: vec![PAIRS_MAX] });
        };
        let mut bytes = vec![0; tensor.bytes];
        source
            .read_at(tensor.offset, &mut bytes)
            .map_err(|error| ModelError::Read { what: source.describe(), source: error })?;
        let mut values = vec![0.0; pairs];
        widen(name, Stored::Ggml(tensor.format), &bytes, &mut values)?;
        out.insert(name, values);
    }
    Ok(out)
}

/// What to do about a folder that has no tokenizer.json.
fn no_tokenizer(folder: &dyn Folder) -> ModelError {
    ModelError::Tokenizer(format!(
        "{} has no tokenizer.json; make it with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers, or copy it from \
         where the model is from",
        folder.describe()
    ))
}
