//! Every tensor of a file has a place in the model, or is known to have no effect; every place has its tensor.

use std::collections::BTreeMap;

use super::names::{Names, Outer};
use super::stored::{Place, Stored, of_another_type};
use crate::config::{ModelConfig, ROPE_DIVISORS};
use crate::error::{ModelError, excerpt};
use crate::safetensors::Dtype;

/// Tensors that a model may have and that say nothing that config.json does not: they end like this.
const WITHOUT_EFFECT: [&str; 5] = [
    // Computed from the base and the scaling.
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    // 0, 1, 2, ...
    "position_ids",
    // What masked scores are set to.
    "self_attn.masked_bias",
];

/// Those of `tensors` that the model needs.
///
/// # Errors
/// With the first that is missing, of another shape or of a type that does not run, or that has no place.
pub(super) fn settle(
    file: &str,
    names: Names,
    c: &ModelConfig,
    mut tensors: BTreeMap<String, Place>,
) -> Result<BTreeMap<String, Place>, ModelError> {
    let places = Places { names, c, block: block(c) };
    let known = |name: &str, place: &Place| places.needs(name) || places.without_effect(name, place);
    let stranger = || tensors.iter().find(|(name, place)| !known(name, place)).map(|(name, _)| name);
    for (name, shape) in places.all() {
        let Some(place) = tensors.get(&name) else {
            return Err(stranger().map_or(ModelError::MissingTensor(name.clone()), |other| {
                no_place(file, c, &format!("`{}`, and no tensor `{name}`", excerpt(other)))
            }));
        };
        if place.shape != shape {
            let found = place.shape.clone();
            return Err(ModelError::Shape { name, found, expected: shape });
        }
        if let Stored::Plain(Dtype::Other(dtype)) = place.stored {
            return Err(of_another_type(&name, dtype));
        }
    }
    if let Some(name) = stranger() {
        return Err(no_place(file, c, &format!("`{}`", excerpt(name))));
    }
    tensors.retain(|name, _| places.needs(name));
    Ok(tensors)
}

fn no_place(file: &str, c: &ModelConfig, tensor: &str) -> ModelError {
    ModelError::Refused {
        what: format!("{file} has a tensor {tensor}, which a {} model has no place for", c.architecture),
        remedy: "it is a model of another kind, or its configuration is not the one that it was made with"
            .to_owned(),
    }
}

struct Places<'a> {
    names: Names,
    c: &'a ModelConfig,
    block: Vec<(&'static str, Vec<usize>)>,
}

/// The tensors of a block, by GGUF's names, and their shapes.
fn block(c: &ModelConfig) -> Vec<(&'static str, Vec<usize>)> {
    let (q_width, kv_width) = (c.q_width(), c.kv_width());
    let mut out = vec![
        ("attn_norm.weight", vec![c.hidden]),
        ("attn_q.weight", vec![q_width, c.hidden]),
        ("attn_k.weight", vec![kv_width, c.hidden]),
        ("attn_v.weight", vec![kv_width, c.hidden]),
        ("attn_output.weight", vec![c.hidden, q_width]),
        ("ffn_norm.weight", vec![c.hidden]),
        ("ffn_gate.weight", vec![c.ffn, c.hidden]),
        ("ffn_up.weight", vec![c.ffn, c.hidden]),
        ("ffn_down.weight", vec![c.hidden, c.ffn]),
    ];
    if c.qkv_bias {
        out.extend([
            ("attn_q.bias", vec![q_width]),
            ("attn_k.bias", vec![kv_width]),
            ("attn_v.bias", vec![kv_width]),
        ]);
    }
    if c.qk_norm {
        out.extend([("attn_q_norm.weight", vec![c.head_dim]), ("attn_k_norm.weight", vec![c.head_dim])]);
    }
    out
}

impl Places<'_> {
    /// Tensors outside of blocks.
    fn outer(&self) -> impl Iterator<Item = (&'static str, Vec<usize>)> {
        let c = self.c;
        let table = vec![c.vocab, c.hidden];
        let head = (!c.tied).then(|| (Outer::Head, table.clone()));
        let names = self.names;
        [(Outer::Embedding, table), (Outer::Norm, vec![c.hidden])]
            .into_iter()
            .chain(head)
            .map(move |(which, shape)| (names.outer(which), shape))
    }

    /// Everything that the model needs.
    fn all(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let in_block = move |layer| {
            let names = self.names;
            self.block.iter().map(move |(role, shape)| (names.in_block(layer, role), shape.clone()))
        };
        let outer = self.outer().map(|(name, shape)| (name.to_owned(), shape));
        outer.chain((0..self.c.layers).flat_map(in_block))
    }

    fn needs(&self, name: &str) -> bool {
        match self.names.split(name) {
            Some((layer, role)) => {
                layer < self.c.layers && self.block.iter().any(|(known, _)| self.names.role(known) == role)
            }
            None => self.outer().any(|(known, _)| known == name),
        }
    }

    /// Does the model compute the same without it?
    fn without_effect(&self, name: &str, place: &Place) -> bool {
        match self.names {
            // Its values are in the configuration.
            Names::Gguf => name == ROPE_DIVISORS && self.c.architecture == "llama",
            Names::HuggingFace => {
                // transformers leaves out layers that config.json does not count; llama.cpp refuses them.
                self.names.split(name).is_some_and(|(layer, _)| layer >= self.c.layers)
                    || place.shape.contains(&0)
                    || WITHOUT_EFFECT.iter().any(|end| name.ends_with(end))
            }
        }
    }
}
