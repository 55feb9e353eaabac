//! The rotary embedding as config.json says it: `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`.

use dunlin_kernels::RopeScaling;
use serde_json::{Map, Value};

use super::json_section::Section;
use crate::error::{ModelError, excerpt};

/// Base where nothing says one.
const BASE: f64 = 10_000.0;
/// What follows a refusal.
const KINDS: &str = "`default`, `linear` and `llama3` are the rope scalings that run here";

/// What all layers have in common.
pub(super) struct Rope {
    pub(super) base: f64,
    pub(super) scaling: RopeScaling,
}

/// What one object says.
#[derive(Clone, PartialEq)]
struct Said {
    base: Option<f64>,
    scaling: RopeScaling,
}

/// What stands beside it.
#[derive(Clone, Copy)]
struct Beside {
    /// `max_position_embeddings`.
    positions: usize,
    /// `original_max_position_embeddings`, as relatives of Phi-3 have it.
    original: Option<f64>,
}

/// Reads it as transformers 5 does: what stands in an object wins over `rope_theta` beside it, and an empty object is none.
pub(super) fn rope(c: &Section<'_>, positions: usize) -> Result<Rope, ModelError> {
    let theta = c.number("rope_theta")?;
    let beside = Beside { positions, original: c.number("original_max_position_embeddings")? };
    let (old, new) = (object(c, "rope_scaling", beside)?, object(c, "rope_parameters", beside)?);
    if let (Some(old), Some(new)) = (&old, &new)
        && (old.scaling != new.scaling || old.base.is_some_and(|base| new.base.is_some_and(|b| b != base)))
    {
        return Err(c.refused(
            "`rope_scaling` and `rope_parameters` say different things",
            "remove the one that the model was not made with",
        ));
    }
    let base = [&new, &old].into_iter().flatten().find_map(|said| said.base);
    let said = old.or(new).unwrap_or(Said { base: None, scaling: RopeScaling::None });
    Ok(Rope { base: base.or(theta).unwrap_or(BASE), scaling: said.scaling })
}

fn object(c: &Section<'_>, key: &str, beside: Beside) -> Result<Option<Said>, ModelError> {
    let Some(json) = c.get(key) else { return Ok(None) };
    let section = Section::new(c.file, &format!("{key}."), json)?;
    if section.map.is_empty() {
        return Ok(None);
    }
    if !section.map.values().all(Value::is_object) {
        return read(&section, beside).map(Some);
    }
    // By kind of layer.
    let mut said = None;
    for (kind, json) in section.map {
        let of_kind = read(&Section::new(c.file, &format!("{key}.{}.", excerpt(kind)), json)?, beside)?;
        if said.replace(of_kind.clone()).is_some_and(|other| other != of_kind) {
            return Err(c.refused(
                &format!("`{key}` is not the same for all kinds of layers"),
                "only models whose layers turn all alike run here",
            ));
        }
    }
    Ok(said)
}

fn read(rope: &Section<'_>, beside: Beside) -> Result<Said, ModelError> {
    let kind = match (rope.text("rope_type")?, rope.text("type")?) {
        (Some(kind), Some(other)) if kind != other => {
            let what = format!("rope scaling is `{}` and `{}` at once", excerpt(kind), excerpt(other));
            return Err(rope.refused(&what, KINDS));
        }
        (kind, other) => kind.or(other),
    };
    let own: &[&str] = match kind {
        None | Some("default") => &[],
        Some("linear") => &["factor"],
        Some("llama3") => &["factor", "low_freq_factor", "high_freq_factor"],
        Some(other) => return Err(rope.refused(&format!("rope scaling `{}`", excerpt(other)), KINDS)),
    };
    keys(rope, kind, own)?;
    let number = |key: &str| positive(rope, kind, key);
    let scaling = match kind {
        Some("linear") => RopeScaling::Linear(number("factor")?),
        Some("llama3") => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: original(rope, kind, beside)?,
        },
        _ => RopeScaling::None,
    };
    Ok(Said { base: rope.number("rope_theta")?, scaling })
}

/// The context that the model was first made for. For `llama3` transformers 4 goes by the key within, and 5 by the one beside it, or by
/// `max_position_embeddings` where there is none.
fn original(rope: &Section<'_>, kind: Option<&str>, beside: Beside) -> Result<f64, ModelError> {
    let key = "original_max_position_embeddings";
    let within = rope.get(key).map(|_| positive(rope, kind, key)).transpose()?;
    match (within, beside.original) {
        (Some(within), Some(beside)) if within != beside => Err(rope.refused(
            &format!("`{}` is {within}, and `{key}` beside it is {beside}", rope.path(key)),
            "remove the one that the model was not made with",
        )),
        (within, beside_it) => Ok(within.or(beside_it).unwrap_or(beside.positions as f64)),
    }
}

fn positive(rope: &Section<'_>, kind: Option<&str>, key: &str) -> Result<f64, ModelError> {
    rope.get(key).and_then(Value::as_f64).filter(|v| *v > 0.0).ok_or_else(|| {
        let what = format!("rope scaling `{}` has no usable `{key}`", kind.unwrap_or("default"));
        ModelError::Malformed { file: rope.file.to_owned(), format: "config.json", what }
    })
}

/// `own` are the keys of this kind; the others must say nothing that would matter.
fn keys(rope: &Section<'_>, kind: Option<&str>, own: &[&str]) -> Result<(), ModelError> {
    let named = ["rope_type", "type", "rope_theta", "original_max_position_embeddings"];
    let is_one = |key: &str, map: &Map<String, Value>| map[key].as_f64() == Some(1.0);
    for key in rope.map.keys().filter(|key| rope.get(key).is_some()) {
        match key.as_str() {
            key if named.contains(&key) || own.contains(&key) => {}
            "partial_rotary_factor" | "attention_factor" if is_one(key, rope.map) => {}
            "partial_rotary_factor" => {
                let what = format!("`{}` is {}", rope.path(key), excerpt(&rope.map[key].to_string()));
                return Err(rope.refused(&what, "only models where it is 1.0 run here"));
            }
            "factor" if kind.is_none() => {
                let what = "rope scaling has a `factor` and no `rope_type`";
                return Err(rope.refused(what, KINDS));
            }
            key => return Err(rope.unknown(key)),
        }
    }
    Ok(())
}
