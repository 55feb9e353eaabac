//! Tensors to write, and places of those that are read.

/// A tensor to write: values in rows.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Hugging Face's name.
    pub name: &'a str,
    /// Rows first.
    pub shape: &'a [usize],
    /// All values.
    pub values: &'a [f32],
}

/// A tensor's place in the flat vectors of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face's name.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// As many places as the shape has values.
    pub range: std::ops::Range<usize>,
}
