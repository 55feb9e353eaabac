//! Every tensor of a file has a place in the model, or is known to have no effect; every place has its tensor.

use std::collections::BTreeMap;

use super::names::{Names, Outer};
use super::stored::{Place, Stored, of_another_type};
use crate::config::ModelConfig;
use crate::error::{ModelError, excerpt};
use crate::families::family::{Form, Fused, of};
use crate::safetensors::Dtype;
use crate::spec::TensorRole;

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

/// Those of `tensors` that the model needs, each by the name of its role.
///
/// # Errors
/// With the first that is missing, of another shape or of a type that does not run, or that has no place.
pub(super) fn settle(
    file: &str,
    names: Names,
    c: &ModelConfig,
    mut tensors: BTreeMap<String, Place>,
) -> Result<BTreeMap<String, Place>, ModelError> {
    let places = Places { names, c, block: block(names, c) };
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
    cut(names, c, &mut tensors);
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

/// The tensors of a block as the file has them, and their shapes: those that are one stand where the first of them would.
fn block(names: Names, c: &ModelConfig) -> Vec<(&'static str, Vec<usize>)> {
    let mut out = Vec::new();
    for (role, shape) in c.block.tensors(c.hidden) {
        let of_role = |fused: &&Fused| fused.parts.iter().any(|part| TensorRole::Matrix(*part) == role);
        match names.family.fused.iter().find(of_role) {
            None => out.push((names.family.tensor(role, names.form), shape)),
            Some(fused) if TensorRole::Matrix(fused.parts[0]) == role => {
                let rows = fused.parts.iter().map(|part| c.matrix(*part).0).sum();
                out.push((of(fused.names, names.form), vec![rows, c.hidden]));
            }
            Some(_) => {}
        }
    }
    out
}

/// Cuts matrices that are one in the file: their rows lie one behind the other.
fn cut(names: Names, c: &ModelConfig, tensors: &mut BTreeMap<String, Place>) {
    for layer in 0..c.layers {
        for fused in names.family.fused {
            let name = format!("{}{}", names.block(layer), of(fused.names, names.form));
            let Some(whole) = tensors.remove(&name) else { continue };
            let row = whole.bytes / whole.shape[0];
            let mut offset = whole.offset;
            for part in fused.parts {
                let (n, k) = c.matrix(*part);
                let place = Place { shape: vec![n, k], offset, bytes: n * row, ..whole };
                offset += (n * row) as u64;
                tensors.insert(names.in_block(layer, TensorRole::Matrix(*part)), place);
            }
        }
    }
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
            self.block
                .iter()
                .map(move |(name, shape)| (format!("{}{name}", names.block(layer)), shape.clone()))
        };
        let outer = self.outer().map(|(name, shape)| (name.to_owned(), shape));
        outer.chain((0..self.c.layers).flat_map(in_block))
    }

    fn needs(&self, name: &str) -> bool {
        match self.names.split(name) {
            Some((layer, role)) => {
                layer < self.c.layers && self.block.iter().any(|(known, _)| *known == role)
            }
            None => self.outer().any(|(known, _)| known == name),
        }
    }

    /// Does the model compute the same without it?
    fn without_effect(&self, name: &str, place: &Place) -> bool {
        match self.names.form {
            // Their values are in the configuration.
            Form::Gguf => self.names.family.rope_tensors.contains(&name),
            Form::HuggingFace => {
                // transformers leaves out layers that config.json does not count; llama.cpp refuses them.
                self.names.split(name).is_some_and(|(layer, _)| layer >= self.c.layers)
                    || place.shape.contains(&0)
                    || WITHOUT_EFFECT.iter().any(|end| name.ends_with(end))
            }
        }
    }
}
