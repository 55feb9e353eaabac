//! The parameters of a stage: one flat vector.

use std::ops::Range;

use crate::adapter::AdapterShape;
use crate::adapter::peft::{PROMPT, lora_name};
use crate::config::ModelConfig;
use crate::families::family::Form;
use crate::families::named;
use crate::spec::{Projection, TensorRole};

/// The name of the token embedding, which is also that of the output matrix when both are tied.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The name of the last norm.
pub const NORM: &str = "model.norm.weight";
/// The name of an output matrix of its own.
pub const HEAD: &str = "lm_head.weight";

/// One tensor of the vector, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterTensor {
    /// As Hugging Face names it.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// Index of its first value.
    pub offset: usize,
    /// Is it a matrix, which weight decay shrinks? Norms and biases are not.
    pub decay: bool,
}

impl ParameterTensor {
    /// Values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// No values; no tensor of a model is so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where its values are.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The tensors of a stage in canonical order: embedding, blocks by number, last norm, output matrix. A stage that is first and last of a model
/// with tied embeddings has the embedding once; other last stages of such a model have a copy of it in the place of the output matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterLayout {
    tensors: Vec<ParameterTensor>,
    len: usize,
}

impl ParameterLayout {
    /// Of blocks `layers`, with the embedding when `first` and with last norm and output matrix when `last`.
    #[must_use]
    pub fn new(config: &ModelConfig, layers: Range<u32>, first: bool, last: bool) -> Self {
        let c = config;
        let mut layout = Self { tensors: Vec::new(), len: 0 };
        if first {
            layout.push(EMBEDDING.to_owned(), &[c.vocab, c.hidden]);
        }
        for layer in layers {
            for (role, shape) in c.block(layer).tensors(c.hidden) {
                layout.push(Self::layer_name(c, layer, role), &shape);
            }
        }
        if last {
            layout.push(NORM.to_owned(), &[c.hidden]);
            if !(c.tied && first) {
                layout.push(Self::head_name(c).to_owned(), &[c.vocab, c.hidden]);
            }
        }
        layout
    }

    /// Of an adapter of blocks `layers`, by PEFT's names; with the rows of a prompt when `first`. A stage may have none.
    #[must_use]
    pub fn of_adapter(config: &ModelConfig, shape: &AdapterShape, layers: Range<u32>, first: bool) -> Self {
        let mut layout = Self { tensors: Vec::new(), len: 0 };
        match shape {
            AdapterShape::Prompt(prompt) if first => {
                layout.push(PROMPT.to_owned(), &[prompt.tokens, config.hidden]);
            }
            AdapterShape::Prompt(_) => {}
            AdapterShape::Lora(lora) => {
                for layer in layers {
                    for which in Projection::ALL.into_iter().filter(|which| lora.targets.contains(which)) {
                        let (n, k) = config.matrix(which);
                        layout.push(lora_name(layer, which, "lora_A"), &[lora.rank, k]);
                        layout.push(lora_name(layer, which, "lora_B"), &[n, lora.rank]);
                    }
                }
            }
        }
        layout
    }

    /// The name of a block's tensor.
    pub(super) fn layer_name(config: &ModelConfig, layer: u32, role: TensorRole) -> String {
        let name = named(&config.architecture).tensor(role, Form::HuggingFace);
        format!("model.layers.{layer}.{name}")
    }

    /// The name of the output matrix.
    pub(super) fn head_name(config: &ModelConfig) -> &'static str {
        if config.tied { EMBEDDING } else { HEAD }
    }

    fn push(&mut self, name: String, shape: &[usize]) {
        let tensor =
            ParameterTensor { name, shape: shape.to_vec(), offset: self.len, decay: shape.len() > 1 };
        self.len += tensor.len();
        self.tensors.push(tensor);
    }

    /// In canonical order, without gaps.
    #[must_use]
    pub fn tensors(&self) -> &[ParameterTensor] {
        &self.tensors
    }

    /// Values in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// A stage without any tensors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&ParameterTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The tensor that has value `index`.
    #[must_use]
    pub fn tensor_of(&self, index: usize) -> Option<&ParameterTensor> {
        self.tensors.iter().find(|tensor| tensor.range().contains(&index))
    }

    /// Where a tensor that the stage has is; nowhere when it has none of this name.
    pub(super) fn range(&self, name: &str) -> Range<usize> {
        self.tensor(name).map_or(0..0, ParameterTensor::range)
    }
}

/// Some tensors of the gradient at once, when it is wanted.
pub(super) fn slices<'a, const N: usize>(
    gradient: &'a mut Option<(&mut [f32], usize)>,
    places: [&Range<usize>; N],
) -> Option<[&'a mut [f32]; N]> {
    let (values, skip) = gradient.as_mut()?;
    let places = places.map(|place| place.start.saturating_sub(*skip)..place.end.saturating_sub(*skip));
    // Tensors of a layout do not overlap, so this is never `None` for tensors that the stage has.
    values.get_disjoint_mut(places).ok()
}
