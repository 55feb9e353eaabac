//! The rotary embedding as config.json says it: `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`.

use std::sync::Arc;

use dunlin_kernels::RopeScaling;
use serde_json::{Map, Value};

use super::json_section::Section;
use crate::error::{ModelError, excerpt};
use crate::spec::Rotary;

/// Base where nothing says one.
const BASE: f64 = 10_000.0;
/// What follows a refusal.
const KINDS: &str =
    "`default`, `linear`, `llama3`, `yarn` and `longrope` are the rope scalings that run here";

/// What one object says.
#[derive(PartialEq)]
struct Said {
    base: Option<f64>,
    scaling: RopeScaling,
}

impl Said {
    fn rotary(self, base: f64) -> Rotary {
        Rotary { scaling: self.scaling, ..Rotary::plain(base) }
    }
}

/// What stands beside it.
#[derive(Clone, Copy)]
struct Beside {
    /// `max_position_embeddings`.
    positions: usize,
    /// `original_max_position_embeddings`, as relatives of Phi-3 have it.
    original: Option<f64>,
}

impl Beside {
    fn of(c: &Section<'_>, positions: usize) -> Result<Self, ModelError> {
        Ok(Self { positions, original: c.number("original_max_position_embeddings")? })
    }
}

/// Of a model whose layers turn all alike. Reads it as transformers 5 does: what stands in an object wins over `rope_theta` beside it, and an
/// empty object is none.
pub(crate) fn rotary(c: &Section<'_>, positions: usize) -> Result<Rotary, ModelError> {
    let theta = c.number("rope_theta")?;
    let beside = Beside::of(c, positions)?;
    let (old, new) = (alike(c, "rope_scaling", beside)?, alike(c, "rope_parameters", beside)?);
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
    Ok(said.rotary(base.or(theta).unwrap_or(BASE)))
}

/// Of the layers of one `kind`, as transformers 5 reads it for models that have two: what `rope_parameters` says of this kind, else the base under
/// the key of its own; an older `rope_scaling` is for layers of `full_attention`.
pub(crate) fn of_kind(
    c: &Section<'_>,
    positions: usize,
    kind: &str,
    (base_key, base): (&str, f64),
) -> Result<Rotary, ModelError> {
    let beside = Beside::of(c, positions)?;
    let base = c.number(base_key)?.unwrap_or(base);
    let (old, new) = (object(c, "rope_scaling", beside)?, object(c, "rope_parameters", beside)?);
    let remedy = "name what it says by kind of layer, or remove the one that the model was not made with";
    if old.iter().any(|(kind, _)| !kind.is_empty()) || new.iter().any(|(kind, _)| kind.is_empty()) {
        return Err(
            c.refused("`rope_scaling` or `rope_parameters` does not say which layers it is for", remedy)
        );
    }
    if !old.is_empty() && !new.is_empty() {
        return Err(c.refused("there are `rope_scaling` and `rope_parameters`", remedy));
    }
    let old = old.into_iter().filter(|_| kind == "full_attention");
    let said = new.into_iter().filter(|(of, _)| of == kind).chain(old).next();
    let said = said.map_or(Said { base: None, scaling: RopeScaling::None }, |(_, said)| said);
    let base = said.base.unwrap_or(base);
    Ok(said.rotary(base))
}

/// What an object says of all kinds of layers.
fn alike(c: &Section<'_>, key: &str, beside: Beside) -> Result<Option<Said>, ModelError> {
    let all = object(c, key, beside)?;
    if all.windows(2).any(|two| two[0].1 != two[1].1) {
        return Err(c.refused(
            &format!("`{key}` is not the same for all kinds of layers"),
            "only models whose layers turn all alike run here",
        ));
    }
    Ok(all.into_iter().next().map(|(_, said)| said))
}

/// What an object says, by kind of layer; without the name of one if it does not tell them apart. An empty object says nothing.
fn object(c: &Section<'_>, key: &str, beside: Beside) -> Result<Vec<(String, Said)>, ModelError> {
    let Some(json) = c.get(key) else { return Ok(Vec::new()) };
    let section = Section::new(c.file, &format!("{key}."), json)?;
    if section.map.is_empty() {
        return Ok(Vec::new());
    }
    if !section.map.values().all(Value::is_object) {
        return Ok(vec![(String::new(), read(&section, beside)?)]);
    }
    let by_kind = section.map.iter().map(|(kind, json)| {
        let section = Section::new(c.file, &format!("{key}.{}.", excerpt(kind)), json)?;
        Ok((kind.clone(), read(&section, beside)?))
    });
    by_kind.collect()
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
        Some("yarn") => &["factor", "beta_fast", "beta_slow", "truncate", "attention_factor"],
        // What it was called at first.
        Some("longrope" | "su") => &["factor", "short_factor", "long_factor", "attention_factor"],
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
        Some("yarn") => {
            let factor = number("factor")?;
            let or = |key: &str, default: f64| rope.get(key).map_or(Ok(default), |_| number(key));
            RopeScaling::Yarn {
                factor,
                beta_fast: or("beta_fast", 32.0)?,
                beta_slow: or("beta_slow", 1.0)?,
                original_context: original(rope, kind, beside)?,
                truncate: rope.flag("truncate")?.unwrap_or(true),
                magnitude: or("attention_factor", f64::from(RopeScaling::yarn_magnitude(factor)))? as f32,
            }
        }
        Some("longrope" | "su") => {
            let (short, long) = (divisors(rope, kind, "short_factor")?, divisors(rope, kind, "long_factor")?);
            let original_context = original(rope, kind, beside)?;
            let said = |key: &str| rope.get(key).map(|_| number(key)).transpose();
            let factor = said("factor")?.unwrap_or(beside.positions as f64 / original_context);
            let magnitude = said("attention_factor")?.map(|magnitude| magnitude as f32);
            let magnitude =
                magnitude.unwrap_or_else(|| RopeScaling::long_magnitude(factor, original_context));
            // By what the model was made for, and not by the sequence: the same on every peer, whatever it serves.
            let by = if beside.positions as f64 > original_context { long } else { short };
            RopeScaling::Divided { by, magnitude }
        }
        _ => RopeScaling::None,
    };
    Ok(Said { base: rope.number("rope_theta")?, scaling })
}

/// A number for each pair of a head.
fn divisors(rope: &Section<'_>, kind: Option<&str>, key: &str) -> Result<Arc<[f64]>, ModelError> {
    let list = rope.get(key).and_then(Value::as_array);
    let numbers = list.and_then(|list| list.iter().map(Value::as_f64).collect());
    numbers.ok_or_else(|| no_usable(rope, kind, key))
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
    let number = rope.get(key).and_then(Value::as_f64);
    number.filter(|v| *v > 0.0).ok_or_else(|| no_usable(rope, kind, key))
}

fn no_usable(rope: &Section<'_>, kind: Option<&str>, key: &str) -> ModelError {
    let what = format!("rope scaling `{}` has no usable `{key}`", kind.unwrap_or("default"));
    ModelError::Malformed { file: rope.file.to_owned(), format: "config.json", what }
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
