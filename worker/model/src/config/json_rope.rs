//! The rotary embedding as config.json says it: `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`.

use dunlin_kernels::RopeScaling;
use serde_json::{Map, Value};

use super::json::Section;
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

/// Reads it as transformers 5 does: what stands in an object wins over `rope_theta` beside it, and an empty object is none.
pub(super) fn rope(c: &Section<'_>) -> Result<Rope, ModelError> {
    let beside = c.number("rope_theta")?;
    let (old, new) = (object(c, "rope_scaling")?, object(c, "rope_parameters")?);
    if let (Some(old), Some(new)) = (&old, &new)
        && (old.scaling != new.scaling || old.base.is_some_and(|base| new.base.is_some_and(|b| b != base)))
    {
        return Err(c.refused(
            "`rope_scaling` and `rope_parameters` say different things",
            "remove the one that the model was not made with",
        ));
    }
    let base = [&new, &old].into_iter().flatten().find_map(|said| said.base);
    let scaling = old.or(new).map_or(RopeScaling::None, |said| said.scaling);
    Ok(Rope { base: base.or(beside).unwrap_or(BASE), scaling })
}

fn object(c: &Section<'_>, key: &str) -> Result<Option<Said>, ModelError> {
    let Some(json) = c.get(key) else { return Ok(None) };
    let section = Section::new(c.file, &format!("{key}."), json)?;
    if section.map.is_empty() {
        return Ok(None);
    }
    if !section.map.values().all(Value::is_object) {
        return read(&section).map(Some);
    }
    // By kind of layer.
    let mut said = None;
    for (kind, json) in section.map {
        let of_kind = read(&Section::new(c.file, &format!("{key}.{}.", excerpt(kind)), json)?)?;
        if said.replace(of_kind.clone()).is_some_and(|other| other != of_kind) {
            return Err(c.refused(
                &format!("`{key}` is not the same for all kinds of layers"),
                "only models whose layers turn all alike run here",
            ));
        }
    }
    Ok(said)
}

fn read(rope: &Section<'_>) -> Result<Said, ModelError> {
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
    let number = |key: &str| match rope.get(key).and_then(Value::as_f64).filter(|v| *v > 0.0) {
        Some(value) => Ok(value),
        None => {
            let what = format!("rope scaling `{}` has no usable `{key}`", kind.unwrap_or("default"));
            Err(ModelError::Malformed { file: rope.file.to_owned(), format: "config.json", what })
        }
    };
    let scaling = match kind {
        Some("linear") => RopeScaling::Linear(number("factor")?),
        Some("llama3") => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")?,
        },
        _ => RopeScaling::None,
    };
    Ok(Said { base: rope.number("rope_theta")?, scaling })
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
