//! Names of the tensors of a model: GGUF's and Hugging Face's.

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    Gguf,
    HuggingFace,
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
        match (which, self) {
            (Outer::Embedding, Self::Gguf) => "token_embd.weight",
            (Outer::Embedding, Self::HuggingFace) => "model.embed_tokens.weight",
            (Outer::Norm, Self::Gguf) => "output_norm.weight",
            (Outer::Norm, Self::HuggingFace) => "model.norm.weight",
            (Outer::Head, Self::Gguf) => "output.weight",
            (Outer::Head, Self::HuggingFace) => "lm_head.weight",
        }
    }

    /// What stands before the number of a block.
    fn blocks(self) -> &'static str {
        match self {
            Self::Gguf => "blk.",
            Self::HuggingFace => "model.layers.",
        }
    }

    /// What the names of all tensors of a block begin with.
    pub(crate) fn block(self, layer: u32) -> String {
        format!("{}{layer}.", self.blocks())
    }

    /// The name of tensor `role` of a block, `role` being GGUF's name.
    pub(crate) fn in_block(self, layer: u32, role: &str) -> String {
        format!("{}{}", self.block(layer), self.role(role))
    }

    /// What this form calls the tensor that GGUF calls `role`.
    pub(crate) fn role(self, role: &str) -> &str {
        match (self, role) {
            (Self::Gguf, role) => role,
            (_, "attn_norm.weight") => "input_layernorm.weight",
            (_, "ffn_norm.weight") => "post_attention_layernorm.weight",
            (_, "attn_q.weight") => "self_attn.q_proj.weight",
            (_, "attn_k.weight") => "self_attn.k_proj.weight",
            (_, "attn_v.weight") => "self_attn.v_proj.weight",
            (_, "attn_output.weight") => "self_attn.o_proj.weight",
            (_, "attn_q.bias") => "self_attn.q_proj.bias",
            (_, "attn_k.bias") => "self_attn.k_proj.bias",
            (_, "attn_v.bias") => "self_attn.v_proj.bias",
            (_, "attn_q_norm.weight") => "self_attn.q_norm.weight",
            (_, "attn_k_norm.weight") => "self_attn.k_norm.weight",
            (_, "ffn_gate.weight") => "mlp.gate_proj.weight",
            (_, "ffn_up.weight") => "mlp.up_proj.weight",
            (_, "ffn_down.weight") => "mlp.down_proj.weight",
            (_, other) => other,
        }
    }

    /// The block that a tensor belongs to, and its name there.
    pub(crate) fn split(self, name: &str) -> Option<(u32, &str)> {
        let (layer, role) = name.strip_prefix(self.blocks())?.split_once('.')?;
        // Only as it is written: `+1` and `01` are other names.
        let number: u32 = layer.parse().ok()?;
        (number.to_string() == layer).then_some((number, role))
    }
}
