//! Names of the tensors of a model: GGUF's and Hugging Face's.

use crate::families::family::{Family, Form, of};
use crate::spec::TensorRole;

/// The names that a file has.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub(crate) form: Form,
    pub(crate) family: &'static Family,
}

/// A tensor that is not in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outer {
    Embedding,
    Norm,
    Head,
}

impl Names {
    pub(crate) fn outer(self, which: Outer) -> &'static str {
        let names = match which {
            Outer::Embedding => ["model.embed_tokens.weight", "token_embd.weight"],
            Outer::Norm => ["model.norm.weight", "output_norm.weight"],
            Outer::Head => ["lm_head.weight", "output.weight"],
        };
        of(names, self.form)
    }

    /// What stands before the number of a block.
    fn blocks(self) -> &'static str {
        of(["model.layers.", "blk."], self.form)
    }

    /// What the names of all tensors of a block begin with.
    pub(crate) fn block(self, layer: u32) -> String {
        format!("{}{layer}.", self.blocks())
    }

    /// The name of a tensor of a block.
    pub(crate) fn in_block(self, layer: u32, role: TensorRole) -> String {
        format!("{}{}", self.block(layer), self.family.tensor(role, self.form))
    }

    /// The block that a tensor belongs to, and its name there.
    pub(crate) fn split(self, name: &str) -> Option<(u32, &str)> {
        let (layer, role) = name.strip_prefix(self.blocks())?.split_once('.')?;
        // Only as it is written: `+1` and `01` are other names.
        let number: u32 = layer.parse().ok()?;
        (number.to_string() == layer).then_some((number, role))
    }
}
