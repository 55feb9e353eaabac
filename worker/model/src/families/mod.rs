//! The families of models that run. One file has what is particular to one of them: [`family`] says what that may be, [`windows`] has what several do.

pub(crate) mod family;

mod gemma;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod seed_oss;
mod windows;

use serde_json::Value;

use crate::config::json_section::Section;
use crate::error::{ModelError, excerpt};
use family::Family;

/// All of them.
const ALL: [&Family; 8] = [
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &gemma::GEMMA,
    &gemma3::GEMMA3,
    &phi3::PHI3,
    &seed_oss::SEED_OSS,
];

/// How many matrices the module is, of a name of its tensors: in whichever family has most.
pub(crate) fn parts_of(tensor: &str) -> usize {
    let fused = ALL.into_iter().flat_map(|family| family.fused);
    let here = fused.filter(|fused| tensor.contains(fused.module()));
    here.map(|fused| fused.parts.len()).max().unwrap_or(1)
}

/// A file is of a kind that is none of them.
pub(crate) fn unsupported(file: &str, what: &str) -> ModelError {
    let titles = ALL.map(|family| family.title);
    let (last, others) = titles.split_last().expect("there are families");
    let titles = others.join(", ");
    ModelError::Unsupported(format!(
        "{file}: {what}; Dunlin runs {titles} and {last} models from GGUF or safetensors"
    ))
}

/// The family of a configuration; what is not named is a Llama.
pub(crate) fn named(name: &str) -> &'static Family {
    ALL.into_iter().find(|family| family.name == name).unwrap_or(&llama::LLAMA)
}

/// The family of a config.json: by `architectures`; without it by `model_type`, by which transformers goes.
pub(crate) fn of_json(c: &Section<'_>) -> Result<&'static Family, ModelError> {
    let unsupported = |what: String| Err(unsupported(c.file, &what));
    let kind = c.text("model_type")?;
    let class = match c.get("architectures") {
        None => None,
        Some(Value::Array(classes)) if classes.is_empty() => None,
        Some(classes) => Some(classes[0].as_str().ok_or_else(|| c.unusable("architectures"))?),
    };
    match (class, kind) {
        (Some(class), kind) => match (ALL.into_iter().find(|f| f.class == class), kind) {
            // What tells them apart is in the class, as vLLM goes by it.
            (Some(_), Some(kind)) if ALL.iter().all(|f| f.name != kind) => unsupported(format!(
                "`architectures` says `{class}`, and `model_type` says `{}`",
                excerpt(kind)
            )),
            (Some(family), _) => Ok(family),
            (None, _) => unsupported(format!("the architecture is `{}`", excerpt(class))),
        },
        (None, Some(kind)) => match ALL.into_iter().find(|f| f.name == kind) {
            Some(family) => Ok(family),
            None => unsupported(format!("the `model_type` is `{}`", excerpt(kind))),
        },
        (None, None) => unsupported("neither `architectures` nor `model_type` is there".to_owned()),
    }
}

/// The family of a GGUF file of this architecture.
pub(crate) fn of_gguf(file: &str, architecture: &str) -> Result<&'static Family, ModelError> {
    ALL.into_iter()
        .find(|family| family.gguf_name == Some(architecture))
        .ok_or_else(|| unsupported(file, &format!("the architecture is `{}`", excerpt(architecture))))
}
